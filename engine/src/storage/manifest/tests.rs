use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use futures::FutureExt;
use futures::executor::block_on;

use super::*;
use crate::disk::memory::MemoryDisk;
use crate::disk::{File, Open};
use crate::event::Listen;
use crate::types::{Key, NodeId};

const DIR: &str = "replicas/r1";
const REPLICA: ReplicaId = ReplicaId(1);

fn options() -> Options {
    Options { manifest_checkpoint_edits: 3, ..Options::default() }
}

fn file(id: u64) -> FileMeta {
    FileMeta {
        id: FileId(id),
        index: None,
        first_key: Key(Bytes::from_static(b"a")),
        last_key: Key(Bytes::from_static(b"b")),
        first_time: 0,
        last_time: id as i64,
        first_sequence: Sequence(id),
        last_sequence: Sequence(id),
        rows: 1,
        bytes: 100,
        level: 0,
        checksum: 7,
        schema_version: 1,
        footer_bytes: 10,
        footer_checksum: 8,
    }
}

/// The `number`-th flush: one file more, and from the third on one file less.
fn edit(number: u64) -> Action {
    Action::Edit(Edit {
        add: vec![file(number)],
        remove: number.checked_sub(2).filter(|id| *id > 0).map(FileId).into_iter().collect(),
        past: Some(past(number)),
        oldest: None,
    })
}

fn past(number: u64) -> Past {
    Past {
        flushed: Some(LogId { term: 1, index: number }),
        sequence: Sequence(number),
        definition: Bytes::from_static(b"definition"),
        side: Bytes::from(format!("side of {number}")),
    }
}

/// The state after the first `edits` flushes.
fn state(edits: u64) -> ManifestState {
    let mut state = ManifestState::new(RegionId(5), REPLICA, past(0));
    (1..=edits).for_each(|number| state.apply(&edit(number)).unwrap());
    state
}

async fn create(disk: Arc<dyn Disk>) -> Result<Manifest> {
    let events = Events::of(NodeId(1));
    Manifest::create(disk, DIR, RegionId(5), REPLICA, past(0), &options(), events).await
}

async fn open(disk: Arc<dyn Disk>) -> Result<Option<Manifest>> {
    Manifest::open(disk, DIR, &options(), Events::of(NodeId(1))).await
}

/// How the operation fails at which everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It has no effect.
    Before,
    /// It has its effect, which nobody learns.
    After,
}

/// Counts operations; from a given one on everything fails.
#[derive(Clone, Debug)]
struct Ending {
    disk: MemoryDisk,
    left: Arc<Mutex<Option<usize>>>,
    end: End,
}

impl Ending {
    fn after(disk: &MemoryDisk, operations: usize, end: End) -> Arc<Ending> {
        Arc::new(Ending { disk: disk.clone(), left: Arc::new(Mutex::new(Some(operations))), end })
    }

    /// Whether the operation is carried out, and whether its caller hears of it.
    fn next(&self) -> (bool, bool) {
        let mut left = self.left.lock().unwrap();
        match *left {
            None => (false, false),
            Some(0) => {
                *left = None;
                (self.end == End::After, false)
            }
            Some(more) => {
                *left = Some(more - 1);
                (true, true)
            }
        }
    }

    async fn through<T>(&self, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let (carried_out, heard) = self.next();
        let result = if carried_out { operation.await } else { Err(io::Error::other("ended")) };
        if heard { result } else { Err(io::Error::other("ended")) }
    }

    fn ended(&self) -> bool {
        self.left.lock().unwrap().is_none()
    }
}

#[async_trait]
impl Disk for Ending {
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
        let file = self.through(self.disk.open(path, how)).await?;
        Ok(Arc::new(EndingFile { file, ending: self.clone() }))
    }

    async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.through(self.disk.list(path)).await
    }

    async fn create_dir(&self, path: &str) -> io::Result<()> {
        self.through(self.disk.create_dir(path)).await
    }

    async fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.through(self.disk.sync_dir(path)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.through(self.disk.rename(from, to)).await
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.through(self.disk.remove_file(path)).await
    }

    async fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.through(self.disk.remove_dir(path)).await
    }
}

