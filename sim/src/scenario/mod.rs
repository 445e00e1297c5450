//! Scenarios: what is run, which faults strike when, and what must be true of it.
//!
//! A scenario is a TOML file in `scenarios/`. [`read`] makes plain data of it or says at which line and column it is
//! wrong. Random choices are not made here but in [`crate::plan`]; nothing here knows how a verb is carried out.

pub mod condition;
mod decode;
pub mod durable;
pub mod fault;
pub mod happened;
mod matrix;
pub mod period;
pub mod position;
mod raw;
pub mod schema;
pub mod sql_type;
pub mod target;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::options::Options;
use serde::{Deserialize, Serialize};

use crate::run::outcome::Outcome;
use condition::Condition;
use durable::Durable;
use fault::{Fault, StormKind};
use happened::Happened;
use period::Period;
use position::{Problem, Problems};
use sql_type::SqlType;
use target::{Regions, Target};

/// One scenario as its file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The file's stem.
    pub name: String,
    /// Where the file is: paths of data are relative to it.
    pub directory: PathBuf,
    /// The first comment: goal and method.
    pub goal: String,
    /// One line.
    pub title: String,
    /// Pinned seeds: run in every `cargo test`, with a reviewed story.
    pub seeds: Vec<u64>,
    /// Virtual time after which the run has failed.
    pub budget: Period,
    /// The nodes.
    pub cluster: Cluster,
    /// What is done, in order; each step waits for the one before.
    pub steps: Vec<Step>,
    /// What is done at events.
    pub rules: Vec<DrawnRule>,
    /// Clients beside the steps.
    pub workloads: Vec<Workload>,
    /// Random faults.
    pub storms: Vec<Storm>,
    /// What must be true.
    pub expect: Expect,
    /// With a matrix: the scenario of each cell, with the name of the cell; what is said above is the first one's.
    pub cells: Vec<(String, Scenario)>,
}

impl Scenario {
    /// What a seed runs: this scenario, or one of its cells, with the cell's name. Cells take turns.
    pub fn of_seed(&self, seed: u64) -> (&Scenario, Option<&str>) {
        let turn = seed % (self.cells.len() as u64).max(1);
        match self.cells.get(turn as usize) {
            Some((name, cell)) => (cell, Some(name)),
            None => (self, None),
        }
    }
}

/// The nodes of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// How many.
    pub nodes: u32,
    /// Their options: the scenario's over the simulation's over the product's.
    pub options: Options,
}

/// One step, with the line of the file that it stands on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Line of the scenario, for reports.
    pub line: u32,
    /// What is done.
    #[serde(rename = "do")]
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A statement.
    Sql(Statement),
    /// Rows of a file, inserted.
    Load(Load),
    /// Waits for the statement that was started under this name, and checks its outcome.
    Join(String),
    /// Waits for a state of the cluster.
    Wait(Wait),
    /// A query that must return no row, now.
    Check(String),
    /// Lets virtual time pass.
    Sleep(Period),
    /// The same steps several times.
    Repeat {
        /// How often.
        times: u32,
        /// What.
        steps: Vec<Step>,
    },
    /// A fault, on purpose.
    Fault(Fault),
}

/// One SQL statement and what must come of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The text.
    pub sql: String,
    /// Must fail with this code.
    pub error: Option<String>,
    /// Must affect or return so many rows.
    pub rows: Option<u64>,
    /// Who says it; statements of one client share a session. None: the client of the steps.
    pub client: Option<String>,
    /// Which node it is said to. None: the client's choice.
    pub node: Option<Target>,
    /// Must be answered within.
    pub within: Option<Period>,
    /// What the client does with an unknown outcome.
    pub unknown: Unknown,
    /// Goes on without waiting, under this name, until a `join`.
    pub start: Option<String>,
}

/// What a client does when nobody knows whether its statement was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// Takes it for a failure of the step.
    #[default]
    Fail,
    /// Sends it again under the same request id until it is answered.
    Retry,
}

/// Rows of a file, inserted batch by batch below the parser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Into this table.
    pub table: String,
    /// A Parquet file, relative to the scenario.
    pub file: String,
    /// The first so many rows; none: all.
    pub rows: Option<u64>,
    /// Rows of one INSERT.
    pub batch: u64,
    /// The batches are ingested as files of this name and a number, so that none is written twice; none: they are inserted.
    pub ingest: Option<String>,
    /// Columns of the file that are cast before they become the table's, with the type.
    pub casts: BTreeMap<String, SqlType>,
    /// See [`Statement::client`].
    pub client: Option<String>,
    /// All must be answered within.
    pub within: Option<Period>,
    /// See [`Statement::unknown`].
    pub unknown: Unknown,
    /// See [`Statement::start`].
    pub start: Option<String>,
}

