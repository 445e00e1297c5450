//! Steps: statements, loads, waits, and what goes with them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use arrow::compute::can_cast_types;
use arrow::datatypes::SchemaRef;
use engine::error::Error;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use toml::Spanned;

use super::super::period::Period;
use super::super::position::one_of;
use super::super::raw::{self, Text};
use super::super::sql_type::SqlType;
use super::super::target::table_name;
use super::super::{Action, Load, Statement, Step, Unknown, Until, Wait};
use super::{Decoder, MANY, place, text_span};

/// The words that say what a step does.
pub(in crate::scenario) const VERBS: &[&str] = &[
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
pub(in crate::scenario) const LATER: &[(&str, &str)] =
    &[("wipe", "a replica that lost its disk cannot be replaced yet; `power_loss` and `restart` keep what was synced")];

/// The words that go with a verb, each with the verbs that it goes with.
pub(in crate::scenario) const MODIFIERS: &[(&str, &[&str])] = &[
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

impl Decoder<'_> {
    pub(super) fn steps(&mut self, raw: Vec<Spanned<raw::Step>>) -> Vec<Step> {
        let mut steps = Vec::new();
        for step in raw {
            let span = step.span();
            let line = self.source.line(span.start);
            steps.extend(self.action(step.into_inner(), span).map(|action| Step { line, action }));
        }
        steps
    }

    pub(super) fn action(&mut self, raw: raw::Step, span: Range<usize>) -> Option<Action> {
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
