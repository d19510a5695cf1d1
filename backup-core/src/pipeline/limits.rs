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
/// Chunks that are cut instead of larger ones where the memory is too little. The last is for need: in 256 KiB zstd finds less, at level 3.
const CHUNK_SIZES_SMALL: [u32; 3] = [512 << 10, 384 << 10, 256 << 10];
/// More threads than any machine gains from.
const WORKERS_MAX: usize = 256;
/// Chunks that a lane may have read before a worker is free for them, where there is memory for it: workers do not wait for a source that pauses.
const SLOTS_AHEAD: usize = 1;
/// The same of the only lane of a backup into a directory: there a server on this host, the reader and the workers want the same processors at once, and no
/// upload has a use for that memory.
const SLOTS_AHEAD_ALONE: usize = 4;
/// More threads than this gain nothing while one stream is read.
const WORKERS_DEFAULT_MAX: usize = 4;

/// What a backup or a restore may use.
///
/// `memory_bytes` bounds the buffers and the codecs' contexts. The process itself, its TLS connections and the allocator's slack come on
/// top: 10 to 20 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory for buffers and codecs in bytes. `None` is 16 MiB and six parts, or what the workers of all lanes need, if that is more.
    pub memory_bytes: Option<usize>,
    /// The most compute threads; fewer are used where memory does not suffice for so many.
    pub workers: NonZero<usize>,
    /// Size of the parts of an upload in bytes; smaller where memory does not suffice for these, even with one thread.
    pub part_bytes: usize,
    /// Bytes of plaintext in a chunk; fewer where memory does not suffice even so.
    pub chunk_size: u32,
    /// Data chunks in a volume; fewer where smaller parts make that too many parts.
    pub volume_chunks: u32,
}

