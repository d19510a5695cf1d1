//! How much memory, and from that how much at once: one figure in, all others derived.

use std::num::NonZero;

use crate::compress::Compression;
use crate::error::{Error, Result};
use crate::format::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Codec, VOLUME_CHUNKS_MAX};

/// Bytes of plaintext in a chunk, unless asked otherwise.
pub const CHUNK_SIZE_DEFAULT: u32 = 1024 * 1024;
/// Data chunks in a volume, unless asked otherwise: 64 GiB of plaintext, which is at most 8,193 parts of 8 MiB.
pub const VOLUME_CHUNKS_DEFAULT: u32 = 65_536;
/// The most parts that S3 and its relatives accept for one object.
const PARTS_MAX: u64 = 10_000;
/// Where parts are counted they must have 5 MiB or more; local directories take smaller ones, and any number.
const PART_BYTES_COUNTED: usize = 5 << 20;
/// More threads than any machine gains from.
const WORKERS_MAX: usize = 256;
/// Chunks that a lane may have read before a worker is free for them, where there is memory for it: workers do not wait for a source that
/// pauses.
const SLOTS_AHEAD: usize = 1;
/// More threads than this gain nothing while one stream is read.
const WORKERS_DEFAULT_MAX: usize = 4;

/// What a backup or a restore may use.
///
/// `memory_bytes` bounds the buffers and the codecs' contexts. The process itself, its TLS connections and the allocator's slack come on
/// top: 10 to 20 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for buffers and codecs in bytes. `None` is 16 MiB and six parts, or what the workers need at a high level of compression.
    pub memory_bytes: Option<usize>,
    /// The most compute threads; fewer are used where memory does not suffice for so many.
    pub workers: NonZero<usize>,
    /// Size of the parts of an upload in bytes.
    pub part_bytes: usize,
    /// Bytes of plaintext in a chunk.
    pub chunk_size: u32,
    /// Data chunks in a volume.
    pub volume_chunks: u32,
}