/// Waits until something holds; fails when the time is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// What must hold.
    pub until: Until,
    /// For how long it is waited.
    pub within: Period,
}

/// What can be waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The relation exists and can be used; a view is READY.
    Ready(String),
    /// Each of these regions has a leader that answers.
    Leader(Regions),
    /// All replicas of these regions applied the same entry and have the same content.
    Converged(Regions),
    /// These nodes run.
    Up(Target),
    /// These nodes do not run.
    Down(Target),
    /// Such an event happened (since the start, or since the last wait for it).
    Event(Condition),
    /// The rule of this name struck.
    Fired(String),
}

/// A rule of which the seed draws at which event it strikes.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnRule {
    /// The rule; its `nth` is the least.
    pub rule: Rule,
    /// The most.
    pub nth_most: u64,
}

/// What is done at an event, armed from the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// For reports and `wait = { fired = ".." }`.
    pub name: String,
    /// Line of the scenario, for reports.
    pub line: u32,
    /// Which events count.
    pub on: Trigger,
    /// It strikes at the n-th of them.
    pub nth: u64,
    /// It strikes so often at most, at consecutive events.
    pub times: u64,
    /// It strikes so long after the event.
    pub after: Option<Period>,
    /// It counts and strikes once for each of these; none: once.
    pub each: Option<Each>,
    /// What is done.
    #[serde(rename = "do")]
    pub fault: Fault,
}

/// What a rule waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// An event of the product.
    Event(Condition),
    /// A moment before or after something on a disk comes to last.
    Durable(Durable),
}

/// What a rule counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Each {
    /// `node`: the node of the event.
    Node,
    /// `region`: the region of the event.
    Region,
    /// `region of flights`: the region of the event, if it is one of the table.
    RegionOf(String),
    /// `replica`: the replica of the event.
    Replica,
}

/// Clients that do something of a kind beside the steps; ends by count, never by time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// For reports and the names of its draws.
    pub name: String,
    /// What they do.
    pub kind: WorkloadKind,
    /// How many clients.
    pub clients: u32,
    /// Statements of all clients together.
    pub ops: u64,
}

/// What the clients of a workload do. Each client owns its keys, so that the end does not depend on the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// Statements in these proportions on rows of a table.
    Mutate {
        /// The table.
        table: String,
        /// The proportions.
        mix: Mix,
        /// How old reads may be; none: not at all.
        staleness: Option<Period>,
    },
    /// `UPDATE .. SET column = column + 1`, exactly once each.
    Increment {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
}

/// Proportions of a [`WorkloadKind::Mutate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Mix {
    pub insert: u32,
    pub update: u32,
    pub delete: u32,
    pub read: u32,
}

/// Random faults, drawn per seed before the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Storm {
    /// For the names of its draws and faults.
    pub name: String,
    /// Which faults.
    pub kinds: Vec<StormKind>,
    /// From this moment after the start of the steps.
    pub from: Period,
    /// Until this moment.
    pub until: Period,
    /// How far two faults of one kind are apart, on average.
    pub every: Period,
    /// Whom they hit, one drawn each time.
    pub targets: Vec<Target>,
}

/// What must be true of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Queries whose rows at the end are the same for every seed, and are reviewed.
    pub result: Vec<String>,
    /// Queries that return no row at the end.
    pub holds: Vec<Held>,
    /// What must have happened, or the run showed nothing.
    pub happened: Vec<Happened>,
    /// Oracles whose findings, and whose idleness, do not count.
    pub exempt: Vec<Exempt>,
    /// How it must end: anything but `pass` makes it a canary.
    pub outcome: Outcome,
}

/// A query that returns no row at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Line of the scenario, for reports.
    pub line: u32,
    /// The query.
    pub sql: String,
}

/// An oracle that does not count: whatever it finds is reported and no failure, and it may find nothing to judge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exempt {
    /// Which.
    pub oracle: String,
    /// Why, for the reader of the scenario.
    pub reason: String,
}

/// Reads the scenario at `path`. `shown` is how messages name the file.
pub fn read(path: &Path, shown: &str) -> Result<Scenario, Problems> {
    let text = std::fs::read_to_string(path)
        .map_err(|err| Problems(vec![Problem::of_file(shown, format!("cannot be read: {err}"))]))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let directory = path.parent().unwrap_or(Path::new("."));
    parse(&text, shown, name, directory)
}

