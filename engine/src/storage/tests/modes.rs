//! What the versions of a row come to, in each merge mode and across truncations and expiries, against the shortest model:
//! the list of all that was written, read from the end.

use std::cmp::Reverse;

use super::*;
use crate::storage::changes::ChangePage;
use crate::storage::range::RangeTombstones;
use crate::types::{MergeMode, TableOptions};

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(usize, Fields)>),
    Truncate,
    /// Rows of a time before this expire.
    Expire(i64),
    Freeze,
    Flush,
    /// Which files, and up to where of what is flushed.
    Compact(u16, Index),
}

fn steps(mode: MergeMode) -> impl Strategy<Value = Vec<Step>> {
    let cell = || prop_oneof![2 => Just(Value::Null), 3 => (0..9_i64).prop_map(Value::Int)];
    let text = || prop_oneof![2 => Just(Value::Null), 3 => "[xyz]".prop_map(Value::String)];
    let deletes = if mode == MergeMode::Append { 0 } else { 2 };
    let fields = move || {
        let put = (cell(), text()).prop_map(Some);
        prop_oneof![7 => put, deletes => Just(None)]
    };
    let rows = prop::collection::vec((0..HOSTS.len() * TIMES as usize, fields()), 1..5);
    prop::collection::vec(
        prop_oneof![
            8 => rows.prop_map(Step::Write),
            1 => Just(Step::Truncate),
            1 => (0..TIMES + 1).prop_map(Step::Expire),
            1 => Just(Step::Freeze),
            4 => Just(Step::Flush),
            3 => (any::<u16>(), any::<Index>()).prop_map(|(files, upto)| Step::Compact(files, upto)),
        ],
        1..24,
    )
}

fn modes() -> impl Strategy<Value = (MergeMode, Sequence, Vec<Step>)> {
    let mode = prop_oneof![Just(MergeMode::LastRow), Just(MergeMode::LastNonNull), Just(MergeMode::Append)];
    (mode, 0..6_u64).prop_flat_map(|(mode, after)| (Just(mode), Just(Sequence(after)), steps(mode)))
}

/// All that happened, in order.
struct History {
    mode: MergeMode,
    /// Of a table that appends: since when.
    appends_after: Sequence,
    writes: Vec<(Sequence, usize, Fields)>,
    truncated: Vec<Sequence>,
    expired: Vec<(Sequence, i64)>,
}

/// A row, its version and key.
type Row = (Key, Reverse<Sequence>, Vec<Value>);

impl History {
    fn visible(&self, upto: Sequence) -> Vec<Row> {
        let is_hidden = |sequence: Sequence, number: usize| {
            let time = number as i64 % TIMES;
            self.truncated.iter().any(|at| *at <= upto && sequence < *at)
                || self.expired.iter().any(|(at, before)| *at <= upto && sequence < *at && time < *before)
        };
        let mut rows = Vec::new();
        for number in 0..HOSTS.len() * TIMES as usize {
            let of_row = self.writes.iter().rev().filter(|(sequence, key, _)| *key == number && *sequence <= upto);
            let seen = of_row.filter(|(sequence, ..)| !is_hidden(*sequence, number));
            let puts: Vec<(Sequence, (Value, Value))> =
                seen.map_while(|(sequence, _, fields)| Some((*sequence, fields.clone()?))).collect();
            let Some((newest, _)) = puts.first().cloned() else { continue };
            let mut row =
                |sequence, fields| rows.push((key_of(number), Reverse(sequence), whole(number, &Some(fields))));
            match self.mode {
                MergeMode::LastRow => row(newest, puts[0].1.clone()),
                MergeMode::LastNonNull => {
                    let first = |of: fn(&(Value, Value)) -> &Value| {
                        puts.iter()
                            .map(|(_, fields)| of(fields))
                            .find(|cell| !cell.is_null())
                            .cloned()
                            .unwrap_or(Value::Null)
                    };
                    row(newest, (first(|fields| &fields.0), first(|fields| &fields.1)));
                }
                MergeMode::Append => {
                    let appended = puts.iter().filter(|(sequence, _)| *sequence > self.appends_after).count();
                    puts.into_iter().take(appended + 1).for_each(|(sequence, fields)| row(sequence, fields));
                }
            }
        }
        rows
    }

    fn changes(&self, since: Sequence, upto: Sequence) -> Vec<(Row, i8)> {
        let (was, is) = (self.visible(since), self.visible(upto));
        let place = |row: &Row| (row.0.clone(), row.1);
        let only = |some: &[Row], others: &[Row], sign: i8| -> Vec<(Row, i8)> {
            let alone = |row: &&Row| others.iter().all(|other| place(other) != place(row));
            some.iter().filter(alone).map(|row| (row.clone(), sign)).collect()
        };
        let mut all = [only(&was, &is, -1), only(&is, &was, 1)].concat();
        match self.mode {
            MergeMode::Append => all.sort_by_key(|((key, Reverse(sequence), _), sign)| {
                let appended = if *sequence > self.appends_after { *sequence } else { Sequence(0) };
                (key.clone(), Reverse(appended), *sign)
            }),
            _ => all.sort_by_key(|(row, sign)| (row.0.clone(), *sign)),
        }
        all
    }
}

