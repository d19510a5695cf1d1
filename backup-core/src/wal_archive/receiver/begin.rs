//! Where receiving begins.

use super::{Known, Receiver, ReceiverEvent, Slot, heard};
use crate::error::{Error, Result, Stage};
use crate::postgres::wal::{History, Lsn, SegmentName, SegmentSize, Timeline, WalFile};
use crate::postgres::wire::{Connection, Identity, Mode, WalPosition};
use crate::repository::Repository;
use crate::wal_archive::inventory::{ClusterInventory, Inventory, SegmentRange};
use crate::wal_archive::stored::StoredFile;

/// What is in the archive of the server's timeline and of those that it descends from.
struct Archived {
    end: WalPosition,
    /// The oldest timeline first.
    course: Vec<Leg>,
}

/// What is in the archive of one timeline.
struct Leg {
    timeline: Timeline,
    /// Where the next timeline takes over: at the beginning of the segment in which this one was left, of which it has a copy.
    left: Option<Lsn>,
    ranges: Vec<SegmentRange>,
}

/// What a required repository has of the server's log; nothing, when it has no archive of it.
struct Holding {
    repository: String,
    archived: Option<Archived>,
    leftovers: Vec<Leftover>,
}

/// A tail that nobody needs: its segment is whole there.
pub(super) type Leftover = (Repository, SegmentName);

/// A required repository that lacks log which another one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    pub(super) repository: String,
    pub(super) ahead: String,
}

impl Holding {
    /// The first position that is missing, from `kept` on if the server keeps its log for us. Then what was told to nobody to be durable counts as
    /// missing in a repository without an archive, too: the others may have got it before they all had it.
    fn missing(&self, kept: Option<WalPosition>) -> Option<WalPosition> {
        match (&self.archived, kept) {
            (Some(archived), Some(kept)) => Some(archived.first_missing(kept)),
            (Some(archived), None) => Some(archived.end),
            (None, kept) => kept,
        }
    }
}

/// The first position that is missing anywhere, and in which repository if another one has it.
fn first_missing(all: &[Holding], kept: Option<WalPosition>) -> (Option<WalPosition>, Option<Behind>) {
    let missing = || all.iter().filter_map(|one| Some((one, one.missing(kept)?)));
    let least = missing().min_by_key(|(_, position)| place(position));
    let most = missing().max_by_key(|(_, position)| place(position));
    let behind = least
        .zip(most)
        .filter(|((_, least), (_, most))| place(least) < place(most))
        .map(|(least, most)| Behind { repository: least.0.repository.clone(), ahead: most.0.repository.clone() });
    (least.map(|(_, position)| position), behind)
}

impl Archived {
    /// The first position from `kept` on that is not in the archive. What somebody put there, leaving a hole before it, is no reason to let the
    /// server forget what belongs into the hole; nor is another timeline, of which only the rest is there.
    fn first_missing(&self, kept: WalPosition) -> WalPosition {
        let mut lsn = kept.lsn;
        for leg in self.course.iter().filter(|leg| leg.timeline >= kept.timeline) {
            let holds = |range: &&SegmentRange| range.start <= lsn && lsn < range.end;
            lsn = leg.ranges.iter().find(holds).map_or(lsn, |range| range.end);
            match leg.left {
                Some(left) if lsn >= left => lsn = left,
                _ => return least(WalPosition { lsn, timeline: leg.timeline }, self.end),
            }
        }
        self.end
    }

    /// Whether nothing is missing between what it begins with and its end.
    fn is_whole(&self) -> bool {
        let first = self.course.iter().find_map(|leg| Some((leg.timeline, leg.ranges.first()?.start)));
        first.is_none_or(|(timeline, lsn)| self.first_missing(WalPosition { lsn, timeline }) == self.end)
    }
}

fn place(position: &WalPosition) -> (Timeline, Lsn) {
    (position.timeline, position.lsn)
}

fn least(one: WalPosition, other: WalPosition) -> WalPosition {
    std::cmp::min_by_key(one, other, place)
}

