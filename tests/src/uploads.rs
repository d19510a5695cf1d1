//! The list of uploads that nobody completed: the store beneath the S3 server of this process has none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use backup_core::jiff::Timestamp;
use data_encoding::BASE64URL_NOPAD;
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, Uri};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};
use url::form_urlencoded;

use crate::s3::BUCKET;

/// So few that more than one page is needed soon.
const PAGE: usize = 2;

/// Answers `GET BUCKET?uploads`, once its signature was found good.
pub(crate) struct ListUploads {
    pub(crate) root: PathBuf,
    /// Nothing is signed there.
    pub(crate) google: bool,
}

impl ListUploads {
    /// Key, id, and when it was begun.
    fn uploads(&self) -> Vec<(String, String, Timestamp)> {
        let bucket = format!(".bucket-{}.object-", BASE64URL_NOPAD.encode(BUCKET.as_bytes()));
        let names = fs::read_dir(&self.root).expect("a directory").map(|entry| entry.expect("an entry").file_name());
        let read = |name: String| {
            let (key, id) = name.strip_prefix(&bucket)?.strip_suffix(".metadata.json")?.split_once(".upload-")?;
            let key = String::from_utf8(BASE64URL_NOPAD.decode(key.as_bytes()).ok()?).ok()?;
            let begun = fs::metadata(info(&self.root, id)).ok()?.modified().ok()?;
            Some((key, id.to_owned(), begun.try_into().ok()?))
        };
        let mut uploads: Vec<_> = names.filter_map(|name| read(name.into_string().ok()?)).collect();
        uploads.sort();
        uploads
    }

    fn page(&self, query: &str) -> String {
        let value = |wanted: &str| {
            let found = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (prefix, behind) = (value("prefix"), (value("key-marker"), value("upload-id-marker")));
        let mut uploads = self.uploads();
        uploads.retain(|(key, id, _)| key.starts_with(&prefix) && (key, id) > (&behind.0, &behind.1));
        let is_truncated = uploads.len() > PAGE;
        uploads.truncate(PAGE);
        let mut answer = format!("<ListMultipartUploadsResult><IsTruncated>{is_truncated}</IsTruncated>");
        if let (true, Some((key, id, _))) = (is_truncated, uploads.last()) {
            answer += &format!("<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>");
        }
        for (key, id, begun) in uploads {
            answer +=
                &format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Initiated>{begun}</Initiated></Upload>");
        }
        answer + "</ListMultipartUploadsResult>"
    }
}

/// The keys of all uploads into the store below `root`.
pub(crate) fn keys(root: &Path) -> Vec<String> {
    let store = ListUploads { root: root.to_owned(), google: false };
    store.uploads().into_iter().map(|(key, ..)| key).collect()
}

/// Makes all uploads into the store below `root` as old as if they had been begun then.
pub(crate) fn age(root: &Path, begun: SystemTime) {
    let store = ListUploads { root: root.to_owned(), google: false };
    for (_, id, _) in store.uploads() {
        let file = fs::File::options().write(true).open(info(root, &id)).expect("a file");
        file.set_modified(begun).expect("a time");
    }
}

/// The file that holds nothing but who began an upload.
fn info(root: &Path, id: &str) -> PathBuf {
    root.join(format!(".upload-{id}.json"))
}

#[async_trait::async_trait]
impl S3Route for ListUploads {
    fn is_match(&self, method: &Method, uri: &Uri, _: &HeaderMap, _: &mut Extensions) -> bool {
        let has_uploads = |query: &str| query.split('&').any(|pair| pair == "uploads" || pair == "uploads=");
        *method == Method::GET && uri.query().is_some_and(has_uploads)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let allowed = self.google || request.credentials.is_some();
        if allowed { Ok(()) } else { Err(s3_error!(AccessDenied)) }
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        Ok(S3Response::new(Body::from(self.page(request.uri.query().unwrap_or_default()))))
    }
}
