//! Sums of floats that do not depend on the order.
//!
//! Every finite DOUBLE is a whole number of units of 2^-1074, the least one that there is. So a sum is kept as a whole number of
//! these, wide enough for as many of the largest ones as an i64 counts: what was added can be taken away again without a trace,
//! and equal multisets have equal sums, bit by bit. Only what is shown is rounded, once. What is not finite is counted.
//!
//! (The idea is Kulisch's long accumulator.)

use serde::{Deserialize, Serialize};

/// Words of the sum: the largest DOUBLE is less than 2^(1024 + 1074) units, 2^63 of them and a sign take 2162 bits.
const WORDS: usize = 34;

/// A sum of floats, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct ExactSum {
    /// Of what is finite: units of 2^-1074, two's complement, the lowest word first.
    words: Words,
    nans: i64,
    /// How often infinity is there.
    above: i64,
    /// How often minus infinity is there.
    below: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Words(Box<[u64; WORDS]>);

impl Default for Words {
    fn default() -> Words {
        Words(Box::new([0; WORDS]))
    }
}

impl ExactSum {
    /// One more `value`.
    pub fn add(&mut self, value: f64) {
        self.count(value, false);
    }

    /// One less `value`.
    pub fn subtract(&mut self, value: f64) {
        self.count(value, true);
    }

    /// All that `other` has, too.
    pub fn merge(&mut self, other: &ExactSum) {
        let mut carry = false;
        for (word, other) in self.words.0.iter_mut().zip(other.words.0.iter()) {
            let (sum, first) = word.overflowing_add(*other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first | second);
        }
        self.nans += other.nans;
        self.above += other.above;
        self.below += other.below;
    }

    /// Whether as much was taken away as was added.
    pub fn is_zero(&self) -> bool {
        *self == ExactSum::default()
    }

    /// Whether more of what is not finite was taken away than was there.
    pub fn is_negative(&self) -> bool {
        self.nans < 0 || self.above < 0 || self.below < 0
    }

    /// The DOUBLE that is nearest to the sum, of two the even one. One that is too large for a DOUBLE is infinite, though not for
    /// ever: what is added and taken away later counts from the sum itself. Zero is 0.0, also where there are only -0.0, as
    /// DataFusion has it. NaN is always the same one.
    pub fn value(&self) -> f64 {
        match (self.nans != 0, self.above != 0, self.below != 0) {
            (false, false, false) => self.rounded(),
            (false, true, false) => f64::INFINITY,
            (false, false, true) => f64::NEG_INFINITY,
            _ => f64::NAN,
        }
    }

    fn count(&mut self, value: f64, is_retraction: bool) {
        let one = if is_retraction { -1 } else { 1 };
        if value.is_nan() {
            self.nans += one;
        } else if value.is_infinite() {
            let count = if value > 0.0 { &mut self.above } else { &mut self.below };
            *count += one;
        } else {
            let (mantissa, shift) = units(value);
            let (at, bits) = (shift / 64, shift % 64);
            let low = mantissa << bits;
            let high = if bits == 0 { 0 } else { mantissa >> (64 - bits) };
            match value.is_sign_negative() == is_retraction {
                true => self.step(at, low, high, u64::overflowing_add),
                false => self.step(at, low, high, u64::overflowing_sub),
            }
        }
    }

    /// Adds, or subtracts, two words at `at`, and goes on as long as there is a carry.
    fn step(&mut self, at: usize, low: u64, high: u64, with: fn(u64, u64) -> (u64, bool)) {
        let mut carry = false;
        for (place, word) in self.words.0.iter_mut().enumerate().skip(at) {
            let by = match place - at {
                0 => low,
                1 => high,
                _ if carry => 0,
                _ => break,
            };
            let (sum, first) = with(*word, by);
            let (sum, second) = with(sum, u64::from(carry));
            (*word, carry) = (sum, first | second);
        }
    }

    /// The sign of the finite part, and how many units it has.
    fn magnitude(&self) -> (bool, [u64; WORDS]) {
        let mut words = *self.words.0;
        let is_negative = words[WORDS - 1] >> 63 == 1;
        if is_negative {
            negate(&mut words);
        }
        (is_negative, words)
    }

