//! `backup wal check`.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::jiff::Timestamp;
use backup_core::postgres::wal::{SegmentName, SystemIdentifier};
use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::wal_archive::{ClusterInventory, Inventory, ReadyFiles, TimelineInventory};
use backup_core::{Error, ErrorKind, Result, Stage};
use serde::Serialize;

use crate::App;
use crate::args::CheckArgs;
use crate::command::describe::time;
use crate::command::pruned::{Gaps, pruned_gaps};
use crate::command::with_each;
use crate::exit::Exit;
use crate::output::{self, bytes};
use crate::report::in_one_line;

use super::target;

mod lag;
mod reachable;

use lag::{Lag, ServerDocument};
use reachable::{Window, windows};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    target: &'a str,
    ok: bool,
    problems: Vec<String>,
    clusters: Vec<ClusterDocument>,
    ready: Option<ReadyDocument>,
    server: Option<ServerDocument>,
}

#[derive(Debug, Serialize)]
struct ClusterDocument {
    system_identifier: String,
    /// From when to when it can be recovered.
    reachable: Option<Window>,
    timelines: Vec<TimelineDocument>,
}

#[derive(Debug, Serialize)]
struct TimelineDocument {
    timeline: u32,
    segment_bytes: Option<u64>,
    segments: u64,
    stored_bytes: u64,
    /// Of the oldest byte; and behind the newest.
    start_lsn: Option<String>,
    end_lsn: Option<String>,
    archived: Option<Timestamp>,
    /// How far what was received of the next segment reaches.
    tail_lsn: Option<String>,
    history: bool,
    ranges: Vec<RangeDocument>,
    gaps: Vec<GapDocument>,
}

#[derive(Debug, Serialize)]
struct RangeDocument {
    first: String,
    last: String,
    segments: u64,
    start_lsn: String,
    end_lsn: String,
}

#[derive(Debug, Serialize)]
struct GapDocument {
    first: String,
    last: String,
}

#[derive(Debug, Serialize)]
struct ReadyDocument {
    count: u64,
    oldest: Option<String>,
    oldest_age_seconds: Option<u64>,
}

pub(crate) async fn run(app: &App, args: &CheckArgs) -> Result<Exit> {
    let target = target(&app.config)?;
    with_each(app, |repository, _| in_one(app, args, target.clone(), repository)).await
}

