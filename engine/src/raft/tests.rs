//! Groups of three replicas, each with a log on a disk in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::disk::memory::{Fault, MemoryDisk};
use crate::error::{Error, Result};
use crate::event::{Event, Events, Listen};
use crate::log::Log;
use crate::options::Options;
use crate::server::message::{Replacement, Request, Response};
use crate::server::router::{Remote, Router};
use crate::types::{LogId, NodeId, RegionId, ReplicaId};

/// Remembers nothing: its state is as of no entry.
struct Nothing;

#[async_trait]
impl Machine for Nothing {
    fn flushed(&self) -> (Option<LogId>, Membership) {
        (None, Membership::default())
    }

    async fn apply(&self, _: LogId, _: Change) -> Result<Bytes> {
        Ok(Bytes::new())
    }

    async fn snapshot(&self) -> Result<Snapshot> {
        Err(Error::Stopped)
    }

    async fn prepare_install(&self) -> Result<String> {
        Err(Error::Stopped)
    }

    async fn install(&self, _: Snapshot) -> Result<()> {
        Err(Error::Stopped)
    }

    fn found_damaged(&self, _: Error) {}
}

/// The way from everybody to everybody, and what happens.
#[derive(Default)]
struct World {
    groups: Mutex<BTreeMap<ReplicaId, Arc<Group>>>,
    events: Mutex<Vec<Event>>,
}

#[async_trait]
impl Remote for World {
    async fn call(&self, _: NodeId, request: Request, within: Duration) -> Result<Response> {
        let Request::Raft { to, verb, message } = request else { return Err(Error::Stopped) };
        let group = self.groups.lock().unwrap().get(&to).cloned().ok_or(Error::Stopped)?;
        match timeout(within, group.answer(verb, &message)).await {
            Ok(answer) => answer.map(Response::Raft),
            Err(_) => Err(Error::Unknown { message: "no answer".into() }),
        }
    }
}

impl Listen for World {
    fn on_event(&self, _: NodeId, event: &Event) {
        self.events.lock().unwrap().push(event.clone());
    }
}

struct Cluster {
    world: Arc<World>,
    disks: BTreeMap<ReplicaId, MemoryDisk>,
}

impl Cluster {
    async fn start() -> Cluster {
        let world = Arc::new(World::default());
        let ids = [1, 2, 3].map(ReplicaId);
        let mut cluster = Cluster { world, disks: BTreeMap::new() };
        for id in ids {
            cluster.open(id).await;
        }
        let members = ids.iter().map(|id| (*id, NodeId(id.0))).collect();
        cluster.group(ids[0]).initialize(&members).await.unwrap();
        cluster
    }

    /// Makes a replica that is in no group yet, on the node of its number.
    async fn open(&mut self, id: ReplicaId) {
        let disk = MemoryDisk::default();
        let around = Surroundings {
            router: Arc::new(Router::of_client(self.world.clone())),
            disk: Arc::new(disk.clone()),
            options: Arc::new(Options::default()),
            events: Events::heard_by(NodeId(id.0), self.world.clone()),
        };
        let log = Log::open(around.disk.clone(), "log", &around.options, around.events.clone()).await.unwrap();
        let group = Group::open(RegionId::META, id, log.replica(id), Arc::new(Nothing), &around).await.unwrap();
        let group = Arc::new(group);
        self.world.groups.lock().unwrap().insert(id, group.clone());
        tokio::spawn(async move { group.hand_over_when_stalled().await });
        self.disks.insert(id, disk);
    }