impl Receiver {
    /// Where to begin: behind what is durable without a hole, as far back as a slot keeps the log, else where the slot stands, else where the server
    /// is; always at the beginning of a segment. Of several required repositories, what the one that has least lacks; one without an archive lacks
    /// what the slot keeps. Behind log that was removed, it is where the slot stands.
    pub(super) async fn start(
        &self,
        connection: &mut Connection,
        identity: &Identity,
        size: SegmentSize,
        slot: Option<&str>,
        known: &mut Known,
    ) -> Result<WalPosition> {
        let of_segment = |position: WalPosition| WalPosition { lsn: size.start_of(position.lsn), ..position };
        let at_server = of_segment(WalPosition { lsn: identity.position, timeline: identity.timeline });
        let lasting = slot.filter(|_| !matches!(self.options.slot, Slot::Temporary));
        known.behind = None;
        if let Some(from) = known.gap_from {
            let kept = self.kept(connection, identity, lasting).await?.map(of_segment);
            // Else even that is gone.
            let to = kept.filter(|kept| kept.lsn > size.start_of(from)).unwrap_or(at_server);
            known.gap_from = None;
            self.tell(&ReceiverEvent::Gap { from, to: to.lsn });
            return Ok(to);
        }
        if let Some(durable) = known.durable {
            known.durable = followed(connection, identity, durable).await?;
            if let Some(durable) = known.durable {
                return Ok(of_segment(durable));
            }
        }
        let mut all = self.held(connection, identity, size).await?;
        // Before version 15 asking takes rights of its own, so it is done only if the answer matters.
        let whole = |one: &Holding| one.archived.as_ref().is_some_and(Archived::is_whole);
        let asked = connection.server_major()? >= 15 || !all.iter().all(whole);
        let kept = self.kept(connection, identity, lasting.filter(|_| asked)).await?.map(of_segment);
        let (missing, behind) = first_missing(&all, kept);
        known.behind = behind;
        known.leftovers = all.iter_mut().flat_map(|one| std::mem::take(&mut one.leftovers)).collect();
        Ok(missing.unwrap_or(at_server))
    }

    /// From where on the server keeps its log for us.
    async fn kept(
        &self,
        connection: &mut Connection,
        identity: &Identity,
        slot: Option<&str>,
    ) -> Result<Option<WalPosition>> {
        match slot {
            Some(slot) => self.restart(connection, identity, slot).await,
            None => Ok(None),
        }
    }

    /// From where on the server keeps its log for a slot.
    async fn restart(
        &self,
        connection: &mut Connection,
        identity: &Identity,
        slot: &str,
    ) -> Result<Option<WalPosition>> {
        if connection.server_major()? >= 15 {
            let position = connection.read_replication_slot(slot).await?;
            return Ok(position
                .and_then(|position| position.restart)
                .map(|(lsn, timeline)| WalPosition { lsn, timeline }));
        }
        // Older servers tell by SQL only, which takes a connection of the other kind.
        let options = self.options.connect.clone().with_default_database("postgres");
        let asked = heard(async {
            let mut connection = Connection::connect(&options, Mode::Sql).await?;
            connection.query("SELECT slot_name, restart_lsn FROM pg_replication_slots").await
        });
        let rows = asked.await.map_err(|e| {
            let message = format!("cannot ask the server where the slot {slot} stands");
            Error::new(e.kind(), Stage::Source, message).with_source(e).with_hint(
                "before PostgreSQL 15 this takes an ordinary connection, to the database of CONNINFO or 'postgres': allow it in pg_hba.conf",
            )
        })?;
        let row = rows.into_iter().find(|row| matches!(&row[..], [Some(name), ..] if name == slot));
        let lsn = row.and_then(|row| row.get(1)?.as_deref()?.parse::<Lsn>().ok());
        let Some(lsn) = lsn else { return Ok(None) };
        let timeline = history(connection, identity).await?.timeline_at(lsn);
        Ok(Some(WalPosition { lsn, timeline }))
    }

    /// What there is in each required repository.
    async fn held(&self, connection: &mut Connection, identity: &Identity, size: SegmentSize) -> Result<Vec<Holding>> {
        self.archiver.open_required().await?;
        let mut history_known = None;
        let mut all = Vec::new();
        for member in self.archiver.repositories().members().iter().filter(|member| member.is_required()) {
            let repository = member.open().await?;
            let inventory = Inventory::read(repository, self.archiver.target()).await?;
            let mut clusters = inventory.clusters.into_iter();
            let mut leftovers = Vec::new();
            let archived = match clusters.find(|c| c.system_identifier == identity.system) {
                Some(cluster) => {
                    let segments = cluster.timelines.iter().flat_map(|timeline| &timeline.leftovers);
                    leftovers.extend(segments.map(|segment| (repository.clone(), *segment)));
                    let history = match &history_known {
                        Some(history) => history,
                        None => history_known.insert(history(connection, identity).await?),
                    };
                    self.archived_in(repository, cluster, history, identity, size).await?
                }
                None => None,
            };
            all.push(Holding { repository: member.name().to_owned(), archived, leftovers });
        }
        Ok(all)
    }

