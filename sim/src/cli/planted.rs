//! `sim planted`: breaks the code on purpose and sees who finds it.
//!
//! A patch of `sim/planted/` opens with lines that say what it breaks and who must find it:
//!
//! ```text
//! # what: acknowledges a write before the log is synced
//! # scenarios: all_nodes_power_loss_after_ack, torn_log_tail
//! # oracle: clients
//! ```
//!
//! or, for what a test must find, `# test: <arguments of cargo test>`. One that says `# changes: nothing` is no bug: all
//! reviewed snapshots must be met with it, which shows that they do not record the scheduler. A patch is applied to a copy of the tree outside of it
//! (else cargo would read this tree's configuration too), which is built with a target directory of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::{Ended, Failure, note, project, say};
use crate::hash::Hash128;
use crate::run::outcome::Outcome;
use crate::runner::process::{cpu_ms_of_children, run_within};
use crate::runner::project::Project;
use crate::scenario::period::Period;
use crate::scenario::position::one_of;

#[derive(Debug, Args)]
pub(super) struct Planted {
    /// Names of patches (file stems); none: all.
    names: Vec<String>,
    /// Seeds of each scenario, at most.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..1_000_000))]
    seeds: u64,
    /// Time for each patch, beside building.
    #[arg(long = "for", value_name = "TIME", default_value = "3m")]
    time: Period,
    /// Only check that each patch still applies and says what it must.
    #[arg(long)]
    check: bool,
    /// Where the copy of the tree and its build are [default: in the directory for temporary files].
    #[arg(long, value_name = "DIR")]
    copy: Option<PathBuf>,
}

/// One bug.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bug {
    name: String,
    path: PathBuf,
    what: String,
    finder: Finder,
    /// Which oracle must find it; empty: whatever does.
    oracle: String,
}

/// Who must find a bug.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finder {
    Scenarios(Vec<String>),
    Test(String),
    /// Nobody may: the reviewed snapshots stay as they are.
    Nobody,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    by: Option<String>,
    seeds: u64,
    cpu_ms: u64,
}

impl Planted {
    pub(super) fn run(self) -> Ended {
        let project = project()?;
        let bugs = self.bugs(&project).map_err(Failure::usage)?;
        if bugs.is_empty() {
            return Err(Failure::usage("there is no patch in sim/planted"));
        }
        let copy = self.copy.clone().unwrap_or_else(|| {
            let root = Hash128::of(project.root.as_os_str().as_encoded_bytes());
            let name = format!("planted-{:08x}", root as u32);
            std::env::temp_dir().join(name)
        });
        let tree = Tree::make(&project, &copy, !self.check).map_err(Failure::harness)?;
        let ended = self.find_all(&tree, &bugs);
        tree.remove(&project);
        ended
    }

    fn find_all(&self, tree: &Tree, bugs: &[Bug]) -> Ended {
        let mut missed = 0;
        let width = bugs.iter().map(|bug| bug.name.len()).max().unwrap_or(0);
        for bug in bugs {
            tree.plant(bug).map_err(Failure::harness)?;
            if self.check {
                say(format!("{:width$}  applies: {}", bug.name, bug.what));
                continue;
            }
            note(format!("{}: {}", bug.name, bug.what));
            let found = match &bug.finder {
                Finder::Test(filter) => tree.test(filter, Duration::from_millis(self.time.ms)),
                Finder::Scenarios(names) => tree.scenarios(names, self.seeds, self.time),
                // Every scenario and not one: more time.
                Finder::Nobody => tree.test("-p sim --test scenarios", Duration::from_millis(10 * self.time.ms)),
            };
            let found = found.map_err(|err| Failure::harness(format!("{}: {err}", bug.name)))?;
            if bug.finder == Finder::Nobody {
                missed += u64::from(found.by.is_some());
                let told = match &found.by {
                    None => "harmless, every snapshot is met".to_string(),
                    Some(by) => format!("missed  not every snapshot is met: {by}"),
                };
                say(format!("{:width$}  {told}", bug.name));
                continue;
            }
            let cost = format!("{} seeds, {:.1} CPU s", found.seeds, found.cpu_ms as f64 / 1000.0);
            match &found.by {
                Some(by) if bug.oracle.is_empty() || by.starts_with(&bug.oracle) => {
                    say(format!("{:width$}  found   by {by} ({cost})", bug.name));
                }
                Some(by) => {
                    missed += 1;
                    say(format!("{:width$}  missed  by {}, found by {by} ({cost})", bug.name, bug.oracle));
                }
                None => {
                    missed += 1;
                    say(format!("{:width$}  missed  ({cost})", bug.name));
                }
            }
        }
        say(format!("{} planted, {missed} missed", bugs.len()));
        Ok(if missed > 0 { Outcome::Safety } else { Outcome::Pass })
    }

