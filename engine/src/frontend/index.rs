//! Statements about indexes. An index is a part of its table's schema: it comes and goes by an ALTER, and the regions' leaders
//! backfill it by themselves (`server::fill`).

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt64Array};
use arrow::datatypes::SchemaRef;
use futures::future::{join_all, try_join_all};

use super::deadline::Deadline;
use super::jobs::Job;
use super::route::mismatch;
use super::system::{batch, texts};
use super::{Frontend, Output, Session};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{IndexState, TableDef};
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::region::request::{IndexCheck, IndexStatus};
use crate::server::message::{Request, Response};
use crate::types::{Alteration, ColumnId, Condition, IndexDef, Predicate, Schema};

impl Session {
    pub(super) async fn create_index(
        &self,
        name: &str,
        table: &str,
        columns: &[String],
        if_not_exists: bool,
        deadline: Deadline,
    ) -> Result<Output> {
        self.alter(table, deadline, |table| {
            if table.schema.index(name).is_some() && if_not_exists {
                return Ok(Vec::new());
            }
            Ok(vec![Alteration::AddIndex { name: name.to_string(), columns: columns.to_vec() }])
        })
        .await
    }

    pub(super) async fn drop_index(
        &self,
        name: &str,
        table: &str,
        if_exists: bool,
        deadline: Deadline,
    ) -> Result<Output> {
        self.alter(table, deadline, |table| match table.schema.index(name) {
            None if if_exists => Ok(Vec::new()),
            _ => Ok(vec![Alteration::DropIndex { name: name.to_string() }]),
        })
        .await
    }

    /// Changes a table as `changes` says of what it is now; not at all, if that is nothing.
    pub(super) async fn alter(
        &self,
        table: &str,
        deadline: Deadline,
        changes: impl FnOnce(&TableDef) -> Result<Vec<Alteration>>,
    ) -> Result<Output> {
        // What is done already is done of the table as it is.
        self.frontend().routes().forget(table);
        let table = self.frontend().routes().table(table, deadline).await?;
        let alterations = changes(&table)?;
        if alterations.is_empty() {
            return Ok(Output::Done);
        }
        let open = self.begin(deadline).await?;
        let (name, of) = (table.name.clone(), (table.id, table.schema.version));
        let request = MetaRequest::AlterTable { name, of, alterations, request: open.name() };
        match self.meta(request, deadline).await? {
            MetaAnswer::Altered(table) => self.frontend().routes().remember(Arc::new(table)),
            other => return Err(mismatch(&other)),
        }
        Ok(Output::Done)
    }

    /// Waits until queries may use the index.
    pub(super) async fn wait_for_index(
        &self,
        name: &str,
        table: &str,
        timeout: Option<Duration>,
        deadline: Deadline,
    ) -> Result<Output> {
        let deadline = timeout.map_or(deadline, |timeout| Deadline::after(timeout.min(deadline.left())));
        let mut pauses = self.frontend().options().pauses();
        loop {
            self.frontend().routes().forget(table);
            let def = self.frontend().routes().table(table, deadline).await?;
            let index = known(&def, name)?;
            if is_ready(&def, index) {
                return Ok(Output::Done);
            }
            if !deadline.pause(&mut pauses).await {
                return Err(Error::Deadline { waiting_for: format!("index {name} of {table} to have all rows") });
            }
        }
    }
}

impl Frontend {
    /// One row for each region: how many rows it has, how many of them the index lacks, and what it has beyond.
    pub(super) async fn check_index(&self, name: &str, table: &str, deadline: Deadline) -> Result<Output> {
        self.routes().forget(table);
        let table = self.routes().table(table, deadline).await?;
        let index = known(&table, name)?.id;
        let asked = table.regions.iter().map(|region| async move {
            let request = Request::CheckIndex { region: region.id, index, here: false };
            match self.routes().region(region, &request, deadline).await.result? {
                Response::IndexChecked(check) => Ok(check),
                other => Err(mismatch(&other)),
            }
        });
        let checks = try_join_all(asked).await?;
        let number = |value: fn(&IndexCheck) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(checks.iter().map(value)))
        };
        let (schema, batch) = batch(vec![
            ("region", false, texts(checks.iter().map(|check| Some(check.region.to_string())))),
            ("rows", false, number(|check| check.rows)),
            ("missing", false, number(|check| check.missing)),
            ("extra", false, number(|check| check.extra)),
        ])?;
        Ok(Output::Rows { schema, batches: vec![batch] })
    }

    /// What `SHOW JOBS` says of the backfills.
    pub(super) async fn index_jobs(&self, deadline: Deadline) -> Result<Vec<Job>> {
        let tables = self.routes().tables(deadline).await?;
        let mut jobs = Vec::new();
        for table in tables.iter().filter(|table| !table.indexes.is_empty()) {
            let asked = table.regions.iter().map(|region| self.routes().indexes(region, deadline));
            let (mut known, mut error) = (Vec::new(), None);
            for answer in join_all(asked).await {
                match answer {
                    Ok(status) => known.extend(status),
                    Err(err) => error = Some(err.to_string()),
                }
            }
            for index in table.schema.indexes() {
                let Some(state) = table.indexes.get(&index.id) else { continue };
                let status: Vec<&IndexStatus> = known.iter().filter(|one| one.index == index.id).collect();
                jobs.push(job(table, index, *state, &status, error.clone()));
            }
        }
        Ok(jobs)
    }

    /// One row for each index.
    pub(super) async fn indexes(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let tables = self.routes().tables(deadline).await?;
        let of_table = |table: &'_ TableDef| -> Vec<(String, String, IndexDef, Option<IndexState>)> {
            let one = |index: &IndexDef| {
                let columns = index.columns.iter().filter_map(|id| {
                    let column = table.schema.columns().iter().find(|column| column.id == *id)?;
                    Some(column.name.clone())
                });
                let columns = columns.collect::<Vec<_>>().join(", ");
                (table.name.clone(), columns, index.clone(), table.indexes.get(&index.id).copied())
            };
            table.schema.indexes().iter().map(one).collect()
        };
        let all: Vec<_> = tables.iter().flat_map(of_table).collect();
        let jobs = all.iter().map(|(.., state)| state.map(|state| state.job.0));
        let ready: BooleanArray =
            all.iter().map(|(.., state)| Some(state.is_some_and(|state| state.is_ready))).collect();
        batch(vec![
            ("table_name", false, texts(all.iter().map(|(table, ..)| Some(table.clone())))),
            ("index_name", false, texts(all.iter().map(|(.., index, _)| Some(index.name.clone())))),
            ("columns", false, texts(all.iter().map(|(_, columns, ..)| Some(columns.clone())))),
            ("is_ready", false, Arc::new(ready)),
            ("job_id", true, Arc::new(jobs.collect::<UInt64Array>())),
        ])
    }
}

