//! One error type for the whole library: a kind that says what the caller can do, the stage that failed, and the chain of causes.

use std::error::Error as StdError;
use std::fmt;

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What the caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request or the configuration is wrong; change it before trying again.
    Config,
    /// The data to back up could not be produced (a failed `pg_dump`, an unreadable file).
    Source,
    /// What receives restored data failed (a full disk, a closed pipe, a failed `psql`).
    Sink,
    /// The object store answered, and refused or failed the request.
    Storage,
    /// The object store could not be reached, or kept failing in a way that may pass.
    Unavailable,
    /// The named backup, stream or object does not exist.
    NotFound,
    /// Stored bytes are not what was written: damage, truncation or tampering.
    Integrity,
    /// No identity opens the data, or a key is malformed or unusable.
    Key,
    /// The operation was cancelled.
    Cancelled,
    /// A bug in this library.
    Internal,
}

/// Where in the pipeline an [`Error`] arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Options and names, before any work.
    Setup,
    /// Reading the data to back up.
    Source,
    /// Compression, or decompression.
    Compress,
    /// Sealing, or opening.
    Encrypt,
    /// Sending volumes to a repository.
    Upload,
    /// Making the backup visible.
    Commit,
    /// Reading volumes from a repository.
    Fetch,
    /// Delivering restored data.
    Sink,
    /// Wrapping and unwrapping data keys.
    Keys,
    /// Listing and reading manifests.
    Catalog,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Source => "source",
            Self::Compress => "compress",
            Self::Encrypt => "encrypt",
            Self::Upload => "upload",
            Self::Commit => "commit",
            Self::Fetch => "fetch",
            Self::Sink => "sink",
            Self::Keys => "keys",
            Self::Catalog => "catalog",
        })
    }
}

/// The error of every fallible operation of this library.
///
/// `Display` is one level, in lower case, and holds no secret and no signed URL;
/// [`source`](StdError::source) gives the next level down.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    stage: Stage,
    message: String,
    hint: Option<String>,
    source: Option<Cause>,
    cleanup: Option<Error>,
    lasting: bool,
}

impl Error {
    /// A new error; `message` is lower case, one sentence, without a full stop.
    pub fn new(kind: ErrorKind, stage: Stage, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Inner { kind, stage, message, hint: None, source: None, cleanup: None, lasting: false }))
    }

    /// Wrong options or configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, Stage::Setup, message)
    }

    /// Damaged or forged data; `message` names the object and the offset.
    pub fn integrity(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Integrity, Stage::Encrypt, message)
    }

    /// A broken invariant of this library.
    pub fn internal(stage: Stage, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, stage, message)
    }

    /// The error of a cancelled operation.
    pub fn cancelled(stage: Stage) -> Self {
        Self::new(ErrorKind::Cancelled, stage, "cancelled")
    }

    /// Adds the cause, shown as the next level of the chain.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Cause>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds what the user can try next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says which stage failed, where the callee could not know.
    #[must_use]
    pub fn at(mut self, stage: Stage) -> Self {
        self.0.stage = stage;
        self
    }

    /// Attaches the failure of a clean-up; it never replaces the first cause.
    #[must_use]
    pub fn with_cleanup(mut self, cleanup: Self) -> Self {
        self.0.cleanup = Some(cleanup);
        self
    }

    /// Says that it stays until a person has decided something, though others of its kind may pass.
    #[must_use]
    pub(crate) fn lasting(mut self) -> Self {
        self.0.lasting = true;
        self
    }

    /// Whether only a person can end it, whatever its kind.
    pub(crate) fn is_lasting(&self) -> bool {
        self.0.lasting
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Which stage failed.
    pub fn stage(&self) -> Stage {
        self.0.stage
    }

    /// What the user can try next, if there is something.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The failure of the clean-up that followed this error, if that failed too: something may have been left behind.
    pub fn cleanup(&self) -> Option<&Self> {
        self.0.cleanup.as_ref()
    }

    /// The error and its causes in one line, for reports.
    pub(crate) fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(e) = cause {
            text = format!("{text}: {e}");
            cause = e.source();
        }
        text
    }

    /// The same error once more, with its causes as text.
    pub(crate) fn repeated(&self) -> Self {
        let mut again = Self::new(self.0.kind, self.0.stage, self.in_one_line());
        again.0.hint.clone_from(&self.0.hint);
        again.0.lasting = self.0.lasting;
        again
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        self.0.kind == ErrorKind::Unavailable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
