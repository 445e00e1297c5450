//! `sim doctor`: the same seeds under conditions that must not matter.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;

use super::diff::first_event;
use super::{Ended, Failure, Format, Work, note, project, say, scenarios, stop_on_signals};
use crate::report::directory::{EVENTS, RunDirectory, RunFile};
use crate::report::progress::Progress;
use crate::report::summary::{Done, Summary};
use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::runner::pool;
use crate::runner::process::aslr_can_be_switched;
use crate::runner::seeds::{self, Wanted};
use crate::runner::sweep::{Recording, Sweep, where_they_part};
use crate::scenario::Scenario;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Names from `scenarios/`, or paths; none: all.
    scenarios: Vec<String>,
    /// N fresh seeds, a..b or `git`, dealt over the scenarios.
    #[arg(long, value_name = "N | a..b | git", default_value = "10")]
    seeds: Wanted,
    #[command(flatten)]
    work: Work,
}

/// What is varied. The first is what the others are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Alone,
    InABatch,
    WithAslr,
    Traced,
    Elsewhere,
}

const CONDITIONS: &[(Condition, &str)] = &[
    (Condition::Alone, "alone"),
    (Condition::InABatch, "in a batch, in another order"),
    (Condition::WithAslr, "with random addresses"),
    (Condition::Traced, "with tracing and recording"),
    (Condition::Elsewhere, "in another environment, time zone and directory"),
];

impl Doctor {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let scenarios = scenarios(&project, &self.scenarios)?;
        let range = match &self.seeds {
            Wanted::Fresh(count) => seeds::fresh(*count),
            Wanted::Range(from, to) => *from..=*to,
            Wanted::Git => {
                let seed = project.commit().and_then(|commit| seeds::of_commit(&commit)).map_err(Failure::usage)?;
                seed..=seed
            }
        };
        if range.end() - range.start() >= 1_000_000 {
            return Err(Failure::usage("--seeds: a doctor takes at most a million"));
        }
        let command = format!("cargo sim doctor {}--seeds {}..{}", names(&self.scenarios), range.start(), range.end());
        let stop = stop_on_signals()?;
        let directory = self.work.directory(&project)?;
        let sweep = self.work.sweep(&project, &scenarios, &directory)?;
        let run = RunFile {
            v: 1,
            command,
            build: sweep.build.clone(),
            commit: sweep.commit.clone(),
            interrupted: false,
            summary: None,
        };
        let format = self.work.format;
        if !aslr_can_be_switched() {
            note("address randomisation cannot be switched off here: it is on under every condition");
        }
        if format != Format::Json {
            say(format!("{} conditions; to repeat: {}", CONDITIONS.len(), run.command));
        }

