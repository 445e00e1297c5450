//! The frame: a header of fixed length with a checksum of its own, then a body with another one.
//!
//! ```text
//!  0  version   u8    protocol and version in one: a stranger is recognized by its first byte
//!  1  flags     u8    1 answer, 2 hello, 0 request
//!  2  kind      u8    of the request, also in its answer; 0 in a hello
//!  3  lane      u8    in a hello; else 0
//!  4  id        u64   of the call; in a hello the node that connects
//! 12  within_ms u32   how long the caller waits from now on; else 0
//! 16  len       u32   of the body
//! 20  crc       u32   of the body
//! 24  crc       u32   of the 24 bytes before
//! 28  body            postcard of `Request`, or of `Result<Response, Error>`; none in a hello
//! ```
//!
//! Numbers are little-endian. The first frame of a connection is the hello of the node that made it. No bytes whatever
//! make the decoder panic, allocate out of proportion to what was received, or recurse without bound.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postcard::de_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Lane;
use crate::error::{Error, Invalid, Result};
use crate::server::message::Kind;
use crate::types::NodeId;

/// Length of a header.
pub const HEADER_BYTES: usize = 28;

/// The upper half is the protocol, the lower one its version.
const VERSION: u8 = 0xd1;
const ANSWER: u8 = 1;
const HELLO: u8 = 2;

/// How much is asked of the socket at once, and how far a buffer grows ahead of what was received.
const READ_BYTES: usize = 64 << 10;

/// Stack that a message may take while it is decoded. Messages have recursive parts; a hostile one nests as deep as it
/// is long. An honest one takes a tenth of this.
const DECODE_STACK_BYTES: usize = 256 << 10;

/// What a header tells to somebody who only watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The kind of the request, also of its answer; none for the hello that opens a connection.
    pub kind: Option<Kind>,
    /// The call: the same in the request and in its answer, unique on a connection.
    pub id: u64,
    /// Whether it is an answer.
    pub answer: bool,
    /// Length of the whole frame.
    pub len: usize,
}

/// Reads the header of a frame; none if these bytes are not one.
pub fn peek(header: &[u8]) -> Option<Peek> {
    let header = Header::parse(header.get(..HEADER_BYTES)?).ok()?;
    let len = header.frame_bytes().try_into().ok()?;
    Some(Peek { kind: header.kind, id: header.id, answer: header.flags == ANSWER, len })
}

/// What travels.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// Opens a connection.
    Hello {
        /// Who connects; 0: a client.
        node: NodeId,
        /// What the connection is for.
        lane: Lane,
    },
    /// Asks.
    Request {
        /// What is asked, as in the body.
        kind: Kind,
        /// The call.
        id: u64,
        /// How long the caller still waits.
        within: Duration,
        /// An encoded `Request`.
        body: Bytes,
    },
    /// Answers.
    Answer {
        /// What was asked.
        kind: Kind,
        /// The call.
        id: u64,
        /// An encoded `Result<Response>`.
        body: Bytes,
    },
}

/// Why bytes are not a frame. The stream that they came from is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("its first byte is {0:#04x}, this node speaks {VERSION:#04x}")]
    Version(u8),
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    #[error("the header is none that this node knows: flags {flags}, kind {kind}, lane {lane}")]
    Header { flags: u8, kind: u8, lane: u8 },
    #[error("a frame of {len} bytes; rpc_frame_bytes = {limit}")]
    TooLarge { len: u64, limit: u64 },
    #[error("the checksum of a body of {len} bytes is wrong")]
    BodyChecksum { len: usize },
    #[error("a body of {len} bytes cannot be decoded: {reason}")]
    Body { len: usize, reason: String },
    #[error("{0}")]
    Protocol(String),
}

impl Malformed {
    /// A good frame at the wrong place.
    pub(super) fn unexpected(found: &Frame, expected: &str) -> Malformed {
        Malformed::Protocol(format!("expected {expected}, found {found}"))
    }
}

/// Why no further frame comes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the stream is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A parsed header. The checksums are right, flags, kind and lane fit together.
struct Header {
    flags: u8,
    kind: Option<Kind>,
    lane: Option<Lane>,
    id: u64,
    within_ms: u32,
    len: u32,
    crc: u32,
}

