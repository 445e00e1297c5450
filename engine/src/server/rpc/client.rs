//! Calling peers: one [`Link`] per peer and lane, with at most one connection and one task that drives it.
//!
//! A call lies in the link's table from the moment it is made until its caller has an answer or is gone. The driver
//! takes it from the queue, and *before* the first byte is handed to the socket the call is marked as sent: a call
//! that is not marked was surely not applied, one that is marked may have been. A connection that is lost takes the
//! marked calls with it (`Unknown`); the others wait for the next one.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::Lane;
use super::frame::{Broken, Frame, FrameReader, Malformed, decode, encode};
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::net::{Net, Stream};
use crate::options::Options;
use crate::server::message::{Kind, Request, Response};
use crate::types::NodeId;

/// Requests that are written together are marked as sent together: few enough that a call which only waits behind
/// others is still known not to have been sent.
const WRITE_BYTES: usize = 16 << 10;

/// The longest wait that a frame can tell its receiver.
const WITHIN_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// The other nodes, as one node or client reaches them.
pub struct Peers {
    node: NodeId,
    options: Arc<Options>,
    links: BTreeMap<(NodeId, Lane), Arc<Link>>,
}

impl Peers {
    /// Peers of `node` (0: a client) at `addrs`. Connects when there is something to send.
    pub fn new(
        node: NodeId,
        net: Arc<dyn Net>,
        addrs: BTreeMap<NodeId, String>,
        options: Arc<Options>,
        events: Events,
    ) -> Arc<Peers> {
        let link = |peer: NodeId, addr: &str, lane: Lane| {
            let window = usize::try_from(options.rpc_window).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
            Arc::new(Link {
                node,
                peer,
                lane,
                addr: addr.to_owned(),
                net: net.clone(),
                options: options.clone(),
                events: events.clone(),
                window: Semaphore::new(window),
                queued: Notify::new(),
                silent: Notify::new(),
                state: Mutex::default(),
            })
        };
        let links = addrs
            .iter()
            .flat_map(|(peer, addr)| Lane::ALL.map(|lane| ((*peer, lane), link(*peer, addr, lane))))
            .collect();
        Arc::new(Peers { node, options: options.clone(), links })
    }

    /// Sends `request` to `to` and waits for the answer, `within` in all: for a place in the window, a connection, the
    /// answer. Dropping the future gives the call up.
    ///
    /// `Busy`, `Deadline`, `Invalid`: surely not sent. `Unknown`: sent, no answer. Every other error is the peer's.
    pub async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        let Some(link) = self.links.get(&(to, Lane::of(request.kind()))) else {
            return Err(Error::Busy { what: format!("node {to} cannot be reached: it has no known address") });
        };
        let body = encode(&request, self.options.rpc_frame_bytes)?;
        link.call(request.kind(), body, within.min(WITHIN_MAX)).await
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for link in self.links.values() {
            if let Some(driver) = link.state().driver.take() {
                driver.abort();
            }
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("node", &self.node).finish_non_exhaustive()
    }
}

/// The way to one peer in one lane.
struct Link {
    node: NodeId,
    peer: NodeId,
    lane: Lane,
    addr: String,
    net: Arc<dyn Net>,
    options: Arc<Options>,
    events: Events,
    /// Places for calls under way.
    window: Semaphore,
    /// There is something in the queue.
    queued: Notify,
    /// `State::given_up` was set.
    silent: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Never used twice, over all connections: an answer that comes late meets nobody else's call.
    last_id: u64,
    /// Every call that somebody waits for.
    calls: BTreeMap<u64, Call>,
    /// Calls that were not sent yet, in order; those whose caller is gone are skipped.
    queue: VecDeque<u64>,
    /// The task that connects, writes and reads; none while there is nothing to do.
    driver: Option<JoinHandle<()>>,
    /// No attempt to connect before this.
    not_before: Option<Instant>,
    /// Length of the last pause between attempts; zero once the peer has answered.
    pause: Duration,
    /// Since when something was sent on the connection and nothing at all was heard.
    unheard_since: Option<Instant>,
    /// The connection was silent for too long and is to be given up.
    given_up: bool,
}

/// A call that somebody waits for.
struct Call {
    kind: Kind,
    deadline: Instant,
    /// None once (a part of) it may be in the socket.
    unsent: Option<Bytes>,
    answer: oneshot::Sender<Result<Response>>,
}

