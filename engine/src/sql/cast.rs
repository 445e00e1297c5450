//! Values of queries and literals as those of a column: DataFusion's casts, with errors that name the column and the row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::scalar::ScalarValue;

use crate::error::{Error, Invalid, Result};
use crate::types::{Column, ColumnType, Value};

/// The cells of `array` as `column` of `table` stores them. NULLs stay NULL, whether the column allows them or not.
pub fn to_column(array: &ArrayRef, column: &Column, table: &str) -> Result<ArrayRef> {
    let target = column.column_type.to_arrow();
    let source = array.data_type();
    if *source == target {
        return Ok(array.clone());
    }
    let is_text = |data_type: &DataType| {
        use DataType::*;
        matches!(data_type, Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | Null)
    };
    // Arrow would store the bytes that a number has in memory.
    let as_bytes = column.column_type == ColumnType::Binary && !is_text(source);
    if as_bytes || !can_cast_types(source, &target) {
        let message = format!("column {:?} of table {table} is {}, not {source}", column.name, column.column_type);
        return Err(Error::invalid(Invalid::WrongType, message));
    }
    match cast(array, &target) {
        Some(array) => Ok(array),
        None => Err(refusal(array, column, table)),
    }
}

/// The constant `scalar` as a cell of `column_type`; none if it is of another type, which only a cast could change.
pub fn to_value(scalar: &ScalarValue, column_type: ColumnType) -> Option<Value> {
    let array = scalar.to_array().ok()?;
    if let DataType::Timestamp(_, Some(_)) = array.data_type() {
        return None;
    }
    (ColumnType::from_arrow(array.data_type()) == Some(column_type)).then(|| Value::of_cell(&array, 0))
}

/// `value` as DataFusion's constant of `column_type`.
pub fn to_scalar(value: &Value, column_type: ColumnType) -> ScalarValue {
    let array = Value::to_array(std::slice::from_ref(value), column_type);
    ScalarValue::try_from_array(&array, 0).expect("every column type is one of DataFusion's")
}

/// DataFusion's cast, which fails where a cell does not fit. (Arrow's own makes an infinity of a DOUBLE that is too large
/// for a FLOAT; that is a failure too.)
fn cast(array: &ArrayRef, target: &DataType) -> Option<ArrayRef> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let cells = cast_with_options(array, target, &options).ok()?;
    if let (DataType::Float64, DataType::Float32) = (array.data_type(), target) {
        let before = array.as_primitive::<Float64Type>();
        let after = cells.as_primitive::<Float32Type>();
        let overflows = |(before, after): (Option<f64>, Option<f32>)| {
            before.is_some_and(f64::is_finite) && after.is_some_and(f32::is_infinite)
        };
        if before.iter().zip(after).any(overflows) {
            return None;
        }
    }
    Some(cells)
}

/// Which cell does not fit, and why.
fn refusal(array: &ArrayRef, column: &Column, table: &str) -> Error {
    let target = column.column_type.to_arrow();
    let row = (0..array.len()).find(|row| cast(&array.slice(*row, 1), &target).is_none()).unwrap_or(0);
    let cell = show(array, row);
    let numeric = |data_type: &DataType| data_type.is_numeric();
    let fits_kind = match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            let text = cell.trim_matches('\'');
            numeric(&target) && text.trim().parse::<f64>().is_ok()
        }
        source => (numeric(source) && numeric(&target)) || (source.is_temporal() && target.is_temporal()),
    };
    let at = if array.len() > 1 { format!("row {}: ", row + 1) } else { String::new() };
    let of = format!("column {:?} of table {table}", column.name);
    if fits_kind {
        let range = range(column.column_type);
        return Error::invalid(Invalid::OutOfRange, format!("{at}{cell} is out of the range of {of}, {range}"));
    }
    Error::invalid(Invalid::WrongType, format!("{at}{cell} is no {}, which {of} is", column.column_type))
}

