//! The steps of a scenario, one after the other: each waits for the one before, and its failure ends the run.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use engine::frontend::Output;
use engine::{Error, Result};
use madsim::task::JoinHandle;

use super::clients::Clients;
use super::hub::{Hub, It, now};
use super::outcome::Outcome;
use super::strike::Striker;
use super::watch;
use crate::cluster::Cluster;
use crate::report::text::counted;
use crate::scenario::{Action, Load, Statement, Step, Unknown, Until, Wait};

/// What a statement without a time of its own gets.
const WITHIN: Duration = Duration::from_secs(60);
/// What one gets that is resent until it is answered.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Why the steps did not go through.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What kind of failure it is.
    pub outcome: Outcome,
    /// What went wrong, with the line of the scenario.
    pub what: String,
}

/// Runs the steps.
pub struct Steps {
    cluster: Cluster,
    hub: Hub,
    clients: Clients,
    striker: Striker,
    started: BTreeMap<String, JoinHandle<Result<(), Failed>>>,
    /// How many events of each condition earlier waits have used up.
    waited: BTreeMap<usize, u64>,
}

impl Steps {
    /// Nothing done yet.
    pub fn new(cluster: Cluster, hub: Hub, clients: Clients, striker: Striker) -> Steps {
        Steps { cluster, hub, clients, striker, started: BTreeMap::new(), waited: BTreeMap::new() }
    }

