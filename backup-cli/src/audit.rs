//! Leaving a record of what was done, beside what it was done to.

use std::time::Duration;

use backup_core::format::Manifest;
use backup_core::repository::Repository;
use backup_core::repository::runs::{RunOutcome, RunRecord, Who};
use backup_core::{ErrorKind, Result};
use nix::unistd::{User, geteuid, gethostname};

use crate::exit::Exit;
use crate::{App, keys, report};

/// How long writing a record may take: what was done is not to wait for it for ever.
const DEADLINE: Duration = Duration::from_secs(5);

/// A run that leaves a record, as soon as it is known where.
///
/// A record that cannot be written is a warning and changes nothing else: a restore at night must not depend on the right to write.
#[derive(Debug)]
pub(crate) struct Run {
    repositories: Vec<Repository>,
    pub(crate) record: RunRecord,
}

impl Run {
    /// A run of `command`, which begins now.
    pub(crate) fn new(app: &App, command: &str) -> Self {
        Self { repositories: Vec::new(), record: RunRecord::begin(command, who(), &*app.clock) }
    }

    /// Where the record goes, too.
    pub(crate) fn at(&mut self, repository: &Repository) {
        self.repositories.push(repository.clone());
    }

    /// Where the record goes, if that can be found out: for what is done without a repository. Whether it was.
    pub(crate) async fn look_for(&mut self, app: &App, repository: impl Future<Output = Result<Repository>>) -> bool {
        match tokio::time::timeout(DEADLINE, repository).await {
            Ok(Ok(repository)) => {
                self.repositories.push(repository);
                return true;
            }
            // Keys are made before it is.
            Ok(Err(e)) if e.kind() == ErrorKind::NotFound => {}
            Ok(Err(e)) => not_recorded(app, &report::in_one_line(&e)),
            Err(_) => not_recorded(app, "the repository takes too long"),
        }
        false
    }

    /// Which backup it is about.
    pub(crate) fn about(&mut self, manifest: &Manifest) {
        // What does not parse was not proved, and a record of it would not be one either.
        self.record.target = manifest.target.parse().ok();
        self.record.backup = manifest.id.parse().ok();
        self.record.data_key = Some(manifest.data_key.clone());
    }

    /// Records that data is about to be opened, with the keys at hand.
    pub(crate) async fn begin(&mut self, app: &App) {
        self.record.identities = keys::identity_names(&app.config);
        self.write(app).await;
    }

    /// Records how it ended.
    pub(crate) async fn end(mut self, app: &App, result: &Result<Exit>) {
        let (outcome, exit) = match result {
            Ok(Exit::Done) => (RunOutcome::Done, Exit::Done),
            Ok(Exit::Warnings) => (RunOutcome::Warnings, Exit::Warnings),
            Ok(exit) => (RunOutcome::Failed, *exit),
            Err(e) if e.kind() == ErrorKind::Cancelled => (RunOutcome::Interrupted, Exit::Interrupted),
            Err(e) => (RunOutcome::Failed, e.kind().into()),
        };
        self.record.failed_at = result.as_ref().err().map(|e| e.stage().to_string());
        self.record.outcome = Some(outcome);
        self.record.exit_code = Some(exit as u8);
        self.record.finished = Some(app.clock.now());
        self.write(app).await;
    }

    async fn write(&self, app: &App) {
        let writing = self.repositories.iter().map(|repository| async move {
            let why = match tokio::time::timeout(DEADLINE, repository.record(&self.record)).await {
                Ok(Ok(())) => return,
                Ok(Err(e)) => report::in_one_line(&e),
                Err(_) => format!("{repository} takes too long"),
            };
            not_recorded(app, &why);
        });
        futures::future::join_all(writing).await;
    }
}

fn not_recorded(app: &App, why: &str) {
    app.output.warning(format!("this run is not recorded: {why}"));
}

/// Who runs this program.
pub(crate) fn who() -> Who {
    let uid = geteuid();
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let host = gethostname().ok().and_then(|name| name.into_string().ok());
    Who {
        user: name.unwrap_or_else(|| uid.to_string()),
        host: host.unwrap_or_default(),
        pid: std::process::id(),
        program: concat!("backup ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}
