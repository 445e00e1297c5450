//! The log against a model that is a plain list per replica: random changes, and at any operation of the disk a power
//! loss, a crash of the process or an error, in the opening of the log too.
//!
//! After each start, what the log says is what some prefix of the submitted changes makes, and the prefix has all that
//! were acknowledged. The log never takes for damage what only these faults did.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::rough::{Draw, Fault, RoughDisk};
use super::{Heard, segments_in};
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::log::{Entry, Flushed, Log};
use crate::options::Options;
use crate::types::{LogId, NodeId, ReplicaId, Vote};

const CASES: u64 = 2_000;

/// What a test case does, one after the other.
#[derive(Clone, Debug)]
enum Op {
    Append {
        replica: u64,
        count: u64,
        size: usize,
    },
    Vote {
        replica: u64,
    },
    Commit {
        replica: u64,
    },
    Truncate {
        replica: u64,
        back: u64,
    },
    Purge {
        replica: u64,
        back: u64,
    },
    /// As an installed snapshot does: purges up to an entry that was never here, or that is another one here.
    Reset {
        replica: u64,
        ahead: u64,
    },
    Forget {
        replica: u64,
    },
    /// Waits until all that was submitted is acknowledged.
    Settle,
    /// Lets the writer run a little.
    Yield,
    Read {
        replica: u64,
        from: u64,
        len: u64,
        max_bytes: u64,
    },
    /// After so many more operations of the disk it fails: power loss, or an error. Then the log is opened anew.
    Fault {
        after: u64,
        power: bool,
    },
    /// The process ends here, without or with the power.
    Crash {
        power: bool,
        faults_at_open: Vec<(u64, bool)>,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let replica = 1..4u64;
    prop_oneof![
        10 => (replica.clone(), 0..5u64, 0..150usize).prop_map(|(replica, count, size)| Op::Append { replica, count, size }),
        3 => replica.clone().prop_map(|replica| Op::Vote { replica }),
        3 => replica.clone().prop_map(|replica| Op::Commit { replica }),
        2 => (replica.clone(), 0..4u64).prop_map(|(replica, back)| Op::Truncate { replica, back }),
        4 => (replica.clone(), 0..4u64).prop_map(|(replica, back)| Op::Purge { replica, back }),
        1 => (replica.clone(), 0..5u64).prop_map(|(replica, ahead)| Op::Reset { replica, ahead }),
        1 => replica.clone().prop_map(|replica| Op::Forget { replica }),
        3 => Just(Op::Settle),
        4 => Just(Op::Yield),
        3 => (replica, 0..10u64, 0..10u64, 0..400u64)
            .prop_map(|(replica, from, len, max_bytes)| Op::Read { replica, from, len, max_bytes }),
        2 => (0..12u64, any::<bool>()).prop_map(|(after, power)| Op::Fault { after, power }),
        2 => (any::<bool>(), prop::collection::vec((0..16u64, any::<bool>()), 0..3))
            .prop_map(|(power, faults_at_open)| Op::Crash { power, faults_at_open }),
    ]
}

/// One change of one replica, as small as the log may split it.
#[derive(Clone, Debug)]
enum Step {
    Entry(u64, Entry),
    Truncate(u64, u64),
    Purge(u64, LogId),
    Vote(u64, Vote),
    Forget(u64),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Replica {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

type Model = BTreeMap<u64, Replica>;

fn apply(model: &mut Model, step: &Step) {
    match step {
        Step::Entry(id, entry) => model.entry(*id).or_default().entries.push(entry.clone()),
        Step::Truncate(id, from) => model.entry(*id).or_default().entries.retain(|entry| entry.id.index < *from),
        Step::Purge(id, upto) => {
            let replica = model.entry(*id).or_default();
            replica.entries.retain(|entry| entry.id.index > upto.index);
            replica.purged = Some(*upto);
        }
        Step::Vote(id, vote) => model.entry(*id).or_default().vote = Some(*vote),
        Step::Forget(id) => _ = model.remove(id),
    }
}

/// How often the cases came to what they are about: a test that never gets there proves nothing.
#[derive(Debug, Default)]
struct Reached {
    /// Starts that found a torn batch.
    torn: u64,
    /// Starts after which submitted changes were gone, and some of a batch were not.
    lost: u64,
    /// Starts that found no first segment.
    deleted: u64,
    /// Starts that were interrupted.
    interrupted: u64,
    /// Logs that ended with an error of the disk, in a process that went on.
    failed: u64,
}

/// A log under test, and what it should say.
struct Subject<'a> {
    reached: &'a mut Reached,
    disk: RoughDisk,
    draw: Draw,
    log: Arc<Log>,
    options: Options,
    /// What the log said when it was opened.
    opened: Model,
    /// What was submitted since.
    steps: Vec<Step>,
    /// So many of the steps are acknowledged.
    acked: usize,
    waiting: Vec<(usize, Flushed)>,
    /// Replica -> positions saved as committed, each with the number of steps before it.
    committed: BTreeMap<u64, Vec<(LogId, usize)>>,
    /// Counts, so that each entry and vote is a new one.
    fresh: u64,
}

type Verdict<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        if !$holds {
            return Err(format!($($message)*));
        }
    };
}

