//! A fill comes to its end although rows are written faster than it reads.
//!
//! A round sends what was written during the one before: as long as it is faster than the writers, each is shorter than the last.
//! When three in a row are not, writes to the region are made to wait, by a little at first and by twice as much with each further
//! round that does not shrink. They are never refused. A user who limits the rate of a fill has asked for a slow one: then nothing
//! waits, and SHOW JOBS shows how far it falls behind.

use std::time::Duration;

use crate::types::Sequence;

/// Rounds that may be as long as the one before.
const PATIENCE: u32 = 3;

/// How the rounds of a leg go, under one leader.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    last: Option<u64>,
    not_shorter: u32,
    delay: Duration,
}

impl Pace {
    /// A round is begun, of what changed from `since` to `upto`; answers how long each write must wait from now on: `least` at
    /// first, `most` at most.
    pub fn round(&mut self, since: Option<Sequence>, upto: Sequence, least: Duration, most: Duration) -> Duration {
        // The first one has all rows; it says nothing of who is faster.
        let Some(since) = since else { return self.delay };
        let size = upto.0.saturating_sub(since.0);
        match self.last.replace(size) {
            Some(last) if size >= last => self.not_shorter += 1,
            _ => self.not_shorter = 0,
        }
        if self.not_shorter >= PATIENCE {
            self.delay = (self.delay * 2).clamp(least, most);
        }
        self.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_when_three_rounds_are_not_shorter_and_longer_if_that_does_not_help() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        let mut at = 100;
        let mut round = |size: Option<u64>| {
            let since = size.map(|_| Sequence(at));
            at += size.unwrap_or(0);
            pace.round(since, Sequence(at), ms(2), ms(10)).as_millis()
        };
        assert_eq!([None, Some(50), Some(50), Some(60), Some(55)].map(&mut round), [0, 0, 0, 0, 0]);
        assert_eq!([Some(55), Some(56), Some(57)].map(&mut round), [0, 0, 2]);
        assert_eq!([Some(57), Some(57), Some(57), Some(57)].map(&mut round), [4, 8, 10, 10]);
        assert_eq!([Some(30), Some(20)].map(&mut round), [10, 10], "it stays until it is through");
    }
}
