//! The least simulation there is: nodes of madsim whose tasks sleep and say so. It tells whether executor, timers,
//! fingerprint, worker and runner are sound before anything is built on them, and misbehaves on request.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use madsim::rand::Rng;
use madsim::runtime::{Handle, Runtime};

use super::Setup;
use super::hash;
use super::live::Live;
use super::outcome::Outcome;
use super::report::{Checkpoint, Failure, ResultRows, SeedReport, StoryLine};
use crate::scenario::period::as_text;

/// How the harness is tried: a worker that runs the floor and then does this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Nothing more.
    Floor,
    /// A task panics.
    Panic,
    /// A task panics and somebody catches it.
    CaughtPanic,
    /// The process aborts.
    Abort,
    /// The stack overflows.
    Overflow,
    /// A task never yields.
    Hang,
    /// Memory grows without end.
    Memory,
    /// The process exits without a report.
    Exit,
    /// Prints to the standard output, and passes.
    Chatter,
    /// An oracle finds something.
    Safety,
    /// The virtual budget ends.
    Liveness,
    /// Nothing was shown.
    Vacuous,
    /// The 20th event has a byte that no seed decides.
    Flaky,
}

impl SelfTest {
    const WORDS: &'static [(&'static str, SelfTest)] = &[
        ("floor", SelfTest::Floor),
        ("panic", SelfTest::Panic),
        ("caught_panic", SelfTest::CaughtPanic),
        ("abort", SelfTest::Abort),
        ("overflow", SelfTest::Overflow),
        ("hang", SelfTest::Hang),
        ("memory", SelfTest::Memory),
        ("exit", SelfTest::Exit),
        ("chatter", SelfTest::Chatter),
        ("safety", SelfTest::Safety),
        ("liveness", SelfTest::Liveness),
        ("vacuous", SelfTest::Vacuous),
        ("flaky", SelfTest::Flaky),
    ];
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SelfTest::WORDS.iter().find(|(_, test)| test == self).map_or("floor", |(word, _)| word))
    }
}

impl FromStr for SelfTest {
    type Err = String;

    fn from_str(text: &str) -> Result<SelfTest, String> {
        let words: Vec<&str> = SelfTest::WORDS.iter().map(|(word, _)| *word).collect();
        let found = SelfTest::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, test)| *test).ok_or_else(|| crate::scenario::position::one_of("a self-test", text, &words))
    }
}

as_text!(SelfTest);

/// Events between two checkpoints.
const CHECKPOINT_EVENTS: u64 = 16;
const TICKS: u64 = 20;
/// The event that [`SelfTest::Flaky`] spoils.
const FLAKY_EVENT: u64 = 20;

pub(super) fn run(setup: &Setup, live: &Arc<Live>) -> SeedReport {
    let plan = &setup.plan;
    let faults: Vec<(u64, String)> = plan.faults.iter().map(|fault| (fault.at.ms, fault.name.clone())).collect();
    let until = setup.until.map_or(u64::MAX, |until| until.ms);
    let mut report = simulate(plan.seed, plan.cluster.nodes, faults, until, false, live);
    report.story = plan.steps.iter().enumerate().map(|(at, _)| format!("step {}: done", at + 1)).collect();
    let rows = |query: &String| ResultRows {
        query: query.clone(),
        columns: vec!["nodes".to_string()],
        rows: vec![vec![plan.cluster.nodes.to_string()]],
    };
    report.result = plan.expect.result.iter().map(rows).collect();
    report
}

