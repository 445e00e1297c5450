//! Oracle 5: raft keeps its promises, judged from the logs' own events and not from what raft says of itself.
//!
//! Checks: one leader a term; a replica's votes never contradict each other; terms in a log only grow and logs that
//! agree on an entry agree on all before it; a new leader has every committed entry; what is committed is durable on a
//! quorum of the members (at that entry, or as its leader is changing them), and never changes or goes away; entries are applied in order,
//! without a gap, only when committed; purged <= flushed <= applied <= committed; what a replica had counts no longer when it
//! is dropped, and of a table that stays only one is dropped that has no vote any more, by a committed change of members.
//!
//! Does not check: that raft makes progress (liveness does), that reads are linearizable (the client oracle does), and
//! what an entry does to the state (the replica oracle does). After a crash it does not know which unsynced entries
//! survived: it takes the durable ones for certain and learns of the others when they are overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::event::Event;
use engine::types::{LogId, NodeId, RegionId, ReplicaId, TableId, Vote};

use super::{Oracle, Violation};

pub(super) const NAME: &str = "raft";

/// See the module.
#[derive(Default)]
pub struct RaftOracle {
    replicas: BTreeMap<ReplicaId, Replica>,
    groups: BTreeMap<ReplicaId, Group>,
    /// The first replica of its group that was seen: the key in `groups`.
    group_of: BTreeMap<ReplicaId, ReplicaId>,
    /// The same by region.
    first_of: BTreeMap<RegionId, ReplicaId>,
    /// The tables of the catalog.
    tables: BTreeSet<TableId>,
    evaluations: u64,
}

/// What is known of one replica's log.
#[derive(Default)]
struct Replica {
    node: NodeId,
    vote: Option<Vote>,
    /// Term and payload digest by index.
    log: BTreeMap<u64, Stored>,
    /// Everything up to here survives a power loss.
    durable: Option<LogId>,
    purged: Option<LogId>,
    flushed: Option<LogId>,
    committed: Option<LogId>,
    applied: Option<LogId>,
    /// After a crash entries behind `durable` may be there or not.
    unsure: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stored {
    term: u64,
    digest: u64,
}

/// What is known of a group.
#[derive(Default)]
struct Group {
    leaders: BTreeMap<u64, ReplicaId>,
    /// By (index, term): digest of the entry and term of the one before it.
    entries: BTreeMap<(u64, u64), (u64, Option<u64>)>,
    /// Committed entries by index.
    committed: BTreeMap<u64, u64>,
    /// Voters by the index of the entry that says so, with its term.
    memberships: BTreeMap<(u64, u64), Vec<Vec<ReplicaId>>>,
}

impl Oracle for RaftOracle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn on_event(&mut self, _at: Duration, node: NodeId, event: &Event) -> Result<(), Violation> {
        match event {
            Event::VoteSaved { replica, vote } => self.voted(node, *replica, *vote),
            Event::MembershipEffective { replica, log_id, voters } => {
                self.membership(*replica, *log_id, voters);
                Ok(())
            }
            Event::Appended { replica, entries } => {
                entries.iter().try_for_each(|(id, digest)| self.appended(node, *replica, *id, *digest))
            }
            Event::Durable { replica, upto } => {
                let replica = self.replica(node, *replica);
                replica.durable = replica.durable.max(Some(*upto));
                Ok(())
            }
            // What was appended and not durable when the log was closed may be there or not.
            Event::LogOpened { .. } => {
                self.on_crash(node, false);
                Ok(())
            }
            Event::Truncated { replica, last } => self.truncated(node, *replica, *last),
            Event::Purged { replica, upto } => self.purged(node, *replica, *upto),
            Event::Committed { replica, upto } => self.committed(node, *replica, *upto),
            Event::BecameLeader { region, replica, term } => self.leads(*region, *replica, *term),
            Event::Applied { replica, log_id, .. } => self.applied(node, *replica, *log_id),
            Event::ReplicaOpened { region, replica, flushed, .. } => {
                // One that joins later is in no membership yet when it gets its first entries.
                let first = *self.first_of.entry(*region).or_insert(*replica);
                let first = *self.group_of.entry(first).or_insert(first);
                self.group_of.entry(*replica).or_insert(first);
                self.opened(node, *replica, *flushed)
            }
            Event::FlushFinished { replica, upto, .. } => self.flushed(node, *replica, *upto),
            Event::SnapshotInstalled { replica, last, .. } => self.installed(node, *replica, *last),
            Event::ReplicaDropping { replica, .. } => self.dropped(node, *replica),
            Event::ReplicaMended { replica, last, .. } => self.mended(node, *replica, *last),
            _ => Ok(()),
        }
    }

