//! Where receiving begins.

use super::{Known, Receiver, ReceiverEvent, Slot, heard};
use crate::error::{Error, Result, Stage};
use crate::postgres::wal::{History, Lsn, SegmentSize, Timeline, WalFile};
use crate::postgres::wire::{Connection, Identity, Mode, WalPosition};
use crate::repository::Repository;
use crate::wal_archive::inventory::{ClusterInventory, Inventory, SegmentRange};
use crate::wal_archive::stored::StoredFile;

/// What of a timeline is in the archive.
struct Archived {
    end: WalPosition,
    ranges: Vec<SegmentRange>,
}

impl Archived {
    /// The first position from `kept` on that is not in the archive. What somebody put there, leaving a hole before it, is no reason to let the
    /// server forget what belongs into the hole.
    fn first_missing(&self, kept: WalPosition) -> WalPosition {
        let holds = |range: &&SegmentRange| range.start <= kept.lsn && kept.lsn < range.end;
        match self.ranges.iter().find(holds) {
            Some(range) => WalPosition { lsn: range.end.min(self.end.lsn), ..self.end },
            None => WalPosition { lsn: kept.lsn.min(self.end.lsn), ..self.end },
        }
    }
}

impl Receiver {
    /// Where to begin: behind what is durable without a hole, as far back as a slot keeps the log, else where the slot stands, else where the server
    /// is; always at the beginning of a segment. Of several repositories, what the one that has least lacks; those without an archive do not count.
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
        if let Some(from) = known.gap_from.take() {
            self.tell(&ReceiverEvent::Gap { from, to: at_server.lsn });
            return Ok(at_server);
        }
        if let Some(durable) = known.durable {
            return Ok(of_segment(durable));
        }
        let archived = self.archived(connection, identity, size).await?;
        let lasting = slot.filter(|_| !matches!(self.options.slot, Slot::Temporary));
        // Before version 15 asking takes rights of its own, so it is done only if the answer matters.
        let asked = match &archived[..] {
            [] => true,
            some => connection.server_major()? >= 15 || some.iter().any(|archived| archived.ranges.len() > 1),
        };
        let kept = match lasting {
            Some(name) if asked => self.restart(connection, identity, name).await?.map(of_segment),
            _ => None,
        };
        let missing = archived.iter().map(|archived| match kept {
            Some(kept) if kept.timeline == archived.end.timeline => archived.first_missing(kept),
            _ => archived.end,
        });
        Ok(missing.min_by_key(|position| (position.timeline, position.lsn)).or(kept).unwrap_or(at_server))
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

    /// What there is in each required repository that has an archive.
    async fn archived(
        &self,
        connection: &mut Connection,
        identity: &Identity,
        size: SegmentSize,
    ) -> Result<Vec<Archived>> {
        self.archiver.open().await?;
        let mut history_known = None;
        let mut all = Vec::new();
        for member in self.archiver.repositories().members().iter().filter(|member| member.is_required()) {
            let repository = member.open().await?;
            let inventory = Inventory::read(repository, self.archiver.target()).await?;
            let mut clusters = inventory.clusters.into_iter();
            let Some(cluster) = clusters.find(|c| c.system_identifier == identity.system) else { continue };
            let history = match &history_known {
                Some(history) => history,
                None => history_known.insert(history(connection, identity).await?),
            };
            all.extend(self.archived_in(repository, cluster, history, identity, size).await?);
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
        let ends = cluster.timelines.into_iter().filter_map(|found| {
            // What is known by its tail alone is received again, whole.
            let end = found.ranges.last().map(|range| range.end).or_else(|| found.tail_segment?.start(size))?;
            let lsn = match history.left_at(found.timeline) {
                // Its last segment was not full, and may be known only by its tail.
                Some(left_at) => end.min(size.start_of(left_at)),
                None if found.timeline == identity.timeline => end,
                None => return None,
            };
            Some(Archived { end: WalPosition { lsn, timeline: found.timeline }, ranges: found.ranges })
        });
        let Some(archived) = ends.max_by_key(|archived| archived.end.timeline) else { return Ok(None) };
        if let Some(newest) = archived.ranges.last() {
            // The server may forget what is before it: its name is not enough.
            let archive = self.archiver.target().wal_of(identity.system);
            let file = WalFile::Segment(newest.last);
            StoredFile::find_listed(repository, &archive, file).await?.check_claim().await?;
        }
        Ok(Some(archived))
    }
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
    use crate::postgres::wal::SegmentName;

    #[test]
    fn a_hole_behind_the_slot_is_received_and_one_before_it_is_not() {
        let position = |segment: u64| WalPosition { lsn: Lsn(segment << 24), timeline: Timeline::FIRST };
        let range = |start: u32, end: u32| {
            let name = |segment| SegmentName { timeline: Timeline::FIRST, log: 0, segment };
            let segments = u64::from(end - start);
            let (start_lsn, end_lsn) = (position(start.into()).lsn, position(end.into()).lsn);
            SegmentRange { first: name(start), last: name(end - 1), segments, start: start_lsn, end: end_lsn }
        };
        let archived = Archived { end: position(30), ranges: vec![range(5, 10), range(12, 20), range(29, 30)] };
        for (kept, first) in
            [(2, 2), (5, 10), (9, 10), (10, 10), (11, 11), (15, 20), (20, 20), (29, 30), (30, 30), (40, 30)]
        {
            assert_eq!(archived.first_missing(position(kept)), position(first), "{kept}");
        }
    }
}
