//! Random entries: whatever order they come in, the state never contradicts itself, agrees with a model that is too
//! simple to be wrong, and can always be brought to rest.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{added, bootstrap_with, table, view};
use crate::error::{Error, Invalid, Result};
use crate::meta::catalog::TableDef;
use crate::meta::command::FORMAT;
use crate::meta::request::Control;
use crate::meta::view::Doing;
use crate::meta::{
    Command, Decision, Entry as Logged, Limits, MetaState, Outcome, Procedure, ProcedureState, Progress, Step, Target,
};
use crate::region::request::{LegStatus, ReplicaStatus};
use crate::server::message::{Request, Response};
use crate::types::{LegId, NodeId, ProcedureId, RegionId, ReplicaId, Sequence, SessionId, TableId, Timestamp};

/// An entry in the making: indexes are turned into what exists when its turn comes.
#[derive(Clone, Debug)]
enum Entry {
    OpenSession,
    Create {
        name: u8,
        regions: u32,
        replicas: Option<u8>,
        if_not_exists: bool,
        request: (u64, u64),
    },
    /// Over those tables and views, by name, that `mask` has.
    CreateView {
        name: u8,
        regions: u32,
        mask: u16,
        request: (u64, u64),
    },
    Drop {
        name: u8,
        if_exists: bool,
        is_view: bool,
        cascade: bool,
        request: (u64, u64),
    },
    Refill {
        name: u8,
        request: (u64, u64),
    },
    /// Of the `which`-th view.
    Control {
        which: usize,
        control: Control,
        request: (u64, u64),
    },
    Fail {
        which: usize,
    },
    Truncate {
        name: u8,
        request: (u64, u64),
    },
    /// Adds a column to what is version `version` of the table.
    Alter {
        name: u8,
        version: u64,
        request: (u64, u64),
    },
    /// Of the `region`-th region of the table.
    Move {
        name: u8,
        region: u32,
        from: u64,
        to: u64,
        request: (u64, u64),
    },
    Repair {
        region: u32,
        from: u64,
        among: u16,
    },
    /// Of the `which`-th procedure that ever was; the open things that `mask` has are done.
    Advance {
        which: usize,
        behind: u32,
        term: u64,
        mask: u16,
        refused: bool,
    },
    /// The `which`-th of the advances that were recorded arrives once more.
    Again {
        which: usize,
    },
}

fn entry() -> impl Strategy<Value = Entry> {
    let request = || (0u64..5, 1u64..8);
    prop_oneof![
        1 => Just(Entry::OpenSession),
        3 => (0u8..3, 0u32..5, prop::option::of(0u8..6), any::<bool>(), request()).prop_map(
            |(name, regions, replicas, if_not_exists, request)| {
                Entry::Create { name, regions, replicas, if_not_exists, request }
            }
        ),
        3 => (0u8..3, 1u32..3, any::<u16>(), request())
            .prop_map(|(name, regions, mask, request)| Entry::CreateView { name, regions, mask, request }),
        3 => (0u8..3, any::<bool>(), any::<bool>(), any::<bool>(), request()).prop_map(
            |(name, if_exists, is_view, cascade, request)| Entry::Drop { name, if_exists, is_view, cascade, request }
        ),
        1 => (0u8..3, request()).prop_map(|(name, request)| Entry::Refill { name, request }),
        2 => (0usize..3, control(), request())
            .prop_map(|(which, control, request)| Entry::Control { which, control, request }),
        1 => (0usize..3).prop_map(|which| Entry::Fail { which }),
        2 => (0u8..3, request()).prop_map(|(name, request)| Entry::Truncate { name, request }),
        3 => (0u8..3, 1u64..4, request())
            .prop_map(|(name, version, request)| Entry::Alter { name, version, request }),
        4 => (0u8..3, 0u32..2, 1u64..6, 1u64..6, request())
            .prop_map(|(name, region, from, to, request)| Entry::Move { name, region, from, to, request }),
        2 => (0u32..6, 1u64..5, any::<u16>()).prop_map(|(region, from, among)| Entry::Repair { region, from, among }),
        8 => (0usize..20, prop_oneof![9 => Just(0u32), 1 => 1u32..3], 1u64..4, any::<u16>(), prop::bool::weighted(0.1))
            .prop_map(|(which, behind, term, mask, refused)| Entry::Advance { which, behind, term, mask, refused }),
        3 => (0usize..50).prop_map(|which| Entry::Again { which }),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        Just(Control::Pause),
        Just(Control::Resume),
        Just(Control::Cancel),
        prop::option::of(1u64..9).prop_map(Control::RateLimit),
    ]
}

