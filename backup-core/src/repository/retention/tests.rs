//! The policy, stated a second time and independently; and years of it.

use std::collections::BTreeSet;

use jiff::civil::Date;
use proptest::prelude::*;

use super::*;
use crate::postgres::wal::{Lsn, SegmentSize, Timeline};

mod reachable;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// An id of that moment; `n` tells those of one second apart.
pub(super) fn id(moment: Timestamp, n: usize) -> BackupId {
    let letters = b"abcdefghijklmnopqrstuvwxyz234567";
    let random: String = (0..16).map(|i| char::from(letters[(n >> (5 * (15 - i).min(11))) % 32])).collect();
    format!("{}-{random}", moment.strftime("%Y%m%dT%H%M%SZ")).parse().unwrap()
}

pub(super) fn good(started: Timestamp, n: usize) -> Facts {
    Facts {
        id: id(started, n),
        started,
        standing: Standing::Good,
        requires: Vec::new(),
        cluster: None,
        pins: Vec::new(),
        stored_bytes: 1,
    }
}

fn decide_without_log(facts: &[Facts], rules: &Rules, now: Timestamp) -> Vec<Verdict> {
    decide(facts, &BTreeMap::new(), rules, now)
}

fn kept(facts: &[Facts], rules: &Rules, now: Timestamp) -> BTreeSet<BackupId> {
    decide_without_log(facts, rules, now).into_iter().filter(Verdict::is_kept).map(|verdict| verdict.id).collect()
}

/// What the defaults keep, in other words: no loop over units, no ordering, dates instead of texts.
fn stated(facts: &[Facts], zone: &TimeZone, now: Timestamp) -> BTreeSet<BackupId> {
    let day = |f: &Facts| f.started.to_zoned(zone.clone()).date();
    let monday = |date: Date| {
        let back = i64::from(date.weekday().to_monday_zero_offset());
        date.checked_sub(back.days()).unwrap()
    };
    let civil = now.to_zoned(zone.clone()).datetime();
    let ago = |span: Span| civil.checked_sub(span).unwrap().to_zoned(zone.clone()).unwrap().timestamp();
    let is_good = |f: &&Facts| f.standing == Standing::Good;
    let is_first = |f: &Facts, same: &dyn Fn(Date, Date) -> bool| {
        facts
            .iter()
            .filter(is_good)
            .all(|other| !same(day(other), day(f)) || (f.started, f.id.as_str()) <= (other.started, other.id.as_str()))
    };
    let stopped = |f: &Facts| f.cluster.as_ref().filter(|_| f.standing == Standing::Good).map(|c| c.stopped);
    let window = ago(7.days());
    let in_window = |f: &Facts| stopped(f).is_some_and(|at| at > window);
    let begins_window = |f: &Facts| {
        let newest = facts.iter().filter_map(stopped).filter(|at| *at <= window).max();
        stopped(f).is_some() && stopped(f) == newest && facts.iter().any(in_window)
    };
    let is_kept = |f: &&Facts| {
        if in_window(f) || begins_window(f) {
            return true;
        }
        let newer = |other: &Facts| (other.started, other.id.as_str()) > (f.started, f.id.as_str());
        if facts.iter().filter(is_good).all(|other| !newer(other)) {
            return f.standing == Standing::Good || f.standing == Standing::Damaged;
        }
        f.standing == Standing::Good
            && ((is_first(f, &|a, b| a == b) && f.started >= ago(30.days()))
                || (is_first(f, &|a, b| monday(a) == monday(b)) && f.started >= ago(90.days()))
                || (is_first(f, &|a, b| (a.year(), a.month()) == (b.year(), b.month())) && f.started >= ago(1.year())))
    };
    facts.iter().filter(is_kept).map(|f| f.id.clone()).collect()
}

/// A zone with a clock that changes, by a rule and not by a database that may not be there.
fn zones() -> impl Strategy<Value = TimeZone> {
    const RULES: [&str; 4] = ["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0", "<+1345>-13:45"];
    proptest::sample::select(&RULES[..]).prop_map(|rule| TimeZone::posix(rule).unwrap())
}

/// The end of a base backup of which the log is elsewhere.
fn cluster(stopped: Timestamp) -> ClusterEntry {
    ClusterEntry {
        system_identifier: SystemIdentifier(7),
        server_version_num: 150_018,
        wal_segment_bytes: SegmentSize::DEFAULT,
        timeline: Timeline::FIRST,
        start_lsn: Lsn(100),
        stop_lsn: Lsn(200),
        stopped,
        wal_included: true,
    }
}

