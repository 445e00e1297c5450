//! What a region is asked for: what it says when that cannot be, and while columns change and files come and go.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};

use super::*;
use crate::region::request::{ScanAnswer, ScanRequest, WriteAnswer};
use crate::storage::changes::SIGN_COLUMN;
use crate::storage::rows::{op_field, sequence_field};
use crate::storage::sst;
use crate::types::{Alteration, Condition, Place, Predicate, RequestId, SessionId, TableOptions, TimeUnit};

type Row = Vec<Value>;

fn int(number: i64) -> Value {
    Value::Int(number)
}

fn column(id: u32, name: &str, column_type: ColumnType, nullable: bool) -> Column {
    Column { id: ColumnId(id), name: name.into(), column_type, nullable, default: None }
}

/// Of key `a` and field `b`.
fn pairs(nullable: bool) -> TableDef {
    let columns = vec![column(1, "a", ColumnType::Int64, false), column(2, "b", ColumnType::Int64, nullable)];
    TableDef { schema: Schema::new(1, columns, &["a".into()], None).unwrap(), ..table() }
}

fn add(name: &str, column_type: ColumnType, nullable: bool, absent: Value) -> Alteration {
    Alteration::Add { name: name.into(), column_type, nullable, default: None, absent, place: Place::Last }
}

fn set(option: &str, value: Option<&str>) -> Alteration {
    Alteration::SetOption { option: option.into(), value: value.map(str::to_string) }
}

async fn replica_of(disk: &MemoryDisk, id: u64, table: &TableDef, options: Options) -> Arc<Region> {
    let spec = ReplicaSpec {
        replica: ReplicaId(id),
        folder: format!("replicas/{id}"),
        incarnation: Incarnation(1),
        disk: Arc::new(disk.clone()),
        options: Arc::new(options.clone()),
        events: Events::of(NodeId(1)),
        compactions: Arc::new(Semaphore::new(1)),
        buffer: Buffer::new(&options, Events::of(NodeId(1))),
        fills: Arc::default(),
    };
    disk.create_dir(&spec.folder).await.unwrap();
    Region::create(spec, RegionId::new(TableId(1), 0), table).await.unwrap()
}

/// The replica 1 as its files say, closed and opened again.
async fn reopened(disk: &MemoryDisk, region: Arc<Region>) -> Arc<Region> {
    region.close().await;
    drop(region);
    replica(disk, 1).await
}

fn request_of(schema: &Schema, rows: &[Row], ops: &[u8]) -> WriteRequest {
    let cells = |at: usize| rows.iter().map(|row| row[at].clone()).collect::<Vec<_>>();
    let columns = schema.columns().iter().enumerate();
    let columns = columns.map(|(at, column)| Value::to_array(&cells(at), column.column_type)).collect();
    let rows = RecordBatch::try_new(schema.to_arrow(), columns).unwrap();
    WriteRequest {
        schema_version: schema.version,
        rows: encode_batch(&rows),
        ops: Bytes::copy_from_slice(ops),
        expected: Vec::new(),
        request: None,
        acknowledged: 0,
        file: None,
    }
}

async fn apply(region: &Region, index: u64, command: Bytes) -> Result<WriteAnswer> {
    let outcome = region.apply(LogId { term: 1, index }, Change::Command(command)).await.unwrap();
    decode_outcome(&outcome)
}

/// Rows of the columns as they are now; all are put, or else `ops` says what is done with each.
async fn write(region: &Region, index: u64, rows: &[Row], ops: &[u8]) {
    let write = request_of(region.version().schema(), rows, ops);
    let command = Command::Write { write, sessions: 9, files: 9 }.encode();
    apply(region, index, command).await.unwrap();
}

async fn put_pairs(region: &Region, index: u64, pairs: &[(i64, i64)]) {
    let rows: Vec<Row> = pairs.iter().map(|(a, b)| vec![int(*a), int(*b)]).collect();
    write(region, index, &rows, &[]).await;
}

