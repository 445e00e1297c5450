//! `SHOW JOBS`, and `sys.fills` with the same rows: what goes on behind a CREATE that was answered already.
//!
//! What a row says comes from logs, of meta and of the regions, never from what a node remembers: it is the same whoever leads.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMillisecondArray, UInt64Array};
use arrow::datatypes::SchemaRef;

use super::deadline::Deadline;
use super::system::{batch, texts};
use super::{Frontend, Output};
use crate::error::Result;
use crate::types::{ProcedureId, Timestamp};

/// A row of `SHOW JOBS`. None: not known.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// The procedure that does it, or did.
    pub id: ProcedureId,
    /// Of what it is a job.
    pub kind: &'static str,
    /// The name of that.
    pub object: String,
    /// How far it is, and whether it is paused.
    pub state: String,
    /// The step that meta is at, if something is being done.
    pub phase: Option<String>,
    /// Rounds that were begun where most were.
    pub round: Option<u64>,
    /// Scans of regions that are through.
    pub regions_done: u64,
    /// Scans of regions.
    pub regions_total: u64,
    /// Rows that were read, of which all that came is where it belongs.
    pub rows_done: Option<u64>,
    /// About how many there are to read, those included.
    pub rows_estimate: Option<u64>,
    /// The one of the other, 100 when nothing is left to do and never before. Falls when more is written than done.
    pub percent: Option<u64>,
    /// Versions that were written and are not done.
    pub lag: Option<u64>,
    /// How often another leader took over.
    pub leader_changes: Option<u64>,
    /// How often one began anew where it was.
    pub retries: Option<u64>,
    /// Rows a second that may be read of each region.
    pub rate_limit: Option<u64>,
    /// Why it has failed, or whom it waits for.
    pub last_error: Option<String>,
    /// When it was recorded, by the clock of meta's leader of then.
    pub started_at: Timestamp,
}

impl Frontend {
    pub(super) async fn show_jobs(&self, deadline: Deadline) -> Result<Output> {
        let (schema, batch) = self.jobs(deadline).await?;
        Ok(Output::Rows { schema, batches: vec![batch] })
    }

    /// One row for each job, by id.
    pub(super) async fn jobs(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let mut jobs = self.fill_jobs(deadline).await?;
        jobs.extend(self.index_jobs(deadline).await?);
        jobs.sort_by_key(|job| job.id);
        show(&jobs)
    }
}

fn show(jobs: &[Job]) -> Result<(SchemaRef, RecordBatch)> {
    let number =
        |value: fn(&Job) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(jobs.iter().map(value))) };
    let known =
        |value: fn(&Job) -> Option<u64>| -> ArrayRef { Arc::new(jobs.iter().map(value).collect::<UInt64Array>()) };
    let at = TimestampMillisecondArray::from_iter_values(jobs.iter().map(|job| job.started_at.0));
    batch(vec![
        ("job_id", false, number(|job| job.id.0)),
        ("kind", false, texts(jobs.iter().map(|job| Some(job.kind.to_string())))),
        ("object", false, texts(jobs.iter().map(|job| Some(job.object.clone())))),
        ("state", false, texts(jobs.iter().map(|job| Some(job.state.clone())))),
        ("phase", true, texts(jobs.iter().map(|job| job.phase.clone()))),
        ("round", true, known(|job| job.round)),
        ("regions_done", false, number(|job| job.regions_done)),
        ("regions_total", false, number(|job| job.regions_total)),
        ("rows_done", true, known(|job| job.rows_done)),
        ("rows_estimate", true, known(|job| job.rows_estimate)),
        ("percent", true, known(|job| job.percent)),
        ("lag", true, known(|job| job.lag)),
        ("leader_changes", true, known(|job| job.leader_changes)),
        ("retries", true, known(|job| job.retries)),
        ("rate_limit", true, known(|job| job.rate_limit)),
        ("last_error", true, texts(jobs.iter().map(|job| job.last_error.clone()))),
        ("started_at", false, Arc::new(at)),
    ])
}
