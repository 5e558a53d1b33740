//! The kernel's path through `io_uring`, as a careful application drives it: files and buffers registered, one thread that
//! submits, completions without interrupts of that thread where the kernel can.
#![allow(unsafe_code)] // the kernel is told of memory, and must not have it after its end

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};

use crate::memory::Pages;
use crate::pattern::{Order, Walk};
use crate::requests::{BLOCK, per_request};

/// What the ring is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Nothing: what the ring itself costs.
    Nop,
    /// 4 KiB from a random place.
    Read,
    /// 4 KiB to a random place.
    Write,
}

/// How the ring is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// As [`IoUring::new`] makes it, with plain files and plain buffers.
    Plain,
    /// Files and buffers registered.
    Registered,
    /// The same, and the submitter runs the kernel's part itself when it waits (`SINGLE_ISSUER`, `DEFER_TASKRUN`).
    Deferred,
    /// Files and buffers registered, completions found by polling the device (`IOPOLL`). Needs O_DIRECT and a device with
    /// queues for that.
    Polled,
}

/// A ring for one thread.
pub struct Uring {
    // Before the buffers: the kernel lets go of them first.
    ring: IoUring,
    buffers: Pages,
    walk: Walk,
    kind: Kind,
    file: Option<File>,
}

impl Uring {
    /// With `places` of 4 KiB in `file`; without a file only [`Ask::Nop`] is possible.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(file: Option<&File>, kind: Kind, depth: u32, places: u32) -> Result<Self> {
        let mut builder = IoUring::builder();
        match kind {
            Kind::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun();
            }
            Kind::Polled => {
                builder.setup_iopoll();
            }
            Kind::Plain | Kind::Registered => {}
        }
        let ring = builder.build(depth.next_power_of_two()).context("io_uring is not to be had here")?;
        let buffers = Pages::new(depth as usize * BLOCK as usize)?;
        let file = file.map(File::try_clone).transpose()?;
        let made = Self { ring, buffers, walk: Walk::new(Order::Random, places), kind, file };
        if let (Some(file), true) = (&made.file, kind != Kind::Plain) {
            let vectors: Vec<libc::iovec> = (0..depth)
                .map(|slot| libc::iovec {
                    iov_base: made.buffers.at(slot as usize * BLOCK as usize).cast(),
                    iov_len: BLOCK as usize,
                })
                .collect();
            let submitter = made.ring.submitter();
            submitter.register_files(&[file.as_raw_fd()]).context("registering the file with io_uring")?;
            // SAFETY: the buffers stay where they are and outlive the ring, which is dropped first; nobody looks at them.
            unsafe { submitter.register_buffers(&vectors) }
                .context("registering memory with io_uring (its limit is that of locked memory)")?;
        }
        Ok(made)
    }

    #[inline]
    fn entry(&mut self, ask: Ask, slot: u32) -> Result<squeue::Entry> {
        if ask == Ask::Nop {
            return Ok(opcode::Nop::new().build().user_data(u64::from(slot)));
        }
        let at = u64::from(self.walk.step()) * u64::from(BLOCK);
        let memory = self.buffers.at(slot as usize * BLOCK as usize);
        let file = self.file.as_ref().context("a ring without a file can do nothing but nothing")?;
        let fd = types::Fd(file.as_raw_fd());
        let buffer = u16::try_from(slot)?;
        let entry = match (ask, self.kind) {
            (Ask::Read, Kind::Plain) => opcode::Read::new(fd, memory, BLOCK).offset(at).build(),
            (_, Kind::Plain) => opcode::Write::new(fd, memory, BLOCK).offset(at).build(),
            (Ask::Read, _) => {
                opcode::ReadFixed::new(types::Fixed(0), memory, BLOCK, buffer).offset(at).build()
            }
            (_, _) => opcode::WriteFixed::new(types::Fixed(0), memory, BLOCK, buffer).offset(at).build(),
        };
        Ok(entry.user_data(u64::from(slot)))
    }

    #[inline]
    fn push(&mut self, ask: Ask, slot: u32) -> Result<()> {
        let entry = self.entry(ask, slot)?;
        // SAFETY: the entry names memory of this slot, which has no other request and outlives the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        ensure!(pushed.is_ok(), "the submission queue of io_uring is full");
        Ok(())
    }

    /// Keeps `depth` requests in flight for about that time; nanoseconds for each request. What the kernel ends while it
    /// takes it (a NOP, a read of a cached page) comes back in the same system call.
    ///
    /// # Errors
    /// The kernel's; a request that fails.
    pub fn keep(&mut self, ask: Ask, depth: u32, time: Duration) -> Result<f64> {
        let wanted = if ask == Ask::Nop { 0 } else { i32::try_from(BLOCK)? };
        let mut free: Vec<u32> = (0..depth).collect();
        let mut ended = 0_u64;
        let began = std::time::Instant::now();
        let mut in_flight = 0;
        let mut each = 0.0;
        let mut over = false;
        let mut unlooked = 0;
        while !over || in_flight > 0 {
            if !over {
                in_flight += free.len();
                let slots = std::mem::take(&mut free);
                for &slot in &slots {
                    self.push(ask, slot)?;
                }
                free = slots;
            }
            free.clear();
            self.ring.submit_and_wait(1).context("submitting to io_uring")?;
            for done in self.ring.completion() {
                ensure!(done.result() == wanted, "a request of io_uring failed: {}", told(done.result()));
                free.push(u32::try_from(done.user_data())?);
            }
            in_flight -= free.len();
            if over {
                continue;
            }
            ended += free.len() as u64;
            unlooked += free.len();
            if unlooked >= 64 {
                unlooked = 0;
                let took = began.elapsed();
                over = took >= time;
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                let so_far = took.as_nanos() as f64 / ended.max(1) as f64;
                each = so_far;
            }
        }
        Ok(each)
    }
}