impl Header {
    /// Parses exactly [`HEADER_BYTES`] bytes.
    fn parse(mut bytes: &[u8]) -> Result<Header, Malformed> {
        if bytes[0] != VERSION {
            return Err(Malformed::Version(bytes[0]));
        }
        let (checked, mut crc) = bytes.split_at(HEADER_BYTES - 4);
        if crc32fast::hash(checked) != crc.get_u32_le() {
            return Err(Malformed::HeaderChecksum);
        }
        bytes.advance(1);
        let (flags, kind, lane) = (bytes.get_u8(), bytes.get_u8(), bytes.get_u8());
        let header = Header {
            flags,
            kind: Kind::from_byte(kind),
            lane: Lane::ALL.into_iter().find(|known| *known as u8 == lane),
            id: bytes.get_u64_le(),
            within_ms: bytes.get_u32_le(),
            len: bytes.get_u32_le(),
            crc: bytes.get_u32_le(),
        };
        let fits = match flags {
            HELLO => kind == 0 && header.lane.is_some() && header.len == 0,
            0 | ANSWER => header.kind.is_some() && lane == 0,
            _ => false,
        };
        if fits { Ok(header) } else { Err(Malformed::Header { flags, kind, lane }) }
    }

    fn frame_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.len)
    }
}

impl Frame {
    /// Appends the frame to `to`. Its body must have passed [`encode`], which keeps the limit.
    pub(super) fn put(&self, to: &mut BytesMut) {
        let none = &Bytes::new();
        let (flags, kind, lane, id, within, body) = match self {
            Frame::Hello { node, lane } => (HELLO, 0, *lane as u8, node.0, Duration::ZERO, none),
            Frame::Request { kind, id, within, body } => (0, *kind as u8, 0, *id, *within, body),
            Frame::Answer { kind, id, body } => (ANSWER, *kind as u8, 0, *id, Duration::ZERO, body),
        };
        // Rounded up: a caller that waits another half of a millisecond does wait.
        let within_ms = within.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(u32::MAX);
        to.reserve(HEADER_BYTES + body.len());
        let start = to.len();
        to.put_u8(VERSION);
        to.put_u8(flags);
        to.put_u8(kind);
        to.put_u8(lane);
        to.put_u64_le(id);
        to.put_u32_le(within_ms);
        to.put_u32_le(body.len().try_into().expect("encode keeps the limit"));
        to.put_u32_le(crc32fast::hash(body));
        let crc = crc32fast::hash(&to[start..]);
        to.put_u32_le(crc);
        to.extend_from_slice(body);
    }

    /// Takes the first frame off `from`; none if it is not complete yet.
    pub(super) fn take(from: &mut BytesMut, limit: u64) -> Result<Option<Frame>, Malformed> {
        match from.first() {
            None => return Ok(None),
            // Said at the first byte: a stranger may never send as many as a header has.
            Some(&version) if version != VERSION => return Err(Malformed::Version(version)),
            Some(_) if from.len() < HEADER_BYTES => return Ok(None),
            Some(_) => {}
        }
        let header = Header::parse(&from[..HEADER_BYTES])?;
        let len = header.frame_bytes();
        if len > limit {
            return Err(Malformed::TooLarge { len, limit });
        }
        if (from.len() as u64) < len {
            return Ok(None);
        }
        from.advance(HEADER_BYTES);
        let body = from.split_to(header.len as usize).freeze();
        if crc32fast::hash(&body) != header.crc {
            return Err(Malformed::BodyChecksum { len: body.len() });
        }
        let id = header.id;
        Ok(Some(match (header.kind, header.lane) {
            (Some(kind), None) if header.flags == ANSWER => Frame::Answer { kind, id, body },
            (Some(kind), None) => {
                Frame::Request { kind, id, within: Duration::from_millis(header.within_ms.into()), body }
            }
            (None, Some(lane)) => Frame::Hello { node: NodeId(id), lane },
            (kind, lane) => {
                let (kind, lane) = (kind.map_or(0, |kind| kind as u8), lane.map_or(0, |lane| lane as u8));
                return Err(Malformed::Header { flags: header.flags, kind, lane });
            }
        }))
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::Hello { node, .. } => write!(f, "a hello of node {node}"),
            Frame::Request { kind, .. } => write!(f, "a request of kind {}", kind.name()),
            Frame::Answer { kind, .. } => write!(f, "an answer of kind {}", kind.name()),
        }
    }
}

