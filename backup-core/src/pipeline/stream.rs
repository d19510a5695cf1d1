//! One stream of a backup on its way from the source to the volumes.
//!
//! ```text
//! read: source ─▶ cut ─▶ compute pool: compress, seal      ─▶ queue, in order ─▶ assemble: volume ─▶ parts ─▶ upload tasks
//!       └─ waits for a chunk slot before it reads more                          └─ waits for a part before it fills one
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::buffer::BufferPool;
use super::compute::{ComputePool, Pending};
use super::lane::name_taken;
use super::limits::{BackupPlan, Share};
use super::{Counters, Event, Limits, Observer};
use crate::chunk::{Chunk, Cutter, RECORD_HEAD};
use crate::clock::Clock;
use crate::compress::{Compression, Content};
use crate::encrypt::signature::SigningKey;
use crate::encrypt::{DataKey, SALT_LEN, Suite, VolumeKey, random, seal_record};
use crate::error::{Error, Result, Stage};
use crate::format::{Flag, FormatError, Header, ObjectName, Preamble, StreamEntry, VolumeEntry};
use crate::keys::Wrap;
use crate::repository::layout::{BackupPath, StreamName, volume_name};
use crate::source::Source;
use crate::upload::{FanOut, ObjectUpload, PartBudget, Parts, Race, Racer, Record, SharedParts, VolumeWriter};

/// How long giving up an unfinished upload may take.
const ABORT_DEADLINE: Duration = Duration::from_secs(10);

/// What the streams of a backup share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) race: Arc<Race>,
    pub(super) path: BackupPath,
    pub(super) data_key: DataKey,
    pub(super) wraps: Vec<Wrap>,
    pub(super) signing_key: Option<SigningKey>,
    pub(super) suite: Suite,
    pub(super) compression: Compression,
    pub(super) content: Content,
    pub(super) limits: Limits,
    pub(super) plan: BackupPlan,
    pub(super) pool: ComputePool,
    pub(super) buffers: BufferPool,
    pub(super) parts_shared: SharedParts,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    /// Of all streams so far.
    pub(super) names: Mutex<HashSet<StreamName>>,
    /// Cancelled by the user, or by the first stream that fails.
    pub(super) stop: CancellationToken,
}

impl Context {
    /// Takes the name of a stream that begins.
    pub(super) fn claim(&self, name: &StreamName) -> Result<()> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.insert(name.clone()) { Ok(()) } else { Err(name_taken(name)) }
    }

    pub(super) fn tell(&self, event: &Event) {
        if let Some(observer) = &self.observer {
            observer.event(event);
        }
    }
}

/// Why a stream ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// It was told to.
    Stopped,
    /// It failed, and told the others to stop.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What the reader hands to the assembler, in the stream's order.
enum Item {
    Volume(Box<Preamble>, Arc<VolumeKey>),
    Chunk(Pending<Record>),
    End,
}

/// Writes one stream to its end. On error nothing unfinished is left in the store but completed volumes.
pub(super) async fn write_stream(
    context: Arc<Context>,
    name: StreamName,
    source: Box<dyn Source>,
    share: Share,
) -> Result<StreamEntry, Halt> {
    let slots = context.plan.chunk_slots(share);
    let (queue, items) = mpsc::channel(slots + 1);
    let mut reader = Reader::new(&context, &name, queue, slots);
    let mut assembler = Assembler::new(&context, &name);
    let halting = |result: Result<(), Halt>| result.inspect_err(|_| context.stop.cancel());
    let (read, assembled) =
        tokio::join!(async { halting(unless_stopped(&context.stop, reader.read(source)).await) }, async {
            let done = halting(unless_stopped(&context.stop, assembler.assemble(items)).await);
            if done.is_err() { assembler.abort(done).await } else { done }
        },);
    match (read, assembled) {
        (Ok(()), Ok(())) => Ok(StreamEntry {
            name: name.as_str().to_owned(),
            stream_id: reader.stream_id,
            bytes: reader.bytes,
            volumes: assembler.volumes,
        }),
        (Err(Halt::Failed(error)), _) | (_, Err(Halt::Failed(error))) => Err(Halt::Failed(error)),
        _ => Err(Halt::Stopped),
    }
}

pub(super) async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, Halt>>,
) -> Result<T, Halt> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Halt::Stopped),
        done = work => done,
    }
}

