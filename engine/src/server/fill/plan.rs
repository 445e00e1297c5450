//! What the leader that reads for a leg does next. Pure: the leg as its log says, what the destinations have, and what is visible
//! go in; a step comes out.
//!
//! A *window* is what changed from one sequence to another one. It is sent to the destinations that have the former and not the
//! latter, from wherever each of them is in it, and a window begins only when all of them have the one before. So whatever is found
//! after a failure, at most one window is open, its end stands in the positions, and it is finished as it was begun.

use std::collections::BTreeMap;

use crate::region::leg::Leg;
use crate::types::{FillPosition, Position, RegionId, Sequence};

/// What is known of a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Destination {
    /// What it said it has.
    pub position: FillPosition,
    /// Rows of the feeder that were read for what it has of the window that it is in, or was.
    pub read: u64,
    /// What it has, as it was sent all that there was for it.
    pub sent: Option<Sequence>,
}

impl Destination {
    /// It has all that was visible then.
    fn has(&self, leg: &Leg) -> Option<Sequence> {
        self.position.done.max(self.sent).max(leg.done)
    }

    /// The window that it is in the middle of.
    fn open(&self, leg: &Leg) -> Option<&(Sequence, Position)> {
        self.position.within.as_ref().filter(|(upto, _)| self.has(leg) < Some(*upto))
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until rows are written.
    Wait,
    /// Log the end of the round, which all destinations have, and the beginning of the next one.
    Round {
        /// The last one need not be: what is left is little.
        goes_live: bool,
    },
    /// Send this.
    Send(Window),
    /// Nothing that was sent can have led to this.
    Broken(String),
}

/// What to send to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// What changed from here; none: from nothing.
    pub since: Option<Sequence>,
    /// To here.
    pub upto: Sequence,
    /// Who has the former and not the latter, and up to which key of the window each is.
    pub to: BTreeMap<RegionId, Option<Position>>,
}

/// The next step of `leg`. `visible`: the newest sequence that can be read. `live_rows`: a leg goes live when no more versions than
/// that are left.
pub(super) fn next(
    leg: &Leg,
    destinations: &BTreeMap<RegionId, Destination>,
    visible: Sequence,
    live_rows: u64,
) -> Next {
    let all_have = destinations.values().map(|one| one.has(leg)).min().flatten();
    let upto = match (leg.is_live, leg.upto) {
        (false, None) => return Next::Round { goes_live: false },
        (false, Some(upto)) if all_have >= Some(upto) => {
            return Next::Round { goes_live: visible.0.saturating_sub(upto.0) <= live_rows };
        }
        (false, Some(upto)) => upto,
        (true, _) => {
            // What a leader before this one began is finished first.
            let begun = destinations.values().filter_map(|one| one.open(leg).map(|(upto, _)| *upto).max(one.has(leg)));
            match begun.max().filter(|begun| all_have < Some(*begun)) {
                Some(begun) => begun,
                None if all_have < Some(visible) => visible,
                None => return Next::Wait,
            }
        }
    };
    let behind = || destinations.iter().filter(|(_, one)| one.has(leg) < Some(upto));
    let Some(since) = behind().map(|(_, one)| one.has(leg)).min() else { return Next::Wait };
    let mut to = BTreeMap::new();
    for (region, one) in behind().filter(|(_, one)| one.has(leg) == since) {
        let from = match one.open(leg) {
            Some((end, _)) if *end != upto => {
                let position = &one.position;
                return Next::Broken(format!("region {region} is at {position}, and what is due ends at {upto}"));
            }
            open => open.map(|(_, key)| key.clone()),
        };
        to.insert(*region, from);
    }
    Next::Send(Window { since, upto, to })
}

