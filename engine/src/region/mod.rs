//! A region's replica on this node: its rows and side state, driven by the committed entries of its raft group.
//!
//! * [`apply`](Region) assigns sequences, writes the memtable, remembers the request and publishes the sequence, in this
//!   order and in the order of the log. It never waits for memory or for a flush.
//! * A flush freezes the memtable, notes in the same step which entry and side state that is, writes it to a file and
//!   commits all of it in one manifest edit. Nothing else makes state durable; the log is purged behind it.
//! * A scan takes the current [`Version`](crate::storage::version::Version) and reads it without any lock.
//!
//! Two locks: `state` (short, never across an await) for what apply and freeze change together, and `manifest` (long)
//! for what makes files: one flush or install at a time. A compaction takes it only for its commit.
//!
//! Not here: who leads and what is committed (`raft`), how files look (`storage`).

pub mod absorb;
pub mod command;
pub mod leg;
pub mod request;
pub mod side;

mod alter;
mod apply;
mod buffer;
mod checksum;
mod compact;
mod damage;
pub mod expire;
mod files;
mod flush;
pub mod index;
mod install;
mod pin;
mod pressure;
mod read;
#[cfg(test)]
mod tests;
mod truncate;
mod validate;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

pub use self::buffer::Buffer;
use self::buffer::{Part, Place};
use self::compact::{Compacting, Horizon};
pub use self::damage::{Mending, Want, Wanted};
use self::files::{FileIds, Files, Retired};
use self::request::{ReplicaStatus, SstStatus};
use self::side::Side;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::meta::catalog::TableDef;
use crate::options::Options;
use crate::storage::manifest::{Manifest, Past};
use crate::storage::sst::{FileMeta, Sst};
use crate::storage::version::{Flushed, Version};
use crate::types::{Incarnation, LegId, LogId, NodeId, RegionId, ReplicaId, Sequence};
use crate::view::Program;

/// Where and how a replica lives.
#[derive(Clone)]
pub struct ReplicaSpec {
    /// The replica.
    pub replica: ReplicaId,
    /// Its folder on the disk.
    pub folder: String,
    /// The node's.
    pub incarnation: Incarnation,
    /// The node's.
    pub disk: Arc<dyn Disk>,
    /// The node's.
    pub options: Arc<Options>,
    /// The node's.
    pub events: Events,
    /// The node's: a place for each compaction that may run at the same time.
    pub compactions: Arc<Semaphore>,
    /// The node's: memory for writes.
    pub buffer: Arc<Buffer>,
    /// The node's: notified when a leg of a view begins, ends or changes.
    pub fills: Arc<Notify>,
}

/// See the module.
pub struct Region {
    id: RegionId,
    spec: ReplicaSpec,
    state: Mutex<State>,
    files: AsyncMutex<Files>,
    ids: FileIds,
    /// Counts the snapshots that were begun to be received.
    incoming: AtomicU64,
    retired: Retired,
    compacting: Compacting,
    /// Published after all rows of an entry are in the memtable.
    visible: watch::Sender<Sequence>,
    /// The last entry that is in files.
    flushed: watch::Sender<Option<LogId>>,
    /// Wakes the worker: the memtable is full, or its memory is needed.
    full: Arc<Notify>,
    /// Its part of the node's memory for writes.
    part: Part,
    /// Writes under way at most.
    window: Arc<Semaphore>,
    /// Of a view: its query.
    program: Option<Program>,
    /// How long a write waits, for each leg that writes outrun.
    slow: Mutex<BTreeMap<LegId, Duration>>,
    /// Counts the changes of legs.
    legs: watch::Sender<u64>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// A file that is damaged, once one is found that other replicas can help with.
    damaged: watch::Sender<Option<String>>,
    /// Whether somebody looks after it: mends it when it is found damaged.
    is_tended: AtomicBool,
    /// What kept an entry from being applied.
    stuck: Mutex<Option<Error>>,
    /// Set when the region is closed: workers end at the next point where nothing is half done.
    closing: watch::Sender<bool>,
}

/// A write that may be proposed. It counts until this is dropped.
pub struct Admitted {
    _memory: Place,
    _place: OwnedSemaphorePermit,
}

/// Writes wait as long as this is there.
pub struct Slow<'a> {
    region: &'a Region,
    leg: LegId,
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        if let Ok(mut slow) = self.region.slow.lock() {
            slow.remove(&self.leg);
        }
    }
}

/// What changes together.
struct State {
    /// As of the last entry that was applied.
    table: Arc<TableDef>,
    version: Arc<Version>,
    side: Side,
    horizon: Horizon,
    /// Files that the manifest names and the version does not: a truncation hid them, the next flush takes them out.
    truncated: Vec<Arc<Sst>>,
}

