//! An index under everything that may happen to its region, against the rows themselves: after each step of a run, whatever a
//! query finds by the index is what it finds without, and the index has an entry for each row and no other.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tokio::sync::{Notify, Semaphore};

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::disk::{Disk, Open, read_whole};
use crate::event::Events;
use crate::meta::catalog::{PartitionRule, TableDef};
use crate::options::Options;
use crate::raft::{Change, Machine, Snapshot, SnapshotFile};
use crate::region::command::Command;
use crate::region::request::{ScanRequest, WriteRequest};
use crate::region::{Buffer, Incarnation, ReplicaId, ReplicaSpec};
use crate::storage::rows::sequence_field;
use crate::types::{
    Alteration, Column, ColumnId, ColumnType, Condition, NodeId, ProcedureId, RegionId, TableId, TableOptions,
    TimeUnit, Value,
};

/// The key, the time, the two columns, whether it is deleted.
type Row = (u8, u8, Option<u8>, Option<u8>, bool);

/// One entry of the log, or what a replica does by itself.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Row>),
    /// The index is made, if there is none, otherwise dropped.
    Exchange,
    /// The backfill goes on by so many rows.
    Chunk(usize),
    /// A chunk is read.
    Late(usize),
    /// It is logged.
    Deliver,
    Truncate,
    Expire(u8),
    Flush,
    Compact,
    /// The replica is closed and opened, and replays its log.
    Reopen,
    /// Another replica gets a snapshot, and takes its place.
    Replace,
}

fn step() -> impl Strategy<Value = Step> {
    let small = || proptest::option::weighted(0.8, 0..4u8);
    let row = (0..6u8, 0..4u8, small(), small(), proptest::bool::weighted(0.25));
    prop_oneof![
        8 => proptest::collection::vec(row, 1..5).prop_map(Step::Write),
        2 => Just(Step::Exchange),
        6 => (1..6usize).prop_map(Step::Chunk),
        2 => (1..6usize).prop_map(Step::Late),
        2 => Just(Step::Deliver),
        1 => Just(Step::Truncate),
        1 => (0..4u8).prop_map(Step::Expire),
        3 => Just(Step::Flush),
        2 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::Replace),
    ]
}

fn table(folds: bool) -> TableDef {
    let column = |id, name: &str, column_type| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable: true,
        default: None,
    };
    let columns = vec![
        column(1, "a", ColumnType::Int32),
        column(2, "ts", ColumnType::Timestamp(TimeUnit::Second)),
        column(3, "b", ColumnType::Int64),
        column(4, "c", ColumnType::String),
    ];
    let mut options = TableOptions::default();
    if folds {
        options.set("merge_mode", Some("last_non_null")).unwrap();
    }
    let schema = Schema::new(1, columns, &["a".into()], Some("ts")).unwrap().with_options(options).unwrap();
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema,
        partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 1 },
        regions: Vec::new(),
        view: None,
        indexes: BTreeMap::new(),
    }
}

/// A replica, and the log of its group.
struct Run {
    disk: MemoryDisk,
    region: Arc<Region>,
    replica: u64,
    table: TableDef,
    log: Vec<Bytes>,
    late: Option<Command>,
    procedures: u64,
    completed: u64,
}

impl Run {
    async fn new(folds: bool) -> Run {
        let (disk, table) = (MemoryDisk::default(), table(folds));
        let region = open(&disk, 1, &table).await;
        Run { disk, region, replica: 1, table, log: Vec::new(), late: None, procedures: 0, completed: 0 }
    }

    async fn apply(&mut self, command: Command) {
        self.log.push(command.encode());
        apply(&self.region, self.log.len(), &self.log).await;
    }

