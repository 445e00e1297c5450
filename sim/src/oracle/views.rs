//! Oracles 2, 3 and 11: what stands in a view is what its query gives.
//!
//! Checks: whenever a region of a view has taken a batch (of a large feeder: at times), when it becomes READY, and at calm, its
//! rows are those that the query gives over what it has of its feeders: that is a function of its positions and of what the
//! feeders' logs hold, see [`Frontier`]. At calm also: the whole of each view is what its query gives over all rows of its
//! feeders, and what SELECT returns of it. No SELECT returns rows of a view before a region of it is READY. No view fails,
//! unless the scenario claims that one does.
//!
//! The query is run by DataFusion over the model's rows; nothing of the engine's own way of computing a view is used.
//!
//! Does not check: a part of a view whose rows do not show which region they belong to (only the whole, at calm); the middle of
//! a window over a feeder that appends; float results to the last digits; a region that has of its feeders what the query cannot be
//! computed over (the whole, at calm, must be).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema as ArrowSchema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use engine::event::Event;
use engine::frontend::split;
use engine::meta::catalog::{LegDef, PartitionRule, TableDef, ViewDef, columns};
use engine::region::command::Command;
use engine::sql::{Planner, Statement, Tables, parse};
use engine::types::{ColumnType, MergeMode, RegionId, Source, TableId, Timestamp, Value};

use super::Violation;
use super::fills::{FillOracle, Frontier};
use super::model::Model;

pub(super) const NAME: &str = "views";

/// Of feeders with so many rows or fewer every batch is judged.
const FEW: usize = 2_000;
/// Otherwise, and once a region was judged as often as [`OFTEN`], one batch in so many.
const STRIDE: u64 = 16;
/// See [`STRIDE`].
const OFTEN: u64 = 100;
/// What a query may take of memory.
const MEMORY: usize = 1 << 30;
/// Floats that differ by less than this part of them are the same: they were added up in another order.
const TOLERANCE: f64 = 1e-9;

/// The cells of a row that SELECT shows, in the order of the view's columns.
pub type Shown = Vec<Value>;

/// See the module.
#[derive(Default)]
pub struct ViewOracle {
    planner: Planner,
    plans: BTreeMap<TableId, LogicalPlan>,
    regions: BTreeMap<RegionId, Judged>,
    /// Views whose failing is a part of the scenario's claims.
    may_fail: bool,
    is_due: bool,
    evaluations: u64,
}

#[derive(Debug, Default)]
struct Judged {
    /// The last entry whose rows were seen.
    last: u64,
    batches: u64,
    evaluations: u64,
    is_ready: bool,
    has_failed: bool,
}

