//! Rows whose time is long ago go.
//!
//! The leader of a region proposes a watermark, by the clocks of a quorum ([`server::expiry`](crate::server)); here is what
//! the entry does. It takes a sequence of its own: from then on reads see no row that is older than the entry and of a time
//! before the watermark ([`RangeTombstones`]), on every replica alike, whatever its own clock says. What is written later
//! with such a time is seen until the next entry. Compactions drop what is hidden, and whole files of it at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::command::encode_outcome;
use super::request::WriteAnswer;
use super::{Region, State};
use crate::event::Event;
#[cfg(doc)]
use crate::storage::range::RangeTombstones;
use crate::storage::version::Version;
use crate::types::{LogId, NodeId, Sequence, TimeUnit};

/// What is needed to find the next watermark of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Rows whose time is longer ago expire.
    pub ttl_ms: u64,
    /// Of the TIME INDEX.
    pub unit: TimeUnit,
    /// The watermark, if rows have expired.
    pub watermark: Option<i64>,
    /// The earliest time of a row; of one that has expired, perhaps, and is still to be dropped. None: there are no rows.
    pub earliest: Option<i64>,
    /// The version of the schema that says so.
    pub schema_version: u64,
}

impl Region {
    /// None: rows of this table do not expire.
    pub fn expiry(&self) -> Option<Expiry> {
        let version = self.version();
        let rules = &version.rules;
        let (ttl_ms, unit) = (rules.schema.options().ttl_ms?, rules.schema.time_unit()?);
        let (watermark, schema_version) = (rules.ranges.watermark(), rules.schema.version);
        Some(Expiry { ttl_ms, unit, watermark, earliest: self.earliest(&version), schema_version })
    }

    fn earliest(&self, version: &Version) -> Option<i64> {
        let hidden = version.rules.ranges.upto(self.visible());
        let of_memtables = version.memtables().filter_map(|memtable| memtable.times());
        let files = version.ssts.values().map(|sst| sst.meta()).filter(|file| !hidden.hides_file(file, true));
        of_memtables.chain(files.filter_map(|file| file.times())).map(|(earliest, _)| earliest).min()
    }

    /// The nodes of the voters.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let state = self.state.lock().expect("no panic holds the lock");
        let membership = &state.side.membership;
        let voters = membership.voters.iter().flatten();
        voters.filter_map(|replica| membership.replicas.get(replica).copied()).collect()
    }

    /// Applies the entry `id`.
    pub(super) fn apply_expire(&self, id: LogId, command: Bytes, schema_version: u64, before: i64) -> Bytes {
        let mut is_done = false;
        let outcome = self.finish(id, command, |state| {
            is_done = state.expire(schema_version, before);
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        if is_done {
            let (region, replica) = (self.id, self.spec.replica);
            self.spec.events.emit(|| Event::VersionSwapped { region, replica, why: "expiry".into() });
        }
        outcome
    }
}

impl State {
    /// False: rows of that time have expired already, or the ttl may be another one by now.
    fn expire(&mut self, schema_version: u64, before: i64) -> bool {
        let schema = self.version.schema();
        if schema.version != schema_version || self.side.ranges.watermark() >= Some(before) {
            return false;
        }
        let sequence = Sequence(self.side.sequence.0 + 1);
        self.side.sequence = sequence;
        let pinned = self.side.pinned();
        self.side.ranges.expire(sequence, before, pinned);
        let rules = self.side.rules(self.version.schema());
        self.version = Arc::new(self.version.with_rules(rules));
        true
    }
}
