//! What is asked, and what becomes of answers: those of a store, and those of one that means no good.

use std::sync::Mutex;

use async_trait::async_trait;
use object_store::aws::AwsCredential;
use object_store::client::{HttpError, HttpResponseBody, HttpService};
use object_store::gcp::GcpCredential;
use object_store::memory::InMemory;
use object_store::{ClientOptions, StaticCredentialProvider};

use super::*;
use crate::error::ErrorKind;
use crate::repository::storage_error;

/// Gives its answers, the last again and again.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    answers: Arc<Mutex<Vec<(u16, String)>>>,
    asked: Arc<Mutex<Vec<HttpRequest>>>,
}

impl Answers {
    pub(crate) fn new<const N: usize>(answers: [(u16, String); N]) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into())), asked: Arc::default() }
    }

    pub(crate) fn uploads(&self, access: Access, store: impl MultipartStore) -> Uploads {
        Uploads::new(store, self.clone(), "https://s3.test/bucket".parse().unwrap(), access)
            .below(&Path::from("some/prefix"))
    }

    fn queries(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|request| request.uri().query().unwrap_or_default().to_owned()).collect()
    }
}

impl HttpConnector for Answers {
    fn connect(&self, _: &ClientOptions) -> StoreResult<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Answers {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.asked.lock().unwrap().push(request);
        let mut answers = self.answers.lock().unwrap();
        let (status, body) = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        let mut response = HttpResponse::new(HttpResponseBody::from(body));
        *response.status_mut() = status.try_into().unwrap();
        Ok(response)
    }
}

/// An answer of a store; `rest` is what it says beside uploads.
pub(crate) fn page(uploads: &[(&str, &str, &str)], rest: &str) -> String {
    let entry = |(key, id, initiated): &(&str, &str, &str)| {
        format!(
            "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><Owner><ID>7</ID></Owner><Initiated>{initiated}</Initiated></Upload>"
        )
    };
    let uploads: String = uploads.iter().map(entry).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListMultipartUploadsResult \
         xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>bucket</Bucket>{rest}{uploads}</ListMultipartUploadsResult>"
    )
}

fn more(key: &str, id: &str) -> String {
    format!(
        "<IsTruncated>true</IsTruncated><NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>"
    )
}

async fn listed(uploads: &Uploads) -> StoreResult<Vec<(String, String)>> {
    uploads.list().map_ok(|upload| (upload.path.to_string(), upload.id)).try_collect().await
}

