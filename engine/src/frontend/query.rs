//! SELECT and EXPLAIN.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::displayable;
use datafusion::physical_plan::execution_plan::collect;
use datafusion::sql::sqlparser::ast;
use tokio::time::{Instant, sleep, timeout};

use super::scan::{RegionScan, RegionTable};
use super::{Frontend, Output, now};
use crate::error::{Error, Invalid, Result};
use crate::sql::{Insert, Planner, Source, Statement, TARGET, Tables, invalid};

impl Frontend {
    /// The rows of `query`.
    pub(super) async fn query(&self, query: &ast::Query, deadline: Instant) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        self.query_over(query, Tables::new(), deadline).await
    }

    /// The rows of `query`, which may name `tables` besides those of the catalog.
    ///
    /// All rows are collected before any is handed out, so a region that no longer keeps the versions that the query began
    /// to read costs a new beginning and not the statement.
    pub(super) async fn query_over(
        &self,
        query: &ast::Query,
        tables: Tables,
        deadline: Instant,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let mut pause = Duration::from_millis(self.options().retry_min_ms);
        loop {
            let left = deadline.saturating_duration_since(now()).max(Duration::from_millis(1));
            let late = || Error::Deadline { waiting_for: "the rows of a query".to_string() };
            let once = timeout(left, self.query_once(query, tables.clone(), deadline));
            match once.await.unwrap_or_else(|_| Err(late())) {
                Err(err @ Error::TooOld { .. }) if now() + pause >= deadline => return Err(err),
                Err(Error::TooOld { .. }) => {}
                result => return result,
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(self.options().retry_max_ms));
        }
    }

    async fn query_once(
        &self,
        query: &ast::Query,
        tables: Tables,
        deadline: Instant,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let tables = self.tables(query, tables, deadline).await?;
        let state = self.planner().at(self.shared.clock.now());
        let plan = self.planner().plan(&state, query, &tables)?;
        let physical = self.planner().physical(&state, &plan).await?;
        let schema = physical.schema();
        let batches = collect(physical, self.planner().task()).await.map_err(invalid)?;
        Ok((schema, batches))
    }

    /// The tables that `query` names, added to `tables`.
    async fn tables(&self, query: &ast::Query, mut tables: Tables, deadline: Instant) -> Result<Tables> {
        for name in Planner::tables(query)? {
            if tables.contains_key(&name) {
                continue;
            }
            if let Some(system) = name.strip_prefix("sys.") {
                let table = self.system_table(system, deadline).await?;
                tables.insert(name, table);
                continue;
            }
            if self.planner().is_table_function(&name) {
                continue;
            }
            let table = self.routes().table(&name, deadline).await?;
            tables.insert(name, Arc::new(RegionTable::new(self.clone(), table, deadline)));
        }
        Ok(tables)
    }

    /// How `statement` would be run, and what each region would be asked for.
    pub(super) async fn explain(&self, statement: &Statement, deadline: Instant) -> Result<Output> {
        let mut extra = Tables::new();
        let resolved;
        let query = match statement {
            Statement::Query(query) => query.as_ref(),
            Statement::Insert(Insert { source: Source::Query(query), .. }) => query.as_ref(),
            Statement::Change(change) => {
                resolved = self.resolve(change, deadline).await?;
                let target = RegionTable::target(self.clone(), resolved.table.clone(), None, deadline);
                extra.insert(TARGET.to_string(), Arc::new(target));
                &resolved.query
            }
            _ => return Err(Error::invalid(Invalid::Unsupported, "EXPLAIN of a statement that reads no table")),
        };
        let tables = self.tables(query, extra, deadline).await?;
        let state = self.planner().at(self.shared.clock.now());
        let plan = self.planner().plan(&state, query, &tables)?;
        let optimized = state.optimize(&plan).map_err(invalid)?;
        let physical = self.planner().physical(&state, &plan).await?;
        let mut lines = vec![
            ("logical_plan".to_string(), optimized.display_indent().to_string()),
            (
                "physical_plan".to_string(),
                displayable(physical.as_ref()).indent(false).to_string().trim_end().to_string(),
            ),
        ];
        physical
            .apply(|node| {
                if let Some(scan) = node.downcast_ref::<RegionScan>() {
                    lines.extend(scan.explain());
                }
                Ok(TreeNodeRecursion::Continue)
            })
            .map_err(invalid)?;
        let schema = Arc::new(ArrowSchema::new(vec![
            Field::new("plan_type", DataType::Utf8, false),
            Field::new("plan", DataType::Utf8, false),
        ]));
        let kinds = StringArray::from_iter_values(lines.iter().map(|(kind, _)| kind));
        let texts = StringArray::from_iter_values(lines.iter().map(|(_, text)| text));
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(kinds), Arc::new(texts)])
            .map_err(|err| invalid(err.into()))?;
        Ok(Output::Rows { schema, batches: vec![batch] })
    }
}
