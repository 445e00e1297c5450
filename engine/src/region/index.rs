//! Indexes of a region: its rows once more, as entries in another order.
//!
//! An index has a tree of its own ([`Version::indexes`](crate::storage::version::Version)) in the same files' folder, the same
//! manifest, the same snapshot; an entry of it has the columns that the index is ordered by, then the row key, and the sequence of
//! the row that it stands for. What hides rows (a truncation, an expiry) hides their entries by the same rule.
//!
//! From the entry of the log that has the index (an ALTER of the schema) on, applying a write writes the entries too: that of the
//! new row, and a tombstone for that of the old one, where it is another. What was there before comes by a *backfill*: whoever leads
//! reads the rows once, in key order, and logs them in chunks; the cursor stands in the same entry as the chunk that it follows.
//! Applying a chunk leaves out each row that is not the newest of its key any more: its entry was written by whoever changed it, or
//! must not be there. So there is one round, whatever is written meanwhile, and whoever leads next goes on at the cursor.
//!
//! An index answers reads at the sequence at which its backfill was through, and later ones: of rows that were changed before that
//! it has the newest versions only. Whatever it cannot answer is read as if it was not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch, interleave};
use arrow::error::ArrowError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::encode_outcome;
use super::request::{IndexCheck, IndexStatus, WriteAnswer};
use super::{Region, State};
use crate::error::{Error, Invalid, IoKind, Result};
use crate::event::Event;
use crate::storage::merge::Limit;
use crate::storage::rows::Rows;
use crate::storage::scan::Scan;
use crate::storage::version::Version;
use crate::types::{
    ColumnId, IndexDef, IndexId, Key, LogId, MergeMode, Op, Position, Predicate, Schema, Sequence, decode_batch,
    encode_batch, encode_keys, index_column, key_column,
};

/// How far the backfill of an index is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfill {
    /// The rows up to this key are in the index; none: before the first one.
    pub cursor: Option<Key>,
    /// All rows are, of reads at this sequence and later ones; none: not yet.
    pub complete: Option<Sequence>,
    /// Rows that were read for it.
    pub rows: u64,
    /// The term of the leader whose chunk was taken last; 0: none was yet.
    pub term: u64,
    /// How often a leader went on where another one was stopped.
    pub takeovers: u64,
    /// Chunks that did not begin where the backfill was.
    pub retries: u64,
}

/// A chunk of a backfill, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The index.
    pub index: IndexId,
    /// The term of the leader that read it.
    pub term: u64,
    /// Where the backfill must be.
    pub from: Option<Key>,
    /// Where it is then; none: it is through.
    pub to: Option<Key>,
    /// Entries by [`encode_batch`].
    pub entries: Bytes,
    /// Of each the sequence of its row when that was read.
    pub sequences: Vec<Sequence>,
}

/// Entries to write for the rows of a write.
pub(super) struct Entries {
    index: IndexId,
    batch: RecordBatch,
    keys: Vec<Key>,
    ops: Vec<Op>,
    /// Which row of the write each is of.
    rows: Vec<usize>,
}

/// Where the cells of a row's indexed columns are: in which batch (0: what is there; 1: what is written), in which row of it.
type Cells = Vec<(usize, usize)>;

impl Region {
    /// How far the indexes are.
    pub fn index_status(&self) -> Vec<IndexStatus> {
        let state = self.state.lock().expect("no panic holds the lock");
        let rows = state.version.ssts.values().map(|sst| sst.meta().rows).sum::<u64>();
        let rows = rows + state.version.memtable_rows() as u64;
        let status = |(index, backfill): (&IndexId, &Backfill)| IndexStatus {
            region: self.id,
            index: *index,
            is_complete: backfill.complete.is_some(),
            read: backfill.rows,
            rows,
            takeovers: backfill.takeovers,
            retries: backfill.retries,
        };
        state.side.indexes.iter().map(status).collect()
    }

    /// An index whose backfill is to go on, and how far it is.
    pub fn open_index(&self) -> Option<(IndexDef, Backfill)> {
        let state = self.state.lock().expect("no panic holds the lock");
        let open = |index: &&IndexDef| {
            !index.is_paused && state.side.indexes.get(&index.id).is_some_and(|backfill| backfill.complete.is_none())
        };
        let index = state.version.schema().indexes().iter().find(open)?;
        Some((index.clone(), state.side.indexes[&index.id].clone()))
    }

