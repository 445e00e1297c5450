//! Files that overlap made into one, against reading and writing them one after the other.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use engine::event::Events;
use engine::options::Options;

use super::files::rewrite;
use super::{Turns, note, rate};
use crate::flights::{self, January};
use crate::one::{NODE, One};

/// Files that are merged. They have rows by turns.
const FILES: usize = 4;

pub fn run() {
    let january = January::read();
    let rows =
        arrow::compute::concat_batches(&january.later(0).schema(), &[0, 1, 2, 3].map(|month| january.later(month)));
    let rows = rows.unwrap();
    let shares: Vec<_> = (0..FILES)
        .map(|file| {
            let chosen = UInt32Array::from_iter_values((file as u32..rows.num_rows() as u32).step_by(FILES));
            take_record_batch(&rows, &chosen).unwrap()
        })
        .collect();
    // Nothing is compacted unasked, and no read keeps old versions.
    let options = Options {
        version_keep_ms: 0,
        compaction_active_runs: u64::MAX,
        compaction_inactive_runs: u64::MAX,
        compaction_small_files: u64::MAX,
        ..Options::default()
    };
    let one = One::start(options, Events::of(NODE));
    // The files that a turn begins with are ours to merge, and copies of them theirs.
    let copies: Vec<PathBuf> = (0..FILES).map(|file| one.folder().join(format!("copy {file}"))).collect();
    let mut turn = 0;
    let ours = || {
        turn += 1;
        let table = format!("t{turn}");
        one.sql(&flights::create(&table, 1));
        let before = one.files();
        for share in &shares {
            one.load(&table, share);
            one.sql(&format!("ADMIN FLUSH TABLE {table}"));
        }
        let mut inputs = one.files();
        inputs.retain(|file| !before.contains(file));
        assert_eq!(inputs.len(), FILES);
        for (input, copy) in inputs.iter().zip(&copies) {
            fs::copy(input, copy).unwrap();
        }
        let bytes = bytes_of(&inputs);
        let begun = Instant::now();
        one.sql(&format!("ADMIN COMPACT TABLE {table}"));
        let took = begun.elapsed();
        let outputs = one.sql(&format!("SELECT file FROM sys.ssts WHERE table_name = '{table}'"));
        assert_eq!(outputs.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1, "all files are merged into one");
        rate(bytes, took) / 1e6
    };
    let theirs = || {
        let begun = Instant::now();
        rewrite(&copies, &one.folder().join("rewritten"));
        rate(bytes_of(&copies), begun.elapsed()) / 1e6
    };
    note(format_args!(
        "{} rows in {FILES} files whose keys overlap; MB of the files as they are on the disk",
        rows.num_rows()
    ));
    let turns = Turns::of(ours, theirs);
    note(format_args!("{:.1} MB in, {:.1} bytes a row", bytes_of(&copies) as f64 / 1e6, {
        bytes_of(&copies) as f64 / rows.num_rows() as f64
    }));
    turns.print("MB", "compaction: merged by key, checked", "arrow: read and written", Some(0.5));
}

fn bytes_of(files: &[PathBuf]) -> u64 {
    files.iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}
