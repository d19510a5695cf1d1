//! From what is configured to the options of stores.

use backup_core::http::HttpOptions;
use backup_core::repository::{AzureOptions, GcsOptions, S3Encryption, S3Options};
use backup_core::{Error, Result};

use crate::config::{Azure, Config, Gcs, S3, Setting};

/// How HTTP is spoken to stores and key services.
pub(crate) fn http_options(config: &Config) -> Result<HttpOptions> {
    let http = &config.http;
    Ok(HttpOptions {
        ssl_min_protocol_version: told(http.ssl_min_protocol_version.as_ref(), |v| v.parse())?.unwrap_or_default(),
        ca_file: value(http.ca_file.as_ref()),
        proxy: value(http.proxy.as_ref()),
    })
}

/// How S3 is reached.
pub(crate) fn s3_options(s3: &S3) -> Result<S3Options> {
    let (key_id, bucket_key) = (value(s3.sse_kms_key_id.as_ref()), value(s3.sse_bucket_key.as_ref()));
    let encryption = match &s3.sse {
        None if key_id.is_some() || bucket_key.is_some() => {
            return Err(Error::config("a key of KMS for S3's encryption is configured, and not the encryption")
                .with_hint("sse = \"aws:kms\" in [repository.s3], or --sse aws:kms"));
        }
        sse => told(sse.as_ref(), |name| S3Encryption::new(name, key_id.clone(), bucket_key))?,
    };
    Ok(S3Options {
        endpoint: value(s3.endpoint.as_ref()),
        region: value(s3.region.as_ref()),
        path_style: value(s3.path_style.as_ref()),
        profile: value(s3.profile.as_ref()),
        encryption,
        storage_class: value(s3.storage_class.as_ref()),
        checksum: told(s3.checksum.as_ref(), |v| v.parse())?,
        request_payer: value(s3.request_payer.as_ref()).unwrap_or_default(),
    })
}

/// How Azure Blob Storage is reached.
pub(crate) fn azure_options(azure: &Azure) -> AzureOptions {
    AzureOptions {
        account: value(azure.account.as_ref()),
        endpoint: value(azure.endpoint.as_ref()),
        storage_class: value(azure.storage_class.as_ref()),
    }
}

/// How Google Cloud Storage is reached.
pub(crate) fn gcs_options(gcs: &Gcs) -> GcsOptions {
    GcsOptions { endpoint: value(gcs.endpoint.as_ref()), storage_class: value(gcs.storage_class.as_ref()) }
}

fn value<T: Clone>(setting: Option<&Setting<T>>) -> Option<T> {
    setting.map(|setting| setting.value.clone())
}

/// Reads a setting's text; an error says where it came from.
fn told<T>(setting: Option<&Setting<String>>, read: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
    let read = |setting: &Setting<String>| {
        read(&setting.value).map_err(|e| {
            let error = Error::config(format!("{}: {e}", setting.origin));
            match e.hint() {
                Some(hint) => error.with_hint(hint.to_owned()),
                None => error,
            }
        })
    };
    setting.map(read).transpose()
}
