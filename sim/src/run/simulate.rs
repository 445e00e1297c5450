//! One run of a plan: the cluster, its clients and its faults; then calm, convergence, and the verdict.

use std::sync::Arc;
use std::time::Duration;

use engine::types::{NodeId, RegionId};
use madsim::runtime::{Handle, Runtime};
use tokio::sync::mpsc;

use super::Setup;
use super::clients::{Clients, as_text};
use super::hub::{Hub, It, Strike, now};
use super::live::Live;
use super::outcome::Outcome;
use super::report::{Checkpoint, Failure, ResultRows, SeedReport};
use super::self_test::{SelfTest, misbehave};
use super::steps::{Failed, Steps, check};
use super::strike::{Striker, rule_label};
use super::{watch, workload};
use crate::cluster::Cluster;
use crate::draw::Draws;
use crate::oracle::{LIVENESS, Violation};
use crate::plan::{Plan, PlannedFault};
use crate::scenario::Held;
use crate::scenario::target::Regions;
use crate::trace::{self, Listener, Trace};

/// Runs it, and in the middle of it the misbehaviour of a `test`. The caller's thread must be fresh.
pub fn run(setup: &Setup, live: &Arc<Live>, test: Option<SelfTest>) -> SeedReport {
    let plan = &setup.plan;
    let runtime = Runtime::with_seed_and_config(plan.seed, madsim::Config::default());
    let recorder = live.clone();
    let trace = Trace::heard_by(live.records().then(|| -> Listener { Arc::new(move |seen| recorder.event(seen)) }));
    runtime.block_on(async {
        for _ in 0..plan.stir {
            let _: u64 = madsim::rand::random();
            tokio::task::yield_now().await;
        }
        let (hub, struck, swapped) = Hub::new(plan, trace);
        let known = hub.clone();
        live.on_panic(move || summary(&known, SeedReport::new(Outcome::Panic)));
        if let Some(test) = test {
            madsim::task::spawn(misbehave(test, plan.seed, hub.clone()));
        }
        let mut run = Run { hub: hub.clone(), parts: None };
        let until = setup.until.map(|until| until.duration());
        let ended = tokio::select! {
            biased;
            () = failed(&hub) => Ended::Found,
            () = sleep_or_never(until) => Ended::Stopped,
            ended = run.all(plan, &setup.directory, struck, swapped) => match ended {
                Ok(()) => Ended::Finished,
                Err(failed) => Ended::Failed(failed),
            },
            () = madsim::time::sleep(plan.budget.duration()) => {
                let what = format!("the budget of {} of virtual time is used up", plan.budget);
                Ended::Failed(Failed { outcome: Outcome::Liveness, what })
            }
        };
        run.report(plan, ended).await
    })
}

/// How a run came to its end.
enum Ended {
    /// All was done, and what was to be judged at the end was judged.
    Finished,
    /// An oracle found something; the hub knows what.
    Found,
    /// At the virtual time that the user named.
    Stopped,
    /// Something was not as the scenario says, or did not end.
    Failed(Failed),
}

async fn sleep_or_never(until: Option<Duration>) {
    match until {
        Some(until) => madsim::time::sleep(until).await,
        None => std::future::pending().await,
    }
}

