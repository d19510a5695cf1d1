//! `running.json`: a run that has not ended says that it is alive, and what it will need.

use jiff::Timestamp;
use object_store::PutPayload;
use serde::{Deserialize, Serialize};

use super::layout::BackupPath;
use super::retention::wal::RunningNeeds;
use crate::error::{Error, Result, Stage};
use crate::format::{FormatError, Kind, json};
use crate::postgres::wal::{Lsn, SystemIdentifier, Timeline};

/// The longest such object in bytes.
pub(super) const RUNNING_LEN_MAX: usize = 64 * 1024;

/// Tells others to keep their hands off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) format: u32,
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) started: Timestamp,
    pub(crate) heartbeat: Timestamp,
    pub(crate) version: String,
    /// What it backs up. Absent in what the first releases wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<Kind>,
    /// Of a base backup, as soon as the server has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<RunningCluster>,
}

/// From where on a base backup that is being made needs the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningCluster {
    pub(crate) system_identifier: SystemIdentifier,
    pub(crate) timeline: Timeline,
    pub(crate) start_lsn: Lsn,
}

impl Running {
    /// What a run says at `now` that writes a backup of `kind`.
    pub(crate) fn new(
        path: &BackupPath,
        started: Timestamp,
        now: Timestamp,
        kind: Option<Kind>,
        cluster: Option<RunningCluster>,
    ) -> Self {
        Self {
            format: 1,
            id: path.id.to_string(),
            target: path.target.to_string(),
            started,
            heartbeat: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kind,
            cluster,
        }
    }

    pub(crate) fn encode(&self) -> Result<PutPayload> {
        let json = serde_json::to_vec(self)
            .map_err(|e| Error::internal(Stage::Setup, "running.json cannot be written").with_source(e))?;
        Ok(json.into())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        json::parse("running.json", bytes)
    }

    /// What it may need of the log.
    pub(super) fn needs(&self) -> RunningNeeds {
        match (&self.kind, self.cluster) {
            (_, Some(RunningCluster { system_identifier: cluster, timeline, start_lsn: start })) => {
                RunningNeeds::From { cluster, timeline, start }
            }
            (Some(Kind::Stream | Kind::Command | Kind::PgDump | Kind::Directory), None) => RunningNeeds::Nothing,
            _ => RunningNeeds::Unknown,
        }
    }
}