impl Limits {
    /// What suits a repository whose parts are of `part_bytes`; up to level 3, one stream of parts of 1 MiB then takes 22 MiB (27 with four
    /// workers), of parts of 8 MiB 64 MiB.
    pub fn for_parts_of(part_bytes: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            memory_bytes: None,
            workers: NonZero::new(cores.min(WORKERS_DEFAULT_MAX)).unwrap_or(NonZero::<usize>::MIN),
            part_bytes,
            chunk_size: CHUNK_SIZE_DEFAULT,
            volume_chunks: VOLUME_CHUNKS_DEFAULT,
        }
        .with_volumes_that_fit()
    }

    /// Volumes shrink where the largest that the store can hold is smaller.
    fn with_volumes_that_fit(self) -> Self {
        let held = (PARTS_MAX - 1) * self.part_bytes as u64 / (u64::from(self.chunk_size) + 128);
        let counted = self.part_bytes >= PART_BYTES_COUNTED;
        let fitting = if counted { u32::try_from(held).unwrap_or(u32::MAX) } else { self.volume_chunks };
        Self { volume_chunks: self.volume_chunks.min(fitting), ..self }
    }

    /// These, and then with smaller parts and smaller chunks, for as long as the memory is too little.
    fn smaller_and_smaller(self) -> impl Iterator<Item = Self> {
        let part_bytes = self.part_bytes.min(PART_BYTES_COUNTED);
        let parts = (part_bytes < self.part_bytes).then_some(self.chunk_size);
        let chunks = CHUNK_SIZES_SMALL.into_iter().filter(move |size| *size < self.chunk_size);
        let smaller = parts.into_iter().chain(chunks);
        let smaller = smaller.map(move |chunk_size| Self { part_bytes, chunk_size, ..self }.with_volumes_that_fit());
        std::iter::once(self).chain(smaller)
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
    /// parts that any of them may fill. So no stream ever waits for another, whatever they share. Where that is too much for the memory, there are
    /// fewer workers, and then smaller parts and chunks.
    pub(crate) fn for_backup(&self, compression: Compression, lanes: &[Share]) -> Result<BackupPlan> {
        self.check()?;
        let full = lanes.iter().filter(|share| **share == Share::Full).count().max(1);
        let most =
            self.need(compression, lanes, self.workers.get()) + full * self.slots_ahead(full) * 2 * self.slab_bytes();
        let memory = self.memory_bytes.unwrap_or(self.memory_default().max(most));
        let divided = self.smaller_and_smaller().find_map(|limits| limits.divide(memory, compression, lanes));
        divided.ok_or_else(|| {
            let least = self.smaller_and_smaller().map(|limits| limits.need(compression, lanes, 1)).min();
            Self::too_little(memory, least.unwrap_or_default())
        })
    }

    /// The same with parts and chunks of just these sizes; `None` where the memory is too little for one worker.
    fn divide(self, memory: usize, compression: Compression, lanes: &[Share]) -> Option<BackupPlan> {
        let fits = |workers| Some((workers, memory.checked_sub(self.need(compression, lanes, workers))?));
        let (workers, left) = (1..=self.workers.get()).rev().find_map(fits)?;
        let full = lanes.iter().filter(|share| **share == Share::Full).count().max(1);
        let rope = compression.codec() == Codec::None;
        let (ahead_full, ahead_thin, parts_shared) = if rope {
            let each = left / lanes.len().max(1) / self.slab_bytes();
            (each, each, 0)
        } else {
            let each = (left / full / (2 * self.slab_bytes())).min(self.slots_ahead(full));
            (each, 0, (left - each * full * 2 * self.slab_bytes()) / self.part_bytes)
        };
        let slots = |workers| self.lane_slots(compression, workers);
        Some(BackupPlan {
            limits: self,
            workers,
            slots_full: slots(workers) + ahead_full,
            slots_thin: slots(1) + ahead_thin,
            parts_shared,
            rope,
        })
    }

    /// What so many workers cannot do without.
    fn need(&self, compression: Compression, lanes: &[Share], workers: usize) -> usize {
        let lanes = lanes.iter().map(|share| self.lane_bytes(compression, share.workers(workers)));
        workers * compression.context_bytes() + lanes.sum::<usize>()
    }

    /// Chunks of a lane between source and upload, so that `workers` have something to do.
    fn lane_slots(&self, compression: Compression, workers: usize) -> usize {
        match compression.codec() {
            // Sealed where they lie and sent as they are: a part is a list of records.
            Codec::None => self.part_bytes / self.chunk_size as usize + 2 + workers,
            Codec::Zstd => workers + 1,
        }
    }

    /// Chunks that each of so many full lanes may have read ahead.
    fn slots_ahead(&self, lanes: usize) -> usize {
        if lanes == 1 && self.part_bytes < PART_BYTES_COUNTED { SLOTS_AHEAD_ALONE } else { SLOTS_AHEAD }
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

    /// Memory for whoever only moves bytes.
    pub(crate) fn memory(&self) -> usize {
        self.memory_bytes.unwrap_or(self.memory_default())
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
    /// With the sizes that the memory is enough for.
    pub(crate) limits: Limits,
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

    /// A base backup's, by either method: files, and slowly their index, PostgreSQL's manifest, the log.
    const BASE_BACKUP: [Share; 4] = [Share::Full, Share::Thin, Share::Thin, Share::Thin];

    #[test]
    fn thirty_two_mebibytes_work_everywhere() {
        for part in [1, 5, 8, 16] {
            for compression in [Compression::None, Compression::Zstd(3), Compression::Zstd(-7)] {
                for lanes in [&[Share::Full][..], &[Share::Full; 2], &[Share::Full, Share::Thin], &BASE_BACKUP] {
                    let plan = limits(32, 4, part).for_backup(compression, lanes);
                    let plan = plan.unwrap_or_else(|e| panic!("{part} MiB, {compression:?}, {lanes:?}: {e}"));
                    plan.limits.check().unwrap();
                }
            }
        }
        limits(32, 4, 8).for_restore(CHUNK_SIZE_MAX).unwrap();
    }

    #[test]
    fn parts_and_chunks_shrink_only_where_even_one_worker_is_too_much() {
        let sizes = |memory_mib, lanes: &[Share]| {
            let plan = limits(memory_mib, 4, 8).for_backup(Compression::Zstd(3), lanes).unwrap();
            (plan.limits.part_bytes >> 20, plan.limits.chunk_size >> 10)
        };
        assert_eq!(sizes(58, &BASE_BACKUP), (8, 1024));
        assert_eq!(sizes(56, &BASE_BACKUP), (5, 1024));
        assert_eq!(sizes(40, &BASE_BACKUP), (5, 512));
        assert_eq!(sizes(32, &BASE_BACKUP), (5, 384));
        assert_eq!(sizes(29, &BASE_BACKUP), (5, 256));
        let error = limits(26, 4, 8).for_backup(Compression::Zstd(3), &BASE_BACKUP).unwrap_err();
        assert_eq!(error.hint(), Some("the least that would do is 28 MiB; or lower the compression level"));
        limits(28, 4, 8).for_backup(Compression::Zstd(3), &BASE_BACKUP).unwrap();
    }

    #[test]
    fn only_a_lane_alone_into_a_directory_reads_far_ahead() {
        let ahead = |part_mib, lanes: &[Share]| {
            let limits = Limits { memory_bytes: None, ..limits(0, 2, part_mib) };
            let plan = limits.for_backup(Compression::Zstd(3), lanes).unwrap();
            plan.chunk_slots(Share::Full) - limits.lane_slots(Compression::Zstd(3), 2)
        };
        assert_eq!(ahead(1, &[Share::Full]), 4);
        assert_eq!(ahead(1, &BASE_BACKUP), 4);
        assert_eq!(ahead(1, &[Share::Full; 2]), 1);
        assert_eq!(ahead(8, &[Share::Full]), 1);
    }

    #[test]
    fn workers_give_way_before_the_request_is_refused() {
        assert_eq!(limits(64, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap().workers, 4);
        assert!(limits(48, 4, 8).for_backup(Compression::Zstd(19), &[Share::Full]).unwrap().workers < 4);
        let error = limits(8, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap_err();
        assert_eq!(error.hint(), Some("the least that would do is 9 MiB; or lower the compression level"));
        limits(9, 4, 8).for_backup(Compression::Zstd(3), &[Share::Full]).unwrap();
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
