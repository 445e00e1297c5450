//! From the text of a view's query to its plan.
//!
//! DataFusion plans the query over empty tables and coerces its types; it does not optimise. What comes out is a tree of
//! projections, filters, unions and at most one aggregate, over scans. It is taken apart from the scans upwards: each
//! expression is rewritten over the columns of what it reads, until nothing is left but expressions over the columns of a
//! feeder (the legs) and over the groups and aggregates (the fold). All else is refused here, by name.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion, TreeNodeVisitor};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::config::ConfigOptions;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Aggregate, Cast, Distinct, Expr, ExprSchemable, LogicalPlan, Union, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{self, SetExpr, SetOperator, SetQuantifier, TableFactor, Visit, Visitor};

use super::{AggregatePlan, Call, Function, LegPlan, ViewPlan};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{ViewDef, columns};
use crate::sql::error::invalid;
use crate::sql::{Planner, Statement, Tables, parse};
use crate::types::{ColumnType, Schema, Timestamp};

/// Scans of one query at most. A common table expression counts as often as it is read.
const LEGS: usize = 256;
/// Operators and operands of all expressions of a view at most. A subquery that computes `x + x` of `x + x` has twice as many
/// with each level, for an expression is written out where it is used.
const NODES: usize = 200_000;
/// How deep an expression may be, written out. What evaluates it recurses.
const DEPTH: usize = 600;

/// What a view is filled by. Made of the definition only: it is the same each time and everywhere.
///
/// The columns are called as DataFusion calls them, without the table: `a` of `t.a`, and `avg(t.a)` of `AVG(a)`. AS is wise.
pub fn plan(view: &ViewDef) -> Result<ViewPlan> {
    let schemas = view.legs.iter().map(|leg| (leg.name.as_str(), &leg.schema)).collect();
    let query = read(&view.query)?;
    let (plan, scans) = take_apart(&query, &schemas)?;
    if !scans.iter().eq(view.legs.iter().map(|leg| &leg.name)) {
        let message = format!("the view was created over other tables than its query reads: {}", scans.join(", "));
        return Err(Error::invalid(Invalid::Mismatch, message));
    }
    Ok(plan)
}

/// The query that a definition keeps as text.
pub(super) fn read(text: &str) -> Result<Box<ast::Query>> {
    match parse(text)? {
        Statement::Query(query) => Ok(query),
        _ => Err(unsupported(format!("a view of {text:?}"), "a view is of a query")),
    }
}

/// What `query` is over tables with these columns, and the tables that it scans, leg by leg.
pub(super) fn take_apart(query: &ast::Query, schemas: &BTreeMap<&str, &Schema>) -> Result<(ViewPlan, Vec<String>)> {
    refuse_by_name(query)?;
    let tables: Tables = schemas
        .iter()
        .map(|(name, schema)| (name.to_string(), Arc::new(EmptyTable::new(Arc::new(visible(schema)))) as _))
        .collect();
    let planner = Planner::new();
    // No function that could look at the time is let through.
    let state = planner.at(Timestamp(0));
    let plan = planner.plan(&state, query, &tables).map_err(named_twice)?;
    let config = state.config_options();
    let plan = state.analyzer().execute_and_check(plan, config, |_, _| {}).map_err(invalid)?;
    let mut walk = Walk { config, nodes: 0 };
    let relation = walk.relation(&plan)?;
    walk.finish(&plan, relation)
}

/// What SELECT shows of a feeder.
fn visible(schema: &Schema) -> ArrowSchema {
    let arrow = schema.to_arrow();
    let fields: Fields = arrow.fields().iter().filter(|field| !columns::is_hidden(field.name())).cloned().collect();
    ArrowSchema::new(fields)
}

fn unsupported(construct: impl std::fmt::Display, instead: &str) -> Error {
    Error::invalid(Invalid::Unsupported, format!("{construct} is not supported in a materialized view; {instead}"))
}

/// Two outputs of one name are a rule of their own here: a view has columns, where a query has only a result. (That a name could
/// mean several columns is the same: there are no joins.)
fn named_twice(err: Error) -> Error {
    match err {
        Error::Invalid { code: Invalid::Plan | Invalid::UnknownColumn, message }
            if message.contains("unique expression names") || message.contains("is in several tables") =>
        {
            let name = message.split('"').nth(1).unwrap_or_default();
            let message = format!("column {name:?} is there twice; give one another name by AS");
            Error::invalid(Invalid::DuplicateColumn, message)
        }
        err => err,
    }
}

