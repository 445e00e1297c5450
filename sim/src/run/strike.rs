//! Carries out faults: who is hit is decided here, at the moment of the fault, and written down by name. Keeps account of
//! what each fault did: one that did nothing showed nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::server::message::{Kind, Request};
use engine::types::{NodeId, RegionId};
use tokio::sync::mpsc;

use super::hub::{Hub, It, Strike};
use super::report::Effect as Did;
use crate::cluster::{CLIENTS, Cluster};
use crate::disk::{Class, Effect, Failure, Fate, Moment, Op, Rule, RuleId, SimDisk, Site};
use crate::draw::Draws;
use crate::net::{Frame, FrameFate, Obstacle};
use crate::plan::PlannedFault;
use crate::scenario::durable::Seen;
use crate::scenario::fault::{Direction, DiskEffect, DiskFault, DiskOp, Fault, FileClass, Side};
use crate::scenario::target::{Region, Target};

/// See the module. Clones share what is under way.
#[derive(Clone)]
pub struct Striker {
    cluster: Cluster,
    hub: Hub,
    draws: Draws,
    shared: Arc<Mutex<Shared>>,
    /// Nodes that died at an operation of a disk.
    deaths: mpsc::UnboundedSender<Dead>,
}

/// A node that is to be killed, because of an operation of a disk.
struct Dead {
    node: NodeId,
    /// Which start of it.
    incarnation: u64,
    /// Whether the power went.
    power: bool,
    /// When it comes back.
    back: Option<Duration>,
}

#[derive(Default)]
struct Shared {
    /// Who was last hit as a leader, by rule.
    old_leaders: BTreeMap<String, NodeId>,
    obstacles: BTreeMap<u64, Placed>,
    last_obstacle: u64,
    cuts: Vec<Cut>,
    aims: BTreeMap<NodeId, Vec<Aim>>,
    /// How often each name was drawn for.
    draws: BTreeMap<String, u64>,
    /// No fault strikes any more.
    calm: bool,
    effects: BTreeMap<Did, u64>,
    accounts: BTreeMap<String, Account>,
}

/// What the faults of a rule are accounted by.
pub fn rule_label(rule: &str) -> String {
    format!("the rule \"{rule}\"")
}

/// What came of one fault that the scenario declares (by a step, a rule, a kind of a storm), over all its strikes.
#[derive(Default)]
struct Account {
    /// In words, as it was at its first strike.
    fault: String,
    struck: u64,
    did: u64,
    /// Rules of disks that it armed: these count by themselves.
    armed: Vec<(SimDisk, RuleId)>,
    /// Starts with other options before it set some.
    reconfigured: Option<u64>,
}

/// An obstacle in the network, and on whose account it is.
struct Placed {
    label: String,
    obstacle: Obstacle,
}

/// Frames that are to be lost.
struct Cut {
    label: String,
    kind: Kind,
    answer: bool,
    from: Option<NodeId>,
    to: Option<NodeId>,
    nth: u64,
    times: u64,
    met: u64,
}

/// An operation of a disk at which its node is to die.
struct Aim {
    label: String,
    moment: Moment,
    power: bool,
    class: Option<Class>,
    ops: &'static [Op],
    nth: u64,
    met: u64,
}

impl Striker {
    /// Strikes `cluster`.
    pub fn new(cluster: Cluster, hub: Hub, draws: Draws) -> Striker {
        let (deaths, mut died) = mpsc::unbounded_channel();
        let striker = Striker { cluster, hub, draws, shared: Arc::default(), deaths };
        let cutter = striker.clone();
        striker.cluster.net().on_frame(Some(Arc::new(move |frame| cutter.fate(frame))));
        let undertaker = striker.clone();
        madsim::task::spawn(async move {
            while let Some(Dead { node, incarnation, power, back }) = died.recv().await {
                // Something else may have ended it meanwhile.
                if undertaker.cluster.disk(node).incarnation() != incarnation {
                    continue;
                }
                undertaker.kill(node, power).await;
                if let Some(back) = back {
                    undertaker.later(back, vec![node], |striker, node| {
                        striker.cluster.boot(node);
                    });
                }
            }
        });
        if striker.hub.waits_for_durable_steps() {
            striker.cluster.ids().into_iter().for_each(|node| striker.watch(node));
        }
        striker
    }

