//! Creating an object once, whatever the answers.

use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::failure::{self, storage_error};
use crate::error::{Error, ErrorKind, Result, Stage};

/// How often a create is tried in all.
pub(super) const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each further one. The store's own retries come before that.
const PAUSE: Duration = Duration::from_millis(100);

/// Creates an object once and for all; `address` is what messages call it.
///
/// An ambiguous answer (a time-out, "already exists") is resolved by reading back: the same bytes are success, none are tried
/// again, others are an error and stay untouched. A store that has no such request is looked at before it is written to; one that
/// ignores the condition and replaces what is there is not noticed here (see [`Repository::put_once`](super::Repository::put_once)).
pub(super) async fn put_once(store: &dyn ObjectStore, path: &Path, address: &str, payload: PutPayload) -> Result<()> {
    let mut attempt = 1;
    loop {
        let failure = match create(store, path, &payload).await {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        let exists = matches!(failure, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. });
        let error = storage_error(failure, format!("cannot create {address}")).at(Stage::Commit);
        // A refusal is certain. Anything else may have happened after the store had kept the bytes.
        if error.kind() == ErrorKind::Config {
            return Err(error);
        }
        match holds(store, path, address, &payload).await {
            Ok(Some(true)) => return Ok(()),
            Ok(Some(false)) => return Err(taken(address)),
            Ok(None) if (exists || error.is_retryable()) && attempt < ATTEMPTS => {}
            Ok(None) | Err(_) => return Err(error),
        }
        tokio::time::sleep(PAUSE * (1 << (attempt - 1))).await;
        attempt += 1;
    }
}

async fn create(store: &dyn ObjectStore, path: &Path, payload: &PutPayload) -> Result<(), StoreError> {
    match store.put_opts(path, payload.clone(), PutMode::Create.into()).await {
        Err(e) if failure::is_not_implemented(&e) => {}
        done => return done.map(drop),
    }
    match store.head(path).await {
        Ok(_) => Err(StoreError::AlreadyExists { path: path.to_string(), source: "found by looking".into() }),
        Err(StoreError::NotFound { .. }) => store.put(path, payload.clone()).await.map(drop),
        Err(e) => Err(e),
    }
}

/// Whether an object holds exactly these bytes; `None` when there is none. Compared as it comes, without a copy in memory.
pub(super) async fn holds(
    store: &dyn ObjectStore,
    path: &Path,
    address: &str,
    payload: &PutPayload,
) -> Result<Option<bool>> {
    let failed = |e| storage_error(e, format!("cannot read {address}")).at(Stage::Commit);
    let found = match store.get(path).await {
        Ok(found) => found,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if found.meta.size != payload.content_length() as u64 {
        return Ok(Some(false));
    }
    let mut expected = payload.iter().flat_map(|bytes| bytes.iter());
    let mut stream = found.into_stream();
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        if !piece.iter().all(|byte| expected.next() == Some(byte)) {
            return Ok(Some(false));
        }
    }
    Ok(Some(expected.next().is_none()))
}

pub(super) fn taken(address: &str) -> Error {
    let message = format!("cannot create {address}: {Taken}");
    Error::new(ErrorKind::Storage, Stage::Commit, message).with_source(Taken)
}

/// Whether an error says that something else has that name.
pub(crate) fn is_taken(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<Taken>())
}

#[derive(Debug, thiserror::Error)]
#[error("it exists already, with other contents, and was left as it is")]
struct Taken;
