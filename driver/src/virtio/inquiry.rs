//! What a device calls itself: one request, on a small queue of its own, of a device that is reset afterwards.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use zerocopy::transmute;

use crate::dma::DmaBuffer;
use crate::hal::{DmaAccess, DmaError, Mapper, NarrowRegisters};
use crate::spec::virtio::block::{HEADER_LEN, ID_LEN, RequestHeader, request, status};
use crate::spec::virtio::split::{Descriptor, available, descriptor};

use super::VirtioError;
use super::transport::Notifier;

/// Entries of its queue: three descriptors, in a power of two.
pub(super) const ENTRIES: u16 = 4;

// Where what is, in one page.
const TABLE: usize = 0;
const AVAILABLE: usize = 0x100;
const USED: usize = 0x200;
const HEADER: usize = 0x300;
const ID: usize = 0x400;
const STATUS: usize = 0x500;

/// The memory of it, and of its queue. Dropped only when the device no longer can touch it.
pub(super) struct Inquiry(DmaBuffer);

impl Inquiry {
    /// Not asked yet.
    pub(super) fn new(mapper: &dyn Mapper) -> Result<Self, DmaError> {
        DmaBuffer::new(mapper, crate::dma::PAGE, DmaAccess::ReadWrite).map(Self)
    }

    /// Where the device finds descriptor table, available ring and used ring.
    pub(super) fn places(&self) -> [u64; 3] {
        [TABLE, AVAILABLE, USED].map(|at| self.0.iova(at).0)
    }

    /// Makes it as new, with the request in it; before the queue is enabled.
    pub(super) fn prepare(&self) {
        self.0.zero();
        let header = RequestHeader { kind: request::GET_ID, ..RequestHeader::default() };
        self.0.write::<2>(HEADER, transmute!(header));
        self.0.store8(STATUS, u8::MAX);
        let chain = [
            (HEADER, HEADER_LEN, descriptor::NEXT),
            (ID, ID_LEN, descriptor::NEXT | descriptor::WRITE),
            (STATUS, 1, descriptor::WRITE),
        ];
        for (index, (at, len, flags)) in (0u16..).zip(chain) {
            let next = if flags & descriptor::NEXT != 0 { index + 1 } else { 0 };
            let len = u32::try_from(len).unwrap_or_default();
            let entry = Descriptor { addr: self.0.iova(at).0, len, flags, next };
            self.0.write::<2>(TABLE + usize::from(index) * size_of::<Descriptor>(), transmute!(entry));
        }
        self.0.store16(AVAILABLE + available::HEAD, 0);
    }

    /// Asks, and waits for the answer, at most for `patience`: text, fit to be shown; empty if the device has no id.
    pub(super) fn ask<R: NarrowRegisters>(
        &self,
        notifier: &Notifier<R>,
        patience: Duration,
    ) -> Result<String, VirtioError> {
        fence(Ordering::Release);
        self.0.store32(AVAILABLE, u32::from(available::NO_INTERRUPT) | 1 << 16);
        notifier.notify();
        let since = Instant::now();
        loop {
            // In this order: a last look after the time is up.
            let late = since.elapsed() >= patience;
            if self.0.load32(USED, Ordering::Acquire) >> 16 != 0 {
                break;
            }
            if late {
                return Err(VirtioError::Timeout { what: "telling its id", after: patience });
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        if self.0.load8(STATUS, Ordering::Relaxed) != status::OK {
            return Ok(String::new());
        }
        let mut id = [0; ID_LEN];
        self.0.copy_out(ID, &mut id);
        Ok(text(&id))
    }
}

/// Text from a device, fit to be shown: cut at the first zero, blanks at the ends dropped.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let printable = bytes[..end].iter().map(|&b| if matches!(b, b' '..=b'~') { char::from(b) } else { '?' });
    printable.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_fit_to_be_shown() {
        assert_eq!(text(b"  disk-1 \0\0\0"), "disk-1");
        assert_eq!(text(b"a\x1b[2J\xff\0hidden"), "a?[2J?");
        assert_eq!(text(&[0; ID_LEN]), "");
    }
}
