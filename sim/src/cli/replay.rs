//! `sim replay`

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Ended, Failure, Format, Work, note, project, say, stop_on_signals};
use crate::plan::{self, Plan};
use crate::report::directory::{LOG, PLAN, Repro, RunFile, only_seed, read_repro};
use crate::report::summary::{Done, Summary};
use crate::report::text::{counted, seconds};
use crate::run::log;
use crate::run::outcome::Outcome;
use crate::runner::judge::{judge, judge_alone};
use crate::runner::log::node_file;
use crate::runner::project::Project;
use crate::runner::sweep::{Recording, compared};
use crate::scenario::Scenario;
use crate::scenario::period::Period;
use crate::scenario::target::Target;

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The directory of a kept seed, a plan (a TOML file), or a scenario with --seed.
    what: String,
    /// The seed of a scenario.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..crate::runner::seeds::END))]
    seed: Option<u64>,
    /// Stop at this virtual time.
    #[arg(long, value_name = "TIME")]
    until: Option<Period>,
    /// Schedule otherwise: draw so many numbers first. What is reviewed must stay the same.
    #[arg(long, value_name = "N")]
    stir: Option<u64>,
    /// Keep a log, of all and of each node: a level, or a filter like `engine::raft=trace`.
    #[arg(long, value_name = "LEVEL")]
    trace: Option<String>,
    /// The log of this node only: n2.
    #[arg(long, value_name = "nN", requires = "trace")]
    node: Option<Target>,
    /// Print the log on the standard error too; it is long.
    #[arg(long, requires = "trace")]
    show_log: bool,
    #[command(flatten)]
    work: Work,
}

/// What is to be replayed.
struct Subject {
    plan: Plan,
    /// Where its data is.
    data: PathBuf,
    source: String,
    command: String,
    /// The scenario, if the plan is exactly what it says for the seed: then the snapshots count.
    scenario: Option<Scenario>,
    /// What it was before.
    before: Option<Repro>,
}

