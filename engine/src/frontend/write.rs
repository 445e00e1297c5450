//! Sending rows to their regions: parts of a statement, each applied once.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};

use arrow::array::{ArrayRef, RecordBatch, UInt64Array, new_null_array};
use arrow::compute::{take, take_record_batch};
use bytes::Bytes;
use futures::future::join_all;

use super::Frontend;
use super::deadline::Deadline;
use super::partition::split;
use super::route::mismatch;
use super::session::OpenStatement;
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{RegionDef, TableDef};
use crate::region::request::{FileName, WriteAnswer, WriteRequest};
use crate::server::message::{Request, Response};
use crate::sql::to_column;
use crate::types::{Column, Key, Op, RegionId, Sequence, Value, encode_batch, encode_keys};

/// Rows to write: whole rows of a table in the order of its columns.
#[derive(Clone, Debug)]
pub(super) struct Images {
    /// The rows. Of those to delete only the key counts.
    pub rows: RecordBatch,
    /// Put or delete.
    pub op: Op,
    /// The sequence that each row was computed from; none: write whatever is there.
    pub expected: Option<UInt64Array>,
    /// The name of the rows; then those of a region are one write.
    pub file: Option<FileName>,
}

/// What was written of a statement.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Rows.
    pub rows: u64,
    /// Regions whose part is durable.
    pub regions: BTreeSet<RegionId>,
    /// Rows that somebody changed since they were read, and that were not written.
    pub conflicts: BTreeSet<Key>,
}

/// One write to one region, before it has an id.
struct Chunk {
    images: Images,
    encoded: Bytes,
}

/// The rows of a statement that belong to one region, and what became of them.
struct Part<'a> {
    region: &'a RegionDef,
    rows: u64,
    /// Pieces that were written.
    chunks: usize,
    /// Those that were not, yet.
    left: VecDeque<Chunk>,
    conflicts: BTreeSet<Key>,
    failure: Option<Error>,
}

