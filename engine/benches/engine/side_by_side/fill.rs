//! How fast a view is filled: from its CREATE to the moment when it may be read.

use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::util::pretty::pretty_format_batches;
use engine::event::Events;

use super::files::datafusion_over;
use super::{Turns, note, rate};
use crate::flights::{self, January};
use crate::one::{NODE, One, one_file};

/// Against inserting the same rows into a table.
pub fn filter() {
    const COLUMNS: &str = "origin, carrier, flight, sched_dep, dest, dep_delay, arr_delay, distance";
    let (one, _) = year_of_flights();
    let create = |view: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {view} WITH (regions = 2) AS
             SELECT {COLUMNS} FROM flights WHERE dep_delay IS NOT NULL AND distance > 100"
        )
    };
    one.fill(&create("departed"), "departed");
    let rows = one.sql(&format!("SELECT {COLUMNS} FROM departed"));
    one.sql("DROP MATERIALIZED VIEW departed");
    let rows: RecordBatch = concat_batches(&rows[0].schema(), &rows).unwrap();
    note(format_args!("{} rows that pass, 2 regions to 2 regions", rows.num_rows()));
    let (mut views, mut copies) = (0, 0);
    let ours = || {
        views += 1;
        let view = format!("departed{views}");
        let took = one.fill(&create(&view), &view);
        one.sql(&format!("DROP MATERIALIZED VIEW {view}"));
        rate(rows.num_rows(), took)
    };
    let theirs = || {
        copies += 1;
        let copy = format!("copy{copies}");
        one.sql(&format!(
            "CREATE TABLE {copy} (
                 origin STRING, carrier STRING, flight INT, sched_dep TIMESTAMP(3),
                 dest STRING, dep_delay INT, arr_delay INT, distance INT,
                 PRIMARY KEY (origin, carrier, flight), TIME INDEX (sched_dep)
             ) WITH (regions = 2)"
        ));
        let begun = Instant::now();
        one.load(&copy, &rows);
        let took = begun.elapsed();
        one.sql(&format!("DROP TABLE {copy}"));
        rate(rows.num_rows(), took)
    };
    Turns::of(ours, theirs).print("rows", "fill of a view", "insert of its rows in one call", Some(0.7));
}

/// Against DataFusion computing the same over the files of the regions that are read.
pub fn group_by() {
    let (one, rows) = year_of_flights();
    let context = datafusion_over("flights", one.files());
    let carriers = "SELECT carrier, count(*) AS flights, sum(distance) AS miles, avg(dep_delay) AS delay
        FROM flights GROUP BY carrier";
    let days = "SELECT carrier, date_trunc('day', sched_dep) AS day, count(*) AS flights, avg(dep_delay) AS delay
        FROM flights GROUP BY carrier, date_trunc('day', sched_dep)";
    let worst = "SELECT carrier, date_trunc('day', sched_dep) AS day, count(*) AS flights, max(dep_delay) AS worst
        FROM flights GROUP BY carrier, date_trunc('day', sched_dep)";
    let mut views = 0;
    for (what, query) in
        [("by carrier", carriers), ("by carrier and day", days), ("by carrier and day, with max", worst)]
    {
        let theirs = || one.wait(async { context.sql(query).await.unwrap().collect().await.unwrap() });
        let mut groups = 0;
        let ours = || {
            views += 1;
            let view = format!("v{views}");
            let create = format!("CREATE MATERIALIZED VIEW {view} WITH (regions = 2) AS {query}");
            let took = one.fill(&create, &view);
            if groups == 0 {
                let found = one.sql(&format!("SELECT * FROM {view}"));
                groups = found.iter().map(RecordBatch::num_rows).sum();
                assert_eq!(sorted(&found), sorted(&theirs()));
            }
            one.sql(&format!("DROP MATERIALIZED VIEW {view}"));
            rate(rows, took)
        };
        let theirs = || {
            let begun = Instant::now();
            theirs();
            rate(rows, begun.elapsed())
        };
        let turns = Turns::of(ours, theirs);
        note(format_args!("{rows} rows {what}: {groups} groups"));
        turns.print("rows", "fill of a view", "DataFusion over the files", Some(0.2));
    }
}

/// A table `flights` of two regions, a file each; how many rows it has.
fn year_of_flights() -> (One, usize) {
    let year = January::read().year();
    let one = One::start(one_file(), Events::of(NODE));
    one.sql(&flights::create("flights", 2));
    one.load("flights", &year);
    one.sql("ADMIN FLUSH TABLE flights");
    assert_eq!(one.files().len(), 2);
    (one, year.num_rows())
}

fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let shown = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = shown.lines().map(str::to_string).collect();
    lines.sort_unstable();
    lines
}
