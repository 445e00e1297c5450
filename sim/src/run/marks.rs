//! Situations that a sweep should reach, because bugs live in them: counted as they occur, and named in the summary when
//! no seed of a sweep reached them. They judge nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engine::event::Event;
use engine::region::command::{Command, decode_answer};
use engine::region::request::Taken;
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
    /// Nothing of the view's was complete.
    ResumedFirstRound = "a fill was resumed in its first round",
    /// Differences to the round before are sent.
    ResumedLaterRound = "a fill was resumed in a later round",
    /// What is written is sent as it comes.
    ResumedLive = "a live view was resumed",
    /// It begins elsewhere than the region is, or its leader is not heard any more.
    BatchRefused = "a batch for a view was refused",
    /// Its first answer was lost.
    BatchSentAgain = "a batch for a view came again and was ignored",
    /// Of a region that a leg reads which is not live.
    SnapshotAtFeeder = "a snapshot was installed at a feeder in the middle of a fill",
    /// Of a region of a view that is not READY.
    SnapshotAtView = "a snapshot was installed at a view in the middle of its fill",
    /// Of the region that sent it, or of the one that it was for.
    ElectionUnderBatch = "an election was won while a batch was in flight",
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
    /// Replicas that did not take the batch of the entry that they apply.
    refusing: BTreeSet<ReplicaId>,
    /// Batches that were sent and not acknowledged: the feeder's region, the view, its region.
    in_flight: BTreeSet<(RegionId, String, RegionId)>,
}

/// What the event does not say by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scene {
    /// Clients wait for rows of the event's region.
    pub unanswered: bool,
    /// Meta has an open procedure.
    pub procedure: bool,
    /// A leg that is not live reads the event's region.
    pub is_read: bool,
    /// The event's region is of a view that is not READY.
    pub is_filled: bool,
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
                self.reached(Mark::SnapshotAtFeeder, scene.is_read);
                self.reached(Mark::SnapshotAtView, scene.is_filled);
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
            Event::FillResumed { round, is_live, .. } => {
                self.reached(Mark::ResumedLive, *is_live);
                self.reached(Mark::ResumedFirstRound, !is_live && *round == 1);
                self.reached(Mark::ResumedLaterRound, !is_live && *round > 1);
            }
            Event::BatchSent { region, view, destination, .. } => {
                self.in_flight.insert((*region, view.clone(), *destination));
            }
            Event::BatchAcknowledged { region, view, destination, .. } => {
                self.in_flight.remove(&(*region, view.clone(), *destination));
            }
            Event::BatchRefused { replica, .. } => drop(self.refusing.insert(*replica)),
            Event::Applied { replica, command, outcome, .. } if self.refusing.remove(replica) => {
                self.refused(command, outcome);
            }
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

    /// A batch that was not taken; what has it already says so.
    fn refused(&mut self, command: &Bytes, outcome: &Bytes) {
        let (Ok(Command::Absorb(batch)), Ok(answer)) = (Command::decode(command), decode_answer(outcome)) else {
            return;
        };
        let came_again = matches!(answer, Taken::At(position, _) if batch.to <= position);
        self.reached(if came_again { Mark::BatchSentAgain } else { Mark::BatchRefused }, true);
    }

    fn elected(&mut self, region: RegionId, replica: ReplicaId, scene: Scene) {
        let concerns = |(feeder, _, place): &(RegionId, String, RegionId)| *feeder == region || *place == region;
        let in_flight = self.in_flight.iter().any(concerns);
        self.reached(Mark::ElectionUnderBatch, in_flight);
        // The leader that sent them does not wait for them any more.
        self.in_flight.retain(|(feeder, ..)| *feeder != region);
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
    use engine::region::command::encode_answer;
    use engine::region::request::Absorb;
    use engine::types::{FillPosition, Incarnation, LogId, Sequence, Source, TableId};

    use super::*;

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);

    /// What leads to a mark, step by step: only the last one reaches it.
    enum Step {
        Event(Event),
        UnderWrites(Event),
        InProcedure(Event),
        WhileRead(Event),
        WhileFilled(Event),
        Lost { power: bool, led: bool },
    }

    use Step::{InProcedure, Lost, UnderWrites, WhileFilled, WhileRead};

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
        let place = RegionId::new(TableId(2), 0);
        let resumed = |round, is_live| Event::FillResumed { region, replica, view: "v".into(), leg: 0, round, is_live };
        let refused = |answer: Taken| {
            let source = Source { leg: 0, feeder: region };
            let (from, to) = (FillPosition::default(), FillPosition::at(Sequence(3)));
            let (rows, ops) = (Bytes::new(), Bytes::new());
            let batch =
                Command::Absorb(Absorb { source, epoch: 1, from, to, rows, ops, changes: 0, read: 0, settled: 0 });
            let applied = Event::Applied {
                region: place,
                replica,
                incarnation: Incarnation(1),
                log_id: last,
                command: batch.encode(),
                outcome: encode_answer(&answer),
                sequence: Sequence(0),
                digest: 0,
            };
            let event = Event::BatchRefused { region: place, replica, feeder: region, answer: String::new() };
            vec![Step::Event(event), Step::Event(applied)]
        };
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
            Mark::TornTail => one(Event::LogOpened { segments: 1, torn_bytes: 9, rotten: 0 }),
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
            Mark::ResumedFirstRound => one(resumed(1, false)),
            Mark::ResumedLaterRound => one(resumed(2, false)),
            Mark::ResumedLive => one(resumed(2, true)),
            Mark::BatchRefused => refused(Taken::Deposed { epoch: 9 }),
            Mark::BatchSentAgain => refused(Taken::At(FillPosition::at(Sequence(9)), 9)),
            Mark::SnapshotAtFeeder => vec![WhileRead(installed)],
            Mark::SnapshotAtView => vec![WhileFilled(installed)],
            Mark::ElectionUnderBatch => {
                let sent = Event::BatchSent { region, replica, view: "v".into(), destination: place, rows: 1 };
                vec![Step::Event(sent), Step::Event(elected(place))]
            }
        }
    }

    fn play(marks: &mut Marks, step: &Step) {
        let region = RegionId::new(TableId(1), 0);
        match step {
            Step::Event(event) => marks.hear(N1, event, Scene::default()),
            UnderWrites(event) => marks.hear(N1, event, Scene { unanswered: true, ..Scene::default() }),
            WhileRead(event) => marks.hear(N1, event, Scene { is_read: true, ..Scene::default() }),
            WhileFilled(event) => marks.hear(N1, event, Scene { is_filled: true, ..Scene::default() }),
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
            Event::LogOpened { segments: 1, torn_bytes: 0, rotten: 0 },
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
