//! FNV-1a with 128 bits: a digest whose value is the same in every build, on every machine.

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// The digest of `bytes`.
pub fn fnv128(bytes: &[u8]) -> u128 {
    extend(OFFSET, bytes)
}

/// The digest of what `hash` is the digest of, followed by `bytes`.
pub fn extend(hash: u128, bytes: &[u8]) -> u128 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(super::fnv128(b""), super::OFFSET);
        assert_eq!(super::fnv128(b"foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }
}
