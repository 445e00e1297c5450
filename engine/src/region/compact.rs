//! Files into fewer files, beside everything else. The steps and what a crash between two of them leaves:
//!
//! 1. pick files of the current version and the oldest sequence that must stay readable;
//! 2. merge them into new files, content and name durable. Crash: orphans, collected at open;
//! 3. commit {outputs in, inputs out, oldest sequence} to the manifest, if all inputs are still in it. Crash: the inputs
//!    are orphans;
//! 4. exchange the version; the inputs are deleted when nobody reads them.
//!
//! When it fails, outputs are removed, never inputs. A worker compacts, one compaction of a region at a time: what is
//! picked stays until the end, unless a snapshot or a truncation replaces everything, which its generation tells.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::Region;
use super::files::{Pending, Writing};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::options::Pauses;
use crate::storage::FileId;
use crate::storage::compaction::{Strategy, pick, window_length};
use crate::storage::manifest::{Action, Edit, ManifestState};
use crate::storage::merge::Merge;
use crate::storage::rows::timestamps;
use crate::storage::rules::Rules;
use crate::storage::scan::{Left, Retention};
use crate::storage::sst::{self, FileMeta, Sst};
use crate::types::{IndexId, Schema, Sequence, TimeUnit};

/// What a region needs to compact.
pub(super) struct Compacting {
    /// Wakes the worker: there are other files than before, or somebody asks.
    pub due: Notify,
    /// Who asked for a compaction of everything; none: the region is closed.
    asked: Mutex<Option<Vec<Asked>>>,
}

/// Somebody waits for a compaction.
struct Asked {
    /// See [`Region::compact`].
    is_strict: bool,
    done: oneshot::Sender<Result<()>>,
}

impl Default for Compacting {
    fn default() -> Compacting {
        Compacting { due: Notify::new(), asked: Mutex::new(Some(Vec::new())) }
    }
}

impl Compacting {
    /// Nobody will compact any more.
    pub fn close(&self) {
        *self.asked.lock().expect("no panic holds the lock") = None;
    }

    fn take(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic holds the lock").as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// A compaction between its last output and publication.
pub(super) struct Compaction {
    /// Of which tree.
    index: Option<IndexId>,
    inputs: Vec<FileId>,
    outputs: Vec<FileMeta>,
    oldest: Sequence,
    /// Of the version that the inputs were picked of.
    generation: u64,
    /// Versions in the inputs.
    taken: u64,
}

/// What a compaction has written.
#[derive(Default)]
struct Outputs<'a> {
    writing: Vec<Writing<'a>>,
    files: Vec<FileMeta>,
}

impl Compaction {
    pub fn is_in(&self, state: &ManifestState) -> bool {
        self.inputs.iter().all(|input| !state.files.contains_key(input))
            && self.outputs.iter().all(|output| state.files.contains_key(&output.id))
            && state.oldest == self.oldest
    }
}

/// Which sequence was the newest some time ago. A scan takes several requests, perhaps of several replicas, all at the
/// sequence of the first: that one must stay readable for as long as a scan may take. Each replica decides by its own clock.
/// One that had applied more than the leader when that began the scan may be ahead: then the scan is too old there, and
/// begins anew.
#[derive(Debug)]
pub(super) struct Horizon {
    keep: Duration,
    /// When which sequence was the newest, ascending, well apart.
    marks: VecDeque<(Instant, Sequence)>,
    /// The last of all.
    last: (Instant, Sequence),
}

impl Horizon {
    pub fn new(keep: Duration, sequence: Sequence) -> Horizon {
        Horizon { keep, marks: VecDeque::new(), last: (Instant::now(), sequence) }
    }

    /// The newest sequence is `sequence` now. What falls between two marks is kept a little longer.
    pub fn note(&mut self, sequence: Sequence) {
        let now = Instant::now();
        let apart = (self.keep / 16).max(Duration::from_millis(1));
        if self.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= apart) {
            self.marks.push_back(self.last);
        }
        self.last = (now, sequence);
    }

