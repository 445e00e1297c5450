//! The side state of a region: everything replicated that is not rows. It is stored with each manifest edit *as of the
//! flushed index*, travels in snapshots, and is rebuilt by replaying the log from there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::absorb::{FillState, Filled};
use super::command::Outcome;
use super::index::Backfill;
use super::leg::Leg;
use super::request::{FileName, WriteAnswer};
use crate::error::{Error, Invalid};
use crate::raft::Membership;
use crate::storage::range::RangeTombstones;
use crate::storage::rules::Rules;
use crate::types::{IndexId, LegId, LogId, ProcedureId, RequestId, Schema, Sequence, SessionId, TableId, Timestamp};

/// See the module. Cloned when a flush freezes the memtable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The last entry whose effect is in this state.
    pub applied: Option<LogId>,
    /// The membership as of `applied`.
    pub membership: Membership,
    /// The sequence of the newest row.
    pub sequence: Sequence,
    /// Rolling digest of all entries with an effect and of their outcomes.
    pub digest: u64,
    /// What was answered to whom.
    pub sessions: Sessions,
    /// What was ingested.
    pub ingested: Ingested,
    /// The last procedure that changed the region as a whole. There is one of them at a time, and their ids only grow.
    pub procedure: Option<ProcedureId>,
    /// What hides many rows at once.
    pub ranges: RangeTombstones,
    /// See [`Rules::appends_after`].
    pub appends_after: Sequence,
    /// What must stay readable, by name.
    pub pins: BTreeMap<String, Pin>,
    /// The scans of views that read this region.
    pub legs: BTreeMap<LegId, Leg>,
    /// Views that read this region and never will again: whoever says otherwise comes late.
    pub ended: BTreeSet<TableId>,
    /// Of a region of a view: what it has of its feeders; none before it is begun to be filled.
    pub filled: Option<Filled>,
    /// How far the backfills of its indexes are.
    pub indexes: BTreeMap<IndexId, Backfill>,
}

/// A sequence that stays readable, with everything behind it, on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The newest one when the pin was applied.
    pub sequence: Sequence,
    /// When, by the clock of the leader that proposed it.
    pub at: Timestamp,
}

impl Side {
    /// The oldest sequence that is pinned, by a statement or by a leg.
    pub fn pinned(&self) -> Option<Sequence> {
        let legs = self.legs.values().filter_map(Leg::pinned);
        self.pins.values().map(|pin| pin.sequence).chain(legs).min()
    }

    /// Whether the view of `leg` may be read as far as this region is concerned: it follows what is written here; and where this is
    /// a region of a view itself, that may be read, and the leg has what it had then.
    pub fn is_level(&self, leg: &Leg) -> bool {
        let needed = match self.filled.as_ref().map(|filled| &filled.state) {
            None => Sequence(0),
            Some(FillState::Ready(at)) => *at,
            Some(FillState::Filling | FillState::Failed(_)) => return false,
        };
        leg.is_live && leg.done >= Some(needed)
    }

    /// What the versions of rows of `schema` come to.
    pub fn rules(&self, schema: &Arc<Schema>) -> Rules {
        Rules { schema: schema.clone(), ranges: self.ranges.clone(), appends_after: self.appends_after }
    }

    /// The state as it stands in a manifest.
    pub fn encode(&self) -> Bytes {
        postcard::to_allocvec(self).expect("the side state has an encoding").into()
    }

    /// The state that [`Side::encode`] wrote; that of a region without entries for no bytes at all.
    pub fn decode(bytes: &Bytes) -> Result<Side, Error> {
        if bytes.is_empty() {
            return Ok(Side::default());
        }
        postcard::from_bytes(bytes).map_err(|err| Error::Damaged {
            file: "manifest".into(),
            message: format!("its side state cannot be read: {err}"),
        })
    }

    /// Mixes an entry and its outcome into the digest.
    pub fn mix(&mut self, id: LogId, command: &[u8], outcome: &[u8]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let parts = [
            id.term,
            id.index,
            u64::from(crc32fast::hash(command)),
            u64::from(crc32fast::hash(outcome)),
            self.sequence.0,
        ];
        for part in parts {
            self.digest = (self.digest ^ part).wrapping_mul(ODD).rotate_left(29);
        }
    }
}

/// What the region remembers of clients' requests, so that a resent write is answered and not applied again.
///
/// A session begins with its first write. Ids are given out in order and never again; a session that is unknown here is
/// new only if it is newer than every one that was forgotten. An older one is refused: it may have been forgotten, and
/// its writes applied already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    open: BTreeMap<SessionId, Session>,
    /// The newest session that was forgotten; 0: none was.
    forgotten: SessionId,
    /// Counts writes of sessions.
    tick: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    /// The client has the answers of all statements below.
    acknowledged: u64,
    /// Answers of (statement, part) from `acknowledged` on.
    answered: BTreeMap<(u64, u32), Outcome>,
    /// The tick of its last request.
    used: u64,
}

/// The files whose rows were applied, so that none is applied twice, whoever sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingested {
    /// By name: how many files were before it, the checksum of its rows, and what was answered.
    files: BTreeMap<String, (u64, u32, WriteAnswer)>,
    count: u64,
}

impl Ingested {
    /// What was answered when the file was applied; none: it was not, or that is forgotten.
    pub fn look(&self, file: &FileName) -> Option<Outcome> {
        let (_, checksum, answer) = self.files.get(&file.name)?;
        if *checksum == file.checksum {
            return Some(Ok(*answer));
        }
        let message = format!("file {:?} was ingested with other rows: give this one another name", file.name);
        Some(Err(Error::invalid(Invalid::DuplicateFile, message)))
    }

