//! `running.json`: a run that has not ended says that it is alive, and what it will need.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::retention::wal::RunningNeeds;
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