impl ViewOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// `may_fail`: a view that fails is nothing wrong by itself.
    pub fn new(may_fail: bool) -> ViewOracle {
        ViewOracle { may_fail, ..ViewOracle::default() }
    }

    /// Whether there is, or was, a view to judge.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// How often it compared rows.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Judges what a region of a view has, as of this event, which `model` and `fills` have heard of.
    pub fn on_event(&mut self, model: &Model, fills: &FillOracle, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Applied { region, command, .. } if *region != RegionId::META && !self.is_due => {
                self.is_due = matches!(Command::decode(command), Ok(Command::Begin));
                Ok(())
            }
            Event::ViewWritten { region, log_id, .. } => {
                let judged = self.regions.entry(*region).or_default();
                if judged.last >= log_id.index {
                    return Ok(());
                }
                judged.last = log_id.index;
                judged.batches += 1;
                let Some(view) = model.table(region.table()) else { return Ok(()) };
                let rows: usize = feeders(model, view).map(|feeder| feeder.keys()).sum();
                let always = rows <= FEW && judged.evaluations < OFTEN;
                match always || judged.batches.is_multiple_of(STRIDE) {
                    true => self.judge_region(model, fills, view, *region),
                    false => Ok(()),
                }
            }
            Event::ViewReady { region, .. } => {
                let judged = self.regions.entry(*region).or_default();
                if std::mem::replace(&mut judged.is_ready, true) {
                    return Ok(());
                }
                match model.table(region.table()) {
                    Some(view) => self.judge_region(model, fills, view, *region),
                    None => Ok(()),
                }
            }
            Event::ViewFailed { region, reason, .. } => {
                let judged = self.regions.entry(*region).or_default();
                match std::mem::replace(&mut judged.has_failed, true) || self.may_fail {
                    true => Ok(()),
                    false => Err(violation("a view has failed", vec![format!("region {region}: {reason}")])),
                }
            }
            Event::LegFailed { region, view, reason, .. } if !self.may_fail => Err(violation(
                "a view has failed",
                vec![format!("view {view}, at region {region} of a feeder: {reason}")],
            )),
            _ => Ok(()),
        }
    }

    /// A SELECT returned rows: of views that may be read.
    pub fn judge_select(&mut self, model: &Model, sql: &str) -> Result<(), Violation> {
        let Ok(Statement::Query(query)) = parse(sql) else { return Ok(()) };
        for name in Planner::tables(&query).unwrap_or_default() {
            // Of that name there may have been several.
            let mut tables = model.tables().filter(|table| table.name == name).peekable();
            if tables.peek().is_none() {
                continue;
            }
            let ready = |region: RegionId| self.regions.get(&region).is_some_and(|judged| judged.is_ready);
            let mut can_be_read =
                tables.map(|table| table.view.is_none() || table.regions.iter().any(|region| ready(region.id)));
            if !can_be_read.any(|can| can) {
                let evidence = vec![format!("{name} is not READY anywhere"), sql.to_string()];
                return Err(violation("a view was read before it was READY", evidence));
            }
        }
        Ok(())
    }

    /// At calm, when the view has all that is in its feeders: its rows are those of its query.
    pub fn judge_whole(&mut self, model: &Model, view: &TableDef) -> Result<(), Violation> {
        let newest = |source: Source| {
            let since = model.region(source.feeder).map(|region| region.sequence());
            Frontier { since: Some(since.unwrap_or_default()), within: None }
        };
        let result = self.result(model, view, &newest)?;
        self.evaluations += 1;
        let rows = view.regions.iter().flat_map(|region| content(model, view, region.id)).collect();
        compare("a view is not what its query gives", view, None, rows_of(view, &result), rows)
    }

    /// What SELECT returned of all rows of `view`.
    pub fn judge_read(&mut self, model: &Model, view: &TableDef, found: &[RecordBatch]) -> Result<(), Violation> {
        self.evaluations += 1;
        let rows = view.regions.iter().flat_map(|region| content(model, view, region.id)).collect();
        let found = found.iter().flat_map(|batch| rows_of(view, batch)).collect();
        compare("SELECT returns other rows of a view than are in it", view, None, rows, found)
    }

    /// What a region has is what the query gives over what it has of the feeders.
    fn judge_region(
        &mut self,
        model: &Model,
        fills: &FillOracle,
        view: &TableDef,
        region: RegionId,
    ) -> Result<(), Violation> {
        if view.regions.len() > 1 && !shows_its_region(view) {
            return Ok(());
        }
        let frontier = |source: Source| fills.frontier(region, source);
        let appends =
            |source: Source| model.region(source.feeder).is_some_and(|feeder| feeder.mode() == MergeMode::Append);
        let sources = sources(model, view);
        if sources.iter().any(|source| appends(*source) && frontier(*source).within.is_some()) {
            return Ok(());
        }
        // In passing a group may be one of which the query cannot be computed; that one is hidden, and mended by what comes.
        let Ok(result) = self.result(model, view, &frontier) else { return Ok(()) };
        self.evaluations += 1;
        self.regions.entry(region).or_default().evaluations += 1;
        let shares = split(&result, view).map_err(|err| unable(view, &err.to_string()))?;
        let share = shares.into_iter().find(|share| view.regions[share.region].id == region);
        let expected = share.map(|share| rows_of(view, &share.rows)).unwrap_or_default();
        let found = content(model, view, region).collect();
        let place = || {
            let mut lines = vec![format!("region {region}")];
            lines.extend(sources.iter().map(|source| {
                let Frontier { since, within } = frontier(*source);
                let newest = model.region(source.feeder).map(|feeder| feeder.sequence()).unwrap_or_default();
                format!("has of {source}, which is at {newest}: all of {since:?}, of the keys up to {within:?}")
            }));
            lines
        };
        compare("a region of a view is not what its query gives", view, Some(&place), expected, found)
    }

    /// What the query gives over what `frontier` says of each source.
    fn result(
        &mut self,
        model: &Model,
        view: &TableDef,
        frontier: &dyn Fn(Source) -> Frontier,
    ) -> Result<RecordBatch, Violation> {
        let def = view.view.as_ref().expect("it is a view");
        let contents = def.legs.iter().enumerate().map(|(number, leg)| read(model, number as u32, leg, frontier));
        let result = self.run(view, def, contents.collect());
        result.map_err(|err| unable(view, &err))
    }

    /// Runs the query; its n-th scan reads the n-th of `contents`.
    fn run(&mut self, view: &TableDef, def: &ViewDef, contents: Vec<RecordBatch>) -> Result<RecordBatch, String> {
        let state = self.planner.at(Timestamp(0));
        let plan = match self.plans.get(&view.id) {
            Some(plan) => plan.clone(),
            None => {
                let Statement::Query(query) = parse(&def.query).map_err(|err| err.to_string())? else {
                    return Err("its text is no query".to_string());
                };
                let tables: Tables = def
                    .legs
                    .iter()
                    .map(|leg| (leg.name.clone(), Arc::new(EmptyTable::new(Arc::new(shown_schema(leg)))) as _))
                    .collect();
                let plan = self.planner.plan(&state, &query, &tables).map_err(|err| err.to_string())?;
                self.plans.insert(view.id, plan.clone());
                plan
            }
        };
        let mut contents = contents.into_iter().zip(&def.legs);
        let plan = plan
            .transform_down(|node| {
                let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
                let (rows, leg) = contents.next().expect("a query has as many scans as its view has legs");
                assert_eq!(scan.table_name.table(), leg.name, "the legs stand in the order of the scans");
                let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
                scan.source = provider_as_source(Arc::new(table));
                Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
            })
            .map_err(|err| err.to_string())?
            .data;
        assert!(contents.next().is_none(), "a view has as many legs as its query has scans");
        futures::executor::block_on(async {
            let plan = self.planner.physical(&state, &plan).await.map_err(|err| err.to_string())?;
            let schema = plan.schema();
            let batches = collect(plan, self.planner.task(MEMORY)).await.map_err(|err| err.to_string())?;
            let rows = arrow::compute::concat_batches(&schema, &batches).map_err(|err| err.to_string())?;
            named(view, &rows)
        })
    }
}

