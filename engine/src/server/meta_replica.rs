//! This node's replica of the meta group: the catalog's state machine under raft, its file, and the procedures that run
//! while it leads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{MutexGuard, Notify, watch};
use tokio::task::JoinHandle;

use super::identity::{load, store};
use super::message::{Request, Response};
use super::router::Router;
use crate::clock::Clock;
use crate::disk::{read_whole, remove_if_there};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::meta::{self, Machine, Runner, Service};
use crate::options::Options;
use crate::raft::{Change, Group, Machine as RaftMachine, Membership, Snapshot, SnapshotFile};
use crate::region::ReplicaSpec;
use crate::region::request::ReplicaStatus;
use crate::types::{LogId, NodeId, RegionId, Sequence};

/// See the module.
pub struct MetaReplica {
    spec: ReplicaSpec,
    machine: Arc<Machine>,
    state: Mutex<State>,
    /// One write of the file at a time.
    writing: tokio::sync::Mutex<()>,
    flushed: watch::Sender<Option<LogId>>,
    grown: Notify,
    service: Mutex<Option<Arc<Service>>>,
    tasks: Mutex<Option<Tasks>>,
    /// Set when the replica is closed.
    closing: watch::Sender<bool>,
}

struct Tasks {
    leading: JoinHandle<()>,
    writing: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: Membership,
    flushed: Option<LogId>,
    flushed_membership: Membership,
}

/// What the file holds: the whole catalog as of one entry.
#[derive(Serialize, Deserialize)]
struct Stored {
    last: LogId,
    membership: Membership,
    machine: Bytes,
}

impl MetaReplica {
    /// Reads the file of the replica; an empty catalog without one.
    pub async fn open(spec: ReplicaSpec) -> Result<Arc<MetaReplica>> {
        let (disk, folder) = (spec.disk.as_ref(), &spec.folder);
        disk.create_dir(folder).await.map_err(|err| Error::io(&err, format!("make {folder}")))?;
        let above = crate::disk::parent(folder);
        disk.sync_dir(above).await.map_err(|err| Error::io(&err, format!("sync {above}")))?;
        let machine = Arc::new(Machine::new());
        let mut state = State::default();
        if let Some(stored) = load::<Stored>(disk, &path(folder)).await? {
            machine.restore(&stored.machine)?;
            state.applied = Some(stored.last);
            state.membership = stored.membership.clone();
            state.flushed = Some(stored.last);
            state.flushed_membership = stored.membership;
        }
        let flushed = state.flushed;
        let (region, replica, flushed_sequence) = (RegionId::META, spec.replica, Sequence(0));
        spec.events.emit(|| Event::ReplicaOpened { region, replica, flushed, flushed_sequence });
        Ok(Arc::new(MetaReplica {
            spec,
            machine,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            flushed: watch::Sender::new(flushed),
            grown: Notify::new(),
            service: Mutex::default(),
            tasks: Mutex::default(),
            closing: watch::Sender::new(false),
        }))
    }

    /// Begins to answer, to drive procedures whenever this replica leads, and to write the file now and then.
    pub fn serve(self: &Arc<Self>, group: Arc<Group>, router: Arc<Router>, clock: Arc<dyn Clock>) {
        let door: Arc<dyn meta::Group> = group.clone();
        let (machine, events, options) = (self.machine.clone(), self.spec.events.clone(), &self.spec.options);
        let runner = Runner::new(door.clone(), router, machine.clone(), clock.clone(), events.clone(), options);
        let obstacles = runner.obstacles();
        let service = Arc::new(Service::new(door, machine, clock, events, obstacles, options));
        *self.service.lock().expect("no panic holds the lock") = Some(service.clone());
        let (machine, options) = (self.machine.clone(), self.spec.options.clone());
        let leading = tokio::spawn(lead(group, service, runner, machine, options));
        let writing = tokio::spawn(write_now_and_then(Arc::downgrade(self)));
        *self.tasks.lock().expect("no panic holds the lock") = Some(Tasks { leading, writing });
    }

