//! `backup key list`.

use backup_core::Result;
use backup_core::keys::policy::{Key, State};
use backup_core::keys::shown;
use jiff::Timestamp;
use serde::Serialize;

use crate::App;
use crate::args::ListKeysArgs;
use crate::command::describe::time;
use crate::exit::Exit;
use crate::keys;
use crate::output::table;

#[derive(Debug, Serialize)]
struct Document {
    keys: Vec<KeyDocument>,
    /// From when on no configured key is used.
    lapses: Option<String>,
}

/// A configured key in JSON.
#[derive(Debug, Serialize)]
pub(super) struct KeyDocument {
    name: String,
    recipient: String,
    state: State,
    created: String,
    activates: String,
    ends: String,
    warns: String,
    replaces: Option<String>,
    successors: Vec<String>,
    retired: Option<String>,
}

impl KeyDocument {
    pub(super) fn new(key: &Key, now: Timestamp) -> Self {
        Self {
            name: key.name.clone(),
            recipient: shown(&key.recipient),
            state: key.state(now),
            created: time(key.created),
            activates: time(key.activates),
            ends: time(key.ends),
            warns: time(key.warns),
            replaces: key.replaces.clone(),
            successors: key.successors.clone(),
            retired: key.retired.map(time),
        }
    }
}

/// Said where there is no policy.
pub(super) const NO_POLICY: &str = "no key is configured as a table [keys.NAME], so none has a time at which it ends";

pub(super) fn run(app: &App, args: &ListKeysArgs) -> Result<Exit> {
    let (policy, now) = (&app.config.keys.policy, app.clock.now());
    // What is no recipient may be a secret key that was pasted there by mistake, and is not shown.
    keys::policy_recipients(&app.config)?;
    if args.json {
        app.output.json(&Document {
            keys: policy.keys().iter().map(|key| KeyDocument::new(key, now)).collect(),
            lapses: policy.lapses(now).map(time),
        })?;
        return Ok(Exit::Done);
    }
    if policy.is_empty() {
        app.output.note(NO_POLICY);
        return Ok(Exit::Done);
    }
    let mut rows = vec![["KEY", "STATE", "FROM", "UNTIL", "REPLACES", "RECIPIENT"].map(str::to_owned).to_vec()];
    for key in policy.keys() {
        let replaces = key.replaces.clone().unwrap_or_else(|| "-".to_owned());
        let state = key.state(now).to_string();
        rows.push(vec![key.name.clone(), state, time(key.activates), time(key.ends), replaces, shown(&key.recipient)]);
    }
    app.output.data(&table(&rows))?;
    Ok(Exit::Done)
}
