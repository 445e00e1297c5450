//! The one task that writes: whatever was submitted while an fsync ran is the next batch, one write and one fsync for
//! all replicas.
//!
//! A change takes effect in [`Core`] when it is submitted: it gets its place in the file then, and reads see it at once.
//! The task takes the pending batch as a whole, writes it, fsyncs it, and only then says so. Between two batches nothing
//! is written. A batch stands in one segment; a segment that has grown over its limit gets no further batch.
//!
//! Before segments are deleted, the batch says again what only they say, and `Trim`; the files go when it is durable,
//! one after the other, oldest first, so that those that are there are always a row without gaps.
//!
//! The first failed operation ends the log: what is in memory may then be ahead of the disk, and nothing more is
//! acknowledged or written. Who owns the log opens it anew.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::index::{Index, Payload};
use super::record::{Change, Header, Place, Record, record_len};
use super::replay::{Recovered, path};
use crate::disk::{Disk, File, Open};
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::types::{LogId, ReplicaId, Vote};

/// Room for a batch that is kept from one to the next; larger ones are given back.
const KEPT_BUFFER: usize = 1 << 20;

/// What the task and the handles of the log share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: String,
    pub(super) segment_bytes: u64,
    pub(super) cache_bytes: u64,
    pub(super) events: Events,
    core: Mutex<Core>,
}

/// The state of the log, in memory.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) index: Index,
    pub(super) files: BTreeMap<u64, Arc<dyn File>>,
    /// Why nothing is taken any more.
    pub(super) ended: Option<Error>,
    /// Records before this place are in files.
    written: Place,
    pending: Batch,
    /// The batch that is being written: what will be durable with it.
    writing: BTreeMap<ReplicaId, LogId>,
    /// Committed positions that no record says yet. They ride with the next batch.
    committed: BTreeMap<ReplicaId, LogId>,
    /// No more changes are taken; the task ends when it has written what there is.
    closing: bool,
    /// Who waits for the task's end.
    closers: Vec<oneshot::Sender<Result<()>>>,
}

/// Changes that become durable together.
#[derive(Debug)]
struct Batch {
    number: u64,
    start: Place,
    /// Offset right after the last record.
    end: u64,
    records: Vec<Pending>,
    /// The last entry of each replica that got entries, as far as it was not truncated since.
    entries: BTreeMap<ReplicaId, LogId>,
    votes: Vec<(ReplicaId, Vote)>,
    /// Who waits for it.
    waiting: Vec<oneshot::Sender<Result<()>>>,
    /// Segments up to this one can be deleted once it is durable.
    trim: Option<u64>,
}

#[derive(Debug)]
struct Pending {
    record: Record,
    payload: Bytes,
    payload_crc: u32,
}

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &str,
        segment_bytes: u64,
        cache_bytes: u64,
        events: Events,
        recovered: Recovered,
    ) -> Shared {
        let core = Core {
            index: recovered.index,
            files: recovered.files.into_iter().collect(),
            ended: None,
            written: recovered.end,
            pending: Batch::after(recovered.batch - 1, recovered.end, segment_bytes),
            writing: BTreeMap::new(),
            committed: BTreeMap::new(),
            closing: false,
            closers: Vec::new(),
        };
        Shared { disk, dir: dir.to_string(), segment_bytes, cache_bytes, events, core: Mutex::new(core) }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("no code that holds the lock panics")
    }
}

impl Core {
    /// Whether changes are taken.
    pub(super) fn check(&self) -> Result<()> {
        match &self.ended {
            Some(err) => Err(err.clone()),
            None if self.closing => Err(Error::Stopped),
            None => Ok(()),
        }
    }

    /// Adds an entry, which must be the next one of its replica.
    pub(super) fn append(&mut self, replica: ReplicaId, id: LogId, payload: Bytes, crc: u32) {
        self.push(replica, Change::Entry(id), payload, crc);
        self.pending.entries.insert(replica, id);
    }

    pub(super) fn save_vote(&mut self, replica: ReplicaId, vote: Vote) {
        self.change(replica, Change::Vote(vote));
        self.pending.votes.push((replica, vote));
    }

    pub(super) fn save_committed(&mut self, replica: ReplicaId, upto: LogId) {
        self.committed.insert(replica, upto);
    }

    /// What was saved, even if no record says it yet.
    pub(super) fn committed(&self, replica: ReplicaId) -> Option<LogId> {
        self.committed.get(&replica).copied()
    }

