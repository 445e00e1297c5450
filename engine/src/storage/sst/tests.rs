use std::sync::Arc;

use futures::executor::block_on;

use super::*;
use crate::disk::Disk;
use crate::disk::memory::MemoryDisk;
use crate::options::Options;
use crate::storage::memtable::Memtable;
use crate::storage::merge::Merge;
use crate::storage::scan::Scan;
use crate::storage::tests::{
    DIR, Seen, behind, collect, column, disk, flush, open, options, rules, schema, write as put,
};
use crate::types::{ColumnType, Condition, Op, Predicate, TimeUnit, Value, encode_key};

#[test]
fn only_files_that_nobody_names_are_orphans() {
    let names = ["0000000001.parquet", "0000000002.parquet", "0000000003.parquet", "1.parquet", "notes.txt"];
    let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
    let one = |id| BTreeSet::from([FileId(id)]);
    assert_eq!(orphans(&names, &one(1), &one(3)), ["0000000002.parquet"]);
    assert_eq!(name(FileId(12_345_678_901)), "12345678901.parquet");
    assert_eq!(id_of("12345678901.parquet"), Some(FileId(12_345_678_901)));
}

/// Two values of each type, the extremes where that is easy to get wrong.
fn samples() -> Vec<(ColumnType, Value, Value)> {
    let text = |s: &str| Value::String(s.to_string());
    vec![
        (ColumnType::Boolean, Value::Boolean(false), Value::Boolean(true)),
        (ColumnType::Int8, Value::Int(i8::MIN.into()), Value::Int(i8::MAX.into())),
        (ColumnType::Int16, Value::Int(i16::MIN.into()), Value::Int(i16::MAX.into())),
        (ColumnType::Int32, Value::Int(i32::MIN.into()), Value::Int(i32::MAX.into())),
        (ColumnType::Int64, Value::Int(i64::MIN), Value::Int(i64::MAX)),
        (ColumnType::UInt8, Value::UInt(0), Value::UInt(u8::MAX.into())),
        (ColumnType::UInt16, Value::UInt(0), Value::UInt(u16::MAX.into())),
        (ColumnType::UInt32, Value::UInt(0), Value::UInt(u32::MAX.into())),
        (ColumnType::UInt64, Value::UInt(0), Value::UInt(u64::MAX)),
        (ColumnType::Float32, Value::Float(-0.0), Value::Float(f32::NAN.into())),
        (ColumnType::Float64, Value::Float(f64::NEG_INFINITY), Value::Float(f64::NAN)),
        (ColumnType::Decimal { precision: 9, scale: 2 }, Value::Decimal(-999_999_999), Value::Decimal(1)),
        (ColumnType::Decimal { precision: 18, scale: 0 }, Value::Decimal(-1), Value::Decimal(10_i128.pow(18) - 1)),
        (ColumnType::Decimal { precision: 38, scale: 9 }, Value::Decimal(-(10_i128.pow(37))), Value::Decimal(0)),
        (ColumnType::String, text(""), text(&"\u{10FFFF}".repeat(100))),
        (ColumnType::Binary, Value::Binary(vec![]), Value::Binary(vec![0xFF; 100])),
        (ColumnType::Date, Value::Date(i32::MIN), Value::Date(i32::MAX)),
        (ColumnType::Timestamp(TimeUnit::Second), Value::Timestamp(i64::MIN), Value::Timestamp(i64::MAX)),
        (ColumnType::Timestamp(TimeUnit::Millisecond), Value::Timestamp(i64::MIN), Value::Timestamp(i64::MAX)),
        (ColumnType::Timestamp(TimeUnit::Microsecond), Value::Timestamp(i64::MIN), Value::Timestamp(i64::MAX)),
        (ColumnType::Timestamp(TimeUnit::Nanosecond), Value::Timestamp(i64::MIN), Value::Timestamp(i64::MAX)),
    ]
}

