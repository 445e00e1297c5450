//! The disk of one simulated node: what was synced survives a power loss, what was not may survive in part, and every
//! operation can be delayed, stalled or made to fail.
//!
//! What survives is told in `store.rs`: POSIX's promises and, where they leave room, what file systems with a journal
//! do. Beyond that:
//! - **Incarnations.** The running system works through [`SimDisk::mount`]. [`SimDisk::crash`] and
//!   [`SimDisk::power_loss`] end the incarnation: a call of a dead one never returns and changes nothing, whether it was
//!   under way or comes later (futures of a killed node are dropped late). Both are synchronous and touch nothing of the
//!   executor: they may be called from anywhere, also under its locks.
//! - **Effect.** An operation has its effect at one moment: reads, writes and changes of names at once (the page cache
//!   is memory), syncs when their delay is over, for the changes that were made before they were called. What is changed
//!   while a sync is under way waits for the next one.
//! - **Delay.** Each operation that is delayed owns a timer made when it begins. A sync takes a drawn time plus that of
//!   its bytes in the queue of the device. Costs of reads add up until they come to a millisecond, the least that a timer
//!   waits, and are then paid by the read that is next.
//! - **Draws.** Named by path and by the count of the operation on that file: one operation more on one file moves
//!   nothing on any other.
//!
//! Not here: unreadable sectors, misdirected writes, syncs that lie. A page cache that fills up, permissions,
//! links.

mod content;
mod fault;
mod mount;
mod store;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use engine::disk::Disk;

use self::fault::Rules;
pub use self::fault::{Class, Effect, Effects, Failure, Fate, Hook, Moment, Op, Rule, RuleId, Site};
use self::mount::Mounted;
use self::store::Store;
pub use self::store::{Keep, Loss};
use crate::draw::Draws;
use crate::hash::Hash128;
use crate::trace::Trace;

/// How good a disk is.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskOptions {
    /// Length of all files together, in bytes, that it has room for.
    pub capacity: u64,
    /// The least time that a sync of a file or folder takes. Zero or at least a millisecond.
    pub sync_min: Duration,
    /// The most time that it takes, before the time for its bytes.
    pub sync_max: Duration,
    /// How fast syncs bring bytes onto the medium, one after the other; without a limit if none.
    pub bytes_per_second: Option<u64>,
    /// What reading a page of 4096 bytes costs; zero: everything is in the page cache.
    pub read_page: Duration,
}

impl Default for DiskOptions {
    fn default() -> Self {
        DiskOptions {
            capacity: 8 << 30,
            sync_min: Duration::from_millis(1),
            sync_max: Duration::from_millis(3),
            bytes_per_second: Some(256 << 20),
            read_page: Duration::ZERO,
        }
    }
}

impl DiskOptions {
    /// A disk that never lets anyone wait.
    pub fn instant() -> Self {
        DiskOptions {
            sync_min: Duration::ZERO,
            sync_max: Duration::ZERO,
            bytes_per_second: None,
            ..DiskOptions::default()
        }
    }
}

/// A file as the running system sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Path within the disk.
    pub path: String,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of writes that no sync has brought onto the medium.
    pub unsynced: u64,
}

/// The disk of one node. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Shared>);

pub(in crate::disk) struct Shared {
    node: u64,
    draws: Draws,
    trace: Option<Trace>,
    state: Mutex<State>,
}

pub(in crate::disk) struct State {
    store: Store,
    options: DiskOptions,
    /// Counts the ends of running systems.
    incarnation: u64,
    /// A hook ended the process; what follows has no effect until [`SimDisk::crash`] or [`SimDisk::power_loss`].
    frozen: bool,
    stall: Option<Stall>,
    /// How often stalls were lifted.
    lifts: u64,
    /// Who waits for a lift.
    waiting: Vec<Waker>,
    /// By how much everything that takes time takes longer.
    slow: f64,
    rules: Rules,
    hook: Option<Hook>,
    /// Operations so far, by class and kind.
    counts: [[u64; Op::ALL.len()]; Class::ALL.len()],
    /// Syncs so far, by path: a new file of an old name goes on counting.
    syncs: BTreeMap<String, u64>,
    effects: Effects,
    /// Virtual time of the latest operation: losses happen where no clock may be asked.
    now: Duration,
    /// When the device is through with the bytes that it has to write.
    busy_until: Duration,
    /// Costs of reads that nobody has waited for yet.
    read_debt: Duration,
}