impl Frontend {
    /// Sends `images` to the regions of `table`, all regions at the same time, and adds what came of it to `written`.
    ///
    /// # Errors
    /// `Partial` if anything of the statement is written, before or now, and anything is not.
    pub(super) async fn write(
        &self,
        open: &OpenStatement,
        table: &TableDef,
        images: Images,
        written: &mut Written,
        deadline: Deadline,
    ) -> Result<()> {
        let mut parts = Vec::new();
        for share in split(&images.rows, table)? {
            let expected = match (&images.expected, &share.positions) {
                (Some(expected), Some(positions)) => Some(taken(expected, positions)),
                (expected, _) => expected.clone(),
            };
            let region = &table.regions[share.region];
            let left = self.chunks(Images { rows: share.rows, op: images.op, expected, file: images.file.clone() })?;
            parts.push(Part { region, rows: 0, chunks: 0, left, conflicts: BTreeSet::new(), failure: None });
        }
        let mut table = Cow::Borrowed(table);
        loop {
            let now = &table;
            let sent = parts.into_iter().map(|part| self.write_part(open, now, part, deadline));
            parts = join_all(sent).await;
            let Some(version) = parts.iter().filter_map(Part::outdated).max() else { break };
            // A statement of which nothing is written is planned anew, by the names and defaults that there are now. Of one
            // that is begun the rest is written as what its rows are by now: it and the ALTER were under way at the same time.
            let is_open = |failure: &Error| failure.may_have_applied();
            let is_begun = |part: &Part| part.rows > 0 || part.failure.as_ref().is_some_and(is_open);
            if written.regions.is_empty() && !parts.iter().any(is_begun) {
                break;
            }
            let altered = self.altered(&table, version, deadline).await;
            for part in parts.iter_mut().filter(|part| part.outdated().is_some()) {
                part.failure = match &altered {
                    Ok(altered) => self.recut(&mut part.left, &table, altered).err(),
                    Err(err) => Some(err.clone()),
                };
            }
            match altered {
                Ok(altered) => table = Cow::Owned(altered),
                Err(_) => break,
            }
        }
        let mut failures = Vec::new();
        let mut in_part = false;
        for part in parts {
            written.rows += part.rows;
            written.conflicts.extend(part.conflicts);
            match part.failure {
                None if part.rows > 0 => {
                    written.regions.insert(part.region.id);
                }
                None => {}
                Some(failure) if part.chunks > 0 => {
                    in_part = true;
                    let (region, all) = (part.region.id, part.chunks + part.left.len());
                    let message =
                        format!("region {region} has {} of {all} pieces, not the rest: {failure}", part.chunks);
                    failures.push(Error::Unknown { message });
                }
                Some(failure) => failures.push(failure),
            }
        }
        // The one that leaves most open is the one to tell.
        failures.sort_by_key(|err| !err.may_have_applied());
        match failures.into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(written.failed(failure, in_part)),
        }
    }

    /// Cuts rows into pieces that the options and a frame allow.
    fn chunks(&self, images: Images) -> Result<VecDeque<Chunk>> {
        let rows = images.rows.num_rows();
        let most = match images.file {
            Some(_) => rows.max(1),
            None => usize::try_from(self.options().write_batch_rows).unwrap_or(usize::MAX).max(1),
        };
        // Room for the rest of the frame: ids, ops, expected sequences.
        let room = (self.options().rpc_frame_bytes / 2) as usize;
        let mut todo: Vec<(usize, usize)> =
            (0..rows).step_by(most).map(|start| (start, most.min(rows - start))).rev().collect();
        let mut chunks = VecDeque::with_capacity(todo.len());
        while let Some((start, len)) = todo.pop() {
            let images = images.slice(start, len);
            let encoded = encode_batch(&images.rows);
            if encoded.len() <= room {
                chunks.push_back(Chunk { images, encoded });
            } else if let Some(file) = &images.file {
                let message = format!(
                    "file {:?} has {} bytes of rows for one region, more than a unit may have, {room}: ingest it in parts",
                    file.name,
                    encoded.len()
                );
                return Err(Error::invalid(Invalid::OutOfRange, message));
            } else if len > 1 {
                todo.push((start + len / 2, len - len / 2));
                todo.push((start, len / 2));
            } else {
                let message = format!("a row of {} bytes is larger than a write may be, {room} bytes", encoded.len());
                return Err(Error::invalid(Invalid::OutOfRange, message));
            }
        }
        Ok(chunks)
    }

    /// Writes what is left of `part`, one piece after the other: of two rows with one key the later must win.
    async fn write_part<'a>(
        &self,
        open: &OpenStatement,
        table: &TableDef,
        mut part: Part<'a>,
        deadline: Deadline,
    ) -> Part<'a> {
        while part.failure.is_none()
            && let Some(mut chunk) = part.left.pop_front()
        {
            match self.write_chunk(open, table, &mut chunk, &mut part, deadline).await {
                Ok(()) => part.chunks += 1,
                Err(failure) => {
                    part.failure = Some(failure);
                    part.left.push_front(chunk);
                }
            }
        }
        part
    }

    /// What is `left`, as rows of the table as it is.
    fn recut(&self, left: &mut VecDeque<Chunk>, was: &TableDef, is: &TableDef) -> Result<()> {
        let mut recut = VecDeque::new();
        for chunk in left.iter() {
            recut.extend(self.chunks(self.reshaped(&chunk.images, was, is)?)?);
        }
        *left = recut;
        Ok(())
    }

    /// Writes the rows of `chunk` that nobody changed since they were read; after an error it has those that are left.
    async fn write_chunk(
        &self,
        open: &OpenStatement,
        table: &TableDef,
        chunk: &mut Chunk,
        part: &mut Part<'_>,
        deadline: Deadline,
    ) -> Result<()> {
        let region = part.region;
        loop {
            let rows = match self.send(open, table, region, chunk, deadline).await {
                Ok(answer) => {
                    part.rows += answer.rows;
                    return Ok(());
                }
                Err(Error::Conflict { rows, .. }) => rows,
                Err(err) => return Err(err),
            };
            // Nothing of the request was written. What did not change goes again, under another id: it is another request.
            let changed: BTreeSet<u32> = if rows.is_empty() {
                return Err(Error::invalid(
                    Invalid::Mismatch,
                    format!("region {} names no row that changed", region.id),
                ));
            } else {
                rows.into_iter().collect()
            };
            let keys = encode_keys(&chunk.images.rows, &table.schema.key());
            part.conflicts.extend(changed.iter().filter_map(|row| keys.get(*row as usize).cloned()));
            let rows = chunk.images.rows.num_rows() as u32;
            let kept: Vec<u32> = (0..rows).filter(|row| !changed.contains(row)).collect();
            if kept.is_empty() {
                return Ok(());
            }
            let images = chunk.images.kept(kept)?;
            *chunk = Chunk { encoded: encode_batch(&images.rows), images };
        }
    }

    /// `table` once clients can know that it has at least `version` of its columns: all its regions have it then.
    async fn altered(&self, table: &TableDef, version: u64, deadline: Deadline) -> Result<TableDef> {
        let mut pauses = self.options().pauses();
        loop {
            self.routes().forget(&table.name);
            let now = self.routes().table(&table.name, deadline).await?;
            if now.id != table.id {
                return Err(another_table(&table.name));
            }
            if now.schema.version >= version {
                return Ok(TableDef::clone(&now));
            }
            if !deadline.pause(&mut pauses).await {
                let waiting_for = format!("version {version} of the columns of table {}", table.name);
                return Err(Error::Deadline { waiting_for });
            }
        }
    }

    /// Rows of the table as it was, as rows of the table as it is: columns are the same by id. A column that is new has its
    /// default, or in the image of a row that was there what that row reads in it.
    fn reshaped(&self, images: &Images, was: &TableDef, is: &TableDef) -> Result<Images> {
        let evaluator = self.planner().evaluator(self.shared.clock.now());
        let rows = images.rows.num_rows();
        let column = |column: &Column| -> Result<ArrayRef> {
            let at = was.schema.columns().iter().position(|old| old.id == column.id);
            match at {
                Some(at) => to_column(images.rows.column(at), column, &is.name),
                None if images.op == Op::Delete => Ok(new_null_array(&column.column_type.to_arrow(), rows)),
                None if images.expected.is_some() => {
                    let cells = vec![is.schema.absent(column.id); rows];
                    Ok(Value::to_array(&cells, column.column_type))
                }
                None => evaluator.default(column, &is.name, rows),
            }
        };
        let columns = is.schema.columns().iter().map(column).collect::<Result<_>>()?;
        let rows = RecordBatch::try_new(is.schema.to_arrow(), columns)
            .map_err(|err| Error::invalid(Invalid::Evaluation, err.to_string()))?;
        Ok(Images { rows, ..images.clone() })
    }

    /// Sends one write until there is an answer.
    async fn send(
        &self,
        open: &OpenStatement,
        table: &TableDef,
        region: &RegionDef,
        chunk: &Chunk,
        deadline: Deadline,
    ) -> Result<WriteAnswer> {
        let Chunk { images, encoded: rows } = chunk;
        let mut id = open.part(region.id);
        let ops = match images.op {
            Op::Put => Bytes::new(),
            Op::Delete => vec![Op::Delete as u8; images.rows.num_rows()].into(),
        };
        let expected: Vec<Sequence> = match &images.expected {
            Some(expected) => expected.values().iter().copied().map(Sequence).collect(),
            None => Vec::new(),
        };
        loop {
            let write = WriteRequest {
                schema_version: table.schema.version,
                rows: rows.clone(),
                ops: ops.clone(),
                expected: expected.clone(),
                request: Some(id),
                acknowledged: open.acknowledged(),
                file: images.file.clone(),
            };
            let request = Request::Write { region: region.id, write };
            let answer = self.routes().region(region, &request, deadline).await;
            match answer.result {
                Ok(Response::Write(written)) => return Ok(written),
                Ok(other) => return Err(mismatch(&other)),
                // The region remembers these like a success: they are the outcome of the first copy, too.
                Err(err @ (Error::Conflict { .. } | Error::SchemaChanged { .. })) => return Err(err),
                Err(err @ Error::Unknown { .. }) => return Err(err),
                Err(err) if answer.uncertain => {
                    let message = format!("a write to region {} may have been applied before this: {err}", region.id);
                    return Err(Error::Unknown { message });
                }
                Err(Error::SessionExpired { .. }) => id = open.renamed(id, deadline).await?,
                Err(err) => return Err(err),
            }
        }
    }
}

