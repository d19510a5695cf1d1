//! A timeline's history file: which timelines it descends from, and where it left each of them. No I/O.
//!
//! One line for each ancestor, the oldest first: its number, the LSN at which it was left, and a reason, separated by blanks. Lines that
//! begin with `#` and empty ones say nothing. See `readTimeLineHistory` in PostgreSQL's `timeline.c`.

use super::{Lsn, Timeline};
use crate::error::{Error, ErrorKind, Result, Stage};

/// The longest history file that is read: some 10,000 timelines.
pub const HISTORY_LEN_MAX: usize = 1 << 20;

/// What a timeline descends from. The first timeline has no file, and no ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: Timeline,
    /// Ancestors, the oldest first, each with the position at which it was left.
    ancestors: Vec<(Timeline, Lsn)>,
}

impl History {
    /// The history of a timeline without ancestors.
    pub fn of_first(timeline: Timeline) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// `Integrity` when PostgreSQL would refuse it: numbers must rise, and stay below the timeline's own.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self> {
        let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let ancestor = words.next().and_then(|word| word.parse().ok()).and_then(Timeline::new);
            let left_at = words.next().and_then(Lsn::read);
            let (Some(ancestor), Some(left_at)) = (ancestor, left_at) else {
                return Err(malformed(timeline, number, "it is not a timeline and an LSN"));
            };
            if ancestors.last().is_some_and(|(before, _)| *before >= ancestor) || ancestor >= timeline {
                return Err(malformed(timeline, number, "timelines must rise"));
            }
            ancestors.push((ancestor, left_at));
        }
        Ok(Self { timeline, ancestors })
    }

    /// Whose history this is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Ancestors, the oldest first, each with the position at which it was left.
    pub fn ancestors(&self) -> &[(Timeline, Lsn)] {
        &self.ancestors
    }

    /// The timeline that the byte of log at `lsn` was written on, as seen from this one.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        let found = self.ancestors.iter().find(|(_, left_at)| lsn < *left_at);
        found.map_or(self.timeline, |(timeline, _)| *timeline)
    }

    /// Whether `timeline`, up to position `end`, is part of this history: itself, or an ancestor that was left at `end` or later.
    pub fn contains(&self, timeline: Timeline, end: Lsn) -> bool {
        timeline == self.timeline || self.ancestors.iter().any(|(t, left_at)| *t == timeline && end <= *left_at)
    }

    /// Where `timeline` ends as seen from this one; `None` when it is this one, or no ancestor.
    pub fn left_at(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors.iter().find(|(t, _)| *t == timeline).map(|(_, left_at)| *left_at)
    }
}

fn malformed(timeline: Timeline, line: usize, why: &str) -> Error {
    let message = format!("line {} of {}.history is malformed: {why}", line + 1, timeline.hex());
    Error::new(ErrorKind::Integrity, Stage::Catalog, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn third() -> History {
        let text =
            "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/5000060\tbefore 2026-11-22 02:00:00+00\n";
        History::parse(timeline(3), text).unwrap()
    }

    #[test]
    fn every_position_has_its_timeline() {
        let third = third();
        assert_eq!(third.ancestors(), [(timeline(1), Lsn(0x300_0000)), (timeline(2), Lsn(0x500_0060))]);
        let at = |lsn| third.timeline_at(Lsn(lsn)).get();
        assert_eq!([at(0), at(0x2FF_FFFF), at(0x300_0000), at(0x500_005F), at(0x500_0060)], [1, 1, 2, 2, 3]);
        assert_eq!(third.left_at(timeline(2)), Some(Lsn(0x500_0060)));
        assert_eq!((third.left_at(timeline(3)), third.left_at(timeline(9))), (None, None));
    }

    #[test]
    fn what_was_written_after_the_fork_is_not_part_of_it() {
        let third = third();
        assert!(third.contains(timeline(1), Lsn(0x300_0000)));
        assert!(!third.contains(timeline(1), Lsn(0x300_0001)));
        assert!(third.contains(timeline(3), Lsn(u64::MAX)));
        assert!(!third.contains(timeline(4), Lsn(0)));
        assert!(!History::of_first(Timeline::FIRST).contains(timeline(2), Lsn(0)));
    }

    #[test]
    fn malformed_histories_are_refused_with_the_line() {
        for (text, line) in [
            ("x\t0/1\n", 1),
            ("\n1\n", 2),
            ("1\t0/1\n1\t0/2\n", 2),
            ("2\t0/1\n1\t0/2\n", 2),
            ("3\t0/1\n", 1),
            ("0 0/1", 1),
        ] {
            let error = History::parse(timeline(3), text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity);
            assert!(error.to_string().starts_with(&format!("line {line} of 00000003.history")), "{error}");
        }
    }
}
