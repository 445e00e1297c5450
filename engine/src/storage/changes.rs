//! What changed between two sequences: of each row that is not the same at both, what it was and what it is.
//!
//! The difference of two reads, row by row: so it holds for whatever decides what is visible (versions, tombstones,
//! truncations, expiries, the merge mode), and both sides are decoded alike. Unless many rows went at once, only the keys
//! that were written in between are read: they are found first, in the sources that have such versions.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};

use super::merge::{Limit, Merge, uncomputable};
use super::rows::{Rows, batch, cell_bytes, gather};
use super::scan::Scan;
use super::version::Version;
use crate::error::Result;
use crate::types::{Key, Position, Sequence};

/// Name of the column that says whether a row of an answer is what was (-1) or what is (1).
pub const SIGN_COLUMN: &str = "__sign";

/// Some changes, and where to go on.
#[derive(Debug)]
pub struct ChangePage {
    /// The columns of the scan, then [`SIGN_COLUMN`]; in key order, of each row what was before what is.
    pub batch: RecordBatch,
    /// The keys of the rows in it.
    pub keys: Vec<Key>,
    /// The versions of the rows in it.
    pub sequences: Vec<Sequence>,
    /// The next page is behind this; none: that was all.
    pub next: Option<Position>,
}

impl Version {
    /// What `scan` returns at its `upto` and did not at `since`, and the other way round: at most about `limit`, never a part
    /// of what became of one row. `since` must not be after `upto`, and both must be readable; none: before there was a row.
    pub async fn changes(
        &self,
        since: Option<Sequence>,
        scan: &Scan,
        limit: Limit,
        batch_rows: usize,
    ) -> Result<ChangePage> {
        let mut rest = scan.after.clone();
        let mut page = Gathered::default();
        let ranges = &self.rules.ranges;
        let empty = || self.scan(&Scan { only: Some(Arc::new([])), ..scan.clone() }, batch_rows);
        if since >= Some(scan.upto) {
            return page.finish(None, empty);
        }
        loop {
            let scan = Scan { after: rest.clone(), ..scan.clone() };
            let written = match since {
                Some(since) if ranges.upto(since) == ranges.upto(scan.upto) => {
                    Some(self.written(since, &scan, limit.rows.max(1)).await?)
                }
                // Many rows went at once, or all are new.
                _ => None,
            };
            let keys = written.as_ref().map(|written| written.keys.clone());
            if keys.as_ref().is_some_and(|keys| keys.is_empty()) {
                rest = None;
                break;
            }
            let read = |upto| {
                let scan = Scan { upto, only: keys.clone(), include_deleted: false, ..scan.clone() };
                Merge::visible(&self.rules, self.memtables().cloned(), self.ssts.values().cloned(), &scan, batch_rows)
            };
            let (was, is) = (Stream::of(since.map(read).transpose()?), Stream::of(Some(read(scan.upto)?)));
            let ended = page.take(was, is, limit, |key, sequence| self.rules.position(key, sequence)).await?;
            rest = ended.or_else(|| written.and_then(|written| written.next));
            if rest.is_none() || page.is_over(limit) {
                break;
            }
        }
        page.finish(rest, empty)
    }

    /// The first keys behind the scan's position that have versions behind `since`, up to its `upto`.
    async fn written(&self, since: Sequence, scan: &Scan, most: usize) -> Result<Written> {
        // There is a version for each sequence: a few are found in memory without looking at all keys there.
        let is_short = scan.upto.0 - since.0 <= (most as u64).saturating_mul(4);
        if is_short && self.ssts.values().all(|sst| sst.meta().last_sequence <= since) {
            return Ok(self.written_in_memory(since, scan, most));
        }
        let scan = Scan { columns: Vec::new(), predicates: key_conditions(self, scan), ..scan.clone() };
        let memtables = self.memtables().cloned();
        let mut merge = Merge::written(&self.rules, memtables, self.ssts.values().cloned(), &scan, since, most)?;
        let Some(rows) = merge.next().await? else { return Ok(Written { keys: Arc::new([]), next: None }) };
        let next = rows.keys.last().map(|key| Position { key: key.clone(), sequence: Sequence(0) });
        Ok(Written { keys: rows.keys.into(), next })
    }

    fn written_in_memory(&self, since: Sequence, scan: &Scan, most: usize) -> Written {
        let mut keys: Vec<Key> = self.memtables().flat_map(|memtable| memtable.written(since, scan.upto)).collect();
        let is_ahead = |key: &Key| match &scan.after {
            Some(after) => *key > after.key || (*key == after.key && after.sequence > Sequence(0)),
            None => true,
        };
        keys.retain(is_ahead);
        keys.sort_unstable();
        keys.dedup();
        let is_all = keys.len() <= most;
        keys.truncate(most);
        let last = keys.last().filter(|_| !is_all);
        let next = last.map(|key| Position { key: key.clone(), sequence: Sequence(0) });
        Written { keys: keys.into(), next }
    }
}

/// Keys that were written.
struct Written {
    keys: Arc<[Key]>,
    next: Option<Position>,
}

