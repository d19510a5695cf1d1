//! Finds the entries of a tar stream while it passes by, piece by piece. No I/O.

use std::path::{Component, PathBuf};

use tar::{EntryType, Header};

use crate::source::files_index::{EntryKind, FileEntry};

const BLOCK: usize = 512;

/// Why a stream is no tar archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTar {
    /// A header's checksum, or a number in it, is not one.
    #[error("the tar header at byte {0} is malformed")]
    Header(u64),
    /// It ended inside an entry.
    #[error("the tar archive ends inside an entry")]
    Truncated,
}

/// Watches one tar stream, and knows where it is in it.
pub(super) struct Entries {
    stream: String,
    offset: u64,
    header: [u8; BLOCK],
    filled: usize,
    /// Contents and padding that are still to pass.
    skip: u64,
    /// The name of the next entry stands in an extension header, which we do not read.
    unnamed: bool,
}

impl Entries {
    /// The entries of the tar stream that will be called `stream`.
    pub(super) fn of(stream: &str) -> Self {
        Self { stream: stream.to_owned(), offset: 0, header: [0; BLOCK], filled: 0, skip: 0, unnamed: false }
    }

    /// Takes the next bytes of the stream, up to the next entry, which is returned; the rest of `data` is to be given again.
    pub(super) fn next(&mut self, data: &mut &[u8]) -> Result<Option<FileEntry>, NoTar> {
        while !data.is_empty() {
            if self.skip > 0 {
                let n = usize::try_from(self.skip).map_or(data.len(), |skip| skip.min(data.len()));
                self.take(data, n);
                self.skip -= n as u64;
                continue;
            }
            let n = (BLOCK - self.filled).min(data.len());
            self.header[self.filled..self.filled + n].copy_from_slice(&data[..n]);
            self.filled += n;
            self.take(data, n);
            if self.filled == BLOCK {
                self.filled = 0;
                if let Some(entry) = self.read_header()? {
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }

    /// To be called at the end of the stream.
    pub(super) fn finish(&self) -> Result<(), NoTar> {
        if self.skip == 0 && self.filled == 0 { Ok(()) } else { Err(NoTar::Truncated) }
    }

    fn take(&mut self, data: &mut &[u8], n: usize) {
        *data = &data[n..];
        self.offset += n as u64;
    }

    fn read_header(&mut self) -> Result<Option<FileEntry>, NoTar> {
        if self.header.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let at = self.offset - BLOCK as u64;
        let header = Header::from_byte_slice(&self.header);
        let malformed = |_| NoTar::Header(at);
        // The sum of all bytes, with blanks in place of the sum itself.
        let sum: u32 = self.header.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = self.header[148..156].iter().map(|&byte| u32::from(byte)).sum();
        if header.cksum().map_err(malformed)? != sum - own + 8 * u32::from(b' ') {
            return Err(NoTar::Header(at));
        }
        let size = header.entry_size().map_err(malformed)?;
        self.skip = size.checked_next_multiple_of(BLOCK as u64).ok_or(NoTar::Header(at))?;
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Some(EntryKind::File),
            EntryType::Directory => Some(EntryKind::Directory),
            EntryType::Symlink => Some(EntryKind::Symlink),
            EntryType::Link => Some(EntryKind::HardLink),
            EntryType::GNULongName | EntryType::XHeader => {
                self.unnamed = true;
                return Ok(None);
            }
            _ => None,
        };
        let (Some(kind), false) = (kind, std::mem::take(&mut self.unnamed)) else { return Ok(None) };
        let seconds = i128::from(header.mtime().map_err(malformed)?);
        let path = header.path().map_err(malformed)?;
        let mut entry = FileEntry {
            path: String::new(),
            path_base64: None,
            stream: Some(self.stream.clone()),
            kind,
            offset: self.offset,
            size,
            mode: header.mode().map_err(malformed)? & 0o7777,
            mtime_ns: seconds * 1_000_000_000,
        };
        // Without the slash behind a directory, as in the index of a directory.
        let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        entry.set_path(&plain);
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive() -> (Vec<u8>, Vec<(&'static str, EntryKind, u64)>) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut expected = Vec::new();
        let mut add = |path: &'static str, kind: EntryType, size: u64, is: EntryKind| {
            let mut header = Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_mode(0o100_600);
            header.set_mtime(1_000_000);
            if kind == EntryType::Symlink {
                header.set_link_name("/srv/fast").unwrap();
            }
            header.set_path(path).unwrap();
            header.set_cksum();
            tar.append(&header, &vec![7; usize::try_from(size).unwrap()][..]).unwrap();
            expected.push((path, is, size));
        };
        add("backup_label", EntryType::Regular, 226, EntryKind::File);
        add("base/", EntryType::Directory, 0, EntryKind::Directory);
        add("base/1/1259", EntryType::Regular, 8192, EntryKind::File);
        add("pg_tblspc/16384", EntryType::Symlink, 0, EntryKind::Symlink);
        add("global/pg_control", EntryType::Regular, 0, EntryKind::File);
        (tar.into_inner().unwrap(), expected)
    }

    fn scan(pieces: &[&[u8]]) -> Result<Vec<FileEntry>, NoTar> {
        let (mut entries, mut found) = (Entries::of("base"), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                found.extend(entries.next(&mut rest)?);
            }
        }
        entries.finish()?;
        Ok(found)
    }

    proptest! {
        #[test]
        fn entries_are_found_however_the_stream_is_cut(mut cuts in prop::collection::vec(0usize..14_000, 0..20)) {
            let (tar, expected) = archive();
            cuts.iter_mut().for_each(|cut| *cut = (*cut).min(tar.len()));
            cuts.extend([0, tar.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &tar[pair[0]..pair[1]]).collect();
            let found = scan(&pieces).unwrap();
            let seen: Vec<_> = found.iter().map(|e| (e.path.as_str(), e.kind, e.size)).collect();
            let expected: Vec<_> = expected.iter().map(|(path, kind, size)| (path.trim_end_matches('/'), *kind, *size)).collect();
            prop_assert_eq!(seen, expected);
            for entry in found.iter().filter(|e| e.kind == EntryKind::File && e.size > 0) {
                let start = usize::try_from(entry.offset).unwrap();
                prop_assert!(tar[start..start + usize::try_from(entry.size).unwrap()].iter().all(|&b| b == 7));
                prop_assert_eq!((entry.mode, entry.mtime_ns, entry.stream.as_deref()), (0o600, 1_000_000_000_000_000, Some("base")));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = scan(&[&bytes]);
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let (tar, _) = archive();
        assert_eq!(scan(&[&tar[..700]]), Err(NoTar::Truncated));
        let mut damaged = tar;
        damaged[3] ^= 1;
        assert_eq!(scan(&[&damaged]), Err(NoTar::Header(0)));
        assert_eq!(scan(&[]), Ok(Vec::new()));
    }
}
