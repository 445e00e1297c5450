//! The faults that a scenario can name. What each does to the cluster is written where it is carried out.

use engine::server::message::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::period::{Offset, Period, as_text};
use super::position::one_of;
use super::target::{Region, Target};
use crate::run::report::Effect;

/// One fault (or its end), ready to be carried out but for the choice of whom it hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The machine loses power: what was not synced may be gone, peers hear nothing.
    PowerLoss(Death),
    /// The process dies, the machine stays: the page cache stays, peers see closed connections.
    Crash(Death),
    /// Starts nodes that are down; kills those that run first (a crash).
    Restart(Target),
    /// Stops nodes where they are, without killing them.
    Pause(Stay),
    /// Lets paused nodes go on.
    Resume(Target),
    /// Asks a leader to hand over.
    TransferLeader {
        /// Of this region.
        region: Region,
        /// To the replica on this node; none: a follower, drawn.
        to: Option<Target>,
    },
    /// Cuts nodes off from all others.
    Isolate(Cutoff),
    /// Cuts two groups of nodes off from each other.
    Partition {
        /// One side.
        from: Vec<Target>,
        /// The other side.
        to: Vec<Target>,
        /// `out`: only what `from` sends is held; `in`: only what it should get.
        direction: Direction,
        /// Healed after this and when it has held something, whichever is later; none: by `heal` or by the calm at the end.
        #[serde(rename = "for")]
        lasts: Option<Period>,
    },
    /// Ends all partitions.
    Heal,
    /// Loses frames of a kind: the connection dies instead.
    Cut {
        /// Which requests.
        kind: FrameKind,
        /// The request, or its answer.
        side: Side,
        /// From the n-th on.
        nth: u64,
        /// So many.
        times: u64,
        /// Only requests that come from here.
        from: Option<Target>,
        /// Only requests that go here.
        to: Option<Target>,
    },
    /// Makes a disk fail or wait.
    Disk(DiskFault),
    /// Sets a node's wall clock wrong.
    Clock {
        /// Whose.
        node: Target,
        /// By so much.
        offset: Offset,
        /// And further by so many millionths of the time that passes.
        drift_ppm: i64,
    },
    /// Options that nodes get at their next start.
    Option(BTreeMap<String, toml::Value>),
}

/// Nodes that die.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Death {
    /// Who.
    pub target: Target,
    /// When they come back; none: by `restart` or by the calm at the end.
    pub restart_after: Option<Period>,
}

/// Nodes that stand still.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stay {
    /// Who.
    pub target: Target,
    /// For how long; none: until `resume` or the calm at the end.
    #[serde(rename = "for")]
    pub lasts: Option<Period>,
}

/// Nodes that are cut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cutoff {
    /// Who.
    pub target: Target,
    /// What is held, as the target sees it.
    pub direction: Direction,
    /// For how long, and until it has held something; none: until `heal` or the calm at the end.
    #[serde(rename = "for")]
    pub lasts: Option<Period>,
}

/// A fault of a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFault {
    /// Whose disk.
    pub node: Target,
    /// Which files.
    pub files: FileClass,
    /// Which operations.
    pub op: DiskOp,
    /// From the n-th on.
    pub nth: u64,
    /// So many; none: all until it ends.
    pub times: Option<u64>,
    /// What happens to them.
    pub effect: DiskEffect,
    /// How long a slow operation takes.
    pub delay: Option<Period>,
    /// Ends after this, or when it has met its first operation, whichever is later; none: by the calm at the end.
    #[serde(rename = "for")]
    pub lasts: Option<Period>,
}

/// A word out of a closed set, read and printed by name.
macro_rules! words {
    ($($(#[$doc:meta])* $type:ident ($what:literal) { $($(#[$word_doc:meta])* $name:ident = $text:literal),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $type { $($(#[$word_doc])* $name),* }

        impl $type {
            /// The words.
            pub const WORDS: &'static [&'static str] = &[$($text),*];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($type::$name => $text),* })
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<$type, String> {
                match text {
                    $($text => Ok($type::$name),)*
                    _ => Err(one_of($what, text, $type::WORDS)),
                }
            }
        }

        as_text!($type);
    )*};
}

pub(super) use words;

