//! Leaving a record of what was done, beside what it was done to.

use std::time::Duration;

use backup_core::format::{Manifest, RecipientName};
use backup_core::repository::runs::{RunOutcome, RunRecord, Who};
use backup_core::repository::{Repositories, Repository};
use backup_core::{ErrorKind, Result};
use nix::unistd::{User, geteuid, gethostname};

use crate::command::or_cancelled;
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

    /// Where the record goes, as far as that can be found out: for what is done without a repository. Whether it goes anywhere.
    pub(crate) async fn look_for(&mut self, app: &App, repositories: &Repositories) -> bool {
        let opening = repositories.members().iter().map(|member| async move {
            match tokio::time::timeout(DEADLINE, member.open()).await {
                Ok(Ok(repository)) => Ok(repository.clone()),
                Ok(Err(e)) => Err((e.kind() == ErrorKind::NotFound, report::in_one_line(&e))),
                Err(_) => Err((false, format!("{member} takes too long"))),
            }
        });
        let opened = futures::future::join_all(opening).await;
        // Keys are made before there is any.
        let is_none_made = opened.iter().all(|opened| matches!(opened, Err((true, _))));
        for opened in opened {
            match opened {
                Ok(repository) => self.repositories.push(repository),
                Err((_, why)) if !is_none_made => not_recorded(app, &why),
                Err(_) => {}
            }
        }
        !self.repositories.is_empty()
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
        self.begin_with(app, keys::identity_names(&app.config)).await;
    }

    /// The same where these keys have been read already.
    pub(crate) async fn begin_with(&mut self, app: &App, identities: Vec<RecipientName>) {
        self.record.identities = identities;
        self.write(app).await;
    }

    /// Does `work`, which ends where it is when this program is told to stop, and records how it ended.
    pub(crate) async fn through(self, app: &App, work: impl Future<Output = Result<Exit>>) -> Result<Exit> {
        let result = or_cancelled(app, work).await;
        self.end(app, &result).await;
        result
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

/// Says that there is no record.
pub(crate) fn not_recorded(app: &App, why: &str) {
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
