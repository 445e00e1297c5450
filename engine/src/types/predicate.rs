//! Conditions on single columns that travel to where the rows are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Value;

/// `column op value`. A condition on a cell that is NULL does not hold, except `IsNull`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predicate {
    /// Name of the column.
    pub column: String,
    /// What must hold of its cell.
    pub condition: Condition,
}

/// What must hold of one cell. The values are of the column's type and never NULL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Condition {
    Eq(Value),
    NotEq(Value),
    Lt(Value),
    LtEq(Value),
    Gt(Value),
    GtEq(Value),
    /// Equal to one of them.
    In(Vec<Value>),
    IsNull,
    IsNotNull,
}

impl Condition {
    /// Whether it holds of `cell`.
    pub fn holds(&self, cell: &Value) -> bool {
        match self {
            Condition::IsNull => cell.is_null(),
            Condition::IsNotNull => !cell.is_null(),
            _ if cell.is_null() => false,
            Condition::Eq(value) => cell == value,
            Condition::NotEq(value) => cell != value,
            Condition::Lt(value) => cell < value,
            Condition::LtEq(value) => cell <= value,
            Condition::Gt(value) => cell > value,
            Condition::GtEq(value) => cell >= value,
            Condition::In(values) => values.contains(cell),
        }
    }

    /// Whether it can hold of a cell that is between `min` and `max` (inclusive, none = not known) and is NULL only if
    /// `nulls`. May say yes wrongly, never no: what pruning needs.
    pub fn can_hold(&self, min: Option<&Value>, max: Option<&Value>, nulls: bool) -> bool {
        let not_above = |value: &Value| min.is_none_or(|min| min <= value);
        let not_below = |value: &Value| max.is_none_or(|max| max >= value);
        match self {
            Condition::IsNull => nulls,
            Condition::IsNotNull => true,
            Condition::Eq(value) => not_above(value) && not_below(value),
            Condition::NotEq(value) => min != Some(value) || max != Some(value),
            Condition::Lt(value) => min.is_none_or(|min| min < value),
            Condition::LtEq(value) => not_above(value),
            Condition::Gt(value) => max.is_none_or(|max| max > value),
            Condition::GtEq(value) => not_below(value),
            Condition::In(values) => values.iter().any(|value| not_above(value) && not_below(value)),
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = &self.column;
        match &self.condition {
            Condition::Eq(value) => write!(f, "{column} = {value}"),
            Condition::NotEq(value) => write!(f, "{column} <> {value}"),
            Condition::Lt(value) => write!(f, "{column} < {value}"),
            Condition::LtEq(value) => write!(f, "{column} <= {value}"),
            Condition::Gt(value) => write!(f, "{column} > {value}"),
            Condition::GtEq(value) => write!(f, "{column} >= {value}"),
            Condition::In(values) => {
                let values: Vec<_> = values.iter().map(Value::to_string).collect();
                write!(f, "{column} IN ({})", values.join(", "))
            }
            Condition::IsNull => write!(f, "{column} IS NULL"),
            Condition::IsNotNull => write!(f, "{column} IS NOT NULL"),
        }
    }
}