    /// Whether some backfill is not through.
    pub fn has_open_indexes(&self) -> bool {
        let state = self.state.lock().expect("no panic holds the lock");
        state.side.indexes.values().any(|backfill| backfill.complete.is_none())
    }

    /// The chunk that follows, read by the leader of `term`: of about so many rows, and so many bytes of them, at most; and how many rows it is.
    pub async fn index_chunk(
        &self,
        index: &IndexDef,
        term: u64,
        from: Option<Key>,
        (rows, bytes): (usize, usize),
    ) -> Result<(Chunk, u64)> {
        // A chunk ends too when many versions were looked at in vain.
        let limit = Limit { rows, bytes, taken: rows.saturating_mul(16) };
        let upto = self.visible();
        let version = self.version();
        let schema = version.schema();
        let columns = named(schema, index);
        let after = from.clone().map(|key| Position { key, sequence: Sequence(0) });
        let scan = Scan { columns, upto, after, ..Scan::default() };
        let page = version.scan(&scan, limit.rows)?.page(limit).await.map_err(|err| self.noticed(err))?;
        let of_index = schema.of_index(index).to_arrow();
        let batches =
            page.batches.iter().map(|rows| RecordBatch::try_new(of_index.clone(), rows.batch.columns().to_vec()));
        let batches = batches.collect::<std::result::Result<Vec<_>, _>>().map_err(incomputable)?;
        let entries = concat_batches(&of_index, &batches).map_err(incomputable)?;
        let sequences: Vec<Sequence> = page.batches.iter().flat_map(|rows| rows.sequences.iter().copied()).collect();
        let (to, rows) = (page.next.map(|position| position.key), sequences.len() as u64);
        Ok((Chunk { index: index.id, term, from, to, entries: encode_batch(&entries), sequences }, rows))
    }

    /// Applies the entry `id`: a chunk of a backfill. One that does not begin where the backfill is does nothing.
    pub(super) async fn apply_backfill(&self, id: LogId, command: Bytes, chunk: Chunk) -> Result<Bytes> {
        let is_next = {
            let state = self.state.lock().expect("no panic holds the lock");
            let backfill = state.side.indexes.get(&chunk.index);
            backfill.is_some_and(|backfill| backfill.complete.is_none() && backfill.cursor == chunk.from)
        };
        let entries = match is_next {
            true => match self.newest_of(&chunk).await {
                Err(err) => return Err(self.until_mended(err).await),
                Ok(entries) => Some(entries),
            },
            false => None,
        };
        let (index, rows, is_through) = (chunk.index, chunk.sequences.len() as u64, chunk.to.is_none());
        let outcome = self.finish(id, command, |state| {
            let sequence = state.side.sequence;
            if let Some((batch, sequences)) = entries {
                let tree = state.version.indexes.get(&index).expect("it was there when the chunk was judged");
                let keys = encode_keys(&batch, &tree.schema().key());
                tree.mutable.add(batch, keys, &vec![Op::Put; sequences.len()], &sequences);
                let backfill = state.side.indexes.get_mut(&index).expect("it was there when the chunk was judged");
                backfill.takeovers += u64::from(backfill.term > 0 && backfill.term != chunk.term);
                (backfill.term, backfill.rows) = (chunk.term, backfill.rows + rows);
                backfill.complete = chunk.to.is_none().then_some(sequence);
                backfill.cursor = chunk.to;
            } else if let Some(backfill) = state.side.indexes.get_mut(&index) {
                backfill.retries += 1;
            }
            encode_outcome(&Ok(WriteAnswer { rows, sequence }))
        });
        if is_next {
            let (region, replica) = (self.id, self.spec.replica);
            self.spec.events.emit(|| Event::IndexBackfilled { region, replica, index, rows });
            if is_through {
                self.spec.events.emit(|| Event::IndexComplete { region, replica, index });
                self.legs_changed();
            }
        }
        Ok(outcome)
    }

