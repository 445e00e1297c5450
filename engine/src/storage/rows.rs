//! Sorted rows with their versions: what memtables and SSTs yield, and what the merge of them yields.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt8Array, UInt64Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter_record_batch, interleave};
use arrow::datatypes::{
    DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;

use crate::types::{Key, Op, Sequence};

/// Name of the column that holds a row's sequence, in files and in answers that ask for it.
pub const SEQUENCE_COLUMN: &str = "__sequence";
/// Name of the column that holds a row's op, in files and in answers that ask for it.
pub const OP_COLUMN: &str = "__op";

/// Rows in the order (key ascending, sequence descending). All parts have the same length.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Some columns of the table; possibly none.
    pub batch: RecordBatch,
    /// The row keys.
    pub keys: Vec<Key>,
    /// The version of each row.
    pub sequences: Vec<Sequence>,
    /// What each version says. The fields of a tombstone are NULL.
    pub ops: Vec<Op>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The rows from `from`, `len` of them, sharing the columns.
    pub fn slice(&self, from: usize, len: usize) -> Rows {
        Rows {
            batch: self.batch.slice(from, len),
            keys: self.keys[from..from + len].to_vec(),
            sequences: self.sequences[from..from + len].to_vec(),
            ops: self.ops[from..from + len].to_vec(),
        }
    }

    /// Memory of the columns' cells, without what their buffers have beyond these rows.
    pub fn bytes(&self) -> usize {
        cell_bytes(&self.batch)
    }

    /// The columns, then [`SEQUENCE_COLUMN`] and [`OP_COLUMN`] where asked for.
    pub fn with_version_columns(&self, sequence: bool, op: bool) -> RecordBatch {
        let mut fields = self.batch.schema().fields().to_vec();
        let mut columns = self.batch.columns().to_vec();
        if sequence {
            fields.push(Arc::new(sequence_field()));
            columns.push(Arc::new(UInt64Array::from_iter_values(self.sequences.iter().map(|sequence| sequence.0))));
        }
        if op {
            fields.push(Arc::new(op_field()));
            columns.push(Arc::new(UInt8Array::from_iter_values(self.ops.iter().map(|op| *op as u8))));
        }
        batch(Arc::new(ArrowSchema::new(fields)), columns, self.len()).expect("the columns have the length of the rows")
    }

    /// The rows for which `mask` is set.
    pub(crate) fn filter(self, mask: &BooleanBuffer) -> Result<Rows, ArrowError> {
        debug_assert_eq!(mask.len(), self.len());
        if mask.count_set_bits() == mask.len() {
            return Ok(self);
        }
        Ok(Rows {
            batch: filter_record_batch(&self.batch, &mask.clone().into())?,
            keys: kept(self.keys, mask),
            sequences: kept(self.sequences, mask),
            ops: kept(self.ops, mask),
        })
    }
}

/// The field of [`SEQUENCE_COLUMN`].
pub(crate) fn sequence_field() -> Field {
    Field::new(SEQUENCE_COLUMN, DataType::UInt64, false)
}

/// The field of [`OP_COLUMN`].
pub(crate) fn op_field() -> Field {
    Field::new(OP_COLUMN, DataType::UInt8, false)
}

/// A batch of `rows` rows, also where it has no columns.
pub(crate) fn batch(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
}

/// The rows at `picked` (which batch, which row of it), of the columns at `columns` (position in the batches for each
/// field of `schema`).
pub(crate) fn gather(
    batches: &[&RecordBatch],
    picked: &[(usize, usize)],
    columns: &[usize],
    schema: &SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let contiguous = picked.windows(2).all(|pair| pair[1] == (pair[0].0, pair[0].1 + 1));
    let gathered = columns.iter().map(|at| match picked.first() {
        // Often one source has a long stretch for itself: nothing is copied then.
        Some((from, start)) if contiguous => Ok(batches[*from].column(*at).slice(*start, picked.len())),
        Some(_) => {
            let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(*at).as_ref()).collect();
            interleave(&arrays, picked)
        }
        None => Ok(arrow::array::new_empty_array(batches[0].column(*at).data_type())),
    });
    batch(schema.clone(), gathered.collect::<Result<_, _>>()?, picked.len())
}

/// Memory of the cells of `batch`. Buffers are often shared (a decoded batch is one allocation for all its columns), so
/// their capacities cannot be summed up.
pub(crate) fn cell_bytes(batch: &RecordBatch) -> usize {
    // An error means an array kind that no column type is stored as.
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or_default()).sum()
}

/// The counts in a TIMESTAMP column.
///
/// # Panics
/// If it is of another type.
pub(crate) fn timestamps(column: &ArrayRef) -> &[i64] {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => column.as_primitive::<TimestampSecondType>().values(),
        DataType::Timestamp(TimeUnit::Millisecond, _) => column.as_primitive::<TimestampMillisecondType>().values(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => column.as_primitive::<TimestampMicrosecondType>().values(),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => column.as_primitive::<TimestampNanosecondType>().values(),
        other => panic!("a TIME INDEX is a timestamp, not {other}"),
    }
}

fn kept<T>(all: Vec<T>, mask: &BooleanBuffer) -> Vec<T> {
    all.into_iter().zip(mask.iter()).filter_map(|(one, keep)| keep.then_some(one)).collect()
}
