//! The worker's side: one process, one seed.
//!
//! Standard input holds the [`Job`], the first standard output takes [`Message`]s and nothing else: the worker's own
//! prints go to the standard error. The simulation runs on a fresh thread with a stack of fixed size, and nothing is
//! parsed there. A panic is an outcome, even one that somebody caught; an abort, a stack overflow and the limits end
//! the process, and the runner sees it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::run::live::Live;
use crate::run::log;
use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::run::{SelfTest, Setup, run_plan, run_self_test};

/// The only argument of a worker.
pub const ARGUMENT: &str = "worker";

/// The stack of the simulation's thread: fixed, so that a recursion overflows everywhere or nowhere.
const STACK_BYTES: usize = 32 << 20;

/// What a worker is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The run.
    pub work: Work,
    /// Memory that the process may have, beyond which it ends.
    pub memory_mb: u64,
    /// Sends each event as it happens.
    pub record: bool,
    /// Filter of `tracing` (`debug`, `engine::raft=trace`); the log goes to the standard error. None: off.
    pub trace: Option<String>,
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// A scenario.
    Run(Box<Setup>),
    /// A trial of the harness.
    SelfTest {
        /// Which.
        test: SelfTest,
        /// With which seed.
        seed: u64,
    },
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A recorded event.
    Event(String),
    /// The end.
    Report(Box<SeedReport>),
}

impl Message {
    /// Writes it as one line.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)?;
        to.flush()
    }
}

/// The first panic of the process, for the report.
static PANIC: Mutex<Option<Panicked>> = Mutex::new(None);

#[derive(Clone, Debug)]
struct Panicked {
    place: String,
    message: String,
}

/// The life of a worker. What goes wrong before the run is said on the standard error and by the exit code.
pub fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The standard error is the log that the runner keeps.
            let _ = writeln!(io::stderr(), "worker: {message}");
            ExitCode::from(Outcome::Harness.exit_code())
        }
    }
}

fn work() -> Result<(), String> {
    crate::determinism::settle().map_err(|err| err.to_string())?;
    let mut messages = take_stdout()?;
    // A worker whose runner is gone serves nobody. Elsewhere than on Linux it would end with its seed.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|err| format!("no death signal: {err}"))?;
    let mut job = String::new();
    io::stdin().read_to_string(&mut job).map_err(|err| format!("no job: {err}"))?;
    let job: Job = serde_json::from_str(&job).map_err(|err| format!("the job is not understood: {err}"))?;
    limit(job.memory_mb)?;
    std::panic::set_hook(Box::new(note_panic));
    if let Some(filter) = &job.trace {
        log::to_stderr(filter)?;
    }

    let record = if job.record { Some(messages.try_clone().map_err(|err| err.to_string())?) } else { None };
    let live = Arc::new(Live::new(record.map(|file| Box::new(file) as Box<dyn Write + Send>)));
    let heard = live.clone();
    let work = job.work;
    let thread = std::thread::Builder::new().name("simulation".to_string()).stack_size(STACK_BYTES);
    let thread = thread.spawn(move || match work {
        Work::Run(setup) => run_plan(*setup, &live),
        Work::SelfTest { test, seed } => run_self_test(test, seed, &live),
    });
    let ran = thread.map_err(|err| format!("no thread for the simulation: {err}"))?.join();

    let panicked = PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let report = ran.ok().or_else(|| heard.known());
    let mut report = report.unwrap_or_else(|| SeedReport::new(Outcome::Panic));
    if let Some(panicked) = panicked {
        let what = format!("panic at {}: {}", panicked.place, panicked.message);
        report = report.turned(Outcome::Panic, panicked.signature(), what);
    }
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|err| format!("no resource usage: {err}"))?;
    report.cpu_ms = crate::runner::process::cpu_ms(&usage);
    report.peak_memory_kb = usage.max_rss().unsigned_abs();
    Message::Report(Box::new(report)).write(&mut messages).map_err(|err| format!("no report: {err}"))
}

/// The first standard output, for messages; what anyone prints from now on goes to the standard error.
fn take_stdout() -> Result<File, String> {
    let messages = io::stdout().as_fd().try_clone_to_owned().map_err(|err| err.to_string())?;
    nix::unistd::dup2_stdout(io::stderr()).map_err(|err| err.to_string())?;
    Ok(File::from(messages))
}

fn limit(memory_mb: u64) -> Result<(), String> {
    let bytes = memory_mb.saturating_mul(1 << 20);
    setrlimit(Resource::RLIMIT_AS, bytes, bytes).map_err(|err| format!("no limit of memory: {err}"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|err| format!("no limit of core files: {err}"))
}

fn note_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
    let message = message.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = info.location().map_or_else(String::new, ToString::to_string);
    let _ = writeln!(io::stderr(), "panic at {place}: {message}\n{}", std::backtrace::Backtrace::force_capture());
    let mut first = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
    first.get_or_insert(Panicked { place, message });
}

impl Panicked {
    /// The same for two panics of one cause: numbers in the message do not count.
    fn signature(&self) -> String {
        let line = self.message.lines().next().unwrap_or_default();
        let mut text = String::new();
        for c in line.chars().take(100) {
            match c {
                '0'..='9' if text.ends_with('#') => {}
                '0'..='9' => text.push('#'),
                _ => text.push(c),
            }
        }
        // A path below a registry or a toolchain says where that is on one machine.
        let place = self.place.rsplit_once("/src/").map_or(self.place.as_str(), |(before, file)| {
            let start = before.rfind('/').map_or(0, |at| at + 1);
            &self.place[start..start + before.len() - start + 5 + file.len()]
        });
        format!("panic: {place}: {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_one_cause_have_one_signature() {
        let signature = |place: &str, message: &str| {
            Panicked { place: place.to_string(), message: message.to_string() }.signature()
        };
        assert_eq!(
            signature("engine/src/log/a.rs:3:5", "index 17 of 4\nmore"),
            "panic: engine/src/log/a.rs:3:5: index # of #"
        );
        assert_eq!(signature("/home/x/y/openraft-1.0/src/a.rs:3:5", ""), "panic: openraft-1.0/src/a.rs:3:5: ");
    }
}
