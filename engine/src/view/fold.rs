//! Adds deltas to the groups of a view with aggregates, at the view.
//!
//! How a group's rows are laid out: [`columns`]. The state of a group (part 1) has its counts and sums and the values that MIN and
//! MAX choose at present. All values with their counts are rows of their own (parts from 2 on), so a change touches those rows
//! alone that have its values; only where the chosen one goes, the next one is looked for, and it is the first that stays.
//!
//! What a group shows is computed of its state, and there may be no such value: `100 / sum(x)` of a sum that is 0, a sum that does
//! not fit BIGINT. As long as a view is filled its states are none that anybody's rows had: of a group with rows in several batches
//! or regions some are in it and some are not. So a group that cannot be shown then is *broken*: it has its state, and no row; how many
//! are is counted, and only one that is still broken when the view is to be read is an error ([`Fold::first_broken`]).
//!
//! A view that is READY passes through such states too, when rows of a group are written in several regions, or a window has
//! several batches. There a failure is one at once. To hide the group would be to answer SELECT with rows that its query never gave,
//! without a word; to show its row of before would be to do that for as long as nobody writes to the group; and how long it is in
//! passing nobody can say, for other feeders may lag for any time. A view that is loud can be refilled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, RecordBatch, RecordBatchOptions, UInt8Array, UInt32Array, new_null_array,
};
use arrow::datatypes::{Field, Schema as ArrowSchema, SchemaRef};
use async_trait::async_trait;

use super::expression::{Expression, cells, pick};
use super::group::{Calls, Change, Known, Partial, State};
use super::leg::comparator;
use super::{Failure, PARTIAL, mismatch};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{TableDef, columns};
use crate::sql::{AggregatePlan, ViewPlan};
use crate::types::{ColumnType, Key, Op, Value, decode_key, encode_key, encode_keys};

/// Values that are looked at in one go where the chosen one is gone, at most.
const PAGE: usize = 1_000;

/// The rows of a view as they are stored. Only what [`Fold::apply`] asks for is read.
#[async_trait]
pub trait Groups: Sync {
    /// The cells in [`STATE`](columns::STATE) of the rows with these row keys, in this order; none where there is no row.
    async fn states(&self, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>>;

    /// The first `most` rows of a part of a group in the order of their keys, fewer only if there are no more: the cells in
    /// [`VALUE`](columns::VALUE) and [`STATE`](columns::STATE). `group` are the cells of the columns of GROUP BY; with `behind`
    /// it begins at the first row whose value is greater.
    async fn values(
        &self,
        group: &[Value],
        part: u8,
        behind: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
}

/// Rows to put and to delete: whole rows of the view, each key once, in the order of the keys. Of a row to delete only the key
/// says anything, and the rest is NULL.
#[derive(Clone, Debug)]
pub struct Writes {
    /// The rows.
    pub rows: RecordBatch,
    /// What is done with each.
    pub ops: Vec<Op>,
}

/// What becomes of a group that cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It is an error: the view can be read.
    Fails,
    /// It has no row, and counts.
    Hidden,
}

/// What a delta comes to.
#[derive(Clone, Debug)]
pub struct Folded {
    /// What is to be written.
    pub writes: Writes,
    /// How many groups more are broken than before.
    pub broken: i64,
}

/// GROUP BY, aggregates and HAVING of a view.
#[derive(Debug)]
pub struct Fold {
    view: String,
    calls: Arc<Calls>,
    /// The part that has the values of each call which chooses from them.
    parts: Vec<Option<u8>>,
    /// The types of the columns of GROUP BY.
    groups: Vec<ColumnType>,
    /// Columns of GROUP BY, then results: what the expressions are over.
    input: SchemaRef,
    having: Option<Expression>,
    outputs: Vec<Expression>,
    /// The view's columns.
    schema: SchemaRef,
    /// What each of them has.
    made: Vec<Made>,
}

/// What a column of the view has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Made {
    /// The cell of the column of GROUP BY at this position.
    Group(usize),
    Part,
    Value,
    State,
    /// In the row that is shown, what is computed at this position of the outputs.
    Output(usize),
}

