//! What happens inside a node, said as it happens: the product's log and metrics, and all that a harness sees of it.
//!
//! A listener is called synchronously, right after the state changed. It must not block, await or call back. The node's own
//! listener counts ([`metrics`](crate::metrics)); it gets what [`Events::emit`] says. What happens once for each entry of a log
//! is said by [`Events::detail`] and not counted: without another listener and with logging off it costs a branch, and is not
//! even built.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::types::{Incarnation, IndexId, LogId, NodeId, RegionId, ReplicaId, Sequence, Vote};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        /// One transition of a node.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub enum Event {
            $($(#[$doc])* $name { $($(#[$field_doc])* $field: $type),* },)*
        }

        impl Event {
            /// Every kind of event with its fields and their types: what a rule of a scenario can name.
            pub const SCHEMA: &'static [(&'static str, &'static [(&'static str, &'static str)])] = &[
                $((stringify!($name), &[$((stringify!($field), stringify!($type))),*])),*
            ];

            /// The kind, as in [`Event::SCHEMA`].
            pub fn name(&self) -> &'static str {
                match self {
                    $(Event::$name { .. } => stringify!($name)),*
                }
            }

            /// The value of the field called `name`, as text; none if this kind has no such field.
            pub fn field(&self, name: &str) -> Option<String> {
                match self {
                    $(Event::$name { $($field),* } => {
                        $(if name == stringify!($field) {
                            return Some(shown(&format!("{:?}", $field), $field));
                        })*
                        let _ = ($($field,)*);
                        None
                    })*
                }
            }
        }
    };
}

impl Event {
    /// The region that it is about, if it is about one.
    pub fn region(&self) -> Option<RegionId> {
        macro_rules! of {
            ($($name:ident),*) => {
                match self {
                    $(Event::$name { region, .. } => Some(*region),)*
                    _ => None,
                }
            };
        }
        of!(
            BecameLeader,
            ReplicaOpened,
            Applied,
            FlushStarted,
            FlushFinished,
            FlushFailed,
            CompactionStarted,
            CompactionFinished,
            CompactionFailed,
            VersionSwapped,
            SnapshotSending,
            SnapshotInstalled,
            ReplicaCreated,
            ReplicaDropping,
            ReplicaDropped,
            ReplicaReopening,
            LogStalled,
            TransferStarted,
            BufferFlush,
            FileDamaged,
            ReplicaMended,
            FollowerRead,
            FollowerReadRefused,
            WriteStalled,
            WriteResumed,
            WriteRejected,
            WriteProposed,
            WriteAnswered,
            WriteRepeated,
            WriteConflict,
            WriteOutdated,
            RoundStarted,
            LegLive,
            FillResumed,
            LegFailed,
            BatchSent,
            BatchAcknowledged,
            BatchAbsorbed,
            ViewWritten,
            BatchRefused,
            ViewReady,
            ViewFailed,
            IndexBackfilled,
            IndexComplete,
            IndexUsed,
            RouteRefreshed
        )
    }
}

/// Ids are shown as people write them, all else as Rust does.
fn shown(debug: &str, field: &dyn std::any::Any) -> String {
    if let Some(id) = field.downcast_ref::<RegionId>() {
        return id.to_string();
    }
    if let Some(id) = field.downcast_ref::<ReplicaId>() {
        return id.to_string();
    }
    if let Some(id) = field.downcast_ref::<LogId>() {
        return id.to_string();
    }
    if let Some(text) = field.downcast_ref::<String>() {
        return text.clone();
    }
    debug.to_string()
}

