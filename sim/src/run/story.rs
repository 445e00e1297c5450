//! The story of a run, as reviewers read it: per object its milestones in order, nothing of times, ids, terms or of how
//! objects interleave; counts as 0, 1 or many. Equal for two runs that did the same, whatever the scheduler did between.

use std::collections::BTreeMap;

use engine::event::Event;
use engine::types::{NodeId, RegionId};

/// Collects milestones while the run goes on.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// What the steps did, in order.
    steps: Vec<String>,
    /// What faults did, by the name that the plan gives them.
    faults: Vec<String>,
    /// By table: how its regions fared.
    regions: BTreeMap<RegionId, Milestones>,
    tables: BTreeMap<u32, String>,
    repeated: u64,
}

#[derive(Clone, Debug, Default)]
struct Milestones {
    flushes: u64,
    snapshots: u64,
}

impl Story {
    /// A step ended.
    pub fn step(&mut self, what: String) {
        self.steps.push(what);
    }

    /// A fault struck.
    pub fn fault(&mut self, what: String) {
        if !self.faults.contains(&what) {
            self.faults.push(what);
        }
    }

    /// Notes what is a milestone.
    pub fn hear(&mut self, _node: NodeId, event: &Event, table: &dyn Fn(u32) -> Option<String>) {
        let Some(region) = event.region().filter(|region| *region != RegionId::META) else { return };
        if let Some(name) = table(region.table().0) {
            self.tables.insert(region.table().0, name);
        }
        match event {
            Event::FlushFinished { .. } => self.regions.entry(region).or_default().flushes += 1,
            Event::SnapshotInstalled { .. } => self.regions.entry(region).or_default().snapshots += 1,
            Event::WriteRepeated { .. } => self.repeated += 1,
            _ => {}
        }
    }

    /// The lines to review.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.steps.iter().map(|step| format!("step: {step}")).collect();
        let mut faults = self.faults.clone();
        faults.sort_unstable();
        lines.extend(faults.iter().map(|fault| format!("fault: {fault}")));
        for (region, milestones) in &self.regions {
            let Some(table) = self.tables.get(&region.table().0) else { continue };
            let name = format!("{table}/{}", region.number());
            lines.push(format!("{name}: snapshots installed: {}", many(milestones.snapshots)));
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
