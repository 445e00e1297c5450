//! `VALUES (..), (..)`: literals become the cells of a column without a plan.
//!
//! A literal is read as DataFusion reads it (`12` is a BIGINT, `1.5` a DOUBLE) and cast to the column as DataFusion casts,
//! a whole column at a time. Anything else in a cell is an expression that DataFusion evaluates. One thing differs, for
//! exactness: a number for a DECIMAL column is taken digit by digit and not by way of a DOUBLE.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, NullArray, StringArray, UInt64Array,
};
use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::ast::{self, DataType, Expr, TimezoneInfo, UnaryOperator};

use super::cast::to_column;
use super::planner::Evaluator;
use crate::error::{Error, Invalid, Result};
use crate::types::{Column, ColumnType};

/// Rows of expressions, all of the same length.
#[derive(Clone, Debug)]
pub struct Values {
    rows: Vec<Vec<Expr>>,
    width: usize,
}

impl Values {
    /// The rows of `values`; an error if their lengths differ.
    pub(super) fn new(values: ast::Values) -> Result<Values> {
        let rows: Vec<Vec<Expr>> = values.rows.into_iter().map(|row| row.content).collect();
        let width = rows.first().map_or(0, Vec::len);
        if let Some(at) = rows.iter().position(|row| row.len() != width) {
            let message = format!("row {} of VALUES has {} values, row 1 has {width}", at + 1, rows[at].len());
            return Err(Error::invalid(Invalid::Syntax, message));
        }
        Ok(Values { rows, width })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How many values each row has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The values at position `at` of each row, as `column` of `table` stores them.
    pub fn column(&self, at: usize, column: &Column, table: &str, evaluator: &Evaluator) -> Result<ArrayRef> {
        let cells: Vec<Cell> = self.rows.iter().map(|row| Cell::of(&row[at], column.column_type)).collect();
        match literals(&cells) {
            Some(array) => to_column(&array, column, table),
            None => self.mixed(&cells, column, table, evaluator),
        }
    }

    /// Cell by cell: literals of several kinds, expressions, DEFAULT.
    fn mixed(&self, cells: &[Cell], column: &Column, table: &str, evaluator: &Evaluator) -> Result<ArrayRef> {
        let mut scalars = Vec::with_capacity(cells.len());
        for (row, cell) in cells.iter().enumerate() {
            let array = match cell {
                Cell::Expression(expr) if is_default(expr) => evaluator.default(column, table, 1)?,
                Cell::Expression(expr) => super::cast::repeat(&evaluator.scalar(expr)?, 1),
                literal => literals(std::slice::from_ref(literal)).expect("one literal is of one kind"),
            };
            let array = to_column(&array, column, table).map_err(|err| in_row(err, row, cells.len()))?;
            let scalar = ScalarValue::try_from_array(&array, 0).map_err(super::invalid)?;
            scalars.push(scalar);
        }
        ScalarValue::iter_to_array(scalars).map_err(super::invalid)
    }
}

/// `expr` as the new value of a column of `column_type`: see the module on DECIMAL.
pub fn for_column(expr: Expr, column_type: ColumnType) -> Expr {
    match Cell::of(&expr, column_type) {
        Cell::Text(text) if matches!(column_type, ColumnType::Decimal { .. }) => {
            Expr::Value(ast::Value::SingleQuotedString(text.into_owned()).into())
        }
        _ => expr,
    }
}

/// Whether `expr` is the word DEFAULT, which the parser takes for a name.
pub fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

fn in_row(err: Error, row: usize, rows: usize) -> Error {
    match err {
        Error::Invalid { code, message } if rows > 1 => Error::invalid(code, format!("row {}: {message}", row + 1)),
        err => err,
    }
}

/// A cell as the text gives it.
enum Cell<'a> {
    Null,
    Boolean(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Text(std::borrow::Cow<'a, str>),
    Bytes(Vec<u8>),
    Expression(&'a Expr),
}

impl<'a> Cell<'a> {
    fn of(expr: &'a Expr, column_type: ColumnType) -> Cell<'a> {
        match expr {
            Expr::Value(value) => match &value.value {
                ast::Value::Null => Cell::Null,
                ast::Value::Boolean(value) => Cell::Boolean(*value),
                ast::Value::SingleQuotedString(text) => Cell::Text(text.into()),
                ast::Value::Number(digits, _) => number(digits, false, column_type).unwrap_or(Cell::Expression(expr)),
                ast::Value::HexStringLiteral(hex) => bytes(hex).map_or(Cell::Expression(expr), Cell::Bytes),
                _ => Cell::Expression(expr),
            },
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match inner.as_ref() {
                Expr::Value(value) => match &value.value {
                    ast::Value::Number(digits, _) => {
                        number(digits, true, column_type).unwrap_or(Cell::Expression(expr))
                    }
                    _ => Cell::Expression(expr),
                },
                _ => Cell::Expression(expr),
            },
            // DATE '2013-01-01' for a DATE, TIMESTAMP '..' for a TIMESTAMP: the text says it all.
            Expr::TypedString(typed) => match (&typed.data_type, column_type, &typed.value.value) {
                (DataType::Date, ColumnType::Date, ast::Value::SingleQuotedString(text))
                | (
                    DataType::Timestamp(None, TimezoneInfo::None),
                    ColumnType::Timestamp(_),
                    ast::Value::SingleQuotedString(text),
                ) => Cell::Text(text.into()),
                _ => Cell::Expression(expr),
            },
            _ => Cell::Expression(expr),
        }
    }
}

/// As `SqlToRel::parse_sql_number` reads it. What that would not read at all is left to it, for its error.
fn number<'a>(digits: &str, negative: bool, column_type: ColumnType) -> Option<Cell<'a>> {
    if digits.contains('_') {
        return None;
    }
    let signed = if negative { format!("-{digits}") } else { digits.to_string() };
    if matches!(column_type, ColumnType::Decimal { .. }) && !digits.contains(['e', 'E']) {
        return Some(Cell::Text(signed.into()));
    }
    if let Ok(value) = signed.parse::<i64>() {
        return Some(Cell::Int(value));
    }
    if let (false, Ok(value)) = (negative, signed.parse::<u64>()) {
        return Some(Cell::UInt(value));
    }
    signed.parse::<f64>().ok().map(Cell::Float)
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

/// One array of all cells, if all (that are not NULL) are literals of one kind.
fn literals(cells: &[Cell]) -> Option<ArrayRef> {
    macro_rules! all {
        ($kind:ident, $array:ty, $value:expr) => {{
            let values: Option<Vec<_>> = cells
                .iter()
                .map(|cell| match cell {
                    Cell::Null => Some(None),
                    Cell::$kind(value) => Some(Some($value(value))),
                    _ => None,
                })
                .collect();
            Some(Arc::new(<$array>::from_iter(values?)))
        }};
    }
    match cells.iter().find(|cell| !matches!(cell, Cell::Null)) {
        None => Some(Arc::new(NullArray::new(cells.len()))),
        Some(Cell::Boolean(_)) => all!(Boolean, BooleanArray, |value: &bool| *value),
        Some(Cell::Int(_)) => all!(Int, Int64Array, |value: &i64| *value),
        Some(Cell::UInt(_)) => all!(UInt, UInt64Array, |value: &u64| *value),
        Some(Cell::Float(_)) => all!(Float, Float64Array, |value: &f64| *value),
        Some(Cell::Text(_)) => {
            let values: Option<Vec<Option<&str>>> = cells
                .iter()
                .map(|cell| match cell {
                    Cell::Null => Some(None),
                    Cell::Text(text) => Some(Some(text.as_ref())),
                    _ => None,
                })
                .collect();
            Some(Arc::new(StringArray::from(values?)))
        }
        Some(Cell::Bytes(_)) => {
            let values: Option<Vec<Option<&[u8]>>> = cells
                .iter()
                .map(|cell| match cell {
                    Cell::Null => Some(None),
                    Cell::Bytes(bytes) => Some(Some(bytes.as_slice())),
                    _ => None,
                })
                .collect();
            Some(Arc::new(BinaryArray::from(values?)))
        }
        Some(Cell::Expression(_)) => None,
        Some(Cell::Null) => unreachable!("the first cell that is not NULL"),
    }
}
