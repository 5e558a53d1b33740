//! Shadow doorbells: the host's doorbells in its own memory, which the controller looks at, and the event indexes by
//! which it says when it wants the register written all the same (NVM Express Base 2.0c, section 5.8).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::controller::Controller;
use super::iommu::{Direction, Fault, Window};
use crate::spec::nvme::{Sqe, Status};

const IN_PAGE: u64 = 4095;

/// Where the host's buffers are, if it gave any.
#[derive(Debug, Default)]
pub(super) struct Shadows {
    on: AtomicBool,
    doorbells: AtomicU64,
    events: AtomicU64,
}

/// One doorbell in memory and its event index.
#[derive(Clone, Copy)]
pub(super) struct Shadow {
    doorbell: u64,
    event: u64,
}

impl Shadows {
    pub(super) fn forget(&self) {
        self.on.store(false, Ordering::SeqCst);
    }

    /// The tail of I/O submission queue `queue`. The admin queue's doorbells are registers always.
    #[inline]
    pub(super) fn tail(&self, queue: u16) -> Option<Shadow> {
        self.at(queue, 0)
    }

    /// The head of I/O completion queue `queue`.
    #[inline]
    pub(super) fn head(&self, queue: u16) -> Option<Shadow> {
        self.at(queue, 4)
    }

    #[inline]
    fn at(&self, queue: u16, offset: u64) -> Option<Shadow> {
        if queue == 0 || !self.on.load(Ordering::Acquire) {
            return None;
        }
        // CAP.DSTRD is 0: two doorbells of four bytes for each queue pair.
        let at = u64::from(queue) * 8 + offset;
        let place = |base: &AtomicU64| base.load(Ordering::Relaxed) + at;
        Some(Shadow { doorbell: place(&self.doorbells), event: place(&self.events) })
    }
}

impl Shadow {
    /// What the host wrote there.
    #[inline]
    pub(super) fn read(self, window: &Window<'_>) -> Result<u32, Fault> {
        window.find(self.doorbell, 4, Direction::FromHost)?.load32().ok_or(Fault)
    }

    /// Asks that the register be written too when the index leaves `event`. Whoever moved it before seeing that is seen
    /// by the next [`Shadow::read`].
    pub(super) fn ask(self, window: &Window<'_>, event: u32) -> Result<(), Fault> {
        if !window.find(self.event, 4, Direction::ToHost)?.store32(event) {
            return Err(Fault);
        }
        fence(Ordering::SeqCst);
        Ok(())
    }
}

impl Controller {
    /// Doorbell Buffer Config.
    pub(super) fn configure_doorbells(&self, command: &Sqe) -> Result<(), Status> {
        if !self.shape.shadow_doorbells {
            return Err(Status::INVALID_OPCODE);
        }
        if (command.prp1 | command.prp2) & IN_PAGE != 0 {
            return Err(Status::INVALID_FIELD);
        }
        self.shadows.doorbells.store(command.prp1, Ordering::Relaxed);
        self.shadows.events.store(command.prp2, Ordering::Relaxed);
        self.shadows.on.store(true, Ordering::Release);
        Ok(())
    }
}
