//! What a scan reads, resolved once against the schema: columns, conditions, key range.
//!
//! Where a condition may be used is the heart of it. The versions of one row share their key, so a condition on a *key*
//! column removes all of them or none: it may prune files, row groups and rows before versions are merged. A condition on
//! a *field* may hold of an old version and not of the newest: used before the merge it would bring the old one back. It
//! is used on merged rows only. Tombstones have no fields: a field condition does not hide them from a reader that asked
//! for them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, Scalar};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp;
use arrow::datatypes::{Schema as ArrowSchema, SchemaRef};
use arrow::error::ArrowError;

use super::range::Hidden;
use super::rows::{Rows, timestamps};
use super::rules::Rules;
use super::sst::FileMeta;
use crate::error::{Error, Invalid, Result};
use crate::types::{
    ColumnType, Condition, Key, MergeMode, Op, Position, Predicate, Schema, Sequence, Value, encode_key,
};

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Names of the columns to return, in this order; may be none.
    pub columns: Vec<String>,
    /// All hold of every row that is returned, except conditions on fields of a tombstone.
    pub predicates: Vec<Predicate>,
    /// As of this sequence: of each row what its versions up to there come to.
    pub upto: Sequence,
    /// Only what is behind this.
    pub after: Option<Position>,
    /// Return the tombstones of deleted rows too.
    pub include_deleted: bool,
    /// Only rows of these keys, which are ascending.
    pub only: Option<Arc<[Key]>>,
}

/// Which versions the merge lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    /// All: what a flush writes.
    All,
    /// Those that somebody may still read: what a compaction writes.
    Retained(Retention),
    /// What those of each row come to as of the plan's `upto`; of a deleted row its tombstone if asked for.
    Visible { include_deleted: bool },
    /// Any one of each row that has some behind `since`, up to the plan's `upto`.
    Written { since: Sequence },
}

/// Which versions of a row a compaction keeps.
///
/// A version goes if a newer one of its row is at or below the horizon: no read at the horizon or later can see it. A
/// tombstone at or below the horizon that has no such successor goes if, besides, no file that is left alone can hold an
/// older version of its row, which would come back. Memtables hold newer versions only than any file does.
///
/// Where the newest value of each column counts ([`MergeMode::LastNonNull`]), versions at or below the horizon are folded
/// into one, as long as no file that is left alone can hold one between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The oldest sequence that can be read afterwards.
    pub horizon: Sequence,
    /// What is hidden from all reads at the horizon and later.
    pub hidden: Hidden,
    /// The files that are left alone.
    pub left: Vec<Left>,
}

/// What a file that is left alone can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The least key.
    pub first_key: Key,
    /// The greatest key.
    pub last_key: Key,
    /// The oldest version.
    pub first_sequence: Sequence,
    /// The newest version.
    pub last_sequence: Sequence,
}

impl Left {
    /// What `file` can hold.
    pub fn of(file: &FileMeta) -> Left {
        Left {
            first_key: file.first_key.clone(),
            last_key: file.last_key.clone(),
            first_sequence: file.first_sequence,
            last_sequence: file.last_sequence,
        }
    }
}

impl Retention {
    /// Whether a file that is left alone can hold a version of `key` that is older than `sequence`.
    pub(crate) fn has_older(&self, key: &Key, sequence: Sequence) -> bool {
        self.has_between(key, Sequence(0), sequence)
    }

    /// Whether a file that is left alone can hold a version of `key` between these two.
    pub(crate) fn has_between(&self, key: &Key, older: Sequence, newer: Sequence) -> bool {
        self.left.iter().any(|left| {
            left.first_key <= *key && *key <= left.last_key && left.first_sequence < newer && left.last_sequence > older
        })
    }
}

