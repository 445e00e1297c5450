//! Oracle 4b: what a replica returns when all of it is read is what its log says.
//!
//! A replica is read whole after each exchange of its version (flush, install, open), and all of them at calm; each time
//! at its newest sequence. Checks: the rows are exactly those that the model has at that sequence; stored data that was
//! never damaged can be read.
//!
//! Does not check: reads that skip rows or columns (pushed-down filters; the client oracle reads by key), and versions
//! older than the newest. A replica without rows whose log has none either counts as not compared.

use std::collections::BTreeMap;

use engine::types::{Key, NodeId, RegionId, ReplicaId, Sequence};

use super::Violation;
use super::model::{Model, Row};

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
    /// What was found.
    pub rows: BTreeMap<Key, Row>,
}

impl ScanOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// Holds what was found against the model.
    pub fn judge(&mut self, model: &Model, scanned: &Scanned) -> Result<(), Violation> {
        let Scanned { region, replica, node, sequence, rows } = scanned;
        let expected: BTreeMap<&Key, &Row> =
            model.region(*region).into_iter().flat_map(|region| region.visible(*sequence)).collect();
        if expected.is_empty() && rows.is_empty() {
            return Ok(());
        }
        self.evaluations += 1;
        let missing = expected.iter().find(|(key, row)| rows.get(**key) != Some(**row));
        let extra = rows.iter().find(|(key, _)| !expected.contains_key(key));
        let difference = match (missing, extra) {
            (None, None) => return Ok(()),
            (Some((key, row)), _) => [format!("expected {key:?} {row:?}"), format!("found {:?}", rows.get(*key))],
            (None, Some((key, row))) => [format!("found {key:?} {row:?}"), "expected no such row".to_string()],
        };
        let mut evidence = vec![format!("{replica} of {region} on {node} at {sequence}")];
        evidence.extend(difference);
        Err(violation("a replica's content is not what its log says", evidence))
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
            rows: rows.iter().map(|key| (Key(vec![*key].into()), Vec::new())).collect(),
        }
    }

    #[test]
    fn nothing_against_nothing_is_no_comparison() {
        let mut oracle = ScanOracle::default();
        oracle.judge(&Model::default(), &scanned(&[])).unwrap();
        assert_eq!(oracle.evaluations(), 0);
    }

    #[test]
    fn rows_that_no_log_has_are_seen() {
        let mut oracle = ScanOracle::default();
        let violation = oracle.judge(&Model::default(), &scanned(&[7])).unwrap_err();
        assert_eq!(violation.signature, "a replica's content is not what its log says");
        assert_eq!(oracle.evaluations(), 1);
    }
}
