//! JSON that means one thing only: objects with a key twice are refused at any depth.
//!
//! serde notices a field twice only where a struct declares it; two readers could otherwise take different values from one
//! authenticated document.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::FormatError;

/// Reads a `T`, named `what` in errors.
///
/// Another `format` than 1 is refused, and so is any field in `critical`, since this release knows no extension. That
/// comes first: the other fields may then look different, and "malformed" would send people the wrong way.
pub fn parse<T: DeserializeOwned>(what: &'static str, json: &[u8]) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Extensions {
        format: Option<u32>,
        #[serde(default)]
        critical: Vec<String>,
    }
    let malformed = |e: serde_json::Error| FormatError::Malformed { what, reason: e.to_string() };
    serde_json::from_slice::<UniqueKeys>(json).map_err(malformed)?;
    let extensions: Extensions = serde_json::from_slice(json).map_err(malformed)?;
    if let Some(version) = extensions.format.filter(|format| *format != 1) {
        return Err(FormatError::Version(version));
    }
    if let Some(name) = extensions.critical.into_iter().next() {
        return Err(FormatError::Critical(name));
    }
    serde_json::from_slice(json).map_err(malformed)
}

/// Accepts any JSON value without a duplicate key, and keeps nothing of it.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<Self>()?;
            if let Some(twice) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("key '{twice}' stands twice")));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_are_refused_at_any_depth() {
        for json in [r#"{"a":1,"a":1}"#, r#"{"x":[{"b":{"c":null,"c":2}}]}"#, "{\"a\":1,\"\\u0061\":2}"] {
            assert!(matches!(parse::<serde_json::Value>("test", json.as_bytes()), Err(FormatError::Malformed { .. })));
        }
        parse::<serde_json::Value>("test", br#"{"format":1,"critical":[],"a":{"a":[1,-2,3.5,"",true,null]}}"#).unwrap();
    }

    #[test]
    fn what_a_later_release_wrote_is_not_called_malformed() {
        let read = |json: &str| parse::<std::collections::HashMap<String, u32>>("test", json.as_bytes());
        assert_eq!(read(r#"{"a":"text","format":2}"#), Err(FormatError::Version(2)));
        assert_eq!(read(r#"{"a":"text","critical":["a"]}"#), Err(FormatError::Critical("a".into())));
        assert!(matches!(read(r#"{"a":"text"}"#), Err(FormatError::Malformed { .. })));
    }
}
