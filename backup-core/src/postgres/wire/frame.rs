//! Messages of the server in the bytes that have arrived: how long each may be, and when one is complete. No I/O.
//!
//! The grammar is that of PostgreSQL's "Message Formats". `postgres-protocol` reads it, but for `CopyBothResponse`, which it does not know,
//! and but for the lengths: whoever is on the other end may announce 4 GiB.

use std::fmt;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::{self, Message};

/// The largest piece of a copy that is taken. PostgreSQL sends 32 KiB of a base backup at a time, somewhat more when it is compressed, and
/// sixteen blocks of log: 1 MiB with the largest block size that it can be built with.
pub const COPY_DATA_BYTES_MAX: usize = 4 << 20;

/// The largest row. The content of a timeline's history is one.
pub const ROW_BYTES_MAX: usize = 16 << 20;

/// Everything else once somebody is logged in: errors and notices with their details, the columns of a result.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Anything before that; libpq draws the line at about the same place.
const STARTUP_BYTES_MAX: usize = 30_000;

/// Tag and length.
const HEADER_BYTES: usize = 5;

/// The most bytes before the data of a message of copy data: its header, and the kind that [`CopyLead`] may have.
pub(super) const COPY_LEAD_BYTES_MAX: usize = HEADER_BYTES + 1;

/// `CopyBothResponse`.
const COPY_BOTH: u8 = b'W';

/// What the server is trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not yet said that we are welcome, and we may not know who it is.
    Startup,
    /// It answers.
    Session,
}

/// A message of the server.
pub(super) enum Incoming {
    Message(Message),
    /// Both sides may send `CopyData` from now on.
    CopyBoth,
}

/// Why bytes are no messages.
#[derive(Debug)]
pub(super) enum Malformed {
    Tag(u8),
    Length { tag: u8, bytes: u32, most: usize },
    Content { tag: u8, why: String },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = |tag: &u8| char::from(*tag).escape_default();
        match self {
            Self::Tag(t) => write!(f, "message '{}' is not one of PostgreSQL's, or not expected here", tag(t)),
            Self::Length { tag: t, bytes, most } => {
                write!(f, "message '{}' claims {bytes} bytes, of at most {most}", tag(t))
            }
            Self::Content { tag: t, why } => write!(f, "message '{}' is malformed: {why}", tag(t)),
        }
    }
}

impl std::error::Error for Malformed {}

/// How long a message may be, its length field included; `None` for one that is never sent to us.
fn bytes_max(tag: u8, phase: Phase) -> Option<usize> {
    let fixed = match tag {
        backend::READY_FOR_QUERY_TAG => 5,
        // 256 bytes of key since protocol 3.2.
        backend::BACKEND_KEY_DATA_TAG => 264,
        backend::AUTHENTICATION_TAG | backend::PARAMETER_STATUS_TAG => STARTUP_BYTES_MAX,
        backend::ERROR_RESPONSE_TAG | backend::NOTICE_RESPONSE_TAG if phase == Phase::Startup => STARTUP_BYTES_MAX,
        _ if phase == Phase::Startup => return None,
        backend::COPY_DONE_TAG | backend::EMPTY_QUERY_RESPONSE_TAG => 4,
        backend::COPY_DATA_TAG => COPY_DATA_BYTES_MAX,
        backend::DATA_ROW_TAG => ROW_BYTES_MAX,
        backend::COPY_IN_RESPONSE_TAG | backend::COPY_OUT_RESPONSE_TAG | COPY_BOTH | backend::COMMAND_COMPLETE_TAG => {
            STARTUP_BYTES_MAX
        }
        backend::ERROR_RESPONSE_TAG
        | backend::NOTICE_RESPONSE_TAG
        | backend::ROW_DESCRIPTION_TAG
        | backend::NOTIFICATION_RESPONSE_TAG => MESSAGE_BYTES_MAX,
        _ => return None,
    };
    Some(fixed)
}

/// Takes the first message off `bytes`; `None` if more has to arrive. Room for the rest of that message is reserved, and for no more than it
/// may have.
///
/// # Errors
/// A message that nobody sends here, that is too long, or that is not what its kind looks like. Nothing is taken then, and there is no going on.
pub(super) fn take(bytes: &mut BytesMut, phase: Phase) -> Result<Option<Incoming>, Malformed> {
    let Some(&tag) = bytes.first() else { return Ok(None) };
    let most = bytes_max(tag, phase).ok_or(Malformed::Tag(tag))?;
    let Some(length) = bytes.get(1..HEADER_BYTES) else { return Ok(None) };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    if length < 4 || usize::try_from(length).is_ok_and(|length| length > most) {
        return Err(Malformed::Length { tag, bytes: length, most });
    }
    if tag == COPY_BOTH {
        let whole = 1 + length as usize;
        if bytes.len() < whole {
            return Ok(None);
        }
        bytes.advance(whole);
        return Ok(Some(Incoming::CopyBoth));
    }
    let message = Message::parse(bytes).map_err(|e| Malformed::Content { tag, why: e.to_string() })?;
    Ok(message.map(Incoming::Message))
}

/// What may come next where copy data is awaited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CopyNext {
    /// A message of it, with so many bytes. What stands before them has been taken.
    Data(usize),
    /// Some other message, of which nothing has been taken.
    Other,
    /// More has to arrive before anybody can tell.
    Incomplete,
}

