//! Where the run's events arrive: they extend the fingerprint, feed the model and the oracles, arm the rules, count for
//! the claims and make the story. Everything here happens synchronously at the event; nothing here acts on the cluster:
//! what a rule wants done goes to the run as a [`Strike`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::event::{Event, Listen};
use engine::meta::catalog::TableDef;
use engine::meta::view::{View, ViewState};
use engine::meta::{Entry, MetaState, Outcome, Step};
use engine::region::request::LegStatus;
use engine::types::{NodeId, RegionId, ReplicaId, Sequence};
use tokio::sync::{mpsc, watch};

use super::marks::{Marks, Scene};
use super::report::{Decided, Exempted, Failure, StoryLine};
use super::story::Story;
use crate::oracle::model::Model;
use crate::oracle::{
    ClientOracle, DiskImageOracle, FillOracle, IndexOracle, LIVENESS, Oracle, RaftOracle, ReplicaOracle, ScanOracle,
    ViewOracle, Violation,
};
use crate::plan::Plan;
use crate::scenario::condition::Condition;
use crate::scenario::durable::Seen;
use crate::scenario::fault::Fault;
use crate::scenario::happened::{Role, Tally};
use crate::scenario::target::{Region, Regions};
use crate::scenario::{Each, Rule, Trigger};
use crate::trace::Trace;

/// Lines of what happened last that a failure shows.
const AROUND: usize = 24;
/// So long all that is in a feeder must be in a view at calm; then what was there when that was asked first.
const UP_TO_DATE: Duration = Duration::from_secs(5);

/// A rule has met its event: its fault is to be carried out.
#[derive(Clone, Debug)]
pub struct Strike {
    /// Which rule, for reports.
    pub rule: String,
    /// After this.
    pub after: Duration,
    /// What.
    pub fault: Fault,
    /// What `it` stands for.
    pub it: It,
    /// For whom the rule counted the event.
    pub by: It,
    /// How the event's region stood at the event: the fault strikes later, and others maybe before it.
    pub seen: Option<String>,
}

/// What the event of a rule was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct It {
    /// Where it happened.
    pub node: Option<NodeId>,
    /// In which region.
    pub region: Option<RegionId>,
}

/// See the module. Clones are the same hub.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

struct Shared {
    trace: Trace,
    state: Mutex<State>,
    strikes: mpsc::UnboundedSender<Strike>,
    /// Versions that were exchanged: their content is to be compared with the model.
    swaps: mpsc::UnboundedSender<(NodeId, RegionId)>,
    /// Counts events: what waits for a state of the cluster looks again when it changes.
    pulse: watch::Sender<u64>,
}

/// What is known of the cluster from its events.
pub struct State {
    /// What every region must hold.
    pub model: Model,
    /// Judges what clients were told.
    pub clients: ClientOracle,
    /// Judges what disks hold.
    pub images: DiskImageOracle,
    /// Judges what replicas return.
    pub scans: ScanOracle,
    /// Judges how views are filled.
    pub fills: FillOracle,
    /// Holds the indexes of replicas against their rows.
    pub indexes: IndexOracle,
    /// Judges what stands in views.
    pub views: ViewOracle,
    /// What the claims of the scenario need.
    pub tally: Tally,
    /// What reviewers read.
    pub story: Story,
    raft: RaftOracle,
    states: ReplicaOracle,
    leaders: BTreeMap<RegionId, (u64, ReplicaId)>,
    replicas: BTreeMap<ReplicaId, (RegionId, NodeId)>,
    /// Where replicas were made, those too that are not in the catalog yet.
    places: BTreeMap<ReplicaId, NodeId>,
    tables: BTreeMap<u32, String>,
    /// The catalog, by the same entries as on the nodes: names and places are known when they are decided.
    meta: MetaState,
    meta_applied: Option<u64>,
    /// Rows proposed by the leader and not answered, by region.
    pending: BTreeMap<RegionId, u64>,
    rules: Vec<Armed>,
    waits: Vec<(Condition, u64)>,
    around: VecDeque<StoryLine>,
    decided: Vec<Decided>,
    failure: Option<(Failure, String)>,
    /// Oracles that do not count, with what they found.
    exempted: BTreeMap<String, Exempted>,
    /// How often it was asked whether the replicas have come together.
    convergence_asked: u64,
    /// Since when views have been asked to be up to their feeders, and to what is there then.
    due: Option<(Duration, BTreeMap<RegionId, Sequence>)>,
    rows: u64,
    applied: BTreeMap<RegionId, u64>,
    marks: Marks,
}

