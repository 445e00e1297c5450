//! Fills views: whoever leads a region that a view reads sends what its rows come to, first all of them, then what is written.
//!
//! There is one loop, from the first row to the last one that is ever written: [`plan::next`] says what to do, this is its edge.
//!
//! 1. *Reign*: the leader of the feeder's region logs an epoch for the leg (its term, and which attempt it is); from then on nothing of
//!    an earlier attempt counts here, of whatever leader.
//! 2. *Greet*: it says hello to each region of the view, through that region's log; nothing of a leader before it counts there any
//!    more either, however late it comes. The answer is how far that region is.
//! 3. It sends the window that is due, from where each destination is, in batches: a page of changes in key order, filtered,
//!    computed, summed up by group ([`Leg::run`](crate::view::Leg::run)), and split by the view's partition rule. The next page is
//!    read when all have answered: what may be sent twice after a failure is one batch a destination.
//! 4. When all destinations have the window, it logs the end of the round, or of a leg that is live that all have so much.
//!
//! What is different from PranaDB's method (issue 586): it switches from versions to a live feed at the end. Here the live feed is
//! windows too, of what is new since the last one: sequences are dense, so few sequences are few rows, and no moment is unlike the
//! others. A destination for which a stretch has nothing is sent nothing, except now and then a batch without rows, so that a leader
//! which takes over does not read the stretch again.
//!
//! Indexes are filled by the same leader, in a simpler way: see `backfill`.
//!
//! Not here: what is due (`plan`), what a batch does (`region::absorb`), when a view may be read (`meta`).

mod backfill;
mod pace;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int8Type;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::pace::Pace;
use self::plan::{Destination, Next, Window};
use super::message::{Request, Response};
use super::node::Shared;
use super::store::{Replica, State};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::frontend::split;
use crate::meta::catalog::TableDef;
use crate::meta::request::MetaRequest;
use crate::raft::Group;
use crate::region::Region;
use crate::region::command::{Command, LegAnswer, decode_answer};
use crate::region::leg::{Leg, LegPage, LegStep, next_epoch};
use crate::region::request::{Absorb, Taken};
use crate::types::{FillPosition, LegId, Op, Position, RegionId, ReplicaId, Sequence, Source, encode_batch};
use crate::view::Program;

/// Reads a replica for views and indexes, until it is dropped.
struct Reading {
    replica: Arc<Replica>,
    task: JoinHandle<()>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps a reader for each of them, for as long as the node is there.
pub(super) async fn work(node: Weak<Shared>) {
    let mut readers: BTreeMap<ReplicaId, Reading> = BTreeMap::new();
    loop {
        let Some(strong) = node.upgrade() else { return };
        let look_again = sleep(Duration::from_millis(strong.options().retry_max_ms));
        let store = strong.store().ok();
        let feeding = store.as_ref().map(|store| store.feeding()).unwrap_or_default();
        let is_there = |replica: &Arc<Replica>| feeding.iter().any(|other| Arc::ptr_eq(other, replica));
        readers.retain(|_, reading| is_there(&reading.replica) && !reading.task.is_finished());
        for replica in &feeding {
            readers.entry(replica.group.replica()).or_insert_with(|| {
                let task = tokio::spawn(read_whenever_leading(node.clone(), replica.clone()));
                Reading { replica: replica.clone(), task }
            });
        }
        drop(strong);
        match store {
            None => look_again.await,
            Some(store) => tokio::select! {
                biased;
                () = store.feeding_changed() => {}
                () = look_again => {}
            },
        }
    }
}

async fn read_whenever_leading(node: Weak<Shared>, replica: Arc<Replica>) {
    let State::Region(region) = &replica.state else { return };
    loop {
        let standing = replica.group.standing();
        let Some(node) = node.upgrade() else { return };
        let pause = Duration::from_millis(node.options().retry_min_ms);
        if !standing.is_leader {
            let soon = Duration::from_millis(node.options().retry_max_ms);
            drop(node);
            // (The time bounds how long a reader outlives its node.)
            let _ = timeout(soon, replica.group.changed(&standing)).await;
            // Of a replica that has stopped nothing changes, and that is said at once.
            sleep(pause).await;
            continue;
        }
        let reader = Reader { node: &node, group: &replica.group, region, term: standing.term, epoch: 0 };
        tokio::select! {
            biased;
            () = replica.group.deposed() => {}
            () = reader.read_all() => {}
            () = reader.backfill_all() => {}
        }
        drop(node);
        sleep(pause).await;
    }
}

/// Reads for all legs and indexes of a region, while its leader leads.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Shared,
    group: &'a Group,
    region: &'a Region,
    term: u64,
    /// Of the attempt at hand, see [`next_epoch`].
    epoch: u64,
}