/// The bytes before the data of a message of copy data, whose data may begin with a byte that tells its kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyLead {
    bytes: [u8; COPY_LEAD_BYTES_MAX],
    len: usize,
}

impl CopyLead {
    /// That of a message of `data_len` bytes behind the kind.
    pub(super) fn new(kind: Option<u8>, data_len: usize) -> Self {
        let len = HEADER_BYTES + usize::from(kind.is_some());
        let mut bytes = [0; COPY_LEAD_BYTES_MAX];
        bytes[0] = backend::COPY_DATA_TAG;
        let length = u32::try_from(len - 1 + data_len).unwrap_or(u32::MAX);
        bytes[1..HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
        bytes[HEADER_BYTES] = kind.unwrap_or_default();
        Self { bytes, len }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Takes what stands before the data off `bytes`, if they begin with a message of copy data of that kind.
///
/// # Errors
/// A message that is too long.
pub(super) fn begin_copy(bytes: &mut BytesMut, kind: Option<u8>) -> Result<CopyNext, Malformed> {
    match bytes.first() {
        None => return Ok(CopyNext::Incomplete),
        Some(&backend::COPY_DATA_TAG) => {}
        Some(_) => return Ok(CopyNext::Other),
    }
    let Some(length) = bytes.get(1..HEADER_BYTES) else { return Ok(CopyNext::Incomplete) };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    let most = COPY_DATA_BYTES_MAX;
    let data = match usize::try_from(length) {
        Ok(length) if length <= most => length.checked_sub(4 + usize::from(kind.is_some())),
        _ => return Err(Malformed::Length { tag: backend::COPY_DATA_TAG, bytes: length, most }),
    };
    // One that is too short is for others to complain about.
    let Some(data) = data else { return Ok(CopyNext::Other) };
    if let Some(kind) = kind {
        match bytes.get(HEADER_BYTES) {
            None => return Ok(CopyNext::Incomplete),
            Some(&found) if found != kind => return Ok(CopyNext::Other),
            Some(_) => {}
        }
    }
    bytes.advance(HEADER_BYTES + usize::from(kind.is_some()));
    Ok(CopyNext::Data(data))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Messages of the kinds that PostgreSQL sends in a session, with some body.
    fn messages() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let message = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|body| (backend::COPY_DATA_TAG, body)),
            Just((backend::COPY_DONE_TAG, vec![])),
            Just((COPY_BOTH, vec![0, 0, 0])),
            "[a-z]{0,9}".prop_map(|tag| (backend::COMMAND_COMPLETE_TAG, format!("{tag}\0").into_bytes())),
            Just((backend::READY_FOR_QUERY_TAG, vec![b'I'])),
        ];
        prop::collection::vec(message, 0..12)
    }

    fn encoded(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let one = |(tag, body): &(u8, Vec<u8>)| [&[*tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat();
        messages.iter().flat_map(one).collect()
    }

    /// What a message was, as it went in.
    fn decoded(incoming: Incoming) -> (u8, Vec<u8>) {
        match incoming {
            Incoming::CopyBoth => (COPY_BOTH, vec![0, 0, 0]),
            Incoming::Message(Message::CopyData(body)) => (backend::COPY_DATA_TAG, body.data().to_vec()),
            Incoming::Message(Message::CopyDone) => (backend::COPY_DONE_TAG, vec![]),
            Incoming::Message(Message::CommandComplete(body)) => {
                (backend::COMMAND_COMPLETE_TAG, format!("{}\0", body.tag().unwrap()).into_bytes())
            }
            Incoming::Message(Message::ReadyForQuery(body)) => (backend::READY_FOR_QUERY_TAG, vec![body.status()]),
            Incoming::Message(_) => panic!("it was not among them"),
        }
    }

    proptest! {
        #[test]
        fn bytes_that_arrive_in_other_pieces_are_the_same_messages(messages in messages(), step in 1usize..70) {
            let (mut bytes, mut read) = (BytesMut::new(), Vec::new());
            for piece in encoded(&messages).chunks(step) {
                bytes.extend_from_slice(piece);
                while let Some(incoming) = take(&mut bytes, Phase::Session).unwrap() {
                    read.push(decoded(incoming));
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn no_bytes_panic_or_make_room_for_more_than_a_message_may_have(
            tag in prop_oneof![any::<u8>(), prop::sample::select(&b"dDEWNRSTCHKZ"[..])],
            length in prop_oneof![any::<u32>(), 0u32..100, Just(i32::MAX as u32)],
            body in prop::collection::vec(any::<u8>(), 0..100),
            session: bool,
        ) {
            let mut bytes = BytesMut::new();
            bytes.extend_from_slice(&[tag]);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&body);
            let phase = if session { Phase::Session } else { Phase::Startup };
            let most = bytes_max(tag, phase).unwrap_or(0);
            let taken = take(&mut bytes, phase);
            prop_assert!(bytes.capacity() <= 2 * (most + 200), "{} {most}", bytes.capacity());
            if length as usize > most {
                prop_assert!(taken.is_err());
            }
        }
    }

    #[test]
    fn rows_and_streams_are_not_taken_before_the_login() {
        for tag in *b"dDTCHWGAc" {
            let mut bytes = BytesMut::from(&[tag, 0, 0, 0, 4][..]);
            assert!(matches!(take(&mut bytes, Phase::Startup), Err(Malformed::Tag(_))), "{}", char::from(tag));
        }
    }
}