/// All columns of all rows.
fn everything(region: &Region) -> ScanRequest {
    let schema = region.version().schema().clone();
    let columns = schema.columns().iter().map(|column| column.name.clone()).collect();
    ScanRequest { schema_version: schema.version, columns, ..ScanRequest::default() }
}

/// The rows of one page, and the answer that they were in.
async fn page(region: &Region, scan: &ScanRequest) -> Result<(Vec<Row>, ScanAnswer)> {
    let answer = region.scan(scan.clone()).await?;
    let schema = columns_of(region, scan);
    let mut rows = Vec::new();
    for batch in answer.batches.iter().map(|batch| decode_batch(batch, &schema).unwrap()) {
        let row = |at| batch.columns().iter().map(|cells| Value::of_cell(cells, at)).collect();
        rows.extend((0..batch.num_rows()).map(row).collect::<Vec<Row>>());
    }
    assert_eq!(answer.rows, rows.len() as u64);
    Ok((rows, answer))
}

fn columns_of(region: &Region, scan: &ScanRequest) -> SchemaRef {
    let table = region.version().schema().to_arrow();
    let mut fields: Vec<Field> = scan.columns.iter().map(|name| table.field_with_name(name).unwrap().clone()).collect();
    match scan.since {
        Some(_) => fields.push(Field::new(SIGN_COLUMN, DataType::Int8, false)),
        None => {
            fields.extend(scan.with_sequence.then(sequence_field));
            fields.extend(scan.include_deleted.then(op_field));
        }
    }
    Arc::new(ArrowSchema::new(fields))
}

#[tokio::test]
async fn conditions_on_altered_columns_hold_of_older_rows() {
    let first = table().schema;
    let second = first.altered(&[add("s", ColumnType::UInt8, true, Value::UInt(3))]).unwrap();
    let third = second.altered(&[
        add("b", ColumnType::Int64, true, Value::Null),
        add("c", ColumnType::Int64, false, int(7)),
        Alteration::SetType { column: "s".into(), to: ColumnType::Int32 },
        Alteration::Rename { column: "a".into(), to: "k".into() },
    ]);
    let third = third.unwrap();
    let disk = MemoryDisk::default();
    let mut region = replica(&disk, 1).await;
    write(&region, 1, &[vec![int(1)], vec![int(2)]], &[]).await;
    region.flush().await.unwrap();
    write(&region, 2, &[vec![int(3)]], &[]).await;
    alter(&region, 3, 1, &second).await;
    write(&region, 4, &[vec![int(4), Value::UInt(200)], vec![int(5), Value::Null]], &[]).await;
    region.flush().await.unwrap();
    write(&region, 5, &[vec![int(6), Value::UInt(3)]], &[]).await;
    alter(&region, 6, 2, &third).await;
    let row = |k, s: Option<i64>, b: Option<i64>, c| {
        let cell = |cell: Option<i64>| cell.map_or(Value::Null, int);
        vec![int(k), cell(s), cell(b), int(c)]
    };
    let newest = [row(2, Some(200), None, 9), row(7, Some(-300), None, 7), row(8, None, Some(5), 1)];
    write(&region, 7, &newest, &[]).await;
    let all = [
        row(1, Some(3), None, 7),
        row(2, Some(200), None, 9),
        row(3, Some(3), None, 7),
        row(4, Some(200), None, 7),
        row(5, None, None, 7),
        row(6, Some(3), None, 7),
        row(7, Some(-300), None, 7),
        row(8, None, Some(5), 1),
    ];
    // Of `s` one is a value that the type it had cannot hold.
    let constants = [("k", [1, 3, 8]), ("s", [3, 200, -300]), ("b", [5, 0, 7]), ("c", [7, 1, 9])];
    for stage in ["as written", "flushed", "compacted", "opened anew"] {
        match stage {
            "flushed" => region.flush().await.unwrap(),
            "compacted" => region.compact(false).await.unwrap(),
            "opened anew" => region = reopened(&disk, region).await,
            _ => {}
        }
        assert_eq!(rows(&region).await, all, "{stage}");
        let mut telling = 0;
        for (at, (column, constants)) in constants.iter().enumerate() {
            let compared =
                |constant: i64| {
                    use Condition::*;
                    [Eq(int(constant)), NotEq(int(constant)), Lt(int(constant)), LtEq(int(constant))]
                        .into_iter()
                        .chain([Gt(int(constant)), GtEq(int(constant)), In(vec![int(constant), int(4)])])
                };
            let conditions = constants.iter().flat_map(|constant| compared(*constant));
            for condition in conditions.chain([Condition::IsNull, Condition::IsNotNull]) {
                let held: Vec<Row> = all.iter().filter(|row| condition.holds(&row[at])).cloned().collect();
                telling += usize::from(!held.is_empty() && held.len() < all.len());
                let predicates = vec![Predicate { column: column.to_string(), condition: condition.clone() }];
                let scan = ScanRequest { predicates, ..everything(&region) };
                assert_eq!(page(&region, &scan).await.unwrap().0, held, "{stage}: {column} {condition:?}");
            }
        }
        assert!(telling > 60, "{telling} conditions told rows from each other");
    }
}