impl Link {
    async fn call(self: &Arc<Self>, kind: Kind, body: Bytes, within: Duration) -> Result<Response> {
        let deadline = Instant::now() + within;
        let window = timeout(within, self.window.acquire());
        let Ok(Ok(_place)) = window.await else {
            let (window, peer) = (self.options.rpc_window, self.peer);
            return Err(Error::Deadline {
                waiting_for: format!("a place among the {window} requests under way to node {peer}"),
            });
        };
        let (ticket, answer) = self.enqueue(kind, body, deadline);
        match timeout(deadline.saturating_duration_since(Instant::now()), answer).await {
            Ok(Ok(answer)) => answer,
            // The driver answers every call that it takes from the table.
            Ok(Err(_)) => Err(Error::Unknown { message: format!("the connection to node {} was dropped", self.peer) }),
            Err(_) => Err(ticket.expire(within)),
        }
    }

    /// Puts the call into the queue and sees to it that somebody serves the queue.
    fn enqueue(
        self: &Arc<Self>,
        kind: Kind,
        body: Bytes,
        deadline: Instant,
    ) -> (Ticket<'_>, oneshot::Receiver<Result<Response>>) {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        state.last_id += 1;
        let id = state.last_id;
        state.calls.insert(id, Call { kind, deadline, unsent: Some(body), answer });
        state.queue.push_back(id);
        if state.driver.is_none() {
            state.driver = Some(tokio::spawn(self.clone().drive()));
        }
        self.queued.notify_one();
        (Ticket { link: self, id }, receiver)
    }

    /// Connects and converses until there is nothing left to send.
    async fn drive(self: Arc<Self>) {
        loop {
            let pause = self.state().not_before;
            if let Some(until) = pause {
                sleep_until(until).await;
            }
            if !self.has_work() {
                return;
            }
            match self.connect().await {
                Ok(stream) => {
                    self.events.emit(|| Event::PeerConnected { peer: self.peer });
                    let lost = self.converse(stream).await;
                    self.lose(&lost);
                }
                Err(reason) => self.fail(&reason),
            }
        }
    }

    /// Whether somebody waits for a call that was not sent. If not, the driver has resigned.
    fn has_work(&self) -> bool {
        let mut state = self.state();
        let State { calls, queue, driver, .. } = &mut *state;
        queue.retain(|id| calls.contains_key(id));
        if queue.is_empty() {
            *driver = None;
        }
        !queue.is_empty()
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, String> {
        let within = Duration::from_millis(self.options.rpc_timeout_ms);
        match timeout(within, self.net.connect(&self.addr)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(err)) => Err(err.to_string()),
            Err(_) => Err(format!("no answer within {} ms", within.as_millis())),
        }
    }

    /// Writes requests and reads answers until the connection is lost. Says why it was.
    async fn converse(&self, stream: Box<dyn Stream>) -> Broken {
        {
            let mut state = self.state();
            state.unheard_since = None;
            state.given_up = false;
        }
        let (read, write) = tokio::io::split(stream);
        tokio::select! {
            biased;
            lost = self.read_answers(read) => lost,
            lost = self.write_requests(write) => lost,
            lost = self.silence() => lost,
        }
    }

    async fn read_answers(&self, stream: impl AsyncRead + Unpin) -> Broken {
        let mut frames = FrameReader::new(stream, self.options.rpc_frame_bytes);
        loop {
            let taken = match frames.next().await {
                Ok(Some(Frame::Answer { kind, id, body })) => self.take_answer(kind, id, &body),
                Ok(Some(frame)) => Err(Malformed::unexpected(&frame, "an answer")),
                Ok(None) => return Broken::Io(std::io::ErrorKind::UnexpectedEof.into()),
                Err(broken) => return broken,
            };
            if let Err(malformed) = taken {
                return malformed.into();
            }
        }
    }

    fn take_answer(&self, kind: Kind, id: u64, body: &[u8]) -> Result<(), Malformed> {
        let call = {
            let mut state = self.state();
            state.pause = Duration::ZERO;
            let call = state.calls.remove(&id);
            let waiting = state.calls.values().any(|call| call.unsent.is_none());
            state.unheard_since = waiting.then(Instant::now);
            call
        };
        // Without a call its caller gave up: the answer comes too late.
        let Some(call) = call else { return Ok(()) };
        let answer = if call.kind != kind || call.unsent.is_some() {
            Err(Malformed::Protocol(format!("call {id} is a {}, the answer is to a {}", call.kind.name(), kind.name())))
        } else {
            decode(body)
        };
        let (answer, taken) = match answer {
            Ok(answer) => (answer, Ok(())),
            Err(malformed) => (Err(self.unknown(&malformed)), Err(malformed)),
        };
        // The caller may have gone this moment.
        let _ = call.answer.send(answer);
        taken
    }

