//! The state machine under raft: our trait, and openraft's traits on top of it.

use std::any::Any;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};

use super::types::{
    Membership, Outcome, RaftLogId, RaftMembership, Types, config, log_id, membership, raft_log_id, raft_membership,
};
use crate::error::{Error, Result};
use crate::types::LogId;

/// What raft drives: applies committed entries in order, and is its own snapshot.
///
/// Errors stop the replica: whatever every replica decides alike belongs into the outcome.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// The last entry whose effect is in files, and the membership as of it.
    fn flushed(&self) -> (Option<LogId>, Membership);

    /// Applies a committed entry. The outcome is the same on every replica.
    async fn apply(&self, id: LogId, change: Change) -> Result<Bytes>;

    /// The newest state that is in files, pinned there while the value lives. Flushes if there is none yet.
    async fn snapshot(&self) -> Result<Snapshot>;

    /// A folder for the files of a snapshot that is about to be received: empty, and no other one's. Whatever is left in it
    /// when the machine is opened the next time goes.
    async fn prepare_install(&self) -> Result<String>;

    /// Replaces the state by `snapshot`, whose files are complete, verified and synced in the prepared folder.
    async fn install(&self, snapshot: Snapshot) -> Result<()>;

    /// A file of a snapshot was sent and is not what it should be, as `err` says.
    fn found_damaged(&self, err: Error);
}

/// What an entry asks for.
#[derive(Clone, Debug)]
pub enum Change {
    /// Nothing: a new leader's first entry.
    Blank,
    /// Another set of voters.
    Membership(Membership),
    /// A command of the machine's own.
    Command(Bytes),
}

/// A state in files.
#[derive(Clone)]
pub struct Snapshot {
    /// The last entry that it contains.
    pub last: Option<LogId>,
    /// The membership as of it.
    pub membership: Membership,
    /// What the machine needs besides the files (its manifest).
    pub header: Bytes,
    /// The files.
    pub files: Vec<SnapshotFile>,
    /// Keeps the files from being deleted.
    pub pin: Arc<dyn Any + Send + Sync>,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Names it to the machine.
    pub name: String,
    /// Where it is on this node's disk.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// CRC-32 of its content.
    pub checksum: u32,
}

/// openraft's view of a [`Machine`].
pub struct Driver {
    machine: Arc<dyn Machine>,
    applied: Option<LogId>,
    membership: Membership,
}

impl Driver {
    pub fn new(machine: Arc<dyn Machine>) -> Driver {
        let (applied, membership) = machine.flushed();
        Driver { machine, applied, membership }
    }
}

impl RaftStateMachine<Types> for Driver {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, RaftMembership)> {
        Ok((self.applied.map(raft_log_id), raft_membership(&self.membership)))
    }

    async fn apply<Entries>(&mut self, mut entries: Entries) -> io::Result<()>
    where
        Entries: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let id = log_id(&entry.log_id);
            let change = match entry.payload {
                EntryPayload::Blank => Change::Blank,
                EntryPayload::Normal(proposal) => Change::Command(proposal.0),
                EntryPayload::Membership(new) => {
                    self.membership = config(Some(id), &new);
                    Change::Membership(self.membership.clone())
                }
            };
            let outcome = self.machine.apply(id, change).await.map_err(io::Error::other)?;
            self.applied = Some(id);
            if let Some(responder) = responder {
                responder.send(Outcome(outcome));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.machine.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, snapshot: Snapshot) -> io::Result<()> {
        // What the machine has already, as after a restart from its own files, is not installed again.
        if snapshot.last <= self.applied {
            return Ok(());
        }
        let last = snapshot.last;
        self.machine.install(snapshot).await.map_err(io::Error::other)?;
        self.applied = last;
        self.membership = membership(&meta.last_membership);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, Snapshot>>> {
        if self.machine.flushed().0.is_none() {
            return Ok(None);
        }
        Builder(self.machine.clone()).build_snapshot().await.map(Some)
    }
}

/// Makes openraft's snapshot of the machine's.
pub struct Builder(Arc<dyn Machine>);

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, Snapshot>> {
        let snapshot = self.0.snapshot().await.map_err(io::Error::other)?;
        let meta = openraft::SnapshotMeta {
            last_log_id: snapshot.last.map(raft_log_id),
            last_membership: raft_membership(&snapshot.membership),
        };
        Ok(openraft::Snapshot { meta, snapshot })
    }
}
