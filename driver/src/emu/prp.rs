//! Where a command's data is: physical region pages (NVM Express Base 2.0c, section 4.1.1), with pages of 4096 bytes.

use super::iommu::{Direction, Fault, Window};
use super::memory::Segments;
use crate::spec::nvme::Status;

/// Bytes of a memory page: CC.MPS is always 0 here.
pub(super) const PAGE: usize = 4096;
const IN_PAGE: u64 = PAGE as u64 - 1;
/// Entries of a list read at a time.
const BATCH: usize = 32;

impl From<Fault> for Status {
    fn from(_: Fault) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}

/// The `len` bytes, at least 1, that `prp` names, every page looked up. Nothing has been moved if this fails.
#[inline]
pub(super) fn segments<'w>(
    window: &'w Window<'_>,
    prp: [u64; 2],
    len: usize,
    direction: Direction,
) -> Result<Segments<'w>, Status> {
    let [first, second] = prp;
    if first & 3 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut found = Segments::default();
    let room = PAGE - page_offset(first);
    found.push(window.find(first, len.min(room), direction)?);
    let left = len.saturating_sub(room);
    if left == 0 {
        return Ok(found);
    }
    if left > PAGE {
        list(window, second, left, direction, &mut found)?;
        return Ok(found);
    }
    if page_offset(second) != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    found.push(window.find(second, left, direction)?);
    Ok(found)
}

/// Follows the list at `at` for `left` more bytes, more than a page of them.
fn list<'w>(
    window: &'w Window<'_>,
    at: u64,
    mut left: usize,
    direction: Direction,
    found: &mut Segments<'w>,
) -> Result<(), Status> {
    if at & 7 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let mut at = at;
    while left > 0 {
        // The last entry of a list's page names the next page, if more than one entry is still to come.
        let here = (PAGE - page_offset(at)) / 8;
        let wanted = left.div_ceil(PAGE);
        let chained = wanted > here;
        let entries = if chained { here - 1 } else { wanted };
        let mut bytes = [0u8; BATCH * 8];
        for start in (0..entries).step_by(BATCH) {
            let count = (entries - start).min(BATCH);
            window.find(at + start as u64 * 8, count * 8, Direction::FromHost)?.read(&mut bytes[..count * 8]);
            for entry in bytes[..count * 8].as_chunks::<8>().0 {
                let page = u64::from_le_bytes(*entry);
                if page & IN_PAGE != 0 {
                    return Err(Status::PRP_OFFSET_INVALID);
                }
                found.push(window.find(page, left.min(PAGE), direction)?);
                left -= left.min(PAGE);
            }
        }
        if chained {
            let mut next = [0u8; 8];
            window.find(at + entries as u64 * 8, 8, Direction::FromHost)?.read(&mut next);
            at = u64::from_le_bytes(next);
            if at & IN_PAGE != 0 {
                return Err(Status::PRP_OFFSET_INVALID);
            }
        }
    }
    Ok(())
}

fn page_offset(address: u64) -> usize {
    usize::try_from(address & IN_PAGE).unwrap_or_default()
}