/// What must be true of the outcomes.
#[derive(Default)]
struct Model {
    /// Tables that statements can name.
    visible: BTreeMap<String, TableId>,
    /// What a statement was first answered.
    decided: BTreeMap<(SessionId, u64), Result<Decision, Error>>,
    /// Statements that were run.
    run: BTreeMap<(SessionId, u64), ProcedureId>,
    /// Every procedure that ever was, as it started.
    procedures: Vec<Procedure>,
    /// Every advance that was recorded.
    recorded: Vec<Command>,
    /// The highest ids seen.
    session: u64,
    table: TableId,
    replica: ReplicaId,
}

impl Model {
    fn check(&mut self, command: &Command, outcome: &Outcome, before: &MetaState, state: &MetaState) {
        let request = match command {
            Command::StartCreate { request, .. }
            | Command::StartDrop { request, .. }
            | Command::StartTruncate { request, .. }
            | Command::StartAlter { request, .. }
            | Command::StartRefill { request, .. }
            | Command::StartControl { request, .. }
            | Command::StartMove { request, .. } => Some(*request),
            _ => None,
        };
        match outcome {
            Outcome::Session(session) => {
                assert!(session.0 > self.session, "session {session} was given out before");
                self.session = session.0;
            }
            Outcome::Started { procedure, .. } => {
                let procedure = state.procedure(*procedure).unwrap();
                assert_eq!(procedure.request, request);
                if let Some(request) = request {
                    assert_eq!(self.run.insert(request, procedure.id), None, "a statement was run twice");
                }
                assert!(self.procedures.last().is_none_or(|last| last.id < procedure.id), "a procedure id again");
                if let Command::StartRefill { name, .. } = command {
                    assert!(self.visible.remove(name).is_some(), "what is filled anew was not there");
                }
                if let Command::StartDrop { cascade: true, .. } = command {
                    let dropped = before.tables().filter(|table| state.table(&table.name).is_none());
                    for view in dropped.filter(|table| table.id != procedure.subject.id()) {
                        assert!(depends(before, view, procedure.subject.id()), "{} goes too, and need not", view.name);
                        self.visible.remove(&view.name);
                    }
                }
                if let ProcedureState::Prepared { open } = &procedure.state {
                    assert!(procedure.subject.id() > self.table, "a table id again");
                    assert!(open.iter().all(|replica| *replica > self.replica), "a replica id again");
                    self.table = procedure.subject.id();
                    self.replica = *open.last().unwrap();
                } else if let ProcedureState::Truncating { open } | ProcedureState::Altering { open, .. } =
                    &procedure.state
                {
                    assert_eq!(self.visible.get(procedure.subject.name()), Some(&procedure.subject.id()));
                    assert_eq!(open.len(), procedure.subject.regions().len());
                } else if let ProcedureState::View(work) = &procedure.state
                    && (matches!(work.doing, Doing::Controlling { .. }) || work.kind() == "fail_view")
                {
                    assert_eq!(self.visible.get(procedure.subject.name()), Some(&procedure.subject.id()));
                } else if let Some(of) = procedure.state.moves() {
                    assert!(of.change.joins.0 > self.replica, "a replica id again");
                    self.replica = of.change.joins.0;
                } else {
                    assert_eq!(self.visible.remove(procedure.subject.name()), Some(procedure.subject.id()));
                }
                let known: Vec<ProcedureId> = self.procedures.iter().map(|procedure| procedure.id).collect();
                let new = state.procedures().filter(|procedure| !known.contains(&procedure.id));
                self.procedures.extend(new.cloned());
            }
            Outcome::Decided(decision) => {
                if let Err(error) = decision {
                    assert!(error.is_deterministic(), "{error}");
                }
                if let Some(request) = request {
                    let first = self.decided.entry(request).or_insert_with(|| decision.clone());
                    assert_eq!(first, decision, "a statement was answered in two ways");
                }
            }
            Outcome::Advanced { reached } => {
                let Command::Advance { procedure, .. } = command else { panic!("{command:?} advanced something") };
                assert!(!self.recorded.contains(command), "an advance counted twice: {command:?}");
                self.recorded.push(command.clone());
                let procedure = before.procedure(*procedure).unwrap();
                let own = reached.iter().filter(|reached| reached.procedure == procedure.id);
                let new = state.procedures().filter(|other| before.procedure(other.id).is_none());
                self.procedures.extend(new.cloned());
                for step in own.map(|reached| &reached.step) {
                    match step {
                        Step::Published => {
                            let table = procedure.subject.table().unwrap();
                            assert_eq!(self.visible.insert(table.name.clone(), table.id), None, "a name twice");
                        }
                        Step::Done | Step::Failed => assert!(state.procedure(procedure.id).is_none()),
                        // Only now are the members others.
                        Step::Leaving => {
                            let of = procedure.state.moves().unwrap();
                            let is_one = |state: &MetaState, id| {
                                let mut regions = state.tables().flat_map(|table| &table.regions);
                                regions.any(|def| def.id == of.region && def.replicas.contains_key(&id))
                            };
                            let (leaves, joins) = (of.change.leaves.0, of.change.joins.0);
                            assert!(is_one(before, leaves) && !is_one(before, joins));
                            assert!(!is_one(state, leaves) && is_one(state, joins));
                        }
                        Step::Altering => panic!("it begins there"),
                        _ => {}
                    }
                }
            }
            Outcome::Refused(error) => assert!(error.is_deterministic(), "{error}"),
            Outcome::Bootstrapped | Outcome::Running { .. } | Outcome::NoCluster => {}
            Outcome::Held { .. } | Outcome::Stale => {}
        }
        match outcome {
            Outcome::Held { .. } | Outcome::Stale | Outcome::Running { .. } | Outcome::Refused(_) => {
                assert_eq!(before, state, "{outcome:?} says that nothing was done");
            }
            _ => {}
        }
        for table in state.tables() {
            // One column at each version, and none twice.
            assert_eq!(table.schema.columns().len() as u64, table.schema.version);
        }
        let visible: BTreeMap<String, TableId> = state.tables().map(|table| (table.name.clone(), table.id)).collect();
        assert_eq!(visible, self.visible);
    }
}

