//! The view's side of a fill: a region of a view takes what regions of its feeders send.
//!
//! For each source (a leg, and a region of its feeder) it remembers how far it is: the *position*, which stands in the same entry
//! as the rows that it covers. A batch is taken if it begins exactly there; one that ends there or before is answered and changes
//! nothing, and whoever sends anything else is told where to begin. So a sender may cut its batches as it likes, begin anew
//! wherever it was stopped, and send twice what it is not sure of: no change of a feeder's row is missed, none counts twice.
//!
//! A source is read by one leader at a time. It says hello, with the epoch of its attempt, by an entry of this region's log: from then
//! on nothing is taken of an earlier one, of its own either, however late it arrives.
//!
//! What rows come to is computed here where the view has aggregates ([`Fold`](crate::view::Fold)): state and position meet in one
//! order. When that cannot be done (a sum that does not fit), the view fails by the entry that shows it, on every replica alike; but
//! as long as it is filled such a group has no row, and may be mended by what comes. What is not mended when the view is to be read
//! fails it then.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::command::{Command, encode_answer, encode_outcome};
use super::request::{Absorb, PositionStatus, Taken, WriteAnswer};
use super::{Region, State};
use crate::error::{Error, Invalid, Result};
use crate::event::Event;
use crate::meta::catalog::columns;
use crate::storage::merge::Merge;
use crate::storage::scan::Scan;
use crate::storage::version::Version;
use crate::types::{
    Condition, FillPosition, Key, LogId, Op, Predicate, Sequence, Source, Value, decode_batch, encode_batch,
    encode_keys,
};
use crate::view::{Broken, Failure, Folded, Groups, Program, Writes};

/// What a region of a view knows of its fill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Whether it may be read.
    pub state: FillState,
    /// How far it is with each source.
    pub sources: BTreeMap<Source, Absorbed>,
    /// Groups that have no row because it cannot be computed. There are none once it may be read.
    pub broken: u64,
}

/// Whether a view may be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FillState {
    /// Not yet.
    #[default]
    Filling,
    /// From this sequence on.
    Ready(Sequence),
    /// No more.
    Failed(String),
}

/// How far a region of a view is with a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absorbed {
    /// The term of the leader of the feeder's region that said hello last.
    pub epoch: u64,
    /// What it has.
    pub position: FillPosition,
    /// Rows of the feeder that were read for what it has of the window it is in.
    pub read: u64,
    /// How many of them all regions of the view had when it took that.
    pub settled: u64,
}

impl Absorbed {
    fn answer(&self) -> Taken {
        Taken::At(self.position.clone(), self.read)
    }
}

impl Region {
    /// Whether it is a view's, and may be read. An error says why not.
    pub(super) fn check_ready(&self) -> Result<()> {
        let state = self.state.lock().expect("no panic holds the lock");
        if state.table.view.is_none() {
            return Ok(());
        }
        let name = &state.table.name;
        match state.side.filled.as_ref().map(|filled| &filled.state) {
            Some(FillState::Ready(_)) => Ok(()),
            Some(FillState::Failed(reason)) => {
                let message = format!("materialized view {name} has failed: {reason}; REFILL or DROP it");
                Err(Error::invalid(Invalid::ViewFailed, message))
            }
            Some(FillState::Filling) | None => {
                let message = format!(
                    "materialized view {name} is still being filled; WAIT FOR MATERIALIZED VIEW {name}, or see SHOW JOBS"
                );
                Err(Error::invalid(Invalid::ViewNotReady, message))
            }
        }
    }

    /// How far it is with each source, and the state of the view here; nothing of a table.
    pub fn fill_status(&self) -> Vec<PositionStatus> {
        let state = self.state.lock().expect("no panic holds the lock");
        let sources = state.side.filled.iter().flat_map(|filled| &filled.sources);
        let status = |(source, absorbed): (&Source, &Absorbed)| PositionStatus {
            region: self.id,
            source: *source,
            epoch: absorbed.epoch,
            position: absorbed.position.clone(),
            read: absorbed.read,
            settled: absorbed.settled,
        };
        sources.map(status).collect()
    }