/// Backups of some days, all of a cluster or none: how many on a day, when on it, and whether it went well.
fn days(count: usize) -> impl Strategy<Value = Vec<Facts>> {
    let backup = (0i64..86_400, prop_oneof![8 => Just(Standing::Good), 1 => Just(Standing::Damaged)]);
    let on_a_day = prop_oneof![
        1 => Just(0usize), // it failed, or nobody was there
        12 => Just(1),
        2 => Just(3),
    ]
    .prop_flat_map(move |n| proptest::collection::vec(backup.clone(), n));
    (proptest::collection::vec(on_a_day, count), any::<bool>()).prop_map(|(days, is_cluster)| {
        // Across the leap day of 2024, and one that is none.
        let first = at("2023-11-01T00:00:00Z");
        let mut facts = Vec::new();
        for (day, backups) in (0i64..).zip(days) {
            for (second, standing) in backups {
                let started = first + SignedDuration::from_secs(day * 86_400 + second);
                let cluster = is_cluster.then(|| cluster(started + SignedDuration::from_mins(20)));
                facts.push(Facts { standing, cluster, ..good(started, facts.len()) });
            }
        }
        facts
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_policy_is_what_it_is_said_to_be(facts in days(500), zone in zones(), day in 0i64..500, second in 0i64..86_400) {
        let now = at("2023-11-01T00:00:00Z") + SignedDuration::from_secs(day * 86_400 + second);
        // What is to come is not there yet.
        let facts: Vec<Facts> = facts.into_iter().filter(|f| f.started <= now).collect();
        let rules = Rules { time_zone: zone.clone(), ..Rules::default() };
        prop_assert_eq!(kept(&facts, &rules, now), stated(&facts, &zone, now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn four_years_of_prunes_leave_what_one_prune_of_everything_would(
        facts in days(1461), zone in zones(), gaps in proptest::collection::vec(1i64..40, 200),
        last in prop_oneof![Just(Keep::Nothing), Just(Keep::Count(3)), Just(Keep::Within(36.hours()))],
        daily in prop_oneof![Just(Keep::Within(30.days())), Just(Keep::Count(14))],
        yearly in prop_oneof![Just(Keep::Nothing), Just(Keep::Within(10.years()))],
    ) {
        let rules = Rules { last, daily, yearly, time_zone: zone, ..Rules::default() };
        let mut now = at("2023-11-01T12:00:00Z");
        let mut left: Vec<Facts> = Vec::new();
        let mut seen = 0;
        for gap in gaps {
            now += SignedDuration::from_hours(24 * gap);
            let new = facts[seen..].iter().take_while(|f| f.started <= now).count();
            left.extend_from_slice(&facts[seen..seen + new]);
            seen += new;
            let survivors = kept(&left, &rules, now);
            prop_assert_eq!(&survivors, &kept(&facts[..seen], &rules, now));
            prop_assert!(facts[..seen].iter().all(|f| f.standing != Standing::Good) || left.iter().any(|f| f.standing == Standing::Good && survivors.contains(&f.id)));
            left.retain(|f| survivors.contains(&f.id));
            // Daily, weekly and monthly are bounded, however long it goes on.
            let of_window = if left.iter().any(|f| f.cluster.is_some()) { 3 * 8 + 1 } else { 0 };
            prop_assert!(left.len() <= 3 + 31 + 14 + 14 + 5 + 10 * 3 + of_window, "{}", left.len());
            if seen == facts.len() {
                break;
            }
        }
        prop_assert!(seen == facts.len() || seen > 1000);
    }
}

#[test]
fn the_first_good_one_stands_for_its_day_whatever_comes_later() {
    let now = at("2026-11-25T12:00:00Z");
    let mut facts = vec![
        Facts { standing: Standing::Damaged, ..good(at("2026-11-20T01:00:00Z"), 0) },
        good(at("2026-11-20T02:00:00Z"), 1),
        good(at("2026-11-20T14:00:00Z"), 2),
        good(at("2026-11-25T02:00:00Z"), 3),
    ];
    let verdicts = decide_without_log(&facts, &Rules::default(), now);
    assert_eq!(verdicts.iter().map(Verdict::is_kept).collect::<Vec<_>>(), [false, true, false, true]);
    let texts: Vec<String> = verdicts[1].reasons.iter().map(Reason::to_string).collect();
    assert_eq!(texts, ["daily, of 2026-11-20", "weekly, of 2026-W47", "monthly, of 2026-11"]);
    facts.remove(2);
    assert_eq!(decide_without_log(&facts, &Rules::default(), now)[1], verdicts[1]);
}

#[test]
fn base_backups_of_the_window_are_kept_where_there_is_no_log_yet() {
    let base = |text: &str, n: usize| Facts { cluster: Some(cluster(at(text))), ..good(at(text), n) };
    let facts = [
        base("2026-11-10T02:00:00Z", 0),
        base("2026-11-16T02:00:00Z", 1),
        base("2026-11-20T02:00:00Z", 2),
        base("2026-11-20T14:00:00Z", 3),
        base("2026-11-25T02:00:00Z", 4),
    ];
    let rules = Rules { daily: Keep::Nothing, weekly: Keep::Nothing, monthly: Keep::Nothing, ..Rules::default() };
    let verdicts = decide_without_log(&facts, &rules, at("2026-11-25T12:00:00Z"));
    let reasons: Vec<Option<&Reason>> = verdicts.iter().map(|verdict| verdict.reasons.last()).collect();
    let window = Some(&Reason::Window);
    assert_eq!(reasons, [None, Some(&Reason::WindowStart), window, window, window]);
}

#[test]
fn the_last_good_one_is_kept_under_rules_that_keep_nothing() {
    let nothing = Keep::Nothing;
    let rules = Rules { daily: nothing, weekly: nothing, monthly: nothing, yearly: nothing, ..Rules::default() };
    let now = at("2030-01-01T00:00:00Z");
    let facts = [
        good(at("2026-11-20T02:00:00Z"), 0),
        good(at("2026-11-21T02:00:00Z"), 1),
        Facts { standing: Standing::Damaged, ..good(at("2026-11-22T02:00:00Z"), 2) },
        Facts { standing: Standing::Untrusted, ..good(at("2026-11-23T02:00:00Z"), 3) },
        Facts { standing: Standing::UnknownKind("neo4j".into()), ..good(at("2026-11-23T02:00:00Z"), 4) },
        // A clock that was wrong must not make its backup the newest for ever.
        good(at("2031-01-01T00:00:00Z"), 5),
    ];
    let verdicts = decide_without_log(&facts, &rules, now);
    let reasons: Vec<&[Reason]> = verdicts.iter().map(|verdict| &verdict.reasons[..]).collect();
    assert_eq!(
        reasons,
        [
            &[][..],
            &[Reason::LastGood],
            &[Reason::NoneBetter],
            &[Reason::Untrusted],
            &[Reason::UnknownKind { kind: "neo4j".into() }],
            &[Reason::Future],
        ]
    );
}

#[test]
fn what_a_kept_one_needs_is_kept_and_so_on() {
    let nothing = Keep::Nothing;
    let rules = Rules { daily: nothing, weekly: nothing, monthly: nothing, ..Rules::default() };
    let mut facts: Vec<Facts> =
        (0..5).map(|n| good(at("2026-11-20T02:00:00Z") + SignedDuration::from_hours(n), n as usize)).collect();
    let id = |n: usize| facts[n].id.to_string();
    let (first, second, lost) = (id(0), id(1), "20200101T000000Z-aaaaaaaaaaaaaaaa".to_owned());
    facts[4].requires = vec![second.clone(), lost];
    // In a circle, even.
    facts[1].requires = vec![first, second.clone()];
    facts[0].requires = vec![second];
    let now = at("2026-12-20T00:00:00Z");
    let kept: Vec<bool> = decide_without_log(&facts, &rules, now).iter().map(Verdict::is_kept).collect();
    assert_eq!(kept, [true, true, false, false, true]);
}

#[test]
fn nothing_goes_beside_one_that_needs_a_later_release() {
    let now = at("2030-01-01T00:00:00Z");
    let mut facts: Vec<Facts> = (0..3).map(|n| good(at("2020-11-20T02:00:00Z"), n)).collect();
    facts.push(Facts { standing: Standing::Newer, ..good(at("2020-12-01T00:00:00Z"), 9) });
    assert!(decide_without_log(&facts, &Rules::default(), now).iter().all(Verdict::is_kept));
    // That one is damaged says nothing of the others.
    facts[3].standing = Standing::Unreadable;
    assert_eq!(kept(&facts, &Rules::default(), now).len(), 2);
}

#[test]
fn pins_hold_whatever_else_is_decided() {
    let mut facts: Vec<Facts> = (0..2).map(|n| good(at("2020-11-20T02:00:00Z"), n)).collect();
    facts[0].pins.push(("audit".into(), Some(at("2031-01-01T00:00:00Z"))));
    let verdicts = decide_without_log(&facts, &Rules::default(), at("2030-01-01T00:00:00Z"));
    assert_eq!(verdicts[0].reasons[0].to_string(), "pinned until 2031-01-01T00:00:00Z: audit");
}
