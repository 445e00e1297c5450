//! An open store: the node's log and the replicas that live on it. Opened as a whole and closed as a whole: after a
//! failed write nothing of it is trusted until it was read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;

use super::identity::{Identity, load_dropped, store_dropped};
use super::node::Seams;
use super::router::Router;
use crate::disk::{Disk, remove_if_there};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::log::Log;
use crate::meta::catalog::TableDef;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::options::Options;
use crate::raft::{Group, Machine, Surroundings};
use crate::region::command::decode_outcome;
use crate::region::request::{ReplicaStatus, ScanAnswer, ScanRequest, WriteAnswer, WriteRequest};
use crate::region::{Region, RegionSpec};
use crate::types::{Incarnation, RegionId, ReplicaId};

use super::meta_replica::MetaReplica;

const LOG: &str = "log";
const REPLICAS: &str = "replicas";

/// See the module.
pub struct Store {
    identity: Identity,
    incarnation: Incarnation,
    seams: Seams,
    router: Arc<Router>,
    options: Arc<Options>,
    log: Arc<Log>,
    replicas: Mutex<BTreeMap<ReplicaId, Arc<Replica>>>,
    /// Replicas that must not come back. Held while replicas are made and dropped, so that the two never overlap.
    dropped: AsyncMutex<BTreeSet<ReplicaId>>,
    /// Why the store must be opened anew.
    failure: watch::Sender<Option<String>>,
}

/// A replica that lives on this node.
pub struct Replica {
    /// Its membership in its group.
    pub group: Arc<Group>,
    /// What the group drives.
    pub state: State,
    tending: Mutex<Vec<JoinHandle<()>>>,
}

/// The two kinds of state machine.
pub enum State {
    /// A region of a table.
    Region(Arc<Region>),
    /// The meta group.
    Meta(Arc<MetaReplica>),
}

impl Store {
    /// Reads the log and opens all replicas.
    pub async fn open(
        identity: &Identity,
        incarnation: Incarnation,
        seams: &Seams,
        router: Arc<Router>,
        options: Arc<Options>,
    ) -> Result<Arc<Store>> {
        let disk = seams.disk.as_ref();
        for folder in [LOG, REPLICAS] {
            disk.create_dir(folder).await.map_err(|err| Error::io(&err, format!("make {folder}")))?;
        }
        disk.sync_dir("").await.map_err(|err| Error::io(&err, "sync the store"))?;
        let log = Log::open(seams.disk.clone(), LOG, &options, seams.events.clone()).await?;
        let dropped = load_dropped(disk).await?;
        let (failure, _) = watch::channel(None);
        let store = Arc::new(Store {
            identity: identity.clone(),
            incarnation,
            seams: seams.clone(),
            router,
            options,
            log,
            replicas: Mutex::default(),
            dropped: AsyncMutex::new(dropped),
            failure,
        });
        match store.open_replicas().await {
            Ok(()) => Ok(store),
            Err(err) => {
                store.close().await;
                Err(err)
            }
        }
    }

    async fn open_replicas(self: &Arc<Self>) -> Result<()> {
        let disk = self.seams.disk.as_ref();
        let meta = self.identity.meta_replica();
        if let Some(replica) = meta {
            self.open_meta(replica).await?;
        }
        let dropped = self.dropped.lock().await.clone();
        let names = disk.list(REPLICAS).await.map_err(|err| Error::io(&err, format!("list {REPLICAS}")))?;
        for name in names {
            let replica = ReplicaId(name.parse().map_err(|_| Error::Damaged {
                file: format!("{REPLICAS}/{name}"),
                message: "its name is no replica id; it is not the engine's".into(),
            })?);
            if Some(replica) == meta {
                continue;
            }
            if dropped.contains(&replica) {
                self.finish_drop(replica, None).await?;
            } else if let Some(region) = Region::open(self.spec(replica)).await? {
                self.host(replica, region.region(), State::Region(region)).await?;
            }
            // What is there without a manifest was being made when the node stopped: whoever asked for it asks again.
        }
        Ok(())
    }

    fn spec(&self, replica: ReplicaId) -> RegionSpec {
        RegionSpec {
            replica,
            folder: folder(replica),
            incarnation: self.incarnation,
            disk: self.seams.disk.clone(),
            options: self.options.clone(),
            events: self.seams.events.clone(),
        }
    }

    async fn open_meta(self: &Arc<Self>, replica: ReplicaId) -> Result<()> {
        let folder = folder(replica);
        let meta = MetaReplica::open(replica, &folder, self.incarnation, self.seams.clone(), self.options.clone());
        self.host(replica, RegionId::META, State::Meta(meta.await?)).await
    }

