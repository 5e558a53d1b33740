//! A region of memory, in this life of its session and the next ones.
//!
//! When a session goes on with another adapter, a region gets a *twin*: a fresh memfd of its size, registered there when it is
//! first needed. The application may hold buffers of the region at that time, in any thread, and no barrier but ownership would tell
//! when it does not touch them: a buffer that is given to a request is the library's until the completion gives it back, and only
//! then may its bytes be put elsewhere. So with its first request after a restart a buffer of whole pages is *moved*: its bytes
//! are copied to the twin, whose pages are mapped over the old ones, at the same addresses, and from then on it is as any other. What
//! shares a page with another buffer, or cannot be mapped, is *bounced* with each request: copied to the twin before, and back
//! after a read.
#![allow(unsafe_code)] // bytes are copied between mappings, and pages of one are mapped over those of another

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::control::{Reply, Request};
use wire::shm::SharedMemory;

use super::{MemoryAccess, PAGE, unexpected};
use crate::error::Error;
use crate::link::Link;

/// A mapping that the adapter knows.
pub(super) struct Region {
    /// What it goes by in this library: the first key that it had.
    pub(super) key: u64,
    pub(super) access: MemoryAccess,
    pub(super) memory: SharedMemory,
    /// The life, and one more, in which all of its addresses lead to what the adapter knows; 0: in none. And the key there. Who
    /// reads the key of a later life with it names it to an adapter that is dead.
    settled: AtomicU64,
    settled_key: AtomicU64,
    link: Arc<Link>,
    now: Mutex<Present>,
}

/// What a region is to the present adapter.
struct Present {
    life: u32,
    key: u64,
    /// In another life than its first.
    twin: Option<Twin>,
    /// Of lives before, with bytes that have not come back yet.
    former: Vec<Twin>,
}

struct Twin {
    life: u32,
    memory: SharedMemory,
    /// Of each page, whether the region's addresses lead to it.
    moved: Box<[bool]>,
    /// Pages of which they do not.
    left: usize,
    /// Buffers whose bytes lie here and have not come back.
    out: usize,
}

impl Twin {
    /// Whether the region's addresses lead here with all of a buffer.
    fn has_moved(&self, (offset, length): (usize, usize)) -> bool {
        let pages = self.moved.get(offset / PAGE..(offset + length).div_ceil(PAGE));
        (offset | length).is_multiple_of(PAGE) && pages.is_some_and(|pages| pages.iter().all(|moved| *moved))
    }
}