/// A rule with what it has counted.
struct Armed {
    rule: Rule,
    met: BTreeMap<It, u64>,
    struck: u64,
}

impl Hub {
    /// A hub for `plan`, the strikes of its rules, and the versions to compare.
    pub fn new(
        plan: &Plan,
        trace: Trace,
    ) -> (Hub, mpsc::UnboundedReceiver<Strike>, mpsc::UnboundedReceiver<(NodeId, RegionId)>) {
        let (strikes, struck) = mpsc::unbounded_channel();
        let (swaps, swapped) = mpsc::unbounded_channel();
        let rules = plan.rules.iter().map(|rule| Armed { rule: rule.clone(), met: BTreeMap::new(), struck: 0 });
        let may_fail = plan.expect.happened.iter().any(|claim| claim.is_about(&["ViewFailed", "LegFailed"]));
        let state = State {
            model: Model::default(),
            clients: ClientOracle::default(),
            images: DiskImageOracle::default(),
            scans: ScanOracle::default(),
            fills: FillOracle::default(),
            indexes: IndexOracle::default(),
            views: ViewOracle::new(may_fail),
            tally: Tally::new(&plan.expect.happened),
            story: Story::default(),
            raft: RaftOracle::default(),
            states: ReplicaOracle::default(),
            leaders: BTreeMap::new(),
            replicas: (1..=u64::from(plan.cluster.nodes))
                .map(|node| (ReplicaId(node), (RegionId::META, NodeId(node))))
                .collect(),
            places: BTreeMap::new(),
            tables: BTreeMap::new(),
            meta: MetaState::new(),
            meta_applied: None,
            pending: BTreeMap::new(),
            rules: rules.collect(),
            waits: plan.awaited().into_iter().map(|condition| (condition.clone(), 0)).collect(),
            around: VecDeque::new(),
            decided: Vec::new(),
            failure: None,
            exempted: plan
                .expect
                .exempt
                .iter()
                .map(|one| (one.oracle.clone(), Exempted { reason: one.reason.clone(), ..Exempted::default() }))
                .collect(),
            convergence_asked: 0,
            due: None,
            rows: 0,
            applied: BTreeMap::new(),
            marks: Marks::default(),
        };
        let pulse = watch::Sender::new(0);
        let shared = Shared { trace, state: Mutex::new(state), strikes, swaps, pulse };
        (Hub(Arc::new(shared)), struck, swapped)
    }

    /// What is known now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fingerprint's trace.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Hears of every change.
    pub fn pulse(&self) -> watch::Receiver<u64> {
        self.0.pulse.subscribe()
    }

    /// Something of the harness's own happened: a fault, a client's answer.
    pub fn note(&self, kind: &'static str, text: &str) {
        let at = now();
        self.0.trace.event(at, 0, kind, text.as_bytes(), format_args!("{text}"));
        self.state().remember(at, 0, text.to_string());
        self.0.pulse.send_modify(|count| *count += 1);
    }

    /// Something that only the run could decide.
    pub fn decide(&self, name: &str, value: &str) {
        self.state().decided.push(Decided { name: name.to_string(), value: value.to_string() });
        self.note("decided", &format!("{name} = {value}"));
    }

    /// A table exists (again): its regions and replicas are known from now on.
    pub fn learn(&self, table: &TableDef) {
        self.state().learn(table);
    }

    /// An oracle found something: the run has failed, unless the oracle is exempt. The first failure counts.
    pub fn fail(&self, violation: Violation) {
        let at = now();
        self.state().fail(at, violation);
        self.0.pulse.send_modify(|count| *count += 1);
    }

