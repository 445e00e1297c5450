//! The one error of the engine. Its variants say what the caller does next, its code is stable, its message has the
//! names and numbers that a person needs.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::types::{AlterError, NodeId, OptionError, RegionId, ReplicaId, SchemaError, Sequence, SessionId};

/// `Result` with the engine's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Error {
    /// Change the statement: it can never succeed as it is. Nothing was written.
    Invalid {
        /// Which rule it breaks.
        code: Invalid,
        /// What exactly, by name, and what would be right.
        message: String,
    },
    /// Go to the leader (`hint` where known) and try again. Nothing was written.
    NotLeader {
        /// The group that was asked.
        region: RegionId,
        /// The leader, as far as the asked replica knows.
        hint: Option<(ReplicaId, NodeId)>,
    },
    /// Refresh the route and try again: the node has no such region.
    RegionNotFound {
        /// The region that was asked for.
        region: RegionId,
    },
    /// Refresh the catalog and try again: the request was made for another version of the table.
    SchemaChanged {
        /// The region that was asked.
        region: RegionId,
        /// The version it has now.
        version: u64,
    },
    /// Wait and try again: no room at present (memory, queue, open procedure). Nothing was written.
    Busy {
        /// What is full or under way.
        what: String,
    },
    /// Read the rows anew and decide again: they changed since they were read. Nothing of the request was written.
    Conflict {
        /// The region that refused.
        region: RegionId,
        /// Positions, within the request, of the rows that changed.
        rows: Vec<u32>,
    },
    /// Open a new session. If the statement was sent before, whether it was applied is not known any more.
    SessionExpired {
        /// The session that the region does not know (any more).
        session: SessionId,
    },
    /// Read from a newer snapshot: the region does not keep versions that old.
    TooOld {
        /// The region that was asked.
        region: RegionId,
        /// The oldest sequence that can still be read.
        oldest: Sequence,
    },
    /// Resend under the same request id, or look: the request may or may not have been applied.
    Unknown {
        /// Why nobody knows.
        message: String,
    },
    /// The deadline passed before anything was written.
    Deadline {
        /// What was being waited for.
        waiting_for: String,
    },
    /// A part of the statement was written and a part was not: look at the regions named in the message.
    Partial {
        /// Regions whose part is durable.
        written: Vec<RegionId>,
        /// Why the others' is not.
        cause: Box<Error>,
    },
    /// Restore or replace the replica: stored data is damaged. Nothing was changed.
    Damaged {
        /// Path within the store.
        file: String,
        /// Where, and what is wrong.
        message: String,
    },
    /// The operating system refused an operation; free space or repair the disk.
    Io {
        /// Stable name of the kind (`storage_full`, `not_found`, ..).
        kind: IoKind,
        /// What was done to which file.
        message: String,
    },
    /// The node or the region is shutting down; go to another one.
    Stopped,
}

/// Rules that a statement can break. The stable code of each is its name in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the codes that users see")]
pub enum Invalid {
    Syntax,
    Unsupported,
    UnknownTable,
    UnknownColumn,
    UnknownFunction,
    UnknownOption,
    DuplicateTable,
    UnknownIndex,
    DuplicateIndex,
    HasDependants,
    ViewNotReady,
    ViewFailed,
    DuplicateColumn,
    DuplicateFile,
    WrongType,
    OutOfRange,
    NotNull,
    MissingKey,
    PartitionGap,
    PartitionOverlap,
    PartitionRule,
    KeyChange,
    Option,
    Schema,
    Plan,
    Evaluation,
    QueryTooLarge,
    Mismatch,
    Request,
}

/// Kinds of [`Error::Io`], as far as a caller could tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of std::io::ErrorKind")]
pub enum IoKind {
    StorageFull,
    NotFound,
    AlreadyExists,
    ConnectionLost,
    TimedOut,
    Other,
}

impl From<AlterError> for Error {
    fn from(err: AlterError) -> Error {
        let code = match &err {
            AlterError::UnknownColumn(_) => Invalid::UnknownColumn,
            AlterError::KeyColumn(_) => Invalid::KeyChange,
            AlterError::NothingForOldRows(_) => Invalid::NotNull,
            AlterError::Narrower { .. } | AlterError::Default { .. } => Invalid::WrongType,
            AlterError::Schema(SchemaError::DuplicateColumn(_)) => Invalid::DuplicateColumn,
            AlterError::Schema(_) => Invalid::Schema,
            AlterError::Option(err) => return err.clone().into(),
            AlterError::DuplicateIndex(_) => Invalid::DuplicateIndex,
            AlterError::UnknownIndex(_) => Invalid::UnknownIndex,
            AlterError::IndexColumns(_) => Invalid::DuplicateColumn,
            AlterError::Indexed { .. } => Invalid::HasDependants,
            AlterError::IndexedAppend => Invalid::Unsupported,
        };
        Error::invalid(code, err.to_string())
    }
}

