//! Streams that every reader must take.

use backup_core::encrypt::Suite;
use backup_core::format::{CHUNK_SIZE_MAX, Codec, Flag, Header};
use backup_core::keys::Wrap;
use backup_tests::volume::VolumeBuilder;
use data_encoding::HEXLOWER;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::make::{CHUNK, Maker, data_key, frame, header, letters, noise, stream, volume};

/// "The quick brown fox jumps over the lazy dog. ", over and over to 4096 bytes, compressed at level 19; with a checksum in the second.
const COMPRESSED: [&str; 2] = [
    "28b52ffd60000fb50100d40254686520717569636b2062726f776e20666f78206a756d7073206f76657220746865206c617a7920646f672e200100853ef45519",
    "28b52ffd64000fb50100d40254686520717569636b2062726f776e20666f78206a756d7073206f76657220746865206c617a7920646f672e200100853ef4551952d6b17e",
];

/// The vector that `docs/FORMAT.md` walks through.
pub(crate) const EXAMPLE: &str = "one-byte-zstd-aes-256-gcm";

pub(crate) fn make(maker: &mut Maker) {
    lengths(maker);
    frames(maker);
    headers(maker);
}

fn lengths(maker: &mut Maker) {
    for (suite, suite_name) in [(Suite::Aes256Gcm, "aes-256-gcm"), (Suite::ChaCha20Poly1305, "chacha20-poly1305")] {
        for (codec, codec_name) in [(Codec::Zstd, "zstd"), (Codec::None, "none")] {
            let mut add = |name: &str, about: &str, len: usize, volume_chunks: u32| {
                let name = format!("{name}-{codec_name}-{suite_name}");
                let plain = letters(len);
                let header = |i| Header { suite, codec, volume_chunks, ..header(&name, i) };
                maker.valid(&name, about, &plain, &stream(&plain, header));
            };
            add("empty", "No byte: one volume without data chunks", 0, 2);
            add("one-byte", "One byte", 1, 2);
            add("one-chunk", "A chunk that is full, and nothing behind it", CHUNK, 2);
            add("one-volume", "A volume that is full, and no empty one behind it", 2 * CHUNK, 2);
            match codec {
                Codec::Zstd => add("several-volumes", "Three volumes, of 2, 2 and 1 chunks", 4 * CHUNK + 1, 2),
                Codec::None => add("several-volumes", "Two volumes of one chunk", CHUNK + 1, 1),
            }
        }
    }
}

fn frames(maker: &mut Maker) {
    let plain = noise(CHUNK + 100);
    let volumes = stream(&plain, |i| header("stored-frames", i));
    maker.valid(
        "stored-frames",
        "What does not compress is in raw blocks: frames longer than their chunks",
        &plain,
        &volumes,
    );

    let fox = b"The quick brown fox jumps over the lazy dog. ".repeat(100)[..CHUNK].to_vec();
    let builder = VolumeBuilder::new(&header("compressed-frames", 0), &data_key());
    let chunk =
        |builder: VolumeBuilder, hex: &str| builder.chunk(&HEXLOWER.decode(hex.as_bytes()).expect("hex"), CHUNK);
    let volumes = [COMPRESSED.into_iter().fold(builder, chunk).finish(Flag::IndexEnd)];
    let about = "Frames with a compressed block, as libzstd writes them; the second has a checksum";
    maker.valid("compressed-frames", about, &fox.repeat(2), &volumes);

    let plain = vec![b'z'; CHUNK_SIZE_MAX as usize + 1];
    let volumes = stream(&plain, |i| Header { chunk_size: CHUNK_SIZE_MAX, ..header("largest-chunk", i) });
    maker.valid("largest-chunk", "A chunk of 2 MiB and one of a byte", &plain, &volumes);
}

fn headers(maker: &mut Maker) {
    let plain = letters(1);
    let mut changed = |name: &str, about: &str, change: &dyn Fn(String) -> String| {
        let header = header(name, 0);
        let json = change(serde_json::to_string(&header).expect("plain data"));
        let volume =
            VolumeBuilder::with_json(&json, &header, &data_key()).chunk(&frame(&plain), 1).finish(Flag::IndexEnd);
        maker.valid(name, about, &plain, &[volume]);
    };
    changed(
        "unknown-field",
        "Fields that a reader does not know are ignored, in the header and in its name",
        &|json| json.replacen('{', r#"{"new":[{"a":null}],"#, 1).replacen(r#""kind":"#, r#""new":1,"kind":"#, 1),
    );
    changed("spaced-header", "JSON may have white space; the key depends on the bytes as they stand", &|json| {
        json.replace("\",\"", "\" ,\n\t\"") + "\n"
    });
    changed("empty-critical", "A list of critical fields may be there and be empty", &|json| {
        json.replacen('{', r#"{"critical":[],"#, 1)
    });

    let name = "unknown-recipient-kind";
    let mut with_unknown = header(name, 0);
    let unknown = Wrap { kind: "hsm-2031".into(), recipient: "slot 7".into(), wrap: b"opaque".to_vec() };
    with_unknown.wraps.insert(0, unknown);
    let volumes = [volume(&with_unknown, &[&plain], Flag::IndexEnd)];
    maker.valid(name, "Wraps of a kind that a reader does not know are skipped", &plain, &volumes);

    let mut signed = volume(&header("signed-footer", 0), &[&plain], Flag::IndexEnd);
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
    let message = [b"backup/v1 volume signature", &signed.bytes[signed.footer..signed.footer + 48]].concat();
    signed.bytes[signed.footer + 48..signed.footer + 112].copy_from_slice(pair.sign(&message).as_ref());
    signed.bytes[signed.footer + 112..signed.footer + 144].copy_from_slice(pair.public_key().as_ref());
    maker.valid("signed-footer", "A footer with an Ed25519 signature that verifies", &plain, &[signed]);
}
