//! A table as DataFusion reads it: one partition, which streams pages from the table's regions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::{TableProvider, TableType};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};

use super::Frontend;
use super::deadline::Deadline;
use super::index::choose;
use super::partition::prune;
use super::route::mismatch;
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::columns::{self, is_hidden};
use crate::meta::catalog::{RegionDef, TableDef};
use crate::region::request::{ScanAnswer, ScanRequest};
use crate::server::message::{Request, Response};
use crate::sql::to_value;
use crate::types::{
    Column, Condition, IndexId, Key, Predicate, RegionId, Sequence, Value, decode_batch, decode_key, encode_keys,
};

/// The column that holds the version of each row.
pub(super) const SEQUENCE: &str = "__sequence";

/// A table of the catalog in one statement.
#[derive(Clone, Debug)]
pub(super) struct RegionTable {
    frontend: Frontend,
    table: Arc<TableDef>,
    schema: SchemaRef,
    /// Read only the rows with these keys.
    keys: Option<Arc<BTreeSet<Key>>>,
    /// How old the rows may be; 0: those of now.
    staleness: Duration,
    /// Read as of these sequences; none: as of now.
    upto: Option<Arc<BTreeMap<RegionId, Sequence>>>,
    deadline: Deadline,
}

impl RegionTable {
    /// `table` as queries see it.
    pub fn new(frontend: Frontend, table: Arc<TableDef>, staleness: Duration, deadline: Deadline) -> RegionTable {
        let schema = Arc::new(ArrowSchema::new(fields(&table)));
        RegionTable { frontend, table, schema, keys: None, staleness, upto: None, deadline }
    }

    /// `table` as it was at the sequences of its regions.
    pub fn as_of(
        frontend: Frontend,
        table: Arc<TableDef>,
        upto: BTreeMap<RegionId, Sequence>,
        deadline: Deadline,
    ) -> RegionTable {
        RegionTable { upto: Some(Arc::new(upto)), ..RegionTable::new(frontend, table, Duration::ZERO, deadline) }
    }

    /// `table` as UPDATE and DELETE read it: with the sequences of its rows; all rows, or those with these keys.
    pub fn target(
        frontend: Frontend,
        table: Arc<TableDef>,
        keys: Option<BTreeSet<Key>>,
        deadline: Deadline,
    ) -> RegionTable {
        let mut fields = fields(&table);
        fields.push(Field::new(SEQUENCE, DataType::UInt64, false));
        let schema = Arc::new(ArrowSchema::new(fields));
        let (keys, staleness) = (keys.map(Arc::new), Duration::ZERO);
        RegionTable { frontend, table, schema, keys, staleness, upto: None, deadline }
    }

    fn predicates(&self, filter: &Expr) -> Option<Vec<Predicate>> {
        predicates(filter, &self.table)
    }

    /// What all rows with the keys have in common, so that regions and files without them are left out.
    fn key_predicates(&self) -> Result<Vec<Predicate>> {
        let Some(keys) = &self.keys else {
            return Ok(Vec::new());
        };
        let columns: Vec<&Column> =
            self.table.schema.key().iter().map(|at| &self.table.schema.columns()[*at]).collect();
        let types: Vec<_> = columns.iter().map(|column| column.column_type).collect();
        let mut values = vec![BTreeSet::new(); columns.len()];
        for key in keys.iter() {
            let cells = decode_key(key, &types).map_err(|err| Error::invalid(Invalid::Mismatch, err.to_string()))?;
            values.iter_mut().zip(cells).for_each(|(values, cell)| {
                values.insert(cell);
            });
        }
        let predicate = |(column, values): (&&Column, BTreeSet<Value>)| Predicate {
            column: column.name.clone(),
            condition: Condition::In(values.into_iter().collect()),
        };
        Ok(columns.iter().zip(values).map(predicate).collect())
    }
}

