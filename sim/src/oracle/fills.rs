//! Oracles 6, 8, 10 and 12: how views are filled, followed from the logs of both sides.
//!
//! Checks, at the first application of each entry: a leg's `done` and the end of its round never go back, and that end is the
//! sequence that the region has at the entry, never another; no two leaders read for it under one epoch; what a leader of an earlier term says counts nowhere after a later
//! one was heard; a region of a view takes a batch if and only if that begins where the region is, which is never before where
//! it was, and writes rows for no other; a leader that takes over goes on exactly where the region is; what is sent twice is at
//! most one batch for each time that a leader said hello; a view is READY only when every leg is live, in every region of every
//! feeder, and has what a feeder that is a view had when it became READY; what a client is told of a fill's progress is no more
//! than it is, and 100 % if and only if the view is READY. At calm: each region has the legs of the views
//! that are there and no other, as its log says and as its leader says.
//!
//! Does not check: what the rows come to (the oracle of views does), and whether what a leg pins can be read (the scans do).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use engine::event::Event;
use engine::meta::catalog::TableDef;
use engine::region::command::{Command, LegAnswer, decode_answer, decode_outcome};
use engine::region::leg::LegStep;
use engine::region::request::{Absorb, LegStatus, Taken};
use engine::types::{FillPosition, LegId, LogId, Position, RegionId, Sequence, Source, TableId};

use super::Violation;
use super::model::Model;

pub(super) const NAME: &str = "fills";

/// Bits of an epoch below its term.
const EPOCH_ATTEMPTS: u32 = 24;

/// See the module.
#[derive(Debug, Default)]
pub struct FillOracle {
    regions: BTreeMap<RegionId, Region>,
    /// Batches that a leader began with, and whether they begin where the region was.
    resumed: Vec<(RegionId, bool)>,
    evaluations: u64,
}

/// What the log of a region says of fills.
#[derive(Debug, Default)]
struct Region {
    last: Option<u64>,
    sequence: Sequence,
    legs: BTreeMap<LegId, Leg>,
    /// The epoch of each leg's reader, and the term in which it was the leader.
    reigns: BTreeMap<LegId, (u64, u64)>,
    /// Views that never read it again.
    ended: BTreeSet<TableId>,
    /// What all destinations of a leg have, those too that are gone.
    done: BTreeMap<LegId, Sequence>,
    /// Of a region of a view, once it was begun.
    filled: Option<Filled>,
}

/// A leg at a region of its feeder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Leg {
    epoch: u64,
    round: u64,
    done: Option<Sequence>,
    upto: Option<Sequence>,
    is_live: bool,
    /// Rows that were read in the rounds that are through.
    rows: u64,
    /// How often another leader took it over, and how often one began anew.
    begun: (u64, u64),
    /// The epochs that it had.
    epochs: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Filled {
    stage: Stage,
    sources: BTreeMap<Source, Progress>,
    /// The entry whose rows may be written.
    writes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Filling,
    Ready(Sequence),
    Failed,
}

/// What a region of a view has of a source.
#[derive(Debug, Default)]
struct Progress {
    epoch: u64,
    position: FillPosition,
    /// Rows that were read for what it has of the window that it is in.
    read: u64,
    /// Hellos of the epoch.
    hellos: u64,
    /// Whether a batch of the epoch came.
    is_begun: bool,
    /// Whether a batch of an earlier epoch was taken.
    is_resumed: bool,
    /// Batches of the epoch that were taken, and those that were not and are none of them.
    taken: BTreeSet<(FillPosition, FillPosition)>,
    astray: BTreeSet<(FillPosition, FillPosition)>,
}

/// A row of SHOW JOBS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The view's name.
    pub view: String,
    /// `filling`, `paused`, `ready` or `failed`.
    pub state: String,
    /// How much of it is done.
    pub percent: u64,
    /// Legs, each at each region of its feeder, that are live.
    pub regions_done: u64,
    /// Rows that were read.
    pub rows_done: u64,
    /// About how many there are.
    pub rows: u64,
}

/// How far a region of a view is with a region of a feeder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// It has all that was visible here; none: nothing.
    pub since: Option<Sequence>,
    /// Of the keys up to this one it has what was visible at that later sequence.
    pub within: Option<(Sequence, Position)>,
}

impl FillOracle {
    /// How reports name it.
    pub const NAME: &str = NAME;

