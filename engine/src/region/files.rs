//! The files of a replica: who may change the manifest, which ids are taken, what became of an edit that failed, and
//! which files are to be deleted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::Region;
use super::compact::Compaction;
use super::flush::Flush;
use crate::disk::remove_if_there;
use crate::error::{Error, Invalid, Result};
use crate::storage::FileId;
use crate::storage::manifest::{Action, Manifest};
use crate::storage::sst::{self, Sst};

/// The right to change the manifest: held for the whole of a flush or an install, and for the end of a compaction.
pub(super) struct Files {
    pub manifest: Manifest,
    /// Whose edit was begun and whose effect readers do not see yet: being committed, or nobody knows whether it was, or
    /// whoever was to publish it was stopped.
    pub pending: Option<Pending>,
}

/// Work whose manifest edit was begun.
pub(super) enum Pending {
    Flush(Box<Flush>),
    Compaction(Compaction),
}

/// Gives out file ids, and knows which of them are being written: such a file is no orphan although no manifest names it.
pub(super) struct FileIds(Mutex<Ids>);

struct Ids {
    /// Never given out twice, also not after a failure: its manifest edit may turn out to be durable.
    next: FileId,
    writing: BTreeSet<FileId>,
}

/// The id of a file that is being written, until this is dropped.
pub(super) struct Writing<'a> {
    ids: &'a FileIds,
    pub id: FileId,
}

impl FileIds {
    pub fn from(next: FileId) -> FileIds {
        FileIds(Mutex::new(Ids { next, writing: BTreeSet::new() }))
    }

    pub fn next(&self) -> Writing<'_> {
        let mut ids = self.0.lock().expect("no panic holds the lock");
        let id = ids.next;
        ids.next = FileId(id.0 + 1);
        ids.writing.insert(id);
        Writing { ids: self, id }
    }

    fn writing(&self) -> BTreeSet<FileId> {
        self.0.lock().expect("no panic holds the lock").writing.clone()
    }
}

impl Files {
    /// Commits the edit of what is pending. If it does not fit, nothing was written, nothing ever will be, and nothing is
    /// pending any more; after another error that is to be found out.
    pub async fn commit(&mut self, action: &Action) -> Result<()> {
        let committed = self.manifest.commit(action).await;
        if let Err(Error::Invalid { code: Invalid::Mismatch, .. }) = &committed {
            self.pending = None;
        }
        committed
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.ids.0.lock().expect("no panic holds the lock").writing.remove(&self.id);
    }
}

/// Files that the manifest does not name any more and that a reader may still have.
#[derive(Default)]
pub(super) struct Retired {
    files: Mutex<Vec<Arc<Sst>>>,
    more: Notify,
}

impl Retired {
    pub fn add(&self, files: impl IntoIterator<Item = Arc<Sst>>) {
        self.files.lock().expect("no panic holds the lock").extend(files);
        self.more.notify_one();
    }

    /// Takes out those that nobody reads.
    fn take_unused(&self) -> Vec<Arc<Sst>> {
        let mut files = self.files.lock().expect("no panic holds the lock");
        let (unused, used) = std::mem::take(&mut *files).into_iter().partition(|sst| Arc::strong_count(sst) == 1);
        *files = used;
        unused
    }

    fn ids(&self) -> Vec<FileId> {
        self.files.lock().expect("no panic holds the lock").iter().map(|sst| sst.meta().id).collect()
    }

    /// Waits until it is time to look: at once after new ones, after `pause` while some are read.
    pub async fn wait(&self, pause: Duration) {
        let is_empty = self.files.lock().expect("no panic holds the lock").is_empty();
        if is_empty {
            return self.more.notified().await;
        }
        let _ = timeout(pause, self.more.notified()).await;
    }
}

impl Region {
    /// Finds out what became of the manifest edit that was begun last, and publishes it if it is durable: right after
    /// the commit, or later, when that failed or was stopped half-way.
    pub(super) async fn settle(&self, files: &mut Files) -> Result<()> {
        let was_uncertain = files.manifest.is_uncertain();
        if was_uncertain {
            files.manifest.settle().await?;
        }
        let state = files.manifest.state();
        match &files.pending {
            Some(Pending::Flush(flush)) if flush.is_in(state) => self.publish(flush).await?,
            Some(Pending::Compaction(compaction)) if compaction.is_in(state) => {
                self.publish_compaction(compaction).await?;
            }
            _ => {}
        }
        files.pending = None;
        if !was_uncertain {
            return Ok(());
        }
        // What is being written now, and what somebody reads, is none.
        let needed = || {
            let mut needed = self.ids.writing();
            needed.extend(self.retired.ids());
            needed
        };
        files.manifest.remove_orphans(needed).await.map(drop)
    }

    /// Deletes files that the manifest does not name any more and that nobody reads.
    pub(super) async fn remove_retired(&self) {
        for sst in self.retired.take_unused() {
            self.remove_file(sst.meta().id).await;
        }
    }

    /// Deletes a file that no manifest names.
    pub(super) async fn remove_file(&self, id: FileId) {
        let path = sst::path(&self.spec.folder, id);
        if let Err(err) = remove_if_there(self.spec.disk.as_ref(), &path).await {
            // It is an orphan at the next open.
            tracing::warn!(replica = %self.spec.replica, path, %err, "a file cannot be removed");
        }
    }
}
