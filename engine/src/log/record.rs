//! One record: 48 bytes of header, then the payload (entries only). All integers are little endian.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..4 | header checksum | CRC-32 of segment number, offset and bytes 4..48: a record is valid only where it was written |
//! | 4..8 | payload checksum | CRC-32 of the payload |
//! | 8..12 | payload length | |
//! | 12 | kind | |
//! | 13 | flags | 1: last record of its batch. 2: the vote is committed |
//! | 14..16 | zero | |
//! | 16..24 | batch | |
//! | 24..32 | replica | zero in records of the log's own |
//! | 32..40 | term | |
//! | 40..48 | index | for a vote: who it was given to |
//!
//! Pure. What the records add up to is `index.rs`, what stands in a file is `segment.rs`.

use crate::types::{LogId, ReplicaId, Vote};

/// Bytes of a record without its payload.
pub(super) const HEADER: usize = 48;

/// The layout above, and of what stands in the entries. A log that says another number was written by another version of the program.
pub(super) const FORMAT: u64 = 3;

const LAST: u8 = 1;
const COMMITTED: u8 = 2;

/// Where a record begins. Ordered as records were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// The first record of each segment: its number.
    Segment(u64),
    /// The log was opened and its tail is sound. The only record that may follow a batch without an end.
    Opened,
    /// Segments up to this number are not needed any more: what counted of them stands in this batch again.
    Trim(u64),
    /// Something changed in the log of one replica.
    Change(ReplicaId, Change),
}

/// A change of one replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The next entry; its payload is the record's.
    Entry(LogId),
    /// The replica's newest promise.
    Vote(Vote),
    /// All entries up to here are committed.
    Committed(LogId),
    /// The entries from this index on are gone.
    Truncate { from: u64 },
    /// The log starts after this entry.
    Purge(LogId),
    /// The replica is obsolete; records before this one do not count.
    Forget,
    /// The replica exists, though nothing else says so.
    Alive,
}

/// A record as it stands in a file, its payload aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) batch: u64,
    pub(super) last: bool,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
    flags: u8,
    kind: u8,
    replica: u64,
    term: u64,
    index: u64,
}

mod kind {
    pub(super) const SEGMENT: u8 = 1;
    pub(super) const OPENED: u8 = 2;
    pub(super) const TRIM: u8 = 3;
    pub(super) const ENTRY: u8 = 4;
    pub(super) const VOTE: u8 = 5;
    pub(super) const COMMITTED: u8 = 6;
    pub(super) const TRUNCATE: u8 = 7;
    pub(super) const PURGE: u8 = 8;
    pub(super) const FORGET: u8 = 9;
    pub(super) const ALIVE: u8 = 10;
}

impl Header {
    /// The header of `record` in batch `batch`, of whose records it is the `last` one or not.
    pub(super) fn new(record: &Record, batch: u64, last: bool, payload_len: u32, payload_crc: u32) -> Header {
        let (kind, replica, term, index) = match *record {
            Record::Segment(number) => (kind::SEGMENT, 0, FORMAT, number),
            Record::Opened => (kind::OPENED, 0, 0, 0),
            Record::Trim(upto) => (kind::TRIM, 0, 0, upto),
            Record::Change(ReplicaId(replica), change) => match change {
                Change::Entry(id) => (kind::ENTRY, replica, id.term, id.index),
                Change::Vote(vote) => (kind::VOTE, replica, vote.term, vote.voted_for.0),
                Change::Committed(id) => (kind::COMMITTED, replica, id.term, id.index),
                Change::Truncate { from } => (kind::TRUNCATE, replica, 0, from),
                Change::Purge(id) => (kind::PURGE, replica, id.term, id.index),
                Change::Forget => (kind::FORGET, replica, 0, 0),
                Change::Alive => (kind::ALIVE, replica, 0, 0),
            },
        };
        let mut flags = if last { LAST } else { 0 };
        if matches!(record, Record::Change(_, Change::Vote(vote)) if vote.committed) {
            flags |= COMMITTED;
        }
        Header { batch, last, payload_len, payload_crc, flags, kind, replica, term, index }
    }

    /// The bytes that stand for it at `place`.
    pub(super) fn encode(&self, place: Place) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[4..8].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[12] = self.kind;
        bytes[13] = self.flags;
        bytes[16..24].copy_from_slice(&self.batch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.replica.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.term.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.index.to_le_bytes());
        let crc = checksum(&bytes, place);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that was written at `place`; none if these are other bytes.
    pub(super) fn decode(bytes: &[u8; HEADER], place: Place) -> Option<Header> {
        // Zeros are what a torn tail most often holds: they need no checksum.
        if bytes[12] == 0 || bytes[14..16] != [0, 0] || u32_at(bytes, 0) != checksum(bytes, place) {
            return None;
        }
        Some(Header {
            batch: u64_at(bytes, 16),
            last: bytes[13] & LAST != 0,
            payload_len: u32_at(bytes, 8),
            payload_crc: u32_at(bytes, 4),
            flags: bytes[13],
            kind: bytes[12],
            replica: u64_at(bytes, 24),
            term: u64_at(bytes, 32),
            index: u64_at(bytes, 40),
        })
    }

