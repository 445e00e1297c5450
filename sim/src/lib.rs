//! The deterministic harness: whole clusters in one thread under a simulated network, disk and clock; a seed decides
//! everything that happens.
//!
//! A seed of a scenario goes this way:
//!
//! 1. [`scenario::read`] makes data of the TOML file, or says at which line and column it is wrong.
//! 2. [`plan::Plan::resolve`] makes every random choice of faults and workload for the seed: plain data again.
//! 3. [`runner::pool`] hands the plan to a free worker process ([`runner::process`]), one process per seed.
//! 4. [`worker::main`] reads the plan from its standard input, and on a fresh thread [`run::run_plan`] runs it:
//!    a [`cluster`] of nodes of the product on a simulated [`disk`], [`net`] and [`clock`], clients, faults, [`oracle`]s.
//! 5. The report comes back as one line of JSON; [`runner::judge`] compares it with the reviewed snapshots.
//! 6. A failure is run once more with everything recorded, and kept ([`report::directory`]).
//! 7. [`report`] says it to people, to machines, to GitHub.
#![warn(missing_docs)]

#[cfg(not(madsim))]
compile_error!(
    "the simulation needs `--cfg madsim`, which .cargo/config.toml sets. The variable RUSTFLAGS (or \
     CARGO_ENCODED_RUSTFLAGS, or build.rustflags of another config file) replaces that setting: unset it, or add \
     `--cfg madsim` to it."
);

pub mod cli;
pub mod clock;
pub mod cluster;
pub mod determinism;
pub mod disk;
pub mod draw;
pub mod hash;
pub mod net;
pub mod oracle;
pub mod plan;
pub mod report;
pub mod run;
pub mod runner;
pub mod scenario;
pub mod trace;
pub mod worker;
