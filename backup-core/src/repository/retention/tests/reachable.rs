//! A cluster that fails over, goes back in time, splits in two and loses log, and prunes in between: every moment of the window that could be
//! reached before a prune can be reached after it, and every backup that is left can be made consistent.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::wal::{Plan, RunningBackup, RunningNeeds, WalReason};
use super::*;
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, Timeline, WalFile};

const SEGMENT: u64 = 1 << 20;
const CLUSTER: SystemIdentifier = SystemIdentifier(7);

#[derive(Debug, Clone, Copy)]
enum Step {
    Write { lost: bool },
    Backup { wal_included: bool, damaged: bool },
    Promote { back: u64 },
    GoOnWith { line: usize },
    Prune,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => proptest::bool::weighted(0.03).prop_map(|lost| Step::Write { lost }),
        4 => (any::<bool>(), proptest::bool::weighted(0.1)).prop_map(|(wal_included, damaged)| Step::Backup { wal_included, damaged }),
        1 => (0u64..(4 * SEGMENT)).prop_map(|back| Step::Promote { back }),
        1 => (0usize..8).prop_map(|line| Step::GoOnWith { line }),
        2 => Just(Step::Prune),
    ];
    proptest::collection::vec(step, 50..400)
}

/// A timeline: where it left which other, and how far it has come.
#[derive(Debug, Clone, Copy)]
struct Line {
    parent: Option<(usize, u64)>,
    end: u64,
}

#[derive(Debug, Default)]
struct World {
    lines: Vec<Line>,
    current: usize,
    now: Timestamp,
    facts: Vec<Facts>,
    /// Timeline, number, and when it came.
    segments: BTreeSet<(usize, u64, Timestamp)>,
    /// Timeline, position, time.
    moments: Vec<(usize, u64, Timestamp)>,
    made: usize,
}

