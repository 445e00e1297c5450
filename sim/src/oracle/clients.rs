//! Oracle 1: what clients were told is true, judged with the applied log as witness.
//!
//! Checks, at every answer and in time that grows with the versions of one key: a read equals its key at some position
//! of the log between the newest version that anyone had acknowledged or read before it began and the newest one applied
//! when it ended (of a read that may be stale: before it began less the bound that it asked for); an acknowledged write is in the log; a refused one is not; at the end the tables hold what the log says.
//!
//! Relies on: each written row is unlike every other version of its key (workloads see to that), and one open statement
//! per key at a time. Of a row that a client wrote or read as one of the table before an ALTER, only the columns that both
//! have are compared. Does not check: the order between different keys, and statements whose outcome stayed unknown:
//! they may have happened or not, but whoever reads their rows makes them certain.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::types::{Key, RegionId, Sequence};

use super::Violation;
use super::model::{Model, Row, agree};

pub(super) const NAME: &str = "clients";

/// See the module.
#[derive(Default)]
pub struct ClientOracle {
    /// The newest version of each key that somebody is known to have seen, and since when; the newest last.
    floors: BTreeMap<(RegionId, Key), Vec<(Duration, Sequence)>>,
    /// Rows whose write was refused.
    refused: Vec<(RegionId, Key, Option<Row>)>,
    evaluations: u64,
}

impl ClientOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// What a read must at least see of what was known at that time.
    pub fn floor(&self, region: RegionId, key: &Key, at: Duration) -> Sequence {
        let floors = self.floors.get(&(region, key.clone())).map_or(&[][..], Vec::as_slice);
        floors.iter().rev().find(|(since, _)| *since <= at).map_or(Sequence(0), |(_, sequence)| *sequence)
    }

    /// A write of `row` (none: a delete) under `key` was acknowledged.
    pub fn acknowledged(
        &mut self,
        model: &Model,
        now: Duration,
        region: RegionId,
        key: &Key,
        row: Option<&Row>,
    ) -> Result<(), Violation> {
        self.evaluations += 1;
        let history = model.region(region).into_iter().flat_map(|region| region.history(key));
        let written = history.filter(|(_, version)| same(*version, row)).map(|(sequence, _)| sequence).last();
        match written {
            Some(sequence) => {
                self.raise(now, region, key, sequence);
                Ok(())
            }
            None => violation(
                "an acknowledged write is not in the log",
                vec![
                    format!("region {region}, key {key:?}"),
                    format!("acknowledged: {}", shown(row)),
                    format!("applied versions: {}", versions(model, region, key)),
                ],
            ),
        }
    }

    /// A write was refused by an error that says that nothing was written.
    pub fn refused(&mut self, region: RegionId, key: &Key, row: Option<&Row>) {
        self.refused.push((region, key.clone(), row.cloned()));
    }

    /// A read of `key` that began when its floor was `floor` found `rows`.
    pub fn read(
        &mut self,
        model: &Model,
        now: Duration,
        region: RegionId,
        key: &Key,
        floor: Sequence,
        rows: &[(Key, Row)],
    ) -> Result<(), Violation> {
        self.evaluations += 1;
        let found = match rows {
            [] => None,
            [(_, row)] => Some(row),
            [(_, one), (_, other), ..] => {
                let evidence = vec![format!("region {region}, key {key:?}"), shown(Some(one)), shown(Some(other))];
                return violation("a read by key returns several rows", evidence);
            }
        };
        let nothing = (floor == Sequence(0) && found.is_none()).then_some(Sequence(0));
        let states = model.region(region).into_iter().flat_map(|region| region.states(key));
        let seen = states.filter(|(sequence, row)| *sequence >= floor && same(row.as_ref(), found));
        let seen = seen.map(|(sequence, _)| sequence).next().or(nothing);
        match seen {
            Some(sequence) => {
                self.raise(now, region, key, sequence);
                Ok(())
            }
            None => violation(
                "a read saw what it must not",
                vec![
                    format!("region {region}, key {key:?}"),
                    format!("read: {}", shown(found)),
                    format!("it had to be the version of {floor} or a newer one"),
                    format!("applied versions: {}", versions(model, region, key)),
                ],
            ),
        }
    }

    /// At the end: `rows` were read from a whole table, which must hold `expected`.
    pub fn end(&mut self, model: &Model, expected: &[(Key, Row)], rows: &[(Key, Row)]) -> Result<(), Violation> {
        self.evaluations += 1;
        // Of a table that appends a key may have several rows.
        let by_key = |rows: &[(Key, Row)]| {
            let mut by_key: BTreeMap<Key, Vec<Row>> = BTreeMap::new();
            rows.iter().for_each(|(key, row)| by_key.entry(key.clone()).or_default().push(row.clone()));
            by_key.values_mut().for_each(|rows| rows.sort());
            by_key
        };
        let (expected, found) = (by_key(expected), by_key(rows));
        let all = |rows: Option<&Vec<Row>>| match rows {
            Some(rows) => rows.iter().map(|row| shown(Some(row))).collect::<Vec<_>>().join(", "),
            None => shown(None),
        };
        for (key, rows) in &expected {
            let there = found.get(key);
            if there == Some(rows) {
                continue;
            }
            let evidence = vec![
                format!("key {key:?}"),
                format!("expected: {}", all(Some(rows))),
                format!("found: {}", all(there)),
            ];
            let is_twice = there.is_some_and(|there| there.len() > rows.len());
            let signature = match is_twice {
                true => "the table returns a row twice",
                false => "the table does not hold what was written",
            };
            return violation(signature, evidence);
        }
        if let Some((key, rows)) = found.iter().find(|(key, _)| !expected.contains_key(*key)) {
            return violation("the table holds what nobody wrote", vec![format!("key {key:?}"), all(Some(rows))]);
        }
        for (region, key, row) in &self.refused {
            let mut history = model.region(*region).into_iter().flat_map(|region| region.history(key));
            if history.any(|(_, version)| same(version, row.as_ref())) {
                return violation(
                    "a refused write was applied",
                    vec![format!("region {region}, key {key:?}"), shown(row.as_ref())],
                );
            }
        }
        Ok(())
    }

    /// How often it judged something.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    fn raise(&mut self, now: Duration, region: RegionId, key: &Key, sequence: Sequence) {
        let floors = self.floors.entry((region, key.clone())).or_default();
        if floors.last().is_none_or(|(_, newest)| *newest < sequence) {
            floors.push((now, sequence));
        }
    }
}