    fn bugs(&self, project: &Project) -> Result<Vec<Bug>, String> {
        let directory = project.root.join("sim").join("planted");
        let entries = fs::read_dir(&directory).map_err(|err| format!("{}: {err}", directory.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
        paths.sort();
        let mut bugs = Vec::new();
        for path in paths {
            let text = fs::read_to_string(&path).map_err(|err| format!("{}: {err}", path.display()))?;
            bugs.push(Bug::read(&path, &text).map_err(|err| format!("{}: {err}", path.display()))?);
        }
        if self.names.is_empty() {
            return Ok(bugs);
        }
        let known: Vec<&str> = bugs.iter().map(|bug| bug.name.as_str()).collect();
        if let Some(name) = self.names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(one_of("a patch", name, &known));
        }
        bugs.retain(|bug| self.names.contains(&bug.name));
        Ok(bugs)
    }
}

impl Bug {
    fn read(path: &Path, text: &str) -> Result<Bug, String> {
        let mut what = String::new();
        let mut oracle = String::new();
        let mut finder = None;
        for line in text.lines().take_while(|line| line.starts_with('#')) {
            let line = line.trim_start_matches('#').trim();
            let Some((key, value)) = line.split_once(':') else {
                return Err(format!("expected \"# KEY: VALUE\", found \"{line}\""));
            };
            let value = value.trim().to_string();
            if value.is_empty() {
                return Err(format!("`{key}` says nothing"));
            }
            let twice = finder.is_some() && matches!(key, "scenarios" | "test" | "changes");
            match key {
                _ if twice => return Err("expected one line `scenarios:`, `test:` or `changes:`".to_string()),
                "what" => what = value,
                "oracle" => oracle = value,
                "test" => finder = Some(Finder::Test(value)),
                "changes" if value == "nothing" => finder = Some(Finder::Nobody),
                "changes" => return Err(format!("changes: expected \"nothing\", found \"{value}\"")),
                "scenarios" => {
                    finder = Some(Finder::Scenarios(value.split(',').map(|name| name.trim().to_string()).collect()));
                }
                _ => return Err(one_of("a key", key, &["what", "scenarios", "test", "changes", "oracle"])),
            }
        }
        if what.is_empty() {
            return Err("expected a line \"# what: ..\": what it breaks".to_string());
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
        let finder = finder.ok_or("expected a line \"# scenarios: a, b\" or \"# test: filter\"")?;
        Ok(Bug { name, path: path.to_path_buf(), what, finder, oracle })
    }
}

/// A copy of the tree as it is committed, with a build of its own.
struct Tree {
    path: PathBuf,
    build: PathBuf,
}

impl Tree {
    fn make(project: &Project, copy: &Path, to_build: bool) -> Result<Tree, String> {
        let tree = Tree { path: copy.join("tree"), build: copy.join("target") };
        fs::create_dir_all(copy).map_err(|err| format!("{} cannot be made: {err}", copy.display()))?;
        if project.git(&["status", "--porcelain", "--untracked-files=no"])?.lines().any(|line| !line.is_empty()) {
            note("what is not committed is not in the copy");
        }
        tree.remove(project);
        let path = tree.path.display().to_string();
        project.git(&["worktree", "add", "--force", "--detach", &path, "HEAD"])?;
        // The dependencies' builds are the same; only ours are made anew.
        let built = project.root.join("target").join("debug");
        if to_build && !tree.build.exists() && built.is_dir() {
            fs::create_dir_all(&tree.build).map_err(|err| format!("{} cannot be made: {err}", tree.build.display()))?;
            let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(&built).arg(&tree.build).status();
            if !status.is_ok_and(|status| status.success()) {
                note("the build could not be copied; everything is built anew");
                let _ = fs::remove_dir_all(&tree.build);
            }
        }
        // The crates that replace published ones are as old as they were when they were built; were they as new as
        // their checkout, cargo would build them anew, and all that depends on them.
        let vendor = Path::new("sim").join("vendor");
        same_age(&project.root.join(&vendor), &tree.path.join(&vendor)).map_err(|err| err.to_string())?;
        // Git is to know that nothing else of them has changed, else the next checkout writes them again.
        Project { root: tree.path.clone() }.git(&["update-index", "--refresh"])?;
        Ok(tree)
    }

    /// Takes the copy away; its build stays for the next time.
    fn remove(&self, project: &Project) {
        let _ = project.git(&["worktree", "remove", "--force", &self.path.display().to_string()]);
        let _ = fs::remove_dir_all(&self.path);
    }

