//! The seam to files. Everything that the engine stores goes through [`Disk`]; a harness may put its own behind it.
//!
//! The contract is POSIX's, not more: what was written is durable after [`File::sync`]; a file's *name* (created,
//! renamed, removed) is durable after [`Disk::sync_dir`] of its folder. Before that a power failure may keep any part of
//! it. After a failed `sync` nothing is known of the pages it was to write: the file must not be trusted again.
//!
//! Paths are relative to the store, with `/` between folders, without `.` and `..`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist; for reading.
    Read,
    /// It must exist; for reading and writing.
    Write,
    /// It must not exist; for reading and writing.
    Create,
}

/// A folder of files that survive the process, and power failures where synced.
#[async_trait]
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens the file at `path`. `NotFound`, `AlreadyExists` as `how` asks.
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>>;

    /// Names (no paths) of the files and folders in the folder `path`, sorted. `NotFound` without the folder.
    async fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Makes the folder `path` and those above it. Existing ones are fine.
    async fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Makes the names in the folder `path` durable.
    async fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// Gives the file at `from` the name `to`, atomically, in place of what had it.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes the file at `path`.
    async fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Removes the empty folder `path`.
    async fn remove_dir(&self, path: &str) -> io::Result<()>;
}

/// An open file. Calls may overlap; each takes effect as a whole at some moment between call and answer.
#[expect(clippy::len_without_is_empty, reason = "each is a question to the disk, and nobody asks the other one")]
#[async_trait]
pub trait File: fmt::Debug + Send + Sync + 'static {
    /// Up to `len` bytes from `offset`; fewer only where the file ends.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Writes all of `bytes` at `offset`; the file grows as needed (a gap reads as zeros).
    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()>;

    /// Length in bytes.
    async fn len(&self) -> io::Result<u64>;

    /// Cuts or extends (with zeros) to `len` bytes.
    async fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content and length durable (fdatasync).
    async fn sync(&self) -> io::Result<()>;
}

/// Writes a whole file so that after a crash it is there entirely or not at all: temporary name, content, sync,
/// rename, sync of the folder. An error leaves it unknown whether the file is there: look before anything else.
pub async fn write_atomically(disk: &dyn Disk, path: &str, bytes: Bytes) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    remove_if_there(disk, &temporary).await?;
    let file = disk.open(&temporary, Open::Create).await?;
    file.write_at(0, bytes).await?;
    file.sync().await?;
    drop(file);
    disk.rename(&temporary, path).await?;
    disk.sync_dir(parent(path)).await
}

/// Removes the folder `path` with all that is in it. Whether there was one.
pub async fn remove_tree(disk: &dyn Disk, path: &str) -> io::Result<bool> {
    let mut folders = vec![path.to_string()];
    let mut found = false;
    let mut emptied = Vec::new();
    while let Some(folder) = folders.pop() {
        let names = match disk.list(&folder).await {
            Ok(names) => names,
            // Not a folder: a file, or nothing.
            Err(_) => {
                remove_if_there(disk, &folder).await?;
                continue;
            }
        };
        found = true;
        folders.extend(names.iter().map(|name| format!("{folder}/{name}")));
        emptied.push(folder);
    }
    for folder in emptied.iter().rev() {
        match disk.remove_dir(folder).await {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
    }
    Ok(found)
}

/// The whole content of the file at `path`.
pub async fn read_whole(disk: &dyn Disk, path: &str) -> io::Result<Bytes> {
    let file = disk.open(path, Open::Read).await?;
    let len = file.len().await?;
    file.read_at(0, usize::try_from(len).map_err(io::Error::other)?).await
}

/// Removes the file at `path` unless it is gone already.
pub async fn remove_if_there(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.remove_file(path).await {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The folder that holds `path`; the store itself is "".
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Files of the operating system, below one folder.
#[derive(Debug)]
pub struct OsDisk {
    root: PathBuf,
}

impl OsDisk {
    /// Files below `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> OsDisk {
        OsDisk { root: root.into() }
    }
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "the one place that is meant to touch files")]
mod os {
    use std::fs;
    use std::io;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::{Bytes, BytesMut};

    use super::{Disk, File, Open, OsDisk};

    #[derive(Debug)]
    struct OsFile(Arc<fs::File>);

    /// File operations block: they run on tokio's threads for that.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        #[allow(deprecated, reason = "the simulated tokio marks it so; it never runs there")]
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    impl OsDisk {
        async fn at<T: Send + 'static>(
            &self,
            path: &str,
            work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
        ) -> io::Result<T> {
            let path = self.root.join(path);
            blocking(move || work(&path)).await
        }
    }

    #[async_trait]
    impl Disk for OsDisk {
        async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
            let file = self
                .at(path, move |path| {
                    let mut options = fs::OpenOptions::new();
                    options.read(true).write(how != Open::Read).create_new(how == Open::Create).open(path)
                })
                .await?;
            Ok(Arc::new(OsFile(Arc::new(file))))
        }

        async fn list(&self, path: &str) -> io::Result<Vec<String>> {
            self.at(path, |path| {
                let mut names = Vec::new();
                for entry in fs::read_dir(path)? {
                    let name = entry?.file_name();
                    names.push(name.into_string().map_err(|name| {
                        io::Error::new(io::ErrorKind::InvalidData, format!("file name {name:?} is not UTF-8"))
                    })?);
                }
                names.sort_unstable();
                Ok(names)
            })
            .await
        }

        async fn create_dir(&self, path: &str) -> io::Result<()> {
            self.at(path, |path| fs::create_dir_all(path)).await
        }

        async fn sync_dir(&self, path: &str) -> io::Result<()> {
            self.at(path, |path| fs::File::open(path)?.sync_all()).await
        }

        async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            let to = self.root.join(to);
            self.at(from, move |from| fs::rename(from, to)).await
        }

        async fn remove_file(&self, path: &str) -> io::Result<()> {
            self.at(path, |path| fs::remove_file(path)).await
        }

        async fn remove_dir(&self, path: &str) -> io::Result<()> {
            self.at(path, |path| fs::remove_dir(path)).await
        }
    }

    #[async_trait]
    impl File for OsFile {
        async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
            let file = self.0.clone();
            blocking(move || {
                let mut buffer = BytesMut::zeroed(len);
                let mut filled = 0;
                while filled < len {
                    match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                        Err(err) => return Err(err),
                    }
                }
                buffer.truncate(filled);
                Ok(buffer.freeze())
            })
            .await
        }

        async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
            let file = self.0.clone();
            blocking(move || file.write_all_at(&bytes, offset)).await
        }

        async fn len(&self) -> io::Result<u64> {
            let file = self.0.clone();
            blocking(move || Ok(file.metadata()?.len())).await
        }

        async fn set_len(&self, len: u64) -> io::Result<()> {
            let file = self.0.clone();
            blocking(move || file.set_len(len)).await
        }

        async fn sync(&self) -> io::Result<()> {
            let file = self.0.clone();
            blocking(move || file.sync_data()).await
        }
    }
}

#[cfg(test)]
pub(crate) mod memory;
