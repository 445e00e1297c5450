//! What a node counts: fed by its events, one registry a node.
//!
//! Counters only grow, from the start of the process on; those of a region go with its replica. Histograms have cumulative
//! buckets, as Prometheus reads them. Gauges are not kept here: who is asked for samples adds what is so at that moment.
//!
//! The names follow Prometheus: `seedbed_` first, the unit last, `_total` for counters.
//!
//! Cost: nothing runs by itself. What is counted happens once a request or less often, and takes a lock that nobody holds for
//! longer than a few map entries. What happens for each entry of a log is not counted ([`Events::detail`]), for its events are
//! costly to build. There is a series for each region that has a replica here, so that memory does not grow with time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::event::Events;
use crate::event::{Event, Listen};
use crate::types::{NodeId, RegionId};

/// Upper bounds of the buckets of a histogram of times, in seconds.
const BUCKETS: [f64; 7] = [0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0];

/// A value at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The region that it is of; none: the node's.
    pub region: Option<RegionId>,
    /// Of a histogram: the upper bound of the bucket.
    pub le: Option<String>,
    /// The value.
    pub value: f64,
}

/// Kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Metrics {
    inner: Mutex<Inner>,
}

type Series = (Option<RegionId>, &'static str);

#[derive(Debug, Default)]
struct Inner {
    counters: BTreeMap<Series, u64>,
    histograms: BTreeMap<Series, Histogram>,
}

#[derive(Debug, Default)]
struct Histogram {
    /// How many fell into each bucket, and beyond the last.
    counts: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Listen for Metrics {
    fn on_event(&self, _: NodeId, event: &Event) {
        let region = event.region();
        let add = |counts: &[(&'static str, u64)]| {
            let mut inner = self.inner();
            for (name, amount) in counts {
                *inner.counters.entry((region, name)).or_default() += amount;
            }
        };
        let count = |name| add(&[(name, 1)]);
        match event {
            Event::FlushFinished { rows, .. } => {
                add(&[("seedbed_flushes_total", 1), ("seedbed_flush_rows_total", *rows)]);
            }
            Event::FlushFailed { .. } => count("seedbed_flush_failures_total"),
            Event::CompactionFinished { inputs, outputs, rows, dropped, .. } => add(&[
                ("seedbed_compactions_total", 1),
                ("seedbed_compaction_input_files_total", *inputs),
                ("seedbed_compaction_output_files_total", *outputs),
                ("seedbed_compaction_rows_total", *rows),
                ("seedbed_compaction_dropped_rows_total", *dropped),
            ]),
            Event::CompactionFailed { .. } => count("seedbed_compaction_failures_total"),
            Event::BufferFlush { .. } => count("seedbed_buffer_flushes_total"),
            Event::WriteStalled { .. } => count("seedbed_write_stalls_total"),
            Event::WriteResumed { waited_ms, .. } => {
                let mut inner = self.inner();
                let histogram = inner.histograms.entry((region, "seedbed_write_stall_seconds")).or_default();
                histogram.observe(*waited_ms as f64 / 1_000.0);
            }
            Event::WriteRejected { .. } => count("seedbed_write_rejections_total"),
            Event::WriteProposed { rows, .. } => {
                add(&[("seedbed_writes_total", 1), ("seedbed_write_rows_total", *rows)]);
            }
            Event::WriteConflict { .. } => count("seedbed_write_conflicts_total"),
            Event::WriteRepeated { .. } => count("seedbed_write_repeats_total"),
            Event::FollowerRead { .. } => count("seedbed_follower_reads_total"),
            Event::FollowerReadRefused { .. } => count("seedbed_follower_read_refusals_total"),
            Event::BecameLeader { .. } => count("seedbed_raft_elections_won_total"),
            Event::TransferStarted { .. } => count("seedbed_raft_transfers_total"),
            Event::LogStalled { .. } => count("seedbed_raft_log_stalls_total"),
            Event::SnapshotSending { .. } => count("seedbed_snapshots_sent_total"),
            Event::SnapshotInstalled { .. } => count("seedbed_snapshots_installed_total"),
            Event::ReplicaReopening { .. } => count("seedbed_replica_reopenings_total"),
            Event::FileDamaged { .. } => count("seedbed_damaged_files_total"),
            Event::ReplicaMended { .. } => count("seedbed_replicas_mended_total"),
            // Of the node, not of the region: any node may ask any region.
            Event::RouteRefreshed { .. } => {
                *self.inner().counters.entry((None, "seedbed_route_refreshes_total")).or_default() += 1;
            }
            Event::PeerConnected { .. } => count("seedbed_peer_connections_total"),
            Event::PeerLost { unanswered, .. } => {
                add(&[("seedbed_peer_losses_total", 1), ("seedbed_peer_unanswered_requests_total", *unanswered)]);
            }
            Event::ReplicaDropped { region, .. } => self.inner().forget(*region),
            _ => {}
        }
    }
}

impl Metrics {
    /// What was counted until now, by name and region.
    pub fn samples(&self) -> Vec<Sample> {
        let inner = self.inner();
        let counter = |((region, name), value): (&Series, &u64)| Sample {
            name: (*name).to_string(),
            kind: Kind::Counter,
            region: *region,
            le: None,
            value: *value as f64,
        };
        let mut samples: Vec<Sample> = inner.counters.iter().map(counter).collect();
        for ((region, name), histogram) in &inner.histograms {
            samples.extend(histogram.samples(name, *region));
        }
        samples
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, region: RegionId) {
        // Its replica is never dropped: this stands for a region that is not known any more.
        if region != RegionId::META {
            self.counters.retain(|(of, _), _| *of != Some(region));
            self.histograms.retain(|(of, _), _| *of != Some(region));
        }
    }
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        self.counts[BUCKETS.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    fn samples(&self, name: &str, region: Option<RegionId>) -> Vec<Sample> {
        let sample = |suffix: &str, le: Option<String>, value: f64| Sample {
            name: format!("{name}_{suffix}"),
            kind: Kind::Histogram,
            region,
            le,
            value,
        };
        let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        let mut total = 0;
        let mut samples = Vec::new();
        for (bound, count) in bounds.zip(self.counts) {
            total += count;
            samples.push(sample("bucket", Some(bound), total as f64));
        }
        samples.push(sample("sum", None, self.sum));
        samples.push(sample("count", None, total as f64));
        samples
    }
}

impl Sample {
    /// A value that goes up and down.
    pub fn gauge(name: &str, region: Option<RegionId>, value: u64) -> Sample {
        Sample { name: name.to_string(), kind: Kind::Gauge, region, le: None, value: value as f64 }
    }
}

impl Kind {
    /// As Prometheus calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// The samples of `node` in the text format of Prometheus.
pub fn prometheus(node: NodeId, samples: &[Sample]) -> String {
    let family = |sample: &Sample| match sample.kind {
        // A histogram is one family of three kinds of lines.
        Kind::Histogram => sample.name.rsplit_once('_').map_or(sample.name.clone(), |(name, _)| name.to_string()),
        _ => sample.name.clone(),
    };
    let mut families: BTreeMap<String, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        families.entry(family(sample)).or_default().push(sample);
    }
    let mut text = String::new();
    for (name, samples) in families {
        let _ = writeln!(text, "# TYPE {name} {}", samples[0].kind.name());
        for sample in samples {
            let _ = write!(text, "{}{{node=\"{}\"", sample.name, node.0);
            if let Some(region) = sample.region {
                let _ = write!(text, ",region=\"{region}\"");
            }
            if let Some(le) = &sample.le {
                let _ = write!(text, ",le=\"{le}\"");
            }
            let _ = writeln!(text, "}} {}", sample.value);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Events;
    use crate::types::{LogId, ReplicaId, Sequence};

    #[test]
    fn events_are_counted_by_region_and_printed_for_prometheus() {
        let metrics = Metrics::default();
        let (region, replica) = (RegionId(1 << 32), ReplicaId(1));
        let flushed =
            |rows| Event::FlushFinished { region, replica, upto: LogId::default(), sequence: Sequence(9), rows };
        let resumed = |waited_ms| Event::WriteResumed { region, replica, bytes: 1, waited_ms };
        let lost = Event::PeerLost { peer: NodeId(2), unanswered: 3 };
        let asked_elsewhere = Event::RouteRefreshed { region };
        for event in [flushed(4), flushed(5), resumed(10), resumed(11), resumed(60_000), lost, asked_elsewhere] {
            metrics.on_event(NodeId(1), &event);
        }
        let mut samples = metrics.samples();
        samples.push(Sample::gauge("seedbed_raft_leader", Some(region), 1));
        let expected = "\
# TYPE seedbed_flush_rows_total counter
seedbed_flush_rows_total{node=\"1\",region=\"t1/0\"} 9
# TYPE seedbed_flushes_total counter
seedbed_flushes_total{node=\"1\",region=\"t1/0\"} 2
# TYPE seedbed_peer_losses_total counter
seedbed_peer_losses_total{node=\"1\"} 1
# TYPE seedbed_peer_unanswered_requests_total counter
seedbed_peer_unanswered_requests_total{node=\"1\"} 3
# TYPE seedbed_raft_leader gauge
seedbed_raft_leader{node=\"1\",region=\"t1/0\"} 1
# TYPE seedbed_route_refreshes_total counter
seedbed_route_refreshes_total{node=\"1\"} 1
# TYPE seedbed_write_stall_seconds histogram
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"0.001\"} 0
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"0.01\"} 1
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"0.1\"} 2
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"0.5\"} 2
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"1\"} 2
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"5\"} 2
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"30\"} 2
seedbed_write_stall_seconds_bucket{node=\"1\",region=\"t1/0\",le=\"+Inf\"} 3
seedbed_write_stall_seconds_sum{node=\"1\",region=\"t1/0\"} 60.021
seedbed_write_stall_seconds_count{node=\"1\",region=\"t1/0\"} 3
";
        assert_eq!(prometheus(NodeId(1), &samples), expected);

        // What is of a region goes with its replica.
        metrics.on_event(NodeId(1), &Event::ReplicaDropped { region, replica });
        let left: Vec<String> = metrics.samples().into_iter().map(|sample| sample.name).collect();
        let of_node = ["peer_losses_total", "peer_unanswered_requests_total", "route_refreshes_total"];
        assert_eq!(left, of_node.map(|name| format!("seedbed_{name}")));
    }

    #[test]
    fn details_are_not_even_built_for_who_counts() {
        let metrics = Arc::new(Metrics::default());
        let events = Events::of(NodeId(1)).counted_by(metrics.clone());
        let committed = || Event::Committed { replica: ReplicaId(3), upto: LogId::default() };
        events.detail(|| unreachable!("nobody hears {:?}", committed()));
        let elected = || Event::BecameLeader { region: RegionId::META, replica: ReplicaId(3), term: 7 };
        events.emit(elected);
        assert_eq!(metrics.samples().len(), 1);

        // Another listener hears both.
        let other = Arc::new(Heard::default());
        let events = Events::heard_by(NodeId(1), other.clone()).counted_by(metrics);
        events.detail(committed);
        events.emit(elected);
        assert_eq!(*other.0.lock().unwrap(), ["Committed", "BecameLeader"]);
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<&'static str>>);

    impl Listen for Heard {
        fn on_event(&self, _: NodeId, event: &Event) {
            self.0.lock().unwrap().push(event.name());
        }
    }
}