    async fn write_requests(&self, mut stream: impl AsyncWrite + Unpin) -> Broken {
        let mut buffer = BytesMut::new();
        Frame::Hello { node: self.node, lane: self.lane }.put(&mut buffer);
        loop {
            self.take_requests(&mut buffer);
            if buffer.is_empty() {
                self.queued.notified().await;
                continue;
            }
            let written = async {
                stream.write_all_buf(&mut buffer).await?;
                stream.flush().await
            };
            if let Err(err) = written.await {
                return err.into();
            }
        }
    }

    /// Marks the first calls of the queue as sent and puts their frames into `buffer`.
    fn take_requests(&self, buffer: &mut BytesMut) {
        let mut state = self.state();
        let now = Instant::now();
        while buffer.len() < WRITE_BYTES {
            let Some(id) = state.queue.pop_front() else { return };
            let Some(call) = state.calls.get_mut(&id) else { continue };
            let within = call.deadline.saturating_duration_since(now);
            if within.is_zero() {
                // Its caller is about to learn that it was not sent.
                continue;
            }
            let Some(body) = call.unsent.take() else { continue };
            Frame::Request { kind: call.kind, id, within, body }.put(buffer);
            state.unheard_since.get_or_insert(now);
        }
    }

    /// Ends when a caller found that the peer is silent.
    async fn silence(&self) -> Broken {
        loop {
            self.silent.notified().await;
            if self.state().given_up {
                let message = format!("nothing was heard for {} ms", self.options.rpc_timeout_ms);
                return Broken::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message));
            }
        }
    }

    /// No connection could be made: the calls that wait for one fail, nothing of them was sent.
    fn fail(&self, reason: &str) {
        let mut state = self.state();
        self.pause(&mut state);
        let State { calls, queue, .. } = &mut *state;
        let failed: Vec<_> = queue.drain(..).filter_map(|id| calls.remove(&id)).collect();
        drop(state);
        tracing::debug!(node = self.node.0, peer = self.peer.0, lane = ?self.lane, reason, "cannot connect");
        for call in failed {
            let what = format!("node {} at {} cannot be reached: {reason}", self.peer, self.addr);
            let _ = call.answer.send(Err(Error::Busy { what }));
        }
    }

    /// The connection is gone: nobody will ever know what became of the calls that were sent.
    fn lose(&self, why: &Broken) {
        let mut state = self.state();
        self.pause(&mut state);
        let lost: Vec<_> = state.calls.extract_if(.., |_, call| call.unsent.is_none()).collect();
        drop(state);
        let (node, peer, lane) = (self.node.0, self.peer.0, self.lane);
        match why {
            Broken::Malformed(malformed) => tracing::warn!(node, peer, ?lane, %malformed, "closed the connection"),
            Broken::Io(err) => tracing::debug!(node, peer, ?lane, %err, "lost the connection"),
        }
        self.events.emit(|| Event::PeerLost { peer: self.peer, unanswered: lost.len() as u64 });
        for (_, call) in lost {
            let _ = call.answer.send(Err(self.unknown(why)));
        }
    }

    /// Each attempt in a row waits twice as long as the one before.
    fn pause(&self, state: &mut State) {
        let least = Duration::from_millis(self.options.retry_min_ms);
        let most = Duration::from_millis(self.options.retry_max_ms);
        state.pause = (state.pause * 2).clamp(least, most.max(least));
        state.not_before = Some(Instant::now() + state.pause);
    }

    fn unknown(&self, why: &impl fmt::Display) -> Error {
        let message = format!("the connection to node {} was lost before it answered: {why}", self.peer);
        Error::Unknown { message }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's hold on its call: dropped, the call is given up.
struct Ticket<'a> {
    link: &'a Link,
    id: u64,
}

impl Ticket<'_> {
    /// The deadline has passed. Whether something was sent decides what the caller may assume.
    fn expire(self, within: Duration) -> Error {
        let link = self.link;
        let mut state = link.state();
        let sent = state.calls.remove(&self.id).is_none_or(|call| call.unsent.is_none());
        // A call may be slow; a connection on which nothing at all comes back is dead, though it may never say so.
        let patience = Duration::from_millis(link.options.rpc_timeout_ms);
        if state.unheard_since.is_some_and(|since| since.elapsed() >= patience) {
            state.given_up = true;
            link.silent.notify_one();
        }
        drop(state);
        if sent {
            let message = format!("node {} did not answer within {} ms", link.peer, within.as_millis());
            return Error::Unknown { message };
        }
        Error::Deadline { waiting_for: format!("a connection to node {} that takes the request", link.peer) }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.link.state().calls.remove(&self.id);
    }
}
