//! Whose manifests and WAL are believed, where only some may write.
//!
//! Without trusted signers everybody is who can write to the store and to whose recipients the data is encrypted; and recipients are public.

use std::error::Error as _;

use bytes::Bytes;
use object_store::path::Path;

use super::Repository;
use super::layout::BackupPath;
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, MANIFEST_LEN_MAX, Manifest};

/// Why an object is not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untrusted {
    #[error("it is not signed")]
    Unsigned,
    #[error("it is signed by {0}")]
    Foreign(Signer),
    #[error("there is no telling who signed it")]
    Damaged(#[source] FormatError),
    #[error("it is the manifest of {id} of '{target}', in another place")]
    Moved { id: String, target: String },
}

/// Whether an error says that an object is signed by none of the trusted signers: others beside it may be.
pub fn is_untrusted(error: &Error) -> bool {
    error.source().is_some_and(|source| source.is::<Untrusted>())
}

impl Repository {
    /// Believes only what one of these signers has signed, of all manifests and WAL that are read through this handle. Everything when there
    /// are none.
    #[must_use]
    pub fn trusting(mut self, signers: impl IntoIterator<Item = Signer>) -> Self {
        self.trusted = signers.into_iter().collect();
        self
    }

    /// Whose manifests and WAL are believed; everybody's when there is nobody.
    pub fn trusted(&self) -> &[Signer] {
        &self.trusted
    }

    /// Refuses an object that is signed by none of the trusted.
    pub(crate) fn check_signer(&self, object: &Path, signer: Option<Signer>) -> Result<()> {
        match signer {
            _ if self.trusted.is_empty() => Ok(()),
            Some(signer) if self.trusted.contains(&signer) => Ok(()),
            Some(signer) => Err(self.untrusted(object, Untrusted::Foreign(signer))),
            None => Err(self.untrusted(object, Untrusted::Unsigned)),
        }
    }

    /// Reads the bytes of a manifest, and refuses one that none of the trusted has signed; `None` when there is none. Cancel safe.
    pub(crate) async fn read_manifest(&self, path: &BackupPath) -> Result<Option<Bytes>> {
        let object = path.manifest();
        match self.read_small(&object, MANIFEST_LEN_MAX).await {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.check_manifest_signer(path, &bytes).map(|()| Some(bytes)),
            // Too long.
            Err(e) if e.kind() == ErrorKind::Integrity && !self.trusted.is_empty() => {
                let too_long = FormatError::OutOfBounds { what: "manifest length", value: MANIFEST_LEN_MAX as u64 + 1 };
                Err(self.untrusted(&object, Untrusted::Damaged(too_long)))
            }
            Err(e) => Err(e),
        }
    }

    /// The same for the bytes of a manifest, of which nothing else is read before: its contents are those of anybody.
    fn check_manifest_signer(&self, path: &BackupPath, bytes: &[u8]) -> Result<()> {
        if self.trusted.is_empty() {
            return Ok(());
        }
        match Manifest::signed_by(bytes) {
            Ok(signer) => self.check_signer(&path.manifest(), signer),
            Err(e) => Err(self.untrusted(&path.manifest(), Untrusted::Damaged(e))),
        }
    }

    /// The error of a manifest that lies where another belongs.
    pub(super) fn moved(&self, path: &BackupPath, manifest: &Manifest) -> Error {
        let object = path.manifest();
        if self.trusted.is_empty() {
            let message = format!("{} belongs to another backup (offset 0)", self.address(&object));
            return Error::integrity(message).at(Stage::Catalog);
        }
        self.untrusted(&object, Untrusted::Moved { id: manifest.id.clone(), target: manifest.target.clone() })
    }

    fn untrusted(&self, object: &Path, why: Untrusted) -> Error {
        let trusted: Vec<String> = self.trusted.iter().map(Signer::to_string).collect();
        Error::integrity(format!("{} is not trusted", self.address(object)))
            .at(Stage::Catalog)
            .with_source(why)
            .with_hint(format!(
                "trusted_signers are: {}; was it written before signing began, or by somebody else?",
                trusted.join(", ")
            ))
    }
}
