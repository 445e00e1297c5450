//! What a disk holds: files and folders, each once as the running system sees it (the page cache) and once as a power
//! failure would leave it, and in between the changes that no sync has made durable. Pure: no time, no faults.
//!
//! **Content.** Writes and length changes of a file wait in order in `pending`. A sync applies those that came before it
//! to the durable content. A power loss keeps, of what waits:
//! - of each sector (512 bytes) the state after some of the writes to it, in their order: a later write of a sector was
//!   made on top of the earlier ones, so it cannot survive without them; different sectors are independent;
//! - of the length changes a prefix, since a file system logs them in order. Data beyond the length that survived is
//!   gone; length without data reads as zeros. Where a cut did not survive, nothing written over the cut part did.
//!
//! **Names.** Creating, renaming and removing changes entries of folders; each such change is atomic (also a rename
//! between folders) and waits in `changes`. A sync of a folder makes the changes of its entries durable, with the earlier
//! ones that they build on. A power loss keeps any subset in which every change finds those before it that touched the
//! same name. Syncing a file does not make its name durable, syncing a folder not the content of its files. What is
//! in a folder whose own name did not survive is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::content::Content;
use crate::draw::{Draws, below, uniform};

/// What is written to the medium as a whole or not at all.
pub(super) const SECTOR: u64 = 512;

/// The folder that holds everything.
const ROOT: Id = 0;

/// A file or folder, whatever its name; never reused.
pub(super) type Id = u64;

/// What of the unsynced changes a power loss keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: exactly what was synced is left.
    Nothing,
    /// Everything, as if it had been synced in time.
    Everything,
    /// What the draws say, per file and per name.
    Drawn,
}

/// What a power loss did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Bytes of unsynced writes that are not on the medium.
    pub bytes: u64,
    /// Sectors lost of writes of which other sectors survived.
    pub sectors_torn: u64,
    /// Created, renamed and removed names that are as they were before.
    pub entries: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    File(Id),
    Folder(Id),
}

/// One file.
#[derive(Clone, Debug)]
struct FileData {
    /// Its latest path, for names of draws and reports.
    path: String,
    cache: Content,
    durable: Content,
    pending: VecDeque<Pending>,
    /// How many changes were ever made.
    changed: u64,
    /// Handles of the running system.
    opens: u32,
    /// Whether the running system has a name for it.
    linked: bool,
    /// Whether bytes of it are others than were written.
    rotten: bool,
}

#[derive(Clone, Debug)]
struct Pending {
    /// Counts the changes of the file.
    number: u64,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Bytes },
    SetLen(u64),
}

#[derive(Clone, Debug, Default)]
struct Folder {
    names: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
}

/// A change of names that survives as a whole or not at all.
#[derive(Clone, Debug)]
struct Renaming {
    number: u64,
    /// What was done, for names of draws and reports.
    what: String,
    steps: Vec<Step>,
}

/// `name` in `folder` means `entry` from now on.
#[derive(Clone, Debug)]
struct Step {
    folder: Id,
    name: String,
    entry: Option<Entry>,
}

/// See the module comment.
#[derive(Clone, Debug)]
pub(super) struct Store {
    files: BTreeMap<Id, FileData>,
    folders: BTreeMap<Id, Folder>,
    changes: Vec<Renaming>,
    next_id: Id,
    next_change: u64,
    /// Length of all files that have a name or are open.
    used: u64,
}

impl Store {
    pub(super) fn new() -> Store {
        Store {
            files: BTreeMap::new(),
            folders: BTreeMap::from([(ROOT, Folder::default())]),
            changes: Vec::new(),
            next_id: ROOT + 1,
            next_change: 0,
            used: 0,
        }
    }

    /// Length of all files that have a name or are open.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Every file that has a name: path, length, unsynced bytes.
    pub(super) fn files(&self) -> Vec<(String, u64, u64)> {
        let mut files = Vec::new();
        self.walk(ROOT, "", &mut |path, entry| {
            if let Entry::File(id) = entry {
                let file = &self.files[&id];
                files.push((path.to_string(), file.cache.len(), file.unsynced()));
            }
        });
        files
    }