    /// Follows the logs. `model`: what the regions hold, as of this event.
    pub fn on_event(&mut self, model: &Model, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Applied { region, log_id, command, outcome, sequence, .. } if *region != RegionId::META => {
                self.applied(model, *region, *log_id, command, outcome, *sequence)
            }
            Event::ViewWritten { region, log_id, ops, .. } => self.written(*region, *log_id, ops),
            _ => Ok(()),
        }
    }

    /// How often it judged an entry.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Whether a leg reads the region that is not yet live.
    pub fn is_read(&self, region: RegionId) -> bool {
        self.regions.get(&region).is_some_and(|region| region.legs.values().any(|leg| !leg.is_live))
    }

    /// Whether it is a region of a view that is not READY.
    pub fn is_filled(&self, region: RegionId) -> bool {
        self.stage(region) == Some(Stage::Filling)
    }

    /// Whether it is a region of a view that is READY.
    pub fn is_ready(&self, region: RegionId) -> bool {
        matches!(self.stage(region), Some(Stage::Ready(_)))
    }

    fn stage(&self, region: RegionId) -> Option<Stage> {
        self.regions.get(&region)?.filled.as_ref().map(|filled| filled.stage)
    }

    /// Regions of views to which a leader sent its first batch after another one had sent some, since the last call; and whether
    /// that began where the region was.
    pub fn take_resumed(&mut self) -> Vec<(RegionId, bool)> {
        std::mem::take(&mut self.resumed)
    }

    /// How far `place`, a region of a view, is with `source`.
    pub fn frontier(&self, place: RegionId, source: Source) -> Frontier {
        let leg = LegId { view: place.table(), leg: source.leg };
        let done = self.regions.get(&source.feeder).and_then(|feeder| feeder.done.get(&leg)).copied();
        let filled = self.regions.get(&place).and_then(|region| region.filled.as_ref());
        let position = filled.and_then(|filled| filled.sources.get(&source)).map(|from| from.position.clone());
        let FillPosition { done: since, within } = position.unwrap_or_default();
        // All destinations have a window, and this one had nothing more to get of it.
        let within = within.filter(|(upto, _)| Some(*upto) > done);
        Frontier { since: since.max(done), within }
    }

    /// The newest sequence of a region.
    pub fn sequence(&self, region: RegionId) -> Sequence {
        self.regions.get(&region).map(|known| known.sequence).unwrap_or_default()
    }

    /// The regions that `view` reads.
    pub fn feeders(&self, model: &Model, view: &TableDef) -> Vec<RegionId> {
        legs_of(model, view).into_iter().map(|(_, feeder)| feeder).collect()
    }

    /// What is still to be sent to `view`; none: it has all that is in its feeders. Of those that are in `due` it needs no more than
    /// is said there.
    pub fn lag(&self, model: &Model, view: &TableDef, due: &BTreeMap<RegionId, Sequence>) -> Option<String> {
        for (leg, feeder) in legs_of(model, view) {
            let known = self.regions.get(&feeder);
            let newest = due.get(&feeder).copied().unwrap_or_else(|| self.sequence(feeder));
            match known.and_then(|known| known.legs.get(&leg)) {
                None => return Some(format!("leg {leg} is not at {feeder}")),
                Some(leg_there) if !leg_there.is_live => {
                    return Some(format!("leg {leg} at {feeder} is in round {}", leg_there.round));
                }
                Some(Leg { done, .. }) if *done < Some(newest) => {
                    let done = done.map_or("nothing".to_string(), |done| done.to_string());
                    return Some(format!("leg {leg} at {feeder} is at {done} of {newest}"));
                }
                Some(_) => {}
            }
        }
        view.regions.iter().find(|region| !self.is_ready(region.id)).map(|region| format!("{} is not READY", region.id))
    }

    /// At calm: `region` has the legs of `views`, which are those of the catalog that have not failed, and no other. `leader` is
    /// what its leader says.
    pub fn judge_residue<'a>(
        &mut self,
        model: &Model,
        views: impl Iterator<Item = &'a TableDef>,
        region: RegionId,
        leader: &[LegStatus],
    ) -> Result<(), Violation> {
        self.evaluations += 1;
        let wanted: BTreeSet<LegId> = views
            .flat_map(|view| legs_of(model, view))
            .filter(|(_, feeder)| *feeder == region)
            .map(|(leg, _)| leg)
            .collect();
        let known = self.regions.get(&region);
        let logged: BTreeSet<LegId> = known.into_iter().flat_map(|known| known.legs.keys()).copied().collect();
        let said: BTreeSet<LegId> = leader.iter().map(|status| status.leg).collect();
        for (whose, found) in [("its log", &logged), ("its leader", &said)] {
            if *found != wanted {
                let what = format!("region {region}, as {whose} says: {found:?}");
                let wanted = format!("the views that are there: {wanted:?}");
                return Err(violation("a region has other legs than the views have that read it", vec![what, wanted]));
            }
        }
        for status in leader {
            let Some(leg) = known.and_then(|known| known.legs.get(&status.leg)) else { continue };
            let LegStatus { epoch, round, done, upto, is_live, read, takeovers, retries, .. } = status.clone();
            let (begun, epochs) = ((takeovers, retries), leg.epochs.clone());
            let found = Leg { epoch, round, done, upto, is_live, rows: read, begun, epochs };
            if found != *leg {
                let what = format!("leg {} at {region}: its leader says {found:?}, its log {leg:?}", status.leg);
                return Err(violation("a leg is not what its log says", vec![what]));
            }
        }
        Ok(())
    }

    /// What a client was told of the fills (SHOW JOBS): no more than there is in the views by now, and all of it if and only if they
    /// may be read.
    pub fn judge_jobs(&mut self, model: &Model, jobs: &[Job]) -> Result<(), Violation> {
        for job in jobs {
            self.evaluations += 1;
            let evidence = |truth: String| vec![format!("told {job:?}"), truth];
            let mut of_name = model.tables().filter(|table| table.name == job.view && table.view.is_some());
            // Of several of one name it is not known which one it was.
            let (Some(view), None) = (of_name.next(), of_name.next()) else { continue };
            let is_ready = job.state == "ready";
            if is_ready != (job.percent == 100) || job.rows_done > job.rows {
                let what = "a fill's progress contradicts itself";
                return Err(violation(what, evidence("100 % means ready".into())));
            }
            // It may have failed since.
            if let Some(region) = view.regions.iter().find(|region| is_ready && self.is_filled(region.id)) {
                let truth = format!("region {} is {:?}", region.id, self.stage(region.id));
                return Err(violation("a fill is said to be ready before it is", evidence(truth)));
            }
            let legs = legs_of(model, view);
            let live = legs.iter().filter(|leg| self.leg_at(**leg).is_none_or(|leg| leg.is_live)).count() as u64;
            if job.regions_done > live {
                let truth = format!("{live} of {} legs are live", legs.len());
                return Err(violation("a fill is said to be further than it is", evidence(truth)));
            }
            // A leg counts as read when its first round is through, and then as what is in its feeder, which may become less.
            if legs.iter().any(|leg| self.leg_at(*leg).is_none_or(|leg| leg.done.is_some())) {
                continue;
            }
            let read: u64 = legs.iter().map(|(leg, feeder)| self.rows_read(model, view, *leg, *feeder)).sum();
            if job.rows_done > read {
                let truth = format!("{read} rows are at or before where it is");
                return Err(violation("a fill is said to be further than it is", evidence(truth)));
            }
        }
        Ok(())
    }

    fn leg_at(&self, (leg, feeder): (LegId, RegionId)) -> Option<&Leg> {
        self.regions.get(&feeder)?.legs.get(&leg)
    }

    /// Rows of `feeder` up to where that region of the view is which is ahead of the others.
    fn rows_read(&self, model: &Model, view: &TableDef, leg: LegId, feeder: RegionId) -> u64 {
        let Some(rows) = model.region(feeder) else { return 0 };
        let source = Source { leg: leg.leg, feeder };
        let of_place = |place: RegionId| match self.frontier(place, source) {
            Frontier { since: Some(since), .. } => rows.visible(since).count(),
            Frontier { within: Some((upto, position)), .. } => {
                rows.visible(upto).take_while(|(key, _, _)| **key <= position.key).count()
            }
            Frontier { .. } => 0,
        };
        view.regions.iter().map(|place| of_place(place.id) as u64).max().unwrap_or_default()
    }

    fn applied(
        &mut self,
        model: &Model,
        id: RegionId,
        log_id: LogId,
        command: &Bytes,
        outcome: &Bytes,
        sequence: Sequence,
    ) -> Result<(), Violation> {
        let region = self.regions.entry(id).or_default();
        if region.last.is_some_and(|last| last >= log_id.index) {
            return Ok(());
        }
        region.last = Some(log_id.index);
        region.sequence = sequence;
        if command.is_empty() {
            return Ok(());
        }
        let Ok(command) = Command::decode(command) else { return Ok(()) };
        let at = format!("region {id}, entry {log_id}");
        match command {
            Command::Attach { legs, view } if decode_outcome(outcome).is_ok() => {
                if !region.ended.contains(&view.id) {
                    for leg in legs {
                        region.legs.entry(LegId { view: view.id, leg }).or_default();
                    }
                }
                Ok(())
            }
            Command::Detach { view } if decode_outcome(outcome).is_ok() => {
                region.ended.insert(view);
                region.legs.retain(|leg, _| leg.view != view);
                Ok(())
            }
            Command::Leg { leg, epoch, step } => {
                self.evaluations += 1;
                let answer: LegAnswer = answer_of(&at, outcome)?;
                region.step(&at, leg, epoch, &step, &answer)?;
                match step {
                    LegStep::Reign => region.reigns(&at, leg, log_id.term),
                    _ => Ok(()),
                }
            }
            Command::Begin => {
                let filled = region.filled.get_or_insert_default();
                filled.writes = Some(log_id.index);
                Ok(())
            }
            Command::Ready => {
                self.evaluations += 1;
                let filled = region.filled.get_or_insert_default();
                if filled.stage != Stage::Filling {
                    return Ok(());
                }
                match decode_outcome(outcome) {
                    Ok(_) => {}
                    // Groups of it cannot be computed: for now, or for good.
                    Err(error) if error.is_deterministic() => {
                        filled.stage = Stage::Failed;
                        return Ok(());
                    }
                    Err(_) => return Ok(()),
                }
                filled.stage = Stage::Ready(sequence);
                self.judge_ready(model, id)
            }
            Command::Fail { .. } => {
                region.filled.get_or_insert_default().stage = Stage::Failed;
                Ok(())
            }
            Command::Greet { source, epoch } => {
                self.evaluations += 1;
                let answer: Taken = answer_of(&at, outcome)?;
                let expected = region.greet(source, epoch);
                same(&at, &format!("the hello of {source} in term {epoch}"), &expected, &answer)
            }
            Command::Absorb(batch) => {
                self.evaluations += 1;
                let answer: Taken = answer_of(&at, outcome)?;
                self.absorbed(id, &at, log_id.index, &batch, &answer)
            }
            _ => Ok(()),
        }
    }

    fn absorbed(
        &mut self,
        id: RegionId,
        at: &str,
        index: u64,
        batch: &Absorb,
        answer: &Taken,
    ) -> Result<(), Violation> {
        let source = batch.source;
        let feeder = self.regions.get(&source.feeder);
        let given = feeder.map(|feeder| feeder.sequence).unwrap_or_default();
        let leg = feeder.and_then(|feeder| feeder.legs.get(&LegId { view: id.table(), leg: source.leg })).cloned();
        let filled = self.regions.get_mut(&id).and_then(|region| region.filled.as_mut());
        let what = format!("a batch of {source} in term {} from {} to {}", batch.epoch, batch.from, batch.to);
        let Some(filled) = filled else { return same(at, &what, &Taken::Gone, answer) };
        if filled.stage == Stage::Failed {
            return match answer {
                Taken::Failed { .. } => Ok(()),
                answer => wrong_answer(at, &what, "that the view has failed", answer),
            };
        }
        let Some(from) = filled.sources.get_mut(&source) else { return same(at, &what, &Taken::Gone, answer) };
        if batch.epoch != from.epoch {
            return same(at, &what, &Taken::Deposed { epoch: from.epoch }, answer);
        }
        let is_next = batch.from == from.position;
        if !from.is_begun && from.is_resumed {
            self.resumed.push((id, is_next));
        }
        if !std::mem::replace(&mut from.is_begun, true) && !is_next {
            let evidence = vec![format!("{at}: {what}"), format!("the region is at {}", from.position)];
            return Err(violation("a leader does not begin where the region of the view is", evidence));
        }
        if !(is_next && batch.to > batch.from) {
            let stretch = (batch.from.clone(), batch.to.clone());
            if !from.taken.contains(&stretch) {
                from.astray.insert(stretch);
            }
            if from.astray.len() as u64 > from.hellos {
                let evidence = vec![
                    format!("{at}: {what}"),
                    format!("{} batches begin elsewhere than the region is", from.astray.len()),
                    format!("the leader of term {} said hello {} times", from.epoch, from.hellos),
                ];
                return Err(violation("more is sent again than one batch for each hello", evidence));
            }
            return same(at, &what, &Taken::At(from.position.clone(), from.read), answer);
        }
        match answer {
            // What it comes to cannot be computed.
            Taken::Failed { .. } => {
                filled.stage = Stage::Failed;
                return Ok(());
            }
            answer => same(at, &what, &Taken::At(batch.to.clone(), batch.read), answer)?,
        }
        let is_same = from.position.within.is_some() && batch.to.upto() == from.position.upto();
        if batch.settled > batch.read || (is_same && batch.read < from.read + batch.changes.min(1)) {
            let evidence = vec![
                format!("{at}: {what}"),
                format!("{} rows read, {} settled; before: {}", batch.read, batch.settled, from.read),
            ];
            return Err(violation("a batch says that fewer rows were read than were", evidence));
        }
        from.read = batch.read;
        from.taken.insert((batch.from.clone(), batch.to.clone()));
        from.position = batch.to.clone();
        filled.writes = Some(index);
        let upto = batch.to.upto().unwrap_or_default();
        // All have a round before the next one begins. A leg that was taken off meanwhile has none.
        let is_due = leg.as_ref().is_none_or(|leg| leg.is_live || leg.upto == Some(upto));
        if upto > given || !is_due {
            let evidence = vec![format!("{at}: {what}"), format!("the feeder is at {given}; its leg is {leg:?}")];
            return Err(violation("a batch is of a window that was not begun", evidence));
        }
        Ok(())
    }

    fn written(&mut self, id: RegionId, log_id: LogId, ops: &Bytes) -> Result<(), Violation> {
        let Some(region) = self.regions.get(&id) else { return Ok(()) };
        // Another replica applied it before.
        if region.last != Some(log_id.index) || ops.is_empty() {
            return Ok(());
        }
        if region.filled.as_ref().and_then(|filled| filled.writes) == Some(log_id.index) {
            return Ok(());
        }
        let evidence = vec![format!("region {id}, entry {log_id}: {} rows", ops.len())];
        Err(violation("a region of a view writes rows of a batch that it does not take", evidence))
    }

    fn judge_ready(&self, model: &Model, id: RegionId) -> Result<(), Violation> {
        let Some(view) = model.table(id.table()) else { return Ok(()) };
        for (leg, feeder) in legs_of(model, view) {
            let Some(known) = self.regions.get(&feeder).filter(|known| !known.ended.contains(&view.id)) else {
                continue;
            };
            // As late as a feeder that is a view became READY.
            let needed = match known.filled.as_ref().map(|filled| filled.stage) {
                None => Some(Sequence(0)),
                Some(Stage::Ready(at)) => Some(at),
                Some(Stage::Filling | Stage::Failed) => None,
            };
            let there = known.legs.get(&leg);
            let is_level =
                needed.is_some_and(|needed| there.is_some_and(|leg| leg.is_live && leg.done >= Some(needed)));
            if !is_level {
                let evidence = vec![
                    format!("{id} of view {} is READY", view.name),
                    format!("leg {leg} at {feeder}: {there:?}; needed: {needed:?}"),
                ];
                return Err(violation("a view is READY before it is filled", evidence));
            }
        }
        Ok(())
    }
}

