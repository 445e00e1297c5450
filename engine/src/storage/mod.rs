//! The LSM tree of one replica: memtables, sorted files (SSTs) and the manifest that names them. No raft, no queue, no
//! background work: `region/` decides when to write, freeze, flush and commit; here is how.
//!
//! A row is found under its *internal key*: (row key ascending, sequence descending, op). Versions are never changed in
//! place; the newest one at or below the sequence of a read counts. Rows are Arrow batches all the way: a write's batch
//! is kept as it came, and only the rows that a reader gets are gathered out of it.
//!
//! In reading order: [`rules`] what the versions of a row come to, [`range`] what hides many rows at once; [`rows`] what
//! sources and the merge hand on; [`scan`] what is read, resolved against the rules;
//! [`memtable`], [`sst`] the two kinds of sources; [`merge`] the one way to read several of them; [`version`] the set
//! of sources that belong together; [`changes`] what became of rows between two sequences; [`manifest`] the durable list of files; [`compaction`] which of them to merge.
//!
//! A replica's folder:
//!
//! ```text
//! manifest/CURRENT    names the checkpoint; there since the replica was created
//! manifest/00000000000000000007.checkpoint, 00000000000000000008.delta, ..
//! sst/0000000003.parquet
//! ```

pub mod changes;
pub mod compaction;
pub mod manifest;
pub mod memtable;
pub mod merge;
pub mod range;
pub mod rows;
pub mod rules;
pub mod scan;
mod shape;
pub mod sst;
pub mod version;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::error::{Error, Result};

/// A file of a replica. Given out by the region in ascending order, never reused within a replica: not even that of a
/// flush that failed, because its manifest edit may turn out to be durable after all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f{}", self.0)
    }
}

/// Makes the folder at `path` and its name durable, and those of the folders above it.
async fn create_dir_durably(disk: &dyn Disk, path: &str) -> Result<()> {
    disk.create_dir(path).await.map_err(|err| Error::io(&err, format_args!("make folder {path}")))?;
    let mut folder = path;
    while !folder.is_empty() {
        folder = disk::parent(folder);
        disk.sync_dir(folder).await.map_err(|err| Error::io(&err, format_args!("sync folder {folder:?}")))?;
    }
    Ok(())
}

/// Names in the folder at `path`; none where there is no such folder.
async fn list_if_there(disk: &dyn Disk, path: &str) -> Result<Vec<String>> {
    match disk.list(path).await {
        Ok(names) => Ok(names),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => Err(Error::io(&err, format_args!("list {path}"))),
    }
}

fn damaged(file: &str, message: impl fmt::Display) -> Error {
    Error::Damaged { file: file.to_string(), message: message.to_string() }
}
