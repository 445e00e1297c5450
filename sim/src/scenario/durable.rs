//! Durable steps: the moments at which something on a disk comes to last. A rule can wait for one and strike exactly before
//! or after it: `before rename of manifest delta on n2 in flights/*`.
//!
//! A file is told by its path, a temporary one by the name that it will get. Which steps each kind of file takes is a table
//! here; a test holds it against what the engine does. Not here: counting, which is a rule's.

use std::fmt;
use std::str::FromStr;

use engine::types::{NodeId, RegionId, ReplicaId};

use super::fault::words;
use super::period::as_text;
use super::position::one_of;
use super::target::{Regions, Target};
use crate::disk::{Moment, Op, Site};

words! {
    /// Files and folders by what the engine keeps in them.
    FileKind("a kind of file") {
        /// A segment of the log.
        LogSegment = "log segment",
        /// The folder of the segments.
        LogFolder = "log folder",
        /// An edit of a manifest.
        ManifestDelta = "manifest delta",
        /// All edits so far in one file.
        ManifestCheckpoint = "manifest checkpoint",
        /// Which checkpoint counts.
        Current = "current",
        /// The folder of a manifest.
        ManifestFolder = "manifest folder",
        /// A file of rows; its renaming is the installation of one that was received.
        Sst = "sst",
        /// The folder of the files of rows.
        SstFolder = "sst folder",
        /// A file of a snapshot that is being received.
        IncomingFile = "incoming file",
        /// The folder that a snapshot is received into.
        IncomingFolder = "incoming folder",
        /// The catalog, as one node has it.
        Catalog = "catalog",
        /// The folder of one replica.
        ReplicaFolder = "replica folder",
        /// The folder of all replicas.
        ReplicasFolder = "replicas folder",
        /// Who the node is.
        Identity = "identity",
        /// How often the node has started.
        Incarnation = "incarnation",
        /// Replicas that must not come back.
        DroppedList = "dropped list",
        /// The folder of everything.
        StoreFolder = "store folder",
    }
    /// What comes to last.
    StepKind("a durable step") {
        /// The content of a file, or the names in a folder.
        Fsync = "fsync",
        /// The name of a file, as far as it does before its folder is synced.
        Rename = "rename",
        /// That it is gone, likewise.
        Remove = "remove",
    }
    /// On which side of the step.
    When("a side of a step") {
        /// Nothing of it has happened.
        Before = "before",
        /// It has happened and nobody has heard of it.
        After = "after",
    }
}

impl FileKind {
    /// The steps that there are for such a file.
    pub fn steps(self) -> &'static [StepKind] {
        use StepKind::{Fsync, Remove, Rename};
        match self {
            FileKind::ManifestDelta | FileKind::ManifestCheckpoint | FileKind::Sst => &[Fsync, Rename, Remove],
            FileKind::Current | FileKind::Catalog => &[Fsync, Rename, Remove],
            FileKind::Identity | FileKind::Incarnation | FileKind::DroppedList => &[Fsync, Rename],
            FileKind::LogSegment | FileKind::IncomingFile => &[Fsync, Remove],
            FileKind::IncomingFolder | FileKind::ReplicaFolder => &[Fsync, Remove],
            FileKind::ManifestFolder | FileKind::SstFolder => &[Fsync, Remove],
            FileKind::LogFolder | FileKind::ReplicasFolder | FileKind::StoreFolder => &[Fsync],
        }
    }

    /// What is at `path`, and whose it is; none: nothing that the engine keeps.
    fn of(path: &str) -> Option<(FileKind, Option<ReplicaId>)> {
        let path = path.strip_suffix(".tmp").unwrap_or(path);
        let parts: Vec<&str> = path.split('/').collect();
        let (kind, replica) = match parts.as_slice() {
            [""] => (FileKind::StoreFolder, None),
            ["identity"] => (FileKind::Identity, None),
            ["incarnation"] => (FileKind::Incarnation, None),
            ["dropped"] => (FileKind::DroppedList, None),
            ["log"] => (FileKind::LogFolder, None),
            ["log", _] => (FileKind::LogSegment, None),
            ["replicas"] => (FileKind::ReplicasFolder, None),
            ["replicas", replica] => (FileKind::ReplicaFolder, Some(replica)),
            ["replicas", replica, "manifest"] => (FileKind::ManifestFolder, Some(replica)),
            ["replicas", replica, "manifest", "CURRENT"] => (FileKind::Current, Some(replica)),
            ["replicas", replica, "manifest", name] if name.ends_with(".checkpoint") => {
                (FileKind::ManifestCheckpoint, Some(replica))
            }
            ["replicas", replica, "manifest", name] if name.ends_with(".delta") => {
                (FileKind::ManifestDelta, Some(replica))
            }
            ["replicas", replica, "sst"] => (FileKind::SstFolder, Some(replica)),
            ["replicas", replica, "sst", _] => (FileKind::Sst, Some(replica)),
            ["replicas", replica, name] if name.starts_with("incoming-") => (FileKind::IncomingFolder, Some(replica)),
            ["replicas", replica, folder, _] if folder.starts_with("incoming-") => {
                (FileKind::IncomingFile, Some(replica))
            }
            ["replicas", replica, "catalog" | "catalog.received"] => (FileKind::Catalog, Some(replica)),
            _ => return None,
        };
        let replica = match replica {
            None => None,
            Some(number) => Some(ReplicaId(number.parse().ok()?)),
        };
        Some((kind, replica))
    }

    /// Whether each is one replica's, and so of one region.
    pub fn is_of_a_replica(self) -> bool {
        use FileKind::{DroppedList, Identity, Incarnation, LogFolder, LogSegment, ReplicasFolder, StoreFolder};
        !matches!(self, LogSegment | LogFolder | ReplicasFolder | StoreFolder | Identity | Incarnation | DroppedList)
    }
}

