//! Azure Blob Storage.
//!
//! What is particular about it: the parts of a multipart upload are blocks of the blob to be, so there is nothing to abort, and blocks of which no
//! blob was made are removed by the service within a week; listings do not show them. Ranges are asked for by their two ends, since it knows no others.

use std::fs::File;

use object_store::azure::{AzureConfigKey as Key, MicrosoftAzure, MicrosoftAzureBuilder};

use super::endpoint::{Endpoint, parse_endpoint};
use super::environment::Environment;
use super::storage_error;
use crate::error::{Error, Result};
use crate::http::{self, Connector, HttpOptions};

/// How to reach Azure Blob Storage, beside its URL. Credentials are not here: they come the way Azure's own tools find them, the first of
/// `AZURE_STORAGE_CONNECTION_STRING`, an account key (`AZURE_STORAGE_KEY`), workload identity (`AZURE_FEDERATED_TOKEN_FILE` with `AZURE_CLIENT_ID`
/// and `AZURE_TENANT_ID`), a service principal (`AZURE_CLIENT_SECRET` with the same), a shared access signature (`AZURE_STORAGE_SAS_TOKEN`), the
/// command `az` (only with `AZURE_USE_AZURE_CLI=true`), the machine's managed identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AzureOptions {
    /// The storage account; otherwise `AZURE_STORAGE_ACCOUNT`, or that of `AZURE_STORAGE_CONNECTION_STRING`.
    pub account: Option<String>,
    /// `https://host[:port][/path]` of the blob service; an `http://` endpoint is taken as it is. Otherwise `AZURE_STORAGE_ENDPOINT`, that of
    /// `AZURE_STORAGE_CONNECTION_STRING`, or `https://ACCOUNT.blob.core.windows.net`.
    pub endpoint: Option<String>,
    /// The tier in which volumes of backups are kept: `Hot`, `Cool` or `Cold`. Otherwise as the account is set.
    pub storage_class: Option<String>,
}

const AZURE: Endpoint = Endpoint {
    of: "Azure Blob",
    example: "https://account.blob.core.windows.net",
    credentials: "AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN",
};

/// Variables that are taken as they are. Several names for one thing: those of Azure's tools, and those of programs that use this library.
const VARIABLES: [(&str, Key); 18] = [
    ("AZURE_STORAGE_ACCOUNT_NAME", Key::AccountName),
    ("AZURE_STORAGE_ACCOUNT", Key::AccountName),
    ("AZURE_STORAGE_ACCESS_KEY", Key::AccessKey),
    ("AZURE_STORAGE_ACCOUNT_KEY", Key::AccessKey),
    ("AZURE_STORAGE_KEY", Key::AccessKey),
    ("AZURE_STORAGE_SAS_KEY", Key::SasKey),
    ("AZURE_STORAGE_SAS_TOKEN", Key::SasKey),
    ("AZURE_STORAGE_TOKEN", Key::Token),
    ("AZURE_CLIENT_ID", Key::ClientId),
    ("AZURE_CLIENT_SECRET", Key::ClientSecret),
    ("AZURE_TENANT_ID", Key::AuthorityId),
    ("AZURE_AUTHORITY_HOST", Key::AuthorityHost),
    ("AZURE_FEDERATED_TOKEN_FILE", Key::FederatedTokenFile),
    ("AZURE_USE_AZURE_CLI", Key::UseAzureCli),
    ("IDENTITY_ENDPOINT", Key::MsiEndpoint),
    ("AZURE_OBJECT_ID", Key::ObjectId),
    ("AZURE_MSI_RESOURCE_ID", Key::MsiResourceId),
    ("AZURE_STORAGE_ENDPOINT", Key::Endpoint),
];

/// A client for `container`. No request is made.
pub(super) fn connect(
    container: &str,
    options: &AzureOptions,
    http: &HttpOptions,
    environment: &Environment,
) -> Result<MicrosoftAzure> {
    let builder = builder(container, options, environment)?.with_http_connector(Connector::new(http, None)?);
    builder.build().map_err(|e| storage_error(e, format!("cannot set up az://{container}")))
}

