//! A volume being written: header, records, index, footer.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::fan_out::FanOut;
use super::part::Parts;
use super::race::Racer;
use crate::chunk::{RECORD_HEAD, RECORD_TAIL_MAX};
use crate::encrypt::signature::SigningKey;
use crate::encrypt::{VolumeKey, seal_record};
use crate::error::Result;
use crate::format::{Codec, Flag, Footer, Preamble, SeekTable, VolumeEntry};
use crate::pipeline::Buffer;

/// A sealed chunk.
#[derive(Debug)]
pub(crate) struct Record {
    /// Word, ciphertext and tag.
    pub(crate) buffer: Buffer,
    /// Bytes of plaintext in it.
    pub(crate) plain_len: u32,
    /// Bytes between word and tag.
    pub(crate) content_len: u32,
    /// The memory it was admitted to.
    pub(crate) permit: OwnedSemaphorePermit,
}

struct Sealed(Buffer);

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        self.0.record()
    }
}

/// Writes one volume.
pub(crate) struct VolumeWriter {
    file: String,
    codec: Codec,
    key: Arc<VolumeKey>,
    upload: FanOut,
    parts: Parts,
    hasher: blake3::Hasher,
    len: u64,
    index: SeekTable,
    chunks: u64,
    signing_key: Option<SigningKey>,
}

impl VolumeWriter {
    /// A volume that goes to `upload`, under the name `file` in its backup. [`begin`](Self::begin) comes next.
    pub(crate) fn new(file: String, codec: Codec, key: Arc<VolumeKey>, upload: FanOut, parts: Parts) -> Self {
        let (hasher, index) = (blake3::Hasher::new(), SeekTable::default());
        Self { file, codec, key, upload, parts, hasher, len: 0, index, chunks: 0, signing_key: None }
    }

    /// Signs the volume with `key`, if there is one.
    pub(crate) fn signed_with(mut self, key: Option<&SigningKey>) -> Self {
        self.signing_key = key.cloned();
        self
    }

    /// Writes the header.
    pub(crate) async fn begin(&mut self, preamble: &Preamble) -> Result<()> {
        let head = [preamble.bytes(), self.key.commitment()].concat();
        self.hashed(head.into(), None).await
    }

    /// Adds the next chunk.
    pub(crate) async fn append(&mut self, record: Record) -> Result<()> {
        if self.codec == Codec::Zstd {
            self.index.frames.push((record.content_len, record.plain_len));
        }
        self.chunks += 1;
        self.hashed(Bytes::from_owner(Sealed(record.buffer)), Some(record.permit)).await
    }

    /// Adds index and footer and completes the object. On error [`abort`](Self::abort) is still to be called.
    pub(crate) async fn finish(&mut self, flag: Flag) -> Result<VolumeEntry> {
        let index_offset = self.len;
        let content = if self.codec == Codec::Zstd { self.index.encode() } else { Vec::new() };
        let mut record = vec![0; RECORD_HEAD + content.len() + RECORD_TAIL_MAX];
        record[RECORD_HEAD..RECORD_HEAD + content.len()].copy_from_slice(&content);
        let len = seal_record(&self.key, self.chunks, flag, &mut record, content.len());
        record.truncate(len);
        self.hashed(record.into(), None).await?;

        let digest = *self.hasher.finalize().as_bytes();
        let footer = Footer::unsigned(index_offset, self.chunks, digest);
        let footer = match &self.signing_key {
            Some(key) => footer.signed(key),
            None => footer,
        };
        self.send(Bytes::copy_from_slice(&footer.encode()), None).await?;
        let last = self.parts.take();
        self.upload.finish(last).await?;
        Ok(VolumeEntry { path: self.file.clone(), bytes: self.len, chunks: self.chunks, digest })
    }

    /// In which repositories the object is complete, and where.
    pub(crate) fn stored(&self) -> &[(Arc<Racer>, object_store::path::Path)] {
        self.upload.stored()
    }

    /// Gives up what was sent of an unfinished object.
    pub(crate) async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }

    async fn hashed(&mut self, bytes: Bytes, permit: Option<OwnedSemaphorePermit>) -> Result<()> {
        self.hasher.update(&bytes);
        self.send(bytes, permit).await
    }

    async fn send(&mut self, mut bytes: Bytes, mut permit: Option<OwnedSemaphorePermit>) -> Result<()> {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            if let Some(part) = self.parts.fill(&mut bytes, &mut permit).await? {
                self.upload.push(part);
            }
        }
        Ok(())
    }
}
