//! How far a view has come with a feeder.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Position, RegionId, Sequence, TableId};

/// One scan of one feeder by one view. (A view that reads a table twice has two.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LegId {
    /// The view.
    pub view: TableId,
    /// Counts the scans of its query, from 0.
    pub leg: u32,
}

impl fmt::Display for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.view, self.leg)
    }
}

/// Where the rows of a region of a view come from: a leg, and a region of its feeder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Counts the scans of the view's query, from 0.
    pub leg: u32,
    /// The region that is read.
    pub feeder: RegionId,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}<{}", self.leg, self.feeder)
    }
}

/// What of a feeder's region a region of a view has absorbed: all that was visible at `done`; and of what changed from there to
/// a later sequence, the keys up to some key. Grows.
///
/// PranaDB issue 586 stores an offset in every batch that is processed: this is it. It stands in the same entry as the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FillPosition {
    /// None: nothing yet.
    pub done: Option<Sequence>,
    /// In the middle of a window: the sequence that it ends at, and the last key that was absorbed.
    pub within: Option<(Sequence, Position)>,
}

impl FillPosition {
    /// All that was visible at `sequence`.
    pub fn at(sequence: Sequence) -> FillPosition {
        FillPosition { done: Some(sequence), within: None }
    }

    /// The end of the window that it is in; or what it is through with.
    pub fn upto(&self) -> Option<Sequence> {
        self.within.as_ref().map(|(upto, _)| *upto).or(self.done)
    }
}

impl fmt::Display for FillPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.done {
            Some(done) => write!(f, "{done}")?,
            None => f.write_str("-")?,
        }
        match &self.within {
            Some((upto, position)) => write!(f, "..{upto}:{:?}", position.key),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Key;

    #[test]
    fn positions_are_in_the_order_of_the_stream() {
        let within = |done: Option<u64>, upto, key: &'static [u8], sequence| FillPosition {
            done: done.map(Sequence),
            within: Some((Sequence(upto), Position { key: Key(key.into()), sequence: Sequence(sequence) })),
        };
        let stream = [
            FillPosition::default(),
            within(None, 7, b"a", 0),
            within(None, 7, b"b", 9),
            within(None, 7, b"b", 8),
            within(None, 7, b"b", 0),
            FillPosition::at(Sequence(7)),
            within(Some(7), 9, b"a", 0),
            FillPosition::at(Sequence(9)),
        ];
        assert!(stream.is_sorted() && stream.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(stream[1].upto(), Some(Sequence(7)));
        assert_eq!(stream[5].upto(), Some(Sequence(7)));
        assert_eq!(stream[0].upto(), None);
    }
}
