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
use super::range::Hidden;
use super::rules::Rules;
use super::scan::Scan;
use super::sst::Sst;
use crate::error::Result;
use crate::types::{IndexDef, IndexId, Key, LogId, Op, Schema, Sequence, Value, decode_key};

/// What a replica's rows are in, as of one moment.
#[derive(Clone, Debug)]
pub struct Version {
    /// What reads go by, and rows to come.
    pub rules: Arc<Rules>,
    /// Takes the writes.
    pub mutable: Arc<Memtable>,
    /// Full ones, oldest first; a flush is writing them or is to.
    pub frozen: Vec<Arc<Memtable>>,
    /// Files, see [`FileMeta::level`](super::sst::FileMeta::level).
    pub ssts: BTreeMap<FileId, Arc<Sst>>,
    /// What the manifest says.
    pub flushed: Flushed,
    /// The oldest sequence whose versions are all here.
    pub oldest: Sequence,
    /// Grows when the rows are replaced as a whole (a snapshot, a truncation): work that was begun on another generation
    /// publishes nothing.
    pub generation: u64,
    /// A tree for each index, whose entries are its rows. They have the sequences of the rows that they stand for, and go when
    /// those do: what hides rows hides them.
    pub indexes: BTreeMap<IndexId, Version>,
}

/// What is durable in files, as of the last entry of which everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// That entry; none before the first flush.
    pub log_id: Option<LogId>,
    /// Sequence of the newest row.
    pub sequence: Sequence,
    /// The rules as of that entry: a compaction goes by them, so that no file knows of a change that is not durable yet.
    pub rules: Arc<Rules>,
    /// The oldest sequence that is pinned as of that entry.
    pub pinned: Option<Sequence>,
}

impl Flushed {
    /// The same of an index.
    fn of(&self, index: &IndexDef) -> Flushed {
        self.with(self.rules.of_index(index))
    }

    fn with(&self, rules: Rules) -> Flushed {
        Flushed { rules: Arc::new(rules), ..self.clone() }
    }
}

impl Version {
    /// The files that a manifest names, and nothing in memory.
    ///
    /// # Panics
    /// If one of them is of an index that is not there.
    pub fn new(flushed: Flushed, ssts: impl IntoIterator<Item = Sst>, oldest: Sequence, generation: u64) -> Version {
        let mut version = Version::empty(flushed, oldest, generation);
        let indexes = version.schema().indexes().to_vec();
        let tree = |index: &IndexDef| (index.id, Version::empty(version.flushed.of(index), oldest, generation));
        version.indexes = indexes.iter().map(tree).collect();
        version.add(ssts);
        version
    }

    fn empty(flushed: Flushed, oldest: Sequence, generation: u64) -> Version {
        Version {
            mutable: Arc::new(Memtable::new(flushed.rules.schema.clone())),
            rules: flushed.rules.clone(),
            frozen: Vec::new(),
            ssts: BTreeMap::new(),
            flushed,
            oldest,
            generation,
            indexes: BTreeMap::new(),
        }
    }

    fn add(&mut self, ssts: impl IntoIterator<Item = Sst>) {
        for sst in ssts {
            let tree = match sst.meta().index {
                None => &mut *self,
                Some(index) => self.indexes.get_mut(&index).expect("a file of an index that is there"),
            };
            tree.ssts.insert(sst.meta().id, Arc::new(sst));
        }
    }

    /// The tree of the rows, or of an index, if that is there.
    pub fn tree(&self, index: Option<IndexId>) -> Option<&Version> {
        match index {
            None => Some(self),
            Some(index) => self.indexes.get(&index),
        }
    }

    /// The rows, then the indexes.
    pub fn trees(&self) -> impl Iterator<Item = (Option<IndexId>, &Version)> {
        std::iter::once((None, self)).chain(self.indexes.iter().map(|(index, tree)| (Some(*index), tree)))
    }

    fn trees_mut(&mut self, mut change: impl FnMut(&mut Version)) {
        change(self);
        self.indexes.values_mut().for_each(change);
    }

    /// All files, of the indexes too.
    pub fn files(&self) -> impl Iterator<Item = &Arc<Sst>> {
        self.trees().flat_map(|(_, tree)| tree.ssts.values())
    }

