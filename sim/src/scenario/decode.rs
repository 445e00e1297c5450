//! The second pass: from what serde read to a [`Scenario`], with every problem at its place. Here is what all parts use, and the
//! cluster; each part of a scenario has a file.

mod clients;
mod expect;
mod faults;
mod rules;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use engine::options::Options;
use toml::Spanned;

use super::matrix::Edit;
use super::period::Period;
use super::position::{Problems, Source, one_of};
use super::raw::{self, Number, Text};
use super::target::Target;
use super::{Cluster, Scenario, default_options};

pub(super) use clients::WORKLOADS;
pub(super) use expect::EXPECTED_OUTCOMES;
#[cfg(test)]
pub(super) use steps::LATER;
pub(super) use steps::{MODIFIERS, VERBS};

/// Seeds are exact in JSON and in spreadsheets: below 2^53.
pub const SEED_END: u64 = 1 << 53;

/// What a storm's and a rule's `times`, a step's `repeat` may be at most: beyond it a file is a mistake.
const MANY: i64 = 1_000_000;

pub(super) fn scenario(
    raw: raw::Scenario,
    text: &str,
    edits: &[Edit],
    shown: &str,
    name: &str,
    directory: &Path,
) -> Result<Scenario, Problems> {
    let mut decoder = Decoder {
        source: Source::new(shown, text, edits),
        directory,
        nodes: 3,
        options: default_options(),
        started: BTreeMap::new(),
        rule_names: BTreeSet::new(),
        in_rule: false,
    };
    let scenario = decoder.scenario(raw, text, name);
    decoder.source.finish()?;
    // Without a problem there is a value: whatever is missing was put down as a problem.
    scenario.ok_or_else(|| Problems(Vec::new()))
}

struct Decoder<'a> {
    source: Source<'a>,
    directory: &'a Path,
    nodes: u32,
    /// What the nodes start with.
    options: Options,
    /// Statements that were started and not yet joined, with the place.
    started: BTreeMap<String, Range<usize>>,
    rule_names: BTreeSet<String>,
    /// Whether the words `it` and `leader of it` mean something.
    in_rule: bool,
}