    /// Remembers a file, and forgets the oldest ones while there are more than `limit`.
    pub fn record(&mut self, file: FileName, answer: WriteAnswer, limit: u64) {
        self.files.insert(file.name, (self.count, file.checksum, answer));
        self.count += 1;
        while self.files.len() as u64 > limit.max(1) {
            let oldest = self.files.iter().min_by_key(|(_, (number, ..))| *number).map(|(file, _)| file.clone());
            oldest.and_then(|oldest| self.files.remove(&oldest));
        }
    }
}

/// What the region knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was not applied.
    New,
    /// It was applied, with this outcome.
    Answered(Outcome),
    /// Nothing is known (any more): it must not be applied.
    Forgotten,
}

impl Sessions {
    /// Whether `request` was applied.
    pub fn look(&self, request: RequestId) -> Seen {
        match self.open.get(&request.session) {
            Some(session) => match session.answered.get(&(request.statement, request.part)) {
                Some(outcome) => Seen::Answered(outcome.clone()),
                None if request.statement < session.acknowledged => Seen::Forgotten,
                None => Seen::New,
            },
            None if request.session <= self.forgotten => Seen::Forgotten,
            None => Seen::New,
        }
    }

    /// Answers remembered for the session, of statements from `acknowledged` on: what bounds a client that never acknowledges.
    /// The others go with the next request that is applied.
    pub fn remembered(&self, session: SessionId, acknowledged: u64) -> u64 {
        let needed = |session: &Session| session.answered.range((acknowledged, 0)..).count() as u64;
        self.open.get(&session).map_or(0, needed)
    }

    /// Remembers the outcome of `request`, forgets what its client has acknowledged, and forgets the sessions that were
    /// used least recently while there are more than `limit`.
    pub fn record(&mut self, request: RequestId, acknowledged: u64, outcome: Outcome, limit: u64) {
        self.tick += 1;
        let session = self.open.entry(request.session).or_default();
        session.used = self.tick;
        session.acknowledged = session.acknowledged.max(acknowledged);
        session.answered.insert((request.statement, request.part), outcome);
        session.answered = session.answered.split_off(&(session.acknowledged, 0));
        while self.open.len() as u64 > limit.max(1) {
            let oldest = self.open.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.open.remove(&oldest);
            self.forgotten = self.forgotten.max(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(session: u64, statement: u64, part: u32) -> RequestId {
        RequestId { session: SessionId(session), statement, part }
    }

    fn answer(rows: u64) -> Outcome {
        Ok(WriteAnswer { rows, sequence: Sequence(rows) })
    }

    #[test]
    fn a_resent_request_is_answered_until_its_client_has_the_answer() {
        let mut sessions = Sessions::default();
        sessions.record(request(1, 1, 0), 1, answer(10), 9);
        sessions.record(request(1, 2, 0), 1, answer(20), 9);
        sessions.record(request(1, 2, 1), 1, answer(21), 9);
        assert_eq!(sessions.look(request(1, 1, 0)), Seen::Answered(answer(10)));
        assert_eq!(sessions.look(request(1, 2, 1)), Seen::Answered(answer(21)));
        assert_eq!(sessions.look(request(1, 2, 2)), Seen::New);
        sessions.record(request(1, 3, 0), 2, answer(30), 9);
        assert_eq!(sessions.look(request(1, 1, 0)), Seen::Forgotten, "a late duplicate must not be applied again");
        assert_eq!(sessions.look(request(1, 2, 0)), Seen::Answered(answer(20)));
        assert_eq!([0, 2, 3, 4].map(|acknowledged| sessions.remembered(SessionId(1), acknowledged)), [3, 3, 1, 0]);
    }

    #[test]
    fn the_files_that_came_last_are_remembered() {
        let mut ingested = Ingested::default();
        let answer = |rows| WriteAnswer { rows, sequence: Sequence(rows) };
        for (number, file) in ["c", "a", "b"].into_iter().enumerate() {
            ingested.record(FileName { name: file.to_string(), checksum: 5 }, answer(number as u64), 2);
        }
        let look = |name: &str, checksum| ingested.look(&FileName { name: name.to_string(), checksum });
        assert_eq!(["c", "a", "b"].map(|file| look(file, 5)), [None, Some(Ok(answer(1))), Some(Ok(answer(2)))]);
        assert_eq!(look("a", 6).unwrap().unwrap_err().code(), "duplicate_file");
    }

    #[test]
    fn requests_of_a_session_may_overlap() {
        let mut sessions = Sessions::default();
        sessions.record(request(1, 7, 0), 3, answer(7), 9);
        assert_eq!(sessions.look(request(1, 5, 0)), Seen::New);
        sessions.record(request(1, 5, 0), 3, answer(5), 9);
        assert_eq!(sessions.look(request(1, 7, 0)), Seen::Answered(answer(7)));
    }

    #[test]
    fn a_forgotten_session_is_refused_and_a_newer_one_is_not() {
        let mut sessions = Sessions::default();
        for session in [3, 1, 4] {
            sessions.record(request(session, 1, 0), 1, answer(1), 2);
        }
        assert_eq!(sessions.look(request(3, 1, 0)), Seen::Forgotten, "3 was used least recently");
        assert_eq!(sessions.look(request(1, 1, 0)), Seen::Answered(answer(1)));
        assert_eq!(sessions.look(request(2, 1, 0)), Seen::Forgotten, "2 may have been forgotten, for all we know");
        assert_eq!(sessions.look(request(5, 1, 0)), Seen::New);
    }
}
