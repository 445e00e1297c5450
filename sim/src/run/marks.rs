//! Situations that a sweep should reach, because bugs live in them: counted as they occur, and named in the summary when
//! no seed of a sweep reached them. They judge nothing.

use std::collections::{BTreeMap, BTreeSet};

use engine::event::Event;
use engine::types::{NodeId, RegionId, ReplicaId};

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// One situation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[$doc])* $name,)*
        }

        impl Mark {
            /// All, with the names that reports use.
            pub const ALL: &'static [(Mark, &'static str)] = &[$((Mark::$name, $text)),*];
        }
    };
}

marks! {
    /// Clients wait for the region in which it happens.
    ElectionUnderWrites = "an election was won while writes were unanswered",
    /// By power loss or crash.
    LeaderLostUnderWrites = "a leader was lost while writes were unanswered",
    /// The one that was asked to stand has won.
    HandedOver = "leadership was handed over as asked",
    /// See [`Mark::HandedOver`].
    HandedOverUnderWrites = "leadership was handed over while writes were unanswered",
    /// The catalog has an open procedure when its group elects.
    MetaChangedInProcedure = "meta changed its leader in the middle of a procedure",
    /// A follower's conflicting suffix was taken out.
    LogGaveWay = "a log gave way to that of a new leader",
    /// From a leader's files.
    SnapshotInstalled = "a snapshot was installed",
    /// See [`Mark::SnapshotInstalled`].
    SnapshotUnderWrites = "a snapshot was installed while writes were unanswered",
    /// Its first answer was lost.
    WriteRepeated = "a resent write was answered from the session",
    /// It saw rows that another one has changed since.
    WriteConflict = "a write was refused because its rows had changed",
    /// The frontend makes it anew for the columns that there are.
    WriteOutdated = "a write met a table that was altered since it was made",
    /// The frontend asked the wrong node.
    StaleRoute = "a stale route was refreshed",
    /// Their outcome is unknown.
    RequestsCutOff = "requests were cut off with a connection",
    /// The last batch was there in part.
    TornTail = "a torn tail was cut when a log was opened",
    /// Its rows come from files and its log, not from memory.
    OpenedFromFiles = "a replica was opened from its files",
    /// Between its start and its end.
    FlushLostPower = "a flush was cut off by a power loss",
    /// Between its start and its end.
    FlushCrashed = "a flush was cut off by a crash",
    /// Its rows stayed in memory until the next one.
    FlushMadeUpFor = "a flush failed and a later one took its rows",
    /// Between its start and its end.
    CompactionLostPower = "a compaction was cut off by a power loss",
    /// Between its start and its end.
    CompactionCrashed = "a compaction was cut off by a crash",
    /// Old versions of rows, and tombstones.
    VersionsDropped = "versions that nobody can read were dropped",
    /// What was flushed is not in the log any more.
    LogPurged = "a log was purged",
    /// Nothing of the store was trusted until it was read again.
    Reopened = "a replica was opened anew after a failed write",
    /// Every one.
    AllDown = "all nodes were down at the same time",
}

/// Counts marks.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    counts: BTreeMap<Mark, u64>,
    up: BTreeSet<NodeId>,
    flushing: BTreeSet<(NodeId, ReplicaId)>,
    flush_failed: BTreeSet<ReplicaId>,
    compacting: BTreeSet<(NodeId, ReplicaId)>,
    /// Who was asked to take over.
    asked: BTreeMap<RegionId, ReplicaId>,
    /// Regions whose leader was lost with writes unanswered, until another one leads.
    orphaned: BTreeSet<RegionId>,
}

/// What the event does not say by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scene {
    /// Clients wait for rows of the event's region.
    pub unanswered: bool,
    /// Meta has an open procedure.
    pub procedure: bool,
}