/// A group that a delta changes.
struct Touched {
    /// The row of the delta that has its cells.
    row: u32,
    partial: Partial,
    /// What is stored of it.
    old: Option<State>,
    /// For each call, how often each value that the delta names is there: before and after.
    counts: Vec<BTreeMap<Vec<u8>, (i64, i64)>>,
}

/// A row to write, in the order of the parts and values.
struct Row {
    /// The row of the delta that has the group's cells.
    group: u32,
    part: u8,
    value: Vec<u8>,
    what: What,
}

enum What {
    Delete,
    /// The row of [`Shown`] that has the cells.
    Show(u32),
    State(Vec<u8>),
}

/// What the states of some groups show.
struct Shown {
    /// For each state the row of `columns`; none: HAVING does not let it, or it is broken.
    rows: Vec<Option<u32>>,
    /// Whether each state is broken.
    broken: Vec<bool>,
    /// The outputs.
    columns: Vec<ArrayRef>,
}

impl Fold {
    pub(super) fn new(table: &TableDef, plan: &ViewPlan, aggregate: &AggregatePlan, calls: Arc<Calls>) -> Result<Fold> {
        let schema = &table.schema;
        let key: Vec<&str> = schema.key().iter().map(|at| schema.columns()[*at].name.as_str()).collect();
        let (groups, rest) = key.split_at_checked(aggregate.groups).unwrap_or((&[], &key));
        if rest != [columns::PART, columns::VALUE] {
            return Err(mismatch(table, format!("its row key is {key:?}")));
        }
        let mut made = Vec::with_capacity(schema.columns().len());
        for column in schema.columns() {
            let name = column.name.as_str();
            let output = plan.columns.iter().position(|(of, _)| of == name);
            made.push(match (groups.iter().position(|of| *of == name), name, output) {
                (Some(at), ..) => Made::Group(at),
                (None, columns::PART, _) => Made::Part,
                (None, columns::VALUE, _) => Made::Value,
                (None, columns::STATE, _) => Made::State,
                (None, _, Some(at)) if at < aggregate.outputs.len() => Made::Output(at),
                _ => return Err(mismatch(table, format!("nothing is computed for {name:?}"))),
            });
        }
        if !made.contains(&Made::State) {
            return Err(mismatch(table, "it has no column for the state of a group"));
        }
        let groups: Vec<ColumnType> =
            schema.key().iter().take(aggregate.groups).map(|at| schema.columns()[*at].column_type).collect();
        let types = groups.iter().copied().chain(calls.iter().map(|(call, _)| call.output_type));
        let types: Vec<_> = types.map(ColumnType::to_arrow).collect();
        let fields = aggregate.input.fields();
        if !fields.iter().map(|field| field.data_type()).eq(&types) {
            return Err(mismatch(table, format!("its groups and aggregates are {types:?}, not {fields:?}")));
        }
        let fields = fields.iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
        let input = Arc::new(ArrowSchema::new(fields.collect::<Vec<_>>()));
        let having = aggregate.having.as_ref().map(|having| Expression::condition(having, &aggregate.input));
        let outputs = aggregate.outputs.iter().map(|output| Expression::new(output, &aggregate.input));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        for (column, made) in schema.columns().iter().zip(&made) {
            if let Made::Output(at) = made
                && *outputs[*at].data_type() != column.column_type.to_arrow()
            {
                let what = format!("{} is {}, {:?} is not", outputs[*at], outputs[*at].data_type(), column.name);
                return Err(mismatch(table, what));
            }
        }
        Ok(Fold {
            view: table.name.clone(),
            parts: calls.parts(),
            calls,
            groups,
            input,
            having: having.transpose()?,
            outputs,
            schema: schema.to_arrow(),
            made,
        })
    }

