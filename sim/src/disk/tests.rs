use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use engine::disk::{Disk, File, Open, read_whole};
use madsim::time::{Instant, sleep, timeout};

use super::*;
use crate::trace::Fingerprint;

const SECTOR: usize = 512;

fn instant(seed: u64) -> SimDisk {
    SimDisk::new(1, Draws::new(seed), None, DiskOptions::instant())
}

fn default(seed: u64) -> SimDisk {
    SimDisk::new(1, Draws::new(seed), None, DiskOptions::default())
}

fn fail(op: Op, failure: Failure) -> Rule {
    Rule { class: None, op, nth: 1, times: 1, effect: Effect::Fail(failure) }
}

/// A file with a durable name and `content`, which is durable too.
async fn durable(disk: &dyn Disk, path: &str, content: &[u8]) -> Arc<dyn File> {
    let file = disk.open(path, Open::Create).await.unwrap();
    write(&*file, 0, content).await;
    file.sync().await.unwrap();
    disk.sync_dir(engine::disk::parent(path)).await.unwrap();
    file
}

async fn write(file: &dyn File, offset: u64, content: &[u8]) {
    file.write_at(offset, Bytes::copy_from_slice(content)).await.unwrap();
}

async fn read(disk: &SimDisk, path: &str) -> Vec<u8> {
    read_whole(&*disk.mount(), path).await.unwrap().to_vec()
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.files().into_iter().map(|file| file.path).collect()
}

// What survives.

#[tokio::test]
async fn a_crash_keeps_the_page_cache_and_a_power_loss_what_was_synced() {
    let disk = instant(1);
    let file = durable(&*disk.mount(), "f", b"synced").await;
    write(&*file, 6, b" and not").await;
    assert_eq!(disk.unsynced(), (8, 0));
    disk.crash();
    assert_eq!(read(&disk, "f").await, b"synced and not");
    let loss = disk.power_loss_keeping(Keep::Nothing);
    assert_eq!(loss, Loss { bytes: 8, sectors_torn: 0, entries: 0 });
    assert_eq!(read(&disk, "f").await, b"synced");
    assert_eq!(disk.effects().bytes_lost, 8);
    assert_eq!(disk.unsynced(), (0, 0));
}

#[tokio::test]
async fn a_power_loss_may_keep_everything() {
    let disk = instant(1);
    let mounted = disk.mount();
    let file = mounted.open("f", Open::Create).await.unwrap();
    write(&*file, 700, &[1; 600]).await;
    file.set_len(900).await.unwrap();
    file.set_len(2000).await.unwrap();
    mounted.create_dir("a/b").await.unwrap();
    mounted.rename("f", "a/b/g").await.unwrap();
    let before = read(&disk, "a/b/g").await;
    assert_eq!(disk.power_loss_keeping(Keep::Everything), Loss::default());
    assert_eq!(read(&disk, "a/b/g").await, before);
    assert_eq!(names(&disk), ["a/b/g"]);
}

#[tokio::test]
async fn any_subset_of_writes_may_survive() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", &[0; 3 * SECTOR]).await;
        for at in 0..3 {
            write(&*file, at * SECTOR as u64, &[1; SECTOR]).await;
        }
        let loss = disk.power_loss();
        let content = read(&disk, "f").await;
        let kept: Vec<bool> = content.chunks(SECTOR).map(|sector| sector[0] == 1).collect();
        assert_eq!(loss.bytes as usize, kept.iter().filter(|kept| !**kept).count() * SECTOR);
        seen.insert(kept);
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

