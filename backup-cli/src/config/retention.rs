//! `[retention]` of the configuration file, and `[targets.NAME.retention]`: how long what is kept.

use std::collections::BTreeMap;

use backup_core::repository::layout::TargetName;
use backup_core::repository::prune::{GRACE_DEFAULT, GRACE_LEAST};
use backup_core::repository::retention::{Keep, Rules};
use backup_core::{Error, Result};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::file::ConfigFile;

/// A table of rules: `[retention]` for all targets, or that of one. What it does not say is as the more general one has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleValues {
    last: Option<KeepValue>,
    daily: Option<KeepValue>,
    weekly: Option<KeepValue>,
    monthly: Option<KeepValue>,
    yearly: Option<KeepValue>,
    #[serde(default, deserialize_with = "wal_span")]
    wal: Option<Span>,
    #[serde(default, deserialize_with = "zone")]
    time_zone: Option<TimeZone>,
    /// For how long nothing is touched that may be in the making. Of all targets alone.
    grace: Option<Spanned<Grace>>,
}

/// What is kept of all targets.
#[derive(Debug, Clone)]
pub(crate) struct Retention {
    pub(crate) rules: Rules,
    pub(crate) of_target: BTreeMap<TargetName, Rules>,
    pub(crate) grace: SignedDuration,
    /// Where the general rules stand, if they do.
    pub(crate) line: Option<usize>,
    /// Where those of each target do.
    lines: BTreeMap<TargetName, usize>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            of_target: BTreeMap::new(),
            grace: GRACE_DEFAULT,
            line: None,
            lines: BTreeMap::new(),
        }
    }
}

impl Retention {
    /// Where the rules of a target stand.
    pub(crate) fn line_of(&self, target: &TargetName) -> usize {
        self.lines.get(target).copied().unwrap_or(1)
    }
}

/// Reads all rules of the file.
pub(crate) fn retention(file: &ConfigFile) -> Result<Retention> {
    let mut retention = Retention::default();
    if let Some(values) = &file.values.retention {
        retention.line = Some(file.line_of(values));
        let values = values.as_ref().clone();
        retention.grace = values.grace.as_ref().map_or(retention.grace, |grace| grace.as_ref().0);
        retention.rules = values.over(&retention.rules);
    }
    for (name, values) in &file.values.targets {
        let Some(rules) = values.as_ref().retention() else { continue };
        if let Some(grace) = &rules.grace {
            let at = format!("{}:{}", file.path.display(), file.line_of(grace));
            return Err(Error::config(format!(
                "{at}: the grace is the same for all targets: it belongs into [retention]"
            )));
        }
        // Whether it is a name is told where targets are read.
        let Ok(name) = name.parse::<TargetName>() else { continue };
        retention.lines.insert(name.clone(), file.line_of(values));
        retention.of_target.insert(name, rules.clone().over(&retention.rules));
    }
    Ok(retention)
}

impl RuleValues {
    fn over(self, general: &Rules) -> Rules {
        let keep = |value: Option<KeepValue>, general: Keep| value.map_or(general, |value| value.0);
        Rules {
            last: keep(self.last, general.last),
            daily: keep(self.daily, general.daily),
            weekly: keep(self.weekly, general.weekly),
            monthly: keep(self.monthly, general.monthly),
            yearly: keep(self.yearly, general.yearly),
            wal: self.wal.unwrap_or(general.wal),
            time_zone: self.time_zone.unwrap_or_else(|| general.time_zone.clone()),
        }
    }
}

/// A number, a span of time, or `"none"`.
#[derive(Debug, Clone, Copy)]
struct KeepValue(Keep);

impl<'de> Deserialize<'de> for KeepValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a number of backups such as 14, a span of time such as \"30 days\", or \"none\""
        )]
        enum Written {
            Count(u32),
            Text(String),
        }
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::Count(0) => Keep::Nothing,
            Written::Count(count) => Keep::Count(count),
            Written::Text(text) if text == "none" => Keep::Nothing,
            Written::Text(text) => Keep::Within(span(&text).map_err(serde::de::Error::custom)?),
        }))
    }
}

/// For how long something that may be in the making is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grace(pub(crate) SignedDuration);

impl std::str::FromStr for Grace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let grace = span(text)?
            .to_duration(SpanRelativeTo::days_are_24_hours())
            .map_err(|_| "a grace looks like \"24 hours\"".to_owned())?;
        if grace < GRACE_LEAST { Err("the least grace is one hour".to_owned()) } else { Ok(Self(grace)) }
    }
}

impl<'de> Deserialize<'de> for Grace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn span(text: &str) -> Result<Span, String> {
    let parsed = text.parse::<Span>().ok().filter(|span| !span.is_negative());
    parsed.ok_or_else(|| "a span of time looks like \"30 days\", \"12 weeks\" or \"1 year\"".to_owned())
}

fn wal_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    span(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn zone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TimeZone>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let zone = TimeZone::get(&name).map_err(|_| {
        let name = name.escape_debug();
        serde::de::Error::custom(format!("the time zone '{name}' is not known here; one looks like \"Europe/Berlin\""))
    })?;
    Ok(Some(zone))
}

/// The general table, as the file has it.
pub(crate) type RetentionTable = Option<Spanned<RuleValues>>;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<Retention> {
        retention(&ConfigFile::parse(Path::new("backup.toml"), text.to_owned())?)
    }

    #[test]
    fn a_target_changes_only_what_it_says() {
        let text = "[retention]\nlast = 3\ndaily = \"2 weeks\"\ngrace = \"6h\"\ntime_zone = \"UTC\"\n\
            [targets.app]\ncommand = [\"true\"]\n[targets.app.retention]\ndaily = \"none\"\nwal = \"1 day\"\n";
        let retention = read(text).unwrap();
        let of_app = &retention.of_target[&"app".parse().unwrap()];
        assert!(matches!(retention.rules.last, Keep::Count(3)) && matches!(of_app.last, Keep::Count(3)));
        assert!(matches!(retention.rules.daily, Keep::Within(_)) && matches!(of_app.daily, Keep::Nothing));
        assert_eq!((retention.rules.wal.get_days(), of_app.wal.get_days()), (7, 1));
        assert_eq!((retention.grace, retention.line), (SignedDuration::from_hours(6), Some(1)));
    }

    #[test]
    fn a_target_has_no_grace_of_its_own() {
        let text = "[targets.app]\ncommand = [\"true\"]\n[targets.app.retention]\ngrace = \"6h\"\n";
        assert!(read(text).unwrap_err().to_string().starts_with("backup.toml:4: the grace"));
    }

    #[test]
    fn wrong_rules_name_their_line() {
        let refused = |text: &str| read(&format!("[retention]\n{text}\n")).unwrap_err().to_string();
        insta::assert_snapshot!(
            [
                "daily = \"often\"",
                "daily = -1",
                "daily = true",
                "wal = 7",
                "wal = \"-7 days\"",
                "time_zone = \"Mars/Olympus\"",
                "grace = \"5 minutes\"",
                "hourly = 3",
            ]
            .map(refused)
            .join("\n")
        );
    }
}
