//! One cell: constants of defaults and partition rules, and keys while they are encoded.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ColumnType;

/// A scalar of one of the [`ColumnType`]s, or NULL.
///
/// Ordered the way keys are: NULL first, numbers by value, floats by IEEE total order, strings and
/// binaries by their bytes. Values of different kinds are ordered by kind and never mixed in one column.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// BOOLEAN.
    Boolean(bool),
    /// Every signed integer type.
    Int(i64),
    /// Every unsigned integer type.
    UInt(u64),
    /// FLOAT and DOUBLE (a FLOAT is widened, which is exact).
    Float(f64),
    /// DECIMAL: the unscaled integer; the scale is the column's.
    Decimal(i128),
    /// STRING.
    String(String),
    /// BINARY.
    Binary(Vec<u8>),
    /// DATE: days since 1970-01-01.
    Date(i32),
    /// TIMESTAMP: count of the column's unit since 1970-01-01T00:00:00.
    Timestamp(i64),
}

impl Value {
    /// Whether this is SQL NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Whether this is not NULL and a cell of `column_type` can hold exactly it.
    pub fn fits(&self, column_type: ColumnType) -> bool {
        match (self, column_type) {
            (Value::Int(v), ColumnType::Int8) => i8::try_from(*v).is_ok(),
            (Value::Int(v), ColumnType::Int16) => i16::try_from(*v).is_ok(),
            (Value::Int(v), ColumnType::Int32) => i32::try_from(*v).is_ok(),
            (Value::UInt(v), ColumnType::UInt8) => u8::try_from(*v).is_ok(),
            (Value::UInt(v), ColumnType::UInt16) => u16::try_from(*v).is_ok(),
            (Value::UInt(v), ColumnType::UInt32) => u32::try_from(*v).is_ok(),
            (Value::Float(v), ColumnType::Float32) => f64::from(*v as f32).total_cmp(v).is_eq(),
            (Value::Boolean(_), ColumnType::Boolean)
            | (Value::Int(_), ColumnType::Int64)
            | (Value::UInt(_), ColumnType::UInt64)
            | (Value::Float(_), ColumnType::Float64)
            | (Value::Decimal(_), ColumnType::Decimal { .. })
            | (Value::String(_), ColumnType::String)
            | (Value::Binary(_), ColumnType::Binary)
            | (Value::Date(_), ColumnType::Date)
            | (Value::Timestamp(_), ColumnType::Timestamp(_)) => true,
            _ => false,
        }
    }

    /// The same value in a column whose type was widened to `to`.
    pub fn widened(&self, to: ColumnType) -> Value {
        match (self, to) {
            (Value::UInt(number), ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64) => {
                i64::try_from(*number).map_or_else(|_| self.clone(), Value::Int)
            }
            (value, _) => value.clone(),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Boolean(_) => 1,
            Value::Int(_) => 2,
            Value::UInt(_) => 3,
            Value::Float(_) => 4,
            Value::Decimal(_) => 5,
            Value::String(_) => 6,
            Value::Binary(_) => 7,
            Value::Date(_) => 8,
            Value::Timestamp(_) => 9,
        }
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Value::Boolean(a), Value::Boolean(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            (Value::UInt(a), Value::UInt(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
            (Value::Decimal(a), Value::Decimal(b)) => a.cmp(b),
            (Value::String(a), Value::String(b)) => a.cmp(b),
            (Value::Binary(a), Value::Binary(b)) => a.cmp(b),
            (Value::Date(a), Value::Date(b)) => a.cmp(b),
            _ => self.kind().cmp(&other.kind()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Value {}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("NULL"),
            Value::Boolean(v) => write!(f, "{v}"),
            Value::Int(v) | Value::Timestamp(v) => write!(f, "{v}"),
            Value::UInt(v) => write!(f, "{v}"),
            Value::Float(v) => write!(f, "{v:?}"),
            Value::Decimal(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "'{}'", v.replace('\'', "''")),
            Value::Binary(v) => {
                f.write_str("x'")?;
                v.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
                f.write_str("'")
            }
            Value::Date(v) => write!(f, "{v}"),
        }
    }
}
