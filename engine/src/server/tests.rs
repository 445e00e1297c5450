//! A store by itself, on a disk in memory: one node, so that every group is one replica.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::identity::{Identity, store_dropped};
use super::mend::Help;
use super::message::{Replacement, Request, Response};
use super::router::{Remote, Router};
use super::store::{State, Store, folder};
use crate::clock::OsClock;
use crate::disk::memory::{Fault, MemoryDisk};
use crate::disk::{Disk, Open};
use crate::error::{Error, Result};
use crate::event::{Event, Events, Listen};
use crate::log::Entry;
use crate::meta::catalog::{PartitionRule, TableDef};
use crate::options::Options;
use crate::raft::Surroundings;
use crate::region::request::{ScanRequest, WriteRequest};
use crate::types::{
    Column, ColumnId, ColumnType, Incarnation, LogId, NodeId, RegionId, ReplicaId, Schema, Sequence, TableId,
    encode_batch,
};

const NODE: NodeId = NodeId(1);

/// Nobody else, but for a store that lends, and what happens.
#[derive(Default)]
struct World {
    events: Mutex<Vec<Event>>,
    lender: Mutex<Option<Arc<Store>>>,
}

#[async_trait]
impl Remote for World {
    async fn call(&self, _: NodeId, request: Request, _: Duration) -> Result<Response> {
        let lender = self.lender.lock().unwrap().clone().ok_or(Error::Stopped)?;
        match request {
            Request::Lend { region, from } => lender.lend(region, from).await.map(Response::Lend),
            Request::LentPiece { number, file, offset } => {
                lender.lent_piece(number, file, offset).await.map(Response::LentPiece)
            }
            _ => Err(Error::Stopped),
        }
    }
}

impl Listen for World {
    fn on_event(&self, _: NodeId, event: &Event) {
        self.events.lock().unwrap().push(event.clone());
    }
}

impl World {
    /// The replicas that were opened anew, and how often.
    fn reopened(&self) -> BTreeMap<ReplicaId, u64> {
        let mut reopened = BTreeMap::new();
        for event in self.events.lock().unwrap().iter() {
            if let Event::ReplicaReopening { replica, .. } = event {
                *reopened.entry(*replica).or_default() += 1;
            }
        }
        reopened
    }

    /// How often the files of the replica were opened.
    fn opened(&self, of: ReplicaId) -> usize {
        let is_it = |event: &&Event| matches!(event, Event::ReplicaOpened { replica, .. } if *replica == of);
        self.events.lock().unwrap().iter().filter(is_it).count()
    }
}

fn table() -> TableDef {
    let column = |id, name: &str, nullable| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type: ColumnType::Int64,
        nullable,
        default: None,
    };
    TableDef {
        id: TableId(1),
        name: "t".into(),
        schema: Schema::new(1, vec![column(1, "a", false), column(2, "n", true)], &["a".into()], None).unwrap(),
        partition: PartitionRule::Hash { columns: vec!["a".into()], regions: 2 },
        regions: Vec::new(),
        view: None,
        indexes: Default::default(),
    }
}

fn region(number: u32) -> RegionId {
    RegionId::new(TableId(1), number)
}

fn replica(number: u32) -> ReplicaId {
    ReplicaId(u64::from(number) + 10)
}

async fn open(world: &Arc<World>, disk: &MemoryDisk) -> Arc<Store> {
    open_with(world, disk, Options::default()).await
}

async fn open_with(world: &Arc<World>, disk: &MemoryDisk, options: Options) -> Arc<Store> {
    let identity = Identity { node: NODE, meta: BTreeMap::new() };
    let around = Surroundings {
        router: Arc::new(Router::of_client(world.clone())),
        disk: Arc::new(disk.clone()),
        options: Arc::new(options),
        events: Events::heard_by(NODE, world.clone()),
    };
    Store::open(&identity, Incarnation(1), &around, Arc::new(OsClock)).await.unwrap()
}