async fn failed(hub: &Hub) {
    let mut pulse = hub.pulse();
    while hub.state().failure().is_none() {
        if pulse.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct Run {
    hub: Hub,
    parts: Option<Parts>,
}

struct Parts {
    cluster: Cluster,
    clients: Clients,
    striker: Striker,
    result: Vec<ResultRows>,
}

impl Run {
    async fn all(
        &mut self,
        plan: &Plan,
        directory: &std::path::Path,
        mut struck: mpsc::UnboundedReceiver<Strike>,
        mut swapped: mpsc::UnboundedReceiver<(NodeId, RegionId)>,
    ) -> Result<(), Failed> {
        let draws = Draws::new(plan.seed);
        let hub = self.hub.clone();
        let trace = hub.trace().clone();
        let broken = |err: engine::Error| Failed {
            outcome: Outcome::Harness,
            what: format!("the cluster does not start: {err}"),
        };
        let cluster =
            Cluster::start(plan.cluster.nodes, &plan.cluster.options, &draws, &trace, &hub).await.map_err(broken)?;
        cluster.bootstrap().await.map_err(broken)?;
        let clients = Clients::new(cluster.clone(), hub.clone(), directory.to_path_buf());
        let striker = Striker::new(cluster.clone(), hub.clone(), draws.clone());
        self.parts = Some(Parts {
            cluster: cluster.clone(),
            clients: clients.clone(),
            striker: striker.clone(),
            result: Vec::new(),
        });

        madsim::task::spawn(sweep());
        let by_rules = striker.clone();
        madsim::task::spawn(async move {
            while let Some(strike) = struck.recv().await {
                let striker = by_rules.clone();
                madsim::task::spawn(async move {
                    if !strike.after.is_zero() {
                        madsim::time::sleep(strike.after).await;
                    }
                    let label = rule_label(&strike.rule);
                    if striker.strike(&strike.rule, &label, &strike.fault, strike.it).await {
                        if strike.fault.is_a_death() && !striker.has_killed(&label) {
                            return striker.hub().state().missed(&strike);
                        }
                        let what = strike.fault.to_string();
                        striker.hub().state().story.fault(&strike.rule, what, strike.seen);
                    }
                });
            }
        });
        let (watched, seen) = (cluster.clone(), hub.clone());
        madsim::task::spawn(async move {
            while let Some((node, region)) = swapped.recv().await {
                watch::compare(&watched, &seen, node, region).await;
            }
        });
        for fault in plan.faults.clone() {
            madsim::task::spawn(planned(striker.clone(), cluster.clone(), hub.clone(), fault));
        }
        for moment in 0..3 {
            madsim::task::spawn(look(cluster.clone(), hub.clone(), draws.clone(), moment));
        }

        let mut working = Vec::new();
        for planned in plan.workloads.clone() {
            working.push(madsim::task::spawn(workload::run(clients.clone(), planned)));
        }
        let mut steps = Steps::new(cluster.clone(), hub.clone(), clients.clone(), striker.clone());
        steps.run(&plan.steps).await?;
        for working in working {
            working.await.map_err(|err| Failed { outcome: Outcome::Harness, what: err.to_string() })??;
        }
        self.close(plan).await
    }

    /// After the storm: everything is lifted, the replicas come together, and what is there is judged.
    async fn close(&mut self, plan: &Plan) -> Result<(), Failed> {
        let Some(Parts { cluster, clients, striker, result }) = &mut self.parts else { return Ok(()) };
        self.hub.note("calm", "all faults are lifted");
        striker.calm();
        let options = cluster.options().clone();
        // A few elections, reconnections and retries at their slowest, and the replay of what was missed.
        let bound = Duration::from_millis(
            10 * options.election_max_ms + 10 * options.retry_max_ms + 5 * options.rpc_timeout_ms + 60_000,
        );
        clients.learn().await.map_err(|err| Failed {
            outcome: Outcome::Liveness,
            what: format!("the catalog cannot be read after the faults are over: {err}"),
        })?;
        let everything = || -> Vec<RegionId> { self.hub.state().regions(&Regions::All) };
        let deadline = now() + bound;
        loop {
            self.hub.state().asks_for_convergence();
            // In this order: what is under way makes and drops replicas and changes members.
            let unfinished = self.hub.state().unfinished();
            let apart = match unfinished {
                None => watch::apart(cluster, &self.hub, &everything()).await,
                unfinished => unfinished,
            };
            let apart = match apart {
                None => watch::stray(cluster, &self.hub).await,
                apart => apart,
            };
            let apart = apart.or_else(|| self.hub.state().behind());
            let Some(why) = apart else { break };
            if now() > deadline {
                let what = format!("not converged {} s after the faults were lifted: {why}", bound.as_secs());
                // Where that is excused, what there is can still be judged.
                if self.hub.state().excuse(&late(&what)) {
                    break;
                }
                return Err(Failed { outcome: Outcome::Liveness, what });
            }
            madsim::time::sleep(Duration::from_millis(200)).await;
        }
        if let Some((node, stop)) = cluster.stopped().first() {
            return Err(Failed { outcome: Outcome::Safety, what: format!("{node} stopped by itself: {stop}") });
        }
        for region in &everything() {
            let replicas = self.hub.state().replicas_of(*region);
            for (node, _) in replicas {
                watch::compare(cluster, &self.hub, node, *region).await;
            }
        }
        watch::look_at_views(cluster, &self.hub, &everything()).await;
        for node in cluster.ids() {
            watch::look_at_disk(cluster, &self.hub, node).await;
        }
        clients.compare_all().await.map_err(|err| Failed {
            outcome: Outcome::Liveness,
            what: format!("the tables cannot be read after the faults are over: {err}"),
        })?;
        for Held { line, sql } in &plan.expect.holds {
            let at_line = |failed: Failed| Failed { what: format!("line {line}: {}", failed.what), ..failed };
            check(clients, sql).await.map_err(at_line)?;
        }
        for query in &plan.expect.result {
            result.push(rows_of(clients, query).await?);
        }
        Ok(())
    }

    async fn report(self, plan: &Plan, ended: Ended) -> SeedReport {
        let mut report = SeedReport::new(Outcome::Pass);
        if let Some(parts) = &self.parts {
            report.ops = parts.clients.answered();
            report.history = parts.clients.history();
            report.effects =
                parts.striker.effects().iter().map(|(effect, did)| (effect.name().to_string(), *did)).collect();
            report.result = parts.result.clone();
        }
        let is_whole = matches!(ended, Ended::Finished);
        if let Ended::Failed(Failed { outcome: Outcome::Liveness, what }) = &ended {
            self.hub.state().excuse(&late(what));
        }
        let mut report = summary(&self.hub, report);
        let state = self.hub.state();
        if let Some((failure, signature)) = state.failure() {
            report.outcome = Outcome::Safety;
            report.signature = signature.clone();
            report.failure = Some(failure.clone());
            return report;
        }
        match ended {
            Ended::Stopped => return report,
            Ended::Failed(Failed { outcome, what })
                if outcome != Outcome::Liveness || !report.exempted.contains_key(LIVENESS) =>
            {
                let at_ms = Some(report.virtual_ms);
                let signature = format!("{outcome}: {}", what.split([':', '\n']).next().unwrap_or_default());
                let oracle = if outcome == Outcome::Liveness { LIVENESS } else { "" };
                let around = state.around();
                report.failure =
                    Some(Failure { oracle: oracle.to_string(), what, at_ms, evidence: Vec::new(), around });
                report.outcome = outcome;
                report.signature = signature;
                return report;
            }
            Ended::Finished | Ended::Found | Ended::Failed(_) => {}
        }
        let mut vacuous = state.idle_rules();
        let regions_of = |table: &str| {
            let of_table = state.model.tables().filter(|known| known.name == table).last();
            of_table.map_or(1, |table| table.regions.len() as u32)
        };
        if let Some(Parts { striker, .. }) = &self.parts {
            vacuous.extend(state.tally.unproved(&regions_of, &striker.effects()));
            let met = plan.rules.iter().filter(|rule| state.struck(&rule.name) > 0);
            let met: Vec<String> = met.map(|rule| rule_label(&rule.name)).collect();
            vacuous.extend(striker.idle(&plan.faults, &met));
        }
        let idle = report.oracles.iter().filter(|(_, count)| **count == 0);
        let idle = idle.filter(|(oracle, _)| state.is_due(oracle) && !report.exempted.contains_key(*oracle));
        vacuous.extend(idle.map(|(oracle, _)| format!("the oracle {oracle} judged nothing")));
        let reads = !plan.expect.result.is_empty() || !plan.expect.holds.is_empty();
        if reads && !is_whole {
            vacuous.push("it did not come to its end, where `result` and `holds` are asked".to_string());
        }
        if !vacuous.is_empty() {
            let what = vacuous.join("; ");
            return report.turned(Outcome::Vacuous, "vacuous", what);
        }
        report
    }
}

/// The run itself finds that it does not end.
fn late(what: &str) -> Violation {
    let signature = what.split([':', '\n']).next().unwrap_or_default().to_string();
    Violation { oracle: LIVENESS, signature, evidence: vec![what.to_string()] }
}

fn summary(hub: &Hub, mut report: SeedReport) -> SeedReport {
    let trace = hub.trace();
    let state = hub.state();
    report.fingerprint = trace.fingerprint().to_string();
    report.events = trace.events();
    let checkpoint = |point: trace::Checkpoint| Checkpoint {
        events: point.events,
        virtual_ms: point.at.as_millis() as u64,
        hash: point.state.to_string(),
    };
    report.checkpoints = trace.checkpoints().into_iter().map(checkpoint).collect();
    report.virtual_ms = now().as_millis() as u64;
    report.rows = state.rows();
    report.oracles = state.evaluations();
    report.exempted = state.exempted();
    report.marks = state.marks();
    report.story = state.story.lines();
    report.decisions = state.decided().to_vec();
    report
}

/// madsim remembers every task until somebody asks how many there are.
async fn sweep() {
    loop {
        madsim::time::sleep(Duration::from_secs(5)).await;
        let _ = Handle::current().metrics().num_tasks();
    }
}

/// A fault of a storm, at its moment or at the first one after it at which it can do something: its victim runs, and has
/// writes pending where the plan wants that.
async fn planned(striker: Striker, cluster: Cluster, hub: Hub, planned: PlannedFault) {
    madsim::time::sleep(planned.at.duration()).await;
    let mut pulse = hub.pulse();
    let patience = now() + Duration::from_secs(5);
    while now() < patience {
        let fits = |node: NodeId| {
            let runs = cluster.is_up(node) && !cluster.is_paused(node);
            runs && (!planned.writes_pending || hub.state().has_writes_pending(node))
        };
        let targets = planned.fault.targets();
        let mut victims = targets.iter().flat_map(|target| striker.would_hit(&planned.name, target));
        if targets.is_empty() || victims.any(fits) {
            break;
        }
        let _ = madsim::time::timeout(Duration::from_millis(500), pulse.changed()).await;
    }
    striker.strike(&planned.name, planned.label(), &planned.fault, It::default()).await;
}

/// Looks at a drawn disk at a drawn moment.
async fn look(cluster: Cluster, hub: Hub, draws: Draws, moment: u64) {
    let at = draws.range(format!("look/{moment}/at"), 200..20_000);
    madsim::time::sleep(Duration::from_millis(at)).await;
    if let Some(node) = draws.pick(format!("look/{moment}/node"), &cluster.ids()) {
        watch::look_at_disk(&cluster, &hub, *node).await;
    }
}

async fn rows_of(clients: &Clients, query: &str) -> Result<ResultRows, Failed> {
    let wrong = |what: String| Failed { outcome: Outcome::Safety, what: format!("{query}: {what}") };
    let output =
        clients.execute("result", query, Duration::from_secs(60)).await.map_err(|err| wrong(err.to_string()))?;
    let engine::frontend::Output::Rows { schema, batches } = output else { return Err(wrong("is no query".into())) };
    let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
    let rows = as_text(&batches).map_err(|err| wrong(err.to_string()))?;
    Ok(ResultRows { query: query.to_string(), columns, rows })
}