#[tokio::test]
async fn all_pages_are_asked_for_and_what_is_not_below_the_prefix_is_left_out() {
    let then = "2026-11-22T02:00:00.000Z";
    let first = [("some/prefix/app/a b&amp;c", "one+1", then), ("some/prefixed/x", "two", then)];
    let answers = Answers::new([
        (200, page(&first, &more("some/prefix/app/a b&amp;c", "one+1"))),
        (
            200,
            page(
                &[
                    ("some/prefix/z", "three", "yesterday"),
                    ("some/prefix/../z", "four", then),
                    ("/some/prefix/z", "five", then),
                ],
                "",
            ),
        ),
    ]);
    let credential = AwsCredential { key_id: "AKID".into(), secret_key: "hush".into(), token: Some("token".into()) };
    let access = Access::Aws {
        credentials: Arc::new(StaticCredentialProvider::new(credential)),
        region: "eu-1".to_owned(),
        request_payer: true,
    };
    let found: Vec<Upload> = answers.uploads(access, InMemory::new()).list().try_collect().await.unwrap();
    let expected = [("app/a b&c", "one+1", then.parse().unwrap()), ("z", "three", Timestamp::MAX)];
    let expected = expected.map(|(path, id, initiated)| Upload { path: Path::from(path), initiated, id: id.into() });
    assert_eq!(found, expected);
    assert_eq!(
        answers.queries(),
        [
            "uploads&prefix=some%2Fprefix%2F",
            "uploads&prefix=some%2Fprefix%2F&key-marker=some%2Fprefix%2Fapp%2Fa%20b%26c&upload-id-marker=one%2B1"
        ]
    );
    for request in &*answers.asked.lock().unwrap() {
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert!(header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=AKID/"));
        assert!(header("authorization").contains("/eu-1/s3/aws4_request"));
        assert_eq!(
            (header("x-amz-security-token"), header("x-amz-request-payer")),
            ("token".into(), "requester".into())
        );
    }
}

#[tokio::test]
async fn google_is_shown_the_token_that_it_gave() {
    let answers = Answers::new([(200, page(&[], "<IsTruncated>false</IsTruncated>"))]);
    let credential = GcpCredential { bearer: "ya29".into() };
    let access = Access::Google(Arc::new(StaticCredentialProvider::new(credential)));
    assert_eq!(listed(&answers.uploads(access, InMemory::new())).await.unwrap(), []);
    assert_eq!(answers.asked.lock().unwrap()[0].headers()["authorization"], "Bearer ya29");
}

#[tokio::test]
async fn pages_that_lead_nowhere_end() {
    for (answer, pages) in [
        // The same marker again, one that is none, and none at all.
        (page(&[("some/prefix/a", "1", "")], &more("some/prefix/a", "1")), 2),
        (page(&[("some/prefix/a", "1", "")], &more("", "1")), 1),
        (page(&[("some/prefix/a", "1", "")], "<IsTruncated>true</IsTruncated>"), 1),
    ] {
        let answers = Answers::new([(200, answer)]);
        let found = listed(&answers.uploads(Access::Anonymous, InMemory::new())).await.unwrap();
        assert_eq!((found.len(), answers.queries().len()), (pages, pages));
    }
}

#[tokio::test]
async fn what_is_no_list_of_uploads_is_none_and_an_error() {
    let long = page(&[], &"<Prefix>x</Prefix>".repeat(PAGE_LEN_MAX / 10));
    let bomb = format!("<!DOCTYPE x [<!ENTITY a \"{}\">]>{}", "x".repeat(1000), page(&[("&a;", "1", "")], ""));
    for (status, answer, kind, why) in [
        // From a store that overlooks what it does not know.
        (
            200,
            "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            ErrorKind::Storage,
            "no list of",
        ),
        (200, "", ErrorKind::Storage, "no list of"),
        (200, "<ListMultipartUploadsResult><Upload>", ErrorKind::Storage, ""),
        (200, "<ListMultipartUploadsResult><Upload></Upload></ListMultipartUploadsResult>", ErrorKind::Storage, "Key"),
        (200, &long, ErrorKind::Storage, "longer than"),
        (200, &bomb, ErrorKind::Storage, ""),
        (501, "<Error><Code>NotImplemented</Code></Error>", ErrorKind::Storage, "501 NotImplemented"),
        (403, "<Error><Code>AccessDenied</Code></Error>", ErrorKind::Config, "403 AccessDenied"),
        (405, "", ErrorKind::Storage, "405"),
    ] {
        let answers = Answers::new([(status, answer.to_owned())]);
        let error = listed(&answers.uploads(Access::Anonymous, InMemory::new())).await.unwrap_err();
        let error = storage_error(error, "cannot list");
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.in_one_line().contains(why), "{error:?}");
        assert_eq!(answers.queries().len(), 1, "it is not asked again");
    }
}

#[tokio::test]
async fn a_store_that_is_overloaded_is_asked_again() {
    let overloaded = (503, "<Error><Code>SlowDown</Code></Error>".to_owned());
    let answers = Answers::new([overloaded, (200, page(&[("some/prefix/a", "1", "")], ""))]);
    assert_eq!(listed(&answers.uploads(Access::Anonymous, InMemory::new())).await.unwrap().len(), 1);
    assert_eq!(answers.queries().len(), 2);
}
