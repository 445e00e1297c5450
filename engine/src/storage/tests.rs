//! Memtables, files and their merge against the simplest model: a map from key to versions.

mod modes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::executor::block_on;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::manifest::{Manifest, Past};
use super::memtable::Memtable;
use super::merge::{Limit, Merge, Page};
use super::rows::Rows;
use super::rules::Rules;
use super::scan::{Left, Retention, Scan};
use super::sst::{self, FileMeta, Sst};
use super::version::{Flushed, Version};
use super::*;
use crate::disk::memory::MemoryDisk;
use crate::event::Events;
use crate::options::Options;
use crate::types::{
    Column, ColumnId, ColumnType, Condition, Key, LogId, NodeId, Op, Position, Predicate, RegionId, ReplicaId, Schema,
    Sequence, TimeUnit, Value, encode_key, encode_keys,
};

pub(super) const DIR: &str = "replicas/r1";

pub(super) fn column(id: u32, name: &str, column_type: ColumnType) -> Column {
    Column { id: ColumnId(id), name: name.to_string(), column_type, nullable: true, default: None }
}

/// host, ts are the key; v, s are fields.
pub(super) fn schema() -> Arc<Schema> {
    let columns = vec![
        column(1, "v", ColumnType::Int64),
        column(2, "ts", ColumnType::Timestamp(TimeUnit::Millisecond)),
        column(3, "host", ColumnType::String),
        column(4, "s", ColumnType::String),
    ];
    Arc::new(Schema::new(1, columns, &["host".to_string()], Some("ts")).unwrap())
}

pub(super) fn rules(schema: &Arc<Schema>) -> Arc<Rules> {
    Arc::new(Rules::of(schema.clone()))
}

fn flushed(log_id: Option<LogId>, sequence: Sequence) -> Flushed {
    Flushed { log_id, sequence, rules: rules(&schema()), pinned: None }
}

/// Small enough that a handful of rows makes several row groups, blocks and batches.
pub(super) fn options() -> Options {
    Options { sst_row_group_rows: 5, scan_batch_rows: 2, manifest_checkpoint_edits: 3, ..Options::default() }
}

pub(super) fn batch_of(schema: &Schema, rows: &[Vec<Value>]) -> RecordBatch {
    let cells = |at: usize| rows.iter().map(|row| row[at].clone()).collect::<Vec<_>>();
    let columns = schema.columns().iter().enumerate().map(|(at, c)| Value::to_array(&cells(at), c.column_type));
    RecordBatch::try_new(schema.to_arrow(), columns.collect()).unwrap()
}

pub(super) fn write(memtable: &Memtable, rows: &[(Op, Vec<Value>)], first: Sequence) {
    let schema = memtable.schema().clone();
    let batch = batch_of(&schema, &rows.iter().map(|(_, row)| row.clone()).collect::<Vec<_>>());
    let keys = encode_keys(&batch, &schema.key());
    let ops: Vec<Op> = rows.iter().map(|(op, _)| *op).collect();
    memtable.write(batch, keys, &ops, first);
}

/// A disk with the folders of a replica.
pub(super) fn disk() -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::default());
    block_on(disk.create_dir(&format!("{DIR}/sst"))).unwrap();
    disk
}

pub(super) fn flush(disk: &MemoryDisk, id: u64, memtables: &[Arc<Memtable>], options: &Options) -> Option<FileMeta> {
    let schema = memtables[0].schema();
    let mut merge =
        Merge::all_versions(&rules(schema), memtables.iter().cloned(), [], options.scan_batch_rows as usize);
    block_on(sst::write(disk, DIR, FileId(id), schema, options, u64::MAX, &mut merge)).unwrap()
}

pub(super) fn open(disk: &MemoryDisk, meta: &FileMeta) -> Sst {
    block_on(sst::verify(disk, DIR, meta)).unwrap();
    block_on(Sst::open(disk, DIR, meta.clone())).unwrap()
}

/// Key, version, returned cells.
pub(super) type Seen = (Key, Sequence, Op, Vec<Value>);

fn seen(rows: &Rows) -> Vec<Seen> {
    let lengths = [rows.batch.num_rows(), rows.sequences.len(), rows.ops.len()];
    assert_eq!(lengths, [rows.len(); 3], "the parts of the rows differ in length");
    let cells = |row| rows.batch.columns().iter().map(|column| Value::of_cell(column, row)).collect();
    let one = |row: usize| (rows.keys[row].clone(), rows.sequences[row], rows.ops[row], cells(row));
    (0..rows.len()).map(one).collect()
}

