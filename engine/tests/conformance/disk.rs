//! What every `Disk` does, short of power failures: the same script for the operating system's and the simulated one.
//!
//! Where an error's kind is part of the contract or the same everywhere, it is compared; where systems differ only that
//! the call fails.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use engine::disk::{Disk, File, Open, parent, read_whole, remove_if_there, write_atomically};

/// Checks an empty disk. Leaves files behind.
pub async fn suite(disk: Arc<dyn Disk>) {
    files_are_made_once_and_opened_as_asked(&*disk).await;
    bytes_come_back(&*disk).await;
    gaps_and_cuts_read_as_zeros(&*disk).await;
    folders_list_sorted_names(&*disk).await;
    rename_takes_the_place_of_what_was_there(&*disk).await;
    removed_files_live_as_long_as_their_handles(&*disk).await;
    only_empty_folders_can_be_removed(&*disk).await;
    paths_through_files_are_refused(&*disk).await;
    syncs_succeed_on_what_is_there(&*disk).await;
    whole_files_are_written_atomically(&*disk).await;
    calls_may_overlap(disk).await;
}

async fn files_are_made_once_and_opened_as_asked(disk: &dyn Disk) {
    assert_eq!(disk.open("once", Open::Read).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.open("once", Open::Write).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.open("no/folder", Open::Create).await.unwrap_err().kind(), ErrorKind::NotFound);
    let file = disk.open("once", Open::Create).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 0);
    assert_eq!(disk.open("once", Open::Create).await.unwrap_err().kind(), ErrorKind::AlreadyExists);

    file.write_at(0, Bytes::from_static(b"first")).await.unwrap();
    let reader = disk.open("once", Open::Read).await.unwrap();
    assert_eq!(reader.read_at(0, 100).await.unwrap(), "first", "handles see each other's writes, unsynced too");
    assert!(reader.write_at(0, Bytes::from_static(b"x")).await.is_err(), "it was opened for reading");
    assert!(reader.set_len(0).await.is_err(), "it was opened for reading");
    let writer = disk.open("once", Open::Write).await.unwrap();
    writer.write_at(0, Bytes::from_static(b"F")).await.unwrap();
    assert_eq!(file.read_at(0, 100).await.unwrap(), "First", "opening for writing cuts nothing");
}

async fn bytes_come_back(disk: &dyn Disk) {
    let file = disk.open("bytes", Open::Create).await.unwrap();
    let content: Vec<u8> = (0..200_000u32).map(|at| (at / 7) as u8).collect();
    for (at, piece) in content.chunks(30_011).enumerate() {
        file.write_at(at as u64 * 30_011, Bytes::copy_from_slice(piece)).await.unwrap();
    }
    assert_eq!(file.len().await.unwrap(), content.len() as u64);
    assert_eq!(file.read_at(0, content.len()).await.unwrap(), content);
    assert_eq!(file.read_at(65_530, 20).await.unwrap(), content[65_530..65_550]);
    assert_eq!(file.read_at(199_990, 100).await.unwrap(), content[199_990..], "fewer where the file ends");
    assert!(file.read_at(200_000, 10).await.unwrap().is_empty());
    assert!(file.read_at(1 << 40, 10).await.unwrap().is_empty(), "reading past the end is no error");
    assert!(file.read_at(0, 0).await.unwrap().is_empty());

    file.write_at(100, Bytes::from_static(b"over")).await.unwrap();
    file.write_at(199_998, Bytes::from_static(b"tail")).await.unwrap();
    assert_eq!(file.read_at(98, 8).await.unwrap(), [&content[98..100], b"over", &content[104..106]].concat());
    assert_eq!(file.len().await.unwrap(), 200_002, "a write over the end grows the file");
    file.write_at(500_000, Bytes::new()).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 200_002, "an empty write does not");
    assert!(file.write_at(u64::MAX, Bytes::from_static(b"x")).await.is_err(), "no such offset");
}

