//! Integers that overflow are an error.
//!
//! DataFusion's `+`, `-` and `*` wrap round. An UPDATE would store the result, so what a projection computes is checked.
//! Not checked: constants, which are folded before, conditions of WHERE, and sums.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;
use datafusion::physical_expr::projection::ProjectionExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;

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
                let expr = checked(expr.clone())?;
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

fn checked(expr: Arc<dyn PhysicalExpr>) -> Result<Transformed<Arc<dyn PhysicalExpr>>> {
    expr.transform_up(|expr| {
        let Some(binary) = expr.downcast_ref::<BinaryExpr>() else {
            return Ok(Transformed::no(expr));
        };
        if !matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) {
            return Ok(Transformed::no(expr));
        }
        Ok(Transformed::yes(Arc::new(binary.clone().with_fail_on_overflow(true)) as _))
    })
}