events! {
    /// The process opened its store and serves.
    NodeStarted {
        /// How often the store was opened.
        incarnation: Incarnation,
    }
    /// The process stops by itself: a shutdown, or damage that it must not work around.
    NodeStopped {
        /// Why, for people.
        reason: String,
    }
    /// The node's log was read at start.
    LogOpened {
        /// Segments found.
        segments: u64,
        /// Bytes of the last, unfinished batch that were cut off.
        torn_bytes: u64,
        /// Entries that were found damaged.
        rotten: u64,
    }
    /// A vote is durable.
    VoteSaved {
        /// Who voted.
        replica: ReplicaId,
        /// What it promised.
        vote: Vote,
    }
    /// Entries stand in the replica's log and can be read; not yet durable.
    Appended {
        /// Whose log.
        replica: ReplicaId,
        /// Position of each entry and a digest of its payload.
        entries: Vec<(LogId, u64)>,
    }
    /// Everything up to here is durable in the replica's log.
    Durable {
        /// Whose log.
        replica: ReplicaId,
        /// The last durable entry.
        upto: LogId,
    }
    /// A conflicting suffix was taken out of the replica's log; durable before anything that is appended later.
    Truncated {
        /// Whose log.
        replica: ReplicaId,
        /// The entry that is the last one now.
        last: Option<LogId>,
    }
    /// The replica's log starts after this entry from now on.
    Purged {
        /// Whose log.
        replica: ReplicaId,
        /// The last entry that is gone.
        upto: LogId,
    }
    /// The replica knows that everything up to here is committed.
    Committed {
        /// Who knows.
        replica: ReplicaId,
        /// The last committed entry.
        upto: LogId,
    }
    /// The replica won the election of a term.
    BecameLeader {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// The term, which has no other leader.
        term: u64,
    }
    /// A membership stands in the replica's log: it counts from now on, committed or not.
    MembershipEffective {
        /// Whose log.
        replica: ReplicaId,
        /// Where.
        log_id: LogId,
        /// The sets of voters (two while a change is under way).
        voters: Vec<Vec<ReplicaId>>,
    }
    /// A replica was opened from its manifest; its log is replayed next.
    ReplicaOpened {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Everything up to here is in files.
        flushed: Option<LogId>,
        /// Sequence of the last row that is in files.
        flushed_sequence: Sequence,
    }
    /// A committed entry changed the replica's state.
    Applied {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The node's incarnation.
        incarnation: Incarnation,
        /// The entry.
        log_id: LogId,
        /// The entry's payload (an encoded `region::Command` or `meta::Command`); empty for entries of raft's own.
        command: Bytes,
        /// The encoded answer, the same on every replica.
        outcome: Bytes,
        /// Sequence of the newest row after the entry.
        sequence: Sequence,
        /// Digest of the replica's logical content after the entry, the same on every replica.
        digest: u64,
    }
    /// A flush froze the memtable.
    FlushStarted {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The last entry that the flush covers.
        upto: LogId,
        /// Rows (versions) that it writes.
        rows: u64,
    }
    /// The flushed rows are in files, the manifest says so durably.
    FlushFinished {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The last entry that is in files now.
        upto: LogId,
        /// Sequence of the last row that is in files now.
        sequence: Sequence,
        /// Rows (versions) written.
        rows: u64,
    }
    /// A flush was given up; its rows stay in memory and in the log.
    FlushFailed {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    }
    /// A compaction picked files to merge.
    CompactionStarted {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// How many files.
        inputs: u64,
        /// Rows (versions) in them.
        rows: u64,
    }
    /// The merged files are in the place of the others, the manifest says so durably.
    CompactionFinished {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Files merged.
        inputs: u64,
        /// Files made of them.
        outputs: u64,
        /// Rows (versions) written.
        rows: u64,
        /// Rows (versions) that nobody can read any more and that were not written.
        dropped: u64,
    }
    /// A compaction was given up; its files stay as they were.
    CompactionFailed {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    }
    /// A manifest edit is durable.
    ManifestEdited {
        /// The replica.
        replica: ReplicaId,
        /// Number of the edit.
        version: u64,
    }
    /// A manifest checkpoint is durable and older edits are no longer needed.
    ManifestCheckpointed {
        /// The replica.
        replica: ReplicaId,
        /// The last edit that it contains.
        version: u64,
    }
    /// What reads see of the replica was exchanged: same content, other memtables and files.
    VersionSwapped {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// `open`, `flush`, `compaction`, `install`.
        why: String,
    }
    /// A replica begins to send its state to another one.
    SnapshotSending {
        /// The group.
        region: RegionId,
        /// The receiver.
        to: ReplicaId,
        /// The last entry that it contains.
        last: LogId,
    }
    /// A replica replaced its state by a leader's.
    SnapshotInstalled {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The last entry that it contains.
        last: LogId,
    }
    /// A replica was made on this node.
    ReplicaCreated {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
    }
    /// A replica goes from this node: it is written down that it must not come back, and its log is forgotten next.
    ReplicaDropping {
        /// The group; unknown when a drop is finished that was begun before a start.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
    }
    /// A replica is gone from this node, its files and its log too.
    ReplicaDropped {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
    }
    /// A file of a replica cannot be read as it was written.
    FileDamaged {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The file.
        file: String,
    }
    /// A replica with damaged files has the state of another one in their place.
    ReplicaMended {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The node whose replica helped.
        from: NodeId,
        /// The last entry in the files.
        last: LogId,
    }
    /// A raft instance died, of a failed write or apply, and is opened anew.
    ReplicaReopening {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    }
    /// A leader's log does not get on: appends are not durable for longer than an election timeout. It hands over, if
    /// there is somebody to hand over to.
    LogStalled {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Its appends that are late.
        late: u64,
    }
    /// A leader hands over.
    TransferStarted {
        /// The group.
        region: RegionId,
        /// The leader until now.
        from: ReplicaId,
        /// The one that is asked to stand.
        to: ReplicaId,
    }
    /// Memtables are to be flushed because their memory is needed.
    BufferFlush {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// What they hold.
        bytes: u64,
        /// Who needs it: `node`, `region`.
        reason: String,
    }
    /// A replica that does not lead answers a read that need not be of now.
    FollowerRead {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// How long ago, by its own timers, what it has applied was all that was committed.
        age_ms: u64,
    }
    /// A replica that does not lead cannot answer a read: it does not get to know what is committed, or does not get it.
    FollowerReadRefused {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        reason: String,
    }
    /// A write waits for memory.
    WriteStalled {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Bytes of it.
        bytes: u64,
        /// Whose limit it is: `node`, `region`.
        scope: String,
    }
    /// A write that waited for memory goes on.
    WriteResumed {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Bytes of it.
        bytes: u64,
        /// How long it waited.
        waited_ms: u64,
    }
    /// A write was refused for want of memory, at once or after it waited.
    WriteRejected {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Bytes of it.
        bytes: u64,
        /// Why, for people.
        reason: String,
    }
    /// A write was proposed by the leader and is not yet answered.
    WriteProposed {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Rows in it.
        rows: u64,
    }
    /// A write that was proposed has its answer, whatever it is.
    WriteAnswered {
        /// The group.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// Rows in it.
        rows: u64,
    }
    /// A resent write was answered from what the region remembers, and not applied again.
    WriteRepeated {
        /// The group.
        region: RegionId,
        /// The replica that answered.
        replica: ReplicaId,
    }
    /// A write was refused at apply because rows changed since they were read.
    WriteConflict {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// Rows that changed.
        rows: u64,
    }
    /// A write was refused at apply because the table was altered since it was made.
    WriteOutdated {
        /// The group.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The version of the columns that it was made for.
        version: u64,
    }
    /// A round of a leg of a view was begun by an entry: the leader may read what it is about.
    RoundStarted {
        /// The region that is read.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The scan of its query.
        leg: u32,
        /// Counts from 1.
        round: u64,
        /// Where it ends.
        upto: Sequence,
    }
    /// A leg of a view is through with its rounds: from now on it follows what is written.
    LegLive {
        /// The region that is read.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The scan of its query.
        leg: u32,
        /// How many rounds it took.
        rounds: u64,
    }
    /// Another leader goes on with a leg of a view, or the same one after it was interrupted.
    FillResumed {
        /// The region that is read.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The scan of its query.
        leg: u32,
        /// The round that it is in.
        round: u64,
        /// Whether it is through with them.
        is_live: bool,
    }
    /// A leg of a view cannot go on.
    LegFailed {
        /// The region that is read.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The scan of its query.
        leg: u32,
        /// Why.
        reason: String,
    }
    /// The leader that reads for a leg sends a batch to a region of the view.
    BatchSent {
        /// The region that is read.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The region of the view.
        destination: RegionId,
        /// Rows in it.
        rows: u64,
    }
    /// A region of the view has it.
    BatchAcknowledged {
        /// The region that is read.
        region: RegionId,
        /// The leader.
        replica: ReplicaId,
        /// The view's name.
        view: String,
        /// The region of the view.
        destination: RegionId,
        /// Rows in it.
        rows: u64,
    }
    /// A replica of a region of a view applied a batch.
    BatchAbsorbed {
        /// The region of the view.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The region that was read.
        feeder: RegionId,
        /// Rows in it.
        rows: u64,
        /// What the region has now.
        position: String,
    }
    /// A replica of a region of a view wrote what an entry comes to.
    ViewWritten {
        /// The region of the view.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The entry.
        log_id: LogId,
        /// Whole rows, by [`encode_batch`](crate::types::encode_batch).
        rows: Bytes,
        /// One byte a row, see [`Op`](crate::types::Op).
        ops: Bytes,
        /// The sequence of the last of them; of the last one before, if there are none.
        sequence: Sequence,
    }
    /// A replica of a region of a view did not take a batch.
    BatchRefused {
        /// The region of the view.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The region that was read.
        feeder: RegionId,
        /// What was answered.
        answer: String,
    }
    /// A region of a view may be read from now on.
    ViewReady {
        /// The region.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
    }
    /// A region of a view may not be read any more.
    ViewFailed {
        /// The region.
        region: RegionId,
        /// The replica that applied the entry.
        replica: ReplicaId,
        /// Why.
        reason: String,
    }
    /// A replica applied a chunk of the backfill of an index.
    IndexBackfilled {
        /// The region.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The index.
        index: IndexId,
        /// Rows that were read for it.
        rows: u64,
    }
    /// The backfill of an index is through at a replica.
    IndexComplete {
        /// The region.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The index.
        index: IndexId,
    }
    /// A page was read by the keys that an index found.
    IndexUsed {
        /// The region.
        region: RegionId,
        /// The replica.
        replica: ReplicaId,
        /// The index.
        index: IndexId,
        /// How many keys.
        keys: u64,
    }
    /// A step of a table-level procedure took effect and is recorded.
    ProcedureStep {
        /// The procedure.
        procedure: u64,
        /// `create_table`, `drop_table`, `truncate_table`, `alter_table`, `move_replica`.
        kind: String,
        /// The step that is done.
        step: String,
    }
    /// Meta's leader takes a node for dead, or what is left on a dead node changed.
    NodeDead {
        /// The node.
        node: NodeId,
        /// How long it has not answered.
        silent_ms: u64,
        /// Replicas that it still has by the catalog; those of them that can be are being made elsewhere.
        replicas: u64,
        /// Those of them that no other node that is there can take.
        without_place: u64,
    }
    /// A frontend sent a statement to another place because the route had changed.
    RouteRefreshed {
        /// The region whose leader was not where it was thought to be.
        region: RegionId,
    }
    /// A connection to a peer was made.
    PeerConnected {
        /// The peer.
        peer: NodeId,
    }
    /// A connection to a peer was lost.
    PeerLost {
        /// The peer.
        peer: NodeId,
        /// Requests whose outcome is unknown because of it.
        unanswered: u64,
    }
}