/// A body. An error if the frame around it would be larger than `limit` allows.
pub(super) fn encode(message: &impl Serialize, limit: u64) -> Result<Bytes> {
    let body = postcard::to_stdvec(message)
        .map_err(|err| Error::invalid(Invalid::Request, format!("the message cannot be encoded: {err}")))?;
    let len = (HEADER_BYTES + body.len()) as u64;
    if len > limit || body.len() > u32::MAX as usize {
        let message = format!("the message takes a frame of {len} bytes; rpc_frame_bytes = {limit}");
        return Err(Error::invalid(Invalid::Request, message));
    }
    Ok(body.into())
}

/// The message in a body.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    let malformed = |reason: String| Malformed::Body { len: body.len(), reason };
    let base = stack_position();
    let mut from = postcard::Deserializer::from_flavor(Shallow { rest: body, base });
    let message = T::deserialize(&mut from).map_err(|err| malformed(err.to_string()))?;
    let rest = from.finalize().map_err(|err| malformed(err.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes are left over", rest.len())));
    }
    Ok(message)
}

/// Frames out of a stream.
pub(super) struct FrameReader<R> {
    stream: R,
    received: BytesMut,
    limit: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R, limit: u64) -> FrameReader<R> {
        FrameReader { stream, received: BytesMut::new(), limit }
    }

    /// The next frame; none if the peer closed the stream after the last one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = Frame::take(&mut self.received, self.limit)? {
                return Ok(Some(frame));
            }
            self.received.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                if self.received.is_empty() {
                    return Ok(None);
                }
                let message = format!("the stream ended {} bytes into a frame", self.received.len());
                return Err(Broken::Io(io::Error::new(io::ErrorKind::UnexpectedEof, message)));
            }
        }
    }
}

/// A source of bytes that refuses to go on when the decoder has gone too deep.
struct Shallow<'a> {
    rest: &'a [u8],
    /// Where the stack was at the start.
    base: usize,
}

impl<'a> Flavor<'a> for Shallow<'a> {
    type Remainder = &'a [u8];
    type Source = &'a [u8];

    fn pop(&mut self) -> postcard::Result<u8> {
        // Each level of nesting reads at least the byte that says that there is another one.
        if stack_position().abs_diff(self.base) > DECODE_STACK_BYTES {
            return Err(postcard::Error::DeserializeBadEncoding);
        }
        let (first, rest) = self.rest.split_first().ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        self.rest = rest;
        Ok(*first)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }

    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        self.rest = rest;
        Ok(taken)
    }

    fn finalize(self) -> postcard::Result<&'a [u8]> {
        Ok(self.rest)
    }
}