    pub(super) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Whether all rows are one group, which is always there.
    fn is_global(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn initial(&self, broken: Broken) -> Result<Option<Folded>, Failure> {
        if !self.is_global() {
            return Ok(None);
        }
        let nothing = self.calls.nothing();
        let shown = self.shown(&[], &[(0, &nothing)], broken)?;
        let mut rows = Vec::new();
        if let Some(show) = shown.rows[0] {
            rows.push(Row { group: 0, part: 0, value: Vec::new(), what: What::Show(show) });
        }
        rows.push(Row { group: 0, part: 1, value: Vec::new(), what: What::State(stored(&nothing)) });
        let broken = i64::from(shown.broken[0]);
        Ok(Some(Folded { writes: self.writes(&[], &rows, &shown), broken }))
    }

    /// What is to be written where `delta`, of whatever leg, comes to the view. The groups that it has are read from `groups`.
    ///
    /// An error is one of reading, or of a delta that is none of this view; then nothing is said of the delta.
    ///
    /// # Panics
    /// If more rows would go than there are: a delta was added twice, or not at all.
    pub async fn apply(
        &self,
        delta: &RecordBatch,
        groups: &dyn Groups,
        broken: Broken,
    ) -> Result<Result<Folded, Failure>> {
        let mut touched = self.decode(delta)?;
        self.read(&mut touched, groups).await?;
        let mut news: Vec<State> = Vec::with_capacity(touched.len());
        for (key, group) in &touched {
            news.push(self.add(key, group, groups).await?);
        }
        Ok(self.write(&delta.columns()[..self.groups.len()], &touched, &news, broken))
    }

    /// Why one of these groups cannot be shown; none: all can. `states` are rows of part 1 with the columns of GROUP BY, then
    /// [`STATE`](columns::STATE).
    pub fn first_broken(&self, states: &RecordBatch) -> Result<Option<Failure>> {
        let (cells, column) = states.columns().split_at(self.groups.len());
        let [column] = column else { return Err(self.damaged(&Key::default())) };
        let column = column.as_binary::<i32>();
        let state = |row: usize| {
            let state = column.is_valid(row).then(|| self.calls.read_state(column.value(row))).flatten();
            state.ok_or_else(|| self.damaged(&Key::default()))
        };
        let states = (0..column.len()).map(state).collect::<Result<Vec<_>>>()?;
        let states: Vec<(u32, &State)> = (0..).zip(&states).collect();
        Ok(self.show(cells, &states).err())
    }

    /// The names of the columns of GROUP BY.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        (0..self.groups.len()).map(|group| {
            let at = self.made.iter().position(|made| *made == Made::Group(group)).expect("each is in the row key");
            self.schema.field(at).name().as_str()
        })
    }

    /// The groups of a delta, by the encoded cells of GROUP BY.
    fn decode(&self, delta: &RecordBatch) -> Result<BTreeMap<Key, Touched>> {
        let wrong = |what: &dyn fmt::Display| {
            Error::invalid(Invalid::Mismatch, format!("a delta for view {} is none of its query: {what}", self.view))
        };
        let types = delta.columns().iter().map(|column| ColumnType::from_arrow(column.data_type()));
        if !types.eq(self.groups.iter().copied().chain([ColumnType::Binary]).map(Some)) {
            return Err(wrong(&delta.schema()));
        }
        let at: Vec<usize> = (0..self.groups.len()).collect();
        let keys = encode_keys(delta, &at);
        let partials = delta.column(self.groups.len()).as_binary_opt::<i32>().ok_or_else(|| wrong(&PARTIAL))?;
        let mut touched: BTreeMap<Key, Touched> = BTreeMap::new();
        for (row, key) in keys.into_iter().enumerate() {
            let partial = partials.is_valid(row).then(|| self.calls.read_partial(partials.value(row))).flatten();
            let partial = partial.ok_or_else(|| wrong(&format_args!("its row {row}")))?;
            let counts = vec![BTreeMap::new(); self.parts.len()];
            let group = Touched { row: row as u32, partial, old: None, counts };
            if let Some(before) = touched.insert(key.clone(), group) {
                return Err(wrong(&format_args!("rows {} and {row} are of one group", before.row)));
            }
        }
        Ok(touched)
    }

    /// Reads the states of the groups, and the counts of the values that their deltas name, in one go.
    async fn read(&self, touched: &mut BTreeMap<Key, Touched>, groups: &dyn Groups) -> Result<()> {
        let mut keys = Vec::new();
        for (key, group) in &*touched {
            keys.push(row_key(key, 1, &[]));
            for (part, values) in self.values(&group.partial) {
                keys.extend(values.keys().map(|value| row_key(key, part, value)));
            }
        }
        let states = groups.states(&keys).await?;
        assert_eq!(states.len(), keys.len(), "as many states as keys");
        let mut states = keys.iter().zip(states);
        let mut next = || states.next().expect("one for each key");
        for group in touched.values_mut() {
            let (key, state) = next();
            group.old = match state {
                Some(bytes) => Some(self.calls.read_state(&bytes).ok_or_else(|| self.damaged(key))?),
                None => None,
            };
            for (counts, change) in group.counts.iter_mut().zip(&group.partial.calls) {
                let Change::Values(values) = change else { continue };
                for (value, more) in values {
                    let (key, count) = next();
                    let count = match count {
                        Some(bytes) => postcard::from_bytes::<i64>(&bytes).map_err(|_| self.damaged(key))?,
                        None => 0,
                    };
                    counts.insert(value.clone(), (count, count + more));
                }
            }
        }
        Ok(())
    }

    /// The values that a partial names, with the parts that they are in.
    fn values<'a>(&self, partial: &'a Partial) -> impl Iterator<Item = (u8, &'a BTreeMap<Vec<u8>, i64>)> {
        self.parts.iter().zip(&partial.calls).filter_map(|(part, change)| match (part, change) {
            (Some(part), Change::Values(values)) => Some((*part, values)),
            _ => None,
        })
    }

    /// The state of a group after its delta.
    async fn add(&self, key: &Key, group: &Touched, groups: &dyn Groups) -> Result<State> {
        let mut new = group.old.clone().unwrap_or_else(|| self.calls.nothing());
        let check = |is_fine: bool, what: &dyn fmt::Debug| {
            assert!(is_fine, "more rows go from group {} than it has: {what:?}", self.named(key));
        };
        new.rows += group.partial.rows;
        check(new.rows >= 0, &group.partial);
        let calls = new.calls.iter_mut().zip(&group.partial.calls).zip(group.counts.iter().zip(&self.parts));
        for ((known, change), (counts, part)) in calls {
            match (known, change) {
                (Known::Count(count), Change::Count(more)) => {
                    *count += more;
                    check(*count >= 0, change);
                }
                (Known::Sum(total, count), Change::Sum(by, more)) => {
                    total.merge(by);
                    *count += more;
                    check(*count >= 0 && !total.is_negative(), change);
                }
                (Known::Best(best, count), Change::Values(values)) => {
                    *count += values.values().sum::<i64>();
                    check(*count >= 0 && counts.values().all(|(_, count)| *count >= 0), &(change, counts));
                    let part = part.expect("MIN and MAX have a part");
                    *best = self.choose(key, best.take(), counts, part, *count, groups).await?;
                    check(best.is_some() == (*count > 0), &(change, counts));
                }
                (known, change) => panic!("decoded as of one call: {known:?}, {change:?}"),
            }
        }
        if new.rows == 0 {
            check(new.calls.iter().all(Known::is_nothing), &new);
        }
        Ok(new)
    }

    /// The least of the values that stay. `best` was the least; `left` is how many rows stay.
    async fn choose(
        &self,
        key: &Key,
        best: Option<Vec<u8>>,
        counts: &BTreeMap<Vec<u8>, (i64, i64)>,
        part: u8,
        left: i64,
        groups: &dyn Groups,
    ) -> Result<Option<Vec<u8>>> {
        let least = counts.iter().find(|(_, (_, count))| *count > 0).map(|(value, _)| value.clone());
        let is_gone = |value: &[u8]| counts.get(value).is_some_and(|(_, count)| *count == 0);
        let Some(best) = best else { return Ok(least) };
        if !is_gone(&best) {
            return Ok(least.map_or(Some(best.clone()), |least| Some(least.min(best))));
        }
        // Nothing that is stored comes before what was the best.
        if left == 0 || least.as_ref().is_some_and(|least| *least < best) {
            return Ok(least);
        }
        let group = self.cells(key);
        let going = counts.values().filter(|(before, after)| *before > 0 && *after == 0).count();
        let most = (going + 1).min(PAGE);
        let mut behind = best;
        loop {
            let page = groups.values(&group, part, Some(&behind), most).await?;
            if let Some((value, _)) = page.iter().find(|(value, _)| !is_gone(value)) {
                return Ok(least.map_or(Some(value.clone()), |least| Some(least.min(value.clone()))));
            }
            match page.last() {
                Some((last, _)) if page.len() == most => behind = last.clone(),
                _ => return Ok(least),
            }
        }
    }

    /// The rows to write where the groups' states become `news`.
    fn write(
        &self,
        cells: &[ArrayRef],
        touched: &BTreeMap<Key, Touched>,
        news: &[State],
        broken: Broken,
    ) -> Result<Folded, Failure> {
        let stays = |state: &State| state.rows > 0 || self.is_global();
        let olds = touched.values().filter_map(|group| Some((group.row, group.old.as_ref()?)));
        let rows = touched.values().map(|group| group.row);
        let states = olds.chain(rows.zip(news).filter(|(_, new)| stays(new)));
        let shown = self.shown(cells, &states.collect::<Vec<_>>(), broken)?;
        let same: Vec<_> = shown.columns.iter().map(comparator).collect();

        let olds = touched.values().filter(|group| group.old.is_some()).count();
        let count = |broken: &[bool]| broken.iter().filter(|broken| **broken).count() as i64;
        let broken = count(&shown.broken[olds..]) - count(&shown.broken[..olds]);
        let (befores, afters) = shown.rows.split_at(olds);
        let (mut befores, mut afters) = (befores.iter().copied(), afters.iter().copied());
        let mut rows = Vec::new();
        for (group, new) in touched.values().zip(news) {
            let before = group.old.as_ref().and_then(|_| befores.next().expect("one for each"));
            let after = if stays(new) { afters.next().expect("one for each") } else { None };
            let mut put = |part, value, what| rows.push(Row { group: group.row, part, value, what });
            match (before, after) {
                (None, None) => {}
                (Some(before), Some(after))
                    if same.iter().all(|same| same(before as usize, after as usize).is_eq()) => {}
                (_, Some(after)) => put(0, Vec::new(), What::Show(after)),
                (Some(_), None) => put(0, Vec::new(), What::Delete),
            }
            match stays(new) {
                true if group.old.as_ref() != Some(new) => put(1, Vec::new(), What::State(stored(new))),
                false if group.old.is_some() => put(1, Vec::new(), What::Delete),
                _ => {}
            }
            for (part, counts) in self.parts.iter().zip(&group.counts) {
                for (value, (before, after)) in counts {
                    let part = part.expect("only MIN and MAX have counts");
                    match (before, after) {
                        (_, 1..) => put(part, value.clone(), What::State(stored(after))),
                        (1.., _) => put(part, value.clone(), What::Delete),
                        _ => {}
                    }
                }
            }
        }
        Ok(Folded { writes: self.writes(cells, &rows, &shown), broken })
    }

    /// What states show; those that are broken show nothing, unless that is an error.
    fn shown(&self, cells: &[ArrayRef], states: &[(u32, &State)], broken: Broken) -> Result<Shown, Failure> {
        let failure = match self.show(cells, states) {
            Ok(shown) => return Ok(shown),
            Err(failure) => failure,
        };
        if broken == Broken::Fails {
            return Err(failure);
        }
        // Whether a state can be shown does not depend on those beside it.
        let broken: Vec<bool> =
            states.iter().map(|state| self.show(cells, std::slice::from_ref(state)).is_err()).collect();
        let sound = states.iter().zip(&broken).filter(|(_, broken)| !**broken).map(|(state, _)| *state);
        let shown = self.show(cells, &sound.collect::<Vec<_>>())?;
        let mut rows = shown.rows.into_iter();
        let rows =
            broken.iter().map(|broken| if *broken { None } else { rows.next().expect("one for each") }).collect();
        Ok(Shown { rows, broken, columns: shown.columns })
    }

    /// What states show. Beside each stands the row of `cells`, those of the columns of GROUP BY, that is its group.
    fn show(&self, cells: &[ArrayRef], states: &[(u32, &State)]) -> Result<Shown, Failure> {
        let rows: UInt32Array = states.iter().map(|(row, _)| *row).collect();
        let named = |at: usize| {
            let cells: Vec<Value> = cells.iter().map(|column| Value::of_cell(column, states[at].0 as usize)).collect();
            self.named(&encode_key(&cells, &self.groups))
        };
        let mut columns: Vec<ArrayRef> = cells.iter().map(|column| self::cells(column, &rows)).collect();
        for (at, (call, name)) in self.calls.iter().enumerate() {
            let result = |(row, (_, state)): (usize, &(u32, &State))| {
                state.calls[at]
                    .result(call)
                    .map_err(|why| Failure { message: format!("{name} of group {}: {why}", named(row)) })
            };
            let results = states.iter().enumerate().map(result).collect::<Result<Vec<_>, Failure>>()?;
            columns.push(Value::to_array(&results, call.output_type));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(states.len()));
        let results = RecordBatch::try_new_with_options(self.input.clone(), columns, &options);
        let results = results.expect("groups and results");
        let named = |row: usize| format!("group {}", named(row));
        let shown: Vec<u32> = match &self.having {
            Some(having) => having.holds(&results, &named)?,
            None => (0..states.len() as u32).collect(),
        };
        let mut rows = vec![None; states.len()];
        shown.iter().zip(0..).for_each(|(state, row)| rows[*state as usize] = Some(row));
        let results = pick(&results, &UInt32Array::from(shown.clone()));
        let named = |row: usize| named(shown[row] as usize);
        let columns = self.outputs.iter().map(|output| output.column(&results, &named)).collect::<Result<_, _>>()?;
        Ok(Shown { rows, broken: vec![false; states.len()], columns })
    }

    fn writes(&self, groups: &[ArrayRef], rows: &[Row], shown: &Shown) -> Writes {
        let group: UInt32Array = rows.iter().map(|row| row.group).collect();
        let show = |row: &Row| match row.what {
            What::Show(at) => Some(at),
            What::Delete | What::State(_) => None,
        };
        let state = |row: &Row| match &row.what {
            What::State(state) => Some(state.clone()),
            What::Delete | What::Show(_) => None,
        };
        let show: UInt32Array = rows.iter().map(show).collect();
        let column = |made: &Made| -> ArrayRef {
            match made {
                Made::Group(at) => cells(&groups[*at], &group),
                Made::Part => Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.part))),
                Made::Value => Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.value))),
                Made::State => Arc::new(rows.iter().map(state).collect::<BinaryArray>()),
                Made::Output(at) if show.null_count() == rows.len() => {
                    new_null_array(self.outputs[*at].data_type(), rows.len())
                }
                Made::Output(at) => cells(&shown.columns[*at], &show),
            }
        };
        let columns = self.made.iter().map(column).collect();
        let ops = rows.iter().map(|row| if matches!(row.what, What::Delete) { Op::Delete } else { Op::Put }).collect();
        Writes { rows: RecordBatch::try_new(self.schema.clone(), columns).expect("the columns of the view"), ops }
    }

    fn cells(&self, key: &Key) -> Vec<Value> {
        decode_key(key, &self.groups).expect("encoded from cells of these types")
    }

    /// A group for a message.
    fn named(&self, key: &Key) -> String {
        let cells: Vec<String> = self.cells(key).iter().map(Value::to_string).collect();
        format!("({})", cells.join(", "))
    }

    fn damaged(&self, key: &Key) -> Error {
        let message = format!("the row with key {key:?} has no state of its aggregates");
        Error::Damaged { file: format!("view {}", self.view), message }
    }
}

/// The row key of a row of a group.
fn row_key(group: &Key, part: u8, value: &[u8]) -> Key {
    let rest = [Value::UInt(part.into()), Value::Binary(value.to_vec())];
    let rest = encode_key(&rest, &[ColumnType::UInt8, ColumnType::Binary]);
    Key([&group.0[..], &rest.0[..]].concat().into())
}

fn stored(what: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_allocvec(what).expect("plain data has bytes")
}
