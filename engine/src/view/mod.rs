//! What a materialized view does with changes of its feeders: pure functions on batches of Arrow rows.
//!
//! A change of a feeder's row is a retraction of what it was and an insertion of what it is. [`Leg::run`] makes of some changes a
//! [`Delta`] of the view, at the feeder: it filters and computes, and for a view with aggregates it sums up what it has by group.
//! [`Fold::apply`] adds a delta to the state of the groups, at the view, where state and position stand in one log entry. A view
//! without aggregates has nothing to add to: its deltas are the rows to put and delete.
//!
//! What comes out does not depend on how the changes were cut into deltas, or on their order: sums are exact ([`ExactSum`] those
//! of floats), MIN and MAX know every value that is there, and whether an expression can be computed for a row does not depend
//! on the rows beside it.
//!
//! Not here: which changes there are (`storage::changes`), who sends them where and how often (`server`), and what a position is
//! ([`FillPosition`](crate::types::FillPosition)).

mod exact;
mod expression;
mod fold;
mod group;
mod leg;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};

pub use exact::ExactSum;
pub use fold::{Broken, Fold, Folded, Groups, Writes};
pub use leg::{Delta, Leg};

use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::sql::{self, ViewPlan};
use group::Calls;

/// The column of a [`Delta`] of a view with aggregates that has what the changes come to in the group: BINARY, never NULL.
pub const PARTIAL: &str = "__partial";

/// Why a view cannot go on: an expression that cannot be computed, a sum that does not fit. Every replica that does the same with
/// the same rows comes to the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What cannot be computed, for which row, and why.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A view's query, ready to run.
#[derive(Debug)]
pub struct Program {
    legs: Vec<Leg>,
    fold: Option<Fold>,
    delta: SchemaRef,
}

impl Program {
    /// The query of the view `table`.
    pub fn compile(table: &TableDef) -> Result<Program> {
        let view = table.view.as_ref().ok_or_else(|| mismatch(table, "it is no view"))?;
        Program::new(table, &sql::view_plan(view)?)
    }

    /// What `plan` does for the view `table`.
    ///
    /// An error if the two do not belong together, or the plan has an expression that cannot be run.
    pub fn new(table: &TableDef, plan: &ViewPlan) -> Result<Program> {
        for (name, column_type) in &plan.columns {
            if table.schema.column(name).is_none_or(|(_, column)| column.column_type != *column_type) {
                return Err(mismatch(table, format!("it has no column {name:?} that is {column_type}")));
            }
        }
        let rows = table.schema.to_arrow();
        let (fold, delta) = match &plan.aggregate {
            None => (None, rows),
            Some(aggregate) => {
                let calls = Arc::new(Calls::new(aggregate, &plan.legs)?);
                let key = table.schema.key();
                let groups =
                    key.get(..aggregate.groups).ok_or_else(|| mismatch(table, "it has too few key columns"))?;
                let partial = Field::new(PARTIAL, DataType::Binary, false);
                let fields = groups.iter().map(|at| rows.field(*at).clone()).chain([partial]);
                let delta: SchemaRef = Arc::new(ArrowSchema::new(fields.collect::<Vec<_>>()));
                (Some(Fold::new(table, plan, aggregate, calls)?), delta)
            }
        };
        let calls = fold.as_ref().map(|fold| fold.calls().clone());
        let leg = |(at, leg)| Leg::new(table, plan, at as u32, leg, calls.as_ref(), &delta);
        let legs = plan.legs.iter().enumerate().map(leg).collect::<Result<Vec<_>>>()?;
        Ok(Program { legs, fold, delta })
    }

    /// What becomes of the rows that the scan numbered `leg` reads.
    ///
    /// # Panics
    /// If the query has no such scan.
    pub fn leg(&self, leg: u32) -> &Leg {
        &self.legs[leg as usize]
    }

    /// How many scans the query has.
    pub fn legs(&self) -> usize {
        self.legs.len()
    }

    /// What the deltas are folded by; none: their rows are those of the view.
    pub fn fold(&self) -> Option<&Fold> {
        self.fold.as_ref()
    }

    /// The columns of a [`Delta`]: those of the view, or those of its groups and [`PARTIAL`].
    pub fn delta(&self) -> &SchemaRef {
        &self.delta
    }

    /// The rows that are there before any row of a feeder is: the state of a view without GROUP BY, and the row that it shows, if
    /// HAVING lets it.
    pub fn initial(&self, broken: Broken) -> Result<Option<Folded>, Failure> {
        self.fold.as_ref().map_or(Ok(None), |fold| fold.initial(broken))
    }
}

/// The definition of a view and the plan of its query contradict each other.
fn mismatch(table: &TableDef, what: impl fmt::Display) -> Error {
    Error::invalid(Invalid::Mismatch, format!("the plan of view {} is not one of its columns: {what}", table.name))
}
