//! Rows that are not in a file yet: the batches as they were written, and an index over their versions in key order.
//!
//! One writer (apply) and any number of readers. A memtable only ever grows, and every new version has a greater sequence
//! than those before: a reader that takes versions up to a sequence sees the same rows however long it reads. A frozen
//! memtable is one that nobody writes to any more.
//!
//! Not here: when it is full, and which sequences readers may ask for; both are the region's.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arrow::array::{Array, RecordBatch};
use arrow::error::ArrowError;

use super::rows::{Rows, cell_bytes, gather, timestamps};
use super::scan::Plan;
use super::shape::Shape;
use crate::types::{Key, Op, Schema, Sequence, encode_keys};

/// The versions of one key stand together, the newest first.
type InternalKey = (Key, Reverse<Sequence>);

/// Versions of rows in memory.
#[derive(Debug)]
pub struct Memtable {
    schema: Arc<Schema>,
    content: RwLock<Content>,
}

#[derive(Debug, Default)]
struct Content {
    index: BTreeMap<InternalKey, Slot>,
    batches: Vec<Arc<RecordBatch>>,
    /// Of each batch the sequence of its first row: the others follow.
    firsts: Vec<Sequence>,
    bytes: usize,
    /// Least and greatest.
    sequences: Option<(Sequence, Sequence)>,
    /// Earliest and latest, in the unit of the TIME INDEX.
    times: Option<(i64, i64)>,
}

/// Where a version's row is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    op: Op,
    batch: u32,
    row: u32,
}

impl Memtable {
    /// An empty memtable for rows of `schema`.
    pub fn new(schema: Arc<Schema>) -> Memtable {
        Memtable { schema, content: RwLock::default() }
    }

    /// The schema of the rows in it.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Adds one version for each row of `batch`; row `i` gets the sequence `first + i`. The batch is whole rows of the
    /// table, of a tombstone the key columns only; `keys` are theirs.
    ///
    /// # Panics
    /// If `batch`, `keys` and `ops` differ in length, or `first` is not greater than every sequence in the memtable.
    pub fn write(&self, batch: RecordBatch, keys: Vec<Key>, ops: &[Op], first: Sequence) {
        let before = self.sequences();
        assert!(before.is_none_or(|(_, newest)| newest < first), "{first} is not newer than {before:?}");
        let sequences: Vec<Sequence> = (0..keys.len() as u64).map(|row| Sequence(first.0 + row)).collect();
        self.add(batch, keys, ops, &sequences);
    }

    /// Adds one version for each row of `batch`, each with its own sequence: entries of an index have those of the rows that
    /// they stand for, also of rows that were written long ago. No key may get two versions of one sequence.
    ///
    /// # Panics
    /// If `batch`, `keys`, `ops` and `sequences` differ in length.
    pub fn add(&self, batch: RecordBatch, keys: Vec<Key>, ops: &[Op], sequences: &[Sequence]) {
        let rows = (batch.num_rows(), batch.num_rows(), batch.num_rows());
        assert_eq!(rows, (keys.len(), ops.len(), sequences.len()), "one key, one op and one sequence a row");
        let (Some(first), Some(last)) = (sequences.iter().min().copied(), sequences.iter().max().copied()) else {
            return;
        };
        let mut content = self.lock();
        content.sequences = Some(match content.sequences {
            Some((oldest, newest)) => (oldest.min(first), newest.max(last)),
            None => (first, last),
        });
        if let Some(at) = self.schema.time_index() {
            let times = timestamps(batch.column(at));
            let min = times.iter().copied().min().expect("there are rows");
            let max = times.iter().copied().max().expect("there are rows");
            content.times = Some(content.times.map_or((min, max), |(least, most)| (least.min(min), most.max(max))));
        }
        content.bytes += batch_bytes(&batch) + keys.iter().map(|key| key.0.len() + ENTRY_BYTES).sum::<usize>();
        let number = u32::try_from(content.batches.len()).expect("a memtable is flushed long before 2^32 writes");
        content.batches.push(Arc::new(batch));
        content.firsts.push(first);
        for (row, ((key, op), sequence)) in keys.into_iter().zip(ops).zip(sequences).enumerate() {
            let slot = Slot { op: *op, batch: number, row: row as u32 };
            content.index.insert((key, Reverse(*sequence)), slot);
        }
    }

