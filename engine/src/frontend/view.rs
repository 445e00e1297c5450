//! Statements about materialized views and their fills.
//!
//! `CREATE MATERIALIZED VIEW` is answered when the view is in the catalog: its fill goes on by itself (`server::fill`). What is
//! shown of it here is what the logs of the regions say, so it holds whoever leads next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMillisecondArray, UInt32Array, UInt64Array};
use arrow::datatypes::SchemaRef;
use futures::future::join_all;

use super::deadline::Deadline;
use super::jobs::Job;
use super::route::mismatch;
use super::system::{batch, texts};
use super::{Frontend, Output, Session};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{CreateTable, RegionDef, TableDef};
use crate::meta::request::{Control, MetaAnswer, MetaRequest, ViewStatus};
use crate::region::request::{LegStatus, PositionStatus};
use crate::sql::{CreateView, JobVerb};
use crate::types::{ProcedureId, RegionId};

impl Session {
    pub(super) async fn create_view(&self, view: &CreateView, deadline: Deadline) -> Result<Output> {
        let table = self.frontend().resolve_view(view, deadline).await?;
        let open = self.begin(deadline).await?;
        let request = MetaRequest::CreateTable { table, request: open.name() };
        match self.meta(request, deadline).await? {
            MetaAnswer::Created(table) => self.frontend().routes().remember(Arc::new(table)),
            other => return Err(mismatch(&other)),
        }
        Ok(Output::Done)
    }

    pub(super) async fn refill_view(&self, name: &str, deadline: Deadline) -> Result<Output> {
        let open = self.begin(deadline).await?;
        let answer =
            self.meta(MetaRequest::RefillView { name: name.to_string(), request: open.name() }, deadline).await;
        self.frontend().routes().forget(name);
        match answer? {
            MetaAnswer::Created(table) => self.frontend().routes().remember(Arc::new(table)),
            other => return Err(mismatch(&other)),
        }
        Ok(Output::Done)
    }

    pub(super) async fn control_job(&self, job: u64, verb: JobVerb, deadline: Deadline) -> Result<Output> {
        let control = match verb {
            JobVerb::Pause => Control::Pause,
            JobVerb::Resume => Control::Resume,
            JobVerb::Cancel => Control::Cancel,
            JobVerb::RateLimit(limit) => Control::RateLimit(limit),
        };
        let open = self.begin(deadline).await?;
        let request = MetaRequest::ControlJob { job: ProcedureId(job), control, request: open.name() };
        match self.meta(request, deadline).await? {
            MetaAnswer::Controlled => Ok(Output::Done),
            MetaAnswer::Altered(table) => {
                self.frontend().routes().remember(Arc::new(table));
                Ok(Output::Done)
            }
            MetaAnswer::Dropped(_) => {
                self.frontend().routes().forget_tables();
                Ok(Output::Done)
            }
            other => Err(mismatch(&other)),
        }
    }

    /// Waits until the view may be read.
    pub(super) async fn wait_for_view(
        &self,
        name: &str,
        timeout: Option<Duration>,
        deadline: Deadline,
    ) -> Result<Output> {
        let deadline = timeout.map_or(deadline, |timeout| Deadline::after(timeout.min(deadline.left())));
        let mut pauses = self.frontend().options().pauses();
        loop {
            let views = self.frontend().routes().views(deadline).await?;
            let view = views.into_iter().find(|status| status.view.name == name);
            let view = view.ok_or_else(|| {
                Error::invalid(Invalid::UnknownTable, format!("there is no materialized view {name:?}"))
            })?;
            match (view.state.as_str(), view.failed) {
                ("ready", _) => return Ok(Output::Done),
                (_, Some(reason)) => {
                    let message = format!("materialized view {name} has failed: {reason}");
                    return Err(Error::invalid(Invalid::ViewFailed, message));
                }
                _ => {}
            }
            if !deadline.pause(&mut pauses).await {
                return Err(Error::Deadline { waiting_for: format!("materialized view {name} to be filled") });
            }
        }
    }
}

/// How far a view is, as its feeders' regions and its own say; those of them that answered.
struct Fill {
    status: ViewStatus,
    legs: Vec<LegStatus>,
    /// How many there are.
    total: usize,
    positions: Vec<PositionStatus>,
    /// Of the regions that did not answer.
    error: Option<String>,
}

