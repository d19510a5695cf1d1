//! From when to when each key is used, and what comes after it: pure functions of the policy and the time.
//!
//! ```text
//!              activates                    ends
//!    ── pending ──┼── active ── … expiring ──┼── expired ── … retired
//!                              successor
//!                              activates     ends
//!    ── pending ──┼── active ──┼── overlap ──┼── expired ── … retired
//! ```
//!
//! New backups are wrapped for *every* key that is active, expiring or in overlap. So in the overlap the successor and the predecessor
//! both open what is written: whoever has not got the new identity yet, and a successor that turns out to be unusable, cost nobody a
//! backup. A key ends when it expires, or, if that is sooner, an overlap after its successor became active. A successor that is retired before
//! that is given up: the key goes on as if there had been none. A key that has ended is never used again, whatever becomes of its successor.

use std::collections::HashMap;
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::Serialize;

use super::shown;

/// Keys live for a year unless something else is said.
fn default_lifetime() -> Span {
    Span::new().years(1)
}

/// They are used for 30 days beside their successor.
fn default_overlap() -> Span {
    Span::new().days(30)
}

/// Their end is announced 90 days ahead.
fn default_warn() -> Span {
    Span::new().days(90)
}

/// The longest name of a key in bytes.
const NAME_LEN_MAX: usize = 63;

/// What a configuration says of one key. Spans are of the calendar, in UTC.
#[derive(Clone)]
pub struct KeyRules {
    /// What people call it: 1 to 63 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// Its public form.
    pub recipient: String,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is used; [`created`](Self::created) unless set.
    pub activates: Option<Timestamp>,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// How long after its creation it ends, unless `expires` says when: a year unless set.
    pub lifetime: Option<Span>,
    /// How long it is used beside its successor: 30 days unless set.
    pub overlap: Option<Span>,
    /// How long ahead its end is announced: 90 days unless set.
    pub warn: Option<Span>,
    /// Whose successor it is.
    pub replaces: Option<String>,
    /// Since when nothing that is kept needs it.
    pub retired: Option<Timestamp>,
}

impl KeyRules {
    /// A key with all defaults.
    pub fn new(name: impl Into<String>, recipient: impl Into<String>, created: Timestamp) -> Self {
        Self {
            name: name.into(),
            recipient: recipient.into(),
            created,
            activates: None,
            expires: None,
            lifetime: None,
            overlap: None,
            warn: None,
            replaces: None,
            retired: None,
        }
    }
}

/// The recipient [as it may be shown](shown).
impl fmt::Debug for KeyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, recipient, created, activates, expires, lifetime, overlap, warn, replaces, retired } = self;
        f.debug_struct("KeyRules")
            .field("name", name)
            .field("recipient", &shown(recipient))
            .field("created", created)
            .field("activates", activates)
            .field("expires", expires)
            .field("lifetime", lifetime)
            .field("overlap", overlap)
            .field("warn", warn)
            .field("replaces", replaces)
            .field("retired", retired)
            .finish()
    }
}

/// What a key is at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Not used yet.
    Pending,
    /// Used.
    Active,
    /// Used, and about to end without a successor that would be there in time.
    Expiring,
    /// Used beside its successor.
    Overlap,
    /// Not used any more. What is kept may still need it.
    Expired,
    /// Nothing that is kept needs it.
    Retired,
}

impl State {
    /// Whether new backups are wrapped for a key in this state.
    pub fn is_used(self) -> bool {
        matches!(self, Self::Active | Self::Expiring | Self::Overlap)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Expiring => "expiring",
            Self::Overlap => "overlap",
            Self::Expired => "expired",
            Self::Retired => "retired",
        })
    }
}

/// A key, with all moments of its life.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// Its name.
    pub name: String,
    /// Its public form.
    pub recipient: String,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is used.
    pub activates: Timestamp,
    /// From when on it is not used any more: when it expires, or the end of the overlap with its successor.
    pub ends: Timestamp,
    /// From when on its end is announced.
    pub warns: Timestamp,
    /// Whose successor it is.
    pub replaces: Option<String>,
    /// Its successors; the first to become active comes first. One, unless there was a second try. None of them was given up, which is to be
    /// retired before this key ended.
    pub successors: Vec<String>,
    /// Since when it is retired.
    pub retired: Option<Timestamp>,
    /// When its first successor becomes active.
    succeeded: Option<Timestamp>,
}

/// The recipient [as it may be shown](shown).
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, recipient, created, activates, ends, warns, replaces, successors, retired, succeeded } = self;
        f.debug_struct("Key")
            .field("name", name)
            .field("recipient", &shown(recipient))
            .field("created", created)
            .field("activates", activates)
            .field("ends", ends)
            .field("warns", warns)
            .field("replaces", replaces)
            .field("successors", successors)
            .field("retired", retired)
            .field("succeeded", succeeded)
            .finish()
    }
}

impl Key {
    /// What it is at the moment `now`.
    pub fn state(&self, now: Timestamp) -> State {
        if self.retired.is_some_and(|retired| retired <= now) {
            return State::Retired;
        }
        if now >= self.ends {
            return State::Expired;
        }
        if now < self.activates {
            return State::Pending;
        }
        match self.succeeded {
            Some(succeeded) if succeeded <= now => State::Overlap,
            // It will be there in time: nothing to announce.
            Some(succeeded) if succeeded <= self.ends => State::Active,
            _ if now >= self.warns => State::Expiring,
            _ => State::Active,
        }
    }
}

