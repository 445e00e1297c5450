//! Start: what the segments say, and the repair of the log's tail.
//!
//! [`Replay`] decides (pure): it takes the content of the segments in order and answers what they add up to, where the
//! log ends, or what is damaged. [`recover`] reads and repairs; if it is interrupted anywhere, the next start decides
//! the same.
//!
//! - Damage in a segment that has a successor, or with a record of a later batch behind it, is corruption: it was
//!   durable. If it is the payload of an entry alone, of which the header says which one it is and how long, the log is opened
//!   all the same and the entry cannot be read; other damage is an error, and nothing is changed.
//! - Other damage is the last batch, torn: cut from its first bad record on.
//! - What is kept of the last batch is written again and fsynced. It may have been read from the system's cache and not
//!   be on the disk, after a crash of the process or an fsync that failed (see "fsyncgate").
//! - Then the batch `Opened` is written. It tells later starts that the batch before, which may have no end any more,
//!   is sound as it stands.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::index::{Index, Payload};
use super::record::{Header, Place, Record};
use super::segment::{self, Cursor, Scan, Step};
use crate::disk::{self, Disk, File, Open};
use crate::error::{Error, Result};

/// A log that is ready to be continued.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) index: Index,
    /// The files of all segments, oldest first.
    pub(super) files: Vec<(u64, Arc<dyn File>)>,
    /// Where the next record goes.
    pub(super) end: Place,
    /// The number of the next batch.
    pub(super) batch: u64,
    /// Bytes that were cut off.
    pub(super) torn_bytes: u64,
    /// Entries that cannot be read.
    pub(super) rotten: u64,
}

/// Opens the log in the folder `dir` of `disk`; makes it if there is none.
pub(super) async fn recover(disk: &dyn Disk, dir: &str) -> Result<Recovered> {
    make_dir(disk, dir).await?;
    let names = disk.list(dir).await.map_err(|err| Error::io(&err, format!("list {dir}")))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::number_of(name)).collect();
    let mut replay = Replay::default();
    let mut files = Vec::with_capacity(numbers.len() + 1);
    let mut tail = Bytes::new();
    for (at, &number) in numbers.iter().enumerate() {
        let is_last = at + 1 == numbers.len();
        let path = path(dir, number);
        let io = |err| Error::io(&err, format!("read {path}"));
        let file = disk.open(&path, if is_last { Open::Write } else { Open::Read }).await.map_err(io)?;
        let len = file.len().await.map_err(io)?;
        let bytes = file.read_at(0, len as usize).await.map_err(io)?;
        replay.segment(number, &bytes, is_last).map_err(|damage| damage.error(dir))?;
        files.push((number, file));
        tail = bytes;
    }
    let end = replay.finish().map_err(|damage| damage.error(dir))?;
    let torn_bytes = tail.len() as u64 - end.place.offset;
    let mut place = end.place;
    match files.last() {
        Some((number, file)) => {
            let io = |err| Error::io(&err, format!("repair {}", path(dir, *number)));
            file.set_len(place.offset).await.map_err(io)?;
            let last = tail.slice(end.last_batch as usize..place.offset as usize);
            if !last.is_empty() {
                file.write_at(end.last_batch, last).await.map_err(io)?;
            }
            file.sync().await.map_err(io)?;
        }
        None => {
            let path = path(dir, place.segment);
            let file = disk.open(&path, Open::Create).await.map_err(|err| Error::io(&err, format!("create {path}")))?;
            files.push((place.segment, file));
        }
    }
    let mut bytes = BytesMut::new();
    let first = (place.offset == 0).then_some(Record::Segment(place.segment));
    for record in first.into_iter().chain([Record::Opened]) {
        let last = record == Record::Opened;
        bytes.extend_from_slice(&Header::new(&record, end.batch, last, 0, crc32fast::hash(&[])).encode(place));
        place.offset = end.place.offset + bytes.len() as u64;
    }
    let (number, file) = files.last().expect("there is one since the repair");
    let io = |err| Error::io(&err, format!("write {}", path(dir, *number)));
    file.write_at(end.place.offset, bytes.freeze()).await.map_err(io)?;
    file.sync().await.map_err(io)?;
    disk.sync_dir(dir).await.map_err(|err| Error::io(&err, format!("sync {dir}")))?;
    let rotten = replay.rotten;
    Ok(Recovered { index: replay.index, files, end: place, batch: end.batch + 1, torn_bytes, rotten })
}