#[tokio::test]
async fn a_write_that_cannot_be_is_refused_and_changes_nothing() {
    let disk = MemoryDisk::default();
    let table = pairs(false);
    let region = replica_of(&disk, 1, &table, Options { session_requests: 1, ..Options::default() }).await;
    let schema = table.schema.clone();
    let row = |a, b: Option<i64>| vec![int(a), b.map_or(Value::Null, int)];
    put_pairs(&region, 1, &[(1, 1)]).await;
    let one = || request_of(&schema, &[row(1, Some(2))], &[]);
    let two = |ops: &[u8]| request_of(&schema, &[row(1, Some(2)), row(1, Some(3))], ops);
    let expecting = |write: WriteRequest, count: usize| WriteRequest { expected: vec![Sequence(1); count], ..write };
    // Whoever sends rows says what they are: a NULL in the key can only be sent as rows of another table.
    let no_key = {
        let field = |name| Field::new(name, DataType::Int64, true);
        let null: ArrayRef = Value::to_array(&[Value::Null], ColumnType::Int64);
        let schema = Arc::new(ArrowSchema::new(vec![field("a"), field("b")]));
        encode_batch(&RecordBatch::try_new(schema, vec![null.clone(), null]).unwrap())
    };
    let refused = [
        ("damaged rows", WriteRequest { rows: one().rows.slice(..10), ..one() }, "request"),
        ("rows of another table", request_of(&super::table().schema, &[vec![int(1)]], &[]), "request"),
        ("no rows", request_of(&schema, &[], &[]), "request"),
        ("an op for two rows", two(&[0]), "request"),
        ("two sequences for a row", expecting(one(), 2), "request"),
        ("an op that is none", two(&[0, 9]), "request"),
        ("a row twice on conditions", expecting(two(&[]), 2), "request"),
        ("NULL in a NOT NULL field", request_of(&schema, &[row(3, Some(1)), row(1, None)], &[1, 0]), "not_null"),
        (
            "NULL in the key of a tombstone",
            WriteRequest { rows: no_key, ops: Bytes::from_static(&[1]), ..one() },
            "request",
        ),
        ("columns that are not here yet", WriteRequest { schema_version: 2, ..one() }, "busy"),
    ];
    for (what, write, code) in refused {
        assert_eq!(region.validate(write).map(drop).unwrap_err().code(), code, "{what}");
    }
    assert_eq!((region.visible(), region.status().memtable_rows), (Sequence(1), 1));

    // A row twice is two versions of it, and of a row to delete only the key counts.
    let (command, count) = region.validate(two(&[])).unwrap();
    assert_eq!((count, apply(&region, 2, command).await.unwrap().sequence), (2, Sequence(3)));
    let (command, _) = region.validate(request_of(&schema, &[row(1, None)], &[1])).unwrap();
    assert_eq!(apply(&region, 3, command).await.unwrap().sequence, Sequence(4));
    assert_eq!(rows(&region).await, Vec::<Row>::new());

    // A session with as many answers as are remembered writes on when its client says that it has them.
    let of_session = |statement, acknowledged| {
        let request = Some(RequestId { session: SessionId(1), statement, part: 0 });
        WriteRequest { request, acknowledged, ..one() }
    };
    let (command, _) = region.validate(of_session(1, 1)).unwrap();
    assert_eq!(apply(&region, 4, command).await.unwrap().sequence, Sequence(5));
    assert_eq!(region.validate(of_session(2, 1)).map(drop).unwrap_err().code(), "busy");
    let (again, _) = region.validate(of_session(1, 1)).expect("it adds no answer");
    assert_eq!(apply(&region, 5, again).await.unwrap().sequence, Sequence(5));
    let (command, _) = region.validate(of_session(2, 2)).expect("the first answer is not needed any more");
    assert_eq!(apply(&region, 6, command).await.unwrap().sequence, Sequence(6));

    // Made for the columns of before: the log tells whether it was applied before they changed.
    alter(&region, 7, 1, &schema.altered(&[]).unwrap()).await;
    let (command, _) = region.validate(one()).unwrap();
    assert_eq!(apply(&region, 8, command).await.unwrap_err().code(), "schema_changed");
    assert_eq!((region.visible(), rows(&region).await), (Sequence(6), vec![row(1, Some(2))]));
}

