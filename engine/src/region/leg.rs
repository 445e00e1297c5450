//! The feeder's side of a view: how far each leg of a view is with this region.
//!
//! A leg is replicated state, so that whoever leads next goes on where the one before was stopped (PranaDB issue 586). Its rows are
//! read in *rounds*. A round ends at the sequence that was the newest when its entry was applied; never at one that a proposer
//! chose, who does not know what will be visible by then. What was visible at the end of the round before, and everything behind
//! it, stays readable on every replica until the next round ends.
//!
//! After a round that found little the leg is *live*: from then on the leader sends what is new in windows that no entry begins;
//! a window's end stands in the positions of the destinations. Now and then an entry says up to where all of them have everything,
//! and lets go what was kept behind that.
//!
//! Whoever leads takes a leg over by an entry with an epoch: its term, and which attempt it is. Entries of an earlier one do nothing
//! from then on. What is shown of a fill (how often it was taken over, how many rows were read for it) is counted by these entries
//! too, so it is the same whoever is asked.

use std::cmp::Ordering;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::{LegAnswer, encode_answer, encode_outcome};
use super::request::{LegStatus, WriteAnswer};
use super::{Region, State};
use crate::error::Result;
use crate::event::Event;
use crate::meta::catalog::{TableDef, columns};
use crate::storage::changes::ChangePage;
use crate::storage::merge::Limit;
use crate::storage::scan::Scan;
use crate::types::{Condition, LegId, LogId, MergeMode, Position, Predicate, Sequence, TableId, Timestamp, Value};

/// A leg, at a region of its feeder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The view that the rows are for, as it was created. Where its replicas are may have changed since.
    pub view: Box<TableDef>,
    /// Of the leader that reads for it, and of its attempt; 0: none did yet.
    pub epoch: u64,
    /// How often another leader took it over.
    pub takeovers: u64,
    /// How often a leader began anew after an attempt of its own.
    pub retries: u64,
    /// Rounds that were begun.
    pub round: u64,
    /// Rows that were read in the rounds that are through: of each the changes that its window had, each once.
    pub rows: u64,
    /// All destinations have what was visible at it; none before the end of the first round.
    pub done: Option<Sequence>,
    /// The end of the round under way; none before the first round, and when it is live.
    pub upto: Option<Sequence>,
    /// Whether it follows what is written, without rounds.
    pub is_live: bool,
    /// Whether it is to wait.
    pub is_paused: bool,
    /// Rows a second that are read until it is live; none: as fast as it goes.
    pub rate_limit: Option<u64>,
    /// Why it cannot go on.
    pub failed: Option<String>,
    /// When `done` or `upto` was set last, by the clock of the leader of then.
    pub at: Timestamp,
}

impl Leg {
    /// What must stay readable, with everything behind it.
    pub fn pinned(&self) -> Option<Sequence> {
        self.done.or(self.upto)
    }
}

/// Bits of an epoch that number the attempts of a term.
const ATTEMPTS: u32 = 24;

/// The epoch of the next attempt to read a leg whose last one was `last`, by the leader of `term`; none: a later one leads.
///
/// Each attempt has one of its own: a batch of the attempt before, of which nobody knows whether it will arrive, must not be taken
/// when this one has found out how far the destinations are.
pub fn next_epoch(last: u64, term: u64) -> Option<u64> {
    match (last >> ATTEMPTS).cmp(&term) {
        Ordering::Less => Some(term << ATTEMPTS),
        Ordering::Equal => Some(last + 1),
        Ordering::Greater => None,
    }
}

/// What becomes of a leg that another leader does not know of yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegStep {
    /// The leader of this epoch reads for it.
    Reign,
    /// The round is through at all destinations (the first one needs none before it); the next one begins, or the leg goes live.
    Round {
        /// The round that is through; 0: none.
        done: u64,
        /// Whether no further round is needed.
        goes_live: bool,
        /// Rows that were read in it.
        rows: u64,
        /// By the leader's clock.
        at: Timestamp,
    },
    /// Of a leg that is live: all destinations have what was visible at `done`.
    Advance {
        /// The sequence.
        done: Sequence,
        /// By the leader's clock.
        at: Timestamp,
    },
    /// It cannot go on.
    Fail {
        /// Why.
        message: String,
    },
}