    /// The entries of a chunk whose rows are still the newest of their keys.
    async fn newest_of(&self, chunk: &Chunk) -> Result<(RecordBatch, Vec<Sequence>)> {
        let damaged = |message: String| Error::Damaged { file: "log".into(), message };
        let version = self.version();
        let Some(tree) = version.indexes.get(&chunk.index) else {
            return Err(damaged(format!("a chunk for index {}, which is not there", chunk.index)));
        };
        let entries =
            decode_batch(&chunk.entries, &tree.schema().to_arrow()).map_err(|err| damaged(err.to_string()))?;
        if entries.num_rows() != chunk.sequences.len() {
            return Err(damaged("a chunk of an index has another number of sequences than of entries".into()));
        }
        let keys = row_keys(&entries, tree.schema());
        let newest = version.newest(&keys, Sequence(u64::MAX)).await?;
        let is_newest =
            |(newest, sequence): (&Option<(Sequence, Op)>, &Sequence)| *newest == Some((*sequence, Op::Put));
        let mask: Vec<bool> = newest.iter().zip(&chunk.sequences).map(is_newest).collect();
        let sequences = chunk.sequences.iter().zip(&mask).filter(|(_, keep)| **keep).map(|(one, _)| *one).collect();
        let entries = filter_record_batch(&entries, &BooleanArray::from(mask)).map_err(incomputable)?;
        Ok((entries, sequences))
    }

    /// What a write of these rows does to the indexes.
    pub(super) async fn entries(&self, rows: &RecordBatch, keys: &[Key], ops: &[Op]) -> Result<Vec<Entries>> {
        let version = self.version();
        let schema = version.schema().clone();
        if schema.indexes().is_empty() {
            return Ok(Vec::new());
        }
        let old = Old::read(&version, keys).await?;
        let made = schema.indexes().iter().map(|index| entries_of(index, &schema, &old, rows, keys, ops));
        made.collect::<std::result::Result<_, _>>().map_err(incomputable)
    }

    /// The keys of the rows at `upto` that the index finds by these conditions, ascending; none: it is not complete as of then, or
    /// finds more than is worth it.
    pub(super) async fn find(
        &self,
        version: &Version,
        index: IndexId,
        predicates: &[Predicate],
        upto: Sequence,
    ) -> Result<Option<Arc<[Key]>>> {
        let complete = {
            let state = self.state.lock().expect("no panic holds the lock");
            // What completed it may be in a memtable that a version of before does not have.
            let is_current = std::ptr::eq(Arc::as_ptr(&state.version), version);
            state.side.indexes.get(&index).filter(|_| is_current).and_then(|backfill| backfill.complete)
        };
        let def = version.schema().indexes().iter().find(|def| def.id == index);
        let (Some(def), Some(tree)) = (def, version.indexes.get(&index)) else { return Ok(None) };
        if complete.is_none_or(|complete| upto < complete) {
            return Ok(None);
        }
        let most = usize::try_from(self.spec.options.index_keys).unwrap_or(usize::MAX);
        let key_columns = (0..version.schema().key().len()).map(key_column).collect();
        let predicates = predicates.iter().filter_map(|predicate| of_entry(version.schema(), def, predicate)).collect();
        let scan = Scan { columns: key_columns, predicates, upto, ..Scan::default() };
        let batch_rows = usize::try_from(self.spec.options.scan_batch_rows).unwrap_or(usize::MAX);
        let mut merge = tree.scan(&scan, batch_rows)?;
        let mut found = Vec::new();
        while let Some(rows) = merge.next().await? {
            let all: Vec<usize> = (0..rows.batch.num_columns()).collect();
            found.extend(encode_keys(&rows.batch, &all));
            if found.len() > most {
                return Ok(None);
            }
        }
        found.sort_unstable();
        let (region, replica, keys) = (self.id, self.spec.replica, found.len() as u64);
        self.spec.events.emit(|| Event::IndexUsed { region, replica, index, keys });
        Ok(Some(found.into()))
    }