    /// The path of every file of which bytes are others than were written.
    pub(super) fn rotten(&self) -> BTreeSet<String> {
        let mut rotten = BTreeSet::new();
        self.walk(ROOT, "", &mut |path, entry| {
            if let Entry::File(id) = entry
                && self.files[&id].rotten
            {
                rotten.insert(path.to_string());
            }
        });
        rotten
    }

    /// The path of every folder but the store itself.
    pub(super) fn folders(&self) -> Vec<String> {
        let mut folders = Vec::new();
        self.walk(ROOT, "", &mut |path, entry| {
            if let Entry::Folder(_) = entry {
                folders.push(path.to_string());
            }
        });
        folders
    }

    /// Unsynced bytes of all files, and how many changes of names wait.
    pub(super) fn unsynced(&self) -> (u64, u64) {
        (self.files.values().map(FileData::unsynced).sum(), self.changes.len() as u64)
    }

    // Names.

    pub(super) fn create(&mut self, path: &str) -> io::Result<Id> {
        let (folder, name) = self.place(path)?;
        if self.folders[&folder].names.contains_key(name) {
            return Err(os_error(libc::EEXIST));
        }
        let id = self.new_id();
        self.files.insert(id, FileData::new(path));
        self.change(format!("create {path}"), vec![Step { folder, name: name.into(), entry: Some(Entry::File(id)) }]);
        Ok(id)
    }

    pub(super) fn file(&self, path: &str) -> io::Result<Id> {
        match self.entry(path)? {
            Entry::File(id) => Ok(id),
            Entry::Folder(_) => Err(os_error(libc::EISDIR)),
        }
    }

    pub(super) fn list(&self, path: &str) -> io::Result<Vec<String>> {
        Ok(self.folders[&self.folder(path)?].names.keys().cloned().collect())
    }

