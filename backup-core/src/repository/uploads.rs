//! Multipart uploads that were never completed: a store keeps their parts until somebody aborts them, and no listing of objects shows them.
//!
//! `object_store` aborts uploads and has no request that lists them. S3 has one, and Google the same:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>,
//! <https://cloud.google.com/storage/docs/xml-api/get-bucket-uploads>.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt, future};
use jiff::Timestamp;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, HttpResponse};
use object_store::gcp::GcpCredentialProvider;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error as StoreError, HeaderValue, Result as StoreResult};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::failure::is_passing;
use crate::http::client_options;

/// The longest page in bytes: four kilobytes for each of a thousand uploads, the most that stores answer with.
const PAGE_LEN_MAX: usize = 4 * 1024 * 1024;
/// The pages that are asked for. What is behind them waits for the next time.
const PAGES_MAX: usize = 10_000;
/// How often a page is asked for while the store is not available, and the pause before the second time; doubled for each further one.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// The uploads into a bucket, as far as they are below a prefix.
pub(super) struct Uploads {
    store: Arc<dyn MultipartStore>,
    connector: Box<dyn HttpConnector>,
    bucket: Url,
    access: Access,
    prefix: Path,
}

/// By what right it is asked.
pub(super) enum Access {
    /// By a signature of version 4.
    Aws { credentials: AwsCredentialProvider, region: String, request_payer: bool },
    /// By a bearer token.
    Google(GcpCredentialProvider),
    /// By nobody's.
    Anonymous,
}

/// An upload that was begun, and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upload {
    /// The object that it would become, as the repository calls it.
    pub(super) path: Path,
    /// When it was begun, by the store's clock. One that cannot be told is not old.
    pub(super) initiated: Timestamp,
    id: String,
}

impl Uploads {
    /// Those into the bucket at `bucket`, of which `store` is a client.
    pub(super) fn new(store: impl MultipartStore, connector: impl HttpConnector, bucket: Url, access: Access) -> Self {
        Self { store: Arc::new(store), connector: Box::new(connector), bucket, access, prefix: Path::default() }
    }

    /// Those below `prefix` alone, and their paths from there on.
    pub(super) fn below(self, prefix: &Path) -> Self {
        Self { prefix: prefix.clone(), ..self }
    }