/// What a policy cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key '{key}' {problem}")]
pub struct PolicyError {
    /// The key's name.
    pub key: String,
    /// What is wrong with it, as the rest of a sentence about it.
    pub problem: String,
}

/// All keys of a configuration. The default one has none, and refuses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    keys: Vec<Key>,
}

impl Policy {
    /// Checks the rules and works out when each key ends.
    ///
    /// # Errors
    /// When names or recipients stand twice, a successor has no predecessor or is its own, or times contradict each other.
    pub fn new(rules: Vec<KeyRules>) -> Result<Self, PolicyError> {
        let mut keys: Vec<Key> = Vec::with_capacity(rules.len());
        let overlaps: HashMap<String, Span> =
            rules.iter().map(|rule| (rule.name.clone(), rule.overlap.unwrap_or_else(default_overlap))).collect();
        for rule in rules {
            let key = key(rule)?;
            if let Some(other) = keys.iter().find(|other| other.name == key.name || other.recipient == key.recipient) {
                return Err(wrong(&key.name, format!("is the same as '{}'", other.name)));
            }
            keys.push(key);
        }
        let mut successors: Vec<(String, Timestamp, String, Option<Timestamp>)> = Vec::new();
        for key in &keys {
            let Some(replaces) = &key.replaces else { continue };
            check_ancestry(&keys, key)?;
            successors.push((replaces.clone(), key.activates, key.name.clone(), key.retired));
        }
        successors.sort();
        for (predecessor, activates, successor, retired) in successors {
            let Some(key) = keys.iter_mut().find(|key| key.name == predecessor) else { continue };
            let overlap = overlaps.get(&predecessor).copied().unwrap_or_else(default_overlap);
            let end = after(activates, overlap).ok_or_else(|| wrong(&predecessor, "has an overlap without an end"))?;
            let end = key.ends.min(end);
            // Given up while the key was still there to go on.
            if retired.is_some_and(|retired| retired < end) {
                continue;
            }
            key.ends = end;
            key.succeeded.get_or_insert(activates);
            key.successors.push(successor);
        }
        Ok(Self { keys })
    }

    /// All keys, as the rules had them.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The keys that new backups are wrapped for at the moment `now`.
    pub fn used(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.state(now).is_used())
    }

    /// From when on no key is used any more, if nobody does anything: `now`, when none is; `None`, when there is no policy.
    pub fn lapses(&self, now: Timestamp) -> Option<Timestamp> {
        if self.keys.is_empty() {
            return None;
        }
        let mut until = now;
        // Each turn goes on to the end of another key, so there are no more turns than keys.
        while let Some(end) = self.used(until).map(|key| key.retired.map_or(key.ends, |r| r.min(key.ends))).max() {
            until = end;
        }
        Some(until)
    }
}

/// The times of one key, without those that its successors decide.
fn key(rule: KeyRules) -> Result<Key, PolicyError> {
    let name = rule.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(plain) {
        return Err(wrong(&name, "has a name that is not 1 to 63 letters, digits, '.', '_' and '-'"));
    }
    let activates = rule.activates.unwrap_or(rule.created);
    let expires = match (rule.expires, rule.lifetime) {
        (Some(_), Some(_)) => return Err(wrong(&name, "has both 'expires' and 'lifetime'")),
        (Some(expires), None) => Some(expires),
        (None, lifetime) => after(rule.created, lifetime.unwrap_or_else(default_lifetime)),
    };
    let ends = expires.ok_or_else(|| wrong(&name, "has a lifetime without an end"))?;
    if activates < rule.created {
        return Err(wrong(&name, format!("activates ({activates}) before it is created ({})", rule.created)));
    }
    if ends <= activates {
        return Err(wrong(&name, format!("ends ({ends}) before it activates ({activates})")));
    }
    for (what, span) in [("overlap", rule.overlap), ("warn", rule.warn), ("lifetime", rule.lifetime)] {
        if span.is_some_and(|span| span.is_negative()) {
            return Err(wrong(&name, format!("has a negative '{what}'")));
        }
    }
    let warn = rule.warn.unwrap_or_else(default_warn);
    let warns = after(ends, warn.negate()).unwrap_or(Timestamp::MIN);
    Ok(Key {
        name,
        recipient: rule.recipient,
        created: rule.created,
        activates,
        ends,
        warns,
        replaces: rule.replaces,
        successors: Vec::new(),
        retired: rule.retired,
        succeeded: None,
    })
}

/// The predecessors of a key exist, and it is none of them.
fn check_ancestry(keys: &[Key], key: &Key) -> Result<(), PolicyError> {
    let mut at = key;
    for _ in 0..keys.len() {
        let Some(replaces) = &at.replaces else { return Ok(()) };
        let Some(predecessor) = keys.iter().find(|other| other.name == *replaces) else {
            return Err(wrong(&at.name, format!("replaces '{}', which is not there", replaces.escape_debug())));
        };
        at = predecessor;
    }
    Err(wrong(&key.name, "is its own successor"))
}

/// `span` after `time`, by the calendar in UTC.
fn after(time: Timestamp, span: Span) -> Option<Timestamp> {
    time.to_zoned(TimeZone::UTC).checked_add(span).ok().map(|time| time.timestamp())
}

fn wrong(key: &str, problem: impl Into<String>) -> PolicyError {
    PolicyError { key: key.escape_debug().to_string(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
