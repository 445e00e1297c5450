//! The objects of the catalog as they are stored and sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::{ColumnId, IndexId, NodeId, ProcedureId, RegionId, ReplicaId, Schema, TableId, Timestamp, Value};

/// A table and where its rows are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDef {
    /// Never reused.
    pub id: TableId,
    /// Unique among the tables that exist.
    pub name: String,
    /// Its columns, row key and options.
    pub schema: Schema,
    /// Which row belongs to which region.
    pub partition: PartitionRule,
    /// The regions, by number: region `i` holds partition `i`.
    pub regions: Vec<RegionDef>,
    /// Of a materialized view: where its rows come from.
    pub view: Option<Box<ViewDef>>,
    /// How far the indexes of its schema are.
    pub indexes: BTreeMap<IndexId, IndexState>,
}

/// How far an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexState {
    /// Names its backfill: the procedure that watches it, or did.
    pub job: ProcedureId,
    /// Whether all regions have all rows in it: queries use it from then on.
    pub is_ready: bool,
    /// When it was recorded, by the clock of meta's leader of then.
    pub started_at: Timestamp,
}

/// A materialized view, besides its columns and regions: what it is filled with.
///
/// Everything that runs the query makes its plan anew from this, so what it means does not change by what becomes of the
/// feeders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewDef {
    /// The query.
    pub query: String,
    /// The scans of the query, in the order in which they stand there.
    pub legs: Vec<LegDef>,
    /// Rows of a batch at most; none: as the node's options say.
    pub chunk_rows: Option<u64>,
    /// Rows a second at most that each region of a feeder is read with, until the view is ready; none: as fast as it goes.
    pub rate_limit: Option<u64>,
}

/// The columns of a view that are the engine's own, and how its rows are laid out.
///
/// A view *without aggregates* has a row for each row of its feeders that passes its condition. Its row key is the feeder's,
/// where the query selects all columns of that by themselves; otherwise it is [`KEY`](columns::KEY).
///
/// A view *with aggregates* has several rows for each group, which stand beside each other: the row key is the columns of GROUP
/// BY (those that the query does not select by themselves are the engine's), then [`PART`](columns::PART) and
/// [`VALUE`](columns::VALUE). Part 0 is the row that SELECT shows, if HAVING lets it; part 1 has the state of the group's
/// aggregates in [`STATE`](columns::STATE); the parts from 2 on have one row for each value that MIN and MAX choose from.
pub mod columns {
    /// BINARY: the leg (4 bytes, big endian), the feeder's row key; and the sequence (8 bytes, big endian), where rows of the
    /// feeder are told apart by it.
    pub const KEY: &str = "__key";
    /// Begins the names of the columns that a query groups by and does not select: the position in GROUP BY follows.
    pub const GROUP: &str = "__group_";
    /// TINYINT UNSIGNED: what a row of a group is.
    pub const PART: &str = "__part";
    /// BINARY: which value it is, in the order in which the aggregate chooses; empty in the parts 0 and 1.
    pub const VALUE: &str = "__value";
    /// BINARY: the state of a group (part 1), or how often a value is there (parts from 2 on).
    pub const STATE: &str = "__state";

    /// Whether a column is the engine's own.
    pub fn is_hidden(name: &str) -> bool {
        name.starts_with("__")
    }
}

/// A scan of a feeder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegDef {
    /// The feeder: a table or a view.
    pub feeder: TableId,
    /// What the query calls it.
    pub name: String,
    /// Its columns as they were when the view was created.
    pub schema: Schema,
    /// Those of them that the query uses: as long as the view is there they are neither dropped nor given another name or type.
    pub uses: BTreeSet<ColumnId>,
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
    /// The rule by the names that its columns have after an ALTER that made `is` of `was`.
    pub fn renamed(&self, was: &Schema, is: &Schema) -> PartitionRule {
        let mut rule = self.clone();
        let follow = |name: &mut String| {
            let id = was.column(name).map(|(_, column)| column.id);
            if let Some(column) = is.columns().iter().find(|column| Some(column.id) == id) {
                name.clone_from(&column.name);
            }
        };
        match &mut rule {
            PartitionRule::Hash { columns, .. } => columns.iter_mut().for_each(follow),
            PartitionRule::Expressions { columns, expressions } => {
                columns.iter_mut().for_each(follow);
                expressions.iter_mut().for_each(|expression| expression.rename(&follow));
            }
        }
        rule
    }

    /// How many regions a table with this rule has.
    pub fn regions(&self) -> u64 {
        match self {
            PartitionRule::Expressions { expressions, .. } => expressions.len() as u64,
            PartitionRule::Hash { regions, .. } => u64::from(*regions),
        }
    }
}

/// A boolean expression over the partition columns. A comparison with NULL treats NULL as less than every value.
///
/// Whatever looks at it recurses. Therefore it is stored and sent as a list, and a list that would be too deep or too large
/// a tree, whoever wrote it, is not read ([`PartitionExpr::DEPTH`], [`PartitionExpr::COMPARISONS`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<Postfix>", try_from = "Vec<Postfix>")]
#[expect(missing_docs, reason = "the names say it")]
pub enum PartitionExpr {
    Compare { column: String, op: CompareOp, value: Value },
    And(Box<PartitionExpr>, Box<PartitionExpr>),
    Or(Box<PartitionExpr>, Box<PartitionExpr>),
}