impl From<OptionError> for Error {
    fn from(err: OptionError) -> Error {
        let code = match err {
            OptionError::Unknown(_) => Invalid::UnknownOption,
            OptionError::Value { .. } | OptionError::NoTime | OptionError::Mode { .. } => Invalid::Option,
        };
        Error::invalid(code, err.to_string())
    }
}

impl Error {
    /// Every stable code. A code is never renamed, and never given another meaning.
    ///
    /// Of these the statement must be changed, nothing was written:
    ///
    /// | code | what is wrong |
    /// |---|---|
    /// | `syntax` | the text is no statement, or has another number of values than columns |
    /// | `unsupported` | the statement is understood and not supported |
    /// | `unknown_table` | there is no such table; the message may have one with a similar name, as for all unknown names |
    /// | `unknown_column` | the table has no such column |
    /// | `unknown_function` | there is no such function |
    /// | `unknown_option` | a table has no such option |
    /// | `duplicate_table` | there is a table of that name; `IF NOT EXISTS` takes it as it is |
    /// | `unknown_index` | there is no such index |
    /// | `duplicate_index` | the table has an index of that name; `IF NOT EXISTS` takes it as it is |
    /// | `has_dependants` | a view reads the table or the column, or an index is ordered by it; drop that, or DROP .. CASCADE |
    /// | `view_not_ready` | the view is still being filled; WAIT FOR it |
    /// | `view_failed` | the view cannot be kept up to date; the message says why. REFILL or DROP it |
    /// | `duplicate_column` | a column is defined or given twice |
    /// | `duplicate_file` | a file of that name was ingested with other rows |
    /// | `wrong_type` | a value is of another type; CAST it. Or an ALTER to a type that does not hold every value |
    /// | `out_of_range` | a value is of the right type and does not fit, or a computation overflows |
    /// | `not_null` | NULL where the column is NOT NULL |
    /// | `missing_key` | a row without a value for a key column, or a table without a key |
    /// | `partition_gap` | some rows would belong to no partition; the message has an example |
    /// | `partition_overlap` | some rows would belong to two partitions; the message has an example |
    /// | `partition_rule` | a partition expression is not of the form that the message names |
    /// | `key_change` | an UPDATE or ALTER of a key column; DELETE the row and INSERT another |
    /// | `option` | an option has no legal value; the message has the range |
    /// | `schema` | the definition of a table contradicts itself |
    /// | `plan` | the query makes no sense; the message says why |
    /// | `evaluation` | an expression cannot be computed for some row (a division by zero) |
    /// | `query_too_large` | the query needs more memory than it may have; select less, or do it in several statements |
    /// | `mismatch` | two parts of the cluster disagree on what something is; a bug or another cluster's node |
    /// | `request` | a message that no client of this engine would send |
    ///
    /// Of these the caller does something else:
    ///
    /// | code | what the caller does | may it be applied? |
    /// |---|---|---|
    /// | `not_leader` | asks the leader; the message names it where it is known | no |
    /// | `region_not_found` | refreshes the route and tries again | no |
    /// | `schema_changed` | refreshes the table, plans and tries again | no |
    /// | `busy` | waits and tries again | no |
    /// | `conflict` | reads the rows anew and decides again | no |
    /// | `session_expired` | opens a new session; what was sent before in the old one, nobody knows | perhaps |
    /// | `too_old` | reads at a newer sequence | no |
    /// | `unknown_outcome` | resends under the same request id, or looks | perhaps |
    /// | `deadline` | tries again with more time | no |
    /// | `partial` | looks at the regions that the message names | in part |
    /// | `damaged` | restores or replaces the replica; trying again does not help | no |
    /// | `storage_full` | makes room on the disk | no |
    /// | `io` | looks at the disk or network; a lost connection may be tried again | perhaps |
    /// | `stopped` | goes to another node | no |
    pub const CODES: &[&str] = &[
        "syntax",
        "unsupported",
        "unknown_table",
        "unknown_column",
        "unknown_function",
        "unknown_option",
        "duplicate_table",
        "unknown_index",
        "duplicate_index",
        "has_dependants",
        "view_not_ready",
        "view_failed",
        "duplicate_column",
        "duplicate_file",
        "wrong_type",
        "out_of_range",
        "not_null",
        "missing_key",
        "partition_gap",
        "partition_overlap",
        "partition_rule",
        "key_change",
        "option",
        "schema",
        "plan",
        "evaluation",
        "query_too_large",
        "mismatch",
        "request",
        "not_leader",
        "region_not_found",
        "schema_changed",
        "busy",
        "conflict",
        "session_expired",
        "too_old",
        "unknown_outcome",
        "deadline",
        "partial",
        "damaged",
        "storage_full",
        "io",
        "stopped",
    ];