    pub(super) fn create_dir(&mut self, path: &str) -> io::Result<()> {
        let mut at = ROOT;
        let mut rest = path;
        while !rest.is_empty() {
            let (name, after) = rest.split_once('/').unwrap_or((rest, ""));
            check_name(name)?;
            at = match self.folders[&at].names.get(name) {
                Some(Entry::Folder(id)) => *id,
                Some(Entry::File(_)) if after.is_empty() => return Err(os_error(libc::EEXIST)),
                Some(Entry::File(_)) => return Err(os_error(libc::ENOTDIR)),
                None => {
                    let id = self.new_id();
                    self.folders.insert(id, Folder::default());
                    let made = &path[..path.len() - rest.len() + name.len()];
                    let step = Step { folder: at, name: name.into(), entry: Some(Entry::Folder(id)) };
                    self.change(format!("create {made}"), vec![step]);
                    id
                }
            };
            rest = after;
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (from_folder, from_name) = self.place(from)?;
        let moved = *self.folders[&from_folder].names.get(from_name).ok_or_else(|| os_error(libc::ENOENT))?;
        let (to_folder, to_name) = self.place(to)?;
        let replaced = self.folders[&to_folder].names.get(to_name).copied();
        let is_within = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        match (moved, replaced) {
            (moved, Some(replaced)) if moved == replaced => return Ok(()),
            _ if is_within(from, to) => return Err(os_error(libc::ENOTEMPTY)),
            (Entry::File(_), Some(Entry::Folder(_))) => return Err(os_error(libc::EISDIR)),
            (Entry::Folder(_), Some(Entry::File(_))) => return Err(os_error(libc::ENOTDIR)),
            (Entry::Folder(_), _) if is_within(to, from) => return Err(os_error(libc::EINVAL)),
            (Entry::Folder(_), Some(Entry::Folder(id))) if !self.folders[&id].names.is_empty() => {
                return Err(os_error(libc::ENOTEMPTY));
            }
            _ => {}
        }
        let steps = vec![
            Step { folder: from_folder, name: from_name.into(), entry: None },
            Step { folder: to_folder, name: to_name.into(), entry: Some(moved) },
        ];
        self.change(format!("rename {from} {to}"), steps);
        match moved {
            Entry::File(id) => self.files.get_mut(&id).expect("it has a name").path = to.to_string(),
            Entry::Folder(id) => {
                let mut inside = Vec::new();
                self.walk(id, to, &mut |path, entry| {
                    if let Entry::File(id) = entry {
                        inside.push((id, path.to_string()));
                    }
                });
                for (id, path) in inside {
                    self.files.get_mut(&id).expect("it has a name").path = path;
                }
            }
        }
        if replaced.is_some() {
            self.collect();
        }
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &str) -> io::Result<()> {
        self.file(path)?;
        self.remove(path)
    }

    pub(super) fn remove_dir(&mut self, path: &str) -> io::Result<()> {
        if !self.folders[&self.folder(path)?].names.is_empty() {
            return Err(os_error(libc::ENOTEMPTY));
        }
        self.remove(path)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        self.change(format!("remove {path}"), vec![Step { folder, name: name.into(), entry: None }]);
        self.collect();
        Ok(())
    }

    /// The folder `path` and a mark: a sync that starts now covers the changes before it.
    pub(super) fn begin_sync_dir(&self, path: &str) -> io::Result<(Id, u64)> {
        Ok((self.folder(path)?, self.next_change))
    }

    /// Makes durable what changed in `folder` before `mark`, with the earlier changes of the same names elsewhere.
    pub(super) fn sync_dir(&mut self, folder: Id, mark: u64) {
        let mut keys: BTreeSet<(Id, String)> = BTreeSet::new();
        let mut chosen: BTreeSet<u64> = BTreeSet::new();
        for change in self.changes.iter().rev().filter(|change| change.number < mark) {
            let builds_on = |step: &Step| step.folder == folder || keys.contains(&(step.folder, step.name.clone()));
            if change.steps.iter().any(builds_on) {
                chosen.insert(change.number);
                keys.extend(change.steps.iter().map(|step| (step.folder, step.name.clone())));
            }
        }
        let (durable, waiting) =
            std::mem::take(&mut self.changes).into_iter().partition(|change| chosen.contains(&change.number));
        self.changes = waiting;
        self.make_durable(durable);
        self.collect();
    }

    fn make_durable(&mut self, changes: Vec<Renaming>) {
        for step in changes.into_iter().flat_map(|change| change.steps) {
            // A folder that is gone in both views has no names to keep.
            if let Some(folder) = self.folders.get_mut(&step.folder) {
                put(&mut folder.durable, step.name, step.entry);
            }
        }
    }

    fn change(&mut self, what: String, steps: Vec<Step>) {
        for step in &steps {
            let folder = self.folders.get_mut(&step.folder).expect("it was just looked up");
            if let Some(Entry::File(id)) = put(&mut folder.names, step.name.clone(), step.entry) {
                self.set_linked(id, false);
            }
            if let Some(Entry::File(id)) = step.entry {
                self.set_linked(id, true);
            }
        }
        self.changes.push(Renaming { number: self.next_change, what, steps });
        self.next_change += 1;
    }

    fn set_linked(&mut self, id: Id, linked: bool) {
        self.recount(id, |file| file.linked = linked);
    }

    // Handles.

    pub(super) fn opened(&mut self, id: Id) {
        self.recount(id, |file| file.opens += 1);
    }

    pub(super) fn closed(&mut self, id: Id) {
        self.recount(id, |file| file.opens = file.opens.saturating_sub(1));
        if self.files.get(&id).is_some_and(|file| !file.is_held()) {
            self.collect();
        }
    }

    /// Length of the file of an open handle.
    pub(super) fn len(&self, id: Id) -> u64 {
        self.files[&id].cache.len()
    }

    // Content.

    pub(super) fn read(&self, id: Id, offset: u64, len: usize) -> Vec<u8> {
        self.files[&id].cache.read(offset, len)
    }

    pub(super) fn write(&mut self, id: Id, offset: u64, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.recount(id, |file| {
            file.cache.write(offset, &bytes);
            file.wait(Change::Write { offset, bytes });
        });
    }

    /// The medium rots: the byte in the middle of what stands there is another one from now on. False: nothing stands there.
    pub(super) fn rot(&mut self, id: Id, offset: u64, len: usize) -> bool {
        let file = self.files.get_mut(&id).expect("an open file is there");
        let end = file.cache.len().min(offset.saturating_add(len as u64));
        if offset >= end {
            return false;
        }
        file.rotten = true;
        let at = offset + (end - offset) / 2;
        for content in [&mut file.cache, &mut file.durable] {
            if at < content.len() {
                let byte = content.read(at, 1)[0] ^ 0x10;
                content.write(at, &[byte]);
            }
        }
        true
    }

    pub(super) fn set_len(&mut self, id: Id, len: u64) {
        self.recount(id, |file| {
            if len != file.cache.len() {
                file.cache.set_len(len);
                file.wait(Change::SetLen(len));
            }
        });
    }

    /// A mark (a sync that starts now covers the changes before it) and how many bytes it has to write.
    pub(super) fn begin_sync(&self, id: Id) -> (u64, u64) {
        let file = &self.files[&id];
        (file.changed, file.unsynced())
    }

    /// Makes the changes before `mark` durable.
    pub(super) fn sync(&mut self, id: Id, mark: u64) {
        let file = self.files.get_mut(&id).expect("it is open");
        while file.pending.front().is_some_and(|pending| pending.number < mark) {
            match file.pending.pop_front().expect("just seen").change {
                Change::Write { offset, bytes } => file.durable.write(offset, &bytes),
                Change::SetLen(len) => file.durable.set_len(len),
            }
        }
    }

    /// What a failed sync does (Linux): the pages count as clean, and no later sync writes them. The running system
    /// still reads the new content; after a power loss it is gone.
    pub(super) fn fail_sync(&mut self, id: Id, mark: u64) {
        let file = self.files.get_mut(&id).expect("it is open");
        while file.pending.front().is_some_and(|pending| pending.number < mark) {
            file.pending.pop_front();
        }
    }

    // The end of a process and of power.

    /// The process is gone, the page cache stays.
    pub(super) fn crash(&mut self) {
        for file in self.files.values_mut() {
            file.opens = 0;
        }
        self.collect();
        self.recount_all();
    }

    /// The power is gone; `name` is the prefix of the draws that say what stays. What was decided is put down there.
    pub(super) fn lose(&mut self, keep: Keep, draws: &Draws, name: &str) -> Loss {
        let mut loss = Loss::default();
        self.lose_names(keep, draws, name, &mut loss);
        for file in self.files.values_mut() {
            file.lose(keep, draws, name, &mut loss);
            file.opens = 0;
        }
        for folder in self.folders.values_mut() {
            folder.names = folder.durable.clone();
        }
        self.relink();
        loss
    }

    fn lose_names(&mut self, keep: Keep, draws: &Draws, name: &str, loss: &mut Loss) {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return;
        }
        let style = Style::draw(keep, draws, format_args!("{name}/names"));
        let cut = draws.range(format_args!("{name}/names/cut"), 0..changes.len() as u64 + 1) as usize;
        let total = changes.len();
        let mut lost_keys: BTreeSet<(Id, String)> = BTreeSet::new();
        let mut kept = Vec::new();
        for (at, change) in changes.into_iter().enumerate() {
            let survives = match style {
                Style::Nothing => false,
                Style::Everything => true,
                Style::Prefix => at < cut,
                Style::Subset | Style::Sectors => draws.chance(format_args!("{name}/names/{}", change.what), 0.5),
            };
            let broken = change.steps.iter().any(|step| lost_keys.contains(&(step.folder, step.name.clone())));
            if survives && !broken {
                kept.push(change);
            } else {
                lost_keys.extend(change.steps.into_iter().map(|step| (step.folder, step.name)));
            }
        }
        loss.entries += (total - kept.len()) as u64;
        let list: Vec<&str> = kept.iter().map(|change| change.what.as_str()).collect();
        draws
            .decide(format_args!("{name}/names"), format_args!("kept {} of {total} [{}]", list.len(), list.join(", ")));
        self.make_durable(kept);
    }