/// Whether a version of a row (none: a tombstone) is what a client has of it, who may know the table as it was before.
fn same(version: Option<&Row>, known: Option<&Row>) -> bool {
    match (version, known) {
        (Some(version), Some(known)) => agree(version, known),
        (version, known) => version.is_none() && known.is_none(),
    }
}

fn versions(model: &Model, region: RegionId, key: &Key) -> String {
    let history = model.region(region).into_iter().flat_map(|region| region.history(key));
    let lines: Vec<_> = history.map(|(sequence, row)| format!("{sequence} {}", shown(row))).collect();
    if lines.is_empty() { "none".into() } else { lines.join("; ") }
}

fn shown(row: Option<&Row>) -> String {
    let Some(row) = row else { return "no row".into() };
    let cells: Vec<_> = row.values().map(ToString::to_string).collect();
    format!("({})", cells.join(", "))
}

fn violation(signature: &str, evidence: Vec<String>) -> Result<(), Violation> {
    Err(Violation { oracle: NAME, signature: signature.to_string(), evidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_may_be_stale_must_see_what_was_known_before() {
        let mut oracle = ClientOracle::default();
        let (region, key) = (RegionId::META, Key(vec![1].into()));
        let at = Duration::from_secs;
        for (time, sequence) in [(1, 5), (2, 9), (3, 7)] {
            oracle.raise(at(time), region, &key, Sequence(sequence));
        }
        let floors: Vec<u64> = (0..5).map(|time| oracle.floor(region, &key, at(time)).0).collect();
        assert_eq!(floors, [0, 5, 9, 9, 9]);
    }

    #[test]
    fn a_row_that_comes_twice_is_seen() {
        let row = |key: u8| (Key(vec![key].into()), Row::new());
        let rows = [row(1), row(2), row(1)];
        let mut oracle = ClientOracle::default();
        let violation = oracle.end(&Model::default(), &rows[..2], &rows).unwrap_err();
        assert_eq!(violation.signature, "the table returns a row twice");
        oracle.end(&Model::default(), &rows[..2], &rows[..2]).unwrap();
        let read = oracle.read(&Model::default(), Duration::ZERO, RegionId::META, &rows[0].0, Sequence(0), &rows[..2]);
        assert_eq!(read.unwrap_err().signature, "a read by key returns several rows");
        assert_eq!(oracle.evaluations(), 3);
    }
}
