//! The same for programs.

use backup_core::repository::Repository;
use backup_core::repository::prune::{Removed, Report, TargetReport, WalFate, WalReport};
use backup_core::repository::retention::wal::WalReason;
use backup_core::repository::retention::{Reason, Standing};
use serde::Serialize;

use crate::command::describe::time;

#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    repository: &'a str,
    dry_run: bool,
    removed: Size,
    staging: Size,
    uploads: Uploads<'a>,
    targets: Vec<Target<'a>>,
    problems: Vec<Problem<'a>>,
    problem_count: u64,
}

#[derive(Debug, Serialize)]
struct Size {
    objects: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Uploads<'a> {
    aborted: u64,
    refused: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Target<'a> {
    target: &'a str,
    backups: Vec<Backup<'a>>,
    unfinished: Vec<Unfinished<'a>>,
    wal: Vec<Wal<'a>>,
    rewraps: Size,
}

#[derive(Debug, Serialize)]
struct Backup<'a> {
    id: &'a str,
    started: String,
    standing: &'static str,
    bytes: u64,
    kept: bool,
    reasons: &'a [Reason],
}

#[derive(Debug, Serialize)]
struct Unfinished<'a> {
    id: &'a str,
    newest: String,
    objects: u64,
    bytes: u64,
    kept: bool,
}

#[derive(Debug, Serialize)]
struct Wal<'a> {
    system_identifier: String,
    timeline: u32,
    first: &'a str,
    last: &'a str,
    files: u64,
    bytes: u64,
    kept: bool,
    #[serde(flatten)]
    fate: Fate<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Fate<'a> {
    Kept(&'a WalReason),
    Gone { reason: &'static str },
}

#[derive(Debug, Serialize)]
struct Problem<'a> {
    object: &'a str,
    problem: &'a str,
}

impl From<Removed> for Size {
    fn from(removed: Removed) -> Self {
        Self { objects: removed.objects, bytes: removed.bytes }
    }
}

pub(super) fn of<'a>(repository: &'a Repository, report: &'a Report, dry_run: bool) -> Document<'a> {
    Document {
        repository: repository.name(),
        dry_run,
        removed: report.removed.into(),
        staging: report.staging.into(),
        uploads: Uploads { aborted: report.uploads.aborted, refused: report.uploads.refused.as_deref() },
        targets: report.targets.iter().map(of_target).collect(),
        problems: report.problems.iter().map(|p| Problem { object: &p.object, problem: &p.problem }).collect(),
        problem_count: report.problem_count,
    }
}

fn of_target(target: &TargetReport) -> Target<'_> {
    let backups = target.backups.iter().map(|backup| Backup {
        id: backup.id.as_str(),
        started: time(backup.started),
        standing: standing(&backup.standing),
        bytes: backup.bytes,
        kept: !backup.reasons.is_empty(),
        reasons: &backup.reasons,
    });
    let unfinished = target.unfinished.iter().map(|run| Unfinished {
        id: run.id.as_str(),
        newest: time(run.newest),
        objects: run.size.objects,
        bytes: run.size.bytes,
        kept: run.kept,
    });
    Target {
        target: target.target.as_str(),
        backups: backups.collect(),
        unfinished: unfinished.collect(),
        wal: target.wal.iter().map(wal).collect(),
        rewraps: target.rewraps.into(),
    }
}

fn wal(wal: &WalReport) -> Wal<'_> {
    let fate = match &wal.fate {
        WalFate::Kept(reason) => Fate::Kept(reason),
        WalFate::Superseded => Fate::Gone { reason: "superseded" },
        WalFate::Orphaned => Fate::Gone { reason: "orphaned" },
        _ => Fate::Gone { reason: "expired" },
    };
    Wal {
        system_identifier: wal.system_identifier.to_string(),
        timeline: wal.timeline.get(),
        first: &wal.first,
        last: &wal.last,
        files: wal.size.objects,
        bytes: wal.size.bytes,
        kept: matches!(wal.fate, WalFate::Kept(_)),
        fate,
    }
}

fn standing(standing: &Standing) -> &'static str {
    match standing {
        Standing::Good => "good",
        Standing::Damaged => "damaged",
        Standing::UnknownKind(_) => "unknown_kind",
        Standing::Newer => "newer_format",
        Standing::Unreadable => "unreadable",
        Standing::Untrusted => "untrusted",
    }
}
