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
use engine::region::command::{Command, LegAnswer, decode_answer, decode_outcome};
use engine::types::{
    ColumnId, ColumnType, Key, LegId, MergeMode, Op, RegionId, Schema, Sequence, TableId, Value, decode_batch,
    encode_keys,
};

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
    /// Of a view: the last entry whose rows are in it.
    written: Option<u64>,
    /// Writes whose table is not known yet, in log order.
    waiting: Vec<(u64, Bytes, Bytes, Sequence)>,
    /// Its schemas, the newest last.
    schemas: Vec<Schema>,
    /// Versions of each key by sequence, as rows of the newest schema; none: all that is older is gone, by a tombstone, a
    /// truncation or an expiry.
    versions: BTreeMap<Key, BTreeMap<Sequence, Option<Row>>>,
    sequence: Sequence,
    /// Up to here rows expired.
    watermark: Option<i64>,
    /// What is newer is a row of its own, in a table that appends.
    appends_after: Sequence,
    /// What must stay readable, and the entry that says so.
    pins: BTreeMap<Pinned, (Sequence, u64)>,
}

/// For whom a sequence must stay readable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pinned {
    /// A statement, by the name that it gave.
    Name(String),
    /// A leg of a view.
    Leg(LegId),
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

    /// The table of that id.
    pub fn table(&self, id: TableId) -> Option<&TableDef> {
        self.tables.get(&id.0)
    }

    /// Takes an applied entry into account, once however many replicas apply it.
    pub fn on_event(&mut self, event: &Event) {
        if let Event::ViewWritten { region, log_id, rows, ops, sequence, .. } = event {
            return self.on_view_written(*region, log_id.index, rows, ops, *sequence);
        }
        let Event::Applied { region: id, log_id, command, outcome, sequence, .. } = event else { return };
        if *id == RegionId::META || command.is_empty() {
            return;
        }
        let region = self.regions.entry(*id).or_default();
        if region.last.is_some_and(|last| last >= log_id.index) {
            return;
        }
        region.last = Some(log_id.index);
        region.waiting.push((log_id.index, command.clone(), outcome.clone(), *sequence));
        if let Some(first) = self.first.get(&id.table().0) {
            region.fold(first);
        }
    }

    /// Takes what a region of a view wrote as it says, once however many replicas do: what a batch comes to is judged by the
    /// oracle of views.
    fn on_view_written(&mut self, id: RegionId, index: u64, rows: &Bytes, ops: &Bytes, last: Sequence) {
        let Some(first) = self.first.get(&id.table().0) else { return };
        let region = self.regions.entry(id).or_default();
        if region.written.is_some_and(|written| written >= index) {
            return;
        }
        region.written = Some(index);
        region.fold(first);
        let rows = decode_batch(rows, &first.to_arrow()).expect("a view writes rows of its own");
        let before = last.0 - rows.num_rows() as u64;
        region.write(first, &rows, ops, Sequence(before));
    }

    /// The content of a region; none if nothing was written to it.
    pub fn region(&self, id: RegionId) -> Option<&RegionModel> {
        self.regions.get(&id)
    }

    /// The rows of a table that are visible now.
    pub fn rows(&self, table: &TableDef) -> Vec<(Key, Row)> {
        let regions = table.regions.iter().filter_map(|region| self.regions.get(&region.id));
        let rows = regions.flat_map(|region| region.visible(region.sequence));
        rows.map(|(key, _, row)| (key.clone(), row)).collect()
    }

    /// The newest sequences of a table's regions.
    pub fn sequences(&self, table: &TableDef) -> Vec<Sequence> {
        table.regions.iter().filter_map(|region| self.regions.get(&region.id)).map(RegionModel::sequence).collect()
    }
}

impl RegionModel {
    /// The newest sequence.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The rows that a read at `upto` must return, each with its version: in key order, the newest first.
    pub fn visible(&self, upto: Sequence) -> impl Iterator<Item = (&Key, Sequence, Row)> {
        self.versions.iter().flat_map(move |(key, versions)| {
            self.rows_of(versions, upto).into_iter().map(move |(sequence, row)| (key, sequence, row))
        })
    }