impl Region {
    /// Makes the replica's folder and manifest. Finds them made if that was interrupted before the answer.
    pub async fn create(spec: ReplicaSpec, region: RegionId, table: &TableDef) -> Result<Arc<Region>> {
        let open = Manifest::open(spec.disk.clone(), &spec.folder, &spec.options, spec.events.clone()).await?;
        if open.is_none() {
            let past = Past { definition: encode_definition(table), ..Past::default() };
            let (disk, events) = (spec.disk.clone(), spec.events.clone());
            Manifest::create(disk, &spec.folder, region, spec.replica, past, &spec.options, events).await?;
        }
        Region::open(spec.clone()).await?.ok_or_else(|| Error::Damaged {
            file: spec.folder,
            message: "its manifest was written and is not there".into(),
        })
    }

    /// Opens the replica as its manifest says; its log is replayed by raft. None if there is no manifest: its creation
    /// was interrupted.
    pub async fn open(spec: ReplicaSpec) -> Result<Option<Arc<Region>>> {
        let manifest = Manifest::open(spec.disk.clone(), &spec.folder, &spec.options, spec.events.clone()).await?;
        let Some(manifest) = manifest else { return Ok(None) };
        manifest.remove_orphans(Default::default).await?;
        Region::remove_incoming(&spec).await?;
        let state = manifest.state();
        let table = decode_definition(&state.past.definition)?;
        let schema = Arc::new(table.schema.clone());
        let program = table.view.as_ref().map(|_| Program::compile(&table)).transpose()?;
        let mut ssts = Vec::with_capacity(state.files.len());
        let mut damage = Vec::new();
        for meta in state.files.values() {
            let opened = Sst::open(spec.disk.as_ref(), &spec.folder, meta.clone()).await;
            ssts.push(opened.or_else(|err| match err {
                // Who is alone can read the other files, and who is not gets all of them from another replica.
                Error::Damaged { .. } => {
                    damage.push(err.clone());
                    Ok(Sst::unreadable(meta.clone(), err))
                }
                err => Err(err),
            })?);
        }
        let side = Side::decode(&state.past.side)?;
        let (id, flushed, sequence) = (state.region, state.past.flushed, state.past.sequence);
        let rules = Arc::new(side.rules(&schema));
        let durable = Flushed { log_id: flushed, sequence, rules, pinned: side.pinned() };
        let version = Version::new(durable, ssts, state.oldest, 0);
        let horizon = Horizon::new(Duration::from_millis(spec.options.version_keep_ms), sequence);
        let ids = FileIds::from(state.next_file);
        let window = usize::try_from(spec.options.write_window).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let replica = spec.replica;
        let full = Arc::new(Notify::new());
        let part = spec.buffer.open(id, replica, full.clone());
        spec.events.emit(|| Event::ReplicaOpened { region: id, replica, flushed, flushed_sequence: sequence });
        spec.events.emit(|| Event::VersionSwapped { region: id, replica, why: "open".into() });
        let region = Arc::new(Region {
            id,
            state: Mutex::new(State {
                table: Arc::new(table),
                version: Arc::new(version),
                side,
                horizon,
                truncated: Vec::new(),
            }),
            files: AsyncMutex::new(Files { manifest, pending: None }),
            ids,
            incoming: AtomicU64::default(),
            compacting: Compacting::default(),
            retired: Retired::default(),
            visible: watch::Sender::new(sequence),
            flushed: watch::Sender::new(flushed),
            full,
            part,
            window: Arc::new(Semaphore::new(window)),
            program,
            slow: Mutex::default(),
            legs: watch::Sender::new(0),
            workers: Mutex::default(),
            damaged: watch::Sender::new(None),
            is_tended: AtomicBool::default(),
            stuck: Mutex::default(),
            closing: watch::Sender::new(false),
            spec,
        });
        let workers = vec![
            tokio::spawn(flush::work(Arc::downgrade(&region))),
            tokio::spawn(compact::work(Arc::downgrade(&region))),
        ];
        *region.workers.lock().expect("no panic holds the lock") = workers;
        for err in damage {
            region.noticed(err);
        }
        // It may have been closed before it was through with what was due.
        region.compacting.due.notify_one();
        Ok(Some(region))
    }

    /// The region.
    pub fn region(&self) -> RegionId {
        self.id
    }

    /// Whether the replica was made for this region of this table, which may have been altered since, and whose replicas may
    /// be others by now.
    pub fn is_made_for(&self, region: RegionId, table: &TableDef) -> bool {
        let here = self.state.lock().expect("no panic holds the lock").table.clone();
        let is_same = here.schema.version != table.schema.version
            || TableDef { regions: table.regions.clone(), indexes: table.indexes.clone(), ..TableDef::clone(&here) }
                == *table;
        self.id == region && here.id == table.id && is_same
    }

    /// The newest sequence that can be read here.
    pub fn visible(&self) -> Sequence {
        *self.visible.borrow()
    }

