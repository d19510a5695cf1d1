//! A backup from its first object to its manifest: the parts around the streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::{ObjectStoreExt, PutPayload};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::findings::Findings;
use super::lane::LaneRun;
use super::limits::Share;
use super::progress::Event;
use super::stream::{Context, Halt, write_stream};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Kind, Manifest, RecipientName, StreamEntry};
use crate::repository::running::Running;
use crate::repository::{Repository, is_taken};
use crate::source::BytesSource;
use crate::upload::Racer;

/// How often a run says that it is alive.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(30);
/// For so long after they were looked at volumes are taken to be there: less than the least grace of a prune.
const STILL_THERE: SignedDuration = SignedDuration::from_mins(10);
/// How long removing what a failed run has written may take.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(20);
/// The same in a repository that the run went on without: it is most likely away.
const DROPPED_CLEANUP_DEADLINE: Duration = Duration::from_secs(5);
/// The stream that describes the backup.
pub(crate) const DETAILS: &str = "details";

/// What a run needs beside its streams.
pub(super) struct Session {
    pub(super) context: Arc<Context>,
    pub(super) kind: Kind,
    pub(super) details: serde_json::Value,
    pub(super) findings: Findings,
}

/// What `running.json` says, again and again.
#[derive(Clone)]
struct Beat {
    context: Arc<Context>,
    kind: Kind,
    findings: Findings,
    started: Timestamp,
}

/// The stream `details`.
#[derive(Debug, Serialize)]
struct Details<'a> {
    format: u32,
    source: &'a serde_json::Value,
    warnings: &'a [String],
}

impl Session {
    /// Runs to the manifest; on failure removes what it has written, in all repositories.
    pub(super) async fn run(self, lanes: Vec<LaneRun>) -> Result<Manifest> {
        let context = Arc::clone(&self.context);
        let started = context.clock.now();
        let race = Arc::clone(&context.race);
        let watching = AbortOnDropHandle::new(tokio::spawn(async move { race.watch().await }));
        let written = self.write(lanes, started).await;
        drop(watching);
        match written {
            Ok(manifest) => {
                self.tidy().await;
                Ok(manifest)
            }
            Err(error) => {
                for racer in context.race.racers() {
                    racer.committed.store(false, Ordering::Release);
                }
                Err(match removed(&context, context.race.racers(), CLEANUP_DEADLINE).await {
                    Err(cleanup) if error.cleanup().is_none() => error.with_cleanup(cleanup),
                    _ => error,
                })
            }
        }
    }

    /// After all is done. What is left is not worth failing a backup that is complete.
    async fn tidy(&self) {
        let context = &self.context;
        let stored = context.race.racers().filter(|racer| racer.committed.load(Ordering::Acquire));
        let beats = futures::future::join_all(stored.map(|racer| async move {
            let removing = racer.repository.store().delete(&context.path.running()).await;
            if let Err(error) = removing {
                tracing::warn!(%error, repository = %racer.repository, "cannot remove running.json");
            }
        }));
        // Where it may have become visible all of it stays; what else dropped out is of no use.
        let dropped = context.race.racers().filter(|r| r.is_out() && !r.committing.load(Ordering::Acquire));
        let (beats, removed) = tokio::join!(
            tokio::time::timeout(CLEANUP_DEADLINE, beats),
            removed(context, dropped, DROPPED_CLEANUP_DEADLINE)
        );
        if beats.is_err() {
            tracing::warn!("removing running.json took too long");
        }
        if let Err(error) = removed {
            tracing::warn!(%error, "something is left of the backup in a repository that it went on without");
        }
    }

    async fn write(&self, lanes: Vec<LaneRun>, started: Timestamp) -> Result<Manifest> {
        let context = Arc::clone(&self.context);
        let beat =
            Beat { context: Arc::clone(&context), kind: self.kind.clone(), findings: self.findings.clone(), started };
        self.begin(beat.payload()?).await?;
        let beating = CancellationToken::new();
        let heartbeat = tokio::spawn(keep_alive(beat, beating.clone()));
        let streams = self.write_streams(lanes).await;
        // Before anything is cleaned up, and not in the middle of a beat: it would come back after everything was removed.
        beating.cancel();
        let _ = tokio::time::timeout(CLEANUP_DEADLINE, heartbeat).await;
        let streams = streams?;

        let finished = context.clock.now();
        let manifest = Arc::new(self.manifest(streams, started, finished));
        // Whoever was stopped in between (a suspended machine) may have been taken for dead.
        let mut looked = Timestamp::MIN;
        while context.clock.now().duration_since(looked) > STILL_THERE {
            looked = context.clock.now();
            let (of, listed) = (Arc::clone(&context), Arc::clone(&manifest));
            let present = context.race.everywhere(move |racer| {
                let (context, manifest) = (Arc::clone(&of), Arc::clone(&listed));
                async move { check_presence(&context, &racer.repository, &manifest).await }
            });
            self.unless_cancelled(present).await?;
        }
        self.commit(&manifest).await?;
        context.tell(&Event::Committed { id: manifest.id.clone() });
        Ok(Arc::unwrap_or_clone(manifest))
    }

