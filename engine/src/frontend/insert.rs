//! INSERT: rows of literals, of a query, or of Arrow batches become whole rows of the table.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::concat_batches;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::deadline::Deadline;
use super::session::Session;
use super::view::refuse_view;
use super::write::{Images, Written};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::region::request::FileName;
use crate::sql::{Evaluator, Insert, Source, invalid, suggest, to_column};
use crate::types::{Op, encode_batch};

impl Session {
    /// Inserts (or replaces) the rows of `batch`, within the time that the options give; says how many.
    ///
    /// Columns are found by name and cast; those that are missing get their default. Nothing is planned: this is the way to
    /// load many rows.
    pub async fn insert(&self, table: &str, batch: RecordBatch) -> Result<u64> {
        let within = Duration::from_millis(self.frontend().options().statement_timeout_ms);
        self.insert_within(table, batch, within).await
    }

    /// Inserts (or replaces) the rows of `batch`, within `within`; says how many.
    pub async fn insert_within(&self, table: &str, batch: RecordBatch, within: Duration) -> Result<u64> {
        let deadline = Deadline::after(within);
        self.again_if_changed(deadline, || self.insert_batch(table, &batch, None, deadline)).await
    }

    /// Inserts the rows of `batch` as the file called `file`, within `within`: all that belong to a region as one write, and
    /// only where rows of that name were not written before. Says how many rows the file has, also if they were there.
    ///
    /// # Errors
    /// `partial` if some regions have their part: ingest it again. `out_of_range` if a region's part is larger than half of
    /// [`Options::rpc_frame_bytes`](crate::options::Options::rpc_frame_bytes).
    pub async fn ingest_within(&self, table: &str, file: &str, batch: RecordBatch, within: Duration) -> Result<u64> {
        if file.is_empty() {
            return Err(Error::invalid(Invalid::Request, "a file to ingest needs a name, by which it is known again"));
        }
        // Of the rows as they are given: defaults may differ from time to time.
        let file = FileName { name: file.to_string(), checksum: crc32fast::hash(&encode_batch(&batch)) };
        let deadline = Deadline::after(within);
        self.again_if_changed(deadline, || self.insert_batch(table, &batch, Some(&file), deadline)).await
    }

    /// The same for the content of a Parquet file.
    pub async fn ingest_parquet(&self, table: &str, file: &str, content: Bytes, within: Duration) -> Result<u64> {
        let unreadable = |err: &dyn std::fmt::Display| {
            Error::invalid(Invalid::Evaluation, format!("file {file:?} is no Parquet file that can be read: {err}"))
        };
        let reader = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|err| unreadable(&err))?;
        let schema = reader.schema().clone();
        let batches = reader.build().map_err(|err| unreadable(&err))?.collect::<Result<Vec<_>, _>>();
        let batch = concat_batches(&schema, &batches.map_err(|err| unreadable(&err))?);
        self.ingest_within(table, file, batch.map_err(|err| unreadable(&err))?, within).await
    }

    async fn insert_batch(
        &self,
        table: &str,
        batch: &RecordBatch,
        file: Option<&FileName>,
        deadline: Deadline,
    ) -> Result<u64> {
        let table = self.frontend().routes().table(table, deadline).await?;
        refuse_view(&table, "INSERT INTO")?;
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let positions = positions(&names, &table)?;
        let mut given = vec![None; table.schema.columns().len()];
        for (at, cells) in positions.iter().zip(batch.columns()) {
            given[*at] = Some(to_column(cells, &table.schema.columns()[*at], &table.name)?);
        }
        let rows = complete(&table, given, batch.num_rows(), &self.evaluator())?;
        self.put(&table, rows, file, deadline).await
    }

    pub(super) async fn insert_statement(&self, insert: &Insert, deadline: Deadline) -> Result<u64> {
        let table = self.frontend().routes().table(&insert.table, deadline).await?;
        refuse_view(&table, "INSERT INTO")?;
        let all = || table.schema.columns().iter().map(|column| column.name.clone()).collect();
        let positions = positions(&insert.columns.clone().unwrap_or_else(all), &table)?;
        let columns = table.schema.columns();
        let evaluator = self.evaluator();
        let mut given: Vec<Option<ArrayRef>> = vec![None; columns.len()];
        let rows = match &insert.source {
            Source::Values(values) => {
                width(values.width(), positions.len(), &table)?;
                for (at, position) in positions.iter().enumerate() {
                    given[*position] = Some(values.column(at, &columns[*position], &table.name, &evaluator)?);
                }
                values.rows()
            }
            Source::Query(query) => {
                let (schema, batches) = self.frontend().query(query, Duration::ZERO, deadline).await?;
                width(schema.fields().len(), positions.len(), &table)?;
                let batch = concat_batches(&schema, &batches).map_err(|err| invalid(err.into()))?;
                for (cells, position) in batch.columns().iter().zip(&positions) {
                    given[*position] = Some(to_column(cells, &columns[*position], &table.name)?);
                }
                batch.num_rows()
            }
        };
        let rows = complete(&table, given, rows, &evaluator)?;
        self.put(&table, rows, None, deadline).await
    }

    async fn put(
        &self,
        table: &Arc<TableDef>,
        rows: RecordBatch,
        file: Option<&FileName>,
        deadline: Deadline,
    ) -> Result<u64> {
        if rows.num_rows() == 0 {
            return Ok(0);
        }
        let open = self.begin(deadline).await?;
        let mut written = Written::default();
        let images = Images { rows, op: Op::Put, expected: None, file: file.cloned() };
        self.frontend().write(&open, table, images, &mut written, deadline).await?;
        Ok(written.rows)
    }

    pub(super) fn evaluator(&self) -> Evaluator<'_> {
        let frontend = self.frontend();
        frontend.planner().evaluator(frontend.shared.clock.now())
    }
}

