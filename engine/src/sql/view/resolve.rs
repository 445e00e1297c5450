//! `CREATE MATERIALIZED VIEW`: from what is written to what meta is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::logical_expr::Expr;
use datafusion::sql::sqlparser::ast;

use super::plan::{read, refuse_by_name, take_apart};
use super::{LegPlan, ViewPlan};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::{self, LegDef, PartitionRule, TableDef, ViewDef, columns};
use crate::sql::create::Partition;
use crate::sql::names::suggest;
use crate::sql::partition;
use crate::sql::planner::{Evaluator, Planner};
use crate::types::{Column, ColumnId, ColumnType, MergeMode, Schema, TableOptions};

/// A `CREATE MATERIALIZED VIEW` as written.
#[derive(Clone, Debug)]
pub struct CreateView {
    /// The name.
    pub name: String,
    /// Whether it is fine that there is such a view.
    pub if_not_exists: bool,
    /// `PARTITION ON COLUMNS ..`
    pub partition: Option<Partition>,
    /// `WITH (name = value)`
    pub options: Vec<(String, String)>,
    /// What its rows are.
    pub query: Box<ast::Query>,
}

/// The options of a view and what their values are.
const OPTIONS: [(&str, &str); 4] = [
    ("regions", "how many regions the rows are hashed into, at least 1"),
    ("replicas", "how many nodes have a copy of each region, at least 1"),
    ("fill_chunk_rows", "how many rows a batch of the fill has at most, at least 1"),
    ("fill_rate_limit", "how many rows a second the fill reads of each region, at least 1"),
];

/// The options of `CREATE MATERIALIZED VIEW .. WITH (..)`.
#[derive(Default)]
struct Given {
    regions: Option<u32>,
    replicas: Option<u32>,
    chunk_rows: Option<u64>,
    rate_limit: Option<u64>,
}

/// The columns of a view and what its rows are told apart by.
struct Layout {
    schema: Schema,
    /// The columns of the row key that say where a row belongs: without those that tell the rows of one group apart.
    places: Vec<String>,
}

impl CreateView {
    /// The tables and views that the query reads, each once.
    pub fn feeders(&self) -> Result<Vec<String>> {
        refuse_by_name(&self.query)?;
        let names: BTreeSet<String> = Planner::tables(&self.query)?.into_iter().collect();
        Ok(names.into_iter().collect())
    }

    /// What meta is asked to create, over `feeders` as they are now: checked, with the plan that all nodes will make of it.
    pub fn resolve(
        &self,
        feeders: &BTreeMap<String, Arc<TableDef>>,
        evaluator: &Evaluator,
    ) -> Result<catalog::CreateTable> {
        let view = &self.name;
        if view.is_empty() || columns::is_hidden(view) {
            let message =
                format!("view name {view:?} is reserved: names that start with two underscores are the engine's");
            return Err(Error::invalid(Invalid::Schema, message));
        }
        let Given { regions, replicas, chunk_rows, rate_limit } = self.options()?;
        // The text is what is kept, so the text is what counts.
        let text = self.query.to_string();
        let query = read(&text)?;
        let schemas = feeders.iter().map(|(name, feeder)| (name.as_str(), &feeder.schema)).collect();
        let (plan, scans) = take_apart(&query, &schemas)?;
        let legs: Vec<LegDef> =
            scans.iter().zip(&plan.legs).map(|(name, leg)| leg_of(&feeders[name], name, leg)).collect();
        let layout = layout(&plan, &legs);
        let partition = self.partition(&plan, &layout, regions, evaluator)?;
        Ok(catalog::CreateTable {
            name: view.clone(),
            schema: layout.schema,
            partition,
            replicas,
            if_not_exists: self.if_not_exists,
            view: Some(Box::new(ViewDef { query: text, legs, chunk_rows, rate_limit })),
        })
    }

    fn options(&self) -> Result<Given> {
        let mut given = Given::default();
        for (name, value) in &self.options {
            let Some((_, legal)) = OPTIONS.iter().find(|(known, _)| known == name) else {
                let known = OPTIONS.map(|(name, _)| name);
                let message = if TableOptions::NAMES.contains(&name.as_str()) {
                    format!("view option {name:?} is one of tables only; a view has: {}", known.join(", "))
                } else {
                    format!("view option {name:?} is unknown{}", suggest(name, known))
                };
                return Err(Error::invalid(Invalid::UnknownOption, message));
            };
            let is_set = match name.as_str() {
                "regions" => set(&mut given.regions, value),
                "replicas" => set(&mut given.replicas, value),
                "fill_chunk_rows" => set(&mut given.chunk_rows, value),
                _ => set(&mut given.rate_limit, value),
            };
            if !is_set {
                return Err(Error::invalid(Invalid::Option, format!("view option {name} = {value}: {legal}")));
            }
        }
        Ok(given)
    }