    /// Hands out the rows that a read finds which reads each key at what `upto` says of it; none: it does not read that key.
    pub fn read(&self, upto: impl Fn(&Key) -> Option<Sequence>, mut each: impl FnMut(&Row)) {
        for (key, versions) in &self.versions {
            let Some(upto) = upto(key) else { continue };
            match self.mode() {
                MergeMode::LastRow => {
                    versions
                        .range(..=upto)
                        .next_back()
                        .and_then(|(_, row)| row.as_ref())
                        .into_iter()
                        .for_each(&mut each);
                }
                MergeMode::LastNonNull | MergeMode::Append => {
                    self.rows_of(versions, upto).iter().for_each(|(_, row)| each(row));
                }
            }
        }
    }

    /// How many keys there are, or were.
    pub fn keys(&self) -> usize {
        self.versions.len()
    }

    /// What the versions of one row come to.
    fn rows_of(&self, versions: &BTreeMap<Sequence, Option<Row>>, upto: Sequence) -> Vec<(Sequence, Row)> {
        let newest_first = versions.range(..=upto).rev();
        let mut rows = newest_first.map_while(|(sequence, row)| Some((*sequence, row.as_ref()?)));
        match self.mode() {
            MergeMode::LastRow => rows.next().map(|(sequence, row)| (sequence, row.clone())).into_iter().collect(),
            MergeMode::LastNonNull => {
                let Some((newest, row)) = rows.next() else { return Vec::new() };
                let mut merged = row.clone();
                for (_, older) in rows {
                    for (column, cell) in &mut merged {
                        if *cell == Value::Null {
                            cell.clone_from(&older[column]);
                        }
                    }
                }
                vec![(newest, merged)]
            }
            MergeMode::Append => {
                let mut all: Vec<(Sequence, Row)> = rows.map(|(sequence, row)| (sequence, row.clone())).collect();
                let appended = all.iter().take_while(|(sequence, _)| *sequence > self.appends_after).count();
                all.truncate(appended + 1);
                all
            }
        }
    }

    /// What the versions of a row come to.
    pub fn mode(&self) -> MergeMode {
        self.newest().map(|schema| schema.options().merge_mode).unwrap_or_default()
    }

    /// What is different between a read at `since` and one at `upto`: the key, the row that was (-1) or is (1).
    pub fn changes(&self, since: Sequence, upto: Sequence) -> Vec<(Key, i8, Row)> {
        let mut changes = Vec::new();
        for (key, versions) in &self.versions {
            let (was, is) = (self.rows_of(versions, since), self.rows_of(versions, upto));
            let alone = |row: &(Sequence, Row), others: &[(Sequence, Row)]| {
                others.iter().all(|(sequence, _)| *sequence != row.0)
            };
            let gone = was.iter().filter(|row| alone(row, &is)).map(|row| (row.0, -1, &row.1));
            let new = is.iter().filter(|row| alone(row, &was)).map(|row| (row.0, 1, &row.1));
            let mut of_key: Vec<(Sequence, i8, &Row)> = gone.chain(new).collect();
            if self.mode() == MergeMode::Append {
                let own = |sequence: Sequence| if sequence > self.appends_after { sequence } else { Sequence(0) };
                of_key.sort_by_key(|(sequence, sign, _)| (std::cmp::Reverse(own(*sequence)), *sign));
            }
            changes.extend(of_key.into_iter().map(|(_, sign, row)| (key.clone(), sign, row.clone())));
        }
        changes
    }

    /// The sequences that must stay readable, and the entries that say so.
    pub fn pins(&self) -> Vec<(Sequence, u64)> {
        self.pins.values().copied().collect()
    }

