//! Reads files: only the row groups and columns that can matter, each byte verified before it is decoded.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{UInt8Type, UInt64Type};
use bytes::Bytes;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;

use super::{FORMAT, FileMeta, Group, INDEX_KEY, Index, path, unreadable};
use crate::disk::{Disk, File, Open};
use crate::error::{Error, Result};
use crate::storage::damaged;
use crate::storage::rows::{OP_COLUMN, Rows, SEQUENCE_COLUMN, gather};
use crate::storage::scan::{Filter, Plan};
use crate::storage::shape::{Shape, position};
use crate::types::{ColumnType, Key, Op, Schema, Sequence, Value, encode_keys};

/// Bytes that [`verify`] has in memory at once.
const VERIFY_BYTES: usize = 1 << 20;

/// Reads the whole file and compares its length and checksum with what the manifest says.
pub async fn verify(disk: &dyn Disk, dir: &str, meta: &FileMeta) -> Result<()> {
    let path = path(dir, meta.id);
    let file = open_file(disk, &path).await?;
    let mut checksum = crc32fast::Hasher::new();
    let mut offset = 0;
    loop {
        let piece =
            file.read_at(offset, VERIFY_BYTES).await.map_err(|err| Error::io(&err, format_args!("read SST {path}")))?;
        if piece.is_empty() {
            break;
        }
        offset += piece.len() as u64;
        checksum.update(&piece);
    }
    if offset != meta.bytes {
        return Err(damaged(&path, format_args!("it has {offset} bytes, the manifest says {}", meta.bytes)));
    }
    let found = checksum.finalize();
    if found != meta.checksum {
        return Err(damaged(&path, format_args!("its checksum is {found:08x}, not {:08x}", meta.checksum)));
    }
    Ok(())
}

async fn open_file(disk: &dyn Disk, path: &str) -> Result<Arc<dyn File>> {
    match disk.open(path, Open::Read).await {
        Ok(file) => Ok(file),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Err(damaged(path, "it is missing")),
        Err(err) => Err(Error::io(&err, format_args!("open SST {path}"))),
    }
}

/// The least and the greatest value of a column in a row group, where known.
type Bounds = (Option<Value>, Option<Value>);

/// An SST, of which `meta` is known.
pub struct Sst {
    meta: FileMeta,
    /// Why it cannot be read, if it could not be opened.
    content: Result<Content>,
}

/// An open file: its footer is in memory, and its bytes stay readable while this lives, whatever happens to its name.
struct Content {
    path: String,
    file: Arc<dyn File>,
    footer: ArrowReaderMetadata,
    index: Index,
    /// Of key columns, by position in the table: one a row group.
    statistics: BTreeMap<usize, Vec<Bounds>>,
}

