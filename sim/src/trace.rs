//! The fingerprint of a run: one hash over everything that happened in it, in order.
//!
//! Every event of the simulator (a message delivered, a write, a power loss) is folded into 128 bits: its virtual time,
//! its node, its kind, a digest of its payload. Equal fingerprints mean equal runs. Each fold is a bijection of the
//! state (see [`crate::hash`]): from the first differing event on all states differ, so the state after every
//! [`CHECKPOINT`] events locates the first difference between two runs up to so many events, and a second run that keeps
//! these events in full ([`Trace::window`]) names it.
//!
//! Without recording an event costs a few multiplications and no allocation.

use std::borrow::Cow;
use std::fmt;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::{Hash128, mix};

/// How many events lie between two checkpoints.
pub const CHECKPOINT: u64 = 1024;

/// How many events are kept in full at most: about 200 MB. What is beyond counts in the fingerprint only, and
/// [`Summary::recorded`] ends there.
pub const RECORDED_MAX: usize = 2_000_000;

/// The state after all events; 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Fingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One event, kept in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Counts all events of the run from 0.
    pub number: u64,
    /// Virtual time in nanoseconds.
    pub at_ns: u64,
    /// The node it happened on; 0 for what belongs to none.
    pub node: u64,
    /// What happened.
    pub kind: Cow<'static, str>,
    /// The digest of the payload.
    pub payload: Fingerprint,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Recorded { number, at_ns, node, kind, payload } = self;
        write!(f, "{number} {}.{:09}s n{node} {kind} {payload}", at_ns / 1_000_000_000, at_ns % 1_000_000_000)
    }
}

/// The events of one run. Clones write into the same run.
#[derive(Clone, Debug)]
pub struct Trace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    hash: u128,
    events: u64,
    checkpoints: Vec<Fingerprint>,
    /// Which events are kept in full.
    window: Range<u64>,
    recorded: Vec<Recorded>,
}

impl Trace {
    /// Without events yet. With `record`, all are kept in full, up to [`RECORDED_MAX`].
    pub fn new(record: bool) -> Trace {
        Trace::window(if record { 0..u64::MAX } else { 0..0 })
    }

    /// Keeps in full the events with numbers in `window`, up to [`RECORDED_MAX`] of them.
    pub fn window(window: Range<u64>) -> Trace {
        Trace(Arc::new(Mutex::new(State {
            hash: Hash128::default().finish(),
            events: 0,
            checkpoints: Vec::new(),
            window,
            recorded: Vec::new(),
        })))
    }

    /// Adds an event with its payload.
    pub fn event(&self, at: Duration, node: u64, kind: &'static str, payload: &[u8]) {
        self.digested(at, node, kind, Hash128::of(payload));
    }

    /// Adds an event of whose payload the caller has a digest already.
    pub fn digested(&self, at: Duration, node: u64, kind: &'static str, payload: u128) {
        let mut state = self.state();
        let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let kind_hash = Hash128::of(kind.as_bytes());
        for word in [at_ns, node, kind_hash as u64, payload as u64, (payload >> 64) as u64] {
            state.hash = mix(state.hash, word);
        }
        let number = state.events;
        state.events += 1;
        if state.events.is_multiple_of(CHECKPOINT) {
            let checkpoint = Fingerprint(state.hash);
            state.checkpoints.push(checkpoint);
        }
        if state.window.contains(&number) && state.recorded.len() < RECORDED_MAX {
            let payload = Fingerprint(payload);
            state.recorded.push(Recorded { number, at_ns, node, kind: Cow::Borrowed(kind), payload });
        }
    }

    /// The state after all events so far.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.state().hash)
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.state().events
    }

    /// The state after every [`CHECKPOINT`] events.
    pub fn checkpoints(&self) -> Vec<Fingerprint> {
        self.state().checkpoints.clone()
    }

    /// All of it, to be compared or written down.
    pub fn summary(&self) -> Summary {
        let state = self.state();
        Summary {
            fingerprint: Fingerprint(state.hash),
            events: state.events,
            checkpoints: state.checkpoints.clone(),
            recorded: state.recorded.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a run that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The state after the last event.
    pub fingerprint: Fingerprint,
    /// How many events there were.
    pub events: u64,
    /// The state after every [`CHECKPOINT`] events.
    pub checkpoints: Vec<Fingerprint>,
    /// The events that were kept in full.
    pub recorded: Vec<Recorded>,
}

/// Where two runs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// At this event; one side is missing where one run had ended.
    At {
        /// Number of the event.
        number: u64,
        /// What the first run did there.
        a: Option<Recorded>,
        /// What the second run did there.
        b: Option<Recorded>,
    },
    /// At one of these events: repeat both runs with [`Trace::window`] over this range to know it.
    Within(Range<u64>),
}

