//! Drives the procedures, on the leader of the meta group only: calls nodes, and records what took effect.
//!
//! It decides nothing ([`Procedure`](super::Procedure) does) and knows nothing that the log does not: killed at any
//! moment, it loses the answers of one round of calls, all of which can be asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use super::command::{Command, Outcome, Progress};
use super::detector::{Detector, hopeless, left_behind, next_repair};
use super::machine::Machine;
use super::procedure::{Action, Procedure, Target};
use super::{Group, Nodes};
use crate::clock::Clock;
use crate::error::{Error, Invalid, IoKind, Result};
use crate::event::{Event, Events};
use crate::options::Options;
use crate::server::message::{Request, Response};
use crate::types::{NodeId, ProcedureId};

/// Drives the procedures while this replica leads. Each step that it records is an [`Event::ProcedureStep`], once: here,
/// on the leader that proposed it, not where entries are applied; none if the outcome of the proposal stayed unknown. So it is
/// with the steps that an entry makes other procedures reach.
pub struct Runner {
    group: Arc<dyn Group>,
    nodes: Arc<dyn Nodes>,
    machine: Arc<Machine>,
    clock: Arc<dyn Clock>,
    events: Events,
    retry_min: Duration,
    retry_max: Duration,
    call: Duration,
    /// Silence after which a node is dead; zero: never.
    dead_after: Duration,
    repairs: u64,
    /// Time in which a step of a move has to get on.
    move_patience: Duration,
    obstacles: Arc<Obstacles>,
}

/// What holds up the procedures, as the leader of meta heard last: for people. Nothing is decided by it, and the next leader
/// begins with none.
#[derive(Debug, Default)]
pub struct Obstacles(Mutex<BTreeMap<ProcedureId, String>>);

/// Why a procedure is not driven any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It has ended.
    Ended,
    /// This replica does not lead any more, or not in the term it began with.
    Deposed,
}

impl Runner {
    /// For the replica of `group` that applies to `machine`.
    pub fn new(
        group: Arc<dyn Group>,
        nodes: Arc<dyn Nodes>,
        machine: Arc<Machine>,
        clock: Arc<dyn Clock>,
        events: Events,
        options: &Options,
    ) -> Runner {
        Runner {
            group,
            nodes,
            machine,
            clock,
            events,
            retry_min: Duration::from_millis(options.retry_min_ms),
            retry_max: Duration::from_millis(options.retry_max_ms),
            call: Duration::from_millis(options.rpc_timeout_ms),
            dead_after: Duration::from_millis(options.node_dead_ms),
            repairs: options.node_repairs,
            move_patience: Duration::from_millis(options.move_patience_ms),
            obstacles: Arc::default(),
        }
    }

    /// What holds up the procedures that it drives.
    pub fn obstacles(&self) -> Arc<Obstacles> {
        self.obstacles.clone()
    }

    /// To be called when this replica has become the leader of `term`; returns soon after it has ceased to be.
    /// Dropping the future stops it at once: nothing is left behind that still runs.
    pub async fn run(&self, term: u64) {
        self.obstacles.clear();
        if !self.caught_up(term).await {
            return;
        }
        let mut changes = self.machine.changes();
        let mut driven = BTreeSet::new();
        let mut drives = FuturesUnordered::new();
        let mut watching = std::pin::pin!(self.watch(term));
        while self.leads(term) {
            for id in self.machine.read(|state| state.procedures().map(|procedure| procedure.id).collect::<Vec<_>>()) {
                if driven.insert(id) {
                    drives.push(async move { (id, self.drive(id, term).await) });
                }
            }
            tokio::select! {
                biased;
                Some((id, end)) = drives.next() => {
                    driven.remove(&id);
                    if end == End::Deposed {
                        return;
                    }
                }
                // The sender lives as long as the machine, so this is a change.
                _ = changes.changed() => {}
                () = &mut watching => return,
                () = sleep(self.retry_max) => {}
            }
        }
    }