#[tokio::test]
async fn a_write_is_torn_at_sectors() {
    let (mut torn, mut prefixes, mut holes) = (0, 0, 0);
    for seed in 0..200 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", &[0; 8 * SECTOR]).await;
        // It starts and ends inside of sectors.
        write(&*file, 100, &[1; 7 * SECTOR]).await;
        let loss = disk.power_loss();
        let content = read(&disk, "f").await;
        let kept: Vec<bool> = (0..8).map(|sector| content[(sector * SECTOR).max(100)] == 1).collect();
        for (sector, kept) in kept.iter().enumerate() {
            let written = (sector * SECTOR).max(100)..((sector + 1) * SECTOR).min(100 + 7 * SECTOR);
            assert!(
                content[written].iter().all(|byte| *byte == u8::from(*kept)),
                "sector {sector} is one or the other"
            );
        }
        let count = kept.iter().filter(|kept| **kept).count();
        if count > 0 && count < 8 {
            torn += 1;
            let is_prefix = kept.iter().take_while(|kept| **kept).count() == count;
            if is_prefix {
                prefixes += 1
            } else {
                holes += 1
            }
            assert_eq!(loss.sectors_torn as usize, 8 - count);
            assert_eq!(disk.effects().sectors_torn, loss.sectors_torn);
        } else {
            assert_eq!(loss.sectors_torn, 0);
        }
    }
    assert!(prefixes > 10 && holes > 10 && torn < 150, "{prefixes} cut, {holes} with holes, {torn} torn");
}

#[tokio::test]
async fn a_sector_sees_its_writes_in_their_order() {
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", &[0; SECTOR]).await;
        for at in 0..10 {
            write(&*file, at * 20, &[at as u8 + 1; 20]).await;
        }
        disk.power_loss();
        let content = read(&disk, "f").await;
        let kept = content.chunks(20).take_while(|piece| piece[0] != 0).count();
        assert!(
            content[kept * 20..].iter().all(|byte| *byte == 0),
            "a later write without an earlier one: {content:?}"
        );
        lengths.insert(kept);
    }
    assert!(lengths.len() > 5, "{lengths:?}");
}

#[tokio::test]
async fn length_and_data_survive_apart() {
    let (mut zeros, mut short, mut whole) = (0, 0, 0);
    for seed in 0..200 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", b"old").await;
        write(&*file, 2 * SECTOR as u64, &[1; SECTOR]).await;
        disk.power_loss();
        match &read(&disk, "f").await[..] {
            b"old" => short += 1,
            content if content.len() == 3 * SECTOR && content[2 * SECTOR..] == [1; SECTOR] => whole += 1,
            content if content.len() == 3 * SECTOR && content[3..].iter().all(|byte| *byte == 0) => zeros += 1,
            content => panic!("{content:?}"),
        }
    }
    assert!(zeros > 10 && short > 10 && whole > 10, "{zeros} zeros, {short} short, {whole} whole");
}

#[tokio::test]
async fn of_several_appends_a_power_loss_keeps_any_length_and_may_leave_holes_below_it() {
    let (mut lengths, mut holes) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..300 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", b"").await;
        for at in 0..3 {
            write(&*file, at * SECTOR as u64, &[1; SECTOR]).await;
        }
        disk.power_loss();
        let content = read(&disk, "f").await;
        let kept: Vec<bool> = content.chunks(SECTOR).map(|sector| sector[0] == 1).collect();
        lengths.insert(content.len() / SECTOR);
        if kept.windows(2).any(|pair| pair == [false, true]) {
            holes.insert(kept.len());
        }
    }
    assert_eq!(lengths.len(), 4, "{lengths:?}");
    assert_eq!(holes.len(), 2, "{holes:?}");
}

#[tokio::test]
async fn a_cut_survives_with_what_was_written_over_it_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", &[1; 1000]).await;
        file.set_len(0).await.unwrap();
        write(&*file, 0, &[2; 100]).await;
        disk.power_loss();
        let content = read(&disk, "f").await;
        let what = match content.len() {
            1000 => {
                assert!(content.iter().all(|byte| *byte == 1), "the cut was undone, what came after it must be too");
                "as before"
            }
            100 if content == [2; 100] => "after",
            100 => {
                assert_eq!(content, [0; 100]);
                "length only"
            }
            0 => "cut only",
            len => panic!("length {len}"),
        };
        seen.insert(what);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[tokio::test]
async fn a_new_name_is_durable_after_the_sync_of_its_folder_and_no_other() {
    let disk = instant(1);
    let mounted = disk.mount();
    mounted.create_dir("a").await.unwrap();
    mounted.create_dir("b").await.unwrap();
    mounted.sync_dir("").await.unwrap();
    for path in ["a/f", "b/f"] {
        let file = mounted.open(path, Open::Create).await.unwrap();
        write(&*file, 0, b"content").await;
        file.sync().await.unwrap();
    }
    mounted.sync_dir("a").await.unwrap();
    let loss = disk.power_loss_keeping(Keep::Nothing);
    assert_eq!((loss.entries, disk.effects().entries_lost), (1, 1));
    assert_eq!(names(&disk), ["a/f"], "syncing a file does not make its name durable");
    assert_eq!(read(&disk, "a/f").await, b"content");
}

