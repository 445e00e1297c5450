//! Flights: those that left New York in January 2013, and as many further months of them as are wanted.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit, TimestampMillisecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// From a month to the next one: as long as January, so that no two rows have one key.
const MONTH_MS: i64 = 31 * 24 * 3_600_000;

/// The statement that makes a table for them.
pub fn create(table: &str, regions: u64) -> String {
    format!(
        "CREATE TABLE {table} (
            origin STRING, carrier STRING, flight INT, sched_dep TIMESTAMP(3),
            dep_delay INT, arr_delay INT, air_time INT, dest STRING, tailnum STRING, distance INT,
            PRIMARY KEY (origin, carrier, flight), TIME INDEX (sched_dep)
        ) WITH (regions = {regions})"
    )
}

/// Those of January.
pub struct January(RecordBatch);

impl January {
    /// Reads them.
    pub fn read() -> January {
        let file =
            File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios/data/flights-2013-01.parquet")).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let schema = reader.schema().clone();
        let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
        let rows = concat_batches(&schema, &batches).unwrap();
        // Without what the file says of itself, and with times as the table has them.
        let column = |(field, cells): (&Arc<Field>, &ArrayRef)| match cells.data_type() {
            DataType::Timestamp(..) => {
                let cells = cast(cells, &DataType::Timestamp(TimeUnit::Millisecond, None)).unwrap();
                (Field::new(field.name(), cells.data_type().clone(), false), cells)
            }
            _ => (field.as_ref().clone(), cells.clone()),
        };
        let (fields, cells): (Vec<Field>, Vec<ArrayRef>) =
            schema.fields().iter().zip(rows.columns()).map(column).unzip();
        January(RecordBatch::try_new(Arc::new(Schema::new(fields)), cells).unwrap())
    }

    /// How many.
    pub fn rows(&self) -> usize {
        self.0.num_rows()
    }

    /// The same flights so many months later.
    pub fn later(&self, months: usize) -> RecordBatch {
        let later = months as i64 * MONTH_MS;
        let shift = |cells: &ArrayRef| match cells.as_primitive_opt::<TimestampMillisecondType>() {
            Some(times) => Arc::new(times.unary::<_, TimestampMillisecondType>(|time| time + later)),
            None => cells.clone(),
        };
        RecordBatch::try_new(self.0.schema(), self.0.columns().iter().map(shift).collect()).unwrap()
    }

    /// Twelve months of them.
    pub fn year(&self) -> RecordBatch {
        let months: Vec<RecordBatch> = (0..12).map(|month| self.later(month)).collect();
        concat_batches(&self.0.schema(), &months).unwrap()
    }
}
