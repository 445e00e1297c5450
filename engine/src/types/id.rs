//! Ids, and positions in logs and version histories.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One process of the cluster. Given by the operator, stable over restarts, starts at 1.
    NodeId(u64), "n"
);
id!(
    /// One copy of a region: the NodeId that raft sees. Given out by meta, never reused, so that a
    /// wiped disk cannot vote twice under one name.
    ReplicaId(u64), "r"
);
id!(
    /// A table or a view. Given out by meta, never reused.
    TableId(u32), "t"
);
id!(
    /// An index of a table. Given out with the table's schema, never reused within the table.
    IndexId(u32), "x"
);
id!(
    /// The version of a row, assigned when its entry is applied; the newest one wins. Counts from 1
    /// within a region; 0 is "before the first row". Never a log index.
    Sequence(u64), "s"
);
id!(
    /// A client's session. Given out by meta, never reused.
    SessionId(u64), "c"
);
id!(
    /// A procedure of meta: the making or the dropping of a table. Given out by meta, never reused.
    ProcedureId(u64), "p"
);
id!(
    /// How often a store was opened: grows by one with each start of the process.
    Incarnation(u64), "i"
);
id!(
    /// Milliseconds since 1970-01-01T00:00:00Z, as some node's wall clock says.
    Timestamp(i64), ""
);

/// One partition of a table, one raft group: `table_id << 32 | region_number`.
///
/// Region 0 of table 0 is the meta group. See GreptimeDB's `RegionId` for the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegionId(pub u64);

impl RegionId {
    /// The group that holds the catalog, the routes and the procedures.
    pub const META: RegionId = RegionId(0);

    /// The `number`-th partition of `table`, counted from 0.
    pub fn new(table: TableId, number: u32) -> Self {
        RegionId(u64::from(table.0) << 32 | u64::from(number))
    }

    /// The table that this is a partition of.
    pub fn table(self) -> TableId {
        TableId((self.0 >> 32) as u32)
    }

    /// Which partition of its table, counted from 0.
    pub fn number(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == RegionId::META {
            return f.write_str("meta");
        }
        write!(f, "{}/{}", self.table(), self.number())
    }
}

/// The position of an entry in the log of one raft group. Ordered as raft orders: term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// The term of the leader that proposed the entry; there is one leader a term.
    pub term: u64,
    /// Counts from 0 (the entry that initialises the group).
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// What a replica promised: it votes for nobody else in `term`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// The term of the promise.
    pub term: u64,
    /// The replica that the vote was given to.
    pub voted_for: ReplicaId,
    /// Whether `voted_for` is known to have won: a committed vote names the leader of `term`.
    pub committed: bool,
}

impl fmt::Display for Vote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.committed { "!" } else { "?" };
        write!(f, "{}:{}{mark}", self.term, self.voted_for)
    }
}

/// Names one part of one statement of one session, so that a resent write is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Whose statement.
    pub session: SessionId,
    /// Counts the session's statements from 1.
    pub statement: u64,
    /// Counts the writes of one statement to one region from 0.
    pub part: u32,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}.{}", self.session, self.statement, self.part)
    }
}

/// What a version of a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Op {
    /// The row is there, with these fields.
    Put = 0,
    /// The row is gone: a tombstone.
    Delete = 1,
}

impl Op {
    /// The op stored as `byte`; none for a byte that no op is stored as.
    pub fn from_byte(byte: u8) -> Option<Op> {
        match byte {
            0 => Some(Op::Put),
            1 => Some(Op::Delete),
            _ => None,
        }
    }
}
