//! `sim run`

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Ended, Failure, Format, Work, note, project, say, scenarios, stop_on_signals};
use crate::report::directory::RunFile;
use crate::report::progress::Progress;
use crate::report::summary::Summary;
use crate::report::text::{counted, outcomes};
use crate::run::outcome::Outcome;
use crate::runner::project::Project;
use crate::runner::seeds::{self, Seeds, Shard, Wanted};
use crate::scenario::Scenario;
use crate::scenario::period::Period;

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Names from `scenarios/`, or paths; none: all.
    scenarios: Vec<String>,
    /// N fresh seeds, a..b (b included), or `git`: one from the commit. The pinned ones are then not added.
    #[arg(long, value_name = "N | a..b | git")]
    seeds: Option<Wanted>,
    /// The pinned seeds too.
    #[arg(long, requires = "seeds")]
    pinned: bool,
    /// Starts no further seed after this time; without --seeds fresh ones until then.
    #[arg(long = "for", value_name = "TIME")]
    time: Option<Period>,
    /// Only a part of all seeds, for several machines: 1/4.
    #[arg(long, value_name = "k/n")]
    shard: Option<Shard>,
    #[command(flatten)]
    work: Work,
}

/// Seeds of one scenario that are listed one by one at most.
const MANY: u64 = 1_000_000;

/// What seeds the user gets, and how to say it.
struct Choice {
    seeds: Vec<Seeds>,
    /// The argument that repeats them.
    argument: String,
    /// They end by time and not by count.
    endless: bool,
}

impl Run {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let scenarios = scenarios(&project, &self.scenarios)?;
        let choice = self.choose(&project, &scenarios)?;
        let stop = stop_on_signals()?;
        let directory = self.work.directory(&project)?;
        let sweep = self.work.sweep(&project, &scenarios, &directory)?;
        let run = RunFile {
            v: 1,
            command: self.command(&choice),
            build: sweep.build.clone(),
            commit: sweep.commit.clone(),
            interrupted: false,
            summary: None,
        };
        directory.write_run(&run).map_err(Failure::harness)?;
        let format = self.work.format;
        let total = (!choice.endless).then(|| seeds::count(&choice.seeds, self.shard));
        if format != Format::Json {
            let count = total.map_or_else(|| "seeds".to_string(), |total| counted(total, "seed"));
            let of = counted(scenarios.len() as u64, "scenario");
            say(format!("{count} of {of}; to repeat: {}", run.command));
        }

        let started = Instant::now();
        let deadline = self.time.map(|time| started + Duration::from_millis(time.ms));
        let cases = seeds::cases(&choice.seeds, self.shard, self.time.is_some());
        let cases = cases.take_while(move |_| deadline.is_none_or(|deadline| Instant::now() < deadline));
        let mut summary = Summary::of(&scenarios);
        let mut by_scenario: BTreeMap<String, BTreeMap<Outcome, u64>> = BTreeMap::new();
        let mut progress = Progress::new(total, format.is_quiet());
        let mut said = Ok(());
        let ran = sweep.run(cases, &stop, |done| {
            // What was cut off in the middle is no seed that ran.
            if done.report.outcome == Outcome::Interrupted {
                return;
            }
            if said.is_ok() {
                said = format.seed(&done);
            }
            *by_scenario.entry(done.scenario.clone()).or_default().entry(done.report.outcome).or_default() += 1;
            summary.add(done);
            progress.tick(summary.seeds, summary.failed());
        });
        progress.finish();
        said?;
        if format != Format::Json {
            for (name, counts) in &by_scenario {
                say(format!("  {name}: {}", outcomes(counts)));
            }
        }
        let run = RunFile { interrupted: stop.load(Ordering::Relaxed), ..run };
        format.end(&summary, &run, &directory, started.elapsed())?;
        if stop.load(Ordering::Relaxed) {
            note("interrupted");
            return Ok(Outcome::Interrupted);
        }
        ran.map_err(Failure::harness)?;
        Ok(summary.worst())
    }

    fn choose(&self, project: &Project, scenarios: &[Scenario]) -> Result<Choice, Failure> {
        if self.shard.is_some() && !matches!(self.seeds, Some(Wanted::Range(..) | Wanted::Git)) {
            return Err(Failure::usage(
                "--shard goes with --seeds a..b or --seeds git: fresh seeds are others on each machine",
            ));
        }
        let all = |seeds: Seeds| vec![seeds; scenarios.len()];
        let with_pinned = |fresh: RangeInclusive<u64>| -> Vec<Seeds> {
            scenarios.iter().map(|one| Seeds::with_pinned(&one.seeds, fresh.clone())).collect()
        };
        if self.pinned && matches!(&self.seeds, Some(Wanted::Range(from, to)) if to - from > MANY) {
            return Err(Failure::usage(format!("--pinned goes with at most {MANY} other seeds")));
        }
        let of_range = |from: u64, to: u64| Choice {
            seeds: if self.pinned { with_pinned(from..=to) } else { all(Seeds::Range(from..=to)) },
            argument: format!("{from}..{to}{}", if self.pinned { " --pinned" } else { "" }),
            endless: false,
        };
        Ok(match &self.seeds {
            Some(Wanted::Range(from, to)) => of_range(*from, *to),
            Some(Wanted::Fresh(count)) => {
                let range = seeds::fresh(*count);
                of_range(*range.start(), *range.end())
            }
            Some(Wanted::Git) => {
                let commit = project.commit().map_err(|err| Failure::usage(format!("--seeds git: {err}")))?;
                let seed = seeds::of_commit(&commit).map_err(Failure::usage)?;
                of_range(seed, seed)
            }
            None if self.time.is_some() => {
                let from = *seeds::fresh(1).start();
                Choice {
                    seeds: all(Seeds::Range(from..=seeds::END - 1)),
                    argument: format!("{from}..{}", seeds::END - 1),
                    endless: true,
                }
            }
            None => {
                let fresh = seeds::fresh(seeds::A_FEW);
                let argument = format!("{}..{} --pinned", fresh.start(), fresh.end());
                Choice { seeds: with_pinned(fresh), argument, endless: false }
            }
        })
    }

    /// The command that runs the same seeds.
    fn command(&self, choice: &Choice) -> String {
        let mut command = "cargo sim run".to_string();
        for name in &self.scenarios {
            command += &format!(" {name}");
        }
        command += &format!(" --seeds {}", choice.argument);
        if let Some(time) = self.time {
            command += &format!(" --for {time}");
        }
        if let Some(shard) = self.shard {
            command += &format!(" --shard {}/{}", shard.part, shard.of);
        }
        command + &self.work.self_test.clone().unwrap_or_default().argument()
    }
}
