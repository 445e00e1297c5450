//! Changes of a table's columns and options: from a schema to the next one, or a reason why not. Pure.
//!
//! A column is known by its id, which is never used again: one that is dropped and added under its old name is another one,
//! and does not find the cells of the first. Rows that are older than a column read in it what its default was *when it was
//! added* ([`Schema::absent`]), however the default is changed later. The row key never changes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::column::{Column, ColumnDefault, ColumnType, Schema, SchemaError};
use super::options::{MergeMode, OptionError};
use super::value::Value;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Alteration {
    /// A new column.
    Add {
        /// Its name.
        name: String,
        /// What it holds.
        column_type: ColumnType,
        /// Whether NULL is allowed.
        nullable: bool,
        /// What an INSERT that does not name it writes.
        default: Option<ColumnDefault>,
        /// What rows that are there already read in it: the default, evaluated once.
        absent: Value,
        /// Where it stands.
        place: Place,
    },
    /// A column goes, with what it held.
    Drop {
        /// Its name.
        column: String,
    },
    /// A column gets another name.
    Rename {
        /// Its name until now.
        column: String,
        /// Its name from now on.
        to: String,
    },
    /// A column gets a type that holds every value of the one that it has.
    SetType {
        /// Its name.
        column: String,
        /// The type.
        to: ColumnType,
    },
    /// A column gets another default, or none. Rows that are there are not changed.
    SetDefault {
        /// Its name.
        column: String,
        /// The default.
        default: Option<ColumnDefault>,
    },
    /// An option of the table changes.
    SetOption {
        /// Its name.
        option: String,
        /// What it is from now on; none: as if it never was set.
        value: Option<String>,
    },
    /// A new index.
    AddIndex {
        /// Its name.
        name: String,
        /// The columns that it is ordered by.
        columns: Vec<String>,
    },
    /// An index goes.
    DropIndex {
        /// Its name.
        name: String,
    },
    /// The backfill of an index is to wait, or to go on, or to be so fast.
    ControlIndex {
        /// Its name.
        name: String,
        /// Whether it is to wait.
        is_paused: bool,
        /// Rows a second; none: as fast as it goes.
        rate_limit: Option<u64>,
    },
}

/// Where a new column stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Before all others.
    First,
    /// Right behind this one.
    After(String),
    /// Behind all others.
    #[default]
    Last,
}

/// Why a table cannot be changed so. The message names the column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is explained by its message")]
pub enum AlterError {
    #[error("there is no column {0:?}")]
    UnknownColumn(String),
    #[error("column {0:?} is part of the row key, which does not change")]
    KeyColumn(String),
    #[error("column {0:?} is NOT NULL and has no default: rows that are there already would have nothing in it")]
    NothingForOldRows(String),
    #[error("column {column:?} is {from}: not every value of it is one of {to}")]
    Narrower { column: String, from: ColumnType, to: ColumnType },
    #[error("column {column:?} is {column_type}, its default is not")]
    Default { column: String, column_type: ColumnType },
    #[error("there is an index {0:?} already")]
    DuplicateIndex(String),
    #[error("there is no index {0:?}")]
    UnknownIndex(String),
    #[error("index {0:?} has no columns, or one of them twice")]
    IndexColumns(String),
    #[error("column {column:?} is used by index {index}; drop that first")]
    Indexed { column: String, index: String },
    #[error("a table that appends has no indexes: its rows are not told apart by their keys")]
    IndexedAppend,
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl Schema {
    /// The schema after all of `alterations`, one version on.
    pub fn altered(&self, alterations: &[Alteration]) -> Result<Schema, AlterError> {
        let mut next = self.clone();
        for alteration in alterations {
            next.alter(alteration)?;
            // At once: the next one may mean a column by a name that two have.
            next = next.checked()?;
        }
        next.version += 1;
        Ok(next)
    }

    fn alter(&mut self, alteration: &Alteration) -> Result<(), AlterError> {
        match alteration {
            Alteration::Add { name, column_type, nullable, default, absent, place } => {
                if !nullable && absent.is_null() {
                    return Err(AlterError::NothingForOldRows(name.clone()));
                }
                check_default(name, *column_type, default.as_ref())?;
                if !absent.is_null() && !absent.fits(*column_type) {
                    return Err(AlterError::Default { column: name.clone(), column_type: *column_type });
                }
                let at = match place {
                    Place::First => 0,
                    Place::After(column) => self.position(column)? + 1,
                    Place::Last => self.columns().len(),
                };
                let id = self.next_column();
                let (name, column_type, nullable) = (name.clone(), *column_type, *nullable);
                self.insert(at, Column { id, name, column_type, nullable, default: default.clone() }, absent.clone());
            }
            Alteration::Drop { column } => {
                let at = self.field(column)?;
                self.refuse_if_indexed(at)?;
                self.remove(at);
            }
            Alteration::Rename { column, to } => {
                let at = self.position(column)?;
                self.change(at, |column| column.name.clone_from(to));
            }
            Alteration::SetType { column, to } => {
                let at = self.field(column)?;
                let from = self.columns()[at].column_type;
                self.refuse_if_indexed(at)?;
                if !widens(from, *to) {
                    return Err(AlterError::Narrower { column: column.clone(), from, to: *to });
                }
                self.widen(at, *to);
            }
            Alteration::SetDefault { column, default } => {
                let at = self.position(column)?;
                check_default(column, self.columns()[at].column_type, default.as_ref())?;
                self.change(at, |column| column.default.clone_from(default));
            }
            Alteration::SetOption { option, value } => self.set_option(option, value.as_deref())?,
            Alteration::AddIndex { name, columns } => {
                if self.index(name).is_some() {
                    return Err(AlterError::DuplicateIndex(name.clone()));
                }
                let id = |column: &String| Ok(self.columns()[self.position(column)?].id);
                let ids = columns.iter().map(id).collect::<Result<Vec<_>, AlterError>>()?;
                if ids.is_empty() || ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
                    return Err(AlterError::IndexColumns(name.clone()));
                }
                self.add_index(name, ids);
            }
            Alteration::DropIndex { name } => {
                let at = self.index_position(name)?;
                self.indexes_mut().remove(at);
            }
            Alteration::ControlIndex { name, is_paused, rate_limit } => {
                let at = self.index_position(name)?;
                let index = &mut self.indexes_mut()[at];
                (index.is_paused, index.rate_limit) = (*is_paused, *rate_limit);
            }
        }
        match self.options().merge_mode == MergeMode::Append && !self.indexes().is_empty() {
            true => Err(AlterError::IndexedAppend),
            false => Ok(()),
        }
    }