/// An address in the present stack frame. Only differences of two are of use, and only roughly.
#[inline(never)]
fn stack_position() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::message::{Request, Response};
    use crate::types::{RegionId, Sequence};

    const LIMIT: u64 = 1 << 20;

    fn some_frames() -> Vec<Frame> {
        let body = encode(&Request::Status { region: Some(RegionId(7)) }, LIMIT).unwrap();
        let answer = encode(&Err::<Response, _>(Error::Stopped), LIMIT).unwrap();
        vec![
            Frame::Hello { node: NodeId(3), lane: Lane::Bulk },
            Frame::Request { kind: Kind::Status, id: u64::MAX, within: Duration::from_millis(250), body },
            Frame::Answer { kind: Kind::Status, id: 0, body: answer },
        ]
    }

    fn bytes_of(frames: &[Frame]) -> BytesMut {
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| frame.put(&mut bytes));
        bytes
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_arrive() {
        let frames = some_frames();
        let bytes = bytes_of(&frames);
        for piece in 1..=bytes.len() {
            let (mut received, mut taken) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(piece) {
                received.extend_from_slice(piece);
                while let Some(frame) = Frame::take(&mut received, LIMIT).unwrap() {
                    taken.push(frame);
                }
            }
            assert_eq!(taken, frames, "in pieces of {piece}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn a_watcher_sees_what_a_frame_is_and_where_it_ends() {
        let frames = some_frames();
        let seen: Vec<_> = frames.iter().map(|frame| peek(&bytes_of(std::slice::from_ref(frame))).unwrap()).collect();
        let lens: Vec<_> = frames.iter().map(|frame| bytes_of(std::slice::from_ref(frame)).len()).collect();
        assert_eq!(
            seen,
            [
                Peek { kind: None, id: 3, answer: false, len: lens[0] },
                Peek { kind: Some(Kind::Status), id: u64::MAX, answer: false, len: lens[1] },
                Peek { kind: Some(Kind::Status), id: 0, answer: true, len: lens[2] },
            ]
        );
        assert_eq!(peek(&bytes_of(&frames)[..HEADER_BYTES - 1]), None);
        assert_eq!(peek(&[0; 100]), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let take = |bytes: &[u8]| Frame::take(&mut BytesMut::from(bytes), LIMIT).unwrap_err();
        assert_eq!(take(b"GET"), Malformed::Version(b'G'));
        let good = bytes_of(&some_frames()[1..2]);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(take(&with(0, 0xd2)), Malformed::Version(0xd2));
        assert_eq!(take(&with(5, 9)), Malformed::HeaderChecksum);
        assert!(matches!(take(&with(HEADER_BYTES, 99)), Malformed::BodyChecksum { .. }));
        let sealed = |at: usize, value: u8| {
            let mut bytes = with(at, value);
            let crc = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
            bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        assert_eq!(take(&sealed(1, 7)), Malformed::Header { flags: 7, kind: Kind::Status as u8, lane: 0 });
        assert_eq!(take(&sealed(2, 200)), Malformed::Header { flags: 0, kind: 200, lane: 0 });
        assert!(matches!(take(&sealed(19, 1)), Malformed::TooLarge { len, limit: LIMIT } if len > LIMIT));
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_before_it_is_sent() {
        let err = encode(&vec![0u8; 100], 100).unwrap_err();
        assert_eq!(err.to_string(), "[request] the message takes a frame of 129 bytes; rpc_frame_bytes = 100");
        assert!(encode(&vec![0u8; 100], 129).is_ok());
    }

    #[test]
    fn a_message_nested_without_end_is_refused_and_a_sane_one_is_not() {
        let nested = |levels: usize| {
            (0..levels).fold(Error::Stopped, |cause, level| Error::Partial {
                written: vec![RegionId(level as u64)],
                cause: Box::new(cause),
            })
        };
        let body = encode(&nested(40), LIMIT).unwrap();
        assert_eq!(decode::<Error>(&body).unwrap(), nested(40));
        // `Partial` with no region and a cause: two bytes a level.
        let level = &encode(&Error::Partial { written: vec![], cause: Box::new(Error::Stopped) }, LIMIT).unwrap()[..2];
        let body = level.repeat(10_000_000);
        assert!(matches!(decode::<Error>(&body), Err(Malformed::Body { .. })));
    }

    #[test]
    fn bytes_behind_a_message_are_an_error() {
        let mut body = encode(&Sequence(5), LIMIT).unwrap().to_vec();
        assert_eq!(decode::<Sequence>(&body).unwrap(), Sequence(5));
        body.push(0);
        assert!(decode::<Sequence>(&body).unwrap_err().to_string().contains("1 bytes are left over"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = peek(&bytes);
            let _ = Frame::take(&mut BytesMut::from(&bytes[..]), LIMIT);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Result<Response>>(&bytes);
        }

        #[test]
        fn any_body_with_right_checksums_is_a_frame_or_an_error(
            flags in 0u8..4, kind in 0u8..20, lane in 0u8..5, id: u64, body in proptest::collection::vec(any::<u8>(), 0..100)
        ) {
            let mut bytes = BytesMut::new();
            bytes.put_slice(&[VERSION, flags, kind, lane]);
            bytes.put_u64_le(id);
            bytes.put_u32_le(5);
            bytes.put_u32_le(body.len() as u32);
            bytes.put_u32_le(crc32fast::hash(&body));
            let crc = crc32fast::hash(&bytes);
            bytes.put_u32_le(crc);
            bytes.put_slice(&body);
            let seen = peek(&bytes);
            match Frame::take(&mut bytes, LIMIT) {
                Ok(frame) => {
                    let mut again = BytesMut::new();
                    frame.unwrap().put(&mut again);
                    prop_assert_eq!(peek(&again), seen);
                    prop_assert!(bytes.is_empty());
                }
                Err(_) => prop_assert_eq!(seen, None),
            }
        }

        #[test]
        fn one_changed_bit_is_never_taken_for_the_frame(at in 0usize..40 * 8) {
            let frames = &some_frames()[1..2];
            let mut bytes = bytes_of(frames);
            let at = at % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(!matches!(Frame::take(&mut bytes, LIMIT), Ok(Some(_))));
        }
    }
}