fn timeline(line: usize) -> Timeline {
    Timeline::new(u32::try_from(line).unwrap() + 1).unwrap()
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn name(line: usize, number: u64) -> SegmentName {
    size().segment_at(timeline(line), Lsn(number * SEGMENT))
}

impl World {
    fn new() -> Self {
        Self {
            lines: vec![Line { parent: None, end: 5 * SEGMENT + 100 }],
            now: at("2026-01-01T00:00:00Z"),
            ..Self::default()
        }
    }

    fn step(&mut self, step: Step) {
        self.now += SignedDuration::from_hours(3);
        let line = self.current;
        match step {
            Step::Write { lost } => {
                let number = self.lines[line].end / SEGMENT;
                if !lost {
                    self.segments.insert((line, number, self.now));
                }
                self.lines[line].end = (number + 1) * SEGMENT + 4321;
                self.moments.push((line, (number + 1) * SEGMENT, self.now));
            }
            Step::Backup { wal_included, damaged } => {
                let start = self.lines[line].end;
                self.lines[line].end += 1000;
                self.made += 1;
                let cluster = ClusterEntry {
                    system_identifier: CLUSTER,
                    server_version_num: 150_000,
                    wal_segment_bytes: size(),
                    timeline: timeline(line),
                    start_lsn: Lsn(start),
                    stop_lsn: Lsn(start + 500),
                    stopped: self.now,
                    wal_included,
                };
                let standing = if damaged { Standing::Damaged } else { Standing::Good };
                self.facts.push(Facts { standing, cluster: Some(cluster), ..good(self.now, self.made) });
            }
            Step::Promote { back } => {
                let fork = self.lines[line].end.saturating_sub(back).max(5 * SEGMENT + 100);
                // Not to before it was there itself.
                let fork = self.lines[line].parent.map_or(fork, |(_, own)| fork.max(own));
                self.lines.push(Line { parent: Some((line, fork)), end: fork });
                self.current = self.lines.len() - 1;
            }
            Step::GoOnWith { line } => self.current = line % self.lines.len(),
            Step::Prune => self.prune(),
        }
    }

    /// The timeline that the byte before `end` was written on, as seen from `line`.
    fn owner(&self, mut line: usize, end: u64) -> usize {
        while let Some((parent, fork)) = self.lines[line].parent.filter(|(_, fork)| end <= *fork) {
            let _ = fork;
            line = parent;
        }
        line
    }

    fn has(&self, line: usize, number: u64) -> bool {
        self.segments.range((line, number, Timestamp::MIN)..=(line, number, Timestamp::MAX)).next().is_some()
    }

    /// Whether the log is there from one position to another, along the line to `line`.
    fn leads(&self, line: usize, from: u64, to: u64) -> bool {
        (from / SEGMENT..to.div_ceil(SEGMENT)).all(|n| self.has(self.owner(line, to.min((n + 1) * SEGMENT)), n))
    }

    fn can_reach(&self, (line, position, _): (usize, u64, Timestamp)) -> bool {
        self.facts.iter().filter(|f| f.standing == Standing::Good).any(|f| {
            let entry = f.cluster.as_ref().unwrap();
            let from = if entry.wal_included { entry.stop_lsn } else { entry.start_lsn };
            let on = usize::try_from(entry.timeline.get()).unwrap() - 1;
            entry.stop_lsn.0 <= position
                && self.owner(line, entry.stop_lsn.0) == on
                && self.owner(line, entry.start_lsn.0 + 1) == on
                && self.leads(line, from.0, position)
        })
    }

    fn consistent(&self) -> BTreeSet<BackupId> {
        let is = |f: &&Facts| {
            let entry = f.cluster.as_ref().unwrap();
            let on = usize::try_from(entry.timeline.get()).unwrap() - 1;
            entry.wal_included || self.leads(on, entry.start_lsn.0, entry.stop_lsn.0)
        };
        self.facts.iter().filter(is).map(|f| f.id.clone()).collect()
    }

    fn archive(&self) -> BTreeMap<SystemIdentifier, Archive> {
        let mut archive = Archive::default();
        for (line, number, written) in &self.segments {
            archive.add(name(*line, *number), *written);
        }
        [(CLUSTER, archive)].into_iter().filter(|(_, archive)| !archive.timelines.is_empty()).collect()
    }

    fn prune(&mut self) {
        let nothing = Keep::Nothing;
        let rules =
            Rules { daily: Keep::Count(2), weekly: nothing, monthly: nothing, wal: 4.days(), ..Rules::default() };
        let start = rules.window_start(self.now);
        let reachable: Vec<_> = self.moments.iter().copied().filter(|m| m.2 >= start && self.can_reach(*m)).collect();
        let consistent = self.consistent();
        let archives = self.archive();
        let verdicts = decide(&self.facts, &archives, &rules, self.now);
        let plan = Plan::new(&self.facts, &verdicts, &archives, &[], start);
        let had_good = self.facts.iter().any(|f| f.standing == Standing::Good);
        self.facts.retain(|f| verdicts.iter().any(|verdict| verdict.id == f.id && verdict.is_kept()));
        self.segments.retain(|(line, number, written)| {
            plan.reason(CLUSTER, WalFile::Segment(name(*line, *number)), *written).is_some()
        });
        for moment in reachable {
            assert!(self.can_reach(moment), "{moment:?} is lost");
        }
        let still = self.consistent();
        for f in self.facts.iter().filter(|f| consistent.contains(&f.id)) {
            assert!(still.contains(&f.id), "{} has lost its log", f.id);
        }
        assert_eq!(had_good, self.facts.iter().any(|f| f.standing == Standing::Good));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn no_prune_takes_a_moment_of_the_window_or_the_consistency_of_a_backup(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.prune();
    }
}

#[test]
fn prunes_do_remove_log() {
    let mut world = World::new();
    for day in 0..40 {
        for hour in 0..8 {
            world.step(if hour == 0 {
                Step::Backup { wal_included: day % 2 == 0, damaged: false }
            } else {
                Step::Write { lost: false }
            });
        }
    }
    let before = (world.facts.len(), world.segments.len());
    world.prune();
    // Four days of log, and one back to the backup before; five backups of these days.
    assert_eq!((before, (world.facts.len(), world.segments.len())), ((40, 280), (5, 35)));
}

#[test]
fn log_of_an_unknown_cluster_or_beside_a_silent_run_stays() {
    let mut world = World::new();
    for _ in 0..50 {
        world.step(Step::Write { lost: false });
    }
    let now = world.now + SignedDuration::from_hours(24 * 100);
    let file = WalFile::Segment(name(0, 6));
    let reason = |world: &World, running: &[RunningBackup]| {
        let archives = world.archive();
        let verdicts = decide(&world.facts, &archives, &Rules::default(), now);
        Plan::new(&world.facts, &verdicts, &archives, running, now).reason(CLUSTER, file, world.now)
    };
    assert_eq!(reason(&world, &[]), Some(WalReason::NoBackup));
    world.step(Step::Backup { wal_included: true, damaged: true });
    assert_eq!(reason(&world, &[]), Some(WalReason::NoGoodBackup));
    world.step(Step::Backup { wal_included: true, damaged: false });
    assert_eq!(reason(&world, &[]), None);
    let running = |needs| [RunningBackup { id: id(now, 0), needs }];
    assert_eq!(reason(&world, &running(RunningNeeds::Nothing)), None);
    assert_eq!(reason(&world, &running(RunningNeeds::Unknown)), Some(WalReason::Running { id: id(now, 0) }));
    let from = |start| RunningNeeds::From { cluster: CLUSTER, timeline: timeline(0), start: Lsn(start) };
    assert!(reason(&world, &running(from(6 * SEGMENT))).is_some());
    assert_eq!(reason(&world, &running(from(7 * SEGMENT))), None);
    world.facts[1].cluster.as_mut().unwrap().wal_segment_bytes = SegmentSize::DEFAULT;
    assert_eq!(reason(&world, &[]), Some(WalReason::SegmentSizes));
}

#[test]
fn a_gap_in_which_a_kept_backup_lacks_log_is_none_that_a_prune_left() {
    let mut world = World::new();
    world.step(Step::Backup { wal_included: false, damaged: false });
    for _ in 0..30 {
        world.step(Step::Write { lost: false });
    }
    world.step(Step::Backup { wal_included: true, damaged: false });
    world.facts[0].pins.push(("audit".into(), None));
    let now = world.now + SignedDuration::from_hours(24 * 100);
    let archives = world.archive();
    let verdicts = decide(&world.facts, &archives, &Rules::default(), now);
    let plan = Plan::new(&world.facts, &verdicts, &archives, &[], now);
    let keeps = |first, last| plan.keeps_any(CLUSTER, name(0, first), name(0, last));
    // The old one needs number 5, the new one all from 35 on.
    assert_eq!([keeps(4, 20), keeps(5, 5), keeps(2, 5)], [true; 3]);
    assert_eq!([keeps(6, 33), keeps(6, 35), keeps(40, 50)], [false, true, true]);
    assert!(plan.keeps_any(SystemIdentifier(8), name(0, 6), name(0, 7)), "of a cluster of which nothing is known");
}
