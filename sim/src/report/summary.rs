//! What a sweep adds up to: counts, and of each kind of failure the first. Flat in memory however many seeds there are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::scenario::Scenario;

/// One seed that is over.
#[derive(Clone, Debug)]
pub struct Done {
    /// Name of the scenario.
    pub scenario: String,
    /// Its file, as people read it.
    pub file: String,
    /// The seed.
    pub seed: u64,
    /// The cell of the scenario's matrix, if it has one.
    pub cell: Option<String>,
    /// What came of it, judged.
    pub report: SeedReport,
    /// Where its files are, if they were kept.
    pub directory: Option<PathBuf>,
    /// The command that runs it again.
    pub replay: String,
}

/// The sum so far.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Seeds that are over.
    pub seeds: u64,
    /// Seeds by outcome.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// By scenario with a matrix and by cell: seeds by outcome. Cells that no seed ran are there.
    pub cells: BTreeMap<String, BTreeMap<String, BTreeMap<Outcome, u64>>>,
    /// Situations reached.
    pub marks: BTreeMap<String, u64>,
    /// Evaluations by oracle.
    pub oracles: BTreeMap<String, u64>,
    /// By scenario and oracle: what exemptions excused.
    pub exemptions: BTreeMap<(String, String), Exemption>,
    /// What faults did.
    pub effects: BTreeMap<String, u64>,
    /// Virtual time.
    pub virtual_ms: u64,
    /// Time of processor.
    pub cpu_ms: u64,
    /// Rows committed.
    pub rows: u64,
    /// The most memory that one worker had.
    pub peak_memory_kb: u64,
    /// The first of each signature, and how many there were.
    pub failures: BTreeMap<(Outcome, String), (Done, u64)>,
    /// Failures with a signature beyond [`SIGNATURES`]: counted, not kept.
    pub unlisted: u64,
}

/// The exemption of an oracle from a scenario, over all its seeds.
#[derive(Clone, Debug, Default)]
pub struct Exemption {
    /// Why, as the scenario says it.
    pub reason: String,
    /// Seeds that came to an end.
    pub seeds: u64,
    /// Seeds among them that needed it.
    pub needed: u64,
}

/// Different signatures that a summary keeps an example of.
const SIGNATURES: usize = 100;

/// `{"v":1,"type":"seed",..}`
#[derive(Debug, Serialize)]
struct SeedLine<'a> {
    v: u32,
    r#type: &'static str,
    scenario: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cell: Option<&'a str>,
    seed: u64,
    outcome: Outcome,
    fingerprint: &'a str,
    virtual_ms: u64,
    cpu_ms: u64,
    ops: u64,
    oracles: &'a BTreeMap<String, u64>,
    effects: &'a BTreeMap<String, u64>,
    #[serde(flatten)]
    failure: Option<FailureFields<'a>>,
}

#[derive(Debug, Serialize)]
struct FailureFields<'a> {
    signature: &'a str,
    virtual_at_ms: Option<u64>,
    run_dir: Option<String>,
    replay: &'a str,
}

/// `{"v":1,"type":"summary",..}`
#[derive(Debug, Serialize)]
struct SummaryLine<'a> {
    v: u32,
    r#type: &'static str,
    seeds: u64,
    outcomes: &'a BTreeMap<Outcome, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cells: &'a BTreeMap<String, BTreeMap<String, BTreeMap<Outcome, u64>>>,
    marks: &'a BTreeMap<String, u64>,
    oracles: &'a BTreeMap<String, u64>,
    effects: &'a BTreeMap<String, u64>,
    virtual_ms: u64,
    cpu_ms: u64,
    build: &'a str,
    command: &'a str,
}

impl Done {
    /// The line of `--format json`.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let report = &self.report;
        let failure = (report.outcome != Outcome::Pass).then(|| FailureFields {
            signature: &report.signature,
            virtual_at_ms: report.failure.as_ref().and_then(|failure| failure.at_ms).or(Some(report.virtual_ms)),
            run_dir: self.directory.as_ref().map(|path| path.display().to_string()),
            replay: &self.replay,
        });
        serde_json::to_string(&SeedLine {
            v: 1,
            r#type: "seed",
            scenario: &self.scenario,
            cell: self.cell.as_deref(),
            seed: self.seed,
            outcome: report.outcome,
            fingerprint: &report.fingerprint,
            virtual_ms: report.virtual_ms,
            cpu_ms: report.cpu_ms,
            ops: report.ops,
            oracles: &report.oracles,
            effects: &report.effects,
            failure,
        })
    }
}

