//! One object on its way into several repositories at once.
//!
//! Each of them has a task of its own that sends the same parts. A part's memory is free when the last repository that is still in the race
//! has acknowledged it; who fails or drops out lets go of all of its parts.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::object::ObjectUpload;
use super::part::Part;
use super::race::{Race, Racer, Ticket};
use crate::error::{Error, Result, Stage};

/// Sends parts as they come into every repository that is still in the race.
pub(crate) struct FanOut {
    race: Arc<Race>,
    legs: Vec<Leg>,
    stop: CancellationToken,
    /// Where the object is, once it is finished.
    stored: Vec<(Arc<Racer>, Path)>,
}

struct Leg {
    racer: Arc<Racer>,
    parts: mpsc::UnboundedSender<Message>,
    ended: Option<oneshot::Receiver<Ended>>,
}

enum Message {
    Part(Part),
    /// The last part, and what is held until the object is complete.
    Last(Part, Ticket),
}

enum Ended {
    Stored(Path),
    /// It was told to; what remained could not be given up for this reason.
    Stopped(Option<Error>),
    /// The race knows why.
    Failed,
}

impl FanOut {
    /// Begins what `upload` says for every repository, if it says something; giving it up may take `abort_deadline`.
    pub(crate) fn begin(
        race: &Arc<Race>,
        abort_deadline: Duration,
        upload: impl Fn(&Arc<Racer>) -> Option<ObjectUpload>,
    ) -> Self {
        let stop = CancellationToken::new();
        let legs = race.running().filter_map(|racer| {
            let upload = upload(racer)?;
            let (parts, queue) = mpsc::unbounded_channel();
            let (tell, ended) = oneshot::channel();
            let (race_of_leg, racer_of_leg, stop) = (Arc::clone(race), Arc::clone(racer), stop.clone());
            race.legs.spawn(async move {
                let ended = run(upload, queue, &race_of_leg, &racer_of_leg, &stop, abort_deadline).await;
                // Nobody waits for the end of one that dropped out.
                let _ = tell.send(ended);
            });
            Some(Leg { racer: Arc::clone(racer), parts, ended: Some(ended) })
        });
        Self { race: Arc::clone(race), legs: legs.collect(), stop, stored: Vec::new() }
    }

    /// Sends a part behind which more will come. Never waits: how many parts there may be is their own budget's to keep.
    pub(crate) fn push(&self, part: Part) {
        let serial = self.race.next_serial();
        for leg in self.legs.iter().filter(|leg| !leg.racer.is_out()) {
            let part = Part { ticket: Some(leg.racer.hold(serial)), ..part.share() };
            // Fails where it has ended, which the race knows of.
            let _ = leg.parts.send(Message::Part(part));
        }
    }

    /// Sends the last part and completes the object: everywhere, but where the repository drops out.
    ///
    /// # Errors
    /// When a required repository has failed, and that ends the run. [`abort`](Self::abort) is still to be called then.
    pub(crate) async fn finish(&mut self, last: Part) -> Result<()> {
        let serial = self.race.next_serial();
        for leg in self.legs.iter().filter(|leg| !leg.racer.is_out()) {
            let part = Part { ticket: Some(leg.racer.hold(serial)), ..last.share() };
            let _ = leg.parts.send(Message::Last(part, leg.racer.hold(serial)));
        }
        drop(last);
        let (required, optional): (Vec<_>, Vec<_>) = self.legs.iter_mut().partition(|leg| leg.racer.is_required());
        let mut failed = false;
        for leg in required {
            match leg.end().await {
                Ended::Stored(path) => self.stored.push((Arc::clone(&leg.racer), path)),
                Ended::Stopped(_) | Ended::Failed => failed = true,
            }
        }
        if failed && let Some(error) = self.race.take_failure() {
            return Err(error);
        }
        let _waits = self.race.wait();
        for leg in optional {
            let racer = Arc::clone(&leg.racer);
            tokio::select! {
                biased;
                ended = leg.end() => if let Ended::Stored(path) = ended {
                    self.stored.push((racer, path));
                },
                () = racer.gone.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Where the object is complete.
    pub(crate) fn stored(&self) -> &[(Arc<Racer>, Path)] {
        &self.stored
    }

    /// Stops sending and discards what was sent of an unfinished object.
    pub(crate) async fn abort(&mut self) -> Result<()> {
        self.stop.cancel();
        let mut first = None;
        for leg in self.legs.iter_mut().filter(|leg| !leg.racer.is_out()) {
            if let Ended::Stopped(Some(error)) = leg.end().await {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Drop for FanOut {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Leg {
    /// How it ended; once.
    async fn end(&mut self) -> Ended {
        match self.ended.as_mut() {
            Some(ended) => {
                let end = ended.await;
                self.ended = None;
                end.unwrap_or_else(|_| Ended::Stopped(Some(Error::internal(Stage::Upload, "an upload panicked"))))
            }
            None => Ended::Stopped(None),
        }
    }
}

/// Sends into one repository until it is done, fails or is told to stop.
async fn run(
    mut upload: ObjectUpload,
    mut queue: mpsc::UnboundedReceiver<Message>,
    race: &Race,
    racer: &Racer,
    stop: &CancellationToken,
    abort_deadline: Duration,
) -> Ended {
    let sent = tokio::select! {
        biased;
        () = racer.gone.cancelled() => None,
        () = stop.cancelled() => None,
        sent = send(&mut upload, &mut queue) => Some(sent),
    };
    // What waits here is memory that others wait for.
    drop(queue);
    let failure = match sent {
        Some(Ok(true)) => return Ended::Stored(upload.location().clone()),
        Some(Ok(false)) | None => None,
        Some(Err(error)) => Some(error),
    };
    // Others go on, and need the memory, unless all are told to stop.
    let aborted = match stop.is_cancelled() && !racer.is_out() {
        true => upload.abort(abort_deadline).await,
        false => upload.abort_soon(abort_deadline).await,
    };
    match (failure, aborted) {
        (Some(error), Ok(())) => race.failed(racer, error),
        (Some(error), Err(cleanup)) => race.failed(racer, error.with_cleanup(cleanup)),
        (None, aborted) => return Ended::Stopped(aborted.err()),
    }
    Ended::Failed
}

/// Whether the object is complete; not when its owner went away.
async fn send(upload: &mut ObjectUpload, queue: &mut mpsc::UnboundedReceiver<Message>) -> Result<bool> {
    loop {
        match queue.recv().await {
            Some(Message::Part(part)) => upload.push(part).await?,
            Some(Message::Last(part, _held)) => return upload.finish(part).await.map(|()| true),
            None => return Ok(false),
        }
    }
}
