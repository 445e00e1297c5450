//! Each fault has its effect, the one that it is meant to have. The promises that hold without faults are in
//! `tests/conformance.rs`.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};

use madsim::runtime::Runtime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::hash::Hash128;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Whole writes and reads, so that a test can say when what arrives.
fn whole() -> NetConfig {
    NetConfig { short_writes: 0.0, short_reads: 0.0, ..NetConfig::default() }
}

pub(super) fn simulate<F: Future>(seed: u64, config: NetConfig, test: impl FnOnce(SimNet) -> F) -> F::Output {
    let mut runtime = Runtime::with_seed_and_config(seed, madsim::Config::default());
    runtime.set_time_limit(Duration::from_secs(3600));
    runtime.block_on(async { test(SimNet::new(Draws::new(seed), config)).await })
}

/// Two booted hosts and what connects them.
struct Pair {
    /// n1, the one that connects.
    client: Arc<dyn Net>,
    listener: Box<dyn Listener>,
    near: Box<dyn Stream>,
    /// The end at n2.
    far: Box<dyn Stream>,
}

impl Pair {
    async fn new(net: &SimNet) -> Pair {
        let (client, server) = (net.boot(N1), net.boot(N2));
        let mut listener = server.listen("n2:1").await.unwrap();
        let (near, far) = join(&*client, &mut listener).await;
        Pair { client, listener, near, far }
    }
}

async fn join(client: &dyn Net, listener: &mut Box<dyn Listener>) -> (Box<dyn Stream>, Box<dyn Stream>) {
    let addr = listener.addr();
    let (near, far) = tokio::join!(client.connect(&addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// How long until a byte is there.
async fn arrival(stream: &mut Box<dyn Stream>) -> Duration {
    let start = Instant::now();
    stream.read_exact(&mut [0]).await.unwrap();
    start.elapsed()
}

async fn ends(stream: &mut Box<dyn Stream>) -> ErrorKind {
    stream.read_exact(&mut [0]).await.expect_err("bytes came").kind()
}

#[test]
fn a_byte_takes_as_long_as_the_link_says() {
    let mut seen = Vec::new();
    for seed in 0..50 {
        seen.push(simulate(seed, whole(), |net| async move {
            let mut pair = Pair::new(&net).await;
            pair.near.write_all(b"x").await.unwrap();
            arrival(&mut pair.far).await
        }));
    }
    let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
    assert!(*least >= MS && *least < 2 * MS, "{least:?}");
    assert!(*most <= 5 * MS + MS / 100 && *most > 4 * MS, "{most:?}");
}

#[test]
fn a_narrow_link_takes_its_time_and_is_shared() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.set_link(N1, N2, Profile { bytes_per_second: 100_000, ..Profile::default() });
        let mut other = join(&*pair.client, &mut pair.listener).await;
        let start = Instant::now();
        let (mut all, mut rest) = (vec![0; 100_000], vec![0; 50_000]);
        let writes = async { tokio::try_join!(pair.near.write_all(&[1; 100_000]), other.0.write_all(&[2; 50_000])) };
        let reads = async { tokio::try_join!(pair.far.read_exact(&mut all), other.1.read_exact(&mut rest)) };
        tokio::try_join!(writes, reads).unwrap();
        let took = start.elapsed();
        assert!(took >= 1500 * MS && took < 1600 * MS, "{took:?}");
    });
}

#[test]
fn a_slow_link_is_slow_in_one_direction() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let slow = Profile { latency_min: 300 * MS, latency_max: 400 * MS, ..Profile::default() };
        net.set_link(N1, N2, slow);
        pair.near.write_all(b"x").await.unwrap();
        assert!(arrival(&mut pair.far).await >= 300 * MS);
        pair.far.write_all(b"x").await.unwrap();
        assert!(arrival(&mut pair.near).await < 10 * MS);
        net.calm();
        pair.near.write_all(b"x").await.unwrap();
        assert!(arrival(&mut pair.far).await < 10 * MS);
    });
}

#[test]
fn a_lost_packet_is_a_late_one() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.set_link(N1, N2, Profile { loss: 1.0, ..Profile::default() });
        pair.near.write_all(b"x").await.unwrap();
        let took = arrival(&mut pair.far).await;
        assert!(took >= 200 * MS && took < 1010 * MS, "{took:?}");
        assert_eq!(net.effects().segments_lost, 1);
    });
}

