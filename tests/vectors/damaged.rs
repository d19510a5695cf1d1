//! What somebody can do to stored objects who does not hold the data key: every reader must refuse it.
//!
//! The manifest agrees with the objects as far as it can, so that each fault has to be found where it is.

use backup_tests::volume::Volume;

use super::make::{CHUNK, Maker, header, letters, stream};
use super::vector::{Edit, Expect};

const ZSTD: &str = "several-volumes-zstd-aes-256-gcm";
const FIRST: &str = "dump.00000.vol";
const SECOND: &str = "dump.00001.vol";
const THIRD: &str = "dump.00002.vol";

pub(crate) fn make(maker: &mut Maker) {
    let zstd = stream(&letters(4 * CHUNK + 1), |i| header(ZSTD, i));
    truncated(maker, &zstd[2]);
    longer(maker, &zstd);
    chunks_moved(maker, &zstd[0]);
    words(maker, &zstd);
    footers(maker, &zstd[2]);
    whole_objects(maker, &zstd);
    header_bytes(maker, &zstd[0]);
}

fn truncated(maker: &mut Maker, last: &Volume) {
    let len = last.bytes.len();
    let (header_end, record) = (last.commitment, last.records[0]);
    let ends: [(&str, usize, &[&str]); 14] = [
        ("to-nothing", 0, &["truncated"]),
        ("in-the-magic", 5, &["truncated"]),
        ("behind-the-magic", 8, &["truncated"]),
        ("behind-the-header-length", 12, &["truncated"]),
        ("in-the-header", 100, &["truncated"]),
        ("behind-the-header", header_end, &["truncated"]),
        ("in-the-commitment", header_end + 31, &["truncated"]),
        ("behind-the-commitment", record, &["the footer contradicts"]),
        ("behind-a-word", record + 4, &["the footer contradicts"]),
        ("in-a-chunk", record + 10, &["the footer contradicts"]),
        ("behind-the-chunks", last.index, &["the footer contradicts"]),
        ("in-the-index", last.index + 20, &["the footer contradicts"]),
        ("behind-the-index", last.footer, &["the footer contradicts"]),
        ("in-the-footer", len - 1, &["the footer contradicts"]),
    ];
    for (name, end, contains) in ends {
        let name = format!("truncated-{name}");
        maker.edited(&name, "The last volume ends early", (ZSTD, 2), vec![Edit::remove(end, len - end)], contains);
    }
}

fn longer(maker: &mut Maker, zstd: &[Volume]) {
    let (first, last) = (&zstd[0], &zstd[2]);
    let mut add = |name: &str, about: &str, number: usize, edits: Vec<Edit>| {
        maker.edited(name, about, (ZSTD, number), edits, &["the footer contradicts"]);
    };
    add("trailing-byte", "A byte behind the footer", 2, vec![Edit::insert(last.bytes.len(), &[0])]);
    add("trailing-footer", "A second footer", 2, vec![Edit::insert(last.bytes.len(), &last.bytes[last.footer..])]);
    add("gap-before-the-footer", "Bytes between index and footer", 0, vec![Edit::insert(first.footer, &[0; 20])]);
    let index = (first.index as u64 + 20).to_le_bytes();
    let edits = vec![Edit::set(first.footer, &index), Edit::insert(first.index, &[0; 20])];
    let about = "Bytes between chunks and index, and a footer that knows";
    maker.edited("gap-before-the-index", about, (ZSTD, 0), edits, &["the index contradicts"]);
}

