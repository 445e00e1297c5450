//! The story of a run, as reviewers read it: what came of each step, whom each fault hit, and how each region fared.
//!
//! Equal for two runs that did the same, whatever the scheduler did between: no time, id, term or node is in it, nothing
//! of how objects interleave, and no election; counts are 0, 1 or many. What a fault hit has the fault's name.

use std::collections::{BTreeMap, BTreeSet};

use engine::event::Event;
use engine::types::{NodeId, RegionId, ReplicaId};

/// Collects milestones while the run goes on.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What each step came to, by its line in the scenario: one that is repeated may come to several things.
    steps: BTreeMap<u32, BTreeMap<String, u64>>,
    /// By name.
    faults: BTreeMap<String, FaultStory>,
    regions: BTreeMap<RegionId, Milestones>,
    tables: BTreeMap<u32, String>,
    /// By the name that they had when something happened to them.
    views: BTreeMap<String, ViewStory>,
    /// Replicas that were opened once.
    known: BTreeSet<ReplicaId>,
    /// The entry that a replica must apply next, since it was opened or got another's state.
    next: BTreeMap<ReplicaId, u64>,
    /// Whether a fault makes clients resend what was applied.
    answers_are_lost: bool,
    repeated: u64,
    /// In any region: which follower lags too far behind is the scheduler's choice.
    snapshots: u64,
    /// How many replicas that were opened again, or got another's state, began with another entry than the one past what
    /// they had in files.
    resumed_elsewhere: u64,
}

#[derive(Clone, Debug, Default)]
struct FaultStory {
    what: String,
    /// Regions that it was aimed at by the event of its rule, and how they were hit.
    hit: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Milestones {
    flushes: u64,
    /// Replicas that were there before and were opened again.
    opened: u64,
}

/// What became of the views of one name.
#[derive(Clone, Debug, Default)]
struct ViewStory {
    is_read: bool,
    is_ready: bool,
    has_failed: bool,
    /// Another leader went on, and whether it always did where the view was.
    resumed: Option<bool>,
}

impl Story {
    /// The step of that line came to `what`.
    pub fn step(&mut self, line: u32, what: String) {
        *self.steps.entry(line).or_default().entry(what).or_default() += 1;
    }

    /// The fault `name` struck; `hit` says whom and how, in words that are the same in every run.
    pub fn fault(&mut self, name: &str, what: String, hit: Option<String>) {
        let story = self.faults.entry(name.to_string()).or_default();
        story.what = what;
        story.hit.extend(hit);
    }

    /// Another leader went on to fill a region of a view; `at_position`: where that was.
    pub fn resumed(&mut self, region: RegionId, at_position: bool) {
        let Some(name) = self.tables.get(&region.table().0) else { return };
        let view = self.views.entry(name.clone()).or_default();
        view.resumed = Some(view.resumed.unwrap_or(true) && at_position);
    }

    /// From now on writes are resent because answers are lost, not by accident.
    pub fn answers_are_lost(&mut self) {
        self.answers_are_lost = true;
    }

    /// Notes what is a milestone.
    pub fn hear(&mut self, _node: NodeId, event: &Event, table: &dyn Fn(u32) -> Option<String>) {
        let Some(region) = event.region().filter(|region| *region != RegionId::META) else { return };
        if let Some(name) = table(region.table().0) {
            self.tables.insert(region.table().0, name);
        }
        match (event, self.tables.get(&region.table().0)) {
            (Event::RoundStarted { view, .. }, _) => self.views.entry(view.clone()).or_default().is_read = true,
            (Event::ViewReady { .. }, Some(name)) => self.views.entry(name.clone()).or_default().is_ready = true,
            (Event::ViewFailed { .. }, Some(name)) => self.views.entry(name.clone()).or_default().has_failed = true,
            _ => {}
        }
        let milestones = self.regions.entry(region).or_default();
        match event {
            Event::FlushFinished { .. } => milestones.flushes += 1,
            Event::ReplicaOpened { replica, flushed, .. } => {
                if !self.known.insert(*replica) {
                    milestones.opened += 1;
                }
                self.next.insert(*replica, flushed.map_or(0, |flushed| flushed.index + 1));
            }
            Event::SnapshotInstalled { replica, last, .. } => {
                self.snapshots += 1;
                self.next.insert(*replica, last.index + 1);
            }
            Event::Applied { replica, log_id, .. } => {
                if let Some(next) = self.next.remove(replica) {
                    self.resumed_elsewhere += u64::from(next != log_id.index);
                }
            }
            Event::WriteRepeated { .. } => self.repeated += 1,
            _ => {}
        }
    }

