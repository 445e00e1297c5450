//! Text for people: results, stories, the failure screen. Pure.

use std::fmt::Write;

use engine::types::NodeId;

use crate::cluster::CLIENTS;
use crate::hash::Hash128;
use crate::run::outcome::Outcome;
use crate::run::report::{ResultRows, SeedReport, StoryLine};

/// A failure says what it has to say in this many lines.
pub const SCREEN_LINES: usize = 40;
/// Rows of a result that are shown; of a longer one a digest and the first of them.
const RESULT_ROWS: usize = 40;
const SAMPLE_ROWS: usize = 10;
const SCREEN_WIDTH: usize = 118;
/// What the columns of the nodes take of it, but for the last.
const LANES_WIDTH: usize = 40;

/// The rows of the `result` queries, as they are reviewed.
pub fn result_text(result: &[ResultRows]) -> String {
    let mut text = String::new();
    for (at, one) in result.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", one.query.trim());
        let long = one.rows.len() > RESULT_ROWS;
        let shown = if long { &one.rows[..SAMPLE_ROWS] } else { &one.rows[..] };
        let mut widths: Vec<usize> = one.columns.iter().map(|column| column.chars().count()).collect();
        for row in shown {
            for (width, value) in widths.iter_mut().zip(row) {
                *width = (*width).max(value.chars().count());
            }
        }
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            format!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end())
        };
        let _ = writeln!(text, "{}", line(&one.columns));
        let _ = writeln!(text, "{}", line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>()));
        for row in shown {
            let _ = writeln!(text, "{}", line(row));
        }
        if long {
            // The lengths keep ("ab", "c") and ("a", "bc") apart.
            let mut digest = Hash128::default();
            for cell in one.rows.iter().flatten() {
                digest.word(cell.len() as u64);
                digest.write(cell.as_bytes());
            }
            let _ = writeln!(text, "  .. {} rows, digest {:032x}", one.rows.len(), digest.finish());
        }
    }
    text
}

/// The story, as it is reviewed.
pub fn story_text(story: &[String]) -> String {
    story.iter().fold(String::new(), |text, line| text + line + "\n")
}

/// The first line in which two texts differ, if they do; blank ends do not count.
pub fn first_difference(reviewed: &str, found: &str) -> Option<Vec<String>> {
    let (mut reviewed, mut found) = (reviewed.trim_end().lines(), found.trim_end().lines());
    let mut number = 0;
    loop {
        number += 1;
        match (reviewed.next(), found.next()) {
            (None, None) => return None,
            (a, b) if a.map(str::trim_end) == b.map(str::trim_end) => {}
            (a, b) => {
                let line = |sign: char, text: Option<&str>| format!("{sign} {}", text.unwrap_or("(ends)").trim());
                return Some(vec![format!("line {number}"), line('-', a), line('+', b)]);
            }
        }
    }
}

/// A failed seed, as the last thing on the screen.
#[derive(Clone, Debug)]
pub struct FailureScreen<'a> {
    /// Name of the scenario.
    pub scenario: &'a str,
    /// The seed.
    pub seed: u64,
    /// The cell of the scenario's matrix, if it has one.
    pub cell: Option<&'a str>,
    /// What is known.
    pub report: &'a SeedReport,
    /// Where its files are.
    pub directory: Option<&'a str>,
    /// The command that runs it again.
    pub replay: &'a str,
    /// Seeds that failed in the same way, this one among them.
    pub alike: u64,
}

