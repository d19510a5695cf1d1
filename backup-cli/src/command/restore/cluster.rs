//! `backup restore --to DIR` of a base backup: a whole cluster.

use std::time::Instant;

use backup_core::format::{Condition, Kind};
use backup_core::pipeline::Warnings;
use backup_core::postgres::choose::{self, Archives, Candidate, Fit};
use backup_core::repository::layout::{BackupId, TargetName};
use backup_core::repository::{Found, Listed, Repository, is_untrusted};
use backup_core::restore::{ClusterRestore, OpenBackup, Owner, archives};
use backup_core::{Error, Result};
use futures::TryStreamExt;
use nix::unistd::{Gid, Group, Uid, User};

use crate::args::RestoreArgs;
use crate::audit::Run;
use crate::command::{check_age, limits, or_cancelled, to_read};
use crate::exit::Exit;
use crate::progress::{self, Shown};
use crate::{App, keys, report};

use super::fetching::Needs;
use super::recovery::{Settings, settings};
use super::summary;

/// A base backup that is asked for, before it is clear which.
pub(super) struct WantedCluster {
    repository: Repository,
    found: Found,
    settings: Settings,
}

/// The base backup that `args` are about; `None` when they are about something else.
pub(super) async fn wanted(app: &App, args: &RestoreArgs, run: &mut Run) -> Result<Option<WantedCluster>> {
    if args.destination.to.is_none() || args.stream.is_some() {
        return match args.cluster.any() {
            true => Err(Error::config("a base backup is restored --to DIR, with all of its streams")
                .with_hint("the flags about recovery, owners and tablespaces are for that alone")),
            false => Ok(None),
        };
    }
    let settings = settings(&args.cluster)?;
    let repository = to_read(app).await?;
    run.at(&repository);
    let found = repository.resolve(&args.reference).await?;
    check_age(app, &found, &args.age)?;
    let is_named = !names_a_target(&args.reference, &found);
    match (found.manifest.kind == Kind::BaseBackup, args.cluster.any()) {
        (false, false) => Ok(None),
        (false, true) if is_named => {
            let message = format!("backup {} is no base backup, and only such can be recovered", found.path.id);
            Err(Error::config(message))
        }
        // The latest may be a dump; base backups of the same target are asked for.
        _ => Ok(Some(WantedCluster { repository, found, settings })),
    }
}

/// Whether `reference` leaves the choice among a target's backups to us.
fn names_a_target(reference: &str, found: &Found) -> bool {
    reference == "latest" || reference.contains('@') || reference == found.path.target.as_str()
}

pub(super) async fn run(
    app: &App,
    args: &RestoreArgs,
    wanted: WantedCluster,
    begun: Instant,
    run: &mut Run,
) -> Result<Exit> {
    let warnings = Warnings::default();
    run.about(&wanted.found.manifest);
    let prepared = or_cancelled(app, prepare(app, args, &wanted, &warnings, run)).await;
    if prepared.is_err() {
        // What was passed over may be why nothing fits.
        warnings.texts().iter().for_each(|text| app.output.warning(text));
    }
    let (restore, plan) = prepared?;
    for line in &plan.notes {
        app.output.note(line);
    }
    run.begin(app).await;
    let handle = restore.cancel_on(&app.cancel).start()?;
    let counters = handle.counters();
    let total = Some(plan.bytes_total);
    let restored =
        progress::during(&app.output, total, || Shown::restoring(&counters.snapshot()), handle.wait()).await?;
    run.record.bytes = Some(plan.bytes_total);
    for text in warnings.texts() {
        app.output.warning(text);
    }
    summary::tell(app, &plan, &restored, begun.elapsed());
    Ok(if warnings.count() > 0 || plan.damaged { Exit::Warnings } else { Exit::Done })
}

/// What was decided.
pub(super) struct Plan {
    pub(super) id: BackupId,
    pub(super) target: TargetName,
    pub(super) damaged: bool,
    pub(super) bytes_total: u64,
    pub(super) fit: Fit,
    pub(super) settings: Settings,
    pub(super) notes: Vec<String>,
    /// What the restored server will need.
    pub(super) needs: Needs,
}

