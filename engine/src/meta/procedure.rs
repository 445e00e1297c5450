//! A procedure: many steps on many nodes that end in a table being there, or being gone, or having a replica elsewhere. All
//! of it is data in the log.
//!
//! ```text
//! create   Prepared -> ReplicasCreated -> GroupsFormed -> Published -> (ended: done)
//!              \______________\______________________> Undoing   -> (ended: failed)
//! drop     Unpublished -> (ended: done)
//! truncate Truncating  -> (ended: done)
//! alter    Altering    -> (ended: done)
//! index    Indexing    -> (ended: the index is ready)
//! move     Making -> Joining -> Switching -> Leaving -> (ended: done)
//!              \         \____________\__> Retracting -> Withdrawing -> (ended: failed)
//!               \_________________________________________^
//! ```
//!
//! The statement is *decided*, and answered, at Published, Undoing and Unpublished. What follows goes on in the
//! background until it is done: nodes that are down then hold up nobody. TRUNCATE and
//! ALTER are answered at their end; they need each region's leader, not each replica. The catalog has the new columns when all
//! regions have: whoever still comes with the old ones to a region that has the new ones is sent back to ask.
//! An index comes with an ALTER, whose end begins the procedure that watches the backfill; the leaders of the regions do it.
//! A move is decided at Leaving, when the region's members are others, or at Withdrawing. It is given up if the node that is to
//! get the replica refuses it or has been dead for long, if the region's members are none that it can be done of, or if a step
//! does not get on for very long, whatever the nodes answer; as long as the replica has no vote: from Retracting it goes back
//! to Switching if the region says that it has.
//!
//! Everything here is pure: [`Procedure::next`] says what to ask of which node, [`Procedure::progress`] what the answers
//! mean, [`Procedure::after`] what state follows. Each state holds what is *open*, so that what has been done is not
//! asked for again, not even by the next leader. Every request may be sent any number of times.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::catalog::{RegionDef, TableDef};
use super::command::{Progress, Reached, StatementId, Step};
use super::view::{After, Doing, ViewWork};
use crate::error::{Error, Invalid, Result};
use crate::server::message::{ProcedureRef, Replacement, Request, Response};
use crate::types::{IndexId, NodeId, ProcedureId, RegionId, ReplicaId, Schema, TableId};

/// A procedure that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Procedure {
    /// Never reused.
    pub id: ProcedureId,
    /// Counts the entries that advanced it: what an `Advance` compares.
    pub step: u32,
    /// The term of the leader that advanced it last; a lower one cannot any more. 0: it was only started.
    pub term: u64,
    /// The statement that started it; none: meta itself.
    pub request: Option<StatementId>,
    /// The table that it is about.
    pub subject: Subject,
    /// Where it is.
    pub state: ProcedureState,
}

/// What a procedure knows of the table that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// All of it, with the ids and nodes of all replicas as the catalog has them. Of a move: with the columns that it was
    /// created with, for a replica that begins at the beginning of the log.
    Whole(Box<TableDef>),
    /// How people and locks call it: a move that is decided only has a replica to drop, and if that one's node never comes
    /// back it is kept for ever.
    Named {
        /// Its id.
        id: TableId,
        /// Its name when the move was decided.
        name: String,
    },
}

