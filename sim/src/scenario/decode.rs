//! The second pass: from what serde read to a [`Scenario`], with every problem at its place.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use arrow::compute::can_cast_types;
use arrow::datatypes::SchemaRef;
use engine::error::Error;
use engine::options::Options;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use toml::Spanned;

use super::condition::Condition;
use super::durable::{Durable, When};
use super::fault::{Cutoff, Death, Direction, DiskEffect, DiskFault, Fault, FileClass, Stay, StormKind};
use super::happened::Happened;
use super::matrix::Edit;
use super::period::{Offset, Period};
use super::position::{Problems, Source, one_of};
use super::raw::{self, Number, Text};
use super::sql_type::SqlType;
use super::target::{Target, table_name};
use super::{
    Action, Cluster, DrawnRule, Each, Exempt, Expect, Held, Load, Mix, Rule, Scenario, Statement, Step, Storm, Trigger,
    Unknown, Until, Wait, Workload, WorkloadKind, default_options,
};
use crate::oracle::NAMES;
use crate::run::outcome::Outcome;

/// Seeds are exact in JSON and in spreadsheets: below 2^53.
pub const SEED_END: u64 = 1 << 53;

/// The words that say what a step does.
pub(super) const VERBS: &[&str] = &[
    "sql",
    "load",
    "join",
    "wait",
    "check",
    "sleep",
    "repeat",
    "power_loss",
    "crash",
    "restart",
    "pause",
    "resume",
    "transfer_leader",
    "isolate",
    "partition",
    "heal",
    "cut",
    "disk",
    "clock",
    "option",
];

/// Words of a step that the language knows and cannot carry out yet, each with what to do until then.
pub(super) const LATER: &[(&str, &str)] =
    &[("wipe", "a replica that lost its disk cannot be replaced yet; `power_loss` and `restart` keep what was synced")];

/// What clients beside the steps can do.
pub(super) const WORKLOADS: &[&str] = &["mutate", "increment"];

/// What they will be able to do.
const LATER_WORKLOADS: &[&str] = &["transfer", "nexmark", "tsbs", "ddl_storm"];

/// The words that go with a verb, each with the verbs that it goes with.
pub(super) const MODIFIERS: &[(&str, &[&str])] = &[
    ("error", &["sql"]),
    ("rows", &["sql"]),
    ("client", &["sql", "load"]),
    ("node", &["sql"]),
    ("within", &["sql", "load"]),
    ("unknown", &["sql", "load"]),
    ("start", &["sql", "load"]),
    ("steps", &["repeat"]),
    ("restart_after", &["power_loss", "crash"]),
    ("for", &["pause", "isolate", "partition"]),
    ("to", &["transfer_leader"]),
    ("direction", &["isolate", "partition"]),
];

