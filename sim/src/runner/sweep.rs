//! A sweep: seeds of scenarios, each in a worker, each judged, failures run again with everything recorded.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::judge::{judge, judge_alone};
use super::pool;
use super::process::{Keep, Workers};
use super::project::Project;
use crate::plan::Plan;
use crate::report::directory::{EVENTS, LOG, PLAN, Repro, RunDirectory, write_seed};
use crate::report::summary::Done;
use crate::report::text::seconds;
use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::run::{SelfTest, Setup};
use crate::scenario::Scenario;
use crate::scenario::period::Period;
use crate::worker::{Job, Work};

/// Failures of one signature whose files are kept; further ones are only counted.
pub const KEPT: u64 = 10;

/// What all seeds of a sweep have in common.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// Where things are.
    pub project: &'a Project,
    /// What is run.
    pub scenarios: &'a [Scenario],
    /// In which processes.
    pub workers: Workers,
    /// How many at a time.
    pub jobs: usize,
    /// Memory of each.
    pub memory_mb: u64,
    /// Seeds that try the harness instead.
    pub self_tests: SelfTests,
    /// Where failures are kept.
    pub directory: &'a RunDirectory,
    /// What fingerprints belong to.
    pub build: String,
    /// The commit.
    pub commit: String,
}

/// What one run of a seed is to leave behind, beside its report.
#[derive(Clone, Debug, Default)]
pub struct Recording<'a> {
    /// Where events and log go.
    pub directory: Option<&'a Path>,
    /// Filter of the log.
    pub trace: Option<String>,
    /// Where virtual time ends.
    pub until: Option<Period>,
}

/// `panic@3,hang@*`: seeds that do something else than their scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfTests(Vec<(SelfTest, Option<u64>)>);

