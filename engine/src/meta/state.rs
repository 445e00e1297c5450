//! The state machine of the meta group: entries in, outcomes out. Pure and deterministic: no clock, no randomness, no
//! options of the node; all replicas agree at the same index.
//!
//! Invariants, checked by `tests/property.rs`: ids only grow. Names are unique. A lock is held by a procedure that has
//! not ended, and by no other. A table is in the catalog from the entry that publishes it to the entry that starts its
//! drop. A statement is decided at most once.
//!
//! **What is remembered of statements.** A statement that was run is remembered with its result, so that a resent one is
//! answered and not run again, whether its procedure still runs, has ended, or its table is gone since. That is bounded:
//! at most [`Limits::results`] decided ones (and all that are undecided). When there are more, the lowest session's go, as
//! a whole unless it is also the newest one; since ids of sessions and statements grow, that is the oldest of them. What
//! is that old and not remembered is refused as `SessionExpired`: never run a second time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::catalog::{CreateTable, IndexState, LegDef, RegionDef, TableDef, ViewDef};
use super::command::{Command, Decision, Entry, Limits, Outcome, Progress, StatementId, Step, decode, encode};
use super::place::{Load, emptiest, place};
use super::procedure::{Move, Next, Procedure, ProcedureState, Subject};
use super::request::Control;
use super::view::{After, Doing, Feeder, Then, View, ViewState, ViewWork};
use crate::error::{Error, Invalid, Result};
use crate::server::message::Replacement;
use crate::types::{
    Alteration, IndexId, NodeId, ProcedureId, RegionId, ReplicaId, Schema, SessionId, TableId, Timestamp,
};

/// Everything that the meta group knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaState {
    /// None: not bootstrapped.
    cluster: Option<Cluster>,
    /// When the last entry was proposed, by the clock of the leader of then.
    clock: Timestamp,
    /// The next ids to give out. They never go back.
    next: NextIds,
    /// The catalog: what statements can name.
    tables: BTreeMap<TableId, TableDef>,
    /// The same by name.
    names: BTreeMap<String, TableId>,
    /// The columns that tables were created with, of those that were altered: the logs of their regions may begin there.
    origins: BTreeMap<TableId, Schema>,
    /// How far the views among them are.
    views: BTreeMap<TableId, View>,
    /// Those that have not ended.
    procedures: BTreeMap<ProcedureId, Procedure>,
    /// What only one procedure at a time may touch.
    locks: BTreeMap<Lock, ProcedureId>,
    /// The statements that were run.
    statements: BTreeMap<StatementId, Statement>,
    /// Of the statements up to here only those in `statements` are known.
    forgotten: StatementId,
}

/// Who is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cluster {
    nodes: BTreeSet<NodeId>,
    members: BTreeMap<ReplicaId, NodeId>,
    limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NextIds {
    table: TableId,
    replica: ReplicaId,
    session: SessionId,
    procedure: ProcedureId,
}

/// What a procedure holds while others must keep away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Lock {
    /// A name that is going to be a table's: until the statement is decided.
    Name(String),
    /// A table, by id, since its name may be another table's by then: until the procedure ends.
    Table(TableId),
    /// The rows of a table that is there: until they are gone.
    Rows(TableId),
    /// The members of a region: until they have changed.
    Members(RegionId),
}

/// A statement that was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Statement {
    /// Which one it was, so that a client that uses an id twice is told.
    verb: Verb,
    /// The table's name.
    name: String,
    /// Where it is.
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Verb {
    Create,
    Drop,
    Truncate,
    Alter,
    Move,
    Refill,
    Control,
}

/// How far a statement is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Its procedure is under way.
    Running(ProcedureId),
    /// This is what it is answered.
    Decided(Result<Decision, Error>),
}

impl Default for MetaState {
    fn default() -> Self {
        MetaState::new()
    }
}

impl MetaState {
    /// Before the first entry.
    pub fn new() -> MetaState {
        MetaState {
            cluster: None,
            clock: Timestamp(0),
            next: NextIds {
                table: TableId(1),
                replica: ReplicaId(1),
                session: SessionId(1),
                procedure: ProcedureId(1),
            },
            tables: BTreeMap::new(),
            names: BTreeMap::new(),
            origins: BTreeMap::new(),
            views: BTreeMap::new(),
            procedures: BTreeMap::new(),
            locks: BTreeMap::new(),
            statements: BTreeMap::new(),
            forgotten: (SessionId(0), u64::MAX),
        }
    }

    /// Applies an entry, see [`MetaState::apply`].
    pub fn apply_entry(&mut self, Entry { at, command }: Entry) -> Outcome {
        self.clock = at;
        self.apply(command)
    }

    /// Applies what an entry does. An outcome other than the expected one changed nothing, unless it is `Decided`.
    pub fn apply(&mut self, command: Command) -> Outcome {
        if let Command::Bootstrap { nodes, members, limits } = command {
            return self.bootstrap(Cluster { nodes, members, limits });
        }
        if self.cluster.is_none() {
            return Outcome::NoCluster;
        }
        let steps = |state: &MetaState| -> BTreeMap<ProcedureId, Step> {
            state.procedures.iter().map(|(id, procedure)| (*id, procedure.state.step())).collect()
        };
        let before = steps(self);
        let mut outcome = self.run(command);
        // An entry may start or take along other procedures than its own: a fill, the drops of CASCADE.
        if let Outcome::Started { reached, .. } | Outcome::Advanced { reached } = &mut outcome {
            let own: BTreeSet<ProcedureId> = reached.iter().map(|reached| reached.procedure).collect();
            let others = steps(self).into_iter().filter(|(id, step)| !own.contains(id) && before.get(id) != Some(step));
            reached.extend(others.map(|(id, step)| self.procedures[&id].reached(step)));
        }
        outcome
    }

    fn run(&mut self, command: Command) -> Outcome {
        match command {
            Command::Bootstrap { .. } => unreachable!("handled above"),
            Command::OpenSession => Outcome::Session(self.open_session()),
            Command::StartCreate { table, request } => {
                self.statement(Verb::Create, table.name.clone(), request, |state| state.start_create(*table, request))
            }
            Command::StartDrop { name, if_exists, is_view, cascade, request } => {
                self.statement(Verb::Drop, name.clone(), request, |state| {
                    state.start_drop(&name, if_exists, is_view, cascade, request)
                })
            }
            Command::StartRefill { name, request } => {
                self.statement(Verb::Refill, name.clone(), request, |state| state.start_refill(&name, request))
            }
            Command::StartControl { job, control, request } => {
                self.statement(Verb::Control, job.to_string(), request, |state| {
                    state.start_control(job, control, request)
                })
            }
            Command::StartFail { view, reason } => self.start_fail(view, reason),
            Command::StartAlter { name, of, alterations, request } => {
                self.statement(Verb::Alter, name.clone(), request, |state| {
                    state.start_alter(&name, of, &alterations, request)
                })
            }
            Command::StartTruncate { name, request } => {
                self.statement(Verb::Truncate, name.clone(), request, |state| state.start_truncate(&name, request))
            }
            Command::StartMove { name, region, from, to, request } => {
                self.statement(Verb::Move, name.clone(), request, |state| {
                    state.start_move(&name, region, from, to, request)
                })
            }
            Command::StartRepair { region, from, among } => self.start_repair(region, from, &among),
            Command::Advance { procedure, from, term, progress } => self.advance(procedure, from, term, progress),
        }
    }

