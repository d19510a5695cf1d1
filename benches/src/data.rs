//! Data to back up, the same in every run.

use std::fmt::Write;

use backup_core::pipeline::Buffer;
use backup_core::source::{Piece, Source};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

/// Bytes of plaintext in a chunk, as in every backup that does not ask otherwise.
pub const CHUNK: usize = backup_core::pipeline::CHUNK_SIZE_DEFAULT as usize;

const NAMES: [&str; 16] = [
    "Anna", "Björn", "Carla", "Dmitri", "Elif", "Farid", "Grace", "Hiroshi", "Ines", "Jamal", "Katja", "Luis", "Mei",
    "Noor", "Olga", "Pavel",
];
const SURNAMES: [&str; 16] = [
    "Almeida",
    "Bauer",
    "Cohen",
    "Dubois",
    "Eriksen",
    "Fischer",
    "García",
    "Huang",
    "Ivanova",
    "Jensen",
    "Kowalski",
    "Lindqvist",
    "Müller",
    "Nakamura",
    "Okafor",
    "Petrov",
];
const STATES: [&str; 6] = ["delivered", "delivered", "delivered", "shipped", "returned", "pending"];
const PLACES: [&str; 8] =
    ["Amsterdam\tNL", "Berlin\tDE", "Bruxelles\tBE", "Kraków\tPL", "Lisboa\tPT", "Lyon\tFR", "Wien\tAT", "Zürich\tCH"];
const REMARKS: [&str; 9] = [
    "\\N",
    "\\N",
    "\\N",
    "\\N",
    "\\N",
    "\\N",
    "Please leave the package with the neighbour",
    "Ring twice, the bell is broken",
    "Refund was paid after the parcel arrived damaged",
];

/// `len` bytes of what `pg_dump` writes for a table of orders: ids, timestamps, names, amounts, coordinates, remarks. zstd at level 3 makes
/// less than a quarter of it, as of many dumps.
pub fn dump(len: usize) -> Bytes {
    let mut random = Random(1);
    let mut text = String::with_capacity(len + 512);
    text.push_str("COPY public.orders (id, customer, placed, state, name, mail, amount, currency, city, country, lat, remark) FROM stdin;\n");
    let (mut id, mut second) = (4_100_000_u64, 0);
    while text.len() < len {
        id += 1;
        second += random.below(40);
        row(&mut text, &mut random, id, second).expect("a string takes everything");
    }
    let mut bytes = text.into_bytes();
    bytes.truncate(len);
    bytes.into()
}

fn row(text: &mut String, random: &mut Random, id: u64, second: u64) -> std::fmt::Result {
    let (name, surname) = (random.pick(&NAMES), random.pick(&SURNAMES));
    let (day, hour, minute) = (1 + second / 86_400 % 28, second / 3600 % 24, second / 60 % 60);
    write!(text, "{id}\t{}\t2026-{:02}-{day:02} {hour:02}", random.below(90_000), 1 + second / 2_419_200 % 12)?;
    write!(text, ":{minute:02}:{:02}.{:03}+00\t{}", second % 60, random.below(1000), random.pick(&STATES))?;
    write!(text, "\t{name} {surname}\t{name}.{surname}{}@example.org", random.below(100))?;
    write!(text, "\t{}.{:02}\tEUR\t{}", random.below(400), random.below(100), random.pick(&PLACES))?;
    writeln!(text, "\t{}.{:04}\t{}", 36 + random.below(20), random.below(10_000), random.pick(&REMARKS))
}

/// `len` bytes that nothing compresses.
pub fn random(len: usize) -> Bytes {
    let mut random = Random(2);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// SplitMix64: three lines that will give the same numbers for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}

/// The same bytes several times over, as a source that has them in memory.
#[derive(Debug, Clone)]
pub struct Repeated {
    bytes: Bytes,
    times: usize,
}

impl Repeated {
    /// A stream of `times` times `bytes`.
    pub fn new(bytes: &Bytes, times: usize) -> Self {
        Self { bytes: bytes.clone(), times }
    }
}

impl Source for Repeated {
    fn next(&mut self, _: Buffer) -> BoxFuture<'_, backup_core::Result<Option<Piece>>> {
        let left = self.times > 0;
        self.times = self.times.saturating_sub(1);
        ready(Ok(left.then(|| Piece::Bytes(self.bytes.clone())))).boxed()
    }
}

/// The same stream as a reader has it: every byte is copied into the pipeline's buffers, as from a file or a pipe.
#[derive(Debug)]
pub struct RepeatedReader {
    bytes: Bytes,
    times: usize,
    at: usize,
}

impl RepeatedReader {
    /// A reader of `times` times `bytes`.
    pub fn new(bytes: &Bytes, times: usize) -> Self {
        Self { bytes: bytes.clone(), times, at: 0 }
    }
}

impl std::io::Read for RepeatedReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.bytes.len() {
            (self.at, self.times) = (0, self.times.saturating_sub(1));
        }
        if self.times == 0 {
            return Ok(0);
        }
        let n = into.len().min(self.bytes.len() - self.at);
        into[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dump_compresses_as_dumps_do() {
        let dump = dump(2 * CHUNK);
        let ratio = dump.len() as f64 / zstd::bulk::compress(&dump, 3).unwrap().len() as f64;
        assert!((3.0..5.0).contains(&ratio), "{ratio}");
        assert!(zstd::bulk::compress(&random(CHUNK), 3).unwrap().len() > CHUNK);
    }

    #[test]
    fn a_reader_gives_the_same_stream_as_its_source() {
        let bytes = Bytes::from_static(b"0123456789");
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut RepeatedReader::new(&bytes, 3), &mut read).unwrap();
        assert_eq!(read, bytes.repeat(3));
    }
}
