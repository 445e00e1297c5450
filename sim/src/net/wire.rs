//! What the simulated network is, as a pure state machine: the time is passed in, wakers are handed out.
//!
//! A connection is two [`End`]s and two [`Way`]s. All that happens on a connection travels as a [`Segment`] on one of
//! its ways, in order: the handshake (SYN, SYN-ACK, ACK), data, FIN, RST. A segment gets its arrival time when it is
//! submitted; an [`Agenda`] entry says so. A way whose segment comes due while something is in between stops and keeps
//! all that follows, as TCP does that retransmits; when the obstacle is gone it goes on, and if that takes too long the
//! sender gives up.
//!
//! A host has a life, which ends with its process. An end belongs to the life that made it: what arrives for an end
//! whose life is over is answered with RST, by a host that has power.
//!
//! Not here: congestion control, packets (a segment is what one write accepted), acknowledgements as messages (what was
//! read is free again at once, unless the way back is obstructed).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use engine::server::rpc::{HEADER_BYTES, Peek, peek};
use engine::types::NodeId;

use super::{Effects, Frame, FrameFate, NetConfig, NetTrace, Profile, TraceHook, TraceWhat};
use crate::draw::Draws;

/// Time since the start of the simulation.
pub(super) type At = Duration;

/// One end of a connection, as a handle names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndId {
    pub(super) connection: u64,
    /// 0: the one that connected; 1: the one that accepted.
    pub(super) end: usize,
}

/// All hosts, links and connections.
pub(super) struct Wire {
    draws: Draws,
    config: NetConfig,
    hosts: BTreeMap<NodeId, Host>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    obstacles: BTreeMap<u64, Obstacle>,
    last_obstacle: u64,
    agenda: Agenda,
    effects: Effects,
    trace: Option<TraceHook>,
    woken: Vec<Waker>,
    pump: Option<(Option<At>, Waker)>,
}

/// A machine with one process.
struct Host {
    /// Grows when the process ends.
    life: u64,
    power: bool,
    running: bool,
    listeners: BTreeMap<u16, Listening>,
    last_port: u16,
}

#[derive(Default)]
struct Listening {
    backlog: VecDeque<u64>,
    accepter: Option<Waker>,
}

/// The way from one host to another.
struct Link {
    profile: Profile,
    /// When all that was submitted so far has left.
    free_at: At,
    /// Connections made from the one to the other: the number is part of the name of each.
    connections: u64,
}

/// What keeps segments from arriving.
struct Obstacle {
    kind: ObstacleKind,
    ways: Vec<(NodeId, NodeId)>,
    held: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObstacleKind {
    /// Packets are lost: senders retransmit, and after a while give up.
    Partition,
    /// Packets are late: all of them come when it ends.
    Clog,
    /// The receiver has no power.
    Power,
}

struct Connection {
    /// `n1-n3/conn4`.
    name: String,
    port: u16,
    ends: [End; 2],
    /// Way `i` is from end `i` to the other one.
    ways: [Way; 2],
}

struct End {
    node: NodeId,
    life: u64,
    state: EndState,
    /// The peer has reset the connection, or it was given up.
    error: Option<io::ErrorKind>,
    inbox: VecDeque<Bytes>,
    eof: bool,
    fin_sent: bool,
    reads: u64,
    writes: u64,
    /// Waits to be connected or to read.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndState {
    /// The handshake is not over.
    Opening,
    Open,
    /// Nobody holds it any more.
    Gone,
}

#[derive(Default)]
struct Way {
    flight: VecDeque<Segment>,
    /// Segments submitted so far.
    segments: u64,
    /// Bytes accepted and not yet read by the peer.
    outstanding: usize,
    /// Read, but the sender cannot know it yet.
    read_unheard: usize,
    accepted: u64,
    delivered: u64,
    /// The obstacle that is in front of the first segment; 0: the receiver has no power.
    held: Option<u64>,
    /// Since when the sender waits for an acknowledgement that cannot come.
    stalled: Option<At>,
    releases: u64,
    frames: Frames,
    /// The connection is cut when this many bytes were delivered.
    cut_at: Option<u64>,
}

struct Segment {
    due: At,
    payload: Payload,
}

enum Payload {
    Syn,
    SynAck,
    Refuse,
    Ack,
    Data(Bytes),
    Fin,
    Rst,
}

/// What is due when; entries of the same time in the order in which they were made.
#[derive(Default)]
struct Agenda {
    entries: BTreeMap<(At, u64), Due>,
    last: u64,
}

#[derive(Clone, Copy)]
enum Due {
    Arrival { connection: u64, way: usize },
    GiveUp { connection: u64, way: usize, since: At },
}

impl Agenda {
    fn add(&mut self, at: At, due: Due) {
        self.last += 1;
        self.entries.insert((at, self.last), due);
    }
}

/// What a write is about to hand over: whole by itself or a part of one frame.
pub(super) struct Prepared {
    pub(super) bytes: usize,
    /// The frame whose header becomes complete with it.
    pub(super) frame: Option<Frame>,
}

impl Wire {
    pub(super) fn new(draws: Draws, config: NetConfig) -> Wire {
        Wire {
            draws,
            config,
            hosts: BTreeMap::new(),
            links: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            obstacles: BTreeMap::new(),
            last_obstacle: 0,
            agenda: Agenda::default(),
            effects: Effects::default(),
            trace: None,
            woken: Vec::new(),
            pump: None,
        }
    }

