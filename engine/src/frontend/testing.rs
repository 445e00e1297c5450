//! A cluster in memory for tests of the frontend: meta and regions with the semantics that the frontend relies on, and
//! faults on demand. No raft, no files: a region is a map with versions, led by one of three nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::sleep;

use super::{Frontend, Session};
use crate::clock::Clock;
use crate::error::{Error, Invalid, Result};
use crate::event::{Event, Events, Listen};
use crate::meta::catalog::{CreateTable, IndexState, PartitionRule, RegionDef, TableDef};
use crate::meta::request::{MetaAnswer, MetaRequest, ProcedureStatus};
use crate::metrics::Sample;
use crate::options::Options;
use crate::region::request::{
    Checksum, IndexCheck, IndexStatus, Moment, PinStatus, ReplicaStatus, ScanAnswer, ScanRequest, SstStatus,
    WriteAnswer, WriteRequest,
};
use crate::server::message::{Request, Response};
use crate::server::router::{Remote, Router};
use crate::types::{
    Alteration, Column, ColumnDefault, ColumnType, Condition, IndexDef, Key, LogId, NodeId, Place, Position,
    ProcedureId, RegionId, ReplicaId, RequestId, Schema, Sequence, SessionId, TableId, Timestamp, Value, decode_batch,
    encode_batch, encode_keys,
};

/// The nodes of the cluster.
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

#[derive(Clone)]
pub(super) struct Cluster {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<String, TableDef>,
    last_table: u32,
    last_session: u64,
    expired: BTreeSet<SessionId>,
    meta_leader: NodeId,
    /// Statements that changed the catalog, with their answers.
    catalog_requests: BTreeMap<(SessionId, u64), Result<MetaAnswer>>,
    regions: BTreeMap<RegionId, Region>,
    faults: Vec<Fault>,
    /// Dead nodes.
    down: BTreeSet<NodeId>,
    /// What was asked, for scripts that look at it.
    calls: Vec<String>,
    now: i64,
}

#[derive(Default)]
struct Region {
    leader: NodeId,
    sequence: u64,
    pins: BTreeMap<String, u64>,
    /// The versions of each row: a whole row, or none where it was deleted.
    rows: BTreeMap<Key, Vec<(u64, Option<RecordBatch>)>>,
    results: BTreeMap<RequestId, Result<WriteAnswer>>,
    acknowledged: BTreeMap<SessionId, u64>,
}

/// What goes wrong with the requests that it is aimed at.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// `write`, `scan`, `meta`, ..
    pub kind: String,
    /// Of this region only.
    pub region: Option<RegionId>,
    pub effect: Effect,
    /// So many requests pass before.
    pub skip: u64,
    /// So many are hit.
    pub times: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Effect {
    /// The request gets lost on its way.
    LostRequest,
    /// The request is carried out, the answer gets lost.
    LostAnswer,
    /// Refused before anything is done.
    Busy,
    NotLeader,
    RegionNotFound,
    SchemaChanged,
    /// The table gets the column `added INT DEFAULT 9` before the request is carried out.
    AddColumn,
    TooOld,
    SessionExpired,
    Damaged,
    /// Answered after this many milliseconds.
    Delay(u64),
}

impl Effect {
    pub fn parse(name: &str) -> Option<Effect> {
        Some(match name {
            "lost_request" => Effect::LostRequest,
            "lost_answer" => Effect::LostAnswer,
            "busy" => Effect::Busy,
            "not_leader" => Effect::NotLeader,
            "region_not_found" => Effect::RegionNotFound,
            "schema_changed" => Effect::SchemaChanged,
            "add_column" => Effect::AddColumn,
            "too_old" => Effect::TooOld,
            "session_expired" => Effect::SessionExpired,
            "damaged" => Effect::Damaged,
            _ => Effect::Delay(name.strip_prefix("delay_")?.parse().ok()?),
        })
    }
}

impl Cluster {
    pub fn new() -> Cluster {
        let state = State { meta_leader: NODES[1], now: 1_357_000_000_000, ..State::default() };
        Cluster { state: Arc::new(Mutex::new(state)) }
    }

    /// Small pages and short waits.
    pub fn options() -> Options {
        Options {
            retry_min_ms: 5,
            retry_max_ms: 40,
            rpc_timeout_ms: 100,
            statement_timeout_ms: 1_000,
            write_batch_rows: 4,
            rpc_frame_bytes: 1 << 16,
            ..Options::default()
        }
    }