    /// Whether a rule waits for a durable step: else nobody needs to tell of them.
    pub fn waits_for_durable_steps(&self) -> bool {
        self.state().rules.iter().any(|armed| matches!(armed.rule.on, Trigger::Durable(_)))
    }

    /// A durable step on the disk of `node`: what the rules want done that waited for it. Whoever calls sees to it, for a
    /// node that is to die at a step must not go on.
    pub fn durable(&self, node: NodeId, seen: &Seen) -> Vec<Strike> {
        self.state().step(node, seen)
    }

    /// Has `strike` carried out beside what happens now.
    pub fn carry_out(&self, strike: Strike) {
        // The run may be over already.
        let _ = self.0.strikes.send(strike);
    }

    /// A node lost its processes, and with `power` what its disk had not synced.
    pub fn lost(&self, node: NodeId, power: bool) {
        let mut state = self.state();
        let tables = state.tables.clone();
        let table = |id: u32| tables.get(&id).cloned();
        let led: Vec<RegionId> = state.led_by(node);
        let pending: Vec<(RegionId, u64)> = state.pending.iter().map(|(region, rows)| (*region, *rows)).collect();
        let orphaned = pending.iter().filter(|(region, rows)| *rows > 0 && led.contains(region));
        let orphaned: Vec<RegionId> = orphaned.map(|(region, _)| *region).collect();
        state.marks.lost(node, power, &orphaned);
        for (region, rows) in pending {
            let follows = state.replicas.values().any(|place| *place == (region, node));
            if led.contains(&region) {
                state.tally.lost(Role::Leader, &region.to_string(), rows, &table);
                state.pending.remove(&region);
            } else if follows {
                state.tally.lost(Role::Follower, &region.to_string(), rows, &table);
            }
        }
        for oracle in state.listening() {
            oracle.on_crash(node, power);
        }
        state.images.on_crash(node, power);
        drop(state);
        self.0.pulse.send_modify(|count| *count += 1);
    }
}

impl Listen for Hub {
    fn on_event(&self, node: NodeId, event: &Event) {
        let at = now();
        let payload = postcard::to_allocvec(event).expect("every event has an encoding");
        self.0.trace.event(at, node.0, event.name(), &payload, format_args!("{}", Line(event)));
        let strikes = self.state().hear(at, node, event);
        strikes.into_iter().for_each(|strike| self.carry_out(strike));
        if let Event::VersionSwapped { region, .. } = event {
            let _ = self.0.swaps.send((node, *region));
        }
        self.0.pulse.send_modify(|count| *count += 1);
    }
}

impl State {
    fn hear(&mut self, at: Duration, node: NodeId, event: &Event) -> Vec<Strike> {
        let waits = |region: RegionId| self.pending.get(&region).is_some_and(|rows| *rows > 0);
        let region = event.region();
        let scene = Scene {
            unanswered: region.is_some_and(waits),
            procedure: self.meta.procedures().next().is_some(),
            is_read: region.is_some_and(|region| self.fills.is_read(region)),
            is_filled: region.is_some_and(|region| self.fills.is_filled(region)),
        };
        self.marks.hear(node, event, scene);
        match event {
            Event::BecameLeader { region, replica, term } => {
                let newest = self.leaders.entry(*region).or_default();
                *newest = (*term, *replica).max(*newest);
            }
            Event::ReplicaCreated { replica, .. } => drop(self.places.insert(*replica, node)),
            Event::WriteProposed { region, rows, .. } => *self.pending.entry(*region).or_default() += rows,
            Event::WriteAnswered { region, rows, .. } => {
                let pending = self.pending.entry(*region).or_default();
                *pending = pending.saturating_sub(*rows);
            }
            Event::Applied { region, log_id, sequence, .. } if *region != RegionId::META => {
                let before = self.model.region(*region).map_or(0, |model| model.sequence().0);
                if self.applied.get(region).is_none_or(|last| *last < log_id.index) {
                    self.applied.insert(*region, log_id.index);
                    self.rows += sequence.0.saturating_sub(before);
                }
            }
            _ => {}
        }
        self.follow_meta(event);
        self.model.on_event(event);
        self.images.on_event(node, event);
        if is_worth_a_line(event) {
            self.remember(at, node.0, Line(event).to_string());
        }
        let violations: Vec<Violation> =
            self.listening().into_iter().filter_map(|oracle| oracle.on_event(at, node, event).err()).collect();
        violations.into_iter().for_each(|violation| self.fail(at, violation));
        self.judge_views(at, event);
        let tables = std::mem::take(&mut self.tables);
        let table = |id: u32| tables.get(&id).cloned();
        self.tally.event(node, event, &table);
        self.story.hear(node, event, &table);
        for (condition, count) in &mut self.waits {
            *count += u64::from(condition.matches(node, event, &table, None));
        }
        let mut strikes: Vec<Strike> =
            self.rules.iter_mut().filter_map(|armed| armed.hear(node, event, &table)).collect();
        self.tables = tables;
        for strike in &mut strikes {
            strike.seen = self.hit(strike.it);
        }
        strikes
    }

