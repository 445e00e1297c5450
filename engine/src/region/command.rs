//! What stands in a region's log, and what applying it gives.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::index::Chunk;
use super::leg::{Leg, LegStep};
use super::request::{Absorb, WriteAnswer, WriteRequest};
use crate::error::Error;
use crate::meta::catalog::TableDef;
use crate::types::{LegId, ProcedureId, Schema, Source, TableId, Timestamp};

/// An entry of a region's log. Everything that its effect depends on stands in it or in the replicated state, never in
/// the options of the node that applies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Rows to put and delete.
    Write {
        /// The rows.
        write: WriteRequest,
        /// Sessions that the region remembers at most, as the proposer's options say.
        sessions: u64,
        /// Names of files that the region remembers at most, as the proposer's options say.
        files: u64,
    },
    /// The columns change. Resent by the same procedure, or by an earlier one that comes late, it does nothing.
    Alter {
        /// On whose behalf.
        by: ProcedureId,
        /// The schema from now on.
        schema: Box<Schema>,
    },
    /// All rows go. Resent by the same procedure, or by an earlier one that comes late, it does nothing.
    Truncate {
        /// On whose behalf.
        by: ProcedureId,
    },
    /// Rows of an earlier time go. With a watermark that is not later than the one before, or made for another version of the
    /// schema, which has the ttl, it does nothing.
    Expire {
        /// The version of the schema.
        schema_version: u64,
        /// The watermark, in the unit of the TIME INDEX.
        before: i64,
    },
    /// What is visible now stays readable, with everything behind it. Under a name that is pinned it does nothing.
    Pin {
        /// Its name.
        name: String,
        /// When, by the clock of the leader that proposes it.
        at: Timestamp,
    },
    /// A pin goes. Fine if it is gone.
    Unpin {
        /// Its name.
        name: String,
    },
    /// A view begins to read this region. Fine if it does already; after `Detach` it does nothing.
    Attach {
        /// The scans of its query that read this table.
        legs: Vec<u32>,
        /// The view.
        view: Box<TableDef>,
    },
    /// A view reads this region no more, and never again.
    Detach {
        /// The view.
        view: TableId,
    },
    /// Whether a view's legs are to wait, and how fast they may be.
    Control {
        /// The view.
        view: TableId,
        /// Whether they are to wait.
        is_paused: bool,
        /// Rows a second; none: as fast as it goes.
        rate_limit: Option<u64>,
    },
    /// What becomes of a leg, as the leader that reads for it says.
    Leg {
        /// The leg.
        leg: LegId,
        /// The term of that leader.
        epoch: u64,
        /// What.
        step: LegStep,
    },
    /// At a region of a view: it is going to be filled. Fine if it is already.
    Begin,
    /// At a region of a view: it may be read. Fine if it may already; an error if it has failed, or has groups that cannot be shown.
    Ready,
    /// At a region of a view: it has failed.
    Fail {
        /// Why.
        reason: String,
    },
    /// At a region of a view: the leader of a feeder's region says hello. Nothing is taken of leaders before it.
    Greet {
        /// Where it reads.
        source: Source,
        /// Its term.
        epoch: u64,
    },
    /// At a region of a view: a batch.
    Absorb(Absorb),
    /// Entries of an index, for rows that were there before it.
    Backfill(Chunk),
}

impl Command {
    /// The command as it stands in the log.
    pub fn encode(&self) -> Bytes {
        postcard::to_allocvec(self).expect("every command has an encoding").into()
    }

    /// The command that [`Command::encode`] wrote.
    pub fn decode(bytes: &Bytes) -> Result<Command, Error> {
        postcard::from_bytes(bytes)
            .map_err(|err| Error::Damaged { file: "log".into(), message: format!("an entry is no command: {err}") })
    }
}

/// What applying [`Command::Leg`] gave: the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegAnswer {
    /// The leg as it is now.
    Leg(Box<Leg>),
    /// The leader of a later term reads.
    Deposed {
        /// That term.
        epoch: u64,
    },
    /// There is no such leg (any more).
    Gone,
}

/// What applying [`Command::Leg`], [`Command::Greet`] and [`Command::Absorb`] gave, as raft carries it.
pub fn encode_answer<T: Serialize>(answer: &T) -> Bytes {
    postcard::to_allocvec(answer).expect("every answer has an encoding").into()
}

/// The [`LegAnswer`] or the [`Taken`](super::request::Taken) that [`encode_answer`] wrote.
pub fn decode_answer<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Error> {
    postcard::from_bytes(bytes)
        .map_err(|err| Error::Unknown { message: format!("the outcome of an entry is damaged: {err}") })
}

/// What applying any other command gave: the same on every replica.
pub type Outcome = Result<WriteAnswer, Error>;

/// The outcome as raft carries it.
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    postcard::to_allocvec(outcome).expect("every outcome has an encoding").into()
}

/// The outcome that [`encode_outcome`] wrote.
pub fn decode_outcome(bytes: &Bytes) -> Outcome {
    postcard::from_bytes(bytes)
        .map_err(|err| Error::Unknown { message: format!("the outcome of an entry is damaged: {err}") })?
}
