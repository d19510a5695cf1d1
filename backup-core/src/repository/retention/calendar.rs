//! Days, weeks, months and years, and which backup stands for each.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use super::{Facts, Keep, Reason, Rules, before};

/// A period of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday, numbered as by ISO 8601.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Unit {
    /// The period that a moment lies in: `2026-11-22`, `2026-W47`, `2026-11`, `2026`. As texts they are in the order of time.
    pub fn period(self, moment: Timestamp, zone: &TimeZone) -> String {
        let zoned: Zoned = moment.to_zoned(zone.clone());
        match self {
            Self::Day => zoned.strftime("%Y-%m-%d").to_string(),
            Self::Week => zoned.strftime("%G-W%V").to_string(),
            Self::Month => zoned.strftime("%Y-%m").to_string(),
            Self::Year => zoned.strftime("%Y").to_string(),
        }
    }
}

/// What the rules for periods keep. `good` are the backups that count, the oldest first.
pub(super) fn representatives(facts: &[Facts], good: &[usize], rules: &Rules, now: Timestamp) -> Vec<(usize, Reason)> {
    let within = |keep: Keep, of: &[usize]| -> Vec<usize> {
        match keep {
            Keep::Nothing => Vec::new(),
            Keep::Count(count) => of[of.len().saturating_sub(count as usize)..].to_vec(),
            Keep::Within(span) => {
                let since = before(now, span, &rules.time_zone);
                of.iter().copied().filter(|&i| facts[i].started >= since).collect()
            }
        }
    };
    let mut kept: Vec<(usize, Reason)> = within(rules.last, good).into_iter().map(|i| (i, Reason::Last)).collect();
    let units = [
        (Unit::Day, rules.daily),
        (Unit::Week, rules.weekly),
        (Unit::Month, rules.monthly),
        (Unit::Year, rules.yearly),
    ];
    for (unit, keep) in units.into_iter().filter(|(_, keep)| !matches!(keep, Keep::Nothing)) {
        let period = |i: usize| unit.period(facts[i].started, &rules.time_zone);
        let mut firsts: Vec<usize> = good.to_vec();
        // In the order of time, so those of one period stand together and the first one stays.
        firsts.dedup_by(|later, first| period(*later) == period(*first));
        kept.extend(within(keep, &firsts).into_iter().map(|i| (i, Reason::Period { unit, period: period(i) })));
    }
    kept
}
