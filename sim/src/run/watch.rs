//! Looks at the cluster while and after it runs: disks after a power loss, the content of replicas, convergence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int8Type, Schema as ArrowSchema};
use engine::meta::catalog::TableDef;
use engine::region::request::{ReplicaStatus, ScanRequest};
use engine::server::message::{Request, Response};
use engine::storage::changes::SIGN_COLUMN;
use engine::types::{
    Condition, Key, NodeId, Predicate, RegionId, ReplicaId, Schema, Sequence, Value, decode_batch, encode_keys,
};

use super::hub::Hub;
use crate::cluster::Cluster;
use crate::oracle::model::{Row, row_at};
use crate::oracle::{IndexOracle, Scanned, images};

/// What looks at one replica waits at most so long for an answer: it may be paused, or its disk may stall.
const LOOK: Duration = Duration::from_secs(5);

/// Opens what a power failure would leave of the node's disk now, and holds it against what the node has promised.
pub async fn look_at_disk(cluster: &Cluster, hub: &Hub, node: NodeId) {
    let image = cluster.disk(node).power_failure_image();
    let promises = hub.state().images.promises(node);
    let options = cluster.options().clone();
    let checked = images::check(node, image.mount(), &image.rotten(), &options, &promises).await;
    hub.state().images.evaluated();
    if let Err(violation) = checked {
        hub.fail(violation);
    }
}

/// The replica of `region` on `node`, as it says of itself; none if it cannot answer now.
pub async fn status(cluster: &Cluster, node: NodeId, region: RegionId) -> Option<ReplicaStatus> {
    let request = Request::Status { region: Some(region) };
    match cluster.ask(node, request, LOOK).await {
        Ok(Response::Status(mut statuses)) => statuses.pop(),
        _ => None,
    }
}

/// Holds what the replica of `region` on `node` returns for everything against the model: at its newest sequence, at those
/// that are pinned, and if versions are gone at the oldest that can still be read and at one between. A replica that cannot
/// answer now is not judged.
pub async fn compare(cluster: &Cluster, hub: &Hub, node: NodeId, region: RegionId) {
    let Some(table) = hub.state().model.tables().find(|table| table.id == region.table()).cloned() else { return };
    let Some(status) = status(cluster, node, region).await else { return };
    let judged = {
        let mut state = hub.state();
        let state = &mut *state;
        let judged = state.scans.judge_columns(&state.model, &status);
        judged.and_then(|()| state.scans.judge_pins(&state.model, &status))
    };
    if let Err(violation) = judged {
        return hub.fail(violation);
    }
    compare_at(cluster, hub, node, &table, &status, status.sequence, None).await;
    compare_indexes(cluster, hub, node, &status).await;
    let pins = hub.state().model.region(region).map(|model| model.pins()).unwrap_or_default();
    let mut others: BTreeSet<Sequence> = pins.into_iter().map(|(sequence, _)| sequence).collect();
    if status.oldest > Sequence(0) {
        let between = Sequence(status.oldest.0.midpoint(status.sequence.0));
        others.extend([status.oldest, between]);
    }
    if let Some(first) = others.first().copied().filter(|first| *first <= status.sequence) {
        compare_at(cluster, hub, node, &table, &status, status.sequence, Some(first)).await;
    }
    {
        for sequence in others {
            if sequence < status.sequence {
                compare_at(cluster, hub, node, &table, &status, sequence, None).await;
            }
        }
    }
}