impl Region {
    fn step(&mut self, at: &str, id: LegId, epoch: u64, step: &LegStep, answer: &LegAnswer) -> Result<(), Violation> {
        let what = format!("{at}: leg {id} in term {epoch}: {step:?}");
        let wrong = |signature: &str, lines: Vec<String>| {
            let mut evidence = vec![what.clone()];
            evidence.extend(lines);
            Err(violation(signature, evidence))
        };
        let Some(before) = self.legs.get_mut(&id) else {
            return match answer {
                LegAnswer::Gone => Ok(()),
                answer => wrong("a leg that is gone goes on", vec![format!("answered {answer:?}")]),
            };
        };
        let is_late = epoch < before.epoch || (epoch > before.epoch && *step != LegStep::Reign);
        let now = match answer {
            LegAnswer::Leg(_) if is_late => {
                let known = format!("the leader of term {} reads", before.epoch);
                return wrong("a leader that does not read for a leg is heard", vec![known]);
            }
            LegAnswer::Leg(leg) => {
                let mut epochs = before.epochs.clone();
                epochs.extend((*step == LegStep::Reign).then_some(epoch));
                Leg {
                    epoch: leg.epoch,
                    round: leg.round,
                    done: leg.done,
                    upto: leg.upto,
                    is_live: leg.is_live,
                    rows: leg.rows,
                    begun: (leg.takeovers, leg.retries),
                    epochs,
                }
            }
            LegAnswer::Deposed { epoch } if is_late && *epoch == before.epoch => return Ok(()),
            answer => {
                return wrong("a leg is answered wrongly", vec![format!("it is {before:?}, answered {answer:?}")]);
            }
        };
        let moved = vec![format!("was {before:?}"), format!("is {now:?}"), format!("newest: {}", self.sequence)];
        let goes_back = now.epoch < before.epoch
            || now.round < before.round
            || now.done < before.done
            || (before.is_live && !now.is_live)
            || (!now.is_live && now.upto < before.upto);
        if goes_back {
            return wrong("a leg goes back", moved);
        }
        if now.round != before.round && now.upto != Some(self.sequence) {
            return wrong("a round ends elsewhere than at the newest sequence of its entry", moved);
        }
        if now.upto != before.upto && now.round == before.round && !now.is_live {
            return wrong("a round's end moves", moved);
        }
        let allowed = match step {
            LegStep::Round { .. } => now.done == before.done || now.done == before.upto,
            LegStep::Advance { done, .. } => now.done == before.done || (now.done == Some(*done) && before.is_live),
            LegStep::Reign | LegStep::Fail { .. } => now.done == before.done,
        };
        if !allowed || now.done > Some(self.sequence) {
            return wrong("a leg is through with what it did not read", moved);
        }
        let terms: BTreeSet<u64> = now.epochs.iter().map(|epoch| epoch >> EPOCH_ATTEMPTS).collect();
        let begun = (terms.len().saturating_sub(1) as u64, (now.epochs.len() - terms.len()) as u64);
        if now.begun != begun {
            return wrong("a leg was not taken over as often as it says", moved);
        }
        let rows = match step {
            LegStep::Round { rows, .. } if now.done != before.done => *rows,
            _ => 0,
        };
        if now.rows != before.rows + rows {
            return wrong("rows of a round that is not through count, or those of one that is do not", moved);
        }
        if let Some(done) = now.done {
            self.done.insert(id, done);
        }
        *before = now;
        Ok(())
    }

