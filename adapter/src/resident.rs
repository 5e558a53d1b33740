//! What a turn needs is in memory before the first one, so that none waits for the kernel to bring a page.
#![allow(unsafe_code)] // one call of madvise that changes nothing

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
