//! Writes and scans of one region.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use engine::disk::OsDisk;
use engine::event::Events;
use engine::meta::catalog::{PartitionRule, TableDef};
use engine::options::Options;
use engine::raft::{Change, Machine};
use engine::region::request::{ScanRequest, WriteRequest};
use engine::region::{Buffer, Region, ReplicaSpec};
use engine::types::{
    Column, ColumnId, ColumnType, Incarnation, LogId, RegionId, ReplicaId, Schema, TableId, encode_batch,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::one::{NODE, One};

/// Rows of one write.
const BATCH: i64 = 500;
/// Rows that are scanned.
const ROWS: i64 = 50_000;

/// A statement's whole way on a node of its own: session, split, raft, log with fsync, apply.
#[divan::bench]
fn insert(bencher: Bencher) {
    let one = One::start(Options::default(), Events::of(NODE));
    one.sql("CREATE TABLE t (id BIGINT PRIMARY KEY, name STRING, value DOUBLE)");
    let mut first = 0;
    bencher.counter(ItemsCount::new(BATCH as u64)).bench_local(|| {
        first += BATCH;
        one.wait(one.session.insert("t", rows(first..first + BATCH))).unwrap()
    });
}

/// What a committed entry costs the replica that applies it.
#[divan::bench]
fn apply(bencher: Bencher) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let region = runtime.block_on(region(&folder));
    let mut index = 0;
    bencher.counter(ItemsCount::new(BATCH as u64)).bench_local(|| {
        index += 1;
        runtime.block_on(write(&region, index, index as i64 * BATCH..));
        // Flushes are not what is measured, and memory is finite.
        if index % 1_000 == 0 {
            runtime.block_on(region.flush()).unwrap();
        }
    });
}

/// All rows and columns, page by page, out of the memtable (0 files) or out of files that all overlap.
#[divan::bench(args = [0, 1, 20])]
fn scan(bencher: Bencher, files: i64) {
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let region = runtime.block_on(async {
        let region = region(&folder).await;
        let step = files.max(1);
        let mut index = 0;
        for file in 0..step {
            let mut keys = (file..ROWS).step_by(step as usize).peekable();
            while keys.peek().is_some() {
                index += 1;
                write(&region, index, keys.by_ref()).await;
            }
            if files > 0 {
                region.flush().await.unwrap();
            }
        }
        assert_eq!(region.status().ssts, files as u64);
        region
    });
    let columns: Vec<String> = ["id", "name", "value"].map(String::from).into();
    bencher.counter(ItemsCount::new(ROWS as u64)).bench_local(|| {
        runtime.block_on(async {
            let mut scan = ScanRequest { schema_version: 1, columns: columns.clone(), ..ScanRequest::default() };
            let mut rows = 0;
            loop {
                let page = region.scan(scan.clone()).await.unwrap();
                rows += page.rows;
                scan.upto = Some(page.sequence);
                scan.after = page.next;
                if scan.after.is_none() {
                    break;
                }
            }
            assert_eq!(rows, ROWS as u64);
        });
    });
}

fn table() -> TableDef {
    let column = |id, name: &str, column_type| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable: id > 1,
        default: None,
    };
    let columns = vec![
        column(1, "id", ColumnType::Int64),
        column(2, "name", ColumnType::String),
        column(3, "value", ColumnType::Float64),
    ];
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema: Schema::new(1, columns, &["id".into()], None).unwrap(),
        partition: PartitionRule::Hash { columns: vec!["id".into()], regions: 1 },
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
    }
}

fn rows(ids: impl IntoIterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let names = StringArray::from_iter_values(ids.iter().map(|id| format!("name {}", id % 1_000)));
    let values = Float64Array::from_iter_values(ids.iter().map(|id| *id as f64 / 3.0));
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(ids)), Arc::new(names), Arc::new(values)];
    RecordBatch::try_new(table().schema.to_arrow(), columns).unwrap()
}

async fn region(folder: &TempDir) -> Arc<Region> {
    let disk = Arc::new(OsDisk::new(folder.path()));
    engine::disk::Disk::create_dir(&*disk, "r1").await.unwrap();
    // It flushes when it is told to, and never compacts.
    let options = Options {
        memtable_rows: u64::MAX,
        memtable_bytes: u64::MAX,
        compaction_active_runs: u64::MAX,
        compaction_inactive_runs: u64::MAX,
        compaction_small_files: u64::MAX,
        ..Options::default()
    };
    let spec = ReplicaSpec {
        replica: ReplicaId(1),
        folder: "r1".into(),
        incarnation: Incarnation(1),
        disk,
        buffer: Buffer::new(&options, Events::of(NODE)),
        options: Arc::new(options),
        events: Events::of(NODE),
        compactions: Arc::new(Semaphore::new(1)),
        fills: Arc::default(),
    };
    Region::create(spec, RegionId::new(TableId(1), 0), &table()).await.unwrap()
}

/// Applies the next batch of `ids` as an entry.
async fn write(region: &Region, index: u64, ids: impl Iterator<Item = i64>) {
    let write = WriteRequest {
        schema_version: 1,
        rows: encode_batch(&rows(ids.take(BATCH as usize))),
        ops: Bytes::new(),
        expected: Vec::new(),
        request: None,
        acknowledged: 0,
        file: None,
    };
    let (command, _) = region.validate(write).unwrap();
    region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
}