impl Marks {
    /// Something happened on `node`.
    pub fn hear(&mut self, node: NodeId, event: &Event, scene: Scene) {
        match event {
            Event::NodeStarted { .. } => drop(self.up.insert(node)),
            Event::BecameLeader { region, replica, .. } => self.elected(*region, *replica, scene),
            Event::TransferStarted { region, to, .. } => drop(self.asked.insert(*region, *to)),
            Event::Truncated { .. } => self.reached(Mark::LogGaveWay, true),
            Event::SnapshotInstalled { .. } => {
                self.reached(Mark::SnapshotInstalled, true);
                self.reached(Mark::SnapshotUnderWrites, scene.unanswered);
            }
            Event::WriteRepeated { .. } => self.reached(Mark::WriteRepeated, true),
            Event::WriteConflict { .. } => self.reached(Mark::WriteConflict, true),
            Event::WriteOutdated { .. } => self.reached(Mark::WriteOutdated, true),
            Event::RouteRefreshed { .. } => self.reached(Mark::StaleRoute, true),
            Event::PeerLost { unanswered, .. } => self.reached(Mark::RequestsCutOff, *unanswered > 0),
            Event::LogOpened { torn_bytes, .. } => self.reached(Mark::TornTail, *torn_bytes > 0),
            Event::ReplicaOpened { flushed, .. } => self.reached(Mark::OpenedFromFiles, flushed.is_some()),
            Event::FlushStarted { replica, .. } => drop(self.flushing.insert((node, *replica))),
            Event::FlushFailed { replica, .. } => {
                self.flushing.remove(&(node, *replica));
                self.flush_failed.insert(*replica);
            }
            Event::FlushFinished { replica, .. } => {
                self.flushing.remove(&(node, *replica));
                let made_up_for = self.flush_failed.remove(replica);
                self.reached(Mark::FlushMadeUpFor, made_up_for);
            }
            Event::CompactionStarted { replica, .. } => drop(self.compacting.insert((node, *replica))),
            Event::CompactionFailed { replica, .. } => drop(self.compacting.remove(&(node, *replica))),
            Event::CompactionFinished { replica, dropped, .. } => {
                self.compacting.remove(&(node, *replica));
                self.reached(Mark::VersionsDropped, *dropped > 0);
            }
            Event::Purged { .. } => self.reached(Mark::LogPurged, true),
            Event::ReplicaReopening { .. } => self.reached(Mark::Reopened, true),
            _ => {}
        }
    }

    /// A node lost its processes (with `power`: its machine). It led the regions `led` whose writes were unanswered.
    pub fn lost(&mut self, node: NodeId, power: bool, led: &[RegionId]) {
        self.reached(Mark::LeaderLostUnderWrites, !led.is_empty());
        self.orphaned.extend(led);
        let flushing = self.flushing.len();
        self.flushing.retain(|(at, _)| *at != node);
        let cut = if power { Mark::FlushLostPower } else { Mark::FlushCrashed };
        self.reached(cut, self.flushing.len() < flushing);
        let compacting = self.compacting.len();
        self.compacting.retain(|(at, _)| *at != node);
        let cut = if power { Mark::CompactionLostPower } else { Mark::CompactionCrashed };
        self.reached(cut, self.compacting.len() < compacting);
        let was_up = self.up.remove(&node);
        self.reached(Mark::AllDown, was_up && self.up.is_empty());
    }

