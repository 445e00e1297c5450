//! The fingerprint of a run: one hash over everything that happened in it, in order.
//!
//! Every event of the simulator (a message delivered, a write, a power loss) is folded into 128 bits: its virtual time,
//! its node, its kind, a digest of its payload. Equal fingerprints mean equal runs. Each fold is a bijection of the
//! state (see [`crate::hash`]): from the first differing event on all states differ, so the state after every
//! [`CHECKPOINT`] events locates the first difference between two runs up to so many events and to a span of virtual
//! time, and two recordings of all events ([`Trace::heard_by`]) name it.
//!
//! Without a listener an event costs a few multiplications and no allocation.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::hash::{Hash128, mix};

/// How many events lie between two checkpoints.
pub const CHECKPOINT: u64 = 1024;

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

/// The state at one point of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Events before it.
    pub events: u64,
    /// Virtual time of the last of them.
    pub at: Duration,
    /// The state after them.
    pub state: Fingerprint,
}

/// One event, as a listener gets it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Virtual time.
    pub at: Duration,
    /// The node it happened on; 0 for what belongs to none.
    pub node: u64,
    /// What happened.
    pub kind: &'static str,
    /// The digest of the payload.
    pub payload: Fingerprint,
    /// What happened, for people; not part of the fingerprint.
    pub text: fmt::Arguments<'a>,
}

/// Hears every event as it is folded in. Called while the trace is locked: must not call back.
pub type Listener = Arc<dyn Fn(&Seen<'_>) + Send + Sync>;

/// The events of one run. Clones write into the same run.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<State>>);

struct State {
    hash: u128,
    events: u64,
    checkpoints: Vec<Checkpoint>,
    listener: Option<Listener>,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace::heard_by(None)
    }
}

impl Trace {
    /// Without events yet, and nobody listens.
    pub fn new() -> Trace {
        Trace::default()
    }

    /// Without events yet; `listener` hears all of them.
    pub fn heard_by(listener: Option<Listener>) -> Trace {
        let hash = Hash128::default().finish();
        Trace(Arc::new(Mutex::new(State { hash, events: 0, checkpoints: Vec::new(), listener })))
    }

    /// Adds an event with its payload. `text` says it to people.
    pub fn event(&self, at: Duration, node: u64, kind: &'static str, payload: &[u8], text: fmt::Arguments<'_>) {
        self.digested(at, node, kind, Hash128::of(payload), text);
    }

    /// Adds an event of whose payload the caller has a digest already.
    pub fn digested(&self, at: Duration, node: u64, kind: &'static str, payload: u128, text: fmt::Arguments<'_>) {
        let mut state = self.state();
        let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let kind_hash = Hash128::of(kind.as_bytes());
        for word in [at_ns, node, kind_hash as u64, payload as u64, (payload >> 64) as u64] {
            state.hash = mix(state.hash, word);
        }
        state.events += 1;
        if state.events.is_multiple_of(CHECKPOINT) {
            let checkpoint = Checkpoint { events: state.events, at, state: Fingerprint(state.hash) };
            state.checkpoints.push(checkpoint);
        }
        if let Some(listener) = &state.listener {
            listener(&Seen { at, node, kind, payload: Fingerprint(payload), text });
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
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.state().checkpoints.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "Trace({} after {} events)", Fingerprint(state.hash), state.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `events` events with all of them recorded; event `odd` has one byte changed.
    fn run(events: u64, odd: Option<u64>) -> (Trace, Vec<String>) {
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let to = recorded.clone();
        let listener: Listener = Arc::new(move |seen: &Seen<'_>| {
            to.lock().unwrap().push(format!("{:?} {} {} {}", seen.at, seen.node, seen.kind, seen.payload));
        });
        let trace = Trace::heard_by(Some(listener));
        fill(&trace, events, odd);
        let recorded = recorded.lock().unwrap().clone();
        (trace, recorded)
    }

    fn fill(trace: &Trace, events: u64, odd: Option<u64>) {
        for number in 0..events {
            let payload = if odd == Some(number) { *b"payloae" } else { *b"payload" };
            trace.event(Duration::from_millis(number), number % 3, "disk.write", &payload, format_args!("{number}"));
        }
    }

    #[test]
    fn the_same_events_give_the_same_fingerprint_heard_or_not() {
        let plain = Trace::new();
        fill(&plain, 3000, None);
        let (heard, recorded) = run(3000, None);
        assert_eq!((plain.fingerprint(), plain.events()), (heard.fingerprint(), recorded.len() as u64));
        assert_eq!(plain.checkpoints(), heard.checkpoints());
        assert_ne!(plain.fingerprint(), run(2999, None).0.fingerprint());
    }

    #[test]
    fn a_checkpoint_says_when_it_was() {
        let checkpoints = run(2050, None).0.checkpoints();
        let places: Vec<_> = checkpoints.iter().map(|point| (point.events, point.at)).collect();
        assert_eq!(places, [(1024, Duration::from_millis(1023)), (2048, Duration::from_millis(2047))]);
    }

    #[test]
    fn every_part_of_an_event_counts_and_its_text_does_not() {
        let of = |at: u64, node: u64, kind: &'static str, payload: &[u8], text: &str| {
            let trace = Trace::new();
            trace.event(Duration::from_nanos(at), node, kind, payload, format_args!("{text}"));
            trace.fingerprint()
        };
        let base = of(1, 2, "a", b"x", "");
        let others =
            [of(2, 2, "a", b"x", ""), of(1, 3, "a", b"x", ""), of(1, 2, "b", b"x", ""), of(1, 2, "a", b"y", "")];
        assert!(others.iter().all(|other| *other != base));
        assert_eq!(of(1, 2, "a", b"x", "told"), base);
    }

    #[test]
    fn a_changed_byte_at_event_k_is_found_at_event_k() {
        let (plain, recorded) = run(5000, None);
        for odd in [0, 1, 1023, 1024, 2500, 4095, 4096, 4999] {
            let (other, of_other) = run(5000, Some(odd));
            let (a, b) = (plain.checkpoints(), other.checkpoints());
            let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count() as u64;
            assert!((same * CHECKPOINT..(same + 1) * CHECKPOINT).contains(&odd), "{odd} behind checkpoint {same}");
            let first = recorded.iter().zip(&of_other).position(|(a, b)| a != b);
            assert_eq!(first, Some(odd as usize));
            assert_ne!(plain.fingerprint(), other.fingerprint());
        }
    }

    #[test]
    fn a_fingerprint_is_printed_and_read_again() {
        let fingerprint = run(10, None).0.fingerprint();
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!(fingerprint.to_string().len(), 32);
    }
}
