//! A replica of a region by itself: what is applied to it is what a test says.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;

use super::command::Command;
use super::request::WriteRequest;
use super::*;
use crate::disk::memory::{Fault, MemoryDisk};
use crate::disk::{Open, read_whole};
use crate::meta::catalog::PartitionRule;
use crate::raft::{Change, Machine, Snapshot, SnapshotFile};
use crate::types::{Column, ColumnId, ColumnType, ProcedureId, TableId, Value, encode_batch};

fn table() -> TableDef {
    let column =
        Column { id: ColumnId(1), name: "a".into(), column_type: ColumnType::Int64, nullable: false, default: None };
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema: Schema::new(1, vec![column], &["a".into()], None).unwrap(),
        partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
        options: BTreeMap::new(),
        regions: Vec::new(),
    }
}

async fn replica(disk: &MemoryDisk, id: u64) -> Arc<Region> {
    let spec = ReplicaSpec {
        replica: ReplicaId(id),
        folder: format!("replicas/{id}"),
        incarnation: Incarnation(1),
        disk: Arc::new(disk.clone()),
        options: Arc::new(Options::default()),
        events: Events::of(NodeId(1)),
        compactions: Arc::new(Semaphore::new(1)),
    };
    disk.create_dir(&spec.folder).await.unwrap();
    Region::create(spec, RegionId::new(TableId(1), 0), &table()).await.unwrap()
}

async fn put(region: &Region, index: u64, values: &[i64]) {
    let cells: Vec<Value> = values.iter().map(|value| Value::Int(*value)).collect();
    let columns = vec![Value::to_array(&cells, ColumnType::Int64)];
    let rows = arrow::array::RecordBatch::try_new(region.schema.to_arrow(), columns).unwrap();
    let write = WriteRequest {
        schema_version: 1,
        rows: encode_batch(&rows),
        ops: Bytes::new(),
        expected: Vec::new(),
        request: None,
        acknowledged: 0,
    };
    let command = Command::Write { write, sessions: 1 }.encode();
    region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
}

/// `snapshot` as it arrives at `region`.
async fn received(disk: &MemoryDisk, region: &Region, snapshot: Snapshot) -> Snapshot {
    let folder = region.prepare_install().await.unwrap();
    let mut files = Vec::new();
    for (number, file) in snapshot.files.iter().enumerate() {
        let path = format!("{folder}/{number}");
        let bytes = read_whole(disk, &file.path).await.unwrap();
        disk.open(&path, Open::Create).await.unwrap().write_at(0, bytes).await.unwrap();
        files.push(SnapshotFile { path, ..file.clone() });
    }
    Snapshot { files, ..snapshot }
}

fn files(disk: &MemoryDisk, folder: &str) -> usize {
    disk.files().iter().filter(|(path, _)| path.starts_with(folder)).count()
}

/// The region is idle: its next flush is an hour away.
#[tokio::test]
async fn retired_files_go_when_their_last_reader_does() {
    let disk = MemoryDisk::default();
    let (sender, receiver) = (replica(&disk, 1).await, replica(&disk, 2).await);
    for index in 1..=2 {
        put(&sender, index, &[1, 2]).await;
        sender.flush().await.unwrap();
    }
    put(&receiver, 1, &[1]).await;
    receiver.flush().await.unwrap();
    let reader = receiver.version();
    assert_eq!(files(&disk, "replicas/2/sst"), 1);

    let snapshot = received(&disk, &receiver, sender.snapshot().await.unwrap()).await;
    receiver.install(snapshot).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(files(&disk, "replicas/2/sst"), 3, "somebody reads the old one");
    drop(reader);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(files(&disk, "replicas/2/sst"), 2);
    assert_eq!(receiver.version().ssts.len(), 2);
}

/// The newest rows at `upto`, or the error.
async fn scan(region: &Region, upto: u64) -> Result<u64> {
    let scan = request::ScanRequest {
        schema_version: 1,
        columns: vec!["a".into()],
        upto: Some(Sequence(upto)),
        ..request::ScanRequest::default()
    };
    region.scan(scan).await.map(|answer| answer.rows)
}

