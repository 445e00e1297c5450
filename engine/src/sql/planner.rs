//! The settings that queries are planned with, and constants.
//!
//! One [`Planner`] a node: making DataFusion's list of functions and rules costs as much as ten queries. A query gets its
//! own copy with its own time, so that `now()` is the node's clock and the same all through the statement: DataFusion's
//! ways in (`SessionContext::sql`) ask the system's.
//!
//! Everything runs in one partition, see [`chain`](super::chain): no task is spawned and no order depends on a scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, NullArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Schema as ArrowSchema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, TableReference};
use datafusion::config::ConfigOptions;
use datafusion::datasource::cte_worktable::CteWorkTable;
use datafusion::datasource::{TableProvider, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder, SessionStateDefaults};
use datafusion::logical_expr::execution_props::ExecutionProps;
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{AggregateUDF, Expr, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement as DFStatement;
use datafusion::sql::planner::{ParserOptions, PlannerContext, SqlToRel};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;

use super::cast::{repeat, to_column, to_scalar};
use super::chain::{ChainUnions, OnePartition};
use super::checked::CheckedArithmetic;
use super::error::invalid;
use super::parser::expression;
use crate::error::{Error, Invalid, Result};
use crate::types::{Column, ColumnDefault, Timestamp};

/// What an UPDATE or DELETE calls its table while it reads: no table can be called so.
pub const TARGET: &str = "__target";

/// The tables that a query may name, by name (`schema.name` where it has one).
pub type Tables = BTreeMap<String, Arc<dyn TableProvider>>;

/// Plans queries and evaluates constants.
pub struct Planner {
    base: SessionState,
    runtime: Arc<RuntimeEnv>,
}

impl Planner {
    /// With all functions that DataFusion was built with.
    pub fn new() -> Planner {
        // Queries must not write to the disk behind the seam's back: one that does not fit in memory fails.
        let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(no_disk)
            .build_arc()
            .expect("a runtime without a disk needs nothing");
        let mut rules = PhysicalOptimizer::new().rules;
        rules.insert(0, Arc::new(ChainUnions));
        rules.push(Arc::new(CheckedArithmetic));
        rules.push(Arc::new(OnePartition));
        let base = SessionStateBuilder::new()
            // Otherwise it draws a random one.
            .with_session_id(String::new())
            .with_config(config())
            .with_runtime_env(runtime.clone())
            .with_expr_planners(SessionStateDefaults::default_expr_planners())
            .with_scalar_functions(SessionStateDefaults::default_scalar_functions())
            .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
            .with_window_functions(SessionStateDefaults::default_window_functions())
            .with_table_function_list(SessionStateDefaults::default_table_functions())
            .with_physical_optimizer_rules(rules)
            .build();
        Planner { base, runtime }
    }

    /// What a statement that begins at `now` is planned with.
    pub fn at(&self, now: Timestamp) -> SessionState {
        let mut state = self.base.clone();
        *state.execution_props_mut() = started(now, state.config_options().clone());
        state
    }

    /// The tables that `query` names, without those that it defines itself.
    pub fn tables(query: &ast::Query) -> Result<Vec<String>> {
        let statement = DFStatement::Statement(Box::new(ast::Statement::Query(Box::new(query.clone()))));
        let (tables, _) = resolve_table_references(&statement, true).map_err(invalid)?;
        Ok(tables.iter().map(key).collect())
    }

    /// Whether `name` stands for a function that gives rows, and not for a table, where a query reads from it.
    pub fn is_table_function(&self, name: &str) -> bool {
        self.base.table_functions().contains_key(name)
    }

    /// The meaning of `query` over `tables`.
    pub fn plan(&self, state: &SessionState, query: &ast::Query, tables: &Tables) -> Result<LogicalPlan> {
        let names = Names { state, tables };
        let options = ParserOptions::from(&state.config_options().sql_parser);
        let plan = SqlToRel::new_with_options(&names, options)
            .sql_statement_to_plan(ast::Statement::Query(Box::new(query.clone())))
            .map_err(invalid)?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|err| Error::invalid(Invalid::Unsupported, err.strip_backtrace()))?;
        Ok(plan)
    }

    /// How `plan` is run: optimised, in one partition.
    pub async fn physical(&self, state: &SessionState, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>> {
        state.create_physical_plan(plan).await.map_err(invalid)
    }

    /// What one physical plan is run with: a pool of `memory` bytes. When it is used up, the query fails.
    pub fn task(&self, memory: usize) -> Arc<TaskContext> {
        let runtime = RuntimeEnvBuilder::from_runtime_env(&self.runtime)
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
            .build_arc()
            .expect("it has its parts of a runtime that was built");
        Arc::new(TaskContext::new(
            None,
            String::new(),
            self.base.config().clone(),
            Default::default(),
            Default::default(),
            Default::default(),
            Default::default(),
            runtime,
        ))
    }

    /// Evaluates the constants of a statement that begins at `now`.
    pub fn evaluator(&self, now: Timestamp) -> Evaluator<'_> {
        Evaluator { base: &self.base, props: started(now, self.base.config_options().clone()) }
    }
}

impl Default for Planner {
    fn default() -> Self {
        Planner::new()
    }
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").finish_non_exhaustive()
    }
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(1).with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.planning_concurrency = 1;
    options.execution.collect_statistics = false;
    options.explain.show_sizes = false;
    // The regions cannot use a filter that is found out while the query runs.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    options.optimizer.enable_topk_dynamic_filter_pushdown = false;
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // One partition.
    options.optimizer.enable_round_robin_repartition = false;
    options.optimizer.repartition_aggregations = false;
    options.optimizer.repartition_joins = false;
    options.optimizer.repartition_windows = false;
    options.optimizer.repartition_sorts = false;
    options.optimizer.repartition_file_scans = false;
    config
}

