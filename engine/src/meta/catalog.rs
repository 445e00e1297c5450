//! The objects of the catalog as they are stored and sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{NodeId, RegionId, ReplicaId, Schema, TableId, Value};

/// A table and where its rows are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDef {
    /// Never reused.
    pub id: TableId,
    /// Unique among the tables that exist.
    pub name: String,
    /// Its columns and row key.
    pub schema: Schema,
    /// Which row belongs to which region.
    pub partition: PartitionRule,
    /// Options given at CREATE, by name.
    pub options: BTreeMap<String, String>,
    /// The regions, by number: region `i` holds partition `i`.
    pub regions: Vec<RegionDef>,
}

/// A region and where its replicas are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionDef {
    /// Its id.
    pub id: RegionId,
    /// The replicas and their nodes. The group is formed at the first one if it can be, which so becomes its first
    /// leader: placement spreads the first ones over the nodes.
    pub replicas: BTreeMap<ReplicaId, NodeId>,
}

/// Which row belongs to which region. All columns are columns of the row key, so that a row never moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartitionRule {
    /// One expression a region; exactly one holds of every row.
    Expressions {
        /// The columns that they name.
        columns: Vec<String>,
        /// In the order of the regions.
        expressions: Vec<PartitionExpr>,
    },
    /// By a stable hash of the encoded values of `columns`, into `regions` regions.
    Hash {
        /// The columns that are hashed.
        columns: Vec<String>,
        /// How many regions.
        regions: u32,
    },
}

impl PartitionRule {
    /// How many regions a table with this rule has.
    pub fn regions(&self) -> u64 {
        match self {
            PartitionRule::Expressions { expressions, .. } => expressions.len() as u64,
            PartitionRule::Hash { regions, .. } => u64::from(*regions),
        }
    }
}

/// A boolean expression over the partition columns. A comparison with NULL treats NULL as less than every value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum PartitionExpr {
    Compare { column: String, op: CompareOp, value: Value },
    And(Box<PartitionExpr>, Box<PartitionExpr>),
    Or(Box<PartitionExpr>, Box<PartitionExpr>),
}

/// A comparison operator of a partition expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CompareOp {
    Eq,
    NotEq,
    Lt,
    LtEq,
    Gt,
    GtEq,
}

/// What a CREATE TABLE asks for; meta gives the ids and places the replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTable {
    /// The name.
    pub name: String,
    /// Columns and row key, version 1.
    pub schema: Schema,
    /// Checked already: no gaps, no overlaps.
    pub partition: PartitionRule,
    /// Known options with legal values.
    pub options: BTreeMap<String, String>,
    /// Whether it is fine that a table of that name exists.
    pub if_not_exists: bool,
}
