//! The durable list of a replica's files, and of everything that belongs to them.
//!
//! A change is one numbered *delta* file; every so many of them a *checkpoint* holds the whole state, and `CURRENT` names
//! it. Each file is written whole under a temporary name, synced, renamed, and the folder synced; each carries a checksum
//! of its content. Rules:
//!
//! * **One past.** All but the list of files is as of one log entry ([`Past`]) and changes together with it.
//! * **Ambiguous writes.** After an error nobody knows whether the delta is there. The manifest is then *uncertain*: it
//!   refuses everything until [`Manifest::settle`] has read the disk again, and files that the delta names must be kept.
//! * **Believed is durable.** What is read at open was perhaps renamed by a process that was killed before it could sync
//!   the folder. The folder is synced before it is read, else a later power loss could take back what was acted upon.
//! * **Checkpoint order.** Checkpoint (durable), `CURRENT` (durable), only then older deltas and checkpoints go.
//!
//! Not here: what the side state means, when to flush, removal of orphans. Expiry will be a
//! further field of [`Edit`]; ALTER changes the definition in [`Past`] already.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::sst::FileMeta;
use super::{FileId, create_dir_durably, damaged, list_if_there, sst};
use crate::disk::{Disk, read_whole, remove_if_there, write_atomically};
use crate::error::{Error, Invalid, Result};
use crate::event::{Event, Events};
use crate::options::Options;
use crate::types::{LogId, RegionId, ReplicaId, Sequence};

/// What a replica was at one entry of its log: all that its files do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The last entry of which everything is in files; none before the first flush.
    pub flushed: Option<LogId>,
    /// Sequence of the newest row as of that entry.
    pub sequence: Sequence,
    /// Schema and options of the table as of that entry, encoded by the region.
    pub definition: Bytes,
    /// Everything else as of that entry (membership, sessions, ..), encoded by the region.
    pub side: Bytes,
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestState {
    /// The region that this is a replica of.
    pub region: RegionId,
    /// The replica.
    pub replica: ReplicaId,
    /// What the files are together with.
    pub past: Past,
    /// The files that have the rows.
    pub files: BTreeMap<FileId, FileMeta>,
    /// Greater than every file that was ever in `files`.
    pub next_file: FileId,
    /// The oldest sequence that can be read: what older reads would see is not in the files any more.
    pub oldest: Sequence,
    /// Counts the changes; the state that a replica was created with is number 1.
    pub version: u64,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Files come and go: a flush, a compaction, an installed snapshot.
    Edit(Edit),
}

/// Files that come and go, together with the past that they make durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Files to add, content and name durable.
    pub add: Vec<FileMeta>,
    /// Files to take out. They may be deleted when the edit is durable and nobody reads them.
    pub remove: Vec<FileId>,
    /// What the files are together with from now on; none: as before.
    pub past: Option<Past>,
    /// The oldest sequence that can be read from now on; none: as before.
    pub oldest: Option<Sequence>,
}

/// Why a change does not fit the state: files that are not there or are already, or a past that would go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit(String);

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ManifestState {
    fn new(region: RegionId, replica: ReplicaId, past: Past) -> ManifestState {
        ManifestState {
            region,
            replica,
            past,
            files: BTreeMap::new(),
            next_file: FileId(1),
            oldest: Sequence(0),
            version: 1,
        }
    }

    /// The state after `action`. If that does not fit, nothing changes.
    pub fn apply(&mut self, action: &Action) -> Result<(), Misfit> {
        let Action::Edit(edit) = action;
        let mut files = self.files.clone();
        for id in &edit.remove {
            if files.remove(id).is_none() {
                return Err(Misfit(format!("file {id} is to be removed and is not there")));
            }
        }
        let mut next_file = self.next_file;
        for file in &edit.add {
            if files.insert(file.id, file.clone()).is_some() {
                return Err(Misfit(format!("file {} is to be added and is there", file.id)));
            }
            next_file = next_file.max(FileId(file.id.0 + 1));
        }
        if let Some(past) = &edit.past {
            let index = |past: &Past| past.flushed.map(|flushed| flushed.index);
            if index(past) < index(&self.past) || past.sequence < self.past.sequence {
                let (from, to) = (&self.past, past);
                return Err(Misfit(format!(
                    "it goes back from {:?}, {} to {:?}, {}",
                    from.flushed, from.sequence, to.flushed, to.sequence
                )));
            }
        }
        let sequence = edit.past.as_ref().unwrap_or(&self.past).sequence;
        if let Some(oldest) = edit.oldest.filter(|oldest| *oldest > sequence) {
            return Err(Misfit(format!("{oldest} is to be the oldest sequence, and {sequence} is the newest")));
        }
        self.past = edit.past.clone().unwrap_or_else(|| self.past.clone());
        self.oldest = edit.oldest.unwrap_or(self.oldest);
        self.files = files;
        self.next_file = next_file;
        self.version += 1;
        Ok(())
    }

    /// The ids of its files.
    pub fn file_ids(&self) -> BTreeSet<FileId> {
        self.files.keys().copied().collect()
    }
}