    fn index_position(&self, name: &str) -> Result<usize, AlterError> {
        let at = self.indexes().iter().position(|index| index.name == name);
        at.ok_or_else(|| AlterError::UnknownIndex(name.to_string()))
    }

    /// A column that an index is ordered by stays, and keeps its type.
    fn refuse_if_indexed(&self, at: usize) -> Result<(), AlterError> {
        let column = &self.columns()[at];
        match self.indexes().iter().find(|index| index.columns.contains(&column.id)) {
            Some(index) => Err(AlterError::Indexed { column: column.name.clone(), index: index.name.clone() }),
            None => Ok(()),
        }
    }

    fn position(&self, name: &str) -> Result<usize, AlterError> {
        self.column(name).map(|(at, _)| at).ok_or_else(|| AlterError::UnknownColumn(name.to_string()))
    }

    /// The position of a column that is no part of the row key.
    fn field(&self, name: &str) -> Result<usize, AlterError> {
        let at = self.position(name)?;
        if self.is_key(at) { Err(AlterError::KeyColumn(name.to_string())) } else { Ok(at) }
    }
}

fn check_default(column: &str, column_type: ColumnType, default: Option<&ColumnDefault>) -> Result<(), AlterError> {
    match default {
        Some(ColumnDefault::Constant(value)) if !value.fits(column_type) => {
            Err(AlterError::Default { column: column.to_string(), column_type })
        }
        _ => Ok(()),
    }
}

