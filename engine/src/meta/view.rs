//! What becomes of a view after it was created: steps on its own regions and on those that it reads.
//!
//! ```text
//! fill     Beginning -> Attaching -> Filling -> Readying -> (ended: the view is ready)
//!                                                   \_________> (ended: it fails, see there)
//! control  Controlling -> (ended)
//! drop     Detaching -> Unpublished (as a table) -> (ended)
//! fail     Detaching -> Failing -> (ended: the view has failed)
//! ```
//!
//! Its own regions know that they are to be filled (Beginning) before a feeder's region is told to fill them (Attaching). From then
//! on nobody here has a hand in the fill: the leaders of the feeders' regions do it, and what they did stands in their logs and in
//! those of the view's regions; Filling asks how far they are. A view that is dropped or has failed is taken off its feeders first:
//! what was kept for it goes, and the feeders remember that it is never to be filled again, whatever comes late.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::catalog::{RegionDef, TableDef};
use super::command::Step;
use super::procedure::{Action, Target};
use crate::error::{Error, Invalid, Result};
use crate::region::request::LegStatus;
use crate::server::message::{ProcedureRef, Request, Response, ViewChange};
use crate::types::{NodeId, ProcedureId, RegionId, TableId, Timestamp};

/// A view of the catalog: how far it is, and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Names its fill: the procedure that does it, or did.
    pub job: ProcedureId,
    /// When that was recorded, by the clock of meta's leader of then.
    pub started_at: Timestamp,
    /// How far it is.
    pub state: ViewState,
    /// Whether the fill is to wait.
    pub is_paused: bool,
    /// Rows a second that each region of a feeder may be read with; none: as fast as it goes.
    pub rate_limit: Option<u64>,
}

/// How far a view is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewState {
    /// It is being filled, and may not be read.
    Filling,
    /// It may be read.
    Ready,
    /// It may not be read any more.
    Failed(String),
}

impl ViewState {
    /// The name that SHOW JOBS and sys.views use.
    pub fn name(&self) -> &'static str {
        match self {
            ViewState::Filling => "filling",
            ViewState::Ready => "ready",
            ViewState::Failed(_) => "failed",
        }
    }
}

/// Something that is being done about a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewWork {
    /// The regions that it reads.
    pub feeders: Vec<Feeder>,
    /// What is being done.
    pub doing: Doing,
    /// Regions that have not done it.
    pub open: BTreeSet<RegionId>,
}

/// A region that a view reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feeder {
    /// The region, and where its replicas are.
    pub region: RegionDef,
    /// The scans of the view's query that read it.
    pub legs: Vec<u32>,
}

/// What is being done about a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doing {
    /// Its regions are being told that they are to be filled.
    Beginning,
    /// The regions that it reads are being told to fill it.
    Attaching,
    /// They do.
    Filling,
    /// Its regions are being told that they may be read.
    Readying,
    /// The regions that it reads are being told how fast to be.
    Controlling {
        /// Whether they are to wait.
        is_paused: bool,
        /// Rows a second; none: as fast as it goes.
        rate_limit: Option<u64>,
    },
    /// The regions that it reads are being told that it reads them no more.
    Detaching(Then),
    /// Its regions are being told that it has failed.
    Failing(String),
}

/// What follows when a view is off its feeders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// Its replicas are dropped.
    Drop,
    /// It is there and may not be read.
    Fail(String),
}

/// What follows a step.
pub(super) enum After {
    /// Another one.
    Goes(ViewWork),
    /// Nothing.
    Ends,
    /// Its replicas are dropped, as those of a table.
    Drops,
}

impl ViewWork {
    /// Begins to do something about `view`, which reads `feeders`.
    pub fn begin(view: &TableDef, feeders: Vec<Feeder>, doing: Doing) -> ViewWork {
        let mut work = ViewWork { feeders, doing, open: BTreeSet::new() };
        work.open = work.concerned(view);
        work
    }

    /// The regions that do what is being done.
    fn concerned(&self, view: &TableDef) -> BTreeSet<RegionId> {
        match &self.doing {
            Doing::Beginning | Doing::Readying | Doing::Failing(_) => view.regions.iter().map(|def| def.id).collect(),
            Doing::Attaching | Doing::Filling | Doing::Controlling { .. } | Doing::Detaching(_) => {
                self.feeders.iter().map(|feeder| feeder.region.id).collect()
            }
        }
    }

    /// What to ask of the regions that have not done it. How far a fill is is asked of all replicas of a region, for only the
    /// leader says; otherwise of one after the other.
    pub fn next(&self, view: &TableDef, by: ProcedureRef, attempt: u32) -> Vec<Action> {
        let own = view.regions.iter().map(|region| (region, None));
        let feeders = self.feeders.iter().map(|feeder| (&feeder.region, Some(feeder)));
        let mut actions = Vec::new();
        for (region, feeder) in own.chain(feeders).filter(|(region, _)| self.open.contains(&region.id)) {
            let Some(request) = self.request(view, region.id, feeder, by) else { continue };
            let nodes: Vec<NodeId> = region.replicas.values().copied().collect();
            let asked = match self.doing {
                Doing::Filling => nodes,
                _ => nodes.get(attempt as usize % nodes.len().max(1)).into_iter().copied().collect(),
            };
            let action = |node| Action { target: Target::Region(region.id), node, request: request.clone() };
            actions.extend(asked.into_iter().map(action));
        }
        actions
    }

