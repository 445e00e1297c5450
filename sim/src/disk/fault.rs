//! What can be aimed at a disk: rules by kind of file and operation, and a hook at every operation.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Kinds of files, told by their path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The node's log: whatever is in a folder `log`.
    Log,
    /// Manifests, their checkpoints and `CURRENT`.
    Manifest,
    /// Sorted tables.
    Sst,
    /// Everything else: identity, lock, temporary places.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 4] = [Class::Log, Class::Manifest, Class::Sst, Class::Other];

    /// The class of the file, or folder, at `path`. A temporary name counts as what it becomes.
    pub fn of(path: &str) -> Class {
        let path = path.strip_suffix(".tmp").unwrap_or(path);
        let parts = || path.split('/');
        if parts().any(|part| part == "log") {
            Class::Log
        } else if parts().any(|part| part.to_ascii_lowercase().starts_with("manifest") || part == "CURRENT") {
            Class::Manifest
        } else if path.ends_with(".sst") || path.ends_with(".parquet") || parts().any(|part| part == "sst") {
            Class::Sst
        } else {
            Class::Other
        }
    }

    /// As scenarios write it.
    pub fn name(self) -> &'static str {
        match self {
            Class::Log => "log",
            Class::Manifest => "manifest",
            Class::Sst => "sst",
            Class::Other => "other",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Reading content.
    Read,
    /// Writing content.
    Write,
    /// Cutting or extending a file.
    SetLen,
    /// Making the content of a file durable.
    Sync,
    /// Making the names in a folder durable.
    SyncDir,
    /// Making a new file or folder.
    Create,
    /// Giving a file another name.
    Rename,
    /// Removing a file or folder.
    Remove,
    /// Opening what exists, listing, asking for a length.
    Look,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 9] =
        [Op::Read, Op::Write, Op::SetLen, Op::Sync, Op::SyncDir, Op::Create, Op::Rename, Op::Remove, Op::Look];

    /// As scenarios write it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::SetLen => "set_len",
            Op::Sync => "fsync",
            Op::SyncDir => "dir_sync",
            Op::Create => "create",
            Op::Rename => "rename",
            Op::Remove => "remove",
            Op::Look => "look",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault aimed at operations of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// On which files; all, if none.
    pub class: Option<Class>,
    /// At which operation.
    pub op: Op,
    /// The first one that is hit, counted from 1 from the moment the rule is armed.
    pub nth: u64,
    /// How many are hit.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

/// What a rule does to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails. A failed write wrote a drawn part of its bytes; a failed sync loses the pages it was to write; a failed
    /// change of names was made or not, as drawn.
    Fail(Failure),
    /// What it reads is, from now on, another byte in the middle: the medium has rotted there.
    Rot,
    /// It does not answer for so long; without a duration until the disk's stalls are lifted.
    Stall(Option<Duration>),
}

/// With which error an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// EIO: the medium refuses.
    Io,
    /// ENOSPC: no room.
    Full,
}

impl Failure {
    pub(super) fn os_error(self) -> i32 {
        match self {
            Failure::Io => libc::EIO,
            Failure::Full => libc::ENOSPC,
        }
    }
}

/// Names a rule that was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(pub(super) u64);

/// One operation, at the moment before it has its effect or after.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The node whose disk it is.
    pub node: u64,
    /// On which kind of file.
    pub class: Class,
    /// What is done.
    pub op: Op,
    /// The how manieth of this kind on this kind of file, counted from 1 over the whole run.
    pub nth: u64,
    /// On which file; for a rename the new name.
    pub path: &'a str,
    /// Before or after its effect.
    pub moment: Moment,
}

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing has happened yet.
    Before,
    /// It has had its effect, the caller has no answer yet.
    After,
}

/// What a hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Go on.
    Live,
    /// The process ends here: this operation and all later ones of the running system never return and have no effect.
    /// The hook's owner sees to it that [`crash`](super::SimDisk::crash) or
    /// [`power_loss`](super::SimDisk::power_loss) and the end of the tasks follow.
    Die,
}