    /// The lines to review.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (came, times) in self.steps.values().flatten() {
            let times = if *times == 1 { "" } else { " (many times)" };
            lines.push(format!("step: {came}{times}"));
        }
        for (name, fault) in &self.faults {
            lines.push(format!("fault {name}: {}", fault.what));
            lines.extend(fault.hit.iter().map(|hit| format!("  {hit}")));
        }
        if self.answers_are_lost {
            lines.push(format!("resent writes that were answered from the session: {}", many(self.repeated)));
        }
        if self.snapshots > 0 {
            lines.push(format!("snapshots installed: {}", many(self.snapshots)));
        }
        if self.snapshots > 0 || self.regions.values().any(|milestones| milestones.opened > 0) {
            let always = if self.resumed_elsewhere == 0 { "yes" } else { "no" };
            lines.push(format!("replicas resumed one past what was in files: {always}"));
        }
        for (name, view) in &self.views {
            lines.push(format!("view {name}"));
            lines.extend(view.lines().into_iter().map(|line| format!("  {line}")));
        }
        for (region, milestones) in &self.regions {
            let Some(table) = self.tables.get(&region.table().0) else { continue };
            lines.push(format!("region {table}/{}", region.number()));
            lines.extend(milestones.lines().into_iter().map(|line| format!("  {line}")));
        }
        lines
    }
}

impl ViewStory {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_read {
            lines.push("its feeders were read".to_string());
        }
        if let Some(at_position) = self.resumed {
            lines.push(format!("resumed at the acknowledged position: {}", if at_position { "yes" } else { "no" }));
        }
        if self.is_ready {
            lines.push("became ready".to_string());
        }
        if self.has_failed {
            lines.push("failed".to_string());
        }
        lines
    }
}

impl Milestones {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("flushed: {}", many(self.flushes))];
        if self.opened > 0 {
            lines.push(format!("opened again: {}", many(self.opened)));
        }
        lines
    }
}

/// 0, 1 or many: more would record the scheduler.
fn many(count: u64) -> &'static str {
    match count {
        0 => "0",
        1 => "1",
        _ => "many",
    }
}

#[cfg(test)]
mod tests {
    use engine::types::{Incarnation, LogId, Sequence, TableId};

    use super::*;

    const REPLICA: ReplicaId = ReplicaId(31);

    fn region() -> RegionId {
        RegionId::new(TableId(7), 2)
    }

    fn id(index: u64) -> LogId {
        LogId { term: 3, index }
    }

    fn applied(index: u64) -> Event {
        Event::Applied {
            region: region(),
            replica: REPLICA,
            incarnation: Incarnation(1),
            log_id: id(index),
            command: Default::default(),
            outcome: Default::default(),
            sequence: Sequence(0),
            digest: 0,
        }
    }

    fn told(events: &[Event]) -> Vec<String> {
        let mut story = Story::default();
        for event in events {
            story.hear(NodeId(1), event, &|_| Some("flights".to_string()));
        }
        story.lines()
    }

    #[test]
    fn a_replica_that_goes_on_elsewhere_than_its_files_end_is_told() {
        let flushed = |upto| Event::ReplicaOpened {
            region: region(),
            replica: REPLICA,
            flushed: upto,
            flushed_sequence: Sequence(4),
        };
        let right = [flushed(None), applied(0), flushed(Some(id(9))), applied(10), applied(11)];
        assert_eq!(
            told(&right),
            [
                "replicas resumed one past what was in files: yes",
                "region flights/2",
                "  flushed: 0",
                "  opened again: 1"
            ]
        );
        let first = [flushed(None), applied(0)];
        for wrong in [[flushed(Some(id(9))), applied(9)], [flushed(None), applied(1)]] {
            assert_eq!(told(&[first.clone(), wrong].concat())[0], "replicas resumed one past what was in files: no");
        }
    }

    #[test]
    fn what_becomes_of_a_view_is_told() {
        let mut story = Story::default();
        let replica = REPLICA;
        let (feeder, place) = (RegionId::new(TableId(1), 0), region());
        let round =
            Event::RoundStarted { region: feeder, replica, view: "v".into(), leg: 0, round: 1, upto: Sequence(3) };
        for event in [round, Event::ViewReady { region: place, replica }] {
            story.hear(NodeId(1), &event, &|id| Some(if id == 7 { "v" } else { "t" }.to_string()));
        }
        let lines = |story: &Story| -> Vec<String> {
            story
                .lines()
                .into_iter()
                .skip_while(|line| line != "view v")
                .take_while(|line| !line.contains("region"))
                .collect()
        };
        assert_eq!(lines(&story), ["view v", "  its feeders were read", "  became ready"]);
        story.resumed(place, true);
        assert_eq!(lines(&story)[2], "  resumed at the acknowledged position: yes");
        story.resumed(place, false);
        story.resumed(place, true);
        assert_eq!(lines(&story)[2], "  resumed at the acknowledged position: no");
    }

    #[test]
    fn steps_stand_in_the_order_of_the_scenario_and_faults_by_name() {
        let mut story = Story::default();
        story.step(20, "load: 5 rows".into());
        story.step(4, "CREATE TABLE t: done".into());
        story.step(20, "load: 5 rows".into());
        story.fault("lights out", "power loss".into(), Some("t/1: rows unacknowledged".into()));
        story.fault("lights out", "power loss".into(), Some("t/0: rows unacknowledged".into()));
        assert_eq!(
            story.lines(),
            [
                "step: CREATE TABLE t: done",
                "step: load: 5 rows (many times)",
                "fault lights out: power loss",
                "  t/0: rows unacknowledged",
                "  t/1: rows unacknowledged"
            ]
        );
    }
}