#[derive(Debug)]
struct EndingFile {
    file: Arc<dyn File>,
    ending: Ending,
}

#[async_trait]
impl File for EndingFile {
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.ending.through(self.file.read_at(offset, len)).await
    }

    async fn write_at(&self, offset: u64, bytes: Bytes) -> io::Result<()> {
        self.ending.through(self.file.write_at(offset, bytes)).await
    }

    async fn len(&self) -> io::Result<u64> {
        self.ending.through(self.file.len()).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.ending.through(self.file.set_len(len)).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.ending.through(self.file.sync()).await
    }
}

/// Never answers a rename.
#[derive(Debug)]
struct Hanging(MemoryDisk);

#[async_trait]
impl Disk for Hanging {
    async fn open(&self, path: &str, how: Open) -> io::Result<Arc<dyn File>> {
        self.0.open(path, how).await
    }

    async fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.0.list(path).await
    }

    async fn create_dir(&self, path: &str) -> io::Result<()> {
        self.0.create_dir(path).await
    }

    async fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(path).await
    }

    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        std::future::pending().await
    }

    async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.0.remove_file(path).await
    }

    async fn remove_dir(&self, path: &str) -> io::Result<()> {
        self.0.remove_dir(path).await
    }
}

/// Runs `work` with the disk ending after 0, 1, 2, .. operations, in both ways, until it is not reached; `check` is called
/// after each with the disk as it is then and what `work` answered.
fn at_every_end<T>(
    prepared: impl Fn() -> MemoryDisk,
    work: impl Fn(Arc<Ending>) -> T,
    check: impl Fn(&MemoryDisk, T, &str),
) {
    for operations in 0.. {
        let mut ended = false;
        for end in [End::Before, End::After] {
            let disk = prepared();
            let ending = Ending::after(&disk, operations, end);
            let answer = work(ending.clone());
            ended |= ending.ended();
            check(&disk, answer, &format!("ended {end:?} operation {operations}"));
        }
        if !ended {
            assert!(operations > 1, "{operations} operations cannot be all");
            return;
        }
    }
}

/// The disk is opened and then loses power (and the reverse), as often as recovery itself is interrupted: the answer is
/// the same each time. None: there is no manifest.
fn recovered(disk: &MemoryDisk, context: &str) -> Option<ManifestState> {
    let open =
        |disk: &MemoryDisk| block_on(open(Arc::new(disk.clone()))).unwrap_or_else(|err| panic!("{context}: {err}"));
    let first = open(disk).map(|manifest| manifest.state().clone());
    disk.lose_power();
    let second = open(disk).map(|manifest| manifest.state().clone());
    assert_eq!(first, second, "{context}: what was read at open is gone after a power loss");
    at_every_end(
        || disk.clone(),
        |ending| {
            let _ = block_on(super::tests::open(ending));
        },
        |disk, (), inner| {
            let again = open(disk).map(|manifest| manifest.state().clone());
            assert_eq!(again, first, "{context}, recovery {inner}");
        },
    );
    first
}

