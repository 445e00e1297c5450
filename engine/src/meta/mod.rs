//! Raft group 0: catalog, routes and procedures.

pub mod catalog;
pub mod request;