    /// Takes the entries from index `from` on out; whether there were any.
    pub(super) fn truncate(&mut self, replica: ReplicaId, from: u64) -> bool {
        if self.index.is_empty(replica) || from >= self.index.next(replica) {
            return false;
        }
        self.change(replica, Change::Truncate { from });
        // What is still to be reported durable must not name an entry that is gone. The one before it was written
        // before it, so it is durable then.
        let last = if self.index.is_empty(replica) { None } else { self.index.state(replica).last };
        for durable in [&mut self.pending.entries, &mut self.writing] {
            if durable.get(&replica).is_some_and(|upto| upto.index >= from) {
                match last {
                    Some(last) => durable.insert(replica, last),
                    None => durable.remove(&replica),
                };
            }
        }
        true
    }

    /// Lets the log of a replica begin after `upto`; whether it began before.
    pub(super) fn purge(&mut self, replica: ReplicaId, upto: LogId) -> bool {
        if self.index.state(replica).purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        self.change(replica, Change::Purge(upto));
        true
    }

    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.change(replica, Change::Forget);
        self.committed.remove(&replica);
        self.pending.entries.remove(&replica);
        self.writing.remove(&replica);
    }

    /// Answers when everything that was submitted so far is durable.
    pub(super) fn wait(&mut self) -> oneshot::Receiver<Result<()>> {
        let (done, waiting) = oneshot::channel();
        self.pending.waiting.push(done);
        waiting
    }

    /// Takes no further change. Answers when what was submitted is written and the task has ended; none if it has.
    pub(super) fn close(&mut self) -> Option<oneshot::Receiver<Result<()>>> {
        if self.ended.is_some() {
            return None;
        }
        // Committed positions alone would not make a batch.
        drop(self.wait());
        self.closing = true;
        let (done, closed) = oneshot::channel();
        self.closers.push(done);
        Some(closed)
    }

    fn change(&mut self, replica: ReplicaId, change: Change) {
        self.push(replica, change, Bytes::new(), crc32fast::hash(&[]));
    }

    fn push(&mut self, replica: ReplicaId, change: Change, payload: Bytes, payload_crc: u32) {
        let place = Place { segment: self.pending.start.segment, offset: self.pending.end };
        let len = payload.len() as u32;
        let bytes = matches!(change, Change::Entry(_)).then(|| payload.clone());
        let applied =
            self.index.apply(replica, &change, place, Payload { len, crc: payload_crc, is_rotten: false, bytes });
        debug_assert_eq!(applied, Ok(()), "checked before it is submitted");
        self.pending.push(Record::Change(replica, change), payload, payload_crc);
    }

    /// The batch to write next. None if nobody waits for anything.
    fn take(&mut self, segment_bytes: u64) -> Option<Batch> {
        if self.pending.waiting.is_empty() || self.ended.is_some() {
            return None;
        }
        for (replica, upto) in mem::take(&mut self.committed) {
            self.change(replica, Change::Committed(upto));
        }
        let current = self.pending.start.segment;
        let oldest = *self.files.first_key_value().expect("a log has a segment").0;
        let trim = self.index.deletable(current);
        if trim >= oldest {
            for (replica, change) in self.index.restate(trim) {
                self.change(replica, change);
            }
            self.pending.push(Record::Trim(trim), Bytes::new(), crc32fast::hash(&[]));
            self.pending.trim = Some(trim);
        }
        let end = Place { segment: current, offset: self.pending.end };
        // A batch without records takes no number: numbers have no gaps.
        let number = if self.pending.records.is_empty() { self.pending.number - 1 } else { self.pending.number };
        let mut batch = mem::replace(&mut self.pending, Batch::after(number, end, segment_bytes));
        self.writing = mem::take(&mut batch.entries);
        Some(batch)
    }
}

impl Batch {
    /// The batch after batch `number`, which ended at `end`.
    fn after(number: u64, end: Place, segment_bytes: u64) -> Batch {
        let full = end.offset >= segment_bytes;
        let start = if full { Place { segment: end.segment + 1, offset: 0 } } else { end };
        let mut batch = Batch {
            number: number + 1,
            start,
            end: start.offset,
            records: Vec::new(),
            entries: BTreeMap::new(),
            votes: Vec::new(),
            waiting: Vec::new(),
            trim: None,
        };
        if full {
            batch.push(Record::Segment(start.segment), Bytes::new(), crc32fast::hash(&[]));
        }
        batch
    }

    fn push(&mut self, record: Record, payload: Bytes, payload_crc: u32) {
        self.end += record_len(payload.len() as u32);
        self.records.push(Pending { record, payload, payload_crc });
    }