pub(super) fn collect(mut merge: Merge) -> Vec<Seen> {
    let mut all = Vec::new();
    while let Some(rows) = block_on(merge.next()).unwrap() {
        assert!(!rows.is_empty(), "a batch has rows");
        all.extend(seen(&rows));
    }
    all
}

/// A row of the model: key columns and fields; none: deleted.
type Fields = Option<(Value, Value)>;

const HOSTS: [&str; 4] = ["", "a", "a\0", "b"];
const TIMES: i64 = 3;

fn key_cells(number: usize) -> (Value, Value) {
    (Value::String(HOSTS[number / TIMES as usize].to_string()), Value::Timestamp(number as i64 % TIMES))
}

fn key_of(number: usize) -> Key {
    let (host, ts) = key_cells(number);
    encode_key(&[host, ts], &[ColumnType::String, ColumnType::Timestamp(TimeUnit::Millisecond)])
}

pub(super) fn behind(key: Key) -> Position {
    Position { key, sequence: Sequence(0) }
}

/// Cells in the order of the table.
fn whole(number: usize, fields: &Fields) -> Vec<Value> {
    let (host, ts) = key_cells(number);
    let (v, s) = fields.clone().unwrap_or((Value::Null, Value::Null));
    vec![v, ts, host, s]
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(usize, Fields)>),
    Freeze,
    Flush,
}

fn field_v() -> impl Strategy<Value = Value> {
    prop_oneof![1 => Just(Value::Null), 3 => (0..4_i64).prop_map(Value::Int)]
}

fn field_s() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), Just(Value::String(String::new())), "[xy]{1,2}".prop_map(Value::String)]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = HOSTS.len() * TIMES as usize;
    let row = (0..keys, prop_oneof![1 => Just(None), 2 => (field_v(), field_s()).prop_map(Some)]);
    let step = prop_oneof![
        4 => prop::collection::vec(row, 1..8).prop_map(Step::Write),
        1 => Just(Step::Freeze),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec(step, 1..10)
}

fn predicate() -> impl Strategy<Value = Predicate> {
    fn conditions(value: impl Strategy<Value = Value> + Clone + 'static) -> BoxedStrategy<Condition> {
        let value = value.prop_filter("conditions compare with values", |value| !value.is_null());
        prop_oneof![
            3 => value.clone().prop_map(Condition::Eq),
            1 => value.clone().prop_map(Condition::NotEq),
            1 => value.clone().prop_map(Condition::Lt),
            1 => value.clone().prop_map(Condition::LtEq),
            1 => value.clone().prop_map(Condition::Gt),
            1 => value.clone().prop_map(Condition::GtEq),
            1 => prop::collection::vec(value, 0..3).prop_map(Condition::In),
            1 => Just(Condition::IsNull),
            1 => Just(Condition::IsNotNull),
        ]
        .boxed()
    }
    let host = prop::sample::select(HOSTS.to_vec()).prop_map(|host| Value::String(host.to_string()));
    let on = |column: &'static str, conditions: BoxedStrategy<Condition>| {
        conditions.prop_map(move |condition| Predicate { column: column.to_string(), condition }).boxed()
    };
    prop_oneof![
        on("host", conditions(host)),
        on("ts", conditions((-1..=TIMES).prop_map(Value::Timestamp))),
        on("v", conditions((0..4_i64).prop_map(Value::Int).boxed())),
        on("s", conditions("[xy]{0,2}".prop_map(Value::String).boxed())),
        // A constant that the column cannot hold is compared by the order of values all the same.
        on("v", conditions(Just(Value::String("x".to_string())))),
    ]
}

#[derive(Clone, Debug)]
struct Question {
    columns: Vec<&'static str>,
    predicates: Vec<Predicate>,
    after: Option<Index>,
    include_deleted: bool,
    page_rows: usize,
    page_bytes: usize,
}

