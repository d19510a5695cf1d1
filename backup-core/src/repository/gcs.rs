//! Google Cloud Storage, by its XML interface.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey as Key};
use url::Url;

use super::endpoint::{Endpoint, parse_endpoint};
use super::environment::Environment;
use super::storage_error;
use super::uploads::{Access, Uploads};
use crate::error::{Error, Result};
use crate::http::{self, Connector, HttpOptions};

/// How to reach Google Cloud Storage, beside its URL. Credentials are not here: they come the way Google's own tools find them, the first of an
/// access token (`CLOUDSDK_AUTH_ACCESS_TOKEN`, which is not renewed), a service account's key (`GOOGLE_SERVICE_ACCOUNT`, a file, or
/// `GOOGLE_SERVICE_ACCOUNT_KEY`, its text), application default credentials (`GOOGLE_APPLICATION_CREDENTIALS`, a file, or that of
/// `gcloud auth application-default login`), the machine's service account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcsOptions {
    /// `https://host[:port]`; an `http://` endpoint is taken as it is. Otherwise `https://storage.googleapis.com`.
    pub endpoint: Option<String>,
    /// The class in which volumes of backups are kept, such as `NEARLINE`. Otherwise as the bucket is set.
    pub storage_class: Option<String>,
}

const GOOGLE: &str = "https://storage.googleapis.com";

const GCS: Endpoint =
    Endpoint { of: "Google Cloud Storage", example: GOOGLE, credentials: "GOOGLE_APPLICATION_CREDENTIALS" };

/// Variables that are taken as they are.
const VARIABLES: [(&str, Key); 6] = [
    ("CLOUDSDK_AUTH_ACCESS_TOKEN", Key::BearerToken),
    ("GOOGLE_SERVICE_ACCOUNT", Key::ServiceAccount),
    ("GOOGLE_SERVICE_ACCOUNT_PATH", Key::ServiceAccount),
    ("GOOGLE_SERVICE_ACCOUNT_KEY", Key::ServiceAccountKey),
    ("GOOGLE_APPLICATION_CREDENTIALS", Key::ApplicationCredentials),
    ("GOOGLE_BASE_URL", Key::BaseUrl),
];

/// A client for `bucket`, and what lists the uploads into it. No request is made.
pub(super) fn connect(
    bucket: &str,
    options: &GcsOptions,
    http: &HttpOptions,
    environment: &Environment,
) -> Result<(GoogleCloudStorage, Uploads)> {
    let connector = Connector::new(http, None)?;
    let builder = builder(bucket, options, environment)?.with_http_connector(connector.clone());
    let endpoint = builder.get_config_value(&Key::BaseUrl).unwrap_or_else(|| GOOGLE.to_owned());
    let failed = |e| storage_error(e, format!("cannot set up gs://{bucket}"));
    let store = builder.build().map_err(failed)?;
    let url = Url::parse(&format!("{endpoint}/{bucket}"))
        .map_err(|e| Error::config(format!("cannot set up gs://{bucket}")).with_source(e))?;
    let access = Access::Google(Arc::clone(store.credentials()));
    let uploads = Uploads::new(store.clone(), connector, url, access);
    Ok((store, uploads))
}

fn builder(bucket: &str, options: &GcsOptions, environment: &Environment) -> Result<GoogleCloudStorageBuilder> {
    let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket).with_retry(http::retry());
    for (name, key) in VARIABLES {
        if let Some(value) = environment.get(name) {
            builder = builder.with_config(key, value);
        }
    }
    for (key, name) in [
        (Key::ServiceAccount, "GOOGLE_SERVICE_ACCOUNT"),
        (Key::ApplicationCredentials, "GOOGLE_APPLICATION_CREDENTIALS"),
    ] {
        if let Some(file) = builder.get_config_value(&key).map(PathBuf::from) {
            check_credentials(&file, name)?;
        }
    }
    let mut secure = true;
    if let Some(text) = options.endpoint.clone().or_else(|| builder.get_config_value(&Key::BaseUrl)) {
        let url = parse_endpoint(&text, &GCS)?;
        secure = url.scheme() == "https";
        builder = builder.with_base_url(url.as_str().trim_end_matches('/'));
    }
    Ok(builder.with_client_options(http::client_options(!secure)))
}

/// Says what is wrong with a file of credentials: later it would look like a failure of the store.
fn check_credentials(file: &std::path::Path, variable: &str) -> Result<()> {
    let refused = |why: String| {
        Error::config(format!("cannot use the credentials in {}", file.display()))
            .with_source(why)
            .with_hint(format!("{variable} names the file"))
    };
    let text = std::fs::read(file).map_err(|e| refused(e.to_string()))?;
    // Not the parser's own words: they may repeat what they could not read.
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|_| refused("it is no JSON".to_owned()))?;
    match json.get("type").and_then(serde_json::Value::as_str) {
        Some("service_account" | "authorized_user") => Ok(()),
        Some(kind) => Err(refused(format!(
            "credentials of the kind '{}' are not supported: service_account and authorized_user are",
            kind.escape_debug()
        ))),
        // Keys for emulators have none.
        None if json.get("client_email").is_some() => Ok(()),
        None => Err(refused("it does not say of which kind they are".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_explicit_endpoint_wins_and_http_has_to_be_asked_for() {
        let options = GcsOptions { endpoint: Some("http://127.0.0.1:4443/".to_owned()), ..GcsOptions::default() };
        let environment = with(&[("GOOGLE_BASE_URL", "https://elsewhere"), ("CLOUDSDK_AUTH_ACCESS_TOKEN", "ya29")]);
        let seen = |options: &GcsOptions| {
            let builder = builder("bucket", options, &environment).unwrap();
            let allow_http = Key::Client(object_store::ClientConfigKey::AllowHttp);
            [Key::BaseUrl, Key::BearerToken, allow_http].map(|key| builder.get_config_value(&key).unwrap_or_default())
        };
        assert_eq!(seen(&options), ["http://127.0.0.1:4443", "ya29", "true"]);
        assert_eq!(seen(&GcsOptions::default()), ["https://elsewhere", "ya29", "false"]);
    }

    #[test]
    fn what_is_wrong_with_a_file_of_credentials_is_told_and_its_contents_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("key.json");
        let path = file.display().to_string();
        for (text, why) in [
            ("hush", "no JSON"),
            ("{\"private_key\": \"hush\"}", "of which kind"),
            ("{\"type\": \"external_account\", \"x\": \"hush\"}", "'external_account' are not supported"),
        ] {
            std::fs::write(&file, text).unwrap();
            for variable in ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"] {
                let environment = with(&[(variable, &path)]);
                let error = format!("{:?}", builder("bucket", &GcsOptions::default(), &environment).unwrap_err());
                assert!(error.contains(why) && error.contains(&path) && !error.contains("hush"), "{error}");
            }
        }
        let absent = with(&[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json")]);
        let error = builder("bucket", &GcsOptions::default(), &absent).unwrap_err();
        assert!(error.to_string().contains("/no/such/key.json") && error.hint().is_some(), "{error:?}");
    }
}