    /// Whoever leads in `term` has said that it reads for the leg. Each leader has an epoch of its own: else what was sent by the one
    /// before it, or by itself before that one, cannot be told from its own.
    fn reigns(&mut self, at: &str, id: LegId, term: u64) -> Result<(), Violation> {
        let Some(epoch) = self.legs.get(&id).map(|leg| leg.epoch) else { return Ok(()) };
        match self.reigns.insert(id, (epoch, term)) {
            Some((before, other)) if before == epoch && other != term => {
                let evidence =
                    vec![format!("{at}: leg {id}, epoch {epoch}, of the leaders of the terms {other} and {term}")];
                Err(violation("two leaders read for a leg under one epoch", evidence))
            }
            _ => Ok(()),
        }
    }

    fn greet(&mut self, source: Source, epoch: u64) -> Taken {
        let Some(filled) = &mut self.filled else { return Taken::Gone };
        if filled.stage == Stage::Failed {
            return Taken::Failed { message: String::new() };
        }
        let from = filled.sources.entry(source).or_default();
        if epoch < from.epoch {
            return Taken::Deposed { epoch: from.epoch };
        }
        if epoch > from.epoch {
            let is_resumed = from.is_resumed || !from.taken.is_empty();
            let (position, read) = (std::mem::take(&mut from.position), from.read);
            *from = Progress { epoch, position, read, is_resumed, ..Progress::default() };
        }
        from.hellos += 1;
        Taken::At(from.position.clone(), from.read)
    }
}