    /// And indexes. Of the fill first: what a region of a view must have follows from how far it is.
    fn judge_views(&mut self, at: Duration, event: &Event) {
        if let Event::IndexComplete { .. } = event {
            self.indexes.note_complete();
        }
        let filled = self.fills.on_event(&self.model, event);
        for (region, at_position) in self.fills.take_resumed() {
            self.story.resumed(region, at_position);
        }
        let judged = filled.and_then(|()| self.views.on_event(&self.model, &self.fills, event));
        if let Err(violation) = judged {
            self.fail(at, violation);
        }
    }

    fn step(&mut self, node: NodeId, seen: &Seen) -> Vec<Strike> {
        let region = seen.replica.and_then(|replica| self.replicas.get(&replica)).map(|(region, _)| *region);
        let table = |id: u32| self.tables.get(&id).cloned();
        let met = self.rules.iter_mut().filter_map(|armed| match &armed.rule.on {
            Trigger::Durable(durable) if durable.matches(node, seen, region, &table) => {
                armed.count(node, region, &table)
            }
            _ => None,
        });
        let mut strikes: Vec<Strike> = met.collect();
        for strike in &mut strikes {
            strike.seen = self.hit(strike.it);
        }
        strikes
    }

    fn learn(&mut self, table: &TableDef) {
        self.tables.insert(table.id.0, table.name.clone());
        for region in &table.regions {
            self.replicas.extend(region.replicas.iter().map(|(replica, node)| (*replica, (region.id, *node))));
        }
        self.model.learn(table);
    }

    /// Follows the catalog: each of its entries counts once, whoever applies it first.
    fn follow_meta(&mut self, event: &Event) {
        let Event::Applied { region: RegionId::META, log_id, command, .. } = event else { return };
        if self.meta_applied.is_some_and(|applied| applied >= log_id.index) {
            return;
        }
        self.meta_applied = Some(log_id.index);
        let Ok(entry) = Entry::decode(command) else { return };
        if let Outcome::Advanced { reached } = self.meta.apply_entry(entry)
            && reached.iter().any(|reached| reached.step == Step::Leaving)
        {
            self.moved();
        }
        // Of a table that was dropped, or never made, nothing is left to look at once its procedure is over.
        let is_there = |region: &RegionId| {
            let id = region.table();
            let made = self.meta.procedures().any(|procedure| procedure.subject.id() == id);
            *region == RegionId::META || made || self.meta.tables().any(|table| table.id == id)
        };
        self.replicas.retain(|_, (region, _)| is_there(region));
        self.raft.stand(self.meta.tables().map(|table| table.id).collect());
        let tables: Vec<TableDef> =
            self.meta.procedures().filter_map(|procedure| procedure.subject.table().cloned()).collect();
        for table in tables {
            if !self.tables.contains_key(&table.id.0) {
                self.learn(&table);
            }
        }
    }