/// The columns that SELECT shows.
fn shown(view: &TableDef) -> impl Iterator<Item = &engine::types::Column> {
    view.schema.columns().iter().filter(|column| !columns::is_hidden(&column.name))
}

fn shown_schema(leg: &LegDef) -> ArrowSchema {
    let shown = leg.schema.columns().iter().filter(|column| !columns::is_hidden(&column.name));
    ArrowSchema::new(
        shown.map(|column| Field::new(&column.name, column.column_type.to_arrow(), true)).collect::<Vec<_>>(),
    )
}

/// The result of the query as rows of the view: by position, for a query may call its columns otherwise.
fn named(view: &TableDef, rows: &RecordBatch) -> Result<RecordBatch, String> {
    let columns: Vec<_> = shown(view).collect();
    if columns.len() != rows.num_columns() {
        return Err(format!("it gives {} columns, not {}", rows.num_columns(), columns.len()));
    }
    let fields: Vec<Field> =
        columns.iter().map(|column| Field::new(&column.name, column.column_type.to_arrow(), true)).collect();
    let cells: Result<Vec<ArrayRef>, _> =
        rows.columns().iter().zip(&fields).map(|(cells, field)| cast(cells, field.data_type())).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let cells = cells.map_err(|err| err.to_string())?;
    RecordBatch::try_new_with_options(Arc::new(ArrowSchema::new(fields)), cells, &options)
        .map_err(|err| err.to_string())
}

