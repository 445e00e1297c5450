//! A worker seen from outside: started, fed, heard, and seen to die. Everything that can go wrong with a child process is
//! here and becomes an outcome of its seed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::personality::{self, Persona};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::signal::{Signal, killpg};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use super::log::LogFiles;
use crate::run::outcome::Outcome;
use crate::run::report::SeedReport;
use crate::worker::{ARGUMENT, Job, Message};

/// How workers are started. The same for all of a sweep; only `doctor` varies it, to show that nothing depends on it.
#[derive(Clone, Debug)]
pub struct Workers {
    /// The program.
    pub program: PathBuf,
    /// After this time of the real clock a worker is killed: a backstop against code that never yields.
    pub wall: Duration,
    /// Whether addresses are random.
    pub aslr: bool,
    /// The environment, else empty.
    pub environment: Vec<(String, String)>,
    /// Where they run.
    pub directory: PathBuf,
}

/// Where what a worker says beside its report is kept.
#[derive(Debug, Default)]
pub struct Keep<'a> {
    /// Recorded events, a line each.
    pub events: Option<&'a Path>,
    /// The standard error; what each node said of it is beside it.
    pub log: Option<&'a Path>,
}

/// The end of the standard error that is looked at for the cause of a death.
const TAIL_BYTES: usize = 64 << 10;
/// How often a waiting runner looks whether it was told to stop.
const GLANCE: Duration = Duration::from_millis(50);

enum Heard {
    Message(Message),
    /// Not a message: the worker (or something in it) wrote to the pipe.
    Noise(String),
    Closed,
}

enum Death {
    ByItself,
    WallLimit,
    Stopped,
}

/// What became of a worker.
struct Attended {
    death: Death,
    status: ExitStatus,
    report: Option<SeedReport>,
    noise: Option<String>,
}

impl Workers {
    /// Workers that run this program, without any of the conditions that a doctor varies.
    pub fn new(program: PathBuf, wall: Duration) -> Workers {
        Workers { program, wall, aslr: false, environment: Vec::new(), directory: PathBuf::from("/") }
    }

    /// Runs one job to its end, or until `stop` is set. Whatever happens to the worker is in the report.
    pub fn run(&self, job: &Job, keep: &Keep<'_>, stop: &AtomicBool) -> SeedReport {
        self.try_run(job, keep, stop)
            .unwrap_or_else(|message| SeedReport::failed(Outcome::Harness, "harness: no worker", message))
    }

    fn try_run(&self, job: &Job, keep: &Keep<'_>, stop: &AtomicBool) -> Result<SeedReport, String> {
        let job = serde_json::to_vec(job).map_err(|err| format!("the job cannot be written: {err}"))?;
        let mut events = keep.events.map(create).transpose()?;
        let mut log = keep.log.map(LogFiles::create).transpose()?;
        let mut child = self.start()?;
        let died = std::thread::scope(|scope| {
            let stdin = child.stdin.take();
            // A worker may die before it has read its job: then the pipe breaks, and its death says why.
            scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(&job)));
            let stderr = child.stderr.take();
            let tail = scope.spawn(|| stderr.map(|pipe| tail_of(pipe, log.as_mut())).unwrap_or_default());
            // Bounded: events wait in the pipe, and then in the worker, and not in our memory.
            let (sender, messages) = sync_channel(256);
            let stdout = child.stdout.take();
            scope.spawn(move || stdout.map(|pipe| hear(pipe, &sender)));

            let heard = self.attend(&mut child, &messages, events.as_mut(), stop);
            if heard.is_err() {
                // The threads of this scope read until the worker is gone.
                kill(&child);
                let _ = child.wait();
            }
            let tail = tail.join().unwrap_or_default();
            heard.map(|heard| (heard, tail))
        });
        let (Attended { death, status, report, noise }, tail) = died?;
        Ok(match death {
            Death::Stopped => SeedReport::failed(Outcome::Interrupted, "interrupted", "stopped by the user"),
            Death::WallLimit => SeedReport::failed(
                Outcome::Harness,
                "harness: wall limit",
                format!(
                    "no end within {} s of real time; virtual time stood still or work has no end",
                    self.wall.as_secs()
                ),
            ),
            Death::ByItself => after_death(status, report, noise, &tail),
        })
    }

    /// Hears a worker until it is gone, and sees to it that it goes.
    fn attend(
        &self,
        child: &mut Child,
        messages: &Receiver<Heard>,
        mut events: Option<&mut File>,
        stop: &AtomicBool,
    ) -> Result<Attended, String> {
        let deadline = Instant::now() + self.wall;
        let mut report = None;
        let mut noise = None;
        let mut death = Death::ByItself;
        loop {
            match messages.recv_timeout(GLANCE) {
                Ok(Heard::Message(Message::Event(line))) => {
                    if let Some(file) = &mut events {
                        writeln!(file, "{line}").map_err(|err| format!("events cannot be kept: {err}"))?;
                    }
                }
                Ok(Heard::Message(Message::Report(known))) => report = Some(*known),
                Ok(Heard::Noise(line)) => noise = Some(line),
                Ok(Heard::Closed) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(cause) = self.must_die(deadline, stop) {
                death = cause;
                kill(child);
                break;
            }
        }
        // It closed its output and may yet hang on its way out.
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|err| format!("the worker is lost: {err}"))? {
                break status;
            }
            if matches!(death, Death::ByItself)
                && let Some(cause) = self.must_die(deadline, stop)
            {
                death = cause;
                kill(child);
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        Ok(Attended { death, status, report, noise })
    }

    fn must_die(&self, deadline: Instant, stop: &AtomicBool) -> Option<Death> {
        if stop.load(Ordering::Relaxed) {
            return Some(Death::Stopped);
        }
        (Instant::now() >= deadline).then_some(Death::WallLimit)
    }

    fn start(&self) -> Result<Child, String> {
        set_aslr(self.aslr);
        Command::new(&self.program)
            .arg0("sim")
            .arg(ARGUMENT)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            // Ctrl-C goes to the runner alone.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| format!("{} cannot be started: {err}", self.program.display()))
    }
}