    /// After the names were replaced: which files have one, which are left at all.
    fn relink(&mut self) {
        let mut named = BTreeMap::new();
        self.walk(ROOT, "", &mut |path, entry| {
            if let Entry::File(id) = entry {
                named.insert(id, path.to_string());
            }
        });
        for (id, file) in &mut self.files {
            file.linked = false;
            if let Some(path) = named.remove(id) {
                file.linked = true;
                file.path = path;
            }
        }
        self.collect();
        self.recount_all();
    }

    // Helpers.

    fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Changes a file and keeps `used` right.
    fn recount(&mut self, id: Id, change: impl FnOnce(&mut FileData)) {
        if let Some(file) = self.files.get_mut(&id) {
            let before = file.charge();
            change(file);
            self.used = self.used - before + file.charge();
        }
    }

    fn recount_all(&mut self) {
        self.used = self.files.values().map(FileData::charge).sum();
    }

    fn entry(&self, path: &str) -> io::Result<Entry> {
        let mut at = Entry::Folder(ROOT);
        if path.is_empty() {
            return Ok(at);
        }
        for name in path.split('/') {
            check_name(name)?;
            let Entry::Folder(folder) = at else { return Err(os_error(libc::ENOTDIR)) };
            at = *self.folders[&folder].names.get(name).ok_or_else(|| os_error(libc::ENOENT))?;
        }
        Ok(at)
    }

