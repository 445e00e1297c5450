//! Oracle 13: a disk that loses power now holds everything that its node has promised.
//!
//! At drawn moments and after each power loss the durable content of a disk is opened beside the run, as a starting node
//! would. Checks: the log opens; every entry that was reported durable, every vote that was reported saved is there; the
//! manifest of each replica reaches at least as far as its last finished flush; every file that it names exists and
//! verifies; after collection no other file is left; the log starts no later than behind the flushed entry; when a byte
//! of the log changes that was durable before its last batch, the log says so and does not take it for a torn tail.
//!
//! Does not check: what the files' rows are (the replica oracle scans them when they are in use), and replicas that are being
//! dropped, once it is durable that they must not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use engine::Error;
use engine::disk::{Disk, Open};
use engine::event::{Event, Events, Listen};
use engine::log::Log;
use engine::options::Options;
use engine::storage::manifest::Manifest;
use engine::storage::sst;
use engine::types::{LogId, NodeId, RegionId, ReplicaId, Vote};

use super::Violation;

pub(super) const NAME: &str = "disk_images";

/// What nodes have promised so far.
#[derive(Default)]
pub struct DiskImageOracle {
    promises: BTreeMap<NodeId, BTreeMap<ReplicaId, Promise>>,
    evaluations: u64,
}

/// What a replica's disk must hold.
#[derive(Clone, Debug, Default)]
pub struct Promise {
    vote: Option<Vote>,
    durable: Option<LogId>,
    flushed: Option<LogId>,
    is_meta: bool,
}

impl DiskImageOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// Notes promises.
    pub fn on_event(&mut self, node: NodeId, event: &Event) {
        let replicas = self.promises.entry(node).or_default();
        match event {
            Event::VoteSaved { replica, vote } => replicas.entry(*replica).or_default().vote = Some(*vote),
            Event::Durable { replica, upto } => {
                let promise = replicas.entry(*replica).or_default();
                promise.durable = promise.durable.max(Some(*upto));
            }
            // What is taken out is not promised any more; what replaces it will be.
            Event::Truncated { replica, last } => {
                let promise = replicas.entry(*replica).or_default();
                promise.durable = promise.durable.min(*last);
            }
            Event::FlushFinished { replica, upto, region, .. } => {
                let promise = replicas.entry(*replica).or_default();
                promise.flushed = Some(*upto);
                promise.is_meta = *region == RegionId::META;
            }
            Event::SnapshotInstalled { replica, last, region } => {
                let promise = replicas.entry(*replica).or_default();
                promise.flushed = Some(*last);
                promise.is_meta = *region == RegionId::META;
                // The log before a snapshot may be dropped as a whole.
                promise.durable = None;
            }
            // Its log is the old one.
            Event::ReplicaMended { replica, last, .. } => {
                let promise = replicas.entry(*replica).or_default();
                promise.flushed = promise.flushed.max(Some(*last));
            }
            // From here on nothing of it need be there, and at last nothing may.
            Event::ReplicaDropping { replica, .. } | Event::ReplicaDropped { replica, .. } => {
                replicas.remove(replica);
            }
            _ => {}
        }
    }

    /// Promises outlive the process.
    pub fn on_crash(&mut self, _node: NodeId, _power: bool) {}

    /// What the node's disk must hold now.
    pub fn promises(&self, node: NodeId) -> BTreeMap<ReplicaId, Promise> {
        self.promises.get(&node).cloned().unwrap_or_default()
    }

    /// A disk was looked at.
    pub fn evaluated(&mut self) {
        self.evaluations += 1;
    }

    /// How many disks were looked at.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }
}

/// Opens `disk`, the durable content of a node's disk, and holds it against the promises. Changes `disk`. Files that are
/// `rotten` by the scenario's doing need not be whole.
pub async fn check(
    node: NodeId,
    disk: Arc<dyn Disk>,
    rotten: &BTreeSet<String>,
    options: &Options,
    promises: &BTreeMap<ReplicaId, Promise>,
) -> Result<(), Violation> {
    if disk.list("log").await.is_err() {
        // The node was never up.
        return Ok(());
    }
    let events = Events::of(node);
    let log = match Log::open(disk.clone(), "log", options, events.clone()).await {
        // The node says so and stops.
        Err(Error::Damaged { file, .. }) if rotten.contains(&file) => return Ok(()),
        log => log,
    };
    let log = log.map_err(|err| violation("a log cannot be opened after a power loss", node, vec![err.to_string()]))?;
    for (id, promise) in promises {
        let state = log.replica(*id).state();
        let reaches = state.last.max(state.purged);
        let is_there = |durable: &LogId| state.purged.is_none_or(|purged| durable.index > purged.index);
        let entry = match promise.durable.filter(is_there) {
            None => None,
            Some(durable) => match log.replica(*id).read(durable.index..durable.index + 1, u64::MAX).await {
                Ok(entries) => Some((durable, entries.first().map(|entry| entry.id))),
                // It is known which one it is.
                Err(Error::Damaged { file, .. }) if rotten.contains(&file) => {
                    Some((durable, log.replica(*id).log_id(durable.index)))
                }
                Err(err) => return Err(violation("a durable entry cannot be read", node, vec![err.to_string()])),
            },
        };
        let holds = match entry {
            None => true,
            Some((durable, found)) => found == Some(durable) || reaches > Some(durable) && found.is_some(),
        };
        if !holds {
            return Err(violation(
                "a durable entry is gone after a power loss",
                node,
                vec![
                    format!("replica {id} reported {:?} durable", promise.durable),
                    format!("its log reaches from {:?} to {:?}", state.purged, state.last),
                ],
            ));
        }
        if state.vote.map_or(0, |vote| vote.term) < promise.vote.map_or(0, |vote| vote.term) {
            return Err(violation(
                "a vote is gone after a power loss",
                node,
                vec![format!("replica {id} saved {:?}", promise.vote), format!("and has {:?}", state.vote)],
            ));
        }
        if !promise.is_meta {
            check_files((node, *id), &disk, rotten, options, &events, promise, state.purged).await?;
        }
    }
    log.close().await.map_err(|err| violation("a log cannot be closed", node, vec![err.to_string()]))?;
    if rotten.iter().any(|path| path.starts_with("log/")) {
        return Ok(());
    }
    check_damage(node, &disk, options).await
}