    /// The batch that `bytes` would be of if they were a valid header: a cheap look before [`Header::decode`].
    pub(super) fn peek_batch(bytes: &[u8; HEADER]) -> Option<u64> {
        (bytes[12] != 0 && bytes[14..16] == [0, 0]).then(|| u64_at(bytes, 16))
    }

    /// What it says. The error is for people: the bytes are as they were written, but nobody here writes such.
    pub(super) fn record(&self) -> Result<Record, String> {
        let id = LogId { term: self.term, index: self.index };
        let change = match self.kind {
            kind::SEGMENT if self.term == FORMAT => return Ok(Record::Segment(self.index)),
            kind::SEGMENT => return Err(format!("format {}, this program knows {FORMAT}", self.term)),
            kind::OPENED => return Ok(Record::Opened),
            kind::TRIM => return Ok(Record::Trim(self.index)),
            kind::ENTRY => Change::Entry(id),
            kind::VOTE => Change::Vote(Vote {
                term: self.term,
                voted_for: ReplicaId(self.index),
                committed: self.flags & COMMITTED != 0,
            }),
            kind::COMMITTED => Change::Committed(id),
            kind::TRUNCATE => Change::Truncate { from: self.index },
            kind::PURGE => Change::Purge(id),
            kind::FORGET => Change::Forget,
            kind::ALIVE => Change::Alive,
            other => return Err(format!("a record of the unknown kind {other}")),
        };
        Ok(Record::Change(ReplicaId(self.replica), change))
    }

    /// Whether a batch may begin with it although the one before has no end.
    pub(super) fn is_opened(&self) -> bool {
        self.kind == kind::OPENED
    }

    /// Bytes of the record, payload included.
    pub(super) fn record_len(&self) -> u64 {
        record_len(self.payload_len)
    }
}

/// Bytes of a record with a payload of `payload_len` bytes.
pub(super) fn record_len(payload_len: u32) -> u64 {
    HEADER as u64 + u64::from(payload_len)
}

/// The header's place is part of its checksum, so that bytes that were written elsewhere (misdirected, left behind, or
/// a payload that looks like a record) do not pass for a record here.
fn checksum(header: &[u8; HEADER], place: Place) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&place.offset.to_le_bytes());
    hasher.update(&header[4..]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_kind() -> Vec<Record> {
        let id = LogId { term: 3, index: 9 };
        let changes = [
            Change::Entry(id),
            Change::Vote(Vote { term: 3, voted_for: ReplicaId(7), committed: false }),
            Change::Vote(Vote { term: 3, voted_for: ReplicaId(7), committed: true }),
            Change::Committed(id),
            Change::Truncate { from: 9 },
            Change::Purge(id),
            Change::Forget,
            Change::Alive,
        ];
        let own = [Record::Segment(4), Record::Opened, Record::Trim(2)];
        own.into_iter().chain(changes.map(|change| Record::Change(ReplicaId(5), change))).collect()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let place = Place { segment: 4, offset: 96 };
        for record in each_kind() {
            for last in [false, true] {
                let header = Header::new(&record, 11, last, 5, 0xabcd);
                let read = Header::decode(&header.encode(place), place).unwrap();
                assert_eq!(read, header);
                assert_eq!(read.record(), Ok(record));
            }
        }
    }

    #[test]
    fn any_changed_bit_and_any_other_place_is_seen() {
        let place = Place { segment: 4, offset: 96 };
        for record in each_kind() {
            let bytes = Header::new(&record, 11, true, 5, 0xabcd).encode(place);
            for bit in 0..HEADER * 8 {
                let mut changed = bytes;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::decode(&changed, place), None, "bit {bit} of {record:?}");
            }
            for other in [Place { segment: 5, ..place }, Place { offset: 144, ..place }] {
                assert_eq!(Header::decode(&bytes, other), None);
            }
        }
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(Header::decode(&[0; HEADER], Place::default()), None);
    }

    #[test]
    fn another_format_is_named() {
        let mut header = Header::new(&Record::Segment(1), 1, true, 0, 0);
        header.term = FORMAT - 1;
        assert_eq!(header.record(), Err("format 2, this program knows 3".into()));
        header.kind = 99;
        assert_eq!(header.record(), Err("a record of the unknown kind 99".into()));
    }
}
