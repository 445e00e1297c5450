//! How long after its acknowledgement a write is visible in the views of its table.
//!
//! First as many rows as the node can take with their views: the plateau. Then writes that come at a fixed rate, whatever becomes of
//! those before them, at 10 % and at 80 % of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::event::{Event, Events, Listen};
use engine::options::Options;
use engine::region::request::WriteRequest;
use engine::server::message::{Request, Response};
use engine::types::{NodeId, RegionId, Sequence, encode_batch};
use futures::future::try_join_all;

use super::steady::{VIEWS, fed};
use super::{quantile, rate, say};
use crate::flights::January;
use crate::one::{NODE, One};

const BATCH: usize = 100;
/// Batches under way while the plateau is measured.
const WRITERS: usize = 8;
/// How long writes come at each rate.
const LASTS: Duration = Duration::from_secs(8);

/// Which region of a view had what of its feeder, and since when, in that order.
#[derive(Default)]
struct Absorbed(Mutex<Vec<(RegionId, Sequence, Instant)>>);

impl Listen for Absorbed {
    fn on_event(&self, _node: NodeId, event: &Event) {
        if let Event::BatchAbsorbed { region, position, .. } = event
            && let Some(done) = position.split("..").next().and_then(|done| done.strip_prefix('s')?.parse().ok())
        {
            self.0.lock().unwrap().push((*region, Sequence(done), Instant::now()));
        }
    }
}

pub fn run() {
    let absorbed = Arc::new(Absorbed::default());
    let one = One::start(Options::default(), Events::heard_by(NODE, absorbed.clone()));
    let (feeder, views) = fed(&one);
    let mut source =
        Source { january: January::read(), version: one.table("fed").schema.version, months: 0, left: Vec::new() };
    plateau(&one, &mut source, feeder, &views);
    let plateau = plateau(&one, &mut source, feeder, &views);
    say(format_args!(
        "  plateau, in batches of {BATCH} rows, {WRITERS} at a time: {plateau:.0} rows/s written and in all three views"
    ));
    say(format_args!("  {:<8} {:<10} {:>12} {:>12} {:>12}", "load", "view", "median", "p99", "most"));
    for percent in [10, 80] {
        absorbed.0.lock().unwrap().clear();
        let written = at_rate(&one, &mut source, plateau * f64::from(percent) / 100.0);
        one.follow(feeder, &views);
        // What is visible is said right behind.
        std::thread::sleep(Duration::from_millis(50));
        let absorbed = absorbed.0.lock().unwrap();
        for (region, (view, _)) in views.iter().zip(VIEWS) {
            let has: Vec<_> = absorbed.iter().filter(|(of, ..)| of == region).collect();
            let delay = |(sequence, acknowledged): &(Sequence, Instant)| {
                let (.., since) = has[has.partition_point(|(_, done, _)| done < sequence)];
                since.saturating_duration_since(*acknowledged).as_secs_f64() * 1e3
            };
            let delays: Vec<f64> = written.iter().map(delay).collect();
            let [median, p99, most] = [0.5, 0.99, 1.0].map(|at| quantile(&delays, at));
            let load = format!("{percent} %");
            say(format_args!("  {load:<8} {view:<10} {median:>9.2} ms {p99:>9.2} ms {most:>9.2} ms"));
        }
        let lasted = rate(written.len() * BATCH, LASTS);
        say(format_args!("  ({} writes, {lasted:.0} rows/s)", written.len()));
    }
}

/// Writes that were not sent yet.
struct Source {
    january: January,
    version: u64,
    months: usize,
    left: Vec<WriteRequest>,
}

impl Source {
    fn take(&mut self, count: usize) -> Vec<WriteRequest> {
        while self.left.len() < count {
            let month = self.january.later(self.months);
            self.months += 1;
            let starts = (0..month.num_rows() / BATCH).map(|batch| batch * BATCH);
            self.left.extend(starts.map(|start| WriteRequest {
                schema_version: self.version,
                rows: encode_batch(&month.slice(start, BATCH)),
                ops: Default::default(),
                expected: Vec::new(),
                request: None,
                acknowledged: 0,
                file: None,
            }));
        }
        self.left.drain(..count).collect()
    }
}

/// Rows a second that the node can take with the views.
fn plateau(one: &One, source: &mut Source, feeder: RegionId, views: &[RegionId]) -> f64 {
    let writes = source.take(400);
    let begun = Instant::now();
    one.wait(async {
        let mut writing = Vec::new();
        for share in writes.chunks(writes.len() / WRITERS) {
            let (node, share) = (one.node.clone(), share.to_vec());
            writing.push(tokio::spawn(async move {
                for write in share {
                    send(&node, feeder, write).await;
                }
            }));
        }
        try_join_all(writing).await.unwrap();
    });
    one.follow(feeder, views);
    rate(writes.len() * BATCH, begun.elapsed())
}

/// Sends so many rows a second; what sequence each write got, and when it was acknowledged.
fn at_rate(one: &One, source: &mut Source, rows: f64) -> Vec<(Sequence, Instant)> {
    let apart = Duration::from_secs_f64(BATCH as f64 / rows);
    let writes = source.take((LASTS.as_secs_f64() / apart.as_secs_f64()) as usize);
    let feeder = one.table("fed").regions[0].id;
    one.wait(async {
        let mut writing = Vec::new();
        let begun = tokio::time::Instant::now();
        for (number, write) in writes.into_iter().enumerate() {
            tokio::time::sleep_until(begun + apart * number as u32).await;
            let node = one.node.clone();
            writing.push(tokio::spawn(async move { send(&node, feeder, write).await }));
        }
        try_join_all(writing).await.unwrap()
    })
}

async fn send(node: &engine::server::Node, region: RegionId, write: WriteRequest) -> (Sequence, Instant) {
    let answer = node.handle(NodeId(0), Request::Write { region, write }, Duration::from_secs(30)).await.unwrap();
    let acknowledged = Instant::now();
    let Response::Write(written) = answer else { panic!("another answer than to the request: {answer:?}") };
    (written.sequence, acknowledged)
}
