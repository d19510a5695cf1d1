//! `backup key rotate`.

use backup_core::keys::policy::{Key, Policy};
use backup_core::repository::rewrap::named;
use backup_core::repository::runs::RunRecord;
use backup_core::{Error, Result};
use jiff::Timestamp;

use crate::App;
use crate::args::RotateArgs;
use crate::command::describe::time;
use crate::config::Config;
use crate::config::edit::{self, Successor};
use crate::exit::Exit;
use crate::keys;

use super::{configured, reread};

pub(super) fn run(app: &App, args: &RotateArgs, record: &mut RunRecord) -> Result<Exit> {
    let now = app.clock.now();
    let planned = Plan::new(&app.config, args, now)?;
    let file = app.config.file.as_deref().ok_or_else(|| Error::config("there is no configuration file"))?;
    if args.print {
        app.output.data(&planned.successor().to_toml(file)?)?;
        return Ok(Exit::Done);
    }
    record.recipients = vec![named(&*keys::recipient(&app.config, &planned.recipient)?)];
    // Somebody else may have rotated it since.
    let Plan { name, predecessor, activates, .. } = edit::edit(file, |document| {
        let planned = Plan::new(&reread(app)?, args, now)?;
        planned.successor().add_to(document)?;
        Ok(planned)
    })?;
    let activates = activates.unwrap_or(now);
    app.output.note(format!(
        "'{name}' replaces '{}' from {} on; {} was changed",
        predecessor.name,
        time(activates),
        file.display()
    ));
    app.output.note(format!(
        "next: give this file to every host that backs up, and run 'backup key rewrap' where an identity of '{}' is",
        predecessor.name
    ));
    if activates > predecessor.ends {
        app.output.warning(format!(
            "'{}' ends on {}, before its successor is used: until then nothing is encrypted to either",
            predecessor.name,
            time(predecessor.ends)
        ));
        return Ok(Exit::Warnings);
    }
    Ok(Exit::Done)
}

/// Who follows whom, by one state of the configuration.
struct Plan {
    predecessor: Key,
    name: String,
    recipient: String,
    created: Timestamp,
    /// If not at once.
    activates: Option<Timestamp>,
}

impl Plan {
    fn new(config: &Config, args: &RotateArgs, now: Timestamp) -> Result<Self> {
        let policy = &config.keys.policy;
        let predecessor = configured(config, &args.predecessor)?;
        check(policy, predecessor)?;
        let recipient = keys::recipient(config, &args.recipient)?;
        let known = keys::policy_recipients(config)?;
        if let Some((name, _)) = known.iter().find(|(_, known)| known.describe() == recipient.describe()) {
            return Err(Error::config(format!("this recipient is that of key '{name}' already"))
                .with_hint("a successor is a new key: 'backup key generate FILE' makes one"));
        }
        let name = args.name.clone().unwrap_or_else(|| next_name(&args.predecessor, policy));
        if policy.key(&name).is_some() {
            return Err(Error::config(format!("there is a key '{}' already", name.escape_debug()))
                .with_hint("choose another --name"));
        }
        let activates = args.activates.map(|moment| moment.0);
        if let Some(past) = activates.filter(|activates| *activates < now) {
            return Err(Error::config(format!("a successor cannot have become active already, at {past}")));
        }
        // In its own spelling, and known to be one.
        let recipient = args.recipient.trim().to_owned();
        Ok(Self { predecessor: predecessor.clone(), name, recipient, created: now, activates })
    }

    fn successor(&self) -> Successor<'_> {
        Successor {
            name: &self.name,
            recipient: &self.recipient,
            created: self.created,
            activates: self.activates,
            replaces: &self.predecessor.name,
        }
    }
}

fn check(policy: &Policy, predecessor: &Key) -> Result<()> {
    let name = &predecessor.name;
    if predecessor.retired.is_some() {
        return Err(Error::config(format!("key '{name}' is retired, so nothing can replace it"))
            .with_hint("a key that follows nobody is a table [keys.NAME] of its own"));
    }
    let successor = predecessor.successors.iter().filter_map(|name| policy.key(name)).find(|key| key.retired.is_none());
    match successor {
        Some(successor) => Err(Error::config(format!("key '{name}' has a successor already: '{}'", successor.name))
            .with_hint(format!("to replace that one: backup key rotate {}", successor.name))),
        None => Ok(()),
    }
}

/// `2026` is followed by `2027`, and `dr` by `dr-2`.
fn next_name(name: &str, policy: &Policy) -> String {
    let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[base.len()..];
    let (base, mut number) = match digits.parse::<u32>() {
        Ok(number) => (base.to_owned(), number),
        Err(_) => (format!("{name}-"), 1),
    };
    loop {
        number = number.wrapping_add(1);
        let next = format!("{base}{number}");
        if policy.key(&next).is_none() {
            return next;
        }
    }
}

#[cfg(test)]
mod tests {
    use backup_core::keys::policy::KeyRules;

    use super::*;

    #[test]
    fn names_are_counted_on_to_the_next_that_is_free() {
        let keys = ["2026", "dr", "dr-2", "eu-7", "99999999999999"];
        let rule = |name: &&str| KeyRules::new(*name, format!("age1{name}"), "2026-11-22T00:00:00Z".parse().unwrap());
        let policy = Policy::new(keys.iter().map(rule).collect()).unwrap();
        assert_eq!(keys.map(|name| next_name(name, &policy)), ["2027", "dr-3", "dr-3", "eu-8", "99999999999999-2"]);
    }
}
