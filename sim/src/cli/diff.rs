//! `sim diff`: exit code 0 if two runs are the same, 1 if they differ.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, project, say, show};
use crate::report::directory::{EVENTS, Repro, only_seed, read_repro};
use crate::report::text::{first_difference, result_text, story_text};

/// Events shown before the first that differs.
const BEFORE: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The directory of a kept seed.
    a: String,
    /// Another one.
    b: String,
}

impl Diff {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let project = project()?;
        let seed = |named: &str| {
            let path = show::directory(&project, Some(named)).and_then(|path| only_seed(&path));
            path.map_err(Failure::usage)
        };
        let (a, b) = (seed(&self.a)?, seed(&self.b)?);
        let (was, is) = (read_repro(&a).map_err(Failure::usage)?, read_repro(&b).map_err(Failure::usage)?);
        let differ = if was.build == is.build { same_build(&a, &b, &was, &is)? } else { two_builds(&was, &is) };
        Ok(u8::from(differ))
    }
}

fn same_build(a: &Path, b: &Path, was: &Repro, is: &Repro) -> Result<bool, Failure> {
    if let (Some(a), Some(b)) = (events(a), events(b)) {
        return match first_event(&a, &b).map_err(Failure::harness)? {
            None => {
                say("every event is the same");
                Ok(false)
            }
            Some(difference) => {
                difference.lines().into_iter().for_each(say);
                Ok(true)
            }
        };
    }
    if was.report.fingerprint == is.report.fingerprint {
        say("the fingerprints are the same");
        return Ok(false);
    }
    say(crate::runner::sweep::where_they_part(&was.report, &is.report));
    say("the events of one of them were not recorded; `sim replay` records them");
    Ok(true)
}

fn two_builds(was: &Repro, is: &Repro) -> bool {
    say(format!("two builds ({} and {}): what they did is compared, not how", was.build, is.build));
    let decisions = |repro: &Repro| {
        repro.report.decisions.iter().map(|one| format!("{} = {}\n", one.name, one.value)).collect::<String>()
    };
    let pairs = [
        ("outcome", was.report.outcome.to_string(), is.report.outcome.to_string()),
        ("result", result_text(&was.report.result), result_text(&is.report.result)),
        ("story", story_text(&was.report.story), story_text(&is.report.story)),
        ("decisions", decisions(was), decisions(is)),
    ];
    let mut differ = false;
    for (what, was, is) in pairs {
        match first_difference(&was, &is) {
            None => say(format!("{what}: the same")),
            Some(lines) => {
                differ = true;
                say(format!("{what}: differs at {}", lines.join("\n  ")));
            }
        }
    }
    differ
}

/// The first event in which two recordings differ.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Its number, from 1.
    pub number: u64,
    /// The events before it.
    pub before: Vec<String>,
    /// What stands in the one; none: it ends.
    pub a: Option<String>,
    /// What stands in the other.
    pub b: Option<String>,
}

impl Difference {
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.before.iter().map(|line| format!("  {line}")).collect();
        // Each line opens with its virtual time; the earlier of the two is where the runs part.
        let time = |line: &str| line.split_once(' ').filter(|(time, _)| time.contains('.'))?.0.parse::<f64>().ok();
        let times = [&self.a, &self.b].into_iter().filter_map(|line| time(line.as_deref()?));
        let when = times.min_by(f64::total_cmp).map_or(String::new(), |time| format!(" (at {time:.6} s)"));
        lines.push(format!("event {}{when} is the first that differs:", self.number));
        for (sign, event) in [('-', &self.a), ('+', &self.b)] {
            lines.push(format!("{sign} {}", event.as_deref().unwrap_or("(no more events)")));
        }
        lines
    }
}

pub(super) fn first_event(a: &Path, b: &Path) -> Result<Option<Difference>, String> {
    let open = |path: &Path| {
        let file = File::open(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?;
        Ok::<_, String>(BufReader::new(file).lines())
    };
    let (mut a, mut b) = (open(a)?, open(b)?);
    let mut before = std::collections::VecDeque::new();
    for number in 1.. {
        let a = a.next().transpose().map_err(|err| err.to_string())?;
        let b = b.next().transpose().map_err(|err| err.to_string())?;
        match (a, b) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => {
                before.push_back(a);
                if before.len() > BEFORE {
                    before.pop_front();
                }
            }
            (a, b) => return Ok(Some(Difference { number, before: before.into(), a, b })),
        }
    }
    Ok(None)
}

fn events(directory: &Path) -> Option<PathBuf> {
    let path = directory.join(EVENTS);
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_that_differs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, events: &[&str]| {
            let path = directory.path().join(name);
            std::fs::write(&path, events.iter().map(|event| format!("{event}\n")).collect::<String>()).unwrap();
            path
        };
        let a = file("a", &["1", "2", "3", "4", "5", "6", "7", "8"]);
        let b = file("b", &["1", "2", "3", "4", "5", "6", "x", "8"]);
        let shorter = file("c", &["1", "2"]);
        let difference = first_event(&a, &b).unwrap().unwrap();
        assert_eq!((difference.number, difference.before.len()), (7, BEFORE));
        assert_eq!(difference.lines()[5..], ["event 7 is the first that differs:", "- 7", "+ x"]);
        assert_eq!(first_event(&shorter, &a).unwrap().unwrap().a, None);
        let timed = |time: &str| Some(format!("{time} n2 disk.write 0 log/1"));
        let difference = Difference { number: 9, before: vec![], a: timed("3.250000000"), b: timed("3.125000000") };
        assert_eq!(difference.lines()[0], "event 9 (at 3.125000 s) is the first that differs:");
        assert_eq!(first_event(&a, &a), Ok(None));
    }
}
