//! The beginning of a local copy: the server's word for it, and what there is to copy from then on.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use super::super::Facts;
use super::closing::Closing;
use super::damage::Pages;
use super::job::{Job, ManifestLines, cannot, no_copy};
use super::queue::Queue;
use super::rate::Rate;
use super::session::{Server, Session};
use super::tablespaces::{Tablespace, tablespaces, version_directory};
use super::tree::{Choice, Root};
use super::{blocking, not_this};
use crate::error::Result;
use crate::pipeline::Findings;
use crate::postgres::backup_manifest::ManifestWriter;
use crate::postgres::control::ControlFile;
use crate::postgres::wire::{BaseBackupOptions, WalPosition};
use crate::source::files_index::IndexWriter;
use crate::source::lines::LineWriter;

/// All that it takes to begin.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) facts: Arc<Facts>,
    pub(super) server: Server,
    pub(super) session: Session,
    pub(super) data: Arc<Root>,
    pub(super) request: BaseBackupOptions,
    pub(super) lanes: usize,
    pub(super) index: IndexWriter,
    pub(super) manifest: LineWriter,
    pub(super) started: oneshot::Sender<WalPosition>,
    pub(super) ended: watch::Sender<Option<WalPosition>>,
}

impl Ready {
    /// Begins the backup, which takes a checkpoint, and looks at what there is.
    pub(super) async fn start(mut self: Box<Self>) -> Result<(Arc<Job>, Box<Closing>)> {
        let start = self.session.start(&self.request.label, self.request.checkpoint).await?;
        self.facts.report_start(start);
        let (data, server, lanes) = (Arc::clone(&self.data), self.server.clone(), self.lanes);
        let (major, findings) = (self.session.major(), self.facts.findings.clone());
        let queue = blocking(move || survey(&data, &server, major, start, lanes, &findings)).await?;
        let tablespaces = queue.tablespaces();
        // Nobody listens when the log is not wanted, or its stream has failed and said so.
        let _ = self.started.send(start);
        let manifest = ManifestWriter::new(major, self.facts.system_identifier);
        let looks = self.server.has_checksums && self.request.verify_checksums;
        let page_bytes = usize::try_from(self.server.page_bytes).unwrap_or_default();
        let job = Job {
            start,
            index: self.index.into(),
            manifest: ManifestLines::new(manifest, self.manifest).into(),
            algorithm: self.request.manifest.unwrap_or_default().algorithm(),
            pages: looks.then(|| Arc::new(Pages::new(start.lsn, page_bytes))),
            segment_pages: self.server.segment_pages,
            rate: Rate::new(self.request.max_rate_kib),
            tracker: TaskTracker::new(),
            queue: Mutex::new(queue),
            facts: Arc::clone(&self.facts),
        };
        let wait_for_archive = !self.facts.wal_included;
        let Self { session, data, ended, .. } = *self;
        let closing = Closing { session, data, tablespaces, ended, wait_for_archive };
        Ok((Arc::new(job), Box::new(closing)))
    }
}

/// What there is to copy now that the backup has begun.
fn survey(
    data: &Arc<Root>,
    server: &Server,
    major: u32,
    start: WalPosition,
    lanes: usize,
    findings: &Findings,
) -> Result<Queue> {
    let control =
        ControlFile::of(&data.location).map_err(|e| not_this(&data.location, "has no control file").with_source(e))?;
    // The server has just made a checkpoint, or backs up from the last: a directory that does not know of it is another's.
    if control.redo < start.lsn {
        return Err(not_this(&data.location, "does not know of the checkpoint with which the backup began"));
    }
    let version_directory = version_directory(major, control.catalog_version);
    let tablespaces = tablespaces(data, &version_directory)?;
    let mut choice = Choice {
        major,
        statistics: server.statistics.as_deref().and_then(|path| statistics_in(&data.location, path)),
        linked: tablespaces.iter().filter(|t| t.is_link).filter_map(|t| t.root.oid).collect(),
        foreign: HashSet::new(),
        version_directory,
    };
    let details = tablespaces.iter().map(|t| json!({ "oid": t.root.oid, "location": t.location.to_string_lossy() }));
    findings.set_detail("tablespaces", details.collect());
    let mut roots = Vec::new();
    for Tablespace { root, .. } in tablespaces {
        choice.foreign.insert(root.identity().map_err(|errno| cannot("look at", &root, b"", errno))?);
        roots.push(Arc::new(root));
    }
    roots.push(Arc::clone(data));
    Queue::new(roots, choice, lanes).map_err(no_copy)
}

/// Where statistics are that the server rewrites all the time, if that is right in the data directory.
fn statistics_in(data: &Path, setting: &str) -> Option<String> {
    let path = data.join(setting);
    let below = path.strip_prefix(data).ok()?;
    below.to_str().filter(|name| !name.is_empty() && !name.contains('/')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_left_out_where_they_are_in_the_data_directory() {
        let of = |setting| statistics_in(Path::new("/srv/main"), setting);
        assert_eq!(of("stats").as_deref(), Some("stats"));
        assert_eq!(of("/srv/main/stats").as_deref(), Some("stats"));
        assert_eq!(of("/run/postgresql/stats"), None);
        assert_eq!(of("/srv/main"), None);
    }
}
