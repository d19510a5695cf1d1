//! Whether all files were restored, and only those, and whole: compared with PostgreSQL's own manifest while they are written.
//!
//! No memory is needed for a file. Of the manifest's files there is a sum of fingerprints, each of path, size and checksum together, and of
//! the restored ones another: the sums are equal if and only if the files are. A filter of single bits tells a wrong file as soon as it
//! is written; which, and what it should be, is then read from the manifest again.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::backup_manifest::{Algorithm, ManifestFile};

/// Bits of the filter for each file. Eight of them are set, so that of 100,000 wrong files one is told at the end only, and without its name.
const BITS_PER_FILE: u64 = 32;
/// Less than a line of a manifest ever has.
const MANIFEST_BYTES_PER_FILE: u64 = 100;
const FILTER_BITS_MIN: u64 = 1 << 13;
/// 4 MiB, enough for a million files; of four million, one wrong file in 40 is told at the end only.
const FILTER_BITS_MAX: u64 = 1 << 25;

/// What the manifest says, and what has been restored so far.
#[derive(Debug)]
pub(super) struct Checker {
    /// That of all files; `None` if there is no file.
    algorithm: Option<Algorithm>,
    filter: Filter,
    expected: Tally,
    restored: Mutex<Tally>,
    wrong: Mutex<Option<WrongFile>>,
}

/// A set of fingerprints that takes a bounded amount of memory, and now and then thinks that it has one which it has not.
#[derive(Debug)]
pub(super) struct Filter(Vec<u64>);

/// A file that is not as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrongFile {
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    pub(super) checksum: Vec<u8>,
}

/// Fingerprints are not secret, and nobody forges what was sealed: a sum is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Tally {
    files: u64,
    sum: [u128; 2],
}

impl Checker {
    /// For a manifest of so many bytes; its files are added next.
    pub(super) fn new(manifest_bytes: u64) -> Self {
        Self {
            algorithm: None,
            filter: Filter::new(manifest_bytes),
            expected: Tally::default(),
            restored: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Adds a file of the manifest.
    pub(super) fn expect(&mut self, file: &ManifestFile) -> Result<()> {
        if *self.algorithm.get_or_insert(file.algorithm) != file.algorithm {
            let message = "the backup manifest has checksums of several kinds";
            return Err(Error::new(ErrorKind::Integrity, Stage::Catalog, message));
        }
        let fingerprint = fingerprint(&file.path, file.size, &file.checksum);
        self.filter.add(&fingerprint);
        self.expected.add(&fingerprint);
        Ok(())
    }

    /// How the checksums are made.
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or_default()
    }

    /// Takes account of a restored file.
    ///
    /// # Errors
    /// When it is not as the manifest says; then [`wrong`](Self::wrong) has it.
    pub(super) fn restored(&self, path: &[u8], size: u64, checksum: Vec<u8>) -> Result<()> {
        let fingerprint = fingerprint(path, size, &checksum);
        if !self.filter.has(&fingerprint) {
            let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            wrong.get_or_insert(WrongFile { path: path.to_vec(), size, checksum });
            return Err(not_as_the_manifest_says(&String::from_utf8_lossy(path)));
        }
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).add(&fingerprint);
        Ok(())
    }

    /// The first file that was found to be wrong.
    pub(super) fn wrong(&self) -> Option<WrongFile> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether all files of the manifest were restored, and no other.
    pub(super) fn is_complete(&self) -> bool {
        *self.restored.lock().unwrap_or_else(PoisonError::into_inner) == self.expected
    }
}

impl Filter {
    /// For the files of a manifest of so many bytes.
    pub(super) fn new(manifest_bytes: u64) -> Self {
        let bits = (manifest_bytes / MANIFEST_BYTES_PER_FILE).saturating_mul(BITS_PER_FILE);
        let bits = bits.clamp(FILTER_BITS_MIN, FILTER_BITS_MAX).next_power_of_two();
        Self(vec![0; usize::try_from(bits / 64).unwrap_or(usize::MAX)])
    }