/// A [`Scan`] as sources and merge need it. There are three sets of columns: those read of each source (of the table),
/// those gathered of the merged rows (of the read ones) and those returned (of the gathered ones).
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it is resolved against.
    pub(crate) rules: Arc<Rules>,
    pub(crate) versions: Versions,
    pub(crate) upto: Sequence,
    /// What sources leave out.
    pub(crate) hidden: Hidden,
    pub(crate) range: KeyRange,
    /// Of the first key of the range, only versions older than this one.
    behind: Option<Position>,
    /// Only these keys, ascending.
    pub(crate) only: Option<Arc<[Key]>>,
    /// Positions in the table, ascending: returned columns, key columns, columns with conditions.
    pub(crate) read: Vec<usize>,
    pub(crate) read_schema: SchemaRef,
    /// Positions in `read` of the key columns, in key order.
    pub(crate) key: Vec<usize>,
    /// Position in `read` of the TIME INDEX.
    time: Option<usize>,
    /// Positions in `read` of the columns that are needed behind the merge.
    pub(crate) gathered: Vec<usize>,
    pub(crate) gathered_schema: SchemaRef,
    /// Positions in `gathered` of the columns to return.
    pub(crate) returned: Vec<usize>,
    /// Conditions on key columns; positions are those in `read`.
    pub(crate) key_filters: Vec<Filter>,
    /// Conditions on fields; positions are those in `gathered`.
    pub(crate) field_filters: Vec<Filter>,
    pub(crate) batch_rows: usize,
}

impl Plan {
    /// Resolves `scan` against `rules`. An unknown column is an error.
    pub(crate) fn new(scan: &Scan, rules: &Arc<Rules>, batch_rows: usize) -> Result<Plan> {
        let schema = &rules.schema;
        let position = |name: &str| {
            let found = schema.column(name).map(|(at, _)| at);
            found.ok_or_else(|| Error::invalid(Invalid::UnknownColumn, format!("there is no column {name:?}")))
        };
        let returned = scan.columns.iter().map(|name| position(name)).collect::<Result<Vec<_>>>()?;
        let mut conditions = Vec::with_capacity(scan.predicates.len());
        for predicate in &scan.predicates {
            conditions.push((position(&predicate.column)?, &predicate.condition));
        }
        let on_fields = || conditions.iter().filter(|(at, _)| !schema.is_key(*at));
        let gathered = sorted(returned.iter().copied().chain(on_fields().map(|(at, _)| *at)));
        let read = sorted(gathered.iter().copied().chain(schema.key()));
        let filter = |columns: &[usize], at: usize, condition: &Condition| Filter {
            at: place(columns, at),
            column: at,
            column_type: schema.columns()[at].column_type,
            condition: condition.clone(),
        };
        let on_keys = conditions.iter().filter(|(at, _)| schema.is_key(*at));
        let key_filters = on_keys.map(|(at, condition)| filter(&read, *at, condition)).collect();
        let field_filters = on_fields().map(|(at, condition)| filter(&gathered, *at, condition)).collect();
        Ok(Plan {
            rules: rules.clone(),
            versions: Versions::Visible { include_deleted: scan.include_deleted },
            upto: scan.upto,
            hidden: rules.ranges.upto(scan.upto),
            range: KeyRange::of(&conditions, schema).after(scan.after.as_ref()).over(scan.only.as_deref()),
            only: scan.only.clone(),
            behind: scan.after.clone().filter(|position| position.sequence > Sequence(0)),
            time: schema.time_index().map(|at| place(&read, at)),
            key: schema.key().into_iter().map(|at| place(&read, at)).collect(),
            read_schema: project(schema, &read),
            gathered_schema: project(schema, &gathered),
            returned: returned.iter().map(|at| place(&gathered, *at)).collect(),
            gathered: gathered.iter().map(|at| place(&read, *at)).collect(),
            read,
            key_filters,
            field_filters,
            batch_rows: batch_rows.max(1),
        })
    }

