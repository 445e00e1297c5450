//! What each region must hold, computed from the commands in its log and nothing else of the engine's: the witness that
//! reads, scans and the final state are judged by.
//!
//! It trusts the log (the raft oracle judges that) and the outcomes' verdict (applied or refused; equal on all replicas
//! by the replica oracle); it decodes rows with the wire codec and keeps every version of every row.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use bytes::Bytes;
use engine::event::Event;
use engine::meta::catalog::TableDef;
use engine::region::command::{Command, decode_outcome};
use engine::types::{ColumnId, ColumnType, Key, Op, RegionId, Schema, Sequence, Value, decode_batch, encode_keys};

/// The cells of a row by their columns, which keep their ids when the table is altered.
pub type Row = BTreeMap<ColumnId, Value>;

/// The row of `schema` with these cells, in the order of its columns.
pub fn row(schema: &Schema, cells: impl IntoIterator<Item = Value>) -> Row {
    schema.columns().iter().map(|column| column.id).zip(cells).collect()
}

/// A row of `rows`, which are whole rows of `schema`.
pub fn row_at(schema: &Schema, rows: &RecordBatch, number: usize) -> Row {
    row(schema, rows.columns().iter().map(|column| Value::of_cell(column, number)))
}

/// Whether two rows, of which one may be of a table as it was before, are the same where both have a column. A number that
/// was unsigned before its type was widened is the same number.
pub fn agree(one: &Row, other: &Row) -> bool {
    let same = |a: &Value, b: &Value| match (a, b) {
        (Value::Int(a), Value::UInt(b)) | (Value::UInt(b), Value::Int(a)) => u64::try_from(*a) == Ok(*b),
        (a, b) => a == b,
    };
    one.iter().all(|(column, cell)| other.get(column).is_none_or(|known| same(cell, known)))
}

/// All regions' contents.
#[derive(Default)]
pub struct Model {
    /// As they were when they were heard of.
    first: BTreeMap<u32, Schema>,
    /// As they are.
    tables: BTreeMap<u32, TableDef>,
    regions: BTreeMap<RegionId, RegionModel>,
}

/// One region's content.
#[derive(Default)]
pub struct RegionModel {
    /// The highest entry taken into account.
    last: Option<u64>,
    /// Writes whose table is not known yet, in log order.
    waiting: Vec<(Bytes, Bytes, Sequence)>,
    /// Its schemas, the newest last.
    schemas: Vec<Schema>,
    /// Versions of each key by sequence, as rows of the newest schema; none: a tombstone.
    versions: BTreeMap<Key, BTreeMap<Sequence, Option<Row>>>,
    sequence: Sequence,
}

impl Model {
    /// A table exists: its regions' commands can be read now.
    pub fn learn(&mut self, table: &TableDef) {
        self.tables.insert(table.id.0, table.clone());
        let first = self.first.entry(table.id.0).or_insert_with(|| table.schema.clone());
        for (id, region) in &mut self.regions {
            if id.table() == table.id {
                region.fold(first);
            }
        }
    }

    /// The tables that are known.
    pub fn tables(&self) -> impl Iterator<Item = &TableDef> {
        self.tables.values()
    }

    /// Takes an applied entry into account, once however many replicas apply it.
    pub fn on_event(&mut self, event: &Event) {
        let Event::Applied { region: id, log_id, command, outcome, sequence, .. } = event else { return };
        if *id == RegionId::META || command.is_empty() {
            return;
        }
        let region = self.regions.entry(*id).or_default();
        if region.last.is_some_and(|last| last >= log_id.index) {
            return;
        }
        region.last = Some(log_id.index);
        region.waiting.push((command.clone(), outcome.clone(), *sequence));
        if let Some(first) = self.first.get(&id.table().0) {
            region.fold(first);
        }
    }

    /// The content of a region; none if nothing was written to it.
    pub fn region(&self, id: RegionId) -> Option<&RegionModel> {
        self.regions.get(&id)
    }