/// A table with each type as a key column and as a field, and a file of it: every combination of low and high in key
/// and fields, a row of NULLs and a tombstone.
fn table_of_all_types() -> (Arc<Schema>, Vec<(Op, Vec<Value>)>) {
    let types = samples();
    let name = |kind: &str, at: usize| format!("{kind}{at}");
    let columns = |kind: &'static str, base: usize| {
        types.iter().enumerate().map(move |(at, (t, ..))| column((base + at) as u32, &name(kind, at), *t))
    };
    let key: Vec<String> = (0..types.len()).map(|at| name("k", at)).collect();
    let schema = Schema::new(1, columns("k", 1).chain(columns("f", 100)).collect(), &key, None).unwrap();
    let side = |high: bool| types.iter().map(move |(_, low, up)| if high { up.clone() } else { low.clone() });
    let nulls = || types.iter().map(|_| Value::Null);
    // Keys: all low, all high, and for each column one where only it is high.
    let one_high = |at: usize| side(false).take(at).chain(side(true).skip(at).take(1)).chain(side(false).skip(at + 1));
    let mut rows = vec![
        (Op::Put, side(false).chain(side(true)).collect()),
        (Op::Put, side(true).chain(nulls()).collect()),
        (Op::Delete, side(true).chain(nulls()).collect()),
    ];
    rows.extend((0..types.len()).map(|at| (Op::Put, one_high(at).chain(side(at % 2 == 0)).collect())));
    (Arc::new(schema), rows)
}

#[test]
fn every_type_comes_back_as_it_was_written() {
    let (schema, rows) = table_of_all_types();
    let disk = disk();
    let memtable = Arc::new(Memtable::new(schema.clone()));
    put(&memtable, &rows, Sequence(1));
    let sst = Arc::new(open(&disk, &flush(&disk, 1, std::slice::from_ref(&memtable), &options()).unwrap()));
    assert_eq!(sst.schema().unwrap(), &*schema);
    assert_eq!((sst.meta().first_time, sst.meta().last_time), (i64::MIN, i64::MAX), "one window without a TIME INDEX");
    let types: Vec<ColumnType> = samples().iter().map(|(t, ..)| *t).collect();
    let mut expected: Vec<Seen> = rows
        .into_iter()
        .zip(1..)
        .map(|((op, row), sequence)| (encode_key(&row[..types.len()], &types), Sequence(sequence), op, row))
        .collect();
    expected.sort_by(|(a, s, ..), (b, t, ..)| (a, t).cmp(&(b, s)));
    assert_eq!(collect(Merge::all_versions(&rules(&schema), [], [sst.clone()], 2)), expected);
    assert_eq!(collect(Merge::all_versions(&rules(&schema), [memtable], [], 2)), expected);
    // Statistics of every key column prune, and prune nothing that is wanted.
    for (at, (_, low, high)) in samples().into_iter().enumerate() {
        for value in [low, high] {
            for condition in [
                Condition::Eq(value.clone()),
                Condition::Lt(value.clone()),
                Condition::LtEq(value.clone()),
                Condition::Gt(value.clone()),
                Condition::GtEq(value.clone()),
                Condition::NotEq(value.clone()),
            ] {
                let predicate = Predicate { column: format!("k{at}"), condition };
                let wanted = |(.., row): &&Seen| predicate.condition.holds(&row[at]);
                let newest = expected.iter().filter(|(_, sequence, ..)| *sequence != Sequence(2)).filter(wanted);
                let scan = Scan {
                    columns: Vec::new(),
                    predicates: vec![predicate.clone()],
                    upto: Sequence(u64::MAX),
                    include_deleted: true,
                    after: None,
                    only: None,
                };
                let merge = Merge::visible(&rules(&schema), [], [sst.clone()], &scan, 4).unwrap();
                let found: Vec<_> = collect(merge).into_iter().map(|(_, sequence, ..)| sequence).collect();
                assert_eq!(found, newest.map(|(_, sequence, ..)| *sequence).collect::<Vec<_>>(), "{predicate}");
            }
        }
    }
}

fn row(host: &str, ts: i64, v: i64) -> (Op, Vec<Value>) {
    let text = |s: &str| Value::String(s.to_string());
    (Op::Put, vec![Value::Int(v), Value::Timestamp(ts), text(host), Value::Null])
}

/// Hosts a, b, c with 50 rows each.
fn written(disk: &MemoryDisk, options: &Options) -> FileMeta {
    let memtable = Arc::new(Memtable::new(schema()));
    let rows: Vec<_> = ["a", "b", "c"].into_iter().flat_map(|host| (0..50).map(move |ts| row(host, ts, ts))).collect();
    put(&memtable, &rows, Sequence(1));
    flush(disk, 7, &[memtable], options).unwrap()
}