    /// Where it writes down what it does.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Carries out `fault`; whether it hit anybody. `name` is the rule's or the plan's and names the draws; `label` is the
    /// account that it is on.
    pub async fn strike(&self, name: &str, label: &str, fault: &Fault, it: It) -> bool {
        if !self.open_account(label, fault) {
            return false;
        }
        let struck = self.carry_out(name, label, fault, it).await;
        let text =
            if struck { format!("fault {name}: {fault}") } else { format!("fault {name}: {fault}: nobody to hit") };
        self.hub.note("fault", &text);
        struck
    }

    /// A strike is on the account of `label`; false: no fault strikes any more.
    fn open_account(&self, label: &str, fault: &Fault) -> bool {
        let mut shared = self.shared();
        if !shared.calm && !fault.is_an_end() {
            let account = shared.accounts.entry(label.to_string()).or_default();
            account.struck += 1;
            if account.fault.is_empty() {
                account.fault = fault.to_string();
            }
        }
        !shared.calm
    }

    async fn carry_out(&self, name: &str, label: &str, fault: &Fault, it: It) -> bool {
        match fault {
            Fault::PowerLoss(death) | Fault::Crash(death) => {
                let power = matches!(fault, Fault::PowerLoss(_));
                // One that died this moment, by the same fault aimed at something else that it had: it is hit all the same.
                let nodes = self.nodes(name, &death.target, it);
                for node in &nodes {
                    if self.cluster.is_up(*node) {
                        self.kill(*node, power).await;
                        self.credit(label, 1);
                    }
                }
                if let Some(after) = death.restart_after {
                    self.later(after.duration(), nodes.clone(), |striker, node| {
                        striker.cluster.boot(node);
                    });
                }
                !nodes.is_empty()
            }
            Fault::Restart(target) => {
                let nodes = self.nodes(name, target, it);
                for node in &nodes {
                    if self.cluster.is_up(*node) {
                        self.kill(*node, false).await;
                    }
                    self.did(label, Did::Restarts, u64::from(self.cluster.boot(*node)));
                }
                !nodes.is_empty()
            }
            Fault::Pause(stay) => {
                let nodes = self.running(name, &stay.target, it);
                for node in &nodes {
                    self.did(label, Did::Pauses, u64::from(self.cluster.pause(*node)));
                }
                if let Some(lasts) = stay.lasts {
                    self.later(lasts.duration(), nodes.clone(), |striker, node| {
                        striker.cluster.resume(node);
                    });
                }
                !nodes.is_empty()
            }
            Fault::Resume(target) => {
                let nodes = self.nodes(name, target, it);
                for node in &nodes {
                    self.did(label, Did::Resumes, u64::from(self.cluster.resume(*node)));
                }
                !nodes.is_empty()
            }
            Fault::TransferLeader { region, to } => {
                let asked = self.transfer(name, region, to.as_ref(), it).await;
                self.did(label, Did::Transfers, u64::from(asked));
                asked
            }
            Fault::Isolate(cutoff) => {
                let nodes = self.nodes(name, &cutoff.target, it);
                let everybody: Vec<NodeId> = self.cluster.ids().into_iter().chain([CLIENTS]).collect();
                let obstacles = nodes.iter().map(|node| {
                    let others: Vec<NodeId> = everybody.iter().copied().filter(|other| other != node).collect();
                    self.obstruct(&[*node], &others, cutoff.direction)
                });
                self.place(label, obstacles.collect(), cutoff.lasts.map(|lasts| lasts.duration()));
                !nodes.is_empty()
            }
            Fault::Partition { from, to, direction, lasts } => {
                let side = |targets: &[Target]| -> Vec<NodeId> {
                    targets.iter().flat_map(|target| self.nodes(name, target, it)).collect()
                };
                let (from, to) = (side(from), side(to));
                if from.is_empty() || to.is_empty() {
                    return false;
                }
                let obstacle = self.obstruct(&from, &to, *direction);
                self.place(label, vec![obstacle], lasts.map(|lasts| lasts.duration()));
                true
            }
            Fault::Heal => {
                let placed: Vec<u64> = self.shared().obstacles.keys().copied().collect();
                placed.iter().for_each(|number| self.lift(*number));
                self.did(label, Did::Heals, placed.len() as u64);
                !placed.is_empty()
            }
            Fault::Cut { kind, side, nth, times, from, to } => {
                // Somebody who cannot be found is not everybody.
                let one = |target: &Option<Target>| match target {
                    None => Some(None),
                    Some(target) => self.nodes(name, target, it).first().copied().map(Some),
                };
                let (Some(from), Some(to)) = (one(from), one(to)) else { return false };
                let (label, answer) = (label.to_string(), *side == Side::Answer);
                if answer {
                    self.hub.state().story.answers_are_lost();
                }
                let cut = Cut { label, kind: kind.0, answer, from, to, nth: *nth, times: *times, met: 0 };
                self.shared().cuts.push(cut);
                true
            }
            Fault::Disk(fault) => self.fail_disk(name, label, fault, it),
            Fault::Clock { node, offset, drift_ppm } => {
                let nodes = self.nodes(name, node, it);
                for node in &nodes {
                    let clock = self.cluster.clock(*node);
                    let before = clock.ahead_ms();
                    clock.step(offset.ms);
                    clock.set_drift(*drift_ppm);
                    let is_off = clock.ahead_ms() != before || *drift_ppm != 0;
                    self.did(label, Did::ClocksChanged, u64::from(is_off));
                }
                !nodes.is_empty()
            }
            Fault::Option(changes) => {
                let set = self.set_options(changes);
                let before = self.cluster.reconfigured();
                if let Some(account) = self.shared().accounts.get_mut(label).filter(|_| set) {
                    account.reconfigured.get_or_insert(before);
                }
                set
            }
        }
    }

