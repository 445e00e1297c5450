//! What is written to the log of the meta group, and what applying it gives.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::catalog::{CreateTable, TableDef};
use super::request::Control;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::options::Options;
use crate::types::{Alteration, NodeId, ProcedureId, RegionId, ReplicaId, SessionId, TableId, Timestamp};

/// Names a statement: a session, and which statement of it.
pub type StatementId = (SessionId, u64);

/// An entry of the meta group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was proposed, by the clock of the leader that did: to be shown, nothing is decided by it.
    pub at: Timestamp,
    /// What it does.
    pub command: Command,
}

/// What an entry of the meta group does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first one: who is in the cluster. Fine if it was said before, in the same words.
    Bootstrap {
        /// All nodes, which replicas can be placed on.
        nodes: BTreeSet<NodeId>,
        /// The replicas of the meta group itself. Ids of other replicas are above these.
        members: BTreeMap<ReplicaId, NodeId>,
        /// In the log and not in every node's options, because all replicas must decide alike.
        limits: Limits,
    },
    /// Give out a session id.
    OpenSession,
    /// Begin to create a table.
    StartCreate {
        /// The table.
        table: Box<CreateTable>,
        /// Names the statement.
        request: StatementId,
    },
    /// Take a table out of the catalog and begin to drop its regions.
    StartDrop {
        /// Its name.
        name: String,
        /// Whether it is fine that there is no such table.
        if_exists: bool,
        /// Whether it is to be a materialized view.
        is_view: bool,
        /// Whether views that read it go with it.
        cascade: bool,
        /// Names the statement.
        request: StatementId,
    },
    /// Begin to drop a view and to fill another one of the same name and query.
    StartRefill {
        /// Its name.
        name: String,
        /// Names the statement.
        request: StatementId,
    },
    /// What a user wants of the fill of a view.
    StartControl {
        /// The fill.
        job: ProcedureId,
        /// What.
        control: Control,
        /// Names the statement.
        request: StatementId,
    },
    /// A view has failed, as whoever fills it says. No statement asks for that.
    StartFail {
        /// The view.
        view: TableId,
        /// Why.
        reason: String,
    },
    /// Begin to change the columns of a table.
    StartAlter {
        /// Its name.
        name: String,
        /// The table, and the version of its schema, that the changes are meant of: of another one nothing is changed.
        of: (TableId, u64),
        /// The changes, in order.
        alterations: Vec<Alteration>,
        /// Names the statement.
        request: StatementId,
    },
    /// Begin to take all rows out of a table.
    StartTruncate {
        /// Its name.
        name: String,
        /// Names the statement.
        request: StatementId,
    },
    /// Begin to put a replica of a region of a table onto another node.
    StartMove {
        /// The table's name.
        name: String,
        /// The number of the region.
        region: u32,
        /// The node whose replica leaves.
        from: NodeId,
        /// The node that gets one.
        to: NodeId,
        /// Names the statement.
        request: StatementId,
    },
    /// Begin to make a replica elsewhere in the place of one whose node has been dead for long. No statement asks for that.
    StartRepair {
        /// The region.
        region: RegionId,
        /// The node that is dead.
        from: NodeId,
        /// The nodes that are not.
        among: BTreeSet<NodeId>,
    },
    /// Something took effect that a procedure was waiting for. Counts only if the procedure is where the sender saw it,
    /// so that two runners that both think they lead do not both advance it.
    Advance {
        /// The procedure.
        procedure: ProcedureId,
        /// [`Procedure::step`](super::Procedure::step) when the sender decided.
        from: u32,
        /// The term that the sender leads in.
        term: u64,
        /// What took effect.
        progress: Progress,
    },
}

/// Bounds of what one cluster keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Results of statements that are remembered.
    pub results: u64,
    /// Regions of one table.
    pub table_regions: u64,
}

impl Limits {
    /// As the options of a node say.
    pub fn of(options: &Options) -> Limits {
        Limits { results: options.meta_results, table_regions: options.table_regions }
    }
}

/// A fact that advances a procedure. Which state follows is the state machine's business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// These replicas are made, or are gone.
    Replicas(BTreeSet<ReplicaId>),
    /// The groups of these regions are formed, or have a leader, or the regions are empty.
    Regions(BTreeSet<RegionId>),
    /// A node refused: the procedure can never succeed.
    Refused(Error),
    /// What it needs is not waited for any more: a node that has been dead for long, or a step that does not get on.
    GivenUp(Error),
}

/// What an entry did. The same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// To `Bootstrap`.
    Bootstrapped,
    /// To `OpenSession`.
    Session(SessionId),
    /// This procedure was started.
    Started {
        /// The procedure.
        procedure: ProcedureId,
        /// Its first step, and those of whatever else was started or went on by the entry.
        reached: Vec<Reached>,
    },
    /// The statement started this procedure when it was sent before, and is not decided yet.
    Running {
        /// The procedure.
        procedure: ProcedureId,
    },
    /// The statement is decided: now, or when it was sent before.
    Decided(Result<Decision, Error>),
    /// Nothing was done and nothing is remembered: another statement is busy with the same table.
    Held {
        /// The procedure of that statement.
        by: ProcedureId,
    },
    /// To `Advance`: recorded.
    Advanced {
        /// The steps that the procedure reached: none (only a part of a step was done), one, or with the last one `Done`. Then
        /// those of whatever else was started or went on.
        reached: Vec<Reached>,
    },
    /// To `Advance`: the procedure is not where the sender saw it. Nothing was done.
    Stale,
    /// Nothing was done: the cluster is not bootstrapped yet.
    NoCluster,
    /// Nothing was done, and nothing is remembered of it.
    Refused(Error),
}

