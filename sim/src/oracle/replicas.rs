//! Oracle 4a: replicas that applied the same entry are in the same state.
//!
//! Checks: at each apply of each replica, the entry, its outcome, the sequence and the digest of the replicated state
//! equal those of the first replica that applied it; a write that was carried out gives its rows the next sequences of
//! the region, one each, and nothing else moves them; a request id changes rows at most once. At calm, all replicas of a region
//! say that they have the same rows.
//!
//! Does not check: that the digest covers what a scan returns (oracle 4b does), nor that the outcome was right
//! (the client oracle does).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use engine::event::Event;
use engine::region::command::{Command, decode_outcome};
use engine::types::{LogId, NodeId, RegionId, ReplicaId, RequestId, Sequence};

use super::{Oracle, Violation};

pub(super) const NAME: &str = "replicas";

/// See the module.
#[derive(Default)]
pub struct ReplicaOracle {
    regions: BTreeMap<RegionId, Region>,
    evaluations: u64,
}

#[derive(Default)]
struct Region {
    applied: BTreeMap<u64, Applied>,
    /// The entry that each request changed rows with.
    requests: BTreeMap<RequestId, LogId>,
}

/// What the first replica made of an entry.
#[derive(Clone, PartialEq, Eq)]
struct Applied {
    log_id: LogId,
    command: u32,
    outcome: Bytes,
    sequence: Sequence,
    digest: u64,
    by: ReplicaId,
}

/// What `ADMIN CHECKSUM TABLE` answered of `table`: the replicas of a region that say what they have have the same.
pub fn judge_checksums(table: &str, rows: &[Vec<String>]) -> Result<(), Violation> {
    // Region, replica, node, applied, sequence, rows, checksum, error.
    let mut said: BTreeMap<&str, Vec<&[String]>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row[7] == "NULL") {
        said.entry(&row[0]).or_default().push(row);
    }
    for replicas in said.into_values() {
        if replicas.windows(2).any(|pair| pair[0][3..] != pair[1][3..]) {
            let line =
                |row: &&[String]| format!("replica {} on n{} has {} rows, checksum {}", row[1], row[2], row[5], row[6]);
            let at =
                format!("{table}, region {}, entry {}, sequence {}", replicas[0][0], replicas[0][3], replicas[0][4]);
            let evidence = [at].into_iter().chain(replicas.iter().map(line)).collect();
            let signature = "replicas of a region have other rows at the same entry".to_string();
            return Err(Violation { oracle: NAME, signature, evidence });
        }
    }
    Ok(())
}

impl Oracle for ReplicaOracle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn on_event(&mut self, _at: Duration, _node: NodeId, event: &Event) -> Result<(), Violation> {
        let Event::Applied { region: id, replica, log_id, command, outcome, sequence, digest, .. } = event else {
            return Ok(());
        };
        self.evaluations += 1;
        let region = self.regions.entry(*id).or_default();
        let now = Applied {
            log_id: *log_id,
            command: crc32(command),
            outcome: outcome.clone(),
            sequence: *sequence,
            digest: *digest,
            by: *replica,
        };
        match region.applied.get(&log_id.index) {
            Some(first) => same(*id, first, &now),
            None => {
                let before = region.applied.range(..log_id.index).next_back().map(|(_, applied)| applied.sequence);
                let before = before.unwrap_or_default();
                region.applied.insert(log_id.index, now);
                if *id == RegionId::META {
                    return Ok(());
                }
                follows(*id, *log_id, before, *sequence, command, outcome)?;
                once(*id, region, *log_id, command, outcome, before < *sequence)
            }
        }
    }

    fn on_crash(&mut self, _node: NodeId, _power: bool) {}

    fn evaluations(&self) -> u64 {
        self.evaluations
    }
}

fn same(id: RegionId, first: &Applied, now: &Applied) -> Result<(), Violation> {
    let equal = Applied { by: first.by, ..now.clone() } == *first;
    if equal {
        return Ok(());
    }
    let line = |applied: &Applied| {
        format!(
            "{}: entry {} (command {:08x}), outcome {:08x}, at {}, digest {:016x}",
            applied.by,
            applied.log_id,
            applied.command,
            crc32(&applied.outcome),
            applied.sequence,
            applied.digest
        )
    };
    violation("replicas differ at the same entry", vec![format!("region {id}"), line(first), line(now)])
}

/// Whether `sequence` is what the entry may make of `before`: the same, or one more for each row that it wrote.
fn follows(
    id: RegionId,
    log_id: LogId,
    before: Sequence,
    sequence: Sequence,
    command: &Bytes,
    outcome: &Bytes,
) -> Result<(), Violation> {
    // What a batch for a view comes to is not its number of rows.
    if let Ok(Command::Absorb(_) | Command::Begin) = Command::decode(command) {
        return Ok(());
    }
    let rows = match (command.is_empty(), decode_outcome(outcome)) {
        // It has a sequence of its own, behind the rows that it takes away.
        (false, Ok(_)) if matches!(Command::decode(command), Ok(Command::Truncate { .. } | Command::Expire { .. })) => {
            1
        }
        (false, Ok(answer)) if matches!(Command::decode(command), Ok(Command::Write { .. })) => answer.rows,
        _ => 0,
    };
    if sequence == before || sequence.0 == before.0 + rows {
        return Ok(());
    }
    violation(
        "an entry gives its rows other sequences than the next ones",
        vec![
            format!("region {id}: entry {log_id} wrote {rows} rows and leaves it at {sequence}"),
            format!("the entry before at {before}"),
        ],
    )
}

