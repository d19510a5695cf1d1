//! Files that are read whole, such as the configuration. Opened once, so what was checked is what is read.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// A file that is open, and what the system says of it.
#[derive(Debug)]
pub struct SmallFile {
    file: File,
    metadata: Metadata,
}

impl SmallFile {
    /// Opens the file at `path`. Blocks, when that is a pipe that nobody writes to.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { metadata: file.metadata()?, file })
    }

    /// Like [`open`](Self::open); `None` when there is no such file. One that must not be looked at is no missing one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        match Self::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    /// The permissions, when it is a regular file: those of a pipe say nothing about what comes through it.
    pub fn mode(&self) -> Option<u32> {
        self.metadata.is_file().then(|| self.metadata.permissions().mode() & 0o777)
    }

    /// Whether root or the user that this process acts for owns it.
    pub fn is_ours(&self) -> bool {
        [0, rustix::process::geteuid().as_raw()].contains(&self.metadata.uid())
    }

    /// The whole text, of at most `bytes_max` bytes; wiped from memory when dropped.
    ///
    /// # Errors
    /// `InvalidData` when it is longer or not UTF-8, and those of the system.
    pub fn read(self, bytes_max: usize) -> io::Result<Zeroizing<String>> {
        let mut bytes = room(bytes_max);
        self.file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        text(bytes, bytes_max)
    }
}

/// Room for a text of at most `bytes_max` bytes, and for one that shows that it is longer. With its capacity from the start: a vector that grows leaves
/// copies behind.
pub(crate) fn room(bytes_max: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(bytes_max + 1))
}

/// Bytes as a text of at most `bytes_max` bytes.
pub(crate) fn text(mut bytes: Zeroizing<Vec<u8>>, bytes_max: usize) -> io::Result<Zeroizing<String>> {
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {bytes_max} bytes")));
    }
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|e| {
        drop(Zeroizing::new(e.into_bytes()));
        io::Error::new(io::ErrorKind::InvalidData, "not valid UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_not_read_to_its_end() {
        let error = SmallFile::open(Path::new("/dev/zero")).unwrap().read(1000).unwrap_err();
        assert_eq!(error.to_string(), "longer than 1000 bytes");
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        assert!(SmallFile::find(Path::new("/no/such/file")).unwrap().is_none());
        // A file has no entries.
        assert!(SmallFile::find(Path::new("/dev/null/file")).is_err());
    }
}