#[tokio::test]
async fn a_region_of_a_table_that_appends_replaces_and_deletes_nothing() {
    let mut options = TableOptions::default();
    options.set("merge_mode", Some("append")).unwrap();
    let schema = pairs(false).schema.with_options(options).unwrap();
    let disk = MemoryDisk::default();
    let region = replica_of(&disk, 1, &TableDef { schema: schema.clone(), ..table() }, Options::default()).await;
    let rows = [vec![int(1), int(1)], vec![int(1), int(2)]];
    let conditional = WriteRequest { expected: vec![Sequence(0); 2], ..request_of(&schema, &rows, &[]) };
    for write in [conditional, request_of(&schema, &rows, &[0, 1])] {
        assert_eq!(region.validate(write).map(drop).unwrap_err().code(), "request");
    }
    let (command, _) = region.validate(request_of(&schema, &rows, &[0, 0])).unwrap();
    apply(&region, 1, command).await.unwrap();
    assert_eq!(super::rows(&region).await.len(), 2);
}

#[tokio::test]
async fn rows_with_not_null_fields_are_deleted_for_good() {
    for is_flushed in [false, true] {
        let disk = MemoryDisk::default();
        let region = replica_of(&disk, 1, &pairs(false), Options::default()).await;
        let second = pairs(false).schema.altered(&[add("c", ColumnType::Int64, false, int(5))]).unwrap();
        let gone = |a| vec![int(a), Value::Null, Value::Null];
        let entry = async |region: &Region, index: u64| match index {
            1 => put_pairs(region, 1, &[(1, 1), (2, 2), (3, 3), (4, 4)]).await,
            2 => alter(region, 2, 1, &second).await,
            _ => write(region, 3, &[gone(1), gone(2)], &[1, 1]).await,
        };
        entry(&region, 1).await;
        region.flush().await.unwrap();
        entry(&region, 2).await;
        entry(&region, 3).await;
        if is_flushed {
            region.flush().await.unwrap();
        }
        region.close().await;
        let flushed = region.version().flushed.log_id.unwrap().index;
        drop(region);
        let region = replica(&disk, 1).await;
        for index in flushed + 1..=3 {
            entry(&region, index).await;
        }
        let left = vec![vec![int(3), int(3), int(5)], vec![int(4), int(4), int(5)]];
        assert_eq!(rows(&region).await, left, "{is_flushed}");

        write(&region, 4, &[gone(3), gone(4)], &[1, 1]).await;
        region.flush().await.unwrap();
        assert_eq!(rows(&region).await, Vec::<Row>::new(), "{is_flushed}");
        // No scan is reading the rows any more: their tombstones go with them, and nothing is left.
        sleep(Duration::from_millis(region.spec.options.version_keep_ms)).await;
        region.compact(false).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        assert_eq!((region.version().ssts.len(), files(&disk, "replicas/1/sst")), (0, 0), "{is_flushed}");
        let sequence = region.visible();
        let region = reopened(&disk, region).await;
        assert_eq!((rows(&region).await, region.visible()), (Vec::<Row>::new(), sequence), "{is_flushed}");
        assert_eq!(files(&disk, "replicas/1/sst"), 0, "{is_flushed}");
    }
}

