//! Finds the watermarks up to which rows expire, for the regions with a TTL that are led here, and proposes them.
//!
//! A watermark is a time before which a quorum's clocks agree that rows are too old: the *median* of the clocks of the
//! region's voters, of which a majority must answer, less the TTL. So no single wrong clock, the leader's own included, takes
//! rows away too early. A wrong majority is not caught, but slowed down: a watermark goes on by
//! [`Options::expire_step_ms`](crate::options::Options::expire_step_ms) at most. What a watermark hides is decided where the
//! entry is applied ([`region::expire`](crate::region::expire)), by no clock at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::message::{Request, Response};
use super::node::Shared;
use super::store::Store;
use crate::region::command::Command;
use crate::region::expire::Expiry;
use crate::types::{NodeId, RegionId, Timestamp};

/// Looks again and again, for as long as the node is there.
pub(super) async fn work(node: Weak<Shared>) {
    loop {
        let Some(interval) = node.upgrade().map(|node| node.options().expire_interval_ms) else { return };
        sleep(Duration::from_millis(interval)).await;
        let Some(node) = node.upgrade() else { return };
        node.expire_rows().await;
    }
}

impl Shared {
    /// Once for each region with a TTL that is led here.
    async fn expire_rows(&self) {
        let Ok(store) = self.store() else { return };
        let expiring = store.expiring();
        let asked: BTreeSet<NodeId> = expiring.iter().flat_map(|region| region.voters.iter().copied()).collect();
        let clocks = self.clocks(asked).await;
        let steps = expiring.into_iter().map(|region| {
            let mine = region.voters.iter().filter_map(|node| clocks.get(node).copied()).collect();
            self.expire_rows_of(&store, region.id, region.expiry, mine, region.voters.len())
        });
        join_all(steps).await;
    }

    async fn expire_rows_of(
        &self,
        store: &Store,
        region: RegionId,
        expiry: Expiry,
        clocks: Vec<Timestamp>,
        voters: usize,
    ) {
        let step = self.options().expire_step_ms;
        let Some(before) = watermark(&expiry, clocks, voters, step) else { return };
        let command = Command::Expire { schema_version: expiry.schema_version, before };
        let within = Duration::from_millis(self.options().rpc_timeout_ms);
        let done = timeout(within, store.change(region, command)).await;
        if !matches!(done, Ok(Ok(()))) {
            // The next time, here or at the next leader.
            tracing::debug!(%region, ?done, "rows did not expire");
        }
    }

    /// What the clocks of these nodes say, of those that answer.
    async fn clocks(&self, nodes: BTreeSet<NodeId>) -> BTreeMap<NodeId, Timestamp> {
        let within = Duration::from_millis(self.options().rpc_timeout_ms);
        let ask = |node| async move {
            match self.router().call(node, Request::Ping, within).await {
                Ok(Response::Pong(now)) => Some((node, now)),
                _ => None,
            }
        };
        join_all(nodes.into_iter().map(ask)).await.into_iter().flatten().collect()
    }
}

/// The next watermark, in the unit of the TIME INDEX; none: no row is too old, or too few clocks are known of `voters`.
fn watermark(expiry: &Expiry, mut clocks: Vec<Timestamp>, voters: usize, step_ms: u64) -> Option<i64> {
    if clocks.len() <= voters / 2 {
        return None;
    }
    clocks.sort_unstable();
    // Of two in the middle the earlier one.
    let median = clocks[(clocks.len() - 1) / 2].0;
    let units = |ms: i128| (ms * i128::from(expiry.unit.per_second())).div_euclid(1_000);
    let too_old = units(i128::from(median) - i128::from(expiry.ttl_ms));
    // What expires is stepped over: times without rows are not gone through.
    let earliest = expiry.earliest.map(i128::from).filter(|earliest| *earliest < too_old)?;
    let from = expiry.watermark.map_or(earliest, |last| earliest.max(i128::from(last)));
    let before = i64::try_from(too_old.min(from + units(i128::from(step_ms)).max(1))).ok()?;
    expiry.watermark.is_none_or(|last| before > last).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TimeUnit;

    fn after(
        unit: TimeUnit,
        watermark: Option<i64>,
        earliest: Option<i64>,
        clocks: &[i64],
        voters: usize,
    ) -> Option<i64> {
        let expiry = Expiry { ttl_ms: 10_000, unit, watermark, earliest, schema_version: 1 };
        super::watermark(&expiry, clocks.iter().copied().map(Timestamp).collect(), voters, 5_000)
    }

    /// Of a region with a row that is just old enough.
    fn next(unit: TimeUnit, watermark: Option<i64>, clocks: &[i64], voters: usize) -> Option<i64> {
        let mut sorted = clocks.to_vec();
        sorted.sort_unstable();
        let median = sorted[(sorted.len() - 1) / 2] - 10_000;
        let earliest = (median * unit.per_second()).div_euclid(1_000) - 1;
        after(unit, watermark, Some(watermark.map_or(earliest, |last| last.min(earliest))), clocks, voters)
    }

    #[test]
    fn the_median_clock_of_a_majority_decides() {
        use TimeUnit::{Microsecond, Millisecond, Second};
        assert_eq!(next(Millisecond, None, &[50_000, 90_000, 20_000], 3), Some(40_000));
        assert_eq!(next(Millisecond, None, &[50_000, 90_000], 3), Some(40_000), "the earlier of two");
        assert_eq!(next(Millisecond, None, &[90_000], 3), None, "too few answered");
        assert_eq!(next(Millisecond, None, &[90_000], 1), Some(80_000));
        assert_eq!(next(Second, None, &[50_999], 1), Some(40), "a second that is not over");
        assert_eq!(next(Microsecond, None, &[50_000], 1), Some(40_000_000));
        assert_eq!(next(Second, None, &[9_500], 1), Some(-1), "times before 1970 end too");
    }

    #[test]
    fn a_watermark_goes_on_in_steps_and_never_back() {
        use TimeUnit::{Millisecond, Second};
        assert_eq!(next(Millisecond, Some(1_000), &[90_000], 1), Some(6_000));
        assert_eq!(next(Second, Some(1), &[90_000], 1), Some(6));
        assert_eq!(next(Millisecond, Some(78_000), &[90_000], 1), Some(80_000));
        assert_eq!(next(Millisecond, Some(80_000), &[90_000], 1), None);
        assert_eq!(next(Millisecond, Some(90_000), &[90_000], 1), None);
        // The first one too: a wrong majority takes little at a time.
        assert_eq!(after(Millisecond, None, Some(1_000), &[90_000], 1), Some(6_000));
    }

    #[test]
    fn a_time_without_rows_is_stepped_over() {
        use TimeUnit::Millisecond;
        assert_eq!(after(Millisecond, Some(6_000), Some(50_000), &[90_000], 1), Some(55_000));
        assert_eq!(after(Millisecond, Some(6_000), Some(79_000), &[90_000], 1), Some(80_000));
        assert_eq!(after(Millisecond, Some(6_000), Some(80_000), &[90_000], 1), None, "nothing is too old");
        assert_eq!(after(Millisecond, None, None, &[90_000], 1), None, "there are no rows");
    }
}
