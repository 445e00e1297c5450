//! Where tables, regions and their leaders are, as far as this frontend knows, and the retries that find out better.
//!
//! What is cached may be wrong at any time; whoever is asked in vain says so, and then the next one is asked: the leader
//! that the answer names, otherwise the replicas in turn, with pauses that double.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::deadline::Deadline;
use crate::error::{Error, Invalid, IoKind, Result};
use crate::event::{Event, Events};
use crate::meta::catalog::{RegionDef, TableDef};
use crate::meta::request::{MetaAnswer, MetaRequest, ProcedureStatus, ViewStatus};
use crate::metrics::Sample;
use crate::options::Options;
use crate::region::request::{
    Checksum, IndexStatus, LegStatus, Moment, PinStatus, PositionStatus, ReplicaStatus, ScanRequest, SstStatus,
};
use crate::server::message::{Request, Response};
use crate::server::router::Router;
use crate::sql::suggest;
use crate::types::{NodeId, RegionId};

/// So many times each node of a group is asked in vain before meta is asked where the replicas are by now.
const IN_VAIN: usize = 4;

/// The cache and the ways.
pub(super) struct Routes {
    router: Arc<Router>,
    meta: Vec<NodeId>,
    options: Arc<Options>,
    events: Events,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    tables: BTreeMap<String, Arc<TableDef>>,
    /// The node that answered last for a group. (Meta is group 0.)
    leaders: BTreeMap<RegionId, NodeId>,
    /// The node that answered last to a read that any replica may answer.
    near: BTreeMap<RegionId, NodeId>,
}

/// What came of a request after all retries.
pub(super) struct Answer<T> {
    /// The last answer.
    pub result: Result<T>,
    /// Whether an earlier copy of the request may have been applied, so that only an answer that knows of it counts.
    pub uncertain: bool,
}