words! {
    /// Which way nothing passes.
    Direction("a direction") {
        /// Neither way.
        Both = "both",
        /// What should arrive is held.
        In = "in",
        /// What is sent is held.
        Out = "out",
    }
    /// Which of the two frames of a call.
    Side("a side of a call") {
        /// What is asked.
        Request = "request",
        /// What is answered.
        Answer = "answer",
    }
    /// Files by what they are for.
    FileClass("a class of files") {
        /// Every file.
        Any = "any",
        /// Segments of the log.
        Log = "log",
        /// Manifests and their checkpoints.
        Manifest = "manifest",
        /// SSTs.
        Sst = "sst",
    }
    /// Operations of a disk.
    DiskOp("an operation of a disk") {
        /// Every one.
        Any = "any",
        /// Reading.
        Read = "read",
        /// Writing.
        Write = "write",
        /// Syncing a file or a directory.
        Fsync = "fsync",
        /// Renaming.
        Rename = "rename",
        /// Truncating.
        Truncate = "truncate",
        /// Removing.
        Remove = "remove",
    }
    /// What a fault does to an operation of a disk.
    DiskEffect("an effect on a disk") {
        /// It fails; after a failed sync the page is lost.
        Eio = "eio",
        /// It fails for lack of space.
        Full = "full",
        /// It takes `delay` longer.
        Slow = "slow",
        /// It does not end before the fault does.
        Stall = "stall",
        /// A byte of what is read is another one from now on.
        Rot = "rot",
        /// The power goes just before it.
        PowerLossBefore = "power_loss_before",
        /// The power goes just after it, before anyone hears of it.
        PowerLossAfter = "power_loss_after",
        /// The process dies just before it.
        CrashBefore = "crash_before",
        /// The process dies just after it, before anyone hears of it.
        CrashAfter = "crash_after",
    }
    /// Faults that a storm can consist of.
    StormKind("a kind of random fault") {
        /// See [`Fault::PowerLoss`].
        PowerLoss = "power_loss",
        /// See [`Fault::Crash`].
        Crash = "crash",
        /// See [`Fault::Pause`].
        Pause = "pause",
        /// See [`Fault::TransferLeader`].
        TransferLeader = "transfer_leader",
        /// See [`Fault::Isolate`].
        Isolate = "isolate",
        /// See [`Fault::Partition`].
        Partition = "partition",
        /// Slow syncs.
        SlowDisk = "slow_disk",
        /// Writes that fail.
        FailingDisk = "failing_disk",
        /// A disk without space.
        FullDisk = "full_disk",
        /// See [`Fault::Clock`].
        Clock = "clock",
    }
}

impl DiskEffect {
    /// Whether the node dies of it.
    pub fn is_deadly(&self) -> bool {
        use DiskEffect::{CrashAfter, CrashBefore, PowerLossAfter, PowerLossBefore};
        matches!(self, PowerLossBefore | PowerLossAfter | CrashBefore | CrashAfter)
    }
}

/// The kind of a frame, by the name that the engine gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameKind(pub Kind);

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl FromStr for FrameKind {
    type Err = String;

    fn from_str(text: &str) -> Result<FrameKind, String> {
        let names: Vec<&str> = Kind::ALL.iter().map(|(_, name)| *name).collect();
        let found = Kind::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(kind, _)| FrameKind(*kind)).ok_or_else(|| one_of("a kind of request", text, &names))
    }
}

as_text!(FrameKind);

