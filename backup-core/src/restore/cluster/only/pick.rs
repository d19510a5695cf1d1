//! Files out of the bytes of a tar stream: which ranges of it they lie in, and each written when its bytes come by.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;

use super::index::{Chosen, ours};
use crate::error::{Error, Result, Stage};
use crate::restore::tree::{Attributes, COPY_BYTES, Tree, create_file, names};
use crate::restore::worker::{Incoming, sink_error};

/// Bytes between two wanted files that are read rather than begun anew behind: some chunks, against some requests.
const GAP_BYTES: u64 = 4 << 20;

/// A range of a stream, and the files that lie in it.
pub(super) type Run = (Range<u64>, Vec<Chosen>);

/// Files that are read at once, with the range that they lie in. They come in the stream's order.
pub(super) fn runs(files: Vec<Chosen>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for file in files {
        let end = file.offset.saturating_add(file.size);
        match runs.last_mut() {
            Some((range, files)) if file.offset <= range.end.saturating_add(GAP_BYTES) => {
                range.end = range.end.max(end);
                files.push(file);
            }
            _ => runs.push((file.offset..end, vec![file])),
        }
    }
    runs
}

/// Writes the files of `runs` out of the bytes of their ranges, which come one behind the other.
pub(super) fn pick(incoming: Incoming, runs: &[Run], root: OwnedFd) -> Result<()> {
    let mut picking = Picking { incoming, tree: Tree::new(root), buffer: vec![0; COPY_BYTES] };
    for (range, files) in runs {
        let mut at = range.start;
        for file in files {
            picking.take(file.offset.saturating_sub(at), |_| Ok(()))?;
            picking.write(file)?;
            at = file.offset + file.size;
        }
    }
    while picking.incoming.next()?.is_some() {}
    Ok(())
}

struct Picking {
    incoming: Incoming,
    tree: Tree,
    buffer: Vec<u8>,
}

impl Picking {
    /// The next `bytes` of the stream.
    fn take(&mut self, bytes: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let room = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let n = self.incoming.read(&mut self.buffer[..room]).map_err(ours)?;
            if n == 0 {
                return Err(Error::integrity("a file lies beyond the end of its stream").at(Stage::Sink));
            }
            each(&self.buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    fn write(&mut self, file: &Chosen) -> Result<()> {
        let failed = |e: io::Error| sink_error(format!("cannot write {}", file.path.display()), e);
        let mut parents = names(&file.path)?;
        let Some(name) = parents.pop() else { return Err(failed(io::ErrorKind::InvalidFilename.into())) };
        let directory = self.tree.enter(&parents).map_err(|errno| failed(errno.into()))?;
        let out = File::from(create_file(&directory.fd, name).map_err(|errno| failed(errno.into()))?);
        self.take(file.size, |data| (&out).write_all(data).map_err(failed))?;
        let attributes = Attributes { mode: Mode::from_raw_mode(file.mode & 0o640 | 0o600), times: None, owner: None };
        attributes.apply(&out.into()).map_err(|errno| failed(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_lies_far_apart_is_read_apart() {
        let file = |offset, size| Chosen { path: PathBuf::new(), offset, size, mode: 0 };
        let runs = runs(vec![file(512, 1000), file(2048, 0), file(1 << 21, 5), file(1 << 30, 10)]);
        let ranges: Vec<_> = runs.iter().map(|(range, files)| (range.clone(), files.len())).collect();
        assert_eq!(ranges, [(512..(1 << 21) + 5, 3), (1 << 30..(1 << 30) + 10, 1)]);
    }
}
