//! `ADMIN ..`: what a cluster does by itself sooner or later, now.

use futures::future::join_all;

use super::deadline::Deadline;
use super::route::mismatch;
use super::{Frontend, Output};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::server::message::{Request, Response};
use crate::sql::AdminVerb;
use crate::types::NodeId;

impl Frontend {
    pub(super) async fn admin(&self, verb: AdminVerb, table: &str, deadline: Deadline) -> Result<Output> {
        let table = self.routes().table(table, deadline).await?;
        match verb {
            AdminVerb::Flush => self.each_replica(&table, |region| Request::Flush { region }, deadline).await?,
            AdminVerb::Compact { is_strict } => {
                self.each_replica(&table, |region| Request::Compact { region, is_strict }, deadline).await?;
            }
            AdminVerb::Pin { name } => {
                self.each_region(&table, |region| Request::Pin { region, name: name.clone() }, deadline).await?;
            }
            AdminVerb::Unpin { name } => {
                self.each_region(&table, |region| Request::Unpin { region, name: name.clone() }, deadline).await?;
            }
            AdminVerb::Transfer { region, to } => self.transfer(&table, region, to, deadline).await?,
        }
        Ok(Output::Done)
    }

    /// Asks every replica of `table`; answers when all have done it. The first that has not is named by the error.
    async fn each_replica(
        &self,
        table: &TableDef,
        request: impl Fn(crate::types::RegionId) -> Request,
        deadline: Deadline,
    ) -> Result<()> {
        let replicas = table.regions.iter().flat_map(|def| def.replicas.values().map(|node| (def.id, *node)));
        let asked = replicas.map(|(region, node)| self.routes().replica(region, node, request(region), deadline));
        join_all(asked).await.into_iter().collect()
    }

    /// Asks the leader of every region of `table`; the same as above.
    async fn each_region(
        &self,
        table: &TableDef,
        request: impl Fn(crate::types::RegionId) -> Request,
        deadline: Deadline,
    ) -> Result<()> {
        let asked = table.regions.iter().map(|def| {
            let request = request(def.id);
            async move {
                match self.routes().region(def, &request, deadline).await.result? {
                    Response::Done => Ok(()),
                    other => Err(mismatch(&other)),
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Asks whoever leads to hand over, until the replica on `to` says that it leads. It may lose to another one that stands
    /// at the same time, or be behind: then it is asked again.
    async fn transfer(&self, table: &TableDef, region: u32, to: NodeId, deadline: Deadline) -> Result<()> {
        let Some(def) = table.regions.get(region as usize) else {
            let message =
                format!("table {} has the regions 0 to {}, not {region}", table.name, table.regions.len() - 1);
            return Err(Error::invalid(Invalid::OutOfRange, message));
        };
        let Some((replica, _)) = def.replicas.iter().find(|(_, node)| **node == to) else {
            let nodes: Vec<String> = def.replicas.values().map(ToString::to_string).collect();
            let message = format!("region {} has replicas on {}, not on {to}", def.id, nodes.join(", "));
            return Err(Error::invalid(Invalid::OutOfRange, message));
        };
        let mut pauses = self.options().pauses();
        loop {
            let status = self.routes().status(to, deadline).await.unwrap_or_default();
            if status.iter().any(|one| one.replica == *replica && one.is_leader) {
                return Ok(());
            }
            let request = Request::Transfer { region: def.id, to: *replica };
            match self.routes().region(def, &request, deadline).await.result? {
                Response::Done => {}
                other => return Err(mismatch(&other)),
            }
            if !deadline.pause(&mut pauses).await {
                return Err(Error::Deadline {
                    waiting_for: format!("the replica of region {} on {to} to lead", def.id),
                });
            }
        }
    }
}