    fn on_crash(&mut self, node: NodeId, _power: bool) {
        for replica in self.replicas.values_mut().filter(|replica| replica.node == node) {
            replica.unsure = true;
            replica.applied = None;
            replica.committed = None;
        }
    }

    fn evaluations(&self) -> u64 {
        self.evaluations
    }
}

impl RaftOracle {
    /// These tables are in the catalog now. Of others replicas are dropped as they are.
    pub fn stand(&mut self, tables: BTreeSet<TableId>) {
        self.tables = tables;
    }

    fn replica(&mut self, node: NodeId, id: ReplicaId) -> &mut Replica {
        let replica = self.replicas.entry(id).or_default();
        replica.node = node;
        replica
    }

    fn group(&mut self, replica: ReplicaId) -> &mut Group {
        let first = *self.group_of.entry(replica).or_insert(replica);
        self.groups.entry(first).or_default()
    }

    fn membership(&mut self, replica: ReplicaId, id: LogId, voters: &[Vec<ReplicaId>]) {
        let members = || voters.iter().flatten();
        let first = members().chain([&replica]).find_map(|member| self.group_of.get(member).copied());
        let first = first.unwrap_or(replica);
        for member in members().chain([&replica]) {
            self.group_of.entry(*member).or_insert(first);
        }
        self.group(replica).memberships.insert((id.index, id.term), voters.to_vec());
    }

