//! Data keys of WAL: one for a bounded time and number of files.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
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
///
/// Whom keys are wrapped for is asked anew for each, so a process that runs for months wraps none for a recipient whose time is over. A
/// file may still be sealed with a key that was wrapped up to an hour before.
pub struct Epochs {
    choose: Box<Choose>,
    lifetime: Duration,
    current: Mutex<Option<Current>>,
}

type Choose = dyn Fn() -> BoxFuture<'static, Result<Vec<Arc<dyn Recipient>>>> + Send + Sync;

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
        let recipients = checked(recipients)?;
        Ok(Self::of(Box::new(move || ready(Ok(recipients.clone())).boxed())))
    }

    /// Keys that are wrapped for those whom `choose` names at the time: once now, and then for each new key.
    ///
    /// # Errors
    /// As [`new`](Self::new), and those of `choose`. Should it fail later, files are not archived until it succeeds. Cancel safe.
    pub async fn chosen_by<F>(choose: impl Fn() -> F + Send + Sync + 'static) -> Result<Self>
    where
        F: Future<Output = Result<Vec<Arc<dyn Recipient>>>> + Send + 'static,
    {
        checked(choose().await?)?;
        Ok(Self::of(Box::new(move || choose().boxed())))
    }

    fn of(choose: Box<Choose>) -> Self {
        Self { choose, lifetime: LIFETIME, current: Mutex::new(None) }
    }

    /// The key for one more file, of an archive whose context is always the same. Cancel safe.
    pub(super) async fn next(&self, context: &EncryptionContext) -> Result<Arc<Epoch>> {
        let mut current = self.current.lock().await;
        if let Some(current) = current.as_mut().filter(|c| c.files < FILES_MAX && c.begun.elapsed() < self.lifetime) {
            current.files += 1;
            return Ok(Arc::clone(&current.epoch));
        }
        let data_key = DataKey::generate();
        let wraps = wrap_for_all(&data_key, context, &checked((self.choose)().await?)?).await?;
        let epoch = Arc::new(Epoch { data_key, wraps });
        *current = Some(Current { epoch: Arc::clone(&epoch), begun: Instant::now(), files: 1 });
        Ok(epoch)
    }
}

fn checked(recipients: Vec<Arc<dyn Recipient>>) -> Result<Vec<Arc<dyn Recipient>>> {
    match recipients.len() {
        0 => Err(crate::keys::no_recipient()),
        1..=WRAPS_MAX => Ok(recipients),
        n => Err(Error::config(format!("{n} recipients are more than {WRAPS_MAX}"))),
    }
}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").finish_non_exhaustive()
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

    #[tokio::test]
    async fn recipients_are_asked_for_with_each_new_key() {
        let recipients: Vec<Arc<dyn Recipient>> =
            (0..2).map(|_| Arc::new(AgeIdentity::generate().recipients().remove(0)) as Arc<dyn Recipient>).collect();
        let names: Vec<String> = recipients.iter().map(|recipient| recipient.describe().1).collect();
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let choose = move || {
            let n = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let one = recipients.get(n.saturating_sub(1)).cloned();
            ready(one.map(|one| vec![one]).ok_or_else(crate::keys::no_recipient))
        };
        let epochs = Epochs::chosen_by(choose).await.unwrap();
        let context = EncryptionContext::of_wal(&"main".parse().unwrap());
        for name in names {
            assert_eq!(epochs.next(&context).await.unwrap().wraps[0].recipient, name);
            *epochs.current.lock().await = None;
        }
        assert_eq!(epochs.next(&context).await.unwrap_err().kind(), crate::error::ErrorKind::Key);
    }
}
