//! However the changes of a table are cut into deltas, a view has the rows of its query.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::collect;
use proptest::prelude::*;

use super::*;
use crate::sql::{Planner, Statement, Tables, parse};
use crate::types::Timestamp;

type Table = BTreeMap<i64, Vec<Value>>;

/// The row that is at a key from now on; none: it is deleted.
type Step = (i64, Option<Vec<Value>>);

/// Those whose queries can always be computed. (DataFusion computes the second operand of AND where the first one is false.)
const VIEWS: &[&str] = &[
    "filter",
    "project",
    "union",
    "group",
    "having",
    "global",
    "count",
    "shown_if_any",
    "hidden_group",
    "union_group",
    "decimals",
    "floats",
];

fn step() -> impl Strategy<Value = Step> {
    let cell = |values: Vec<Value>| prop_oneof![1 => Just(Value::Null), 5 => prop::sample::select(values)];
    let groups = ["a", "b", ""].map(|group| Value::String(group.to_string())).to_vec();
    let integers = [-3, 0, 1, 2, 11, 12].map(Value::Int).to_vec();
    let decimals = [-150, 0, 1, 33, 9_999_999_999].map(Value::Decimal).to_vec();
    let floats = [0.1, -0.3, 2.5, 1e10, -1e-10, f64::INFINITY, f64::NEG_INFINITY].map(Value::Float).to_vec();
    let row = (0..7i64, cell(groups), cell(integers), cell(decimals), cell(floats));
    let row = row.prop_map(|(k, g, i, d, f)| (k, Some(vec![Value::Int(k), g, i, d, f])));
    prop_oneof![3 => row, 1 => (0..7i64).prop_map(|k| (k, None))]
}

/// Where the steps are cut into windows, and whether a window is cut at a key too.
fn cuts() -> impl Strategy<Value = Vec<(usize, Option<i64>)>> {
    prop::collection::vec((1..9usize, prop::option::of(0..7i64)), 40)
}

/// What differs between two states of the table, in the order of the keys.
fn difference(before: &Table, after: &Table) -> Vec<Change> {
    let mut changes = Vec::new();
    for k in 0..7 {
        let (before, after) = (before.get(&k), after.get(&k));
        if before == after {
            continue;
        }
        for (sign, row) in [(-1, before), (1, after)] {
            changes.extend(row.map(|row| Change { sign, row: row.clone(), sequence: Sequence(1) }));
        }
    }
    changes
}

/// Takes `steps` through `view`, window by window.
fn run(view: &View, steps: &[Step], cuts: &[(usize, Option<i64>)]) -> Store {
    run_from(view.store().unwrap(), view, steps, cuts)
}

fn run_from(mut store: Store, view: &View, steps: &[Step], cuts: &[(usize, Option<i64>)]) -> Store {
    let mut table = Table::new();
    let mut rest = steps;
    for (window, key) in cuts {
        let (steps, others) = rest.split_at((*window).min(rest.len()));
        rest = others;
        let before = table.clone();
        for (k, row) in steps {
            match row {
                Some(row) => table.insert(*k, row.clone()),
                None => table.remove(k),
            };
        }
        let changes = difference(&before, &table);
        let is_first = |change: &Change| key.is_some_and(|key| change.row[0] < Value::Int(key));
        let (first, second) = changes.split_at(changes.partition_point(is_first));
        for changes in [first, second] {
            view.absorb(&mut store, changes).unwrap();
        }
    }
    assert!(rest.is_empty());
    store
}

/// The rows of `query` over the table.
fn query(query: &str, rows: &[&[Value]]) -> Vec<Vec<Value>> {
    let planner = Planner::new();
    let state = planner.at(Timestamp(0));
    let Statement::Query(query) = parse(query).unwrap() else { panic!("no query") };
    let batch = batch(rows, &FEEDER.map(|(name, _)| name.to_string()));
    let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
    let tables: Tables = [("t".to_string(), Arc::new(table) as _)].into();
    let plan = planner.plan(&state, &query, &tables).unwrap();
    let batches: Vec<RecordBatch> = block_on(async {
        let physical = planner.physical(&state, &plan).await.unwrap();
        collect(physical, planner.task(1 << 30)).await.unwrap()
    });
    let cells = |batch: &RecordBatch, row| batch.columns().iter().map(|column| Value::of_cell(column, row)).collect();
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|row| cells(batch, row))).collect()
}

/// Whether two rows are the same but for the rounding of floats.
fn alike(a: &[Value], b: &[Value]) -> bool {
    let same = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Float(a), Value::Float(b)) => {
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e3)
        }
        (a, b) => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_view_has_the_rows_of_its_query(steps in prop::collection::vec(step(), 0..40), a in cuts(), b in cuts()) {
        let mut table = Table::new();
        for (k, row) in &steps {
            match row {
                Some(row) => table.insert(*k, row.clone()),
                None => table.remove(k),
            };
        }
        let rows: Vec<&[Value]> = table.values().map(|row| &row[..]).collect();
        for name in VIEWS {
            let view = view(name);
            let store = run(&view, &steps, &a);
            // All that is stored is the same, also what is not shown.
            prop_assert_eq!(&store.rows, &run(&view, &steps, &b).rows, "{}", name);
            let mut shown: Vec<Vec<Value>> = view.shown(&store).into_values().collect();
            let mut expected = query(view.query, &rows);
            shown.sort();
            expected.sort();
            let alike = shown.len() == expected.len() && shown.iter().zip(&expected).all(|(a, b)| alike(a, b));
            prop_assert!(alike, "{}:\n{:?}\nnot {:?}", view.query, shown, expected);
        }
    }

    /// However it came there: broken are the groups of which nothing can be computed of the rows that are there, and no others.
    #[test]
    fn a_view_that_is_filled_hides_what_cannot_be_computed(
        steps in prop::collection::vec(step(), 0..40),
        a in cuts(),
        b in cuts(),
    ) {
        let view = view("ratio");
        let fill = |cuts| run_from(view.store_of(true).unwrap(), &view, &steps, cuts);
        let (one, other) = (fill(&a), fill(&b));
        prop_assert_eq!(&one.rows, &other.rows);
        prop_assert_eq!(one.broken, other.broken);
        let mut table = Table::new();
        for (k, row) in &steps {
            match row {
                Some(row) => table.insert(*k, row.clone()),
                None => table.remove(k),
            };
        }
        // Of each group its sum, and how many values are in it.
        let mut sums: BTreeMap<Value, (i64, u64)> = BTreeMap::new();
        for row in table.values() {
            let (sum, count) = sums.entry(row[1].clone()).or_default();
            if let Value::Int(value) = row[2] {
                (*sum, *count) = (*sum + value, *count + 1);
            }
        }
        let broken = sums.values().filter(|(sum, count)| *sum == 0 && *count > 0).count();
        prop_assert_eq!((one.broken, view.shown(&one).len()), (broken as i64, sums.len() - broken));
    }
}