/// Reads the source, cuts it, and has the chunks sealed.
struct Reader<'a> {
    context: &'a Arc<Context>,
    name: &'a StreamName,
    queue: mpsc::Sender<Item>,
    slots: Arc<Semaphore>,
    stream_id: String,
    chunks: u64,
    bytes: u64,
    key: Option<Arc<VolumeKey>>,
}

impl<'a> Reader<'a> {
    fn new(context: &'a Arc<Context>, name: &'a StreamName, queue: mpsc::Sender<Item>, slots: usize) -> Self {
        let stream_id = data_encoding::HEXLOWER.encode(&random::bytes::<16>());
        let slots = Arc::new(Semaphore::new(slots));
        Self { context, name, queue, slots, stream_id, chunks: 0, bytes: 0, key: None }
    }

    /// Takes `source` by value: it is dropped, and with it a child process, as soon as reading stops.
    async fn read(&mut self, mut source: Box<dyn Source>) -> Result<(), Halt> {
        let mut cutter = Cutter::new(self.context.buffers.clone());
        let mut slot = self.slot().await?;
        while let Some(piece) = self.context.counters.at_end(source.next(self.context.buffers.lease())).await? {
            cutter.push(piece);
            while let Some(chunk) = cutter.next_chunk() {
                self.submit(chunk, slot).await?;
                slot = self.slot().await?;
            }
        }
        if let Some(chunk) = cutter.finish() {
            self.submit(chunk, slot).await?;
        }
        if self.chunks == 0 {
            self.begin_volume().await?;
        }
        self.send(Item::End).await
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit, Halt> {
        // Parts that are lists of records hold slots until they are sent.
        let _waits = self.context.plan.rope.then(|| self.context.race.wait());
        let slot = Arc::clone(&self.slots).acquire_owned();
        self.context.counters.at_store(slot).await.map_err(|_| Halt::Stopped)
    }

    async fn submit(&mut self, chunk: Chunk, permit: OwnedSemaphorePermit) -> Result<(), Halt> {
        let counter = self.chunks % u64::from(self.context.limits.volume_chunks);
        let key = match &self.key {
            Some(key) if counter > 0 => Arc::clone(key),
            _ => self.begin_volume().await?,
        };
        let len = chunk.as_slice().len();
        self.chunks += 1;
        self.bytes += len as u64;
        self.context.counters.add_plain(len);
        let (compression, content, buffers) =
            (self.context.compression, self.context.content, self.context.buffers.clone());
        let counters = Arc::clone(&self.context.counters);
        let record = self.context.pool.run(move |workspace| {
            let mut chunk = chunk;
            chunk.inspect();
            let plain_len = u32::try_from(len).expect("a chunk is at most 2 MiB");
            let (mut buffer, content_len) = match (compression, chunk) {
                (Compression::Zstd(level), chunk) => {
                    let mut out = buffers.lease();
                    let n = workspace
                        .compressor(level, content)
                        .compress(chunk.as_slice(), &mut out.slab_mut()[RECORD_HEAD..]);
                    (out, n)
                }
                (Compression::None, Chunk::Owned(buffer)) => (buffer, len),
                (Compression::None, Chunk::Shared(bytes)) => {
                    let mut out = buffers.lease();
                    out.fill_from(&bytes);
                    (out, len)
                }
            };
            let record_len = seal_record(&key, counter, Flag::Data, buffer.slab_mut(), content_len);
            buffer.set_len(record_len - RECORD_HEAD);
            counters.add_sealed(record_len);
            let content_len = u32::try_from(content_len).expect("a frame is at most its chunk and 64 bytes");
            Record { buffer, plain_len, content_len, permit }
        });
        self.send(Item::Chunk(record)).await
    }

    async fn begin_volume(&mut self) -> Result<Arc<VolumeKey>, Halt> {
        let context = self.context;
        let volume = u32::try_from(self.chunks / u64::from(context.limits.volume_chunks))
            .map_err(|_| Error::internal(Stage::Upload, "a stream of more than 2^32 volumes"))?;
        let header = Header {
            name: ObjectName::Backup {
                target: context.path.target.as_str().to_owned(),
                backup: context.path.id.as_str().to_owned(),
                stream: self.name.as_str().to_owned(),
            },
            stream_id: self.stream_id.clone(),
            volume,
            created: context.clock.now(),
            suite: context.suite,
            codec: context.compression.codec(),
            chunk_size: context.limits.chunk_size,
            volume_chunks: context.limits.volume_chunks,
            salt: random::bytes::<SALT_LEN>(),
            data_key: context.data_key.id(),
            wraps: context.wraps.clone(),
            plaintext: None,
            critical: Vec::new(),
        };
        let preamble = Preamble::new(header).map_err(header_error)?;
        let key = Arc::new(preamble.key(&context.data_key));
        self.key = Some(Arc::clone(&key));
        self.send(Item::Volume(Box::new(preamble), Arc::clone(&key))).await?;
        Ok(key)
    }

    async fn send(&self, item: Item) -> Result<(), Halt> {
        self.queue.send(item).await.map_err(|_| Halt::Stopped)
    }
}

fn header_error(error: FormatError) -> Error {
    Error::config("the volume header cannot be written")
        .with_source(error)
        .with_hint("too many recipients, or one whose wrapped key is too long")
}

/// Puts sealed chunks into volumes.
struct Assembler<'a> {
    context: &'a Arc<Context>,
    name: &'a StreamName,
    parts: PartBudget,
    volume: Option<VolumeWriter>,
    volumes: Vec<VolumeEntry>,
}

