//! Control messages to packets and back. A packet is a [`FrameHeader`] and one [`Request`] or [`Reply`].

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, IntoBytes};

use crate::control::{FRAME_MAGIC, FrameHeader, MAX_MESSAGE, Reply, Request};

/// Bytes of the header.
pub const HEADER: usize = size_of::<FrameHeader>();

/// What a packet can carry: [`Request`] and [`Reply`].
pub trait Message: Serialize + DeserializeOwned {}
impl Message for Request {}
impl Message for Reply {}

/// Why a message does not become a packet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Larger than a packet may be.
    #[error(
        "the message takes {0} bytes and a packet at most {MAX_MESSAGE}: shorten names or ask for less at once"
    )]
    TooLong(usize),
    /// It has no encoding.
    #[error("the message cannot be encoded: {0}")]
    Body(postcard::Error),
}

/// Why a packet is not a message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Shorter than a header.
    #[error("a packet of {0} bytes is shorter than its header of {HEADER}")]
    TooShort(usize),
    /// Longer than allowed.
    #[error("a packet of {0} bytes is longer than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    /// Not a packet of this protocol.
    #[error(
        "the packet begins with {0:#010x} and not with {FRAME_MAGIC:#010x}: is another program at the other end?"
    )]
    Magic(u32),
    /// Of another version.
    #[error("the other side speaks version {peer}, this side {version}: use matching versions", version = crate::VERSION)]
    Version {
        /// The sender's.
        peer: u16,
        /// Of the packet, so that it can be answered.
        id: u32,
    },
    /// A reserved field is not zero.
    #[error("the reserved field of the packet is {reserved:#x} and must be 0")]
    Reserved {
        /// What it is.
        reserved: u16,
        /// Of the packet.
        id: u32,
    },
    /// The header's length is not that of the body.
    #[error("the header says {said} bytes of body, the packet has {actual}")]
    Length {
        /// As the header says.
        said: u32,
        /// Bytes there are.
        actual: usize,
        /// Of the packet.
        id: u32,
    },
    /// The body is no message.
    #[error("the body is not a message: {error}")]
    Body {
        /// The decoder's word.
        error: postcard::Error,
        /// Of the packet.
        id: u32,
    },
    /// Something follows the message.
    #[error("{bytes} bytes follow the message")]
    Trailing {
        /// How many.
        bytes: usize,
        /// Of the packet.
        id: u32,
    },
}

impl FrameError {
    /// The id of the packet, where it got so far, for an answer.
    pub fn id(&self) -> Option<u32> {
        match *self {
            Self::TooShort(_) | Self::TooLong(_) | Self::Magic(_) => None,
            Self::Version { id, .. }
            | Self::Reserved { id, .. }
            | Self::Length { id, .. }
            | Self::Body { id, .. }
            | Self::Trailing { id, .. } => Some(id),
        }
    }
}

/// The packet of a message. `id` is the application's choice; the reply carries the id of its request.
///
/// # Errors
/// [`EncodeError::TooLong`] for what no packet holds.
pub fn encode<T: Message>(id: u32, message: &T) -> Result<Vec<u8>, EncodeError> {
    let mut packet = postcard::to_extend(message, vec![0; HEADER]).map_err(EncodeError::Body)?;
    let length = match u32::try_from(packet.len() - HEADER) {
        Ok(length) if packet.len() <= MAX_MESSAGE => length,
        _ => return Err(EncodeError::TooLong(packet.len())),
    };
    let header = FrameHeader { magic: FRAME_MAGIC, version: crate::VERSION, reserved: 0, length, id };
    packet[..HEADER].copy_from_slice(header.as_bytes());
    Ok(packet)
}

/// A message without a header, as a management entry carries it, at the beginning of `into`. Returns its bytes.
///
/// # Errors
/// [`EncodeError::TooLong`] for what does not fit.
pub fn encode_body<T: Message>(message: &T, into: &mut [u8]) -> Result<usize, EncodeError> {
    let bytes = encoded_len(message)?;
    match postcard::to_slice(message, into) {
        Ok(used) => Ok(used.len()),
        Err(postcard::Error::SerializeBufferFull) => Err(EncodeError::TooLong(bytes)),
        Err(error) => Err(EncodeError::Body(error)),
    }
}

/// Bytes that a message takes without a header.
///
/// # Errors
/// [`EncodeError::Body`].
pub fn encoded_len<T: Message>(message: &T) -> Result<usize, EncodeError> {
    postcard::experimental::serialized_size(message).map_err(EncodeError::Body)
}

/// The message that `body` is, whole.
///
/// # Errors
/// [`FrameError::TooLong`], [`FrameError::Body`] and [`FrameError::Trailing`], with an id of 0.
pub fn decode_body<T: Message>(body: &[u8]) -> Result<T, FrameError> {
    if body.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong(body.len()));
    }
    whole(body, 0)
}

/// The request in a packet, and its id.
///
/// # Errors
/// One [`FrameError`] for each way in which it can be malformed.
pub fn decode_request(packet: &[u8]) -> Result<(u32, Request), FrameError> {
    decode(packet)
}

/// The reply in a packet, and the id of the request that it answers.
///
/// # Errors
/// One [`FrameError`] for each way in which it can be malformed.
pub fn decode_reply(packet: &[u8]) -> Result<(u32, Reply), FrameError> {
    decode(packet)
}

fn decode<T: Message>(packet: &[u8]) -> Result<(u32, T), FrameError> {
    if packet.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong(packet.len()));
    }
    let Ok((header, body)) = FrameHeader::read_from_prefix(packet) else {
        return Err(FrameError::TooShort(packet.len()));
    };
    let FrameHeader { magic, version, reserved, length, id } = header;
    if magic != FRAME_MAGIC {
        return Err(FrameError::Magic(magic));
    }
    if version != crate::VERSION {
        return Err(FrameError::Version { peer: version, id });
    }
    if reserved != 0 {
        return Err(FrameError::Reserved { reserved, id });
    }
    if usize::try_from(length) != Ok(body.len()) {
        return Err(FrameError::Length { said: length, actual: body.len(), id });
    }
    Ok((id, whole(body, id)?))
}

fn whole<T: Message>(body: &[u8], id: u32) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|error| FrameError::Body { error, id })?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing { bytes: rest.len(), id }) }
}