    /// How often each was reached, those never reached with 0.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let count = |mark: &Mark| self.counts.get(mark).copied().unwrap_or_default();
        Mark::ALL.iter().map(|(mark, name)| ((*name).to_string(), count(mark))).collect()
    }

    fn elected(&mut self, region: RegionId, replica: ReplicaId, scene: Scene) {
        let orphaned = self.orphaned.remove(&region);
        let handed_over = self.asked.remove(&region) == Some(replica);
        self.reached(Mark::ElectionUnderWrites, scene.unanswered || orphaned);
        self.reached(Mark::HandedOver, handed_over);
        self.reached(Mark::HandedOverUnderWrites, handed_over && scene.unanswered);
        self.reached(Mark::MetaChangedInProcedure, region == RegionId::META && scene.procedure);
    }

    fn reached(&mut self, mark: Mark, is_so: bool) {
        if is_so {
            *self.counts.entry(mark).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::types::{Incarnation, LogId, Sequence, TableId};

    use super::*;

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);

    /// What leads to a mark, step by step: only the last one reaches it.
    enum Step {
        Event(Event),
        UnderWrites(Event),
        InProcedure(Event),
        Lost { power: bool, led: bool },
    }

    use Step::{InProcedure, Lost, UnderWrites};

    fn script(mark: Mark) -> Vec<Step> {
        let region = RegionId::new(TableId(1), 0);
        let replica = ReplicaId(4);
        let last = LogId { term: 1, index: 7 };
        let elected = |region| Event::BecameLeader { region, replica, term: 2 };
        let asked = || Step::Event(Event::TransferStarted { region, from: ReplicaId(5), to: replica });
        let started = || Step::Event(Event::NodeStarted { incarnation: Incarnation(1) });
        let installed = Event::SnapshotInstalled { region, replica, last };
        let flush = || Step::Event(Event::FlushStarted { region, replica, upto: last, rows: 3 });
        let failed = || Step::Event(Event::FlushFailed { region, replica, reason: "full".into() });
        let finished = Event::FlushFinished { region, replica, upto: last, sequence: Sequence(3), rows: 3 };
        let opened = Event::ReplicaOpened { region, replica, flushed: Some(last), flushed_sequence: Sequence(3) };
        let compaction = || Step::Event(Event::CompactionStarted { region, replica, inputs: 2, rows: 3 });
        let compacted = Event::CompactionFinished { region, replica, inputs: 2, outputs: 1, rows: 2, dropped: 1 };
        let one = |event| vec![Step::Event(event)];
        match mark {
            Mark::ElectionUnderWrites => vec![Lost { power: true, led: true }, Step::Event(elected(region))],
            Mark::LeaderLostUnderWrites => vec![Lost { power: false, led: true }],
            Mark::HandedOver => vec![asked(), Step::Event(elected(region))],
            Mark::HandedOverUnderWrites => vec![asked(), UnderWrites(elected(region))],
            Mark::MetaChangedInProcedure => vec![InProcedure(elected(RegionId::META))],
            Mark::LogGaveWay => one(Event::Truncated { replica, last: None }),
            Mark::SnapshotInstalled => one(installed),
            Mark::SnapshotUnderWrites => vec![UnderWrites(installed)],
            Mark::WriteRepeated => one(Event::WriteRepeated { region, replica }),
            Mark::WriteConflict => one(Event::WriteConflict { region, replica, rows: 1 }),
            Mark::WriteOutdated => one(Event::WriteOutdated { region, replica, version: 1 }),
            Mark::StaleRoute => one(Event::RouteRefreshed { region }),
            Mark::RequestsCutOff => one(Event::PeerLost { peer: N2, unanswered: 1 }),
            Mark::TornTail => one(Event::LogOpened { segments: 1, torn_bytes: 9 }),
            Mark::OpenedFromFiles => one(opened),
            Mark::FlushLostPower => vec![flush(), Lost { power: true, led: false }],
            Mark::FlushCrashed => vec![flush(), Lost { power: false, led: false }],
            Mark::FlushMadeUpFor => vec![flush(), failed(), flush(), Step::Event(finished)],
            Mark::CompactionLostPower => vec![compaction(), Lost { power: true, led: false }],
            Mark::CompactionCrashed => vec![compaction(), Lost { power: false, led: false }],
            Mark::VersionsDropped => vec![compaction(), Step::Event(compacted)],
            Mark::LogPurged => one(Event::Purged { replica, upto: last }),
            Mark::Reopened => one(Event::ReplicaReopening { region, replica, reason: "io".into() }),
            Mark::AllDown => vec![started(), Lost { power: true, led: false }],
        }
    }

    fn play(marks: &mut Marks, step: &Step) {
        let region = RegionId::new(TableId(1), 0);
        match step {
            Step::Event(event) => marks.hear(N1, event, Scene::default()),
            UnderWrites(event) => marks.hear(N1, event, Scene { unanswered: true, ..Scene::default() }),
            InProcedure(event) => marks.hear(N1, event, Scene { procedure: true, ..Scene::default() }),
            Lost { power, led } => marks.lost(N1, *power, if *led { std::slice::from_ref(&region) } else { &[] }),
        }
    }

    #[test]
    fn each_mark_is_reached_by_what_it_says_and_not_before() {
        for (mark, name) in Mark::ALL {
            let mut marks = Marks::default();
            let steps = script(*mark);
            let (last, before) = steps.split_last().unwrap();
            before.iter().for_each(|step| play(&mut marks, step));
            assert_eq!(marks.counts()[*name], 0, "{name}");
            play(&mut marks, last);
            assert_eq!(marks.counts()[*name], 1, "{name}");
        }
    }

    #[test]
    fn the_same_without_what_makes_it_rare_is_no_mark() {
        let region = RegionId::new(TableId(1), 0);
        let replica = ReplicaId(4);
        let mut marks = Marks::default();
        for event in [
            Event::NodeStarted { incarnation: Incarnation(1) },
            Event::LogOpened { segments: 1, torn_bytes: 0 },
            Event::PeerLost { peer: N2, unanswered: 0 },
            Event::ReplicaOpened { region, replica, flushed: None, flushed_sequence: Sequence(0) },
            Event::TransferStarted { region, from: replica, to: ReplicaId(5) },
            Event::BecameLeader { region, replica, term: 2 },
            Event::BecameLeader { region: RegionId::META, replica, term: 1 },
        ] {
            marks.hear(N1, &event, Scene::default());
        }
        marks.hear(N2, &Event::NodeStarted { incarnation: Incarnation(1) }, Scene::default());
        marks.lost(N1, true, &[]);
        assert!(marks.counts().values().all(|count| *count == 0), "{:?}", marks.counts());
    }
}
