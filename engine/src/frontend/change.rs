//! UPDATE and DELETE: read, decide, write on condition, and decide anew what somebody else changed meanwhile.
//!
//! The rows are read by a query over the table under the name [`TARGET`]: the WHERE of the statement, the columns that the
//! new images need, the new values, and the sequence of each row. A row that the region refuses because its sequence is
//! another one by now is read again by its key: if the WHERE still holds of it, it is written from what it is now,
//! otherwise it is none of the statement's any more. So of two `n = n + 1` none is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt64Array, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::UInt64Type;
use datafusion::sql::sqlparser::ast::{self, SelectItem, SetExpr};

use super::deadline::Deadline;
use super::insert::check_nulls;
use super::scan::{RegionTable, SEQUENCE};
use super::session::Session;
use super::view::refuse_view;
use super::write::{Images, Written};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::sql::{self, Change, Statement, TARGET, Tables, for_column, invalid, is_default, suggest, to_column};
use crate::types::{Key, MergeMode, Op};

/// A change with everything looked up.
pub(super) struct Resolved {
    pub table: Arc<TableDef>,
    /// Reads the rows, see [`Resolved::columns`].
    pub query: ast::Query,
    /// Where each column of the new images comes from; none: the rows are deleted.
    set: Option<Vec<New>>,
    /// Of a table where a NULL that is written changes nothing: where the query has what each column was, of those that are
    /// SET.
    before: Vec<Option<usize>>,
}

/// The new value of a column.
#[derive(Clone, Copy)]
enum New {
    /// What it was: column of the query.
    Old(usize),
    /// What SET says: column of the query.
    Set(usize),
    /// Its default.
    Default,
}

impl Session {
    /// Runs an UPDATE or DELETE; says how many rows were written.
    pub(super) async fn change(&self, change: &Change, deadline: Deadline) -> Result<u64> {
        let mut resolved = self.frontend().resolve(change, deadline).await?;
        let mut written = Written::default();
        let Some(images) = self.images(&resolved, None, deadline).await? else {
            return Ok(0);
        };
        let open = self.begin(deadline).await?;
        self.frontend().write(&open, &resolved.table, images, &mut written, deadline).await?;
        let mut pauses = self.frontend().options().pauses();
        let mut rounds = 0;
        while !written.conflicts.is_empty() {
            if deadline.is_over() {
                let waiting_for =
                    format!("{} rows of table {} that others change", written.conflicts.len(), change.table);
                return Err(written.failed(Error::Deadline { waiting_for }, false));
            }
            // The first time at once: most likely whoever was faster is done.
            if rounds > 0 {
                deadline.pause_at_most(&mut pauses).await;
            }
            rounds += 1;
            let images = match self.images(&resolved, Some(written.conflicts.clone()), deadline).await {
                Ok(Some(images)) => images,
                Ok(None) => break,
                Err(Error::SchemaChanged { .. }) => {
                    self.frontend().routes().forget(&change.table);
                    let again = self.frontend().resolve(change, deadline).await;
                    let again = again.and_then(|again| match again.table.id == resolved.table.id {
                        true => Ok(again),
                        false => Err(super::write::another_table(&change.table)),
                    });
                    resolved = again.map_err(|err| written.failed(err, false))?;
                    continue;
                }
                Err(err) => return Err(written.failed(err, false)),
            };
            written.conflicts.clear();
            if let Err(err) = self.frontend().write(&open, &resolved.table, images, &mut written, deadline).await {
                return Err(written.failed(err, false));
            }
        }
        Ok(written.rows)
    }

    /// What to write, computed from the rows as they are now; of all rows, or of those with these keys. None: nothing.
    async fn images(
        &self,
        resolved: &Resolved,
        keys: Option<BTreeSet<Key>>,
        deadline: Deadline,
    ) -> Result<Option<Images>> {
        let table = &resolved.table;
        let target = RegionTable::target(self.frontend().clone(), table.clone(), keys, deadline);
        let mut tables = Tables::new();
        tables.insert(TARGET.to_string(), Arc::new(target));
        let (schema, batches) = self.frontend().query_over(&resolved.query, tables, Duration::ZERO, deadline).await?;
        let batch = concat_batches(&schema, &batches).map_err(|err| invalid(err.into()))?;
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        self.compute(resolved, &batch).map(Some)
    }

    fn compute(&self, resolved: &Resolved, batch: &RecordBatch) -> Result<Images> {
        let table = &resolved.table;
        let columns = table.schema.columns();
        let rows = batch.num_rows();
        let expected: UInt64Array = batch.column(0).as_primitive::<UInt64Type>().clone();
        let key = table.schema.key();
        let images: Vec<ArrayRef> = match &resolved.set {
            None => columns
                .iter()
                .enumerate()
                .map(|(at, column)| match key.iter().position(|key| *key == at) {
                    Some(position) => batch.column(1 + position).clone(),
                    None => new_null_array(&column.column_type.to_arrow(), rows),
                })
                .collect(),
            Some(set) => {
                let evaluator = self.evaluator();
                let images = columns
                    .iter()
                    .zip(set)
                    .map(|(column, new)| match new {
                        New::Old(at) => Ok(batch.column(*at).clone()),
                        New::Set(at) => to_column(batch.column(*at), column, &table.name),
                        New::Default => evaluator.default(column, &table.name, rows),
                    })
                    .collect::<Result<Vec<_>>>()?;
                check_nulls(table, &images)?;
                check_set_nulls(resolved, batch, &images)?;
                images
            }
        };
        let rows = RecordBatch::try_new(table.schema.to_arrow(), images).map_err(|err| invalid(err.into()))?;
        let op = if resolved.set.is_some() { Op::Put } else { Op::Delete };
        Ok(Images { rows, op, expected: Some(expected), file: None })
    }
}

