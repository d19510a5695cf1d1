//! What is written is read: whoever writes, whoever reads, however the bytes were cut.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::chunk::Cutter;
use backup_core::clock::SystemClock;
use backup_core::compress::{Compression, Compressor, Content, FRAME_OVERHEAD_MAX};
use backup_core::encrypt::Suite;
use backup_core::format::{Flag, Header};
use backup_core::keys::Recipient;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Backup, BufferPool, Limits};
use backup_core::repository::{Location, Repository};
use backup_core::source::{BytesSource, Piece};
use backup_tests::decoder;
use backup_tests::volume::{Volume, VolumeBuilder};
use bytes::Bytes;
use proptest::prelude::*;

use super::make::{self, Maker, data_key, noise};
use super::vectors;
use super::world::World;

/// How a stream is written.
#[derive(Debug, Clone)]
struct Plan {
    suite: Suite,
    compression: Compression,
    chunk_size: u32,
    volume_chunks: u32,
    /// Lengths of the pieces that the stream comes in, and whether each compresses.
    pieces: Vec<(usize, bool)>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let suite = prop_oneof![Just(Suite::Aes256Gcm), Just(Suite::ChaCha20Poly1305)];
    let compression = prop_oneof![Just(Compression::None), (-7..5).prop_map(Compression::Zstd)];
    // Often the smallest chunk, so that pieces end where chunks and volumes do.
    let chunk_size = prop_oneof![Just(4096u32), 4096u32..9000];
    let piece = (prop_oneof![Just(4096usize), 1usize..12_000], any::<bool>());
    (suite, compression, chunk_size, 1u32..4, prop::collection::vec(piece, 0..8)).prop_map(
        |(suite, compression, chunk_size, volume_chunks, pieces)| Plan {
            suite,
            compression,
            chunk_size,
            volume_chunks,
            pieces,
        },
    )
}

impl Plan {
    fn pieces(&self) -> Vec<Bytes> {
        let piece = |(len, compresses): &(usize, bool)| if *compresses { vec![b'x'; *len] } else { noise(*len) };
        self.pieces.iter().map(piece).map(Bytes::from).collect()
    }

    fn header(&self, volume: u32) -> Header {
        Header {
            suite: self.suite,
            codec: self.compression.codec(),
            chunk_size: self.chunk_size,
            volume_chunks: self.volume_chunks,
            ..make::header("written", volume)
        }
    }

    /// Cuts, compresses and seals, with the functions of each stage and no pipeline.
    fn write(&self) -> Vec<Volume> {
        let mut cutter = Cutter::new(BufferPool::new(self.chunk_size as usize));
        let mut contents = Vec::new();
        let mut compress = |chunk: &[u8]| contents.push((self.content(chunk), chunk.len()));
        for piece in self.pieces() {
            cutter.push(Piece::Bytes(piece));
            while let Some(chunk) = cutter.next_chunk() {
                compress(chunk.as_slice());
            }
        }
        if let Some(chunk) = cutter.finish() {
            compress(chunk.as_slice());
        }
        let mut volumes: Vec<_> = contents.chunks(self.volume_chunks as usize).collect();
        if volumes.is_empty() {
            volumes.push(&[]);
        }
        let count = volumes.len();
        let volume = |(i, contents): (usize, &[(Vec<u8>, usize)])| {
            let header = self.header(u32::try_from(i).expect("few volumes"));
            let empty = VolumeBuilder::new(&header, &data_key());
            let all = contents.iter().fold(empty, |volume, (content, len)| volume.chunk(content, *len));
            all.finish(if i + 1 == count { Flag::IndexEnd } else { Flag::IndexMore })
        };
        volumes.into_iter().enumerate().map(volume).collect()
    }

