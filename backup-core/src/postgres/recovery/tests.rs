use std::path::Path;

use proptest::prelude::*;

use super::*;

/// What PostgreSQL's `GUC_scanstr` makes of a quoted value.
fn unquoted(text: &str) -> String {
    let inner = text.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
    let (mut value, mut chars) = (String::new(), inner.chars());
    while let Some(c) = chars.next() {
        match c {
            '\'' => assert_eq!(chars.next(), Some('\'')),
            '\\' => assert_eq!(chars.next(), Some('\\')),
            _ => {}
        }
        value.push(c);
    }
    value
}

/// The value of a setting in a file, as PostgreSQL reads it.
fn value_in(conf: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(conf).unwrap();
    let line = text.lines().rev().find_map(|line| line.strip_prefix(&format!("{name} = ")))?;
    Some(unquoted(line))
}

/// The words that `sh` makes of `restore_command`, with `%f` and `%p` replaced as PostgreSQL does (`BuildRestoreCommand`).
fn words_of(command: &str) -> Vec<String> {
    let (mut line, mut chars) = (String::new(), command.chars());
    while let Some(c) = chars.next() {
        match c {
            '%' => match chars.next() {
                Some('f') => line.push_str("00000001000000000000000A"),
                Some('p') => line.push_str("pg_wal/RECOVERYXLOG"),
                Some('%') => line.push('%'),
                other => panic!("%{other:?}"),
            },
            c => line.push(c),
        }
    }
    let script = format!("set -- {line}; for word; do printf '%s\\n' \"$word\"; done");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn with_command(program: &str, arguments: &[&str]) -> Recovery {
    let arguments = arguments.iter().map(|&a| a.to_owned()).collect();
    let command = RestoreCommand::new(Path::new(program), arguments).unwrap();
    Recovery { restore_command: Some(command), ..Recovery::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_path_reaches_the_program_through_configuration_and_shell(
        program in "/[^\\p{Cc}]{1,20}", arguments in prop::collection::vec("[^\\p{Cc}]{0,12}", 0..4),
    ) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let conf = with_command(&program, &arguments).write_into(b"").unwrap();
        let words = words_of(&value_in(&conf, "restore_command").unwrap());
        let expected: Vec<&str> = std::iter::once(program.as_str())
            .chain(arguments)
            .chain(["00000001000000000000000A", "pg_wal/RECOVERYXLOG"])
            .collect();
        prop_assert_eq!(words, expected);
    }

    #[test]
    fn any_name_of_a_restore_point_is_read_back(name in "[^\\p{Cc}]{1,15}") {
        let target = Some(RecoveryTarget::Name(name.parse().unwrap()));
        let conf = Recovery { target, ..with_command("/backup", &[]) }.write_into(b"").unwrap();
        prop_assert_eq!(value_in(&conf, "recovery_target_name").unwrap(), name);
    }

    #[test]
    fn times_are_read_as_written(seconds in 0i64..4_000_000_000, micros in 0i32..1_000_000, minutes in -720i32..=840) {
        let moment = Timestamp::new(seconds, micros * 1000).unwrap();
        let time = TargetTime { moment, offset: Offset::from_seconds(minutes * 60).unwrap() };
        let read = TargetTime::parse(&time.to_string(), &TimeZone::UTC).unwrap();
        prop_assert_eq!(read, time);
    }
}

#[test]
fn a_restore_point_with_newline_or_64_bytes_is_refused() {
    for name in ["", "a\nb", "a\0", &"x".repeat(64)] {
        name.parse::<RestorePoint>().unwrap_err();
    }
    "x".repeat(63).parse::<RestorePoint>().unwrap();
}

#[test]
fn a_time_without_offset_is_one_of_the_zone_and_gets_its_offset() {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    let shown = |text: &str| TargetTime::parse(text, &zone).unwrap().to_string();
    for (text, expected) in [
        ("2026-11-22 14:30:00", "2026-11-22 14:30:00+01:00"),
        ("2026-07-22T14:30", "2026-07-22 14:30:00+02:00"),
        ("2026-11-22 14:30:00Z", "2026-11-22 14:30:00+00:00"),
        ("2026-11-22 14:30:00+00", "2026-11-22 14:30:00+00:00"),
        ("2026-11-22 14:30:00-0330", "2026-11-22 14:30:00-03:30"),
        ("2026-11-22 14:30:00.123456789-08", "2026-11-22 14:30:00.123456-08:00"),
        ("2026-11-22", "2026-11-22 00:00:00+01:00"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
    // Clocks go back at three, and forth at two.
    for text in ["2026-10-25 02:30:00", "2026-03-29 02:30:00"] {
        let error = TargetTime::parse(text, &zone).unwrap_err();
        assert!(error.hint().unwrap().contains("offset"), "{error}");
    }
    for text in ["", "yesterday", "14:30", "2026-13-01 00:00:00", "1732285800"] {
        TargetTime::parse(text, &zone).unwrap_err();
    }
}

#[test]
fn an_earlier_recovery_leaves_nothing_behind() {
    let old = b"# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n\
        work_mem = '7MB'\nrecovery_target_time = '2026-01-01 00:00:00+00'\n  RECOVERY_TARGET_ACTION='promote'\nrestore_command = 'cp x'\n\
        primary_conninfo = 'host=a password=b'\nprimary_slot_name 'c'\narchive_mode = 'on'\nrecovery_targetish.x = 'kept'\nno_line_end = '1'";
    let recovery = Recovery {
        target: Some(RecoveryTarget::Lsn("0/3000060".parse().unwrap())),
        exclusive: true,
        archive_off: true,
        ..with_command("/usr/bin/backup", &["wal", "fetch"])
    };
    let new = String::from_utf8(recovery.write_into(old).unwrap()).unwrap();
    assert_eq!(
        new,
        "# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n\
         work_mem = '7MB'\nrecovery_targetish.x = 'kept'\nno_line_end = '1'\n\
         restore_command = '/usr/bin/backup wal fetch %f %p'\nrecovery_target_timeline = 'latest'\n\
         recovery_target_lsn = '0/3000060'\nrecovery_target_inclusive = 'off'\nrecovery_target_action = 'pause'\narchive_mode = 'off'\n"
    );
    let again = recovery.write_into(new.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(again).unwrap(), new, "writing it twice changes nothing");
    let plain = Recovery::default().write_into(old).unwrap();
    assert_eq!(
        plain,
        b"# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n\
        work_mem = '7MB'\narchive_mode = 'on'\nrecovery_targetish.x = 'kept'\nno_line_end = '1'"
    );
}

#[test]
fn a_server_that_stops_at_the_end_of_its_backup_does_not_look_behind_it() {
    let looks = |target: RecoveryTarget, server_major: Option<u32>| {
        let recovery = Recovery { target: Some(target), server_major, ..with_command("/backup", &[]) };
        !recovery.settings().unwrap().contains(&("recovery_prefetch", "off".to_owned()))
    };
    assert!(!looks(RecoveryTarget::Immediate, Some(15)) && !looks(RecoveryTarget::Immediate, Some(18)));
    // Earlier ones do not know the setting, and would not start.
    assert!(looks(RecoveryTarget::Immediate, Some(14)) && looks(RecoveryTarget::Immediate, None));
    assert!(looks(RecoveryTarget::Xid(7), Some(15)));
    let left = Recovery::default().write_into(b"recovery_prefetch = 'off'\nwork_mem = '1MB'\n").unwrap();
    assert_eq!(left, b"work_mem = '1MB'\n");
}

#[test]
fn the_signal_file_follows_from_what_is_asked() {
    let fetching = with_command("/backup", &[]);
    assert_eq!(Recovery::default().signal(), None);
    assert_eq!(fetching.signal(), Some("recovery.signal"));
    assert_eq!(Recovery { standby: true, ..fetching }.signal(), Some("standby.signal"));
}

#[test]
fn what_contradicts_itself_is_refused() {
    let target = Some(RecoveryTarget::Immediate);
    let fetching = with_command("/backup", &[]);
    let conninfo = |text: &str| Some(ConnInfo::parse(text).unwrap());
    let standby = Recovery { standby: true, ..fetching.clone() };
    for (recovery, why) in [
        (Recovery { target: target.clone(), exclusive: true, ..fetching.clone() }, "exclusive"),
        (Recovery { exclusive: true, ..fetching.clone() }, "exclusive"),
        (Recovery { target, ..Recovery::default() }, "archive"),
        (Recovery { primary_conninfo: conninfo("host=a"), ..fetching }, "only a standby"),
        (Recovery { primary_conninfo: conninfo("host=a password=b"), ..standby.clone() }, "password"),
        (Recovery { primary_conninfo: conninfo("postgresql://u:b@a/"), ..standby }, "password"),
    ] {
        let error = recovery.settings().unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_connection_string_is_written_without_surprise() {
    let standby = Recovery {
        standby: true,
        primary_conninfo: Some(ConnInfo::parse(r"host=/var/run user='it\'s \\' application_name=b").unwrap()),
        ..with_command("/backup", &[])
    };
    let conf = standby.write_into(b"").unwrap();
    let read = ConnInfo::parse(&value_in(&conf, "primary_conninfo").unwrap()).unwrap();
    assert_eq!((read.get("user"), read.get("host")), (Some("it's \\"), Some("/var/run")));
}