impl fmt::Debug for Sst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sst").field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl Sst {
    /// Opens the file that the manifest calls `meta` and reads its footer.
    pub async fn open(disk: &dyn Disk, dir: &str, meta: FileMeta) -> Result<Sst> {
        let path = path(dir, meta.id);
        let file = open_file(disk, &path).await?;
        let len = u64::from(meta.footer_bytes);
        let Some(start) = meta.bytes.checked_sub(len).filter(|_| len >= 8) else {
            return Err(damaged(&path, format_args!("a footer of {len} bytes in a file of {} bytes", meta.bytes)));
        };
        let footer = read(&*file, &path, start..meta.bytes).await?;
        if crc32fast::hash(&footer) != meta.footer_checksum {
            return Err(damaged(&path, "the checksum of its footer is wrong"));
        }
        let metadata = ParquetMetaDataReader::decode_metadata(&footer[..footer.len() - 8])
            .map_err(|err| unreadable(&path, err))?;
        let index = index_of(metadata.file_metadata().key_value_metadata()).map_err(|what| damaged(&path, what))?;
        let shapes = metadata.row_groups().iter().map(|group| (group.num_rows(), group.num_columns()));
        if !shapes.eq(index.groups.iter().map(|group| (i64::from(group.rows), group.checksums.len()))) {
            return Err(damaged(&path, "its index is that of another file"));
        }
        let footer = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::default())
            .map_err(|err| unreadable(&path, err))?;
        let statistics = statistics(&footer, &index.schema).map_err(|err| unreadable(&path, err))?;
        Ok(Sst { meta, content: Ok(Content { path, file, footer, index, statistics }) })
    }

    /// Stands for a file that cannot be opened because it is damaged, as `err` says: whoever wants something of it is told so.
    pub fn unreadable(meta: FileMeta, err: Error) -> Sst {
        Sst { meta, content: Err(err) }
    }

    /// What the manifest knows of it.
    pub fn meta(&self) -> &FileMeta {
        &self.meta
    }

    /// The schema that it was written with.
    pub fn schema(&self) -> Result<&Schema> {
        Ok(&self.content()?.index.schema)
    }

    fn content(&self) -> Result<&Content> {
        self.content.as_ref().map_err(Error::clone)
    }

    /// For each of `keys`, which are ascending, the newest version here that is not newer than `upto`.
    pub async fn newest(&self, keys: &[Key], upto: Sequence) -> Result<Vec<Option<(Sequence, Op)>>> {
        if self.meta.first_sequence > upto {
            return Ok(vec![None; keys.len()]);
        }
        self.content()?.newest(keys, upto).await
    }
}

impl Content {
    async fn newest(&self, keys: &[Key], upto: Sequence) -> Result<Vec<Option<(Sequence, Op)>>> {
        let mut found = vec![None; keys.len()];
        let mut spans: Vec<Span> = Vec::new();
        for key in keys {
            for (number, group) in self.index.groups.iter().enumerate() {
                if group.last_key < *key || group.blocks[0] > *key || group.first_sequence > upto {
                    continue;
                }
                // Versions of the key may begin at the end of the last block that starts before it.
                let first = group.blocks.partition_point(|start| start < key).saturating_sub(1);
                let end = group.blocks.partition_point(|start| start <= key);
                match spans.last_mut() {
                    Some(span) if span.group == number && first <= span.blocks.end => {
                        span.blocks.end = span.blocks.end.max(end);
                    }
                    _ => spans.push(Span { group: number, blocks: first..end }),
                }
            }
        }
        let mut key_columns = self.index.schema.key();
        key_columns.sort_unstable();
        let place = |at: &usize| key_columns.binary_search(at).expect("the key columns are read");
        let key: Vec<usize> = self.index.schema.key().iter().map(place).collect();
        let mut decoder = self.decoder(&key_columns, &spans, self.index.block_rows as usize)?;
        while let Some(batch) = self.decode(&mut decoder).await? {
            let (sequences, ops) = self.versions(&batch)?;
            for ((at, sequence), op) in encode_keys(&batch, &key).iter().zip(sequences).zip(ops) {
                if sequence > upto {
                    continue;
                }
                // The newest version comes first.
                if let Ok(at) = keys.binary_search(at)
                    && found[at].is_none()
                {
                    found[at] = Some((sequence, op));
                }
            }
        }
        Ok(found)
    }

    /// The row groups, and the blocks of them, that have rows which `plan` may want.
    fn spans(&self, plan: &Plan) -> Vec<Span> {
        let mut spans = Vec::new();
        for (number, group) in self.index.groups.iter().enumerate() {
            let can_hold = |filter: &Filter| {
                let at = position(&self.index.schema, &plan.rules.schema, filter.column);
                let Some((at, statistics)) = at.and_then(|at| Some((at, self.statistics.get(&at)?))) else {
                    return true;
                };
                let (min, max) = &statistics[number];
                // In a table no cell of a key is; in views and indexes some are.
                let nulls = self.index.schema.columns()[at].nullable;
                filter.condition.can_hold(min.as_ref(), max.as_ref(), nulls)
            };
            if group.first_sequence > plan.upto
                || !plan.range.meets(&group.blocks[0], &group.last_key)
                || !plan.key_filters.iter().all(can_hold)
            {
                continue;
            }
            let (first, end) = plan.range.within(&group.blocks);
            let all = first.saturating_sub(1)..end;
            match &plan.only {
                None => spans.push(Span { group: number, blocks: all }),
                Some(only) => spans.extend(blocks_of(only, group, all).map(|blocks| Span { group: number, blocks })),
            }
        }
        spans
    }

