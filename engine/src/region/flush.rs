//! Memtables to files. The steps and what a crash between two of them leaves:
//!
//! 1. freeze the memtable, note the last entry E, its sequence and the side state, in one step of the state;
//! 2. write the frozen rows to an SST, content and name durable. Crash: an orphan file, collected at open;
//! 3. commit {file, E, sequence, side state} to the manifest. Crash: replay begins behind E;
//! 4. exchange the version, tell raft that the log may be purged up to E.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::files::Pending;
use super::side::Side;
use super::{Region, encode_definition};
use crate::error::Result;
use crate::event::Event;
use crate::meta::catalog::TableDef;
use crate::options::Pauses;
use crate::storage::FileId;
use crate::storage::manifest::{Action, Edit, ManifestState, Past};
use crate::storage::memtable::Memtable;
use crate::storage::merge::Merge;
use crate::storage::rules::Rules;
use crate::storage::sst::{self, FileMeta, Sst};
use crate::storage::version::{Flushed, Version};
use crate::types::{IndexId, LogId, Sequence};

/// A flush between freeze and publication.
pub(super) struct Flush {
    /// Of each tree what is to be written, and the rules that it was written by.
    trees: Vec<Frozen>,
    files: Vec<FileMeta>,
    past: Past,
    upto: LogId,
    /// What the version says of itself afterwards.
    flushed: Flushed,
    rows: u64,
    /// Files that a truncation before `upto` hid.
    truncated: Vec<FileId>,
    /// The oldest sequence that can be read as of `upto`.
    oldest: Sequence,
    /// Of the version whose memtables they are.
    generation: u64,
    /// The table as of `upto`.
    table: Arc<TableDef>,
}

/// The memtables of a tree that a flush writes.
struct Frozen {
    index: Option<IndexId>,
    rules: Arc<Rules>,
    memtables: Vec<Arc<Memtable>>,
}

impl Flush {
    pub fn is_in(&self, state: &ManifestState) -> bool {
        state.past == self.past
    }
}

