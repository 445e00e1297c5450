//! One node: opens its store, serves its peers and clients, and opens the store anew when its log has failed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::expiry;
use super::fill;
use super::identity::{Identity, next_incarnation};
use super::message::{Request, Response, SqlAnswer, ViewChange};
use super::router::Router;
use super::rpc::{Handler, Peers, serve};
use super::store::Store;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::error::{Error, IoKind, Result};
use crate::event::{Event, Events};
use crate::frontend::{Frontend, Output, Session};
use crate::metrics::{Metrics, Sample};
use crate::net::{Listener, Net};
use crate::options::Options;
use crate::raft::Surroundings;
use crate::region::command::Command;
use crate::types::{Incarnation, NodeId, ReplicaId, Timestamp};

/// What a node is told at start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Which node of the cluster it is.
    pub node: NodeId,
    /// Where it accepts connections (`host:port`).
    pub listen: String,
    /// Where every node of the cluster, this one too, is reached (`host:port`).
    pub nodes: BTreeMap<NodeId, String>,
    /// The tunables.
    pub options: Options,
}

/// The world of a node.
#[derive(Clone)]
pub struct Seams {
    /// Its files.
    pub disk: Arc<dyn Disk>,
    /// Its network.
    pub net: Arc<dyn Net>,
    /// Its wall clock.
    pub clock: Arc<dyn Clock>,
    /// Where it says what happens.
    pub events: Events,
}

/// Why a node stopped by itself. Until somebody has looked it would not do better the next time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop(pub Error);

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the node stops: {}", self.0)
    }
}

impl std::error::Error for Stop {}

/// A running node, as far as others can ask it. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    config: NodeConfig,
    seams: Seams,
    incarnation: Incarnation,
    router: Arc<Router>,
    frontend: Frontend,
    /// Sessions of clients that speak SQL over the network, by number, and how often the map was used.
    sessions: Mutex<Sessions>,
    metrics: Arc<Metrics>,
    /// The open store; none while it is opened (anew).
    store: Mutex<Option<Arc<Store>>>,
    stopping: watch::Sender<bool>,
}

impl Node {
    /// Makes the disk the store of a node of a new cluster. Once, explicitly.
    pub async fn init(config: &NodeConfig, disk: &dyn Disk) -> Result<()> {
        Identity::create(disk, config.node, &meta_members(config)).await.map(drop)
    }

    /// Starts the node and runs it until [`Node::stop`], or until its store cannot be trusted. `started` gets the
    /// handle as soon as it accepts connections.
    pub async fn run(config: NodeConfig, seams: Seams, started: impl FnOnce(Node) + Send) -> Result<(), Stop> {
        let events = seams.events.clone();
        let ended = Node::run_inner(config, seams, started).await;
        let reason = ended.as_ref().err().map_or_else(|| "asked to".to_string(), Error::to_string);
        events.emit(|| Event::NodeStopped { reason });
        ended.map_err(Stop)
    }

    async fn run_inner(config: NodeConfig, mut seams: Seams, started: impl FnOnce(Node) + Send) -> Result<()> {
        config.options.validate()?;
        let metrics = Arc::new(Metrics::default());
        seams.events = seams.events.counted_by(metrics.clone());
        let identity = Identity::load(seams.disk.as_ref(), config.node).await?;
        let incarnation = next_incarnation(seams.disk.as_ref()).await?;
        let listener = seams.net.listen(&config.listen).await;
        let listener = listener.map_err(|err| Error::io(&err, format!("listen at {}", config.listen)))?;
        let options = Arc::new(config.options.clone());
        let peers =
            Peers::new(config.node, seams.net.clone(), config.nodes.clone(), options.clone(), seams.events.clone());
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let local: Weak<dyn Handler> = shared.clone();
            let router = Arc::new(Router::new(config.node, local, peers));
            let nodes = config.nodes.keys().copied().collect();
            let frontend = Frontend::new(router.clone(), nodes, seams.clock.clone(), options, seams.events.clone());
            let (stopping, _) = watch::channel(false);
            let sessions = Mutex::default();
            let store = Mutex::new(None);
            Shared { config, seams, incarnation, router, frontend, sessions, metrics, store, stopping }
        });
        started(Node { shared: shared.clone() });
        shared.clone().live(identity, listener).await
    }

    /// Asks the node to stop; [`Node::run`] returns when nothing of it runs any more.
    pub fn stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Answers a request as if a peer had sent it.
    pub async fn handle(&self, from: NodeId, request: Request, within: Duration) -> Result<Response> {
        self.shared.handle(from, request, within).await
    }

    /// The frontend that runs on this node.
    pub fn frontend(&self) -> Frontend {
        self.shared.frontend.clone()
    }

    /// The meta group of the cluster that `config` describes: one replica a node, with the node's number.
    pub fn meta_members(config: &NodeConfig) -> BTreeMap<ReplicaId, NodeId> {
        meta_members(config)
    }
}