    /// A decoder of the table's columns at `columns` (ascending), then sequence and op, of the rows in `spans`.
    fn decoder(&self, columns: &[usize], spans: &[Span], batch_rows: usize) -> Result<ParquetPushDecoder> {
        let mut groups = Vec::new();
        let mut ranges = Vec::new();
        let mut before = 0;
        let block = self.index.block_rows as usize;
        for span in spans {
            let rows = self.index.groups[span.group].rows as usize;
            if groups.last() != Some(&span.group) {
                before += groups.last().map_or(0, |last: &usize| self.index.groups[*last].rows as usize);
                groups.push(span.group);
            }
            ranges.push(before + span.blocks.start * block..before + (span.blocks.end * block).min(rows));
        }
        let all: usize = groups.iter().map(|group| self.index.groups[*group].rows as usize).sum();
        let selected: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        let width = self.index.schema.columns().len();
        let roots = columns.iter().copied().chain([width, width + 1]);
        let mut builder = ParquetPushDecoderBuilder::new_with_metadata(self.footer.clone())
            .with_batch_size(batch_rows)
            .with_projection(ProjectionMask::roots(self.footer.parquet_schema(), roots))
            .with_row_groups(groups);
        if selected < all {
            builder = builder.with_row_selection(RowSelection::from_consecutive_ranges(ranges.into_iter(), all));
        }
        builder.build().map_err(|err| unreadable(&self.path, err))
    }

    async fn decode(&self, decoder: &mut ParquetPushDecoder) -> Result<Option<RecordBatch>> {
        loop {
            match decoder.try_decode().map_err(|err| unreadable(&self.path, err))? {
                DecodeResult::Finished => return Ok(None),
                DecodeResult::Data(batch) => return Ok(Some(batch)),
                DecodeResult::NeedsData(ranges) => {
                    let mut data = Vec::with_capacity(ranges.len());
                    for range in &ranges {
                        data.push(self.fetch(range.clone()).await?);
                    }
                    decoder.push_ranges(ranges, data).map_err(|err| unreadable(&self.path, err))?;
                }
            }
        }
    }

    /// The bytes in `range`, verified: the column chunks that they are part of are read whole.
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let mut chunks = Vec::new();
        for (group, index) in self.footer.metadata().row_groups().iter().zip(&self.index.groups) {
            for (column, checksum) in group.columns().iter().zip(&index.checksums) {
                let (at, len) = column.byte_range();
                if at < range.end && range.start < at + len {
                    chunks.push((at..at + len, *checksum));
                }
            }
        }
        chunks.sort_unstable_by_key(|(chunk, _)| chunk.start);
        let span = match (chunks.first(), chunks.last()) {
            (Some((first, _)), Some((last, _))) => first.start..last.end,
            _ => 0..0,
        };
        if span.start > range.start || span.end < range.end {
            return Err(damaged(&self.path, format_args!("bytes {range:?} belong to no column")));
        }
        let bytes = read(&*self.file, &self.path, span.clone()).await?;
        for (chunk, checksum) in chunks {
            let at = (chunk.start - span.start) as usize..(chunk.end - span.start) as usize;
            if crc32fast::hash(&bytes[at]) != checksum {
                return Err(damaged(&self.path, format_args!("the checksum of bytes {chunk:?} is wrong")));
            }
        }
        Ok(bytes.slice((range.start - span.start) as usize..(range.end - span.start) as usize))
    }

    /// The last two columns of a decoded batch.
    fn versions(&self, batch: &RecordBatch) -> Result<(Vec<Sequence>, Vec<Op>)> {
        let column = |name: &str| -> Result<&ArrayRef> {
            batch.column_by_name(name).ok_or_else(|| damaged(&self.path, format_args!("it has no column {name}")))
        };
        let wrong = || damaged(&self.path, "a version column has another type");
        let sequences = column(SEQUENCE_COLUMN)?.as_primitive_opt::<UInt64Type>().ok_or_else(wrong)?;
        let ops = column(OP_COLUMN)?.as_primitive_opt::<UInt8Type>().ok_or_else(wrong)?;
        let op = |byte: &u8| Op::from_byte(*byte).ok_or_else(|| damaged(&self.path, format_args!("op {byte}")));
        let ops = ops.values().iter().map(op).collect::<Result<_>>()?;
        Ok((sequences.values().iter().copied().map(Sequence).collect(), ops))
    }
}

