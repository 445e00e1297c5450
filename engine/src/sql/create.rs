//! `CREATE TABLE`: from what is written to what meta is asked for.

use datafusion::sql::sqlparser::ast;

use super::cast::{repeat, to_column};
use super::names::suggest;
use super::partition;
use super::planner::Evaluator;
use super::values::for_column;
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{self, PartitionRule};
use crate::types::{Column, ColumnDefault, ColumnId, ColumnType, Schema, SchemaError, TableOptions, Value};

/// A `CREATE TABLE` as written.
#[derive(Clone, Debug)]
pub struct CreateTable {
    /// The name.
    pub name: String,
    /// Whether it is fine that there is such a table.
    pub if_not_exists: bool,
    /// The columns in order.
    pub columns: Vec<ColumnDef>,
    /// Names of the PRIMARY KEY columns in key order.
    pub primary_key: Vec<String>,
    /// Name of the TIME INDEX.
    pub time_index: Option<String>,
    /// `PARTITION ON COLUMNS ..`
    pub partition: Option<Partition>,
    /// `WITH (name = value)`
    pub options: Vec<(String, String)>,
}

/// A column as written.
#[derive(Clone, Debug)]
pub struct ColumnDef {
    /// The name.
    pub name: String,
    /// The type.
    pub column_type: ColumnType,
    /// `NULL` or `NOT NULL`, where written.
    pub nullable: Option<bool>,
    /// `DEFAULT ..`
    pub default: Option<ast::Expr>,
}

/// `PARTITION ON COLUMNS (columns) (expressions)`
#[derive(Clone, Debug)]
pub struct Partition {
    /// The columns that decide.
    pub columns: Vec<String>,
    /// One for each region.
    pub expressions: Vec<ast::Expr>,
}

/// Options that count when the table is created, and what their values are. The others are [`TableOptions`].
const OPTIONS: [(&str, &str); 2] = [
    ("regions", "how many regions the rows are hashed into, at least 1"),
    ("replicas", "how many nodes have a copy of each region, at least 1"),
];

/// The options of `CREATE TABLE .. WITH (..)`.
#[derive(Default)]
struct Given {
    regions: Option<u32>,
    replicas: Option<u32>,
    others: TableOptions,
}

impl CreateTable {
    /// Without columns, as yet.
    pub(super) fn named(name: &str) -> CreateTable {
        CreateTable {
            name: name.to_string(),
            if_not_exists: false,
            columns: Vec::new(),
            primary_key: Vec::new(),
            time_index: None,
            partition: None,
            options: Vec::new(),
        }
    }

