//! Service and runner against nodes and a raft group that are fakes: a log in memory, leaders that come and go, nodes
//! that are down, refuse, answer late or not at all. What a node does is the contract of [`Request`]: tombstones included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{bootstrap, table};
use crate::clock::{Clock, OsClock};
use crate::error::{Error, Invalid, IoKind, Result};
use crate::event::{Event, Events, Listen};
use crate::meta::catalog::TableDef;
use crate::meta::request::{MetaAnswer, MetaRequest};
use crate::meta::{Command, Group, Machine, Nodes, Runner, Service};
use crate::options::Options;
use crate::region::request::ReplicaStatus;
use crate::server::message::{Replacement, Request, Response};
use crate::types::{NodeId, RegionId, ReplicaId, Sequence, SessionId, TableId, Timestamp};

const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_table_is_created_and_dropped_step_by_step() {
    let world = World::new(3, 1);
    let created = world.create("flights", 4, 1).await.unwrap();
    let MetaAnswer::Created(table) = &created else { panic!("{created:?}") };
    assert_eq!(world.ask(MetaRequest::Table { name: "flights".to_string() }).await.unwrap(), table_answer(table));
    let leaders: BTreeSet<NodeId> = table.regions.iter().map(|region| world.leader_of(region.id).unwrap().1).collect();
    assert_eq!(leaders.len(), 3, "four groups were formed at three nodes");
    world.rest().await;

    // A resent statement is answered, not run.
    assert_eq!(world.create("flights", 4, 1).await.unwrap(), created);
    assert_eq!(world.drop_table("flights", 2).await.unwrap(), MetaAnswer::Dropped(true));
    assert_eq!(world.ask(MetaRequest::Tables).await.unwrap(), MetaAnswer::Tables(vec![]));
    world.rest().await;
    assert_eq!(world.create("flights", 4, 1).await.unwrap(), created);
    assert_eq!(
        world.lock().steps,
        [
            "p1 create_table prepared",
            "p1 create_table replicas_created",
            "p1 create_table groups_formed",
            "p1 create_table published",
            "p1 create_table done",
            "p2 drop_table unpublished",
            "p2 drop_table done",
        ]
    );
    assert!(world.lock().nodes.values().all(|node| node.replicas.is_empty() && node.tombstones.len() == 4));
}

#[tokio::test]
async fn a_node_that_is_down_holds_up_neither_create_nor_drop() {
    let world = World::new(3, 1);
    world.down(1);
    let MetaAnswer::Created(flights) = world.create("flights", 3, 1).await.unwrap() else { panic!() };
    assert_eq!(world.procedures(), 1, "a replica of each region is missing");
    world.up(1);
    world.rest().await;
    assert_eq!(world.lock().nodes[&NodeId(1)].replicas.len(), 3);

    world.down(2);
    assert_eq!(world.drop_table("flights", 2).await.unwrap(), MetaAnswer::Dropped(true));
    // A table of the same name has nothing to do with what is left of the first one.
    let MetaAnswer::Created(second) = world.create("flights", 1, 3).await.unwrap() else { panic!() };
    assert!(second.id > flights.id);
    sleep(LONG).await;
    assert_eq!(world.lock().nodes[&NodeId(2)].replicas.len(), 3, "nobody can have dropped them");
    world.up(2);
    world.rest().await;
}

