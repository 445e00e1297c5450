//! One replica's membership in its raft group: proposing, reading, moving leadership, answering its peers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use openraft::error::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, LinearizableReadError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, Instant as _, Raft, ReadPolicy, SnapshotPolicy};
use tokio::time::{sleep, timeout};

use super::machine::{Driver, Machine};
use super::members::{self, Step};
use super::network::{Network, Piece, Progress, Receiver, decode, encode};
use super::stall::{Follower, Stall, heir};
use super::store::Store;
use super::types::{Membership, Proposal, Types, log_id, membership, raft_log_id, raft_membership, raft_vote, vote};
use crate::disk::Disk;
use crate::error::{Error, Invalid, Result};
use crate::event::{Event, Events};
use crate::log::ReplicaLog;
use crate::options::Options;
use crate::server::message::{RaftVerb, Replacement};
use crate::server::router::Router;
use crate::types::{LogId, NodeId, RegionId, ReplicaId};

/// What a group needs of its node.
#[derive(Clone)]
pub struct Surroundings {
    /// Sends to the other replicas.
    pub router: Arc<Router>,
    /// Where snapshots are read from and received to.
    pub disk: Arc<dyn Disk>,
    /// Timers and sizes.
    pub options: Arc<Options>,
    /// What happens is said here.
    pub events: Events,
}

/// A running replica of a raft group. Dropping it does not stop it: [`Group::stop`] does.
pub struct Group {
    region: RegionId,
    replica: ReplicaId,
    raft: Raft<Types, Driver>,
    machine: Arc<dyn Machine>,
    receiver: Receiver,
    stall: Arc<Stall>,
    disk: Arc<dyn Disk>,
    events: Events,
    /// A log that is behind by no more than that is as good as caught up.
    batch: u64,
}

/// What a replica believes of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it leads.
    pub is_leader: bool,
    /// Who leads.
    pub leader: Option<(ReplicaId, NodeId)>,
    /// The newest term it knows.
    pub term: u64,
    /// The last entry it applied.
    pub applied: Option<LogId>,
    /// The newest membership in its log.
    pub membership: Membership,
}

impl Group {
    /// Starts the replica: its log is replayed up to the committed index that it remembers, and it takes part.
    pub async fn open(
        region: RegionId,
        replica: ReplicaId,
        log: ReplicaLog,
        machine: Arc<dyn Machine>,
        around: &Surroundings,
    ) -> Result<Group> {
        let Surroundings { disk, options, events, .. } = around;
        let batch = options.raft_batch_entries;
        let config = openraft::Config {
            cluster_name: region.to_string(),
            heartbeat_interval: options.heartbeat_ms,
            election_timeout_min: options.election_min_ms,
            election_timeout_max: options.election_max_ms,
            max_payload_entries: options.raft_batch_entries,
            // A flush is the snapshot: the region says when.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: options.raft_keep_entries,
            purge_batch_size: 1,
            replication_lag_threshold: options.raft_keep_entries.max(options.raft_batch_entries),
            enable_pre_vote: Some(true),
            ..openraft::Config::default()
        };
        let config =
            config.validate().map_err(|err| Error::Busy { what: format!("raft refuses its options: {err}") })?;
        let stall = Arc::new(Stall::new(Duration::from_millis(options.election_max_ms)));
        let store = Store::new(log, region, around, stall.clone());
        let network = Network { region, replica, machine: machine.clone(), around: around.clone() };
        let driver = Driver::new(machine.clone());
        let raft = Raft::new(replica.0, Arc::new(config), network, store, driver).await.map_err(fatal)?;
        let (receiver, disk, events) = (Receiver::default(), disk.clone(), events.clone());
        Ok(Group { region, replica, raft, machine, receiver, stall, disk, events, batch })
    }