impl Fill {
    /// The row of `SHOW JOBS`. What only some of the regions know is NULL unless all of them said it: before they are told of the
    /// view, while one does not answer, and when it has failed and they have let go of it.
    fn job(&self) -> Job {
        let sum = |value: fn(&LegStatus) -> u64| self.of_all(|legs| legs.iter().map(value).sum());
        // Two scans of a region are taken over together.
        let begun = |value: fn(&LegStatus) -> u64| {
            self.of_all(|legs| {
                let mut most: BTreeMap<RegionId, u64> = BTreeMap::new();
                for leg in legs {
                    let known = most.entry(leg.feeder).or_default();
                    *known = value(leg).max(*known);
                }
                most.values().sum()
            })
        };
        let state = match (self.status.state.as_str(), self.status.is_paused) {
            ("filling", true) => "paused",
            (state, _) => state,
        };
        let rows_done = self.of_all(|legs| legs.iter().map(|leg| self.rows(leg).0).sum());
        let rows_estimate = self.of_all(|legs| legs.iter().map(|leg| self.rows(leg).1).sum());
        let percent = match (state, rows_done.zip(rows_estimate)) {
            ("ready", _) => Some(100),
            (_, None) => None,
            (_, Some((_, 0))) => Some(0),
            // What is left when all rows were read once is not known to be little.
            (_, Some((done, all))) => u64::try_from(u128::from(done) * 100 / u128::from(all)).ok().map(|of| of.min(99)),
        };
        Job {
            id: self.status.job,
            kind: "materialized view",
            object: self.status.view.name.clone(),
            state: state.to_string(),
            phase: self.status.step.clone(),
            round: self.of_all(|legs| legs.iter().map(|leg| leg.round).max().unwrap_or_default()),
            regions_done: self.legs.iter().filter(|leg| leg.is_level).count() as u64,
            regions_total: self.total as u64,
            rows_done,
            rows_estimate,
            percent,
            lag: sum(|leg| leg.sequence.0 - leg.done.map_or(0, |done| done.0)),
            leader_changes: begun(|leg| leg.takeovers),
            retries: begun(|leg| leg.retries),
            rate_limit: self.status.rate_limit,
            last_error: self.last_error(),
            started_at: self.status.started_at,
        }
    }

    fn of_all(&self, value: impl Fn(&[LegStatus]) -> u64) -> Option<u64> {
        (self.legs.len() == self.total).then(|| value(&self.legs))
    }

    /// Rows that were read for the leg before it was live, of which all that came is in the view; and about how many there are to
    /// read.
    fn rows(&self, leg: &LegStatus) -> (u64, u64) {
        let of_window = |one: &&PositionStatus| {
            let is_source = one.source.leg == leg.leg.leg && one.source.feeder == leg.feeder;
            is_source && leg.upto.is_some() && one.position.upto() == leg.upto
        };
        let settled = self.positions.iter().filter(of_window).map(|one| one.settled).max().unwrap_or_default();
        let done = leg.read + settled;
        let left = match (leg.is_live, leg.done) {
            (true, _) => 0,
            // Each row has one version at least.
            (false, None) => leg.rows.saturating_sub(settled),
            (false, Some(through)) => (leg.sequence.0 - through.0).saturating_sub(settled),
        };
        (done, done + left)
    }

    fn last_error(&self) -> Option<String> {
        let of_leg = self.legs.iter().find_map(|leg| leg.failed.clone());
        self.status.failed.clone().or(of_leg).or_else(|| self.error.clone())
    }
}

impl Frontend {
    /// What meta would be asked to create.
    pub(super) async fn resolve_view(&self, view: &CreateView, deadline: Deadline) -> Result<CreateTable> {
        let mut feeders = BTreeMap::new();
        for name in view.feeders()? {
            let table = self.routes().table(&name, deadline).await?;
            feeders.insert(name, table);
        }
        let now = self.shared.clock.now();
        view.resolve(&feeders, &self.planner().evaluator(now))
    }

    /// The views with what is known of their fills.
    async fn fills(&self, deadline: Deadline) -> Result<Vec<Fill>> {
        let views = self.routes().views(deadline).await?;
        let tables = self.routes().tables(deadline).await?;
        let region_of = |table: &TableDef| table.regions.clone();
        let mut fills = Vec::new();
        for status in views {
            let view = status.view.view.as_ref();
            let feeders = view.iter().flat_map(|view| &view.legs).map(|leg| leg.feeder);
            let mut feeders: Vec<_> = feeders.collect();
            let legs_of = |feeder| view.iter().flat_map(|view| &view.legs).filter(|leg| leg.feeder == feeder).count();
            let total = |table: &TableDef| table.regions.len() * legs_of(table.id);
            feeders.sort_unstable();
            feeders.dedup();
            let feeders: Vec<&TableDef> = tables.iter().filter(|table| feeders.contains(&table.id)).collect();
            let total = feeders.iter().map(|table| total(table)).sum();
            let regions: Vec<RegionDef> = feeders.iter().flat_map(|table| region_of(table)).collect();
            let asked = join_all(regions.iter().map(|region| self.routes().legs(region, deadline))).await;
            let own =
                join_all(status.view.regions.iter().map(|region| self.routes().positions(region, deadline))).await;
            let (mut legs, mut positions, mut error) = (Vec::new(), Vec::new(), None);
            for answer in asked {
                match answer {
                    Ok(answer) => legs.extend(answer.into_iter().filter(|leg| leg.leg.view == status.view.id)),
                    Err(err) => error = Some(err.to_string()),
                }
            }
            for answer in own {
                match answer {
                    Ok(answer) => positions.extend(answer),
                    Err(err) => error = Some(err.to_string()),
                }
            }
            fills.push(Fill { status, legs, total, positions, error });
        }
        Ok(fills)
    }