/// Whether every value of `from` is one of `to`, and stands in the same order there.
pub fn widens(from: ColumnType, to: ColumnType) -> bool {
    use ColumnType::*;
    let bits = |column_type| match column_type {
        Int8 => Some((true, 8)),
        Int16 => Some((true, 16)),
        Int32 => Some((true, 32)),
        Int64 => Some((true, 64)),
        UInt8 => Some((false, 8)),
        UInt16 => Some((false, 16)),
        UInt32 => Some((false, 32)),
        UInt64 => Some((false, 64)),
        _ => None,
    };
    if let (Some((from_signed, from)), Some((to_signed, to))) = (bits(from), bits(to)) {
        return if from_signed == to_signed { from <= to } else { to_signed && from < to };
    }
    match (from, to) {
        (Float32, Float64) => true,
        (Decimal { precision: p, scale: s }, Decimal { precision, scale }) => s == scale && p <= precision,
        (from, to) => from == to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ColumnId;

    fn schema() -> Schema {
        let column = |id, name: &str, column_type| Column {
            id: ColumnId(id),
            name: name.to_string(),
            column_type,
            nullable: true,
            default: None,
        };
        let columns = vec![column(1, "k", ColumnType::Int32), column(2, "v", ColumnType::Int16)];
        Schema::new(1, columns, &["k".to_string()], None).unwrap()
    }

    fn add(name: &str, place: Place) -> Alteration {
        let (name, column_type) = (name.to_string(), ColumnType::String);
        Alteration::Add { name, column_type, nullable: true, default: None, absent: Value::Null, place }
    }

    fn shown(schema: &Schema) -> Vec<(u32, &str)> {
        schema.columns().iter().map(|column| (column.id.0, column.name.as_str())).collect()
    }

    #[test]
    fn a_column_that_comes_back_is_another_one() {
        let drop = |column: &str| Alteration::Drop { column: column.to_string() };
        let first = schema().altered(&[add("x", Place::First)]).unwrap();
        assert_eq!((first.version, shown(&first)), (2, vec![(3, "x"), (1, "k"), (2, "v")]));
        assert!(first.is_key(1) && !first.is_key(0), "the key is where its column is");
        let again = first.altered(&[drop("x"), add("x", Place::After("k".into())), add("y", Place::Last)]).unwrap();
        assert_eq!((again.version, shown(&again)), (3, vec![(1, "k"), (4, "x"), (2, "v"), (5, "y")]));
        let after_a_restart: Schema = postcard::from_bytes(&postcard::to_allocvec(&again).unwrap()).unwrap();
        let once_more = after_a_restart.altered(&[drop("x"), add("x", Place::Last)]).unwrap();
        assert_eq!(once_more.columns().last().map(|column| column.id), Some(ColumnId(6)));
    }

    #[test]
    fn old_rows_keep_what_the_default_was() {
        let number = |n| Some(ColumnDefault::Constant(Value::Int(n)));
        let added = Alteration::Add {
            name: "n".into(),
            column_type: ColumnType::Int64,
            nullable: false,
            default: number(7),
            absent: Value::Int(7),
            place: Place::Last,
        };
        let schema = schema().altered(&[added]).unwrap();
        let schema = schema.altered(&[Alteration::SetDefault { column: "n".into(), default: number(8) }]).unwrap();
        assert_eq!(schema.absent(ColumnId(3)), Value::Int(7));
        assert_eq!(schema.column("n").unwrap().1.default, number(8));
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let named = |column: &str| column.to_string();
        let default = |column: &str, value| {
            let default = Some(ColumnDefault::Constant(value));
            Alteration::SetDefault { column: named(column), default }
        };
        let not_null = Alteration::Add {
            name: named("n"),
            column_type: ColumnType::Int8,
            nullable: false,
            default: None,
            absent: Value::Null,
            place: Place::Last,
        };
        for (alteration, message) in [
            (Alteration::Drop { column: named("k") }, "column \"k\" is part of the row key, which does not change"),
            (Alteration::Drop { column: named("x") }, "there is no column \"x\""),
            (add("v", Place::Last), "column \"v\" is defined twice"),
            (
                add("__x", Place::Last),
                "column name \"__x\" is reserved: names that start with two underscores are the engine's",
            ),
            (add("x", Place::After(named("y"))), "there is no column \"y\""),
            (Alteration::Rename { column: named("v"), to: named("k") }, "column \"k\" is defined twice"),
            (
                Alteration::SetType { column: named("v"), to: ColumnType::Int8 },
                "column \"v\" is SMALLINT: not every value of it is one of TINYINT",
            ),
            (
                Alteration::SetType { column: named("k"), to: ColumnType::Int64 },
                "column \"k\" is part of the row key, which does not change",
            ),
            (
                not_null,
                "column \"n\" is NOT NULL and has no default: rows that are there already would have nothing in it",
            ),
        ] {
            assert_eq!(schema().altered(&[alteration]).unwrap_err().to_string(), message);
        }
        let wrong = "column \"v\" is SMALLINT, its default is not";
        for value in [Value::UInt(5), Value::Int(1 << 20), Value::String(named("x"))] {
            assert_eq!(schema().altered(&[default("v", value)]).unwrap_err().to_string(), wrong);
        }
        // Each is meant of what the ones before have made.
        let two = [Alteration::Rename { column: named("v"), to: named("k") }, Alteration::Drop { column: named("k") }];
        assert_eq!(schema().altered(&two).unwrap_err().to_string(), "column \"k\" is defined twice");
    }

    #[test]
    fn a_type_widens_to_one_that_holds_all_its_values() {
        use ColumnType::*;
        for (from, to) in [(Int8, Int64), (UInt8, Int16), (Float32, Float64), (String, String)] {
            assert!(widens(from, to), "{from} to {to}");
        }
        for (from, to) in
            [(Int64, Int8), (Int8, UInt64), (UInt64, Int64), (Float64, Float32), (Int32, String), (Int32, Float64)]
        {
            assert!(!widens(from, to), "{from} to {to}");
        }
    }
}