    async fn host(self: &Arc<Self>, replica: ReplicaId, region: RegionId, state: State) -> Result<()> {
        let around = Surroundings {
            router: self.router.clone(),
            disk: self.seams.disk.clone(),
            options: self.options.clone(),
            events: self.seams.events.clone(),
        };
        let machine: Arc<dyn Machine> = match &state {
            State::Region(region) => region.clone(),
            State::Meta(meta) => meta.clone(),
        };
        let group = Arc::new(Group::open(region, replica, self.log.replica(replica), machine, &around).await?);
        if let State::Meta(meta) = &state {
            meta.serve(group.clone(), self.router.clone());
        }
        let hosted = Arc::new(Replica { group, state, tending: Mutex::default() });
        self.tend(&hosted);
        self.replicas.lock().expect("no panic holds the lock").insert(replica, hosted);
        Ok(())
    }

    /// What a replica needs while it lives: raft hears of flushes, the store hears of its death.
    fn tend(self: &Arc<Self>, replica: &Arc<Replica>) {
        let mut flushed = match &replica.state {
            State::Region(region) => region.watch_flushed(),
            State::Meta(meta) => meta.watch_flushed(),
        };
        let group = replica.group.clone();
        let purging =
            tokio::spawn(async move { while flushed.changed().await.is_ok() && group.flushed().await.is_ok() {} });
        let (store, group) = (Arc::downgrade(self), replica.group.clone());
        let watching = tokio::spawn(async move {
            let reason = group.died().await;
            if let Some(store) = store.upgrade() {
                let (region, replica) = (group.region(), group.replica());
                let why = reason.clone();
                store.seams.events.emit(|| Event::ReplicaReopening { region, replica, reason: why });
                store.fail(reason);
            }
        });
        replica.tending.lock().expect("no panic holds the lock").extend([purging, watching]);
    }

