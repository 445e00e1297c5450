//! What a committed entry does to the replica.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;

use super::Region;
use super::command::{Command, Outcome, encode_outcome};
use super::request::{WriteAnswer, WriteRequest};
use super::side::Seen;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::raft::{Change, Machine, Membership, Snapshot};
use crate::types::{Key, LogId, Op, Sequence, decode_batch, encode_keys};

#[async_trait]
impl Machine for Region {
    fn flushed(&self) -> (Option<LogId>, Membership) {
        // Asked before anything is applied, when the side state is that of the manifest, and for the snapshot's id.
        let state = self.state.lock().expect("no panic holds the lock");
        (state.version.flushed, state.side.membership.clone())
    }

    async fn apply(&self, id: LogId, change: Change) -> Result<Bytes> {
        match change {
            Change::Blank => self.finish(id, Bytes::new(), Bytes::new(), |_| {}),
            Change::Membership(membership) => {
                self.finish(id, Bytes::new(), Bytes::new(), |side| side.membership = membership);
            }
            Change::Command(command) => return self.apply_command(id, command).await,
        }
        Ok(Bytes::new())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.build_snapshot().await
    }

    async fn prepare_install(&self) -> Result<String> {
        self.empty_incoming().await
    }

    async fn install(&self, snapshot: Snapshot) -> Result<()> {
        self.install_snapshot(snapshot).await
    }
}

impl Region {
    async fn apply_command(&self, id: LogId, command: Bytes) -> Result<Bytes> {
        let Command::Write { write, sessions } = Command::decode(&command)?;
        let outcome = self.apply_write(&write).await?;
        let encoded = encode_outcome(&outcome);
        let answered = encoded.clone();
        self.finish(id, command, encoded, |side| {
            // A repeated request is remembered already; one of a forgotten session must stay forgotten.
            if let (Some(request), false) = (write.request, matches!(outcome, Err(Error::SessionExpired { .. })))
                && side.sessions.look(request) == Seen::New
            {
                side.sessions.record(request, write.acknowledged, outcome, sessions);
            }
        });
        Ok(answered)
    }

    /// Writes the rows, unless the request was applied before or its conditions do not hold. The verdict depends on
    /// nothing but the log: not on what is in memory here and in files there.
    async fn apply_write(&self, write: &WriteRequest) -> Result<Outcome> {
        let replica = self.spec.replica;
        if let Some(request) = write.request {
            let seen = self.state.lock().expect("no panic holds the lock").side.sessions.look(request);
            match seen {
                Seen::New => {}
                Seen::Answered(outcome) => {
                    self.spec.events.emit(|| Event::WriteRepeated { region: self.id, replica });
                    return Ok(outcome);
                }
                Seen::Forgotten => return Ok(Err(Error::SessionExpired { session: request.session })),
            }
        }
        if write.schema_version != self.schema.version {
            return Ok(Err(Error::SchemaChanged { region: self.id, version: self.schema.version }));
        }
        let rows = decode_batch(&write.rows, &self.schema.to_arrow())
            .map_err(|err| Error::Damaged { file: "log".into(), message: err.to_string() })?;
        let keys = encode_keys(&rows, &self.schema.key());
        if !write.expected.is_empty() {
            let changed = self.changed(&keys, &write.expected).await?;
            if !changed.is_empty() {
                let rows = changed.len() as u64;
                self.spec.events.emit(|| Event::WriteConflict { region: self.id, replica, rows });
                return Ok(Err(Error::Conflict { region: self.id, rows: changed }));
            }
        }
        Ok(Ok(self.write(rows, keys, &write.ops)))
    }

    /// Positions of the rows whose newest version is not the expected one.
    async fn changed(&self, keys: &[Key], expected: &[Sequence]) -> Result<Vec<u32>> {
        let newest = self.version().newest(keys, Sequence(u64::MAX)).await?;
        // A deleted row is none: whoever read it saw none.
        let found = newest.into_iter().map(|newest| match newest {
            Some((sequence, Op::Put)) => sequence,
            Some((_, Op::Delete)) | None => Sequence(0),
        });
        let rows = found.zip(expected).enumerate();
        Ok(rows.filter(|(_, (found, expected))| found != *expected).map(|(row, _)| row as u32).collect())
    }

    fn write(&self, rows: RecordBatch, keys: Vec<Key>, ops: &Bytes) -> WriteAnswer {
        let count = rows.num_rows();
        let ops: Vec<Op> = match ops.is_empty() {
            true => vec![Op::Put; count],
            false => ops.iter().map(|byte| Op::from_byte(*byte).expect("checked before it was proposed")).collect(),
        };
        let mut state = self.state.lock().expect("no panic holds the lock");
        let first = Sequence(state.side.sequence.0 + 1);
        state.version.mutable.write(rows, keys, &ops, first);
        state.side.sequence = Sequence(state.side.sequence.0 + count as u64);
        WriteAnswer { rows: count as u64, sequence: state.side.sequence }
    }

    /// Notes that the entry is applied, publishes its rows and says so.
    fn finish(&self, id: LogId, command: Bytes, outcome: Bytes, change: impl FnOnce(&mut super::Side)) {
        let (sequence, digest, is_full) = {
            let mut state = self.state.lock().expect("no panic holds the lock");
            state.side.applied = Some(id);
            change(&mut state.side);
            state.side.mix(id, &command, &outcome);
            let memtable = &state.version.mutable;
            let options = &self.spec.options;
            let is_full =
                memtable.rows() as u64 >= options.memtable_rows || memtable.bytes() as u64 >= options.memtable_bytes;
            (state.side.sequence, state.side.digest, is_full)
        };
        self.visible.send_replace(sequence);
        if is_full {
            self.full.notify_one();
        }
        let (region, replica, incarnation) = (self.id, self.spec.replica, self.spec.incarnation);
        self.spec.events.emit(|| Event::Applied {
            region,
            replica,
            incarnation,
            log_id: id,
            command,
            outcome,
            sequence,
            digest,
        });
    }
}
