//! Serde for byte strings as standard base64 with padding (RFC 4648).

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes base64.
pub fn serialize<S: Serializer, B: AsRef<[u8]>>(bytes: &B, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes.as_ref()))
}

/// Reads base64 of the length that `B` demands.
pub fn deserialize<'de, D: Deserializer<'de>, B: TryFrom<Vec<u8>>>(deserializer: D) -> Result<B, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
    let len = bytes.len();
    B::try_from(bytes).map_err(|_| D::Error::custom(format!("unexpected length of {len} bytes")))
}