/// A durable step that happens now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Of what.
    pub file: FileKind,
    /// Which.
    pub step: StepKind,
    /// Whether it has happened.
    pub when: When,
    /// Whose file it is.
    pub replica: Option<ReplicaId>,
}

impl Seen {
    /// What the operation of a disk is to those who speak of durable steps; most are none.
    pub fn of(site: &Site<'_>) -> Option<Seen> {
        let step = match site.op {
            Op::Sync | Op::SyncDir => StepKind::Fsync,
            Op::Rename => StepKind::Rename,
            // What is left of an attempt goes before the next one: most often there is nothing.
            Op::Remove if site.path.ends_with(".tmp") => return None,
            Op::Remove => StepKind::Remove,
            _ => return None,
        };
        let when = match site.moment {
            Moment::Before => When::Before,
            Moment::After => When::After,
        };
        let (file, replica) = FileKind::of(site.path)?;
        Some(Seen { file, step, when, replica })
    }
}

/// Durable steps of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Before or after.
    pub when: When,
    /// Which step.
    pub step: StepKind,
    /// Of what.
    pub file: FileKind,
    /// Only those of this node.
    pub node: Option<u32>,
    /// Only those of replicas of these regions.
    pub regions: Option<Regions>,
}

impl Durable {
    /// Whether `seen`, on `node` and of a replica of `region`, is one of these.
    pub fn matches(
        &self,
        node: NodeId,
        seen: &Seen,
        region: Option<RegionId>,
        table: &dyn Fn(u32) -> Option<String>,
    ) -> bool {
        (self.file, self.step, self.when) == (seen.file, seen.step, seen.when)
            && self.node.is_none_or(|wanted| u64::from(wanted) == node.0)
            && self
                .regions
                .as_ref()
                .is_none_or(|regions| region.is_some_and(|region| regions.contain(&region.to_string(), table, None)))
    }

    /// That there is such a step, and that its file can be told by region if it is to be.
    pub fn check(&self) -> Result<(), String> {
        let Durable { file, step, .. } = self;
        if !file.steps().contains(step) {
            let steps: Vec<String> = file.steps().iter().map(ToString::to_string).collect();
            return Err(format!("expected a step that there is of a {file} ({}), found \"{step}\"", steps.join(", ")));
        }
        if self.regions.is_some() && !file.is_of_a_replica() {
            return Err(format!("expected no region: a {file} is not of one region"));
        }
        Ok(())
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Durable { when, step, file, node, regions } = self;
        write!(f, "{when} {step} of {file}")?;
        node.map_or(Ok(()), |node| write!(f, " on n{node}"))?;
        regions.as_ref().map_or(Ok(()), |regions| write!(f, " in {regions}"))
    }
}

impl FromStr for Durable {
    type Err = String;

    fn from_str(text: &str) -> Result<Durable, String> {
        let expected = || format!("expected \"before|after STEP of FILE [on nN] [in REGIONS]\", found \"{text}\"");
        let (text, regions) = match text.split_once(" in ") {
            Some((text, regions)) => (text, Some(regions.parse()?)),
            None => (text, None),
        };
        let (text, node) = match text.split_once(" on ") {
            Some((text, node)) => match node.parse()? {
                Target::Node(node) => (text, Some(node)),
                other => return Err(format!("expected a node like \"n1\", found \"{other}\"")),
            },
            None => (text, None),
        };
        let (head, file) = text.split_once(" of ").ok_or_else(expected)?;
        let (when, step) = head.split_once(' ').ok_or_else(expected)?;
        let durable = Durable { when: when.parse()?, step: step.parse()?, file: file.parse()?, node, regions };
        durable.check().map(|()| durable)
    }
}

