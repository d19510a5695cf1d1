//! Which backups are kept, and why. Policy alone: facts, rules and a moment go in, reasons come out. No I/O.
//!
//! A backup is kept for every reason that it has, and goes when it has none. Periods are those of the calendar in the rules' time zone, and a
//! period is represented by its **first** good backup: whatever is made later, and whatever other prunes removed, that one stays the first, so
//! prunes never change their mind. Of the write-ahead log, [`wal`] decides.

mod calendar;
mod reason;
#[cfg(test)]
mod tests;
pub mod wal;
mod window;

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, ToSpan};

use super::layout::BackupId;
use crate::format::ClusterEntry;
use crate::postgres::wal::SystemIdentifier;
use wal::Archive;

pub use calendar::Unit;
pub use reason::Reason;

/// A backup that says to have begun so much later than now is one of a wrong clock.
const FUTURE_TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// How many of something are kept, or for how long.
#[derive(Debug, Clone, Copy, Default)]
pub enum Keep {
    /// Not for this reason.
    #[default]
    Nothing,
    /// The newest so many, however old they are.
    Count(u32),
    /// Those that began within this span of the calendar before now.
    Within(Span),
}

/// How long the backups of a target are kept, and its write-ahead log.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Every good backup; the newest is kept in any case.
    pub last: Keep,
    /// The first good one of each day.
    pub daily: Keep,
    /// The first good one of each week, which begins on Monday.
    pub weekly: Keep,
    /// The first good one of each month.
    pub monthly: Keep,
    /// The first good one of each year.
    pub yearly: Keep,
    /// How far back every moment stays reachable by point-in-time recovery.
    pub wal: Span,
    /// Whose days, weeks, months and years are meant.
    pub time_zone: TimeZone,
}

impl Default for Rules {
    /// 30 days daily, 90 days weekly, a year monthly, nothing yearly; 7 days of log; in UTC.
    fn default() -> Self {
        Self {
            last: Keep::Nothing,
            daily: Keep::Within(30.days()),
            weekly: Keep::Within(90.days()),
            monthly: Keep::Within(1.year()),
            yearly: Keep::Nothing,
            wal: 7.days(),
            time_zone: TimeZone::UTC,
        }
    }
}

/// What is known of a backup.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its id.
    pub id: BackupId,
    /// When it began: to which day, week, month and year it belongs.
    pub started: Timestamp,
    /// What it is worth.
    pub standing: Standing,
    /// Backups that it cannot be restored without.
    pub requires: Vec<String>,
    /// Of a base backup, the cluster.
    pub cluster: Option<ClusterEntry>,
    /// Why it is pinned, and until when, for each pin that holds.
    pub pins: Vec<(String, Option<Timestamp>)>,
    /// Bytes in its volumes.
    pub stored_bytes: u64,
}

/// What a backup is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Complete, and of a source that reported no damage.
    Good,
    /// Complete, and its source reported damage.
    Damaged,
    /// Of a kind that this release does not know.
    UnknownKind(String),
    /// Of a later format: it may need anything.
    Newer,
    /// Its manifest cannot be read.
    Unreadable,
    /// None of the trusted has signed it.
    Untrusted,
}

/// What is decided of a backup: it is kept for these reasons, and goes when there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The backup.
    pub id: BackupId,
    /// All reasons.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Whether it is kept.
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Decides about all backups of a target, of which `archives` is the write-ahead log. Verdicts come in the order of `facts`.
pub fn decide(
    facts: &[Facts],
    archives: &BTreeMap<SystemIdentifier, Archive>,
    rules: &Rules,
    now: Timestamp,
) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> =
        facts.iter().map(|f| Verdict { id: f.id.clone(), reasons: own_reasons(f, now) }).collect();
    let good = good_ones(facts, now);
    for (i, reason) in calendar::representatives(facts, &good, rules, now) {
        verdicts[i].reasons.push(reason);
    }
    let newest_good = good.last().copied();
    if let Some(i) = newest_good {
        verdicts[i].reasons.push(Reason::LastGood);
    }
    for (fact, verdict) in facts.iter().zip(&mut verdicts) {
        // Of a time from which there is nothing better.
        let is_newer = newest_good.is_none_or(|i| order(fact) > order(&facts[i]));
        if fact.standing == Standing::Damaged && is_newer {
            verdict.reasons.push(Reason::NoneBetter);
        }
    }
    for (i, reason) in window::reasons(facts, &good, archives, rules.window_start(now)) {
        verdicts[i].reasons.push(reason);
    }
    hold(facts, &mut verdicts);
    keep_required(facts, &mut verdicts);
    verdicts
}

