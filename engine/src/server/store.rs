//! An open store: the node's log and the replicas that live on it.
//!
//! What dies is opened anew by [`Store::supervise`]: a replica alone while the log is sound, for the others have nothing to do
//! with its files; the store as a whole when the log has failed, for what it holds in memory may then be ahead of the disk and
//! nothing is trusted until it was read again. (The node does that: it drops this store and opens another.)

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use super::follower::Follower;
use super::identity::{Identity, load_dropped, store_dropped};
use crate::clock::Clock;
use crate::disk::remove_tree;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::log::Log;
use crate::meta::catalog::TableDef;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::raft::{Group, Machine, Surroundings};
use crate::region::command::{Command, decode_answer, decode_outcome};
use crate::region::expire::Expiry;
use crate::region::request::{
    Absorb, Checksum, IndexCheck, IndexStatus, LegStatus, Moment, PinStatus, PositionStatus, ReplicaStatus, ScanAnswer,
    ScanRequest, SstStatus, Taken, WriteAnswer, WriteRequest,
};
use crate::region::{Buffer, Region, ReplicaSpec};
use crate::types::{Incarnation, IndexId, LogId, NodeId, RegionId, ReplicaId, Sequence};

use super::mend::{self, Ailment, Help, Loans, Mended};
use super::meta_replica::MetaReplica;

const LOG: &str = "log";
const REPLICAS: &str = "replicas";

/// See the module.
pub struct Store {
    identity: Identity,
    incarnation: Incarnation,
    pub(super) around: Surroundings,
    clock: Arc<dyn Clock>,
    pub(super) log: Arc<Log>,
    replicas: Mutex<BTreeMap<ReplicaId, Arc<Replica>>>,
    /// Replicas that must not come back. Held while replicas are made and dropped, so that the two never overlap.
    dropped: AsyncMutex<BTreeSet<ReplicaId>>,
    /// A place for each compaction that may run at the same time.
    compactions: Arc<Semaphore>,
    /// Memory for writes.
    buffer: Arc<Buffer>,
    /// Notified when a leg of a view begins, ends or changes.
    fills: Arc<Notify>,
    /// Files that others are mended with.
    pub(super) loans: Loans,
    /// When replicas may be mended again.
    pub(super) mended: Mended,
    /// Replicas that are not hosted and about to be opened anew, perhaps mended first; and what was told of their damage.
    ailing: Mutex<BTreeMap<ReplicaId, Option<Error>>>,
    /// Replicas that have died. The receiver is the supervisor's.
    deaths: UnboundedSender<Death>,
    died: AsyncMutex<UnboundedReceiver<Death>>,
    /// Nothing is opened any more.
    closing: watch::Sender<bool>,
}

/// A replica that lives on this node.
pub struct Replica {
    /// Its membership in its group.
    pub group: Arc<Group>,
    /// What the group drives.
    pub state: State,
    follower: Follower,
    /// The supervisor has heard of its death.
    is_dead: AtomicBool,
    tending: Mutex<Vec<JoinHandle<()>>>,
}

/// A replica is to be opened anew.
struct Death {
    id: ReplicaId,
    /// None: it could not be opened, and is to be mended first.
    replica: Option<Arc<Replica>>,
    reason: String,
    /// What is to be in its place then, if it had damaged files.
    help: Option<Help>,
}

/// What became of opening a replica.
#[must_use]
enum Opened {
    /// It takes part in its group. Or it was being made when the node stopped: whoever asked for it asks again.
    Done,
    /// It must be mended first. Nothing of it runs.
    Ailing(Ailment),
}