/// Where the newest value that is not NULL counts, no value can be taken away by writing NULL.
fn check_set_nulls(resolved: &Resolved, was: &RecordBatch, images: &[ArrayRef]) -> Result<()> {
    let table = &resolved.table;
    for ((column, before), image) in table.schema.columns().iter().zip(&resolved.before).zip(images) {
        let Some(was) = before.map(|at| was.column(at)) else { continue };
        if (0..image.len()).any(|row| image.is_null(row) && was.is_valid(row)) {
            let message = format!(
                "UPDATE of column {:?} of table {} to NULL, which has merge_mode = last_non_null: NULL is what is not given \
                 there; DELETE the row and INSERT it again",
                column.name, table.name
            );
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
    }
    Ok(())
}

impl super::Frontend {
    /// Looks up what `change` names, and makes the query that reads its rows: first the sequence, then the columns of the
    /// new images (of a DELETE: of the key), then the values of SET.
    pub(super) async fn resolve(&self, change: &Change, deadline: Deadline) -> Result<Resolved> {
        let table = self.routes().table(&change.table, deadline).await?;
        refuse_view(&table, "UPDATE or DELETE of")?;
        if table.schema.options().merge_mode == MergeMode::Append {
            let message = format!(
                "UPDATE or DELETE of table {}, which has merge_mode = append: its rows stay as they are; TRUNCATE takes all of \
                 them, a ttl the old ones",
                table.name
            );
            return Err(Error::invalid(Invalid::Unsupported, message));
        }
        let mut projection = vec![SEQUENCE.to_string()];
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let mut values = Vec::new();
        let mut before = Vec::new();
        let set = match &change.set {
            None => {
                projection.extend(table.schema.key().iter().map(|at| table.schema.columns()[*at].name.clone()));
                None
            }
            Some(assignments) => {
                let mut set: Vec<New> = Vec::with_capacity(table.schema.columns().len());
                let keeps = table.schema.options().merge_mode == MergeMode::LastNonNull;
                for (name, _) in assignments {
                    let Some((at, _)) = table.schema.column(name) else {
                        let known = suggest(name, table.schema.columns().iter().map(|column| column.name.as_str()));
                        let message = format!("table {} has no column {name:?}{known}", table.name);
                        return Err(Error::invalid(Invalid::UnknownColumn, message));
                    };
                    if table.schema.is_key(at) {
                        let message = format!(
                            "column {name:?} is in the row key of table {}, which never changes; DELETE the row and INSERT \
                             another",
                            table.name
                        );
                        return Err(Error::invalid(Invalid::KeyChange, message));
                    }
                }
                for column in table.schema.columns() {
                    let assigned = assignments.iter().find(|(name, _)| *name == column.name);
                    before.push((keeps && assigned.is_some()).then(|| {
                        projection.push(column.name.clone());
                        projection.len() - 1
                    }));
                    set.push(match assigned {
                        None => {
                            projection.push(column.name.clone());
                            New::Old(projection.len() - 1)
                        }
                        Some((_, expr)) if is_default(expr) => New::Default,
                        Some((_, expr)) => {
                            values.push(for_column(expr.clone(), column.column_type));
                            New::Set(values.len() - 1)
                        }
                    });
                }
                // The values stand behind the columns.
                for new in &mut set {
                    if let New::Set(at) = new {
                        *at += projection.len();
                    }
                }
                Some(set)
            }
        };
        let alias = quoted(&change.alias);
        let template = format!("SELECT 1 FROM {TARGET} AS {alias}");
        let Statement::Query(mut query) = sql::parse(&template)? else {
            return Err(Error::invalid(Invalid::Mismatch, "the template of a change is a query"));
        };
        let SetExpr::Select(select) = query.body.as_mut() else {
            return Err(Error::invalid(Invalid::Mismatch, "the template of a change is a SELECT"));
        };
        let column = |name: &String| {
            let idents = [&change.alias, name].map(|name| ast::Ident::with_quote('"', name.as_str()));
            SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(idents.into()))
        };
        let value = |(at, expr): (usize, ast::Expr)| SelectItem::ExprWithAlias {
            expr,
            alias: ast::Ident::with_quote('"', format!("__new_{at}")),
        };
        select.projection = projection.iter().map(column).chain(values.into_iter().enumerate().map(value)).collect();
        select.selection = change.selection.clone();
        Ok(Resolved { table, query: *query, set, before })
    }
}
