//! The node's one log, in which all raft groups of the node write: it is the WAL.
//!
//! Files `<dir>/00000000000000000001.seg` and so on hold checksummed records (`record.rs`) in numbered batches
//! (`segment.rs`). One task writes (`writer.rs`): what was submitted while an fsync ran is the next batch, and one fsync
//! acknowledges it for all replicas. In memory there is, per replica, where each entry stands, and the payloads of
//! recent ones (`index.rs`); both are made anew at start (`replay.rs`).
//!
//! Invariants:
//! - A batch begins only after the fsync of the one before returned. So a bad record is a torn write if it is in the
//!   last batch, and damage otherwise: the log is cut there, or refuses to open. If no more than the payload of an entry is
//!   damaged, it is known which one that is ([`ReplicaLog::rotten`]): votes, and what was acknowledged, are not in doubt.
//! - Batch numbers and segment numbers have no gaps: what is missing is noticed.
//! - What is read back after any crash is what a prefix of the submitted changes makes, and all acknowledged ones are
//!   in it. Changes take effect in memory in the order in which they are written.
//! - The first failed write or fsync is the last: every later call answers its error, and the owner opens the log anew.
//! - A segment is deleted with all before it, when no wanted entry stands in them, and after what else only they say
//!   was durably said again.
//!
//! Not here: what an entry means, when a log is purged (a flush decides), repair of damage (`region::damage`; of a log that
//! does not open, the replicas are replaced), and a guard against two processes that open one log (the node's identity file is).

mod index;
mod record;
mod replay;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Disk, File};
use crate::error::{Error, Invalid, Result};
use crate::event::{Event, Events};
use crate::options::Options;
use crate::types::{LogId, ReplicaId, Vote};
use index::Slot;
use record::{Change, HEADER, Header, Place, Record, record_len};
use writer::{Core, Shared};

/// Reading so many bytes that are not wanted costs less than another read.
const READ_GAP: u64 = 16 << 10;

/// The log of a node. When the last handle of it is gone, what was submitted is still written, then its task ends.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    /// Tells the task that there is something to write; it ends when this is gone.
    wake: mpsc::Sender<()>,
}

/// The log of one replica. Clones are the same log.
#[derive(Clone, Debug)]
pub struct ReplicaLog {
    log: Arc<Log>,
    replica: ReplicaId,
}

/// An entry of a replica's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub id: LogId,
    /// What it says; the log does not look into it.
    pub payload: Bytes,
}

/// What a replica's log says, its entries aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that was taken away at the front: the log begins after it.
    pub purged: Option<LogId>,
    /// The last entry; the purged one if there is none.
    pub last: Option<LogId>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last committed entry that was saved. After a crash it may be an older one, but never one that is not there.
    pub committed: Option<LogId>,
}

/// Resolves when the change, and all that were submitted before it, are durable; or with the error that ended the log.
/// The change is made whether or not anybody waits for this.
#[derive(Debug)]
#[must_use = "nothing is durable before this resolves"]
pub struct Flushed(Waiting);

#[derive(Debug)]
enum Waiting {
    For(oneshot::Receiver<Result<()>>),
    Refused(Error),
}

impl Log {
    /// Opens the log in the folder `dir` of `disk`, makes it if there is none, repairs a torn end. [`Error::Damaged`]
    /// if something that was durable is not there; then nothing was changed.
    pub async fn open(disk: Arc<dyn Disk>, dir: &str, options: &Options, events: Events) -> Result<Arc<Log>> {
        let recovered = replay::recover(&*disk, dir).await?;
        let (segments, torn_bytes, rotten) = (recovered.files.len() as u64, recovered.torn_bytes, recovered.rotten);
        let (segment_bytes, cache_bytes) = (options.log_segment_bytes, options.log_cache_bytes);
        let shared = Arc::new(Shared::new(disk, dir, segment_bytes, cache_bytes, events, recovered));
        shared.events.emit(|| Event::LogOpened { segments, torn_bytes, rotten });
        // What was found is durable by now, also what its writer was never told so.
        let found: Vec<_> = {
            let core = shared.core();
            let replicas = core.index.replicas();
            replicas.into_iter().map(|replica| (replica, core.index.state(replica))).collect()
        };
        for (replica, state) in found {
            if let Some(upto) = state.last.filter(|last| Some(*last) > state.purged) {
                shared.events.detail(|| Event::Durable { replica, upto });
            }
        }
        let (wake, woken) = mpsc::channel(1);
        tokio::spawn(writer::run(shared.clone(), woken));
        Ok(Arc::new(Log { shared, wake }))
    }

    /// The replicas that the log holds something of and that were not forgotten.
    pub fn replicas(&self) -> Vec<ReplicaId> {
        self.shared.core().index.replicas()
    }

    /// The log of one replica, which may be a new one.
    pub fn replica(self: &Arc<Self>, replica: ReplicaId) -> ReplicaLog {
        ReplicaLog { log: self.clone(), replica }
    }

    /// Why the log takes nothing any more: the error that every call answers. None while it works.
    pub fn error(&self) -> Option<Error> {
        self.shared.core().check().err()
    }