/// A step that a procedure has reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The procedure.
    pub procedure: ProcedureId,
    /// [`Procedure::kind`](super::Procedure::kind) there.
    pub kind: String,
    /// The step.
    pub step: Step,
}

impl Reached {
    /// To be said by whoever proposed the entry.
    pub(super) fn event(self) -> Event {
        let Reached { procedure, kind, step } = self;
        Event::ProcedureStep { procedure: procedure.0, kind, step: step.name().to_string() }
    }
}

/// How a statement ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// The table as created, or as it existed already.
    Created(Box<TableDef>),
    /// Whether there was such a table.
    Dropped(bool),
    /// The table has none of the rows that it had.
    Truncated,
    /// The table as altered.
    Altered(Box<TableDef>),
    /// The table with its replicas as they are now.
    Moved(Box<TableDef>),
    /// The fill is as it was wanted.
    Controlled,
}

/// A point that a procedure reaches; each is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Create: the name is reserved, ids are given out, replicas are placed.
    Prepared,
    /// Create: each region has a majority of its replicas.
    ReplicasCreated,
    /// Create: each region's group is formed.
    GroupsFormed,
    /// Create: each region has had a leader; the table is visible and the statement is answered.
    Published,
    /// Create: it cannot succeed; the statement is answered with the error, the name is free.
    Undoing,
    /// Create, move: nothing is left of it.
    Failed,
    /// Drop: the table is not visible any more; the statement is answered.
    Unpublished,
    /// Truncate: rows are being taken out of the regions.
    Truncating,
    /// Alter: the regions are being given the schema.
    Altering,
    /// Move: an id is given out, the new replica is being made.
    Making,
    /// Move: it exists; the region's group is to send it its log.
    Joining,
    /// Move: it gets the log; when it has it, it gets the vote of the old one.
    Switching,
    /// Move: the membership is changed, and the catalog; the statement is answered. The old replica is being dropped.
    Leaving,
    /// Move: given up; the region's group is to send the new replica nothing any more.
    Retracting,
    /// Move: given up, the statement is answered with the error. The new replica is being dropped.
    Withdrawing,
    /// View: its regions are being told that they are to be filled.
    Beginning,
    /// View: the regions that it reads are being told to fill it.
    Attaching,
    /// View: they do.
    Filling,
    /// View: its regions are being told that they may be read.
    Readying,
    /// View: the regions that it reads are being told how fast to be.
    Controlling,
    /// View: the regions that it reads are being told that it reads them no more.
    Detaching,
    /// View: its regions are being told that it has failed.
    Failing,
    /// Index: the regions are being asked how far they are.
    Indexing,
    /// Create: all replicas exist. Drop: all replicas are gone. Truncate, alter: all regions have done it.
    /// Move: the old replica is gone.
    Done,
}

impl Step {
    /// The name that events and scenarios use.
    pub fn name(self) -> &'static str {
        match self {
            Step::Prepared => "prepared",
            Step::ReplicasCreated => "replicas_created",
            Step::GroupsFormed => "groups_formed",
            Step::Published => "published",
            Step::Undoing => "undoing",
            Step::Failed => "failed",
            Step::Unpublished => "unpublished",
            Step::Truncating => "truncating",
            Step::Altering => "altering",
            Step::Making => "making",
            Step::Joining => "joining",
            Step::Switching => "switching",
            Step::Leaving => "leaving",
            Step::Retracting => "retracting",
            Step::Withdrawing => "withdrawing",
            Step::Beginning => "beginning",
            Step::Attaching => "attaching",
            Step::Filling => "filling",
            Step::Readying => "readying",
            Step::Controlling => "controlling",
            Step::Detaching => "detaching",
            Step::Failing => "failing",
            Step::Indexing => "indexing",
            Step::Done => "done",
        }
    }
}

impl Command {
    /// The entry that a leader whose clock says `at` proposes.
    pub fn at(self, at: Timestamp) -> Entry {
        Entry { at, command: self }
    }
}

impl Entry {
    /// As it stands in the log.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads what [`Entry::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Entry> {
        decode(bytes, "an entry of the meta group")
    }
}

impl Outcome {
    /// As it is handed to the proposer.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads what [`Outcome::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Outcome> {
        decode(bytes, "an outcome of the meta group")
    }
}

/// Stands before everything that is encoded here, so that a later version can tell what it reads.
pub(super) const FORMAT: u8 = 4;

/// The format's number, then postcard.
pub(super) fn encode<T: Serialize>(value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![FORMAT]).expect("plain data can be encoded");
    bytes.into()
}

/// Reads what [`encode`] wrote, all of it. `what` is for people.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    let damaged = |message: String| Error::Damaged { file: what.to_string(), message };
    match bytes.split_first() {
        Some((&FORMAT, bytes)) => match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(damaged(format!("{} bytes too many", rest.len()))),
            Err(err) => Err(damaged(err.to_string())),
        },
        Some((format, _)) => Err(damaged(format!("format {format}, this version reads {FORMAT}"))),
        None => Err(damaged("it is empty".to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_encoded_here_is_damage() {
        let entry = Command::OpenSession.at(Timestamp(7));
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes).unwrap(), entry);
        for wrong in [&b""[..], &[9, 1][..], &[FORMAT][..], &[FORMAT, 200][..], &[bytes.as_ref(), &[0]].concat()[..]] {
            assert_eq!(Entry::decode(wrong).unwrap_err().code(), "damaged", "{wrong:?}");
        }
    }
}
