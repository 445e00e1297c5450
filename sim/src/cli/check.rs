//! `sim list`, `sim check`, `sim schema`

use std::io::{self, IsTerminal};

use clap::Args;

use super::{Ended, Failure, project, say};
use crate::plan::Plan;
use crate::report::text::counted;
use crate::run::outcome::Outcome;
use crate::scenario::Scenario;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Names from `scenarios/`, or paths; none: all.
    scenarios: Vec<String>,
}

impl Check {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let files = project.select(&self.scenarios).map_err(Failure::usage)?;
        let scenarios = project.read(&files).map_err(Failure::usage)?;
        let cells = |scenario: &Scenario| (1..=scenario.cells.len().max(1) as u64).collect::<Vec<_>>();
        for (scenario, seed) in scenarios.iter().flat_map(|one| cells(one).into_iter().map(move |seed| (one, seed))) {
            // A plan that cannot be printed and read again could not be replayed.
            let plan = Plan::resolve(scenario, seed);
            let again = plan.to_toml().and_then(|text| Plan::read(&text, "plan.toml").map_err(|err| err.to_string()));
            if again.map_err(|err| Failure::harness(format!("{}: {err}", scenario.name)))? != plan {
                return Err(Failure::harness(format!("{}: its plan is not what is read again", scenario.name)));
            }
        }
        let are = if scenarios.len() == 1 { "is" } else { "are" };
        say(format!("{} {are} well-formed", counted(scenarios.len() as u64, "scenario")));
        Ok(Outcome::Pass)
    }
}

pub(super) fn list() -> Ended {
    let project = project()?;
    let files = project.files().map_err(Failure::usage)?;
    if !io::stdout().is_terminal() {
        files.iter().filter_map(|file| file.file_stem()?.to_str()).for_each(say);
        return Ok(Outcome::Pass);
    }
    let scenarios = project.read(&files).map_err(Failure::usage)?;
    let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    for scenario in scenarios {
        let seeds: Vec<String> = scenario.seeds.iter().map(u64::to_string).collect();
        let seeds = if seeds.is_empty() { "no pinned seeds".into() } else { format!("seeds {}", seeds.join(", ")) };
        say(format!("{:width$}  {} ({seeds})", scenario.name, scenario.title));
    }
    Ok(Outcome::Pass)
}

pub(super) fn schema() -> Ended {
    let schema = crate::scenario::schema::schema();
    say(serde_json::to_string_pretty(&schema).map_err(Failure::harness)?);
    Ok(Outcome::Pass)
}