#[tokio::test]
async fn without_a_majority_nothing_is_published_and_the_name_stays_reserved() {
    let world = World::new(3, 1);
    world.down(1);
    world.down(2);
    let create = tokio::spawn({
        let world = world.clone();
        async move { world.create("flights", 2, 1).await }
    });
    sleep(Duration::from_millis(500)).await;
    assert_eq!(world.ask(MetaRequest::Tables).await.unwrap(), MetaAnswer::Tables(vec![]));

    // Whoever wants the same name waits; at its deadline it has not been run.
    let leader = world.leader();
    for request in [create_request("flights", 2, 2), drop_request("flights", 3)] {
        let err = leader.service.handle(request, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!((err.code(), err.may_have_applied()), ("busy", false), "{err}");
    }
    // The one that runs is told that it may yet succeed.
    let resent = leader.service.handle(create_request("flights", 2, 1), Duration::from_millis(100)).await;
    assert_eq!(resent.unwrap_err().code(), "unknown_outcome");
    let drop = tokio::spawn({
        let world = world.clone();
        async move { world.drop_table("flights", 4).await }
    });
    sleep(Duration::from_millis(100)).await;
    world.up(2);
    let MetaAnswer::Created(flights) = create.await.unwrap().unwrap() else { panic!() };
    assert_eq!(drop.await.unwrap().unwrap(), MetaAnswer::Dropped(true));
    world.up(1);
    world.rest().await;
    assert_eq!(world.ask(MetaRequest::Tables).await.unwrap(), MetaAnswer::Tables(vec![]));
    assert_eq!(flights.id, TableId(1));
}

#[tokio::test]
async fn a_group_is_formed_at_another_node_if_the_first_one_goes_down() {
    let world = World::new(3, 1);
    world.lock().down_at = Some(("replicas_created".to_string(), NodeId(1)));
    let MetaAnswer::Created(table) = world.create("flights", 1, 1).await.unwrap() else { panic!() };
    assert_ne!(world.leader_of(table.regions[0].id).unwrap().1, NodeId(1));
    world.up(1);
    world.rest().await;
}

#[tokio::test]
async fn a_procedure_that_is_stuck_does_not_hold_up_another_one() {
    let world = World::new(2, 1);
    world.down(1);
    let mut stuck = table("stuck", 1);
    stuck.replicas = Some(2);
    let request = MetaRequest::CreateTable { table: stuck, request: (SessionId(1), 1) };
    let leader = world.leader();
    assert_eq!(leader.service.handle(request, Duration::from_millis(50)).await.unwrap_err().code(), "unknown_outcome");
    let mut other = table("other", 1);
    other.replicas = Some(1);
    for number in 2..4 {
        // One replica a table: one of two tables is placed on the node that is up.
        other.name = format!("other{number}");
        let request = MetaRequest::CreateTable { table: other.clone(), request: (SessionId(1), number) };
        let _ = leader.service.handle(request, Duration::from_secs(1)).await;
    }
    let MetaAnswer::Tables(tables) = world.ask(MetaRequest::Tables).await.unwrap() else { panic!() };
    assert_eq!(tables.len(), 1);
    world.up(1);
    world.rest().await;
}

#[tokio::test]
async fn a_creation_that_a_node_refuses_is_undone() {
    let world = World::new(3, 1);
    world.refuse(2, true);
    let err = world.create("flights", 2, 1).await.unwrap_err();
    assert_eq!(err.to_string(), "[mismatch] node n2 refuses");
    world.rest().await;
    world.refuse(2, false);
    assert_eq!(world.create("flights", 2, 1).await.unwrap_err(), err, "the same statement, the same answer");
    let MetaAnswer::Created(table) = world.create("flights", 2, 2).await.unwrap() else { panic!() };
    assert_eq!(table.id, TableId(2));
    world.rest().await;
}

#[tokio::test]
async fn a_drop_takes_over_from_a_creation_that_waits_for_its_last_replica() {
    let world = World::new(3, 1);
    world.down(3);
    world.create("flights", 2, 1).await.unwrap();
    assert_eq!(world.procedures(), 1);
    assert_eq!(world.drop_table("flights", 2).await.unwrap(), MetaAnswer::Dropped(true));
    world.up(3);
    world.rest().await;
    let tombstones = world.lock().nodes[&NodeId(3)].tombstones.len();
    assert_eq!(tombstones, 2, "a late hand could still make the replicas that were never made");
}

#[tokio::test]
async fn requests_and_answers_that_are_lost_or_late_leave_exactly_what_was_asked_for() {
    for seed in 1..=40 {
        let world = World::new(3, seed);
        world.lock().faults = 300;
        world.create("flights", 2, 1).await.unwrap();
        world.create("delays", 1, 2).await.unwrap();
        assert_eq!(world.drop_table("flights", 3).await.unwrap(), MetaAnswer::Dropped(true));
        world.create("flights", 3, 4).await.unwrap();
        world.rest().await;
        let MetaAnswer::Tables(tables) = world.ask(MetaRequest::Tables).await.unwrap() else { panic!() };
        let tables: Vec<_> = tables.iter().map(|table| (table.name.as_str(), table.regions.len())).collect();
        assert_eq!(tables, [("delays", 1), ("flights", 3)], "seed {seed}");
    }
}

#[tokio::test]
async fn leaders_lost_at_any_step_leave_exactly_one_table() {
    for loss in Loss::ALL {
        for proposal in 1..=4 {
            let world = World::new(3, proposal);
            world.lock().faults = 100;
            world.lock().lose = Some((proposal, loss));
            let MetaAnswer::Created(table) = world.create("flights", 2, 1).await.unwrap() else { panic!() };
            world.rest().await;
            assert_eq!(world.lock().lose, None, "{loss:?} of proposal {proposal} did not happen");
            assert_eq!(table.id, TableId(1), "the statement was run twice: {loss:?} of proposal {proposal}");
            assert_eq!(
                world.ask(MetaRequest::Tables).await.unwrap(),
                MetaAnswer::Tables(vec![table]),
                "{loss:?} of proposal {proposal}"
            );
        }
    }
}

#[tokio::test]
async fn leaders_lost_at_any_step_of_a_drop_leave_nothing() {
    for loss in Loss::ALL {
        for proposal in 1..=2 {
            let world = World::new(3, proposal);
            world.create("flights", 2, 1).await.unwrap();
            world.rest().await;
            world.lock().faults = 100;
            world.lock().lose = Some((proposal, loss));
            assert_eq!(world.drop_table("flights", 2).await.unwrap(), MetaAnswer::Dropped(true));
            world.rest().await;
            assert_eq!(world.lock().lose, None, "{loss:?} of proposal {proposal} did not happen");
            assert_eq!(world.ask(MetaRequest::Tables).await.unwrap(), MetaAnswer::Tables(vec![]));
        }
    }
}

#[tokio::test]
async fn leaders_lost_at_any_step_of_an_undoing_leave_nothing() {
    for loss in Loss::ALL {
        for proposal in 1..=3 {
            let world = World::new(3, proposal);
            world.refuse(2, true);
            world.lock().lose = Some((proposal, loss));
            let err = world.create("flights", 2, 1).await.unwrap_err();
            assert_eq!(err.code(), "mismatch", "{loss:?} of proposal {proposal}: {err}");
            world.rest().await;
            assert_eq!(world.lock().lose, None, "{loss:?} of proposal {proposal} did not happen");
            assert_eq!(world.ask(MetaRequest::Tables).await.unwrap(), MetaAnswer::Tables(vec![]));
        }
    }
}

#[tokio::test]
async fn a_replica_moves_step_by_step() {
    let world = World::new(4, 1);
    let table = world.created(2).await;
    let (region, from, to) = free(&table, 1);
    let MetaAnswer::Moved(moved) = world.move_replica(region, from, to, 2).await.unwrap() else { panic!() };
    assert_eq!(world.ask(MetaRequest::Table { name: "flights".to_string() }).await.unwrap(), table_answer(&moved));
    let nodes: BTreeSet<NodeId> = moved.regions[1].replicas.values().copied().collect();
    assert!(nodes.contains(&to) && !nodes.contains(&from), "{nodes:?}");
    assert_eq!(moved.regions[0], table.regions[0]);
    world.rest().await;
    let steps = world.lock().steps.split_off(5);
    assert_eq!(
        steps,
        ["making", "joining", "switching", "leaving", "done"].map(|step| format!("p2 move_replica {step}"))
    );
    // A resent statement is answered, not run; a new one finds the region as it is.
    assert_eq!(world.move_replica(region, from, to, 2).await.unwrap(), MetaAnswer::Moved(moved));
    let err = world.move_replica(region, from, to, 3).await.unwrap_err();
    assert_eq!(err.code(), "out_of_range");
}

#[tokio::test]
async fn the_old_node_may_be_down_for_long() {
    let world = World::new(5, 1);
    let table = world.created(1).await;
    let (region, from, to) = free(&table, 0);
    world.down(from.0);
    let MetaAnswer::Moved(table) = world.move_replica(region, from, to, 2).await.unwrap() else { panic!() };
    // The next change of the region's members does not wait until the old replica is dropped.
    let (_, next, _) = free(&table, 0);
    let last =
        (1..=5).map(NodeId).find(|node| *node != from && !table.regions[0].replicas.values().any(|at| at == node));
    world.move_replica(region, next, last.unwrap(), 3).await.unwrap();
    sleep(LONG).await;
    assert_eq!(world.procedures(), 1, "nobody can have dropped it");
    assert_eq!(world.lock().nodes[&from].replicas.len(), 1);
    world.up(from.0);
    world.rest().await;
}

#[tokio::test]
async fn leaders_lost_at_any_step_of_a_move_leave_it_done_once() {
    for loss in Loss::ALL {
        for proposal in 1..=5 {
            let world = World::new(4, proposal);
            let table = world.created(1).await;
            let (region, from, to) = free(&table, 0);
            world.lock().faults = 100;
            world.lock().lose = Some((proposal, loss));
            let MetaAnswer::Moved(moved) = world.move_replica(region, from, to, 2).await.unwrap() else { panic!() };
            world.rest().await;
            assert_eq!(world.lock().lose, None, "{loss:?} of proposal {proposal} did not happen");
            let tables = world.ask(MetaRequest::Tables).await.unwrap();
            assert_eq!(tables, MetaAnswer::Tables(vec![moved]), "{loss:?} of proposal {proposal}");
        }
    }
}

#[tokio::test]
async fn a_drop_does_not_wait_for_a_move() {
    let world = World::new(4, 1);
    let table = world.created(2).await;
    let (region, from, to) = free(&table, 1);
    world.down(to.0);
    let moving = tokio::spawn({
        let world = world.clone();
        async move { world.move_replica(region, from, to, 2).await }
    });
    sleep(Duration::from_millis(200)).await;
    assert_eq!(world.drop_table("flights", 3).await.unwrap(), MetaAnswer::Dropped(true));
    assert_eq!(moving.await.unwrap().unwrap_err().code(), "unknown_table");
    world.up(to.0);
    world.rest().await;
    assert_eq!(world.lock().nodes[&to].tombstones.len(), 2, "a late hand could still make the replica");
}

#[tokio::test]
async fn a_node_that_refuses_the_replica_ends_the_move() {
    let world = World::new(4, 1);
    let table = world.created(1).await;
    let (region, from, to) = free(&table, 0);
    world.refuse(to.0, true);
    let err = world.move_replica(region, from, to, 2).await.unwrap_err();
    assert_eq!(err.code(), "mismatch");
    world.rest().await;
    world.refuse(to.0, false);
    world.move_replica(region, from, to, 3).await.unwrap();
    world.rest().await;
}

#[tokio::test]
async fn replicas_of_a_dead_node_are_made_elsewhere_and_dropped_when_it_comes_back() {
    let world = World::with_detector(5, 1, 1_000);
    let MetaAnswer::Created(table) = world.create("flights", 6, 1).await.unwrap() else { panic!() };
    world.rest().await;
    let on =
        |table: &TableDef, node| table.regions.iter().filter(|def| def.replicas.values().any(|at| *at == node)).count();
    let before = on(&table, NodeId(2));
    assert!(before > 2);
    world.down(2);
    sleep(Duration::from_millis(800)).await;
    world.up(2);
    sleep(Duration::from_millis(800)).await;
    assert_eq!(world.lock().dead, [], "it was not silent for long enough");
    world.down(2);
    sleep(LONG).await;
    let MetaAnswer::Tables(tables) = world.ask(MetaRequest::Tables).await.unwrap() else { panic!() };
    assert_eq!(on(&tables[0], NodeId(2)), 0, "{tables:?}");
    assert!((1..=5).filter(|node| *node != 2).all(|node| on(&tables[0], NodeId(node)) <= 5), "{tables:?}");
    assert_eq!(world.lock().dead.first(), Some(&(NodeId(2), before as u64, 0)));
    assert_eq!(world.lock().nodes[&NodeId(2)].replicas.len(), before, "nobody can have dropped them");
    world.up(2);
    world.rest().await;
}

#[tokio::test]
async fn without_another_node_a_dead_one_is_only_spoken_of() {
    let world = World::with_detector(3, 1, 1_000);
    world.created(2).await;
    world.down(2);
    sleep(LONG).await;
    assert_eq!(world.lock().dead, [(NodeId(2), 2, 2)]);
    assert_eq!(world.procedures(), 0);
    world.up(2);
    world.rest().await;
}

#[tokio::test]
async fn a_leader_that_is_cut_off_takes_nobody_for_dead() {
    let world = World::with_detector(4, 1, 1_000);
    world.created(2).await;
    world.down(3);
    world.down(4);
    sleep(LONG).await;
    assert_eq!(world.lock().dead, []);
    world.up(3);
    world.up(4);
    sleep(LONG).await;
    assert_eq!(world.lock().dead, []);
    assert_eq!(world.procedures(), 0);
}

#[tokio::test]
async fn a_move_onto_a_node_that_dies_is_given_up() {
    for dies_at in ["making", "joining", "switching"] {
        let world = World::with_detector(5, 1, 1_000);
        let table = world.created(1).await;
        let (region, from, to) = free(&table, 0);
        world.lock().down_at = Some((dies_at.to_string(), to));
        let err = world.move_replica(region, from, to, 2).await.unwrap_err();
        assert_eq!(
            err.to_string(),
            format!("[request] node {to}, which was to get a replica, is dead"),
            "at {dies_at}"
        );
        let other =
            (1..=5).map(NodeId).find(|node| *node != to && !table.regions[0].replicas.values().any(|at| at == node));
        world.lock().down_at = None;
        world.move_replica(region, from, other.unwrap(), 3).await.unwrap();
        world.up(to.0);
        world.rest().await;
    }
}

#[tokio::test]
async fn a_move_that_does_not_get_on_says_why_and_is_given_up() {
    for stands_at in ["making", "switching"] {
        let world = World::new(5, 1);
        let table = world.created(1).await;
        // Leaders know it that are elected from now on.
        world.lock().patience_ms = Some(3_000);
        world.elect();
        let (region, from, to) = free(&table, 0);
        let reason = match stands_at {
            "making" => {
                world.lock().nodes.get_mut(&to).unwrap().is_full = true;
                "n4: [storage_full] no space"
            }
            // The region's leader says so, the node itself does not answer.
            _ => {
                world.lock().down_at = Some((stands_at.to_string(), to));
                "n1: [busy] it is behind; try again later"
            }
        };
        let moving = tokio::spawn({
            let world = world.clone();
            async move { world.move_replica(region, from, to, 2).await }
        });
        sleep(Duration::from_secs(2)).await;
        let MetaAnswer::Procedures(jobs) = world.ask(MetaRequest::Procedures).await.unwrap() else { panic!() };
        let [job] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!(
            (job.step.as_str(), job.error.as_deref(), job.waits_for.as_deref()),
            (stands_at, None, Some(reason))
        );
        let err = moving.await.unwrap().unwrap_err();
        let expected = format!("from {stands_at} for 3000 ms (move_patience_ms); last: {reason}");
        assert!(err.to_string().contains(&expected), "{err}");

        // What is left of it waits for the node, and says so; the region's members can be changed meanwhile.
        world.down(to.0);
        sleep(Duration::from_secs(1)).await;
        if stands_at == "switching" {
            let MetaAnswer::Procedures(jobs) = world.ask(MetaRequest::Procedures).await.unwrap() else { panic!() };
            let [job] = jobs.as_slice() else { panic!("{jobs:?}") };
            assert_eq!((job.step.as_str(), job.error.as_deref()), ("withdrawing", Some(err.to_string().as_str())));
            let waits_for = job.waits_for.as_deref().unwrap_or_default();
            assert!(waits_for.contains("node n4 is down"), "{waits_for}");
        }
        world.lock().down_at = None;
        world.move_replica(region, from, NodeId(5), 3).await.unwrap();
        world.up(to.0);
        world.rest().await;
    }
}

#[tokio::test]
async fn a_move_in_a_region_with_other_members_is_given_up_at_once() {
    let world = World::new(4, 1);
    let table = world.created(1).await;
    let (region, from, to) = free(&table, 0);
    world.lock().is_elsewhere = true;
    let err = world.move_replica(region, from, to, 2).await.unwrap_err();
    assert_eq!(err.to_string(), "[mismatch] other members");
    world.lock().is_elsewhere = false;
    world.rest().await;
}

#[tokio::test]
async fn a_replica_that_does_not_lead_answers_nothing() {
    let world = World::new(3, 1);
    let old = world.leader();
    world.down(1);
    world.down(2);
    let waiting = tokio::spawn({
        let old = old.clone();
        async move { old.service.handle(create_request("flights", 1, 1), LONG).await }
    });
    sleep(Duration::from_millis(200)).await;
    let new = world.elect();
    let soon = timeout(Duration::from_secs(1), waiting).await;
    let err = soon.expect("the client waits in vain").unwrap().unwrap_err();
    assert_eq!(err.code(), "unknown_outcome", "it goes on under the new leader: {err}");
    for request in [
        create_request("flights", 1, 1),
        drop_request("flights", 2),
        MetaRequest::Table { name: "flights".to_string() },
        MetaRequest::Tables,
        MetaRequest::OpenSession,
    ] {
        assert_eq!(old.service.handle(request, LONG).await.unwrap_err().code(), "not_leader");
    }
    let running = old.running.lock().unwrap().take().unwrap();
    timeout(LONG, running).await.expect("the old leader's runner goes on although nothing happens").unwrap();
    world.up(1);
    world.up(2);
    let MetaAnswer::Created(table) = new.service.handle(create_request("flights", 1, 1), LONG).await.unwrap() else {
        panic!()
    };
    assert_eq!(table.id, TableId(1));
    world.rest().await;
}

#[tokio::test]
async fn a_runner_that_is_dropped_stops_at_once() {
    let world = World::new(3, 1);
    world.down(1);
    world.down(2);
    let leader = world.leader();
    let _ = leader.service.handle(create_request("flights", 1, 1), Duration::from_millis(100)).await;
    let running = leader.running.lock().unwrap().take().unwrap();
    running.abort();
    let _ = running.await;
    let asked = world.lock().asked;
    assert!(asked > 0);
    sleep(LONG).await;
    assert_eq!(world.lock().asked, asked, "something still calls nodes");
}

/// The region of that number, a node with a replica of it, and one without.
fn free(table: &TableDef, number: u32) -> (u32, NodeId, NodeId) {
    let taken: BTreeSet<NodeId> = table.regions[number as usize].replicas.values().copied().collect();
    let to = (1..).map(NodeId).find(|node| !taken.contains(node)).unwrap();
    (number, *taken.first().unwrap(), to)
}

fn create_request(name: &str, regions: u32, number: u64) -> MetaRequest {
    MetaRequest::CreateTable { table: table(name, regions), request: (SessionId(1), number) }
}

fn drop_request(name: &str, number: u64) -> MetaRequest {
    MetaRequest::DropTable {
        name: name.to_string(),
        if_exists: false,
        is_view: false,
        cascade: false,
        request: (SessionId(1), number),
    }
}

fn table_answer(table: &TableDef) -> MetaAnswer {
    MetaAnswer::Table(Some(table.clone()))
}

/// Nodes and the meta group's log.
#[derive(Default)]
struct Inner {
    log: Vec<Bytes>,
    /// The present leader's; it leads unless it was lost.
    term: u64,
    leads: bool,
    leader: Option<Arc<Leader>>,
    /// Terms whose leader has not heard that it is over.
    deaf: BTreeSet<u64>,
    /// At which of the next proposals the leader is lost.
    lose: Option<(u64, Loss)>,
    nodes: BTreeMap<NodeId, Node>,
    /// When this step is recorded, that node goes down.
    down_at: Option<(String, NodeId)>,
    /// Of a thousand requests to nodes, so many are lost, as many answers, and as many requests come late.
    faults: u64,
    random: u64,
    asked: u64,
    steps: Vec<String>,
    /// Replicas that get a log and have no vote.
    learners: BTreeSet<ReplicaId>,
    /// Nodes that leaders took for dead: replicas there, and those without another place.
    dead: Vec<(NodeId, u64, u64)>,
    /// Silence after which a node is dead.
    dead_ms: u64,
    /// After which a step of a move is given up.
    patience_ms: Option<u64>,
    /// The leaders of regions know other members than the catalog.
    is_elsewhere: bool,
}

fn voters(change: &Replacement, after: bool) -> BTreeSet<ReplicaId> {
    let (member, _) = if after { change.joins } else { change.leaves };
    change.stay.iter().copied().chain([member]).collect()
}

impl Node {
    fn has(&self, replica: ReplicaId) -> bool {
        self.replicas.contains_key(&replica)
    }
}

#[derive(Default)]
struct Node {
    is_down: bool,
    refuses: bool,
    /// It answers, and can make no replica.
    is_full: bool,
    replicas: BTreeMap<ReplicaId, RegionId>,
    tombstones: BTreeSet<ReplicaId>,
    /// Where it was asked to form the group, by its replica there.
    formed: BTreeMap<RegionId, BTreeMap<ReplicaId, NodeId>>,
}

/// How a leader is lost at a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Before it: refused.
    Before,
    /// Before it, but nobody knows.
    NotAppended,
    /// Right after it: it is committed, but the proposer cannot know.
    Unanswered,
    /// Likewise, and it goes on as if it still led, while another one does.
    Deaf,
    /// Right after it was answered.
    Answered,
    /// The node dies: whatever runs there is gone.
    Killed,
}