    /// The newest version of `key` that is not newer than `upto`.
    pub fn newest(&self, key: &Key, upto: Sequence) -> Option<(Sequence, Op)> {
        let content = self.content();
        let ((found, Reverse(sequence)), slot) = content.index.range((key.clone(), Reverse(upto))..).next()?;
        (found == key).then_some((*sequence, slot.op))
    }

    /// The keys of the versions behind `since`, up to `upto`, as they were written. Of rows that were [written](Memtable::write).
    pub fn written(&self, since: Sequence, upto: Sequence) -> Vec<Key> {
        let content = self.content();
        let from = content.firsts.partition_point(|first| *first <= since).saturating_sub(1);
        let to = content.firsts.partition_point(|first| *first <= upto);
        let mut keys = Vec::new();
        for at in from..to.max(from) {
            let (batch, first) = (&content.batches[at], content.firsts[at].0);
            let rows = batch.num_rows() as u64;
            let start = (since.0 + 1).saturating_sub(first).min(rows);
            let end = (upto.0 + 1 - first).min(rows).max(start);
            keys.extend(encode_keys(&batch.slice(start as usize, (end - start) as usize), &self.schema.key()));
        }
        keys
    }

    /// Versions in it.
    pub fn rows(&self) -> usize {
        self.content().index.len()
    }

    /// Whether it has no versions.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Memory that it takes: cells, keys, index. What the batches' buffers hold beyond their own rows is not known here.
    pub fn bytes(&self) -> usize {
        self.content().bytes
    }

    /// The oldest and the newest sequence in it.
    pub fn sequences(&self) -> Option<(Sequence, Sequence)> {
        self.content().sequences
    }

    /// The least and the greatest key in it.
    pub fn keys(&self) -> Option<(Key, Key)> {
        let content = self.content();
        let ((first, _), _) = content.index.first_key_value()?;
        let ((last, _), _) = content.index.last_key_value()?;
        Some((first.clone(), last.clone()))
    }

    /// The earliest and the latest time in it, in the unit of the TIME INDEX; none without rows or TIME INDEX.
    pub fn times(&self) -> Option<(i64, i64)> {
        self.content().times
    }

