//! Options of a table: what its rows mean beyond their columns, and how its regions keep them.
//!
//! They are a part of the [`Schema`](super::Schema): they change with its version, by an entry of the log, on all replicas at
//! the same place. An option that is not set leaves the choice to the options of the node.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the versions of one row come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MergeMode {
    /// The newest one.
    #[default]
    LastRow,
    /// Of each column the newest one that is not NULL, back to when the row was last deleted.
    LastNonNull,
    /// All of them: rows are never replaced, and never deleted one by one.
    Append,
}

impl MergeMode {
    const NAMES: [(MergeMode, &'static str); 3] =
        [(MergeMode::LastRow, "last_row"), (MergeMode::LastNonNull, "last_non_null"), (MergeMode::Append, "append")];
}

impl fmt::Display for MergeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = MergeMode::NAMES.iter().find(|(mode, _)| mode == self).expect("all have names");
        f.write_str(name)
    }
}

/// See the module. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOptions {
    /// What the versions of one row come to.
    pub merge_mode: MergeMode,
    /// Rows whose time is longer ago than this expire. None: never.
    pub ttl_ms: Option<u64>,
    /// Length of the time windows that files are compacted in. None: as the files suggest.
    pub compaction_window_ms: Option<u64>,
    /// See [`Options::compaction_active_runs`](crate::options::Options::compaction_active_runs).
    pub compaction_active_runs: Option<u64>,
    /// See [`Options::compaction_inactive_runs`](crate::options::Options::compaction_inactive_runs).
    pub compaction_inactive_runs: Option<u64>,
    /// See [`Options::memtable_rows`](crate::options::Options::memtable_rows).
    pub memtable_rows: Option<u64>,
    /// See [`Options::memtable_bytes`](crate::options::Options::memtable_bytes).
    pub memtable_bytes: Option<u64>,
    /// See [`Options::flush_interval_ms`](crate::options::Options::flush_interval_ms).
    pub flush_interval_ms: Option<u64>,
}

/// Why an option cannot be set so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is explained by its message")]
pub enum OptionError {
    #[error("table option {0:?} is unknown")]
    Unknown(String),
    #[error("table option {name} = {value}: must be {legal}")]
    Value { name: String, value: String, legal: &'static str },
    #[error("table option ttl: the table has no TIME INDEX, which says how old a row is")]
    NoTime,
    #[error("table option merge_mode: goes from last_row to append and no other way, for rows were merged as {from}")]
    Mode { from: MergeMode },
}

const TIME: &str = "a time of at least 1ms, like 90s, 15m, 12h or 30d";
const COUNT: &str = "a whole number, at least 1";
const MODE: &str = "last_row, last_non_null or append";

impl TableOptions {
    /// The names of all options.
    pub const NAMES: [&'static str; 8] = [
        "merge_mode",
        "ttl",
        "compaction_window",
        "compaction_active_runs",
        "compaction_inactive_runs",
        "memtable_rows",
        "memtable_bytes",
        "flush_interval",
    ];

    /// Sets the option `name` to what `value` says; none: as if it never was set.
    pub fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), OptionError> {
        let wrong =
            |legal| OptionError::Value { name: name.to_string(), value: value.unwrap_or_default().to_string(), legal };
        let time = || value.map(|value| parse_time(value).ok_or_else(|| wrong(TIME))).transpose();
        let count = || {
            let parsed = |value: &str| value.parse().ok().filter(|count: &u64| *count >= 1);
            value.map(|value| parsed(value).ok_or_else(|| wrong(COUNT))).transpose()
        };
        match name {
            "merge_mode" => {
                let mode = |value| MergeMode::NAMES.iter().find(|(_, name)| *name == value).map(|(mode, _)| *mode);
                self.merge_mode = match value {
                    Some(value) => mode(value).ok_or_else(|| wrong(MODE))?,
                    None => MergeMode::default(),
                };
            }
            "ttl" => self.ttl_ms = time()?,
            "compaction_window" => self.compaction_window_ms = time()?,
            "compaction_active_runs" => self.compaction_active_runs = count()?,
            "compaction_inactive_runs" => self.compaction_inactive_runs = count()?,
            "memtable_rows" => self.memtable_rows = count()?,
            "memtable_bytes" => self.memtable_bytes = count()?,
            "flush_interval" => self.flush_interval_ms = time()?,
            _ => return Err(OptionError::Unknown(name.to_string())),
        }
        Ok(())
    }

