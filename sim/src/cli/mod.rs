//! The command line. Each command is a file; what they share (formats, the way to fail, Ctrl-C) is here.

mod check;
mod diff;
mod doctor;
mod planted;
mod replay;
mod run;
mod show;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::report::directory::{RunDirectory, RunFile};
use crate::report::summary::{Done, Summary};
use crate::report::text::{FailureScreen, github};
use crate::run::outcome::Outcome;
use crate::runner::process::Workers;
use crate::runner::project::Project;
use crate::runner::sweep::{SelfTests, Sweep};
use crate::scenario::Scenario;
use crate::scenario::period::Period;

/// A usage error: a bad option, a bad scenario file.
const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "sim", version, about = "Runs whole clusters in one thread: a seed decides everything that happens.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios; without arguments all of them, at their pinned seeds and a few fresh ones.
    Run(run::Run),
    /// Run one seed again with everything recorded.
    Replay(replay::Replay),
    /// Show on one screen what failed, when, and how to run it again.
    Show(show::Show),
    /// Find the first event in which two runs differ (same build), or how their results differ (two builds).
    Diff(diff::Diff),
    /// Run the same seeds under different conditions: none may change anything.
    Doctor(doctor::Doctor),
    /// List the scenarios.
    List,
    /// Check scenario files without running them.
    Check(check::Check),
    /// Print the JSON schema of scenario files, for editors.
    Schema,
    /// Break the code on purpose, one patch of sim/planted at a time, and see who finds it.
    Planted(planted::Planted),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text, a progress bar on a terminal.
    Human,
    /// One JSON object a line on the standard output and nothing else there.
    Json,
    /// Text, with annotations that GitHub shows at the scenario.
    Github,
}

/// How workers are run.
#[derive(Debug, Args)]
struct Work {
    /// Workers at a time [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    jobs: Option<u64>,
    /// Directory for what is kept [default: target/sim/<number>].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Output on the standard output.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
    /// Real time after which a worker is killed.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    wall: Period,
    /// Memory that a worker may have.
    #[arg(long, value_name = "MB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..))]
    memory_mb: u64,
    /// Disk faults beyond what replicas can repair: not available yet.
    #[arg(long, value_name = "NAME", value_parser = ["default"], default_value = "default")]
    profile: String,
    /// Makes some seeds try the harness instead: TEST@SEED,..
    #[arg(long, hide = true)]
    self_test: Option<SelfTests>,
}

/// How a command ends when it does not end well.
#[derive(Debug)]
enum Failure {
    /// The user can help: exit code 2.
    Usage(String),
    /// The harness cannot: exit code 16.
    Harness(String),
}

type Ended = Result<Outcome, Failure>;

/// The command line of `sim`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Run(run) => run.run(),
        Command::Replay(replay) => replay.run(),
        Command::Show(show) => show.run(),
        Command::Diff(diff) => return exit(diff.run()),
        Command::Doctor(doctor) => doctor.run(),
        Command::List => check::list(),
        Command::Check(check) => check.run(),
        Command::Schema => check::schema(),
        Command::Planted(planted) => planted.run(),
    };
    exit(ended.map(Outcome::exit_code))
}

fn exit(ended: Result<u8, Failure>) -> ExitCode {
    ExitCode::from(match ended {
        Ok(code) => code,
        Err(Failure::Usage(message)) => {
            say_error(message);
            USAGE
        }
        Err(Failure::Harness(message)) => {
            say_error(message);
            Outcome::Harness.exit_code()
        }
    })
}

impl Failure {
    fn usage(message: impl Display) -> Failure {
        Failure::Usage(message.to_string())
    }

    fn harness(message: impl Display) -> Failure {
        Failure::Harness(message.to_string())
    }
}

/// A line on the standard output. A reader that went away (`| head`) is no failure.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line on the standard error.
fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn say_error(message: impl Display) {
    let text = message.to_string();
    let several = text.lines().count() > 1;
    note(if several { text } else { format!("error: {text}") });
}

fn project() -> Result<Project, Failure> {
    let here = std::env::current_dir().map_err(Failure::harness)?;
    Project::find(&here).map_err(Failure::usage)
}