impl Summary {
    /// Nothing yet, of a sweep over `scenarios`.
    pub fn of(scenarios: &[Scenario]) -> Summary {
        let named = |(name, _): &(String, Scenario)| (name.clone(), BTreeMap::new());
        let cells = |scenario: &Scenario| (scenario.name.clone(), scenario.cells.iter().map(named).collect());
        let cells = scenarios.iter().filter(|scenario| !scenario.cells.is_empty()).map(cells).collect();
        Summary { cells, ..Summary::default() }
    }

    /// Adds a seed.
    pub fn add(&mut self, done: Done) {
        let report = &done.report;
        self.seeds += 1;
        *self.outcomes.entry(report.outcome).or_default() += 1;
        if let (Some(cells), Some(cell)) = (self.cells.get_mut(&done.scenario), &done.cell) {
            *cells.entry(cell.clone()).or_default().entry(report.outcome).or_default() += 1;
        }
        let sums = [
            (&mut self.marks, &report.marks),
            (&mut self.oracles, &report.oracles),
            (&mut self.effects, &report.effects),
        ];
        for (sum, part) in sums {
            for (name, count) in part {
                match sum.get_mut(name) {
                    Some(known) => *known += count,
                    None => drop(sum.insert(name.clone(), *count)),
                }
            }
        }
        for (oracle, exempted) in &report.exempted {
            let key = (done.scenario.clone(), oracle.clone());
            let sum = self.exemptions.entry(key).or_default();
            sum.reason.clone_from(&exempted.reason);
            sum.seeds += 1;
            sum.needed += u64::from(exempted.was_needed());
        }
        self.virtual_ms += report.virtual_ms;
        self.cpu_ms += report.cpu_ms;
        self.rows += report.rows;
        self.peak_memory_kb = self.peak_memory_kb.max(report.peak_memory_kb);
        if matches!(report.outcome, Outcome::Pass | Outcome::Interrupted) {
            return;
        }
        let key = (report.outcome, report.signature.clone());
        if let Some((_, count)) = self.failures.get_mut(&key) {
            *count += 1;
        } else if self.failures.len() < SIGNATURES {
            self.failures.insert(key, (done, 1));
        } else {
            self.unlisted += 1;
        }
    }

    /// Seeds that did not pass.
    pub fn failed(&self) -> u64 {
        self.seeds - self.outcomes.get(&Outcome::Pass).copied().unwrap_or(0)
    }

    /// The outcome that names the exit code.
    pub fn worst(&self) -> Outcome {
        Outcome::worst(self.outcomes.keys().copied())
    }

    /// The line of `--format json`.
    pub fn json(&self, build: &str, command: &str) -> Result<String, serde_json::Error> {
        serde_json::to_string(&SummaryLine {
            v: 1,
            r#type: "summary",
            seeds: self.seeds,
            outcomes: &self.outcomes,
            cells: &self.cells,
            marks: &self.marks,
            oracles: &self.oracles,
            effects: &self.effects,
            virtual_ms: self.virtual_ms,
            cpu_ms: self.cpu_ms,
            build,
            command,
        })
    }