    /// Applies the entry `id`: the view begins here. It has the rows that it has before any feeder has one.
    pub(super) fn apply_begin(&self, id: LogId, command: Bytes) -> Bytes {
        let initial = self.program().and_then(|program| program.initial(Broken::Hidden).transpose());
        let mut written = None;
        let outcome = self.finish(id, command, |state| {
            if state.side.filled.is_none() {
                let mut filled = Filled::default();
                match initial {
                    Some(Ok(Folded { writes, broken })) => {
                        written = Some(state.put(writes));
                        filled.broken = more(filled.broken, broken);
                    }
                    Some(Err(failure)) => filled.state = FillState::Failed(failure.message),
                    None => {}
                }
                state.side.filled = Some(filled);
            }
            encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: state.side.sequence }))
        });
        self.tell_written(id, written);
        outcome
    }

    /// Applies the entry `id`: the view may be read, if all its groups can be shown. If one cannot that will not be mended by
    /// the rest of a window, the view has failed, and the answer says so.
    pub(super) async fn apply_ready(&self, id: LogId, command: Bytes) -> Result<Bytes> {
        let (broken, is_within) = {
            let state = self.state.lock().expect("no panic holds the lock");
            let filled = state.side.filled.as_ref().filter(|filled| filled.state == FillState::Filling);
            let is_within = |filled: &Filled| filled.sources.values().any(|one| one.position.within.is_some());
            (filled.map_or(0, |filled| filled.broken), filled.is_some_and(is_within))
        };
        if broken == 0 {
            return Ok(self.apply_fill_state(id, command, None));
        }
        if is_within {
            let what = format!("{broken} groups of the view cannot be computed of what it has by now");
            return Ok(self.finish(id, command, |_| encode_outcome(&Err(Error::Busy { what }))));
        }
        let message = match self.broken_group().await {
            Err(err) => return Err(self.until_mended(err).await),
            Ok(message) => message,
        };
        let reason = if broken == 1 { message } else { format!("{message}; so it is with {broken} groups") };
        Ok(self.apply_fill_state(id, command, Some(reason)))
    }

    /// Applies the entry `id`: the view may be read, or may not any more.
    pub(super) fn apply_fill_state(&self, id: LogId, command: Bytes, failed: Option<String>) -> Bytes {
        let is_asked_to_fail = matches!(Command::decode(&command), Ok(Command::Fail { .. }));
        let mut is_new = false;
        let reason = failed.clone();
        let outcome = self.finish(id, command, |state| {
            let sequence = state.side.sequence;
            let filled = state.side.filled.get_or_insert_default();
            let next = match (&filled.state, failed) {
                (FillState::Failed(_), _) => None,
                (_, Some(reason)) => Some(FillState::Failed(reason)),
                (FillState::Filling, None) => Some(FillState::Ready(sequence)),
                (FillState::Ready(_), None) => None,
            };
            is_new = next.is_some();
            filled.state = next.unwrap_or_else(|| filled.state.clone());
            encode_outcome(&match &filled.state {
                FillState::Failed(reason) if !is_asked_to_fail => {
                    Err(Error::invalid(Invalid::ViewFailed, reason.clone()))
                }
                _ => Ok(WriteAnswer { rows: 0, sequence }),
            })
        });
        if is_new {
            let (region, replica) = (self.id, self.spec.replica);
            match reason {
                None => self.spec.events.emit(|| Event::ViewReady { region, replica }),
                Some(reason) => self.spec.events.emit(|| Event::ViewFailed { region, replica, reason }),
            }
        }
        outcome
    }

    /// Applies the entry `id`: the leader of the source's region says hello.
    pub(super) fn apply_greet(&self, id: LogId, command: Bytes, source: Source, epoch: u64) -> Bytes {
        self.finish(id, command, |state| {
            let Some(filled) = &mut state.side.filled else { return encode_answer(&Taken::Gone) };
            if let FillState::Failed(reason) = &filled.state {
                return encode_answer(&Taken::Failed { message: reason.clone() });
            }
            let absorbed = filled.sources.entry(source).or_default();
            if epoch < absorbed.epoch {
                return encode_answer(&Taken::Deposed { epoch: absorbed.epoch });
            }
            absorbed.epoch = epoch;
            encode_answer(&absorbed.answer())
        })
    }

    /// Applies the entry `id`: a batch.
    pub(super) async fn apply_absorb(&self, id: LogId, command: Bytes, batch: Absorb) -> Result<Bytes> {
        let (refused, broken) = {
            let state = self.state.lock().expect("no panic holds the lock");
            let is_ready = |filled: &Filled| matches!(filled.state, FillState::Ready(_));
            let is_ready = state.side.filled.as_ref().is_some_and(is_ready);
            (state.refusal(&batch), if is_ready { Broken::Fails } else { Broken::Hidden })
        };
        let source = batch.source;
        if let Some(refused) = refused {
            let (region, replica, answer) = (self.id, self.spec.replica, format!("{refused:?}"));
            self.spec.events.emit(|| Event::BatchRefused { region, replica, feeder: source.feeder, answer });
            return Ok(self.finish(id, command, |_| encode_answer(&refused)));
        }
        let rows = batch.changes;
        let folded = match self.absorbed(&batch, broken).await {
            Err(err) => return Err(self.until_mended(err).await),
            Ok(folded) => folded,
        };
        let (mut position, mut failed, mut written, mut broken) = (None, None, None, 0);
        let outcome = self.finish(id, command, |state| {
            let answer = match folded {
                Ok(folded) => {
                    let Folded { writes, broken: more } = folded;
                    broken = more;
                    written = Some(state.put(writes));
                    position = Some(batch.to.clone());
                    Taken::At(batch.to.clone(), batch.read)
                }
                Err(failure) => {
                    failed = Some(failure.message.clone());
                    Taken::Failed { message: failure.message }
                }
            };
            let filled = state.side.filled.as_mut().expect("it was there when the batch was judged");
            match &failed {
                Some(message) => filled.state = FillState::Failed(message.clone()),
                None => {
                    filled.broken = more(filled.broken, broken);
                    let absorbed = filled.sources.get_mut(&source).expect("it was there when the batch was judged");
                    absorbed.position = batch.to;
                    (absorbed.read, absorbed.settled) = (batch.read, batch.settled);
                }
            }
            encode_answer(&answer)
        });
        self.tell_written(id, written);
        let (region, replica, feeder) = (self.id, self.spec.replica, source.feeder);
        if let Some(reason) = failed {
            self.spec.events.emit(|| Event::ViewFailed { region, replica, reason });
        }
        if let Some(position) = position {
            let position = position.to_string();
            self.spec.events.emit(|| Event::BatchAbsorbed { region, replica, feeder, rows, position });
        }
        Ok(outcome)
    }

    /// What a batch comes to in the rows that are there.
    async fn absorbed(&self, batch: &Absorb, broken: Broken) -> Result<Result<Folded, Failure>> {
        let damaged = |message: String| Error::Damaged { file: "log".into(), message };
        let Some(program) = self.program() else { return Err(damaged("a batch for a region of a table".into())) };
        let version = self.version();
        match program.fold() {
            Some(fold) => {
                let delta = decode_batch(&batch.rows, program.delta()).map_err(|err| damaged(err.to_string()))?;
                fold.apply(&delta, &Stored { version: &version }, broken).await
            }
            None => {
                let rows = decode_batch(&batch.rows, program.delta());
                let rows = rows.map_err(|err| damaged(err.to_string()))?;
                let ops: Option<Vec<Op>> = batch.ops.iter().map(|byte| Op::from_byte(*byte)).collect();
                let ops = ops.filter(|ops| ops.len() == rows.num_rows());
                let ops = ops.ok_or_else(|| damaged("the ops of a batch are not those of its rows".into()))?;
                Ok(Ok(Folded { writes: Writes { rows, ops }, broken: 0 }))
            }
        }
    }

    /// Why a group cannot be shown: the first in the order of their keys.
    async fn broken_group(&self) -> Result<String> {
        let unknown = || Error::Damaged {
            file: "side state".into(),
            message: "groups are said to be broken, and none is".into(),
        };
        let fold = self.program().and_then(Program::fold).ok_or_else(unknown)?;
        let version = self.version();
        let columns = fold.groups().chain([columns::STATE]).map(str::to_string).collect();
        let part = Predicate { column: columns::PART.into(), condition: Condition::Eq(Value::UInt(1)) };
        let scan = Scan { columns, predicates: vec![part], upto: Sequence(u64::MAX), ..Scan::default() };
        let mut merge = version.scan(&scan, 1_000)?;
        while let Some(rows) = merge.next().await? {
            if let Some(failure) = fold.first_broken(&rows.batch)? {
                return Ok(failure.message);
            }
        }
        Err(unknown())
    }

    /// Says what was written, row by row.
    fn tell_written(&self, id: LogId, written: Option<Writes>) {
        let (region, replica, sequence) = (self.id, self.spec.replica, self.visible());
        let Some(Writes { rows, ops }) = written else { return };
        self.spec.events.detail(|| {
            let ops = ops.iter().map(|op| *op as u8).collect::<Vec<u8>>().into();
            Event::ViewWritten { region, replica, log_id: id, rows: encode_batch(&rows), ops, sequence }
        });
    }

    fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }
}

