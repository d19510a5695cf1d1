//! What was restored, and what PostgreSQL will do with it.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use backup_core::postgres::recovery::{RecoveryTarget, TargetAction};
use backup_core::restore::{ClusterRestored, Owner};
use nix::unistd::{Uid, User};

use crate::App;
use crate::command::describe::time;
use crate::output::bytes;
use crate::progress::rate;

use super::cluster::Plan;

/// Tells it on standard error.
pub(super) fn tell(app: &App, plan: &Plan, restored: &ClusterRestored, elapsed: Duration) {
    let cluster = &restored.cluster;
    let note = |text: String| app.output.note(text);
    note(format!(
        "restored {} of {} to {}: {} in {:.1} s ({})",
        plan.id,
        plan.target,
        restored.directory.display(),
        bytes(restored.bytes),
        elapsed.as_secs_f64(),
        rate(restored.bytes, elapsed),
    ));
    note(format!(
        "  PostgreSQL {}, cluster {}, timeline {}, backed up until {} (LSN {}); {} files are as its manifest says",
        version(cluster.server_version_num),
        cluster.system_identifier,
        cluster.timeline,
        time(cluster.stopped),
        cluster.stop_lsn,
        restored.files,
    ));
    for (oid, path) in &restored.tablespaces {
        note(format!("  tablespace {oid} is at {}", path.display()));
    }
    note(format!("  when it is started, PostgreSQL {}", at_start(plan)));
    if !plan.settings.archive_off && !plan.settings.standby {
        note("  archive_mode is as it was: a test restore that must not archive needs --archive-mode off".to_owned());
    }
    if plan.damaged {
        app.output.warning("the source of this backup was damaged: see 'backup show'");
    }
    if let Some(owner) = restored.owner {
        tell_owner(app, plan, owner);
    }
}

/// `15.18`.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn at_start(plan: &Plan) -> String {
    let settings = &plan.settings;
    let timeline = plan.fit.timeline;
    if settings.standby {
        return "is a standby that follows the archive".to_owned();
    }
    let target = match &settings.target {
        None if plan.fit.archive => {
            return format!(
                "recovers to the end of the archive ({} now) along timeline {timeline}, and opens",
                plan.fit.reach
            );
        }
        None => return "recovers to the end of the backup, and opens".to_owned(),
        Some(RecoveryTarget::Time(time)) => time.to_string(),
        Some(RecoveryTarget::Lsn(lsn)) => format!("LSN {lsn}"),
        Some(RecoveryTarget::Xid(xid)) => format!("transaction {xid}"),
        Some(RecoveryTarget::Name(name)) => format!("'{}'", name.as_str()),
        Some(_) => "the end of the backup".to_owned(),
    };
    let then = match settings.action {
        TargetAction::Pause => "waits there: SELECT pg_wal_replay_resume() opens it for writing",
        TargetAction::Promote => "opens",
        TargetAction::Shutdown => "shuts down",
    };
    format!("recovers to {target} along timeline {timeline}, and {then}")
}

/// Who owns the files, and whether that user can do what the server will do.
fn tell_owner(app: &App, plan: &Plan, owner: Owner) {
    match User::from_uid(Uid::from_raw(owner.uid)).ok().flatten() {
        Some(user) => app.output.note(format!("  the files belong to {}", user.name)),
        None => app.output.warning(format!(
            "the files belong to user {}, which this host does not know: --owner USER gives them to another",
            owner.uid
        )),
    }
    if !plan.needs.variables.is_empty() {
        let names = plan.needs.variables.join(", ");
        app.output.note(format!("  the server needs these variables, which restore_command is not told: {names}"));
    }
    for path in &plan.needs.identity_files {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.uid() != owner.uid && owner.uid != 0) {
            let path = path.display();
            app.output.warning(format!("the server's restore_command reads {path}, which belongs to another user"));
        }
    }
}
