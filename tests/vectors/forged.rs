//! What somebody can write who holds the data key, or a writer that is wrong: every reader must refuse it all the same.

use backup_core::encrypt::Suite;
use backup_core::format::{Codec, Flag, Header, ObjectName, SeekTable};
use backup_tests::volume::{Volume, VolumeBuilder};

use super::make::{self, CHUNK, Maker, content, data_key, frame, frame_that_says, header, letters, volume};
use super::vector::Expect;

const FIRST: &str = "dump.00000.vol";
const SECOND: &str = "dump.00001.vol";

pub(crate) fn make(maker: &mut Maker) {
    names(maker);
    headers(maker);
    keys(maker);
    chunks(maker);
    frames(maker);
    indexes(maker);
    cuts(maker);
}

fn names(maker: &mut Maker) {
    let plain = letters(1);
    let name = |target: &str, backup: &str, stream: &str| ObjectName::Backup {
        target: target.into(),
        backup: backup.into(),
        stream: stream.into(),
    };
    let id = "20261122T020000Z-vectorsvectorsve";
    let wal = ObjectName::Wal {
        target: "app".into(),
        system_identifier: "7".into(),
        timeline: "00000001".into(),
        file: "000000010000000000000001".into(),
    };
    for (vector, asked) in [
        ("name-of-another-target", name("other", id, "dump")),
        ("name-of-another-backup", name("app", "20261121T020000Z-vectorsvectorsve", "dump")),
        ("name-of-another-stream", name("app", id, "data")),
        ("name-of-another-kind", wal),
    ] {
        let header = Header { name: asked, ..header(vector, 0) };
        let volumes = [volume(&header, &[&plain], Flag::IndexEnd)];
        maker.hostile(
            vector,
            "A whole volume that answers to another name",
            &volumes,
            &[FIRST, "answers to another name"],
        );
    }
    let volumes =
        [volume(&Header { stream_id: "0".repeat(32), ..header("another-run", 0) }, &[&plain], Flag::IndexEnd)];
    maker.hostile(
        "another-run",
        "A volume of another run of the stream",
        &volumes,
        &[FIRST, "answers to another name"],
    );
}