    /// The row that a read by key finds after each of the key's versions; none: it finds none.
    pub fn states(&self, key: &Key) -> impl Iterator<Item = (Sequence, Option<Row>)> {
        self.versions.get(key).into_iter().flat_map(|versions| {
            let state = |sequence| self.rows_of(versions, sequence).into_iter().next().map(|(_, row)| row);
            versions.keys().map(move |sequence| (*sequence, state(*sequence)))
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
        if schema.options().merge_mode == MergeMode::Append && self.mode() != MergeMode::Append {
            self.appends_after = self.sequence;
        }
        self.schemas.push(schema);
    }

    /// Rows of an earlier time are gone behind `sequence`.
    fn expire(&mut self, before: i64, sequence: Sequence) {
        self.watermark = Some(before);
        let Some(time) = self.newest().and_then(|schema| Some(schema.columns()[schema.time_index()?].id)) else {
            return;
        };
        for versions in self.versions.values_mut() {
            let newest = versions.values().next_back().and_then(Option::as_ref);
            if newest.is_some_and(|row| row[&time] < Value::Timestamp(before)) {
                versions.insert(sequence, None);
            }
        }
    }

    fn fold(&mut self, first: &Schema) {
        if self.schemas.is_empty() {
            self.schemas.push(first.clone());
        }
        for (index, command, outcome, sequence) in std::mem::take(&mut self.waiting) {
            let before = std::mem::replace(&mut self.sequence, sequence);
            let command = match Command::decode(&command) {
                Ok(Command::Leg { leg, .. }) => {
                    self.pin_for(leg, &outcome, index);
                    continue;
                }
                Ok(Command::Detach { view }) => {
                    self.pins.retain(|pinned, _| !matches!(pinned, Pinned::Leg(leg) if leg.view == view));
                    continue;
                }
                // What they come to is said by another event.
                Ok(
                    Command::Attach { .. }
                    | Command::Control { .. }
                    | Command::Begin
                    | Command::Ready
                    | Command::Fail { .. }
                    | Command::Greet { .. }
                    | Command::Absorb(_),
                )
                | Err(_) => continue,
                Ok(command) => command,
            };
            if decode_outcome(&outcome).is_err() {
                continue;
            }
            let write = match command {
                // Answered from memory: nothing got a sequence.
                Command::Write { .. } | Command::Truncate { .. } | Command::Expire { .. } if sequence == before => {
                    continue;
                }
                Command::Write { write, .. } => write,
                Command::Truncate { .. } => {
                    self.versions.values_mut().for_each(|versions| drop(versions.insert(sequence, None)));
                    continue;
                }
                Command::Expire { before, .. } => {
                    self.expire(before, sequence);
                    continue;
                }
                Command::Pin { name, .. } => {
                    self.pins.entry(Pinned::Name(name)).or_insert((sequence, index));
                    continue;
                }
                Command::Unpin { name } => {
                    self.pins.remove(&Pinned::Name(name));
                    continue;
                }
                Command::Alter { schema, .. } => {
                    self.alter(*schema);
                    continue;
                }
                _ => continue,
            };
            let schema = self.schemas.last().expect("the first one is there").clone();
            let rows = decode_batch(&write.rows, &schema.to_arrow()).expect("an applied write has rows of its table");
            self.write(&schema, &rows, &write.ops, before);
        }
    }

    /// What a leg has not got yet must stay readable, and what that is the difference to.
    fn pin_for(&mut self, leg: LegId, outcome: &Bytes, index: u64) {
        let Ok(LegAnswer::Leg(now)) = decode_answer(outcome) else { return };
        let Some(pinned) = now.done.or(now.upto) else { return };
        if self.pins.get(&Pinned::Leg(leg)).is_none_or(|(sequence, _)| *sequence != pinned) {
            self.pins.insert(Pinned::Leg(leg), (pinned, index));
        }
    }

    /// Rows of `schema` get the sequences behind `before`.
    fn write(&mut self, schema: &Schema, rows: &RecordBatch, ops: &Bytes, before: Sequence) {
        for (number, key) in encode_keys(rows, &schema.key()).into_iter().enumerate() {
            let op = ops.get(number).map_or(Op::Put, |op| Op::from_byte(*op).expect("an applied op exists"));
            let row = (op == Op::Put).then(|| row_at(schema, rows, number));
            self.versions.entry(key).or_default().insert(Sequence(before.0 + 1 + number as u64), row);
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