/// The entry as a command, as of `state`.
fn command(entry: Entry, state: &MetaState, model: &Model) -> Option<Command> {
    let request = |(session, statement)| (SessionId(session), statement);
    Some(match entry {
        Entry::OpenSession => Command::OpenSession,
        Entry::Again { which } => model.recorded.get(which % model.recorded.len().max(1))?.clone(),
        Entry::Create { name, regions, replicas, if_not_exists, request: by } => {
            let mut table = table(&format!("table{name}"), regions);
            table.if_not_exists = if_not_exists;
            table.replicas = replicas.map(u32::from);
            Command::StartCreate { table: Box::new(table), request: request(by) }
        }
        Entry::CreateView { name, regions, mask, request: by } => {
            let chosen = |at: &usize| mask & (1 << (at % 16)) != 0;
            let feeders: Vec<&TableDef> =
                state.tables().enumerate().filter(|(at, _)| chosen(at)).map(|(_, table)| table).collect();
            // Of one of them twice.
            let feeders = [&feeders[..], feeders.get(..1).filter(|_| mask & 1 == 0).unwrap_or_default()].concat();
            if feeders.is_empty() {
                return None;
            }
            let table = view(&format!("view{name}"), regions, &feeders);
            Command::StartCreate { table: Box::new(table), request: request(by) }
        }
        Entry::Drop { name, if_exists, is_view, cascade, request: by } => Command::StartDrop {
            name: format!("{}{name}", if is_view { "view" } else { "table" }),
            if_exists,
            is_view,
            cascade,
            request: request(by),
        },
        Entry::Refill { name, request: by } => {
            Command::StartRefill { name: format!("view{name}"), request: request(by) }
        }
        Entry::Control { which, control, request: by } => {
            let job = state.views().nth(which).map_or(ProcedureId(0), |(_, view)| view.job);
            Command::StartControl { job, control, request: request(by) }
        }
        Entry::Fail { which } => {
            let view = state.views().nth(which).map_or(TableId(0), |(table, _)| table.id);
            Command::StartFail { view, reason: "it cannot".to_string() }
        }
        Entry::Truncate { name, request: by } => {
            Command::StartTruncate { name: format!("table{name}"), request: request(by) }
        }
        Entry::Alter { name, version, request: by } => {
            let (name, alterations) = (format!("table{name}"), vec![added(&format!("c{version}"))]);
            let of = (state.table(&name).map(|table| table.id).unwrap_or_default(), version);
            Command::StartAlter { name, of, alterations, request: request(by) }
        }
        Entry::Move { name, region, from, to, request: by } => {
            let (name, from, to) = (format!("table{name}"), NodeId(from), NodeId(to));
            Command::StartMove { name, region, from, to, request: request(by) }
        }
        Entry::Repair { region, from, among } => {
            let mut regions = state.tables().flat_map(|table| &table.regions).map(|def| def.id);
            let among = (1..6).filter(|node| among & (1 << node) != 0).map(NodeId).collect();
            Command::StartRepair { region: regions.nth(region as usize)?, from: NodeId(from), among }
        }
        Entry::Advance { which, behind, term, mask, refused } => {
            let was = model.procedures.get(which % model.procedures.len().max(1))?;
            let now = state.procedure(was.id).unwrap_or(was);
            let done = |at: &(usize, Target)| mask & (1 << (at.0 % 16)) != 0;
            let targets = now.next(term, 0).into_iter().map(|action| action.target).enumerate().filter(done);
            let answers = targets.map(|(_, target)| (target, answer(now, target, refused)));
            let progress = match now.state {
                // Its node is dead.
                ProcedureState::Joining(_) | ProcedureState::Switching(_) if refused => {
                    Progress::GivenUp(Error::invalid(Invalid::Request, "it is dead"))
                }
                _ => now.progress(answers)?,
            };
            Command::Advance { procedure: now.id, from: now.step.checked_sub(behind)?, term, progress }
        }
    })
}

