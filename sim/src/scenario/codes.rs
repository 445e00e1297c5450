//! The codes of the product's errors, as `error = ".."` of a step names them.

use super::position::one_of;

/// Every code that the product answers with.
pub(super) const ERROR_CODES: &[&str] = &[
    "syntax",
    "unsupported",
    "unknown_table",
    "unknown_column",
    "unknown_function",
    "unknown_option",
    "unknown_job",
    "duplicate_table",
    "duplicate_column",
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

/// Refuses a `code` that is none of `known`.
pub(super) fn check(code: &str, known: &[&str]) -> Result<(), String> {
    if known.contains(&code) { Ok(()) } else { Err(one_of("the code of an error", code, known)) }
}