    /// The lines for people, but for the failures. `wall_ms` is how long the sweep took.
    pub fn lines(&self, wall_ms: u64) -> Vec<String> {
        let mut lines = vec![format!(
            "{} in {}: {}",
            super::text::counted(self.seeds, "seed"),
            super::text::seconds(wall_ms),
            if self.seeds == 0 { "nothing ran".to_string() } else { super::text::outcomes(&self.outcomes) },
        )];
        let cpu_s = self.cpu_ms.max(1) as f64 / 1000.0;
        let passed = self.outcomes.get(&Outcome::Pass).copied().unwrap_or(0);
        if self.seeds > 0 {
            lines.push(format!(
                "{:.0} virtual s and {:.0} committed rows per CPU s, {:.0} passing seeds per core-hour, {} MB at most",
                self.virtual_ms as f64 / 1000.0 / cpu_s,
                self.rows as f64 / cpu_s,
                passed as f64 * 3600.0 / cpu_s,
                self.peak_memory_kb.div_ceil(1024),
            ));
        }
        for (what, counts) in [("oracles", &self.oracles), ("effects", &self.effects), ("marks", &self.marks)] {
            let counts = counts.iter().filter(|(_, count)| **count > 0);
            let counts: Vec<String> = counts.map(|(name, count)| format!("{name} {count}")).collect();
            if !counts.is_empty() {
                lines.push(format!("{what}: {}", counts.join(", ")));
            }
        }
        for ((scenario, oracle), Exemption { reason, seeds, needed }) in &self.exemptions {
            lines.push(match needed {
                0 => format!("exempted for nothing: {oracle} in {scenario} ({reason}); take it out of the scenario"),
                _ => format!("exempted: {oracle} in {needed} of {seeds} seeds of {scenario} ({reason})"),
            });
        }
        for (scenario, cells) in &self.cells {
            lines.extend(cell_lines(scenario, cells));
        }
        // Only a sweep that reaches some can be blamed for not reaching others.
        if self.marks.values().any(|count| *count > 0) {
            let never = self.marks.iter().filter(|(_, count)| **count == 0);
            let never: Vec<&str> = never.map(|(mark, _)| mark.as_str()).collect();
            if !never.is_empty() {
                lines.push(format!("never reached: {}", never.join("; ")));
            }
        }
        lines
    }
}

/// Cells that are listed one by one; of more only those that did not pass.
const LISTED_CELLS: usize = 24;

