//! Rows of an older schema as those of the schema that a scan reads by.
//!
//! Columns are matched by id. One that the source does not have reads its default at the time when it was added; one whose
//! type was widened since is cast, which cannot fail. The row key never changes, but its columns may stand elsewhere.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Schema as ArrowSchema, SchemaRef};
use arrow::error::ArrowError;

use super::rows::batch;
use super::scan::Plan;
use crate::types::{ColumnType, Op, Schema, Value};

/// How the columns that a plan reads come out of a source.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Positions in the source's schema of what is read of it, ascending.
    pub(crate) read: Vec<usize>,
    /// The same as a batch has it.
    pub(crate) read_schema: SchemaRef,
    /// One for each column that the plan reads; none: they are the source's own.
    made: Option<Vec<Made>>,
}

#[derive(Debug)]
enum Made {
    /// Position in `read`.
    Read(usize),
    /// Position in `read`; the type that it has now.
    Cast(usize, DataType),
    /// No row has it.
    Absent(Value, ColumnType),
}

impl Shape {
    /// For rows of `source`, read by `plan` of `target`.
    pub(crate) fn of(source: &Schema, target: &Schema, plan: &Plan) -> Shape {
        if source.version == target.version {
            return Shape { read: plan.read.clone(), read_schema: plan.read_schema.clone(), made: None };
        }
        let there = |at: &usize| position(source, target, *at);
        let mut read: Vec<usize> = plan.read.iter().filter_map(there).collect();
        read.sort_unstable();
        let made = plan.read.iter().map(|at| {
            let column = &target.columns()[*at];
            let Some(from) = there(at) else { return Made::Absent(target.absent(column.id), column.column_type) };
            let place = read.binary_search(&from).expect("it is read");
            match source.columns()[from].column_type == column.column_type {
                true => Made::Read(place),
                false => Made::Cast(place, column.column_type.to_arrow()),
            }
        });
        let made = Some(made.collect());
        let fields = source.to_arrow();
        let fields: Vec<_> = read.iter().map(|at| fields.fields()[*at].clone()).collect();
        Shape { read, read_schema: Arc::new(ArrowSchema::new(fields)), made }
    }

    /// The rows of `read` (columns of `read_schema`), as the plan has them. A tombstone has no fields: its cells of absent
    /// columns are NULL too.
    pub(crate) fn make(&self, read: RecordBatch, ops: &[Op], plan: &Plan) -> Result<RecordBatch, ArrowError> {
        let Some(made) = &self.made else { return Ok(read) };
        let rows = read.num_rows();
        let column = |made: &Made| -> Result<ArrayRef, ArrowError> {
            match made {
                Made::Read(at) => Ok(read.column(*at).clone()),
                Made::Cast(at, to) => cast(read.column(*at), to),
                Made::Absent(value, column_type) => {
                    let cells = Value::to_array(&[value.clone(), Value::Null], *column_type);
                    let cell = ops.iter().map(|op| u32::from(*op != Op::Put));
                    take(&cells, &UInt32Array::from_iter_values(cell), None)
                }
            }
        };
        batch(plan.read_schema.clone(), made.iter().map(column).collect::<Result<_, _>>()?, rows)
    }
}

/// Where the column at `at` of `target` stands in `source`; none: it is not there.
pub(crate) fn position(source: &Schema, target: &Schema, at: usize) -> Option<usize> {
    let id = target.columns()[at].id;
    source.columns().iter().position(|column| column.id == id)
}