    /// Compares an index with the rows here, as of now: every row has its entry, with its sequence, and nothing else is there.
    pub async fn check_index(&self, index: IndexId) -> Result<IndexCheck> {
        let upto = self.visible();
        let (version, complete) = {
            let state = self.state.lock().expect("no panic holds the lock");
            (state.version.clone(), state.side.indexes.get(&index).and_then(|backfill| backfill.complete))
        };
        let def = version.schema().indexes().iter().find(|def| def.id == index).cloned();
        let (Some(def), Some(tree), Some(_)) = (def, version.indexes.get(&index), complete) else {
            let message = format!("index {index} is not complete at region {}; WAIT FOR INDEX", self.id);
            return Err(Error::invalid(Invalid::ViewNotReady, message));
        };
        let batch_rows = usize::try_from(self.spec.options.scan_batch_rows).unwrap_or(usize::MAX);
        let entry_columns = tree.schema().columns().iter().map(|column| column.name.clone()).collect();
        let mut entries = BTreeSet::new();
        let mut merge = tree.scan(&Scan { columns: entry_columns, upto, ..Scan::default() }, batch_rows)?;
        while let Some(rows) = merge.next().await? {
            entries.extend(rows.keys.into_iter().zip(rows.sequences));
        }
        let mut check = IndexCheck { region: self.id, rows: 0, missing: 0, extra: 0 };
        let scan = Scan { columns: named(version.schema(), &def), upto, ..Scan::default() };
        let mut merge = version.scan(&scan, batch_rows)?;
        while let Some(rows) = merge.next().await? {
            let all: Vec<usize> = (0..rows.batch.num_columns()).collect();
            for entry in encode_keys(&rows.batch, &all).into_iter().zip(rows.sequences) {
                check.rows += 1;
                check.missing += u64::from(!entries.remove(&entry));
            }
        }
        check.extra = entries.len() as u64;
        Ok(check)
    }
}

impl State {
    /// Writes entries of rows whose first one has the sequence `first`.
    pub(super) fn index(&self, entries: Vec<Entries>, first: Sequence) {
        for Entries { index, batch, keys, ops, rows } in entries {
            let Some(tree) = self.version.indexes.get(&index) else { continue };
            let sequences: Vec<Sequence> = rows.iter().map(|row| Sequence(first.0 + *row as u64)).collect();
            tree.mutable.add(batch, keys, &ops, &sequences);
        }
    }

    /// The schema has other indexes than before: those that are new are to be backfilled, of those that are gone the files go
    /// with the next flush.
    pub(super) fn exchange_indexes(&mut self, before: &Version) {
        let indexes: BTreeSet<IndexId> = self.version.indexes.keys().copied().collect();
        self.side.indexes.retain(|index, _| indexes.contains(index));
        for index in &indexes {
            self.side.indexes.entry(*index).or_default();
        }
        let gone = before.indexes.iter().filter(|(index, _)| !indexes.contains(index));
        self.truncated.extend(gone.flat_map(|(_, tree)| tree.ssts.values().cloned()));
    }
}

/// The rows that a write meets.
struct Old {
    /// All columns.
    batch: RecordBatch,
    places: BTreeMap<Key, usize>,
}

impl Old {
    async fn read(version: &Version, keys: &[Key]) -> Result<Old> {
        let schema = version.schema();
        let mut only = keys.to_vec();
        only.sort_unstable();
        only.dedup();
        let columns = schema.columns().iter().map(|column| column.name.clone()).collect();
        let upto = Sequence(u64::MAX);
        let scan = Scan { columns, upto, only: Some(only.into()), ..Scan::default() };
        let mut merge = version.scan(&scan, keys.len().clamp(1, 8_192))?;
        let (mut batches, mut found) = (Vec::new(), Vec::new());
        while let Some(Rows { batch, keys, .. }) = merge.next().await? {
            batches.push(batch);
            found.extend(keys);
        }
        let batch = concat_batches(&schema.to_arrow(), &batches).map_err(incomputable)?;
        Ok(Old { batch, places: found.into_iter().enumerate().map(|(row, key)| (key, row)).collect() })
    }
}

