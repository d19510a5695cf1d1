//! How the SDK sends requests: by the HTTP client and the TLS stack that the rest of the program uses.

use std::time::Duration;

use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::config::http::{HttpRequest, HttpResponse};
use aws_sdk_kms::error::{BoxError, ConnectorError};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::http::StatusCode;
use reqwest::redirect::Policy;

use crate::error::{Error, Result, Stage};
use crate::http::{self, Clients, HttpOptions};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// KMS answers with a few hundred bytes.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// An HTTP client as `options` say, that trusts the certificates of `ca_bundle` too, a file that `AWS_CA_BUNDLE` names. Blocks.
pub(super) fn client(options: &HttpOptions, ca_bundle: Option<&str>) -> Result<SharedHttpClient> {
    let connector = http::Connector::new(options, ca_bundle)?;
    let clients = connector.clients(|builder| builder.connect_timeout(CONNECT_TIMEOUT).redirect(Policy::none()));
    let clients =
        clients.map_err(|e| Error::internal(Stage::Keys, "could not set up an HTTP client").with_source(e))?;
    let connector = SharedHttpConnector::new(Connector(clients));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

#[derive(Debug, Clone)]
struct Connector(Clients);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let clients = self.0.clone();
        HttpConnectorFuture::new(async move { send(&clients, request).await })
    }
}

async fn send(clients: &Clients, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let user = |e: BoxError| ConnectorError::user(e);
    let request = request.try_into_http1x().map_err(|e| user(e.into()))?;
    let body = request.body().bytes().ok_or_else(|| user("a request to KMS has its body in memory".into()))?.to_vec();
    let request = reqwest::Request::try_from(request.map(|_| body)).map_err(|e| user(e.into()))?;
    let client = clients.to(request.url().host_str().unwrap_or_default());
    let mut answer = client.execute(request).await.map_err(connector_error)?;
    let status = answer.status();
    let headers = answer.headers().clone();
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(connector_error)? {
        if bytes.len() + piece.len() > ANSWER_LEN_MAX {
            return Err(ConnectorError::other("the answer is too long to be one of KMS".into(), None));
        }
        bytes.extend_from_slice(&piece);
    }
    let status = StatusCode::try_from(status.as_u16()).map_err(|e| user(e.into()))?;
    let mut response = HttpResponse::new(status, bytes.into());
    for (name, value) in &headers {
        // Those that are no text are none of KMS's.
        if let Ok(value) = value.to_str() {
            response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(response)
}

fn connector_error(error: reqwest::Error) -> ConnectorError {
    match http::tls_failure(&error) {
        // Not tried again.
        Some(_) => ConnectorError::other(error.into(), None),
        None if error.is_timeout() => ConnectorError::timeout(error.into()),
        None => ConnectorError::io(error.into()),
    }
}