async fn gaps_and_cuts_read_as_zeros(disk: &dyn Disk) {
    let file = disk.open("gaps", Open::Create).await.unwrap();
    file.write_at(70_000, Bytes::from_static(b"island")).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 70_006);
    assert_eq!(file.read_at(69_998, 100).await.unwrap(), b"\0\0island"[..]);
    assert!(file.read_at(0, 70_000).await.unwrap().iter().all(|byte| *byte == 0));

    file.set_len(70_003).await.unwrap();
    assert_eq!(file.read_at(69_999, 100).await.unwrap(), b"\0isl"[..]);
    file.set_len(70_008).await.unwrap();
    assert_eq!(file.read_at(69_999, 100).await.unwrap(), b"\0isl\0\0\0\0\0"[..], "what was cut does not come back");
    file.set_len(0).await.unwrap();
    file.set_len(10).await.unwrap();
    assert_eq!(file.read_at(0, 100).await.unwrap(), [0; 10][..]);
    file.sync().await.unwrap();
    assert_eq!(file.len().await.unwrap(), 10);
}

async fn folders_list_sorted_names(disk: &dyn Disk) {
    assert_eq!(disk.list("list").await.unwrap_err().kind(), ErrorKind::NotFound);
    disk.create_dir("list/inner/most").await.unwrap();
    disk.create_dir("list/inner").await.unwrap();
    assert_eq!(disk.list("list").await.unwrap(), ["inner"]);
    assert!(disk.list("list/inner/most").await.unwrap().is_empty());
    for name in ["b", "a", "10", "9", "B", "a.tmp"] {
        disk.open(&format!("list/{name}"), Open::Create).await.unwrap();
    }
    assert_eq!(disk.list("list").await.unwrap(), ["10", "9", "B", "a", "a.tmp", "b", "inner"], "by bytes");
    assert!(disk.list("").await.unwrap().contains(&"list".to_string()), "the store itself is \"\"");
    assert_eq!(parent("list/inner"), "list");
}