/// The legs of a view, each at each region of its feeder.
fn legs_of(model: &Model, view: &TableDef) -> Vec<(LegId, RegionId)> {
    let mut legs = Vec::new();
    for (number, leg) in view.view.iter().flat_map(|def| &def.legs).enumerate() {
        let regions = model.table(leg.feeder).into_iter().flat_map(|feeder| &feeder.regions);
        legs.extend(regions.map(|region| (LegId { view: view.id, leg: number as u32 }, region.id)));
    }
    legs
}

fn answer_of<T: serde::de::DeserializeOwned>(at: &str, outcome: &Bytes) -> Result<T, Violation> {
    decode_answer(outcome).map_err(|err| violation("an outcome cannot be read", vec![format!("{at}: {err}")]))
}

fn same(at: &str, what: &str, expected: &Taken, answer: &Taken) -> Result<(), Violation> {
    match (expected, answer) {
        (Taken::Failed { .. }, Taken::Failed { .. }) => Ok(()),
        _ if expected == answer => Ok(()),
        _ => wrong_answer(at, what, &format!("{expected:?}"), answer),
    }
}

fn wrong_answer(at: &str, what: &str, expected: &str, answer: &Taken) -> Result<(), Violation> {
    let evidence = vec![format!("{at}: {what}"), format!("expected {expected}"), format!("answered {answer:?}")];
    Err(violation("a region of a view takes what it must not, or refuses what it must take", evidence))
}

fn violation(signature: &str, evidence: Vec<String>) -> Violation {
    Violation { oracle: NAME, signature: signature.to_string(), evidence }
}

#[cfg(test)]
mod tests {
    use engine::meta::catalog::{LegDef, PartitionRule, RegionDef, ViewDef};
    use engine::region::command::{encode_answer, encode_outcome};
    use engine::region::leg::Leg as Answered;
    use engine::region::request::WriteAnswer;
    use engine::types::{Column, ColumnId, ColumnType, Incarnation, Key, ReplicaId, Schema, Timestamp};

    use super::*;

    const PLACE: RegionId = RegionId(9 << 32);
    const FEEDER: RegionId = RegionId(1 << 32);

    /// Entries of a region of a view, each as its only replica applies it.
    #[derive(Default)]
    struct Log {
        model: Model,
        oracle: FillOracle,
        term: u64,
        index: u64,
        /// The epoch that was said last, and how often one was after another.
        heard: u64,
        retries: u64,
    }

    impl Log {
        fn apply(&mut self, region: RegionId, command: &Command, outcome: Bytes) -> Result<(), String> {
            self.index += 1;
            let event = Event::Applied {
                region,
                replica: ReplicaId(1),
                incarnation: Incarnation(1),
                log_id: LogId { term: self.term, index: self.index },
                command: command.encode(),
                outcome,
                sequence: Sequence(self.index),
                digest: 0,
            };
            self.oracle.on_event(&self.model, &event).map_err(|violation| violation.signature)
        }

        fn begun(epoch: u64) -> Log {
            let mut log = Log::default();
            log.apply(FEEDER, &Command::Begin, done()).unwrap();
            log.apply(PLACE, &Command::Begin, done()).unwrap();
            log.greet(epoch, at(0)).unwrap();
            log
        }

        /// A view of one leg reads the feeder.
        fn attached() -> Log {
            let mut log = Log::default();
            log.model.learn(&table(FEEDER, None));
            log.model.learn(&view());
            log.apply(PLACE, &Command::Begin, done()).unwrap();
            log.apply(FEEDER, &Command::Attach { legs: vec![0], view: Box::new(view()) }, done()).unwrap();
            log
        }

