//! The wall clock of a simulated node: a function of virtual time that a fault may set apart, let drift, step or freeze.
//!
//! Every clock starts at 2013-02-01T00:00:00Z. It is kept as a line through an anchor, a pair of virtual and local time;
//! each change makes a new anchor at the present, so the past stays as it was told. Timers are not affected: they run on
//! virtual time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::clock::Clock;
use engine::types::Timestamp;
use madsim::time::TimeHandle;

/// 2013-02-01T00:00:00Z in milliseconds since 1970.
pub const START_MS: i64 = 1_359_676_800_000;

const MILLION: i128 = 1_000_000;

/// The clock of one node. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<Mutex<Line>>);

/// How the clock runs from its last change on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    /// Virtual time of the anchor.
    at: Duration,
    /// What the clock is ahead of the start there, in nanoseconds.
    local: i128,
    /// Parts per million that it is faster than virtual time.
    drift_ppm: i64,
    frozen: bool,
}

impl SimClock {
    /// A clock that is right.
    pub fn new() -> SimClock {
        SimClock::default()
    }

    /// A clock that is `offset_ms` ahead (behind, if negative) from the start and gains `drift_ppm` microseconds a
    /// second. A clock cannot run backwards: a drift below -1,000,000 stands still.
    pub fn with(offset_ms: i64, drift_ppm: i64) -> SimClock {
        let local = i128::from(offset_ms) * MILLION;
        SimClock(Arc::new(Mutex::new(Line { local, drift_ppm: drift_ppm.max(-1_000_000), ..Line::default() })))
    }

    /// Steps by `by_ms`, backwards if negative.
    pub fn step(&self, by_ms: i64) {
        self.change(|line| line.local += i128::from(by_ms) * MILLION);
    }

    /// From now on gains `ppm` microseconds a second.
    pub fn set_drift(&self, ppm: i64) {
        self.change(|line| line.drift_ppm = ppm.max(-1_000_000));
    }

    /// Stands still until [`SimClock::thaw`].
    pub fn freeze(&self) {
        self.change(|line| line.frozen = true);
    }

    /// Goes on from where it stood still, behind by as long as that took.
    pub fn thaw(&self) {
        self.change(|line| line.frozen = false);
    }

    /// Right again: no offset, no drift, not frozen.
    pub fn correct(&self) {
        self.change(|line| *line = Line { at: line.at, local: line.at.as_nanos() as i128, ..Line::default() });
    }

    /// How far it is ahead of virtual time now, in milliseconds.
    pub fn ahead_ms(&self) -> i64 {
        let now = virtual_now();
        let ahead = self.line().local_at(now) - now.as_nanos() as i128;
        saturated(ahead.div_euclid(MILLION))
    }

    fn change(&self, change: impl FnOnce(&mut Line)) {
        let now = virtual_now();
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *line = Line { at: now, local: line.local_at(now), ..*line };
        change(&mut line);
    }

    fn line(&self) -> Line {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let ms = self.line().local_at(virtual_now()).div_euclid(MILLION);
        Timestamp(START_MS.saturating_add(saturated(ms)))
    }
}

impl Line {
    /// What the clock is ahead of the start at virtual time `now`.
    fn local_at(&self, now: Duration) -> i128 {
        if self.frozen {
            return self.local;
        }
        let passed = now.saturating_sub(self.at).as_nanos() as i128;
        self.local + passed + passed * i128::from(self.drift_ppm) / MILLION
    }
}

/// Virtual time since the simulation started; zero outside of it.
fn virtual_now() -> Duration {
    TimeHandle::try_current().map_or(Duration::ZERO, |time| time.elapsed())
}

fn saturated(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds(seconds: u64) {
        madsim::time::advance(Duration::from_secs(seconds));
    }

    fn ms(clock: &SimClock) -> i64 {
        clock.now().0 - START_MS
    }

    /// Virtual milliseconds since the start.
    fn passed() -> i64 {
        virtual_now().as_millis() as i64
    }

    #[test]
    fn the_start_is_what_it_says() {
        assert_eq!(SimClock::new().now(), Timestamp(START_MS));
        // 43 years of which 11 are leap years, and January.
        assert_eq!(START_MS, ((2013 - 1970) * 365 + 11 + 31) * 86_400_000);
    }

    #[tokio::test]
    async fn a_clock_follows_virtual_time_with_offset_and_drift() {
        let (right, off) = (SimClock::new(), SimClock::with(-5_000, 200));
        seconds(1000).await;
        assert_eq!(ms(&right), passed());
        assert_eq!(off.ahead_ms(), -4_800, "behind by 5 s, gains 200 us a second");
        assert_eq!(ms(&off), passed() - 4_800);
    }

    #[tokio::test]
    async fn steps_freezes_and_drift_change_what_comes_and_not_what_was() {
        let clock = SimClock::with(0, 1000);
        seconds(10).await;
        assert_eq!(clock.ahead_ms(), 10);
        clock.step(-60_000);
        assert_eq!(clock.ahead_ms(), 10 - 60_000);
        clock.set_drift(0);
        seconds(10).await;
        assert_eq!(clock.ahead_ms(), 10 - 60_000, "what it had gained stays");
        clock.freeze();
        let stood = clock.now();
        seconds(7).await;
        assert_eq!(clock.now(), stood);
        clock.thaw();
        seconds(1).await;
        assert_eq!(ms(&clock), stood.0 - START_MS + 1000);
        clock.correct();
        assert_eq!(ms(&clock), passed());
        clock.set_drift(i64::MIN);
        let stood = clock.now();
        seconds(5).await;
        assert_eq!(clock.now(), stood, "it never runs backwards by itself");
        clock.step(i64::MIN);
        assert_eq!(clock.now(), Timestamp(START_MS.saturating_add(i64::MIN + stood.0 - START_MS)));
    }
}
