//! What calls between nodes promise, on whatever network. Faults of the network are in `sim`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::error::{Error, Result};
use engine::event::Events;
use engine::options::Options;
use engine::server::message::{Kind, Request, Response, SqlAnswer};
use engine::server::rpc::{Handler, Peers, serve};
use engine::types::{NodeId, RegionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::net::{World, soon};

const SECOND: Duration = Duration::from_secs(1);

/// Answers `Sql { session: ms, sql }` after so many milliseconds with the statement's length.
#[derive(Default)]
struct Patient {
    handled: AtomicU64,
    callers: Mutex<Vec<NodeId>>,
}

#[async_trait]
impl Handler for Patient {
    async fn handle(&self, from: NodeId, request: Request, _: Duration) -> Result<Response> {
        self.handled.fetch_add(1, Ordering::Relaxed);
        self.callers.lock().unwrap().push(from);
        match request {
            Request::Sql { session, sql } => {
                if session > 0 {
                    sleep(Duration::from_millis(session)).await;
                }
                // As many bytes come back as the statement says.
                let rows = sql.strip_prefix("give ").map(|len| vec![7; len.parse().unwrap()].into());
                Ok(Response::Sql(SqlAnswer { session, affected: Some(sql.len() as u64), rows }))
            }
            Request::Flush { region } => Err(Error::NotLeader { region, hint: None }),
            _ => Ok(Response::Done),
        }
    }
}

fn sql(after_ms: u64, sql: impl Into<String>) -> Request {
    Request::Sql { session: after_ms, sql: sql.into() }
}

fn affected(answer: Result<Response>) -> u64 {
    match answer {
        Ok(Response::Sql(SqlAnswer { affected: Some(affected), .. })) => affected,
        other => panic!("{other:?}"),
    }
}

struct Cluster {
    world: World,
    addr: String,
    handler: Arc<Patient>,
    server: JoinHandle<()>,
    peers: Arc<Peers>,
}

impl Cluster {
    async fn new(world: World, options: Options) -> Cluster {
        let handler = Arc::new(Patient::default());
        let (addr, server) = start(&world, &world.listen, handler.clone(), options.clone()).await;
        let peers = peers(&world, &addr, options);
        Cluster { world, addr, handler, server, peers }
    }

    async fn call(&self, request: Request, within: Duration) -> Result<Response> {
        soon(self.peers.call(NodeId(1), request, within)).await
    }
}

async fn start(world: &World, at: &str, handler: Arc<Patient>, options: Options) -> (String, JoinHandle<()>) {
    let listener = world.server.listen(at).await.unwrap();
    let addr = listener.addr();
    let serving = serve(listener, handler, Arc::new(options), Events::of(NodeId(1)));
    (addr, tokio::spawn(async move { match serving.await {} }))
}

fn peers(world: &World, addr: &str, options: Options) -> Arc<Peers> {
    let addrs = BTreeMap::from([(NodeId(1), addr.to_owned())]);
    Peers::new(NodeId(2), world.client.clone(), addrs, Arc::new(options), Events::of(NodeId(2)))
}

pub async fn answers_find_their_calls(world: World) {
    let cluster = Cluster::new(world, Options { rpc_window: 16, ..Options::default() }).await;
    // The later ones answer first.
    let calls = (0..100usize).map(|at| {
        let request = sql(if at % 10 == 0 { 0 } else { 100 - at as u64 }, "x".repeat(at));
        let cluster = &cluster;
        async move { (at as u64, cluster.call(request, 10 * SECOND).await) }
    });
    for (at, answer) in futures::future::join_all(calls).await {
        assert_eq!(affected(answer), at);
    }
    assert!(cluster.handler.callers.lock().unwrap().iter().all(|from| *from == NodeId(2)));
}

pub async fn errors_travel(world: World) {
    let cluster = Cluster::new(world, Options::default()).await;
    let answer = cluster.call(Request::Flush { region: RegionId(9) }, SECOND).await;
    assert_eq!(answer, Err(Error::NotLeader { region: RegionId(9), hint: None }));
}

pub async fn large_messages_pass_and_too_large_ones_are_refused(world: World) {
    let cluster = Cluster::new(world, Options { rpc_frame_bytes: 4 << 20, ..Options::default() }).await;
    assert_eq!(affected(cluster.call(sql(0, "x".repeat(3 << 20)), 20 * SECOND).await), 3 << 20);
    let Ok(Response::Sql(answer)) = cluster.call(sql(0, "give 3000000"), 20 * SECOND).await else { panic!() };
    assert_eq!(answer.rows.unwrap(), vec![7; 3_000_000]);
    // The request never leaves; the answer of the second one does not, and the connection stays.
    let err = cluster.call(sql(0, "x".repeat(5 << 20)), 20 * SECOND).await.unwrap_err();
    assert!(err.code() == "request" && !err.may_have_applied(), "{err}");
    let err = cluster.call(sql(0, "give 5000000"), 20 * SECOND).await.unwrap_err();
    assert_eq!(err.code(), "request");
    assert_eq!(cluster.handler.handled.load(Ordering::Relaxed), 3);
    assert_eq!(affected(cluster.call(sql(0, "fine"), SECOND).await), 4);
}

pub async fn what_nobody_listens_for_was_not_sent(world: World) {
    let listener = world.server.listen(&world.listen).await.unwrap();
    let addr = listener.addr();
    drop(listener);
    let peers = peers(&world, &addr, Options::default());
    let err = soon(peers.call(NodeId(1), sql(0, ""), SECOND)).await.unwrap_err();
    assert!(err.code() == "busy" && err.is_retryable() && !err.may_have_applied(), "{err}");
    let err = soon(peers.call(NodeId(5), sql(0, ""), SECOND)).await.unwrap_err();
    assert_eq!(err.to_string(), "[busy] node n5 cannot be reached: it has no known address; try again later");
    // As soon as somebody does, it works.
    let (_, _server) = start(&world, &addr, Arc::new(Patient::default()), Options::default()).await;
    assert_eq!(affected(soon(peers.call(NodeId(1), sql(0, "now"), 5 * SECOND)).await), 3);
}

pub async fn a_late_answer_is_unknown_and_disturbs_nobody(world: World) {
    let cluster = Cluster::new(world, Options::default()).await;
    let started = Instant::now();
    let err = cluster.call(sql(300, "slow"), Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(err, Error::Unknown { .. }), "{err}");
    assert!(started.elapsed() < Duration::from_millis(290), "{:?}", started.elapsed());
    // On the same connection, before and after the late answer comes.
    assert_eq!(affected(cluster.call(sql(0, "a"), SECOND).await), 1);
    sleep(Duration::from_millis(400)).await;
    assert_eq!(affected(cluster.call(sql(0, "ab"), SECOND).await), 2);
    assert_eq!(cluster.handler.handled.load(Ordering::Relaxed), 3);
}

pub async fn a_server_that_stops_leaves_unknown_and_can_come_back(world: World) {
    let cluster = Cluster::new(world, Options::default()).await;
    assert_eq!(affected(cluster.call(sql(0, "first"), SECOND).await), 5);
    let hanging = cluster.call(sql(10_000, "never"), 20 * SECOND);
    let stop = async {
        sleep(Duration::from_millis(200)).await;
        cluster.server.abort();
    };
    let (answer, ()) = tokio::join!(hanging, stop);
    assert!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
    sleep(Duration::from_millis(100)).await;
    let err = cluster.call(sql(0, "nobody"), SECOND).await.unwrap_err();
    assert!(!err.may_have_applied(), "{err}");
    let (_, _server) = start(&cluster.world, &cluster.addr, cluster.handler.clone(), Options::default()).await;
    assert_eq!(affected(cluster.call(sql(0, "again"), 5 * SECOND).await), 5);
}

pub async fn strangers_are_shown_the_door(world: World) {
    let cluster = Cluster::new(world, Options { rpc_timeout_ms: 300, ..Options::default() }).await;
    let hello: &[u8] = &hello();
    let mut wrong_sum = hello.to_vec();
    wrong_sum[9] ^= 1;
    // Two hellos: a frame that is right and out of place. None: a peer that never says who it is.
    let strangers: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", &[0; 100], &wrong_sum, &[hello, hello].concat(), b""];
    for stranger in strangers {
        let mut stream = cluster.world.client.connect(&cluster.addr).await.unwrap();
        stream.write_all(stranger).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert_eq!(answer, b"", "{stranger:?} was answered");
    }
    assert_eq!(cluster.handler.handled.load(Ordering::Relaxed), 0);
    assert_eq!(affected(cluster.call(sql(0, "friend"), SECOND).await), 6);
}

pub async fn a_stranger_that_answers_is_not_believed(world: World) {
    let message = answered_with(world, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(message.contains("its first byte is 0x48"), "{message}");
}

pub async fn an_answer_to_something_else_is_not_believed(world: World) {
    // `Ok(Response::Done)` to a status request, for the call that was made.
    let body = [0, 3];
    let mut answer = vec![0xd1, 1, Kind::Status as u8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    answer.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    answer.extend_from_slice(&crc32fast::hash(&answer).to_le_bytes());
    answer.extend_from_slice(&body);
    let message = answered_with(world, &answer).await;
    assert!(message.contains("call 1 is a sql, the answer is to a status"), "{message}");
}

/// What a call is told whose outcome is unknown because these bytes answered it.
async fn answered_with(world: World, answer: &[u8]) -> String {
    let mut listener = world.server.listen(&world.listen).await.unwrap();
    let peers = peers(&world, &listener.addr(), Options::default());
    let stranger = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 40];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    };
    let call = peers.call(NodeId(1), sql(0, "hello?"), 5 * SECOND);
    let (answer, ()) = soon(async { tokio::join!(call, stranger) }).await;
    let Err(Error::Unknown { message }) = answer else { panic!("{answer:?}") };
    message
}

/// The hello of node 2 for bulk, byte by byte as the format says.
fn hello() -> Vec<u8> {
    let mut hello = vec![0xd1, 2, 0, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    hello.extend_from_slice(&crc32fast::hash(&hello).to_le_bytes());
    hello
}