impl Limits {
    /// What suits a repository whose parts are of `part_bytes`; up to level 3, one stream of parts of 1 MiB then takes 22 MiB, of parts of
    /// 8 MiB 64 MiB.
    pub fn for_parts_of(part_bytes: usize) -> Self {
        // Volumes shrink where the largest that the store can hold is smaller.
        let held = (PARTS_MAX - 1) * part_bytes as u64 / (u64::from(CHUNK_SIZE_DEFAULT) + 128);
        let counted = part_bytes >= PART_BYTES_COUNTED;
        let fitting = if counted { u32::try_from(held).unwrap_or(u32::MAX) } else { VOLUME_CHUNKS_DEFAULT };
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            memory_bytes: None,
            workers: NonZero::new(cores.min(WORKERS_DEFAULT_MAX)).unwrap_or(NonZero::<usize>::MIN),
            part_bytes,
            chunk_size: CHUNK_SIZE_DEFAULT,
            volume_chunks: VOLUME_CHUNKS_DEFAULT.min(fitting),
        }
    }

    /// Refuses values that the format or the stores cannot hold.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::config(what));
        if !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&self.chunk_size) {
            return refuse(format!(
                "a chunk size of {} is not between {CHUNK_SIZE_MIN} and {CHUNK_SIZE_MAX} bytes",
                self.chunk_size
            ));
        }
        if !(1..=VOLUME_CHUNKS_MAX).contains(&self.volume_chunks) {
            return refuse(format!(
                "{} chunks in a volume is not between 1 and {VOLUME_CHUNKS_MAX}",
                self.volume_chunks
            ));
        }
        if self.workers.get() > WORKERS_MAX {
            return refuse(format!("{} workers are more than {WORKERS_MAX}", self.workers));
        }
        let volume_max = u64::from(self.volume_chunks) * (u64::from(self.chunk_size) + 128);
        if self.part_bytes >= PART_BYTES_COUNTED && volume_max.div_ceil(self.part_bytes.max(1) as u64) >= PARTS_MAX {
            return refuse(format!("a volume would need more than {PARTS_MAX} parts of {} bytes", self.part_bytes));
        }
        Ok(())
    }

    /// Divides the memory among lanes that are written at once.
    ///
    /// Every lane gets a part and what one chunk for each worker needs (a thin one: what one chunk needs), for itself; what is left becomes
    /// parts that any of them may fill. So no stream ever waits for another, whatever they share.
    pub(crate) fn for_backup(&self, compression: Compression, lanes: &[Share]) -> Result<BackupPlan> {
        self.check()?;
        let need = |workers: usize| {
            let lanes = lanes.iter().map(|share| self.lane_bytes(compression, share.workers(workers)));
            workers * compression.context_bytes() + lanes.sum::<usize>()
        };
        let most = self.workers.get();
        let full = lanes.iter().filter(|share| **share == Share::Full).count().max(1);
        let memory = self
            .memory_bytes
            .unwrap_or(self.memory_default().max(need(most) + full * SLOTS_AHEAD * 2 * self.slab_bytes()));
        let Some((workers, left)) = (1..=most).rev().find_map(|w| Some((w, memory.checked_sub(need(w))?))) else {
            return Err(Self::too_little(memory, need(1)));
        };
        let rope = compression.codec() == Codec::None;
        let (ahead_full, ahead_thin, parts_shared) = if rope {
            let each = left / lanes.len().max(1) / self.slab_bytes();
            (each, each, 0)
        } else {
            let each = (left / full / (2 * self.slab_bytes())).min(SLOTS_AHEAD);
            (each, 0, (left - each * full * 2 * self.slab_bytes()) / self.part_bytes)
        };
        let slots = |workers| self.lane_slots(compression, workers);
        Ok(BackupPlan {
            workers,
            slots_full: slots(workers) + ahead_full,
            slots_thin: slots(1) + ahead_thin,
            parts_shared,
            rope,
        })
    }

    /// Chunks of a lane between source and upload, so that `workers` have something to do.
    fn lane_slots(&self, compression: Compression, workers: usize) -> usize {
        match compression.codec() {
            // Sealed where they lie and sent as they are: a part is a list of records.
            Codec::None => self.part_bytes / self.chunk_size as usize + 2 + workers,
            Codec::Zstd => workers + 1,
        }
    }

    /// Memory of such a lane: two buffers are with the source and the cutter.
    fn lane_bytes(&self, compression: Compression, workers: usize) -> usize {
        let slots = self.lane_slots(compression, workers);
        match compression.codec() {
            Codec::None => (slots + 2) * self.slab_bytes(),
            Codec::Zstd => (2 * slots + 2) * self.slab_bytes() + self.part_bytes,
        }
    }

    /// How many chunks a restore may hold at once, on how many threads.
    pub(crate) fn for_restore(&self, chunk_size: u32) -> Result<RestorePlan> {
        self.check()?;
        // A record and its plaintext; decompression contexts are small, since frames are.
        let per_chunk = 2 * (chunk_size as usize + 128);
        let context = 256 * 1024;
        let need = |workers: usize| workers * context + (workers + 1) * per_chunk;
        let memory = self.memory_bytes.unwrap_or(self.memory_default().max(need(self.workers.get())));
        for workers in (1..=self.workers.get()).rev() {
            if memory >= need(workers) {
                let chunk_slots = (memory - workers * context) / per_chunk;
                // Long spans spare requests, and several at once hide their latency.
                let span_chunks = (chunk_slots / 4).clamp(1, (8 << 20) / chunk_size as usize);
                return Ok(RestorePlan { workers, chunk_slots, span_chunks });
            }
        }
        Err(Self::too_little(memory, need(1)))
    }

    fn memory_default(&self) -> usize {
        (16 << 20) + 6 * self.part_bytes
    }

    fn slab_bytes(&self) -> usize {
        self.chunk_size as usize + 128
    }

    fn too_little(memory: usize, least: usize) -> Error {
        const MIB: usize = 1 << 20;
        let least = least.div_ceil(MIB);
        if memory < MIB {
            // Most likely a number that should have had a unit.
            return Error::config(format!("{memory} bytes of memory are too little for this"))
                .with_hint(format!("a size without a unit is in bytes; the least that would do is {least}MiB"));
        }
        Error::config(format!("{} MiB of memory are too little for this", memory / MIB))
            .with_hint(format!("the least that would do is {least} MiB; or lower the compression level"))
    }
}

