//! The I/O commands (NVM Express NVM Command Set Specification 1.0c, section 3).

use zerocopy::IntoBytes;

use super::controller::Controller;
use super::identify::ZEROES_SHIFT;
use super::iommu::{Direction, Window};
use super::media::MediaError;
use super::memory::Segments;
use super::{prp, sgl};
use crate::spec::nvme::{
    DSM_RANGES, DsmCdw10, DsmCdw11, DsmRange, IoCdw12, NSID_ALL, PSDT_SGL, Sqe, Status, nvm,
};

/// The only namespace.
pub(super) const NAMESPACE: u32 = 1;

/// Blocks of a read, write, compare or write zeroes.
#[inline]
pub(super) fn blocks(command: &Sqe) -> u32 {
    u32::from(IoCdw12(command.cdw12).nlb_z()) + 1
}

/// The `len` bytes of memory that a command names, by PRPs or an SGL.
#[inline]
fn data<'w>(
    window: &'w Window<'_>,
    command: &Sqe,
    len: usize,
    direction: Direction,
) -> Result<Segments<'w>, Status> {
    if command.cdw0.psdt() == PSDT_SGL {
        sgl::segments(window, command.sgl(), len, direction)
    } else {
        prp::segments(window, [command.prp1, command.prp2], len, direction)
    }
}

impl From<MediaError> for Status {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::Read => Self::UNRECOVERED_READ_ERROR,
            MediaError::Write => Self::WRITE_FAULT,
        }
    }
}

impl Controller {
    /// Runs one I/O command to its end.
    #[inline]
    pub(super) fn execute(&self, window: &Window<'_>, command: &Sqe) -> Result<(), Status> {
        let opcode = command.cdw0.opc();
        if !matches!(
            opcode,
            nvm::FLUSH | nvm::WRITE | nvm::READ | nvm::COMPARE | nvm::WRITE_ZEROES | nvm::DATASET_MANAGEMENT
        ) {
            return Err(Status::INVALID_OPCODE);
        }
        if command.cdw0.fuse() != 0 || command.cdw0.psdt() > PSDT_SGL {
            return Err(Status::INVALID_FIELD);
        }
        let everywhere = opcode == nvm::FLUSH && command.nsid == NSID_ALL;
        if command.nsid != NAMESPACE && !everywhere {
            return Err(Status::INVALID_NAMESPACE);
        }
        let media = &*self.shape.media;
        match opcode {
            nvm::FLUSH => media.flush()?,
            nvm::DATASET_MANAGEMENT => self.manage_dataset(window, command)?,
            nvm::WRITE_ZEROES => {
                let (offset, bytes) = self.range(command.slba(), blocks(command))?;
                if bytes > (prp::PAGE as u64) << ZEROES_SHIFT {
                    return Err(Status::INVALID_FIELD);
                }
                media.zero(offset, bytes, IoCdw12(command.cdw12).deac())?;
                if self.write_through(command) {
                    media.flush()?;
                }
            }
            _ => self.transfer(window, command)?,
        }
        Ok(())
    }

    /// Lets the medium know of a command that comes after the one that is about to run. It may still become another.
    #[inline]
    pub(super) fn expect(&self, command: &Sqe) {
        if matches!(command.cdw0.opc(), nvm::READ | nvm::WRITE)
            && let Ok((offset, bytes)) = self.range(command.slba(), blocks(command))
        {
            self.shape.media.expect(offset, bytes);
        }
    }

    #[inline]
    fn transfer(&self, window: &Window<'_>, command: &Sqe) -> Result<(), Status> {
        let len = (blocks(command) as usize) << self.block_shift()?;
        if len > self.shape.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        let (offset, _) = self.range(command.slba(), blocks(command))?;
        let media = &*self.shape.media;
        match command.cdw0.opc() {
            nvm::READ => {
                let into = data(window, command, len, Direction::ToHost)?;
                media.read(offset, &into)?;
            }
            nvm::WRITE => {
                let from = data(window, command, len, Direction::FromHost)?;
                media.write(offset, &from, self.write_through(command))?;
            }
            _ => {
                let with = data(window, command, len, Direction::FromHost)?;
                if !media.compare(offset, &with)? {
                    return Err(Status::COMPARE_FAILURE);
                }
            }
        }
        Ok(())
    }

    /// Dataset Management: only the deallocate attribute does anything.
    fn manage_dataset(&self, window: &Window<'_>, command: &Sqe) -> Result<(), Status> {
        let count = usize::from(DsmCdw10(command.cdw10).nr_z()) + 1;
        let len = count * size_of::<DsmRange>();
        let list = data(window, command, len, Direction::FromHost)?;
        let mut ranges = [DsmRange::default(); DSM_RANGES];
        list.read_at(0, &mut ranges.as_mut_bytes()[..len]);
        let ranges = &ranges[..count];
        // All are checked before the first is touched. Their attributes are hints.
        for range in ranges {
            self.range(range.slba, range.blocks)?;
        }
        if DsmCdw11(command.cdw11).ad() {
            for range in ranges.iter().filter(|range| range.blocks > 0) {
                let (offset, bytes) = self.range(range.slba, range.blocks)?;
                self.shape.media.zero(offset, bytes, true)?;
            }
        }
        Ok(())
    }

    /// Bytes from the start of the namespace and how many, if all the blocks exist.
    #[inline]
    fn range(&self, lba: u64, blocks: u32) -> Result<(u64, u64), Status> {
        let end = lba.checked_add(u64::from(blocks)).ok_or(Status::LBA_OUT_OF_RANGE)?;
        let (blocks_there, block_shift) = self.namespace.get().ok_or(Status::INVALID_NAMESPACE)?;
        if end > blocks_there {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        Ok((lba << block_shift, u64::from(blocks) << block_shift))
    }

    fn block_shift(&self) -> Result<u8, Status> {
        self.namespace.get().map(|(_, block_shift)| block_shift).ok_or(Status::INVALID_NAMESPACE)
    }

    /// Whether a write is to be durable when it completes: it says so, or the host turned the cache off.
    #[inline]
    fn write_through(&self, command: &Sqe) -> bool {
        IoCdw12(command.cdw12).fua() || !self.cache_enabled()
    }
}
