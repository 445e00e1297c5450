//! What a statement means, without running it: the statements beyond what DataFusion parses, the types of columns, the
//! rules of partitions, constants and casts, and the settings that queries are planned with.
//!
//! 1. [`parse`] makes a [`Statement`] of the text; what is not supported is refused here, by name.
//! 2. [`CreateTable::resolve`] checks a table and gives what meta is asked to create; [`partition`] finds the gaps and
//!    overlaps of its regions.
//! 3. [`Planner`] plans queries and evaluates constants with DataFusion; [`cast`] turns values into those of a column.
//! 4. [`CreateView::resolve`] does for a materialized view what 2. does for a table, and [`view_plan`] says how its rows come
//!    from those of the tables that it reads.
//!
//! Pure: nothing here asks a node, waits, or reads a clock; the time of a statement is passed in. Running a statement is
//! the [`frontend`](crate::frontend)'s.

mod alter;
mod cast;
mod chain;
mod checked;
mod create;
mod error;
mod names;
mod parser;
pub mod partition;
mod planner;
mod setting;
mod types;
mod values;
mod view;

use std::time::Duration;

use datafusion::sql::sqlparser::ast;

use crate::types::NodeId;

pub use alter::{AlterTable, Written};
pub use cast::{to_column, to_scalar, to_value};
pub use checked::checked;
pub use create::{ColumnDef, CreateTable, Partition};
pub use error::invalid;
pub use names::{nearest, suggest};
pub use parser::parse;
pub use planner::{Evaluator, Planner, TARGET, Tables};
pub use setting::Setting;
pub use values::{Values, for_column, is_default};
pub use view::{
    AggregatePlan, Call, CreateView, Function, LegPlan, ViewPlan, explain as explain_view, plan as view_plan,
};

/// One statement, as written: names are folded (an unquoted one to lower case), nothing is looked up.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `CREATE TABLE ..`
    CreateTable(Box<CreateTable>),
    /// `DROP TABLE [IF EXISTS] name [CASCADE]`
    DropTable {
        /// The table.
        name: String,
        /// Whether it is fine that there is none.
        if_exists: bool,
        /// Whether the views that read it go with it.
        cascade: bool,
    },
    /// `CREATE MATERIALIZED VIEW ..`
    CreateView(Box<CreateView>),
    /// `DROP MATERIALIZED VIEW [IF EXISTS] name [CASCADE]`
    DropView {
        /// The view.
        name: String,
        /// Whether it is fine that there is none.
        if_exists: bool,
        /// Whether the views that read it go with it.
        cascade: bool,
    },
    /// `REFILL MATERIALIZED VIEW name`
    RefillView {
        /// The view.
        name: String,
    },
    /// `CREATE INDEX [IF NOT EXISTS] name ON table (columns)`
    CreateIndex {
        /// Its name.
        name: String,
        /// The table.
        table: String,
        /// The columns in order, each once.
        columns: Vec<String>,
        /// Whether it is fine that there is such an index.
        if_not_exists: bool,
    },
    /// `DROP INDEX [IF EXISTS] name ON table`
    DropIndex {
        /// The index.
        name: String,
        /// The table.
        table: String,
        /// Whether it is fine that there is none.
        if_exists: bool,
    },
    /// `ALTER TABLE ..`
    AlterTable(AlterTable),
    /// `TRUNCATE [TABLE] name`
    TruncateTable {
        /// The table.
        name: String,
    },
    /// `INSERT INTO ..`, an upsert.
    Insert(Insert),
    /// `UPDATE ..` or `DELETE FROM ..`.
    Change(Box<Change>),
    /// `SELECT ..`, `VALUES ..`, `WITH .. SELECT ..`
    Query(Box<ast::Query>),
    /// `EXPLAIN ..` of a statement that reads, or creates what reads.
    Explain(Box<Statement>),
    /// `SET name = value`, for the session
    Set(Setting),
    /// `SHOW TABLES`
    ShowTables,
    /// `SHOW JOBS`
    ShowJobs,
    /// `PAUSE | RESUME | CANCEL JOB n`, `ALTER JOB n ..`
    Job {
        /// The number of the job.
        id: u64,
        /// What becomes of it.
        verb: JobVerb,
    },
    /// `WAIT FOR .. [TIMEOUT time]`
    WaitFor {
        /// What is to be ready.
        what: WaitFor,
        /// How long; none: as long as a statement may take.
        timeout: Option<Duration>,
    },
    /// `ADMIN CHECK MATERIALIZED VIEW name`
    CheckView {
        /// The view.
        name: String,
    },
    /// `ADMIN CHECK INDEX name ON table`
    CheckIndex {
        /// The index.
        name: String,
        /// The table.
        table: String,
    },
    /// `ADMIN CHECKSUM TABLE name`
    Checksum {
        /// The table.
        table: String,
    },
    /// `ADMIN .. TABLE name`
    Admin {
        /// What to do.
        verb: AdminVerb,
        /// The table.
        table: String,
    },
    /// `ADMIN MOVE REPLICA OF TABLE name REGION n FROM NODE n TO NODE n`
    MoveReplica {
        /// The table.
        table: String,
        /// The number of the region.
        region: u32,
        /// The node whose replica leaves.
        from: NodeId,
        /// The node that gets one.
        to: NodeId,
    },
}

/// What an administrator may ask for that happens by itself sooner or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminVerb {
    /// Write the memtables of each replica to files.
    Flush,
    /// Merge the files of each replica; `is_strict`: split those first that have rows of several time windows.
    Compact {
        /// `STRICT WINDOW`
        is_strict: bool,
    },
    /// Keep what is visible now readable.
    Pin {
        /// Its name.
        name: String,
    },
    /// Let go what is pinned.
    Unpin {
        /// Its name.
        name: String,
    },
    /// Hand the leadership of a region over.
    Transfer {
        /// The number of the region.
        region: u32,
        /// The node whose replica is to lead.
        to: NodeId,
    },
}

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobVerb {
    /// `PAUSE JOB n`
    Pause,
    /// `RESUME JOB n`
    Resume,
    /// `CANCEL JOB n`
    Cancel,
    /// `ALTER JOB n SET rate_limit = m`: rows a second, at least 1; none: `UNSET rate_limit`.
    RateLimit(Option<u64>),
}

/// What a statement waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// `WAIT FOR MATERIALIZED VIEW name`
    View(String),
    /// `WAIT FOR INDEX name ON table`
    Index {
        /// The index.
        name: String,
        /// The table.
        table: String,
    },
}

/// `INSERT INTO table [(columns)] source`
#[derive(Clone, Debug)]
pub struct Insert {
    /// The table.
    pub table: String,
    /// The columns that the source gives, in its order; none: all columns in the order of the table.
    pub columns: Option<Vec<String>>,
    /// Where the rows come from.
    pub source: Source,
}

/// Where the rows of an INSERT come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// `VALUES (..), (..)`: one expression for each column of each row.
    Values(Values),
    /// A query.
    Query(Box<ast::Query>),
}

/// `UPDATE table [AS alias] SET .. [WHERE ..]` or `DELETE FROM table [AS alias] [WHERE ..]`
#[derive(Clone, Debug)]
pub struct Change {
    /// The table.
    pub table: String,
    /// What the expressions call it.
    pub alias: String,
    /// Which rows; none: all.
    pub selection: Option<ast::Expr>,
    /// The new values of an UPDATE by column; none: the rows are deleted.
    pub set: Option<Vec<(String, ast::Expr)>>,
}
