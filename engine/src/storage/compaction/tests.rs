//! Golden scripts: `testscripts/compaction/*`. Files are defined and the choice is printed.
//!
//! - `unit UNIT`, `strategy [window=N] [active=N] [inactive=N] [small=N] [inputs=N] [output=BYTES] [strict=0|1]`: what is
//!   not named stays
//! - `file ID keys=FIRST..LAST times=FIRST..LAST bytes=N [level=N]`: times in units of the TIME INDEX; none: no TIME INDEX
//! - `drop ID ..`
//! - `runs`: how all files are cut into runs
//! - `pick`: the window and its files
//! - `compact`: picks, and puts as many files of the size of an output as it takes in the place of those, until nothing is
//!   picked

use std::collections::BTreeMap;
use std::error::Error as StdError;

use goldenscript::{ArgumentConsumer, Context};

use super::*;
use crate::types::{Key, Sequence};

#[test]
fn scripts() {
    crate::testscripts::run_all::<Script>("compaction");
}

struct Script {
    files: BTreeMap<FileId, FileMeta>,
    strategy: Strategy,
}

impl Default for Script {
    fn default() -> Script {
        let strategy = Strategy {
            window: None,
            unit: TimeUnit::Second,
            is_strict: false,
            active_runs: 4,
            inactive_runs: 1,
            small_files: 8,
            max_inputs: 32,
            output_bytes: 1_000,
        };
        Script { files: BTreeMap::new(), strategy }
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Result<String, Box<dyn StdError>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "unit" => {
                self.strategy.unit = match args.next_pos().ok_or("unit?")? {
                    "second" => TimeUnit::Second,
                    "millisecond" => TimeUnit::Millisecond,
                    "nanosecond" => TimeUnit::Nanosecond,
                    other => return Err(format!("unit {other}").into()),
                };
                String::new()
            }
            "strategy" => {
                let strategy = &mut self.strategy;
                strategy.window = number(&mut args, "window")?.or(strategy.window);
                strategy.active_runs = number(&mut args, "active")?.unwrap_or(strategy.active_runs);
                strategy.inactive_runs = number(&mut args, "inactive")?.unwrap_or(strategy.inactive_runs);
                strategy.small_files = number(&mut args, "small")?.unwrap_or(strategy.small_files);
                strategy.max_inputs = number(&mut args, "inputs")?.unwrap_or(strategy.max_inputs);
                strategy.output_bytes = number(&mut args, "output")?.unwrap_or(strategy.output_bytes);
                strategy.is_strict = number(&mut args, "strict")?.map_or(strategy.is_strict, |strict: u8| strict == 1);
                String::new()
            }
            "file" => {
                let file = file(&mut args)?;
                self.files.insert(file.id, file);
                String::new()
            }
            "drop" => {
                while let Some(id) = args.next_pos() {
                    self.files.remove(&FileId(id.parse()?)).ok_or("no such file")?;
                }
                String::new()
            }
            "runs" => {
                let files: Vec<&FileMeta> = self.files.values().collect();
                let shown = |run: Vec<&FileMeta>| names(run.iter().map(|file| &file.id));
                runs(&files).into_iter().map(shown).collect::<Vec<_>>().join("\n")
            }
            "pick" => self.pick().map_or("nothing".to_string(), |pick| shown(&pick)),
            "compact" => {
                let mut lines = Vec::new();
                while let Some(pick) = self.pick() {
                    let outputs = self.merge(&pick.inputs);
                    lines.push(format!("{} -> {}", shown(&pick), names(outputs.iter())));
                    if lines.len() > 20 {
                        return Err(format!("it does not come to an end: {lines:?}").into());
                    }
                }
                lines.join("\n")
            }
            other => return Err(format!("command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Script {
    fn pick(&self) -> Option<Pick> {
        pick(self.files.values(), &self.strategy)
    }

    /// The keys at the ends of the inputs are dealt out to the outputs in order.
    fn merge(&mut self, inputs: &[FileId]) -> Vec<FileId> {
        let next = self.files.keys().next_back().map_or(1, |last| last.0 + 1);
        let inputs: Vec<FileMeta> = inputs.iter().map(|input| self.files.remove(input).unwrap()).collect();
        let mut keys: Vec<Key> =
            inputs.iter().flat_map(|file| [file.first_key.clone(), file.last_key.clone()]).collect();
        keys.sort();
        keys.dedup();
        let bytes: u64 = inputs.iter().map(|file| file.bytes).sum();
        let outputs = bytes.div_ceil(self.strategy.output_bytes).clamp(1, keys.len() as u64);
        let mut ids = Vec::new();
        for (id, keys) in (next..).zip(keys.chunks(keys.len().div_ceil(outputs as usize))) {
            let merged = FileMeta {
                id: FileId(id),
                first_key: keys[0].clone(),
                last_key: keys[keys.len() - 1].clone(),
                first_time: inputs.iter().map(|file| file.first_time).min().unwrap(),
                last_time: inputs.iter().map(|file| file.last_time).max().unwrap(),
                bytes: bytes / outputs,
                level: 1,
                ..inputs[0].clone()
            };
            ids.push(merged.id);
            self.files.insert(merged.id, merged);
        }
        ids
    }
}

fn file(args: &mut ArgumentConsumer<'_>) -> Result<FileMeta, Box<dyn StdError>> {
    let id = FileId(args.next_pos().ok_or("which file?")?.parse()?);
    let keys = args.take_key("keys").ok_or("keys=FIRST..LAST")?;
    let (first, last) = keys.split_once("..").ok_or("keys=FIRST..LAST")?;
    let key = |text: &str| Key(text.as_bytes().to_vec().into());
    let (first_time, last_time) = match args.take_key("times") {
        Some(times) => {
            let (first, last) = times.split_once("..").ok_or("times=FIRST..LAST")?;
            (first.parse()?, last.parse()?)
        }
        None => (i64::MIN, i64::MAX),
    };
    Ok(FileMeta {
        id,
        index: None,
        first_key: key(first),
        last_key: key(last),
        first_time,
        last_time,
        first_sequence: Sequence(1),
        last_sequence: Sequence(1),
        rows: 1,
        bytes: number(args, "bytes")?.unwrap_or(10),
        level: number(args, "level")?.unwrap_or(0),
        checksum: 0,
        schema_version: 1,
        footer_bytes: 0,
        footer_checksum: 0,
    })
}

fn number<T: std::str::FromStr>(args: &mut ArgumentConsumer<'_>, name: &str) -> Result<Option<T>, Box<dyn StdError>>
where
    T::Err: StdError + 'static,
{
    Ok(args.take_key(name).map(str::parse).transpose()?)
}

fn names<'a>(ids: impl Iterator<Item = &'a FileId>) -> String {
    ids.map(FileId::to_string).collect::<Vec<_>>().join(" ")
}

fn shown(pick: &Pick) -> String {
    let window = if pick.window == i64::MAX { "all".to_string() } else { pick.window.to_string() };
    let split = if pick.is_split { ", split" } else { "" };
    format!("window {window}: {}{split}", names(pick.inputs.iter()))
}
