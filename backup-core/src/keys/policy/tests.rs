//! The life of keys, and what must hold at every moment of it.

use proptest::prelude::*;

use super::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn rules(name: &str, created: &str) -> KeyRules {
    KeyRules::new(name, format!("age1{name}"), time(created))
}

fn successor(name: &str, created: &str, replaces: &str) -> KeyRules {
    KeyRules { replaces: Some(replaces.to_owned()), ..rules(name, created) }
}

#[test]
fn a_key_lives_for_a_year_and_says_so_90_days_ahead() {
    let policy = Policy::new(vec![rules("a", "2026-01-10T09:00:00Z")]).unwrap();
    let states = [
        ("2026-01-10T08:59:59Z", State::Pending),
        ("2026-01-10T09:00:00Z", State::Active),
        ("2026-10-12T08:59:59Z", State::Active),
        ("2026-10-12T09:00:00Z", State::Expiring),
        ("2027-01-10T08:59:59Z", State::Expiring),
        ("2027-01-10T09:00:00Z", State::Expired),
    ];
    for (now, state) in states {
        assert_eq!(policy.keys()[0].state(time(now)), state, "{now}");
    }
    assert_eq!(policy.lapses(time("2026-06-01T00:00:00Z")), Some(time("2027-01-10T09:00:00Z")));
    let (before, after) = (time("2026-01-01T00:00:00Z"), time("2027-02-01T00:00:00Z"));
    assert_eq!([policy.lapses(before), policy.lapses(after)], [Some(before), Some(after)]);
    assert_eq!(Policy::default().lapses(before), None);
}

#[test]
fn a_successor_puts_its_predecessor_into_overlap_for_30_days() {
    let a = rules("a", "2026-01-10T09:00:00Z");
    let b = KeyRules { activates: Some(time("2026-11-15T00:00:00Z")), ..successor("b", "2026-11-01T00:00:00Z", "a") };
    let policy = Policy::new(vec![a, b]).unwrap();
    let states = [
        // The successor will be there in time: nothing to announce.
        ("2026-11-10T00:00:00Z", [State::Active, State::Pending]),
        ("2026-11-15T00:00:00Z", [State::Overlap, State::Active]),
        ("2026-12-14T23:59:59Z", [State::Overlap, State::Active]),
        ("2026-12-15T00:00:00Z", [State::Expired, State::Active]),
        ("2027-11-02T00:00:00Z", [State::Expired, State::Expired]),
    ];
    for (now, state) in states {
        assert_eq!([0, 1].map(|i| policy.keys()[i].state(time(now))), state, "{now}");
    }
    let used: Vec<&str> = policy.used(time("2026-12-01T00:00:00Z")).map(|key| key.name.as_str()).collect();
    assert_eq!(used, ["a", "b"]);
    assert_eq!(policy.keys()[0].successors, ["b"]);
}

#[test]
fn an_overlap_ends_with_the_key_and_a_successor_that_comes_too_late_is_announced() {
    let a = KeyRules { expires: Some(time("2026-12-01T00:00:00Z")), ..rules("a", "2026-01-01T00:00:00Z") };
    let late =
        KeyRules { activates: Some(time("2026-12-05T00:00:00Z")), ..successor("b", "2026-11-01T00:00:00Z", "a") };
    let policy = Policy::new(vec![a.clone(), late]).unwrap();
    assert_eq!(policy.keys()[0].state(time("2026-11-20T00:00:00Z")), State::Expiring);
    assert_eq!(policy.lapses(time("2026-11-20T00:00:00Z")), Some(time("2026-12-01T00:00:00Z")));

    let policy = Policy::new(vec![a, successor("b", "2026-11-20T00:00:00Z", "a")]).unwrap();
    assert_eq!(policy.keys()[0].ends, time("2026-12-01T00:00:00Z"), "sooner than the overlap's end");
}