/// Runs a program and all that it starts for at most `time`; none: it was killed then.
pub fn run_within(command: &mut Command, time: Duration) -> Result<Option<ExitStatus>, String> {
    let mut child = command.process_group(0).spawn().map_err(|err| format!("it cannot be started: {err}"))?;
    let deadline = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait().map_err(|err| format!("it is lost: {err}"))? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            kill(&child);
            child.wait().map_err(|err| format!("it is lost: {err}"))?;
            return Ok(None);
        }
        std::thread::sleep(GLANCE);
    }
}

/// Time of processor that programs took which this one started and saw end.
pub fn cpu_ms_of_children() -> u64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| cpu_ms(&usage))
}

/// User and system time.
pub fn cpu_ms(usage: &Usage) -> u64 {
    let ms = |time: TimeVal| {
        let ms = time.tv_sec().saturating_mul(1000).saturating_add(time.tv_usec() / 1000);
        u64::try_from(ms).unwrap_or(0)
    };
    ms(usage.user_time()) + ms(usage.system_time())
}

/// Whether this machine lets address randomisation be switched off: containers often do not.
pub fn aslr_can_be_switched() -> bool {
    set_aslr(false);
    personality::get().is_ok_and(|persona| persona.contains(Persona::ADDR_NO_RANDOMIZE))
}

/// For the programs that this thread starts from now on. Where it is refused they run with random addresses.
fn set_aslr(on: bool) {
    if let Ok(mut persona) = personality::get() {
        persona.set(Persona::ADDR_NO_RANDOMIZE, !on);
        let _ = personality::set(persona);
    }
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|err| format!("{} cannot be written: {err}", path.display()))
}

/// The worker and whatever it may have started.
fn kill(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may be dead already.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn hear(pipe: impl Read, to: &SyncSender<Heard>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        let heard = match pipe.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => Heard::Closed,
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(message) => Heard::Message(message),
                Err(_) => Heard::Noise(String::from_utf8_lossy(&line).chars().take(200).collect()),
            },
        };
        let closed = matches!(heard, Heard::Closed);
        if to.send(heard).is_err() || closed {
            return;
        }
    }
}

/// Reads to the end, so that the worker never waits for us, and keeps the last of it; all of it goes to `log`.
fn tail_of(mut pipe: impl Read, mut log: Option<&mut LogFiles>) -> String {
    let mut tail = VecDeque::new();
    let mut piece = [0; 8192];
    loop {
        let read = match pipe.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        if let Some(log) = &mut log {
            log.write(&piece[..read]);
        }
        tail.extend(&piece[..read]);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
    String::from_utf8_lossy(&tail.into_iter().collect::<Vec<u8>>()).into_owned()
}

/// What became of a worker that nobody killed.
fn after_death(status: ExitStatus, report: Option<SeedReport>, noise: Option<String>, tail: &str) -> SeedReport {
    let base = |report: Option<SeedReport>| report.unwrap_or_else(|| SeedReport::new(Outcome::Pass));
    let evidence: Vec<String> = tail.lines().rev().take(8).map(str::to_string).collect();
    let with_tail = |mut report: SeedReport| {
        if let Some(failure) = &mut report.failure
            && failure.evidence.is_empty()
        {
            failure.evidence = evidence.iter().rev().cloned().collect();
        }
        report
    };
    if let Some(signal) = status.signal() {
        let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
        let (outcome, signature, what) = match Signal::try_from(signal) {
            Ok(Signal::SIGABRT) if tail.contains("has overflowed its stack") => {
                (Outcome::Panic, "stack overflow".to_string(), "the stack of the simulation overflowed".to_string())
            }
            Ok(Signal::SIGABRT) if tail.contains("memory allocation of ") => {
                (Outcome::Harness, "harness: out of memory".to_string(), "beyond the limit of memory".to_string())
            }
            Ok(Signal::SIGABRT) => (Outcome::Panic, "abort".to_string(), "the process aborted".to_string()),
            Ok(Signal::SIGKILL) => (
                Outcome::Harness,
                "harness: killed".to_string(),
                "killed from outside (the kernel, for want of memory?)".to_string(),
            ),
            _ => (Outcome::Panic, format!("signal {name}"), format!("the process died of {name}")),
        };
        return with_tail(base(report).turned(outcome, signature, what));
    }
    if let Some(noise) = noise {
        let what = format!("the worker said what is no message: {noise}");
        return with_tail(base(report).turned(Outcome::Harness, "harness: noise", what));
    }
    match (status.code(), report) {
        (Some(0), Some(report)) => report,
        (code, report) => {
            let code = code.map_or_else(|| "none".to_string(), |code| code.to_string());
            let said = if report.is_some() { "after its report" } else { "without a report" };
            let what = format!("the worker exited {said}, with code {code}");
            with_tail(base(report).turned(Outcome::Harness, format!("harness: exit {code}"), what))
        }
    }
}
