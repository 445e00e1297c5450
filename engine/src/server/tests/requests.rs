//! What a store is asked for, against who may be asked for it; and that one region keeps no other one waiting.

use super::*;
use crate::region::command::Command;
use crate::types::{Alteration, ProcedureId};

const SOON: Duration = Duration::from_secs(1);

fn rows_of(stale_ms: Option<u64>) -> ScanRequest {
    ScanRequest { schema_version: 1, columns: vec!["n".into()], stale_ms, ..ScanRequest::default() }
}

/// The code of the error that each kind of request to a region ends with, soon; none: it did what was asked for.
async fn codes(store: &Store, number: u32) -> [Option<&'static str>; 8] {
    let id = region(number);
    let code = |result: Result<()>| result.err().map(|err| err.code());
    let soon = "nobody waits for a leader, nor for memory";
    let altered = Command::Alter { by: ProcedureId(2), schema: Box::new(table().schema.altered(&[]).unwrap()) };
    [
        code(timeout(SOON, put(store, number, 5, None)).await.expect(soon).map(drop)),
        code(timeout(SOON, store.scan(id, rows_of(None), &OsClock, SOON)).await.expect(soon).map(drop)),
        code(timeout(SOON, store.scan(id, rows_of(Some(1_000)), &OsClock, SOON)).await.expect(soon).map(drop)),
        code(timeout(SOON, store.read_index(id)).await.expect(soon).map(drop)),
        code(timeout(SOON, store.change(id, Command::Truncate { by: ProcedureId(1) })).await.expect(soon)),
        code(timeout(SOON, store.change(id, altered)).await.expect(soon)),
        code(timeout(SOON, store.flush(id)).await.expect(soon)),
        code(timeout(SOON, store.compact(id, false)).await.expect(soon)),
    ]
}

#[tokio::test]
async fn who_does_not_lead_and_who_is_not_there_answer_as_the_table_says() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    // Whatever is in memory is too much.
    let options = Options { write_buffer_bytes: 1, write_buffer_stall_bytes: 1, ..Options::default() };
    let store = filled_with(&world, &disk, options).await;
    // It is in no group yet.
    store.create_replica(region(2), replica(2), &table()).await.unwrap();

    // The node's memory for writes is full.
    disk.begin("replicas/10/sst", Fault::Hang);
    put(&store, 0, 2, None).await.unwrap();
    timeout(SOON, put(&store, 1, 2, None)).await.expect_err("a write to who leads waits");
    let [led, gone] = [Some("not_leader"), Some("region_not_found")];
    assert_eq!(codes(&store, 2).await, [led, led, Some("busy"), led, led, led, None, None]);
    assert_eq!(codes(&store, 9).await, [gone; 8]);
    disk.end_fault();

    assert_eq!(codes(&store, 0).await, [None; 8]);
    assert_eq!(codes(&store, 2).await, [led, led, Some("busy"), led, led, led, None, None]);
    assert_eq!(store.status(Some(region(9))).unwrap_err().code(), "region_not_found");
    store.drop_replica(region(9), replica(9)).await.expect("it is not there, as it is to be");
    store.close().await;
}

#[tokio::test]
async fn a_replica_is_made_once_and_for_one_table() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let create = |number: u32, of: u32, table: TableDef| {
        let store = store.clone();
        async move { store.create_replica(region(number), replica(of), &table).await }
    };
    create(0, 0, table()).await.unwrap();
    assert_eq!(world.opened(replica(0)), 1, "it was there");
    let (one, other) = futures::future::join(create(2, 2, table()), create(2, 2, table())).await;
    one.and(other).unwrap();
    assert_eq!(world.opened(replica(2)), 1, "whoever comes second finds it");
    // Whoever asks may know of alterations that the replica has yet to hear of.
    let altered = table().schema.altered(&[Alteration::Rename { column: "n".into(), to: "m".into() }]).unwrap();
    create(0, 0, TableDef { schema: altered, ..table() }).await.unwrap();

    let with = |columns: Vec<Column>, key: &str| TableDef {
        schema: Schema::new(1, columns, &[key.into()], None).unwrap(),
        ..table()
    };
    let columns = table().schema.columns().to_vec();
    let mut texts = columns.clone();
    texts[1].column_type = ColumnType::String;
    let others = [
        ("another region", 1, table()),
        ("another type", 0, with(texts, "a")),
        ("another key", 0, with(columns, "n")),
        ("another table", 0, TableDef { id: TableId(2), ..table() }),
    ];
    for (what, number, table) in others {
        assert_eq!(create(number, 0, table).await.unwrap_err().code(), "mismatch", "{what}");
    }
    assert_eq!(put(&store, 0, 2, Some(1)).await.unwrap(), Sequence(2), "it goes on as it is");

    // After the end nothing is answered, and nothing made.
    store.close().await;
    let files = disk.files();
    assert_eq!(put(&store, 0, 3, None).await.unwrap_err().code(), "region_not_found");
    let scan = store.scan(region(0), rows_of(None), &OsClock, SOON).await;
    assert_eq!(scan.map(drop).unwrap_err().code(), "region_not_found");
    assert_eq!(store.status(Some(region(0))).unwrap_err().code(), "region_not_found");
    for number in [0, 3] {
        assert_eq!(create(number, number, table()).await.unwrap_err().code(), "stopped");
    }
    sleep(SOON).await;
    assert_eq!(disk.files(), files);

    let store = open(&world, &disk).await;
    for number in [0, 2] {
        store.create_replica(region(number), replica(number), &table()).await.unwrap();
        assert_eq!(world.opened(replica(number)), 2, "once in each store");
    }
    store.close().await;
}