/// The manifest of one replica, open.
#[derive(Debug)]
pub struct Manifest {
    disk: Arc<dyn Disk>,
    events: Events,
    /// The replica's folder.
    dir: String,
    checkpoint_edits: u64,
    state: ManifestState,
    /// The last version that is in a checkpoint.
    checkpointed: u64,
    uncertain: bool,
}

impl Manifest {
    /// Makes the folders of a replica and its first state, durably. What an interrupted attempt left is replaced; a
    /// manifest that is there is an error.
    pub async fn create(
        disk: Arc<dyn Disk>,
        dir: &str,
        region: RegionId,
        replica: ReplicaId,
        past: Past,
        options: &Options,
        events: Events,
    ) -> Result<Manifest> {
        if let Some(state) = read(&*disk, dir).await? {
            let found = state.state.replica;
            return Err(Error::invalid(Invalid::Mismatch, format!("{dir} holds the manifest of replica {found}")));
        }
        create_dir_durably(&*disk, &folder(dir)).await?;
        create_dir_durably(&*disk, &sst::folder(dir)).await?;
        let mut manifest = Manifest {
            disk,
            events,
            dir: dir.to_string(),
            checkpoint_edits: options.manifest_checkpoint_edits,
            state: ManifestState::new(region, replica, past),
            checkpointed: 0,
            uncertain: false,
        };
        manifest.checkpoint().await?;
        Ok(manifest)
    }

    /// Reads the manifest of the replica in `dir`. None: the replica was never completely created.
    pub async fn open(disk: Arc<dyn Disk>, dir: &str, options: &Options, events: Events) -> Result<Option<Manifest>> {
        let Some(read) = read(&*disk, dir).await? else { return Ok(None) };
        let manifest = Manifest {
            disk,
            events,
            dir: dir.to_string(),
            checkpoint_edits: options.manifest_checkpoint_edits,
            state: read.state,
            checkpointed: read.checkpointed,
            uncertain: false,
        };
        manifest.remove_leftovers(&read.leftovers).await;
        Ok(Some(manifest))
    }

    /// What it says. While it is uncertain: what it said before the change of which nobody knows.
    pub fn state(&self) -> &ManifestState {
        &self.state
    }

    /// Whether a change was begun of which nobody knows whether it is durable. See [`Manifest::settle`].
    pub fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Makes `action` durable. A misfit is [`Invalid::Mismatch`], and nothing changed. After any other error the manifest
    /// is uncertain; so it is if the future is dropped before its end.
    pub async fn commit(&mut self, action: &Action) -> Result<()> {
        self.refuse_if_uncertain()?;
        let mut next = self.state.clone();
        if let Err(misfit) = next.apply(action) {
            return Err(Error::invalid(Invalid::Mismatch, format!("manifest of {}: {misfit}", self.state.replica)));
        }
        let path = delta_path(&self.dir, next.version);
        let delta = encode(DELTA, &Delta { version: next.version, action: action.clone() });
        self.uncertain = true;
        write(&*self.disk, &path, delta).await?;
        self.uncertain = false;
        self.state = next;
        let (replica, version) = (self.state.replica, self.state.version);
        self.events.emit(|| Event::ManifestEdited { replica, version });
        if version - self.checkpointed >= self.checkpoint_edits
            && let Err(err) = self.checkpoint().await
        {
            // The change is durable without it. The next one tries again.
            tracing::warn!(node = self.events.node().0, %replica, version, %err, "the manifest has no new checkpoint");
        }
        Ok(())
    }

