//! Where a queue writes the scatter lists of its requests: registered memory of its own, a place for each slot.

use wire::layout::{MAX_SEGMENTS, ScatterSegment};

use crate::channel::Channel;
use crate::error::Error;
use crate::memory::{Buffer, Memory, MemoryAccess};

/// Bytes of the longest list.
const LIST_BYTES: usize = MAX_SEGMENTS * size_of::<ScatterSegment>();

/// One place for each slot, registered when the first list is written.
#[derive(Debug, Default)]
pub(super) struct Lists {
    places: Vec<Buffer>,
}

impl Lists {
    /// Writes the list of buffers, each with the key of its region, for the request in `slot`: where it lies then. The request
    /// before in that slot has ended, so nobody reads its list any more.
    pub(super) fn write<'a>(
        &mut self,
        channel: &Channel,
        slot: u32,
        segments: impl Iterator<Item = (u64, &'a Buffer)>,
    ) -> Result<(u64, u64), Error> {
        if self.places.is_empty() {
            let bytes = channel.end.entries().get() as usize * LIST_BYTES;
            let memory = Memory::register(&channel.link, bytes, MemoryAccess::DeviceReads)?;
            self.places = memory.buffers(LIST_BYTES, 8)?;
        }
        let place = &mut self.places[slot as usize];
        for (entry, (region, buffer)) in place.chunks_exact_mut(size_of::<ScatterSegment>()).zip(segments) {
            let length = u32::try_from(buffer.len()).map_err(|_| {
                Error::Argument(format!("a buffer of {} bytes does not fit a request", buffer.len()))
            })?;
            entry[..8].copy_from_slice(&region.to_le_bytes());
            entry[8..16].copy_from_slice(&buffer.region_offset().to_le_bytes());
            entry[16..20].copy_from_slice(&length.to_le_bytes());
            entry[20..].fill(0);
        }
        Ok((place.region(), place.region_offset()))
    }
}
