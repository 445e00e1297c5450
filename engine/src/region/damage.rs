//! Damaged files: who finds one says so, stops using it, and gets the state of another replica in its place.
//!
//! SSTs hold nothing that the replica alone promised: a file has what was committed up to the entry that is flushed, and whatever
//! this replica acknowledged beyond it is in its log, which stays as it is, its vote included. The log itself is repaired where no
//! more than payloads of entries are damaged, and it is known which ones those are: by a state as of the newest of them or later.
//! What is in files has no need of them, votes are elsewhere. A log of which more is damaged does not open.
//!
//! Until then the replica takes part in its group: it votes, stores entries, applies what needs no damaged file. It leads only as
//! long as nobody else can, and does not stand for election while it is helped. Who reads what cannot be read is told to come
//! again; an apply that must read it waits, for its outcome is not this replica's to choose. Compactions are off, and so are
//! flushes while files are received: meanwhile the memtable grows by what is written to the region. The steps:
//!
//! 1. the state of another replica is received into a folder of its own (durable). It is as of an entry that is not older than
//!    what is flushed here: the log reaches back no further. Nothing is flushed meanwhile;
//! 2. the replica is closed;
//! 3. the files get their names among the SSTs (durable);
//! 4. one manifest edit takes all old files out and the new ones in, with the past that belongs to them (durable): sessions, pins,
//!    legs, positions of a view;
//! 5. what stands in its log in the place of entries that the new files have is cut off (durable);
//! 6. the replica is opened, and its log replayed behind the new files.
//!
//! A crash before the edit leaves the old files, and the damage is found again; one after it leaves the new ones. A snapshot
//! that the leader sends ends the damage too. If entries are to be replayed that must read what is damaged, or are damaged, the
//! replica cannot be opened ([`Region::stuck`]) and is mended first, by the same steps.
//!
//! A replica that is alone is left as it is: what can be read of it is read, the rest is an error that names the file; an entry
//! that needs the file is never applied. A damaged manifest stops the node.
//!
//! Not here: whom to ask, how often, and how files travel (`server::mend`).

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::files::Files;
use super::install::{Header, decode};
use super::request::{ScanAnswer, ScanRequest};
use super::side::Side;
use super::{Region, ReplicaSpec, decode_definition};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::raft::{Membership, Snapshot};
use crate::storage::FileId;
use crate::storage::manifest::{Action, Edit, Manifest};
use crate::storage::sst::{self, FileMeta, Sst};
use crate::types::{LogId, NodeId, RegionId, ReplicaId};