/// The columns with what the table says about NULL, so that the optimizer knows.
fn fields(table: &TableDef) -> Vec<Field> {
    let field = |column: &Column| Field::new(&column.name, column.column_type.to_arrow(), column.nullable);
    table.schema.columns().iter().filter(|column| !is_hidden(&column.name)).map(field).collect()
}

/// Of a view with aggregates the rows that are shown.
fn shown(table: &TableDef) -> Option<Predicate> {
    table.schema.column(columns::PART)?;
    Some(Predicate { column: columns::PART.to_string(), condition: Condition::Eq(Value::UInt(0)) })
}

#[async_trait]
impl TableProvider for RegionTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => self.schema.clone(),
        };
        let mut predicates: Vec<Predicate> =
            filters.iter().filter_map(|filter| self.predicates(filter)).flatten().collect();
        predicates.extend(self.key_predicates().map_err(external)?);
        predicates.extend(shown(&self.table));
        let regions = prune(&self.table, &predicates);
        Ok(Arc::new(RegionScan::new(self.clone(), schema, predicates, regions, limit)))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        // Inexact: a region may return rows for which a condition does not hold, so DataFusion filters again.
        let pushdown = |filter: &&Expr| match self.predicates(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(pushdown).collect())
    }
}

/// `filter` as conditions that regions understand; none if it is not made of such.
fn predicates(filter: &Expr, table: &TableDef) -> Option<Vec<Predicate>> {
    let column = |expr: &Expr| match expr {
        Expr::Column(column) => table.schema.column(&column.name).map(|(_, column)| column.clone()),
        _ => None,
    };
    let one = |column: &Column, condition| Some(vec![Predicate { column: column.name.clone(), condition }]);
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let mut both = predicates(left, table)?;
            both.extend(predicates(right, table)?);
            Some(both)
        }
        // DataFusion writes a short IN so.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (mut a, mut b) = (predicates(left, table)?, predicates(right, table)?);
            let (Some(a), Some(b), true) = (a.pop(), b.pop(), a.is_empty() && b.is_empty()) else {
                return None;
            };
            let values = |condition| match condition {
                Condition::Eq(value) => Some(vec![value]),
                Condition::In(values) => Some(values),
                _ => None,
            };
            let mut either = values(a.condition)?;
            either.extend(values(b.condition)?);
            (a.column == b.column).then(|| vec![Predicate { column: a.column, condition: Condition::In(either) }])
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, value) = match (column(left), column(right)) {
                (Some(column), None) => (column, *op, constant(right)?),
                (None, Some(column)) => (column, op.swap()?, constant(left)?),
                _ => return None,
            };
            let value = cell(value, &column)?;
            let condition = match op {
                Operator::Eq => Condition::Eq(value),
                Operator::NotEq => Condition::NotEq(value),
                Operator::Lt => Condition::Lt(value),
                Operator::LtEq => Condition::LtEq(value),
                Operator::Gt => Condition::Gt(value),
                Operator::GtEq => Condition::GtEq(value),
                _ => return None,
            };
            one(&column, condition)
        }
        Expr::Between(between) if !between.negated => {
            let column = column(&between.expr)?;
            let low = Condition::GtEq(cell(constant(&between.low)?, &column)?);
            let high = Condition::LtEq(cell(constant(&between.high)?, &column)?);
            let predicate = |condition| Predicate { column: column.name.clone(), condition };
            Some(vec![predicate(low), predicate(high)])
        }
        Expr::InList(list) if !list.negated => {
            let column = column(&list.expr)?;
            let values = list.list.iter().map(|value| cell(constant(value)?, &column)).collect::<Option<Vec<_>>>()?;
            one(&column, Condition::In(values))
        }
        Expr::IsNull(expr) => one(&column(expr)?, Condition::IsNull),
        Expr::IsNotNull(expr) => one(&column(expr)?, Condition::IsNotNull),
        Expr::Column(_) => one(&column(filter)?, Condition::Eq(Value::Boolean(true))),
        Expr::Not(expr) => one(&column(expr)?, Condition::Eq(Value::Boolean(false))),
        _ => None,
    }
}

fn constant(expr: &Expr) -> Option<&datafusion::scalar::ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

