//! SELECT and EXPLAIN.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_plan::displayable;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::sql::sqlparser::ast;
use futures::StreamExt;
use tokio::time::timeout;

use super::deadline::Deadline;
use super::scan::{RegionScan, RegionTable};
use super::{Frontend, Output};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog;
use crate::sql::{Insert, Planner, Source, Statement, TARGET, Tables, explain_view, invalid};

impl Frontend {
    /// The rows of `query`, those of now or, where `staleness` is not 0, perhaps those of so long ago.
    pub(super) async fn query(
        &self,
        query: &ast::Query,
        staleness: Duration,
        deadline: Deadline,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        self.query_over(query, Tables::new(), staleness, deadline).await
    }

    /// The rows of `query`, which may name `tables` besides those of the catalog.
    ///
    /// All rows are collected before any is handed out, so a region that no longer keeps the versions that the query began
    /// to read costs a new beginning and not the statement.
    pub(super) async fn query_over(
        &self,
        query: &ast::Query,
        tables: Tables,
        staleness: Duration,
        deadline: Deadline,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let mut pauses = self.options().pauses();
        loop {
            let left = deadline.left().max(Duration::from_millis(1));
            let late = || Error::Deadline { waiting_for: "the rows of a query".to_string() };
            let once = timeout(left, self.query_once(query, tables.clone(), staleness, deadline));
            match once.await.unwrap_or_else(|_| Err(late())) {
                Err(Error::TooOld { .. }) if deadline.pause(&mut pauses).await => {}
                result => return result,
            }
        }
    }

    async fn query_once(
        &self,
        query: &ast::Query,
        tables: Tables,
        staleness: Duration,
        deadline: Deadline,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let tables = self.tables(query, tables, staleness, deadline).await?;
        let state = self.planner().at(self.shared.clock.now());
        let plan = self.planner().plan(&state, query, &tables)?;
        let physical = self.planner().physical(&state, &plan).await?;
        let batches = self.collect(physical.clone()).await?;
        Ok((physical.schema(), batches))
    }

    /// The rows of `plan`, as long as they fit into what a query may take.
    async fn collect(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Vec<RecordBatch>> {
        let limit = self.options().query_memory_bytes;
        let with_limit = |err: DataFusionError| match invalid(err) {
            Error::Invalid { code: Invalid::QueryTooLarge, message } => {
                Error::invalid(Invalid::QueryTooLarge, format!("{message}; query_memory_bytes = {limit}"))
            }
            err => err,
        };
        let task = self.planner().task(usize::try_from(limit).unwrap_or(usize::MAX));
        let taken = MemoryConsumer::new("result").register(task.memory_pool());
        let mut rows = execute_stream(plan, task).map_err(with_limit)?;
        let mut batches = Vec::new();
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(with_limit)?;
            taken.try_grow(bytes(&batch)).map_err(with_limit)?;
            batches.push(batch);
        }
        Ok(batches)
    }

    /// The tables that `query` names, added to `tables`.
    async fn tables(
        &self,
        query: &ast::Query,
        mut tables: Tables,
        staleness: Duration,
        deadline: Deadline,
    ) -> Result<Tables> {
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
            tables.insert(name, Arc::new(RegionTable::new(self.clone(), table, staleness, deadline)));
        }
        Ok(tables)
    }

    /// How `statement` would be run, and what each region would be asked for.
    pub(super) async fn explain(&self, statement: &Statement, deadline: Deadline) -> Result<Output> {
        let mut extra = Tables::new();
        let resolved;
        let query = match statement {
            Statement::CreateView(view) => {
                let catalog::CreateTable { schema, partition, view, .. } = self.resolve_view(view, deadline).await?;
                let view = view.as_deref().map(|view| explain_view(view, &schema, &partition));
                let lines = view.transpose()?.map(|text| ("view_plan".to_string(), text));
                return explained(&lines.into_iter().collect::<Vec<_>>());
            }
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
        let tables = self.tables(query, extra, Duration::ZERO, deadline).await?;
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
        let names: BTreeSet<String> = Planner::tables(query)?.into_iter().collect();
        for name in
            names.into_iter().filter(|name| tables.contains_key(name) && name != TARGET && !name.starts_with("sys."))
        {
            let Ok(table) = self.routes().table(&name, deadline).await else { continue };
            if let Some(view) = &table.view {
                lines.push((format!("view {name}"), explain_view(view, &table.schema, &table.partition)?));
            }
        }
        explained(&lines)
    }
}

fn explained(lines: &[(String, String)]) -> Result<Output> {
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

/// Memory of the cells. (Not of the arrays that they are slices of: several batches may share one.)
fn bytes(batch: &RecordBatch) -> usize {
    let bytes = |cells: &ArrayRef| cells.to_data().get_slice_memory_size().unwrap_or(cells.get_array_memory_size());
    batch.columns().iter().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Cluster;
    use super::*;
    use crate::options::Options;

    async fn rows(session: &super::super::Session, sql: &str) -> Result<usize> {
        match session.execute(sql).await? {
            Output::Rows { batches, .. } => Ok(batches.iter().map(RecordBatch::num_rows).sum()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_query_that_needs_too_much_memory_is_refused_and_says_what_to_do() {
        let options = Options { query_memory_bytes: 1 << 16, ..Cluster::options() };
        let session = Cluster::new().frontend_with(options).session();
        session.execute("CREATE TABLE t (a INT PRIMARY KEY, s STRING) WITH (regions = 3)").await.unwrap();
        for a in 0..100 {
            session.execute(&format!("INSERT INTO t VALUES ({a}, '{}')", "x".repeat(1_000))).await.unwrap();
        }
        // About 100 kB, of which the result, the operators or both have no place.
        for sql in
            ["SELECT * FROM t", "SELECT * FROM t ORDER BY s, a", "SELECT DISTINCT concat(s, CAST(a AS STRING)) FROM t"]
        {
            let err = rows(&session, sql).await.unwrap_err();
            assert_eq!(err.code(), "query_too_large", "{sql}: {err}");
            assert!(
                err.to_string().contains("LIMIT") && err.to_string().contains("query_memory_bytes = 65536"),
                "{err}"
            );
        }
        assert_eq!(rows(&session, "SELECT * FROM t WHERE a < 30").await.unwrap(), 30);
        assert_eq!(rows(&session, "SELECT a FROM t ORDER BY a").await.unwrap(), 100);
        assert_eq!(rows(&session, "SELECT count(s), max(s) FROM t").await.unwrap(), 1);
        // The new rows would not fit either; none of them is written.
        let err = session.execute("UPDATE t SET s = concat(s, 'y')").await.unwrap_err();
        assert_eq!(err.code(), "query_too_large");
        assert_eq!(rows(&session, "SELECT a FROM t WHERE s LIKE '%y'").await.unwrap(), 0);
    }
}
