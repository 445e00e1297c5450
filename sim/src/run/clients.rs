//! The clients of a run: sessions by name, statements and loads, and what the client oracle is told of their answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use engine::frontend::{Output, Session};
use engine::meta::catalog::{TableDef, columns};
use engine::meta::request::{MetaAnswer, MetaRequest};
use engine::meta::view::ViewState;
use engine::server::message::{Request, Response};
use engine::sql::{Statement, parse};
use engine::types::{Key, NodeId, RegionId, Sequence, Value, encode_keys};
use engine::{Error, Result};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::hub::{Hub, now};
use crate::cluster::Cluster;
use crate::oracle::model::{Row, row_at};
use crate::oracle::{Job, Violation, judge_checksums};
use crate::scenario::Load;
use crate::scenario::sql_type::SqlType;

/// See the module. Clones are the same clients.
#[derive(Clone)]
pub struct Clients {
    cluster: Cluster,
    hub: Hub,
    directory: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    sessions: BTreeMap<String, Session>,
    /// The sessions that clients have in the frontends of nodes.
    at_nodes: BTreeMap<(String, NodeId), u64>,
    answered: u64,
    history: BTreeMap<String, Vec<u32>>,
}

impl Clients {
    /// Clients of `cluster`, whose data files are in `directory`.
    pub fn new(cluster: Cluster, hub: Hub, directory: PathBuf) -> Clients {
        Clients { cluster, hub, directory, shared: Arc::default() }
    }

    /// The session of the client of that name.
    pub fn session(&self, name: &str) -> Session {
        let mut shared = self.shared();
        shared.sessions.entry(name.to_string()).or_insert_with(|| self.cluster.clients().session()).clone()
    }

    /// Statements that were answered.
    pub fn answered(&self) -> u64 {
        self.shared().answered
    }

    /// The answers of each client in their order, of each a checksum of what it said: how many rows were affected, which
    /// rows there are (in any order), or the code of the error. What took how long is no part of it.
    pub fn history(&self) -> BTreeMap<String, Vec<u32>> {
        self.shared().history.clone()
    }

