//! Addresses of services that are not where their providers have them.

use url::Url;

use crate::error::{Error, Result};

/// Whose endpoint it is, for messages.
pub(super) struct Endpoint {
    pub(super) of: &'static str,
    pub(super) example: &'static str,
    /// Where credentials belong instead.
    pub(super) credentials: &'static str,
}

/// Reads an endpoint: scheme, host, port, perhaps a path, and nothing else. What is refused is not repeated, since a secret may stand there.
pub(super) fn parse_endpoint(text: &str, endpoint: &Endpoint) -> Result<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(url) = url else {
        return Err(Error::config(format!("the {} endpoint is not a URL", endpoint.of))
            .with_hint(format!("it looks like '{}'", endpoint.example)));
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(Error::config(format!("the {} endpoint holds more than a host and a port", endpoint.of))
            .with_hint(format!("credentials belong into {}", endpoint.credentials)));
    }
    Ok(url)
}