    /// Ends what [`MetaReplica::serve`] began and whatever else writes the file, never in the middle of that: afterwards the
    /// folder may be opened anew.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().expect("no panic holds the lock"));
        if let Some(tasks) = tasks {
            tasks.leading.abort();
            let _ = tasks.writing.await;
        }
        // Who waits for this lock finds the replica closed when it gets it.
        drop(self.writing.lock().await);
    }

    /// The right to write the file, unless the replica is closed.
    async fn writing(&self) -> Result<MutexGuard<'_, ()>> {
        let writing = self.writing.lock().await;
        if *self.closing.borrow() { Err(Error::Stopped) } else { Ok(writing) }
    }

    /// Answers a request, if this replica leads.
    pub async fn answer(&self, request: MetaRequest, within: Duration) -> Result<MetaAnswer> {
        let service = self.service.lock().expect("no panic holds the lock").clone();
        service.ok_or(Error::Stopped)?.handle(request, within).await
    }

    /// Follows the last entry that is in the file.
    pub fn watch_flushed(&self) -> watch::Receiver<Option<LogId>> {
        self.flushed.subscribe()
    }

    /// Writes what was applied until now to the file.
    pub async fn flush(&self) -> Result<()> {
        let _one = self.writing().await?;
        let (state, machine) = {
            // Apply changes both under this lock.
            let state = self.state.lock().expect("no panic holds the lock");
            (state.clone(), self.machine.snapshot())
        };
        let Some(last) = state.applied.filter(|_| state.applied > state.flushed) else { return Ok(()) };
        let (region, replica) = (RegionId::META, self.spec.replica);
        self.spec.events.emit(|| Event::FlushStarted { region, replica, upto: last, rows: 0 });
        let stored = Stored { last, membership: state.membership, machine };
        store(self.spec.disk.as_ref(), &path(&self.spec.folder), &stored).await?;
        self.note_flushed(last, stored.membership);
        let sequence = Sequence(0);
        self.spec.events.emit(|| Event::FlushFinished { region, replica, upto: last, sequence, rows: 0 });
        Ok(())
    }

    fn note_flushed(&self, last: LogId, membership: Membership) {
        let mut state = self.state.lock().expect("no panic holds the lock");
        state.flushed = Some(last);
        state.flushed_membership = membership;
        drop(state);
        self.flushed.send_replace(Some(last));
    }

    /// The replica's part of its status; the group's part is filled in by the caller.
    pub fn status(&self) -> ReplicaStatus {
        let state = self.state.lock().expect("no panic holds the lock");
        ReplicaStatus {
            region: RegionId::META,
            replica: self.spec.replica,
            node: NodeId::default(),
            is_leader: false,
            leader: None,
            term: 0,
            applied: state.applied,
            flushed: state.flushed,
            sequence: Sequence(0),
            oldest: Sequence(0),
            memtable_rows: 0,
            memtable_bytes: 0,
            ssts: 0,
            sst_bytes: 0,
            schema_version: 0,
            members: BTreeMap::new(),
            voters: Vec::new(),
        }
    }

    fn unflushed(&self) -> u64 {
        let state = self.state.lock().expect("no panic holds the lock");
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index + 1);
        index(state.applied) - index(state.flushed)
    }
}

/// Whenever this replica leads: makes the cluster known to the catalog (once in its life) and drives the procedures.
async fn lead(group: Arc<Group>, service: Arc<Service>, runner: Runner, machine: Arc<Machine>, options: Arc<Options>) {
    loop {
        let standing = group.standing();
        if !standing.is_leader {
            group.changed(&standing).await;
            continue;
        }
        if machine.read(|state| state.nodes().is_none()) {
            let members = standing.membership.replicas.clone();
            let nodes = members.values().copied().collect();
            // Of no use to retry in a hurry: whoever leads tries again.
            if service.bootstrap(nodes, members).await.is_err() {
                tokio::time::sleep(Duration::from_millis(options.retry_max_ms)).await;
            }
            continue;
        }
        runner.run(standing.term).await;
        // It returns when another one leads; the standing may lag a little behind that.
        tokio::time::sleep(Duration::from_millis(options.retry_min_ms)).await;
    }
}

