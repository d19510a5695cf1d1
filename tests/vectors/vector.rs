//! `vectors.json`.

use backup_core::format::StreamEntry;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Vectors {
    pub(crate) about: String,
    /// The age identity that opens them all.
    pub(crate) identity: String,
    /// The same data key for all of them, in hexadecimal.
    pub(crate) data_key: String,
    /// What is asked for.
    pub(crate) asked: Asked,
    pub(crate) vectors: Vec<Vector>,
    /// Files of write-ahead log.
    pub(crate) wal: Wal,
}

/// Files of write-ahead log, which no manifest lists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Wal {
    pub(crate) asked: AskedWal,
    pub(crate) vectors: Vec<WalVector>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AskedWal {
    pub(crate) target: String,
    pub(crate) system_identifier: String,
    pub(crate) timeline: String,
    pub(crate) file: String,
}

/// One file, and what a reader must make of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WalVector {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Found only by a reader that computes the BLAKE3 of the plaintext.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) only_with_blake3: bool,
    /// What is stored, in the folder of the timeline.
    pub(crate) objects: Vec<Object>,
    pub(crate) expect: Expect,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) target: String,
    pub(crate) backup: String,
    pub(crate) stream: String,
}

/// One stream, and what a reader must make of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Another identity to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<String>,
    /// The fault is in how the data key is wrapped: a reader that is given the data key itself does not meet it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) only_with_identity: bool,
    /// What is stored.
    pub(crate) objects: Vec<Object>,
    /// What the manifest says of it.
    pub(crate) stream: StreamEntry,
    pub(crate) expect: Expect,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Object {
    /// Its name in the backup's folder.
    pub(crate) path: String,
    /// The file beside `vectors.json` that it is, before edits.
    pub(crate) file: String,
    /// Made one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) edits: Vec<Edit>,
}

/// `remove` bytes at `at` are replaced with `insert`, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit {
    pub(crate) at: usize,
    pub(crate) remove: usize,
    pub(crate) insert: String,
}

impl Edit {
    /// Replaces bytes by as many others.
    pub(crate) fn set(at: usize, bytes: &[u8]) -> Self {
        Self { at, remove: bytes.len(), insert: HEXLOWER.encode(bytes) }
    }

    /// Puts bytes in.
    pub(crate) fn insert(at: usize, bytes: &[u8]) -> Self {
        Self { at, remove: 0, insert: HEXLOWER.encode(bytes) }
    }

    /// Takes bytes out.
    pub(crate) fn remove(at: usize, remove: usize) -> Self {
        Self { at, remove, insert: String::new() }
    }
}

impl Object {
    /// The object, made of its file.
    pub(crate) fn edit(&self, file: &[u8]) -> Vec<u8> {
        let mut bytes = file.to_vec();
        for edit in &self.edits {
            let insert = HEXLOWER.decode(edit.insert.as_bytes()).expect("hexadecimal");
            bytes.splice(edit.at..edit.at + edit.remove, insert);
        }
        bytes
    }
}

/// What must come of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expect {
    /// These bytes.
    Plaintext { bytes: usize, sha256: String },
    /// A refusal, in words of which these are some.
    Error { kind: String, contains: Vec<String> },
}

impl Expect {
    pub(crate) fn plaintext(plain: &[u8]) -> Self {
        Self::Plaintext { bytes: plain.len(), sha256: sha256(plain) }
    }

    pub(crate) fn error(kind: &str, contains: &[&str]) -> Self {
        Self::Error { kind: kind.into(), contains: contains.iter().map(|&text| text.into()).collect() }
    }
}

/// SHA-256 in hexadecimal: every language has it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}
