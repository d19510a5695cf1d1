//! Headers of tar streams: POSIX `ustar`, with PAX records where those do not reach. No I/O.

use rustix::fs::Stat;
use tar::{Builder, EntryType, Header};

use super::files_index::EntryKind;

/// The largest number in eleven and in seven octal digits.
const SIZE_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u64 = 0o7_777_777;

/// What stands before the contents of one entry.
pub(super) struct Headers<'a> {
    pub(super) path: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) kind: EntryKind,
    pub(super) size: u64,
    pub(super) stat: &'a Stat,
}

impl Headers<'_> {
    /// Appends them to `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> std::io::Result<()> {
        let mut header = Header::new_ustar();
        let mut pax: Vec<(&str, Vec<u8>)> = Vec::new();
        let fields = header.as_ustar_mut().ok_or(std::io::ErrorKind::InvalidData)?;
        if !split_path(self.path, &mut fields.prefix, &mut fields.name) {
            pax.push(("path", self.path.to_vec()));
        }
        if !fits(self.link, &mut fields.linkname) {
            pax.push(("linkpath", self.link.to_vec()));
        }
        let mut number = |key, value: u64, max: u64| {
            if value > max {
                pax.push((key, value.to_string().into_bytes()));
            }
            value.min(max)
        };
        header.set_size(number("size", self.size, SIZE_MAX));
        header.set_uid(number("uid", self.stat.st_uid.into(), ID_MAX));
        header.set_gid(number("gid", self.stat.st_gid.into(), ID_MAX));
        // The header's field knows neither years before 1970 nor those after 2242.
        let modified = u64::try_from(self.stat.st_mtime).unwrap_or_default().min(SIZE_MAX);
        header.set_mtime(modified);
        if i128::from(self.stat.st_mtime) != i128::from(modified) {
            pax.push(("mtime", self.stat.st_mtime.to_string().into_bytes()));
        }
        header.set_mode(self.stat.st_mode & 0o7777);
        header.set_entry_type(match self.kind {
            EntryKind::File => EntryType::Regular,
            EntryKind::Directory => EntryType::Directory,
            EntryKind::Symlink => EntryType::Symlink,
            EntryKind::HardLink => EntryType::Link,
        });
        header.set_cksum();
        if !pax.is_empty() {
            let mut builder = Builder::new(Vec::new());
            builder.append_pax_extensions(pax.iter().map(|(key, value)| (*key, value.as_slice())))?;
            // Not `into_inner`, which would end the archive.
            out.extend_from_slice(builder.get_ref());
        }
        out.extend_from_slice(header.as_bytes());
        Ok(())
    }
}

/// Puts a path where `ustar` has room for it; if there is not enough, as much as fits, and `false`.
fn split_path(path: &[u8], prefix: &mut [u8; 155], name: &mut [u8; 100]) -> bool {
    if fits(path, name) {
        return true;
    }
    // A directory's own trailing slash is no place to split at.
    let places = (0..path.len().saturating_sub(1)).filter(|&at| path[at] == b'/');
    match places.rev().find(|&at| at <= prefix.len() && at > 0).filter(|&at| path.len() - at - 1 <= name.len()) {
        Some(at) => {
            name.fill(0);
            fits(&path[..at], prefix) && fits(&path[at + 1..], name)
        }
        None => false,
    }
}

fn fits(text: &[u8], field: &mut [u8]) -> bool {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
    text.len() <= field.len()
}
