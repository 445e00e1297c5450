//! `ADMIN CHECK MATERIALIZED VIEW`: the view against its query.
//!
//! The fill is paused, which ends it between two windows: then the view has what its feeders had at some sequence of each of their
//! regions, and nothing else; that is still readable, for the legs pin it. The query is run over just that, and the view is read
//! beside it. Rows that only one of them has are the answer. Afterwards the fill goes on, if it did before.
//!
//! Floats are compared as they are shown: a sum of floats may differ in its last digits, for DataFusion adds in another order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, AsArray};
use arrow::array::{ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session as Catalog;
use datafusion::datasource::{TableProvider, TableType};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

use super::deadline::Deadline;
use super::scan::RegionTable;
use super::system::batch;
use super::{Frontend, Output, Session};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::meta::request::ViewStatus;
use crate::sql::{JobVerb, Statement, Tables, parse};
use crate::types::{FillPosition, RegionId, Sequence, Value};

impl Session {
    pub(super) async fn check_view(&self, name: &str, deadline: Deadline) -> Result<Output> {
        let views = self.frontend().routes().views(deadline).await?;
        let view = views.into_iter().find(|status| status.view.name == name);
        let view = view
            .ok_or_else(|| Error::invalid(Invalid::UnknownTable, format!("there is no materialized view {name:?}")))?;
        if view.state != "ready" {
            let message =
                format!("materialized view {name} is {}; only a view that is ready can be checked", view.state);
            return Err(Error::invalid(Invalid::ViewNotReady, message));
        }
        let job = view.job.0;
        if !view.is_paused {
            self.control_job(job, JobVerb::Pause, deadline).await?;
        }
        let checked = self.check_paused(&view, deadline).await;
        if !view.is_paused {
            self.control_job(job, JobVerb::Resume, deadline).await?;
        }
        checked
    }

    async fn check_paused(&self, view: &ViewStatus, deadline: Deadline) -> Result<Output> {
        let frontend = self.frontend();
        let table = Arc::new(view.view.clone());
        let frontiers = frontend.settled(&table, deadline).await?;
        let def = table.view.as_ref().expect("it is a view");
        let mut legs: BTreeMap<String, Vec<Arc<dyn TableProvider>>> = BTreeMap::new();
        for (leg, feeder) in def.legs.iter().enumerate() {
            let read = frontend.routes().table(&feeder.name, deadline).await?;
            let upto = frontiers[leg].clone();
            let table = RegionTable::as_of(frontend.clone(), read, upto, deadline);
            legs.entry(feeder.name.clone()).or_default().push(Arc::new(table));
        }
        let scans =
            |(name, legs)| (name, Arc::new(Scans { legs, next: AtomicUsize::new(0) }) as Arc<dyn TableProvider>);
        let feeders: Tables = legs.into_iter().map(scans).collect();
        let Statement::Query(query) = parse(&def.query)? else {
            return Err(Error::invalid(Invalid::Mismatch, format!("the query of {} is none", table.name)));
        };
        let (schema, expected) = frontend.query_over(&query, feeders, std::time::Duration::ZERO, deadline).await?;
        let quoted = table.name.replace('"', "\"\"");
        let Statement::Query(all) = parse(&format!("SELECT * FROM \"{quoted}\""))? else {
            unreachable!("it is a query")
        };
        let (_, found) = frontend.query(&all, std::time::Duration::ZERO, deadline).await?;
        differences(&schema, &expected, &found)
    }
}

impl Frontend {
    /// Waits until no leg of a view that is paused is in the middle of something; answers for each leg up to which sequence of each
    /// region the view has everything.
    async fn settled(&self, table: &TableDef, deadline: Deadline) -> Result<Vec<BTreeMap<RegionId, Sequence>>> {
        let mut pauses = self.options().pauses();
        loop {
            if let Some(frontiers) = self.frontiers(table, deadline).await? {
                return Ok(frontiers);
            }
            if !deadline.pause(&mut pauses).await {
                return Err(Error::Deadline { waiting_for: format!("the fill of {} to pause", table.name) });
            }
        }
    }

    /// None: something is under way.
    async fn frontiers(
        &self,
        table: &TableDef,
        deadline: Deadline,
    ) -> Result<Option<Vec<BTreeMap<RegionId, Sequence>>>> {
        let mut positions = Vec::new();
        for region in &table.regions {
            positions.push(self.routes().positions(region, deadline).await?);
        }
        let mut all = Vec::new();
        for (number, leg) in table.view.iter().flat_map(|view| &view.legs).enumerate() {
            let feeder = self.routes().table(&leg.name, deadline).await?;
            let mut frontiers = BTreeMap::new();
            for region in &feeder.regions {
                let legs = self.routes().legs(region, deadline).await?;
                let at = |status: &&crate::region::request::LegStatus| {
                    status.leg.view == table.id && status.leg.leg == number as u32
                };
                let Some(status) = legs.iter().find(at).filter(|status| status.is_paused) else { return Ok(None) };
                let mut frontier = status.done;
                for of_region in &positions {
                    let position =
                        of_region.iter().find(|one| one.source.leg == number as u32 && one.source.feeder == region.id);
                    let position = position.map_or(FillPosition::default(), |one| one.position.clone());
                    if position.within.is_some() {
                        return Ok(None);
                    }
                    frontier = frontier.max(position.done);
                }
                frontiers.insert(region.id, frontier.unwrap_or_default());
            }
            all.push(frontiers);
        }
        // A window that was begun by then would have moved one of them.
        let again = self.positions_of(table, deadline).await?;
        Ok((again == positions).then_some(all))
    }

    async fn positions_of(
        &self,
        table: &TableDef,
        deadline: Deadline,
    ) -> Result<Vec<Vec<crate::region::request::PositionStatus>>> {
        // Longer than a batch takes to arrive.
        tokio::time::sleep(std::time::Duration::from_millis(self.options().rpc_timeout_ms.min(1_000))).await;
        let mut positions = Vec::new();
        for region in &table.regions {
            positions.push(self.routes().positions(region, deadline).await?);
        }
        Ok(positions)
    }
}

/// A table that a query scans several times: each scan is of a leg of its own, in the order in which they stand in the query.
#[derive(Debug)]
struct Scans {
    legs: Vec<Arc<dyn TableProvider>>,
    next: AtomicUsize,
}

#[async_trait]
impl TableProvider for Scans {
    fn schema(&self) -> SchemaRef {
        self.legs[0].schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Catalog,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.legs.len();
        self.legs[at].scan(state, projection, filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        self.legs[0].supports_filters_pushdown(filters)
    }
}

/// The rows that only one side has, each with how often.
fn differences(schema: &SchemaRef, expected: &[RecordBatch], found: &[RecordBatch]) -> Result<Output> {
    let mut counts: BTreeMap<Vec<Value>, i64> = BTreeMap::new();
    for (batches, one) in [(expected, -1), (found, 1)] {
        for batch in batches {
            let columns: Vec<ArrayRef> = batch.columns().iter().map(shown).collect();
            for row in 0..batch.num_rows() {
                let cells = columns.iter().map(|column| Value::of_cell(column, row)).collect();
                *counts.entry(cells).or_default() += one;
            }
        }
    }
    counts.retain(|_, count| *count != 0);
    let kind = |count: &i64| if *count < 0 { "missing" } else { "not expected" };
    let names: Vec<&String> = schema.fields().iter().map(|field| field.name()).collect();
    let row = |cells: &Vec<Value>| {
        let cells = names.iter().zip(cells).map(|(name, cell)| format!("{name} = {cell}"));
        cells.collect::<Vec<_>>().join(", ")
    };
    let (schema, batch) = batch(vec![
        ("difference", false, Arc::new(StringArray::from_iter_values(counts.values().map(kind)))),
        ("row", false, Arc::new(StringArray::from_iter_values(counts.keys().map(row)))),
        ("times", false, Arc::new(Int64Array::from_iter_values(counts.values().map(|count| count.abs())))),
    ])?;
    Ok(Output::Rows { schema, batches: vec![batch] })
}

/// Floats to nine digits.
fn shown(column: &ArrayRef) -> ArrayRef {
    let nine = |value: f64| format!("{value:.8e}").parse().unwrap_or(value);
    match column.data_type() {
        DataType::Float64 => {
            let cells = column.as_primitive::<Float64Type>();
            Arc::new(cells.iter().map(|cell| cell.map(nine)).collect::<Float64Array>())
        }
        DataType::Float32 => {
            let cells = column.as_primitive::<Float32Type>();
            Arc::new(cells.iter().map(|cell| cell.map(|cell| nine(cell.into()) as f32)).collect::<Float32Array>())
        }
        _ => column.slice(0, column.len()),
    }
}
