//! What the records add up to: each replica's vote, its log's ends, and where each of its entries stands.
//!
//! The same function takes a change when it is made and when it is read back at start ([`Index::apply`]); so the state
//! after a restart is that of a prefix of the changes by construction. Segments are deleted oldest first, so a replay
//! may begin in the middle of a replica's history: then entries are missing that a later `Purge` covers, and
//! [`Index::check`] sees that it does.
//!
//! Pure, and without any knowledge of files, batches or time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::LogState;
use super::record::{Change, Place};
use crate::types::{LogId, ReplicaId, Vote};

/// All replicas' logs.
#[derive(Debug, Default)]
pub(super) struct Index {
    replicas: BTreeMap<ReplicaId, Replica>,
    totals: Totals,
}

/// Sums over all replicas, kept so that nothing has to walk over them.
#[derive(Debug, Default)]
struct Totals {
    /// Segment -> how many entries stand in it that are still wanted. No segment has 0.
    live: BTreeMap<u64, u64>,
    /// Memory that the payloads take that are in memory.
    cached: u64,
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) place: Place,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
    /// What stands there is not what was written.
    pub(super) is_rotten: bool,
}

/// The payload of an entry, for those changes that are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload {
    pub(super) len: u32,
    pub(super) crc: u32,
    /// See [`Slot::is_rotten`].
    pub(super) is_rotten: bool,
    /// None when it is read back at start: memory is for what is new.
    pub(super) bytes: Option<Bytes>,
}

/// A fact and the segment of the newest record that says so.
#[derive(Clone, Copy, Debug)]
struct Fact<T> {
    value: T,
    segment: u64,
}

#[derive(Debug, Default)]
struct Replica {
    vote: Option<Fact<Vote>>,
    purged: Option<Fact<LogId>>,
    committed: Option<Fact<LogId>>,
    /// Segment of the newest record of the replica.
    newest: u64,
    /// Index of the first entry; of the next one if there is none.
    first: u64,
    entries: VecDeque<Slot>,
    /// Payloads of the last entries. Memory is given back from the front only, so they are always a suffix.
    recent: VecDeque<Bytes>,
    /// Indexes at which rotten entries were found; some of them may be gone by now.
    rotten: BTreeSet<u64>,
}

impl Index {
    /// Takes a change whose record stands at `place`. An error, for people, means that the records before cannot have
    /// been followed by this one.
    pub(super) fn apply(
        &mut self,
        id: ReplicaId,
        change: &Change,
        place: Place,
        payload: Payload,
    ) -> Result<(), String> {
        let totals = &mut self.totals;
        if *change == Change::Forget {
            if let Some(mut replica) = self.replicas.remove(&id) {
                replica.keep(0, totals);
            }
            return Ok(());
        }
        let replica = self.replicas.entry(id).or_default();
        let segment = place.segment;
        replica.newest = segment;
        match *change {
            Change::Entry(entry) => {
                if entry.index < replica.next() {
                    return Err(format!("entry {entry} of replica {id} follows one of index {}", replica.next() - 1));
                }
                if entry.index > replica.next() {
                    // Those between stood in segments that are gone, and were purged; so were those before.
                    replica.keep(0, totals);
                    replica.first = entry.index;
                }
                let Payload { len: payload_len, crc: payload_crc, is_rotten, .. } = payload;
                replica.push(Slot { term: entry.term, place, payload_len, payload_crc, is_rotten }, totals);
                if is_rotten {
                    replica.rotten.insert(entry.index);
                }
                if let Some(bytes) = payload.bytes {
                    totals.cached += memory_of(&bytes);
                    replica.recent.push_back(bytes);
                }
            }
            Change::Truncate { from } => {
                let kept = from.saturating_sub(replica.first);
                if kept < replica.entries.len() as u64 {
                    replica.keep(kept as usize, totals);
                }
                // In the middle of a history, those before the first one that was found may go too.
                let begins = replica.begins();
                replica.first = replica.first.min(from.max(begins));
            }
            Change::Purge(upto) => {
                replica.drop_upto(upto.index, totals);
                if replica.purged.is_none_or(|purged| purged.value.index <= upto.index) {
                    replica.purged = Some(Fact { value: upto, segment });
                }
            }
            Change::Vote(value) => replica.vote = Some(Fact { value, segment }),
            Change::Committed(value) => replica.committed = Some(Fact { value, segment }),
            Change::Alive | Change::Forget => {}
        }
        Ok(())
    }

