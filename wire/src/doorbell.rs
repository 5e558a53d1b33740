//! Waking the other side: a futex towards the application, an eventfd towards the adapter.
//!
//! Both are needed only when the other side sleeps; see [`crate::ring`] for who finds that out, and how no wake is lost.

use core::sync::atomic::AtomicU32;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags};

/// How a [`wait`] ended. Any of them may be spurious: look again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Woken, or interrupted by a signal.
    Up,
    /// The word did not have the expected value.
    Changed,
    /// The time is over.
    TimedOut,
}

/// Sleeps while `word` is `expected`, at most for `timeout` (`None`: for ever). The word may be shared between
/// processes: futex(2), FUTEX_WAIT.
///
/// # Errors
/// The kernel's; none is expected for a mapped word.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> io::Result<Woken> {
    // A time too long to be written is as good as for ever.
    let timeout = timeout.and_then(|t| t.try_into().ok());
    match futex::wait(word, Flags::empty(), expected, timeout.as_ref()) {
        Ok(()) | Err(Errno::INTR) => Ok(Woken::Up),
        Err(Errno::AGAIN) => Ok(Woken::Changed),
        Err(Errno::TIMEDOUT) => Ok(Woken::TimedOut),
        Err(error) => Err(error.into()),
    }
}

/// Wakes all who sleep on `word`: futex(2), FUTEX_WAKE. Gives how many there were. Never waits.
///
/// # Errors
/// The kernel's; none is expected for a mapped word.
pub fn wake(word: &AtomicU32) -> io::Result<usize> {
    Ok(futex::wake(word, Flags::empty(), i32::MAX.unsigned_abs())?)
}

/// The eventfd by which a sleeping adapter is woken.
///
/// The adapter makes one for each session or queue, gives the application a duplicate, watches it edge-triggered and
/// never reads or writes it. Two sessions must not share one: whoever holds the description can fill its counter, and then
/// nobody's write raises an edge any more.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
}

impl Bell {
    /// Makes one: eventfd(2), EFD_CLOEXEC | EFD_NONBLOCK.
    ///
    /// # Errors
    /// The kernel's: too many descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// The application's way to take what the adapter sent. Makes sure that a write does not wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Wakes the adapter. For the application; needed when [`crate::ring::ApplicationEnd::ring`] says true.
    ///
    /// # Errors
    /// WouldBlock when the counter is full, which takes 2^64 - 2 wakes or somebody who writes such a number.
    pub fn ring(&self) -> io::Result<()> {
        loop {
            match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A duplicate for the other side.
    ///
    /// # Errors
    /// The kernel's: too many descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> Self {
        bell.fd
    }
}
