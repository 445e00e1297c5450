//! Batches of 1,000 rows, each acknowledged when it is on the disk and applied, against a file that the same bytes are appended to.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use engine::event::Events;
use engine::options::Options;
use engine::types::encode_batch;
use futures::future::try_join_all;

use super::{Turns, note, rate};
use crate::one::{NODE, One};

const BATCH: usize = 1_000;
/// Of a turn.
const BATCHES: usize = 96;

pub fn run() {
    for writers in [1, 8] {
        note(format_args!("batches of {BATCH} rows, {writers} at a time; theirs one at a time"));
        let one = One::start(Options::default(), Events::of(NODE));
        one.sql("CREATE TABLE t (id BIGINT PRIMARY KEY, name STRING, value DOUBLE)");
        let mut first = 0;
        let ours = || {
            let batches: Vec<RecordBatch> = (0..BATCHES).map(|batch| rows(first + batch * BATCH)).collect();
            first += BATCHES * BATCH;
            let begun = Instant::now();
            one.wait(async {
                let mut writing = Vec::new();
                for share in batches.chunks(BATCHES / writers) {
                    let (session, share) = (one.session.clone(), share.to_vec());
                    writing.push(tokio::spawn(async move {
                        for batch in share {
                            session.insert("t", batch).await.unwrap();
                        }
                    }));
                }
                try_join_all(writing).await.unwrap();
            });
            rate(BATCHES * BATCH, begun.elapsed())
        };
        let path = one.folder().join("plain");
        let mut plain = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mut first = 0;
        let theirs = || {
            let batches: Vec<_> = (0..BATCHES).map(|batch| encode_batch(&rows(first + batch * BATCH))).collect();
            first += BATCHES * BATCH;
            let begun = Instant::now();
            for batch in &batches {
                plain.write_all(batch).unwrap();
                plain.sync_data().unwrap();
            }
            rate(BATCHES * BATCH, begun.elapsed())
        };
        Turns::of(ours, theirs).print("rows", "insert", "append and fdatasync", None);
    }
}

fn rows(first: usize) -> RecordBatch {
    let ids = first as i64..(first + BATCH) as i64;
    let names = StringArray::from_iter_values(ids.clone().map(|id| format!("name {}", id % 1_000)));
    let values = Float64Array::from_iter_values(ids.clone().map(|id| id as f64 / 3.0));
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("value", DataType::Float64, true),
    ];
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(ids)), Arc::new(names), Arc::new(values)];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}