fn question() -> impl Strategy<Value = Question> {
    let columns = subsequence(vec!["v", "ts", "host", "s"], 0..=4).prop_shuffle();
    let predicates = prop::collection::vec(predicate(), 0..3);
    let after = prop::option::of(any::<Index>());
    (columns, predicates, after, any::<bool>(), 1..6_usize, 0..200_usize).prop_map(
        |(columns, predicates, after, include_deleted, page_rows, page_bytes)| Question {
            columns,
            predicates,
            after,
            include_deleted,
            page_rows,
            page_bytes,
        },
    )
}

#[derive(Default)]
struct Model(BTreeMap<usize, Vec<(Sequence, Fields)>>);

impl Model {
    /// The newest version of the key as of `upto`.
    fn newest(&self, number: usize, upto: Sequence) -> Option<&(Sequence, Fields)> {
        self.0.get(&number)?.iter().rev().find(|(sequence, _)| *sequence <= upto)
    }

    fn answer(&self, schema: &Schema, scan: &Scan) -> Vec<Seen> {
        let mut all = BTreeMap::new();
        for number in self.0.keys() {
            let key = key_of(*number);
            let Some((sequence, fields)) = self.newest(*number, scan.upto) else { continue };
            let cells = whole(*number, fields);
            let holds = |predicate: &Predicate| {
                let (at, _) = schema.column(&predicate.column).unwrap();
                (fields.is_none() && !schema.is_key(at)) || predicate.condition.holds(&cells[at])
            };
            let behind = scan.after.as_ref().is_none_or(|after| key > after.key);
            if behind && (fields.is_some() || scan.include_deleted) && scan.predicates.iter().all(holds) {
                let op = if fields.is_some() { Op::Put } else { Op::Delete };
                let returned = scan.columns.iter().map(|name| cells[schema.column(name).unwrap().0].clone());
                all.insert(key.clone(), (key, *sequence, op, returned.collect()));
            }
        }
        all.into_values().collect()
    }
}

