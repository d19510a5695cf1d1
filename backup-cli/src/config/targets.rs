//! `[targets.NAME]` of the configuration file: what `backup run` backs up.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use backup_core::postgres::wire::ServerCompression;
use backup_core::repository::layout::TargetName;
use backup_core::{Error, Result};
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::file::ConfigFile;
use super::retention::RuleValues;
use crate::args::{CheckpointName, ChecksumName, MethodName, server_compression};
use crate::input::{ClusterInput, Input};

/// The table of one target: one of the first four says what it is, the rest is for `base_backup`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetValues {
    base_backup: Option<String>,
    pg_dump: Option<String>,
    directory: Option<PathBuf>,
    command: Option<Vec<String>>,
    method: Option<MethodName>,
    checkpoint: Option<CheckpointName>,
    max_rate: Option<ByteSize>,
    label: Option<String>,
    include_wal: Option<bool>,
    verify_checksums: Option<bool>,
    manifest_checksums: Option<ChecksumName>,
    #[serde(default, deserialize_with = "compression")]
    server_compression: Option<ServerCompression>,
    retention: Option<RuleValues>,
}

/// A configured target.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: TargetName,
    pub(crate) input: Input,
    /// Where it is configured.
    pub(crate) line: usize,
}

/// All targets of the file, by name.
pub(crate) fn targets(file: &ConfigFile) -> Result<Vec<Target>> {
    let all = file.values.targets.iter().map(|(name, values)| target(file, name, values));
    all.filter_map(Result::transpose).collect()
}

/// `None` when nothing of it is to be backed up here.
fn target(file: &ConfigFile, name: &str, values: &Spanned<TargetValues>) -> Result<Option<Target>> {
    let line = file.line_of(values);
    let wrong = |what: &str| Error::config(format!("{}:{line}: target '{name}' {what}", file.path.display()));
    let name: TargetName = name.parse().map_err(|e: Error| {
        let hint = e.hint().unwrap_or_default().to_owned();
        Error::config(format!("{}:{line}: {e}", file.path.display())).with_hint(hint)
    })?;
    let values = values.as_ref().clone();
    if values.is_retention_alone() {
        return Ok(None);
    }
    if values.base_backup.is_none() && values.says_how_to_copy_a_cluster() {
        return Err(wrong("says how to copy a cluster and not which").with_hint("add base_backup = \"CONNINFO\""));
    }
    let input =
        match (values.base_backup.clone(), values.pg_dump.clone(), values.directory.clone(), values.command.clone()) {
            (Some(conninfo), None, None, None) => Input::Cluster(values.cluster(conninfo)),
            (None, Some(conninfo), None, None) => Input::Dump(conninfo),
            (None, None, Some(path), None) => Input::Directory(file.resolve(&path)),
            (None, None, None, Some(words)) if words.is_empty() => return Err(wrong("has an empty command")),
            (None, None, None, Some(words)) => Input::Command(words.into_iter().map(OsString::from).collect()),
            (None, None, None, None) => {
                return Err(wrong("does not say what to back up").with_hint(ONE_OF));
            }
            _ => return Err(wrong("says more than one thing to back up").with_hint(ONE_OF)),
        };
    Ok(Some(Target { name, input, line }))
}

const ONE_OF: &str = "give one of base_backup, pg_dump, directory and command";

impl TargetValues {
    /// Rules of its own.
    pub(crate) fn retention(&self) -> Option<&RuleValues> {
        self.retention.as_ref()
    }

    /// Whether it only says how long to keep what something else backs up.
    fn is_retention_alone(&self) -> bool {
        let inputs =
            [self.base_backup.is_some(), self.pg_dump.is_some(), self.directory.is_some(), self.command.is_some()];
        self.retention.is_some() && !inputs.contains(&true) && !self.says_how_to_copy_a_cluster()
    }

    fn says_how_to_copy_a_cluster(&self) -> bool {
        self.method.is_some()
            || self.checkpoint.is_some()
            || self.max_rate.is_some()
            || self.label.is_some()
            || self.include_wal.is_some()
            || self.verify_checksums.is_some()
            || self.manifest_checksums.is_some()
            || self.server_compression.is_some()
    }

    fn cluster(self, conninfo: String) -> ClusterInput {
        ClusterInput {
            conninfo,
            method: self.method.unwrap_or_default(),
            checkpoint: self.checkpoint.unwrap_or_default(),
            max_rate: self.max_rate,
            label: self.label,
            include_wal: self.include_wal.unwrap_or(true),
            verify_checksums: self.verify_checksums.unwrap_or(true),
            manifest_checksums: self.manifest_checksums.unwrap_or_default(),
            server_compression: self.server_compression,
        }
    }
}

fn compression<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ServerCompression>, D::Error> {
    let text = String::deserialize(deserializer)?;
    server_compression(&text).map(Some).map_err(serde::de::Error::custom)
}

/// As the file has them.
pub(crate) type TargetTables = BTreeMap<String, Spanned<TargetValues>>;