    fn folder(&self, path: &str) -> io::Result<Id> {
        match self.entry(path)? {
            Entry::Folder(id) => Ok(id),
            Entry::File(_) => Err(os_error(libc::ENOTDIR)),
        }
    }

    /// The folder that `path` is in, which must exist, and the name within it.
    fn place<'a>(&self, path: &'a str) -> io::Result<(Id, &'a str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        check_name(name)?;
        Ok((self.folder(folder)?, name))
    }

    fn walk(&self, folder: Id, path: &str, visit: &mut dyn FnMut(&str, Entry)) {
        for (name, &entry) in &self.folders[&folder].names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            visit(&path, entry);
            if let Entry::Folder(id) = entry {
                self.walk(id, &path, visit);
            }
        }
    }

    /// Forgets what neither the running system nor a power failure could come back to.
    fn collect(&mut self) {
        let mut reached: BTreeSet<Entry> = BTreeSet::new();
        let mut next = vec![Entry::Folder(ROOT)];
        while let Some(entry) = next.pop() {
            let Entry::Folder(id) = entry else {
                reached.insert(entry);
                continue;
            };
            if reached.insert(entry) {
                let folder = &self.folders[&id];
                next.extend(folder.names.values().chain(folder.durable.values()).copied());
                let steps = self.changes.iter().flat_map(|change| &change.steps);
                next.extend(steps.filter(|step| step.folder == id).filter_map(|step| step.entry));
            }
        }
        self.folders.retain(|id, _| reached.contains(&Entry::Folder(*id)));
        self.files.retain(|id, file| file.opens > 0 || reached.contains(&Entry::File(*id)));
        let folders = &self.folders;
        self.changes.retain(|change| change.steps.iter().any(|step| folders.contains_key(&step.folder)));
    }
}

