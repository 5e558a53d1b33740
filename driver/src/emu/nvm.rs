//! The I/O commands (NVM Express NVM Command Set Specification 1.0c, section 3).

use super::abi::{Status, Submitted, nvm};
use super::controller::Controller;
use super::iommu::{Direction, Window};
use super::media::MediaError;
use super::prp;

/// The only namespace.
pub(super) const NAMESPACE: u32 = 1;
/// "All namespaces".
pub(super) const BROADCAST: u32 = u32::MAX;
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
const RANGE_BYTES: usize = 16;

impl From<MediaError> for Status {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::Read => Self::READ_ERROR,
            MediaError::Write => Self::WRITE_FAULT,
        }
    }
}

impl Controller {
    /// Runs one I/O command to its end.
    #[inline]
    pub(super) fn execute(&self, window: &Window<'_>, command: &Submitted) -> Result<(), Status> {
        let opcode = command.opcode();
        if !matches!(
            opcode,
            nvm::FLUSH | nvm::WRITE | nvm::READ | nvm::COMPARE | nvm::WRITE_ZEROES | nvm::DATASET
        ) {
            return Err(Status::INVALID_OPCODE);
        }
        if command.format() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let everywhere = opcode == nvm::FLUSH && command.namespace() == BROADCAST;
        if command.namespace() != NAMESPACE && !everywhere {
            return Err(Status::INVALID_NAMESPACE);
        }
        let media = &*self.shape.media;
        match opcode {
            nvm::FLUSH => media.flush()?,
            nvm::DATASET => self.manage_dataset(window, command)?,
            nvm::WRITE_ZEROES => {
                let (offset, bytes) = self.range(command.lba(), command.blocks())?;
                media.zero(offset, bytes, command.dword(12) & DEALLOCATE != 0)?;
                if self.write_through(command) {
                    media.flush()?;
                }
            }
            _ => self.transfer(window, command)?,
        }
        Ok(())
    }

    #[inline]
    fn transfer(&self, window: &Window<'_>, command: &Submitted) -> Result<(), Status> {
        let len = (command.blocks() as usize) << self.shape.block_shift;
        if len > self.shape.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        let (offset, _) = self.range(command.lba(), command.blocks())?;
        let media = &*self.shape.media;
        match command.opcode() {
            nvm::READ => {
                let into = prp::segments(window, command.prp(), len, Direction::ToHost)?;
                media.read(offset, &into)?;
            }
            nvm::WRITE => {
                let from = prp::segments(window, command.prp(), len, Direction::FromHost)?;
                media.write(offset, &from, self.write_through(command))?;
            }
            _ => {
                let with = prp::segments(window, command.prp(), len, Direction::FromHost)?;
                if !media.compare(offset, &with)? {
                    return Err(Status::COMPARE);
                }
            }
        }
        Ok(())
    }

    /// Dataset Management: only the deallocate attribute does anything.
    fn manage_dataset(&self, window: &Window<'_>, command: &Submitted) -> Result<(), Status> {
        const DEALLOCATE: u32 = 1 << 2;
        let count = (command.dword(10) & 0xff) as usize + 1;
        let list = prp::segments(window, command.prp(), count * RANGE_BYTES, Direction::FromHost)?;
        let mut bytes = [0; 256 * RANGE_BYTES];
        list.read_at(0, &mut bytes[..count * RANGE_BYTES]);
        // All are checked before the first is touched. Attributes (bytes 0..4) are hints.
        let mut ranges = [(0, 0); 256];
        for (range, entry) in ranges
            .iter_mut()
            .zip(bytes[..count * RANGE_BYTES].as_chunks::<RANGE_BYTES>().0)
        {
            let [.., a, b, c, d, e, f, g, h] = *entry;
            let [_, _, _, _, i, j, k, l, ..] = *entry;
            let lba = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            *range = self.range(lba, u32::from_le_bytes([i, j, k, l]))?;
        }
        if command.dword(11) & DEALLOCATE != 0 {
            for &(offset, bytes) in ranges[..count].iter().filter(|range| range.1 > 0) {
                self.shape.media.zero(offset, bytes, true)?;
            }
        }
        Ok(())
    }

    /// Bytes from the start of the namespace and how many, if all the blocks exist.
    #[inline]
    fn range(&self, lba: u64, blocks: u32) -> Result<(u64, u64), Status> {
        let end = lba.checked_add(u64::from(blocks)).ok_or(Status::LBA_RANGE)?;
        if end > self.shape.blocks {
            return Err(Status::LBA_RANGE);
        }
        Ok((
            lba << self.shape.block_shift,
            u64::from(blocks) << self.shape.block_shift,
        ))
    }

    /// Whether a write is to be durable when it completes: it says so, or the host turned the cache off.
    #[inline]
    fn write_through(&self, command: &Submitted) -> bool {
        command.dword(12) & FORCE_UNIT_ACCESS != 0 || !self.cache_enabled()
    }
}