/// What a node answers that does what it is asked, or refuses.
fn answer(procedure: &Procedure, target: Target, refused: bool) -> Result<Response> {
    match (&procedure.state, target) {
        (ProcedureState::View(_), _) if refused => Err(Error::invalid(Invalid::ViewFailed, "groups of it are broken")),
        (ProcedureState::View(work), Target::Region(region)) if work.doing == Doing::Filling => Ok(Response::Legs(
            work.feeders
                .iter()
                .flat_map(|feeder| &feeder.legs)
                .map(|leg| {
                    let leg = LegId { view: procedure.subject.id(), leg: *leg };
                    level(leg, region)
                })
                .collect(),
        )),
        _ if refused => Err(Error::invalid(Invalid::Mismatch, "no")),
        (ProcedureState::GroupsFormed { .. }, Target::Region(region)) => Ok(Response::Status(vec![led(region)])),
        _ => Ok(Response::Done),
    }
}

/// Whether `view` reads the table, or a view that does.
fn depends(state: &MetaState, view: &TableDef, table: TableId) -> bool {
    let reads = |leg: &TableId| *leg == table || state.tables().any(|of| of.id == *leg && depends(state, of, table));
    view.view.iter().flat_map(|view| &view.legs).any(|leg| reads(&leg.feeder))
}

fn level(leg: LegId, feeder: RegionId) -> LegStatus {
    LegStatus {
        leg,
        feeder,
        epoch: 1,
        takeovers: 0,
        retries: 0,
        round: 1,
        read: 0,
        done: Some(Sequence(0)),
        upto: None,
        is_live: true,
        is_level: true,
        is_paused: false,
        rate_limit: None,
        failed: None,
        sequence: Sequence(0),
        rows: 0,
        at: Timestamp(0),
    }
}

