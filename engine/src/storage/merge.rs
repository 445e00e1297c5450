//! The one merge of sorted sources: reads see the newest visible version of each row, a flush gets all versions.
//!
//! Sources are in the order (key ascending, sequence descending), and so is what comes out; the merge holds a batch of
//! each source and gathers only the rows that it lets through. A source is not touched before the merge reaches the least
//! key that it can have: a page of a region with many disjoint files reads one of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;

use super::memtable::{Memtable, MemtableScan};
use super::rows::{Rows, batch, gather};
use super::scan::{Plan, Retention, Scan, Versions};
use super::sst::{Sst, SstScan};
use crate::error::{Error, IoKind, Result};
use crate::types::{Key, Op, Schema, Sequence};

/// A stream of merged rows, see [`Merge::next`].
pub struct Merge {
    plan: Arc<Plan>,
    batch_rows: usize,
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Reverse<Head>>,
    /// The key that was decided last; its older versions are passed over.
    last: Option<Key>,
    /// Versions taken from the sources.
    taken: usize,
    /// Rows that were handed out and handed back.
    back: Option<Rows>,
    /// Cleared while a batch is being made: what follows an error, or a call that was dropped half-way, would lack rows.
    intact: bool,
}

/// What a source may yield next.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    key: Key,
    sequence: Reverse<Sequence>,
    cursor: usize,
}

struct Cursor {
    source: Source,
    /// The batch in hand; none before the first.
    rows: Option<Arc<Rows>>,
    at: usize,
    /// Where `rows` stands among the batches that the output is gathered from.
    held: Option<usize>,
}

enum Source {
    Memtable(MemtableScan),
    Sst(Box<SstScan>),
}

/// Where a page ends at the latest. At least one row is on a page that has any to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rows on it.
    pub rows: usize,
    /// Memory of their cells. The encoded form has some more: leave room.
    pub bytes: usize,
    /// Versions looked at, so that a condition that seldom holds does not keep a reader waiting without an answer;
    /// counted in whole batches.
    pub taken: usize,
}

/// Some rows, and where to go on.
#[derive(Debug)]
pub struct Page {
    /// The rows in batches; possibly none although more follow.
    pub batches: Vec<Rows>,
    /// Rows in them.
    pub rows: usize,
    /// The next page is behind this key; none: that was all.
    pub next: Option<Key>,
}

impl Merge {
    /// The rows of `memtables` and `ssts` that `scan` asks for, in batches of at most `batch_rows`.
    pub fn visible(
        schema: &Arc<Schema>,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        scan: &Scan,
        batch_rows: usize,
    ) -> Result<Merge> {
        Ok(Merge::new(Plan::new(scan, schema, batch_rows)?, memtables, ssts))
    }

    /// Every version of every row, whole: what a flush writes.
    pub fn all_versions(
        schema: &Arc<Schema>,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        batch_rows: usize,
    ) -> Merge {
        Merge::new(Plan::whole_rows(Versions::All, schema, batch_rows), memtables, ssts)
    }

    /// The versions that `retention` keeps, whole: what a compaction of `ssts` writes.
    pub fn retained(
        schema: &Arc<Schema>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        retention: Retention,
        batch_rows: usize,
    ) -> Merge {
        Merge::new(Plan::whole_rows(Versions::Retained(retention), schema, batch_rows), [], ssts)
    }

    fn new(
        plan: Plan,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
    ) -> Merge {
        let plan = Arc::new(plan);
        let memtables =
            memtables.into_iter().map(|memtable| Source::Memtable(MemtableScan::new(memtable, plan.clone())));
        let ssts = ssts.into_iter().filter_map(|sst| SstScan::new(sst, plan.clone()));
        let sources = memtables.chain(ssts.map(|scan| Source::Sst(Box::new(scan))));
        let cursors: Vec<_> = sources.map(|source| Cursor { source, rows: None, at: 0, held: None }).collect();
        let heads = cursors.iter().enumerate().map(|(at, cursor)| Reverse(cursor.head(at))).collect();
        Merge { batch_rows: plan.batch_rows, plan, cursors, heads, last: None, taken: 0, back: None, intact: true }
    }