    /// The oracles that hear all events.
    fn listening(&mut self) -> [&mut dyn Oracle; 2] {
        [&mut self.raft, &mut self.states]
    }

    /// A replica has taken the place of another one.
    fn moved(&mut self) {
        for def in self.meta.tables().flat_map(|table| &table.regions) {
            self.replicas.retain(|_, (region, _)| *region != def.id);
            self.replicas.extend(def.replicas.iter().map(|(replica, node)| (*replica, (def.id, *node))));
        }
    }

    fn remember(&mut self, at: Duration, node: u64, text: String) {
        if self.failure.is_some() {
            return;
        }
        if self.around.len() == AROUND {
            self.around.pop_front();
        }
        self.around.push_back(StoryLine { at_ms: at.as_millis() as u64, node, text });
    }

    fn fail(&mut self, at: Duration, violation: Violation) {
        if self.excuse(&violation) || self.failure.is_some() {
            return;
        }
        let Violation { oracle, signature, evidence } = violation;
        let failure = Failure {
            oracle: oracle.to_string(),
            what: signature.clone(),
            at_ms: Some(at.as_millis() as u64),
            evidence,
            around: self.around.iter().cloned().collect(),
        };
        self.failure = Some((failure, format!("{oracle}: {signature}")));
    }

    /// Takes the finding of an oracle that is exempt; false if it is not.
    pub fn excuse(&mut self, violation: &Violation) -> bool {
        let Some(exempted) = self.exempted.get_mut(violation.oracle) else { return false };
        exempted.findings += 1;
        if exempted.first.is_empty() {
            exempted.first.push(violation.signature.clone());
            exempted.first.extend(violation.evidence.iter().cloned());
        }
        true
    }

    /// What went wrong, and its signature.
    pub fn failure(&self) -> Option<&(Failure, String)> {
        self.failure.as_ref()
    }

    /// The leader of a region, as far as elections told.
    pub fn leader(&self, region: RegionId) -> Option<NodeId> {
        let (_, replica) = self.leaders.get(&region)?;
        self.node_of(*replica)
    }

