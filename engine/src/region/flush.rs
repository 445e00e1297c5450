//! Memtables to files. The steps and what a crash between two of them leaves:
//!
//! 1. freeze the memtable, note the last entry E, its sequence and the side state, in one step of the state;
//! 2. write the frozen rows to an SST, content and name durable. Crash: an orphan file, collected at open;
//! 3. commit {file, E, sequence, side state} to the manifest. Crash: replay begins behind E;
//! 4. exchange the version, tell raft that the log may be purged up to E.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::Region;
use super::side::Side;
use crate::disk::remove_if_there;
use crate::error::{Error, Invalid, Result};
use crate::event::Event;
use crate::options::Pauses;
use crate::storage::FileId;
use crate::storage::manifest::{Action, Edit, Manifest, Past};
use crate::storage::memtable::Memtable;
use crate::storage::merge::Merge;
use crate::storage::sst::{self, FileMeta, Sst};
use crate::types::LogId;

/// What makes files, one at a time: held for the whole of a flush or an install.
pub(super) struct Files {
    pub manifest: Manifest,
    /// Never given out twice, also not after a failure: its manifest edit may turn out to be durable.
    next: FileId,
    /// A flush whose manifest edit may or may not be durable.
    ambiguous: Option<Flush>,
}

/// A flush between freeze and publication.
struct Flush {
    memtables: Vec<Arc<Memtable>>,
    file: Option<FileMeta>,
    past: Past,
    upto: LogId,
    rows: u64,
}

impl Files {
    pub fn new(manifest: Manifest) -> Files {
        let next = manifest.state().next_file;
        Files { manifest, next, ambiguous: None }
    }

    pub fn next_id(&mut self) -> FileId {
        let id = self.next;
        self.next = FileId(id.0 + 1);
        id
    }
}

/// Flushes when the memtable is full, and at the interval whatever there is: an idle region must not hold the log. Deletes
/// retired files when there are new ones, and now and then while somebody reads them.
pub(super) async fn work(region: Weak<Region>) {
    let Some(options) = region.upgrade().map(|region| region.spec.options.clone()) else { return };
    let interval = Duration::from_millis(options.flush_interval_ms);
    let mut due = Instant::now() + interval;
    let mut failing: Option<Pauses> = None;
    loop {
        let Some(region) = region.upgrade() else { return };
        let is_due = tokio::select! {
            biased;
            // After a failure the pause counts: a full memtable alone is no reason to hurry.
            () = region.full.notified(), if failing.is_none() => true,
            () = sleep_until(due) => true,
            () = region.retired.wait(Duration::from_millis(options.retry_max_ms)) => false,
        };
        if is_due {
            let wait = match region.flush().await {
                Ok(()) => {
                    failing = None;
                    interval
                }
                Err(err) => {
                    let (id, replica, reason) = (region.id, region.spec.replica, err.to_string());
                    region.spec.events.emit(|| Event::FlushFailed { region: id, replica, reason });
                    failing.get_or_insert_with(|| options.pauses()).next_pause()
                }
            };
            due = Instant::now() + wait;
        }
        region.remove_retired().await;
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

    /// Waits until it is time to look: at once after new ones, after `pause` while some are read.
    async fn wait(&self, pause: Duration) {
        let is_empty = self.files.lock().expect("no panic holds the lock").is_empty();
        if is_empty {
            return self.more.notified().await;
        }
        let _ = timeout(pause, self.more.notified()).await;
    }
}

impl Region {
    /// Writes everything that was applied until now to files. Answers when it is there; at once if there was nothing.
    pub async fn flush(&self) -> Result<()> {
        let mut files = self.files.lock().await;
        self.settle(&mut files).await?;
        let Some((mut flush, side)) = self.freeze() else { return Ok(()) };
        let (region, replica) = (self.id, self.spec.replica);
        let (upto, rows) = (flush.upto, flush.rows);
        self.spec.events.emit(|| Event::FlushStarted { region, replica, upto, rows });
        let batch_rows = usize::try_from(self.spec.options.scan_batch_rows).unwrap_or(usize::MAX);
        let merged = Merge::all_versions(&self.schema, flush.memtables.iter().cloned(), [], batch_rows);
        let (disk, folder, options) = (self.spec.disk.as_ref(), &self.spec.folder, &self.spec.options);
        if flush.rows > 0 {
            flush.file = sst::write(disk, folder, files.next_id(), &self.schema, options, merged).await?;
        }
        flush.past.definition = files.manifest.state().past.definition.clone();
        flush.past.side = side.encode();
        let edit =
            Edit { add: flush.file.clone().into_iter().collect(), remove: vec![], past: Some(flush.past.clone()) };
        match files.manifest.commit(&Action::Edit(edit)).await {
            Ok(()) => self.publish(flush).await,
            // It does not fit: nothing was written, and nothing ever will.
            Err(err @ Error::Invalid { code: Invalid::Mismatch, .. }) => Err(err),
            Err(err) => {
                files.ambiguous = Some(flush);
                Err(err)
            }
        }
    }

    /// Finds out what became of a manifest edit that failed, and publishes it if it is durable after all.
    pub(super) async fn settle(&self, files: &mut Files) -> Result<()> {
        if !files.manifest.is_uncertain() {
            return Ok(());
        }
        files.manifest.settle().await?;
        let Some(flush) = files.ambiguous.take() else { return Ok(()) };
        if files.manifest.state().past == flush.past {
            return self.publish(flush).await;
        }
        files.manifest.remove_orphans(&BTreeSet::new()).await.map(drop)
    }

    /// Step 1. None: everything is in files.
    fn freeze(&self) -> Option<(Flush, Side)> {
        let mut state = self.state.lock().expect("no panic holds the lock");
        let upto = state.side.applied.filter(|applied| Some(*applied) != state.version.flushed)?;
        let frozen = state.version.with_frozen();
        let memtables = frozen.frozen.clone();
        state.version = Arc::new(frozen);
        let rows = memtables.iter().map(|memtable| memtable.rows() as u64).sum();
        let side = state.side.clone();
        let past = Past { flushed: Some(upto), sequence: side.sequence, ..Past::default() };
        Some((Flush { memtables, file: None, past, upto, rows }, side))
    }

    /// Step 4.
    async fn publish(&self, flush: Flush) -> Result<()> {
        let mut added = None;
        if let Some(file) = flush.file {
            added = Some(Sst::open(self.spec.disk.as_ref(), &self.spec.folder, file).await?);
        }
        let (upto, sequence, rows) = (flush.upto, flush.past.sequence, flush.rows);
        self.swap("flush", |state| {
            let next = state.version.with_flushed(&flush.memtables, added, Some(upto), sequence);
            state.version =
                Arc::new(next.expect("only a flush takes frozen memtables away, and there is one at a time"));
        });
        self.flushed.send_replace(Some(upto));
        let (region, replica) = (self.id, self.spec.replica);
        self.spec.events.emit(|| Event::FlushFinished { region, replica, upto, sequence, rows });
        Ok(())
    }

    /// Deletes files that the manifest does not name any more and that nobody reads.
    async fn remove_retired(&self) {
        for sst in self.retired.take_unused() {
            let path = sst::path(&self.spec.folder, sst.meta().id);
            if let Err(err) = remove_if_there(self.spec.disk.as_ref(), &path).await {
                // It is an orphan at the next open.
                tracing::warn!(replica = %self.spec.replica, path, %err, "a file cannot be removed");
            }
        }
    }
}
