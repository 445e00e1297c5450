//! What stands in a region's log, and what applying it gives.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::request::{WriteAnswer, WriteRequest};
use crate::error::Error;
use crate::types::{ProcedureId, Schema, Timestamp};

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

/// What applying a command gave: the same on every replica.
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
