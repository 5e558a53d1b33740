//! The whole adapter in one process: an application's queue, the engine, the tables and a device, turned by the calling
//! thread.
//!
//! One iteration prepares a batch of reads of 4 KiB at random places of a volume, rings, and polls until all have come
//! back with success; each poll gives the engine a turn first, as an embedded application pays it. Unit: time for the
//! whole batch.
//!
//! - `raw over null`: through [`portcullis::raw::RawQueue`]. The null device ends everything and moves nothing, so this is
//!   the path itself: entry written, copied, parsed, checked, translated, tracked, completed.
//! - `typed over null`: the same through [`portcullis::Queue`], which also keeps buffers and tickets.
//! - `raw over emu`: the data comes from a written volume on 64 MiB of memory, through the NVMe driver and the software
//!   controller: two more queues and a copy of 4 KiB that misses the caches.
//! - `raw over URI`: with `PORTCULLIS_DEVICE=URI`. The device must have been formatted for Portcullis; a volume named
//!   `portcullis-benches` of 32 MiB is made on it (one left from before is deleted first), written, and deleted.
//!
//! What it does not show: the hop to an adapter in another process (`ring` has the bare one), more than one session or
//! queue, a table of many entries (`check`), writes, or a device that takes its time, unless one is named.

use std::env;

use adapter::Embedded;
use benches::cpu;
use benches::pattern::{Order, Walk};
use criterion::{BenchmarkId, Criterion, Throughput};
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, Buffer, Memory, MemoryAccess, Queue, Request, Session, Status, Volume};

const VOLUME: &str = "portcullis-benches";
const VOLUME_BYTES: u64 = 32 << 20;
/// Bytes of a read.
const READ: u32 = 4096;
/// Reads that do not overlap.
const PLACES: u32 = 32 << 8;
const DEPTHS: [u32; 2] = [1, 32];
const ENTRIES: u32 = 64;

/// A session with an adapter of its own and a written volume.
struct Rig {
    volume: Volume,
    session: Session,
    walk: Walk,
}

impl Rig {
    fn new(uri: &str) -> Self {
        let adapter = Embedded::open(uri).unwrap_or_else(|error| panic!("{error}"));
        let session = adapter.session().expect("a session");
        if session.volume_info(VOLUME).is_ok() {
            session.delete_volume(VOLUME).expect("it is ours");
        }
        session.create_volume(VOLUME, VOLUME_BYTES).expect("room for the volume");
        let volume = session.open(VOLUME, Access::READ_WRITE).expect("it is ours");
        // What was never written need not be read by every device.
        let mut queue = session.queue(ENTRIES).expect("a queue");
        let data = vec![0x5a; 1 << 20];
        for offset in (0..VOLUME_BYTES).step_by(data.len()) {
            queue.write_at(&volume, offset, &data).expect("the volume takes a write");
        }
        Self { volume, session, walk: Walk::new(Order::Random, PLACES) }
    }

    fn memory(&self) -> Memory {
        self.session.register(32 * READ as usize, MemoryAccess::DeviceWrites).expect("memory for the data")
    }

    /// Leaves nothing on a device that stays.
    fn end(self) {
        self.volume.close().expect("the grant is given back");
        self.session.delete_volume(VOLUME).expect("it is ours");
    }
}

/// Prepares `depth` reads, rings, and polls until all are done.
fn raw_batch(queue: &mut RawQueue, memory: &Memory, volume: &Volume, walk: &mut Walk, depth: u32) {
    for slot in 0..depth {
        let entry = SubmissionEntry {
            opcode: opcode::READ,
            user_data: u64::from(slot),
            key: volume.key(),
            offset: u64::from(walk.step()) * u64::from(READ),
            length: READ,
            region: memory.key(),
            region_offset: u64::from(slot * READ),
            ..SubmissionEntry::default()
        };
        queue.push(&entry).expect("nothing is in flight");
    }
    queue.ring().expect("an embedded adapter needs no waking");
    let mut left = depth;
    while left > 0 {
        if let Some(done) = queue.poll() {
            assert_eq!((Status(done.status), done.bytes), (Status::OK, READ));
            left -= 1;
        }
    }
}

fn raw(criterion: &mut Criterion, rig: &mut Rig, name: &str) {
    let mut group = criterion.benchmark_group(format!("engine, raw over {name}"));
    let memory = rig.memory();
    let mut queue = RawQueue::create(&rig.session, ENTRIES).expect("a queue");
    for depth in DEPTHS {
        group.throughput(Throughput::Elements(u64::from(depth)));
        group.bench_function(BenchmarkId::new("depth", depth), |b| {
            b.iter(|| raw_batch(&mut queue, &memory, &rig.volume, &mut rig.walk, depth));
        });
    }
    group.finish();
}

/// The same with types; the buffers go round.
fn typed_batch(queue: &mut Queue, buffers: &mut Vec<Buffer>, volume: &Volume, walk: &mut Walk, depth: usize) {
    for _ in 0..depth {
        let buffer = buffers.pop().expect("as many came back as went");
        let offset = u64::from(walk.step()) * u64::from(READ);
        queue.prepare(Request::read(volume, offset, buffer)).expect("nothing is in flight");
    }
    queue.ring().expect("an embedded adapter needs no waking");
    let mut left = depth;
    while left > 0 {
        if let Some(done) = queue.poll().expect("the adapter is honest") {
            assert_eq!(done.result.expect("it reads"), READ);
            buffers.push(done.buffer.expect("a read has one"));
            left -= 1;
        }
    }
}

fn typed(criterion: &mut Criterion, rig: &mut Rig, name: &str) {
    let mut group = criterion.benchmark_group(format!("engine, typed over {name}"));
    let mut buffers = rig.memory().buffers(READ as usize, READ as usize).expect("it is cut evenly");
    let mut queue = rig.session.queue(ENTRIES).expect("a queue");
    for depth in DEPTHS {
        group.throughput(Throughput::Elements(u64::from(depth)));
        group.bench_function(BenchmarkId::new("depth", depth), |b| {
            b.iter(|| typed_batch(&mut queue, &mut buffers, &rig.volume, &mut rig.walk, depth as usize));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cpu::note_load("before");
    let mut null = Rig::new("null:64M");
    raw(&mut criterion, &mut null, "null");
    typed(&mut criterion, &mut null, "null");
    null.end();
    let mut emu = Rig::new("emu:64M");
    raw(&mut criterion, &mut emu, "emu");
    emu.end();
    if let Some(uri) = env::var("PORTCULLIS_DEVICE").ok().filter(|uri| !uri.is_empty()) {
        let mut device = Rig::new(&uri);
        raw(&mut criterion, &mut device, &uri);
        device.end();
    }
    cpu::note_load("after");
    criterion.final_summary();
}