/// The row of `SHOW JOBS`: `status` is what those regions say that answered.
fn job(table: &TableDef, index: &IndexDef, state: IndexState, status: &[&IndexStatus], error: Option<String>) -> Job {
    let total = table.regions.len();
    let sum = |value: fn(&IndexStatus) -> u64| {
        (status.len() == total).then(|| status.iter().map(|one| value(one)).sum::<u64>())
    };
    let rows_done = sum(|one| one.read);
    // Each row has one version at least.
    let rows_estimate = sum(|one| if one.is_complete { one.read } else { one.rows.max(one.read) });
    let percent = match (state.is_ready, rows_done.zip(rows_estimate)) {
        (true, _) => Some(100),
        (false, None) => None,
        (false, Some((_, 0))) => Some(0),
        (false, Some((done, all))) => Some((done.saturating_mul(100) / all).min(99)),
    };
    let is_of = match (state.is_ready, index.is_paused) {
        (true, _) => "ready",
        (false, true) => "paused",
        (false, false) => "filling",
    };
    Job {
        id: state.job,
        kind: "index",
        object: format!("{} on {}", index.name, table.name),
        state: is_of.to_string(),
        phase: (!state.is_ready).then(|| "indexing".to_string()),
        // There is one, and what is written meanwhile is no concern of it.
        round: Some(1),
        regions_done: status.iter().filter(|one| one.is_complete).count() as u64,
        regions_total: total as u64,
        rows_done,
        rows_estimate,
        percent,
        lag: Some(0),
        leader_changes: sum(|one| one.takeovers),
        retries: sum(|one| one.retries),
        rate_limit: index.rate_limit,
        last_error: error,
        started_at: state.started_at,
    }
}

/// The index that narrows most what is read by these conditions; none: no index does more than the row key.
pub(super) fn choose<'a>(table: &'a TableDef, predicates: &[Predicate]) -> Option<&'a IndexDef> {
    let schema = &table.schema;
    let key = schema.key();
    let of_key = narrowed(predicates, key.iter().map(|at| schema.columns()[*at].name.as_str()));
    let ready = schema.indexes().iter().filter(|index| is_ready(table, index));
    let scored = ready.map(|index| (narrowed(predicates, columns(schema, index)), index));
    // Of equals the one that was there first.
    let best = scored.reduce(|best, other| if other.0 > best.0 { other } else { best })?;
    (best.0 > of_key).then_some(best.1)
}

/// How many leading columns are equal to something, and whether the next one is bounded.
fn narrowed<'a>(predicates: &[Predicate], columns: impl Iterator<Item = &'a str>) -> (usize, bool) {
    let mut equal = 0;
    for name in columns {
        let mine = || predicates.iter().filter(|predicate| predicate.column == name).map(|one| &one.condition);
        if mine().any(|condition| matches!(condition, Condition::Eq(_) | Condition::IsNull)) {
            equal += 1;
            continue;
        }
        let bounds = |condition: &Condition| !matches!(condition, Condition::NotEq(_) | Condition::IsNotNull);
        return (equal, mine().any(bounds));
    }
    (equal, false)
}

fn columns<'a>(schema: &'a Schema, index: &'a IndexDef) -> impl Iterator<Item = &'a str> {
    let name = |id: &ColumnId| {
        let column = schema.columns().iter().find(|column| column.id == *id);
        column.map(|column| column.name.as_str())
    };
    index.columns.iter().filter_map(name)
}

fn is_ready(table: &TableDef, index: &IndexDef) -> bool {
    table.indexes.get(&index.id).is_some_and(|state| state.is_ready)
}

fn known<'a>(table: &'a TableDef, name: &str) -> Result<&'a IndexDef> {
    let unknown = || Error::invalid(Invalid::UnknownIndex, format!("table {} has no index {name:?}", table.name));
    table.schema.index(name).ok_or_else(unknown)
}
