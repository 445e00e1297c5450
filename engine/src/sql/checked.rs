//! Integers that overflow are an error.
//!
//! DataFusion's `+`, `-` and `*` wrap round. An UPDATE would store the result, and so would a view: what a projection computes is
//! checked, and all that a view does. Not checked: constants, which are folded before, and of queries the conditions of WHERE
//! and the sums.

use std::sync::Arc;

use arrow::datatypes::Schema as ArrowSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Literal, NegativeExpr};
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::scalar::ScalarValue;

/// Makes the arithmetic of projections fail where it overflows.
#[derive(Debug)]
pub(super) struct CheckedArithmetic;

impl PhysicalOptimizerRule for CheckedArithmetic {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(projection) = plan.downcast_ref::<ProjectionExec>() else {
                return Ok(Transformed::no(plan));
            };
            let mut changed = false;
            let mut exprs = Vec::with_capacity(projection.expr().len());
            for ProjectionExpr { expr, alias } in projection.expr() {
                let expr = checked(expr.clone(), &projection.input().schema())?;
                changed |= expr.transformed;
                exprs.push(ProjectionExpr { expr: expr.data, alias: alias.clone() });
            }
            if !changed {
                return Ok(Transformed::no(plan));
            }
            let projection = ProjectionExec::try_new(exprs, projection.input().clone())?;
            Ok(Transformed::yes(Arc::new(projection) as _))
        })
        .data()
    }

    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// `expr`, over columns of `input`, with arithmetic that fails where it overflows.
pub fn checked(expr: Arc<dyn PhysicalExpr>, input: &ArrowSchema) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
    expr.transform_up(|expr| {
        if let Some(negative) = expr.downcast_ref::<NegativeExpr>() {
            let data_type = negative.arg().data_type(input)?;
            if !data_type.is_signed_integer() {
                return Ok(Transformed::no(expr));
            }
            // The least integer has no opposite.
            let zero = Arc::new(Literal::new(ScalarValue::new_zero(&data_type)?));
            let from_zero = BinaryExpr::new(zero, Operator::Minus, negative.arg().clone());
            return Ok(Transformed::yes(Arc::new(from_zero.with_fail_on_overflow(true)) as _));
        }
        let Some(binary) = expr.downcast_ref::<BinaryExpr>() else {
            return Ok(Transformed::no(expr));
        };
        if !matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) {
            return Ok(Transformed::no(expr));
        }
        Ok(Transformed::yes(Arc::new(binary.clone().with_fail_on_overflow(true)) as _))
    })
}
