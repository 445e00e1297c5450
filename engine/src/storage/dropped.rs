//! The end of a replica: a marker that is durable before anything is removed, and removed after everything else is
//! durably gone. Whoever opens a replica's folder looks for the marker first and finishes the drop.

use std::io;

use crate::disk::{Disk, parent, remove_if_there, write_atomically};
use crate::error::{Error, Result};

use super::{list_if_there, manifest, sst};

const MARKER: &str = "DROPPED";

/// Durably marks the replica in `dir` as dropped. From now on [`is_dropped`] says so until [`remove`] is through.
pub async fn mark(disk: &dyn Disk, dir: &str) -> Result<()> {
    let path = format!("{dir}/{MARKER}");
    let written = write_atomically(disk, &path, bytes::Bytes::from_static(b"dropped\n")).await;
    written.map_err(|err| Error::io(&err, format_args!("write {path}")))
}

/// Whether a drop of the replica in `dir` was begun and is to be finished.
pub async fn is_dropped(disk: &dyn Disk, dir: &str) -> Result<bool> {
    let found = list_if_there(disk, dir).await?.iter().any(|name| name == MARKER);
    if found {
        // It may have been renamed by a process that was killed before it could make that durable.
        disk.sync_dir(dir).await.map_err(|err| Error::io(&err, format_args!("sync folder {dir}")))?;
    }
    Ok(found)
}

/// Removes everything of the replica in `dir`, which is marked; the caller has made the replica's log obsolete, durably.
/// May be repeated until it succeeds.
pub async fn remove(disk: &dyn Disk, dir: &str) -> Result<()> {
    let failed = |path: &str| {
        let path = path.to_string();
        move |err: io::Error| Error::io(&err, format_args!("remove {path}"))
    };
    for folder in [sst::folder(dir), manifest::folder(dir)] {
        for name in list_if_there(disk, &folder).await? {
            let path = format!("{folder}/{name}");
            remove_if_there(disk, &path).await.map_err(failed(&path))?;
        }
        // Were these names to come back after the marker is gone, so would the replica.
        match disk.sync_dir(&folder).await {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(&folder)(err)),
            _ => {}
        }
        match disk.remove_dir(&folder).await {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed(&folder)(err)),
            _ => {}
        }
    }
    let marker = format!("{dir}/{MARKER}");
    let temporary = format!("{marker}.tmp");
    remove_if_there(disk, &temporary).await.map_err(failed(&temporary))?;
    remove_if_there(disk, &marker).await.map_err(failed(&marker))?;
    disk.sync_dir(dir).await.map_err(failed(dir))?;
    match disk.remove_dir(dir).await {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(failed(dir)(err)),
        _ => disk.sync_dir(parent(dir)).await.map_err(failed(parent(dir))),
    }
}
