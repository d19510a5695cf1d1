//! What the server reports of its settings.

use std::collections::BTreeMap;

use postgres_protocol::message::backend::ParameterStatusBody;

use super::channel::confused_by;
use crate::error::Result;

/// So many settings are kept. PostgreSQL reports about fifteen, extensions may add some.
const COUNT_MAX: usize = 200;

/// The settings that a server reports at the start, and whenever they change: `server_version`, `in_hot_standby` (14+), `TimeZone`, …
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// The value of a setting, if it is one of those that are reported.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The version as PostgreSQL counts: 150004 is 15.4. `None` when the server does not say it in a way that is understood.
    pub fn server_version_num(&self) -> Option<u32> {
        // "15.4 (Debian 15.4-1.pgdg120+1)", "16beta2", "18devel".
        let version = self.get("server_version")?;
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let major: u32 = version[..digits(version)].parse().ok()?;
        let rest = version[digits(version)..].strip_prefix('.').unwrap_or("");
        let minor: u32 = rest[..digits(rest)].parse().unwrap_or(0);
        major.checked_mul(10_000)?.checked_add(minor)
    }

    pub(super) fn learn(&mut self, body: &ParameterStatusBody) -> Result<()> {
        let (Ok(name), Ok(value)) = (body.name(), body.value()) else {
            return Err(confused_by("it reports a setting that is not UTF-8"));
        };
        if self.0.len() >= COUNT_MAX && !self.0.contains_key(name) {
            return Err(confused_by("it reports endless settings"));
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_all_their_spellings() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("13.23", Some(130_023)),
            ("18beta2", Some(180_000)),
            ("19devel", Some(190_000)),
            ("", None),
            ("EnterpriseDB", None),
            ("99999999999.1", None),
        ] {
            let parameters = Parameters(BTreeMap::from([("server_version".to_owned(), text.to_owned())]));
            assert_eq!(parameters.server_version_num(), number, "{text}");
        }
    }
}