    /// A frontend of this cluster.
    pub fn frontend(&self) -> Frontend {
        self.frontend_with(Cluster::options())
    }

    pub fn frontend_with(&self, options: Options) -> Frontend {
        let router = Arc::new(Router::of_client(Arc::new(self.clone())));
        let events = Events::heard_by(NodeId(0), Arc::new(self.clone()));
        Frontend::new(router, NODES.to_vec(), Arc::new(self.clone()), Arc::new(options), events)
    }

    pub fn session(&self) -> Session {
        self.frontend().session()
    }

    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Faults that nothing ran into.
    pub fn faults_left(&self) -> Vec<Fault> {
        std::mem::take(&mut self.lock().faults)
    }

    pub fn lead(&self, region: RegionId, node: NodeId) {
        let mut state = self.lock();
        match state.regions.get_mut(&region) {
            Some(region) => region.leader = node,
            None => state.meta_leader = node,
        }
    }

    pub fn set_down(&self, node: NodeId, down: bool) {
        let mut state = self.lock();
        if down {
            state.down.insert(node)
        } else {
            state.down.remove(&node)
        };
    }

    /// The sessions that were given out so far are expired.
    pub fn expire_sessions(&self) {
        let mut state = self.lock();
        state.expired = (1..=state.last_session).map(SessionId).collect();
    }