    /// Asks whoever leads until it is done, or refused for good.
    async fn change(&self, ask: impl AsyncFn(Arc<Group>) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        loop {
            let leader = self.leader(None).await;
            match ask(self.group(leader)).await {
                Err(err) if err.is_retryable() => assert!(start.elapsed() < Duration::from_secs(60), "{err}"),
                done => return done,
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn group(&self, id: ReplicaId) -> Arc<Group> {
        self.world.groups.lock().unwrap()[&id].clone()
    }

    /// Who leads, once it is not `but` in anybody's eyes but its own.
    async fn leader(&self, but: Option<ReplicaId>) -> ReplicaId {
        let start = Instant::now();
        loop {
            let groups: Vec<_> = self.world.groups.lock().unwrap().values().cloned().collect();
            for group in groups.iter().filter(|group| group.standing().is_leader && Some(group.replica()) != but) {
                // Who has just won refuses requests until it has applied an entry of its own.
                if group.read_index().await.is_ok() {
                    return group.replica();
                }
            }
            assert!(start.elapsed() < Duration::from_secs(60), "nobody (else) leads");
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn happened(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.world.events.lock().unwrap().iter().filter(|event| what(event)).count()
    }
}

#[tokio::test]
async fn a_leader_whose_log_stalls_hands_over() {
    let cluster = Cluster::start().await;
    let old = cluster.leader(None).await;
    cluster.group(old).propose("before".into()).await.unwrap();

    cluster.disks[&old].begin("log", Fault::Hang);
    let start = Instant::now();
    // The others make it durable, they are a majority: it is no reason to lead on.
    cluster.group(old).propose("meanwhile".into()).await.unwrap();
    let new = cluster.leader(Some(old)).await;
    let patience = Duration::from_millis(Options::default().election_max_ms);
    assert!(start.elapsed() >= patience, "after {:?}: one slow write is no stall", start.elapsed());
    assert!(start.elapsed() < patience * 2, "after {:?}: it was asked to stand, not left to time out", start.elapsed());
    cluster.group(new).propose("after".into()).await.unwrap();
    assert_eq!(cluster.happened(|event| matches!(event, Event::LogStalled { replica, .. } if *replica == old)), 1);

    cluster.disks[&old].end_fault();
    sleep(patience * 2).await;
    assert_eq!(cluster.group(old).standing().leader.map(|(leader, _)| leader), Some(new), "it follows again");
    let late = |event: &Event| matches!(event, Event::LogStalled { .. });
    assert_eq!(cluster.happened(late), 1, "who does not lead has nothing to hand over");
}

#[tokio::test]
async fn a_leader_with_a_slow_log_leads_on() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader(None).await;
    for _ in 0..5 {
        cluster.disks[&leader].begin("log", Fault::Hang);
        cluster.group(leader).propose("write".into()).await.unwrap();
        sleep(Duration::from_millis(Options::default().election_max_ms - 100)).await;
        cluster.disks[&leader].end_fault();
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cluster.happened(|event| matches!(event, Event::LogStalled { .. } | Event::TransferStarted { .. })), 0);
    assert!(cluster.group(leader).standing().is_leader);
}

#[tokio::test]
async fn a_replica_takes_the_place_of_the_leader_step_by_step() {
    let mut cluster = Cluster::start().await;
    let old = cluster.leader(None).await;
    cluster.group(old).propose("before".into()).await.unwrap();
    let new = ReplicaId(4);
    cluster.open(new).await;
    let stay = cluster.disks.keys().copied().filter(|id| ![old, new].contains(id)).collect();
    let change = Replacement { leaves: (old, NodeId(old.0)), joins: (new, NodeId(4)), stay };

    let err = cluster.change(async |group| group.change_members(&change).await).await.unwrap_err();
    assert_eq!(err.code(), "mismatch", "it gets no log yet: {err}");
    for _ in 0..2 {
        cluster.change(async |group| group.add_learner(&change).await).await.unwrap();
    }
    // There is a way back, as long as it has no vote.
    cluster.change(async |group| group.remove_learner(&change).await).await.unwrap();
    cluster.change(async |group| group.remove_learner(&change).await).await.unwrap();
    cluster.change(async |group| group.add_learner(&change).await).await.unwrap();
    for _ in 0..2 {
        cluster.change(async |group| group.change_members(&change).await).await.unwrap();
    }
    assert_eq!(cluster.happened(|event| matches!(event, Event::TransferStarted { from, .. } if *from == old)), 1);
    let leader = cluster.leader(None).await;
    assert_ne!(leader, old, "it hands over before it leaves");
    let standing = cluster.group(leader).standing();
    let voters = change.stay.iter().copied().chain([new]).collect();
    assert_eq!(standing.membership.voters, [voters]);
    assert!(!standing.membership.replicas.contains_key(&old));
    let err = cluster.change(async |group| group.remove_learner(&change).await).await.unwrap_err();
    assert_eq!(err.code(), "request", "it has its vote: {err}");

    // The one that has left holds up nobody, the one that has joined counts.
    let lost = *change.stay.iter().find(|id| **id != leader).unwrap();
    cluster.world.groups.lock().unwrap().retain(|id, _| ![old, lost].contains(id));
    cluster.group(leader).propose("after".into()).await.unwrap();
    assert_eq!(cluster.group(new).standing().membership.voters.len(), 1);
}
