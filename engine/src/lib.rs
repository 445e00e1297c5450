//! Seedbed: a region engine with incremental materialized views; each region is a raft group.
#![warn(missing_docs)]

pub mod clock;
pub mod disk;
pub mod error;
pub mod event;
pub mod frontend;
pub mod log;
pub mod meta;
pub mod net;
pub mod options;
pub mod raft;
pub mod region;
pub mod server;
pub mod sql;
pub mod storage;
pub mod types;

pub use error::{Error, Result};
