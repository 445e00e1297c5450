//! Damaged files: who finds one says so, stops using it, and gets the state of another replica in its place.
//!
//! Only SSTs are repaired so. They hold nothing that the replica alone promised: a file has what was committed up to the entry
//! that is flushed, and whatever this replica acknowledged beyond it is in its log, which stays as it is, its vote included.
//!
//! Until then the replica takes part in its group: it votes, stores entries, applies what needs no damaged file, and flushes.
//! Who reads what cannot be read is told to come again; an apply that must read it waits, for its outcome is not this replica's
//! to choose. Compactions are off. The steps:
//!
//! 1. the state of another replica is received into a folder of its own (durable). It is as of an entry that is not older than
//!    what is flushed here: the log reaches back no further. Nothing is flushed meanwhile;
//! 2. the replica is closed, and what stands in its log in the place of entries that the new files have is cut off (durable);
//! 3. the files get their names among the SSTs (durable);
//! 4. one manifest edit takes all old files out and the new ones in, with the past that belongs to them (durable);
//! 5. the replica is opened, and its log replayed behind the new files.
//!
//! A crash before the edit leaves the old files, and the damage is found again; one after it leaves the new ones. A snapshot
//! that the leader sends ends the damage too.
//!
//! A replica that is alone is left as it is: what can be read of it is read, the rest is an error that names the file. A
//! damaged manifest or log stops the node.
//!
//! Not here: whom to ask and how files travel (`server::mend`).

use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::files::Files;
use super::install::{Header, decode};
use super::request::{ScanAnswer, ScanRequest};
use super::{Region, ReplicaSpec};
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
    pub async fn want(&self) -> Result<Wanted<'_>> {
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
    pub(super) fn noticed(&self, err: Error) -> Error {
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

    /// Takes note of it, and waits until the replica is closed if it is to be mended: who waits has nothing to answer before.
    pub(super) async fn until_mended(&self, err: Error) -> Error {
        let err = self.noticed(err);
        if self.is_damaged() {
            self.closed().await;
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
        membership.replicas.into_iter().filter(|(other, _)| *other != self.spec.replica).collect()
    }
}

/// What a damaged replica needs. While this lives its own files are not changed: nothing is flushed.
pub struct Wanted<'a> {
    region: &'a Region,
    files: MutexGuard<'a, Files>,
}

impl Wanted<'_> {
    /// The state of its group as of this entry or later.
    pub fn from(&self) -> Option<LogId> {
        self.files.manifest.state().past.flushed
    }

    /// Who may have it.
    pub fn others(&self) -> Vec<(ReplicaId, NodeId)> {
        self.region.others()
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
        let manifest = Manifest::open(spec.disk.clone(), &spec.folder, &spec.options, spec.events.clone()).await?;
        let manifest = manifest.ok_or_else(|| Error::Damaged {
            file: spec.folder.clone(),
            message: "it has no manifest although it was open".into(),
        })?;
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

fn index(entry: Option<LogId>) -> Option<u64> {
    entry.map(|entry| entry.index)
}

fn is_sst(folder: &str, file: &str) -> bool {
    file.strip_prefix(&sst::folder(folder)).is_some_and(|name| name.starts_with('/'))
}