/// Refuses what DataFusion would leave out of the plan, or turn into something that is called differently.
pub(super) fn refuse_by_name(query: &ast::Query) -> Result<()> {
    match query.visit(&mut ByName) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(err) => Err(*err),
    }
}

struct ByName;

impl ByName {
    fn body(body: &SetExpr) -> Result<()> {
        match body {
            SetExpr::SetOperation { op: SetOperator::Union, set_quantifier, left, right } => {
                if !matches!(set_quantifier, SetQuantifier::All | SetQuantifier::AllByName) {
                    let instead =
                        "write UNION ALL, and SELECT DISTINCT .. FROM (.. UNION ALL ..) to leave out what is twice";
                    return Err(unsupported("UNION without ALL", instead));
                }
                ByName::body(left)?;
                ByName::body(right)
            }
            SetExpr::SetOperation { op, .. } => {
                Err(unsupported(op, "make views of its two sides and SELECT from these with it"))
            }
            SetExpr::Values(_) => Err(unsupported("VALUES", "INSERT the rows into a table and read that")),
            // A query in parentheses is visited by itself.
            _ => Ok(()),
        }
    }

    fn factor(factor: &TableFactor) -> Result<()> {
        match factor {
            TableFactor::Table { args: Some(_), .. }
            | TableFactor::Function { .. }
            | TableFactor::TableFunction { .. } => {
                Err(unsupported(format!("the table function {factor}"), "a view reads tables and other views"))
            }
            TableFactor::Table { sample: Some(_), .. } | TableFactor::Derived { sample: Some(_), .. } => {
                Err(unsupported("TABLESAMPLE", "a view is of all rows; choose them by WHERE"))
            }
            TableFactor::Table { version: Some(_), name, .. } => {
                Err(unsupported(format!("a version of {name}"), "a view is of the rows as they are"))
            }
            TableFactor::Table { name, .. } => match name.0.as_slice() {
                [_] => Ok(()),
                _ => Err(unsupported(format!("reading {name}"), "a view reads tables that rows are written to")),
            },
            TableFactor::Derived { .. } => Ok(()),
            TableFactor::NestedJoin { table_with_joins, .. } => ByName::from(std::slice::from_ref(table_with_joins)),
            TableFactor::UNNEST { .. } => Err(unsupported("UNNEST", "a view reads tables and other views")),
            other => Err(unsupported(other, "a view reads tables and other views")),
        }
    }

    fn from(tables: &[ast::TableWithJoins]) -> Result<()> {
        if tables.len() > 1 || tables.iter().any(|table| !table.joins.is_empty()) {
            return Err(join());
        }
        Ok(())
    }

    fn query(query: &ast::Query) -> Result<()> {
        if query.order_by.is_some() {
            return Err(unsupported("ORDER BY", "a view has no order; write it where you SELECT from the view"));
        }
        if query.limit_clause.is_some() || query.fetch.is_some() {
            let instead = "a view has all rows; write it where you SELECT from the view";
            return Err(unsupported("LIMIT, OFFSET or FETCH", instead));
        }
        if !query.pipe_operators.is_empty() {
            return Err(unsupported("|>", "write a subquery in FROM"));
        }
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return Err(unsupported("WITH RECURSIVE", "leave RECURSIVE out"));
        }
        ByName::body(&query.body)
    }
}

impl Visitor for ByName {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<Box<Error>> {
        ByName::query(query).map_or_else(|err| ControlFlow::Break(Box::new(err)), ControlFlow::Continue)
    }

    fn pre_visit_select(&mut self, select: &ast::Select) -> ControlFlow<Box<Error>> {
        ByName::from(&select.from).map_or_else(|err| ControlFlow::Break(Box::new(err)), ControlFlow::Continue)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<Box<Error>> {
        ByName::factor(factor).map_or_else(|err| ControlFlow::Break(Box::new(err)), ControlFlow::Continue)
    }
}

/// What a part of the plan gives.
enum Relation {
    /// The outputs of the legs, one after the other.
    Rows(Vec<Leg>),
    /// What they are folded to.
    Groups(Groups),
}

/// A scan, and what is done with its rows so far.
struct Leg {
    name: String,
    input: Arc<DFSchema>,
    filters: Vec<Expr>,
    outputs: Vec<Expr>,
}

/// An aggregate, and what is done with its groups so far.
struct Groups {
    legs: Vec<Leg>,
    groups: usize,
    calls: Vec<Call>,
    input: Arc<DFSchema>,
    having: Vec<Expr>,
    outputs: Vec<Expr>,
}

struct Walk<'a> {
    config: &'a Arc<ConfigOptions>,
    /// How large all that was written out is.
    nodes: usize,
}