async fn prepare(
    app: &App,
    args: &RestoreArgs,
    wanted: &WantedCluster,
    warnings: &Warnings,
    run: &mut Run,
) -> Result<(ClusterRestore, Plan)> {
    let WantedCluster { repository, found, settings } = wanted;
    let identities = keys::identities_at_hand(&app.config).await?;
    let target = &found.path.target;
    let candidates = candidates(repository, found, &args.reference, warnings).await?;
    let archives: Archives = archives(repository, target, &identities, candidates.iter().map(|c| &c.cluster)).await?;
    let goal = settings.goal();
    let (chosen, fit) = if names_a_target(&args.reference, found) {
        choose::choose(&candidates, &archives, &goal)?
    } else {
        let named = candidates.iter().find(|c| c.id == found.path.id.as_str());
        let named =
            named.ok_or_else(|| Error::integrity(format!("{} does not say of which cluster it is", found.path)))?;
        (named, choose::check(named, &candidates, &archives, &goal)?)
    };
    let id: BackupId = chosen.id.parse()?;
    let backup = OpenBackup::open(repository, &target.backup(&id), &identities).await?;
    run.about(backup.manifest());
    if backup.manifest().cluster.as_ref() != Some(&chosen.cluster) {
        // What the choice was based on had not been proved.
        return Err(Error::integrity(format!("the manifest of {} changed while it was read", backup.path())));
    }
    let (recovery, needs) = settings.recovery(app, target, &fit)?;
    let mut restore = backup
        .restore_cluster(args.destination.to.clone().unwrap_or_default())
        .limits(limits(&app.config, repository.part_bytes())?)
        .tablespace_mappings(args.cluster.tablespace_mapping.iter().cloned())
        .recovery(recovery)
        .warnings(warnings.clone());
    if let Some(owner) = &args.cluster.owner {
        restore = restore.owner(parse_owner(owner)?);
    }
    let damaged = backup.manifest().condition == Condition::Damaged;
    let plan = Plan {
        id,
        target: target.clone(),
        damaged,
        bytes_total: restore.bytes(),
        fit,
        settings: settings.clone(),
        notes: settings.notes(),
        needs,
    };
    Ok((restore, plan))
}

/// The base backups that `reference` lets us choose from; for a backup that was named, those that could be named instead. What is not trusted is
/// passed over, and told in `warnings`.
async fn candidates(
    repository: &Repository,
    found: &Found,
    reference: &str,
    warnings: &Warnings,
) -> Result<Vec<Candidate>> {
    let until = reference.contains('@').then_some(&found.path.id);
    let mut candidates = Vec::new();
    let mut listing = repository.list(Some(&found.path.target));
    while let Some(listed) = listing.try_next().await? {
        match listed {
            Listed::Backup(backup) if backup.manifest.kind == Kind::BaseBackup => {
                let good = backup.manifest.condition == Condition::Good;
                if let Some(cluster) = backup.manifest.cluster
                    && until.is_none_or(|until| backup.path.id.timestamp() <= until.timestamp())
                {
                    candidates.push(Candidate { id: backup.path.id.to_string(), good, cluster });
                }
            }
            Listed::Unreadable(_, error) if is_untrusted(&error) => warnings.push(report::in_one_line(&error)),
            // It might be the one that fits: never pass it over for another.
            Listed::Unreadable(_, error) => return Err(error),
            _ => {}
        }
    }
    Ok(candidates)
}

/// `USER[:GROUP]`, by names or numbers.
fn parse_owner(text: &str) -> Result<Owner> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let unknown =
        |what: &str, name: &str| Error::config(format!("--owner: there is no {what} '{}'", name.escape_debug()));
    let known = match user.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    let known = known.ok().flatten();
    let uid =
        known.as_ref().map(|u| u.uid.as_raw()).or_else(|| user.parse().ok()).ok_or_else(|| unknown("user", user))?;
    let gid = match group {
        Some(group) => {
            let by_name = || Group::from_name(group).ok().flatten().map(|g| g.gid.as_raw());
            group.parse().ok().or_else(by_name).ok_or_else(|| unknown("group", group))?
        }
        // A number without a user has no group but the one of the same number.
        None => known.map_or(Gid::from_raw(uid), |u| u.gid).as_raw(),
    };
    Ok(Owner { uid, gid })
}
