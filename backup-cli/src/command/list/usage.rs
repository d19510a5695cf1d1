//! `backup list --usage`: how much there is, and how much room.

use backup_core::Result;
use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::repository::usage::{Amount, Capacity, CapacityOf, TargetUsage, Usage};
use serde::Serialize;

use super::UnreadableTarget;
use crate::args::ListArgs;
use crate::config::RepositorySetting;
use crate::exit::Exit;
use crate::output::{bytes, table};
use crate::{App, report};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    bytes: u64,
    targets: Vec<Target<'a>>,
    /// What could not be looked at.
    unreadable_targets: Vec<UnreadableTarget>,
    capacity: Vec<Share>,
    /// From how many per cent on there is a warning.
    warn_at: u8,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Target<'a> {
    target: &'a str,
    bytes: u64,
    backups: Vec<Backups<'a>>,
    wal: Amount,
    unfinished: Amount,
    unreadable: u64,
}

#[derive(Debug, Serialize)]
struct Backups<'a> {
    kind: &'a str,
    #[serde(flatten)]
    amount: Amount,
}

#[derive(Debug, Serialize)]
struct Share {
    #[serde(flatten)]
    capacity: Capacity,
    percent: u64,
}

pub(super) async fn run(
    app: &App,
    args: &ListArgs,
    repository: Repository,
    setting: &RepositorySetting,
    targets: Vec<TargetName>,
) -> Result<Exit> {
    let repository = &repository;
    let mut usage = Usage::read(repository, &targets).await?;
    if args.target.is_some()
        && let Some((_, refused)) = usage.refused.pop()
    {
        return Err(refused);
    }
    let budget = setting.capacity.as_ref().map(|budget| Capacity::of_budget(budget.value.as_u64(), &usage));
    let warn_at = setting.capacity_warning.value;
    // Of one target nobody can say whether the budget of all is kept.
    let budget = budget.filter(|_| args.target.is_none());
    let capacities: Vec<Capacity> = budget.into_iter().chain(repository.file_system()?).collect();
    let full: Vec<&Capacity> = capacities.iter().filter(|c| c.percent() >= u64::from(warn_at)).collect();
    let ok = full.is_empty() && usage.refused.is_empty();
    if args.json {
        app.output.json(&document(warn_at, repository, &usage, &capacities, ok))?;
    } else {
        app.output.data(&table(&rows(&usage)))?;
        for capacity in &capacities {
            app.output.note(describe(repository, capacity));
        }
    }
    for (target, error) in &usage.refused {
        app.output.warning(format!("'{target}' is not counted: {}", report::in_one_line(error)));
    }
    for capacity in &full {
        app.output.warning(describe(repository, capacity));
    }
    Ok(if ok { Exit::Done } else { Exit::Warnings })
}

/// How full it is, in words.
pub(crate) fn describe(repository: &Repository, capacity: &Capacity) -> String {
    let what = match capacity.of {
        CapacityOf::Budget => format!("the budget of {repository}"),
        CapacityOf::FileSystem => format!("the file system of {repository}"),
    };
    format!("{what} is used to {} %: {} of {}", capacity.percent(), bytes(capacity.used), bytes(capacity.bytes))
}

fn rows(usage: &Usage) -> Vec<Vec<String>> {
    let mut rows = vec![["TARGET", "KIND", "COUNT", "STORED"].map(str::to_owned).to_vec()];
    for target in &usage.targets {
        let mut row = |kind: &str, amount: Amount| {
            if amount != Amount::default() {
                let cells = [target.target.as_str(), kind, &amount.count.to_string(), &bytes(amount.bytes)];
                rows.push(cells.map(str::to_owned).to_vec());
            }
        };
        for (kind, amount) in &target.backups {
            row(kind, *amount);
        }
        row("WAL", target.wal);
        row("unfinished", target.unfinished);
        row("unreadable", Amount { count: target.unreadable, bytes: 0 });
    }
    rows.push(["all", "", "", &bytes(usage.bytes())].map(str::to_owned).to_vec());
    rows
}

fn document<'a>(
    warn_at: u8,
    repository: &'a Repository,
    usage: &'a Usage,
    capacities: &[Capacity],
    ok: bool,
) -> Document<'a> {
    Document {
        repository: repository.name(),
        bytes: usage.bytes(),
        targets: usage.targets.iter().map(of_target).collect(),
        unreadable_targets: usage.refused.iter().map(|(target, error)| UnreadableTarget::new(target, error)).collect(),
        capacity: capacities.iter().map(|c| Share { capacity: *c, percent: c.percent() }).collect(),
        warn_at,
        ok,
    }
}

fn of_target(target: &TargetUsage) -> Target<'_> {
    Target {
        target: target.target.as_str(),
        bytes: target.bytes(),
        backups: target.backups.iter().map(|(kind, amount)| Backups { kind, amount: *amount }).collect(),
        wal: target.wal,
        unfinished: target.unfinished,
        unreadable: target.unreadable,
    }
}