/// Where a procedure is, and what is open there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcedureState {
    /// Create: ids are given out. Replicas are being made.
    Prepared {
        /// Not yet made.
        open: BTreeSet<ReplicaId>,
    },
    /// Create: each region has a majority of its replicas. Groups are being formed.
    ReplicasCreated {
        /// Replicas that are made later, in the background.
        missing: BTreeSet<ReplicaId>,
        /// Not yet formed.
        open: BTreeSet<RegionId>,
    },
    /// Create: groups are formed. They are electing leaders.
    GroupsFormed {
        /// Replicas that are made later, in the background.
        missing: BTreeSet<ReplicaId>,
        /// No leader seen yet.
        open: BTreeSet<RegionId>,
    },
    /// Create: the table is in the catalog; missing replicas are being made.
    Published {
        /// Not yet made.
        open: BTreeSet<ReplicaId>,
    },
    /// Create: it cannot succeed. Whatever there may be is being dropped.
    Undoing {
        /// Why.
        error: Error,
        /// Not yet dropped.
        open: BTreeSet<ReplicaId>,
    },
    /// Drop: the table is not in the catalog any more; its replicas are being dropped.
    Unpublished {
        /// Not yet dropped.
        open: BTreeSet<ReplicaId>,
    },
    /// Alter: the regions are being given the schema.
    Altering {
        /// The schema that the table is going to have.
        schema: Box<Schema>,
        /// Not yet altered.
        open: BTreeSet<RegionId>,
    },
    /// Truncate: rows are being taken out of the regions.
    Truncating {
        /// Not yet empty.
        open: BTreeSet<RegionId>,
    },
    /// Something is being done about a view.
    View(ViewWork),
    /// An index is being backfilled, by the leaders of the regions themselves.
    Indexing {
        /// The index.
        index: IndexId,
        /// Regions that are not known to be through.
        open: BTreeSet<RegionId>,
    },
    /// Move: the new replica is being made.
    Making(Move),
    /// Move: the new replica is being added to the region's group, without a vote.
    Joining(Move),
    /// Move: the new replica is getting the vote of the old one, as soon as it has its log.
    Switching(Move),
    /// Move: the old replica, which is no member any more, is being dropped.
    Leaving(Move),
    /// Move: given up; the new replica is being removed from the region's group.
    Retracting {
        /// What was to be done.
        of: Move,
        /// Why not.
        error: Error,
    },
    /// Move: given up; the new replica is being dropped.
    Withdrawing {
        /// What was to be done.
        of: Move,
        /// Why not.
        error: Error,
    },
}

/// A replica of a region that takes the place of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The region.
    pub region: RegionId,
    /// Who joins, who leaves.
    pub change: Replacement,
}

/// What to ask of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// What it is about.
    pub target: Target,
    /// Whom to ask.
    pub node: NodeId,
    /// What to ask.
    pub request: Request,
}

/// What an action is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Making or dropping a replica.
    Replica(ReplicaId),
    /// Forming a region's group, finding its leader, or asking it to truncate, alter or change its members.
    Region(RegionId),
}

impl Subject {
    /// The table's id.
    pub fn id(&self) -> TableId {
        match self {
            Subject::Whole(table) => table.id,
            Subject::Named { id, .. } => *id,
        }
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        match self {
            Subject::Whole(table) => &table.name,
            Subject::Named { name, .. } => name,
        }
    }

    /// The table, if anything of it is needed.
    pub fn table(&self) -> Option<&TableDef> {
        match self {
            Subject::Whole(table) => Some(table),
            Subject::Named { .. } => None,
        }
    }

    /// Its regions; none, if nothing of them is needed.
    pub fn regions(&self) -> &[RegionDef] {
        self.table().map_or(&[], |table| &table.regions)
    }

    /// Forgets all that nobody needs to drop a replica.
    pub(super) fn forget(&mut self) {
        *self = Subject::Named { id: self.id(), name: self.name().to_string() };
    }
}

/// What follows a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The same state with less that is open.
    Same(ProcedureState),
    /// Another state.
    Entered(ProcedureState),
    /// It is through.
    Ended,
}