fn told(result: i32) -> String {
    match result {
        error if error < 0 => std::io::Error::from_raw_os_error(-error).to_string(),
        bytes => format!("{bytes} bytes"),
    }
}

/// The kind of ring that does nothing fastest on this kernel, so that what we are compared with is at its best.
///
/// # Errors
/// If there is no ring at all.
pub fn fastest(depth: u32) -> Result<Uring> {
    fastest_of(None, Ask::Nop, depth, 1)
}

/// The kind of ring that does what is asked fastest on this kernel, at that depth.
///
/// # Errors
/// If there is no ring at all.
pub fn fastest_of(file: Option<&File>, ask: Ask, depth: u32, places: u32) -> Result<Uring> {
    let mut best: Option<(f64, Uring)> = None;
    for kind in [Kind::Registered, Kind::Deferred] {
        let Ok(mut ring) = Uring::new(file, kind, depth, places) else { continue };
        let mut took = f64::MAX;
        for _ in 0..5 {
            took = took.min(ring.keep(ask, depth, Duration::from_millis(5))?);
        }
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            best = Some((took, ring));
        }
    }
    Ok(best.context("io_uring is not to be had here")?.1)
}

impl Uring {
    /// In words.
    pub fn describe(&self) -> &'static str {
        match self.kind {
            Kind::Plain => "plain",
            Kind::Registered => "files and buffers registered",
            Kind::Deferred => "files and buffers registered, SINGLE_ISSUER and DEFER_TASKRUN",
            Kind::Polled => "files and buffers registered, IOPOLL",
        }
    }
}

/// [`per_request`] over pread(2).
///
/// # Errors
/// The kernel's.
pub fn pread(file: &File, walk: &mut Walk, buffer: &mut [u8], time: Duration) -> Result<f64> {
    use std::os::unix::fs::FileExt;
    per_request(1, time, || {
        let at = u64::from(walk.step()) * u64::from(BLOCK);
        file.read_exact_at(buffer, at).context("pread")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_read_what_they_are_asked() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for kind in [Kind::Plain, Kind::Registered, Kind::Deferred] {
            let Ok(mut ring) = Uring::new(Some(&file), kind, 4, 256) else { continue };
            for ask in [Ask::Nop, Ask::Read, Ask::Write] {
                for depth in [1, 4] {
                    assert!(
                        ring.keep(ask, depth, Duration::from_millis(2)).unwrap() > 0.0,
                        "{kind:?} {ask:?}"
                    );
                }
            }
        }
    }
}