impl Sweep<'_> {
    /// Runs `cases` (scenario, seed) until there are none or `stop` is set; `done` hears each on this thread.
    pub fn run(
        &self,
        cases: impl Iterator<Item = (usize, u64)> + Send,
        stop: &AtomicBool,
        mut done: impl FnMut(Done),
    ) -> Result<(), String> {
        let kept = Mutex::new(BTreeMap::new());
        let trouble = Mutex::new(None);
        // Where failures cannot be kept there is no use in finding more.
        let broken = AtomicBool::new(false);
        let cases = cases.take_while(|_| !stop.load(Ordering::Relaxed) && !broken.load(Ordering::Relaxed));
        let work = |(scenario, seed): (usize, u64)| {
            let scenario = &self.scenarios[scenario];
            let report = self.judged(scenario, seed, &Recording::default(), stop);
            match self.keep(scenario, seed, report, &kept, stop) {
                Ok(done) => Some(done),
                Err(message) => {
                    broken.store(true, Ordering::Relaxed);
                    trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
                    None
                }
            }
        };
        pool::each(self.jobs, cases, work, |result| result.into_iter().for_each(&mut done));
        match trouble.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(message) => Err(message),
            None => Ok(()),
        }
    }

    /// Runs one seed, as it is.
    pub fn report(&self, scenario: &Scenario, seed: u64, recording: &Recording<'_>, stop: &AtomicBool) -> SeedReport {
        let plan = Plan::resolve(scenario, seed);
        let work = match self.self_tests.of(seed) {
            Some(test) => Work::SelfTest { test, seed },
            None => self.work(plan, &scenario.directory, recording.until),
        };
        self.run_job(work, recording, stop)
    }

    /// Runs a plan, as it is.
    pub fn run_plan(&self, plan: Plan, directory: &Path, recording: &Recording<'_>, stop: &AtomicBool) -> SeedReport {
        let work = match self.self_tests.of(plan.seed) {
            Some(test) => Work::SelfTest { test, seed: plan.seed },
            None => self.work(plan, directory, recording.until),
        };
        self.run_job(work, recording, stop)
    }

    /// Writes what is known of a seed.
    pub fn write(
        &self,
        directory: &Path,
        source: &str,
        command: &str,
        plan: &Plan,
        report: &SeedReport,
    ) -> Result<(), String> {
        let repro = Repro {
            v: 1,
            scenario: plan.scenario.clone(),
            source: source.to_string(),
            plan: PLAN.to_string(),
            seed: plan.seed,
            cell: plan.cell.clone(),
            build: self.build.clone(),
            commit: self.commit.clone(),
            command: command.to_string(),
            report: report.clone(),
        };
        write_seed(directory, &repro, plan)
    }

    /// The command that runs a seed again.
    pub fn replay(&self, scenario: &Scenario, seed: u64) -> String {
        let source = self.source(scenario);
        let name = if self.project.has(scenario) { &scenario.name } else { &source };
        format!("cargo sim replay {name} --seed {seed}{}", self.self_tests.argument())
    }

    /// The scenario's file, as people read it.
    pub fn source(&self, scenario: &Scenario) -> String {
        self.project.shown(&scenario.directory.join(format!("{}.toml", scenario.name)))
    }

    fn work(&self, plan: Plan, directory: &Path, until: Option<Period>) -> Work {
        // The worker runs elsewhere.
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        Work::Run(Box::new(Setup { plan, directory, until }))
    }

    fn run_job(&self, work: Work, recording: &Recording<'_>, stop: &AtomicBool) -> SeedReport {
        let record = recording.directory.is_some();
        let job = Job { work, memory_mb: self.memory_mb, record, trace: recording.trace.clone() };
        let events = recording.directory.map(|directory| directory.join(EVENTS));
        let log = recording.directory.map(|directory| directory.join(LOG));
        self.workers.run(&job, &Keep { events: events.as_deref(), log: log.as_deref() }, stop)
    }

    fn judged(&self, scenario: &Scenario, seed: u64, recording: &Recording<'_>, stop: &AtomicBool) -> SeedReport {
        let report = self.report(scenario, seed, recording, stop);
        // What was reviewed is of the project's own scenarios.
        match self.project.has(scenario) {
            true => judge(report, scenario, seed, &self.project.snapshots()),
            false => judge_alone(report, scenario.expect.outcome),
        }
    }

    /// Keeps a failure: runs it once more with everything recorded. A run that is another one the second time is the
    /// worst failure there is.
    fn keep(
        &self,
        scenario: &Scenario,
        seed: u64,
        report: SeedReport,
        kept: &Mutex<BTreeMap<String, u64>>,
        stop: &AtomicBool,
    ) -> Result<Done, String> {
        if matches!(report.outcome, Outcome::Pass | Outcome::Interrupted) {
            return Ok(self.done(scenario, seed, report, None));
        }
        {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            // As many signatures as a summary lists; all of it stays small.
            if kept.len() > 1_000 && !kept.contains_key(&report.signature) {
                return Ok(self.done(scenario, seed, report, None));
            }
            let count = kept.entry(report.signature.clone()).or_default();
            *count += 1;
            if *count > KEPT {
                return Ok(self.done(scenario, seed, report, None));
            }
        }
        let directory = self.directory.seed(&scenario.name, seed)?;
        let mut report = report;
        // What hung or ate all memory would do it again.
        if report.outcome != Outcome::Harness {
            let recording = Recording { directory: Some(&directory), trace: Some("debug".to_string()), until: None };
            let again = self.judged(scenario, seed, &recording, stop);
            if again.outcome != Outcome::Interrupted {
                report = compared(report, &again);
            }
        }
        let (source, command) = (self.source(scenario), self.replay(scenario, seed));
        self.write(&directory, &source, &command, &Plan::resolve(scenario, seed), &report)?;
        Ok(self.done(scenario, seed, report, Some(directory)))
    }

    fn done(&self, scenario: &Scenario, seed: u64, report: SeedReport, directory: Option<PathBuf>) -> Done {
        Done {
            scenario: scenario.name.clone(),
            file: self.source(scenario),
            seed,
            cell: scenario.of_seed(seed).1.map(str::to_string),
            report,
            directory: directory
                .map(|path| path.strip_prefix(&self.project.root).map(Path::to_path_buf).unwrap_or(path)),
            replay: self.replay(scenario, seed),
        }
    }
}