/// What is asked of meta on the way.
type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Routes {
    pub fn new(router: Arc<Router>, meta: Vec<NodeId>, options: Arc<Options>, events: Events) -> Routes {
        assert!(!meta.is_empty(), "a cluster has a node with meta");
        Routes { router, meta, options, events, cache: Mutex::default() }
    }

    /// The table called `name`; an error with a suggestion if there is none.
    pub async fn table(&self, name: &str, deadline: Deadline) -> Result<Arc<TableDef>> {
        if let Some(table) = self.cache().tables.get(name) {
            return Ok(table.clone());
        }
        match self.meta(MetaRequest::Table { name: name.to_string() }, deadline).await.result? {
            MetaAnswer::Table(Some(table)) => {
                let table = Arc::new(table);
                self.remember(table.clone());
                Ok(table)
            }
            MetaAnswer::Table(None) => {
                let tables = self.tables(deadline).await?;
                let known = suggest(name, tables.iter().map(|table| table.name.as_str()));
                Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}{known}")))
            }
            other => Err(mismatch(&other)),
        }
    }

    /// All tables by name.
    pub async fn tables(&self, deadline: Deadline) -> Result<Vec<TableDef>> {
        match self.meta(MetaRequest::Tables, deadline).await.result? {
            MetaAnswer::Tables(tables) => Ok(tables),
            other => Err(mismatch(&other)),
        }
    }

    /// Caches a table that meta just told of.
    pub fn remember(&self, table: Arc<TableDef>) {
        self.cache().tables.insert(table.name.clone(), table);
    }

    /// Forgets a table, because it turned out to be another one.
    pub fn forget(&self, name: &str) {
        self.cache().tables.remove(name);
    }

    /// Forgets all tables: one that a statement names is not what it was, the error does not say which.
    pub fn forget_tables(&self) {
        self.cache().tables.clear();
    }

    /// Forgets the tables that are not in the cache as they are at meta; says whether there are any. A statement that was
    /// refused because of what the cache says must not be if the cache was wrong.
    pub async fn forget_changed(&self, deadline: Deadline) -> Result<bool> {
        if self.cache().tables.is_empty() {
            return Ok(false);
        }
        let tables: BTreeMap<String, TableDef> =
            self.tables(deadline).await?.into_iter().map(|table| (table.name.clone(), table)).collect();
        let mut cache = self.cache();
        let before = cache.tables.len();
        cache.tables.retain(|name, cached| tables.get(name).is_some_and(|table| *table == **cached));
        Ok(cache.tables.len() < before)
    }

    /// Asks meta's leader.
    pub async fn meta(&self, request: MetaRequest, deadline: Deadline) -> Answer<MetaAnswer> {
        let answer = self.group(RegionId::META, self.meta.clone(), &Request::Meta(request), deadline).await;
        let result = answer.result.and_then(|response| match response {
            Response::Meta(answer) => Ok(answer),
            other => Err(mismatch(&other)),
        });
        Answer { result, uncertain: answer.uncertain }
    }

    /// Asks the leader of `region`.
    pub async fn region(&self, region: &RegionDef, request: &Request, deadline: Deadline) -> Answer<Response> {
        let nodes: Vec<NodeId> = region.replicas.values().copied().collect();
        self.group(region.id, nodes, request, deadline).await
    }

    /// Rows of `region` that need not be of now: asks the replica that answered last, the one on this node first, then the
    /// others, each once; and the leader, for rows of now, when none of them can tell.
    pub async fn scan_anywhere(
        &self,
        region: &RegionDef,
        scan: ScanRequest,
        staleness: Duration,
        deadline: Deadline,
    ) -> Result<Response> {
        let mut nodes: Vec<NodeId> = region.replicas.values().copied().collect();
        let near = self.cache().near.get(&region.id).copied().or_else(|| self.router.node());
        // Without a node of its own it spreads regions over their replicas.
        let first = near.and_then(|near| nodes.iter().position(|node| *node == near));
        let first = first.unwrap_or(region.id.number() as usize % nodes.len().max(1));
        let first = first.min(nodes.len());
        nodes.rotate_left(first);
        let stale_ms = Some(staleness.as_millis() as u64);
        let stale = Request::Scan { region: region.id, scan: ScanRequest { stale_ms, ..scan.clone() } };
        for node in nodes {
            if deadline.is_over() {
                break;
            }
            match self.router.call(node, stale.clone(), self.within(deadline)).await {
                Ok(answer) => {
                    self.cache().near.insert(region.id, node);
                    return Ok(answer);
                }
                // What another one would say too.
                Err(err @ (Error::Invalid { .. } | Error::SchemaChanged { .. } | Error::TooOld { .. })) => {
                    return Err(err);
                }
                Err(_) => {}
            }
        }
        self.cache().near.remove(&region.id);
        self.region(region, &Request::Scan { region: region.id, scan }, deadline).await.result
    }

    /// The procedures that have not ended.
    pub async fn procedures(&self, deadline: Deadline) -> Result<Vec<ProcedureStatus>> {
        match self.meta(MetaRequest::Procedures, deadline).await.result? {
            MetaAnswer::Procedures(procedures) => Ok(procedures),
            other => Err(mismatch(&other)),
        }
    }

    /// The views, and how far they are.
    pub async fn views(&self, deadline: Deadline) -> Result<Vec<ViewStatus>> {
        match self.meta(MetaRequest::Views, deadline).await.result? {
            MetaAnswer::Views(views) => Ok(views),
            other => Err(mismatch(&other)),
        }
    }

    /// How far the legs are that read a region.
    pub async fn legs(&self, region: &RegionDef, deadline: Deadline) -> Result<Vec<LegStatus>> {
        match self.region(region, &Request::Legs { region: region.id }, deadline).await.result? {
            Response::Legs(legs) => Ok(legs),
            other => Err(mismatch(&other)),
        }
    }

    /// How far a region of a view is.
    pub async fn positions(&self, region: &RegionDef, deadline: Deadline) -> Result<Vec<PositionStatus>> {
        match self.region(region, &Request::Positions { region: region.id }, deadline).await.result? {
            Response::Positions(positions) => Ok(positions),
            other => Err(mismatch(&other)),
        }
    }

    /// How far the indexes of a region are.
    pub async fn indexes(&self, region: &RegionDef, deadline: Deadline) -> Result<Vec<IndexStatus>> {
        match self.region(region, &Request::Indexes { region: region.id }, deadline).await.result? {
            Response::Indexes(indexes) => Ok(indexes),
            other => Err(mismatch(&other)),
        }
    }

    /// Asks `node` once for the files of its replicas.
    pub async fn files(&self, node: NodeId, deadline: Deadline) -> Result<Vec<SstStatus>> {
        let within = self.within(deadline);
        match self.router.call(node, Request::Files, within).await? {
            Response::Files(files) => Ok(files),
            other => Err(mismatch(&other)),
        }
    }

    /// Asks `node` once for what it counts.
    pub async fn metrics(&self, node: NodeId, deadline: Deadline) -> Result<Vec<Sample>> {
        match self.router.call(node, Request::Metrics, self.within(deadline)).await? {
            Response::Metrics(samples) => Ok(samples),
            other => Err(mismatch(&other)),
        }
    }

    /// The pins of a region.
    pub async fn pins(&self, region: &RegionDef, deadline: Deadline) -> Result<Vec<PinStatus>> {
        match self.region(region, &Request::Pins { region: region.id }, deadline).await.result? {
            Response::Pins(pins) => Ok(pins),
            other => Err(mismatch(&other)),
        }
    }

    /// Asks `node` once for the states of its replicas.
    pub async fn status(&self, node: NodeId, deadline: Deadline) -> Result<Vec<ReplicaStatus>> {
        let within = self.within(deadline);
        match self.router.call(node, Request::Status { region: None }, within).await? {
            Response::Status(replicas) => Ok(replicas),
            other => Err(mismatch(&other)),
        }
    }

    /// Asks the replica of `region` on `node`, again and again until it has done what `request` says, which may take long.
    pub async fn replica(&self, region: RegionId, node: NodeId, request: Request, deadline: Deadline) -> Result<()> {
        let mut pauses = self.options.pauses();
        loop {
            let err = match self.router.call(node, request.clone(), deadline.left()).await {
                Ok(Response::Done) => return Ok(()),
                Ok(other) => return Err(mismatch(&other)),
                Err(err) => err,
            };
            if matches!(err, Error::RegionNotFound { .. })
                || !err.is_retryable() && !matches!(err, Error::Deadline { .. })
            {
                return Err(err);
            }
            if !deadline.pause(&mut pauses).await {
                let waiting_for = format!("{} of region {region} on {node} (last: {err})", request.kind().name());
                return Err(Error::Deadline { waiting_for });
            }
        }
    }

    /// What a region has applied now.
    pub async fn moment(&self, region: &RegionDef, deadline: Deadline) -> Result<Moment> {
        match self.region(region, &Request::Moment { region: region.id }, deadline).await.result? {
            Response::Moment(moment) => Ok(moment),
            other => Err(mismatch(&other)),
        }
    }

    /// The checksum of the replica of `region` on `node`. It may have to read much, so it gets the time that there is; but who is
    /// away, or not there, is not waited for longer than for any answer.
    pub async fn checksum(&self, region: RegionId, node: NodeId, at: Moment, deadline: Deadline) -> Result<Checksum> {
        let mut pauses = self.options.pauses();
        let patience = Deadline::after(self.within(deadline));
        loop {
            let err = match self.router.call(node, Request::Checksum { region, at }, deadline.left()).await {
                Ok(Response::Checksum(checksum)) => return Ok(checksum),
                Ok(other) => return Err(mismatch(&other)),
                Err(err) => err,
            };
            if !err.is_retryable() || !patience.pause(&mut pauses).await {
                return Err(err);
            }
        }
    }

    /// The nodes that meta is on.
    pub fn meta_nodes(&self) -> &[NodeId] {
        &self.meta
    }

    /// The nodes that the replicas of a region are on, as meta says now; none: there is no such region (any more).
    /// (Boxed: it asks a group, as who calls it does.)
    fn places(&self, region: RegionId, deadline: Deadline) -> Asked<'_, Option<Vec<NodeId>>> {
        let soon = Deadline::after(self.within(deadline));
        Box::pin(async move {
            let tables = self.tables(soon).await?;
            let Some(table) = tables.into_iter().find(|table| table.id == region.table()) else { return Ok(None) };
            let def = table.regions.iter().find(|def| def.id == region);
            let nodes = def.map(|def| def.replicas.values().copied().collect());
            let is_cached = self.cache().tables.get(&table.name).is_some_and(|cached| cached.id == table.id);
            if is_cached {
                self.remember(Arc::new(table));
            }
            Ok(nodes)
        })
    }

    /// Asks the leader of `group`, whose replicas are on `nodes`, until there is an answer that no retry would change. A replica
    /// may have moved since: meta is asked where they are when one of the nodes has none, and when all were asked so often in
    /// vain that it is no election.
    async fn group(
        &self,
        group: RegionId,
        mut nodes: Vec<NodeId>,
        request: &Request,
        deadline: Deadline,
    ) -> Answer<Response> {
        let mut uncertain = false;
        let mut position = 0;
        let Some(mut node) = self.cache().leaders.get(&group).copied().or_else(|| turn(&nodes, &mut position, None))
        else {
            return Answer { result: Err(Error::RegionNotFound { region: group }), uncertain };
        };
        let mut in_vain = 0;
        let mut failed = None;
        let mut pauses = self.options.pauses();
        let mut hops = 0;
        let mut missing = 0;
        let mut last: Option<Error> = None;
        loop {
            if deadline.is_over() {
                return Answer { result: Err(late(group, request, last, uncertain)), uncertain };
            }
            let err = match self.router.call(node, request.clone(), self.within(deadline)).await {
                Ok(response) => {
                    self.cache().leaders.insert(group, node);
                    return Answer { result: Ok(response), uncertain };
                }
                Err(err) => err,
            };
            let mut wait = true;
            let mut hint = None;
            match &err {
                Error::NotLeader { hint: Some((_, hinted)), .. } if *hinted != node => {
                    hint = Some(*hinted);
                    // Neither two nodes that take each other for the leader nor a dead leader that others still believe in
                    // may be asked in a busy loop.
                    hops += 1;
                    wait = hops > nodes.len() || failed == Some(*hinted);
                }
                Error::NotLeader { .. } => {}
                // Surely not applied: the node is full, or was not reached. It may be dead, so the others are asked too.
                Error::Busy { .. } | Error::Deadline { .. } | Error::Stopped => failed = Some(node),
                Error::Unknown { .. } | Error::Io { kind: IoKind::ConnectionLost | IoKind::TimedOut, .. } => {
                    uncertain |= writes(request);
                    // The wait for the answer was long enough.
                    wait = false;
                }
                // The replica may have moved, or the table is gone: then all say so.
                Error::RegionNotFound { .. } => {
                    missing += 1;
                    if missing > nodes.len() {
                        return Answer { result: Err(err), uncertain };
                    }
                    in_vain = IN_VAIN * nodes.len();
                    wait = false;
                }
                _ => return Answer { result: Err(err), uncertain },
            }
            in_vain += 1;
            if in_vain > IN_VAIN * nodes.len() && group != RegionId::META {
                in_vain = 0;
                match self.places(group, deadline).await {
                    Ok(Some(places)) => nodes = places,
                    Ok(None) => return Answer { result: Err(Error::RegionNotFound { region: group }), uncertain },
                    // Meta may be found the next time.
                    Err(_) => {}
                }
            }
            if !matches!(err, Error::RegionNotFound { .. }) {
                missing = 0;
            }
            let next = match hint {
                Some(hinted) => hinted,
                None => turn(&nodes, &mut position, Some(node)).unwrap_or(node),
            };
            if next != node {
                self.cache().leaders.remove(&group);
                self.events.emit(|| Event::RouteRefreshed { region: group });
            }
            if wait {
                hops = 0;
                deadline.pause_at_most(&mut pauses).await;
            }
            node = next;
            last = Some(err);
        }
    }

    /// How long one attempt may take.
    fn within(&self, deadline: Deadline) -> Duration {
        deadline.left().min(Duration::from_millis(self.options.rpc_timeout_ms)).max(Duration::from_millis(1))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next node to ask in turn, another one than `asked` if there is one.
fn turn(nodes: &[NodeId], position: &mut usize, asked: Option<NodeId>) -> Option<NodeId> {
    for _ in 0..nodes.len() {
        let next = nodes[*position % nodes.len()];
        *position += 1;
        if Some(next) != asked {
            return Some(next);
        }
    }
    nodes.first().copied()
}

/// Whether a lost answer leaves open what the request did.
fn writes(request: &Request) -> bool {
    matches!(
        request,
        Request::Write { .. }
            | Request::Meta(
                MetaRequest::CreateTable { .. }
                    | MetaRequest::DropTable { .. }
                    | MetaRequest::TruncateTable { .. }
                    | MetaRequest::AlterTable { .. }
                    | MetaRequest::MoveReplica { .. }
                    | MetaRequest::RefillView { .. }
                    | MetaRequest::ControlJob { .. }
            )
    )
}

fn late(group: RegionId, request: &Request, last: Option<Error>, uncertain: bool) -> Error {
    let (name, group) = match request {
        Request::Meta(MetaRequest::CreateTable { .. }) => ("CREATE TABLE", "meta".to_string()),
        Request::Meta(MetaRequest::DropTable { .. }) => ("DROP TABLE", "meta".to_string()),
        Request::Meta(MetaRequest::AlterTable { .. }) => ("ALTER TABLE", "meta".to_string()),
        Request::Meta(MetaRequest::TruncateTable { .. }) => ("TRUNCATE", "meta".to_string()),
        Request::Meta(MetaRequest::MoveReplica { .. }) => ("ADMIN MOVE REPLICA", "meta".to_string()),
        Request::Meta(_) => ("a question", "meta".to_string()),
        request => (request.kind().name(), format!("region {group}")),
    };
    let last = last.map(|err| format!(" (last: {err})")).unwrap_or_default();
    if uncertain {
        return Error::Unknown { message: format!("{name} to {group} was not answered before the deadline{last}") };
    }
    Error::Deadline { waiting_for: format!("an answer of {group} to {name}{last}") }
}

/// A node that answers something else than it was asked.
pub(super) fn mismatch(answer: &impl std::fmt::Debug) -> Error {
    let mut answer = format!("{answer:?}");
    answer.truncate(answer.char_indices().nth(80).map_or(answer.len(), |(at, _)| at));
    Error::invalid(Invalid::Mismatch, format!("the answer is of another kind than the request: {answer}"))
}