impl Region {
    /// One page of rows, see `read`.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanAnswer> {
        self.page(request).await.map_err(|err| self.noticed(err))
    }

    /// Whether it was found damaged, and is to be mended.
    pub fn is_damaged(&self) -> bool {
        self.damaged.borrow().is_some()
    }

    /// Waits until it is found damaged. Answers the file.
    pub async fn damaged(&self) -> String {
        let mut damaged = self.damaged.subscribe();
        let file = damaged.wait_for(Option::is_some).await.expect("the sender lives as long as this");
        file.clone().expect("it was waited for")
    }

    /// What its files say, for a replica that has lost some: as of `from` or later.
    pub async fn lend(&self, from: Option<LogId>) -> Result<Snapshot> {
        self.refuse_damaged()?;
        if index(self.version().flushed.log_id) < index(from) {
            self.flush().await?;
        }
        let snapshot = self.build_snapshot().await?;
        if index(snapshot.last) < index(from) {
            let what = format!("replica {} of region {} has not come to {from:?}", self.spec.replica, self.id);
            return Err(Error::Busy { what });
        }
        Ok(snapshot)
    }

    /// What a damaged replica needs of another one.
    pub async fn wanted(&self) -> Result<Wanted<'_>> {
        let files = self.files.lock().await;
        if *self.closing.borrow() {
            return Err(Error::Stopped);
        }
        Ok(Wanted { region: self, files })
    }

    /// Not while all files are about to be replaced.
    pub(super) fn refuse_damaged(&self) -> Result<()> {
        match &*self.damaged.borrow() {
            None => Ok(()),
            Some(file) => Err(self.being_mended(file)),
        }
    }

    /// Takes note of what a failed read says of the files. Answers the error for whoever read.
    pub fn noticed(&self, err: Error) -> Error {
        let file = match &err {
            Error::Damaged { file, .. } if is_sst(&self.spec.folder, file) => file.clone(),
            _ => return err,
        };
        let is_alone = self.others().is_empty();
        let is_news = is_alone
            || self.damaged.send_if_modified(|damaged| {
                let is_news = damaged.is_none();
                damaged.get_or_insert_with(|| file.clone());
                is_news
            });
        let (region, replica) = (self.id, self.spec.replica);
        if is_news {
            tracing::warn!(%region, %replica, %err, "a file is damaged");
            self.spec.events.emit(|| Event::FileDamaged { region, replica, file: file.clone() });
        }
        if is_alone { err } else { self.being_mended(&file) }
    }

    /// From now on somebody waits for [`Region::damaged`] and closes the replica to mend it.
    pub fn tended(&self) {
        self.is_tended.store(true, Ordering::Relaxed);
    }

    /// Why an entry could not be applied, if files are the reason.
    pub fn stuck(&self) -> Option<Error> {
        self.stuck.lock().expect("no panic holds the lock").clone()
    }

    /// Takes note of what kept an entry from being applied. If the replica is to be mended while it runs this waits until it is
    /// closed: who waits has nothing to answer before, and raft goes on without it.
    pub(super) async fn until_mended(&self, err: Error) -> Error {
        let is_ours = matches!(&err, Error::Damaged { file, .. } if is_sst(&self.spec.folder, file));
        let err = self.noticed(err);
        if is_ours && self.is_damaged() && self.is_tended.load(Ordering::Relaxed) {
            self.closed().await;
        } else if is_ours {
            *self.stuck.lock().expect("no panic holds the lock") = Some(err.clone());
        }
        err
    }

    fn being_mended(&self, file: &str) -> Error {
        let what = format!("replica {} of region {} is repaired: {file} is damaged", self.spec.replica, self.id);
        Error::Busy { what }
    }

    /// The other replicas of the group.
    fn others(&self) -> Vec<(ReplicaId, NodeId)> {
        let membership: Membership = self.state.lock().expect("no panic holds the lock").side.membership.clone();
        others(&membership, self.spec.replica)
    }
}

/// What a damaged replica needs.
pub struct Want {
    /// The group.
    pub region: RegionId,
    /// The state of the group as of this entry or later.
    pub from: Option<LogId>,
    /// Who may have it.
    pub others: Vec<(ReplicaId, NodeId)>,
}

impl Want {
    /// What a replica needs that nobody has open.
    pub async fn of(spec: &ReplicaSpec) -> Result<Want> {
        let manifest = open_manifest(spec).await?;
        let state = manifest.state();
        let mut membership = Side::decode(&state.past.side)?.membership;
        if membership.replicas.is_empty() {
            // Nothing was flushed yet: they are those that the group was to be made of.
            let table = decode_definition(&state.past.definition)?;
            let made = table.regions.into_iter().find(|made| made.id == state.region);
            membership.replicas = made.map(|made| made.replicas).unwrap_or_default();
        }
        Ok(Want { region: state.region, from: state.past.flushed, others: others(&membership, spec.replica) })
    }

    /// An empty folder for such a replica to receive files into. It is removed when the replica is opened.
    pub async fn folder(spec: &ReplicaSpec) -> Result<String> {
        Region::remove_incoming(spec).await?;
        Region::make_incoming(spec, 0).await
    }
}

/// A damaged replica that is to be helped. While this lives its files are not changed: nothing is flushed.
pub struct Wanted<'a> {
    region: &'a Region,
    files: MutexGuard<'a, Files>,
}