    /// The bytes of all records, one after the other, into the empty `buffer`.
    fn encode(&self, buffer: &mut BytesMut) {
        buffer.reserve((self.end - self.start.offset) as usize);
        for (at, Pending { record, payload, payload_crc }) in self.records.iter().enumerate() {
            let place = Place { offset: self.start.offset + buffer.len() as u64, ..self.start };
            let last = at + 1 == self.records.len();
            let header = Header::new(record, self.number, last, payload.len() as u32, *payload_crc);
            buffer.put_slice(&header.encode(place));
            buffer.put_slice(payload);
        }
    }
}

/// Writes batches until no handle of the log is left, it is closed, or an operation fails.
pub(super) async fn run(shared: Arc<Shared>, mut wake: mpsc::Receiver<()>) {
    let result = write_batches(&shared, &mut wake).await;
    let (pending, closers) = {
        let mut core = shared.core();
        core.ended = Some(result.as_ref().err().unwrap_or(&Error::Stopped).clone());
        (mem::take(&mut core.pending.waiting), mem::take(&mut core.closers))
    };
    // Who does not wait any more does not want to know.
    for waiting in pending {
        let _ = waiting.send(result.clone());
    }
    for closer in closers {
        let _ = closer.send(result.clone());
    }
}

async fn write_batches(shared: &Shared, wake: &mut mpsc::Receiver<()>) -> Result<()> {
    let mut buffer = BytesMut::new();
    let mut is_last = false;
    loop {
        let batch = shared.core().take(shared.segment_bytes);
        let Some(mut batch) = batch else {
            if is_last {
                return Ok(());
            }
            // What was submitted before the end is found by one more look.
            is_last = shared.core().closing;
            is_last = is_last || wake.recv().await.is_none();
            continue;
        };
        let waiting = mem::take(&mut batch.waiting);
        let result = write(shared, &batch, &mut buffer).await;
        if let Err(err) = &result {
            // Before anybody hears of it: who hears of it must not be able to submit more.
            shared.core().ended = Some(err.clone());
        }
        for done in waiting {
            let _ = done.send(result.clone());
        }
        result?;
        if let Some(upto) = batch.trim {
            delete(shared, upto).await?;
        }
    }
}

/// Makes a batch durable, and then says so.
async fn write(shared: &Shared, batch: &Batch, buffer: &mut BytesMut) -> Result<()> {
    if !batch.records.is_empty() {
        let number = batch.start.segment;
        let path = path(&shared.dir, number);
        let io = |err| Error::io(&err, format!("write {path}"));
        let is_new = batch.start.offset == 0;
        if is_new {
            let file = shared.disk.open(&path, Open::Create).await.map_err(io)?;
            shared.core().files.insert(number, file);
        }
        let file = shared.core().files[&number].clone();
        batch.encode(buffer);
        let bytes = mem::take(buffer).freeze();
        file.write_at(batch.start.offset, bytes.clone()).await.map_err(io)?;
        if bytes.len() <= KEPT_BUFFER
            && let Ok(mut kept) = bytes.try_into_mut()
        {
            kept.clear();
            *buffer = kept;
        }
        file.sync().await.map_err(io)?;
        if is_new {
            shared.disk.sync_dir(&shared.dir).await.map_err(|err| Error::io(&err, format!("sync {}", shared.dir)))?;
        }
    }
    let mut core = shared.core();
    core.written = Place { segment: batch.start.segment, offset: batch.end };
    for &(replica, vote) in &batch.votes {
        shared.events.emit(|| Event::VoteSaved { replica, vote });
    }
    for (replica, upto) in mem::take(&mut core.writing) {
        shared.events.detail(|| Event::Durable { replica, upto });
    }
    let written = core.written;
    core.index.evict(shared.cache_bytes, written);
    Ok(())
}

/// Deletes the segments up to `upto`, which nobody needs. A gap in the row of segments would be damage, therefore each
/// is durably gone before the next one.
async fn delete(shared: &Shared, upto: u64) -> Result<()> {
    loop {
        let number = match shared.core().files.first_key_value() {
            Some((&number, _)) if number <= upto => number,
            _ => return Ok(()),
        };
        let path = path(&shared.dir, number);
        let io = |err| Error::io(&err, format!("delete {path}"));
        shared.disk.remove_file(&path).await.map_err(io)?;
        shared.disk.sync_dir(&shared.dir).await.map_err(io)?;
        shared.core().files.remove(&number);
    }
}