    /// Waits until this replica has applied what earlier leaders committed. False: it does not lead any more.
    async fn caught_up(&self, term: u64) -> bool {
        let mut attempt = 0;
        while self.leads(term) {
            if self.group.read_index().await.is_ok() {
                return true;
            }
            self.pause(&mut attempt).await;
        }
        false
    }

    /// Takes one procedure to its end.
    async fn drive(&self, id: ProcedureId, term: u64) -> End {
        let mut attempt = 0;
        let mut step = None;
        let mut since = Instant::now();
        while self.leads(term) {
            let procedure = self.machine.read(|state| state.procedure(id).cloned());
            let Some(procedure) = procedure else {
                self.obstacles.note(id, None);
                return End::Ended;
            };
            if step.replace(procedure.step) != Some(procedure.step) {
                attempt = 0;
                since = Instant::now();
                self.obstacles.note(id, None);
            }
            let asked = procedure.next(term, attempt).into_iter().map(|action| self.ask(action));
            let answers: Vec<Answered> = join_all(asked).await;
            let obstacle = obstacle(&answers);
            let mut progress = procedure.progress(answers.into_iter().map(|(_, target, answer)| (target, answer)));
            if progress.is_none() {
                if procedure.state.can_be_given_up() && since.elapsed() >= self.move_patience {
                    progress = Some(self.out_of_patience(&procedure, obstacle.as_deref()));
                }
                self.obstacles.note(id, obstacle);
            }
            let recorded = match progress {
                Some(progress) => self.record(&procedure, term, progress).await,
                None => Ok(false),
            };
            match recorded {
                Ok(true) => {}
                Ok(false) => self.pause(&mut attempt).await,
                Err(end) => return end,
            }
        }
        End::Deposed
    }

    /// Asks all nodes again and again whether they are there, and has what is on dead ones made elsewhere. Ends when this
    /// replica does not lead any more.
    async fn watch(&self, term: u64) {
        if self.dead_after.is_zero() {
            return std::future::pending().await;
        }
        let mut detector = Detector::new(self.dead_after);
        let mut told = BTreeMap::new();
        let mut before = Instant::now();
        let tick = (self.dead_after / 10).max(Duration::from_millis(1));
        while self.leads(term) {
            // Often enough that one lost answer is not what decides.
            sleep(tick).await;
            let nodes = self.machine.read(|state| state.nodes().cloned().unwrap_or_default());
            let asked = nodes.iter().map(|node| async move {
                let answer = timeout(self.call, self.nodes.call(*node, Request::Ping, self.call)).await;
                matches!(answer, Ok(Ok(Response::Pong(_)))).then_some(*node)
            });
            let answered = join_all(asked).await.into_iter().flatten().collect();
            let now = Instant::now();
            // What else took time (this process was stopped, say) is nobody's silence.
            detector.hear(&nodes, answered, (now - before).min(tick + self.call));
            before = now;
            if self.leads(term) {
                self.repair(term, &detector, &mut told).await;
            }
        }
    }

    /// Gives up the moves onto dead nodes, and starts moves away from them. `told`: what was said of which dead node.
    async fn repair(&self, term: u64, detector: &Detector, told: &mut BTreeMap<NodeId, (u64, u64)>) {
        let silent = detector.dead();
        let (dead, live): (BTreeSet<NodeId>, _) = (silent.keys().copied().collect(), detector.live());
        told.retain(|node, _| dead.contains(node));
        for (procedure, from, node) in self.machine.read(|state| hopeless(state, &dead)) {
            let message = format!("node {node}, which was to get a replica, is dead");
            let error = Error::invalid(Invalid::Request, message);
            let Some(procedure) = self.machine.read(|state| state.procedure(procedure).cloned()) else { continue };
            if procedure.step == from {
                let _ = self.record(&procedure, term, Progress::GivenUp(error)).await;
            }
        }
        while let Some((region, from)) = self.machine.read(|state| next_repair(state, &dead, live, self.repairs)) {
            let command = Command::StartRepair { region, from, among: live.clone() };
            let outcome = self.propose(command).await;
            let Ok(Outcome::Started { reached, .. }) = outcome else {
                // Whatever it is, it is looked at again in the next round.
                tracing::debug!(%region, %from, ?outcome, "a replica on a dead node is not replaced yet");
                return;
            };
            reached.into_iter().for_each(|reached| self.events.emit(|| reached.event()));
        }
        for (node, silent) in silent {
            let left = self.machine.read(|state| left_behind(state, node, live));
            if told.insert(node, left) != Some(left) {
                let (replicas, without_place) = left;
                let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
                self.events.emit(|| Event::NodeDead { node, silent_ms, replicas, without_place });
            }
        }
    }

