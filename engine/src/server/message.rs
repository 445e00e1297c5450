//! The messages between nodes. What a frame carries is [`Request`] or the `Result` of a [`Response`], by postcard.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::meta::catalog::TableDef;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::metrics::Sample;
use crate::region::request::{
    Absorb, Checksum, IndexCheck, IndexStatus, LegStatus, Lent, Moment, PinStatus, PositionStatus, ReplicaStatus,
    ScanAnswer, ScanRequest, SstStatus, Taken, WriteAnswer, WriteRequest,
};
use crate::types::{IndexId, LogId, NodeId, ProcedureId, RegionId, ReplicaId, Schema, Source, TableId, Timestamp};

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// A message between two replicas of a group, encoded by `raft`.
    Raft {
        /// The receiver.
        to: ReplicaId,
        /// Which verb, so that a fault can be aimed at it.
        verb: RaftVerb,
        /// The message.
        message: Bytes,
    },
    /// Rows to write: to the region's leader.
    Write {
        /// The region.
        region: RegionId,
        /// The rows.
        write: WriteRequest,
    },
    /// Rows to read: to the region's leader.
    Scan {
        /// The region.
        region: RegionId,
        /// Which rows.
        scan: ScanRequest,
    },
    /// The last entry that is committed anywhere: asked of the region's leader, by a replica that is to answer reads.
    ReadIndex {
        /// The region.
        region: RegionId,
    },
    /// Make a replica, or find it made already with the same definition. Refused as `Invalid` for ever if this node was
    /// once asked to drop a replica of that id, see `DropReplica`.
    CreateReplica {
        /// The region.
        region: RegionId,
        /// The replica, which is this node's.
        replica: ReplicaId,
        /// The table that it is of.
        table: Box<TableDef>,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Form the group of these replicas, once: asked of one of them, after a lost answer perhaps of another one, always
    /// with the same members. Fine if it is formed already.
    InitGroup {
        /// The region.
        region: RegionId,
        /// All its replicas.
        members: BTreeMap<ReplicaId, NodeId>,
    },
    /// Remove a replica with its files and its log. Fine if it is gone, or was never there.
    ///
    /// Late hands: a `CreateReplica` that was sent before may arrive after this. So the node first makes a tombstone
    /// durable (the replica's id; ids are never reused), even if it never had the replica, and refuses to create what
    /// has one.
    DropReplica {
        /// The region.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Write the memtables of the region's replica on this node to files.
    Flush {
        /// The region.
        region: RegionId,
    },
    /// Hand leadership to the replica `to`: asked of the leader.
    Transfer {
        /// The region.
        region: RegionId,
        /// Who should lead.
        to: ReplicaId,
    },
    /// The states of this node's replicas, or of the one of `region`.
    Status {
        /// Which one; none: all.
        region: Option<RegionId>,
    },
    /// The SSTs of this node's replicas.
    Files,
    /// What the node counts.
    Metrics,
    /// Lend the files of the region's replica, as of this entry or later, to one that has lost some of its own.
    Lend {
        /// The region.
        region: RegionId,
        /// The entry.
        from: Option<LogId>,
    },
    /// A piece of a file that was lent.
    LentPiece {
        /// See `Lent::number`.
        number: u64,
        /// Which of the files.
        file: u32,
        /// Where the piece begins.
        offset: u64,
    },
    /// A request to meta's leader.
    Meta(MetaRequest),
    /// A statement of a client of the real server, in a session of the frontend on that node.
    Sql {
        /// The client's session, 0: none yet.
        session: u64,
        /// The statement.
        sql: String,
    },
    /// The rows of a Parquet file, for a table: from a client, to any node.
    Ingest {
        /// The table.
        table: String,
        /// The name of the file, by which it is known again.
        file: String,
        /// Its content.
        content: Bytes,
    },
    /// Merge the files of the region's replica on this node.
    Compact {
        /// The region.
        region: RegionId,
        /// Whether files that have rows of several windows are split.
        is_strict: bool,
    },
    /// Give a region another schema: asked of the leader. Resent, it changes nothing.
    Alter {
        /// The region.
        region: RegionId,
        /// On whose behalf.
        by: ProcedureRef,
        /// The schema.
        schema: Box<Schema>,
    },
    /// Keep what is visible in a region now readable, under this name: asked of the leader. Resent, it changes nothing.
    Pin {
        /// The region.
        region: RegionId,
        /// The name.
        name: String,
    },
    /// Let go what is pinned under this name: asked of the leader.
    Unpin {
        /// The region.
        region: RegionId,
        /// The name.
        name: String,
    },
    /// The pins of a region: asked of the leader.
    Pins {
        /// The region.
        region: RegionId,
    },
    /// Take all rows out of a region: asked of the leader. Resent, it takes out nothing that was written since.
    Truncate {
        /// The region.
        region: RegionId,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Begin to send the log to the replica that joins, which has no vote yet: asked of the leader. Done when that is durable on
    /// a quorum, and fine if it was done before, or if the replica votes already.
    AddLearner {
        /// The region.
        region: RegionId,
        /// Who joins.
        change: Replacement,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Give the vote of the replica that leaves to the one that joins: asked of the leader. Refused as `Busy` as long as the
    /// latter is behind. Done when that is durable on a quorum, and fine if it was done before.
    ChangeMembers {
        /// The region.
        region: RegionId,
        /// Who joins, who leaves.
        change: Replacement,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Send nothing any more to the replica that was to join: asked of the leader. Refused as `Invalid` if it has a vote
    /// already, or is about to get it: then there is no way back.
    RemoveLearner {
        /// The region.
        region: RegionId,
        /// Who does not join.
        change: Replacement,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// Whether the node is there and its store is open, and what its clock says.
    Ping,
    /// Tell a region of a feeder or of a view what becomes of the view: asked of the leader. Resent, it changes nothing.
    View {
        /// The region.
        region: RegionId,
        /// What.
        change: ViewChange,
        /// On whose behalf.
        by: ProcedureRef,
    },
    /// A hello of the leader that reads a source, to the leader of a region of the view.
    Greet {
        /// The region of the view.
        region: RegionId,
        /// What is read.
        source: Source,
        /// The term of the leader that reads it.
        epoch: u64,
    },
    /// Changes for a region of a view: to its leader.
    Absorb {
        /// The region of the view.
        region: RegionId,
        /// The changes.
        batch: Absorb,
    },
    /// How far the legs of views are that read a region: asked of the leader.
    Legs {
        /// The region.
        region: RegionId,
    },
    /// How far a region of a view is with each source: asked of the leader.
    Positions {
        /// The region.
        region: RegionId,
    },
    /// How far the indexes of a region are: asked of the leader.
    Indexes {
        /// The region.
        region: RegionId,
    },
    /// Whether an index has an entry for each row, and no other.
    CheckIndex {
        /// The region.
        region: RegionId,
        /// The index.
        index: IndexId,
        /// Of what this replica has; otherwise of what there is now, asked of the leader.
        here: bool,
    },
    /// What a region has applied: asked of the leader, linearizably.
    Moment {
        /// The region.
        region: RegionId,
    },
    /// The checksum of the region's replica on this node, when it has come that far.
    Checksum {
        /// The region.
        region: RegionId,
        /// Of when.
        at: Moment,
    },
}

/// What becomes of a view, at a region of a feeder or of the view itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ViewChange {
    /// At a feeder: the view begins to read.
    Attach {
        /// The scans of its query that read this table.
        legs: Vec<u32>,
        /// The view.
        view: Box<TableDef>,
    },
    /// At a feeder: the view reads no more.
    Detach {
        /// The view.
        view: TableId,
    },
    /// At a feeder: whether to wait, and how fast to be.
    Control {
        /// The view.
        view: TableId,
        /// Whether its legs are to wait.
        is_paused: bool,
        /// Rows a second; none: as fast as it goes.
        rate_limit: Option<u64>,
    },
    /// At the view: it is going to be filled.
    Begin,
    /// At the view: it may be read.
    Ready,
    /// At the view: it has failed.
    Fail {
        /// Why.
        reason: String,
    },
}

/// One replica of a region takes the place of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// Who leaves, and its node.
    pub leaves: (ReplicaId, NodeId),
    /// Who joins, and its node. A new id: what a replica of another name has promised does not bind it.
    pub joins: (ReplicaId, NodeId),
    /// The voters that stay.
    pub stay: BTreeSet<ReplicaId>,
}

/// Who sent a command to a region: which step of which procedure, driven by meta's leader of which term. Tells a late
/// command from a new one in logs, and lets a node refuse the former. It decides nothing by itself: the commands are
/// idempotent and tombstones make a drop final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcedureRef {
    /// The procedure.
    pub procedure: ProcedureId,
    /// How many entries had been recorded of it when the command was sent.
    pub step: u32,
    /// The term of the meta leader that sent it.
    pub term: u64,
}

/// The verbs of the raft protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are raft's")]
pub enum RaftVerb {
    Append,
    Vote,
    PreVote,
    Snapshot,
    Transfer,
}

/// The answer to the [`Request`] of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "see the requests")]
pub enum Response {
    Raft(Bytes),
    Write(WriteAnswer),
    Scan(ScanAnswer),
    /// To `CreateReplica`, `InitGroup`, `DropReplica`, `Flush`, `Compact`, `Transfer`, `Truncate`, `Alter`, `Pin`, `Unpin`,
    /// `AddLearner`, `ChangeMembers`, `RemoveLearner`, `View`.
    Done,
    Pins(Vec<PinStatus>),
    /// How many rows the file has.
    Ingest(u64),
    /// To `Ping`: what the clock says.
    Pong(Timestamp),
    Status(Vec<ReplicaStatus>),
    Files(Vec<SstStatus>),
    Metrics(Vec<Sample>),
    Lend(Lent),
    LentPiece(Bytes),
    ReadIndex(LogId),
    Meta(MetaAnswer),
    Sql(SqlAnswer),
    /// To `Greet` and `Absorb`.
    Taken(Taken),
    Legs(Vec<LegStatus>),
    Positions(Vec<PositionStatus>),
    Indexes(Vec<IndexStatus>),
    /// To `CheckIndex`.
    IndexChecked(IndexCheck),
    Moment(Moment),
    Checksum(Checksum),
}

/// What a statement of a client of the real server gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SqlAnswer {
    /// The session that further statements name.
    pub session: u64,
    /// Rows written, for statements that write.
    pub affected: Option<u64>,
    /// Rows read: an Arrow IPC stream, for statements that read.
    pub rows: Option<Bytes>,
}

/// The kind of a frame: in its header, so that a fault can be aimed at it without decoding the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
#[expect(missing_docs, reason = "one a request; raft's by verb")]
pub enum Kind {
    Append = 1,
    Vote = 2,
    PreVote = 3,
    Snapshot = 4,
    RaftTransfer = 5,
    Write = 6,
    Scan = 7,
    CreateReplica = 8,
    InitGroup = 9,
    DropReplica = 10,
    Flush = 11,
    Transfer = 12,
    Status = 13,
    Meta = 14,
    Sql = 15,
    Compact = 16,
    Truncate = 17,
    Alter = 18,
    Files = 19,
    Pin = 20,
    Unpin = 21,
    Pins = 22,
    // 23 was a question for the clock alone.
    ReadIndex = 24,
    AddLearner = 25,
    ChangeMembers = 26,
    RemoveLearner = 27,
    Ping = 28,
    Ingest = 29,
    Metrics = 30,
    View = 31,
    Greet = 32,
    Absorb = 33,
    Legs = 34,
    Positions = 35,
    Indexes = 36,
    CheckIndex = 37,
    Lend = 38,
    LentPiece = 39,
    Moment = 40,
    Checksum = 41,
}

impl Kind {
    /// All kinds with the names that scenarios use.
    pub const ALL: &'static [(Kind, &'static str)] = &[
        (Kind::Append, "append"),
        (Kind::Vote, "vote"),
        (Kind::PreVote, "pre_vote"),
        (Kind::Snapshot, "snapshot"),
        (Kind::RaftTransfer, "raft_transfer"),
        (Kind::Write, "write"),
        (Kind::Scan, "scan"),
        (Kind::CreateReplica, "create_replica"),
        (Kind::InitGroup, "init_group"),
        (Kind::DropReplica, "drop_replica"),
        (Kind::Flush, "flush"),
        (Kind::Transfer, "transfer"),
        (Kind::Status, "status"),
        (Kind::Meta, "meta"),
        (Kind::Sql, "sql"),
        (Kind::Compact, "compact"),
        (Kind::Truncate, "truncate"),
        (Kind::Alter, "alter"),
        (Kind::Files, "files"),
        (Kind::Pin, "pin"),
        (Kind::Unpin, "unpin"),
        (Kind::Pins, "pins"),
        (Kind::ReadIndex, "read_index"),
        (Kind::AddLearner, "add_learner"),
        (Kind::ChangeMembers, "change_members"),
        (Kind::RemoveLearner, "remove_learner"),
        (Kind::Ping, "ping"),
        (Kind::Ingest, "ingest"),
        (Kind::Metrics, "metrics"),
        (Kind::View, "view"),
        (Kind::Greet, "greet"),
        (Kind::Absorb, "absorb"),
        (Kind::Legs, "legs"),
        (Kind::Positions, "positions"),
        (Kind::Indexes, "indexes"),
        (Kind::CheckIndex, "check_index"),
        (Kind::Lend, "lend"),
        (Kind::LentPiece, "lent_piece"),
        (Kind::Moment, "moment"),
        (Kind::Checksum, "checksum"),
    ];

    /// The kind that is written as `byte`.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.iter().map(|(kind, _)| *kind).find(|kind| *kind as u8 == byte)
    }

    /// The name that scenarios use.
    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).expect("ALL has all").1
    }
}

