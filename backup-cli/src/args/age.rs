//! `--not-older-than`: what somebody remembers, against a repository that may hide its newest backups.

use std::str::FromStr;

use clap::Args;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use crate::config::keys::Moment;

/// How old a backup may be.
#[derive(Debug, Default, Args)]
pub(crate) struct AgeFlag {
    /// Refuse a backup that began earlier: a time such as 2026-11-22T02:00:00Z, or an age such as 26h
    #[arg(long, value_name = "AGE|TIME")]
    pub(crate) not_older_than: Option<AgeLimit>,
}

/// An age, or the moment that something of that age is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgeLimit {
    Age(SignedDuration),
    Time(Timestamp),
}

impl AgeLimit {
    /// The earliest moment that is not too old.
    pub(crate) fn earliest(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Age(age) => now.checked_sub(age).unwrap_or(Timestamp::MIN),
            Self::Time(time) => time,
        }
    }
}

impl FromStr for AgeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let age = || {
            let span: Span = text.parse().ok()?;
            let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
            (!age.is_negative()).then_some(Self::Age(age))
        };
        let time = || text.parse::<Moment>().ok().map(|moment| Self::Time(moment.0));
        age().or_else(time).ok_or_else(|| "an age looks like 26h or 2d, a time like 2026-11-22T02:00:00Z".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_times_are_told_apart() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let earliest = |text: &str| text.parse::<AgeLimit>().map(|limit| limit.earliest(now).to_string());
        assert_eq!(earliest("26h").unwrap(), "2026-11-21T10:00:00Z");
        assert_eq!(earliest("2d").unwrap(), "2026-11-20T12:00:00Z");
        assert_eq!(earliest("2026-11-20").unwrap(), "2026-11-20T00:00:00Z");
        assert_eq!(earliest("2026-11-20T06:00:00+02:00").unwrap(), "2026-11-20T04:00:00Z");
        for wrong in ["", "soon", "-2h", "1mo", "2026-11-20 06:00"] {
            assert!(earliest(wrong).is_err(), "{wrong}");
        }
    }
}