/// The constant as a cell of `column`. Not NULL, which no condition compares with, and no zero or NaN of a float: there
/// the order of keys and DataFusion's comparisons need not agree.
fn cell(scalar: &datafusion::scalar::ScalarValue, column: &Column) -> Option<Value> {
    match to_value(scalar, column.column_type)? {
        Value::Null => None,
        Value::Float(value) if value == 0.0 || value.is_nan() => None,
        value => Some(value),
    }
}

/// Reads a table: the regions one after the other (their first pages at the same time), each at one sequence.
#[derive(Debug)]
pub(super) struct RegionScan {
    source: RegionTable,
    /// Of the rows that come out.
    schema: SchemaRef,
    /// Of the rows that are asked for: the same, and the key where rows are chosen by it.
    asked: SchemaRef,
    predicates: Vec<Predicate>,
    /// The index that is to find them, and its name.
    index: Option<(IndexId, String)>,
    /// Positions of the regions that can have matching rows.
    regions: Vec<usize>,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
}

impl RegionScan {
    fn new(
        source: RegionTable,
        schema: SchemaRef,
        predicates: Vec<Predicate>,
        regions: Vec<usize>,
        limit: Option<usize>,
    ) -> RegionScan {
        let mut asked: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
        if source.keys.is_some() {
            for at in source.table.schema.key() {
                let field = source.schema.field(at);
                if !asked.iter().any(|asked| asked.name() == field.name()) {
                    asked.push(field.clone());
                }
            }
        }
        // The region appends it behind the columns that are asked for by name.
        if let Some(at) = asked.iter().position(|field| field.name() == SEQUENCE) {
            let sequence = asked.remove(at);
            asked.push(sequence);
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let asked = Arc::new(ArrowSchema::new(asked));
        // Where the sequences are given they may be those of before it was complete.
        let index = source.upto.is_none().then(|| choose(&source.table, &predicates)).flatten();
        let index = index.map(|index| (index.id, index.name.clone()));
        RegionScan { source, schema, asked, predicates, index, regions, limit, properties: Arc::new(properties) }
    }

    /// One line for each region of the table: what is asked of it.
    pub fn explain(&self) -> Vec<(String, String)> {
        let what = self.asks();
        let line = |(at, region): (usize, &RegionDef)| {
            let text = if self.regions.contains(&at) { what.clone() } else { "not read: no row can match".to_string() };
            (format!("region {}", region.id), text)
        };
        self.source.table.regions.iter().enumerate().map(line).collect()
    }

    fn asks(&self) -> String {
        let columns: Vec<&str> = self.asked.fields().iter().map(|field| field.name().as_str()).collect();
        let mut text = format!("columns=[{}]", columns.join(", "));
        if !self.predicates.is_empty() {
            let predicates: Vec<String> = self.predicates.iter().map(Predicate::to_string).collect();
            text.push_str(&format!(", predicates=[{}]", predicates.join(" AND ")));
        }
        if let Some((_, index)) = &self.index {
            text.push_str(&format!(", index={index}"));
        }
        if let Some(limit) = self.limit {
            text.push_str(&format!(", limit={limit}"));
        }
        text
    }

    /// The page of `region` that `from` is behind.
    async fn page(&self, region: &RegionDef, from: Option<&ScanAnswer>) -> Result<ScanAnswer> {
        let named = |field: &&Arc<Field>| field.name() != SEQUENCE;
        let scan = ScanRequest {
            since: None,
            schema_version: self.source.table.schema.version,
            columns: self.asked.fields().iter().filter(named).map(|field| field.name().clone()).collect(),
            predicates: self.predicates.clone(),
            upto: from.map(|page| page.sequence).or(self
                .source
                .upto
                .as_ref()
                .and_then(|upto| upto.get(&region.id).copied())),
            after: from.and_then(|page| page.next.clone()),
            page_rows: self.limit.map_or(0, |limit| limit.max(1) as u64),
            with_sequence: self.asked.fields().len() > self.asked.fields().iter().filter(named).count(),
            include_deleted: false,
            index: self.index.as_ref().map(|(index, _)| *index),
            stale_ms: None,
        };
        let routes = self.source.frontend.routes();
        let answer = match self.source.staleness {
            Duration::ZERO => {
                let request = Request::Scan { region: region.id, scan };
                routes.region(region, &request, self.source.deadline).await.result
            }
            staleness => routes.scan_anywhere(region, scan, staleness, self.source.deadline).await,
        };
        match answer? {
            Response::Scan(page) => Ok(page),
            other => Err(mismatch(&other)),
        }
    }

    /// The rows of a page as they come out.
    fn rows(&self, page: &ScanAnswer) -> Result<Vec<RecordBatch>> {
        let broken = |err: &dyn fmt::Display| Error::invalid(Invalid::Mismatch, format!("a page that was read: {err}"));
        if self.asked.fields().is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(page.rows as usize));
            let batch = RecordBatch::try_new_with_options(self.schema.clone(), vec![], &options);
            return Ok(vec![batch.map_err(|err| broken(&err))?]);
        }
        let mut batches = Vec::with_capacity(page.batches.len());
        for bytes in &page.batches {
            let mut batch = decode_batch(bytes, &self.asked).map_err(|err| broken(&err))?;
            if let Some(keys) = &self.source.keys {
                batch = self.with_keys(&batch, keys).map_err(|err| broken(&err))?;
            }
            let column = |field: &Arc<Field>| -> Result<ArrayRef> {
                let at = self.asked.index_of(field.name()).map_err(|err| broken(&err))?;
                Ok(batch.column(at).clone())
            };
            let columns = self.schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options);
            batches.push(batch.map_err(|err| broken(&err))?);
        }
        Ok(batches)
    }

    fn with_keys(&self, batch: &RecordBatch, keys: &BTreeSet<Key>) -> Result<RecordBatch, arrow::error::ArrowError> {
        let schema = &self.source.table.schema;
        let position = |at: &usize| self.asked.index_of(&schema.columns()[*at].name);
        let key = schema.key().iter().map(position).collect::<Result<Vec<_>, _>>()?;
        let chosen: BooleanArray = encode_keys(batch, &key).iter().map(|key| Some(keys.contains(key))).collect();
        filter_record_batch(batch, &chosen)
    }
}