    fn rounded(&self) -> f64 {
        let (is_negative, words) = self.magnitude();
        let bit = |at: usize| words[at / 64] >> (at % 64) & 1;
        let Some(top) = words.iter().rposition(|word| *word != 0) else { return 0.0 };
        let top = top * 64 + 63 - words[top].leading_zeros() as usize;
        // What has 53 bits at most is a DOUBLE as it stands: below 2^52 without the leading bit, else with it.
        let shift = top.saturating_sub(52);
        let mut mantissa = (shift..=top).rev().fold(0, |mantissa: u64, at| mantissa << 1 | bit(at));
        let mut exponent = shift as u64;
        if shift > 0 {
            let half = bit(shift - 1) == 1;
            let beyond = (0..shift - 1).any(|at| bit(at) == 1);
            if half && (beyond || mantissa & 1 == 1) {
                mantissa += 1;
            }
            if mantissa == 1 << 53 {
                (mantissa, exponent) = (1 << 52, exponent + 1);
            }
        }
        // The leading bit of the mantissa adds the one that the exponent is larger by.
        let bits = if exponent > 2045 { f64::INFINITY.to_bits() } else { (exponent << 52) + mantissa };
        let value = f64::from_bits(bits);
        if is_negative { -value } else { value }
    }
}

/// How many units of 2^-1074 the finite `value` has, without its sign: mantissa and shift to the left.
fn units(value: f64) -> (u64, usize) {
    let bits = value.to_bits();
    let (exponent, fraction) = (bits >> 52 & 0x7FF, bits & ((1 << 52) - 1));
    match exponent {
        0 => (fraction, 0),
        _ => (fraction | 1 << 52, exponent as usize - 1),
    }
}

fn negate(words: &mut [u64; WORDS]) {
    let mut carry = true;
    for word in words {
        (*word, carry) = (!*word).overflowing_add(u64::from(carry));
    }
}

/// An [`ExactSum`] as it is stored: sign, place of the lowest word that is not zero, words up to the highest one.
#[derive(Serialize, Deserialize)]
struct Stored {
    is_negative: bool,
    first: u8,
    words: Vec<u64>,
    nans: i64,
    above: i64,
    below: i64,
}

impl From<ExactSum> for Stored {
    fn from(sum: ExactSum) -> Stored {
        let (is_negative, words) = sum.magnitude();
        let first = words.iter().position(|word| *word != 0).unwrap_or(0);
        let end = words.iter().rposition(|word| *word != 0).map_or(first, |last| last + 1);
        let words = words[first..end].to_vec();
        Stored { is_negative, first: first as u8, words, nans: sum.nans, above: sum.above, below: sum.below }
    }
}

impl TryFrom<Stored> for ExactSum {
    type Error = &'static str;

    fn try_from(stored: Stored) -> Result<ExactSum, &'static str> {
        let first = usize::from(stored.first);
        let mut sum = ExactSum { words: Words::default(), nans: stored.nans, above: stored.above, below: stored.below };
        let words = &mut *sum.words.0;
        let place = words.get_mut(first..first + stored.words.len()).ok_or("a sum of more words than there are")?;
        place.copy_from_slice(&stored.words);
        if words[WORDS - 1] >> 63 == 1 {
            return Err("a sum that is too large");
        }
        if stored.is_negative {
            negate(words);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::i256;
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum
    }

    fn bytes(sum: &ExactSum) -> Vec<u8> {
        postcard::to_allocvec(sum).unwrap()
    }