/// The folder must be there after a power failure too, and so must the folders that it is in.
async fn make_dir(disk: &dyn Disk, dir: &str) -> Result<()> {
    if dir.is_empty() {
        return Ok(());
    }
    let io = |err| Error::io(&err, format!("create {dir}"));
    disk.create_dir(dir).await.map_err(io)?;
    let mut folder = dir;
    while !folder.is_empty() {
        folder = disk::parent(folder);
        disk.sync_dir(folder).await.map_err(io)?;
    }
    Ok(())
}

/// The file of segment `number` of the log in `dir`.
pub(super) fn path(dir: &str, number: u64) -> String {
    let name = segment::file_name(number);
    if dir.is_empty() { name } else { format!("{dir}/{name}") }
}

/// Something that was durable is not as it was written.
#[derive(Debug, PartialEq, Eq)]
struct Damage {
    place: Place,
    what: String,
}

impl Damage {
    fn error(self, dir: &str) -> Error {
        Error::Damaged {
            file: path(dir, self.place.segment),
            message: format!("offset {}: {}", self.place.offset, self.what),
        }
    }
}

/// Reads segments, oldest first.
#[derive(Debug)]
struct Replay {
    index: Index,
    cursor: Cursor,
    /// The oldest segment that was there.
    first: Option<u64>,
    /// The segment that was read last.
    current: u64,
    /// Segments up to this one are not needed.
    trimmed: u64,
    /// Where sound records end.
    end: u64,
    /// Where the last batch that has records in the current segment begins.
    last_batch: u64,
    /// Entries whose payload is damaged.
    rotten: u64,
}

/// Where a log ends.
#[derive(Debug, PartialEq, Eq)]
struct End {
    /// Right after the last sound record.
    place: Place,
    /// Where, in that segment, the last batch begins.
    last_batch: u64,
    /// Number of the next batch.
    batch: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Replay {
            index: Index::default(),
            cursor: Cursor::Start,
            first: None,
            current: 0,
            trimmed: 0,
            end: 0,
            last_batch: 0,
            rotten: 0,
        }
    }
}

impl Replay {
    /// Takes the content of the next segment.
    fn segment(&mut self, number: u64, bytes: &[u8], is_last: bool) -> Result<(), Damage> {
        if self.first.is_some() && number != self.current + 1 {
            let place = Place { segment: self.current + 1, offset: 0 };
            return Err(Damage { place, what: format!("the file is missing, segment {number} is there") });
        }
        self.first.get_or_insert(number);
        self.current = number;
        self.last_batch = 0;
        let mut scan = Scan::new(number, bytes, self.cursor);
        let step = loop {
            let before = scan.cursor;
            let (place, header, is_rotten) = match scan.step() {
                Step::Record(place, header) => (place, header, false),
                // It was durable once, and what it was is known.
                Step::Rotten(place, header) if !is_last || scan.later_batch(header.batch).is_some() => {
                    scan.pass(&header);
                    (place, header, true)
                }
                Step::Rotten(..) => break Step::Bad("the checksum of the record's payload is wrong".into()),
                end => break end,
            };
            if before != Cursor::Within(header.batch) {
                self.last_batch = place.offset;
            }
            self.rotten += u64::from(is_rotten);
            self.record(place, &header, is_rotten).map_err(|what| Damage { place, what })?;
        };
        let damage = |what| Err(Damage { place: Place { segment: number, offset: scan.offset }, what });
        match step {
            Step::Bad(why) if !is_last => return damage(format!("{why}, and a later segment is there")),
            Step::Bad(why) if scan.cursor == Cursor::Start && number > 1 => return damage(why),
            Step::Bad(why) => {
                let expected = scan.cursor.expected();
                if let Some((offset, batch)) = scan.later_batch(expected) {
                    return damage(format!("{why}, and batch {batch}, after {expected}, is there at offset {offset}"));
                }
            }
            Step::End if !is_last && !matches!(scan.cursor, Cursor::After(_)) => {
                return damage(format!(
                    "the file ends within batch {}, and a later segment is there",
                    scan.cursor.expected()
                ));
            }
            Step::End | Step::Record(..) | Step::Rotten(..) => {}
        }
        (self.cursor, self.end) = (scan.cursor, scan.offset);
        Ok(())
    }