/// Carries out the steps; the answer is the region and the model of it.
fn build(disk: &MemoryDisk, steps: &[Step]) -> (Version, Model, Sequence) {
    let (mut version, mut model, mut last) =
        (Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1), Model::default(), Sequence(0));
    let mut files = 0;
    for step in steps {
        match step {
            Step::Write(rows) => {
                let first = Sequence(last.0 + 1);
                for (number, fields) in rows {
                    last.0 += 1;
                    model.0.entry(*number).or_default().push((last, fields.clone()));
                }
                let op = |fields: &Fields| if fields.is_some() { Op::Put } else { Op::Delete };
                let rows: Vec<_> = rows.iter().map(|(number, f)| (op(f), whole(*number, f))).collect();
                write(&version.mutable, &rows, first);
            }
            Step::Freeze => version = version.with_frozen(),
            Step::Flush => {
                version = version.with_frozen();
                let frozen = version.frozen.clone();
                if frozen.is_empty() {
                    continue;
                }
                files += 1;
                let meta = flush(disk, files, &frozen, &options()).unwrap();
                let sst = open(disk, &meta);
                version = version
                    .with_flushed(&frozen, [sst], flushed(Some(LogId { term: 1, index: last.0 }), last))
                    .unwrap();
                assert!(version.frozen.is_empty());
            }
        }
    }
    (version, model, last)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_scan_sees_of_each_row_the_newest_version_at_every_sequence(
        steps in steps(),
        questions in prop::collection::vec(question(), 1..5),
    ) {
        let disk = disk();
        let (version, model, last) = build(&disk, &steps);
        for (number, question) in questions.iter().cycle().take(last.0 as usize + 2).enumerate() {
            // One sequence more than there is.
            let upto = Sequence(number as u64);
            let scan = Scan {
                columns: question.columns.iter().map(|name| (*name).to_string()).collect(),
                predicates: question.predicates.clone(),
                upto,
                after: question.after.map(|index| behind(key_of(index.index(HOSTS.len() * TIMES as usize)))),
                include_deleted: question.include_deleted,
                only: None,
            };
            let expected = model.answer(version.schema(), &scan);
            prop_assert_eq!(&collect(version.scan(&scan, 3).unwrap()), &expected, "{:?}", scan);

            let limit = Limit { rows: question.page_rows, bytes: question.page_bytes, taken: 7 };
            let mut paged = Vec::new();
            let mut scan = scan;
            loop {
                let page: Page = block_on(version.scan(&scan, 3).unwrap().page(limit)).unwrap();
                let rows: Vec<Seen> = page.batches.iter().flat_map(seen).collect();
                prop_assert_eq!(rows.len(), page.rows);
                prop_assert!(rows.len() <= limit.rows, "{} rows on a page of {}", rows.len(), limit.rows);
                let bytes: usize = page.batches.iter().map(Rows::bytes).sum();
                prop_assert!(bytes <= limit.bytes || rows.len() == 1, "{bytes} bytes on a page of {}", limit.bytes);
                paged.extend(rows);
                let key = |position: &Option<Position>| position.clone().map(|position| position.key);
                prop_assert!(key(&page.next) > key(&scan.after) || page.next.is_none(), "the next page does not go on");
                match page.next {
                    Some(next) => scan.after = Some(next),
                    None => break,
                }
            }
            prop_assert_eq!(&paged, &expected, "pages of {:?}", scan);
        }
    }

    #[test]
    fn the_newest_version_of_a_key_is_found_wherever_it_is(steps in steps()) {
        let disk = disk();
        let (version, model, last) = build(&disk, &steps);
        let numbers: Vec<usize> = (0..HOSTS.len() * TIMES as usize).rev().chain([3, 3]).collect();
        let keys: Vec<Key> = numbers.iter().map(|number| key_of(*number)).collect();
        for upto in 0..=last.0 + 1 {
            let expected: Vec<_> = numbers.iter().map(|number| {
                let (sequence, fields) = model.newest(*number, Sequence(upto))?;
                Some((*sequence, if fields.is_some() { Op::Put } else { Op::Delete }))
            }).collect();
            prop_assert_eq!(block_on(version.newest(&keys, Sequence(upto))).unwrap(), expected, "as of {}", upto);
        }
    }

    #[test]
    fn a_flush_keeps_every_version_with_its_own_sequence(steps in steps()) {
        let disk = disk();
        let (version, model, last) = build(&disk, &steps);
        let memtables = version.frozen.iter().chain([&version.mutable]).cloned();
        let merge = Merge::all_versions(&version.rules, memtables, version.ssts.values().cloned(), 3);
        let mut expected: Vec<Seen> = Vec::new();
        for (number, versions) in &model.0 {
            expected.extend(versions.iter().map(|(sequence, fields)| {
                let op = if fields.is_some() { Op::Put } else { Op::Delete };
                (key_of(*number), *sequence, op, whole(*number, fields))
            }));
        }
        expected.sort_by(|(a, s, ..), (b, t, ..)| (a, t).cmp(&(b, s)));
        prop_assert_eq!(collect(merge), expected);
        for sst in version.ssts.values() {
            let meta = sst.meta();
            let merge = Merge::all_versions(&version.rules, [], [sst.clone()], 3);
            let rows = collect(merge);
            let sequences = || rows.iter().map(|(_, sequence, ..)| *sequence);
            prop_assert_eq!(sequences().min(), Some(meta.first_sequence));
            prop_assert_eq!(sequences().max(), Some(meta.last_sequence));
            prop_assert!(meta.last_sequence <= last);
            let times = || rows.iter().map(|(.., cells)| match cells[1] { Value::Timestamp(t) => t, _ => panic!() });
            prop_assert_eq!((times().min(), times().max()), (Some(meta.first_time), Some(meta.last_time)));
            prop_assert_eq!((&rows[0].0, &rows[rows.len() - 1].0), (&meta.first_key, &meta.last_key));
            prop_assert_eq!(rows.len() as u64, meta.rows);
        }
    }
}

