//! A client of S3 servers, whoever wrote them: for hosts, and for requests that the program does not make.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use hyper::Request;
use hyper::header::HOST;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequestBody;

use super::{ACCESS_KEY, SECRET_KEY};
use crate::host::Host;

/// Makes `host` a client of an S3 server, with credentials, and its repository a prefix of `bucket`.
pub fn serve_at(endpoint: &str, bucket: &str, host: &mut Host) {
    host.set("BACKUP_REPO", format!("s3://{bucket}/some/prefix"));
    host.set("AWS_ENDPOINT_URL", endpoint);
    host.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
    host.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    host.set("AWS_REGION", "us-east-1");
    host.set("AWS_EC2_METADATA_DISABLED", "true");
}

/// Makes a bucket; whether the server made it. It may not listen yet.
pub fn make_bucket(server: SocketAddr, bucket: &str) -> bool {
    ask(server, "PUT", &format!("/{bucket}")).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Makes a signed request without a body; all that is answered.
///
/// # Errors
/// When nobody answers.
///
/// # Panics
/// When it cannot be signed.
pub fn ask(server: SocketAddr, method: &str, target: &str) -> io::Result<String> {
    ask_with(server, method, target, &[], "")
}

/// The same with headers and a body.
///
/// # Errors
/// When nobody answers.
///
/// # Panics
/// When it cannot be signed.
pub fn ask_with(
    server: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<String> {
    let credential = AwsCredential { key_id: ACCESS_KEY.to_owned(), secret_key: SECRET_KEY.to_owned(), token: None };
    let request = Request::builder().method(method).uri(format!("http://{server}{target}"));
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let mut request = request.body(HttpRequestBody::from(body.to_owned())).expect("a request");
    AwsAuthorizer::new(&credential, "s3", "us-east-1").try_authorize(&mut request, None).expect("it can be signed");
    let len = body.len();
    let mut text = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len}\r\n");
    if !request.headers().contains_key(HOST) {
        text += &format!("Host: {server}\r\n");
    }
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().expect("text"));
    }
    let mut stream = std::net::TcpStream::connect(server)?;
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
