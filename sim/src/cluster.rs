//! The simulated cluster: the nodes of the product, each on a machine of madsim's with a disk, a clock and a place in the
//! network. Starts them, kills them, starts them again; knows nothing of scenarios.
//!
//! A node is killed in this order: its tasks, its network, its disk; so nothing of the dead process has an effect any
//! more when the kill returns. It is started as the product is: `Node::run` on whatever the disk holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::clock::Clock;
use engine::event::Events;
use engine::frontend::Frontend;
use engine::options::Options;
use engine::server::message::{Request, Response};
use engine::server::router::Router;
use engine::server::rpc::Peers;
use engine::server::{Node, NodeConfig, Seams, Stop};
use engine::types::{NodeId, RegionId};
use engine::{Error, Result};
use madsim::runtime::{Handle, NodeHandle};

use crate::clock::SimClock;
use crate::disk::{DiskOptions, SimDisk};
use crate::draw::Draws;
use crate::net::{NetConfig, SimNet, TraceWhat};
use crate::run::hub::Hub;
use crate::trace::Trace;

/// The host that clients live on: no node of the cluster has this number.
pub const CLIENTS: NodeId = NodeId(1_000);

/// See the module. Clones are the same cluster.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

struct Shared {
    net: SimNet,
    hub: Hub,
    options: Mutex<Options>,
    addresses: BTreeMap<NodeId, String>,
    nodes: BTreeMap<NodeId, Machine>,
    clients: Frontend,
    peers: Arc<Peers>,
    _client_host: NodeHandle,
}

/// One machine.
struct Machine {
    id: madsim::task::NodeId,
    disk: SimDisk,
    clock: SimClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The process runs.
    up: bool,
    paused: bool,
    /// Counts starts, so that what a dead process left behind is told from what is.
    start: u64,
    node: Option<Node>,
    /// What it was last started with.
    options: Option<Options>,
    /// Starts with other options than the time before.
    reconfigured: u64,
    /// The process ended by itself.
    stopped: Option<Stop>,
}

impl Cluster {
    /// Makes the machines, their stores, and starts all of them. The meta group is not formed yet.
    pub async fn start(nodes: u32, options: &Options, draws: &Draws, trace: &Trace, hub: &Hub) -> Result<Cluster> {
        let net = SimNet::new(draws.clone(), NetConfig::default());
        let traced = trace.clone();
        net.on_trace(Some(Arc::new(move |seen| {
            let (what, segment) = match seen.what {
                TraceWhat::Sent(segment) => ("net.sent", segment),
                TraceWhat::Delivered(segment) => ("net.delivered", segment),
                TraceWhat::Dropped(segment) => ("net.dropped", segment),
                TraceWhat::Cut => ("net.cut", ""),
                TraceWhat::GivenUp => ("net.given_up", ""),
            };
            let text = format_args!("{} to {} {segment} {} bytes", seen.connection, seen.to, seen.bytes.len());
            traced.event(seen.at, seen.from.0, what, seen.bytes, text);
        })));
        let ids: Vec<NodeId> = (1..=u64::from(nodes)).map(NodeId).collect();
        let addresses: BTreeMap<NodeId, String> = ids.iter().map(|id| (*id, address(*id))).collect();
        let mut machines = BTreeMap::new();
        for id in &ids {
            let host = Handle::current().create_node().name(id.to_string()).build();
            let disk = SimDisk::new(id.0, draws.clone(), Some(trace.clone()), DiskOptions::default());
            let clock = SimClock::new();
            machines.insert(*id, Machine { id: host.id(), disk, clock, state: Mutex::default() });
        }
        let host = Handle::current().create_node().name("clients").build();
        let client_net = net.boot(CLIENTS);
        let shared_options = Arc::new(options.clone());
        let events = Events::heard_by(CLIENTS, Arc::new(hub.clone()));
        let (client_options, client_addresses) = (shared_options.clone(), addresses.clone());
        let made = host.spawn(async move {
            // Made on the clients' machine, so that its tasks are.
            let peers =
                Peers::new(CLIENTS, client_net, client_addresses.clone(), client_options.clone(), events.clone());
            let router = Arc::new(Router::of_client(peers.clone()));
            let meta = client_addresses.keys().copied().collect();
            let clock: Arc<dyn Clock> = Arc::new(SimClock::new());
            (peers, Frontend::new(router, meta, clock, client_options, events))
        });
        let (peers, clients) = made.await.map_err(|_| Error::Stopped)?;
        let cluster = Cluster(Arc::new(Shared {
            net,
            hub: hub.clone(),
            options: Mutex::new(options.clone()),
            addresses,
            nodes: machines,
            clients,
            peers,
            _client_host: host,
        }));
        for id in ids {
            let disk = cluster.machine(id).disk.mount();
            Node::init(&cluster.config(id), disk.as_ref()).await?;
            cluster.boot(id);
        }
        Ok(cluster)
    }

