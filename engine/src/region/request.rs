//! What can be asked of a region, and what it answers. The same values travel between nodes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{
    FillPosition, IndexId, LegId, LogId, NodeId, Position, Predicate, RegionId, ReplicaId, RequestId, Sequence, Source,
    Timestamp,
};

/// Rows to put and delete in one region, as one entry: all of them or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The version of the schema that `rows` were made for.
    pub schema_version: u64,
    /// Whole rows in the order of the table's columns, by [`encode_batch`](crate::types::encode_batch). Of a row to
    /// delete only the key columns count; the others are NULL.
    pub rows: Bytes,
    /// One byte a row, see [`Op`](crate::types::Op). Empty: all rows are put.
    pub ops: Bytes,
    /// One a row: the sequence of the version that the row was computed from, 0 for "there was none". Empty: the write
    /// is unconditional. If any row has another newest version when the entry is applied, nothing is written.
    pub expected: Vec<Sequence>,
    /// Names the request so that a resent one is applied once. Without it a resent one is applied again.
    pub request: Option<RequestId>,
    /// The client has the answers of all statements of its session below this one: the region may forget them.
    pub acknowledged: u64,
    /// Names the rows, whoever sends them: of a name that was applied before nothing is written again.
    pub file: Option<FileName>,
}

/// What a file that is ingested is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName {
    /// Its name.
    pub name: String,
    /// CRC-32 of its rows: another file of the same name is refused.
    pub checksum: u32,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteAnswer {
    /// Rows put and deleted.
    pub rows: u64,
    /// The sequence of the last of them: a read at it or later sees the write.
    pub sequence: Sequence,
}

/// Which rows to read of one region. The answer is one page; `next` of the answer continues it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The version of the schema that the columns are meant by.
    pub schema_version: u64,
    /// Names of the columns to return, in this order. Empty: only the number of rows counts.
    pub columns: Vec<String>,
    /// All must hold. May return rows for which they do not.
    pub predicates: Vec<Predicate>,
    /// Read what changed behind this sequence: of each row that is not the same at `upto`, what it was and what it is, with the
    /// column `__sign` (TINYINT: -1, 1) as the last one. None: what there is.
    pub since: Option<Sequence>,
    /// Read as of this sequence. None: as of now, linearizably; the answer says what that was.
    pub upto: Option<Sequence>,
    /// Only what is behind this: where the page before ended.
    pub after: Option<Position>,
    /// Return a page of about this many rows, at most as many as fit a frame. 0: as many as options say.
    pub page_rows: u64,
    /// Append the column `__sequence` (UINT64): the version that each row has.
    pub with_sequence: bool,
    /// Return tombstones too, with the column `__op` (UINT8, behind `__sequence`).
    pub include_deleted: bool,
    /// Look for the rows in this index, if it is complete there and finds few enough: otherwise as if it was not named.
    pub index: Option<IndexId>,
    /// Not as of now: what was committed so many milliseconds before the request came is enough, and any replica may answer.
    pub stale_ms: Option<u64>,
}

/// One page of rows, in key order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanAnswer {
    /// Batches by [`encode_batch`](crate::types::encode_batch), of the columns asked for.
    pub batches: Vec<Bytes>,
    /// Rows in them.
    pub rows: u64,
    /// The sequence that was read at: ask further pages with it.
    pub sequence: Sequence,
    /// Where the next page begins; none: that was all.
    pub next: Option<Position>,
}

/// What a replica says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The group.
    pub region: RegionId,
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// Whether it leads, as far as it knows.
    pub is_leader: bool,
    /// The leader, as far as it knows.
    pub leader: Option<(ReplicaId, NodeId)>,
    /// Its term.
    pub term: u64,
    /// The last entry it applied.
    pub applied: Option<LogId>,
    /// The last entry that is in files.
    pub flushed: Option<LogId>,
    /// The newest sequence that can be read.
    pub sequence: Sequence,
    /// The oldest sequence that can be read.
    pub oldest: Sequence,
    /// Versions in memtables.
    pub memtable_rows: u64,
    /// Memory of the memtables.
    pub memtable_bytes: u64,
    /// Number of SSTs.
    pub ssts: u64,
    /// Bytes of SSTs.
    pub sst_bytes: u64,
    /// Version of the schema.
    pub schema_version: u64,
    /// Who is in the group and where, by the newest membership in its log.
    pub members: BTreeMap<ReplicaId, NodeId>,
    /// Who of them has a vote. Two sets while that changes: a decision needs a majority of each.
    pub voters: Vec<BTreeSet<ReplicaId>>,
}

/// A pin of a region: see [`Command::Pin`](super::command::Command::Pin).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// The region.
    pub region: RegionId,
    /// Its name.
    pub name: String,
    /// What stays readable, with everything behind it.
    pub sequence: Sequence,
    /// Sequences that were given since.
    pub newer: u64,
    /// When it was pinned, by the clock of the leader of then.
    pub at: Timestamp,
}

