//! Which node gets which replica: a pure function of how many each node has.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::catalog::RegionDef;
use crate::types::{NodeId, RegionId, ReplicaId, TableId};

/// What a node has of the tables that exist or are being created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Replicas.
    pub replicas: u64,
    /// Those of them that are their region's first leader.
    pub leaders: u64,
}

/// Places `regions` regions of `table` with `replicas` replicas each on the nodes of `load`, on different nodes per
/// region, so that replicas and first leaders are spread evenly; numbers the replicas from `first` on, each region's
/// first leader first.
///
/// `replicas` is at most the number of nodes.
pub fn place(
    table: TableId,
    regions: u32,
    replicas: usize,
    first: ReplicaId,
    load: &BTreeMap<NodeId, Load>,
) -> Vec<RegionDef> {
    let mut load = load.clone();
    let mut ids = (first.0..).map(ReplicaId);
    let mut place_one = |number| {
        // The leader goes where the fewest are; the others to the emptiest nodes, among equals to those that lead more, so
        // that the next leaders find the nodes that lead less the emptier.
        let leader = load.iter().min_by_key(|(_, load)| (load.leaders, load.replicas)).map(|(node, _)| *node);
        let mut nodes: Vec<NodeId> = load.keys().copied().collect();
        nodes.sort_by_key(|node| (Some(*node) != leader, load[node].replicas, Reverse(load[node].leaders)));
        nodes.truncate(replicas);
        for (at, node) in nodes.iter().enumerate() {
            let load = load.get_mut(node).expect("it is one of them");
            load.replicas += 1;
            load.leaders += u64::from(at == 0);
        }
        RegionDef {
            id: RegionId::new(table, number),
            replicas: nodes.into_iter().zip(ids.by_ref()).map(|(node, id)| (id, node)).collect(),
        }
    };
    (0..regions).map(&mut place_one).collect()
}

/// Of the nodes of `load` that may be chosen the one with the fewest replicas; among equals the one that leads less.
pub fn emptiest(load: &BTreeMap<NodeId, Load>, may: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
    load.iter().filter(|(node, _)| may(node)).min_by_key(|(_, load)| **load).map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn empty(nodes: u64) -> BTreeMap<NodeId, Load> {
        (1..=nodes).map(|node| (NodeId(node), Load::default())).collect()
    }

    fn loaded(nodes: u64, regions: &[RegionDef]) -> BTreeMap<NodeId, Load> {
        let mut load = empty(nodes);
        for region in regions {
            for (at, node) in region.replicas.values().enumerate() {
                load.get_mut(node).unwrap().replicas += 1;
                load.get_mut(node).unwrap().leaders += u64::from(at == 0);
            }
        }
        load
    }

    /// How uneven replicas and leaders are.
    fn spread(load: &BTreeMap<NodeId, Load>) -> (u64, u64) {
        let spread = |of: fn(&Load) -> u64| {
            load.values().map(of).max().unwrap_or_default() - load.values().map(of).min().unwrap_or_default()
        };
        (spread(|load| load.replicas), spread(|load| load.leaders))
    }

    #[test]
    fn replicas_and_leaders_are_even_for_every_shape_and_a_node_has_one_replica_of_a_region() {
        for nodes in 1..=7 {
            for replicas in 1..=nodes {
                let regions = place(TableId(1), 40, replicas as usize, ReplicaId(1), &empty(nodes));
                for upto in 1..=regions.len() {
                    let load = loaded(nodes, &regions[..upto]);
                    let (of_replicas, of_leaders) = spread(&load);
                    assert!(of_replicas <= 1 && of_leaders <= 1, "{nodes} nodes, {replicas} replicas: {load:?}");
                }
                for region in &regions {
                    let distinct: BTreeSet<_> = region.replicas.values().collect();
                    assert_eq!(distinct.len() as u64, replicas);
                }
                let ids: BTreeSet<_> = regions.iter().flat_map(|region| region.replicas.keys()).collect();
                assert_eq!(ids.len() as u64, regions.len() as u64 * replicas, "an id twice");
            }
        }
    }

    #[test]
    fn a_table_is_placed_onto_what_those_before_it_left() {
        let mut regions = Vec::new();
        for (table, (count, replicas)) in [(4, 3), (1, 1), (16, 3), (3, 5), (2, 2), (7, 1)].into_iter().enumerate() {
            let load = loaded(5, &regions);
            regions.extend(place(TableId(table as u32), count, replicas, ReplicaId(1), &load));
            let load = loaded(5, &regions);
            let (of_replicas, of_leaders) = spread(&load);
            assert!(of_replicas <= 2 && of_leaders <= 1, "{load:?}");
        }
    }

    #[test]
    fn the_emptiest_of_those_that_may_is_chosen() {
        let mut load = empty(4);
        load.insert(NodeId(1), Load { replicas: 2, leaders: 1 });
        load.insert(NodeId(2), Load { replicas: 1, leaders: 1 });
        load.insert(NodeId(3), Load { replicas: 1, leaders: 0 });
        assert_eq!(emptiest(&load, |_| true), Some(NodeId(4)));
        assert_eq!(emptiest(&load, |node| node.0 < 4), Some(NodeId(3)), "3 leads less");
        assert_eq!(emptiest(&load, |node| node.0 < 2), Some(NodeId(1)));
        assert_eq!(emptiest(&load, |_| false), None);
    }

    #[test]
    fn a_node_that_has_less_gets_more() {
        let mut load = empty(3);
        load.insert(NodeId(1), Load { replicas: 5, leaders: 3 });
        load.insert(NodeId(2), Load { replicas: 5, leaders: 3 });
        let regions = place(TableId(1), 3, 1, ReplicaId(10), &load);
        assert!(regions.iter().all(|region| region.replicas.values().eq([&NodeId(3)])), "{regions:?}");
    }
}
