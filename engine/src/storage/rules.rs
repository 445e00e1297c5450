//! What the versions of a row come to, as of one entry of the log.

use std::sync::Arc;

use super::range::RangeTombstones;
use crate::types::{IndexDef, Key, MergeMode, Position, Schema, Sequence};

/// See the module. Replicated: a function of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Columns, row key and options.
    pub schema: Arc<Schema>,
    /// What is hidden.
    pub ranges: RangeTombstones,
    /// Of a table that appends: newer versions are rows of their own. Older ones were written while it did not, and of each
    /// row the newest of them counts.
    pub appends_after: Sequence,
}

impl Rules {
    /// Those of a new table.
    pub fn of(schema: Arc<Schema>) -> Rules {
        Rules { schema, ranges: RangeTombstones::default(), appends_after: Sequence(0) }
    }

    /// Those of an index of the table.
    pub fn of_index(&self, index: &IndexDef) -> Rules {
        let schema = Arc::new(self.schema.of_index(index));
        Rules { schema, ranges: self.ranges.clone(), appends_after: Sequence(0) }
    }

    /// What the versions of one row come to.
    pub fn mode(&self) -> MergeMode {
        self.schema.options().merge_mode
    }

    /// Whether the version `sequence` is a row of its own.
    pub fn appends(&self, sequence: Sequence) -> bool {
        self.mode() == MergeMode::Append && sequence > self.appends_after
    }

    /// Where a reader goes on that has had the version `sequence` of `key`.
    pub(crate) fn position(&self, key: &Key, sequence: Sequence) -> Position {
        let sequence = if self.appends(sequence) { sequence } else { Sequence(0) };
        Position { key: key.clone(), sequence }
    }
}
