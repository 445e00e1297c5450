//! How replicas of a group talk: openraft's network over the node's connections, and the transfer of snapshots.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::group::Surroundings;
use super::machine::{Machine, Snapshot, SnapshotFile};
use super::types::{Membership, Types};
use crate::disk::{Disk, File, Open};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::server::message::{RaftVerb, Request, Response};
use crate::types::{LogId, NodeId, RegionId, ReplicaId, Vote};

/// Makes the connections of one replica to the others.
#[derive(Clone)]
pub struct Network {
    pub region: RegionId,
    pub replica: ReplicaId,
    pub machine: Arc<dyn Machine>,
    pub around: Surroundings,
}

/// The way to one replica.
pub struct Link {
    from: Network,
    to: ReplicaId,
    node: NodeId,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &u64) -> Link {
        Link { from: self.clone(), to: ReplicaId(target), node: NodeId(*node) }
    }
}

impl Link {
    /// Sends `message` and decodes the answer.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        verb: RaftVerb,
        message: &Q,
        within: Duration,
    ) -> Result<A, RPCError<Types>> {
        let message = encode(message);
        let request = Request::Raft { to: self.to, verb, message };
        match self.from.around.router.call(self.node, request, within).await {
            Ok(Response::Raft(answer)) => decode(&answer).map_err(|err| RPCError::Network(NetworkError::new(&err))),
            Ok(other) => {
                let err = Error::Unknown { message: format!("the answer to a raft message is {other:?}") };
                Err(RPCError::Network(NetworkError::new(&err)))
            }
            // A peer that is not there is asked less often than one that is slow.
            Err(err @ (Error::Busy { .. } | Error::RegionNotFound { .. } | Error::Stopped)) => {
                Err(RPCError::Unreachable(Unreachable::new(&err)))
            }
            Err(err) => Err(RPCError::Network(NetworkError::new(&err))),
        }
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: &Snapshot) -> Result<SnapshotResponse<Types>, RPCError<Types>> {
        let Network { region, replica: from, around: Surroundings { disk, options, events, .. }, machine } = &self.from;
        let within = Duration::from_millis(options.rpc_timeout_ms);
        let last = snapshot.last.unwrap_or_default();
        let (region, to) = (*region, self.to);
        events.emit(|| Event::SnapshotSending { region, to, last });
        // A receiver has one transfer at a time: the newest one. Its name tells a late piece of an older one apart.
        let transfer = Transfer { from: *from, vote, last };
        let begin = Piece::Begin {
            transfer,
            membership: snapshot.membership.clone(),
            header: snapshot.header.clone(),
            files: snapshot.files.clone(),
        };
        let Progress::Next = self.call(RaftVerb::Snapshot, &begin, within).await? else {
            return Err(broken("the snapshot was ended by its first message"));
        };
        for (number, file) in snapshot.files.iter().enumerate() {
            let source = disk.open(&file.path, Open::Read).await.map_err(|err| broken(&Error::io(&err, &file.path)))?;
            let (mut offset, mut hasher) = (0, crc32fast::Hasher::new());
            while offset < file.len {
                let len = options.snapshot_chunk_bytes.min(file.len - offset);
                let bytes = source.read_at(offset, len as usize).await;
                let bytes = bytes.map_err(|err| broken(&Error::io(&err, &file.path)))?;
                hasher.update(&bytes);
                let is_whole = offset + bytes.len() as u64 != file.len || hasher.clone().finalize() == file.checksum;
                if bytes.is_empty() || !is_whole {
                    // Whoever receives it would refuse it, again and again.
                    let message = "it was to be sent and is not as it was written".to_string();
                    let err = Error::Damaged { file: file.path.clone(), message };
                    machine.found_damaged(err.clone());
                    return Err(broken(&err));
                }
                let len = bytes.len() as u64;
                let chunk = Piece::Chunk { transfer, file: number as u32, offset, bytes };
                let Progress::Next = self.call(RaftVerb::Snapshot, &chunk, within).await? else {
                    return Err(broken("the snapshot was ended by one of its pieces"));
                };
                offset += len;
            }
        }
        // Installing takes as long as it takes; the sender must not give up before.
        let within = within * 10;
        match self.call(RaftVerb::Snapshot, &Piece::End { transfer }, within).await? {
            Progress::Installed(vote) => Ok(SnapshotResponse::new(super::types::raft_vote(vote))),
            Progress::Next => Err(broken("the snapshot was not installed by its last message")),
        }
    }
}

fn broken(what: &(impl std::fmt::Display + ?Sized)) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(what))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.call(RaftVerb::Append, &rpc, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(RaftVerb::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(RaftVerb::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let vote = super::types::vote(&vote);
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, &snapshot.snapshot) => sent.map_err(|err| match err {
                RPCError::Timeout(err) => StreamingError::Timeout(err),
                RPCError::Unreachable(err) => StreamingError::Unreachable(err),
                RPCError::Network(err) => StreamingError::Network(err),
                RPCError::RemoteError(err) => StreamingError::Network(NetworkError::new(&err)),
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(RaftVerb::Transfer, &req, option.hard_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(self.from.around.options.heartbeat_ms))))
    }
}

