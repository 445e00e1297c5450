//! Oracles: each watches one promise of the product while the run goes on, and at its end.
//!
//! An oracle hears every [`Event`] synchronously, in the order in which they happened. It never awaits, draws or calls
//! back into the cluster. It counts how often it judged something: one that was due and never did makes a run vacuous.

mod clients;
mod fills;
pub mod images;
mod indexes;
pub mod model;
mod raft;
mod replicas;
mod scans;
mod views;

use std::time::Duration;

use engine::event::Event;
use engine::types::NodeId;

pub use clients::ClientOracle;
pub use fills::{FillOracle, Job};
pub use images::DiskImageOracle;
pub use indexes::IndexOracle;
pub use raft::RaftOracle;
pub use replicas::{ReplicaOracle, judge_checksums};
pub use scans::{ScanOracle, Scanned};
pub use views::ViewOracle;

/// Every oracle, as reports, exemptions and planted bugs name it. Each is due in every run, those of views and of indexes in every
/// run that has one: one that is due and judged nothing makes the run vacuous.
pub const NAMES: &[&str] = &[
    clients::NAME,
    images::NAME,
    fills::NAME,
    indexes::NAME,
    LIVENESS,
    raft::NAME,
    replicas::NAME,
    scans::NAME,
    views::NAME,
];

/// The oracle that the run itself is: it ends within its budget, and its replicas come together when the faults are over.
pub const LIVENESS: &str = "liveness";

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The oracle that saw it.
    pub oracle: &'static str,
    /// Names the kind of violation, the same for every seed that hits it.
    pub signature: String,
    /// What was expected and what was found, line by line, with the ids that a person needs.
    pub evidence: Vec<String>,
}

/// Watches one promise.
pub trait Oracle: Send {
    /// Its name, as reports and planted bugs use it.
    fn name(&self) -> &'static str;

    /// Judges what just happened on `node`, at virtual time `at`.
    fn on_event(&mut self, at: Duration, node: NodeId, event: &Event) -> Result<(), Violation>;

    /// The node lost its processes, and with `power` what its disk had not synced.
    fn on_crash(&mut self, node: NodeId, power: bool);

    /// How often it judged something.
    fn evaluations(&self) -> u64;
}