async fn in_one(app: &App, args: &CheckArgs, target: TargetName, repository: Repository) -> Result<Exit> {
    let inventory = Inventory::read(&repository, &target).await?;
    let server = match args.server.as_deref() {
        Some(conninfo) => Some(Lag::of_server(app, conninfo, &target, &inventory).await?),
        None => None,
    };
    let ready = match &args.data_directory {
        Some(directory) => Some(ReadyFiles::read(directory, app.clock.now())?),
        None => server.as_ref().and_then(|lag| lag.server.ready.clone()),
    };
    if inventory.clusters.is_empty() && ready.is_none() && server.is_none() {
        let message = format!("{repository} holds no WAL of '{target}'");
        return Err(Error::new(ErrorKind::NotFound, Stage::Catalog, message)
            .with_hint("is archive_command set, and does 'backup wal push' succeed?"));
    }
    let lag_max = Duration::from_secs(args.lag_max);
    let pruned = pruned_gaps(app, &repository, &target, &inventory).await?;
    // Who may read the log need not be allowed to read the backups.
    let windows = windows(&repository, &target, &inventory).await;
    let mut problems = problems(&inventory, ready.as_ref(), lag_max, &pruned);
    problems.extend(server.iter().flat_map(|lag| lag.problems(lag_max)));
    if args.json {
        let windows = windows.unwrap_or_default();
        let mut document =
            document(&repository, target.as_str(), &inventory, &windows, ready.as_ref(), problems.clone());
        document.server = server.as_ref().map(Lag::document);
        app.output.json(&document)?;
    } else {
        app.output.data(&output::table(&table(&inventory)))?;
        for cluster in inventory.clusters.iter().map(|cluster| cluster.system_identifier) {
            app.output.note(match windows.as_ref().map(|windows| windows.get(&cluster)) {
                Ok(Some(Window { oldest, newest })) => {
                    format!("cluster {cluster} can be recovered to between {} and {}", time(*oldest), time(*newest))
                }
                Ok(None) => format!("cluster {cluster} cannot be recovered: no good base backup has its log here"),
                Err(error) => {
                    format!("from when cluster {cluster} can be recovered is not known: {}", in_one_line(error))
                }
            });
        }
        for timeline in inventory.clusters.iter().flat_map(|cluster| &cluster.timelines) {
            if let Some(lsn) = timeline.tail {
                app.output.note(format!(
                    "timeline {}: what was received of the next segment reaches {lsn}",
                    timeline.timeline
                ));
            }
        }
        if let Some(lag) = &server {
            app.output.note(lag.note());
        }
        if let Some(ready) = &ready {
            app.output.note(waiting(ready));
        }
    }
    for problem in &problems {
        app.output.warning(problem);
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn problems(inventory: &Inventory, ready: Option<&ReadyFiles>, lag_max: Duration, pruned: &Gaps) -> Vec<String> {
    let mut problems = Vec::new();
    for cluster in &inventory.clusters {
        let of = format!("of cluster {}", cluster.system_identifier);
        let is_pruned = |last: SegmentName| pruned.contains(&(cluster.system_identifier, last));
        for (first, last) in cluster.gaps().into_iter().filter(|(_, last)| !is_pruned(*last)) {
            problems.push(match first == last {
                true => format!("the segment {first} {of} is missing"),
                false => format!("the segments {first} to {last} {of} are missing"),
            });
        }
        for timeline in &cluster.timelines {
            if timeline.lacks_history() {
                problems.push(format!("the history {}.history {of} is missing", timeline.timeline.hex()));
            }
        }
    }
    if inventory.clusters.is_empty() {
        problems.push("nothing is archived".to_owned());
    }
    if let Some((file, age)) = ready.and_then(|ready| ready.oldest).filter(|(_, age)| *age > lag_max) {
        problems.push(format!("{file} has been waiting for {} s to be archived", age.as_secs()));
    }
    problems
}

fn waiting(ready: &ReadyFiles) -> String {
    match ready.oldest {
        Some((file, age)) => {
            format!("{} files wait to be archived, the oldest, {file}, for {} s", ready.count, age.as_secs())
        }
        None => "no file waits to be archived".to_owned(),
    }
}

fn table(inventory: &Inventory) -> Vec<Vec<String>> {
    let header = ["CLUSTER", "TIMELINE", "FIRST", "LAST", "FROM", "TO", "SEGMENTS", "ARCHIVED"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for cluster in &inventory.clusters {
        for timeline in &cluster.timelines {
            let newest = timeline.ranges.len().saturating_sub(1);
            for (i, range) in timeline.ranges.iter().enumerate() {
                let archived = timeline.archived.filter(|_| i == newest).map(time).unwrap_or_default();
                rows.push(vec![
                    cluster.system_identifier.to_string(),
                    timeline.timeline.to_string(),
                    range.first.to_string(),
                    range.last.to_string(),
                    range.start.to_string(),
                    range.end.to_string(),
                    format!("{} ({})", range.segments, bytes(range.end.0 - range.start.0)),
                    archived,
                ]);
            }
        }
    }
    rows
}

fn document<'a>(
    repository: &'a Repository,
    target: &'a str,
    inventory: &Inventory,
    windows: &BTreeMap<SystemIdentifier, Window>,
    ready: Option<&ReadyFiles>,
    problems: Vec<String>,
) -> Document<'a> {
    let clusters = inventory.clusters.iter().map(|cluster| ClusterDocument {
        system_identifier: cluster.system_identifier.to_string(),
        reachable: windows.get(&cluster.system_identifier).copied(),
        timelines: cluster.timelines.iter().map(|found| timeline(found, cluster)).collect(),
    });
    let ready = ready.map(|ready| ReadyDocument {
        count: ready.count,
        oldest: ready.oldest.map(|(file, _)| file.to_string()),
        oldest_age_seconds: ready.oldest.map(|(_, age)| age.as_secs()),
    });
    let ok = problems.is_empty();
    Document { repository: repository.name(), target, ok, problems, clusters: clusters.collect(), ready, server: None }
}

fn timeline(timeline: &TimelineInventory, cluster: &ClusterInventory) -> TimelineDocument {
    let ranges = timeline.ranges.iter().map(|range| RangeDocument {
        first: range.first.to_string(),
        last: range.last.to_string(),
        segments: range.segments,
        start_lsn: range.start.to_string(),
        end_lsn: range.end.to_string(),
    });
    let gap = |(first, last): (backup_core::postgres::wal::SegmentName, _)| GapDocument {
        first: first.to_string(),
        last: format!("{last}"),
    };
    TimelineDocument {
        timeline: timeline.timeline.get(),
        segment_bytes: timeline.segment_size.map(backup_core::postgres::wal::SegmentSize::bytes),
        segments: timeline.ranges.iter().map(|range| range.segments).sum(),
        stored_bytes: timeline.stored_bytes,
        start_lsn: timeline.ranges.first().map(|range| range.start.to_string()),
        end_lsn: timeline.ranges.last().map(|range| range.end.to_string()),
        archived: timeline.archived,
        tail_lsn: timeline.tail.map(|lsn| lsn.to_string()),
        history: timeline.has_history,
        ranges: ranges.collect(),
        gaps: cluster.gaps().into_iter().filter(|(first, _)| first.timeline == timeline.timeline).map(gap).collect(),
    }
}
