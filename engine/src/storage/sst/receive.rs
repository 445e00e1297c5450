//! A file that arrives in pieces from another replica.

use std::sync::Arc;

use bytes::Bytes;

use super::{FileMeta, folder, path};
use crate::disk::{Disk, File, Open};
use crate::error::{Error, Result};
use crate::storage::{FileId, damaged};

/// Writes a received file under a local id. Nothing refers to it until a manifest edit does: that edit is what commits a
/// snapshot, and what it does not name is an orphan.
#[derive(Debug)]
pub struct Receive {
    disk: Arc<dyn Disk>,
    dir: String,
    id: FileId,
    path: String,
    file: Arc<dyn File>,
    written: u64,
    checksum: crc32fast::Hasher,
}

impl Receive {
    /// Makes the file `id` in the replica's folder `dir`.
    pub async fn start(disk: Arc<dyn Disk>, dir: &str, id: FileId) -> Result<Receive> {
        let path = path(dir, id);
        let file =
            disk.open(&path, Open::Create).await.map_err(|err| Error::io(&err, format_args!("create SST {path}")))?;
        let checksum = crc32fast::Hasher::new();
        Ok(Receive { disk, dir: dir.to_string(), id, path, file, written: 0, checksum })
    }

    /// Bytes that are written: where the next piece begins.
    pub fn offset(&self) -> u64 {
        self.written
    }

    /// Adds the next piece.
    pub async fn push(&mut self, piece: Bytes) -> Result<()> {
        let written = self.file.write_at(self.written, piece.clone()).await;
        written.map_err(|err| Error::io(&err, format_args!("write SST {}", self.path)))?;
        self.checksum.update(&piece);
        self.written += piece.len() as u64;
        Ok(())
    }

    /// Compares with what the sender says of the file and makes content and name durable. The answer is `meta` under the
    /// local id.
    pub async fn finish(self, meta: &FileMeta) -> Result<FileMeta> {
        let found = self.checksum.finalize();
        if (self.written, found) != (meta.bytes, meta.checksum) {
            let (bytes, checksum) = (self.written, meta.checksum);
            let what = format!("{bytes} of {} bytes arrived, checksum {found:08x}, not {checksum:08x}", meta.bytes);
            return Err(damaged(&self.path, what));
        }
        self.file.sync().await.map_err(|err| Error::io(&err, format_args!("sync SST {}", self.path)))?;
        let synced = self.disk.sync_dir(&folder(&self.dir)).await;
        synced.map_err(|err| Error::io(&err, format_args!("sync folder of SST {}", self.path)))?;
        Ok(FileMeta { id: self.id, ..meta.clone() })
    }
}