impl<'a> Assembler<'a> {
    fn new(context: &'a Arc<Context>, name: &'a StreamName) -> Self {
        Self { context, name, parts: PartBudget::new(&context.parts_shared), volume: None, volumes: Vec::new() }
    }

    async fn assemble(&mut self, mut items: mpsc::Receiver<Item>) -> Result<(), Halt> {
        loop {
            match items.recv().await {
                Some(Item::Volume(preamble, key)) => {
                    self.finish_volume(Flag::IndexMore).await?;
                    let volume = self.volume.insert(new_volume(
                        self.context,
                        self.name,
                        &self.parts,
                        preamble.header.volume,
                        key,
                    ));
                    volume.begin(&preamble).await?;
                }
                Some(Item::Chunk(record)) => {
                    let record = record.wait().await?;
                    if let Some(volume) = &mut self.volume {
                        volume.append(record).await?;
                    }
                }
                Some(Item::End) => return self.finish_volume(Flag::IndexEnd).await,
                // The reader stopped without the end of the stream.
                None => return Err(Halt::Stopped),
            }
        }
    }

    async fn finish_volume(&mut self, flag: Flag) -> Result<(), Halt> {
        if let Some(volume) = &mut self.volume {
            self.volumes.push(volume.finish(flag).await?);
            self.volume = None;
        }
        Ok(())
    }

    /// Gives up the volume that was being written, within a deadline; what goes wrong is attached to the first cause.
    async fn abort(&mut self, why: Result<(), Halt>) -> Result<(), Halt> {
        let Some(volume) = &mut self.volume else { return why };
        let Err(failure) = volume.abort().await else { return why };
        match why {
            Err(Halt::Failed(error)) => Err(Halt::Failed(error.with_cleanup(failure))),
            other => {
                tracing::warn!(error = %failure, "an unfinished upload may be left in the store");
                other
            }
        }
    }
}

fn new_volume(
    context: &Context,
    name: &StreamName,
    budget: &PartBudget,
    index: u32,
    key: Arc<VolumeKey>,
) -> VolumeWriter {
    let part_bytes = context.limits.part_bytes;
    let parts =
        if context.plan.rope { Parts::of_records(part_bytes) } else { Parts::of_copies(part_bytes, budget.clone()) };
    let path = context.path.volume(name, index);
    let upload = |racer: &Arc<Racer>| {
        // One that does not drop out.
        let mut required = context.race.racers().filter(|racer| racer.is_required());
        let first = required.next().is_some_and(|first| Arc::ptr_eq(first, racer));
        let counters = if first { Arc::clone(&context.counters) } else { Arc::default() };
        Some(ObjectUpload::new(racer.repository.clone(), path.clone(), counters))
    };
    let upload = FanOut::begin(&context.race, ABORT_DEADLINE, upload);
    VolumeWriter::new(volume_name(name, index), context.compression.codec(), key, upload, parts)
        .signed_with(context.signing_key.as_ref())
}
