//! Rows into a table that three views read, against one that none does.

use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use engine::event::Events;
use engine::options::Options;
use engine::types::RegionId;
use futures::future::try_join_all;

use super::{Turns, note, quantile, rate, say};
use crate::flights::{self, January};
use crate::one::{NODE, One};

const BATCH: usize = 1_000;
/// Batches under way.
const WRITERS: usize = 4;

/// The views: their names and what they are.
pub const VIEWS: [(&str, &str); 3] = [
    ("far", "SELECT origin, carrier, flight, sched_dep, dest, dep_delay, distance FROM fed WHERE distance > 500"),
    (
        "carriers",
        "SELECT carrier, count(*) AS flights, sum(distance) AS miles, avg(dep_delay) AS delay FROM fed GROUP BY carrier",
    ),
    (
        "days",
        "SELECT carrier, date_trunc('day', sched_dep) AS day, count(*) AS flights, max(dep_delay) AS worst
         FROM fed GROUP BY carrier, date_trunc('day', sched_dep)",
    ),
];

pub fn run() {
    let january = January::read();
    // Of the rows of each batch some are in each view.
    let rows = january.rows() / BATCH * BATCH;
    let one = One::start(Options::default(), Events::of(NODE));
    one.sql(&flights::create("unread", 1));
    let (feeder, views) = fed(&one);
    note(format_args!("{rows} rows a turn in batches of {BATCH}, {WRITERS} at a time"));
    let mut acknowledged = Vec::new();
    let (mut fed_months, mut unread_months) = (0, 0);
    let fed = || {
        let month = january.later(fed_months).slice(0, rows);
        fed_months += 1;
        let begun = Instant::now();
        write(&one, "fed", &month);
        acknowledged.push(rate(rows, begun.elapsed()));
        one.follow(feeder, &views);
        rate(rows, begun.elapsed())
    };
    let unread = || {
        let month = january.later(unread_months).slice(0, rows);
        unread_months += 1;
        rate(rows, write(&one, "unread", &month))
    };
    Turns::of(fed, unread).print("rows", "written and in all three views", "written to a table without views", None);
    let writes = quantile(&acknowledged[1..], 0.5);
    say(format_args!("  (until the last write is acknowledged, the views being behind: {writes:.0} rows/s)"));
}

/// Makes the table `fed` with its views: its region and theirs.
pub fn fed(one: &One) -> (RegionId, Vec<RegionId>) {
    one.sql(&flights::create("fed", 1));
    let region = |name: &str| one.table(name).regions[0].id;
    for (view, query) in VIEWS {
        one.fill(&format!("CREATE MATERIALIZED VIEW {view} WITH (regions = 1) AS {query}"), view);
    }
    (region("fed"), VIEWS.map(|(view, _)| region(view)).into())
}

fn write(one: &One, table: &'static str, rows: &RecordBatch) -> Duration {
    let starts: Vec<usize> = (0..rows.num_rows()).step_by(BATCH).collect();
    let begun = Instant::now();
    one.wait(async {
        let mut writing = Vec::new();
        for writer in 0..WRITERS {
            let mine = starts.iter().skip(writer).step_by(WRITERS);
            let mine = mine.map(|start| rows.slice(*start, BATCH.min(rows.num_rows() - start)));
            let (session, mine) = (one.session.clone(), mine.collect::<Vec<_>>());
            writing.push(tokio::spawn(async move {
                for batch in mine {
                    session.insert(table, batch).await.unwrap();
                }
            }));
        }
        try_join_all(writing).await.unwrap();
    });
    begun.elapsed()
}
