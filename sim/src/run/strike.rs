//! Carries out faults: who is hit is decided here, at the moment of the fault, and written down by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::server::message::Request;
use engine::types::{NodeId, RegionId};

use super::hub::{Hub, It};
use super::report::Effect as Did;
use crate::cluster::{CLIENTS, Cluster};
use crate::disk::{Class, Effect, Failure, Fate, Moment, Op, Rule};
use crate::draw::Draws;
use crate::net::{FrameFate, Obstacle};
use crate::scenario::fault::{Direction, DiskEffect, DiskFault, DiskOp, Fault, FileClass, Side};
use crate::scenario::target::{Region, Target};

/// See the module. Clones share what is under way.
#[derive(Clone)]
pub struct Striker {
    cluster: Cluster,
    hub: Hub,
    draws: Draws,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Who was last hit as a leader, by rule.
    old_leaders: BTreeMap<String, NodeId>,
    obstacles: Vec<Obstacle>,
    cuts: Vec<Cut>,
    /// How often each name was drawn for.
    draws: BTreeMap<String, u64>,
    /// No fault strikes any more.
    calm: bool,
    effects: BTreeMap<&'static str, u64>,
}

/// Frames that are to be lost.
struct Cut {
    kind: engine::server::message::Kind,
    answer: bool,
    from: Option<NodeId>,
    to: Option<NodeId>,
    nth: u64,
    times: u64,
    met: u64,
}

impl Striker {
    /// Strikes `cluster`.
    pub fn new(cluster: Cluster, hub: Hub, draws: Draws) -> Striker {
        let striker = Striker { cluster, hub, draws, shared: Arc::default() };
        let cutter = striker.clone();
        striker.cluster.net().on_frame(Some(Arc::new(move |frame| {
            let mut shared = cutter.shared();
            let mut fate = FrameFate::Deliver;
            for cut in &mut shared.cuts {
                // An answer travels the other way; the scenario names the ends of the call.
                let (asker, asked) = if frame.answer { (frame.to, frame.from) } else { (frame.from, frame.to) };
                let aimed = cut.kind == frame.kind
                    && cut.answer == frame.answer
                    && cut.from.is_none_or(|from| from == asker)
                    && cut.to.is_none_or(|to| to == asked);
                if !aimed {
                    continue;
                }
                cut.met += 1;
                if cut.met >= cut.nth && cut.met < cut.nth + cut.times {
                    fate = FrameFate::Cut;
                }
            }
            if fate == FrameFate::Cut {
                let did = if frame.answer { Did::AnswersLost } else { Did::RequestsLost };
                *shared.effects.entry(did.name()).or_default() += 1;
                drop(shared);
                cutter.hub.effect(did, 1);
            }
            fate
        })));
        striker
    }

    /// Where it writes down what it does.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Carries out `fault`; whether it hit anybody. `name` is the rule's or the plan's: it names the draws.
    pub async fn strike(&self, name: &str, fault: &Fault, it: It) -> bool {
        if self.shared().calm {
            return false;
        }
        let struck = self.carry_out(name, fault, it).await;
        let text =
            if struck { format!("fault {name}: {fault}") } else { format!("fault {name}: {fault}: nobody to hit") };
        self.hub.note("fault", &text);
        struck
    }