/// Names a transfer of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The sender.
    from: ReplicaId,
    /// Its vote: it leads by that.
    pub vote: Vote,
    /// The last entry of the snapshot.
    pub last: LogId,
}

/// A message of a transfer.
#[derive(Serialize, Deserialize)]
pub enum Piece {
    Begin { transfer: Transfer, membership: Membership, header: Bytes, files: Vec<SnapshotFile> },
    Chunk { transfer: Transfer, file: u32, offset: u64, bytes: Bytes },
    End { transfer: Transfer },
}

/// The answer to a [`Piece`].
#[derive(Serialize, Deserialize)]
pub enum Progress {
    Next,
    Installed(Vote),
}

/// Receives one snapshot at a time, the newest that was begun.
#[derive(Default)]
pub struct Receiver {
    open: Mutex<Option<Arc<Incoming>>>,
}

struct Incoming {
    transfer: Transfer,
    snapshot: Snapshot,
    /// By number of the file: where it is written.
    files: BTreeMap<u32, Arc<dyn File>>,
}

impl Receiver {
    /// Takes the next piece. Answers the complete snapshot after the last one: its files are verified and durable.
    pub async fn take(
        &self,
        piece: Piece,
        machine: &dyn Machine,
        disk: &dyn Disk,
    ) -> Result<Option<(Transfer, Snapshot)>> {
        match piece {
            Piece::Begin { transfer, membership, header, files } => {
                let folder = machine.prepare_install().await?;
                let mut opened = BTreeMap::new();
                let mut local = Vec::new();
                for (number, file) in files.into_iter().enumerate() {
                    let path = format!("{folder}/{number}");
                    let target = disk.open(&path, Open::Create).await.map_err(|err| Error::io(&err, &path))?;
                    opened.insert(number as u32, target);
                    local.push(SnapshotFile { path, ..file });
                }
                let last = Some(transfer.last);
                let snapshot = Snapshot { last, membership, header, files: local, pin: Arc::new(()) };
                let incoming = Arc::new(Incoming { transfer, snapshot, files: opened });
                let given_up = self.open.lock().expect("no panic holds the lock").replace(incoming);
                // What a sender still writes to it goes nowhere. A complete one is not open any more.
                for file in given_up.iter().flat_map(|incoming| &incoming.snapshot.files) {
                    let _ = crate::disk::remove_if_there(disk, &file.path).await;
                }
                Ok(None)
            }
            Piece::Chunk { transfer, file, offset, bytes } => {
                let incoming = self.find(transfer)?;
                let (Some(target), Some(meta)) =
                    (incoming.files.get(&file), incoming.snapshot.files.get(file as usize))
                else {
                    return Err(Error::Unknown { message: format!("the snapshot has no file {file}") });
                };
                if offset + bytes.len() as u64 > meta.len {
                    return Err(Error::Unknown {
                        message: format!("file {file} of the snapshot is longer than announced"),
                    });
                }
                target.write_at(offset, bytes).await.map_err(|err| Error::io(&err, &meta.path))?;
                Ok(None)
            }
            Piece::End { transfer } => {
                let incoming = self.find(transfer)?;
                for (number, file) in &incoming.files {
                    let meta = &incoming.snapshot.files[*number as usize];
                    verify(file.as_ref(), meta).await?;
                    file.sync().await.map_err(|err| Error::io(&err, &meta.path))?;
                }
                if let Some(file) = incoming.snapshot.files.first() {
                    let folder = crate::disk::parent(&file.path);
                    disk.sync_dir(folder).await.map_err(|err| Error::io(&err, folder))?;
                }
                let mut open = self.open.lock().expect("no panic holds the lock");
                if !open.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, &incoming)) {
                    return Err(given_up());
                }
                *open = None;
                Ok(Some((transfer, incoming.snapshot.clone())))
            }
        }
    }

    fn find(&self, transfer: Transfer) -> Result<Arc<Incoming>> {
        let open = self.open.lock().expect("no panic holds the lock");
        match &*open {
            Some(incoming) if incoming.transfer == transfer => Ok(incoming.clone()),
            _ => Err(given_up()),
        }
    }
}

fn given_up() -> Error {
    Error::Unknown { message: "the snapshot was given up for a newer one".into() }
}

async fn verify(file: &dyn File, meta: &SnapshotFile) -> Result<()> {
    let damaged = |message: String| Error::Damaged { file: meta.name.clone(), message };
    let mut hasher = crc32fast::Hasher::new();
    let mut offset = 0;
    while offset < meta.len {
        let len = (meta.len - offset).min(1 << 20);
        let bytes = file.read_at(offset, len as usize).await.map_err(|err| Error::io(&err, &meta.path))?;
        if bytes.is_empty() {
            return Err(damaged(format!("it arrived with {offset} bytes instead of {}", meta.len)));
        }
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
    let found = hasher.finalize();
    if found != meta.checksum {
        return Err(damaged(format!("it arrived with checksum {found:08x} instead of {:08x}", meta.checksum)));
    }
    Ok(())
}

/// A message as it travels between replicas.
///
/// # Panics
/// Never: every message has an encoding.
pub fn encode(message: &impl Serialize) -> Bytes {
    postcard::to_allocvec(message).expect("every message has an encoding").into()
}

/// The message that [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|err| Error::Unknown { message: format!("a raft message is damaged: {err}") })
}
