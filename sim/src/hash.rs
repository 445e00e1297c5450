//! One stable 128-bit hash for names of draws, payloads and fingerprints.
//!
//! Not `std`'s hashers: their output may change with the toolchain, and a fingerprint is compared between machines.
//! Not cryptographic either; nobody attacks a simulation.
//!
//! The state is one `u128`. A word of 64 bits is xored into its lower half, then the state is multiplied by an odd
//! constant and its upper half is xored into the lower one. Each of the three is a bijection of the state, hence two
//! inputs that differ in exactly one word have different states after it **and for ever after**: a single changed event
//! cannot be hidden by equal ones that follow.

use std::fmt;

/// A prime near 2^128 / phi, so that a low bit of the input reaches all bits above it.
const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
const START: u128 = 0x243f_6a88_85a3_08d3_1319_8a2e_0370_7344;

/// Hashes words, and bytes in pieces: how the bytes are cut into pieces does not matter.
#[derive(Clone, Debug)]
pub struct Hash128 {
    state: u128,
    /// Bytes that do not fill a word yet, from the low end.
    pending: u64,
    /// How many bytes were written in all; its remainder by 8 says how many are pending.
    len: u64,
}

impl Default for Hash128 {
    fn default() -> Self {
        Hash128 { state: START, pending: 0, len: 0 }
    }
}

impl Hash128 {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> u128 {
        let mut hash = Hash128::default();
        hash.write(bytes);
        hash.finish()
    }

    /// The hash of what `value` displays, without making a string of it.
    pub fn of_display(value: impl fmt::Display) -> u128 {
        let mut hash = Hash128::default();
        // Writing into a hash cannot fail; a `Display` that fails on its own has written what it has to say.
        let _ = fmt::write(&mut hash, format_args!("{value}"));
        hash.finish()
    }

    /// Adds `bytes`.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        let filled = (self.len % 8) as usize;
        self.len += bytes.len() as u64;
        if filled > 0 {
            let take = bytes.len().min(8 - filled);
            let (head, rest) = bytes.split_at(take);
            self.pending |= word(head) << (8 * filled);
            bytes = rest;
            if filled + take < 8 {
                return;
            }
            self.state = mix(self.state, std::mem::take(&mut self.pending));
        }
        let mut words = bytes.chunks_exact(8);
        for chunk in &mut words {
            self.state = mix(self.state, word(chunk));
        }
        self.pending = word(words.remainder());
    }

    /// Adds the eight bytes of `value`.
    pub fn word(&mut self, value: u64) {
        if self.len.is_multiple_of(8) {
            self.len += 8;
            self.state = mix(self.state, value);
        } else {
            self.write(&value.to_le_bytes());
        }
    }

    /// The hash of all that was written so far. The length counts: a trailing zero byte is seen.
    pub fn finish(&self) -> u128 {
        mix(mix(mix(self.state, self.pending), self.len), 0)
    }
}

impl fmt::Write for Hash128 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

/// Folds one word into a state; see the module comment.
pub fn mix(state: u128, word: u64) -> u128 {
    let state = (state ^ u128::from(word)).wrapping_mul(MULTIPLIER);
    state ^ (state >> 64)
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pieces_do_not_matter_and_lengths_do() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = Hash128::of(&bytes);
        for cut in 0..bytes.len() {
            for width in [1, 3, 8, 17] {
                let mut hash = Hash128::default();
                hash.write(&bytes[..cut]);
                bytes[cut..].chunks(width).for_each(|piece| hash.write(piece));
                assert_eq!(hash.finish(), whole, "cut at {cut}, then every {width}");
            }
        }
        let zeros: BTreeSet<u128> = (0..32).map(|len| Hash128::of(&vec![0; len])).collect();
        assert_eq!(zeros.len(), 32);
    }

    #[test]
    fn values_never_change() {
        // Fingerprints and draws are compared between builds and machines: this test fails when the hash changes.
        assert_eq!(Hash128::of(b""), VALUE_OF_NOTHING);
        assert_eq!(Hash128::of_display(format_args!("disk/n{}/fsync/{}", 2, 17)), Hash128::of(b"disk/n2/fsync/17"));
        assert_eq!(Hash128::of(b"disk/n2/fsync/17"), VALUE_OF_NAME);
    }

    const VALUE_OF_NOTHING: u128 = 0xe10924139b6cb19b4eded290bec8ec34;
    const VALUE_OF_NAME: u128 = 0x33e9ac1b578d45d0e0934e9a87bd3035;

    #[test]
    fn a_changed_bit_changes_about_half_of_the_hash() {
        for at in 0..64 {
            let bits = (Hash128::of(&1u64.to_le_bytes()) ^ Hash128::of(&(1u64 ^ 1 << at).to_le_bytes())).count_ones();
            assert!((32..=96).contains(&bits), "bit {at} changes {bits} bits");
        }
    }
}