#[tokio::test]
async fn what_is_in_a_folder_whose_name_was_lost_is_gone() {
    let disk = instant(1);
    let mounted = disk.mount();
    mounted.create_dir("a/b").await.unwrap();
    durable(&*mounted, "a/b/f", b"content").await;
    mounted.sync_dir("a").await.unwrap();
    let image = disk.power_failure_image();
    assert!(names(&image).is_empty(), "the name of a itself is not durable");
    mounted.sync_dir("").await.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    assert_eq!(read(&disk, "a/b/f").await, b"content");
}

#[tokio::test]
async fn a_rename_happened_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = instant(seed);
        let mounted = disk.mount();
        durable(&*mounted, "new", b"new").await;
        durable(&*mounted, "name", b"old").await;
        mounted.rename("new", "name").await.unwrap();
        disk.power_loss();
        let content = read(&disk, "name").await;
        match (names(&disk).len(), &content[..]) {
            (1, b"new") | (2, b"old") => seen.insert(content),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn names_survive_with_what_they_build_on() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let disk = instant(seed);
        let mounted = disk.mount();
        durable(&*mounted, "gone", b"x").await;
        mounted.open("tmp", Open::Create).await.unwrap();
        mounted.rename("tmp", "kept").await.unwrap();
        mounted.remove_file("gone").await.unwrap();
        mounted.open("other", Open::Create).await.unwrap();
        disk.power_loss();
        let names = names(&disk);
        let has = |name: &str| names.iter().any(|found| found == name);
        assert!(!(has("tmp") && has("kept")), "{names:?}");
        seen.insert((has("tmp"), has("kept"), has("gone"), has("other")));
    }
    assert_eq!(seen.len(), 3 * 2 * 2, "{seen:?}");
}

#[tokio::test]
async fn a_durable_file_keeps_one_of_its_names() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = instant(seed);
        let mounted = disk.mount();
        durable(&*mounted, "name", b"old").await;
        mounted.rename("name", "aside").await.unwrap();
        mounted.open("name", Open::Create).await.unwrap();
        disk.power_loss();
        let names = names(&disk);
        // A new file in place of the old one is there only if the old one was moved before.
        let old = if names.contains(&"aside".to_string()) { "aside" } else { "name" };
        assert_eq!(read(&disk, old).await, b"old", "{names:?}");
        seen.insert(names);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[tokio::test]
async fn a_rename_between_folders_is_one_change() {
    let disk = instant(1);
    let mounted = disk.mount();
    mounted.create_dir("a").await.unwrap();
    mounted.create_dir("b").await.unwrap();
    mounted.sync_dir("").await.unwrap();
    mounted.open("a/f", Open::Create).await.unwrap();
    mounted.rename("a/f", "b/f").await.unwrap();
    mounted.sync_dir("b").await.unwrap();
    assert_eq!(names(&disk.power_failure_image()), ["b/f"]);
    mounted.sync_dir("a").await.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    assert_eq!(names(&disk), ["b/f"], "the name it was made under does not come back");
}

#[tokio::test]
async fn a_removed_file_comes_back_unless_the_folder_was_synced() {
    let disk = instant(1);
    durable(&*disk.mount(), "f", b"content").await;
    disk.mount().remove_file("f").await.unwrap();
    assert_eq!(disk.used(), 0, "its room is free at once");
    disk.power_loss_keeping(Keep::Nothing);
    assert_eq!(read(&disk, "f").await, b"content");
    assert_eq!(disk.used(), 7);
    disk.mount().remove_file("f").await.unwrap();
    disk.mount().sync_dir("").await.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    assert!(names(&disk).is_empty());
}

