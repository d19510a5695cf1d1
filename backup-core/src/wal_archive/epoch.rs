//! Data keys of WAL: one for a bounded time and number of files.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::encrypt::DataKey;
use crate::error::{Error, Result};
use crate::format::WRAPS_MAX;
use crate::keys::{EncryptionContext, Recipient, Wrap, wrap_for_all};

/// How long one data key serves.
const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// How many files it serves.
const FILES_MAX: u32 = 4096;

/// Gives out data keys for WAL files: a new one every hour, or after 4,096 files.
///
/// A process that lives for one segment makes its own. One that lives on need not ask a key service for each segment, and what one key
/// opens stays bounded.
pub struct Epochs {
    recipients: Vec<Arc<dyn Recipient>>,
    lifetime: Duration,
    current: Mutex<Option<Current>>,
}

struct Current {
    epoch: Arc<Epoch>,
    begun: Instant,
    files: u32,
}

/// A data key, and its wraps.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) data_key: DataKey,
    pub(super) wraps: Vec<Wrap>,
}

impl Epochs {
    /// Keys that are wrapped for all `recipients`: at least one, and at most 64.
    ///
    /// # Errors
    /// `Key` without a recipient, `Config` with too many.
    pub fn new(recipients: Vec<Arc<dyn Recipient>>) -> Result<Self> {
        match recipients.len() {
            0 => Err(crate::keys::no_recipient()),
            1..=WRAPS_MAX => Ok(Self { recipients, lifetime: LIFETIME, current: Mutex::new(None) }),
            n => Err(Error::config(format!("{n} recipients are more than {WRAPS_MAX}"))),
        }
    }

    /// The key for one more file, of an archive whose context is always the same. Cancel safe.
    pub(super) async fn next(&self, context: &EncryptionContext) -> Result<Arc<Epoch>> {
        let mut current = self.current.lock().await;
        if let Some(current) = current.as_mut().filter(|c| c.files < FILES_MAX && c.begun.elapsed() < self.lifetime) {
            current.files += 1;
            return Ok(Arc::clone(&current.epoch));
        }
        let data_key = DataKey::generate();
        let wraps = wrap_for_all(&data_key, context, &self.recipients).await?;
        let epoch = Arc::new(Epoch { data_key, wraps });
        *current = Some(Current { epoch: Arc::clone(&epoch), begun: Instant::now(), files: 1 });
        Ok(epoch)
    }
}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").field("recipients", &self.recipients).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::age::AgeIdentity;

    #[tokio::test]
    async fn a_key_serves_so_many_files_and_no_more() {
        let recipient: Arc<dyn Recipient> = Arc::new(AgeIdentity::generate().recipients().remove(0));
        let epochs = Epochs::new(vec![recipient]).unwrap();
        let context = EncryptionContext::of_wal(&"main".parse().unwrap());
        let first = epochs.next(&context).await.unwrap();
        for _ in 1..FILES_MAX {
            assert!(Arc::ptr_eq(&first, &epochs.next(&context).await.unwrap()));
        }
        let second = epochs.next(&context).await.unwrap();
        assert_ne!(first.data_key.id(), second.data_key.id());
        assert!(Epochs::new(Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_key_serves_so_long_and_no_longer() {
        let recipient: Arc<dyn Recipient> = Arc::new(AgeIdentity::generate().recipients().remove(0));
        let mut epochs = Epochs::new(vec![recipient]).unwrap();
        let context = EncryptionContext::of_wal(&"main".parse().unwrap());
        let first = epochs.next(&context).await.unwrap();
        assert!(Arc::ptr_eq(&first, &epochs.next(&context).await.unwrap()));
        epochs.lifetime = Duration::ZERO;
        assert_ne!(first.data_key.id(), epochs.next(&context).await.unwrap().data_key.id());
    }

    #[tokio::test]
    async fn many_that_ask_at_once_have_one_key() {
        let recipient: Arc<dyn Recipient> = Arc::new(AgeIdentity::generate().recipients().remove(0));
        let epochs = Epochs::new(vec![recipient]).unwrap();
        let context = EncryptionContext::of_wal(&"main".parse().unwrap());
        let given = futures::future::try_join_all((0..8).map(|_| epochs.next(&context))).await.unwrap();
        assert!(given.iter().all(|epoch| Arc::ptr_eq(epoch, &given[0])));
    }
}