#[tokio::test]
async fn compaction_keeps_what_a_scan_may_be_reading_and_says_what_is_gone() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    for index in 1..=3 {
        put(&region, index, &[1, 2]).await;
        region.flush().await.unwrap();
    }
    region.compact().await.unwrap();
    assert_eq!((region.version().ssts.len(), scan(&region, 1).await.unwrap()), (1, 1), "it is a young version");
    // Scans that began at sequence 6 may go on for so long.
    let keep = Duration::from_millis(region.spec.options.version_keep_ms);
    sleep(keep).await;
    put(&region, 4, &[1, 2]).await;
    region.flush().await.unwrap();
    region.compact().await.unwrap();
    let rows = |region: &Region| region.version().ssts.values().map(|sst| sst.meta().rows).sum::<u64>();
    assert_eq!((scan(&region, 6).await.unwrap(), rows(&region)), (2, 4));
    let err = scan(&region, 5).await.unwrap_err();
    assert_eq!((err.code(), err.to_string().contains('6')), ("too_old", true), "{err}");

    sleep(Duration::from_secs(2)).await;
    assert_eq!(files(&disk, "replicas/1/sst"), 1, "inputs go when nobody reads them");
    region.close().await;
    drop(region);
    let region = replica(&disk, 1).await;
    assert_eq!(scan(&region, 5).await.unwrap_err().code(), "too_old", "what is gone is gone after a restart");
    assert_eq!((scan(&region, 6).await.unwrap(), scan(&region, 8).await.unwrap()), (2, 2));
}

#[tokio::test]
async fn a_compaction_happens_by_itself_when_there_are_too_many_files() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    for index in 1..=20 {
        put(&region, index, &[1, 2, index as i64]).await;
        region.flush().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(region.version().ssts.len() <= region.spec.options.compaction_active_runs as usize, "after {index}");
    }
    assert_eq!(scan(&region, 60).await.unwrap(), 20);
}

#[tokio::test]
async fn a_compaction_that_fails_takes_nothing_away_and_is_tried_again() {
    for below in ["replicas/1/sst/0000000003", "replicas/1/manifest"] {
        let disk = MemoryDisk::default();
        let region = replica(&disk, 1).await;
        for index in 1..=2 {
            put(&region, index, &[1, index as i64 + 1]).await;
            region.flush().await.unwrap();
        }
        disk.begin(below, Fault::Error);
        let err = region.compact().await.unwrap_err();
        assert_eq!(err.code(), "io", "{below}");
        assert_eq!(scan(&region, 4).await.unwrap(), 3);
        assert_eq!(
            files(&disk, "replicas/1/sst/0000000001") + files(&disk, "replicas/1/sst/0000000002"),
            2,
            "inputs stay"
        );
        disk.end_fault();
        region.compact().await.unwrap();
        assert_eq!((region.version().ssts.len(), scan(&region, 4).await.unwrap()), (1, 3));
        sleep(Duration::from_secs(2)).await;
        region.close().await;
        drop(region);
        let region = replica(&disk, 1).await;
        assert_eq!((scan(&region, 4).await.unwrap(), files(&disk, "replicas/1/sst")), (3, 1), "orphans are collected");
    }
}

async fn truncate(region: &Region, index: u64, by: u64) {
    let command = Command::Truncate { by: ProcedureId(by) }.encode();
    region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
}

#[tokio::test]
async fn a_truncation_takes_what_was_there_and_nothing_that_comes_after() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    put(&region, 1, &[1, 2]).await;
    region.flush().await.unwrap();
    put(&region, 2, &[3]).await;
    truncate(&region, 3, 7).await;
    assert_eq!((scan(&region, 4).await.unwrap(), region.visible()), (0, Sequence(4)));
    assert_eq!(scan(&region, 3).await.unwrap_err().code(), "too_old");
    put(&region, 4, &[9]).await;
    // The same procedure asks again, and an earlier one is late.
    truncate(&region, 5, 7).await;
    truncate(&region, 6, 6).await;
    assert_eq!((scan(&region, 5).await.unwrap(), region.visible()), (1, Sequence(5)));

    // Not yet durable but in the log: a replica that is opened replays it.
    region.close().await;
    drop(region);
    let region = replica(&disk, 1).await;
    assert_eq!(scan(&region, 2).await.unwrap(), 2);
    put(&region, 2, &[3]).await;
    truncate(&region, 3, 7).await;
    put(&region, 4, &[9]).await;
    region.flush().await.unwrap();
    region.close().await;
    drop(region);
    let region = replica(&disk, 1).await;
    assert_eq!((scan(&region, 5).await.unwrap(), region.version().ssts.len()), (1, 1));
    assert_eq!(scan(&region, 3).await.unwrap_err().code(), "too_old");
    truncate(&region, 5, 7).await;
    assert_eq!(scan(&region, 5).await.unwrap(), 1, "that it was done is durable too");
    assert_eq!(files(&disk, "replicas/1/sst"), 1);
}

