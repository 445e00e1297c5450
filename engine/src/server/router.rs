//! The way to every node, this one included.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::message::{Request, Response};
use super::rpc::{Handler, Peers};
use crate::error::{Error, Result};
use crate::types::NodeId;

/// The way to the other nodes.
#[async_trait]
pub trait Remote: Send + Sync + 'static {
    /// What `to` answers to `request`. An answer that does not come within `within` is an `Unknown` outcome; a request that
    /// surely was not sent is an error that says so (`Busy`).
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response>;
}

#[async_trait]
impl Remote for Peers {
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        Peers::call(self, to, request, within).await
    }
}

/// Takes a request to the node that it is for.
pub struct Router {
    node: NodeId,
    local: Option<Weak<dyn Handler>>,
    remote: Arc<dyn Remote>,
}

impl Router {
    /// The ways from `node`, which answers its own requests by `local`. (Weak: the node holds the router.)
    pub fn new(node: NodeId, local: Weak<dyn Handler>, remote: Arc<dyn Remote>) -> Router {
        Router { node, local: Some(local), remote }
    }

    /// The ways from a client that is no node.
    pub fn of_client(remote: Arc<dyn Remote>) -> Router {
        Router { node: NodeId::default(), local: None, remote }
    }

    /// The node that it stands on; none for a client that is no node.
    pub fn node(&self) -> Option<NodeId> {
        self.local.as_ref().map(|_| self.node)
    }

    /// What `to` answers to `request`, given up after `within`: then the outcome is `Unknown`.
    pub async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        let Some(local) = self.local.as_ref().filter(|_| to == self.node) else {
            return self.remote.call(to, request, within).await;
        };
        let handler = local.upgrade().ok_or(Error::Stopped)?;
        let name = request.kind().name();
        match tokio::time::timeout(within, handler.handle(self.node, request, within)).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("node {to} did not answer {name} within {} ms", within.as_millis());
                Err(Error::Unknown { message })
            }
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("node", &self.node).finish_non_exhaustive()
    }
}