/// A page of what changed, for a leg.
pub struct LegPage {
    /// The changes.
    pub changes: ChangePage,
    /// Whether rows of the feeder are told apart by their sequences.
    pub appends: bool,
}

impl Region {
    /// The legs, as of the last entry that was applied.
    pub fn legs(&self) -> Vec<(LegId, Leg)> {
        let state = self.state.lock().expect("no panic holds the lock");
        state.side.legs.iter().map(|(id, leg)| (*id, leg.clone())).collect()
    }

    /// One of them; none: the view does not read this region (any more).
    pub fn leg(&self, id: LegId) -> Option<Leg> {
        self.state.lock().expect("no panic holds the lock").side.legs.get(&id).cloned()
    }

    /// Whether there are any.
    pub fn has_legs(&self) -> bool {
        !self.state.lock().expect("no panic holds the lock").side.legs.is_empty()
    }

    /// How far the legs are.
    pub fn leg_status(&self) -> Vec<LegStatus> {
        let state = self.state.lock().expect("no panic holds the lock");
        let rows =
            state.version.ssts.values().map(|sst| sst.meta().rows).sum::<u64>() + state.version.memtable_rows() as u64;
        let status = |(id, leg): (&LegId, &Leg)| LegStatus {
            leg: *id,
            feeder: self.id,
            epoch: leg.epoch,
            takeovers: leg.takeovers,
            retries: leg.retries,
            round: leg.round,
            read: leg.rows,
            done: leg.done,
            upto: leg.upto,
            is_live: leg.is_live,
            is_level: state.side.is_level(leg),
            is_paused: leg.is_paused,
            rate_limit: leg.rate_limit,
            failed: leg.failed.clone(),
            sequence: state.side.sequence,
            rows,
            at: leg.at,
        };
        state.side.legs.iter().map(status).collect()
    }

    /// What became of rows from `since` (none: from nothing) to `upto`, behind `after`, in key order: about so many rows, and so
    /// many bytes of them, at most.
    pub async fn leg_page(
        &self,
        columns: Vec<String>,
        since: Option<Sequence>,
        upto: Sequence,
        after: Option<Position>,
        (rows, bytes): (usize, usize),
    ) -> Result<LegPage> {
        let version = self.version();
        let schema = version.schema();
        // Of a view with aggregates those rows that SELECT shows.
        let shown = Predicate { column: columns::PART.into(), condition: Condition::Eq(Value::UInt(0)) };
        let predicates = schema.column(columns::PART).map(|_| shown).into_iter().collect();
        let scan = Scan { columns, predicates, upto, after, ..Scan::default() };
        let appends = version.rules.mode() == MergeMode::Append;
        // A page ends too when many versions were looked at in vain.
        let limit = Limit { rows, bytes, taken: rows.saturating_mul(16) };
        let changes = version.changes(since, &scan, limit, rows).await.map_err(|err| self.noticed(err))?;
        Ok(LegPage { changes, appends })
    }

