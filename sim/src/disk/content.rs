//! The bytes of one file: sparse, in chunks that copies share until one of them writes.

use std::collections::BTreeMap;
use std::sync::Arc;

const CHUNK: u64 = 32 * 1024;

/// Bytes with a length. What was never written reads as zeros. A clone costs one pointer per chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// By number; a chunk that is missing, or the part that a short one lacks, is zeros.
    chunks: BTreeMap<u64, Arc<Vec<u8>>>,
    len: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `len` bytes from `offset`, fewer where the content ends.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.len);
        if end <= offset {
            return Vec::new();
        }
        let mut bytes = vec![0; (end - offset) as usize];
        for (&number, chunk) in self.chunks.range(offset / CHUNK..=(end - 1) / CHUNK) {
            let start = number * CHUNK;
            let from = offset.max(start);
            let to = end.min(start + chunk.len() as u64);
            if from < to {
                bytes[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&chunk[(from - start) as usize..(to - start) as usize]);
            }
        }
        bytes
    }

    /// Puts `bytes` at `offset`; the content grows as needed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = (at % CHUNK) as usize;
            let (piece, after) = rest.split_at(rest.len().min(CHUNK as usize - within));
            let chunk = Arc::make_mut(self.chunks.entry(at / CHUNK).or_default());
            if chunk.len() < within + piece.len() {
                chunk.resize(within + piece.len(), 0);
            }
            chunk[within..within + piece.len()].copy_from_slice(piece);
            at += piece.len() as u64;
            rest = after;
        }
        if !bytes.is_empty() {
            self.len = self.len.max(at);
        }
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            drop(self.chunks.split_off(&len.div_ceil(CHUNK)));
            let within = (len % CHUNK) as usize;
            if let Some(chunk) = self.chunks.get_mut(&(len / CHUNK))
                && within < chunk.len()
            {
                Arc::make_mut(chunk).truncate(within);
            }
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Draws;

    #[test]
    fn it_behaves_like_a_vector() {
        let draws = Draws::new(1);
        let mut content = Content::default();
        let mut model: Vec<u8> = Vec::new();
        for step in 0..600u64 {
            let at = draws.range(format_args!("at/{step}"), 0..4 * CHUNK);
            if draws.chance(format_args!("cut/{step}"), 0.2) {
                content.set_len(at);
                model.resize(at as usize, 0);
            } else {
                let len = draws.range(format_args!("len/{step}"), 0..2 * CHUNK) as usize;
                let bytes = draws.bytes(format_args!("bytes/{step}"), len);
                content.write(at, &bytes);
                if len > 0 && model.len() < at as usize + len {
                    model.resize(at as usize + len, 0);
                }
                if len > 0 {
                    model[at as usize..at as usize + len].copy_from_slice(&bytes);
                }
            }
            assert_eq!(content.len(), model.len() as u64, "step {step}");
            let from = draws.range(format_args!("from/{step}"), 0..5 * CHUNK) as usize;
            let end = (from + CHUNK as usize).min(model.len()).max(from);
            let expected = if from < model.len() { &model[from..end] } else { &[] };
            assert_eq!(content.read(from as u64, CHUNK as usize), expected, "step {step}");
        }
    }

    #[test]
    fn copies_share_until_written() {
        let mut one = Content::default();
        one.write(0, &[1; 100]);
        let other = one.clone();
        one.write(50, &[2; 100]);
        one.set_len(120);
        assert_eq!(other.read(0, 1000), [1; 100]);
        assert_eq!(one.len(), 120);
    }
}