fn entries_of(
    index: &IndexDef,
    schema: &Schema,
    old: &Old,
    rows: &RecordBatch,
    keys: &[Key],
    ops: &[Op],
) -> std::result::Result<Entries, ArrowError> {
    let ordered = positions(schema, index);
    let folds = schema.options().merge_mode == MergeMode::LastNonNull;
    // What the row of each key is by now.
    let mut latest: BTreeMap<&Key, Option<Cells>> = BTreeMap::new();
    let mut cells: Vec<Cells> = Vec::new();
    let (mut of_rows, mut made) = (Vec::new(), Vec::new());
    for (row, (key, op)) in keys.iter().zip(ops).enumerate() {
        let there = || old.places.get(key).map(|at| vec![(0, *at); ordered.len()]);
        let before = latest.entry(key).or_insert_with(there);
        let after = (*op == Op::Put).then(|| {
            let cell = |(at, column): (usize, &usize)| match before {
                Some(before) if folds && rows.column(*column).is_null(row) => before[at],
                _ => (1, row),
            };
            ordered.iter().enumerate().map(cell).collect::<Cells>()
        });
        for (of, op) in [(std::mem::replace(before, after.clone()), Op::Delete), (after, Op::Put)] {
            if let Some(of) = of {
                cells.push(of);
                of_rows.push(row);
                made.push(op);
            }
        }
    }
    let sources = [&old.batch, rows];
    let gather = |column: usize, picked: &[(usize, usize)]| {
        let arrays: Vec<&dyn Array> = sources.iter().map(|batch| batch.column(column).as_ref()).collect();
        interleave(&arrays, picked)
    };
    let in_order = ordered.iter().enumerate().map(|(at, column)| {
        let picked: Vec<(usize, usize)> = cells.iter().map(|cells| cells[at]).collect();
        gather(*column, &picked)
    });
    let of_key = schema.key().into_iter().map(|column| {
        let picked: Vec<(usize, usize)> = of_rows.iter().map(|row| (1, *row)).collect();
        gather(column, &picked)
    });
    let of_index = schema.of_index(index);
    let columns = in_order.chain(of_key).collect::<std::result::Result<Vec<_>, _>>()?;
    let batch = RecordBatch::try_new(of_index.to_arrow(), columns)?;
    let all = encode_keys(&batch, &of_index.key());
    // A row that stays where it was has one entry, that of the new version.
    let stays = |at: usize| made[at] == Op::Delete && of_rows.get(at + 1) == of_rows.get(at) && all[at] == all[at + 1];
    let mask: Vec<bool> = (0..all.len()).map(|at| !stays(at)).collect();
    let kept = |at: &usize| mask[*at];
    Ok(Entries {
        index: index.id,
        batch: filter_record_batch(&batch, &BooleanArray::from(mask.clone()))?,
        keys: (0..all.len()).filter(kept).map(|at| all[at].clone()).collect(),
        ops: (0..all.len()).filter(kept).map(|at| made[at]).collect(),
        rows: (0..all.len()).filter(kept).map(|at| of_rows[at]).collect(),
    })
}

/// Where the columns that the index is ordered by stand in the table.
fn positions(schema: &Schema, index: &IndexDef) -> Vec<usize> {
    let position = |id: &ColumnId| schema.columns().iter().position(|column| column.id == *id);
    index.columns.iter().filter_map(position).collect()
}

/// The names in the table of the columns of an entry.
fn named(schema: &Schema, index: &IndexDef) -> Vec<String> {
    let at = positions(schema, index).into_iter().chain(schema.key());
    at.map(|at| schema.columns()[at].name.clone()).collect()
}

/// The condition as one of an entry; none: entries do not have the column.
fn of_entry(schema: &Schema, index: &IndexDef, predicate: &Predicate) -> Option<Predicate> {
    let (at, _) = schema.column(&predicate.column)?;
    let ordered = positions(schema, index).into_iter().position(|one| one == at).map(index_column);
    let column = ordered.or_else(|| schema.key().into_iter().position(|one| one == at).map(key_column))?;
    Some(Predicate { column, condition: predicate.condition.clone() })
}

/// The row keys of entries.
fn row_keys(entries: &RecordBatch, of_index: &Schema) -> Vec<Key> {
    let is_key = |at: &usize| of_index.columns()[*at].name.starts_with("__k");
    let columns: Vec<usize> = (0..of_index.columns().len()).filter(is_key).collect();
    encode_keys(entries, &columns)
}

/// Arrow cannot make the batch: more than 2 GiB of strings in it, say.
fn incomputable(err: ArrowError) -> Error {
    Error::Io { kind: IoKind::Other, message: format!("make entries of an index: {err}") }
}

#[cfg(test)]
mod tests;
