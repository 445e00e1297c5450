//! Raft group 0: the catalog, the routes, the ids, and the procedures that create, change and drop tables.
//!
//! A `CREATE TABLE` on its way:
//!
//! 1. [`Service::handle`] proposes [`Command::StartCreate`] to the group.
//! 2. [`MetaState::apply`] (pure, the same on every replica) reserves the name, gives out the ids, [`place`]s the
//!    replicas and keeps all of it as a [`Procedure`].
//! 3. [`Runner::run`], on the leader only, asks [`Procedure::next`] what to ask of which node, calls the nodes, and turns
//!    their answers by [`Procedure::progress`] into a [`Command::Advance`], until the procedure has ended. A runner keeps
//!    nothing that the log does not have: the next leader's continues.
//! 4. The entry that makes the table visible answers the statement: [`Service`] was waiting for it at the [`Machine`].
//!
//! A replica is put onto another node by a procedure too, asked for by a statement or because a node has been dead for long
//! (`detector`).
//!
//! Invariants: ids are never reused. A table is visible only from the end of its creation to the beginning of its drop.
//! A statement (session, number) is run once, however often it is sent. A procedure ends as soon as the nodes answer.
//!
//! Not here: who leads and how entries are replicated (`raft`, behind [`Group`]), what a node does when it is asked to
//! make or drop a replica (`server`), and whether a table's columns and partitions make sense (`sql` checked them).

pub mod catalog;
mod command;
mod detector;
mod machine;
mod place;
mod procedure;
pub mod request;
mod runner;
mod service;
mod state;
#[cfg(test)]
mod tests;
pub mod view;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use command::{Command, Decision, Entry, Limits, Outcome, Progress, Reached, StatementId, Step};
pub use machine::Machine;
pub use place::{Load, emptiest, place};
pub use procedure::{Action, Move, Next, Procedure, ProcedureState, Subject, Target};
pub use runner::{Obstacles, Runner};
pub use service::Service;
pub use state::{Answer, MetaState};

use crate::error::Result;
use crate::server::message::{Request, Response};
use crate::types::NodeId;

/// The raft group that the catalog is kept in, seen from one of its replicas.
#[async_trait]
pub trait Group: Send + Sync + 'static {
    /// Appends `command`, and returns what [`Machine::apply`] gave for it, after this replica applied it.
    ///
    /// `NotLeader` and `Stopped`: it was not appended. `Unknown`: it may yet be applied.
    async fn propose(&self, command: Bytes) -> Result<Bytes>;

    /// Afterwards this replica has applied everything that was committed when the call began. Only the leader can say.
    async fn read_index(&self) -> Result<()>;

    /// The term that this replica leads in, as far as it knows.
    fn leading(&self) -> Option<u64>;
}

/// The way to all nodes, this one included.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// What `to` answers to `request`, given up after `within`.
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response>;
}
