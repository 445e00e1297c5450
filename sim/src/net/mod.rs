//! The simulated network behind [`engine::net::Net`]: links with latency and bandwidth, connections that break the way
//! real ones do, and bytes that are really encoded and decoded.
//!
//! [`SimNet`] is one per simulation; a process gets its handle from [`SimNet::boot`], and the handle, its listeners and
//! its streams die with the process. Hosts are called `n1`, `n2`, ..; a client's machine is one of them too (`n0`).
//!
//! What happens on the way is decided by draws under the name of the segment (`link/n1-n3/conn4/out/segment9`), so that
//! one connection more, or one fault less, moves nothing else.
//!
//! | fault | what the engine sees |
//! |---|---|
//! | [`crash`](SimNet::crash) | peers get FIN or RST; connections to it are refused |
//! | [`power_loss`](SimNet::power_loss) | silence; connecting hangs; after the restart RST at the first segment |
//! | [`partition`](SimNet::partition), [`partition_one_way`](SimNet::partition_one_way), [`isolate`](SimNet::isolate) | bytes are held, sent again within a second after healing; after 15 s the sender gives up |
//! | [`clog`](SimNet::clog) | bytes are held and come in one burst |
//! | [`set_link`](SimNet::set_link) | a slow, narrow or lossy link (a lost packet is a late one) |
//! | [`cut`](SimNet::cut) | both ends are reset |
//! | [`half_open`](SimNet::half_open) | one end has forgotten the connection, the other finds out when it sends |
//! | [`on_frame`](SimNet::on_frame) | a certain frame is late, lost, or the last one of its connection |
//!
//! What was written to a connection that was closed since still arrives, perhaps after what was sent on a newer one.

mod wire;

#[cfg(test)]
mod rpc_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::net::{Listener, Net, Stream};
use engine::server::message::Kind;
use engine::types::NodeId;
use madsim::time::TimeHandle;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::draw::Draws;
use wire::{EndId, ObstacleKind, Wire};

/// How the network behaves when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetConfig {
    /// Of every link that is not set otherwise.
    pub link: Profile,
    /// What a direction of a connection takes before its reader reads.
    pub buffer_bytes: usize,
    /// A write accepts no more than this.
    pub segment_bytes: usize,
    /// Probability that a write accepts only a part.
    pub short_writes: f64,
    /// Probability that a read returns only a part.
    pub short_reads: f64,
    /// A sender that hears nothing for this long gives its connection up.
    pub give_up: Duration,
    /// The longest time from the end of a partition until what it held is sent again.
    pub retransmit_max: Duration,
}

/// How one direction between two hosts behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// The least time that a segment is under way.
    pub latency_min: Duration,
    /// The longest time, without waiting for others.
    pub latency_max: Duration,
    /// All connections of the link share it.
    pub bytes_per_second: u64,
    /// Probability that a segment is lost at first, and comes 200 to 1,000 ms later.
    pub loss: f64,
}

impl Default for Profile {
    /// Two racks of one data centre, 1 Gbit/s.
    fn default() -> Self {
        Profile {
            latency_min: Duration::from_millis(1),
            latency_max: Duration::from_millis(5),
            bytes_per_second: 125_000_000,
            loss: 0.0,
        }
    }
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            link: Profile::default(),
            buffer_bytes: 256 << 10,
            segment_bytes: 64 << 10,
            short_writes: 0.05,
            short_reads: 0.05,
            give_up: Duration::from_secs(15),
            retransmit_max: Duration::from_secs(1),
        }
    }
}

/// What the network has done so far: a fault whose count stayed zero had no effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effects {
    /// Connections that somebody tried to make.
    pub connections: u64,
    /// Connections that nobody listened for.
    pub connections_refused: u64,
    /// Connections cut by a fault.
    pub connections_cut: u64,
    /// Ends that were told so because they sent to somebody who was not there any more.
    pub resets: u64,
    /// Ends that gave up because nothing was heard.
    pub given_up: u64,
    /// Segments that an obstacle has stopped (again, if it did so twice).
    pub segments_held: u64,
    /// Segments for a machine without power.
    pub segments_unheard: u64,
    /// Segments that were late because they were lost at first.
    pub segments_lost: u64,
    /// Frames that a hook has delayed.
    pub frames_delayed: u64,
    /// Bytes that reached the other end.
    pub bytes_delivered: u64,
    /// Bytes that were accepted and never read.
    pub bytes_dropped: u64,
    /// Writes that accepted only a part.
    pub short_writes: u64,
    /// Reads that returned only a part.
    pub short_reads: u64,
}