async fn write_now_and_then(replica: std::sync::Weak<MetaReplica>) {
    loop {
        let Some(replica) = replica.upgrade() else { return };
        let interval = Duration::from_millis(replica.spec.options.flush_interval_ms);
        let mut closing = replica.closing.subscribe();
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            _ = tokio::time::timeout(interval, replica.grown.notified()) => {}
        }
        if let Err(err) = replica.flush().await {
            let (region, id, reason) = (RegionId::META, replica.spec.replica, err.to_string());
            replica.spec.events.emit(|| Event::FlushFailed { region, replica: id, reason });
            tokio::time::sleep(Duration::from_millis(replica.spec.options.retry_max_ms)).await;
        }
    }
}

#[async_trait]
impl RaftMachine for MetaReplica {
    fn found_damaged(&self, err: Error) {
        tracing::warn!(node = %self.spec.events.node(), %err, "a file of meta is damaged");
    }

    fn flushed(&self) -> (Option<LogId>, Membership) {
        let state = self.state.lock().expect("no panic holds the lock");
        (state.flushed, state.flushed_membership.clone())
    }

    async fn apply(&self, id: LogId, change: Change) -> Result<Bytes> {
        let (command, outcome) = {
            let mut state = self.state.lock().expect("no panic holds the lock");
            state.applied = Some(id);
            match change {
                Change::Blank => (Bytes::new(), Bytes::new()),
                Change::Membership(membership) => {
                    state.membership = membership;
                    (Bytes::new(), Bytes::new())
                }
                Change::Command(command) => {
                    let outcome = self.machine.apply(&command)?;
                    (command, outcome)
                }
            }
        };
        if self.unflushed() >= self.spec.options.meta_flush_entries {
            self.grown.notify_one();
        }
        let (replica, incarnation, answer) = (self.spec.replica, self.spec.incarnation, outcome.clone());
        self.spec.events.detail(|| Event::Applied {
            region: RegionId::META,
            replica,
            incarnation,
            log_id: id,
            command,
            outcome,
            sequence: Sequence(0),
            digest: self.machine.digest(),
        });
        Ok(answer)
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.flush().await?;
        // The file is replaced by the next flush; what is sent is this one's content, which is small.
        let _one = self.writing().await?;
        let path = path(&self.spec.folder);
        let bytes = read_whole(self.spec.disk.as_ref(), &path).await.map_err(|err| Error::io(&err, &path))?;
        let (last, membership) = self.flushed();
        Ok(Snapshot { last, membership, header: bytes, files: Vec::<SnapshotFile>::new(), pin: Arc::new(()) })
    }

    async fn prepare_install(&self) -> Result<String> {
        Ok(self.spec.folder.clone())
    }

    async fn install(&self, snapshot: Snapshot) -> Result<()> {
        let _one = self.writing().await?;
        let disk = self.spec.disk.as_ref();
        let path = path(&self.spec.folder);
        let received = format!("{path}.received");
        remove_if_there(disk, &received).await.map_err(|err| Error::io(&err, &received))?;
        crate::disk::write_atomically(disk, &received, snapshot.header)
            .await
            .map_err(|err| Error::io(&err, &received))?;
        // Checked before it takes the place of what is there.
        let stored: Stored = load(disk, &received).await?.ok_or_else(|| Error::Damaged {
            file: received.clone(),
            message: "it was written and is not there".into(),
        })?;
        disk.rename(&received, &path).await.map_err(|err| Error::io(&err, &path))?;
        disk.sync_dir(&self.spec.folder).await.map_err(|err| Error::io(&err, &self.spec.folder))?;
        {
            let mut state = self.state.lock().expect("no panic holds the lock");
            self.machine.restore(&stored.machine)?;
            state.applied = Some(stored.last);
            state.membership = stored.membership.clone();
        }
        self.note_flushed(stored.last, stored.membership);
        let (region, replica, last) = (RegionId::META, self.spec.replica, stored.last);
        self.spec.events.emit(|| Event::SnapshotInstalled { region, replica, last });
        Ok(())
    }
}

fn path(folder: &str) -> String {
    format!("{folder}/catalog")
}

#[async_trait]
impl meta::Group for Group {
    async fn propose(&self, command: Bytes) -> Result<Bytes> {
        Group::propose(self, command).await
    }

    async fn read_index(&self) -> Result<()> {
        Group::read_index(self).await
    }

    fn leading(&self) -> Option<u64> {
        let standing = self.standing();
        standing.is_leader.then_some(standing.term)
    }
}

#[async_trait]
impl meta::Nodes for Router {
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        Router::call(self, to, request, within).await
    }
}
