//! `sim show`

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Ended, Failure, project, say};
use crate::report::directory::{RunFile, read_repro, read_run, seed_directories};
use crate::report::text::{FailureScreen, seconds};
use crate::run::outcome::Outcome;
use crate::runner::project::Project;

#[derive(Debug, Args)]
pub(super) struct Show {
    /// A directory, or the number of a run in target/sim [default: the last run].
    run: Option<String>,
}

impl Show {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let path = directory(&project, self.run.as_deref()).map_err(Failure::usage)?;
        let seeds = seed_directories(&path).map_err(Failure::usage)?;
        if let Some(run) = read_run(&path) {
            tell_run(&project.shown(&path), &run);
        }
        if seeds.is_empty() {
            say("no seed was kept: none failed so far");
            return Ok(Outcome::Pass);
        }
        let mut repros = Vec::new();
        for directory in seeds {
            repros.push((read_repro(&directory).map_err(Failure::usage)?, directory));
        }
        repros.sort_by_key(|(repro, _)| repro.report.outcome == Outcome::worst([repro.report.outcome]));
        if let Some(((last, directory), others)) = repros.split_last() {
            for (repro, directory) in others {
                let (at, report) = (project.shown(directory), &repro.report);
                say(format!("{} with seed {}: {} ({at})", repro.scenario, repro.seed, report.outcome));
            }
            let shown = project.shown(directory);
            if last.report.outcome == Outcome::Pass {
                say(format!(
                    "{} with seed {}: pass after {} of virtual time, fingerprint {}",
                    last.scenario,
                    last.seed,
                    seconds(last.report.virtual_ms),
                    last.report.fingerprint,
                ));
                say(format!("  files       {shown}\n  replay      {}", last.command));
            } else {
                let screen = FailureScreen {
                    scenario: &last.scenario,
                    seed: last.seed,
                    cell: last.cell.as_deref(),
                    report: &last.report,
                    directory: Some(&shown),
                    replay: &last.command,
                    alike: 1,
                };
                screen.lines().iter().for_each(say);
            }
        }
        Ok(Outcome::Pass)
    }
}

/// What the sweep was, and how it ended.
fn tell_run(at: &str, run: &RunFile) {
    let ended = match &run.summary {
        None => "it goes on, or was killed".to_string(),
        Some(summary) => {
            let outcomes = summary["outcomes"].as_object().into_iter().flatten();
            let outcomes: Vec<String> = outcomes.map(|(outcome, count)| format!("{count} {outcome}")).collect();
            let counts = if outcomes.is_empty() { "nothing ran".to_string() } else { outcomes.join(", ") };
            format!("{counts}{}", if run.interrupted { "; interrupted before its end" } else { "" })
        }
    };
    say(format!("{at}: {ended}\n  command     {}\n  build       {}", run.command, run.build));
}

/// The directory that the user means.
pub(super) fn directory(project: &Project, named: Option<&str>) -> Result<PathBuf, String> {
    let runs = project.root.join("target").join("sim");
    let Some(named) = named else {
        let entries = std::fs::read_dir(&runs).map_err(|_| "nothing was run yet".to_string())?;
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let last = numbers.max().ok_or("nothing was run yet")?;
        return Ok(runs.join(last.to_string()));
    };
    [Path::new(named).to_path_buf(), runs.join(named), project.root.join(named)]
        .into_iter()
        .find(|path| path.is_dir())
        .ok_or_else(|| format!("there is no run {named}, neither as a directory nor in {}", runs.display()))
}