    /// Whole rows, of each the `versions`. `within`: only those from the one time to the other.
    pub(crate) fn whole_rows(
        versions: Versions,
        rules: &Arc<Rules>,
        within: Option<(i64, i64)>,
        batch_rows: usize,
    ) -> Plan {
        let name = |at: usize| rules.schema.columns()[at].name.clone();
        let columns = (0..rules.schema.columns().len()).map(name).collect();
        let bounds = |(from, to)| [Condition::GtEq(Value::Timestamp(from)), Condition::LtEq(Value::Timestamp(to))];
        let on_time = |condition| Some(Predicate { column: name(rules.schema.time_index()?), condition });
        let predicates = within.into_iter().flat_map(bounds).filter_map(on_time).collect();
        let scan = Scan { columns, predicates, upto: Sequence(u64::MAX), ..Scan::default() };
        let plan = Plan::new(&scan, rules, batch_rows).expect("a table has its own columns");
        let hidden = match &versions {
            Versions::Retained(retention) => retention.hidden,
            Versions::All | Versions::Visible { .. } | Versions::Written { .. } => Hidden::default(),
        };
        Plan { versions, hidden, ..plan }
    }

    /// The versions of a source, `rows` (of the read columns), that may go into the merge: those that satisfy the
    /// conditions on key columns, are behind the position, and are not hidden. `may_hide`: some of the source can be.
    pub(crate) fn admitted(&self, rows: Rows, may_hide: bool) -> Result<Rows, ArrowError> {
        let mut all = mask(&self.key_filters, &rows.batch)?;
        let mut and = |one: BooleanBuffer| all = Some(all.take().map_or(one.clone(), |all| &all & &one));
        if may_hide {
            let times = self.time.map(|at| timestamps(rows.batch.column(at)));
            let hidden =
                |(row, sequence): (usize, &Sequence)| self.hidden.hides(*sequence, times.map(|times| times[row]));
            and(rows.sequences.iter().enumerate().map(|row| !hidden(row)).collect());
        }
        if let Some(behind) = &self.behind
            && rows.keys.first() == Some(&behind.key)
        {
            let is_behind = |(key, sequence): (&Key, &Sequence)| *key != behind.key || *sequence < behind.sequence;
            and(rows.keys.iter().zip(&rows.sequences).map(is_behind).collect());
        }
        if let Some(only) = &self.only {
            and(rows.keys.iter().map(|key| only.binary_search(key).is_ok()).collect());
        }
        match all {
            Some(mask) => rows.filter(&mask),
            None => Ok(rows),
        }
    }

    /// Whether versions are folded column by column.
    pub(crate) fn folds(&self) -> bool {
        let folded = matches!(self.versions, Versions::Visible { .. } | Versions::Retained(_));
        folded && self.rules.mode() == MergeMode::LastNonNull
    }

    /// Which merged rows (of the gathered columns) satisfy the conditions on fields; none: all do.
    pub(crate) fn field_mask(&self, batch: &RecordBatch, ops: &[Op]) -> Result<Option<BooleanBuffer>, ArrowError> {
        let Some(mask) = mask(&self.field_filters, batch)? else { return Ok(None) };
        if !ops.contains(&Op::Delete) {
            return Ok(Some(mask));
        }
        let tombstones: BooleanBuffer = ops.iter().map(|op| *op == Op::Delete).collect();
        Ok(Some(&mask | &tombstones))
    }
}

/// A condition on one column.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Position in the batches that it is used on.
    at: usize,
    /// Position in the table.
    pub(crate) column: usize,
    column_type: ColumnType,
    pub(crate) condition: Condition,
}

