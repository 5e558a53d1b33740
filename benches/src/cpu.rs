//! The processors: threads that stay on one, so that a figure belongs to a known pair of cores, and how busy they are.

use std::{fs, io, thread};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The first two processors that this thread may use; `None` if it has only one, and two spinning threads would only
/// take turns at the scheduler's pace.
///
/// # Errors
/// The kernel's.
pub fn pair() -> io::Result<Option<(usize, usize)>> {
    let allowed = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    Ok(cpus.next().zip(cpus.next()))
}

/// Says on standard error how busy the machine is: `when`, the load averages of 1, 5 and 15 minutes (proc_loadavg(5)), and
/// the number of processors. The figures are times of a clock on the wall, so a run beside other work shows that work too.
pub fn note_load(when: &str) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_else(|error| error.to_string());
    let load = load.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let processors = thread::available_parallelism().map_or(0, usize::from);
    eprintln!("{when}: load {load} on {processors} processors");
}

/// Keeps the calling thread on one processor until dropped, on the same thread.
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Moves the calling thread to processor `cpu`, counted from 0 as the kernel does.
    ///
    /// # Errors
    /// The kernel's, if there is no such processor or this process may not use it.
    pub fn to(cpu: usize) -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Those it had before; if the kernel has taken them away since, it stays where it is.
        let _ = sched_setaffinity(None, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_comes_back() {
        let before = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).rfind(|&cpu| before.is_set(cpu)).unwrap();
        let pinned = Pinned::to(cpu).unwrap();
        let now = sched_getaffinity(None).unwrap();
        assert!(now.is_set(cpu) && now.count() == 1);
        drop(pinned);
        assert!(sched_getaffinity(None).unwrap() == before);
        assert!(Pinned::to(CpuSet::MAX_CPU).is_err());
    }

    #[test]
    fn a_pair_is_of_two() {
        let count = sched_getaffinity(None).unwrap().count();
        match pair().unwrap() {
            Some((first, second)) => assert!(first < second && count >= 2),
            None => assert_eq!(count, 1),
        }
    }
}
