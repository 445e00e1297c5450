//! Golden scripts: `testscripts/operator/*`. Rows of a feeder go in, rows of a view come out. The views: `tests/programs.rs`.
//!
//! - `view NAME [filling]`: begins anew with that view, and prints its query; while it is filled, groups that cannot be shown are
//!   hidden
//! - `broken`: how many are, and why the first cannot; `ready`: from now on that is an error
//! - `> + COLUMN=VALUE ..` and `> - COLUMN=VALUE ..`: a row of the table `t` that is there from now on, or no more; what is not
//!   named is NULL
//! - `absorb N`: takes the next N changes as one delta, or as one of each leg
//! - `crash`: what is in memory is gone; the rows of the view stay, and how many changes are in them
//! - `recover`: goes on there
//! - `stored`: how many rows each part of the groups has
//!
//! At the end of a block all changes that are left are absorbed, and what changed in the view is printed. A delta that fails
//! changes nothing; its changes stay, and are tried again together with those of the next block.

mod programs;
mod property;

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, Int8Array, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Schema as ArrowSchema};
use async_trait::async_trait;
use futures::executor::block_on;
use goldenscript::{Block, Command, Context};

use super::*;
use crate::meta::catalog::columns;
use crate::types::{ColumnType, Key, Op, Sequence, Value, decode_batch, encode_batch, encode_key, encode_keys};
use programs::{FEEDER, View, view};

#[test]
fn scripts() {
    crate::testscripts::run_all::<Script>("operator");
}

/// The rows of a view, and how far they have come.
#[derive(Clone, Default)]
struct Store {
    rows: BTreeMap<Key, Vec<Value>>,
    /// How many changes are in them.
    position: usize,
    /// Groups that have no row because it cannot be computed.
    broken: i64,
    is_filling: bool,
}

impl Store {
    fn on_failure(&self) -> Broken {
        if self.is_filling { Broken::Hidden } else { Broken::Fails }
    }
}

/// A change of a row of `t`.
#[derive(Clone)]
struct Change {
    sign: i8,
    row: Vec<Value>,
    sequence: Sequence,
}

impl View {
    /// A store with what is there before any row is.
    fn store(&self) -> Result<Store, Failure> {
        self.store_of(false)
    }

    fn store_of(&self, is_filling: bool) -> Result<Store, Failure> {
        let mut store = Store { is_filling, ..Store::default() };
        if let Some(Folded { writes: Writes { rows, ops }, broken }) = self.program.initial(store.on_failure())? {
            self.write(&mut store, &rows, &ops);
            store.broken += broken;
        }
        Ok(store)
    }

    /// Takes `changes` as one delta of each leg. All of them, or none.
    fn absorb(&self, store: &mut Store, changes: &[Change]) -> Result<(), Failure> {
        let mut next = store.clone();
        for leg in 0..self.program.legs() {
            let Delta { rows, ops } = self.delta(leg as u32, changes)?;
            let rows = decode_batch(&encode_batch(&rows), self.program.delta()).unwrap();
            match self.program.fold() {
                None => self.write(&mut next, &rows, &ops),
                Some(fold) => {
                    let groups = Stored { view: self, store: &next };
                    let Folded { writes, broken } = block_on(fold.apply(&rows, &groups, next.on_failure())).unwrap()?;
                    self.write(&mut next, &writes.rows, &writes.ops);
                    next.broken += broken;
                }
            }
        }
        next.position += changes.len();
        *store = next;
        Ok(())
    }

    fn delta(&self, leg: u32, changes: &[Change]) -> Result<Delta, Failure> {
        let mut changes: Vec<(Key, &Change)> =
            changes.iter().map(|change| (encode_key(&change.row[..1], &[ColumnType::Int64]), change)).collect();
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        let leg = self.program.leg(leg);
        let rows: Vec<&[Value]> = changes.iter().map(|(_, change)| &change.row[..]).collect();
        let rows = batch(&rows, leg.columns());
        let signs: Int8Array = changes.iter().map(|(_, change)| Some(change.sign)).collect();
        let sequences: Vec<Sequence> = changes.iter().map(|(_, change)| change.sequence).collect();
        let keys: Vec<Key> = changes.iter().map(|(key, _)| key.clone()).collect();
        leg.run(&rows, &signs, &keys, &sequences, self.appends)
    }

