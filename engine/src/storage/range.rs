//! Range tombstones: entries of the log that take out many rows at once.
//!
//! A truncation takes out all rows, an expiry those whose time is before its watermark. Each has a sequence of its own: it
//! hides what is older from reads at or behind that sequence, and nothing from reads before it. All versions of a row have
//! the same time (it is part of the row key), so what a range tombstone hides of a row is its older versions, never a newer
//! one alone: sources leave them out before versions are merged.
//!
//! The newest truncation and the newest expiry are kept for ever, whatever files still hold what they hide. Older ones are
//! forgotten, and reads that would need them refused, except for those of pins.

use serde::{Deserialize, Serialize};

use super::sst::FileMeta;
use crate::types::Sequence;

/// How many older expiries are remembered, so that reads which began before them go on.
const REMEMBERED: usize = 32;

/// See the module. Replicated: a function of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeTombstones {
    /// Truncations, ascending.
    truncated: Vec<Sequence>,
    /// Expiries: the sequence of each, and the time that rows are before, in the unit of the TIME INDEX. Both ascend.
    expired: Vec<(Sequence, i64)>,
    /// Reads at earlier sequences are refused.
    pub oldest: Sequence,
}

/// What the range tombstones up to some sequence hide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Versions at or before this.
    truncated: Sequence,
    /// Versions before the sequence whose time is before the other.
    expired: Option<(Sequence, i64)>,
}

impl RangeTombstones {
    /// All that is older than `at` goes. `pinned`: the oldest sequence that must stay readable.
    pub fn truncate(&mut self, at: Sequence, pinned: Option<Sequence>) {
        self.truncated.push(at);
        self.forget(pinned.unwrap_or(at));
    }

    /// What is older than `at`, and of a time before `before`, goes. `pinned`: the oldest sequence that must stay readable.
    pub fn expire(&mut self, at: Sequence, before: i64, pinned: Option<Sequence>) {
        self.expired.push((at, before));
        // Before the first expiry there was none: as long as all are remembered, every read goes on.
        let remembered = match self.expired.len().saturating_sub(REMEMBERED) {
            0 => self.oldest,
            more => self.expired[more].0,
        };
        self.forget(pinned.map_or(remembered, |pinned| pinned.min(remembered)).max(self.oldest));
    }

    /// Up to which time rows have expired.
    pub fn watermark(&self) -> Option<i64> {
        self.expired.last().map(|(_, before)| *before)
    }

    /// What is hidden from a read at `upto`.
    pub fn upto(&self, upto: Sequence) -> Hidden {
        let truncated = self.truncated.iter().rev().find(|at| **at <= upto).copied().unwrap_or_default();
        let expired = self.expired.iter().rev().find(|(at, _)| *at <= upto).copied();
        Hidden { truncated, expired }
    }

    /// Reads before `oldest` are over.
    fn forget(&mut self, oldest: Sequence) {
        self.oldest = self.oldest.max(oldest);
        let is_needed = |next: Option<&Sequence>| next.is_some_and(|next| *next > oldest);
        while self.truncated.len() > 1 && !is_needed(self.truncated.get(1)) {
            self.truncated.remove(0);
        }
        while self.expired.len() > 1 && !is_needed(self.expired.get(1).map(|(at, _)| at)) {
            self.expired.remove(0);
        }
    }
}

impl Hidden {
    /// Whether the version `sequence` of a row of that time is hidden. (A table without TIME INDEX has no expiries.)
    pub fn hides(&self, sequence: Sequence, time: Option<i64>) -> bool {
        let has_expired = |(at, before)| sequence < at && time.is_some_and(|time| time < before);
        sequence <= self.truncated || self.expired.is_some_and(has_expired)
    }

    /// Whether every version in the file is hidden. `has_time`: its table has a TIME INDEX.
    pub fn hides_file(&self, file: &FileMeta, has_time: bool) -> bool {
        self.hides(file.last_sequence, has_time.then_some(file.last_time))
    }

    /// Whether some version in the file may be hidden.
    pub fn may_hide_of(&self, file: &FileMeta, has_time: bool) -> bool {
        self.hides(file.first_sequence, has_time.then_some(file.first_time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Sequence = Sequence;

    #[test]
    fn what_is_older_is_hidden_from_later_reads_only() {
        let mut ranges = RangeTombstones::default();
        ranges.truncate(S(5), Some(S(2)));
        ranges.expire(S(8), 100, Some(S(2)));
        ranges.expire(S(9), 200, Some(S(2)));
        assert_eq!((ranges.oldest, ranges.watermark()), (S(2), Some(200)));
        let hides = |upto, sequence, time| ranges.upto(S(upto)).hides(S(sequence), Some(time));
        assert!(!hides(4, 3, 0) && hides(5, 4, 0), "a truncation");
        assert!(!hides(7, 6, 99) && hides(8, 6, 99) && !hides(8, 6, 100) && hides(9, 6, 100), "two expiries");
        assert!(!hides(9, 9, 0), "what is written later is not hidden however old its time is");
        assert!(!ranges.upto(S(9)).hides(S(6), None), "without a time nothing expires");
    }

    #[test]
    fn what_no_read_needs_is_forgotten_and_the_newest_never() {
        let mut ranges = RangeTombstones::default();
        ranges.truncate(S(5), None);
        ranges.truncate(S(7), None);
        assert_eq!((ranges.truncated.clone(), ranges.oldest), (vec![S(7)], S(7)));
        for number in 0..100 {
            ranges.expire(S(10 + number), number as i64, None);
        }
        assert_eq!((ranges.expired.len(), ranges.oldest), (REMEMBERED, S(10 + 100 - REMEMBERED as u64)));
        assert_eq!(ranges.upto(ranges.oldest).expired, Some((ranges.oldest, 100 - REMEMBERED as i64)));
        let mut few = RangeTombstones::default();
        few.expire(S(10), 5, None);
        assert_eq!((few.oldest, few.upto(S(9)).expired), (S(0), None), "a read that began before goes on");
        let mut pinned = RangeTombstones::default();
        for number in 0..100 {
            pinned.expire(S(10 + number), number as i64, Some(S(12)));
        }
        assert_eq!((pinned.oldest, pinned.upto(S(12)).expired), (S(12), Some((S(12), 2))));
        pinned.truncate(S(200), None);
        assert_eq!((pinned.expired.len(), pinned.watermark()), (1, Some(99)));
    }
}