/// The conditions that all versions of a row meet or none: a row may come into a condition on a field, or leave it.
fn key_conditions(version: &Version, scan: &Scan) -> Vec<crate::types::Predicate> {
    let schema = version.schema();
    let on_key = |name: &str| schema.column(name).is_some_and(|(at, _)| schema.is_key(at));
    scan.predicates.iter().filter(|predicate| on_key(&predicate.column)).cloned().collect()
}

/// One of the two reads; that of nothing has no merge.
struct Stream {
    merge: Option<Merge>,
    rows: Option<Arc<Rows>>,
    at: usize,
}

impl Stream {
    fn of(merge: Option<Merge>) -> Stream {
        Stream { merge, rows: None, at: 0 }
    }

    /// The row at hand, and what it is in; none: there are no more.
    async fn row(&mut self) -> Result<Option<(Arc<Rows>, usize)>> {
        if let Some(merge) = &mut self.merge
            && self.rows.as_ref().is_none_or(|rows| self.at == rows.len())
        {
            self.rows = merge.next().await?.map(Arc::new);
            self.at = 0;
        }
        Ok(self.rows.clone().map(|rows| (rows, self.at)))
    }

    fn taken(&self) -> usize {
        self.merge.as_ref().map_or(0, Merge::taken)
    }
}

/// Changes on their way into a page.
#[derive(Default)]
struct Gathered {
    held: Vec<Arc<Rows>>,
    picked: Vec<(usize, usize)>,
    signs: Vec<i8>,
    keys: Vec<Key>,
    sequences: Vec<Sequence>,
    bytes: usize,
    /// Versions that the reads before the one at hand looked at.
    taken: usize,
}

impl Gathered {
    fn is_over(&self, limit: Limit) -> bool {
        let is_full = self.picked.len() >= limit.rows || self.bytes >= limit.bytes;
        (is_full && !self.picked.is_empty()) || self.taken >= limit.taken
    }

    /// Walks both reads to their end, or until the page is full, and then says where.
    async fn take(
        &mut self,
        mut was: Stream,
        mut is: Stream,
        limit: Limit,
        position: impl Fn(&Key, Sequence) -> Position,
    ) -> Result<Option<Position>> {
        let mut last: Option<Position> = None;
        let before = self.taken;
        loop {
            let (old, new) = (was.row().await?, is.row().await?);
            self.taken = before + was.taken() + is.taken();
            let place = |row: &(Arc<Rows>, usize)| (row.0.keys[row.1].clone(), row.0.sequences[row.1]);
            let order = match (old.as_ref().map(place), new.as_ref().map(place)) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((a, old)), Some((b, new))) => {
                    let (a, b) = (position(&a, old), position(&b, new));
                    // Versions of a key stand newest first.
                    a.key.cmp(&b.key).then(b.sequence.cmp(&a.sequence))
                }
            };
            let least = if order == Ordering::Greater { new.as_ref() } else { old.as_ref() };
            let (key, sequence) = least.map(place).expect("one of them has a row");
            let here = position(&key, sequence);
            if self.is_over(limit) && last.as_ref().is_some_and(|last| *last != here) {
                return Ok(last);
            }
            let is_same = order == Ordering::Equal && old.as_ref().map(place) == new.as_ref().map(place);
            if order != Ordering::Greater {
                was.at += 1;
                if let Some((rows, at)) = old.filter(|_| !is_same) {
                    self.push(&rows, at, -1);
                }
            }
            if order != Ordering::Less {
                is.at += 1;
                if let Some((rows, at)) = new.filter(|_| !is_same) {
                    self.push(&rows, at, 1);
                }
            }
            last = Some(here);
        }
    }

    fn push(&mut self, rows: &Arc<Rows>, at: usize, sign: i8) {
        let held = self.held.iter().rposition(|held| Arc::ptr_eq(held, rows)).unwrap_or_else(|| {
            self.held.push(rows.clone());
            self.held.len() - 1
        });
        self.bytes += cell_bytes(&rows.batch.slice(at, 1));
        self.picked.push((held, at));
        self.signs.push(sign);
        self.keys.push(rows.keys[at].clone());
        self.sequences.push(rows.sequences[at]);
    }

    /// `empty` is a read without rows, for the columns of a page without changes.
    fn finish(self, next: Option<Position>, empty: impl FnOnce() -> Result<Merge>) -> Result<ChangePage> {
        let schema = match self.held.first() {
            Some(rows) => rows.batch.schema(),
            None => empty()?.returned_schema(),
        };
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let batches: Vec<&RecordBatch> = self.held.iter().map(|rows| &rows.batch).collect();
        let cells: Vec<ArrayRef> = match batches.is_empty() {
            true => schema.fields().iter().map(|field| arrow::array::new_empty_array(field.data_type())).collect(),
            false => gather(&batches, &self.picked, &columns, &schema).map_err(uncomputable)?.columns().to_vec(),
        };
        let sign = Arc::new(Field::new(SIGN_COLUMN, DataType::Int8, false));
        let fields: Vec<_> = schema.fields().iter().cloned().chain([sign]).collect();
        let cells = cells.into_iter().chain([Arc::new(Int8Array::from(self.signs)) as ArrayRef]).collect();
        let batch = batch(Arc::new(ArrowSchema::new(fields)), cells, self.keys.len()).map_err(uncomputable)?;
        Ok(ChangePage { batch, keys: self.keys, sequences: self.sequences, next })
    }
}