    /// Writes what was submitted, then ends the log: further calls answer [`Error::Stopped`]. When this returns, nothing
    /// of it touches the disk any more, and another one may be opened.
    pub async fn close(&self) -> Result<()> {
        let closed = self.shared.core().close();
        let _ = self.wake.try_send(());
        match (closed, self.error()) {
            (Some(closed), _) => Flushed(Waiting::For(closed)).await,
            (None, None | Some(Error::Stopped)) => Ok(()),
            (None, Some(err)) => Err(err),
        }
    }

    /// Makes a change under the lock, if the log takes any, and wakes the task.
    fn submit<T>(&self, change: impl FnOnce(&mut Core) -> T) -> Result<T> {
        let mut core = self.shared.core();
        core.check()?;
        let done = change(&mut core);
        drop(core);
        // Full means that the task will look anyway; closed, that it saw the end of the log and told who waits.
        let _ = self.wake.try_send(());
        Ok(done)
    }

    fn flushed(&self, change: impl FnOnce(&mut Core)) -> Flushed {
        let waiting = self.submit(|core| {
            change(core);
            core.wait()
        });
        Flushed(match waiting {
            Ok(receiver) => Waiting::For(receiver),
            Err(err) => Waiting::Refused(err),
        })
    }
}

impl ReplicaLog {
    /// Whose log it is.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// What the log says, changes that are not durable yet included.
    pub fn state(&self) -> LogState {
        let core = self.log.shared.core();
        let mut state = core.index.state(self.replica);
        state.committed = core.committed(self.replica).or(state.committed);
        state
    }

    /// Adds entries at the end. They can be read at once.
    ///
    /// # Panics
    ///
    /// If the first one is not the next (index 0, or one more than the last one's), or they are not consecutive: raft
    /// would have lost its log.
    pub fn append(&self, entries: Vec<Entry>) -> Flushed {
        // Checksums and the look at the sizes need no lock.
        let mut checked = Vec::with_capacity(entries.len());
        for entry in entries {
            if u32::try_from(entry.payload.len()).is_err() {
                let message = format!("entry {} of {} bytes: at most {}", entry.id, entry.payload.len(), u32::MAX);
                return Flushed(Waiting::Refused(Error::invalid(Invalid::Request, message)));
            }
            let crc = crc32fast::hash(&entry.payload);
            checked.push((entry, crc));
        }
        let replica = self.replica;
        let mut hole = None;
        let flushed = self.log.flushed(|core| {
            let next = core.index.next(replica);
            let gap = checked.iter().zip(next..).find(|((entry, _), due)| entry.id.index != *due);
            if let Some(((entry, _), due)) = gap {
                hole = Some(format!("entry {} of replica {replica} where index {due} is due", entry.id));
                return;
            }
            for (entry, crc) in &checked {
                core.append(replica, entry.id, entry.payload.clone(), *crc);
            }
            if !checked.is_empty() {
                let digest = |(entry, crc): &(Entry, u32)| (entry.id, u64::from(*crc));
                let events = &self.log.shared.events;
                events.detail(|| Event::Appended { replica, entries: checked.iter().map(digest).collect() });
            }
        });
        // Not under the lock: the other replicas' logs are sound.
        assert!(hole.is_none(), "{}", hole.unwrap_or_default());
        flushed
    }

    /// The newest entry that is there and known not to be as it was written, and the damage. It and those before it are not to
    /// be read any more: the replica needs what they did from elsewhere.
    pub fn rotten(&self) -> Option<(LogId, Error)> {
        let (id, place) = self.log.shared.core().index.rotten(self.replica)?;
        Some((id, self.damage(id, place)))
    }

    fn damage(&self, id: LogId, place: Place) -> Error {
        let message = format!("offset {}: not entry {id} of replica {} as it was written", place.offset, self.replica);
        Error::Damaged { file: replay::path(&self.log.shared.dir, place.segment), message }
    }

    /// Saves the replica's promise.
    pub fn save_vote(&self, vote: Vote) -> Flushed {
        self.log.flushed(|core| core.save_vote(self.replica, vote))
    }

    /// Saves how far entries are committed. It becomes durable with the next change of any replica.
    pub fn save_committed(&self, upto: LogId) -> Result<()> {
        let mut core = self.log.shared.core();
        core.check()?;
        core.save_committed(self.replica, upto);
        self.log.shared.events.detail(|| Event::Committed { replica: self.replica, upto });
        Ok(())
    }

    /// Takes the entries after `last` away; all of them for none. Reads see it at once.
    pub fn truncate_after(&self, last: Option<LogId>) -> Flushed {
        self.log.flushed(|core| self.truncate(core, last.map_or(0, |last| last.index + 1)))
    }

    fn truncate(&self, core: &mut Core, from: u64) {
        let replica = self.replica;
        if core.truncate(replica, from) {
            let last = core.index.state(replica).last;
            self.log.shared.events.emit(|| Event::Truncated { replica, last });
        }
    }

