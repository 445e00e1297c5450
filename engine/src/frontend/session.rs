//! Sessions: what makes a resent write apply once.
//!
//! A session's id is given out by meta at its first write. Every write names (session, statement, part), and tells the
//! region up to which statement all answers have arrived: below that mark the region need not remember results.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::deadline::Deadline;
use super::route::mismatch;
use super::{Frontend, Output};
use crate::error::{Error, Result};
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::sql::{self, Setting, Statement, WaitFor};
use crate::types::{RegionId, RequestId, SessionId};

/// A client's session. Clones are the same session: its statements may overlap.
#[derive(Clone)]
pub struct Session {
    frontend: Frontend,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    numbers: Mutex<Numbers>,
    /// How old the rows of a query may be.
    staleness: Mutex<Duration>,
    /// Held while an id is asked for, so that two statements do not ask for two.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Numbers {
    id: Option<SessionId>,
    /// The number of the statement before.
    last: u64,
    /// Statements that have not all their answers.
    open: BTreeSet<u64>,
}

impl Session {
    pub(super) fn new(frontend: Frontend) -> Session {
        Session { frontend, shared: Arc::default() }
    }

    /// Runs one statement, within the time that the options give.
    pub async fn execute(&self, sql: &str) -> Result<Output> {
        self.execute_within(sql, Duration::from_millis(self.frontend.options().statement_timeout_ms)).await
    }

    /// Runs one statement, within `within`.
    pub async fn execute_within(&self, sql: &str, within: Duration) -> Result<Output> {
        let deadline = Deadline::after(within);
        let statement = sql::parse(sql)?;
        self.again_if_changed(deadline, || self.run(&statement, deadline)).await
    }

    /// Runs `attempt`, and once more when it wrote nothing and failed because a table is not what it was thought to be.
    pub(super) async fn again_if_changed<T, F>(&self, deadline: Deadline, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pauses = self.frontend.options().pauses();
        loop {
            let err = match attempt().await {
                Err(err @ (Error::SchemaChanged { .. } | Error::RegionNotFound { .. })) => {
                    self.frontend.routes().forget_tables();
                    err
                }
                Err(err @ Error::Invalid { .. }) => match self.frontend.routes().forget_changed(deadline).await {
                    Ok(true) => err,
                    Ok(false) | Err(_) => return Err(err),
                },
                result => return result,
            };
            if !deadline.pause(&mut pauses).await {
                return Err(Error::Deadline { waiting_for: format!("the tables to settle (last: {err})") });
            }
        }
    }

    async fn run(&self, statement: &Statement, deadline: Deadline) -> Result<Output> {
        match statement {
            Statement::CreateTable(table) => {
                let now = self.frontend.shared.clock.now();
                let table = table.resolve(&self.frontend.planner().evaluator(now))?;
                let open = self.begin(deadline).await?;
                let request = MetaRequest::CreateTable { table, request: open.name() };
                match self.meta(request, deadline).await? {
                    MetaAnswer::Created(table) => self.frontend.routes().remember(Arc::new(table)),
                    other => return Err(mismatch(&other)),
                }
                Ok(Output::Done)
            }
            Statement::DropTable { name, if_exists, cascade } => {
                self.drop(name, *if_exists, false, *cascade, deadline).await
            }
            Statement::DropView { name, if_exists, cascade } => {
                self.drop(name, *if_exists, true, *cascade, deadline).await
            }
            Statement::CreateView(view) => self.create_view(view, deadline).await,
            Statement::RefillView { name } => self.refill_view(name, deadline).await,
            Statement::ShowJobs => self.frontend.show_jobs(deadline).await,
            Statement::Job { id, verb } => self.control_job(*id, *verb, deadline).await,
            Statement::WaitFor { what: WaitFor::View(name), timeout } => {
                self.wait_for_view(name, *timeout, deadline).await
            }
            Statement::WaitFor { what: WaitFor::Index { name, table }, timeout } => {
                self.wait_for_index(name, table, *timeout, deadline).await
            }
            Statement::CreateIndex { name, table, columns, if_not_exists } => {
                self.create_index(name, table, columns, *if_not_exists, deadline).await
            }
            Statement::DropIndex { name, table, if_exists } => self.drop_index(name, table, *if_exists, deadline).await,
            Statement::CheckView { name } => self.check_view(name, deadline).await,
            Statement::CheckIndex { name, table } => self.frontend.check_index(name, table, deadline).await,
            Statement::Checksum { table } => self.frontend.checksum(table, deadline).await,
            Statement::AlterTable(alter) => {
                let evaluator = self.frontend.planner().evaluator(self.frontend.shared.clock.now());
                self.alter(&alter.name, deadline, |table| alter.resolve(&table.schema, &evaluator)).await
            }
            Statement::TruncateTable { name } => {
                let open = self.begin(deadline).await?;
                let request = MetaRequest::TruncateTable { name: name.clone(), request: open.name() };
                match self.meta(request, deadline).await? {
                    MetaAnswer::Truncated => Ok(Output::Done),
                    other => Err(mismatch(&other)),
                }
            }
            Statement::Insert(insert) => self.insert_statement(insert, deadline).await.map(Output::Affected),
            Statement::Change(change) => self.change(change, deadline).await.map(Output::Affected),
            Statement::Query(query) => {
                let staleness = *self.shared.staleness.lock().unwrap_or_else(PoisonError::into_inner);
                let (schema, batches) = self.frontend.query(query, staleness, deadline).await?;
                Ok(Output::Rows { schema, batches })
            }
            Statement::Set(Setting::ReadStaleness(staleness)) => {
                *self.shared.staleness.lock().unwrap_or_else(PoisonError::into_inner) = *staleness;
                Ok(Output::Done)
            }
            Statement::Explain(statement) => self.frontend.explain(statement, deadline).await,
            Statement::ShowTables => self.frontend.show_tables(deadline).await,
            Statement::Admin { verb, table } => self.frontend.admin(verb.clone(), table, deadline).await,
            Statement::MoveReplica { table, region, from, to } => {
                let open = self.begin(deadline).await?;
                let (name, region, from, to) = (table.clone(), *region, *from, *to);
                let request = MetaRequest::MoveReplica { name, region, from, to, request: open.name() };
                match self.meta(request, deadline).await? {
                    MetaAnswer::Moved(table) => self.frontend.routes().remember(Arc::new(table)),
                    other => return Err(mismatch(&other)),
                }
                Ok(Output::Done)
            }
        }
    }

