//! The columns or options of a region's table change.
//!
//! The memtable is frozen under the schema that its rows were written by; rows to come are of the new one. Nothing is
//! rewritten: whoever reads older rows gets them in the new shape ([`Shape`](crate::storage)). A flush that was begun before
//! writes the schema of before, as of its entry; the next one makes the change durable together with everything else as of
//! its own. Crash before that: the log is replayed and alters again.
//!
//! An index that is new begins empty in the same step, and every write behind this entry goes into it (`region::index`).
//!
//! A write that was made for another version of the schema is refused when it is applied, on every replica alike, and sent
//! anew by its frontend.

use std::sync::Arc;

use bytes::Bytes;

use super::command::encode_outcome;
use super::request::WriteAnswer;
use super::{Region, State};
use crate::event::Event;
use crate::meta::catalog::TableDef;
use crate::types::{LogId, MergeMode, ProcedureId, Schema};

impl Region {
    /// Applies the entry `id`.
    pub(super) fn apply_alter(&self, id: LogId, command: Bytes, by: ProcedureId, schema: Schema) -> Bytes {
        let mut is_done = false;
        let outcome = self.finish(id, command, |state| {
            is_done = state.alter(by, schema);
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        if is_done {
            // A memtable was frozen.
            self.full.notify_one();
            // There may be an index to backfill.
            self.legs_changed();
            let (region, replica) = (self.id, self.spec.replica);
            self.spec.events.emit(|| Event::VersionSwapped { region, replica, why: "alter".into() });
        }
        outcome
    }
}

impl State {
    /// False: that procedure, or a later one, was here before.
    fn alter(&mut self, by: ProcedureId, schema: Schema) -> bool {
        if self.side.procedure >= Some(by) {
            return false;
        }
        self.side.procedure = Some(by);
        let mode = |schema: &Schema| schema.options().merge_mode;
        if mode(&schema) == MergeMode::Append && mode(self.version.schema()) != MergeMode::Append {
            self.side.appends_after = self.side.sequence;
        }
        let rules = self.side.rules(&Arc::new(schema.clone()));
        let before = self.version.clone();
        self.version = Arc::new(before.with_rules(rules));
        self.exchange_indexes(&before);
        self.table = Arc::new(TableDef { schema, ..TableDef::clone(&self.table) });
        true
    }
}