#[test]
fn writes_and_reads_are_short_now_and_then() {
    let config = NetConfig { short_writes: 0.5, short_reads: 0.5, ..NetConfig::default() };
    simulate(1, config, |net| async move {
        let mut pair = Pair::new(&net).await;
        let mut accepted = Vec::new();
        for _ in 0..20 {
            accepted.push(pair.near.write(&[7; 100]).await.unwrap());
        }
        assert!(accepted.contains(&100) && accepted.iter().any(|len| *len < 100), "{accepted:?}");
        sleep(SECOND).await;
        let (mut read, mut sizes) = (0, Vec::new());
        while read < accepted.iter().sum() {
            sizes.push(pair.far.read(&mut [0; 10]).await.unwrap());
            read += sizes.last().unwrap();
        }
        assert!(sizes.contains(&10) && sizes.iter().any(|len| *len < 10), "{sizes:?}");
        let effects = net.effects();
        assert!(effects.short_writes > 0 && effects.short_reads > 0, "{effects:?}");
    });
}

#[test]
fn a_partition_holds_what_is_sent_and_lets_it_go_within_a_second_after_healing() {
    for seed in 0..20 {
        simulate(seed, whole(), |net| async move {
            let mut pair = Pair::new(&net).await;
            let partition = net.partition(&[N1], &[N2]);
            pair.near.write_all(b"a").await.unwrap();
            pair.far.write_all(b"b").await.unwrap();
            timeout(10 * SECOND, pair.far.read_exact(&mut [0])).await.expect_err("it came through");
            pair.near.write_all(b"c").await.unwrap();
            timeout(SECOND, pair.near.read_exact(&mut [0])).await.expect_err("it came through");
            assert_eq!(net.lift(partition), 3);
            let mut both = [0; 2];
            let start = Instant::now();
            pair.far.read_exact(&mut both).await.unwrap();
            assert_eq!(&both, b"ac");
            assert!(start.elapsed() <= SECOND + MS, "{:?}", start.elapsed());
            arrival(&mut pair.near).await;
            assert!(start.elapsed() <= SECOND + MS, "{:?}", start.elapsed());
            assert_eq!(net.effects().segments_held, 3);
        });
    }
}

#[test]
fn after_fifteen_seconds_of_partition_the_sender_gives_up_and_its_peer_learns_it_later() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let partition = net.partition(&[N1], &[N2]);
        pair.near.write_all(b"a").await.unwrap();
        let start = Instant::now();
        assert_eq!(ends(&mut pair.near).await, ErrorKind::TimedOut);
        assert!(start.elapsed() >= 15 * SECOND && start.elapsed() < 16 * SECOND, "{:?}", start.elapsed());
        net.lift(partition);
        timeout(SECOND, pair.far.read_exact(&mut [0])).await.expect_err("the bytes were dropped");
        pair.far.write_all(b"b").await.unwrap();
        assert_eq!(ends(&mut pair.far).await, ErrorKind::ConnectionReset);
        assert_eq!(net.effects().given_up, 1);
    });
}

#[test]
fn a_one_way_partition_lets_the_other_way_pass_until_acknowledgements_are_missed() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let partition = net.partition_one_way(&[N2], &[N1]);
        pair.near.write_all(b"a").await.unwrap();
        assert!(arrival(&mut pair.far).await < 10 * MS);
        // What n2 sends is held, and n1 hears no acknowledgement: its buffer fills, and then it gives up.
        pair.far.write_all(b"b").await.unwrap();
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            let _ = timeout(5 * SECOND, pair.far.read_to_end(&mut all)).await;
            (pair.far, all.len())
        });
        let mut accepted = 0;
        let fill = async {
            loop {
                accepted += pair.near.write(&[1; 10_000]).await.unwrap();
            }
        };
        timeout(5 * SECOND, fill).await.expect_err("it never ends");
        assert_eq!(accepted, NetConfig::default().buffer_bytes - 1);
        let (_far, read) = reader.await.unwrap();
        assert_eq!(read, accepted, "all of it has arrived");
        assert_eq!(ends(&mut pair.near).await, ErrorKind::TimedOut);
        assert_eq!(net.lift(partition), 1);
    });
}

#[test]
fn a_one_way_partition_that_ends_in_time_costs_nothing() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let partition = net.partition_one_way(&[N2], &[N1]);
        pair.near.write_all(&[1; 1000]).await.unwrap();
        pair.far.read_exact(&mut [0; 1000]).await.unwrap();
        sleep(10 * SECOND).await;
        let _ = net.lift(partition);
        sleep(60 * SECOND).await;
        // The whole buffer is free again, and nobody has given up.
        let written = timeout(SECOND, pair.near.write_all(&vec![1; NetConfig::default().buffer_bytes])).await;
        written.expect("a part of the buffer is lost").unwrap();
        assert_eq!(net.effects().given_up, 0);
    });
}