    pub(super) fn add(&mut self, fingerprint: &[u8; 32]) {
        for bit in self.bits(fingerprint) {
            self.0[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// `false` is certain, `true` nearly so.
    pub(super) fn has(&self, fingerprint: &[u8; 32]) -> bool {
        self.bits(fingerprint).all(|bit| self.0[bit / 64] & (1 << (bit % 64)) != 0)
    }

    fn bits(&self, fingerprint: &[u8; 32]) -> impl Iterator<Item = usize> + use<> {
        // A power of two.
        let mask = self.0.len() * 64 - 1;
        let (words, _) = fingerprint.as_chunks::<4>();
        let words: [[u8; 4]; 8] = std::array::from_fn(|n| words[n]);
        words.into_iter().map(move |word| u32::from_le_bytes(word) as usize & mask)
    }
}

impl Tally {
    fn add(&mut self, fingerprint: &[u8; 32]) {
        self.files += 1;
        let (halves, _) = fingerprint.as_chunks::<16>();
        for (sum, half) in self.sum.iter_mut().zip(halves) {
            *sum = sum.wrapping_add(u128::from_le_bytes(*half));
        }
    }
}

pub(super) fn not_as_the_manifest_says(path: &str) -> Error {
    let message = format!("{path} is not as the backup's own manifest says");
    Error::new(ErrorKind::Integrity, Stage::Sink, message)
}

fn fingerprint(path: &[u8], size: u64, checksum: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(path.len() as u64).to_le_bytes());
    hasher.update(path);
    hasher.update(&size.to_le_bytes());
    hasher.update(checksum);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: u32) -> ManifestFile {
        let path = format!("base/5/{n}").into_bytes();
        ManifestFile { path, size: u64::from(n), algorithm: Algorithm::Crc32c, checksum: n.to_le_bytes().to_vec() }
    }

    fn checker(files: u32) -> Checker {
        let mut checker = Checker::new(u64::from(files) * 150);
        for n in 0..files {
            checker.expect(&file(n)).unwrap();
        }
        checker
    }

    fn restore(checker: &Checker, file: ManifestFile) -> Result<()> {
        checker.restored(&file.path, file.size, file.checksum)
    }

    #[test]
    fn all_files_in_any_order_are_complete_and_one_less_is_not() {
        let checker = checker(10_000);
        for n in (1..10_000).rev() {
            restore(&checker, file(n)).unwrap();
        }
        assert!(!checker.is_complete());
        restore(&checker, file(0)).unwrap();
        assert!(checker.is_complete());
        // Once more is not complete either, though it is a file of the manifest.
        restore(&checker, file(7)).unwrap();
        assert!(!checker.is_complete());
    }

    #[test]
    fn wrong_files_are_told_at_once_and_those_that_are_not_at_the_end() {
        let wrong = |n: u32| {
            [
                ManifestFile { path: format!("base/6/{n}").into_bytes(), ..file(n) },
                ManifestFile { size: 1 << 40, ..file(n) },
                ManifestFile { checksum: vec![9; 4], ..file(n) },
            ]
        };
        let checker = checker(10_000);
        let told: usize = (0..1000).flat_map(wrong).map(|file| usize::from(restore(&checker, file).is_err())).sum();
        assert_eq!(told, 3000);
        assert_eq!(checker.wrong().unwrap().path, b"base/6/0");
        assert!(!checker.is_complete());
    }

    #[test]
    fn the_memory_does_not_grow_with_the_files() {
        assert_eq!(Checker::new(u64::MAX).filter.0.len() * 8, 4 << 20);
        assert_eq!(Checker::new(0).filter.0.len() * 8, 1 << 10);
    }

    #[test]
    fn checksums_of_two_kinds_are_refused() {
        let mut checker = checker(1);
        let other = ManifestFile { algorithm: Algorithm::None, checksum: vec![], ..file(5) };
        assert_eq!(checker.expect(&other).unwrap_err().kind(), ErrorKind::Integrity);
    }
}