#[tokio::test]
async fn a_sync_covers_what_was_written_before_it_began() {
    let disk = default(1);
    let file = durable(&*disk.mount(), "f", &[0; 2 * SECTOR]).await;
    write(&*file, 0, &[1; SECTOR]).await;
    let during = async {
        sleep(Duration::from_millis(1)).await;
        write(&*file, SECTOR as u64, &[2; SECTOR]).await;
    };
    let (synced, ()) = tokio::join!(file.sync(), during);
    synced.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    let content = read(&disk, "f").await;
    assert_eq!((content[0], content[SECTOR]), (1, 0));
}

#[tokio::test]
async fn a_sync_of_a_folder_covers_what_was_named_before_it_began() {
    let disk = default(1);
    let mounted = disk.mount();
    mounted.open("before", Open::Create).await.unwrap();
    let during = async {
        sleep(Duration::from_millis(1)).await;
        mounted.open("during", Open::Create).await.unwrap();
    };
    let (synced, ()) = tokio::join!(mounted.sync_dir(""), during);
    synced.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    assert_eq!(names(&disk), ["before"]);
}

#[tokio::test]
async fn random_histories_leave_what_was_written_once() {
    for seed in 0..60 {
        random_history(seed).await;
    }
}

/// Random operations; then a power loss may leave of each byte only what was there at some time since its last sync, of
/// each length likewise, and of everything that was synced just that.
async fn random_history(seed: u64) {
    let plan = Draws::new(seed);
    let disk = instant(seed);
    let file = durable(&*disk.mount(), "f", b"").await;
    let mut now: Vec<u8> = Vec::new();
    // Contents since the last sync, the one at the sync first.
    let mut history = vec![now.clone()];
    for step in 0..40u64 {
        let at = plan.range(format_args!("{step}/at"), 0..3000);
        match plan.range(format_args!("{step}/what"), 0..10) {
            0 => {
                file.sync().await.unwrap();
                history.clear();
            }
            1 | 2 => {
                file.set_len(at).await.unwrap();
                now.resize(at as usize, 0);
            }
            _ => {
                let len = plan.range(format_args!("{step}/len"), 1..1500) as usize;
                write(&*file, at, &vec![step as u8 + 1; len]).await;
                now.resize(now.len().max(at as usize + len), 0);
                now[at as usize..at as usize + len].fill(step as u8 + 1);
            }
        }
        history.push(now.clone());
        assert_eq!(disk.used(), now.len() as u64);
    }
    assert_eq!(read(&disk, "f").await, now);
    assert_eq!(read(&disk.power_failure_image(), "f").await, history[0]);
    let everything = disk.copy();
    everything.power_loss_keeping(Keep::Everything);
    assert_eq!(read(&everything, "f").await, now);
    disk.power_loss();
    let left = read(&disk, "f").await;
    assert!(history.iter().any(|then| then.len() == left.len()), "seed {seed}: no length was ever {}", left.len());
    for (at, byte) in left.iter().enumerate() {
        let was = history.iter().any(|then| then.get(at).copied().unwrap_or(0) == *byte);
        assert!(was, "seed {seed}: byte {at} was never {byte}");
    }
    assert_eq!(disk.used(), left.len() as u64);
}

// What fails.

#[tokio::test]
async fn a_failed_sync_loses_the_page_for_good() {
    let disk = instant(1);
    disk.mount().create_dir("log").await.unwrap();
    disk.mount().sync_dir("").await.unwrap();
    let file = durable(&*disk.mount(), "log/1", b"....").await;
    let rule = disk.arm(Rule { class: Some(Class::Log), ..fail(Op::Sync, Failure::Io) });
    write(&*file, 0, b"lost").await;
    let err = file.sync().await.unwrap_err();
    assert_eq!(err.raw_os_error(), Some(libc::EIO));
    assert_eq!((disk.fired(rule), disk.effects().syncs_failed), (1, 1));
    assert_eq!(file.read_at(0, 4).await.unwrap(), "lost", "the cache still has it");
    file.sync().await.unwrap();
    assert_eq!(disk.unsynced().0, 0, "and counts it as clean");
    write(&*file, 4, b"next").await;
    file.sync().await.unwrap();
    disk.power_loss_keeping(Keep::Everything);
    assert_eq!(read(&disk, "log/1").await, b"....next");
}

