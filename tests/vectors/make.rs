//! Makes the vectors. Everything is fixed (keys, salts, times, frames made by hand), so the same vectors always come out.

use std::collections::BTreeMap;

use backup_core::encrypt::{DataKey, Suite};
use backup_core::format::{Codec, Flag, Header, ObjectName, StreamEntry, VolumeEntry};
use backup_core::keys::Wrap;
use backup_tests::volume::{Volume, VolumeBuilder};
use data_encoding::HEXLOWER;

use super::vector::{Asked, Edit, Expect, Object, Vector, Vectors, Wal, WalVector};

/// Made for these vectors, and published with them.
pub(crate) const IDENTITY: &str = "AGE-SECRET-KEY-1W2PHU7YRKG0R9HELYX8DW56LVJG5LK32U3P6WYDL8D9SHWLM4XWQTT8F76";
pub(crate) const STRANGER: &str = "AGE-SECRET-KEY-16RW5RVTZR43VC2ZU7GXZZ29EVWX4G7459RHRGQU6EXNLTCYG5QZSNZYMV8";
const RECIPIENT: &str = "age1mgdnvzlamnanmvekjzkvfjvya5prvpwytck8syg8f74k846f43squa3s89";
/// [`data_key`] wrapped for [`RECIPIENT`].
const WRAP: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBZa3pCVFVnL3ROQm1uMFdEL0pLQUpGWVlqTTAvSjFJVkVFSzJRa0lBY0JzClJEbC9VU2dpQ1ZNU0RKaWtYL0V3VVRXM3VIWkc5UU84djJhUzJYclNVcEEKLT4gYlJgQC1ncmVhc2UgI0R2UXYKeFJmclh4VXBpdGZCd1dYZGZhVVgKLS0tIG9XbUJqdUtyTzJzV1orSjJaVnpEM0pCYVpPMURHMmZ1a1NvTStxYVJ6eDAKDa8ECl7hm66sfTB8/+UgieG82J9CJSzqVw0f35GHF+cFfP3NC+EX9zCHy9eWbeNQ8rcFy86hUTtbBVo7apFbrQ==";
/// [`other_key`] wrapped for [`RECIPIENT`].
const OTHER_WRAP: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSBvZlhCeW5TVlRodndzY0l6U1BZSmZlQWQyUk40NGh4eGJnVUF0cWpVNjBFCmdWbVBTdmFKU28zcWNCZWgwRlV0R2JraEJvMWhCcnFrVThlU0huV0tEMW8KLT4gXS1ncmVhc2UKdFlMY2VCRW43VkpwdTBIWFZhR0lkNWhTQXQwVHVBY0doS1dZaE5XVG12Z2dmdUZBYlJtdnZ2VjVCcTlabUl3SQpwdwotLS0gUnFkQ0VUY3VzUExpc01UTGV0eFhKaVNpcFpEUFQ5RW5mb09lQk11MWZESQpcFyvmJ/sQ953yCGY9y7jPMqRbgRJPUbNj1n8tc3ze106rcapqYTYpnAjGDRLMSGc/hhaugxUJdfByaFsBY6eH";

pub(crate) const CHUNK: usize = 4096;
pub(crate) const TARGET: &str = "app";
const BACKUP: &str = "20261122T020000Z-vectorsvectorsve";
const STREAM: &str = "dump";

pub(crate) fn data_key() -> DataKey {
    DataKey::from_bytes(std::array::from_fn(|i| u8::try_from(i).expect("below 32")))
}

pub(crate) fn other_key() -> DataKey {
    DataKey::from_bytes(std::array::from_fn(|i| u8::try_from(255 - i).expect("above 223")))
}

/// Bytes of a stream: each chunk is one letter, so that frames are short and chunks differ.
pub(crate) fn letters(len: usize) -> Vec<u8> {
    (0..len).map(|i| b'a' + u8::try_from(i / CHUNK % 26).expect("below 26")).collect()
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
    out
}

/// A zstd frame of RLE blocks where `plain` is one byte over and over, else of raw blocks (RFC 8878, 3.1.1).
pub(crate) fn frame(plain: &[u8]) -> Vec<u8> {
    frame_that_says(plain.len(), plain)
}