/// Carries out the steps; all sequences from the horizon of the last compaction on stay readable.
fn build(disk: &MemoryDisk, mode: MergeMode, appends_after: Sequence, steps: &[Step]) -> (Version, History, Sequence) {
    let schema = Schema::clone(&schema()).with_options(TableOptions { merge_mode: mode, ..TableOptions::default() });
    let schema = Arc::new(schema.unwrap());
    let mut ranges = RangeTombstones::default();
    let rules = |ranges: &RangeTombstones| Rules { schema: schema.clone(), ranges: ranges.clone(), appends_after };
    let at = |sequence, ranges: &RangeTombstones| Flushed {
        log_id: None,
        sequence,
        rules: Arc::new(rules(ranges)),
        pinned: None,
    };
    let mut version = Version::new(at(Sequence(0), &ranges), [], Sequence(0), 1);
    let (writes, truncated, expired) = (Vec::new(), Vec::new(), Vec::new());
    let mut history = History { mode, appends_after, writes, truncated, expired };
    let (mut last, mut files) = (Sequence(0), 0);
    for step in steps {
        match step {
            Step::Write(rows) => {
                let first = Sequence(last.0 + 1);
                let mut cells = Vec::new();
                for (number, fields) in rows {
                    last.0 += 1;
                    history.writes.push((last, *number, fields.clone()));
                    let op = if fields.is_some() { Op::Put } else { Op::Delete };
                    cells.push((op, whole(*number, fields)));
                }
                write(&version.mutable, &cells, first);
            }
            Step::Truncate => {
                last.0 += 1;
                history.truncated.push(last);
                ranges.truncate(last, Some(version.oldest));
                version = version.with_rules(rules(&ranges));
            }
            Step::Expire(before) if ranges.watermark() < Some(*before) => {
                last.0 += 1;
                history.expired.push((last, *before));
                ranges.expire(last, *before, Some(version.oldest));
                version = version.with_rules(rules(&ranges));
            }
            Step::Expire(_) => {}
            Step::Freeze => version = version.with_frozen(),
            Step::Flush => {
                version = version.with_frozen();
                let frozen = version.frozen.clone();
                let file = frozen.first().and_then(|_| {
                    files += 1;
                    flush(disk, files, &frozen, &options())
                });
                let file = file.map(|meta| open(disk, &meta));
                version = version.with_flushed(&frozen, file, at(last, &ranges)).unwrap();
            }
            Step::Compact(chosen, upto) => {
                let ids: Vec<FileId> = version.ssts.keys().copied().collect();
                let chosen = ids.iter().enumerate().filter(|(at, _)| chosen >> (at % 16) & 1 == 1);
                let inputs: Vec<FileId> = chosen.map(|(_, id)| *id).collect();
                let choice = upto.index(version.flushed.sequence.0 as usize + 1) as u64;
                version = compact(disk, &version, &inputs, Sequence(choice).max(version.oldest), u64::MAX);
            }
        }
    }
    (version, history, last)
}

fn whole_rows(upto: Sequence) -> Scan {
    let columns = schema().columns().iter().map(|column| column.name.clone()).collect();
    Scan { columns, upto, ..Scan::default() }
}

/// Pages of `rows` each until there are no more.
fn pages(version: &Version, upto: Sequence, rows: usize) -> Vec<Row> {
    let mut all = Vec::new();
    let mut scan = whole_rows(upto);
    loop {
        let limit = Limit { rows, bytes: usize::MAX, taken: usize::MAX };
        let page = block_on(version.scan(&scan, 2).unwrap().page(limit)).unwrap();
        for batch in &page.batches {
            all.extend(seen(batch).into_iter().map(|(key, sequence, _, cells)| (key, Reverse(sequence), cells)));
        }
        scan.after = page.next;
        if scan.after.is_none() {
            return all;
        }
    }
}

