//! `backup key status`.

use std::collections::BTreeSet;
use std::sync::Arc;

use backup_core::Result;
use backup_core::format::RecipientName;
use backup_core::keys::Identity;
use backup_core::keys::policy::{Key, State};
use backup_core::repository::Repository;
use backup_core::repository::census::{Census, Held, Looked, Problem};
use backup_core::repository::layout::TargetName;
use backup_core::repository::rewrap::named;
use jiff::Timestamp;
use serde::Serialize;

use crate::App;
use crate::args::StatusKeysArgs;
use crate::command::describe::time;
use crate::exit::Exit;
use crate::output::table;
use crate::{keys, progress};

use super::list::{KeyDocument, NO_POLICY};
use super::{concurrency, count, shown, tell_problems, tell_unfinished, with_each_of, words, words_and_names};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    /// Whether every data key was opened.
    proved: bool,
    ok: bool,
    /// What needs attention.
    problems: &'a [String],
    keys: Vec<KeyEntry>,
    others: Vec<OtherEntry>,
    kept: Held,
    /// What none of today's recipients can open.
    closed: Held,
    /// What is not wrapped for all of them.
    not_rewrapped: Held,
    unread: &'a [Problem],
    unread_count: u64,
    unfinished: usize,
}

/// A configured key.
#[derive(Debug, Serialize)]
struct KeyEntry {
    #[serde(flatten)]
    key: KeyDocument,
    opens: Held,
    needed_by: Held,
}

/// A recipient that no policy names.
#[derive(Debug, Serialize)]
struct OtherEntry {
    kind: String,
    recipient: String,
    /// Whether new backups are encrypted to it.
    current: bool,
    opens: Held,
    needed_by: Held,
}

/// Everything that is told.
struct Status {
    census: Census,
    now: Timestamp,
    /// To whom new backups are encrypted.
    current: BTreeSet<RecipientName>,
    /// Of those, the ones that stay.
    lasting: BTreeSet<RecipientName>,
    /// Keys of the policy, each with its name in manifests.
    keys: Vec<(Key, RecipientName)>,
}

pub(super) async fn run(app: &App, args: &StatusKeysArgs) -> Result<Exit> {
    let now = app.clock.now();
    let identities = if args.deep { keys::identities(&app.config).await? } else { Vec::new() };
    let of_each = |repository, _, targets| of_one(app, args, repository, targets, identities.clone(), now);
    with_each_of(app, &args.targets, of_each).await
}

async fn of_one(
    app: &App,
    args: &StatusKeysArgs,
    repository: Repository,
    targets: Vec<TargetName>,
    identities: Vec<Arc<dyn Identity>>,
    now: Timestamp,
) -> Result<Exit> {
    let looked = Looked::default();
    let work = Census::take(&repository, &targets, &identities, concurrency(&app.config), &looked);
    let census = progress::during(&app.output, None, || shown(&looked), work).await?;
    let status = Status::new(app, census, now)?;
    let problems = status.problems();
    tell_problems(&app.output, &status.census);
    tell_unfinished(&app.output, &status.census);
    for problem in &problems {
        app.output.warning(problem);
    }
    if args.json {
        app.output.json(&status.document(repository.name(), args.deep, &problems))?;
    } else {
        status.tell(app, args.deep)?;
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Warnings })
}

impl Status {
    fn new(app: &App, census: Census, now: Timestamp) -> Result<Self> {
        let current = keys::recipient_names(&app.config, now)?;
        let mut keys_by_name = Vec::new();
        for key in app.config.keys.policy.keys() {
            keys_by_name.push((key.clone(), named(&*keys::key_recipient(&app.config, key)?)));
        }
        let mut lasting = current.clone();
        for (_, recipient) in keys_by_name.iter().filter(|(key, _)| key.state(now) == State::Overlap) {
            lasting.remove(recipient);
        }
        Ok(Self { census, now, current, lasting, keys: keys_by_name })
    }

