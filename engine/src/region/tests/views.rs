//! Golden scripts of what entries do for views: `testscripts/region/*`. There are two regions, each with one replica: one of the
//! table `t`, which is read, and one of the view `v`, `SELECT g, 100 / SUM(i) AS r FROM t GROUP BY g`. An epoch is TERM.ATTEMPT.
//!
//! At the region of the table:
//!
//! - `write N`: so many rows
//! - `attach LEG ..`, `detach`, `control [paused] [rate=N]`
//! - `reign EPOCH`, `round EPOCH done=N rows=N [live]`, `advance EPOCH SEQUENCE`, `fail EPOCH`, all with `[leg=N]`
//! - `legs`: all of them
//!
//! At the region of the view; a position is `none`, `DONE`, or `DONE..UPTO/KEY`:
//!
//! - `begin`, `greet EPOCH`, `ready`, `failed REASON`
//! - `absorb EPOCH from=POSITION to=POSITION [read=N] [settled=N] [put/GROUP/NUMBER] [take/GROUP/NUMBER] ..`
//! - `filled`: what it knows of its fill; `read`: what SELECT shows
//!
//! At both, `t` or `v`: `flush`, and `replay`: what is in memory is gone, and all entries since the last flush are applied again
//! (none of them a `write`).

use std::collections::BTreeSet;
use std::error::Error as StdError;

use arrow::array::{Int8Array, RecordBatch};
use goldenscript::{ArgumentConsumer, Command as Line, Context, Runner};

use super::*;
use crate::meta::catalog::{LegDef, ViewDef, columns};
use crate::region::command::{LegAnswer, decode_answer};
use crate::region::leg::{Leg, LegStep};
use crate::region::request::{Absorb, ScanRequest, Taken};
use crate::types::{Condition, FillPosition, Key, LegId, Op, Position, Predicate, Source, Timestamp, encode_key};
use crate::view::Program;

type Failure = Box<dyn StdError>;

#[tokio::test]
async fn legs() {
    script("legs").await;
}

#[tokio::test]
async fn fills() {
    script("fills").await;
}

#[tokio::test]
async fn broken_groups() {
    script("broken_groups").await;
}

#[tokio::test]
async fn levels() {
    script("levels").await;
}

/// What came out, in the order of the script: [`Runner`] cannot wait, so commands are collected, run and printed in three passes.
struct Replay {
    commands: Vec<Line>,
    outputs: Option<std::vec::IntoIter<String>>,
}

impl Runner for Replay {
    type Command = Line;

    fn run(&mut self, command: &Line, _: &Context) -> Result<String, Failure> {
        match &mut self.outputs {
            None => {
                self.commands.push(command.clone());
                Ok(String::new())
            }
            Some(outputs) => Ok(outputs.next().ok_or("more commands than before")?),
        }
    }
}

async fn script(name: &str) {
    let path = format!("{}/testscripts/region/{name}", env!("CARGO_MANIFEST_DIR"));
    #[expect(clippy::disallowed_methods, reason = "a test reads its script")]
    let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
    let mut replay = Replay { commands: Vec::new(), outputs: None };
    goldenscript::generate(&mut replay, &text).unwrap();
    let mut world = World::new().await;
    let mut outputs = Vec::new();
    for command in &replay.commands {
        outputs.push(world.run(command).await.unwrap_or_else(|err| panic!("{name}: {}: {err}", command.name)));
    }
    replay.outputs = Some(outputs.into_iter());
    goldenscript::run(&mut replay, &path).unwrap();
}

/// A region with the entries that were applied since it was flushed.
struct Place {
    disk: MemoryDisk,
    id: u64,
    table: TableDef,
    region: Arc<Region>,
    index: u64,
    since: Vec<(LogId, Bytes)>,
}

struct World {
    feeder: Place,
    view: Place,
}

const FEEDER: RegionId = RegionId(1 << 32);

fn column(id: u32, name: &str, column_type: ColumnType) -> Column {
    let nullable = ![columns::PART, columns::VALUE, "k"].contains(&name);
    Column { id: ColumnId(id), name: name.into(), column_type, nullable, default: None }
}

fn t() -> TableDef {
    let columns =
        vec![column(1, "k", ColumnType::Int64), column(2, "g", ColumnType::String), column(3, "i", ColumnType::Int64)];
    let schema = Schema::new(1, columns, &["k".into()], None).unwrap();
    let partition = PartitionRule::Hash { columns: vec!["k".into()], regions: 1 };
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema,
        partition,
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
    }
}

