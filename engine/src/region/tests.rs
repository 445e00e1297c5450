//! A replica of a region by itself: what is applied to it is what a test says.

mod views;

use std::time::Duration;

use tokio::time::sleep;

use super::command::{Command, decode_outcome};
use super::request::WriteRequest;
use super::*;
use crate::disk::memory::{Fault, MemoryDisk};
use crate::disk::{Open, read_whole};
use crate::meta::catalog::PartitionRule;
use crate::raft::{Change, Machine, Snapshot, SnapshotFile};
use crate::types::{
    Column, ColumnId, ColumnType, Condition, Predicate, ProcedureId, Schema, TableId, Value, decode_batch, encode_batch,
};

fn table() -> TableDef {
    let column =
        Column { id: ColumnId(1), name: "a".into(), column_type: ColumnType::Int64, nullable: false, default: None };
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema: Schema::new(1, vec![column], &["a".into()], None).unwrap(),
        partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
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
        buffer: Buffer::new(&Options::default(), Events::of(NodeId(1))),
        fills: Arc::default(),
    };
    disk.create_dir(&spec.folder).await.unwrap();
    Region::create(spec, RegionId::new(TableId(1), 0), &table()).await.unwrap()
}

async fn put(region: &Region, index: u64, values: &[i64]) {
    let rows = values.iter().map(|value| vec![Value::Int(*value)]).collect();
    put_rows(region, index, region.version().schema(), rows).await;
}

async fn put_rows(region: &Region, index: u64, schema: &Schema, rows: Vec<Vec<Value>>) {
    // It may be one that is refused.
    let _ = put_file(region, index, schema, rows, None).await;
}

/// Answers the sequence that the write was answered with.
async fn put_file(
    region: &Region,
    index: u64,
    schema: &Schema,
    rows: Vec<Vec<Value>>,
    file: Option<&str>,
) -> Result<u64> {
    let cells = |at: usize| rows.iter().map(|row| row[at].clone()).collect::<Vec<_>>();
    let columns = schema.columns().iter().enumerate();
    let columns = columns.map(|(at, column)| Value::to_array(&cells(at), column.column_type)).collect();
    let rows = arrow::array::RecordBatch::try_new(schema.to_arrow(), columns).unwrap();
    let write = WriteRequest {
        schema_version: schema.version,
        rows: encode_batch(&rows),
        ops: Bytes::new(),
        expected: Vec::new(),
        request: None,
        acknowledged: 0,
        file: file.map(|name| request::FileName { name: name.to_string(), checksum: 5 }),
    };
    let command = Command::Write { write, sessions: 1, files: 2 }.encode();
    let outcome = region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
    decode_outcome(&outcome).map(|answer| answer.sequence.0)
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

#[tokio::test]
async fn a_file_that_comes_again_is_answered_and_not_written_also_after_a_restart() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    let schema = region.version().schema().clone();
    let rows = |value: i64| vec![vec![Value::Int(value)]];
    assert_eq!(put_file(&region, 1, &schema, rows(1), Some("x")).await, Ok(1));
    assert_eq!(put_file(&region, 2, &schema, rows(2), Some("y")).await, Ok(2));
    assert_eq!(put_file(&region, 3, &schema, rows(1), Some("x")).await, Ok(1));
    region.flush().await.unwrap();
    region.close().await;
    drop(region);
    let region = replica(&disk, 1).await;
    assert_eq!(put_file(&region, 4, &schema, rows(1), Some("x")).await, Ok(1));
    assert_eq!(region.visible(), Sequence(2));
    // Two are remembered, as the entries say.
    assert_eq!(put_file(&region, 5, &schema, rows(3), Some("z")).await, Ok(3));
    assert_eq!(put_file(&region, 6, &schema, rows(1), Some("x")).await, Ok(4));
}

