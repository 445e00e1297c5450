//! SSTs as the Parquet files that they are: DataFusion over them, and plain rewriting.
//!
//! DataFusion's own source of Parquet files is not among the engine's dependencies. What stands for it is the same reader (that of
//! the crate `parquet`, with the columns that the query needs and nothing else), a partition for each file, under DataFusion's
//! defaults: as many partitions in work as there are cores.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::datasource::{TableProvider, TableType};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use datafusion::prelude::SessionContext;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// Rows of a batch and of a page: as the engine's options say.
const BATCH_ROWS: usize = 8_192;
/// Rows of a row group: as the engine's options say.
const GROUP_ROWS: usize = 100_000;

/// DataFusion, with `files` as the table `name`.
pub fn datafusion_over(name: &str, files: Vec<PathBuf>) -> SessionContext {
    let context = SessionContext::new();
    let schema = schema(&files[0]);
    context.register_table(name, Arc::new(Files { schema, files })).unwrap();
    context
}

/// Reads `inputs` one after the other and writes their rows to `output` in the same form, durably.
pub fn rewrite(inputs: &[PathBuf], output: &Path) {
    let schema = schema(&inputs[0]);
    let file = File::create(output).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties())).unwrap();
    for input in inputs {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(input).unwrap()).unwrap();
        for batch in reader.with_batch_size(BATCH_ROWS).build().unwrap() {
            writer.write(&batch.unwrap()).unwrap();
        }
    }
    writer.into_inner().unwrap().sync_all().unwrap();
}

/// As `storage::sst` writes.
fn properties() -> WriterProperties {
    let (sequence, op) = (ColumnPath::from("__sequence"), ColumnPath::from("__op"));
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(BATCH_ROWS)
        .set_write_batch_size(BATCH_ROWS)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_column_dictionary_enabled(sequence.clone(), false)
        .set_column_encoding(sequence, Encoding::DELTA_BINARY_PACKED)
        .set_column_dictionary_enabled(op, false)
        .build()
}

/// The columns of a file, without what else it says of itself.
fn schema(file: &Path) -> SchemaRef {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap()).unwrap();
    Arc::new(Schema::new(reader.schema().fields().clone()))
}

#[derive(Debug)]
struct Files {
    schema: SchemaRef,
    files: Vec<PathBuf>,
}

#[async_trait]
impl TableProvider for Files {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&columns)?);
        let part = |file: &PathBuf| -> Arc<dyn PartitionStream> {
            Arc::new(Part { file: file.clone(), columns: columns.clone(), schema: schema.clone() })
        };
        let parts = self.files.iter().map(part).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema.clone(), parts, None, [], false, None)?))
    }
}

/// A file.
#[derive(Debug)]
struct Part {
    file: PathBuf,
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl Part {
    fn open(&self) -> Result<ParquetRecordBatchReader> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&self.file)?).map_err(external)?;
        let columns = ProjectionMask::roots(reader.parquet_schema(), self.columns.iter().copied());
        reader.with_projection(columns).with_batch_size(BATCH_ROWS).build().map_err(external)
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = self.schema.clone();
        // The file has them in its own order.
        let mut sorted = self.columns.clone();
        sorted.sort_unstable();
        let places: Vec<usize> =
            self.columns.iter().map(|column| sorted.binary_search(column).expect("it is one of them")).collect();
        let arrange = move |read: std::result::Result<RecordBatch, arrow::error::ArrowError>| -> Result<RecordBatch> {
            let read = read?;
            let cells = places.iter().map(|at| read.column(*at).clone()).collect();
            let rows = RecordBatchOptions::new().with_row_count(Some(read.num_rows()));
            Ok(RecordBatch::try_new_with_options(schema.clone(), cells, &rows)?)
        };
        let batches: Box<dyn Iterator<Item = Result<RecordBatch>> + Send> = match self.open() {
            Ok(reader) => Box::new(reader.map(arrange)),
            Err(err) => Box::new(std::iter::once(Err(err))),
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(batches)))
    }
}

fn external(err: parquet::errors::ParquetError) -> DataFusionError {
    DataFusionError::External(Box::new(err))
}