    /// Forms the meta group: once in the life of the cluster.
    pub async fn bootstrap(&self) -> Result<()> {
        let first = NodeId(1);
        let members = Node::meta_members(&self.config(first));
        let request = Request::InitGroup { region: RegionId::META, members };
        loop {
            match self.0.peers.call(first, request.clone(), Duration::from_secs(5)).await {
                Ok(_) => return Ok(()),
                Err(err) if err.is_retryable() || matches!(err, Error::Deadline { .. }) => {
                    madsim::time::sleep(Duration::from_millis(50)).await;
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// All nodes.
    pub fn ids(&self) -> Vec<NodeId> {
        self.0.nodes.keys().copied().collect()
    }

    /// The network.
    pub fn net(&self) -> &SimNet {
        &self.0.net
    }

    /// A node's disk.
    pub fn disk(&self, node: NodeId) -> &SimDisk {
        &self.machine(node).disk
    }

    /// A node's clock.
    pub fn clock(&self, node: NodeId) -> &SimClock {
        &self.machine(node).clock
    }

    /// The frontend that clients use.
    pub fn clients(&self) -> &Frontend {
        &self.0.clients
    }

    /// Asks a node over the network, as a client does.
    pub async fn call(&self, to: NodeId, request: Request, within: Duration) -> Result<Response> {
        self.0.peers.call(to, request, within).await
    }

    /// Asks a node directly: nothing of it passes the network.
    pub async fn ask(&self, node: NodeId, request: Request, within: Duration) -> Result<Response> {
        let asked = self.machine(node).state().node.clone();
        let Some(asked) = asked else { return Err(Error::Stopped) };
        match madsim::time::timeout(within, asked.handle(NodeId(0), request, within)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Unknown { message: format!("{node} did not answer") }),
        }
    }

    /// Whether the node's process runs (it may be paused).
    pub fn is_up(&self, node: NodeId) -> bool {
        self.machine(node).state().up
    }

    /// Whether the node stands still.
    pub fn is_paused(&self, node: NodeId) -> bool {
        self.machine(node).state().paused
    }

    /// Starts the process, unless it runs.
    pub fn boot(&self, node: NodeId) -> bool {
        let machine = self.machine(node);
        let config = self.config(node);
        let mut state = machine.state();
        if state.up {
            return false;
        }
        let before = state.options.replace(config.options.clone());
        state.reconfigured += u64::from(before.is_some_and(|before| before != config.options));
        state.up = true;
        state.start += 1;
        state.stopped = None;
        let start = state.start;
        drop(state);
        let runtime = Handle::current();
        if start > 1 {
            // A killed machine takes no tasks; this one has none of the old ones.
            runtime.restart(machine.id);
        }
        let seams = Seams {
            disk: machine.disk.mount(),
            net: self.0.net.boot(node),
            clock: Arc::new(machine.clock.clone()),
            events: Events::heard_by(node, Arc::new(self.0.hub.clone())),
        };
        let cluster = self.clone();
        let host = runtime.get_node(machine.id).expect("the machine was made at the start");
        host.spawn(async move {
            let started = cluster.clone();
            let ended = Node::run(config, seams, move |handle| {
                let mut state = started.machine(node).state();
                if state.start == start {
                    state.node = Some(handle);
                }
            });
            let ended = ended.await;
            let mut state = cluster.machine(node).state();
            if state.start == start {
                state.up = false;
                state.node = None;
                state.stopped = ended.err();
            }
        });
        true
    }

    /// Ends the process at once; with `power`, the machine loses what its disk had not synced.
    pub fn kill(&self, node: NodeId, power: bool) -> crate::disk::Loss {
        let machine = self.machine(node);
        {
            let mut state = machine.state();
            state.up = false;
            state.paused = false;
            state.node = None;
        }
        Handle::current().kill(machine.id);
        let loss = if power {
            self.0.net.power_loss(node);
            machine.disk.power_loss()
        } else {
            self.0.net.crash(node);
            machine.disk.crash();
            crate::disk::Loss::default()
        };
        self.0.hub.lost(node, power);
        loss
    }

    /// Stops the process where it is, unless it is down or stands still already.
    pub fn pause(&self, node: NodeId) -> bool {
        let machine = self.machine(node);
        let mut state = machine.state();
        let stops = state.up && !state.paused;
        if stops {
            state.paused = true;
            Handle::current().pause(machine.id);
        }
        stops
    }

    /// Lets a paused process go on.
    pub fn resume(&self, node: NodeId) -> bool {
        let machine = self.machine(node);
        let mut state = machine.state();
        let goes_on = std::mem::take(&mut state.paused);
        if goes_on {
            Handle::current().resume(machine.id);
        }
        goes_on
    }

    /// How often a node started with other options than the time before.
    pub fn reconfigured(&self) -> u64 {
        self.0.nodes.values().map(|machine| machine.state().reconfigured).sum()
    }

    /// Nodes whose process ended by itself, and why.
    pub fn stopped(&self) -> Vec<(NodeId, Stop)> {
        let stopped = |(id, machine): (&NodeId, &Machine)| Some((*id, machine.state().stopped.clone()?));
        self.0.nodes.iter().filter_map(stopped).collect()
    }

    /// The options that nodes get at their next start.
    pub fn options(&self) -> MutexGuard<'_, Options> {
        self.0.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, node: NodeId) -> &Machine {
        self.0.nodes.get(&node).expect("nodes are checked when the plan is read")
    }

    fn config(&self, node: NodeId) -> NodeConfig {
        NodeConfig { node, listen: address(node), nodes: self.0.addresses.clone(), options: self.options().clone() }
    }
}

impl Machine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(node: NodeId) -> String {
    format!("{node}:7000")
}
