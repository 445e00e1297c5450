//! The plan of one seed: every random choice of faults and workload, made before the run, as plain data.
//!
//! A plan is printed as TOML, edited, and run again by `sim replay plan.toml`. Each choice is drawn by name, so that a
//! fault taken out of a storm leaves all others what they were. What only the run can decide (who leads, when an event
//! comes) is not here; the run puts it down as it is decided.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::draw::Draws;
use crate::scenario::condition::Condition;
use crate::scenario::fault::{
    Cutoff, Death, Direction, DiskEffect, DiskFault, DiskOp, Fault, FileClass, Stay, StormKind,
};
use crate::scenario::period::{Offset, Period};
use crate::scenario::position::{Problem, Problems, toml_problems};
use crate::scenario::target::{Region, Target};
use crate::scenario::{Action, Cluster, DrawnRule, Expect, Rule, Scenario, Step, Storm, Until, Wait, WorkloadKind};

/// What one seed of one scenario does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the scenario.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// The seed: of task order, and of whatever the run draws by name.
    pub seed: u64,
    /// So many numbers are drawn from the scheduler's stream before the run: it schedules otherwise then, with the same
    /// faults, delays and data. What is reviewed must not depend on it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stir: u64,
    /// Virtual time after which the run has failed.
    pub budget: Period,
    /// The nodes.
    pub cluster: Cluster,
    /// What must be true.
    pub expect: Expect,
    /// The cell of the scenario's matrix, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    /// What is done, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// What is done at events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Clients beside the steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<PlannedWorkload>,
    /// The faults of the storms, by time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<PlannedFault>,
}

/// A workload with the choices that its clients make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedWorkload {
    /// For reports and the names of draws.
    pub name: String,
    /// Statements of all clients together.
    pub ops: u64,
    /// One a client: what it does is a function of it, so that a client taken out changes no other.
    pub clients: Vec<u64>,
    /// What they do.
    pub kind: WorkloadKind,
}

/// A fault with its moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFault {
    /// What reports call it.
    pub name: String,
    /// Virtual time since the first step.
    pub at: Period,
    /// Strikes only when the target has writes under way: at `at` or at the first such moment after it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writes_pending: bool,
    /// What it does.
    #[serde(rename = "do")]
    pub fault: Fault,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl PlannedFault {
    /// What it is one of: its storm and kind, whatever its number.
    pub fn label(&self) -> &str {
        self.name.rsplit_once('/').map_or(&self.name, |(label, _)| label)
    }
}

impl Plan {
    /// Makes every choice of `scenario` for `seed`.
    pub fn resolve(scenario: &Scenario, seed: u64) -> Plan {
        let (scenario, cell) = scenario.of_seed(seed);
        // What clients write is the scenario's; only when and what goes wrong is the seed's. So a result is one for all.
        let data = Draws::new(0);
        let workloads = scenario.workloads.iter().map(|workload| PlannedWorkload {
            name: workload.name.clone(),
            ops: workload.ops,
            clients: (1..=workload.clients)
                .map(|client| {
                    data.range(format_args!("{}/{}/client {client}", scenario.name, workload.name), 0..1 << 53)
                })
                .collect(),
            kind: workload.kind.clone(),
        });
        let draws = Draws::new(seed);
        let mut faults: Vec<PlannedFault> =
            scenario.storms.iter().flat_map(|storm| storm_faults(storm, scenario.cluster.nodes, &draws)).collect();
        faults.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
        let rules = scenario.rules.iter().map(|DrawnRule { rule, nth_most }| {
            let nth = draws.range(format_args!("{}/nth", rule.name), rule.nth..nth_most + 1);
            Rule { nth, ..rule.clone() }
        });
        Plan {
            scenario: scenario.name.clone(),
            title: scenario.title.clone(),
            seed,
            stir: 0,
            budget: scenario.budget,
            cluster: scenario.cluster.clone(),
            expect: scenario.expect.clone(),
            steps: scenario.steps.clone(),
            cell: cell.map(str::to_string),
            rules: rules.collect(),
            workloads: workloads.collect(),
            faults,
        }
    }

