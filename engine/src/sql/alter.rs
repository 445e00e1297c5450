//! `ALTER TABLE`: from what is written to what meta is asked for.

use datafusion::sql::sqlparser::ast;

use super::create::{ColumnDef, default_of, set_option};
use super::planner::Evaluator;
use crate::error::{Error, Invalid, Result};
use crate::types::{Alteration, Column, ColumnDefault, ColumnId, ColumnType, Place, Schema, TableOptions, Value};

/// An `ALTER TABLE` as written.
#[derive(Clone, Debug)]
pub struct AlterTable {
    /// The table.
    pub name: String,
    /// Its changes, in order.
    pub changes: Vec<Written>,
}

/// One change as written.
#[derive(Clone, Debug)]
pub enum Written {
    /// `ADD COLUMN ..`
    Add {
        /// The column.
        column: ColumnDef,
        /// Whether it is fine that there is one of that name.
        if_not_exists: bool,
        /// `FIRST`, `AFTER name`.
        place: Place,
    },
    /// `DROP COLUMN name`
    Drop {
        /// The column.
        column: String,
        /// Whether it is fine that there is none.
        if_exists: bool,
    },
    /// `RENAME COLUMN name TO name`
    Rename {
        /// The column.
        column: String,
        /// Its new name.
        to: String,
    },
    /// `ALTER COLUMN name TYPE ..`, `MODIFY COLUMN name ..`
    SetType {
        /// The column.
        column: String,
        /// Its new type.
        to: ColumnType,
    },
    /// `ALTER COLUMN name SET DEFAULT ..`, `ALTER COLUMN name DROP DEFAULT`
    SetDefault {
        /// The column.
        column: String,
        /// The default; none: it has none any more.
        default: Option<ast::Expr>,
    },
    /// `SET (name = value)`, `UNSET (name)`
    SetOption {
        /// The option.
        option: String,
        /// Its value; none: `UNSET`.
        value: Option<String>,
    },
}

impl AlterTable {
    /// What meta is asked to change of a table that has `schema`: each change is meant of what the ones before make of it,
    /// defaults are evaluated, what is done is left out.
    pub fn resolve(&self, schema: &Schema, evaluator: &Evaluator) -> Result<Vec<Alteration>> {
        let mut schema = schema.clone();
        let mut alterations = Vec::new();
        for change in &self.changes {
            let is_there = |name: &str| schema.column(name).is_some();
            let is_done = match change {
                Written::Add { column, if_not_exists, .. } => *if_not_exists && is_there(&column.name),
                Written::Drop { column, if_exists } => *if_exists && !is_there(column),
                Written::SetOption { option, value } => {
                    let mut options = schema.options().clone();
                    set_option(&mut options, option, value.as_deref(), TableOptions::NAMES)?;
                    options == *schema.options()
                }
                _ => false,
            };
            if !is_done {
                let alteration = self.one(change, &schema, evaluator)?;
                schema = schema.altered(std::slice::from_ref(&alteration))?;
                alterations.push(alteration);
            }
        }
        Ok(alterations)
    }

    fn one(&self, change: &Written, schema: &Schema, evaluator: &Evaluator) -> Result<Alteration> {
        let table = &self.name;
        Ok(match change {
            Written::Add { column, place, .. } => {
                let mut added = Column {
                    // Meta gives it another one.
                    id: ColumnId(0),
                    name: column.name.clone(),
                    column_type: column.column_type,
                    nullable: column.nullable != Some(false),
                    default: None,
                };
                added.default = default_of(&added, column.default.as_ref(), table, evaluator)?;
                // Rows that are there all get what the default is now.
                let absent = match &added.default {
                    Some(_) => Value::of_cell(&evaluator.default(&added, table, 1)?, 0),
                    None => Value::Null,
                };
                let Column { name, column_type, nullable, default, .. } = added;
                Alteration::Add { name, column_type, nullable, default, absent, place: place.clone() }
            }
            Written::Drop { column, .. } => Alteration::Drop { column: column.clone() },
            Written::Rename { column, to } => Alteration::Rename { column: column.clone(), to: to.clone() },
            Written::SetType { column, to } => Alteration::SetType { column: column.clone(), to: *to },
            Written::SetDefault { column, default } => {
                let Some((_, known)) = schema.column(column) else {
                    let message = format!("there is no column {column:?} in table {table}");
                    return Err(Error::invalid(Invalid::UnknownColumn, message));
                };
                let default: Option<ColumnDefault> = default_of(known, default.as_ref(), table, evaluator)?;
                Alteration::SetDefault { column: column.clone(), default }
            }
            Written::SetOption { option, value } => {
                Alteration::SetOption { option: option.clone(), value: value.clone() }
            }
        })
    }
}
