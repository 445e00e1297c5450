//! `SHOW TABLES` and the tables of schema `sys`: the catalog and the states of the replicas, as they are when asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use datafusion::datasource::{MemTable, TableProvider};
use futures::future::join_all;

use super::deadline::Deadline;
use super::{Frontend, Output};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::meta::request::ProcedureStatus;
use crate::metrics::Sample;
use crate::region::request::{PinStatus, ReplicaStatus, SstStatus};
use crate::sql::partition::show_rule;
use crate::sql::{invalid, suggest};
use crate::types::{IndexId, NodeId, RegionId, ReplicaId};

const TABLES: [&str; 11] = [
    "tables",
    "views",
    "indexes",
    "regions",
    "ssts",
    "pins",
    "jobs",
    "fills",
    "fill_regions",
    "fill_positions",
    "metrics",
];

impl Frontend {
    pub(super) async fn show_tables(&self, deadline: Deadline) -> Result<Output> {
        let tables = self.routes().tables(deadline).await?;
        let names = StringArray::from_iter_values(tables.iter().map(|table| &table.name));
        let (schema, batch) = batch(vec![("table_name", false, Arc::new(names))])?;
        Ok(Output::Rows { schema, batches: vec![batch] })
    }

    /// The table `sys.name`.
    pub(super) async fn system_table(&self, name: &str, deadline: Deadline) -> Result<Arc<dyn TableProvider>> {
        let (schema, batch) = match name {
            "tables" => tables(&self.routes().tables(deadline).await?)?,
            "regions" => self.regions(deadline).await?,
            "ssts" => self.ssts(deadline).await?,
            "pins" => self.pins(deadline).await?,
            "metrics" => self.metrics(deadline).await?,
            "views" => self.views(deadline).await?,
            "indexes" => self.indexes(deadline).await?,
            "fills" => self.jobs(deadline).await?,
            "fill_regions" => self.fill_regions(deadline).await?,
            "fill_positions" => self.fill_positions(deadline).await?,
            "jobs" => jobs(&self.routes().procedures(deadline).await?)?,
            _ => {
                let message = format!("there is no table sys.{name}{}", suggest(name, TABLES));
                return Err(Error::invalid(Invalid::UnknownTable, message));
            }
        };
        Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]]).map_err(invalid)?))
    }

    /// One row for each replica of the catalog and each that a node says it has; without a state where its node did not
    /// answer.
    async fn regions(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let tables = self.routes().tables(deadline).await?;
        let mut nodes: BTreeSet<NodeId> = self.routes().meta_nodes().iter().copied().collect();
        let mut replicas: BTreeMap<(RegionId, ReplicaId), Replica> = BTreeMap::new();
        for table in &tables {
            for region in &table.regions {
                for (replica, node) in &region.replicas {
                    nodes.insert(*node);
                    let known = Replica { table: Some(table.name.clone()), node: *node, state: None };
                    replicas.insert((region.id, *replica), known);
                }
            }
        }
        let states = nodes.iter().map(|node| self.routes().status(*node, deadline));
        for state in join_all(states).await.into_iter().filter_map(Result::ok).flatten() {
            let replica = replicas.entry((state.region, state.replica)).or_insert(Replica {
                table: None,
                node: state.node,
                state: None,
            });
            replica.state = Some(state);
        }
        let known = |value: fn(&ReplicaStatus) -> Option<u64>| -> ArrayRef {
            let values = replicas.values().map(|replica| replica.state.as_ref().and_then(value));
            Arc::new(values.collect::<UInt64Array>())
        };
        let column = |value: fn(&ReplicaStatus) -> u64| -> ArrayRef {
            let values = replicas.values().map(|replica| replica.state.as_ref().map(value));
            Arc::new(values.collect::<UInt64Array>())
        };
        let leads = replicas.values().map(|replica| replica.state.as_ref().map(|state| state.is_leader));
        batch(vec![
            ("region", false, texts(replicas.keys().map(|(region, _)| Some(region.to_string())))),
            ("table_name", true, texts(replicas.values().map(|replica| replica.table.clone()))),
            ("replica", false, Arc::new(UInt64Array::from_iter_values(replicas.keys().map(|(_, replica)| replica.0)))),
            ("node", false, Arc::new(UInt64Array::from_iter_values(replicas.values().map(|replica| replica.node.0)))),
            ("is_leader", true, Arc::new(leads.collect::<BooleanArray>())),
            ("term", true, column(|state| state.term)),
            ("applied", true, known(|state| state.applied.map(|id| id.index))),
            ("flushed", true, known(|state| state.flushed.map(|id| id.index))),
            ("sequence", true, column(|state| state.sequence.0)),
            ("oldest", true, column(|state| state.oldest.0)),
            ("memtable_rows", true, column(|state| state.memtable_rows)),
            ("memtable_bytes", true, column(|state| state.memtable_bytes)),
            ("ssts", true, column(|state| state.ssts)),
            ("sst_bytes", true, column(|state| state.sst_bytes)),
            ("schema_version", true, column(|state| state.schema_version)),
        ])
    }

    /// One row for each value of each node: of those of meta and of the catalog. `seedbed_up` says whether it answers.
    async fn metrics(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let tables = self.routes().tables(deadline).await?;
        let mut nodes: BTreeSet<NodeId> = self.routes().meta_nodes().iter().copied().collect();
        nodes.extend(tables.iter().flat_map(|table| &table.regions).flat_map(|region| region.replicas.values()));
        let answers = join_all(nodes.iter().map(|node| self.routes().metrics(*node, deadline))).await;
        let mut samples: Vec<(NodeId, Sample)> = Vec::new();
        for (node, answer) in nodes.into_iter().zip(answers) {
            samples.push((node, Sample::gauge("seedbed_up", None, u64::from(answer.is_ok()))));
            samples.extend(answer.unwrap_or_default().into_iter().map(|sample| (node, sample)));
        }
        // Stable: the buckets of a histogram stay in their order.
        samples.sort_by(|(node, one), (other_node, other)| {
            (node, &one.name, one.region).cmp(&(other_node, &other.name, other.region))
        });
        let values = samples.iter().map(|(_, sample)| sample.value);
        batch(vec![
            ("node", false, Arc::new(UInt64Array::from_iter_values(samples.iter().map(|(node, _)| node.0)))),
            ("name", false, texts(samples.iter().map(|(_, sample)| Some(sample.name.clone())))),
            ("kind", false, texts(samples.iter().map(|(_, sample)| Some(sample.kind.name().to_string())))),
            ("region", true, texts(samples.iter().map(|(_, sample)| Some(sample.region?.to_string())))),
            ("le", true, texts(samples.iter().map(|(_, sample)| sample.le.clone()))),
            ("value", false, Arc::new(Float64Array::from_iter_values(values))),
        ])
    }

    /// One row for each file of each replica; without a file for a replica whose node did not answer.
    async fn ssts(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let tables = self.routes().tables(deadline).await?;
        let mut nodes: BTreeMap<NodeId, BTreeSet<(RegionId, ReplicaId)>> = BTreeMap::new();
        for region in tables.iter().flat_map(|table| &table.regions) {
            for (replica, node) in &region.replicas {
                nodes.entry(*node).or_default().insert((region.id, *replica));
            }
        }
        let asked = nodes.keys().map(|node| self.routes().files(*node, deadline));
        let answers = join_all(asked).await;
        let mut files: Vec<(RegionId, ReplicaId, NodeId, Option<SstStatus>)> = Vec::new();
        for ((node, replicas), answer) in nodes.iter().zip(answers) {
            match answer {
                Ok(answer) => {
                    files.extend(answer.into_iter().map(|file| (file.region, file.replica, file.node, Some(file))));
                }
                Err(_) => files.extend(replicas.iter().map(|(region, replica)| (*region, *replica, *node, None))),
            }
        }
        files.sort_by(|(region, replica, _, file), (other_region, other, _, other_file)| {
            let name = |file: &Option<SstStatus>| file.as_ref().map(|file| (file.file.len(), file.file.clone()));
            (region, replica, name(file)).cmp(&(other_region, other, name(other_file)))
        });
        let name = |region: RegionId| {
            let table = tables.iter().find(|table| table.id == region.table());
            table.map(|table| table.name.clone())
        };
        let index = |region: RegionId, index: IndexId| {
            let table = tables.iter().find(|table| table.id == region.table())?;
            let def = table.schema.indexes().iter().find(|def| def.id == index);
            Some(def.map_or_else(|| index.to_string(), |def| def.name.clone()))
        };
        let column = |value: fn(&SstStatus) -> u64| -> ArrayRef {
            Arc::new(files.iter().map(|(.., file)| file.as_ref().map(value)).collect::<UInt64Array>())
        };
        let time = |value: fn((i64, i64)) -> i64| -> ArrayRef {
            Arc::new(files.iter().map(|(.., file)| file.as_ref()?.times.map(value)).collect::<Int64Array>())
        };
        batch(vec![
            ("region", false, texts(files.iter().map(|(region, ..)| Some(region.to_string())))),
            ("table_name", true, texts(files.iter().map(|(region, ..)| name(*region)))),
            ("replica", false, Arc::new(UInt64Array::from_iter_values(files.iter().map(|(_, replica, ..)| replica.0)))),
            ("node", false, Arc::new(UInt64Array::from_iter_values(files.iter().map(|(_, _, node, _)| node.0)))),
            ("file", true, texts(files.iter().map(|(.., file)| Some(file.as_ref()?.file.clone())))),
            ("index_name", true, texts(files.iter().map(|(region, .., file)| index(*region, file.as_ref()?.index?)))),
            ("level", true, column(|file| u64::from(file.level))),
            ("rows", true, column(|file| file.rows)),
            ("bytes", true, column(|file| file.bytes)),
            ("first_sequence", true, column(|file| file.first_sequence.0)),
            ("last_sequence", true, column(|file| file.last_sequence.0)),
            ("first_time", true, time(|(first, _)| first)),
            ("last_time", true, time(|(_, last)| last)),
            ("schema_version", true, column(|file| file.schema_version)),
        ])
    }
}

