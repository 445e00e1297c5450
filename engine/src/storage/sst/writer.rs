//! Writes sorted rows to one file. The bytes leave memory a row group at a time.

use std::sync::Arc;

use arrow::datatypes::{Schema as ArrowSchema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{FORMAT, FileMeta, Group, INDEX_KEY, Index, folder, path, unwritable};
use crate::disk::{Disk, File, Open, remove_if_there};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::storage::FileId;
use crate::storage::merge::Merge;
use crate::storage::rows::{OP_COLUMN, Rows, SEQUENCE_COLUMN, op_field, sequence_field, timestamps};
use crate::types::{Key, Schema, Sequence};

/// The level of zstd: speed before size, a flush has writers waiting.
const ZSTD_LEVEL: i32 = 1;

/// Writes rows of `rows` to the file `id` of the replica in `dir`, content and name durable when this returns: all of
/// them, or as many as make a file of about `limit` bytes, never a part of the versions of a row; the others come next out
/// of `rows`. None: there were no rows, and there is no file. After an error, or when dropped half-way, an orphan may be
/// left; its id must not be used again.
pub async fn write(
    disk: &dyn Disk,
    dir: &str,
    id: FileId,
    schema: &Schema,
    options: &Options,
    limit: u64,
    rows: &mut Merge,
) -> Result<Option<FileMeta>> {
    let Some(first) = rows.next().await? else { return Ok(None) };
    let path = path(dir, id);
    let file =
        disk.open(&path, Open::Create).await.map_err(|err| Error::io(&err, format_args!("create SST {path}")))?;
    let encoder = Encoder::new(schema, options).map_err(|err| unwritable(&path, err));
    let written = match encoder {
        Ok(encoder) => write_rows(&*file, &path, id, encoder, limit, first, rows).await,
        Err(err) => Err(err),
    };
    drop(file);
    let synced = match written {
        Ok(meta) => match disk.sync_dir(&folder(dir)).await {
            Ok(()) => Ok(meta),
            Err(err) => Err(Error::io(&err, format_args!("sync folder of SST {path}"))),
        },
        Err(err) => Err(err),
    };
    if synced.is_err() {
        // What cannot be removed now is an orphan at the next open.
        let _ = remove_if_there(disk, &path).await;
    }
    synced.map(Some)
}

async fn write_rows(
    file: &dyn File,
    path: &str,
    id: FileId,
    mut encoder: Encoder,
    limit: u64,
    first: Rows,
    rows: &mut Merge,
) -> Result<FileMeta> {
    let mut offset = 0;
    let mut next = Some(first);
    while let Some(mut now) = next.take() {
        let mut is_last = false;
        if let Some(last) = &encoder.last_key
            && encoder.bytes() >= limit
        {
            // A file does not end among the versions of a row.
            let same_row = now.keys.partition_point(|key| key <= last);
            is_last = same_row < now.len();
            if is_last {
                rows.hand_back(now.slice(same_row, now.len() - same_row));
                now = now.slice(0, same_row);
            }
        }
        for piece in encoder.push(&now).map_err(|err| unwritable(path, err))? {
            offset = append(file, path, offset, piece).await?;
        }
        if !is_last {
            next = rows.next().await?;
        }
    }
    let (pieces, meta) = encoder.finish(id).map_err(|err| unwritable(path, err))?;
    for piece in pieces {
        offset = append(file, path, offset, piece).await?;
    }
    file.sync().await.map_err(|err| Error::io(&err, format_args!("sync SST {path}")))?;
    debug_assert_eq!(offset, meta.bytes);
    Ok(meta)
}

async fn append(file: &dyn File, path: &str, offset: u64, piece: Bytes) -> Result<u64> {
    let len = piece.len() as u64;
    file.write_at(offset, piece).await.map_err(|err| Error::io(&err, format_args!("write SST {path}")))?;
    Ok(offset + len)
}

/// Rows in, pieces of the file out.
struct Encoder {
    writer: ArrowWriter<Vec<u8>>,
    group_rows: usize,
    time_index: Option<usize>,
    index: Index,
    group: Option<Group>,
    /// Bytes handed out.
    written: u64,
    checksum: crc32fast::Hasher,
    times: Option<(i64, i64)>,
    last_key: Option<Key>,
}

impl Encoder {
    fn new(schema: &Schema, options: &Options) -> Result<Encoder, ParquetError> {
        let clamp = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
        let group_rows = clamp(options.sst_row_group_rows);
        let block_rows = clamp(options.scan_batch_rows).min(group_rows);
        let compression = Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?);
        let versions = [ColumnPath::from(SEQUENCE_COLUMN), ColumnPath::from(OP_COLUMN)];
        let mut properties = WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(None)
            // A block is read alone only if a page does not have rows of the next one.
            .set_data_page_row_count_limit(block_rows)
            .set_write_batch_size(block_rows)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true);
        for column in versions {
            properties = properties.set_column_dictionary_enabled(column.clone(), false);
            if column.string().as_str() == SEQUENCE_COLUMN {
                properties = properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
        }
        Ok(Encoder {
            writer: ArrowWriter::try_new(Vec::new(), file_schema(schema), Some(properties.build()))?,
            group_rows,
            time_index: schema.time_index(),
            index: Index { format: FORMAT, schema: schema.clone(), block_rows: block_rows as u32, groups: Vec::new() },
            group: None,
            written: 0,
            checksum: crc32fast::Hasher::new(),
            times: None,
            last_key: None,
        })
    }

    /// Size of the file if it ended now, about.
    fn bytes(&self) -> u64 {
        self.written + self.writer.in_progress_size() as u64
    }

    /// Takes rows; gives the row groups that are full.
    fn push(&mut self, rows: &Rows) -> Result<Vec<Bytes>, ParquetError> {
        let mut pieces = Vec::new();
        if let Some(at) = self.time_index {
            for time in timestamps(rows.batch.column(at)) {
                self.times = Some(self.times.map_or((*time, *time), |(min, max)| (min.min(*time), max.max(*time))));
            }
        }
        self.last_key = rows.keys.last().cloned().or(self.last_key.take());
        let batch = rows.with_version_columns(true, true);
        let mut from = 0;
        while from < rows.len() {
            let before = self.group.as_ref().map_or(0, |group| group.rows as usize);
            let len = (self.group_rows - before).min(rows.len() - from);
            self.writer.write(&batch.slice(from, len))?;
            self.note(&rows.keys[from..from + len], &rows.sequences[from..from + len]);
            from += len;
            if before + len == self.group_rows {
                pieces.push(self.end_group()?);
            }
        }
        Ok(pieces)
    }

    /// The rest of the file, and what the manifest is to know of it.
    ///
    /// # Panics
    /// If there were no rows.
    fn finish(mut self, id: FileId) -> Result<(Vec<Bytes>, FileMeta), ParquetError> {
        let mut pieces = Vec::new();
        if self.group.is_some() {
            pieces.push(self.end_group()?);
        }
        let index = postcard::to_allocvec(&self.index).map_err(|err| ParquetError::External(Box::new(err)))?;
        self.writer.append_key_value_metadata(KeyValue::new(INDEX_KEY.to_string(), Some(to_hex(&index))));
        self.writer.finish()?;
        let footer = self.take()?;
        let groups = &self.index.groups;
        let (first, last) = (groups.first().expect("there are rows"), groups.last().expect("there are rows"));
        let (first_time, last_time) = self.times.unwrap_or((i64::MIN, i64::MAX));
        let meta = FileMeta {
            id,
            index: None,
            first_key: first.blocks.first().expect("a group has rows").clone(),
            last_key: last.last_key.clone(),
            first_time,
            last_time,
            first_sequence: groups.iter().map(|group| group.first_sequence).min().expect("there are rows"),
            last_sequence: groups.iter().map(|group| group.last_sequence).max().expect("there are rows"),
            rows: groups.iter().map(|group| u64::from(group.rows)).sum(),
            bytes: self.written,
            level: 0,
            checksum: self.checksum.finalize(),
            schema_version: self.index.schema.version,
            footer_bytes: u32::try_from(footer.len()).map_err(|err| ParquetError::External(Box::new(err)))?,
            footer_checksum: crc32fast::hash(&footer),
        };
        pieces.push(footer);
        Ok((pieces, meta))
    }

    fn note(&mut self, keys: &[Key], sequences: &[Sequence]) {
        let group = self.group.get_or_insert_with(|| Group {
            blocks: Vec::new(),
            last_key: Key::default(),
            first_sequence: Sequence(u64::MAX),
            last_sequence: Sequence(0),
            rows: 0,
            checksums: Vec::new(),
        });
        for (key, sequence) in keys.iter().zip(sequences) {
            if group.rows.is_multiple_of(self.index.block_rows) {
                group.blocks.push(key.clone());
            }
            group.rows += 1;
            group.first_sequence = group.first_sequence.min(*sequence);
            group.last_sequence = group.last_sequence.max(*sequence);
        }
        group.last_key = keys.last().cloned().unwrap_or_default();
    }

    fn end_group(&mut self) -> Result<Bytes, ParquetError> {
        let start = self.written;
        self.writer.flush()?;
        let piece = self.take()?;
        let mut group = self.group.take().expect("a group is ended after rows");
        let flushed = self.writer.flushed_row_groups().last().expect("a group was flushed");
        for column in flushed.columns() {
            let (at, len) = column.byte_range();
            let at = (at - start) as usize;
            group.checksums.push(crc32fast::hash(&piece[at..at + len as usize]));
        }
        self.index.groups.push(group);
        Ok(piece)
    }

    /// The bytes that the writer made since the last call.
    fn take(&mut self) -> Result<Bytes, ParquetError> {
        self.writer.sync()?;
        let bytes = std::mem::take(self.writer.inner_mut());
        self.checksum.update(&bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.into())
    }
}

fn file_schema(schema: &Schema) -> SchemaRef {
    let mut fields = schema.to_arrow().fields().to_vec();
    fields.extend([Arc::new(sequence_field()), Arc::new(op_field())]);
    Arc::new(ArrowSchema::new(fields))
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
