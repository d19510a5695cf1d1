//! The manifest of a backup: two lines, the document and the proof of it.

use std::collections::HashSet;

use data_encoding::BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, VOLUME_CHUNKS_MAX, json};
use crate::encrypt::signature::{self, Signer, SigningKey};
use crate::encrypt::{DataKey, mac};
use crate::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};

/// The longest manifest in bytes.
pub const MANIFEST_LEN_MAX: usize = 16 * 1024 * 1024;

const SIGNATURE_DOMAIN: &[u8] = b"backup/v1 manifest signature";

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Bytes from standard input or an embedder.
    Stream,
    /// The output of a command.
    Command,
    /// A logical dump by `pg_dump`.
    PgDump,
    /// A directory.
    Directory,
    /// A whole PostgreSQL cluster, as its server gave it.
    BaseBackup,
    /// A kind that a later release added.
    #[serde(untagged)]
    Other(String),
}

/// How sound the source was when it was backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing was wrong.
    #[default]
    Good,
    /// The source itself reported damage: kept, and never chosen as the latest.
    Damaged,
}

/// What list, prune, monitoring and keyless verification need to know of a backup, in the clear.
///
/// It never changes once written. What describes the data itself is in streams of the backup, sealed like all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's major version: 1.
    pub format: u32,
    /// The backup's id.
    pub id: String,
    /// The target's name.
    pub target: String,
    /// What it is a backup of.
    pub kind: Kind,
    /// How sound the source was.
    #[serde(default)]
    pub condition: Condition,
    /// How many warnings there were; their texts are in the stream `details`.
    #[serde(default)]
    pub warnings: u64,
    /// When reading the source began.
    pub started: Timestamp,
    /// When the last volume was complete.
    pub finished: Timestamp,
    /// Id of the data key.
    pub data_key: String,
    /// Whom the data key was wrapped for when the backup was made.
    pub recipients: Vec<RecipientName>,
    /// The streams; at least one.
    pub streams: Vec<StreamEntry>,
    /// Of which cluster, from where to where in its log; only with [`Kind::BaseBackup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterEntry>,
    /// Ids of backups of the same target that this one cannot be restored without.
    #[serde(default)]
    pub requires: Vec<String>,
    /// Version of the program that wrote it.
    pub version: String,
    /// Fields that a reader must understand or refuse the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
}

/// The public form of a recipient.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecipientName {
    /// Its kind: `age`, `passphrase`, …
    pub kind: String,
    /// Its public form.
    pub recipient: String,
}

/// One stream of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEntry {
    /// Its name: `dump`, `details`, …
    pub name: String,
    /// The random name of its run, as in its volumes' headers.
    pub stream_id: String,
    /// Bytes of plaintext.
    pub bytes: u64,
    /// Its volumes, in order; at least one.
    pub volumes: Vec<VolumeEntry>,
}

/// One volume of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Name of the object, below the backup's own prefix.
    pub path: String,
    /// Size of the object in bytes.
    pub bytes: u64,
    /// Data chunks in it.
    pub chunks: u64,
    /// BLAKE3 of everything before its footer.
    #[serde(with = "super::base64_bytes")]
    pub digest: [u8; 32],
}

/// Of which cluster a base backup is, and what of the cluster's log a restore of it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterEntry {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The server's version as a number, such as 150018.
    pub server_version_num: u32,
    /// Size of the cluster's WAL segments in bytes.
    pub wal_segment_bytes: SegmentSize,
    /// The timeline that the backup was taken on.
    pub timeline: Timeline,
    /// Where recovery begins: the backup's checkpoint.
    pub start_lsn: Lsn,
    /// What recovery must reach before the cluster is consistent.
    pub stop_lsn: Lsn,
    /// When the backup ended, by the server's clock.
    pub stopped: Timestamp,
    /// Whether the log from `start_lsn` to `stop_lsn` is in the backup, in the stream `pg_wal`; otherwise it is in the archive alone.
    pub wal_included: bool,
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    #[serde(with = "super::base64_bytes")]
    mac: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signer: Option<String>,
}

impl Manifest {
    /// Both lines, as stored, without a signature.
    pub fn encode(&self, data_key: &DataKey) -> Result<Vec<u8>, FormatError> {
        self.encode_signed(data_key, None)
    }