    fn answered_with(&self, client: &str, answer: &str) {
        let mut shared = self.shared();
        shared.answered += 1;
        shared.history.entry(client.to_string()).or_default().push(crc32fast::hash(answer.as_bytes()));
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `sql` in the session of `client`.
    pub async fn execute(&self, client: &str, sql: &str, within: Duration) -> Result<Output> {
        let output = self.session(client).execute_within(sql, within).await;
        let told = match &output {
            Ok(Output::Rows { batches, .. }) => as_text(batches).map(|rows| format!("{rows:?}")),
            Ok(Output::Affected(rows)) => Ok(format!("{rows} rows")),
            Ok(Output::Done) => Ok("done".to_string()),
            Err(err) => Ok(err.code().to_string()),
        };
        self.answered_with(client, &told.unwrap_or_else(|err| err.to_string()));
        if let Ok(Output::Rows { batches, .. }) = &output {
            self.selected(sql);
            if let Ok(Statement::ShowJobs) = parse(sql) {
                self.told_of_jobs(batches);
            }
        }
        output
    }

    /// Executes a statement of the harness whose answer tells of entries and times: it is no part of what clients were answered.
    async fn look(&self, sql: &str) -> Result<Output> {
        let output = self.session("oracle").execute_within(sql, Duration::from_secs(60)).await;
        if let (Ok(Output::Rows { batches, .. }), Ok(Statement::ShowJobs)) = (&output, parse(sql)) {
            self.told_of_jobs(batches);
        }
        output
    }

    /// A client was told how far the fills are.
    fn told_of_jobs(&self, batches: &[RecordBatch]) {
        let judged = {
            let mut state = self.hub.state();
            let state = &mut *state;
            state.fills.judge_jobs(&state.model, &batches.iter().flat_map(jobs).collect::<Vec<_>>())
        };
        self.fail_on(judged);
    }

    /// A client got rows.
    fn selected(&self, sql: &str) {
        let judged = {
            let mut state = self.hub.state();
            let state = &mut *state;
            state.views.judge_select(&state.model, sql)
        };
        self.fail_on(judged);
    }

    /// Tells the hub which tables there are now.
    pub async fn learn(&self) -> Result<()> {
        let mut last = Error::Stopped;
        for attempt in 0..200 {
            for node in self.cluster.ids() {
                let request = Request::Meta(MetaRequest::Tables);
                match self.cluster.call(node, request, Duration::from_secs(5)).await {
                    Ok(Response::Meta(MetaAnswer::Tables(tables))) => {
                        tables.iter().for_each(|table| self.hub.learn(table));
                        return Ok(());
                    }
                    Ok(_) => return Err(Error::Stopped),
                    Err(err) => last = err,
                }
            }
            madsim::time::sleep(Duration::from_millis(50 * (attempt + 1).min(20))).await;
        }
        Err(last)
    }

    /// The newest table of that name, once clients can use it.
    pub fn table(&self, name: &str) -> Option<TableDef> {
        let state = self.hub.state();
        if !state.is_published(name) {
            return None;
        }
        state.model.tables().filter(|table| table.name == name).last().cloned()
    }

    /// The rows of a load, as rows of the table, in batches.
    pub fn rows(&self, table: &TableDef, load: &Load) -> Result<Vec<RecordBatch>, String> {
        let path = self.directory.join(&load.file);
        let named = |err: &dyn Display| format!("{}: {err}", path.display());
        let all = read(&path, load.rows, load.batch).map_err(|err| named(&err))?;
        let rows = |batch: &RecordBatch| {
            let batch = with_casts(batch, &load.casts).map_err(|err| named(&err))?;
            as_rows(table, &batch).map_err(|err| named(&err))
        };
        all.iter().map(rows).collect()
    }

    /// Runs `sql` in the session that `client` has at `node`. How many rows were affected or returned; none for a
    /// statement that has no rows.
    pub async fn execute_at(&self, client: &str, node: NodeId, sql: &str, within: Duration) -> Result<Option<u64>> {
        let place = (client.to_string(), node);
        let session = self.shared().at_nodes.get(&place).copied().unwrap_or_default();
        let request = Request::Sql { session, sql: sql.to_string() };
        let answer = self.cluster.call(node, request, within).await;
        let told = match &answer {
            Ok(Response::Sql(answer)) => {
                format!("{:?} {:?}", answer.affected, answer.rows.as_ref().map(|rows| count_rows(rows)))
            }
            Ok(_) => "something else".to_string(),
            Err(err) => err.code().to_string(),
        };
        self.answered_with(client, &told);
        let Response::Sql(answer) = answer? else { return Err(Error::Stopped) };
        self.shared().at_nodes.insert(place, answer.session);
        match answer.rows {
            Some(rows) => {
                self.selected(sql);
                count_rows(&rows).map(Some)
            }
            None => Ok(answer.affected),
        }
    }

    /// Inserts `batch` into `table` below the parser, or ingests it as `file`; the oracle hears of the answer.
    pub async fn insert(
        &self,
        client: &str,
        table: &TableDef,
        batch: RecordBatch,
        file: Option<&str>,
        within: Duration,
    ) -> Result<u64> {
        let session = self.session(client);
        let inserted = match file {
            Some(file) => session.ingest_within(&table.name, file, batch.clone(), within).await,
            None => session.insert_within(&table.name, batch.clone(), within).await,
        };
        let answer = inserted.as_ref().map_or_else(|err| err.code().to_string(), |rows| format!("{rows} rows"));
        self.answered_with(client, &answer);
        let told = inserted.as_ref().map(|_| ()).map_err(Clone::clone);
        for (key, row) in keyed(table, &batch) {
            self.told(table, &key, Some(&row), &told);
        }
        inserted
    }

    /// The client was answered to a write of `row` (none: a delete) under `key`.
    pub fn told(&self, table: &TableDef, key: &Key, row: Option<&Row>, answer: &Result<()>) {
        let judged = {
            let mut state = self.hub.state();
            let state = &mut *state;
            let region = place(&state.model, table, key);
            match answer {
                Ok(()) => state.clients.acknowledged(&state.model, now(), region, key, row),
                Err(err) if err.may_have_applied() => Ok(()),
                Err(_) => {
                    state.clients.refused(region, key, row);
                    Ok(())
                }
            }
        };
        self.fail_on(judged);
    }

    /// What a read of `key` that begins now, and may be so old, must at least see.
    pub fn floor(&self, table: &TableDef, key: &Key, staleness: Duration) -> Sequence {
        let state = self.hub.state();
        state.clients.floor(place(&state.model, table, key), key, now().saturating_sub(staleness))
    }

    /// A read of `key` found `found`.
    pub fn saw(&self, table: &TableDef, key: &Key, floor: Sequence, found: &[(Key, Row)]) {
        let judged = {
            let mut state = self.hub.state();
            let state = &mut *state;
            let region = place(&state.model, table, key);
            state.clients.read(&state.model, now(), region, key, floor, found)
        };
        self.fail_on(judged);
    }

    /// At the end: reads each table whole and holds it against the model.
    pub async fn compare_all(&self) -> Result<()> {
        // Of several tables of one name only the newest can be there.
        let tables: BTreeMap<String, TableDef> = {
            let state = self.hub.state();
            let tables = state.model.tables().filter(|table| table.view.is_none());
            tables.map(|table| (table.name.clone(), table.clone())).collect()
        };
        for table in tables.into_values().filter(|table| table.view.is_none()) {
            let columns: Vec<String> =
                table.schema.columns().iter().map(|column| format!("\"{}\"", column.name)).collect();
            let sql = format!("SELECT {} FROM {}", columns.join(", "), table.name);
            let mut before;
            let output = loop {
                before = self.hub.state().model.sequences(&table);
                let output = match self.execute("oracle", &sql, Duration::from_secs(60)).await {
                    Ok(Output::Rows { batches, .. }) => batches,
                    // Dropped.
                    Err(err) if err.code() == "unknown_table" => break None,
                    Ok(_) => return Err(Error::Stopped),
                    Err(err) => return Err(err),
                };
                // Rows may expire still.
                if before == self.hub.state().model.sequences(&table) {
                    break Some(output);
                }
            };
            let Some(output) = output else { continue };
            let mut found = Vec::new();
            for batch in &output {
                let rows = as_rows(&table, batch).map_err(|err| Error::Unknown { message: err.to_string() })?;
                found.extend(keyed(&table, &rows));
            }
            let judged = {
                let mut state = self.hub.state();
                let state = &mut *state;
                let expected = state.model.rows(&table);
                state.clients.end(&state.model, &expected, &found)
            };
            self.fail_on(judged);
        }
        self.compare_views().await?;
        self.compare_replicas().await
    }

    /// Has the replicas of each table and view say what they have.
    async fn compare_replicas(&self) -> Result<()> {
        let tables: BTreeSet<String> = self.hub.state().model.tables().map(|table| table.name.clone()).collect();
        for name in tables {
            let rows = match self.look(&format!("ADMIN CHECKSUM TABLE {name}")).await {
                Ok(Output::Rows { batches, .. }) => as_text(&batches),
                // Dropped.
                Err(err) if err.code() == "unknown_table" => continue,
                Ok(_) => return Err(Error::Stopped),
                Err(err) => return Err(err),
            };
            let rows = rows.map_err(|err| Error::Unknown { message: err.to_string() })?;
            self.fail_on(judge_checksums(&name, &rows));
        }
        Ok(())
    }

    /// Reads each view that may be read whole, and holds it against the model.
    async fn compare_views(&self) -> Result<()> {
        let views = self.hub.state().views();
        if !views.is_empty() {
            self.look("SHOW JOBS").await?;
        }
        for (table, _) in views.into_iter().filter(|(_, view)| view.state == ViewState::Ready) {
            let shown = table.schema.columns().iter().filter(|column| !columns::is_hidden(&column.name));
            let shown: Vec<String> = shown.map(|column| format!("\"{}\"", column.name)).collect();
            let sql = format!("SELECT {} FROM {}", shown.join(", "), table.name);
            loop {
                let before = self.hub.state().model.sequences(&table);
                let found = match self.execute("oracle", &sql, Duration::from_secs(60)).await? {
                    Output::Rows { batches, .. } => batches,
                    _ => return Err(Error::Stopped),
                };
                // Rows of its feeders may expire still.
                if before != self.hub.state().model.sequences(&table) {
                    continue;
                }
                let judged = {
                    let mut state = self.hub.state();
                    let state = &mut *state;
                    state.views.judge_read(&state.model, &table, &found)
                };
                self.fail_on(judged);
                break;
            }
        }
        Ok(())
    }

    fn fail_on(&self, judged: Result<(), Violation>) {
        if let Err(violation) = judged {
            self.hub.fail(violation);
        }
    }
}

/// The region that holds (or held) `key`; any one of the table for a key that nobody ever wrote.
fn place(model: &crate::oracle::model::Model, table: &TableDef, key: &Key) -> RegionId {
    let has = |region: &&engine::meta::catalog::RegionDef| {
        model.region(region.id).is_some_and(|region| region.history(key).next().is_some())
    };
    table.regions.iter().find(has).or(table.regions.first()).map(|region| region.id).unwrap_or_default()
}

/// The rows of SHOW JOBS.
fn jobs(rows: &RecordBatch) -> Vec<Job> {
    let column = |name: &str| rows.column_by_name(name).expect("a column of SHOW JOBS");
    let number = |name: &str, row| match Value::of_cell(column(name), row) {
        Value::UInt(number) => Some(number),
        Value::Null => None,
        other => panic!("{name} of SHOW JOBS is {other}"),
    };
    let text = |name: &str, row| match Value::of_cell(column(name), row) {
        Value::String(text) => text,
        other => panic!("{name} of SHOW JOBS is {other}"),
    };
    // What it does not say is not judged.
    let job = |row| {
        Some(Job {
            view: text("object", row),
            state: text("state", row),
            percent: number("percent", row)?,
            regions_done: number("regions_done", row)?,
            rows_done: number("rows_done", row)?,
            rows: number("rows_estimate", row)?,
        })
    };
    (0..rows.num_rows()).filter_map(job).collect()
}

/// Each row with its key.
pub fn keyed(table: &TableDef, rows: &RecordBatch) -> Vec<(Key, Row)> {
    let keys = encode_keys(rows, &table.schema.key());
    keys.into_iter().enumerate().map(|(number, key)| (key, row_at(&table.schema, rows, number))).collect()
}

/// The columns of the table, in its order and types; what the batch lacks is NULL. A cell that its column cannot hold is
/// an error, and no NULL.
pub fn as_rows(table: &TableDef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = table.schema.to_arrow();
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) => cast_with_options(column, field.data_type(), &STRICT),
        None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>, _>>()?)
}

