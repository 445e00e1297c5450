//! `ADMIN .. TABLE`: what each replica of a table does by itself sooner or later, now.

use futures::future::join_all;

use super::deadline::Deadline;
use super::{Frontend, Output};
use crate::error::Result;
use crate::server::message::Request;
use crate::sql::AdminVerb;

impl Frontend {
    /// Asks every replica of `table`; answers when all have done it. The first that has not is named by the error.
    pub(super) async fn admin(&self, verb: AdminVerb, table: &str, deadline: Deadline) -> Result<Output> {
        let table = self.routes().table(table, deadline).await?;
        let replicas = table.regions.iter().flat_map(|def| def.replicas.values().map(|node| (def.id, *node)));
        let asked = replicas.map(|(region, node)| {
            let request = match verb {
                AdminVerb::Flush => Request::Flush { region },
                AdminVerb::Compact => Request::Compact { region },
            };
            self.routes().replica(region, node, request, deadline)
        });
        join_all(asked).await.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(Output::Done)
    }
}