    async fn kill(&self, node: NodeId, power: bool) {
        let loss = self.cluster.kill(node, power);
        self.count(if power { Did::PowerLosses } else { Did::Crashes }, 1);
        self.count(Did::UnsyncedBytesLost, loss.bytes);
        self.count(Did::SectorsTorn, loss.sectors_torn);
        self.count(Did::DirectoryEntriesLost, loss.entries);
        super::watch::look_at_disk(&self.cluster, &self.hub, node).await;
    }

    async fn transfer(&self, name: &str, region: &Region, to: Option<&Target>, it: It) -> bool {
        let found = {
            let state = self.hub.state();
            state.region(region, it).and_then(|id| Some((id, state.leader(id)?, state.replicas_of(id))))
        };
        let Some((id, leader, replicas)) = found else { return false };
        let to = match to {
            Some(target) => self.nodes(name, target, it).first().copied(),
            None => {
                let others: Vec<NodeId> =
                    replicas.iter().map(|(node, _)| *node).filter(|node| *node != leader).collect();
                self.draw(name, "to", &others)
            }
        };
        let Some((_, replica)) = to.and_then(|to| replicas.iter().find(|(node, _)| *node == to)) else { return false };
        let request = Request::Transfer { region: id, to: *replica };
        self.cluster.ask(leader, request, Duration::from_secs(2)).await.is_ok()
    }

