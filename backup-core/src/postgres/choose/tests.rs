use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::postgres::recovery::TargetTime;
use crate::postgres::wal::SegmentSize;

const MIB: u64 = 1 << 20;
const SEGMENT: u64 = 16 * MIB;

fn timeline(number: u32) -> Timeline {
    Timeline::new(number).unwrap()
}

/// Second `s` of the day.
fn at(s: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + s).unwrap()
}

/// Starts and stops in segment `n`, at second 100 × `n`.
fn backup(id: &str, on: u32, n: u64) -> Candidate {
    Candidate {
        id: id.into(),
        good: true,
        cluster: ClusterEntry {
            system_identifier: SystemIdentifier(7),
            server_version_num: 150_018,
            wal_segment_bytes: SegmentSize::DEFAULT,
            timeline: timeline(on),
            start_lsn: Lsn(n * SEGMENT + 40),
            stop_lsn: Lsn(n * SEGMENT + 400),
            stopped: at(100 * i64::try_from(n).unwrap()),
            wal_included: true,
        },
    }
}

/// Archives segment `n` of a timeline at second 100 × `n` + 50.
fn archive(inventory: &mut Inventory, on: u32, segments: std::ops::Range<u64>) {
    for n in segments {
        let name = SegmentSize::DEFAULT.segment_at(timeline(on), Lsn(n * SEGMENT));
        inventory.add_segment(name, SegmentSize::DEFAULT, at(100 * i64::try_from(n).unwrap() + 50));
    }
}

fn archives(inventory: Inventory) -> Archives {
    [(SystemIdentifier(7), inventory)].into()
}

fn time(s: i64) -> Option<RecoveryTarget> {
    Some(RecoveryTarget::Time(TargetTime::parse(&at(s).to_string(), &TimeZone::UTC).unwrap()))
}

fn lsn(lsn: u64) -> Option<RecoveryTarget> {
    Some(RecoveryTarget::Lsn(Lsn(lsn)))
}

fn to(target: Option<RecoveryTarget>) -> Wanted {
    Wanted { target, ..Wanted::default() }
}

/// The id that is chosen, or the kind of the refusal with its words.
fn chosen(candidates: &[Candidate], archives: &Archives, wanted: &Wanted) -> Result<String, String> {
    choose(candidates, archives, wanted).map(|(c, _)| c.id.clone()).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::NotFound);
        format!("{e} | {}", e.hint().unwrap_or_default())
    })
}

/// Backups in segments 2 and 6, all segments up to 9.
fn world() -> (Vec<Candidate>, Inventory) {
    let mut inventory = Inventory::default();
    archive(&mut inventory, 1, 1..10);
    (vec![backup("two", 1, 2), backup("six", 1, 6)], inventory)
}

#[test]
fn the_newest_backup_that_ends_before_the_target_is_chosen() {
    let (backups, inventory) = world();
    let archives = archives(inventory);
    for (target, expected) in [
        (time(599), "two"),
        (time(600), "six"),
        (time(950), "six"),
        (lsn(6 * SEGMENT + 399), "two"),
        (lsn(6 * SEGMENT + 400), "six"),
        (lsn(10 * SEGMENT - 1), "six"),
        (Some(RecoveryTarget::Immediate), "six"),
        (Some(RecoveryTarget::Xid(7)), "six"),
        (None, "six"),
    ] {
        assert_eq!(chosen(&backups, &archives, &to(target.clone())).as_deref(), Ok(expected), "{target:?}");
    }
}

#[test]
fn what_is_out_of_reach_is_refused_with_what_is_within() {
    let (backups, inventory) = world();
    let archives = archives(inventory);
    let refused = |target| chosen(&backups, &archives, &to(target)).unwrap_err();
    let before = refused(time(199));
    assert!(
        before.starts_with("no backup ended before 2027-01-15 08:03:19+00:00 | the earliest that can be reached is"),
        "{before}"
    );
    assert!(before.ends_with("2027-01-15T08:03:20Z, LSN 0/2000190"), "{before}");
    let after = refused(time(951));
    assert!(after.contains("six was archived at 2027-01-15T08:15:50Z, before 2027-01-15 08:15:51+00:00"), "{after}");
    assert!(after.ends_with("leave out the target to recover all there is"), "{after}");
    let beyond = refused(lsn(10 * SEGMENT + 1));
    assert!(beyond.contains("ends at 0/A000000, before LSN 0/A000001 | leave out the target"), "{beyond}");
    // There the server would say that recovery ended before the target was reached, and not open.
    let end = refused(lsn(10 * SEGMENT));
    assert!(end.contains("ends at LSN 0/A000000, and PostgreSQL stops only where more follows | leave out"), "{end}");
    refused(lsn(2 * SEGMENT));
    assert!(chosen(&[], &archives, &to(None)).unwrap_err().contains("no good base backup"));
}

