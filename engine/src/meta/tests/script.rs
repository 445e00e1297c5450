//! Golden scripts: `testscripts/meta/*`. Each command is an entry or a question; the output is the outcome and what
//! changed of the state, `-` before and `+` after.
//!
//! - `bootstrap nodes=N [results=N] [regions=N]`, `session`
//! - `create NAME by=SESSION.STATEMENT [regions=N] [replicas=N] [if_not_exists]`
//! - `view NAME of=NAME/NAME .. by=SESSION.STATEMENT [regions=N]`: creates a materialized view
//! - `drop NAME by=SESSION.STATEMENT [if_exists] [view] [cascade]`
//! - `refill NAME by=SESSION.STATEMENT`
//! - `control JOB (pause | resume | cancel | rate [rate=N]) by=SESSION.STATEMENT`
//! - `fail TABLE REASON`: whoever fills that view says so
//! - `clock MS`: of the leader that proposes from now on
//! - `truncate NAME by=SESSION.STATEMENT`
//! - `alter NAME version=N [table=ID] (add=COLUMN | drop=COLUMN | rename=COLUMN:NAME | index=NAME:COLUMN | unindex=NAME)
//!   by=SESSION.STATEMENT`
//! - `job PROCEDURE (pause | resume | cancel | N) by=SESSION.STATEMENT`: what is wanted of the filling of an index or view
//! - `move NAME REGION from=NODE to=NODE by=SESSION.STATEMENT`
//! - `repair REGION from=NODE among=N,N ..`, a region as `t1/0`
//! - `advance PROCEDURE (all | refused | given_up | r1 r2 .. | REGION .. | t1/0 ..) [from=STEP] [term=TERM]`: that took effect
//! - `asks PROCEDURE [attempt=N]`: what its runner asks of which node
//! - `restart`: the log is replayed from nothing, and a snapshot taken and restored
//! - `show`: everything

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Context};

use super::{added, bootstrap_with, table, view};
use crate::error::{Error, Invalid};
use crate::meta::catalog::{RegionDef, TableDef};
use crate::meta::request::Control;
use crate::meta::{
    Answer, Command, Decision, Entry, Limits, MetaState, Outcome, Procedure, ProcedureState, Progress, Reached, Target,
};
use crate::server::message::{Replacement, Request, ViewChange};
use crate::types::{Alteration, NodeId, ProcedureId, RegionId, ReplicaId, SessionId, TableId, Timestamp};

#[test]
fn scripts() {
    crate::testscripts::run_all::<Script>("meta");
}

