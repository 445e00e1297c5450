//! Column types and table schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit as ArrowTimeUnit};
use serde::{Deserialize, Serialize};

use super::alter::AlterError;
use super::options::{OptionError, TableOptions};
use super::{IndexId, Value};

/// Names a column for its whole life: a column dropped and added again under the same name has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ColumnId(pub u32);

/// The unit of a TIMESTAMP column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimeUnit {
    /// TIMESTAMP(0)
    Second,
    /// TIMESTAMP(3)
    Millisecond,
    /// TIMESTAMP(6)
    Microsecond,
    /// TIMESTAMP(9)
    Nanosecond,
}

impl TimeUnit {
    /// How many of them a second has.
    pub fn per_second(self) -> i64 {
        match self {
            TimeUnit::Second => 1,
            TimeUnit::Millisecond => 1_000,
            TimeUnit::Microsecond => 1_000_000,
            TimeUnit::Nanosecond => 1_000_000_000,
        }
    }

    /// How many of them so many milliseconds are; less than one is one.
    pub fn of_ms(self, ms: u64) -> i64 {
        let units = u128::from(ms) * self.per_second() as u128 / 1_000;
        i64::try_from(units).unwrap_or(i64::MAX).max(1)
    }

    fn to_arrow(self) -> ArrowTimeUnit {
        match self {
            TimeUnit::Second => ArrowTimeUnit::Second,
            TimeUnit::Millisecond => ArrowTimeUnit::Millisecond,
            TimeUnit::Microsecond => ArrowTimeUnit::Microsecond,
            TimeUnit::Nanosecond => ArrowTimeUnit::Nanosecond,
        }
    }
}

/// The types that a column can have. Closed: everything that encodes a value matches on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is the Arrow and SQL type of its name")]
pub enum ColumnType {
    Boolean,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    /// DECIMAL(precision 1 to 38, scale 0 to precision).
    Decimal {
        precision: u8,
        scale: i8,
    },
    String,
    Binary,
    Date,
    Timestamp(TimeUnit),
}

impl ColumnType {
    /// The Arrow type that columns of this type have in memory, on the wire and in files.
    pub fn to_arrow(self) -> DataType {
        match self {
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Int8 => DataType::Int8,
            ColumnType::Int16 => DataType::Int16,
            ColumnType::Int32 => DataType::Int32,
            ColumnType::Int64 => DataType::Int64,
            ColumnType::UInt8 => DataType::UInt8,
            ColumnType::UInt16 => DataType::UInt16,
            ColumnType::UInt32 => DataType::UInt32,
            ColumnType::UInt64 => DataType::UInt64,
            ColumnType::Float32 => DataType::Float32,
            ColumnType::Float64 => DataType::Float64,
            ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            ColumnType::String => DataType::Utf8,
            ColumnType::Binary => DataType::Binary,
            ColumnType::Date => DataType::Date32,
            ColumnType::Timestamp(unit) => DataType::Timestamp(unit.to_arrow(), None),
        }
    }

    /// The column type that is stored as `data_type`; none for an Arrow type that no column has.
    pub fn from_arrow(data_type: &DataType) -> Option<ColumnType> {
        Some(match data_type {
            DataType::Boolean => ColumnType::Boolean,
            DataType::Int8 => ColumnType::Int8,
            DataType::Int16 => ColumnType::Int16,
            DataType::Int32 => ColumnType::Int32,
            DataType::Int64 => ColumnType::Int64,
            DataType::UInt8 => ColumnType::UInt8,
            DataType::UInt16 => ColumnType::UInt16,
            DataType::UInt32 => ColumnType::UInt32,
            DataType::UInt64 => ColumnType::UInt64,
            DataType::Float32 => ColumnType::Float32,
            DataType::Float64 => ColumnType::Float64,
            DataType::Decimal128(precision, scale) => ColumnType::Decimal { precision: *precision, scale: *scale },
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::String,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => ColumnType::Binary,
            DataType::Date32 => ColumnType::Date,
            DataType::Timestamp(ArrowTimeUnit::Second, _) => ColumnType::Timestamp(TimeUnit::Second),
            DataType::Timestamp(ArrowTimeUnit::Millisecond, _) => ColumnType::Timestamp(TimeUnit::Millisecond),
            DataType::Timestamp(ArrowTimeUnit::Microsecond, _) => ColumnType::Timestamp(TimeUnit::Microsecond),
            DataType::Timestamp(ArrowTimeUnit::Nanosecond, _) => ColumnType::Timestamp(TimeUnit::Nanosecond),
            _ => return None,
        })
    }
}