fn headers(maker: &mut Maker) {
    let plain = letters(1);
    let mut json = |name: &str, about: &str, change: &dyn Fn(String) -> String, contains: &[&str]| {
        let header = header(name, 0);
        let json = change(serde_json::to_string(&header).expect("plain data"));
        let volume =
            VolumeBuilder::with_json(&json, &header, &data_key()).chunk(&frame(&plain), 1).finish(Flag::IndexEnd);
        maker.hostile(name, about, &[volume], &[&[FIRST], contains].concat());
    };
    let field = |from: &'static str, to: &'static str| {
        move |json: String| {
            assert!(json.contains(from), "{from}");
            json.replacen(from, to, 1)
        }
    };
    let about = "A field that must be understood";
    json("critical-field", about, &field("{", r#"{"critical":["new"],"new":1,"#), &["critical field", "new"]);
    let about = "A key twice, with the same value";
    json("duplicate-key", about, &field("{", r#"{"volume":0,"#), &["stands twice"]);
    json(
        "duplicate-unknown-key",
        "A key twice, deep in an unknown field",
        &field("{", r#"{"new":[{"a":1,"\u0061":2}],"#),
        &["stands twice"],
    );
    json("not-an-object", "A header that is a list", &|json| format!("[{json}]"), &["malformed"]);
    json("two-objects", "A header of two objects", &|json| json + "{}", &["malformed"]);
    json("missing-field", "A header without a salt", &field("\"salt\"", "\"pepper\""), &["malformed", "salt"]);
    json("negative-number", "A volume number below zero", &field("\"volume\":0", "\"volume\":-1"), &["malformed"]);
    json("fraction", "A volume number with a fraction", &field("\"volume\":0", "\"volume\":0.0"), &["malformed"]);
    json("number-as-text", "A volume number in quotes", &field("\"volume\":0", "\"volume\":\"0\""), &["malformed"]);
    json("unknown-suite", "A cipher that nobody knows", &field("aes-256-gcm", "rot-13"), &["malformed"]);
    json("unknown-codec", "A codec that nobody knows", &field("\"zstd\"", "\"lz4\""), &["malformed"]);
    json(
        "short-salt",
        "A salt of 31 bytes",
        &|json| {
            let at = json.find("\"salt\":\"").expect("a salt") + 8;
            format!("{}{}A=={}", &json[..at], &json[at..at + 41], &json[at + 44..])
        },
        &["malformed"],
    );
    let bounds: [(&str, &str, &str, &str); 4] = [
        ("smallest-chunk", "\"chunk_size\":4096", "\"chunk_size\":4095", "chunk size of 4095"),
        ("huge-chunk", "\"chunk_size\":4096", "\"chunk_size\":2097153", "chunk size of 2097153"),
        ("no-volume-chunks", "\"volume_chunks\":2", "\"volume_chunks\":0", "chunks in a volume of 0"),
        ("many-volume-chunks", "\"volume_chunks\":2", "\"volume_chunks\":1048577", "chunks in a volume of 1048577"),
    ];
    for (name, from, to, reason) in bounds {
        json(
            name,
            "A number out of its bounds",
            &move |json: String| json.replacen(from, to, 1),
            &[reason, "out of bounds"],
        );
    }
    json(
        "another-data-key",
        "A data key that is not the manifest's",
        &|json| json.replacen(&data_key().id(), &make::other_key().id(), 1),
        &["answers to another name"],
    );
    json(
        "many-recipients",
        "65 wraps",
        &|json| {
            let unknown = r#"{"kind":"x","recipient":"x","wrap":""},"#.repeat(64);
            json.replacen("\"wraps\":[", &format!("\"wraps\":[{unknown}"), 1)
        },
        &["number of recipients of 65", "out of bounds"],
    );
}

fn keys(maker: &mut Maker) {
    let plain = letters(1);
    let chunk = frame(&plain);
    let one = |builder: VolumeBuilder| [builder.chunk(&chunk, 1).finish(Flag::IndexEnd)];
    let name = "sealed-with-another-key";
    let volumes = one(VolumeBuilder::new(&header(name, 0), &make::other_key()));
    let reason = "the header does not belong to this data key, or was changed";
    maker.hostile(name, "The volume key is of another data key than its header says", &volumes, &[FIRST, reason]);

    let name = "wrap-of-another-key";
    let volumes =
        one(VolumeBuilder::new(&Header { wraps: vec![make::wrap_of_other_key()], ..header(name, 0) }, &data_key()));
    let about = "The wrap opens, and gives another key than the header says";
    maker.hostile(name, about, &volumes, &["belongs to another backup"]).only_with_identity = true;

    let name = "wrap-damaged";
    let mut damaged = header(name, 0);
    *damaged.wraps[0].wrap.last_mut().expect("an age file") ^= 1;
    let volumes = one(VolumeBuilder::new(&damaged, &data_key()));
    let about = "The wrap is for this identity and does not open";
    maker.hostile(name, about, &volumes, &["is damaged"]).only_with_identity = true;

    let name = "strangers-identity";
    let volumes = one(VolumeBuilder::new(&header(name, 0), &data_key()));
    let vector = maker.hostile(name, "An identity that is none of the recipients", &volumes, &[]);
    vector.identity = Some(make::STRANGER.into());
    vector.only_with_identity = true;
    vector.expect = Expect::error("key", &["none of the given identities"]);
}

fn chunks(maker: &mut Maker) {
    let plain = letters(2 * CHUNK);
    let (a, b) = plain.split_at(CHUNK);
    let builder = |name: &str| VolumeBuilder::new(&header(name, 0), &data_key());
    let mut add = |name: &str, about: &str, volume: Volume, contains: &[&str]| {
        maker.hostile(name, about, &[volume], &[&[FIRST], contains].concat());
    };
    let name = "counter-reused";
    let volume = builder(name).chunk(&frame(a), CHUNK).chunk_as(0, &frame(b), CHUNK).finish(Flag::IndexEnd);
    add(name, "The second chunk is sealed under the counter of the first", volume, &["chunk 1 does not authenticate"]);

    let index = "the index contradicts";
    let name = "short-middle-chunk";
    let volume = builder(name).chunk(&frame(&a[1..]), CHUNK - 1).chunk(&frame(b), CHUNK).finish(Flag::IndexEnd);
    add(name, "A chunk that is not the last holds a byte less", volume, &[index]);
    let name = "long-chunk";
    let volume = builder(name).chunk(&frame(&letters(CHUNK + 1)), CHUNK + 1).finish(Flag::IndexEnd);
    add(name, "A chunk holds a byte more", volume, &[index]);
    let name = "empty-chunk";
    let volume = builder(name).chunk(&frame(a), CHUNK).chunk(&frame(b""), 0).finish(Flag::IndexEnd);
    add(name, "A last chunk without a byte", volume, &[index]);
    let name = "long-frame";
    let long =
        [frame(a), b"\x50\x2a\x4d\x18".to_vec(), (CHUNK as u32 + 64).to_le_bytes().to_vec(), vec![0; CHUNK + 64]]
            .concat();
    let volume = builder(name).chunk(&long, CHUNK).finish(Flag::IndexEnd);
    add(name, "A frame that is more than 64 bytes longer than its chunk", volume, &[index]);

    let none = |name: &str| Header { codec: Codec::None, ..header(name, 0) };
    let name = "short-middle-chunk-none";
    let volume =
        VolumeBuilder::new(&none(name), &data_key()).chunk(&a[1..], CHUNK - 1).chunk(b, CHUNK).finish(Flag::IndexEnd);
    add(name, "A chunk that is not the last holds a byte less", volume, &["malformed chunk word"]);
    let name = "long-last-chunk-none";
    let volume =
        VolumeBuilder::new(&none(name), &data_key()).chunk(&plain[..CHUNK + 1], CHUNK + 1).finish(Flag::IndexEnd);
    add(name, "The last chunk holds a byte more than a chunk", volume, &[index]);
    let name = "empty-chunk-none";
    let volume = VolumeBuilder::new(&none(name), &data_key()).chunk(b"", 0).finish(Flag::IndexEnd);
    add(name, "A last chunk without a byte", volume, &[index]);
}

fn frames(maker: &mut Maker) {
    let plain = letters(CHUNK);
    let mut add = |name: &str, about: &str, content: Vec<u8>| {
        let volume = VolumeBuilder::new(&header(name, 0), &data_key()).chunk(&content, CHUNK).finish(Flag::IndexEnd);
        maker.hostile(name, about, &[volume], &[FIRST, "chunk 0 does not decompress to 4096 bytes"]);
    };
    let bomb = vec![0; 64 << 20];
    add("bomb", "A frame of 64 MiB in 2 KB, which says so", frame(&bomb));
    add("bomb-that-lies", "A frame of 64 MiB in 2 KB, which says 4096", frame_that_says(CHUNK, &bomb));
    add("frame-too-short", "A frame of 4095 bytes", frame(&plain[1..]));
    add("frame-that-says-more", "A frame of 4095 bytes, which says 4096", frame_that_says(CHUNK, &plain[1..]));
    add("two-frames", "Two frames of half a chunk", frame(&plain[..CHUNK / 2]).repeat(2));
    add("frame-and-garbage", "Bytes behind the frame", [frame(&plain), vec![0; 4]].concat());
    let skippable = b"\x50\x2a\x4d\x18\0\0\0\0".to_vec();
    add("frame-and-skippable-frame", "A skippable frame behind the frame", [frame(&plain), skippable.clone()].concat());
    add("skippable-frame-first", "A skippable frame before the frame", [skippable.clone(), frame(&plain)].concat());
    add("skippable-frame", "Nothing but a skippable frame", skippable);
    add("truncated-frame", "A frame without its last byte", frame(&plain)[..12].to_vec());
    add("not-a-frame", "No zstd at all", b"plain text".to_vec());
}

fn indexes(maker: &mut Maker) {
    let plain = letters(2 * CHUNK);
    let (a, b) = plain.split_at(CHUNK);
    let built =
        |name: &str| VolumeBuilder::new(&header(name, 0), &data_key()).chunk(&frame(a), CHUNK).chunk(&frame(b), CHUNK);
    let mut lengths = |name: &str, about: &str, change: fn(&mut Vec<(u32, u32)>), contains: &[&str]| {
        let volume = built(name).finish_with_lengths(Flag::IndexEnd, change);
        maker.hostile(name, about, &[volume], &[&[FIRST], contains].concat());
    };
    let index: &[&str] = &["the index contradicts"];
    lengths(
        "index-moves-a-boundary",
        "Frames of other lengths that add up",
        |f| (f[0].0, f[1].0) = (f[0].0 + 1, f[1].0 - 1),
        &["malformed chunk word"],
    );
    lengths("index-frame-longer", "A frame that is longer than it is", |f| f[0].0 += 1, index);
    lengths("index-frame-empty", "A frame without a byte", |f| (f[0].0, f[1].0) = (0, f[0].0 + f[1].0), index);
    lengths(
        "index-frame-wraps",
        "Lengths of which the sum overflows 32 bits",
        |f| (f[0].0, f[1].0) = (u32::MAX, f[0].0 + f[1].0 + 1),
        index,
    );
    lengths(
        "index-chunk-shorter",
        "A chunk that is shorter than it is",
        |f| f[1].1 -= 1,
        &["chunk 1 does not decompress to 4095 bytes"],
    );
    lengths("index-chunk-longer", "A chunk that is longer than the chunk size", |f| f[1].1 += 1, index);
    lengths("index-chunk-largest", "A chunk of 4 GiB", |f| f[1].1 = u32::MAX, index);

    let mut table = |name: &str, about: &str, table: Vec<u8>| {
        let at = built(name).finish(Flag::IndexEnd).index;
        let volume = built(name).finish_with_index(Flag::IndexEnd, &table);
        maker.hostile(name, about, &[volume], &[FIRST, &format!("offset {at}")]);
    };
    let frames: Vec<(u32, u32)> = vec![(13, 4096), (13, 4096)];
    let good = SeekTable { frames: frames.clone() }.encode();
    let with = |at: usize, byte: u8| [&good[..at], &[byte], &good[at + 1..]].concat();
    table("index-magic", "Not a skippable frame", with(0, 0x5f));
    table("index-length", "A skippable frame of another length", with(4, good[4] + 1));
    table("index-count", "A count of three", with(good.len() - 9, 3));
    table("index-descriptor", "A table that says it has checksums", with(good.len() - 5, 0x80));
    table("index-seekable-magic", "Not a seek table", with(good.len() - 1, 0));
    let mut sized = |name: &str, about: &str, table: Vec<u8>| {
        let volume = built(name).finish_with_index(Flag::IndexEnd, &table);
        maker.hostile(name, about, &[volume], &[FIRST, "the footer contradicts"]);
    };
    sized("index-of-one", "A table of one chunk", SeekTable { frames: frames[..1].to_vec() }.encode());
    sized(
        "index-of-three",
        "A table of three chunks",
        SeekTable { frames: [&frames[..], &frames[..1]].concat() }.encode(),
    );
    sized("index-empty", "No table", Vec::new());

    let name = "index-with-codec-none";
    let header = Header { codec: Codec::None, ..header(name, 0) };
    let volume = VolumeBuilder::new(&header, &data_key())
        .chunk(&content(&header, a), CHUNK)
        .finish_with_index(Flag::IndexEnd, &good);
    maker.hostile(name, "A table where there must be none", &[volume], &[FIRST, "the footer contradicts"]);
}

fn cuts(maker: &mut Maker) {
    let plain = letters(4 * CHUNK);
    let chunks: Vec<&[u8]> = plain.chunks(CHUNK).collect();
    let mut add = |name: &str, about: &str, volumes: &[Volume], contains: &[&str]| {
        maker.hostile(name, about, volumes, contains);
    };
    let name = "volume-too-short";
    let volumes = [
        volume(&header(name, 0), &chunks[..1], Flag::IndexMore),
        volume(&header(name, 1), &chunks[1..2], Flag::IndexEnd),
    ];
    add(name, "A volume that is not the last has a chunk less", &volumes, &["volume"]);
    let name = "volume-too-long";
    let volumes = [
        volume(&header(name, 0), &chunks[..3], Flag::IndexMore),
        volume(&header(name, 1), &chunks[3..], Flag::IndexEnd),
    ];
    add(name, "A volume has a chunk more", &volumes, &[FIRST, "contradicts"]);
    let name = "empty-last-volume";
    let volumes =
        [volume(&header(name, 0), &chunks[..2], Flag::IndexMore), volume(&header(name, 1), &[], Flag::IndexEnd)];
    add(name, "A last volume without a chunk", &volumes, &["volume"]);
    let name = "ends-and-goes-on";
    let volumes = [
        volume(&header(name, 0), &chunks[..2], Flag::IndexEnd),
        volume(&header(name, 1), &chunks[2..], Flag::IndexEnd),
    ];
    add(
        name,
        "The stream ends with the first of two volumes",
        &volumes,
        &[FIRST, &format!("offset {}", volumes[0].index)],
    );
    let name = "never-ends";
    let volumes = [
        volume(&header(name, 0), &chunks[..2], Flag::IndexMore),
        volume(&header(name, 1), &chunks[2..], Flag::IndexMore),
    ];
    add(name, "The last volume says that there are more", &volumes, &[SECOND, &format!("offset {}", volumes[1].index)]);
    for (name, second) in [
        ("second-volume-of-larger-chunks", Header { chunk_size: 8192, ..header("second-volume-of-larger-chunks", 1) }),
        ("second-volume-of-more-chunks", Header { volume_chunks: 3, ..header("second-volume-of-more-chunks", 1) }),
        (
            "second-volume-of-another-suite",
            Header { suite: Suite::ChaCha20Poly1305, ..header("second-volume-of-another-suite", 1) },
        ),
        (
            "second-volume-of-another-codec",
            Header { codec: Codec::None, ..header("second-volume-of-another-codec", 1) },
        ),
    ] {
        let large = letters(second.chunk_size as usize);
        let volumes =
            [volume(&header(name, 0), &chunks[..2], Flag::IndexMore), volume(&second, &[&large], Flag::IndexEnd)];
        add(name, "Two volumes of one stream differ in how they are made", &volumes, &[SECOND, "another"]);
    }
}