    /// The next rows: some, or none when all were returned. After an error, or if the future was dropped before its end,
    /// every further call fails.
    pub async fn next(&mut self) -> Result<Option<Rows>> {
        if let Some(rows) = self.back.take() {
            return Ok(Some(rows));
        }
        while let Some(rows) = self.next_merged().await? {
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }

    /// Takes back the end of what [`Merge::next`] gave: it comes next again.
    pub(super) fn hand_back(&mut self, rows: Rows) {
        self.back = Some(rows).filter(|rows| !rows.is_empty());
    }

    /// Versions taken from the sources until now.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Rows up to `limit`.
    pub async fn page(mut self, limit: Limit) -> Result<Page> {
        let mut page = Page { batches: Vec::new(), rows: 0, next: None };
        let mut bytes = 0;
        loop {
            self.batch_rows = self.plan.batch_rows.min(limit.rows.max(1) - page.rows);
            let Some(rows) = self.next_merged().await? else { return Ok(page) };
            let room = limit.bytes.saturating_sub(bytes);
            let fitting = if page.rows == 0 { fitting(&rows, room).max(1) } else { fitting(&rows, room) };
            if fitting < rows.len() {
                // What does not fit is read again by the next page.
                page.next = match fitting.checked_sub(1) {
                    Some(last) => Some(rows.keys[last].clone()),
                    None => page.batches.last().and_then(|rows: &Rows| rows.keys.last().cloned()),
                };
                page.rows += fitting;
                page.batches.extend((fitting > 0).then(|| rows.slice(0, fitting)));
                return Ok(page);
            }
            bytes += rows.bytes();
            page.rows += rows.len();
            page.batches.extend((!rows.is_empty()).then_some(rows));
            if self.heads.is_empty() {
                return Ok(page);
            }
            if page.rows >= limit.rows || self.taken >= limit.taken {
                page.next = self.last;
                return Ok(page);
            }
        }
    }

    /// A batch of merged rows after the conditions on fields: possibly an empty one. None: that was all.
    async fn next_merged(&mut self) -> Result<Option<Rows>> {
        if !self.intact {
            let message = "a scan that failed was continued".to_string();
            return Err(Error::Io { kind: IoKind::Other, message });
        }
        self.intact = false;
        let rows = self.merge().await?;
        self.intact = true;
        Ok(rows)
    }

    async fn merge(&mut self) -> Result<Option<Rows>> {
        let mut held: Vec<Arc<Rows>> = Vec::new();
        let mut picked = Vec::new();
        for cursor in &mut self.cursors {
            cursor.held = None;
        }
        while picked.len() < self.batch_rows {
            let Some(Reverse(mut head)) = self.heads.pop() else { break };
            // Follow this source for as long as it has the least row.
            loop {
                let cursor = &mut self.cursors[head.cursor];
                if let Some(rows) = &cursor.rows {
                    self.taken += 1;
                    if lets_through(&self.plan, &mut self.last, &head, rows.ops[cursor.at]) {
                        let place = *cursor.held.get_or_insert_with(|| {
                            held.push(rows.clone());
                            held.len() - 1
                        });
                        picked.push((place, cursor.at));
                    }
                    cursor.at += 1;
                }
                if cursor.rows.as_ref().is_none_or(|rows| cursor.at == rows.len()) && !cursor.load().await? {
                    break;
                }
                head = cursor.head(head.cursor);
                if picked.len() == self.batch_rows || self.heads.peek().is_some_and(|Reverse(least)| *least < head) {
                    self.heads.push(Reverse(head));
                    break;
                }
            }
        }
        if picked.is_empty() {
            return Ok(None);
        }
        self.output(&held, &picked).map(Some).map_err(uncomputable)
    }

    fn output(&self, held: &[Arc<Rows>], picked: &[(usize, usize)]) -> Result<Rows, ArrowError> {
        let plan = &*self.plan;
        let batches: Vec<&RecordBatch> = held.iter().map(|rows| &rows.batch).collect();
        let gathered = gather(&batches, picked, &plan.gathered, &plan.gathered_schema)?;
        let rows = Rows {
            batch: gathered,
            keys: picked.iter().map(|(from, row)| held[*from].keys[*row].clone()).collect(),
            sequences: picked.iter().map(|(from, row)| held[*from].sequences[*row]).collect(),
            ops: picked.iter().map(|(from, row)| held[*from].ops[*row]).collect(),
        };
        let mut rows = match plan.field_mask(&rows.batch, &rows.ops)? {
            Some(mask) => rows.filter(&mask)?,
            None => rows,
        };
        let returned = plan.returned.iter().map(|at| rows.batch.column(*at).clone()).collect();
        let fields = plan.returned.iter().map(|at| plan.gathered_schema.fields()[*at].clone());
        let schema = arrow::datatypes::Schema::new(fields.collect::<Vec<_>>());
        rows.batch = batch(Arc::new(schema), returned, rows.len())?;
        Ok(rows)
    }
}

impl Cursor {
    /// What comes next, or a lower bound of it before the first batch.
    fn head(&self, cursor: usize) -> Head {
        match &self.rows {
            Some(rows) => Head { key: rows.keys[self.at].clone(), sequence: Reverse(rows.sequences[self.at]), cursor },
            None => Head { key: self.source.lower_bound(), sequence: Reverse(Sequence(u64::MAX)), cursor },
        }
    }

