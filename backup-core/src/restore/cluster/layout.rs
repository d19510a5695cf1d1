//! Which streams a base backup consists of, and which root each belongs below. No I/O.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result, Stage};
use crate::format::{ClusterEntry, Kind, Manifest};

/// The stream with PostgreSQL's own manifest.
pub(super) const BACKUP_MANIFEST: &str = "backup_manifest";
const BASE: &str = "base";
const TABLESPACE: &str = "tablespace-";
const PG_WAL: &str = "pg_wal";

/// Where the files of a stream belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Root {
    /// The data directory.
    Data,
    /// A tablespace, by its OID.
    Tablespace(u32),
    /// The directory `pg_wal`.
    Wal,
}

/// A tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) stream: String,
    pub(super) root: Root,
    pub(super) bytes: u64,
}

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Tablespace {
    #[serde(deserialize_with = "oid")]
    pub(super) oid: u32,
    /// Where it was; relative to the data directory if it is in it (`allow_in_place_tablespaces`).
    pub(super) location: PathBuf,
}

/// How a stream is compressed beneath our own compression: as the server sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ServerCompression {
    #[default]
    None,
    Gzip,
    Lz4,
    Zstd,
}

/// What a base backup consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) cluster: ClusterEntry,
    /// The largest first: it takes longest.
    pub(super) parts: Vec<Part>,
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) compression: ServerCompression,
}

/// What is needed of the backup's details.
#[derive(Debug, Deserialize)]
struct Details {
    source: SourceDetails,
}

#[derive(Debug, Deserialize)]
struct SourceDetails {
    #[serde(default)]
    tablespaces: Vec<Tablespace>,
    #[serde(default, deserialize_with = "or_default")]
    compression: ServerCompression,
}

impl Layout {
    /// From a manifest and the backup's details, both authentic.
    pub(super) fn of(manifest: &Manifest, details: &serde_json::Value) -> Result<Self> {
        if manifest.kind != Kind::BaseBackup {
            return Err(Error::config(format!("backup {} is no base backup", manifest.id)));
        }
        let incomplete =
            |what: &str| Error::integrity(format!("base backup {} {what}", manifest.id)).at(Stage::Catalog);
        let cluster = manifest.cluster.clone().ok_or_else(|| incomplete("does not say of which cluster it is"))?;
        let Details { source } = Details::deserialize(details)
            .map_err(|e| incomplete("has details that cannot be understood").with_source(e))?;
        for tablespace in &source.tablespaces {
            tablespace.check()?;
        }
        let mut parts: Vec<Part> = manifest
            .streams
            .iter()
            .filter_map(|s| root_of(&s.name).map(|root| Part { stream: s.name.clone(), root, bytes: s.bytes }))
            .collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));

        let told: BTreeSet<Root> = source.tablespaces.iter().map(|t| Root::Tablespace(t.oid)).collect();
        let found: BTreeSet<Root> = parts.iter().map(|part| part.root).collect();
        let wanted: BTreeSet<Root> = told.iter().copied().chain([Root::Data]).collect();
        if found.iter().filter(|root| **root != Root::Wal).ne(wanted.iter()) || told.len() != source.tablespaces.len() {
            return Err(incomplete("does not have one stream for each of its tablespaces"));
        }
        if manifest.stream(BACKUP_MANIFEST).is_none() {
            return Err(incomplete("has no manifest of PostgreSQL's"));
        }
        if cluster.wal_included && !found.contains(&Root::Wal) {
            return Err(incomplete("does not have the log that it should"));
        }
        Ok(Self { cluster, parts, tablespaces: source.tablespaces, compression: source.compression })
    }
}

/// Bytes of all tar streams.
pub(super) fn bytes_of(manifest: &Manifest) -> u64 {
    let tars = manifest.streams.iter().filter(|stream| root_of(&stream.name).is_some());
    tars.map(|stream| stream.bytes).fold(0, u64::saturating_add)
}

impl Tablespace {
    /// Whether it lies in the data directory, and not behind a link there.
    pub(super) fn is_in_place(&self) -> bool {
        self.location == Path::new("pg_tblspc").join(self.oid.to_string())
    }

    fn check(&self) -> Result<()> {
        let plain = self.location.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if self.is_in_place() || self.location.is_absolute() && plain && self.location.components().count() > 1 {
            return Ok(());
        }
        let message = format!("tablespace {} cannot be at {}", self.oid, self.location.display());
        Err(Error::integrity(message).at(Stage::Catalog))
    }
}

/// The root of a stream; `None` for what is no tar. A root may come in several streams: `base`, `base-01`, ….
pub(super) fn root_of(stream: &str) -> Option<Root> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if stream == BASE || stream.strip_prefix("base-").is_some_and(is_number) {
        return Some(Root::Data);
    }
    if stream == PG_WAL {
        return Some(Root::Wal);
    }
    let rest = stream.strip_prefix(TABLESPACE)?;
    let (oid, number) = rest.split_once('-').map_or((rest, None), |(oid, number)| (oid, Some(number)));
    if number.is_some_and(|number| !is_number(number)) || !is_number(oid) || oid.starts_with('0') {
        return None;
    }
    oid.parse().ok().map(Root::Tablespace)
}

/// A number, in JSON as such or as a text.
fn oid<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(oid) => Ok(oid),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ServerCompression, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_their_roots() {
        for (name, root) in [
            ("base", Some(Root::Data)),
            ("base-01", Some(Root::Data)),
            ("tablespace-16385", Some(Root::Tablespace(16385))),
            ("tablespace-16385-02", Some(Root::Tablespace(16385))),
            ("pg_wal", Some(Root::Wal)),
            ("backup_manifest", None),
            ("files", None),
            ("base-x", None),
            ("tablespace-", None),
            ("tablespace-0", None),
            ("tablespace-1-", None),
            ("tablespace-99999999999", None),
        ] {
            assert_eq!(root_of(name), root, "{name}");
        }
    }

    #[test]
    fn tablespaces_are_where_postgresql_would_put_them() {
        let at = |location: &str| Tablespace { oid: 16385, location: location.into() }.check();
        at("/srv/ts").unwrap();
        at("pg_tblspc/16385").unwrap();
        for location in ["", "/", "srv", "../ts", "/srv/../etc", "pg_tblspc/1"] {
            at(location).unwrap_err();
        }
    }
}
