//! Golden scripts: `testscripts/view_plan/*`. A line that begins with `>` is a statement:
//!
//! - `CREATE TABLE ..` makes a feeder;
//! - a query is planned as the query of a view: its legs, then how they are folded, then the columns. `#1` is the leg's second
//!   output;
//! - `CREATE MATERIALIZED VIEW ..` shows what meta is asked to create, and makes that a feeder.
//!
//! Every plan is made twice, and must come out the same.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::sql::sqlparser::ast;
use goldenscript::{Command, Context, Runner};

use super::*;
use crate::error::Result;
use crate::meta::catalog::{self, LegDef, TableDef, ViewDef, columns};
use crate::sql::partition::show_rule;
use crate::sql::{Planner, Statement, parse};
use crate::types::{Schema, TableId, Timestamp};

#[test]
fn scripts() {
    crate::testscripts::run_all::<Script>("view_plan");
}

/// Expressions are as deep as all levels of the query together: each alone would pass.
#[test]
fn what_is_written_out_is_not_too_deep() {
    let mut script = Script::default();
    script.statement("CREATE TABLE t (k BIGINT PRIMARY KEY)").unwrap();
    let mut plan = |levels: usize| {
        let level = |at: usize| format!("q{at} AS (SELECT k{} AS k FROM q{})", " + 1".repeat(20), at - 1);
        let levels_but_one: Vec<String> = (1..levels).map(level).collect();
        script.statement(&format!(
            "WITH q0 AS (SELECT k FROM t), {} SELECT k FROM q{}",
            levels_but_one.join(", "),
            levels - 1
        ))
    };
    plan(28).unwrap();
    let refused = plan(60).unwrap_err();
    assert!(matches!(refused, crate::Error::Invalid { code: crate::error::Invalid::QueryTooLarge, .. }), "{refused}");
}

#[derive(Default)]
struct Script {
    planner: Planner,
    feeders: BTreeMap<String, Arc<TableDef>>,
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn StdError>> {
        Ok(self.statement(&command.name).unwrap_or_else(|err| format!("Error: {err}\n")))
    }
}

