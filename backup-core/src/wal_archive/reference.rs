//! A small object in the place of a large one: where a store cannot create a large object once, it lies under a random name, and this
//! names it. No I/O.
//!
//! ```text
//! magic(8): "backupR" 0x01 | len u32 LE | JSON: object, bytes
//! ```
//!
//! It proves nothing: the volume that it names must answer to the name that was asked for.

use serde::{Deserialize, Serialize};

use crate::format::{FormatError, json};

const MAGIC: [u8; 8] = *b"backupR\x01";
const PREFIX_LEN: usize = 12;
/// The longest reference in bytes.
pub(crate) const REFERENCE_LEN_MAX: usize = 4096;

/// Names the object that holds a WAL file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name in the reference's own folder: that of the file, and 32 hexadecimal digits, and `.vol`.
    pub object: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Fields that a reader must understand or refuse the reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
}

impl Reference {
    /// Whether an object that begins with `head` is a reference, of any version.
    pub fn is_one(head: &[u8]) -> bool {
        head.starts_with(&MAGIC[..7])
    }

    /// The object.
    pub fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("strings and numbers can be written");
        let len = u32::try_from(json.len()).expect("names are short");
        [&MAGIC[..], &len.to_le_bytes(), &json].concat()
    }

    /// Reads a whole object, which stands in for that of `file`.
    pub fn decode(object: &[u8], file: &str) -> Result<Self, FormatError> {
        let prefix = object.first_chunk::<PREFIX_LEN>().ok_or(FormatError::Truncated)?;
        if prefix[..7] != MAGIC[..7] {
            return Err(FormatError::Magic);
        }
        if prefix[7] != MAGIC[7] {
            return Err(FormatError::Version(prefix[7].into()));
        }
        let len = u32::from_le_bytes(prefix[8..].try_into().expect("four bytes"));
        if len as usize + PREFIX_LEN != object.len() || object.len() > REFERENCE_LEN_MAX {
            return Err(FormatError::OutOfBounds { what: "reference length", value: len.into() });
        }
        let reference: Self = json::parse("reference", &object[PREFIX_LEN..])?;
        let random = reference.object.strip_prefix(file).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".vol"));
        let hex = |text: &str| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !random.is_some_and(hex) {
            return Err(FormatError::Name(reference.object));
        }
        Ok(reference)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "000000010000000000000001";

    fn reference() -> Reference {
        let object = format!("{FILE}.{}.vol", "0123456789abcdef".repeat(2));
        Reference { object, bytes: 40_000_000, critical: Vec::new() }
    }

    #[test]
    fn references_are_read_as_written() {
        let bytes = reference().encode();
        assert_eq!(Reference::decode(&bytes, FILE), Ok(reference()));
        assert!(Reference::is_one(&bytes) && !Reference::is_one(&crate::format::MAGIC));
        assert_eq!(Reference::decode(&[&b"backupR\x02"[..], &bytes[8..]].concat(), FILE), Err(FormatError::Version(2)));
    }

    #[test]
    fn a_reference_leads_to_an_object_of_its_own_file_and_nowhere_else() {
        for object in [
            "../../../secret.vol".to_owned(),
            format!("{FILE}.vol"),
            format!("{FILE}.partial.vol"),
            reference().object.replace("01.", "02."),
            reference().object.to_ascii_uppercase(),
        ] {
            let bytes = Reference { object, ..reference() }.encode();
            assert!(matches!(Reference::decode(&bytes, FILE), Err(FormatError::Name(_))), "{bytes:?}");
        }
        let critical = Reference { critical: vec!["new".into()], ..reference() }.encode();
        assert_eq!(Reference::decode(&critical, FILE), Err(FormatError::Critical("new".into())));
    }

    proptest! {
        #[test]
        fn damage_is_refused_or_changes_what_is_named(at in 0usize..12, bit in 0u8..8) {
            let mut bytes = reference().encode();
            bytes[at] ^= 1 << bit;
            prop_assert!(Reference::decode(&bytes, FILE).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Reference::decode(&[&MAGIC[..], &bytes].concat(), FILE);
        }
    }
}