    /// Follows the newest sequence that can be read here.
    pub fn watch_visible(&self) -> watch::Receiver<Sequence> {
        self.visible.subscribe()
    }

    /// Follows the changes of the legs.
    pub fn watch_legs(&self) -> watch::Receiver<u64> {
        self.legs.subscribe()
    }

    /// Follows the last entry that is in files.
    pub fn watch_flushed(&self) -> watch::Receiver<Option<LogId>> {
        self.flushed.subscribe()
    }

    /// Waits for memory for a write of so many bytes and for a place among the writes under way; for memory at most `within`, and not when `ended` says
    /// why it must not.
    pub async fn admit(&self, bytes: usize, within: Duration, ended: impl Future<Output = Error>) -> Result<Admitted> {
        let memory = self.part.write(bytes as u64, within, ended).await?;
        let place = self.window.clone().acquire_owned().await.map_err(|_| Error::Stopped)?;
        Ok(Admitted { _memory: memory, _place: place })
    }

    /// From now on each write waits for so long, until what is returned is dropped: a fill of a view is to catch up.
    pub fn slow_writes(&self, leg: LegId, delay: Duration) -> Slow<'_> {
        self.slow.lock().expect("no panic holds the lock").insert(leg, delay);
        Slow { region: self, leg }
    }

    /// How long a write waits.
    pub fn delay(&self) -> Duration {
        self.slow.lock().expect("no panic holds the lock").values().max().copied().unwrap_or_default()
    }

    /// The replica's part of its status; the group's part is filled in by the caller.
    pub fn status(&self) -> ReplicaStatus {
        let state = self.state.lock().expect("no panic holds the lock");
        let version = &state.version;
        ReplicaStatus {
            region: self.id,
            replica: self.spec.replica,
            node: NodeId::default(),
            is_leader: false,
            leader: None,
            term: 0,
            applied: state.side.applied,
            flushed: version.flushed.log_id,
            sequence: self.visible(),
            oldest: version.readable(),
            memtable_rows: version.memtable_rows() as u64,
            memtable_bytes: version.memtable_bytes() as u64,
            ssts: version.files().count() as u64,
            sst_bytes: version.sst_bytes(),
            schema_version: version.schema().version,
            members: BTreeMap::new(),
            voters: Vec::new(),
        }
    }

    /// The replica's files; the node is filled in by the caller.
    pub fn ssts(&self) -> Vec<SstStatus> {
        let status = |file: &FileMeta| SstStatus {
            region: self.id,
            replica: self.spec.replica,
            node: NodeId::default(),
            file: file.id.to_string(),
            index: file.index,
            level: file.level,
            rows: file.rows,
            bytes: file.bytes,
            first_sequence: file.first_sequence,
            last_sequence: file.last_sequence,
            times: file.times(),
            schema_version: file.schema_version,
        };
        self.version().files().map(|sst| status(sst.meta())).collect()
    }

    /// Ends the workers and whatever else changes files, at points where nothing is half done: afterwards the folder may be
    /// opened anew, or removed. Later requests end with an error.
    pub async fn close(&self) {
        self.window.close();
        self.part.close();
        self.closing.send_replace(true);
        self.compacting.close();
        let workers = std::mem::take(&mut *self.workers.lock().expect("no panic holds the lock"));
        for worker in workers {
            let _ = worker.await;
        }
        // Who waits for this lock finds the region closed when it gets it.
        drop(self.files.lock().await);
    }

    /// The right to change files, unless the region is closed; what was begun last is published or gone.
    async fn files(&self) -> Result<MutexGuard<'_, Files>> {
        let mut files = self.files.lock().await;
        if *self.closing.borrow() {
            return Err(Error::Stopped);
        }
        self.settle(&mut files).await?;
        Ok(files)
    }

    /// Says what the memtables hold.
    fn note_memory(&self) {
        let version = self.version();
        let mutable = version.mutable_bytes();
        self.part.holds(mutable, version.memtable_bytes() - mutable);
    }

    /// Waits until the region is closed.
    async fn closed(&self) {
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    fn version(&self) -> Arc<Version> {
        self.state.lock().expect("no panic holds the lock").version.clone()
    }

    /// Exchanges what readers see. The manifest says the same already.
    fn swap(&self, why: &str, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("no panic holds the lock"));
        self.note_memory();
        let (region, replica) = (self.id, self.spec.replica);
        self.spec.events.emit(|| Event::VersionSwapped { region, replica, why: why.to_string() });
    }
}

fn encode_definition(table: &TableDef) -> Bytes {
    postcard::to_allocvec(table).expect("a table definition has an encoding").into()
}

fn decode_definition(bytes: &Bytes) -> Result<TableDef> {
    postcard::from_bytes(bytes).map_err(|err| Error::Damaged {
        file: "manifest".into(),
        message: format!("its table definition cannot be read: {err}"),
    })
}