    /// Where the archive in one repository ends, on the server's timeline or on one that it descends from.
    async fn archived_in(
        &self,
        repository: &Repository,
        cluster: ClusterInventory,
        history: &History,
        identity: &Identity,
        size: SegmentSize,
    ) -> Result<Option<Archived>> {
        let mut found = cluster.timelines;
        let mut take = |timeline| {
            let at = found.iter().position(|found| found.timeline == timeline)?;
            Some(found.swap_remove(at))
        };
        let ancestors =
            history.ancestors().iter().map(|(timeline, left_at)| (*timeline, Some(size.start_of(*left_at))));
        let (mut end, mut course) = (None, Vec::new());
        for (timeline, left) in ancestors.chain([(identity.timeline, None)]) {
            let (ranges, tail_segment) =
                take(timeline).map_or((Vec::new(), None), |found| (found.ranges, found.tail_segment));
            // What is known by its tail alone is received again, whole.
            let known = ranges.last().map(|range| range.end).or_else(|| tail_segment?.start(size));
            // The last segment before a timeline was left was not full, and may be known only by its tail.
            let lsn = known.map(|known| left.map_or(known, |left| known.min(left)));
            end = lsn.map(|lsn| WalPosition { lsn, timeline }).or(end);
            course.push(Leg { timeline, left, ranges });
        }
        let Some(end) = end else { return Ok(None) };
        let archived = Archived { end, course };
        let newest = archived.course.iter().rev().find(|leg| leg.timeline == end.timeline);
        if let Some(newest) = newest.and_then(|leg| leg.ranges.last()) {
            // The server may forget what is before it: its name is not enough.
            let archive = self.archiver.target().wal_of(identity.system);
            let file = WalFile::Segment(newest.last);
            StoredFile::find_listed(repository, &archive, file).await?.check_claim().await?;
        }
        Ok(Some(archived))
    }
}

/// What of the log up to `durable` is the server's, too. A new primary that had less of the old timeline went on before it; `None` for a timeline
/// that it does not come from at all, of which the archive may know more. A server that is behind is waited for.
async fn followed(
    connection: &mut Connection,
    identity: &Identity,
    durable: WalPosition,
) -> Result<Option<WalPosition>> {
    if identity.timeline <= durable.timeline {
        return Ok(Some(durable));
    }
    let left_at = history(connection, identity).await?.left_at(durable.timeline);
    Ok(left_at.map(|left_at| WalPosition { lsn: durable.lsn.min(left_at), ..durable }))
}