fn v() -> TableDef {
    let columns = vec![
        column(1, "g", ColumnType::String),
        column(2, "r", ColumnType::Int64),
        column(3, columns::PART, ColumnType::UInt8),
        column(4, columns::VALUE, ColumnType::Binary),
        column(5, columns::STATE, ColumnType::Binary),
    ];
    let schema = Schema::of_view(columns, &["g".into(), columns::PART.into(), columns::VALUE.into()]);
    let uses = BTreeSet::from([ColumnId(2), ColumnId(3)]);
    let leg = LegDef { feeder: TableId(1), name: "t".into(), schema: t().schema, uses };
    let query = "SELECT g, 100 / SUM(i) AS r FROM t GROUP BY g".to_string();
    let view = ViewDef { query, legs: vec![leg], chunk_rows: None, rate_limit: Some(50) };
    let partition = PartitionRule::Hash { columns: vec!["g".into()], regions: 1 };
    TableDef {
        id: TableId(2),
        name: "v".into(),
        schema,
        partition,
        regions: Vec::new(),
        view: Some(Box::new(view)),
        indexes: Default::default(),
    }
}

impl Place {
    async fn new(id: u64, table: TableDef) -> Place {
        let disk = MemoryDisk::default();
        let region = open(&disk, id, &table).await;
        Place { disk, id, table, region, index: 0, since: Vec::new() }
    }

    async fn apply(&mut self, command: Command) -> Bytes {
        self.index += 1;
        let (id, command) = (LogId { term: 1, index: self.index }, command.encode());
        self.since.push((id, command.clone()));
        self.region.apply(id, Change::Command(command)).await.unwrap()
    }

    async fn done(&mut self, command: Command) -> String {
        match decode_outcome(&self.apply(command).await) {
            Ok(_) => "done".to_string(),
            Err(err) => format!("Error: {err}"),
        }
    }

    /// The replicated state is what the log makes of it, from the files on.
    async fn replay(&mut self) -> String {
        let before = self.region.state.lock().unwrap().side.encode();
        self.region.close().await;
        self.region = open(&self.disk, self.id, &self.table).await;
        for (id, command) in &self.since {
            self.region.apply(*id, Change::Command(command.clone())).await.unwrap();
        }
        assert_eq!(self.region.state.lock().unwrap().side.encode(), before);
        format!("the same state after {} entries", self.since.len())
    }

    async fn flush(&mut self) -> String {
        self.region.flush().await.unwrap();
        self.since.clear();
        "done".to_string()
    }
}

async fn open(disk: &MemoryDisk, id: u64, table: &TableDef) -> Arc<Region> {
    let spec = ReplicaSpec {
        replica: ReplicaId(id),
        folder: format!("replicas/{id}"),
        incarnation: Incarnation(1),
        disk: Arc::new(disk.clone()),
        options: Arc::new(Options::default()),
        events: Events::of(NodeId(1)),
        compactions: Arc::new(Semaphore::new(1)),
        buffer: Buffer::new(&Options::default(), Events::of(NodeId(1))),
        fills: Arc::default(),
    };
    disk.create_dir(&spec.folder).await.unwrap();
    Region::create(spec, RegionId::new(table.id, 0), table).await.unwrap()
}

impl World {
    async fn new() -> World {
        World { feeder: Place::new(1, t()).await, view: Place::new(2, v()).await }
    }

