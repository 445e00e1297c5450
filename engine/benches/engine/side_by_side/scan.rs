//! All rows of a table, filtered and summed up, against DataFusion over the table's files.

use std::time::Instant;

use arrow::util::pretty::pretty_format_batches;
use engine::event::Events;

use super::files::datafusion_over;
use super::{Turns, note, rate};
use crate::flights::{self, January};
use crate::one::{NODE, One, one_file};

const QUERY: &str =
    "SELECT count(*) AS flights, sum(distance) AS miles, avg(dep_delay) AS delay, max(arr_delay) AS worst
    FROM flights WHERE dep_delay > 0 AND distance > 300";

pub fn run() {
    let year = January::read().year();
    for regions in [1, 2] {
        let one = One::start(one_file(), Events::of(NODE));
        one.sql(&flights::create("flights", regions));
        one.load("flights", &year);
        one.sql("ADMIN FLUSH TABLE flights");
        let files = one.files();
        assert_eq!(files.len() as u64, regions);
        note(format_args!("{} rows in {regions} region(s), a file each", year.num_rows()));
        let context = datafusion_over("flights", files);
        let theirs = || one.wait(async { context.sql(QUERY).await.unwrap().collect().await.unwrap() });
        let show = |batches| pretty_format_batches(batches).unwrap().to_string();
        assert_eq!(show(&one.sql(QUERY)), show(&theirs()));
        let ours = || {
            let begun = Instant::now();
            one.sql(QUERY);
            rate(year.num_rows(), begun.elapsed())
        };
        let theirs = || {
            let begun = Instant::now();
            theirs();
            rate(year.num_rows(), begun.elapsed())
        };
        Turns::of(ours, theirs).print("rows", "SELECT", "DataFusion over the files", Some(0.5));
    }
}
