//! The log as its users see it. Random histories are in `model.rs`; what a start decides about damage is tested byte by
//! byte in `replay.rs`.

mod model;
mod rough;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use self::rough::{Draw, Fault, RoughDisk};
use super::*;
use crate::disk::memory::MemoryDisk;
use crate::error::IoKind;
use crate::event::Listen;
use crate::types::NodeId;

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn vote(term: u64) -> Vote {
    Vote { term, voted_for: ReplicaId(9), committed: true }
}

fn entries(term: u64, indexes: Range<u64>) -> Vec<Entry> {
    indexes.map(|index| Entry { id: id(term, index), payload: format!("entry {term}.{index}").into() }).collect()
}

fn small_segments() -> Options {
    Options { log_segment_bytes: 300, ..Options::default() }
}

async fn open(disk: &(impl Disk + Clone), options: &Options) -> Result<Arc<Log>> {
    Log::open(Arc::new(disk.clone()), "log", options, Events::of(NodeId(1))).await
}

async fn read_all(log: &Arc<Log>, replica: u64) -> Vec<Entry> {
    log.replica(ReplicaId(replica)).read(0..u64::MAX, u64::MAX).await.unwrap()
}

fn segments(disk: &RoughDisk) -> Vec<u64> {
    segments_in(disk, "log/")
}

fn segments_in(disk: &RoughDisk, dir: &str) -> Vec<u64> {
    disk.files().iter().filter_map(|(path, _)| segment::number_of(path.strip_prefix(dir)?)).collect()
}

/// The disk that all unit tests share keeps what was synced and nothing else.
#[tokio::test]
async fn acknowledged_changes_survive_a_power_loss() {
    let disk = MemoryDisk::default();
    let log = open(&disk, &Options::default()).await.unwrap();
    let replica = log.replica(ReplicaId(1));
    replica.append(entries(1, 0..3)).await.unwrap();
    replica.save_committed(id(1, 1)).unwrap();
    replica.truncate_after(Some(id(1, 1))).await.unwrap();
    replica.append(entries(2, 2..5)).await.unwrap();
    replica.purge(id(1, 0)).await.unwrap();
    replica.save_vote(vote(2)).await.unwrap();
    disk.lose_power();
    let log = open(&disk, &Options::default()).await.unwrap();
    assert_eq!(log.replicas(), [ReplicaId(1)]);
    let state =
        LogState { purged: Some(id(1, 0)), last: Some(id(2, 4)), vote: Some(vote(2)), committed: Some(id(1, 1)) };
    assert_eq!(log.replica(ReplicaId(1)).state(), state);
    assert_eq!(read_all(&log, 1).await, [entries(1, 1..2), entries(2, 2..5)].concat());
}