    /// The columns of rows to come, their key and options.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.rules.schema
    }

    /// The oldest sequence that can be read.
    pub fn readable(&self) -> Sequence {
        self.oldest.max(self.rules.ranges.oldest)
    }

    /// The mutable memtable, if it has rows, is frozen and another one takes the writes.
    pub fn with_frozen(&self) -> Version {
        let mut next = self.clone();
        next.trees_mut(Version::freeze);
        next
    }

    fn freeze(&mut self) {
        if !self.mutable.is_empty() {
            let empty = Arc::new(Memtable::new(self.schema().clone()));
            self.frozen.push(std::mem::replace(&mut self.mutable, empty));
        }
    }

    /// Reads and rows to come go by `rules`; rows that are there stay as they were written. An index that is new begins empty;
    /// one that is not there any more goes, with its files.
    pub fn with_rules(&self, rules: Rules) -> Version {
        let mut next = self.clone();
        next.indexes.retain(|id, _| rules.schema.indexes().iter().any(|index| index.id == *id));
        for index in rules.schema.indexes() {
            let of_index = rules.of_index(index);
            let flushed = self.flushed.with(of_index.clone());
            let new = || Version::empty(flushed, self.oldest, self.generation);
            next.indexes.entry(index.id).or_insert_with(new).rules = Arc::new(of_index);
        }
        if rules.schema != self.rules.schema {
            next.freeze();
            next.mutable = Arc::new(Memtable::new(rules.schema.clone()));
        }
        next.rules = Arc::new(rules);
        next
    }

    /// The rows of `written` are in the files `added`. None if one of the memtables is not frozen here: the flush was
    /// begun on another past and must not be published.
    pub fn with_flushed(
        &self,
        written: &[Arc<Memtable>],
        added: impl IntoIterator<Item = Sst>,
        flushed: Flushed,
    ) -> Option<Version> {
        let is_written = |memtable: &Arc<Memtable>| written.iter().any(|one| Arc::ptr_eq(one, memtable));
        let frozen = self.trees().flat_map(|(_, tree)| &tree.frozen);
        if frozen.filter(|memtable| is_written(memtable)).count() != written.len() {
            return None;
        }
        let mut next = self.clone();
        next.trees_mut(|tree| tree.frozen.retain(|memtable| !is_written(memtable)));
        next.add(added);
        // One that was not there then has no files to go by it.
        for index in flushed.rules.schema.indexes() {
            if let Some(tree) = next.indexes.get_mut(&index.id) {
                tree.flushed = flushed.of(index);
            }
        }
        next.flushed = flushed;
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
            let mut taken = None;
            next.trees_mut(|tree| taken = taken.take().or(tree.ssts.remove(input)));
            taken?;
        }
        next.add(outputs);
        next.trees_mut(|tree| tree.oldest = tree.oldest.max(oldest));
        Some(next)
    }

    /// The rows that `scan` asks for, in batches of at most `batch_rows`.
    pub fn scan(&self, scan: &Scan, batch_rows: usize) -> Result<Merge> {
        let memtables = self.memtables().cloned();
        Merge::visible(&self.rules, memtables, self.ssts.values().cloned(), scan, batch_rows)
    }

    /// For each of `keys`, in any order, the newest version that is not newer than `upto`, a tombstone too. What is hidden
    /// is not there.
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
        let hidden = self.rules.ranges.upto(upto);
        let is_hidden = |key: &Key, sequence| hidden != Hidden::default() && hidden.hides(sequence, self.time_of(key));
        Ok(keys.iter().map(|key| found[key].filter(|(sequence, _)| !is_hidden(key, *sequence))).collect())
    }

    /// The time in a row key, in the unit of the TIME INDEX.
    fn time_of(&self, key: &Key) -> Option<i64> {
        let schema = self.schema();
        schema.time_index()?;
        let types: Vec<_> = schema.key().into_iter().map(|at| schema.columns()[at].column_type).collect();
        match decode_key(key, &types).ok()?.pop() {
            Some(Value::Timestamp(time)) => Some(time),
            _ => None,
        }
    }

    /// Versions in memory.
    pub fn memtable_rows(&self) -> usize {
        self.memtables().map(|memtable| memtable.rows()).sum()
    }

    /// Memory of the memtables, of the indexes too.
    pub fn memtable_bytes(&self) -> usize {
        self.trees().flat_map(|(_, tree)| tree.memtables()).map(|memtable| memtable.bytes()).sum()
    }

    /// Memory of the memtables that take the writes, of the indexes too.
    pub fn mutable_bytes(&self) -> usize {
        self.trees().map(|(_, tree)| tree.mutable.bytes()).sum()
    }

    /// Bytes of the files, of the indexes too.
    pub fn sst_bytes(&self) -> u64 {
        self.files().map(|sst| sst.meta().bytes).sum()
    }

    /// All memtables, the newest first.
    pub fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.mutable).chain(self.frozen.iter().rev())
    }
}