    fn content(&self, chunk: &[u8]) -> Vec<u8> {
        let Compression::Zstd(level) = self.compression else { return chunk.to_vec() };
        let mut frame = vec![0; chunk.len() + FRAME_OVERHEAD_MAX];
        let len = Compressor::new(level, Content::Any).compress(chunk, &mut frame);
        frame.truncate(len);
        frame
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_stream_written_by_hand_is_read_whole_and_in_parts(
        plan in plans(),
        from in 0u64..60_000,
        len in 0u64..20_000,
    ) {
        let plain = plan.pieces().concat();
        let (files, vector) = Maker::single("written", &plain, &plan.write());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (whole, part) = runtime.block_on(async {
            let world = World::new(&vectors(), &vector, vector.stream.clone(), &files).await;
            (world.whole().await, world.range(from..from + len).await)
        });
        prop_assert!(whole.expect("it is sound") == plain);
        let at = |offset: u64| plain.len().min(usize::try_from(offset).expect("small"));
        prop_assert!(part.expect("it is sound") == plain[at(from)..at(from + len)]);
    }
}

#[tokio::test]
async fn the_decoder_in_python_restores_what_the_pipeline_wrote() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (repository, identity, root, identity_file) = repository(folder.path()).await;
    let limits = Limits {
        memory_bytes: Some(16 << 20),
        workers: NonZero::new(2).expect("two"),
        part_bytes: 10_000,
        chunk_size: 4096,
        volume_chunks: 3,
    };
    let streams =
        [("empty", vec![]), ("full", noise(6 * 4096)), ("mixed", [noise(10_000), vec![b'x'; 30_001]].concat())];
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for compression in [Compression::Zstd(3), Compression::None] {
            let recipients: Vec<Arc<dyn Recipient>> = vec![
                Arc::new(AgeIdentity::generate().recipients().remove(0)),
                Arc::new(identity.recipients().remove(0)),
            ];
            let mut backup = Backup::new(repository.clone(), "app".parse().expect("a target"))
                .recipients(recipients)
                .suite(suite)
                .compression(compression)
                .limits(limits);
            for (name, plain) in &streams {
                backup = backup.stream(name.parse().expect("a stream"), BytesSource::new(plain.clone()));
            }
            let manifest = backup.start().expect("it can start").wait().await.expect("it succeeds");
            for (name, plain) in &streams {
                let decoded = decoder::decode(&root, &identity_file, &manifest.id, name).expect("it is sound");
                assert!(decoded == *plain, "{name} {suite:?} {compression:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_decoder_in_python_refuses_a_manifest_that_was_changed() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (root, identity_file, id) = one_backup(folder.path()).await;
    let manifest = root.join("app/backups").join(&id).join("manifest.json");
    let good = std::fs::read(&manifest).expect("a manifest");
    for at in (0..good.len()).step_by(good.len() / 16) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&manifest, bad).expect("it can be written");
        let refused = decoder::decode(&root, &identity_file, &id, "data").expect_err(&format!("byte {at}"));
        assert!(refused.starts_with("decode.py: "), "byte {at}: {refused}");
    }
    std::fs::write(&manifest, good).expect("it can be written");
    assert_eq!(decoder::decode(&root, &identity_file, &id, "data"), Ok(b"plain".to_vec()));
}

/// A repository with one backup: where it is, the identity file, the id.
async fn one_backup(folder: &Path) -> (PathBuf, PathBuf, String) {
    let (repository, identity, root, identity_file) = repository(folder).await;
    let manifest = Backup::new(repository, "app".parse().expect("a target"))
        .recipient(Arc::new(identity.recipients().remove(0)))
        .stream("data".parse().expect("a stream"), BytesSource::new("plain"))
        .start()
        .expect("it can start")
        .wait()
        .await
        .expect("it succeeds");
    (root, identity_file, manifest.id)
}

/// An empty repository in a directory, and an identity with its file.
async fn repository(folder: &Path) -> (Repository, AgeIdentity, PathBuf, PathBuf) {
    let identity = AgeIdentity::generate();
    let (root, identity_file) = (folder.join("repository"), folder.join("key.txt"));
    identity.create_file(&identity_file, &SystemClock).expect("a file");
    let location = Location::directory(&root).expect("a directory");
    let (repository, _) = Repository::init(&location, &SystemClock).await.expect("a repository");
    (repository, identity, root, identity_file)
}