    // A panic while the lock is held leaves at worst a batch that no index entry names.
    fn content(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An index entry: B-tree nodes are between half full and full.
const ENTRY_BYTES: usize = (size_of::<InternalKey>() + size_of::<Slot>()) * 3 / 2;

fn batch_bytes(batch: &RecordBatch) -> usize {
    let structs = |column: &arrow::array::ArrayRef| column.get_array_memory_size() - column.get_buffer_memory_size();
    cell_bytes(batch) + size_of::<RecordBatch>() + batch.columns().iter().map(structs).sum::<usize>()
}

/// Reads a memtable in order, a batch at a time, without a lock in between.
#[derive(Debug)]
pub(crate) struct MemtableScan {
    memtable: Arc<Memtable>,
    plan: Arc<Plan>,
    shape: Shape,
    /// What was written later is not seen.
    upto: Sequence,
    may_hide: bool,
    from: Bound<InternalKey>,
}

impl MemtableScan {
    pub(crate) fn new(memtable: Arc<Memtable>, plan: Arc<Plan>) -> MemtableScan {
        let (oldest, newest) = memtable.sequences().unwrap_or_default();
        let may_hide = plan.hidden.hides(oldest, memtable.times().map(|(earliest, _)| earliest));
        let from = Bound::Included((plan.range.from.clone(), Reverse(Sequence(u64::MAX))));
        let shape = Shape::of(&memtable.schema, &plan.rules.schema, &plan);
        MemtableScan { upto: plan.upto.min(newest), memtable, plan, shape, may_hide, from }
    }

    /// Nothing that comes is less than this key.
    pub(crate) fn lower_bound(&self) -> Key {
        self.plan.range.from.clone()
    }

    /// The next rows; none: that was all.
    pub(crate) fn next(&mut self) -> Result<Option<Rows>, ArrowError> {
        loop {
            let Some(rows) = self.read()? else { return Ok(None) };
            let rows = self.plan.admitted(rows, self.may_hide)?;
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
    }

    fn read(&mut self) -> Result<Option<Rows>, ArrowError> {
        if let Some(only) = self.plan.only.clone() {
            return self.read_only(&only);
        }
        let (mut keys, mut sequences, mut ops) = (Vec::new(), Vec::new(), Vec::new());
        let mut picked = Vec::new();
        let mut batches = Vec::new();
        // Batches in use by their number, and where they stand in `batches`.
        let mut places = BTreeMap::new();
        {
            let content = self.memtable.content();
            for ((key, Reverse(sequence)), slot) in content.index.range((self.from.clone(), Bound::Unbounded)) {
                if keys.len() == self.plan.batch_rows
                    || self.plan.range.below.as_ref().is_some_and(|below| key >= below)
                {
                    break;
                }
                if *sequence > self.upto {
                    continue;
                }
                let place = *places.entry(slot.batch).or_insert_with(|| {
                    batches.push(content.batches[slot.batch as usize].clone());
                    batches.len() - 1
                });
                picked.push((place, slot.row as usize));
                keys.push(key.clone());
                sequences.push(*sequence);
                ops.push(slot.op);
            }
        }
        let (Some(key), Some(sequence)) = (keys.last(), sequences.last()) else { return Ok(None) };
        self.from = Bound::Excluded((key.clone(), Reverse(*sequence)));
        self.rows(&batches, &picked, keys, sequences, ops).map(Some)
    }

    /// The same where few keys count: each is looked up.
    fn read_only(&mut self, only: &[Key]) -> Result<Option<Rows>, ArrowError> {
        let (mut keys, mut sequences, mut ops) = (Vec::new(), Vec::new(), Vec::new());
        let mut picked = Vec::new();
        let mut batches = Vec::new();
        let mut places = BTreeMap::new();
        {
            let content = self.memtable.content();
            let (from, is_behind) = match &self.from {
                Bound::Included((key, _)) => (only.partition_point(|one| one < key), false),
                Bound::Excluded((key, _)) => (only.partition_point(|one| one < key), true),
                Bound::Unbounded => (0, false),
            };
            for (at, key) in only[from..].iter().enumerate() {
                // A batch ends between keys, unless one has more versions than fit.
                if keys.len() >= self.plan.batch_rows
                    || self.plan.range.below.as_ref().is_some_and(|below| key >= below)
                {
                    break;
                }
                let start = match &self.from {
                    Bound::Excluded(behind) if is_behind && at == 0 && behind.0 == *key => {
                        Bound::Excluded(behind.clone())
                    }
                    _ => Bound::Included((key.clone(), Reverse(Sequence(u64::MAX)))),
                };
                for ((found, Reverse(sequence)), slot) in content.index.range((start, Bound::Unbounded)) {
                    if found != key {
                        break;
                    }
                    if *sequence > self.upto {
                        continue;
                    }
                    let place = *places.entry(slot.batch).or_insert_with(|| {
                        batches.push(content.batches[slot.batch as usize].clone());
                        batches.len() - 1
                    });
                    picked.push((place, slot.row as usize));
                    keys.push(key.clone());
                    sequences.push(*sequence);
                    ops.push(slot.op);
                }
            }
        }
        let (Some(key), Some(sequence)) = (keys.last(), sequences.last()) else { return Ok(None) };
        self.from = Bound::Excluded((key.clone(), Reverse(*sequence)));
        self.rows(&batches, &picked, keys, sequences, ops).map(Some)
    }

    fn rows(
        &self,
        batches: &[Arc<RecordBatch>],
        picked: &[(usize, usize)],
        keys: Vec<Key>,
        sequences: Vec<Sequence>,
        ops: Vec<Op>,
    ) -> Result<Rows, ArrowError> {
        let batches: Vec<&RecordBatch> = batches.iter().map(Arc::as_ref).collect();
        let read = gather(&batches, picked, &self.shape.read, &self.shape.read_schema)?;
        let batch = self.shape.make(read, &ops, &self.plan)?;
        Ok(Rows { batch, keys, sequences, ops })
    }
}
