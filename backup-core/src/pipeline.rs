//! A backup: source → compress → chunk → encrypt → upload. A builder makes a [`Backup`], starting it gives a [`BackupHandle`].
//!
//! ```text
//!             ┌───────── one compute job ─────────┐
//!                                                                ┌─▶ ObjectUpload ─▶ Repository
//! Source ─▶ Cutter ─▶ compress ─▶ seal ─▶ VolumeWriter ─▶ Parts ─┼─▶ ObjectUpload ─▶ Repository
//! source     chunk    compress    encrypt   upload          upload   upload          repository
//! ```
//!
//! Memory is bounded from both ends: a chunk is read only when there is a slot for it, a part is filled only when there is room for it
//! ([`Limits`]). Chunks are sealed in any order and written in theirs. The backup becomes visible with its manifest, created last.

mod buffer;
mod compute;
mod findings;
mod lane;
mod limits;
mod outcome;
mod progress;
mod session;
mod stream;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use buffer::{Buffer, BufferPool};
pub use compute::ComputePool;
pub use findings::Findings;
pub use limits::{CHUNK_SIZE_DEFAULT, Limits, Share, VOLUME_CHUNKS_DEFAULT};
pub use outcome::{Outcome, OutcomeState, Outcomes};
pub use progress::{Counters, Event, Observer, Progress, Warnings};

pub(crate) use compute::{Pending, Workspace};
pub(crate) use limits::{BackupPlan, RestorePlan};
pub(crate) use session::{DETAILS, HEARTBEAT};

use crate::clock::{Clock, SystemClock};
use crate::compress::{Compression, Content, LEVEL_MAX, LEVEL_MIN};
use crate::encrypt::signature::SigningKey;
use crate::encrypt::{DataKey, Suite};
use crate::error::{Error, Result, Stage};
use crate::format::{Kind, Manifest, WRAPS_MAX};
use crate::keys::{EncryptionContext, Recipient, wrap_for_all};
use crate::repository::layout::{BackupId, StreamName, TargetName};
use crate::repository::{LAG_DEFAULT, Repositories};
use crate::source::{Lane, Single, Source};
use crate::upload::{Race, SharedParts};
use lane::LaneRun;
use session::Session;
use stream::Context;

/// A backup to be made: say what and how, then [`start`](Self::start).
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use std::sync::Arc;
/// use backup_core::{keys::age::AgeIdentity, pipeline::Backup, repository::Repository, source::BytesSource};
///
/// let repository = Repository::in_memory().await?;
/// let identity = AgeIdentity::generate();
/// let manifest = Backup::new(repository, "app".parse()?)
///     .recipient(Arc::new(identity.recipients().remove(0)))
///     .stream("data".parse()?, BytesSource::new("all of it"))
///     .start()?
///     .wait()
///     .await?;
/// assert_eq!(manifest.stream("data").unwrap().bytes, 9);
/// # Ok::<(), backup_core::Error>(()) }).unwrap();
/// ```
#[must_use]
pub struct Backup {
    repositories: Repositories,
    optional_lag: Duration,
    target: TargetName,
    kind: Kind,
    recipients: Vec<Arc<dyn Recipient>>,
    signing_key: Option<SigningKey>,
    lanes: Vec<LaneRun>,
    /// Names of streams that are known before anything is read.
    names: Vec<StreamName>,
    details: serde_json::Value,
    compression: Compression,
    suite: Suite,
    limits: Option<Limits>,
    pool: Option<ComputePool>,
    clock: Arc<dyn Clock>,
    observer: Option<Arc<dyn Observer>>,
    findings: Findings,
    cancel: CancellationToken,
}

