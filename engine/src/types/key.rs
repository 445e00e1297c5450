//! The order-preserving key codec: byte order of encoded keys = order of their columns.
//!
//! A key is the concatenation of its columns; each is written as a marker byte (0 = NULL, 1 = value) and then
//!
//! * booleans: one byte;
//! * integers, dates, timestamps: big endian, the sign bit flipped where signed;
//! * floats: big endian, all bits flipped when negative, else the sign bit (IEEE total order);
//! * decimals: the unscaled integer as 16 bytes;
//! * strings and binaries: the bytes, each 0x00 as 0x00 0xFF, ended by 0x00 0x00, so that no key is a prefix of
//!   another by accident and a longer string sorts after its prefixes.
//!
//! The encoding is stored (in positions, cursors and file statistics) and must not change.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanBuilder, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit as ArrowTimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ColumnType, Sequence, Value};

/// The encoded row key of a row. Compares as the row's key columns do.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub Bytes);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("k")?;
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A place between two versions, which stand in the order (key ascending, sequence descending): right behind this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The row key.
    pub key: Key,
    /// The version; 0: all versions of the key.
    pub sequence: Sequence,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then(other.sequence.cmp(&self.sequence))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Bytes that are no key of the expected columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key of the expected columns: {0}")]
pub struct KeyError(&'static str);

const NULL: u8 = 0;
const VALUE: u8 = 1;

/// The key that has these values in its columns. The values must be of the column types they are decoded with later;
/// of integers the width matters: `types` are those of the key columns.
pub fn encode_key(values: &[Value], types: &[ColumnType]) -> Key {
    debug_assert_eq!(values.len(), types.len());
    let mut out = Vec::with_capacity(16 * values.len());
    for (value, column_type) in values.iter().zip(types) {
        put(&mut out, value, *column_type);
    }
    Key(out.into())
}

/// The row keys of all rows of `batch`, whose key columns stand at `key` (positions, in key order).
///
/// # Panics
/// If a key column is of a type that no [`ColumnType`] is stored as.
pub fn encode_keys(batch: &RecordBatch, key: &[usize]) -> Vec<Key> {
    let columns: Vec<(ColumnType, &ArrayRef)> = key
        .iter()
        .map(|at| {
            let column = batch.column(*at);
            let column_type = ColumnType::from_arrow(column.data_type()).expect("a key column has a column type");
            (column_type, column)
        })
        .collect();
    let mut scratch = Vec::with_capacity(64);
    let mut ends = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        for (column_type, column) in &columns {
            put_cell(&mut scratch, column, row, *column_type);
        }
        ends.push(scratch.len());
    }
    let all = Bytes::from(scratch);
    let mut start = 0;
    ends.into_iter().map(|end| Key(all.slice(std::mem::replace(&mut start, end)..end))).collect()
}

/// The values of the key columns of `key`.
pub fn decode_key(key: &Key, types: &[ColumnType]) -> Result<Vec<Value>, KeyError> {
    let mut rest = &key.0[..];
    let values = types.iter().map(|column_type| take(&mut rest, *column_type)).collect::<Result<Vec<_>, _>>()?;
    if rest.is_empty() { Ok(values) } else { Err(KeyError("longer than its columns")) }
}