    /// Where a replica lives.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.get(&replica).map(|(_, node)| *node).or_else(|| self.places.get(&replica).copied())
    }

    /// The replicas of a region and their nodes, by node.
    pub fn replicas_of(&self, region: RegionId) -> Vec<(NodeId, ReplicaId)> {
        let of_region = self.replicas.iter().filter(|(_, (id, _))| *id == region);
        let mut places: Vec<_> = of_region.map(|(replica, (_, node))| (*node, *replica)).collect();
        places.sort_unstable();
        places
    }

    /// A procedure of meta that has not ended, and where it is.
    pub fn unfinished(&self) -> Option<String> {
        let procedure = self.meta.procedures().next()?;
        let (kind, table, step) = (procedure.kind(), procedure.subject.name(), procedure.state.step().name());
        Some(format!("procedure {} ({kind} of {table}) has not ended: it is at {step}", procedure.id))
    }

    /// Whether clients wait for rows that this node has proposed.
    pub fn has_writes_pending(&self, node: NodeId) -> bool {
        self.led_by(node).iter().any(|region| self.pending.get(region).is_some_and(|rows| *rows > 0))
    }

    /// How the region of a rule's event stands now, in words that are the same in every run.
    fn hit(&self, it: It) -> Option<String> {
        let region = it.region?;
        let name = match self.tables.get(&region.table().0) {
            Some(table) => format!("{table}/{}", region.number()),
            None => region.to_string(),
        };
        let waits = self.pending.get(&region).is_some_and(|rows| *rows > 0);
        Some(format!(
            "{name}, {}",
            if waits { "when rows were unacknowledged" } else { "when no row was unacknowledged" }
        ))
    }

    /// The region that a scenario calls so; none: there is no such table (yet).
    pub fn region(&self, name: &Region, it: It) -> Option<RegionId> {
        match name {
            Region::Meta => Some(RegionId::META),
            Region::It => it.region,
            Region::Of(table, number) => {
                let id = self.tables.iter().filter(|(_, name)| *name == table).map(|(id, _)| *id).max()?;
                Some(RegionId::new(engine::types::TableId(id), *number))
            }
        }
    }

    /// The regions that a scenario calls so.
    pub fn regions(&self, names: &Regions) -> Vec<RegionId> {
        let table = |id: u32| self.tables.get(&id).cloned();
        let known: std::collections::BTreeSet<RegionId> = self.replicas.values().map(|(region, _)| *region).collect();
        known.into_iter().filter(|region| names.contain(&region.to_string(), &table, None)).collect()
    }

    /// Whether clients can use the table: its making has ended.
    pub fn is_published(&self, table: &str) -> bool {
        self.meta.table(table).is_some()
    }

    /// The views that there are, and how far they are.
    pub fn views(&self) -> Vec<(TableDef, View)> {
        self.meta.views().map(|(table, view)| (table.clone(), view.clone())).collect()
    }

    /// Why the relation of that name cannot be used; none: it can.
    pub fn unready(&self, name: &str) -> Option<String> {
        if !self.is_published(name) {
            return Some(format!("there is no {name}"));
        }
        let (_, view) = self.meta.views().find(|(table, _)| table.name == name)?;
        match &view.state {
            ViewState::Ready => None,
            ViewState::Filling => Some(format!("view {name} is being filled")),
            ViewState::Failed(reason) => Some(format!("view {name} has failed: {reason}")),
        }
    }

    /// Why a view that is neither paused nor failed is not up to its feeders; none: all are. Rows may expire all the time: then it is
    /// enough to have what was there some time ago.
    pub fn behind(&mut self) -> Option<String> {
        let (since, mut due) = self.due.take().unwrap_or_else(|| (now(), BTreeMap::new()));
        let is_patient = now() < since + UP_TO_DATE;
        let mut views = self.views();
        views.retain(|(_, view)| !view.is_paused && !matches!(view.state, ViewState::Failed(_)));
        // A view that another one reads is the older one: what is due of it is known when it has what is due itself.
        views.sort_unstable_by_key(|(table, _)| table.id);
        let mut behind = None;
        for (table, view) in views {
            for feeder in self.fills.feeders(&self.model, &table) {
                due.entry(feeder).or_insert_with(|| self.fills.sequence(feeder));
            }
            let needed = if is_patient { &BTreeMap::new() } else { &due };
            let lag = self.fills.lag(&self.model, &table, needed);
            let why = match view.state {
                ViewState::Ready => lag,
                _ => Some(lag.unwrap_or_else(|| "the catalog says so".to_string())),
            };
            let state = view.state.name();
            behind = why.map(|why| format!("view {} is {state} and not up to its feeders: {why}", table.name));
            if behind.is_some() {
                break;
            }
        }
        self.due = Some((since, due));
        behind
    }

    /// At calm: holds each view that is READY against its query over all that is in its feeders, if it has all that.
    pub fn judge_whole_views(&mut self) -> Result<(), Violation> {
        for (table, view) in self.views() {
            if view.state == ViewState::Ready && self.fills.lag(&self.model, &table, &BTreeMap::new()).is_none() {
                self.views.judge_whole(&self.model, &table)?;
            }
        }
        Ok(())
    }

    /// At calm: `region` has the legs that the catalog says, as its log and its leader know them.
    pub fn judge_residue(&mut self, region: RegionId, leader: &[LegStatus]) -> Result<(), Violation> {
        let views = self.meta.views().filter(|(_, view)| !matches!(view.state, ViewState::Failed(_)));
        self.fills.judge_residue(&self.model, views.map(|(table, _)| table), region, leader)
    }

    /// Whether the oracle of that name has something to judge in this run.
    pub fn is_due(&self, oracle: &str) -> bool {
        match oracle {
            FillOracle::NAME | ViewOracle::NAME => self.views.is_due(),
            IndexOracle::NAME => self.indexes.is_due(),
            _ => true,
        }
    }

    /// Name of the table of a region.
    pub fn table_name(&self, id: u32) -> Option<String> {
        self.tables.get(&id).cloned()
    }

    /// Begins to count the events of `condition`; answers the counter.
    pub fn count(&mut self, condition: &Condition) -> usize {
        if let Some(at) = self.waits.iter().position(|(known, _)| known == condition) {
            return at;
        }
        self.waits.push((condition.clone(), 0));
        self.waits.len() - 1
    }

    /// How often the condition of the counter was met.
    pub fn counted(&self, counter: usize) -> u64 {
        self.waits[counter].1
    }

    /// How often the rule of that name struck.
    pub fn struck(&self, rule: &str) -> u64 {
        self.rules.iter().filter(|armed| armed.rule.name == rule).map(|armed| armed.struck).sum()
    }

    /// A strike came too late: whom it was for had died of something else. The next event of the rule counts in its place.
    pub fn missed(&mut self, strike: &Strike) {
        for armed in self.rules.iter_mut().filter(|armed| armed.rule.name == strike.rule) {
            armed.struck = armed.struck.saturating_sub(1);
            if let Some(met) = armed.met.get_mut(&strike.by) {
                *met = met.saturating_sub(1);
            }
        }
    }

    /// Rules that never struck, with what was seen.
    pub fn idle_rules(&self) -> Vec<String> {
        let idle = self.rules.iter().filter(|armed| armed.struck == 0);
        idle.map(|armed| {
            let met: u64 = armed.met.values().sum();
            format!(
                "rule \"{}\" never struck: {} met {met} times, wanted the {}th",
                armed.rule.name, armed.rule.on, armed.rule.nth
            )
        })
        .collect()
    }

    /// It is asked whether the replicas have come together.
    pub fn asks_for_convergence(&mut self) {
        self.convergence_asked += 1;
    }

    /// How often each oracle judged something: all of [`crate::oracle::NAMES`].
    pub fn evaluations(&self) -> BTreeMap<String, u64> {
        let listening: [&dyn Oracle; 2] = [&self.raft, &self.states];
        let listening = listening.into_iter().map(|oracle| (oracle.name(), oracle.evaluations()));
        let others = [
            (ClientOracle::NAME, self.clients.evaluations()),
            (DiskImageOracle::NAME, self.images.evaluations()),
            (ScanOracle::NAME, self.scans.evaluations()),
            (FillOracle::NAME, self.fills.evaluations()),
            (IndexOracle::NAME, self.indexes.evaluations()),
            (ViewOracle::NAME, self.views.evaluations()),
            (LIVENESS, self.convergence_asked),
        ];
        listening.chain(others).map(|(name, count)| (name.to_string(), count)).collect()
    }

    /// What exemptions excused so far.
    pub fn exempted(&self) -> BTreeMap<String, Exempted> {
        let evaluations = self.evaluations();
        let idle = |oracle: &String| evaluations.get(oracle).is_none_or(|count| *count == 0);
        let with_idle =
            |(oracle, one): (&String, &Exempted)| (oracle.clone(), Exempted { idle: idle(oracle), ..one.clone() });
        self.exempted.iter().map(with_idle).collect()
    }

    /// What happened last.
    pub fn around(&self) -> Vec<StoryLine> {
        self.around.iter().cloned().collect()
    }

    /// What was decided during the run.
    pub fn decided(&self) -> &[Decided] {
        &self.decided
    }

    /// Situations that were reached.
    pub fn marks(&self) -> BTreeMap<String, u64> {
        self.marks.counts()
    }

    /// Rows committed.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn led_by(&self, node: NodeId) -> Vec<RegionId> {
        self.leaders.keys().copied().filter(|region| self.leader(*region) == Some(node)).collect()
    }
}