    pub fn set_now(&self, now: i64) {
        self.lock().now = now;
    }

    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    /// Rows of each region.
    pub fn counts(&self) -> Vec<(RegionId, usize)> {
        let live = |region: &Region| {
            region.rows.values().filter(|versions| versions.last().is_some_and(|(_, row)| row.is_some())).count()
        };
        self.lock().regions.iter().map(|(id, region)| (*id, live(region))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

#[async_trait]
impl Remote for Cluster {
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        // A hop of the network: requests of several tasks mix.
        sleep(Duration::from_millis(1)).await;
        let effect = {
            let mut state = self.lock();
            state.note(to, &request);
            if state.down.contains(&to) {
                return Err(Error::Busy { what: format!("node {to} cannot be reached") });
            }
            state.effect(&request)
        };
        let lost = || Error::Unknown { message: format!("node {to} did not answer") };
        let region = region_of(&request);
        match effect {
            None => self.lock().handle(to, request),
            Some(Effect::LostRequest) => {
                sleep(within).await;
                Err(lost())
            }
            Some(Effect::LostAnswer) => {
                let _ = self.lock().handle(to, request);
                sleep(within).await;
                Err(lost())
            }
            Some(Effect::Delay(millis)) => {
                sleep(Duration::from_millis(millis)).await;
                self.lock().handle(to, request)
            }
            Some(Effect::Busy) => Err(Error::Busy { what: "too many requests".into() }),
            Some(Effect::NotLeader) => Err(Error::NotLeader { region, hint: None }),
            Some(Effect::RegionNotFound) => Err(Error::RegionNotFound { region }),
            Some(Effect::SchemaChanged) => Err(Error::SchemaChanged { region, version: 2 }),
            Some(Effect::AddColumn) => {
                let mut state = self.lock();
                state.add_column(region);
                state.handle(to, request)
            }
            Some(Effect::TooOld) => Err(Error::TooOld { region, oldest: Sequence(1) }),
            Some(Effect::SessionExpired) => Err(Error::SessionExpired { session: session_of(&request) }),
            Some(Effect::Damaged) => {
                Err(Error::Damaged { file: "sst/1".into(), message: "the checksum is another one".into() })
            }
        }
    }
}

impl Listen for Cluster {
    fn on_event(&self, _: NodeId, event: &Event) {
        if let Event::RouteRefreshed { region } = event {
            self.lock().calls.push(format!("route of {region} refreshed"));
        }
    }
}

impl Clock for Cluster {
    fn now(&self) -> Timestamp {
        Timestamp(self.lock().now)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

fn region_of(request: &Request) -> RegionId {
    match request {
        Request::Write { region, .. } | Request::Scan { region, .. } => *region,
        _ => RegionId::META,
    }
}

fn session_of(request: &Request) -> SessionId {
    match request {
        Request::Write { write, .. } => write.request.map_or(SessionId(0), |request| request.session),
        _ => SessionId(0),
    }
}

impl State {
    fn note(&mut self, to: NodeId, request: &Request) {
        let text = match request {
            Request::Write { region, write } => {
                let id = write.request.map_or("-".to_string(), |request| request.to_string());
                let kind = match (write.ops.is_empty(), write.expected.is_empty()) {
                    (true, true) => "put",
                    (true, false) => "put if unchanged",
                    (false, _) => "delete if unchanged",
                };
                format!("{region} {kind} {id} acknowledged={}", write.acknowledged)
            }
            Request::Scan { region, scan } => {
                let mut text = format!("{region} scan [{}]", scan.columns.join(", "));
                if scan.with_sequence {
                    text.push_str(" with sequence");
                }
                for predicate in &scan.predicates {
                    text.push_str(&format!(" {predicate}"));
                }
                if let Some(upto) = scan.upto {
                    text.push_str(&format!(" upto {upto}"));
                }
                if let Some(stale_ms) = scan.stale_ms {
                    text.push_str(&format!(" stale={stale_ms}ms"));
                }
                if let Some(index) = scan.index {
                    text.push_str(&format!(" index={index}"));
                }
                if scan.page_rows > 0 {
                    text.push_str(&format!(" page={}", scan.page_rows));
                }
                text
            }
            Request::Meta(MetaRequest::CreateTable { table, .. }) => format!("create {}", table.name),
            Request::Meta(MetaRequest::DropTable { name, .. }) => format!("drop {name}"),
            Request::Meta(MetaRequest::TruncateTable { name, .. }) => format!("truncate {name}"),
            Request::Meta(MetaRequest::AlterTable { name, of, alterations, .. }) => {
                format!("alter {name} at {}.{}: {alterations:?}", of.0, of.1)
            }
            Request::Meta(MetaRequest::Table { name }) => format!("table {name}"),
            Request::Meta(MetaRequest::Tables) => "tables".to_string(),
            Request::Meta(MetaRequest::OpenSession) => "open session".to_string(),
            other => other.kind().name().to_string(),
        };
        self.calls.push(format!("{to}: {text}"));
    }

    fn effect(&mut self, request: &Request) -> Option<Effect> {
        let at = self.faults.iter().position(|fault| {
            fault.kind == request.kind().name() && fault.region.is_none_or(|region| region == region_of(request))
        })?;
        let fault = &mut self.faults[at];
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        let effect = fault.effect;
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(effect)
    }

    fn handle(&mut self, node: NodeId, request: Request) -> Result<Response> {
        match request {
            Request::Meta(request) => self.meta(node, request).map(Response::Meta),
            Request::Write { region, write } => {
                self.check_leader(node, region)?;
                self.write(region, write).map(Response::Write)
            }
            Request::Scan { region, scan } => {
                if scan.stale_ms.is_none() {
                    self.check_leader(node, region)?;
                }
                let table = self.table(region)?;
                check_version(&table, region, scan.schema_version)?;
                self.regions[&region].scan(&table, scan).map(Response::Scan)
            }
            Request::Status { .. } => Ok(Response::Status(self.status(node))),
            Request::Files => Ok(Response::Files(self.files(node))),
            Request::Metrics => {
                let leads = self.regions.iter().filter(|(_, region)| region.leader == node);
                let samples = leads.map(|(id, _)| Sample::gauge("seedbed_raft_leader", Some(*id), 1));
                Ok(Response::Metrics(samples.collect()))
            }
            Request::Transfer { region, to } => {
                self.check_leader(node, region)?;
                self.regions.get_mut(&region).expect("it has a leader").leader = NodeId(to.0);
                Ok(Response::Done)
            }
            Request::Pin { region, name } => {
                self.check_leader(node, region)?;
                let region = self.regions.get_mut(&region).expect("it has a leader");
                region.pins.entry(name).or_insert(region.sequence);
                Ok(Response::Done)
            }
            Request::Unpin { region, name } => {
                self.check_leader(node, region)?;
                self.regions.get_mut(&region).expect("it has a leader").pins.remove(&name);
                Ok(Response::Done)
            }
            Request::Pins { region: id } => {
                self.check_leader(node, id)?;
                let region = &self.regions[&id];
                let status = |(name, sequence): (&String, &u64)| PinStatus {
                    region: id,
                    name: name.clone(),
                    sequence: Sequence(*sequence),
                    newer: region.sequence - sequence,
                    at: Timestamp(1_000),
                };
                Ok(Response::Pins(region.pins.iter().map(status).collect()))
            }
            Request::Indexes { region: id } => {
                self.check_leader(node, id)?;
                let table = self.table(id)?;
                let rows = self.regions[&id].rows.len() as u64;
                let status = |index: &IndexDef| {
                    let is_complete = table.indexes.get(&index.id).is_some_and(|state| state.is_ready);
                    let read = if is_complete { rows } else { rows / 2 };
                    IndexStatus { region: id, index: index.id, is_complete, read, rows, takeovers: 1, retries: 0 }
                };
                Ok(Response::Indexes(table.schema.indexes().iter().map(status).collect()))
            }
            Request::CheckIndex { region: id, .. } => {
                self.check_leader(node, id)?;
                let rows = self.regions[&id].rows.len() as u64;
                Ok(Response::IndexChecked(IndexCheck { region: id, rows, missing: 0, extra: 0 }))
            }
            Request::Moment { region } => {
                self.check_leader(node, region)?;
                let (table, sequence) = (self.table(region)?, self.regions[&region].sequence);
                let applied = Some(LogId { term: 1, index: sequence });
                let schema_version = table.schema.version;
                Ok(Response::Moment(Moment { applied, sequence: Sequence(sequence), schema_version }))
            }
            Request::Checksum { region, at } => {
                let table = self.table(region)?;
                check_version(&table, region, at.schema_version)?;
                let visible = self.regions[&region].rows.values().filter_map(|versions| {
                    let (_, row) = versions.iter().rev().find(|(sequence, _)| *sequence <= at.sequence.0)?;
                    row.as_ref()
                });
                let rows: Vec<String> = visible.map(|row| format!("{row:?}")).collect();
                let checksum = u64::from(crc32fast::hash(rows.join("|").as_bytes()));
                let (replica, rows) = (ReplicaId(node.0), rows.len() as u64);
                Ok(Response::Checksum(Checksum { replica, moment: at, rows, checksum }))
            }
            Request::Flush { region } | Request::Compact { region, .. } => {
                self.table(region)?;
                Ok(Response::Done)
            }
            other => panic!("a frontend does not ask for {:?}", other.kind()),
        }
    }

    fn check_leader(&self, node: NodeId, region: RegionId) -> Result<()> {
        let leader = self.regions.get(&region).ok_or(Error::RegionNotFound { region })?.leader;
        if leader == node {
            return Ok(());
        }
        Err(Error::NotLeader { region, hint: Some((ReplicaId(leader.0), leader)) })
    }

    fn table(&self, region: RegionId) -> Result<TableDef> {
        let table = self.tables.values().find(|table| table.id == region.table());
        table.cloned().ok_or(Error::RegionNotFound { region })
    }

    fn meta(&mut self, node: NodeId, request: MetaRequest) -> Result<MetaAnswer> {
        if node != self.meta_leader {
            let hint = Some((ReplicaId(self.meta_leader.0), self.meta_leader));
            return Err(Error::NotLeader { region: RegionId::META, hint });
        }
        match request {
            MetaRequest::RefillView { .. } | MetaRequest::ControlJob { .. } | MetaRequest::FailView { .. } => {
                Err(Error::invalid(Invalid::Unsupported, "views, in a cluster without logs"))
            }
            MetaRequest::Views => Ok(MetaAnswer::Views(Vec::new())),
            MetaRequest::CreateTable { table, request } => {
                if let Some(answer) = self.catalog_requests.get(&request) {
                    return answer.clone();
                }
                let answer = self.create(table);
                self.catalog_requests.insert(request, answer.clone());
                answer
            }
            MetaRequest::AlterTable { name, of, alterations, request } => {
                if let Some(answer) = self.catalog_requests.get(&request) {
                    return answer.clone();
                }
                let answer = self.alter(&name, of, &alterations);
                self.catalog_requests.insert(request, answer.clone());
                answer
            }
            MetaRequest::TruncateTable { name, request } => {
                if let Some(answer) = self.catalog_requests.get(&request) {
                    return answer.clone();
                }
                let answer = match self.tables.get(&name) {
                    Some(table) => {
                        let emptied = self.regions.iter_mut().filter(|(id, _)| id.table() == table.id);
                        emptied.for_each(|(_, region)| region.rows.clear());
                        Ok(MetaAnswer::Truncated)
                    }
                    None => Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}"))),
                };
                self.catalog_requests.insert(request, answer.clone());
                answer
            }
            MetaRequest::DropTable { name, if_exists, request, .. } => {
                if let Some(answer) = self.catalog_requests.get(&request) {
                    return answer.clone();
                }
                let answer = match self.tables.remove(&name) {
                    Some(table) => {
                        self.regions.retain(|id, _| id.table() != table.id);
                        Ok(MetaAnswer::Dropped(true))
                    }
                    None if if_exists => Ok(MetaAnswer::Dropped(false)),
                    None => Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}"))),
                };
                self.catalog_requests.insert(request, answer.clone());
                answer
            }
            MetaRequest::MoveReplica { name, region, from, to, request } => {
                if let Some(answer) = self.catalog_requests.get(&request) {
                    return answer.clone();
                }
                let answer = self.move_replica(&name, region, from, to);
                self.catalog_requests.insert(request, answer.clone());
                answer
            }
            MetaRequest::Table { name } => Ok(MetaAnswer::Table(self.tables.get(&name).cloned())),
            MetaRequest::Procedures => Ok(MetaAnswer::Procedures(vec![ProcedureStatus {
                id: ProcedureId(7),
                kind: "truncate_table".into(),
                table: "b".into(),
                step: "truncating".into(),
                open: 2,
                error: None,
                waits_for: Some("n2: [connection_lost] it is down".into()),
            }])),
            MetaRequest::Tables => Ok(MetaAnswer::Tables(self.tables.values().cloned().collect())),
            MetaRequest::OpenSession => {
                self.last_session += 1;
                Ok(MetaAnswer::Session(SessionId(self.last_session)))
            }
        }
    }

    /// The replica on node `to` has the number of the node, as all have here.
    fn move_replica(&mut self, name: &str, region: u32, from: NodeId, to: NodeId) -> Result<MetaAnswer> {
        let refused = |message: &str| Err(Error::invalid(Invalid::OutOfRange, message));
        let Some(table) = self.tables.get_mut(name) else {
            return Err(Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}")));
        };
        let Some(def) = table.regions.get_mut(region as usize) else { return refused("there is no such region") };
        if def.replicas.remove(&ReplicaId(from.0)).is_none() {
            return refused("there is no replica");
        }
        def.replicas.insert(ReplicaId(to.0), to);
        let moved = self.regions.get_mut(&def.id).expect("a region of a table");
        if moved.leader == from {
            moved.leader = to;
        }
        Ok(MetaAnswer::Moved(table.clone()))
    }

    fn alter(&mut self, name: &str, of: (TableId, u64), alterations: &[Alteration]) -> Result<MetaAnswer> {
        let unknown = || Error::invalid(Invalid::UnknownTable, format!("there is no table {name:?}"));
        let table = self.tables.get_mut(name).ok_or_else(unknown)?;
        if of != (table.id, table.schema.version) {
            return Err(Error::SchemaChanged { region: RegionId::META, version: table.schema.version });
        }
        let altered = table.schema.altered(alterations)?;
        table.partition = table.partition.renamed(&table.schema, &altered);
        let was = std::mem::replace(&mut table.schema, altered);
        // They are backfilled at once, but for some.
        let state = |index: &IndexDef| {
            let job = ProcedureId(100 + u64::from(index.id.0));
            let (is_ready, started_at) = (!index.name.starts_with("slow"), Timestamp(1_000));
            (index.id, IndexState { job, is_ready, started_at })
        };
        table.indexes = table.schema.indexes().iter().map(state).collect();
        for (_, region) in self.regions.iter_mut().filter(|(id, _)| id.table() == table.id) {
            let images = region.rows.values_mut().flatten().filter_map(|(_, image)| image.as_mut());
            images.for_each(|image| *image = reshaped(image, &was, &table.schema));
        }
        Ok(MetaAnswer::Altered(table.clone()))
    }

    fn add_column(&mut self, region: RegionId) {
        let table = self.table(region).expect("the request is for a region");
        let added = Alteration::Add {
            name: "added".into(),
            column_type: ColumnType::Int32,
            nullable: false,
            default: Some(ColumnDefault::Constant(Value::Int(9))),
            absent: Value::Int(7),
            place: Place::First,
        };
        self.alter(&table.name, (table.id, table.schema.version), &[added]).expect("the column can be added");
    }

    fn create(&mut self, table: CreateTable) -> Result<MetaAnswer> {
        if let Some(existing) = self.tables.get(&table.name) {
            if table.if_not_exists {
                return Ok(MetaAnswer::Created(existing.clone()));
            }
            return Err(Error::invalid(Invalid::DuplicateTable, format!("table {:?} exists already", table.name)));
        }
        self.last_table += 1;
        let id = TableId(self.last_table);
        let count = match &table.partition {
            PartitionRule::Expressions { expressions, .. } => expressions.len() as u32,
            PartitionRule::Hash { regions, .. } => *regions,
        };
        let replicas: BTreeMap<ReplicaId, NodeId> = NODES.iter().map(|node| (ReplicaId(node.0), *node)).collect();
        let regions: Vec<RegionDef> =
            (0..count).map(|number| RegionDef { id: RegionId::new(id, number), replicas: replicas.clone() }).collect();
        for region in &regions {
            let leader = NODES[region.id.number() as usize % NODES.len()];
            self.regions.insert(region.id, Region { leader, ..Region::default() });
        }
        let CreateTable { name, schema, partition, view, .. } = table;
        let table = TableDef { id, name: name.clone(), schema, partition, regions, view, indexes: BTreeMap::new() };
        self.tables.insert(name, table.clone());
        Ok(MetaAnswer::Created(table))
    }

    fn write(&mut self, id: RegionId, write: WriteRequest) -> Result<WriteAnswer> {
        let table = self.table(id)?;
        let request = write.request.expect("a frontend names its writes");
        if self.expired.contains(&request.session) {
            return Err(Error::SessionExpired { session: request.session });
        }
        let region = self.regions.get_mut(&id).expect("checked by check_leader");
        if let Some(result) = region.results.get(&request) {
            self.calls.push(format!("{id} answered {request} from memory"));
            return result.clone();
        }
        let low = region.acknowledged.entry(request.session).or_default();
        assert!(request.statement >= *low, "{request} is sent after {low} was acknowledged");
        *low = (*low).max(write.acknowledged);
        let result = check_version(&table, id, write.schema_version).and_then(|()| region.apply(&table, &write));
        region.results.insert(request, result.clone());
        result
    }

    /// One file a region with rows, on its leader.
    fn files(&self, node: NodeId) -> Vec<SstStatus> {
        let led = self.regions.iter().filter(|(_, region)| region.leader == node && !region.rows.is_empty());
        let status = |(id, region): (&RegionId, &Region)| SstStatus {
            region: *id,
            replica: ReplicaId(node.0),
            node,
            file: format!("f{}", id.number()),
            index: None,
            level: 0,
            rows: region.rows.len() as u64,
            bytes: 100,
            first_sequence: Sequence(1),
            last_sequence: Sequence(region.sequence),
            times: None,
            schema_version: 1,
        };
        led.map(status).collect()
    }

    fn status(&self, node: NodeId) -> Vec<ReplicaStatus> {
        let status = |(id, region): (&RegionId, &Region)| ReplicaStatus {
            region: *id,
            replica: ReplicaId(node.0),
            node,
            is_leader: region.leader == node,
            leader: Some((ReplicaId(region.leader.0), region.leader)),
            term: 1,
            applied: Some(LogId { term: 1, index: region.sequence }),
            flushed: None,
            sequence: Sequence(region.sequence),
            oldest: Sequence(0),
            memtable_rows: region.rows.len() as u64,
            memtable_bytes: 0,
            ssts: 0,
            sst_bytes: 0,
            schema_version: 1,
            members: BTreeMap::new(),
            voters: Vec::new(),
        };
        self.regions.iter().map(status).collect()
    }
}

impl Region {
    fn apply(&mut self, table: &TableDef, write: &WriteRequest) -> Result<WriteAnswer> {
        let batch = decode_batch(&write.rows, &table.schema.to_arrow()).expect("a frontend sends whole rows");
        let keys = encode_keys(&batch, &table.schema.key());
        if !write.expected.is_empty() {
            let newest = |key: &Key| self.rows.get(key).and_then(|versions| versions.last()).map_or(0, |(s, _)| *s);
            let changed = (0..keys.len()).filter(|row| newest(&keys[*row]) != write.expected[*row].0);
            let rows: Vec<u32> = changed.map(|row| row as u32).collect();
            if !rows.is_empty() {
                return Err(Error::Conflict { region: table.regions[0].id, rows });
            }
        }
        for (row, key) in keys.into_iter().enumerate() {
            self.sequence += 1;
            let image = (write.ops.get(row) != Some(&1)).then(|| batch.slice(row, 1));
            self.rows.entry(key).or_default().push((self.sequence, image));
        }
        Ok(WriteAnswer { rows: batch.num_rows() as u64, sequence: Sequence(self.sequence) })
    }

    fn scan(&self, table: &TableDef, scan: ScanRequest) -> Result<ScanAnswer> {
        const PAGE_ROWS: u64 = 3;
        let upto = scan.upto.unwrap_or(Sequence(self.sequence));
        let limit = if scan.page_rows == 0 { PAGE_ROWS } else { scan.page_rows.min(PAGE_ROWS) } as usize;
        let mut found: Vec<(&Key, u64, &RecordBatch)> = Vec::new();
        let mut more = false;
        for (key, versions) in &self.rows {
            if scan.after.as_ref().is_some_and(|after| *key <= after.key) {
                continue;
            }
            let visible = versions.iter().rev().find(|(sequence, _)| *sequence <= upto.0);
            let Some((sequence, Some(row))) = visible else {
                continue;
            };
            // Really filtered, though a region need not: a wrong condition must show.
            let holds = scan.predicates.iter().all(|predicate| {
                let (at, _) = table.schema.column(&predicate.column).expect("a frontend names columns");
                assert!(well_typed(&predicate.condition, table.schema.columns()[at].column_type), "{predicate}");
                predicate.condition.holds(&Value::of_cell(row.column(at), 0))
            });
            if !holds {
                continue;
            }
            if found.len() == limit {
                more = true;
                break;
            }
            found.push((key, *sequence, row));
        }
        let position = |key: &Key| Position { key: key.clone(), sequence: Sequence(0) };
        let next = if more { found.last().map(|(key, _, _)| position(key)) } else { None };
        let rows = found.len() as u64;
        let mut batches: Vec<Bytes> = Vec::new();
        if rows > 0 && (!scan.columns.is_empty() || scan.with_sequence) {
            batches.push(encode_batch(&project(table, &scan, &found)));
        }
        Ok(ScanAnswer { batches, rows, sequence: upto, next })
    }
}

fn check_version(table: &TableDef, region: RegionId, version: u64) -> Result<()> {
    let now = table.schema.version;
    if version == now { Ok(()) } else { Err(Error::SchemaChanged { region, version: now }) }
}

fn reshaped(image: &RecordBatch, was: &Schema, is: &Schema) -> RecordBatch {
    let column = |column: &Column| match was.columns().iter().position(|old| old.id == column.id) {
        Some(at) => arrow::compute::cast(image.column(at), &column.column_type.to_arrow()).unwrap(),
        None => Value::to_array(&vec![is.absent(column.id); image.num_rows()], column.column_type),
    };
    RecordBatch::try_new(is.to_arrow(), is.columns().iter().map(column).collect()).unwrap()
}

fn well_typed(condition: &Condition, column_type: ColumnType) -> bool {
    let fits =
        |value: &Value| std::panic::catch_unwind(|| Value::to_array(std::slice::from_ref(value), column_type)).is_ok();
    match condition {
        Condition::IsNull | Condition::IsNotNull => true,
        Condition::In(values) => values.iter().all(|value| !value.is_null() && fits(value)),
        Condition::Eq(value)
        | Condition::NotEq(value)
        | Condition::Lt(value)
        | Condition::LtEq(value)
        | Condition::Gt(value)
        | Condition::GtEq(value) => !value.is_null() && fits(value),
    }
}

fn project(table: &TableDef, scan: &ScanRequest, found: &[(&Key, u64, &RecordBatch)]) -> RecordBatch {
    let rows: Vec<&RecordBatch> = found.iter().map(|(_, _, row)| *row).collect();
    let whole = concat_batches(&table.schema.to_arrow(), rows).unwrap();
    let mut fields: Vec<Field> = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for name in &scan.columns {
        let (at, _) = table.schema.column(name).expect("a frontend names columns");
        fields.push(whole.schema().field(at).clone());
        columns.push(whole.column(at).clone());
    }
    if scan.with_sequence {
        fields.push(Field::new("__sequence", DataType::UInt64, false));
        columns.push(Arc::new(UInt64Array::from_iter_values(found.iter().map(|(_, sequence, _)| *sequence))));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(found.len()));
    RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), columns, &options).unwrap()
}