/// The history of the server's timeline.
async fn history(connection: &mut Connection, identity: &Identity) -> Result<History> {
    match identity.timeline {
        Timeline::FIRST => Ok(History::of_first(Timeline::FIRST)),
        timeline => {
            let content = connection.timeline_history(timeline).await?.content;
            History::parse(timeline, &String::from_utf8_lossy(&content))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(segment: u64) -> WalPosition {
        WalPosition { lsn: Lsn(segment << 24), timeline: Timeline::FIRST }
    }

    fn range(start: u32, end: u32) -> SegmentRange {
        let name = |segment| SegmentName { timeline: Timeline::FIRST, log: 0, segment };
        let segments = u64::from(end - start);
        let (start_lsn, end_lsn) = (position(start.into()).lsn, position(end.into()).lsn);
        SegmentRange { first: name(start), last: name(end - 1), segments, start: start_lsn, end: end_lsn }
    }

    fn of_first(end: WalPosition, ranges: Vec<SegmentRange>) -> Archived {
        Archived { end, course: vec![Leg { timeline: Timeline::FIRST, left: None, ranges }] }
    }

    /// Repositories that are called a, b, … and hold these segments.
    fn all(segments: &[Option<(u32, u32)>]) -> Vec<Holding> {
        let archived = |(start, end): (u32, u32)| of_first(position(end.into()), vec![range(start, end)]);
        let names = ["a", "b", "c"].map(str::to_owned).into_iter();
        names
            .zip(segments)
            .map(|(repository, held)| Holding { repository, archived: held.map(archived), leftovers: Vec::new() })
            .collect()
    }

    #[test]
    fn a_hole_behind_the_slot_is_received_and_one_before_it_is_not() {
        let archived = of_first(position(30), vec![range(5, 10), range(12, 20), range(29, 30)]);
        for (kept, first) in
            [(2, 2), (5, 10), (9, 10), (10, 10), (11, 11), (15, 20), (20, 20), (29, 30), (30, 30), (40, 30)]
        {
            assert_eq!(archived.first_missing(position(kept)), position(first), "{kept}");
        }
    }

    /// Timeline 1 was left in segment 10, and timeline 2 in that, too; the server is on 3.
    #[test]
    fn what_is_missing_of_an_old_timeline_comes_before_what_is_there_of_a_new_one() {
        let on = |timeline, segment| WalPosition { timeline: Timeline::new(timeline).unwrap(), ..position(segment) };
        let archived = |first: Vec<SegmentRange>, third: Vec<SegmentRange>| {
            let end = third.last().map_or(on(1, first.last().map_or(0, |range| range.end.0 >> 24)), |range| {
                WalPosition { lsn: range.end, ..on(3, 0) }
            });
            let leg = |timeline, left: Option<u64>, ranges| Leg {
                timeline: Timeline::new(timeline).unwrap(),
                left: left.map(|segment| position(segment).lsn),
                ranges,
            };
            Archived { end, course: vec![leg(1, Some(10), first), leg(2, Some(10), vec![]), leg(3, None, third)] }
        };
        let with_hole = archived(vec![range(2, 5)], vec![range(10, 14)]);
        for (kept, first) in [
            (on(1, 2), on(1, 5)),
            (on(1, 7), on(1, 7)),
            (on(1, 10), on(3, 14)),
            (on(3, 10), on(3, 14)),
            (on(3, 11), on(3, 14)),
            (on(3, 20), on(3, 14)),
        ] {
            assert_eq!(with_hole.first_missing(kept), first, "{kept:?}");
        }
        assert!(!with_hole.is_whole());
        let whole = archived(vec![range(2, 10)], vec![range(10, 14)]);
        assert_eq!((whole.first_missing(on(1, 2)), whole.is_whole()), (on(3, 14), true));
        // Who archives the rest of a timeline that is over, and nothing of the next, has a hole before the new one.
        let late = archived(vec![range(2, 10)], vec![range(12, 14)]);
        assert_eq!((late.first_missing(on(1, 2)), late.is_whole()), (on(3, 10), false));
        // Nothing of the new one: the slot may have gone on, but the archive did not.
        let old = archived(vec![range(2, 5)], vec![]);
        assert_eq!((old.first_missing(on(3, 12)), old.first_missing(on(1, 2))), (on(1, 5), on(1, 5)));
    }

    #[test]
    fn what_only_one_of_two_repositories_lacks_is_told_to_be_in_the_other() {
        let behind =
            |repository: &str, ahead: &str| Some(Behind { repository: repository.to_owned(), ahead: ahead.to_owned() });
        for kept in [None, Some(position(8))] {
            let copied_long_ago = all(&[Some((2, 9)), Some((2, 5))]);
            assert_eq!(first_missing(&copied_long_ago, kept), (Some(position(5)), behind("b", "a")));
            let lacking_the_same = all(&[Some((2, 5)), Some((1, 5))]);
            assert_eq!(first_missing(&lacking_the_same, kept), (Some(position(5)), None));
        }
    }

    #[test]
    fn what_a_repository_without_an_archive_never_got_is_received_if_a_slot_keeps_it() {
        let first_job_failed_there = all(&[Some((7, 8)), None]);
        assert_eq!(first_missing(&first_job_failed_there, Some(position(7))).0, Some(position(7)));
        assert_eq!(first_missing(&first_job_failed_there, None).0, Some(position(8)));
        let new = all(&[None, None]);
        assert_eq!(first_missing(&new, Some(position(7))), (Some(position(7)), None));
        assert_eq!(first_missing(&new, None), (None, None));
    }
}