impl Loss {
    const ALL: [Loss; 6] =
        [Loss::Before, Loss::NotAppended, Loss::Unanswered, Loss::Deaf, Loss::Answered, Loss::Killed];
}

#[derive(Clone)]
struct World(Arc<Mutex<Inner>>);

/// A leader of the meta group.
struct Leader {
    service: Service,
    machine: Arc<Machine>,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl World {
    /// A bootstrapped cluster with an open session and a leader.
    fn new(nodes: u64, seed: u64) -> World {
        World::with_detector(nodes, seed, 0)
    }

    /// Nodes that are silent for so long are dead.
    fn with_detector(nodes: u64, seed: u64, dead_ms: u64) -> World {
        let world = World(Arc::default());
        world.lock().dead_ms = dead_ms;
        world.lock().random = seed;
        world.lock().nodes = (1..=nodes).map(|node| (NodeId(node), Node::default())).collect();
        world.lock().log =
            [bootstrap(nodes), Command::OpenSession].map(|command| command.at(Timestamp(0)).encode()).into();
        world.elect();
        world
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The next leader. It has not yet applied all that is committed when it begins to run.
    fn elect(&self) -> Arc<Leader> {
        let machine = Arc::new(Machine::new());
        let mut inner = self.lock();
        let applied = inner.log.len().saturating_sub(2);
        inner.log[..applied].iter().for_each(|command| drop(machine.apply(command).unwrap()));
        inner.term += 1;
        inner.leads = true;
        let term = inner.term;
        let group =
            Arc::new(FakeGroup { world: self.clone(), machine: machine.clone(), term, applied: Mutex::new(applied) });
        let node_dead_ms = inner.dead_ms;
        let options = Options {
            rpc_timeout_ms: 50,
            retry_min_ms: 5,
            retry_max_ms: 40,
            node_dead_ms,
            move_patience_ms: inner.patience_ms.unwrap_or(3_600_000),
            ..Options::default()
        };
        let events = Events::heard_by(NodeId(term), Arc::new(self.clone()));
        let clock: Arc<dyn Clock> = Arc::new(OsClock);
        let nodes = Arc::new(self.clone());
        let runner = Runner::new(group.clone(), nodes, machine.clone(), clock.clone(), events.clone(), &options);
        let service = Service::new(group, machine.clone(), clock, events, runner.obstacles(), &options);
        let running = Mutex::new(Some(tokio::spawn(async move { runner.run(term).await })));
        let leader = Arc::new(Leader { service, machine, running });
        inner.leader = Some(leader.clone());
        leader
    }

    fn leader(&self) -> Arc<Leader> {
        let leader = Some(self.lock()).filter(|inner| inner.leads).and_then(|inner| inner.leader.clone());
        leader.unwrap_or_else(|| self.elect())
    }

    /// What a frontend does: asks until there is an answer.
    async fn ask(&self, request: MetaRequest) -> Result<MetaAnswer> {
        for _ in 0..50 {
            match self.leader().service.handle(request.clone(), LONG).await {
                Err(err) if err.is_retryable() => sleep(Duration::from_millis(10)).await,
                answer => return answer,
            }
        }
        panic!("no answer to {request:?}");
    }

    async fn create(&self, name: &str, regions: u32, number: u64) -> Result<MetaAnswer> {
        self.ask(create_request(name, regions, number)).await
    }

    /// The table `flights`, with all its replicas.
    async fn created(&self, regions: u32) -> TableDef {
        let MetaAnswer::Created(table) = self.create("flights", regions, 1).await.unwrap() else { panic!() };
        self.rest().await;
        table
    }

    async fn move_replica(&self, region: u32, from: NodeId, to: NodeId, number: u64) -> Result<MetaAnswer> {
        let (name, request) = ("flights".to_string(), (SessionId(1), number));
        self.ask(MetaRequest::MoveReplica { name, region, from, to, request }).await
    }

    async fn drop_table(&self, name: &str, number: u64) -> Result<MetaAnswer> {
        self.ask(drop_request(name, number)).await
    }

    /// No more faults: all procedures end, and nodes have exactly the replicas of the tables that exist.
    async fn rest(&self) {
        self.lock().faults = 0;
        let ended = async {
            while self.procedures() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG * 4, ended).await.expect("a procedure does not end");
        // Late hands come.
        sleep(LONG).await;
        let leader = self.leader();
        leader.machine.read(|state| {
            state.check();
            let mut expected: BTreeMap<NodeId, BTreeMap<ReplicaId, RegionId>> = BTreeMap::new();
            for region in state.tables().flat_map(|table| &table.regions) {
                for (replica, node) in &region.replicas {
                    expected.entry(*node).or_default().insert(*replica, region.id);
                }
                assert!(self.leader_of(region.id).is_some(), "{} of a visible table has no leader", region.id);
                let members = self.lock().members(region.id);
                assert_eq!(members, region.replicas.keys().copied().collect(), "the members of {}", region.id);
            }
            for (node, is) in &self.lock().nodes {
                assert_eq!(is.replicas, expected.remove(node).unwrap_or_default(), "on node {node}");
            }
        });
    }

    fn procedures(&self) -> usize {
        self.leader().machine.read(|state| state.procedures().count())
    }

    fn down(&self, node: u64) {
        self.lock().nodes.get_mut(&NodeId(node)).unwrap().is_down = true;
    }

    fn up(&self, node: u64) {
        self.lock().nodes.get_mut(&NodeId(node)).unwrap().is_down = false;
    }

    fn refuse(&self, node: u64, refuses: bool) {
        self.lock().nodes.get_mut(&NodeId(node)).unwrap().refuses = refuses;
    }

    /// Who leads the region: the replica at which its group was formed, if enough of its members are there.
    fn leader_of(&self, region: RegionId) -> Option<(ReplicaId, NodeId)> {
        let inner = self.lock();
        let there = |replica: &ReplicaId, node: &NodeId| {
            let node = &inner.nodes[node];
            !node.is_down && node.replicas.contains_key(replica)
        };
        let members = inner.nodes.values().find_map(|node| node.formed.get(&region))?;
        let up: Vec<_> = members.iter().filter(|(replica, node)| there(replica, node)).collect();
        let formed_at = up.iter().find(|(_, node)| inner.nodes[node].formed.contains_key(&region));
        let (replica, node) = formed_at.or(up.first())?;
        (up.len() > members.len() / 2).then_some((**replica, **node))
    }

    /// What the node does when the request arrives.
    fn arrive(&self, at: NodeId, request: Request) -> Result<Response> {
        if let Request::Status { region: Some(region) } = request {
            let leader = self.leader_of(region);
            return Ok(Response::Status(vec![status(region, at, leader)]));
        }
        if let Request::AddLearner { region, .. }
        | Request::ChangeMembers { region, .. }
        | Request::RemoveLearner { region, .. } = &request
        {
            let (region, hint) = (*region, self.leader_of(*region));
            if hint.is_none_or(|(_, leader)| leader != at) {
                return Err(Error::NotLeader { region, hint });
            }
        }
        let mut inner = self.lock();
        let formed: Vec<_> = inner.nodes.values().flat_map(|node| node.formed.clone()).collect();
        let node = inner.nodes.get_mut(&at).unwrap();
        match request {
            Request::CreateReplica { replica, .. } if node.tombstones.contains(&replica) => {
                Err(Error::invalid(Invalid::Mismatch, format!("{replica} was dropped")))
            }
            Request::CreateReplica { .. } if node.refuses => {
                Err(Error::invalid(Invalid::Mismatch, format!("node {at} refuses")))
            }
            Request::CreateReplica { .. } if node.is_full => {
                Err(Error::Io { kind: IoKind::StorageFull, message: "no space".to_string() })
            }
            Request::CreateReplica { region, replica, table, .. } => {
                // A replica of a move is in the catalog only when it has taken the place of another one.
                let def = table.regions.iter().find(|def| def.id == region).expect("a region of the table");
                let is_new = def.replicas.keys().all(|known| *known < replica);
                assert!(
                    def.replicas.get(&replica) == Some(&at) || is_new && !def.replicas.values().any(|node| *node == at)
                );
                node.replicas.insert(replica, region);
                Ok(Response::Done)
            }
            Request::InitGroup { region, .. } if !node.replicas.values().any(|at| *at == region) => {
                Err(Error::RegionNotFound { region })
            }
            Request::InitGroup { region, members } => {
                assert!(
                    formed.iter().all(|(other, of)| *other != region || *of == members),
                    "two groups of one region"
                );
                node.formed.insert(region, members);
                Ok(Response::Done)
            }
            Request::DropReplica { replica, region, .. } => {
                node.tombstones.insert(replica);
                let was_here = node.replicas.remove(&replica).is_some();
                if was_here && !node.replicas.values().any(|other| *other == region) {
                    node.formed.remove(&region);
                }
                Ok(Response::Done)
            }
            Request::Ping => Ok(Response::Pong(Timestamp(0))),
            Request::AddLearner { region, change, .. } => inner.learn(region, &change),
            Request::ChangeMembers { region, change, .. } => inner.switch(region, &change),
            Request::RemoveLearner { region, change, .. } => inner.unlearn(region, &change),
            other => panic!("meta does not ask {other:?}"),
        }
    }
}

fn status(region: RegionId, node: NodeId, leader: Option<(ReplicaId, NodeId)>) -> ReplicaStatus {
    ReplicaStatus {
        region,
        replica: ReplicaId(0),
        node,
        is_leader: leader.is_some_and(|(_, leader)| leader == node),
        leader,
        term: 1,
        applied: None,
        flushed: None,
        sequence: Sequence(0),
        oldest: Sequence(0),
        memtable_rows: 0,
        memtable_bytes: 0,
        ssts: 0,
        sst_bytes: 0,
        schema_version: 1,
        members: BTreeMap::new(),
        voters: Vec::new(),
    }
}

#[async_trait]
impl Nodes for World {
    async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        let (draw, delay, is_down) = {
            let mut inner = self.lock();
            inner.asked += 1;
            (inner.draw(1000), inner.draw(10), inner.nodes[&to].is_down)
        };
        let faults = self.lock().faults;
        sleep(Duration::from_millis(1 + delay)).await;
        if is_down {
            return Err(Error::Io { kind: IoKind::ConnectionLost, message: format!("node {to} is down") });
        }
        let unknown = Err(Error::Unknown { message: "no answer".to_string() });
        match draw / faults.max(1) {
            0 if faults > 0 => {
                sleep(within).await;
                unknown
            }
            1 if faults > 0 => {
                let _ = self.arrive(to, request);
                sleep(within).await;
                unknown
            }
            2 if faults > 0 => {
                let world = self.clone();
                tokio::spawn(async move {
                    sleep(Duration::from_millis(100 * delay)).await;
                    let _ = world.arrive(to, request);
                });
                sleep(within).await;
                unknown
            }
            _ => self.arrive(to, request),
        }
    }
}

impl Listen for World {
    fn on_event(&self, _: NodeId, event: &Event) {
        let mut inner = self.lock();
        if let Event::NodeDead { node, replicas, without_place, .. } = event {
            inner.dead.push((*node, *replicas, *without_place));
        }
        let Event::ProcedureStep { procedure, kind, step } = event else { return };
        inner.steps.push(format!("p{procedure} {kind} {step}"));
        if let Some((at, node)) = inner.down_at.clone()
            && at == *step
        {
            inner.nodes.get_mut(&node).unwrap().is_down = true;
        }
    }
}

impl Inner {
    /// What a region's leader does when it is asked to change the members: learner, voter, never two changes at once.
    fn learn(&mut self, region: RegionId, change: &Replacement) -> Result<Response> {
        let members = self.members(region);
        if self.is_elsewhere {
            return Err(Error::invalid(Invalid::Mismatch, "other members"));
        }
        if members == voters(change, false) {
            assert!(self.nodes[&change.joins.1].has(change.joins.0), "it gets the log before it is made");
            self.learners.insert(change.joins.0);
        } else if members != voters(change, true) {
            return Err(Error::invalid(Invalid::Mismatch, "other members"));
        }
        Ok(Response::Done)
    }