impl Procedure {
    /// `create_table`, `drop_table`, `truncate_table`, `alter_table`, `move_replica`, `create_index`, or the
    /// [kind](ViewWork::kind) of what is done about a view: the name that events use.
    pub fn kind(&self) -> &'static str {
        match &self.state {
            ProcedureState::View(work) => work.kind(),
            ProcedureState::Indexing { .. } => "create_index",
            ProcedureState::Unpublished { .. } if self.subject.table().is_some_and(|table| table.view.is_some()) => {
                "drop_view"
            }
            ProcedureState::Unpublished { .. } => "drop_table",
            ProcedureState::Truncating { .. } => "truncate_table",
            ProcedureState::Altering { .. } => "alter_table",
            ProcedureState::Making(_)
            | ProcedureState::Joining(_)
            | ProcedureState::Switching(_)
            | ProcedureState::Leaving(_)
            | ProcedureState::Retracting { .. }
            | ProcedureState::Withdrawing { .. } => "move_replica",
            ProcedureState::Prepared { .. }
            | ProcedureState::ReplicasCreated { .. }
            | ProcedureState::GroupsFormed { .. }
            | ProcedureState::Published { .. }
            | ProcedureState::Undoing { .. } => "create_table",
        }
    }

    /// That it is at `step`.
    pub(super) fn reached(&self, step: Step) -> Reached {
        Reached { procedure: self.id, kind: self.kind().to_string(), step }
    }

    /// The table that it is about.
    ///
    /// # Panics
    /// If it is a move that is decided.
    pub fn whole(&self) -> &TableDef {
        self.subject.table().expect("only a move forgets it")
    }

    /// What to ask of the nodes now, all at once. `attempt` counts how often that was in vain: regions then ask another
    /// one of their replicas.
    pub fn next(&self, term: u64, attempt: u32) -> Vec<Action> {
        let by = ProcedureRef { procedure: self.id, step: self.step, term };
        match &self.state {
            ProcedureState::View(work) => work.next(self.whole(), by, attempt),
            ProcedureState::Prepared { open } | ProcedureState::Published { open } => {
                let Subject::Whole(table) = &self.subject else { return Vec::new() };
                self.of_replicas(open, |region, replica| {
                    let table = table.clone();
                    Request::CreateReplica { region: region.id, replica, table, by }
                })
            }
            ProcedureState::ReplicasCreated { missing, open } => self.of_regions(open, missing, attempt, |region| {
                Request::InitGroup { region: region.id, members: region.replicas.clone() }
            }),
            ProcedureState::GroupsFormed { missing, open } => {
                self.of_regions(open, missing, attempt, |region| Request::Status { region: Some(region.id) })
            }
            ProcedureState::Undoing { open, .. } | ProcedureState::Unpublished { open } => {
                self.of_replicas(open, |region, replica| Request::DropReplica { region: region.id, replica, by })
            }
            ProcedureState::Altering { schema, open } => self.of_regions(open, &BTreeSet::new(), attempt, |region| {
                Request::Alter { region: region.id, by, schema: schema.clone() }
            }),
            ProcedureState::Indexing { open, .. } => {
                // Only the leader says, and somebody may wait for it.
                let regions = self.subject.regions().iter().filter(|region| open.contains(&region.id));
                let asked = |region: &RegionDef| {
                    let region_id = region.id;
                    let request = Request::Indexes { region: region_id };
                    let nodes: Vec<NodeId> = region.replicas.values().copied().collect();
                    let target = Target::Region(region_id);
                    nodes.into_iter().map(move |node| Action { target, node, request: request.clone() })
                };
                regions.flat_map(asked).collect()
            }
            ProcedureState::Truncating { open } => {
                // The first one is often the leader; else each further attempt asks another one.
                self.of_regions(open, &BTreeSet::new(), attempt, |region| Request::Truncate { region: region.id, by })
            }
            ProcedureState::Making(Move { region, change }) => {
                let Subject::Whole(table) = &self.subject else { return Vec::new() };
                let ((replica, node), table) = (change.joins, table.clone());
                let request = Request::CreateReplica { region: *region, replica, table, by };
                vec![Action { target: Target::Replica(replica), node, request }]
            }
            ProcedureState::Joining(of) => self.of_members(of, |Move { region, change }| Request::AddLearner {
                region: *region,
                change: change.clone(),
                by,
            }),
            ProcedureState::Switching(of) => self.of_members(of, |Move { region, change }| Request::ChangeMembers {
                region: *region,
                change: change.clone(),
                by,
            }),
            ProcedureState::Retracting { of, .. } => self.of_members(of, |Move { region, change }| {
                Request::RemoveLearner { region: *region, change: change.clone(), by }
            }),
            ProcedureState::Leaving(Move { region, change }) => {
                let (replica, node) = change.leaves;
                let request = Request::DropReplica { region: *region, replica, by };
                vec![Action { target: Target::Replica(replica), node, request }]
            }
            ProcedureState::Withdrawing { of: Move { region, change }, .. } => {
                let (replica, node) = change.joins;
                let request = Request::DropReplica { region: *region, replica, by };
                vec![Action { target: Target::Replica(replica), node, request }]
            }
        }
    }

    /// What the answers to [`Procedure::next`] mean. None: nothing new, ask again later.
    ///
    /// A lost or late answer, a node that is down or full, an answer of another kind: all mean "not yet". Only a refusal
    /// as `Invalid`, which the same request would meet again and again, ends a creation, as long as it is not decided, and a
    /// move, as long as the new replica is not made or if it has other members than the region; and there is no way back for a
    /// replica that has its vote.
    pub fn progress(&self, answers: impl IntoIterator<Item = (Target, Result<Response>)>) -> Option<Progress> {
        if let ProcedureState::View(work) = &self.state {
            let answers: Vec<(Target, Result<Response>)> = answers.into_iter().collect();
            if let Some(error) = work.refusal(&answers) {
                return Some(Progress::Refused(error));
            }
            let done = work.done(self.subject.id(), answers);
            return (!done.is_empty()).then_some(Progress::Regions(done));
        }
        let mut replicas = BTreeSet::new();
        let mut regions = BTreeSet::new();
        for (target, answer) in answers {
            match (&self.state, target, answer) {
                (ProcedureState::GroupsFormed { .. }, Target::Region(region), Ok(Response::Status(status)))
                    if status.iter().any(|replica| replica.region == region && replica.leader.is_some()) =>
                {
                    regions.insert(region);
                }
                (ProcedureState::GroupsFormed { .. }, ..) => {}
                (ProcedureState::Indexing { index, .. }, Target::Region(region), Ok(Response::Indexes(status)))
                    if status.iter().any(|one| one.index == *index && one.is_complete) =>
                {
                    regions.insert(region);
                }
                (
                    ProcedureState::ReplicasCreated { .. }
                    | ProcedureState::Truncating { .. }
                    | ProcedureState::Altering { .. }
                    | ProcedureState::Joining(_)
                    | ProcedureState::Switching(_)
                    | ProcedureState::Retracting { .. },
                    Target::Region(region),
                    Ok(Response::Done),
                ) => {
                    regions.insert(region);
                }
                (_, Target::Replica(replica), Ok(Response::Done)) => {
                    replicas.insert(replica);
                }
                (
                    ProcedureState::Prepared { .. }
                    | ProcedureState::ReplicasCreated { .. }
                    | ProcedureState::Making(_),
                    _,
                    Err(error @ Error::Invalid { .. }),
                )
                | (ProcedureState::Retracting { .. }, _, Err(error @ Error::Invalid { code: Invalid::Request, .. })) => {
                    return Some(Progress::Refused(error));
                }
                // The leader, which has made sure that it leads, knows other members than the catalog. Nobody else changes
                // them meanwhile, so that stays.
                (
                    ProcedureState::Joining(_) | ProcedureState::Switching(_),
                    _,
                    Err(error @ Error::Invalid { code: Invalid::Mismatch, .. }),
                ) => return Some(Progress::GivenUp(error)),
                _ => {}
            }
        }
        match (replicas.is_empty(), regions.is_empty()) {
            (false, _) => Some(Progress::Replicas(replicas)),
            (_, false) => Some(Progress::Regions(regions)),
            _ => None,
        }
    }

    /// What follows from `progress`. An error (`Invalid`): it says nothing that this state is waiting for.
    pub fn after(&self, progress: Progress) -> Result<Next> {
        let next = match (&self.state, progress) {
            (ProcedureState::Prepared { open }, Progress::Replicas(made)) => {
                let open = closed(open, &made)?;
                match self.subject.regions().iter().all(|region| has_majority(region, &open)) {
                    true => Next::Entered(ProcedureState::ReplicasCreated { missing: open, open: self.regions() }),
                    false => Next::Same(ProcedureState::Prepared { open }),
                }
            }
            (ProcedureState::ReplicasCreated { missing, open }, Progress::Regions(formed)) => {
                let (missing, open) = (missing.clone(), closed(open, &formed)?);
                match open.is_empty() {
                    true => Next::Entered(ProcedureState::GroupsFormed { missing, open: self.regions() }),
                    false => Next::Same(ProcedureState::ReplicasCreated { missing, open }),
                }
            }
            (ProcedureState::GroupsFormed { missing, open }, Progress::Regions(led)) => {
                let (missing, open) = (missing.clone(), closed(open, &led)?);
                match open.is_empty() {
                    true => Next::Entered(ProcedureState::Published { open: missing }),
                    false => Next::Same(ProcedureState::GroupsFormed { missing, open }),
                }
            }
            (
                ProcedureState::Prepared { .. } | ProcedureState::ReplicasCreated { .. },
                Progress::Refused(error @ Error::Invalid { .. }),
            ) => Next::Entered(ProcedureState::Undoing { error, open: self.replicas() }),
            (ProcedureState::Published { open }, Progress::Replicas(made)) => {
                let open = closed(open, &made)?;
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Published { open }) }
            }
            (ProcedureState::Undoing { error, open }, Progress::Replicas(gone)) => {
                let (error, open) = (error.clone(), closed(open, &gone)?);
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Undoing { error, open }) }
            }
            (ProcedureState::Unpublished { open }, Progress::Replicas(gone)) => {
                let open = closed(open, &gone)?;
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Unpublished { open }) }
            }
            (ProcedureState::Truncating { open }, Progress::Regions(empty)) => {
                let open = closed(open, &empty)?;
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Truncating { open }) }
            }
            (ProcedureState::Indexing { index, open }, Progress::Regions(through)) => {
                let (index, open) = (*index, closed(open, &through)?);
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Indexing { index, open }) }
            }
            (ProcedureState::Altering { schema, open }, Progress::Regions(altered)) => {
                let (schema, open) = (schema.clone(), closed(open, &altered)?);
                if open.is_empty() { Next::Ended } else { Next::Same(ProcedureState::Altering { schema, open }) }
            }
            (ProcedureState::View(work), Progress::Regions(done)) => {
                closed(&work.open, &done)?;
                match work.after(self.whole(), &done) {
                    After::Goes(next) if next.doing == work.doing => Next::Same(ProcedureState::View(next)),
                    After::Goes(next) => Next::Entered(ProcedureState::View(next)),
                    After::Drops => Next::Entered(ProcedureState::Unpublished { open: self.replicas() }),
                    After::Ends => Next::Ended,
                }
            }
            (ProcedureState::Making(of), Progress::Replicas(made)) => {
                closed(&[of.change.joins.0].into(), &made)?;
                Next::Entered(ProcedureState::Joining(of.clone()))
            }
            (ProcedureState::Making(of), Progress::Refused(error) | Progress::GivenUp(error)) => {
                Next::Entered(ProcedureState::Withdrawing { of: of.clone(), error })
            }
            (ProcedureState::Joining(of), Progress::Regions(joined)) => {
                closed(&[of.region].into(), &joined)?;
                Next::Entered(ProcedureState::Switching(of.clone()))
            }
            (ProcedureState::Switching(of), Progress::Regions(switched)) => {
                closed(&[of.region].into(), &switched)?;
                Next::Entered(ProcedureState::Leaving(of.clone()))
            }
            (ProcedureState::Joining(of) | ProcedureState::Switching(of), Progress::GivenUp(error)) => {
                Next::Entered(ProcedureState::Retracting { of: of.clone(), error })
            }
            (ProcedureState::Retracting { of, error }, Progress::Regions(retracted)) => {
                closed(&[of.region].into(), &retracted)?;
                Next::Entered(ProcedureState::Withdrawing { of: of.clone(), error: error.clone() })
            }
            // It has its vote: there is only the way on.
            (ProcedureState::Retracting { of, .. }, Progress::Refused(_)) => {
                Next::Entered(ProcedureState::Switching(of.clone()))
            }
            (ProcedureState::Leaving(of), Progress::Replicas(gone)) => {
                closed(&[of.change.leaves.0].into(), &gone)?;
                Next::Ended
            }
            (ProcedureState::Withdrawing { of, .. }, Progress::Replicas(gone)) => {
                closed(&[of.change.joins.0].into(), &gone)?;
                Next::Ended
            }
            (state, progress) => {
                let message = format!("procedure {} at {} cannot go on by {progress:?}", self.id, state.step().name());
                return Err(Error::invalid(Invalid::Request, message));
            }
        };
        Ok(next)
    }

    /// All replicas of the table.
    pub fn replicas(&self) -> BTreeSet<ReplicaId> {
        self.subject.regions().iter().flat_map(|region| region.replicas.keys().copied()).collect()
    }

    /// All regions of the table.
    pub fn regions(&self) -> BTreeSet<RegionId> {
        self.subject.regions().iter().map(|region| region.id).collect()
    }

    /// One action at the node of each replica of the region, the new one's too: only the leader does it. They are asked all at
    /// once, for the leader is asked many times until the new replica has its log.
    fn of_members(&self, of: &Move, request: impl Fn(&Move) -> Request) -> Vec<Action> {
        let members = self.subject.regions().iter().filter(|region| region.id == of.region);
        let nodes: BTreeSet<NodeId> = members.flat_map(|region| region.replicas.values().copied()).collect();
        let nodes = nodes.into_iter().chain([of.change.joins.1]);
        nodes.map(|node| Action { target: Target::Region(of.region), node, request: request(of) }).collect()
    }

    /// One action for each replica of `open`, at its node.
    fn of_replicas(
        &self,
        open: &BTreeSet<ReplicaId>,
        request: impl Fn(&RegionDef, ReplicaId) -> Request,
    ) -> Vec<Action> {
        let placed: BTreeMap<ReplicaId, (&RegionDef, NodeId)> = self
            .subject
            .regions()
            .iter()
            .flat_map(|region| region.replicas.iter().map(move |(replica, node)| (*replica, (region, *node))))
            .collect();
        let action = |replica: &ReplicaId| {
            let (region, node) = placed.get(replica)?;
            Some(Action { target: Target::Replica(*replica), node: *node, request: request(region, *replica) })
        };
        open.iter().filter_map(action).collect()
    }

    /// One action for each region of `open`, at the first of its replicas that exist; each further attempt at the next.
    fn of_regions(
        &self,
        open: &BTreeSet<RegionId>,
        missing: &BTreeSet<ReplicaId>,
        attempt: u32,
        request: impl Fn(&RegionDef) -> Request,
    ) -> Vec<Action> {
        let action = |region: &RegionDef| {
            let nodes: Vec<NodeId> =
                region.replicas.iter().filter(|(id, _)| !missing.contains(id)).map(|(_, node)| *node).collect();
            let node = *nodes.get(attempt as usize % nodes.len().max(1))?;
            Some(Action { target: Target::Region(region.id), node, request: request(region) })
        };
        self.subject.regions().iter().filter(|region| open.contains(&region.id)).filter_map(action).collect()
    }
}

