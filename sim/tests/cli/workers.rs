//! Workers that misbehave: each death is an outcome of its seed and of nothing else.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sim::run::SelfTest;
use sim::run::outcome::Outcome;
use sim::run::report::SeedReport;
use sim::runner::pool;
use sim::runner::process::{Keep, Workers};
use sim::worker::{Job, Work};

fn workers() -> Workers {
    Workers::new(PathBuf::from(env!("CARGO_BIN_EXE_sim")), Duration::from_secs(60))
}

fn job(test: SelfTest, seed: u64) -> Job {
    Job { work: Work::SelfTest { test, seed }, memory_mb: 1024, record: false, trace: None }
}

fn run(test: SelfTest, seed: u64) -> SeedReport {
    workers().run(&job(test, seed), &Keep::default(), &AtomicBool::new(false))
}

#[test]
fn the_same_seed_has_the_same_fingerprint_and_another_one_has_not() {
    let (one, again, other) = (run(SelfTest::Quiet, 1), run(SelfTest::Quiet, 1), run(SelfTest::Quiet, 2));
    assert_eq!(one.outcome, Outcome::Pass, "{:?}", one.failure);
    // A real run: a node was elected, rows were written and read.
    assert!(one.events > 100 && one.rows == 2, "{} events, {} rows", one.events, one.rows);
    assert_eq!(
        SeedReport { cpu_ms: 0, peak_memory_kb: 0, ..one.clone() },
        SeedReport { cpu_ms: 0, peak_memory_kb: 0, ..again }
    );
    assert_eq!(one.fingerprint.len(), 32);
    assert_ne!(one.fingerprint, other.fingerprint);
    assert!(one.peak_memory_kb > 0);
}

#[test]
fn a_panic_keeps_what_is_known_even_if_somebody_caught_it() {
    for (test, place) in
        [(SelfTest::Panic, "seed # panics on purpose"), (SelfTest::CaughtPanic, "seed # panics and is caught")]
    {
        let report = run(test, 17);
        assert_eq!(report.outcome, Outcome::Panic, "{test}");
        assert!(report.signature.starts_with("panic: sim/src/run/self_test.rs:"), "{}", report.signature);
        assert!(report.signature.ends_with(place), "{}", report.signature);
        // The rows were written before, and how far it got is the same each time.
        assert_eq!(report.rows, 2);
        let again = run(test, 17);
        assert_eq!((&report.fingerprint, report.events), (&again.fingerprint, again.events));
        assert_eq!(report.signature, run(test, 18).signature);
    }
}

#[test]
fn an_abort_and_a_stack_overflow_are_panics() {
    let report = run(SelfTest::Abort, 1);
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Panic, "abort"));
    let report = run(SelfTest::Overflow, 1);
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Panic, "stack overflow"));
}

#[test]
fn too_much_memory_a_hang_and_an_exit_are_the_harness_s() {
    let report = run(SelfTest::Memory, 1);
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Harness, "harness: out of memory"));
    let report = run(SelfTest::Exit, 1);
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Harness, "harness: exit 3"));
    let workers = Workers { wall: Duration::from_millis(300), ..workers() };
    let started = Instant::now();
    let report = workers.run(&job(SelfTest::Hang, 1), &Keep::default(), &AtomicBool::new(false));
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Harness, "harness: wall limit"));
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_program_that_is_not_there_is_the_harness_s() {
    let workers = Workers::new(PathBuf::from("/nowhere/sim"), Duration::from_secs(1));
    let report = workers.run(&job(SelfTest::Quiet, 1), &Keep::default(), &AtomicBool::new(false));
    assert_eq!(report.outcome, Outcome::Harness);
    let not_a_worker = Workers::new(PathBuf::from("/bin/cat"), Duration::from_secs(10));
    let report = not_a_worker.run(&job(SelfTest::Quiet, 1), &Keep::default(), &AtomicBool::new(false));
    assert_eq!(report.outcome, Outcome::Harness);
}

#[test]
fn a_full_disk_under_the_recording_is_the_harness_s_and_ends() {
    let keep = Keep { events: Some(std::path::Path::new("/dev/full")), log: None };
    let job = Job { record: true, ..job(SelfTest::Hang, 1) };
    let report = workers().run(&job, &keep, &AtomicBool::new(false));
    assert_eq!((report.outcome, report.signature.as_str()), (Outcome::Harness, "harness: no worker"));
}

#[test]
fn what_a_worker_prints_is_no_message() {
    let report = run(SelfTest::Chatter, 1);
    assert_eq!((report.outcome, report.fingerprint), (Outcome::Pass, run(SelfTest::Quiet, 1).fingerprint));
}

#[test]
fn a_stop_ends_the_worker_at_once() {
    let stop = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
        });
        workers().run(&job(SelfTest::Hang, 1), &Keep::default(), &stop)
    });
    assert_eq!(report.outcome, Outcome::Interrupted);
}

#[test]
fn the_others_go_on_when_one_dies() {
    let tests = [SelfTest::Abort, SelfTest::Quiet, SelfTest::Exit, SelfTest::Quiet, SelfTest::Panic, SelfTest::Quiet];
    let mut outcomes = Vec::new();
    let work = |(seed, test): (usize, SelfTest)| (seed, run(test, seed as u64).outcome);
    pool::each(3, tests.into_iter().enumerate(), work, |outcome| outcomes.push(outcome));
    outcomes.sort_unstable_by_key(|(seed, _)| *seed);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    let (pass, panic) = (Outcome::Pass, Outcome::Panic);
    assert_eq!(outcomes, [panic, pass, Outcome::Harness, pass, panic, pass]);
}
