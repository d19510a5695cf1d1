//! A backup from its first object to its manifest: the parts around the streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::{ObjectStoreExt, PutPayload};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::findings::Findings;
use super::lane::LaneRun;
use super::limits::Share;
use super::progress::Event;
use super::stream::{Context, Halt, write_stream};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Kind, Manifest, RecipientName, StreamEntry};
use crate::repository::is_taken;
use crate::repository::running::Running;
use crate::source::BytesSource;

/// How often a run says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// For so long after they were looked at volumes are taken to be there: less than the least grace of a prune.
const STILL_THERE: SignedDuration = SignedDuration::from_mins(10);
/// How long removing what a failed run has written may take.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(20);
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
    /// Runs to the manifest; on failure removes what it has written.
    pub(super) async fn run(&self, lanes: Vec<LaneRun>) -> Result<Manifest> {
        let context = Arc::clone(&self.context);
        let started = context.clock.now();
        let written = self.write(lanes, started).await;
        match written {
            Ok(manifest) => {
                // Only a leftover, and not worth failing a backup that is complete.
                if let Err(error) = context.repository.store().delete(&context.path.running()).await {
                    tracing::warn!(%error, "cannot remove running.json");
                }
                Ok(manifest)
            }
            // Another run has this name, and with it all that is stored there.
            Err(error) if error.stage() == Stage::Setup && is_taken(&error) => Err(error),
            Err(error) => {
                let removed = tokio::time::timeout(CLEANUP_DEADLINE, remove_all(&context)).await;
                let removed = removed.unwrap_or_else(|_| {
                    let message = format!("removing what was written of backup {} took too long", context.path.id);
                    Err(Error::new(ErrorKind::Unavailable, Stage::Upload, message))
                });
                Err(match removed {
                    Err(cleanup) if error.cleanup().is_none() => error.with_cleanup(cleanup),
                    _ => error,
                })
            }
        }
    }

    async fn write(&self, lanes: Vec<LaneRun>, started: Timestamp) -> Result<Manifest> {
        let context = Arc::clone(&self.context);
        // Also finds out, before anything is read, whether this host may write here.
        let beat =
            Beat { context: Arc::clone(&context), kind: self.kind.clone(), findings: self.findings.clone(), started };
        let (payload, of) = (beat.payload()?, Arc::clone(&context));
        let mut begun = tokio::spawn(async move { of.repository.put_once(&of.path.running(), payload).await });
        let begun = tokio::select! {
            biased;
            () = context.stop.cancelled() => {
                // Not dropped in the middle: it could finish after everything was removed.
                return Err(match tokio::time::timeout(CLEANUP_DEADLINE, begun).await {
                    Ok(Ok(Err(error))) if is_taken(&error) => error.at(Stage::Setup),
                    _ => Error::cancelled(Stage::Setup),
                });
            }
            begun = &mut begun => begun,
        };
        begun
            .map_err(|e| Error::internal(Stage::Setup, "writing running.json panicked").with_source(e))?
            .map_err(|e| e.at(Stage::Setup))?;

        let beating = CancellationToken::new();
        let heartbeat = tokio::spawn(keep_alive(beat, beating.clone()));
        let streams = self.write_streams(lanes).await;
        // Before anything is cleaned up, and not in the middle of a beat: it would come back after everything was removed.
        beating.cancel();
        let _ = tokio::time::timeout(CLEANUP_DEADLINE, heartbeat).await;
        let streams = streams?;

        let finished = context.clock.now();
        let manifest = self.manifest(streams, started, finished);
        // Whoever was stopped in between (a suspended machine) may have been taken for dead.
        let mut looked = Timestamp::MIN;
        while context.clock.now().duration_since(looked) > STILL_THERE {
            looked = context.clock.now();
            self.unless_cancelled(check_presence(&context, &manifest)).await?;
        }
        let bytes = manifest
            .encode_signed(&context.data_key, context.signing_key.as_ref())
            .map_err(|e| Error::internal(Stage::Commit, "the manifest cannot be written").with_source(e))?;
        // From here on the backup may be visible: this is not cancelled any more.
        context.repository.put_once(&context.path.manifest(), bytes.into()).await.map_err(|e| e.at(Stage::Commit))?;
        context.tell(&Event::Committed { id: manifest.id.clone() });
        Ok(manifest)
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
        if let Some(error) = first_failure {
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
                Halt::Stopped => Error::cancelled(Stage::Commit),
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
        let running = Running {
            format: 1,
            id: self.context.path.id.to_string(),
            target: self.context.path.target.to_string(),
            started: self.started,
            heartbeat: self.context.clock.now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kind: Some(self.kind.clone()),
            cluster: self.findings.start(),
        };
        let json = serde_json::to_vec(&running)
            .map_err(|e| Error::internal(Stage::Setup, "running.json cannot be written").with_source(e))?;
        Ok(json.into())
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
        if let Err(error) = context.repository.store().put(&context.path.running(), payload).await {
            tracing::warn!(%error, "cannot renew running.json");
        }
    }
}

/// Asks the store once more for every volume and its size, before the backup becomes visible.
async fn check_presence(context: &Context, manifest: &Manifest) -> Result<()> {
    let store = context.repository.store();
    let listing = store.list(Some(&context.path.prefix()));
    let found: std::collections::HashMap<String, u64> = listing
        .map_ok(|meta| (meta.location.filename().unwrap_or_default().to_owned(), meta.size))
        .try_collect()
        .await
        .map_err(|e| context.repository.error(e, "list", &context.path.prefix()).at(Stage::Commit))?;
    for volume in manifest.streams.iter().flat_map(|stream| &stream.volumes) {
        let object = context.repository.address(&context.path.named(&volume.path));
        let problem = match found.get(&volume.path) {
            Some(size) if *size == volume.bytes => continue,
            Some(size) => format!("{object} has {size} bytes in the store and should have {}", volume.bytes),
            None => format!("{object} was written and is not in the store"),
        };
        return Err(Error::new(ErrorKind::Storage, Stage::Commit, problem));
    }
    Ok(())
}

/// Removes every object of this run. The manifest goes first, should its creation have succeeded without our knowing.
async fn remove_all(context: &Context) -> Result<()> {
    let store = context.repository.store();
    let failed = |e| context.repository.error(e, "remove", &context.path.prefix()).at(Stage::Upload);
    match store.delete(&context.path.manifest()).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    let objects = store.list(Some(&context.path.prefix())).map_ok(|meta| meta.location).boxed();
    store.delete_stream(objects).try_for_each(|_| async { Ok(()) }).await.map_err(failed)
}
