//! Requests and answers between nodes, as checksummed frames over the seam [`Net`](crate::net::Net).

use std::time::Duration;

use async_trait::async_trait;

use super::message::{Request, Response};
use crate::error::Result;
use crate::types::NodeId;

/// Answers requests: the node behind the network.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers `request` of `from` (node 0: a client). The peer stops waiting after `within`.
    async fn handle(&self, from: NodeId, request: Request, within: Duration) -> Result<Response>;
}
