//! `ADMIN CHECKSUM TABLE t`: what each replica of a table or a view has, all of them as of the same entry of their region's log.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, UInt64Array};
use futures::future::join_all;

use super::deadline::Deadline;
use super::system::{batch, texts};
use super::{Frontend, Output};
use crate::error::Result;
use crate::meta::catalog::RegionDef;
use crate::region::request::{Checksum, Moment};
use crate::types::{NodeId, RegionId, ReplicaId};

/// What a replica says, or why it does not.
struct Row {
    region: RegionId,
    replica: ReplicaId,
    node: NodeId,
    at: Option<Moment>,
    answer: Result<Checksum>,
}

impl Frontend {
    /// One row for each replica. One that is away has an error in the place of its checksum, and the others are answered: half of
    /// the statement's time is for them.
    pub(super) async fn checksum(&self, name: &str, deadline: Deadline) -> Result<Output> {
        // Replicas may have moved.
        self.routes().forget(name);
        let table = self.routes().table(name, deadline).await?;
        let soon = Deadline::after(deadline.left().mul_f64(0.5).max(Duration::from_millis(1)));
        let rows = join_all(table.regions.iter().map(|region| self.checksums(region, soon))).await;
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        let known = |value: fn(&Checksum) -> u64| -> ArrayRef {
            let values = rows.iter().map(|row| row.answer.as_ref().ok().map(value));
            Arc::new(values.collect::<UInt64Array>())
        };
        let at = |value: fn(&Moment) -> Option<u64>| -> ArrayRef {
            Arc::new(rows.iter().map(|row| row.at.as_ref().and_then(value)).collect::<UInt64Array>())
        };
        let checksum = |row: &Row| row.answer.as_ref().ok().map(|answer| format!("{:016x}", answer.checksum));
        let (schema, batch) = batch(vec![
            ("region", false, texts(rows.iter().map(|row| Some(row.region.to_string())))),
            ("replica", false, Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.replica.0)))),
            ("node", false, Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.node.0)))),
            ("applied", true, at(|moment| moment.applied.map(|applied| applied.index))),
            ("sequence", true, at(|moment| Some(moment.sequence.0))),
            ("rows", true, known(|answer| answer.rows)),
            ("checksum", true, texts(rows.iter().map(checksum))),
            ("error", true, texts(rows.iter().map(|row| row.answer.as_ref().err().map(ToString::to_string)))),
        ])?;
        Ok(Output::Rows { schema, batches: vec![batch] })
    }

    async fn checksums(&self, region: &RegionDef, deadline: Deadline) -> Vec<Row> {
        let moment = self.routes().moment(region, deadline).await;
        let of = |(replica, node): (&ReplicaId, &NodeId)| {
            let (region, replica, node, moment) = (region.id, *replica, *node, moment.clone());
            async move {
                let (at, answer) = match moment {
                    Ok(at) => (Some(at), self.routes().checksum(region, node, at, deadline).await),
                    Err(err) => (None, Err(err)),
                };
                Row { region, replica, node, at, answer }
            }
        };
        join_all(region.replicas.iter().map(of)).await
    }
}