#[tokio::test]
async fn a_failed_write_wrote_a_part() {
    let mut lengths = BTreeSet::new();
    for seed in 0..30 {
        let disk = instant(seed);
        let file = durable(&*disk.mount(), "f", b"").await;
        disk.arm(fail(Op::Write, Failure::Io));
        let err = file.write_at(0, Bytes::from_static(&[1; 100])).await.unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EIO));
        lengths.insert(file.len().await.unwrap());
        assert_eq!(disk.effects().writes_failed, 1);
        write(&*file, 0, b"the next one succeeds").await;
    }
    assert!(lengths.len() > 10 && lengths.iter().all(|len| *len <= 100), "{lengths:?}");
}

#[tokio::test]
async fn reads_and_changes_of_names_fail_when_told_to() {
    let disk = instant(1);
    let mounted = disk.mount();
    let file = durable(&*mounted, "f", b"content").await;
    disk.arm(fail(Op::Read, Failure::Io));
    assert!(file.read_at(0, 7).await.is_err());
    assert_eq!(file.read_at(0, 7).await.unwrap(), "content");
    disk.arm(fail(Op::SetLen, Failure::Full));
    assert_eq!(file.set_len(3).await.unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().await.unwrap(), 7);
    disk.arm(fail(Op::SyncDir, Failure::Io));
    mounted.open("g", Open::Create).await.unwrap();
    assert!(mounted.sync_dir("").await.is_err());
    assert_eq!(names(&disk.power_failure_image()), ["f"]);
    let effects = disk.effects();
    assert_eq!((effects.reads_failed, effects.writes_failed, effects.syncs_failed), (1, 0, 1));
    assert_eq!((effects.full, effects.io_errors()), (1, 2), "a full disk is no broken one");
}

#[tokio::test]
async fn a_failed_rename_was_made_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..30 {
        let disk = instant(seed);
        let mounted = disk.mount();
        durable(&*mounted, "f", b"").await;
        disk.arm(fail(Op::Rename, Failure::Io));
        assert!(mounted.rename("f", "g").await.is_err());
        assert_eq!(disk.effects().names_failed, 1);
        seen.insert(names(&disk));
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[tokio::test]
async fn a_full_disk_takes_what_fits_and_recovers() {
    let disk = instant(1);
    disk.set_capacity(1000);
    let mounted = disk.mount();
    let file = durable(&*mounted, "f", &[1; 600]).await;
    let err = file.write_at(500, Bytes::from_static(&[2; 600])).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().await.unwrap(), 1000, "what fits is written");
    assert_eq!((disk.used(), disk.effects().full, disk.effects().io_errors()), (1000, 1, 0));
    let refused = mounted.open("g", Open::Create).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
    assert_eq!(file.set_len(1001).await.unwrap_err().kind(), ErrorKind::StorageFull);
    write(&*file, 0, &[3; 1000]).await;
    file.sync().await.unwrap();
    file.set_len(100).await.unwrap();
    write(&*mounted.open("g", Open::Create).await.unwrap(), 0, &[4; 900]).await;
    assert_eq!(disk.used(), 1000);
    mounted.remove_file("f").await.unwrap();
    assert_eq!(disk.used(), 1000, "an open file keeps its room");
    drop(file);
    assert_eq!(disk.used(), 900);
}

#[tokio::test]
async fn a_rule_counts_its_kind_of_operation_on_its_kind_of_file() {
    let disk = instant(1);
    let mounted = disk.mount();
    mounted.create_dir("log").await.unwrap();
    let (log, other) = (durable(&*mounted, "log/1", b"").await, durable(&*mounted, "other", b"").await);
    let effect = Effect::Fail(Failure::Io);
    let rule = disk.arm(Rule { class: Some(Class::Log), op: Op::Sync, nth: 2, times: 1, effect });
    let mut failed = Vec::new();
    for _ in 0..3 {
        failed.push((log.sync().await.is_err(), other.sync().await.is_err()));
    }
    assert_eq!(failed, [(false, false), (true, false), (false, false)]);
    let second = disk.arm(fail(Op::Sync, Failure::Io));
    disk.disarm(second);
    log.sync().await.unwrap();
    assert_eq!((disk.fired(rule), disk.fired(second)), (1, 0));
    assert_eq!(disk.count(Class::Log, Op::Sync), 5);
}