    fn record(&mut self, place: Place, header: &Header, is_rotten: bool) -> Result<(), String> {
        let record = header.record()?;
        if matches!(record, Record::Segment(_)) != (place.offset == 0) {
            return Err("the record that begins a segment, and only there".into());
        }
        match record {
            Record::Segment(number) if number != place.segment => Err(format!("the file is segment {number}")),
            Record::Segment(_) | Record::Opened => Ok(()),
            Record::Trim(upto) => {
                self.trimmed = self.trimmed.max(upto);
                Ok(())
            }
            Record::Change(replica, change) => {
                let (len, crc) = (header.payload_len, header.payload_crc);
                let payload = Payload { len, crc, is_rotten, bytes: None };
                self.index.apply(replica, &change, place, payload)
            }
        }
    }

    /// After the last segment: where the log ends.
    fn finish(&self) -> Result<End, Damage> {
        if let Some(first) = self.first.filter(|first| *first > self.trimmed + 1) {
            let place = Place { segment: first - 1, offset: 0 };
            return Err(Damage { place, what: format!("the file is missing, segment {first} is there") });
        }
        self.index.check().map_err(|(place, what)| {
            let place = place.unwrap_or(Place { segment: self.first.unwrap_or(1), offset: 0 });
            Damage { place, what }
        })?;
        let batch = match self.cursor {
            Cursor::Start => 1,
            Cursor::Within(batch) | Cursor::After(batch) => batch + 1,
        };
        let place = Place { segment: self.current.max(1), offset: self.end };
        Ok(End { place, last_batch: self.last_batch, batch })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Change, HEADER};
    use super::*;
    use crate::types::{LogId, ReplicaId};

    /// Segments that hold, per batch, as many entries of one replica as asked for.
    fn segments(batches_of_segments: &[&[u64]]) -> Vec<Vec<u8>> {
        let (mut batch, mut index) = (0, 0);
        let mut segments = Vec::new();
        for (at, batches) in batches_of_segments.iter().enumerate() {
            let segment = at as u64 + 1;
            let mut bytes = Vec::new();
            for (nth, entries) in batches.iter().enumerate() {
                batch += 1;
                if nth == 0 {
                    put(&mut bytes, segment, Record::Segment(segment), batch, false);
                }
                for left in (0..*entries).rev() {
                    let entry = Change::Entry(LogId { term: 1, index });
                    put(&mut bytes, segment, Record::Change(ReplicaId(1), entry), batch, left == 0);
                    index += 1;
                }
            }
            segments.push(bytes);
        }
        segments
    }

    fn put(bytes: &mut Vec<u8>, segment: u64, record: Record, batch: u64, last: bool) {
        let payload: &[u8] = if matches!(record, Record::Change(..)) { b"payload!" } else { b"" };
        let header = Header::new(&record, batch, last, payload.len() as u32, crc32fast::hash(payload));
        bytes.extend(header.encode(Place { segment, offset: bytes.len() as u64 }));
        bytes.extend(payload);
    }

    fn replay(segments: &[Vec<u8>]) -> Result<(End, u64), Damage> {
        let mut replay = Replay::default();
        for (at, bytes) in segments.iter().enumerate() {
            replay.segment(at as u64 + 1, bytes, at + 1 == segments.len())?;
        }
        Ok((replay.finish()?, replay.index.next(ReplicaId(1))))
    }

    /// The newest entry that cannot be read.
    fn rotten(segments: &[Vec<u8>]) -> Option<(LogId, Place)> {
        let mut replay = Replay::default();
        for (at, bytes) in segments.iter().enumerate() {
            replay.segment(at as u64 + 1, bytes, at + 1 == segments.len()).unwrap();
        }
        assert_eq!(replay.rotten, 1);
        replay.index.rotten(ReplicaId(1))
    }

    #[test]
    fn the_end_is_after_the_last_record() {
        assert_eq!(replay(&[]).unwrap().0, End { place: Place { segment: 1, offset: 0 }, last_batch: 0, batch: 1 });
        let (end, next) = replay(&segments(&[&[2], &[1, 2]])).unwrap();
        assert_eq!(end, End { place: Place { segment: 2, offset: 216 }, last_batch: 104, batch: 4 });
        assert_eq!(next, 5);
    }