    /// Both lines, as stored.
    pub fn encode_signed(&self, data_key: &DataKey, key: Option<&SigningKey>) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let malformed = |e: serde_json::Error| FormatError::Malformed { what: "manifest", reason: e.to_string() };
        let mut out = serde_json::to_vec(self).map_err(malformed)?;
        let mac = mac::MANIFEST.mac(data_key, &out).to_vec();
        let signature = key.map(|key| BASE64.encode(&key.sign(SIGNATURE_DOMAIN, &out)));
        let signer = key.map(|key| BASE64.encode(key.signer().as_bytes()));
        out.push(b'\n');
        let proof = Proof { mac, signature, signer };
        serde_json::to_writer(&mut out, &proof).map_err(malformed)?;
        out.push(b'\n');
        check_len(&out)?;
        Ok(out)
    }

    /// Reads a manifest without a key: what it says is not proved.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::split(bytes).and_then(|(document, _)| Self::decode_document(document))
    }

    /// Who signed a manifest; `None` when nobody did. The signature is checked, and nothing of the document is read.
    pub fn signed_by(bytes: &[u8]) -> Result<Option<Signer>, FormatError> {
        let (_, proof) = Self::split(bytes)?;
        Ok(proof.signer.as_ref().and_then(base64_of).and_then(Signer::from_bytes))
    }

    /// Reads a manifest and checks its MAC.
    pub fn open(bytes: &[u8], data_key: &DataKey) -> Result<Self, FormatError> {
        let (document, proof) = Self::split(bytes)?;
        mac::MANIFEST
            .verify(data_key, document, &proof.mac)
            .map_err(|_| FormatError::Malformed { what: "manifest", reason: "its MAC does not verify".into() })?;
        Self::decode_document(document)
    }

    fn split(bytes: &[u8]) -> Result<(&[u8], Proof), FormatError> {
        check_len(bytes)?;
        let mut lines = bytes.split(|b| *b == b'\n');
        let (Some(document), Some(proof), Some(b""), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(FormatError::Malformed { what: "manifest", reason: "it does not have two lines".into() });
        };
        let proof: Proof = json::parse("manifest proof", proof)?;
        proof.check_signature(document)?;
        Ok((document, proof))
    }

    fn decode_document(document: &[u8]) -> Result<Self, FormatError> {
        let manifest: Self = json::parse("manifest", document)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.format != 1 {
            return Err(FormatError::Version(self.format));
        }
        let malformed = |reason: String| Err(FormatError::Malformed { what: "manifest", reason });
        if self.streams.is_empty() {
            return malformed("it has no stream".to_owned());
        }
        let (mut names, mut paths) = (HashSet::new(), HashSet::new());
        for stream in &self.streams {
            let name = stream.name.escape_debug();
            if stream.volumes.is_empty() {
                return malformed(format!("stream '{name}' has no volume"));
            }
            if !names.insert(&stream.name) {
                return malformed(format!("stream '{name}' stands twice"));
            }
            for volume in &stream.volumes {
                let path = volume.path.escape_debug();
                if !is_plain_name(&volume.path) {
                    return malformed(format!("'{path}' is not the name of an object"));
                }
                if !paths.insert(&volume.path) {
                    return malformed(format!("'{path}' stands twice"));
                }
                if volume.chunks > u64::from(VOLUME_CHUNKS_MAX) {
                    return Err(FormatError::OutOfBounds { what: "number of chunks", value: volume.chunks });
                }
            }
        }
        Ok(())
    }

    /// The stream of that name.
    pub fn stream(&self, name: &str) -> Option<&StreamEntry> {
        self.streams.iter().find(|s| s.name == name)
    }

    /// Bytes of plaintext in all streams.
    pub fn plain_bytes(&self) -> u64 {
        saturating_sum(self.streams.iter().map(|s| s.bytes))
    }

    /// Bytes stored in all volumes.
    pub fn stored_bytes(&self) -> u64 {
        saturating_sum(self.streams.iter().flat_map(|s| &s.volumes).map(|v| v.bytes))
    }
}

impl Proof {
    /// None, or one that verifies. Who signed, and whether that matters, is for the caller to ask.
    fn check_signature(&self, document: &[u8]) -> Result<(), FormatError> {
        if (&self.signature, &self.signer) == (&None, &None) {
            return Ok(());
        }
        let signature = self.signature.as_ref().and_then(base64_of);
        signature
            .zip(self.signer.as_ref().and_then(base64_of))
            .and_then(|(signature, signer)| signature::verify(SIGNATURE_DOMAIN, document, &signature, &signer).ok())
            .ok_or(FormatError::Malformed { what: "manifest", reason: "its signature does not verify".into() })
    }
}

