//! Why each backup and each part of the log stays or goes, for people.

use backup_core::repository::prune::{Report, TargetReport, WalFate};
use backup_core::repository::retention::Reason;

use crate::command::describe::time;
use crate::output::{bytes, table};

pub(super) fn text(report: &Report) -> String {
    report.targets.iter().map(of_target).collect::<Vec<_>>().join("\n")
}

fn of_target(target: &TargetReport) -> String {
    let mut rows = vec![["BACKUP", "BEGUN", "STORED", "DECISION", "WHY"].map(str::to_owned).to_vec()];
    for backup in &target.backups {
        let why: Vec<String> = backup.reasons.iter().map(Reason::to_string).collect();
        let (decision, why) = match why.is_empty() {
            true => ("goes", "no rule keeps it".to_owned()),
            false => ("stays", why.join("; ")),
        };
        rows.push(vec![backup.id.to_string(), time(backup.started), bytes(backup.bytes), decision.to_owned(), why]);
    }
    for run in &target.unfinished {
        let (decision, why) = match run.kept {
            true => ("stays", "unfinished, and younger than the grace: it may be running"),
            false => ("goes", "unfinished, and nothing came of it for the length of the grace"),
        };
        let row = [run.id.as_str(), &time(run.id.timestamp()), &bytes(run.size.bytes), decision, why];
        rows.push(row.map(str::to_owned).to_vec());
    }
    let mut text = format!("{}\n{}", target.target, table(&rows));
    if !target.wal.is_empty() {
        text.push('\n');
        text.push_str(&table(&log(target)));
    }
    text
}

fn log(target: &TargetReport) -> Vec<Vec<String>> {
    let mut rows =
        vec![["CLUSTER", "LOG FROM", "TO", "FILES", "STORED", "DECISION", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(target.wal.iter().map(|wal| {
        let (decision, why) = match &wal.fate {
            WalFate::Expired => ("goes", "nothing that is kept needs it".to_owned()),
            WalFate::Superseded => ("goes", "pieces of segments that are there as a whole".to_owned()),
            WalFate::Orphaned => ("goes", "nothing refers to it".to_owned()),
            WalFate::Kept(reason) => ("stays", reason.to_string()),
            _ => ("", String::new()),
        };
        vec![
            wal.system_identifier.to_string(),
            wal.first.clone(),
            wal.last.clone(),
            wal.size.objects.to_string(),
            bytes(wal.size.bytes),
            decision.to_owned(),
            why,
        ]
    }));
    rows
}
