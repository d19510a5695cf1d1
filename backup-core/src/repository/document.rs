//! `repository.json`. No I/O.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Location;
use crate::clock::Clock;
use crate::encrypt::random;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, json};

const WHAT: &str = "repository.json";
const FORMAT: u32 = 1;
const ID_LEN_MAX: usize = 64;
/// The longest document in bytes.
pub(super) const LEN_MAX: usize = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Document {
    format: u32,
    id: String,
    created: Timestamp,
    /// What the probe found. Not a boolean, so that a third answer can be added.
    conditional_put: ConditionalPut,
    #[serde(default)]
    critical: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ConditionalPut {
    Yes,
    /// Also any answer that this release does not know.
    #[serde(other)]
    No,
}

impl Document {
    /// A new repository, of which nothing is known yet.
    pub(super) fn generate(clock: &dyn Clock) -> Self {
        let created = Timestamp::from_second(clock.now().as_second()).expect("fewer digits of a valid time");
        let id = HEXLOWER.encode(&random::bytes::<16>());
        Self { format: FORMAT, id, created, conditional_put: ConditionalPut::No, critical: Vec::new() }
    }

    pub(super) fn encode(&self) -> Result<Bytes> {
        pretty(self)
    }

    pub(super) fn decode(bytes: &[u8], location: &Location) -> Result<Self> {
        Self::parse(bytes).map_err(|e| match e {
            FormatError::Version(_) | FormatError::Critical(_) => {
                Error::config(format!("the repository at {location} needs a newer release of this program"))
                    .with_source(e)
            }
            e => Error::new(ErrorKind::Integrity, Stage::Setup, format!("{location}/{WHAT} is damaged")).with_source(e),
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let document: Self = json::parse(WHAT, bytes)?;
        let plain = document.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if document.id.is_empty() || document.id.len() > ID_LEN_MAX || !plain {
            return Err(FormatError::Malformed { what: WHAT, reason: "its id is not one".to_owned() });
        }
        Ok(document)
    }

    /// Whether `bytes` are the document of the repository with this id.
    pub(super) fn has_id(bytes: &[u8], id: &str) -> bool {
        Self::parse(bytes).is_ok_and(|document| document.id == id)
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn conditional_put(&self) -> bool {
        self.conditional_put == ConditionalPut::Yes
    }

    pub(super) fn set_conditional_put(&mut self) {
        self.conditional_put = ConditionalPut::Yes;
    }

    /// `bytes` with the probe's answer changed, and everything else kept that a later release may have written there.
    pub(super) fn with_conditional_put(&self, bytes: &[u8]) -> Result<Bytes> {
        let mut all: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).map_err(unwritable)?;
        all.insert("conditional_put".to_owned(), serde_json::to_value(ConditionalPut::Yes).map_err(unwritable)?);
        pretty(&all)
    }
}

fn pretty(value: &impl Serialize) -> Result<Bytes> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(unwritable)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::internal(Stage::Setup, "repository.json cannot be written").with_source(error)
}
