//! Clients beside the steps. What they write is a function of the plan and not of the seed's timing: each owns its keys,
//! has one statement open at a time, and resends it until it is answered. So the end is the same for every seed.

use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use engine::frontend::Output;
use engine::meta::catalog::TableDef;
use engine::types::{ColumnType, Key, Value, encode_key};
use engine::{Error, Result};

use super::clients::{Clients, as_rows, keyed};
use crate::draw::Draws;
use crate::oracle::model::{Row, key_types, row};
use crate::plan::PlannedWorkload;
use crate::run::outcome::Outcome;
use crate::run::steps::{Failed, failed};
use crate::scenario::WorkloadKind;

/// A statement that is not answered within this time ends the run.
const PATIENCE: Duration = Duration::from_secs(600);

/// The cells of a row in the order of the table.
type Cells = Vec<Value>;

/// Runs all clients of `workload` to their end. The error says what stopped one.
pub async fn run(clients: Clients, workload: PlannedWorkload) -> Result<(), Failed> {
    let mut running = Vec::new();
    let count = workload.clients.len() as u64;
    for (number, seed) in workload.clients.iter().enumerate() {
        let ops = workload.ops / count + u64::from((number as u64) < workload.ops % count);
        let client = Client {
            clients: clients.clone(),
            name: format!("{}/{}", workload.name, number + 1),
            number: number as u64 + 1,
            draws: Draws::new(*seed),
            keys: 0,
            held: Vec::new(),
            staleness: Duration::ZERO,
        };
        running.push(madsim::task::spawn(client.run(workload.kind.clone(), ops)));
    }
    for client in running {
        client.await.map_err(|err| Failed { outcome: Outcome::Harness, what: err.to_string() })??;
    }
    Ok(())
}

struct Client {
    clients: Clients,
    name: String,
    number: u64,
    draws: Draws,
    /// Keys that it made so far.
    keys: u64,
    /// Rows that it has in the table.
    held: Vec<Cells>,
    /// How old what it reads may be.
    staleness: Duration,
}

impl Client {
    async fn run(mut self, kind: WorkloadKind, ops: u64) -> Result<(), Failed> {
        let name = match &kind {
            WorkloadKind::Mutate { table, .. } | WorkloadKind::Increment { table, .. } => table,
        };
        let table = loop {
            // The step that makes the table may still be under way.
            if let Some(table) = self.clients.table(name) {
                break table;
            }
            madsim::time::sleep(Duration::from_millis(50)).await;
        };
        if table.view.is_some() {
            let what = format!("{name} is a materialized view: a workload writes to tables");
            return Err(Failed { outcome: Outcome::Harness, what });
        }
        match &kind {
            WorkloadKind::Mutate { mix, staleness, .. } => {
                let column = changeable(&table)?;
                if let Some(staleness) = staleness {
                    self.staleness = staleness.duration();
                    let sql = format!("SET read_staleness = '{}ms'", self.staleness.as_millis());
                    self.clients.execute(&self.name, &sql, PATIENCE).await.map_err(|err| self.failed(0, &err))?;
                }
                let weights = [mix.insert, mix.update, mix.delete, mix.read];
                for op in 1..=ops {
                    self.mutate(&table, column, op, weights).await?;
                }
            }
            WorkloadKind::Increment { column, .. } => {
                let keys = loop {
                    // The step that inserts the rows may still be under way.
                    let keys = self.first_keys(&table).await.map_err(|err| self.failed(0, &err))?;
                    if !keys.is_empty() {
                        break keys;
                    }
                    madsim::time::sleep(Duration::from_millis(100)).await;
                };
                for op in 1..=ops {
                    let Some(key) = self.draws.pick(format!("op{op}/key"), &keys).cloned() else { continue };
                    let condition = condition(&table, &key);
                    let sql = format!("UPDATE {name} SET {column} = {column} + 1 WHERE {condition}");
                    let output = self.clients.execute(&self.name, &sql, PATIENCE).await;
                    self.one_row(op, output)?;
                }
            }
        }
        Ok(())
    }

