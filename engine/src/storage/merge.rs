//! The one merge of sorted sources: reads see what the versions of each row come to, a flush gets all of them.
//!
//! Sources are in the order (key ascending, sequence descending), and so is what comes out; the merge holds a batch of
//! each source and gathers only the rows that it lets through. A source is not touched before the merge reaches the least
//! key that it can have: a page of a region with many disjoint files reads one of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use super::memtable::{Memtable, MemtableScan};
use super::range::Hidden;
use super::rows::{Rows, batch, gather};
use super::rules::Rules;
use super::scan::{Plan, Retention, Scan, Versions};
use super::sst::{Sst, SstScan};
use crate::error::{Error, IoKind, Result};
use crate::types::{Key, Op, Position, Sequence};

/// A stream of merged rows, see [`Merge::next`].
pub struct Merge {
    plan: Arc<Plan>,
    batch_rows: usize,
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Reverse<Head>>,
    current: Current,
    /// What was decided last: where a reader that ends here goes on.
    reached: Option<Position>,
    /// Versions taken from the sources.
    taken: usize,
    /// Rows that were handed out and handed back.
    back: Option<Rows>,
    /// Cleared while a batch is being made: what follows an error, or a call that was dropped half-way, would lack rows.
    intact: bool,
}

/// The row whose versions are being taken, the newest first.
#[derive(Default)]
struct Current {
    /// Its key; none before the first.
    key: Option<Key>,
    /// The version that was taken last.
    sequence: Sequence,
    /// Whether older versions still count.
    is_open: bool,
}

/// What becomes of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// It is left out.
    Skip,
    /// A row is made of it.
    Row,
    /// It fills what is NULL in the row that was made last.
    Fold,
}

/// Versions that an output is gathered from.
#[derive(Default)]
struct Picked {
    /// Which batch, which row of it.
    versions: Vec<(usize, usize)>,
    /// Where in `versions` each row begins.
    rows: Vec<usize>,
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
    /// The next page is behind this; none: that was all.
    pub next: Option<Position>,
}

impl Merge {
    /// The rows of `memtables` and `ssts` that `scan` asks for, in batches of at most `batch_rows`.
    pub fn visible(
        rules: &Arc<Rules>,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        scan: &Scan,
        batch_rows: usize,
    ) -> Result<Merge> {
        Ok(Merge::new(Plan::new(scan, rules, batch_rows)?, memtables, ssts))
    }

    /// The keys that have versions behind `since`, up to the scan's `upto`, each once, in batches of at most `batch_rows`.
    pub(super) fn written(
        rules: &Arc<Rules>,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        scan: &Scan,
        since: Sequence,
        batch_rows: usize,
    ) -> Result<Merge> {
        let mut plan = Plan::new(scan, rules, batch_rows)?;
        plan.versions = Versions::Written { since };
        let is_newer = |newest: Option<Sequence>| newest.is_some_and(|newest| newest > since);
        let memtables = memtables.into_iter().filter(|one| is_newer(one.sequences().map(|(_, newest)| newest)));
        Ok(Merge::new(plan, memtables, ssts.into_iter().filter(|sst| is_newer(Some(sst.meta().last_sequence)))))
    }