    /// Checks, at the end of a replay, that nothing is missing: each log begins right after what was purged. The error
    /// is the place of the first entry (if there is one) and, for people, what is missing.
    pub(super) fn check(&self) -> Result<(), (Option<Place>, String)> {
        for (id, replica) in &self.replicas {
            let begins = replica.begins();
            if replica.first != begins {
                let place = replica.entries.front().map(|slot| slot.place);
                return Err((place, format!("entries {begins} to {} of replica {id} are missing", replica.first - 1)));
            }
        }
        Ok(())
    }

    /// The newest segment that can be deleted with all before it: no wanted entry stands in them. `current` is the one
    /// that is being written.
    pub(super) fn deletable(&self, current: u64) -> u64 {
        self.totals.live.first_key_value().map_or(current, |(oldest, _)| current.min(*oldest)) - 1
    }

    /// What must be said again before the segments up to `upto` are deleted, because nothing later says it.
    pub(super) fn restate(&self, upto: u64) -> Vec<(ReplicaId, Change)> {
        let mut changes = Vec::new();
        for (&id, replica) in &self.replicas {
            if let Some(purged) = replica.purged.filter(|fact| fact.segment <= upto) {
                changes.push((id, Change::Purge(purged.value)));
            }
            if let Some(vote) = replica.vote.filter(|fact| fact.segment <= upto) {
                changes.push((id, Change::Vote(vote.value)));
            }
            if let Some(committed) = replica.committed.filter(|fact| fact.segment <= upto) {
                changes.push((id, Change::Committed(committed.value)));
            }
            if replica.newest <= upto && changes.last().is_none_or(|(last, _)| *last != id) {
                changes.push((id, Change::Alive));
            }
        }
        changes
    }

    /// The replicas that the log knows of.
    pub(super) fn replicas(&self) -> Vec<ReplicaId> {
        self.replicas.keys().copied().collect()
    }

    /// What the log says of a replica.
    pub(super) fn state(&self, id: ReplicaId) -> LogState {
        self.replicas.get(&id).map_or(LogState::default(), |replica| LogState {
            purged: replica.purged.map(|fact| fact.value),
            last: replica.last(),
            vote: replica.vote.map(|fact| fact.value),
            committed: replica.committed.map(|fact| fact.value),
        })
    }

    /// The index that the next entry of a replica gets.
    pub(super) fn next(&self, id: ReplicaId) -> u64 {
        self.replicas.get(&id).map_or(0, Replica::next)
    }

    /// The entry at `index`, or the purged one of that index.
    pub(super) fn log_id(&self, id: ReplicaId, index: u64) -> Option<LogId> {
        let replica = self.replicas.get(&id)?;
        match replica.slot(index) {
            Some(slot) => Some(LogId { term: slot.term, index }),
            None => replica.purged.map(|fact| fact.value).filter(|purged| purged.index == index),
        }
    }

    /// The entry at `index`: where it stands, and its payload if it is in memory.
    pub(super) fn entry(&self, id: ReplicaId, index: u64) -> Option<(Slot, Option<Bytes>)> {
        let replica = self.replicas.get(&id)?;
        let slot = replica.slot(index)?;
        let uncached = replica.first + (replica.entries.len() - replica.recent.len()) as u64;
        let bytes = index.checked_sub(uncached).map(|at| replica.recent[at as usize].clone());
        Some((*slot, bytes))
    }

    /// The newest entry that is known not to be as it was written, and where it stands.
    pub(super) fn rotten(&self, id: ReplicaId) -> Option<(LogId, Place)> {
        let replica = self.replicas.get(&id)?;
        let newest_first = replica.rotten.iter().rev();
        let mut rotten =
            newest_first.filter_map(|index| Some((*index, replica.slot(*index).filter(|slot| slot.is_rotten)?)));
        rotten.next().map(|(index, slot)| (LogId { term: slot.term, index }, slot.place))
    }