impl FailureScreen<'_> {
    /// At most [`SCREEN_LINES`] lines.
    pub fn lines(&self) -> Vec<String> {
        let report = self.report;
        let failure = report.failure.clone().unwrap_or_default();
        let mut head = vec![format!("FAILED {} with seed {}: {}", self.scenario, self.seed, report.outcome)];
        head.extend(self.cell.map(|cell| format!("  cell        {cell}")));
        head.push(format!("  signature   {}", report.signature));
        let at = failure.at_ms.or((report.virtual_ms > 0).then_some(report.virtual_ms));
        if let Some(ms) = at {
            head.push(format!("  when        {} of virtual time", seconds(ms)));
        }
        if !failure.oracle.is_empty() {
            head.push(format!("  oracle      {}", failure.oracle));
        }
        // A sentence, and maybe rows below it.
        let mut what = failure.what.lines();
        head.extend(what.next().map(|line| format!("  what        {line}")));
        let below: Vec<String> = what.map(|line| format!("              {line}")).collect();
        head.extend(cut(&below, 14, "it"));
        if self.alike > 1 {
            head.push(format!("  seeds       {} failed in this way", self.alike));
        }
        let mut tail = Vec::new();
        if let Some(directory) = self.directory {
            tail.push(format!("  files       {directory}"));
        }
        tail.push(format!("  replay      {}", self.replay));
        let room = SCREEN_LINES.saturating_sub(head.len() + tail.len());
        let mut lines = head;
        let story_least = failure.around.len().min(12);
        let evidence = cut(&failure.evidence, room.saturating_sub(story_least + 2), "evidence");
        if !evidence.is_empty() {
            lines.push("  evidence".to_string());
            lines.extend(evidence.iter().map(|line| format!("    {line}")));
        }
        let room = SCREEN_LINES.saturating_sub(lines.len() + tail.len() + 2);
        lines.extend(columns(&failure.around, room));
        lines.extend(tail);
        lines.into_iter().map(|line| clipped(&line.replace('\n', " "), SCREEN_WIDTH.max(line.len()))).collect()
    }
}

/// The first lines, and how many more there are.
fn cut(lines: &[String], room: usize, what: &str) -> Vec<String> {
    if lines.len() <= room {
        return lines.to_vec();
    }
    let shown = room.saturating_sub(1);
    let mut cut: Vec<String> = lines.iter().take(shown).cloned().collect();
    cut.push(format!(".. {} more lines of {what} in the files", lines.len() - shown));
    cut
}

/// What happened, in time from top to bottom, a column for each node; the last `room` lines of it.
pub fn columns(lines: &[StoryLine], room: usize) -> Vec<String> {
    if lines.is_empty() || room == 0 {
        return Vec::new();
    }
    let shown = &lines[lines.len() - lines.len().min(room)..];
    let mut nodes: Vec<u64> = shown.iter().map(|line| line.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    // A line speaks of one node: it begins in its column and has all the room that is right of it.
    let width = (LANES_WIDTH / nodes.len()).clamp(3, 10);
    let row = |first: &str, lane: usize, text: &str| {
        let indent = lane * width;
        let room = SCREEN_WIDTH.saturating_sub(13 + indent).max(40);
        format!("  {first:>10} {:indent$}{}", "", clipped(text, room)).trim_end().to_string()
    };
    let name = |node: &u64| match NodeId(*node) {
        NodeId(0) => "sim".to_string(),
        CLIENTS => "clients".to_string(),
        node => node.to_string(),
    };
    let names: String = nodes.iter().map(|node| format!("{:<width$}", name(node))).collect();
    let mut text = vec![row("", 0, &names)];
    for line in shown {
        let lane = nodes.iter().position(|node| *node == line.node).unwrap_or(0);
        text.push(row(&seconds(line.at_ms), lane, &line.text));
    }
    text
}

/// `1 row`, `2 rows`
pub fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// `12.345 s`
pub fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

/// A message of GitHub's log for a failed seed.
pub fn github(scenario: &str, file: &str, screen: &FailureScreen<'_>) -> String {
    let escaped = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let title = format!("{} in {scenario} with seed {}", screen.report.outcome, screen.seed);
    let title = escaped(&title).replace(':', "%3A").replace(',', "%2C");
    format!("::error file={file},title={title}::{}", escaped(&screen.lines().join("\n")))
}

/// How many of each outcome, for a line.
pub fn outcomes<'a>(counts: impl IntoIterator<Item = (&'a Outcome, &'a u64)>) -> String {
    let counts = counts.into_iter().map(|(outcome, count)| format!("{count} {outcome}"));
    counts.collect::<Vec<_>>().join(", ")
}

fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::Failure;

    #[test]
    fn a_screen_is_never_longer_than_it_may_be_and_ends_with_the_command() {
        for (evidence, around) in [(0, 0), (3, 5), (100, 0), (0, 100), (100, 100), (60, 3)] {
            let failure = Failure {
                oracle: "clients".into(),
                what: "a row is gone".into(),
                at_ms: Some(12_345),
                evidence: (0..evidence).map(|at| format!("evidence {at}")).collect(),
                around: (0..around)
                    .map(|at| StoryLine { at_ms: at, node: at % 6, text: format!("what happened {at}") })
                    .collect(),
            };
            let mut report = SeedReport::failed(Outcome::Safety, "clients: a row is gone", "");
            report.failure = Some(failure);
            let screen = FailureScreen {
                scenario: "x",
                seed: 5,
                cell: None,
                report: &report,
                directory: Some("target/sim/1/x@5"),
                replay: "cargo sim replay x --seed 5",
                alike: 3,
            };
            let lines = screen.lines();
            assert!(lines.len() <= SCREEN_LINES, "{} lines", lines.len());
            assert!(lines.last().is_some_and(|line| line.ends_with("cargo sim replay x --seed 5")));
            assert_eq!(lines[0], "FAILED x with seed 5: safety");
            assert!(around == 0 || lines.iter().any(|line| line.contains(&format!("what happened {}", around - 1))));
            assert!(evidence == 0 || lines.iter().any(|line| line.contains("evidence 0")));
        }
    }

    #[test]
    fn a_line_has_the_room_right_of_its_column() {
        let line = |node: u64, text: &str| StoryLine { at_ms: 1_500, node, text: text.to_string() };
        let long = "FlushFinished region=t1/0 replica=r7 upto=T1-N140 rows=40 files=1 bytes=4821";
        let lines = columns(&[line(0, "a fault"), line(1, "one"), line(2, "two"), line(3, long)], 9);
        assert_eq!(lines[0], "             sim       n1        n2        n3");
        assert_eq!(lines[1], "     1.500 s a fault");
        let cut: String = format!("     1.500 s {:30}{long}", "").chars().take(117).collect();
        assert_eq!(lines[4], format!("{cut}…"));
        assert_eq!((counted(1, "row"), counted(2, "row")), ("1 row".to_string(), "2 rows".to_string()));
    }

    #[test]
    fn a_long_result_is_a_digest_and_a_sample() {
        let rows = |n: usize| (0..n).map(|at| vec![format!("{at:03}"), "x".to_string()]).collect();
        let of = |n: usize| ResultRows { query: "SELECT".into(), columns: vec!["a".into(), "b".into()], rows: rows(n) };
        let text = result_text(&[of(2)]);
        assert_eq!(text, "SELECT\n  a    b\n  ---  -\n  000  x\n  001  x\n");
        let (long, other) = (result_text(&[of(41)]), result_text(&[of(42)]));
        assert_eq!(long.lines().count(), 14);
        assert!(long.contains(".. 41 rows, digest ") && first_difference(&long, &other).is_some());
    }

    #[test]
    fn github_gets_one_line() {
        let report = SeedReport::failed(Outcome::Panic, "panic: a: 100%", "two\nlines");
        let screen = FailureScreen {
            scenario: "x",
            seed: 5,
            cell: None,
            report: &report,
            directory: None,
            replay: "r",
            alike: 1,
        };
        let line = github("x", "scenarios/x.toml", &screen);
        assert_eq!(line.lines().count(), 1);
        assert!(line.starts_with("::error file=scenarios/x.toml,title=panic in x with seed 5::FAILED"), "{line}");
        assert!(line.contains("100%25"));
    }
}