fn range(column_type: ColumnType) -> String {
    let between = |min: String, max: String| format!("{column_type}: {min} to {max}");
    match column_type {
        ColumnType::Int8 => between(i8::MIN.to_string(), i8::MAX.to_string()),
        ColumnType::Int16 => between(i16::MIN.to_string(), i16::MAX.to_string()),
        ColumnType::Int32 => between(i32::MIN.to_string(), i32::MAX.to_string()),
        ColumnType::Int64 => between(i64::MIN.to_string(), i64::MAX.to_string()),
        ColumnType::UInt8 => between("0".into(), u8::MAX.to_string()),
        ColumnType::UInt16 => between("0".into(), u16::MAX.to_string()),
        ColumnType::UInt32 => between("0".into(), u32::MAX.to_string()),
        ColumnType::UInt64 => between("0".into(), u64::MAX.to_string()),
        ColumnType::Decimal { precision, scale } => {
            format!("{column_type}: {} digits before the point", i16::from(precision) - i16::from(scale))
        }
        other => other.to_string(),
    }
}

/// A cell as SQL writes it.
pub(super) fn show(array: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default().with_null("NULL");
    let text = match ArrayFormatter::try_new(array.as_ref(), &options) {
        Ok(formatter) => formatter.value(row).to_string(),
        Err(_) => return format!("a {}", array.data_type()),
    };
    let quoted = match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => !array.is_null(row),
        other => other.is_temporal() && !array.is_null(row),
    };
    match array.data_type() {
        DataType::Binary if !array.is_null(row) => format!("x'{text}'"),
        _ if quoted => format!("'{}'", text.replace('\'', "''")),
        _ => text,
    }
}

/// `value` as SQL writes it in a column of `column_type`.
pub(super) fn show_value(value: &Value, column_type: ColumnType) -> String {
    show(&Value::to_array(std::slice::from_ref(value), column_type), 0)
}

/// A column of `rows` times `scalar`.
pub(super) fn repeat(scalar: &ScalarValue, rows: usize) -> ArrayRef {
    match scalar.to_array_of_size(rows) {
        Ok(array) => array,
        // Only nested types fail, and no column has one.
        Err(_) => Arc::new(arrow::array::NullArray::new(rows)),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, StringArray};

    use super::*;
    use crate::types::ColumnId;

    fn column(column_type: ColumnType) -> Column {
        Column { id: ColumnId(1), name: "c".into(), column_type, nullable: true, default: None }
    }

    fn refused(array: ArrayRef, column_type: ColumnType) -> String {
        to_column(&array, &column(column_type), "t").unwrap_err().to_string()
    }

    #[test]
    fn a_cell_that_does_not_fit_is_named() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(300)]));
        assert_eq!(
            refused(numbers.clone(), ColumnType::Int8),
            "[out_of_range] row 3: 300 is out of the range of column \"c\" of table t, TINYINT: -128 to 127"
        );
        let fits = to_column(&numbers, &column(ColumnType::Int16), "t").unwrap();
        assert_eq!((fits.data_type(), fits.null_count()), (&DataType::Int16, 1));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["12", "x"]));
        assert_eq!(
            refused(texts.clone(), ColumnType::Int32),
            "[wrong_type] row 2: 'x' is no INT, which column \"c\" of table t is"
        );
        assert!(refused(texts.slice(1, 1), ColumnType::Date).starts_with("[wrong_type] 'x' is no DATE"));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["3000000000"]));
        assert!(refused(texts, ColumnType::Int32).starts_with("[out_of_range] '3000000000'"));
        let large: ArrayRef = Arc::new(Float64Array::from(vec![1e300]));
        assert!(refused(large.clone(), ColumnType::Float32).starts_with("[out_of_range] 1e300"));
        assert!(refused(large, ColumnType::Decimal { precision: 5, scale: 2 }).ends_with("3 digits before the point"));
    }
}
