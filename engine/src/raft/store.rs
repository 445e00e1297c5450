//! openraft's log storage over the node's log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};

use super::group::Surroundings;
use super::stall::Stall;
use super::types::{
    RaftEntry, RaftLogId, RaftVote, Types, config, decode_payload, encode_payload, log_id, raft_log_id, raft_vote, vote,
};
use crate::event::{Event, Events};
use crate::log::{Entry, ReplicaLog};
use crate::types::{RegionId, ReplicaId};

/// The log of one replica. Clones are readers.
#[derive(Clone)]
pub struct Store {
    log: ReplicaLog,
    region: RegionId,
    replica: ReplicaId,
    events: Events,
    /// Bytes that one read answers with at most, unless the reader insists on all.
    read_bytes: u64,
    stall: Arc<Stall>,
    /// No vote was saved since the replica was opened.
    is_reborn: Arc<AtomicBool>,
}

impl Store {
    pub fn new(log: ReplicaLog, region: RegionId, around: &Surroundings, stall: Arc<Stall>) -> Store {
        let (events, read_bytes) = (around.events.clone(), around.options.rpc_frame_bytes / 4);
        let (replica, is_reborn) = (log.replica(), Arc::new(AtomicBool::new(true)));
        Store { log, region, replica, events, read_bytes, stall, is_reborn }
    }

    async fn read(&self, from: u64, to: u64, max_bytes: u64) -> io::Result<Vec<RaftEntry>> {
        let entries = self.log.read(from..to, max_bytes).await.map_err(io::Error::other)?;
        entries
            .into_iter()
            .map(|entry| {
                let payload = decode_payload(&entry.payload).map_err(io::Error::other)?;
                Ok(RaftEntry::new(raft_log_id(entry.id), payload))
            })
            .collect()
    }

    /// What an entry means the moment it stands in the log.
    fn announce(&self, entry: &RaftEntry) {
        match &entry.payload {
            // Only a leader appends the first entry of its own term.
            EntryPayload::Blank => {
                let term = *entry.log_id.leader_id;
                let leads =
                    self.log.state().vote.is_some_and(|vote| vote.voted_for == self.replica && vote.term == term);
                if leads {
                    let (region, replica) = (self.region, self.replica);
                    self.events.emit(|| Event::BecameLeader { region, replica, term });
                }
            }
            EntryPayload::Membership(new) => self.events.emit(|| Event::MembershipEffective {
                replica: self.replica,
                log_id: log_id(&entry.log_id),
                voters: config(None, new).voters.into_iter().map(|set| set.into_iter().collect()).collect(),
            }),
            EntryPayload::Normal(_) => {}
        }
    }
}

impl RaftLogReader<Types> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntry>> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        self.read(start, end, self.read_bytes).await
    }

    /// A replica that led when it stopped must not lead the same term again, as openraft would have it: entries that it
    /// sent to others before they were durable here may be lost, and it would give their places to others. Until it saves
    /// a vote anew its own victory is forgotten, and it has to win another term.
    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        let mut vote = self.log.state().vote;
        if let Some(vote) = &mut vote
            && vote.voted_for == self.replica
            && self.is_reborn.load(Ordering::Relaxed)
        {
            vote.committed = false;
        }
        Ok(vote.map(raft_vote))
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(raft_log_id),
            last_log_id: state.last.or(state.purged).map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, new: &RaftVote) -> io::Result<()> {
        self.log.save_vote(vote(new)).await.map_err(io::Error::other)?;
        self.is_reborn.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        match committed {
            Some(committed) => self.log.save_committed(log_id(&committed)).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.state().committed.map(raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut stored = Vec::new();
        for entry in entries {
            self.announce(&entry);
            stored.push(Entry { id: log_id(&entry.log_id), payload: encode_payload(&entry.payload) });
        }
        let flushed = self.log.append(stored);
        // The entries can be read now; raft is told when they are durable, and goes on meanwhile.
        let stall = self.stall.clone();
        tokio::spawn(async move { callback.io_completed(stall.follow(flushed).await.map_err(io::Error::other)) });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> io::Result<()> {
        self.log.truncate_after(last.as_ref().map(log_id)).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.log.purge(log_id(&upto)).await.map_err(io::Error::other)
    }
}
