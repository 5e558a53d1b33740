//! A second process that has all that the first one had.
#![allow(unsafe_code)] // fork, in a process with one thread that does nothing in the child but store to memory

use std::time::{Duration, Instant};

/// An heir that nobody kills ends by itself.
const LIFE: Duration = Duration::from_secs(300);

/// Makes a copy of this process, which must have one thread, and gives its number. The copy calls `work` again and again until
/// it is killed.
pub(super) fn heir(work: &dyn Fn()) -> u32 {
    // SAFETY: the process has one thread, so the copy is whole: no lock is held by a thread that is not there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid > 0 {
        let pid = pid.cast_unsigned();
        crate::process::say(&format!("heir {pid}"));
        return pid;
    }
    let end = Instant::now() + LIFE;
    while Instant::now() < end {
        work();
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::exit(0);
}
