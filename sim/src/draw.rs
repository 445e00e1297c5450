//! Keyed draws: every random decision of the harness is a function of the seed and of what it is for.
//!
//! `draws.range("disk/n2/manifest/fsync/17/delay", 1..4)` does not take the next value of a stream: it computes ChaCha8
//! under the key (seed, name). So one more fsync, or one fault less in the plan, moves no other decision, and the same
//! name asked twice gets the same answer. Who draws repeatedly for one thing numbers the names or asks for a stream
//! ([`Draws::rng`]). Only the order of tasks is not drawn here: that is one stream of madsim's.
//!
//! Names are paths from the general to the particular; passing `format_args!(..)` makes none of them a string.
//!
//! What can be decided only while the run goes ("the leader of flights/2", which of the unsynced writes a power loss
//! kept) is put down by name with [`Draws::decide`], in order, for the plan and the report.

use std::fmt::Display;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::hash::Hash128;

/// The random decisions of one run. Clones draw the same and share the record of decisions.
#[derive(Clone, Debug)]
pub struct Draws {
    seed: u64,
    /// Whether each single draw is put down beside the decisions.
    every: bool,
    decisions: Arc<Mutex<Vec<Decision>>>,
}

/// What was decided during the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What it was for.
    pub name: String,
    /// What it came to, for people and for comparison.
    pub value: String,
}

impl Draws {
    /// The draws of `seed`.
    pub fn new(seed: u64) -> Draws {
        Draws { seed, every: false, decisions: Arc::default() }
    }

    /// Like [`Draws::new`], and every single draw is put down among the decisions too: for comparing two runs by name.
    pub fn recording(seed: u64) -> Draws {
        Draws { every: true, ..Draws::new(seed) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// 64 uniform bits.
    pub fn u64(&self, name: impl Display) -> u64 {
        let value = self.stream(&name).next_u64();
        self.drawn(&name, value);
        value
    }

    /// Uniform within `range`; its start if it is empty.
    pub fn range(&self, name: impl Display, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        let value = range.start + below(&mut self.stream(&name), width);
        self.drawn(&name, value);
        value
    }

    /// Uniform from `least` to `most`, both included, in nanoseconds; `least` if `most` is less.
    pub fn duration(&self, name: impl Display, least: Duration, most: Duration) -> Duration {
        let width = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX - 1);
        let value = least + Duration::from_nanos(below(&mut self.stream(&name), width + 1));
        self.drawn(&name, format_args!("{value:?}"));
        value
    }

    /// True with probability `p`: never at 0 or less, always at 1 or more.
    pub fn chance(&self, name: impl Display, p: f64) -> bool {
        let value = uniform(&mut self.stream(&name)) < p;
        self.drawn(&name, value);
        value
    }

    /// One of `items`; none if there is none.
    pub fn pick<'a, T>(&self, name: impl Display, items: &'a [T]) -> Option<&'a T> {
        let index = below(&mut self.stream(&name), items.len() as u64);
        self.drawn(&name, index);
        items.get(index as usize)
    }

    /// `len` uniform bytes.
    pub fn bytes(&self, name: impl Display, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream(&name).fill_bytes(&mut bytes);
        self.drawn(&name, format_args!("{:032x}", Hash128::of(&bytes)));
        bytes
    }

    /// Puts `items` into a random order, each one equally probable.
    pub fn shuffle<T>(&self, name: impl Display, items: &mut [T]) {
        let mut stream = self.stream(&name);
        for last in (1..items.len()).rev() {
            items.swap(last, below(&mut stream, last as u64 + 1) as usize);
        }
        self.drawn(&name, "shuffled");
    }

    /// A stream for what needs many values under one name (a workload's rows). What is taken from it is not recorded.
    pub fn rng(&self, name: impl Display) -> ChaCha8Rng {
        self.drawn(&name, "stream");
        self.stream(&name)
    }

    /// Puts down what was decided under `name`.
    pub fn decide(&self, name: impl Display, value: impl Display) {
        let decision = Decision { name: name.to_string(), value: value.to_string() };
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner).push(decision);
    }

    /// All that was decided so far, in order.
    pub fn decisions(&self) -> Vec<Decision> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key: the seed, eight zero bytes that are free for a later purpose, the hash of the name.
    fn stream(&self, name: impl Display) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[16..].copy_from_slice(&Hash128::of_display(name).to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    fn drawn(&self, name: impl Display, value: impl Display) {
        if self.every {
            self.decide(name, value);
        }
    }
}

