//! Which files to merge next: a pure function of what the manifest knows of them (time-window compaction, TWCS).
//!
//! Files belong to the *window* of their latest time. Within a window they are cut into *runs*: files of one run have
//! disjoint key ranges, so a read looks into at most one file of each. A window with more runs than it may have is
//! compacted, the window of the newest rows (the *active* one, into which flushes go) first; small files of one run that
//! stand side by side are put together too.
//!
//! Any choice is right: sequences are kept per row, and what may be dropped is decided row by row (see
//! [`Retention`](super::scan::Retention)). The choice is about work only: the smallest runs are merged, so that a row is
//! rewritten about as often as the logarithm of the size of its window.

use std::collections::BTreeMap;

use super::FileId;
use super::sst::FileMeta;
use crate::types::TimeUnit;

/// What a window may look like, see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Length of a window in units of the TIME INDEX; none: the least bucket that holds the span of every flushed file.
    pub window: Option<i64>,
    /// Unit of the TIME INDEX.
    pub unit: TimeUnit,
    /// Split files that have rows of several windows, so that each has those of one.
    pub is_strict: bool,
    /// Runs that the active window may have.
    pub active_runs: usize,
    /// Runs that any other window may have.
    pub inactive_runs: usize,
    /// Adjacent files of a run are put together when there are this many that fit one output.
    pub small_files: usize,
    /// Files that one compaction merges at most.
    pub max_inputs: usize,
    /// Size of the files that a compaction makes, about.
    pub output_bytes: u64,
}

/// Files to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Start of their window, in units of the TIME INDEX.
    pub window: i64,
    /// At least two; one to split.
    pub inputs: Vec<FileId>,
    /// Whether the rows of each window go into files of their own.
    pub is_split: bool,
}

/// Spans that a window is inferred from, in seconds: an hour, two, twelve, a day, a week, a year, ten years.
const BUCKETS: [i64; 7] = [3_600, 7_200, 43_200, 86_400, 604_800, 31_536_000, 315_360_000];

/// What to merge next; none: every window is as it may be.
pub fn pick<'a>(files: impl IntoIterator<Item = &'a FileMeta>, strategy: &Strategy) -> Option<Pick> {
    let files: Vec<&FileMeta> = files.into_iter().collect();
    let length = window_length(files.iter().copied(), strategy);
    if strategy.is_strict {
        let spans = |file: &&&FileMeta| file.first_time.div_euclid(length) < file.last_time.div_euclid(length);
        if let Some(file) = files.iter().find(spans) {
            let window = file.first_time.div_euclid(length).saturating_mul(length);
            return Some(Pick { window, inputs: vec![file.id], is_split: true });
        }
    }
    let mut windows: BTreeMap<i64, Vec<&FileMeta>> = BTreeMap::new();
    for file in &files {
        windows.entry(file.last_time.div_euclid(length)).or_default().push(file);
    }
    let active = windows.keys().next_back().copied();
    windows.into_iter().rev().find_map(|(window, files)| {
        let runs = match Some(window) == active {
            true => strategy.active_runs,
            false => strategy.inactive_runs,
        };
        let inputs = too_many_runs(&files, runs, strategy).or_else(|| small_files(&files, strategy))?;
        Some(Pick { window: window.saturating_mul(length), inputs, is_split: false })
    })
}

/// How long a window of these files is, in units of the TIME INDEX.
pub fn window_length<'a>(files: impl IntoIterator<Item = &'a FileMeta>, strategy: &Strategy) -> i64 {
    strategy.window.unwrap_or_else(|| inferred_window(files, strategy.unit))
}

/// The least bucket that holds the span of every flushed file; the whole time if none does.
fn inferred_window<'a>(files: impl IntoIterator<Item = &'a FileMeta>, unit: TimeUnit) -> i64 {
    let flushed = files.into_iter().filter(|file| file.level == 0);
    let span = flushed.map(|file| file.last_time.saturating_sub(file.first_time)).max().unwrap_or(0);
    let buckets = BUCKETS.iter().map(|seconds| seconds.saturating_mul(unit.per_second()));
    buckets.into_iter().find(|bucket| *bucket > span).unwrap_or(i64::MAX)
}

/// The smallest runs, so many that one run in their place leaves `most`.
fn too_many_runs(files: &[&FileMeta], most: usize, strategy: &Strategy) -> Option<Vec<FileId>> {
    let mut runs = runs(files);
    if runs.len() <= most.max(1) {
        return None;
    }
    let merged = runs.len() - most.max(1) + 1;
    runs.sort_by_key(|run| (run.iter().map(|file| file.bytes).sum::<u64>(), run[0].id));
    let mut chosen: Vec<&FileMeta> = runs.into_iter().take(merged).flatten().collect();
    sort(&mut chosen);
    // Files that overlap none of the others need not be written again, and would be picked again and again.
    let mut inputs = overlapping(&chosen)?;
    inputs.truncate(strategy.max_inputs.max(2));
    Some(inputs.iter().map(|file| file.id).collect())
}

/// The first files that overlap each other, directly or by others between them; each prefix of two or more does so too.
fn overlapping<'a>(sorted: &[&'a FileMeta]) -> Option<Vec<&'a FileMeta>> {
    let mut together: Vec<&FileMeta> = Vec::new();
    for file in sorted {
        if together.iter().all(|before| before.last_key < file.first_key) {
            if together.len() > 1 {
                break;
            }
            together.clear();
        }
        together.push(file);
    }
    Some(together).filter(|together| together.len() > 1)
}

/// Adjacent files of one run that fit one output, if they are enough to be worth it.
fn small_files(files: &[&FileMeta], strategy: &Strategy) -> Option<Vec<FileId>> {
    let enough = strategy.small_files.max(2);
    for run in runs(files) {
        let (mut from, mut bytes, mut longest) = (0, 0_u64, 0..0);
        for (at, file) in run.iter().enumerate() {
            bytes = bytes.saturating_add(file.bytes);
            while bytes > strategy.output_bytes || at + 1 - from > strategy.max_inputs.max(2) {
                bytes -= run[from].bytes;
                from += 1;
            }
            if at + 1 - from > longest.len() {
                longest = from..at + 1;
            }
        }
        if longest.len() >= enough {
            return Some(run[longest].iter().map(|file| file.id).collect());
        }
    }
    None
}

/// The fewest sets of files with disjoint key ranges, each in key order.
pub fn runs<'a>(files: &[&'a FileMeta]) -> Vec<Vec<&'a FileMeta>> {
    let mut files = files.to_vec();
    sort(&mut files);
    let mut runs: Vec<Vec<&FileMeta>> = Vec::new();
    for file in files {
        let behind = |run: &&mut Vec<&FileMeta>| run.last().is_some_and(|last| last.last_key < file.first_key);
        match runs.iter_mut().find(behind) {
            Some(run) => run.push(file),
            None => runs.push(vec![file]),
        }
    }
    runs
}

fn sort(files: &mut [&FileMeta]) {
    files.sort_by(|a, b| (&a.first_key, &a.last_key, a.id).cmp(&(&b.first_key, &b.last_key, b.id)));
}

#[cfg(test)]
mod tests;