impl Armed {
    fn hear(&mut self, node: NodeId, event: &Event, table: &dyn Fn(u32) -> Option<String>) -> Option<Strike> {
        match &self.rule.on {
            Trigger::Event(condition) if condition.matches(node, event, table, None) => {
                self.count(node, event.region(), table)
            }
            _ => None,
        }
    }

    /// What it waits for has happened on `node`, in `region` if it is of one.
    fn count(
        &mut self,
        node: NodeId,
        region: Option<RegionId>,
        table: &dyn Fn(u32) -> Option<String>,
    ) -> Option<Strike> {
        let it = It { node: Some(node), region };
        let by = match &self.rule.each {
            None => It::default(),
            Some(Each::Node) => It { node: Some(node), region: None },
            Some(Each::Region) => It { node: None, region },
            Some(Each::RegionOf(name)) => {
                let region = region.filter(|region| table(region.table().0).as_ref() == Some(name))?;
                It { node: None, region: Some(region) }
            }
            Some(Each::Replica) => it,
        };
        let met = self.met.entry(by).or_default();
        *met += 1;
        if *met < self.rule.nth || *met >= self.rule.nth + self.rule.times {
            return None;
        }
        self.struck += 1;
        let after = self.rule.after.map_or(Duration::ZERO, |after| after.duration());
        Some(Strike { rule: self.rule.name.clone(), after, fault: self.rule.fault.clone(), it, by, seen: None })
    }
}