    /// The table called `name`, if it is visible.
    pub fn table(&self, name: &str) -> Option<&TableDef> {
        self.tables.get(self.names.get(name)?)
    }

    /// The visible tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &TableDef> {
        self.names.values().filter_map(|id| self.tables.get(id))
    }

    /// The views, and how far they are.
    pub fn views(&self) -> impl Iterator<Item = (&TableDef, &View)> {
        self.views.iter().filter_map(|(id, view)| Some((self.tables.get(id)?, view)))
    }

    /// The nodes of the cluster. None before it is bootstrapped.
    pub fn nodes(&self) -> Option<&BTreeSet<NodeId>> {
        self.cluster.as_ref().map(|cluster| &cluster.nodes)
    }

    /// The replicas of the meta group itself. None before the cluster is bootstrapped.
    pub fn members(&self) -> Option<&BTreeMap<ReplicaId, NodeId>> {
        self.cluster.as_ref().map(|cluster| &cluster.members)
    }

    /// The procedures that have not ended, in the order in which they started.
    pub fn procedures(&self) -> impl Iterator<Item = &Procedure> {
        self.procedures.values()
    }

    /// The procedure `id`, if it has not ended.
    pub fn procedure(&self, id: ProcedureId) -> Option<&Procedure> {
        self.procedures.get(&id)
    }

    /// How far the statement is. None: it was not run, or that is forgotten.
    pub fn answer(&self, request: StatementId) -> Option<&Answer> {
        self.statements.get(&request).map(|statement| &statement.answer)
    }

    /// The whole state as bytes, equal for equal states.
    pub fn encode(&self) -> bytes::Bytes {
        encode(self)
    }

    /// Reads what [`MetaState::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<MetaState> {
        decode(bytes, "a snapshot of the meta group")
    }

    fn bootstrap(&mut self, cluster: Cluster) -> Outcome {
        let refused = |message: String| Outcome::Refused(Error::invalid(Invalid::Mismatch, message));
        if let Some(known) = &self.cluster {
            // Limits are taken from options, which an operator may change later: the first ones stay.
            return match known.nodes == cluster.nodes && known.members == cluster.members {
                true => Outcome::Bootstrapped,
                false => refused(format!("the cluster was bootstrapped with other nodes: {:?}", known.nodes)),
            };
        }
        if cluster.nodes.is_empty() {
            return refused("a cluster needs at least one node".to_string());
        }
        if let Some(node) = cluster.members.values().find(|node| !cluster.nodes.contains(node)) {
            return refused(format!("meta has a replica on node {node}, which is not among the nodes"));
        }
        let last = cluster.members.keys().next_back().map_or(0, |replica| replica.0);
        if last > u64::from(u32::MAX) {
            return refused(format!("replica id {last} of meta is too high: ids count from 1"));
        }
        self.next.replica = ReplicaId(last + 1);
        self.cluster = Some(cluster);
        Outcome::Bootstrapped
    }

    fn open_session(&mut self) -> SessionId {
        let session = self.next.session;
        self.next.session.0 += 1;
        session
    }

    /// Runs a statement, unless it was run before.
    fn statement(
        &mut self,
        verb: Verb,
        name: String,
        request: StatementId,
        run: impl FnOnce(&mut MetaState) -> Started,
    ) -> Outcome {
        if let Some(known) = self.statements.get(&request) {
            if known.verb != verb || known.name != name {
                let (session, number) = request;
                let message = format!("statement {number} of session {session} was another one: number it anew");
                return Outcome::Refused(Error::invalid(Invalid::Request, message));
            }
            return match &known.answer {
                Answer::Running(procedure) => Outcome::Running { procedure: *procedure },
                Answer::Decided(decision) => Outcome::Decided(decision.clone()),
            };
        }
        if request <= self.forgotten || request.0 >= self.next.session {
            return Outcome::Refused(Error::SessionExpired { session: request.0 });
        }
        let (answer, outcome) = match run(self) {
            Started::Held { by } => return Outcome::Held { by },
            Started::Decided(decision) => (Answer::Decided(decision.clone()), Outcome::Decided(decision)),
            Started::Procedure { id, answer } => (answer, Outcome::Started { procedure: id, reached: Vec::new() }),
        };
        self.statements.insert(request, Statement { verb, name, answer });
        self.forget_old_statements(request);
        outcome
    }

    fn start_create(&mut self, table: CreateTable, request: StatementId) -> Started {
        if let Some(known) = self.table(&table.name) {
            return Started::Decided(match table.if_not_exists {
                true => Ok(Decision::Created(Box::new(known.clone()))),
                false => Err(Error::invalid(Invalid::DuplicateTable, format!("table {:?} exists already", table.name))),
            });
        }
        let name = Lock::Name(table.name.clone());
        if let Some(by) = self.locks.get(&name) {
            return Started::Held { by: *by };
        }
        if let Some(error) = table.view.as_ref().and_then(|view| self.changed_feeder(view)) {
            return Started::Decided(Err(error));
        }
        let table = match self.place_table(table) {
            Ok(table) => table,
            Err(error) => return Started::Decided(Err(error)),
        };
        let id = self.next_procedure();
        self.locks.insert(name, id);
        self.locks.insert(Lock::Table(table.id), id);
        let open = table.regions.iter().flat_map(|region| region.replicas.keys().copied()).collect();
        let state = ProcedureState::Prepared { open };
        let subject = Subject::Whole(Box::new(table));
        self.procedures.insert(id, Procedure { id, step: 0, term: 0, request: Some(request), subject, state });
        Started::Procedure { id, answer: Answer::Running(id) }
    }

    fn start_drop(
        &mut self,
        name: &str,
        if_exists: bool,
        is_view: bool,
        cascade: bool,
        request: StatementId,
    ) -> Started {
        // A table that is being created may be there before this statement ends, so it waits to see.
        if let Some(by) = self.locks.get(&Lock::Name(name.to_string())) {
            return Started::Held { by: *by };
        }
        let Some(table) = self.names.get(name).and_then(|table| self.tables.get(table)) else {
            return Started::Decided(match if_exists {
                true => Ok(Decision::Dropped(false)),
                false => Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}"))),
            });
        };
        let table_id = table.id;
        if table.view.is_some() != is_view {
            let (kind, other) =
                if is_view { ("table", "DROP TABLE") } else { ("materialized view", "DROP MATERIALIZED VIEW") };
            let message = format!("{name} is a {kind}; use {other}");
            return Started::Decided(Err(Error::invalid(Invalid::UnknownTable, message)));
        }
        match self.dependants(table_id) {
            Dependants::Coming(by) => return Started::Held { by },
            Dependants::There(views) if !views.is_empty() && !cascade => {
                let names: Vec<&str> = views.iter().filter_map(|id| Some(self.tables.get(id)?.name.as_str())).collect();
                let message = format!("{name} is read by {}; drop that first, or DROP .. CASCADE", names.join(", "));
                return Started::Decided(Err(Error::invalid(Invalid::HasDependants, message)));
            }
            Dependants::There(views) => {
                for view in views {
                    if let Err(by) = self.drop_table(view, None) {
                        return Started::Held { by };
                    }
                }
            }
        }
        match self.drop_table(table_id, Some(request)) {
            Ok(id) => Started::Procedure { id, answer: Answer::Decided(Ok(Decision::Dropped(true))) },
            Err(by) => Started::Held { by },
        }
    }

    /// Takes a table out of the catalog and begins to drop it. An error: the procedure that must end first.
    fn drop_table(&mut self, table_id: TableId, request: Option<StatementId>) -> Result<ProcedureId, ProcedureId> {
        let name = match self.tables.get(&table_id) {
            Some(table) => table.name.clone(),
            None => unreachable!("it was found in the catalog"),
        };
        if let Some(by) = self.locks.get(&Lock::Table(table_id)).copied() {
            // Its creation is decided and only makes the last replicas, which nobody needs any more: the drop takes over.
            match self.procedures.get(&by).map(|procedure| &procedure.state) {
                Some(ProcedureState::Published { .. }) => {}
                _ => return Err(by),
            }
        }
        // What is done to the rows or the members of the table may wait for a region that has lost its majority; a drop need
        // not. What of it is under way does no harm; replicas that are being made or dropped go with all others.
        let mut moving = Vec::new();
        let others = |procedure: &&Procedure| procedure.subject.id() == table_id;
        let others: Vec<ProcedureId> = self.procedures.values().filter(others).map(|procedure| procedure.id).collect();
        for by in others {
            let Some(other) = self.procedures.get(&by).cloned() else { continue };
            moving.extend(other.state.moves().cloned());
            if let Some(request) = other.request
                && !other.state.is_decided()
                && let Some(statement) = self.statements.get_mut(&request)
            {
                let message = format!("table {name:?} was dropped meanwhile");
                statement.answer = Answer::Decided(Err(Error::invalid(Invalid::UnknownTable, message)));
            }
            self.end(by);
        }
        self.names.remove(&name);
        self.origins.remove(&table_id);
        self.views.remove(&table_id);
        let mut table = self.tables.remove(&table_id).expect("it was found above");
        self.forget_feeder(table_id);
        for Move { region, change } in moving {
            if let Some(region) = table.regions.iter_mut().find(|def| def.id == region) {
                region.replicas.extend([change.leaves, change.joins]);
            }
        }
        let id = self.next_procedure();
        self.locks.insert(Lock::Table(table_id), id);
        let open = table.regions.iter().flat_map(|region| region.replicas.keys().copied()).collect();
        let state = match self.feeders(&table) {
            feeders if feeders.is_empty() => ProcedureState::Unpublished { open },
            feeders => ProcedureState::View(ViewWork::begin(&table, feeders, Doing::Detaching(Then::Drop))),
        };
        self.procedures
            .insert(id, Procedure { id, step: 0, term: 0, request, subject: Subject::Whole(Box::new(table)), state });
        Ok(id)
    }

    /// The regions that a view reads.
    fn feeders(&self, view: &TableDef) -> Vec<Feeder> {
        let mut feeders: BTreeMap<RegionId, Feeder> = BTreeMap::new();
        for (leg, def) in view.view.iter().flat_map(|view| &view.legs).enumerate() {
            for region in self.tables.get(&def.feeder).into_iter().flat_map(|table| &table.regions) {
                let feeder = || Feeder { region: region.clone(), legs: Vec::new() };
                feeders.entry(region.id).or_insert_with(feeder).legs.push(leg as u32);
            }
        }
        feeders.into_values().collect()
    }

    /// What is wrong with what a new view is to read, if it is not (any more) as its maker thought.
    fn changed_feeder(&self, view: &ViewDef) -> Option<Error> {
        view.legs.iter().find_map(|leg| {
            let Some(table) = self.tables.get(&leg.feeder) else {
                return Some(Error::RegionNotFound { region: RegionId::META });
            };
            let column = |schema: &Schema, id| schema.columns().iter().find(|column| column.id == id).cloned();
            let same = leg.uses.iter().all(|id| column(&table.schema, *id) == column(&leg.schema, *id));
            (!same).then_some(Error::SchemaChanged { region: RegionId::META, version: table.schema.version })
        })
    }

    /// The views that read a table, and those that read them; before each the ones that read it.
    fn dependants(&self, table: TableId) -> Dependants {
        let reads = |def: &TableDef| def.view.iter().flat_map(|view| &view.legs).any(|leg| leg.feeder == table);
        let coming = self.procedures.values().filter(|p| p.state.is_creating());
        if let Some(procedure) = coming.clone().find(|procedure| reads(procedure.whole())) {
            return Dependants::Coming(procedure.id);
        }
        let mut all = Vec::new();
        for view in self.tables.values().filter(|def| reads(def)) {
            match self.dependants(view.id) {
                Dependants::Coming(by) => return Dependants::Coming(by),
                Dependants::There(views) => {
                    all.extend(views.into_iter().filter(|id| !all.contains(id)).collect::<Vec<_>>())
                }
            }
            if !all.contains(&view.id) {
                all.push(view.id);
            }
        }
        Dependants::There(all)
    }

    /// A table that views are being taken off is dropped: nothing there needs to be told any more.
    fn forget_feeder(&mut self, table: TableId) {
        let mut through = Vec::new();
        for procedure in self.procedures.values_mut() {
            let ProcedureState::View(work) = &mut procedure.state else { continue };
            work.feeders.retain(|feeder| feeder.region.id.table() != table);
            let before = work.open.len();
            work.open.retain(|region| region.table() != table);
            if before > 0 && work.open.is_empty() {
                through.push(procedure.id);
            }
        }
        for id in through {
            self.go_on(id);
        }
    }

    /// Nothing of the step of a view's procedure is open any more.
    fn go_on(&mut self, id: ProcedureId) {
        let Some(procedure) = self.procedures.get_mut(&id) else { return };
        let ProcedureState::View(work) = &procedure.state else { return };
        procedure.step += 1;
        match work.after(procedure.whole(), &BTreeSet::new()) {
            After::Goes(next) => procedure.state = ProcedureState::View(next),
            After::Drops => procedure.state = ProcedureState::Unpublished { open: procedure.replicas() },
            After::Ends => self.end(id),
        }
    }

    fn start_refill(&mut self, name: &str, request: StatementId) -> Started {
        if let Some(by) = self.locks.get(&Lock::Name(name.to_string())) {
            return Started::Held { by: *by };
        }
        let refused = |kind, message: String| Started::Decided(Err(Error::invalid(kind, message)));
        let Some(view) = self.table(name).filter(|table| table.view.is_some()).cloned() else {
            return refused(Invalid::UnknownTable, format!("there is no materialized view {name:?}"));
        };
        match self.dependants(view.id) {
            Dependants::Coming(by) => return Started::Held { by },
            Dependants::There(views) if views.is_empty() => {}
            Dependants::There(views) => {
                let names: Vec<&str> = views.iter().filter_map(|id| Some(self.tables.get(id)?.name.as_str())).collect();
                return refused(
                    Invalid::HasDependants,
                    format!("{name} is read by {}; drop that first", names.join(", ")),
                );
            }
        }
        let again = CreateTable {
            name: view.name,
            schema: view.schema,
            partition: view.partition,
            replicas: view.regions.first().map(|region| region.replicas.len() as u32),
            if_not_exists: false,
            view: view.view,
        };
        match self.drop_table(view.id, None) {
            Ok(_) => self.start_create(again, request),
            Err(by) => Started::Held { by },
        }
    }

    fn start_control(&mut self, job: ProcedureId, control: Control, request: StatementId) -> Started {
        let refused = |kind, message: String| Started::Decided(Err(Error::invalid(kind, message)));
        let Some((id, view)) =
            self.views.iter().find(|(_, view)| view.job == job).map(|(id, view)| (*id, view.clone()))
        else {
            return self.control_index(job, control, request);
        };
        let Some(table) = self.tables.get(&id).cloned() else { unreachable!("a view is in the catalog") };
        if let ViewState::Failed(reason) = &view.state {
            return refused(Invalid::ViewFailed, format!("materialized view {} has failed: {reason}", table.name));
        }
        if control == Control::Cancel {
            if view.state == ViewState::Ready {
                let message = format!("materialized view {0} is ready; DROP MATERIALIZED VIEW {0}", table.name);
                return refused(Invalid::Unsupported, message);
            }
            return self.start_drop(&table.name, false, true, false, request);
        }
        let filling = |procedure: &&Procedure| matches!(&procedure.state, ProcedureState::View(work) if matches!(work.doing, Doing::Beginning | Doing::Attaching));
        // Those that it reads are told of it first, and then what is wanted of it.
        let begins =
            self.procedures.values().filter(|other| other.subject.id() == id).find(filling).map(|other| other.id);
        if let Some(by) = begins.or(self.locks.get(&Lock::Rows(id)).copied()) {
            return Started::Held { by };
        }
        let (is_paused, rate_limit) = match control {
            Control::Pause => (true, view.rate_limit),
            Control::Resume => (false, view.rate_limit),
            Control::RateLimit(limit) => (view.is_paused, limit),
            Control::Cancel => unreachable!("handled above"),
        };
        self.views.insert(id, View { is_paused, rate_limit, ..view });
        let work = ViewWork::begin(&table, self.feeders(&table), Doing::Controlling { is_paused, rate_limit });
        let id = self.next_procedure();
        self.locks.insert(Lock::Rows(table.id), id);
        let state = ProcedureState::View(work);
        self.procedures.insert(
            id,
            Procedure { id, step: 0, term: 0, request: Some(request), subject: Subject::Whole(Box::new(table)), state },
        );
        Started::Procedure { id, answer: Answer::Running(id) }
    }

    /// What is wanted of the backfill of an index stands in the table's schema: its regions hear of it by an ALTER.
    fn control_index(&mut self, job: ProcedureId, control: Control, request: StatementId) -> Started {
        let refused = |kind, message: String| Started::Decided(Err(Error::invalid(kind, message)));
        let of_table = |table: &TableDef| {
            let (id, state) = table.indexes.iter().find(|(_, state)| state.job == job)?;
            let index = table.schema.indexes().iter().find(|index| index.id == *id)?;
            Some((table.name.clone(), (table.id, table.schema.version), index.clone(), *state))
        };
        let Some((table, of, index, state)) = self.tables.values().find_map(of_table) else {
            return refused(Invalid::OutOfRange, format!("there is no job {}; see SHOW JOBS", job.0));
        };
        let (name, was) = (index.name, (index.is_paused, index.rate_limit));
        let (is_paused, rate_limit) = match control {
            Control::Pause => (true, was.1),
            Control::Resume => (false, was.1),
            Control::RateLimit(limit) => (was.0, limit),
            Control::Cancel if state.is_ready => {
                return refused(Invalid::Unsupported, format!("index {name} is ready; DROP INDEX {name}"));
            }
            Control::Cancel => return self.start_alter(&table, of, &[Alteration::DropIndex { name }], request),
        };
        self.start_alter(&table, of, &[Alteration::ControlIndex { name, is_paused, rate_limit }], request)
    }

    /// A view has failed: it is so in the catalog at once, whatever was being done about it ends.
    fn start_fail(&mut self, id: TableId, reason: String) -> Outcome {
        let table = self.tables.get(&id).cloned();
        let (Some(table), Some(view)) = (table, self.views.get_mut(&id)) else {
            return Outcome::Refused(Error::invalid(Invalid::UnknownTable, format!("there is no view {id}")));
        };
        if matches!(view.state, ViewState::Failed(_)) {
            return Outcome::Decided(Ok(Decision::Controlled));
        }
        view.state = ViewState::Failed(reason.clone());
        let about =
            |procedure: &&Procedure| procedure.subject.id() == id && matches!(procedure.state, ProcedureState::View(_));
        let others: Vec<Procedure> = self.procedures.values().filter(about).cloned().collect();
        for other in others {
            if let Some(statement) = other.request.and_then(|request| self.statements.get_mut(&request))
                && matches!(statement.answer, Answer::Running(_))
            {
                let message = format!("materialized view {} has failed: {reason}", table.name);
                statement.answer = Answer::Decided(Err(Error::invalid(Invalid::ViewFailed, message)));
            }
            self.end(other.id);
        }
        let work = ViewWork::begin(&table, self.feeders(&table), Doing::Detaching(Then::Fail(reason)));
        let procedure = self.next_procedure();
        let state = ProcedureState::View(work);
        let subject = Subject::Whole(Box::new(table));
        self.procedures.insert(procedure, Procedure { id: procedure, step: 0, term: 0, request: None, subject, state });
        Outcome::Started { procedure, reached: Vec::new() }
    }

    fn start_truncate(&mut self, name: &str, request: StatementId) -> Started {
        self.start_of_rows(name, request, |_, open| Ok(ProcedureState::Truncating { open }))
    }

    fn start_alter(
        &mut self,
        name: &str,
        of: (TableId, u64),
        alterations: &[Alteration],
        request: StatementId,
    ) -> Started {
        // Views that are coming count too: whoever makes them checks the columns before and not again.
        let views =
            self.tables.values().chain(self.procedures.values().filter_map(|procedure| procedure.subject.table()));
        let legs: Vec<(String, LegDef)> = views
            .flat_map(|def| def.view.iter().flat_map(|view| &view.legs).map(|leg| (def.name.clone(), leg.clone())))
            .filter(|(_, leg)| leg.feeder == of.0)
            .collect();
        self.start_of_rows(name, request, |table, open| {
            if (table.id, table.schema.version) != of {
                return Err(Error::SchemaChanged { region: RegionId::META, version: table.schema.version });
            }
            let schema = table.schema.altered(alterations).map_err(Error::from)?;
            for (view, leg) in &legs {
                used_as_before(&table.schema, &schema, leg, view)?;
            }
            Ok(ProcedureState::Altering { schema: Box::new(schema), open })
        })
    }

    /// Starts a procedure that is about the rows of a table, one at a time.
    fn start_of_rows(
        &mut self,
        name: &str,
        request: StatementId,
        begin: impl FnOnce(&TableDef, BTreeSet<RegionId>) -> Result<ProcedureState>,
    ) -> Started {
        if let Some(by) = self.locks.get(&Lock::Name(name.to_string())) {
            return Started::Held { by: *by };
        }
        let Some(table) = self.table(name).cloned() else {
            return Started::Decided(Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}"))));
        };
        if table.view.is_some() {
            let message = format!("{name} is a materialized view: change what it reads, or DROP and CREATE it");
            return Started::Decided(Err(Error::invalid(Invalid::Unsupported, message)));
        }
        // Replicas that are still being made are no reason to wait.
        let rows = Lock::Rows(table.id);
        if let Some(by) = self.locks.get(&rows) {
            return Started::Held { by: *by };
        }
        let open = table.regions.iter().map(|region| region.id).collect();
        let state = match begin(&table, open) {
            Ok(state) => state,
            Err(error) => return Started::Decided(Err(error)),
        };
        let id = self.next_procedure();
        self.locks.insert(rows, id);
        let subject = Subject::Whole(Box::new(table));
        self.procedures.insert(id, Procedure { id, step: 0, term: 0, request: Some(request), subject, state });
        Started::Procedure { id, answer: Answer::Running(id) }
    }

    fn start_move(&mut self, name: &str, region: u32, from: NodeId, to: NodeId, request: StatementId) -> Started {
        if let Some(by) = self.locks.get(&Lock::Name(name.to_string())) {
            return Started::Held { by: *by };
        }
        let refused = |kind, message: String| Started::Decided(Err(Error::invalid(kind, message)));
        let Some(table) = self.table(name) else {
            return refused(Invalid::UnknownTable, format!("there is no table {name:?}"));
        };
        let Some(def) = table.regions.get(region as usize).cloned() else {
            let last = table.regions.len() - 1;
            return refused(Invalid::OutOfRange, format!("table {name} has the regions 0 to {last}, not {region}"));
        };
        let nodes = self.nodes().cloned().unwrap_or_default();
        if let Some(unknown) = [from, to].into_iter().find(|node| !nodes.contains(node)) {
            let message = format!("{unknown} is not in the cluster, whose nodes are {}", listed(nodes));
            return refused(Invalid::OutOfRange, message);
        }
        // Where its replicas are is open as long as it is being changed.
        if let Some(by) = self.locks.get(&Lock::Members(def.id)) {
            return Started::Held { by: *by };
        }
        let Some(leaves) = def.replicas.iter().find(|(_, node)| **node == from) else {
            let nodes = listed(def.replicas.into_values());
            return refused(Invalid::OutOfRange, format!("region {} has replicas on {nodes}, not on {from}", def.id));
        };
        if def.replicas.values().any(|node| *node == to) {
            return refused(Invalid::OutOfRange, format!("region {} has a replica on {to} already", def.id));
        }
        let id = self.start_replacement(table.id, &def, (*leaves.0, *leaves.1), to, Some(request));
        Started::Procedure { id, answer: Answer::Running(id) }
    }

    fn start_repair(&mut self, region: RegionId, from: NodeId, among: &BTreeSet<NodeId>) -> Outcome {
        if let Some(by) = self.locks.get(&Lock::Members(region)) {
            return Outcome::Held { by: *by };
        }
        let refused = |message: String| Outcome::Refused(Error::invalid(Invalid::Request, message));
        let def = self.tables.get(&region.table()).and_then(|table| table.regions.iter().find(|def| def.id == region));
        let Some(def) = def.cloned() else { return refused(format!("there is no region {region}")) };
        let Some(leaves) = def.replicas.iter().find(|(_, node)| **node == from).map(|(id, node)| (*id, *node)) else {
            return refused(format!("region {region} has no replica on {from}"));
        };
        let Some(to) = self.target(&def, among) else {
            return refused(format!("no node that is there has no replica of region {region}"));
        };
        let procedure = self.start_replacement(region.table(), &def, leaves, to, None);
        Outcome::Started { procedure, reached: Vec::new() }
    }

    /// The node among these that a replica of the region may be put onto: the emptiest that has none.
    pub fn target(&self, def: &RegionDef, among: &BTreeSet<NodeId>) -> Option<NodeId> {
        let nodes = self.nodes()?;
        let free = |node: &NodeId| {
            among.contains(node) && nodes.contains(node) && !def.replicas.values().any(|taken| taken == node)
        };
        emptiest(&self.load(), free)
    }

    /// Whether the members of the region are being changed.
    pub fn is_changing(&self, region: RegionId) -> bool {
        self.locks.contains_key(&Lock::Members(region))
    }

    fn start_replacement(
        &mut self,
        table: TableId,
        def: &RegionDef,
        leaves: (ReplicaId, NodeId),
        to: NodeId,
        request: Option<StatementId>,
    ) -> ProcedureId {
        let mut table = self.tables.get(&table).expect("its region was found").clone();
        if let Some(origin) = self.origins.get(&table.id) {
            table.schema = origin.clone();
        }
        table.indexes.clear();
        let joins = (self.next.replica, to);
        self.next.replica.0 += 1;
        let stay = def.replicas.keys().filter(|id| **id != leaves.0).copied().collect();
        let id = self.next_procedure();
        self.locks.insert(Lock::Members(def.id), id);
        let state = ProcedureState::Making(Move { region: def.id, change: Replacement { leaves, joins, stay } });
        let subject = Subject::Whole(Box::new(table));
        self.procedures.insert(id, Procedure { id, step: 0, term: 0, request, subject, state });
        id
    }

    fn advance(&mut self, id: ProcedureId, from: u32, term: u64, progress: Progress) -> Outcome {
        let Some(procedure) = self.procedures.get_mut(&id) else { return Outcome::Stale };
        if procedure.step != from || term < procedure.term {
            return Outcome::Stale;
        }
        if let (ProcedureState::View(work), Progress::Refused(Error::Invalid { message, .. })) =
            (&procedure.state, &progress)
            && work.doing == Doing::Readying
        {
            let (view, reason) = (procedure.subject.id(), message.clone());
            return match self.start_fail(view, reason) {
                Outcome::Started { .. } => Outcome::Advanced { reached: Vec::new() },
                other => other,
            };
        }
        let next = match procedure.after(progress) {
            Ok(next) => next,
            Err(error) => return Outcome::Refused(error),
        };
        procedure.step += 1;
        procedure.term = term;
        let mut reached = Vec::new();
        match next {
            Next::Same(state) => procedure.state = state,
            Next::Entered(state) => {
                procedure.state = state;
                let procedure = procedure.clone();
                reached.push(procedure.reached(procedure.state.step()));
                self.decide(&procedure);
                if procedure.state.open() == 0 {
                    reached.push(procedure.reached(procedure.state.end()));
                    self.end(id);
                } else if procedure.state.moves().is_some() && procedure.state.is_decided() {
                    // It may have to wait for ever for a node that does not come back.
                    self.procedures.entry(id).and_modify(|procedure| procedure.subject.forget());
                }
            }
            Next::Ended => {
                let procedure = procedure.clone();
                reached.push(procedure.reached(procedure.state.end()));
                if !procedure.state.is_decided() {
                    self.decide(&procedure);
                }
                if let ProcedureState::View(ViewWork { doing: Doing::Readying, .. }) = &procedure.state
                    && let Some(view) = self.views.get_mut(&procedure.subject.id())
                {
                    view.state = ViewState::Ready;
                }
                if let ProcedureState::Indexing { index, .. } = &procedure.state
                    && let Some(table) = self.tables.get_mut(&procedure.subject.id())
                    && let Some(index) = table.indexes.get_mut(index)
                {
                    index.is_ready = true;
                }
                self.end(id);
            }
        }
        Outcome::Advanced { reached }
    }

    /// Answers the statement of a creation that has just been published, or given up, or of a truncation at its end.
    fn decide(&mut self, procedure: &Procedure) {
        let decision = match &procedure.state {
            ProcedureState::Published { .. } => {
                let table = procedure.subject.table().expect("only a move forgets it").clone();
                self.names.insert(table.name.clone(), table.id);
                self.tables.insert(table.id, table.clone());
                if let Some(view) = &table.view {
                    self.fill(&table, view.rate_limit);
                }
                Ok(Decision::Created(Box::new(table)))
            }
            ProcedureState::Undoing { error, .. } => Err(error.clone()),
            ProcedureState::View(ViewWork { doing: Doing::Controlling { .. }, .. }) => Ok(Decision::Controlled),
            ProcedureState::Truncating { .. } => Ok(Decision::Truncated),
            ProcedureState::Altering { schema, .. } => {
                let table = self.tables.get_mut(&procedure.subject.id()).expect("a drop ends the procedure first");
                table.partition = table.partition.renamed(&table.schema, schema);
                let was = std::mem::replace(&mut table.schema, Schema::clone(schema));
                let id = table.id;
                self.origins.entry(id).or_insert(was);
                self.watch_indexes(id);
                Ok(Decision::Altered(Box::new(self.tables[&id].clone())))
            }
            ProcedureState::Leaving(of) => Ok(Decision::Moved(Box::new(self.replace(procedure.subject.id(), of)))),
            ProcedureState::Withdrawing { of, error } => {
                self.locks.remove(&Lock::Members(of.region));
                Err(error.clone())
            }
            _ => return,
        };
        if procedure.state.moves().is_none() {
            self.locks.remove(&Lock::Name(procedure.subject.name().to_string()));
        }
        let Some(request) = procedure.request else { return };
        if let Some(statement) = self.statements.get_mut(&request) {
            statement.answer = Answer::Decided(decision);
        }
        self.forget_old_statements(request);
    }

    /// The indexes of a table may be others: what watches a backfill ends with its index, and begins with it.
    fn watch_indexes(&mut self, id: TableId) {
        let table = self.tables.get_mut(&id).expect("it was altered");
        let indexes: BTreeSet<IndexId> = table.schema.indexes().iter().map(|index| index.id).collect();
        let gone: Vec<ProcedureId> =
            table.indexes.iter().filter(|(id, _)| !indexes.contains(id)).map(|(_, one)| one.job).collect();
        table.indexes.retain(|id, _| indexes.contains(id));
        gone.into_iter().for_each(|job| self.end(job));
        for index in indexes {
            if self.tables[&id].indexes.contains_key(&index) {
                continue;
            }
            let job = self.next_procedure();
            let started_at = self.clock;
            let table = self.tables.get_mut(&id).expect("it was altered");
            table.indexes.insert(index, IndexState { job, is_ready: false, started_at });
            let open = table.regions.iter().map(|region| region.id).collect();
            let (subject, state) = (Subject::Whole(Box::new(table.clone())), ProcedureState::Indexing { index, open });
            self.procedures.insert(job, Procedure { id: job, step: 0, term: 0, request: None, subject, state });
        }
    }

    /// The fill of a view that is in the catalog from now on.
    fn fill(&mut self, view: &TableDef, rate_limit: Option<u64>) {
        let job = self.next_procedure();
        let (state, started_at) = (ViewState::Filling, self.clock);
        self.views.insert(view.id, View { job, started_at, state, is_paused: false, rate_limit });
        let state = ProcedureState::View(ViewWork::begin(view, self.feeders(view), Doing::Beginning));
        let subject = Subject::Whole(Box::new(view.clone()));
        self.procedures.insert(job, Procedure { id: job, step: 0, term: 0, request: None, subject, state });
    }

    /// The members of a region have changed: the catalog says so from now on, and whatever goes on with the table asks the
    /// replicas that there are.
    fn replace(&mut self, table: TableId, Move { region, change }: &Move) -> TableDef {
        self.locks.remove(&Lock::Members(*region));
        let swap = |table: &mut TableDef| {
            for def in table.regions.iter_mut().filter(|def| def.id == *region) {
                def.replicas.remove(&change.leaves.0);
                def.replicas.insert(change.joins.0, change.joins.1);
            }
        };
        let mut through = Vec::new();
        for other in self.procedures.values_mut().filter(|other| other.subject.id() == table) {
            if let Subject::Whole(table) = &mut other.subject {
                swap(table);
            }
            // Nobody needs it any more; the move itself sees to it that it is never made.
            if let ProcedureState::Published { open } = &mut other.state {
                open.remove(&change.leaves.0);
                through.extend(open.is_empty().then_some(other.id));
            }
        }
        through.into_iter().for_each(|id| self.end(id));
        for other in self.procedures.values_mut() {
            let ProcedureState::View(work) = &mut other.state else { continue };
            for feeder in work.feeders.iter_mut().filter(|feeder| feeder.region.id == *region) {
                feeder.region.replicas.remove(&change.leaves.0);
                feeder.region.replicas.insert(change.joins.0, change.joins.1);
            }
        }
        let table = self.tables.get_mut(&table).expect("a drop ends the procedure first");
        swap(table);
        table.clone()
    }

    /// The procedure is over. Its statement has been decided before.
    fn end(&mut self, id: ProcedureId) {
        self.procedures.remove(&id);
        self.locks.retain(|_, by| *by != id);
    }

    /// Gives out the ids of a table and its replicas, and places them.
    fn place_table(&mut self, table: CreateTable) -> Result<TableDef> {
        let Some(cluster) = &self.cluster else {
            return Err(Error::invalid(Invalid::Request, "the cluster is not bootstrapped"));
        };
        if table.name.is_empty() {
            return Err(Error::invalid(Invalid::Request, "a table needs a name"));
        }
        let limit = cluster.limits.table_regions.min(u64::from(u32::MAX));
        let regions = match u32::try_from(table.partition.regions()) {
            Ok(regions) if (1..=limit).contains(&u64::from(regions)) => regions,
            _ => {
                let message = format!("{} regions: a table has 1 to {limit}", table.partition.regions());
                return Err(Error::invalid(Invalid::PartitionRule, message));
            }
        };
        let nodes = cluster.nodes.len();
        let replicas = table.replicas.map_or(nodes.min(3), |replicas| replicas as usize);
        if !(1..=nodes).contains(&replicas) {
            let message = format!("table option replicas = {replicas}: must be 1 to {nodes}, the number of nodes");
            return Err(Error::invalid(Invalid::Option, message));
        }
        let used_up = || Error::invalid(Invalid::OutOfRange, "all table ids have been given out");
        let id = self.next.table;
        self.next.table = TableId(id.0.checked_add(1).ok_or_else(used_up)?);
        let first = self.next.replica;
        self.next.replica.0 += u64::from(regions) * replicas as u64;
        Ok(TableDef {
            id,
            name: table.name,
            schema: table.schema,
            partition: table.partition,
            regions: place(id, regions, replicas, first, &self.load()),
            view: table.view,
            indexes: BTreeMap::new(),
        })
    }

    /// What each node has of the tables that are there and of those that are being created.
    fn load(&self) -> BTreeMap<NodeId, Load> {
        let nodes = self.nodes().into_iter().flatten();
        let mut load: BTreeMap<NodeId, Load> = nodes.map(|node| (*node, Load::default())).collect();
        let coming = self.procedures.values().filter(|p| p.state.is_creating()).filter_map(|p| p.subject.table());
        let moving = self.procedures.values().filter(|p| !p.state.is_decided()).filter_map(|p| p.state.moves());
        for Move { change, .. } in moving {
            load.entry(change.joins.1).or_default().replicas += 1;
        }
        for region in self.tables.values().chain(coming).flat_map(|table| &table.regions) {
            for (at, node) in region.replicas.values().enumerate() {
                let load = load.entry(*node).or_default();
                load.replicas += 1;
                load.leaders += u64::from(at == 0);
            }
        }
        load
    }

    fn next_procedure(&mut self) -> ProcedureId {
        let id = self.next.procedure;
        self.next.procedure.0 += 1;
        id
    }

    /// Keeps what is remembered of statements within its bound. `newest` stays.
    fn forget_old_statements(&mut self, newest: StatementId) {
        let limit = self.cluster.as_ref().map_or(u64::MAX, |cluster| cluster.limits.results);
        let may_go = |(id, statement): &(&StatementId, &Statement)| {
            **id != newest && matches!(statement.answer, Answer::Decided(_))
        };
        while self.statements.len() as u64 > limit {
            let last_session = self.statements.keys().next_back().map(|(session, _)| *session);
            let Some(oldest) = self.statements.iter().find(may_go).map(|(id, _)| *id) else { return };
            let (from, upto) = match Some(oldest.0) == last_session {
                true => (oldest, oldest),
                false => ((oldest.0, 0), (oldest.0, u64::MAX)),
            };
            let going: Vec<StatementId> =
                self.statements.range(from..=upto).filter(may_go).map(|(id, _)| *id).collect();
            for id in going {
                self.statements.remove(&id);
            }
            self.forgotten = self.forgotten.max(upto);
        }
    }
}