/// Rows that were read in the round that is through.
pub(super) fn rows(leg: &Leg, destinations: &BTreeMap<RegionId, Destination>) -> u64 {
    let Some(upto) = leg.upto else { return 0 };
    // Who was told of the window's end knows all that was read; the others may have missed what was not for them.
    let ends = |one: &&Destination| one.sent == Some(upto) || one.position == FillPosition::at(upto);
    destinations.values().filter(ends).map(|one| one.read).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::catalog::{PartitionRule, TableDef};
    use crate::types::{Column, ColumnId, ColumnType, Key, Schema, TableId, Timestamp};

    const S: fn(u64) -> Sequence = Sequence;

    fn leg(done: Option<u64>, upto: Option<u64>, is_live: bool) -> Leg {
        let column =
            Column { id: ColumnId(1), name: "a".into(), column_type: ColumnType::Int64, nullable: true, default: None };
        let view = TableDef {
            id: TableId(9),
            name: "v".into(),
            schema: Schema::of_view(vec![column], &["a".into()]),
            partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
            regions: Vec::new(),
            view: None,
            indexes: Default::default(),
        };
        Leg {
            view: Box::new(view),
            epoch: 1,
            takeovers: 0,
            retries: 0,
            rows: 0,
            round: u64::from(upto.is_some()),
            done: done.map(S),
            upto: upto.map(S),
            is_live,
            is_paused: false,
            rate_limit: None,
            failed: None,
            at: Timestamp(0),
        }
    }

    fn key(key: &'static str) -> Position {
        Position { key: Key(key.as_bytes().into()), sequence: S(0) }
    }

    fn at(done: Option<u64>) -> FillPosition {
        FillPosition { done: done.map(S), within: None }
    }

    fn within(done: Option<u64>, upto: u64, k: &'static str) -> FillPosition {
        FillPosition { done: done.map(S), within: Some((S(upto), key(k))) }
    }

    fn step(leg: &Leg, positions: &[FillPosition], visible: u64) -> Next {
        let destination = |(at, position): (usize, &FillPosition)| {
            (RegionId(at as u64), Destination { position: position.clone(), ..Destination::default() })
        };
        next(leg, &positions.iter().enumerate().map(destination).collect(), S(visible), 3)
    }

    fn send(since: Option<u64>, upto: u64, to: &[(u64, Option<&'static str>)]) -> Next {
        let to = to.iter().map(|(region, from)| (RegionId(*region), from.map(key))).collect();
        Next::Send(Window { since: since.map(S), upto: S(upto), to })
    }

    #[test]
    fn rounds_follow_each_other_until_little_is_left() {
        assert_eq!(step(&leg(None, None, false), &[at(None)], 9), Next::Round { goes_live: false });
        let first = leg(None, Some(9), false);
        assert_eq!(step(&first, &[at(None), at(None)], 20), send(None, 9, &[(0, None), (1, None)]));
        assert_eq!(step(&first, &[at(Some(9)), within(None, 9, "k")], 20), send(None, 9, &[(1, Some("k"))]));
        assert_eq!(step(&first, &[at(Some(9)), at(Some(9))], 20), Next::Round { goes_live: false });
        assert_eq!(step(&first, &[at(Some(9)), at(Some(9))], 12), Next::Round { goes_live: true });
        // Region 1 had nothing to get in the first round.
        let second = leg(Some(9), Some(20), false);
        assert_eq!(step(&second, &[at(Some(9)), at(None)], 30), send(Some(9), 20, &[(0, None), (1, None)]));
    }

    #[test]
    fn what_was_begun_is_finished_as_it_was_begun() {
        let live = leg(Some(20), None, true);
        assert_eq!(step(&live, &[at(Some(9)), at(None)], 20), Next::Wait);
        assert_eq!(step(&live, &[at(Some(20)), at(None)], 25), send(Some(20), 25, &[(0, None), (1, None)]));
        // A leader got as far as 24 in region 0, in the middle of it in region 1, and nothing was for region 2 since 20.
        let found = [at(Some(24)), within(Some(22), 24, "k"), at(Some(20))];
        assert_eq!(step(&live, &found, 30), send(Some(20), 24, &[(2, None)]));
        let found = [at(Some(24)), within(Some(22), 24, "k"), at(Some(24))];
        assert_eq!(step(&live, &found, 30), send(Some(22), 24, &[(1, Some("k"))]));
        assert_eq!(
            step(&live, &[at(Some(24)), at(Some(24)), at(Some(24))], 30),
            send(Some(24), 30, &[(0, None), (1, None), (2, None)])
        );
        // Two windows cannot be open.
        let found = [within(Some(20), 22, "k"), within(Some(20), 24, "k")];
        assert!(matches!(step(&live, &found, 30), Next::Broken(_)));
    }

    #[test]
    fn what_was_sent_counts_where_nothing_was_to_be_sent() {
        let live = leg(Some(20), None, true);
        let mut destinations = BTreeMap::new();
        destinations.insert(RegionId(0), Destination { position: at(Some(9)), sent: Some(S(25)), read: 0 });
        assert_eq!(next(&live, &destinations, S(25), 3), Next::Wait);
        destinations.insert(RegionId(1), Destination { position: at(Some(22)), sent: None, read: 0 });
        assert_eq!(next(&live, &destinations, S(25), 3), send(Some(22), 25, &[(1, None)]));
    }

    #[test]
    fn a_round_has_as_many_rows_as_were_read_to_its_end() {
        let second = leg(Some(9), Some(20), false);
        let rows = |found: &[(FillPosition, Option<u64>, u64)]| {
            let destination = |(position, sent, read): &(FillPosition, Option<u64>, u64)| Destination {
                position: position.clone(),
                sent: sent.map(S),
                read: *read,
            };
            let found = found.iter().map(destination).enumerate().map(|(at, one)| (RegionId(at as u64), one));
            rows(&second, &found.collect())
        };
        // Of a round before: 50. One was sent all that there was for it, which was nothing.
        assert_eq!(rows(&[(at(Some(20)), None, 7), (at(Some(9)), None, 50)]), 7);
        assert_eq!(rows(&[(at(Some(9)), Some(20), 7), (within(Some(9), 20, "k"), Some(20), 7)]), 7);
        assert_eq!(rows(&[(at(Some(9)), None, 50)]), 0);
    }
}