fn base64_of<const N: usize>(text: &String) -> Option<[u8; N]> {
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn check_len(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() > MANIFEST_LEN_MAX {
        return Err(FormatError::OutOfBounds { what: "manifest length", value: bytes.len() as u64 });
    }
    Ok(())
}

/// Until its MAC is checked a manifest may say anything.
fn saturating_sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

fn is_plain_name(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 255
        && !path.starts_with('.')
        && path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let volume = VolumeEntry { path: "dump.00000.vol".into(), bytes: 900, chunks: 1, digest: [1; 32] };
        Manifest {
            format: 1,
            id: "20261122T020000Z-aaaaaaaaaaaaaaaa".into(),
            target: "app".into(),
            kind: Kind::PgDump,
            condition: Condition::Good,
            warnings: 0,
            started: "2026-11-22T02:00:00Z".parse().unwrap(),
            finished: "2026-11-22T02:01:00Z".parse().unwrap(),
            data_key: "00".repeat(16),
            recipients: vec![RecipientName { kind: "age".into(), recipient: "age1x".into() }],
            streams: vec![StreamEntry {
                name: "dump".into(),
                stream_id: "11".repeat(16),
                bytes: 5,
                volumes: vec![volume],
            }],
            cluster: None,
            requires: vec![],
            version: "0.1.0".into(),
            critical: vec![],
        }
    }

    #[test]
    fn manifests_are_read_as_written_and_any_change_shows() {
        let key = DataKey::from_bytes([5; 32]);
        let bytes = manifest().encode(&key).unwrap();
        assert_eq!(Manifest::open(&bytes, &key), Ok(manifest()));
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        assert!(Manifest::open(&bytes, &DataKey::from_bytes([6; 32])).is_err());
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            assert!(Manifest::open(&changed, &key).is_err(), "byte {i}");
        }
        for end in 0..bytes.len() {
            assert!(Manifest::open(&bytes[..end], &key).is_err());
        }
    }

    #[test]
    fn later_releases_can_add_fields_and_kinds_but_not_critical_ones() {
        let key = DataKey::from_bytes([5; 32]);
        let read = |from: &str, to: &str| {
            let text = String::from_utf8(manifest().encode(&key).unwrap()).unwrap();
            assert!(text.contains(from));
            Manifest::decode(text.replacen(from, to, 1).as_bytes())
        };
        assert_eq!(read("{\"format\":1", "{\"new\":[{}],\"format\":1"), Ok(manifest()));
        assert_eq!(read("\"pg_dump\"", "\"neo4j\"").unwrap().kind, Kind::Other("neo4j".into()));
        assert_eq!(
            read("{\"format\":1", "{\"critical\":[\"new\"],\"new\":1,\"format\":1"),
            Err(FormatError::Critical("new".into()))
        );
        assert_eq!(read("\"format\":1", "\"format\":2"), Err(FormatError::Version(2)));
        assert!(read("{\"format\":1", "{\"new\":1,\"new\":1,\"format\":1").is_err());
        assert!(read("dump.00000.vol", "../dump.00000.vol").is_err());
    }

    #[test]
    fn what_a_forger_writes_neither_overflows_nor_takes_long() {
        let mut huge = manifest();
        huge.streams[0].bytes = u64::MAX;
        huge.streams[0].volumes[0].bytes = u64::MAX;
        let other = |i: usize| StreamEntry {
            name: format!("s{i}"),
            volumes: vec![VolumeEntry { path: format!("s{i}.00000.vol"), ..huge.streams[0].volumes[0].clone() }],
            ..huge.streams[0].clone()
        };
        let streams: Vec<_> = (0..50_000).map(other).collect();
        huge.streams.extend(streams);
        let read = Manifest::decode(&huge.encode(&DataKey::from_bytes([5; 32])).unwrap()).unwrap();
        assert_eq!((read.plain_bytes(), read.stored_bytes()), (u64::MAX, u64::MAX));
    }

    #[test]
    fn nothing_is_written_that_could_not_be_read() {
        let key = DataKey::from_bytes([5; 32]);
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut changed = manifest();
            change(&mut changed);
            changed.encode(&key).unwrap_err().to_string()
        };
        assert!(refused(&|m| m.version = "x".repeat(MANIFEST_LEN_MAX)).contains("manifest length"));
        assert!(refused(&|m| m.streams.push(m.streams[0].clone())).contains("stands twice"));
        assert!(refused(&|m| m.streams[0].volumes = vec![m.streams[0].volumes[0].clone(); 2]).contains("stands twice"));
        assert!(refused(&|m| m.streams[0].volumes[0].chunks = (1 << 20) + 1).contains("number of chunks"));
    }

    #[test]
    fn a_signature_is_one_over_the_document_or_none() {
        let (data_key, key) = (DataKey::from_bytes([5; 32]), SigningKey::generate());
        let unsigned = manifest().encode(&data_key).unwrap();
        let signed = manifest().encode_signed(&data_key, Some(&key)).unwrap();
        assert_eq!(Manifest::open(&signed, &data_key), Ok(manifest()));
        assert_eq!((Manifest::signed_by(&unsigned), Manifest::signed_by(&signed)), (Ok(None), Ok(Some(key.signer()))));
        for i in 0..signed.len() {
            let mut changed = signed.clone();
            changed[i] ^= 1;
            assert!(Manifest::open(&changed, &data_key).is_err(), "byte {i}");
        }
        let document = unsigned.split(|b| *b == b'\n').next().unwrap();
        let with = |signature: &[u8], signer: &[u8]| {
            let fields =
                format!(",\"signature\":\"{}\",\"signer\":\"{}\"}}\n", BASE64.encode(signature), BASE64.encode(signer));
            Manifest::open(&[&unsigned[..unsigned.len() - 2], fields.as_bytes()].concat(), &data_key)
        };
        let signer = key.signer();
        assert_eq!(with(&key.sign(SIGNATURE_DOMAIN, document), signer.as_bytes()), Ok(manifest()));
        assert!(with(&key.sign(b"another purpose", document), signer.as_bytes()).is_err());
        assert!(with(&key.sign(SIGNATURE_DOMAIN, document), &signer.as_bytes()[1..]).is_err());
    }
}
