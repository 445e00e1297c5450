//! Snapshots: what a replica's files and manifest say, sent to another replica and put in the place of its state.
//!
//! Install: the files are complete and durable in a folder of their own; they get their names among the SSTs (durable);
//! one manifest edit takes all old files out and the new ones in, with the past that belongs to them (durable); the
//! version is exchanged; old files are deleted when nobody reads them. A crash before the edit leaves the old state and
//! orphans, one after it the new state.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compact::Horizon;
use super::{Region, ReplicaSpec, Side, decode_definition};
use crate::disk::{parent, remove_tree};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::raft::{Snapshot, SnapshotFile};
use crate::storage::manifest::{Action, Edit, Past};
use crate::storage::sst::{self, FileMeta, Sst};
use crate::storage::version::{Flushed, Version};
use crate::types::Sequence;

/// How the folders begin that snapshots are received into.
const INCOMING: &str = "incoming-";

/// What the receiver needs besides the files.
#[derive(Serialize, Deserialize)]
pub(super) struct Header {
    pub past: Past,
    /// The oldest sequence that can be read of them.
    pub oldest: Sequence,
    /// In the order in which the files are sent.
    pub files: Vec<FileMeta>,
}

impl Region {
    /// What the manifest says now; its files stay while the snapshot lives.
    pub(super) async fn build_snapshot(&self) -> Result<Snapshot> {
        if self.version().flushed.log_id.is_none() {
            self.flush().await?;
        }
        let files = self.files().await?;
        let state = files.manifest.state();
        let version = self.version();
        let side = Side::decode(&state.past.side)?;
        let header =
            Header { past: state.past.clone(), oldest: state.oldest, files: state.files.values().cloned().collect() };
        let sent = |meta: &FileMeta| SnapshotFile {
            name: meta.id.to_string(),
            path: sst::path(&self.spec.folder, meta.id),
            len: meta.bytes,
            checksum: meta.checksum,
        };
        // What a truncation hid is a part of the past that is sent.
        let truncated = self.state.lock().expect("no panic holds the lock").truncated.clone();
        let pin: Vec<Arc<Sst>> = version.files().cloned().chain(truncated).collect();
        Ok(Snapshot {
            last: state.past.flushed,
            membership: side.membership,
            header: encode(&header),
            files: state.files.values().map(sent).collect(),
            pin: Arc::new(pin),
        })
    }

    /// A folder that a snapshot is received into. Each has its own: an older one may be complete and about to be installed.
    pub(super) async fn new_incoming(&self) -> Result<String> {
        Region::make_incoming(&self.spec, self.incoming.fetch_add(1, Ordering::Relaxed)).await
    }

    pub(super) async fn make_incoming(spec: &ReplicaSpec, number: u64) -> Result<String> {
        let folder = format!("{}/{INCOMING}{number}", spec.folder);
        spec.disk.create_dir(&folder).await.map_err(|err| Error::io(&err, format!("make {folder}")))?;
        Ok(folder)
    }

    /// Removes what was received and never installed. Nobody may be receiving.
    pub(super) async fn remove_incoming(spec: &ReplicaSpec) -> Result<()> {
        let (disk, folder) = (spec.disk.as_ref(), &spec.folder);
        for name in disk.list(folder).await.map_err(|err| Error::io(&err, format!("list {folder}")))? {
            if name.starts_with(INCOMING) {
                let path = format!("{folder}/{name}");
                remove_tree(disk, &path).await.map_err(|err| Error::io(&err, format!("remove {path}")))?;
            }
        }
        Ok(())
    }

    pub(super) async fn install_snapshot(&self, snapshot: Snapshot) -> Result<()> {
        let header: Header = decode(&snapshot.header)?;
        let side = Side::decode(&header.past.side)?;
        let table = Arc::new(decode_definition(&header.past.definition)?);
        let disk = self.spec.disk.as_ref();
        let mut files = self.files().await?;
        let mut add = Vec::with_capacity(header.files.len());
        let mut writing = Vec::with_capacity(header.files.len());
        for (meta, received) in header.files.iter().zip(&snapshot.files) {
            let file = self.ids.next();
            let meta = FileMeta { id: file.id, ..meta.clone() };
            writing.push(file);
            let path = sst::path(&self.spec.folder, meta.id);
            disk.rename(&received.path, &path).await.map_err(|err| Error::io(&err, format!("rename to {path}")))?;
            add.push(meta);
        }
        let folder = sst::folder(&self.spec.folder);
        disk.sync_dir(&folder).await.map_err(|err| Error::io(&err, format!("sync {folder}")))?;
        // They are what they should be, or nothing is exchanged.
        let mut ssts = Vec::with_capacity(add.len());
        for meta in &add {
            ssts.push(Sst::open(disk, &self.spec.folder, meta.clone()).await?);
        }
        let remove = files.manifest.state().files.keys().copied().collect();
        let edit = Edit { add, remove, past: Some(header.past.clone()), oldest: Some(header.oldest) };
        files.commit(&Action::Edit(edit)).await?;
        if let Some(received) = snapshot.files.first() {
            // It is empty now; if it stays, it is removed when the replica is opened the next time.
            let _ = disk.remove_dir(parent(&received.path)).await;
        }
        let (flushed, sequence) = (header.past.flushed, header.past.sequence);
        self.swap("install", |state| {
            let generation = state.version.generation + 1;
            let rules = Arc::new(side.rules(&Arc::new(table.schema.clone())));
            let durable = Flushed { log_id: flushed, sequence, rules, pinned: side.pinned() };
            let next = Version::new(durable, ssts, header.oldest, generation);
            let old = std::mem::replace(&mut state.version, Arc::new(next));
            state.side = side;
            state.table = table;
            state.horizon = Horizon::new(Duration::from_millis(self.spec.options.version_keep_ms), sequence);
            self.retired.add(old.files().cloned().chain(std::mem::take(&mut state.truncated)));
        });
        self.visible.send_replace(sequence);
        self.flushed.send_replace(flushed);
        // All files are others.
        self.damaged.send_replace(None);
        let (region, replica, last) = (self.id, self.spec.replica, snapshot.last.unwrap_or_default());
        self.spec.events.emit(|| Event::SnapshotInstalled { region, replica, last });
        Ok(())
    }
}

fn encode(header: &Header) -> Bytes {
    postcard::to_allocvec(header).expect("a snapshot's header has an encoding").into()
}

pub(super) fn decode(bytes: &Bytes) -> Result<Header> {
    postcard::from_bytes(bytes)
        .map_err(|err| Error::Damaged { file: "snapshot".into(), message: format!("its header cannot be read: {err}") })
}