fn chunks_moved(maker: &mut Maker, first: &Volume) {
    let (one, other) = (first.records[0], first.records[1]);
    let len = other - one;
    let record = |at: usize| &first.bytes[at..at + len];
    let mut add = |name: &str, about: &str, edits: Vec<Edit>, chunk: usize| {
        let reason = format!("chunk {chunk} does not authenticate");
        maker.edited(name, about, (ZSTD, 0), edits, &[&format!("offset {}", first.records[chunk]), &reason]);
    };
    let swap = vec![Edit::set(one, record(other)), Edit::set(other, record(one))];
    add("swapped-chunks", "Two chunks in each other's place", swap, 0);
    add("duplicated-chunk", "A chunk in place of the next", vec![Edit::set(other, record(one))], 1);
    let flip = |at: usize| vec![Edit::set(at, &[first.bytes[at] ^ 0x10])];
    add("flipped-ciphertext", "A bit of the ciphertext flipped", flip(other + 7), 1);
    add("flipped-tag", "A bit of the tag flipped", flip(first.index - 1), 1);

    let footer = [(first.index + len) as u64, 3].map(u64::to_le_bytes).concat();
    let edits = vec![Edit::set(first.footer, &footer), Edit::insert(first.index, record(other))];
    let about = "A chunk twice, and footer and manifest that count it";
    let vector = maker.edited("inserted-chunk", about, (ZSTD, 0), edits, &["the footer contradicts"]);
    vector.stream.volumes[0].chunks = 3;
}

fn words(maker: &mut Maker, zstd: &[Volume]) {
    let (first, last) = (&zstd[0], &zstd[2]);
    let flags = |volume: &Volume, at: usize, bits: u8| vec![Edit::set(at + 3, &[volume.bytes[at + 3] ^ bits])];
    let chunk = first.records[0];
    for (bits, becomes) in [(0x40, "index-more"), (0x80, "index-end"), (0xc0, "unused")] {
        let reason = ["malformed chunk word", &format!("offset {chunk}")];
        maker.edited(
            &format!("flag-data-to-{becomes}"),
            "The flag of a chunk changed",
            (ZSTD, 0),
            flags(first, chunk, bits),
            &reason,
        );
    }
    let mut index = |name: &str, number: usize, volume: &Volume, bits: u8| {
        let at = format!("offset {}", volume.index);
        maker.edited(name, "The flag of an index changed", (ZSTD, number), flags(volume, volume.index, bits), &[&at]);
    };
    index("flag-index-more-to-end", 0, first, 0xc0);
    index("flag-index-end-to-more", 2, last, 0xc0);
    index("flag-index-end-to-data", 2, last, 0x80);
    index("flag-index-end-to-unused", 2, last, 0x40);

    let lengths: [(&str, u32); 4] = [
        ("zero", 0),
        ("below-the-tag", 15),
        ("one-more", last.bytes[last.records[0]] as u32 + 1),
        ("largest", (1 << 30) - 1),
    ];
    for (name, word) in lengths {
        let edits = vec![Edit::set(last.records[0], &word.to_le_bytes())];
        let at = format!("offset {}", last.records[0]);
        maker.edited(
            &format!("word-{name}"),
            "The length of a chunk changed",
            (ZSTD, 2),
            edits,
            &["malformed chunk word", &at],
        );
    }
    let edits = vec![Edit::set(last.index, &(2u32 << 30 | ((1 << 30) - 1)).to_le_bytes())];
    let at = format!("offset {}", last.index);
    maker.edited(
        "index-word-largest",
        "The length of the index changed",
        (ZSTD, 2),
        edits,
        &["malformed chunk word", &at],
    );
}