    /// None: that region has no part in it. `feeder`: it is one that is read.
    fn request(&self, view: &TableDef, region: RegionId, feeder: Option<&Feeder>, by: ProcedureRef) -> Option<Request> {
        let change = match (&self.doing, feeder) {
            (Doing::Beginning, None) => ViewChange::Begin,
            (Doing::Readying, None) => ViewChange::Ready,
            (Doing::Failing(reason), None) => ViewChange::Fail { reason: reason.clone() },
            (Doing::Attaching, Some(feeder)) => {
                ViewChange::Attach { legs: feeder.legs.clone(), view: Box::new(view.clone()) }
            }
            (Doing::Filling, Some(_)) => return Some(Request::Legs { region }),
            (Doing::Controlling { is_paused, rate_limit }, Some(_)) => {
                ViewChange::Control { view: view.id, is_paused: *is_paused, rate_limit: *rate_limit }
            }
            (Doing::Detaching(_), Some(_)) => ViewChange::Detach { view: view.id },
            _ => return None,
        };
        Some(Request::View { region, change, by })
    }

    /// Why it can never be done, if one of these answers says so: a region of the view that was to be read has failed.
    pub fn refusal(&self, answers: &[(Target, Result<Response>)]) -> Option<Error> {
        let fails = |(_, answer): &(Target, Result<Response>)| match answer {
            Err(error @ Error::Invalid { code: Invalid::ViewFailed, .. }) => Some(error.clone()),
            _ => None,
        };
        answers.iter().filter(|_| self.doing == Doing::Readying).find_map(fails)
    }

    /// The regions that have done it, as these answers say.
    pub fn done(
        &self,
        view: TableId,
        answers: impl IntoIterator<Item = (Target, Result<Response>)>,
    ) -> BTreeSet<RegionId> {
        let mut done = BTreeSet::new();
        for (target, answer) in answers {
            let Target::Region(region) = target else { continue };
            let is_done = match (&self.doing, answer) {
                (Doing::Filling, Ok(Response::Legs(legs))) => self.is_level(view, region, &legs),
                (Doing::Filling, _) => false,
                (_, answer) => matches!(answer, Ok(Response::Done)),
            };
            if is_done {
                done.insert(region);
            }
        }
        done
    }

    fn is_level(&self, view: TableId, region: RegionId, legs: &[LegStatus]) -> bool {
        let level: BTreeMap<u32, bool> =
            legs.iter().filter(|leg| leg.leg.view == view).map(|leg| (leg.leg.leg, leg.is_level)).collect();
        let feeder = self.feeders.iter().find(|feeder| feeder.region.id == region);
        feeder.is_some_and(|feeder| feeder.legs.iter().all(|leg| level.get(leg) == Some(&true)))
    }

    /// What follows when these regions have done it, besides those before.
    pub(super) fn after(&self, view: &TableDef, done: &BTreeSet<RegionId>) -> After {
        let open: BTreeSet<RegionId> = self.open.difference(done).copied().collect();
        if !open.is_empty() {
            return After::Goes(ViewWork { open, ..self.clone() });
        }
        let doing = match &self.doing {
            Doing::Beginning => Doing::Attaching,
            Doing::Attaching => Doing::Filling,
            Doing::Filling => Doing::Readying,
            Doing::Detaching(Then::Fail(reason)) => Doing::Failing(reason.clone()),
            Doing::Detaching(Then::Drop) => return After::Drops,
            Doing::Readying | Doing::Controlling { .. } | Doing::Failing(_) => return After::Ends,
        };
        After::Goes(ViewWork::begin(view, self.feeders.clone(), doing))
    }

    /// The step that is recorded when this is begun.
    pub fn step(&self) -> Step {
        match self.doing {
            Doing::Beginning => Step::Beginning,
            Doing::Attaching => Step::Attaching,
            Doing::Filling => Step::Filling,
            Doing::Readying => Step::Readying,
            Doing::Controlling { .. } => Step::Controlling,
            Doing::Detaching(_) => Step::Detaching,
            Doing::Failing(_) => Step::Failing,
        }
    }

    /// The name that events use.
    pub fn kind(&self) -> &'static str {
        match self.doing {
            Doing::Beginning | Doing::Attaching | Doing::Filling | Doing::Readying => "fill_view",
            Doing::Controlling { .. } => "control_view",
            Doing::Detaching(Then::Drop) => "drop_view",
            Doing::Detaching(Then::Fail(_)) | Doing::Failing(_) => "fail_view",
        }
    }
}
