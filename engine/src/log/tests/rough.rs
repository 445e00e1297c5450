//! A disk for the log's tests that keeps to the contract of `Disk` and to nothing more: of what was not synced, a power
//! loss keeps any subset of sectors and of names; after a failed sync the pages look written and never will be.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::disk::{Disk, File, Open, parent};

/// Small, so that a batch of a few records is torn in many ways.
const SECTOR: usize = 64;

/// What happens to an operation, and to those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It and all that follow fail, until [`RoughDisk::start`].
    Off,
    /// It fails; a write may have been made in part, the pages of a sync are lost.
    Error,
}

/// Cloned handles are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct RoughDisk {
    state: Arc<Mutex<State>>,
    /// Handles of a process that ended are refused.
    process: u64,
}

#[derive(Debug, Default)]
struct State {
    process: u64,
    off: bool,
    fault: Option<(u64, Fault)>,
    sync_takes: Option<Duration>,
    inodes: BTreeMap<u64, Inode>,
    /// Path -> inode; none for a folder.
    names: BTreeMap<String, Option<u64>>,
    durable_names: BTreeMap<String, Option<u64>>,
    counts: Counts,
}

/// Operations so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) writes: u64,
    pub(super) syncs: u64,
    pub(super) reads: u64,
}

#[derive(Debug, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that a sync would write.
    dirty: BTreeSet<usize>,
}

/// Random choices that depend on the seed only (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

impl RoughDisk {
    /// After `after` more operations, `fault`.
    pub(super) fn plan(&self, after: u64, fault: Fault) {
        self.lock().fault = Some((after, fault));
    }

    /// No fault is to come. Whether one still was.
    pub(super) fn lift(&self) -> bool {
        self.lock().fault.take().is_some()
    }

    /// Whether [`Fault::Off`] happened.
    pub(super) fn is_off(&self) -> bool {
        self.lock().off
    }

    pub(super) fn slow_syncs(&self, takes: Duration) {
        self.lock().sync_takes = Some(takes);
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// A new process on the same disk: handles of old ones fail, what they wrote is seen.
    pub(super) fn start(&self) -> RoughDisk {
        let mut state = self.lock();
        state.process += 1;
        state.off = false;
        state.fault = None;
        RoughDisk { state: self.state.clone(), process: state.process }
    }

    /// A new process after a power loss.
    pub(super) fn start_after_power_loss(&self, draw: &mut Draw) -> RoughDisk {
        {
            let mut state = self.lock();
            let State { names, durable_names, inodes, .. } = &mut *state;
            let paths: BTreeSet<String> = names.keys().chain(durable_names.keys()).cloned().collect();
            for path in paths {
                let (seen, durable) = (names.get(&path).copied(), durable_names.get(&path).copied());
                let kept = if seen != durable && draw.below(2) == 0 { seen } else { durable };
                match kept {
                    Some(node) => names.insert(path, node),
                    None => names.remove(&path),
                };
            }
            // What is in a folder that is gone is gone too.
            let orphans: Vec<_> = names.keys().filter(|path| !is_reachable(names, path)).cloned().collect();
            orphans.iter().for_each(|path| _ = names.remove(path));
            *durable_names = names.clone();
            inodes.values_mut().for_each(|inode| inode.lose_power(draw));
        }
        self.start()
    }

    /// Files with their content as it is seen.
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.lock();
        let file = |(path, node): (&String, &Option<u64>)| Some((path.clone(), state.inodes[&(*node)?].seen.clone()));
        state.names.iter().filter_map(file).collect()
    }

    /// Changes what is stored in a file, as damage would.
    pub(super) fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let node = state.names[path].expect("a file");
        let inode = state.inodes.get_mut(&node).expect("named");
        change(&mut inode.seen);
        inode.durable = inode.seen.clone();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// One operation begins. The other tasks get a chance to run meanwhile.
    async fn operation(&self) -> io::Result<Option<Fault>> {
        tokio::task::yield_now().await;
        let mut state = self.lock();
        if state.off || state.process != self.process {
            return Err(io::Error::other("the process is gone"));
        }
        let fault = match &mut state.fault {
            Some((0, fault)) => Some(*fault),
            Some((after, _)) => {
                *after -= 1;
                None
            }
            None => None,
        };
        if fault.is_some() {
            state.fault = None;
        }
        state.off = fault == Some(Fault::Off);
        Ok(fault)
    }

    /// As [`RoughDisk::operation`], for those that have no effect if they fail.
    async fn whole_operation(&self) -> io::Result<()> {
        match self.operation().await? {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the disk failed")),
        }
    }
}

