//! Some views over one table, each with its query: the plans are what the query means, written by hand.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema as ArrowSchema};
use datafusion::common::DFSchema;
use datafusion::logical_expr::{Expr, cast, col, lit};

use crate::meta::catalog::{PartitionRule, TableDef, columns};
use crate::sql::{AggregatePlan, Call, Function, LegPlan, ViewPlan};
use crate::types::{Column, ColumnId, ColumnType, Schema, TableId};
use crate::view::Program;

use ColumnType::{Binary, Float64, Int64, UInt8};

const STRING: ColumnType = ColumnType::String;
const MONEY: ColumnType = ColumnType::Decimal { precision: 10, scale: 2 };

/// The columns of the table `t`; `k` is its key.
pub(super) const FEEDER: [(&str, ColumnType); 5] =
    [("k", Int64), ("g", STRING), ("i", Int64), ("d", MONEY), ("f", Float64)];

/// A view.
pub(super) struct View {
    pub(super) program: Program,
    pub(super) plan: ViewPlan,
    pub(super) schema: Schema,
    /// Positions of the columns that `SELECT *` shows.
    pub(super) shown: Vec<usize>,
    /// Whether `t` is a table that appends.
    pub(super) appends: bool,
    pub(super) query: &'static str,
}

/// The view of that name.
pub(super) fn view(name: &str) -> View {
    let (i, positive) = (|| col("i"), || Some(col("i").gt(lit(0i64))));
    match name {
        "filter" => {
            let query = "SELECT k, g, i FROM t WHERE i > 10";
            let leg = leg(Some(i().gt(lit(10i64))), [col("k"), col("g"), i()]);
            rows(query, Some("k"), &[("k", Int64), ("g", STRING), ("i", Int64)], vec![leg])
        }
        "arithmetic" => {
            let query = "SELECT k, 100 / i AS q, -i AS n, i * 2 AS m FROM t WHERE i IS NOT NULL";
            let outputs = [col("k"), lit(100i64) / i(), Expr::Negative(Box::new(i())), i() * lit(2i64)];
            let leg = leg(Some(i().is_not_null()), outputs);
            rows(query, Some("k"), &[("k", Int64), ("q", Int64), ("n", Int64), ("m", Int64)], vec![leg])
        }
        "guarded" => {
            let query = "SELECT k, i FROM t WHERE i <> 0 AND 100 / i > 10";
            let condition = i().not_eq(lit(0i64)).and((lit(100i64) / i()).gt(lit(10i64)));
            rows(query, Some("k"), &[("k", Int64), ("i", Int64)], vec![leg(Some(condition), [col("k"), i()])])
        }
        "project" => rows("SELECT g, i FROM t", None, &[("g", STRING), ("i", Int64)], vec![leg(None, [col("g"), i()])]),
        "events" => View { appends: true, ..view("project") },
        "union" => {
            let query = "SELECT g, i FROM t UNION ALL SELECT g, i FROM t WHERE i > 0";
            let legs = vec![leg(None, [col("g"), i()]), leg(positive(), [col("g"), i()])];
            rows(query, None, &[("g", STRING), ("i", Int64)], legs)
        }
        "group" => {
            let query = "SELECT g, COUNT(*) AS n, COUNT(i) AS c, SUM(i) AS s, AVG(i) AS a, MIN(i) AS l, MAX(i) AS h \
                         FROM t GROUP BY g";
            let calls = vec![
                count_rows(),
                call(Function::Count, 1, Int64, Int64),
                call(Function::Sum, 1, Int64, Int64),
                call(Function::Avg, 1, Int64, Float64),
                call(Function::Min, 1, Int64, Int64),
                call(Function::Max, 1, Int64, Int64),
            ];
            let outputs = [
                ("g", col("g0"), STRING),
                ("n", col("a0"), Int64),
                ("c", col("a1"), Int64),
                ("s", col("a2"), Int64),
                ("a", col("a3"), Float64),
                ("l", col("a4"), Int64),
                ("h", col("a5"), Int64),
            ];
            groups(query, &[("g", STRING)], vec![leg(None, [col("g"), i()])], calls, None, &outputs)
        }
        "having" => {
            let query = "SELECT g, SUM(i) AS s FROM t GROUP BY g HAVING COUNT(*) > 1";
            let calls = vec![call(Function::Sum, 1, Int64, Int64), count_rows()];
            let having = col("a1").gt(lit(1i64));
            let outputs = [("g", col("g0"), STRING), ("s", col("a0"), Int64)];
            groups(query, &[("g", STRING)], vec![leg(None, [col("g"), i()])], calls, Some(having), &outputs)
        }
        "global" => {
            let query = "SELECT COUNT(*) AS n, SUM(i) AS s, MIN(i) AS l FROM t";
            let calls = vec![count_rows(), call(Function::Sum, 0, Int64, Int64), call(Function::Min, 0, Int64, Int64)];
            let outputs = [("n", col("a0"), Int64), ("s", col("a1"), Int64), ("l", col("a2"), Int64)];
            groups(query, &[], vec![leg(None, [i()])], calls, None, &outputs)
        }
        "count" => {
            let query = "SELECT COUNT(*) AS n FROM t";
            groups(query, &[], vec![leg(None, [])], vec![count_rows()], None, &[("n", col("a0"), Int64)])
        }
        "shown_if_any" => {
            let query = "SELECT SUM(i) AS s FROM t HAVING COUNT(*) > 0";
            let calls = vec![call(Function::Sum, 0, Int64, Int64), count_rows()];
            let having = Some(col("a1").gt(lit(0i64)));
            groups(query, &[], vec![leg(None, [i()])], calls, having, &[("s", col("a0"), Int64)])
        }
        "hidden_group" => {
            let query = "SELECT COUNT(*) AS n, MAX(g) AS h FROM t GROUP BY i";
            let calls = vec![count_rows(), call(Function::Max, 1, STRING, STRING)];
            let outputs = [("n", col("a0"), Int64), ("h", col("a1"), STRING)];
            groups(query, &[("__group_0", Int64)], vec![leg(None, [i(), col("g")])], calls, None, &outputs)
        }
        "union_group" => {
            let query = "SELECT g, COUNT(*) AS n, SUM(i) AS s FROM \
                         (SELECT g, i FROM t UNION ALL SELECT g, i * 10 AS i FROM t WHERE i > 0) GROUP BY g";
            let legs = vec![leg(None, [col("g"), i()]), leg(positive(), [col("g"), i() * lit(10i64)])];
            let calls = vec![count_rows(), call(Function::Sum, 1, Int64, Int64)];
            let outputs = [("g", col("g0"), STRING), ("n", col("a0"), Int64), ("s", col("a1"), Int64)];
            groups(query, &[("g", STRING)], legs, calls, None, &outputs)
        }
        "decimals" => {
            let query = "SELECT g, SUM(d) AS s, AVG(d) AS a, MAX(d) AS h FROM t GROUP BY g";
            let (sum, average) =
                (ColumnType::Decimal { precision: 20, scale: 2 }, ColumnType::Decimal { precision: 14, scale: 6 });
            let calls = vec![
                call(Function::Sum, 1, MONEY, sum),
                call(Function::Avg, 1, MONEY, average),
                call(Function::Max, 1, MONEY, MONEY),
            ];
            let outputs =
                [("g", col("g0"), STRING), ("s", col("a0"), sum), ("a", col("a1"), average), ("h", col("a2"), MONEY)];
            groups(query, &[("g", STRING)], vec![leg(None, [col("g"), col("d")])], calls, None, &outputs)
        }
        "floats" => {
            let query = "SELECT g, SUM(f) AS s, AVG(f) AS a, MIN(f) AS l, MAX(f) AS h FROM t GROUP BY g";
            let functions = [Function::Sum, Function::Avg, Function::Min, Function::Max];
            let calls = functions.map(|function| call(function, 1, Float64, Float64)).to_vec();
            let outputs = [
                ("g", col("g0"), STRING),
                ("s", col("a0"), Float64),
                ("a", col("a1"), Float64),
                ("l", col("a2"), Float64),
                ("h", col("a3"), Float64),
            ];
            groups(query, &[("g", STRING)], vec![leg(None, [col("g"), col("f")])], calls, None, &outputs)
        }
        "ratio" => {
            let query = "SELECT g, 100 / SUM(i) AS r, CAST(AVG(i) AS BIGINT) AS a FROM t GROUP BY g";
            let calls =
                vec![call(Function::Sum, 1, Int64, Int64), call(Function::Avg, 2, Float64, Float64), count_rows()];
            let rounded = cast(col("a1"), Int64.to_arrow());
            let outputs = [("g", col("g0"), STRING), ("r", lit(100i64) / col("a0"), Int64), ("a", rounded, Int64)];
            let leg = leg(None, [col("g"), i(), cast(i(), Float64.to_arrow())]);
            groups(query, &[("g", STRING)], vec![leg], calls, None, &outputs)
        }
        "per_row" => {
            let query = "SELECT 100 / COUNT(*) AS n FROM t";
            let outputs = [("n", lit(100i64) / col("a0"), Int64)];
            groups(query, &[], vec![leg(None, [])], vec![count_rows()], None, &outputs)
        }
        other => panic!("there is no view {other}"),
    }
}

