//! How fast the real build is on the operating system's files: `cargo real-bench`, or `cargo real-bench NAME` for those that have
//! `NAME` in theirs.
//!
//! `log` and `region` are measured alone; what stands in `side_by_side` against something else that does the same, in the same run,
//! and ends with a ratio.
//!
//! Whatever is durable waits for the disk behind the folder for temporary files (`TMPDIR`): in a file system in memory an fsync
//! costs nothing, and the figures mean nothing. Built for the simulation, where nothing of this can run, it only says so.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it looks at the engine from outside, and at what is not the engine"
)]

#[cfg(not(madsim))]
mod flights;
#[cfg(not(madsim))]
mod log;
#[cfg(not(madsim))]
mod one;
#[cfg(not(madsim))]
mod region;
#[cfg(not(madsim))]
mod side_by_side;

#[cfg(not(madsim))]
fn main() {
    divan::main();
    side_by_side::main();
}

#[cfg(madsim)]
fn main() {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "benches run in the real build only: cargo real-bench");
}