const STRICT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// The batch with some columns cast to other types.
fn with_casts(batch: &RecordBatch, casts: &BTreeMap<String, SqlType>) -> Result<RecordBatch, ArrowError> {
    let mut fields = batch.schema().fields().to_vec();
    let mut columns = batch.columns().to_vec();
    for (name, to) in casts {
        let at = batch.schema().index_of(name)?;
        columns[at] = cast_with_options(&columns[at], &to.0.to_arrow(), &STRICT)?;
        fields[at] = Arc::new(Field::new(name, to.0.to_arrow(), true));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The cells of rows as text, sorted by row.
pub fn as_text(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>, ArrowError> {
    let mut rows = Vec::new();
    for batch in batches {
        let options = FormatOptions::default().with_null("NULL");
        let cells = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let cells = cells.collect::<Result<Vec<_>, _>>()?;
        rows.extend((0..batch.num_rows()).map(|row| cells.iter().map(|cell| cell.value(row).to_string()).collect()));
    }
    rows.sort();
    Ok(rows)
}

/// The rows of an Arrow IPC stream.
fn count_rows(stream: &[u8]) -> Result<u64> {
    let unread = |err: ArrowError| Error::Unknown { message: format!("the rows of the answer cannot be read: {err}") };
    let batches = StreamReader::try_new(stream, None).map_err(unread)?;
    batches.map(|batch| batch.map(|batch| batch.num_rows() as u64).map_err(unread)).sum()
}

fn read(path: &Path, rows: Option<u64>, batch: u64) -> Result<Vec<RecordBatch>, String> {
    let file = std::fs::File::open(path).map_err(|err| err.to_string())?;
    let mut builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|err| err.to_string())?;
    builder = builder.with_batch_size(usize::try_from(batch).unwrap_or(usize::MAX));
    if let Some(rows) = rows {
        builder = builder.with_limit(usize::try_from(rows).unwrap_or(usize::MAX));
    }
    let reader = builder.build().map_err(|err| err.to_string())?;
    reader.collect::<Result<_, _>>().map_err(|err| err.to_string())
}