    /// The committed tree with this bug and no other.
    fn plant(&self, bug: &Bug) -> Result<(), String> {
        let project = Project { root: self.path.clone() };
        project.git(&["checkout", "--quiet", "--", "."])?;
        let patch = bug.path.display().to_string();
        project
            .git(&["apply", "--whitespace=nowarn", &patch])
            .map(drop)
            .map_err(|err| format!("{} does not apply any more: {err}", bug.name))
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.path).env("CARGO_TARGET_DIR", &self.build);
        // The environment of the `cargo run` that we are in is not for the copy.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") || text == "OUT_DIR" {
                command.env_remove(&name);
            }
        }
        command
    }

    fn scenarios(&self, names: &[String], seeds: u64, time: Period) -> Result<Found, String> {
        let status = self.cargo(&["build", "--quiet", "-p", "sim"]).status().map_err(|err| err.to_string())?;
        if !status.success() {
            return Err("the patched tree does not build".to_string());
        }
        let mut found = Found::default();
        let range = format!("1..{seeds}");
        let time = time.to_string();
        for name in names {
            let mut command = Command::new(self.build.join("debug").join("sim"));
            command.args(["run", name, "--seeds", &range, "--for", &time, "--format", "json"]);
            command.current_dir(&self.path).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut run = command.spawn().map_err(|err| err.to_string())?;
            for line in run.stdout.take().into_iter().flat_map(|lines| BufReader::new(lines).lines()) {
                found.read(&line.map_err(|err| err.to_string())?);
                if found.by.is_some() {
                    // The other seeds would tell nothing more.
                    let _ = run.kill();
                    let _ = run.wait();
                    return Ok(found);
                }
            }
            if run.wait().map_err(|err| err.to_string())?.code() == Some(2) {
                return Err(format!("{name} cannot be run: try `cargo sim run {name}`"));
            }
        }
        Ok(found)
    }

    fn test(&self, filter: &str, time: Duration) -> Result<Found, String> {
        let mut arguments = vec!["test", "--quiet"];
        arguments.extend(filter.split_whitespace());
        let built = self.cargo(&[&arguments[..], &["--no-run"]].concat()).status();
        if !built.map_err(|err| err.to_string())?.success() {
            return Err("the patched tree does not build".to_string());
        }
        let mut command = self.cargo(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let before = cpu_ms_of_children();
        let by = match run_within(&mut command, time)? {
            Some(status) if status.success() => None,
            Some(_) => Some(format!("test {filter}")),
            None => Some(format!("test {filter}, which did not end")),
        };
        Ok(Found { by, seeds: 0, cpu_ms: cpu_ms_of_children().saturating_sub(before) })
    }
}

/// Gives each file below `copy` the time of change of its original below `from`.
fn same_age(from: &Path, copy: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(copy)? {
        let copy = entry?.path();
        let from = from.join(copy.file_name().unwrap_or_default());
        if copy.is_dir() {
            same_age(&from, &copy)?;
        } else if let Ok(original) = fs::metadata(&from) {
            fs::File::options().write(true).open(&copy)?.set_modified(original.modified()?)?;
        }
    }
    Ok(())
}

impl Found {
    /// Adds what `sim run --format json` said; the first failure that an oracle or the process itself found counts.
    fn read(&mut self, lines: &str) {
        for line in lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
            if line["type"] != "seed" {
                continue;
            }
            if self.by.is_none() {
                self.seeds += 1;
                self.cpu_ms += line["cpu_ms"].as_u64().unwrap_or(0);
            }
            let outcome: Option<Outcome> = line["outcome"].as_str().and_then(|outcome| outcome.parse().ok());
            let counts =
                [Outcome::Safety, Outcome::Liveness, Outcome::Panic, Outcome::Nondeterminism, Outcome::Snapshot];
            if self.by.is_none() && outcome.is_some_and(|outcome| counts.contains(&outcome)) {
                self.by = Some(line["signature"].as_str().unwrap_or_default().to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_what_it_breaks_and_who_must_find_it() {
        let read = |text: &str| Bug::read(Path::new("sim/planted/early_ack.patch"), text);
        let bug = read("# what: early\n# scenarios: a, b\n# oracle: clients\n--- a/x\n").unwrap();
        assert_eq!((bug.name.as_str(), bug.oracle.as_str()), ("early_ack", "clients"));
        assert_eq!(bug.finder, Finder::Scenarios(vec!["a".into(), "b".into()]));
        assert_eq!(read("# what: early\n# test: torn\n").unwrap().finder, Finder::Test("torn".into()));
        for (text, hint) in [
            ("--- a/x\n", "what"),
            ("# what: x\n", "scenarios"),
            ("# what: x\n# test: a\n# scenarios: b\n", "one line"),
            ("# what: x\n# changes: all\n", "nothing"),
            ("# waht: x\n# test: a\n", "did you mean \"what\""),
            ("# what:\n# test: a\n", "says nothing"),
            ("# what it does\n", "KEY: VALUE"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn the_first_finder_counts_and_what_it_took() {
        let seed = |outcome: &str, signature: &str| {
            format!("{{\"type\":\"seed\",\"outcome\":\"{outcome}\",\"signature\":\"{signature}\",\"cpu_ms\":10}}\n")
        };
        let mut found = Found::default();
        found
            .read(&(seed("pass", "") + &seed("vacuous", "v") + &seed("safety", "clients: lost") + &seed("panic", "p")));
        assert_eq!(found, Found { by: Some("clients: lost".into()), seeds: 3, cpu_ms: 30 });
    }
}