    fn switch(&mut self, region: RegionId, change: &Replacement) -> Result<Response> {
        let members = self.members(region);
        if members == voters(change, true) {
            return Ok(Response::Done);
        }
        let (joins, node) = change.joins;
        if self.is_elsewhere || members != voters(change, false) || !self.learners.contains(&joins) {
            return Err(Error::invalid(Invalid::Mismatch, "other members, or no learner"));
        }
        if self.nodes[&node].is_down || !self.nodes[&node].has(joins) {
            return Err(Error::Busy { what: "it is behind".to_string() });
        }
        for of in self.nodes.values_mut().filter_map(|node| node.formed.get_mut(&region)) {
            *of = voters(change, true).into_iter().map(|id| (id, of.get(&id).copied().unwrap_or(node))).collect();
        }
        let members = self.nodes.values().find_map(|node| node.formed.get(&region)).cloned().unwrap_or_default();
        self.nodes.get_mut(&node).unwrap().formed.insert(region, members);
        Ok(Response::Done)
    }

    fn unlearn(&mut self, region: RegionId, change: &Replacement) -> Result<Response> {
        if self.members(region) != voters(change, false) {
            return Err(Error::invalid(Invalid::Request, "it has its vote"));
        }
        self.learners.remove(&change.joins.0);
        Ok(Response::Done)
    }