#[test]
fn a_gap_in_the_archive_is_never_passed_over() {
    let (backups, _) = world();
    let mut inventory = Inventory::default();
    archive(&mut inventory, 1, 1..7);
    archive(&mut inventory, 1, 8..10);
    let archives = archives(inventory);
    let refused = |target| chosen(&backups, &archives, &to(target)).unwrap_err();
    assert!(refused(None).starts_with(
        "the archive has a gap: it ends at 0/7000000 and goes on at 0/8000000 | '--target immediate' recovers the backup alone"
    ));
    assert!(chosen(&backups[..1], &archives, &to(None)).unwrap_err().contains("'--target-lsn 0/6000000' stops before"));
    assert_eq!(chosen(&backups[..1], &archives, &to(lsn(6 * SEGMENT))).as_deref(), Ok("two"));
    assert!(refused(lsn(9 * SEGMENT)).contains("ends at 0/7000000"));
    assert!(refused(time(700)).contains("archived at"));
    assert_eq!(chosen(&backups, &archives, &to(time(640))).as_deref(), Ok("six"));
    assert_eq!(chosen(&backups, &archives, &to(Some(RecoveryTarget::Immediate))).as_deref(), Ok("six"));
    let streaming = Wanted { streams: true, ..Wanted::default() };
    assert_eq!(chosen(&backups, &archives, &streaming).as_deref(), Ok("six"), "a primary may have what is missing");
}

#[test]
fn a_backup_without_its_log_needs_the_archive_and_one_with_it_does_not() {
    let mut backups = vec![backup("two", 1, 2)];
    assert_eq!(chosen(&backups, &Archives::new(), &to(None)).as_deref(), Ok("two"));
    assert!(!check(&backups[0], &backups, &Archives::new(), &to(None)).unwrap().archive);
    assert!(chosen(&backups, &Archives::new(), &to(time(300))).unwrap_err().contains("no log that follows"));
    backups[0].cluster.wal_included = false;
    for target in [None, Some(RecoveryTarget::Immediate), lsn(3 * SEGMENT)] {
        let refused = chosen(&backups, &Archives::new(), &to(target)).unwrap_err();
        assert!(
            refused.contains("needs the log up to 0/2000190, and the archive lacks it from 0/2000028 on"),
            "{refused}"
        );
    }
}

/// Timeline 2 branched off 1 in the middle of segment 4; 1 went on up to 9.
fn forked() -> (Vec<Candidate>, Archives) {
    let (mut backups, mut inventory) = world();
    archive(&mut inventory, 2, 4..6);
    let fork = Lsn(4 * SEGMENT + 8 * MIB);
    inventory.add_history(History::parse(timeline(2), &format!("1\t{fork}\tno recovery target specified\n")).unwrap());
    backups.push(backup("five-on-2", 2, 5));
    (backups, archives(inventory))
}