/// Nodes as people write them.
fn listed(nodes: impl IntoIterator<Item = NodeId>) -> String {
    let nodes: Vec<String> = nodes.into_iter().map(|node| node.to_string()).collect();
    nodes.join(", ")
}

/// The views that read something.
enum Dependants {
    /// Those that are there.
    There(Vec<TableId>),
    /// The procedure that makes one.
    Coming(ProcedureId),
}

/// A view that reads a table finds the columns that it uses as they were, and the rows told apart as they were.
fn used_as_before(was: &Schema, is: &Schema, leg: &LegDef, view: &str) -> Result<()> {
    let refused = |message: String| Err(Error::invalid(Invalid::HasDependants, message));
    for id in &leg.uses {
        let find = |schema: &Schema| schema.columns().iter().find(|column| column.id == *id).cloned();
        let Some(before) = find(was) else { continue };
        let after = find(is);
        if after.is_none_or(|after| (&after.name, after.column_type) != (&before.name, before.column_type)) {
            return refused(format!("column {:?} is used by materialized view {view}; drop that first", before.name));
        }
    }
    if was.options().merge_mode != is.options().merge_mode {
        return refused(format!("materialized view {view} reads the table: its merge mode stays; drop that first"));
    }
    Ok(())
}

/// What came of a statement when it was run.
enum Started {
    /// Another procedure holds what it needs.
    Held { by: ProcedureId },
    /// It needed no procedure.
    Decided(Result<Decision, Error>),
    /// It started one.
    Procedure { id: ProcedureId, answer: Answer },
}

