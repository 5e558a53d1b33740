//! All that an adapter holds, counted: before and after somebody's death the same.

use portcullis::Session;

use crate::system::{PATIENCE, until};

/// What the adapter says that it holds, and what the kernel says that its process does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    sessions: usize,
    queues: u32,
    grants: u32,
    /// Of the tables.
    pub(super) entries: u64,
    lba_entries: u64,
    pub(super) regions: u64,
    pinned_bytes: u64,
    /// For the device, and those that may still be made (`dma_avail`).
    pub(super) mappings: u64,
    mappings_left: Option<u32>,
    /// Of the store.
    free_blocks: u64,
    volumes: usize,
    /// Of the process.
    descriptors: usize,
    threads: usize,
    locked_kib: u64,
    memfd_mappings: usize,
}

impl Counts {
    /// As they are now, asked by `admin`, whose session is one of those counted.
    pub(super) fn now(admin: &Session) -> Self {
        let statistics = admin.statistics().unwrap();
        let device = admin.device_info().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or("0 kB");
        Self {
            sessions: statistics.sessions.len(),
            queues: statistics.sessions.iter().map(|s| s.queues).sum(),
            grants: statistics.sessions.iter().map(|s| s.grants).sum(),
            entries: statistics.entries,
            lba_entries: statistics.lba_entries,
            regions: statistics.regions,
            pinned_bytes: statistics.pinned_bytes,
            mappings: statistics.mappings,
            mappings_left: statistics.mappings_left,
            free_blocks: device.free_blocks,
            volumes: device.volumes.len(),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: std::fs::read_dir("/proc/self/task").unwrap().count(),
            locked_kib: locked.trim().trim_end_matches(" kB").parse().unwrap(),
            memfd_mappings: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        }
    }

    /// As they are when threads that only pass by are gone: those that take memory, give it back or close descriptors.
    pub(super) fn at_rest(admin: &Session) -> Self {
        until("no thread passes by", || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let mut names =
                tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.all(|name| !["portcullis-mem", "discard"].iter().any(|own| name.starts_with(own)))
        });
        Self::now(admin)
    }

    /// Without what belongs to volumes, which outlive whoever made them.
    fn of_sessions(&self) -> Self {
        Self { free_blocks: 0, volumes: 0, ..self.clone() }
    }

    /// Waits until everything is as it was in `self`.
    pub(super) fn come_back(&self, admin: &Session, after: &str) {
        self.wait(admin, after, Clone::clone);
    }

    /// Waits until everything is as it was in `self`, but for volumes.
    pub(super) fn sessions_come_back(&self, admin: &Session, after: &str) {
        self.wait(admin, after, Self::of_sessions);
    }

    fn wait(&self, admin: &Session, after: &str, part: fn(&Self) -> Self) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let now = Self::now(admin);
            if part(self) == part(&now) {
                return;
            }
            assert!(
                std::time::Instant::now() < end,
                "after {after} something is left:\nbefore {self:?}\nnow    {now:?}"
            );
            std::thread::yield_now();
        }
    }
}