    async fn carry_out(&self, name: &str, fault: &Fault, it: It) -> bool {
        match fault {
            Fault::PowerLoss(death) | Fault::Crash(death) => {
                let power = matches!(fault, Fault::PowerLoss(_));
                // One that died this moment, by the same fault aimed at something else that it had: it is hit all the same.
                let nodes = self.nodes(name, &death.target, it);
                for node in &nodes {
                    if self.cluster.is_up(*node) {
                        self.kill(*node, power).await;
                    }
                }
                if let Some(after) = death.restart_after {
                    self.later(after.duration(), nodes.clone(), |striker, node| striker.cluster.boot(node));
                }
                !nodes.is_empty()
            }
            Fault::Restart(target) => {
                let nodes = self.nodes(name, target, it);
                for node in &nodes {
                    if self.cluster.is_up(*node) {
                        self.kill(*node, false).await;
                    }
                    self.cluster.boot(*node);
                }
                !nodes.is_empty()
            }
            Fault::Pause(stay) => {
                let nodes = self.running(name, &stay.target, it);
                for node in &nodes {
                    self.cluster.pause(*node);
                    self.did(Did::Pauses, 1);
                }
                if let Some(lasts) = stay.lasts {
                    self.later(lasts.duration(), nodes.clone(), |striker, node| striker.cluster.resume(node));
                }
                !nodes.is_empty()
            }
            Fault::Resume(target) => {
                let nodes = self.nodes(name, target, it);
                nodes.iter().for_each(|node| self.cluster.resume(*node));
                !nodes.is_empty()
            }
            Fault::TransferLeader { region, to } => self.transfer(name, region, to.as_ref(), it).await,
            Fault::Isolate(cutoff) => {
                let nodes = self.nodes(name, &cutoff.target, it);
                let others = |node: NodeId| {
                    let mut others = self.cluster.ids();
                    others.push(CLIENTS);
                    others.retain(|other| *other != node);
                    others
                };
                let obstacles =
                    nodes.iter().map(|node| self.obstruct(&[*node], &others(*node), cutoff.direction)).collect();
                self.hold(obstacles, cutoff.lasts.map(|lasts| lasts.duration()));
                !nodes.is_empty()
            }
            Fault::Partition { from, to, direction, lasts } => {
                let side = |targets: &[Target]| -> Vec<NodeId> {
                    targets.iter().flat_map(|target| self.nodes(name, target, it)).collect()
                };
                let obstacle = self.obstruct(&side(from), &side(to), *direction);
                self.hold(vec![obstacle], lasts.map(|lasts| lasts.duration()));
                true
            }
            Fault::Heal => {
                let obstacles = std::mem::take(&mut self.shared().obstacles);
                let healed = !obstacles.is_empty();
                for obstacle in obstacles {
                    self.lift(obstacle);
                }
                healed
            }
            Fault::Cut { kind, side, nth, times, from, to } => {
                let one = |target: &Option<Target>| {
                    target.as_ref().and_then(|target| self.nodes(name, target, it).first().copied())
                };
                let (from, to) = (one(from), one(to));
                let answer = *side == Side::Answer;
                if answer {
                    self.hub.state().story.answers_are_lost();
                }
                let cut = Cut { kind: kind.0, answer, from, to, nth: *nth, times: *times, met: 0 };
                self.shared().cuts.push(cut);
                true
            }
            Fault::Disk(fault) => self.fail_disk(name, fault, it),
            Fault::Clock { node, offset, drift_ppm } => {
                let nodes = self.nodes(name, node, it);
                for node in &nodes {
                    self.cluster.clock(*node).step(offset.ms);
                    self.cluster.clock(*node).set_drift(*drift_ppm);
                    self.did(Did::ClocksChanged, 1);
                }
                !nodes.is_empty()
            }
            // A wiped replica has to come back under a new id, which replacement will do: until then nothing is hit, and a
            // rule or step that wipes shows as having hit nobody.
            Fault::Wipe(_) => false,
            Fault::Option(changes) => self.set_options(changes),
        }
    }

    async fn kill(&self, node: NodeId, power: bool) {
        let loss = self.cluster.kill(node, power);
        self.did(if power { Did::PowerLosses } else { Did::Crashes }, 1);
        self.did(Did::UnsyncedBytesLost, loss.bytes);
        self.did(Did::SectorsTorn, loss.sectors_torn);
        self.did(Did::DirectoryEntriesLost, loss.entries);
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
        let asked = self.cluster.ask(leader, request, Duration::from_secs(2)).await.is_ok();
        self.did(Did::Transfers, u64::from(asked));
        asked
    }