/// A store with two regions, one row in a file of each.
async fn filled(world: &Arc<World>, disk: &MemoryDisk) -> Arc<Store> {
    filled_with(world, disk, Options::default()).await
}

async fn filled_with(world: &Arc<World>, disk: &MemoryDisk, options: Options) -> Arc<Store> {
    let store = open_with(world, disk, options).await;
    for number in [0, 1] {
        store.create_replica(region(number), replica(number), &table()).await.unwrap();
        let group = store.replica(replica(number)).unwrap().group.clone();
        group.initialize(&[(replica(number), NODE)].into()).await.unwrap();
        while !group.standing().is_leader {
            sleep(Duration::from_millis(10)).await;
        }
        put(&store, number, 1, None).await.unwrap();
        store.flush(region(number)).await.unwrap();
    }
    store
}

/// Puts the row of key 1; on condition that it is of that sequence.
async fn put(store: &Store, number: u32, n: i64, expected: Option<u64>) -> Result<Sequence> {
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(Int64Array::from(vec![n]))];
    let rows = RecordBatch::try_new(table().schema.to_arrow(), columns).unwrap();
    let write = WriteRequest {
        schema_version: 1,
        rows: encode_batch(&rows),
        ops: Bytes::new(),
        expected: expected.into_iter().map(Sequence).collect(),
        request: None,
        acknowledged: 0,
        file: None,
    };
    Ok(store.write(region(number), write, Duration::from_secs(10)).await?.sequence)
}