    fn voted(&mut self, node: NodeId, id: ReplicaId, vote: Vote) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        if let Some(before) = replica.vote {
            // To follow the winner of the term is no second vote in it.
            let contradicts = vote.term < before.term
                || vote.term == before.term
                    && (before.committed && !vote.committed
                        || vote.voted_for != before.voted_for && (before.committed || !vote.committed));
            if contradicts {
                return violation(
                    "a vote contradicts an earlier one",
                    vec![format!("replica {id} on {node} promised {before}"), format!("and later {vote}")],
                );
            }
        }
        replica.vote = Some(vote);
        Ok(())
    }

    fn appended(&mut self, node: NodeId, id: ReplicaId, entry: LogId, digest: u64) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        let last = replica.log.last_key_value().map(|(index, stored)| LogId { term: stored.term, index: *index });
        let last = last.max(replica.purged);
        let follows = match last {
            None => true,
            Some(last) => entry.index == last.index + 1,
        };
        if !follows {
            let survives = replica.durable.is_some_and(|durable| durable.index >= entry.index);
            if !replica.unsure || survives || entry.index > last.map_or(0, |last| last.index + 1) {
                return violation(
                    "an entry does not follow the last one",
                    vec![
                        format!("replica {id} on {node} has entries up to {}", shown(last)),
                        format!("and appended {entry} without truncating"),
                    ],
                );
            }
            replica.log.split_off(&entry.index);
        }
        let before = replica.log.get(&entry.index.wrapping_sub(1)).map(|stored| stored.term);
        let before =
            before.or(replica.purged.filter(|purged| purged.index + 1 == entry.index).map(|purged| purged.term));
        if before.is_some_and(|before| before > entry.term) {
            return violation(
                "terms in a log go back",
                vec![
                    format!("replica {id} on {node} appended {entry}"),
                    format!("behind an entry of term {}", before.unwrap_or_default()),
                ],
            );
        }
        replica.log.insert(entry.index, Stored { term: entry.term, digest });
        let group = self.group(id);
        let known = *group.entries.entry((entry.index, entry.term)).or_insert((digest, before));
        if known.0 != digest || before.is_some() && known.1.is_some() && known.1 != before {
            return violation(
                "two logs disagree on an entry",
                vec![
                    format!("entry {entry} has digest {:016x} behind term {:?}", known.0, known.1),
                    format!("replica {id} on {node} has digest {digest:016x} behind term {before:?}"),
                ],
            );
        }
        Ok(())
    }

    fn truncated(&mut self, node: NodeId, id: ReplicaId, last: Option<LogId>) -> Result<(), Violation> {
        self.evaluations += 1;
        let from = last.map_or(0, |last| last.index + 1);
        let replica = self.replica(node, id);
        let cut = replica.log.split_off(&from);
        replica.durable = replica.durable.min(last);
        let group = self.group(id);
        for (index, stored) in cut {
            if group.committed.get(&index) == Some(&stored.term) {
                return violation(
                    "a committed entry was truncated",
                    vec![
                        format!("replica {id} on {node} cut its log behind {}", shown(last)),
                        format!("entry {}.{index} was committed", stored.term),
                    ],
                );
            }
        }
        Ok(())
    }

    fn purged(&mut self, node: NodeId, id: ReplicaId, upto: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        if replica.flushed < Some(upto) {
            return violation(
                "the log was purged before its entries were in files",
                vec![
                    format!("replica {id} on {node} purged up to {upto}"),
                    format!("and has flushed up to {}", shown(replica.flushed)),
                ],
            );
        }
        replica.purged = replica.purged.max(Some(upto));
        replica.log = replica.log.split_off(&(upto.index + 1));
        Ok(())
    }

    fn committed(&mut self, node: NodeId, id: ReplicaId, upto: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        if replica.committed > Some(upto) {
            return violation(
                "the committed index went back",
                vec![
                    format!("replica {id} on {node} knew {} as committed", shown(replica.committed)),
                    format!("and later {upto}"),
                ],
            );
        }
        replica.committed = Some(upto);
        let newest = self.group(id).committed.last_key_value().map(|(index, _)| *index);
        if newest.is_some_and(|newest| newest >= upto.index) {
            let known = self.group(id).committed.get(&upto.index).copied();
            if known.is_some_and(|known| known != upto.term) {
                return violation(
                    "two entries were committed at one index",
                    vec![
                        format!("entry {}.{} was committed", known.unwrap_or_default(), upto.index),
                        format!("replica {id} on {node} takes {upto} for committed"),
                    ],
                );
            }
            return Ok(());
        }
        self.check_quorum(id, upto)?;
        // What stands before it in a log that has it is committed with it.
        let log = &self.replicas[&id].log;
        let mut newly: Vec<(u64, u64)> =
            log.range(..=upto.index).map(|(index, stored)| (*index, stored.term)).collect();
        newly.push((upto.index, upto.term));
        let group = self.group(id);
        for (index, term) in newly {
            if newest.is_none_or(|newest| index > newest) {
                group.committed.insert(index, term);
            }
        }
        Ok(())
    }

    /// A change of members counts for its leader from the moment it stands in the log, for entries before it too: a quorum of
    /// the membership at the entry will do, and one of the newest membership in the log of who says so, or leads.
    fn check_quorum(&mut self, id: ReplicaId, upto: LogId) -> Result<(), Violation> {
        let first = *self.group_of.entry(id).or_insert(id);
        let group = self.groups.entry(first).or_default();
        // In another leader's log something else may have been there.
        let newest = |replica: ReplicaId, last: u64| {
            let log = self.replicas.get(&replica).map(|replica| &replica.log);
            let is_there = |(index, term): &(u64, u64)| {
                let here = log.and_then(|log| log.get(index)).map(|stored| stored.term);
                here.or_else(|| group.committed.get(index).copied()) == Some(*term)
            };
            let mut known = group.memberships.range(..=(last, u64::MAX)).rev();
            known.find(|(id, _)| is_there(id)).map(|(_, voters)| voters)
        };
        let Some(at_entry) = newest(id, upto.index) else {
            return violation("an entry is committed in a group without members", vec![format!("entry {upto}")]);
        };
        let has = |voter: &&ReplicaId| {
            self.replicas.get(voter).is_some_and(|replica| {
                let stored = replica.log.get(&upto.index).is_some_and(|stored| stored.term == upto.term);
                let durable = replica.durable.is_some_and(|durable| durable.index >= upto.index);
                stored && durable || replica.flushed >= Some(upto)
            })
        };
        let lacks = |set: &&Vec<ReplicaId>| set.iter().filter(has).count() * 2 <= set.len();
        let leader = group.leaders.last_key_value().map_or(id, |(_, leader)| *leader);
        let later = [id, leader].into_iter().filter_map(|replica| newest(replica, u64::MAX));
        match at_entry.iter().find(lacks) {
            Some(set) if !later.into_iter().any(|voters| voters.iter().find(lacks).is_none()) => violation(
                "an entry is committed without a durable quorum",
                vec![
                    format!("entry {upto} is taken for committed by replica {id}"),
                    format!(
                        "of the voters {set:?} only {:?} have it durably",
                        set.iter().filter(has).collect::<Vec<_>>()
                    ),
                ],
            ),
            _ => Ok(()),
        }
    }

    fn leads(&mut self, region: RegionId, id: ReplicaId, term: u64) -> Result<(), Violation> {
        self.evaluations += 1;
        let group = self.group(id);
        let leader = *group.leaders.entry(term).or_insert(id);
        if leader != id {
            return violation(
                "two leaders in one term",
                vec![format!("region {region}, term {term}: {leader} and {id}")],
            );
        }
        let newest = group.committed.last_key_value().map(|(index, term)| LogId { term: *term, index: *index });
        let Some(newest) = newest else { return Ok(()) };
        let replica = self.replicas.entry(id).or_default();
        let has = replica.log.get(&newest.index).is_some_and(|stored| stored.term == newest.term)
            || replica.purged >= Some(newest)
            || replica.flushed >= Some(newest);
        if has {
            return Ok(());
        }
        violation(
            "a leader lacks a committed entry",
            vec![
                format!("region {region}: {id} leads term {term}"),
                format!("and lacks entry {newest}, which was committed"),
            ],
        )
    }

    fn applied(&mut self, node: NodeId, id: ReplicaId, entry: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let committed = self.group(id).committed.get(&entry.index).copied();
        let replica = self.replica(node, id);
        if committed.is_some_and(|term| term != entry.term) || replica.committed.is_some_and(|upto| upto < entry) {
            return violation(
                "an entry was applied that is not committed",
                vec![
                    format!("replica {id} on {node} applied {entry}"),
                    format!("it knows {} as committed", shown(replica.committed)),
                ],
            );
        }
        if let Some(before) = replica.applied
            && before.index + 1 != entry.index
        {
            return violation(
                "entries were applied with a gap or out of order",
                vec![format!("replica {id} on {node} applied {entry} behind {before}")],
            );
        }
        replica.applied = Some(entry);
        Ok(())
    }

    fn opened(&mut self, node: NodeId, id: ReplicaId, flushed: Option<LogId>) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        if flushed < replica.flushed || flushed < replica.purged {
            return violation(
                "what was flushed is gone",
                vec![
                    format!("replica {id} on {node} had flushed up to {}", shown(replica.flushed)),
                    format!("purged its log up to {}", shown(replica.purged)),
                    format!("and opens with {}", shown(flushed)),
                ],
            );
        }
        // A manifest edit may be durable although the flush never said so.
        replica.flushed = flushed;
        replica.applied = flushed;
        Ok(())
    }

    fn flushed(&mut self, node: NodeId, id: ReplicaId, upto: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let replica = self.replica(node, id);
        if replica.flushed > Some(upto) || replica.applied < Some(upto) {
            return violation(
                "a flush covers what was not applied",
                vec![
                    format!("replica {id} on {node} flushed up to {upto}"),
                    format!(
                        "applied up to {}, flushed before up to {}",
                        shown(replica.applied),
                        shown(replica.flushed)
                    ),
                ],
            );
        }
        replica.flushed = Some(upto);
        Ok(())
    }

    /// Its log and its files go. Whoever still counts on its vote could decide with what it had and has no longer.
    fn dropped(&mut self, node: NodeId, id: ReplicaId) -> Result<(), Violation> {
        self.evaluations += 1;
        self.replicas.remove(&id);
        let first = self.group_of.get(&id).copied();
        let region = self.first_of.iter().find(|(_, one)| self.group_of.get(*one).copied() == first);
        let Some(region) = region.map(|(region, _)| *region).filter(|region| self.tables.contains(&region.table()))
        else {
            return Ok(());
        };
        let group = self.group(id);
        let is_committed = |((index, term), _): &(&(u64, u64), _)| group.committed.get(index) == Some(term);
        let newest = group.memberships.iter().rev().find(is_committed);
        match newest {
            Some((at, voters)) if voters.iter().flatten().any(|voter| *voter == id) => violation(
                "a replica with a vote was dropped",
                vec![
                    format!("replica {id} of region {region} was dropped on {node}"),
                    format!("the voters are {voters:?}, by entry {}.{}", at.1, at.0),
                ],
            ),
            _ => Ok(()),
        }
    }

    fn installed(&mut self, node: NodeId, id: ReplicaId, last: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let committed = self.group(id).committed.get(&last.index).copied();
        let replica = self.replica(node, id);
        if replica.applied > Some(last) {
            return violation(
                "a snapshot replaced a newer state",
                vec![
                    format!("replica {id} on {node} had applied {}", shown(replica.applied)),
                    format!("and installed a snapshot up to {last}"),
                ],
            );
        }
        replica.flushed = replica.flushed.max(Some(last));
        replica.applied = Some(last);
        self.has_committed(id, committed, last)
    }

    /// It may have applied more: that is in its log, and applied again.
    fn mended(&mut self, node: NodeId, id: ReplicaId, last: LogId) -> Result<(), Violation> {
        self.evaluations += 1;
        let committed = self.group(id).committed.get(&last.index).copied();
        let replica = self.replica(node, id);
        if replica.flushed > Some(last) {
            return violation(
                "a replica was mended with an older state",
                vec![
                    format!("replica {id} on {node} had flushed up to {}", shown(replica.flushed)),
                    format!("and has files up to {last}"),
                ],
            );
        }
        replica.flushed = Some(last);
        replica.applied = None;
        self.has_committed(id, committed, last)
    }

    fn has_committed(&self, id: ReplicaId, committed: Option<u64>, last: LogId) -> Result<(), Violation> {
        if committed.is_some_and(|term| term != last.term) {
            return violation("a snapshot contains what was not committed", vec![format!("replica {id}: {last}")]);
        }
        Ok(())
    }
}