#[test]
fn a_successor_that_is_given_up_neither_ends_its_predecessor_nor_keeps_its_end_quiet() {
    let given_up = |on: &str| KeyRules { retired: Some(time(on)), ..successor("b", "2026-03-01T00:00:00Z", "a") };
    let policy = Policy::new(vec![rules("a", "2026-01-01T00:00:00Z"), given_up("2026-03-10T00:00:00Z")]).unwrap();
    let a = &policy.keys()[0];
    assert_eq!((a.ends, a.successors.len()), (time("2027-01-01T00:00:00Z"), 0));
    let states = ["2026-03-31T00:00:00Z", "2026-10-03T00:00:00Z", "2027-01-01T00:00:00Z"].map(|now| a.state(time(now)));
    assert_eq!(states, [State::Active, State::Expiring, State::Expired]);
    assert_eq!(policy.lapses(time("2026-03-31T00:00:00Z")), Some(a.ends));

    // A second try counts from its own beginning.
    let again = successor("c", "2026-03-10T00:00:00Z", "a");
    let policy =
        Policy::new(vec![rules("a", "2026-01-01T00:00:00Z"), given_up("2026-03-10T00:00:00Z"), again]).unwrap();
    let states = |now| policy.keys().iter().map(|key| key.state(time(now))).collect::<Vec<_>>();
    assert_eq!(states("2026-03-31T00:00:00Z"), [State::Overlap, State::Retired, State::Active]);
    assert_eq!(states("2026-04-09T00:00:00Z"), [State::Expired, State::Retired, State::Active]);
    assert_eq!(policy.keys()[0].successors, ["c"]);
}

#[test]
fn a_key_that_has_ended_is_not_brought_back_when_its_successor_is_retired() {
    for retired in ["2026-03-31T00:00:00Z", "2026-08-01T00:00:00Z"] {
        let b = KeyRules { retired: Some(time(retired)), ..successor("b", "2026-03-01T00:00:00Z", "a") };
        let policy = Policy::new(vec![rules("a", "2026-01-01T00:00:00Z"), b]).unwrap();
        assert_eq!(policy.keys()[0].ends, time("2026-03-31T00:00:00Z"), "{retired}");
        assert_eq!(policy.keys()[0].state(time("2026-08-02T00:00:00Z")), State::Expired, "{retired}");
        assert_eq!(policy.keys()[0].successors, ["b"], "{retired}");
    }
}

#[test]
fn what_tells_of_a_key_does_not_tell_how_its_pin_is_had() {
    let recipient = "pkcs11:object=dr?pin-source=%7Cecho%20hush&public-key=B";
    let rules = KeyRules::new("a", recipient, time("2026-01-01T00:00:00Z"));
    let policy = Policy::new(vec![rules.clone()]).unwrap();
    for told in [format!("{rules:?}"), format!("{policy:?}")] {
        assert!(told.contains("pkcs11:object=dr?public-key=B") && !told.contains("hush"), "{told}");
    }
    assert_eq!(policy.keys()[0].recipient, recipient);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let a = || rules("a", "2026-01-01T00:00:00Z");
    let refused = |rules: Vec<KeyRules>| Policy::new(rules).unwrap_err().to_string();
    let same_recipient = KeyRules { recipient: "age1a".into(), ..rules("b", "2026-01-01T00:00:00Z") };
    let both = KeyRules { expires: Some(time("2027-01-01T00:00:00Z")), lifetime: Some(Span::new().days(9)), ..a() };
    let circle = vec![
        KeyRules { replaces: Some("b".into()), ..a() },
        successor("b", "2026-01-01T00:00:00Z", "a"),
        successor("c", "2026-01-01T00:00:00Z", "b"),
    ];
    let forever = KeyRules { lifetime: Some(Span::new().years(9000)), ..a() };
    let all = [
        refused(vec![a(), a()]),
        refused(vec![a(), same_recipient]),
        refused(vec![rules("a b", "2026-01-01T00:00:00Z")]),
        refused(vec![both]),
        refused(vec![KeyRules { expires: Some(time("2025-01-01T00:00:00Z")), ..a() }]),
        refused(vec![KeyRules { activates: Some(time("2025-12-01T00:00:00Z")), ..a() }]),
        refused(vec![KeyRules { lifetime: Some(Span::new()), ..a() }]),
        refused(vec![KeyRules { overlap: Some(Span::new().days(-1)), ..a() }]),
        refused(vec![forever]),
        refused(vec![KeyRules { replaces: Some("z".into()), ..a() }]),
        refused(circle),
    ];
    assert_eq!(
        all.join("\n"),
        "key 'a' is the same as 'a'\n\
         key 'b' is the same as 'a'\n\
         key 'a b' has a name that is not 1 to 63 letters, digits, '.', '_' and '-'\n\
         key 'a' has both 'expires' and 'lifetime'\n\
         key 'a' ends (2025-01-01T00:00:00Z) before it activates (2026-01-01T00:00:00Z)\n\
         key 'a' activates (2025-12-01T00:00:00Z) before it is created (2026-01-01T00:00:00Z)\n\
         key 'a' ends (2026-01-01T00:00:00Z) before it activates (2026-01-01T00:00:00Z)\n\
         key 'a' has a negative 'overlap'\n\
         key 'a' has a lifetime without an end\n\
         key 'a' replaces 'z', which is not there\n\
         key 'a' is its own successor"
    );
}