#[tokio::test]
async fn a_replica_that_dies_is_opened_anew_alone() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let (stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    let other = store.replica(replica(1)).unwrap();

    // Apply has to read the file: that this fails is no outcome, the replica stops.
    disk.begin("replicas/10/sst", Fault::Error);
    assert_eq!(put(&store, 0, 2, Some(1)).await.unwrap_err().code(), "unknown_outcome");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(put(&store, 0, 3, None).await.unwrap_err().code(), "region_not_found", "it cannot be opened yet");
    assert_eq!(put(&store, 1, 2, Some(1)).await.unwrap(), Sequence(2), "the other one never noticed");

    disk.end_fault();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.reopened(), [(replica(0), 1)].into());
    assert!(Arc::ptr_eq(&other, &store.replica(replica(1)).unwrap()));
    // What was in its log is applied, once.
    assert_eq!(put(&store, 0, 3, Some(2)).await.unwrap(), Sequence(3));
    let scan = ScanRequest { schema_version: 1, columns: vec!["n".into()], ..ScanRequest::default() };
    assert_eq!(store.scan(region(0), scan, &OsClock, Duration::from_secs(10)).await.unwrap().rows, 1);

    stop.send_replace(true);
    assert_eq!(supervisor.await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn replicas_that_die_together_are_all_opened_anew() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let (stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    disk.begin("replicas", Fault::Error);
    for number in [0, 1] {
        assert_eq!(put(&store, number, 2, Some(1)).await.unwrap_err().code(), "unknown_outcome");
    }
    sleep(Duration::from_secs(5)).await;
    disk.end_fault();
    sleep(Duration::from_secs(5)).await;
    for number in [0, 1] {
        assert_eq!(put(&store, number, 3, Some(2)).await.unwrap(), Sequence(3), "region {number}");
    }
    stop.send_replace(true);
    assert_eq!(supervisor.await.unwrap(), None);
    store.close().await;
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_counts_until_its_outcome_is_known() {
    let default = Options::default;
    let bounds = [
        // Each counts as half of that.
        ("memory", Options { region_buffer_stall_bytes: 100, region_buffer_reject_bytes: 10_000, ..default() }),
        ("places", Options { write_window: 2, ..default() }),
    ];
    for (what, options) in bounds {
        let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
        let store = filled_with(&world, &disk, options).await;
        let seen = |is_it: fn(&Event) -> bool| world.events.lock().unwrap().iter().filter(|event| is_it(event)).count();
        let proposed = || seen(|event| matches!(event, Event::WriteProposed { .. })) - 2;
        let answered = || seen(|event| matches!(event, Event::WriteAnswered { .. })) - 2;
        disk.begin("log", Fault::Hang);
        for n in 0..5 {
            timeout(Duration::from_secs(1), put(&store, 0, n, None)).await.expect_err("the log hangs");
        }
        assert_eq!((proposed(), answered()), (2, 0), "{what}: more is in memory than was let in");
        disk.end_fault();
        sleep(Duration::from_secs(1)).await;
        assert_eq!((proposed(), answered()), (2, 2), "{what}");
        assert_eq!(put(&store, 0, 9, None).await.unwrap(), Sequence(4), "{what}: there is room again");
        store.close().await;
    }
}

#[tokio::test]
async fn a_replica_that_cannot_be_opened_is_not_tried_in_a_busy_loop() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let (stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    // The file can be opened; what the log says is to be read of it cannot.
    let (path, _) = disk.files().into_iter().find(|(path, _)| path.starts_with("replicas/10/sst")).unwrap();
    disk.damage(&path, |bytes| bytes[10] ^= 1);
    put(&store, 0, 2, Some(1)).await.unwrap_err();
    sleep(Duration::from_secs(10)).await;
    let opened = world.opened(replica(0));
    assert!((5..20).contains(&opened), "{opened} times in ten seconds");
    stop.send_replace(true);
    assert_eq!(supervisor.await.unwrap(), None, "told to stop, it does");
    store.close().await;
}

#[tokio::test]
async fn a_store_whose_log_fails_is_to_be_opened_anew_as_a_whole() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let (_stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    disk.begin("log", Fault::Error);
    assert_eq!(put(&store, 0, 2, None).await.unwrap_err().code(), "unknown_outcome");
    let reason = supervisor.await.unwrap().expect("nobody told it to stop");
    assert!(reason.contains("log/"), "{reason}");
    store.close().await;
    assert!(put(&store, 1, 2, None).await.is_err(), "nothing of it runs any more");
    // The owner reads everything again.
    disk.end_fault();
    let store = open(&world, &disk).await;
    for number in [0, 1] {
        assert_eq!(store.status(Some(region(number))).unwrap()[0].sequence, Sequence(1));
    }
    store.close().await;
}

#[tokio::test]
async fn a_drop_is_finished_after_a_crash_and_final() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let store = filled(&world, &disk).await;
    let files = |number| disk.files().iter().filter(|(path, _)| path.starts_with(&folder(replica(number)))).count();
    store.drop_replica(region(0), replica(0)).await.unwrap();
    assert_eq!(files(0), 0);
    assert_eq!(store.status(Some(region(0))).unwrap_err().code(), "region_not_found");
    store.close().await;

    // The other one is as far as a crash right after the first step leaves it.
    store_dropped(&disk, &[replica(0), replica(1)].into()).await.unwrap();
    disk.lose_power();
    assert!(files(1) > 0);
    let store = open(&world, &disk).await;
    assert_eq!((files(0), files(1)), (0, 0));
    for number in [0, 1] {
        // A request to make it that comes late.
        let err = store.create_replica(region(number), replica(number), &table()).await.unwrap_err();
        assert_eq!(err.code(), "request");
        store.drop_replica(region(number), replica(number)).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn what_was_lent_takes_the_place_of_files_and_of_entries_that_were_never_committed() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let lender = filled(&world, &disk).await;
    let lent = lender.lend(region(0), None).await.unwrap();
    let here = MemoryDisk::default();
    let store = open(&world, &here).await;
    store.create_replica(region(0), replica(0), &table()).await.unwrap();
    let hosted = store.replica(replica(0)).unwrap();
    // What a leader of an older term sent.
    let log = store.log.replica(replica(0));
    let entry = |index| Entry { id: LogId { term: 0, index }, payload: Bytes::new() };
    log.append((0..20).map(entry).collect()).await.unwrap();
    let incoming = format!("{}/incoming-0", folder(replica(0)));
    here.create_dir(&incoming).await.unwrap();
    let mut files = Vec::new();
    for (number, (len, _)) in (0..).zip(&lent.files) {
        let path = format!("{incoming}/{number}");
        let bytes = lender.lent_piece(lent.number, number, 0).await.unwrap();
        assert_eq!(bytes.len() as u64, *len);
        let file = here.open(&path, Open::Create).await.unwrap();
        file.write_at(0, bytes).await.unwrap();
        file.sync().await.unwrap();
        files.push(path);
    }
    here.sync_dir(&incoming).await.unwrap();
    let help = Help { from: NodeId(2), header: lent.header, files };
    // Somebody asks for the replica meanwhile, again, and is told to come later.
    let (table, making) = (table(), store.clone());
    let making = making.create_replica(region(0), replica(0), &table);
    let (mended, made) = tokio::join!(store.reopen(replica(0), Some(hosted), Some(help)), making);
    mended.unwrap();
    assert_eq!(made.unwrap_err().code(), "busy");
    let (there, status) = (&lender.status(Some(region(0))).unwrap()[0], &store.status(Some(region(0))).unwrap()[0]);
    assert_eq!((status.flushed, status.sequence, status.ssts), (there.flushed, there.sequence, there.ssts));
    assert_eq!(log.state().last, status.flushed, "nothing else stands in the log");
    store.close().await;
    lender.close().await;
}

/// A store as [`filled`] makes it; region 0 has a learner too, and an entry that must read the file to be applied.
async fn filled_with_a_learner(world: &Arc<World>, disk: &MemoryDisk) -> Arc<Store> {
    let store = filled(world, disk).await;
    let joins = (ReplicaId(20), NodeId(2));
    let change = Replacement { leaves: (replica(0), NODE), joins, stay: BTreeSet::new() };
    store.replica(replica(0)).unwrap().group.add_learner(&change).await.unwrap();
    put(&store, 0, 2, None).await.unwrap();
    store.flush(region(0)).await.unwrap();
    put(&store, 0, 3, Some(2)).await.unwrap();
    store
}

/// Waits until replicas were mended so many times.
async fn when_mended(world: &World, times: usize) -> Instant {
    let is_it = |event: &&Event| matches!(event, Event::ReplicaMended { .. });
    let mended = || world.events.lock().unwrap().iter().filter(is_it).count();
    until(|| mended() >= times).await;
    Instant::now()
}

/// Waits until the replica of region 0 leads.
async fn when_leading(store: &Store) {
    until(|| store.replica(replica(0)).is_ok_and(|hosted| hosted.group.standing().is_leader)).await;
}

async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not in a minute");
}

fn damage_ssts(disk: &MemoryDisk, number: u32) {
    let folder = format!("{}/sst/", folder(replica(number)));
    for (path, _) in disk.files().into_iter().filter(|(path, _)| path.starts_with(&folder)) {
        disk.damage(&path, |bytes| bytes[10] ^= 1);
    }
}

#[tokio::test]
async fn a_replica_whose_log_cannot_be_replayed_for_damaged_files_is_mended_before_it_is_opened() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    filled_with_a_learner(&world, &disk).await.close().await;
    damage_ssts(&disk, 0);
    let store = open(&world, &disk).await;
    assert!(store.replica(replica(1)).is_ok(), "the others are opened");
    assert!(store.replica(replica(0)).is_err());
    let err = store.create_replica(region(0), replica(0), &table()).await.unwrap_err();
    assert_eq!(err.code(), "busy", "it is there");
    let (stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    sleep(Duration::from_secs(5)).await;
    assert!(store.replica(replica(0)).is_err(), "nobody helps");
    let (elsewhere, other) = (Arc::new(World::default()), MemoryDisk::default());
    let lender = filled_with_a_learner(&elsewhere, &other).await;
    *world.lender.lock().unwrap() = Some(lender.clone());
    let mut mended = when_mended(&world, 1).await;
    when_leading(&store).await;
    assert_eq!(store.status(Some(region(0))).unwrap()[0].sequence, Sequence(3));

    // Damaged again, it waits: a second, then two, then four.
    for round in 0..3 {
        damage_ssts(&disk, 0);
        let hosted = store.replica(replica(0)).unwrap();
        let State::Region(here) = &hosted.state else { unreachable!("it is a region's") };
        let all = ScanRequest { schema_version: 1, ..ScanRequest::default() };
        assert_eq!(here.scan(all).await.unwrap_err().code(), "busy");
        let again = when_mended(&world, round + 2).await;
        let waited = (again - mended).as_millis();
        assert!(waited >= 1_000 << round && waited < 1_500 << round, "{waited} ms");
        mended = again;
        until(|| store.replica(replica(0)).is_ok()).await;
    }
    stop.send_replace(true);
    assert_eq!(supervisor.await.unwrap(), None);
    store.close().await;
    lender.close().await;
}

#[tokio::test]
async fn a_replica_with_a_damaged_log_is_mended_before_it_is_opened() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    filled_with_a_learner(&world, &disk).await.close().await;
    // The newest entry of region 0, the payload of which ends the file but for what closing and opening write.
    let segment = "log/00000000000000000001.seg";
    let store = open(&world, &disk).await;
    let (newest, _) = (store.log.replica(replica(0)).state().last.unwrap(), store.close().await);
    let needle = newest.index.to_le_bytes();
    disk.damage(segment, |bytes| {
        // A record's header ends with the index; before that stand term, replica.
        let id = u64::from(10_u32).to_le_bytes();
        let is_it =
            |at: &usize| bytes[at + 40..at + 48] == needle && bytes[at + 24..at + 32] == id && bytes[at + 12] == 4;
        let at = (0..bytes.len() - 48).rev().find(is_it).unwrap();
        bytes[at + 50] ^= 1;
    });
    let (elsewhere, other) = (Arc::new(World::default()), MemoryDisk::default());
    let lender = filled_with_a_learner(&elsewhere, &other).await;
    *world.lender.lock().unwrap() = Some(lender.clone());
    let store = open(&world, &disk).await;
    assert!(store.replica(replica(1)).is_ok(), "the others are opened");
    assert!(store.replica(replica(0)).is_err());
    let (stop, mut stopping) = watch::channel(false);
    let supervised = store.clone();
    let supervisor = tokio::spawn(async move { supervised.supervise(&mut stopping).await });
    when_mended(&world, 1).await;
    when_leading(&store).await;
    assert_eq!(put(&store, 0, 4, Some(3)).await.unwrap(), Sequence(4), "it has what the entry did");
    assert_eq!(store.log.replica(replica(0)).rotten(), None);
    let is_it = |event: &&Event| matches!(event, Event::FileDamaged { file, .. } if file == segment);
    assert_eq!(world.events.lock().unwrap().iter().filter(is_it).count(), 1);
    stop.send_replace(true);
    assert_eq!(supervisor.await.unwrap(), None);
    store.close().await;
    lender.close().await;
}

#[tokio::test]
async fn who_lends_a_damaged_file_hears_of_it() {
    let (world, disk) = (Arc::new(World::default()), MemoryDisk::default());
    let lender = filled_with_a_learner(&world, &disk).await;
    let lent = lender.lend(region(0), None).await.unwrap();
    let hosted = lender.replica(replica(0)).unwrap();
    let State::Region(here) = &hosted.state else { unreachable!("it is a region's") };
    lender.lent_piece(lent.number, 0, 0).await.unwrap();
    assert!(!here.is_damaged());
    damage_ssts(&disk, 0);
    assert_eq!(lender.lent_piece(lent.number, 0, 0).await.unwrap_err().code(), "busy");
    assert!(here.is_damaged());
    assert_eq!(lender.lend(region(0), None).await.unwrap_err().code(), "busy", "nobody gets it from here any more");
    lender.close().await;
}

mod requests;