/// How much of the memory, and so of the threads, a lane gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Share {
    /// Enough to keep all workers busy: for the data.
    Full,
    /// Enough for one chunk after the other: for streams that are small, or come slowly.
    Thin,
}

impl Share {
    fn workers(self, workers: usize) -> usize {
        match self {
            Self::Full => workers,
            Self::Thin => 1,
        }
    }
}

/// What [`Limits::for_backup`] found to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BackupPlan {
    pub(crate) workers: usize,
    slots_full: usize,
    slots_thin: usize,
    /// Parts beyond the one that each lane has for itself.
    pub(crate) parts_shared: usize,
    /// Whether parts are lists of records rather than copies of them.
    pub(crate) rope: bool,
}

impl BackupPlan {
    /// Chunks of one lane between source and upload.
    pub(crate) fn chunk_slots(&self, share: Share) -> usize {
        match share {
            Share::Full => self.slots_full,
            Share::Thin => self.slots_thin,
        }
    }
}

/// What [`Limits::for_restore`] found to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestorePlan {
    pub(crate) workers: usize,
    pub(crate) chunk_slots: usize,
    /// Chunks read with one request.
    pub(crate) span_chunks: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(memory_mib: usize, workers: usize, part_mib: usize) -> Limits {
        Limits {
            memory_bytes: Some(memory_mib << 20),
            workers: NonZero::new(workers).unwrap(),
            ..Limits::for_parts_of(part_mib << 20)
        }
    }

    #[test]
    fn thirty_two_mebibytes_work_everywhere() {
        for part in [1, 8] {
            for compression in [Compression::None, Compression::Zstd(3), Compression::Zstd(-7)] {
                for lanes in [&[Share::Full][..], &[Share::Full; 2], &[Share::Full, Share::Thin]] {
                    let plan = limits(32, 4, part).for_backup(compression, lanes);
                    assert!(plan.is_ok(), "{part} MiB, {compression:?}, {lanes:?}: {plan:?}");
                }
            }
        }
        limits(32, 4, 8).for_restore(CHUNK_SIZE_MAX).unwrap();
    }

    #[test]
    fn workers_give_way_before_the_request_is_refused() {
        assert_eq!(limits(64, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap().workers, 4);
        assert!(limits(48, 4, 8).for_backup(Compression::Zstd(19), &[Share::Full]).unwrap().workers < 4);
        let error = limits(8, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap_err();
        assert_eq!(error.hint(), Some("the least that would do is 16 MiB; or lower the compression level"));
        limits(16, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap();
    }

    #[test]
    fn every_level_works_with_all_workers_unless_told_otherwise() {
        for (level, lanes) in [(-7, 1), (3, 2), (9, 2), (19, 2)] {
            let limits = Limits { memory_bytes: None, ..limits(1, 4, 1) };
            let lanes = vec![Share::Full; lanes];
            assert_eq!(limits.for_backup(Compression::Zstd(level), &lanes).unwrap().workers, 4);
        }
    }

    #[test]
    fn volumes_fit_the_part_limit_of_every_store() {
        for part_bytes in [1, 1 << 20, PART_BYTES_COUNTED - 1, PART_BYTES_COUNTED, 6_000_000, 8 << 20, 1 << 30] {
            let limits = Limits::for_parts_of(part_bytes);
            limits.check().unwrap();
            let less = (PART_BYTES_COUNTED..8 << 20).contains(&part_bytes);
            assert_eq!(limits.volume_chunks < VOLUME_CHUNKS_DEFAULT, less, "{part_bytes}");
        }
        assert!(Limits { chunk_size: 2 << 20, ..Limits::for_parts_of(8 << 20) }.check().is_err());
        assert!(limits(64, usize::MAX, 8).for_backup(Compression::None, &[Share::Full]).is_err());
        assert!(Limits { chunk_size: 1000, ..Limits::for_parts_of(8 << 20) }.check().is_err());
    }
}