    fn partition(
        &self,
        plan: &ViewPlan,
        layout: &Layout,
        regions: Option<u32>,
        evaluator: &Evaluator,
    ) -> Result<PartitionRule> {
        let view = &self.name;
        let has_one_row = plan.aggregate.as_ref().is_some_and(|aggregate| aggregate.groups == 0);
        if has_one_row && (self.partition.is_some() || regions.is_some_and(|regions| regions > 1)) {
            let message = format!(
                "view {view} has one row, for its query has aggregates and no GROUP BY, so it has one region; leave {} out",
                if self.partition.is_some() { "PARTITION ON COLUMNS" } else { "regions" }
            );
            return Err(Error::invalid(Invalid::PartitionRule, message));
        }
        let Some(Partition { columns: named, expressions }) = &self.partition else {
            return Ok(PartitionRule::Hash { columns: layout.places.clone(), regions: regions.unwrap_or(1) });
        };
        if let Some(regions) = regions {
            let message = format!(
                "view option regions = {regions}: PARTITION ON COLUMNS says already that there are {}; leave one out",
                expressions.len()
            );
            return Err(Error::invalid(Invalid::Option, message));
        }
        let key: Vec<&str> =
            layout.places.iter().map(String::as_str).filter(|name| !columns::is_hidden(name)).collect();
        let there_are = match key.as_slice() {
            [] => "the row key has no column that the query selects by itself, so leave PARTITION out".to_string(),
            key => format!("it can be partitioned on {}", key.join(", ")),
        };
        for name in named {
            if !plan.columns.iter().any(|(column, _)| column == name) {
                let known = suggest(name, plan.columns.iter().map(|(column, _)| column.as_str()));
                let message = format!("partition column {name:?} is no column of view {view}{known}");
                return Err(Error::invalid(Invalid::UnknownColumn, message));
            }
            if !key.contains(&name.as_str()) {
                let message = format!("partition column {name:?} is not in the row key of view {view}; {there_are}");
                return Err(Error::invalid(Invalid::PartitionRule, message));
            }
        }
        partition::resolve(named, expressions, &layout.schema, evaluator)
    }
}

fn set<T: std::str::FromStr + PartialOrd + From<u8>>(option: &mut Option<T>, value: &str) -> bool {
    *option = value.parse().ok().filter(|number: &T| *number >= T::from(1));
    option.is_some()
}

fn leg_of(feeder: &TableDef, name: &str, leg: &LegPlan) -> LegDef {
    let schema = &feeder.schema;
    let key = schema.key().into_iter().map(|at| schema.columns()[at].id);
    let named = leg.filter.iter().chain(&leg.outputs).flat_map(Expr::column_refs);
    let used = named.filter_map(|column| schema.column(&column.name)).map(|(_, column)| column.id);
    let uses = used.chain(key).collect();
    LegDef { feeder: feeder.id, name: name.to_string(), schema: schema.clone(), uses }
}

/// How the rows are stored, see [`columns`].
fn layout(plan: &ViewPlan, legs: &[LegDef]) -> Layout {
    let mut all = plan.columns.clone();
    let (places, rest) = match &plan.aggregate {
        None => {
            let places = feeder_key(plan, legs).unwrap_or_else(|| {
                all.push((columns::KEY.to_string(), ColumnType::Binary));
                vec![columns::KEY.to_string()]
            });
            (places, Vec::new())
        }
        Some(aggregate) => {
            let places: Vec<String> = (0..aggregate.groups)
                .map(|group| {
                    let field = aggregate.input.field(group);
                    let selected = aggregate.outputs.iter().position(|output| is_column(output, field.name()));
                    if let Some(at) = selected {
                        return plan.columns[at].0.clone();
                    }
                    let name = format!("{}{group}", columns::GROUP);
                    let column_type = ColumnType::from_arrow(field.data_type()).expect("groups are of columns' types");
                    all.push((name.clone(), column_type));
                    name
                })
                .collect();
            all.push((columns::PART.to_string(), ColumnType::UInt8));
            all.push((columns::VALUE.to_string(), ColumnType::Binary));
            all.push((columns::STATE.to_string(), ColumnType::Binary));
            (places, vec![columns::PART.to_string(), columns::VALUE.to_string()])
        }
    };
    let column = |(at, (name, column_type)): (usize, (String, ColumnType))| Column {
        id: ColumnId(at as u32 + 1),
        name,
        column_type,
        nullable: true,
        default: None,
    };
    let key: Vec<String> = places.iter().cloned().chain(rest).collect();
    let schema = Schema::of_view(all.into_iter().enumerate().map(column).collect(), &key);
    // All there is of the one row of a view without GROUP BY.
    let places = if places.is_empty() { vec![columns::PART.to_string()] } else { places };
    Layout { schema, places }
}

/// The feeder's row key by the names that it has in the view, if it is there: there is one row for each of the feeder's, and
/// all columns of the key are selected by themselves.
fn feeder_key(plan: &ViewPlan, legs: &[LegDef]) -> Option<Vec<String>> {
    let ([leg], [def]) = (plan.legs.as_slice(), legs) else { return None };
    if def.schema.options().merge_mode == MergeMode::Append {
        return None;
    }
    let within_group = [columns::PART, columns::VALUE];
    let key: Vec<String> = def
        .schema
        .key()
        .into_iter()
        .map(|at| def.schema.columns()[at].name.as_str())
        .filter(|name| !within_group.contains(name))
        .map(|name| {
            let at = leg.outputs.iter().position(|output| is_column(output, name))?;
            Some(plan.columns[at].0.clone())
        })
        .collect::<Option<_>>()?;
    (!key.is_empty()).then_some(key)
}

fn is_column(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Column(column) if column.name == name)
}
