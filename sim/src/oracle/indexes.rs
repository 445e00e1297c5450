//! Oracle 9: an index is its table in another order.
//!
//! Whenever a replica is read whole (see [`scans`](super::scans)), so are its indexes that have all rows: each row has its entry,
//! with its sequence, and there is no other one; and what a read finds by an index, of a value that is in the table and of NULL,
//! is what the model has with that value at that sequence.
//!
//! Does not check: an index that is being filled (no read uses it). Which index a query takes (golden scripts do).

use engine::region::request::IndexCheck;
use engine::types::{ColumnId, NodeId, RegionId, ReplicaId, Sequence, Value};

use super::model::{Model, Row};
use super::{Scanned, Violation};

pub(super) const NAME: &str = "indexes";

/// See the module.
#[derive(Debug, Default)]
pub struct IndexOracle {
    evaluations: u64,
    is_due: bool,
}

impl IndexOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// Some replica has an index with all rows.
    pub fn note_complete(&mut self) {
        self.is_due = true;
    }

    /// Whether there is something to judge.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// How often it compared something.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Judges the entries of an index.
    pub fn judge_entries(
        &mut self,
        name: &str,
        node: NodeId,
        replica: ReplicaId,
        found: &IndexCheck,
    ) -> Result<(), Violation> {
        self.evaluations += 1;
        let IndexCheck { region, rows, missing, extra } = found;
        if (*missing, *extra) == (0, 0) {
            return Ok(());
        }
        let whose = format!("index {name} of {replica} of {region} on {node}");
        let what = format!("of {rows} rows {missing} have no entry, {extra} entries have no row");
        Err(violation("an index has other entries than its table has rows", vec![whose, what]))
    }

    /// Judges what was found by an index of the rows that have `value` in `column`.
    pub fn judge_read(
        &mut self,
        model: &Model,
        name: &str,
        (column, value): (ColumnId, &Value),
        scanned: &Scanned,
    ) -> Result<(), Violation> {
        self.evaluations += 1;
        let Scanned { region, replica, node, sequence, version, rows } = scanned;
        let Some(model) = model.region(*region) else { return Ok(()) };
        let has = |row: &Row| row.get(&column) == Some(value);
        let expected: Vec<_> =
            model.visible(*sequence).filter(|(_, _, row)| has(row)).map(|(key, _, row)| (key.clone(), row)).collect();
        // Without the condition of the query, which DataFusion checks again: what a region returns too much does no harm.
        let found = rows.iter().map(|(key, row)| (key.clone(), model.carried(row.clone(), *version)));
        let found: Vec<_> = found.filter(|(_, row)| has(row)).collect();
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        let whose = format!("index {name} of {replica} of {region} on {node} at {sequence}, for {value}");
        let what = vec![whose, format!("found {:?}", found.get(at)), format!("expected {:?}", expected.get(at))];
        Err(violation("an index finds other rows than there are", what))
    }

    /// A value that some row of the region has in `column` at `sequence`: the row in the middle.
    pub fn value_of(model: &Model, region: RegionId, column: ColumnId, sequence: Sequence) -> Option<Value> {
        let model = model.region(region)?;
        let rows: Vec<Row> = model.visible(sequence).map(|(_, _, row)| row).collect();
        rows.get(rows.len() / 2)?.get(&column).cloned()
    }
}

fn violation(signature: &str, evidence: Vec<String>) -> Violation {
    Violation { oracle: NAME, signature: signature.to_string(), evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::types::TableId;

    fn check(missing: u64, extra: u64) -> Result<(), Violation> {
        let found = IndexCheck { region: RegionId::new(TableId(1), 0), rows: 3, missing, extra };
        IndexOracle::default().judge_entries("i", NodeId(1), ReplicaId(4), &found)
    }

    #[test]
    fn an_entry_that_is_missing_or_too_much_is_told() {
        assert_eq!(check(0, 0), Ok(()));
        for (missing, extra) in [(1, 0), (0, 1)] {
            let violation = check(missing, extra).unwrap_err();
            assert_eq!(violation.signature, "an index has other entries than its table has rows");
        }
    }
}
