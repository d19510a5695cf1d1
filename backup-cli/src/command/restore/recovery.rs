//! From flags to what the restored cluster is told about its recovery.

use backup_core::Result;
use backup_core::jiff::tz::TimeZone;
use backup_core::postgres::ConnInfo;
use backup_core::postgres::choose::{Fit, Wanted};
use backup_core::postgres::recovery::{Recovery, RecoveryTarget, TargetAction, TargetTime, TargetTimeline};
use backup_core::repository::layout::TargetName;

use crate::App;
use crate::args::{ArchiveModeFlag, ClusterFlags, TargetActionFlag};

use super::fetching::{Fetching, Needs};

/// What was asked for, understood.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) target: Option<RecoveryTarget>,
    exclusive: bool,
    timeline: Option<TargetTimeline>,
    pub(super) action: TargetAction,
    pub(super) standby: bool,
    primary_conninfo: Option<ConnInfo>,
    pub(super) archive_off: bool,
    /// Whether the time was given without an offset.
    local_time: bool,
}

/// Understands the flags, before anything else happens.
pub(super) fn settings(flags: &ClusterFlags) -> Result<Settings> {
    let of = &flags.target;
    let time = of.target_time.as_deref().map(|text| TargetTime::parse(text, &TimeZone::system())).transpose()?;
    let local_time = time.is_some_and(|time| {
        let elsewhere = TargetTime::parse(of.target_time.as_deref().unwrap_or_default(), &TimeZone::UTC);
        elsewhere.is_ok_and(|utc| utc != time)
    });
    let target = time.map(RecoveryTarget::Time);
    let target = target.or_else(|| of.target_lsn.map(RecoveryTarget::Lsn));
    let target = target.or_else(|| of.target_xid.map(RecoveryTarget::Xid));
    let target = target.or_else(|| of.target_name.clone().map(RecoveryTarget::Name));
    let target = target.or_else(|| of.target.map(|_| RecoveryTarget::Immediate));
    Ok(Settings {
        target,
        exclusive: flags.target_exclusive,
        timeline: flags.target_timeline,
        action: match flags.target_action {
            Some(TargetActionFlag::Promote) => TargetAction::Promote,
            Some(TargetActionFlag::Shutdown) => TargetAction::Shutdown,
            Some(TargetActionFlag::Pause) | None => TargetAction::Pause,
        },
        standby: flags.standby,
        primary_conninfo: flags.primary_conninfo.as_deref().map(ConnInfo::parse).transpose()?,
        archive_off: flags.archive_mode == ArchiveModeFlag::Off,
        local_time,
    })
}

impl Settings {
    /// What the backup must lead to.
    pub(super) fn goal(&self) -> Wanted {
        Wanted {
            target: self.target.clone(),
            timeline: self.timeline.unwrap_or_default(),
            streams: self.primary_conninfo.is_some(),
        }
    }

    /// What to tell before anything is restored.
    pub(super) fn notes(&self) -> Vec<String> {
        match &self.target {
            Some(RecoveryTarget::Time(time)) if self.local_time => vec![format!("the target is {time}")],
            _ => Vec::new(),
        }
    }

    /// What the cluster is told, and what its `restore_command` needs beside.
    pub(super) fn recovery(&self, app: &App, target: &TargetName, fit: &Fit) -> Result<(Recovery, Needs)> {
        // Without an archive there is nothing to fetch, and the backup's own log is all of it: the cluster comes up as after a crash.
        let fetches = fit.archive || self.standby || self.target.is_some();
        let (command, needs) = match fetches {
            true => {
                let fetching = Fetching::new(&app.config, &app.sources.environment)?;
                (Some(fetching.restore_command(target, self.standby)?), fetching.needs)
            }
            false => (None, Needs::default()),
        };
        let recovery = Recovery {
            target: self.target.clone(),
            exclusive: self.exclusive,
            timeline: match (self.timeline, self.standby) {
                // A standby follows its primary to timelines that do not exist yet.
                (None | Some(TargetTimeline::Latest), true) => TargetTimeline::Latest,
                (Some(timeline), true) => timeline,
                // Settled now: that a history cannot be read then must not lead to another timeline.
                (_, false) if fit.is_own_timeline => TargetTimeline::Current,
                (_, false) => TargetTimeline::Number(fit.timeline),
            },
            action: self.action,
            standby: self.standby,
            primary_conninfo: self.primary_conninfo.clone(),
            restore_command: command,
            archive_off: self.archive_off,
            // Known when it is restored.
            server_major: None,
        };
        recovery.settings()?;
        Ok((recovery, needs))
    }
}