// What takes time.

#[tokio::test]
async fn syncs_take_their_time_and_nothing_else_does() {
    let disk = default(3);
    let mounted = disk.mount();
    let start = Instant::now();
    let file = mounted.open("f", Open::Create).await.unwrap();
    write(&*file, 0, &[1; 100_000]).await;
    file.read_at(0, 100_000).await.unwrap();
    file.len().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    let mut delays = BTreeSet::new();
    for _ in 0..20 {
        let start = Instant::now();
        file.sync().await.unwrap();
        assert!((1..=4).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        delays.insert(start.elapsed().as_micros());
    }
    assert!(delays.len() > 10, "{delays:?}");
}

#[tokio::test]
async fn bytes_queue_at_the_device_and_a_slow_disk_is_slower() {
    let options = DiskOptions { bytes_per_second: Some(1 << 20), ..DiskOptions::instant() };
    let disk = SimDisk::new(1, Draws::new(1), None, options);
    let mounted = disk.mount();
    let (one, two) = (durable(&*mounted, "1", b"").await, durable(&*mounted, "2", b"").await);
    for (factor, least) in [(1.0, 500), (3.0, 1500)] {
        disk.set_slow(factor);
        write(&*one, 0, &[1; 256 << 10]).await;
        write(&*two, 0, &[1; 256 << 10]).await;
        let start = Instant::now();
        let (a, b) = tokio::join!(one.sync(), two.sync());
        a.and(b).unwrap();
        let took = start.elapsed().as_millis();
        assert!((least..least + 10).contains(&took), "{took} ms at {factor}");
    }
}

#[tokio::test]
async fn reads_are_paid_by_the_millisecond_where_pages_cost() {
    let options = DiskOptions { read_page: Duration::from_micros(100), ..DiskOptions::instant() };
    let disk = SimDisk::new(1, Draws::new(1), None, options);
    let file = durable(&*disk.mount(), "f", &[1; 4096]).await;
    let start = Instant::now();
    for _ in 0..1000 {
        file.read_at(0, 4096).await.unwrap();
    }
    let took = start.elapsed().as_millis();
    assert!((100..110).contains(&took), "{took} ms");
}

#[tokio::test]
async fn a_stalled_disk_answers_when_it_is_lifted() {
    let disk = default(1);
    let mounted = disk.mount();
    let file = durable(&*mounted, "f", b"").await;
    let start = Instant::now();
    let under_way = async {
        file.sync().await.unwrap();
        start.elapsed()
    };
    let stalled = async {
        // It begins while the sync is under way, and holds it back.
        disk.stall(None);
        assert!(timeout(Duration::from_secs(5), mounted.list("")).await.is_err(), "everything stalls");
        disk.lift();
        mounted.list("").await.unwrap();
    };
    let (took, ()) = tokio::join!(under_way, stalled);
    assert!((5000..5010).contains(&took.as_millis()), "{took:?}");
    assert_eq!(disk.effects().stalls, 2);

    let start = Instant::now();
    disk.stall(Some(Duration::from_millis(300)));
    write(&*file, 0, b"x").await;
    assert!((300..310).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    write(&*file, 0, b"x").await;
    assert!(start.elapsed().as_millis() < 310, "it is over");
}

#[tokio::test]
async fn a_rule_stalls_one_operation() {
    let disk = default(1);
    let file = durable(&*disk.mount(), "f", b"").await;
    let effect = Effect::Stall(Some(Duration::from_millis(700)));
    disk.arm(Rule { class: None, op: Op::Sync, nth: 1, times: 1, effect });
    let start = Instant::now();
    let sync = async {
        file.sync().await.unwrap();
        start.elapsed().as_millis()
    };
    let others = async {
        write(&*file, 0, b"x").await;
        start.elapsed().as_millis()
    };
    let (sync, others) = tokio::join!(sync, others);
    assert!((700..710).contains(&sync) && others == 0, "{sync} {others}");

    disk.arm(Rule { class: None, op: Op::Write, nth: 1, times: 1, effect: Effect::Stall(None) });
    assert!(timeout(Duration::from_secs(60), write(&*file, 0, b"x")).await.is_err());
    disk.arm(Rule { class: None, op: Op::Write, nth: 1, times: 1, effect: Effect::Stall(None) });
    disk.arm(Rule { nth: 2, ..fail(Op::Write, Failure::Io) });
    let calm = async {
        sleep(Duration::from_millis(100)).await;
        disk.calm();
    };
    tokio::join!(write(&*file, 0, b"x"), calm);
    write(&*file, 0, b"y").await;
    assert_eq!(file.read_at(0, 1).await.unwrap(), "y");
}

// What dies.

#[tokio::test]
async fn a_dead_incarnation_changes_nothing_and_never_returns() {
    let disk = default(1);
    let old = disk.mount();
    let file = durable(&*old, "f", b"before").await;
    write(&*file, 0, b"unsynced").await;
    let sync = async { file.sync().await };
    let lose = async {
        sleep(Duration::from_millis(1)).await;
        disk.power_loss_keeping(Keep::Nothing);
    };
    let both = async { tokio::join!(sync, lose) };
    assert!(timeout(Duration::from_secs(1), both).await.is_err(), "the sync under way never returns");
    assert_eq!(disk.effects().syncs, 1, "nor has it an effect");

    let wait = Duration::from_secs(1);
    assert!(timeout(wait, write(&*file, 0, b"late")).await.is_err());
    assert!(timeout(wait, file.set_len(0)).await.is_err());
    assert!(timeout(wait, file.read_at(0, 1)).await.is_err());
    assert!(timeout(wait, old.remove_file("f")).await.is_err());
    assert!(timeout(wait, old.open("g", Open::Create)).await.is_err());
    assert!(timeout(wait, old.rename("f", "g")).await.is_err());
    assert_eq!(read(&disk, "f").await, b"before");

    let held = disk.mount().open("f", Open::Read).await.unwrap();
    disk.mount().remove_file("f").await.unwrap();
    drop(file);
    assert_eq!(held.read_at(0, 6).await.unwrap(), "before", "a dead handle closes nothing of the living");
    assert_eq!(disk.used(), 6);
}

#[tokio::test]
async fn a_hook_ends_the_process_exactly_before_or_after_an_operation() {
    for (moment, expected) in [(Moment::Before, &b"one"[..]), (Moment::After, b"one two")] {
        let disk = default(1);
        let mounted = disk.mount();
        mounted.create_dir("log").await.unwrap();
        let file = mounted.open("log/1", Open::Create).await.unwrap();
        mounted.sync_dir("log").await.unwrap();
        mounted.sync_dir("").await.unwrap();
        let hooked = disk.clone();
        disk.on_op(Arc::new(move |site| {
            if (site.class, site.op, site.nth, site.moment) == (Class::Log, Op::Sync, 2, moment) {
                assert_eq!((site.node, site.path), (1, "log/1"));
                // In the one case here, in the other by whoever is told.
                if moment == Moment::Before {
                    hooked.power_loss_keeping(Keep::Nothing);
                }
                return Fate::Die;
            }
            Fate::Live
        }));
        write(&*file, 0, b"one").await;
        file.sync().await.unwrap();
        write(&*file, 3, b" two").await;
        let wait = Duration::from_secs(1);
        assert!(timeout(wait, file.sync()).await.is_err(), "it never returns");
        assert!(timeout(wait, write(&*file, 0, b"late")).await.is_err(), "and the process does nothing any more");
        if moment == Moment::After {
            disk.power_loss_keeping(Keep::Nothing);
        }
        assert_eq!(read(&disk, "log/1").await, expected);
        disk.mount().list("").await.unwrap();
    }
}

// What is seen from outside.

#[tokio::test]
async fn an_image_is_what_a_power_failure_would_leave_and_the_run_does_not_notice() {
    let trace = Trace::new();
    let disk = SimDisk::new(1, Draws::new(1), Some(trace.clone()), DiskOptions::instant());
    let mounted = disk.mount();
    let file = durable(&*mounted, "f", b"synced").await;
    write(&*file, 0, b"UNSYNCED").await;
    mounted.open("g", Open::Create).await.unwrap();
    let before = (trace.fingerprint(), disk.files(), disk.effects());
    let image = disk.power_failure_image();
    assert_eq!(read(&image, "f").await, b"synced");
    assert_eq!(names(&image), ["f"]);
    image.mount().remove_file("f").await.unwrap();
    let copy = disk.copy();
    assert_eq!(copy.files(), disk.files());
    copy.power_loss_keeping(Keep::Nothing);
    assert_eq!(read(&copy, "f").await, b"synced", "a copy knows what is durable");
    assert_eq!((trace.fingerprint(), disk.files(), disk.effects()), before);
    assert!(disk.0.draws.decisions().is_empty());
    write(&*file, 0, b"GOES ON").await;
    assert_eq!(read(&disk, "f").await, b"GOES OND");
}

#[tokio::test]
async fn a_dump_holds_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = instant(1);
    disk.mount().create_dir("a/empty").await.unwrap();
    durable(&*disk.mount(), "a/f", b"content").await;
    disk.dump(&folder.path().join("n1")).unwrap();
    assert_eq!(fs::read(folder.path().join("n1/a/f")).unwrap(), b"content");
    assert!(folder.path().join("n1/a/empty").is_dir());
}

/// Some work with two files, then a power loss. `syncs` of the first file, 6 of the second.
async fn two_files(draws: &Draws, syncs: u64) -> (Fingerprint, Vec<u8>) {
    let trace = Trace::new();
    let disk = SimDisk::new(1, draws.clone(), Some(trace.clone()), DiskOptions::default());
    let mounted = disk.mount();
    let (one, two) = (durable(&*mounted, "one", b"").await, durable(&*mounted, "two", b"").await);
    for at in 0..6u64 {
        if at < syncs {
            one.sync().await.unwrap();
        }
        two.sync().await.unwrap();
        write(&*two, at * 1000, &[at as u8 + 1; 1000]).await;
    }
    write(&*two, 0, &[9; 5000]).await;
    disk.power_loss();
    (trace.fingerprint(), read(&disk, "two").await)
}

#[tokio::test]
async fn a_seed_decides_everything() {
    let first = two_files(&Draws::new(5), 6).await;
    let mut others = BTreeSet::new();
    for seed in 0..20 {
        others.insert(two_files(&Draws::new(seed), 6).await.1);
    }
    assert!(others.len() > 5);
    assert!(others.contains(&first.1));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        std::thread::spawn(|| {
            let simulation = madsim::runtime::Runtime::with_seed_and_config(3, madsim::Config::default());
            simulation.block_on(two_files(&Draws::new(5), 6))
        })
        .join()
        .unwrap()
    };
    assert_eq!(run(), run());
}