#[test]
fn recovery_follows_the_histories_across_a_switch() {
    let (backups, archives) = forked();
    let on = |timeline, target| Wanted { timeline, target, streams: false };
    let number = |n| TargetTimeline::Number(timeline(n));
    // Six is the newest, and not part of timeline 2.
    assert_eq!(chosen(&backups, &archives, &on(TargetTimeline::Latest, None)).as_deref(), Ok("six"));
    assert_eq!(chosen(&backups, &archives, &on(number(2), None)).as_deref(), Ok("five-on-2"));
    assert_eq!(chosen(&backups, &archives, &on(number(2), lsn(5 * SEGMENT))).as_deref(), Ok("two"));
    let (_, fit) = choose(&backups, &archives, &on(number(2), lsn(5 * SEGMENT))).unwrap();
    assert_eq!((fit.timeline, fit.reach), (timeline(2), Lsn(6 * SEGMENT)));
    // From backup two, the newest timeline is 2, and the present one 1.
    let latest = check(&backups[0], &backups, &archives, &on(TargetTimeline::Latest, None)).unwrap();
    let current = check(&backups[0], &backups, &archives, &on(TargetTimeline::Current, None)).unwrap();
    assert_eq!((latest.timeline.get(), current.timeline.get()), (2, 1));
    assert_eq!((latest.reach, current.reach), (Lsn(6 * SEGMENT), Lsn(10 * SEGMENT)));
    let unknown = chosen(&backups, &archives, &on(number(9), None)).unwrap_err();
    assert!(unknown.contains("no history of timeline 9"), "{unknown}");
    let lost = check(&backups[1], &backups, &archives, &on(number(2), None)).unwrap_err();
    assert_eq!(lost.hint(), Some("backup five-on-2 leads there"), "{lost}");
}

#[test]
fn a_newer_timeline_whose_history_is_missing_is_not_quietly_left_out() {
    let (backups, mut inventory) = world();
    archive(&mut inventory, 3, 9..12);
    let archives = archives(inventory);
    let refused = chosen(&backups, &archives, &to(None)).unwrap_err();
    assert!(refused.contains("has log of timeline 3 and not its history"), "{refused}");
    assert!(refused.contains("archive 00000003.history"), "{refused}");
    let current = Wanted { timeline: TargetTimeline::Current, ..Wanted::default() };
    assert_eq!(chosen(&backups, &archives, &current).as_deref(), Ok("six"));
    assert_eq!(chosen(&backups, &archives, &to(Some(RecoveryTarget::Immediate))).as_deref(), Ok("six"));
    // A backup of that timeline needs no history of it.
    assert_eq!(chosen(&[backup("on-3", 3, 10)], &archives, &to(None)).as_deref(), Ok("on-3"));
}

#[test]
fn a_named_backup_is_never_replaced_by_another() {
    let (backups, inventory) = world();
    let archives = archives(inventory);
    let error = check(&backups[1], &backups, &archives, &to(time(300))).unwrap_err();
    assert!(error.to_string().starts_with("backup six ended after 2027-01-15 08:05:00+00:00"), "{error}");
    assert_eq!(error.hint(), Some("backup two leads there"));
    check(&backups[0], &backups, &archives, &to(time(900))).unwrap();
}

#[test]
fn a_damaged_backup_and_a_cluster_of_old_are_not_chosen() {
    let (mut backups, inventory) = world();
    backups[1].good = false;
    let mut archives = archives(inventory);
    assert_eq!(chosen(&backups, &archives, &to(None)).as_deref(), Ok("two"));
    // Made anew at second 1000: its positions begin again.
    let mut renewed = backup("renewed", 1, 3);
    renewed.cluster.system_identifier = SystemIdentifier(8);
    renewed.cluster.stopped = at(1100);
    backups.push(renewed);
    let mut inventory = Inventory::default();
    archive(&mut inventory, 1, 1..13);
    archives.insert(SystemIdentifier(8), inventory);
    assert_eq!(chosen(&backups, &archives, &to(time(900))).as_deref(), Ok("two"));
    assert_eq!(chosen(&backups, &archives, &to(time(1150))).as_deref(), Ok("renewed"));
    assert!(
        chosen(&backups, &archives, &to(lsn(2 * SEGMENT + 500))).is_err(),
        "that was a position of another cluster"
    );
}

proptest! {
    #[test]
    fn ranges_are_the_same_in_whatever_order_segments_come(mut segments in prop::collection::vec(0u64..40, 0..60)) {
        let mut inventory = Inventory::default();
        for &n in &segments {
            archive(&mut inventory, 1, n..n + 1);
        }
        segments.sort_unstable();
        segments.dedup();
        let mut expected: Vec<(u64, u64)> = Vec::new();
        for n in segments {
            match expected.last_mut() {
                Some((_, end)) if *end == n => *end = n + 1,
                _ => expected.push((n, n + 1)),
            }
        }
        let ranges: Vec<(u64, u64)> = inventory.ranges(timeline(1)).map(|r| (r.start.0 / SEGMENT, r.end.0 / SEGMENT)).collect();
        prop_assert_eq!(ranges, expected);
    }
}