/// Holds the indexes of the replica that have all rows against its rows, and what is found by them against the model.
async fn compare_indexes(cluster: &Cluster, hub: &Hub, node: NodeId, status: &ReplicaStatus) {
    let (region, replica) = (status.region, status.replica);
    let known = hub.state().model.region(region).and_then(|region| region.schema(status.schema_version).cloned());
    let Some(schema) = known else { return };
    for index in schema.indexes() {
        let request = Request::CheckIndex { region, index: index.id, here: true };
        // It is being filled, or the replica is on its way down.
        let Ok(Response::IndexChecked(found)) = cluster.ask(node, request, LOOK).await else { continue };
        let judged = hub.state().indexes.judge_entries(&index.name, node, replica, &found);
        if let Err(violation) = judged {
            return hub.fail(violation);
        }
        let (Some(column), sequence) = (index.columns.first().copied(), status.sequence) else { continue };
        let Some(name) = schema.columns().iter().find(|one| one.id == column).map(|one| one.name.clone()) else {
            continue;
        };
        let some = IndexOracle::value_of(&hub.state().model, region, column, sequence);
        for value in [Some(Value::Null), some].into_iter().flatten() {
            let condition = if value.is_null() { Condition::IsNull } else { Condition::Eq(value.clone()) };
            let scan = ScanRequest {
                schema_version: schema.version,
                columns: schema.columns().iter().map(|column| column.name.clone()).collect(),
                predicates: vec![Predicate { column: name.clone(), condition }],
                upto: Some(sequence),
                index: Some(index.id),
                ..ScanRequest::default()
            };
            let Some(rows) = pages(cluster, node, region, &schema, scan).await else { return };
            let version = schema.version;
            let scanned = Scanned { region, replica, node, sequence, version, rows };
            let judged = {
                let mut state = hub.state();
                let state = &mut *state;
                state.indexes.judge_read(&state.model, &index.name, (column, &value), &scanned)
            };
            if let Err(violation) = judged {
                return hub.fail(violation);
            }
        }
    }
}

/// All rows of a scan; none: the replica cannot answer it now.
async fn pages(
    cluster: &Cluster,
    node: NodeId,
    region: RegionId,
    schema: &Schema,
    mut scan: ScanRequest,
) -> Option<Vec<(Key, Row)>> {
    let mut rows = Vec::new();
    loop {
        let Ok(Response::Scan(page)) = cluster.ask(node, Request::Scan { region, scan: scan.clone() }, LOOK).await
        else {
            return None;
        };
        for batch in page.batches.iter().filter_map(|batch| decode_batch(batch, &schema.to_arrow()).ok()) {
            let keys = encode_keys(&batch, &schema.key()).into_iter().enumerate();
            rows.extend(keys.map(|(number, key)| (key, row_at(schema, &batch, number))));
        }
        scan.after = page.next;
        if scan.after.is_none() {
            return Some(rows);
        }
    }
}

