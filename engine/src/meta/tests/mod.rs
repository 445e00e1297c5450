//! Tests of the whole: golden scripts and random entries for the pure core, a cluster of fakes for what is async.

mod cluster;
mod property;
mod script;

use super::catalog::{CreateTable, LegDef, PartitionRule, TableDef, ViewDef};
use super::{Command, Limits};
use crate::types::{Alteration, Column, ColumnId, ColumnType, NodeId, Place, ReplicaId, Schema, SessionId, Value};

/// Nodes 1 to `nodes`; up to three of them have a replica of the meta group, with the node's number.
pub(crate) fn bootstrap(nodes: u64) -> Command {
    bootstrap_with(nodes, Limits { results: 100, table_regions: 16 })
}

pub(crate) fn bootstrap_with(nodes: u64, limits: Limits) -> Command {
    Command::Bootstrap {
        nodes: (1..=nodes).map(NodeId).collect(),
        members: (1..=nodes.min(3)).map(|node| (ReplicaId(node), NodeId(node))).collect(),
        limits,
    }
}

/// A table with one column, in `regions` hashed regions.
pub(crate) fn table(name: &str, regions: u32) -> CreateTable {
    let column = Column {
        id: ColumnId(1),
        name: "id".to_string(),
        column_type: ColumnType::Int64,
        nullable: false,
        default: None,
    };
    CreateTable {
        name: name.to_string(),
        schema: Schema::new(1, vec![column], &["id".to_string()], None).unwrap(),
        partition: PartitionRule::Hash { columns: vec!["id".to_string()], regions },
        replicas: None,
        if_not_exists: false,
        view: None,
    }
}

/// A view with one column, in `regions` hashed regions; a scan of each of `feeders`.
pub(crate) fn view(name: &str, regions: u32, feeders: &[&TableDef]) -> CreateTable {
    let leg = |feeder: &&TableDef| LegDef {
        feeder: feeder.id,
        name: feeder.name.clone(),
        schema: feeder.schema.clone(),
        uses: [ColumnId(1)].into(),
    };
    let query = "SELECT id FROM ..".to_string();
    let legs = feeders.iter().map(leg).collect();
    let view = ViewDef { query, legs, chunk_rows: None, rate_limit: None };
    CreateTable { view: Some(Box::new(view)), ..table(name, regions) }
}

/// A column that is added to such a table.
pub(crate) fn added(name: &str) -> Alteration {
    Alteration::Add {
        name: name.to_string(),
        column_type: ColumnType::Int32,
        nullable: true,
        default: None,
        absent: Value::Null,
        place: Place::Last,
    }
}

/// Creates that table; `request` is session and statement.
pub(crate) fn create(name: &str, regions: u32, request: (u64, u64)) -> Command {
    Command::StartCreate { table: Box::new(table(name, regions)), request: (SessionId(request.0), request.1) }
}
