//! The runner's side: which seeds, in which processes, judged how.

pub mod judge;
pub mod log;
pub mod pool;
pub mod process;
pub mod project;
pub mod seeds;
pub mod sweep;