/// Reads the replica at `sequence`: all of it, or what changed behind `since`.
async fn compare_at(
    cluster: &Cluster,
    hub: &Hub,
    node: NodeId,
    table: &TableDef,
    status: &ReplicaStatus,
    sequence: Sequence,
    since: Option<Sequence>,
) {
    let region = status.region;
    let mut rows: Vec<(Key, Row)> = Vec::new();
    let sign = Arc::new(Field::new(SIGN_COLUMN, DataType::Int8, false));
    let mut after = None;
    let version = status.schema_version;
    let known = hub.state().model.region(region).and_then(|region| region.schema(version).cloned());
    let table = known.unwrap_or_else(|| table.schema.clone());
    let schema = match since {
        None => table.to_arrow(),
        Some(_) => {
            let fields = table.to_arrow().fields().iter().cloned().chain([sign]).collect::<Vec<_>>();
            Arc::new(ArrowSchema::new(fields))
        }
    };
    let mut signs: Vec<i8> = Vec::new();
    loop {
        let scan = ScanRequest {
            schema_version: version,
            columns: table.columns().iter().map(|column| column.name.clone()).collect(),
            upto: Some(sequence),
            since,
            after,
            ..ScanRequest::default()
        };
        let page = match cluster.ask(node, Request::Scan { region, scan }, LOOK).await {
            Ok(Response::Scan(page)) => page,
            Err(engine::Error::Damaged { file, message }) => {
                let violation = hub.state().scans.unreadable(region, node, &format!("{file}: {message}"));
                return hub.fail(violation);
            }
            // It is on its way down, waits for a disk, or has compacted that sequence away or was altered meanwhile.
            _ => return,
        };
        for batch in &page.batches {
            let Ok(batch) = decode_batch(batch, &schema) else {
                let violation = hub.state().scans.unreadable(region, node, "it answers with something else than rows");
                return hub.fail(violation);
            };
            if let Some(column) = batch.column_by_name(SIGN_COLUMN) {
                signs.extend(column.as_primitive::<Int8Type>().values());
            }
            for (number, key) in encode_keys(&batch, &table.key()).into_iter().enumerate() {
                rows.push((key, row_at(&table, &batch, number)));
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let scanned = Scanned { region, replica: status.replica, node, sequence, version, rows };
    let judged = {
        let mut state = hub.state();
        let state = &mut *state;
        match since {
            None => state.scans.judge(&state.model, &scanned),
            Some(since) => state.scans.judge_changes(&state.model, since, &scanned, &signs),
        }
    };
    if let Err(violation) = judged {
        hub.fail(violation);
    }
}

/// At calm: views are what their queries give, and no region of `regions` has legs that it should not.
pub async fn look_at_views(cluster: &Cluster, hub: &Hub, regions: &[RegionId]) {
    let judged = hub.state().judge_whole_views();
    if let Err(violation) = judged {
        return hub.fail(violation);
    }
    if !hub.state().views.is_due() {
        return;
    }
    for region in regions.iter().filter(|region| **region != RegionId::META) {
        let Some(leader) = hub.state().leader(*region) else { continue };
        // (It was there a moment ago; one that leads no more says so.)
        let Ok(Response::Legs(legs)) = cluster.ask(leader, Request::Legs { region: *region }, LOOK).await else {
            continue;
        };
        let judged = hub.state().judge_residue(*region, &legs);
        if let Err(violation) = judged {
            return hub.fail(violation);
        }
    }
}

/// A replica on a node that is none of its region's any more, and that nobody has dropped.
pub async fn stray(cluster: &Cluster, hub: &Hub) -> Option<String> {
    for node in cluster.ids() {
        let Ok(Response::Status(statuses)) = cluster.ask(node, Request::Status { region: None }, LOOK).await else {
            return Some(format!("{node} does not say what it has"));
        };
        for status in statuses {
            if !hub.state().replicas_of(status.region).contains(&(node, status.replica)) {
                return Some(format!(
                    "replica {} of {} is on {node}, and is not in the catalog",
                    status.replica, status.region
                ));
            }
        }
    }
    None
}

/// Whether every replica of `regions` runs, has applied the same entry, knows the same leader, and knows the replicas of the
/// catalog as the members of its group, each with a vote, and nobody else. Else: who does not.
pub async fn apart(cluster: &Cluster, hub: &Hub, regions: &[RegionId]) -> Option<String> {
    for region in regions {
        let replicas = hub.state().replicas_of(*region);
        let members: BTreeMap<ReplicaId, NodeId> = replicas.iter().map(|(node, replica)| (*replica, *node)).collect();
        let voters = [members.keys().copied().collect::<BTreeSet<ReplicaId>>()];
        let mut first: Option<ReplicaStatus> = None;
        for (node, replica) in replicas {
            let Some(status) = status(cluster, node, *region).await else {
                return Some(format!("replica {replica} of {region} on {node} does not answer"));
            };
            if status.leader.is_none() {
                return Some(format!("replica {replica} of {region} on {node} knows no leader"));
            }
            if status.members != members || status.voters != voters {
                return Some(format!(
                    "{region}: replica {replica} has the members {:?} with the voters {:?}, the catalog has {members:?}",
                    status.members, status.voters
                ));
            }
            match &first {
                None => first = Some(status),
                Some(one) if one.applied == status.applied && one.leader == status.leader => {}
                Some(one) => {
                    return Some(format!(
                        "{region}: {} is at {:?} under {:?}, {} at {:?} under {:?}",
                        one.replica, one.applied, one.leader, status.replica, status.applied, status.leader
                    ));
                }
            }
        }
    }
    None
}