/// The same, with a content size of its own.
pub(crate) fn frame_that_says(size: usize, plain: &[u8]) -> Vec<u8> {
    const BLOCK_MAX: usize = 128 * 1024;
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    out.extend_from_slice(&u32::try_from(size).expect("short").to_le_bytes());
    if plain.is_empty() {
        out.extend_from_slice(&[1, 0, 0]);
    }
    let mut blocks = plain.chunks(BLOCK_MAX).peekable();
    while let Some(block) = blocks.next() {
        let last = usize::from(blocks.peek().is_none());
        let repeats = block.iter().all(|b| *b == block[0]);
        let head = last | usize::from(repeats) << 1 | block.len() << 3;
        out.extend_from_slice(&head.to_le_bytes()[..3]);
        out.extend_from_slice(if repeats { &block[..1] } else { block });
    }
    out
}

/// The header of volume `volume` in the vector `name`, of zstd frames under AES-256-GCM.
pub(crate) fn header(name: &str, volume: u32) -> Header {
    let hash = |text: String| *blake3::hash(text.as_bytes()).as_bytes();
    Header {
        name: ObjectName::Backup { target: TARGET.into(), backup: BACKUP.into(), stream: STREAM.into() },
        stream_id: HEXLOWER.encode(&hash(format!("stream of {name}"))[..16]),
        volume,
        created: "2026-11-22T02:00:00Z".parse().expect("a time"),
        suite: Suite::Aes256Gcm,
        codec: Codec::Zstd,
        chunk_size: u32::try_from(CHUNK).expect("4096"),
        volume_chunks: 2,
        salt: hash(format!("salt of {name} {volume}")),
        data_key: data_key().id(),
        wraps: vec![wrap(WRAP)],
        plaintext: None,
        critical: Vec::new(),
    }
}

fn wrap(base64: &str) -> Wrap {
    let wrap = data_encoding::BASE64.decode(base64.as_bytes()).expect("base64");
    Wrap { kind: "age".into(), recipient: RECIPIENT.into(), wrap }
}

/// [`other_key`], wrapped for the same recipient.
pub(crate) fn wrap_of_other_key() -> Wrap {
    wrap(OTHER_WRAP)
}

/// A content that holds `plain` in the codec of `header`.
pub(crate) fn content(header: &Header, plain: &[u8]) -> Vec<u8> {
    if header.codec == Codec::Zstd { frame(plain) } else { plain.to_vec() }
}

/// One volume with these chunks.
pub(crate) fn volume(header: &Header, chunks: &[&[u8]], flag: Flag) -> Volume {
    chunks
        .iter()
        .fold(VolumeBuilder::new(header, &data_key()), |volume, plain| {
            volume.chunk(&content(header, plain), plain.len())
        })
        .finish(flag)
}

/// The volumes of `plain`, as a writer makes them; `header` gives that of each.
pub(crate) fn stream(plain: &[u8], header: impl Fn(u32) -> Header) -> Vec<Volume> {
    let first = header(0);
    let chunks: Vec<&[u8]> = plain.chunks(first.chunk_size as usize).collect();
    let mut volumes: Vec<&[&[u8]]> = chunks.chunks(first.volume_chunks as usize).collect();
    if volumes.is_empty() {
        volumes.push(&[]);
    }
    let last = volumes.len() - 1;
    let flag = |i| if i == last { Flag::IndexEnd } else { Flag::IndexMore };
    (0..).zip(volumes).enumerate().map(|(i, (number, chunks))| volume(&header(number), chunks, flag(i))).collect()
}

/// Collects vectors and the files that they are made of.
#[derive(Default)]
pub(crate) struct Maker {
    files: BTreeMap<String, Vec<u8>>,
    vectors: Vec<Vector>,
    wal: Vec<WalVector>,
}

impl Maker {
    /// One sound stream, and its files.
    pub(crate) fn single(name: &str, plain: &[u8], volumes: &[Volume]) -> (BTreeMap<String, Vec<u8>>, Vector) {
        let mut maker = Self::default();
        maker.valid(name, "", plain, volumes);
        (maker.files, maker.vectors.remove(0))
    }

    /// A stream that must come back as `plain`.
    pub(crate) fn valid(&mut self, name: &str, about: &str, plain: &[u8], volumes: &[Volume]) {
        self.add(name, about, volumes, Expect::plaintext(plain));
    }

    /// A stream that must be refused; `contains` are words of the reason.
    pub(crate) fn hostile(&mut self, name: &str, about: &str, volumes: &[Volume], contains: &[&str]) -> &mut Vector {
        self.add(name, about, volumes, Expect::error("integrity", contains))
    }

