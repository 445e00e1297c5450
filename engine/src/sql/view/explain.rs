//! EXPLAIN of a view: what becomes of a change of a row that it reads, from the bottom to the top.

use std::fmt::Write as _;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::Expr;

use super::plan::plan;
use super::{AggregatePlan, Call, LegPlan, ViewPlan};
use crate::error::Result;
use crate::meta::catalog::{PartitionRule, ViewDef};
use crate::sql::error::invalid;
use crate::sql::partition::show_rule;
use crate::types::Schema;

/// The operators of a view whose rows have this schema and are partitioned so, one a line, each above what it reads. What stands
/// below `Route` is done where the feeders are, the rest at the regions of the view.
pub fn explain(view: &ViewDef, schema: &Schema, partition: &PartitionRule) -> Result<String> {
    let plan = plan(view)?;
    let mut text = Text::default();
    match &plan.aggregate {
        None => {
            let key = schema.key().into_iter().map(|at| schema.columns()[at].name.as_str()).collect::<Vec<_>>();
            text.line(format_args!("Store: key=[{}]", key.join(", ")));
        }
        Some(aggregate) => text.folds(&plan, aggregate)?,
    }
    text.line(format_args!("Route: {}", show_rule(partition, schema)));
    if plan.aggregate.is_some() {
        text.line(format_args!("PartialAggregate: the changes of a page, by group"));
    }
    if plan.legs.len() > 1 {
        text.line(format_args!("Union"));
    }
    for (number, (leg, def)) in plan.legs.iter().zip(&view.legs).enumerate() {
        let mut of_leg = Text { lines: String::new(), depth: text.depth };
        of_leg.leg(&plan, leg, number, &def.name);
        text.lines.push_str(&of_leg.lines);
    }
    text.lines.truncate(text.lines.trim_end().len());
    Ok(text.lines)
}

#[derive(Default)]
struct Text {
    lines: String,
    depth: usize,
}

impl Text {
    /// What the lines after it are read by.
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.lines, "{:indent$}{line}", "", indent = 2 * self.depth).expect("a string takes it");
        self.depth += 1;
    }

    fn folds(&mut self, plan: &ViewPlan, aggregate: &AggregatePlan) -> Result<()> {
        let groups: Vec<String> = (0..aggregate.groups).map(|group| input(plan, group)).collect();
        let calls: Vec<String> = aggregate.calls.iter().map(|call| shown_call(plan, call)).collect();
        // The expressions are over g0, g1, .., a0, a1, ..
        let names: Vec<(&String, &String)> =
            aggregate.input.fields().iter().map(|field| field.name()).zip(groups.iter().chain(&calls)).collect();
        let named = |expr: &Expr| -> Result<String> {
            let named = expr.clone().transform_up(|part| {
                Ok(match &part {
                    Expr::Column(column) => match names.iter().find(|(name, _)| **name == column.name) {
                        Some((_, shown)) => Transformed::yes(Expr::Column(Column::new_unqualified(shown.as_str()))),
                        None => Transformed::no(part),
                    },
                    _ => Transformed::no(part),
                })
            });
            Ok(named.data().map_err(invalid)?.human_display().to_string())
        };
        let outputs = plan.columns.iter().zip(&aggregate.outputs).map(|((name, _), output)| {
            let shown = named(output)?;
            Ok(if shown == *name { shown } else { format!("{shown} AS {name}") })
        });
        self.line(format_args!("Projection: {}", outputs.collect::<Result<Vec<_>>>()?.join(", ")));
        if let Some(having) = &aggregate.having {
            self.line(format_args!("Having: {}", named(having)?));
        }
        let groups =
            if groups.is_empty() { "one group".to_string() } else { format!("groups=[{}]", groups.join(", ")) };
        self.line(format_args!("Aggregate: {groups}, aggregates=[{}]", calls.join(", ")));
        Ok(())
    }

    fn leg(&mut self, plan: &ViewPlan, leg: &LegPlan, number: usize, feeder: &str) {
        let outputs = leg.outputs.iter().enumerate().map(|(at, output)| {
            let shown = output.human_display().to_string();
            match plan.columns.get(at).filter(|_| plan.aggregate.is_none()) {
                Some((name, _)) if *name != shown => format!("{shown} AS {name}"),
                _ => shown,
            }
        });
        self.line(format_args!("Projection: {}", outputs.collect::<Vec<_>>().join(", ")));
        if let Some(filter) = &leg.filter {
            self.line(format_args!("Filter: {}", filter.human_display()));
        }
        let is_used = |name: &str| leg.outputs.iter().chain(&leg.filter).any(|expr| uses(expr, name));
        let columns = leg.input.fields().iter().map(|field| field.name().as_str()).filter(|name| is_used(name));
        self.line(format_args!(
            "Changes: {feeder} (leg {number}), columns=[{}]",
            columns.collect::<Vec<_>>().join(", ")
        ));
    }
}

fn uses(expr: &Expr, name: &str) -> bool {
    expr.column_refs().iter().any(|column| column.name == name)
}

/// What the legs give at this position, if it is the same of all of them.
fn input(plan: &ViewPlan, at: usize) -> String {
    let mut shown =
        plan.legs.iter().filter_map(|leg| leg.outputs.get(at)).map(|output| output.human_display().to_string());
    let first = shown.next().unwrap_or_default();
    if shown.all(|other| other == first) { first } else { format!("#{at}") }
}

fn shown_call(plan: &ViewPlan, call: &Call) -> String {
    let function = format!("{:?}", call.function).to_lowercase();
    format!("{function}({})", call.input.map_or("*".to_string(), |at| input(plan, at)))
}