fn change_pages(version: &Version, since: Option<Sequence>, upto: Sequence, rows: usize) -> Vec<(Key, Vec<Value>)> {
    let mut all = Vec::new();
    let mut scan = whole_rows(upto);
    loop {
        let limit = Limit { rows, bytes: usize::MAX, taken: usize::MAX };
        let ChangePage { batch, keys, next, .. } = block_on(version.changes(since, &scan, limit, 2)).unwrap();
        assert_eq!(batch.num_rows(), keys.len());
        for (row, key) in keys.into_iter().enumerate() {
            all.push((key, batch.columns().iter().map(|column| Value::of_cell(column, row)).collect()));
        }
        scan.after = next;
        if scan.after.is_none() {
            return all;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_mode_reads_what_its_history_says((mode, appends_after, steps) in modes(), page in 1..4_usize, since in any::<Index>()) {
        let disk = disk();
        let (version, history, last) = build(&disk, mode, appends_after, &steps);
        let oldest = version.readable();
        for upto in oldest.0..=last.0 {
            prop_assert_eq!(pages(&version, Sequence(upto), page), history.visible(Sequence(upto)), "at {}", upto);
        }
        let since = Sequence(oldest.0 + since.index((last.0 - oldest.0 + 1) as usize) as u64);
        for upto in since.0..=last.0 {
            let expected: Vec<(Key, Vec<Value>)> = history
                .changes(since, Sequence(upto))
                .into_iter()
                .map(|((key, _, mut cells), sign)| {
                    cells.push(Value::Int(i64::from(sign)));
                    (key, cells)
                })
                .collect();
            prop_assert_eq!(change_pages(&version, Some(since), Sequence(upto), page), expected, "from {} to {}", since, upto);
        }
        // From nothing, all that is there is new.
        let all: Vec<(Key, Vec<Value>)> = history.visible(last).into_iter().map(|(key, _, mut cells)| {
            cells.push(Value::Int(1));
            (key, cells)
        }).collect();
        prop_assert_eq!(change_pages(&version, None, last, page), all, "from nothing");
        // An UPDATE decides by the same versions.
        let keys: Vec<Key> = (0..HOSTS.len() * TIMES as usize).map(key_of).collect();
        let newest = block_on(version.newest(&keys, last)).unwrap();
        for (number, found) in newest.into_iter().enumerate() {
            let rows = history.visible(last);
            let expected = rows.iter().find(|(key, ..)| *key == keys[number]).map(|(_, Reverse(sequence), _)| *sequence);
            let put = found.filter(|(_, op)| *op == Op::Put).map(|(sequence, _)| sequence);
            prop_assert_eq!(put, expected, "key {}", number);
        }
    }
}

/// Where the newest value of each column counts, versions are folded when nothing can be read between them.
#[test]
fn a_compaction_folds_what_is_not_null() {
    let disk = disk();
    let value = |n: i64| Some((Value::Int(n), Value::Null));
    let text = Some((Value::Null, Value::String("x".into())));
    let steps = [
        Step::Write(vec![(1, value(1)), (1, text.clone()), (2, value(5))]),
        Step::Flush,
        Step::Write(vec![(1, value(2))]),
        Step::Flush,
    ];
    let (version, history, last) = build(&disk, MergeMode::LastNonNull, Sequence(0), &steps);
    let compacted = |inputs: &[FileId], horizon| {
        let version = compact(&disk, &version, inputs, Sequence(horizon), u64::MAX);
        assert_eq!(pages(&version, last, 9), history.visible(last));
        collect(Merge::all_versions(&version.rules, [], version.ssts.values().cloned(), 9))
    };
    let both: Vec<FileId> = version.ssts.keys().copied().collect();
    let cells =
        |n, text: &str| vec![Value::Int(n), Value::Timestamp(1), Value::String("".into()), Value::String(text.into())];
    let all = compacted(&both, 4);
    assert_eq!((all.len(), &all[0].3), (2, &cells(2, "x")), "one version a row");
    assert_eq!(compacted(&both, 3).len(), 3, "what is newer than the horizon stays apart");
    // The first file alone: its two versions of the row are one.
    assert_eq!(compacted(&both[..1], 3).len(), 3);
}

/// What stays between two versions keeps them apart: the older one must not fill what the one between has.
#[test]
fn a_compaction_folds_nothing_over_a_version_that_it_leaves_alone() {
    let disk = disk();
    let value = |n: i64| Some((Value::Int(n), Value::Null));
    let text = Some((Value::Null, Value::String("x".into())));
    let write = |fields| [Step::Write(vec![(1, fields)]), Step::Flush];
    let steps = [write(value(1)), write(value(2)), write(text)].concat();
    let (version, history, last) = build(&disk, MergeMode::LastNonNull, Sequence(0), &steps);
    let files: Vec<FileId> = version.ssts.keys().copied().collect();
    let version = compact(&disk, &version, &[files[0], files[2]], last, u64::MAX);
    assert_eq!(pages(&version, last, 9), history.visible(last));
    let version = compact(&disk, &version, &version.ssts.keys().copied().collect::<Vec<_>>(), last, u64::MAX);
    assert_eq!(pages(&version, last, 9), history.visible(last));
    assert_eq!(collect(Merge::all_versions(&version.rules, [], version.ssts.values().cloned(), 9)).len(), 1);
}