async fn open(disk: &RoughDisk, options: &Options) -> Result<Arc<Log>> {
    open_heard(disk, options).await.map(|(log, _)| log)
}

/// The log, and how many bytes were torn.
async fn open_heard(disk: &RoughDisk, options: &Options) -> Result<(Arc<Log>, u64)> {
    let heard = Arc::new(Heard::default());
    let events = Events::heard_by(NodeId(1), heard.clone());
    let log = Log::open(Arc::new(disk.clone()), "node/log", options, events).await?;
    let torn = heard.take().iter().find_map(|event| match event {
        Event::LogOpened { torn_bytes, .. } => Some(*torn_bytes),
        _ => None,
    });
    Ok((log, torn.expect("said at each start")))
}

impl Subject<'_> {
    async fn new(seed: u64, reached: &mut Reached) -> Subject<'_> {
        let mut draw = Draw(seed);
        let options = Options {
            log_segment_bytes: 200 + draw.below(1000),
            log_cache_bytes: [0, 300, 1 << 20][draw.below(3) as usize],
            ..Options::default()
        };
        let disk = RoughDisk::default().start();
        let log = open(&disk, &options).await.expect("no fault yet");
        Subject {
            reached,
            disk,
            draw,
            log,
            options,
            opened: Model::new(),
            steps: Vec::new(),
            acked: 0,
            waiting: Vec::new(),
            committed: BTreeMap::new(),
            fresh: 0,
        }
    }

    /// What the log should say now: all that was submitted.
    fn model(&self) -> Model {
        self.model_after(self.steps.len())
    }

    fn model_after(&self, steps: usize) -> Model {
        let mut model = self.opened.clone();
        self.steps[..steps].iter().for_each(|step| apply(&mut model, step));
        model
    }

    async fn run(&mut self, op: &Op) -> Verdict {
        let model = self.model();
        let of = |id: &u64| model.get(id).cloned().unwrap_or_default();
        match op {
            Op::Append { replica, count, size } => {
                let now = of(replica);
                let next = last(&now).map_or(0, |last| last.index + 1);
                let entries: Vec<_> = (next..next + count).map(|index| self.entry(index, *size)).collect();
                self.steps.extend(entries.iter().map(|entry| Step::Entry(*replica, entry.clone())));
                self.submitted(self.log.replica(ReplicaId(*replica)).append(entries));
            }
            Op::Vote { replica } => {
                self.fresh += 1;
                let vote =
                    Vote { term: self.fresh, voted_for: ReplicaId(*replica), committed: self.fresh.is_multiple_of(2) };
                self.steps.push(Step::Vote(*replica, vote));
                self.submitted(self.log.replica(ReplicaId(*replica)).save_vote(vote));
            }
            Op::Commit { replica } => {
                if let Some(upto) = last(&of(replica)) {
                    // An error is found by the next change.
                    if self.log.replica(ReplicaId(*replica)).save_committed(upto).is_ok() {
                        self.committed.entry(*replica).or_default().push((upto, self.steps.len()));
                    }
                }
            }
            Op::Truncate { replica, back } => {
                let now = of(replica);
                let kept = now.entries.len().saturating_sub(*back as usize);
                // Committed entries are never truncated.
                let after = if kept == 0 { now.purged } else { Some(now.entries[kept - 1].id) };
                if self.committed_index(*replica) > after.map(|id| id.index) {
                    return Ok(());
                }
                if kept < now.entries.len() {
                    self.steps.push(Step::Truncate(*replica, after.map_or(0, |id| id.index + 1)));
                }
                self.submitted(self.log.replica(ReplicaId(*replica)).truncate_after(after));
            }
            Op::Purge { replica, back } => {
                let now = of(replica);
                if let Some(entry) = now.entries.iter().rev().nth(*back as usize) {
                    self.steps.push(Step::Purge(*replica, entry.id));
                    self.submitted(self.log.replica(ReplicaId(*replica)).purge(entry.id));
                }
            }
            Op::Reset { replica, ahead } => {
                let now = of(replica);
                let first = now.purged.map_or(0, |purged| purged.index + 1);
                self.fresh += 1;
                let upto = LogId { term: self.fresh, index: first + ahead };
                // What is committed stands in every snapshot of later entries as it stands here.
                if self.committed_index(*replica) >= Some(upto.index) {
                    return Ok(());
                }
                if let Some(entry) = now.entries.iter().find(|entry| entry.id.index == upto.index)
                    && entry.id != upto
                {
                    self.steps.push(Step::Truncate(*replica, upto.index));
                }
                self.steps.push(Step::Purge(*replica, upto));
                self.submitted(self.log.replica(ReplicaId(*replica)).purge(upto));
            }
            Op::Forget { replica } => {
                self.committed.remove(replica);
                self.steps.push(Step::Forget(*replica));
                self.submitted(self.log.replica(ReplicaId(*replica)).forget());
            }
            Op::Settle => {
                for (steps, flushed) in std::mem::take(&mut self.waiting) {
                    if flushed.await.is_ok() {
                        self.acked = self.acked.max(steps);
                    }
                }
            }
            Op::Yield => tokio::task::yield_now().await,
            Op::Read { replica, from, len, max_bytes } => {
                let expected = of(replica);
                let log = self.log.replica(ReplicaId(*replica));
                match log.read(*from..from + len, *max_bytes).await {
                    Ok(read) => {
                        let wanted =
                            expected.entries.iter().filter(|entry| (*from..from + len).contains(&entry.id.index));
                        let mut bytes = 0;
                        let wanted = wanted.enumerate().take_while(|(nth, entry)| {
                            bytes += entry.payload.len() as u64;
                            bytes <= *max_bytes || *nth == 0
                        });
                        let wanted: Vec<_> = wanted.map(|(_, entry)| entry.clone()).collect();
                        ensure!(read == wanted, "read {read:?}, expected {wanted:?}");
                    }
                    Err(err) => ensure!(matches!(err, Error::Io { .. }), "read: {err}"),
                }
            }
            Op::Fault { after, power } => {
                self.disk.plan(*after, if *power { Fault::Off } else { Fault::Error });
            }
            Op::Crash { power, faults_at_open } => self.restart(*power, faults_at_open).await?,
        }
        self.acknowledged();
        if self.log.error().is_some() {
            let power = self.draw.below(2) == 0;
            self.restart(power, &[]).await?;
        }
        Ok(())
    }

    fn entry(&mut self, index: u64, size: usize) -> Entry {
        self.fresh += 1;
        let payload = (0..size).map(|at| (self.fresh as usize * 31 + at) as u8).collect::<Vec<_>>();
        Entry { id: LogId { term: self.fresh, index }, payload: payload.into() }
    }

    fn committed_index(&self, replica: u64) -> Option<u64> {
        self.committed.get(&replica)?.last().map(|(id, _)| id.index)
    }

    fn submitted(&mut self, flushed: Flushed) {
        self.waiting.push((self.steps.len(), flushed));
    }

    /// Looks, without waiting, what is acknowledged.
    fn acknowledged(&mut self) {
        let acked = &mut self.acked;
        self.waiting.retain_mut(|(steps, flushed)| match flushed.now_or_never() {
            Some(Ok(())) => {
                *acked = (*acked).max(*steps);
                false
            }
            Some(Err(_)) => false,
            None => true,
        });
    }

    /// The process ends, and another one opens the log; faults happen to it too.
    async fn restart(&mut self, power: bool, faults_at_open: &[(u64, bool)]) -> Verdict {
        self.acknowledged();
        self.waiting.clear();
        // An error alone does not end the process: the same one opens the log anew.
        let mut same_process = self.log.error().is_some() && faults_at_open.is_empty() && !self.disk.is_off();
        self.reached.failed += u64::from(same_process && !power);
        let mut power = power;
        for fault in faults_at_open.iter().map(Some).chain([None]) {
            self.disk = match power {
                true => self.disk.start_after_power_loss(&mut self.draw),
                false if std::mem::take(&mut same_process) => self.disk.clone(),
                false => self.disk.start(),
            };
            self.disk.lift();
            if let Some((after, off)) = fault {
                self.disk.plan(*after, if *off { Fault::Off } else { Fault::Error });
            }
            match open_heard(&self.disk, &self.options).await {
                Ok((log, torn)) => {
                    self.log = log;
                    self.disk.lift();
                    self.reached.torn += u64::from(torn > 0);
                    self.reached.deleted += u64::from(segments_in(&self.disk, "node/log/")[0] > 1);
                    return self.check_opened().await;
                }
                Err(err) => {
                    ensure!(fault.is_some() && matches!(err, Error::Io { .. }), "open: {err}");
                    self.reached.interrupted += 1;
                    power = matches!(fault, Some((_, true)));
                }
            }
        }
        Err("the log was not opened without a fault".into())
    }

    /// The log says what a prefix of the steps makes, all acknowledged ones included.
    async fn check_opened(&mut self) -> Verdict {
        let (said, committed) = self.said().await?;
        let matches = |model: &Model| {
            // Of a replica that nothing but a committed position was saved of, the log may or may not know.
            let known = |(id, replica): &(&u64, &Replica)| **replica != Replica::default() || model.contains_key(id);
            said.iter().filter(known).eq(model.iter())
        };
        let prefix = (self.acked..=self.steps.len()).find(|steps| matches(&self.model_after(*steps)));
        let Some(prefix) = prefix else {
            return Err(format!(
                "{} of {} steps were acknowledged; the log says {said:#?}, expected at least {:#?}",
                self.acked,
                self.steps.len(),
                self.model_after(self.acked)
            ));
        };
        self.reached.lost += u64::from(prefix > self.acked && prefix < self.steps.len());
        for (id, upto) in &committed {
            let saved = self.committed.get(id).is_some_and(|saved| saved.iter().any(|(it, _)| it == upto));
            let forgotten = self.steps.iter().any(|step| matches!(step, Step::Forget(it) if it == id));
            ensure!(saved || forgotten, "replica {id} says that {upto} was committed");
            let last = said.get(id).and_then(last);
            ensure!(
                last.is_some_and(|last| last.index >= upto.index),
                "replica {id}: {upto} is committed, but not there"
            );
        }
        for (id, saved) in &self.committed {
            let due = saved.iter().rev().find(|(_, steps)| *steps < self.acked).map(|(upto, _)| *upto);
            let found = committed.get(id).copied();
            ensure!(found >= due, "replica {id} has {found:?} as committed, expected at least {due:?}");
        }
        self.committed = committed.into_iter().map(|(id, upto)| (id, vec![(upto, 0)])).collect();
        self.opened = self.model_after(prefix);
        self.steps.clear();
        self.acked = 0;
        Ok(())
    }

    /// What was submitted is seen at once. (Payloads are read by [`Op::Read`]: that may touch the disk.)
    fn check_visible(&self) -> Verdict {
        for (id, replica) in &self.model() {
            let log = self.log.replica(ReplicaId(*id));
            let state = log.state();
            let seen = (state.vote, state.purged, state.last);
            ensure!(seen == (replica.vote, replica.purged, last(replica)), "{state:?} of {replica:?}");
            for entry in &replica.entries {
                ensure!(log.log_id(entry.id.index) == Some(entry.id), "log id of {}", entry.id);
            }
        }
        Ok(())
    }

    async fn said(&self) -> Verdict<(Model, BTreeMap<u64, LogId>)> {
        let (mut model, mut committed) = (Model::new(), BTreeMap::new());
        for id in self.log.replicas() {
            let log = self.log.replica(id);
            let state = log.state();
            let entries = log.read(0..u64::MAX, u64::MAX).await.map_err(|err| format!("read all: {err}"))?;
            let replica = Replica { vote: state.vote, purged: state.purged, entries };
            ensure!(state.last == last(&replica), "{state:?} of {replica:?}");
            for entry in &replica.entries {
                ensure!(log.log_id(entry.id.index) == Some(entry.id), "log id of {}", entry.id);
            }
            model.insert(id.0, replica);
            committed.extend(state.committed.map(|upto| (id.0, upto)));
        }
        Ok((model, committed))
    }
}

