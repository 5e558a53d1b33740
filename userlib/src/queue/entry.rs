//! What a request is to the adapter, what is kept of it, and what its completion says.

use std::num::NonZeroU64;

use wire::Status;
use wire::layout::{CompletionEntry, MAX_SEGMENTS, MAX_WRITE_BYTES, SubmissionEntry, flag, opcode};

use crate::error::{Error, IoError};
use crate::memory::Buffer;
use crate::request::{Data, Request};
use crate::slots::Flight;

#[inline]
pub(super) fn outcome(flight: &Flight, entry: &CompletionEntry) -> Result<u32, Error> {
    if Status(entry.status).is_ok() && entry.bytes <= flight.length {
        Ok(entry.bytes)
    } else {
        no_success(flight, entry)
    }
}

#[cold]
fn no_success(flight: &Flight, entry: &CompletionEntry) -> Result<u32, Error> {
    let status = Status(entry.status);
    let Flight { opcode, offset, length, .. } = *flight;
    // Its offset is the room for a reply, and that says what failed, if anything did.
    if opcode == opcode::MANAGE && entry.bytes > 0 && u64::from(entry.bytes) <= offset {
        return Ok(entry.bytes);
    }
    if status.is_ok() {
        return Err(Error::Protocol(format!("{} bytes moved of {length} asked for", entry.bytes)));
    }
    Err(IoError { status, device_status: entry.device_status, opcode, offset, length }.into())
}

#[cold]
pub(super) fn stray(entry: &CompletionEntry) -> Error {
    Error::Protocol(format!(
        "a completion came for {:#x} ({}), which is not in flight on this queue",
        entry.user_data,
        Status(entry.status)
    ))
}

/// What is kept of a request while it is in flight.
#[inline]
pub(super) fn flight(request: Request, length: u32, transfer: Option<NonZeroU64>) -> Flight {
    let Request { data, tag, offset, opcode, flags, deadline_us, key, extension, .. } = request;
    let (in_extension, bounced) = (extension != 0, false);
    Flight { data, tag, offset, length, opcode, flags, in_extension, bounced, deadline_us, key, transfer }
}

/// The request that a flight was.
#[cold]
pub(super) fn request_of(flight: &mut Flight, extension: u64) -> Request {
    let data = flight.take_data();
    let &mut Flight { opcode, flags, deadline_us, key, offset, length, tag, .. } = flight;
    Request { opcode, flags, deadline_us, key, offset, length: length.into(), extension, tag, data }
}

/// What the adapter is told of a request: by the key that it has now, with its memory or the list of its `segments` buffers there.
#[inline(always)] // where requests come through, as its caller
pub(super) fn entry(
    flight: &Flight,
    (user_data, key, extension): (u64, u64, u64),
    (region, region_offset): (u64, u64),
    segments: u8,
) -> SubmissionEntry {
    SubmissionEntry {
        opcode: flight.opcode,
        flags: flight.flags | if segments > 0 { flag::SCATTER } else { 0 },
        scatter_count: segments,
        deadline_us: flight.deadline_us,
        user_data,
        key,
        offset: flight.offset,
        length: flight.length,
        region,
        region_offset,
        extension,
        ..SubmissionEntry::default()
    }
}

#[inline]
pub(super) fn checked_length(request: &Request) -> Result<u32, Error> {
    let most = match &request.data {
        Data::One(buffer) => buffer.len() as u64,
        Data::None | Data::Several(_) => u64::MAX,
    };
    let writes_bytes = matches!(request.opcode, opcode::WRITE_BYTES | opcode::APPEND);
    let most_of_opcode = if writes_bytes { MAX_WRITE_BYTES } else { u32::MAX };
    match u32::try_from(request.length) {
        Ok(length) if request.length <= most && length <= most_of_opcode => Ok(length),
        _ => Err(too_long(request, most)),
    }
}

#[cold]
fn too_long(request: &Request, most: u64) -> Error {
    let length = request.length;
    let writes_bytes = matches!(request.opcode, opcode::WRITE_BYTES | opcode::APPEND);
    Error::Argument(if writes_bytes && length > u64::from(MAX_WRITE_BYTES) {
        format!(
            "a write of {length} bytes at once: at most {MAX_WRITE_BYTES} can be written where they are not whole blocks"
        )
    } else if length > u64::from(u32::MAX) {
        format!("a length of {length} bytes does not fit a request: use several of less than 4 GiB")
    } else {
        format!("a length of {length} is more than the {most} bytes of the buffer")
    })
}

/// Whether a request of that length can have these buffers.
#[cold]
pub(super) fn check_several(length: u64, buffers: &[Buffer]) -> Result<(), Error> {
    let all: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
    if !(1..=MAX_SEGMENTS).contains(&buffers.len()) {
        let text = format!("{} buffers for one request: it takes 1 to {MAX_SEGMENTS}", buffers.len());
        return Err(Error::Argument(text));
    }
    if length != all {
        let text = format!("a length of {length} with several buffers of {all} bytes: all of them take part");
        return Err(Error::Argument(text));
    }
    Ok(())
}
