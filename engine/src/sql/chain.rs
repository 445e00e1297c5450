//! UNION ALL in one partition.
//!
//! DataFusion's UnionExec has a partition for each input and expects a CoalescePartitionsExec above, which spawns tasks on
//! a multi-threaded runtime. A query here runs inside the one task of its statement, so that it does the same in every
//! run: the inputs are read one after the other.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt};

/// Replaces every UnionExec by a [`ChainExec`]. Must be the first rule: those behind it insert what several partitions need.
#[derive(Debug)]
pub(super) struct ChainUnions;

impl PhysicalOptimizerRule for ChainUnions {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(union) = plan.downcast_ref::<UnionExec>() else {
                return Ok(Transformed::no(plan));
            };
            Ok(Transformed::yes(Arc::new(ChainExec::new(union.inputs().clone(), &plan)) as _))
        })
        .data()
    }

    fn name(&self) -> &str {
        "chain_unions"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Refuses a plan of which any node has more than one partition. The last rule: nothing may spawn.
#[derive(Debug)]
pub(super) struct OnePartition;

impl PhysicalOptimizerRule for OnePartition {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.apply(|node| match node.output_partitioning().partition_count() {
            0 | 1 => Ok(TreeNodeRecursion::Continue),
            count => Err(DataFusionError::NotImplemented(format!("{} in {count} partitions", node.name()))),
        })?;
        Ok(plan)
    }

    fn name(&self) -> &str {
        "one_partition"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The rows of the first input, then those of the second, and so on.
#[derive(Debug)]
struct ChainExec {
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
}

impl ChainExec {
    fn new(inputs: Vec<Arc<dyn ExecutionPlan>>, union: &Arc<dyn ExecutionPlan>) -> ChainExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(union.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        ChainExec { inputs, properties: Arc::new(properties) }
    }
}

impl DisplayAs for ChainExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("ChainExec")
    }
}

impl ExecutionPlan for ChainExec {
    fn name(&self) -> &str {
        "ChainExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(ChainExec { inputs, properties: self.properties.clone() }))
    }

    fn execute(&self, _partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let inputs = futures::stream::iter(self.inputs.clone());
        // An input starts when the one before it has ended.
        let batches = inputs.map(move |input| input.execute(0, context.clone())).try_flatten();
        let renamed = {
            let schema = schema.clone();
            batches.map(move |batch| {
                let batch = batch?;
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                Ok(RecordBatch::try_new_with_options(schema.clone(), batch.columns().to_vec(), &options)?)
            })
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, renamed)))
    }
}
