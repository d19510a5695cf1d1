//! `postgresql.auto.conf`: `name = 'value'`, a line for each, as `ALTER SYSTEM` writes it.

use crate::error::{Error, Result};

/// Settings of recovery. What an earlier restore, or the standby that was backed up, left of them would contradict ours: PostgreSQL
/// refuses two targets, and a slot is for one standby.
const REPLACED: [&str; 14] = [
    "restore_command",
    "recovery_end_command",
    "recovery_prefetch",
    "archive_cleanup_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "primary_conninfo",
    "primary_slot_name",
];

/// The file with `settings` in the place of all it said of recovery, and of what they set anew.
pub(super) fn rewrite(old: &[u8], settings: &[(&'static str, String)]) -> Result<Vec<u8>> {
    let replaced = |line: &[u8]| {
        let name = name_of(line);
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        REPLACED.iter().any(|other| is(other)) || settings.iter().any(|(other, _)| is(other))
    };
    let mut new = Vec::with_capacity(old.len() + 512);
    for line in old.split_inclusive(|byte| *byte == b'\n').filter(|line| !replaced(line)) {
        new.extend_from_slice(line);
    }
    if settings.is_empty() {
        return Ok(new);
    }
    if !new.is_empty() && !new.ends_with(b"\n") {
        new.push(b'\n');
    }
    for (name, value) in settings {
        new.extend_from_slice(format!("{name} = {}\n", quoted(name, value)?).as_bytes());
    }
    Ok(new)
}

/// The name that a line sets; empty for a comment.
fn name_of(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_start();
    let len = line.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$')).count();
    &line[..len]
}

/// A value in quotes. PostgreSQL's `guc-file.l` takes two quotes for one, and backslashes as C does.
fn quoted(name: &str, value: &str) -> Result<String> {
    if value.contains(char::is_control) {
        return Err(Error::config(format!("the value of {name} has control characters")));
    }
    Ok(format!("'{}'", value.replace('\\', r"\\").replace('\'', "''")))
}