/// A frame whose header was handed to the network this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When, since the start of the simulation.
    pub at: Duration,
    /// On which connection: numbered in the order in which they were made.
    pub connection: u64,
    /// Who sends it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// The kind of the request; also in its answer.
    pub kind: Kind,
    /// The call; the answer has the id of its request.
    pub id: u64,
    /// Whether it is an answer.
    pub answer: bool,
    /// Length with its header.
    pub len: usize,
}

/// What becomes of a frame. The sender has written it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFate {
    /// It goes its way.
    Deliver,
    /// The connection is cut before it: a request is not handled, an answer is lost.
    Cut,
    /// It comes later, and so does all that follows on its connection.
    Delay(Duration),
    /// It arrives, and then the connection is cut: a request is handled, and nobody hears the answer.
    DeliverThenCut,
}

/// Asked for the fate of each frame. May call the network, cause other faults, or end a process, also the sender's: its
/// write then never returns.
pub type FrameHook = Arc<dyn Fn(&Frame) -> FrameFate + Send + Sync>;

/// Something that the network did.
#[derive(Clone, Copy, Debug)]
pub struct NetTrace<'a> {
    /// When, since the start of the simulation.
    pub at: Duration,
    /// Who sent it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// `n1-n3/conn4`: the fourth that n1 made to n3.
    pub connection: &'a str,
    /// What.
    pub what: TraceWhat,
    /// The data, if any was concerned.
    pub bytes: &'a [u8],
}