#[test]
fn obstacles_are_lifted_one_by_one() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.boot(N3);
        let (isolated, partition) = (net.isolate(N1), net.partition(&[N1], &[N2]));
        pair.near.write_all(b"a").await.unwrap();
        sleep(SECOND).await;
        net.lift(isolated);
        timeout(5 * SECOND, pair.far.read_exact(&mut [0])).await.expect_err("the partition is still there");
        net.lift(partition);
        assert!(arrival(&mut pair.far).await <= SECOND + MS);
    });
}

#[test]
fn a_clog_bursts() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let clog = net.clog(&[N1], &[N2]);
        for _ in 0..20 {
            pair.near.write_all(b"x").await.unwrap();
            sleep(SECOND).await;
        }
        assert_eq!(net.lift(clog), 20);
        let start = Instant::now();
        pair.far.read_exact(&mut [0; 20]).await.unwrap();
        assert!(start.elapsed() < MS, "{:?}", start.elapsed());
        assert_eq!(net.effects().given_up, 0);
    });
}

#[test]
fn a_connection_is_cut_at_both_ends() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        pair.far.write_all(b"arrives").await.unwrap();
        sleep(SECOND).await;
        pair.far.write_all(b"does not").await.unwrap();
        assert_eq!(net.cut(N2, N1), 1);
        assert_eq!(net.cut(N2, N1), 0);
        let mut received = Vec::new();
        assert_eq!(pair.near.read_to_end(&mut received).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(received, b"arrives");
        assert_eq!(pair.near.write_all(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(ends(&mut pair.far).await, ErrorKind::ConnectionReset);
        let effects = net.effects();
        assert_eq!((effects.connections_cut, effects.bytes_dropped), (1, 8));
        drop(pair);
        assert_eq!(net.connections(), 0);
    });
}

#[test]
fn a_half_open_connection_is_found_out_by_sending() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        assert_eq!(net.half_open(N2, N1), 1);
        assert_eq!(ends(&mut pair.far).await, ErrorKind::ConnectionReset);
        timeout(60 * SECOND, pair.near.read_exact(&mut [0])).await.expect_err("it was told");
        pair.near.write_all(b"x").await.unwrap();
        assert_eq!(ends(&mut pair.near).await, ErrorKind::ConnectionReset);
        assert_eq!(net.effects().resets, 1);
    });
}

#[test]
fn the_peers_of_a_crashed_process_are_told() {
    let mut seen = [0; 2];
    for seed in 0..20 {
        let end = simulate(seed, whole(), |net| async move {
            let mut pair = Pair::new(&net).await;
            net.crash(N2);
            let start = Instant::now();
            let end = ends(&mut pair.near).await;
            assert!(start.elapsed() < 10 * MS);
            let refused = pair.client.connect("n2:1").await.err().map(|err| err.kind());
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
            end
        });
        assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end:?}");
        seen[usize::from(end == ErrorKind::ConnectionReset)] += 1;
    }
    assert!(seen[0] > 0 && seen[1] > 0, "FIN and RST: {seen:?}");
}

#[test]
fn a_crashed_process_sends_what_it_has_written() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        pair.far.write_all(b"last words").await.unwrap();
        net.crash(N2);
        let mut words = [0; 10];
        pair.near.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"last words");
    });
}

#[test]
fn a_power_loss_is_silent_until_the_machine_is_back() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.power_loss(N2);
        timeout(60 * SECOND, pair.near.read_exact(&mut [0])).await.expect_err("it was told");
        assert!(timeout(10 * SECOND, pair.client.connect("n2:1")).await.is_err(), "somebody answered");
        let late = pair.client.connect("n2:1").await.err().map(|err| err.kind());
        assert_eq!(late, Some(ErrorKind::TimedOut));
        net.boot(N2);
        timeout(60 * SECOND, pair.near.read_exact(&mut [0])).await.expect_err("it was told");
        pair.near.write_all(b"x").await.unwrap();
        let start = Instant::now();
        assert_eq!(ends(&mut pair.near).await, ErrorKind::ConnectionReset);
        assert!(start.elapsed() < 20 * MS);
        let refused = pair.client.connect("n2:1").await.err().map(|err| err.kind());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn what_was_sent_into_the_dark_is_answered_with_a_reset_after_the_restart() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.power_loss(N2);
        pair.near.write_all(b"x").await.unwrap();
        sleep(10 * SECOND).await;
        let server = net.boot(N2);
        let mut listener = server.listen("n2:1").await.unwrap();
        let start = Instant::now();
        assert_eq!(ends(&mut pair.near).await, ErrorKind::ConnectionReset);
        assert!(start.elapsed() < SECOND + 10 * MS, "{:?}", start.elapsed());
        join(&*pair.client, &mut listener).await;
    });
}