    /// The same bits; of zeros and NaNs any.
    fn same(a: f64, b: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan())
    }

    fn any_float() -> impl Strategy<Value = f64> {
        let edges = prop::sample::select(vec![
            0.0,
            -0.0,
            1.0,
            0.1,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            f64::from_bits(1),
            f64::EPSILON,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ]);
        prop_oneof![2 => any::<u64>().prop_map(f64::from_bits), 1 => edges, 1 => -1e3..1e3]
    }

    fn finite() -> impl Strategy<Value = f64> {
        any_float().prop_filter("finite", |value| value.is_finite())
    }

    #[test]
    fn sums_are_those_of_the_numbers_and_not_of_their_roundings() {
        assert_eq!(sum(&[1e16, 1.0, -1e16]).value(), 1.0);
        assert_eq!(sum(&[0.1; 10]).value(), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX]).value(), f64::INFINITY);
        assert_eq!(sum(&[f64::MAX, f64::MAX, f64::MIN]).value(), f64::MAX);
        assert_eq!(sum(&[f64::MIN, f64::MIN]).value(), f64::NEG_INFINITY);
        assert!(sum(&[-0.0, -0.0]).value().is_sign_positive());
        // Half a unit above an even number, half a unit above an odd one, and a hair above the first.
        let ulp = f64::EPSILON;
        assert_eq!(sum(&[1.0, ulp / 2.0]).value(), 1.0);
        assert_eq!(sum(&[1.0, ulp, ulp / 2.0]).value(), 1.0 + 2.0 * ulp);
        assert_eq!(sum(&[1.0, ulp / 2.0, f64::from_bits(1)]).value(), 1.0 + ulp);
        assert_eq!(sum(&[f64::MAX, f64::MAX * ulp / 8.0]).value(), f64::MAX);
    }

    #[test]
    fn what_is_not_finite_goes_as_it_came() {
        let mut total = sum(&[1.5, f64::INFINITY]);
        assert_eq!(total.value(), f64::INFINITY);
        total.add(f64::NEG_INFINITY);
        assert!(total.value().is_nan());
        total.subtract(f64::INFINITY);
        assert_eq!(total.value(), f64::NEG_INFINITY);
        total.subtract(f64::NEG_INFINITY);
        total.add(f64::NAN);
        assert!(total.value().is_nan());
        total.subtract(f64::NAN);
        assert_eq!(total.value(), 1.5);
        total.subtract(f64::NAN);
        assert!(total.is_negative());
    }

    #[test]
    fn bytes_that_are_no_sum_are_an_error() {
        let stored = |first, words: Vec<u64>| {
            let stored = Stored { is_negative: true, first, words, nans: 0, above: 0, below: 0 };
            postcard::from_bytes::<ExactSum>(&postcard::to_allocvec(&stored).unwrap())
        };
        assert!(stored(33, vec![1]).is_ok());
        assert!(stored(33, vec![1, 1]).is_err());
        assert!(stored(200, vec![]).is_err());
        assert!(stored(33, vec![1 << 63]).is_err());
        assert_eq!(bytes(&ExactSum::default()).len(), 6);
        assert!(bytes(&sum(&[1234.5])).len() < 17);
    }

    proptest! {
        /// The processor rounds a sum of two as it should be.
        #[test]
        fn a_sum_of_two_is_the_processors(a in any_float(), b in any_float()) {
            prop_assert!(same(sum(&[a, b]).value(), a + b), "{a:?} + {b:?}: {:?}", sum(&[a, b]).value());
            prop_assert!(same(sum(&[a]).value(), a));
        }

        #[test]
        fn the_order_leaves_no_trace(
            mut values in prop::collection::vec(any_float(), 0..20),
            gone in prop::collection::vec(any_float(), 0..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let expected = sum(&values);
            let mut total = sum(&gone);
            values.sort_by(f64::total_cmp);
            let (some, others) = values.split_at(cut.index(values.len() + 1));
            total.merge(&sum(some));
            gone.iter().for_each(|value| total.subtract(*value));
            total.merge(&sum(others));
            prop_assert_eq!(bytes(&total), bytes(&expected));
            prop_assert_eq!(&postcard::from_bytes::<ExactSum>(&bytes(&total)).unwrap(), &expected);
            prop_assert!(same(total.value(), expected.value()));
            values.iter().for_each(|value| total.subtract(*value));
            prop_assert!(total.is_zero());
        }

        /// Against integers: all values are whole numbers of 2^-100, and so is whatever is as near.
        #[test]
        fn the_nearest_float_is_shown(values in prop::collection::vec((-1i64 << 52..1 << 52, 0..90i32), 1..30)) {
            let exact = values.iter().fold(i256::ZERO, |sum, (mantissa, shift)| {
                sum.wrapping_add(i256::from(*mantissa) << *shift as u8)
            });
            let floats: Vec<f64> =
                values.iter().map(|(mantissa, shift)| *mantissa as f64 * 2f64.powi(shift - 100)).collect();
            let shown = sum(&floats).value();
            // Twice as fine, so that the middle between two is a whole number too.
            let fine = |value: f64| {
                let (mantissa, shift) = units(value);
                let up = shift as i32 - 1074 + 160;
                let mantissa = i256::from_i128(mantissa.into());
                let units = match up {
                    0.. => mantissa << up as u8,
                    -64..0 => mantissa >> (-up) as u8,
                    _ => i256::ZERO,
                };
                if value < 0.0 { units.wrapping_neg() } else { units }
            };
            let off = |value: f64| fine(value).wrapping_sub(exact << 60).wrapping_abs();
            for neighbour in [shown.next_up(), shown.next_down()] {
                prop_assert!(off(shown) <= off(neighbour), "{values:?}: {shown:?}, nearer is {neighbour:?}");
                if off(shown) == off(neighbour) {
                    prop_assert_eq!(shown.to_bits() & 1, 0, "the odd one of two");
                }
            }
        }

        #[test]
        fn sums_of_finite_numbers_come_back_in_range(a in finite(), b in finite()) {
            let mut total = sum(&[a, b, b, b]);
            for _ in 0..3 {
                total.subtract(b);
            }
            prop_assert!(same(total.value(), a));
        }
    }
}