#[tokio::test]
async fn what_is_pinned_stays_readable_until_it_is_let_go() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    let pin = |index, command: Command| {
        let region = region.clone();
        async move {
            let outcome = region.apply(LogId { term: 1, index }, Change::Command(command.encode())).await.unwrap();
            decode_outcome(&outcome).unwrap().sequence.0
        }
    };
    let at = crate::types::Timestamp(7);
    put(&region, 1, &[1, 2]).await;
    assert_eq!(pin(2, Command::Pin { name: "p".into(), at }).await, 2, "what is visible when it is applied");
    put(&region, 3, &[1, 2, 3]).await;
    assert_eq!(pin(4, Command::Pin { name: "p".into(), at }).await, 2, "it stays where it is");
    for index in 5..8 {
        put(&region, index, &[1, 2]).await;
        region.flush().await.unwrap();
        sleep(Duration::from_secs(100)).await;
        region.compact(false).await.unwrap();
    }
    assert_eq!(scan(&region, 2).await, Ok(2));
    assert_eq!(region.version().oldest, Sequence(2));
    pin(8, Command::Unpin { name: "p".into() }).await;
    put(&region, 9, &[1]).await;
    region.flush().await.unwrap();
    sleep(Duration::from_secs(100)).await;
    region.compact(false).await.unwrap();
    assert_eq!(scan(&region, 2).await.unwrap_err().code(), "too_old");
}

/// What meta asked for before the view was dropped may come after it.
#[tokio::test]
async fn a_view_that_reads_no_more_is_not_read_for_again() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    let view = TableDef { id: TableId(9), ..table() };
    let attach = || Command::Attach { legs: vec![0, 1], view: Box::new(view.clone()) };
    let apply = |index, command: Command| {
        let region = region.clone();
        async move { region.apply(LogId { term: 1, index }, Change::Command(command.encode())).await.unwrap() }
    };
    apply(1, attach()).await;
    apply(2, attach()).await;
    assert_eq!(region.legs().len(), 2);
    apply(3, Command::Detach { view: view.id }).await;
    assert!(!region.has_legs());
    apply(4, attach()).await;
    assert!(!region.has_legs(), "it comes late");
    let other = TableDef { id: TableId(10), ..table() };
    apply(5, Command::Attach { legs: vec![0], view: Box::new(other) }).await;
    assert_eq!(region.legs().len(), 1);
}

/// A leader makes a watermark of the ttl that it knows; by the time that it is applied the ttl may be longer.
#[tokio::test]
async fn a_watermark_of_another_ttl_expires_nothing() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    let apply = |index, command: Command| {
        let region = region.clone();
        async move {
            region.apply(LogId { term: 1, index }, Change::Command(command.encode())).await.unwrap();
            region.visible().0
        }
    };
    put(&region, 1, &[1]).await;
    assert_eq!(apply(2, Command::Expire { schema_version: 1, before: 10 }).await, 2, "it has a sequence of its own");
    assert_eq!(apply(3, Command::Expire { schema_version: 1, before: 10 }).await, 2, "that is done");
    let schema = Schema::clone(region.version().schema()).altered(&[]).unwrap();
    assert_eq!(apply(4, Command::Alter { by: ProcedureId(1), schema: Box::new(schema) }).await, 2);
    assert_eq!(apply(5, Command::Expire { schema_version: 1, before: 20 }).await, 2);
    assert_eq!(apply(6, Command::Expire { schema_version: 2, before: 20 }).await, 3);
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
    region.compact(false).await.unwrap();
    assert_eq!((region.version().ssts.len(), scan(&region, 1).await.unwrap()), (1, 1), "it is a young version");
    // Scans that began at sequence 6 may go on for so long.
    let keep = Duration::from_millis(region.spec.options.version_keep_ms);
    sleep(keep).await;
    put(&region, 4, &[1, 2]).await;
    region.flush().await.unwrap();
    region.compact(false).await.unwrap();
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
        let err = region.compact(false).await.unwrap_err();
        assert_eq!(err.code(), "io", "{below}");
        assert_eq!(scan(&region, 4).await.unwrap(), 3);
        assert_eq!(
            files(&disk, "replicas/1/sst/0000000001") + files(&disk, "replicas/1/sst/0000000002"),
            2,
            "inputs stay"
        );
        disk.end_fault();
        region.compact(false).await.unwrap();
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
                tokio::spawn(async move { if compacts { worker.compact(false).await } else { worker.flush().await } });
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
    assert_eq!(region.compact(false).await.unwrap_err().code(), "stopped");
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