/// Merges the files `inputs` into files of about `limit` bytes.
fn compact(disk: &MemoryDisk, version: &Version, inputs: &[FileId], horizon: Sequence, limit: u64) -> Version {
    let (merged, left): (Vec<_>, Vec<_>) =
        version.ssts.values().cloned().partition(|sst| inputs.contains(&sst.meta().id));
    let left = left.iter().map(|sst| Left::of(sst.meta())).collect();
    let hidden = version.flushed.rules.ranges.upto(horizon);
    let retention = Retention { horizon, hidden, left };
    let mut merge = Merge::retained(&version.flushed.rules, merged, retention, None, 2);
    let mut outputs = Vec::new();
    loop {
        // Ids are never used again; the flushes of these tests are fewer than a hundred.
        let id = 100 + disk.files().len() as u64;
        let options = options();
        let written = sst::write(disk, DIR, FileId(id), version.schema(), &options, limit, &mut merge);
        let Some(meta) = block_on(written).unwrap() else { break };
        outputs.push(open(disk, &meta));
    }
    let key_ranges: Vec<_> = outputs.iter().map(|sst| (&sst.meta().first_key, &sst.meta().last_key)).collect();
    assert!(key_ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "outputs overlap: {key_ranges:?}");
    version.with_compacted(inputs, outputs, horizon).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_compaction_changes_nothing_that_can_be_read_and_keeps_nothing_else(
        steps in steps(),
        choices in prop::collection::vec((any::<u16>(), any::<Index>(), prop_oneof![Just(u64::MAX), Just(0), 1..2_000_u64]), 1..4),
    ) {
        let disk = disk();
        let (mut version, model, last) = build(&disk, &steps);
        for (chosen, horizon, limit) in choices {
            let ids: Vec<FileId> = version.ssts.keys().copied().collect();
            let inputs: Vec<FileId> =
                ids.iter().enumerate().filter(|(at, _)| chosen >> (at % 16) & 1 == 1).map(|(_, id)| *id).collect();
            let choice = horizon.index(version.flushed.sequence.0 as usize + 1) as u64;
            let horizon = Sequence(choice).max(version.oldest);
            version = compact(&disk, &version, &inputs, horizon, limit);
            for upto in horizon.0..=last.0 {
                let scan = all_columns(upto);
                let found = collect(version.scan(&scan, 3).unwrap());
                prop_assert_eq!(found, model.answer(version.schema(), &scan), "{:?} of {:?} at {}", inputs, ids, upto);
            }
            // What no read needs is gone.
            let outputs: Vec<_> = version.ssts.iter().filter(|(id, _)| !ids.contains(id)).map(|(_, sst)| sst.clone()).collect();
            let mut before = None;
            for (key, sequence, op, _) in collect(Merge::all_versions(&version.rules, [], outputs, 3)) {
                if sequence > horizon {
                    continue;
                }
                prop_assert!(before.as_ref() != Some(&key), "two versions of {key:?} at or below {horizon}");
                if op == Op::Delete {
                    let hides = |sst: &Arc<Sst>| {
                        let meta = sst.meta();
                        ids.contains(&meta.id) && meta.first_key <= key && key <= meta.last_key && meta.first_sequence < sequence
                    };
                    prop_assert!(version.ssts.values().any(hides), "a tombstone of {key:?} that hides nothing");
                }
                before = Some(key);
            }
        }
    }
}

#[test]
fn a_tombstone_goes_only_when_no_file_that_is_left_can_have_what_it_hides() {
    let disk = disk();
    let mut version = Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1);
    let delete = |host: &str| (Op::Delete, put(host, 1, 0).1);
    for (id, rows) in
        (1..).zip([vec![put("a", 1, 1), put("b", 1, 1)], vec![delete("a"), put("c", 1, 2)], vec![put("c", 1, 3)]])
    {
        write(&version.mutable, &rows, Sequence(id * 2 - 1));
        version = version.with_frozen();
        let sst = open(&disk, &flush(&disk, id, &version.frozen, &options()).unwrap());
        version = version.with_flushed(&version.frozen, [sst], flushed(None, Sequence(id * 2))).unwrap();
    }
    let rows = |version: &Version| {
        let merge = Merge::all_versions(&version.rules, [], version.ssts.values().cloned(), 8);
        collect(merge).into_iter().map(|(_, sequence, op, _)| (sequence.0, op)).collect::<Vec<_>>()
    };
    // Without the oldest file its row would come back.
    let part = compact(&disk, &version, &[FileId(2), FileId(3)], Sequence(6), u64::MAX);
    assert_eq!(rows(&part), [(3, Op::Delete), (1, Op::Put), (2, Op::Put), (5, Op::Put)]);
    let whole = compact(&disk, &version, &[FileId(1), FileId(2), FileId(3)], Sequence(6), u64::MAX);
    assert_eq!(rows(&whole), [(2, Op::Put), (5, Op::Put)]);
    // Somebody may still read as of 2: before the deletion.
    let kept = compact(&disk, &version, &[FileId(1), FileId(2), FileId(3)], Sequence(2), u64::MAX);
    assert_eq!(rows(&kept), [(3, Op::Delete), (1, Op::Put), (2, Op::Put), (5, Op::Put), (4, Op::Put)]);
}

