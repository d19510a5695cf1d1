//! How far a backup or a restore has come, on standard error.

use std::future::Future;
use std::time::{Duration, Instant};

use backup_core::pipeline::Progress;
use indicatif::{ProgressBar, ProgressStyle as BarStyle};
use tokio::time::MissedTickBehavior;

use crate::output::{Output, ProgressStyle, bytes};

const BAR_INTERVAL: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

const KNOWN_LENGTH: &str = "{spinner} [{bar:30}] {percent:>3} %  {msg}  {binary_bytes_per_sec}  {eta} left";
const COUNT: &str = "{spinner} {msg}  {per_sec}";
const UNKNOWN_LENGTH: &str = "{spinner} {msg}  {binary_bytes_per_sec}";

/// How far it has come.
pub(crate) struct Shown {
    /// Bytes, of the total where there is one.
    pub(crate) position: u64,
    /// The same in words.
    pub(crate) message: String,
    /// Whether the position counts things, and not bytes.
    counts: bool,
}

impl Shown {
    /// Of a backup.
    pub(crate) fn saving(progress: &Progress) -> Self {
        Self::of(progress, "read", "stored")
    }

    /// Of a restore.
    pub(crate) fn restoring(progress: &Progress) -> Self {
        Self::of(progress, "restored", "fetched")
    }

    /// So many bytes, of whatever it is.
    pub(crate) fn reading(position: u64, message: String) -> Self {
        Self { position, message, counts: false }
    }

    /// So many things that were looked at.
    pub(crate) fn counting(position: u64, message: String) -> Self {
        Self { position, message, counts: true }
    }

    fn of(progress: &Progress, plain: &str, transferred: &str) -> Self {
        let message =
            format!("{} {plain}, {} {transferred}", bytes(progress.plain_bytes), bytes(progress.transferred_bytes));
        Self::reading(progress.plain_bytes, message)
    }
}

/// Waits for `work` and shows meanwhile what `progress` says. `total` is in bytes, where it is known.
pub(crate) async fn during<T>(
    output: &Output,
    total: Option<u64>,
    progress: impl Fn() -> Shown,
    work: impl Future<Output = T>,
) -> T {
    let interval = match output.progress {
        ProgressStyle::None => return work.await,
        ProgressStyle::Bar => BAR_INTERVAL,
        ProgressStyle::Lines => LINE_INTERVAL,
    };
    let begun = Instant::now();
    let bar = (output.progress == ProgressStyle::Bar).then(|| output.bars.add(bar(total)));
    let mut ticks = tokio::time::interval(interval);
    // After the machine slept, nobody wants the lines of all that time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => {}
        }
        let now = progress();
        match &bar {
            Some(bar) => {
                if now.counts {
                    bar.set_style(style(COUNT));
                }
                bar.set_message(now.message);
                bar.set_position(now.position);
                bar.tick();
            }
            None if now.counts => output.note(now.message),
            None => output.note(format!("{}, {}", now.message, rate(now.position, begun.elapsed()))),
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    result
}

/// `730.1 MiB/s`, over all the time so far.
pub(crate) fn rate(count: u64, elapsed: Duration) -> String {
    let per_second = count as f64 / elapsed.as_secs_f64().max(0.001);
    format!("{}/s", bytes(per_second as u64))
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), KNOWN_LENGTH),
        None => (ProgressBar::no_length(), UNKNOWN_LENGTH),
    };
    bar.with_style(style(template))
}

fn style(template: &str) -> BarStyle {
    BarStyle::with_template(template).unwrap_or_else(|_| BarStyle::default_bar())
}