#[derive(Default)]
struct Script {
    state: MetaState,
    log: Vec<Entry>,
    clock: Timestamp,
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Result<String, Box<dyn StdError>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "bootstrap" => {
                let limits = Limits {
                    results: number(&mut args, "results")?.unwrap_or(100),
                    table_regions: number(&mut args, "regions")?.unwrap_or(16),
                };
                let nodes = number(&mut args, "nodes")?.ok_or("nodes=?")?;
                self.apply(bootstrap_with(nodes, limits))
            }
            "session" => self.apply(Command::OpenSession),
            "create" => {
                let name = args.next_pos().ok_or("create what?")?;
                let request = request(&mut args)?;
                let mut table = table(name, u32::try_from(number(&mut args, "regions")?.unwrap_or(1))?);
                table.replicas = number(&mut args, "replicas")?.map(|replicas| replicas as u32);
                table.if_not_exists = flag(&mut args, "if_not_exists");
                self.apply(Command::StartCreate { table: Box::new(table), request })
            }
            "drop" => {
                let name = args.next_pos().ok_or("drop what?")?.to_string();
                let request = request(&mut args)?;
                let given: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
                let has = |flag: &str| given.contains(&flag);
                let (if_exists, is_view, cascade) = (has("if_exists"), has("view"), has("cascade"));
                self.apply(Command::StartDrop { name, if_exists, is_view, cascade, request })
            }
            "view" => {
                let name = args.next_pos().ok_or("view what?")?;
                let feeders = args.take_key("of").ok_or("of=NAME/NAME?")?.split('/');
                let feeders: Option<Vec<&TableDef>> = feeders.map(|name| self.state.table(name)).collect();
                let regions = u32::try_from(number(&mut args, "regions")?.unwrap_or(1))?;
                let table = view(name, regions, &feeders.ok_or("there is no such feeder")?);
                let request = request(&mut args)?;
                self.apply(Command::StartCreate { table: Box::new(table), request })
            }
            "refill" => {
                let name = args.next_pos().ok_or("refill what?")?.to_string();
                let request = request(&mut args)?;
                self.apply(Command::StartRefill { name, request })
            }
            "control" => {
                let job = procedure(&mut args)?;
                let control = match args.next_pos() {
                    Some("pause") => Control::Pause,
                    Some("resume") => Control::Resume,
                    Some("cancel") => Control::Cancel,
                    Some("rate") => Control::RateLimit(number(&mut args, "rate")?),
                    _ => return Err("pause, resume, cancel or rate?".into()),
                };
                let request = request(&mut args)?;
                self.apply(Command::StartControl { job, control, request })
            }
            "fail" => {
                let view = args.next_pos().and_then(|id| id.strip_prefix('t')).ok_or("which view?")?;
                let (view, reason) = (TableId(view.parse()?), args.next_pos().ok_or("why?")?.to_string());
                self.apply(Command::StartFail { view, reason })
            }
            "clock" => {
                self.clock = Timestamp(args.next_pos().ok_or("when?")?.parse()?);
                String::new()
            }
            "truncate" => {
                let name = args.next_pos().ok_or("truncate what?")?.to_string();
                let request = request(&mut args)?;
                self.apply(Command::StartTruncate { name, request })
            }
            "alter" => {
                let name = args.next_pos().ok_or("alter what?")?.to_string();
                let version = number(&mut args, "version")?.ok_or("version=?")?;
                let of = match number(&mut args, "table")? {
                    Some(id) => TableId(u32::try_from(id)?),
                    None => self.state.table(&name).map(|table| table.id).unwrap_or_default(),
                };
                let mut alterations = Vec::new();
                if let Some(name) = args.take_key("add") {
                    alterations.push(added(name));
                }
                if let Some(column) = args.take_key("drop") {
                    alterations.push(Alteration::Drop { column: column.to_string() });
                }
                if let Some((column, to)) = args.take_key("rename").and_then(|names| names.split_once(':')) {
                    alterations.push(Alteration::Rename { column: column.to_string(), to: to.to_string() });
                }
                if let Some((name, column)) = args.take_key("index").and_then(|names| names.split_once(':')) {
                    alterations.push(Alteration::AddIndex { name: name.into(), columns: vec![column.into()] });
                }
                if let Some(name) = args.take_key("unindex") {
                    alterations.push(Alteration::DropIndex { name: name.to_string() });
                }
                let request = request(&mut args)?;
                self.apply(Command::StartAlter { name, of: (of, version), alterations, request })
            }
            "job" => {
                let job = procedure(&mut args)?;
                let control = match args.next_pos().ok_or("what becomes of it?")? {
                    "pause" => Control::Pause,
                    "resume" => Control::Resume,
                    "cancel" => Control::Cancel,
                    rate => Control::RateLimit(Some(rate.parse()?)),
                };
                let request = request(&mut args)?;
                self.apply(Command::StartControl { job, control, request })
            }
            "move" => {
                let name = args.next_pos().ok_or("move a replica of what?")?.to_string();
                let region = args.next_pos().ok_or("of which region?")?.parse()?;
                let node = |number: Option<u64>| number.map(NodeId).ok_or("from=? to=?");
                let (from, to) = (node(number(&mut args, "from")?)?, node(number(&mut args, "to")?)?);
                let request = request(&mut args)?;
                self.apply(Command::StartMove { name, region, from, to, request })
            }
            "repair" => {
                let (table, region) = args.next_pos().and_then(|id| id.split_once('/')).ok_or("which region?")?;
                let region = RegionId::new(TableId(table.trim_start_matches('t').parse()?), region.parse()?);
                let from = NodeId(number(&mut args, "from")?.ok_or("from=?")?);
                let among = args.take_key("among").ok_or("among=?")?.split(',').map(|node| node.parse().map(NodeId));
                self.apply(Command::StartRepair { region, from, among: among.collect::<Result<_, _>>()? })
            }
            "advance" => {
                let id = procedure(&mut args)?;
                let known = self.state.procedure(id);
                let from = number(&mut args, "from")?.or(known.map(|known| u64::from(known.step)));
                let term = number(&mut args, "term")?.or(known.map(|known| known.term.max(1)));
                let done: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
                let progress = progress(known, &done)?;
                self.apply(Command::Advance {
                    procedure: id,
                    from: u32::try_from(from.ok_or("it has ended: from=?")?)?,
                    term: term.ok_or("it has ended: term=?")?,
                    progress,
                })
            }
            "asks" => {
                let id = procedure(&mut args)?;
                let attempt = u32::try_from(number(&mut args, "attempt")?.unwrap_or(0))?;
                let known = self.state.procedure(id).ok_or("it has ended")?;
                let mut output = String::new();
                for action in known.next(known.term.max(1), attempt) {
                    writeln!(output, "{}: {}", action.node, shown_request(&action.request))?;
                }
                output
            }
            "restart" => {
                let mut replayed = MetaState::new();
                self.log.iter().for_each(|entry| {
                    replayed.apply_entry(Entry::decode(&entry.encode()).expect("was encoded"));
                });
                assert_eq!(replayed, self.state, "the log gives another state when it is replayed");
                self.state = MetaState::decode(&self.state.encode())?;
                assert_eq!(replayed, self.state, "a snapshot is another state");
                "the same state\n".to_string()
            }
            "show" => lines(&self.state).into_iter().map(|line| line + "\n").collect(),
            name => return Err(format!("no command {name:?}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Script {
    fn apply(&mut self, command: Command) -> String {
        let before = lines(&self.state);
        let entry = command.at(self.clock);
        self.log.push(entry.clone());
        let outcome = self.state.apply_entry(entry);
        self.state.check();
        let after = lines(&self.state);
        let mut output = shown_outcome(&outcome) + "\n";
        for line in before.iter().filter(|line| !after.contains(line)) {
            writeln!(output, "- {line}").expect("a string takes it");
        }
        for line in after.iter().filter(|line| !before.contains(line)) {
            writeln!(output, "+ {line}").expect("a string takes it");
        }
        output
    }
}

fn number(args: &mut ArgumentConsumer<'_>, key: &str) -> Result<Option<u64>, Box<dyn StdError>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

/// A flag is the last positional argument.
fn flag(args: &mut ArgumentConsumer<'_>, name: &str) -> bool {
    args.next_pos().is_some_and(|arg| {
        assert_eq!(arg, name);
        true
    })
}

fn request(args: &mut ArgumentConsumer<'_>) -> Result<(SessionId, u64), Box<dyn StdError>> {
    let by = args.take_key("by").ok_or("by=SESSION.STATEMENT?")?;
    let (session, statement) = by.split_once('.').ok_or("by=SESSION.STATEMENT?")?;
    Ok((SessionId(session.parse()?), statement.parse()?))
}

fn procedure(args: &mut ArgumentConsumer<'_>) -> Result<ProcedureId, Box<dyn StdError>> {
    let id = args.next_pos().and_then(|id| id.strip_prefix('p')).ok_or("which procedure?")?;
    Ok(ProcedureId(id.parse()?))
}

fn progress(known: Option<&Procedure>, done: &[&str]) -> Result<Progress, Box<dyn StdError>> {
    if done == ["refused"] {
        return Ok(Progress::Refused(Error::invalid(Invalid::Mismatch, "node n2 refuses")));
    }
    if done == ["given_up"] {
        return Ok(Progress::GivenUp(Error::invalid(Invalid::Request, "node n4 is dead")));
    }
    if done == ["all"] {
        let known = known.ok_or("it has ended: nothing is open")?;
        let (mut replicas, mut regions) = (BTreeSet::new(), BTreeSet::new());
        for action in known.next(1, 0) {
            match action.target {
                Target::Replica(replica) => replicas.insert(replica),
                Target::Region(region) => regions.insert(region),
            };
        }
        return Ok(if replicas.is_empty() { Progress::Regions(regions) } else { Progress::Replicas(replicas) });
    }
    if done.iter().all(|name| name.starts_with('r')) {
        let replicas: Result<_, _> = done.iter().map(|name| name[1..].parse().map(ReplicaId)).collect();
        return Ok(Progress::Replicas(replicas?));
    }
    let known = known.ok_or("it has ended: no regions")?;
    let region = |name: &&str| -> Result<RegionId, std::num::ParseIntError> {
        match name.strip_prefix('t').and_then(|name| name.split_once('/')) {
            Some((table, number)) => Ok(RegionId::new(TableId(table.parse()?), number.parse()?)),
            None => Ok(RegionId::new(known.subject.id(), name.parse()?)),
        }
    };
    Ok(Progress::Regions(done.iter().map(region).collect::<Result<_, _>>()?))
}

fn shown_request(request: &Request) -> String {
    match request {
        Request::CreateReplica { region, replica, table, by } => {
            // A log begins with the first version.
            let version = table.schema.version;
            let version = if version == 1 { String::new() } else { format!(" with version {version}") };
            format!(
                "create replica {replica} of {region}{version} ({} step {} term {})",
                by.procedure, by.step, by.term
            )
        }
        Request::DropReplica { region, replica, by } => {
            format!("drop replica {replica} of {region} ({} step {} term {})", by.procedure, by.step, by.term)
        }
        Request::InitGroup { region, members } => {
            let members: Vec<String> = members.iter().map(|(replica, node)| format!("{replica}@{node}")).collect();
            format!("form {region} of {}", members.join(" "))
        }
        Request::Alter { region, by, schema } => {
            let version = schema.version;
            format!("alter {region} to version {version} ({} step {} term {})", by.procedure, by.step, by.term)
        }
        Request::AddLearner { region, change, by } => {
            format!("add {} to {region} ({} step {} term {})", shown_change(change), by.procedure, by.step, by.term)
        }
        Request::ChangeMembers { region, change, by } => {
            format!("vote of {region} to {} ({} step {} term {})", shown_change(change), by.procedure, by.step, by.term)
        }
        Request::RemoveLearner { region, change, by } => {
            format!("do not add {} to {region} ({} step {})", shown_change(change), by.procedure, by.step)
        }
        Request::View { region, change, by } => {
            let what = match change {
                ViewChange::Attach { legs, view } => format!("attach legs {legs:?} of {}", view.id),
                other => format!("{other:?}"),
            };
            format!("tell {region}: {what} ({} step {} term {})", by.procedure, by.step, by.term)
        }
        Request::Legs { region } => format!("how far are the legs of {region}?"),
        Request::Status { region: Some(region) } => format!("who leads {region}?"),
        other => format!("{other:?}"),
    }
}

fn shown_change(change: &Replacement) -> String {
    let ((joins, to), (leaves, from)) = (change.joins, change.leaves);
    let stay: Vec<String> = change.stay.iter().map(ToString::to_string).collect();
    format!("{joins}@{to} for {leaves}@{from} beside {}", stay.join(" "))
}

fn shown_outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Session(session) => format!("session {session}"),
        Outcome::Started { procedure, reached } => format!("started {procedure}: {}", shown_steps(*procedure, reached)),
        Outcome::Running { procedure } => format!("running as {procedure}"),
        Outcome::Decided(decision) => shown_decision(decision),
        Outcome::Held { by } => format!("held by {by}"),
        Outcome::Advanced { reached } => {
            let steps = reached.first().map(|first| shown_steps(first.procedure, reached));
            format!("advanced: {}", steps.unwrap_or_else(|| "in part".to_string()))
        }
        Outcome::Refused(error) => format!("refused: {error}"),
        Outcome::Bootstrapped => "bootstrapped".to_string(),
        Outcome::Stale => "stale".to_string(),
        Outcome::NoCluster => "no cluster".to_string(),
    }
}

/// The steps of `own`, then those of others.
fn shown_steps(own: ProcedureId, reached: &[Reached]) -> String {
    let (own, others): (Vec<&Reached>, Vec<&Reached>) = reached.iter().partition(|reached| reached.procedure == own);
    let mut shown = own.iter().map(|reached| reached.step.name()).collect::<Vec<_>>().join(", ");
    for Reached { procedure, kind, step } in others {
        write!(shown, "; {procedure} {kind}: {}", step.name()).expect("a string takes it");
    }
    shown
}

fn shown_decision(decision: &Result<Decision, Error>) -> String {
    match decision {
        Ok(Decision::Created(table)) => format!("created {} {:?}", table.id, table.name),
        Ok(Decision::Dropped(existed)) => format!("dropped: {existed}"),
        Ok(Decision::Truncated) => "truncated".to_string(),
        Ok(Decision::Altered(table)) => {
            let columns: Vec<&str> = table.schema.columns().iter().map(|column| column.name.as_str()).collect();
            format!("altered {} to version {}: {}", table.id, table.schema.version, columns.join(" "))
        }
        Ok(Decision::Controlled) => "controlled".to_string(),
        Ok(Decision::Moved(table)) => format!("moved: {}", places(table).join(", ")),
        Err(error) => format!("error: {error}"),
    }
}

/// Where the replicas of each region are.
fn places(table: &TableDef) -> Vec<String> {
    let place = |region: &RegionDef| {
        let replicas: Vec<String> = region.replicas.iter().map(|(id, node)| format!("{id}@{node}")).collect();
        format!("{}: {}", region.id, replicas.join(" "))
    };
    table.regions.iter().map(place).collect()
}

/// The state, one line a fact.
fn lines(state: &MetaState) -> Vec<String> {
    let mut lines = Vec::new();
    for table in state.tables() {
        lines.push(format!("table {} {:?}", table.id, table.name));
        for index in table.schema.indexes() {
            let state = table.indexes[&index.id];
            let (rate, wanted) = (index.rate_limit.unwrap_or(0), if index.is_paused { "paused" } else { "goes on" });
            let is_ready = if state.is_ready { "ready" } else { "not ready" };
            let named = format!("index {} {:?} of {}", index.id, index.name, table.id);
            lines.push(format!("{named}: {}, {is_ready}, {wanted}, rate {rate}", state.job));
        }
    }
    for (table, view) in state.views() {
        let mut line = format!("view {} {:?}, job {} since {}", table.id, view.state, view.job, view.started_at.0);
        line.push_str(if view.is_paused { ", paused" } else { "" });
        line.push_str(&view.rate_limit.map_or(String::new(), |rate| format!(", rate {rate}")));
        lines.push(line);
    }
    for procedure in state.procedures() {
        for place in procedure.subject.table().map(places).unwrap_or_default() {
            lines.push(format!("{} places {place}", procedure.id));
        }
        let at = procedure.state.step().name();
        lines.push(format!("{} {} {at}, {}", procedure.id, procedure.kind(), shown_open(&procedure.state)));
    }
    for (request, answer) in state.answers() {
        let answer = match answer {
            Answer::Running(procedure) => format!("running as {procedure}"),
            Answer::Decided(decision) => shown_decision(decision),
        };
        lines.push(format!("statement {}.{}: {answer}", request.0.0, request.1));
    }
    lines
}

fn shown_open(state: &ProcedureState) -> String {
    let replicas = |ids: &BTreeSet<ReplicaId>| ids.iter().map(|id| format!(" {id}")).collect::<String>();
    let regions = |ids: &BTreeSet<RegionId>| ids.iter().map(|id| format!(" {id}")).collect::<String>();
    match state {
        ProcedureState::Prepared { open }
        | ProcedureState::Published { open }
        | ProcedureState::Undoing { open, .. }
        | ProcedureState::Unpublished { open } => format!("open:{}", replicas(open)),
        ProcedureState::ReplicasCreated { missing, open } | ProcedureState::GroupsFormed { missing, open } => {
            let missing = if missing.is_empty() { String::new() } else { format!(", later:{}", replicas(missing)) };
            format!("open:{}{missing}", regions(open))
        }
        ProcedureState::Indexing { index, open } => format!("{index}, open:{}", regions(open)),
        ProcedureState::Truncating { open } | ProcedureState::Altering { open, .. } => {
            format!("open:{}", regions(open))
        }
        ProcedureState::View(work) => format!("open:{}", regions(&work.open)),
        ProcedureState::Making(of)
        | ProcedureState::Joining(of)
        | ProcedureState::Switching(of)
        | ProcedureState::Leaving(of) => format!("{}: {}", of.region, shown_change(&of.change)),
        ProcedureState::Retracting { of, error } | ProcedureState::Withdrawing { of, error } => {
            format!("{}: {}, {error}", of.region, shown_change(&of.change))
        }
    }
}
