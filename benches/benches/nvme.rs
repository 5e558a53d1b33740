//! The NVMe driver over the software controller on memory.
//!
//! One iteration submits a batch of commands, rings the device's doorbell once, and polls until all have ended. Unit:
//! time for the whole batch. The software controller runs commands inside the doorbell write, on the calling thread, so a
//! figure is driver and controller together. The medium is 64 MiB, all of it written before.
//!
//! - `read 4 KiB/1`, `/32`: at random blocks, into as many buffers.
//! - `flush`: one. The medium is memory and has no cache, so this is a command that does nothing: what a command costs
//!   besides its data.
//! - `prp entries/4 KiB`, …: what names the memory of 32 commands, built and put into a list in ordinary memory where two
//!   entries are not enough; of memory that begins in a page, too. `bare list of …` is the floor: so many addresses a
//!   page apart written into that list, and nothing decided.
//! - `bare copy of 4 KiB/1`, `/32`: the floor of the reads. So many copies from random places of 64 MiB of ordinary
//!   memory into as many buffers.
//!
//! What it does not show: a bus, a disk, an interrupt, parallel work of device and driver (a real device works while the
//! driver polls; here there is nothing left to wait for), and the page size of the medium (it asks for huge pages; the
//! floor's memory takes what it gets).

use std::hint::black_box;

use benches::cpu;
use benches::pattern::{Order, Walk};
use criterion::{BenchmarkId, Criterion, Throughput};
use driver::block::{BlockQueue, Command, Operation};
use driver::dma::DmaBuffer;
use driver::emu::{Controller as Registers, Emulator};
use driver::hal::{DmaAccess, Iova};
use driver::nvme::{Controller, Options, Queue, prp};

const MEDIUM_BYTES: usize = 64 << 20;
const BLOCK: u32 = 512;
/// Bytes of a read.
const READ: usize = 4096;
const READ_BLOCKS: u32 = 4096 / BLOCK;
const PLACES: u32 = 64 << 8;
const DEPTHS: [usize; 2] = [1, 32];
/// Commands whose memory is named in one iteration.
const NAMED: u64 = 32;
/// Where their memory begins, and how far apart.
const MEMORY: u64 = 0x10_0000_0000;
const APART: u64 = 4 << 20;

/// An opened device.
struct Rig {
    // Before the controller: it lets go of the queue and of the memory first.
    queue: Queue<Registers>,
    buffers: DmaBuffer,
    _controller: Controller<Emulator>,
}

impl Rig {
    fn new() -> Self {
        let device = Emulator::ram(MEDIUM_BYTES as u64, BLOCK).expect("memory for the medium");
        let options = Options { interrupts: false, ..Options::new(1) };
        let mut controller = Controller::open_with(device, &options).expect("the software device opens");
        let queue = controller.take_queue().expect("one was asked for");
        let buffers = DmaBuffer::new(controller.mapper().as_ref(), 32 * READ, DmaAccess::ReadWrite)
            .expect("memory for the data");
        let mut rig = Self { queue, buffers, _controller: controller };
        rig.fill();
        rig
    }

    /// Writes the whole medium.
    fn fill(&mut self) {
        self.buffers.copy_in(0, &vec![0x5a; self.buffers.len()]);
        for place in 0..PLACES {
            let data = self.buffers.iova(0);
            self.submit(Operation::Write { fua: false }, place, data);
            self.finish(1);
        }
    }

    #[inline]
    fn submit(&mut self, operation: Operation, place: u32, data: Iova) {
        let flush = operation == Operation::Flush;
        let command = Command {
            operation,
            lba: u64::from(place) * u64::from(READ_BLOCKS),
            blocks: if flush { 0 } else { READ_BLOCKS },
            data,
            tag: 0,
        };
        self.queue.submit(&command).expect("the queue has room");
    }

    /// Rings, and polls until `count` commands have ended.
    #[inline]
    fn finish(&mut self, count: usize) {
        self.queue.commit();
        let mut ended = 0;
        while ended < count {
            ended += self.queue.poll(count, &mut |done| assert!(done.status.is_ok(), "{done:?}"));
        }
    }
}

fn reads(criterion: &mut Criterion) {
    let mut rig = Rig::new();
    let mut walk = Walk::new(Order::Random, PLACES);
    let mut group = criterion.benchmark_group("nvme");
    for depth in DEPTHS {
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::new("read 4 KiB", depth), |b| {
            b.iter(|| {
                for slot in 0..depth {
                    let data = rig.buffers.iova(slot * READ);
                    rig.submit(Operation::Read, walk.step(), data);
                }
                rig.finish(depth);
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("flush", |b| {
        b.iter(|| {
            rig.submit(Operation::Flush, 0, Iova(0));
            rig.finish(1);
        });
    });
    group.finish();
    let mut byte = [0];
    rig.buffers.copy_out(0, &mut byte);
    assert_eq!(byte, [0x5a], "the reads moved data");
}

/// Their names, bytes, and where in a page they begin.
const TRANSFERS: [(&str, u64, u64); 5] = [
    ("4 KiB", 4096, 0),
    ("4 KiB over two pages", 4096, 512),
    ("8 KiB over three pages", 8192, 512),
    ("128 KiB", 128 << 10, 0),
    ("2 MiB", 2 << 20, 0),
];

#[allow(clippy::cast_possible_truncation)] // a list has 512 entries
fn prps(criterion: &mut Criterion) {
    let mut list = [0_u64; 512];
    let mut group = criterion.benchmark_group("nvme");
    group.throughput(Throughput::Elements(NAMED));
    for (name, bytes, offset) in TRANSFERS {
        group.bench_function(BenchmarkId::new("prp entries", name), |b| {
            b.iter(|| {
                for command in 0..NAMED {
                    let data = black_box(MEMORY + command * APART + offset);
                    let entries = prp::build(data, black_box(bytes), MEMORY - prp::PAGE, |at, page| {
                        list[at as usize] = page;
                    });
                    black_box((entries, &mut list));
                }
            });
        });
    }
    for (name, bytes, _) in TRANSFERS.into_iter().skip(3) {
        group.bench_function(BenchmarkId::new("bare list of", name), |b| {
            b.iter(|| {
                for command in 0..NAMED {
                    let (first, pages) = black_box((MEMORY + command * APART, bytes / prp::PAGE - 1));
                    for (at, entry) in (0..pages).zip(&mut list) {
                        *entry = first + at * prp::PAGE;
                    }
                    black_box(&mut list);
                }
            });
        });
    }
    group.finish();
}

fn copies(criterion: &mut Criterion) {
    let medium = vec![0x5a_u8; MEDIUM_BYTES];
    let mut buffers = vec![0_u8; 32 * READ];
    let mut walk = Walk::new(Order::Random, PLACES);
    let mut group = criterion.benchmark_group("nvme");
    for depth in DEPTHS {
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(BenchmarkId::new("bare copy of 4 KiB", depth), |b| {
            b.iter(|| {
                for buffer in buffers.chunks_exact_mut(READ).take(depth) {
                    let start = walk.step() as usize * READ;
                    buffer.copy_from_slice(black_box(&medium[start..start + READ]));
                    black_box(buffer);
                }
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cpu::note_load("before");
    reads(&mut criterion);
    prps(&mut criterion);
    copies(&mut criterion);
    cpu::note_load("after");
    criterion.final_summary();
}
