//! What becomes of the changes of a feeder's rows, at the feeder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, DynComparator, Int8Array, RecordBatch, RecordBatchOptions, UInt32Array, make_comparator,
};
use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchema;

use super::expression::{Expression, cells, pick};
use super::group::Calls;
use super::{Failure, mismatch};
use crate::error::Result;
use crate::meta::catalog::{TableDef, columns};
use crate::sql::{LegPlan, ViewPlan};
use crate::types::{Key, Op, Sequence, encode_keys};

/// What becomes of the rows that one scan of a feeder reads.
#[derive(Debug)]
pub struct Leg {
    number: u32,
    columns: Vec<String>,
    filter: Option<Expression>,
    outputs: Vec<Expression>,
    /// The columns of its deltas.
    delta: SchemaRef,
    into: Into,
}

#[derive(Debug)]
enum Into {
    Rows {
        /// For each column of the view the output that it is; none: the key that the engine makes.
        made: Vec<Option<usize>>,
        /// Positions of the view's key columns.
        key: Vec<usize>,
    },
    Partials {
        /// How many of the outputs are grouped by.
        groups: usize,
        calls: Arc<Calls>,
    },
}

/// What some changes come to in the view.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Of a view without aggregates whole rows, at most one for each key. Otherwise one row for each group: its key, and what the
    /// changes come to, which is not nothing. In the order of the keys.
    pub rows: RecordBatch,
    /// What is done with the rows of a view without aggregates; of a row to delete only the key says anything, and the rest is
    /// NULL.
    pub ops: Vec<Op>,
}

impl Leg {
    pub(super) fn new(
        table: &TableDef,
        plan: &ViewPlan,
        number: u32,
        leg: &LegPlan,
        calls: Option<&Arc<Calls>>,
        delta: &SchemaRef,
    ) -> Result<Leg> {
        let used: BTreeSet<&str> = leg
            .filter
            .iter()
            .chain(&leg.outputs)
            .flat_map(|expr| expr.column_refs())
            .map(|column| column.name())
            .collect();
        let fields: Vec<_> =
            leg.input.fields().iter().filter(|field| used.contains(field.name().as_str())).cloned().collect();
        let names = fields.iter().map(|field| field.name().clone()).collect();
        let input =
            DFSchema::from_unqualified_fields(fields.into(), Default::default()).map_err(crate::sql::invalid)?;
        let filter = leg.filter.as_ref().map(|filter| Expression::condition(filter, &input)).transpose()?;
        let outputs =
            leg.outputs.iter().map(|output| Expression::new(output, &input)).collect::<Result<Vec<Expression>>>()?;

        let schema = &table.schema;
        let into = match (&plan.aggregate, calls) {
            (Some(aggregate), Some(calls)) => {
                for (output, field) in outputs.iter().zip(delta.fields()).take(aggregate.groups) {
                    if output.data_type() != field.data_type() {
                        let what = format!("it groups by {output}, {}, as {field}", output.data_type());
                        return Err(mismatch(table, what));
                    }
                }
                for (call, name) in calls.iter() {
                    let Some(at) = call.input else { continue };
                    let input = outputs.get(at).ok_or_else(|| mismatch(table, format!("{name} has no input")))?;
                    if *input.data_type() != call.input_type.to_arrow() {
                        let what = format!("{name} is of {}, not {}", input.data_type(), call.input_type);
                        return Err(mismatch(table, what));
                    }
                }
                Into::Partials { groups: aggregate.groups, calls: calls.clone() }
            }
            _ => {
                let mut made = Vec::with_capacity(schema.columns().len());
                for column in schema.columns() {
                    let at = plan.columns.iter().position(|(name, _)| *name == column.name);
                    let output = at.and_then(|at| outputs.get(at));
                    match output {
                        None if at.is_none() && column.name == columns::KEY => {}
                        None => return Err(mismatch(table, format!("nothing is computed for {:?}", column.name))),
                        Some(output) if *output.data_type() != column.column_type.to_arrow() => {
                            let what = format!("{output} is {}, {:?} is not", output.data_type(), column.name);
                            return Err(mismatch(table, what));
                        }
                        Some(_) => {}
                    }
                    made.push(at);
                }
                Into::Rows { made, key: schema.key() }
            }
        };
        Ok(Leg { number, columns: names, filter, outputs, delta: delta.clone(), into })
    }

