//! Answers what is asked of meta, at the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Group;
use super::catalog::TableDef;
use super::command::{Command, Decision, Limits, Outcome, Reached, StatementId};
use super::machine::Machine;
use super::procedure::Procedure;
use super::request::{MetaAnswer, MetaRequest, ProcedureStatus, ViewStatus};
use super::runner::Obstacles;
use super::state::{Answer, MetaState};
use super::view::{View, ViewState};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::options::Options;
use crate::types::{NodeId, ProcedureId, RegionId, ReplicaId};

/// The meta group's door on one node. Elsewhere than on the leader's everything is answered `NotLeader`.
pub struct Service {
    group: Arc<dyn Group>,
    machine: Arc<Machine>,
    clock: Arc<dyn Clock>,
    events: Events,
    obstacles: Arc<Obstacles>,
    limits: Limits,
    /// How often a waiting statement looks whether this replica still leads.
    look_again: Duration,
}

/// What a statement is waiting for: decides what it is answered at its deadline.
enum Waiting {
    /// It may have been proposed.
    Proposal,
    /// It was not run yet: another one is busy with the table.
    Others(ProcedureId),
}

impl Service {
    /// The door to `group`, which applies to `machine`; `obstacles` are those of its runner.
    pub fn new(
        group: Arc<dyn Group>,
        machine: Arc<Machine>,
        clock: Arc<dyn Clock>,
        events: Events,
        obstacles: Arc<Obstacles>,
        options: &Options,
    ) -> Service {
        let look_again = Duration::from_millis(options.retry_max_ms);
        Service { group, machine, clock, events, obstacles, limits: Limits::of(options), look_again }
    }

