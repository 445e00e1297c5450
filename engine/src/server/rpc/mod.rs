//! Requests and answers between nodes, as checksummed frames over the seam [`Net`](crate::net::Net).
//!
//! A caller has [`Peers`], a node runs [`serve`]. One connection per peer and [`Lane`] carries many calls at once;
//! answers come in any order and find their call by id. What the caller learns is what it may do next:
//!
//! - an answer: the result of the peer's [`Handler`], as it was there;
//! - `Busy`, `Deadline`: nothing was handed to the network, hence nothing was applied;
//! - `Unknown`: the request was handed to the network and no answer came (in time): it may have been applied, and it
//!   may still be, for an abandoned connection can deliver late.
//!
//! Nothing is ever sent twice by this module: who may repeat a request is for the caller to know
//! ([`Request::is_idempotent`]).
//!
//! Not here: finding the leader, retries, encryption, and keeping idle connections alive (a peer that lost power is
//! noticed by the first request that it does not answer; its old connections at the server end with the first byte
//! that is sent on them, or by the system's keepalive).

mod client;
mod frame;
mod server;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::message::{Kind, Request, Response};
use crate::error::Result;
use crate::types::NodeId;

pub use client::Peers;
pub use frame::{HEADER_BYTES, Peek, peek};
pub use server::serve;

/// Answers requests: the node behind the network.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers `request` of `from` (node 0: a client). The peer stops waiting after `within`. Runs to its end even if
    /// the connection is lost meanwhile: a half done request would be worse than an answer that nobody hears.
    async fn handle(&self, from: NodeId, request: Request, within: Duration) -> Result<Response>;
}

/// What shares a connection. Bytes of one lane never wait behind those of another, so that neither a snapshot nor a
/// large write delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Lane {
    /// The small and urgent messages of raft.
    Raft = 1,
    /// Writes, questions to meta, administration.
    Request = 2,
    /// Snapshots and scans.
    Bulk = 3,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Lane; 3] = [Lane::Raft, Lane::Request, Lane::Bulk];

    /// The lane of requests of this kind and of their answers.
    pub fn of(kind: Kind) -> Lane {
        match kind {
            Kind::Append | Kind::Vote | Kind::PreVote | Kind::RaftTransfer => Lane::Raft,
            Kind::Snapshot
            | Kind::Scan
            | Kind::Sql
            | Kind::Ingest
            | Kind::Absorb
            | Kind::Compact
            | Kind::Files
            | Kind::Lend
            | Kind::LentPiece => Lane::Bulk,
            Kind::Write
            | Kind::CreateReplica
            | Kind::InitGroup
            | Kind::DropReplica
            | Kind::Flush
            | Kind::Transfer
            | Kind::Truncate
            | Kind::Alter
            | Kind::Pin
            | Kind::Unpin
            | Kind::Pins
            | Kind::Status
            | Kind::ReadIndex
            | Kind::AddLearner
            | Kind::ChangeMembers
            | Kind::RemoveLearner
            | Kind::Ping
            | Kind::Metrics
            | Kind::View
            | Kind::Greet
            | Kind::Legs
            | Kind::Positions
            | Kind::Indexes
            | Kind::CheckIndex
            | Kind::Moment
            | Kind::Checksum
            | Kind::Meta => Lane::Request,
        }
    }
}