    pub(super) fn set_trace(&mut self, trace: Option<TraceHook>) {
        self.trace = trace;
    }

    pub(super) fn effects(&self) -> Effects {
        self.effects
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    // Time.

    /// Lets everything happen that is due at `now`.
    pub(super) fn settle(&mut self, now: At) {
        while let Some(entry) = self.agenda.entries.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Due::Arrival { connection, way } => self.arrive(connection, way, now),
                Due::GiveUp { connection, way, since } => self.give_up(connection, way, since, now),
            }
        }
    }

    /// Remembers who waits for the next entry, and says when it is due.
    pub(super) fn arm(&mut self, pump: &Waker) -> Option<At> {
        let next = self.agenda.entries.first_key_value().map(|((at, _), _)| *at);
        self.pump = Some((next, pump.clone()));
        next
    }

    /// Everybody who has to look again; the pump is among them if something is due earlier than it knows.
    pub(super) fn woken(&mut self) -> Vec<Waker> {
        let next = self.agenda.entries.first_key_value().map(|((at, _), _)| *at);
        if let Some((known, _)) = &self.pump
            && next.is_some_and(|next| known.is_none_or(|known| next < known))
        {
            self.woken.extend(self.pump.take().map(|(_, waker)| waker));
        }
        std::mem::take(&mut self.woken)
    }

    // Hosts.

    /// Starts the process of `node`, and its machine if it has no power. Returns its life.
    pub(super) fn boot(&mut self, node: NodeId, now: At) -> u64 {
        let host = self.hosts.entry(node).or_insert_with(Host::new);
        if host.running {
            self.crash(node, now);
        }
        let host = self.hosts.entry(node).or_insert_with(Host::new);
        let dark = !std::mem::replace(&mut host.power, true);
        host.running = true;
        let life = host.life;
        if dark {
            self.release(ObstacleKind::Power, now);
        }
        life
    }

    /// The process of `node` ends, its machine goes on: it closes what the process had open.
    pub(super) fn crash(&mut self, node: NodeId, now: At) {
        let Some(host) = self.hosts.get_mut(&node).filter(|host| host.running) else { return };
        host.end_life();
        for id in self.ends_of(node) {
            let end = self.end(id);
            let (opened, unread) = (end.state == EndState::Open, !end.inbox.is_empty());
            let rst = unread || self.draws.chance(format_args!("link/{}/crash{}", self.name(id), id.end), 0.5);
            if opened && rst {
                self.abandon(id, Payload::Rst, now);
            } else {
                self.abandon(id, Payload::Fin, now);
            }
        }
    }

    /// The machine of `node` goes dark: nobody is told.
    pub(super) fn power_loss(&mut self, node: NodeId, now: At) {
        let Some(host) = self.hosts.get_mut(&node).filter(|host| host.power) else { return };
        host.end_life();
        host.power = false;
        for id in self.ends_of(node) {
            let end = self.end(id);
            end.state = EndState::Gone;
            let unread: usize = end.inbox.drain(..).map(|bytes| bytes.len()).sum();
            self.effects.bytes_dropped += unread as u64;
            // What has left is on its way; what waits to be sent again is lost with its sender.
            if self.way(id).held.is_some() {
                self.drop_flight(id, now);
            }
            self.collect(id.connection);
        }
    }

    fn ends_of(&self, node: NodeId) -> Vec<EndId> {
        let mut ends = Vec::new();
        for (connection, at) in &self.connections {
            for end in 0..2 {
                // An end that waits for its SYN is not the host's yet.
                let reached = at.ends[end].life > 0;
                if at.ends[end].node == node && at.ends[end].state != EndState::Gone && reached {
                    ends.push(EndId { connection: *connection, end });
                }
            }
        }
        ends
    }

    /// Whether the process that has this handle still runs.
    pub(super) fn lives(&self, node: NodeId, life: u64) -> bool {
        self.hosts.get(&node).is_some_and(|host| host.running && host.life == life)
    }

    // Listeners.