#[test]
fn a_damaged_byte_is_found_wherever_it_is() {
    let disk = disk();
    let meta = written(&disk, &options());
    let path = path(DIR, meta.id);
    let read = |meta: &FileMeta| {
        let sst = Arc::new(block_on(Sst::open(&*disk, DIR, meta.clone()))?);
        let mut merge = Merge::all_versions(&rules(&schema()), [], [sst], 16);
        let mut rows = 0;
        while let Some(some) = block_on(merge.next())? {
            rows += some.len();
        }
        Ok::<usize, Error>(rows)
    };
    assert_eq!(read(&meta).unwrap(), 150);
    for at in (0..meta.bytes as usize).step_by(23) {
        disk.damage(&path, |bytes| bytes[at] ^= 0x10);
        let err = block_on(verify(&*disk, DIR, &meta)).unwrap_err();
        assert!(matches!(&err, Error::Damaged { file, .. } if *file == path), "{err}");
        // The magic number at the start is not read.
        if at >= 4 {
            let err = read(&meta).expect_err("a damaged byte was read");
            assert!(matches!(&err, Error::Damaged { file, .. } if *file == path), "byte {at}: {err}");
        }
        disk.damage(&path, |bytes| bytes[at] ^= 0x10);
    }
    disk.damage(&path, |bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(block_on(verify(&*disk, DIR, &meta)).unwrap_err().code(), "damaged");
    assert_eq!(read(&meta).unwrap_err().code(), "damaged");
    block_on(disk.remove_file(&path)).unwrap();
    assert_eq!(block_on(verify(&*disk, DIR, &meta)).unwrap_err().code(), "damaged");
    assert_eq!(read(&meta).unwrap_err().code(), "damaged");
}

#[test]
fn a_written_file_survives_a_power_loss() {
    let disk = disk();
    let meta = written(&disk, &options());
    disk.lose_power();
    block_on(verify(&*disk, DIR, &meta)).unwrap();
}

#[test]
fn what_no_row_can_match_is_not_read() {
    let disk = disk();
    let meta = written(&disk, &options());
    let sst = Arc::new(open(&disk, &meta));
    let path = path(DIR, meta.id);
    // The first third of the row groups is damaged: rows of host a.
    let merge = |scan: &Scan| Merge::visible(&rules(&schema()), [], [sst.clone()], scan, 16).unwrap();
    let scan = |predicates: Vec<Predicate>| Scan {
        columns: vec!["v".to_string()],
        predicates,
        upto: Sequence(150),
        ..Scan::default()
    };
    disk.damage(&path, |bytes| {
        let third = (bytes.len() - meta.footer_bytes as usize) / 3;
        bytes[4..third].fill(0);
    });
    let on = |column: &str, condition| Predicate { column: column.to_string(), condition };
    let text = |s: &str| Value::String(s.to_string());
    // By key range.
    assert_eq!(collect(merge(&scan(vec![on("host", Condition::Eq(text("c")))]))).len(), 50);
    // By statistics: this condition implies no key range.
    assert_eq!(
        collect(merge(&scan(vec![
            on("host", Condition::NotEq(text("a"))),
            on("ts", Condition::GtEq(Value::Timestamp(30))),
            on("host", Condition::Gt(text("b")))
        ])))
        .len(),
        20
    );
    let page_after_b = Scan { after: Some(behind(meta_key("b", 49))), ..scan(vec![]) };
    assert_eq!(collect(merge(&page_after_b)).len(), 50);
    assert_eq!(
        block_on(sst.newest(&[meta_key("c", 3), meta_key("c", 77)], Sequence(150))).unwrap(),
        [Some((Sequence(104), Op::Put)), None]
    );
    // A whole file by sequence or time.
    assert_eq!(collect(merge(&Scan { upto: Sequence(0), ..scan(vec![]) })), []);
    assert_eq!(collect(merge(&scan(vec![on("ts", Condition::Gt(Value::Timestamp(49)))]))), []);
    // And what is wanted is noticed.
    assert_eq!(block_on(merge(&scan(vec![])).next()).unwrap_err().code(), "damaged");
}

fn meta_key(host: &str, ts: i64) -> Key {
    let types = [ColumnType::String, ColumnType::Timestamp(TimeUnit::Millisecond)];
    encode_key(&[Value::String(host.to_string()), Value::Timestamp(ts)], &types)
}