/// Virtual time since the run began.
pub fn now() -> Duration {
    madsim::time::TimeHandle::try_current().map_or(Duration::ZERO, |time| time.elapsed())
}

/// Events that a person would want to see around a failure.
fn is_worth_a_line(event: &Event) -> bool {
    !matches!(
        event,
        Event::Appended { .. }
            | Event::Durable { .. }
            | Event::Committed { .. }
            | Event::Applied { .. }
            | Event::ManifestEdited { .. }
            | Event::ManifestCheckpointed { .. }
            | Event::WriteProposed { .. }
            | Event::WriteAnswered { .. }
    )
}

/// An event in one line, without its payloads.
struct Line<'a>(&'a Event);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(event) = self;
        let kind = Event::SCHEMA.iter().find(|(name, _)| *name == event.name());
        let fields = kind.map_or(&[][..], |(_, fields)| *fields);
        f.write_str(event.name())?;
        for (field, kind) in fields.iter().filter(|(_, kind)| *kind != "Bytes") {
            let value = event.field(field).unwrap_or_default();
            match *kind {
                "Vec<(LogId, u64)>" => write!(f, " {field}={} entries", value.matches("LogId").count())?,
                _ => write!(f, " {field}={value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::NAMES;
    use crate::scenario::parse;

    fn plan(expect: &str) -> Plan {
        let text = format!("# Goal.\ntitle = \"x\"\n[expect]\nholds = [\"SELECT 1\"]\n{expect}\n");
        let scenario = parse(&text, "x.toml", "x", std::path::Path::new(".")).unwrap_or_else(|err| panic!("{err}"));
        Plan::resolve(&scenario, 1)
    }

    fn hub(expect: &str) -> Hub {
        Hub::new(&plan(expect), Trace::new()).0
    }

    fn found(oracle: &'static str) -> Violation {
        Violation { oracle, signature: "it is wrong".into(), evidence: vec!["here".into()] }
    }

    #[test]
    fn every_oracle_that_has_a_name_is_counted_and_no_other() {
        let counted: Vec<String> = hub("").state().evaluations().into_keys().collect();
        assert_eq!(counted, NAMES);
    }

    #[test]
    fn an_exemption_excuses_the_findings_of_its_oracle_and_of_no_other() {
        let hub = hub("exempt = [{ oracle = \"raft\", reason = \"on purpose\" }]");
        hub.fail(found("raft"));
        hub.fail(found("raft"));
        assert_eq!(hub.state().failure(), None);
        let exempted = hub.state().exempted();
        assert_eq!(exempted.keys().collect::<Vec<_>>(), ["raft"]);
        let raft = &exempted["raft"];
        assert_eq!((raft.findings, raft.idle, raft.was_needed()), (2, true, true));
        assert_eq!((raft.reason.as_str(), raft.first.join(": ").as_str()), ("on purpose", "it is wrong: here"));
        hub.fail(found("clients"));
        assert_eq!(hub.state().failure().map(|(_, signature)| signature.clone()), Some("clients: it is wrong".into()));
    }
}