/// Makes a scenario of `text`, or says what is wrong with it. Looks for the data files in `directory`.
pub fn parse(text: &str, shown: &str, name: &str, directory: &Path) -> Result<Scenario, Problems> {
    let cells = matrix::cells(text, shown)?;
    let read = |cell: &matrix::Cell| {
        let raw: Result<raw::Scenario, _> = toml::from_str(&cell.text);
        let raw = raw.map_err(|err| position::toml_problems(shown, text, &cell.edits, &err))?;
        decode::scenario(raw, text, &cell.edits, shown, name, directory)
    };
    let mut scenarios = Vec::new();
    let mut problems: BTreeMap<(usize, usize, String), Vec<&str>> = BTreeMap::new();
    for cell in &cells {
        match read(cell) {
            Ok(scenario) => scenarios.push((cell.name.clone(), scenario)),
            Err(Problems(found)) => found.into_iter().for_each(|Problem { line, column, message, .. }| {
                problems.entry((line, column, message)).or_default().push(&cell.name);
            }),
        }
    }
    if !problems.is_empty() {
        let of_cells = |((line, column, message), names): ((usize, usize, String), Vec<&str>)| {
            let everywhere = names.len() == cells.len();
            let message = if everywhere { message } else { format!("{message} (in the cell \"{}\")", names[0]) };
            Problem { path: shown.to_string(), line, column, message }
        };
        return Err(Problems(problems.into_iter().map(of_cells).collect()));
    }
    one_of_cells(scenarios).map_err(|message| Problems(vec![Problem::of_file(shown, message)]))
}

/// The scenario of all cells.
fn one_of_cells(cells: Vec<(String, Scenario)>) -> Result<Scenario, String> {
    let Some((name, first)) = cells.first() else { return Err("expected a cell".to_string()) };
    let mut scenario = first.clone();
    if name.is_empty() {
        return Ok(scenario);
    }
    let alike = |(_, cell): &(String, Scenario)| {
        (&cell.title, &cell.seeds) == (&first.title, &first.seeds)
            && (&cell.expect.result, cell.expect.outcome) == (&first.expect.result, first.expect.outcome)
    };
    if let Some((other, _)) = cells.iter().find(|cell| !alike(cell)) {
        return Err(format!(
            "expected one title, `seeds`, `result` and `outcome` for all cells: \"{other}\" has others than \"{name}\""
        ));
    }
    scenario.cells = cells;
    Ok(scenario)
}

/// The options of a simulated node where the scenario says nothing: the product's, but an election is rare unless it is
/// caused, and a flush happens within the small data of a test.
pub fn default_options() -> Options {
    Options {
        heartbeat_ms: 1_000,
        election_min_ms: 3_000,
        election_max_ms: 6_000,
        log_segment_bytes: 256 << 10,
        memtable_rows: 2_000,
        flush_interval_ms: 60_000,
        version_keep_ms: 2_000,
        compaction_active_runs: 2,
        compaction_small_files: 4,
        compaction_output_bytes: 64 << 10,
        sst_row_group_rows: 1_000,
        scan_batch_rows: 1_000,
        snapshot_chunk_bytes: 64 << 10,
        raft_keep_entries: 100,
        ..Options::default()
    }
}

impl std::fmt::Display for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trigger::Event(condition) => condition.fmt(f),
            Trigger::Durable(durable) => durable.fmt(f),
        }
    }
}

impl std::str::FromStr for Trigger {
    type Err = String;

    /// Events begin with a capital letter.
    fn from_str(text: &str) -> Result<Trigger, String> {
        if text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return text.parse().map(Trigger::Durable);
        }
        text.parse().map(Trigger::Event)
    }
}

impl std::fmt::Display for Each {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Each::Node => f.write_str("node"),
            Each::Region => f.write_str("region"),
            Each::RegionOf(table) => write!(f, "region of {table}"),
            Each::Replica => f.write_str("replica"),
        }
    }
}

impl std::str::FromStr for Each {
    type Err = String;

    fn from_str(text: &str) -> Result<Each, String> {
        match text {
            "node" => Ok(Each::Node),
            "region" => Ok(Each::Region),
            "replica" => Ok(Each::Replica),
            _ => match text.strip_prefix("region of ") {
                Some(table) => Ok(Each::RegionOf(target::table_name(table)?)),
                None => {
                    Err(position::one_of("what is counted by", text, &["node", "region", "region of TABLE", "replica"]))
                }
            },
        }
    }
}

period::as_text!(Trigger);
period::as_text!(Each);