impl Backup {
    /// A backup of `target` into a repository, or into several at once, with defaults for all else: zstd level 3, AES-256-GCM, limits that suit
    /// the repositories. Several must be open ([`Repositories::open_all`]).
    pub fn new(repositories: impl Into<Repositories>, target: TargetName) -> Self {
        Self {
            repositories: repositories.into(),
            optional_lag: LAG_DEFAULT,
            target,
            kind: Kind::Stream,
            recipients: Vec::new(),
            signing_key: None,
            lanes: Vec::new(),
            names: Vec::new(),
            details: serde_json::Value::Null,
            compression: Compression::default(),
            suite: Suite::default(),
            limits: None,
            pool: None,
            clock: Arc::new(SystemClock),
            observer: None,
            findings: Findings::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// What the manifest says this is a backup of; [`Kind::Stream`] unless set.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds somebody who will be able to open the backup. At least one is needed.
    pub fn recipient(mut self, recipient: Arc<dyn Recipient>) -> Self {
        self.recipients.push(recipient);
        self
    }

    /// Adds several recipients.
    pub fn recipients(mut self, recipients: impl IntoIterator<Item = Arc<dyn Recipient>>) -> Self {
        self.recipients.extend(recipients);
        self
    }

    /// Signs volumes and manifest, so that readers who trust only some signers take the backup for what it is. Nothing is signed unless set.
    pub fn sign_with(mut self, key: SigningKey) -> Self {
        self.signing_key = Some(key);
        self
    }

    /// Adds a stream. All streams are read at once. The name `details` is taken.
    pub fn stream(self, name: StreamName, source: impl Source + 'static) -> Self {
        self.boxed_stream(name, Box::new(source))
    }

    /// Adds a stream that is small, or comes slowly: it gets little of the memory.
    pub fn thin_stream(mut self, name: StreamName, source: impl Source + 'static) -> Self {
        self.names.push(name.clone());
        self.lane(Share::Thin, Single::new(name, Box::new(source)))
    }

    /// Adds a stream whose source is boxed already.
    pub fn boxed_stream(mut self, name: StreamName, source: Box<dyn Source>) -> Self {
        self.names.push(name.clone());
        self.lane(Share::Full, Single::new(name, source))
    }

    /// Adds streams that are read one after the other, with the memory of one. All lanes are read at once.
    pub fn lane(mut self, share: Share, streams: impl Lane + 'static) -> Self {
        self.lanes.push(LaneRun { share, streams: Box::new(streams) });
        self
    }

    /// What to remember about the data: stored encrypted, in the stream `details`.
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    /// How to compress; zstd level 3 unless set.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The cipher; AES-256-GCM unless set.
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Memory, threads and sizes.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// How long an optional repository may keep the others waiting before the backup goes on without it; [`LAG_DEFAULT`] unless set.
    pub fn optional_lag(mut self, lag: Duration) -> Self {
        self.optional_lag = lag;
        self
    }

    /// Threads to compute on, shared with other backups; a pool of its own unless set.
    pub fn compute_pool(mut self, pool: ComputePool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The clock that ids and times are taken from.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Is told what happens.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Where sources put what they find out: warnings, damage, which cluster it is.
    pub fn findings(mut self, findings: Findings) -> Self {
        self.findings = findings;
        self
    }

    /// Cancels the backup when it is cancelled.
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    /// How many lanes of up to `most` the memory is enough for, beside `thin` ones, without costing compute threads or making anything smaller; at
    /// least one.
    pub(crate) fn lanes_that_fit(&self, most: usize, thin: usize) -> usize {
        let plan = |lanes: usize| {
            let shares = [vec![Share::Full; lanes], vec![Share::Thin; thin]].concat();
            self.limits_or_default().for_backup(self.compression, &shares)
        };
        let Ok(one) = plan(1) else { return 1 };
        let fits = |plan: BackupPlan| plan.workers >= one.workers && plan.limits == one.limits;
        (2..=most).rev().find(|&lanes| plan(lanes).is_ok_and(fits)).unwrap_or(1)
    }

    fn limits_or_default(&self) -> Limits {
        self.limits.unwrap_or_else(|| Limits::for_parts_of(self.repositories.part_bytes()))
    }

    /// Starts the backup on the current tokio runtime. Fails, before anything is touched, when the options cannot be right.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<BackupHandle> {
        self.check()?;
        let shares: Vec<Share> = self.lanes.iter().map(|lane| lane.share).collect();
        let plan = self.limits_or_default().for_backup(self.compression, &shares)?;
        let workers = std::num::NonZero::new(plan.workers).unwrap_or(std::num::NonZero::<usize>::MIN);
        let pool = self.pool.map_or_else(|| ComputePool::new(workers), Ok)?;
        let id = BackupId::generate(self.clock.as_ref());
        let counters = Arc::new(Counters::default());
        let handle_id = id.clone();
        let (handle_counters, stop) = (Arc::clone(&counters), self.cancel.clone());
        let user = self.cancel;
        let (parts_shared, run_stop) = (SharedParts::new(plan.parts_shared), user.child_token());
        let waiting = parts_shared.waiting().clone();
        let race = Race::new(&self.repositories, self.optional_lag, waiting, Some(run_stop.clone()))?;
        let race = Arc::new(match self.observer.clone() {
            Some(observer) => race.telling(Box::new(move |repository, error| {
                let (repository, error) = (repository.to_owned(), error.in_one_line());
                observer.event(&Event::Dropped { repository, error });
            })),
            None => race,
        });
        let outcomes = Outcomes(Arc::clone(&race));
        let run = async move {
            let data_key = DataKey::generate();
            let encryption_context = EncryptionContext::of_backup(&self.target);
            let wraps = tokio::select! {
                wraps = wrap_for_all(&data_key, &encryption_context, &self.recipients) => wraps?,
                () = user.cancelled() => return Err(Error::cancelled(Stage::Keys)),
            };
            let context = Context {
                path: self.target.backup(&id),
                race,
                data_key,
                wraps,
                signing_key: self.signing_key,
                suite: self.suite,
                compression: self.compression,
                content: if self.kind == Kind::BaseBackup { Content::Pages } else { Content::Any },
                limits: plan.limits,
                plan,
                pool,
                buffers: BufferPool::new(plan.limits.chunk_size as usize),
                parts_shared,
                counters,
                clock: self.clock,
                observer: self.observer,
                names: Mutex::new(HashSet::from([DETAILS.parse()?])),
                stop: run_stop,
            };
            let session =
                Session { context: Arc::new(context), kind: self.kind, details: self.details, findings: self.findings };
            session.run(self.lanes).await
        };
        Ok(BackupHandle { id: handle_id, counters: handle_counters, outcomes, cancel: stop, task: tokio::spawn(run) })
    }

    fn check(&self) -> Result<()> {
        if let Compression::Zstd(level) = self.compression
            && !(LEVEL_MIN..=LEVEL_MAX).contains(&level)
        {
            return Err(Error::config(format!("compression level {level} is not between {LEVEL_MIN} and {LEVEL_MAX}")));
        }
        for (i, name) in self.names.iter().enumerate() {
            if name.as_str() == DETAILS || self.names[..i].contains(name) {
                return Err(lane::name_taken(name));
            }
        }
        if self.lanes.is_empty() {
            return Err(Error::config("nothing to back up: no stream was added"));
        }
        match self.recipients.len() {
            0 => Err(crate::keys::no_recipient()),
            1..=WRAPS_MAX => Ok(()),
            n => Err(Error::config(format!("{n} recipients are more than {WRAPS_MAX}"))),
        }
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backup")
            .field("target", &self.target)
            .field("recipients", &self.recipients)
            .field("lanes", &self.lanes)
            .field("compression", &self.compression)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A backup that is running.
///
/// Dropping the handle cancels the backup: its task then stops reading, gives up its uploads and removes what it has written, as far as
/// the runtime lives on for it to do so.
#[derive(Debug)]
pub struct BackupHandle {
    id: BackupId,
    counters: Arc<Counters>,
    outcomes: Outcomes,
    cancel: CancellationToken,
    task: JoinHandle<Result<Manifest>>,
}

impl BackupHandle {
    /// The id of the backup, should it succeed.
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.counters.snapshot()
    }

    /// The counters, to be read while [`wait`](Self::wait) has the handle.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// What became of it in each repository, to be read while [`wait`](Self::wait) has the handle, and afterwards.
    pub fn outcomes(&self) -> Outcomes {
        self.outcomes.clone()
    }

    /// Asks the backup to stop; [`wait`](Self::wait) then tells when it has cleaned up.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits for the end. A backup is complete, durable and visible in every required repository if and only if this returns a manifest; what
    /// became of it in optional ones, [`outcomes`](Self::outcomes) tell.
    ///
    /// Not cancel safe: dropping the future drops the handle, which cancels the backup.
    pub async fn wait(mut self) -> Result<Manifest> {
        (&mut self.task)
            .await
            .unwrap_or_else(|e| Err(Error::internal(Stage::Upload, "the backup's task panicked").with_source(e)))
    }
}

impl Drop for BackupHandle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