impl Rules {
    /// The moment from which on everything is to be reachable.
    pub fn window_start(&self, now: Timestamp) -> Timestamp {
        before(now, self.wal, &self.time_zone)
    }
}

/// `now` less a span of the calendar; as early as can be told, where that is earlier than can be told.
fn before(now: Timestamp, span: Span, zone: &TimeZone) -> Timestamp {
    now.to_zoned(zone.clone()).checked_sub(span).map_or(Timestamp::MIN, |zoned| zoned.timestamp())
}

/// Backups that count, the oldest first.
fn good_ones(facts: &[Facts], now: Timestamp) -> Vec<usize> {
    let counts = |f: &Facts| f.standing == Standing::Good && !is_of_the_future(f, now);
    let mut good: Vec<usize> = (0..facts.len()).filter(|&i| counts(&facts[i])).collect();
    good.sort_by_key(|&i| order(&facts[i]));
    good
}

fn order(facts: &Facts) -> (Timestamp, &BackupId) {
    (facts.started, &facts.id)
}

fn is_of_the_future(facts: &Facts, now: Timestamp) -> bool {
    now.checked_add(FUTURE_TOLERANCE).is_ok_and(|latest| facts.started > latest)
}

/// Reasons that a backup has whatever others there are.
fn own_reasons(facts: &Facts, now: Timestamp) -> Vec<Reason> {
    let pinned = |(text, until): &(String, Option<Timestamp>)| Reason::Pinned { text: text.clone(), until: *until };
    let mut reasons: Vec<Reason> = facts.pins.iter().map(pinned).collect();
    reasons.extend(match &facts.standing {
        Standing::Good | Standing::Damaged => None,
        Standing::UnknownKind(kind) => Some(Reason::UnknownKind { kind: kind.clone() }),
        Standing::Newer => Some(Reason::NewerFormat),
        Standing::Unreadable => Some(Reason::Unreadable),
        Standing::Untrusted => Some(Reason::Untrusted),
    });
    if is_of_the_future(facts, now) {
        reasons.push(Reason::Future);
    }
    reasons
}

/// What a backup of a later format needs nobody here can tell, so nothing of its target goes.
fn hold(facts: &[Facts], verdicts: &mut [Verdict]) {
    let Some(by) = facts.iter().find(|f| f.standing == Standing::Newer).map(|f| &f.id) else { return };
    for verdict in verdicts.iter_mut().filter(|verdict| !verdict.is_kept()) {
        verdict.reasons.push(Reason::Held { by: by.clone() });
    }
}

/// Keeps what anything that is kept cannot be restored without.
pub(super) fn keep_required(facts: &[Facts], verdicts: &mut [Verdict]) {
    let places: BTreeMap<&str, usize> = facts.iter().enumerate().map(|(i, f)| (f.id.as_str(), i)).collect();
    let mut kept: Vec<usize> = (0..facts.len()).filter(|&i| verdicts[i].is_kept()).collect();
    while let Some(by) = kept.pop() {
        for required in facts[by].requires.iter().filter_map(|id| places.get(id.as_str()).copied()) {
            let reason = Reason::RequiredBy { id: facts[by].id.clone() };
            if !verdicts[required].is_kept() {
                kept.push(required);
            }
            if required != by && !verdicts[required].reasons.contains(&reason) {
                verdicts[required].reasons.push(reason);
            }
        }
    }
}