#[tokio::test]
async fn a_region_flushes_as_its_table_says_or_else_as_its_node_does() {
    let disk = MemoryDisk::default();
    let (region, other) = (replica(&disk, 1).await, replica(&disk, 2).await);
    let held = |region: &Region| (region.status().memtable_rows, region.status().ssts);
    region.flush().await.unwrap();
    assert_eq!((held(&region), files(&disk, "replicas/1/sst")), ((0, 0), 0), "there is nothing");
    for region in [&region, &other] {
        put(region, 1, &[1]).await;
    }
    let interval = Duration::from_millis(region.spec.options.flush_interval_ms);
    let second = Duration::from_secs(1);
    sleep(interval - 10 * second).await;
    assert_eq!(held(&region), (1, 0), "it is not yet time");
    sleep(20 * second).await;
    assert_eq!((held(&region), held(&other)), ((0, 1), (0, 1)));

    let often = table().schema.altered(&[set("flush_interval", Some("5s"))]).unwrap();
    alter(&region, 2, 1, &often).await;
    sleep(second).await;
    for region in [&region, &other] {
        put(region, 3, &[2]).await;
    }
    sleep(second).await;
    assert_eq!(held(&region), (1, 1), "it is not yet time");
    sleep(5 * second).await;
    assert_eq!((held(&region), held(&other)), ((0, 2), (1, 1)));

    let few = often.altered(&[set("flush_interval", None), set("memtable_rows", Some("2"))]).unwrap();
    alter(&region, 4, 2, &few).await;
    sleep(second).await;
    put(&region, 5, &[3]).await;
    sleep(60 * second).await;
    assert_eq!(held(&region), (1, 2), "one row is not enough");
    for region in [&region, &other] {
        put(region, 6, &[4]).await;
    }
    sleep(second).await;
    assert_eq!((held(&region), held(&other)), ((0, 3), (2, 1)));

    let one_run = few.altered(&[set("compaction_active_runs", Some("1"))]).unwrap();
    alter(&region, 7, 3, &one_run).await;
    for index in 8..10 {
        for region in [&region, &other] {
            put(region, index, &[1, 2, 3, 4, 5]).await;
            region.flush().await.unwrap();
            sleep(second).await;
        }
        assert_eq!((held(&region), held(&other)), ((0, 1), (0, index - 6)));
    }
}