    /// The entry was read, and is not as it was written.
    pub(super) fn found_rotten(&mut self, id: ReplicaId, entry: LogId) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let at = entry.index.checked_sub(replica.first).and_then(|at| usize::try_from(at).ok());
        let slot = at.and_then(|at| replica.entries.get_mut(at));
        if let Some(slot) = slot.filter(|slot| slot.term == entry.term) {
            slot.is_rotten = true;
            replica.rotten.insert(entry.index);
        }
    }

    /// Whether a replica has no entries.
    pub(super) fn is_empty(&self, id: ReplicaId) -> bool {
        self.replicas.get(&id).is_none_or(|replica| replica.entries.is_empty())
    }

    /// The first index of a replica's log.
    pub(super) fn first(&self, id: ReplicaId) -> u64 {
        self.replicas.get(&id).map_or(0, |replica| replica.first)
    }

    /// Gives memory back until payloads take at most `limit` bytes, as far as they can be read from files: those that
    /// stand before `written`. Each replica gives the older half of what it has, again and again: that needs no order
    /// of use, and costs little for each payload given back.
    pub(super) fn evict(&mut self, limit: u64, written: Place) {
        while self.totals.cached > limit {
            let before = self.totals.cached;
            for replica in self.replicas.values_mut() {
                for _ in 0..replica.recent.len().div_ceil(2) {
                    let oldest = replica.entries.len() - replica.recent.len();
                    if replica.entries[oldest].place >= written {
                        break;
                    }
                    let bytes = replica.recent.pop_front().expect("counted");
                    self.totals.cached -= memory_of(&bytes);
                }
            }
            if self.totals.cached == before {
                break;
            }
        }
    }
}

impl Replica {
    /// The first index that is not purged.
    fn begins(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.value.index + 1)
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.entries.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn last(&self) -> Option<LogId> {
        match self.entries.back() {
            Some(slot) => Some(LogId { term: slot.term, index: self.next() - 1 }),
            None => self.purged.map(|fact| fact.value),
        }
    }

    fn push(&mut self, slot: Slot, totals: &mut Totals) {
        self.entries.push_back(slot);
        *totals.live.entry(slot.place.segment).or_default() += 1;
    }

    /// Keeps the first `kept` entries.
    fn keep(&mut self, kept: usize, totals: &mut Totals) {
        let uncached = self.entries.len() - self.recent.len();
        for slot in self.entries.drain(kept..) {
            totals.release(slot);
        }
        for bytes in self.recent.drain(kept.saturating_sub(uncached)..) {
            totals.cached -= memory_of(&bytes);
        }
    }

    /// Drops the entries up to index `upto`: the log begins after it.
    fn drop_upto(&mut self, upto: u64, totals: &mut Totals) {
        while self.first <= upto {
            let Some(slot) = self.entries.pop_front() else {
                self.first = upto + 1;
                break;
            };
            totals.release(slot);
            self.first += 1;
            if self.recent.len() > self.entries.len() {
                let bytes = self.recent.pop_front().expect("longer than another one");
                totals.cached -= memory_of(&bytes);
            }
        }
    }
}

impl Totals {
    fn release(&mut self, slot: Slot) {
        let count = self.live.get_mut(&slot.place.segment).expect("counted when the entry was added");
        *count -= 1;
        if *count == 0 {
            self.live.remove(&slot.place.segment);
        }
    }
}