        let started = Instant::now();
        let cases: Vec<(usize, u64)> = range.enumerate().map(|(at, seed)| (at % scenarios.len(), seed)).collect();
        let total = cases.len() as u64 * CONDITIONS.len() as u64;
        let mut progress = Progress::new(Some(total), format.is_quiet());
        let mut reports: Vec<Vec<SeedReport>> = Vec::new();
        let elsewhere = tempfile::tempdir().map_err(Failure::harness)?;
        for (condition, _) in CONDITIONS {
            let varied = varied(&sweep, *condition, elsewhere.path().to_path_buf());
            let mut order: Vec<usize> = (0..cases.len()).collect();
            if *condition != Condition::Alone {
                order.reverse();
            }
            let mut of_condition: Vec<(usize, SeedReport)> = Vec::new();
            let work = |at: usize| {
                let (scenario, seed) = cases[at];
                (at, report(&varied, &scenarios[scenario], seed, *condition, &directory, &stop))
            };
            let open = order.into_iter().take_while(|_| !stop.load(Ordering::Relaxed));
            let before = reports.len() * cases.len();
            pool::each(varied.jobs, open, work, |(at, report)| {
                of_condition.push((at, report));
                progress.tick((before + of_condition.len()) as u64, 0);
            });
            of_condition.sort_by_key(|(at, _)| *at);
            reports.push(of_condition.into_iter().map(|(_, report)| report).collect());
        }
        progress.finish();
        if stop.load(Ordering::Relaxed) {
            note("interrupted");
            return Ok(Outcome::Interrupted);
        }
        let mut summary = Summary::default();
        for (at, (scenario, seed)) in cases.iter().enumerate() {
            let scenario = &scenarios[*scenario];
            let of_case: Vec<&SeedReport> = reports.iter().map(|of_condition| &of_condition[at]).collect();
            let report = self.diagnose(&sweep, scenario, *seed, &of_case, elsewhere.path().to_path_buf(), &stop)?;
            let failed = report.outcome != Outcome::Pass;
            let done = Done {
                cell: scenario.of_seed(*seed).1.map(str::to_string),
                scenario: scenario.name.clone(),
                file: sweep.source(scenario),
                seed: *seed,
                report,
                directory: failed.then(|| directory.path.clone()),
                replay: format!(
                    "cargo sim doctor {} --seeds {seed}..{seed}{}",
                    scenario.name,
                    sweep.self_tests.argument()
                ),
            };
            format.seed(&done)?;
            summary.add(done);
        }
        format.end(&summary, &run, &directory, started.elapsed())?;
        Ok(summary.worst())
    }

    /// One seed under all conditions: the first report, or where the runs part.
    fn diagnose(
        &self,
        sweep: &Sweep<'_>,
        scenario: &Scenario,
        seed: u64,
        of_case: &[&SeedReport],
        elsewhere: PathBuf,
        stop: &std::sync::atomic::AtomicBool,
    ) -> Result<SeedReport, Failure> {
        let Some((first, others)) = of_case.split_first() else {
            return Ok(SeedReport::failed(Outcome::Harness, "harness: no conditions", "nothing was compared"));
        };
        // A worker that was killed has no fingerprint; an empty one equal to another empty one shows nothing.
        if first.fingerprint.is_empty() {
            let mut report = (*first).clone();
            if report.outcome == Outcome::Pass {
                report = report.turned(Outcome::Harness, "harness: no fingerprint", "the run has no fingerprint");
            }
            return Ok(report);
        }
        let same = |other: &&&SeedReport| {
            other.fingerprint == first.fingerprint
                && other.signature == first.signature
                && other.events == first.events
                && other.result == first.result
                && other.story == first.story
        };
        let Some(at) = others.iter().position(|other| !same(&other)) else {
            // What the scenario's end is worth is `run`'s matter; here only a lost worker is.
            let mut report = (*first).clone();
            if report.outcome != Outcome::Harness {
                report.outcome = Outcome::Pass;
                report.signature.clear();
            }
            return Ok(report);
        };
        let (condition, name) = CONDITIONS[at + 1];
        let other = others[at];
        let what = format!("the run is another one {name} than alone");
        let mut report = (*first).clone().turned(Outcome::Nondeterminism, format!("nondeterminism: {name}"), what);
        let mut evidence = vec![
            format!("alone      {} ({} events, {})", first.fingerprint, first.events, first.outcome),
            format!("otherwise  {} ({} events, {})", other.fingerprint, other.events, other.outcome),
            where_they_part(first, other),
        ];
        // Both once more, recorded. They may happen to be the same this time.
        let mut recordings = Vec::new();
        for (condition, part) in [(Condition::Alone, "alone"), (condition, "otherwise")] {
            let kept = sweep.directory.seed(&format!("{}-{part}", scenario.name), seed).map_err(Failure::harness)?;
            let varied = varied(sweep, condition, elsewhere.clone());
            let trace = (condition == Condition::Traced).then(|| "trace".to_string());
            let recording = Recording { directory: Some(&kept), trace, until: None };
            varied.report(scenario, seed, &recording, stop);
            recordings.push(kept.join(EVENTS));
        }
        if let [a, b] = recordings.as_slice() {
            match first_event(a, b).map_err(Failure::harness)? {
                Some(difference) => evidence.extend(difference.lines()),
                None => evidence.push("recorded once more, the two were the same".to_string()),
            }
        }
        if let Some(failure) = &mut report.failure {
            failure.evidence = evidence;
        }
        Ok(report)
    }
}

fn report(
    sweep: &Sweep<'_>,
    scenario: &Scenario,
    seed: u64,
    condition: Condition,
    directory: &RunDirectory,
    stop: &std::sync::atomic::AtomicBool,
) -> SeedReport {
    if condition != Condition::Traced {
        return sweep.report(scenario, seed, &Recording::default(), stop);
    }
    // Recorded and traced to files that nobody needs: only their making could matter.
    let recorded = directory.seed(&format!("{}-traced", scenario.name), seed);
    match recorded {
        Ok(path) => {
            let recording = Recording { directory: Some(&path), trace: Some("trace".to_string()), until: None };
            let report = sweep.report(scenario, seed, &recording, stop);
            let _ = std::fs::remove_dir_all(&path);
            report
        }
        Err(message) => SeedReport::failed(Outcome::Harness, "harness: no directory", message),
    }
}

/// The sweep as the condition wants it.
fn varied<'a>(sweep: &Sweep<'a>, condition: Condition, elsewhere: PathBuf) -> Sweep<'a> {
    let mut workers = sweep.workers.clone();
    match condition {
        Condition::Alone | Condition::InABatch | Condition::Traced => {}
        Condition::WithAslr => workers.aslr = true,
        Condition::Elsewhere => {
            let set = |name: &str, value: &str| (name.to_string(), value.to_string());
            workers.environment = vec![
                set("TZ", "Pacific/Chatham"),
                set("LANG", "tr_TR.UTF-8"),
                set("HOME", "/nonexistent"),
                set("RUST_LOG", "trace"),
                // Moves the stack.
                set("PADDING", &"x".repeat(3_001)),
            ];
            workers.directory = elsewhere;
        }
    }
    Sweep {
        project: sweep.project,
        scenarios: sweep.scenarios,
        workers,
        jobs: if condition == Condition::Alone { 1 } else { sweep.jobs.max(2) },
        memory_mb: sweep.memory_mb,
        self_tests: sweep.self_tests.clone(),
        directory: sweep.directory,
        build: sweep.build.clone(),
        commit: sweep.commit.clone(),
    }
}

fn names(named: &[String]) -> String {
    named.iter().map(|name| format!("{name} ")).collect()
}
