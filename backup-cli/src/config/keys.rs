//! `[keys.NAME]` of the configuration file: which key is used from when to when.

use std::collections::BTreeMap;
use std::fmt;

use backup_core::keys::policy::{KeyRules, Policy};
use backup_core::{Error, Result};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::value::Datetime;

use super::file::ConfigFile;

/// The table of one key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyValues {
    recipient: String,
    created: Moment,
    activates: Option<Moment>,
    expires: Option<Moment>,
    #[serde(default, deserialize_with = "span")]
    lifetime: Option<Span>,
    #[serde(default, deserialize_with = "span")]
    overlap: Option<Span>,
    #[serde(default, deserialize_with = "span")]
    warn: Option<Span>,
    replaces: Option<String>,
    retired: Option<Moment>,
}

/// As the file has them.
pub(crate) type KeyTables = BTreeMap<String, Spanned<KeyValues>>;

/// The keys of the file, and where each stands.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) policy: Policy,
    pub(crate) lines: BTreeMap<String, usize>,
}

/// Reads and checks all keys of the file.
pub(crate) fn keys(file: &ConfigFile) -> Result<Keys> {
    let tables = &file.values.keys;
    let lines: BTreeMap<String, usize> =
        tables.iter().map(|(name, values)| (name.clone(), file.line_of(values))).collect();
    let rules = tables.iter().map(|(name, values)| values.as_ref().clone().rules(name));
    let policy = Policy::new(rules.collect()).map_err(|e| {
        let line = lines.get(&e.key).copied().unwrap_or(1);
        Error::config(format!("{}:{line}: {e}", file.path.display()))
    })?;
    Ok(Keys { policy, lines })
}

impl KeyValues {
    fn rules(self, name: &str) -> KeyRules {
        let time = |moment: Option<Moment>| moment.map(|moment| moment.0);
        KeyRules {
            activates: time(self.activates),
            expires: time(self.expires),
            lifetime: self.lifetime,
            overlap: self.overlap,
            warn: self.warn,
            replaces: self.replaces,
            retired: time(self.retired),
            ..KeyRules::new(name, self.recipient.trim(), self.created.0)
        }
    }
}

/// A moment as people write it: with an offset, or a day, which begins at midnight in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) Timestamp);

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let day = |date: Date| date.to_zoned(TimeZone::UTC).ok().map(|day| Self(day.timestamp()));
        let text = text.trim();
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        // What has a time and no offset would be another moment on another host.
        let whole_day = text.parse::<DateTime>().is_ok() && !text.contains(':');
        whole_day.then(|| text.parse().ok().and_then(day)).flatten().ok_or_else(|| {
            format!("'{}' is no time: one looks like 2026-11-22T02:00:00Z, or 2026-11-22", text.escape_debug())
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// TOML has times of its own, and people put quotes around them.
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a time such as 2026-11-22T02:00:00Z")]
        enum Written {
            Time(Datetime),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Time(time) => time.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| serde::de::Error::custom("a span of time looks like \"1 year\", \"30 days\" or \"12 hours\""))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Keys> {
        keys(&ConfigFile::parse(Path::new("backup.toml"), text.to_owned())?)
    }

    fn refused(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn times_are_written_in_several_ways_and_mean_one_moment() {
        for text in ["2026-11-22", "\"2026-11-22\"", "2026-11-22T00:00:00Z", "2026-11-22 01:00:00+01:00"] {
            let keys = read(&format!("[keys.a]\nrecipient = \"age1a\"\ncreated = {text}\n")).unwrap();
            let key = &keys.policy.keys()[0];
            assert_eq!(key.created.to_string(), "2026-11-22T00:00:00Z", "{text}");
            assert_eq!(key.ends.to_string(), "2027-11-22T00:00:00Z");
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_names_its_line() {
        let key = |rest: &str| format!("level = 1\n[keys.a]\nrecipient = \"age1a\"\ncreated = 2026-11-22\n{rest}\n");
        insta::assert_snapshot!(
            [
                refused("[keys.a]\nrecipient = \"age1a\"\n"),
                refused("[keys.a]\nrecipient = \"age1a\"\ncreated = 2026-11-22T01:00:00\n"),
                refused("[keys.a]\nrecipient = \"age1a\"\ncreated = \"soon\"\n"),
                refused(&key("overlap = \"long\"")),
                refused(&key("lifetime = 30")),
                refused(&key("expires = 2026-11-01")),
                refused(&key("replaces = \"b\"")),
                refused(&key("expire = 2027-11-01")),
            ]
            .join("\n")
        );
    }
}
