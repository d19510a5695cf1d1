//! `backup list --runs`: who did what.

use backup_core::Result;
use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::repository::runs::RunRecord;
use jiff::ToSpan;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::App;
use crate::args::ListArgs;
use crate::command::describe::{time, word};
use crate::exit::Exit;
use crate::output::{bytes, table};

/// So many days are looked back.
const DAYS: i64 = 30;

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    runs: Vec<RunRecord>,
    unreadable_runs: usize,
}

pub(super) async fn run(
    app: &App,
    args: &ListArgs,
    repository: &Repository,
    target: Option<&TargetName>,
) -> Result<Exit> {
    let today = app.clock.now().to_zoned(TimeZone::UTC).date();
    let since = today.saturating_sub(DAYS.days());
    let (mut runs, unreadable_runs) = repository.runs(since).await?;
    runs.retain(|run| target.is_none() || run.target.as_ref() == target);
    if args.json {
        app.output.json(&Document { repository: repository.name(), runs, unreadable_runs })?;
    } else if runs.is_empty() {
        app.output.note(format!("no runs are recorded in {repository} since {since}"));
    } else {
        let header = ["STARTED", "COMMAND", "TARGET", "BACKUP", "OUTCOME", "DATA", "WHO"].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = std::iter::once(header).chain(runs.iter().map(row)).collect();
        app.output.data(&table(&rows))?;
    }
    if unreadable_runs == 0 {
        return Ok(Exit::Done);
    }
    app.output.warning(format!("records of runs that cannot be read: {unreadable_runs}"));
    Ok(Exit::Warnings)
}

fn row(run: &RunRecord) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        time(run.started),
        run.command.clone(),
        or_dash(run.target.as_ref().map(ToString::to_string)),
        or_dash(run.backup.as_ref().map(|id| id.as_str().to_owned())),
        run.outcome.as_ref().map_or_else(|| "unfinished".to_owned(), word),
        or_dash(run.bytes.map(bytes)),
        format!("{}@{}", run.who.user, run.who.host),
    ]
}
