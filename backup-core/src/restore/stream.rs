//! One stream of a backup on its way from the volumes to the sink.
//!
//! ```text
//! fetch: volume ends ─▶ spans of records, read ahead ─▶ open: compute pool, in order ─▶ deliver: sink
//!        └─ waits for chunk slots before it reads more
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::path::Path;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::sink::Sink;
use super::volume::{Expected, OpenVolume, Stored};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Header, Manifest, ObjectName, Place, StreamEntry};
use crate::pipeline::{Buffer, BufferPool, ComputePool, Counters, Limits, Pending, RestorePlan};
use crate::repository::Repository;
use crate::repository::layout::BackupPath;

/// What is needed to read the streams of one backup.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) repository: Repository,
    pub(super) path: BackupPath,
    pub(super) manifest: Manifest,
    pub(super) data_key: DataKey,
}

/// One run of restoring one stream.
pub(super) struct StreamRestore {
    pub(super) context: Arc<Context>,
    pub(super) entry: StreamEntry,
    /// Which bytes of the stream are wanted: in its order, and none twice.
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) limits: Limits,
    pub(super) pool: Option<ComputePool>,
    pub(super) counters: Arc<Counters>,
    pub(super) cancel: CancellationToken,
    /// With whom it shares memory and threads.
    pub(super) share: Option<Arc<Share>>,
}

/// Memory and threads for several streams that are restored at once.
///
/// Slots are taken for a whole span at a time, and whoever has them goes on without more: so nobody waits in a circle.
#[derive(Debug)]
pub(super) struct Share {
    limits: Limits,
    pool: Option<ComputePool>,
    /// Made for the first stream's size of chunks, with that size.
    machine: Mutex<Option<(u32, Machine)>>,
}

impl Share {
    pub(super) fn new(limits: Limits, pool: Option<ComputePool>) -> Self {
        Self { limits, pool, machine: Mutex::default() }
    }

    fn machine(&self, chunk_size: u32) -> Result<Machine> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        match &*machine {
            Some((size, machine)) if *size == chunk_size => Ok(machine.clone()),
            // Backups are cut in one way; should one not be, its other streams do not share.
            Some(_) => Machine::new(&self.limits, self.pool.clone(), chunk_size),
            None => {
                let made = Machine::new(&self.limits, self.pool.clone(), chunk_size)?;
                *machine = Some((chunk_size, made.clone()));
                Ok(made)
            }
        }
    }
}

/// What the stages that follow the first volume's header share.
#[derive(Debug, Clone)]
struct Machine {
    plan: RestorePlan,
    pool: ComputePool,
    buffers: BufferPool,
    slots: Arc<Semaphore>,
}

impl Machine {
    fn new(limits: &Limits, pool: Option<ComputePool>, chunk_size: u32) -> Result<Self> {
        let plan = limits.for_restore(chunk_size)?;
        let workers = std::num::NonZero::new(plan.workers).unwrap_or(std::num::NonZero::<usize>::MIN);
        Ok(Self {
            plan,
            pool: pool.map_or_else(|| ComputePool::new(workers), Ok)?,
            buffers: BufferPool::new(chunk_size as usize),
            slots: Arc::new(Semaphore::new(plan.chunk_slots)),
        })
    }
}

/// Records that are being read, and what is to be done with each.
struct Span {
    volume: Arc<OpenVolume>,
    places: Vec<Place>,
    /// Which part of each chunk's plaintext is wanted.
    wanted: Vec<Range<usize>>,
    permits: VecDeque<OwnedSemaphorePermit>,
    records: AbortOnDropHandle<Result<Vec<Buffer>>>,
}

/// Plaintext on its way to the sink, with the memory it was admitted to.
struct Plain {
    buffer: Buffer,
    wanted: Range<usize>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.filled()[self.wanted.clone()]
    }
}