    /// The group.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// Forms the group of `members`, unless it is formed already. Asked of one member, once in the life of the group.
    pub async fn initialize(&self, members: &BTreeMap<ReplicaId, NodeId>) -> Result<()> {
        let members: BTreeMap<u64, u64> = members.iter().map(|(replica, node)| (replica.0, node.0)).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(err))) => {
                Err(Error::invalid(Invalid::Request, err.to_string()))
            }
            Err(RaftError::Fatal(err)) => Err(fatal(err)),
        }
    }

    /// Has `command` committed and applied, and answers its outcome. A caller that gives up does not know whether it
    /// will be.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes> {
        match self.raft.client_write(Proposal(command)).await {
            Ok(done) => Ok(done.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(self.not_leader(&to)),
            Err(RaftError::APIError(err)) => Err(Error::Unknown { message: err.to_string() }),
            Err(RaftError::Fatal(err)) => {
                Err(Error::Unknown { message: format!("replica {} stopped: {err}", self.replica) })
            }
        }
    }

    /// Waits until everything that was committed anywhere when it was called is applied here (ReadIndex): what is read
    /// now is linearizable. Only the leader can say so.
    pub async fn read_index(&self) -> Result<()> {
        self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map(drop).map_err(|err| self.unread(err))
    }

    /// Everything up to here, and nothing that was answered before it was called is behind it. Only the leader can say so, and
    /// a majority has confirmed that it leads; another replica that has applied it has all that was answered before it asked.
    pub async fn committed(&self) -> Result<LogId> {
        let read = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|err| self.unread(err))?;
        Ok(log_id(read.read_log_id().log_id()))
    }

    /// Waits until the entry is applied here.
    pub async fn applied(&self, entry: LogId) -> Result<()> {
        let mut metrics = self.raft.metrics();
        while metrics.borrow_watched().last_applied.as_ref().is_none_or(|applied| applied.index < entry.index) {
            metrics.changed().await.map_err(|_| Error::Stopped)?;
        }
        Ok(())
    }

    fn unread(&self, err: RaftError<Types, LinearizableReadError<Types>>) -> Error {
        match err {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => self.not_leader(&to),
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
                Error::NotLeader { region: self.region, hint: None }
            }
            RaftError::Fatal(err) => fatal(err),
        }
    }

    /// Asks `to` to stand for election at once. Only the leader can; whether `to` wins shows later.
    pub async fn transfer(&self, to: ReplicaId) -> Result<()> {
        if !self.raft.is_leader() {
            let leader = self.standing().leader;
            return Err(Error::NotLeader { region: self.region, hint: leader });
        }
        let (region, from) = (self.region, self.replica);
        if to == from {
            return Ok(());
        }
        self.events.emit(|| Event::TransferStarted { region, from, to });
        self.raft.trigger().transfer_leader(to.0).await.map_err(fatal)
    }

    /// Begins to send the log to the replica that joins. Only the leader can. Done when that is durable on a quorum and applied
    /// here; fine if it was done before.
    pub async fn add_learner(&self, change: &Replacement) -> Result<()> {
        self.change(change, |membership, _| members::to_learner(membership, change)).await
    }

    /// Gives the vote of the replica that leaves to the one that joins, which must be a learner and not be behind (`Busy`). Only
    /// the leader can; if it is the one that leaves, it hands over first. Done when that is durable on a quorum and applied here;
    /// fine if it was done before.
    pub async fn change_members(&self, change: &Replacement) -> Result<()> {
        self.change(change, |membership, is_close| members::to_voter(membership, change, is_close)).await
    }

    /// Sends nothing any more to the replica that was to join. Only the leader can. Refused when it has a vote: as `Request`, or as `Mismatch` if the other voters are none of this change.
    pub async fn remove_learner(&self, change: &Replacement) -> Result<()> {
        self.change(change, |membership, _| members::to_nothing(membership, change)).await
    }

    /// Takes the step that `decide` makes of the membership as it is.
    async fn change(&self, change: &Replacement, decide: impl FnOnce(&Membership, bool) -> Step) -> Result<()> {
        if !self.raft.is_leader() {
            return Err(Error::NotLeader { region: self.region, hint: self.standing().leader });
        }
        // Who has been deposed may know of older members than there are: what is said of them here must be so.
        self.read_index().await?;
        let standing = self.standing();
        let seen = &standing.membership;
        let busy = |what: String| Err(Error::Busy { what: format!("region {}: {what}", self.region) });
        let (joins, node) = change.joins;
        let changes = match decide(seen, self.is_close(joins, seen.log_id)) {
            // It stands in the log here; it is so when it is committed.
            Step::Done if standing.applied < seen.log_id => return busy("its members are being changed".into()),
            Step::Done => return Ok(()),
            Step::Behind => return busy(format!("replica {joins} is behind")),
            Step::Refused => {
                let message = format!("region {} has the members {seen:?}, which {change:?} is not of", self.region);
                return Err(Error::invalid(Invalid::Mismatch, message));
            }
            Step::Votes => {
                let message = format!("replica {joins} of region {} has a vote", self.region);
                return Err(Error::invalid(Invalid::Request, message));
            }
            Step::Add { strays } => {
                let strays = strays.iter().map(|id| id.0).collect();
                let learner = [(joins.0, node.0)].into();
                ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(strays), ChangeMembers::AddNodes(learner)])
            }
            Step::Vote { voters } => {
                // Who leaves would have to hand over in any case: the fewer moments without a leader.
                if change.leaves.0 == self.replica
                    && let Some(heir) = heir(&self.followers(), self.stall.patience())
                {
                    self.transfer(heir).await?;
                    return busy(format!("leader {} hands over before it leaves", self.replica));
                }
                ChangeMembers::ReplaceAllVoters(voters.iter().map(|id| id.0).collect())
            }
            Step::Remove => ChangeMembers::RemoveNodes([joins.0].into()),
        };
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: seen.log_id.map(raft_log_id) };
        match self.raft.change_membership_if(changes, false, [unchanged]).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(self.not_leader(&to)),
            // Another change was faster, or is not committed yet.
            Err(RaftError::APIError(
                err @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)),
            )) => busy(err.to_string()),
            Err(RaftError::APIError(err)) => Err(Error::Unknown { message: err.to_string() }),
            Err(RaftError::Fatal(err)) => {
                Err(Error::Unknown { message: format!("replica {} stopped: {err}", self.replica) })
            }
        }
    }

    /// Whether the log of `replica`, which became a member by the entry `added` or before, is close behind this one.
    fn is_close(&self, replica: ReplicaId, added: Option<LogId>) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|matched| matched.get(&replica.0)?.as_ref().map(log_id));
        members::is_close(matched, metrics.last_log_index, added, self.batch)
    }

    /// Hands leadership over whenever this replica leads and its log does not get on: appends are not durable for longer than
    /// an election timeout. Runs until it is dropped or the replica has stopped.
    pub async fn hand_over_when_stalled(&self) {
        loop {
            let late = self.stall.noticed().await;
            if self.raft.is_leader() {
                let (region, replica) = (self.region, self.replica);
                self.events.emit(|| Event::LogStalled { region, replica, late });
                if let Some(heir) = heir(&self.followers(), self.stall.patience())
                    && self.transfer(heir).await.is_err()
                {
                    return;
                }
            }
            // Time for the heir to win, for another one to be there, or for the log to get on.
            sleep(self.stall.patience()).await;
        }
    }

    /// Hands leadership over if this replica leads and there is somebody to hand over to. Waits until that has won, an election
    /// timeout at most.
    pub async fn hand_over(&self) {
        if let Some(heir) = heir(&self.followers(), self.stall.patience())
            && self.transfer(heir).await.is_ok()
        {
            let _ = timeout(self.stall.patience(), self.deposed()).await;
        }
    }

    /// Hands leadership over whenever this replica leads, as soon as there is somebody to hand over to. Runs until it is dropped.
    pub async fn keep_handing_over(&self) -> Infallible {
        let mut metrics = self.raft.metrics();
        loop {
            while !metrics.borrow_watched().state.is_leader() {
                if metrics.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
            self.hand_over().await;
            // Time for the heir to win, or for somebody to be there.
            sleep(self.stall.patience()).await;
        }
    }

    /// Whether it stands for election when it hears of no leader. It votes, and may be asked to lead, in any case.
    pub fn stand(&self, stands: bool) {
        self.raft.runtime_config().elect(stands);
    }

    /// The other voters. None of them if this replica does not lead.
    fn followers(&self) -> Vec<Follower> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (Some(matched), Some(heard)) = (&metrics.replication, &metrics.heartbeat) else { return Vec::new() };
        // While the membership changes, those that stay have a vote in both sets.
        let membership = membership(&metrics.membership_config);
        let (Some(stay), sets) = (membership.voters.last(), &membership.voters) else { return Vec::new() };
        let others = stay.iter().filter(|id| **id != self.replica && sets.iter().all(|set| set.contains(id)));
        let follower = |id: &ReplicaId| Follower {
            replica: *id,
            matched: matched.get(&id.0).and_then(Option::as_ref).map(log_id),
            silent: heard.get(&id.0).and_then(Option::as_ref).map(|at| at.elapsed()),
        };
        others.map(follower).collect()
    }

    /// Tells raft that the machine's files reach further: the log before may be purged.
    pub async fn flushed(&self) -> Result<()> {
        self.raft.trigger().snapshot().await.map_err(fatal)
    }

    /// What this replica believes of its group.
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = membership(&metrics.membership_config);
        let leader = metrics.current_leader.map(ReplicaId);
        Standing {
            is_leader: metrics.state.is_leader(),
            leader: leader.and_then(|leader| Some((leader, *membership.replicas.get(&leader)?))),
            term: metrics.current_term,
            applied: metrics.last_applied.as_ref().map(log_id),
            membership,
        }
    }

    /// Waits until `standing` differs from what it was, or the replica stopped.
    pub async fn changed(&self, seen: &Standing) {
        let mut metrics = self.raft.server_metrics();
        while self.standing() == *seen {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until this replica does not lead, or has stopped.
    pub async fn deposed(&self) {
        let mut metrics = self.raft.metrics();
        while metrics.borrow_watched().state.is_leader() {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until the replica has stopped by itself, and says why: a failed write to the log, a failed apply.
    pub async fn died(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(err) = &metrics.borrow_watched().running_state {
                return err.to_string();
            }
            if metrics.changed().await.is_err() {
                return "its core ended".into();
            }
        }
    }

    /// Answers a message of another replica of the group.
    pub async fn answer(&self, verb: RaftVerb, message: &Bytes) -> Result<Bytes> {
        match verb {
            RaftVerb::Append => {
                Ok(encode(&self.raft.append_entries(decode(message)?).await.map_err(|err| raft_error(&err))?))
            }
            RaftVerb::Vote => Ok(encode(&self.raft.vote(decode(message)?).await.map_err(|err| raft_error(&err))?)),
            RaftVerb::PreVote => {
                Ok(encode(&self.raft.pre_vote(decode(message)?).await.map_err(|err| raft_error(&err))?))
            }
            RaftVerb::Transfer => Ok(encode(&self.raft.handle_transfer_leader(decode(message)?).await.map_err(fatal)?)),
            RaftVerb::Snapshot => Ok(encode(&self.receive(decode(message)?).await?)),
        }
    }

    async fn receive(&self, piece: Piece) -> Result<Progress> {
        let Some((transfer, snapshot)) = self.receiver.take(piece, self.machine.as_ref(), self.disk.as_ref()).await?
        else {
            return Ok(Progress::Next);
        };
        let meta = openraft::SnapshotMeta {
            last_log_id: snapshot.last.map(super::types::raft_log_id),
            last_membership: raft_membership(&snapshot.membership),
        };
        let snapshot = openraft::Snapshot { meta, snapshot };
        let installed = self.raft.install_full_snapshot(raft_vote(transfer.vote), snapshot).await.map_err(fatal)?;
        Ok(Progress::Installed(vote(&installed.vote)))
    }

    /// Stops taking part and waits until nothing of it runs any more.
    pub async fn stop(&self) {
        if let Err(err) = self.raft.shutdown().await {
            tracing::warn!(replica = %self.replica, %err, "a replica did not stop cleanly");
        }
    }

    fn not_leader(&self, to: &ForwardToLeader<Types>) -> Error {
        let hint = to.leader_id.zip(to.leader_node).map(|(replica, node)| (ReplicaId(replica), NodeId(node)));
        // A leader that steps down points at itself; that is no hint.
        let hint = hint.filter(|(replica, _)| *replica != self.replica);
        Error::NotLeader { region: self.region, hint }
    }
}

fn fatal(_: Fatal<Types>) -> Error {
    Error::Stopped
}

fn raft_error(err: &RaftError<Types>) -> Error {
    tracing::debug!(%err, "a replica that stopped was asked");
    Error::Stopped
}