fn builder(container: &str, options: &AzureOptions, environment: &Environment) -> Result<MicrosoftAzureBuilder> {
    let mut builder = MicrosoftAzureBuilder::new().with_container_name(container).with_retry(http::retry());
    if let Some(text) = environment.get("AZURE_STORAGE_CONNECTION_STRING") {
        // It says all at once, so what others say is not mixed with it.
        builder = ConnectionString::parse(text)?.apply(builder);
    } else {
        for (name, key) in VARIABLES {
            if let Some(value) = environment.get(name) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(account) = &options.account {
        builder = builder.with_account(account);
    }
    let Some(account) = builder.get_config_value(&Key::AccountName) else {
        return Err(Error::config("no storage account is given for az://").with_hint(
            "name one by AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_CONNECTION_STRING, or 'account' in [repository.azure]",
        ));
    };
    if !(3..=24).contains(&account.len()) || !account.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        // Not repeated: it may be a key that was pasted into the wrong variable.
        return Err(Error::config("that cannot name a storage account of Azure")
            .with_hint("it has 3 to 24 lower-case letters and digits"));
    }
    let endpoint = options.endpoint.clone().or_else(|| builder.get_config_value(&Key::Endpoint));
    let mut secure = true;
    if let Some(text) = endpoint {
        let url = parse_endpoint(&text, &AZURE)?;
        secure = url.scheme() == "https";
        builder = builder.with_endpoint(url.as_str().trim_end_matches('/').to_owned());
    }
    if let Some(file) = builder.get_config_value(&Key::FederatedTokenFile) {
        // Later it would look like a failure of the store.
        File::open(&file).map_err(|e| {
            Error::config(format!("cannot read the token file {file}"))
                .with_source(e)
                .with_hint("AZURE_FEDERATED_TOKEN_FILE names it")
        })?;
    }
    Ok(builder.with_client_options(http::client_options(!secure)))
}

/// `AZURE_STORAGE_CONNECTION_STRING`, as the portal shows it: `AccountName=…;AccountKey=…;EndpointSuffix=…`, or with `BlobEndpoint` and
/// `SharedAccessSignature`. <https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string>
#[derive(Default)]
struct ConnectionString {
    account: Option<String>,
    key: Option<String>,
    signature: Option<String>,
    endpoint: Option<String>,
}

impl ConnectionString {
    fn parse(text: &str) -> Result<Self> {
        let refused = |why: &str| Error::config(format!("AZURE_STORAGE_CONNECTION_STRING {why}"));
        let mut out = Self::default();
        let (mut scheme, mut suffix) = ("https".to_owned(), "core.windows.net".to_owned());
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else { return Err(refused("has a part without '='")) };
            let value = value.to_owned();
            match name.to_ascii_lowercase().as_str() {
                "accountname" => out.account = Some(value),
                "accountkey" => out.key = Some(value),
                "sharedaccesssignature" => out.signature = Some(value),
                "blobendpoint" => out.endpoint = Some(value),
                "defaultendpointsprotocol" => scheme = value,
                "endpointsuffix" => suffix = value,
                "usedevelopmentstorage" => {
                    return Err(refused("asks for the emulator")
                        .with_hint("name its account, key and endpoint, as Azurite prints them"));
                }
                // Of other services: queues, tables, files.
                _ => {}
            }
        }
        if let (None, Some(account)) = (&out.endpoint, &out.account) {
            out.endpoint = Some(format!("{scheme}://{account}.blob.{suffix}"));
        }
        if let (None, Some(endpoint)) = (&out.account, &out.endpoint) {
            // With a signature the account stands in the endpoint alone.
            let host = endpoint.split("://").nth(1).unwrap_or_default();
            out.account = host.split('.').next().map(str::to_owned);
        }
        if out.endpoint.is_none() { Err(refused("names no account")) } else { Ok(out) }
    }

    fn apply(self, builder: MicrosoftAzureBuilder) -> MicrosoftAzureBuilder {
        let values = [
            (Key::AccountName, self.account),
            (Key::AccessKey, self.key),
            (Key::SasKey, self.signature),
            (Key::Endpoint, self.endpoint),
        ];
        values
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .fold(builder, |builder, (key, value)| builder.with_config(key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn with(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn seen(options: &AzureOptions, variables: &[(&str, &str)]) -> Result<[Option<String>; 4]> {
        let builder = builder("container", options, &with(variables))?;
        Ok([Key::AccountName, Key::AccessKey, Key::SasKey, Key::Endpoint].map(|key| builder.get_config_value(&key)))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_connection_string_says_it_all() {
        let options = AzureOptions::default();
        let portal = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=aGk=;EndpointSuffix=core.windows.net";
        let built = seen(&options, &[("AZURE_STORAGE_CONNECTION_STRING", portal), ("AZURE_STORAGE_ACCOUNT", "other")]);
        assert_eq!(built.unwrap(), [some("mine"), some("aGk="), None, some("https://mine.blob.core.windows.net")]);

        let signed = "BlobEndpoint=https://mine.blob.core.windows.net/;SharedAccessSignature=sv=2024&sig=x%3D";
        let built = seen(&options, &[("AZURE_STORAGE_CONNECTION_STRING", signed)]).unwrap();
        assert_eq!(built, [some("mine"), None, some("sv=2024&sig=x%3D"), some("https://mine.blob.core.windows.net")]);

        for wrong in ["hush", "AccountKey=hush", "UseDevelopmentStorage=true"] {
            let error = seen(&options, &[("AZURE_STORAGE_CONNECTION_STRING", wrong)]).unwrap_err();
            assert!(error.kind() == ErrorKind::Config && !format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn options_win_over_the_environment_and_an_account_is_needed() {
        let options = AzureOptions {
            account: some("mine"),
            endpoint: some("http://127.0.0.1:10000/mine/"),
            ..Default::default()
        };
        let environment = [("AZURE_STORAGE_ACCOUNT", "other"), ("AZURE_STORAGE_KEY", "aGk=")];
        assert_eq!(
            seen(&options, &environment).unwrap(),
            [some("mine"), some("aGk="), None, some("http://127.0.0.1:10000/mine")]
        );
        let allowed = |options| {
            let builder = builder("container", options, &with(&environment)).unwrap();
            builder.get_config_value(&Key::Client(object_store::ClientConfigKey::AllowHttp)).unwrap()
        };
        assert_eq!((allowed(&options).as_str(), allowed(&AzureOptions::default()).as_str()), ("true", "false"));

        let error = seen(&AzureOptions::default(), &[]).unwrap_err();
        assert!(error.hint().unwrap().contains("AZURE_STORAGE_ACCOUNT"), "{error:?}");
        let error = seen(&AzureOptions::default(), &[("AZURE_STORAGE_ACCOUNT", "hush+secret/==")]).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        let absent = [("AZURE_STORAGE_ACCOUNT", "mine"), ("AZURE_FEDERATED_TOKEN_FILE", "/no/such/token")];
        assert!(seen(&AzureOptions::default(), &absent).unwrap_err().to_string().contains("/no/such/token"));
    }
}