    /// Each row that is written changes something, and they are in the order of their keys.
    fn write(&self, store: &mut Store, rows: &RecordBatch, ops: &[Op]) {
        let keys = encode_keys(rows, &self.schema.key());
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]) && keys.len() == ops.len());
        for (row, (key, op)) in keys.into_iter().zip(ops).enumerate() {
            let cells: Vec<Value> = rows.columns().iter().map(|column| Value::of_cell(column, row)).collect();
            let before = store.rows.get(&key);
            match op {
                Op::Put => {
                    assert_ne!(before, Some(&cells), "written, and the same");
                    store.rows.insert(key, cells);
                }
                Op::Delete => {
                    let is_bare = |(at, cell): (usize, &Value)| self.schema.is_key(at) || cell.is_null();
                    assert!(cells.iter().enumerate().all(is_bare), "a row to delete is its key alone: {cells:?}");
                    assert!(before.is_some(), "deleted, and not there: {cells:?}");
                    store.rows.remove(&key);
                }
            }
        }
    }

    fn part(&self, row: &[Value]) -> u64 {
        match self.schema.column(crate::meta::catalog::columns::PART).map(|(at, _)| &row[at]) {
            Some(Value::UInt(part)) => *part,
            _ => 0,
        }
    }

    /// The rows that SELECT shows.
    fn shown(&self, store: &Store) -> BTreeMap<Key, Vec<Value>> {
        let rows = store.rows.iter().filter(|(_, row)| self.part(row) == 0);
        rows.map(|(key, row)| (key.clone(), self.shown.iter().map(|at| row[*at].clone()).collect())).collect()
    }
}

/// Rows of `t`, with these columns.
fn batch(rows: &[&[Value]], columns: &[String]) -> RecordBatch {
    let column = |name: &String| {
        let at = FEEDER.iter().position(|(of, _)| of == name).unwrap();
        let cells: Vec<Value> = rows.iter().map(|row| row[at].clone()).collect();
        let field = Field::new(name, FEEDER[at].1.to_arrow(), at != 0);
        (field, Value::to_array(&cells, FEEDER[at].1))
    };
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = columns.iter().map(column).unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), columns, &options).unwrap()
}

/// A store as a fold reads it.
struct Stored<'a> {
    view: &'a View,
    store: &'a Store,
}

#[async_trait]
impl Groups for Stored<'_> {
    async fn states(&self, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
        let state = |row: &Vec<Value>| match row.last() {
            Some(Value::Binary(state)) => state.clone(),
            other => panic!("{other:?} is no state"),
        };
        Ok(keys.iter().map(|key| self.store.rows.get(key).map(state)).collect())
    }

    async fn values(
        &self,
        group: &[Value],
        part: u8,
        behind: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let rows = self.store.rows.values().filter(|row| self.view.part(row) == u64::from(part));
        let key = self.view.schema.key();
        let rows = rows.filter(|row| key.iter().zip(group).all(|(at, cell)| row[*at] == *cell));
        let cells = rows.map(|row| match &row[row.len() - 2..] {
            [Value::Binary(value), Value::Binary(state)] => (value.clone(), state.clone()),
            other => panic!("{other:?} is no value with its state"),
        });
        Ok(cells.filter(|(value, _)| behind.is_none_or(|behind| &value[..] > behind)).take(most).collect())
    }
}