fn meta_members(config: &NodeConfig) -> BTreeMap<ReplicaId, NodeId> {
    config.nodes.keys().map(|node| (ReplicaId(node.0), *node)).collect()
}

impl Shared {
    /// Serves, and opens the store as often as it fails.
    async fn live(self: Arc<Self>, identity: Identity, listener: Box<dyn Listener>) -> Result<()> {
        let handler: Arc<dyn Handler> = self.clone();
        let options = Arc::new(self.config.options.clone());
        let serving = tokio::spawn(serve(listener, handler, options.clone(), self.seams.events.clone()));
        let incarnation = self.incarnation;
        self.seams.events.emit(|| Event::NodeStarted { incarnation });
        let around = Surroundings {
            router: self.router.clone(),
            disk: self.seams.disk.clone(),
            options: options.clone(),
            events: self.seams.events.clone(),
        };
        let expiring = tokio::spawn(expiry::work(Arc::downgrade(&self)));
        let filling = tokio::spawn(fill::work(Arc::downgrade(&self)));
        let mut stopping = self.stopping.subscribe();
        let mut pauses = options.pauses();
        let ended = loop {
            if *stopping.borrow() {
                break Ok(());
            }
            let reason = match Store::open(&identity, self.incarnation, &around, self.seams.clock.clone()).await {
                Ok(store) => {
                    *self.store.lock().expect("no panic holds the lock") = Some(store.clone());
                    let reason = store.supervise(&mut stopping).await;
                    *self.store.lock().expect("no panic holds the lock") = None;
                    store.close().await;
                    pauses = options.pauses();
                    match reason {
                        None => break Ok(()),
                        Some(reason) => reason,
                    }
                }
                // Damage does not heal by trying again, and a full disk does.
                Err(err @ (Error::Damaged { .. } | Error::Invalid { .. })) => break Err(err),
                Err(err) => err.to_string(),
            };
            tracing::warn!(node = %self.config.node, %reason, "the store is opened anew");
            tokio::time::sleep(pauses.next_pause()).await;
        };
        serving.abort();
        expiring.abort();
        filling.abort();
        ended
    }

    /// Runs a statement in the session of that number; in a new one for 0, or if it was forgotten.
    async fn sql(&self, number: u64, sql: &str, within: Duration) -> Result<SqlAnswer> {
        let (number, session) = {
            let mut sessions = self.sessions.lock().expect("no panic holds the lock");
            sessions.find(number, self.config.options.session_window, || self.frontend.session())
        };
        let (affected, rows) = match session.execute_within(sql, within).await? {
            Output::Rows { schema, batches } => (None, Some(encode_rows(&schema, &batches)?)),
            Output::Affected(rows) => (Some(rows), None),
            Output::Done => (None, None),
        };
        Ok(SqlAnswer { session: number, affected, rows })
    }