impl StreamRestore {
    /// Restores into `sink` and finishes it; on any failure aborts it.
    pub(super) async fn run(self, mut sink: Box<dyn Sink>) -> Result<u64> {
        let restored = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled(Stage::Fetch)),
            restored = self.transfer(sink.as_mut()) => restored,
        };
        // Finishing can take hours: it is when a database makes its indexes.
        let finished = match restored {
            Ok(bytes) => tokio::select! {
                biased;
                finished = sink.finish() => finished.map(|()| bytes),
                () = self.cancel.cancelled() => Err(Error::cancelled(Stage::Sink)),
            },
            failed => failed,
        };
        match finished {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(match sink.abort().await {
                Ok(()) => error,
                Err(cleanup) => error.with_cleanup(cleanup),
            }),
        }
    }

    async fn transfer(&self, sink: &mut dyn Sink) -> Result<u64> {
        // The first volume says how the stream was cut.
        let first = self.open_volume(0, None).await?;
        self.check_volumes(&first.header)?;
        let machine = match &self.share {
            Some(share) => share.machine(first.header.chunk_size)?,
            None => Machine::new(&self.limits, self.pool.clone(), first.header.chunk_size)?,
        };
        let (spans_in, spans_out) = mpsc::channel(machine.plan.chunk_slots);
        let (plain_in, plain_out) = mpsc::channel(machine.plan.chunk_slots);
        let ((), (), delivered) = tokio::try_join!(
            self.fetch(&machine, first, spans_in),
            self.open(&machine, spans_out, plain_in),
            self.deliver(plain_out, sink),
        )?;
        let wanted: u64 = self.ranges.iter().map(|range| range.end - range.start).sum();
        if delivered != wanted {
            let message = format!("stream '{}' has {delivered} bytes and should have {wanted}", self.entry.name);
            return Err(Error::integrity(message));
        }
        Ok(delivered)
    }

    /// There are as many volumes as the stream's bytes take, so that all of them are read when all bytes are.
    fn check_volumes(&self, header: &Header) -> Result<()> {
        let (has, bytes) = (self.entry.volumes.len() as u64, self.entry.bytes);
        let should = bytes.div_ceil(header.volume_bytes()).max(1);
        if has == should {
            return Ok(());
        }
        let manifest = self.context.path.manifest();
        let problem = format!("{manifest} has {has} volumes for the {bytes} bytes of stream '{}'", self.entry.name);
        Err(Error::integrity(format!("{problem} and should have {should} (offset 0)")).at(Stage::Fetch))
    }

    async fn open_volume(&self, index: usize, first: Option<&Header>) -> Result<OpenVolume> {
        let context = &self.context;
        let entry = self.entry.volumes.get(index).ok_or_else(|| {
            Error::integrity(format!("the manifest of {} has no volume {index} of '{}'", context.path, self.entry.name))
        })?;
        let stored = Stored::listed(context.repository.clone(), context.path.named(&entry.path), entry.clone());
        let expected = Expected {
            name: ObjectName::Backup {
                target: context.path.target.to_string(),
                backup: context.path.id.to_string(),
                stream: self.entry.name.clone(),
            },
            stream_id: &self.entry.stream_id,
            data_key_id: &context.manifest.data_key,
            volume: u32::try_from(index).unwrap_or(u32::MAX),
            last: index + 1 == self.entry.volumes.len(),
            first,
        };
        let volume = stored.open(&expected, &context.data_key).await?;
        let volume_bytes = volume.header.volume_bytes();
        let should = self.entry.bytes.saturating_sub(index as u64 * volume_bytes).min(volume_bytes);
        let has: u64 = volume.places.iter().map(|place| place.plain_len as u64).sum();
        if has != should {
            let problem =
                format!("{} holds {has} bytes of its stream and should hold {should}", volume.stored.address());
            return Err(Error::integrity(format!("{problem} (offset 0)")).at(Stage::Fetch));
        }
        Ok(volume)
    }

    /// Everything that is damaged: volumes that do not open, and in those that do the chunks.
    pub(super) async fn damage(&self) -> Result<Vec<(Path, String)>> {
        let mut found = Vec::new();
        let mut first: Option<Header> = None;
        let mut machine: Option<Machine> = None;
        for index in 0..self.entry.volumes.len() {
            if self.cancel.is_cancelled() {
                return Err(Error::cancelled(Stage::Fetch));
            }
            let volume = match self.open_volume(index, first.as_ref()).await {
                Ok(volume) => Arc::new(volume),
                Err(e) if e.kind() == ErrorKind::Integrity => {
                    found.push((self.context.path.named(&self.entry.volumes[index].path), e.in_one_line()));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let machine = match &machine {
                Some(machine) => machine.clone(),
                None => {
                    let made = Machine::new(&self.limits, self.pool.clone(), volume.header.chunk_size)?;
                    machine.insert(made).clone()
                }
            };
            first.get_or_insert_with(|| volume.header.clone());
            found.extend(damaged_chunks(&machine, &volume).await?);
        }
        Ok(found)
    }

    /// Reads records ahead, as far as there are slots for them. Each volume is opened once, if anything of it is wanted.
    async fn fetch(&self, machine: &Machine, first: OpenVolume, spans: mpsc::Sender<Span>) -> Result<()> {
        let header = first.header.clone();
        let volume_bytes = header.volume_bytes();
        let mut first = Some(first);
        for index in 0..self.entry.volumes.len() {
            let begins = index as u64 * volume_bytes;
            let ends = begins.saturating_add(volume_bytes);
            let from = self.ranges.partition_point(|range| range.end <= begins);
            let wanted: Vec<_> = self.ranges[from..].iter().take_while(|range| range.start < ends).collect();
            if wanted.is_empty() {
                continue;
            }
            let volume = match first.take().filter(|_| index == 0) {
                Some(volume) => volume,
                None => self.open_volume(index, Some(&header)).await?,
            };
            let volume = Arc::new(volume);
            for range in wanted {
                if !self.fetch_range(machine, &volume, begins, range, &spans).await? {
                    // The next stage failed, and its error is the one to tell.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads what of `range` lies in a volume that begins at `begins` of the stream.
    async fn fetch_range(
        &self,
        machine: &Machine,
        volume: &Arc<OpenVolume>,
        begins: u64,
        range: &Range<u64>,
        spans: &mpsc::Sender<Span>,
    ) -> Result<bool> {
        let chunk_size = u64::from(volume.header.chunk_size);
        let wanted = |place: &Place| {
            let at = begins + place.counter * chunk_size;
            let clip = |x: u64| usize::try_from(x.saturating_sub(at)).unwrap_or(usize::MAX).min(place.plain_len);
            clip(range.start)..clip(range.end)
        };
        // The wanted chunks stand together.
        let from = volume
            .places
            .partition_point(|place| wanted(place).is_empty() && begins + place.counter * chunk_size < range.start);
        let len = volume.places[from..].partition_point(|place| !wanted(place).is_empty());
        for places in volume.places[from..from + len].chunks(machine.plan.span_chunks) {
            let count = u32::try_from(places.len()).unwrap_or(u32::MAX);
            let permit = self.counters.at_end(Arc::clone(&machine.slots).acquire_many_owned(count)).await;
            let mut permit = permit.map_err(|_| Error::internal(Stage::Fetch, "the slots were closed"))?;
            let permits = std::iter::from_fn(|| permit.split(1)).collect();
            let (stored, buffers, of) = (volume.stored.clone(), machine.buffers.clone(), places.to_vec());
            let records = tokio::spawn(async move { stored.records(&of, &buffers).await });
            let span = Span {
                volume: Arc::clone(volume),
                places: places.to_vec(),
                wanted: places.iter().map(wanted).collect(),
                permits,
                records: AbortOnDropHandle::new(records),
            };
            if spans.send(span).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands records to the compute pool, in the stream's order.
    async fn open(
        &self,
        machine: &Machine,
        mut spans: mpsc::Receiver<Span>,
        plain: mpsc::Sender<Pending<Result<Plain>>>,
    ) -> Result<()> {
        while let Some(mut span) = spans.recv().await {
            let records = self.counters.at_store(&mut span.records).await;
            let records =
                records.map_err(|e| Error::internal(Stage::Fetch, "a fetching task panicked").with_source(e))??;
            for ((record, place), wanted) in records.into_iter().zip(&span.places).zip(span.wanted) {
                let Some(permit) = span.permits.pop_front() else { break };
                self.counters.add_transferred(place.record_len());
                let (volume, buffers, place) = (Arc::clone(&span.volume), machine.buffers.clone(), *place);
                let job = machine.pool.run(move |workspace| {
                    let buffer = volume.open_chunk(place, record, &buffers, workspace)?;
                    Ok(Plain { buffer, wanted, _permit: permit })
                });
                if plain.send(job).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn deliver(&self, mut plain: mpsc::Receiver<Pending<Result<Plain>>>, sink: &mut dyn Sink) -> Result<u64> {
        let mut delivered = 0;
        while let Some(job) = plain.recv().await {
            let data = Bytes::from_owner(job.wait().await??);
            delivered += data.len() as u64;
            self.counters.add_plain(data.len());
            sink.write(data).await?;
        }
        Ok(delivered)
    }
}

/// The most chunks of one volume that are named.
const DAMAGED_CHUNKS_MAX: usize = 100;

/// What is wrong with the chunks of a volume.
async fn damaged_chunks(machine: &Machine, volume: &Arc<OpenVolume>) -> Result<Vec<(Path, String)>> {
    let (mut found, mut more) = (Vec::new(), 0u64);
    let mut tell = |error: Error| {
        if found.len() < DAMAGED_CHUNKS_MAX {
            found.push((volume.stored.path.clone(), error.in_one_line()));
        } else {
            more += 1;
        }
    };
    for places in volume.places.chunks(machine.plan.span_chunks) {
        let records = match volume.stored.records(places, &machine.buffers).await {
            Ok(records) => records,
            Err(e) if e.kind() == ErrorKind::Integrity => {
                tell(e);
                break;
            }
            Err(e) => return Err(e),
        };
        let open = |(place, record): (&Place, Buffer)| {
            let (volume, buffers, place) = (Arc::clone(volume), machine.buffers.clone(), *place);
            machine.pool.run(move |workspace| volume.open_chunk(place, record, &buffers, workspace).map(drop))
        };
        let jobs: Vec<_> = places.iter().zip(records).map(open).collect();
        for job in jobs {
            match job.wait().await? {
                Err(e) if e.kind() == ErrorKind::Integrity => tell(e),
                done => done?,
            }
        }
    }
    if more > 0 {
        found.push((volume.stored.path.clone(), format!("and {more} more chunks")));
    }
    Ok(found)
}