fn rows_of(view: &TableDef, rows: &RecordBatch) -> Vec<Shown> {
    let cells: Vec<ArrayRef> = rows
        .columns()
        .iter()
        .zip(shown(view))
        .map(|(cells, column)| cast(cells, &column.column_type.to_arrow()).unwrap_or_else(|_| cells.clone()))
        .collect();
    (0..rows.num_rows()).map(|row| cells.iter().map(|cells| Value::of_cell(cells, row)).collect()).collect()
}

/// The rows of a region of a view that SELECT shows.
fn content<'a>(model: &'a Model, view: &'a TableDef, region: RegionId) -> impl Iterator<Item = Shown> + 'a {
    let part = view.schema.column(columns::PART).map(|(_, column)| column.id);
    let rows = model.region(region).into_iter().flat_map(|region| region.visible(region.sequence()));
    let is_shown = move |row: &super::model::Row| part.is_none_or(|part| row.get(&part) == Some(&Value::UInt(0)));
    let rows = rows.filter(move |(_, _, row)| is_shown(row));
    rows.map(|(_, _, row)| shown(view).map(|column| row.get(&column.id).cloned().unwrap_or(Value::Null)).collect())
}

/// What a leg reads, of each region of its feeder as far as `frontier` says.
fn read(model: &Model, number: u32, leg: &LegDef, frontier: &dyn Fn(Source) -> Frontier) -> RecordBatch {
    let shown: Vec<_> = leg.schema.columns().iter().filter(|column| !columns::is_hidden(&column.name)).collect();
    let part = leg.schema.column(columns::PART).map(|(_, column)| column.id);
    let mut cells: Vec<Vec<Value>> = vec![Vec::new(); shown.len()];
    let mut count = 0;
    for region in model.table(leg.feeder).into_iter().flat_map(|feeder| &feeder.regions) {
        let Some(rows) = model.region(region.id) else { continue };
        let Frontier { since, within } = frontier(Source { leg: number, feeder: region.id });
        let upto = |key: &engine::types::Key| match &within {
            Some((upto, position)) if *key <= position.key => Some(*upto),
            _ => since,
        };
        rows.read(upto, |row| {
            if part.is_some_and(|part| row.get(&part) != Some(&Value::UInt(0))) {
                return;
            }
            count += 1;
            for (cells, column) in cells.iter_mut().zip(&shown) {
                if leg.uses.contains(&column.id) {
                    cells.push(row.get(&column.id).cloned().unwrap_or(Value::Null));
                }
            }
        });
    }
    let array = |(cells, column): (&Vec<Value>, &&engine::types::Column)| match leg.uses.contains(&column.id) {
        true => Value::to_array(cells, column.column_type),
        // It may be gone, or be of another type.
        false => new_null_array(&column.column_type.to_arrow(), count),
    };
    let arrays = cells.iter().zip(&shown).map(array).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    RecordBatch::try_new_with_options(Arc::new(shown_schema(leg)), arrays, &options).expect("cells of its columns")
}

fn sources(model: &Model, view: &TableDef) -> Vec<Source> {
    let legs = view.view.iter().flat_map(|def| &def.legs).enumerate();
    legs.flat_map(|(leg, def)| {
        let regions = model.table(def.feeder).into_iter().flat_map(|feeder| &feeder.regions);
        regions.map(move |region| Source { leg: leg as u32, feeder: region.id })
    })
    .collect()
}

fn feeders<'a>(model: &'a Model, view: &'a TableDef) -> impl Iterator<Item = &'a super::model::RegionModel> {
    sources(model, view).into_iter().filter_map(|source| model.region(source.feeder))
}

/// Whether the columns that SELECT shows say to which region a row belongs.
fn shows_its_region(view: &TableDef) -> bool {
    let (PartitionRule::Hash { columns, .. } | PartitionRule::Expressions { columns, .. }) = &view.partition;
    columns.iter().all(|column| !columns::is_hidden(column))
}

