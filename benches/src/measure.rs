//! Time, and memory at its peak.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What something took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// On the clock.
    pub wall: Duration,
    /// Of this process on all processors. Says more than the clock where others use the machine.
    pub cpu: Duration,
}

/// Runs `work` and times it.
pub fn time(work: impl FnOnce()) -> Took {
    let (wall, cpu) = (Instant::now(), cpu_time());
    work();
    Took { wall: wall.elapsed(), cpu: cpu_time() - cpu }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().expect("time spent is not negative")
}

/// The most memory that this process has had resident, in bytes (`VmHWM`).
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// The middle one of `values`.
///
/// # Panics
/// When there is none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
