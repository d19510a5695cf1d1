//! How stores are reached, and how HTTP is spoken to all of them.

use std::path::PathBuf;

use backup_core::Result;

use super::{Layers, Names, Origin, S3, Setting, Table, path, text};
use crate::args::{Globals, HttpFlags};

/// How each kind of store is reached.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    pub(crate) s3: S3,
    pub(crate) azure: Azure,
    pub(crate) gcs: Gcs,
}

/// How Azure Blob Storage is reached.
#[derive(Debug, Clone)]
pub(crate) struct Azure {
    pub(crate) account: Option<Setting<String>>,
    pub(crate) endpoint: Option<Setting<String>>,
    pub(crate) storage_class: Option<Setting<String>>,
}

/// How Google Cloud Storage is reached.
#[derive(Debug, Clone)]
pub(crate) struct Gcs {
    pub(crate) endpoint: Option<Setting<String>>,
    pub(crate) storage_class: Option<Setting<String>>,
}

/// How HTTP is spoken to stores and key services.
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) ssl_min_protocol_version: Option<Setting<String>>,
    pub(crate) ca_file: Option<Setting<PathBuf>>,
    pub(crate) proxy: Option<Setting<String>>,
}

impl Stores {
    /// For the repository of `table`.
    pub(super) fn merge(layers: &Layers<'_>, flags: &Globals, table: Table<'_>) -> Result<Self> {
        Ok(Self {
            s3: S3::merge(layers, &flags.s3, table)?,
            azure: Azure::merge(layers, flags, table)?,
            gcs: Gcs::merge(layers, flags, table)?,
        })
    }
}

impl Azure {
    fn merge(layers: &Layers<'_>, flags: &Globals, table: Table<'_>) -> Result<Self> {
        // It says all at once: who the account is and where, too.
        let is_told = layers.environment.text("AZURE_STORAGE_CONNECTION_STRING")?.is_some();
        let env = |names: &'static [&'static str]| if is_told { &[][..] } else { names };
        Ok(Self {
            account: layers.pick_of(
                table,
                &Names { flag: "--azure-account", env: env(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]) },
                flags.azure.azure_account.clone(),
                text,
                |t| t.azure.account.as_ref(),
            )?,
            endpoint: layers.pick_of(
                table,
                &Names { flag: "--azure-endpoint", env: env(&["AZURE_STORAGE_ENDPOINT"]) },
                flags.azure.azure_endpoint.clone(),
                text,
                |t| t.azure.endpoint.as_ref(),
            )?,
            storage_class: layers.plain_of(table, "--storage-class", flags.s3.storage_class.clone(), |t| {
                t.azure.storage_class.as_ref()
            })?,
        })
    }
}

impl Gcs {
    fn merge(layers: &Layers<'_>, flags: &Globals, table: Table<'_>) -> Result<Self> {
        Ok(Self {
            endpoint: layers
                .plain_of(table, "--gcs-endpoint", flags.gcs.gcs_endpoint.clone(), |t| t.gcs.endpoint.as_ref())?,
            storage_class: layers
                .plain_of(table, "--storage-class", flags.s3.storage_class.clone(), |t| t.gcs.storage_class.as_ref())?,
        })
    }
}

impl Http {
    pub(super) fn merge(layers: &Layers<'_>, flags: &HttpFlags) -> Result<Self> {
        let mut ca_file =
            layers.pick(&Names { flag: "--ca-file", env: &["BACKUP_CA_FILE"] }, flags.ca_file.clone(), path, |f| {
                f.values.http.ca_file.as_ref()
            })?;
        if let (Some(Setting { value, origin: Origin::File { .. } }), Some(file)) = (&mut ca_file, layers.file) {
            *value = file.resolve(value);
        }
        Ok(Self {
            ssl_min_protocol_version: layers.pick(
                &Names { flag: "--ssl-min-protocol-version", env: &["BACKUP_SSL_MIN_PROTOCOL_VERSION"] },
                flags.ssl_min_protocol_version.clone(),
                text,
                |f| f.values.http.ssl_min_protocol_version.as_ref(),
            )?,
            ca_file,
            proxy: layers.plain("--proxy", flags.proxy.clone(), |f| f.values.http.proxy.as_ref())?,
        })
    }
}