fn cell_lines(scenario: &str, cells: &BTreeMap<String, BTreeMap<Outcome, u64>>) -> Vec<String> {
    let seeds = |outcomes: &BTreeMap<Outcome, u64>| outcomes.values().sum::<u64>();
    let ran = cells.values().filter(|outcomes| seeds(outcomes) > 0).count();
    let (least, most) = (cells.values().map(seeds).min().unwrap_or(0), cells.values().map(seeds).max().unwrap_or(0));
    let each = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let mut lines = vec![format!("cells of {scenario}: {ran} of {} ran, seeds of each: {each}", cells.len())];
    // A sweep that cannot have run all is not blamed for those that it did not.
    let could = cells.values().map(seeds).sum::<u64>() >= cells.len() as u64;
    let is_listed = |outcomes: &BTreeMap<Outcome, u64>| {
        let passed = outcomes.get(&Outcome::Pass).copied().unwrap_or(0);
        passed < seeds(outcomes) || (could && (cells.len() <= LISTED_CELLS || seeds(outcomes) == 0))
    };
    for (cell, outcomes) in cells.iter().filter(|(_, outcomes)| is_listed(outcomes)) {
        let told = if outcomes.is_empty() { "never ran".to_string() } else { super::text::outcomes(outcomes) };
        lines.push(format!("  {cell}: {told}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::Exempted;

    fn done(seed: u64, outcome: Outcome, signature: &str) -> Done {
        let mut report = SeedReport::failed(outcome, signature, "what");
        report.oracles.insert("raft".into(), 10);
        report.effects.insert("crashes".into(), 2);
        report.virtual_ms = 1500;
        report.cpu_ms = 20;
        if outcome == Outcome::Pass {
            report.signature.clear();
        }
        Done {
            scenario: "x".into(),
            file: "scenarios/x.toml".into(),
            seed,
            cell: None,
            report,
            directory: (outcome != Outcome::Pass).then(|| PathBuf::from("target/sim/1/x@3")),
            replay: format!("cargo sim replay x --seed {seed}"),
        }
    }

    #[test]
    fn the_lines_are_the_contract() {
        assert_eq!(
            done(2, Outcome::Pass, "").json().unwrap(),
            "{\"v\":1,\"type\":\"seed\",\"scenario\":\"x\",\"seed\":2,\"outcome\":\"pass\",\"fingerprint\":\"\",\
             \"virtual_ms\":1500,\"cpu_ms\":20,\"ops\":0,\"oracles\":{\"raft\":10},\"effects\":{\"crashes\":2}}"
        );
        assert_eq!(
            done(3, Outcome::Safety, "raft: two leaders").json().unwrap(),
            "{\"v\":1,\"type\":\"seed\",\"scenario\":\"x\",\"seed\":3,\"outcome\":\"safety\",\"fingerprint\":\"\",\
             \"virtual_ms\":1500,\"cpu_ms\":20,\"ops\":0,\"oracles\":{\"raft\":10},\"effects\":{\"crashes\":2},\
             \"signature\":\"raft: two leaders\",\"virtual_at_ms\":1500,\"run_dir\":\"target/sim/1/x@3\",\
             \"replay\":\"cargo sim replay x --seed 3\"}"
        );
        let mut summary = Summary::default();
        summary.add(done(2, Outcome::Pass, ""));
        summary.add(done(3, Outcome::Safety, "raft: two leaders"));
        assert_eq!(
            summary.json("b", "sim run").unwrap(),
            "{\"v\":1,\"type\":\"summary\",\"seeds\":2,\"outcomes\":{\"pass\":1,\"safety\":1},\"marks\":{},\
             \"oracles\":{\"raft\":20},\"effects\":{\"crashes\":4},\"virtual_ms\":3000,\"cpu_ms\":40,\"build\":\"b\",\
             \"command\":\"sim run\"}"
        );
    }

    #[test]
    fn cells_are_counted_and_those_that_failed_or_never_ran_are_told() {
        let cells = |count: usize| (0..count).map(|at| (format!("cell {at:02}"), BTreeMap::new())).collect();
        let mut summary = Summary { cells: BTreeMap::from([("x".into(), cells(30))]), ..Summary::default() };
        let mut add = |seed: u64, outcome| {
            summary.add(Done { cell: Some(format!("cell {:02}", seed % 30)), ..done(seed, outcome, "s") });
            summary.lines(1).into_iter().filter(|line| line.contains("cell")).collect::<Vec<_>>()
        };
        assert_eq!(add(1, Outcome::Pass), ["cells of x: 1 of 30 ran, seeds of each: 0 to 1"]);
        let mut lines = add(2, Outcome::Vacuous);
        assert_eq!(lines[1..], ["  cell 02: 1 vacuous"]);
        for seed in 3..=31 {
            lines = add(seed, Outcome::Pass);
        }
        assert_eq!(lines, ["cells of x: 30 of 30 ran, seeds of each: 1 to 2", "  cell 02: 1 vacuous"]);
        let json = summary.json("b", "c").unwrap();
        assert!(json.contains("\"cells\":{\"x\":{\"cell 00\":{\"pass\":1},\"cell 01\":{\"pass\":2},"), "{json}");
        let mut few = Summary { cells: BTreeMap::from([("x".into(), cells(2))]), ..Summary::default() };
        for seed in [0, 30, 60] {
            few.add(Done { cell: Some("cell 00".into()), ..done(seed, Outcome::Pass, "") });
        }
        let lines: Vec<String> = few.lines(1).into_iter().filter(|line| line.starts_with("  cell")).collect();
        assert_eq!(lines, ["  cell 00: 3 pass", "  cell 01: never ran"]);
    }

    #[test]
    fn exemptions_are_told_and_those_that_excuse_nothing_are_told_apart() {
        let mut summary = Summary::default();
        for seed in 1..=3 {
            let mut done = done(seed, Outcome::Pass, "");
            let exempted = |findings, reason: &str| Exempted { reason: reason.into(), findings, ..Exempted::default() };
            done.report.exempted.insert("liveness".into(), exempted(seed / 3, "the storm has no end"));
            done.report.exempted.insert("raft".into(), exempted(0, "who knows"));
            summary.add(done);
        }
        let lines = summary.lines(1);
        assert!(
            lines.contains(&"exempted: liveness in 1 of 3 seeds of x (the storm has no end)".to_string()),
            "{lines:?}"
        );
        let idle = "exempted for nothing: raft in x (who knows); take it out of the scenario";
        assert!(lines.contains(&idle.to_string()), "{lines:?}");
    }

    #[test]
    fn ten_thousand_failures_take_no_more_room_than_a_hundred() {
        let mut summary = Summary::default();
        for seed in 0..10_000 {
            summary.add(done(seed, Outcome::Panic, &format!("panic {}", seed % 150)));
        }
        assert_eq!(summary.failures.len(), SIGNATURES);
        let listed: u64 = summary.failures.values().map(|(_, count)| count).sum();
        assert_eq!(listed + summary.unlisted, 10_000);
        assert_eq!((summary.failed(), summary.worst()), (10_000, Outcome::Panic));
    }
}