impl Decoder<'_> {
    fn scenario(&mut self, raw: raw::Scenario, text: &str, name: &str) -> Option<Scenario> {
        let goal = first_comment(text);
        if goal.is_empty() {
            self.source.wrong(0..0, "expected a comment that says goal and method before anything else");
        }
        let title = self.required(&raw.title, 0..0, "`title`: one line that says what is shown");
        let seeds = self.seeds(raw.seeds);
        let budget = self.parsed(&raw.budget).unwrap_or(Period::ms(600_000));
        let cluster = self.cluster(raw.cluster);
        // Steps may wait for rules: their names first.
        let mut rules = Vec::new();
        for (at, rule) in raw.on.into_iter().enumerate() {
            rules.extend(self.rule(rule, at + 1));
        }
        let steps = self.steps(raw.step);
        for (name, span) in std::mem::take(&mut self.started) {
            self.source.wrong(span, format!("expected a later step `join = \"{name}\"`: nobody asks what came of it"));
        }
        let mut workloads = Vec::new();
        for (at, workload) in raw.workload.into_iter().enumerate() {
            workloads.extend(self.workload(workload, at + 1));
        }
        let mut storms = Vec::new();
        for (at, storm) in raw.storm.into_iter().enumerate() {
            storms.extend(self.storm(storm, at + 1));
        }
        let expect = self.expect(raw.expect);
        Some(Scenario {
            name: name.to_string(),
            directory: self.directory.to_path_buf(),
            goal,
            title: title?,
            seeds,
            budget,
            cluster: cluster?,
            steps,
            rules,
            workloads,
            storms,
            expect: expect?,
            cells: Vec::new(),
        })
    }

    fn seeds(&mut self, raw: Vec<Spanned<i64>>) -> Vec<u64> {
        let mut seeds = Vec::new();
        for seed in raw {
            match u64::try_from(*seed.get_ref()) {
                Ok(value) if value < SEED_END && !seeds.contains(&value) => seeds.push(value),
                Ok(value) if value < SEED_END => self.source.wrong(seed.span(), format!("seed {value} is there twice")),
                _ => self.source.wrong(seed.span(), "expected a seed from 0 to 2^53 - 1"),
            }
        }
        seeds
    }

    fn cluster(&mut self, raw: Option<Spanned<raw::Cluster>>) -> Option<Cluster> {
        let Some(raw) = raw else {
            return Some(Cluster { nodes: self.nodes, options: self.options.clone() });
        };
        let raw = raw.into_inner();
        if let Some(nodes) = self.number(&raw.nodes, 1, 99) {
            self.nodes = nodes as u32;
        }
        self.options = self.options(&raw.options)?;
        Some(Cluster { nodes: self.nodes, options: self.options.clone() })
    }

    /// What the nodes start with, with what the scenario says over it.
    fn options(&mut self, raw: &raw::Table) -> Option<Options> {
        let before = toml::Table::try_from(&self.options);
        let mut table = self.source.take(0..0, before.map_err(|err| err.to_string()))?;
        let names: Vec<String> = table.keys().cloned().collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut last = 0..0;
        for (name, value) in raw {
            last = value.span();
            if !names.contains(&name.get_ref().as_str()) {
                self.source.wrong(name.span(), one_of("an option", name.get_ref(), &names));
                continue;
            }
            let before = table.insert(name.get_ref().clone(), value.get_ref().clone());
            if let Err(err) = table.clone().try_into::<Options>() {
                self.source.wrong(value.span(), format!("{}: {}", name.get_ref(), err.message()));
                table.extend(before.map(|before| (name.get_ref().clone(), before)));
            }
        }
        let options: Options = self.source.take(last.clone(), table.try_into().map_err(|err| err.to_string()))?;
        let valid = options.validate().map_err(|err| err.to_string());
        self.source.take(last, valid).map(|()| options)
    }

    /// That it is one statement that the engine understands; `refused`: unless that is the error that it is to have.
    fn parse_sql(&mut self, sql: &Spanned<String>, refused: Option<&str>) {
        let Err(err) = engine::sql::parse(sql.get_ref()) else { return };
        if sql.get_ref().trim().is_empty() || refused == Some(err.code()) {
            return;
        }
        let message = err.to_string();
        let (at, message) = match place_in(&message) {
            Some((line, column, rest)) => (self.source.within(sql.span(), sql.get_ref(), line, column), rest),
            None => (sql.span(), message),
        };
        self.source.wrong(at, format!("expected SQL that can be parsed: {message}"));
    }

    fn required(&mut self, text: &Text, span: Range<usize>, what: &str) -> Option<String> {
        match text {
            Some(text) if !text.get_ref().trim().is_empty() => Some(text.get_ref().clone()),
            Some(text) => {
                self.source.wrong(text.span(), format!("expected {what}"));
                None
            }
            None => {
                self.source.wrong(span, format!("expected {what}"));
                None
            }
        }
    }

    fn required_word<T: FromStr<Err = String>>(&mut self, text: &Text, span: Range<usize>, what: &str) -> Option<T> {
        self.required(text, span, what)?;
        self.parsed(text)
    }

    fn required_target(&mut self, text: &Text, span: Range<usize>, what: &str) -> Option<Target> {
        self.required(text, span, what)?;
        self.target(text)
    }

    fn parsed<T: FromStr<Err = String>>(&mut self, text: &Text) -> Option<T> {
        let text = text.as_ref()?;
        self.source.take(text.span(), text.get_ref().parse())
    }

    /// A target that exists, and that means something here.
    fn target(&mut self, text: &Text) -> Option<Target> {
        let target: Target = self.parsed(text)?;
        let span = text_span(text);
        if let Some(node) = target.node()
            && node > self.nodes
        {
            self.source.wrong(span, format!("expected a node up to n{}, found \"{target}\"", self.nodes));
        } else if target.needs_event() && !self.in_rule {
            self.source.wrong(span, "\"it\" means something only in a rule");
        }
        Some(target)
    }

    fn number(&mut self, number: &Number, least: i64, most: i64) -> Option<u64> {
        self.signed(number, least, most).and_then(|value| u64::try_from(value).ok())
    }

    fn signed(&mut self, number: &Number, least: i64, most: i64) -> Option<i64> {
        let number = number.as_ref()?;
        let value = *number.get_ref();
        if (least..=most).contains(&value) {
            return Some(value);
        }
        let range = if most == i64::MAX { format!("of at least {least}") } else { format!("from {least} to {most}") };
        self.source.wrong(number.span(), format!("expected a number {range}, found {value}"));
        None
    }
}

fn text_place(text: &Text) -> Option<Range<usize>> {
    text.as_ref().map(Spanned::span)
}

fn text_span(text: &Text) -> Range<usize> {
    text_place(text).unwrap_or(0..0)
}

fn place<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
    value.as_ref().map(Spanned::span)
}

/// Line and column that the parser of SQL names, and its message without them.
fn place_in(message: &str) -> Option<(usize, usize, String)> {
    let (before, rest) = message.split_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let before = before.trim_end().trim_end_matches("at").trim_end();
    Some((line.parse().ok()?, rest[..digits].parse().ok()?, format!("{before}{}", &rest[digits..])))
}

/// The comment that the file begins with, without its signs.
fn first_comment(text: &str) -> String {
    let lines = text.lines().skip_while(|line| line.trim().is_empty()).take_while(|line| line.starts_with('#'));
    let lines: Vec<&str> = lines.map(|line| line.trim_start_matches('#').trim()).collect();
    lines.join("\n").trim().to_string()
}