    /// The rows of a table that are visible now, by key.
    pub fn rows(&self, table: &TableDef) -> BTreeMap<Key, Row> {
        let regions = table.regions.iter().filter_map(|region| self.regions.get(&region.id));
        regions
            .flat_map(|region| region.visible(region.sequence))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect()
    }
}

impl RegionModel {
    /// The newest sequence.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The rows that a read at `upto` must return, in key order.
    pub fn visible(&self, upto: Sequence) -> impl Iterator<Item = (&Key, &Row)> {
        self.versions.iter().filter_map(move |(key, versions)| {
            let (_, row) = versions.range(..=upto).next_back()?;
            Some((key, row.as_ref()?))
        })
    }

    /// The versions of one key, oldest first; none: a tombstone.
    pub fn history(&self, key: &Key) -> impl Iterator<Item = (Sequence, Option<&Row>)> {
        self.versions.get(key).into_iter().flatten().map(|(sequence, row)| (*sequence, row.as_ref()))
    }

    /// The highest entry that is in it.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The newest schema; none: its table is not known yet.
    pub fn newest(&self) -> Option<&Schema> {
        self.schemas.last()
    }

    /// The schema of that version, if the region has or had it.
    pub fn schema(&self, version: u64) -> Option<&Schema> {
        self.schemas.iter().find(|schema| schema.version == version)
    }

    /// A row that a replica returned as one of `version`, as the newest version has it.
    pub fn carried(&self, row: Row, version: u64) -> Row {
        let later = self.schemas.iter().filter(|schema| schema.version > version);
        later.fold(row, carried)
    }

    /// Columns keep their cells by their ids; those that are new have what the schema says of older rows.
    fn alter(&mut self, schema: Schema) {
        if self.schemas.last().is_some_and(|newest| newest.version >= schema.version) {
            return;
        }
        for row in self.versions.values_mut().flat_map(BTreeMap::values_mut).flatten() {
            *row = carried(std::mem::take(row), &schema);
        }
        self.schemas.push(schema);
    }

    fn fold(&mut self, first: &Schema) {
        if self.schemas.is_empty() {
            self.schemas.push(first.clone());
        }
        for (command, outcome, sequence) in std::mem::take(&mut self.waiting) {
            let before = std::mem::replace(&mut self.sequence, sequence);
            if decode_outcome(&outcome).is_err() {
                continue;
            }
            let write = match Command::decode(&command) {
                // Answered from memory: nothing got a sequence.
                Ok(Command::Write { .. } | Command::Truncate { .. }) if sequence == before => continue,
                Ok(Command::Write { write, .. }) => write,
                Ok(Command::Truncate { .. }) => {
                    self.versions.values_mut().for_each(|versions| drop(versions.insert(sequence, None)));
                    continue;
                }
                Ok(Command::Alter { schema, .. }) => {
                    self.alter(*schema);
                    continue;
                }
                Err(_) => continue,
            };
            let schema = self.schemas.last().expect("the first one is there");
            let rows = decode_batch(&write.rows, &schema.to_arrow()).expect("an applied write has rows of its table");
            for (number, key) in encode_keys(&rows, &schema.key()).into_iter().enumerate() {
                let op = write.ops.get(number).map_or(Op::Put, |op| Op::from_byte(*op).expect("an applied op exists"));
                let row = (op == Op::Put).then(|| row_at(schema, &rows, number));
                self.versions.entry(key).or_default().insert(Sequence(before.0 + 1 + number as u64), row);
            }
        }
    }
}

/// `row`, as `schema` has it.
fn carried(mut row: Row, schema: &Schema) -> Row {
    let cell = |column: &engine::types::Column| {
        let cell = row.remove(&column.id).unwrap_or_else(|| schema.absent(column.id));
        (column.id, cell.widened(column.column_type))
    };
    schema.columns().iter().map(cell).collect()
}

/// The key types of a table, in key order.
pub fn key_types(table: &TableDef) -> Vec<ColumnType> {
    table.schema.key().iter().map(|at| table.schema.columns()[*at].column_type).collect()
}