impl Filter {
    fn mask(&self, batch: &RecordBatch) -> Result<BooleanBuffer, ArrowError> {
        let column = batch.column(self.at);
        let against = |value: &Value| constant(value, self.column_type).map(Scalar::new);
        let compared = match &self.condition {
            Condition::IsNull => {
                return Ok(column.nulls().map_or(BooleanBuffer::new_unset(column.len()), |valid| !valid.inner()));
            }
            Condition::IsNotNull => {
                return Ok(column.nulls().map_or(BooleanBuffer::new_set(column.len()), |valid| valid.inner().clone()));
            }
            Condition::Eq(value) => against(value).map(|value| cmp::eq(column, &value)),
            Condition::NotEq(value) => against(value).map(|value| cmp::neq(column, &value)),
            Condition::Lt(value) => against(value).map(|value| cmp::lt(column, &value)),
            Condition::LtEq(value) => against(value).map(|value| cmp::lt_eq(column, &value)),
            Condition::Gt(value) => against(value).map(|value| cmp::gt(column, &value)),
            Condition::GtEq(value) => against(value).map(|value| cmp::gt_eq(column, &value)),
            Condition::In(values) => {
                let mut any = BooleanBuffer::new_unset(column.len());
                // A value that the column cannot hold equals none of its cells.
                for value in values.iter().filter_map(against) {
                    any = &any | &holding(cmp::eq(column, &value)?);
                }
                return Ok(any);
            }
        };
        match compared {
            Some(compared) => Ok(holding(compared?)),
            // A constant that the column cannot hold: by the order of values, which is defined for all of them.
            None => Ok((0..column.len()).map(|row| self.condition.holds(&Value::of_cell(column, row))).collect()),
        }
    }
}

fn mask(filters: &[Filter], batch: &RecordBatch) -> Result<Option<BooleanBuffer>, ArrowError> {
    let mut all: Option<BooleanBuffer> = None;
    for filter in filters {
        let one = filter.mask(batch)?;
        all = Some(all.map_or(one.clone(), |all| &all & &one));
    }
    Ok(all)
}

/// A comparison with NULL does not hold.
fn holding(compared: BooleanArray) -> BooleanBuffer {
    let (values, valid) = compared.into_parts();
    valid.map_or(values.clone(), |valid| &values & valid.inner())
}

/// `value` as a column of one cell; none if no cell of `column_type` equals it.
fn constant(value: &Value, column_type: ColumnType) -> Option<ArrayRef> {
    value.fits(column_type).then(|| Value::to_array(std::slice::from_ref(value), column_type))
}

/// Keys that a scan can meet: from `from` (inclusive) to `below` (exclusive; none = no end).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) from: Key,
    pub(crate) below: Option<Key>,
}

impl KeyRange {
    /// The narrowest range that the conditions imply: equality on leading key columns, then an order on the next one.
    fn of(conditions: &[(usize, &Condition)], schema: &Schema) -> KeyRange {
        let mut prefix = Vec::new();
        let mut range = KeyRange::default();
        for column in schema.key() {
            let column_type = schema.columns()[column].column_type;
            let mine = || conditions.iter().filter(|(at, _)| *at == column).map(|(_, condition)| *condition);
            let key = |value: &Value| {
                let encoded = encode_key(std::slice::from_ref(value), &[column_type]);
                Key([&prefix[..], &encoded.0[..]].concat().into())
            };
            for condition in mine() {
                let narrower = match condition {
                    Condition::Eq(v) if v.fits(column_type) => KeyRange { from: key(v), below: successor(&key(v)) },
                    Condition::IsNull => KeyRange { from: key(&Value::Null), below: successor(&key(&Value::Null)) },
                    Condition::Lt(v) if v.fits(column_type) => KeyRange { from: Key::default(), below: Some(key(v)) },
                    Condition::LtEq(v) if v.fits(column_type) => {
                        KeyRange { from: Key::default(), below: successor(&key(v)) }
                    }
                    Condition::Gt(v) if v.fits(column_type) => match successor(&key(v)) {
                        Some(from) => KeyRange { from, below: None },
                        None => continue,
                    },
                    Condition::GtEq(v) if v.fits(column_type) => KeyRange { from: key(v), below: None },
                    Condition::In(values) if !values.is_empty() && values.iter().all(|v| v.fits(column_type)) => {
                        let keys = || values.iter().map(key);
                        let last = keys().max().expect("the list is not empty");
                        KeyRange { from: keys().min().expect("the list is not empty"), below: successor(&last) }
                    }
                    _ => continue,
                };
                range = range.and(narrower);
            }
            let equal = mine().find_map(|condition| match condition {
                Condition::Eq(value) if value.fits(column_type) => Some(value),
                Condition::IsNull => Some(&Value::Null),
                _ => None,
            });
            match equal {
                Some(value) => prefix = key(value).0.to_vec(),
                None => break,
            }
        }
        range
    }