impl Frontend {
    /// One row for each pin of each region, as its leader says.
    async fn pins(&self, deadline: Deadline) -> Result<(SchemaRef, RecordBatch)> {
        let tables = self.routes().tables(deadline).await?;
        let regions = tables.iter().flat_map(|table| table.regions.iter().map(move |region| (&table.name, region)));
        let asked = regions.map(|(table, region)| async move { (table, self.routes().pins(region, deadline).await) });
        let mut pins: Vec<(&String, PinStatus)> = Vec::new();
        for (table, answer) in join_all(asked).await {
            pins.extend(answer?.into_iter().map(|pin| (table, pin)));
        }
        let column = |value: fn(&PinStatus) -> u64| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(pins.iter().map(|(_, pin)| value(pin))))
        };
        let at = TimestampMillisecondArray::from_iter_values(pins.iter().map(|(_, pin)| pin.at.0));
        batch(vec![
            ("table_name", false, texts(pins.iter().map(|(table, _)| Some((*table).clone())))),
            ("region", false, texts(pins.iter().map(|(_, pin)| Some(pin.region.to_string())))),
            ("pin", false, texts(pins.iter().map(|(_, pin)| Some(pin.name.clone())))),
            ("sequence", false, column(|pin| pin.sequence.0)),
            ("newer", false, column(|pin| pin.newer)),
            ("pinned_at", false, Arc::new(at)),
        ])
    }
}