    async fn run(&mut self, line: &Line) -> Result<String, Failure> {
        let mut args = line.consume_args();
        let leg = LegId { view: TableId(2), leg: number(&mut args, "leg")?.unwrap_or(0) as u32 };
        let output = match line.name.as_str() {
            "write" => {
                let rows = args.next_pos().ok_or("how many?")?.parse::<i64>()?;
                let first = self.feeder.region.visible().0 as i64;
                let rows = (first..first + rows).map(|k| vec![Value::Int(k), Value::Null, Value::Int(k)]).collect();
                self.feeder.index += 1;
                let schema = self.feeder.table.schema.clone();
                let sequence = put_file(&self.feeder.region, self.feeder.index, &schema, rows, None).await?;
                format!("sequence {sequence}")
            }
            "attach" => {
                let legs: Result<Vec<u32>, _> = std::iter::from_fn(|| args.next_pos()).map(str::parse).collect();
                self.feeder.done(Command::Attach { legs: legs?, view: Box::new(v()) }).await
            }
            "detach" => self.feeder.done(Command::Detach { view: TableId(2) }).await,
            "control" => {
                let rate_limit = number(&mut args, "rate")?;
                let is_paused = args.next_pos().is_some_and(|arg| arg == "paused");
                self.feeder.done(Command::Control { view: TableId(2), is_paused, rate_limit }).await
            }
            "reign" | "round" | "advance" | "fail" => {
                let epoch = epoch(&mut args)?;
                let at = Timestamp(1_000 + self.feeder.index as i64);
                let step = match line.name.as_str() {
                    "reign" => LegStep::Reign,
                    "round" => LegStep::Round {
                        done: number(&mut args, "done")?.ok_or("done=?")?,
                        rows: number(&mut args, "rows")?.ok_or("rows=?")?,
                        goes_live: args.next_pos().is_some_and(|arg| arg == "live"),
                        at,
                    },
                    "advance" => LegStep::Advance { done: Sequence(args.next_pos().ok_or("to where?")?.parse()?), at },
                    _ => LegStep::Fail { message: "a row cannot be computed".into() },
                };
                let answer = self.feeder.apply(Command::Leg { leg, epoch, step }).await;
                match decode_answer(&answer)? {
                    LegAnswer::Leg(leg) => shown_leg(&leg),
                    LegAnswer::Deposed { epoch } => format!("deposed by {}", shown_epoch(epoch)),
                    LegAnswer::Gone => "gone".to_string(),
                }
            }
            "legs" => {
                let level = |id: LegId| {
                    let status = self.feeder.region.leg_status();
                    status.iter().any(|status| status.leg == id && status.is_level)
                };
                let legs = self.feeder.region.legs();
                let line = |(id, leg): &(LegId, Leg)| {
                    let pinned = leg.pinned().map_or("nothing".to_string(), |pinned| pinned.to_string());
                    let level = if level(*id) { ", level" } else { "" };
                    format!("{id}: {}, keeps {pinned}{level}", shown_leg(leg))
                };
                let lines: Vec<String> = legs.iter().map(line).collect();
                if lines.is_empty() { "none".to_string() } else { lines.join("\n") }
            }
            "begin" => self.view.done(Command::Begin).await,
            "ready" => self.view.done(Command::Ready).await,
            "failed" => {
                let reason = args.next_pos().ok_or("why?")?.to_string();
                self.view.done(Command::Fail { reason }).await
            }
            "greet" => {
                let (source, epoch) = (Source { leg: leg.leg, feeder: FEEDER }, epoch(&mut args)?);
                let answer = self.view.apply(Command::Greet { source, epoch }).await;
                shown_taken(&decode_answer(&answer)?)
            }
            "absorb" => {
                let batch = batch(&mut args, leg.leg)?;
                let answer = self.view.apply(Command::Absorb(batch)).await;
                shown_taken(&decode_answer(&answer)?)
            }
            "filled" => self.filled(),
            "read" => self.read().await,
            // The first word says where.
            "flush" | "replay" => {
                let place = match args.next_pos() {
                    Some("t") => &mut self.feeder,
                    Some("v") => &mut self.view,
                    _ => return Err("t or v?".into()),
                };
                if line.name == "flush" { place.flush().await } else { place.replay().await }
            }
            other => return Err(format!("no command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }

    fn filled(&self) -> String {
        let state = self.view.region.state.lock().unwrap();
        let Some(filled) = &state.side.filled else { return "not begun".to_string() };
        let mut lines = vec![format!("{:?}, {} broken", filled.state, filled.broken)];
        lines.extend(filled.sources.iter().map(|(source, one)| {
            let (epoch, position) = (shown_epoch(one.epoch), shown_position(&one.position));
            format!("{source}: epoch {epoch}, at {position}, {} read, {} settled", one.read, one.settled)
        }));
        lines.join("\n")
    }

    async fn read(&self) -> String {
        let shown = Predicate { column: columns::PART.into(), condition: Condition::Eq(Value::UInt(0)) };
        let columns = vec!["g".to_string(), "r".to_string()];
        let scan = ScanRequest { schema_version: 1, columns, predicates: vec![shown], ..ScanRequest::default() };
        let answer = match self.view.region.scan(scan).await {
            Ok(answer) => answer,
            Err(err) => return format!("Error: {err}"),
        };
        let fields: Vec<_> = self.view.table.schema.to_arrow().fields().iter().take(2).cloned().collect();
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let mut lines = Vec::new();
        for batch in &answer.batches {
            let batch = decode_batch(batch, &schema).unwrap();
            let row = |row| batch.columns().iter().map(move |cells| Value::of_cell(cells, row).to_string());
            lines.extend((0..batch.num_rows()).map(|at| row(at).collect::<Vec<_>>().join(" ")));
        }
        if lines.is_empty() { "no rows".to_string() } else { lines.join("\n") }
    }
}

fn batch(args: &mut ArgumentConsumer<'_>, leg: u32) -> Result<Absorb, Failure> {
    let epoch = epoch(args)?;
    let from = position(args.take_key("from").ok_or("from=?")?)?;
    let to = position(args.take_key("to").ok_or("to=?")?)?;
    let (read, settled) = (number(args, "read")?.unwrap_or(0), number(args, "settled")?.unwrap_or(0));
    let mut rows: Vec<(i8, Value, Value)> = Vec::new();
    while let Some(row) = args.next_pos() {
        let [sign, group, number] = row.split('/').collect::<Vec<_>>()[..] else { return Err("a row?".into()) };
        rows.push((if sign == "take" { -1 } else { 1 }, Value::String(group.into()), Value::Int(number.parse()?)));
    }
    let program = Program::compile(&v())?;
    let table = t().schema;
    let cells = program.leg(0).columns().iter().map(|name| {
        let (_, column) = table.column(name).expect("a column of t");
        let cells: Vec<Value> = rows.iter().map(|(_, g, i)| if name == "g" { g.clone() } else { i.clone() }).collect();
        (name.as_str(), Value::to_array(&cells, column.column_type), true)
    });
    let changes = RecordBatch::try_from_iter_with_nullable(cells)?;
    let signs: Int8Array = rows.iter().map(|(sign, ..)| Some(*sign)).collect();
    let keys: Vec<Key> = (0..rows.len() as i64).map(|k| encode_key(&[Value::Int(k)], &[ColumnType::Int64])).collect();
    let sequences = vec![Sequence(1); rows.len()];
    let delta = program.leg(0).run(&changes, &signs, &keys, &sequences, false).map_err(|failure| failure.message)?;
    let ops: Vec<u8> = delta.ops.iter().map(|op: &Op| *op as u8).collect();
    Ok(Absorb {
        source: Source { leg, feeder: FEEDER },
        epoch,
        from,
        to,
        rows: encode_batch(&delta.rows),
        ops: ops.into(),
        changes: delta.rows.num_rows() as u64,
        read,
        settled,
    })
}

fn number(args: &mut ArgumentConsumer<'_>, key: &str) -> Result<Option<u64>, Failure> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

fn epoch(args: &mut ArgumentConsumer<'_>) -> Result<u64, Failure> {
    let (term, attempt) = args.next_pos().and_then(|text| text.split_once('.')).ok_or("TERM.ATTEMPT?")?;
    Ok((term.parse::<u64>()? << 24) + attempt.parse::<u64>()?)
}

fn shown_epoch(epoch: u64) -> String {
    format!("{}.{}", epoch >> 24, epoch & 0xff_ffff)
}

fn position(text: &str) -> Result<FillPosition, Failure> {
    let (done, within) = text.split_once("..").map_or((text, None), |(done, within)| (done, Some(within)));
    let done = if done == "none" { None } else { Some(Sequence(done.parse()?)) };
    let within = within.map(|within| -> Result<_, Failure> {
        let (upto, key) = within.split_once('/').ok_or("UPTO/KEY?")?;
        let key = Key(key.as_bytes().to_vec().into());
        Ok((Sequence(upto.parse()?), Position { key, sequence: Sequence(0) }))
    });
    Ok(FillPosition { done, within: within.transpose()? })
}

fn shown_position(position: &FillPosition) -> String {
    let done = position.done.map_or("none".to_string(), |done| done.to_string());
    match &position.within {
        None => done,
        Some((upto, position)) => format!("{done}..{upto}/{}", String::from_utf8_lossy(&position.key.0)),
    }
}

fn shown_taken(taken: &Taken) -> String {
    match taken {
        Taken::At(position, read) => format!("at {}, {read} read", shown_position(position)),
        Taken::Deposed { epoch } => format!("deposed by {}", shown_epoch(*epoch)),
        Taken::Failed { message } => format!("failed: {message}"),
        Taken::Gone => "gone".to_string(),
    }
}

fn shown_leg(leg: &Leg) -> String {
    let known = |sequence: Option<Sequence>| sequence.map_or("-".to_string(), |sequence| sequence.to_string());
    let mut shown = format!(
        "epoch {} ({} takeovers, {} retries), round {}, done {}, upto {}, {} rows, since {}",
        shown_epoch(leg.epoch),
        leg.takeovers,
        leg.retries,
        leg.round,
        known(leg.done),
        known(leg.upto),
        leg.rows,
        leg.at.0,
    );
    shown.push_str(if leg.is_live { ", live" } else { "" });
    shown.push_str(if leg.is_paused { ", paused" } else { "" });
    shown.push_str(&leg.rate_limit.map_or(String::new(), |rate| format!(", rate {rate}")));
    shown.push_str(&leg.failed.as_ref().map_or(String::new(), |why| format!(", failed: {why}")));
    shown
}