/// The table of a statement was dropped, and there is another one of its name.
pub(super) fn another_table(name: &str) -> Error {
    Error::invalid(Invalid::UnknownTable, format!("table {name:?} is another one by now"))
}

impl Part<'_> {
    /// The version of the table that refused what was made for an earlier one.
    fn outdated(&self) -> Option<u64> {
        match &self.failure {
            Some(Error::SchemaChanged { version, .. }) => Some(*version),
            _ => None,
        }
    }
}

impl Written {
    /// The error of a statement that stopped at `failure`.
    pub fn failed(&self, failure: Error, in_part: bool) -> Error {
        match failure {
            Error::Partial { .. } => failure,
            failure if self.regions.is_empty() && !in_part => failure,
            failure => Error::Partial { written: self.regions.iter().copied().collect(), cause: Box::new(failure) },
        }
    }
}

impl Images {
    fn slice(&self, start: usize, len: usize) -> Images {
        Images {
            rows: self.rows.slice(start, len),
            op: self.op,
            expected: self.expected.as_ref().map(|expected| expected.slice(start, len)),
            file: self.file.clone(),
        }
    }

    fn kept(&self, rows: Vec<u32>) -> Result<Images> {
        let rows = arrow::array::UInt32Array::from(rows);
        Ok(Images {
            rows: take_record_batch(&self.rows, &rows)
                .map_err(|err| Error::invalid(Invalid::Evaluation, err.to_string()))?,
            op: self.op,
            expected: self.expected.as_ref().map(|expected| taken(expected, &rows)),
            file: self.file.clone(),
        })
    }
}

fn taken(expected: &UInt64Array, rows: &arrow::array::UInt32Array) -> UInt64Array {
    use arrow::array::AsArray;
    use arrow::datatypes::UInt64Type;
    let taken = take(expected, rows, None).expect("positions are within the batch");
    taken.as_primitive::<UInt64Type>().clone()
}