fn external(err: Error) -> DataFusionError {
    DataFusionError::External(Box::new(err))
}

impl DisplayAs for RegionScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let table = &self.source.table;
        write!(f, "RegionScan: {}, {}, ", table.name, self.asks())?;
        write!(f, "regions={} of {}", self.regions.len(), table.regions.len())
    }
}

impl ExecutionPlan for RegionScan {
    fn name(&self) -> &str {
        "RegionScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let scan = Arc::new(RegionScan {
            source: self.source.clone(),
            schema: self.schema.clone(),
            asked: self.asked.clone(),
            predicates: self.predicates.clone(),
            index: self.index.clone(),
            regions: self.regions.clone(),
            limit: self.limit,
            properties: self.properties.clone(),
        });
        let first = {
            let scan = scan.clone();
            async move {
                let first = scan.regions.iter().map(|at| scan.page(&scan.source.table.regions[*at], None));
                let first = try_join_all(first).await?;
                Ok::<_, Error>(scan.regions.clone().into_iter().zip(first).collect::<Vec<_>>())
            }
        };
        let pages = futures::stream::once(first)
            .map_ok(|first| futures::stream::iter(first.into_iter().map(Ok::<_, Error>)))
            .try_flatten()
            .map_ok({
                let scan = scan.clone();
                move |(at, first)| region_pages(scan.clone(), at, first)
            })
            .try_flatten();
        let batches = pages
            .and_then({
                let scan = scan.clone();
                move |page| std::future::ready(scan.rows(&page))
            })
            .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
            .try_flatten()
            .map_err(external);
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches.boxed())))
    }
}

