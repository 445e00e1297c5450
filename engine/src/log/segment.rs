//! The bytes of one segment file: its name, its records in order, and the question on which everything hangs when a
//! record is bad: did a later batch begin?
//!
//! A batch begins only after the fsync of the one before returned. So a bad record of a batch after which another one
//! began was durable once: it was damaged. A bad record of the last batch may never have been written completely.
//!
//! Pure: no file is touched here.

use super::record::{HEADER, Header, Place};

/// Name of the file that holds segment `number`.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// The number of the segment in the file called `name`; none if the file is none of the log's.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    (number > 0 && file_name(number) == name).then_some(number)
}

/// How far the batches have been read; goes on from one segment to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Nothing was read yet: any batch may be the first one.
    Start,
    /// The last record was of this batch, and not its last one.
    Within(u64),
    /// The last record was the last one of this batch.
    After(u64),
}

impl Cursor {
    /// The batch that the next record should be of.
    pub(super) fn expected(self) -> u64 {
        match self {
            Cursor::Start => 1,
            Cursor::Within(batch) => batch,
            Cursor::After(batch) => batch + 1,
        }
    }

    fn admits(self, header: &Header) -> bool {
        match self {
            Cursor::Start => true,
            Cursor::Within(batch) if header.is_opened() && header.batch == batch + 1 => true,
            _ => header.batch == self.expected(),
        }
    }

    fn past(header: &Header) -> Cursor {
        if header.last { Cursor::After(header.batch) } else { Cursor::Within(header.batch) }
    }
}

/// One step of a [`Scan`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A sound record of the batch that is due, beginning here.
    Record(Place, Header),
    /// The file ends after a record.
    End,
    /// A record of the batch that is due, beginning here, whose payload is not what its header says. Whether it is to be gone
    /// over ([`Scan::pass`]) is for the caller to decide.
    Rotten(Place, Header),
    /// What follows is no sound record of the batch that is due; for people, why.
    Bad(String),
}

/// Reads the records of a segment, as far as they are sound.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    segment: u64,
    bytes: &'a [u8],
    /// Offset of the next record.
    pub(super) offset: u64,
    /// Where the batches stand.
    pub(super) cursor: Cursor,
}

impl<'a> Scan<'a> {
    /// Reads `bytes`, the whole content of segment `segment`, when `cursor` says how far the segment before came.
    pub(super) fn new(segment: u64, bytes: &'a [u8], cursor: Cursor) -> Scan<'a> {
        Scan { segment, bytes, offset: 0, cursor }
    }

    /// Reads one record. After any other step than a [`Step::Record`] the same answer comes again.
    pub(super) fn step(&mut self) -> Step {
        let rest = &self.bytes[self.offset as usize..];
        if rest.is_empty() {
            return Step::End;
        }
        let Some(header) = rest.first_chunk() else {
            return Step::Bad(format!("{} bytes are too few for a record", rest.len()));
        };
        let place = Place { segment: self.segment, offset: self.offset };
        let Some(header) = Header::decode(header, place) else {
            return Step::Bad("the checksum of the record's header is wrong".into());
        };
        if !self.cursor.admits(&header) {
            return Step::Bad(format!(
                "a record of batch {} stands where batch {} should",
                header.batch,
                self.cursor.expected()
            ));
        }
        let Some(payload) = rest[HEADER..].get(..header.payload_len as usize) else {
            return Step::Bad("the record's payload ends after the file".into());
        };
        if crc32fast::hash(payload) != header.payload_crc {
            return Step::Rotten(place, header);
        }
        self.pass(&header);
        Step::Record(place, header)
    }

    /// Goes on behind the record that begins here.
    pub(super) fn pass(&mut self, header: &Header) {
        self.cursor = Cursor::past(header);
        self.offset += header.record_len();
    }

    /// Looks, from the next record on, for a record of a batch after `batch`: where it is and which batch. Its payload
    /// need not be sound: that the batch began is enough.
    pub(super) fn later_batch(&self, batch: u64) -> Option<(u64, u64)> {
        let mut offset = self.offset as usize;
        while let Some(bytes) = self.bytes[offset..].first_chunk::<HEADER>() {
            let place = Place { segment: self.segment, offset: offset as u64 };
            // Decoding costs a checksum, therefore only bytes that could be of such a batch are decoded.
            let header = Header::peek_batch(bytes).filter(|it| *it >= batch).and_then(|_| Header::decode(bytes, place));
            match header {
                Some(header) if header.batch > batch => return Some((place.offset, header.batch)),
                // What a sound header says to be payload is not looked into.
                Some(header) => offset = self.bytes.len().min(offset + header.record_len() as usize),
                None => offset += 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;

    /// Opened records stand for any: they are the shortest.
    fn batch(segment: u64, bytes: &mut Vec<u8>, number: u64, records: u64) {
        for left in (0..records).rev() {
            let record = if bytes.is_empty() { Record::Segment(segment) } else { Record::Trim(0) };
            let place = Place { segment, offset: bytes.len() as u64 };
            bytes.extend(Header::new(&record, number, left == 0, 0, 0).encode(place));
        }
    }

    /// Reads all that is sound; where it ended, and how.
    fn scan(bytes: &[u8]) -> (Scan<'_>, Step) {
        let mut scan = Scan::new(3, bytes, Cursor::Start);
        loop {
            match scan.step() {
                Step::Record(..) => {}
                end => return (scan, end),
            }
        }
    }

    #[test]
    fn the_name_of_a_file_is_the_number_of_its_segment() {
        assert_eq!(file_name(1), "00000000000000000001.seg");
        assert_eq!(number_of("00000000000000000001.seg"), Some(1));
        for other in ["1.seg", "00000000000000000000.seg", "0000000000000000000x.seg", "00000000000000000001.seg.tmp"] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_bad_record_of_the_last_batch_has_no_later_batch_and_one_before_has() {
        let mut bytes = Vec::new();
        batch(3, &mut bytes, 1, 2);
        batch(3, &mut bytes, 2, 3);
        for (bad, expected) in [(2, None), (3, None), (4, None), (0, Some((96, 2))), (1, Some((96, 2)))] {
            let mut bytes = bytes.clone();
            bytes[bad * HEADER + 20] ^= 1;
            let (scan, end) = scan(&bytes);
            assert!(matches!(end, Step::Bad(_)), "{end:?}");
            assert_eq!(scan.offset, (bad * HEADER) as u64);
            let found = scan.later_batch(if bad == 0 { 1 } else { scan.cursor.expected() });
            assert_eq!(found, expected, "record {bad}");
        }
    }

    #[test]
    fn a_missing_batch_is_a_later_batch() {
        let mut bytes = Vec::new();
        batch(3, &mut bytes, 1, 1);
        batch(3, &mut bytes, 3, 1);
        let (scan, end) = scan(&bytes);
        assert_eq!(end, Step::Bad("a record of batch 3 stands where batch 2 should".into()));
        assert_eq!(scan.later_batch(2), Some((48, 3)));
    }

    #[test]
    fn zeros_after_the_last_batch_are_no_later_batch() {
        let mut bytes = Vec::new();
        batch(3, &mut bytes, 1, 2);
        bytes.resize(bytes.len() + 4096, 0);
        let (scan, end) = scan(&bytes);
        assert!(matches!(end, Step::Bad(_)));
        assert_eq!((scan.offset, scan.later_batch(2)), (96, None));
    }
}
