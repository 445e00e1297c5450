//! The leader's checks before a write is proposed: what can be refused is refused here, and nothing is written.

use std::cmp::Ordering;

use bytes::Bytes;

use super::Region;
use super::command::Command;
use super::request::WriteRequest;
use super::side::Seen;
use crate::error::{Error, Invalid, Result};
use crate::types::{MergeMode, Op, Schema, decode_batch, encode_keys};

impl Region {
    /// The command to propose for `write`, and how many rows it has.
    pub fn validate(&self, write: WriteRequest) -> Result<(Bytes, u64)> {
        {
            let state = self.state.lock().expect("no panic holds the lock");
            if state.table.view.is_some() {
                let name = &state.table.name;
                let message = format!("{name} is a materialized view: write to what it reads");
                return Err(Error::invalid(Invalid::Unsupported, message));
            }
        }
        let schema = self.version().schema().clone();
        let rows = match write.schema_version.cmp(&schema.version) {
            Ordering::Equal => check_rows(&schema, &write)?,
            // It may be the copy of one that was applied before the table changed: the log tells.
            Ordering::Less => 0,
            Ordering::Greater => {
                let (version, here) = (write.schema_version, schema.version);
                let what = format!("region {} has version {here} of its columns and not yet {version}", self.id);
                return Err(Error::Busy { what });
            }
        };
        if let Some(request) = write.request {
            let (seen, remembered) = {
                let state = self.state.lock().expect("no panic holds the lock");
                let sessions = &state.side.sessions;
                (sessions.look(request), sessions.remembered(request.session, write.acknowledged))
            };
            // One that was applied before adds no answer.
            if seen == Seen::New && remembered >= self.spec.options.session_requests {
                let what = format!("session {} has {remembered} answers that it did not acknowledge", request.session);
                return Err(Error::Busy { what });
            }
        }
        let (sessions, files) = (self.spec.options.session_window, self.spec.options.ingested_files);
        Ok((Command::Write { write, sessions, files }.encode(), rows))
    }
}

/// The rows are whole rows of the table, and NULL only where it may be. Answers how many.
fn check_rows(schema: &Schema, write: &WriteRequest) -> Result<u64> {
    let wrong = |message: String| Error::invalid(Invalid::Request, message);
    let rows = decode_batch(&write.rows, &schema.to_arrow()).map_err(|err| wrong(err.to_string()))?;
    let count = rows.num_rows();
    if count == 0 {
        return Err(wrong("a write without rows".into()));
    }
    if !write.ops.is_empty() && write.ops.len() != count {
        return Err(wrong(format!("{} ops for {count} rows", write.ops.len())));
    }
    if !write.expected.is_empty() && write.expected.len() != count {
        return Err(wrong(format!("{} expected sequences for {count} rows", write.expected.len())));
    }
    if schema.options().merge_mode == MergeMode::Append
        && (!write.expected.is_empty() || write.ops.contains(&(Op::Delete as u8)))
    {
        return Err(wrong("a table that appends replaces and deletes no rows".into()));
    }
    if let Some(byte) = write.ops.iter().find(|byte| Op::from_byte(**byte).is_none()) {
        return Err(wrong(format!("{byte} is no op")));
    }
    for (at, column) in schema.columns().iter().enumerate() {
        let cells = rows.column(at);
        if column.nullable || cells.null_count() == 0 {
            continue;
        }
        // Of a row to delete only the key counts.
        let put = |row: usize| write.ops.get(row).is_none_or(|op| *op == Op::Put as u8);
        if (0..count).any(|row| cells.is_null(row) && (schema.is_key(at) || put(row))) {
            return Err(Error::invalid(Invalid::NotNull, format!("column {:?} is NOT NULL", column.name)));
        }
    }
    if !write.expected.is_empty() {
        let mut keys = encode_keys(&rows, &schema.key());
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(wrong("a conditional write names a row twice".into()));
        }
    }
    Ok(count as u64)
}