    /// Only keys of what is behind `position`.
    fn after(self, position: Option<&Position>) -> KeyRange {
        match position {
            // The least key that is greater.
            Some(Position { key, sequence: Sequence(0) }) => {
                self.and(KeyRange { from: Key([&key.0[..], &[0]].concat().into()), below: None })
            }
            Some(Position { key, .. }) => self.and(KeyRange { from: key.clone(), below: None }),
            None => self,
        }
    }

    /// Only from the first to the last of `keys`, which are ascending.
    fn over(self, keys: Option<&[Key]>) -> KeyRange {
        match keys {
            None => self,
            Some([]) => self.and(KeyRange { from: Key::default(), below: Some(Key::default()) }),
            Some([first, .., last] | [first @ last]) => {
                let behind = Key([&last.0[..], &[0]].concat().into());
                self.and(KeyRange { from: first.clone(), below: Some(behind) })
            }
        }
    }

    fn and(self, other: KeyRange) -> KeyRange {
        let below = match (self.below, other.below) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        KeyRange { from: self.from.max(other.from), below }
    }

    /// Whether a key from `first` to `last` (inclusive) can be in it.
    pub(crate) fn meets(&self, first: &Key, last: &Key) -> bool {
        *last >= self.from && self.below.as_ref().is_none_or(|below| first < below)
    }

    /// Where the keys of the range begin and end among `keys`, which are ascending.
    pub(crate) fn within(&self, keys: &[Key]) -> (usize, usize) {
        let from = keys.partition_point(|key| *key < self.from);
        let to = self.below.as_ref().map_or(keys.len(), |below| keys.partition_point(|key| key < below));
        (from, to.max(from))
    }
}

/// The least key that is greater than every key that begins with `prefix`.
fn successor(prefix: &Key) -> Option<Key> {
    let last = prefix.0.iter().rposition(|byte| *byte < 0xFF)?;
    let mut bytes = prefix.0[..=last].to_vec();
    bytes[last] += 1;
    Some(Key(bytes.into()))
}