    /// What `SHOW JOBS` says of the fills.
    pub(super) async fn fill_jobs(&self, deadline: Deadline) -> Result<Vec<Job>> {
        Ok(self.fills(deadline).await?.iter().map(Fill::job).collect())
    }

    /// One row for each view: what it is.
    pub(super) async fn views(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let views = self.routes().views(deadline).await?;
        let reads = |status: &ViewStatus| {
            let legs = status.view.view.iter().flat_map(|view| &view.legs);
            legs.map(|leg| leg.name.clone()).collect::<Vec<_>>().join(", ")
        };
        let query = |status: &ViewStatus| status.view.view.as_ref().map(|view| view.query.clone());
        batch(vec![
            ("view_id", false, Arc::new(UInt32Array::from_iter_values(views.iter().map(|status| status.view.id.0)))),
            ("view_name", false, texts(views.iter().map(|status| Some(status.view.name.clone())))),
            ("state", false, texts(views.iter().map(|status| Some(status.state.clone())))),
            ("job_id", false, Arc::new(UInt64Array::from_iter_values(views.iter().map(|status| status.job.0)))),
            ("reads", false, texts(views.iter().map(|status| Some(reads(status))))),
            ("query", false, texts(views.iter().map(query))),
            ("failed", true, texts(views.iter().map(|status| status.failed.clone()))),
        ])
    }

    /// One row for each leg at each region of its feeder.
    pub(super) async fn fill_regions(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let fills = self.fills(deadline).await?;
        let legs: Vec<(&String, &LegStatus)> =
            fills.iter().flat_map(|fill| fill.legs.iter().map(|leg| (&fill.status.view.name, leg))).collect();
        let number = |value: fn(&LegStatus) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(legs.iter().map(|(_, leg)| value(leg))))
        };
        let known = |value: fn(&LegStatus) -> Option<u64>| -> ArrayRef {
            Arc::new(legs.iter().map(|(_, leg)| value(leg)).collect::<UInt64Array>())
        };
        let phase = |leg: &LegStatus| match leg {
            LegStatus { failed: Some(_), .. } => "failed",
            LegStatus { is_paused: true, .. } => "paused",
            LegStatus { is_level: true, .. } => "level",
            LegStatus { is_live: true, .. } => "live",
            LegStatus { round: 0, .. } => "attached",
            _ => "filling",
        };
        let paused = BooleanArray::from(legs.iter().map(|(_, leg)| leg.is_paused).collect::<Vec<_>>());
        let at = TimestampMillisecondArray::from_iter_values(legs.iter().map(|(_, leg)| leg.at.0));
        batch(vec![
            ("view_name", false, texts(legs.iter().map(|(view, _)| Some((*view).clone())))),
            ("leg", false, number(|leg| u64::from(leg.leg.leg))),
            ("region", false, texts(legs.iter().map(|(_, leg)| Some(leg.feeder.to_string())))),
            ("phase", false, texts(legs.iter().map(|(_, leg)| Some(phase(leg).to_string())))),
            ("round", false, number(|leg| leg.round)),
            ("v_from", true, known(|leg| leg.done.map(|done| done.0))),
            ("v_to", true, known(|leg| leg.upto.map(|upto| upto.0))),
            ("pin", true, known(|leg| leg.done.or(leg.upto).map(|pin| pin.0))),
            ("sequence", false, number(|leg| leg.sequence.0)),
            ("epoch", false, number(|leg| leg.epoch)),
            ("takeovers", false, number(|leg| leg.takeovers)),
            ("retries", false, number(|leg| leg.retries)),
            ("rows_read", false, number(|leg| leg.read)),
            ("is_paused", false, Arc::new(paused)),
            ("since", false, Arc::new(at)),
        ])
    }

    /// One row for each source of each region of each view.
    pub(super) async fn fill_positions(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let fills = self.fills(deadline).await?;
        let all: Vec<(&String, &PositionStatus)> =
            fills.iter().flat_map(|fill| fill.positions.iter().map(|one| (&fill.status.view.name, one))).collect();
        let number = |value: fn(&PositionStatus) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(all.iter().map(|(_, one)| value(one))))
        };
        batch(vec![
            ("view_name", false, texts(all.iter().map(|(view, _)| Some((*view).clone())))),
            ("region", false, texts(all.iter().map(|(_, one)| Some(one.region.to_string())))),
            ("leg", false, number(|one| u64::from(one.source.leg))),
            ("feeder", false, texts(all.iter().map(|(_, one)| Some(one.source.feeder.to_string())))),
            ("position", false, texts(all.iter().map(|(_, one)| Some(one.position.to_string())))),
            ("read", false, number(|one| one.read)),
            ("settled", false, number(|one| one.settled)),
            ("epoch", false, number(|one| one.epoch)),
        ])
    }
}

/// A view has only the rows that its query gives.
pub(super) fn refuse_view(table: &TableDef, verb: &str) -> Result<()> {
    if table.view.is_none() {
        return Ok(());
    }
    let message = format!("{verb} {}, which is a materialized view: write to what it reads", table.name);
    Err(Error::invalid(Invalid::Unsupported, message))
}