/// Records that a log's opening writes at most, in bytes: they are its last batch afterwards.
const OPENING: u64 = 96;

/// Changes a byte of the log, and opens it. The log was opened and closed before, so that a batch follows whatever an
/// unfinished one left: no change but one of that batch can be a torn write. Which byte depends on how long the log is;
/// every other time it is one of the last segment, where a torn write could be.
async fn check_damage(node: NodeId, disk: &Arc<dyn Disk>, options: &Options) -> Result<(), Violation> {
    let broken = |err: std::io::Error| violation("the image of a log cannot be changed", node, vec![err.to_string()]);
    let names = disk.list("log").await.map_err(broken)?;
    let mut segments = Vec::with_capacity(names.len());
    for name in names {
        let file = disk.open(&format!("log/{name}"), Open::Write).await.map_err(broken)?;
        let len = file.len().await.map_err(broken)?;
        segments.push((name, file, len));
    }
    let whole: u64 = segments.iter().map(|(_, _, len)| len).sum();
    let choice = u64::from(crc32fast::hash(&whole.to_le_bytes()));
    if choice.is_multiple_of(2) && segments.last().is_some_and(|(_, _, len)| *len > OPENING) {
        segments.drain(..segments.len() - 1);
    }
    let range = segments.iter().map(|(_, _, len)| len).sum::<u64>().saturating_sub(OPENING);
    let Some(mut at) = choice.checked_rem(range) else { return Ok(()) };
    for (name, file, len) in segments {
        if at >= len {
            at -= len;
            continue;
        }
        let byte = file.read_at(at, 1).await.map_err(broken)?;
        let changed = Bytes::from(vec![byte.first().map_or(1, |byte| byte ^ 1)]);
        file.write_at(at, changed).await.map_err(broken)?;
        let place = format!("byte {at} of {len} of {name} was changed");
        let heard = Arc::new(Rotten::default());
        return match Log::open(disk.clone(), "log", options, Events::heard_by(node, heard.clone())).await {
            Err(Error::Damaged { .. }) => Ok(()),
            // The payload of an entry: which one is known.
            Ok(_) if heard.0.load(Ordering::Relaxed) == 1 => Ok(()),
            Err(err) => Err(violation("damage of a log is called something else", node, vec![place, err.to_string()])),
            Ok(_) => Err(violation("a damaged log was opened", node, vec![place])),
        };
    }
    Ok(())
}

/// How many entries an opened log found damaged.
#[derive(Default)]
struct Rotten(AtomicU64);

impl Listen for Rotten {
    fn on_event(&self, _: NodeId, event: &Event) {
        if let Event::LogOpened { rotten, .. } = event {
            self.0.store(*rotten, Ordering::Relaxed);
        }
    }
}

async fn check_files(
    (node, id): (NodeId, ReplicaId),
    disk: &Arc<dyn Disk>,
    rotten: &BTreeSet<String>,
    options: &Options,
    events: &Events,
    promise: &Promise,
    purged: Option<LogId>,
) -> Result<(), Violation> {
    let wrong = |signature: &str, evidence: String| violation(signature, node, vec![format!("replica {id}"), evidence]);
    let folder = format!("replicas/{}", id.0);
    let manifest = Manifest::open(disk.clone(), &folder, options, events.clone()).await;
    let manifest = manifest.map_err(|err| wrong("a manifest cannot be opened after a power loss", err.to_string()))?;
    let Some(manifest) = manifest else {
        return match promise.flushed {
            None => Ok(()),
            Some(flushed) => Err(wrong("a manifest is gone after a power loss", format!("it had flushed {flushed}"))),
        };
    };
    let state = manifest.state();
    if state.past.flushed < promise.flushed {
        let evidence = format!("flushed {:?}, and the manifest says {:?}", promise.flushed, state.past.flushed);
        return Err(wrong("a finished flush is gone after a power loss", evidence));
    }
    if purged.map(|purged| purged.index) > state.past.flushed.map(|flushed| flushed.index) {
        let evidence = format!("the log starts behind {purged:?}, the files end at {:?}", state.past.flushed);
        return Err(wrong("the log starts behind what is in files", evidence));
    }
    for meta in state.files.values().filter(|meta| !rotten.contains(&sst::path(&folder, meta.id))) {
        if let Err(err) = sst::verify(disk.as_ref(), &folder, meta).await {
            return Err(wrong("a file that the manifest names is not whole", err.to_string()));
        }
    }
    if let Err(err) = manifest.remove_orphans(BTreeSet::new).await {
        return Err(wrong("orphans cannot be collected", err.to_string()));
    }
    let left = disk.list(&sst::folder(&folder)).await.unwrap_or_default();
    if left.len() != state.files.len() {
        return Err(wrong("a file is left that the manifest does not name", format!("{left:?}")));
    }
    Ok(())
}

fn violation(signature: &str, node: NodeId, mut evidence: Vec<String>) -> Violation {
    evidence.insert(0, format!("the disk of {node}"));
    Violation { oracle: NAME, signature: signature.to_string(), evidence }
}