fn started(now: Timestamp, config: Arc<ConfigOptions>) -> ExecutionProps {
    let mut props = ExecutionProps::new();
    props.query_execution_start_time =
        arrow::temporal_conversions::timestamp_ms_to_datetime(now.0).map(|time| time.and_utc());
    props.config_options = Some(config);
    props
}

fn key(table: &TableReference) -> String {
    match table.schema() {
        Some(schema) => format!("{schema}.{}", table.table()),
        None => table.table().to_string(),
    }
}

/// Evaluates expressions that name no column: values to insert, defaults, constants of partition rules.
pub struct Evaluator<'a> {
    base: &'a SessionState,
    props: ExecutionProps,
}

impl Evaluator<'_> {
    /// The value of `expr` in this statement.
    pub fn scalar(&self, expr: &ast::Expr) -> Result<ScalarValue> {
        match self.simplify(expr, &self.props)? {
            Expr::Literal(value, _) => Ok(value),
            expr => {
                let array = self.array(expr, 1)?;
                ScalarValue::try_from_array(&array, 0).map_err(invalid)
            }
        }
    }

    /// The value of `expr` in every statement; none if it depends on time or chance.
    pub fn constant(&self, expr: &ast::Expr) -> Result<Option<ScalarValue>> {
        let timeless = ExecutionProps { query_execution_start_time: None, ..self.props.clone() };
        match self.simplify(expr, &timeless)? {
            Expr::Literal(value, _) => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// What `rows` rows that do not name `column` of `table` have in it.
    pub fn default(&self, column: &Column, table: &str, rows: usize) -> Result<ArrayRef> {
        let array = match &column.default {
            None => Arc::new(NullArray::new(rows)) as ArrayRef,
            Some(ColumnDefault::Constant(value)) => repeat(&to_scalar(value, column.column_type), rows),
            // Evaluated for all rows at once: now() is the same for all of them, uuid() and random() are not.
            Some(ColumnDefault::Impure(text)) => match self.simplify(&expression(text)?, &self.props)? {
                Expr::Literal(value, _) => repeat(&value, rows),
                expr => self.array(expr, rows)?,
            },
        };
        to_column(&array, column, table)
    }

    fn simplify(&self, expr: &ast::Expr, props: &ExecutionProps) -> Result<Expr> {
        let tables = Tables::new();
        let names = Names { state: self.base, tables: &tables };
        let options = ParserOptions::from(&self.base.config_options().sql_parser);
        let schema = DFSchema::empty();
        let expr = SqlToRel::new_with_options(&names, options)
            .sql_to_expr(expr.clone(), &schema, &mut PlannerContext::new())
            .map_err(invalid)?;
        let subquery = |expr: &Expr| {
            Ok(matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_)))
        };
        if expr.exists(subquery).map_err(invalid)? {
            let message = "a subquery is not evaluated here; write the value, or INSERT .. SELECT";
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        let simplifier = ExprSimplifier::new(
            SimplifyContext::builder()
                .with_config_options(self.base.config_options().clone())
                .with_query_execution_start_time(props.query_execution_start_time)
                .build(),
        );
        let expr = simplifier.coerce(expr, &schema).map_err(invalid)?;
        simplifier.simplify(expr).map_err(invalid)
    }

    fn array(&self, expr: Expr, rows: usize) -> Result<ArrayRef> {
        let expr = self.base.create_physical_expr(expr, &DFSchema::empty()).map_err(invalid)?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(ArrowSchema::empty()), vec![], &options)
            .map_err(|err| invalid(err.into()))?;
        expr.evaluate(&batch).and_then(|value| value.into_array(rows)).map_err(invalid)
    }
}

/// What the names in a query stand for.
struct Names<'a> {
    state: &'a SessionState,
    tables: &'a Tables,
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>, DataFusionError> {
        match self.tables.get(&key(&name)) {
            Some(table) => Ok(provider_as_source(table.clone())),
            None => {
                let message = format!("there is no table {name} here");
                Err(DataFusionError::External(Box::new(Error::invalid(Invalid::UnknownTable, message))))
            }
        }
    }

    fn get_table_function_source(&self, name: &str, args: Vec<Expr>) -> Result<Arc<dyn TableSource>, DataFusionError> {
        let Some(function) = self.state.table_functions().get(name) else {
            let message = format!("there is no table function {name:?}");
            return Err(DataFusionError::External(Box::new(Error::invalid(Invalid::UnknownFunction, message))));
        };
        let simplifier = ExprSimplifier::new(
            SimplifyContext::builder()
                .with_config_options(self.state.config_options().clone())
                .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
                .build(),
        );
        let schema = DFSchema::empty();
        let args = args
            .into_iter()
            .map(|arg| simplifier.coerce(arg, &schema).and_then(|arg| simplifier.simplify(arg)))
            .collect::<Result<Vec<_>, _>>()?;
        let args = datafusion::catalog::TableFunctionArgs::new(&args, self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(args)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>, DataFusionError> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        sorted(self.state.scalar_functions().keys())
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        sorted(self.state.higher_order_functions().keys())
    }

    fn udaf_names(&self) -> Vec<String> {
        sorted(self.state.aggregate_functions().keys())
    }

    fn udwf_names(&self) -> Vec<String> {
        sorted(self.state.window_functions().keys())
    }
}

/// Which name an error suggests must not depend on a hash.
fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    names.sort();
    names
}