        /// The leader of `epoch` says what becomes of the leg.
        fn step(&mut self, epoch: u64, step: LegStep, now: Leg) -> Result<(), String> {
            let Leg { epoch: heard, round, done, upto, is_live, .. } = now;
            if matches!(step, LegStep::Reign) && heard > self.heard {
                // All these epochs are of one term.
                self.retries += u64::from(self.heard > 0);
                self.heard = heard;
            }
            let now = Answered {
                view: Box::new(view()),
                epoch: heard,
                takeovers: 0,
                retries: self.retries,
                round,
                rows: 0,
                done,
                upto,
                is_live,
                is_paused: false,
                rate_limit: None,
                failed: None,
                at: Timestamp(0),
            };
            let answer = encode_answer(&LegAnswer::Leg(Box::new(now)));
            self.apply(FEEDER, &Command::Leg { leg: LEG, epoch, step }, answer)
        }

        /// The sequence of the next entry.
        fn next(&self) -> u64 {
            self.index + 1
        }

        fn greet(&mut self, epoch: u64, position: FillPosition) -> Result<(), String> {
            self.apply(PLACE, &Command::Greet { source: source(), epoch }, encode_answer(&taken(position)))
        }

        fn batch(&mut self, epoch: u64, from: FillPosition, to: FillPosition, answer: Taken) -> Result<(), String> {
            let rows = Bytes::new();
            let batch = Absorb {
                source: source(),
                epoch,
                from,
                to,
                rows: rows.clone(),
                ops: rows,
                changes: 0,
                read: 0,
                settled: 0,
            };
            // The feeder goes on meanwhile.
            self.apply(FEEDER, &Command::Unpin { name: "x".into() }, done()).unwrap();
            self.apply(PLACE, &Command::Absorb(batch), encode_answer(&answer))
        }
    }

    const LEG: LegId = LegId { view: TableId(9), leg: 0 };
    const NOT_READ: &str = "a leg is through with what it did not read";

    fn table(region: RegionId, view: Option<Box<ViewDef>>) -> TableDef {
        let (id, nullable) = (ColumnId(1), false);
        let column = Column { id, name: "a".into(), column_type: ColumnType::Int64, nullable, default: None };
        TableDef {
            id: region.table(),
            name: format!("t{}", region.table()),
            schema: Schema::new(1, vec![column], &["a".into()], None).unwrap(),
            partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
            regions: vec![RegionDef { id: region, replicas: BTreeMap::new() }],
            view,
            indexes: BTreeMap::new(),
        }
    }

    fn view() -> TableDef {
        let schema = table(FEEDER, None).schema;
        let leg = LegDef { feeder: FEEDER.table(), name: "t".into(), schema, uses: BTreeSet::new() };
        let query = "SELECT a FROM t".to_string();
        table(PLACE, Some(Box::new(ViewDef { query, legs: vec![leg], chunk_rows: None, rate_limit: None })))
    }

    /// A leg that the leader of term 1 reads; 0: none.
    fn leg(round: u64, done: u64, upto: u64) -> Leg {
        let sequence = |at: u64| (at > 0).then_some(Sequence(at));
        let (done, upto) = (sequence(done), sequence(upto));
        Leg { epoch: 1, round, done, upto, is_live: false, rows: 0, begun: (0, 0), epochs: BTreeSet::new() }
    }

    fn round(done: u64) -> LegStep {
        LegStep::Round { done, goes_live: false, rows: 0, at: Timestamp(0) }
    }

    fn advance(done: u64) -> LegStep {
        LegStep::Advance { done: Sequence(done), at: Timestamp(0) }
    }

    fn source() -> Source {
        Source { leg: 0, feeder: FEEDER }
    }

    fn taken(position: FillPosition) -> Taken {
        Taken::At(position, 0)
    }

    fn done() -> Bytes {
        encode_outcome(&Ok(WriteAnswer { rows: 0, sequence: Sequence(0) }))
    }

    /// 0: nothing yet.
    fn at(sequence: u64) -> FillPosition {
        match sequence {
            0 => FillPosition::default(),
            sequence => FillPosition::at(Sequence(sequence)),
        }
    }

    fn within(upto: u64, key: &'static str) -> FillPosition {
        let position = Position { key: Key(key.as_bytes().into()), sequence: Sequence(0) };
        FillPosition { done: None, within: Some((Sequence(upto), position)) }
    }

    #[test]
    fn a_batch_that_does_not_begin_where_the_region_is_must_not_be_taken() {
        let mut log = Log::begun(1);
        log.batch(1, at(0), within(3, "b"), taken(within(3, "b"))).unwrap();
        log.batch(1, at(0), within(3, "b"), taken(within(3, "b"))).unwrap();
        let gap = log.batch(1, within(3, "c"), at(3), taken(at(3))).unwrap_err();
        assert_eq!(gap, "a region of a view takes what it must not, or refuses what it must take");
        let mut log = Log::begun(1);
        let refused = log.batch(1, at(0), at(2), taken(at(0))).unwrap_err();
        assert_eq!(refused, "a region of a view takes what it must not, or refuses what it must take");
    }

    #[test]
    fn rows_of_a_batch_that_is_not_taken_are_seen() {
        let mut log = Log::begun(1);
        let written = |log: &mut Log| {
            let log_id = LogId { term: 1, index: log.index };
            let (rows, ops, sequence) = (Bytes::new(), Bytes::from_static(&[1]), Sequence(9));
            let event = Event::ViewWritten { region: PLACE, replica: ReplicaId(1), log_id, rows, ops, sequence };
            log.oracle.on_event(&log.model, &event).map_err(|violation| violation.signature)
        };
        log.batch(1, at(0), at(3), taken(at(3))).unwrap();
        written(&mut log).unwrap();
        log.batch(1, at(0), at(3), taken(at(3))).unwrap();
        let signature = written(&mut log).unwrap_err();
        assert_eq!(signature, "a region of a view writes rows of a batch that it does not take");
    }