/// What the network did. With the name of what travels: `syn`, `syn-ack`, `refuse`, `ack`, `data`, `fin`, `rst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceWhat {
    /// Handed to the network.
    Sent(&'static str),
    /// Arrived.
    Delivered(&'static str),
    /// Will not arrive, or found nobody.
    Dropped(&'static str),
    /// The connection was cut by a fault.
    Cut,
    /// The sender gave the connection up.
    GivenUp,
}

/// Hears everything. Called while the network is locked: must not call back.
pub type TraceHook = Arc<dyn Fn(&NetTrace<'_>) + Send + Sync>;

/// Names a partition or a clog, so that it can be lifted by itself.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "without it only `calm` lifts the obstacle"]
pub struct Obstacle(u64);

/// The network of one simulation. Clones are the same network.
#[derive(Clone)]
pub struct SimNet {
    shared: Arc<Shared>,
}

impl SimNet {
    /// A network without hosts. Its clockwork runs on the node that calls, which must be the supervisor's.
    pub fn new(draws: Draws, config: NetConfig) -> SimNet {
        let shared = Arc::new(Shared {
            wire: Mutex::new(Wire::new(draws, config)),
            hook: Mutex::default(),
            time: TimeHandle::current(),
        });
        tokio::spawn(pump(Arc::downgrade(&shared)));
        SimNet { shared }
    }

    /// The process of `node` starts (on a machine that is switched on if need be). A process that still runs there is
    /// crashed first.
    pub fn boot(&self, node: NodeId) -> Arc<dyn Net> {
        let life = self.shared.with(|wire, now| wire.boot(node, now));
        Arc::new(SimNode { shared: self.shared.clone(), node, life })
    }

    /// The process of `node` is gone, its machine goes on. Kill the node's tasks first.
    pub fn crash(&self, node: NodeId) {
        self.shared.with(|wire, now| wire.crash(node, now));
    }

    /// The machine of `node` is dark. Kill the node's tasks first.
    pub fn power_loss(&self, node: NodeId) {
        self.shared.with(|wire, now| wire.power_loss(node, now));
    }

    /// Nothing gets from `a` to `b`, nor back.
    pub fn partition(&self, a: &[NodeId], b: &[NodeId]) -> Obstacle {
        let ways = pairs(a, b).chain(pairs(b, a)).collect();
        self.obstruct(ObstacleKind::Partition, ways)
    }

    /// Nothing gets from `from` to `to`; the other direction is open, but nothing sent there is acknowledged.
    pub fn partition_one_way(&self, from: &[NodeId], to: &[NodeId]) -> Obstacle {
        self.obstruct(ObstacleKind::Partition, pairs(from, to).collect())
    }

    /// Nothing gets from `node` to any other host that is known now, nor back.
    pub fn isolate(&self, node: NodeId) -> Obstacle {
        let mut others = self.shared.with(|wire, _| wire.hosts());
        others.retain(|other| *other != node);
        self.partition(&[node], &others)
    }

    /// What is sent from `from` to `to` piles up, and comes at once when the clog is lifted.
    pub fn clog(&self, from: &[NodeId], to: &[NodeId]) -> Obstacle {
        self.obstruct(ObstacleKind::Clog, pairs(from, to).collect())
    }

    /// Lifts an obstacle; others stay. Says how many segments it has held: none means that it had no effect on what was
    /// sent.
    pub fn lift(&self, obstacle: Obstacle) -> u64 {
        self.shared.with(|wire, now| wire.lift(obstacle.0, now))
    }

    /// How many segments it has held so far.
    pub fn held(&self, obstacle: &Obstacle) -> u64 {
        self.shared.with(|wire, _| wire.held(obstacle.0))
    }

    /// Lifts every obstacle, makes every link what it usually is, and takes the hook off.
    pub fn calm(&self) {
        self.on_frame(None);
        self.shared.with(|wire, now| {
            wire.lift_all(now);
            wire.reset_links();
        });
    }

    /// How the direction from `from` to `to` behaves from now on.
    pub fn set_link(&self, from: NodeId, to: NodeId, profile: Profile) {
        self.shared.with(|wire, _| wire.set_link(from, to, profile));
    }

    /// Resets every connection between the two. What is under way is lost. Says how many there were.
    pub fn cut(&self, a: NodeId, b: NodeId) -> u64 {
        self.shared.with(|wire, now| wire.cut_all(a, b, now))
    }

    /// `forgetful` loses every connection to `other`, which is not told. Says how many there were.
    pub fn half_open(&self, forgetful: NodeId, other: NodeId) -> u64 {
        self.shared.with(|wire, now| wire.half_open(forgetful, other, now))
    }

    /// Asks `hook` for the fate of each frame from now on.
    pub fn on_frame(&self, hook: Option<FrameHook>) {
        *self.shared.hook.lock().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// Tells `hook` all that happens from now on.
    pub fn on_trace(&self, hook: Option<TraceHook>) {
        self.shared.with(|wire, _| wire.set_trace(hook));
    }

    /// What was done so far.
    pub fn effects(&self) -> Effects {
        self.shared.with(|wire, _| wire.effects())
    }

    /// Connections of which somebody holds an end, or on which something is under way.
    pub fn connections(&self) -> usize {
        self.shared.with(|wire, _| wire.connections())
    }

    fn obstruct(&self, kind: ObstacleKind, ways: Vec<(NodeId, NodeId)>) -> Obstacle {
        Obstacle(self.shared.with(|wire, _| wire.obstruct(kind, ways)))
    }
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet").finish_non_exhaustive()
    }
}

fn pairs<'a>(from: &'a [NodeId], to: &'a [NodeId]) -> impl Iterator<Item = (NodeId, NodeId)> + 'a {
    from.iter().flat_map(move |from| to.iter().map(move |to| (*from, *to)))
}

struct Shared {
    wire: Mutex<Wire>,
    hook: Mutex<Option<FrameHook>>,
    time: TimeHandle,
}

impl Shared {
    /// Acts on the wire as it is now, and wakes whom it concerns.
    fn with<R>(&self, act: impl FnOnce(&mut Wire, Duration) -> R) -> R {
        let now = self.time.elapsed();
        let mut wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        // What was due before comes before, even if the clockwork has not had its turn yet.
        wire.settle(now);
        let result = act(&mut wire, now);
        wire.settle(now);
        let woken = wire.woken();
        drop(wire);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    fn hook(&self) -> Option<FrameHook> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The clockwork: one task that sleeps until the next thing is due.
///
/// A `Sleep` of madsim's is at least 1 ms long when it is made, but not when it is reset: this one is made once.
async fn pump(shared: Weak<Shared>) {
    let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        loop {
            let Some(shared) = shared.upgrade() else { return Poll::Ready(()) };
            let Some(due) = shared.with(|wire, _| wire.arm(cx.waker())) else { return Poll::Pending };
            let left = due.saturating_sub(shared.time.elapsed());
            sleep.as_mut().reset(shared.time.now_instant() + left);
            ready!(Future::poll(sleep.as_mut(), cx));
        }
    })
    .await;
}

/// The network as one process sees it, as long as it lives.
#[derive(Clone)]
struct SimNode {
    shared: Arc<Shared>,
    node: NodeId,
    life: u64,
}

impl SimNode {
    /// Acts if the process still lives. Its futures are dropped some time after it has died, and may act while they are.
    fn with<R>(&self, act: impl FnOnce(&mut Wire, Duration) -> R) -> io::Result<R> {
        let alive = |wire: &Wire| wire.lives(self.node, self.life);
        let acted = self.shared.with(|wire, now| alive(wire).then(|| act(wire, now)));
        acted.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, format!("{} is dead", self.node)))
    }
}

impl fmt::Debug for SimNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNode").field("node", &self.node).field("life", &self.life).finish()
    }
}