impl State {
    /// Why a batch is not taken; none: it is.
    fn refusal(&self, batch: &Absorb) -> Option<Taken> {
        let Some(filled) = &self.side.filled else { return Some(Taken::Gone) };
        if let FillState::Failed(reason) = &filled.state {
            return Some(Taken::Failed { message: reason.clone() });
        }
        let Some(absorbed) = filled.sources.get(&batch.source) else { return Some(Taken::Gone) };
        if batch.epoch != absorbed.epoch {
            return Some(Taken::Deposed { epoch: absorbed.epoch });
        }
        let is_next = batch.from == absorbed.position && batch.to > batch.from;
        (!is_next).then(|| absorbed.answer())
    }

    /// Writes rows, each as a version of its own; hands them back for whoever wants to see them.
    fn put(&mut self, writes: Writes) -> Writes {
        let Writes { rows, ops } = &writes;
        let keys = encode_keys(rows, &self.version.schema().key());
        let first = Sequence(self.side.sequence.0 + 1);
        self.side.sequence = Sequence(self.side.sequence.0 + rows.num_rows() as u64);
        self.version.mutable.write(rows.clone(), keys, ops, first);
        writes
    }
}

/// So many groups more are broken.
fn more(broken: u64, by: i64) -> u64 {
    broken.checked_add_signed(by).expect("no group is mended that was not broken")
}