    #[test]
    fn a_leader_before_the_one_that_said_hello_is_not_heard() {
        let mut log = Log::begun(2);
        log.batch(1, at(0), at(3), Taken::Deposed { epoch: 2 }).unwrap();
        let signature = log.batch(1, at(0), at(3), taken(at(3))).unwrap_err();
        assert_eq!(signature, "a region of a view takes what it must not, or refuses what it must take");
    }

    #[test]
    fn a_leader_that_takes_over_begins_where_the_region_is() {
        let mut log = Log::begun(1);
        log.batch(1, at(0), within(3, "b"), taken(within(3, "b"))).unwrap();
        log.greet(2, within(3, "b")).unwrap();
        log.batch(2, within(3, "b"), at(3), taken(at(3))).unwrap();
        assert_eq!(log.oracle.take_resumed(), [(PLACE, true)]);
        log.greet(3, at(3)).unwrap();
        let signature = log.batch(3, at(0), within(3, "b"), taken(at(3))).unwrap_err();
        assert_eq!(signature, "a leader does not begin where the region of the view is");
        assert_eq!(log.oracle.take_resumed(), [(PLACE, false)]);
    }

    #[test]
    fn more_than_one_batch_astray_for_each_hello_is_seen() {
        let mut log = Log::begun(1);
        log.batch(1, at(0), at(3), taken(at(3))).unwrap();
        log.batch(1, within(3, "b"), at(3), taken(at(3))).unwrap();
        let signature = log.batch(1, within(3, "c"), at(3), taken(at(3))).unwrap_err();
        assert_eq!(signature, "more is sent again than one batch for each hello");
    }

    /// One round is through, and the leg is live.
    fn live() -> (Log, Leg) {
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        log.greet(1, at(0)).unwrap();
        log.batch(1, at(0), at(upto), taken(at(upto))).unwrap();
        let now = Leg { is_live: true, ..leg(1, upto, 0) };
        log.step(1, LegStep::Round { done: 1, goes_live: true, rows: 0, at: Timestamp(0) }, now.clone()).unwrap();
        (log, now)
    }

    #[test]
    fn a_fill_that_is_right_is_found_right() {
        let (mut log, mut now) = live();
        assert_eq!(log.oracle.lag(&log.model, &view(), &BTreeMap::new()).unwrap(), "leg t9.0 at t1/0 is at s4 of s8");
        let upto = log.index;
        log.batch(1, at(now.done.unwrap().0), at(upto), taken(at(upto))).unwrap();
        now.done = Some(Sequence(upto));
        log.step(1, advance(upto), now.clone()).unwrap();
        log.apply(PLACE, &Command::Ready, done()).unwrap();
        // Another leader takes over; the one before is not heard any more.
        now.epoch = 2;
        log.step(2, LegStep::Reign, now.clone()).unwrap();
        let late = Command::Leg { leg: LEG, epoch: 1, step: advance(upto + 1) };
        log.apply(FEEDER, &late, encode_answer(&LegAnswer::Deposed { epoch: 2 })).unwrap();
        log.apply(FEEDER, &Command::Detach { view: LEG.view }, done()).unwrap();
        log.apply(FEEDER, &late, encode_answer(&LegAnswer::Gone)).unwrap();
    }

    #[test]
    fn a_round_that_ends_elsewhere_than_at_its_entry_is_seen() {
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.index;
        let signature = log.step(1, round(0), leg(1, 0, upto)).unwrap_err();
        assert_eq!(signature, "a round ends elsewhere than at the newest sequence of its entry");
    }

    #[test]
    fn a_round_that_ends_elsewhere_afterwards_is_seen() {
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        let signature = log.step(2, LegStep::Reign, Leg { epoch: 2, ..leg(1, 0, upto + 1) }).unwrap_err();
        assert_eq!(signature, "a round's end moves");
    }

    #[test]
    fn a_leg_that_goes_back_is_seen() {
        let wrongs: [fn(Leg) -> Leg; 4] = [
            |now| Leg { epoch: 0, ..now },
            |now| Leg { round: 0, ..now },
            |now| Leg { done: None, ..now },
            |now| Leg { is_live: false, ..now },
        ];
        for wrong in wrongs {
            let (mut log, now) = live();
            assert_eq!(log.step(1, LegStep::Reign, wrong(now)).unwrap_err(), "a leg goes back");
        }
    }

    #[test]
    fn a_leg_that_is_through_with_what_it_did_not_read_is_seen() {
        // A round is through with what its leader had seen by then.
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        let next = log.next();
        assert_eq!(log.step(1, round(1), leg(2, next, next)).unwrap_err(), NOT_READ);
        // More than was said, and more than there is.
        let (mut log, now) = live();
        let done = log.index;
        let more = Leg { done: Some(Sequence(done)), ..now.clone() };
        assert_eq!(log.step(1, advance(done - 1), more).unwrap_err(), NOT_READ);
        let (mut log, now) = live();
        let more = Leg { done: Some(Sequence(99)), ..now };
        assert_eq!(log.step(1, advance(99), more).unwrap_err(), NOT_READ);
    }

    #[test]
    fn two_leaders_under_one_epoch_are_seen() {
        let (mut log, now) = live();
        // Its entry was resent.
        log.step(1, LegStep::Reign, now.clone()).unwrap();
        log.term = 2;
        let signature = log.step(1, LegStep::Reign, now.clone()).unwrap_err();
        assert_eq!(signature, "two leaders read for a leg under one epoch");
        log.step(2, LegStep::Reign, Leg { epoch: 2, ..now }).unwrap();
    }