/// What was begun on the rows that go adds nothing, whatever step it is at.
#[tokio::test]
async fn work_of_before_a_truncation_publishes_nothing() {
    for compacts in [false, true] {
        for below in ["replicas/1/sst", "replicas/1/manifest"] {
            let disk = MemoryDisk::default();
            let region = replica(&disk, 1).await;
            for index in 1..=2 {
                put(&region, index, &[1, 2]).await;
                region.flush().await.unwrap();
            }
            put(&region, 3, &[3]).await;
            disk.begin(below, Fault::Hang);
            let worker = region.clone();
            let work =
                tokio::spawn(async move { if compacts { worker.compact().await } else { worker.flush().await } });
            sleep(Duration::from_millis(10)).await;
            truncate(&region, 4, 1).await;
            put(&region, 5, &[4]).await;
            disk.end_fault();
            let _ = work.await.unwrap();
            assert_eq!(scan(&region, 7).await.unwrap(), 1, "{compacts} {below}");
            region.flush().await.unwrap();
            sleep(Duration::from_secs(2)).await;
            assert_eq!(scan(&region, 7).await.unwrap(), 1, "{compacts} {below}");
            let named: u64 = region.version().ssts.values().map(|sst| sst.meta().rows).sum();
            assert_eq!((named, files(&disk, "replicas/1/sst")), (1, 1), "{compacts} {below}");
            region.close().await;
            drop(region);
            let region = replica(&disk, 1).await;
            assert_eq!(scan(&region, 7).await.unwrap(), 1, "{compacts} {below}");
        }
    }
}

#[tokio::test]
async fn a_closed_region_changes_no_file() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    put(&region, 1, &[1, 2]).await;
    // A flush that is under way ends first.
    disk.begin("replicas/1/manifest", Fault::Hang);
    let flushing = region.clone();
    let flush = tokio::spawn(async move { flushing.flush().await });
    sleep(Duration::from_millis(10)).await;
    let closing = region.clone();
    let close = tokio::spawn(async move { closing.close().await });
    sleep(Duration::from_secs(10)).await;
    assert!(!close.is_finished(), "an edit is being written");
    disk.end_fault();
    flush.await.unwrap().unwrap();
    close.await.unwrap();

    put(&region, 2, &[3]).await;
    let before = disk.files();
    assert_eq!(region.flush().await.unwrap_err().code(), "stopped");
    assert_eq!(region.compact().await.unwrap_err().code(), "stopped");
    assert!(region.snapshot().await.is_err());
    sleep(Duration::from_secs(7_200)).await;
    assert_eq!(disk.files(), before);
}

#[tokio::test]
async fn a_snapshot_that_is_begun_leaves_the_one_before_alone() {
    let disk = MemoryDisk::default();
    let (sender, receiver) = (replica(&disk, 1).await, replica(&disk, 2).await);
    put(&sender, 1, &[1, 2]).await;
    sender.flush().await.unwrap();
    let complete = received(&disk, &receiver, sender.snapshot().await.unwrap()).await;
    put(&sender, 2, &[3]).await;
    sender.flush().await.unwrap();
    let newer = received(&disk, &receiver, sender.snapshot().await.unwrap()).await;
    receiver.install(complete).await.unwrap();
    assert_eq!(scan(&receiver, 2).await.unwrap(), 2);
    receiver.install(newer).await.unwrap();
    assert_eq!(scan(&receiver, 3).await.unwrap(), 3);
    assert_eq!(files(&disk, "replicas/2/incoming"), 0);

    // What was received and not installed goes when the replica is opened.
    received(&disk, &receiver, sender.snapshot().await.unwrap()).await;
    assert!(files(&disk, "replicas/2/incoming") > 0);
    receiver.close().await;
    drop(receiver);
    let receiver = replica(&disk, 2).await;
    assert_eq!((files(&disk, "replicas/2/incoming"), scan(&receiver, 3).await.unwrap()), (0, 3));
}
