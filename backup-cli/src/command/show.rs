//! `backup show`.

use std::collections::BTreeSet;

use backup_core::encrypt::signature::Signer;
use backup_core::format::{Manifest, RecipientName};
use backup_core::repository::census::rewrapped_for;
use backup_core::repository::pins::Pin;
use backup_core::repository::{Found, Repository};
use backup_core::restore::OpenBackup;
use backup_core::{ErrorKind, Result};
use serde::Serialize;
use serde_json::Value;

use crate::args::ShowArgs;
use crate::exit::Exit;
use crate::output::{bytes, table};
use crate::{App, keys, report};

use super::describe::{BackupDocument, data_bytes, stored_bytes, time, word};
use super::{resolve, to_read};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    backup: BackupDocument,
    /// Whom its data key was wrapped for since it was made.
    rewrapped_for: BTreeSet<RecipientName>,
    /// Whether a key was at hand to check the manifest with.
    authenticated: bool,
    /// What the backup says of its data; needs the key.
    details: Option<Value>,
}

pub(crate) async fn run(app: &App, args: &ShowArgs) -> Result<Exit> {
    let repository = to_read(app).await?;
    let (found, passed_over) = resolve(app, &repository, &args.reference, &args.age).await?;
    let (opened, mut exit) = match open(app, &repository, &found).await {
        Ok(opened) if passed_over => (opened, Exit::Warnings),
        Ok(opened) => (opened, Exit::Done),
        // There is a key, and it does not do: worth knowing, and no reason to show nothing.
        Err(e) if e.kind() == ErrorKind::Key => {
            let hint = e.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            app.output.warning(format!("the manifest is not checked: {}{hint}", report::in_one_line(&e)));
            (None, Exit::Warnings)
        }
        Err(e) => return Err(e),
    };
    // What was proved, not what was read before.
    let manifest = opened.as_ref().map_or(&found.manifest, OpenBackup::manifest);
    let details = match &opened {
        Some(backup) => Some(backup.details().await?),
        None => None,
    };
    let rewrapped = rewrapped_for(&repository, &found, opened.as_ref()).await.unwrap_or_else(|e| {
        app.output.warning(format!("whom it was wrapped for since is not known: {}", report::in_one_line(&e)));
        exit = Exit::Warnings;
        BTreeSet::new()
    });
    let pins = repository.pins_of(&found.path).await?;
    if args.json {
        app.output.json(&Document {
            repository: repository.name(),
            backup: BackupDocument::new(manifest, found.signer).with_pins(&pins, app.clock.now()),
            rewrapped_for: rewrapped,
            authenticated: opened.is_some(),
            details,
        })?;
    } else {
        app.output.data(&text(manifest, found.signer, &rewrapped, &pins, details.as_ref()))?;
    }
    Ok(exit)
}

/// The backup, opened with the key on this host. To have none is no error here.
async fn open(app: &App, repository: &Repository, found: &Found) -> Result<Option<OpenBackup>> {
    let identities = keys::identities_at_hand(&app.config).await?;
    if identities.is_empty() {
        return Ok(None);
    }
    OpenBackup::open(repository, &found.path, &identities).await.map(Some)
}

fn text(
    manifest: &Manifest,
    signer: Option<Signer>,
    rewrapped: &BTreeSet<RecipientName>,
    pins: &[Pin],
    details: Option<&Value>,
) -> String {
    let name = |r: &RecipientName| format!("{} {}", r.kind, r.recipient);
    let recipients: Vec<String> = manifest.recipients.iter().map(name).collect();
    let mut facts = vec![
        ("id", manifest.id.clone()),
        ("target", manifest.target.clone()),
        ("kind", word(&manifest.kind)),
        ("state", word(&manifest.condition)),
        ("warnings", manifest.warnings.to_string()),
        ("started", time(manifest.started)),
        ("finished", time(manifest.finished)),
        ("data", bytes(data_bytes(manifest))),
        ("stored", bytes(manifest.stored_bytes())),
        ("data key", manifest.data_key.clone()),
        ("encrypted to", recipients.join(", ")),
        ("made by", format!("backup {}", manifest.version)),
    ];
    if !rewrapped.is_empty() {
        facts.push(("wrapped again for", rewrapped.iter().map(name).collect::<Vec<_>>().join(", ")));
    }
    if let Some(cluster) = &manifest.cluster {
        facts.push(("cluster", cluster.system_identifier.to_string()));
        facts.push(("timeline", cluster.timeline.to_string()));
        facts.push(("WAL", format!("{} to {}", cluster.start_lsn, cluster.stop_lsn)));
        facts.push(("consistent", format!("at {}, by the server's clock", time(cluster.stopped))));
    }
    if !manifest.requires.is_empty() {
        facts.push(("requires", manifest.requires.join(", ")));
    }
    facts.extend(pins.iter().map(|pin| ("pinned", super::pin::describe(pin))));
    facts.push(("signed by", signer.map_or_else(|| "nobody".to_owned(), |signer| signer.to_string())));
    facts.push(match details {
        Some(_) => ("manifest", "authentic".to_owned()),
        None => ("manifest", "not checked: no key at hand opens it".to_owned()),
    });
    let facts: Vec<Vec<String>> = facts.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    let mut text = table(&facts);
    let mut streams = vec![["STREAM", "DATA", "STORED", "VOLUMES"].map(str::to_owned).to_vec()];
    for stream in &manifest.streams {
        streams.push(vec![
            stream.name.clone(),
            bytes(stream.bytes),
            bytes(stored_bytes(stream)),
            stream.volumes.len().to_string(),
        ]);
    }
    text.push('\n');
    text.push_str(&table(&streams));
    if let Some(Value::Object(source)) = details.and_then(|d| d.get("source")) {
        let mut rows = vec![["SOURCE", ""].map(str::to_owned).to_vec()];
        rows.extend(source.iter().map(|(key, value)| vec![key.replace('_', " "), plain(value)]));
        text.push('\n');
        text.push_str(&table(&rows));
    }
    if let Some(Value::Array(warnings)) = details.and_then(|d| d.get("warnings"))
        && !warnings.is_empty()
    {
        text.push_str("\nWARNINGS\n");
        for warning in warnings {
            text.push_str(&format!("{}\n", report::plain(&plain(warning))));
        }
    }
    text
}

/// A value of the details, without JSON's quotes around a plain text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