    /// A statement that breaks the rule `code`.
    pub fn invalid(code: Invalid, message: impl Into<String>) -> Error {
        Error::Invalid { code, message: message.into() }
    }

    /// A failed operation of the disk or network; `what` says on which file or peer.
    pub fn io(err: &io::Error, what: impl fmt::Display) -> Error {
        let kind = match err.kind() {
            io::ErrorKind::StorageFull => IoKind::StorageFull,
            io::ErrorKind::NotFound => IoKind::NotFound,
            io::ErrorKind::AlreadyExists => IoKind::AlreadyExists,
            io::ErrorKind::TimedOut => IoKind::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => IoKind::ConnectionLost,
            _ => IoKind::Other,
        };
        Error::Io { kind, message: format!("{what}: {err}") }
    }

    /// The stable code, one of [`Error::CODES`]: what a script compares, what a scenario's `error = ".."` names.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Invalid { code, .. } => code.code(),
            Error::NotLeader { .. } => "not_leader",
            Error::RegionNotFound { .. } => "region_not_found",
            Error::SchemaChanged { .. } => "schema_changed",
            Error::Busy { .. } => "busy",
            Error::Conflict { .. } => "conflict",
            Error::SessionExpired { .. } => "session_expired",
            Error::TooOld { .. } => "too_old",
            Error::Unknown { .. } => "unknown_outcome",
            Error::Deadline { .. } => "deadline",
            Error::Partial { .. } => "partial",
            Error::Damaged { .. } => "damaged",
            Error::Io { kind: IoKind::StorageFull, .. } => "storage_full",
            Error::Io { .. } => "io",
            Error::Stopped => "stopped",
        }
    }

    /// Whether the same request may succeed later without anybody changing it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::NotLeader { .. }
                | Error::RegionNotFound { .. }
                | Error::SchemaChanged { .. }
                | Error::Busy { .. }
                | Error::Unknown { .. }
                | Error::Stopped
                | Error::Io { kind: IoKind::ConnectionLost | IoKind::TimedOut, .. }
        )
    }

    /// Whether every replica that applies the same entry in the same state says the same: only such errors may be the
    /// outcome of an entry; any other one inside apply stops the replica.
    pub fn is_deterministic(&self) -> bool {
        matches!(
            self,
            Error::Invalid { .. } | Error::SchemaChanged { .. } | Error::Conflict { .. } | Error::SessionExpired { .. }
        )
    }

    /// Whether the request may have been applied although it failed.
    pub fn may_have_applied(&self) -> bool {
        matches!(
            self,
            Error::Unknown { .. }
                | Error::Partial { .. }
                | Error::SessionExpired { .. }
                | Error::Io { kind: IoKind::ConnectionLost | IoKind::TimedOut, .. }
        )
    }
}