    /// What was counted, and the states of the replicas.
    fn samples(&self) -> Vec<Sample> {
        let mut samples = self.metrics.samples();
        samples.push(Sample::gauge("seedbed_incarnation", None, self.incarnation.0));
        let replicas = self.store().and_then(|store| store.status(None)).unwrap_or_default();
        for state in replicas {
            let gauges = [
                ("seedbed_raft_leader", u64::from(state.is_leader)),
                ("seedbed_raft_term", state.term),
                ("seedbed_raft_applied_index", state.applied.map_or(0, |entry| entry.index)),
                ("seedbed_raft_flushed_index", state.flushed.map_or(0, |entry| entry.index)),
                ("seedbed_memtable_rows", state.memtable_rows),
                ("seedbed_memtable_bytes", state.memtable_bytes),
                ("seedbed_ssts", state.ssts),
                ("seedbed_sst_bytes", state.sst_bytes),
            ];
            samples.extend(gauges.map(|(name, value)| Sample::gauge(name, Some(state.region), value)));
        }
        samples
    }

    pub(super) fn options(&self) -> &Options {
        &self.config.options
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    pub(super) fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    pub(super) fn events(&self) -> &Events {
        &self.seams.events
    }

    pub(super) fn now(&self) -> Timestamp {
        self.seams.clock.now()
    }

    pub(super) fn store(&self) -> Result<Arc<Store>> {
        let store = self.store.lock().expect("no panic holds the lock").clone();
        store.ok_or_else(|| Error::Busy { what: format!("node {} is opening its store", self.config.node) })
    }
}

/// The sessions that were used last.
#[derive(Default)]
struct Sessions {
    open: BTreeMap<u64, (u64, Session)>,
    last: u64,
    used: u64,
}

impl Sessions {
    fn find(&mut self, number: u64, most: u64, open: impl FnOnce() -> Session) -> (u64, Session) {
        self.used += 1;
        if let Some((used, session)) = self.open.get_mut(&number) {
            *used = self.used;
            return (number, session.clone());
        }
        if self.open.len() as u64 >= most {
            let oldest = self.open.iter().min_by_key(|(_, (used, _))| *used).map(|(number, _)| *number);
            oldest.map(|oldest| self.open.remove(&oldest));
        }
        self.last += 1;
        let session = open();
        self.open.insert(self.last, (self.used, session.clone()));
        (self.last, session)
    }
}

/// Rows as an Arrow IPC stream.
fn encode_rows(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    let failed = |err: ArrowError| Error::Io { kind: IoKind::Other, message: format!("encode the rows: {err}") };
    let mut writer = StreamWriter::try_new(Vec::new(), schema).map_err(failed)?;
    for batch in batches {
        writer.write(batch).map_err(failed)?;
    }
    Ok(writer.into_inner().map_err(failed)?.into())
}

/// The rows of an Arrow IPC stream as a table of text.
pub fn print_rows(rows: &Bytes) -> Result<String> {
    let failed = |err: ArrowError| Error::Unknown { message: format!("the rows of the answer cannot be read: {err}") };
    let reader = StreamReader::try_new(rows.as_ref(), None).map_err(failed)?;
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    Ok(pretty_format_batches(&batches).map_err(failed)?.to_string())
}

fn command_of(change: ViewChange) -> Command {
    match change {
        ViewChange::Attach { legs, view } => Command::Attach { legs, view },
        ViewChange::Detach { view } => Command::Detach { view },
        ViewChange::Control { view, is_paused, rate_limit } => Command::Control { view, is_paused, rate_limit },
        ViewChange::Begin => Command::Begin,
        ViewChange::Ready => Command::Ready,
        ViewChange::Fail { reason } => Command::Fail { reason },
    }
}

#[async_trait]
impl Handler for Shared {
    async fn handle(&self, _from: NodeId, request: Request, within: Duration) -> Result<Response> {
        let kind = request.kind();
        // Nobody waits for the answer after that; what was proposed may still be applied.
        match tokio::time::timeout(within, self.answer(request, within)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Unknown { message: format!("{} was not done within {within:?}", kind.name()) }),
        }
    }
}

