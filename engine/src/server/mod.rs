//! One node: hosts replicas and meta, serves its peers and its clients.
//!
//! [`Node::run`] opens the store (identity, log, replicas) and serves requests; what arrives is answered in
//! `node.rs`, by the replica that it is for. A replica that dies is opened anew; when the log has failed, the store is, as
//! a whole.

mod expiry;
mod fill;
mod follower;
mod identity;
mod mend;
pub mod message;
mod meta_replica;
mod node;
pub mod router;
pub mod rpc;
mod store;
#[cfg(test)]
mod tests;

pub use node::{Node, NodeConfig, Seams, Stop, print_rows};