    fn fail_disk(&self, name: &str, label: &str, fault: &DiskFault, it: It) -> bool {
        let nodes = self.nodes(name, &fault.node, it);
        let class = match fault.files {
            FileClass::Any => None,
            FileClass::Log => Some(Class::Log),
            FileClass::Manifest => Some(Class::Manifest),
            FileClass::Sst => Some(Class::Sst),
        };
        let ops: &[Op] = match fault.op {
            DiskOp::Any => {
                &[Op::Read, Op::Write, Op::SetLen, Op::Sync, Op::SyncDir, Op::Create, Op::Rename, Op::Remove]
            }
            DiskOp::Read => &[Op::Read],
            DiskOp::Write => &[Op::Write, Op::Create],
            DiskOp::Fsync => &[Op::Sync, Op::SyncDir],
            DiskOp::Rename => &[Op::Rename],
            DiskOp::Truncate => &[Op::SetLen],
            DiskOp::Remove => &[Op::Remove],
        };
        let effect = match fault.effect {
            DiskEffect::Eio => Effect::Fail(Failure::Io),
            DiskEffect::Full => Effect::Fail(Failure::Full),
            DiskEffect::Slow => {
                Effect::Stall(Some(fault.delay.map_or(Duration::from_millis(100), |delay| delay.duration())))
            }
            DiskEffect::Stall => Effect::Stall(None),
            DiskEffect::Rot => Effect::Rot,
            deadly => {
                let before = matches!(deadly, DiskEffect::PowerLossBefore | DiskEffect::CrashBefore);
                let moment = if before { Moment::Before } else { Moment::After };
                let power = matches!(deadly, DiskEffect::PowerLossBefore | DiskEffect::PowerLossAfter);
                for node in &nodes {
                    let (label, nth) = (label.to_string(), fault.nth);
                    self.aim(*node, Aim { label, moment, power, class, ops, nth, met: 0 });
                }
                return !nodes.is_empty();
            }
        };
        let times = fault.times.unwrap_or(u64::MAX - fault.nth);
        for node in &nodes {
            let disk = self.cluster.disk(*node).clone();
            let armed: Vec<_> =
                ops.iter().map(|op| disk.arm(Rule { class, op: *op, nth: fault.nth, times, effect })).collect();
            if let Some(account) = self.shared().accounts.get_mut(label) {
                account.armed.extend(armed.iter().map(|id| (disk.clone(), *id)));
            }
            if let Some(lasts) = fault.lasts {
                let striker = self.clone();
                madsim::task::spawn(async move {
                    madsim::time::sleep(lasts.duration()).await;
                    // A disk that had nothing to do meanwhile was neither slow nor broken: it is so when it has.
                    while armed.iter().all(|id| disk.fired(*id) == 0) && !striker.shared().calm {
                        madsim::time::sleep(Duration::from_millis(100)).await;
                    }
                    armed.into_iter().for_each(|id| disk.disarm(id));
                    disk.lift();
                });
            }
        }
        !nodes.is_empty()
    }

    /// The process dies exactly before or after the n-th such operation from now on. Several may be aimed at one disk.
    fn aim(&self, node: NodeId, aim: Aim) {
        self.shared().aims.entry(node).or_default().push(aim);
        self.watch(node);
    }

    /// Is asked about every operation of the node's disk.
    fn watch(&self, node: NodeId) {
        let striker = self.clone();
        self.cluster.disk(node).on_op(Arc::new(move |site| striker.at_operation(node, site)));
    }

    /// Whether the node dies at this operation of its disk.
    fn at_operation(&self, node: NodeId, site: &Site<'_>) -> Fate {
        let hit: Vec<Aim> = {
            let mut shared = self.shared();
            let aims = shared.aims.entry(node).or_default();
            for aim in aims.iter_mut() {
                let aimed = aim.moment == site.moment && aim.ops.contains(&site.op);
                aim.met += u64::from(aimed && aim.class.is_none_or(|class| class == site.class));
            }
            aims.extract_if(.., |aim| aim.met == aim.nth).collect()
        };
        hit.iter().for_each(|aim| self.credit(&aim.label, 1));
        let mut fate = Fate::Live;
        if let Some(first) = hit.first() {
            // What dies at an operation comes back by itself: the scenario is about what it finds.
            self.dies(node, first.power, Some(Duration::from_millis(100)));
            fate = Fate::Die;
        }
        let strikes = Seen::of(site).map(|seen| self.hub.durable(node, &seen)).unwrap_or_default();
        for strike in strikes {
            if self.strike_now(strike).contains(&node) {
                fate = Fate::Die;
            }
        }
        fate
    }