    pub(super) fn listen(&mut self, node: NodeId, addr: &str) -> io::Result<u16> {
        let (at, port) = parse(addr)?;
        if at != node {
            let message = format!("{addr} is not an address of {node}");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, message));
        }
        let host = self.hosts.get_mut(&node).ok_or_else(|| no_host(node))?;
        let port = if port == 0 { host.free_port()? } else { port };
        if host.listeners.contains_key(&port) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{node}:{port} is in use")));
        }
        host.listeners.insert(port, Listening::default());
        Ok(port)
    }

    /// The next connection that was made to the listener.
    pub(super) fn poll_accept(&mut self, node: NodeId, port: u16, waker: &Waker) -> Poll<io::Result<EndId>> {
        let listening = self.hosts.get_mut(&node).and_then(|host| host.listeners.get_mut(&port));
        let Some(listening) = listening else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match listening.backlog.pop_front() {
            Some(connection) => Poll::Ready(Ok(EndId { connection, end: 1 })),
            None => {
                listening.accepter = Some(waker.clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn unlisten(&mut self, node: NodeId, port: u16, now: At) {
        let listening = self.hosts.get_mut(&node).and_then(|host| host.listeners.remove(&port));
        for connection in listening.unwrap_or_default().backlog {
            self.abandon(EndId { connection, end: 1 }, Payload::Rst, now);
        }
    }

    // Streams.

    /// Sends the first SYN of a connection.
    pub(super) fn connect(&mut self, node: NodeId, life: u64, addr: &str, now: At) -> io::Result<EndId> {
        let (to, port) = parse(addr)?;
        if !self.hosts.contains_key(&to) {
            return Err(no_host(to));
        }
        let link = self.link(node, to);
        link.connections += 1;
        let name = format!("{node}-{to}/conn{}", link.connections);
        let ends = [End::new(node, life), End::new(to, 0)];
        self.last_connection += 1;
        let connection = self.last_connection;
        self.connections.insert(connection, Connection { name, port, ends, ways: <[Way; 2]>::default() });
        self.effects.connections += 1;
        let dialer = EndId { connection, end: 0 };
        self.send(dialer, Payload::Syn, Duration::ZERO, now);
        Ok(dialer)
    }

    pub(super) fn poll_connected(&mut self, id: EndId, waker: &Waker) -> Poll<io::Result<()>> {
        let end = self.end(id);
        match (end.error, end.state) {
            (Some(error), _) => Poll::Ready(Err(error.into())),
            (None, EndState::Opening) => {
                end.reader = Some(waker.clone());
                Poll::Pending
            }
            (None, _) => Poll::Ready(Ok(())),
        }
    }

    /// The name of the connection, for people.
    pub(super) fn name(&self, id: EndId) -> &str {
        &self.connection(id).name
    }

    /// Up to `room` bytes; none at the end.
    pub(super) fn poll_read(&mut self, id: EndId, room: usize, waker: &Waker) -> Poll<io::Result<Bytes>> {
        let short = self.config.short_reads;
        let connection = self.connections.get_mut(&id.connection).expect("a handle's connection exists");
        let Connection { name, ends, ways, .. } = connection;
        let end = &mut ends[id.end];
        let Some(first) = end.inbox.front_mut() else {
            return match (end.error, end.eof) {
                (Some(error), _) => Poll::Ready(Err(error.into())),
                (None, true) => Poll::Ready(Ok(Bytes::new())),
                (None, false) => {
                    end.reader = Some(waker.clone());
                    Poll::Pending
                }
            };
        };
        let mut len = first.len().min(room);
        end.reads += 1;
        if len > 1 && short > 0.0 && self.draws.chance(format_args!("link/{name}/{}/read{}", id.end, end.reads), short)
        {
            let most = len as u64;
            len = self.draws.range(format_args!("link/{name}/{}/read{}/bytes", id.end, end.reads), 1..most) as usize;
            self.effects.short_reads += 1;
        }
        let taken = first.split_to(len);
        if first.is_empty() {
            end.inbox.pop_front();
        }
        let (here, there) = (end.node, ends[1 - id.end].node);
        let way = &mut ways[1 - id.end];
        if between(&self.obstacles, &self.hosts, here, there).is_some() {
            way.read_unheard += len;
        } else {
            way.outstanding = way.outstanding.saturating_sub(len);
            self.woken.extend(ends[1 - id.end].writer.take());
        }
        Poll::Ready(Ok(taken))
    }

    /// How much of `bytes` the next write takes, and whether a frame starts with it.
    pub(super) fn prepare_write(
        &mut self,
        id: EndId,
        bytes: &[u8],
        now: At,
        waker: &Waker,
    ) -> Poll<io::Result<Prepared>> {
        let config = &self.config;
        let connection = self.connections.get_mut(&id.connection).expect("a handle's connection exists");
        let Connection { name, ends, ways, .. } = connection;
        let (from, to) = (ends[id.end].node, ends[1 - id.end].node);
        let (end, way) = (&mut ends[id.end], &mut ways[id.end]);
        if let Some(error) = end.error {
            return Poll::Ready(Err(error.into()));
        }
        if end.fin_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let space = config.buffer_bytes.saturating_sub(way.outstanding);
        if space == 0 && !bytes.is_empty() {
            end.writer = Some(waker.clone());
            return Poll::Pending;
        }
        let mut len = bytes.len().min(space).min(config.segment_bytes);
        end.writes += 1;
        let (short, writes) = (config.short_writes, end.writes);
        if len > 1 && short > 0.0 && self.draws.chance(format_args!("link/{name}/{}/write{writes}", id.end), short) {
            let most = len as u64;
            len = self.draws.range(format_args!("link/{name}/{}/write{writes}/bytes", id.end), 1..most) as usize;
            self.effects.short_writes += 1;
        }
        let (bytes, seen) = way.frames.look(&bytes[..len]);
        let frame = seen.and_then(|seen| {
            let Peek { kind, id: call, answer, len } = seen;
            Some(Frame { at: now, connection: id.connection, from, to, kind: kind?, id: call, answer, len })
        });
        Poll::Ready(Ok(Prepared { bytes, frame }))
    }

    /// Takes over what [`Wire::prepare_write`] has prepared.
    pub(super) fn write(&mut self, id: EndId, bytes: &[u8], frame: Option<Frame>, fate: FrameFate, now: At) {
        let mut delay = Duration::ZERO;
        match fate {
            FrameFate::Deliver => {}
            FrameFate::Cut => {
                self.effects.bytes_dropped += bytes.len() as u64;
                return self.cut(id.connection, now);
            }
            FrameFate::Delay(by) => {
                self.effects.frames_delayed += 1;
                delay = by;
            }
            FrameFate::DeliverThenCut => {
                let way = self.way(id);
                let rest = frame.map_or(bytes.len(), |frame| frame.len.saturating_sub(way.frames.begun()));
                way.cut_at = Some(way.accepted + rest as u64);
            }
        }
        let way = self.way(id);
        way.frames.advance(bytes);
        way.outstanding += bytes.len();
        way.accepted += bytes.len() as u64;
        self.send(id, Payload::Data(Bytes::copy_from_slice(bytes)), delay, now);
    }

    /// No further bytes follow.
    pub(super) fn shutdown(&mut self, id: EndId, now: At) -> io::Result<()> {
        let end = self.end(id);
        if let Some(error) = end.error {
            return Err(error.into());
        }
        if !std::mem::replace(&mut end.fin_sent, true) {
            self.send(id, Payload::Fin, Duration::ZERO, now);
        }
        Ok(())
    }

    /// Nobody holds this end any more.
    pub(super) fn close(&mut self, id: EndId, now: At) {
        let unread = !self.end(id).inbox.is_empty();
        self.abandon(id, if unread { Payload::Rst } else { Payload::Fin }, now);
    }

    /// The end's owner is gone; the machine tells the peer by `last`, behind all that was written before.
    fn abandon(&mut self, id: EndId, last: Payload, now: At) {
        let end = self.end(id);
        let before = std::mem::replace(&mut end.state, EndState::Gone);
        let told = end.error.is_some() || (end.fin_sent && matches!(last, Payload::Fin));
        let unread: usize = end.inbox.drain(..).map(|bytes| bytes.len()).sum();
        self.effects.bytes_dropped += unread as u64;
        // An end that is still opening has nothing to end: what arrives for it is answered with RST.
        if before == EndState::Open && !told {
            self.end(id).fin_sent = true;
            self.send(id, last, Duration::ZERO, now);
        }
        self.collect(id.connection);
    }

    // Faults.

    /// Nothing that is sent on these ways arrives until the obstacle is lifted.
    pub(super) fn obstruct(&mut self, kind: ObstacleKind, ways: Vec<(NodeId, NodeId)>) -> u64 {
        self.last_obstacle += 1;
        self.obstacles.insert(self.last_obstacle, Obstacle { kind, ways, held: 0 });
        self.last_obstacle
    }

    /// Lifts an obstacle; says how many segments it has stopped.
    pub(super) fn lift(&mut self, id: u64, now: At) -> u64 {
        let Some(obstacle) = self.obstacles.remove(&id) else { return 0 };
        self.release(obstacle.kind, now);
        obstacle.held
    }

    pub(super) fn held(&self, id: u64) -> u64 {
        self.obstacles.get(&id).map_or(0, |obstacle| obstacle.held)
    }

    pub(super) fn lift_all(&mut self, now: At) -> u64 {
        let ids: Vec<u64> = self.obstacles.keys().copied().collect();
        ids.into_iter().map(|id| self.lift(id, now)).sum()
    }

    pub(super) fn hosts(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub(super) fn set_link(&mut self, from: NodeId, to: NodeId, profile: Profile) {
        self.link(from, to).profile = profile;
    }

    pub(super) fn reset_links(&mut self) {
        let usual = self.config.link;
        self.links.values_mut().for_each(|link| link.profile = usual);
    }

    /// Both ends of each connection between the two are reset now, whatever is under way is lost.
    pub(super) fn cut_all(&mut self, a: NodeId, b: NodeId, now: At) -> u64 {
        let between = self.pairs(a, b);
        between.iter().for_each(|connection| self.cut(*connection, now));
        between.len() as u64
    }

    /// `forgetful` loses its side of each connection to `other`, which does not learn of it until it sends something.
    pub(super) fn half_open(&mut self, forgetful: NodeId, other: NodeId, now: At) -> u64 {
        let between = self.pairs(forgetful, other);
        for connection in &between {
            let end = usize::from(self.connections[connection].ends[0].node != forgetful);
            let id = EndId { connection: *connection, end };
            self.fail(id, io::ErrorKind::ConnectionReset);
            self.drop_flight(id, now);
            self.collect(*connection);
        }
        between.len() as u64
    }

    fn pairs(&self, a: NodeId, b: NodeId) -> Vec<u64> {
        let alive = |end: &End| end.state == EndState::Open && end.error.is_none();
        self.connections
            .iter()
            .filter(|(_, at)| {
                let nodes = [at.ends[0].node, at.ends[1].node];
                (nodes == [a, b] || nodes == [b, a]) && at.ends.iter().all(alive)
            })
            .map(|(connection, _)| *connection)
            .collect()
    }

    fn cut(&mut self, connection: u64, now: At) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        self.effects.connections_cut += 1;
        for end in 0..2 {
            let id = EndId { connection, end };
            self.fail(id, io::ErrorKind::ConnectionReset);
            self.drop_flight(id, now);
        }
        self.note(EndId { connection, end: 0 }, TraceWhat::Cut, &[], now);
        self.collect(connection);
    }

    // What travels.

    fn send(&mut self, id: EndId, payload: Payload, delay: Duration, now: At) {
        let [from, to] = self.nodes(id);
        let bytes = match &payload {
            Payload::Data(bytes) => bytes.clone(),
            _ => Bytes::new(),
        };
        let link = self.link(from, to);
        let profile = link.profile;
        let nanos = bytes.len() as u128 * 1_000_000_000 / u128::from(profile.bytes_per_second.max(1));
        let transfer = Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        let left = link.free_at.max(now) + transfer;
        link.free_at = left;
        let Connection { name, ways, .. } = self.connections.get_mut(&id.connection).expect("it sends");
        let way = &mut ways[id.end];
        way.segments += 1;
        let number = way.segments;
        let direction = if id.end == 0 { "out" } else { "back" };
        let draws = &self.draws;
        let segment = format_args!("link/{name}/{direction}/segment{number}");
        let (least, most) = (profile.latency_min, profile.latency_max);
        let mut latency = if most.is_zero() { least } else { draws.duration(segment, least, most) };
        if profile.loss > 0.0
            && draws.chance(format_args!("link/{name}/{direction}/segment{number}/loss"), profile.loss)
        {
            // TCP sends it again after a timeout, hence a lost packet is a late one.
            let name = format_args!("link/{name}/{direction}/segment{number}/again");
            latency += draws.duration(name, Duration::from_millis(200), Duration::from_millis(1000));
            self.effects.segments_lost += 1;
        }
        // If it is early, it waits for what is in front of it.
        let due = left + latency + delay;
        let what = payload.what();
        way.flight.push_back(Segment { due, payload });
        self.agenda.add(due, Due::Arrival { connection: id.connection, way: id.end });
        self.note(id, TraceWhat::Sent(what), &bytes, now);
    }

    /// Delivers what is due on a way, as long as nothing is in between.
    fn arrive(&mut self, connection: u64, way: usize, now: At) {
        let id = EndId { connection, end: way };
        loop {
            let Some(at) = self.connections.get_mut(&connection) else { return };
            let [from, to] = [at.ends[way].node, at.ends[1 - way].node];
            let way = &mut at.ways[way];
            if way.held.is_some() {
                // By what is there now: the obstacle that was there first may be gone.
                let placed = between(&self.obstacles, &self.hosts, from, to).map_or(0, |(placed, _)| placed);
                self.count_held(placed);
                return;
            }
            if way.flight.front().is_none_or(|first| first.due > now) {
                return;
            }
            if let Some((placed, kind)) = between(&self.obstacles, &self.hosts, from, to) {
                way.held = Some(placed);
                self.count_held(placed);
                let sender_is_dark = self.hosts.get(&from).is_none_or(|host| !host.power);
                if sender_is_dark {
                    // Nobody is there to send it again.
                    self.drop_flight(id, now);
                    self.collect(connection);
                } else if kind != ObstacleKind::Clog {
                    self.stall(id, now);
                }
                return;
            }
            let Some(segment) = way.flight.pop_front() else { return };
            self.deliver(id, segment.payload, now);
            self.collect(connection);
        }
    }

    fn count_held(&mut self, placed: u64) {
        match self.obstacles.get_mut(&placed) {
            Some(obstacle) => {
                obstacle.held += 1;
                self.effects.segments_held += 1;
            }
            // No obstacle was placed: nobody is there.
            None => self.effects.segments_unheard += 1,
        }
    }

    fn deliver(&mut self, id: EndId, payload: Payload, now: At) {
        let [from, to] = self.nodes(id);
        let back = EndId { end: 1 - id.end, ..id };
        let what = payload.what();
        let bytes = match &payload {
            Payload::Data(bytes) => bytes.clone(),
            _ => Bytes::new(),
        };
        let received = self.receive(back, payload, now);
        if !received {
            self.effects.bytes_dropped += bytes.len() as u64;
            self.note(id, TraceWhat::Dropped(what), &bytes, now);
            let sender = self.end(id);
            if sender.state != EndState::Gone && sender.error.is_none() {
                self.effects.resets += 1;
                self.send(back, Payload::Rst, Duration::ZERO, now);
            }
            return;
        }
        self.note(id, TraceWhat::Delivered(what), &bytes, now);
        // The acknowledgement has to come back.
        if between(&self.obstacles, &self.hosts, to, from).is_some_and(|(_, kind)| kind != ObstacleKind::Clog) {
            self.stall(id, now);
        }
        let way = self.way(id);
        if way.cut_at.is_some_and(|at| way.delivered >= at) {
            self.cut(id.connection, now);
        }
    }

    /// The receiving end takes what has arrived; false: nobody is there for it.
    fn receive(&mut self, id: EndId, payload: Payload, now: At) -> bool {
        let port = self.connection(id).port;
        let node = self.end(id).node;
        let (running, life) = self.hosts.get(&node).map_or((false, 0), |host| (host.running, host.life));
        let usable = |end: &End| end.state == EndState::Open && end.error.is_none();
        match payload {
            Payload::Syn => {
                let listens = running && self.hosts.get(&node).is_some_and(|host| host.listeners.contains_key(&port));
                if listens {
                    self.end(id).life = life;
                    self.send(id, Payload::SynAck, Duration::ZERO, now);
                } else {
                    self.end(id).state = EndState::Gone;
                    self.send(id, Payload::Refuse, Duration::ZERO, now);
                }
                true
            }
            Payload::SynAck => {
                let end = self.end(id);
                if end.state != EndState::Opening || end.error.is_some() {
                    return false;
                }
                end.state = EndState::Open;
                let waker = end.reader.take();
                self.woken.extend(waker);
                self.send(id, Payload::Ack, Duration::ZERO, now);
                true
            }
            Payload::Refuse => {
                if self.end(id).state == EndState::Opening {
                    self.effects.connections_refused += 1;
                }
                self.fail(id, io::ErrorKind::ConnectionRefused);
                true
            }
            Payload::Ack => {
                let end = self.end(id);
                if end.state != EndState::Opening || end.life != life {
                    return false;
                }
                end.state = EndState::Open;
                let listening = self.hosts.get_mut(&node).and_then(|host| host.listeners.get_mut(&port));
                let Some(listening) = listening else {
                    self.end(id).state = EndState::Gone;
                    return false;
                };
                listening.backlog.push_back(id.connection);
                let waker = listening.accepter.take();
                self.woken.extend(waker);
                true
            }
            Payload::Data(bytes) => {
                let end = self.end(id);
                if !usable(end) {
                    return false;
                }
                let len = bytes.len() as u64;
                if bytes.has_remaining() {
                    end.inbox.push_back(bytes);
                }
                let waker = end.reader.take();
                self.woken.extend(waker);
                self.way(EndId { end: 1 - id.end, ..id }).delivered += len;
                self.effects.bytes_delivered += len;
                true
            }
            Payload::Fin => {
                let end = self.end(id);
                if end.state == EndState::Gone {
                    // It has closed as well.
                    return true;
                }
                end.eof = true;
                let waker = end.reader.take();
                self.woken.extend(waker);
                true
            }
            Payload::Rst => {
                self.fail(id, io::ErrorKind::ConnectionReset);
                true
            }
        }
    }

    /// The end is of no use any more. What was delivered to it can still be read.
    fn fail(&mut self, id: EndId, error: io::ErrorKind) {
        let end = self.end(id);
        if end.state == EndState::Gone {
            return;
        }
        end.error.get_or_insert(error);
        let wakers = [end.reader.take(), end.writer.take()];
        self.woken.extend(wakers.into_iter().flatten());
    }

    fn drop_flight(&mut self, id: EndId, now: At) {
        let way = self.way(id);
        way.held = None;
        way.stalled = None;
        let flight = std::mem::take(&mut way.flight);
        for segment in flight {
            let what = segment.payload.what();
            let Payload::Data(bytes) = segment.payload else { continue };
            self.effects.bytes_dropped += bytes.len() as u64;
            self.note(id, TraceWhat::Dropped(what), &bytes, now);
        }
    }

    // Obstacles.

    /// From now on the sender waits; it will not do so for ever.
    fn stall(&mut self, id: EndId, now: At) {
        let give_up = now + self.config.give_up;
        let way = self.way(id);
        if way.stalled.is_none() {
            way.stalled = Some(now);
            self.agenda.add(give_up, Due::GiveUp { connection: id.connection, way: id.end, since: now });
        }
    }

    fn give_up(&mut self, connection: u64, way: usize, since: At, now: At) {
        let id = EndId { connection, end: way };
        if self.connections.get(&connection).is_none_or(|at| at.ways[way].stalled != Some(since)) {
            return;
        }
        if self.end(id).state != EndState::Gone {
            self.effects.given_up += 1;
        }
        self.fail(id, io::ErrorKind::TimedOut);
        self.drop_flight(id, now);
        self.note(id, TraceWhat::GivenUp, &[], now);
        self.collect(connection);
    }

    /// Something that was in between is not any more: what waited for it goes on.
    fn release(&mut self, kind: ObstacleKind, now: At) {
        let all: Vec<u64> = self.connections.keys().copied().collect();
        for connection in all {
            for end in 0..2 {
                let id = EndId { connection, end };
                let [from, to] = self.nodes(id);
                let clear = between(&self.obstacles, &self.hosts, from, to).is_none();
                let clear_back = between(&self.obstacles, &self.hosts, to, from).is_none();
                self.resume(id, kind, clear, clear_back, now);
            }
        }
    }

    /// `clear`: nothing is in front of the way any more; `clear_back`: of the one of its acknowledgements.
    fn resume(&mut self, id: EndId, kind: ObstacleKind, clear: bool, clear_back: bool, now: At) {
        let Connection { name, ends, ways, .. } = self.connections.get_mut(&id.connection).expect("it is in the table");
        let way = &mut ways[id.end];
        if clear_back {
            way.outstanding = way.outstanding.saturating_sub(std::mem::take(&mut way.read_unheard));
            way.stalled = way.stalled.filter(|_| way.held.is_some());
            self.woken.extend(ends[id.end].writer.take());
        }
        if !clear {
            return;
        }
        if way.held.take().is_none() {
            return;
        }
        way.stalled = None;
        way.releases += 1;
        // A clogged link lets go at once; over a partition the sender has to try again, and it tries ever more rarely.
        let again = match kind {
            ObstacleKind::Clog => Duration::ZERO,
            ObstacleKind::Partition | ObstacleKind::Power => {
                let direction = if id.end == 0 { "out" } else { "back" };
                let name = format_args!("link/{name}/{direction}/retransmit{}", way.releases);
                self.draws.duration(name, Duration::from_millis(1), self.config.retransmit_max)
            }
        };
        let due = now + again;
        way.flight.iter_mut().for_each(|segment| segment.due = segment.due.max(due));
        for segment in &way.flight {
            self.agenda.add(segment.due, Due::Arrival { connection: id.connection, way: id.end });
        }
    }

    /// Forgets a connection that nobody holds and on which nothing is under way.
    fn collect(&mut self, connection: u64) {
        let Some(at) = self.connections.get(&connection) else { return };
        let quiet = at.ways.iter().all(|way| way.flight.is_empty());
        let gone = |end: &End| end.state == EndState::Gone;
        // An accepting end that is still opening is held by nobody.
        let unaccepted = at.ends[1].state == EndState::Opening;
        if quiet && gone(&at.ends[0]) && (gone(&at.ends[1]) || unaccepted) {
            self.connections.remove(&connection);
        }
    }

    // Access.

    fn connection(&self, id: EndId) -> &Connection {
        &self.connections[&id.connection]
    }

    fn nodes(&self, id: EndId) -> [NodeId; 2] {
        let ends = &self.connection(id).ends;
        [ends[id.end].node, ends[1 - id.end].node]
    }

    fn end(&mut self, id: EndId) -> &mut End {
        &mut self.connections.get_mut(&id.connection).expect("a connection stays as long as an end is held").ends
            [id.end]
    }

    fn way(&mut self, id: EndId) -> &mut Way {
        &mut self.connections.get_mut(&id.connection).expect("a connection stays as long as an end is held").ways
            [id.end]
    }

    fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        let profile = self.config.link;
        self.links.entry((from, to)).or_insert(Link { profile, free_at: Duration::ZERO, connections: 0 })
    }

    fn note(&self, id: EndId, what: TraceWhat, bytes: &[u8], now: At) {
        if let Some(trace) = &self.trace {
            let [from, to] = self.nodes(id);
            trace(&NetTrace { at: now, from, to, connection: &self.connection(id).name, what, bytes });
        }
    }
}

/// What is between the two, if anything: an obstacle that was placed (with its number), or that nobody is there.
fn between(
    obstacles: &BTreeMap<u64, Obstacle>,
    hosts: &BTreeMap<NodeId, Host>,
    from: NodeId,
    to: NodeId,
) -> Option<(u64, ObstacleKind)> {
    let placed = obstacles.iter().find(|(_, obstacle)| obstacle.ways.contains(&(from, to)));
    let dark = || hosts.get(&to).is_none_or(|host| !host.power).then_some((0, ObstacleKind::Power));
    placed.map(|(id, obstacle)| (*id, obstacle.kind)).or_else(dark)
}

impl Host {
    fn new() -> Host {
        Host { life: 1, power: true, running: false, listeners: BTreeMap::new(), last_port: 49_151 }
    }

    fn end_life(&mut self) {
        self.life += 1;
        self.running = false;
        // Connections in their backlogs are ends of this host like all others.
        self.listeners.clear();
    }

    fn free_port(&mut self) -> io::Result<u16> {
        for _ in 0..=u16::MAX {
            self.last_port = self.last_port.checked_add(1).unwrap_or(49_152);
            if !self.listeners.contains_key(&self.last_port) {
                return Ok(self.last_port);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

impl End {
    fn new(node: NodeId, life: u64) -> End {
        End {
            node,
            life,
            state: EndState::Opening,
            error: None,
            inbox: VecDeque::new(),
            eof: false,
            fin_sent: false,
            reads: 0,
            writes: 0,
            reader: None,
            writer: None,
        }
    }
}

impl Payload {
    fn what(&self) -> &'static str {
        match self {
            Payload::Syn => "syn",
            Payload::SynAck => "syn-ack",
            Payload::Refuse => "refuse",
            Payload::Ack => "ack",
            Payload::Data(_) => "data",
            Payload::Fin => "fin",
            Payload::Rst => "rst",
        }
    }
}

/// Follows the frames of a byte stream. A stream that is not one of frames is passed on as it comes.
#[derive(Default)]
struct Frames {
    /// The header of the frame that comes, as far as it was seen.
    head: Vec<u8>,
    /// What is left of the frame whose header was seen.
    left: usize,
    opaque: bool,
}

impl Frames {
    /// How much of `bytes` belongs to one frame, and the frame if its header becomes complete.
    fn look(&self, bytes: &[u8]) -> (usize, Option<Peek>) {
        if self.opaque {
            return (bytes.len(), None);
        }
        if self.left > 0 {
            return (self.left.min(bytes.len()), None);
        }
        let missing = HEADER_BYTES - self.head.len();
        if bytes.len() < missing {
            return (bytes.len(), None);
        }
        let header = [&self.head, &bytes[..missing]].concat();
        match peek(&header) {
            Some(seen) => (bytes.len().min(seen.len.saturating_sub(self.head.len())), Some(seen)),
            None => (bytes.len(), None),
        }
    }

    /// Bytes of a header that were passed on before the rest of it was seen.
    fn begun(&self) -> usize {
        self.head.len()
    }

    /// `bytes` were passed on: as much as [`Frames::look`] said, or less.
    fn advance(&mut self, bytes: &[u8]) {
        if self.opaque {
            return;
        }
        if self.left > 0 {
            self.left = self.left.saturating_sub(bytes.len());
            return;
        }
        let missing = HEADER_BYTES - self.head.len();
        if bytes.len() < missing {
            self.head.extend_from_slice(bytes);
            return;
        }
        self.head.extend_from_slice(&bytes[..missing]);
        match peek(&std::mem::take(&mut self.head)) {
            Some(seen) => self.left = seen.len.saturating_sub(HEADER_BYTES + bytes.len() - missing),
            None => self.opaque = true,
        }
    }
}

/// `n3:7000`.
fn parse(addr: &str) -> io::Result<(NodeId, u16)> {
    let parsed = addr.rsplit_once(':').and_then(|(host, port)| {
        let node = host.strip_prefix('n')?.parse().ok()?;
        Some((NodeId(node), port.parse().ok()?))
    });
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{addr} is not like n3:7000")))
}

fn no_host(node: NodeId) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no host {node}"))
}