fn once(
    id: RegionId,
    region: &mut Region,
    log_id: LogId,
    command: &Bytes,
    outcome: &Bytes,
    changed: bool,
) -> Result<(), Violation> {
    let Ok(Command::Write { write, .. }) = Command::decode(command) else { return Ok(()) };
    let (Some(request), true, true) = (write.request, changed, decode_outcome(outcome).is_ok()) else { return Ok(()) };
    match region.requests.insert(request, log_id) {
        None => Ok(()),
        Some(before) => violation(
            "a request was applied twice",
            vec![
                format!("region {id}: request {request}"),
                format!("changed rows in entry {before} and again in {log_id}"),
            ],
        ),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

fn violation(signature: &str, evidence: Vec<String>) -> Result<(), Violation> {
    Err(Violation { oracle: NAME, signature: signature.to_string(), evidence })
}

#[cfg(test)]
mod tests {
    use engine::region::command::encode_outcome;
    use engine::region::request::{WriteAnswer, WriteRequest};
    use engine::types::{Incarnation, SessionId, TableId};

    use super::*;

    fn applied(replica: u64, index: u64, statement: u64, sequence: u64, digest: u64) -> Event {
        let request = RequestId { session: SessionId(1), statement, part: 0 };
        let write = WriteRequest {
            schema_version: 1,
            rows: Bytes::new(),
            ops: Bytes::new(),
            expected: vec![],
            request: Some(request),
            acknowledged: 0,
            file: None,
        };
        let answer = WriteAnswer { rows: 1, sequence: Sequence(sequence) };
        Event::Applied {
            region: RegionId::new(TableId(1), 0),
            replica: ReplicaId(replica),
            incarnation: Incarnation(1),
            log_id: LogId { term: 1, index },
            command: Command::Write { write, sessions: 9, files: 9 }.encode(),
            outcome: encode_outcome(&Ok(answer)),
            sequence: Sequence(sequence),
            digest,
        }
    }

    fn hear(oracle: &mut ReplicaOracle, event: &Event) -> Result<(), String> {
        oracle.on_event(Duration::ZERO, NodeId(1), event).map_err(|violation| violation.signature)
    }

    #[test]
    fn replicas_that_differ_are_seen() {
        let mut oracle = ReplicaOracle::default();
        hear(&mut oracle, &applied(1, 1, 1, 1, 5)).unwrap();
        hear(&mut oracle, &applied(2, 1, 1, 1, 5)).unwrap();
        assert_eq!(hear(&mut oracle, &applied(3, 1, 1, 1, 6)).unwrap_err(), "replicas differ at the same entry");
        assert_eq!(oracle.evaluations(), 3);
    }

    #[test]
    fn other_rows_at_the_same_entry_are_seen() {
        let row = |region: &str, replica: &str, checksum: &str, error: &str| {
            [region, replica, "1", "7", "9", "2", checksum, error].map(str::to_string).to_vec()
        };
        let same = [row("1/0", "4", "aa", "NULL"), row("1/0", "5", "aa", "NULL"), row("1/1", "6", "bb", "NULL")];
        judge_checksums("t", &same).unwrap();
        let away =
            [row("1/0", "4", "aa", "NULL"), row("1/0", "5", "NULL", "it is away"), row("1/0", "6", "aa", "NULL")];
        judge_checksums("t", &away).unwrap();
        let violation =
            judge_checksums("t", &[row("1/0", "4", "aa", "NULL"), row("1/0", "5", "ab", "NULL")]).unwrap_err();
        assert_eq!(violation.signature, "replicas of a region have other rows at the same entry");
        assert_eq!(violation.evidence.len(), 3);
    }

    #[test]
    fn a_request_that_changes_rows_twice_is_seen() {
        let mut oracle = ReplicaOracle::default();
        hear(&mut oracle, &applied(1, 1, 1, 1, 5)).unwrap();
        hear(&mut oracle, &applied(1, 2, 1, 1, 6)).unwrap();
        assert_eq!(hear(&mut oracle, &applied(1, 3, 1, 2, 7)).unwrap_err(), "a request was applied twice");
    }

    #[test]
    fn a_sequence_that_goes_back_or_leaves_a_hole_is_seen() {
        for wrong in [0, 3] {
            let mut oracle = ReplicaOracle::default();
            hear(&mut oracle, &applied(1, 1, 1, 1, 5)).unwrap();
            let err = hear(&mut oracle, &applied(1, 2, 2, wrong, 6)).unwrap_err();
            assert_eq!(err, "an entry gives its rows other sequences than the next ones");
        }
    }
}