impl Replay {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let node = match &self.node {
            None => None,
            Some(Target::Node(node)) => Some(*node),
            Some(other) => return Err(Failure::usage(format!("--node: expected a node like n2, found \"{other}\""))),
        };
        if let Some(filter) = &self.trace {
            log::parse(filter).map_err(|err| Failure::usage(format!("--trace: {err}")))?;
        }
        let mut subject = self.subject(&project)?;
        subject.check_data()?;
        if let Some(stir) = self.stir {
            subject.plan.stir = stir;
            subject.command.push_str(&format!(" --stir {stir}"));
            // It is another run than the one that was kept.
            subject.before = None;
        }
        let stop = stop_on_signals()?;
        let directory = self.work.directory(&project)?;
        let sweep = self.work.sweep(&project, &[], &directory)?;
        let run = RunFile {
            v: 1,
            command: subject.command.clone(),
            build: sweep.build.clone(),
            commit: sweep.commit.clone(),
            interrupted: false,
            summary: None,
        };
        let kept = directory.seed(&subject.plan.scenario, subject.plan.seed).map_err(Failure::harness)?;
        let recording = Recording { directory: Some(&kept), trace: self.trace.clone(), until: self.until };
        let report = sweep.run_plan(subject.plan.clone(), &subject.data, &recording, &stop);
        if report.outcome == Outcome::Interrupted {
            note("interrupted");
            return Ok(Outcome::Interrupted);
        }
        let mut report = match (&subject.scenario, self.until) {
            // A run that was cut short has no end to review.
            (_, Some(_)) => report,
            (Some(scenario), None) if project.has(scenario) => {
                judge(report, scenario, subject.plan.seed, &project.snapshots())
            }
            (_, None) => judge_alone(report, subject.plan.expect.outcome),
        };
        if let Some(before) = &subject.before
            && self.until.is_none()
        {
            if before.build == sweep.build {
                report = compared(report, &before.report);
            } else {
                note(format!(
                    "the build is another one ({}, then {}): fingerprints may differ",
                    sweep.build, before.build
                ));
            }
        }
        sweep.write(&kept, &subject.source, &subject.command, &subject.plan, &report).map_err(Failure::harness)?;
        if self.trace.is_some() && self.work.format != Format::Json {
            self.tell_log(&project, &kept.join(LOG), node)?;
        }
        let done = Done {
            scenario: subject.plan.scenario.clone(),
            file: subject.source.clone(),
            seed: subject.plan.seed,
            cell: subject.plan.cell.clone(),
            report,
            directory: Some(kept.strip_prefix(&project.root).map(Path::to_path_buf).unwrap_or_else(|_| kept.clone())),
            replay: subject.command.clone(),
        };
        let format = self.work.format;
        format.seed(&done)?;
        if format != Format::Json {
            let report = &done.report;
            let outcome = match self.until {
                Some(until) if report.outcome == Outcome::Pass => format!("stopped at {until}, as asked"),
                _ => report.outcome.to_string(),
            };
            say(format!(
                "{} with seed {}: {outcome}, {} events in {} of virtual time, fingerprint {}",
                done.scenario,
                done.seed,
                report.events,
                seconds(report.virtual_ms),
                report.fingerprint,
            ));
            say(format!("files: {}", project.shown(&kept)));
        }
        let mut summary = Summary::default();
        summary.add(done);
        format.close(&summary, &run, &directory, None)?;
        Ok(summary.worst())
    }

    fn subject(&self, project: &Project) -> Result<Subject, Failure> {
        let path = Path::new(&self.what);
        if let Some(seed) = self.seed {
            return self.of_scenario(project, seed);
        }
        if path.is_dir() {
            return self.of_directory(project, path);
        }
        if path.is_file() {
            let plan = plan::read(path).map_err(Failure::usage)?;
            let beside = path.parent().unwrap_or(Path::new(".")).to_path_buf();
            // A plan that was kept has the scenario's place beside it.
            let kept =
                read_repro(&beside).ok().filter(|repro| repro.scenario == plan.scenario).map(|repro| repro.source);
            let scenario = scenario_of(project, &plan, kept.as_deref());
            let beside =
                kept.and_then(|source| Some(project.root.join(source).parent()?.to_path_buf())).unwrap_or(beside);
            return Ok(Subject {
                data: scenario.as_ref().map_or(beside, |(scenario, _)| scenario.directory.clone()),
                source: scenario.as_ref().map_or(self.what.clone(), |(_, file)| file.clone()),
                command: format!("cargo sim replay {}{}", self.what, self.self_test()),
                scenario: scenario.map(|(scenario, _)| scenario).filter(|one| Plan::resolve(one, plan.seed) == plan),
                plan,
                before: None,
            });
        }
        match project.select(std::slice::from_ref(&self.what)) {
            Ok(_) => Err(Failure::usage(format!("which seed of {}? Add --seed S", self.what))),
            Err(_) => Err(Failure::usage(format!("there is no directory, plan or scenario {}", self.what))),
        }
    }

    fn of_scenario(&self, project: &Project, seed: u64) -> Result<Subject, Failure> {
        let mut scenarios = super::scenarios(project, std::slice::from_ref(&self.what))?;
        let scenario = scenarios.remove(0);
        Ok(Subject {
            plan: Plan::resolve(&scenario, seed),
            data: scenario.directory.clone(),
            source: project.shown(&scenario.directory.join(format!("{}.toml", scenario.name))),
            command: format!("cargo sim replay {} --seed {seed}{}", self.what, self.self_test()),
            scenario: Some(scenario),
            before: None,
        })
    }

    fn of_directory(&self, project: &Project, path: &Path) -> Result<Subject, Failure> {
        let directory = only_seed(path).map_err(Failure::usage)?;
        let repro = read_repro(&directory).map_err(Failure::usage)?;
        let plan = plan::read(&directory.join(PLAN)).map_err(Failure::usage)?;
        let scenario = scenario_of(project, &plan, Some(&repro.source)).map(|(scenario, _)| scenario);
        let source = project.root.join(&repro.source);
        let data = source.parent().unwrap_or(&project.root).to_path_buf();
        let same = scenario.filter(|one| Plan::resolve(one, plan.seed) == plan);
        Ok(Subject {
            data,
            source: repro.source.clone(),
            command: repro.command.clone(),
            scenario: same,
            plan,
            before: Some(repro),
        })
    }

    /// Says where the log is, or what one node said of it; prints it if that is asked for.
    fn tell_log(&self, project: &Project, log: &Path, node: Option<u32>) -> Result<(), Failure> {
        let path = node.map_or_else(|| log.to_path_buf(), |node| node_file(log, &format!("n{node}")));
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                if self.show_log {
                    text.lines().for_each(note);
                }
                note(format!("log: {}, {}", project.shown(&path), counted(text.lines().count() as u64, "line")));
            }
            Err(err) if err.kind() == std::io::ErrorKind::NotFound && node.is_some() => note("the node said nothing"),
            Err(err) => return Err(Failure::harness(format!("{}: {err}", path.display()))),
        }
        Ok(())
    }

    fn self_test(&self) -> String {
        self.work.self_test.clone().unwrap_or_default().argument()
    }
}

impl Subject {
    /// That the data is where the plan looks for it.
    fn check_data(&self) -> Result<(), Failure> {
        let missing = self.plan.loads().into_iter().find(|(_, file)| !self.data.join(file).is_file());
        let Some((line, file)) = missing else { return Ok(()) };
        let message = format!(
            "there is no file {}: the step of line {line} of {} loads it; data is looked for beside the scenario",
            self.data.join(file).display(),
            self.source,
        );
        Err(Failure::usage(message))
    }
}

/// The scenario that a plan was made of, if it is still there, and its file.
fn scenario_of(project: &Project, plan: &Plan, source: Option<&str>) -> Option<(Scenario, String)> {
    let named = match source {
        Some(source) => project.root.join(source).display().to_string(),
        None => plan.scenario.clone(),
    };
    let files = project.select(&[named]).ok()?;
    let scenario = project.read(&files).ok()?.pop()?;
    let file = project.shown(files.first()?);
    Some((scenario, file))
}