/// Where the columns called `names` stand in `table`.
fn positions(names: &[String], table: &TableDef) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(names.len());
    for name in names {
        let Some((at, _)) = table.schema.column(name) else {
            let known = suggest(name, table.schema.columns().iter().map(|column| column.name.as_str()));
            let message = format!("table {} has no column {name:?}{known}", table.name);
            return Err(Error::invalid(Invalid::UnknownColumn, message));
        };
        if positions.contains(&at) {
            let message = format!("column {name:?} of table {} is given twice", table.name);
            return Err(Error::invalid(Invalid::DuplicateColumn, message));
        }
        positions.push(at);
    }
    Ok(positions)
}

fn width(given: usize, columns: usize, table: &TableDef) -> Result<()> {
    if given == columns {
        return Ok(());
    }
    let message = format!("{given} values a row for {columns} columns of table {}; give one for each", table.name);
    Err(Error::invalid(Invalid::Syntax, message))
}

/// Whole rows: what was given, and defaults for the rest.
fn complete(table: &TableDef, given: Vec<Option<ArrayRef>>, rows: usize, evaluator: &Evaluator) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(given.len());
    for (at, (column, cells)) in table.schema.columns().iter().zip(given).enumerate() {
        let missing = cells.is_none();
        let cells = match cells {
            Some(cells) => cells,
            None => evaluator.default(column, &table.name, rows)?,
        };
        if missing && column.default.is_none() && !column.nullable {
            let (code, what) = match table.schema.is_key(at) {
                true => (Invalid::MissingKey, "key column"),
                false => (Invalid::NotNull, "NOT NULL column"),
            };
            let message = format!("{what} {:?} of table {} has no default; give its value", column.name, table.name);
            return Err(Error::invalid(code, message));
        }
        columns.push(cells);
    }
    check_nulls(table, &columns)?;
    RecordBatch::try_new(table.schema.to_arrow(), columns).map_err(|err| invalid(err.into()))
}

