//! DataFusion's expressions, in a way that says the same of a row whatever rows it stands beside.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_empty_array};
use arrow::compute::{concat, take};
use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::Failure;
use crate::error::{Error, Invalid, Result};
use crate::sql::{checked, invalid};

/// An expression, ready to run.
#[derive(Debug)]
pub(super) struct Expression {
    /// As the plan has it, for messages.
    text: String,
    expr: Arc<dyn PhysicalExpr>,
    data_type: DataType,
}

impl Expression {
    /// `expr` over the columns of `input`. Integers that overflow are failures.
    pub(super) fn new(expr: &Expr, input: &DFSchema) -> Result<Expression> {
        let made = create_physical_expr(expr, input, &ExecutionProps::new(), &PhysicalPlanningContext::default())
            .and_then(|made| {
                let made = checked(made, input.as_arrow())?.data;
                let data_type = made.data_type(input.as_arrow())?;
                Ok((made, data_type))
            });
        let (made, data_type) = made.map_err(invalid)?;
        Ok(Expression { text: expr.to_string(), expr: made, data_type })
    }

    /// A condition over the columns of `input`.
    pub(super) fn condition(expr: &Expr, input: &DFSchema) -> Result<Expression> {
        let condition = Expression::new(expr, input)?;
        if condition.data_type != DataType::Boolean {
            let message = format!("the condition {} is {}, not BOOLEAN", condition.text, condition.data_type);
            return Err(Error::invalid(Invalid::WrongType, message));
        }
        Ok(condition)
    }

    /// The type of what it computes.
    pub(super) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// What it is for each of `rows`; `named` says, for a message, which row one is.
    ///
    /// DataFusion computes the second operand of AND and OR for all rows as soon as it needs it for some. So a batch that cannot
    /// be computed is computed row by row: only a row that cannot be computed by itself is a failure.
    pub(super) fn column(&self, rows: &RecordBatch, named: &dyn Fn(usize) -> String) -> Result<ArrayRef, Failure> {
        if rows.num_rows() == 0 {
            return Ok(new_empty_array(&self.data_type));
        }
        if let Ok(column) = self.evaluate(rows) {
            return Ok(column);
        }
        let cell = |row: usize| {
            self.evaluate(&rows.slice(row, 1)).map_err(|err| {
                let why = invalid(err);
                Failure { message: format!("{} cannot be computed for {}: {why}", self.text, named(row)) }
            })
        };
        let cells = (0..rows.num_rows()).map(cell).collect::<Result<Vec<_>, Failure>>()?;
        let cells: Vec<_> = cells.iter().map(|cell| cell.as_ref()).collect();
        Ok(concat(&cells).expect("cells of one type"))
    }

    /// The positions of the rows for which it is true: neither false nor NULL.
    pub(super) fn holds(&self, rows: &RecordBatch, named: &dyn Fn(usize) -> String) -> Result<Vec<u32>, Failure> {
        let column = self.column(rows, named)?;
        let column = column.as_boolean();
        let holds = column.iter().zip(0..).filter(|(holds, _)| *holds == Some(true));
        Ok(holds.map(|(_, row)| row).collect())
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<ArrayRef, DataFusionError> {
        self.expr.evaluate(rows)?.into_array(rows.num_rows())
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The rows of `batch` at `rows`, also of one without columns.
pub(super) fn pick(batch: &RecordBatch, rows: &UInt32Array) -> RecordBatch {
    let columns = batch.columns().iter().map(|column| cells(column, rows)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(batch.schema(), columns, &options).expect("rows of the same columns")
}

/// The cells of `column` at `rows`; NULL where that is NULL.
pub(super) fn cells(column: &ArrayRef, rows: &UInt32Array) -> ArrayRef {
    take(column, rows, None).expect("rows of the column")
}