impl Region {
    pub(super) fn register(link: &Arc<Link>, bytes: usize, access: MemoryAccess) -> Result<Self, Error> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE).ok_or_else(|| {
            Error::Argument(format!("{bytes} bytes of memory cannot be registered: too many"))
        })?;
        let ((memory, key), life) =
            link.in_some_life(|life| Ok((Self::register_in(link, life, bytes, access)?, life)))?;
        let now = Mutex::new(Present { life, key, twin: None, former: Vec::new() });
        let (settled, settled_key) = (AtomicU64::new(u64::from(life) + 1), AtomicU64::new(key));
        Ok(Self { key, access, memory, settled, settled_key, link: link.clone(), now })
    }

    fn register_in(
        link: &Link,
        life: u32,
        bytes: usize,
        access: MemoryAccess,
    ) -> Result<(SharedMemory, u64), Error> {
        let (memory, descriptor) = SharedMemory::create("portcullis-memory", bytes)
            .map_err(|source| Error::os("making a memfd for registered memory", source))?;
        let request = Request::RegisterMemory { length: bytes as u64, access: access.bits() };
        use std::os::fd::AsFd;
        match link.call_in(life, &request, &[descriptor.as_fd()])?.0 {
            Reply::Region { region } => Ok((memory, region)),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        NonNull::new(self.memory.start()).expect("a mapping does not start at 0")
    }

    fn now(&self) -> MutexGuard<'_, Present> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the device of `life` to use the bytes of a buffer that nobody else has: the key to name them by, and whether they lie
    /// elsewhere until [`Region::come_back`].
    pub(super) fn hand_over(
        &self,
        life: u32,
        (offset, length): (usize, usize),
    ) -> Result<(u64, bool), Error> {
        if self.settled.load(Ordering::Acquire) == u64::from(life) + 1 {
            return Ok((self.settled_key.load(Ordering::Relaxed), false));
        }
        let mut now = self.now();
        if now.life != life {
            let (memory, key) = Self::register_in(&self.link, life, self.memory.len(), self.access)?;
            let left = memory.len() / PAGE;
            let moved = vec![false; left].into();
            let before = now.twin.replace(Twin { life, memory, moved, left, out: 0 });
            now.former.extend(before.filter(|twin| twin.out > 0));
            (now.life, now.key) = (life, key);
        }
        let key = now.key;
        let Some(twin) = &mut now.twin else { return Ok((key, false)) };
        if (offset | length).is_multiple_of(PAGE) && self.move_pages(twin, offset / PAGE, length / PAGE) {
            if twin.left == 0 {
                self.settled_key.store(key, Ordering::Relaxed);
                self.settled.store(u64::from(life) + 1, Ordering::Release);
            }
            return Ok((key, false));
        }
        twin.out += 1;
        // SAFETY: both are mapped with the same size, and offset and length were cut from its bounds; the bytes are the caller's
        // alone, and the twin's pages belong to the same bytes. They do not overlap: the twin lies at other addresses.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.memory.start().add(offset),
                twin.memory.start().add(offset),
                length,
            );
        }
        Ok((key, true))
    }

    /// The request of `life` that the bytes were handed over for has ended: brings back the first `bytes` of them, if they lay
    /// elsewhere.
    pub(super) fn come_back(&self, life: u32, (offset, length): (usize, usize), bytes: usize) {
        let now = &mut *self.now();
        let mut twins = now.twin.iter_mut().chain(&mut now.former);
        let Some(twin) = twins.find(|twin| twin.life == life) else { return };
        if twin.has_moved((offset, length)) {
            return;
        }
        twin.out = twin.out.saturating_sub(1);
        // SAFETY: as in `hand_over`, the other way.
        unsafe {
            std::ptr::copy_nonoverlapping(
                twin.memory.start().add(offset),
                self.memory.start().add(offset),
                bytes.min(length),
            );
        }
        now.former.retain(|twin| twin.out > 0);
    }

    /// Whether all of the pages lead to the twin now.
    fn move_pages(&self, twin: &mut Twin, first: usize, pages: usize) -> bool {
        let Twin { memory, moved, left, .. } = twin;
        let Some(moved) = moved.get_mut(first..first + pages) else { return false };
        let mut at = 0;
        while let Some(from) = moved[at..].iter().position(|moved| !moved).map(|skip| at + skip) {
            let run = moved[from..].iter().take_while(|moved| !**moved).count();
            let (offset, bytes) = ((first + from) * PAGE, run * PAGE);
            let (here, there) = (self.memory.start(), memory.start());
            // SAFETY: as in `hand_over`; the pages are whole, so no other buffer has any part of them.
            let mapped = unsafe {
                std::ptr::copy_nonoverlapping(here.add(offset), there.add(offset), bytes);
                memory.map_also_at(offset, bytes, here.add(offset))
            };
            if mapped.is_err() {
                return false; // The limit of mappings, mostly: it works all the same.
            }
            moved[from..from + run].fill(true);
            *left -= run;
            at = from + run;
        }
        true
    }
}

impl Drop for Region {
    /// Best effort: if the adapter is gone it has forgotten the region, and the pages live on for whoever still maps
    /// them.
    fn drop(&mut self) {
        let (life, region) = {
            let now = self.now();
            (now.life, now.key)
        };
        let _ = self.link.call_in(life, &Request::ReleaseMemory { region }, &[]);
    }
}
