//! Which rows belong to which regions, and which regions a query can leave out.

use arrow::array::{ArrayRef, BooleanArray, Datum, RecordBatch, Scalar, UInt32Array};
use arrow::compute::kernels::{boolean, cmp};
use arrow::compute::take_record_batch;
use arrow::error::ArrowError;

use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{CompareOp, PartitionExpr, PartitionRule, TableDef};
use crate::sql::partition::compare;
use crate::types::{ColumnType, Condition, Key, Predicate, Schema, Value, encode_key, encode_keys};

/// The rows of one region, in the order they had.
#[derive(Debug)]
pub struct Share {
    /// Position of the region in the table.
    pub region: usize,
    /// The rows.
    pub rows: RecordBatch,
    /// Where each of them stood; none: they are all rows, as they stood.
    pub positions: Option<UInt32Array>,
}

/// Splits `batch` by the regions of `table`. It has at least the columns that the rule names.
pub fn split(batch: &RecordBatch, table: &TableDef) -> Result<Vec<Share>> {
    if batch.num_rows() == 0 {
        return Ok(Vec::new());
    }
    if table.regions.len() == 1 {
        return Ok(vec![Share { region: 0, rows: batch.clone(), positions: None }]);
    }
    let regions = assign(batch, table)?;
    let mut positions = vec![Vec::new(); table.regions.len()];
    for (row, region) in regions.iter().enumerate() {
        positions[*region as usize].push(row as u32);
    }
    let shares = positions.into_iter().enumerate().filter(|(_, positions)| !positions.is_empty());
    shares
        .map(|(region, positions)| {
            if positions.len() == batch.num_rows() {
                return Ok(Share { region, rows: batch.clone(), positions: None });
            }
            let positions = UInt32Array::from(positions);
            let rows = take_record_batch(batch, &positions).map_err(internal)?;
            Ok(Share { region, rows, positions: Some(positions) })
        })
        .collect()
}

/// The position of the region of each row.
fn assign(batch: &RecordBatch, table: &TableDef) -> Result<Vec<u32>> {
    let schema = &table.schema;
    match &table.partition {
        PartitionRule::Hash { columns, regions } => {
            let key: Vec<usize> = columns.iter().map(|name| place(batch, name)).collect::<Result<_>>()?;
            Ok(encode_keys(batch, &key).iter().map(|key| hash(key, *regions)).collect())
        }
        PartitionRule::Expressions { columns, expressions } => {
            const NONE: u32 = u32::MAX;
            let mut regions = vec![NONE; batch.num_rows()];
            for (region, expr) in expressions.iter().enumerate() {
                let holds = evaluate(expr, batch, schema)?;
                for (row, assigned) in regions.iter_mut().enumerate() {
                    if *assigned == NONE && holds.value(row) {
                        *assigned = region as u32;
                    }
                }
            }
            if let Some(row) = regions.iter().position(|region| *region == NONE) {
                let show =
                    |name: &String| Ok(format!("{name} = {}", Value::of_cell(batch.column(place(batch, name)?), row)));
                let row = columns.iter().map(show).collect::<Result<Vec<_>>>()?.join(", ");
                let message = format!("no partition of table {} covers {row}", table.name);
                return Err(Error::invalid(Invalid::PartitionGap, message));
            }
            Ok(regions)
        }
    }
}

/// Which of `regions` regions a key belongs to. Stored rows depend on it: it must never change.
///
/// FNV-1a, then the finalizer of MurmurHash3, because the low bits of FNV alone depend on few input bits.
fn hash(key: &Key, regions: u32) -> u32 {
    let mut hash = key
        .0
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    (hash % u64::from(regions.max(1))) as u32
}