async fn rename_takes_the_place_of_what_was_there(disk: &dyn Disk) {
    disk.create_dir("rename/to").await.unwrap();
    assert_eq!(disk.rename("rename/a", "rename/b").await.unwrap_err().kind(), ErrorKind::NotFound);
    put(disk, "rename/a", b"from a").await;
    put(disk, "rename/b", b"from b").await;
    let old = disk.open("rename/b", Open::Read).await.unwrap();
    let moved = disk.open("rename/a", Open::Write).await.unwrap();
    disk.rename("rename/a", "rename/b").await.unwrap();
    assert_eq!(disk.open("rename/a", Open::Read).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read_whole(disk, "rename/b").await.unwrap(), "from a");
    assert_eq!(old.read_at(0, 100).await.unwrap(), "from b", "who has the old one open keeps it");
    moved.write_at(0, Bytes::from_static(b"FROM")).await.unwrap();
    assert_eq!(read_whole(disk, "rename/b").await.unwrap(), "FROM a", "a handle goes with its file");

    disk.rename("rename/b", "rename/b").await.unwrap();
    assert_eq!(read_whole(disk, "rename/b").await.unwrap(), "FROM a", "onto itself nothing happens");
    disk.rename("rename/b", "rename/to/c").await.unwrap();
    assert_eq!(disk.list("rename").await.unwrap(), ["to"]);
    assert_eq!(read_whole(disk, "rename/to/c").await.unwrap(), "FROM a");
    assert_eq!(disk.rename("rename/to/c", "rename/gone/c").await.unwrap_err().kind(), ErrorKind::NotFound);
    disk.create_dir("rename/other").await.unwrap();
    assert_eq!(disk.rename("rename/to/c", "rename/other").await.unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(disk.rename("rename/to/c", "rename/to").await.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(disk.list("rename/to").await.unwrap(), ["c"], "a failed rename changes nothing");
}

async fn removed_files_live_as_long_as_their_handles(disk: &dyn Disk) {
    assert_eq!(disk.remove_file("removed").await.unwrap_err().kind(), ErrorKind::NotFound);
    remove_if_there(disk, "removed").await.unwrap();
    let file = put(disk, "removed", b"still there").await;
    disk.remove_file("removed").await.unwrap();
    assert_eq!(disk.open("removed", Open::Read).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.read_at(0, 100).await.unwrap(), "still there");
    file.write_at(0, Bytes::from_static(b"STILL")).await.unwrap();
    file.sync().await.unwrap();
    put(disk, "removed", b"another").await;
    assert_eq!(file.read_at(0, 100).await.unwrap(), "STILL there");
    assert_eq!(read_whole(disk, "removed").await.unwrap(), "another");
}

async fn only_empty_folders_can_be_removed(disk: &dyn Disk) {
    disk.create_dir("full/empty").await.unwrap();
    put(disk, "full/file", b"x").await;
    assert_eq!(disk.remove_dir("full").await.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(disk.remove_dir("none").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.remove_dir("full/file").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert!(disk.remove_file("full/empty").await.is_err(), "it is a folder");
    disk.remove_file("full/file").await.unwrap();
    disk.remove_dir("full/empty").await.unwrap();
    disk.remove_dir("full").await.unwrap();
    assert_eq!(disk.list("full").await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn paths_through_files_are_refused(disk: &dyn Disk) {
    put(disk, "file", b"x").await;
    assert_eq!(disk.list("file").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(disk.open("file/inner", Open::Create).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(disk.open("file/inner", Open::Read).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(disk.create_dir("file/inner").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(disk.create_dir("file").await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    disk.create_dir("folder").await.unwrap();
    assert_eq!(disk.open("folder", Open::Create).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(disk.open("folder", Open::Write).await.unwrap_err().kind(), ErrorKind::IsADirectory);
}

async fn syncs_succeed_on_what_is_there(disk: &dyn Disk) {
    disk.create_dir("synced").await.unwrap();
    let file = put(disk, "synced/file", b"x").await;
    file.sync().await.unwrap();
    file.sync().await.unwrap();
    disk.open("synced/file", Open::Read).await.unwrap().sync().await.unwrap();
    disk.sync_dir("synced").await.unwrap();
    disk.sync_dir("").await.unwrap();
    assert_eq!(disk.sync_dir("none").await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn whole_files_are_written_atomically(disk: &dyn Disk) {
    disk.create_dir("atomic").await.unwrap();
    put(disk, "atomic/pointer.tmp", b"left over by a crash").await;
    write_atomically(disk, "atomic/pointer", Bytes::from_static(b"one")).await.unwrap();
    write_atomically(disk, "atomic/pointer", Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(read_whole(disk, "atomic/pointer").await.unwrap(), "two");
    assert_eq!(disk.list("atomic").await.unwrap(), ["pointer"], "nothing temporary stays");
}

async fn calls_may_overlap(disk: Arc<dyn Disk>) {
    let file = disk.open("overlap", Open::Create).await.unwrap();
    let write = |at: u64| file.write_at(at * 1000, Bytes::from(vec![at as u8; 1000]));
    let (a, b, c, d, e) = tokio::join!(write(2), write(0), file.sync(), write(1), file.len());
    a.and(b).and(c).and(d).unwrap();
    assert_eq!(e.unwrap() % 1000, 0);
    for at in 0..3 {
        assert_eq!(file.read_at(at * 1000, 1000).await.unwrap(), [at as u8; 1000][..]);
    }
}

async fn put(disk: &dyn Disk, path: &str, content: &'static [u8]) -> Arc<dyn File> {
    let file = disk.open(path, Open::Create).await.unwrap();
    file.write_at(0, Bytes::from_static(content)).await.unwrap();
    file
}

/// Checks a file on a disk without any room.
pub async fn full(file: &dyn File) {
    let err = file.write_at(0, Bytes::from_static(b"too much")).await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::StorageFull);
}
