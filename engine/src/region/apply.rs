//! What a committed entry does to the replica.

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;

use super::command::{Command, Outcome, encode_outcome};
use super::index::Entries;
use super::request::{WriteAnswer, WriteRequest};
use super::side::Seen;
use super::{Region, State};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::raft::{Change, Machine, Membership, Snapshot};
use crate::types::{Key, LogId, Op, Sequence, decode_batch, encode_keys};

#[async_trait]
impl Machine for Region {
    fn flushed(&self) -> (Option<LogId>, Membership) {
        // Asked before anything is applied, when the side state is that of the manifest, and for the snapshot's id.
        let state = self.state.lock().expect("no panic holds the lock");
        (state.version.flushed.log_id, state.side.membership.clone())
    }

    async fn apply(&self, id: LogId, change: Change) -> Result<Bytes> {
        match change {
            Change::Blank => Ok(self.finish(id, Bytes::new(), |_| Bytes::new())),
            Change::Membership(membership) => Ok(self.finish(id, Bytes::new(), |state| {
                state.side.membership = membership;
                Bytes::new()
            })),
            Change::Command(command) => self.apply_command(id, command).await,
        }
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        self.build_snapshot().await
    }

    async fn prepare_install(&self) -> Result<String> {
        self.new_incoming().await
    }

    async fn install(&self, snapshot: Snapshot) -> Result<()> {
        self.install_snapshot(snapshot).await
    }

    fn found_damaged(&self, err: Error) {
        self.noticed(err);
    }
}

/// What a write comes to.
enum Verdict {
    /// Its rows are to be written.
    Write { rows: RecordBatch, keys: Vec<Key>, ops: Vec<Op>, entries: Vec<Entries> },
    /// Nothing is.
    Decided(Outcome),
}

impl Region {
    async fn apply_command(&self, id: LogId, command: Bytes) -> Result<Bytes> {
        let (write, sessions, files) = match Command::decode(&command)? {
            Command::Write { write, sessions, files } => (write, sessions, files),
            Command::Alter { by, schema } => return Ok(self.apply_alter(id, command, by, *schema)),
            Command::Truncate { by } => return Ok(self.apply_truncate(id, command, by)),
            Command::Expire { schema_version, before } => {
                return Ok(self.apply_expire(id, command, schema_version, before));
            }
            Command::Pin { name, at } => return Ok(self.apply_pin(id, command, name, at)),
            Command::Unpin { name } => return Ok(self.apply_unpin(id, command, &name)),
            Command::Attach { legs, view } => return Ok(self.apply_attach(id, command, legs, &view)),
            Command::Detach { view } => return Ok(self.apply_detach(id, command, view)),
            Command::Control { view, is_paused, rate_limit } => {
                return Ok(self.apply_control(id, command, view, is_paused, rate_limit));
            }
            Command::Leg { leg, epoch, step } => return Ok(self.apply_leg(id, command, leg, epoch, step)),
            Command::Begin => return Ok(self.apply_begin(id, command)),
            Command::Ready => return self.apply_ready(id, command).await,
            Command::Fail { reason } => return Ok(self.apply_fill_state(id, command, Some(reason))),
            Command::Greet { source, epoch } => return Ok(self.apply_greet(id, command, source, epoch)),
            Command::Absorb(batch) => return self.apply_absorb(id, command, batch).await,
            Command::Backfill(chunk) => return self.apply_backfill(id, command, chunk).await,
        };
        let verdict = self.judge(&write).await?;
        Ok(self.finish(id, command, |state| {
            let outcome = match verdict {
                Verdict::Write { rows, keys, ops, entries } => {
                    let answer = state.write(rows, keys, &ops, entries);
                    if let Some(file) = write.file {
                        state.side.ingested.record(file, answer, files);
                    }
                    Ok(answer)
                }
                Verdict::Decided(outcome) => outcome,
            };
            let encoded = encode_outcome(&outcome);
            // A repeated request is remembered already; one of a forgotten session must stay forgotten.
            if let (Some(request), false) = (write.request, matches!(outcome, Err(Error::SessionExpired { .. })))
                && state.side.sessions.look(request) == Seen::New
            {
                state.side.sessions.record(request, write.acknowledged, outcome, sessions);
            }
            encoded
        }))
    }