    /// Writes `running.json`. That also finds out, before anything is read, whether this host may write there.
    async fn begin(&self, payload: PutPayload) -> Result<()> {
        let context = Arc::clone(&self.context);
        let begin = async move {
            let of = Arc::clone(&context);
            let step = move |racer: Arc<Racer>| {
                let (context, payload) = (Arc::clone(&of), payload.clone());
                async move {
                    let begun = racer.repository.put_once(&context.path.running(), payload).await;
                    // Another run has this name, and with it all that is stored there.
                    racer.taken.store(begun.as_ref().is_err_and(is_taken), Ordering::Release);
                    begun.map_err(|e| e.at(Stage::Setup))
                }
            };
            context.race.everywhere(step).await
        };
        let mut begun = tokio::spawn(begin);
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => {
                // Not dropped in the middle: it could finish after everything was removed.
                Err(match tokio::time::timeout(CLEANUP_DEADLINE, begun).await {
                    Ok(Ok(Err(error))) if is_taken(&error) => error,
                    _ => Error::cancelled(Stage::Setup),
                })
            }
            begun = &mut begun => begun
                .map_err(|e| Error::internal(Stage::Setup, "writing running.json panicked").with_source(e))?,
        }
    }

    /// Makes the backup visible: in the required repositories, and when it is in all of them, in the others. Not cancelled any more.
    ///
    /// Should this process end in between, it is in some of them, complete; copying it completes the rest.
    async fn commit(&self, manifest: &Manifest) -> Result<()> {
        let context = Arc::clone(&self.context);
        let bytes = manifest
            .encode_signed(&context.data_key, context.signing_key.as_ref())
            .map_err(|e| Error::internal(Stage::Commit, "the manifest cannot be written").with_source(e))?;
        let payload = PutPayload::from(bytes);
        for required in [true, false] {
            let (of, payload) = (Arc::clone(&context), payload.clone());
            let step = move |racer: Arc<Racer>| {
                let (context, payload) = (Arc::clone(&of), payload.clone());
                async move {
                    if racer.is_required() != required {
                        return Ok(());
                    }
                    racer.committing.store(true, Ordering::Release);
                    let created = racer.repository.put_once(&context.path.manifest(), payload).await;
                    racer.committed.store(created.is_ok(), Ordering::Release);
                    created.map_err(|e| e.at(Stage::Commit))
                }
            };
            context.race.everywhere(step).await?;
        }
        Ok(())
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.context.stop.cancelled() => Err(Error::cancelled(Stage::Commit)),
            done = work => done,
        }
    }

    /// The lanes at once, then what there is to say of their streams.
    async fn write_streams(&self, lanes: Vec<LaneRun>) -> Result<Vec<StreamEntry>> {
        let mut tasks = JoinSet::new();
        let mut written: Vec<Option<Vec<StreamEntry>>> = lanes.iter().map(|_| None).collect();
        for (i, lane) in lanes.into_iter().enumerate() {
            let context = Arc::clone(&self.context);
            tasks.spawn(async move { (i, lane.write(context).await) });
        }
        let mut first_failure = None;
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((i, Ok(streams))) => written[i] = Some(streams),
                Ok((_, Err(Halt::Failed(error)))) => {
                    first_failure.get_or_insert(error);
                }
                Ok((_, Err(Halt::Stopped))) => {}
                Err(panic) => {
                    self.context.stop.cancel();
                    let error = Error::internal(Stage::Upload, "a stream's task panicked").with_source(panic);
                    first_failure.get_or_insert(error);
                }
            }
        }
        // A repository that failed has stopped the streams.
        if let Some(error) = first_failure.or_else(|| self.context.race.take_failure()) {
            return Err(error);
        }
        // In the order of the lanes, whichever was done first.
        let complete: Option<Vec<Vec<StreamEntry>>> = written.into_iter().collect();
        let mut streams = complete.ok_or_else(|| Error::cancelled(Stage::Source))?.concat();
        streams.push(self.write_details().await?);
        Ok(streams)
    }

    async fn write_details(&self) -> Result<StreamEntry> {
        let source = self.findings.details(&self.details);
        let details = Details { format: 1, source: &source, warnings: &self.findings.warnings().texts() };
        let json = serde_json::to_vec(&details)
            .map_err(|e| Error::internal(Stage::Commit, "the details cannot be written").with_source(e))?;
        let source = Box::new(BytesSource::new(Bytes::from(json)));
        write_stream(Arc::clone(&self.context), DETAILS.parse()?, source, Share::Thin).await.map_err(
            |halt| match halt {
                Halt::Failed(error) => error,
                Halt::Stopped => self.context.race.take_failure().unwrap_or_else(|| Error::cancelled(Stage::Commit)),
            },
        )
    }

    fn manifest(&self, streams: Vec<StreamEntry>, started: Timestamp, finished: Timestamp) -> Manifest {
        let name =
            |wrap: &crate::keys::Wrap| RecipientName { kind: wrap.kind.clone(), recipient: wrap.recipient.clone() };
        Manifest {
            format: 1,
            id: self.context.path.id.to_string(),
            target: self.context.path.target.to_string(),
            kind: self.kind.clone(),
            condition: self.findings.condition(),
            warnings: self.findings.warnings().count(),
            started,
            finished,
            data_key: self.context.data_key.id(),
            recipients: self.context.wraps.iter().map(name).collect(),
            streams,
            cluster: self.findings.cluster(),
            requires: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            critical: Vec::new(),
        }
    }
}