    /// What needs attention, in words.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, recipient) in &self.keys {
            let needed = self.census.needing(recipient, &self.current);
            match key.state(self.now) {
                State::Expiring => problems.push(format!("key '{}' {}", key.name, keys::expiring(key, self.now))),
                State::Expired if key.successors.is_empty() => {
                    problems.push(format!("key '{}' {}", key.name, keys::ended_alone(key)));
                }
                State::Retired if !needed.is_empty() => {
                    problems.push(format!("key '{}' is retired, and needed by {}", key.name, words_and_names(&needed)));
                }
                _ => {}
            }
        }
        if !self.keys.is_empty() && self.current.is_empty() {
            problems.push("no key is used: backups are refused".to_owned());
        }
        let closed = self.census.closed_to(&self.current);
        let ending = self.census.closed_to(&self.lasting);
        // A host without recipients has no say in it.
        if !self.current.is_empty() {
            if !closed.is_empty() {
                problems.push(format!("no key of today opens {}; run 'backup key rewrap'", words_and_names(&closed)));
            } else if !ending.is_empty() {
                problems.push(format!(
                    "only keys in overlap open {}: run 'backup key rewrap' before they end",
                    words(&ending)
                ));
            }
        }
        if self.census.problem_count > 0 {
            problems.push(format!("{} could not be looked at", count(self.census.problem_count, "thing")));
        }
        problems
    }

    /// Recipients of what is kept, or of today, that are no keys of the policy.
    fn others(&self) -> Vec<RecipientName> {
        let mut all = self.census.recipients();
        all.extend(self.current.iter().cloned());
        all.retain(|name| !self.keys.iter().any(|(_, known)| known == name));
        all.into_iter().collect()
    }

    fn tell(&self, app: &App, proved: bool) -> Result<()> {
        let mut rows = vec![["KEY", "STATE", "UNTIL", "OPENS", "NEEDED BY", "RECIPIENT"].map(str::to_owned).to_vec()];
        let held = |held: &Held| if held.is_empty() { "-".to_owned() } else { words(held) };
        for (key, recipient) in &self.keys {
            rows.push(vec![
                key.name.clone(),
                key.state(self.now).to_string(),
                time(key.ends),
                held(&self.census.opened_by(recipient)),
                held(&self.census.needing(recipient, &self.current)),
                recipient.recipient.clone(),
            ]);
        }
        for other in self.others() {
            let state = if self.current.contains(&other) { "used" } else { "not used" };
            rows.push(vec![
                "-".to_owned(),
                state.to_owned(),
                "-".to_owned(),
                held(&self.census.opened_by(&other)),
                held(&self.census.needing(&other, &self.current)),
                format!("{} {}", other.kind, other.recipient),
            ]);
        }
        app.output.data(&table(&rows))?;
        if self.keys.is_empty() {
            app.output.note(NO_POLICY);
        }
        let (all, lacking) = (self.census.all(), self.census.lacking(&self.current));
        let how = if proved { "opened and proved" } else { "as the repository says; --deep proves it" };
        app.output.note(format!("{} with {}, {how}", words(&all), count(all.data_keys, "data key")));
        if !lacking.is_empty() && !self.current.is_empty() {
            app.output
                .note(format!("not wrapped for all keys of today: {}; 'backup key rewrap' does that", words(&lacking)));
        }
        Ok(())
    }

    fn document<'a>(&'a self, repository: &'a str, proved: bool, problems: &'a [String]) -> Document<'a> {
        let entry = |(key, recipient): &(Key, RecipientName)| KeyEntry {
            key: KeyDocument::new(key, self.now),
            opens: self.census.opened_by(recipient),
            needed_by: self.census.needing(recipient, &self.current),
        };
        let other = |name: RecipientName| OtherEntry {
            current: self.current.contains(&name),
            opens: self.census.opened_by(&name),
            needed_by: self.census.needing(&name, &self.current),
            kind: name.kind,
            recipient: name.recipient,
        };
        Document {
            repository,
            proved,
            ok: problems.is_empty(),
            problems,
            keys: self.keys.iter().map(entry).collect(),
            others: self.others().into_iter().map(other).collect(),
            kept: self.census.all(),
            closed: self.census.closed_to(&self.current),
            not_rewrapped: self.census.lacking(&self.current),
            unread: &self.census.problems,
            unread_count: self.census.problem_count,
            unfinished: self.census.unfinished.len(),
        }
    }
}