    /// What meta is asked to create: checked, defaults and constants evaluated.
    pub fn resolve(&self, evaluator: &Evaluator) -> Result<catalog::CreateTable> {
        let table = &self.name;
        if table.is_empty() || table.starts_with("__") {
            let message =
                format!("table name {table:?} is reserved: names that start with two underscores are the engine's");
            return Err(Error::invalid(Invalid::Schema, message));
        }
        let columns = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| self.column(at, column, evaluator))
            .collect::<Result<Vec<_>>>()?;
        let schema = Schema::new(1, columns, &self.primary_key, self.time_index.as_deref())
            .map_err(|err| Error::invalid(code(&err), format!("table {table}: {err}")))?;
        let Given { regions, replicas, others } = self.options()?;
        let schema = schema.with_options(others)?;
        let partition = self.partition(&schema, regions, evaluator)?;
        let (name, if_not_exists) = (table.clone(), self.if_not_exists);
        Ok(catalog::CreateTable { name, schema, partition, replicas, if_not_exists, view: None })
    }

    fn column(&self, at: usize, written: &ColumnDef, evaluator: &Evaluator) -> Result<Column> {
        let table = &self.name;
        let key = self.primary_key.contains(&written.name) || self.time_index.as_deref() == Some(written.name.as_str());
        if key && written.nullable == Some(true) {
            let message = format!("key column {:?} of table {table} cannot be NULL; leave NULL out", written.name);
            return Err(Error::invalid(Invalid::NotNull, message));
        }
        let mut column = Column {
            id: ColumnId(at as u32 + 1),
            name: written.name.clone(),
            column_type: written.column_type,
            nullable: !key && written.nullable != Some(false),
            default: None,
        };
        column.default = default_of(&column, written.default.as_ref(), table, evaluator)?;
        Ok(column)
    }

    fn options(&self) -> Result<Given> {
        let mut given = Given::default();
        for (name, value) in &self.options {
            let of_creation = match name.as_str() {
                "regions" => &mut given.regions,
                "replicas" => &mut given.replicas,
                _ => {
                    let known = || OPTIONS.iter().map(|(name, _)| *name).chain(TableOptions::NAMES);
                    set_option(&mut given.others, name, Some(value), known())?;
                    continue;
                }
            };
            *of_creation = value.parse().ok().filter(|count| *count >= 1);
            if of_creation.is_none() {
                let (_, legal) = OPTIONS.iter().find(|(known, _)| known == name).expect("both are in the list");
                return Err(Error::invalid(Invalid::Option, format!("table option {name} = {value}: {legal}")));
            }
        }
        Ok(given)
    }

    fn partition(&self, schema: &Schema, regions: Option<u32>, evaluator: &Evaluator) -> Result<PartitionRule> {
        let Some(written) = &self.partition else {
            let key = if schema.primary_key().is_empty() { schema.key() } else { schema.primary_key().to_vec() };
            let columns = key.iter().map(|at| schema.columns()[*at].name.clone()).collect();
            return Ok(PartitionRule::Hash { columns, regions: regions.unwrap_or(1) });
        };
        if let Some(regions) = regions {
            let message = format!(
                "table option regions = {regions}: PARTITION ON COLUMNS says already that there are {}; leave one out",
                written.expressions.len()
            );
            return Err(Error::invalid(Invalid::Option, message));
        }
        partition::resolve(&written.columns, &written.expressions, schema, evaluator)
    }
}

/// Sets an option of a table. The names that could have been meant are `known`.
pub(super) fn set_option(
    options: &mut TableOptions,
    name: &str,
    value: Option<&str>,
    known: impl IntoIterator<Item = &'static str> + Clone,
) -> Result<()> {
    options.set(name, value).map_err(|err| match Error::from(err) {
        Error::Invalid { code: Invalid::UnknownOption, message } => {
            Error::invalid(Invalid::UnknownOption, format!("{message}{}", suggest(name, known)))
        }
        other => other,
    })
}

/// The default of `column` that is written as `expr`.
pub(super) fn default_of(
    column: &Column,
    expr: Option<&ast::Expr>,
    table: &str,
    evaluator: &Evaluator,
) -> Result<Option<ColumnDefault>> {
    let Some(expr) = expr else { return Ok(None) };
    let expr = for_column(expr.clone(), column.column_type);
    Ok(match evaluator.constant(&expr)? {
        Some(scalar) => {
            let cell = to_column(&repeat(&scalar, 1), column, table)?;
            match Value::of_cell(&cell, 0) {
                Value::Null if !column.nullable => {
                    let message =
                        format!("DEFAULT of column {:?} of table {table} is NULL, the column is NOT NULL", column.name);
                    return Err(Error::invalid(Invalid::NotNull, message));
                }
                Value::Null => None,
                value => Some(ColumnDefault::Constant(value)),
            }
        }
        None => {
            // Evaluated only to see that it can be, and that it fits.
            to_column(&repeat(&evaluator.scalar(&expr)?, 1), column, table)?;
            Some(ColumnDefault::Impure(expr.to_string()))
        }
    })
}

fn code(err: &SchemaError) -> Invalid {
    match err {
        SchemaError::DuplicateColumn(_) | SchemaError::DuplicateKeyColumn(_) => Invalid::DuplicateColumn,
        SchemaError::UnknownKeyColumn(_) => Invalid::UnknownColumn,
        SchemaError::NoKey => Invalid::MissingKey,
        SchemaError::TimeIndexType(_) => Invalid::WrongType,
        SchemaError::ReservedName(_) => Invalid::Schema,
    }
}