fn led(region: RegionId) -> ReplicaStatus {
    ReplicaStatus {
        region,
        replica: ReplicaId(1),
        node: NodeId(1),
        is_leader: true,
        leader: Some((ReplicaId(1), NodeId(1))),
        term: 1,
        applied: None,
        flushed: None,
        sequence: Sequence(0),
        oldest: Sequence(0),
        memtable_rows: 0,
        memtable_bytes: 0,
        ssts: 0,
        sst_bytes: 0,
        schema_version: 1,
        members: BTreeMap::new(),
        voters: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_for_every_sequence_of_entries(
        entries in prop::collection::vec(entry(), 1..120),
        results in prop_oneof![Just(3u64), Just(1_000)],
        nodes in 1u64..5,
    ) {
        let mut state = MetaState::new();
        let mut model = Model::default();
        let mut log = Vec::new();
        let mut apply = |state: &mut MetaState, model: &mut Model, command: Command| {
            let before = state.clone();
            let entry = command.clone().at(Timestamp(7));
            log.push(entry.encode());
            let outcome = state.apply_entry(entry);
            state.check();
            model.check(&command, &outcome, &before, state);
            outcome
        };
        let limits = Limits { results, table_regions: 3 };
        apply(&mut state, &mut model, bootstrap_with(nodes, limits));
        for _ in 0..2 {
            apply(&mut state, &mut model, Command::OpenSession);
        }
        for entry in entries {
            if let Some(command) = command(entry, &state, &model) {
                apply(&mut state, &mut model, command);
            }
        }

        // At rest: whoever leads, with nodes that answer, every procedure ends within as many rounds as it has steps.
        // (A view is created in four steps and filled in four more.)
        for _ in 0..10 {
            let open: Vec<Procedure> = state.procedures().cloned().collect();
            for procedure in open {
                let actions = procedure.next(9, 0);
                prop_assert!(!actions.is_empty(), "nothing to ask: {procedure:?}");
                let answers = actions.into_iter().map(|action| (action.target, answer(&procedure, action.target, false)));
                let progress = procedure.progress(answers).expect("the nodes answered");
                let advance = Command::Advance { procedure: procedure.id, from: procedure.step, term: 9, progress };
                let outcome = apply(&mut state, &mut model, advance);
                prop_assert!(matches!(outcome, Outcome::Advanced { .. }), "{outcome:?}");
            }
        }
        prop_assert_eq!(state.procedures().count(), 0, "a procedure has no end");
        prop_assert!(state.answers().count() as u64 <= results.max(1) || results == 1_000);

        let mut replayed = MetaState::new();
        for entry in &log {
            replayed.apply_entry(Logged::decode(entry).unwrap());
        }
        prop_assert_eq!(replayed.encode(), state.encode(), "the log gives another state when it is replayed");
        prop_assert_eq!(MetaState::decode(&state.encode()).unwrap(), state);
    }

    /// Entries come from the network of an older or newer version, or from a damaged disk.
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut state = MetaState::new();
        state.apply(super::bootstrap(3));
        for bytes in [bytes.clone(), [&[FORMAT][..], &bytes].concat()] {
            if let Ok(entry) = Logged::decode(&bytes) {
                state.apply_entry(entry);
            }
            let _ = MetaState::decode(&bytes);
        }
    }
}

#[test]
fn answers_that_do_not_fit_the_question_say_nothing() {
    let mut state = MetaState::new();
    for command in [super::bootstrap(3), Command::OpenSession, super::create("flights", 1, (1, 1))] {
        state.apply(command);
    }
    let procedure = state.procedures().next().unwrap().clone();
    let replica = Target::Replica(ReplicaId(4));
    let unsure = [
        Ok(Response::Status(vec![])),
        Err(Error::Unknown { message: String::new() }),
        Err(Error::Busy { what: String::new() }),
        Err(Error::Stopped),
    ];
    for answer in unsure {
        assert_eq!(procedure.progress([(replica, answer)]), None);
    }
    let done = procedure.progress([(replica, Ok(Response::Done))]);
    assert_eq!(done, Some(Progress::Replicas([ReplicaId(4)].into())));

    // A replica that follows nobody yet, and one of another region, are no leader.
    let region = RegionId::new(TableId(1), 0);
    let electing =
        Procedure { state: ProcedureState::GroupsFormed { missing: [].into(), open: [region].into() }, ..procedure };
    let follower = ReplicaStatus { leader: None, is_leader: false, ..led(region) };
    for status in [vec![], vec![follower], vec![led(RegionId::META)]] {
        assert_eq!(electing.progress([(Target::Region(region), Ok(Response::Status(status)))]), None);
    }
    assert_eq!(electing.progress([(Target::Region(region), Ok(Response::Done))]), None);
    assert!(matches!(electing.next(1, 0)[0].request, Request::Status { .. }));
}