#[async_trait]
impl Net for SimNode {
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let port = self.with(|wire, _| wire.listen(self.node, addr))??;
        Ok(Box::new(SimListener { node: self.clone(), port }))
    }

    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Stream>> {
        let end = self.with(|wire, now| wire.connect(self.node, self.life, addr, now))??;
        // From here on the connection is closed if the caller stops waiting.
        let stream = SimStream { node: self.clone(), end };
        poll_fn(|cx| match self.with(|wire, _| wire.poll_connected(end, cx.waker())) {
            Ok(poll) => poll,
            Err(err) => Poll::Ready(Err(err)),
        })
        .await?;
        Ok(Box::new(stream))
    }
}

/// Accepts until dropped.
#[derive(Debug)]
struct SimListener {
    node: SimNode,
    port: u16,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, String)> {
        let SimListener { node, port } = self;
        let accepted = poll_fn(|cx| {
            let accept = |wire: &mut Wire| {
                let end = ready!(wire.poll_accept(node.node, *port, cx.waker()))?;
                Poll::Ready(Ok((end, wire.name(end).to_owned())))
            };
            node.with(|wire, _| accept(wire)).unwrap_or_else(|err| Poll::Ready(Err(err)))
        });
        let (end, name) = accepted.await?;
        Ok((Box::new(SimStream { node: node.clone(), end }), name))
    }

    fn addr(&self) -> String {
        format!("{}:{}", self.node.node, self.port)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        // A dead process has closed it already.
        let _ = self.node.with(|wire, now| wire.unlisten(self.node.node, self.port, now));
    }
}

/// One end of a connection.
#[derive(Debug)]
struct SimStream {
    node: SimNode,
    end: EndId,
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = self.node.with(|wire, _| wire.poll_read(self.end, buf.remaining(), cx.waker()))?;
        let bytes: Bytes = ready!(read)?;
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let prepared = self.node.with(|wire, now| wire.prepare_write(self.end, buf, now, cx.waker()))?;
        let prepared = ready!(prepared)?;
        let fate = match (&prepared.frame, self.node.shared.hook()) {
            (Some(frame), Some(hook)) => hook(frame),
            _ => FrameFate::Deliver,
        };
        let bytes = &buf[..prepared.bytes];
        match self.node.with(|wire, now| wire.write(self.end, bytes, prepared.frame, fate, now)) {
            Ok(()) => Poll::Ready(Ok(bytes.len())),
            // The hook has ended this process: its call never returns.
            Err(_) => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.node.with(|wire, now| wire.shutdown(self.end, now))?)
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        // A dead process has closed it already.
        let _ = self.node.with(|wire, now| wire.close(self.end, now));
    }
}