/// The newest rows, as they are returned.
async fn rows(region: &Region) -> Vec<Vec<Value>> {
    let schema = region.version().schema().clone();
    let scan = request::ScanRequest {
        schema_version: schema.version,
        columns: schema.columns().iter().map(|column| column.name.clone()).collect(),
        ..request::ScanRequest::default()
    };
    let answer = region.scan(scan).await.unwrap();
    let batches = answer.batches.iter().map(|batch| decode_batch(batch, &schema.to_arrow()).unwrap());
    let row = |batch: &arrow::array::RecordBatch, row| {
        batch.columns().iter().map(|cells| Value::of_cell(cells, row)).collect()
    };
    batches.flat_map(|batch| (0..batch.num_rows()).map(|at| row(&batch, at)).collect::<Vec<_>>()).collect()
}

/// Three alterations, and rows before, between and after them; flushed after some of the entries, wherever that is.
#[tokio::test]
async fn rows_of_before_an_alteration_are_read_as_those_of_after() {
    use crate::types::{Alteration, ColumnDefault, Place};
    let named = |name: &str| name.to_string();
    let add = |name: &str, column_type, value: Value| Alteration::Add {
        name: named(name),
        column_type,
        nullable: true,
        default: (!value.is_null()).then(|| ColumnDefault::Constant(value.clone())),
        absent: value,
        place: Place::First,
    };
    let first = table().schema;
    let second = first.altered(&[add("b", ColumnType::UInt8, Value::UInt(7))]).unwrap();
    let widened = Alteration::SetType { column: named("b"), to: ColumnType::Int32 };
    let default = Some(ColumnDefault::Constant(Value::UInt(8)));
    let default = Alteration::SetDefault { column: named("b"), default };
    let renamed = Alteration::Rename { column: named("b"), to: named("c") };
    let third = second.altered(&[default, widened, renamed]).unwrap();
    let dropped = Alteration::Drop { column: named("c") };
    let fourth = third.altered(&[dropped, add("c", ColumnType::String, Value::Null)]).unwrap();
    let text = |text: &str| Value::String(named(text));
    let entry = async |region: &Region, index: u64| match index {
        1 => put_rows(region, 1, &first, vec![vec![Value::Int(1)], vec![Value::Int(9)]]).await,
        2 => alter(region, 2, 1, &second).await,
        3 => put_rows(region, 3, &second, vec![vec![Value::UInt(20), Value::Int(2)]]).await,
        4 => alter(region, 4, 2, &third).await,
        // It was made for the columns as they were.
        5 => put_rows(region, 5, &second, vec![vec![Value::UInt(1), Value::Int(1)]]).await,
        6 => put_rows(region, 6, &third, vec![vec![Value::Int(-300), Value::Int(3)]]).await,
        // The same procedure asks again, and an earlier one is late.
        7 => alter(region, 7, 2, &third).await,
        8 => alter(region, 8, 1, &second).await,
        9 => alter(region, 9, 3, &fourth).await,
        _ => put_rows(region, 10, &fourth, vec![vec![text("x"), Value::Int(4)]]).await,
    };
    let at_third: Vec<Vec<Value>> =
        [(7, 1), (20, 2), (-300, 3), (7, 9)].map(|(c, a)| vec![Value::Int(c), Value::Int(a)]).into();
    let at_fourth: Vec<Vec<Value>> = [(None, 1), (None, 2), (None, 3), (Some("x"), 4), (None, 9)]
        .map(|(c, a)| vec![c.map_or(Value::Null, text), Value::Int(a)])
        .into();
    for flushes in (0..1u64 << 10).step_by(7) {
        let disk = MemoryDisk::default();
        let region = replica(&disk, 1).await;
        for index in 1..=10 {
            entry(&region, index).await;
            if flushes & (1 << (index - 1)) != 0 {
                region.flush().await.unwrap();
            }
            if index == 8 {
                assert_eq!(rows(&region).await, at_third, "{flushes:b}");
            }
        }
        assert_eq!((rows(&region).await, region.visible()), (at_fourth.clone(), Sequence(5)), "{flushes:b}");
        region.close().await;
        let flushed = region.version().flushed.log_id.map_or(0, |id| id.index);
        drop(region);
        // A replica that is opened has what was flushed, and replays the rest.
        let region = replica(&disk, 1).await;
        for index in flushed + 1..=10 {
            entry(&region, index).await;
        }
        region.compact(false).await.unwrap();
        assert_eq!((rows(&region).await, region.visible()), (at_fourth.clone(), Sequence(5)), "{flushes:b}");
        assert_eq!(region.version().schema().version, 4);
    }
}