    /// The plan as text that [`Plan::read`] reads again.
    pub fn to_toml(&self) -> Result<String, String> {
        let body = toml::to_string(self).map_err(|err| format!("the plan cannot be printed: {err}"))?;
        Ok(format!(
            "# Every choice of {} with seed {}. Edit it, then run it: cargo sim replay FILE\n{body}",
            self.scenario, self.seed
        ))
    }

    /// Reads what [`Plan::to_toml`] printed, maybe edited since.
    pub fn read(text: &str, shown: &str) -> Result<Plan, Problems> {
        let plan: Plan = toml::from_str(text).map_err(|err| toml_problems(shown, text, &[], &err))?;
        plan.check().map_err(|message| Problems(vec![Problem::of_file(shown, message)]))?;
        Ok(plan)
    }

    /// The data files that it reads, relative to the scenario, with the lines of the steps.
    pub fn loads(&self) -> Vec<(u32, &str)> {
        let mut files = Vec::new();
        for step in self.all_steps() {
            if let Action::Load(load) = &step.action {
                files.push((step.line, load.file.as_str()));
            }
        }
        files
    }

    /// The events that steps wait for.
    pub fn awaited(&self) -> Vec<&Condition> {
        let mut events = Vec::new();
        for step in self.all_steps() {
            if let Action::Wait(Wait { until: Until::Event(condition), .. }) = &step.action {
                events.push(condition);
            }
        }
        events
    }