impl FileData {
    fn new(path: &str) -> FileData {
        FileData {
            path: path.to_string(),
            cache: Content::default(),
            durable: Content::default(),
            pending: VecDeque::new(),
            changed: 0,
            opens: 0,
            linked: false,
            rotten: false,
        }
    }

    fn is_held(&self) -> bool {
        self.linked || self.opens > 0
    }

    /// The space that it takes.
    fn charge(&self) -> u64 {
        if self.is_held() { self.cache.len() } else { 0 }
    }

    fn unsynced(&self) -> u64 {
        self.pending
            .iter()
            .map(|pending| match &pending.change {
                Change::Write { bytes, .. } => bytes.len() as u64,
                Change::SetLen(_) => 0,
            })
            .sum()
    }

    fn wait(&mut self, change: Change) {
        self.pending.push_back(Pending { number: self.changed, change });
        self.changed += 1;
    }

    /// Replaces the content by what survives; see the module comment.
    fn lose(&mut self, keep: Keep, draws: &Draws, name: &str, loss: &mut Loss) {
        let pending: Vec<Pending> = std::mem::take(&mut self.pending).into();
        if !pending.is_empty() {
            let name = format!("{name}/files/{}", self.path);
            let survivors = Survivors::draw(&pending, self.durable.len(), keep, draws, &name);
            let lost = survivors.apply(&pending, &mut self.durable);
            loss.bytes += lost.bytes;
            loss.sectors_torn += lost.sectors_torn;
            draws.decide(
                &name,
                format_args!(
                    "lost {} of {} unsynced bytes, {} sectors torn, length {} of {}",
                    lost.bytes,
                    pending.iter().map(|pending| pending.change.bytes()).sum::<u64>(),
                    lost.sectors_torn,
                    self.durable.len(),
                    self.cache.len()
                ),
            );
        }
        self.cache = self.durable.clone();
    }
}

impl Change {
    fn bytes(&self) -> u64 {
        match self {
            Change::Write { bytes, .. } => bytes.len() as u64,
            Change::SetLen(_) => 0,
        }
    }

    /// The length of the file after the change, where it was `len` before.
    fn len_after(&self, len: u64) -> u64 {
        match self {
            Change::Write { offset, bytes } => len.max(offset + bytes.len() as u64),
            Change::SetLen(len) => *len,
        }
    }
}

/// How one power loss treats one file, or the names: mixtures of these are rarer in an even draw than they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Nothing,
    Everything,
    /// The first changes, in their order; of a write at the cut the first sectors.
    Prefix,
    /// Each change is kept or not.
    Subset,
    /// Each sector of each write is kept or not.
    Sectors,
}

impl Style {
    fn draw(keep: Keep, draws: &Draws, name: impl fmt::Display) -> Style {
        use Style::{Everything, Nothing, Prefix, Sectors, Subset};
        match keep {
            Keep::Nothing => Nothing,
            Keep::Everything => Everything,
            Keep::Drawn => {
                let styles = [Nothing, Nothing, Everything, Prefix, Prefix, Prefix, Subset, Subset, Sectors, Sectors];
                *draws.pick(format_args!("{name}/style"), &styles).unwrap_or(&Nothing)
            }
        }
    }
}

/// What of the waiting changes of one file is on the medium.
struct Survivors {
    /// By sector: how many of the changes, counted from the first, the sector has seen. Missing: none.
    sectors: BTreeMap<u64, usize>,
    /// How many of the changes the length has seen.
    lengths: usize,
}

