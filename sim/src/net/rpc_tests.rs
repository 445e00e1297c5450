//! Calls between nodes on a network that breaks: what the caller is told, and what was done.

use std::collections::BTreeMap;

use engine::error::{Error, Result};
use engine::event::{Event, Events, Listen};
use engine::options::Options;
use engine::server::message::{RaftVerb, Request, Response, SqlAnswer};
use engine::server::rpc::{Handler, Peers, serve};
use engine::types::ReplicaId;
use madsim::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::tests::simulate;
use super::*;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Waits as many milliseconds as `Sql::session` says; remembers all statements that it began with.
#[derive(Default)]
struct Server {
    began: Mutex<Vec<String>>,
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, _: NodeId, request: Request, _: Duration) -> Result<Response> {
        let Request::Sql { session, sql } = request else { return Ok(Response::Raft(Bytes::new())) };
        self.began.lock().unwrap().push(sql.clone());
        if session > 0 {
            sleep(Duration::from_millis(session)).await;
        }
        Ok(Response::Sql(SqlAnswer { session, affected: Some(sql.len() as u64), rows: None }))
    }
}

impl Server {
    fn began(&self) -> Vec<String> {
        self.began.lock().unwrap().clone()
    }
}

/// Hears of connections.
#[derive(Default)]
struct Ears(Mutex<Vec<String>>);

impl Listen for Ears {
    fn on_event(&self, _: NodeId, event: &Event) {
        let said = match event {
            Event::PeerConnected { peer } => format!("connected to {peer}"),
            Event::PeerLost { peer, unanswered } => format!("lost {peer}, {unanswered} unanswered"),
            other => panic!("{other:?}"),
        };
        self.0.lock().unwrap().push(said);
    }
}

/// n1 calls n2.
struct Two {
    net: SimNet,
    peers: Arc<Peers>,
    ears: Arc<Ears>,
    server: Arc<Server>,
    serving: JoinHandle<()>,
}

impl Two {
    async fn new(net: SimNet) -> Two {
        Two::with(net, Options::default(), Options::default()).await
    }

    async fn with(net: SimNet, callers: Options, servers: Options) -> Two {
        let ears = Arc::new(Ears::default());
        let addrs = BTreeMap::from([(N2, "n2:1".to_owned())]);
        let events = Events::heard_by(N1, ears.clone());
        let peers = Peers::new(N1, net.boot(N1), addrs, Arc::new(callers), events);
        let server = Arc::new(Server::default());
        let serving = start(&net, server.clone(), servers).await;
        Two { net, peers, ears, server, serving }
    }

    async fn call(&self, after_ms: u64, sql: &str, within: Duration) -> Result<Response> {
        self.peers.call(N2, Request::Sql { session: after_ms, sql: sql.into() }, within).await
    }

    async fn works(&self) {
        self.call(0, "works", SECOND).await.unwrap();
    }

    /// The first frame with this answer flag and this length or more has this fate.
    fn first(&self, answer: bool, fate: FrameFate) {
        let once = Mutex::new(Some(fate));
        self.net.on_frame(Some(Arc::new(move |frame| {
            assert_eq!((frame.kind, frame.from), (Kind::Sql, if frame.answer { N2 } else { N1 }));
            if frame.answer != answer {
                return FrameFate::Deliver;
            }
            once.lock().unwrap().take().unwrap_or(FrameFate::Deliver)
        })));
    }
}

async fn start(net: &SimNet, server: Arc<Server>, options: Options) -> JoinHandle<()> {
    let listener = net.boot(N2).listen("n2:1").await.unwrap();
    let serving = serve(listener, server, Arc::new(options), Events::of(N2));
    tokio::spawn(async move { match serving.await {} })
}

fn is_unknown(answer: &Result<Response>) -> bool {
    matches!(answer, Err(err @ Error::Unknown { .. }) if err.may_have_applied())
}

fn was_not_sent(answer: &Result<Response>) -> bool {
    matches!(answer, Err(err @ (Error::Busy { .. } | Error::Deadline { .. })) if !err.may_have_applied())
}