/// Why a leg is not read any more, for now.
enum End {
    /// Another one leads, or the leg is gone.
    Over,
    /// It cannot go on, ever.
    Failed(String),
    /// It may go better the next time.
    Interrupted(Error),
}

impl From<Error> for End {
    fn from(err: Error) -> End {
        End::Interrupted(err)
    }
}

impl Reader<'_> {
    /// Until another one leads.
    async fn read_all(&self) {
        let mut changes = self.region.watch_legs();
        let mut reading = FuturesUnordered::new();
        let mut known = BTreeSet::new();
        loop {
            let legs: Vec<LegId> = self.region.legs().into_iter().map(|(leg, _)| leg).collect();
            for leg in legs {
                if known.insert(leg) {
                    reading.push(async move {
                        self.read(leg).await;
                        leg
                    });
                }
            }
            tokio::select! {
                biased;
                Some(leg) = reading.next() => {
                    known.remove(&leg);
                    // Whoever reads it now leads, or did.
                    if self.region.leg(leg).is_some() {
                        return;
                    }
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Until the leg is gone, or another one leads.
    async fn read(&self, leg: LegId) {
        let mut pauses = self.node.options().pauses();
        loop {
            let last = self.region.leg(leg).map(|leg| leg.epoch);
            let Some(epoch) = last.and_then(|last| next_epoch(last, self.term)) else { return };
            let reader = Reader { epoch, ..*self };
            let reason = match reader.reign(leg).await {
                End::Over => return,
                End::Interrupted(err) => {
                    tracing::debug!(%leg, region = %self.region.region(), %err, "a fill was interrupted");
                    None
                }
                End::Failed(reason) => Some(reason),
            };
            if let Some(reason) = reason {
                let _ = reader.log(leg, LegStep::Fail { message: reason }).await;
            } else if self.region.leg(leg).is_none() {
                return;
            }
            sleep(pauses.next_pause()).await;
        }
    }

    /// The life of a leg under one leader.
    async fn reign(&self, id: LegId) -> End {
        match self.try_reign(id).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_reign(&self, id: LegId) -> Result<std::convert::Infallible, End> {
        let options = self.node.options();
        let first = self.log(id, LegStep::Reign).await?;
        if first.failed.is_none() {
            self.refuse_if_stale(&first)?;
        }
        if let Some(reason) = &first.failed {
            self.report(&first.view, reason).await?;
            return self.until_gone(id).await;
        }
        let program = Program::compile(&first.view).map_err(|err| End::Failed(err.to_string()))?;
        let mut destinations = self.greet(id, &first).await?;
        let mut visible = self.region.watch_visible();
        let mut changes = self.region.watch_legs();
        let mut advanced = Instant::now();
        let mut pace = Pace::default();
        // Held as long as writes are to wait.
        let mut slow = None;
        loop {
            changes.borrow_and_update();
            let newest = *visible.borrow_and_update();
            let Some(leg) = self.region.leg(id) else { return Err(End::Over) };
            if leg.epoch != self.epoch {
                return Err(End::Over);
            }
            self.refuse_if_stale(&leg)?;
            let all_have = destinations.values().map(|one| one.position.done.max(one.sent)).min().flatten();
            let due = all_have.filter(|have| leg.is_live && Some(*have) > leg.done);
            let advance_at = advanced + Duration::from_millis(options.fill_advance_ms);
            if let Some(done) = due
                && Instant::now() >= advance_at
            {
                self.log(id, LegStep::Advance { done, at: self.node.now() }).await?;
                advanced = Instant::now();
                continue;
            }
            let next = match leg.is_paused {
                true => Next::Wait,
                false => plan::next(&leg, &destinations, newest, options.fill_live_rows),
            };
            match next {
                Next::Broken(message) => return Err(End::Failed(message)),
                Next::Round { goes_live } => {
                    let at = self.node.now();
                    let rows = plan::rows(&leg, &destinations);
                    let now = self.log(id, LegStep::Round { done: leg.round, goes_live, rows, at }).await?;
                    // The one before is given back first.
                    drop(slow.take());
                    if let Some(upto) = now.upto.filter(|_| now.rate_limit.is_none()) {
                        let (least, most) = (options.fill_slow_min_ms, options.fill_slow_max_ms);
                        let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
                        let delay = pace.round(now.done, upto, least, most);
                        slow = (!delay.is_zero()).then(|| self.region.slow_writes(id, delay));
                    }
                }
                Next::Send(window) => self.send(id, &leg, &program, window, &mut destinations).await?,
                Next::Wait => {
                    tokio::select! {
                        biased;
                        changed = visible.changed(), if !leg.is_paused => {
                            if changed.is_err() {
                                return Err(End::Over);
                            }
                        }
                        _ = changes.changed() => {}
                        () = sleep_until(advance_at), if due.is_some() => {}
                        // What is kept for it may have become too much.
                        () = sleep(Duration::from_millis(options.fill_stale_ms)), if options.fill_stale_ms > 0 => {}
                    }
                }
            }
        }
    }

    /// What a leg keeps readable is kept for ever, unless it gets on: a view that is paused, or whose regions cannot be written, is
    /// given up in the end.
    fn refuse_if_stale(&self, leg: &Leg) -> Result<(), End> {
        let options = self.node.options();
        let Some(pinned) = leg.pinned() else { return Ok(()) };
        let rows = self.region.visible().0.saturating_sub(pinned.0);
        let age_ms = u64::try_from(self.node.now().0.saturating_sub(leg.at.0)).unwrap_or(0);
        let is_over = |value: u64, limit: u64| limit > 0 && value > limit;
        if rows == 0 || !(is_over(rows, options.fill_stale_rows) || is_over(age_ms, options.fill_stale_ms)) {
            return Ok(());
        }
        Err(End::Failed(format!(
            "stale: region {} keeps {rows} versions for it since {age_ms} ms; fill_stale_rows = {}, fill_stale_ms = {}",
            self.region.region(),
            options.fill_stale_rows,
            options.fill_stale_ms
        )))
    }

    /// Sends a window; a part of it, when what is wanted of the leg has changed.
    async fn send(
        &self,
        id: LegId,
        leg: &Leg,
        program: &Program,
        window: Window,
        destinations: &mut BTreeMap<RegionId, Destination>,
    ) -> Result<(), End> {
        let options = self.node.options();
        let table = &leg.view;
        let chunk_rows = table.view.as_ref().and_then(|view| view.chunk_rows).unwrap_or(options.fill_chunk_rows);
        // What takes longer than a second at the rate that it may have is cut: another rate, or a pause, is heard of between pages.
        let chunk_rows = leg.rate_limit.filter(|_| !leg.is_live).map_or(chunk_rows, |rate| chunk_rows.min(rate));
        let mut chunk = usize::try_from(chunk_rows).unwrap_or(usize::MAX).max(1);
        let Window { since, upto, to } = window;
        let mut after: Option<Position> = to.values().min().cloned().flatten();
        // Pages that a destination was not sent anything of.
        let mut silent: BTreeMap<RegionId, u64> = BTreeMap::new();
        // Rows of the window before where it begins, as whoever read them counted; and those of this attempt.
        let before = to.iter().filter(|(_, from)| after.is_some() && **from == after).map(|(region, _)| *region);
        let mut settled = before.map(|region| known(destinations, region).read).max().unwrap_or(0);
        let mut read = 0;
        let started = Instant::now();
        loop {
            let wanted = self.region.leg(id).ok_or(End::Over)?;
            // A leg that is live pauses between windows: then all that was written up to some moment is in the view, and nothing else.
            let is_other = wanted.is_paused != leg.is_paused || wanted.rate_limit != leg.rate_limit;
            if wanted.failed.is_some() || (is_other && !leg.is_live) {
                return Ok(());
            }
            let page = self.page(id, program, since, upto, after.clone(), chunk).await?;
            let stop = to.values().flatten().filter(|start| Some(*start) > after.as_ref()).min();
            let (page, next) = cut(page, stop);
            let rows = page.changes.keys.len() as u64;
            read += rows;
            let shares = match shares(id, program, table, page, options.rpc_frame_bytes / 2)? {
                Shares::Small(shares) => shares,
                Shares::Large if rows <= 1 => return Err(End::Failed("one row's result does not fit a frame".into())),
                Shares::Large => {
                    read -= rows;
                    chunk = (chunk / 2).max(1);
                    continue;
                }
            };
            let end = match &next {
                Some(next) => FillPosition { done: since, within: Some((upto, next.clone())) },
                None => FillPosition::at(upto),
            };
            let mut batches = Vec::new();
            for (region, start) in &to {
                if start.as_ref() > after.as_ref() {
                    continue;
                }
                let position = &known(destinations, *region).position;
                let share = shares.get(region);
                let silent = silent.entry(*region).or_default();
                // Who is in the middle of the window hears of its end.
                let closes = next.is_none() && position.within.is_some();
                if share.is_none() && !closes && *silent < options.fill_silent_pages {
                    *silent += 1;
                    continue;
                }
                *silent = 0;
                let share = share.cloned().unwrap_or_else(|| Share::empty(program));
                let batch = Absorb {
                    source: Source { leg: id.leg, feeder: self.region.region() },
                    epoch: self.epoch,
                    from: position.clone(),
                    to: end.clone(),
                    rows: share.rows,
                    ops: share.ops,
                    changes: share.changes,
                    read: settled + rows,
                    settled,
                };
                batches.push(self.deliver(table, *region, batch));
            }
            // All are waited for: what one has is not forgotten because another one failed.
            let mut failed = None;
            for (region, answer) in join_all(batches).await {
                match answer {
                    Ok(position) => {
                        let destination = known(destinations, region);
                        (destination.position, destination.read) = (position, settled + rows);
                    }
                    Err(end) => failed = Some(end),
                }
            }
            if let Some(end) = failed {
                return Err(end);
            }
            settled += rows;
            if let Some(rate) = leg.rate_limit.filter(|_| !leg.is_live) {
                let earliest = Duration::from_secs_f64(read as f64 / rate.max(1) as f64);
                sleep_until(started + earliest).await;
            }
            let Some(next) = next else { break };
            after = Some(next);
        }
        for region in to.keys() {
            let destination = known(destinations, *region);
            (destination.sent, destination.read) = (Some(upto), settled);
        }
        Ok(())
    }

    async fn page(
        &self,
        id: LegId,
        program: &Program,
        since: Option<Sequence>,
        upto: Sequence,
        after: Option<Position>,
        rows: usize,
    ) -> Result<LegPage, End> {
        let options = self.node.options();
        let bytes = usize::try_from(options.fill_chunk_bytes.min(options.rpc_frame_bytes / 4)).unwrap_or(usize::MAX);
        let columns = program.leg(id.leg).columns().to_vec();
        Ok(self.region.leg_page(columns, since, upto, after, (rows, bytes)).await?)
    }

    /// Has a region of the view take a batch; answers what it has then. As often as it takes: a batch that was taken already is
    /// answered like one that is.
    async fn deliver(&self, view: &TableDef, region: RegionId, batch: Absorb) -> (RegionId, Result<FillPosition, End>) {
        (region, self.try_deliver(view, region, batch).await)
    }

    async fn try_deliver(&self, view: &TableDef, region: RegionId, batch: Absorb) -> Result<FillPosition, End> {
        let (feeder, replica, name, rows) =
            (self.region.region(), self.group.replica(), view.name.clone(), batch.changes);
        let (to, events) = (batch.to.clone(), self.node.events());
        let view_name = name.clone();
        events.emit(|| Event::BatchSent { region: feeder, replica, view: name, destination: region, rows });
        match self.ask(view, region, Request::Absorb { region, batch }).await? {
            Taken::At(position, _) if position == to => {
                events.emit(|| Event::BatchAcknowledged {
                    region: feeder,
                    replica,
                    view: view_name,
                    destination: region,
                    rows,
                });
                Ok(position)
            }
            Taken::At(position, _) => {
                let what = format!("region {region} of view {view_name} is at {position}, not at {to}");
                Err(End::Interrupted(Error::Busy { what }))
            }
            other => Err(self.refused(other)),
        }
    }

    /// Says hello to all regions of the view.
    async fn greet(&self, id: LegId, leg: &Leg) -> Result<BTreeMap<RegionId, Destination>, End> {
        let source = Source { leg: id.leg, feeder: self.region.region() };
        let hello = |region: RegionId| async move {
            match self.ask(&leg.view, region, Request::Greet { region, source, epoch: self.epoch }).await? {
                Taken::At(position, read) => Ok((region, Destination { position, read, sent: None })),
                other => Err(self.refused(other)),
            }
        };
        let answers = join_all(leg.view.regions.iter().map(|region| hello(region.id))).await;
        answers.into_iter().collect()
    }

    /// Asks the leader of a region of the view.
    async fn ask(&self, view: &TableDef, region: RegionId, request: Request) -> Result<Taken> {
        let def = view.regions.iter().find(|def| def.id == region).ok_or(Error::RegionNotFound { region })?;
        let within = Duration::from_millis(self.node.options().statement_timeout_ms);
        match self.node.frontend().ask_leader(def, &request, within).await? {
            Response::Taken(taken) => Ok(taken),
            other => Err(Error::Unknown { message: format!("{other:?} is no answer to {}", request.kind().name()) }),
        }
    }

    fn refused(&self, taken: Taken) -> End {
        match taken {
            Taken::Failed { message } => End::Failed(message),
            Taken::Deposed { epoch } if epoch > self.epoch => End::Over,
            other => End::Interrupted(Error::Busy { what: format!("a batch was answered {other:?}") }),
        }
    }

    /// Logs what becomes of the leg.
    async fn log(&self, leg: LegId, step: LegStep) -> Result<Leg, End> {
        let command = Command::Leg { leg, epoch: self.epoch, step };
        match decode_answer(&self.group.propose(command.encode()).await?)? {
            LegAnswer::Leg(leg) => Ok(*leg),
            LegAnswer::Deposed { .. } | LegAnswer::Gone => Err(End::Over),
        }
    }

    /// Tells meta that the view has failed.
    async fn report(&self, view: &TableDef, reason: &str) -> Result<()> {
        let request = MetaRequest::FailView { view: view.id, reason: reason.to_string() };
        let within = Duration::from_millis(self.node.options().statement_timeout_ms);
        self.node.frontend().ask_meta(request, within).await.map(drop)
    }

    /// Waits until the leg is detached.
    async fn until_gone(&self, id: LegId) -> Result<std::convert::Infallible, End> {
        let mut changes = self.region.watch_legs();
        while self.region.leg(id).is_some() {
            if changes.changed().await.is_err() {
                break;
            }
        }
        Err(End::Over)
    }
}

fn known(destinations: &mut BTreeMap<RegionId, Destination>, region: RegionId) -> &mut Destination {
    destinations.get_mut(&region).expect("a window goes to the regions that were greeted")
}

/// The part of a page up to `stop`, and where the next one begins; none: that was all.
fn cut(page: LegPage, stop: Option<&Position>) -> (LegPage, Option<Position>) {
    let LegPage { mut changes, appends } = page;
    let next = changes.next.take();
    let Some(stop) = stop.filter(|stop| next.as_ref().is_none_or(|next| *stop < next)) else {
        return (LegPage { changes, appends }, next);
    };
    let position = |at: usize| Position {
        key: changes.keys[at].clone(),
        sequence: if appends { changes.sequences[at] } else { Sequence(0) },
    };
    let rows = (0..changes.keys.len()).find(|at| position(*at) > *stop).unwrap_or(changes.keys.len());
    changes.batch = changes.batch.slice(0, rows);
    changes.keys.truncate(rows);
    changes.sequences.truncate(rows);
    (LegPage { changes, appends }, Some(stop.clone()))
}

/// What one region of a view gets of a page.
#[derive(Clone)]
struct Share {
    rows: Bytes,
    ops: Bytes,
    changes: u64,
}

impl Share {
    fn of(rows: &RecordBatch, ops: &[Op]) -> Share {
        let ops = ops.iter().map(|op| *op as u8).collect::<Vec<u8>>();
        Share { rows: encode_batch(rows), ops: ops.into(), changes: rows.num_rows() as u64 }
    }

    fn empty(program: &Program) -> Share {
        Share::of(&RecordBatch::new_empty(program.delta().clone()), &[])
    }
}

enum Shares {
    Small(BTreeMap<RegionId, Share>),
    /// One of them does not fit a frame: the page must be smaller.
    Large,
}

/// What a page comes to, for each region of the view; each of `most` bytes at most.
fn shares(id: LegId, program: &Program, table: &TableDef, page: LegPage, most: u64) -> Result<Shares, End> {
    let LegPage { changes, appends } = page;
    if changes.keys.is_empty() {
        return Ok(Shares::Small(BTreeMap::new()));
    }
    let last = changes.batch.num_columns() - 1;
    let signs = changes.batch.column(last).as_primitive::<Int8Type>().clone();
    let columns: Vec<usize> = (0..last).collect();
    let rows = changes.batch.project(&columns).map_err(|err| End::Failed(err.to_string()))?;
    let delta = program.leg(id.leg).run(&rows, &signs, &changes.keys, &changes.sequences, appends);
    let delta = delta.map_err(|failure| End::Failed(failure.message))?;
    let mut shares = BTreeMap::new();
    for share in split(&delta.rows, table)? {
        let ops: Vec<Op> = match (&share.positions, delta.ops.is_empty()) {
            (_, true) => Vec::new(),
            (None, false) => delta.ops.clone(),
            (Some(positions), false) => positions.values().iter().map(|at| delta.ops[*at as usize]).collect(),
        };
        let encoded = Share::of(&share.rows, &ops);
        if (encoded.rows.len() + encoded.ops.len()) as u64 > most {
            return Ok(Shares::Large);
        }
        shares.insert(table.regions[share.region].id, encoded);
    }
    Ok(Shares::Small(shares))
}