    async fn drop(
        &self,
        name: &str,
        if_exists: bool,
        is_view: bool,
        cascade: bool,
        deadline: Deadline,
    ) -> Result<Output> {
        let open = self.begin(deadline).await?;
        let (name, request) = (name.to_string(), open.name());
        let request = MetaRequest::DropTable { name: name.clone(), if_exists, is_view, cascade, request };
        let answer = self.meta(request, deadline).await;
        self.frontend.routes().forget(&name);
        if cascade {
            self.frontend.routes().forget_tables();
        }
        match answer? {
            MetaAnswer::Dropped(_) => Ok(Output::Done),
            other => Err(mismatch(&other)),
        }
    }

    /// A request that changes the catalog: whether a lost one was carried out is not known.
    pub(super) async fn meta(&self, request: MetaRequest, deadline: Deadline) -> Result<MetaAnswer> {
        self.frontend.routes().meta(request, deadline).await.result
    }

    pub(super) fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    /// Begins a statement that writes.
    pub(super) async fn begin(&self, deadline: Deadline) -> Result<OpenStatement> {
        let (session, number) = self.number(None, deadline).await?;
        let named = Named { session, number, numbers: vec![number], parts: BTreeMap::new() };
        Ok(OpenStatement { session: self.clone(), named: Mutex::new(named) })
    }

    /// The next number of a statement, in the session that replaces `expired`.
    async fn number(&self, expired: Option<SessionId>, deadline: Deadline) -> Result<(SessionId, u64)> {
        let usable = |numbers: &mut Numbers| {
            let id = numbers.id.filter(|id| Some(*id) != expired)?;
            numbers.last += 1;
            numbers.open.insert(numbers.last);
            Some((id, numbers.last))
        };
        if let Some(named) = usable(&mut self.numbers()) {
            return Ok(named);
        }
        let _opening = self.shared.opening.lock().await;
        if let Some(named) = usable(&mut self.numbers()) {
            return Ok(named);
        }
        let id = match self.frontend.routes().meta(MetaRequest::OpenSession, deadline).await.result? {
            MetaAnswer::Session(id) => id,
            other => return Err(mismatch(&other)),
        };
        let mut numbers = self.numbers();
        numbers.id = Some(id);
        usable(&mut numbers).ok_or(Error::SessionExpired { session: id })
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.numbers().id).finish_non_exhaustive()
    }
}

/// A statement that writes, from its first request until its last answer (or until nobody waits for it).
pub(super) struct OpenStatement {
    session: Session,
    named: Mutex<Named>,
}

struct Named {
    session: SessionId,
    number: u64,
    /// All numbers that the statement had: one more for each session that expired under it.
    numbers: Vec<u64>,
    parts: BTreeMap<RegionId, u32>,
}

impl OpenStatement {
    /// The statement's name, for a request that is no write to a region.
    pub fn name(&self) -> (SessionId, u64) {
        let named = self.named();
        (named.session, named.number)
    }

    /// The id of the statement's next write to `region`.
    pub fn part(&self, region: RegionId) -> RequestId {
        let mut named = self.named();
        let part = named.parts.entry(region).or_default();
        *part += 1;
        let part = *part - 1;
        RequestId { session: named.session, statement: named.number, part }
    }

    /// The id under which a write is sent that was refused, because the session of its id `expired`, and surely was not
    /// applied.
    pub async fn renamed(&self, expired: RequestId, deadline: Deadline) -> Result<RequestId> {
        let (session, statement) = self.name();
        if session != expired.session {
            return Ok(RequestId { session, statement, part: expired.part });
        }
        let (session, number) = self.session.number(Some(expired.session), deadline).await?;
        let mut named = self.named();
        named.numbers.push(number);
        // Another part of the statement may have been faster.
        if named.session == expired.session {
            (named.session, named.number) = (session, number);
        }
        Ok(RequestId { session: named.session, statement: named.number, part: expired.part })
    }

    /// All statements of the session below this one have their answers.
    pub fn acknowledged(&self) -> u64 {
        let numbers = self.session.numbers();
        numbers.open.first().copied().unwrap_or(numbers.last + 1)
    }

    fn named(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStatement {
    fn drop(&mut self) {
        let closed = std::mem::take(&mut self.named().numbers);
        let mut numbers = self.session.numbers();
        closed.iter().for_each(|number| {
            numbers.open.remove(number);
        });
    }
}