    async fn mutate(&mut self, table: &TableDef, column: usize, op: u64, weights: [u32; 4]) -> Result<(), Failed> {
        let total: u32 = weights.iter().sum();
        let mut drawn = self.draws.range(format!("op{op}/kind"), 0..u64::from(total.max(1))) as u32;
        let mut kind = 0;
        while kind < 3 && drawn >= weights[kind] {
            drawn -= weights[kind];
            kind += 1;
        }
        // Without a row of its own it can only insert.
        if self.held.is_empty() && kind != 0 {
            kind = 0;
        }
        let at = match self.held.len() {
            0 => 0,
            count => self.draws.range(format!("op{op}/row"), 0..count as u64) as usize,
        };
        match kind {
            0 => {
                self.keys += 1;
                let row = self.new_row(table, op);
                let batch = batch_of(table, &row);
                let inserted = self.clients.insert(&self.name, table, batch, None, PATIENCE).await;
                inserted.map_err(|err| self.failed(op, &err))?;
                self.held.push(row);
            }
            1 => {
                let value = field_cell(table.schema.columns()[column].column_type, self.number * 1_000_000 + op);
                let mut cells = self.held[at].clone();
                cells[column] = value.clone();
                let name = &table.schema.columns()[column].name;
                let condition = condition(table, &key_values(table, &cells));
                let sql = format!("UPDATE {} SET {name} = {} WHERE {condition}", table.name, literal(&value));
                let output = self.clients.execute(&self.name, &sql, PATIENCE).await;
                let answer = output.as_ref().map(|_| ()).map_err(Clone::clone);
                self.clients.told(table, &key_of(table, &cells), Some(&row(&table.schema, cells.clone())), &answer);
                self.one_row(op, output)?;
                self.held[at] = cells;
            }
            2 => {
                let row = self.held.swap_remove(at);
                let condition = condition(table, &key_values(table, &row));
                let sql = format!("DELETE FROM {} WHERE {condition}", table.name);
                let output = self.clients.execute(&self.name, &sql, PATIENCE).await;
                let answer = output.as_ref().map(|_| ()).map_err(Clone::clone);
                self.clients.told(table, &key_of(table, &row), None, &answer);
                self.one_row(op, output)?;
            }
            _ => {
                let row = self.held[at].clone();
                let key = key_of(table, &row);
                let condition = condition(table, &key_values(table, &row));
                let sql = format!("SELECT * FROM {} WHERE {condition}", table.name);
                let floor = self.clients.floor(table, &key, self.staleness);
                let output = self.clients.execute(&self.name, &sql, PATIENCE).await;
                let Output::Rows { batches, .. } = output.map_err(|err| self.failed(op, &err))? else {
                    return Err(self.failed(op, &Error::Stopped));
                };
                let found = batches.iter().filter_map(|batch| as_rows(table, batch).ok());
                let found: Vec<(Key, Row)> = found.flat_map(|batch| keyed(table, &batch)).collect();
                self.clients.saw(table, &key, floor, &found);
            }
        }
        Ok(())
    }

    /// A statement by a key that has a row, which is nobody else's to delete.
    fn one_row(&self, op: u64, output: Result<Output>) -> Result<(), Failed> {
        match output.map_err(|err| self.failed(op, &err))? {
            Output::Affected(1) => Ok(()),
            other => {
                let what = format!("client {}, statement {op}: one row was to be affected: {other:?}", self.name);
                Err(Failed { outcome: Outcome::Safety, what })
            }
        }
    }

    fn failed(&self, op: u64, err: &Error) -> Failed {
        failed(err, format!("client {}, statement {op}: {err}", self.name))
    }

    fn new_row(&self, table: &TableDef, op: u64) -> Cells {
        let unique = self.number * 1_000_000 + self.keys;
        let cell = |(at, column): (usize, &engine::types::Column)| match table.schema.is_key(at) {
            true => key_cell(column.column_type, self.number, unique),
            false => field_cell(column.column_type, unique + op),
        };
        table.schema.columns().iter().enumerate().map(cell).collect()
    }

    /// The keys of the first rows of the table: what all clients increment.
    async fn first_keys(&self, table: &TableDef) -> Result<Vec<Vec<Value>>> {
        let columns: Vec<&str> =
            table.schema.key().iter().map(|at| table.schema.columns()[*at].name.as_str()).collect();
        let columns = columns.join(", ");
        let sql = format!("SELECT {columns} FROM {} ORDER BY {columns} LIMIT 8", table.name);
        let Output::Rows { batches, .. } = self.clients.execute(&self.name, &sql, PATIENCE).await? else {
            return Err(Error::Stopped);
        };
        let rows = |batch: &RecordBatch| -> Vec<Vec<Value>> {
            let types = key_types(table);
            let columns: Vec<ArrayRef> = batch
                .columns()
                .iter()
                .zip(types)
                .map(|(column, column_type)| {
                    arrow::compute::cast(column, &column_type.to_arrow()).unwrap_or_else(|_| column.clone())
                })
                .collect();
            let row = |number: usize| columns.iter().map(|column| Value::of_cell(column, number)).collect();
            (0..batch.num_rows()).map(row).collect()
        };
        Ok(batches.iter().flat_map(rows).collect())
    }
}

fn batch_of(table: &TableDef, row: &Cells) -> RecordBatch {
    let schema = table.schema.to_arrow();
    let columns = row.iter().zip(table.schema.columns());
    let columns = columns.map(|(cell, column)| Value::to_array(std::slice::from_ref(cell), column.column_type));
    RecordBatch::try_new(schema, columns.collect()).expect("the cells are of their columns' types")
}