    /// Whether a table that has options `self` may get `next`: rows that were merged cannot be taken apart again.
    pub(super) fn may_become(&self, next: &TableOptions) -> Result<(), OptionError> {
        match (self.merge_mode, next.merge_mode) {
            (from, to) if from == to => Ok(()),
            (MergeMode::LastRow, MergeMode::Append) => Ok(()),
            (from, _) => Err(OptionError::Mode { from }),
        }
    }

    /// The options that are set, by name, as SQL writes them.
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        let time = |name, time: Option<u64>| time.map(|ms| (name, show_time(ms)));
        let count = |name, count: Option<u64>| count.map(|count| (name, count.to_string()));
        let mode = (self.merge_mode != MergeMode::default()).then(|| ("merge_mode", self.merge_mode.to_string()));
        let all = [
            mode,
            time("ttl", self.ttl_ms),
            time("compaction_window", self.compaction_window_ms),
            count("compaction_active_runs", self.compaction_active_runs),
            count("compaction_inactive_runs", self.compaction_inactive_runs),
            count("memtable_rows", self.memtable_rows),
            count("memtable_bytes", self.memtable_bytes),
            time("flush_interval", self.flush_interval_ms),
        ];
        all.into_iter().flatten().collect()
    }
}

impl fmt::Display for TableOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.shown().into_iter().map(|(name, value)| format!("{name} = {value}")).collect();
        f.write_str(&shown.join(", "))
    }
}

/// Units and how many milliseconds they have, the longest first.
const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The milliseconds of `1d12h` or `90s`; none: it is no time, or nothing, or more than a timestamp can tell.
fn parse_time(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, behind) = behind.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = behind.trim_start();
    }
    (sum >= 1 && i64::try_from(sum).is_ok()).then_some(sum)
}

fn show_time(ms: u64) -> String {
    let mut rest = Duration::from_millis(ms).as_millis() as u64;
    let mut shown = String::new();
    // Weeks are read, and shown as days.
    for (unit, factor) in UNITS.into_iter().skip(1) {
        if rest >= factor {
            shown += &format!("{}{unit}", rest / factor);
            rest %= factor;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_one_that_is_read_as_the_same() {
        for (text, ms, shown) in [
            ("90s", 90_000, "1m30s"),
            ("2w", 1_209_600_000, "14d"),
            ("1d 12h", 129_600_000, "1d12h"),
            ("5ms", 5, "5ms"),
        ] {
            assert_eq!(parse_time(text), Some(ms));
            assert_eq!(show_time(ms), shown);
            assert_eq!(parse_time(shown), Some(ms));
        }
        for wrong in ["", "0s", "5", "s", "-1s", "1y", "1.5h", "99999999999999999999s", "9999999999999w"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_option_has_a_name_and_legal_values() {
        let mut options = TableOptions::default();
        for (name, value) in [("ttl", "30d"), ("merge_mode", "append"), ("memtable_rows", "7")] {
            options.set(name, Some(value)).unwrap();
        }
        assert_eq!(options.to_string(), "merge_mode = append, ttl = 30d, memtable_rows = 7");
        let mut again = TableOptions::default();
        options.shown().into_iter().for_each(|(name, value)| again.set(name, Some(&value)).unwrap());
        assert_eq!(again, options);
        TableOptions::NAMES.iter().for_each(|name| again.set(name, None).unwrap());
        assert_eq!(again, TableOptions::default());
        for (name, value, message) in [
            ("tll", "1s", "table option \"tll\" is unknown"),
            ("ttl", "soon", "table option ttl = soon: must be a time of at least 1ms, like 90s, 15m, 12h or 30d"),
            ("memtable_rows", "0", "table option memtable_rows = 0: must be a whole number, at least 1"),
            ("merge_mode", "last", "table option merge_mode = last: must be last_row, last_non_null or append"),
        ] {
            assert_eq!(again.set(name, Some(value)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn rows_that_were_merged_are_not_taken_apart() {
        let of = |merge_mode| TableOptions { merge_mode, ..TableOptions::default() };
        let (row, fields, append) = (of(MergeMode::LastRow), of(MergeMode::LastNonNull), of(MergeMode::Append));
        for options in [&row, &fields, &append] {
            assert!(options.may_become(options).is_ok());
        }
        assert!(row.may_become(&append).is_ok());
        for (from, to) in [(&append, &row), (&row, &fields), (&fields, &row), (&fields, &append), (&append, &fields)] {
            assert_eq!(from.may_become(to), Err(OptionError::Mode { from: from.merge_mode }));
        }
    }
}