impl Survivors {
    fn draw(pending: &[Pending], durable_len: u64, keep: Keep, draws: &Draws, name: &str) -> Survivors {
        let style = Style::draw(keep, draws, name);
        if style == Style::Nothing {
            return Survivors { sectors: BTreeMap::new(), lengths: 0 };
        }
        let cut = draws.range(format_args!("{name}/cut"), 0..pending.len() as u64 + 1) as usize;
        let lengths = match style {
            Style::Nothing => 0,
            Style::Everything => pending.len(),
            Style::Prefix if cut < pending.len() => cut + usize::from(draws.chance(format_args!("{name}/grown"), 0.5)),
            Style::Prefix => cut,
            Style::Subset | Style::Sectors => {
                draws.range(format_args!("{name}/lengths"), 0..pending.len() as u64 + 1) as usize
            }
        };
        // Cuts that did not survive: no write over the cut part did, from the number of the cut on.
        let mut undone: Vec<(usize, u64)> = Vec::new();
        let mut len = durable_len;
        for (at, pending) in pending.iter().enumerate() {
            let after = pending.change.len_after(len);
            if after < len && at >= lengths {
                undone.push((at, after / SECTOR));
            }
            len = after;
        }
        let mut sectors: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, pending) in pending.iter().enumerate() {
            let Change::Write { offset, bytes } = &pending.change else { continue };
            let touched = sectors_of(*offset, bytes.len());
            let mut stream = draws.rng(format_args!("{name}/{}", pending.number));
            let whole = uniform(&mut stream) < 0.5;
            let share = uniform(&mut stream);
            let head = touched.start + below(&mut stream, touched.end - touched.start + 1);
            for sector in touched {
                let survives = match style {
                    Style::Nothing => false,
                    Style::Everything => true,
                    Style::Prefix => at < cut || (at == cut && sector < head),
                    Style::Subset => whole,
                    Style::Sectors => uniform(&mut stream) < share,
                };
                if survives && !undone.iter().any(|(cut, from)| at > *cut && sector >= *from) {
                    sectors.insert(sector, at + 1);
                }
            }
        }
        Survivors { sectors, lengths }
    }

    /// Brings `content`, the durable one before the changes, to what survived.
    fn apply(&self, pending: &[Pending], content: &mut Content) -> Loss {
        let mut loss = Loss::default();
        let kept_changes = &pending[..self.lengths];
        let len = kept_changes.iter().fold(content.len(), |len, pending| pending.change.len_after(len));
        for (at, pending) in pending.iter().enumerate() {
            match &pending.change {
                Change::Write { offset, bytes } => {
                    let (mut kept, mut lost) = (0, 0);
                    for sector in sectors_of(*offset, bytes.len()) {
                        let piece = piece(sector, *offset, bytes.len());
                        let start = offset + piece.start as u64;
                        // Data that no length covers is as lost as data that was not written.
                        let covered = at < self.lengths || start < len;
                        if covered && at < self.sectors.get(&sector).copied().unwrap_or(0) {
                            content.write(start, &bytes[piece]);
                            kept += 1;
                        } else {
                            loss.bytes += piece.len() as u64;
                            lost += 1;
                        }
                    }
                    if kept > 0 {
                        loss.sectors_torn += lost;
                    }
                }
                Change::SetLen(cut) if at < self.lengths && *cut < content.len() => content.set_len(*cut),
                Change::SetLen(_) => {}
            }
        }
        content.set_len(len);
        loss
    }
}

fn sectors_of(offset: u64, len: usize) -> Range<u64> {
    offset / SECTOR..(offset + len as u64).div_ceil(SECTOR)
}

/// The part of a write of `len` bytes at `offset` that lies in `sector`, counted from the start of the write.
fn piece(sector: u64, offset: u64, len: usize) -> Range<usize> {
    let from = (sector * SECTOR).max(offset) - offset;
    let to = ((sector + 1) * SECTOR).min(offset + len as u64) - offset;
    from as usize..to as usize
}

fn put(names: &mut BTreeMap<String, Entry>, name: String, entry: Option<Entry>) -> Option<Entry> {
    match entry {
        Some(entry) => names.insert(name, entry),
        None => names.remove(&name),
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if matches!(name, "" | "." | "..") {
        return Err(os_error(libc::EINVAL));
    }
    Ok(())
}

/// The same errors that the operating system gives, with the same kinds and texts.
pub(super) fn os_error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