/// Keys one after the other, each rotated so many days before its predecessor would expire, with so many days of overlap.
fn chain() -> impl Strategy<Value = Policy> {
    proptest::collection::vec((0i64..360, 0i64..400), 1..6).prop_map(|plan| {
        let mut created = time("2026-01-01T00:00:00Z");
        let mut rules: Vec<KeyRules> = Vec::new();
        for (i, (ahead, overlap)) in plan.into_iter().enumerate() {
            rules.push(KeyRules {
                overlap: Some(Span::new().days(overlap)),
                replaces: i.checked_sub(1).map(|before| format!("k{before}")),
                ..KeyRules::new(format!("k{i}"), format!("age1{i}"), created)
            });
            created = after(created, Span::new().days(365 - ahead)).unwrap();
        }
        Policy::new(rules).unwrap()
    })
}

proptest! {
    #[test]
    fn keys_that_are_rotated_in_time_leave_no_moment_without_one(policy in chain(), hours in 0i64..50_000) {
        let first = policy.keys()[0].activates;
        let last = policy.keys().last().unwrap().ends;
        let now = after(first, Span::new().hours(hours)).unwrap();
        prop_assert_eq!(policy.used(now).next().is_some(), now < last);
        let lapses = policy.lapses(now).unwrap();
        prop_assert_eq!(lapses, last.max(now));
    }

    #[test]
    fn states_only_go_forward_and_an_ended_key_is_never_used(policy in chain(), hours in proptest::collection::vec(0i64..50_000, 2..20)) {
        let mut hours = hours;
        hours.sort_unstable();
        for key in policy.keys() {
            let mut before = State::Pending as u8;
            for hour in &hours {
                let now = after(policy.keys()[0].activates, Span::new().hours(*hour)).unwrap();
                let state = key.state(now);
                prop_assert!(state as u8 >= before, "{:?}", state);
                before = state as u8;
                prop_assert_eq!(state.is_used(), key.activates <= now && now < key.ends);
            }
        }
    }

    #[test]
    fn whatever_the_rules_say_is_refused_or_has_an_end(
        created in any::<i64>(), times in proptest::collection::vec(proptest::option::of(any::<i64>()), 3),
        spans in proptest::collection::vec(proptest::option::of((-25_000i64..25_000, -700_000i64..7_000_000)), 3), now in any::<i64>(),
    ) {
        let all = Timestamp::MAX.as_second() - Timestamp::MIN.as_second();
        let time = |seconds: i64| Timestamp::from_second(Timestamp::MIN.as_second() + seconds.rem_euclid(all)).unwrap();
        let span = |years: i64, days: i64| Span::new().try_years(years).ok()?.try_days(days).ok();
        let spans: Vec<Option<Span>> = spans.into_iter().map(|span_of| span_of.and_then(|(y, d)| span(y, d))).collect();
        let rules = KeyRules {
            activates: times[0].map(time),
            expires: times[1].map(time),
            retired: times[2].map(time),
            lifetime: spans[0],
            overlap: spans[1],
            warn: spans[2],
            ..KeyRules::new("a", "age1a", time(created))
        };
        let after = KeyRules { replaces: Some("a".into()), ..KeyRules::new("b", "age1b", time(now)) };
        for rules in [vec![rules.clone()], vec![rules, after]] {
            let Ok(policy) = Policy::new(rules) else { continue };
            for key in policy.keys() {
                prop_assert_eq!(key.state(key.ends).is_used(), false);
                let _ = key.state(time(now));
            }
            prop_assert!(policy.lapses(time(now)).is_some_and(|end| end >= time(now)));
        }
    }
}
