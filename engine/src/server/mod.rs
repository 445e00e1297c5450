//! One node: hosts replicas and meta, serves its peers and its clients.

pub mod message;
pub mod rpc;