    /// Reads the disk again after a change whose outcome is unknown; afterwards [`Manifest::state`] tells it, durably.
    pub async fn settle(&mut self) -> Result<()> {
        let Some(read) = read(&*self.disk, &self.dir).await? else {
            return Err(damaged(&current_path(&self.dir), "it is missing"));
        };
        self.state = read.state;
        self.checkpointed = read.checkpointed;
        self.remove_leftovers(&read.leftovers).await;
        self.uncertain = false;
        Ok(())
    }

    /// Removes SSTs that neither the manifest nor `needed` names; answers how many. To be called at open, and after
    /// failures. `needed` is asked after the folder was read, so that a file that is begun meanwhile is none of those that
    /// were found. Files that cannot be removed stay for the next time.
    pub async fn remove_orphans(&self, needed: impl FnOnce() -> BTreeSet<FileId>) -> Result<usize> {
        self.refuse_if_uncertain()?;
        let folder = sst::folder(&self.dir);
        let names = list_if_there(&*self.disk, &folder).await?;
        let orphans = sst::orphans(&names, &self.state.file_ids(), &needed());
        for name in &orphans {
            let path = format!("{folder}/{name}");
            remove_if_there(&*self.disk, &path).await.map_err(|err| Error::io(&err, format_args!("remove {path}")))?;
        }
        Ok(orphans.len())
    }

    fn refuse_if_uncertain(&self) -> Result<()> {
        if !self.uncertain {
            return Ok(());
        }
        let message = format!("a change of the manifest of {} may or may not be durable", self.state.replica);
        Err(Error::Unknown { message })
    }

    async fn checkpoint(&mut self) -> Result<()> {
        let version = self.state.version;
        let checkpoint = encode(CHECKPOINT, &self.state);
        let current = encode(CURRENT, &Current { version, checksum: crc32fast::hash(&checkpoint) });
        write(&*self.disk, &checkpoint_path(&self.dir, version), checkpoint).await?;
        write(&*self.disk, &current_path(&self.dir), current).await?;
        self.checkpointed = version;
        let replica = self.state.replica;
        self.events.emit(|| Event::ManifestCheckpointed { replica, version });
        let names = list_if_there(&*self.disk, &folder(&self.dir)).await?;
        self.remove_leftovers(&leftovers(&names, version)).await;
        Ok(())
    }

    /// They are not read any more; what cannot be removed now is tried again at the next checkpoint or open.
    async fn remove_leftovers(&self, names: &[String]) {
        for name in names {
            let path = format!("{}/{name}", folder(&self.dir));
            if let Err(err) = remove_if_there(&*self.disk, &path).await {
                tracing::warn!(node = self.events.node().0, path, %err, "a file of the manifest cannot be removed");
            }
        }
    }
}

/// The folder of a replica's manifest.
pub fn folder(dir: &str) -> String {
    format!("{dir}/manifest")
}

/// What the disk has.
struct Read {
    state: ManifestState,
    checkpointed: u64,
    /// Names that are not needed.
    leftovers: Vec<String>,
}

async fn read(disk: &dyn Disk, dir: &str) -> Result<Option<Read>> {
    let folder = folder(dir);
    match disk.sync_dir(&folder).await {
        Ok(()) => {}
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(Error::io(&err, format_args!("sync folder {folder}"))),
    }
    let names = list_if_there(disk, &folder).await?;
    let current_path = current_path(dir);
    if !names.iter().any(|name| name == CURRENT_NAME) {
        // The creation of the replica ends with CURRENT; before it there is at most the first checkpoint.
        let only = format!("{FIRST:020}.checkpoint");
        return match names.iter().find(|name| !name.ends_with(".tmp") && **name != only) {
            None => Ok(None),
            Some(name) => Err(damaged(&current_path, format_args!("it is missing, and there is {name}"))),
        };
    }
    let current: Current = decode(CURRENT, &current_path, &read_file(disk, &current_path).await?)?;
    let path = checkpoint_path(dir, current.version);
    let bytes = read_file(disk, &path).await?;
    if crc32fast::hash(&bytes) != current.checksum {
        return Err(damaged(&path, "it is not the checkpoint that CURRENT names"));
    }
    let mut state: ManifestState = decode(CHECKPOINT, &path, &bytes)?;
    if state.version != current.version {
        return Err(damaged(&path, format_args!("it is the checkpoint of version {}", state.version)));
    }
    let mut deltas: Vec<u64> = names.iter().filter_map(|name| numbered(name, "delta")).collect();
    deltas.sort_unstable();
    for version in deltas.into_iter().filter(|version| *version > current.version) {
        let path = delta_path(dir, version);
        if version != state.version + 1 {
            let missing = delta_path(dir, state.version + 1);
            return Err(damaged(&missing, format_args!("it is missing, and there is {path}")));
        }
        let delta: Delta = decode(DELTA, &path, &read_file(disk, &path).await?)?;
        if delta.version != version {
            return Err(damaged(&path, format_args!("it is the change to version {}", delta.version)));
        }
        state.apply(&delta.action).map_err(|misfit| damaged(&path, misfit))?;
    }
    let leftovers = leftovers(&names, current.version);
    Ok(Some(Read { state, checkpointed: current.version, leftovers }))
}

