//! Pins: what is visible when one is applied stays readable, with everything behind it, until it goes.
//!
//! A pin is replicated state: it takes its sequence when its entry is applied (never earlier: a proposer does not know what
//! will be visible by then), stands in snapshots, and binds every replica's flushes and compactions. They go by the pins as
//! of the last flush, which is enough: a later pin has a later sequence than everything that they drop.

use bytes::Bytes;

use super::Region;
use super::command::encode_outcome;
use super::leg::Leg;
use super::request::{PinStatus, WriteAnswer};
use super::side::Pin;
use crate::types::{LegId, LogId, Sequence, Timestamp};

impl Region {
    /// The pins, by name; then what legs of views pin.
    pub fn pins(&self) -> Vec<PinStatus> {
        let state = self.state.lock().expect("no panic holds the lock");
        let status = |name: String, sequence: Sequence, at| PinStatus {
            region: self.id,
            name,
            sequence,
            newer: state.side.sequence.0 - sequence.0,
            at,
        };
        let named = state.side.pins.iter().map(|(name, pin)| status(name.clone(), pin.sequence, pin.at));
        let of_leg = |(id, leg): (&LegId, &Leg)| {
            Some(status(format!("materialized view {} leg {}", leg.view.name, id.leg), leg.pinned()?, leg.at))
        };
        named.chain(state.side.legs.iter().filter_map(of_leg)).collect()
    }

    /// Applies the entry `id`. The outcome has the sequence of the pin of that name.
    pub(super) fn apply_pin(&self, id: LogId, command: Bytes, name: String, at: Timestamp) -> Bytes {
        self.finish(id, command, |state| {
            let now = Pin { sequence: state.side.sequence, at };
            let sequence = state.side.pins.entry(name).or_insert(now).sequence;
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence }))
        })
    }

    /// Applies the entry `id`.
    pub(super) fn apply_unpin(&self, id: LogId, command: Bytes, name: &str) -> Bytes {
        self.finish(id, command, |state| {
            state.side.pins.remove(name);
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        })
    }
}
