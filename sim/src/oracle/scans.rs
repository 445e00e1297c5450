//! Oracle 4b: what a replica returns when all of it is read is what its log says.
//!
//! A replica is read whole after each exchange of its version (flush, compaction, install, open), and all of them at calm;
//! each time at its newest sequence, at each that is pinned, and once versions were dropped also at the oldest that can be
//! read and at one between. Checks: the rows are exactly those that the model has at that sequence, each once; what changed
//! between the oldest and the newest of these is what the model says; what is pinned can be read; stored data that was
//! never damaged can be read; the columns are those that its log says.
//!
//! Does not check: reads that skip rows or columns (pushed-down filters; the client oracle reads by key). A replica without rows whose log has none either counts as not compared.

use std::collections::BTreeSet;

use engine::region::request::ReplicaStatus;
use engine::types::{Key, MergeMode, NodeId, RegionId, ReplicaId, Sequence};

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
        let expected = model.into_iter().flat_map(|region| region.visible(*sequence));
        let expected: Vec<(&Key, Row)> = expected.map(|(key, _, row)| (key, row)).collect();
        if expected.is_empty() && rows.is_empty() {
            return Ok(());
        }
        self.evaluations += 1;
        let wrong = |signature: &str, what: String, instead: String| {
            let whose = format!("{replica} of {region} on {node} at {sequence}");
            Err(violation(signature, vec![whose, what, instead]))
        };
        let carried = |row: &Row| model.map_or_else(|| row.clone(), |region| region.carried(row.clone(), *version));
        let found: Vec<(&Key, Row)> = rows.iter().map(|(key, row)| (key, carried(row))).collect();
        let appends = model.is_some_and(|region| region.mode() == MergeMode::Append);
        let mut keys = BTreeSet::new();
        if let Some((key, row)) = found.iter().find(|(key, _)| !keys.insert(*key)).filter(|_| !appends) {
            let both = found.iter().filter(|(other, _)| other == key).map(|(_, row)| format!("{row:?}"));
            let both = both.collect::<Vec<_>>().join(", ");
            return wrong("a replica returns a row twice", format!("found {key:?} {row:?}"), format!("of {both}"));
        }
        let same = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        match (found.get(same), expected.get(same)) {
            (None, None) => Ok(()),
            (found, expected) => {
                let signature = "a replica's content is not what its log says";
                wrong(signature, format!("found {found:?}"), format!("expected {expected:?}"))
            }
        }
    }

    /// Holds what a replica says that changed behind `since` against the model: of each row the sign, and what it was or is.
    pub fn judge_changes(
        &mut self,
        model: &Model,
        since: Sequence,
        scanned: &Scanned,
        signs: &[i8],
    ) -> Result<(), Violation> {
        let Scanned { region, replica, node, sequence, version, rows } = scanned;
        let Some(model) = model.region(*region) else { return Ok(()) };
        let expected = model.changes(since, *sequence);
        if expected.is_empty() && rows.is_empty() {
            return Ok(());
        }
        self.evaluations += 1;
        let carried = |row: &Row| model.carried(row.clone(), *version);
        let found: Vec<(Key, i8, Row)> =
            rows.iter().zip(signs).map(|((key, row), sign)| (key.clone(), *sign, carried(row))).collect();
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        let whose = format!("{replica} of {region} on {node} from {since} to {sequence}");
        let what = vec![whose, format!("found {:?}", found.get(at)), format!("expected {:?}", expected.get(at))];
        Err(violation("a replica's changes are not what its log says", what))
    }

    /// A replica that has applied a pin and not its end must have what it pins.
    pub fn judge_pins(&mut self, model: &Model, status: &ReplicaStatus) -> Result<(), Violation> {
        let Some(model) = model.region(status.region) else { return Ok(()) };
        let applied = status.applied.map_or(0, |applied| applied.index);
        let lost = |(sequence, index): &(Sequence, u64)| *index <= applied && *sequence < status.oldest;
        let Some((sequence, index)) = model.pins().into_iter().find(lost) else { return Ok(()) };
        let whose = format!("{} of {} on {} at entry {applied}", status.replica, status.region, status.node);
        let what =
            vec![whose, format!("pinned {sequence} by entry {index}"), format!("reads from {} on", status.oldest)];
        Err(violation("a replica does not keep what is pinned", what))
    }

    /// A replica that has applied all that the model has must have its columns.
    pub fn judge_columns(&mut self, model: &Model, status: &ReplicaStatus) -> Result<(), Violation> {
        let Some(model) = model.region(status.region) else { return Ok(()) };
        let (Some(newest), Some(applied)) = (model.newest(), status.applied) else { return Ok(()) };
        if model.last() > Some(applied.index) || status.schema_version == newest.version {
            return Ok(());
        }
        let whose = format!("{} of {} on {} at entry {applied}", status.replica, status.region, status.node);
        let (found, expected) = (status.schema_version, newest.version);
        let versions = vec![whose, format!("expected version {expected}"), format!("found version {found}")];
        Err(violation("a replica's columns are not those of its log", versions))
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
    use engine::event::Event;
    use engine::meta::catalog::{PartitionRule, TableDef};
    use engine::region::command::{Command, encode_outcome};
    use engine::region::request::WriteAnswer;
    use engine::types::{Alteration, Column, ColumnId, ColumnType, Incarnation, LogId, ProcedureId, Schema, TableId};

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
    fn columns_that_are_not_those_of_the_log_are_seen() {
        let column = Column {
            id: ColumnId(1),
            name: "a".into(),
            column_type: ColumnType::Int64,
            nullable: false,
            default: None,
        };
        let first = Schema::new(1, vec![column], &["a".into()], None).unwrap();
        let renamed = Alteration::Rename { column: "a".into(), to: "b".into() };
        let second = Box::new(first.altered(&[renamed]).unwrap());
        let (region, replica) = (RegionId::new(TableId(1), 0), ReplicaId(1));
        let mut model = Model::default();
        model.learn(&TableDef {
            id: TableId(1),
            name: "t".into(),
            schema: first,
            partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
            regions: Vec::new(),
            view: None,
            indexes: Default::default(),
        });
        let log_id = LogId { term: 1, index: 7 };
        model.on_event(&Event::Applied {
            region,
            replica,
            incarnation: Incarnation(1),
            log_id,
            command: Command::Alter { by: ProcedureId(1), schema: second }.encode(),
            outcome: encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: Sequence(0) })),
            sequence: Sequence(0),
            digest: 0,
        });
        let judged = |applied: u64, schema_version| {
            let applied = Some(LogId { term: 1, index: applied });
            let status = ReplicaStatus { region, applied, schema_version, ..ReplicaStatus::default() };
            ScanOracle::default().judge_columns(&model, &status).map_err(|violation| violation.signature)
        };
        assert_eq!((judged(7, 2), judged(6, 1)), (Ok(()), Ok(())));
        assert_eq!(judged(7, 1).unwrap_err(), "a replica's columns are not those of its log");
    }

    #[test]
    fn rows_that_no_log_has_are_seen() {
        let mut oracle = ScanOracle::default();
        let violation = oracle.judge(&Model::default(), &scanned(&[7])).unwrap_err();
        assert_eq!(violation.signature, "a replica's content is not what its log says");
        assert_eq!(oracle.evaluations(), 1);
    }
}