/// Of the names in the folder, those that are not read when `CURRENT` names the checkpoint `version`. Names that the
/// manifest does not give are left alone.
fn leftovers(names: &[String], version: u64) -> Vec<String> {
    let is_leftover = |name: &&String| {
        let temporary = name.strip_suffix(".tmp").is_some_and(|name| {
            name == CURRENT_NAME || numbered(name, "delta").is_some() || numbered(name, "checkpoint").is_some()
        });
        temporary
            || numbered(name, "delta").is_some_and(|number| number <= version)
            || numbered(name, "checkpoint").is_some_and(|number| number != version)
    };
    names.iter().filter(is_leftover).cloned().collect()
}

const FIRST: u64 = 1;
const CURRENT_NAME: &str = "CURRENT";

fn current_path(dir: &str) -> String {
    format!("{dir}/manifest/{CURRENT_NAME}")
}

fn checkpoint_path(dir: &str, version: u64) -> String {
    format!("{dir}/manifest/{version:020}.checkpoint")
}

fn delta_path(dir: &str, version: u64) -> String {
    format!("{dir}/manifest/{version:020}.delta")
}

fn numbered(name: &str, kind: &str) -> Option<u64> {
    let number = name.strip_suffix(kind)?.strip_suffix('.')?;
    (number.len() == 20).then(|| number.parse().ok())?
}

/// Content of `CURRENT`.
#[derive(Debug, Serialize, Deserialize)]
struct Current {
    /// Of the checkpoint.
    version: u64,
    /// CRC-32 of the checkpoint's file.
    checksum: u32,
}

/// Content of a delta.
#[derive(Debug, Serialize, Deserialize)]
struct Delta {
    /// The version that it leads to.
    version: u64,
    action: Action,
}

/// Each file: what it is and its layout (4 bytes), CRC-32 of the rest (little endian), the rest in postcard form.
type Magic = [u8; 4];
const CURRENT: Magic = *b"SBM2";
const CHECKPOINT: Magic = *b"SBK2";
const DELTA: Magic = *b"SBD2";

fn encode<T: Serialize>(magic: Magic, content: &T) -> Bytes {
    let content = postcard::to_allocvec(content).expect("plain data has a postcard form");
    let mut bytes = BytesMut::with_capacity(8 + content.len());
    bytes.put_slice(&magic);
    bytes.put_u32_le(crc32fast::hash(&content));
    bytes.put_slice(&content);
    bytes.freeze()
}

fn decode<T: DeserializeOwned>(magic: Magic, path: &str, bytes: &Bytes) -> Result<T> {
    let Some((found, rest)) = bytes.split_first_chunk::<4>() else { return Err(damaged(path, "it has no header")) };
    if *found != magic {
        return Err(damaged(path, format_args!("it starts with {found:?}, not {magic:?}")));
    }
    let Some((checksum, content)) = rest.split_first_chunk::<4>() else {
        return Err(damaged(path, "it has no checksum"));
    };
    if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
        return Err(damaged(path, "its checksum is wrong"));
    }
    match postcard::take_from_bytes(content) {
        Ok((content, [])) => Ok(content),
        Ok((_, rest)) => Err(damaged(path, format_args!("{} bytes too many", rest.len()))),
        Err(err) => Err(damaged(path, err)),
    }
}

async fn read_file(disk: &dyn Disk, path: &str) -> Result<Bytes> {
    match read_whole(disk, path).await {
        Ok(bytes) => Ok(bytes),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Err(damaged(path, "it is missing")),
        Err(err) => Err(Error::io(&err, format_args!("read {path}"))),
    }
}

async fn write(disk: &dyn Disk, path: &str, bytes: Bytes) -> Result<()> {
    write_atomically(disk, path, bytes).await.map_err(|err| Error::io(&err, format_args!("write {path}")))
}

#[cfg(test)]
mod tests;