fn put(host: &str, ts: i64, v: i64) -> (Op, Vec<Value>) {
    let text = |s: &str| Value::String(s.to_string());
    (Op::Put, vec![Value::Int(v), Value::Timestamp(ts), text(host), Value::Null])
}

fn all_columns(upto: u64) -> Scan {
    let columns = ["host", "ts", "v"].map(str::to_string).to_vec();
    Scan { columns, upto: Sequence(upto), ..Scan::default() }
}

#[test]
fn a_condition_on_a_field_does_not_bring_an_older_version_back() {
    // The old version in a file and the new one in memory, both in files of their own, both in one file.
    for files in [vec![1], vec![1, 1], vec![2]] {
        let disk = disk();
        let mut version = Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1);
        let mut versions = (1..).zip([10, 20]);
        for (id, written) in (1..).zip(files) {
            for (sequence, v) in versions.by_ref().take(written) {
                write(&version.mutable, &[put("a", 1, v)], Sequence(sequence));
            }
            version = version.with_frozen();
            let sst = open(&disk, &flush(&disk, id, &version.frozen, &options()).unwrap());
            version = version.with_flushed(&version.frozen, [sst], flushed(None, Sequence(2))).unwrap();
        }
        for (sequence, v) in versions {
            write(&version.mutable, &[put("a", 1, v)], Sequence(sequence));
        }
        let predicates = vec![Predicate { column: "v".to_string(), condition: Condition::Eq(Value::Int(10)) }];
        let scan = |upto| Scan { predicates: predicates.clone(), ..all_columns(upto) };
        assert_eq!(collect(version.scan(&scan(1), 8).unwrap()).len(), 1);
        assert_eq!(collect(version.scan(&scan(2), 8).unwrap()), []);
    }
}

#[test]
fn a_reader_is_not_disturbed_by_later_writes() {
    let version = Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1);
    let rows: Vec<_> = (0..6).map(|ts| put("a", ts, ts)).collect();
    write(&version.mutable, &rows, Sequence(1));
    // As of a sequence that is not there yet: what is written while the scan is open does not count.
    let mut merge = version.scan(&all_columns(100), 2).unwrap();
    let mut all = seen(&block_on(merge.next()).unwrap().unwrap());
    write(&version.mutable, &[put("a", 4, 99), (Op::Delete, put("a", 5, 0).1), put("b", 0, 0)], Sequence(7));
    let frozen = version.with_frozen();
    write(&frozen.mutable, &[put("a", 3, 98)], Sequence(10));
    all.extend(collect(merge));
    let values: Vec<_> = all.iter().map(|(.., cells)| cells[2].clone()).collect();
    assert_eq!(values, (0..6).map(Value::Int).collect::<Vec<_>>());
}

#[test]
fn a_flush_of_another_past_publishes_nothing() {
    let version = Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1);
    write(&version.mutable, &[put("a", 1, 1)], Sequence(1));
    let frozen = version.with_frozen();
    let stranger = [Arc::new(Memtable::new(schema()))];
    let upto = Some(LogId { term: 1, index: 1 });
    assert!(frozen.with_flushed(&stranger, [], flushed(upto, Sequence(1))).is_none());
    assert!(
        version.with_flushed(&frozen.frozen, [], flushed(upto, Sequence(1))).is_none(),
        "the mutable one is not flushed"
    );
    let after = frozen.with_flushed(&frozen.frozen, [], flushed(upto, Sequence(1))).unwrap();
    assert_eq!((after.frozen.len(), after.flushed.log_id, after.memtable_rows()), (0, upto, 0));
}

#[test]
fn an_unknown_column_is_refused() {
    let version = Version::new(flushed(None, Sequence(0)), [], Sequence(0), 1);
    let scan = Scan { columns: vec!["nothing".to_string()], ..Scan::default() };
    assert_eq!(version.scan(&scan, 8).err().unwrap().code(), "unknown_column");
}