#[cfg(test)]
impl MetaState {
    /// Panics if the parts contradict each other.
    pub(super) fn check(&self) {
        assert_eq!(self.names.len(), self.tables.len(), "a table without a name, or a name without a table");
        for (name, id) in &self.names {
            assert_eq!(&self.tables[id].name, name);
        }
        let mut locks = BTreeMap::new();
        for (id, procedure) in &self.procedures {
            assert_eq!(*id, procedure.id);
            assert!(procedure.state.open() > 0, "{procedure:?} has nothing to do");
            let of_rows = procedure.state.is_of_rows();
            let is_indexing = matches!(procedure.state, ProcedureState::Indexing { .. });
            let of_view = match &procedure.state {
                ProcedureState::View(work) => Some(&work.doing),
                _ => None,
            };
            let is_dropped = |doing: &Doing| matches!(doing, Doing::Detaching(Then::Drop));
            let keeps_view = of_view.is_some_and(|doing| !is_dropped(doing));
            let lock = match (procedure.state.moves(), of_rows) {
                // Nothing else has to wait for a fill, or for a backfill.
                (None, false) if keeps_view || is_indexing => None,
                (Some(of), _) => Some(Lock::Members(of.region)).filter(|_| !procedure.state.is_decided()),
                (None, true) => Some(Lock::Rows(procedure.subject.id())),
                (None, false) => Some(Lock::Table(procedure.subject.id())),
            };
            if let Some(lock) = lock {
                assert_eq!(locks.insert(lock, *id), None, "two at a time");
            }
            let is_left = procedure.state.moves().is_some() && procedure.state.is_decided();
            assert_eq!(procedure.subject.table().is_none(), is_left, "it keeps more, or less, than it needs");
            if let Some(Move { region, change }) = procedure.state.moves() {
                assert!(change.joins.0 < self.next.replica, "will be given out again");
                let def = self.tables[&procedure.subject.id()].regions.iter().find(|def| def.id == *region).unwrap();
                let nodes: BTreeSet<&NodeId> = def.replicas.values().collect();
                assert_eq!(nodes.len(), def.replicas.len(), "two replicas of a region on one node");
                if !procedure.state.is_decided() {
                    let has = |(id, node): &(ReplicaId, NodeId)| def.replicas.get(id) == Some(node);
                    assert!(has(&change.leaves) && !has(&change.joins), "the catalog is ahead of the region");
                    assert_eq!(change.stay.len() + 1, def.replicas.len());
                }
            }
            if procedure.state.is_creating() {
                locks.insert(Lock::Name(procedure.subject.name().to_string()), *id);
                assert!(!self.names.contains_key(procedure.subject.name()), "a name in use is being created");
            }
            if !procedure.state.is_decided() {
                let answer = procedure.request.map(|request| self.answer(request));
                assert!(answer.is_none_or(|answer| answer == Some(&Answer::Running(*id))), "nobody will be answered");
            }
            let of_members = procedure.state.moves().is_some();
            let is_visible = of_rows
                || of_members
                || keeps_view
                || is_indexing
                || matches!(procedure.state, ProcedureState::Published { .. });
            assert_eq!(self.tables.contains_key(&procedure.subject.id()), is_visible, "visible too early or too long");
        }
        assert_eq!(self.locks, locks, "a lock without its procedure, or a procedure without its lock");
        self.check_views();
        for statement in self.statements.values() {
            if let Answer::Running(id) = &statement.answer {
                assert!(self.procedures.contains_key(id), "{statement:?} waits for ever");
            }
        }
        let tables =
            self.tables.values().chain(self.procedures.values().filter_map(|procedure| procedure.subject.table()));
        for region in tables.flat_map(|table| &table.regions) {
            assert!(region.replicas.keys().all(|replica| *replica < self.next.replica), "will be given out again");
            assert!(region.id.table() < self.next.table);
        }
    }