/// What was begun on the columns of before ends as it was begun, whatever step it is at.
#[tokio::test]
async fn a_table_is_altered_in_the_middle_of_a_flush_or_a_merge() {
    let second = table().schema.altered(&[add("b", ColumnType::Int64, false, int(7))]).unwrap();
    let entry = async |region: &Region, index: u64| match index {
        1 | 2 => put(region, index, &[1, 2]).await,
        3 => put(region, 3, &[3]).await,
        4 => alter(region, 4, 1, &second).await,
        _ => write(region, 5, &[vec![int(2), int(8)], vec![int(4), int(9)]], &[]).await,
    };
    let all: Vec<Row> = [(1, 7), (2, 8), (3, 7), (4, 9)].map(|(a, b)| vec![int(a), int(b)]).into();
    for compacts in [false, true] {
        // The third file is the one that the work writes; those that are there can be read.
        for below in ["replicas/1/sst/0000000003", "replicas/1/manifest"] {
            let what = format!("compacts: {compacts}, hangs: {below}");
            let disk = MemoryDisk::default();
            let region = replica(&disk, 1).await;
            for index in 1..=2 {
                entry(&region, index).await;
                region.flush().await.unwrap();
            }
            entry(&region, 3).await;
            disk.begin(below, Fault::Hang);
            let worker = region.clone();
            let work =
                tokio::spawn(async move { if compacts { worker.compact(false).await } else { worker.flush().await } });
            sleep(Duration::from_millis(10)).await;
            assert!(!work.is_finished(), "{what}");
            for index in 4..=5 {
                entry(&region, index).await;
            }
            assert_eq!(rows(&region).await, all, "{what}");
            sleep(Duration::from_secs(1)).await;
            assert!(!work.is_finished(), "{what}");
            disk.end_fault();
            work.await.unwrap().unwrap();
            assert_eq!(rows(&region).await, all, "{what}");

            region.close().await;
            let flushed = region.version().flushed.log_id.unwrap().index;
            drop(region);
            let region = replica(&disk, 1).await;
            for index in flushed + 1..=5 {
                entry(&region, index).await;
            }
            assert_eq!((rows(&region).await, region.version().schema().version), (all.clone(), 2), "{what}");
            region.flush().await.unwrap();
            region.compact(false).await.unwrap();
            assert_eq!(rows(&region).await, all, "{what}");
            sleep(Duration::from_secs(2)).await;
            assert_eq!(files(&disk, "replicas/1/sst"), region.version().ssts.len(), "{what}: there are orphans");
            let region = reopened(&disk, region).await;
            assert_eq!((rows(&region).await, region.visible()), (all.clone(), Sequence(7)), "{what}");
        }
    }
}

#[tokio::test]
async fn a_merge_that_is_under_way_ends_with_its_region() {
    for below in ["replicas/1/sst/0000000003", "replicas/1/manifest"] {
        let is_committing = below.ends_with("manifest");
        let disk = MemoryDisk::default();
        let region = replica(&disk, 1).await;
        for index in 1..=2 {
            put(&region, index, &[1, 2]).await;
            region.flush().await.unwrap();
        }
        disk.begin(below, Fault::Hang);
        // One is under way, and one waits behind it.
        let mut asked = Vec::new();
        for _ in 0..2 {
            let asking = region.clone();
            asked.push(tokio::spawn(async move { asking.compact(false).await }));
            sleep(Duration::from_millis(10)).await;
        }
        let closing = region.clone();
        let close = tokio::spawn(async move { closing.close().await });
        sleep(Duration::from_secs(10)).await;
        // An edit that is being written is not left alone half-way, a file is.
        assert_eq!(close.is_finished(), !is_committing, "{below}");
        if is_committing {
            disk.end_fault();
        }
        close.await.unwrap();
        for asked in asked {
            assert_eq!(asked.await.unwrap(), Err(Error::Stopped), "{below}");
        }
        disk.end_fault();
        drop(region);
        let left = files(&disk, "replicas/1/sst");
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(files(&disk, "replicas/1/sst"), left, "{below}: nobody is there any more");

        let region = replica(&disk, 1).await;
        let expected = if is_committing { 1 } else { 2 };
        let left = (region.version().ssts.len(), files(&disk, "replicas/1/sst"), scan(&region, 4).await.unwrap());
        assert_eq!(left, (expected, expected, 2), "{below}");
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(region.version().ssts.len(), expected, "{below}: what was asked for is forgotten");
        region.compact(false).await.unwrap();
        assert_eq!((region.version().ssts.len(), scan(&region, 4).await.unwrap()), (1, 2), "{below}");
    }
}

