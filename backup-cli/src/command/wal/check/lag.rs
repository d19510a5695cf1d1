//! How far the archive is behind the server, and whether the server's archiver works.

use std::time::Duration;

use backup_core::Result;
use backup_core::jiff::Timestamp;
use backup_core::repository::layout::TargetName;
use backup_core::wal_archive::{Inventory, ServerWal};
use serde::Serialize;

use crate::App;
use crate::command::describe::time;
use crate::command::wal::connect_options;
use crate::output::bytes;

/// What a server says, compared with what is archived of its timeline.
pub(super) struct Lag {
    pub(super) server: ServerWal,
    /// How much is missing; `None` when nothing of the server's timeline is archived.
    bytes: Option<u64>,
    /// For how long nothing came of what is missing.
    since: Option<Duration>,
}

#[derive(Debug, Serialize)]
pub(super) struct ServerDocument {
    system_identifier: String,
    timeline: u32,
    lsn: String,
    in_recovery: bool,
    archive_mode: String,
    archived_count: u64,
    last_archived_file: Option<String>,
    last_archived: Option<Timestamp>,
    failed_count: u64,
    last_failed_file: Option<String>,
    last_failed: Option<Timestamp>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<u64>,
}

impl Lag {
    pub(super) async fn of_server(
        app: &App,
        conninfo: &str,
        target: &TargetName,
        inventory: &Inventory,
    ) -> Result<Self> {
        let conninfo = Some(conninfo).filter(|text| !text.is_empty());
        let server = ServerWal::read(&connect_options(app, conninfo, target)?).await?;
        let cluster = inventory.clusters.iter().find(|c| c.system_identifier == server.system_identifier);
        let timeline = cluster.and_then(|c| c.timelines.iter().find(|t| t.timeline == server.timeline));
        let end = timeline.and_then(|timeline| timeline.end(server.segment_size));
        let bytes = end.map(|end| server.lsn.0.saturating_sub(end.0));
        let since = timeline.and_then(|timeline| timeline.written).filter(|_| bytes != Some(0));
        let since = since.map(|written| server.now.duration_since(written).try_into().unwrap_or(Duration::ZERO));
        Ok(Self { server, bytes, since })
    }

    pub(super) fn problems(&self, lag_max: Duration) -> Vec<String> {
        let server = &self.server;
        let mut problems = Vec::new();
        let Some(behind) = self.bytes else {
            let (timeline, cluster) = (server.timeline, server.system_identifier);
            return vec![format!("nothing of timeline {timeline} of the server, of cluster {cluster}, is archived")];
        };
        // A segment that is not full is none of the archiver's business.
        let late = self.since.filter(|since| *since > lag_max && behind > server.segment_size.bytes());
        if let Some(since) = late {
            problems.push(format!("the archive is {} behind the server, for {} s", bytes(behind), since.as_secs()));
        }
        // One failure passes; who may see what waits is told by its age whether this one did.
        let waits = server.ready.as_ref().is_none_or(|ready| ready.oldest.is_some_and(|(_, age)| age > lag_max));
        if server.is_failing() && waits {
            let file = server.failed.file.as_deref().unwrap_or("a file");
            let at = server.failed.time.map(time).unwrap_or_default();
            problems.push(format!(
                "the server fails to archive {file}: {} failures, the last at {at}; its log says why",
                server.failed.count
            ));
        }
        problems
    }

    pub(super) fn note(&self) -> String {
        let server = &self.server;
        let position = format!("the server is at {} of timeline {}", server.lsn, server.timeline);
        match (self.bytes, self.since) {
            (None, _) => position,
            (Some(0), _) => format!("{position}, and the archive reaches as far"),
            (Some(behind), Some(since)) => {
                format!(
                    "{position}, {} ahead of the archive, to which something came {} s ago",
                    bytes(behind),
                    since.as_secs()
                )
            }
            (Some(behind), None) => format!("{position}, {} ahead of the archive", bytes(behind)),
        }
    }

    pub(super) fn document(&self) -> ServerDocument {
        let ServerWal { archived, failed, .. } = &self.server;
        ServerDocument {
            system_identifier: self.server.system_identifier.to_string(),
            timeline: self.server.timeline.get(),
            lsn: self.server.lsn.to_string(),
            in_recovery: self.server.in_recovery,
            archive_mode: self.server.archive_mode.clone(),
            archived_count: archived.count,
            last_archived_file: archived.file.clone(),
            last_archived: archived.time,
            failed_count: failed.count,
            last_failed_file: failed.file.clone(),
            last_failed: failed.time,
            lag_bytes: self.bytes,
            lag_seconds: self.bytes.map(|_| self.since.unwrap_or_default().as_secs()),
        }
    }
}