    fn members(&self, region: RegionId) -> BTreeSet<ReplicaId> {
        let formed = self.nodes.values().find_map(|node| node.formed.get(&region));
        formed.into_iter().flat_map(|members| members.keys().copied()).collect()
    }

    /// The next number below `bound`: xorshift.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// One leader's view of the group.
struct FakeGroup {
    world: World,
    machine: Arc<Machine>,
    term: u64,
    /// Entries that the machine has.
    applied: Mutex<usize>,
}

impl FakeGroup {
    /// Applies what is committed, and returns what the last entry gave.
    fn catch_up(&self) -> Result<Bytes> {
        let inner = self.world.lock();
        let mut applied = self.applied.lock().unwrap();
        let mut outcome = Bytes::new();
        for command in &inner.log[*applied..] {
            outcome = self.machine.apply(command)?;
            *applied += 1;
        }
        Ok(outcome)
    }
}

#[async_trait]
impl Group for FakeGroup {
    async fn propose(&self, command: Bytes) -> Result<Bytes> {
        sleep(Duration::from_millis(1)).await;
        let not_leader = Err(Error::NotLeader { region: RegionId::META, hint: None });
        let unknown = Err(Error::Unknown { message: "no answer".to_string() });
        let loss = {
            let mut inner = self.world.lock();
            if inner.term != self.term || !inner.leads {
                return not_leader;
            }
            let loss = match &mut inner.lose {
                Some((1, loss)) => Some(*loss),
                Some((proposals, _)) => {
                    *proposals -= 1;
                    None
                }
                None => None,
            };
            if loss.is_some() {
                inner.lose = None;
                inner.leads = false;
            }
            if loss == Some(Loss::Deaf) {
                inner.deaf.insert(self.term);
            }
            if !matches!(loss, Some(Loss::Before | Loss::NotAppended)) {
                inner.log.push(command.clone());
            }
            if loss == Some(Loss::Killed) {
                let running = inner.leader.as_ref().and_then(|leader| leader.running.lock().unwrap().take());
                running.iter().for_each(JoinHandle::abort);
            }
            loss
        };
        match loss {
            Some(Loss::Before) => not_leader,
            Some(Loss::NotAppended | Loss::Unanswered | Loss::Killed) => unknown,
            Some(Loss::Deaf) => {
                self.world.elect();
                unknown
            }
            Some(Loss::Answered) | None => self.catch_up(),
        }
    }

    async fn read_index(&self) -> Result<()> {
        sleep(Duration::from_millis(1)).await;
        let leads = Some(self.world.lock()).is_some_and(|inner| inner.term == self.term && inner.leads);
        match leads {
            true => self.catch_up().map(drop),
            false => Err(Error::NotLeader { region: RegionId::META, hint: None }),
        }
    }

    fn leading(&self) -> Option<u64> {
        let inner = self.world.lock();
        let leads = inner.term == self.term && inner.leads;
        (leads || inner.deaf.contains(&self.term)).then_some(self.term)
    }
}
