//! Records of runs: who did what, from where, with which key. Beside the backups, so that whoever audits needs nothing else.
//!
//! A record is created once and never changed. A run that opens data is recorded twice: when it begins, before anything of the data is handed
//! out, and when it ends. A record is no proof: whoever can write to the store can write one.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use jiff::civil::Date;
use object_store::PutPayload;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::layout::{BackupId, TargetName, run_record, runs};
use crate::clock::Clock;
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::RecipientName;

/// The longest record in bytes.
const RECORD_LEN_MAX: usize = 256 * 1024;
/// Records on their way at once.
const FETCHES: usize = 8;

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunRecord {
    /// The format's major version: 1.
    pub format: u32,
    /// The run's own id, in the form of a backup's.
    pub id: BackupId,
    /// What was done: `save`, `restore`, `verify --deep`, `key rewrap`, …
    pub command: String,
    /// Who did it, by the word of the host that wrote this.
    pub who: Who,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; none while it runs, or when it was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RunOutcome>,
    /// The exit code of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// At which stage it failed. Not why: that may name tables and files, which are nobody's business who reads the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<String>,
    /// Whose data it was about, if it was about one target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetName>,
    /// The backup, if it was about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// Id of the data key that it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<String>,
    /// Whom was encrypted to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<RecipientName>,
    /// The keys that were at hand to open data with, by their public halves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<RecipientName>,
    /// Who signed what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// Bytes of plaintext that went in or came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Who ran the program, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The user's name, or number where it has none.
    pub user: String,
    /// The host's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The program and its version.
    pub program: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunOutcome {
    /// Well.
    Done,
    /// Done, and something needs attention.
    Warnings,
    /// It failed.
    Failed,
    /// It was interrupted.
    Interrupted,
    /// In a way that a later release added.
    #[serde(other)]
    Other,
}

impl RunRecord {
    /// The record of a run that begins now.
    pub fn begin(command: impl Into<String>, who: Who, clock: &dyn Clock) -> Self {
        Self {
            format: 1,
            id: BackupId::generate(clock),
            command: command.into(),
            who,
            started: clock.now(),
            finished: None,
            outcome: None,
            exit_code: None,
            failed_at: None,
            target: None,
            backup: None,
            data_key: None,
            recipients: Vec::new(),
            identities: Vec::new(),
            signer: None,
            bytes: None,
        }
    }
}

impl Repository {
    /// Stores a record: that of a run that begins, or, when it says how it ended, that of its end. Each once.
    ///
    /// # Errors
    /// Those of [`put_once`](Self::put_once), which says about cancelling, too.
    pub async fn record(&self, run: &RunRecord) -> Result<()> {
        let mut bytes = serde_json::to_vec(run)
            .map_err(|e| Error::internal(Stage::Commit, "a run record cannot be written").with_source(e))?;
        bytes.push(b'\n');
        self.put_once(&run_record(&run.id, run.outcome.is_some()), PutPayload::from(bytes)).await
    }

    /// The runs that began on `since` (in UTC) or later, in their order. Of a run that has ended only the record of the end; of one that runs, or
    /// was killed, that of its beginning. What cannot be read is left out, and counted beside.
    ///
    /// # Errors
    /// Those of the store. Cancel safe.
    pub async fn runs(&self, since: Date) -> Result<(Vec<RunRecord>, usize)> {
        let (prefix, offset) = (runs(), Path::from(format!("{}/{}", runs(), since.strftime("%Y/%m/%d"))));
        let failed = |e| self.error(e, "list", &prefix).at(Stage::Catalog);
        let objects = self.store().list_with_offset(Some(&prefix), &offset).map_err(failed);
        let read = objects.map_ok(|object| async move {
            let bytes = match self.read_small(&object.location, RECORD_LEN_MAX).await {
                // Longer than any record.
                Err(error) if error.kind() == ErrorKind::Integrity => Some(Bytes::new()),
                other => other?,
            };
            Ok(bytes.map(|bytes| (object.location, bytes)))
        });
        let mut found: BTreeMap<BackupId, RunRecord> = BTreeMap::new();
        let mut unreadable = 0;
        let mut records = read.try_buffer_unordered(FETCHES).boxed();
        while let Some(record) = records.try_next().await? {
            let Some((location, bytes)) = record else { continue };
            match serde_json::from_slice::<RunRecord>(&bytes) {
                // One under another's name would hide that one.
                Ok(run) if run.format == 1 && run_record(&run.id, run.outcome.is_some()) == location => {
                    let known = found.get(&run.id);
                    if known.is_none_or(|known| known.outcome.is_none()) {
                        found.insert(run.id.clone(), run);
                    }
                }
                _ => unreadable += 1,
            }
        }
        let mut found: Vec<RunRecord> = found.into_values().collect();
        // Ids tell seconds.
        found.sort_by_key(|run| run.started);
        Ok((found, unreadable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn begun() -> RunRecord {
        let who = Who { user: "postgres".into(), host: "db1".into(), pid: 7, program: "backup 0.1.0".into() };
        RunRecord::begin("restore", who, &SystemClock)
    }

    #[tokio::test]
    async fn a_run_is_seen_from_its_beginning_and_once_when_it_has_ended() {
        let repository = Repository::in_memory().await.unwrap();
        let mut first = begun();
        repository.record(&first).await.unwrap();
        let killed = begun();
        repository.record(&killed).await.unwrap();
        first.outcome = Some(RunOutcome::Failed);
        first.failed_at = Some("sink".into());
        repository.record(&first).await.unwrap();
        let today = first.started.to_zoned(jiff::tz::TimeZone::UTC).date();
        let (mut seen, unreadable) = repository.runs(today.yesterday().unwrap()).await.unwrap();
        seen.sort_by_key(|run| run.outcome.is_none());
        assert_eq!((seen, unreadable), (vec![first.clone(), killed], 0));
        assert_eq!(repository.runs(today.checked_add(jiff::Span::new().days(2)).unwrap()).await.unwrap().0, []);
        // Nobody rewrites what was recorded.
        first.failed_at = None;
        assert!(repository.record(&first).await.is_err());
    }

    #[tokio::test]
    async fn what_is_no_record_hides_no_other() {
        let repository = Repository::in_memory().await.unwrap();
        let run = begun();
        repository.record(&run).await.unwrap();
        let mut ended = run.clone();
        ended.outcome = Some(RunOutcome::Done);
        let borrowed = serde_json::to_string(&ended).unwrap();
        let long = " ".repeat(RECORD_LEN_MAX + 1);
        for (name, bytes) in [("x.json", "{}"), ("y.json", "not JSON"), ("z.json", &borrowed), ("long.json", &long)] {
            let path = Path::from(format!("runs/2999/01/01/{name}"));
            object_store::ObjectStoreExt::put(&**repository.store(), &path, bytes.to_owned().into()).await.unwrap();
        }
        let day = "2026-01-01".parse().unwrap();
        let (seen, unreadable) = repository.runs(day).await.unwrap();
        assert_eq!((seen, unreadable), (vec![run], 4));
    }
}