/// Runs `test` on several seeds.
fn on_seeds<F: Future<Output = ()>>(test: impl Fn(SimNet) -> F) {
    (0..10).for_each(|seed| simulate(seed, NetConfig::default(), &test));
}

#[test]
fn a_lost_answer_is_unknown_and_the_request_was_handled_once() {
    for (answer, fate) in [(true, FrameFate::Cut), (false, FrameFate::DeliverThenCut)] {
        on_seeds(|net| async move {
            let two = Two::new(net).await;
            two.works().await;
            two.first(answer, fate);
            let lost = two.call(20, "lost", 5 * SECOND).await;
            assert!(is_unknown(&lost), "{lost:?}");
            // Longer than a round trip.
            sleep(20 * MS).await;
            assert_eq!(two.server.began(), ["works", "lost"]);
            two.works().await;
            assert_eq!(two.net.effects().connections_cut, 1);
            let heard = ["connected to n2", "lost n2, 1 unanswered", "connected to n2"];
            assert_eq!(*two.ears.0.lock().unwrap(), heard);
        });
    }
}

#[test]
fn a_lost_request_is_unknown_too_and_was_never_handled() {
    on_seeds(|net| async move {
        let two = Two::new(net).await;
        two.works().await;
        two.first(false, FrameFate::Cut);
        let lost = two.call(0, "lost", 5 * SECOND).await;
        assert!(is_unknown(&lost), "{lost:?}");
        two.works().await;
        assert_eq!(two.server.began(), ["works", "works"]);
    });
}

#[test]
fn a_delayed_request_is_handled_late() {
    on_seeds(|net| async move {
        let two = Two::new(net).await;
        two.works().await;
        two.first(false, FrameFate::Delay(3 * SECOND));
        let late = two.call(0, "late", SECOND).await;
        assert!(is_unknown(&late), "{late:?}");
        assert_eq!(two.server.began(), ["works"]);
        sleep(3 * SECOND).await;
        assert_eq!(two.server.began(), ["works", "late"]);
        assert_eq!(two.net.effects().frames_delayed, 1);
    });
}

#[test]
fn what_cannot_be_connected_was_not_sent() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        net.power_loss(N2);
        // Silence: the caller's deadline ends it.
        let start = Instant::now();
        let silent = two.call(0, "silent", 500 * MS).await;
        assert!(was_not_sent(&silent), "{silent:?}");
        assert!(start.elapsed() < 510 * MS, "{:?}", start.elapsed());
        // The attempt gives up by itself, and says so to who is still there.
        let refused = two.call(0, "silent", 60 * SECOND).await;
        let Err(Error::Busy { what }) = &refused else { panic!("{refused:?}") };
        assert_eq!(what, "node n2 at n2:1 cannot be reached: no answer within 2000 ms");
        assert_eq!(two.server.began().len(), 0);
    });
}

#[test]
fn a_dead_peer_is_not_hammered() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        net.crash(N2);
        let before = net.effects().connections_refused;
        let calls = (0..1000u32).map(|at| {
            let two = &two;
            async move {
                sleep(at * 10 * MS).await;
                assert!(was_not_sent(&two.call(0, "", SECOND).await));
            }
        });
        futures::future::join_all(calls).await;
        // In 10 s: pauses of 20, 40, .. 640, then 1,000 ms.
        let attempts = net.effects().connections_refused - before;
        assert!((10..=18).contains(&attempts), "{attempts} attempts");
        // And the pause is over soon after the peer is back.
        let _serving = start(&net, two.server.clone(), Options::default()).await;
        two.call(0, "back", 2 * SECOND).await.unwrap();
        // A peer that has answered is trusted again: the next pause is a short one.
        net.cut(N1, N2);
        sleep(MS).await;
        let start = Instant::now();
        two.works().await;
        assert!(start.elapsed() < 100 * MS, "{:?}", start.elapsed());
    });
}