    /// Every step, also those that are repeated, each once.
    fn all_steps(&self) -> Vec<&Step> {
        fn of<'a>(steps: &'a [Step], all: &mut Vec<&'a Step>) {
            for step in steps {
                all.push(step);
                if let Action::Repeat { steps, .. } = &step.action {
                    of(steps, all);
                }
            }
        }
        let mut all = Vec::new();
        of(&self.steps, &mut all);
        all
    }

    /// Whether random faults strike: such a plan has no reviewed story.
    pub fn has_storm(&self) -> bool {
        !self.faults.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        self.cluster.options.validate().map_err(|err| err.to_string())?;
        if self.cluster.nodes == 0 || self.cluster.nodes > 99 {
            return Err(format!("nodes = {}: expected 1 to 99", self.cluster.nodes));
        }
        if self.seed >= 1 << 53 {
            return Err(format!("seed = {}: expected a number below 2^53", self.seed));
        }
        if self.workloads.iter().any(|workload| workload.clients.is_empty()) {
            return Err("a workload without clients: take it out".to_string());
        }
        for rule in &self.rules {
            self.check_targets(&rule.name, &rule.fault.targets(), true)?;
        }
        for planned in &self.faults {
            self.check_fault(&planned.name, &planned.fault)?;
        }
        for step in self.all_steps() {
            let name = format!("the step of line {}", step.line);
            match &step.action {
                Action::Fault(fault) => self.check_fault(&name, fault)?,
                Action::Sql(statement) => {
                    self.check_targets(&name, &statement.node.iter().collect::<Vec<_>>(), false)?;
                }
                Action::Wait(Wait { until: Until::Up(target) | Until::Down(target), .. }) => {
                    self.check_targets(&name, &[target], false)?;
                }
                Action::Wait(Wait { until: Until::Fired(rule), .. })
                    if !self.rules.iter().any(|known| known.name == *rule) =>
                {
                    return Err(format!("{name} waits for the rule \"{rule}\", which is not there"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A fault that is no rule's.
    fn check_fault(&self, name: &str, fault: &Fault) -> Result<(), String> {
        if fault.needs_event() {
            return Err(format!("{name}: \"it\" means something only in a rule"));
        }
        self.check_targets(name, &fault.targets(), false)
    }

    /// That each node is there, and that `it` stands where there is an event.
    fn check_targets(&self, name: &str, targets: &[&Target], in_rule: bool) -> Result<(), String> {
        for target in targets {
            if target.node().is_some_and(|node| node > self.cluster.nodes) {
                return Err(format!("{name}: there is no node {target} among {}", self.cluster.nodes));
            }
            if target.needs_event() && !in_rule {
                return Err(format!("{name}: \"it\" means something only in a rule"));
            }
        }
        Ok(())
    }
}

/// A storm is a row of slots of equal length per kind, one fault somewhere in each: so none of them moves another.
fn storm_faults(storm: &Storm, nodes: u32, draws: &Draws) -> Vec<PlannedFault> {
    let mut everyone: Vec<Target> = (1..=nodes).map(Target::Node).collect();
    everyone.push(Target::Leader(Region::Meta));
    let targets = if storm.targets.is_empty() { &everyone } else { &storm.targets };
    let length = storm.until.ms - storm.from.ms;
    let slots = length.div_ceil(storm.every.ms);
    let mut faults = Vec::new();
    for kind in &storm.kinds {
        for slot in 0..slots {
            let name = format!("{}/{kind}/{}", storm.name, slot + 1);
            let width = storm.every.ms.min(length - slot * storm.every.ms);
            let at = storm.from.ms + slot * storm.every.ms + draws.range(format_args!("{name}/at"), 0..width);
            let Some(target) = draws.pick(format_args!("{name}/target"), targets).cloned() else { continue };
            let fault = storm_fault(*kind, target, nodes, &name, draws);
            let deadly = matches!(kind, StormKind::PowerLoss | StormKind::Crash);
            let writes_pending = deadly && draws.chance(format_args!("{name}/writes pending"), 0.5);
            faults.push(PlannedFault { name, at: Period::ms(at), writes_pending, fault });
        }
    }
    faults
}

fn storm_fault(kind: StormKind, target: Target, nodes: u32, name: &str, draws: &Draws) -> Fault {
    let between =
        |what: &str, least: u64, most: u64| Period::ms(draws.range(format_args!("{name}/{what}"), least..most + 1));
    let lasts = Some(between("for", 500, 8_000));
    let directions = [Direction::Both, Direction::In, Direction::Out];
    let direction = *draws.pick(format_args!("{name}/direction"), &directions).unwrap_or(&Direction::Both);
    let disk = |op, effect, delay| {
        Fault::Disk(DiskFault {
            node: target.clone(),
            files: FileClass::Any,
            op,
            nth: 1,
            times: None,
            effect,
            delay,
            lasts,
        })
    };
    match kind {
        StormKind::PowerLoss => {
            Fault::PowerLoss(Death { target, restart_after: Some(between("restart_after", 100, 5_000)) })
        }
        StormKind::Crash => Fault::Crash(Death { target, restart_after: Some(between("restart_after", 100, 5_000)) }),
        StormKind::Pause => Fault::Pause(Stay { target, lasts }),
        StormKind::TransferLeader => {
            let region = match &target {
                Target::Leader(region) => region.clone(),
                _ => Region::Meta,
            };
            Fault::TransferLeader { region, to: None }
        }
        StormKind::Isolate => Fault::Isolate(Cutoff { target, direction, lasts }),
        StormKind::Partition => {
            // One side is drawn, at least one node and not all.
            let side = draws.range(format_args!("{name}/side"), 1..(1 << nodes.min(16)) - 1);
            let on_side = |node: &u32| side >> ((node - 1) % 16) & 1 == 1;
            let (from, to): (Vec<u32>, Vec<u32>) = (1..=nodes).partition(on_side);
            let targets = |nodes: Vec<u32>| nodes.into_iter().map(Target::Node).collect();
            Fault::Partition { from: targets(from), to: targets(to), direction, lasts }
        }
        StormKind::SlowDisk => disk(DiskOp::Fsync, DiskEffect::Slow, Some(between("delay", 20, 500))),
        StormKind::FailingDisk => {
            let ops = [DiskOp::Read, DiskOp::Write, DiskOp::Fsync];
            disk(*draws.pick(format_args!("{name}/op"), &ops).unwrap_or(&DiskOp::Write), DiskEffect::Eio, None)
        }
        StormKind::FullDisk => disk(DiskOp::Write, DiskEffect::Full, None),
        StormKind::Clock => {
            let offset = between("offset", 0, 20_000).ms as i64 - 10_000;
            let drift_ppm = between("drift", 0, 400).ms as i64 - 200;
            Fault::Clock { node: target, offset: Offset { ms: offset }, drift_ppm }
        }
    }
}

/// Reads the plan at `path`.
pub fn read(path: &Path) -> Result<Plan, Problems> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|err| Problems(vec![Problem::of_file(&shown, format!("cannot be read: {err}"))]))?;
    Plan::read(&text, &shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    const STORM: &str = r#"# A storm.
title = "storm"
[[step]]
sql = "CREATE TABLE t (a INT PRIMARY KEY)"
unknown = "retry"
[[step]]
repeat = 2
steps = [{ sleep = "1s" }, { wait = { leader = "t/*" } }]
[[step]]
partition = [["n1"], ["n2", "n3"]]
for = "2s"
[[on]]
event = "FlushStarted"
region = "t/*"
rows = ">= 3"
each = "region of t"
do = { disk = { node = "leader of it", op = "write", effect = "eio", times = 2 } }
[[workload]]
kind = "mutate"
table = "t"
clients = 3
ops = 100
mix = { insert = 1, read = 2 }
[[storm]]
kinds = ["power_loss", "crash", "pause", "transfer_leader", "isolate", "partition", "slow_disk", "failing_disk", "full_disk", "clock"]
from = "1s"
until = "20s"
[expect]
result = ["SELECT * FROM t"]
happened = ["unsynced bytes were lost", "NodeStarted on n2 at least 2 times"]
exempt = [{ oracle = "liveness", reason = "a storm" }]
"#;

    fn plan(text: &str, seed: u64) -> Plan {
        let scenario = parse(text, "storm.toml", "storm", Path::new(".")).unwrap_or_else(|err| panic!("{err}"));
        Plan::resolve(&scenario, seed)
    }

    #[test]
    fn a_plan_is_printed_and_read_again() {
        for seed in [0, 1, (1 << 53) - 1] {
            let plan = plan(STORM, seed);
            let text = plan.to_toml().unwrap();
            let again = Plan::read(&text, "plan.toml").unwrap_or_else(|err| panic!("{err}\n{text}"));
            assert_eq!(again, plan);
            assert_eq!(again.to_toml().unwrap(), text);
        }
    }

    #[test]
    fn one_kind_of_fault_less_moves_no_other() {
        let all = plan(STORM, 7);
        let fewer = plan(&STORM.replace("\"crash\", ", ""), 7);
        assert!(fewer.faults.len() < all.faults.len());
        let rest: Vec<_> = all.faults.iter().filter(|fault| !fault.name.contains("/crash/")).collect();
        assert_eq!(fewer.faults.iter().collect::<Vec<_>>(), rest);
        let longer = plan(&STORM.replace("until = \"20s\"", "until = \"40s\""), 7);
        assert!(all.faults.iter().filter(|fault| fault.at.ms < 16_000).all(|fault| longer.faults.contains(fault)));
    }

    #[test]
    fn the_seed_decides_the_faults_and_the_name_decides_the_data() {
        let (one, two) = (plan(STORM, 1), plan(STORM, 2));
        assert_ne!(one.faults, two.faults);
        assert_eq!(one.workloads, two.workloads);
        assert!(one.faults.iter().all(|fault| (1_000..20_000).contains(&fault.at.ms)));
        assert!(one.faults.is_sorted_by_key(|fault| fault.at));
        let pending = one.faults.iter().filter(|fault| fault.writes_pending).count();
        assert!(pending > 0 && pending < 8, "{pending}");
    }

    #[test]
    fn both_sides_of_every_partition_have_a_node() {
        for seed in 0..200 {
            for planned in plan(STORM, seed).faults {
                if let Fault::Partition { from, to, .. } = planned.fault {
                    assert!(!from.is_empty() && !to.is_empty() && from.len() + to.len() == 3);
                }
            }
        }
    }

    #[test]
    fn an_edited_plan_is_checked() {
        let text = plan(STORM, 7).to_toml().unwrap();
        for (from, to, hint) in [
            ("seed = 7", "sede = 7", "plan.toml:4:1: expected a key"),
            ("nodes = 3", "nodes = 0", "expected 1 to 99"),
            ("for = \"2s\"", "for = \"2x\"", "expected a time"),
            ("heartbeat_ms = 1000", "heartbeat_ms = 9000", "election_min_ms"),
            ("node = \"leader of it\"", "node = \"n9\"", "no node n9"),
            ("from = [\"n1\"]", "from = [\"n9\"]", "no node n9"),
        ] {
            assert!(text.contains(from), "{from} is not in\n{text}");
            let message = Plan::read(&text.replace(from, to), "plan.toml").unwrap_err().to_string();
            assert!(message.contains(hint), "{from}: {message}");
        }
    }
}