/// Consecutive blocks of a row group.
#[derive(Clone, Debug)]
struct Span {
    group: usize,
    blocks: Range<usize>,
}

/// Reads a file in order, a batch at a time.
pub(crate) struct SstScan {
    sst: Arc<Sst>,
    plan: Arc<Plan>,
    /// Once something was read.
    reading: Option<(Shape, ParquetPushDecoder)>,
}

impl SstScan {
    /// None if the file has nothing that `plan` may want.
    pub(crate) fn new(sst: Arc<Sst>, plan: Arc<Plan>) -> Option<SstScan> {
        let meta = &sst.meta;
        let (first, last) = (Value::Timestamp(meta.first_time), Value::Timestamp(meta.last_time));
        let in_time = |filter: &Filter| {
            plan.rules.schema.time_index() != Some(filter.column)
                || filter.condition.can_hold(Some(&first), Some(&last), false)
        };
        let has_time = plan.rules.schema.time_index().is_some();
        let wanted = meta.first_sequence <= plan.upto
            && !plan.hidden.hides_file(meta, has_time)
            && plan.range.meets(&meta.first_key, &meta.last_key)
            && plan.key_filters.iter().all(in_time);
        wanted.then(|| SstScan { sst, plan, reading: None })
    }

    /// Nothing that comes is less than this key.
    pub(crate) fn lower_bound(&self) -> Key {
        self.plan.range.from.clone().max(self.sst.meta.first_key.clone())
    }

    /// The next rows; none: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<Rows>> {
        let SstScan { sst, plan, reading } = self;
        let content = sst.content()?;
        if reading.is_none() {
            let shape = Shape::of(&content.index.schema, &plan.rules.schema, plan);
            let decoder = content.decoder(&shape.read, &content.spans(plan), plan.batch_rows)?;
            *reading = Some((shape, decoder));
        }
        let (shape, decoder) = reading.as_mut().expect("it was made just now");
        while let Some(batch) = content.decode(decoder).await? {
            let rows = content.rows(&sst.meta, batch, shape, plan)?;
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }
}

impl Content {
    fn rows(&self, meta: &FileMeta, batch: RecordBatch, shape: &Shape, plan: &Plan) -> Result<Rows> {
        let broken = |err: arrow::error::ArrowError| unreadable(&self.path, err);
        let (sequences, ops) = self.versions(&batch)?;
        let all: Vec<(usize, usize)> = (0..batch.num_rows()).map(|row| (0, row)).collect();
        let columns: Vec<usize> = (0..shape.read.len()).collect();
        // Of the shape that the file's schema has, without the version columns.
        let read = gather(&[&batch], &all, &columns, &shape.read_schema).map_err(broken)?;
        let batch = shape.make(read, &ops, plan).map_err(broken)?;
        let keys = encode_keys(&batch, &plan.key);
        let (from, to) = plan.range.within(&keys);
        let rows = Rows { batch, keys, sequences, ops };
        let rows = if (from, to) == (0, rows.len()) { rows } else { rows.slice(from, to - from) };
        let may_hide = plan.hidden.may_hide_of(meta, plan.rules.schema.time_index().is_some());
        plan.admitted(rows, may_hide).map_err(broken)
    }
}

