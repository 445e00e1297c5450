//! Where things are: the nearest directory upwards that has `scenarios/`, and what is in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::scenario::position::{Problems, one_of};
use crate::scenario::{Scenario, read};

/// A directory with `scenarios/`.
#[derive(Clone, Debug)]
pub struct Project {
    /// That directory.
    pub root: PathBuf,
}

impl Project {
    /// The nearest one at or above `from`.
    pub fn find(from: &Path) -> Result<Project, String> {
        let root = from.ancestors().find(|directory| directory.join("scenarios").is_dir());
        match root {
            Some(root) => Ok(Project { root: root.to_path_buf() }),
            None => Err(format!("there is no directory `scenarios` in {} or above it", from.display())),
        }
    }

    /// The scenario files, sorted by name.
    pub fn files(&self) -> Result<Vec<PathBuf>, String> {
        let directory = self.root.join("scenarios");
        let unread = |err: std::io::Error| format!("{} cannot be read: {err}", directory.display());
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&directory).map_err(unread)? {
            let path = entry.map_err(unread)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// The files that the user names, by stem or path; all if none is named.
    pub fn select(&self, named: &[String]) -> Result<Vec<PathBuf>, String> {
        let files = self.files()?;
        if named.is_empty() {
            return Ok(files);
        }
        let mut selected = Vec::new();
        for name in named {
            let path = Path::new(name);
            let file = if path.extension().is_some() || name.contains('/') {
                if !path.is_file() {
                    return Err(format!("there is no file {name}"));
                }
                path.to_path_buf()
            } else {
                let stems: Vec<&str> = files.iter().filter_map(|file| file.file_stem()?.to_str()).collect();
                let at = stems.iter().position(|stem| stem == name);
                let at = at.ok_or_else(|| one_of("a scenario", name, &stems))?;
                files[at].clone()
            };
            if !selected.contains(&file) {
                selected.push(file);
            }
        }
        selected.sort_by_key(|file| file.file_stem().map(ToOwned::to_owned));
        Ok(selected)
    }

    /// Reads scenario files; all problems of all of them.
    pub fn read(&self, files: &[PathBuf]) -> Result<Vec<Scenario>, Problems> {
        let mut scenarios = Vec::new();
        let mut problems = Vec::new();
        for file in files {
            match read(file, &self.shown(file)) {
                Ok(scenario) => scenarios.push(scenario),
                Err(Problems(found)) => problems.extend(found),
            }
        }
        if problems.is_empty() { Ok(scenarios) } else { Err(Problems(problems)) }
    }

    /// A path as people want to read it: relative to the project where it is in it.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Whether the scenario is one of the project's: a copy elsewhere is another one, whatever its name.
    pub fn has(&self, scenario: &Scenario) -> bool {
        let folder = |path: &Path| std::fs::canonicalize(path).ok();
        folder(&scenario.directory) == folder(&self.root.join("scenarios"))
    }

    /// Where the reviewed snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The commit of HEAD, if this is a clone.
    pub fn commit(&self) -> Result<String, String> {
        let output = self.git(&["rev-parse", "HEAD"])?;
        Ok(output.trim().to_string())
    }

    /// What a fingerprint belongs to: the commit (`+` with changes) and the program itself.
    pub fn build(&self) -> String {
        let commit = self.commit().map_or_else(|_| "unknown".to_string(), |commit| commit.chars().take(12).collect());
        let changed = self.git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|out| !out.is_empty());
        let program = std::env::current_exe().and_then(std::fs::metadata);
        let program = program.map_or(0, |meta| {
            use std::os::unix::fs::MetadataExt;
            let facts = format!("{} {} {}", meta.len(), meta.mtime(), meta.mtime_nsec());
            crate::hash::Hash128::of(facts.as_bytes()) as u32
        });
        format!("{commit}{}-{program:08x}", if changed { "+" } else { "" })
    }

    /// What git prints.
    pub fn git(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("git").arg("-C").arg(&self.root).args(arguments).output();
        let output = output.map_err(|err| format!("git cannot be started: {err}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("git {}: {}", arguments.join(" "), said.trim()));
        }
        String::from_utf8(output.stdout).map_err(|err| format!("git {}: {err}", arguments.join(" ")))
    }
}
