//! `save NAME -- COMMAND`: a command that fails makes no backup.

use std::time::Duration;

use backup_tests::host::Host;

use crate::BACKUP;

/// Nothing was listed, and nothing was left behind.
fn no_backup(host: &Host) {
    assert_eq!(host.listed(), [] as [&str; 0]);
    assert_eq!(host.stored(), [] as [&str; 0]);
}

#[test]
fn the_output_of_a_command_comes_back() {
    let host = Host::initialised(BACKUP);
    let saved = host.backup(["save", "cmd", "--", "sh", "-c", "echo to stderr >&2; printf 'to\nstdout'"]).run();
    let id = saved.saying("to stderr\n").id();
    assert_eq!(host.backup(["restore", &id, "--to-stdout"]).run().succeeded().stdout(), b"to\nstdout");
}

#[test]
fn a_command_that_exits_with_a_status_makes_no_backup_and_its_words_are_seen() {
    let host = Host::initialised(BACKUP);
    for script in
        ["echo x; echo why it failed >&2; exit 3", "echo why it failed >&2; head -c 5000000 /dev/zero; exit 3"]
    {
        let outcome = host.backup(["save", "cmd", "--", "sh", "-c", script]).run();
        let outcome = outcome.failed(1).saying("why it failed\n").saying("error: sh exited with status 3");
        assert_eq!(outcome.stdout(), b"", "no id of a backup that is none");
        no_backup(&host);
    }
}

#[test]
fn a_command_that_is_killed_makes_no_backup() {
    let host = Host::initialised(BACKUP);
    for script in ["kill -9 $$", "head -c 5000000 /dev/zero; kill -9 $$"] {
        let outcome = host.backup(["save", "cmd", "--", "sh", "-c", script]).run();
        outcome.failed(1).saying("error: sh was killed by signal 9 (SIGKILL)");
        no_backup(&host);
    }
}

#[test]
fn a_command_that_closes_its_output_and_then_fails_makes_no_backup() {
    let host = Host::initialised(BACKUP);
    let outcome = host.backup(["save", "cmd", "--", "sh", "-c", "echo all; exec >&-; sleep 0.3; exit 4"]).run();
    outcome.failed(1).saying("sh exited with status 4");
    no_backup(&host);
}

#[test]
fn a_command_that_does_not_exist_is_told_with_a_hint() {
    let host = Host::initialised(BACKUP);
    host.backup(["save", "cmd", "--", "no-such-program"]).run().failed(2).hinting("PATH");
    no_backup(&host);
}

#[test]
fn a_command_is_ended_when_the_backup_fails() {
    let mut host = Host::initialised(BACKUP);
    let pid = host.path("pid");
    host.set("PID_FILE", &pid);
    // What it writes cannot be stored: its target's folder is a file.
    host.write("repository/cmd", "in the way");
    let script = "echo $$ > $PID_FILE; exec cat /dev/zero";
    host.backup(["save", "cmd", "--", "sh", "-c", script]).within(Duration::from_secs(30)).run().failed(11);
    // It may have been ended before it had written its number.
    let Some(pid) = std::fs::read_to_string(pid).ok().filter(|pid| !pid.trim().is_empty()) else { return };
    // Its parent has ended; whoever adopts it may take a while to reap it.
    let ended = || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        status.map_or(true, |status| status.contains(") Z "))
    };
    assert!(
        (0..100).any(|_| ended() || {
            std::thread::sleep(Duration::from_millis(20));
            false
        }),
        "the command goes on"
    );
}