/// `first` and the pages behind it.
fn region_pages(
    scan: Arc<RegionScan>,
    at: usize,
    first: ScanAnswer,
) -> impl futures::Stream<Item = Result<ScanAnswer>> + Send {
    enum Next {
        First(ScanAnswer),
        /// Without its rows.
        After(ScanAnswer),
        End,
    }
    let behind = |page: &ScanAnswer| match page.next {
        Some(_) => Next::After(ScanAnswer { batches: Vec::new(), ..page.clone() }),
        None => Next::End,
    };
    futures::stream::try_unfold(Next::First(first), move |next| {
        let scan = scan.clone();
        async move {
            let page = match next {
                Next::First(page) => page,
                Next::After(before) => scan.page(&scan.source.table.regions[at], Some(&before)).await?,
                Next::End => return Ok(None),
            };
            let next = behind(&page);
            Ok(Some((page, next)))
        }
    })
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{col, lit};

    use super::*;
    use crate::sql::{Planner, Statement, parse};
    use crate::types::{TableId, Timestamp};

    fn pushed(filter: Expr) -> Option<String> {
        let sql = "CREATE TABLE t (a INT PRIMARY KEY, f DOUBLE, b BOOLEAN, s STRING)";
        let Statement::CreateTable(table) = parse(sql).unwrap() else { panic!("{sql}") };
        let table = table.resolve(&Planner::new().evaluator(Timestamp(0))).unwrap();
        let table = TableDef {
            id: TableId(1),
            name: table.name,
            schema: table.schema,
            partition: table.partition,
            regions: Vec::new(),
            view: None,
            indexes: Default::default(),
        };
        let predicates = predicates(&filter, &table)?;
        Some(predicates.iter().map(Predicate::to_string).collect::<Vec<_>>().join(" AND "))
    }

    #[test]
    fn conditions_on_one_column_are_pushed_down() {
        assert_eq!(pushed(col("a").lt(lit(5))).unwrap(), "a < 5");
        assert_eq!(pushed(lit(5).lt(col("a"))).unwrap(), "a > 5");
        assert_eq!(pushed(lit(5).gt_eq(col("a"))).unwrap(), "a <= 5");
        assert_eq!(pushed(col("a").eq(lit(1)).or(col("a").eq(lit(2)))).unwrap(), "a IN (1, 2)");
        assert_eq!(pushed(col("a").between(lit(1), lit(2))).unwrap(), "a >= 1 AND a <= 2");
        assert_eq!(pushed(col("a").in_list(vec![lit(1)], false)).unwrap(), "a IN (1)");
        assert_eq!(pushed(col("b")).unwrap(), "b = true");
        assert_eq!(pushed(!col("b")).unwrap(), "b = false");
        assert_eq!(pushed(col("s").is_null().and(col("s").not_eq(lit("x")))).unwrap(), "s IS NULL AND s <> 'x'");
        assert_eq!(pushed(col("f").gt(lit(1.5))).unwrap(), "f > 1.5");
    }

    #[test]
    fn what_a_region_would_understand_otherwise_is_not() {
        // Of another type: the condition would compare values of different kinds.
        assert_eq!(pushed(col("a").lt(lit(5i64))), None);
        assert_eq!(pushed(col("s").eq(lit(5))), None);
        // -0.0 = 0.0 here, but not in the order of keys.
        assert_eq!(pushed(col("f").eq(lit(0.0))), None);
        assert_eq!(pushed(col("f").lt(lit(f64::NAN))), None);
        // NULL: the condition is never true, not true of NULLs.
        assert_eq!(pushed(col("a").eq(lit(datafusion::scalar::ScalarValue::Int32(None)))), None);
        assert_eq!(pushed(col("a").eq(lit(1)).or(col("s").eq(lit("x")))), None);
        assert_eq!(pushed(col("a").lt(lit(1)).or(col("a").eq(lit(5)))), None);
        assert_eq!(pushed(col("a").in_list(vec![lit(1)], true)), None);
        assert_eq!(pushed(col("a").eq(col("a"))), None);
    }
}
