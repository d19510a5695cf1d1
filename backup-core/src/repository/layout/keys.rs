//! Where data keys are that were wrapped again.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use object_store::path::Path;

use super::TargetName;
use crate::encrypt::random;

const KEYS: &str = "keys";
const SUFFIX: &str = ".json";
const DATA_KEY_LEN: usize = 32;
const SEQ_LEN: usize = 8;
const RANDOM_LEN: usize = 16;
const RANDOM_BYTES: usize = 10;

/// The folder of one data key's rewraps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath {
    target: TargetName,
    data_key: String,
}

/// Names a rewrap within its folder: `00000001-` and 80 random bits in lower-case base32. The number says which is newer; the rest keeps apart
/// what two runs write at once, whatever the store makes of a request to create only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RewrapName {
    seq: u32,
    random: String,
}

impl TargetName {
    /// The folder of data keys that were wrapped again, one folder for each inside.
    pub fn keys(&self) -> Path {
        Path::from_iter([self.as_str(), KEYS])
    }

    /// The folder of one data key; `None` when that is not the id of one.
    pub fn key(&self, data_key: &str) -> Option<KeyPath> {
        let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let is_id = data_key.len() == DATA_KEY_LEN && data_key.bytes().all(digit);
        is_id.then(|| KeyPath { target: self.clone(), data_key: data_key.to_owned() })
    }

    /// Which data key an object is a rewrap of, by its path, and which; `None` when it is something else.
    pub fn parse_rewrap(&self, object: &Path) -> Option<(KeyPath, RewrapName)> {
        let mut parts = object.prefix_match(&self.keys())?;
        let (data_key, name) = (parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some((self.key(data_key.as_ref())?, RewrapName::parse(name.as_ref())?))
    }
}

impl KeyPath {
    /// The target.
    pub fn target(&self) -> &TargetName {
        &self.target
    }

    /// The id of the data key.
    pub fn data_key(&self) -> &str {
        &self.data_key
    }

    /// The folder.
    pub fn prefix(&self) -> Path {
        self.target.keys().join(self.data_key.as_str())
    }

    /// The object of a rewrap.
    pub fn rewrap(&self, name: &RewrapName) -> Path {
        self.prefix().join(format!("{name}{SUFFIX}"))
    }
}

impl RewrapName {
    /// A name for what follows `newest`, of all that are there.
    pub fn after(newest: Option<&Self>) -> Self {
        let seq = newest.map_or(0, |name| name.seq).saturating_add(1).min(SEQ_MAX);
        let random = BASE32_NOPAD.encode(&random::bytes::<RANDOM_BYTES>()).to_ascii_lowercase();
        Self { seq, random }
    }

    /// Reads the last part of the path of an object; `None` when it is no rewrap.
    pub fn parse(name: &str) -> Option<Self> {
        let (seq, random) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let whole = seq.len() == SEQ_LEN
            && seq.bytes().all(|b| b.is_ascii_digit())
            && random.len() == RANDOM_LEN
            && random.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
        whole.then(|| Some(Self { seq: seq.parse().ok()?, random: random.to_owned() }))?
    }
}

/// The largest number of eight digits. Only a forger gets there; then the random half decides what is newest, and a rewrap looks whether readers find it.
const SEQ_MAX: u32 = 99_999_999;

impl fmt::Display for RewrapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}-{}", self.seq, self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_design() {
        let target: TargetName = "app".parse().unwrap();
        let key = target.key("ba9068e0f70bf8c10364799db2c52fc7").unwrap();
        let name = RewrapName::parse("00000012-abcdefghijklmnop.json").unwrap();
        let path = key.rewrap(&name);
        assert_eq!(path.as_ref(), "app/keys/ba9068e0f70bf8c10364799db2c52fc7/00000012-abcdefghijklmnop.json");
        assert_eq!(target.parse_rewrap(&path), Some((key.clone(), name.clone())));
        assert_eq!("db".parse::<TargetName>().unwrap().parse_rewrap(&path), None);
        assert_eq!(target.parse_rewrap(&path.join("x")), None);
        assert_eq!(target.parse_rewrap(&key.prefix()), None);
        let next = RewrapName::after(Some(&name));
        assert!(next > name && next.to_string().starts_with("00000013-"), "{next}");
        assert_eq!(RewrapName::parse(&format!("{next}.json")), Some(next));
        assert_ne!(RewrapName::after(None), RewrapName::after(None));
    }

    #[test]
    fn names_have_one_spelling_and_numbers_an_end() {
        for name in [
            "00000001.json",
            "1-abcdefghijklmnop.json",
            "+0000001-abcdefghijklmnop.json",
            "00000001-ABCDEFGHIJKLMNOP.json",
            "00000001-abcdefghijklmno1.json",
            "00000001-abcdefghijklmnop",
        ] {
            assert_eq!(RewrapName::parse(name), None, "{name}");
        }
        let last = RewrapName::parse("99999999-abcdefghijklmnop.json").unwrap();
        let next = RewrapName::after(Some(&last));
        assert_eq!(RewrapName::parse(&format!("{next}.json")), Some(next));
        let target: TargetName = "app".parse().unwrap();
        for id in ["", "..", "BA9068E0F70BF8C10364799DB2C52FC7", "ba9068e0f70bf8c10364799db2c52f/7"] {
            assert_eq!(target.key(id), None, "{id}");
        }
    }
}