impl Fault {
    /// The word that scenarios use for it.
    pub fn verb(&self) -> &'static str {
        match self {
            Fault::PowerLoss(_) => "power_loss",
            Fault::Crash(_) => "crash",
            Fault::Restart(_) => "restart",
            Fault::Pause(_) => "pause",
            Fault::Resume(_) => "resume",
            Fault::TransferLeader { .. } => "transfer_leader",
            Fault::Isolate(_) => "isolate",
            Fault::Partition { .. } => "partition",
            Fault::Heal => "heal",
            Fault::Cut { .. } => "cut",
            Fault::Disk(_) => "disk",
            Fault::Clock { .. } => "clock",
            Fault::Option(_) => "option",
        }
    }

    /// Everyone it names.
    pub fn targets(&self) -> Vec<&Target> {
        match self {
            Fault::PowerLoss(death) | Fault::Crash(death) => vec![&death.target],
            Fault::Pause(stay) => vec![&stay.target],
            Fault::Isolate(cutoff) => vec![&cutoff.target],
            Fault::Restart(target) | Fault::Resume(target) => vec![target],
            Fault::TransferLeader { to, .. } => to.iter().collect(),
            Fault::Partition { from, to, .. } => from.iter().chain(to).collect(),
            Fault::Cut { from, to, .. } => from.iter().chain(to).collect(),
            Fault::Disk(fault) => vec![&fault.node],
            Fault::Clock { node, .. } => vec![node],
            Fault::Heal | Fault::Option(_) => Vec::new(),
        }
    }

    /// Whether it is no fault, but ends some.
    pub fn is_an_end(&self) -> bool {
        matches!(self, Fault::Resume(_) | Fault::Heal)
    }

    /// Whether nodes die of it at once.
    pub fn is_a_death(&self) -> bool {
        matches!(self, Fault::PowerLoss(_) | Fault::Crash(_))
    }

    /// What it does when it does something.
    pub fn effect(&self) -> Effect {
        match self {
            Fault::PowerLoss(_) => Effect::PowerLosses,
            Fault::Crash(_) => Effect::Crashes,
            Fault::Restart(_) => Effect::Restarts,
            Fault::Pause(_) => Effect::Pauses,
            Fault::Resume(_) => Effect::Resumes,
            Fault::TransferLeader { .. } => Effect::Transfers,
            Fault::Isolate(_) | Fault::Partition { .. } => Effect::SegmentsHeld,
            Fault::Heal => Effect::Heals,
            Fault::Cut { side: Side::Request, .. } => Effect::RequestsLost,
            Fault::Cut { side: Side::Answer, .. } => Effect::AnswersLost,
            Fault::Disk(fault) => match fault.effect {
                DiskEffect::Eio => Effect::IoErrors,
                DiskEffect::Full => Effect::DiskFull,
                DiskEffect::Rot => Effect::Rotted,
                DiskEffect::Slow | DiskEffect::Stall => Effect::Stalls,
                DiskEffect::PowerLossBefore | DiskEffect::PowerLossAfter => Effect::PowerLosses,
                DiskEffect::CrashBefore | DiskEffect::CrashAfter => Effect::Crashes,
            },
            Fault::Clock { .. } => Effect::ClocksChanged,
            Fault::Option(_) => Effect::OptionsChanged,
        }
    }

    /// Whether it means something only inside a rule.
    pub fn needs_event(&self) -> bool {
        let region_is_it = matches!(self, Fault::TransferLeader { region: Region::It, .. });
        region_is_it || self.targets().into_iter().any(Target::needs_event)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lasts = |f: &mut fmt::Formatter<'_>, lasts: &Option<Period>| match lasts {
            Some(period) => write!(f, " for {period}"),
            None => Ok(()),
        };
        match self {
            Fault::PowerLoss(death) | Fault::Crash(death) => {
                write!(f, "{} of {}", self.verb().replace('_', " "), death.target)?;
                death.restart_after.map_or(Ok(()), |after| write!(f, ", back after {after}"))
            }
            Fault::Restart(target) => write!(f, "restart of {target}"),
            Fault::Pause(stay) => {
                write!(f, "pause of {}", stay.target)?;
                lasts(f, &stay.lasts)
            }
            Fault::Resume(target) => write!(f, "{target} goes on"),
            Fault::TransferLeader { region, to: Some(to) } => write!(f, "leader of {region} hands over to {to}"),
            Fault::TransferLeader { region, to: None } => write!(f, "leader of {region} hands over"),
            Fault::Isolate(cutoff) => {
                write!(f, "{} cut off ({})", cutoff.target, cutoff.direction)?;
                lasts(f, &cutoff.lasts)
            }
            Fault::Partition { from, to, direction, lasts: period } => {
                let names = |targets: &[Target]| targets.iter().map(Target::to_string).collect::<Vec<_>>().join(", ");
                write!(f, "{} cut off from {} ({direction})", names(from), names(to))?;
                lasts(f, period)
            }
            Fault::Heal => f.write_str("partitions healed"),
            Fault::Cut { kind, side, nth, times, .. } => write!(f, "{side} of {kind} lost, from #{nth}, {times} times"),
            Fault::Disk(fault) => {
                write!(f, "disk of {}: {} of {} files: {}", fault.node, fault.op, fault.files, fault.effect)?;
                lasts(f, &fault.lasts)
            }
            Fault::Clock { node, offset, drift_ppm } => {
                write!(f, "clock of {node} off by {offset}, drift {drift_ppm} ppm")
            }
            Fault::Option(options) => {
                f.write_str("options")?;
                options.iter().try_for_each(|(name, value)| write!(f, " {name} = {value}"))
            }
        }
    }
}
