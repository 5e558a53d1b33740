//! Requests of a block device (virtio 1.2, section 5.2.6).

use std::sync::atomic::Ordering;

use zerocopy::transmute;

use super::super::iommu::{Direction, Fault, Window};
use super::super::media::MediaError;
use super::super::memory::Segments;
use super::device::Function;
use super::queue::{Broken, Buffer, Chain};
use crate::spec::virtio::block::{
    HEADER_LEN, ID_LEN, RANGE_LEN, Range, RequestHeader, UNMAP, feature as blk, request, status,
};

/// Bytes of all.
fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|(_, len)| u64::from(*len)).sum()
}

/// `len` bytes from `skip` on of what `buffers` name, every piece looked up.
fn segments<'w>(
    window: &'w Window<'_>,
    buffers: &[Buffer],
    mut skip: u64,
    mut len: u64,
    direction: Direction,
) -> Result<Segments<'w>, Fault> {
    let mut found = Segments::default();
    for (at, bytes) in buffers {
        let bytes = u64::from(*bytes);
        let hidden = skip.min(bytes);
        skip -= hidden;
        let take = len.min(bytes - hidden);
        if take > 0 {
            let from = at.checked_add(hidden).ok_or(Fault)?;
            found.push(window.find(from, usize::try_from(take).map_err(|_| Fault)?, direction)?);
            len -= take;
        }
    }
    if len == 0 { Ok(found) } else { Err(Fault) }
}

/// How the request begins, if it has that much.
pub(super) fn header(window: &Window<'_>, chain: &Chain) -> Option<RequestHeader> {
    let mut bytes = [0; HEADER_LEN];
    let found = segments(window, &chain.readable, 0, HEADER_LEN as u64, Direction::FromHost).ok()?;
    found.read_at(0, &mut bytes).then(|| transmute!(bytes))
}

/// A request that does not succeed, by its status.
struct Failed(u8);

impl From<Fault> for Failed {
    fn from(_: Fault) -> Self {
        Self(status::IOERR)
    }
}

impl From<MediaError> for Failed {
    fn from(_: MediaError) -> Self {
        Self(status::IOERR)
    }
}

impl Function {
    /// Runs one request to its end; its status.
    pub(super) fn execute(&self, window: &Window<'_>, chain: &Chain) -> Result<u8, Broken> {
        let header = header(window, chain).ok_or(Broken("a request without a header"))?;
        let written = total(&chain.writable).checked_sub(1);
        let written = written.ok_or(Broken("a request without room for its status"))?;
        let read = total(&chain.readable).saturating_sub(HEADER_LEN as u64);
        Ok(match self.attempt(window, chain, header, (read, written)) {
            Ok(()) => status::OK,
            Err(Failed(status)) => status,
        })
    }

    fn attempt(
        &self,
        window: &Window<'_>,
        chain: &Chain,
        header: RequestHeader,
        (read, written): (u64, u64),
    ) -> Result<(), Failed> {
        let media = &*self.shape.media;
        let skip = HEADER_LEN as u64;
        match header.kind {
            request::IN => {
                let offset = self.transfer(header.sector, &chain.writable, 1, written)?;
                media.read(offset, &segments(window, &chain.writable, 0, written, Direction::ToHost)?)?;
            }
            request::OUT => {
                let offset = self.transfer(header.sector, &chain.readable, 1, read)?;
                let from = segments(window, &chain.readable, skip, read, Direction::FromHost)?;
                media.write(offset, &from, self.write_through())?;
            }
            request::FLUSH if self.has(blk::FLUSH) => {
                // The sector of a flush is zero (5.2.6.1).
                if header.sector != 0 {
                    return Err(Failed(status::IOERR));
                }
                media.flush()?;
            }
            request::GET_ID => {
                let mut id = [0; ID_LEN];
                let name = self.shape.serial.bytes().filter(|byte| matches!(byte, b' '..=b'~'));
                id.iter_mut().zip(name).for_each(|(to, from)| *to = from);
                let into = segments(window, &chain.writable, 0, ID_LEN as u64, Direction::ToHost)?;
                into.write_at(0, &id);
            }
            request::DISCARD if self.has(blk::DISCARD) => {
                let (offset, bytes, _) = self.range(window, chain, read, false)?;
                media.zero(offset, bytes, true)?;
            }
            request::WRITE_ZEROES if self.has(blk::WRITE_ZEROES) => {
                let (offset, bytes, unmap) = self.range(window, chain, read, true)?;
                media.zero(offset, bytes, unmap)?;
                if self.write_through() {
                    media.flush()?;
                }
            }
            _ => return Err(Failed(status::UNSUPP)),
        }
        Ok(())
    }

    /// Where a transfer of `bytes` bytes at `sector` is, if it is one that the device takes. `besides` of the buffers are
    /// no data.
    fn transfer(&self, sector: u64, buffers: &[Buffer], besides: usize, bytes: u64) -> Result<u64, Failed> {
        let most = u64::from(self.shape.seg_max);
        let fits = (buffers.len() - besides.min(buffers.len())) as u64 <= most
            && buffers.iter().all(|(_, len)| *len <= self.shape.size_max);
        let (offset, end) = self.place(sector, bytes)?;
        if !fits || bytes == 0 || end > self.sectors.load(Ordering::Relaxed) << 9 {
            return Err(Failed(status::IOERR));
        }
        Ok(offset)
    }

    /// First and last byte of whole blocks.
    fn place(&self, sector: u64, bytes: u64) -> Result<(u64, u64), Failed> {
        let wrong = || Failed(status::IOERR);
        let offset = sector.checked_mul(512).ok_or_else(wrong)?;
        let end = offset.checked_add(bytes).ok_or_else(wrong)?;
        let block = u64::from(self.shape.block_size);
        if offset % block != 0 || end % block != 0 { Err(wrong()) } else { Ok((offset, end)) }
    }

    /// The one range of a discard or write zeroes: where, how many bytes, and whether to unmap.
    fn range(
        &self,
        window: &Window<'_>,
        chain: &Chain,
        read: u64,
        may_unmap: bool,
    ) -> Result<(u64, u64, bool), Failed> {
        if read != RANGE_LEN as u64 {
            return Err(Failed(status::IOERR));
        }
        let mut bytes = [0; RANGE_LEN];
        let found = segments(window, &chain.readable, HEADER_LEN as u64, read, Direction::FromHost)?;
        found.read_at(0, &mut bytes);
        let range: Range = transmute!(bytes);
        // Unknown flags, and unmap in a discard, are not supported (5.2.6.2).
        if range.flags & !UNMAP != 0 || range.flags != 0 && !may_unmap {
            return Err(Failed(status::UNSUPP));
        }
        let (offset, end) = self.place(range.sector, u64::from(range.sectors) << 9)?;
        if range.sectors == 0 || end > self.sectors.load(Ordering::Relaxed) << 9 {
            return Err(Failed(status::IOERR));
        }
        Ok((offset, end - offset, range.flags & UNMAP != 0))
    }
}