impl ProcedureState {
    /// The step that is recorded when this state is entered.
    pub fn step(&self) -> Step {
        match self {
            ProcedureState::Prepared { .. } => Step::Prepared,
            ProcedureState::ReplicasCreated { .. } => Step::ReplicasCreated,
            ProcedureState::GroupsFormed { .. } => Step::GroupsFormed,
            ProcedureState::Published { .. } => Step::Published,
            ProcedureState::Undoing { .. } => Step::Undoing,
            ProcedureState::Unpublished { .. } => Step::Unpublished,
            ProcedureState::Truncating { .. } => Step::Truncating,
            ProcedureState::Altering { .. } => Step::Altering,
            ProcedureState::View(work) => work.step(),
            ProcedureState::Indexing { .. } => Step::Indexing,
            ProcedureState::Making(_) => Step::Making,
            ProcedureState::Joining(_) => Step::Joining,
            ProcedureState::Switching(_) => Step::Switching,
            ProcedureState::Leaving(_) => Step::Leaving,
            ProcedureState::Retracting { .. } => Step::Retracting,
            ProcedureState::Withdrawing { .. } => Step::Withdrawing,
        }
    }

    /// The step that is recorded when the procedure ends in this state.
    pub fn end(&self) -> Step {
        match self {
            ProcedureState::Undoing { .. } | ProcedureState::Withdrawing { .. } => Step::Failed,
            _ => Step::Done,
        }
    }

