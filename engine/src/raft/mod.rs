//! Raft groups: the only place that names openraft.
//!
//! A replica's [`Group`] drives a [`Machine`] with committed entries. The contract with openraft (pinned exactly, its
//! API is an alpha's):
//!
//! * NodeId is the *replica id* that meta gives out, never reused; the node that hosts it is openraft's `Node`.
//! * The log storage is a view of the node's one log: appended entries are readable at once, `IOFlushed` comes after
//!   the group commit's fsync, the committed index is written without its own.
//! * A flush *is* the snapshot: openraft never builds one by itself (`SnapshotPolicy::Never`), the region says when its
//!   files reach further; the log is purged behind. Snapshots are streamed as files, never as bytes in memory.
//! * A failed append is final for the instance: it stops, [`Group::died`] tells, the node opens it anew.
//! * A leader whose log stalls hands over: openraft itself would lead on.
//! * One replica at a time takes the place of another one: learner, joint, voter ([`Group::add_learner`],
//!   [`Group::change_members`]). Each change is made of the membership that was looked at.
//! * Reads are ReadIndex. Leases would need timers that do not drift, and are not used.

mod group;
mod machine;
mod members;
mod network;
mod runtime;
mod stall;
mod store;
#[cfg(test)]
mod tests;
mod types;

pub use group::{Group, Standing, Surroundings};
pub use machine::{Change, Machine, Snapshot, SnapshotFile};
pub use types::Membership;