    /// The vector `base` with changes to its volume `number`, to be refused in words that name the volume, too.
    pub(crate) fn edited(
        &mut self,
        name: &str,
        about: &str,
        (base, number): (&str, usize),
        edits: Vec<Edit>,
        contains: &[&str],
    ) -> &mut Vector {
        let mut vector = self.copy(base, name, about);
        let object = &mut vector.objects[number];
        object.edits = edits;
        vector.expect = Expect::error("integrity", &[&[object.path.as_str()], contains].concat());
        vector.stream.volumes[number].bytes = object.edit(&self.files[&object.file]).len() as u64;
        self.push(vector)
    }

    /// The vector `base` with other volumes, given by their numbers: those stored, and those that the manifest lists.
    pub(crate) fn arranged(
        &mut self,
        name: &str,
        about: &str,
        (base, volumes): (&str, &[Volume]),
        (stored, listed): (&[usize], &[usize]),
        contains: &[&str],
    ) {
        let mut vector = self.copy(base, name, about);
        let path = |i: usize| format!("{STREAM}.{i:05}.vol");
        let (objects, entries) = (vector.objects, vector.stream.volumes);
        let object = |(i, from): (usize, &usize)| Object { path: path(i), ..objects[*from].clone() };
        let entry = |(i, from): (usize, &usize)| VolumeEntry { path: path(i), ..entries[*from].clone() };
        vector.objects = stored.iter().enumerate().map(object).collect();
        vector.stream.volumes = listed.iter().enumerate().map(entry).collect();
        vector.stream.bytes = listed.iter().map(|from| volumes[*from].plain_len).sum();
        vector.expect = Expect::error("integrity", contains);
        self.push(vector);
    }

    fn copy(&self, base: &str, name: &str, about: &str) -> Vector {
        let base = self.vectors.iter().find(|v| v.name == base).expect("bases are made first");
        Vector { name: name.into(), about: about.into(), ..base.clone() }
    }

    fn push(&mut self, vector: Vector) -> &mut Vector {
        assert!(self.vectors.iter().all(|v| v.name != vector.name), "{} stands twice", vector.name);
        self.vectors.push(vector);
        self.vectors.last_mut().expect("just pushed")
    }

    fn add(&mut self, name: &str, about: &str, volumes: &[Volume], expect: Expect) -> &mut Vector {
        let mut objects = Vec::new();
        let mut entries = Vec::new();
        for (i, volume) in volumes.iter().enumerate() {
            let path = format!("{STREAM}.{i:05}.vol");
            entries.push(volume.entry(&path));
            objects.push(Object { path, file: self.file(name, i, &volume.bytes), edits: Vec::new() });
        }
        let stream = StreamEntry {
            name: STREAM.into(),
            stream_id: header(name, 0).stream_id,
            bytes: volumes.iter().map(|volume| volume.plain_len).sum(),
            volumes: entries,
        };
        let (name, about) = (name.into(), about.into());
        self.push(Vector { name, about, identity: None, only_with_identity: false, objects, stream, expect })
    }

    /// A file of write-ahead log: its objects by their paths.
    pub(crate) fn wal(
        &mut self,
        name: &str,
        about: &str,
        objects: &[(&str, Vec<u8>)],
        expect: Expect,
    ) -> &mut WalVector {
        let mut stored = Vec::new();
        for (i, (path, bytes)) in objects.iter().enumerate() {
            stored.push(Object { path: (*path).into(), file: self.file(name, i, bytes), edits: Vec::new() });
        }
        let (name, about) = (name.into(), about.into());
        self.wal.push(WalVector { name, about, only_with_blake3: false, objects: stored, expect });
        self.wal.last_mut().expect("just pushed")
    }

    fn file(&mut self, vector: &str, number: usize, bytes: &[u8]) -> String {
        if let Some((name, _)) = self.files.iter().find(|(_, known)| *known == bytes) {
            return name.clone();
        }
        let name = format!("{vector}.{number}.vol");
        self.files.insert(name.clone(), bytes.to_vec());
        name
    }

    /// All of it: the files by name, `vectors.json` among them.
    pub(crate) fn finish(self) -> BTreeMap<String, Vec<u8>> {
        let vectors = Vectors {
            about: "Vectors for format version 1; see docs/FORMAT.md and tests/vectors/README.md".into(),
            identity: IDENTITY.into(),
            data_key: HEXLOWER.encode(data_key().expose()),
            asked: Asked { target: TARGET.into(), backup: BACKUP.into(), stream: STREAM.into() },
            vectors: self.vectors,
            wal: Wal { asked: super::wal::asked(), vectors: self.wal },
        };
        let mut files = self.files;
        let mut json = serde_json::to_vec_pretty(&vectors).expect("plain data");
        json.push(b'\n');
        files.insert("vectors.json".into(), json);
        files
    }
}
