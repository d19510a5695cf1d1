//! What `list`, `show` and `restore` say about a backup.

use backup_core::encrypt::signature::Signer;
use backup_core::format::{ClusterEntry, Condition, Kind, Manifest, RecipientName, StreamEntry};
use backup_core::repository::pins::Pin;
use serde::Serialize;
use serde_json::Value;

use super::pin::PinDocument;

/// A backup in JSON. Times are RFC 3339 in UTC, sizes are in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct BackupDocument {
    id: String,
    target: String,
    kind: Kind,
    condition: Condition,
    warnings: u64,
    started: String,
    finished: String,
    bytes: u64,
    stored_bytes: u64,
    data_key: String,
    recipients: Vec<RecipientName>,
    signer: Option<Signer>,
    /// Only of a base backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterEntry>,
    requires: Vec<String>,
    pins: Vec<PinDocument>,
    streams: Vec<StreamDocument>,
    program_version: String,
}

#[derive(Debug, Serialize)]
struct StreamDocument {
    name: String,
    bytes: u64,
    stored_bytes: u64,
    volumes: usize,
}

impl BackupDocument {
    pub(crate) fn new(manifest: &Manifest, signer: Option<Signer>) -> Self {
        let stream = |s: &StreamEntry| StreamDocument {
            name: s.name.clone(),
            bytes: s.bytes,
            stored_bytes: stored_bytes(s),
            volumes: s.volumes.len(),
        };
        Self {
            id: manifest.id.clone(),
            target: manifest.target.clone(),
            kind: manifest.kind.clone(),
            condition: manifest.condition,
            warnings: manifest.warnings,
            started: time(manifest.started),
            finished: time(manifest.finished),
            bytes: data_bytes(manifest),
            stored_bytes: manifest.stored_bytes(),
            data_key: manifest.data_key.clone(),
            recipients: manifest.recipients.clone(),
            signer,
            cluster: manifest.cluster.clone(),
            requires: manifest.requires.clone(),
            pins: Vec::new(),
            streams: manifest.streams.iter().map(stream).collect(),
            program_version: manifest.version.clone(),
        }
    }
}

impl BackupDocument {
    /// With its pins, as they are at `now`.
    pub(crate) fn with_pins(self, pins: &[Pin], now: jiff::Timestamp) -> Self {
        Self { pins: pins.iter().map(|pin| PinDocument::new(pin, now)).collect(), ..self }
    }
}

/// Streams that describe a backup's data and are not its data.
const DESCRIPTIONS: [&str; 3] = ["details", "files", "backup_manifest"];

/// The streams that a restore is about.
pub(crate) fn data_streams(manifest: &Manifest) -> impl Iterator<Item = &StreamEntry> {
    manifest.streams.iter().filter(|stream| !DESCRIPTIONS.contains(&stream.name.as_str()))
}

/// Plaintext in bytes, without what describes it. Nobody may have proved the manifest: its sums must not overflow.
pub(crate) fn data_bytes(manifest: &Manifest) -> u64 {
    data_streams(manifest).map(|stream| stream.bytes).fold(0, u64::saturating_add)
}

/// All volumes of a stream, in bytes.
pub(crate) fn stored_bytes(stream: &StreamEntry) -> u64 {
    stream.volumes.iter().map(|volume| volume.bytes).fold(0, u64::saturating_add)
}

/// `2026-11-22T02:00:00Z`.
pub(crate) fn time(timestamp: jiff::Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The word for a field of the manifest, as in JSON: `pg_dump`, `good`.
pub(crate) fn word(field: &impl Serialize) -> String {
    match serde_json::to_value(field) {
        Ok(Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