#[tokio::test]
async fn changes_are_refused_when_what_was_is_gone() {
    let disk = MemoryDisk::default();
    let region = replica_of(&disk, 1, &pairs(true), Options::default()).await;
    for index in 1..=3 {
        put_pairs(&region, index, &[(1, index as i64), (2, index as i64)]).await;
        region.flush().await.unwrap();
    }
    region.compact(false).await.unwrap();
    sleep(Duration::from_millis(region.spec.options.version_keep_ms)).await;
    put_pairs(&region, 4, &[(1, 4), (2, 4)]).await;
    region.flush().await.unwrap();
    region.compact(false).await.unwrap();
    let asked = |since: u64, upto: Option<u64>| ScanRequest {
        since: Some(Sequence(since)),
        upto: upto.map(Sequence),
        ..everything(&region)
    };
    let changes = async |since: u64, upto: Option<u64>| page(&region, &asked(since, upto)).await.map(|(rows, _)| rows);
    let change = |a, b, sign| vec![int(a), int(b), int(sign)];
    let err = changes(5, None).await.unwrap_err();
    assert_eq!((err.code(), err.to_string().contains('6')), ("too_old", true), "{err}");
    assert_eq!(changes(7, Some(6)).await.unwrap_err().code(), "request");
    assert_eq!(changes(8, Some(8)).await, Ok(Vec::new()));
    let both = vec![change(1, 3, -1), change(1, 4, 1), change(2, 3, -1), change(2, 4, 1)];
    assert_eq!(changes(6, None).await.unwrap(), both);
    assert_eq!(changes(6, Some(7)).await.unwrap(), both[..2]);
    assert_eq!(changes(7, None).await.unwrap(), both[2..]);
    // A page ends behind what became of a row, not in the middle of it.
    let first = ScanRequest { page_rows: 1, ..asked(6, None) };
    let (rows, answer) = page(&region, &first).await.unwrap();
    assert_eq!((&rows[..], answer.sequence), (&both[..2], Sequence(8)));
    let rest = ScanRequest { after: answer.next, upto: Some(answer.sequence), ..asked(6, None) };
    assert_eq!(page(&region, &rest).await.unwrap().0, both[2..]);

    // A row that went, one that came, and one that came and went.
    write(&region, 5, &[vec![int(1), Value::Null], vec![int(3), int(1)], vec![int(4), int(1)]], &[1, 0, 0]).await;
    write(&region, 6, &[vec![int(4), Value::Null]], &[1]).await;
    assert_eq!(changes(8, None).await.unwrap(), [change(1, 4, -1), change(3, 1, 1)]);
    let deleted = ScanRequest { with_sequence: true, include_deleted: true, ..everything(&region) };
    let versions = [(1, None, 9, 1), (2, Some(4), 8, 0), (3, Some(1), 10, 0), (4, None, 12, 1)];
    let version = |(a, b, sequence, op): (i64, Option<i64>, u64, u64)| {
        vec![int(a), b.map_or(Value::Null, int), Value::UInt(sequence), Value::UInt(op)]
    };
    assert_eq!(page(&region, &deleted).await.unwrap().0, versions.map(version));

    // Of a file that has nothing newer and none of the rows that changed nothing is read.
    region.flush().await.unwrap();
    put_pairs(&region, 7, &[(100, 1), (101, 1)]).await;
    region.flush().await.unwrap();
    put_pairs(&region, 8, &[(2, 5)]).await;
    let last = *region.version().ssts.keys().next_back().unwrap();
    disk.damage(&sst::path("replicas/1", last), |bytes| bytes[10] ^= 1);
    assert_eq!(changes(14, None).await.unwrap(), [change(2, 4, -1), change(2, 5, 1)]);
    assert_eq!(page(&region, &everything(&region)).await.unwrap_err().code(), "damaged", "whoever reads it says so");
}

