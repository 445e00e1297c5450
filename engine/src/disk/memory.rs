//! A disk in memory for unit tests, with the faults that they need: a power loss that keeps nothing unsynced, files that
//! fail, files that hang. Everything finer (subsets of unsynced writes, torn sectors, delays) is the simulated disk's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{Disk, File, Open, parent};

#[derive(Debug, Default)]
struct Node {
    content: Vec<u8>,
    durable: Vec<u8>,
}

type Names = BTreeMap<String, Arc<Mutex<Node>>>;

#[derive(Debug, Default)]
struct State {
    names: Names,
    durable_names: Names,
    folders: BTreeSet<String>,
}

/// What open files do below a path, as long as it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Reading, writing and syncing fail.
    Error,
    /// Reading, writing and syncing wait for the end of the fault.
    Hang,
}

/// Cloned handles see the same files.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>, Faults);

#[derive(Clone, Debug)]
struct Faults(watch::Sender<Option<(String, Fault)>>);

impl Default for Faults {
    fn default() -> Faults {
        Faults(watch::Sender::new(None))
    }
}

impl Faults {
    async fn pass(&self, path: &str) -> io::Result<()> {
        let of = |fault: &Option<(String, Fault)>| {
            fault.as_ref().filter(|(below, _)| path.starts_with(below.as_str())).map(|(_, fault)| *fault)
        };
        let mut faults = self.0.subscribe();
        let fault = faults.wait_for(|fault| of(fault) != Some(Fault::Hang)).await.map(|fault| of(&fault));
        match fault {
            Ok(Some(Fault::Error)) => Err(io::Error::other(format!("{path} fails"))),
            _ => Ok(()),
        }
    }
}

impl MemoryDisk {
    /// Everything that was not synced is gone. Files opened before must not be used any more.
    pub(crate) fn lose_power(&self) {
        let mut state = self.0.lock().unwrap();
        let names = state.durable_names.clone();
        for node in names.values() {
            let mut node = node.lock().unwrap();
            node.content = node.durable.clone();
        }
        state.names = names;
    }

    /// From now on the files whose path begins with `below` have that fault, and no others have one.
    pub(crate) fn begin(&self, below: &str, fault: Fault) {
        self.1.0.send_replace(Some((below.to_string(), fault)));
    }

    /// No file has a fault any more.
    pub(crate) fn end_fault(&self) {
        self.1.0.send_replace(None);
    }

    /// Names of all files, with their lengths.
    pub(crate) fn files(&self) -> Vec<(String, usize)> {
        let state = self.0.lock().unwrap();
        state.names.iter().map(|(name, node)| (name.clone(), node.lock().unwrap().content.len())).collect()
    }

    /// Changes the stored bytes of a file, as damage would.
    pub(crate) fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let state = self.0.lock().unwrap();
        let mut node = state.names[path].lock().unwrap();
        change(&mut node.content);
        node.durable = node.content.clone();
    }
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.to_string())
}

#[async_trait]
impl Disk for MemoryDisk {
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock().unwrap();
        match (state.names.get(path), how) {
            (Some(_), Open::Create) => Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Read | Open::Write) => Err(not_found(path)),
            (Some(node), _) => Ok(Arc::new(MemoryFile(node.clone(), path.to_string(), self.1.clone()))),
            (None, Open::Create) => {
                let node = Arc::new(Mutex::new(Node::default()));
                state.names.insert(path.to_string(), node.clone());
                Ok(Arc::new(MemoryFile(node, path.to_string(), self.1.clone())))
            }
        }
    }

    async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let state = self.0.lock().unwrap();
        if !path.is_empty() && !state.folders.contains(path) {
            return Err(not_found(path));
        }
        let inside = |name: &&String| parent(name) == path;
        let base = |name: &String| name.rsplit('/').next().expect("split yields something").to_string();
        let files = state.names.keys().filter(inside).map(base);
        let folders = state.folders.iter().filter(inside).map(base);
        Ok(files.chain(folders).collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut path = path;
        while !path.is_empty() {
            self.0.lock().unwrap().folders.insert(path.to_string());
            path = parent(path);
        }
        Ok(())
    }

    async fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let State { names, durable_names, .. } = &mut *state;
        durable_names.retain(|name, _| parent(name) != path);
        durable_names.extend(
            names.iter().filter(|(name, _)| parent(name) == path).map(|(name, node)| (name.clone(), node.clone())),
        );
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let node = state.names.remove(from).ok_or_else(|| not_found(from))?;
        state.names.insert(to.to_string(), node);
        Ok(())
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.0.lock().unwrap().names.remove(path).map(drop).ok_or_else(|| not_found(path))
    }

    async fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        // Folders come and go durably here; what was in one goes with it.
        state.durable_names.retain(|name, _| parent(name) != path);
        if state.folders.remove(path) { Ok(()) } else { Err(not_found(path)) }
    }
}

#[derive(Debug)]
struct MemoryFile(Arc<Mutex<Node>>, String, Faults);

#[async_trait]
impl File for MemoryFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.2.pass(&self.1).await?;
        let node = self.0.lock().unwrap();
        let from = node.content.len().min(offset as usize);
        let to = node.content.len().min(from + len);
        Ok(Bytes::copy_from_slice(&node.content[from..to]))
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        self.2.pass(&self.1).await?;
        let mut node = self.0.lock().unwrap();
        let end = offset as usize + bytes.len();
        if node.content.len() < end {
            node.content.resize(end, 0);
        }
        node.content[offset as usize..end].copy_from_slice(&bytes);
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().content.len() as u64)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().content.resize(len as usize, 0);
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.2.pass(&self.1).await?;
        let mut node = self.0.lock().unwrap();
        node.durable = node.content.clone();
        Ok(())
    }
}