    /// The newest sequence of the time that no scan goes back to; none was noted so long ago: none.
    pub fn passed(&mut self) -> Option<Sequence> {
        let now = Instant::now();
        let passed = |(at, _): &(Instant, Sequence)| now.duration_since(*at) >= self.keep;
        if passed(&self.last) {
            self.marks.clear();
            return Some(self.last.1);
        }
        while self.marks.get(1).is_some_and(passed) {
            self.marks.pop_front();
        }
        self.marks.front().copied().filter(passed).map(|(_, sequence)| sequence)
    }
}

/// The windows that the files have rows of, each with its first and last time, ascending.
async fn windows(
    rules: &Arc<Rules>,
    files: &[Arc<Sst>],
    strategy: &Strategy,
    batch_rows: usize,
) -> Result<Vec<(i64, i64)>> {
    let length = window_length(files.iter().map(|file| file.meta()), strategy);
    let mut numbers = BTreeSet::new();
    let mut merge = Merge::times(rules, files.iter().cloned(), batch_rows);
    while let Some(rows) = merge.next().await? {
        numbers.extend(timestamps(rows.batch.column(0)).iter().map(|time| time.div_euclid(length)));
    }
    let clamped = |time: i128| i64::try_from(time).unwrap_or(if time < 0 { i64::MIN } else { i64::MAX });
    let bounds = |number: i64| {
        let from = i128::from(number) * i128::from(length);
        (clamped(from), clamped(from + i128::from(length) - 1))
    };
    Ok(numbers.into_iter().map(bounds).collect())
}

/// Compacts whenever there are other files than before and they are too many, or somebody asks. After a failure it pauses.
pub(super) async fn work(region: Weak<Region>) {
    let mut failing: Option<Pauses> = None;
    loop {
        let Some(region) = region.upgrade() else { return };
        let due = async {
            match &mut failing {
                // Until no scan may be reading it any more.
                None if region.has_hidden_files() => {
                    let keep = Duration::from_millis(region.spec.options.version_keep_ms.max(1));
                    let _ = timeout(keep, region.compacting.due.notified()).await;
                }
                None => region.compacting.due.notified().await,
                Some(pauses) => sleep(pauses.next_pause()).await,
            }
        };
        tokio::select! {
            biased;
            () = region.closed() => return,
            () = due => {}
        }
        let asked = region.compacting.take();
        let options = &region.spec.options;
        let is_strict = asked.iter().any(|asked| asked.is_strict);
        let strategy = region.strategy(!asked.is_empty(), is_strict);
        let done = region.compact_by(&strategy).await.map_err(|err| region.noticed(err));
        failing = match &done {
            Ok(()) => None,
            Err(err) => {
                let (id, replica, reason) = (region.id, region.spec.replica, err.to_string());
                region.spec.events.emit(|| Event::CompactionFailed { region: id, replica, reason });
                failing.or_else(|| Some(options.pauses()))
            }
        };
        for who in asked {
            // Who asked may be gone.
            let _ = who.done.send(done.clone());
        }
    }
}