#[tokio::test]
async fn regions_write_and_merge_beside_one_that_hangs() {
    for jobs in [1, 2] {
        let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
        let store = filled_with(&world, &disk, Options { compaction_jobs: jobs, ..Options::default() }).await;
        for number in [0, 1] {
            put(&store, number, 2, None).await.unwrap();
            store.flush(region(number)).await.unwrap();
            assert_eq!(store.status(Some(region(number))).unwrap()[0].ssts, 2);
        }
        let compact = |number| {
            let store = store.clone();
            tokio::spawn(async move { store.compact(region(number), false).await })
        };
        disk.begin("replicas/10/sst", Fault::Hang);
        let hanging = compact(0);
        sleep(Duration::from_millis(10)).await;
        // Without its files a region still takes writes.
        timeout(SOON, put(&store, 0, 3, None)).await.expect("a write reads no file").unwrap();
        timeout(SOON, put(&store, 1, 3, None)).await.expect("it has nothing to do with the other").unwrap();
        let scan = store.scan(region(1), rows_of(None), &OsClock, SOON);
        assert_eq!(timeout(SOON, scan).await.expect("nor has this").unwrap().rows, 1);
        timeout(SOON, store.flush(region(1))).await.expect("nor this").unwrap();
        let other = compact(1);
        sleep(SOON).await;
        assert_eq!((hanging.is_finished(), other.is_finished()), (false, jobs > 1), "{jobs} at the same time");
        disk.end_fault();
        for compacted in [hanging, other] {
            compacted.await.unwrap().unwrap();
        }
        let files = |number| store.status(Some(region(number))).unwrap()[0].ssts;
        assert_eq!((files(0), files(1)), (1, 1));
        store.close().await;
    }
}

#[tokio::test]
async fn a_region_is_dropped_in_the_middle_of_a_flush() {
    for below in ["replicas/10/sst", "replicas/10/manifest"] {
        let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
        let store = filled(&world, &disk).await;
        let files = || disk.files().iter().filter(|(path, _)| path.starts_with(&folder(replica(0)))).count();
        put(&store, 0, 2, None).await.unwrap();
        disk.begin(below, Fault::Hang);
        let flushing = store.clone();
        let flush = tokio::spawn(async move { flushing.flush(region(0)).await });
        sleep(Duration::from_millis(10)).await;
        let dropping = store.clone();
        let dropped = tokio::spawn(async move { dropping.drop_replica(region(0), replica(0)).await });
        sleep(Duration::from_millis(10)).await;
        assert_eq!(codes(&store, 0).await, [Some("region_not_found"); 8], "{below}");
        sleep(SOON).await;
        assert!(!flush.is_finished() && !dropped.is_finished(), "{below}: a file is being written");
        disk.end_fault();
        dropped.await.unwrap().unwrap();
        // What it wrote is gone again, but it did what it was asked for.
        flush.await.unwrap().unwrap();
        assert_eq!(files(), 0, "{below}");
        sleep(10 * SOON).await;
        assert_eq!(files(), 0, "{below}");
        put(&store, 1, 2, None).await.unwrap();
        store.close().await;
        let store = open(&world, &disk).await;
        assert_eq!((files(), store.status(Some(region(0))).is_err()), (0, true), "{below}");
        store.close().await;
    }
}
