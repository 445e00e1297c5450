//! Oracle 4b: what a replica returns when all of it is read is what its log says.
//!
//! A replica is read whole after each exchange of its version (flush, compaction, install, open), and all of them at calm;
//! each time at its newest sequence, and once versions were dropped also at the oldest that can be read and at one
//! between. Checks: the rows are exactly those that the model has at that sequence, each once; stored data that was never
//! damaged can be read.
//!
//! Does not check: reads that skip rows or columns (pushed-down filters; the client oracle reads by key). A replica without rows whose log has none either counts as not compared.

use std::collections::BTreeMap;

use engine::types::{Key, NodeId, RegionId, ReplicaId, Sequence};

use super::Violation;
use super::model::{Model, RegionModel, Row};

pub(super) const NAME: &str = "replicas_scan";

/// See the module.
#[derive(Debug, Default)]
pub struct ScanOracle {
    evaluations: u64,
}

/// All that a replica returned.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// Its group.
    pub region: RegionId,
    /// The replica.
    pub replica: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// As of which sequence it was read.
    pub sequence: Sequence,
    /// The version of its columns.
    pub version: u64,
    /// What was found, in the order in which it came.
    pub rows: Vec<(Key, Row)>,
}

impl ScanOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// Holds what was found against the model.
    pub fn judge(&mut self, model: &Model, scanned: &Scanned) -> Result<(), Violation> {
        let Scanned { region, replica, node, sequence, version, rows } = scanned;
        let model = model.region(*region);
        let expected: BTreeMap<&Key, &Row> = model.into_iter().flat_map(|region| region.visible(*sequence)).collect();
        if expected.is_empty() && rows.is_empty() {
            return Ok(());
        }
        self.evaluations += 1;
        let wrong = |signature: &str, what: String, instead: String| {
            let whose = format!("{replica} of {region} on {node} at {sequence}");
            Err(violation(signature, vec![whose, what, instead]))
        };
        let mut found: BTreeMap<&Key, Row> = BTreeMap::new();
        for (key, row) in rows {
            let carried = |region: &RegionModel| region.carried(row.clone(), *version);
            if let Some(before) = found.insert(key, model.map_or_else(|| row.clone(), carried)) {
                let once = format!("and before it {before:?}");
                return wrong("a replica returns a row twice", format!("found {key:?} {row:?}"), once);
            }
        }
        let signature = "a replica's content is not what its log says";
        if let Some((key, row)) = expected.iter().find(|(key, row)| found.get(*key) != Some(**row)) {
            return wrong(signature, format!("expected {key:?} {row:?}"), format!("found {:?}", found.get(key)));
        }
        if let Some((key, row)) = found.iter().find(|(key, _)| !expected.contains_key(*key)) {
            return wrong(signature, format!("found {key:?} {row:?}"), "expected no such row".to_string());
        }
        Ok(())
    }

    /// A replica said that its data is damaged, or answered with something else than rows.
    pub fn unreadable(&mut self, region: RegionId, node: NodeId, why: &str) -> Violation {
        self.evaluations += 1;
        violation("a replica cannot be read", vec![format!("{region} on {node}: {why}")])
    }

    /// How often it compared rows.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }
}

fn violation(signature: &str, evidence: Vec<String>) -> Violation {
    Violation { oracle: NAME, signature: signature.to_string(), evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(rows: &[u8]) -> Scanned {
        Scanned {
            region: RegionId::META,
            replica: ReplicaId(1),
            node: NodeId(1),
            sequence: Sequence(9),
            version: 1,
            rows: rows.iter().map(|key| (Key(vec![*key].into()), Row::new())).collect(),
        }
    }

    #[test]
    fn nothing_against_nothing_is_no_comparison() {
        let mut oracle = ScanOracle::default();
        oracle.judge(&Model::default(), &scanned(&[])).unwrap();
        assert_eq!(oracle.evaluations(), 0);
    }

    #[test]
    fn a_row_that_comes_twice_is_seen() {
        let violation = ScanOracle::default().judge(&Model::default(), &scanned(&[7, 8, 7])).unwrap_err();
        assert_eq!(violation.signature, "a replica returns a row twice");
    }

    #[test]
    fn rows_that_no_log_has_are_seen() {
        let mut oracle = ScanOracle::default();
        let violation = oracle.judge(&Model::default(), &scanned(&[7])).unwrap_err();
        assert_eq!(violation.signature, "a replica's content is not what its log says");
        assert_eq!(oracle.evaluations(), 1);
    }
}
