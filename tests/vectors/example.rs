//! The worked example of `docs/FORMAT.md`, computed from a vector: by hand where a reader would, not by the functions under test.

use std::fmt::Write as _;
use std::ops::Range;

use data_encoding::HEXLOWER;
use ring::{aead, digest, hkdf};

use super::make::data_key;
use super::vector::{Vector, Vectors};

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn hkdf_sha256(salt: &[u8], info: &[u8], len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(data_key().expose());
    key.expand(&[info], Len(len)).and_then(|okm| okm.fill(&mut out)).expect("HKDF gives so much");
    out
}

/// Hexadecimal in groups of 16 bytes, each on a line of its own behind its offset; `note` stands in the first.
fn dump(text: &mut String, object: &[u8], range: Range<usize>, note: &str) {
    let from = range.start;
    for (i, line) in object[range].chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let note = if i == 0 { note } else { "" };
        let line = format!("{:6}  {:47}  {note}", from + 16 * i, hex.join(" "));
        writeln!(text, "{}", line.trim_end()).expect("a string takes all");
    }
}

/// A record that was opened.
struct Record {
    at: usize,
    end: usize,
    flag: u32,
    n: u32,
    content: Vec<u8>,
}

impl Record {
    fn open(object: &[u8], at: usize, key: &[u8], counter: u8) -> Self {
        let aad: [u8; 4] = object[at..at + 4].try_into().expect("four bytes");
        let word = u32::from_le_bytes(aad);
        let (flag, n) = (word >> 30, word & 0x3fff_ffff);
        let end = at + 4 + n as usize;
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, key).expect("32 bytes"));
        let mut nonce = [0; 12];
        nonce[11] = counter;
        let mut content = object[at + 4..end].to_vec();
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let len = key.open_in_place(nonce, aead::Aad::from(aad), &mut content).expect("it is authentic").len();
        content.truncate(len);
        Self { at, end, flag, n, content }
    }
}

/// The section, without its title.
pub(crate) fn text(all: &Vectors, vector: &Vector, object: &[u8], manifest: &[u8]) -> String {
    let header_len = u32::from_le_bytes(object[8..12].try_into().expect("four bytes")) as usize;
    let (commitment, records) = (12 + header_len, 44 + header_len);
    let preamble = &object[..commitment];
    let json = std::str::from_utf8(&preamble[12..]).expect("JSON is UTF-8");
    let header: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let salt = data_encoding::BASE64.decode(header["salt"].as_str().expect("a salt").as_bytes()).expect("base64");
    let hash = digest::digest(&digest::SHA256, preamble);
    let okm = hkdf_sha256(&salt, &[b"backup/v1 volume", hash.as_ref()].concat(), 64);
    assert_eq!(okm[32..], object[commitment..records]);
    let footer = object.len() - 152;
    let chunk = Record::open(object, records, &okm[..32], 0);
    let index = Record::open(object, chunk.end, &okm[..32], 1);
    assert_eq!(index.end, footer);

    let mut volume = String::new();
    dump(&mut volume, object, 0..8, "magic, version 1");
    dump(&mut volume, object, 8..12, &format!("H = {header_len}"));
    dump(&mut volume, object, 12..28, &format!("header: {header_len} bytes of JSON, of which these are the first"));
    dump(&mut volume, object, commitment..records, "commitment");
    for (record, what) in [(&chunk, "the frame"), (&index, "the seek table")] {
        dump(&mut volume, object, record.at..record.at + 4, &format!("word: flag {}, n = {}", record.flag, record.n));
        dump(&mut volume, object, record.at + 4..record.end - 16, &format!("ciphertext of {what}"));
        dump(&mut volume, object, record.end - 16..record.end, "tag");
    }
    dump(&mut volume, object, footer..footer + 8, &format!("footer: the index is at {}", index.at));
    dump(&mut volume, object, footer + 8..footer + 16, "one data chunk");
    dump(&mut volume, object, footer + 16..footer + 48, &format!("digest of bytes 0 to {}", footer - 1));
    dump(
        &mut volume,
        object,
        footer + 48..footer + 64,
        "no signature and no signer: 96 zeros, of which these are the first",
    );
    dump(&mut volume, object, footer + 144..footer + 152, "magic");

    let hex = |bytes: &[u8]| HEXLOWER.encode(bytes);
    format!(
        "The vector `{}`: the only volume of the stream `{}`, which holds the letter `a`.\n\n\
         ```text\n\
         data key       {}\n\
         its id         {}\n\
         SHA-256(preamble)\n               {}\n\
         volume key     {}\n\
         nonce          000000000000000000000000 for the chunk, 000000000000000000000001 for the index\n\
         frame          {}\n\
         seek table     {}\n\
         ```\n\n\
         The volume, {} bytes:\n\n```text\n{volume}```\n\n\
         Its header:\n\n```json\n{json}\n```\n\n\
         A manifest for it, two lines:\n\n```json\n{}```\n",
        vector.name,
        all.asked.stream,
        hex(data_key().expose()),
        hex(&hkdf_sha256(&[], b"backup/v1 data key id", 16)),
        hex(hash.as_ref()),
        hex(&okm[..32]),
        hex(&chunk.content),
        hex(&index.content),
        object.len(),
        std::str::from_utf8(manifest).expect("JSON is UTF-8"),
    )
}