/// Operations do not answer before it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stall {
    /// Virtual time; without, until it is lifted.
    until: Option<Duration>,
}

impl SimDisk {
    /// An empty disk of `node`. With a trace, every operation is an event of it.
    pub fn new(node: u64, draws: Draws, trace: Option<Trace>, options: DiskOptions) -> SimDisk {
        SimDisk::with(Store::new(), node, draws, trace, options)
    }

    fn with(store: Store, node: u64, draws: Draws, trace: Option<Trace>, options: DiskOptions) -> SimDisk {
        SimDisk(Arc::new(Shared {
            node,
            draws,
            trace,
            state: Mutex::new(State {
                store,
                options,
                incarnation: 0,
                frozen: false,
                stall: None,
                lifts: 0,
                waiting: Vec::new(),
                slow: 1.0,
                rules: Rules::default(),
                hook: None,
                counts: Default::default(),
                syncs: BTreeMap::new(),
                effects: Effects::default(),
                now: Duration::ZERO,
                busy_until: Duration::ZERO,
                read_debt: Duration::ZERO,
            }),
        }))
    }

    /// The disk for a system that starts now. It works until the next crash or power loss.
    pub fn mount(&self) -> Arc<dyn Disk> {
        let incarnation = self.0.state().incarnation;
        Arc::new(Mounted::new(self.0.clone(), incarnation))
    }

    /// The process ended. What it wrote stays in the page cache and can be read by the next one.
    pub fn crash(&self) {
        let mut state = self.0.state();
        state.end_incarnation();
        state.store.crash();
        self.0.traced(state.now, "disk.crash", |_| {}, format_args!(""));
    }

    /// The power failed: of what was not synced, what the draws say is kept.
    pub fn power_loss(&self) -> Loss {
        self.power_loss_keeping(Keep::Drawn)
    }

    /// The power failed, and `keep` of what was not synced is kept.
    pub fn power_loss_keeping(&self, keep: Keep) -> Loss {
        let mut state = self.0.state();
        state.end_incarnation();
        state.effects.power_losses += 1;
        let name = format!("disk/n{}/loss/{}", self.0.node, state.effects.power_losses);
        let loss = state.store.lose(keep, &self.0.draws, &name);
        state.effects.bytes_lost += loss.bytes;
        state.effects.sectors_torn += loss.sectors_torn;
        state.effects.entries_lost += loss.entries;
        let Loss { bytes, sectors_torn, entries } = loss;
        let fill = |digest: &mut Hash128| [bytes, sectors_torn, entries].into_iter().for_each(|word| digest.word(word));
        let text = format_args!("lost {bytes} bytes and {entries} names, tore {sectors_torn} sectors");
        self.0.traced(state.now, "disk.power_loss", fill, text);
        loss
    }

    /// What a power failure would leave now, if it kept nothing unsynced: a disk of its own, without delays, to be opened
    /// beside the run. The run does not notice.
    pub fn power_failure_image(&self) -> SimDisk {
        let copy = self.copy();
        copy.0.state().store.lose(Keep::Nothing, &copy.0.draws, "image");
        copy
    }

    /// A disk of its own with everything that this one holds, cached and durable, without delays, faults and trace.
    pub fn copy(&self) -> SimDisk {
        let mut store = self.0.state().store.clone();
        store.crash();
        SimDisk::with(store, self.0.node, Draws::new(self.0.draws.seed()), None, DiskOptions::instant())
    }

    /// How often a running system ended so far.
    pub fn incarnation(&self) -> u64 {
        self.0.state().incarnation
    }

    // Faults.

    /// Aims a fault.
    pub fn arm(&self, rule: Rule) -> RuleId {
        self.0.state().rules.arm(rule)
    }

    /// Lifts a fault that was aimed. What stalls because of it goes on stalling.
    pub fn disarm(&self, id: RuleId) {
        self.0.state().rules.disarm(id);
    }

    /// How many operations a rule has changed, also after it was lifted.
    pub fn fired(&self, id: RuleId) -> u64 {
        self.0.state().rules.fired(id)
    }

    /// Calls `hook` at every operation from now on, before and after its effect.
    pub fn on_op(&self, hook: Hook) {
        self.0.state().hook = Some(hook);
    }