fn scenarios(project: &Project, named: &[String]) -> Result<Vec<Scenario>, Failure> {
    let files = project.select(named).map_err(Failure::usage)?;
    let scenarios = project.read(&files).map_err(Failure::usage)?;
    if scenarios.is_empty() {
        return Err(Failure::usage(format!("there is no scenario in {}", project.root.join("scenarios").display())));
    }
    Ok(scenarios)
}

/// Set by Ctrl-C or a polite kill; the second one ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let code = i32::from(Outcome::Interrupted.exit_code());
        signal_hook::flag::register_conditional_shutdown(signal, code, stop.clone()).map_err(Failure::harness)?;
        signal_hook::flag::register(signal, stop.clone()).map_err(Failure::harness)?;
    }
    Ok(stop)
}

impl Work {
    fn jobs(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(cores, |jobs| jobs as usize)
    }

    fn sweep<'a>(
        &self,
        project: &'a Project,
        scenarios: &'a [Scenario],
        directory: &'a RunDirectory,
    ) -> Result<Sweep<'a>, Failure> {
        let program = std::env::current_exe().map_err(Failure::harness)?;
        Ok(Sweep {
            project,
            scenarios,
            workers: Workers::new(program, Duration::from_millis(self.wall.ms)),
            jobs: self.jobs(),
            memory_mb: self.memory_mb,
            self_tests: self.self_test.clone().unwrap_or_default(),
            directory,
            build: project.build(),
            commit: project.commit().unwrap_or_else(|_| "unknown".to_string()),
        })
    }

    fn directory(&self, project: &Project) -> Result<RunDirectory, Failure> {
        RunDirectory::create(&project.root, self.out.as_deref()).map_err(Failure::harness)
    }
}

impl Format {
    /// A seed is over.
    fn seed(self, done: &Done) -> Result<(), Failure> {
        if self == Format::Json {
            say(done.json().map_err(Failure::harness)?);
        }
        Ok(())
    }

    /// All seeds are over: the sum, then the failures, the one that names the exit code last.
    fn end(self, summary: &Summary, run: &RunFile, directory: &RunDirectory, wall: Duration) -> Result<(), Failure> {
        self.close(summary, run, directory, Some(wall))
    }

    /// As [`Format::end`]; without a time there was one seed, of which nothing is summed up.
    fn close(
        self,
        summary: &Summary,
        run: &RunFile,
        directory: &RunDirectory,
        wall: Option<Duration>,
    ) -> Result<(), Failure> {
        let json = summary.json(&run.build, &run.command).map_err(Failure::harness)?;
        let value = serde_json::from_str(&json).map_err(Failure::harness)?;
        directory.write_run(&RunFile { summary: Some(value), ..run.clone() }).map_err(Failure::harness)?;
        if self == Format::Json {
            say(json);
            return Ok(());
        }
        if let Some(wall) = wall {
            summary.lines(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)).iter().for_each(say);
        }
        if summary.unlisted > 0 {
            say(format!("{} failures of further signatures are not listed", summary.unlisted));
        }
        let mut failures: Vec<&(Done, u64)> = summary.failures.values().collect();
        let worst = summary.failures.keys().map(|(outcome, _)| *outcome);
        let worst = Outcome::worst(worst);
        failures.sort_by_key(|(done, count)| (done.report.outcome == worst, *count));
        for (at, (done, count)) in failures.iter().enumerate() {
            let kept = done.directory.as_ref().map(|path| path.display().to_string());
            let screen = FailureScreen {
                scenario: &done.scenario,
                seed: done.seed,
                cell: done.cell.as_deref(),
                report: &done.report,
                directory: kept.as_deref(),
                replay: &done.replay,
                alike: *count,
            };
            if self == Format::Github {
                say(github(&done.scenario, &done.file, &screen));
            } else if at + 1 < failures.len() {
                say(format!(
                    "FAILED {} with seed {} and {} more: {}",
                    done.scenario,
                    done.seed,
                    count - 1,
                    done.report.signature
                ));
                say(format!("       {}", done.replay));
            } else {
                say("");
                screen.lines().iter().for_each(say);
            }
        }
        Ok(())
    }

    fn is_quiet(self) -> bool {
        self == Format::Json && !io::stderr().is_terminal()
    }
}