impl Value {
    /// The cell of `column` in `row`.
    ///
    /// # Panics
    /// If the column is of a type that no [`ColumnType`] is stored as, or has no such row.
    pub fn of_cell(column: &ArrayRef, row: usize) -> Value {
        if column.is_null(row) {
            return Value::Null;
        }
        match column.data_type() {
            DataType::Boolean => Value::Boolean(column.as_boolean().value(row)),
            DataType::Int8 => Value::Int(column.as_primitive::<Int8Type>().value(row).into()),
            DataType::Int16 => Value::Int(column.as_primitive::<Int16Type>().value(row).into()),
            DataType::Int32 => Value::Int(column.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
            DataType::UInt8 => Value::UInt(column.as_primitive::<UInt8Type>().value(row).into()),
            DataType::UInt16 => Value::UInt(column.as_primitive::<UInt16Type>().value(row).into()),
            DataType::UInt32 => Value::UInt(column.as_primitive::<UInt32Type>().value(row).into()),
            DataType::UInt64 => Value::UInt(column.as_primitive::<UInt64Type>().value(row)),
            DataType::Float32 => Value::Float(column.as_primitive::<Float32Type>().value(row).into()),
            DataType::Float64 => Value::Float(column.as_primitive::<Float64Type>().value(row)),
            DataType::Decimal128(..) => Value::Decimal(column.as_primitive::<Decimal128Type>().value(row)),
            DataType::Utf8 => Value::String(column.as_string::<i32>().value(row).to_string()),
            DataType::LargeUtf8 => Value::String(column.as_string::<i64>().value(row).to_string()),
            DataType::Utf8View => Value::String(column.as_string_view().value(row).to_string()),
            DataType::Binary => Value::Binary(column.as_binary::<i32>().value(row).to_vec()),
            DataType::LargeBinary => Value::Binary(column.as_binary::<i64>().value(row).to_vec()),
            DataType::BinaryView => Value::Binary(column.as_binary_view().value(row).to_vec()),
            DataType::Date32 => Value::Date(column.as_primitive::<Date32Type>().value(row)),
            DataType::Timestamp(unit, _) => Value::Timestamp(match unit {
                ArrowTimeUnit::Second => column.as_primitive::<TimestampSecondType>().value(row),
                ArrowTimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().value(row),
                ArrowTimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().value(row),
                ArrowTimeUnit::Nanosecond => column.as_primitive::<TimestampNanosecondType>().value(row),
            }),
            other => panic!("no column is stored as {other}"),
        }
    }

    /// A column of `column_type` with one cell for each of `values`.
    ///
    /// # Panics
    /// If a value is neither NULL nor of that type.
    pub fn to_array(values: &[Value], column_type: ColumnType) -> ArrayRef {
        macro_rules! primitive {
            ($variant:ident, $arrow:ty) => {
                Arc::new(
                    values
                        .iter()
                        .map(|value| match value {
                            Value::Null => None,
                            Value::$variant(v) => Some(*v as <$arrow as ArrowPrimitiveType>::Native),
                            other => panic!("{other} is no {column_type}"),
                        })
                        .collect::<arrow::array::PrimitiveArray<$arrow>>(),
                )
            };
        }
        match column_type {
            ColumnType::Boolean => {
                let mut builder = BooleanBuilder::with_capacity(values.len());
                for value in values {
                    match value {
                        Value::Null => builder.append_null(),
                        Value::Boolean(v) => builder.append_value(*v),
                        other => panic!("{other} is no {column_type}"),
                    }
                }
                Arc::new(builder.finish())
            }
            ColumnType::Int8 => primitive!(Int, Int8Type),
            ColumnType::Int16 => primitive!(Int, Int16Type),
            ColumnType::Int32 => primitive!(Int, Int32Type),
            ColumnType::Int64 => primitive!(Int, Int64Type),
            ColumnType::UInt8 => primitive!(UInt, UInt8Type),
            ColumnType::UInt16 => primitive!(UInt, UInt16Type),
            ColumnType::UInt32 => primitive!(UInt, UInt32Type),
            ColumnType::UInt64 => primitive!(UInt, UInt64Type),
            ColumnType::Float32 => primitive!(Float, Float32Type),
            ColumnType::Float64 => primitive!(Float, Float64Type),
            ColumnType::Date => primitive!(Date, Date32Type),
            ColumnType::Timestamp(super::TimeUnit::Second) => primitive!(Timestamp, TimestampSecondType),
            ColumnType::Timestamp(super::TimeUnit::Millisecond) => primitive!(Timestamp, TimestampMillisecondType),
            ColumnType::Timestamp(super::TimeUnit::Microsecond) => primitive!(Timestamp, TimestampMicrosecondType),
            ColumnType::Timestamp(super::TimeUnit::Nanosecond) => primitive!(Timestamp, TimestampNanosecondType),
            ColumnType::Decimal { precision, scale } => {
                let array: arrow::array::Decimal128Array = values
                    .iter()
                    .map(|value| match value {
                        Value::Null => None,
                        Value::Decimal(v) => Some(*v),
                        other => panic!("{other} is no {column_type}"),
                    })
                    .collect();
                Arc::new(array.with_precision_and_scale(precision, scale).expect("a column's precision is valid"))
            }
            ColumnType::String => Arc::new(
                values
                    .iter()
                    .map(|value| match value {
                        Value::Null => None,
                        Value::String(v) => Some(v.as_str()),
                        other => panic!("{other} is no {column_type}"),
                    })
                    .collect::<arrow::array::StringArray>(),
            ),
            ColumnType::Binary => Arc::new(
                values
                    .iter()
                    .map(|value| match value {
                        Value::Null => None,
                        Value::Binary(v) => Some(v.as_slice()),
                        other => panic!("{other} is no {column_type}"),
                    })
                    .collect::<arrow::array::BinaryArray>(),
            ),
        }
    }
}

fn put_cell(out: &mut Vec<u8>, column: &ArrayRef, row: usize, column_type: ColumnType) {
    // Strings are the common key and the only kind that would be copied on the way through a Value.
    if let (DataType::Utf8, false) = (column.data_type(), column.is_null(row)) {
        out.push(VALUE);
        put_bytes(out, column.as_string::<i32>().value(row).as_bytes());
    } else {
        put(out, &Value::of_cell(column, row), column_type);
    }
}

fn put(out: &mut Vec<u8>, value: &Value, column_type: ColumnType) {
    if value.is_null() {
        out.push(NULL);
        return;
    }
    out.push(VALUE);
    match value {
        Value::Null => unreachable!("handled above"),
        Value::Boolean(v) => out.push(u8::from(*v)),
        Value::Int(v) => {
            let width = width(column_type);
            let flipped = (*v as u64) ^ (1 << (8 * width - 1));
            out.extend_from_slice(&flipped.to_be_bytes()[8 - width..]);
        }
        Value::UInt(v) => out.extend_from_slice(&v.to_be_bytes()[8 - width(column_type)..]),
        Value::Float(v) => {
            let bits = v.to_bits();
            let ordered = if bits >> 63 == 1 { !bits } else { bits ^ (1 << 63) };
            out.extend_from_slice(&ordered.to_be_bytes());
        }
        Value::Decimal(v) => out.extend_from_slice(&((*v as u128) ^ (1 << 127)).to_be_bytes()),
        Value::String(v) => put_bytes(out, v.as_bytes()),
        Value::Binary(v) => put_bytes(out, v),
        Value::Date(v) => out.extend_from_slice(&((*v as u32) ^ (1 << 31)).to_be_bytes()),
        Value::Timestamp(v) => out.extend_from_slice(&((*v as u64) ^ (1 << 63)).to_be_bytes()),
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn take(rest: &mut &[u8], column_type: ColumnType) -> Result<Value, KeyError> {
    match take_array::<1>(rest)?[0] {
        NULL => return Ok(Value::Null),
        VALUE => {}
        _ => return Err(KeyError("a marker is neither NULL nor value")),
    }
    Ok(match column_type {
        ColumnType::Boolean => match take_array::<1>(rest)?[0] {
            0 => Value::Boolean(false),
            1 => Value::Boolean(true),
            _ => return Err(KeyError("a boolean is neither 0 nor 1")),
        },
        ColumnType::Int8 | ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            let width = width(column_type);
            let flipped = take_uint(rest, width)? ^ (1 << (8 * width - 1));
            let unused = 64 - 8 * width as u32;
            Value::Int(((flipped << unused) as i64) >> unused)
        }
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => {
            Value::UInt(take_uint(rest, width(column_type))?)
        }
        ColumnType::Float32 | ColumnType::Float64 => {
            let ordered = take_uint(rest, 8)?;
            let bits = if ordered >> 63 == 1 { ordered ^ (1 << 63) } else { !ordered };
            Value::Float(f64::from_bits(bits))
        }
        ColumnType::Decimal { .. } => {
            Value::Decimal((u128::from_be_bytes(take_array::<16>(rest)?) ^ (1 << 127)) as i128)
        }
        ColumnType::String => {
            let bytes = take_bytes(rest)?;
            Value::String(String::from_utf8(bytes).map_err(|_| KeyError("a string is not UTF-8"))?)
        }
        ColumnType::Binary => Value::Binary(take_bytes(rest)?),
        ColumnType::Date => Value::Date((take_uint(rest, 4)? as u32 ^ (1 << 31)) as i32),
        ColumnType::Timestamp(_) => Value::Timestamp((take_uint(rest, 8)? ^ (1 << 63)) as i64),
    })
}

/// Bytes that an integer of `column_type` takes.
fn width(column_type: ColumnType) -> usize {
    match column_type {
        ColumnType::Int8 | ColumnType::UInt8 => 1,
        ColumnType::Int16 | ColumnType::UInt16 => 2,
        ColumnType::Int32 | ColumnType::UInt32 => 4,
        _ => 8,
    }
}

fn take_uint(rest: &mut &[u8], width: usize) -> Result<u64, KeyError> {
    let Some((head, tail)) = rest.split_at_checked(width) else {
        return Err(KeyError("shorter than its columns"));
    };
    *rest = tail;
    Ok(head.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let Some((head, tail)) = rest.split_first_chunk::<N>() else {
        return Err(KeyError("shorter than its columns"));
    };
    *rest = tail;
    Ok(*head)
}

fn take_bytes(rest: &mut &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::new();
    loop {
        match take_array::<1>(rest)?[0] {
            0 => match take_array::<1>(rest)?[0] {
                0 => return Ok(bytes),
                0xFF => bytes.push(0),
                _ => return Err(KeyError("a zero byte is followed by neither its escape nor the end")),
            },
            byte => bytes.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::TimeUnit;

    fn column() -> impl Strategy<Value = (ColumnType, Value, Value)> {
        fn pair<T: Arbitrary<Strategy: 'static> + Clone + 'static>(
            column_type: ColumnType,
            value: fn(T) -> Value,
        ) -> BoxedStrategy<(ColumnType, Value, Value)> {
            let cell = move || prop_oneof![1 => Just(Value::Null), 9 => any::<T>().prop_map(value)];
            (cell(), cell()).prop_map(move |(a, b)| (column_type, a, b)).boxed()
        }
        prop_oneof![
            pair(ColumnType::Boolean, Value::Boolean),
            pair(ColumnType::Int8, |v: i8| Value::Int(v.into())),
            pair(ColumnType::Int32, |v: i32| Value::Int(v.into())),
            pair(ColumnType::Int64, Value::Int),
            pair(ColumnType::UInt16, |v: u16| Value::UInt(v.into())),
            pair(ColumnType::UInt64, Value::UInt),
            pair(ColumnType::Float64, Value::Float),
            pair(ColumnType::Float32, |v: f32| Value::Float(v.into())),
            pair(ColumnType::Decimal { precision: 38, scale: 2 }, Value::Decimal),
            pair(ColumnType::String, Value::String),
            pair(ColumnType::Binary, Value::Binary),
            pair(ColumnType::Date, Value::Date),
            pair(ColumnType::Timestamp(TimeUnit::Millisecond), Value::Timestamp),
        ]
    }

    proptest! {
        #[test]
        fn keys_order_as_their_values_and_come_back(columns in prop::collection::vec(column(), 1..4)) {
            let types: Vec<_> = columns.iter().map(|(t, _, _)| *t).collect();
            let a: Vec<_> = columns.iter().map(|(_, a, _)| a.clone()).collect();
            let b: Vec<_> = columns.iter().map(|(_, _, b)| b.clone()).collect();
            let (key_a, key_b) = (encode_key(&a, &types), encode_key(&b, &types));
            prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
            prop_assert_eq!(decode_key(&key_a, &types).unwrap(), a.clone());
            // A column of the same cells encodes to the same keys.
            for (at, column_type) in types.iter().enumerate() {
                let array = Value::to_array(&[a[at].clone()], *column_type);
                let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
                prop_assert_eq!(&encode_keys(&batch, &[0])[0], &encode_key(&a[at..=at], &types[at..=at]));
            }
        }

        #[test]
        fn bytes_that_are_no_key_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let types = [ColumnType::String, ColumnType::Int32];
            if let Ok(values) = decode_key(&Key(bytes.clone().into()), &types) {
                prop_assert_eq!(encode_key(&values, &types), Key(bytes.into()));
            }
        }
    }
}