impl Walk<'_> {
    fn relation(&mut self, plan: &LogicalPlan) -> Result<Relation> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let fields = scan.source.schema().fields().clone();
                let outputs = fields.iter().map(|field| column(field.name())).collect();
                let input = unqualified(fields)?;
                let name = scan.table_name.table().to_string();
                Ok(Relation::Rows(vec![Leg { name, input, filters: Vec::new(), outputs }]))
            }
            LogicalPlan::SubqueryAlias(alias) => self.relation(&alias.input),
            LogicalPlan::Filter(filter) => {
                let mut relation = self.relation(&filter.input)?;
                let schema = filter.input.schema();
                match &mut relation {
                    Relation::Rows(legs) => {
                        for leg in legs {
                            leg.filters.push(self.written_out(&filter.predicate, schema, &leg.outputs)?);
                        }
                    }
                    Relation::Groups(groups) => {
                        groups.having.push(self.written_out(&filter.predicate, schema, &groups.outputs)?);
                    }
                }
                Ok(relation)
            }
            LogicalPlan::Projection(projection) => {
                let mut relation = self.relation(&projection.input)?;
                let schema = projection.input.schema();
                match &mut relation {
                    Relation::Rows(legs) => {
                        for leg in legs {
                            leg.outputs = self.all_written_out(&projection.expr, schema, &leg.outputs)?;
                        }
                    }
                    Relation::Groups(groups) => {
                        groups.outputs = self.all_written_out(&projection.expr, schema, &groups.outputs)?;
                    }
                }
                Ok(relation)
            }
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let distinct = input
                    .schema()
                    .iter()
                    .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())));
                self.fold(input, &distinct.collect::<Vec<_>>(), &[], input.schema())
            }
            other => Err(refused(other)),
        }
    }

    fn union(&mut self, union: &Union) -> Result<Relation> {
        let mut all = Vec::new();
        for input in &union.inputs {
            let Relation::Rows(legs) = self.relation(input)? else {
                let instead = "make a view of it and read that in the UNION ALL";
                return Err(unsupported("an aggregate or DISTINCT below a UNION ALL", instead));
            };
            for mut leg in legs {
                let outputs = leg.outputs.into_iter().zip(union.schema.fields());
                leg.outputs = outputs
                    .map(|(output, field)| cast(output, &leg.input, field.data_type()))
                    .collect::<Result<_>>()?;
                all.push(leg);
            }
            if all.len() > LEGS {
                let message = format!("a view of a query that scans more than {LEGS} tables; make several views");
                return Err(Error::invalid(Invalid::QueryTooLarge, message));
            }
        }
        Ok(Relation::Rows(all))
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Result<Relation> {
        self.fold(&aggregate.input, &aggregate.group_expr, &aggregate.aggr_expr, &aggregate.schema)
    }

    /// The rows of `input` by `groups`, with the aggregates `calls`. The result has the columns of `schema`.
    fn fold(&mut self, input: &LogicalPlan, groups: &[Expr], calls: &[Expr], schema: &DFSchema) -> Result<Relation> {
        let Relation::Rows(mut legs) = self.relation(input)? else {
            let instead = "make a view of the inner one and read that";
            return Err(unsupported("an aggregate or DISTINCT of an aggregate", instead));
        };
        let over = input.schema();
        // What the legs give: each once.
        let mut inputs: Vec<(&Expr, ColumnType)> = Vec::new();
        for group in groups {
            allowed(group)?;
            inputs.push((group, column_type(&group.get_type(over).map_err(invalid)?, group)?));
        }
        let mut fields: Vec<Field> =
            inputs.iter().enumerate().map(|(at, (_, of))| Field::new(format!("g{at}"), of.to_arrow(), true)).collect();
        let mut made = Vec::new();
        for (at, (call, field)) in calls.iter().zip(schema.fields().iter().skip(groups.len())).enumerate() {
            let (function, argument) = function(call)?;
            let output_type = column_type(field.data_type(), call)?;
            let (input, input_type) = match argument {
                None => (None, ColumnType::Int64),
                Some(argument) => {
                    let input_type = column_type(&argument.get_type(over).map_err(invalid)?, argument)?;
                    let known = inputs[groups.len()..].iter().position(|(known, _)| *known == argument);
                    let input = groups.len() + known.unwrap_or(inputs.len() - groups.len());
                    if known.is_none() {
                        inputs.push((argument, input_type));
                    }
                    (Some(input), input_type)
                }
            };
            fields.push(Field::new(format!("a{at}"), output_type.to_arrow(), true));
            made.push(Call { function, input, input_type, output_type });
        }
        for leg in &mut legs {
            let mut outputs = Vec::with_capacity(inputs.len());
            for (expr, of) in &inputs {
                let expr = self.written_out(expr, over, &leg.outputs)?;
                outputs.push(cast(expr, &leg.input, &of.to_arrow())?);
            }
            leg.outputs = outputs;
        }
        let input = unqualified(fields.into())?;
        let outputs = input
            .fields()
            .iter()
            .zip(schema.fields())
            .map(|(has, wants)| cast(column(has.name()), &input, wants.data_type()))
            .collect::<Result<_>>()?;
        let groups = groups.len();
        Ok(Relation::Groups(Groups { legs, groups, calls: made, input, having: Vec::new(), outputs }))
    }

    fn all_written_out(&mut self, exprs: &[Expr], schema: &DFSchema, outputs: &[Expr]) -> Result<Vec<Expr>> {
        exprs.iter().map(|expr| self.written_out(expr, schema, outputs)).collect()
    }

    /// `expr` over `schema`, with `outputs` in place of the columns of that.
    fn written_out(&mut self, expr: &Expr, schema: &DFSchema, outputs: &[Expr]) -> Result<Expr> {
        allowed(expr)?;
        let mut size = Size::of(expr);
        expr.apply(|part| {
            if let Expr::Column(column) = part {
                size.replace(Size::of(&outputs[schema.index_of_column(column)?]));
            }
            Ok(if size.nodes > NODES { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
        .map_err(invalid)?;
        self.nodes += size.nodes;
        if self.nodes > NODES || size.depth() > DEPTH {
            let message = "the expressions of the view are too large, written out over the columns of the tables that it \
                           reads; make a view of a part of the query and read that";
            return Err(Error::invalid(Invalid::QueryTooLarge, message));
        }
        expr.clone()
            .transform_up(|part| {
                Ok(match part {
                    Expr::Column(column) => Transformed::yes(outputs[schema.index_of_column(&column)?].clone()),
                    Expr::Alias(alias) => Transformed::yes(*alias.expr),
                    part => Transformed::no(part),
                })
            })
            .data()
            .map_err(invalid)
    }

    /// `relation` with columns of the types that columns can have.
    fn finish(&self, plan: &LogicalPlan, relation: Relation) -> Result<(ViewPlan, Vec<String>)> {
        let columns = output_columns(plan.schema())?;
        let to_columns = |outputs: Vec<Expr>, schema: &DFSchema| {
            let outputs = outputs.into_iter().zip(&columns);
            outputs.map(|(output, (_, of))| cast(output, schema, &of.to_arrow())).collect::<Result<Vec<_>>>()
        };
        let (mut legs, aggregate) = match relation {
            Relation::Rows(mut legs) => {
                for leg in &mut legs {
                    leg.outputs = to_columns(std::mem::take(&mut leg.outputs), &leg.input)?;
                }
                (legs, None)
            }
            Relation::Groups(Groups { legs, groups, calls, input, having, outputs }) => {
                let outputs = self.simple_all(to_columns(outputs, &input)?, &input)?;
                let having = self.condition(having, &input)?;
                (legs, Some(AggregatePlan { groups, calls, input, having, outputs }))
            }
        };
        let scans = legs.iter_mut().map(|leg| std::mem::take(&mut leg.name)).collect();
        let legs = legs
            .into_iter()
            .map(|Leg { input, filters, outputs, .. }| {
                let filter = self.condition(filters, &input)?;
                let outputs = self.simple_all(outputs, &input)?;
                Ok(LegPlan { input, filter, outputs })
            })
            .collect::<Result<_>>()?;
        Ok((ViewPlan { legs, aggregate, columns }, scans))
    }

    /// All of `filters`; none if they always hold.
    fn condition(&self, filters: Vec<Expr>, schema: &Arc<DFSchema>) -> Result<Option<Expr>> {
        let filter = conjunction(filters).map(|filter| self.simple(filter, schema)).transpose()?;
        Ok(filter.filter(|filter| !matches!(filter, Expr::Literal(ScalarValue::Boolean(Some(true)), _))))
    }

    fn simple_all(&self, exprs: Vec<Expr>, schema: &Arc<DFSchema>) -> Result<Vec<Expr>> {
        exprs.into_iter().map(|expr| self.simple(expr, schema)).collect()
    }

    /// Functions that DataFusion only evaluates in another form (COALESCE) need it; it is what a SELECT would evaluate.
    fn simple(&self, expr: Expr, schema: &Arc<DFSchema>) -> Result<Expr> {
        let context =
            SimplifyContext::builder().with_schema(schema.clone()).with_config_options(self.config.clone()).build();
        ExprSimplifier::new(context).simplify(expr).map_err(invalid)
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

fn unqualified(fields: Fields) -> Result<Arc<DFSchema>> {
    DFSchema::from_unqualified_fields(fields, Default::default()).map(Arc::new).map_err(invalid)
}

fn cast(expr: Expr, schema: &DFSchema, to: &DataType) -> Result<Expr> {
    let is_there = expr.get_type(schema).map_err(invalid)? == *to;
    Ok(if is_there { expr } else { Expr::Cast(Cast::new(Box::new(expr), to.clone())) })
}

/// How large an expression is once its columns are written out.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    at: usize,
    deepest: usize,
    replaced: usize,
}

impl Size {
    fn of(expr: &Expr) -> Size {
        let mut size = Size::default();
        // The visits themselves never fail.
        let _ = expr.visit(&mut size);
        size
    }

    fn replace(&mut self, by: Size) {
        self.nodes += by.nodes;
        self.replaced = self.replaced.max(by.deepest);
    }

    fn depth(&self) -> usize {
        self.deepest + self.replaced
    }
}

impl TreeNodeVisitor<'_> for Size {
    type Node = Expr;

    fn f_down(&mut self, _: &Expr) -> Result<TreeNodeRecursion, DataFusionError> {
        self.nodes += 1;
        self.at += 1;
        self.deepest = self.deepest.max(self.at);
        Ok(TreeNodeRecursion::Continue)
    }

    fn f_up(&mut self, _: &Expr) -> Result<TreeNodeRecursion, DataFusionError> {
        self.at -= 1;
        Ok(TreeNodeRecursion::Continue)
    }
}

/// What `call` computes, and of what; none: rows.
fn function(call: &Expr) -> Result<(Function, Option<&Expr>)> {
    let mut call = call;
    while let Expr::Alias(alias) = call {
        call = &alias.expr;
    }
    let Expr::AggregateFunction(AggregateFunction { func, params }) = call else {
        return Err(unsupported(call, "there are COUNT, SUM, AVG, MIN and MAX"));
    };
    let function = match func.name() {
        "count" => Function::Count,
        "sum" => Function::Sum,
        "avg" => Function::Avg,
        "min" => Function::Min,
        "max" => Function::Max,
        other => return Err(unsupported(format!("{other}()"), "there are COUNT, SUM, AVG, MIN and MAX")),
    };
    let written = func.name().to_uppercase();
    if params.distinct {
        let instead = "make a view that is SELECT DISTINCT of it and aggregate that";
        return Err(unsupported(format!("{written}(DISTINCT ..)"), instead));
    }
    if params.filter.is_some() {
        let instead = format!("write {written}(CASE WHEN .. THEN .. END)");
        return Err(unsupported(format!("{written}(..) FILTER (WHERE ..)"), &instead));
    }
    if !params.order_by.is_empty() || params.null_treatment.is_some() {
        let instead = "its result does not depend on the order; NULLs are left out already";
        return Err(unsupported(format!("{written}(..) with ORDER BY, IGNORE NULLS or RESPECT NULLS"), instead));
    }
    let [argument] = params.args.as_slice() else {
        return Err(unsupported(format!("{written} of {} columns", params.args.len()), "name one column"));
    };
    allowed(argument)?;
    match (function, argument) {
        // COUNT(*) comes as this.
        (Function::Count, Expr::Literal(value, _)) if !value.is_null() => Ok((function, None)),
        _ => Ok((function, Some(argument))),
    }
}

/// Refuses what does not give the same for the same row at all times, and what a row alone does not decide.
fn allowed(expr: &Expr) -> Result<()> {
    let refuse = |err: Error| Err(DataFusionError::External(Box::new(err)));
    expr.apply(|part| match part {
        Expr::ScalarFunction(function) if function.func.signature().volatility != Volatility::Immutable => {
            let instead = "its result is not the same each time; store it in a column when the row is written";
            refuse(unsupported(format!("{}()", function.func.name()), instead))
        }
        Expr::ScalarSubquery(_)
        | Expr::InSubquery(_)
        | Expr::Exists(_)
        | Expr::SetComparison(_)
        | Expr::OuterReferenceColumn(..) => {
            let instead = "write it where you SELECT from the view";
            refuse(unsupported("a subquery in an expression", instead))
        }
        Expr::GroupingSet(_) => {
            refuse(unsupported("GROUPING SETS, ROLLUP or CUBE", "make a view for each way to GROUP BY"))
        }
        Expr::WindowFunction(_) => refuse(unsupported("a window function", "write it where you SELECT from the view")),
        Expr::HigherOrderFunction(_) | Expr::Lambda(_) | Expr::LambdaVariable(_) => {
            refuse(unsupported("a lambda function", "write it where you SELECT from the view"))
        }
        Expr::Unnest(_) => refuse(unsupported("UNNEST", "a row of a table gives one row of the view, or none")),
        Expr::ScalarVariable(..) | Expr::Placeholder(_) => refuse(unsupported(part, "write the value")),
        _ => Ok(TreeNodeRecursion::Continue),
    })
    .map(drop)
    .map_err(invalid)
}

fn join() -> Error {
    let instead = "make a view of each table and join them where you SELECT";
    unsupported("JOIN, or several tables in FROM,", instead)
}

/// What DataFusion plans and a view cannot be filled by.
fn refused(plan: &LogicalPlan) -> Error {
    let later = "write it where you SELECT from the view";
    match plan {
        LogicalPlan::Join(_) => join(),
        LogicalPlan::Window(_) => unsupported("a window function", later),
        LogicalPlan::EmptyRelation(_) => unsupported("SELECT without FROM", "a view reads at least one table"),
        LogicalPlan::Distinct(Distinct::On(_)) => unsupported("DISTINCT ON", "use GROUP BY with MIN or MAX"),
        LogicalPlan::Sort(_) => unsupported("ORDER BY", later),
        LogicalPlan::Limit(_) => unsupported("LIMIT, OFFSET or FETCH", later),
        LogicalPlan::Values(_) => unsupported("VALUES", "INSERT the rows into a table and read that"),
        LogicalPlan::Unnest(_) => unsupported("UNNEST", "a row of a table gives one row of the view, or none"),
        LogicalPlan::RecursiveQuery(_) => unsupported("WITH RECURSIVE", later),
        LogicalPlan::Subquery(_) => unsupported("a subquery in an expression", later),
        other => {
            let text = other.display().to_string();
            let operator = text.split([':', ' ']).next().unwrap_or_default().to_string();
            unsupported(operator, "a view has WHERE, GROUP BY, HAVING and UNION ALL")
        }
    }
}

/// The columns of a view whose query gives `schema`.
fn output_columns(schema: &DFSchema) -> Result<Vec<(String, ColumnType)>> {
    let mut columns: Vec<(String, ColumnType)> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let name = field.name();
        if name.is_empty() {
            return Err(Error::invalid(Invalid::Schema, "a column of the view has no name; give it one by AS"));
        }
        if columns::is_hidden(name) {
            let message = format!(
                "column name {name:?} is reserved: names that start with two underscores are the engine's; give it another \
                 one by AS"
            );
            return Err(Error::invalid(Invalid::Schema, message));
        }
        if columns.iter().any(|(other, _)| other == name) {
            let message = format!("column {name:?} is there twice; give one another name by AS");
            return Err(Error::invalid(Invalid::DuplicateColumn, message));
        }
        columns.push((name.clone(), column_type(field.data_type(), format_args!("column {name:?}"))?));
    }
    if columns.is_empty() {
        return Err(Error::invalid(Invalid::Schema, "a view without columns; SELECT one"));
    }
    Ok(columns)
}

/// The type of a column that holds `data_type`.
fn column_type(data_type: &DataType, what: impl std::fmt::Display) -> Result<ColumnType> {
    let has_zone = matches!(data_type, DataType::Timestamp(_, Some(_)));
    match ColumnType::from_arrow(data_type).filter(|_| !has_zone) {
        Some(ColumnType::Decimal { precision, scale }) if !(0..=precision as i8).contains(&scale) => {
            let message =
                format!("{what} is DECIMAL({precision}, {scale}), which no column is; CAST it to one that fits");
            Err(Error::invalid(Invalid::WrongType, message))
        }
        Some(column_type) => Ok(column_type),
        None => {
            let message =
                format!("{what} is of type {data_type}, which no column has; CAST it to one that a column has");
            Err(Error::invalid(Invalid::Unsupported, message))
        }
    }
}
