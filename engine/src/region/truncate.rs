//! All rows of a region go at once.
//!
//! The entry takes a sequence of its own. From then on reads see what is written later and nothing else. While something
//! is pinned, what is older stays, hidden, for reads at pinned sequences ([`RangeTombstones`]); compactions drop it when the
//! pins are gone. Otherwise reads at earlier sequences are refused, for what they would see is not kept. In memory the version begins anew, of another generation: a
//! flush or compaction that was begun before adds nothing to it. On disk the files stay, and in the manifest, which is *as of*
//! an entry before the truncation, until the next flush takes them out, in the edit that makes the truncation durable.
//! Crash before that edit: the log is replayed and truncates again.

use std::sync::Arc;

use bytes::Bytes;

use super::command::encode_outcome;
use super::request::WriteAnswer;
use super::side::Ingested;
use super::{Region, State};
use crate::event::Event;
#[cfg(doc)]
use crate::storage::range::RangeTombstones;
use crate::storage::version::Version;
use crate::types::{LogId, ProcedureId, Sequence};

impl Region {
    /// Applies the entry `id`.
    pub(super) fn apply_truncate(&self, id: LogId, command: Bytes, by: ProcedureId) -> Bytes {
        let mut is_done = false;
        let outcome = self.finish(id, command, |state| {
            is_done = state.truncate(by);
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        if is_done {
            let (region, replica) = (self.id, self.spec.replica);
            self.spec.events.emit(|| Event::VersionSwapped { region, replica, why: "truncate".into() });
            // The files need not wait for the interval, nor the log.
            self.full.notify_one();
        }
        outcome
    }
}

impl State {
    /// False: that procedure, or a later one, was here before.
    fn truncate(&mut self, by: ProcedureId) -> bool {
        if self.side.procedure >= Some(by) {
            return false;
        }
        self.side.procedure = Some(by);
        let sequence = Sequence(self.side.sequence.0 + 1);
        self.side.sequence = sequence;
        // Whoever empties a table may fill it from the same files.
        self.side.ingested = Ingested::default();
        let pinned = self.side.pinned();
        self.side.ranges.truncate(sequence, pinned);
        let old = self.version.clone();
        let rules = self.side.rules(old.schema());
        self.version = Arc::new(match pinned {
            Some(_) => old.with_rules(rules),
            None => {
                self.truncated.extend(old.files().cloned());
                Version::new(old.flushed.clone(), [], sequence, old.generation + 1).with_rules(rules)
            }
        });
        true
    }
}
