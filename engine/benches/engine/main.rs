//! How fast the real build is on the operating system's files: `cargo real-bench`.
//!
//! Appends and inserts wait for the disk behind the folder for temporary files (`TMPDIR`): in a file system in memory an fsync
//! costs nothing, and the figures mean nothing. Built for the simulation, where nothing of this can run, it only says so.

#[cfg(not(madsim))]
mod log;
#[cfg(not(madsim))]
mod region;

#[cfg(not(madsim))]
fn main() {
    divan::main();
}

#[cfg(madsim)]
fn main() {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "benches run in the real build only: cargo real-bench");
}