fn last(replica: &Replica) -> Option<LogId> {
    replica.entries.last().map(|entry| entry.id).or(replica.purged)
}

async fn run(seed: u64, ops: &[Op], reached: &mut Reached) -> Verdict {
    let mut subject = Subject::new(seed, reached).await;
    for (nth, op) in ops.iter().enumerate() {
        subject.run(op).await.map_err(|err| format!("at op {nth}, {op:?}: {err}"))?;
        subject.check_visible().map_err(|err| format!("after op {nth}, {op:?}: {err}"))?;
    }
    // A calm end: whatever fault was planned is lifted, all is acknowledged, and there after a power loss.
    subject.disk.lift();
    subject.run(&Op::Settle).await?;
    subject.restart(true, &[]).await
}

#[tokio::test]
async fn what_was_acknowledged_survives_and_nothing_else_appears() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = (any::<u64>(), prop::collection::vec(op(), 1..60));
    let mut reached = Reached::default();
    for case in 0..CASES {
        let mut tree = strategy.new_tree(&mut runner).unwrap();
        let (seed, ops) = tree.current();
        let Err(mut failure) = run(seed, &ops, &mut reached).await else { continue };
        // Proptest's own loop cannot await: this is the same one.
        let mut smallest = (seed, ops);
        let mut more = tree.simplify();
        while more {
            let (seed, ops) = tree.current();
            match run(seed, &ops, &mut reached).await {
                Err(err) => {
                    (failure, smallest) = (err, (seed, ops));
                    more = tree.simplify();
                }
                Ok(()) => more = tree.complicate(),
            }
        }
        panic!("case {case}, seed {}: {failure}\n{:#?}", smallest.0, smallest.1);
    }
    let Reached { torn, lost, deleted, interrupted, failed } = reached;
    let least = [torn, lost, deleted, interrupted, failed].into_iter().min();
    assert!(least >= Some(CASES / 20), "{reached:?} in {CASES} cases");
}