    /// The columns of what comes out.
    pub(super) fn returned_schema(&self) -> SchemaRef {
        let fields = self.plan.returned.iter().map(|at| self.plan.gathered_schema.fields()[*at].clone());
        Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()))
    }

    /// Every version of every row, whole: what a flush writes.
    pub fn all_versions(
        rules: &Arc<Rules>,
        memtables: impl IntoIterator<Item = Arc<Memtable>>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        batch_rows: usize,
    ) -> Merge {
        Merge::new(Plan::whole_rows(Versions::All, rules, None, batch_rows), memtables, ssts)
    }

    /// The times of all versions of all rows.
    pub(crate) fn times(rules: &Arc<Rules>, ssts: impl IntoIterator<Item = Arc<Sst>>, batch_rows: usize) -> Merge {
        let columns = rules.schema.time_index().map(|at| rules.schema.columns()[at].name.clone());
        let scan = Scan { columns: columns.into_iter().collect(), upto: Sequence(u64::MAX), ..Scan::default() };
        let mut plan = Plan::new(&scan, rules, batch_rows).expect("a table has its own columns");
        (plan.versions, plan.hidden) = (Versions::All, Hidden::default());
        Merge::new(plan, [], ssts)
    }

    /// The versions that `retention` keeps, whole: what a compaction of `ssts` writes. `within`: only rows from the one time
    /// to the other.
    pub fn retained(
        rules: &Arc<Rules>,
        ssts: impl IntoIterator<Item = Arc<Sst>>,
        retention: Retention,
        within: Option<(i64, i64)>,
        batch_rows: usize,
    ) -> Merge {
        Merge::new(Plan::whole_rows(Versions::Retained(retention), rules, within, batch_rows), [], ssts)
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
        let (current, reached) = (Current::default(), None);
        Merge {
            batch_rows: plan.batch_rows,
            plan,
            cursors,
            heads,
            current,
            reached,
            taken: 0,
            back: None,
            intact: true,
        }
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
                page.rows += fitting;
                page.batches.extend((fitting > 0).then(|| rows.slice(0, fitting)));
                let last = page.batches.last().and_then(|rows: &Rows| rows.keys.last().zip(rows.sequences.last()));
                page.next = last.map(|(key, sequence)| self.plan.rules.position(key, *sequence));
                return Ok(page);
            }
            bytes += rows.bytes();
            page.rows += rows.len();
            page.batches.extend((!rows.is_empty()).then_some(rows));
            if self.heads.is_empty() {
                return Ok(page);
            }
            if page.rows >= limit.rows || self.taken >= limit.taken {
                page.next = self.reached;
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
        let mut picked = Picked::default();
        for cursor in &mut self.cursors {
            cursor.held = None;
        }
        while let Some(Reverse(mut head)) = self.heads.pop() {
            if self.is_full(&picked, &head) {
                self.heads.push(Reverse(head));
                break;
            }
            // Follow this source for as long as it has the least row.
            loop {
                let cursor = &mut self.cursors[head.cursor];
                if let Some(rows) = &cursor.rows {
                    self.taken += 1;
                    let taken = take(&self.plan, &mut self.current, &mut self.reached, &head, rows.ops[cursor.at]);
                    if taken != Taken::Skip {
                        let place = *cursor.held.get_or_insert_with(|| {
                            held.push(rows.clone());
                            held.len() - 1
                        });
                        if taken == Taken::Row {
                            picked.rows.push(picked.versions.len());
                        }
                        picked.versions.push((place, cursor.at));
                    }
                    cursor.at += 1;
                }
                if cursor.rows.as_ref().is_none_or(|rows| cursor.at == rows.len()) && !cursor.load().await? {
                    break;
                }
                head = cursor.head(head.cursor);
                if self.is_full(&picked, &head) || self.heads.peek().is_some_and(|Reverse(least)| *least < head) {
                    self.heads.push(Reverse(head));
                    break;
                }
            }
        }
        if picked.rows.is_empty() {
            return Ok(None);
        }
        self.output(&held, &picked).map(Some).map_err(uncomputable)
    }

    /// Whether the batch ends before `head`. It does not end among versions that are folded into its last row.
    fn is_full(&self, picked: &Picked, head: &Head) -> bool {
        picked.rows.len() >= self.batch_rows
            && !(self.current.is_open && self.current.key.as_ref().is_some_and(|key| head.key <= *key))
    }

    fn output(&self, held: &[Arc<Rows>], picked: &Picked) -> Result<Rows, ArrowError> {
        let plan = &*self.plan;
        let batches: Vec<&RecordBatch> = held.iter().map(|rows| &rows.batch).collect();
        let gathered = match picked.rows.len() == picked.versions.len() {
            true => gather(&batches, &picked.versions, &plan.gathered, &plan.gathered_schema)?,
            false => fold(&batches, picked, &plan.gathered, &plan.gathered_schema)?,
        };
        let newest = || picked.rows.iter().map(|at| picked.versions[*at]);
        let rows = Rows {
            batch: gathered,
            keys: newest().map(|(from, row)| held[from].keys[row].clone()).collect(),
            sequences: newest().map(|(from, row)| held[from].sequences[row]).collect(),
            ops: newest().map(|(from, row)| held[from].ops[row]).collect(),
        };
        let mut rows = match plan.field_mask(&rows.batch, &rows.ops)? {
            Some(mask) => rows.filter(&mask)?,
            None => rows,
        };
        let returned = plan.returned.iter().map(|at| rows.batch.column(*at).clone()).collect();
        rows.batch = batch(self.returned_schema(), returned, rows.len())?;
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

/// What becomes of the least version, `head`.
fn take(plan: &Plan, current: &mut Current, reached: &mut Option<Position>, head: &Head, op: Op) -> Taken {
    let (Head { key, sequence: Reverse(sequence), .. }, versions) = (head, &plan.versions);
    let upto = match versions {
        Versions::All => return Taken::Row,
        Versions::Retained(retention) if *sequence > retention.horizon => return Taken::Row,
        Versions::Retained(retention) => retention.horizon,
        Versions::Written { since } if sequence <= since => return Taken::Skip,
        Versions::Visible { .. } | Versions::Written { .. } => plan.upto,
    };
    if *sequence > upto {
        return Taken::Skip;
    }
    let is_written = matches!(versions, Versions::Written { .. });
    if plan.rules.appends(*sequence) && !is_written {
        *reached = Some(plan.rules.position(key, *sequence));
        return Taken::Row;
    }
    let is_first = current.key.as_ref() != Some(key);
    if !is_first && !current.is_open {
        return Taken::Skip;
    }
    if is_first {
        current.key = Some(key.clone());
        *reached = Some(plan.rules.position(key, *sequence));
    }
    let newer = std::mem::replace(&mut current.sequence, *sequence);
    current.is_open = op == Op::Put && plan.folds();
    let is_row = match (op, versions) {
        (Op::Put, _) | (_, Versions::Written { .. }) if is_first => true,
        (Op::Put, Versions::Retained(retention)) => retention.has_between(key, *sequence, newer),
        (Op::Put, _) => false,
        (Op::Delete, Versions::Retained(retention)) => retention.has_older(key, *sequence),
        (Op::Delete, Versions::Visible { include_deleted }) => *include_deleted && is_first,
        (Op::Delete, Versions::All | Versions::Written { .. }) => true,
    };
    match (is_row, op) {
        (true, _) => Taken::Row,
        (false, Op::Put) => Taken::Fold,
        (false, Op::Delete) => Taken::Skip,
    }
}

/// Of each column of each row the newest value that is not NULL.
fn fold(
    batches: &[&RecordBatch],
    picked: &Picked,
    columns: &[usize],
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let ends = picked.rows.iter().skip(1).copied().chain([picked.versions.len()]);
    let rows: Vec<&[(usize, usize)]> =
        picked.rows.iter().zip(ends).map(|(start, end)| &picked.versions[*start..end]).collect();
    let folded = columns.iter().map(|at| {
        let has_value = |version: &&(usize, usize)| !batches[version.0].column(*at).is_null(version.1);
        let newest = |versions: &&[(usize, usize)]| *versions.iter().find(has_value).unwrap_or(&versions[0]);
        let picked: Vec<(usize, usize)> = rows.iter().map(newest).collect();
        let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(*at).as_ref()).collect();
        interleave(&arrays, &picked)
    });
    batch(schema.clone(), folded.collect::<Result<_, _>>()?, rows.len())
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
pub(super) fn uncomputable(err: ArrowError) -> Error {
    Error::Io { kind: IoKind::Other, message: format!("merge rows: {err}") }
}