pub(super) fn self_test(test: SelfTest, seed: u64, live: &Arc<Live>) -> SeedReport {
    let report = simulate(seed, 3, Vec::new(), u64::MAX, test == SelfTest::Flaky, live);
    match test {
        SelfTest::Floor | SelfTest::Flaky => report,
        SelfTest::Panic => panic!("seed {seed} panics on purpose"),
        SelfTest::CaughtPanic => {
            let caught = std::panic::catch_unwind(|| panic!("seed {seed} panics and is caught"));
            assert!(caught.is_err());
            report
        }
        SelfTest::Abort => std::process::abort(),
        SelfTest::Overflow => {
            let deep = deeper(seed);
            report.turned(Outcome::Pass, "", format!("the stack held {deep}"))
        }
        SelfTest::Hang => loop {
            std::hint::spin_loop();
        },
        SelfTest::Memory => {
            let mut all: Vec<Vec<u8>> = Vec::new();
            loop {
                all.push(vec![seed as u8; 16 << 20]);
                std::hint::black_box(&all);
            }
        }
        SelfTest::Exit => std::process::exit(3),
        SelfTest::Chatter => {
            #[expect(clippy::print_stdout, reason = "that is what is tried")]
            {
                println!("{{\"report\": \"this is not the report\"}}");
            }
            report
        }
        SelfTest::Safety => {
            let mut report = report.turned(Outcome::Safety, "clients: a row is gone", "an acknowledged row is gone");
            report.failure = Some(Failure {
                oracle: "clients".to_string(),
                what: "an acknowledged row is gone".to_string(),
                at_ms: Some(report.virtual_ms),
                evidence: vec![
                    "key (JFK, UA, 1)".to_string(),
                    "expected the row that was acknowledged at 0.100 s".to_string(),
                    "found nothing".to_string(),
                ],
                around: (0..TICKS)
                    .map(|tick| StoryLine { at_ms: tick, node: tick % 4, text: format!("tick {tick}") })
                    .collect(),
            });
            report
        }
        SelfTest::Liveness => report.turned(Outcome::Liveness, "liveness: step 1", "step 1 did not end"),
        SelfTest::Vacuous => report.turned(Outcome::Vacuous, "vacuous: rule 1", "rule 1 never fired"),
    }
}

/// The trace of a floor: each event extends the hash.
#[derive(Default)]
struct Trace {
    hash: u128,
    events: u64,
    virtual_us: u64,
    checkpoints: Vec<Checkpoint>,
}

fn simulate(
    seed: u64,
    nodes: u32,
    faults: Vec<(u64, String)>,
    until_ms: u64,
    flaky: bool,
    live: &Arc<Live>,
) -> SeedReport {
    let runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
    let trace = Arc::new(Mutex::new(Trace::default()));
    let known = trace.clone();
    live.on_panic(move || summary(&known.lock().unwrap_or_else(PoisonError::into_inner)));
    runtime.block_on(async {
        let start = madsim::time::Instant::now();
        let emit = {
            let (trace, live) = (trace.clone(), live.clone());
            Arc::new(move |node: u64, kind: &'static str, payload: u64| {
                let at_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                if at_us / 1000 > until_ms {
                    return;
                }
                let mut trace = trace.lock().unwrap_or_else(PoisonError::into_inner);
                let spoiled = flaky && trace.events + 1 == FLAKY_EVENT;
                let payload = if spoiled { u64::from(std::process::id()) } else { payload };
                trace.take(at_us, node, kind, payload);
                live.event(at_us, node, kind, payload, format_args!("{kind} {payload}"));
            })
        };
        let mut tasks = Vec::new();
        for number in 1..=u64::from(nodes) {
            let emit = emit.clone();
            let node = Handle::current().create_node().name(format!("n{number}")).build();
            tasks.push(node.spawn(async move {
                for tick in 0..TICKS {
                    let wait = madsim::rand::thread_rng().gen_range(1..20);
                    madsim::time::sleep(Duration::from_millis(wait)).await;
                    emit(number, "tick", tick);
                }
            }));
        }
        for (at, name) in faults {
            madsim::time::sleep_until(start + Duration::from_millis(at)).await;
            emit(0, "fault", hash::fnv128(name.as_bytes()) as u64);
        }
        for task in tasks {
            let _ = task.await;
        }
    });
    drop(runtime);
    summary(&trace.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Trace {
    fn take(&mut self, at_us: u64, node: u64, kind: &str, payload: u64) {
        let bytes = [&at_us.to_le_bytes()[..], &node.to_le_bytes(), kind.as_bytes(), &payload.to_le_bytes()].concat();
        self.hash = hash::extend(self.hash, &bytes);
        self.events += 1;
        self.virtual_us = at_us;
        if self.events.is_multiple_of(CHECKPOINT_EVENTS) {
            let hash = format!("{:032x}", self.hash);
            self.checkpoints.push(Checkpoint { events: self.events, virtual_ms: at_us / 1000, hash });
        }
    }
}

fn summary(trace: &Trace) -> SeedReport {
    SeedReport {
        fingerprint: format!("{:032x}", trace.hash),
        checkpoints: trace.checkpoints.clone(),
        events: trace.events,
        virtual_ms: trace.virtual_us / 1000,
        ops: trace.events,
        ..SeedReport::new(Outcome::Pass)
    }
}

/// Recurses for as long as the stack lasts. Each frame has something that no optimiser may drop.
#[expect(unconditional_recursion, reason = "it is to overflow")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deeper(depth + 1) + std::hint::black_box(&frame)[7]
}
