//! A region: its rows, its side state, its files; driven by the entries of its raft group.

pub mod request;