    /// Whether the statement has its answer.
    pub fn is_decided(&self) -> bool {
        match self {
            ProcedureState::View(work) => !matches!(work.doing, Doing::Controlling { .. }),
            ProcedureState::Prepared { .. }
            | ProcedureState::ReplicasCreated { .. }
            | ProcedureState::GroupsFormed { .. }
            | ProcedureState::Truncating { .. }
            | ProcedureState::Altering { .. }
            | ProcedureState::Making(_)
            | ProcedureState::Joining(_)
            | ProcedureState::Switching(_)
            | ProcedureState::Retracting { .. } => false,
            ProcedureState::Published { .. }
            | ProcedureState::Undoing { .. }
            | ProcedureState::Unpublished { .. }
            | ProcedureState::Indexing { .. }
            | ProcedureState::Leaving(_)
            | ProcedureState::Withdrawing { .. } => true,
        }
    }

    /// Whether it may be given up because it does not get on.
    pub fn can_be_given_up(&self) -> bool {
        matches!(self, ProcedureState::Making(_) | ProcedureState::Joining(_) | ProcedureState::Switching(_))
    }

    /// Why it was given up, if it was.
    pub fn error(&self) -> Option<&Error> {
        match self {
            ProcedureState::Undoing { error, .. }
            | ProcedureState::Retracting { error, .. }
            | ProcedureState::Withdrawing { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether it is about the rows of a table that is there.
    pub fn is_of_rows(&self) -> bool {
        let controls = matches!(self, ProcedureState::View(work) if matches!(work.doing, Doing::Controlling { .. }));
        controls || matches!(self, ProcedureState::Truncating { .. } | ProcedureState::Altering { .. })
    }

    /// Whether it makes a table that is not there yet.
    pub fn is_creating(&self) -> bool {
        !self.is_decided() && !self.is_of_rows() && self.moves().is_none()
    }

    /// Which replica takes the place of which other one, if it is about that.
    pub fn moves(&self) -> Option<&Move> {
        match self {
            ProcedureState::Making(of)
            | ProcedureState::Joining(of)
            | ProcedureState::Switching(of)
            | ProcedureState::Leaving(of)
            | ProcedureState::Retracting { of, .. }
            | ProcedureState::Withdrawing { of, .. } => Some(of),
            _ => None,
        }
    }

    /// How many replicas or regions are open: none, and it is through.
    pub fn open(&self) -> usize {
        match self {
            ProcedureState::Prepared { open }
            | ProcedureState::Published { open }
            | ProcedureState::Undoing { open, .. }
            | ProcedureState::Unpublished { open } => open.len(),
            ProcedureState::ReplicasCreated { missing, open } | ProcedureState::GroupsFormed { missing, open } => {
                missing.len() + open.len()
            }
            ProcedureState::Truncating { open }
            | ProcedureState::Altering { open, .. }
            | ProcedureState::Indexing { open, .. } => open.len(),
            ProcedureState::View(work) => work.open.len(),
            ProcedureState::Making(_)
            | ProcedureState::Joining(_)
            | ProcedureState::Switching(_)
            | ProcedureState::Leaving(_)
            | ProcedureState::Retracting { .. }
            | ProcedureState::Withdrawing { .. } => 1,
        }
    }
}

/// `open` without `done`. An error (`Invalid`) if that closes nothing.
fn closed<T: Ord + Copy>(open: &BTreeSet<T>, done: &BTreeSet<T>) -> Result<BTreeSet<T>> {
    let left: BTreeSet<T> = open.difference(done).copied().collect();
    match left.len() < open.len() {
        true => Ok(left),
        false => Err(Error::invalid(Invalid::Request, "nothing of what is said to be done was open")),
    }
}

/// Whether more than half of the region's replicas are there, so that its group can elect and write.
fn has_majority(region: &RegionDef, missing: &BTreeSet<ReplicaId>) -> bool {
    let made = region.replicas.keys().filter(|replica| !missing.contains(replica)).count();
    made > region.replicas.len() / 2
}