#[test]
fn a_page_of_disjoint_files_reads_the_first_one_only() {
    let disk = disk();
    let file = |id: u64, host: &str| {
        let memtable = Arc::new(Memtable::new(schema()));
        write(&memtable, &[put(host, 1, 1), put(host, 2, 2)], Sequence(id * 10));
        flush(&disk, id, &[memtable], &options()).unwrap()
    };
    let metas = [file(1, "a"), file(2, "b")];
    let version = Version::new(flushed(None, Sequence(21)), metas.iter().map(|meta| open(&disk, meta)), Sequence(0), 1);
    // What is not read cannot be seen to be damaged.
    disk.damage(&sst::path(DIR, FileId(2)), |bytes| bytes[20] ^= 1);
    let limit = Limit { rows: 1, bytes: 1 << 20, taken: 100 };
    let page = block_on(version.scan(&all_columns(100), 8).unwrap().page(limit)).unwrap();
    assert_eq!((page.rows, page.next.is_some()), (1, true));
    let rest = Scan { after: page.next, ..all_columns(100) };
    let err = block_on(version.scan(&rest, 8).unwrap().page(Limit { rows: 9, ..limit })).unwrap_err();
    assert_eq!(err.code(), "damaged");
}

#[test]
fn a_scan_that_failed_does_not_go_on() {
    let disk = disk();
    let memtable = Arc::new(Memtable::new(schema()));
    write(&memtable, &[put("a", 1, 1)], Sequence(1));
    let sst = open(&disk, &flush(&disk, 1, &[memtable], &options()).unwrap());
    let version = Version::new(flushed(None, Sequence(1)), [sst], Sequence(0), 1);
    write(&version.mutable, &[put("b", 1, 1)], Sequence(2));
    disk.damage(&sst::path(DIR, FileId(1)), |bytes| bytes[20] ^= 1);
    let mut merge = version.scan(&all_columns(2), 8).unwrap();
    assert_eq!(block_on(merge.next()).unwrap_err().code(), "damaged");
    assert_eq!(block_on(merge.next()).unwrap_err().code(), "io");
}

#[test]
fn a_memtable_counts_what_it_holds() {
    let memtable = Memtable::new(schema());
    assert!(memtable.is_empty() && memtable.bytes() == 0 && memtable.sequences().is_none());
    write(&memtable, &[put("b", 7, 1), put("a", 9, 2)], Sequence(5));
    write(&memtable, &[put("a", -3, 3)], Sequence(9));
    assert_eq!(memtable.sequences(), Some((Sequence(5), Sequence(9))));
    assert_eq!(memtable.times(), Some((-3, 9)));
    let (first, last) = memtable.keys().unwrap();
    assert!(first < last && memtable.rows() == 3);
    let before = memtable.bytes();
    let long = (Op::Put, vec![Value::Int(1), Value::Timestamp(1), Value::Null, Value::String("x".repeat(10_000))]);
    let long = (long.0, long.1.into_iter().map(|v| if v.is_null() { Value::String("c".into()) } else { v }).collect());
    write(&memtable, &[long], Sequence(10));
    let added = memtable.bytes() - before;
    assert!((10_000..12_000).contains(&added), "{added} bytes for a row of ten thousand");
}

#[test]
fn what_a_crash_left_is_removed_and_what_is_named_stays() {
    let disk = disk();
    let memtable = Arc::new(Memtable::new(schema()));
    write(&memtable, &[put("a", 1, 1)], Sequence(1));
    let metas: Vec<_> =
        (1..=3).map(|id| flush(&disk, id, std::slice::from_ref(&memtable), &options()).unwrap()).collect();
    let events = Events::of(NodeId(1));
    let past = Past { sequence: Sequence(1), ..Past::default() };
    let manifest = async {
        let (region, replica) = (RegionId(1 << 32), ReplicaId(1));
        let mut manifest =
            Manifest::create(disk.clone(), DIR, region, replica, past, &options(), events.clone()).await.unwrap();
        let edit = manifest::Edit { add: vec![metas[1].clone()], ..manifest::Edit::default() };
        manifest.commit(&manifest::Action::Edit(edit)).await.unwrap();
        manifest
    };
    let manifest = block_on(manifest);
    let removed = block_on(manifest.remove_orphans(|| BTreeSet::from([FileId(3)]))).unwrap();
    assert_eq!(removed, 1);
    assert_eq!(block_on(disk.list(&sst::folder(DIR))).unwrap(), ["0000000002.parquet", "0000000003.parquet"]);
}