impl Invalid {
    /// The stable code of the rule.
    pub fn code(self) -> &'static str {
        match self {
            Invalid::Syntax => "syntax",
            Invalid::Unsupported => "unsupported",
            Invalid::UnknownTable => "unknown_table",
            Invalid::UnknownColumn => "unknown_column",
            Invalid::UnknownFunction => "unknown_function",
            Invalid::UnknownOption => "unknown_option",
            Invalid::HasDependants => "has_dependants",
            Invalid::ViewNotReady => "view_not_ready",
            Invalid::ViewFailed => "view_failed",
            Invalid::DuplicateTable => "duplicate_table",
            Invalid::UnknownIndex => "unknown_index",
            Invalid::DuplicateIndex => "duplicate_index",
            Invalid::DuplicateColumn => "duplicate_column",
            Invalid::DuplicateFile => "duplicate_file",
            Invalid::WrongType => "wrong_type",
            Invalid::OutOfRange => "out_of_range",
            Invalid::NotNull => "not_null",
            Invalid::MissingKey => "missing_key",
            Invalid::PartitionGap => "partition_gap",
            Invalid::PartitionOverlap => "partition_overlap",
            Invalid::PartitionRule => "partition_rule",
            Invalid::KeyChange => "key_change",
            Invalid::Option => "option",
            Invalid::Schema => "schema",
            Invalid::Plan => "plan",
            Invalid::Evaluation => "evaluation",
            Invalid::QueryTooLarge => "query_too_large",
            Invalid::Mismatch => "mismatch",
            Invalid::Request => "request",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] ", self.code())?;
        match self {
            Error::Invalid { message, .. } | Error::Unknown { message } | Error::Io { message, .. } => {
                f.write_str(message)
            }
            Error::NotLeader { region, hint: Some((replica, node)) } => {
                write!(f, "region {region} is led by replica {replica} on node {node}")
            }
            Error::NotLeader { region, hint: None } => write!(f, "region {region} has no leader that is known here"),
            Error::RegionNotFound { region } => write!(f, "region {region} is not on this node"),
            Error::SchemaChanged { region, version } => {
                write!(f, "region {region} is at schema version {version} now; plan the statement again")
            }
            Error::Busy { what } => write!(f, "{what}; try again later"),
            Error::Conflict { region, rows } => {
                write!(f, "{} rows of region {region} changed since they were read", rows.len())
            }
            Error::SessionExpired { session } => write!(f, "session {session} is unknown or expired; open a new one"),
            Error::TooOld { region, oldest } => {
                write!(f, "region {region} keeps no versions before {oldest}; read at {oldest} or later")
            }
            Error::Deadline { waiting_for } => write!(f, "the deadline passed while waiting for {waiting_for}"),
            Error::Partial { written, cause } => {
                if written.is_empty() {
                    return write!(f, "written in part: {cause}");
                }
                f.write_str("written in")?;
                written.iter().try_for_each(|region| write!(f, " {region}"))?;
                write!(f, ", not elsewhere: {cause}")
            }
            Error::Damaged { file, message } => write!(f, "{file} is damaged: {message}"),
            Error::Stopped => f.write_str("the node is shutting down"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_its_code_and_what_to_do() {
        let err = Error::invalid(Invalid::NotNull, "column \"carrier\" of table flights is NOT NULL");
        assert_eq!(err.to_string(), "[not_null] column \"carrier\" of table flights is NOT NULL");
        assert!(err.is_deterministic() && !err.is_retryable());
        let err = Error::io(&io::Error::from(io::ErrorKind::StorageFull), "write log/3");
        assert_eq!(err.code(), "storage_full");
    }

    /// Every variant of an enum, with zeros for its fields: encodings number the variants from 0 on without gaps. So one
    /// that is added is found without anybody adding it here.
    fn variants<T: serde::de::DeserializeOwned>() -> Vec<T> {
        let decoded = |number: u8| {
            let mut bytes = [0; 32];
            bytes[0] = number;
            postcard::take_from_bytes(&bytes).map(|(variant, _)| variant).ok()
        };
        (0..=u8::MAX).map_while(decoded).collect()
    }

    #[test]
    fn every_code_is_listed_once_and_said_what_it_means() {
        let invalid = variants::<Invalid>().into_iter().map(|code| Error::invalid(code, ""));
        let io = variants::<IoKind>().into_iter().map(|kind| Error::Io { kind, message: String::new() });
        let mut codes: Vec<&str> =
            variants::<Error>().into_iter().chain(invalid).chain(io).map(|err| err.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        let mut listed = Error::CODES.to_vec();
        listed.sort_unstable();
        assert_eq!(listed, codes);
        for code in Error::CODES {
            assert_eq!(include_str!("error.rs").matches(&format!("/// | `{code}` |")).count(), 1, "the row of {code}");
        }
    }

    #[test]
    fn the_code_of_a_rule_is_its_name() {
        for rule in variants::<Invalid>() {
            let name: String = format!("{rule:?}")
                .chars()
                .flat_map(|c| c.is_uppercase().then_some('_').into_iter().chain(c.to_lowercase()))
                .collect();
            assert_eq!(rule.code(), name.trim_start_matches('_'));
        }
    }
}