/// The runs of blocks, within `all`, that can have some of `keys`, which are ascending.
fn blocks_of<'a>(keys: &'a [Key], group: &'a Group, all: Range<usize>) -> impl Iterator<Item = Range<usize>> + 'a {
    let can_have = move |block: usize| {
        let from = keys.partition_point(|key| *key < group.blocks[block]);
        // The last key of a block may be the first of the next one.
        let last = group.blocks.get(block + 1).unwrap_or(&group.last_key);
        keys.get(from).is_some_and(|key| key <= last)
    };
    let mut next = all.start;
    std::iter::from_fn(move || {
        let start = (next..all.end).find(|block| can_have(*block))?;
        let end = (start..all.end).find(|block| !can_have(*block)).unwrap_or(all.end);
        next = end;
        Some(start..end)
    })
}

async fn read(file: &dyn File, path: &str, range: Range<u64>) -> Result<Bytes> {
    let len = (range.end - range.start) as usize;
    let bytes = file.read_at(range.start, len).await.map_err(|err| Error::io(&err, format_args!("read SST {path}")))?;
    if bytes.len() < len {
        return Err(damaged(path, format_args!("it ends within bytes {range:?}")));
    }
    Ok(bytes)
}

fn index_of(metadata: Option<&Vec<parquet::file::metadata::KeyValue>>) -> Result<Index, String> {
    let entry = metadata.into_iter().flatten().find(|entry| entry.key == INDEX_KEY);
    let text = entry.and_then(|entry| entry.value.as_ref()).ok_or("it has no index")?;
    let bytes = from_hex(text).ok_or("its index is not hexadecimal")?;
    // The number of the layout comes first: another one may have any form behind it.
    match postcard::take_from_bytes::<u16>(&bytes) {
        Ok((FORMAT, _)) => {}
        Ok((format, _)) => return Err(format!("its layout has number {format}, this version reads {FORMAT}")),
        Err(err) => return Err(format!("its index: {err}")),
    }
    let index: Index = postcard::from_bytes(&bytes).map_err(|err| format!("its index: {err}"))?;
    let blocks = |rows: u32| rows.div_ceil(index.block_rows.max(1)) as usize;
    if index.block_rows == 0
        || index.groups.iter().any(|group| group.rows == 0 || group.blocks.len() != blocks(group.rows))
    {
        return Err("its index contradicts itself".to_string());
    }
    Ok(index)
}

/// Of each key column, the least and the greatest value in each row group.
///
/// Not of floats: Parquet leaves NaN out and does not tell the zeros apart, the order of keys does.
fn statistics(footer: &ArrowReaderMetadata, schema: &Schema) -> Result<BTreeMap<usize, Vec<Bounds>>, ParquetError> {
    let mut statistics = BTreeMap::new();
    let groups = || footer.metadata().row_groups().iter();
    for at in schema.key() {
        let column = &schema.columns()[at];
        if matches!(column.column_type, ColumnType::Float32 | ColumnType::Float64) {
            continue;
        }
        let converter = StatisticsConverter::try_new(&column.name, footer.schema(), footer.parquet_schema())?;
        let (mins, maxes) = (converter.row_group_mins(groups())?, converter.row_group_maxes(groups())?);
        let value = |column_of: &ArrayRef, row: usize| {
            (!column_of.is_null(row)).then(|| Value::of_cell(column_of, row)).filter(|v| v.fits(column.column_type))
        };
        let bounds = (0..mins.len()).map(|row| (value(&mins, row), value(&maxes, row)));
        statistics.insert(at, bounds.collect());
    }
    Ok(statistics)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}