/// The groups of a view as its region has them.
struct Stored<'a> {
    version: &'a Version,
}

#[async_trait]
impl Groups for Stored<'_> {
    async fn states(&self, keys: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
        let mut sorted = keys.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let columns = vec![columns::STATE.to_string()];
        let only = Some(sorted.into());
        let scan = Scan { columns, upto: Sequence(u64::MAX), only, ..Scan::default() };
        let mut found = BTreeMap::new();
        let mut merge = self.version.scan(&scan, keys.len().clamp(1, 8_192))?;
        while let Some(rows) = merge.next().await? {
            let cells = state_cells(&rows.batch, 0);
            found.extend(rows.keys.into_iter().zip(cells));
        }
        Ok(keys.iter().map(|key| found.get(key).cloned().flatten()).collect())
    }

    async fn values(
        &self,
        group: &[Value],
        part: u8,
        behind: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let schema = self.version.schema();
        let key = schema.key();
        let name = |at: &usize| schema.columns()[*at].name.clone();
        let equals = |(at, cell): (&usize, &Value)| Predicate {
            column: name(at),
            condition: if cell.is_null() { Condition::IsNull } else { Condition::Eq(cell.clone()) },
        };
        let mut predicates: Vec<Predicate> = key.iter().zip(group).map(equals).collect();
        let part = Condition::Eq(Value::UInt(part.into()));
        predicates.push(Predicate { column: columns::PART.into(), condition: part });
        if let Some(behind) = behind {
            let condition = Condition::Gt(Value::Binary(behind.to_vec()));
            predicates.push(Predicate { column: columns::VALUE.into(), condition });
        }
        let columns = vec![columns::VALUE.to_string(), columns::STATE.to_string()];
        let scan = Scan { columns, predicates, upto: Sequence(u64::MAX), ..Scan::default() };
        let mut merge: Merge = self.version.scan(&scan, most.max(1))?;
        let mut values = Vec::new();
        while values.len() < most
            && let Some(rows) = merge.next().await?
        {
            let cells = state_cells(&rows.batch, 0).into_iter().zip(state_cells(&rows.batch, 1));
            values.extend(cells.filter_map(|(value, state)| Some((value?, state?))));
        }
        values.truncate(most);
        Ok(values)
    }
}

fn state_cells(batch: &RecordBatch, column: usize) -> Vec<Option<Vec<u8>>> {
    let cells = batch.column(column).as_binary::<i32>();
    (0..cells.len()).map(|row| (!cells.is_null(row)).then(|| cells.value(row).to_vec())).collect()
}