#[tokio::test]
async fn pages_of_one_read_are_of_one_sequence() {
    let keys = |b: i64| (1..=10).map(|a| (a, b)).collect::<Vec<(i64, i64)>>();
    // After the first page, and after the others, each of these happens, in another order.
    for order in [["write", "merge", "reopen"], ["merge", "reopen", "write"], ["reopen", "write", "merge"]] {
        let disk = MemoryDisk::default();
        let mut region = replica_of(&disk, 1, &pairs(true), Options::default()).await;
        put_pairs(&region, 1, &keys(0)).await;
        region.flush().await.unwrap();
        let mut index = 1;
        let mut scan = ScanRequest { page_rows: 3, ..everything(&region) };
        let (mut read, answer) = page(&region, &scan).await.unwrap();
        (scan.upto, scan.after) = (Some(answer.sequence), answer.next);
        assert_eq!((read.len(), scan.upto), (3, Some(Sequence(10))));
        let second = scan.clone();
        for what in order {
            let writes = match what {
                "write" => 1,
                "merge" => 2,
                _ => 0,
            };
            for _ in 0..writes {
                index += 1;
                put_pairs(&region, index, &keys(index as i64)).await;
                region.flush().await.unwrap();
            }
            match what {
                "merge" => {
                    region.compact(false).await.unwrap();
                    assert_eq!(region.version().ssts.len(), 1, "{order:?}");
                }
                "reopen" => region = reopened(&disk, region).await,
                _ => {}
            }
            let (rows, answer) = page(&region, &scan).await.unwrap();
            read.extend(rows);
            scan.after = answer.next;
        }
        assert_eq!(scan.after, None, "{order:?}");
        let expected: Vec<Row> = keys(0).into_iter().map(|(a, b)| vec![int(a), int(b)]).collect();
        assert_eq!(read, expected, "{order:?}");
        // What is gone is not taken for what was never there.
        truncate(&region, index + 1, 1).await;
        assert_eq!(page(&region, &second).await.unwrap_err().code(), "too_old", "{order:?}");
    }
}

#[tokio::test]
async fn a_strict_merge_leaves_files_of_one_window_each() {
    let columns = vec![
        column(1, "a", ColumnType::Int64, false),
        column(2, "ts", ColumnType::Timestamp(TimeUnit::Second), false),
        column(3, "b", ColumnType::Int64, true),
    ];
    let mut options = TableOptions::default();
    options.set("compaction_window", Some("100s")).unwrap();
    let schema = Schema::new(1, columns, &["a".into()], Some("ts")).unwrap().with_options(options).unwrap();
    let disk = MemoryDisk::default();
    let region = replica_of(&disk, 1, &TableDef { schema, ..table() }, Options::default()).await;
    let row = |a, ts, b| vec![int(a), Value::Timestamp(ts), int(b)];
    let times = [-100, -1, 0, 99, 100, 150, 199];
    for index in 1..=2 {
        let rows: Vec<Row> = (1..=3).flat_map(|a| times.map(|ts| row(a, ts, index as i64))).collect();
        write(&region, index, &rows, &[]).await;
        region.flush().await.unwrap();
    }
    let before = rows(&region).await;
    assert_eq!(before.len(), 21);
    let window = |time: i64| time.div_euclid(100);
    let windows = || {
        let version = region.version();
        let spans = version.ssts.values().map(|sst| sst.meta().times().expect("there is a TIME INDEX"));
        spans.map(|(first, last)| (window(first), window(last))).collect::<Vec<_>>()
    };
    // However they are merged otherwise, files may span windows.
    region.compact(false).await.unwrap();
    assert_eq!(windows(), [(-1, 1)]);
    region.compact(true).await.unwrap();
    let mut strict = windows();
    strict.sort_unstable();
    assert_eq!(strict, [(-1, -1), (0, 0), (1, 1)]);
    assert_eq!(rows(&region).await, before);
    assert_eq!(scan_all(&region, 21).await, 21, "versions that a scan may be reading are kept");
    sleep(Duration::from_secs(2)).await;
    let files = disk.files();
    region.compact(true).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(disk.files(), files, "there is nothing left to do");
}

/// How many rows there are as of a sequence.
async fn scan_all(region: &Region, upto: u64) -> u64 {
    let scan = ScanRequest { upto: Some(Sequence(upto)), ..everything(region) };
    page(region, &scan).await.unwrap().1.rows
}