    /// Runs all of them, and waits for statements that were started and never joined.
    pub async fn run(&mut self, steps: &[Step]) -> Result<(), Failed> {
        for step in steps {
            self.step(step).await?;
        }
        for (name, started) in std::mem::take(&mut self.started) {
            self.join(&name, started).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<(), Failed> {
        let at_line = |failed: Failed| Failed { what: format!("line {}: {}", step.line, failed.what), ..failed };
        match &step.action {
            Action::Sql(statement) => self.sql(step.line, statement).await.map_err(at_line)?,
            Action::Load(load) => self.load(step.line, load).await.map_err(at_line)?,
            Action::Join(name) => {
                let Some(started) = self.started.remove(name) else {
                    return Err(at_line(wrong(format!("nothing was started as {name:?}"))));
                };
                self.join(name, started).await.map_err(at_line)?;
            }
            Action::Wait(wait) => self.wait(wait).await.map_err(at_line)?,
            Action::Check(sql) => check(&self.clients, sql).await.map_err(at_line)?,
            Action::Sleep(period) => madsim::time::sleep(period.duration()).await,
            Action::Repeat { times, steps } => {
                for _ in 0..*times {
                    for step in steps {
                        Box::pin(self.step(step)).await?;
                    }
                }
            }
            Action::Fault(fault) => {
                let label = format!("the step of line {}", step.line);
                let struck = self.striker.strike("step", &label, fault, It::default()).await;
                let told = if struck { fault.to_string() } else { format!("{fault}: nobody to hit") };
                self.hub.state().story.step(step.line, told);
            }
        }
        self.hub.note("step", &format!("step of line {} done", step.line));
        Ok(())
    }

    async fn join(&mut self, name: &str, started: JoinHandle<Result<(), Failed>>) -> Result<(), Failed> {
        started.await.map_err(|err| wrong(format!("{name}: {err}")))?
    }

    async fn sql(&mut self, line: u32, statement: &Statement) -> Result<(), Failed> {
        let (clients, hub) = (self.clients.clone(), self.hub.clone());
        let node = statement
            .node
            .as_ref()
            .and_then(|target| self.striker.nodes("sql", target, It::default()).first().copied());
        if statement.node.is_some() && node.is_none() {
            return Err(wrong("there is no such node now".to_string()));
        }
        let task = run_statement(clients, hub, line, statement.clone(), node);
        match &statement.start {
            None => task.await,
            Some(name) => {
                self.started.insert(name.clone(), madsim::task::spawn(task));
                Ok(())
            }
        }
    }

    async fn load(&mut self, line: u32, load: &Load) -> Result<(), Failed> {
        let task = run_load(self.clients.clone(), self.hub.clone(), line, load.clone());
        match &load.start {
            None => task.await,
            Some(name) => {
                self.started.insert(name.clone(), madsim::task::spawn(task));
                Ok(())
            }
        }
    }

    async fn wait(&mut self, wait: &Wait) -> Result<(), Failed> {
        let counter = match &wait.until {
            Until::Event(condition) => Some(self.hub.state().count(condition)),
            _ => None,
        };
        let used = counter.map_or(0, |counter| *self.waited.entry(counter).or_default());
        let deadline = now() + wait.within.duration();
        let mut last = String::new();
        while now() < deadline {
            match self.holds(&wait.until, counter, used).await {
                Ok(()) => {
                    if let Some(counter) = counter {
                        self.waited.insert(counter, self.hub.state().counted(counter));
                    }
                    return Ok(());
                }
                Err(why) => last = why,
            }
            let mut pulse = self.hub.pulse();
            let _ = madsim::time::timeout(Duration::from_millis(200), pulse.changed()).await;
        }
        Err(Failed { outcome: Outcome::Liveness, what: format!("waited {} in vain: {last}", wait.within) })
    }

    async fn holds(&self, until: &Until, counter: Option<usize>, used: u64) -> Result<(), String> {
        match until {
            Until::Ready(name) => {
                self.clients.learn().await.map_err(|err| err.to_string())?;
                self.hub.state().unready(name).map_or(Ok(()), Err)
            }
            Until::Leader(regions) => {
                let regions = self.hub.state().regions(regions);
                if regions.is_empty() {
                    return Err("there is no such region".into());
                }
                for region in regions {
                    let leader = self.hub.state().leader(region);
                    let Some(leader) = leader.filter(|leader| self.cluster.is_up(*leader)) else {
                        return Err(format!("{region} has no leader"));
                    };
                    match watch::status(&self.cluster, leader, region).await {
                        Some(status) if status.is_leader => {}
                        _ => return Err(format!("{leader} does not lead {region}")),
                    }
                }
                Ok(())
            }
            Until::Converged(regions) => {
                let regions = self.hub.state().regions(regions);
                match watch::apart(&self.cluster, &self.hub, &regions).await {
                    None => Ok(()),
                    Some(why) => Err(why),
                }
            }
            Until::Up(target) => {
                let nodes = self.striker.nodes("wait", target, It::default());
                nodes
                    .iter()
                    .all(|node| self.cluster.is_up(*node))
                    .then_some(())
                    .ok_or_else(|| format!("{target} is down"))
            }
            Until::Down(target) => {
                let nodes = self.striker.nodes("wait", target, It::default());
                nodes
                    .iter()
                    .all(|node| !self.cluster.is_up(*node))
                    .then_some(())
                    .ok_or_else(|| format!("{target} is up"))
            }
            Until::Event(condition) => {
                let seen = counter.map_or(0, |counter| self.hub.state().counted(counter));
                (seen > used).then_some(()).ok_or_else(|| format!("no {condition}"))
            }
            Until::Fired(rule) => {
                (self.hub.state().struck(rule) > 0).then_some(()).ok_or_else(|| format!("rule {rule} has not struck"))
            }
        }
    }
}

async fn run_statement(
    clients: Clients,
    hub: Hub,
    line: u32,
    statement: Statement,
    node: Option<engine::types::NodeId>,
) -> Result<(), Failed> {
    let within = match (&statement.within, statement.unknown) {
        (Some(within), _) => within.duration(),
        (None, Unknown::Retry) => PATIENCE,
        (None, Unknown::Fail) => WITHIN,
    };
    let client = statement.client.as_deref().unwrap_or("steps");
    let answer = match node {
        None => clients.execute(client, &statement.sql, within).await.map(|output| match output {
            Output::Rows { batches, .. } => Some(batches.iter().map(|batch| batch.num_rows() as u64).sum()),
            Output::Affected(rows) => Some(rows),
            Output::Done => None,
        }),
        Some(node) => clients.execute_at(client, node, &statement.sql, within).await,
    };
    let told = match &answer {
        Ok(rows) => format!("{}: {}", head(&statement.sql), rows.map_or("done".into(), |rows| counted(rows, "row"))),
        Err(err) => format!("{}: {}", head(&statement.sql), err.code()),
    };
    hub.note("answer", &told);
    hub.state().story.step(line, told);
    match (answer, &statement.error) {
        (Ok(rows), None) => {
            if let (Some(wanted), found) = (statement.rows, rows)
                && found != Some(wanted)
            {
                return Err(wrong(format!("{wanted} rows expected, {found:?} found")));
            }
        }
        (Err(err), Some(code)) if err.code() == code => return Ok(()),
        (Ok(_), Some(code)) => return Err(wrong(format!("the error {code} was expected, and it succeeded"))),
        (Err(err), wanted) => {
            let wanted = wanted.as_ref().map_or(String::new(), |code| format!(" (expected {code})"));
            return Err(failed(&err, format!("{err}{wanted}")));
        }
    }
    let changes_catalog = ["create", "drop", "alter", "refill"]
        .iter()
        .any(|verb| statement.sql.trim_start().to_lowercase().starts_with(verb));
    if changes_catalog {
        clients.learn().await.map_err(|err| failed(&err, format!("after the statement: {err}")))?;
    }
    Ok(())
}

async fn run_load(clients: Clients, hub: Hub, line: u32, load: Load) -> Result<(), Failed> {
    let Some(table) = clients.table(&load.table) else {
        return Err(wrong(format!("there is no table {}", load.table)));
    };
    // Data that is not what the table needs is no fault of the product's.
    let unfit = |what: String| Failed { outcome: Outcome::Harness, what };
    let batches = clients.rows(&table, &load).map_err(unfit)?;
    let client = load.client.as_deref().unwrap_or("steps");
    let within = match (&load.within, load.unknown) {
        (Some(within), _) => within.duration(),
        (None, Unknown::Retry) => PATIENCE,
        (None, Unknown::Fail) => WITHIN,
    };
    let deadline = now() + within;
    let mut rows = 0;
    for (number, batch) in batches.into_iter().enumerate() {
        let file = load.ingest.as_ref().map(|name| format!("{name}/{number}"));
        rows += clients
            .insert(client, &table, batch, file.as_deref(), deadline.saturating_sub(now()))
            .await
            .map_err(|err| failed(&err, format!("load of {}: {err}", load.table)))?;
    }
    let told = format!("load of {}: {rows} rows", load.table);
    hub.note("answer", &told);
    hub.state().story.step(line, told);
    Ok(())
}

/// A query that must return nothing.
pub async fn check(clients: &Clients, sql: &str) -> Result<(), Failed> {
    match clients.execute("check", sql, WITHIN).await {
        Ok(Output::Rows { batches, .. }) => {
            let count: usize = batches.iter().map(|batch| batch.num_rows()).sum();
            if count == 0 {
                return Ok(());
            }
            let shown: Vec<RecordBatch> =
                batches.iter().map(|batch| batch.slice(0, batch.num_rows().min(10))).collect();
            let rows = arrow::util::pretty::pretty_format_batches(&shown);
            let rows = rows.map_or_else(|err| err.to_string(), |rows| rows.to_string());
            Err(wrong(format!(
                "{}: must return no row, returns {}\n{rows}",
                one_line(sql),
                counted(count as u64, "row")
            )))
        }
        Ok(_) => Err(wrong(format!("{sql}: is no query"))),
        Err(err) => Err(failed(&err, format!("{sql}: {err}"))),
    }
}

fn one_line(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a person recognises a statement by.
fn head(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().take(3).collect();
    words.join(" ")
}

fn wrong(what: String) -> Failed {
    Failed { outcome: Outcome::Safety, what }
}

/// What could not be answered in time is the liveness's matter, all else is wrong.
pub(super) fn failed(err: &Error, what: String) -> Failed {
    let late = err.is_retryable() || matches!(err, Error::Deadline { .. } | Error::Partial { .. });
    Failed { outcome: if late { Outcome::Liveness } else { Outcome::Safety }, what }
}