impl fmt::Display for ColumnType {
    /// The type as SQL writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::Boolean => f.write_str("BOOLEAN"),
            ColumnType::Int8 => f.write_str("TINYINT"),
            ColumnType::Int16 => f.write_str("SMALLINT"),
            ColumnType::Int32 => f.write_str("INT"),
            ColumnType::Int64 => f.write_str("BIGINT"),
            ColumnType::UInt8 => f.write_str("TINYINT UNSIGNED"),
            ColumnType::UInt16 => f.write_str("SMALLINT UNSIGNED"),
            ColumnType::UInt32 => f.write_str("INT UNSIGNED"),
            ColumnType::UInt64 => f.write_str("BIGINT UNSIGNED"),
            ColumnType::Float32 => f.write_str("FLOAT"),
            ColumnType::Float64 => f.write_str("DOUBLE"),
            ColumnType::Decimal { precision, scale } => write!(f, "DECIMAL({precision}, {scale})"),
            ColumnType::String => f.write_str("STRING"),
            ColumnType::Binary => f.write_str("BINARY"),
            ColumnType::Date => f.write_str("DATE"),
            ColumnType::Timestamp(TimeUnit::Second) => f.write_str("TIMESTAMP(0)"),
            ColumnType::Timestamp(TimeUnit::Millisecond) => f.write_str("TIMESTAMP(3)"),
            ColumnType::Timestamp(TimeUnit::Microsecond) => f.write_str("TIMESTAMP(6)"),
            ColumnType::Timestamp(TimeUnit::Nanosecond) => f.write_str("TIMESTAMP(9)"),
        }
    }
}

/// What a column holds when a statement does not name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnDefault {
    /// The same value for every row.
    Constant(Value),
    /// An expression that differs from call to call (`now()`): the frontend evaluates it once per statement, before
    /// the write is proposed. The text is SQL.
    Impure(String),
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Never reused within the table.
    pub id: ColumnId,
    /// Unique within the table, as written (case is kept, lookups are exact).
    pub name: String,
    /// What it holds.
    pub column_type: ColumnType,
    /// Whether NULL is allowed. Never for key columns of a table; a view that groups by a column has a row for NULL.
    pub nullable: bool,
    /// What an INSERT that does not name the column writes; without one: NULL, or an error where NULL is not allowed.
    pub default: Option<ColumnDefault>,
}

/// An index of a table: its rows once more, in the order of some of their columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexDef {
    /// Never reused within the table.
    pub id: IndexId,
    /// Unique among the indexes that exist.
    pub name: String,
    /// The columns that it is ordered by; then comes the row key.
    pub columns: Vec<ColumnId>,
    /// Whether its backfill is to wait.
    pub is_paused: bool,
    /// Rows a second that the backfill of each region may read; none: as fast as it goes.
    pub rate_limit: Option<u64>,
}

/// The columns of a table, its row key (PRIMARY KEY columns, then the TIME INDEX, if any), its options and its indexes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Grows by one with each change of columns or options. Counts from 1.
    pub version: u64,
    columns: Vec<Column>,
    /// Positions in `columns` of the PRIMARY KEY, in key order.
    primary_key: Vec<usize>,
    /// Position in `columns` of the TIME INDEX.
    time_index: Option<usize>,
    /// The least id that no column ever had.
    next_column: ColumnId,
    /// Of columns that were added later: what rows that are older than the column read in it, unless that is NULL.
    absent: BTreeMap<ColumnId, Value>,
    options: Box<TableOptions>,
    /// Ascending by id.
    indexes: Vec<IndexDef>,
    /// The least id that no index ever had.
    next_index: IndexId,
}

/// Why some columns are no schema. The message names the column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is explained by its message")]
pub enum SchemaError {
    #[error("column {0:?} is defined twice")]
    DuplicateColumn(String),
    #[error("key column {0:?} is not defined")]
    UnknownKeyColumn(String),
    #[error("column {0:?} is named twice in the row key")]
    DuplicateKeyColumn(String),
    #[error("a table needs a PRIMARY KEY or a TIME INDEX")]
    NoKey,
    #[error("TIME INDEX {0:?} is no TIMESTAMP")]
    TimeIndexType(String),
    #[error("column name {0:?} is reserved: names that start with two underscores are the engine's")]
    ReservedName(String),
}

/// What the schema of an index calls the column that it is ordered by at this place.
pub fn index_column(at: usize) -> String {
    format!("__i{at}")
}

/// What the schema of an index calls the column at this place of the row key.
pub fn key_column(at: usize) -> String {
    format!("__k{at}")
}