fn is_reachable(names: &BTreeMap<String, Option<u64>>, path: &str) -> bool {
    let folder = parent(path);
    folder.is_empty() || (names.contains_key(folder) && is_reachable(names, folder))
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let from = self.seen.len().min(offset);
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        self.dirty.extend(from / SECTOR..end.div_ceil(SECTOR));
    }

    fn set_len(&mut self, len: usize) {
        let from = self.seen.len().min(len);
        self.seen.resize(len, 0);
        self.dirty.extend(from / SECTOR..len.div_ceil(SECTOR));
    }

    fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.keep(sector);
        }
    }

    fn keep(&mut self, sector: usize) {
        let end = ((sector + 1) * SECTOR).min(self.durable.len()).min(self.seen.len());
        if sector * SECTOR < end {
            self.durable[sector * SECTOR..end].copy_from_slice(&self.seen[sector * SECTOR..end]);
        }
    }

    fn lose_power(&mut self, draw: &mut Draw) {
        let (shorter, longer) =
            (self.seen.len().min(self.durable.len()) as u64, self.seen.len().max(self.durable.len()) as u64);
        let len = match draw.below(3) {
            0 => self.seen.len() as u64,
            1 => self.durable.len() as u64,
            _ => shorter + draw.below(longer - shorter + 1),
        };
        self.durable.resize(len as usize, 0);
        for sector in std::mem::take(&mut self.dirty) {
            if draw.below(2) == 0 {
                self.keep(sector);
            }
        }
        self.seen = self.durable.clone();
    }
}

#[async_trait]
impl Disk for RoughDisk {
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
        self.whole_operation().await?;
        let mut state = self.lock();
        let node = match (state.names.get(path), how) {
            (Some(Some(_)), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Some(node)), _) => *node,
            (None, Open::Create) if parent(path).is_empty() || state.names.contains_key(parent(path)) => {
                let node = state.inodes.len() as u64;
                state.inodes.insert(node, Inode::default());
                state.names.insert(path.to_string(), Some(node));
                node
            }
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(RoughFile { disk: self.clone(), node }))
    }

    async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.whole_operation().await?;
        let state = self.lock();
        if !path.is_empty() && !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|name| parent(name) == path);
        Ok(inside.map(|name| name.rsplit('/').next().unwrap().to_string()).collect())
    }

    async fn create_dir(&self, path: &str) -> io::Result<()> {
        self.whole_operation().await?;
        let mut path = path;
        while !path.is_empty() {
            self.lock().names.insert(path.to_string(), None);
            path = parent(path);
        }
        Ok(())
    }

    async fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.whole_operation().await?;
        let mut state = self.lock();
        let State { names, durable_names, .. } = &mut *state;
        durable_names.retain(|name, _| parent(name) != path);
        durable_names.extend(names.iter().filter(|(name, _)| parent(name) == path).map(|(n, i)| (n.clone(), *i)));
        Ok(())
    }

    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::Error::other("the log renames nothing"))
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.whole_operation().await?;
        self.lock().names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn remove_dir(&self, _: &str) -> io::Result<()> {
        Err(io::Error::other("the log removes no folder"))
    }
}

#[derive(Debug)]
struct RoughFile {
    disk: RoughDisk,
    node: u64,
}

impl RoughFile {
    fn with<T>(&self, work: impl FnOnce(&mut Inode, &mut Counts) -> T) -> T {
        let mut state = self.disk.lock();
        let State { inodes, counts, .. } = &mut *state;
        work(inodes.get_mut(&self.node).expect("open"), counts)
    }
}

#[async_trait]
impl File for RoughFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.disk.whole_operation().await?;
        Ok(self.with(|inode, counts| {
            counts.reads += 1;
            let from = inode.seen.len().min(offset as usize);
            let to = inode.seen.len().min(from + len);
            Bytes::copy_from_slice(&inode.seen[from..to])
        }))
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        let fault = self.disk.operation().await?;
        self.with(|inode, counts| {
            counts.writes += 1;
            let written = if fault.is_some() { bytes.len() / 2 } else { bytes.len() };
            inode.write(offset as usize, &bytes[..written]);
        });
        if fault.is_some() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    async fn len(&self) -> io::Result<u64> {
        self.disk.whole_operation().await?;
        Ok(self.with(|inode, _| inode.seen.len() as u64))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.whole_operation().await?;
        self.with(|inode, _| inode.set_len(len as usize));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let takes = self.disk.lock().sync_takes;
        if let Some(takes) = takes {
            tokio::time::sleep(takes).await;
        }
        let fault = self.disk.operation().await?;
        self.with(|inode, counts| {
            counts.syncs += 1;
            match fault {
                None => inode.sync(),
                // Whatever reached the disk did, the rest never will: nobody remembers that it is to be written.
                Some(Fault::Error) => inode.dirty.clear(),
                Some(Fault::Off) => {}
            }
        });
        if fault.is_some() { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }
}