fn sorted(columns: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut columns: Vec<usize> = columns.collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Where `column` stands in `columns`, which are ascending and have it.
fn place(columns: &[usize], column: usize) -> usize {
    columns.binary_search(&column).expect("every column in use is read")
}

fn project(schema: &Schema, columns: &[usize]) -> SchemaRef {
    let all = schema.to_arrow();
    Arc::new(ArrowSchema::new(columns.iter().map(|at| all.fields()[*at].clone()).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Column, ColumnId, TimeUnit};

    const TIME: ColumnType = ColumnType::Timestamp(TimeUnit::Second);

    fn schema() -> Schema {
        let column = |id, name: &str, column_type| Column {
            id: ColumnId(id),
            name: name.to_string(),
            column_type,
            nullable: true,
            default: None,
        };
        let columns = vec![column(1, "ts", TIME), column(2, "host", ColumnType::String)];
        Schema::new(1, columns, &["host".to_string()], Some("ts")).unwrap()
    }

    fn text(text: &str) -> Value {
        Value::String(text.to_string())
    }

    #[test]
    fn conditions_on_leading_key_columns_narrow_the_range_of_keys() {
        use Condition::*;
        let time = |time| Value::Timestamp(time);
        let all: Vec<(&str, i64)> = ["", "a", "a\0", "b"].iter().flat_map(|h| (0..3).map(|t| (*h, t))).collect();
        let key = |(host, ts): &(&str, i64)| encode_key(&[text(host), time(*ts)], &[ColumnType::String, TIME]);
        let keys: Vec<Key> = all.iter().map(key).collect();
        let (ts, host) = (0, 1);
        for (conditions, after, from, to) in [
            (vec![], None, 0, 12),
            (vec![(host, Eq(text("a")))], None, 3, 6),
            (vec![(host, Eq(text("a"))), (ts, GtEq(time(1)))], None, 4, 6),
            (vec![(ts, Lt(time(1))), (host, Eq(text("a")))], None, 3, 4),
            (vec![(host, Eq(text("a"))), (ts, Eq(time(1)))], None, 4, 5),
            (vec![(host, Eq(text("a"))), (ts, In(vec![time(2), time(1)]))], None, 4, 6),
            // Without the column before it a condition says nothing of where keys stand.
            (vec![(ts, Eq(time(1)))], None, 0, 12),
            (vec![(host, Gt(text(""))), (ts, Eq(time(1)))], None, 3, 12),
            (vec![(host, In(vec![text("b"), text("a")]))], None, 3, 12),
            (vec![(host, Gt(text("a")))], None, 6, 12),
            (vec![(host, GtEq(text("a")))], None, 3, 12),
            (vec![(host, Lt(text("a\0")))], None, 0, 6),
            (vec![(host, LtEq(text("a\0")))], None, 0, 9),
            (vec![(host, GtEq(text("a"))), (host, LtEq(text("a")))], None, 3, 6),
            (vec![(host, Eq(text("a"))), (host, Eq(text("b")))], None, 9, 9),
            (vec![(host, NotEq(text("a")))], None, 0, 12),
            // No text: compared by the order of values, not by that of keys.
            (vec![(host, Lt(time(1)))], None, 0, 12),
            (vec![(host, LtEq(text("a")))], Some(4), 5, 6),
            (vec![(host, Eq(text("b")))], Some(4), 9, 12),
            (vec![], Some(11), 12, 12),
        ] {
            let borrowed: Vec<_> = conditions.iter().map(|(at, condition)| (*at, condition)).collect();
            let position = after.map(|at: usize| Position { key: keys[at].clone(), sequence: Sequence(0) });
            let range = KeyRange::of(&borrowed, &schema()).after(position.as_ref());
            assert_eq!(range.within(&keys), (from, to), "{conditions:?} after {after:?}");
            let met: Vec<usize> = (0..keys.len()).filter(|at| range.meets(&keys[*at], &keys[*at])).collect();
            assert_eq!(met, (from..to).collect::<Vec<_>>(), "{conditions:?} after {after:?}");
        }
    }

    #[test]
    fn a_constant_fits_a_column_that_can_hold_exactly_it() {
        assert!(Value::Int(127).fits(ColumnType::Int8) && !Value::Int(128).fits(ColumnType::Int8));
        assert!(Value::Float(0.5).fits(ColumnType::Float32) && !Value::Float(0.1).fits(ColumnType::Float32));
        assert!(!Value::Null.fits(ColumnType::String) && !text("1").fits(ColumnType::Int64));
    }

    #[test]
    fn a_prefix_has_a_successor_unless_nothing_is_greater() {
        let key = |bytes: &'static [u8]| Key(bytes.into());
        assert_eq!(successor(&key(&[1, 2])), Some(key(&[1, 3])));
        assert_eq!(successor(&key(&[1, 0xFF, 0xFF])), Some(key(&[2])));
        assert_eq!(successor(&key(&[0xFF])), None);
        assert_eq!(successor(&key(&[])), None);
    }
}