fn leg(filter: Option<Expr>, outputs: impl IntoIterator<Item = Expr>) -> LegPlan {
    let columns = FEEDER.map(|(name, column_type)| (name.to_string(), column_type));
    LegPlan { input: input(&columns), filter, outputs: outputs.into_iter().collect() }
}

fn call(function: Function, input: usize, input_type: ColumnType, output_type: ColumnType) -> Call {
    Call { function, input: Some(input), input_type, output_type }
}

fn count_rows() -> Call {
    Call { function: Function::Count, input: None, input_type: Int64, output_type: Int64 }
}

fn input(columns: &[(String, ColumnType)]) -> Arc<DFSchema> {
    let fields = columns.iter().map(|(name, column_type)| Field::new(name, column_type.to_arrow(), true));
    Arc::new(DFSchema::try_from(ArrowSchema::new(fields.collect::<Vec<_>>())).unwrap())
}

/// A view without aggregates; `key` none: the engine's own.
fn rows(query: &'static str, key: Option<&str>, shown: &[(&str, ColumnType)], legs: Vec<LegPlan>) -> View {
    let hidden = key.is_none().then_some((columns::KEY, Binary));
    let plan = ViewPlan { legs, aggregate: None, columns: owned(shown) };
    made(query, shown, hidden.as_slice(), &[key.unwrap_or(columns::KEY)], plan)
}