/// Refuses NULL where the table does.
pub(super) fn check_nulls(table: &TableDef, columns: &[ArrayRef]) -> Result<()> {
    for (column, cells) in table.schema.columns().iter().zip(columns) {
        if column.nullable || cells.null_count() == 0 {
            continue;
        }
        let row = (0..cells.len()).find(|row| cells.is_null(*row)).unwrap_or(0);
        let at = if cells.len() > 1 { format!("row {}: ", row + 1) } else { String::new() };
        let message = format!("{at}NULL in column {:?} of table {}, which is NOT NULL", column.name, table.name);
        return Err(Error::invalid(Invalid::NotNull, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray, StringViewArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Schema as ArrowSchema};
    use arrow::util::pretty::pretty_format_batches;

    use super::super::testing::Cluster;
    use super::super::{Output, Session};
    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        let fields: Vec<Field> =
            columns.iter().map(|(name, cells)| Field::new(*name, cells.data_type().clone(), true)).collect();
        let cells = columns.into_iter().map(|(_, cells)| cells).collect();
        RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), cells).unwrap()
    }

    async fn session() -> Session {
        let session = Cluster::new().session();
        let sql = "CREATE TABLE t (a INT, at TIMESTAMP, n INT NOT NULL DEFAULT 7, s STRING, PRIMARY KEY (a)) \
                   PARTITION ON COLUMNS (a) (a < 3, a >= 3)";
        session.execute(sql).await.unwrap();
        session
    }

    async fn rows(session: &Session) -> String {
        match session.execute("SELECT * FROM t ORDER BY a").await.unwrap() {
            Output::Rows { batches, .. } => pretty_format_batches(&batches).unwrap().to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn arrow_batches_are_inserted_by_the_names_of_their_columns() {
        let session = session().await;
        // Other types than the table's, another order, a column missing: as a file would have them.
        let batch = batch(vec![
            ("s", Arc::new(StringViewArray::from(vec![Some("x"), None, Some("z")]))),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![1_000_000, 2_000, 0]).with_timezone("UTC"))),
            ("a", Arc::new(Int64Array::from(vec![5, 1, 3]))),
        ]);
        assert_eq!(session.insert("t", batch.clone()).await.unwrap(), 3);
        assert_eq!(session.insert("t", batch.slice(0, 0)).await.unwrap(), 0);
        assert_eq!(
            rows(&session).await,
            "+---+-------------------------+---+---+\n\
             | a | at                      | n | s |\n\
             +---+-------------------------+---+---+\n\
             | 1 | 1970-01-01T00:00:00.002 | 7 |   |\n\
             | 3 | 1970-01-01T00:00:00     | 7 | z |\n\
             | 5 | 1970-01-01T00:00:01     | 7 | x |\n\
             +---+-------------------------+---+---+"
        );
    }

    #[tokio::test]
    async fn a_batch_that_is_no_rows_of_the_table_writes_nothing() {
        let session = session().await;
        let refused = async |table: &str, columns| session.insert(table, batch(columns)).await.unwrap_err().to_string();
        let a = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let one = || a(vec![Some(1)]);
        assert!(refused("tt", vec![("a", one())]).await.starts_with("[unknown_table] there is no table \"tt\""));
        assert!(refused("t", vec![("a", one()), ("b", one())]).await.starts_with("[unknown_column]"));
        assert!(refused("t", vec![("a", one()), ("a", one())]).await.starts_with("[duplicate_column]"));
        assert!(refused("t", vec![("n", one())]).await.starts_with("[missing_key]"));
        assert!(refused("t", vec![("a", a(vec![Some(1), None]))]).await.starts_with("[not_null] row 2: NULL"));
        assert!(refused("t", vec![("a", a(vec![Some(1), Some(1 << 40)]))]).await.starts_with("[out_of_range] row 2: "));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["one"]));
        assert!(refused("t", vec![("a", text)]).await.starts_with("[wrong_type] 'one' is no INT"));
        assert_eq!(rows(&session).await, "++\n++");
    }

    #[tokio::test]
    async fn rows_that_are_too_many_for_a_frame_are_cut() {
        let cluster = Cluster::new();
        let session = cluster.session();
        session.execute("CREATE TABLE t (a INT PRIMARY KEY, s STRING)").await.unwrap();
        cluster.take_calls();
        // A frame has 64 KiB here, and writes have at most 4 rows.
        let long = |len: usize| Arc::new(StringArray::from(vec!["x".repeat(len); 4])) as ArrayRef;
        let a = || Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef;
        assert_eq!(session.insert("t", batch(vec![("a", a()), ("s", long(12_000))])).await.unwrap(), 4);
        let writes = cluster.take_calls().iter().filter(|call| call.contains("put")).count();
        assert_eq!(writes, 2);
        let err = session.insert("t", batch(vec![("a", a()), ("s", long(40_000))])).await.unwrap_err();
        assert!(err.to_string().contains("larger than a write may be"), "{err}");
    }
}
