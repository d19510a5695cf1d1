//! Disks that are full, read-only or not ours.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use backup_tests::data::Data;
use backup_tests::host::{Host, Outcome, Run};

use crate::BACKUP;

/// Runs a script in which `small` is a file system of 8 MiB, the repository is there, and nobody else sees it.
pub(crate) fn on_a_small_disk(host: &Host, script: &str) -> Run {
    let flags = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let mount = "mkdir small && mount -t tmpfs -o size=8m tmpfs small || \
                 { echo 'cannot mount: run as root, or allow unprivileged user namespaces' >&2; exit 99; }";
    let script = format!("{mount}; export BACKUP_REPO=$PWD/small/repository; \"$BACKUP\" init -q || exit; {script}");
    host.command("unshare").args([flags, "sh", "-c", &script]).env("BACKUP", host.program())
}

pub(crate) fn mounted(outcome: Outcome) -> Outcome {
    assert_ne!(outcome.code(), Some(99), "{outcome}");
    outcome
}

#[test]
fn a_full_disk_is_told_with_a_hint_and_leaves_nothing() {
    let host = Host::new(BACKUP);
    let script = "\"$BACKUP\" save app; code=$?; find small -type f -not -path '*/runs/*'; \"$BACKUP\" list; \
                  echo fits | \"$BACKUP\" save app >/dev/null && \"$BACKUP\" restore app --to-stdout; exit $code";
    let outcome = on_a_small_disk(&host, script).stdin(Data::random(20_000_000, "full")).run();
    let outcome = mounted(outcome).failed(11).saying("no space is left").hinting("free some space");
    assert_eq!(outcome.text().lines().collect::<Vec<_>>(), ["small/repository/repository.json", "fits"]);
}

#[test]
fn a_disk_that_is_full_at_any_object_leaves_nothing_visible() {
    let host = Host::new(BACKUP);
    // A file takes all but some pages: for the heartbeat, for the data, for the details, for the manifest.
    let script = "for pages in 0 1 2 3 4 5 6 7 8; do \
                      head -c 100m /dev/zero > small/hog 2>/dev/null; truncate -s -$((pages * 4096)) small/hog; \
                      echo data | \"$BACKUP\" save app > id; code=$?; \
                      case $code in 0) \"$BACKUP\" verify $(cat id) --deep;; 11) ;; *) exit 98;; esac; \
                      [ $code = 0 ] || [ $(find small -type f -not -path '*/runs/*' | wc -l) = 2 ] || { find small -type f -not -path '*/runs/*'; exit 97; }; \
                      rm -rf small/hog small/repository/app small/repository/runs; echo $pages: $code; \
                  done >&2";
    let outcome = mounted(on_a_small_disk(&host, script).run()).succeeded();
    assert!(outcome.stderr.contains("0: 11\n") && outcome.stderr.contains("8: 0\n"), "{outcome}");
}

#[test]
fn a_read_only_repository_is_told_and_can_be_read() {
    let host = Host::new(BACKUP);
    let script = "echo data | \"$BACKUP\" save app -q >/dev/null; mount -o remount,ro small; \
                  \"$BACKUP\" restore app --to-stdout; \"$BACKUP\" verify app --deep >/dev/null; \"$BACKUP\" save app -- echo more";
    let outcome = mounted(on_a_small_disk(&host, script).run()).failed(11).saying("read-only");
    assert_eq!(outcome.stdout(), b"data\n");
}

#[test]
fn a_full_disk_under_a_restore_leaves_no_half_file() {
    let host = Host::new(BACKUP);
    let script = "export BACKUP_REPO=$PWD/repository; \"$BACKUP\" init -q; \"$BACKUP\" save app -q >/dev/null; \
                  for to in small/file small/deep/er; do \"$BACKUP\" restore app --to $to; echo $?; done; find small -type f";
    let outcome = on_a_small_disk(&host, script).stdin(Data::random(20_000_000, "restore")).run();
    let outcome = mounted(outcome).saying("No space left on device");
    assert_eq!(outcome.text(), "1\n1\nsmall/repository/repository.json\n");
}

#[test]
fn a_limit_on_the_size_of_files_is_told_with_a_hint_and_leaves_nothing() {
    let host = Host::initialised(BACKUP);
    // In blocks of 512 bytes. Without the trap, the kernel would kill the program.
    let script = "trap '' XFSZ; ulimit -f 4000; exec \"$BACKUP\" save app";
    let outcome = host.shell(script).stdin(Data::random(20_000_000, "limit")).run();
    outcome.failed(11).saying("may not become so large").hinting("ulimit");
    assert_eq!(host.stored(), [] as [&str; 0]);
}

#[test]
fn a_repository_of_somebody_else_is_told_with_a_hint() {
    let host = Host::initialised(BACKUP);
    host.save("app", "data");
    let before = host.stored();
    let set = |mode| {
        for directory in ["repository", "repository/app", "repository/app/backups"] {
            std::fs::set_permissions(host.path(directory), Permissions::from_mode(mode)).unwrap();
        }
    };
    // Root may write anywhere, unless it gives that up.
    let ordinary = "if [ $(id -u) = 0 ]; then set -- setpriv --bounding-set=-dac_override,-dac_read_search \"$@\"; fi; exec \"$@\"";
    let run = |arguments: &str| host.shell(&format!("set -- \"$BACKUP\" {arguments}; {ordinary}")).run();
    set(0o500);
    run("restore app --to-stdout").succeeded();
    run("save app -- echo more").failed(2).saying("permission denied").hinting("user who owns");
    set(0o000);
    run("list").failed(2).saying("permission denied").hinting("user who owns");
    set(0o700);
    assert_eq!(host.stored(), before);
}

#[test]
fn a_repository_that_vanishes_while_it_is_written_to_is_an_error() {
    let host = Host::initialised(BACKUP);
    let script = "head -c 3000000 /dev/urandom; rm -rf repository; head -c 30000000 /dev/urandom";
    host.backup(["save", "app", "--", "sh", "-c", script]).run().failed(11);
    host.backup(["list"]).run().failed(10);
}