impl Request {
    /// The kind that stands in the frame's header.
    pub fn kind(&self) -> Kind {
        match self {
            Request::Raft { verb: RaftVerb::Append, .. } => Kind::Append,
            Request::Raft { verb: RaftVerb::Vote, .. } => Kind::Vote,
            Request::Raft { verb: RaftVerb::PreVote, .. } => Kind::PreVote,
            Request::Raft { verb: RaftVerb::Snapshot, .. } => Kind::Snapshot,
            Request::Raft { verb: RaftVerb::Transfer, .. } => Kind::RaftTransfer,
            Request::Write { .. } => Kind::Write,
            Request::Scan { .. } => Kind::Scan,
            Request::CreateReplica { .. } => Kind::CreateReplica,
            Request::InitGroup { .. } => Kind::InitGroup,
            Request::DropReplica { .. } => Kind::DropReplica,
            Request::Flush { .. } => Kind::Flush,
            Request::Transfer { .. } => Kind::Transfer,
            Request::Status { .. } => Kind::Status,
            Request::Meta(_) => Kind::Meta,
            Request::Sql { .. } => Kind::Sql,
            Request::Compact { .. } => Kind::Compact,
            Request::Truncate { .. } => Kind::Truncate,
            Request::Alter { .. } => Kind::Alter,
            Request::Files => Kind::Files,
            Request::Pin { .. } => Kind::Pin,
            Request::Unpin { .. } => Kind::Unpin,
            Request::Pins { .. } => Kind::Pins,
            Request::ReadIndex { .. } => Kind::ReadIndex,
            Request::AddLearner { .. } => Kind::AddLearner,
            Request::ChangeMembers { .. } => Kind::ChangeMembers,
            Request::RemoveLearner { .. } => Kind::RemoveLearner,
            Request::Ping => Kind::Ping,
            Request::Ingest { .. } => Kind::Ingest,
            Request::Metrics => Kind::Metrics,
            Request::View { .. } => Kind::View,
            Request::Greet { .. } => Kind::Greet,
            Request::Absorb { .. } => Kind::Absorb,
            Request::Legs { .. } => Kind::Legs,
            Request::Positions { .. } => Kind::Positions,
            Request::Indexes { .. } => Kind::Indexes,
            Request::CheckIndex { .. } => Kind::CheckIndex,
            Request::Lend { .. } => Kind::Lend,
            Request::LentPiece { .. } => Kind::LentPiece,
            Request::Moment { .. } => Kind::Moment,
            Request::Checksum { .. } => Kind::Checksum,
        }
    }

    /// Whether sending it twice is no different from sending it once, so that it may be retried after a lost answer.
    pub fn is_idempotent(&self) -> bool {
        match self {
            Request::Write { write, .. } => write.request.is_some(),
            Request::Sql { .. } => false,
            _ => true,
        }
    }
}