    fn fail_disk(&self, name: &str, fault: &DiskFault, it: It) -> bool {
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
            deadly => {
                nodes.iter().for_each(|node| self.aim_death(*node, deadly, class, ops, fault.nth));
                return !nodes.is_empty();
            }
        };
        let times = fault.times.unwrap_or(u64::MAX - fault.nth);
        for node in &nodes {
            let disk = self.cluster.disk(*node).clone();
            let armed: Vec<_> =
                ops.iter().map(|op| disk.arm(Rule { class, op: *op, nth: fault.nth, times, effect })).collect();
            if let Some(lasts) = fault.lasts {
                madsim::task::spawn(async move {
                    madsim::time::sleep(lasts.duration()).await;
                    armed.into_iter().for_each(|id| disk.disarm(id));
                    disk.lift();
                });
            }
        }
        !nodes.is_empty()
    }

    /// The process dies exactly before or after the n-th such operation from now on.
    fn aim_death(&self, node: NodeId, effect: DiskEffect, class: Option<Class>, ops: &'static [Op], nth: u64) {
        let moment = match effect {
            DiskEffect::PowerLossBefore | DiskEffect::CrashBefore => Moment::Before,
            _ => Moment::After,
        };
        let power = matches!(effect, DiskEffect::PowerLossBefore | DiskEffect::PowerLossAfter);
        let met = Mutex::new(0);
        let (died, mut dead) = tokio::sync::mpsc::unbounded_channel();
        self.cluster.disk(node).on_op(Arc::new(move |site| {
            let aimed =
                site.moment == moment && ops.contains(&site.op) && class.is_none_or(|class| class == site.class);
            if !aimed {
                return Fate::Live;
            }
            let mut met = met.lock().unwrap_or_else(PoisonError::into_inner);
            *met += 1;
            if *met != nth {
                return Fate::Live;
            }
            let _ = died.send(());
            Fate::Die
        }));
        let striker = self.clone();
        madsim::task::spawn(async move {
            if dead.recv().await.is_some() {
                striker.kill(node, power).await;
                // What dies at an operation comes back by itself: the scenario is about what it finds.
                madsim::time::sleep(Duration::from_millis(100)).await;
                striker.cluster.boot(node);
            }
        });
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
        let obstacles = {
            let mut shared = self.shared();
            shared.calm = true;
            shared.cuts.clear();
            std::mem::take(&mut shared.obstacles)
        };
        for obstacle in obstacles {
            self.lift(obstacle);
        }
        self.cluster.net().calm();
        self.did(Did::SegmentsHeld, self.cluster.net().effects().segments_held);
        for node in self.cluster.ids() {
            let before = self.cluster.disk(node).effects();
            self.did(Did::Stalls, before.stalls);
            self.did(
                Did::IoErrors,
                before.reads_failed + before.writes_failed + before.syncs_failed + before.names_failed,
            );
            self.cluster.disk(node).calm();
            self.cluster.disk(node).set_capacity(u64::MAX / 2);
            self.cluster.clock(node).correct();
            self.cluster.resume(node);
            self.cluster.boot(node);
        }
    }

    /// What faults did so far, by the names of reports.
    pub fn effects(&self) -> BTreeMap<String, u64> {
        let mut effects: BTreeMap<String, u64> =
            self.shared().effects.iter().map(|(name, amount)| ((*name).to_string(), *amount)).collect();
        let net = self.cluster.net().effects();
        effects.insert(Did::ConnectionsCut.name().into(), net.connections_cut + net.resets + net.given_up);
        effects
    }

    fn did(&self, effect: Did, amount: u64) {
        if amount > 0 {
            *self.shared().effects.entry(effect.name()).or_default() += amount;
            self.hub.effect(effect, amount);
        }
    }

    fn obstruct(&self, a: &[NodeId], b: &[NodeId], direction: Direction) -> Obstacle {
        match direction {
            Direction::Both => self.cluster.net().partition(a, b),
            Direction::Out => self.cluster.net().partition_one_way(a, b),
            Direction::In => self.cluster.net().partition_one_way(b, a),
        }
    }

    fn hold(&self, obstacles: Vec<Obstacle>, lasts: Option<Duration>) {
        let Some(lasts) = lasts else {
            self.shared().obstacles.extend(obstacles);
            return;
        };
        let striker = self.clone();
        madsim::task::spawn(async move {
            madsim::time::sleep(lasts).await;
            for obstacle in obstacles {
                striker.lift(obstacle);
            }
        });
    }

    fn lift(&self, obstacle: Obstacle) {
        // What it held counts in the network's own figures.
        self.cluster.net().lift(obstacle);
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

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
