//! What can be asked of meta (raft group 0), and what it answers.

use serde::{Deserialize, Serialize};

use super::catalog::{CreateTable, TableDef};
use crate::types::{Alteration, NodeId, ProcedureId, SessionId, TableId, Timestamp};

/// A request to the leader of the meta group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaRequest {
    /// Start (or find) the procedure that creates a table, and wait until the table can be used: each region has a
    /// majority of its replicas and has had a leader. Replicas on nodes that are down are made later. `request` names
    /// the statement: a resent one finds the procedure of the first, or its answer.
    CreateTable {
        /// The table.
        table: CreateTable,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// Take a table out of the catalog and start (or find) the procedure that drops its regions. Answered when the
    /// catalog entry is gone durably; replicas are dropped in the background, however long their nodes are down.
    DropTable {
        /// Its name.
        name: String,
        /// Whether it is fine that there is no such table.
        if_exists: bool,
        /// Whether it is to be a materialized view.
        is_view: bool,
        /// Whether views that read it go with it.
        cascade: bool,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// Drop a view and create another one of the same name and query, which is filled anew.
    RefillView {
        /// Its name.
        name: String,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// Pause, resume, cancel the fill of a view, or limit its rate; and wait until all that it reads know.
    ControlJob {
        /// The fill.
        job: ProcedureId,
        /// What is wanted.
        control: Control,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// A view cannot be kept up to date: said by whoever fills it. Fine if it was said before.
    FailView {
        /// The view.
        view: TableId,
        /// Why.
        reason: String,
    },
    /// The views, and how far they are, linearizably.
    Views,
    /// Start (or find) the procedure that changes the columns of a table, and wait until all its regions have them.
    AlterTable {
        /// Its name.
        name: String,
        /// The table, and the version of its schema, that the changes are meant of: of another one nothing is changed.
        of: (TableId, u64),
        /// The changes, in order.
        alterations: Vec<Alteration>,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// Start (or find) the procedure that takes all rows out of a table, and wait until all its regions have done it.
    TruncateTable {
        /// Its name.
        name: String,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// Start (or find) the procedure that puts a replica of a region onto another node, and wait until the region's members have
    /// changed. The old replica is dropped in the background, however long its node is down.
    MoveReplica {
        /// The table's name.
        name: String,
        /// The number of the region.
        region: u32,
        /// The node whose replica leaves.
        from: NodeId,
        /// The node that gets one.
        to: NodeId,
        /// Names the statement.
        request: (SessionId, u64),
    },
    /// The table of that name, linearizably. None: there is none.
    Table {
        /// Its name.
        name: String,
    },
    /// All tables, by name, linearizably.
    Tables,
    /// The procedures that have not ended, linearizably.
    Procedures,
    /// A session id that was never given out.
    OpenSession,
}

/// What a user wants of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// It waits.
    Pause,
    /// It goes on.
    Resume,
    /// Its view is dropped, unless it is ready.
    Cancel,
    /// It reads so many rows a second at most, of each region; none: as fast as it goes.
    RateLimit(Option<u64>),
}

/// A view of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewStatus {
    /// The view.
    pub view: TableDef,
    /// Its fill.
    pub job: ProcedureId,
    /// When that was recorded, by the clock of meta's leader of then.
    pub started_at: Timestamp,
    /// `filling`, `ready` or `failed`.
    pub state: String,
    /// Why it has failed.
    pub failed: Option<String>,
    /// Whether its fill is to wait.
    pub is_paused: bool,
    /// Rows a second that it may read of each region.
    pub rate_limit: Option<u64>,
    /// The step that meta is at with it, if something is being done.
    pub step: Option<String>,
}

/// A procedure that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcedureStatus {
    /// The procedure.
    pub id: ProcedureId,
    /// `create_table`, `drop_table`, `truncate_table`, `alter_table`, `move_replica`, `fill_view`, `control_view`, `drop_view`,
    /// `fail_view`.
    pub kind: String,
    /// The table's name.
    pub table: String,
    /// The step that it is at.
    pub step: String,
    /// Replicas or regions that have not done it yet.
    pub open: u64,
    /// Why it was given up, if it was: what it did is being taken back.
    pub error: Option<String>,
    /// What holds it up, as meta's leader was told last.
    pub waits_for: Option<String>,
}

/// The answer of meta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaAnswer {
    /// To `CreateTable`: the table as created (or as it existed already).
    Created(TableDef),
    /// To `DropTable`: whether there was such a table.
    Dropped(bool),
    /// To `TruncateTable`.
    Truncated,
    /// To `AlterTable`: the table as altered.
    Altered(TableDef),
    /// To `MoveReplica`: the table with its replicas as they are now.
    Moved(TableDef),
    /// To `ControlJob` and `FailView`.
    Controlled,
    /// To `Views`, by id.
    Views(Vec<ViewStatus>),
    /// To `Table`.
    Table(Option<TableDef>),
    /// To `Procedures`, by id.
    Procedures(Vec<ProcedureStatus>),
    /// To `Tables`.
    Tables(Vec<TableDef>),
    /// To `OpenSession`.
    Session(SessionId),
}