/// Flushes when the memtable is full, and at the interval whatever there is: an idle region must not hold the log. Deletes
/// retired files when there are new ones, and now and then while somebody reads them.
pub(super) async fn work(region: Weak<Region>) {
    let Some(options) = region.upgrade().map(|region| region.spec.options.clone()) else { return };
    let mut interval = Duration::from_millis(options.flush_interval_ms);
    let mut due = Instant::now() + interval;
    let mut failing: Option<Pauses> = None;
    loop {
        let Some(region) = region.upgrade() else { return };
        let now = Duration::from_millis(region.flush_interval_ms());
        if interval != now {
            due = due + now - interval;
            interval = now;
        }
        let is_due = tokio::select! {
            biased;
            () = region.closed() => return,
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
                    let err = region.noticed(err);
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

impl Region {
    /// As the table says, or else the node.
    fn flush_interval_ms(&self) -> u64 {
        self.version().schema().options().flush_interval_ms.unwrap_or(self.spec.options.flush_interval_ms)
    }

    /// Writes everything that was applied until now to files. Answers when it is there; at once if there was nothing.
    pub async fn flush(&self) -> Result<()> {
        let mut files = self.files().await?;
        let _flushing = self.part.flushing();
        let frozen = self.freeze();
        self.note_memory();
        let Some((mut flush, side)) = frozen else { return Ok(()) };
        let (region, replica) = (self.id, self.spec.replica);
        let (upto, rows) = (flush.upto, flush.rows);
        self.spec.events.emit(|| Event::FlushStarted { region, replica, upto, rows });
        let batch_rows = usize::try_from(self.spec.options.scan_batch_rows).unwrap_or(usize::MAX);
        let (disk, folder, options) = (self.spec.disk.as_ref(), &self.spec.folder, &self.spec.options);
        let mut writing = Vec::new();
        for Frozen { index, rules, memtables } in &flush.trees {
            let file = self.ids.next();
            let mut merged = Merge::all_versions(rules, memtables.iter().cloned(), [], batch_rows);
            let written = sst::write(disk, folder, file.id, &rules.schema, options, u64::MAX, &mut merged).await?;
            flush.files.extend(written.map(|meta| FileMeta { index: *index, ..meta }));
            writing.push(file);
        }
        flush.past.definition = encode_definition(&flush.table);
        flush.past.side = side.encode();
        let edit = Edit {
            add: flush.files.clone(),
            remove: flush.truncated.clone(),
            past: Some(flush.past.clone()),
            oldest: Some(flush.oldest),
        };
        files.pending = Some(Pending::Flush(Box::new(flush)));
        files.commit(&Action::Edit(edit)).await?;
        self.settle(&mut files).await
    }

    /// Step 1. None: everything is in files.
    fn freeze(&self) -> Option<(Flush, Side)> {
        let mut state = self.state.lock().expect("no panic holds the lock");
        let upto = state.side.applied.filter(|applied| Some(*applied) != state.version.flushed.log_id)?;
        let frozen = state.version.with_frozen();
        let rows = frozen.frozen.iter().map(|memtable| memtable.rows() as u64).sum();
        let tree = |(index, tree): (Option<IndexId>, &Version)| Frozen {
            index,
            rules: tree.rules.clone(),
            memtables: tree.frozen.clone(),
        };
        let trees = frozen.trees().filter(|(_, tree)| !tree.frozen.is_empty()).map(tree).collect();
        state.version = Arc::new(frozen);
        let side = state.side.clone();
        let past = Past { flushed: Some(upto), sequence: side.sequence, ..Past::default() };
        let truncated = state.truncated.iter().map(|sst| sst.meta().id).collect();
        let (oldest, generation) = (state.version.oldest, state.version.generation);
        let table = state.table.clone();
        let (rules, pinned) = (state.version.rules.clone(), side.pinned());
        let flushed = Flushed { log_id: Some(upto), sequence: side.sequence, rules, pinned };
        let files = Vec::new();
        Some((Flush { trees, files, past, upto, flushed, rows, truncated, oldest, generation, table }, side))
    }

    /// Step 4.
    pub(super) async fn publish(&self, flush: &Flush) -> Result<()> {
        let mut added = Vec::with_capacity(flush.files.len());
        for file in &flush.files {
            added.push(Sst::open(self.spec.disk.as_ref(), &self.spec.folder, file.clone()).await?);
        }
        let (upto, sequence, rows) = (flush.upto, flush.past.sequence, flush.rows);
        self.swap("flush", |state| {
            let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut state.truncated)
                .into_iter()
                .partition(|sst| flush.truncated.contains(&sst.meta().id));
            state.truncated = kept;
            self.retired.add(gone);
            let is_same = state.version.generation == flush.generation;
            let is_there = |index: Option<IndexId>| is_same && state.version.tree(index).is_some();
            let written: Vec<Arc<Memtable>> = flush
                .trees
                .iter()
                .filter(|tree| is_there(tree.index))
                .flat_map(|tree| tree.memtables.clone())
                .collect();
            // Truncated, or the index dropped, meanwhile: the manifest names the file until the next flush.
            let (added, hidden): (Vec<_>, Vec<_>) = added.into_iter().partition(|sst| is_there(sst.meta().index));
            state.truncated.extend(hidden.into_iter().map(Arc::new));
            let next = state.version.with_flushed(&written, added, flush.flushed.clone());
            state.version =
                Arc::new(next.expect("only a flush takes frozen memtables away, and there is one at a time"));
        });
        self.flushed.send_replace(Some(upto));
        self.compacting.due.notify_one();
        let (region, replica) = (self.id, self.spec.replica);
        self.spec.events.emit(|| Event::FlushFinished { region, replica, upto, sequence, rows });
        Ok(())
    }
}