#[test]
fn a_peer_that_restarts_is_found_again() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        two.works().await;
        for power_loss in [false, true] {
            two.serving.abort();
            if power_loss {
                net.power_loss(N2);
            } else {
                net.crash(N2);
            }
            sleep(SECOND).await;
            let _serving = start(&net, two.server.clone(), Options::default()).await;
            // After a power loss nobody has told the caller that the connection is gone: the first call finds out.
            let first = two.call(0, "first", 5 * SECOND).await;
            assert_eq!(is_unknown(&first), power_loss, "{first:?}");
            for _ in 0..3 {
                two.works().await;
            }
        }
    });
}

#[test]
fn a_silent_connection_is_given_up_and_not_used_for_ever() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        two.works().await;
        let _partition = net.partition(&[N1], &[N2]);
        let start = Instant::now();
        // Calls shorter than the patience with a connection do not end it, together they do.
        while two.ears.0.lock().unwrap().len() < 2 {
            let silent = two.call(0, "silent", 300 * MS).await;
            assert!(silent.is_err(), "{silent:?}");
        }
        assert!(start.elapsed() >= 2 * SECOND && start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
        net.calm();
        sleep(5 * SECOND).await;
        // The new connection is not blamed for the silence of the old one.
        let slow = two.call(1000, "slow", 100 * MS).await;
        assert!(is_unknown(&slow), "{slow:?}");
        two.works().await;
        assert_eq!(two.ears.0.lock().unwrap().len(), 3, "{:?}", two.ears.0);
    });
}

#[test]
fn what_was_not_sent_on_a_lost_connection_is_sent_on_the_next_one() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        two.works().await;
        let partition = net.partition(&[N1], &[N2]);
        // Larger than the buffers: what comes after it stays with the caller.
        let large = "x".repeat(1_000_000);
        let first = two.call(0, &large, 10 * SECOND);
        let second = async {
            sleep(SECOND).await;
            two.call(0, "second", 10 * SECOND).await
        };
        let cut = async {
            sleep(2 * SECOND).await;
            net.cut(N1, N2);
            net.lift(partition);
        };
        let (first, second, ()) = tokio::join!(first, second, cut);
        assert!(is_unknown(&first), "{first:?}");
        second.unwrap();
        assert_eq!(two.server.began(), ["works", "second"]);
    });
}

#[test]
fn a_slow_answer_does_not_end_a_connection_on_which_others_come() {
    on_seeds(|net| async move {
        let two = Two::new(net).await;
        let slow = two.call(60_000, "slow", 10 * SECOND);
        let quick = async {
            for _ in 0..100 {
                sleep(90 * MS).await;
                two.works().await;
            }
        };
        let (slow, ()) = tokio::join!(slow, quick);
        assert!(is_unknown(&slow));
        two.works().await;
        assert_eq!(*two.ears.0.lock().unwrap(), ["connected to n2"]);
    });
}

#[test]
fn the_callers_window_bounds_what_is_under_way() {
    on_seeds(|net| async move {
        let two = Two::with(net, Options { rpc_window: 2, ..Options::default() }, Options::default()).await;
        let slow = || two.call(1000, "slow", 5 * SECOND);
        let third = async {
            sleep(100 * MS).await;
            two.call(0, "third", 500 * MS).await
        };
        let fourth = async {
            sleep(200 * MS).await;
            two.call(0, "fourth", 5 * SECOND).await
        };
        let (a, b, third, fourth) = tokio::join!(slow(), slow(), third, fourth);
        a.unwrap();
        b.unwrap();
        let Err(Error::Deadline { waiting_for }) = &third else { panic!("{third:?}") };
        assert_eq!(waiting_for, "a place among the 2 requests under way to node n2");
        fourth.unwrap();
        assert_eq!(two.server.began(), ["slow", "slow", "fourth"]);
    });
}

