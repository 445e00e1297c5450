//! `SET name = value`: what a session may choose for itself.

use std::time::Duration;

use super::names::suggest;
use crate::error::{Error, Invalid, Result};

/// A setting of a session with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `read_staleness = '500ms'`: the rows of queries may be those of so long ago, and come from any replica. `'0'` and
    /// DEFAULT: those of now, from the leader. What UPDATE, DELETE and INSERT read is always that.
    ReadStaleness(Duration),
}

const NAMES: [&str; 1] = ["read_staleness"];

impl Setting {
    /// The setting called `name` with the value that is written as `value`; none: DEFAULT.
    pub(super) fn new(name: &str, value: Option<&str>) -> Result<Setting> {
        match name {
            "read_staleness" => value.map_or(Ok(Duration::ZERO), duration).map(Setting::ReadStaleness),
            other => {
                let known = suggest(other, NAMES);
                Err(Error::invalid(Invalid::UnknownOption, format!("a session has no setting {other:?}{known}")))
            }
        }
    }
}

/// The longest time that makes sense: what is older than that is not what anybody means by a bound.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `500ms`, `2s`, `1m`, `0`.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        // Nothing is nothing in every unit.
        "" if number.bytes().all(|digit| digit == b'0') => Some(1),
        _ => None,
    };
    let time = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit)| number.checked_mul(unit));
    match time.map(Duration::from_millis).filter(|time| *time <= LONGEST) {
        Some(time) => Ok(time),
        None => {
            let message = format!("{text:?} is no time like '500ms', '2s' or '1m', from 0 to 24h");
            Err(Error::invalid(Invalid::Option, message))
        }
    }
}