/// How a scenario may be declared to end: all but `pass` are canaries.
pub(super) const EXPECTED_OUTCOMES: &[&str] = &["pass", "safety", "liveness", "panic", "vacuous"];

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

    fn steps(&mut self, raw: Vec<Spanned<raw::Step>>) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in raw {
            let span = step.span();
            let line = self.source.line(span.start);
            steps.extend(self.action(step.into_inner(), span).map(|action| Step { line, action }));
        }
        steps
    }

    fn action(&mut self, raw: raw::Step, span: Range<usize>) -> Option<Action> {
        let (verb, at) = self.verb(&raw, span)?;
        match verb {
            "sql" => self.statement(raw).map(Action::Sql),
            "load" => self.load(raw).map(Action::Load),
            "join" => {
                let name = raw.join?.into_inner();
                if self.started.remove(&name).is_none() {
                    let open: Vec<&str> = self.started.keys().map(String::as_str).collect();
                    let message = one_of("the name of a statement that was started before", &name, &open);
                    self.source.wrong(at, message);
                }
                Some(Action::Join(name))
            }
            "wait" => self.wait(raw.wait?).map(Action::Wait),
            "check" => {
                let query = raw.check?;
                self.parse_sql(&query, None);
                Some(Action::Check(query.into_inner()))
            }
            "sleep" => self.parsed(&raw.sleep).map(Action::Sleep),
            "repeat" => {
                let times = self.number(&raw.repeat, 1, MANY)? as u32;
                let Some(steps) = raw.steps else {
                    self.source.wrong(at, "expected `steps = [{ .. }, ..]`: what is repeated");
                    return None;
                };
                // The second time round nothing of the first may be open, and what was open before is joined once.
                let before = std::mem::take(&mut self.started);
                let steps = self.steps(steps.into_inner());
                for (name, span) in std::mem::replace(&mut self.started, before) {
                    self.source.wrong(span, format!("expected a later step `join = \"{name}\"` in the same `repeat`"));
                }
                Some(Action::Repeat { times, steps })
            }
            _ => self.fault(raw, verb, at).map(Action::Fault),
        }
    }

    /// The one verb of a step, and that all other words go with it.
    fn verb(&mut self, raw: &raw::Step, span: Range<usize>) -> Option<(&'static str, Range<usize>)> {
        for (at, (word, instead)) in [place(&raw.wipe)].into_iter().zip(LATER) {
            if let Some(at) = at {
                self.source.wrong(at, format!("`{word}` is not available: {instead}"));
                return None;
            }
        }
        let verbs: Vec<_> = set_verbs(raw).into_iter().zip(VERBS).filter_map(|(at, verb)| Some((*verb, at?))).collect();
        let (verb, at) = match verbs.as_slice() {
            [] => {
                self.source.wrong(span, format!("expected one of {}", VERBS.join(", ")));
                return None;
            }
            [(verb, at)] => (*verb, at.clone()),
            [(first, _), (second, at), ..] => {
                self.source
                    .wrong(at.clone(), format!("expected one verb, found `{first}` and `{second}`: make two steps"));
                return None;
            }
        };
        for (at, (word, verbs)) in set_modifiers(raw).into_iter().zip(MODIFIERS) {
            if let Some(at) = at
                && !verbs.contains(&verb)
            {
                self.source.wrong(at, format!("`{word}` goes with {}, not with `{verb}`", verbs.join(", ")));
            }
        }
        Some((verb, at))
    }

    fn statement(&mut self, raw: raw::Step) -> Option<Statement> {
        let sql = raw.sql?;
        if sql.get_ref().trim().is_empty() {
            self.source.wrong(sql.span(), "expected a statement");
        }
        self.parse_sql(&sql, raw.error.as_ref().map(|code| code.get_ref().as_str()));
        if let Some(code) = &raw.error {
            let name = code.get_ref().as_str();
            if !Error::CODES.contains(&name) {
                self.source.wrong(code.span(), one_of("the code of an error", name, Error::CODES));
            }
        }
        if let (Some(_), Some(rows)) = (&raw.error, &raw.rows) {
            self.source.wrong(rows.span(), "expected `error` or `rows`: a statement that fails has no rows");
        }
        let unknown = self.unknown(&raw.unknown);
        if raw.node.is_some() && unknown == Unknown::Retry {
            let message =
                "`retry` does not go with `node`: only a client of its own can resend under the same request id";
            self.source.wrong(text_span(&raw.unknown), message);
        }
        Some(Statement {
            sql: sql.into_inner(),
            error: raw.error.map(Spanned::into_inner),
            rows: self.number(&raw.rows, 0, i64::MAX),
            client: raw.client.map(Spanned::into_inner),
            node: self.target(&raw.node),
            within: self.parsed(&raw.within),
            unknown,
            start: self.start(raw.start),
        })
    }

    fn load(&mut self, raw: raw::Step) -> Option<Load> {
        let load = raw.load?;
        let span = load.span();
        let load = load.into_inner();
        let table = self.required(&load.table, span.clone(), "`table`");
        let table = table.and_then(|table| self.source.take(text_span(&load.table), table_name(&table)));
        let file = self.required(&load.file, span.clone(), "`file`: a Parquet file, relative to the scenario");
        let columns = file.as_ref().and_then(|file| {
            let columns = columns_of(self.directory, Path::new(file));
            self.source.take(text_span(&load.file), columns)
        });
        let client = raw.client.map(Spanned::into_inner);
        let within = self.parsed(&raw.within);
        let unknown = self.unknown(&raw.unknown);
        let start = self.start(raw.start);
        let mut casts = BTreeMap::new();
        for (name, to) in load.casts {
            let to_type = self.source.take(to.span(), to.get_ref().parse::<SqlType>());
            if let (Some(columns), Some(to_type)) = (&columns, to_type) {
                let castable = can_be_cast(columns, name.get_ref(), to_type);
                self.source.take(name.span(), castable);
                casts.insert(name.into_inner(), to_type);
            }
        }
        let rows = self.number(&load.rows, 1, i64::MAX);
        let batch = self.number(&load.batch, 1, MANY).unwrap_or(500);
        let ingest = load.ingest.map(Spanned::into_inner);
        Some(Load { table: table?, file: file?, rows, batch, ingest, casts, client, within, unknown, start })
    }

    fn unknown(&mut self, raw: &Text) -> Unknown {
        match raw.as_ref().map(|text| text.get_ref().as_str()) {
            None | Some("fail") => Unknown::Fail,
            Some("retry") => Unknown::Retry,
            Some(other) => {
                self.source.wrong(text_span(raw), one_of("what to do", other, &["fail", "retry"]));
                Unknown::Fail
            }
        }
    }

    fn start(&mut self, raw: Text) -> Option<String> {
        let name = raw?;
        if self.started.insert(name.get_ref().clone(), name.span()).is_some() {
            self.source.wrong(name.span(), format!("\"{}\" is under way already: join it first", name.get_ref()));
        }
        Some(name.into_inner())
    }

    fn wait(&mut self, raw: Spanned<raw::Wait>) -> Option<Wait> {
        let span = raw.span();
        let raw = raw.into_inner();
        let within = self.parsed(&raw.within).unwrap_or(Period::ms(60_000));
        const WORDS: &[&str] = &["ready", "leader", "converged", "up", "down", "event", "fired"];
        let set = [&raw.ready, &raw.leader, &raw.converged, &raw.up, &raw.down, &raw.event, &raw.fired];
        if set.iter().filter(|text| text.is_some()).count() != 1 {
            self.source.wrong(span, format!("expected exactly one of {}", WORDS.join(", ")));
            return None;
        }
        let until = if let Some(relation) = &raw.ready {
            Until::Ready(self.source.take(relation.span(), table_name(relation.get_ref()))?)
        } else if raw.leader.is_some() {
            Until::Leader(self.parsed(&raw.leader)?)
        } else if raw.converged.is_some() {
            Until::Converged(self.parsed(&raw.converged)?)
        } else if raw.up.is_some() {
            Until::Up(self.target(&raw.up)?)
        } else if raw.down.is_some() {
            Until::Down(self.target(&raw.down)?)
        } else if raw.event.is_some() {
            Until::Event(self.parsed(&raw.event)?)
        } else {
            let rule = raw.fired?;
            if !self.rule_names.contains(rule.get_ref()) {
                let names: Vec<&str> = self.rule_names.iter().map(String::as_str).collect();
                let message = one_of("the name of a rule", rule.get_ref(), &names);
                self.source.wrong(rule.span(), message);
            }
            Until::Fired(rule.into_inner())
        };
        Some(Wait { until, within })
    }

    fn fault(&mut self, raw: raw::Step, verb: &str, at: Range<usize>) -> Option<Fault> {
        let lasts = self.parsed(&raw.lasts);
        let direction = self.parsed(&raw.direction).unwrap_or(Direction::Both);
        Some(match verb {
            "power_loss" => Fault::PowerLoss(Death {
                target: self.target(&raw.power_loss)?,
                restart_after: self.parsed(&raw.restart_after),
            }),
            "crash" => {
                Fault::Crash(Death { target: self.target(&raw.crash)?, restart_after: self.parsed(&raw.restart_after) })
            }
            "restart" => Fault::Restart(self.target(&raw.restart)?),
            "pause" => Fault::Pause(Stay { target: self.target(&raw.pause)?, lasts }),
            "resume" => Fault::Resume(self.target(&raw.resume)?),
            "transfer_leader" => {
                let region: super::target::Region = self.parsed(&raw.transfer_leader)?;
                if region == super::target::Region::It && !self.in_rule {
                    self.source.wrong(at, "\"it\" means something only in a rule");
                }
                Fault::TransferLeader { region, to: self.target(&raw.to) }
            }
            "isolate" => Fault::Isolate(Cutoff { target: self.target(&raw.isolate)?, direction, lasts }),
            "partition" => {
                let groups = raw.partition?.into_inner();
                let mut sides = Vec::new();
                for group in groups {
                    let mut side = Vec::new();
                    for target in group {
                        side.extend(self.target(&Some(target)));
                    }
                    sides.push(side);
                }
                let Ok([from, to]) = <[Vec<Target>; 2]>::try_from(sides) else {
                    self.source.wrong(at, "expected two groups of nodes, like [[\"n1\"], [\"n2\", \"n3\"]]");
                    return None;
                };
                if from.is_empty() || to.is_empty() {
                    self.source.wrong(at.clone(), "expected at least one node on each side");
                }
                if let Some(both) = from.iter().find(|target| to.contains(target)) {
                    self.source.wrong(at, format!("{both} is on both sides"));
                }
                Fault::Partition { from, to, direction, lasts }
            }
            "heal" => {
                if raw.heal.is_some_and(|heal| !heal.into_inner()) {
                    self.source.wrong(at, "expected `heal = true`: all partitions end");
                }
                Fault::Heal
            }
            "cut" => return self.cut(raw.cut?),
            "disk" => return self.disk(raw.disk?),
            "clock" => {
                let clock = raw.clock?;
                let span = clock.span();
                let clock = clock.into_inner();
                let offset: Option<Offset> = self.parsed(&clock.offset);
                let drift = self.signed(&clock.drift_ppm, -500_000, 500_000);
                if offset.is_none() && drift.is_none() {
                    self.source.wrong(span.clone(), "expected `offset`, `drift_ppm` or both");
                }
                let node = self.required_target(&clock.node, span, "`node`");
                Fault::Clock { node: node?, offset: offset.unwrap_or_default(), drift_ppm: drift.unwrap_or(0) }
            }
            _ => {
                let options = raw.option?;
                self.options(options.get_ref())?;
                let options = options.into_inner().into_iter();
                Fault::Option(options.map(|(name, value)| (name.into_inner(), value.into_inner())).collect())
            }
        })
    }

    fn cut(&mut self, raw: Spanned<raw::Cut>) -> Option<Fault> {
        let span = raw.span();
        let raw = raw.into_inner();
        let kind = self.required_word(&raw.kind, span.clone(), "`kind`: which requests");
        let side = self.required_word(&raw.side, span, "`side`: request or answer");
        let from = self.target(&raw.from);
        let to = self.target(&raw.to);
        let nth = self.number(&raw.nth, 1, MANY).unwrap_or(1);
        let times = self.number(&raw.times, 1, MANY).unwrap_or(1);
        Some(Fault::Cut { kind: kind?, side: side?, nth, times, from, to })
    }

    fn disk(&mut self, raw: Spanned<raw::Disk>) -> Option<Fault> {
        let span = raw.span();
        let raw = raw.into_inner();
        let node = self.required_target(&raw.node, span.clone(), "`node`");
        let op = self.required_word(&raw.op, span.clone(), "`op`: which operations");
        let effect = self.required_word(&raw.effect, span.clone(), "`effect`");
        let delay = self.parsed(&raw.delay);
        match (effect, delay) {
            (Some(DiskEffect::Slow), None) => self.source.wrong(span, "expected `delay`: how long they take"),
            (Some(effect), Some(_)) if effect != DiskEffect::Slow => {
                self.source.wrong(text_span(&raw.delay), format!("`delay` goes with \"slow\", not with \"{effect}\""));
            }
            _ => {}
        }
        if let Some(deadly) = effect.filter(DiskEffect::is_deadly) {
            for (word, at) in [("times", place(&raw.times)), ("for", place(&raw.lasts))] {
                if let Some(at) = at {
                    self.source.wrong(at, format!("`{word}` does not go with \"{deadly}\": it happens once"));
                }
            }
        }
        let files = self.parsed(&raw.files).unwrap_or(FileClass::Any);
        let nth = self.number(&raw.nth, 1, MANY).unwrap_or(1);
        let times = self.number(&raw.times, 1, MANY);
        let lasts = self.parsed(&raw.lasts);
        Some(Fault::Disk(DiskFault { node: node?, files, op: op?, nth, times, effect: effect?, delay, lasts }))
    }

    fn rule(&mut self, raw: Spanned<raw::Rule>, number: usize) -> Option<DrawnRule> {
        let span = raw.span();
        let line = self.source.line(span.start);
        let mut raw = raw.into_inner();
        let name = raw.name.take().map_or_else(|| format!("rule {number}"), Spanned::into_inner);
        if !self.rule_names.insert(name.clone()) {
            self.source.wrong(span.clone(), format!("there is a rule \"{name}\" already"));
        }
        let trigger = match (&raw.event, raw.durable.take()) {
            (Some(event), Some(_)) => {
                self.source.wrong(event.span(), "expected `event` or `durable`: make two rules");
                None
            }
            (None, Some(durable)) => self.durable(durable, &mut raw).map(Trigger::Durable),
            _ => self.event(&mut raw, span.clone()).map(Trigger::Event),
        };
        let each = self.parsed::<Each>(&raw.each);
        if let (Some(each), Some(trigger)) = (&each, &trigger)
            && let Some(lacks) = lacks(trigger, each)
        {
            self.source.wrong(text_span(&raw.each), lacks);
        }
        let (nth, nth_most) = self.nth(raw.nth);
        let times = self.number(&raw.times, 1, MANY).unwrap_or(1);
        let after = self.parsed(&raw.after);
        let Some(action) = raw.action else {
            self.source.wrong(span, "expected `do = { .. }`: what is done at the event");
            return None;
        };
        let at = action.span();
        self.in_rule = true;
        let action = self.action(action.into_inner(), at.clone());
        self.in_rule = false;
        match action? {
            Action::Fault(fault) => {
                let rule = Rule { name, line, on: trigger?, nth, times, after, each, fault };
                Some(DrawnRule { rule, nth_most })
            }
            _ => {
                self.source.wrong(at, format!("expected a fault ({}): a rule does not wait", VERBS[7..].join(", ")));
                None
            }
        }
    }

    /// `3`, or `[3, 20]`: one of these, drawn by the seed.
    fn nth(&mut self, raw: raw::Any) -> (u64, u64) {
        let Some(raw) = raw else { return (1, 1) };
        let bounds = match raw.get_ref() {
            toml::Value::Array(bounds) => bounds.as_slice(),
            one => std::slice::from_ref(one),
        };
        let numbers: Vec<u64> = bounds.iter().filter_map(|one| u64::try_from(one.as_integer()?).ok()).collect();
        match numbers.as_slice() {
            [one] if bounds.len() == 1 && *one > 0 => (*one, *one),
            [least, most] if bounds.len() == 2 && 0 < *least && least <= most => (*least, *most),
            _ => {
                self.source.wrong(raw.span(), "expected a whole number from 1, or two like [3, 20]: from .. to");
                (1, 1)
            }
        }
    }

    fn durable(&mut self, raw: Spanned<raw::Durable>, rule: &mut raw::Rule) -> Option<Durable> {
        let span = raw.span();
        let raw = raw.into_inner();
        let file = self.required_word(&raw.file, span.clone(), "`file`: what comes to last");
        let step = self.required_word(&raw.step, span.clone(), "`step`: how");
        let when = self.required_word(&raw.when, span.clone(), &format!("`when`: {}", When::WORDS.join(" or ")));
        let node = self.rule_node(&rule.node);
        let mut regions = None;
        for (field, value) in std::mem::take(&mut rule.fields) {
            match (field.get_ref().as_str(), value.get_ref()) {
                ("region", toml::Value::String(text)) => regions = self.source.take(value.span(), text.parse()),
                ("region", _) => self.source.wrong(value.span(), "expected regions, like \"flights/*\""),
                (other, _) => {
                    let known = [raw::RULE_KEYS, &["region"]].concat();
                    self.source.wrong(field.span(), one_of("a word of a rule with `durable`", other, &known));
                }
            }
        }
        let durable = Durable { when: when?, step: step?, file: file?, node, regions };
        self.source.take(span, durable.check()).map(|()| durable)
    }

    /// The node that a rule is about.
    fn rule_node(&mut self, raw: &Text) -> Option<u32> {
        match self.target(raw)? {
            Target::Node(node) => Some(node),
            other => {
                self.source.wrong(text_span(raw), format!("expected a node like \"n1\", found \"{other}\""));
                None
            }
        }
    }

    fn event(&mut self, raw: &mut raw::Rule, span: Range<usize>) -> Option<Condition> {
        let event = self.required(&raw.event, span, "`event` or `durable`: what it waits for");
        let mut condition = event.and_then(|event| self.source.take(text_span(&raw.event), Condition::of(&event)));
        let node = self.rule_node(&raw.node);
        if let Some(condition) = &mut condition {
            condition.node = node;
        }
        for (field, value) in std::mem::take(&mut raw.fields) {
            let Some(condition) = &mut condition else { break };
            let text = match value.get_ref() {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                other => {
                    let message = format!("expected text or a number, found {}", other.type_str());
                    self.source.wrong(value.span(), message);
                    continue;
                }
            };
            let known = engine::event::Event::SCHEMA
                .iter()
                .find(|(name, _)| *name == condition.event)
                .is_some_and(|(_, fields)| fields.iter().any(|(name, _)| name == field.get_ref()));
            let span = if known { value.span() } else { field.span() };
            let event = engine::event::Event::SCHEMA.iter().find(|(name, _)| *name == condition.event);
            let fields = event.into_iter().flat_map(|(_, fields)| fields.iter().map(|(name, _)| *name));
            let words: Vec<&str> = raw::RULE_KEYS.iter().copied().chain(fields).collect();
            let what = format!("a word of a rule or a field of {}", condition.event);
            let required = condition
                .require(field.get_ref(), &text)
                .map_err(|message| if known { message } else { one_of(&what, field.get_ref(), &words) });
            self.source.take(span, required);
        }
        condition
    }

    fn workload(&mut self, raw: Spanned<raw::Workload>, number: usize) -> Option<Workload> {
        let span = raw.span();
        let raw = raw.into_inner();
        let name = raw.name.map_or_else(|| format!("workload {number}"), Spanned::into_inner);
        let clients = self.number(&raw.clients, 1, 1_000).unwrap_or(1) as u32;
        let ops = self.number(&raw.ops, 1, MANY);
        if raw.ops.is_none() {
            self.source.wrong(span.clone(), "expected `ops`: it ends by count");
        }
        let kind = self.required(&raw.kind, span.clone(), &format!("`kind`: {}", WORKLOADS.join(" or ")))?;
        let given = [("column", text_place(&raw.column)), ("mix", place(&raw.mix))];
        let staleness = self.parsed(&raw.staleness);
        let wanted = match kind.as_str() {
            "mutate" => "mix",
            "increment" => "column",
            later if LATER_WORKLOADS.contains(&later) => {
                let message =
                    format!("the workload \"{later}\" is not available; there is {}", WORKLOADS.join(" and "));
                self.source.wrong(text_span(&raw.kind), message);
                return None;
            }
            other => {
                let message = one_of("a workload", other, WORKLOADS);
                self.source.wrong(text_span(&raw.kind), message);
                return None;
            }
        };
        for (word, place) in given {
            match place {
                Some(place) if word != wanted => {
                    self.source.wrong(place, format!("`{word}` does not go with kind = \"{kind}\""));
                }
                None if word == wanted => {
                    self.source.wrong(span.clone(), format!("expected `{word}`: kind = \"{kind}\" needs it"));
                }
                _ => {}
            }
        }
        if let (Some(place), "column") = (text_place(&raw.staleness), wanted) {
            self.source.wrong(place, "`staleness` goes with kind = \"mutate\": the others do not read");
        }
        let table = self.required(&raw.table, span, "`table`");
        let table = table.and_then(|table| self.source.take(text_span(&raw.table), table_name(&table)))?;
        let kind = match wanted {
            "mix" => WorkloadKind::Mutate { table, mix: self.mix(raw.mix?)?, staleness },
            _ => WorkloadKind::Increment { table, column: raw.column?.into_inner() },
        };
        Some(Workload { name, kind, clients, ops: ops? })
    }

    fn mix(&mut self, raw: Spanned<raw::Mix>) -> Option<Mix> {
        let span = raw.span();
        let raw = raw.into_inner();
        let mut part = |number: &Number| self.number(number, 0, 1_000_000).unwrap_or(0) as u32;
        let mix = Mix {
            insert: part(&raw.insert),
            update: part(&raw.update),
            delete: part(&raw.delete),
            read: part(&raw.read),
        };
        if mix == Mix::default() {
            self.source.wrong(span, "expected a share above 0 of insert, update, delete or read");
            return None;
        }
        Some(mix)
    }

    fn storm(&mut self, raw: Spanned<raw::Storm>, number: usize) -> Option<Storm> {
        let span = raw.span();
        let raw = raw.into_inner();
        let name = raw.name.map_or_else(|| format!("storm {number}"), Spanned::into_inner);
        let mut kinds = Vec::new();
        for kind in raw.kinds {
            let place = kind.span();
            if let Some(kind) = self.source.take(place.clone(), kind.get_ref().parse::<StormKind>()) {
                if kinds.contains(&kind) {
                    self.source.wrong(place, format!("{kind} is there twice"));
                } else if self.nodes == 1 && matches!(kind, StormKind::Partition | StormKind::TransferLeader) {
                    self.source.wrong(place, format!("{kind} needs two nodes, and there is one"));
                }
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            self.source.wrong(span.clone(), format!("expected `kinds`: some of {}", StormKind::WORDS.join(", ")));
        }
        let mut targets = Vec::new();
        for target in raw.targets {
            targets.extend(self.target(&Some(target)));
        }
        let from: Option<Period> = self.required_word(&raw.from, span.clone(), "`from`: when it begins");
        let until: Option<Period> = self.required_word(&raw.until, span.clone(), "`until`: when it ends");
        let every = self.parsed(&raw.every).unwrap_or(Period::ms(5_000));
        if every.ms == 0 {
            self.source.wrong(text_span(&raw.every), "expected a time above 0");
        }
        let (from, until) = (from?, until?);
        if until <= from {
            self.source.wrong(span, "expected `until` after `from`");
        } else if (until.ms - from.ms) / every.ms.max(1) > 10_000 {
            self.source.wrong(span, "expected at most 10000 faults of a kind: make `every` longer");
        }
        Some(Storm { name, kinds, from, until, every, targets })
    }

    fn expect(&mut self, raw: Option<Spanned<raw::Expect>>) -> Option<Expect> {
        let Some(raw) = raw else {
            self.source.wrong(0..0, "expected `[expect]`: what must be true");
            return None;
        };
        let span = raw.span();
        let raw = raw.into_inner();
        let outcome = match raw.outcome.as_ref().map(|text| text.get_ref().as_str()) {
            Some(name) if !EXPECTED_OUTCOMES.contains(&name) => {
                self.source.wrong(text_span(&raw.outcome), one_of("an outcome", name, EXPECTED_OUTCOMES));
                Outcome::Pass
            }
            _ => self.parsed(&raw.outcome).unwrap_or(Outcome::Pass),
        };
        if raw.result.is_empty() && raw.holds.is_empty() && raw.happened.is_empty() && outcome == Outcome::Pass {
            self.source.wrong(span.clone(), "expected some of `result`, `holds` and `happened`");
        }
        let mut result = Vec::new();
        for query in raw.result {
            if outcome != Outcome::Pass {
                self.source.wrong(query.span(), "a run that is to fail has no result");
            }
            self.parse_sql(&query, None);
            self.source.take(query.span(), seed_independent(query.get_ref()));
            result.push(query.into_inner());
        }
        let mut happened = Vec::new();
        for sentence in raw.happened {
            happened.extend(self.source.take(sentence.span(), sentence.get_ref().parse::<Happened>()));
        }
        let mut exempt = Vec::new();
        for one in raw.exempt {
            let span = one.span();
            let one = one.into_inner();
            let oracle = self.required(&one.oracle, span.clone(), "`oracle`");
            if let Some(oracle) = &oracle
                && !NAMES.contains(&oracle.as_str())
            {
                self.source.wrong(text_span(&one.oracle), one_of("an oracle", oracle, NAMES));
            }
            if exempt.iter().any(|known: &Exempt| Some(&known.oracle) == oracle.as_ref()) {
                self.source.wrong(text_span(&one.oracle), "the oracle is exempt already: give one reason");
            }
            let reason = self.required(&one.reason, span, "`reason`: for those who read the scenario");
            exempt.extend(oracle.zip(reason).map(|(oracle, reason)| Exempt { oracle, reason }));
        }
        let mut holds = Vec::new();
        for query in raw.holds {
            self.parse_sql(&query, None);
            holds.push(Held { line: self.source.line(query.span().start), sql: query.into_inner() });
        }
        Some(Expect { result, holds, happened, exempt, outcome })
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

/// The places of the verbs that are there, in the order of [`VERBS`].
fn set_verbs(raw: &raw::Step) -> [Option<Range<usize>>; VERBS.len()] {
    [
        place(&raw.sql),
        place(&raw.load),
        place(&raw.join),
        place(&raw.wait),
        place(&raw.check),
        place(&raw.sleep),
        place(&raw.repeat),
        place(&raw.power_loss),
        place(&raw.crash),
        place(&raw.restart),
        place(&raw.pause),
        place(&raw.resume),
        place(&raw.transfer_leader),
        place(&raw.isolate),
        place(&raw.partition),
        place(&raw.heal),
        place(&raw.cut),
        place(&raw.disk),
        place(&raw.clock),
        place(&raw.option),
    ]
}

/// The places of the other words that are there, in the order of [`MODIFIERS`].
fn set_modifiers(raw: &raw::Step) -> [Option<Range<usize>>; MODIFIERS.len()] {
    [
        place(&raw.error),
        place(&raw.rows),
        place(&raw.client),
        place(&raw.node),
        place(&raw.within),
        place(&raw.unknown),
        place(&raw.start),
        place(&raw.steps),
        place(&raw.restart_after),
        place(&raw.lasts),
        place(&raw.to),
        place(&raw.direction),
    ]
}

/// Why a rule cannot count by `each`: what it waits for does not tell.
fn lacks(trigger: &Trigger, each: &Each) -> Option<String> {
    let field = match each {
        Each::Node => return None,
        Each::Region | Each::RegionOf(_) => "region",
        Each::Replica => "replica",
    };
    match trigger {
        Trigger::Event(condition) => {
            let fields = engine::event::Event::SCHEMA.iter().find(|(name, _)| *name == condition.event);
            let has = fields.is_some_and(|(_, fields)| fields.iter().any(|(name, _)| *name == field));
            (!has).then(|| format!("{} has no field `{field}` to count by", condition.event))
        }
        Trigger::Durable(durable) => (!durable.file.is_of_a_replica())
            .then(|| format!("a {} has no {field} to count by: it is not of one replica", durable.file)),
    }
}

/// Line and column that the parser of SQL names, and its message without them.
fn place_in(message: &str) -> Option<(usize, usize, String)> {
    let (before, rest) = message.split_once("Line: ")?;
    let (line, rest) = rest.split_once(", Column: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let before = before.trim_end().trim_end_matches("at").trim_end();
    Some((line.parse().ok()?, rest[..digits].parse().ok()?, format!("{before}{}", &rest[digits..])))
}

/// The columns of a data file, which must be one that can be read.
fn columns_of(directory: &Path, file: &Path) -> Result<SchemaRef, String> {
    if file.is_absolute() {
        return Err("expected a path relative to the scenario".to_string());
    }
    let path = directory.join(file);
    let opened = std::fs::File::open(&path).map_err(|err| match err.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
        _ => format!("{} cannot be read: {err}", path.display()),
    })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(opened);
    reader.map(|reader| reader.schema().clone()).map_err(|err| format!("{} is no Parquet file: {err}", path.display()))
}

/// Whether the file's column of that name can be of the type.
fn can_be_cast(columns: &SchemaRef, name: &str, to: SqlType) -> Result<(), String> {
    let Ok(column) = columns.field_with_name(name) else {
        let names: Vec<&str> = columns.fields().iter().map(|field| field.name().as_str()).collect();
        return Err(one_of("a column of the file", name, &names));
    };
    if can_cast_types(column.data_type(), &to.0.to_arrow()) {
        return Ok(());
    }
    Err(format!("the column is {} in the file, which cannot be cast to {to}", column.data_type()))
}

/// The comment that the file begins with, without its signs.
fn first_comment(text: &str) -> String {
    let lines = text.lines().skip_while(|line| line.trim().is_empty()).take_while(|line| line.starts_with('#'));
    let lines: Vec<&str> = lines.map(|line| line.trim_start_matches('#').trim()).collect();
    lines.join("\n").trim().to_string()
}

/// A reviewed result is one file for every seed: refuses queries whose rows the seed, the time or the plan decides.
fn seed_independent(query: &str) -> Result<(), String> {
    let lower = query.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for word in ["now", "random", "uuid", "current_timestamp", "current_date", "current_time", "today"] {
        if words.contains(&word) {
            return Err(format!("expected a query with the same rows for every seed; `{word}` has others"));
        }
    }
    if words.windows(2).any(|pair| pair == ["sys", "regions"]) {
        return Err("expected a query with the same rows for every seed; leaders and terms differ".to_string());
    }
    let limited = words.contains(&"limit");
    if limited && !words.windows(2).any(|pair| pair == ["order", "by"]) {
        return Err("expected ORDER BY beside LIMIT: else the plan decides which rows there are".to_string());
    }
    Ok(())
}
