//! What the adapter's process has left for all its sessions together, once the device is open.

use rustix::process::{Resource, getrlimit};

/// Descriptors kept for the adapter itself: the store, threads, and the largest packet that the kernel may deliver (253
/// descriptors at once, whatever is done with them).
const RESERVED_DESCRIPTORS: u64 = 320;
/// CAP_IPC_LOCK of linux/capability.h: its holder is not bound by RLIMIT_MEMLOCK.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// See the module; `None` where nothing bounds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    /// Descriptors that may still be opened.
    pub(super) descriptors: u64,
    /// Bytes that may still be locked.
    pub(super) memlock: Option<u64>,
    /// Bytes of memory that the machine has free.
    pub(super) memory: Option<u64>,
    /// Mappings that the IOMMU still takes.
    pub(super) mappings: Option<u64>,
}

impl Process {
    /// As it is now. What cannot be read counts as not bounded: the kernel refuses later what is too much.
    pub(super) fn measure(mappings_left: Option<u32>) -> Self {
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            descriptors: limit.saturating_sub(open + RESERVED_DESCRIPTORS),
            memlock: memlock_left(getrlimit(Resource::Memlock).current, &status, &map),
            memory: kibibytes(&memory, "MemAvailable:"),
            mappings: mappings_left.map(u64::from),
        }
    }
}

/// The limit without what is locked already, unless the process is not bound by it.
fn memlock_left(limit: Option<u64>, status: &str, uid_map: &str) -> Option<u64> {
    let capabilities = line(status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    // In a user namespace of its own the capability counts for nothing outside of it.
    let initial = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    if initial && capabilities & CAP_IPC_LOCK != 0 {
        return None;
    }
    Some(limit?.saturating_sub(kibibytes(status, "VmLck:").unwrap_or(0)))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    line(text, name)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The first word after `name` at the start of a line.
fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";

    #[test]
    fn only_who_holds_the_capability_outside_is_not_bound_by_memlock() {
        let bound = "VmLck:\t     512 kB\nCapEff:\t0000000000000000\n";
        let free = "VmLck:\t     512 kB\nCapEff:\t000001ffffffffff\n";
        assert_eq!(memlock_left(Some(8 << 20), bound, HOST), Some((8 << 20) - (512 << 10)));
        assert_eq!(memlock_left(None, bound, HOST), None);
        assert_eq!(memlock_left(Some(8 << 20), free, HOST), None);
        assert_eq!(memlock_left(Some(8 << 20), free, "0 1000 1"), Some((8 << 20) - (512 << 10)));
        assert_eq!(memlock_left(Some(0), "", ""), Some(0));
    }

    #[test]
    fn what_this_process_has_is_found() {
        let process = Process::measure(Some(7));
        assert!(process.descriptors > 0 && process.memory.is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(process.mappings, Some(7));
    }
}