impl Script {
    fn statement(&mut self, sql: &str) -> Result<String> {
        let evaluator = self.planner.evaluator(Timestamp(0));
        match parse(sql)? {
            Statement::CreateTable(table) => {
                let table = table.resolve(&evaluator)?;
                self.add(table);
                Ok(String::new())
            }
            Statement::CreateView(view) => {
                let feeders = view.feeders()?;
                let feeders = feeders.into_iter().filter_map(|name| self.feeders.get_key_value(&name));
                let feeders = feeders.map(|(name, feeder)| (name.clone(), feeder.clone())).collect();
                let created = view.resolve(&feeders, &evaluator)?;
                let definition = created.view.as_deref().expect("a view");
                let (once, again) = (plan(definition)?, plan(definition)?);
                assert_eq!(format!("{once:?}"), format!("{again:?}"));
                let shown = show_created(&created);
                self.add(created);
                Ok(shown)
            }
            Statement::Query(query) => {
                let definition = self.definition(&query)?;
                let (once, again) = (plan(&definition)?, plan(&definition)?);
                assert_eq!(format!("{once:?}"), format!("{again:?}"));
                Ok(show_plan(&once, &definition.legs))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Without what `CREATE MATERIALIZED VIEW` finds out besides.
    fn definition(&self, query: &ast::Query) -> Result<ViewDef> {
        let schemas = self.feeders.iter().map(|(name, feeder)| (name.as_str(), &feeder.schema)).collect();
        let (_, scans) = plan::take_apart(query, &schemas)?;
        let leg = |name: &String| {
            let TableDef { id, schema, .. } = &*self.feeders[name];
            LegDef { feeder: *id, name: name.clone(), schema: schema.clone(), uses: BTreeSet::new() }
        };
        let legs = scans.iter().map(leg).collect();
        Ok(ViewDef { query: query.to_string(), legs, chunk_rows: None, rate_limit: None })
    }

    fn add(&mut self, created: catalog::CreateTable) {
        let catalog::CreateTable { name, schema, partition, view, .. } = created;
        let id = TableId(self.feeders.len() as u32 + 1);
        let feeder = TableDef {
            id,
            name: name.clone(),
            schema,
            partition,
            regions: Vec::new(),
            view,
            indexes: Default::default(),
        };
        self.feeders.insert(name, Arc::new(feeder));
    }
}

fn typed(exprs: &[Expr], schema: &DFSchema) -> String {
    let shown = exprs.iter().map(|expr| {
        let column_type = ColumnType::from_arrow(&expr.get_type(schema).unwrap()).unwrap();
        format!("{expr} {column_type}")
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn show_plan(plan: &ViewPlan, legs: &[LegDef]) -> String {
    let mut lines = Vec::new();
    for (leg, def) in plan.legs.iter().zip(legs) {
        assert!(leg.input.iter().all(|(qualifier, field)| qualifier.is_none() && !columns::is_hidden(field.name())));
        let filter = leg.filter.as_ref().map_or(String::new(), |filter| format!(" WHERE {filter}"));
        lines.push(format!("{}{filter}: {}", def.name, typed(&leg.outputs, &leg.input)));
    }
    let Some(AggregatePlan { groups, calls, input, having, outputs }) = &plan.aggregate else {
        let columns: Vec<String> = plan.columns.iter().map(|(name, of)| format!("{name} {of}")).collect();
        lines.push(format!("= {}\n", columns.join(", ")));
        return lines.join("\n");
    };
    let fields: Vec<&str> = input.fields().iter().map(|field| field.name().as_str()).collect();
    let names = (0..*groups).map(|at| format!("g{at}")).chain((0..calls.len()).map(|at| format!("a{at}")));
    assert_eq!(fields, names.collect::<Vec<_>>());
    let mut folded = vec![format!("GROUP BY {groups}")];
    for (at, Call { function, input: of, input_type, output_type }) in calls.iter().enumerate() {
        let of = of.map_or("*".to_string(), |of| format!("#{of} {input_type}"));
        folded.push(format!("a{at} = {function:?}({of}) {output_type}"));
        assert_eq!(ColumnType::from_arrow(input.field(groups + at).data_type()), Some(*output_type));
    }
    lines.push(folded.join(", "));
    lines.extend(having.as_ref().map(|having| format!("HAVING {having}")));
    let columns = plan.columns.iter().zip(outputs);
    let columns: Vec<String> = columns
        .map(|((name, of), output)| {
            assert_eq!(output.get_type(input).unwrap(), of.to_arrow());
            format!("{name} {of} = {output}")
        })
        .collect();
    lines.push(format!("= {}\n", columns.join(", ")));
    lines.join("\n")
}

fn show_created(created: &catalog::CreateTable) -> String {
    let catalog::CreateTable { name, schema, partition, replicas, if_not_exists, view } = created;
    let ViewDef { query, legs, chunk_rows, rate_limit } = view.as_deref().expect("a view");
    let key = schema.key();
    let columns = schema.columns().iter().enumerate().map(|(at, column)| {
        assert!(column.nullable && column.id.0 == at as u32 + 1);
        let hidden = if columns::is_hidden(&column.name) { " hidden" } else { "" };
        let place = key.iter().position(|key| *key == at);
        let place = place.map_or(String::new(), |place| format!(" key {}", place + 1));
        format!("{} {}{hidden}{place}", column.name, column.column_type)
    });
    let mut lines = vec![
        format!("{name}: {}", columns.collect::<Vec<_>>().join(", ")),
        format!("  by {}", show_rule(partition, schema)),
    ];
    for LegDef { feeder, name, schema, uses } in legs {
        let uses: Vec<&str> = uses.iter().map(|id| name_of(schema, id.0)).collect();
        lines.push(format!("  {name} {feeder} uses {}", uses.join(", ")));
    }
    lines.push(format!("  {query}"));
    let options = (replicas, chunk_rows, rate_limit, if_not_exists);
    if options != (&None, &None, &None, &false) {
        lines.push(format!("  replicas {replicas:?}, chunk_rows {chunk_rows:?}, rate_limit {rate_limit:?}, if_not_exists {if_not_exists}"));
    }
    lines.join("\n") + "\n"
}

fn name_of(schema: &Schema, id: u32) -> &str {
    schema.columns().iter().find(|column| column.id.0 == id).map(|column| column.name.as_str()).expect("a column")
}
