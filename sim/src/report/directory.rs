//! The run directory: `target/sim/<run>/` with what a sweep was, and `<scenario>@<seed>/` for each kept seed.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::text::{columns, result_text, story_text};
use crate::plan::Plan;
use crate::run::report::SeedReport;

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    /// Where it is.
    pub path: PathBuf,
}

/// What a sweep was: `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Version of this form.
    pub v: u32,
    /// The command that repeats it.
    pub command: String,
    /// What the fingerprints belong to.
    pub build: String,
    /// The commit.
    pub commit: String,
    /// It was stopped before its end.
    #[serde(default)]
    pub interrupted: bool,
    /// How it ended, once it has: the summary line of `--format json`.
    pub summary: Option<serde_json::Value>,
}

/// What a kept seed was: `repro.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repro {
    /// Version of this form.
    pub v: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// The scenario's file; data is looked for beside it.
    pub source: String,
    /// The plan, beside this file.
    pub plan: String,
    /// The seed.
    pub seed: u64,
    /// The cell of the scenario's matrix, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    /// What the fingerprint belongs to.
    pub build: String,
    /// The commit.
    pub commit: String,
    /// Runs it again.
    pub command: String,
    /// What came of it.
    pub report: SeedReport,
}

/// Names of the files of a kept seed.
pub const REPRO: &str = "repro.json";
/// See [`REPRO`].
pub const PLAN: &str = "plan.toml";
/// See [`REPRO`].
pub const EVENTS: &str = "events";
/// See [`REPRO`].
pub const LOG: &str = "log.txt";
/// See [`REPRO`].
pub const STORY: &str = "story.txt";
/// See [`REPRO`]; what is reviewed of the result.
pub const RESULT: &str = "result.txt";
/// See [`REPRO`]; what is reviewed of the story.
pub const REVIEWED_STORY: &str = "reviewed-story.txt";
const RUN: &str = "run.json";

impl RunDirectory {
    /// `out`, or the next free number below `target/sim` of the project.
    pub fn create(root: &Path, out: Option<&Path>) -> Result<RunDirectory, String> {
        let failed = |path: &Path, err: std::io::Error| format!("{} cannot be made: {err}", path.display());
        if let Some(out) = out {
            fs::create_dir_all(out).map_err(|err| failed(out, err))?;
            return Ok(RunDirectory { path: out.to_path_buf() });
        }
        let runs = root.join("target").join("sim");
        fs::create_dir_all(&runs).map_err(|err| failed(&runs, err))?;
        let names = fs::read_dir(&runs).map_err(|err| failed(&runs, err))?;
        let numbers = names.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
        let mut number = numbers.max().unwrap_or(0) + 1;
        loop {
            let path = runs.join(number.to_string());
            match fs::create_dir(&path) {
                Ok(()) => return Ok(RunDirectory { path }),
                // Another run was faster.
                Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(err) => return Err(failed(&path, err)),
            }
        }
    }

    /// Says what the run is, or was.
    pub fn write_run(&self, run: &RunFile) -> Result<(), String> {
        write_json(&self.path.join(RUN), run)
    }

    /// Where a seed's files go; it is made.
    pub fn seed(&self, scenario: &str, seed: u64) -> Result<PathBuf, String> {
        let path = self.path.join(format!("{scenario}@{seed}"));
        fs::create_dir_all(&path).map_err(|err| format!("{} cannot be made: {err}", path.display()))?;
        Ok(path)
    }
}

/// What the sweep in `directory` was; none if it is none.
pub fn read_run(directory: &Path) -> Option<RunFile> {
    serde_json::from_str(&fs::read_to_string(directory.join(RUN)).ok()?).ok()
}

/// Writes what is known of a seed into its directory; events and log are there already.
pub fn write_seed(directory: &Path, repro: &Repro, plan: &Plan) -> Result<(), String> {
    let around = repro.report.failure.as_ref().map(|failure| failure.around.as_slice()).unwrap_or_default();
    let story = format!("{}\n{}\n", story_text(&repro.report.story), columns(around, usize::MAX).join("\n"));
    write(&directory.join(PLAN), &plan.to_toml()?)?;
    write(&directory.join(STORY), &story)?;
    write(&directory.join(RESULT), &result_text(&repro.report.result))?;
    write(&directory.join(REVIEWED_STORY), &story_text(&repro.report.story))?;
    write_json(&directory.join(REPRO), repro)
}

/// Reads what is known of the seed in `directory`.
pub fn read_repro(directory: &Path) -> Result<Repro, String> {
    let path = directory.join(REPRO);
    let text = fs::read_to_string(&path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?;
    serde_json::from_str(&text).map_err(|err| format!("{}: {err}", path.display()))
}

/// The directories of kept seeds at `path`: itself, or those in it, sorted.
pub fn seed_directories(path: &Path) -> Result<Vec<PathBuf>, String> {
    if path.join(REPRO).is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|directory| directory.join(REPRO).is_file());
    found.sort();
    Ok(found)
}

/// The one kept seed at `path`.
pub fn only_seed(path: &Path) -> Result<PathBuf, String> {
    let mut found = seed_directories(path)?;
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(format!("{} has no kept seed (a directory with {REPRO})", path.display())),
        _ => {
            let names: Vec<String> = found.iter().map(|path| path.display().to_string()).collect();
            Err(format!("{} has several kept seeds; name one: {}", path.display(), names.join(", ")))
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|err| format!("{} cannot be written: {err}", path.display()))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|err| format!("{}: {err}", path.display()))?;
    write(path, &(text + "\n"))
}
