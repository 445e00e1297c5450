//! The column types as SQL spells them.

use datafusion::sql::sqlparser::ast::{DataType, ExactNumberInfo, TimezoneInfo};

use crate::error::{Error, Invalid, Result};
use crate::types::{ColumnType, TimeUnit};

/// What a column declared as `data_type` holds. Spellings and meanings are those of DataFusion's CAST, but a TIMESTAMP
/// without a precision counts milliseconds, and a length that nobody would enforce is refused.
pub(super) fn column_type(data_type: &DataType) -> Result<ColumnType> {
    Ok(match data_type {
        DataType::Boolean | DataType::Bool => ColumnType::Boolean,
        DataType::TinyInt(None) => ColumnType::Int8,
        DataType::SmallInt(None) | DataType::Int2(None) | DataType::Int16 => ColumnType::Int16,
        DataType::Int(None) | DataType::Integer(None) | DataType::Int4(None) | DataType::Int32 => ColumnType::Int32,
        DataType::BigInt(None) | DataType::Int8(None) | DataType::Int64 => ColumnType::Int64,
        DataType::TinyIntUnsigned(None) | DataType::UTinyInt | DataType::UInt8 => ColumnType::UInt8,
        DataType::SmallIntUnsigned(None) | DataType::Int2Unsigned(None) | DataType::USmallInt | DataType::UInt16 => {
            ColumnType::UInt16
        }
        DataType::IntUnsigned(None)
        | DataType::IntegerUnsigned(None)
        | DataType::Int4Unsigned(None)
        | DataType::UInt32 => ColumnType::UInt32,
        DataType::BigIntUnsigned(None) | DataType::Int8Unsigned(None) | DataType::UBigInt | DataType::UInt64 => {
            ColumnType::UInt64
        }
        DataType::Float(ExactNumberInfo::None) | DataType::Real | DataType::Float4 | DataType::Float32 => {
            ColumnType::Float32
        }
        DataType::Double(ExactNumberInfo::None) | DataType::DoublePrecision | DataType::Float8 | DataType::Float64 => {
            ColumnType::Float64
        }
        DataType::Decimal(info) | DataType::Numeric(info) | DataType::Dec(info) => decimal(info)?,
        DataType::String(None)
        | DataType::Text
        | DataType::Varchar(None)
        | DataType::CharacterVarying(None)
        | DataType::CharVarying(None) => ColumnType::String,
        DataType::Binary(None)
        | DataType::Varbinary(None)
        | DataType::Blob(None)
        | DataType::Bytes(None)
        | DataType::Bytea => ColumnType::Binary,
        DataType::Date => ColumnType::Date,
        DataType::Timestamp(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone)
        | DataType::Datetime(precision) => ColumnType::Timestamp(match precision {
            Some(0) => TimeUnit::Second,
            None | Some(3) => TimeUnit::Millisecond,
            Some(6) => TimeUnit::Microsecond,
            Some(9) => TimeUnit::Nanosecond,
            Some(other) => {
                let message = format!("TIMESTAMP({other}): the precision is 0, 3, 6 or 9");
                return Err(Error::invalid(Invalid::OutOfRange, message));
            }
        }),
        DataType::Timestamp(..) => {
            let message = format!("{data_type}: time zones are not stored; write TIMESTAMP and insert UTC");
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        DataType::Varchar(Some(_)) | DataType::String(Some(_)) | DataType::Char(_) | DataType::Character(_) => {
            let message = format!("{data_type}: lengths are not enforced; write STRING");
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        DataType::Binary(Some(_)) | DataType::Varbinary(Some(_)) => {
            let message = format!("{data_type}: lengths are not enforced; write BINARY");
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        other => {
            let message = format!(
                "type {other} is not supported; there are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT (and each UNSIGNED), \
                 FLOAT, DOUBLE, DECIMAL(p, s), STRING, BINARY, DATE, TIMESTAMP(0 | 3 | 6 | 9)"
            );
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
    })
}

fn decimal(info: &ExactNumberInfo) -> Result<ColumnType> {
    let (precision, scale) = match *info {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    let wrong = |message: String| Err(Error::invalid(Invalid::OutOfRange, message));
    if !(1..=38).contains(&precision) {
        return wrong(format!("DECIMAL({precision}, {scale}): the precision is 1 to 38"));
    }
    if !(0..=precision as i64).contains(&scale) {
        return wrong(format!("DECIMAL({precision}, {scale}): the scale is 0 to {precision}"));
    }
    Ok(ColumnType::Decimal { precision: precision as u8, scale: scale as i8 })
}