/// Where `expr` holds. NULL is less than every value, so there are no NULLs in the answer.
fn evaluate(expr: &PartitionExpr, batch: &RecordBatch, schema: &Schema) -> Result<BooleanArray> {
    match expr {
        PartitionExpr::And(a, b) => {
            boolean::and(&evaluate(a, batch, schema)?, &evaluate(b, batch, schema)?).map_err(internal)
        }
        PartitionExpr::Or(a, b) => {
            boolean::or(&evaluate(a, batch, schema)?, &evaluate(b, batch, schema)?).map_err(internal)
        }
        PartitionExpr::Compare { column, op, value } => {
            let at = position(schema, column)?;
            let cells: &ArrayRef = batch.column(place(batch, column)?);
            if cells.null_count() > 0 {
                let holds = |row| compare(*op, Value::of_cell(cells, row).cmp(value));
                return Ok((0..batch.num_rows()).map(|row| Some(holds(row))).collect());
            }
            let constant = Scalar::new(Value::to_array(std::slice::from_ref(value), schema.columns()[at].column_type));
            let (cells, constant): (&dyn Datum, &dyn Datum) = (cells, &constant);
            match op {
                CompareOp::Eq => cmp::eq(cells, constant),
                CompareOp::NotEq => cmp::neq(cells, constant),
                CompareOp::Lt => cmp::lt(cells, constant),
                CompareOp::LtEq => cmp::lt_eq(cells, constant),
                CompareOp::Gt => cmp::gt(cells, constant),
                CompareOp::GtEq => cmp::gt_eq(cells, constant),
            }
            .map_err(internal)
        }
    }
}

/// Positions of the regions that can have a row of which all `predicates` hold. May name too many, never too few.
pub(super) fn prune(table: &TableDef, predicates: &[Predicate]) -> Vec<usize> {
    match &table.partition {
        PartitionRule::Expressions { expressions, .. } => (0..table.regions.len())
            .filter(|region| expressions.get(*region).is_none_or(|expr| can_hold(expr, predicates)))
            .collect(),
        PartitionRule::Hash { columns, regions } => match hashed(columns, *regions, &table.schema, predicates) {
            Some(region) => vec![region as usize],
            None => (0..table.regions.len()).collect(),
        },
    }
}

/// The one region, if the predicates leave one value for each hashed column.
fn hashed(columns: &[String], regions: u32, schema: &Schema, predicates: &[Predicate]) -> Option<u32> {
    let mut values = Vec::with_capacity(columns.len());
    let mut types: Vec<ColumnType> = Vec::with_capacity(columns.len());
    for name in columns {
        let value = predicates.iter().filter(|predicate| predicate.column == *name).find_map(|predicate| {
            match &predicate.condition {
                Condition::Eq(value) => Some(value.clone()),
                Condition::In(values) if values.len() == 1 => values.first().cloned(),
                _ => None,
            }
        })?;
        values.push(value);
        types.push(schema.column(name)?.1.column_type);
    }
    Some(hash(&encode_key(&values, &types), regions))
}

fn can_hold(expr: &PartitionExpr, predicates: &[Predicate]) -> bool {
    match expr {
        PartitionExpr::And(a, b) => can_hold(a, predicates) && can_hold(b, predicates),
        PartitionExpr::Or(a, b) => can_hold(a, predicates) || can_hold(b, predicates),
        PartitionExpr::Compare { column, op, value } => predicates
            .iter()
            .filter(|predicate| predicate.column == *column)
            .all(|predicate| compatible(*op, value, &predicate.condition)),
    }
}