impl Region {
    /// Merges the files of each window into one run, however few they are. Memtables are left alone. Whoever stops waiting
    /// does not stop it. `is_strict`: files that have rows of several windows are split first, so that each has those of one.
    pub async fn compact(&self, is_strict: bool) -> Result<()> {
        let (done, answer) = oneshot::channel();
        match self.compacting.asked.lock().expect("no panic holds the lock").as_mut() {
            Some(asked) => asked.push(Asked { is_strict, done }),
            None => return Err(Error::Stopped),
        }
        self.compacting.due.notify_one();
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Whether there are files of which everything is hidden and nothing pinned.
    fn has_hidden_files(&self) -> bool {
        let version = self.version();
        let flushed = &version.flushed;
        let hidden = flushed.rules.ranges.upto(flushed.pinned.unwrap_or(flushed.sequence));
        let has_time = version.schema().time_index().is_some();
        version.files().any(|sst| hidden.hides_file(sst.meta(), has_time))
    }

    async fn compact_by(&self, strategy: &Strategy) -> Result<()> {
        let trees: Vec<Option<IndexId>> = self.version().trees().map(|(index, _)| index).collect();
        for index in trees {
            while self.compact_once(index, strategy).await? {}
        }
        Ok(())
    }

    /// As the table says, or else the node; `is_asked`: to one run in each window.
    fn strategy(&self, is_asked: bool, is_strict: bool) -> Strategy {
        let (options, version) = (&self.spec.options, self.version());
        let schema = version.schema();
        let table = schema.options();
        let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let unit = schema.time_unit().unwrap_or(TimeUnit::Second);
        let runs = |of_table: Option<u64>, of_node| if is_asked { 1 } else { count(of_table.unwrap_or(of_node)) };
        let mut strategy = Strategy {
            window: table.compaction_window_ms.map(|ms| unit.of_ms(ms)),
            is_strict: is_strict && schema.time_index().is_some(),
            unit,
            active_runs: runs(table.compaction_active_runs, options.compaction_active_runs),
            inactive_runs: runs(table.compaction_inactive_runs, options.compaction_inactive_runs),
            small_files: count(options.compaction_small_files),
            max_inputs: count(options.compaction_max_inputs),
            output_bytes: options.compaction_output_bytes,
        };
        if strategy.is_strict {
            // The files that suggest a window are about to be replaced.
            let files = version.ssts.values().map(|sst| sst.meta());
            strategy.window = Some(window_length(files, &strategy));
        }
        strategy
    }

    /// Merges what `strategy` picks of the files of a tree; false: it picks nothing, or the tree is gone.
    async fn compact_once(&self, index: Option<IndexId>, strategy: &Strategy) -> Result<bool> {
        // All its files are about to be replaced.
        self.refuse_damaged()?;
        let _turn = tokio::select! {
            biased;
            () = self.closed() => return Err(Error::Stopped),
            turn = self.spec.compactions.acquire() => turn.map_err(|_| Error::Stopped)?,
        };
        let (version, passed) = {
            let mut state = self.state.lock().expect("no panic holds the lock");
            (state.version.clone(), state.horizon.passed())
        };
        let Some(version) = version.tree(index) else { return Ok(false) };
        let flushed = version.flushed.clone();
        let horizon = passed.unwrap_or(Sequence(0)).min(flushed.sequence);
        let oldest = horizon.min(flushed.pinned.unwrap_or(horizon)).max(version.oldest);
        let hidden = flushed.rules.ranges.upto(oldest);
        let files = || version.ssts.values().map(|sst| sst.meta());
        let has_time = version.schema().time_index().is_some();
        // What nobody can see goes without being read.
        let gone: Vec<FileId> = files().filter(|file| hidden.hides_file(file, has_time)).map(|file| file.id).collect();
        let (picked, is_split) = match gone.is_empty() {
            true => match pick(files(), strategy) {
                Some(pick) => (pick.inputs, pick.is_split),
                None => return Ok(false),
            },
            false => (gone.clone(), false),
        };
        let (inputs, left): (Vec<_>, Vec<_>) =
            version.ssts.values().cloned().partition(|sst| picked.contains(&sst.meta().id));
        let (region, replica, count) = (self.id, self.spec.replica, inputs.len() as u64);
        let rows = inputs.iter().map(|sst| sst.meta().rows).sum();
        self.spec.events.emit(|| Event::CompactionStarted { region, replica, inputs: count, rows });
        let left = left.iter().map(|sst| Left::of(sst.meta())).collect();
        let retention = Retention { horizon: oldest, hidden, left };
        let batch_rows = usize::try_from(self.spec.options.scan_batch_rows).unwrap_or(usize::MAX);
        let mut outputs = Outputs::default();
        let (rules, limit) = (&flushed.rules, strategy.output_bytes);
        let work = async {
            if !gone.is_empty() {
                return Ok(());
            }
            let passes = match is_split {
                true => windows(rules, &inputs, strategy, batch_rows).await?.into_iter().map(Some).collect(),
                false => vec![None],
            };
            for within in passes {
                let merged = Merge::retained(rules, inputs.iter().cloned(), retention.clone(), within, batch_rows);
                self.write_outputs(index, &rules.schema, merged, limit, &mut outputs).await?;
            }
            Ok(())
        };
        let written = tokio::select! {
            biased;
            // What was written by then is removed as after a failure, or collected when the region is opened again.
            () = self.closed() => Err(Error::Stopped),
            written = work => written,
        };
        let generation = version.generation;
        let Outputs { writing, files: outputs } = outputs;
        let compaction = Compaction { index, inputs: picked, outputs, oldest, generation, taken: rows };
        // The inputs are not held for longer than they are read; new files are no orphans until they are in the manifest.
        drop((inputs, version));
        let _writing = writing;
        let done = match written {
            Ok(()) => self.commit_compaction(compaction).await,
            Err(err) => Err((err, compaction.outputs)),
        };
        match done {
            Ok(()) => Ok(true),
            Err((err, outputs)) => {
                for output in outputs {
                    self.remove_file(output.id).await;
                }
                Err(err)
            }
        }
    }

    /// Step 2. Also after an error `outputs` has what was completed.
    async fn write_outputs<'a>(
        &'a self,
        index: Option<IndexId>,
        schema: &Schema,
        mut merged: Merge,
        limit: u64,
        outputs: &mut Outputs<'a>,
    ) -> Result<()> {
        let (disk, folder, options) = (self.spec.disk.as_ref(), &self.spec.folder, &self.spec.options);
        loop {
            let file = self.ids.next();
            let written = sst::write(disk, folder, file.id, schema, options, limit, &mut merged).await?;
            let Some(meta) = written else { return Ok(()) };
            outputs.writing.push(file);
            outputs.files.push(FileMeta { level: 1, index, ..meta });
        }
    }