#[test]
fn every_crash_leaves_the_old_or_the_new_state() {
    const EDITS: u64 = 8;
    for power_loss in [false, true] {
        at_every_end(
            MemoryDisk::default,
            |ending| {
                block_on(async {
                    // How far it got, as far as it was told.
                    let Ok(mut manifest) = create(ending).await else { return None };
                    for number in 1..=EDITS {
                        if manifest.commit(&edit(number)).await.is_err() {
                            return Some(number - 1);
                        }
                    }
                    Some(EDITS)
                })
            },
            |disk, acknowledged, context| {
                if power_loss {
                    disk.lose_power();
                }
                match (recovered(disk, context), acknowledged) {
                    (None, None) => {
                        block_on(create(Arc::new(disk.clone()))).unwrap();
                        assert_eq!(recovered(disk, context), Some(state(0)), "{context}: created again");
                    }
                    (found, None) => assert_eq!(found, Some(state(0)), "{context}"),
                    (found, Some(acknowledged)) => {
                        let found = found.unwrap_or_else(|| panic!("{context}: the manifest is gone"));
                        let possible = [state(acknowledged), state(acknowledged + 1)];
                        assert!(possible.contains(&found), "{context}: {acknowledged} acknowledged, {found:?}");
                    }
                }
            },
        );
    }
}

#[test]
fn after_an_error_nothing_happens_before_the_disk_was_read_again() {
    let mut found = BTreeSet::new();
    at_every_end(
        || {
            let disk = MemoryDisk::default();
            block_on(create(Arc::new(disk.clone()))).unwrap();
            disk
        },
        |ending| {
            block_on(async {
                let mut manifest = open(ending).await.ok()??;
                manifest.commit(&edit(1)).await.err().map(|_| manifest)
            })
        },
        |disk, uncertain, context| {
            let Some(mut manifest) = uncertain else { return };
            assert!(manifest.is_uncertain(), "{context}");
            assert_eq!(block_on(manifest.commit(&edit(1))).unwrap_err().code(), "unknown_outcome");
            assert_eq!(block_on(manifest.remove_orphans(BTreeSet::new)).unwrap_err().code(), "unknown_outcome");
            manifest.disk = Arc::new(disk.clone());
            block_on(manifest.settle()).unwrap();
            let version = manifest.state().version;
            assert!([state(0), state(1)].contains(manifest.state()), "{context}");
            disk.lose_power();
            assert_eq!(recovered(disk, context).as_ref(), Some(manifest.state()), "{context}");
            for number in version..=5 {
                block_on(manifest.commit(&edit(number))).unwrap();
            }
            assert_eq!(recovered(disk, context), Some(state(5)), "{context}");
        },
    );
    // Both outcomes must occur, else the test looks at one only.
    for end in [End::Before, End::After] {
        let disk = MemoryDisk::default();
        block_on(create(Arc::new(disk.clone()))).unwrap();
        // Of the seven operations of an atomic write the last but one is the rename.
        let mut manifest = block_on(open(Arc::new(disk.clone()))).unwrap().unwrap();
        manifest.disk = Ending::after(&disk, 4, end);
        block_on(manifest.commit(&edit(1))).unwrap_err();
        manifest.disk = Arc::new(disk.clone());
        block_on(manifest.settle()).unwrap();
        found.insert(manifest.state().version);
    }
    assert_eq!(found, BTreeSet::from([1, 2]));
}

#[test]
fn a_commit_that_is_dropped_half_way_leaves_the_manifest_uncertain() {
    let disk = MemoryDisk::default();
    let mut manifest = block_on(create(Arc::new(disk.clone()))).unwrap();
    manifest.disk = Arc::new(Hanging(disk));
    {
        let edit = edit(1);
        assert!(manifest.commit(&edit).now_or_never().is_none());
    }
    assert!(manifest.is_uncertain());
}