/// Whether one cell can be `op value` and meet `condition` too.
fn compatible(op: CompareOp, value: &Value, condition: &Condition) -> bool {
    let fits = |cell: &Value| compare(op, cell.cmp(value));
    match condition {
        Condition::Eq(cell) => fits(cell),
        Condition::In(cells) => cells.iter().any(fits),
        Condition::IsNull => fits(&Value::Null),
        Condition::IsNotNull => true,
        Condition::NotEq(cell) => op != CompareOp::Eq || cell != value,
        Condition::Lt(bound) => match op {
            CompareOp::Eq | CompareOp::Gt | CompareOp::GtEq => value < bound,
            _ => true,
        },
        Condition::LtEq(bound) => match op {
            CompareOp::Eq | CompareOp::GtEq => value <= bound,
            CompareOp::Gt => value < bound,
            _ => true,
        },
        Condition::Gt(bound) => match op {
            CompareOp::Eq | CompareOp::Lt | CompareOp::LtEq => value > bound,
            _ => true,
        },
        Condition::GtEq(bound) => match op {
            CompareOp::Eq | CompareOp::LtEq => value >= bound,
            CompareOp::Lt => value > bound,
            _ => true,
        },
    }
}

fn place(batch: &RecordBatch, name: &str) -> Result<usize> {
    let missing = |_| Error::invalid(Invalid::Mismatch, format!("partition column {name:?} is not in the rows"));
    batch.schema().index_of(name).map_err(missing)
}

fn position(schema: &Schema, name: &str) -> Result<usize> {
    let missing = || Error::invalid(Invalid::Mismatch, format!("partition column {name:?} is not in the table"));
    schema.column(name).map(|(at, _)| at).ok_or_else(missing)
}