    /// Takes the next batch in hand; false: there is none.
    async fn load(&mut self) -> Result<bool> {
        self.at = 0;
        self.held = None;
        self.rows = self.source.next().await?.map(Arc::new);
        Ok(self.rows.is_some())
    }
}

impl Source {
    fn lower_bound(&self) -> Key {
        match self {
            Source::Memtable(scan) => scan.lower_bound(),
            Source::Sst(scan) => scan.lower_bound(),
        }
    }

    async fn next(&mut self) -> Result<Option<Rows>> {
        match self {
            Source::Memtable(scan) => scan.next().map_err(uncomputable),
            Source::Sst(scan) => scan.next().await,
        }
    }
}

/// Whether the least version, `head`, is returned.
fn lets_through(plan: &Plan, last: &mut Option<Key>, head: &Head, op: Op) -> bool {
    let upto = match &plan.versions {
        Versions::All => {
            *last = Some(head.key.clone());
            return true;
        }
        Versions::Retained(retention) if head.sequence.0 > retention.horizon => return true,
        Versions::Retained(retention) => retention.horizon,
        Versions::Newest { .. } => plan.upto,
    };
    if head.sequence.0 > upto || last.as_ref() == Some(&head.key) {
        return false;
    }
    *last = Some(head.key.clone());
    op == Op::Put
        || match &plan.versions {
            Versions::All => true,
            Versions::Retained(retention) => retention.has_older(&head.key, head.sequence.0),
            Versions::Newest { include_deleted } => *include_deleted,
        }
}

/// How many of `rows` have cells of at most `room` bytes together.
fn fitting(rows: &Rows, room: usize) -> usize {
    if rows.bytes() <= room {
        return rows.len();
    }
    // Between `least`, which fits, and `most`, which does not.
    let (mut least, mut most) = (0, rows.len());
    while most - least > 1 {
        let middle = (least + most) / 2;
        match super::rows::cell_bytes(&rows.batch.slice(0, middle)) <= room {
            true => least = middle,
            false => most = middle,
        }
    }
    least
}

/// Arrow cannot make the batch: more than 2 GiB of strings in it, say.
fn uncomputable(err: ArrowError) -> Error {
    Error::Io { kind: IoKind::Other, message: format!("merge rows: {err}") }
}