#[test]
fn damage_and_gaps_are_named() {
    let written = || {
        let disk = MemoryDisk::default();
        block_on(async {
            let mut manifest = create(Arc::new(disk.clone())).await.unwrap();
            for number in 1..=5 {
                manifest.commit(&edit(number)).await.unwrap();
            }
        });
        disk
    };
    let names: Vec<String> = written().files().into_iter().map(|(name, _)| name).collect();
    let (checkpoint, delta, last) = (checkpoint_path(DIR, 4), delta_path(DIR, 5), delta_path(DIR, 6));
    assert_eq!(names, [checkpoint.clone(), delta.clone(), last, current_path(DIR)], "older files are gone");
    for name in &names {
        let len = written().files().iter().find(|(other, _)| other == name).unwrap().1;
        for at in 0..len {
            let disk = written();
            disk.damage(name, |bytes| bytes[at] ^= 1);
            let err = block_on(open(Arc::new(disk))).expect_err("damage was not noticed");
            assert!(matches!(&err, Error::Damaged { file, .. } if file == name), "byte {at} of {name}: {err}");
        }
        for len in 0..len {
            let disk = written();
            disk.damage(name, |bytes| bytes.truncate(len));
            let err = block_on(open(Arc::new(disk))).expect_err("a missing end was not noticed");
            assert!(matches!(&err, Error::Damaged { file, .. } if file == name), "{len} bytes of {name}: {err}");
        }
    }
    for missing in [checkpoint, delta, current_path(DIR)] {
        let disk = written();
        block_on(disk.remove_file(&missing)).unwrap();
        let err = block_on(open(Arc::new(disk))).expect_err("a missing file was not noticed");
        assert!(matches!(&err, Error::Damaged { file, .. } if *file == missing), "without {missing}: {err}");
    }
}

#[test]
fn a_change_that_does_not_fit_is_refused_and_changes_nothing() {
    let disk = MemoryDisk::default();
    let mut manifest = block_on(create(Arc::new(disk.clone()))).unwrap();
    (1..=3).for_each(|number| block_on(manifest.commit(&edit(number))).unwrap());
    let edit = |add: &[u64], remove: &[u64], past: Option<Past>| {
        let remove = remove.iter().copied().map(FileId).collect();
        Action::Edit(Edit { add: add.iter().copied().map(file).collect(), remove, past, oldest: None })
    };
    let before = disk.files();
    let newer = Action::Edit(Edit { oldest: Some(Sequence(4)), ..Edit::default() });
    for misfit in [
        newer,
        edit(&[], &[1], None),          // removed by the third flush
        edit(&[3], &[], None),          // is there
        edit(&[4, 4], &[], None),       // twice
        edit(&[4], &[], Some(past(2))), // goes back
        edit(&[], &[2, 2], None),       // removed twice
    ] {
        let err = block_on(manifest.commit(&misfit)).unwrap_err();
        assert_eq!(err.code(), "mismatch", "{misfit:?}");
        assert!(!manifest.is_uncertain());
    }
    assert_eq!((manifest.state(), disk.files()), (&state(3), before));
    // A snapshot replaces all files at once; an empty flush says where it stands.
    block_on(manifest.commit(&edit(&[4, 5], &[2, 3], Some(past(9))))).unwrap();
    block_on(manifest.commit(&edit(&[], &[], Some(past(9))))).unwrap();
    assert_eq!(manifest.state().file_ids(), BTreeSet::from([FileId(4), FileId(5)]));
    assert_eq!(block_on(create(Arc::new(disk))).unwrap_err().code(), "mismatch");
}

#[test]
fn edits_and_checkpoints_are_told() {
    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);
    impl Listen for Heard {
        fn on_event(&self, _: NodeId, event: &Event) {
            let version = event.field("version").unwrap();
            self.0.lock().unwrap().push(format!("{} {version}", event.name()));
        }
    }
    let heard = Arc::new(Heard::default());
    let events = Events::heard_by(NodeId(1), heard.clone());
    block_on(async {
        let disk = Arc::new(MemoryDisk::default());
        let mut manifest =
            Manifest::create(disk, DIR, RegionId(5), REPLICA, past(0), &options(), events).await.unwrap();
        for number in 1..=3 {
            manifest.commit(&edit(number)).await.unwrap();
        }
    });
    let expected = [
        "ManifestCheckpointed 1",
        "ManifestEdited 2",
        "ManifestEdited 3",
        "ManifestEdited 4",
        "ManifestCheckpointed 4",
    ];
    assert_eq!(*heard.0.lock().unwrap(), expected);
}
