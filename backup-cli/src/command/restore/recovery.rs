//! From flags to what the restored cluster is told about its recovery.

use std::path::{Path, PathBuf};

use backup_core::jiff::tz::TimeZone;
use backup_core::keys::secret::SecretSource;
use backup_core::postgres::ConnInfo;
use backup_core::postgres::choose::{Fit, Wanted};
use backup_core::postgres::recovery::{
    Recovery, RecoveryTarget, RestoreCommand, TargetAction, TargetTime, TargetTimeline,
};
use backup_core::repository::layout::TargetName;
use backup_core::{Error, Result};

use crate::App;
use crate::args::{ArchiveModeFlag, ClusterFlags, TargetActionFlag};
use crate::command::location;
use crate::config::{Origin, Setting, Stores};

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

    /// What the cluster is told, and the identity files that its `restore_command` reads.
    pub(super) fn recovery(&self, app: &App, target: &TargetName, fit: &Fit) -> Result<(Recovery, Vec<PathBuf>)> {
        // Without an archive there is nothing to fetch, and the backup's own log is all of it: the cluster comes up as after a crash.
        let fetches = fit.archive || self.standby || self.target.is_some();
        let (command, identity_files) = match fetches {
            true => restore_command(app, target, self.standby).map(|(command, files)| (Some(command), files))?,
            false => (None, Vec::new()),
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
        Ok((recovery, identity_files))
    }
}

/// This program, told all that it was told now but for secrets. What is in the configuration file stays there.
fn restore_command(app: &App, target: &TargetName, standby: bool) -> Result<(RestoreCommand, Vec<PathBuf>)> {
    let config = &app.config;
    let mut arguments = Vec::new();
    let mut identity_files = Vec::new();
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
    if let Some(file) = &config.file {
        add("--config", absolute(file)?.1);
    }
    for repository in elsewhere(&config.repositories.chosen).map_or(&[][..], |_| &config.repositories.all) {
        let directory = location(config, repository)?.as_directory().map(Path::to_owned);
        let address = match (&repository.name, directory) {
            (Some(name), _) => name.clone(),
            (None, Some(path)) => absolute(&path)?.1,
            (None, None) => repository.url.value.clone(),
        };
        add("--repo", address);
    }
    for path in elsewhere(&config.identity_files).into_iter().flatten() {
        // The default file need not exist, with a passphrase for example.
        if path.exists() {
            let (path, text) = absolute(path)?;
            add("--identity-file", text);
            identity_files.push(path);
        }
    }
    for identity in elsewhere(&config.identities).into_iter().flatten() {
        add("--identity", identity.clone());
    }
    match elsewhere(&config.passphrase) {
        Some(SecretSource::File(path)) => add("--passphrase-file", absolute(path)?.1),
        Some(SecretSource::Command(_)) => {
            return Err(Error::config(
                "the restored server needs the passphrase too, and a command for it may hold secrets",
            )
            .with_hint("name it in the configuration file (passphrase_command), or use --passphrase-file"));
        }
        None => {}
    }
    for signer in elsewhere(&config.trusted_signers).into_iter().flatten() {
        add("--trusted-signer", signer.clone());
    }
    let (Stores { s3, azure, gcs }, http) = (&config.stores, &config.http);
    for (flag, setting) in [
        ("--s3-endpoint", &s3.endpoint),
        ("--s3-region", &s3.region),
        ("--azure-account", &azure.account),
        ("--azure-endpoint", &azure.endpoint),
        ("--gcs-endpoint", &gcs.endpoint),
        ("--ssl-min-protocol-version", &http.ssl_min_protocol_version),
        ("--proxy", &http.proxy),
    ] {
        if let Some(value) = elsewhere(setting) {
            add(flag, value.clone());
        }
    }
    if let Some(file) = elsewhere(&http.ca_file) {
        add("--ca-file", absolute(file)?.1);
    }
    if let Some(style) = elsewhere(&s3.path_style) {
        arguments.push(format!("--s3-path-style={style}"));
    }
    arguments.extend(["wal", "fetch", "--target", target.as_str()].map(str::to_owned));
    if standby {
        arguments.push("--standby".to_owned());
    }
    let program =
        std::env::current_exe().map_err(|e| Error::config("cannot find out where this program is").with_source(e))?;
    Ok((RestoreCommand::new(&program, arguments)?, identity_files))
}

/// A value that does not come from the configuration file, which the command names too.
fn elsewhere<T>(setting: &Option<Setting<T>>) -> Option<&T> {
    setting.as_ref().filter(|s| !matches!(s.origin, Origin::File { .. })).map(|s| &s.value)
}

fn absolute(path: &Path) -> Result<(PathBuf, String)> {
    let invalid = || Error::config(format!("{} cannot stand in restore_command", path.display()));
    let path = std::path::absolute(path).map_err(|e| invalid().with_source(e))?;
    let text = path.to_str().ok_or_else(invalid)?.to_owned();
    Ok((path, text))
}
