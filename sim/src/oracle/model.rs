//! What each region must hold, computed from the commands in its log and nothing else of the engine's: the witness that
//! reads, scans and the final state are judged by.
//!
//! It trusts the log (the raft oracle judges that) and the outcomes' verdict (applied or refused; equal on all replicas
//! by the replica oracle); it decodes rows with the wire codec and keeps every version of every row.

use std::collections::BTreeMap;

use bytes::Bytes;
use engine::event::Event;
use engine::meta::catalog::TableDef;
use engine::region::command::{Command, decode_outcome};
use engine::types::{ColumnType, Key, Op, RegionId, Sequence, Value, decode_batch, encode_keys};

/// The cells of a row, in the order of the table.
pub type Row = Vec<Value>;

/// All regions' contents.
#[derive(Default)]
pub struct Model {
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
    /// Versions of each key by sequence; none: a tombstone.
    versions: BTreeMap<Key, BTreeMap<Sequence, Option<Row>>>,
    sequence: Sequence,
}

impl Model {
    /// A table exists: its regions' commands can be read now.
    pub fn learn(&mut self, table: &TableDef) {
        self.tables.insert(table.id.0, table.clone());
        for (id, region) in &mut self.regions {
            if id.table() == table.id {
                region.fold(table);
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
        if let Some(table) = self.tables.get(&id.table().0) {
            region.fold(table);
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

    fn fold(&mut self, table: &TableDef) {
        let schema = table.schema.to_arrow();
        let key = table.schema.key();
        for (command, outcome, sequence) in std::mem::take(&mut self.waiting) {
            let before = std::mem::replace(&mut self.sequence, sequence);
            // Refused, or answered from memory: nothing got a sequence.
            if decode_outcome(&outcome).is_err() || sequence == before {
                continue;
            }
            let write = match Command::decode(&command) {
                Ok(Command::Write { write, .. }) => write,
                Ok(Command::Truncate { .. }) => {
                    self.versions.values_mut().for_each(|versions| drop(versions.insert(sequence, None)));
                    continue;
                }
                Err(_) => continue,
            };
            let rows = decode_batch(&write.rows, &schema).expect("an applied write has rows of its table");
            for (number, key) in encode_keys(&rows, &key).into_iter().enumerate() {
                let op = write.ops.get(number).map_or(Op::Put, |op| Op::from_byte(*op).expect("an applied op exists"));
                let cells = || rows.columns().iter().map(|column| Value::of_cell(column, number)).collect();
                let row = (op == Op::Put).then(cells);
                self.versions.entry(key).or_default().insert(Sequence(before.0 + 1 + number as u64), row);
            }
        }
    }
}

/// The key types of a table, in key order.
pub fn key_types(table: &TableDef) -> Vec<ColumnType> {
    table.schema.key().iter().map(|at| table.schema.columns()[*at].column_type).collect()
}
