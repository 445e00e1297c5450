//! Which nodes are dead, and what follows from that. Pure: the runner of meta's leader asks the nodes and passes in who
//! answered; nothing of it is in the log but the procedures that it starts.
//!
//! A node counts as dead when it was silent for so long *while this leader heard a majority of all nodes*: time in which the
//! leader itself was cut off says nothing of others, and while it is, nothing is done. A new leader has heard of nobody yet and
//! begins at zero.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::catalog::RegionDef;
use super::procedure::{Procedure, ProcedureState};
use super::state::MetaState;
use crate::types::{NodeId, ProcedureId, RegionId};

/// How long each node has been silent.
#[derive(Debug)]
pub struct Detector {
    /// Silence after which a node is dead.
    limit: Duration,
    silent: BTreeMap<NodeId, Duration>,
    /// Who answered in the last round; nobody, if they were no majority.
    live: BTreeSet<NodeId>,
}

impl Detector {
    /// Nobody was silent yet.
    pub fn new(limit: Duration) -> Detector {
        Detector { limit, silent: BTreeMap::new(), live: BTreeSet::new() }
    }

    /// Of `nodes` these answered when they were asked `elapsed` after the last time.
    pub fn hear(&mut self, nodes: &BTreeSet<NodeId>, answered: BTreeSet<NodeId>, elapsed: Duration) {
        self.silent.retain(|node, _| nodes.contains(node));
        let is_majority = answered.len() * 2 > nodes.len();
        for node in nodes {
            let silent = self.silent.entry(*node).or_default();
            if answered.contains(node) {
                *silent = Duration::ZERO;
            } else if is_majority {
                *silent += elapsed;
            }
        }
        self.live = if is_majority { answered } else { BTreeSet::new() };
    }

    /// Those that are dead, and for how long; none while the leader does not hear a majority.
    pub fn dead(&self) -> BTreeMap<NodeId, Duration> {
        let dead = |(_, silent): &(&NodeId, &Duration)| !self.live.is_empty() && **silent >= self.limit;
        self.silent.iter().filter(dead).map(|(node, silent)| (*node, *silent)).collect()
    }

    /// Those that answered in the last round.
    pub fn live(&self) -> &BTreeSet<NodeId> {
        &self.live
    }
}

/// The next replica to be made elsewhere: on which dead node it is, of which region. None: all that can be done is under way, or
/// `most` at the same time are.
pub fn next_repair(
    state: &MetaState,
    dead: &BTreeSet<NodeId>,
    live: &BTreeSet<NodeId>,
    most: u64,
) -> Option<(RegionId, NodeId)> {
    // Without a majority of its replicas a region cannot change its members: nobody waits for that, and nothing waits for it.
    let can_be_changed =
        |def: &RegionDef| def.replicas.values().filter(|node| live.contains(node)).count() * 2 > def.replicas.len();
    let is_repair = |procedure: &&Procedure| {
        let moves = procedure.state.moves().filter(|_| procedure.request.is_none() && !procedure.state.is_decided());
        let region = moves.and_then(|of| procedure.subject.regions().iter().find(|def| def.id == of.region));
        region.is_some_and(can_be_changed)
    };
    if state.procedures().filter(is_repair).count() as u64 >= most {
        return None;
    }
    let mut regions = state.tables().flat_map(|table| &table.regions).filter(|def| !state.is_changing(def.id));
    regions.find_map(|def| {
        let node = def.replicas.values().find(|node| dead.contains(node)).filter(|_| can_be_changed(def))?;
        state.target(def, live).map(|_| (def.id, *node))
    })
}

/// The moves onto dead nodes that need not be waited for, and where they are.
pub fn hopeless(state: &MetaState, dead: &BTreeSet<NodeId>) -> Vec<(ProcedureId, u32, NodeId)> {
    let hopeless = |procedure: &Procedure| match &procedure.state {
        ProcedureState::Making(of) | ProcedureState::Joining(of) | ProcedureState::Switching(of) => {
            let (_, node) = of.change.joins;
            dead.contains(&node).then_some((procedure.id, procedure.step, node))
        }
        _ => None,
    };
    state.procedures().filter_map(hopeless).collect()
}

/// Replicas on a node, and how many of them no node that is there could take.
pub fn left_behind(state: &MetaState, node: NodeId, live: &BTreeSet<NodeId>) -> (u64, u64) {
    let regions = state.tables().flat_map(|table| &table.regions);
    let on_it = regions.filter(|def| def.replicas.values().any(|at| *at == node));
    let (mut replicas, mut without_place) = (0, 0);
    for def in on_it {
        replicas += 1;
        without_place += u64::from(!state.is_changing(def.id) && state.target(def, live).is_none());
    }
    (replicas, without_place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
        nodes.map(NodeId).into()
    }

    fn dead(detector: &Detector) -> Vec<u64> {
        detector.dead().keys().map(|node| node.0).collect()
    }

    #[test]
    fn silence_counts_from_the_last_answer_and_only_while_a_majority_is_heard() {
        let all = nodes([1, 2, 3, 4]);
        let second = Duration::from_secs(1);
        let mut detector = Detector::new(second * 3);
        assert_eq!(dead(&detector), [0; 0]);
        for _ in 0..2 {
            detector.hear(&all, nodes([1, 2, 3]), second);
        }
        assert_eq!(dead(&detector), [0; 0], "4 is silent for two seconds");
        // The leader is cut off: half of the nodes are no majority.
        for _ in 0..100 {
            detector.hear(&all, nodes([1, 2]), second);
            assert_eq!(dead(&detector), [0; 0]);
        }
        detector.hear(&all, nodes([1, 2, 4]), second);
        assert_eq!(dead(&detector), [0; 0], "3 was silent for one second that counts");
        for _ in 0..2 {
            detector.hear(&all, nodes([1, 2, 4]), second);
        }
        assert_eq!(dead(&detector), [3]);
        assert_eq!(*detector.live(), nodes([1, 2, 4]));
        detector.hear(&all, nodes([1, 2]), second);
        assert_eq!(dead(&detector), [0; 0], "who is cut off does nothing");
        detector.hear(&all, nodes([1, 2, 3]), second);
        assert_eq!(dead(&detector), [0; 0]);
    }
}
