//! Arrow batches on the wire and in the log: the IPC record-batch message without the schema message,
//! which the reader knows already (by table and schema version) and which would outweigh a small write.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow::ipc::{MetadataVersion, root_as_message};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes that are no batch of the expected columns.
#[derive(Debug, thiserror::Error)]
#[error("not a batch of the expected columns: {0}")]
pub struct ColumnarError(String);

impl From<ArrowError> for ColumnarError {
    fn from(err: ArrowError) -> Self {
        ColumnarError(err.to_string())
    }
}

/// The rows of `batch` without its schema: length of the IPC message (u32, little endian), message, body.
///
/// # Panics
/// If a column is dictionary-encoded: no [`ColumnType`](super::ColumnType) is.
pub fn encode_batch(batch: &RecordBatch) -> Bytes {
    let mut dictionaries = DictionaryTracker::new(false);
    let (none, encoded) = IpcDataGenerator::default()
        .encode(batch, &mut dictionaries, &IpcWriteOptions::default(), &mut IpcWriteContext::default())
        .expect("plain columns have an IPC form");
    assert!(none.is_empty(), "a column is dictionary-encoded");
    let mut bytes = BytesMut::with_capacity(4 + encoded.ipc_message.len() + encoded.arrow_data.len());
    bytes.put_u32_le(encoded.ipc_message.len() as u32);
    bytes.put_slice(&encoded.ipc_message);
    bytes.put_slice(&encoded.arrow_data);
    bytes.freeze()
}

/// The rows that [`encode_batch`] wrote, as a batch of `schema`. The bytes are validated, buffers are shared with them.
pub fn decode_batch(bytes: &Bytes, schema: &SchemaRef) -> Result<RecordBatch, ColumnarError> {
    let broken = |what: &str| ColumnarError(what.to_string());
    let mut rest = bytes.clone();
    if rest.remaining() < 4 {
        return Err(broken("shorter than its header"));
    }
    let message_len = rest.get_u32_le() as usize;
    if rest.remaining() < message_len {
        return Err(broken("shorter than its message"));
    }
    let message = rest.split_to(message_len);
    let message = root_as_message(&message).map_err(|err| ColumnarError(err.to_string()))?;
    let header = message.header_as_record_batch().ok_or_else(|| broken("its message is no record batch"))?;
    let body = Buffer::from(rest);
    // Arrow's reader panics where a buffer reaches beyond the body.
    let inside = |offset: i64, len: i64| {
        offset >= 0 && len >= 0 && offset.checked_add(len).is_some_and(|end| end as usize <= body.len())
    };
    if !header.buffers().is_some_and(|buffers| buffers.iter().all(|buffer| inside(buffer.offset(), buffer.length()))) {
        return Err(broken("its body is shorter than its message says"));
    }
    let version: MetadataVersion = message.version();
    #[expect(clippy::disallowed_types, reason = "Arrow asks for one; it is empty")]
    let dictionaries = std::collections::HashMap::new();
    Ok(arrow::ipc::reader::read_record_batch(&body, header, schema.clone(), &dictionaries, None, &version)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch() -> RecordBatch {
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Utf8, true)]);
        let a = Int64Array::from(vec![1, -2, 3]);
        let b = StringArray::from(vec![Some("x"), None, Some("")]);
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(a), Arc::new(b)]).unwrap()
    }

    #[test]
    fn a_batch_comes_back_as_it_went() {
        let batch = batch();
        assert_eq!(decode_batch(&encode_batch(&batch), &batch.schema()).unwrap(), batch);
        let slice = batch.slice(1, 1);
        assert_eq!(decode_batch(&encode_batch(&slice), &batch.schema()).unwrap(), slice);
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let batch = batch();
        let bytes = encode_batch(&batch);
        for len in [0, 3, 10, bytes.len() / 2] {
            assert!(decode_batch(&bytes.slice(..len), &batch.schema()).is_err(), "{len} bytes were taken for a batch");
        }
    }
}
