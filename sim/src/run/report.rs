//! What a run says when it is over: plain data, from the worker to the runner, to files and to people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::outcome::Outcome;

/// The report of one seed of one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedReport {
    /// How it ended.
    pub outcome: Outcome,
    /// What kind of failure: the same for two seeds that fail in the same way. Empty: it passed.
    pub signature: String,
    /// Hash over everything that happened, 32 hex digits; empty if the run did not get that far.
    pub fingerprint: String,
    /// The fingerprint after so many events, ascending: where two runs part is found between two of them.
    pub checkpoints: Vec<Checkpoint>,
    /// Events hashed.
    pub events: u64,
    /// How long it took, in virtual time.
    pub virtual_ms: u64,
    /// Time of processor that the worker took.
    pub cpu_ms: u64,
    /// The most memory that the worker had.
    pub peak_memory_kb: u64,
    /// Statements answered to clients.
    pub ops: u64,
    /// Rows committed, each counted once.
    pub rows: u64,
    /// How often each oracle evaluated something.
    pub oracles: BTreeMap<String, u64>,
    /// What exemptions excused, by oracle. Every exemption of the scenario is here, also one that excused nothing.
    pub exempted: BTreeMap<String, Exempted>,
    /// How much each fault did, by the name of an [`Effect`].
    pub effects: BTreeMap<String, u64>,
    /// How often each situation was reached that a sweep should reach, by the name of a [`Mark`](super::marks::Mark).
    pub marks: BTreeMap<String, u64>,
    /// What clients were told, by client, in its order: of each answer a checksum without times. Where the clients of a
    /// scenario own their rows it is the same under every schedule and every set of options.
    #[serde(default)]
    pub history: BTreeMap<String, Vec<u32>>,
    /// The rows of the scenario's `result` queries.
    pub result: Vec<ResultRows>,
    /// The story, as it is reviewed: no times, nodes by role.
    pub story: Vec<String>,
    /// What was decided during the run, by name.
    pub decisions: Vec<Decided>,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// What the exemption of one oracle excused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exempted {
    /// Why the scenario does not ask the oracle.
    pub reason: String,
    /// What the oracle found all the same.
    pub findings: u64,
    /// The first finding: signature and evidence.
    pub first: Vec<String>,
    /// It judged nothing at all.
    pub idle: bool,
}

impl Exempted {
    /// Whether the run needed the exemption.
    pub fn was_needed(&self) -> bool {
        self.findings > 0 || self.idle
    }
}

/// The fingerprint at one point of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Events before it.
    pub events: u64,
    /// Virtual time.
    pub virtual_ms: u64,
    /// The hash over them, 32 hex digits.
    pub hash: String,
}

/// What one `result` query returned at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultRows {
    /// The query.
    pub query: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows as text, sorted.
    pub rows: Vec<Vec<String>>,
}

/// Something that only the run could decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// What it was for.
    pub name: String,
    /// What it came to.
    pub value: String,
}

/// What went wrong, where, and what shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The oracle that found it; empty if none did (a panic, a limit).
    pub oracle: String,
    /// One sentence.
    pub what: String,
    /// Virtual time, as far as it is known.
    pub at_ms: Option<u64>,
    /// Keys, what was expected, what was found.
    pub evidence: Vec<String>,
    /// What happened around it.
    pub around: Vec<StoryLine>,
}

/// One line of what happened, for the columns of the failure screen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoryLine {
    /// Virtual time.
    pub at_ms: u64,
    /// The node, from 1; 0: the harness itself (a fault, a client).
    pub node: u64,
    /// What.
    pub text: String,
}

impl SeedReport {
    /// A report of a run of which nothing is known but its outcome.
    pub fn new(outcome: Outcome) -> SeedReport {
        SeedReport {
            outcome,
            signature: String::new(),
            fingerprint: String::new(),
            checkpoints: Vec::new(),
            events: 0,
            virtual_ms: 0,
            cpu_ms: 0,
            peak_memory_kb: 0,
            ops: 0,
            rows: 0,
            oracles: BTreeMap::new(),
            exempted: BTreeMap::new(),
            effects: BTreeMap::new(),
            marks: BTreeMap::new(),
            history: BTreeMap::new(),
            result: Vec::new(),
            story: Vec::new(),
            decisions: Vec::new(),
            failure: None,
        }
    }

    /// A report of a run that went wrong.
    pub fn failed(outcome: Outcome, signature: impl Into<String>, what: impl Into<String>) -> SeedReport {
        SeedReport::new(outcome).turned(outcome, signature, what)
    }

    /// The same run, judged anew.
    pub fn turned(mut self, outcome: Outcome, signature: impl Into<String>, what: impl Into<String>) -> SeedReport {
        self.outcome = outcome;
        self.signature = signature.into();
        let failure = self.failure.get_or_insert_default();
        failure.what = what.into();
        self
    }
}

macro_rules! effects {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// What a fault did. A fault whose effect stayed zero tested nothing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Effect {
            $($(#[$doc])* $name,)*
        }

        impl Effect {
            /// All, with the names that reports use.
            pub const ALL: &'static [(Effect, &'static str)] = &[$((Effect::$name, $text)),*];

            /// The name that reports use.
            pub fn name(self) -> &'static str {
                match self {
                    $(Effect::$name => $text),*
                }
            }
        }
    };
}

effects! {
    /// Nodes that lost power.
    PowerLosses = "power_losses",
    /// Processes that died while the machine stayed up.
    Crashes = "crashes",
    /// Nodes that a scenario started again, or for the first time since they were lost.
    Restarts = "restarts",
    /// Nodes that were stopped for a while.
    Pauses = "pauses",
    /// Nodes that a scenario let go on after a pause.
    Resumes = "resumes",
    /// Leaders that were asked to hand over.
    Transfers = "transfers",
    /// Bytes that were written and not synced when the power went.
    UnsyncedBytesLost = "unsynced_bytes_lost",
    /// Sectors of which a write reached the disk in part.
    SectorsTorn = "sectors_torn",
    /// Renames and new files that were gone because their directory was not synced.
    DirectoryEntriesLost = "directory_entries_lost",
    /// Disk operations that failed.
    IoErrors = "io_errors",
    /// Bytes of a disk that became others.
    Rotted = "bytes_rotted",
    /// Disk operations that were refused for lack of space.
    DiskFull = "disk_full",
    /// Disk operations that took long because of a fault.
    Stalls = "stalls",
    /// Connections that broke.
    ConnectionsCut = "connections_cut",
    /// Segments that were held back by a partition.
    SegmentsHeld = "segments_held",
    /// Partitions that a scenario healed before their time.
    Heals = "partitions_healed",
    /// Requests that never arrived.
    RequestsLost = "requests_lost",
    /// Answers that never arrived.
    AnswersLost = "answers_lost",
    /// Clocks that were set wrong.
    ClocksChanged = "clocks_changed",
    /// Starts of a node with other options than it had before.
    OptionsChanged = "options_changed",
}