    /// Says who is in the cluster: all nodes, and the replicas of the meta group. May be repeated, in the same words.
    pub async fn bootstrap(&self, nodes: BTreeSet<NodeId>, members: BTreeMap<ReplicaId, NodeId>) -> Result<()> {
        match self.propose(Command::Bootstrap { nodes, members, limits: self.limits }).await? {
            Outcome::Bootstrapped => Ok(()),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// Answers `request` within the time given.
    ///
    /// At the deadline a statement that may have been run is `Unknown`: its procedure goes on, and the same statement
    /// sent again finds it. One that waits for another statement's procedure is `Busy`: it was not run.
    pub async fn handle(&self, request: MetaRequest, within: Duration) -> Result<MetaAnswer> {
        match request {
            MetaRequest::CreateTable { table, request } => {
                let command = Command::StartCreate { table: Box::new(table), request };
                self.statement(command, request, within).await
            }
            MetaRequest::DropTable { name, if_exists, is_view, cascade, request } => {
                let command = Command::StartDrop { name, if_exists, is_view, cascade, request };
                self.statement(command, request, within).await
            }
            MetaRequest::RefillView { name, request } => {
                let command = Command::StartRefill { name, request };
                self.statement(command, request, within).await
            }
            MetaRequest::ControlJob { job, control, request } => {
                let command = Command::StartControl { job, control, request };
                self.statement(command, request, within).await
            }
            MetaRequest::FailView { view, reason } => {
                let outcome = timeout(within, self.propose(Command::StartFail { view, reason })).await;
                match outcome.map_err(|_| unknown("the view may be known to have failed"))?? {
                    Outcome::Started { reached, .. } => {
                        self.say(reached);
                        Ok(MetaAnswer::Controlled)
                    }
                    Outcome::Decided(Ok(_)) => Ok(MetaAnswer::Controlled),
                    outcome => Err(unexpected(outcome)),
                }
            }
            MetaRequest::Views => {
                self.caught_up(within).await?;
                Ok(MetaAnswer::Views(self.machine.read(views)))
            }
            MetaRequest::AlterTable { name, of, alterations, request } => {
                let command = Command::StartAlter { name, of, alterations, request };
                self.statement(command, request, within).await
            }
            MetaRequest::TruncateTable { name, request } => {
                let command = Command::StartTruncate { name, request };
                self.statement(command, request, within).await
            }
            MetaRequest::MoveReplica { name, region, from, to, request } => {
                let command = Command::StartMove { name, region, from, to, request };
                self.statement(command, request, within).await
            }
            MetaRequest::Table { name } => {
                self.caught_up(within).await?;
                Ok(MetaAnswer::Table(self.machine.read(|state| state.table(&name).cloned())))
            }
            MetaRequest::Tables => {
                self.caught_up(within).await?;
                Ok(MetaAnswer::Tables(self.machine.read(|state| state.tables().cloned().collect())))
            }
            MetaRequest::Procedures => {
                self.caught_up(within).await?;
                let status = |procedure: &Procedure| ProcedureStatus {
                    id: procedure.id,
                    kind: procedure.kind().to_string(),
                    table: procedure.subject.name().to_string(),
                    step: procedure.state.step().name().to_string(),
                    open: procedure.state.open() as u64,
                    error: procedure.state.error().map(ToString::to_string),
                    waits_for: self.obstacles.of(procedure.id),
                };
                Ok(MetaAnswer::Procedures(self.machine.read(|state| state.procedures().map(status).collect())))
            }
            MetaRequest::OpenSession => {
                let outcome = timeout(within, self.propose(Command::OpenSession)).await;
                match outcome.map_err(|_| unknown("the session may have been opened"))?? {
                    Outcome::Session(session) => Ok(MetaAnswer::Session(session)),
                    outcome => Err(unexpected(outcome)),
                }
            }
        }
    }

    async fn statement(&self, command: Command, request: StatementId, within: Duration) -> Result<MetaAnswer> {
        let mut waiting = Waiting::Proposal;
        match timeout(within, self.run(command, request, &mut waiting)).await {
            Ok(Ok(Decision::Created(table))) => Ok(MetaAnswer::Created(*table)),
            Ok(Ok(Decision::Dropped(existed))) => Ok(MetaAnswer::Dropped(existed)),
            Ok(Ok(Decision::Truncated)) => Ok(MetaAnswer::Truncated),
            Ok(Ok(Decision::Altered(table))) => Ok(MetaAnswer::Altered(*table)),
            Ok(Ok(Decision::Moved(table))) => Ok(MetaAnswer::Moved(*table)),
            Ok(Ok(Decision::Controlled)) => Ok(MetaAnswer::Controlled),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(match waiting {
                Waiting::Proposal => unknown("the statement was not decided in time and may go on"),
                Waiting::Others(by) => busy(by),
            }),
        }
    }

    /// Proposes the statement until it is run, and waits until it is decided.
    async fn run(&self, command: Command, request: StatementId, waiting: &mut Waiting) -> Result<Decision> {
        loop {
            *waiting = Waiting::Proposal;
            match self.propose(command.clone()).await? {
                Outcome::Started { reached, .. } => {
                    self.say(reached);
                    return self.decided(request).await;
                }
                Outcome::Running { .. } => return self.decided(request).await,
                Outcome::Decided(decision) => return decision,
                Outcome::Held { by } => {
                    *waiting = Waiting::Others(by);
                    let is_decided =
                        || self.machine.read(|state| state.procedure(by).is_none_or(|other| other.state.is_decided()));
                    if !self.wait(is_decided).await {
                        return Err(Error::NotLeader { region: RegionId::META, hint: None });
                    }
                }
                outcome => return Err(unexpected(outcome)),
            }
        }
    }

    fn say(&self, reached: Vec<Reached>) {
        reached.into_iter().for_each(|reached| self.events.emit(|| reached.event()));
    }

    /// Waits until the statement, which is running, is decided.
    async fn decided(&self, request: StatementId) -> Result<Decision> {
        let is_decided = || self.machine.read(|state| !matches!(state.answer(request), Some(Answer::Running(_))));
        if !self.wait(is_decided).await {
            return Err(unknown("meta's leader changed; its successor continues the statement"));
        }
        match self.machine.read(|state| state.answer(request).cloned()) {
            Some(Answer::Decided(decision)) => decision,
            // Decided, and forgotten before it could be read here.
            Some(Answer::Running(_)) | None => Err(Error::SessionExpired { session: request.0 }),
        }
    }

    /// Waits until `done`, which is about the state of the machine. False: this replica does not lead any more.
    async fn wait(&self, done: impl Fn() -> bool) -> bool {
        let mut changes = self.machine.changes();
        while !done() {
            if self.group.leading().is_none() {
                return false;
            }
            // Either something changed, or it is time to look who leads.
            let _ = timeout(self.look_again, changes.changed()).await;
        }
        true
    }

    /// Afterwards the machine is as new as everything that was answered before the call.
    async fn caught_up(&self, within: Duration) -> Result<()> {
        match timeout(within, self.group.read_index()).await {
            Ok(result) => result,
            Err(_) => Err(Error::Deadline { waiting_for: "meta's leader to be confirmed".to_string() }),
        }
    }

    async fn propose(&self, command: Command) -> Result<Outcome> {
        let entry: Bytes = command.at(self.clock.now()).encode();
        Outcome::decode(&self.group.propose(entry).await?)
    }
}

fn views(state: &MetaState) -> Vec<ViewStatus> {
    let status = |(table, view): (&TableDef, &View)| {
        let work = state.procedures().filter(|procedure| procedure.subject.id() == table.id);
        let step = work.map(|procedure| procedure.state.step()).last();
        ViewStatus {
            view: table.clone(),
            job: view.job,
            started_at: view.started_at,
            state: view.state.name().to_string(),
            failed: match &view.state {
                ViewState::Failed(reason) => Some(reason.clone()),
                ViewState::Filling | ViewState::Ready => None,
            },
            is_paused: view.is_paused,
            rate_limit: view.rate_limit,
            step: step.map(|step| step.name().to_string()),
        }
    };
    state.views().map(status).collect()
}

fn unknown(message: &str) -> Error {
    Error::Unknown { message: message.to_string() }
}

fn busy(by: ProcedureId) -> Error {
    Error::Busy { what: format!("procedure {by} of another statement is busy with the table") }
}

/// The error in an outcome that answers no statement by itself.
fn unexpected(outcome: Outcome) -> Error {
    match outcome {
        Outcome::Refused(error) | Outcome::Decided(Err(error)) => error,
        Outcome::NoCluster => Error::Busy { what: "the cluster is being bootstrapped".to_string() },
        outcome => unknown(&format!("meta answered {outcome:?} to another request")),
    }
}