/// Called at every operation. It may call the disk's synchronous functions; it must not wait.
pub type Hook = Arc<dyn Fn(&Site<'_>) -> Fate + Send + Sync>;

/// The rules that are armed, and how often each was met.
#[derive(Default)]
pub(super) struct Rules {
    armed: Vec<Armed>,
    next: u64,
}

struct Armed {
    id: RuleId,
    rule: Rule,
    /// Operations of its kind since it was armed.
    met: u64,
    /// How many of them it changed.
    fired: u64,
    active: bool,
}

impl Rules {
    pub(super) fn arm(&mut self, rule: Rule) -> RuleId {
        let id = RuleId(self.next);
        self.next += 1;
        self.armed.push(Armed { id, rule, met: 0, fired: 0, active: true });
        id
    }

    pub(super) fn disarm(&mut self, id: RuleId) {
        for armed in self.armed.iter_mut().filter(|armed| armed.id == id) {
            armed.active = false;
        }
    }

    pub(super) fn disarm_all(&mut self) {
        for armed in &mut self.armed {
            armed.active = false;
        }
    }

    pub(super) fn fired(&self, id: RuleId) -> u64 {
        self.armed.iter().find(|armed| armed.id == id).map_or(0, |armed| armed.fired)
    }

    /// What the rules do to an operation: the first failure and the first stall.
    pub(super) fn meet(&mut self, class: Class, op: Op) -> Met {
        let mut met = Met::default();
        for armed in self.armed.iter_mut().filter(|armed| armed.active) {
            let rule = &armed.rule;
            if rule.op != op || rule.class.is_some_and(|wanted| wanted != class) {
                continue;
            }
            armed.met += 1;
            if armed.met < rule.nth || armed.met - rule.nth >= rule.times {
                continue;
            }
            armed.fired += 1;
            match rule.effect {
                Effect::Fail(failure) => met.failure = met.failure.or(Some(failure)),
                Effect::Rot => met.rot = true,
                Effect::Stall(duration) => met.stall = met.stall.or(Some(duration)),
            }
        }
        met
    }
}

/// See [`Rules::meet`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Met {
    pub(super) failure: Option<Failure>,
    pub(super) stall: Option<Option<Duration>>,
    pub(super) rot: bool,
}

/// What faults really did, so that a scenario can tell whether its faults mattered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Bytes of unsynced writes that power losses left off the medium.
    pub bytes_lost: u64,
    /// Sectors lost of writes of which other sectors survived.
    pub sectors_torn: u64,
    /// Created, renamed and removed names that power losses undid.
    pub entries_lost: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Operations that were refused for want of room.
    pub full: u64,
    /// Reads that the medium failed.
    pub reads_failed: u64,
    /// Writes and length changes that the medium failed.
    pub writes_failed: u64,
    /// Syncs of files and folders that the medium failed.
    pub syncs_failed: u64,
    /// Changes of names that the medium failed.
    pub names_failed: u64,
    /// Bytes that are others than were written.
    pub rotted: u64,
    /// Operations that had to wait for a stall to end.
    pub stalls: u64,
    /// Syncs of files that succeeded.
    pub syncs: u64,
    /// Syncs of folders that succeeded.
    pub dir_syncs: u64,
    /// Bytes written to the page cache.
    pub bytes_written: u64,
    /// Bytes that syncs brought onto the medium.
    pub bytes_synced: u64,
}

impl Effects {
    /// Operations that the medium failed.
    pub fn io_errors(&self) -> u64 {
        self.reads_failed + self.writes_failed + self.syncs_failed + self.names_failed
    }

    /// An operation of the kind that `failed` counts was refused with `error`.
    pub(super) fn refuse(&mut self, error: i32, failed: fn(&mut Effects) -> &mut u64) {
        *if error == libc::ENOSPC { &mut self.full } else { failed(self) } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_the_kind_of_file() {
        for (path, class) in [
            ("log/00000001", Class::Log),
            ("log", Class::Log),
            ("region/4294967296/manifest/00000007", Class::Manifest),
            ("region/4294967296/manifest", Class::Manifest),
            ("r1/MANIFEST-3.tmp", Class::Manifest),
            ("r1/CURRENT.tmp", Class::Manifest),
            ("r1/sst/17.parquet", Class::Sst),
            ("r1/17.sst", Class::Sst),
            ("identity", Class::Other),
            ("catalog/x", Class::Other),
        ] {
            assert_eq!(Class::of(path), class, "{path}");
        }
    }

    #[test]
    fn a_rule_hits_from_its_nth_operation_as_often_as_it_says() {
        let mut rules = Rules::default();
        let fail = Effect::Fail(Failure::Io);
        let id = rules.arm(Rule { class: Some(Class::Log), op: Op::Sync, nth: 2, times: 2, effect: fail });
        let hits: Vec<bool> = (0..5).map(|_| rules.meet(Class::Log, Op::Sync).failure.is_some()).collect();
        assert_eq!(hits, [false, true, true, false, false]);
        assert_eq!(rules.fired(id), 2);
        assert!(rules.meet(Class::Sst, Op::Sync).failure.is_none());
    }
}
