//! Flags of stores other than S3, and of what all of them have in common.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// Where the containers of Azure Blob Storage are.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct AzureFlags {
    /// Storage account of az:// [env: AZURE_STORAGE_ACCOUNT]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) azure_account: Option<String>,

    /// Address of the blob service [env: AZURE_STORAGE_ENDPOINT] [default: that of the account]
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub(crate) azure_endpoint: Option<String>,
}

/// Where the buckets of Google Cloud Storage are.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GcsFlags {
    /// Address of Google Cloud Storage [default: https://storage.googleapis.com]
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub(crate) gcs_endpoint: Option<String>,
}

/// How HTTP is spoken to stores and key services.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct HttpFlags {
    /// Least version of TLS for stores and key services, TLSv1.2 or TLSv1.3 [env: BACKUP_SSL_MIN_PROTOCOL_VERSION] [default: TLSv1.3]
    #[arg(long, global = true, value_name = "VERSION", hide_short_help = true)]
    pub(crate) ssl_min_protocol_version: Option<String>,

    /// File of certificates (PEM) to trust beside the system's, of stores and key services [env: BACKUP_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) ca_file: Option<PathBuf>,

    /// Proxy to stores and key services, http://host:port [default: those of HTTPS_PROXY and HTTP_PROXY]
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub(crate) proxy: Option<String>,
}