#[derive(Default)]
struct Script {
    name: String,
    /// None: it crashed.
    view: Option<View>,
    store: Store,
    /// All changes of `t`.
    changes: Vec<Change>,
    /// What was shown when it was printed last.
    printed: BTreeMap<Key, Vec<Value>>,
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn StdError>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "view" => {
                self.name = args.next_pos().ok_or("which view?")?.to_string();
                let view = view(&self.name);
                let query = view.query.to_string();
                *self = Script { name: self.name.clone(), ..Script::default() };
                let is_filling = args.next_pos().is_some_and(|arg| arg == "filling");
                self.store = view.store_of(is_filling).map_err(|failure| failure.message)?;
                self.view = Some(view);
                query
            }
            "absorb" => {
                let count: usize = args.next_pos().ok_or("how many?")?.parse()?;
                self.absorb(self.store.position + count)
            }
            "crash" => {
                self.view = None;
                String::new()
            }
            "recover" => {
                self.view = Some(view(&self.name));
                String::new()
            }
            "broken" => {
                let view = self.view.as_ref().ok_or("it crashed")?;
                let fold = view.program.fold().ok_or("it has no groups")?;
                let states = self.store.rows.values().filter(|row| view.part(row) == 1);
                let names: Vec<&str> = fold.groups().collect();
                let columns: Vec<(usize, &crate::types::Column)> =
                    names.iter().chain([&columns::STATE]).filter_map(|name| view.schema.column(name)).collect();
                let cells = |at: usize| states.clone().map(|row| row[at].clone()).collect::<Vec<_>>();
                let arrays: Vec<(&str, ArrayRef)> = columns
                    .iter()
                    .map(|(at, column)| (column.name.as_str(), Value::to_array(&cells(*at), column.column_type)))
                    .collect();
                let rows = RecordBatch::try_from_iter(arrays).map_err(|err| err.to_string())?;
                let first = fold.first_broken(&rows).map_err(|err| err.to_string())?;
                assert_eq!(first.is_some(), self.store.broken > 0, "{first:?}");
                first.map_or("0".to_string(), |first| format!("{}: {first}", self.store.broken))
            }
            "ready" => {
                self.store.is_filling = false;
                String::new()
            }
            "stored" => {
                let view = self.view.as_ref().ok_or("it crashed")?;
                let mut parts: BTreeMap<u64, u64> = BTreeMap::new();
                self.store.rows.values().for_each(|row| *parts.entry(view.part(row)).or_default() += 1);
                let parts: Vec<String> = parts.iter().map(|(part, rows)| format!("part {part}: {rows}")).collect();
                if parts.is_empty() { "nothing".to_string() } else { parts.join(", ") }
            }
            row => {
                let (sign, row) = match row.split_at_checked(1).ok_or("a row?")? {
                    ("+", row) => (1, row),
                    ("-", row) => (-1, row),
                    _ => return Err(format!("command {row}").into()),
                };
                let row = self::row(row)?;
                // A row that appends is retracted as the version that it is.
                let before = self.changes.iter().rev().find(|change| sign < 0 && change.row == row);
                let sequence = before.map_or(Sequence(self.changes.len() as u64 + 1), |before| before.sequence);
                self.changes.push(Change { sign, row, sequence });
                String::new()
            }
        };
        args.reject_next()?;
        Ok(output)
    }

    fn end_block(&mut self, _: &Block) -> Result<String, Box<dyn StdError>> {
        let mut output = self.absorb(self.changes.len());
        let Some(view) = &self.view else { return Ok(output) };
        let shown = view.shown(&self.store);
        let keys: std::collections::BTreeSet<&Key> = self.printed.keys().chain(shown.keys()).collect();
        for key in keys {
            let (before, after) = (self.printed.get(key), shown.get(key));
            if before == after {
                continue;
            }
            for (sign, row) in [("-", before), ("+", after)] {
                let Some(row) = row else { continue };
                let cell = |at: usize| show(&row[at], view.schema.columns()[view.shown[at]].column_type);
                let row: Vec<String> = (0..row.len()).map(cell).collect();
                output.push_str(&format!("{sign} {}\n", row.join(" ")));
            }
        }
        self.printed = shown;
        Ok(output)
    }
}

impl Script {
    /// Absorbs what is there up to a change, if it lives.
    fn absorb(&mut self, end: usize) -> String {
        let Some(view) = &self.view else { return String::new() };
        let changes = &self.changes[self.store.position..end];
        if changes.is_empty() {
            return String::new();
        }
        match view.absorb(&mut self.store, changes) {
            Ok(()) => String::new(),
            Err(failure) => format!("fails: {failure}\n"),
        }
    }
}

fn row(text: &str) -> Result<Vec<Value>, Box<dyn StdError>> {
    let mut row = vec![Value::Null; FEEDER.len()];
    for cell in text.split_whitespace() {
        let (name, cell) = cell.split_once('=').ok_or("COLUMN=VALUE")?;
        let at = FEEDER.iter().position(|(of, _)| *of == name).ok_or("no such column")?;
        row[at] = match (cell, FEEDER[at].1) {
            ("NULL", _) => Value::Null,
            (_, ColumnType::Int64) => Value::Int(cell.parse()?),
            (_, ColumnType::Float64) => Value::Float(cell.parse()?),
            (_, ColumnType::Decimal { .. }) => {
                let (whole, digits) = cell.split_once('.').ok_or("two digits behind a point")?;
                assert_eq!(digits.len(), 2);
                Value::Decimal(format!("{whole}{digits}").parse()?)
            }
            _ => Value::String(cell.to_string()),
        };
    }
    Ok(row)
}

fn show(cell: &Value, column_type: ColumnType) -> String {
    match (cell, column_type) {
        (Value::Decimal(unscaled), ColumnType::Decimal { scale, .. }) => {
            let one = 10i128.pow(scale as u32);
            let sign = if *unscaled < 0 { "-" } else { "" };
            format!("{sign}{}.{:0width$}", (unscaled / one).abs(), (unscaled % one).abs(), width = scale as usize)
        }
        _ => cell.to_string(),
    }
}

fn change(sign: i8, text: &str) -> Change {
    Change { sign, row: row(text).unwrap(), sequence: Sequence(1) }
}