fn memory_of(payload: &Bytes) -> u64 {
    (payload.len() + size_of::<Bytes>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: ReplicaId = ReplicaId(1);

    fn id(index: u64) -> LogId {
        LogId { term: 1, index }
    }

    /// Applies changes, each in the segment that stands with it.
    fn index(changes: &[(u64, Change)]) -> Index {
        let mut index = Index::default();
        for (offset, (segment, change)) in changes.iter().enumerate() {
            let payload = Payload { len: 10, crc: 0, is_rotten: false, bytes: Some(Bytes::from_static(&[7; 10])) };
            index.apply(R, change, Place { segment: *segment, offset: offset as u64 }, payload).unwrap();
        }
        index
    }

    #[test]
    fn the_oldest_wanted_entry_holds_its_segment_and_all_after_it() {
        use Change::{Entry, Purge};
        let entries = [(1, Entry(id(0))), (2, Entry(id(1))), (3, Entry(id(2)))];
        assert_eq!(index(&entries).deletable(4), 0);
        assert_eq!(index(&[&entries[..], &[(4, Purge(id(0)))]].concat()).deletable(4), 1);
        assert_eq!(index(&[&entries[..], &[(4, Purge(id(2)))]].concat()).deletable(4), 3);
        assert_eq!(index(&[&entries[..], &[(4, Change::Truncate { from: 0 })]].concat()).deletable(4), 3);
        assert_eq!(index(&[&entries[..], &[(4, Change::Forget)]].concat()).deletable(4), 3);
    }

    #[test]
    fn what_only_deleted_segments_say_is_said_again() {
        let vote = Vote { term: 1, voted_for: R, committed: true };
        let index = index(&[(1, Change::Vote(vote)), (1, Change::Committed(id(3))), (2, Change::Purge(id(3)))]);
        let said = |upto| index.restate(upto).into_iter().map(|(_, change)| change).collect::<Vec<_>>();
        assert_eq!(said(0), []);
        assert_eq!(said(1), [Change::Vote(vote), Change::Committed(id(3))]);
        assert_eq!(said(2), [Change::Purge(id(3)), Change::Vote(vote), Change::Committed(id(3))]);
    }

    #[test]
    fn a_replica_of_which_nothing_is_left_is_still_there() {
        let index = index(&[(1, Change::Entry(id(0))), (2, Change::Truncate { from: 0 })]);
        assert_eq!(index.restate(1), []);
        assert_eq!(index.restate(2), [(R, Change::Alive)]);
    }

    #[test]
    fn a_replay_may_begin_in_the_middle_if_the_rest_was_purged() {
        use Change::{Entry, Purge};
        let middle = [(5, Purge(id(2))), (5, Entry(id(7))), (5, Entry(id(8)))];
        let (place, what) = index(&middle).check().unwrap_err();
        assert_eq!(place, Some(Place { segment: 5, offset: 1 }));
        assert_eq!(what, "entries 3 to 6 of replica r1 are missing");
        let covered = index(&[&middle[..], &[(5, Purge(id(6)))]].concat());
        assert_eq!(covered.check(), Ok(()));
        assert_eq!(covered.state(R).last, Some(id(8)));
    }

    /// The entries up to 6 stood in segments that are gone; then a snapshot replaced the log from 4 on.
    #[test]
    fn a_replay_may_begin_with_entries_that_were_truncated() {
        use Change::{Entry, Purge, Truncate};
        let replaced = [(5, Entry(id(7))), (5, Truncate { from: 4 }), (5, Purge(id(4)))];
        let replaced = index(&replaced);
        assert_eq!((replaced.check(), replaced.next(R)), (Ok(()), 5));
        let continued = [(5, Purge(id(1))), (5, Entry(id(7))), (5, Truncate { from: 4 }), (5, Entry(id(4)))];
        let continued = index(&continued);
        assert_eq!(continued.check().unwrap_err().1, "entries 2 to 3 of replica r1 are missing");
    }

    #[test]
    fn an_entry_cannot_follow_a_later_one() {
        let mut index = index(&[(1, Change::Entry(id(0))), (1, Change::Entry(id(1)))]);
        let again = index.apply(R, &Change::Entry(id(1)), Place::default(), Payload::default());
        assert_eq!(again, Err("entry 1.1 of replica r1 follows one of index 1".into()));
    }

    #[test]
    fn memory_holds_the_newest_payloads_and_those_that_are_in_no_file() {
        let entries: Vec<_> = (0..8).map(|at| (1, Change::Entry(id(at)))).collect();
        let one = memory_of(&Bytes::from_static(&[7; 10]));
        let in_memory =
            |index: &Index| (0..8).filter(|at| index.entry(R, *at).unwrap().1.is_some()).collect::<Vec<_>>();
        let mut filled = index(&entries);
        filled.evict(8 * one, Place { segment: 2, offset: 0 });
        assert_eq!(in_memory(&filled).len(), 8);
        filled.evict(4 * one, Place { segment: 2, offset: 0 });
        assert_eq!(in_memory(&filled), [4, 5, 6, 7]);
        filled.evict(0, Place { segment: 1, offset: 6 });
        assert_eq!(in_memory(&filled), [6, 7]);
        filled.apply(R, &Change::Truncate { from: 7 }, Place::default(), Payload::default()).unwrap();
        filled.apply(R, &Change::Purge(id(5)), Place::default(), Payload::default()).unwrap();
        assert_eq!((filled.totals.cached, filled.entry(R, 6).unwrap().1.is_some()), (one, true));
        filled.apply(R, &Change::Purge(id(9)), Place::default(), Payload::default()).unwrap();
        assert_eq!((filled.totals.cached, filled.totals.live.len(), filled.next(R)), (0, 0, 10));
    }
}