    fn out_of_patience(&self, procedure: &Procedure, obstacle: Option<&str>) -> Progress {
        let (step, ms) = (procedure.state.step().name(), self.move_patience.as_millis());
        let last = obstacle.unwrap_or("no node said why");
        let message = format!("the move did not get on from {step} for {ms} ms (move_patience_ms); last: {last}");
        Progress::GivenUp(Error::invalid(Invalid::Request, message))
    }

    async fn ask(&self, Action { target, node, request }: Action) -> Answered {
        let answer = match timeout(self.call, self.nodes.call(node, request, self.call)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Unknown { message: format!("node {node} did not answer in time") }),
        };
        if let Err(error) = &answer {
            tracing::debug!(%node, ?target, %error, "a step of a procedure failed on a node");
        }
        (node, target, answer)
    }

    /// Writes `progress` to the log. False: it is not there, or perhaps not; look at the state and try again.
    async fn record(&self, procedure: &Procedure, term: u64, progress: Progress) -> Result<bool, End> {
        let command = Command::Advance { procedure: procedure.id, from: procedure.step, term, progress };
        match self.propose(command).await {
            Err(Error::NotLeader { .. } | Error::Stopped) => Err(End::Deposed),
            Ok(Outcome::Advanced { reached }) => {
                reached.into_iter().for_each(|reached| self.events.emit(|| reached.event()));
                Ok(true)
            }
            outcome => {
                tracing::debug!(procedure = %procedure.id, ?outcome, "a step of a procedure was not recorded");
                Ok(false)
            }
        }
    }

    async fn propose(&self, command: Command) -> Result<Outcome> {
        Outcome::decode(&self.group.propose(command.at(self.clock.now()).encode()).await?)
    }

    fn leads(&self, term: u64) -> bool {
        self.group.leading() == Some(term)
    }

    /// The longer the more often it was in vain.
    async fn pause(&self, attempt: &mut u32) {
        let factor = 1u32.checked_shl(*attempt).unwrap_or(u32::MAX);
        *attempt = attempt.saturating_add(1);
        sleep(self.retry_min.saturating_mul(factor).min(self.retry_max)).await;
    }
}

/// Who answered, about what, and what.
type Answered = (NodeId, Target, Result<Response>);

/// Of the answers that got a procedure nowhere, the one that tells most: who answers and fails, before who does not answer,
/// before who is only the wrong one to ask.
fn obstacle(answers: &[Answered]) -> Option<String> {
    let failed = answers.iter().filter_map(|(node, _, answer)| Some((node, answer.as_ref().err()?)));
    let rank = |error: &Error| match error {
        Error::NotLeader { .. } | Error::RegionNotFound { .. } => 2,
        Error::Io { kind: IoKind::ConnectionLost, .. } | Error::Unknown { .. } | Error::Stopped => 1,
        _ => 0,
    };
    let (node, error) = failed.min_by_key(|(_, error)| rank(error))?;
    Some(format!("{node}: {error}"))
}

impl Obstacles {
    /// What holds the procedure up, if anything is known.
    pub fn of(&self, procedure: ProcedureId) -> Option<String> {
        self.inner().get(&procedure).cloned()
    }

    fn note(&self, procedure: ProcedureId, obstacle: Option<String>) {
        match obstacle {
            Some(obstacle) => drop(self.inner().insert(procedure, obstacle)),
            None => drop(self.inner().remove(&procedure)),
        }
    }

    fn clear(&self) {
        self.inner().clear();
    }

    fn inner(&self) -> MutexGuard<'_, BTreeMap<ProcedureId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