    /// All of them. Holds a page in memory.
    pub(super) fn list(&self) -> BoxStream<'_, StoreResult<Upload>> {
        // Not before: it costs some milliseconds, and who archives a segment never asks.
        let client = match self.connector.connect(&client_options(self.bucket.scheme() == "http")) {
            Ok(client) => client,
            Err(e) => return stream::once(future::err(e)).boxed(),
        };
        let first = Some((client, Marker::default(), PAGES_MAX));
        let pages = stream::try_unfold(first, move |next| async move {
            let Some((client, marker, pages_left)) = next else { return Ok::<_, StoreError>(None) };
            let page = self.page(&client, &marker).await?;
            let following = page.next().filter(|next| *next != marker && pages_left > 1);
            let uploads: Vec<_> = page.upload.into_iter().filter_map(|entry| self.read(entry)).map(Ok).collect();
            Ok(Some((stream::iter(uploads), following.map(|next| (client, next, pages_left - 1)))))
        });
        pages.try_flatten().boxed()
    }

    /// Has the store forget an upload, and its parts. Cancel safe.
    pub(super) async fn abort(&self, upload: &Upload) -> StoreResult<()> {
        let object: Path = self.prefix.parts().chain(upload.path.parts()).collect();
        self.store.abort_multipart(&object, &upload.id).await
    }

    /// `None` for what has no name below the prefix, whatever the store was asked for.
    fn read(&self, entry: Entry) -> Option<Upload> {
        // Others may have keys that are no paths.
        let object = Path::parse(&entry.key).ok().filter(|object| object.as_ref() == entry.key)?;
        let path = object.prefix_match(&self.prefix)?.collect();
        let initiated = entry.initiated.and_then(|text| text.parse().ok()).unwrap_or(Timestamp::MAX);
        Some(Upload { path, initiated, id: entry.upload_id })
    }

    async fn page(&self, client: &HttpClient, marker: &Marker) -> StoreResult<Page> {
        let mut url = self.bucket.clone();
        url.set_query(Some(&self.query(marker)));
        let mut attempt = 1;
        loop {
            match self.ask(client, &url).await {
                Err(e) if attempt < ATTEMPTS && is_passing(&e) => {}
                answered => return Page::read(&answered?),
            }
            tokio::time::sleep(PAUSE * (1 << (attempt - 1))).await;
            attempt += 1;
        }
    }

    fn query(&self, marker: &Marker) -> String {
        let mut query = "uploads".to_owned();
        let prefix = if self.prefix.as_ref().is_empty() { String::new() } else { format!("{}/", self.prefix) };
        for (name, value) in [("prefix", &prefix), ("key-marker", &marker.key), ("upload-id-marker", &marker.upload_id)]
        {
            if !value.is_empty() {
                let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
                // Not every store reads a plus as a space, nor do all sign it as one.
                query += &format!("&{name}={}", value.replace('+', "%20"));
            }
        }
        query
    }

    async fn ask(&self, client: &HttpClient, url: &Url) -> StoreResult<Bytes> {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().map_err(failed)?;
        self.access.authorize(&mut request).await?;
        let response = client.execute(request).await.map_err(failed)?;
        let status = response.status();
        let body = body(response).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(failed(Refusal(format!("{status}: {}", String::from_utf8_lossy(&body)))))
    }
}

impl Access {
    async fn authorize(&self, request: &mut HttpRequest) -> StoreResult<()> {
        match self {
            Self::Aws { credentials, region, request_payer } => {
                let credential = credentials.get_credential().await?;
                let authorizer = AwsAuthorizer::new(&credential, "s3", region).with_request_payer(*request_payer);
                authorizer.try_authorize(request, None)
            }
            Self::Google(credentials) => {
                let credential = credentials.get_credential().await?;
                let mut token = HeaderValue::try_from(format!("Bearer {}", credential.bearer)).map_err(failed)?;
                token.set_sensitive(true);
                request.headers_mut().insert("authorization", token);
                Ok(())
            }
            Self::Anonymous => Ok(()),
        }
    }
}

/// Behind which upload a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Marker {
    key: String,
    upload_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default)]
    upload: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    upload_id: String,
    initiated: Option<String>,
}

impl Page {
    fn read(body: &[u8]) -> StoreResult<Self> {
        let text = std::str::from_utf8(body).map_err(failed)?;
        // A store that does not know the request lists objects instead, which would look like no uploads.
        if !text.contains("<ListMultipartUploadsResult") {
            return Err(failed("the answer is no list of uploads"));
        }
        quick_xml::de::from_str(text).map_err(failed)
    }

    /// Where the next page begins, if there is one.
    fn next(&self) -> Option<Marker> {
        let marker = Marker { key: self.next_key_marker.clone(), upload_id: self.next_upload_id_marker.clone() };
        (self.is_truncated && !marker.key.is_empty()).then_some(marker)
    }
}

/// What the store answered instead, in the words in which `object_store` has it, so that it is judged as everything else is.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server returned non-2xx status code: {}", self.0)
    }
}

impl std::error::Error for Refusal {}

/// Counted as it comes: a store may send without end.
async fn body(response: HttpResponse) -> StoreResult<Bytes> {
    let mut bytes = BytesMut::new();
    let mut stream = response.into_body().bytes_stream();
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        if bytes.len() + piece.len() > PAGE_LEN_MAX {
            return Err(failed(format!("the answer is longer than {PAGE_LEN_MAX} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Generic { store: "uploads", source: source.into() }
}

#[cfg(test)]
pub(super) mod tests;
