//! A steady loop of prepare, ring and poll allocates nothing.
#![allow(unsafe_code, clippy::unwrap_used)] // counts what the allocator is asked for; helpers of tests

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use portcullis::{Access, MemoryAccess, Request, Session};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator; a thread's own counter without destructor allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread in 20,000 requests with 16 in flight, a few of them refused by the adapter.
fn allocations(session: &Session) -> u64 {
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(16).unwrap();
    let mut free = session.register(16 * 4096, MemoryAccess::Both).unwrap().buffers(4096, 4096).unwrap();
    let mut at_start = 0;
    let (mut ended, mut refused, mut next) = (0u32, 0, 0);
    while ended < 21_000 {
        if ended < 1000 {
            at_start = ALLOCATIONS.get();
        }
        while let Some(buffer) = free.pop() {
            next = (next + 1) % 257; // the last one is beyond the end
            let request = Request::write(&volume, next * 4096, buffer);
            queue.prepare(request).map_err(|refused| refused.error).unwrap();
        }
        queue.ring().unwrap();
        while let Some(done) = queue.poll().unwrap() {
            ended += 1;
            refused += u32::from(done.result.is_err());
            free.extend(done.buffer);
        }
    }
    assert!(refused > 50 && refused < 200, "{refused}");
    ALLOCATIONS.get() - at_start
}

#[test]
fn over_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let options = adapter::Options::new("emu:32M".parse().unwrap());
    let adapter = adapter::Adapter::start(&options, &directory.path().join("p.sock")).unwrap();
    assert_eq!(allocations(&Session::connect(adapter.socket()).unwrap()), 0);
}

#[test]
fn embedded_with_the_adapter_turned_by_this_thread() {
    let adapter = adapter::Embedded::open("emu:32M").unwrap();
    assert_eq!(allocations(&adapter.session().unwrap()), 0);
}