    /// Applies the entry `id`: a leg for each scan of the view begins, unless the view was here before.
    pub(super) fn apply_attach(&self, id: LogId, command: Bytes, legs: Vec<u32>, view: &TableDef) -> Bytes {
        let outcome = self.finish(id, command, |state| {
            if !state.side.ended.contains(&view.id) {
                let rate_limit = view.view.as_ref().and_then(|view| view.rate_limit);
                for leg in legs {
                    state.side.legs.entry(LegId { view: view.id, leg }).or_insert_with(|| Leg {
                        view: Box::new(view.clone()),
                        epoch: 0,
                        takeovers: 0,
                        retries: 0,
                        round: 0,
                        rows: 0,
                        done: None,
                        upto: None,
                        is_live: false,
                        is_paused: false,
                        rate_limit,
                        failed: None,
                        at: Timestamp(0),
                    });
                }
            }
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        self.legs_changed();
        outcome
    }

    /// Applies the entry `id`: the view reads here no more, and never again.
    pub(super) fn apply_detach(&self, id: LogId, command: Bytes, view: TableId) -> Bytes {
        let outcome = self.finish(id, command, |state| {
            state.side.ended.insert(view);
            state.side.legs.retain(|leg, _| leg.view != view);
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        self.legs_changed();
        outcome
    }

    /// Applies the entry `id`: what the user wants of the view's legs.
    pub(super) fn apply_control(
        &self,
        id: LogId,
        command: Bytes,
        view: TableId,
        is_paused: bool,
        rate_limit: Option<u64>,
    ) -> Bytes {
        let outcome = self.finish(id, command, |state| {
            for (_, leg) in state.side.legs.iter_mut().filter(|(leg, _)| leg.view == view) {
                (leg.is_paused, leg.rate_limit) = (is_paused, rate_limit);
            }
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        self.legs_changed();
        outcome
    }

    /// Applies the entry `id`.
    pub(super) fn apply_leg(&self, id: LogId, command: Bytes, leg: LegId, epoch: u64, step: LegStep) -> Bytes {
        let mut before = None;
        let mut answer = LegAnswer::Gone;
        let outcome = self.finish(id, command, |state| {
            before = state.side.legs.get(&leg).cloned();
            answer = state.step(leg, epoch, step);
            encode_answer(&answer)
        });
        if let (Some(before), LegAnswer::Leg(now)) = (before, answer) {
            self.tell(leg, &before, &now);
        }
        self.legs_changed();
        outcome
    }

    fn tell(&self, leg: LegId, before: &Leg, now: &Leg) {
        let (region, replica, events) = (self.id, self.spec.replica, &self.spec.events);
        let view = now.view.name.clone();
        if now.epoch != before.epoch && before.round > 0 {
            let (round, is_live) = (now.round, now.is_live);
            events.emit(|| Event::FillResumed { region, replica, view, leg: leg.leg, round, is_live });
        } else if now.is_live != before.is_live {
            events.emit(|| Event::LegLive { region, replica, view, leg: leg.leg, rounds: before.round });
        } else if now.round != before.round {
            let (round, upto) = (now.round, now.upto.unwrap_or_default());
            events.emit(|| Event::RoundStarted { region, replica, view, leg: leg.leg, round, upto });
        } else if now.failed.is_some() && before.failed.is_none() {
            let reason = now.failed.clone().unwrap_or_default();
            events.emit(|| Event::LegFailed { region, replica, view, leg: leg.leg, reason });
        }
    }

    /// Wakes whoever reads for legs and indexes of this region.
    pub(super) fn legs_changed(&self) {
        self.legs.send_modify(|changes| *changes += 1);
        self.spec.fills.notify_one();
    }
}

impl State {
    fn step(&mut self, id: LegId, epoch: u64, step: LegStep) -> LegAnswer {
        let newest = self.side.sequence;
        let Some(leg) = self.side.legs.get_mut(&id) else { return LegAnswer::Gone };
        if epoch < leg.epoch || (epoch > leg.epoch && step != LegStep::Reign) {
            return LegAnswer::Deposed { epoch: leg.epoch };
        }
        match step {
            LegStep::Reign => {
                match (leg.epoch, (epoch >> ATTEMPTS).cmp(&(leg.epoch >> ATTEMPTS))) {
                    // The first one of all, or one that is resent.
                    (0, _) => {}
                    (last, Ordering::Equal) => leg.retries += u64::from(epoch > last),
                    _ => leg.takeovers += 1,
                }
                leg.epoch = epoch;
            }
            LegStep::Round { done, goes_live, rows, at }
                if done == leg.round && !leg.is_live && leg.failed.is_none() =>
            {
                leg.done = leg.upto.or(leg.done);
                leg.rows += rows;
                leg.is_live = goes_live && leg.done.is_some();
                leg.upto = (!leg.is_live).then_some(newest);
                leg.round += u64::from(!leg.is_live);
                leg.at = at;
            }
            LegStep::Advance { done, at } if leg.is_live && Some(done) > leg.done => {
                leg.done = Some(done);
                leg.at = at;
            }
            LegStep::Fail { message } if leg.failed.is_none() => leg.failed = Some(message),
            // It came late, or twice.
            LegStep::Round { .. } | LegStep::Advance { .. } | LegStep::Fail { .. } => {}
        }
        LegAnswer::Leg(Box::new(leg.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_an_epoch_of_its_own_and_a_later_leader_a_later_one() {
        let first = next_epoch(0, 3).unwrap();
        let second = next_epoch(first, 3).unwrap();
        let other = next_epoch(second, 4).unwrap();
        assert!(first < second && second < other);
        assert_eq!(next_epoch(other, 3), None, "the leader of a later term reads");
    }
}