    /// A rule has met its durable step: who is to die of it is dead from this moment on. All else is carried out beside.
    fn strike_now(&self, strike: Strike) -> Vec<NodeId> {
        let (Fault::PowerLoss(death) | Fault::Crash(death), true) = (&strike.fault, strike.after.is_zero()) else {
            self.hub.carry_out(strike);
            return Vec::new();
        };
        let label = rule_label(&strike.rule);
        if !self.open_account(&label, &strike.fault) {
            return Vec::new();
        }
        let mut nodes = self.nodes(&strike.rule, &death.target, strike.it);
        nodes.retain(|node| self.cluster.is_up(*node));
        if nodes.is_empty() {
            self.hub.state().missed(&strike);
            return nodes;
        }
        for node in &nodes {
            self.credit(&label, 1);
            let power = matches!(strike.fault, Fault::PowerLoss(_));
            self.dies(*node, power, death.restart_after.map(|after| after.duration()));
        }
        self.hub.note("fault", &format!("fault {}: {}", strike.rule, strike.fault));
        self.hub.state().story.fault(&strike.rule, strike.fault.to_string(), strike.seen);
        nodes
    }

    fn dies(&self, node: NodeId, power: bool, back: Option<Duration>) {
        let incarnation = self.cluster.disk(node).incarnation();
        // The run may be over already.
        let _ = self.deaths.send(Dead { node, incarnation, power, back });
    }

    /// What becomes of a frame.
    fn fate(&self, frame: &Frame) -> FrameFate {
        // An answer travels the other way; the scenario names the ends of the call.
        let (asker, asked) = if frame.answer { (frame.to, frame.from) } else { (frame.from, frame.to) };
        let lost: Vec<String> = {
            let mut shared = self.shared();
            let aimed = |cut: &&mut Cut| {
                cut.kind == frame.kind
                    && cut.answer == frame.answer
                    && cut.from.is_none_or(|from| from == asker)
                    && cut.to.is_none_or(|to| to == asked)
            };
            let met = shared.cuts.iter_mut().filter(aimed).map(|cut| {
                cut.met += 1;
                (cut.nth..cut.nth + cut.times).contains(&cut.met).then(|| cut.label.clone())
            });
            met.flatten().collect()
        };
        if lost.is_empty() {
            return FrameFate::Deliver;
        }
        lost.iter().for_each(|label| self.credit(label, 1));
        self.count(if frame.answer { Did::AnswersLost } else { Did::RequestsLost }, 1);
        FrameFate::Cut
    }

    fn set_options(&self, changes: &BTreeMap<String, toml::Value>) -> bool {
        let mut options = self.cluster.options();
        let Ok(toml::Value::Table(mut table)) = toml::Value::try_from(&*options) else { return false };
        table.extend(changes.iter().map(|(name, value)| (name.clone(), value.clone())));
        match toml::Value::Table(table).try_into::<engine::options::Options>() {
            Ok(changed) if changed.validate().is_ok() => {
                *options = changed;
                true
            }
            _ => false,
        }
    }

    /// Everything is lifted and every node runs; no fault strikes any more.
    pub fn calm(&self) {
        let placed: Vec<u64> = {
            let mut shared = self.shared();
            shared.calm = true;
            shared.cuts.clear();
            shared.aims.clear();
            shared.obstacles.keys().copied().collect()
        };
        placed.into_iter().for_each(|number| self.lift(number));
        self.cluster.net().calm();
        for node in self.cluster.ids() {
            self.cluster.disk(node).calm();
            self.cluster.clock(node).correct();
            self.cluster.resume(node);
            self.cluster.boot(node);
        }
    }

    /// What faults did so far.
    pub fn effects(&self) -> BTreeMap<Did, u64> {
        let mut effects = self.shared().effects.clone();
        let net = self.cluster.net().effects();
        let disks: Vec<_> = self.cluster.ids().into_iter().map(|node| self.cluster.disk(node).effects()).collect();
        effects.extend([
            (Did::ConnectionsCut, net.connections_cut + net.resets + net.given_up),
            (Did::SegmentsHeld, net.segments_held),
            (Did::Stalls, disks.iter().map(|disk| disk.stalls).sum()),
            (Did::IoErrors, disks.iter().map(|disk| disk.io_errors()).sum()),
            (Did::Rotted, disks.iter().map(|disk| disk.rotted).sum()),
            (Did::DiskFull, disks.iter().map(|disk| disk.full).sum()),
            (Did::OptionsChanged, self.cluster.reconfigured()),
        ]);
        effects.retain(|_, amount| *amount > 0);
        effects
    }

