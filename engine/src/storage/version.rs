//! The set of memtables and SSTs that reads see. Immutable: a change makes a new one, which the region puts in the place
//! of the old one at once; readers keep the one that they began with.
//!
//! The mutable memtable is shared between versions and grows; what a reader sees of it is bounded by the sequence that it
//! reads at.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::FileId;
use super::memtable::Memtable;
use super::merge::Merge;
use super::scan::Scan;
use super::sst::Sst;
use crate::error::Result;
use crate::types::{Key, LogId, Op, Schema, Sequence};

/// What a replica's rows are in, as of one moment.
#[derive(Clone, Debug)]
pub struct Version {
    /// The schema of rows to come.
    pub schema: Arc<Schema>,
    /// The schema as of `flushed`: what a compaction writes, so that no file knows of a change that is not durable yet.
    pub flushed_schema: Arc<Schema>,
    /// Takes the writes.
    pub mutable: Arc<Memtable>,
    /// Full ones, oldest first; a flush is writing them or is to.
    pub frozen: Vec<Arc<Memtable>>,
    /// Files, see [`FileMeta::level`](super::sst::FileMeta::level).
    pub ssts: BTreeMap<FileId, Arc<Sst>>,
    /// Everything up to here is in files.
    pub flushed: Option<LogId>,
    /// Sequence of the newest row that is in files.
    pub flushed_sequence: Sequence,
    /// The oldest sequence that can be read.
    pub oldest: Sequence,
    /// Grows when the rows are replaced as a whole (a snapshot, a truncation): work that was begun on another generation
    /// publishes nothing.
    pub generation: u64,
}

impl Version {
    /// The files that a manifest names, and nothing in memory.
    pub fn new(
        schema: Arc<Schema>,
        ssts: impl IntoIterator<Item = Sst>,
        flushed: Option<LogId>,
        flushed_sequence: Sequence,
        oldest: Sequence,
        generation: u64,
    ) -> Version {
        Version {
            mutable: Arc::new(Memtable::new(schema.clone())),
            flushed_schema: schema.clone(),
            schema,
            frozen: Vec::new(),
            ssts: ssts.into_iter().map(|sst| (sst.meta().id, Arc::new(sst))).collect(),
            flushed,
            flushed_sequence,
            oldest,
            generation,
        }
    }

    /// The mutable memtable, if it has rows, is frozen and another one takes the writes.
    pub fn with_frozen(&self) -> Version {
        let mut next = self.clone();
        if !self.mutable.is_empty() {
            next.frozen.push(self.mutable.clone());
            next.mutable = Arc::new(Memtable::new(self.schema.clone()));
        }
        next
    }

    /// Rows to come are of `schema`; those that are there stay as they were written.
    pub fn with_schema(&self, schema: Arc<Schema>) -> Version {
        let mut next = self.with_frozen();
        next.mutable = Arc::new(Memtable::new(schema.clone()));
        next.schema = schema;
        next
    }

    /// The rows of `written` are in the files `added`. None if one of the memtables is not frozen here: the flush was
    /// begun on another past and must not be published.
    pub fn with_flushed(
        &self,
        written: &[Arc<Memtable>],
        added: impl IntoIterator<Item = Sst>,
        flushed: Option<LogId>,
        flushed_sequence: Sequence,
        flushed_schema: Arc<Schema>,
    ) -> Option<Version> {
        let is_written = |memtable: &Arc<Memtable>| written.iter().any(|one| Arc::ptr_eq(one, memtable));
        if self.frozen.iter().filter(|memtable| is_written(memtable)).count() != written.len() {
            return None;
        }
        let mut next = self.clone();
        next.frozen.retain(|memtable| !is_written(memtable));
        next.ssts.extend(added.into_iter().map(|sst| (sst.meta().id, Arc::new(sst))));
        next.flushed = flushed;
        next.flushed_sequence = flushed_sequence;
        next.flushed_schema = flushed_schema;
        Some(next)
    }

    /// What the files `inputs` had that can be read at `oldest` or later is in the files `outputs`. None if one of the
    /// inputs is not here: the compaction was begun on another past and must not be published.
    pub fn with_compacted(
        &self,
        inputs: &[FileId],
        outputs: impl IntoIterator<Item = Sst>,
        oldest: Sequence,
    ) -> Option<Version> {
        let mut next = self.clone();
        for input in inputs {
            next.ssts.remove(input)?;
        }
        next.ssts.extend(outputs.into_iter().map(|sst| (sst.meta().id, Arc::new(sst))));
        next.oldest = next.oldest.max(oldest);
        Some(next)
    }

    /// The rows that `scan` asks for, in batches of at most `batch_rows`.
    pub fn scan(&self, scan: &Scan, batch_rows: usize) -> Result<Merge> {
        let memtables = self.memtables().cloned();
        Merge::visible(&self.schema, memtables, self.ssts.values().cloned(), scan, batch_rows)
    }

    /// For each of `keys`, in any order, the newest version that is not newer than `upto`, a tombstone too.
    pub async fn newest(&self, keys: &[Key], upto: Sequence) -> Result<Vec<Option<(Sequence, Op)>>> {
        let mut found: BTreeMap<&Key, Option<(Sequence, Op)>> = BTreeMap::new();
        for key in keys {
            let versions = self.memtables().filter_map(|memtable| memtable.newest(key, upto));
            found.insert(key, versions.max());
        }
        for sst in self.ssts.values() {
            let meta = sst.meta();
            let open = |key: &Key, known: &Option<(Sequence, Op)>| {
                *key >= meta.first_key
                    && *key <= meta.last_key
                    && known.is_none_or(|(sequence, _)| sequence < meta.last_sequence)
            };
            let wanted: Vec<Key> =
                found.iter().filter(|(key, known)| open(key, known)).map(|(key, _)| (*key).clone()).collect();
            if wanted.is_empty() {
                continue;
            }
            for (key, version) in wanted.iter().zip(sst.newest(&wanted, upto).await?) {
                let known = found.get_mut(key).expect("it was asked for");
                *known = (*known).max(version);
            }
        }
        Ok(keys.iter().map(|key| found[key]).collect())
    }

    /// Versions in memory.
    pub fn memtable_rows(&self) -> usize {
        self.memtables().map(|memtable| memtable.rows()).sum()
    }

    /// Memory of the memtables.
    pub fn memtable_bytes(&self) -> usize {
        self.memtables().map(|memtable| memtable.bytes()).sum()
    }

    /// Bytes of the files.
    pub fn sst_bytes(&self) -> u64 {
        self.ssts.values().map(|sst| sst.meta().bytes).sum()
    }

    /// The newest first.
    fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.mutable).chain(self.frozen.iter().rev())
    }
}