    #[test]
    fn a_leader_before_the_one_that_reads_is_not_heard() {
        let (mut log, now) = live();
        let now = Leg { epoch: 3, ..now };
        log.step(3, LegStep::Reign, now.clone()).unwrap();
        // Nor one that has not said that it reads.
        for epoch in [2, 4] {
            let signature = log.step(epoch, advance(now.done.unwrap().0), now.clone()).unwrap_err();
            assert_eq!(signature, "a leader that does not read for a leg is heard");
        }
        log.apply(FEEDER, &Command::Detach { view: LEG.view }, done()).unwrap();
        assert_eq!(log.step(3, LegStep::Reign, now).unwrap_err(), "a leg that is gone goes on");
    }

    #[test]
    fn a_view_that_is_ready_before_it_is_filled_is_seen() {
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        assert_eq!(log.apply(PLACE, &Command::Ready, done()).unwrap_err(), "a view is READY before it is filled");
        // Of a feeder that is a view it has what that had when it became READY.
        let (mut log, now) = live();
        log.apply(FEEDER, &Command::Begin, done()).unwrap();
        let needed = log.next();
        log.apply(FEEDER, &Command::Ready, done()).unwrap();
        assert!(now.done < Some(Sequence(needed)));
        assert_eq!(log.apply(PLACE, &Command::Ready, done()).unwrap_err(), "a view is READY before it is filled");
    }

    #[test]
    fn a_batch_that_leaves_before_its_round_has_begun_is_seen() {
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        log.greet(1, at(0)).unwrap();
        let upto = log.index - 1;
        let signature = log.batch(1, at(0), at(upto), taken(at(upto))).unwrap_err();
        assert_eq!(signature, "a batch is of a window that was not begun");
        // Nor is it of an earlier sequence than that at which the round ends.
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        log.greet(1, at(0)).unwrap();
        let signature = log.batch(1, at(0), at(upto - 1), taken(at(upto - 1))).unwrap_err();
        assert_eq!(signature, "a batch is of a window that was not begun");
    }

    #[test]
    fn a_leg_that_stays_or_is_missing_is_seen_at_calm() {
        let (mut log, now) = live();
        let status = |now: &Leg| LegStatus {
            leg: LEG,
            feeder: FEEDER,
            epoch: now.epoch,
            takeovers: now.begun.0,
            retries: now.begun.1,
            round: now.round,
            read: now.rows,
            done: now.done,
            upto: now.upto,
            is_live: now.is_live,
            is_level: true,
            is_paused: false,
            rate_limit: None,
            failed: None,
            sequence: Sequence(0),
            rows: 0,
            at: Timestamp(0),
        };
        let mut judge = |views: &[TableDef], leader: &[LegStatus]| {
            let judged = log.oracle.judge_residue(&log.model, views.iter(), FEEDER, leader);
            judged.map_err(|violation| violation.signature)
        };
        judge(&[view()], &[status(&now)]).unwrap();
        let other = "a region has other legs than the views have that read it";
        assert_eq!(judge(&[], &[status(&now)]).unwrap_err(), other);
        assert_eq!(judge(&[view()], &[]).unwrap_err(), other);
        let ahead = status(&Leg { round: 2, ..now.clone() });
        assert_eq!(judge(&[view()], &[ahead]).unwrap_err(), "a leg is not what its log says");
    }

    #[test]
    fn progress_that_is_told_and_not_there_is_seen() {
        let job = |state: &str, percent, regions_done, rows_done| Job {
            view: view().name,
            state: state.to_string(),
            percent,
            regions_done,
            rows_done,
            rows: 9,
        };
        let judge = |log: &mut Log, job: Job| {
            log.oracle.judge_jobs(&log.model, &[job]).map_err(|violation| violation.signature).err()
        };
        // It has nothing, for there is nothing.
        let mut log = Log::attached();
        log.step(1, LegStep::Reign, leg(0, 0, 0)).unwrap();
        let upto = log.next();
        log.step(1, round(0), leg(1, 0, upto)).unwrap();
        assert_eq!(judge(&mut log, job("filling", 0, 0, 0)), None);
        let further = Some("a fill is said to be further than it is".to_string());
        assert_eq!(judge(&mut log, job("filling", 10, 0, 1)), further);
        assert_eq!(judge(&mut log, job("filling", 0, 1, 0)), further);
        let contradicts = Some("a fill's progress contradicts itself".to_string());
        assert_eq!(judge(&mut log, job("filling", 100, 0, 0)), contradicts);
        assert_eq!(judge(&mut log, job("ready", 99, 1, 9)), contradicts);
        assert_eq!(judge(&mut log, job("filling", 50, 0, 10)), contradicts);
        // It is live, and READY a moment later.
        let (mut log, _) = live();
        assert_eq!(judge(&mut log, job("filling", 99, 1, 9)), None);
        let early = Some("a fill is said to be ready before it is".to_string());
        assert_eq!(judge(&mut log, job("ready", 100, 1, 9)), early);
        log.apply(PLACE, &Command::Ready, done()).unwrap();
        assert_eq!(judge(&mut log, job("ready", 100, 1, 9)), None);
    }

    #[test]
    fn a_window_that_ends_in_the_future_is_seen() {
        let mut log = Log::begun(1);
        let signature = log.batch(1, at(0), at(99), taken(at(99))).unwrap_err();
        assert_eq!(signature, "a batch is of a window that was not begun");
    }

    #[test]
    fn a_destination_in_the_middle_of_a_window_has_two_sequences() {
        let mut log = Log::begun(1);
        log.batch(1, at(0), within(3, "b"), taken(within(3, "b"))).unwrap();
        let frontier = log.oracle.frontier(PLACE, source());
        assert_eq!(frontier, Frontier { since: None, within: within(3, "b").within });
        log.oracle.regions.get_mut(&FEEDER).unwrap().done.insert(LegId { view: PLACE.table(), leg: 0 }, Sequence(3));
        let frontier = log.oracle.frontier(PLACE, source());
        assert_eq!(frontier, Frontier { since: Some(Sequence(3)), within: None });
    }
}