fn jobs(procedures: &[ProcedureStatus]) -> Result<(SchemaRef, RecordBatch)> {
    let text = |value: fn(&ProcedureStatus) -> &String| texts(procedures.iter().map(|one| Some(value(one).clone())));
    batch(vec![
        ("job", false, Arc::new(UInt64Array::from_iter_values(procedures.iter().map(|one| one.id.0)))),
        ("kind", false, text(|one| &one.kind)),
        ("table_name", false, text(|one| &one.table)),
        ("step", false, text(|one| &one.step)),
        ("open", false, Arc::new(UInt64Array::from_iter_values(procedures.iter().map(|one| one.open)))),
        ("error", true, texts(procedures.iter().map(|one| one.error.clone()))),
        ("waits_for", true, texts(procedures.iter().map(|one| one.waits_for.clone()))),
    ])
}

/// A replica, by what the catalog and its node say.
struct Replica {
    table: Option<String>,
    node: NodeId,
    state: Option<ReplicaStatus>,
}

fn tables(tables: &[TableDef]) -> Result<(SchemaRef, RecordBatch)> {
    let name = |table: &TableDef, at: usize| table.schema.columns()[at].name.clone();
    let primary_key = |table: &TableDef| {
        let names: Vec<String> = table.schema.primary_key().iter().map(|at| name(table, *at)).collect();
        names.join(", ")
    };
    let columns = |table: &TableDef| {
        let shown = table.schema.columns().iter().map(|column| format!("{} {}", column.name, column.column_type));
        shown.collect::<Vec<_>>().join(", ")
    };
    batch(vec![
        ("table_id", false, Arc::new(UInt32Array::from_iter_values(tables.iter().map(|table| table.id.0)))),
        ("table_name", false, texts(tables.iter().map(|table| Some(table.name.clone())))),
        ("columns", false, texts(tables.iter().map(|table| Some(columns(table))))),
        ("primary_key", false, texts(tables.iter().map(|table| Some(primary_key(table))))),
        ("time_index", true, texts(tables.iter().map(|table| Some(name(table, table.schema.time_index()?))))),
        ("partition", false, texts(tables.iter().map(|table| Some(show_rule(&table.partition, &table.schema))))),
        ("regions", false, {
            Arc::new(UInt64Array::from_iter_values(tables.iter().map(|table| table.regions.len() as u64)))
        }),
        ("options", false, texts(tables.iter().map(|table| Some(table.schema.options().to_string())))),
        ("schema_version", false, {
            Arc::new(UInt64Array::from_iter_values(tables.iter().map(|table| table.schema.version)))
        }),
    ])
}

pub(super) fn texts(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

/// A batch of columns with name, whether NULL occurs, and cells.
pub(super) fn batch(columns: Vec<(&str, bool, ArrayRef)>) -> Result<(SchemaRef, RecordBatch)> {
    let field = |(name, nullable, cells): &(&str, bool, ArrayRef)| -> Field {
        let data_type: DataType = cells.data_type().clone();
        Field::new(*name, data_type, *nullable)
    };
    let schema = Arc::new(ArrowSchema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let cells = columns.into_iter().map(|(_, _, cells)| cells).collect();
    let batch = RecordBatch::try_new(schema.clone(), cells).map_err(|err| invalid(err.into()))?;
    Ok((schema, batch))
}
