//! One run: a plan in, a report out. Everything that happens in the simulation happens below [`run_plan`].
//!
//! It is called once per process, on a thread that did nothing before. It reads no environment, no clock, and no file
//! but the plan's data.

mod clients;
pub mod hub;
pub mod live;
pub mod log;
pub mod marks;
pub mod outcome;
pub mod report;
mod self_test;
mod simulate;
mod steps;
mod story;
mod strike;
pub mod watch;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::scenario::period::Period;
use live::Live;
use report::SeedReport;

pub use self_test::SelfTest;

/// What a run needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// What is done.
    pub plan: Plan,
    /// Where the plan's data files are. Never part of what happens.
    pub directory: PathBuf,
    /// Stops at this virtual time, with what is known then.
    pub until: Option<Period>,
}

/// Runs `setup`. The caller's thread must be fresh; `live` hears events (if they are recorded) and keeps what is known
/// if the run panics.
pub fn run_plan(setup: Setup, live: &Arc<Live>) -> SeedReport {
    simulate::run(&setup, live, None)
}

/// Runs a trial of the harness itself: a small run in which something misbehaves.
pub fn run_self_test(test: SelfTest, seed: u64, live: &Arc<Live>) -> SeedReport {
    simulate::run(&self_test::setup(test, seed), live, Some(test))
}