fn key_values(table: &TableDef, row: &Cells) -> Vec<Value> {
    table.schema.key().iter().map(|at| row[*at].clone()).collect()
}

fn key_of(table: &TableDef, row: &Cells) -> Key {
    encode_key(&key_values(table, row), &key_types(table))
}

/// `a = 1 AND b = 'x'` for the key columns.
fn condition(table: &TableDef, key: &[Value]) -> String {
    let columns = table.schema.key().into_iter().map(|at| &table.schema.columns()[at]);
    let parts: Vec<String> = columns
        .zip(key)
        .map(|(column, value)| match (column.column_type, value) {
            (ColumnType::Timestamp(_), Value::Timestamp(count)) => {
                format!("{} = arrow_cast({count}, '{}')", column.name, timestamp(column.column_type))
            }
            _ => format!("{} = {}", column.name, literal(value)),
        })
        .collect();
    parts.join(" AND ")
}

fn timestamp(column_type: ColumnType) -> String {
    format!("{:?}", column_type.to_arrow()).replace("Millisecond", "Millisecond")
}

fn literal(value: &Value) -> String {
    match value {
        Value::Float(value) => format!("{value:?}"),
        other => other.to_string(),
    }
}

/// A key of the client's own. Every type of a key column has room for some thousand of them.
fn key_cell(column_type: ColumnType, client: u64, unique: u64) -> Value {
    match column_type {
        ColumnType::String => Value::String(format!("w{client:02}-{unique:07}")),
        ColumnType::Binary => Value::Binary(unique.to_be_bytes().to_vec()),
        ColumnType::Int8 | ColumnType::Int16 => Value::Int((unique % 100) as i64),
        ColumnType::Int32 | ColumnType::Int64 => Value::Int(unique as i64),
        ColumnType::UInt8 | ColumnType::UInt16 => Value::UInt(unique % 100),
        ColumnType::UInt32 | ColumnType::UInt64 => Value::UInt(unique),
        ColumnType::Boolean => Value::Boolean(unique.is_multiple_of(2)),
        ColumnType::Float32 | ColumnType::Float64 => Value::Float(unique as f64),
        ColumnType::Decimal { .. } => Value::Decimal(i128::from(unique)),
        ColumnType::Date => Value::Date((unique % 100_000) as i32),
        // January 2013, in milliseconds where the unit is that.
        ColumnType::Timestamp(_) => Value::Timestamp(1_356_998_400_000 + unique as i64 * 1_000),
    }
}

fn field_cell(column_type: ColumnType, number: u64) -> Value {
    match column_type {
        ColumnType::Boolean => Value::Boolean(number.is_multiple_of(2)),
        ColumnType::Int8 => Value::Int((number % 100) as i64),
        ColumnType::Int16 => Value::Int((number % 10_000) as i64),
        ColumnType::Int32 | ColumnType::Int64 => Value::Int(number as i64),
        ColumnType::UInt8 => Value::UInt(number % 100),
        ColumnType::UInt16 => Value::UInt(number % 10_000),
        ColumnType::UInt32 | ColumnType::UInt64 => Value::UInt(number),
        ColumnType::Float32 | ColumnType::Float64 => Value::Float(number as f64),
        ColumnType::Decimal { .. } => Value::Decimal(i128::from(number % 100)),
        ColumnType::String => Value::String(format!("v{number}")),
        ColumnType::Binary => Value::Binary(number.to_be_bytes().to_vec()),
        ColumnType::Date => Value::Date((number % 100_000) as i32),
        ColumnType::Timestamp(_) => Value::Timestamp(number as i64),
    }
}

/// The field that updates change: one whose values can tell versions apart. And the key must have room for the clients'
/// own keys, or one client would write over another's.
fn changeable(table: &TableDef) -> Result<usize, Failed> {
    let wide = |column_type: ColumnType| {
        matches!(
            column_type,
            ColumnType::Int32
                | ColumnType::Int64
                | ColumnType::UInt32
                | ColumnType::UInt64
                | ColumnType::Float64
                | ColumnType::String
                | ColumnType::Binary
        )
    };
    let columns = || table.schema.columns().iter().enumerate();
    let has_room = |column_type: ColumnType| wide(column_type) || matches!(column_type, ColumnType::Timestamp(_));
    let unfit =
        |what: &str| Failed { outcome: Outcome::Harness, what: format!("mutate: table {} has no {what}", table.name) };
    if !columns().any(|(at, column)| table.schema.is_key(at) && has_room(column.column_type)) {
        return Err(unfit("key column of 32 bits or more, or of text, for keys of each client's own"));
    }
    let field = columns().find(|(at, column)| !table.schema.is_key(*at) && wide(column.column_type));
    field.map(|(at, _)| at).ok_or_else(|| unfit("field of 32 bits or more, or of text, to update"))
}