fn check_names(columns: &[Column]) -> Result<(), SchemaError> {
    for (at, column) in columns.iter().enumerate() {
        if columns[..at].iter().any(|other| other.name == column.name) {
            return Err(SchemaError::DuplicateColumn(column.name.clone()));
        }
        if column.name.starts_with("__") {
            return Err(SchemaError::ReservedName(column.name.clone()));
        }
    }
    Ok(())
}

impl Schema {
    /// Columns, the names of the PRIMARY KEY in key order, and the name of the TIME INDEX. Key columns become NOT NULL.
    pub fn new(
        version: u64,
        mut columns: Vec<Column>,
        primary_key: &[String],
        time_index: Option<&str>,
    ) -> Result<Schema, SchemaError> {
        check_names(&columns)?;
        let position = |name: &str| {
            columns
                .iter()
                .position(|column| column.name == name)
                .ok_or_else(|| SchemaError::UnknownKeyColumn(name.to_string()))
        };
        let primary_key = primary_key.iter().map(|name| position(name)).collect::<Result<Vec<_>, _>>()?;
        let time_index = time_index.map(position).transpose()?;
        let key: Vec<usize> = primary_key.iter().copied().chain(time_index).collect();
        if key.is_empty() {
            return Err(SchemaError::NoKey);
        }
        for (at, column) in key.iter().enumerate() {
            if key[..at].contains(column) {
                return Err(SchemaError::DuplicateKeyColumn(columns[*column].name.clone()));
            }
            columns[*column].nullable = false;
        }
        if let Some(at) = time_index
            && !matches!(columns[at].column_type, ColumnType::Timestamp(_))
        {
            return Err(SchemaError::TimeIndexType(columns[at].name.clone()));
        }
        let last = columns.iter().map(|column| column.id.0).max().unwrap_or(0);
        let next_column = ColumnId(last.saturating_add(1));
        let (absent, options) = (BTreeMap::new(), Box::default());
        let (indexes, next_index) = (Vec::new(), IndexId(1));
        Ok(Schema { version, columns, primary_key, time_index, next_column, absent, options, indexes, next_index })
    }

    /// The columns of a view: the engine's own ones may be among them, whose names begin with two underscores, and key columns
    /// stay nullable.
    ///
    /// # Panics
    /// If a name is there twice, or a key column is not there: views are made by `sql`.
    pub fn of_view(columns: Vec<Column>, key: &[String]) -> Schema {
        let position = |name: &String| columns.iter().position(|column| column.name == *name).expect("a key column");
        let primary_key: Vec<usize> = key.iter().map(position).collect();
        let names: BTreeSet<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        assert!(names.len() == columns.len() && !key.is_empty(), "{names:?}, key {key:?}");
        let next_column = ColumnId(columns.iter().map(|column| column.id.0).max().unwrap_or(0) + 1);
        let (absent, options) = (BTreeMap::new(), Box::default());
        let (indexes, next_index) = (Vec::new(), IndexId(1));
        let (version, time_index) = (1, None);
        Schema { version, columns, primary_key, time_index, next_column, absent, options, indexes, next_index }
    }

    /// The columns of an index: those that it is ordered by, called [`index_column`], then those of the row key, called
    /// [`key_column`]. All of them are its row key, so an entry is there or not, and has no fields. As the columns of an index
    /// keep their types, this is the same for as long as the index is there.
    pub fn of_index(&self, index: &IndexDef) -> Schema {
        let ordered = index.columns.iter().filter_map(|id| self.columns.iter().find(|column| column.id == *id));
        let ordered = ordered.enumerate().map(|(at, column)| (index_column(at), column.column_type));
        let key = self.key();
        let key = key.iter().enumerate().map(|(at, column)| (key_column(at), self.columns[*column].column_type));
        let column = |(at, (name, column_type)): (usize, (String, ColumnType))| Column {
            id: ColumnId(at as u32 + 1),
            name,
            column_type,
            nullable: true,
            default: None,
        };
        let columns: Vec<Column> = ordered.chain(key).enumerate().map(column).collect();
        let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let mut schema = Schema::of_view(columns, &names);
        if self.time_index.is_some() {
            schema.time_index = schema.primary_key.pop();
        }
        schema
    }

    /// The indexes, ascending by id.
    pub fn indexes(&self) -> &[IndexDef] {
        &self.indexes
    }

    /// The index called `name`.
    pub fn index(&self, name: &str) -> Option<&IndexDef> {
        self.indexes.iter().find(|index| index.name == name)
    }