#[test]
fn a_dropped_call_frees_its_place() {
    on_seeds(|net| async move {
        let two = Two::with(net, Options { rpc_window: 1, ..Options::default() }, Options::default()).await;
        timeout(100 * MS, two.call(10_000, "dropped", 60 * SECOND)).await.expect_err("it takes 10 s");
        two.works().await;
        // Dropped before it was sent, it is not sent.
        two.net.power_loss(N2);
        sleep(SECOND).await;
        let _serving = start(&two.net, two.server.clone(), Options::default()).await;
        let _ = two.call(0, "finds out", SECOND).await;
        timeout(2 * MS, two.call(0, "never sent", SECOND)).await.expect_err("there is a pause after a lost connection");
        sleep(SECOND).await;
        two.works().await;
        assert!(!two.server.began().contains(&"never sent".into()), "{:?}", two.server.began());
    });
}

#[test]
fn the_servers_window_holds_requests_back_and_drops_those_that_come_too_late() {
    on_seeds(|net| async move {
        let two = Two::with(net, Options::default(), Options { rpc_window: 1, ..Options::default() }).await;
        let first = two.call(1000, "first", 5 * SECOND);
        let later = async {
            sleep(100 * MS).await;
            // The first one after it is read, the second one is not.
            tokio::join!(two.call(0, "too late", 500 * MS), two.call(0, "in time", 5 * SECOND))
        };
        let (first, (late, in_time)) = tokio::join!(first, later);
        first.unwrap();
        assert!(is_unknown(&late), "{late:?}");
        in_time.unwrap();
        assert_eq!(two.server.began(), ["first", "in time"]);
    });
}

#[test]
fn a_large_message_does_not_delay_a_heartbeat() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        let slow = Profile { bytes_per_second: 1_000_000, ..Profile::default() };
        net.set_link(N1, N2, slow);
        let raft = |verb, len| Request::Raft { to: ReplicaId(1), verb, message: vec![0; len].into() };
        two.peers.call(N2, raft(RaftVerb::Append, 10), SECOND).await.unwrap();
        let snapshot = two.peers.call(N2, raft(RaftVerb::Snapshot, 10_000_000), 60 * SECOND);
        let heartbeats = async {
            for _ in 0..20 {
                sleep(200 * MS).await;
                let start = Instant::now();
                two.peers.call(N2, raft(RaftVerb::Append, 10), SECOND).await.unwrap();
                // What a buffer holds is in front of it on the wire; the rest of the snapshot is not.
                assert!(start.elapsed() < 300 * MS, "{:?}", start.elapsed());
            }
        };
        let (snapshot, ()) = tokio::join!(snapshot, heartbeats);
        snapshot.unwrap();
    });
}

#[test]
fn nothing_is_left_of_lost_connections() {
    on_seeds(|net| async move {
        // madsim counts the tasks of its nodes, the supervisor's not.
        let node = Handle::current().create_node().build();
        let test = async move {
            let two = Two::new(net.clone()).await;
            two.works().await;
            sleep(SECOND).await;
            let before = (net.connections(), Handle::current().metrics().num_tasks());
            assert_eq!(before, (1, 4), "the test, the server, a connection's two ends");
            for _ in 0..20 {
                net.cut(N1, N2);
                sleep(100 * MS).await;
                two.works().await;
            }
            sleep(60 * SECOND).await;
            assert_eq!((net.connections(), Handle::current().metrics().num_tasks()), before);
            drop(two.peers);
            sleep(SECOND).await;
            assert_eq!((net.connections(), Handle::current().metrics().num_tasks()), (0, 2));
        };
        node.spawn(test).await.unwrap();
    });
}

#[test]
fn a_hook_can_end_the_process_that_sends() {
    on_seeds(|net| async move {
        let two = Two::new(net.clone()).await;
        two.works().await;
        let hosts = net.clone();
        net.on_frame(Some(Arc::new(move |frame| {
            if !frame.answer {
                hosts.crash(N1);
            }
            FrameFate::Deliver
        })));
        timeout(SECOND, two.call(0, "dies", 5 * SECOND)).await.expect_err("the write must not return");
        assert_eq!(two.server.began(), ["works"]);
    });
}