    /// Every changed byte of a log of two segments: what is in the last batch is torn, a payload before it is known to be
    /// damaged, all else is damage, and named.
    #[test]
    fn damage_is_torn_only_in_the_last_batch() {
        let sound = segments(&[&[2, 1], &[1, 3]]);
        let last_batch = 104;
        for (at, bytes) in sound.iter().enumerate() {
            for offset in 0..bytes.len() {
                let mut changed = sound.clone();
                changed[at][offset] ^= 0x10;
                let record = record_of(bytes, offset);
                let is_torn = at == 1 && offset >= last_batch;
                let is_payload = offset as u64 >= record + HEADER as u64;
                match replay(&changed) {
                    Ok((end, _)) if is_torn => assert_eq!(end.place, Place { segment: 2, offset: record }),
                    Ok((end, next)) => {
                        assert!(is_payload, "segment {} offset {offset} was passed over", at + 1);
                        assert_eq!(
                            (end.place, next),
                            (Place { segment: 2, offset: 272 }, 7),
                            "nothing else is missing"
                        );
                        let (id, place) = rotten(&changed).unwrap();
                        assert_eq!(place, Place { segment: at as u64 + 1, offset: record }, "{id}");
                    }
                    Err(damage) => {
                        assert!(!is_torn && !is_payload, "offset {offset}: {damage:?}");
                        assert_eq!(damage.place, Place { segment: at as u64 + 1, offset: record }, "{}", damage.what);
                    }
                }
            }
        }
    }

    /// A file that lost its end: in the last segment that is a torn batch (or nothing that anybody could see), in one
    /// before it is damage.
    #[test]
    fn a_cut_file_is_damage_unless_it_is_the_last() {
        let sound = segments(&[&[2, 1], &[1, 3]]);
        for len in 0..sound[0].len() {
            let cut = [sound[0][..len].to_vec(), sound[1].clone()];
            let damage = replay(&cut).unwrap_err();
            // The first batch ends at 160. If all of the second one is missing, only the next segment can tell.
            let expected = match len {
                160 => Place { segment: 2, offset: 0 },
                _ => Place { segment: 1, offset: record_of(&sound[0], len) },
            };
            assert_eq!(damage.place, expected, "{}", damage.what);
        }
        for len in 0..sound[1].len() {
            let cut = [sound[0].clone(), sound[1][..len].to_vec()];
            let (end, _) = replay(&cut).unwrap();
            assert_eq!(end.place, Place { segment: 2, offset: record_of(&sound[1], len) });
        }
    }

    /// A torn batch of which the first sectors did not reach the disk and later ones did.
    #[test]
    fn a_torn_batch_may_have_sound_records_after_a_bad_one() {
        let mut bytes = segments(&[&[1, 8]]);
        bytes[0][104 + 56 * 3..104 + 56 * 4].fill(0);
        let (end, next) = replay(&bytes).unwrap();
        assert_eq!(end, End { place: Place { segment: 1, offset: 104 + 56 * 3 }, last_batch: 104, batch: 3 });
        assert_eq!(next, 4);
    }

    #[test]
    fn after_a_cut_an_opened_record_continues() {
        let mut bytes = segments(&[&[1, 3]]);
        bytes[0].truncate(104 + 56);
        put(&mut bytes[0], 1, Record::Opened, 3, true);
        put(&mut bytes[0], 1, Record::Trim(0), 4, true);
        let (end, next) = replay(&bytes).unwrap();
        assert_eq!((end.batch, next), (5, 2));
        // A batch that is not Opened may not follow one without an end.
        let mut bytes = segments(&[&[1, 3]]);
        bytes[0].truncate(104 + 56);
        put(&mut bytes[0], 1, Record::Trim(0), 3, true);
        let damage = replay(&bytes).unwrap_err();
        assert_eq!(damage.place, Place { segment: 1, offset: 160 });
    }

    #[test]
    fn a_missing_file_is_named() {
        let sound = segments(&[&[1], &[1], &[1]]);
        let mut missing = Replay::default();
        missing.segment(1, &sound[0], false).unwrap();
        let damage = missing.segment(3, &sound[2], true).unwrap_err();
        assert_eq!(damage.place, Place { segment: 2, offset: 0 });
        let mut missing = Replay::default();
        missing.segment(2, &sound[1], false).unwrap();
        missing.segment(3, &sound[2], true).unwrap();
        let damage = missing.finish().unwrap_err();
        assert_eq!(damage.place, Place { segment: 1, offset: 0 });
        assert_eq!(damage.what, "the file is missing, segment 2 is there");
    }

    /// The offset at which the record begins that the byte at `offset` is in.
    fn record_of(bytes: &[u8], offset: usize) -> u64 {
        let mut at = 0;
        loop {
            let len = 48 + u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            if offset < at + len {
                return at as u64;
            }
            at += len;
        }
    }
}