    pub(super) fn add_index(&mut self, name: &str, columns: Vec<ColumnId>) {
        let (id, name) = (self.next_index, name.to_string());
        self.next_index = IndexId(id.0.saturating_add(1));
        self.indexes.push(IndexDef { id, name, columns, is_paused: false, rate_limit: None });
    }

    pub(super) fn indexes_mut(&mut self) -> &mut Vec<IndexDef> {
        &mut self.indexes
    }

    /// The same with these options.
    pub fn with_options(mut self, options: TableOptions) -> Result<Schema, OptionError> {
        if options.ttl_ms.is_some() && self.time_index.is_none() {
            return Err(OptionError::NoTime);
        }
        self.options = Box::new(options);
        Ok(self)
    }

    /// The table's options.
    pub fn options(&self) -> &TableOptions {
        &self.options
    }

    /// Changes an option, as far as rows that are there already allow it.
    pub(super) fn set_option(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError> {
        let mut options = TableOptions::clone(&self.options);
        options.set(name, value)?;
        self.options.may_become(&options)?;
        *self = self.clone().with_options(options)?;
        Ok(())
    }

    /// What a row that is older than the column reads in it.
    pub fn absent(&self, column: ColumnId) -> Value {
        self.absent.get(&column).cloned().unwrap_or(Value::Null)
    }

    /// The id of the next column to add.
    pub(super) fn next_column(&mut self) -> ColumnId {
        let id = self.next_column;
        self.next_column = ColumnId(id.0.saturating_add(1));
        id
    }

    /// Puts a new column at `at`.
    pub(super) fn insert(&mut self, at: usize, column: Column, absent: Value) {
        if !absent.is_null() {
            self.absent.insert(column.id, absent);
        }
        self.columns.insert(at, column);
        self.key_positions().filter(|key| **key >= at).for_each(|key| *key += 1);
    }

    /// Takes out the column at `at`, which is no key column.
    pub(super) fn remove(&mut self, at: usize) {
        let column = self.columns.remove(at);
        self.absent.remove(&column.id);
        self.key_positions().filter(|key| **key > at).for_each(|key| *key -= 1);
    }

    /// Changes the column at `at`; its id stays.
    pub(super) fn change(&mut self, at: usize, change: impl FnOnce(&mut Column)) {
        change(&mut self.columns[at]);
    }

    /// Gives the column at `at` the wider type `to`, and its constants too.
    pub(super) fn widen(&mut self, at: usize, to: ColumnType) {
        let column = &mut self.columns[at];
        column.column_type = to;
        if let Some(ColumnDefault::Constant(value)) = &mut column.default {
            *value = value.widened(to);
        }
        if let Some(value) = self.absent.get_mut(&column.id) {
            *value = value.widened(to);
        }
    }

    /// The same, if its names are those of a table.
    pub(super) fn checked(self) -> Result<Schema, AlterError> {
        check_names(&self.columns)?;
        Ok(self)
    }

    fn key_positions(&mut self) -> impl Iterator<Item = &mut usize> {
        self.primary_key.iter_mut().chain(self.time_index.as_mut())
    }

    /// All columns, in the order of the table.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Position and definition of the column called `name`.
    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, column)| column.name == name)
    }

    /// Positions of the PRIMARY KEY columns, in key order.
    pub fn primary_key(&self) -> &[usize] {
        &self.primary_key
    }

    /// Position of the TIME INDEX column.
    pub fn time_index(&self) -> Option<usize> {
        self.time_index
    }

    /// The unit of the TIME INDEX.
    pub fn time_unit(&self) -> Option<TimeUnit> {
        match self.columns[self.time_index?].column_type {
            ColumnType::Timestamp(unit) => Some(unit),
            _ => None,
        }
    }

    /// Positions of the row key's columns: PRIMARY KEY, then TIME INDEX.
    pub fn key(&self) -> Vec<usize> {
        self.primary_key.iter().copied().chain(self.time_index).collect()
    }

    /// Whether the column at `position` is part of the row key.
    pub fn is_key(&self, position: usize) -> bool {
        self.primary_key.contains(&position) || self.time_index == Some(position)
    }

    /// The shape of a batch of whole rows of this table, in the order of the table.
    ///
    /// Fields outside the key are nullable here whatever the table says: a tombstone carries NULL in them.
    pub fn to_arrow(&self) -> SchemaRef {
        let field = |(at, column): (usize, &Column)| {
            Field::new(&column.name, column.column_type.to_arrow(), column.nullable || !self.is_key(at))
        };
        Arc::new(ArrowSchema::new(self.columns.iter().enumerate().map(field).collect::<Vec<_>>()))
    }
}