#[test]
fn a_connection_attempt_into_the_dark_succeeds_when_the_machine_is_back() {
    simulate(1, whole(), |net| async move {
        let client = net.boot(N1);
        net.boot(N2);
        net.power_loss(N2);
        let dialing = tokio::spawn(async move { client.connect("n2:1").await.map(drop) });
        sleep(5 * SECOND).await;
        let mut listener = net.boot(N2).listen("n2:1").await.unwrap();
        listener.accept().await.unwrap();
        dialing.await.unwrap().unwrap();
    });
}

#[test]
fn what_lost_power_cannot_send_again() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        let partition = net.partition(&[N1], &[N2]);
        pair.far.write_all(b"held").await.unwrap();
        sleep(SECOND).await;
        pair.far.write_all(b"on its way").await.unwrap();
        net.power_loss(N2);
        sleep(SECOND).await;
        net.lift(partition);
        timeout(60 * SECOND, pair.near.read_exact(&mut [0])).await.expect_err("a dark machine has sent");
        assert_eq!(net.effects().bytes_dropped, 14);
    });
    // What is on its way when the power fails, and only then meets the partition.
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        pair.far.write_all(b"on its way").await.unwrap();
        net.power_loss(N2);
        let partition = net.partition(&[N1], &[N2]);
        sleep(SECOND).await;
        net.lift(partition);
        timeout(60 * SECOND, pair.near.read_exact(&mut [0])).await.expect_err("a dark machine has sent");
    });
    // Without one it arrives.
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        pair.far.write_all(b"on its way").await.unwrap();
        net.power_loss(N2);
        arrival(&mut pair.near).await;
    });
}