fn footers(maker: &mut Maker, last: &Volume) {
    let at = |field: usize| last.footer + field;
    let index = last.index as u64;
    let mut lie = |name: &str, about: &str, edit: Edit, contains: &[&str]| {
        let offset = format!("offset {}", last.footer);
        let contains = [&[offset.as_str()], contains].concat();
        maker.edited(&format!("footer-{name}"), about, (ZSTD, 2), vec![edit], &contains);
    };
    for (name, offset) in [
        ("offset-one-more", index + 1),
        ("offset-one-less", index - 1),
        ("offset-zero", 0),
        ("offset-largest", u64::MAX),
    ] {
        lie(name, "The index is elsewhere", Edit::set(at(0), &offset.to_le_bytes()), &["the footer contradicts"]);
    }
    for (name, chunks) in [("no-chunk", 0u64), ("one-chunk-more", 2), ("too-many-chunks", u64::MAX)] {
        lie(name, "There are other chunks", Edit::set(at(8), &chunks.to_le_bytes()), &[]);
    }
    let flip = |field: usize| Edit::set(at(field), &[last.bytes[at(field)] ^ 1]);
    lie("digest", "Another digest than the manifest's", flip(16), &["the footer contradicts"]);
    lie("signature", "A signature without a signer", flip(48), &["its signature does not verify"]);
    lie("signer", "A signer without a signature", flip(143), &["its signature does not verify"]);
    lie("magic", "Another magic number", flip(144), &["its magic number is missing"]);
    lie("version", "Another version", flip(151), &["its magic number is missing"]);

    let edits = vec![Edit::set(at(8), &2u64.to_le_bytes())];
    let about = "A chunk more, and a manifest that agrees";
    maker
        .edited("footer-and-manifest-one-chunk-more", about, (ZSTD, 2), edits, &["the footer contradicts"])
        .stream
        .volumes[2]
        .chunks = 2;
}

fn whole_objects(maker: &mut Maker, zstd: &[Volume]) {
    let another = "answers to another name";
    let mut add = |name: &str, about: &str, arranged: (&[usize], &[usize]), contains: &[&str]| {
        maker.arranged(name, about, (ZSTD, zstd), arranged, contains);
    };
    add("missing-first-volume", "The stream begins with its second volume", (&[1, 2], &[1, 2]), &[FIRST, another]);
    let end = format!("offset {}", zstd[1].index);
    add("missing-last-volume", "The manifest ends before the stream does", (&[0, 1], &[0, 1]), &[SECOND, &end]);
    add("missing-middle-volume", "The manifest skips a volume", (&[0, 2], &[0, 2]), &[SECOND, another]);
    add(
        "missing-object",
        "An object that the manifest names is not there",
        (&[0, 1], &[0, 1, 2]),
        &[THIRD, "is missing"],
    );
    add("swapped-volumes", "Two volumes in each other's place", (&[1, 0, 2], &[1, 0, 2]), &[FIRST, another]);
    add("duplicated-volume", "A volume twice", (&[0, 0, 1, 2], &[0, 0, 1, 2]), &[SECOND, another]);

    for (name, bytes) in [("shorter", 4 * CHUNK), ("longer", 4 * CHUNK + 2), ("much-shorter", CHUNK), ("empty", 0)] {
        let about = "Whole volumes, and a manifest that promises another number of bytes";
        let vector = maker.edited(&format!("promised-{name}"), about, (ZSTD, 0), vec![], &[]);
        vector.stream.bytes = bytes as u64;
        vector.expect = Expect::error("integrity", &["bytes"]);
    }
}

fn header_bytes(maker: &mut Maker, first: &Volume) {
    let mut add = |name: &str, about: &str, edit: Edit, contains: &[&str]| {
        maker.edited(name, about, (ZSTD, 0), vec![edit], contains);
    };
    add("magic", "Another magic number", Edit::set(0, b"B"), &["the magic number is missing"]);
    add("version", "A volume of version 2", Edit::set(7, &[2]), &["format version 2 is not known"]);
    let too_long = 65_537u32.to_le_bytes();
    add("header-too-long", "A header of 65,537 bytes", Edit::set(8, &too_long), &["header length", "out of bounds"]);
    add("header-longest", "A header of 4 GiB", Edit::set(8, &[0xff; 4]), &["header length", "out of bounds"]);
    add("header-empty", "A header of no byte", Edit::set(8, &[0; 4]), &["malformed"]);
    let json = String::from_utf8(first.bytes[12..first.commitment].to_vec()).expect("JSON");
    let created = 12 + json.find("02:00:00Z").expect("a time");
    let changed = "the header does not belong to this data key, or was changed";
    add("header-changed", "A byte of the header changed", Edit::set(created, b"03"), &[changed]);
    let flipped = [first.bytes[first.commitment] ^ 1];
    add("commitment-changed", "A byte of the commitment changed", Edit::set(first.commitment, &flipped), &[changed]);
}