/// A region with a TTL.
pub struct Expiring {
    /// The region.
    pub id: RegionId,
    /// How far it is.
    pub expiry: Expiry,
    /// The nodes of its voters.
    pub voters: BTreeSet<NodeId>,
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
        around: &Surroundings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Store>> {
        let disk = around.disk.as_ref();
        for folder in [LOG, REPLICAS] {
            disk.create_dir(folder).await.map_err(|err| Error::io(&err, format!("make {folder}")))?;
        }
        disk.sync_dir("").await.map_err(|err| Error::io(&err, "sync the store"))?;
        let log = Log::open(around.disk.clone(), LOG, &around.options, around.events.clone()).await?;
        let dropped = load_dropped(disk).await?;
        let (deaths, died) = unbounded_channel();
        let jobs = usize::try_from(around.options.compaction_jobs).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let store = Arc::new(Store {
            identity: identity.clone(),
            incarnation,
            around: around.clone(),
            clock,
            log,
            replicas: Mutex::default(),
            dropped: AsyncMutex::new(dropped),
            compactions: Arc::new(Semaphore::new(jobs)),
            buffer: Buffer::new(&around.options, around.events.clone()),
            fills: Arc::default(),
            loans: Loans::default(),
            mended: Mended::default(),
            ailing: Mutex::default(),
            deaths,
            died: AsyncMutex::new(died),
            closing: watch::Sender::new(false),
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
        let disk = self.around.disk.as_ref();
        let meta = self.identity.meta_replica();
        if let Some(replica) = meta {
            self.open_or_mend(replica).await?;
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
            } else {
                self.open_or_mend(replica).await?;
            }
        }
        Ok(())
    }

    /// Opens a replica that was made before, or has the supervisor mend it.
    async fn open_or_mend(self: &Arc<Self>, replica: ReplicaId) -> Result<()> {
        match self.open_replica(replica).await? {
            Opened::Done => {}
            Opened::Ailing(ailment) => self.give_to_supervisor(replica, &ailment),
        }
        Ok(())
    }

    fn give_to_supervisor(&self, id: ReplicaId, ailment: &Ailment) {
        self.ailing.lock().expect("no panic holds the lock").entry(id).or_default();
        // The store has a receiver.
        let _ = self.deaths.send(Death { id, replica: None, reason: ailment.damage.to_string(), help: None });
    }

    /// Opens a replica that was made before.
    async fn open_replica(self: &Arc<Self>, replica: ReplicaId) -> Result<Opened> {
        if Some(replica) == self.identity.meta_replica() {
            let meta = MetaReplica::open(self.spec(replica)).await?;
            if let Some(damage) = self.pass_over_rotten(replica, meta.status().flushed).await? {
                meta.close().await;
                // Nobody lends a catalog.
                return Err(damage.damage);
            }
            return self.host(replica, RegionId::META, State::Meta(meta)).await;
        }
        match Region::open(self.spec(replica)).await? {
            Some(region) => {
                let id = region.region();
                match self.prepare_log(replica, region.status().flushed).await {
                    Ok(None) => self.host(replica, id, State::Region(region)).await,
                    Ok(Some(ailment)) => {
                        region.close().await;
                        self.tell_damage(id, replica, &ailment.damage);
                        Ok(Opened::Ailing(ailment))
                    }
                    Err(err) => {
                        region.close().await;
                        Err(err)
                    }
                }
            }
            None => Ok(Opened::Done),
        }
    }

    /// Says what is damaged of the log, once.
    fn tell_damage(&self, region: RegionId, replica: ReplicaId, damage: &Error) {
        let told = self.ailing.lock().expect("no panic holds the lock").insert(replica, Some(damage.clone()));
        if let Error::Damaged { file, .. } = damage
            && told.flatten().as_ref() != Some(damage)
        {
            tracing::warn!(%region, %replica, %damage, "an entry is damaged");
            self.around.events.emit(|| Event::FileDamaged { region, replica, file: file.clone() });
        }
    }

    /// Before raft reads the log. Answers why it must not.
    async fn prepare_log(&self, replica: ReplicaId, flushed: Option<LogId>) -> Result<Option<Ailment>> {
        self.cut_off(replica, flushed).await?;
        self.pass_over_rotten(replica, flushed).await
    }

    /// Files that came from another replica may have an entry that does not stand in the log: it is shorter, or another one stands
    /// in its place, that a leader of an older term sent and never committed. The log begins behind that entry then: what stood
    /// before it is in the files, and what stood behind another one was of no use.
    async fn cut_off(&self, replica: ReplicaId, flushed: Option<LogId>) -> Result<()> {
        let log = self.log.replica(replica);
        let (Some(flushed), purged) = (flushed, log.state().purged) else { return Ok(()) };
        if purged.is_some_and(|purged| purged.index >= flushed.index) || log.log_id(flushed.index) == Some(flushed) {
            return Ok(());
        }
        log.purge(flushed).await
    }

    /// Entries of the log that are damaged and that files have go, with those before them. Answers what is damaged otherwise.
    async fn pass_over_rotten(&self, replica: ReplicaId, flushed: Option<LogId>) -> Result<Option<Ailment>> {
        let log = self.log.replica(replica);
        let Some((entry, damage)) = log.rotten() else { return Ok(None) };
        match flushed.filter(|flushed| flushed.index >= entry.index) {
            Some(flushed) => log.purge(flushed).await.map(|()| None),
            None => Ok(Some(Ailment { damage, from: Some(entry) })),
        }
    }

    pub(super) fn spec(&self, replica: ReplicaId) -> ReplicaSpec {
        ReplicaSpec {
            replica,
            folder: folder(replica),
            incarnation: self.incarnation,
            disk: self.around.disk.clone(),
            options: self.around.options.clone(),
            events: self.around.events.clone(),
            compactions: self.compactions.clone(),
            buffer: self.buffer.clone(),
            fills: self.fills.clone(),
        }
    }

    async fn host(self: &Arc<Self>, replica: ReplicaId, region: RegionId, state: State) -> Result<Opened> {
        let machine: Arc<dyn Machine> = match &state {
            State::Region(region) => region.clone(),
            State::Meta(meta) => meta.clone(),
        };
        let group = match Group::open(region, replica, self.log.replica(replica), machine, &self.around).await {
            Ok(group) => Arc::new(group),
            Err(err) => {
                state.close().await;
                let stuck = match &state {
                    State::Region(region) => region.stuck(),
                    State::Meta(_) => None,
                };
                return stuck.map_or(Err(err), |damage| Ok(Opened::Ailing(Ailment { damage, from: None })));
            }
        };
        if let State::Meta(meta) = &state {
            meta.serve(group.clone(), self.around.router.clone(), self.clock.clone());
        }
        let hosted = Arc::new(Replica {
            group,
            state,
            follower: Follower::default(),
            is_dead: AtomicBool::default(),
            tending: Mutex::default(),
        });
        {
            // Closing takes what stands here; who comes later closes itself.
            let mut replicas = self.replicas.lock().expect("no panic holds the lock");
            if !*self.closing.borrow() {
                replicas.insert(replica, hosted.clone());
                self.tend(&hosted);
                return Ok(Opened::Done);
            }
        }
        hosted.close().await;
        Err(Error::Stopped)
    }

    /// What a replica needs while it lives: raft hears of flushes, a stalled log is noticed, the supervisor hears of its death.
    fn tend(&self, replica: &Arc<Replica>) {
        let mut flushed = match &replica.state {
            State::Region(region) => region.watch_flushed(),
            State::Meta(meta) => meta.watch_flushed(),
        };
        let group = replica.group.clone();
        let purging =
            tokio::spawn(async move { while flushed.changed().await.is_ok() && group.flushed().await.is_ok() {} });
        let group = replica.group.clone();
        let yielding = tokio::spawn(async move { group.hand_over_when_stalled().await });
        let (deaths, hosted) = (self.deaths.clone(), replica.clone());
        let watching = tokio::spawn(async move {
            let reason = hosted.group.died().await;
            // Nobody hears of it when the store is closed, with all replicas.
            let _ = deaths.send(Death { id: hosted.group.replica(), replica: Some(hosted), reason, help: None });
        });
        let mut tending = vec![purging, yielding, watching];
        if let State::Region(region) = &replica.state {
            let (deaths, hosted, region) = (self.deaths.clone(), replica.clone(), region.clone());
            let (around, mended) = (self.around.clone(), self.mended.clone());
            region.tended();
            tending.push(tokio::spawn(async move {
                let (file, help) = mend::help(&around, &mended, &hosted.group, &region).await;
                let (id, reason) = (hosted.group.replica(), format!("{file} is damaged"));
                let _ = deaths.send(Death { id, replica: Some(hosted), reason, help: Some(help) });
            }));
        }
        replica.tending.lock().expect("no panic holds the lock").extend(tending);
    }

    /// Opens anew what dies, until told to `stop` (none), or until the store must be opened anew as a whole, and then says why:
    /// the log has failed, or a replica cannot be opened.
    pub async fn supervise(self: &Arc<Self>, stop: &mut watch::Receiver<bool>) -> Option<String> {
        let mut died = self.died.lock().await;
        let mut reopening = FuturesUnordered::new();
        let reason = loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break None,
                // A branch that does not match is not polled again before the next death: this takes whatever ends.
                Some(reopened) = reopening.next() => {
                    let reopened: Result<()> = reopened;
                    if let Err(err) = reopened {
                        break Some(err.to_string());
                    }
                }
                // The store has a sender, so this is a death.
                Some(Death { id, replica, reason, help }) = died.recv() => {
                    if let Some(replica) = &replica {
                        // It may have died of what it was to be closed for.
                        if replica.is_dead.swap(true, Ordering::Relaxed) {
                            continue;
                        }
                        let (region, why) = (replica.group.region(), reason.clone());
                        self.around.events.emit(|| Event::ReplicaReopening { region, replica: id, reason: why });
                    }
                    // Who dies of the log hears of its failure after it is noted there.
                    if self.log.error().is_some() {
                        break Some(reason);
                    }
                    reopening.push(self.reopen(id, replica, help));
                }
            }
        };
        // None of them is dropped half way: what it has opened by then would go on and nobody would stop it.
        self.closing.send_replace(true);
        while reopening.next().await.is_some() {}
        reason
    }

    /// Opens a replica anew that has died (or could not be opened), as often as it takes; with the files that came to its help, or
    /// that it needs to be opened at all. An error: the log has failed, or opening it once more would not help.
    pub(super) async fn reopen(
        self: &Arc<Self>,
        id: ReplicaId,
        dead: Option<Arc<Replica>>,
        help: Option<Help>,
    ) -> Result<()> {
        let reopened = self.try_reopen(id, dead, help).await;
        self.ailing.lock().expect("no panic holds the lock").remove(&id);
        reopened
    }

    async fn try_reopen(
        self: &Arc<Self>,
        id: ReplicaId,
        dead: Option<Arc<Replica>>,
        mut help: Option<Help>,
    ) -> Result<()> {
        if let Some(dead) = dead {
            // Meanwhile it is neither dropped nor made.
            let dropped = self.dropped.lock().await;
            self.replicas.lock().expect("no panic holds the lock").retain(|_, hosted| !Arc::ptr_eq(hosted, &dead));
            dead.close().await;
            // As long as it is not hosted it is this one's to open.
            self.ailing.lock().expect("no panic holds the lock").entry(id).or_default();
            drop(dropped);
        }
        let mut closing = self.closing.subscribe();
        let mut pauses = self.around.options.pauses();
        loop {
            if help.is_none() {
                let _ = tokio::time::timeout(pauses.next_pause(), closing.wait_for(|closing| *closing)).await;
            }
            let ailment = {
                let dropped = self.dropped.lock().await;
                if *self.closing.borrow() || dropped.contains(&id) {
                    return Ok(());
                }
                if let Some(help) = help.take()
                    && let Err(err) = self.put_in_place(id, help).await
                {
                    self.log.error().map_or(Ok(()), Err)?;
                    // As long as the damage is there it is found again.
                    tracing::warn!(replica = %id, %err, "a replica was not mended");
                }
                match self.open_replica(id).await {
                    Ok(Opened::Done) => return Ok(()),
                    Ok(Opened::Ailing(ailment)) => ailment,
                    // Damage does not heal: the node stops, as it would have at its start.
                    Err(err @ (Error::Damaged { .. } | Error::Invalid { .. })) => return Err(err),
                    Err(err) => {
                        self.log.error().map_or(Ok(()), Err)?;
                        tracing::warn!(replica = %id, %err, "a replica cannot be opened anew yet");
                        continue;
                    }
                }
            };
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return Ok(()),
                helped = self.help_closed(id, ailment) => help = helped,
            }
        }
    }

    /// Stops all replicas and the log. Nothing of the store runs afterwards.
    pub async fn close(&self) {
        self.closing.send_replace(true);
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

    /// Writes rows to a region that is led here. Answers after they are durable on a quorum and applied. Of the time `within`
    /// which somebody waits for the answer, half may go into waiting for memory. Who stops waiting calls nothing back: what was
    /// proposed stands in memory, and counts, until its outcome is known.
    pub async fn write(&self, id: RegionId, write: WriteRequest, within: Duration) -> Result<WriteAnswer> {
        let (group, region) = self.region(id)?;
        let standing = group.standing();
        if !standing.is_leader {
            return Err(Error::NotLeader { region: id, hint: standing.leader });
        }
        let deposed = async {
            group.deposed().await;
            Error::NotLeader { region: id, hint: group.standing().leader }
        };
        let delay = region.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay.min(within / 4)).await;
        }
        // What memtables make of it is of the same order.
        let bytes = write.rows.len() + write.ops.len() + write.expected.len() * size_of::<Sequence>();
        let admitted = region.admit(bytes, within / 2, deposed).await?;
        let (command, rows) = region.validate(write)?;
        let (replica, events) = (group.replica(), self.around.events.clone());
        events.emit(|| Event::WriteProposed { region: id, replica, rows });
        let proposed = tokio::spawn(async move {
            let answer = group.propose(command).await;
            events.emit(|| Event::WriteAnswered { region: id, replica, rows });
            drop(admitted);
            answer
        });
        let ended = |_| Err(Error::Unknown { message: format!("replica {replica} stopped") });
        decode_outcome(&proposed.await.unwrap_or_else(ended)?)
    }

    /// Changes a region that is led here as a whole. Answers when that is durable on a quorum and applied.
    pub async fn change(&self, id: RegionId, command: Command) -> Result<()> {
        let (group, _) = self.region(id)?;
        let standing = group.standing();
        if !standing.is_leader {
            return Err(Error::NotLeader { region: id, hint: standing.leader });
        }
        let outcome = group.propose(command.encode()).await?;
        decode_outcome(&outcome).map(drop)
    }

    /// Gives the leader that reads a source its answer, as the log of the view's region says.
    pub async fn take(&self, id: RegionId, command: Command) -> Result<Taken> {
        let group = self.led(id)?.group.clone();
        decode_answer(&group.propose(command.encode()).await?)
    }

    /// Has a region of a view that is led here take a batch. It waits for memory as a write does.
    pub async fn absorb(&self, id: RegionId, batch: Absorb, within: Duration) -> Result<Taken> {
        let replica = self.led(id)?;
        let State::Region(region) = &replica.state else { return Err(Error::RegionNotFound { region: id }) };
        let deposed = async {
            replica.group.deposed().await;
            Error::NotLeader { region: id, hint: replica.group.standing().leader }
        };
        let bytes = batch.rows.len() + batch.ops.len();
        let _admitted = region.admit(bytes, within / 2, deposed).await?;
        self.take(id, Command::Absorb(batch)).await
    }

    /// How far the legs are that read a region that is led here.
    pub async fn legs(&self, id: RegionId) -> Result<Vec<LegStatus>> {
        let (group, region) = self.region(id)?;
        group.read_index().await?;
        Ok(region.leg_status())
    }

    /// How far a region of a view is that is led here.
    pub async fn positions(&self, id: RegionId) -> Result<Vec<PositionStatus>> {
        let (group, region) = self.region(id)?;
        group.read_index().await?;
        Ok(region.fill_status())
    }

    /// How far the indexes are of a region that is led here.
    pub async fn indexes(&self, id: RegionId) -> Result<Vec<IndexStatus>> {
        let (group, region) = self.region(id)?;
        group.read_index().await?;
        Ok(region.index_status())
    }

    /// An index against its rows; `here`: as this replica has them, otherwise those of now, of a region that is led here.
    pub async fn check_index(&self, id: RegionId, index: IndexId, here: bool) -> Result<IndexCheck> {
        let (group, region) = self.region(id)?;
        if !here {
            group.read_index().await?;
        }
        region.check_index(index).await
    }

    /// What a region that is led here has applied: all that was answered before.
    pub async fn moment(&self, id: RegionId) -> Result<Moment> {
        self.led(id)?;
        let (group, region) = self.region(id)?;
        group.read_index().await?;
        Ok(region.moment())
    }

    /// The checksum of the replica of a region, whoever leads it, once it has applied what had been applied at that moment.
    pub async fn checksum(&self, id: RegionId, at: Moment) -> Result<Checksum> {
        let (group, region) = self.region(id)?;
        if let Some(applied) = at.applied {
            group.applied(applied).await?;
        }
        region.checksum(at).await
    }

    /// The replicas that views or indexes are filled from, whether they lead or not.
    pub fn feeding(&self) -> Vec<Arc<Replica>> {
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        let feeds = |replica: &&Arc<Replica>| match &replica.state {
            State::Region(region) => region.has_legs() || region.has_open_indexes(),
            State::Meta(_) => false,
        };
        replicas.values().filter(feeds).cloned().collect()
    }

    /// Resolves when they may be others.
    pub async fn feeding_changed(&self) {
        self.fills.notified().await;
    }

    /// The replica of a region, which leads.
    fn led(&self, id: RegionId) -> Result<Arc<Replica>> {
        let replica = self.of_region(id)?;
        let standing = replica.group.standing();
        match standing.is_leader {
            true => Ok(replica),
            false => Err(Error::NotLeader { region: id, hint: standing.leader }),
        }
    }

    /// Everything that was committed anywhere when it was called, of a region that is led here.
    pub async fn read_index(&self, id: RegionId) -> Result<LogId> {
        self.of_region(id)?.group.committed().await
    }

    /// Reads rows of a region that is led here; or of any other one, if they need not be those of now.
    /// `clock` is the node's own.
    pub async fn scan(
        &self,
        id: RegionId,
        scan: ScanRequest,
        clock: &dyn Clock,
        within: Duration,
    ) -> Result<ScanAnswer> {
        let (group, region) = self.region(id)?;
        if let (Some(bound), None, false) = (scan.stale_ms, scan.upto, group.standing().is_leader) {
            let Surroundings { router, events, .. } = &self.around;
            let (bound, follower) = (Duration::from_millis(bound), &self.of_region(id)?.follower);
            follower.catch_up(&group, router, clock, events, bound, within).await?;
            let asked = scan.schema_version;
            return match region.scan(scan).await {
                // The table was altered; this replica has not come to it.
                Err(Error::SchemaChanged { version, .. }) if version < asked => {
                    let what =
                        format!("replica {} of region {id} has version {version} of its columns", group.replica());
                    Err(Error::Busy { what })
                }
                answer => answer,
            };
        }
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
        let (store, table) = (self.clone(), table.clone());
        to_its_end(async move { store.make_replica(region, replica, &table).await }).await
    }

    async fn make_replica(self: &Arc<Self>, region: RegionId, replica: ReplicaId, table: &TableDef) -> Result<()> {
        let dropped = self.dropped.lock().await;
        if *self.closing.borrow() {
            return Err(Error::Stopped);
        }
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
        if self.ailing.lock().expect("no panic holds the lock").contains_key(&replica) {
            return Err(Error::Busy { what: format!("replica {replica} of region {region} is opened anew") });
        }
        let made = Region::create(self.spec(replica), region, table).await?;
        if let Opened::Ailing(ailment) = self.host(replica, region, State::Region(made)).await? {
            self.give_to_supervisor(replica, &ailment);
            return Err(ailment.damage);
        }
        self.around.events.emit(|| Event::ReplicaCreated { region, replica });
        Ok(())
    }

    /// Holds what says which replicas are dropped, unless this one is.
    pub(super) async fn refuse_dropped(&self, id: ReplicaId) -> Result<AsyncMutexGuard<'_, BTreeSet<ReplicaId>>> {
        let dropped = self.dropped.lock().await;
        if dropped.contains(&id) { Err(Error::Stopped) } else { Ok(dropped) }
    }

    /// Removes a replica: remembers that it must not come back (durably), stops it, makes its log obsolete, removes its
    /// files. Fine if it is gone.
    pub async fn drop_replica(self: &Arc<Self>, region: RegionId, replica: ReplicaId) -> Result<()> {
        let store = self.clone();
        to_its_end(async move { store.unmake_replica(region, replica).await }).await
    }

    async fn unmake_replica(&self, region: RegionId, replica: ReplicaId) -> Result<()> {
        let mut dropped = self.dropped.lock().await;
        if !dropped.contains(&replica) {
            let mut more = dropped.clone();
            more.insert(replica);
            store_dropped(self.around.disk.as_ref(), &more).await?;
            *dropped = more;
        }
        let hosted = self.replicas.lock().expect("no panic holds the lock").remove(&replica);
        if let Some(hosted) = hosted {
            hosted.close().await;
        }
        self.finish_drop(replica, Some(region)).await
    }

    async fn finish_drop(&self, replica: ReplicaId, region: Option<RegionId>) -> Result<()> {
        let told = region.unwrap_or_default();
        if self.log.replicas().contains(&replica) {
            self.around.events.emit(|| Event::ReplicaDropping { region: told, replica });
            self.log.replica(replica).forget().await?;
        }
        let folder = folder(replica);
        let removed = remove_tree(self.around.disk.as_ref(), &folder).await;
        if removed.map_err(|err| Error::io(&err, format!("remove {folder}")))? {
            self.around.disk.sync_dir(REPLICAS).await.map_err(|err| Error::io(&err, format!("sync {REPLICAS}")))?;
            self.around.events.emit(|| Event::ReplicaDropped { region: told, replica });
        }
        Ok(())
    }

    /// Writes the memtables of a region's replica to files.
    pub async fn flush(&self, region: RegionId) -> Result<()> {
        let replica = self.of_region(region)?;
        to_its_end(async move {
            match &replica.state {
                State::Region(region) => region.flush().await,
                State::Meta(meta) => meta.flush().await,
            }
        })
        .await
    }

    /// Merges the files of a region's replica. Meta has one file.
    pub async fn compact(&self, region: RegionId, is_strict: bool) -> Result<()> {
        match &self.of_region(region)?.state {
            State::Region(region) => region.compact(is_strict).await,
            State::Meta(_) => Ok(()),
        }
    }

    /// The regions with a TTL that are led here.
    pub fn expiring(&self) -> Vec<Expiring> {
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        let one = |replica: &Arc<Replica>| {
            let State::Region(region) = &replica.state else { return None };
            let expiry = region.expiry().filter(|_| replica.group.standing().is_leader)?;
            Some(Expiring { id: region.region(), expiry, voters: region.voters() })
        };
        replicas.values().filter_map(one).collect()
    }

    /// The pins of a region that is led here.
    pub async fn pins(&self, id: RegionId) -> Result<Vec<PinStatus>> {
        let (group, region) = self.region(id)?;
        group.read_index().await?;
        Ok(region.pins())
    }

    /// The state of each replica, or of that of `region`.
    pub fn status(&self, region: Option<RegionId>) -> Result<Vec<ReplicaStatus>> {
        if let Some(region) = region {
            return Ok(vec![self.status_of(self.of_region(region)?.as_ref())]);
        }
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        Ok(replicas.values().map(|replica| self.status_of(replica)).collect())
    }

    /// The files of all replicas.
    pub fn files(&self) -> Vec<SstStatus> {
        let replicas = self.replicas.lock().expect("no panic holds the lock");
        let of = |replica: &Arc<Replica>| match &replica.state {
            State::Meta(_) => Vec::new(),
            State::Region(region) => {
                let files = region.ssts().into_iter();
                files.map(|file| SstStatus { node: self.identity.node, ..file }).collect()
            }
        };
        replicas.values().flat_map(of).collect()
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
        status.members = standing.membership.replicas;
        status.voters = standing.membership.voters;
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
        self.state.close().await;
        self.group.stop().await;
    }
}

impl State {
    async fn close(&self) {
        match self {
            State::Region(region) => region.close().await,
            State::Meta(meta) => meta.close().await,
        }
    }
}

/// Carries out what must not be given up half-way, also if whoever asked for it does not wait any longer.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or(Err(Error::Stopped))
}

/// Where a replica lives.
pub(super) fn folder(replica: ReplicaId) -> String {
    format!("{REPLICAS}/{}", replica.0)
}