    async fn alter(&mut self, alteration: Alteration) {
        self.procedures += 1;
        let schema = Box::new(self.region.version().schema().altered(&[alteration]).unwrap());
        self.apply(Command::Alter { by: ProcedureId(self.procedures), schema }).await;
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Write(rows) => {
                let command = self.write(rows);
                self.apply(command).await;
            }
            Step::Exchange if self.region.version().schema().indexes().is_empty() => {
                let columns = vec!["b".into(), "c".into()];
                self.alter(Alteration::AddIndex { name: "i".into(), columns }).await;
            }
            Step::Exchange => self.alter(Alteration::DropIndex { name: "i".into() }).await,
            Step::Chunk(rows) => {
                if let Some(command) = self.chunk(*rows).await {
                    self.apply(command).await;
                }
            }
            Step::Late(rows) => self.late = self.chunk(*rows).await,
            Step::Deliver => {
                if let Some(late) = self.late.take() {
                    self.apply(late).await;
                }
            }
            Step::Truncate => {
                self.procedures += 1;
                self.apply(Command::Truncate { by: ProcedureId(self.procedures) }).await;
            }
            Step::Expire(before) => {
                let schema_version = self.region.version().schema().version;
                self.apply(Command::Expire { schema_version, before: (*before).into() }).await;
            }
            Step::Flush => self.region.flush().await.unwrap(),
            Step::Compact => self.region.compact(false).await.unwrap(),
            Step::Reopen => {
                self.region.close().await;
                self.region = open(&self.disk, self.replica, &self.table).await;
                let flushed = self.region.version().flushed.log_id.map_or(0, |id| id.index as usize);
                for index in flushed + 1..=self.log.len() {
                    apply(&self.region, index, &self.log).await;
                }
            }
            Step::Replace => {
                let snapshot = self.region.snapshot().await.unwrap();
                let from = snapshot.last.map_or(0, |id| id.index as usize);
                self.replica += 1;
                let other = open(&self.disk, self.replica, &self.table).await;
                other.install(received(&self.disk, &other, snapshot).await).await.unwrap();
                for index in from + 1..=self.log.len() {
                    apply(&other, index, &self.log).await;
                }
                self.region.close().await;
                self.region = other;
            }
        }
    }

    fn write(&self, rows: &[Row]) -> Command {
        let schema = self.region.version().schema().clone();
        let text = |cell: Option<u8>| cell.map_or(Value::Null, |cell| Value::String(format!("c{cell}")));
        let number = |cell: Option<u8>| cell.map_or(Value::Null, |cell| Value::Int(cell.into()));
        let kept = |cell: Option<u8>, is_deleted: bool| cell.filter(|_| !is_deleted);
        let columns = [
            rows.iter().map(|(a, ..)| Value::Int((*a).into())).collect::<Vec<_>>(),
            rows.iter().map(|(_, ts, ..)| Value::Timestamp((*ts).into())).collect(),
            rows.iter().map(|(_, _, b, _, gone)| number(kept(*b, *gone))).collect(),
            rows.iter().map(|(_, _, _, c, gone)| text(kept(*c, *gone))).collect(),
        ];
        let arrays =
            columns.iter().zip(schema.columns()).map(|(cells, column)| Value::to_array(cells, column.column_type));
        let batch = RecordBatch::try_new(schema.to_arrow(), arrays.collect()).unwrap();
        let op = |gone: bool| if gone { Op::Delete } else { Op::Put } as u8;
        let write = WriteRequest {
            schema_version: schema.version,
            rows: encode_batch(&batch),
            ops: rows.iter().map(|(.., gone)| op(*gone)).collect::<Vec<u8>>().into(),
            expected: Vec::new(),
            request: None,
            acknowledged: 0,
            file: None,
        };
        Command::Write { write, sessions: 1, files: 1 }
    }

    async fn chunk(&self, rows: usize) -> Option<Command> {
        let (index, backfill) = self.region.open_index()?;
        let limit = (rows, usize::MAX);
        Some(Command::Backfill(self.region.index_chunk(&index, 1, backfill.cursor, limit).await.unwrap().0))
    }

    /// The index against the rows: entry by entry, and by what conditions find.
    async fn check(&mut self) {
        let Some(index) = self.region.version().schema().indexes().first().map(|index| index.id) else { return };
        match self.region.check_index(index).await {
            Ok(check) => assert_eq!((check.missing, check.extra), (0, 0), "{check:?}"),
            Err(err) => return assert_eq!(err.code(), "view_not_ready"),
        }
        self.completed += 1;
        let text = |text: &str| Value::String(text.to_string());
        for conditions in [
            vec![("b", Condition::Eq(Value::Int(2)))],
            vec![("b", Condition::IsNull)],
            vec![("b", Condition::IsNull), ("c", Condition::Eq(text("c1")))],
            vec![("b", Condition::Eq(Value::Int(1))), ("c", Condition::GtEq(text("c2")))],
            vec![("b", Condition::In(vec![Value::Int(3), Value::Int(0)])), ("a", Condition::Lt(Value::Int(3)))],
            vec![("b", Condition::Gt(Value::Int(0))), ("ts", Condition::LtEq(Value::Timestamp(2)))],
        ] {
            let predicate = |(column, condition): (&str, Condition)| Predicate { column: column.into(), condition };
            let predicates: Vec<Predicate> = conditions.into_iter().map(predicate).collect();
            let [with, without] = [Some(index), None].map(|index| (index, predicates.clone()));
            assert_eq!(self.scan(with).await, self.scan(without).await, "{predicates:?}");
        }
    }

    /// The rows of all pages, of three rows each, and their sequences.
    async fn scan(&self, (index, predicates): (Option<IndexId>, Vec<Predicate>)) -> Vec<Vec<Value>> {
        let schema = self.region.version().schema().clone();
        let mut request = ScanRequest {
            schema_version: schema.version,
            columns: schema.columns().iter().map(|column| column.name.clone()).collect(),
            predicates,
            page_rows: 3,
            with_sequence: true,
            index,
            ..ScanRequest::default()
        };
        let mut fields = schema.to_arrow().fields().to_vec();
        fields.push(Arc::new(sequence_field()));
        let answered = Arc::new(arrow::datatypes::Schema::new(fields));
        let mut rows = Vec::new();
        loop {
            let page = self.region.scan(request.clone()).await.unwrap();
            for batch in page.batches.iter().map(|batch| decode_batch(batch, &answered).unwrap()) {
                let cells = |row| batch.columns().iter().map(|cells| Value::of_cell(cells, row)).collect();
                rows.extend((0..batch.num_rows()).map(cells).collect::<Vec<_>>());
            }
            (request.upto, request.after) = (Some(page.sequence), page.next);
            if request.after.is_none() {
                return rows;
            }
        }
    }
}