/// Where two runs part first; none where they are equal.
pub fn first_difference(a: &Summary, b: &Summary) -> Option<Difference> {
    if a.fingerprint == b.fingerprint && a.events == b.events {
        return None;
    }
    let equal = a.checkpoints.iter().zip(&b.checkpoints).take_while(|(a, b)| a == b).count() as u64;
    let from = equal * CHECKPOINT;
    // The shorter run may end before the next checkpoint: then it ends, or parts, before the longer one's.
    let to = (from + CHECKPOINT).min(a.events.max(b.events));
    let events = |run: &Summary| -> Option<Vec<Recorded>> {
        let start = run.recorded.iter().position(|event| event.number >= from).unwrap_or(run.recorded.len());
        let events: Vec<Recorded> =
            run.recorded[start..].iter().take_while(|event| event.number < to).cloned().collect();
        (events.len() as u64 == to.min(run.events).saturating_sub(from)).then_some(events)
    };
    let (Some(of_a), Some(of_b)) = (events(a), events(b)) else { return Some(Difference::Within(from..to)) };
    let same = of_a.iter().zip(&of_b).take_while(|(a, b)| a == b).count();
    Some(Difference::At { number: from + same as u64, a: of_a.get(same).cloned(), b: of_b.get(same).cloned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `events` events; event `odd` has one byte changed.
    fn run(events: u64, odd: Option<u64>, window: Range<u64>) -> Summary {
        let trace = Trace::window(window);
        for number in 0..events {
            let payload = if odd == Some(number) { *b"payloae" } else { *b"payload" };
            trace.event(Duration::from_micros(number), number % 3, "disk.write", &payload);
        }
        trace.summary()
    }

    #[test]
    fn the_same_events_give_the_same_fingerprint_recorded_or_not() {
        let plain = run(3000, None, 0..0);
        assert_eq!(plain.fingerprint, run(3000, None, 0..u64::MAX).fingerprint);
        assert_eq!(plain.checkpoints.len(), 2);
        assert!(plain.recorded.is_empty());
        assert_eq!(first_difference(&plain, &run(3000, None, 5..7)), None);
        assert_ne!(plain.fingerprint, run(2999, None, 0..0).fingerprint);
    }

    #[test]
    fn every_part_of_an_event_counts() {
        let of = |at: u64, node: u64, kind: &'static str, payload: &[u8]| {
            let trace = Trace::new(false);
            trace.event(Duration::from_nanos(at), node, kind, payload);
            trace.fingerprint()
        };
        let base = of(1, 2, "a", b"x");
        for other in [of(2, 2, "a", b"x"), of(1, 3, "a", b"x"), of(1, 2, "b", b"x"), of(1, 2, "a", b"y")] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn a_changed_byte_at_event_k_is_reported_as_event_k() {
        let plain = run(5000, None, 0..0);
        for odd in [0, 1, 1023, 1024, 2500, 4095, 4096, 4999] {
            let other = run(5000, Some(odd), 0..0);
            let Some(Difference::Within(range)) = first_difference(&plain, &other) else {
                panic!("without records only a range can be known")
            };
            assert!(range.contains(&odd) && range.end - range.start <= CHECKPOINT, "{odd} in {range:?}");
            let (a, b) = (run(5000, None, range.clone()), run(5000, Some(odd), range));
            match first_difference(&a, &b) {
                Some(Difference::At { number, a: Some(a), b: Some(b) }) => {
                    assert_eq!((number, a.number, b.number), (odd, odd, odd));
                    assert_ne!(a.payload, b.payload);
                }
                other => panic!("event {odd}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_run_that_ends_early_differs_where_it_ends() {
        for short in [0, 10, 1024, 1030, 2048] {
            let (a, b) = (run(short, None, 0..u64::MAX), run(2500, None, 0..u64::MAX));
            match first_difference(&a, &b) {
                Some(Difference::At { number, a: None, b: Some(b) }) => assert_eq!((number, b.number), (short, short)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_summary_survives_json() {
        let summary = run(1100, None, 3..5);
        let json = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
        assert_eq!(summary.fingerprint.to_string().parse(), Ok(summary.fingerprint));
        assert_eq!(summary.recorded[0].to_string().split(' ').take(3).collect::<Vec<_>>(), ["3", "0.000003000s", "n0"]);
    }
}
