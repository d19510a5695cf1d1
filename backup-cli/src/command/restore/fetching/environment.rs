//! What a restored server would need of the environment of this program: what can be said by a flag, and what only by the same variable.

use std::path::PathBuf;

use crate::config::{Config, Environment, RepositorySetting, StoreKind};

use super::{asks_kms, has_identity, speaks_http};

/// Whose credentials those for S3 and KMS are.
const OF_AWS: [&str; 12] = [
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_SKIP_SIGNATURE",
];

/// Where profiles are.
const OF_PROFILES: [&str; 2] = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];

const OF_KMS: [&str; 4] =
    ["AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"];

const OF_AZURE: [&str; 17] = [
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_USE_AZURE_CLI",
    "AZURE_OBJECT_ID",
    "AZURE_MSI_RESOURCE_ID",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
];

const OF_GCS: [&str; 6] = [
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BASE_URL",
];

const OF_TLS: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

const OF_TOKENS: [&str; 2] = ["BACKUP_PKCS11_MODULE", "PKCS11_MODULE_PATH"];

/// As HTTP looks them up: the first name of each that is set.
const HTTPS_PROXY: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const HTTP_PROXY: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const ALL_PROXY: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

const AWS_CA_BUNDLE: &str = "AWS_CA_BUNDLE";

/// The variables that are set, are needed and are said by no flag.
pub(super) fn needed(config: &Config, environment: &Environment) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    let uses = |kind| uses(config, kind);
    // What a table names by 'profile' has all of that from there.
    let of_s3 = |repository: &&RepositorySetting| repository.kind() == StoreKind::S3;
    let by_environment =
        config.repositories.all.iter().filter(of_s3).any(|repository| repository.stores.s3.profile.is_none());
    if by_environment || asks_kms(config) {
        names.extend(OF_AWS);
    }
    if uses(StoreKind::S3) || asks_kms(config) {
        names.extend(OF_PROFILES);
    }
    if asks_kms(config) {
        names.extend(OF_KMS);
    }
    if uses(StoreKind::Azure) {
        names.extend(OF_AZURE);
    }
    if uses(StoreKind::Gcs) {
        names.extend(OF_GCS);
    }
    if has_identity(config, "pkcs11:") {
        names.extend(OF_TOKENS);
    }
    if speaks_http(config) {
        names.extend(OF_TLS);
        if is_ca_bundle_used(config) && !is_ca_bundle_told(config, environment) {
            names.push(AWS_CA_BUNDLE);
        }
        names.extend(of_proxies(config, environment));
    }
    names.retain(|name| environment.has(name));
    names
}

/// The file of `AWS_CA_BUNDLE` where `--ca-file` says the same.
pub(super) fn ca_file(config: &Config, environment: &Environment) -> Option<PathBuf> {
    let is_free = config.http.ca_file.is_none() && is_ca_bundle_used(config);
    // Who serves Azure or Google is not vouched for by it.
    let is_alone = !uses(config, StoreKind::Azure) && !uses(config, StoreKind::Gcs);
    if is_free && is_alone { value(environment, &[AWS_CA_BUNDLE]).map(PathBuf::from) } else { None }
}

/// The proxy that the environment names, where `--proxy` says the same: it is for all stores, has no exceptions and no password.
pub(super) fn proxy(config: &Config, environment: &Environment) -> Option<String> {
    if config.http.proxy.is_some() || value(environment, &NO_PROXY).is_some() {
        return None;
    }
    let (secure, plain) = proxies(environment);
    if speaks_without_tls(config) && plain != secure {
        return None;
    }
    let proxy = secure.filter(|proxy| !proxy.contains('@'))?;
    match proxy.split_once("://") {
        Some(("http" | "https", _)) => Some(proxy),
        Some(_) => None,
        None => Some(format!("http://{proxy}")),
    }
}

fn of_proxies(config: &Config, environment: &Environment) -> Vec<&'static str> {
    if config.http.proxy.is_some() {
        return NO_PROXY.to_vec();
    }
    let (secure, plain) = proxies(environment);
    let is_none = secure.is_none() && (plain.is_none() || !speaks_without_tls(config));
    if is_none || proxy(config, environment).is_some() {
        return Vec::new();
    }
    [HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY].concat()
}

/// For what is spoken to with TLS, and for what is without.
fn proxies(environment: &Environment) -> (Option<String>, Option<String>) {
    let of = |names| value(environment, names).or_else(|| value(environment, &ALL_PROXY));
    (of(&HTTPS_PROXY), of(&HTTP_PROXY))
}

fn speaks_without_tls(config: &Config) -> bool {
    config.repositories.all.iter().any(|repository| {
        let stores = &repository.stores;
        let endpoint = match repository.kind() {
            StoreKind::S3 => stores.s3.endpoint.as_ref(),
            StoreKind::Azure => stores.azure.endpoint.as_ref(),
            StoreKind::Gcs => stores.gcs.endpoint.as_ref(),
            StoreKind::Directory => None,
        };
        endpoint.is_some_and(|endpoint| endpoint.value.starts_with("http://"))
    })
}

fn is_ca_bundle_used(config: &Config) -> bool {
    uses(config, StoreKind::S3) || asks_kms(config)
}

fn is_ca_bundle_told(config: &Config, environment: &Environment) -> bool {
    let bundle = value(environment, &[AWS_CA_BUNDLE]).map(PathBuf::from);
    let same = config.http.ca_file.as_ref().is_some_and(|file| Some(&file.value) == bundle.as_ref());
    same || ca_file(config, environment).is_some()
}

fn uses(config: &Config, kind: StoreKind) -> bool {
    config.repositories.all.iter().any(|repository| repository.kind() == kind)
}

fn value(environment: &Environment, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| environment.text(name).ok().flatten())
}