impl Wanted<'_> {
    /// What it needs.
    pub fn want(&self) -> Want {
        let (region, others) = (self.region.id, self.region.others());
        Want { region, from: self.files.manifest.state().past.flushed, others }
    }

    /// An empty folder to receive files into. If it stays, it is removed when the replica is opened the next time.
    pub async fn folder(&self) -> Result<String> {
        self.region.new_incoming().await
    }

    /// It came: nothing changes the replica's files any more, and it is to be closed.
    pub fn seal(self) {
        self.region.closing.send_replace(true);
    }
}

/// A damaged replica that is closed: nothing of it is open but its manifest.
pub struct Mending {
    spec: ReplicaSpec,
    manifest: Manifest,
    header: Header,
    last: LogId,
}

impl Mending {
    /// Opens the manifest. `header` is that of what was received. Refused if that is older than what was flushed here: the log
    /// does not reach back any further, and whoever has seen the newer state must not see an older one.
    pub async fn open(spec: ReplicaSpec, header: &Bytes) -> Result<Mending> {
        let manifest = open_manifest(&spec).await?;
        let header: Header = decode(header)?;
        let flushed = manifest.state().past.flushed;
        match header.past.flushed {
            Some(last) if index(Some(last)) >= index(flushed) => Ok(Mending { spec, manifest, header, last }),
            last => {
                let what = format!("the state of another replica is as of {last:?}, older than {flushed:?}");
                Err(Error::Busy { what })
            }
        }
    }

    /// The group.
    pub fn region(&self) -> RegionId {
        self.manifest.state().region
    }

    /// The last entry in what was received. It is committed.
    pub fn last(&self) -> LogId {
        self.last
    }

    /// Puts the state of the other replica, whose files were received as `files` and are durable there, in the place of what
    /// the manifest says.
    pub async fn install(mut self, files: &[String]) -> Result<()> {
        if self.header.files.len() != files.len() {
            return Err(Error::Unknown { message: "the state of another replica came without its files".into() });
        }
        let (disk, folder) = (self.spec.disk.as_ref(), &self.spec.folder);
        let mut add = Vec::with_capacity(files.len());
        let first = self.manifest.state().next_file.0;
        for ((number, meta), received) in (first..).zip(&self.header.files).zip(files) {
            let meta = FileMeta { id: FileId(number), ..meta.clone() };
            let path = sst::path(folder, meta.id);
            disk.rename(received, &path).await.map_err(|err| Error::io(&err, format!("rename to {path}")))?;
            add.push(meta);
        }
        let names = sst::folder(folder);
        disk.sync_dir(&names).await.map_err(|err| Error::io(&err, format!("sync {names}")))?;
        // They are what they should be, or nothing is exchanged: no better than what was here.
        for meta in &add {
            Sst::open(disk, folder, meta.clone()).await?;
        }
        // The old files are orphans from now on.
        let remove = self.manifest.state().files.keys().copied().collect();
        let edit = Edit { add, remove, past: Some(self.header.past), oldest: Some(self.header.oldest) };
        self.manifest.commit(&Action::Edit(edit)).await
    }
}

async fn open_manifest(spec: &ReplicaSpec) -> Result<Manifest> {
    let manifest = Manifest::open(spec.disk.clone(), &spec.folder, &spec.options, spec.events.clone()).await?;
    manifest.ok_or_else(|| Error::Damaged {
        file: spec.folder.clone(),
        message: "it has no manifest although it was open".into(),
    })
}

fn others(membership: &Membership, replica: ReplicaId) -> Vec<(ReplicaId, NodeId)> {
    let others = membership.replicas.iter().filter(|(other, _)| **other != replica);
    others.map(|(other, node)| (*other, *node)).collect()
}

fn index(entry: Option<LogId>) -> Option<u64> {
    entry.map(|entry| entry.index)
}

fn is_sst(folder: &str, file: &str) -> bool {
    file.strip_prefix(&sst::folder(folder)).is_some_and(|name| name.starts_with('/'))
}