/// Compares rows in any order.
fn compare(
    signature: &str,
    view: &TableDef,
    place: Option<&dyn Fn() -> Vec<String>>,
    mut expected: Vec<Shown>,
    mut found: Vec<Shown>,
) -> Result<(), Violation> {
    // Floats last: those that are about the same would part what belongs together.
    let types: Vec<ColumnType> = shown(view).map(|column| column.column_type).collect();
    let is_float = |at: &usize| matches!(types[*at], ColumnType::Float32 | ColumnType::Float64);
    let (floats, others): (Vec<usize>, Vec<usize>) = (0..types.len()).partition(is_float);
    let order: Vec<usize> = others.into_iter().chain(floats).collect();
    let by_order = |a: &Shown, b: &Shown| {
        order.iter().map(|at| a[*at].cmp(&b[*at])).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    };
    expected.sort_by(by_order);
    found.sort_by(by_order);
    let same = |a: &Shown, b: &Shown| a.iter().zip(b).all(|(a, b)| is_about(a, b));
    let equal = expected.iter().zip(&found).take_while(|(expected, found)| same(expected, found)).count();
    if equal == expected.len() && equal == found.len() {
        return Ok(());
    }
    let query = view.view.as_ref().map(|def| def.query.clone()).unwrap_or_default();
    let mut evidence = vec![format!("view {}: {query}", view.name)];
    evidence.extend(place.map(|place| place()).unwrap_or_default());
    evidence.push(format!("{} rows expected, {} found", expected.len(), found.len()));
    evidence.push(format!("expected {}", line(expected.get(equal))));
    evidence.push(format!("found    {}", line(found.get(equal))));
    Err(violation(signature, evidence))
}

fn line(row: Option<&Shown>) -> String {
    row.map_or("nothing".to_string(), |row| row.iter().map(Value::to_string).collect::<Vec<_>>().join(", "))
}

fn is_about(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => {
            (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1.0)
        }
        (a, b) => a == b,
    }
}

fn unable(view: &TableDef, why: &str) -> Violation {
    let query = view.view.as_ref().map(|def| def.query.clone()).unwrap_or_default();
    violation(
        "the query of a view cannot be run over what it has",
        vec![format!("view {}: {query}", view.name), why.into()],
    )
}