#[test]
fn only_the_columns_that_are_used_are_read() {
    assert_eq!(view("filter").program.leg(0).columns(), ["k", "g", "i"]);
    assert_eq!(view("project").program.leg(0).columns(), ["g", "i"]);
    assert_eq!(view("count").program.leg(0).columns(), [""; 0]);
}

#[test]
#[should_panic(expected = "more rows go from group ('a') than it has")]
fn a_row_that_goes_twice_is_a_broken_invariant() {
    let view = view("having");
    let mut store = view.store().unwrap();
    view.absorb(&mut store, &[change(1, "k=1 g=a i=1")]).unwrap();
    let gone = [change(-1, "k=1 g=a i=1")];
    view.absorb(&mut store, &gone).unwrap();
    let _ = view.absorb(&mut store, &gone);
}

#[test]
#[should_panic(expected = "more rows go from group ('a') than it has")]
fn a_row_that_goes_with_another_value_is_a_broken_invariant() {
    let view = view("having");
    let mut store = view.store().unwrap();
    view.absorb(&mut store, &[change(1, "k=1 g=a i=1")]).unwrap();
    let _ = view.absorb(&mut store, &[change(-1, "k=1 g=a i=2")]);
}

/// More values go at once than are looked at in one go.
#[test]
fn the_next_value_is_found_behind_many_that_go() {
    let view = view("global");
    let mut store = view.store().unwrap();
    let rows = |sign, values: std::ops::Range<i64>| -> Vec<Change> {
        values.map(|value| change(sign, &format!("k={value} i={value}"))).collect()
    };
    view.absorb(&mut store, &rows(1, 0..2_600)).unwrap();
    // 1,000 stays, and is the last of the first page.
    view.absorb(&mut store, &[rows(-1, 0..1_000), rows(-1, 1_001..1_500)].concat()).unwrap();
    let least = |store: &Store| view.shown(store).into_values().next().unwrap()[2].clone();
    assert_eq!(least(&store), Value::Int(1_000));
    view.absorb(&mut store, &[rows(-1, 1_000..1_001), rows(-1, 1_500..2_550)].concat()).unwrap();
    assert_eq!(least(&store), Value::Int(2_550));
    view.absorb(&mut store, &rows(-1, 2_550..2_600)).unwrap();
    assert_eq!(least(&store), Value::Null);
}

#[test]
fn what_is_no_delta_of_the_view_is_an_error() {
    let (count, global) = (view("count"), view("global"));
    let store = global.store().unwrap();
    let apply = |delta: &RecordBatch| {
        let groups = Stored { view: &global, store: &store };
        block_on(global.program.fold().unwrap().apply(delta, &groups, Broken::Fails))
            .map(|folded| folded.unwrap().writes.ops.len())
    };
    let rows = [change(1, "k=1 i=1")];
    let right = global.delta(0, &rows).unwrap().rows;
    assert_eq!(apply(&right), Ok(3));
    let twice = arrow::compute::concat_batches(&right.schema(), [&right, &right]).unwrap();
    let partial = right.column(0).as_binary::<i32>().value(0);
    let broken = BinaryArray::from_iter_values([&partial[..partial.len() - 1]]);
    let broken = RecordBatch::try_from_iter([(PARTIAL, Arc::new(broken) as ArrayRef)]).unwrap();
    let grouped = view("having").delta(0, &rows).unwrap().rows;
    for delta in [count.delta(0, &rows).unwrap().rows, twice, broken, grouped] {
        assert_eq!(apply(&delta).unwrap_err().code(), "mismatch");
    }
}

#[test]
fn a_state_that_is_none_is_damage() {
    let global = view("global");
    let mut store = global.store().unwrap();
    let state = store.rows.values_mut().find(|row| global.part(row) == 1).unwrap();
    *state.last_mut().unwrap() = Value::Binary(vec![1]);
    let delta = global.delta(0, &[change(1, "k=1 i=1")]).unwrap().rows;
    let groups = Stored { view: &global, store: &store };
    let err = block_on(global.program.fold().unwrap().apply(&delta, &groups, Broken::Fails)).unwrap_err();
    assert_eq!(err.code(), "damaged");
}

#[test]
fn a_plan_of_another_view_is_refused() {
    let table = |of: &View| TableDef {
        id: crate::types::TableId(2),
        name: "v".into(),
        schema: of.schema.clone(),
        partition: crate::meta::catalog::PartitionRule::Hash { columns: Vec::new(), regions: 1 },
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
    };
    let views = ["filter", "project", "group", "global", "decimals"].map(view);
    for (at, of) in views.iter().enumerate() {
        for (other, plan) in views.iter().enumerate() {
            let made = Program::new(&table(of), &plan.plan);
            assert_eq!(made.is_ok(), at == other, "{} by {}", of.query, plan.query);
        }
    }
}