fn shown(id: Option<LogId>) -> String {
    id.map_or_else(|| "nothing".to_string(), |id| id.to_string())
}

fn violation(signature: &str, evidence: Vec<String>) -> Result<(), Violation> {
    Err(Violation { oracle: NAME, signature: signature.to_string(), evidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ReplicaId = ReplicaId(1);
    const B: ReplicaId = ReplicaId(2);
    const C: ReplicaId = ReplicaId(3);

    fn id(term: u64, index: u64) -> LogId {
        LogId { term, index }
    }

    struct Watched(RaftOracle);

    impl Watched {
        /// A group of three whose first entry is the membership, durable on all and committed.
        fn formed() -> Watched {
            let mut watched = Watched(RaftOracle::default());
            for replica in [A, B, C] {
                watched.fine(Event::MembershipEffective { replica, log_id: id(0, 0), voters: vec![vec![A, B, C]] });
                watched.append(replica, id(0, 0)).unwrap();
                watched.fine(Event::Durable { replica, upto: id(0, 0) });
            }
            watched.fine(Event::Committed { replica: A, upto: id(0, 0) });
            watched
        }

        fn hear(&mut self, event: Event) -> Result<(), String> {
            let node = match &event {
                Event::VoteSaved { replica, .. } | Event::Appended { replica, .. } => NodeId(replica.0),
                _ => NodeId(1),
            };
            self.0.on_event(Duration::ZERO, node, &event).map_err(|violation| violation.signature)
        }

        fn fine(&mut self, event: Event) {
            self.hear(event).unwrap();
        }

        /// These make the entry durable, and A takes it for committed.
        fn commit(&mut self, replicas: &[ReplicaId], entry: LogId) -> Result<(), String> {
            for replica in replicas.iter().copied() {
                self.append(replica, entry).unwrap();
                self.fine(Event::Durable { replica, upto: entry });
            }
            self.hear(Event::Committed { replica: A, upto: entry })
        }

        fn append(&mut self, replica: ReplicaId, entry: LogId) -> Result<(), String> {
            self.hear(Event::Appended { replica, entries: vec![(entry, entry.index * 7)] })
        }
    }

    #[test]
    fn two_leaders_in_one_term_are_seen() {
        let mut watched = Watched::formed();
        watched.fine(Event::BecameLeader { region: RegionId::META, replica: A, term: 1 });
        let err = watched.hear(Event::BecameLeader { region: RegionId::META, replica: B, term: 1 });
        assert_eq!(err.unwrap_err(), "two leaders in one term");
    }

    #[test]
    fn a_second_vote_in_a_term_is_seen() {
        let mut watched = Watched::formed();
        watched.fine(Event::VoteSaved { replica: A, vote: Vote { term: 2, voted_for: A, committed: false } });
        let err = watched.hear(Event::VoteSaved { replica: A, vote: Vote { term: 2, voted_for: B, committed: false } });
        assert_eq!(err.unwrap_err(), "a vote contradicts an earlier one");
    }

    #[test]
    fn commit_needs_a_durable_quorum() {
        let mut watched = Watched::formed();
        for replica in [A, B] {
            watched.append(replica, id(1, 1)).unwrap();
        }
        watched.fine(Event::Durable { replica: A, upto: id(1, 1) });
        let err = watched.hear(Event::Committed { replica: A, upto: id(1, 1) });
        assert_eq!(err.unwrap_err(), "an entry is committed without a durable quorum");
        let mut watched = Watched::formed();
        for replica in [A, B] {
            watched.append(replica, id(1, 1)).unwrap();
            watched.fine(Event::Durable { replica, upto: id(1, 1) });
        }
        watched.fine(Event::Committed { replica: A, upto: id(1, 1) });
        let err = watched.hear(Event::Truncated { replica: B, last: Some(id(0, 0)) });
        assert_eq!(err.unwrap_err(), "a committed entry was truncated");
    }

    #[test]
    fn while_members_change_commit_needs_both_quorums_and_afterwards_the_new_one() {
        const D: ReplicaId = ReplicaId(4);
        let mut watched = Watched::formed();
        let opened = |region, replica| Event::ReplicaOpened {
            region,
            replica,
            flushed: None,
            flushed_sequence: engine::types::Sequence(0),
        };
        let region = RegionId::new(engine::types::TableId(1), 0);
        watched.fine(opened(region, A));
        watched.fine(opened(region, D));
        watched.commit(&[D], id(0, 0)).unwrap();
        let joint =
            Event::MembershipEffective { replica: A, log_id: id(1, 1), voters: vec![vec![A, B, C], vec![A, B, D]] };
        watched.fine(joint);
        assert_eq!(watched.commit(&[A, C], id(1, 1)).unwrap_err(), "an entry is committed without a durable quorum");
        watched.commit(&[D], id(1, 1)).unwrap();
        // A change in the log of somebody who led once is not in force.
        watched.fine(Event::MembershipEffective { replica: C, log_id: id(1, 2), voters: vec![vec![C]] });
        assert_eq!(watched.commit(&[A, D], id(2, 2)).unwrap_err(), "an entry is committed without a durable quorum");
        // The next change counts from the moment it stands in the leader's log, for what is before it too.
        watched.fine(Event::MembershipEffective { replica: A, log_id: id(2, 3), voters: vec![vec![A, B, D]] });
        watched.append(A, id(2, 3)).unwrap();
        watched.commit(&[], id(2, 2)).unwrap();
        watched.fine(Event::Durable { replica: A, upto: id(2, 3) });
        assert_eq!(watched.commit(&[], id(2, 3)).unwrap_err(), "an entry is committed without a durable quorum");
        watched.commit(&[D], id(2, 3)).unwrap();
    }

    #[test]
    fn who_is_dropped_counts_no_longer_and_has_no_vote() {
        const D: ReplicaId = ReplicaId(4);
        let table = engine::types::TableId(1);
        let region = RegionId::new(table, 0);
        let dropping = |replica| Event::ReplicaDropping { region, replica };
        let opened = |replica| Event::ReplicaOpened {
            region,
            replica,
            flushed: None,
            flushed_sequence: engine::types::Sequence(0),
        };
        let formed = || {
            let mut watched = Watched::formed();
            [A, B, C].into_iter().for_each(|replica| watched.fine(opened(replica)));
            watched.0.stand([table].into());
            watched
        };
        assert_eq!(formed().hear(dropping(C)).unwrap_err(), "a replica with a vote was dropped");
        // With its table it may go.
        let mut watched = formed();
        watched.0.stand([].into());
        watched.fine(dropping(C));

        // The change that takes its vote stands in a log: that is not enough.
        let changed = |mut watched: Watched| {
            watched.fine(opened(D));
            watched.commit(&[D], id(0, 0)).unwrap();
            let voters = vec![vec![A, B, D]];
            watched.fine(Event::MembershipEffective { replica: A, log_id: id(1, 1), voters });
            watched
        };
        assert_eq!(changed(formed()).hear(dropping(C)).unwrap_err(), "a replica with a vote was dropped");
        let mut watched = changed(formed());
        watched.commit(&[A, B, D], id(1, 1)).unwrap();
        watched.fine(dropping(C));
        // Nor has a learner a vote; and nobody is a quorum with what it had.
        let mut watched = changed(formed());
        watched.commit(&[A, B, D], id(1, 1)).unwrap();
        watched.append(D, id(1, 2)).unwrap();
        watched.fine(Event::Durable { replica: D, upto: id(1, 2) });
        watched.0.stand([].into());
        watched.fine(dropping(D));
        assert_eq!(watched.commit(&[A], id(1, 2)).unwrap_err(), "an entry is committed without a durable quorum");
    }

    #[test]
    fn a_leader_must_have_what_is_committed() {
        let mut watched = Watched::formed();
        for replica in [A, B] {
            watched.append(replica, id(1, 1)).unwrap();
            watched.fine(Event::Durable { replica, upto: id(1, 1) });
        }
        watched.fine(Event::Committed { replica: A, upto: id(1, 1) });
        let err = watched.hear(Event::BecameLeader { region: RegionId::META, replica: C, term: 2 });
        assert_eq!(err.unwrap_err(), "a leader lacks a committed entry");
    }

    #[test]
    fn logs_that_differ_and_gaps_are_seen() {
        let mut watched = Watched::formed();
        watched.append(A, id(1, 1)).unwrap();
        let err = watched.hear(Event::Appended { replica: B, entries: vec![(id(1, 1), 99)] });
        assert_eq!(err.unwrap_err(), "two logs disagree on an entry");
        assert_eq!(watched.append(A, id(1, 3)).unwrap_err(), "an entry does not follow the last one");
    }

    #[test]
    fn what_a_crash_may_have_lost_can_be_written_again_and_the_durable_part_cannot() {
        let mut watched = Watched::formed();
        watched.append(A, id(1, 1)).unwrap();
        watched.append(A, id(1, 2)).unwrap();
        watched.fine(Event::Durable { replica: A, upto: id(1, 1) });
        watched.0.on_crash(NodeId(1), true);
        watched.append(A, id(2, 2)).unwrap();
        watched.0.on_crash(NodeId(1), true);
        assert_eq!(watched.append(A, id(3, 1)).unwrap_err(), "an entry does not follow the last one");
    }

    #[test]
    fn purge_waits_for_the_flush_and_a_flush_for_the_apply() {
        let mut watched = Watched::formed();
        let err = watched.hear(Event::Purged { replica: A, upto: id(0, 0) });
        assert_eq!(err.unwrap_err(), "the log was purged before its entries were in files");
        let err = watched.hear(Event::FlushFinished {
            region: RegionId::META,
            replica: A,
            upto: id(0, 0),
            sequence: engine::types::Sequence(0),
            rows: 0,
        });
        assert_eq!(err.unwrap_err(), "a flush covers what was not applied");
    }
}