as_text!(Durable);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Class;

    fn seen(op: Op, path: &str) -> Option<String> {
        let site = Site { node: 1, class: Class::of(path), op, nth: 1, path, moment: Moment::After };
        let Seen { file, step, when, replica } = Seen::of(&site)?;
        assert!(file.steps().contains(&step), "{path}: {step} of {file} is in no table");
        assert_eq!(file.is_of_a_replica(), replica.is_some());
        Some(format!("{when} {step} of {file}{}", replica.map_or(String::new(), |replica| format!(" of {replica}"))))
    }

    #[test]
    fn a_path_tells_the_file_and_an_operation_the_step() {
        for (op, path, told) in [
            (Op::Sync, "log/00000001.seg", "after fsync of log segment"),
            (Op::Remove, "log/00000001.seg", "after remove of log segment"),
            (Op::SyncDir, "log", "after fsync of log folder"),
            (Op::Sync, "replicas/7/manifest/00000000000000000003.delta.tmp", "after fsync of manifest delta of r7"),
            (Op::Rename, "replicas/7/manifest/00000000000000000003.delta", "after rename of manifest delta of r7"),
            (Op::Rename, "replicas/7/manifest/CURRENT", "after rename of current of r7"),
            (Op::SyncDir, "replicas/7/manifest", "after fsync of manifest folder of r7"),
            (Op::Rename, "replicas/7/sst/12.parquet", "after rename of sst of r7"),
            (Op::Sync, "replicas/7/incoming-3/12", "after fsync of incoming file of r7"),
            (Op::SyncDir, "replicas/7/incoming-3", "after fsync of incoming folder of r7"),
            (Op::Remove, "replicas/7", "after remove of replica folder of r7"),
            (Op::Rename, "dropped", "after rename of dropped list"),
            (Op::SyncDir, "", "after fsync of store folder"),
        ] {
            assert_eq!(seen(op, path).as_deref(), Some(told), "{path}");
        }
        // Nothing that lasts: a look, a write, the attempt to remove what an attempt left.
        assert_eq!(seen(Op::Look, "log"), None);
        assert_eq!(seen(Op::Write, "log/00000001.seg"), None);
        assert_eq!(seen(Op::Remove, "replicas/7/manifest/CURRENT.tmp"), None);
        assert_eq!(seen(Op::Sync, "elsewhere"), None);
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for text in [
            "before fsync of log segment",
            "after rename of manifest delta on n2",
            "before remove of sst in flights/*",
            "after fsync of incoming folder on n3 in flights/1",
        ] {
            assert_eq!(text.parse::<Durable>().map(|durable| durable.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_wrong_one_is_told_what_there_is() {
        for (text, hint) in [
            ("before fsync", "before|after STEP of FILE"),
            ("befor fsync of sst", "did you mean \"before\"?"),
            ("before sync of sst", "did you mean \"fsync\"?"),
            ("before fsync of manifest detla", "did you mean \"manifest delta\"?"),
            ("after rename of log segment", "(fsync, remove)"),
            ("after fsync of log segment in flights/*", "not of one region"),
            ("after fsync of sst on leader of flights/1", "a node like"),
        ] {
            let message = text.parse::<Durable>().unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn it_is_of_its_node_and_its_regions_only() {
        let durable: Durable = "after fsync of sst on n2 in flights/*".parse().unwrap();
        let tables = |id: u32| (id == 7).then(|| "flights".to_string());
        let region = |table: u32| Some(RegionId::new(engine::types::TableId(table), 1));
        let seen = |when| Seen { file: FileKind::Sst, step: StepKind::Fsync, when, replica: Some(ReplicaId(5)) };
        assert!(durable.matches(NodeId(2), &seen(When::After), region(7), &tables));
        assert!(!durable.matches(NodeId(2), &seen(When::Before), region(7), &tables));
        assert!(!durable.matches(NodeId(1), &seen(When::After), region(7), &tables));
        assert!(!durable.matches(NodeId(2), &seen(When::After), region(8), &tables));
        assert!(!durable.matches(NodeId(2), &seen(When::After), None, &tables));
    }
}
