//! What the targets share: a fixed key, and volumes put together from the public pieces of `backup-core`, byte by byte as `docs/FORMAT.md`
//! has them.

use backup_core::chunk::{Chunk, Cutter, RECORD_HEAD, RECORD_TAIL_MAX};
use backup_core::compress::{Compressor, Content};
use backup_core::encrypt::{DataKey, SALT_LEN, Suite, VolumeKey, seal_record};
use backup_core::format::{CHUNK_SIZE_MIN, Codec, Flag, Footer, Header, ObjectName, Preamble, SeekTable};
use backup_core::pipeline::BufferPool;
use backup_core::source::Piece;

/// Bytes of plaintext in a chunk: the fewest that the format allows.
pub const CHUNK: usize = CHUNK_SIZE_MIN as usize;

/// The key of all volumes here.
pub fn data_key() -> DataKey {
    DataKey::from_bytes([7; 32])
}

/// The head of a volume with that key.
pub fn preamble(codec: Codec) -> Preamble {
    let header = Header {
        name: ObjectName::Backup { target: "app".into(), backup: "b".into(), stream: "data".into() },
        stream_id: "00".repeat(16),
        volume: 0,
        created: jiff::Timestamp::UNIX_EPOCH,
        suite: Suite::Aes256Gcm,
        codec,
        chunk_size: CHUNK_SIZE_MIN,
        volume_chunks: 1 << 20,
        salt: [1; SALT_LEN],
        data_key: data_key().id(),
        wraps: Vec::new(),
        plaintext: None,
        critical: Vec::new(),
    };
    Preamble::new(header).expect("within all bounds")
}

/// A volume under construction, of any content: also such as our writer would never make.
#[derive(Debug)]
pub struct Volume {
    key: VolumeKey,
    object: Vec<u8>,
    records: u64,
}

impl Volume {
    /// Header and commitment.
    pub fn begin(codec: Codec) -> Self {
        let preamble = preamble(codec);
        let key = preamble.key(&data_key());
        let object = [preamble.bytes(), key.commitment()].concat();
        Self { key, object, records: 0 }
    }

    /// The next record, properly sealed.
    pub fn push(&mut self, flag: Flag, content: &[u8]) {
        let mut record = vec![0; RECORD_HEAD + content.len() + RECORD_TAIL_MAX];
        record[RECORD_HEAD..][..content.len()].copy_from_slice(content);
        let len = seal_record(&self.key, self.records, flag, &mut record, content.len());
        self.object.extend_from_slice(&record[..len]);
        self.records += 1;
    }

    /// Index and footer; the object is complete then.
    pub fn finish(mut self, index: &[u8]) -> Vec<u8> {
        let (index_offset, chunks) = (self.object.len() as u64, self.records);
        self.push(Flag::IndexEnd, index);
        let digest = *blake3::hash(&self.object).as_bytes();
        self.object.extend_from_slice(&Footer::unsigned(index_offset, chunks, digest).encode());
        self.object
    }
}

/// Cuts, compresses and seals `pieces` as the pipeline does; without a level, with codec `none`.
pub fn write_volume(pieces: impl IntoIterator<Item = Piece>, pool: &BufferPool, level: Option<i32>) -> Vec<u8> {
    let mut volume = Volume::begin(if level.is_some() { Codec::Zstd } else { Codec::None });
    let mut compressor = level.map(|level| Compressor::new(level, Content::Any));
    let mut index = SeekTable::default();
    let mut frame = vec![0; RECORD_HEAD + CHUNK + RECORD_TAIL_MAX];
    let mut add = |chunk: Chunk| match &mut compressor {
        Some(compressor) => {
            let len = compressor.compress(chunk.as_slice(), &mut frame);
            index.frames.push((len as u32, chunk.as_slice().len() as u32));
            volume.push(Flag::Data, &frame[..len]);
        }
        None => volume.push(Flag::Data, chunk.as_slice()),
    };
    let mut cutter = Cutter::new(pool.clone());
    for piece in pieces {
        cutter.push(piece);
        while let Some(chunk) = cutter.next_chunk() {
            add(chunk);
        }
    }
    if let Some(chunk) = cutter.finish() {
        add(chunk);
    }
    volume.finish(&if level.is_some() { index.encode() } else { Vec::new() })
}

/// What a stream is made of when each of `bytes` stands for one piece: how long, random or not, shared or in a buffer of the pool.
pub fn pieces(bytes: &[u8], pool: &BufferPool) -> (Vec<Piece>, Vec<u8>) {
    let (mut pieces, mut plain) = (Vec::new(), Vec::new());
    for (i, byte) in bytes.iter().enumerate() {
        let len = usize::from(byte >> 2) * 65 + 1;
        let mut piece = vec![*byte; len];
        if byte & 1 != 0 {
            blake3::Hasher::new().update(&i.to_le_bytes()).finalize_xof().fill(&mut piece);
        }
        plain.extend_from_slice(&piece);
        pieces.push(if byte & 2 != 0 {
            let mut buffer = pool.lease();
            assert_eq!(buffer.fill_from(&piece), len);
            Piece::Buffer(buffer)
        } else {
            Piece::Bytes(piece.into())
        });
    }
    (pieces, plain)
}

/// A good volume of three chunks, and what is in it.
pub fn sample(level: Option<i32>) -> (Vec<u8>, Vec<u8>) {
    let pool = BufferPool::new(CHUNK);
    let (pieces, plain) = pieces(&[0xFC, 0x81, 0xFE, 0x21], &pool);
    (write_volume(pieces, &pool, level), plain)
}

/// `object` with something done to it that `how` says: bytes changed, cut out, repeated.
pub fn damaged(object: &[u8], how: &[u8]) -> Vec<u8> {
    let mut damaged = object.to_vec();
    for step in how.chunks_exact(5) {
        let at = usize::from(u16::from_le_bytes([step[1], step[2]])) % damaged.len().max(1);
        let end = (at + usize::from(u16::from_le_bytes([step[3], step[4]]))).min(damaged.len());
        match step[0] % 4 {
            0 => damaged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= step[3]),
            1 => drop(damaged.drain(at..end)),
            2 => damaged.truncate(at),
            _ if damaged.len() < 4 * object.len() => {
                let again = damaged[at..end].to_vec();
                damaged.splice(at..at, again);
            }
            _ => {}
        }
    }
    damaged
}
