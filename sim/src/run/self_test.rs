//! How the harness is tried: a worker that runs a small cluster as any other, and misbehaves in the middle of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Setup;
use super::hub::Hub;
use super::outcome::Outcome;
use super::report::Effect;
use crate::oracle::Violation;
use crate::plan::Plan;
use crate::scenario::happened::{Claim, Happened};
use crate::scenario::period::{Period, as_text};
use crate::scenario::{Action, Cluster, Expect, Statement, Step, default_options};

/// What a worker does instead of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Nothing more than its small run.
    Quiet,
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
    /// An event has a payload that no seed decides.
    Flaky,
}

impl SelfTest {
    const WORDS: &'static [(&'static str, SelfTest)] = &[
        ("quiet", SelfTest::Quiet),
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
        f.write_str(SelfTest::WORDS.iter().find(|(_, test)| test == self).map_or("quiet", |(word, _)| word))
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

/// The run that the misbehaviour happens in: one node, one table, two rows. Made here and not read from text: nothing is
/// parsed on the thread of a simulation.
pub(super) fn setup(test: SelfTest, seed: u64) -> Setup {
    let sql = |sql: &str| {
        Action::Sql(Statement {
            sql: sql.to_string(),
            error: None,
            rows: None,
            client: None,
            node: None,
            within: None,
            unknown: Default::default(),
            start: None,
        })
    };
    let mut actions = vec![
        sql("CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)"),
        sql("INSERT INTO t VALUES (1, 10), (2, 20)"),
        // What misbehaves does so now.
        Action::Sleep(Period::ms(500)),
    ];
    if test == SelfTest::Liveness {
        actions.push(Action::Sleep(Period::ms(3_600_000)));
    }
    let power_loss = Happened {
        text: "a node lost power".to_string(),
        claim: Claim::Effect(Effect::PowerLosses),
        at_least: 1,
        each: false,
    };
    let happened = if test == SelfTest::Vacuous { vec![power_loss] } else { Vec::new() };
    let expect = Expect { result: Vec::new(), holds: Vec::new(), happened, exempt: Vec::new(), outcome: Outcome::Pass };
    let plan = Plan {
        cell: None,
        scenario: "self_test".to_string(),
        title: "the harness is tried".to_string(),
        seed,
        stir: 0,
        budget: Period::ms(120_000),
        cluster: Cluster { nodes: 1, options: default_options() },
        expect,
        steps: actions.into_iter().enumerate().map(|(at, action)| Step { line: at as u32 + 1, action }).collect(),
        rules: Vec::new(),
        workloads: Vec::new(),
        faults: Vec::new(),
    };
    Setup { plan, directory: PathBuf::from("/"), until: None }
}

/// Does it, once the rows are written.
pub(super) async fn misbehave(test: SelfTest, seed: u64, hub: Hub) {
    while hub.state().rows() < 2 {
        madsim::time::sleep(Duration::from_millis(10)).await;
    }
    match test {
        SelfTest::Quiet | SelfTest::Liveness | SelfTest::Vacuous => {}
        SelfTest::Panic => panic!("seed {seed} panics on purpose"),
        SelfTest::CaughtPanic => {
            let caught = std::panic::catch_unwind(|| panic!("seed {seed} panics and is caught"));
            assert!(caught.is_err());
        }
        SelfTest::Abort => std::process::abort(),
        SelfTest::Overflow => hub.note("overflow", &deeper(seed).to_string()),
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
        }
        SelfTest::Safety => hub.fail(Violation {
            oracle: "clients",
            signature: "a row is gone".to_string(),
            evidence: vec![
                "key (JFK, UA, 1)".to_string(),
                "expected the row that was acknowledged".to_string(),
                "found nothing".to_string(),
            ],
        }),
        SelfTest::Flaky => hub.note("flaky", &format!("process {}", std::process::id())),
    }
}

/// Recurses for as long as the stack lasts. Each frame has something that no optimiser may drop.
#[expect(unconditional_recursion, reason = "it is to overflow")]
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 512]);
    deeper(depth + 1) + std::hint::black_box(&frame)[7]
}