    /// No operation answers for the time `within`, or until the stalls are lifted. Call it from a task.
    pub fn stall(&self, within: Option<Duration>) {
        let now = madsim::time::TimeHandle::current().elapsed();
        self.0.state().stall = Some(Stall { until: within.map(|within| now + within) });
    }

    /// Ends all stalls, also those of rules.
    pub fn lift(&self) {
        let waiting = {
            let mut state = self.0.state();
            state.stall = None;
            state.lifts += 1;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Everything that takes time takes `factor` times as long: from 0.001 to a million.
    pub fn set_slow(&self, factor: f64) {
        let factor = if factor.is_finite() { factor.clamp(0.001, 1e6) } else { 1.0 };
        self.0.state().slow = factor;
    }

    /// Changes how good it is, from the next operation on.
    pub fn set_options(&self, options: DiskOptions) {
        self.0.state().options = options;
    }

    /// How good it is.
    pub fn options(&self) -> DiskOptions {
        self.0.state().options.clone()
    }

    /// Room for `bytes` in all, which may be less than is used.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.state().options.capacity = bytes;
    }

    /// No faults any more: rules and hook are gone, stalls lifted, the speed is normal again. Options stay.
    pub fn calm(&self) {
        {
            let mut state = self.0.state();
            state.rules.disarm_all();
            state.hook = None;
            state.slow = 1.0;
        }
        self.lift();
    }

    // What is seen from outside.

    /// What faults did so far.
    pub fn effects(&self) -> Effects {
        self.0.state().effects
    }

    /// Operations of one kind on one kind of file so far.
    pub fn count(&self, class: Class, op: Op) -> u64 {
        self.0.state().counts[class as usize][op as usize]
    }

    /// Bytes of unsynced writes, and names whose change is not synced: what a power loss could take now.
    pub fn unsynced(&self) -> (u64, u64) {
        self.0.state().store.unsynced()
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.0.state().store.used()
    }

    /// All files, by path.
    pub fn files(&self) -> Vec<FileInfo> {
        let files = self.0.state().store.files();
        files.into_iter().map(|(path, len, unsynced)| FileInfo { path, len, unsynced }).collect()
    }

    /// The path of every file of which bytes are others than were written.
    pub fn rotten(&self) -> BTreeSet<String> {
        self.0.state().store.rotten()
    }

    /// Writes all files, as the running system sees them, below `folder` of the real file system.
    pub fn dump(&self, folder: &Path) -> io::Result<()> {
        let store = self.0.state().store.clone();
        fs::create_dir_all(folder)?;
        for path in store.folders() {
            fs::create_dir_all(folder.join(path))?;
        }
        for (path, len, _) in store.files() {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            fs::write(folder.join(&path), store.read(store.file(&path)?, 0, len))?;
        }
        Ok(())
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk(n{})", self.node)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event to the trace, if there is one; `fill` gives its payload, `text` says it to people.
    fn traced(&self, at: Duration, kind: &'static str, fill: impl FnOnce(&mut Hash128), text: fmt::Arguments<'_>) {
        if let Some(trace) = &self.trace {
            let mut digest = Hash128::default();
            fill(&mut digest);
            trace.digested(at, self.node, kind, digest.finish(), text);
        }
    }
}

impl State {
    fn end_incarnation(&mut self) {
        // Whoever waits for a lift is left alone: waking a dead task is done later, where it is harmless.
        self.incarnation += 1;
        self.frozen = false;
        self.busy_until = Duration::ZERO;
        self.read_debt = Duration::ZERO;
    }

    /// Counts the syncs of `path`.
    fn nth_sync(&mut self, path: &str) -> u64 {
        match self.syncs.get_mut(path) {
            Some(count) => {
                *count += 1;
                *count
            }
            None => {
                self.syncs.insert(path.to_string(), 1);
                1
            }
        }
    }

    /// How long the device is busy with `bytes` more, with those before them, from `now` on.
    fn transfer(&mut self, now: Duration, bytes: u64) -> Duration {
        let Some(rate) = self.options.bytes_per_second.filter(|rate| *rate > 0) else { return Duration::ZERO };
        let own = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.busy_until = self.busy_until.max(now) + own.mul_f64(self.slow);
        self.busy_until - now
    }
}