fn internal(err: ArrowError) -> Error {
    Error::invalid(Invalid::Evaluation, format!("splitting rows by region: {err}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{AsArray, Int32Array, StringArray};
    use arrow::datatypes::Int32Type;

    use super::*;
    use crate::meta::catalog::RegionDef;
    use crate::sql::{Planner, Statement, parse};
    use crate::types::{RegionId, TableId, Timestamp};

    fn table(sql: &str) -> TableDef {
        let Statement::CreateTable(table) = parse(sql).unwrap() else { panic!("{sql}") };
        let table = table.resolve(&Planner::new().evaluator(Timestamp(0))).unwrap();
        let count = match &table.partition {
            PartitionRule::Expressions { expressions, .. } => expressions.len() as u32,
            PartitionRule::Hash { regions, .. } => *regions,
        };
        let id = TableId(1);
        let region = |number| RegionDef { id: RegionId::new(id, number), replicas: BTreeMap::new() };
        TableDef {
            id,
            name: table.name,
            schema: table.schema,
            partition: table.partition,
            regions: (0..count).map(region).collect(),
            view: None,
            indexes: BTreeMap::new(),
        }
    }

    fn batch(table: &TableDef, rows: &[(i32, &str)]) -> RecordBatch {
        let a = Int32Array::from(rows.iter().map(|(a, _)| *a).collect::<Vec<_>>());
        let b = StringArray::from(rows.iter().map(|(_, b)| *b).collect::<Vec<_>>());
        RecordBatch::try_new(table.schema.to_arrow(), vec![Arc::new(a), Arc::new(b)]).unwrap()
    }

    fn split_rows(table: &TableDef, rows: &[(i32, &str)]) -> Vec<(usize, Vec<i32>)> {
        let shares = split(&batch(table, rows), table).unwrap();
        let values = |share: &Share| share.rows.column(0).as_primitive::<Int32Type>().values().to_vec();
        shares.iter().map(|share| (share.region, values(share))).collect()
    }

    const BY_RANGE: &str = "CREATE TABLE t (a INT, b STRING, PRIMARY KEY (a, b)) PARTITION ON COLUMNS (a, b) \
                            (a < 10, a >= 10 AND a < 20 AND b < 'm', a >= 10 AND a < 20 AND b >= 'm', a >= 20)";

    #[test]
    fn rows_go_to_their_region_in_order() {
        let table = table(BY_RANGE);
        let rows = [(30, "x"), (9, "x"), (10, "a"), (19, "z"), (-5, "q"), (30, "a")];
        assert_eq!(split_rows(&table, &rows), [(0, vec![9, -5]), (1, vec![10]), (2, vec![19]), (3, vec![30, 30])]);
        let shares = split(&batch(&table, &rows), &table).unwrap();
        assert_eq!(shares[3].positions.as_ref().unwrap().values(), &[0, 5]);
        assert_eq!(shares[3].rows.column(1).as_string::<i32>().value(0), "x");
        assert!(split(&batch(&table, &[(1, "a"), (2, "b")]), &table).unwrap()[0].positions.is_none());
        assert!(split(&batch(&table, &[]), &table).unwrap().is_empty());
    }

    #[test]
    fn the_hash_is_what_it_was() {
        let table = table("CREATE TABLE t (a INT, b STRING, PRIMARY KEY (a, b)) WITH (regions = 4)");
        let rows: Vec<(i32, &str)> = (0..16).map(|a| (a, if a % 2 == 0 { "EWR" } else { "JFK" })).collect();
        let mut region_of = [9; 16];
        for (region, rows) in split_rows(&table, &rows) {
            rows.iter().for_each(|a| region_of[*a as usize] = region);
        }
        // Rows are stored by it: if this fails, existing tables cannot find their rows.
        assert_eq!(region_of, [1, 2, 1, 2, 1, 3, 3, 2, 2, 3, 3, 2, 1, 2, 1, 2]);
        let many: Vec<(i32, &str)> = (0..4_000).map(|a| (a, "LGA")).collect();
        for (region, rows) in split_rows(&table, &many) {
            assert!((900..1_100).contains(&rows.len()), "region {region} has {} of 4000 rows", rows.len());
        }
    }

    #[test]
    fn regions_that_cannot_match_are_left_out() {
        let eq = |column: &str, value: Value| Predicate { column: column.into(), condition: Condition::Eq(value) };
        let on_a = |condition| Predicate { column: "a".into(), condition };
        let table = table(BY_RANGE);
        assert_eq!(prune(&table, &[]), [0, 1, 2, 3]);
        assert_eq!(prune(&table, &[eq("a", Value::Int(12))]), [1, 2]);
        assert_eq!(prune(&table, &[eq("a", Value::Int(12)), eq("b", Value::String("m".into()))]), [2]);
        assert_eq!(prune(&table, &[eq("b", Value::String("a".into()))]), [0, 1, 3]);
        assert_eq!(prune(&table, &[on_a(Condition::Gt(Value::Int(20)))]), [3]);
    }

    #[test]
    fn pruning_never_loses_a_row() {
        let hashed = table("CREATE TABLE t (a INT, b STRING, PRIMARY KEY (a, b)) WITH (regions = 3)");
        let ranged = table(BY_RANGE);
        let values = [-1, 9, 10, 15, 19, 20, 21];
        let conditions = |v: i32| {
            let v = Value::Int(v.into());
            [
                Condition::Eq(v.clone()),
                Condition::NotEq(v.clone()),
                Condition::Lt(v.clone()),
                Condition::LtEq(v.clone()),
                Condition::Gt(v.clone()),
                Condition::GtEq(v.clone()),
                Condition::In(vec![v.clone(), Value::Int(10)]),
                Condition::In(vec![v]),
                Condition::IsNotNull,
            ]
        };
        for table in [&hashed, &ranged] {
            for row in values.iter().flat_map(|a| ["a", "m", "z"].map(|b| (*a, b))) {
                let region = split(&batch(table, &[row]), table).unwrap()[0].region;
                for condition in values.iter().flat_map(|v| conditions(*v)) {
                    if !condition.holds(&Value::Int(row.0.into())) {
                        continue;
                    }
                    let a = Predicate { column: "a".into(), condition };
                    let b = Predicate { column: "b".into(), condition: Condition::Eq(Value::String(row.1.into())) };
                    assert!(prune(table, std::slice::from_ref(&a)).contains(&region), "{a} loses {row:?}");
                    assert!(prune(table, &[a.clone(), b]).contains(&region), "{a} and b lose {row:?}");
                }
            }
        }
    }
}