    /// The names of the feeder's columns to read, in this order: those that the query uses.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// What some changes of the feeder's rows come to.
    ///
    /// `rows` has the columns that [`columns`](Leg::columns) says; beside each row stands its sign (-1: it was, 1: it is), and its
    /// key and sequence. They are in the order of the keys, and of one key what was stands before what is. `appends` says that
    /// the feeder tells rows of one key apart by their sequence.
    ///
    /// # Panics
    /// If these are not of one length, or a sign is neither.
    pub fn run(
        &self,
        rows: &RecordBatch,
        signs: &Int8Array,
        keys: &[Key],
        sequences: &[Sequence],
        appends: bool,
    ) -> Result<Delta, Failure> {
        let count = rows.num_rows();
        assert!(signs.len() == count && keys.len() == count && sequences.len() == count, "{count} rows");
        assert!(signs.iter().all(|sign| matches!(sign, Some(-1 | 1))), "a sign is neither -1 nor 1");
        let named = |row: usize| format!("the row with key {:?}", keys[row]);
        let passed: Vec<u32> = match &self.filter {
            Some(filter) => filter.holds(rows, &named)?,
            None => (0..count as u32).collect(),
        };
        let rows = match passed.len() == count {
            true => rows.clone(),
            false => pick(rows, &UInt32Array::from(passed.clone())),
        };
        let named = |row: usize| named(passed[row] as usize);
        let outputs: Vec<ArrayRef> =
            self.outputs.iter().map(|output| output.column(&rows, &named)).collect::<Result<_, _>>()?;
        let signs: Vec<i8> = passed.iter().map(|row| signs.value(*row as usize)).collect();
        Ok(match &self.into {
            Into::Rows { made, key } => {
                let row = |row: &u32| {
                    let row = *row as usize;
                    (&keys[row], if appends { sequences[row] } else { Sequence(0) })
                };
                let rows: Vec<(&Key, Sequence)> = passed.iter().map(row).collect();
                self.rows(&outputs, &signs, &rows, appends, made, key)
            }
            Into::Partials { groups, calls } => self.partials(&outputs, &signs, *groups, calls),
        })
    }

    /// Of each row of the feeder what it was at first and what it is at last decide. `rows` says which row each one is.
    fn rows(
        &self,
        outputs: &[ArrayRef],
        signs: &[i8],
        rows: &[(&Key, Sequence)],
        appends: bool,
        made: &[Option<usize>],
        key: &[usize],
    ) -> Delta {
        let same: Vec<DynComparator> = outputs.iter().map(comparator).collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        // Stable; and what is in order already is only looked through.
        order.sort_by(|a, b| rows[*a].cmp(&rows[*b]));
        let (mut taken, mut ops) = (Vec::new(), Vec::new());
        for changes in order.chunk_by(|a, b| rows[*a] == rows[*b]) {
            let (first, last) = (changes[0], changes[changes.len() - 1]);
            let op = match (signs[first], signs[last]) {
                (-1, 1) if same.iter().all(|same| same(first, last).is_eq()) => continue,
                (_, 1) => Op::Put,
                (-1, _) => Op::Delete,
                // It came and went.
                _ => continue,
            };
            taken.push(last as u32);
            ops.push(op);
        }
        let put = |(row, op): (&u32, &Op)| (*op == Op::Put).then_some(*row);
        let fields: UInt32Array = taken.iter().zip(&ops).map(put).collect();
        let hidden = || {
            let name = |row: &u32| {
                let (key, sequence) = &rows[*row as usize];
                let mut name = self.number.to_be_bytes().to_vec();
                name.extend_from_slice(&key.0);
                if appends {
                    name.extend_from_slice(&sequence.0.to_be_bytes());
                }
                name
            };
            Arc::new(taken.iter().map(name).map(Some).collect::<BinaryArray>()) as ArrayRef
        };
        let all = UInt32Array::from(taken.clone());
        let column = |(at, made): (usize, &Option<usize>)| match made {
            None => hidden(),
            Some(output) => cells(&outputs[*output], if key.contains(&at) { &all } else { &fields }),
        };
        let columns = made.iter().enumerate().map(column).collect();
        Delta { rows: RecordBatch::try_new(self.delta.clone(), columns).expect("the columns of the view"), ops }
    }

    fn partials(&self, outputs: &[ArrayRef], signs: &[i8], groups: usize, calls: &Calls) -> Delta {
        let keys = match groups {
            0 => vec![Key::default(); signs.len()],
            _ => {
                let columns = outputs[..groups].iter().map(|column| ("g", column.clone(), true));
                let columns = RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length");
                encode_keys(&columns, &(0..groups).collect::<Vec<_>>())
            }
        };
        // The number of each group, and its first row.
        let mut found: BTreeMap<&Key, (u32, u32)> = BTreeMap::new();
        let mut group_of = Vec::with_capacity(keys.len());
        for (key, row) in keys.iter().zip(0..) {
            let next = found.len() as u32;
            group_of.push(found.entry(key).or_insert((next, row)).0);
        }
        let partials = calls.gather(outputs, signs, &group_of, found.len());
        let (mut firsts, mut bytes) = (Vec::new(), Vec::new());
        for (group, first) in found.into_values() {
            let partial = &partials[group as usize];
            if !partial.is_zero() {
                firsts.push(first);
                bytes.push(postcard::to_allocvec(partial).expect("plain data has bytes"));
            }
        }
        let partials = Arc::new(BinaryArray::from_iter_values(&bytes)) as ArrayRef;
        let firsts = UInt32Array::from(firsts);
        let columns = outputs[..groups].iter().map(|column| cells(column, &firsts)).chain([partials]).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(firsts.len()));
        let rows = RecordBatch::try_new_with_options(self.delta.clone(), columns, &options);
        Delta { rows: rows.expect("the columns of the groups"), ops: Vec::new() }
    }
}

/// Compares two cells of a column.
pub(super) fn comparator(column: &ArrayRef) -> DynComparator {
    make_comparator(column, column, SortOptions::default()).expect("every column type has an order")
}