    /// The first failure counts: those after it are its consequences.
    fn fail(&self, reason: String) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(reason);
            first
        });
    }

    /// Waits until something of the store has failed, and says what.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failure = failure.wait_for(Option::is_some).await.expect("the sender lives as long as the store");
        failure.clone().expect("waited for it")
    }

    /// Stops all replicas and the log. Nothing of the store runs afterwards.
    pub async fn close(&self) {
        let replicas = std::mem::take(&mut *self.replicas.lock().expect("no panic holds the lock"));
        for replica in replicas.values() {
            replica.close().await;
        }
        if let Err(err) = self.log.close().await {
            // It is the reason for closing, more often than not.
            tracing::debug!(node = %self.identity.node, %err, "the log was not closed cleanly");
        }
    }

    /// The replica of that id. Its group is not known here: the message names the meta group in its place.
    pub fn replica(&self, id: ReplicaId) -> Result<Arc<Replica>> {
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        replicas
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::Busy { what: format!("replica {id} is not on this node (yet)") })
    }

    /// The replica of `region` that lives here.
    pub fn of_region(&self, region: RegionId) -> Result<Arc<Replica>> {
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        let mut of_region = replicas.values().filter(|replica| replica.group.region() == region);
        // Of two replicas of one region, one is on its way out: the newer one counts.
        of_region.next_back().cloned().ok_or(Error::RegionNotFound { region })
    }

    fn region(&self, id: RegionId) -> Result<(Arc<Group>, Arc<Region>)> {
        let replica = self.of_region(id)?;
        match &replica.state {
            State::Region(region) => Ok((replica.group.clone(), region.clone())),
            State::Meta(_) => Err(Error::RegionNotFound { region: id }),
        }
    }

    /// Writes rows to a region that is led here. Answers after they are durable on a quorum and applied.
    pub async fn write(&self, id: RegionId, write: WriteRequest) -> Result<WriteAnswer> {
        let (group, region) = self.region(id)?;
        let standing = group.standing();
        if !standing.is_leader {
            return Err(Error::NotLeader { region: id, hint: standing.leader });
        }
        let _place = region.admit().await?;
        let (command, rows) = region.validate(write)?;
        let replica = group.replica();
        self.seams.events.emit(|| Event::WriteProposed { region: id, replica, rows });
        let answer = group.propose(command).await;
        self.seams.events.emit(|| Event::WriteAnswered { region: id, replica, rows });
        decode_outcome(&answer?)
    }

    /// Reads rows of a region that is led here.
    pub async fn scan(&self, id: RegionId, scan: ScanRequest) -> Result<ScanAnswer> {
        let (group, region) = self.region(id)?;
        // A page that continues another is read as of the same sequence: any replica that has it has the same rows.
        if scan.upto.is_none_or(|upto| region.visible() < upto) {
            group.read_index().await?;
        }
        region.scan(scan).await
    }

    /// Makes a replica. Fine if it is there; refused if it was dropped.
    pub async fn create_replica(
        self: &Arc<Self>,
        region: RegionId,
        replica: ReplicaId,
        table: &TableDef,
    ) -> Result<()> {
        let dropped = self.dropped.lock().await;
        if dropped.contains(&replica) {
            let message =
                format!("replica {replica} of region {region} was dropped from this node and never comes back");
            return Err(Error::invalid(crate::error::Invalid::Request, message));
        }
        if let Ok(hosted) = self.replica(replica) {
            let same = matches!(&hosted.state, State::Region(here) if here.is_made_for(region, table));
            if same {
                return Ok(());
            }
            let message = format!("replica {replica} exists with another definition than region {region} asks for");
            return Err(Error::invalid(crate::error::Invalid::Mismatch, message));
        }
        let made = Region::create(self.spec(replica), region, table).await?;
        self.host(replica, region, State::Region(made)).await?;
        self.seams.events.emit(|| Event::ReplicaCreated { region, replica });
        Ok(())
    }

    /// Removes a replica: remembers that it must not come back (durably), stops it, makes its log obsolete, removes its
    /// files. Fine if it is gone.
    pub async fn drop_replica(&self, region: RegionId, replica: ReplicaId) -> Result<()> {
        let mut dropped = self.dropped.lock().await;
        if !dropped.contains(&replica) {
            let mut more = dropped.clone();
            more.insert(replica);
            store_dropped(self.seams.disk.as_ref(), &more).await?;
            *dropped = more;
        }
        let hosted = self.replicas.lock().expect("no panic holds the lock").remove(&replica);
        if let Some(hosted) = hosted {
            hosted.close().await;
        }
        self.finish_drop(replica, Some(region)).await
    }

    async fn finish_drop(&self, replica: ReplicaId, region: Option<RegionId>) -> Result<()> {
        if self.log.replicas().contains(&replica) {
            self.log.replica(replica).forget().await?;
        }
        if remove_tree(self.seams.disk.as_ref(), &folder(replica)).await? {
            self.seams.disk.sync_dir(REPLICAS).await.map_err(|err| Error::io(&err, format!("sync {REPLICAS}")))?;
            let region = region.unwrap_or_default();
            self.seams.events.emit(|| Event::ReplicaDropped { region, replica });
        }
        Ok(())
    }

    /// Writes the memtables of a region's replica to files.
    pub async fn flush(&self, region: RegionId) -> Result<()> {
        match &self.of_region(region)?.state {
            State::Region(region) => region.flush().await,
            State::Meta(meta) => meta.flush().await,
        }
    }

    /// The state of each replica, or of that of `region`.
    pub fn status(&self, region: Option<RegionId>) -> Result<Vec<ReplicaStatus>> {
        if let Some(region) = region {
            return Ok(vec![self.status_of(self.of_region(region)?.as_ref())]);
        }
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        Ok(replicas.values().map(|replica| self.status_of(replica)).collect())
    }

    fn status_of(&self, replica: &Replica) -> ReplicaStatus {
        let standing = replica.group.standing();
        let mut status = match &replica.state {
            State::Region(region) => region.status(),
            State::Meta(meta) => meta.status(),
        };
        status.node = self.identity.node;
        status.is_leader = standing.is_leader;
        status.leader = standing.leader;
        status.term = standing.term;
        status
    }

    /// Answers a request to meta, if it is led here.
    pub async fn meta(&self, request: MetaRequest, within: Duration) -> Result<MetaAnswer> {
        match &self.of_region(RegionId::META)?.state {
            State::Meta(meta) => meta.answer(request, within).await,
            State::Region(_) => Err(Error::RegionNotFound { region: RegionId::META }),
        }
    }
}

impl Replica {
    async fn close(&self) {
        for task in std::mem::take(&mut *self.tending.lock().expect("no panic holds the lock")) {
            task.abort();
        }
        if let State::Meta(meta) = &self.state {
            meta.stop();
        }
        self.group.stop().await;
        if let State::Region(region) = &self.state {
            region.close().await;
        }
    }
}

fn folder(replica: ReplicaId) -> String {
    format!("{REPLICAS}/{}", replica.0)
}

/// Removes the folder `path` with all that is in it. Whether there was one.
pub(super) async fn remove_tree(disk: &dyn Disk, path: &str) -> Result<bool> {
    let failed = |err: std::io::Error, what: &str| Error::io(&err, format!("remove {what}"));
    let mut folders = vec![path.to_string()];
    let mut found = false;
    let mut emptied = Vec::new();
    while let Some(folder) = folders.pop() {
        let names = match disk.list(&folder).await {
            Ok(names) => names,
            // Not a folder: a file, or nothing.
            Err(_) => {
                remove_if_there(disk, &folder).await.map_err(|err| failed(err, &folder))?;
                continue;
            }
        };
        found = true;
        folders.extend(names.iter().map(|name| format!("{folder}/{name}")));
        emptied.push(folder);
    }
    for folder in emptied.iter().rev() {
        match disk.remove_dir(folder).await {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(failed(err, folder)),
            _ => {}
        }
    }
    Ok(found)
}