fn violation(signature: &str, evidence: Vec<String>) -> Violation {
    Violation { oracle: NAME, signature: signature.to_string(), evidence }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::array::Int64Array;
    use bytes::Bytes;
    use engine::meta::catalog::RegionDef;
    use engine::region::command::{LegAnswer, encode_answer, encode_outcome};
    use engine::region::leg::{Leg, LegStep};
    use engine::region::request::{Absorb, Taken, WriteAnswer, WriteRequest};
    use engine::types::{
        Column, ColumnId, FillPosition, Incarnation, Key, LegId, LogId, Op, Position, ReplicaId, Schema, Sequence,
        encode_batch, encode_keys,
    };

    use super::*;

    const FEEDER: RegionId = RegionId(1 << 32);
    const PLACE: RegionId = RegionId(9 << 32);
    const WRONG: &str = "a region of a view is not what its query gives";

    /// A table `t` of one region and the view of its rows whose `n` is more than 5, as one replica of each applies its log.
    struct Logs {
        model: Model,
        fills: FillOracle,
        views: ViewOracle,
        index: u64,
        sequences: BTreeMap<RegionId, u64>,
        /// The last position of the view.
        at: FillPosition,
        /// Rows that were read for it, as its batches say.
        read: u64,
    }

    /// Puts `(k, n)`; none: deletes `k`.
    type Change = (i64, Option<i64>);

    impl Logs {
        /// The rows are there, the first round has begun, and its leader has said hello.
        fn begun(rows: &[Change]) -> Logs {
            let mut model = Model::default();
            model.learn(&table());
            model.learn(&view());
            let (fills, views) = (FillOracle::default(), ViewOracle::new(false));
            let (sequences, at) = (BTreeMap::new(), FillPosition::default());
            let mut logs = Logs { model, fills, views, index: 0, sequences, at, read: 0 };
            logs.apply(PLACE, Command::Begin, done()).unwrap();
            logs.written(&[]).unwrap();
            logs.write(rows);
            logs.apply(FEEDER, Command::Attach { legs: vec![0], view: Box::new(view()) }, done()).unwrap();
            let upto = logs.sequence(FEEDER);
            let leg = Leg { epoch: 1, round: 1, upto: Some(upto), ..leg() };
            logs.leg(LegStep::Reign, Leg { epoch: 1, ..self::leg() });
            logs.leg(LegStep::Round { done: 0, goes_live: false, rows: 0, at: Timestamp(0) }, leg);
            let hello = Command::Greet { source: source(), epoch: 1 };
            logs.apply(PLACE, hello, encode_answer(&Taken::At(FillPosition::default(), 0))).unwrap();
            logs
        }

        fn sequence(&self, region: RegionId) -> Sequence {
            Sequence(self.sequences.get(&region).copied().unwrap_or_default())
        }

        fn hear(&mut self, event: &Event) -> Result<(), String> {
            self.model.on_event(event);
            self.fills.on_event(&self.model, event).map_err(|violation| violation.signature)?;
            self.views.on_event(&self.model, &self.fills, event).map_err(|violation| violation.signature)
        }

        fn apply(&mut self, region: RegionId, command: Command, outcome: Bytes) -> Result<(), String> {
            self.index += 1;
            let event = Event::Applied {
                region,
                replica: ReplicaId(1),
                incarnation: Incarnation(1),
                log_id: LogId { term: 1, index: self.index },
                command: command.encode(),
                outcome,
                sequence: self.sequence(region),
                digest: 0,
            };
            self.hear(&event)
        }

        fn leg(&mut self, step: LegStep, now: Leg) {
            let command = Command::Leg { leg: LegId { view: PLACE.table(), leg: 0 }, epoch: 1, step };
            self.apply(FEEDER, command, encode_answer(&LegAnswer::Leg(Box::new(now)))).unwrap();
        }

        /// Writes to the table.
        fn write(&mut self, changes: &[Change]) {
            *self.sequences.entry(FEEDER).or_default() += changes.len() as u64;
            let (rows, ops) = encoded(changes);
            let write = WriteRequest {
                schema_version: 1,
                rows,
                ops,
                expected: vec![],
                request: None,
                acknowledged: 0,
                file: None,
            };
            self.apply(FEEDER, Command::Write { write, sessions: 9, files: 9 }, done()).unwrap();
        }

        /// A batch up to `to`, and what the view's region writes because of it.
        fn batch(&mut self, to: FillPosition, changes: &[Change]) -> Result<(), String> {
            let from = std::mem::replace(&mut self.at, to.clone());
            let (rows, ops) = encoded(changes);
            self.read += changes.len() as u64;
            let answer = encode_answer(&Taken::At(to.clone(), self.read));
            let batch = Absorb {
                source: source(),
                epoch: 1,
                from,
                to,
                rows,
                ops,
                changes: changes.len() as u64,
                read: self.read,
                settled: 0,
            };
            *self.sequences.entry(PLACE).or_default() += changes.len() as u64;
            self.apply(PLACE, Command::Absorb(batch), answer)?;
            self.written(changes)
        }

        fn written(&mut self, changes: &[Change]) -> Result<(), String> {
            let (rows, ops) = encoded(changes);
            let (sequence, log_id) = (self.sequence(PLACE), LogId { term: 1, index: self.index });
            self.hear(&Event::ViewWritten { region: PLACE, replica: ReplicaId(1), log_id, rows, ops, sequence })
        }
    }

    fn columns() -> Vec<Column> {
        let column = |(at, name): (usize, &&str)| Column {
            id: ColumnId(at as u32 + 1),
            name: (*name).into(),
            column_type: ColumnType::Int64,
            nullable: at > 0,
            default: None,
        };
        ["k", "n"].iter().enumerate().map(column).collect()
    }

    fn table() -> TableDef {
        let region = RegionDef { id: FEEDER, replicas: BTreeMap::new() };
        TableDef {
            id: FEEDER.table(),
            name: "t".into(),
            schema: Schema::new(1, columns(), &["k".into()], None).unwrap(),
            partition: PartitionRule::Hash { columns: vec!["k".into()], regions: 1 },
            regions: vec![region],
            view: None,
            indexes: BTreeMap::new(),
        }
    }

    fn view() -> TableDef {
        let schema = table().schema;
        let uses = schema.columns().iter().map(|column| column.id).collect::<BTreeSet<_>>();
        let leg = LegDef { feeder: FEEDER.table(), name: "t".into(), schema, uses };
        let query = "SELECT k, n FROM t WHERE n > 5".to_string();
        TableDef {
            id: PLACE.table(),
            name: "v".into(),
            schema: Schema::of_view(columns(), &["k".into()]),
            partition: PartitionRule::Hash { columns: vec!["k".into()], regions: 1 },
            regions: vec![RegionDef { id: PLACE, replicas: BTreeMap::new() }],
            view: Some(Box::new(ViewDef { query, legs: vec![leg], chunk_rows: None, rate_limit: None })),
            indexes: BTreeMap::new(),
        }
    }

    fn leg() -> Leg {
        Leg {
            view: Box::new(view()),
            epoch: 0,
            round: 0,
            takeovers: 0,
            retries: 0,
            rows: 0,
            done: None,
            upto: None,
            is_live: false,
            is_paused: false,
            rate_limit: None,
            failed: None,
            at: Timestamp(0),
        }
    }

    fn source() -> Source {
        Source { leg: 0, feeder: FEEDER }
    }

    fn done() -> Bytes {
        encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: Sequence(0) }))
    }

    fn batch(changes: &[Change]) -> RecordBatch {
        let keys = Arc::new(Int64Array::from_iter_values(changes.iter().map(|(k, _)| *k))) as ArrayRef;
        let fields = Arc::new(Int64Array::from_iter(changes.iter().map(|(_, n)| *n))) as ArrayRef;
        RecordBatch::try_new(table().schema.to_arrow(), vec![keys, fields]).unwrap()
    }

    fn encoded(changes: &[Change]) -> (Bytes, Bytes) {
        let ops = changes.iter().map(|(_, n)| if n.is_some() { Op::Put } else { Op::Delete } as u8);
        (encode_batch(&batch(changes)), ops.collect::<Vec<u8>>().into())
    }

    /// Up to the row of `k`, of the round that ends at `upto`.
    fn within(upto: u64, k: i64) -> FillPosition {
        let key: Key = encode_keys(&batch(&[(k, None)]), &table().schema.key()).remove(0);
        FillPosition { done: None, within: Some((Sequence(upto), Position { key, sequence: Sequence(0) })) }
    }

    fn at(sequence: u64) -> FillPosition {
        FillPosition::at(Sequence(sequence))
    }

    const ROWS: &[Change] = &[(1, Some(9)), (2, Some(3)), (3, Some(7)), (4, Some(6))];

    #[test]
    fn a_fill_that_is_right_is_found_right_at_each_batch() {
        let mut logs = Logs::begun(ROWS);
        // What is written meanwhile is none of the round's.
        logs.write(&[(1, Some(2)), (5, Some(8))]);
        logs.batch(within(4, 2), &[(1, Some(9))]).unwrap();
        logs.batch(at(4), &[(3, Some(7)), (4, Some(6))]).unwrap();
        let second = Leg { epoch: 1, round: 2, done: Some(Sequence(4)), upto: Some(Sequence(6)), ..leg() };
        logs.leg(LegStep::Round { done: 1, goes_live: false, rows: 0, at: Timestamp(0) }, second);
        logs.batch(at(6), &[(1, None), (5, Some(8))]).unwrap();
        logs.views.judge_whole(&logs.model, &view()).unwrap();
        assert_eq!(logs.views.evaluations(), 5, "when it begins, at three batches, and as a whole");
    }

    #[test]
    fn a_row_that_is_missing_is_seen_at_its_batch() {
        let mut logs = Logs::begun(ROWS);
        logs.batch(within(4, 2), &[(1, Some(9))]).unwrap();
        assert_eq!(logs.batch(at(4), &[(3, Some(7))]).unwrap_err(), WRONG);
    }

    #[test]
    fn a_row_that_its_query_leaves_out_is_seen() {
        let mut logs = Logs::begun(ROWS);
        assert_eq!(logs.batch(within(4, 2), &[(1, Some(9)), (2, Some(3))]).unwrap_err(), WRONG);
    }

    #[test]
    fn a_row_behind_the_position_is_seen() {
        let mut logs = Logs::begun(ROWS);
        assert_eq!(logs.batch(within(4, 2), &[(1, Some(9)), (3, Some(7))]).unwrap_err(), WRONG);
    }

    #[test]
    fn a_row_of_after_the_round_is_seen() {
        let mut logs = Logs::begun(ROWS);
        logs.write(&[(1, Some(8))]);
        assert_eq!(logs.batch(within(4, 2), &[(1, Some(8))]).unwrap_err(), WRONG);
    }

    #[test]
    fn a_row_that_was_and_stays_is_seen() {
        let mut logs = Logs::begun(ROWS);
        logs.batch(at(4), &[(1, Some(9)), (3, Some(7)), (4, Some(6))]).unwrap();
        logs.write(&[(3, Some(1)), (4, None)]);
        let second = Leg { epoch: 1, round: 2, done: Some(Sequence(4)), upto: Some(Sequence(6)), ..leg() };
        logs.leg(LegStep::Round { done: 1, goes_live: false, rows: 0, at: Timestamp(0) }, second);
        assert_eq!(logs.batch(at(6), &[(4, None)]).unwrap_err(), WRONG);
    }

    #[test]
    fn a_view_that_lacks_what_is_in_its_feeders_is_seen_at_calm() {
        let mut logs = Logs::begun(ROWS);
        logs.batch(at(4), &[(1, Some(9)), (3, Some(7)), (4, Some(6))]).unwrap();
        logs.views.judge_whole(&logs.model, &view()).unwrap();
        logs.write(&[(6, Some(9))]);
        let whole = logs.views.judge_whole(&logs.model, &view()).unwrap_err();
        assert_eq!(whole.signature, "a view is not what its query gives");
    }

    #[test]
    fn what_select_returns_is_held_against_what_is_there() {
        let mut logs = Logs::begun(ROWS);
        logs.batch(at(4), &[(1, Some(9)), (3, Some(7)), (4, Some(6))]).unwrap();
        let mut read = |rows: &[Change]| logs.views.judge_read(&logs.model, &view(), &[batch(rows)]);
        read(&[(4, Some(6)), (1, Some(9)), (3, Some(7))]).unwrap();
        for wrong in [&[(1, Some(9)), (3, Some(7))][..], &[(1, Some(9)), (1, Some(9)), (3, Some(7)), (4, Some(6))]] {
            assert_eq!(read(wrong).unwrap_err().signature, "SELECT returns other rows of a view than are in it");
        }
    }

    #[test]
    fn a_view_is_not_read_before_it_is_ready() {
        let mut logs = Logs::begun(ROWS);
        let early = logs.views.judge_select(&logs.model, "SELECT count(*) FROM t, v").unwrap_err();
        assert_eq!(early.signature, "a view was read before it was READY");
        logs.views.judge_select(&logs.model, "SELECT count(*) FROM t").unwrap();
        logs.batch(at(4), &[(1, Some(9)), (3, Some(7)), (4, Some(6))]).unwrap();
        logs.views
            .on_event(&logs.model, &logs.fills, &Event::ViewReady { region: PLACE, replica: ReplicaId(1) })
            .unwrap();
        logs.views.judge_select(&logs.model, "SELECT count(*) FROM t, v").unwrap();
    }

    #[test]
    fn a_view_that_fails_is_seen_unless_the_scenario_says_so() {
        let at_view = Event::ViewFailed { region: PLACE, replica: ReplicaId(1), reason: "x".into() };
        let (view, reason) = ("v".to_string(), "x".to_string());
        let at_feeder = Event::LegFailed { region: FEEDER, replica: ReplicaId(1), view, leg: 0, reason };
        for event in [at_view, at_feeder] {
            let mut logs = Logs::begun(ROWS);
            assert_eq!(logs.hear(&event).unwrap_err(), "a view has failed");
            logs.views = ViewOracle::new(true);
            logs.hear(&event).unwrap();
        }
    }
}