async fn alter(region: &Region, index: u64, by: u64, schema: &Schema) {
    let command = Command::Alter { by: ProcedureId(by), schema: Box::new(schema.clone()) }.encode();
    region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_brings_the_columns_of_its_rows() {
    use crate::types::Alteration;
    let renamed = Alteration::Rename { column: "a".into(), to: "b".into() };
    let second = table().schema.altered(&[renamed]).unwrap();
    let disk = MemoryDisk::default();
    let (sender, receiver) = (replica(&disk, 1).await, replica(&disk, 2).await);
    put(&receiver, 1, &[9]).await;
    receiver.flush().await.unwrap();
    put(&sender, 1, &[1]).await;
    alter(&sender, 2, 1, &second).await;
    let snapshot = received(&disk, &receiver, sender.snapshot().await.unwrap()).await;
    receiver.install(snapshot).await.unwrap();
    assert_eq!((rows(&receiver).await, receiver.version().schema().version), (vec![vec![Value::Int(1)]], 2));

    put(&receiver, 3, &[2]).await;
    receiver.flush().await.unwrap();
    receiver.close().await;
    drop(receiver);
    let receiver = replica(&disk, 2).await;
    let both = vec![vec![Value::Int(1)], vec![Value::Int(2)]];
    assert_eq!((rows(&receiver).await, receiver.version().schema().version), (both, 2));
}

#[tokio::test]
async fn a_damaged_file_is_reported_and_the_state_of_another_replica_takes_its_place() {
    let disk = MemoryDisk::default();
    let (one, other) = (replica(&disk, 1).await, replica(&disk, 2).await);
    let replicas = [(ReplicaId(1), NodeId(1)), (ReplicaId(2), NodeId(2))].into();
    let membership = crate::raft::Membership { log_id: None, voters: Vec::new(), replicas };
    for region in [&one, &other] {
        let change = Change::Membership(membership.clone());
        region.apply(LogId { term: 1, index: 1 }, change).await.unwrap();
    }
    other.flush().await.unwrap();
    let older = other.lend(None).await.unwrap();
    for region in [&one, &other] {
        put(region, 2, &[1, 2]).await;
        region.flush().await.unwrap();
    }
    put(&other, 3, &[3]).await;
    let path = disk.files().into_iter().map(|(path, _)| path).find(|path| path.starts_with("replicas/1/sst")).unwrap();
    disk.damage(&path, |bytes| bytes[10] ^= 1);
    assert!(!one.is_damaged(), "nobody has looked");
    let err = scan(&one, 2).await.unwrap_err();
    assert_eq!((err.code(), err.to_string().contains(&path)), ("busy", true), "{err}");
    assert_eq!((one.is_damaged(), one.damaged().await), (true, path));
    assert_eq!(one.lend(None).await.map(drop).unwrap_err().code(), "busy", "nobody gets it from here");

    // As of an entry that it has not come to, it helps nobody.
    let ahead = Some(LogId { term: 1, index: 9 });
    assert_eq!(other.lend(ahead).await.map(drop).unwrap_err().code(), "busy");
    let wanted = one.wanted().await.unwrap();
    assert_eq!(wanted.want().others, [(ReplicaId(2), NodeId(2))]);
    let snapshot = other.lend(wanted.want().from).await.unwrap();
    let folder = wanted.folder().await.unwrap();
    let mut received = Vec::new();
    for (number, file) in snapshot.files.iter().enumerate() {
        let path = format!("{folder}/{number}");
        let bytes = read_whole(&disk, &file.path).await.unwrap();
        disk.open(&path, Open::Create).await.unwrap().write_at(0, bytes).await.unwrap();
        received.push(path);
    }
    wanted.seal();
    assert_eq!(one.flush().await.unwrap_err().code(), "stopped");
    one.close().await;
    assert_eq!(Mending::open(one.spec.clone(), &older.header).await.map(drop).unwrap_err().code(), "busy");
    let mending = Mending::open(one.spec.clone(), &snapshot.header).await.unwrap();
    let last = mending.last();
    assert_eq!(Some(last), snapshot.last);
    mending.install(&received).await.unwrap();
    let one = Region::open(one.spec.clone()).await.unwrap().unwrap();
    assert_eq!(one.status().flushed, Some(last));
    let sequence = one.visible().0;
    assert_eq!(scan(&one, sequence).await, scan(&other, sequence).await);
    assert_eq!(files(&disk, "replicas/1/sst"), received.len(), "the damaged one is gone");

    // One of which the footer is damaged is found when the replica is opened, and the replica goes on all the same.
    let path = disk.files().into_iter().map(|(path, _)| path).find(|path| path.starts_with("replicas/1/sst")).unwrap();
    one.close().await;
    disk.damage(&path, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let one = Region::open(one.spec.clone()).await.unwrap().unwrap();
    assert_eq!((one.is_damaged(), one.damaged().await), (true, path));
    put(&one, 3, &[3]).await;
    one.flush().await.unwrap();
    assert_eq!(scan(&one, sequence).await.unwrap_err().code(), "busy");
}

#[tokio::test]
async fn who_is_alone_with_a_damaged_file_reads_the_others() {
    let disk = MemoryDisk::default();
    let region = replica(&disk, 1).await;
    put(&region, 1, &[1]).await;
    region.flush().await.unwrap();
    let path = disk.files().into_iter().map(|(path, _)| path).find(|path| path.starts_with("replicas/1/sst")).unwrap();
    put(&region, 2, &[2]).await;
    region.flush().await.unwrap();
    region.close().await;
    disk.damage(&path, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let region = Region::open(region.spec.clone()).await.unwrap().unwrap();
    let err = scan(&region, 2).await.unwrap_err();
    assert_eq!((err.code(), err.to_string().contains(&path)), ("damaged", true), "{err}");
    assert!(!region.is_damaged(), "nobody can help");
    let other = Predicate { column: "a".into(), condition: Condition::Eq(Value::Int(2)) };
    let other = request::ScanRequest { schema_version: 1, predicates: vec![other], ..request::ScanRequest::default() };
    assert_eq!(region.scan(other).await.unwrap().rows, 1);
}

/// Rows count as they are visible at a moment, in whatever files they are.
#[tokio::test]
async fn replicas_with_the_same_rows_have_the_same_checksum() {
    let disk = MemoryDisk::default();
    let (first, second) = (replica(&disk, 1).await, replica(&disk, 2).await);
    for (index, values) in [[1, 2], [3, 2], [4, 1]].iter().enumerate() {
        put(&first, index as u64 + 1, values).await;
        put(&second, index as u64 + 1, values).await;
        first.flush().await.unwrap();
    }
    first.compact(false).await.unwrap();
    let moment = second.moment();
    assert_eq!((moment, moment.sequence, moment.applied.map(|id| id.index)), (first.moment(), Sequence(6), Some(3)));
    let [one, other] = [first.checksum(moment).await.unwrap(), second.checksum(moment).await.unwrap()];
    assert_eq!((one.rows, one.rows, one.checksum), (4, other.rows, other.checksum));

    // What comes later is another moment, and the one before stays what it was.
    put(&first, 4, &[5]).await;
    assert_eq!(first.checksum(moment).await.unwrap().checksum, one.checksum);
    assert_eq!(second.checksum(first.moment()).await.unwrap_err().code(), "busy", "it has not come that far");
    put(&second, 4, &[6]).await;
    let [one, other] = [first.checksum(first.moment()).await.unwrap(), second.checksum(first.moment()).await.unwrap()];
    assert_eq!((one.rows, other.rows), (5, 5));
    assert_ne!(one.checksum, other.checksum);

    truncate(&first, 5, 7).await;
    assert_eq!(first.checksum(moment).await.unwrap_err().code(), "too_old");
    let altered = request::Moment { schema_version: 2, ..second.moment() };
    assert_eq!(second.checksum(altered).await.unwrap_err().code(), "schema_changed");
    assert_eq!(first.checksum(first.moment()).await.unwrap().rows, 0);
}
mod requests;