async fn apply(region: &Region, index: usize, log: &[Bytes]) {
    let id = LogId { term: 1, index: index as u64 };
    region.apply(id, Change::Command(log[index - 1].clone())).await.unwrap();
}

async fn open(disk: &MemoryDisk, replica: u64, table: &TableDef) -> Arc<Region> {
    let options = Options { version_keep_ms: 0, sst_row_group_rows: 4, scan_batch_rows: 3, ..Options::default() };
    let options = Arc::new(options);
    let spec = ReplicaSpec {
        replica: ReplicaId(replica),
        folder: format!("replicas/{replica}"),
        incarnation: Incarnation(1),
        disk: Arc::new(disk.clone()),
        options: options.clone(),
        events: Events::of(NodeId(1)),
        compactions: Arc::new(Semaphore::new(1)),
        buffer: Buffer::new(&options, Events::of(NodeId(1))),
        fills: Arc::new(Notify::new()),
    };
    disk.create_dir(&spec.folder).await.unwrap();
    Region::create(spec, RegionId::new(TableId(1), 0), table).await.unwrap()
}

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

/// Runs are found by proptest, and run one after the other in one runtime.
#[tokio::test]
async fn an_index_has_the_rows_whatever_happens() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let runs = (proptest::collection::vec(step(), 1..40), proptest::bool::ANY);
    let mut completed = 0;
    for number in 0..250 {
        let (steps, folds) = runs.new_tree(&mut runner).unwrap().current();
        let mut run = Run::new(folds).await;
        for (at, step) in steps.iter().enumerate() {
            tracing::debug!(number, at, ?step);
            run.step(step).await;
            run.check().await;
        }
        completed += u64::from(run.completed > 0);
        run.region.close().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(completed > 60, "in {completed} runs only an index had all rows");
}

#[tokio::test]
async fn a_chunk_leaves_out_what_was_changed_since_it_was_read() {
    let mut run = Run::new(false).await;
    let row = |a, b| (a, 0, Some(b), None, false);
    run.step(&Step::Write(vec![row(1, 1), row(2, 1), row(3, 1)])).await;
    run.step(&Step::Exchange).await;
    run.step(&Step::Late(9)).await;
    // The second one has another value when the chunk comes, the third one is gone, the fourth was not there.
    run.step(&Step::Write(vec![row(2, 2), (3, 0, None, None, true), row(4, 1)])).await;
    run.step(&Step::Deliver).await;
    let index = run.region.version().schema().indexes()[0].id;
    let check = run.region.check_index(index).await.unwrap();
    assert_eq!((check.rows, check.missing, check.extra), (3, 0, 0));
    let found = async |upto| {
        let predicates = [Predicate { column: "b".into(), condition: Condition::Eq(Value::Int(1)) }];
        let found = run.region.find(&run.region.version(), index, &predicates, Sequence(upto)).await.unwrap();
        found.map(|keys| keys.len())
    };
    assert_eq!((found(6).await, found(5).await), (Some(2), None), "before it was complete it answers nothing");
}

/// The tombstones of what was changed would hide it, as long as they are there: a compaction drops those that hide nothing.
#[tokio::test]
async fn a_chunk_that_comes_when_the_tombstones_are_gone_brings_nothing_back() {
    let mut run = Run::new(false).await;
    let row = |a, b| (a, 0, Some(b), None, false);
    run.step(&Step::Write(vec![row(1, 1), row(2, 1), row(3, 1)])).await;
    run.step(&Step::Exchange).await;
    run.step(&Step::Late(9)).await;
    for rows in [vec![row(0, 0), row(9, 3)], vec![row(2, 2), (3, 0, None, None, true), row(5, 3)]] {
        run.step(&Step::Write(rows)).await;
        run.step(&Step::Flush).await;
    }
    run.step(&Step::Compact).await;
    let index = run.region.version().schema().indexes()[0].id;
    let tree = run.region.version().indexes[&index].clone();
    assert_eq!(tree.ssts.values().map(|sst| (sst.meta().level, sst.meta().rows)).collect::<Vec<_>>(), [(1, 4)]);
    run.step(&Step::Deliver).await;
    let check = run.region.check_index(index).await.unwrap();
    assert_eq!((check.rows, check.missing, check.extra), (5, 0, 0));
}
