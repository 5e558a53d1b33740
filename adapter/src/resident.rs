//! What a turn needs is in memory before the first one, so that none waits for the kernel to bring a page, and lies in few
//! pages, so that none waits long for the processor to find one.
#![allow(unsafe_code)] // calls of madvise that change nothing of what memory holds

use std::ops::Range;

/// Has the kernel map all code of this process now, and not when a thread that must not wait first runs it.
pub(crate) fn map_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/')) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let address = |text| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.and_then(|(start, end)| Some((address(start)?, address(end)?))) else {
            continue;
        };
        let advice = rustix::mm::Advice::LinuxPopulateRead;
        // SAFETY: maps pages that are there to be read, and changes nothing; a range that is gone by now is an error.
        let _ = unsafe { rustix::mm::madvise(std::ptr::without_provenance_mut(start), end - start, advice) };
    }
}

/// Touches as much of this thread's stack as it will ever need.
#[inline(never)]
pub(crate) fn touch_stack() {
    std::hint::black_box([1u8; STACK]);
}

/// No turn comes near it.
const STACK: usize = 128 << 10;

/// Of a page of the next size: on x86-64 and, with pages of 4 KiB, on AArch64.
const LARGE: usize = 2 << 20;

/// Asks the kernel to have what lies between these addresses in large pages now (`MADV_COLLAPSE`, Linux 6.1), as far as whole
/// ones fit: of tables of megabytes nearly every read at random would look for its page in memory, too. A kernel that
/// cannot, or has none left, leaves them as they are.
pub fn in_large_pages(memory: impl IntoIterator<Item = Range<usize>>) {
    for Range { start, end } in memory {
        let (start, end) = (start.next_multiple_of(LARGE), end / LARGE * LARGE);
        if start < end {
            let start = std::ptr::without_provenance_mut(start);
            // SAFETY: the kernel copies pages to larger ones at the same addresses, and the memory is as it was; a range
            // that is not mapped is an error.
            let _ = unsafe { libc::madvise(start, end - start.addr(), libc::MADV_COLLAPSE) };
        }
    }
}