/// Hears what happens.
pub trait Listen: Send + Sync + 'static {
    /// Called at the event, synchronously. Must not block, await or call back into the engine.
    fn on_event(&self, node: NodeId, event: &Event);
}

/// Where a node's events go: to the log (level DEBUG) and to the listener.
#[derive(Clone)]
pub struct Events {
    node: NodeId,
    listener: Option<Arc<dyn Listen>>,
    /// The node's own, which counts.
    counter: Option<Arc<dyn Listen>>,
}

impl Events {
    /// Events of `node`, to the log only.
    pub fn of(node: NodeId) -> Events {
        Events { node, listener: None, counter: None }
    }

    /// Events of `node`, to the log and to `listener`.
    pub fn heard_by(node: NodeId, listener: Arc<dyn Listen>) -> Events {
        Events { node, listener: Some(listener), counter: None }
    }

    /// The same events, counted by `counter`.
    pub fn counted_by(self, counter: Arc<dyn Listen>) -> Events {
        Events { counter: Some(counter), ..self }
    }

    /// The node they are of.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Says that `event` happened. It is built only if somebody hears it.
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        self.tell(self.counter.as_deref(), event);
    }

    /// Says that `event` happened, one of those that happen for each entry of a log and are not counted.
    pub fn detail(&self, event: impl FnOnce() -> Event) {
        self.tell(None, event);
    }

    fn tell(&self, counter: Option<&dyn Listen>, event: impl FnOnce() -> Event) {
        let logged = tracing::enabled!(tracing::Level::DEBUG);
        let listener = self.listener.as_deref();
        if listener.is_none() && counter.is_none() && !logged {
            return;
        }
        let event = event();
        if logged {
            tracing::debug!(node = self.node.0, ?event);
        }
        for who in [counter, listener].into_iter().flatten() {
            who.on_event(self.node, &event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("node", &self.node).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_the_fields_that_can_be_asked_for() {
        let event = Event::BecameLeader { region: RegionId::META, replica: ReplicaId(3), term: 7 };
        assert_eq!(event.region(), Some(RegionId::META));
        let (_, fields) = Event::SCHEMA.iter().find(|(name, _)| *name == event.name()).unwrap();
        let values: Vec<_> = fields.iter().map(|(field, _)| event.field(field).unwrap()).collect();
        assert_eq!(values, ["meta", "r3", "7"]);
        assert_eq!(event.field("nothing"), None);
    }
}