/// A view with aggregates. Groups whose name is none of the outputs' are hidden.
fn groups(
    query: &'static str,
    groups: &[(&str, ColumnType)],
    legs: Vec<LegPlan>,
    calls: Vec<Call>,
    having: Option<Expr>,
    outputs: &[(&str, Expr, ColumnType)],
) -> View {
    let shown: Vec<(&str, ColumnType)> = outputs.iter().map(|(name, _, column_type)| (*name, *column_type)).collect();
    let mut hidden: Vec<(&str, ColumnType)> = groups.iter().copied().filter(|group| !shown.contains(group)).collect();
    hidden.extend([(columns::PART, UInt8), (columns::VALUE, Binary), (columns::STATE, Binary)]);
    let key: Vec<&str> = groups.iter().map(|(name, _)| *name).chain([columns::PART, columns::VALUE]).collect();
    let inputs = groups.iter().enumerate().map(|(at, (_, column_type))| (format!("g{at}"), *column_type));
    let results = calls.iter().enumerate().map(|(at, call)| (format!("a{at}"), call.output_type));
    let aggregate = AggregatePlan {
        groups: groups.len(),
        input: input(&inputs.chain(results).collect::<Vec<_>>()),
        calls,
        having,
        outputs: outputs.iter().map(|(_, expr, _)| expr.clone()).collect(),
    };
    let plan = ViewPlan { legs, aggregate: Some(aggregate), columns: owned(&shown) };
    made(query, &shown, &hidden, &key, plan)
}

fn owned(columns: &[(&str, ColumnType)]) -> Vec<(String, ColumnType)> {
    columns.iter().map(|(name, column_type)| (name.to_string(), *column_type)).collect()
}

fn made(
    query: &'static str,
    shown: &[(&str, ColumnType)],
    hidden: &[(&str, ColumnType)],
    key: &[&str],
    plan: ViewPlan,
) -> View {
    let column = |(id, (name, column_type)): (u32, &(&str, ColumnType))| Column {
        id: ColumnId(id),
        name: name.to_string(),
        column_type: *column_type,
        nullable: ![columns::KEY, columns::PART, columns::VALUE].contains(name),
        default: None,
    };
    let columns = (1..).zip(shown.iter().chain(hidden)).map(column).collect();
    let key: Vec<String> = key.iter().map(ToString::to_string).collect();
    let schema = Schema::of_view(columns, &key);
    let table = TableDef {
        id: TableId(2),
        name: "v".into(),
        schema: schema.clone(),
        partition: PartitionRule::Hash { columns: Vec::new(), regions: 1 },
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
    };
    let program = Program::new(&table, &plan).unwrap();
    View { program, plan, schema, shown: (0..shown.len()).collect(), appends: false, query }
}