impl Shared {
    async fn answer(&self, request: Request, within: Duration) -> Result<Response> {
        match request {
            Request::Raft { to, verb, message } => {
                Ok(Response::Raft(self.store()?.replica(to)?.group.answer(verb, &message).await?))
            }
            Request::Write { region, write } => self.store()?.write(region, write, within).await.map(Response::Write),
            Request::ReadIndex { region } => self.store()?.read_index(region).await.map(Response::ReadIndex),
            Request::Scan { region, scan } => {
                self.store()?.scan(region, scan, self.seams.clock.as_ref(), within).await.map(Response::Scan)
            }
            Request::CreateReplica { region, replica, table, .. } => {
                self.store()?.create_replica(region, replica, &table).await.map(|()| Response::Done)
            }
            Request::InitGroup { region, members, .. } => {
                self.store()?.of_region(region)?.group.initialize(&members).await.map(|()| Response::Done)
            }
            Request::DropReplica { region, replica, .. } => {
                self.store()?.drop_replica(region, replica).await.map(|()| Response::Done)
            }
            Request::Flush { region } => self.store()?.flush(region).await.map(|()| Response::Done),
            Request::Truncate { region, by } => {
                let command = Command::Truncate { by: by.procedure };
                self.store()?.change(region, command).await.map(|()| Response::Done)
            }
            Request::Alter { region, by, schema } => {
                let command = Command::Alter { by: by.procedure, schema };
                self.store()?.change(region, command).await.map(|()| Response::Done)
            }
            Request::Ingest { table, file, content } => {
                let session = self.frontend.session();
                session.ingest_parquet(&table, &file, content, within).await.map(Response::Ingest)
            }
            Request::Compact { region, is_strict } => {
                self.store()?.compact(region, is_strict).await.map(|()| Response::Done)
            }
            Request::Pin { region, name } => {
                let command = Command::Pin { name, at: self.seams.clock.now() };
                self.store()?.change(region, command).await.map(|()| Response::Done)
            }
            Request::Unpin { region, name } => {
                self.store()?.change(region, Command::Unpin { name }).await.map(|()| Response::Done)
            }
            Request::Pins { region } => self.store()?.pins(region).await.map(Response::Pins),
            Request::Transfer { region, to } => {
                self.store()?.of_region(region)?.group.transfer(to).await.map(|()| Response::Done)
            }
            Request::AddLearner { region, change, .. } => {
                self.store()?.of_region(region)?.group.add_learner(&change).await.map(|()| Response::Done)
            }
            Request::ChangeMembers { region, change, .. } => {
                self.store()?.of_region(region)?.group.change_members(&change).await.map(|()| Response::Done)
            }
            Request::RemoveLearner { region, change, .. } => {
                self.store()?.of_region(region)?.group.remove_learner(&change).await.map(|()| Response::Done)
            }
            Request::Ping => self.store().map(|_| Response::Pong(self.seams.clock.now())),
            Request::View { region, change, .. } => {
                self.store()?.change(region, command_of(change)).await.map(|()| Response::Done)
            }
            Request::Greet { region, source, epoch } => {
                self.store()?.take(region, Command::Greet { source, epoch }).await.map(Response::Taken)
            }
            Request::Absorb { region, batch } => self.store()?.absorb(region, batch, within).await.map(Response::Taken),
            Request::Legs { region } => self.store()?.legs(region).await.map(Response::Legs),
            Request::Positions { region } => self.store()?.positions(region).await.map(Response::Positions),
            Request::Indexes { region } => self.store()?.indexes(region).await.map(Response::Indexes),
            Request::CheckIndex { region, index, here } => {
                self.store()?.check_index(region, index, here).await.map(Response::IndexChecked)
            }
            Request::Moment { region } => self.store()?.moment(region).await.map(Response::Moment),
            Request::Checksum { region, at } => self.store()?.checksum(region, at).await.map(Response::Checksum),
            Request::Status { region } => self.store()?.status(region).map(Response::Status),
            Request::Files => Ok(Response::Files(self.store()?.files())),
            Request::Metrics => Ok(Response::Metrics(self.samples())),
            Request::Lend { region, from } => self.store()?.lend(region, from).await.map(Response::Lend),
            Request::LentPiece { number, file, offset } => {
                self.store()?.lent_piece(number, file, offset).await.map(Response::LentPiece)
            }
            Request::Meta(request) => self.store()?.meta(request, within).await.map(Response::Meta),
            Request::Sql { session, sql } => self.sql(session, &sql, within).await.map(Response::Sql),
        }
    }
}