#[tokio::test]
async fn one_operation_less_moves_no_other_draw() {
    let (all, less) = (Draws::recording(5), Draws::recording(5));
    let (_, content) = two_files(&all, 6).await;
    let (_, content_less) = two_files(&less, 4).await;
    assert_eq!(content, content_less);
    let gone: Vec<_> = all.decisions().into_iter().filter(|made| !less.decisions().contains(made)).collect();
    let gone: Vec<&str> = gone.iter().map(|made| made.name.as_str()).collect();
    assert_eq!(gone, ["disk/n1/one/fsync/6", "disk/n1/one/fsync/7"], "all others are equal by name");
    assert!(less.decisions().iter().all(|made| all.decisions().contains(made)));
}

#[tokio::test]
async fn what_a_power_loss_kept_is_put_down_by_name() {
    let draws = Draws::new(4);
    let disk = SimDisk::new(2, draws.clone(), None, DiskOptions::instant());
    let file = durable(&*disk.mount(), "f", b"").await;
    write(&*file, 0, &[1; 1000]).await;
    disk.mount().open("g", Open::Create).await.unwrap();
    disk.power_loss_keeping(Keep::Nothing);
    let made: Vec<String> = draws.decisions().iter().map(|made| format!("{}: {}", made.name, made.value)).collect();
    assert_eq!(
        made,
        [
            "disk/n2/loss/1/names: kept 0 of 1 []",
            "disk/n2/loss/1/files/f: lost 1000 of 1000 unsynced bytes, 0 sectors torn, length 0 of 1000"
        ]
    );
}