    /// Steps 3 and 4. With an error come the outputs that are in no manifest and never will be.
    async fn commit_compaction(&self, compaction: Compaction) -> Result<(), (Error, Vec<FileMeta>)> {
        let mut files = match self.files().await {
            Ok(files) => files,
            Err(err) => return Err((err, compaction.outputs)),
        };
        let version = self.version();
        if version.generation != compaction.generation || version.tree(compaction.index).is_none() {
            let what = format!("the files of region {} were truncated or replaced while they were compacted", self.id);
            return Err((Error::Busy { what }, compaction.outputs));
        }
        let edit = Edit {
            add: compaction.outputs.clone(),
            remove: compaction.inputs.clone(),
            oldest: Some(compaction.oldest),
            ..Edit::default()
        };
        let outputs = compaction.outputs.clone();
        files.pending = Some(Pending::Compaction(compaction));
        if let Err(err) = files.commit(&Action::Edit(edit)).await {
            let is_pending = files.pending.is_some();
            return Err((err, if is_pending { Vec::new() } else { outputs }));
        }
        self.settle(&mut files).await.map_err(|err| (err, Vec::new()))
    }

    /// Step 4.
    pub(super) async fn publish_compaction(&self, compaction: &Compaction) -> Result<()> {
        let Compaction { index, inputs, outputs, oldest, generation, taken } = compaction;
        let (inputs_count, outputs_count) = (inputs.len() as u64, outputs.len() as u64);
        let rows: u64 = outputs.iter().map(|output| output.rows).sum();
        let mut ssts = Vec::with_capacity(outputs.len());
        for meta in outputs {
            ssts.push(Sst::open(self.spec.disk.as_ref(), &self.spec.folder, meta.clone()).await?);
        }
        self.swap("compaction", |state| {
            if state.version.generation != *generation || state.version.tree(*index).is_none() {
                // Truncated, or the index dropped, since the edit was begun: the manifest names the outputs until the next flush.
                let (gone, kept): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut state.truncated).into_iter().partition(|sst| inputs.contains(&sst.meta().id));
                state.truncated = kept;
                state.truncated.extend(ssts.into_iter().map(Arc::new));
                return self.retired.add(gone);
            }
            let next = state.version.with_compacted(inputs, ssts, *oldest);
            let next = next.expect("only a compaction takes files away, and there is one at a time");
            let old = std::mem::replace(&mut state.version, Arc::new(next));
            let old = old.tree(*index).expect("it is there, see above");
            self.retired.add(inputs.iter().map(|input| old.ssts[input].clone()));
        });
        let (region, replica) = (self.id, self.spec.replica);
        self.spec.events.emit(|| Event::CompactionFinished {
            region,
            replica,
            inputs: inputs_count,
            outputs: outputs_count,
            rows,
            dropped: taken - rows,
        });
        Ok(())
    }
}
