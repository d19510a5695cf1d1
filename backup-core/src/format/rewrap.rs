//! A rewrap: the data key of a backup, or of some files of WAL, wrapped again for other recipients. Two lines, as a manifest has them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, ObjectName, WRAPS_MAX, json};
use crate::encrypt::{DataKey, mac};
use crate::keys::Wrap;

/// The longest rewrap in bytes.
pub const REWRAP_LEN_MAX: usize = 64 * 1024;

const WHAT: &str = "rewrap";

/// What a data key encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// One backup.
    Backup,
    /// Files of write-ahead log.
    Wal,
}

impl ObjectName {
    /// The target, and what the data key of an object of this name encrypts.
    pub fn target_and_purpose(&self) -> (&str, Purpose) {
        match self {
            Self::Backup { target, .. } => (target, Purpose::Backup),
            Self::Wal { target, .. } => (target, Purpose::Wal),
        }
    }
}

/// A data key, wrapped again. It stands beside the wraps in the headers of volumes, which never change, and takes no recipient away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrap {
    /// The format's major version: 1.
    pub format: u32,
    /// The target whose data the key encrypts.
    pub target: String,
    /// What it encrypts.
    pub purpose: Purpose,
    /// Id of the data key.
    pub data_key: String,
    /// When it was wrapped.
    pub created: Timestamp,
    /// The data key, wrapped for each recipient of that time.
    pub wraps: Vec<Wrap>,
    /// Version of the program that wrote it.
    pub version: String,
    /// Fields that a reader must understand or pass over the rewrap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
}

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    #[serde(with = "super::base64_bytes")]
    mac: Vec<u8>,
}

impl Rewrap {
    /// Both lines, as stored.
    ///
    /// # Errors
    /// When there are too many wraps, or they are too long together.
    pub fn encode(&self, data_key: &DataKey) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let malformed = |e: serde_json::Error| FormatError::Malformed { what: WHAT, reason: e.to_string() };
        let mut out = serde_json::to_vec(self).map_err(malformed)?;
        let mac = mac::REWRAP.mac(data_key, &out).to_vec();
        out.push(b'\n');
        serde_json::to_writer(&mut out, &Proof { mac }).map_err(malformed)?;
        out.push(b'\n');
        check_len(&out)?;
        Ok(out)
    }

    /// Reads a rewrap without the data key: nothing proves what it says. A key that one of its wraps holds is proved by its id.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        split(bytes).and_then(|(document, _)| Self::decode_document(document))
    }

    /// Reads a rewrap and checks its MAC: whoever wrote it had the data key.
    pub fn open(bytes: &[u8], data_key: &DataKey) -> Result<Self, FormatError> {
        let (document, proof) = split(bytes)?;
        mac::REWRAP.verify(data_key, document, &proof.mac).map_err(|_| malformed("its MAC does not verify"))?;
        Self::decode_document(document)
    }

    fn decode_document(document: &[u8]) -> Result<Self, FormatError> {
        let rewrap: Self = json::parse(WHAT, document)?;
        rewrap.check()?;
        Ok(rewrap)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.format != 1 {
            return Err(FormatError::Version(self.format));
        }
        match self.wraps.len() {
            1..=WRAPS_MAX => Ok(()),
            n => Err(FormatError::OutOfBounds { what: "number of recipients", value: n as u64 }),
        }
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], Proof), FormatError> {
    check_len(bytes)?;
    let mut lines = bytes.split(|b| *b == b'\n');
    let (Some(document), Some(proof), Some(b""), None) = (lines.next(), lines.next(), lines.next(), lines.next())
    else {
        return Err(malformed("it does not have two lines"));
    };
    Ok((document, json::parse("proof of a rewrap", proof)?))
}

fn check_len(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() > REWRAP_LEN_MAX {
        return Err(FormatError::OutOfBounds { what: "length of a rewrap", value: bytes.len() as u64 });
    }
    Ok(())
}

fn malformed(reason: &str) -> FormatError {
    FormatError::Malformed { what: WHAT, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rewrap(key: &DataKey) -> Rewrap {
        let wrap = Wrap { kind: "age".into(), recipient: "age1x".into(), wrap: vec![1, 2, 3] };
        Rewrap {
            format: 1,
            target: "app".into(),
            purpose: Purpose::Wal,
            data_key: key.id(),
            created: "2026-11-22T02:00:00Z".parse().unwrap(),
            wraps: vec![wrap],
            version: "0.1.0".into(),
            critical: vec![],
        }
    }

    #[test]
    fn rewraps_are_read_as_written_and_any_change_shows() {
        let key = DataKey::from_bytes([5; 32]);
        let bytes = rewrap(&key).encode(&key).unwrap();
        assert_eq!(Rewrap::open(&bytes, &key), Ok(rewrap(&key)));
        assert_eq!(Rewrap::decode(&bytes), Ok(rewrap(&key)));
        assert!(Rewrap::open(&bytes, &DataKey::from_bytes([6; 32])).is_err());
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            // Whatever else stands in the second line is not authenticated, and means nothing.
            assert!(Rewrap::open(&changed, &key).is_err(), "byte {i}");
        }
    }

    #[test]
    fn the_mac_of_a_manifest_is_none_of_a_rewrap() {
        let key = DataKey::from_bytes([5; 32]);
        assert_ne!(mac::MANIFEST.mac(&key, b"{}"), mac::REWRAP.mac(&key, b"{}"));
    }

    #[test]
    fn what_is_out_of_bounds_or_of_later_releases_is_refused() {
        let key = DataKey::from_bytes([5; 32]);
        let one = rewrap(&key);
        let with = |wraps| Rewrap { wraps, ..one.clone() }.encode(&key);
        assert!(with(vec![]).is_err());
        assert!(with(vec![one.wraps[0].clone(); WRAPS_MAX]).is_ok());
        assert!(with(vec![one.wraps[0].clone(); WRAPS_MAX + 1]).is_err());
        assert!(with(vec![Wrap { wrap: vec![0; REWRAP_LEN_MAX], ..one.wraps[0].clone() }]).is_err());
        let later = Rewrap { critical: vec!["x".into()], ..one.clone() }.encode(&key).unwrap();
        assert_eq!(Rewrap::decode(&later), Err(FormatError::Critical("x".into())));
        let text = String::from_utf8(one.encode(&key).unwrap()).unwrap();
        assert_eq!(
            Rewrap::decode(text.replace("\"format\":1", "\"format\":2").as_bytes()),
            Err(FormatError::Version(2))
        );
        for bad in [text.replacen('\n', "", 1), format!("{text}\n"), text.replace("\"wal\"", "\"other\"")] {
            assert!(matches!(Rewrap::decode(bad.as_bytes()), Err(FormatError::Malformed { .. })), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Rewrap::decode(&bytes).is_err());
        }
    }
}