/// The first report, or that the second is another one.
pub fn compared(first: SeedReport, second: &SeedReport) -> SeedReport {
    if first.fingerprint == second.fingerprint && first.signature == second.signature {
        return first;
    }
    let (outcome, what) = (Outcome::Nondeterminism, "the same seed ran differently the second time");
    let evidence = vec![
        format!("first   {} {} {} ({} events)", first.fingerprint, first.outcome, first.signature, first.events),
        format!("second  {} {} {} ({} events)", second.fingerprint, second.outcome, second.signature, second.events),
        where_they_part(&first, second),
    ];
    let at_ms = last_in_common(&first, second).1;
    let mut report = first.turned(outcome, "nondeterminism", what);
    if let Some(failure) = &mut report.failure {
        failure.evidence = evidence;
        failure.at_ms = Some(at_ms);
    }
    report
}

/// Between which events, and when, two runs part, as far as their checkpoints tell.
pub fn where_they_part(first: &SeedReport, second: &SeedReport) -> String {
    let (same, same_ms) = last_in_common(first, second);
    let next = first.checkpoints.iter().find(|point| point.events > same);
    let after = format!("they part after event {same} ({})", seconds(same_ms));
    match next {
        Some(next) => format!("{after} and not after event {} ({})", next.events, seconds(next.virtual_ms)),
        None => after,
    }
}

/// The last checkpoint that two runs have in common: events before it, and its virtual time.
fn last_in_common(first: &SeedReport, second: &SeedReport) -> (u64, u64) {
    let pairs = first.checkpoints.iter().zip(&second.checkpoints);
    pairs.take_while(|(a, b)| a == b).last().map_or((0, 0), |(a, _)| (a.events, a.virtual_ms))
}

impl SelfTests {
    /// The argument that asks for them; empty if there are none.
    pub fn argument(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!(" --self-test {self}") }
    }

    fn of(&self, seed: u64) -> Option<SelfTest> {
        self.0.iter().find(|(_, wanted)| wanted.is_none_or(|wanted| wanted == seed)).map(|(test, _)| *test)
    }
}

impl FromStr for SelfTests {
    type Err = String;

    fn from_str(text: &str) -> Result<SelfTests, String> {
        let mut tests = Vec::new();
        for part in text.split(',') {
            let (test, seed) = part.split_once('@').unwrap_or((part, "*"));
            let seed = match seed {
                "*" => None,
                seed => Some(seed.parse().map_err(|_| format!("expected TEST@SEED or TEST@*, found \"{part}\""))?),
            };
            tests.push((test.parse()?, seed));
        }
        Ok(SelfTests(tests))
    }
}

impl fmt::Display for SelfTests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (test, seed)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match seed {
                Some(seed) => write!(f, "{comma}{test}@{seed}")?,
                None => write!(f, "{comma}{test}@*")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::Checkpoint;

    #[test]
    fn where_two_runs_part_is_told_with_its_time() {
        let run = |hashes: &[&str]| {
            let point = |(at, hash): (usize, &&str)| Checkpoint {
                events: (at as u64 + 1) * 1024,
                virtual_ms: (at as u64 + 1) * 1500,
                hash: (*hash).to_string(),
            };
            let checkpoints = hashes.iter().enumerate().map(point).collect();
            SeedReport { checkpoints, fingerprint: hashes.concat(), ..SeedReport::new(Outcome::Pass) }
        };
        let (a, b) = (run(&["a", "b", "c"]), run(&["a", "b", "d"]));
        let told = "they part after event 2048 (3.000 s) and not after event 3072 (4.500 s)";
        assert_eq!(where_they_part(&a, &b), told);
        assert_eq!(
            where_they_part(&a, &run(&["x"])),
            "they part after event 0 (0.000 s) and not after event 1024 (1.500 s)"
        );
        assert_eq!(where_they_part(&run(&["a"]), &a), "they part after event 1024 (1.500 s)");
        let failure = compared(a, &b).failure.unwrap_or_default();
        assert_eq!((failure.at_ms, failure.evidence.last().map(String::as_str)), (Some(3000), Some(told)));
    }
}
