//! Sorted files: one Parquet file each, never changed once written.
//!
//! Columns are those of the table, then `__sequence` (UINT64) and `__op` (UINT8); rows stand in the order (key ascending,
//! sequence descending). Any Parquet reader can read them. Under the key [`INDEX_KEY`] of the file's metadata stands what
//! makes them an SST (see [`Index`]): the schema, the first key of every block of rows, sequences and checksums.
//!
//! Every byte that is used was verified: the manifest holds the checksum of the file's footer, the footer those of all
//! column chunks, which are the unit of reading; [`verify`] checks a whole file. (Parquet's own page checksums are not
//! written by the library.) A file that fails is [`Error::Damaged`] with its name.
//!
//! A file does not know its own id or its replica, so that a snapshot sends it as it is.

mod reader;
mod writer;

pub(crate) use reader::SstScan;
pub use reader::{Sst, verify};
pub use writer::write;

use std::collections::BTreeSet;

use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};

use super::{FileId, damaged};
use crate::error::{Error, IoKind};
use crate::types::{IndexId, Key, Schema, Sequence};

/// What the manifest knows of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Its name within the replica.
    pub id: FileId,
    /// What is in it: entries of this index; none: the rows of the table.
    pub index: Option<IndexId>,
    /// The least row key in it.
    pub first_key: Key,
    /// The greatest row key in it.
    pub last_key: Key,
    /// The earliest time in it, in the unit of the TIME INDEX; `i64::MIN` without a TIME INDEX (one window holds all).
    pub first_time: i64,
    /// The latest time in it; `i64::MAX` without a TIME INDEX.
    pub last_time: i64,
    /// The oldest version in it.
    pub first_sequence: Sequence,
    /// The newest version in it.
    pub last_sequence: Sequence,
    /// Versions in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// 0: flushed; compaction gives others.
    pub level: u8,
    /// CRC-32 of all its bytes.
    pub checksum: u32,
    /// The version of the schema that it was written with.
    pub schema_version: u64,
    /// Length of the file's footer (Parquet metadata, its length, magic).
    pub footer_bytes: u32,
    /// CRC-32 of the footer.
    pub footer_checksum: u32,
}

impl FileMeta {
    /// The earliest and the latest time in it; none: the table has no TIME INDEX.
    pub fn times(&self) -> Option<(i64, i64)> {
        let times = (self.first_time, self.last_time);
        (times != (i64::MIN, i64::MAX)).then_some(times)
    }
}

/// The key of [`Index`] in the metadata of the file; the value is its postcard form in hexadecimal digits.
pub const INDEX_KEY: &str = "seedbed.index";

/// The version of the layout that is written, and the only one that is read.
const FORMAT: u16 = 3;

/// What an SST has beyond Parquet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    format: u16,
    /// The schema of the rows.
    schema: Schema,
    /// Rows of a block; the last one of a row group may be shorter.
    block_rows: u32,
    /// One a row group.
    groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    /// The first key of every block.
    blocks: Vec<Key>,
    last_key: Key,
    first_sequence: Sequence,
    last_sequence: Sequence,
    rows: u32,
    /// CRC-32 of each column chunk.
    checksums: Vec<u32>,
}

/// The folder of a replica's SSTs.
pub fn folder(dir: &str) -> String {
    format!("{dir}/sst")
}

/// The path of the SST `id` of the replica in `dir`.
pub fn path(dir: &str, id: FileId) -> String {
    format!("{dir}/sst/{}", name(id))
}

fn name(id: FileId) -> String {
    format!("{:010}.parquet", id.0)
}

/// The file that is called `name`; none for a name that no SST has.
fn id_of(name: &str) -> Option<FileId> {
    let id = FileId(name.strip_suffix(".parquet")?.parse().ok()?);
    (self::name(id) == name).then_some(id)
}

/// Which of the names in the folder of SSTs are neither referenced nor being written: left over from a crash, or their
/// removal failed. Names that the engine does not give are left alone.
pub fn orphans(names: &[String], referenced: &BTreeSet<FileId>, writing: &BTreeSet<FileId>) -> Vec<String> {
    let orphan = |name: &&String| id_of(name).is_some_and(|id| !referenced.contains(&id) && !writing.contains(&id));
    names.iter().filter(orphan).cloned().collect()
}

/// The bytes were verified, so they are what was written: the library cannot read its own file.
fn unreadable(path: &str, err: impl Into<ParquetError>) -> Error {
    damaged(path, err.into())
}

/// The rows cannot be encoded (an offset overflows, say): nothing of it is the disk's fault.
fn unwritable(path: &str, err: impl Into<ParquetError>) -> Error {
    Error::Io { kind: IoKind::Other, message: format!("encode {path}: {}", err.into()) }
}

#[cfg(test)]
mod tests;
