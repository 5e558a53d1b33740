//! Where a command's data is: scatter gather lists (NVM Express Base 2.0c, section 4.1.2).

use zerocopy::{FromZeros, IntoBytes};

use super::iommu::{Direction, Window};
use super::memory::Segments;
use crate::spec::nvme::{SGL_DESCRIPTOR_LEN, SglDescriptor, Status, sgl_id};

/// Descriptors of a list at most, those that lead on among them: empty blocks are allowed, so that the length of the
/// data alone would bound nothing.
pub(super) const MOST: usize = 512;
/// Descriptors read at a time.
const BATCH: usize = 32;

/// The `len` bytes, at least 1, of the list that `first` begins, every block looked up. Nothing has been moved if this
/// fails.
#[inline]
pub(super) fn segments<'w>(
    window: &'w Window<'_>,
    first: SglDescriptor,
    len: usize,
    direction: Direction,
) -> Result<Segments<'w>, Status> {
    let mut walk = Walk { window, direction, left: len, seen: 0, found: Segments::default() };
    match first.id {
        sgl_id::DATA_BLOCK => walk.block(first)?,
        sgl_id::SEGMENT | sgl_id::LAST_SEGMENT => {
            let mut next = Some(first);
            while let Some(descriptor) = next {
                next = walk.segment(descriptor)?;
            }
        }
        _ => return Err(Status::SGL_TYPE_INVALID),
    }
    if walk.left > 0 {
        return Err(Status::SGL_LENGTH_INVALID);
    }
    Ok(walk.found)
}

struct Walk<'w, 'i> {
    window: &'w Window<'i>,
    direction: Direction,
    /// Bytes still to be found.
    left: usize,
    /// Descriptors so far.
    seen: usize,
    found: Segments<'w>,
}

impl Walk<'_, '_> {
    fn block(&mut self, descriptor: SglDescriptor) -> Result<(), Status> {
        let len = descriptor.length as usize;
        if len > self.left {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        if len > 0 {
            self.found.push(self.window.find(descriptor.address, len, self.direction)?);
            self.left -= len;
        }
        Ok(())
    }

    /// Takes the descriptors that `descriptor` leads to, and returns the one that leads on.
    fn segment(&mut self, descriptor: SglDescriptor) -> Result<Option<SglDescriptor>, Status> {
        let (last, bytes) = (descriptor.id == sgl_id::LAST_SEGMENT, descriptor.length as usize);
        if bytes == 0 || !bytes.is_multiple_of(SGL_DESCRIPTOR_LEN) || descriptor.address & 7 != 0 {
            return Err(Status::SGL_SEGMENT_INVALID);
        }
        let count = bytes / SGL_DESCRIPTOR_LEN;
        self.seen += count;
        if self.seen > MOST {
            return Err(Status::SGL_NUMBER_INVALID);
        }
        let list = self.window.find(descriptor.address, bytes, Direction::FromHost)?;
        let mut batch = [SglDescriptor::new_zeroed(); BATCH];
        for start in (0..count).step_by(BATCH) {
            let batch = &mut batch[..BATCH.min(count - start)];
            if let Some(part) = list.part(start * SGL_DESCRIPTOR_LEN, batch.len() * SGL_DESCRIPTOR_LEN) {
                part.read(batch.as_mut_bytes());
            }
            for (index, &found) in (start..).zip(batch.iter()) {
                match found.id {
                    sgl_id::DATA_BLOCK => self.block(found)?,
                    sgl_id::SEGMENT | sgl_id::LAST_SEGMENT if last => {
                        return Err(Status::SGL_SEGMENT_INVALID);
                    }
                    sgl_id::SEGMENT | sgl_id::LAST_SEGMENT if index + 1 == count => return Ok(Some(found)),
                    sgl_id::SEGMENT | sgl_id::LAST_SEGMENT => return Err(Status::SGL_NUMBER_INVALID),
                    _ => return Err(Status::SGL_TYPE_INVALID),
                }
            }
        }
        // One that is not the last leads on.
        if last { Ok(None) } else { Err(Status::SGL_SEGMENT_INVALID) }
    }
}