    /// Whether the rows are to be written: unless the request was applied before or its conditions do not hold. The
    /// verdict depends on nothing but the log: not on what is in memory here and in files there.
    async fn judge(&self, write: &WriteRequest) -> Result<Verdict> {
        let replica = self.spec.replica;
        if let Some(request) = write.request {
            let seen = self.state.lock().expect("no panic holds the lock").side.sessions.look(request);
            match seen {
                Seen::New => {}
                Seen::Answered(outcome) => {
                    self.spec.events.emit(|| Event::WriteRepeated { region: self.id, replica });
                    return Ok(Verdict::Decided(outcome));
                }
                Seen::Forgotten => {
                    return Ok(Verdict::Decided(Err(Error::SessionExpired { session: request.session })));
                }
            }
        }
        if let Some(file) = &write.file
            && let Some(outcome) = self.state.lock().expect("no panic holds the lock").side.ingested.look(file)
        {
            self.spec.events.emit(|| Event::WriteRepeated { region: self.id, replica });
            return Ok(Verdict::Decided(outcome));
        }
        let schema = self.version().schema().clone();
        if write.schema_version != schema.version {
            let version = write.schema_version;
            self.spec.events.emit(|| Event::WriteOutdated { region: self.id, replica, version });
            let changed = Error::SchemaChanged { region: self.id, version: schema.version };
            return Ok(Verdict::Decided(Err(changed)));
        }
        let rows = decode_batch(&write.rows, &schema.to_arrow())
            .map_err(|err| Error::Damaged { file: "log".into(), message: err.to_string() })?;
        let keys = encode_keys(&rows, &schema.key());
        if !write.expected.is_empty() {
            let changed = self.changed(&keys, &write.expected).await?;
            if !changed.is_empty() {
                let rows = changed.len() as u64;
                self.spec.events.emit(|| Event::WriteConflict { region: self.id, replica, rows });
                return Ok(Verdict::Decided(Err(Error::Conflict { region: self.id, rows: changed })));
            }
        }
        let ops: Vec<Op> = match write.ops.is_empty() {
            true => vec![Op::Put; rows.num_rows()],
            false => {
                write.ops.iter().map(|byte| Op::from_byte(*byte).expect("checked before it was proposed")).collect()
            }
        };
        let entries = match self.entries(&rows, &keys, &ops).await {
            Err(err) => return Err(self.until_mended(err).await),
            Ok(entries) => entries,
        };
        Ok(Verdict::Write { rows, keys, ops, entries })
    }

    /// Positions of the rows whose newest version is not the expected one.
    async fn changed(&self, keys: &[Key], expected: &[Sequence]) -> Result<Vec<u32>> {
        let newest = match self.version().newest(keys, Sequence(u64::MAX)).await {
            Err(err) => return Err(self.until_mended(err).await),
            Ok(newest) => newest,
        };
        // A deleted row is none: whoever read it saw none.
        let found = newest.into_iter().map(|newest| match newest {
            Some((sequence, Op::Put)) => sequence,
            Some((_, Op::Delete)) | None => Sequence(0),
        });
        let rows = found.zip(expected).enumerate();
        Ok(rows.filter(|(_, (found, expected))| found != *expected).map(|(row, _)| row as u32).collect())
    }

    /// Makes of the entry what `change` does, in one step of the state: a flush sees all of an entry or nothing, on
    /// whatever thread it runs. Publishes the rows and says so; answers the outcome, which `change` encoded.
    pub(super) fn finish(&self, id: LogId, command: Bytes, change: impl FnOnce(&mut State) -> Bytes) -> Bytes {
        let (outcome, sequence, digest, is_full) = {
            let mut state = self.state.lock().expect("no panic holds the lock");
            let outcome = change(&mut state);
            state.side.applied = Some(id);
            state.side.mix(id, &command, &outcome);
            let sequence = state.side.sequence;
            state.horizon.note(sequence);
            let memtable = &state.version.mutable;
            let (table, node) = (state.version.schema().options(), &self.spec.options);
            let is_full = memtable.rows() as u64 >= table.memtable_rows.unwrap_or(node.memtable_rows)
                || state.version.mutable_bytes() as u64 >= table.memtable_bytes.unwrap_or(node.memtable_bytes);
            (outcome, state.side.sequence, state.side.digest, is_full)
        };
        self.visible.send_replace(sequence);
        self.note_memory();
        if is_full {
            self.full.notify_one();
        }
        let (region, replica, incarnation) = (self.id, self.spec.replica, self.spec.incarnation);
        let told = outcome.clone();
        self.spec.events.detail(|| Event::Applied {
            region,
            replica,
            incarnation,
            log_id: id,
            command,
            outcome: told,
            sequence,
            digest,
        });
        outcome
    }
}

impl State {
    fn write(&mut self, rows: RecordBatch, keys: Vec<Key>, ops: &[Op], entries: Vec<Entries>) -> WriteAnswer {
        let count = rows.num_rows();
        let first = Sequence(self.side.sequence.0 + 1);
        self.index(entries, first);
        self.version.mutable.write(rows, keys, ops, first);
        self.side.sequence = Sequence(self.side.sequence.0 + count as u64);
        WriteAnswer { rows: count as u64, sequence: self.side.sequence }
    }
}