#[test]
fn the_handles_of_a_dead_process_are_dead() {
    simulate(1, whole(), |net| async move {
        let mut pair = Pair::new(&net).await;
        net.crash(N1);
        let client = net.boot(N1);
        sleep(SECOND).await;
        assert_eq!(pair.near.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(pair.near.write(&[0]).await.unwrap_err().kind(), ErrorKind::NotConnected);
        assert!(pair.client.connect("n2:1").await.is_err() && pair.client.listen("n1:1").await.is_err());
        // Dropped late, the old listener takes nothing from the new one.
        net.crash(N2);
        let mut listener = net.boot(N2).listen("n2:1").await.unwrap();
        drop(pair);
        join(&*client, &mut listener).await;
    });
}

#[test]
fn an_abandoned_connection_delivers_late_after_what_was_sent_on_a_newer_one() {
    let mut overtaken = 0;
    for seed in 0..20 {
        overtaken += simulate(seed, whole(), |net| async move {
            let mut pair = Pair::new(&net).await;
            let partition = net.partition(&[N1], &[N2]);
            pair.near.write_all(b"x").await.unwrap();
            drop(pair.near);
            sleep(SECOND).await;
            net.lift(partition);
            let (mut near, mut far) = join(&*pair.client, &mut pair.listener).await;
            near.write_all(b"x").await.unwrap();
            let start = Instant::now();
            let (old, new) = tokio::join!(
                async {
                    arrival(&mut pair.far).await;
                    start.elapsed()
                },
                async {
                    arrival(&mut far).await;
                    start.elapsed()
                }
            );
            u64::from(old > new)
        });
    }
    assert!(overtaken > 10, "{overtaken} of 20");
}

#[test]
fn a_call_that_is_given_up_leaves_nothing_behind() {
    simulate(1, whole(), |net| async move {
        let pair = Pair::new(&net).await;
        let partition = net.partition_one_way(&[N2], &[N1]);
        assert!(timeout(SECOND, pair.client.connect("n2:1")).await.is_err(), "nobody can answer");
        net.lift(partition);
        sleep(60 * SECOND).await;
        assert_eq!(net.connections(), 1);
        drop(pair);
        sleep(60 * SECOND).await;
        assert_eq!(net.connections(), 0);
    });
}

#[test]
fn a_backlog_that_nobody_will_accept_is_reset() {
    simulate(1, whole(), |net| async move {
        let pair = Pair::new(&net).await;
        let mut waiting = pair.client.connect("n2:1").await.unwrap();
        sleep(SECOND).await;
        drop(pair.listener);
        assert_eq!(ends(&mut waiting).await, ErrorKind::ConnectionReset);
    });
}

#[test]
fn addresses_are_checked() {
    simulate(1, whole(), |net| async move {
        let node = net.boot(N1);
        let kind = |result: io::Result<Box<dyn Stream>>| result.err().unwrap().kind();
        assert_eq!(kind(node.connect("n7:1").await), ErrorKind::NotFound);
        assert_eq!(kind(node.connect("somewhere").await), ErrorKind::InvalidInput);
        assert_eq!(node.listen("n2:1").await.unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    });
}

/// Two clients talk to one server for a while; `more` says whether a third one does something else.
fn run(seed: u64, more: bool) -> (u128, Vec<(String, Duration)>) {
    let deliveries = Arc::new(Mutex::new((Hash128::default(), Vec::new())));
    let heard = deliveries.clone();
    simulate(seed, NetConfig::default(), |net| async move {
        net.on_trace(Some(Arc::new(move |event| {
            let (hash, deliveries) = &mut *heard.lock().unwrap();
            hash.word(event.at.as_nanos() as u64);
            hash.write(format!("{} {:?}", event.connection, event.what).as_bytes());
            hash.write(event.bytes);
            if event.what == TraceWhat::Delivered("data") {
                deliveries.push((event.connection.to_owned(), event.at));
            }
        })));
        let (one, two, three) = (net.boot(N1), net.boot(N2), net.boot(N3));
        let mut listener = three.listen("n3:1").await.unwrap();
        let mut streams = Vec::new();
        for client in [&one, &two] {
            streams.push(join(&**client, &mut listener).await);
        }
        sleep(SECOND).await;
        if more {
            streams.push(join(&*three, &mut listener).await);
            streams[2].0.write_all(&[3; 1000]).await.unwrap();
        }
        // From the same moment on in each run.
        sleep(Duration::from_secs(3).saturating_sub(net.shared.time.elapsed())).await;
        for round in 0..10u64 {
            for (near, _) in &mut streams[..2] {
                near.write_all(&[round as u8; 5000]).await.unwrap();
            }
            sleep(Duration::from_secs(4 + round).saturating_sub(net.shared.time.elapsed())).await;
        }
    });
    let (hash, deliveries) = &*deliveries.lock().unwrap();
    (hash.finish(), deliveries.clone())
}

#[test]
fn a_seed_decides_everything_and_one_connection_more_moves_nothing_else() {
    assert_eq!(run(1, false), run(1, false));
    assert_ne!(run(1, false).0, run(2, false).0);
    let of = |connection: &str, run: &[(String, Duration)]| {
        // A poll takes madsim 50 to 100 ns, by a stream that does move.
        let at = |at: &Duration| at.as_micros() / 100;
        run.iter().filter(|(of, _)| of == connection).map(|(_, when)| at(when)).collect::<Vec<_>>()
    };
    let (plain, more) = (run(1, false).1, run(1, true).1);
    assert_eq!(of("n1-n3/conn1", &plain).len(), of("n1-n3/conn1", &more).len());
    assert!(of("n1-n3/conn1", &plain).len() >= 10);
    for connection in ["n1-n3/conn1", "n2-n3/conn1"] {
        assert_eq!(of(connection, &plain), of(connection, &more));
    }
    assert!(of("n3-n3/conn1", &plain).is_empty() && !of("n3-n3/conn1", &more).is_empty());
}

#[test]
fn times_are_exact_below_a_millisecond() {
    // madsim's timers are at least 1 ms long when they are made: two segments that are due within one would be late.
    simulate(1, whole(), |net| async move {
        let due = Arc::new(AtomicU64::new(0));
        let heard = due.clone();
        let mut pair = Pair::new(&net).await;
        let link = Profile { latency_min: 2 * MS, latency_max: 2 * MS, bytes_per_second: 10_000_000, loss: 0.0 };
        net.set_link(N1, N2, link);
        net.on_trace(Some(Arc::new(move |event| {
            if event.what == TraceWhat::Delivered("data") {
                heard.store(event.at.as_nanos() as u64, Ordering::Relaxed);
            }
        })));
        // 1,000 bytes take 100 us: ten of them are due within 1 ms.
        let start = net.shared.time.elapsed();
        for _ in 0..10 {
            pair.near.write_all(&[1; 1000]).await.unwrap();
        }
        pair.far.read_exact(&mut [0; 10_000]).await.unwrap();
        let took = Duration::from_nanos(due.load(Ordering::Relaxed)) - start;
        assert!(took >= 3 * MS && took < 3 * MS + MS / 100, "{took:?}");
    });
}