impl Beat {
    fn payload(&self) -> Result<PutPayload> {
        let Self { context, kind, findings, started } = self;
        Running::new(&context.path, *started, context.clock.now(), Some(kind.clone()), findings.start()).encode()
    }
}

/// Renews `running.json` until it is told to stop. A beat that fails is not an error: the next may succeed, and the upload itself will tell.
async fn keep_alive(beat: Beat, stop: CancellationToken) {
    let context = &beat.context;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // Until then nothing of the log of the target is removed.
            () = beat.findings.start_known() => {}
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let Ok(payload) = beat.payload() else { return };
        let beats = context.race.running().map(|racer| {
            let payload = payload.clone();
            async move {
                let path = context.path.running();
                let beat = racer.repository.store().put(&path, payload);
                // One that hangs must not keep the others from being renewed.
                match tokio::time::timeout(HEARTBEAT, beat).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(%error, repository = %racer.repository, "cannot renew running.json");
                    }
                    Err(_) => tracing::warn!(repository = %racer.repository, "renewing running.json takes too long"),
                }
            }
        });
        futures::future::join_all(beats).await;
    }
}

/// Asks a store once more for every volume and its size, before the backup becomes visible.
async fn check_presence(context: &Context, repository: &Repository, manifest: &Manifest) -> Result<()> {
    let listing = repository.store().list(Some(&context.path.prefix()));
    let found: std::collections::HashMap<String, u64> = listing
        .map_ok(|meta| (meta.location.filename().unwrap_or_default().to_owned(), meta.size))
        .try_collect()
        .await
        .map_err(|e| repository.error(e, "list", &context.path.prefix()).at(Stage::Commit))?;
    for volume in manifest.streams.iter().flat_map(|stream| &stream.volumes) {
        let object = repository.address(&context.path.named(&volume.path));
        let problem = match found.get(&volume.path) {
            Some(size) if *size == volume.bytes => continue,
            Some(size) => format!("{object} has {size} bytes in the store and should have {}", volume.bytes),
            None => format!("{object} was written and is not in the store"),
        };
        return Err(Error::new(ErrorKind::Storage, Stage::Commit, problem));
    }
    Ok(())
}

/// Removes every object of this run from these repositories, within a deadline; the first failure that is not one of a repository that has dropped out
/// is returned, when all were tried.
async fn removed(context: &Context, racers: impl Iterator<Item = &Arc<Racer>>, deadline: Duration) -> Result<()> {
    // What is still being sent would come back.
    context.race.legs.close();
    let begun = Instant::now();
    let _ = tokio::time::timeout(deadline, context.race.legs.wait()).await;
    let removing = racers.filter(|racer| !racer.taken.load(Ordering::Acquire)).map(|racer| async move {
        let left = deadline.saturating_sub(begun.elapsed()).max(deadline / 2);
        let late = |_| {
            let message = format!(
                "removing what was written of backup {} from {} took too long",
                context.path.id, racer.repository
            );
            Err(Error::new(ErrorKind::Unavailable, Stage::Upload, message))
        };
        let removed = tokio::time::timeout(left, remove_all(context, &racer.repository)).await.unwrap_or_else(late);
        removed.map_err(|error| (racer.is_out(), error))
    });
    let failures = futures::future::join_all(removing).await.into_iter().filter_map(Result::err);
    match failures.min_by_key(|(is_out, _)| *is_out) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Removes every object of this run. The manifest goes first, should its creation have succeeded without our knowing.
async fn remove_all(context: &Context, repository: &Repository) -> Result<()> {
    let store = repository.store();
    let failed = |e| repository.error(e, "remove", &context.path.prefix()).at(Stage::Upload);
    match store.delete(&context.path.manifest()).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    let objects = store.list(Some(&context.path.prefix())).map_ok(|meta| meta.location).boxed();
    store.delete_stream(objects).try_for_each(|_| async { Ok(()) }).await.map_err(failed)
}