    fn check_views(&self) {
        let of_tables = self.tables.values().filter(|table| table.view.is_some()).map(|table| table.id);
        assert!(of_tables.eq(self.views.keys().copied()), "a view that nothing is known of, or the other way round");
        for (id, view) in &self.views {
            let legs = self.tables[id].view.iter().flat_map(|view| &view.legs);
            assert!(legs.clone().all(|leg| self.tables.contains_key(&leg.feeder)), "what it reads is gone");
            let works = self.procedures.values().filter(|procedure| procedure.subject.id() == *id);
            let works = works.filter_map(|procedure| match &procedure.state {
                ProcedureState::View(work) => Some((procedure.id, work)),
                _ => None,
            });
            let fills: Vec<ProcedureId> =
                works.clone().filter(|(_, work)| work.kind() == "fill_view").map(|(id, _)| id).collect();
            let wanted: &[ProcedureId] = if view.state == ViewState::Filling { &[view.job] } else { &[] };
            assert_eq!(fills, wanted, "a view that is filled by nobody, or by several, or without need");
            let fails = works.filter(|(_, work)| work.kind() == "fail_view").count();
            assert!(fails == 0 || (fails == 1 && matches!(view.state, ViewState::Failed(_))));
        }
        for procedure in self.procedures.values() {
            let ProcedureState::View(work) = &procedure.state else { continue };
            for feeder in &work.feeders {
                let table = self.tables.get(&feeder.region.id.table()).expect("a region of a table that is there");
                assert!(table.regions.contains(&feeder.region), "asks replicas that are none any more");
            }
            let regions = procedure.subject.regions().iter().map(|region| region.id);
            let known: BTreeSet<RegionId> = regions.chain(work.feeders.iter().map(|feeder| feeder.region.id)).collect();
            assert!(work.open.is_subset(&known), "nobody is asked about it");
        }
    }

    /// The statements that are remembered.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&StatementId, &Answer)> {
        self.statements.iter().map(|(request, statement)| (request, &statement.answer))
    }
}