    /// Takes the entries up to `upto` away; the log begins after it, even if it did not come that far. Reads see it at
    /// once. Files go when no other replica needs them.
    pub fn purge(&self, upto: LogId) -> Flushed {
        let replica = self.replica;
        self.log.flushed(|core| {
            // Another entry stands at that index: all that follows it follows from what never was.
            let standing = core.index.log_id(replica, upto.index).filter(|id| id.index >= core.index.first(replica));
            if standing.is_some_and(|id| id != upto) {
                self.truncate(core, upto.index);
            }
            if core.purge(replica, upto) {
                self.log.shared.events.emit(|| Event::Purged { replica, upto });
            }
        })
    }

    /// Forgets the replica: its entries, its vote, that it was here. For a replica that was removed for ever.
    pub fn forget(&self) -> Flushed {
        self.log.flushed(|core| core.forget(self.replica))
    }

    /// The entry at `index`; the purged one too if it was the last of those.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        self.log.shared.core().index.log_id(self.replica, index)
    }

    /// The entries with indexes in `range`, in order and without gaps, from the first one that is there on. It stops
    /// before the payloads together are larger than `max_bytes`, but after one entry at the earliest.
    pub async fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>> {
        let plan = self.plan(range, max_bytes)?;
        let mut entries = Vec::new();
        for part in plan {
            match part {
                Part::Cached(entry) => entries.push(entry),
                Part::Stored(run) => self.read_run(run, &mut entries).await?,
            }
        }
        Ok(entries)
    }

    /// What is to be read from where. Files that are deleted meanwhile stay readable, they are open.
    fn plan(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Part>> {
        let core = self.log.shared.core();
        if let Some(err) = &core.ended {
            return Err(err.clone());
        }
        let mut plan: Vec<Part> = Vec::new();
        let mut bytes = 0;
        for index in range.start.max(core.index.first(self.replica))..range.end {
            let Some((slot, cached)) = core.index.entry(self.replica, index) else { break };
            bytes += u64::from(slot.payload_len);
            if bytes > max_bytes && !plan.is_empty() {
                break;
            }
            let id = LogId { term: slot.term, index };
            match (cached, plan.last_mut()) {
                (Some(payload), _) => plan.push(Part::Cached(Entry { id, payload })),
                (None, Some(Part::Stored(run))) if run.is_near(slot.place) => run.entries.push((id, slot)),
                (None, _) => {
                    let file = core.files[&slot.place.segment].clone();
                    plan.push(Part::Stored(Run { file, start: slot.place, entries: vec![(id, slot)] }));
                }
            }
        }
        Ok(plan)
    }

    async fn read_run(&self, run: Run, entries: &mut Vec<Entry>) -> Result<()> {
        let path = replay::path(&self.log.shared.dir, run.start.segment);
        let len = run.end().offset - run.start.offset;
        let bytes = run.file.read_at(run.start.offset, len as usize).await;
        let bytes = bytes.map_err(|err| Error::io(&err, format!("read {path}")))?;
        for (id, slot) in &run.entries {
            let at = (slot.place.offset - run.start.offset) as usize;
            let Some(payload) = self.payload(&bytes, at, *id, slot) else {
                self.log.shared.core().index.found_rotten(self.replica, *id);
                return Err(self.damage(*id, slot.place));
            };
            entries.push(Entry { id: *id, payload });
        }
        Ok(())
    }

    /// The payload of the record at `at` of `bytes`, if it is the one that was written.
    fn payload(&self, bytes: &Bytes, at: usize, id: LogId, slot: &Slot) -> Option<Bytes> {
        let header = Header::decode(bytes.get(at..)?.first_chunk()?, slot.place)?;
        let from = at + HEADER;
        let payload = bytes.get(from..from + slot.payload_len as usize)?;
        let same = header.record() == Ok(Record::Change(self.replica, Change::Entry(id)))
            && header.payload_crc == slot.payload_crc
            && crc32fast::hash(payload) == slot.payload_crc;
        same.then(|| bytes.slice_ref(payload))
    }
}

/// A piece of what a read answers.
#[derive(Debug)]
enum Part {
    Cached(Entry),
    Stored(Run),
}

/// Entries that stand near each other in a file, so that one read gets them all.
#[derive(Debug)]
struct Run {
    file: Arc<dyn File>,
    start: Place,
    /// Never empty.
    entries: Vec<(LogId, Slot)>,
}

impl Run {
    fn is_near(&self, place: Place) -> bool {
        let end = self.end();
        place.segment == end.segment && place.offset - end.offset <= READ_GAP
    }

    fn end(&self) -> Place {
        let (_, last) = self.entries.last().expect("a run has an entry");
        Place { offset: last.place.offset + record_len(last.payload_len), ..last.place }
    }
}

impl Future for Flushed {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            // The task is gone without a word only if the whole node is.
            Waiting::For(receiver) => {
                Pin::new(receiver).poll(context).map(|answer| answer.unwrap_or(Err(Error::Stopped)))
            }
            Waiting::Refused(err) => Poll::Ready(Err(err.clone())),
        }
    }
}
