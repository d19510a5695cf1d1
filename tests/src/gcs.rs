//! What Google Cloud Storage's XML interface is as far as the library's client uses it. **A fake**: no emulator speaks it.
//!
//! Beneath is the S3 server of this process, whose requests Google's interface shares: multipart uploads, ranges, listings. Bearer tokens take
//! the place of signatures, `x-goog-if-generation-match: 0` that of `If-None-Match: *`, and objects have generations.

use std::io::{Read, Write};
use std::net::TcpStream;

use hyper::header::{AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, Response, StatusCode};

use crate::host::Host;
use crate::s3::{BUCKET, S3};

/// The token of who may use it.
pub const TOKEN: &str = "ya29.an-access-token";

/// A running server with one empty bucket.
#[derive(Debug)]
pub struct Gcs {
    /// The server beneath.
    pub beneath: S3,
}

impl Gcs {
    /// Starts a server.
    pub fn start() -> Self {
        Self { beneath: S3::for_google() }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.beneath.endpoint()
    }

    /// Begins an upload into the bucket, and does not complete it.
    ///
    /// # Panics
    /// When the server does not let it.
    pub fn begin_upload(&self, key: &str) {
        let mut stream = TcpStream::connect(self.beneath.address()).expect("it listens");
        let request = format!(
            "POST /{BUCKET}/{key}?uploads HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it can be asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Makes `host` a client, with credentials, and its repository a prefix of the bucket.
    pub fn serve(&self, host: &mut Host) {
        host.set("BACKUP_REPO", format!("gs://{BUCKET}/some/prefix"));
        host.set("GOOGLE_BASE_URL", self.endpoint());
        host.set("CLOUDSDK_AUTH_ACCESS_TOKEN", TOKEN);
    }
}

/// Turns a request of Google's into one of S3; or says what is wrong with it: status, code, and why.
pub(crate) fn into_s3<B>(request: &mut Request<B>) -> Result<(), (u16, &'static str, &'static str)> {
    let headers = request.headers_mut();
    let authorization = headers.remove(AUTHORIZATION);
    if authorization.is_none_or(|value| value.as_bytes() != format!("Bearer {TOKEN}").as_bytes()) {
        return Err((401, "AuthenticationRequired", "The token is missing or wrong"));
    }
    if is_of_amazon(headers) || headers.contains_key(IF_NONE_MATCH) {
        return Err((400, "InvalidArgument", "The request is one of another provider"));
    }
    match headers.remove("x-goog-if-generation-match") {
        None => {}
        Some(generation) if generation == "0" => {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        Some(_) => return Err((412, "PreconditionFailed", "Objects have no generations to be compared with")),
    }
    Ok(())
}

fn is_of_amazon(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-amz-"))
}

/// Turns an answer of S3 into one of Google's.
pub(crate) fn from_s3<B>(response: &mut Response<B>) {
    let of_an_object = response.status() == StatusCode::OK && response.headers().contains_key(ETAG);
    let headers = response.headers_mut();
    let amazon: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("x-amz-")).cloned().collect();
    for name in amazon {
        headers.remove(name);
    }
    if of_an_object {
        headers.insert("x-goog-generation", HeaderValue::from_static("1"));
    }
}
