//! The control plane's side of the LBA table: which of its entries are free, and how a grant's ranges are written.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use crate::LbaRange;
use crate::published::{LbaEntry, ListPointer, NONE, Published};

/// The free LBA entries. Any of them is as good as any other.
#[derive(Debug)]
pub(crate) struct LbaPool {
    limit: u32,
    /// Entries from here on were never used.
    fresh: u32,
    returned: Vec<u32>,
}

impl LbaPool {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, fresh: 0, returned: Vec::new() }
    }

    pub(crate) fn free(&self) -> usize {
        (self.limit - self.fresh) as usize + self.returned.len()
    }

    pub(crate) fn used(&self) -> u32 {
        // Returned entries are among the fresh ones handed out before, so their number fits.
        self.fresh - u32::try_from(self.returned.len()).unwrap_or(self.fresh)
    }

    /// `count` entries, or `None` if fewer are free; then nothing was taken.
    pub(crate) fn take(&mut self, count: usize) -> Option<Box<[u32]>> {
        if count > self.free() {
            return None;
        }
        let take_one = |_| {
            self.returned.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            })
        };
        Some((0..count).map(take_one).collect())
    }

    pub(crate) fn give_back(&mut self, published: &Published, nodes: &[u32]) {
        for &node in nodes {
            if let Some(entry) = published.lba_entry(node) {
                entry.owner.store(NONE, Relaxed);
            }
        }
        // Backwards, so that the next list of this length gets them in the same order.
        self.returned.extend(nodes.iter().rev());
    }

    pub(crate) fn free_nodes(&self) -> impl Iterator<Item = u32> + '_ {
        (self.fresh..self.limit).chain(self.returned.iter().copied())
    }
}

/// Writes the ranges of entry `owner` into `nodes`, one each, and returns the pointer to them. The nodes are free:
/// no poller reads them.
pub(crate) fn write_list(
    published: &Published,
    owner: u32,
    ranges: &[LbaRange],
    nodes: &[u32],
) -> ListPointer {
    let mut start = 0;
    for (range, &node) in ranges.iter().zip(nodes) {
        let Some(entry) = published.lba_entry(node) else {
            continue;
        };
        entry.start.store(start, Relaxed);
        entry.first.store(range.first.0, Relaxed);
        entry.count.store(range.count.0, Relaxed);
        entry.owner.store(owner, Relaxed);
        start += range.count.0;
    }
    let length = u32::try_from(nodes.len()).unwrap_or(NONE);
    let root = link(published, nodes);
    nodes.iter().filter_map(|&node| published.lba_entry(node)).for_each(LbaEntry::set_seal);
    ListPointer { root, length }
}

/// What of a file is before one of its extensions.
#[derive(Clone, Copy, Default)]
pub(crate) struct Before {
    pub(crate) blocks: u64,
    pub(crate) holes: u32,
}

impl Before {
    /// What is before an extension that follows one of `range`.
    pub(crate) fn and(self, range: LbaRange) -> Self {
        Self { blocks: self.blocks + range.count.0, holes: self.holes + u32::from(range.is_hole()) }
    }
}

/// Writes the range of one extension of the file of entry `owner`. No poller reads the node.
pub(crate) fn write_extension(published: &Published, owner: u32, before: Before, range: LbaRange, node: u32) {
    let Some(entry) = published.lba_entry(node) else { return };
    entry.left.store(before.holes, Relaxed);
    entry.right.store(NONE, Relaxed);
    entry.start.store(before.blocks, Relaxed);
    entry.first.store(range.first.0, Relaxed);
    entry.count.store(range.count.0, Relaxed);
    entry.owner.store(owner, Relaxed);
    entry.set_seal();
}

/// Makes a balanced tree of nodes that are in order and returns its root.
fn link(published: &Published, nodes: &[u32]) -> u32 {
    let middle = nodes.len() / 2;
    let Some(&root) = nodes.get(middle) else {
        return NONE;
    };
    if let Some(entry) = published.lba_entry(root) {
        entry.left.store(link(published, &nodes[..middle]), Relaxed);
        entry.right.store(link(published, &nodes[middle + 1..]), Relaxed);
    }
    root
}