/// Uniform below `width`, 0 for a width of 0, by multiplication with rejection (Lemire 2019): no value is favoured.
pub fn below(rng: &mut impl Rng, width: u64) -> u64 {
    if width == 0 {
        return 0;
    }
    let refused_below = width.wrapping_neg() % width;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(width);
        if product as u64 >= refused_below {
            return (product >> 64) as u64;
        }
    }
}

/// Uniform from 0 to below 1.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_and_name_and_on_nothing_else() {
        let draws = Draws::new(7);
        let alone = draws.u64("disk/n2/fsync/17");
        for other in 0..100 {
            draws.u64(format_args!("disk/n1/fsync/{other}"));
        }
        assert_eq!(draws.u64("disk/n2/fsync/17"), alone);
        assert_eq!(Draws::new(7).u64(format!("disk/n{}/fsync/{}", 2, 17)), alone);
        assert_ne!(draws.u64("disk/n2/fsync/18"), alone);
        assert_ne!(Draws::new(8).u64("disk/n2/fsync/17"), alone);
    }

    #[test]
    fn values_never_change() {
        // A seed in a bug report must mean the same years later.
        assert_eq!(Draws::new(1).u64("a"), VALUE);
    }

    const VALUE: u64 = 0xf5a41033dd08dbe5;

    #[test]
    fn values_are_spread_evenly() {
        let draws = Draws::new(3);
        let mut counts = [0; 7];
        for at in 0..7000 {
            counts[draws.range(format_args!("even/{at}"), 10..17) as usize - 10] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        // Three quarters of 2^64: folded without rejection, every third value would come twice as often as the others.
        let thirds =
            (0..3000).filter(|at| draws.range(format_args!("wide/{at}"), 0..3 << 62).is_multiple_of(3)).count();
        assert!((850..1150).contains(&thirds), "{thirds}");
        let heads = (0..10_000).filter(|at| draws.chance(format_args!("coin/{at}"), 0.25)).count();
        assert!((2300..2700).contains(&heads), "{heads}");
        let mut firsts = [0; 4];
        for at in 0..4000 {
            let mut items = [0, 1, 2, 3];
            draws.shuffle(format_args!("cards/{at}"), &mut items);
            firsts[items[0]] += 1;
        }
        assert!(firsts.iter().all(|count| (850..1150).contains(count)), "{firsts:?}");
    }

    #[test]
    fn edges_are_values_and_not_panics() {
        let draws = Draws::new(0);
        assert_eq!(draws.range("empty", 5..5), 5);
        assert_eq!(draws.range("reversed", std::ops::Range { start: 9, end: 3 }), 9);
        assert_eq!(draws.pick::<u8>("none", &[]), None);
        assert!(!draws.chance("never", 0.0) && draws.chance("always", 1.0) && !draws.chance("nan", f64::NAN));
        assert_eq!(draws.duration("none", Duration::from_secs(2), Duration::from_secs(1)), Duration::from_secs(2));
        draws.duration("all", Duration::ZERO, Duration::MAX);
        draws.range("all", 0..u64::MAX);
        draws.shuffle::<u8>("none", &mut []);
        assert!(draws.bytes("none", 0).is_empty());
    }

    #[test]
    fn decisions_are_kept_in_order_and_draws_only_when_asked_for() {
        let quiet = Draws::new(1);
        quiet.u64("x");
        quiet.clone().decide("leader of flights/2", "n3");
        assert_eq!(quiet.decisions(), [Decision { name: "leader of flights/2".into(), value: "n3".into() }]);
        let loud = Draws::recording(1);
        let value = loud.u64("x");
        assert_eq!(loud.decisions(), [Decision { name: "x".into(), value: value.to_string() }]);
    }
}
