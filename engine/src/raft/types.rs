//! openraft's types, fixed for this engine, and their translation from and to ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::vote::RaftLeaderId as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::{LogId, NodeId, ReplicaId, Vote};

/// A proposed command, opaque to raft: the state machine decodes it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal(pub Bytes);

/// What applying a command gave, opaque to raft.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome(pub Bytes);

macro_rules! opaque {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.0.len())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

opaque!(Proposal);
opaque!(Outcome);

openraft::declare_raft_types!(
    /// One leader a term, replica ids as node ids, the hosting node as node.
    pub Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = u64,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

pub type RaftLogId = openraft::alias::LogIdOf<Types>;
pub type RaftVote = openraft::alias::VoteOf<Types>;
pub type RaftEntry = openraft::alias::EntryOf<Types>;
pub type RaftMembership = openraft::alias::StoredMembershipOf<Types>;
pub type Payload = openraft::alias::EntryPayloadOf<Types>;

type Term = openraft::alias::CommittedLeaderIdOf<Types>;

/// Who has a say in a group: the voters (two sets while a change is under way) and where every replica is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The entry that says so; none: the group is not formed yet.
    pub log_id: Option<LogId>,
    /// A decision needs a majority of each set.
    pub voters: Vec<BTreeSet<ReplicaId>>,
    /// All replicas, voters and learners, and their nodes.
    pub replicas: BTreeMap<ReplicaId, NodeId>,
}

pub fn log_id(id: &RaftLogId) -> LogId {
    LogId { term: *id.leader_id, index: id.index }
}

pub fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId { leader_id: Term::new(id.term), index: id.index }
}

pub fn vote(vote: &RaftVote) -> Vote {
    Vote { term: vote.leader_id.term, voted_for: ReplicaId(vote.leader_id.voted_for), committed: vote.committed }
}

pub fn raft_vote(vote: Vote) -> RaftVote {
    let leader_id = openraft::impls::leader_id_std::LeaderId::new(vote.term, vote.voted_for.0);
    RaftVote { leader_id, committed: vote.committed }
}

pub fn membership(stored: &RaftMembership) -> Membership {
    config(stored.log_id().as_ref().map(log_id), stored.membership())
}

pub fn config(log_id: Option<LogId>, membership: &openraft::Membership<u64, u64>) -> Membership {
    let voters = membership.get_joint_config().iter();
    Membership {
        log_id,
        voters: voters.map(|set| set.iter().map(|id| ReplicaId(*id)).collect()).collect(),
        replicas: membership.nodes().map(|(id, node)| (ReplicaId(*id), NodeId(*node))).collect(),
    }
}

/// # Panics
/// If a voter has no node: such a membership was never in a log.
pub fn raft_membership(membership: &Membership) -> RaftMembership {
    let voters = membership.voters.iter().map(|set| set.iter().map(|id| id.0).collect::<BTreeSet<_>>()).collect();
    let nodes: BTreeMap<u64, u64> = membership.replicas.iter().map(|(id, node)| (id.0, node.0)).collect();
    let config = openraft::Membership::new(voters, nodes).expect("a stored membership is consistent");
    RaftMembership::new(membership.log_id.map(raft_log_id), config)
}

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// What stands in the log for an entry: a tag, then the command as it is or the encoded membership.
pub fn encode_payload(payload: &Payload) -> Bytes {
    match payload {
        Payload::Blank => Bytes::from_static(&[BLANK]),
        Payload::Normal(proposal) => {
            let mut bytes = BytesMut::with_capacity(1 + proposal.0.len());
            bytes.put_u8(NORMAL);
            bytes.put_slice(&proposal.0);
            bytes.freeze()
        }
        Payload::Membership(membership) => {
            let mut bytes = vec![MEMBERSHIP];
            bytes.extend(postcard::to_allocvec(membership).expect("a membership has an encoding"));
            bytes.into()
        }
    }
}

/// The payload that [`encode_payload`] wrote.
pub fn decode_payload(bytes: &Bytes) -> Result<Payload> {
    let damaged = |message: String| Error::Damaged { file: "log".into(), message };
    match bytes.first() {
        Some(&BLANK) => Ok(Payload::Blank),
        Some(&NORMAL) => Ok(Payload::Normal(Proposal(bytes.slice(1..)))),
        Some(&MEMBERSHIP) => postcard::from_bytes(&bytes[1..])
            .map(Payload::Membership)
            .map_err(|err| damaged(format!("an entry is no membership: {err}"))),
        _ => Err(damaged("an entry is of an unknown kind".into())),
    }
}