/// Changes for a region of a view: what some stretch of a source comes to there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absorb {
    /// Where they come from.
    pub source: Source,
    /// The term of the leader that read them.
    pub epoch: u64,
    /// Where they begin: what the region has.
    pub from: FillPosition,
    /// Where they end.
    pub to: FillPosition,
    /// Rows by [`encode_batch`](crate::types::encode_batch): of a view without aggregates whole rows of the view, otherwise what
    /// [`Leg::run`](crate::view::Leg::run) made of the changes.
    pub rows: Bytes,
    /// Of a view without aggregates one byte a row, see [`Op`](crate::types::Op).
    pub ops: Bytes,
    /// How many rows that is.
    pub changes: u64,
    /// Rows of the feeder that were read for the window, up to where it ends.
    pub read: u64,
    /// How many of them were in batches before it: all regions of the view have what came of those.
    pub settled: u64,
}

/// What a region of a view says to a hello or a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// This is what it has now: of a batch that it did not take, where the next one must begin. And how many rows of the feeder
    /// were read for what it has of that window.
    At(FillPosition, u64),
    /// The leader of a later term sends.
    Deposed {
        /// That term.
        epoch: u64,
    },
    /// The view has failed.
    Failed {
        /// Why.
        message: String,
    },
    /// The region is not (any more) to be filled from there.
    Gone,
}

/// How far a leg is at a region of its feeder, as the region's log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegStatus {
    /// The leg.
    pub leg: LegId,
    /// The region that is read.
    pub feeder: RegionId,
    /// The term of the leader that reads.
    pub epoch: u64,
    /// How often another leader took it over.
    pub takeovers: u64,
    /// How often a leader began anew after an attempt of its own.
    pub retries: u64,
    /// Rounds that were begun.
    pub round: u64,
    /// Rows that were read in the rounds that are through.
    pub read: u64,
    /// All destinations have what was visible at it.
    pub done: Option<Sequence>,
    /// The end of the round under way.
    pub upto: Option<Sequence>,
    /// Whether it follows what is written.
    pub is_live: bool,
    /// Whether the view may be read, as far as this region is concerned.
    pub is_level: bool,
    /// Whether it is to wait.
    pub is_paused: bool,
    /// Rows a second that it may read.
    pub rate_limit: Option<u64>,
    /// Why it cannot go on.
    pub failed: Option<String>,
    /// The newest sequence of the region.
    pub sequence: Sequence,
    /// Versions of rows in the region, about.
    pub rows: u64,
    /// When `done` or `upto` was set last.
    pub at: Timestamp,
}

/// How far a region of a view is with a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionStatus {
    /// The region of the view.
    pub region: RegionId,
    /// Where its rows come from.
    pub source: Source,
    /// The term of the leader that sends.
    pub epoch: u64,
    /// What it has.
    pub position: FillPosition,
    /// Rows that were read for what it has of the window it is in.
    pub read: u64,
    /// How many of them all regions of the view had when it took that.
    pub settled: u64,
}

/// How far an index is at a region, as the region's log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexStatus {
    /// The region.
    pub region: RegionId,
    /// The index.
    pub index: IndexId,
    /// Whether all rows are in it.
    pub is_complete: bool,
    /// Rows that its backfill has read.
    pub read: u64,
    /// How often a leader went on where another one was stopped.
    pub takeovers: u64,
    /// Chunks that did not begin where the backfill was.
    pub retries: u64,
    /// Versions of rows in the region, about.
    pub rows: u64,
}

/// An index of a replica against its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexCheck {
    /// The region.
    pub region: RegionId,
    /// Rows.
    pub rows: u64,
    /// Rows without an entry.
    pub missing: u64,
    /// Entries without a row.
    pub extra: u64,
}

/// The state of a replica in files, lent to one that has lost some of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// Names it on its node.
    pub number: u64,
    /// What the files are together with.
    pub header: Bytes,
    /// Length and CRC-32 of each file.
    pub files: Vec<(u64, u32)>,
}

/// What a replica of a region has applied: of it the checksums of all replicas are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The last entry.
    pub applied: Option<LogId>,
    /// The newest sequence.
    pub sequence: Sequence,
    /// The version of the schema.
    pub schema_version: u64,
}

/// What a replica has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// The replica.
    pub replica: ReplicaId,
    /// When.
    pub moment: Moment,
    /// How many rows are visible then.
    pub rows: u64,
    /// Of all their cells, in the order of their keys.
    pub checksum: u64,
}

/// A file of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SstStatus {
    /// The group.
    pub region: RegionId,
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// Its name there.
    pub file: String,
    /// What is in it: entries of this index; none: rows.
    pub index: Option<IndexId>,
    /// 0: flushed; compaction gives others.
    pub level: u8,
    /// Versions in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// The oldest version in it.
    pub first_sequence: Sequence,
    /// The newest version in it.
    pub last_sequence: Sequence,
    /// The earliest and the latest time in it, in the unit of the TIME INDEX, if there is one.
    pub times: Option<(i64, i64)>,
    /// The version of the schema that it was written with.
    pub schema_version: u64,
}