    /// Declared faults that did nothing, each with what it was. Of rules only those in `met`, whose event came.
    pub fn idle(&self, planned: &[PlannedFault], met: &[String]) -> Vec<String> {
        let placed: Vec<u64> = self.shared().obstacles.keys().copied().collect();
        placed.into_iter().for_each(|number| self.lift(number));
        let reconfigured = self.cluster.reconfigured();
        let shared = self.shared();
        let did = |account: &Account| {
            let fired: u64 = account.armed.iter().map(|(disk, id)| disk.fired(*id)).sum();
            account.did + fired + account.reconfigured.map_or(0, |before| reconfigured - before)
        };
        let idle = shared.accounts.iter().filter(|(_, account)| did(account) == 0);
        let mut idle: Vec<String> = idle
            .map(|(label, Account { fault, struck, .. })| {
                format!("{label} ({fault}) struck {struck} times without effect")
            })
            .collect();
        let declared = planned.iter().map(PlannedFault::label).chain(met.iter().map(String::as_str));
        let late: BTreeSet<&str> = declared.filter(|label| !shared.accounts.contains_key(*label)).collect();
        idle.extend(late.into_iter().map(|label| format!("{label} never struck: all else was over before")));
        idle
    }

    /// Something that a fault did, which also proves that it did something.
    fn did(&self, label: &str, effect: Did, amount: u64) {
        self.count(effect, amount);
        self.credit(label, amount);
    }

    fn count(&self, effect: Did, amount: u64) {
        *self.shared().effects.entry(effect).or_default() += amount;
    }

    /// Whether anybody died on that account.
    pub fn has_killed(&self, label: &str) -> bool {
        self.shared().accounts.get(label).is_some_and(|account| account.did > 0)
    }

    fn credit(&self, label: &str, amount: u64) {
        if let Some(account) = self.shared().accounts.get_mut(label) {
            account.did += amount;
        }
    }

    fn obstruct(&self, a: &[NodeId], b: &[NodeId], direction: Direction) -> Obstacle {
        match direction {
            Direction::Both => self.cluster.net().partition(a, b),
            Direction::Out => self.cluster.net().partition_one_way(a, b),
            Direction::In => self.cluster.net().partition_one_way(b, a),
        }
    }

    /// Keeps the obstacles until somebody lifts them, or for as long as they last and until they have held something.
    fn place(&self, label: &str, obstacles: Vec<Obstacle>, lasts: Option<Duration>) {
        let mut numbers = Vec::new();
        {
            let mut shared = self.shared();
            for obstacle in obstacles {
                shared.last_obstacle += 1;
                let number = shared.last_obstacle;
                shared.obstacles.insert(number, Placed { label: label.to_string(), obstacle });
                numbers.push(number);
            }
        }
        let Some(lasts) = lasts else { return };
        let striker = self.clone();
        madsim::task::spawn(async move {
            madsim::time::sleep(lasts).await;
            // Where nobody had anything to send meanwhile nobody was cut off: they are when they have.
            while striker.have_held(&numbers) == Some(false) && !striker.shared().calm {
                madsim::time::sleep(Duration::from_millis(100)).await;
            }
            numbers.into_iter().for_each(|number| striker.lift(number));
        });
    }

    /// Whether the obstacles have held anything; none if they are all lifted.
    fn have_held(&self, numbers: &[u64]) -> Option<bool> {
        let shared = self.shared();
        let placed = numbers.iter().filter_map(|number| shared.obstacles.get(number));
        placed.map(|placed| self.cluster.net().held(&placed.obstacle) > 0).reduce(|one, other| one || other)
    }