impl PartitionExpr {
    /// The longest way from the root to a comparison. A statement's own bound is lower.
    pub const DEPTH: usize = 1_000;
    /// Comparisons in one expression at most.
    pub const COMPARISONS: usize = 10_000;

    /// How many comparisons it has.
    pub fn comparisons(&self) -> usize {
        match self {
            PartitionExpr::Compare { .. } => 1,
            PartitionExpr::And(a, b) | PartitionExpr::Or(a, b) => a.comparisons() + b.comparisons(),
        }
    }

    fn rename(&mut self, follow: &impl Fn(&mut String)) {
        match self {
            PartitionExpr::Compare { column, .. } => follow(column),
            PartitionExpr::And(a, b) | PartitionExpr::Or(a, b) => {
                a.rename(follow);
                b.rename(follow);
            }
        }
    }
}

/// A [`PartitionExpr`] in postfix order: operands, then what joins the last two.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Postfix {
    Compare { column: String, op: CompareOp, value: Value },
    And,
    Or,
}

impl From<PartitionExpr> for Vec<Postfix> {
    fn from(expr: PartitionExpr) -> Vec<Postfix> {
        // From the last to the first: the root, its right side, its left side.
        let mut reversed = Vec::new();
        let mut todo = vec![expr];
        while let Some(expr) = todo.pop() {
            let (join, a, b) = match expr {
                PartitionExpr::Compare { column, op, value } => {
                    reversed.push(Postfix::Compare { column, op, value });
                    continue;
                }
                PartitionExpr::And(a, b) => (Postfix::And, a, b),
                PartitionExpr::Or(a, b) => (Postfix::Or, a, b),
            };
            reversed.push(join);
            todo.extend([*a, *b]);
        }
        reversed.reverse();
        reversed
    }
}

impl TryFrom<Vec<Postfix>> for PartitionExpr {
    type Error = String;

    fn try_from(postfix: Vec<Postfix>) -> Result<PartitionExpr, String> {
        if postfix.len() >= PartitionExpr::COMPARISONS * 2 {
            return Err(format!("a partition of more than {} comparisons", PartitionExpr::COMPARISONS));
        }
        // With the depth of each.
        let mut operands: Vec<(PartitionExpr, usize)> = Vec::new();
        for next in postfix {
            let join = match next {
                Postfix::Compare { column, op, value } => {
                    operands.push((PartitionExpr::Compare { column, op, value }, 1));
                    continue;
                }
                Postfix::And => PartitionExpr::And,
                Postfix::Or => PartitionExpr::Or,
            };
            let (Some((b, right)), Some((a, left))) = (operands.pop(), operands.pop()) else {
                return Err("a partition that joins what is not there".into());
            };
            let depth = left.max(right) + 1;
            if depth > PartitionExpr::DEPTH {
                return Err(format!("a partition deeper than {}", PartitionExpr::DEPTH));
            }
            operands.push((join(Box::new(a), Box::new(b)), depth));
        }
        match (operands.pop(), operands.pop()) {
            (Some((expr, _)), None) => Ok(expr),
            _ => Err("a partition that is no one expression".into()),
        }
    }
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
    /// Columns, row key and options, version 1.
    pub schema: Schema,
    /// Checked already: no gaps, no overlaps.
    pub partition: PartitionRule,
    /// Replicas of each region; none: three, or as many as there are nodes.
    pub replicas: Option<u32>,
    /// Whether it is fine that a table of that name exists.
    pub if_not_exists: bool,
    /// Of a materialized view: where its rows come from.
    pub view: Option<Box<ViewDef>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(value: i64) -> PartitionExpr {
        PartitionExpr::Compare { column: "a".into(), op: CompareOp::Eq, value: Value::Int(value) }
    }

    fn or(a: PartitionExpr, b: PartitionExpr) -> PartitionExpr {
        PartitionExpr::Or(Box::new(a), Box::new(b))
    }

    #[test]
    fn a_partition_comes_back_as_it_went() {
        let and = PartitionExpr::And(Box::new(or(compare(1), compare(2))), Box::new(compare(3)));
        let expr = or(compare(4), or(and, compare(5)));
        let bytes = postcard::to_allocvec(&expr).unwrap();
        assert_eq!(postcard::from_bytes::<PartitionExpr>(&bytes).unwrap(), expr);
        assert_eq!(expr.comparisons(), 5);
    }

    #[test]
    fn a_partition_that_would_use_up_the_stack_is_not_read() {
        let read =
            |postfix: Vec<Postfix>| postcard::from_bytes::<PartitionExpr>(&postcard::to_allocvec(&postfix).unwrap());
        let one = || Postfix::Compare { column: "a".into(), op: CompareOp::Eq, value: Value::Int(1) };
        let chain = |len: usize| {
            (1..len).fold(vec![one()], |mut chain, _| {
                chain.extend([one(), Postfix::Or]);
                chain
            })
        };
        assert!(read(chain(PartitionExpr::DEPTH)).is_ok());
        assert!(read(chain(PartitionExpr::DEPTH + 1)).is_err());
        assert!(read(chain(PartitionExpr::COMPARISONS + 1)).is_err());
        for wrong in [vec![], vec![Postfix::And], vec![one(), Postfix::Or], vec![one(), one()]] {
            assert!(read(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
