//! At most so many bytes a second, whoever reads them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What was not used may be made up for within this time.
const BURST: Duration = Duration::from_millis(100);

/// A limit that all readers share.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: Option<f64>,
    /// Until when what was read so far takes.
    due: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) fn new(kib_per_second: Option<u32>) -> Self {
        Self { bytes_per_second: kib_per_second.map(|kib| f64::from(kib) * 1024.0), due: Mutex::default() }
    }

    /// Waits until `bytes` more may have been read. Cancel safe; they count all the same.
    pub(super) async fn wait(&self, bytes: usize) {
        if let Some(until) = self.take(Instant::now(), bytes) {
            tokio::time::sleep_until(until).await;
        }
    }

    /// When `bytes` more will have been allowed.
    fn take(&self, now: Instant, bytes: usize) -> Option<Instant> {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second?);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = due.map_or(now, |due| due.max(now.checked_sub(BURST).unwrap_or(now)));
        Some(*due.insert(begin + takes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_the_rate_and_gain_nothing_by_having_waited() {
        let rate = Rate::new(Some(1024));
        let now = Instant::now();
        let until = (0..8).filter_map(|_| rate.take(now, 1 << 20)).max().unwrap();
        assert_eq!(until - now, Duration::from_secs(8));
        let later = now + Duration::from_secs(100);
        assert_eq!(rate.take(later, 2 << 20), Some(later + Duration::from_secs(2) - BURST));
        assert_eq!(Rate::new(None).take(now, usize::MAX), None);
    }
}