    /// Lifts an obstacle, unless it was healed before; what it held is on its account.
    fn lift(&self, number: u64) {
        let placed = self.shared().obstacles.remove(&number);
        if let Some(Placed { label, obstacle }) = placed {
            let held = self.cluster.net().lift(obstacle);
            self.credit(&label, held);
        }
    }

    fn later(&self, after: Duration, nodes: Vec<NodeId>, act: fn(&Striker, NodeId)) {
        let striker = self.clone();
        madsim::task::spawn(async move {
            madsim::time::sleep(after).await;
            nodes.iter().for_each(|node| act(&striker, *node));
        });
    }

    fn running(&self, name: &str, target: &Target, it: It) -> Vec<NodeId> {
        let mut nodes = self.nodes(name, target, it);
        nodes.retain(|node| self.cluster.is_up(*node));
        nodes
    }

    /// Who is meant now. What had to be chosen is written down.
    pub fn nodes(&self, name: &str, target: &Target, it: It) -> Vec<NodeId> {
        let chosen = self.look_up(name, target, it);
        if target.node().is_none() && *target != Target::EveryNode {
            let names: Vec<String> = chosen.iter().map(ToString::to_string).collect();
            self.hub.decide(&format!("{name}/{target}"), &names.join(" "));
        }
        chosen
    }

    /// As [`Striker::nodes`], only to look: nothing is drawn and nothing written down.
    pub fn would_hit(&self, name: &str, target: &Target) -> Vec<NodeId> {
        match target {
            Target::RandomNode | Target::RandomReplica(_) | Target::RandomFollower(_) => self.cluster.ids(),
            _ => self.look_up(name, target, It::default()),
        }
    }

    fn look_up(&self, name: &str, target: &Target, it: It) -> Vec<NodeId> {
        let leader = |region: RegionId| {
            let leader = self.hub.state().leader(region);
            if let Some(leader) = leader {
                self.shared().old_leaders.insert(name.to_string(), leader);
            }
            leader
        };
        let region = |region: &Region| self.hub.state().region(region, it);
        let followers = |region: RegionId| -> Vec<NodeId> {
            let state = self.hub.state();
            let leads = state.leader(region);
            state.replicas_of(region).into_iter().map(|(node, _)| node).filter(|node| Some(*node) != leads).collect()
        };
        match target {
            Target::Node(node) => vec![NodeId(u64::from(*node))],
            Target::EveryNode => self.cluster.ids(),
            Target::RandomNode => self.draw(name, "node", &self.cluster.ids()).into_iter().collect(),
            Target::Leader(of) => region(of).and_then(leader).into_iter().collect(),
            Target::EveryLeader(table) => {
                let regions = self.hub.state().regions(&crate::scenario::target::Regions::OfTable(table.clone()));
                let mut nodes: Vec<NodeId> = regions.into_iter().filter_map(leader).collect();
                nodes.sort_unstable();
                nodes.dedup();
                nodes
            }
            Target::Follower(of) => region(of).and_then(|id| followers(id).first().copied()).into_iter().collect(),
            Target::RandomReplica(of) => {
                let places = region(of).map(|id| self.hub.state().replicas_of(id)).unwrap_or_default();
                let nodes: Vec<NodeId> = places.into_iter().map(|(node, _)| node).collect();
                self.draw(name, "replica", &nodes).into_iter().collect()
            }
            Target::RandomFollower(of) => {
                let nodes = region(of).map(followers).unwrap_or_default();
                self.draw(name, "follower", &nodes).into_iter().collect()
            }
            Target::OldLeader => self.shared().old_leaders.get(name).copied().into_iter().collect(),
            Target::It => it.node.into_iter().collect(),
        }
    }

    fn draw(&self, name: &str, what: &str, nodes: &[NodeId]) -> Option<NodeId> {
        let name = format!("strike/{name}/{what}");
        let count = {
            let mut shared = self.shared();
            let count = shared.draws.entry(name.clone()).or_default();
            *count += 1;
            *count
        };
        self.draws.pick(format!("{name}/{count}"), nodes).copied()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
