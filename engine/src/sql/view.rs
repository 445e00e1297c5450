//! `CREATE MATERIALIZED VIEW`: what its query asks for, as legs and at most one fold of them.
//!
//! The plan is made from the definition in the catalog ([`plan`]), on every node and after every restart, and is the same each
//! time: it depends on the text of the query and the columns of its feeders as they were at CREATE, on no catalog, clock or option.

mod explain;
mod plan;
mod resolve;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::logical_expr::Expr;

use crate::types::ColumnType;

pub use explain::explain;
pub use plan::plan;
pub use resolve::CreateView;

/// What a view does with the rows of its feeders.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    /// One for each scan of a feeder, in the order of [`ViewDef::legs`](crate::meta::catalog::ViewDef::legs).
    pub legs: Vec<LegPlan>,
    /// What the outputs of the legs are folded by; none: they are the rows of the view.
    pub aggregate: Option<AggregatePlan>,
    /// The columns that `SELECT *` shows.
    pub columns: Vec<(String, ColumnType)>,
}

/// What becomes of one row of a feeder: nothing, or one row.
#[derive(Clone, Debug)]
pub struct LegPlan {
    /// The feeder's columns that SELECT shows, by name (without qualifiers): what the expressions are over.
    pub input: Arc<DFSchema>,
    /// Rows for which it is not true are left out.
    pub filter: Option<Expr>,
    /// Of a view without aggregates its columns; otherwise the expressions of GROUP BY, then the inputs of the aggregates. Each is
    /// cast to the type that the column, or the aggregate, has.
    pub outputs: Vec<Expr>,
}

/// GROUP BY, aggregates, HAVING and what is computed of them.
#[derive(Clone, Debug)]
pub struct AggregatePlan {
    /// How many of the legs' outputs are grouped by. 0: all rows are one group, which is always there.
    pub groups: usize,
    /// The aggregates.
    pub calls: Vec<Call>,
    /// What `having` and `outputs` are over: the columns of GROUP BY (`g0`, `g1`, ..), then the results of the calls (`a0`, ..).
    pub input: Arc<DFSchema>,
    /// Groups for which it is not true are not shown.
    pub having: Option<Expr>,
    /// The view's columns.
    pub outputs: Vec<Expr>,
}

/// One aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it computes.
    pub function: Function,
    /// Position, in the legs' outputs, of its input; none: it counts rows.
    pub input: Option<usize>,
    /// The type of the input; that of a count of rows says nothing.
    pub input_type: ColumnType,
    /// The type of the result.
    pub output_type: ColumnType,
}

/// What an aggregate computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// `COUNT(*)`; and `COUNT(x)`: how many are not NULL.
    Count,
    /// `SUM(x)`
    Sum,
    /// `AVG(x)`
    Avg,
    /// `MIN(x)`
    Min,
    /// `MAX(x)`
    Max,
}