#[tokio::test]
async fn one_fsync_acknowledges_what_all_replicas_submitted_meanwhile() {
    let disk = RoughDisk::default();
    disk.slow_syncs(Duration::from_millis(2));
    let log = open(&disk, &Options::default()).await.unwrap();
    let before = disk.counts();
    // Ten replicas, each appends and waits, twenty times.
    let tasks: Vec<_> = (1..=10)
        .map(|replica| {
            let log = log.replica(ReplicaId(replica));
            tokio::spawn(async move {
                for index in 0..20 {
                    log.append(entries(1, index..index + 1)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let after = disk.counts();
    let (writes, syncs) = (after.writes - before.writes, after.syncs - before.syncs);
    assert_eq!(writes, syncs, "one write for each batch");
    // Who comes while an fsync runs waits for it and for the next one: two for each round.
    assert!(syncs <= 42, "{syncs} fsyncs for 200 appends in 20 rounds");
    // What is submitted while nothing is under way is one batch too.
    let flushed: Vec<_> = (1..=10).map(|replica| log.replica(ReplicaId(replica)).append(entries(1, 20..25))).collect();
    for flushed in flushed {
        flushed.await.unwrap();
    }
    assert_eq!(disk.counts().syncs, after.syncs + 1);
}

#[tokio::test]
async fn a_committed_position_costs_no_fsync() {
    let disk = RoughDisk::default();
    let log = open(&disk, &Options::default()).await.unwrap();
    log.replica(ReplicaId(1)).append(entries(1, 0..3)).await.unwrap();
    let before = disk.counts();
    log.replica(ReplicaId(1)).save_committed(id(1, 2)).unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(disk.counts(), before);
    assert_eq!(log.replica(ReplicaId(1)).state().committed, Some(id(1, 2)));
    log.replica(ReplicaId(2)).save_vote(vote(1)).await.unwrap();
    let disk = disk.start_after_power_loss(&mut Draw(1));
    let log = open(&disk, &Options::default()).await.unwrap();
    assert_eq!(log.replica(ReplicaId(1)).state().committed, Some(id(1, 2)));
}

/// A slow replica still needs an entry of the first segment; later the only things of worth in the old segments are
/// votes and ends of logs.
#[tokio::test]
async fn segments_go_when_nobody_needs_them_and_what_else_they_say_stays() {
    let disk = RoughDisk::default();
    let log = open(&disk, &small_segments()).await.unwrap();
    let (slow, busy, idle) = (log.replica(ReplicaId(1)), log.replica(ReplicaId(2)), log.replica(ReplicaId(3)));
    slow.save_vote(vote(3)).await.unwrap();
    slow.append(entries(3, 0..2)).await.unwrap();
    slow.save_committed(id(3, 1)).unwrap();
    idle.append(entries(1, 0..1)).await.unwrap();
    idle.truncate_after(None).await.unwrap();
    for index in 0..40 {
        busy.append(entries(1, index..index + 1)).await.unwrap();
        busy.purge(id(1, index)).await.unwrap();
    }
    assert_eq!(segments(&disk)[0], 1, "the slow replica's entries hold the first segment");
    slow.purge(id(3, 1)).await.unwrap();
    busy.append(entries(1, 40..41)).await.unwrap();
    busy.append(entries(1, 41..42)).await.unwrap();
    log.close().await.unwrap();
    let left = segments(&disk);
    assert!(left[0] > 10 && left.len() <= 2, "{left:?}");
    let disk = disk.start_after_power_loss(&mut Draw(1));
    let log = open(&disk, &small_segments()).await.unwrap();
    let replica = |replica| log.replica(ReplicaId(replica));
    let slow =
        LogState { purged: Some(id(3, 1)), last: Some(id(3, 1)), vote: Some(vote(3)), committed: Some(id(3, 1)) };
    assert_eq!(replica(1).state(), slow);
    assert_eq!(replica(2).state(), LogState { purged: Some(id(1, 39)), last: Some(id(1, 41)), ..LogState::default() });
    assert_eq!(log.replicas(), [ReplicaId(1), ReplicaId(2), ReplicaId(3)]);
    assert_eq!(read_all(&log, 2).await, entries(1, 40..42));
}

#[tokio::test]
async fn a_forgotten_replica_stays_forgotten_and_holds_no_segment() {
    let disk = RoughDisk::default();
    let log = open(&disk, &small_segments()).await.unwrap();
    let (gone, other) = (log.replica(ReplicaId(1)), log.replica(ReplicaId(2)));
    gone.save_vote(vote(1)).await.unwrap();
    gone.append(entries(1, 0..9)).await.unwrap();
    gone.save_committed(id(1, 3)).unwrap();
    other.append(entries(1, 0..9)).await.unwrap();
    gone.forget().await.unwrap();
    assert_eq!((log.replicas(), gone.state()), (vec![ReplicaId(2)], LogState::default()));
    let disk = disk.start_after_power_loss(&mut Draw(1));
    let log = open(&disk, &small_segments()).await.unwrap();
    assert_eq!(log.replicas(), [ReplicaId(2)]);
    assert!(read_all(&log, 1).await.is_empty());
    // Ids are not used again; a log under an old id would begin empty.
    log.replica(ReplicaId(1)).append(entries(7, 0..1)).await.unwrap();
    log.replica(ReplicaId(2)).purge(id(1, 8)).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(segments(&disk)[0], 3, "the new entry stands there");
    let log = open(&disk.start(), &small_segments()).await.unwrap();
    assert_eq!(read_all(&log, 1).await, entries(7, 0..1));
}

#[tokio::test]
async fn the_first_failure_is_final_and_the_log_opens_again() {
    for (after, fault) in [(0, Fault::Error), (1, Fault::Error)] {
        let disk = RoughDisk::default();
        let log = open(&disk, &Options::default()).await.unwrap();
        let replica = log.replica(ReplicaId(1));
        replica.append(entries(1, 0..2)).await.unwrap();
        disk.plan(after, fault);
        let err = replica.append(entries(1, 2..4)).await.unwrap_err();
        assert!(matches!(&err, Error::Io { message, .. } if message.starts_with("write log/00000000000000000001.seg")));
        assert_eq!(after == 0, matches!(err, Error::Io { kind: IoKind::StorageFull, .. }), "{err}");
        // The disk works again; the log does not go on by itself.
        let syncs = disk.counts().syncs;
        assert_eq!(log.replica(ReplicaId(2)).save_vote(vote(1)).await, Err(err.clone()));
        assert_eq!(replica.append(entries(1, 4..5)).await, Err(err.clone()));
        assert_eq!(replica.save_committed(id(1, 0)), Err(err.clone()));
        assert_eq!(replica.read(0..1, 1).await, Err(err.clone()));
        assert_eq!((log.error(), log.close().await), (Some(err.clone()), Err(err)));
        assert_eq!(disk.counts().syncs, syncs);
        let log = open(&disk, &Options::default()).await.unwrap();
        let found = read_all(&log, 1).await;
        assert_eq!(found[..2], entries(1, 0..2));
    }
}

/// After a failed fsync the system may show what it will never write. What the log takes over from there it writes
/// itself; else the next power loss would leave a hole in the middle of the log.
#[tokio::test]
async fn what_a_failed_fsync_left_in_the_cache_is_not_trusted() {
    for seed in 0..20 {
        let disk = RoughDisk::default();
        let log = open(&disk, &Options::default()).await.unwrap();
        log.replica(ReplicaId(1)).append(entries(1, 0..2)).await.unwrap();
        disk.plan(1, Fault::Error);
        log.replica(ReplicaId(1)).append(entries(1, 2..9)).await.unwrap_err();
        let log = open(&disk, &Options::default()).await.unwrap();
        assert_eq!(read_all(&log, 1).await, entries(1, 0..9));
        log.replica(ReplicaId(1)).append(entries(1, 9..10)).await.unwrap();
        let disk = disk.start_after_power_loss(&mut Draw(seed));
        let log = open(&disk, &Options::default()).await.unwrap();
        assert_eq!(read_all(&log, 1).await, entries(1, 0..10));
    }
}

#[tokio::test]
async fn damage_before_the_last_batch_is_named_and_nothing_is_changed() {
    let disk = RoughDisk::default();
    let log = open(&disk, &Options::default()).await.unwrap();
    for index in 0..4 {
        log.replica(ReplicaId(1)).append(entries(1, index..index + 1)).await.unwrap();
    }
    let disk = disk.start();
    // Segment and Opened take 96 bytes, each entry 48 and its payload of 9.
    disk.damage("log/00000000000000000001.seg", |bytes| bytes[96 + 57 + 40] ^= 1);
    let before = disk.files();
    let err = open(&disk, &Options::default()).await.unwrap_err();
    let expected = Error::Damaged {
        file: "log/00000000000000000001.seg".into(),
        message:
            "offset 153: the checksum of the record's header is wrong, and batch 4, after 3, is there at offset 210"
                .into(),
    };
    assert_eq!(err, expected);
    assert_eq!(disk.files(), before);
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_said() {
    for cut in 1..=57 {
        let disk = RoughDisk::default();
        let log = open(&disk, &Options::default()).await.unwrap();
        log.replica(ReplicaId(1)).append(entries(1, 0..1)).await.unwrap();
        log.replica(ReplicaId(1)).append(entries(1, 1..2)).await.unwrap();
        let disk = disk.start();
        disk.damage("log/00000000000000000001.seg", |bytes| bytes.truncate(bytes.len() - cut));
        let heard = Arc::new(Heard::default());
        let events = Events::heard_by(NodeId(1), heard.clone());
        let log = Log::open(Arc::new(disk.clone()), "log", &Options::default(), events).await.unwrap();
        let opened = Event::LogOpened { segments: 1, torn_bytes: 57 - cut as u64, rotten: 0 };
        let found = Event::Durable { replica: ReplicaId(1), upto: id(1, 0) };
        assert_eq!(heard.take(), [opened, found]);
        assert_eq!(read_all(&log, 1).await, entries(1, 0..1));
        log.replica(ReplicaId(1)).append(entries(2, 1..2)).await.unwrap();
        let log = open(&disk.start(), &Options::default()).await.unwrap();
        assert_eq!(read_all(&log, 1).await, [entries(1, 0..1), entries(2, 1..2)].concat());
    }
}

#[tokio::test]
async fn a_read_is_bounded_and_checked() {
    let disk = RoughDisk::default();
    let options = Options { log_cache_bytes: 0, ..Options::default() };
    let log = open(&disk, &options).await.unwrap();
    let replica = log.replica(ReplicaId(1));
    replica.append(entries(1, 0..10)).await.unwrap();
    replica.purge(id(1, 1)).await.unwrap();
    let before = disk.counts().reads;
    assert_eq!(replica.read(0..6, u64::MAX).await.unwrap(), entries(1, 2..6));
    assert_eq!(disk.counts().reads, before + 1, "entries that stand together are read together");
    assert_eq!(replica.read(4..9, 27).await.unwrap(), entries(1, 4..7));
    assert_eq!(replica.read(4..9, 0).await.unwrap(), entries(1, 4..5));
    assert_eq!(replica.read(10..12, 100).await.unwrap(), []);
    assert_eq!((replica.log_id(0), replica.log_id(1), replica.log_id(10)), (None, Some(id(1, 1)), None));
    disk.damage("log/00000000000000000001.seg", |bytes| bytes[96 + 57 * 5 + 50] ^= 1);
    assert_eq!(replica.rotten(), None, "nobody has looked");
    let err = replica.read(2..9, u64::MAX).await.unwrap_err();
    let expected = Error::Damaged {
        file: "log/00000000000000000001.seg".into(),
        message: "offset 381: not entry 1.5 of replica r1 as it was written".into(),
    };
    assert_eq!(err, expected);
    assert_eq!(replica.read(6..9, u64::MAX).await.unwrap(), entries(1, 6..9));
    assert_eq!(replica.rotten(), Some((id(1, 5), expected)));
}

#[tokio::test]
async fn a_damaged_entry_is_known_until_it_is_gone() {
    let disk = RoughDisk::default();
    let log = open(&disk, &Options::default()).await.unwrap();
    let replica = log.replica(ReplicaId(1));
    for index in 0..6 {
        replica.append(entries(1, index..index + 1)).await.unwrap();
    }
    replica.save_vote(vote(1)).await.unwrap();
    let disk = disk.start();
    for entry in [1, 3] {
        disk.damage("log/00000000000000000001.seg", |bytes| bytes[96 + 57 * entry + 50] ^= 1);
    }
    let open = async |disk: &RoughDisk| {
        let heard = Arc::new(Heard::default());
        let events = Events::heard_by(NodeId(1), heard.clone());
        let log = Log::open(Arc::new(disk.clone()), "log", &Options::default(), events).await.unwrap();
        let opened = heard.take().into_iter().find_map(|event| match event {
            Event::LogOpened { rotten, .. } => Some(rotten),
            _ => None,
        });
        (log.replica(ReplicaId(1)), opened.unwrap())
    };
    let rotten = |replica: &ReplicaLog| replica.rotten().map(|(id, _)| id.index);
    // All that is known of the log is as it was.
    let (replica, found) = open(&disk).await;
    assert_eq!((rotten(&replica), found), (Some(3), 2));
    let state = replica.state();
    assert_eq!((state.last, state.vote), (Some(id(1, 5)), Some(vote(1))));
    assert_eq!(replica.read(4..6, u64::MAX).await.unwrap(), entries(1, 4..6));
    assert_eq!(replica.read(0..6, u64::MAX).await.unwrap_err().code(), "damaged");
    // Another entry in its place is sound.
    replica.truncate_after(Some(id(1, 2))).await.unwrap();
    assert_eq!(rotten(&replica), Some(1));
    replica.append(entries(2, 3..5)).await.unwrap();
    replica.purge(id(1, 1)).await.unwrap();
    assert_eq!(rotten(&replica), None);
    let (replica, found) = open(&disk.start()).await;
    assert_eq!((rotten(&replica), found), (None, 2));
    assert_eq!(replica.read(0..9, u64::MAX).await.unwrap(), [entries(1, 2..3), entries(2, 3..5)].concat());
}

#[derive(Default)]
struct Heard(Mutex<Vec<Event>>);

impl Heard {
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Listen for Heard {
    fn on_event(&self, _: NodeId, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// What can be read is said at once, what is durable when it is.
#[tokio::test]
async fn events_are_said_in_the_order_of_what_happens() {
    let disk = RoughDisk::default();
    let heard = Arc::new(Heard::default());
    let events = Events::heard_by(NodeId(1), heard.clone());
    let log = Log::open(Arc::new(disk.clone()), "log", &Options::default(), events).await.unwrap();
    assert_eq!(heard.take(), [Event::LogOpened { segments: 1, torn_bytes: 0, rotten: 0 }]);
    let replica = ReplicaId(1);
    let one = log.replica(replica);
    let digest = |entry: &Entry| (entry.id, u64::from(crc32fast::hash(&entry.payload)));
    let appended = |entries: Vec<Entry>| Event::Appended { replica, entries: entries.iter().map(digest).collect() };

    let voted = one.save_vote(vote(1));
    let first = one.append(entries(1, 0..3));
    assert_eq!(heard.take(), [appended(entries(1, 0..3))]);
    voted.await.unwrap();
    first.await.unwrap();
    assert_eq!(heard.take(), [Event::VoteSaved { replica, vote: vote(1) }, Event::Durable { replica, upto: id(1, 2) }]);

    one.save_committed(id(1, 0)).unwrap();
    assert_eq!(heard.take(), [Event::Committed { replica, upto: id(1, 0) }]);

    // A suffix is replaced while an append is under way: what is said to be durable is what stands.
    disk.slow_syncs(Duration::from_millis(5));
    let second = one.append(entries(1, 3..5));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let truncated = one.truncate_after(Some(id(1, 0)));
    let third = one.append(entries(2, 1..2));
    for flushed in [second, truncated, third] {
        flushed.await.unwrap();
    }
    assert_eq!(
        heard.take(),
        [
            appended(entries(1, 3..5)),
            Event::Truncated { replica, last: Some(id(1, 0)) },
            appended(entries(2, 1..2)),
            Event::Durable { replica, upto: id(1, 0) },
            Event::Durable { replica, upto: id(2, 1) },
        ]
    );

    one.purge(id(2, 1)).await.unwrap();
    assert_eq!(heard.take(), [Event::Purged { replica, upto: id(2, 1) }]);
    // Nothing changes, nothing is said.
    one.purge(id(1, 0)).await.unwrap();
    one.truncate_after(Some(id(2, 1))).await.unwrap();
    one.append(Vec::new()).await.unwrap();
    assert_eq!(heard.take(), []);
    // A snapshot that has another entry where one stands here.
    one.append(entries(2, 2..4)).await.unwrap();
    heard.take();
    one.purge(id(3, 2)).await.unwrap();
    assert_eq!(
        heard.take(),
        [Event::Truncated { replica, last: Some(id(2, 1)) }, Event::Purged { replica, upto: id(3, 2) }]
    );
    assert_eq!(one.state().last, Some(id(3, 2)));
}

#[tokio::test]
async fn close_writes_what_there_is_and_then_nothing() {
    let disk = RoughDisk::default();
    disk.slow_syncs(Duration::from_millis(2));
    let log = open(&disk, &Options::default()).await.unwrap();
    let replica = log.replica(ReplicaId(1));
    let appended = replica.append(entries(1, 0..3));
    replica.save_committed(id(1, 2)).unwrap();
    log.close().await.unwrap();
    appended.await.unwrap();
    let after = disk.counts();
    assert_eq!(replica.save_vote(vote(1)).await, Err(Error::Stopped));
    assert_eq!((log.close().await, log.error()), (Ok(()), Some(Error::Stopped)));
    assert_eq!(disk.counts(), after);
    let log = open(&disk, &Options::default()).await.unwrap();
    assert_eq!(log.replica(ReplicaId(1)).state().committed, Some(id(1, 2)));
}

#[tokio::test]
async fn what_was_submitted_is_written_after_the_last_handle_is_gone() {
    let disk = RoughDisk::default();
    let log = open(&disk, &Options::default()).await.unwrap();
    let flushed = log.replica(ReplicaId(1)).append(entries(1, 0..3));
    drop(log);
    flushed.await.unwrap();
    let log = open(&disk.start(), &Options::default()).await.unwrap();
    assert_eq!(read_all(&log, 1).await, entries(1, 0..3));
}

#[tokio::test]
async fn a_hole_is_refused_loudly_and_the_other_logs_go_on() {
    let log = open(&RoughDisk::default(), &Options::default()).await.unwrap();
    let replica = log.replica(ReplicaId(1));
    for hole in [entries(1, 1..2), [entries(1, 0..1), entries(1, 2..3)].concat()] {
        let append = std::panic::AssertUnwindSafe(|| drop(replica.append(hole)));
        assert!(std::panic::catch_unwind(append).is_err());
    }
    assert_eq!(replica.state(), LogState::default());
    log.replica(ReplicaId(2)).append(entries(1, 0..1)).await.unwrap();
}

/// The folder's own name, and those above it, are made durable by the log.
#[tokio::test]
async fn the_folder_survives_a_power_loss() {
    for seed in 0..20 {
        let disk = RoughDisk::default();
        let events = Events::of(NodeId(1));
        let log = Log::open(Arc::new(disk.clone()), "a/b/log", &Options::default(), events.clone()).await.unwrap();
        log.replica(ReplicaId(1)).append(entries(1, 0..1)).await.unwrap();
        let disk = disk.start_after_power_loss(&mut Draw(seed));
        let log = Log::open(Arc::new(disk), "a/b/log", &Options::default(), events).await.unwrap();
        assert_eq!(read_all(&log, 1).await, entries(1, 0..1));
    }
}

/// A payload may hold anything, records too.
#[tokio::test]
async fn a_payload_that_looks_like_a_log_is_a_payload() {
    let mut image = Bytes::new();
    let mut disk = RoughDisk::default();
    for batches in [9, 3] {
        disk = RoughDisk::default();
        let log = open(&disk, &Options::default()).await.unwrap();
        for index in 0..batches {
            log.replica(ReplicaId(1)).append(entries(1, index..index + 1)).await.unwrap();
        }
        log.replica(ReplicaId(2)).append(vec![Entry { id: id(1, 0), payload: image }]).await.unwrap();
        image = disk.files().remove(0).1.into();
    }
    // The end of that entry is torn away, or its header: the records within its payload are not later batches.
    let path = "log/00000000000000000001.seg";
    let (torn, whole) = (disk.start(), disk.files().remove(0).1);
    let header = 96 + 3 * 57..96 + 3 * 57 + HEADER;
    for lost in [whole.len() - 1..whole.len(), header] {
        torn.damage(path, |bytes| {
            *bytes = whole.clone();
            bytes[lost].iter_mut().for_each(|byte| *byte = !*byte);
        });
        let log = open(&torn, &Options::default()).await.unwrap();
        assert_eq!((read_all(&log, 1).await, read_all(&log, 2).await), (entries(1, 0..3), vec![]));
    }
}
