//! Blocking reads and writes of any range, in pieces through buffers of the queue's own.

use std::num::NonZeroU64;

use wire::layout::MAX_WRITE_BYTES;

use super::calls::Ended;
use super::{BOUNCE_BUFFERS, BOUNCE_BYTES, Queue};
use crate::error::Error;
use crate::memory::{Memory, MemoryAccess};
use crate::request::Request;
use crate::slots::Flight;
use crate::target::{Of, Target};

impl Queue {
    /// Registers memory for copies, if all of it is gone.
    pub(super) fn provide_bounce(&mut self) -> Result<(), Error> {
        if self.bounce.is_empty() {
            let memory =
                Memory::register(&self.channel.link, BOUNCE_BUFFERS * BOUNCE_BYTES, MemoryAccess::Both)?;
            self.bounce = memory.buffers(BOUNCE_BYTES, 4096)?;
        }
        Ok(())
    }

    /// Returns how many bytes from the first on were moved: fewer than asked for only where a file ends.
    pub(crate) fn transfer(&mut self, of: Of, offset: u64, mut pieces: Pieces<'_>) -> Result<usize, Error> {
        let block = of.block_size() as usize;
        self.provide_bounce()?;
        self.transfers += 1;
        let this = NonZeroU64::new(self.transfers);
        let (total, mut begun, mut running) = (pieces.len(), 0, 0usize);
        let mut moved = total;
        let mut failed = None;
        loop {
            while begun < total
                && failed.is_none()
                && !self.bounce.is_empty()
                && (running == 0 || !self.slots.is_full())
            {
                self.make_room()?;
                let Some(mut buffer) = self.bounce.pop() else {
                    break;
                };
                let at = offset.saturating_add(begun as u64);
                let skip = before_block(at, block);
                let (request, bytes) = match &mut pieces {
                    Pieces::Read(_) => {
                        let bytes = (BOUNCE_BYTES - skip).min(total - begun);
                        let whole = (skip + bytes).next_multiple_of(block);
                        (Request::read(&of, at - skip as u64, buffer).length(whole as u64), bytes)
                    }
                    Pieces::Write(source) => {
                        let (bytes, whole) = next_write(skip, total - begun, block);
                        buffer[..bytes].copy_from_slice(&source[begun..begun + bytes]);
                        let write = if whole { Request::write } else { Request::write_bytes };
                        (write(&of, at, buffer).length(bytes as u64), bytes)
                    }
                };
                match self.submit(request.tag(begun as u64), this) {
                    Ok(_) => (begun, running) = (begun + bytes, running + 1),
                    Err(refused) => {
                        failed = Some(refused.error);
                        self.bounce.extend(refused.request.into_buffer());
                    }
                }
            }
            if running == 0 {
                return failed.map_or(Ok(moved), Err);
            }
            self.ring()?;
            let ended = self.next_ended()?;
            if ended.flight.transfer != this {
                self.keep(ended);
                continue;
            }
            running -= 1;
            let Ended { flight, result, .. } = ended;
            match result.and_then(|bytes| pieces.arrived(&of, offset, &flight, bytes)) {
                Ok(until) => moved = moved.min(until),
                Err(error) => drop(failed.get_or_insert(error)),
            }
            self.bounce.extend(flight.data.into_one());
        }
    }
}

/// Bytes of the block that `at` is in before it.
pub(crate) fn before_block(at: u64, block: usize) -> usize {
    usize::try_from(at & (block as u64 - 1)).unwrap_or(0)
}

/// How many bytes are written next, and whether they are whole blocks: all that is left with one request if that takes
/// them, else up to the next block, then whole blocks.
pub(crate) fn next_write(skip: usize, left: usize, block: usize) -> (usize, bool) {
    if skip == 0 && left.is_multiple_of(block) {
        (left.min(BOUNCE_BYTES), true)
    } else if left <= MAX_WRITE_BYTES as usize {
        (left, false)
    } else if skip > 0 {
        (block - skip, false)
    } else {
        ((left / block * block).min(BOUNCE_BYTES), true)
    }
}

/// The caller's side of a blocking transfer.
pub(crate) enum Pieces<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Pieces<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(target) => target.len(),
            Self::Write(source) => source.len(),
        }
    }

    /// Takes a piece that ended well, of a transfer from `offset`; its tag is its place in the slice. Returns how far the
    /// transfer can be whole: to the end of the slice, or to where this piece met the end of a file.
    fn arrived(&mut self, of: &Of, offset: u64, flight: &Flight, bytes: u32) -> Result<usize, Error> {
        let total = self.len();
        if bytes != flight.length && !(of.ends() && matches!(self, Self::Read(_))) {
            return Err(Error::Protocol(format!(
                "{bytes} bytes of {} were moved without an error",
                flight.length
            )));
        }
        let (Self::Read(target), Some(buffer)) = (self, flight.data.one()) else { return Ok(total) };
        let (Ok(at), Ok(bytes), Ok(asked)) =
            (usize::try_from(flight.tag), usize::try_from(bytes), usize::try_from(flight.length))
        else {
            return Ok(total);
        };
        let skip = before_block(offset.saturating_add(flight.tag), of.block_size() as usize);
        let wanted = (asked - skip).min(total - at);
        let here = bytes.saturating_sub(skip).min(wanted);
        target[at..at + here].copy_from_slice(&buffer[skip..skip + here]);
        Ok(if here < wanted { at + here } else { total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_cut_into_parts_of_blocks_and_whole_blocks() {
        let block = 512;
        for offset in [0usize, 1, 511, 512, 700, 4095] {
            for total in [1usize, 511, 512, 1024, 65536, 65537, 65536 + 511, 131_072, 400_000, 524_288] {
                let (mut at, mut parts) = (offset, 0);
                while at < offset + total {
                    let (bytes, whole) = next_write(at % block, offset + total - at, block);
                    assert!(bytes > 0 && at + bytes <= offset + total);
                    if whole {
                        assert!(at % block == 0 && bytes % block == 0 && bytes <= BOUNCE_BYTES);
                    } else {
                        assert!(bytes <= MAX_WRITE_BYTES as usize);
                        parts += 1;
                    }
                    at += bytes;
                }
                assert!(parts <= 2, "{total} at {offset}");
                assert_eq!(parts == 0, offset % block == 0 && total % block == 0);
            }
        }
    }
}
