//! What is written is read back, byte for byte, and nothing else changes.

use driver::block::{DeviceStatus, Geometry, Operation};
use driver::dice::Dice;

use super::io::{FILLER, Image, command, run};
use super::load::Load;
use super::{Bench, Case, Needs};

pub(super) const CASES: &[Case] = &[
    Case { name: "every_size_at_block_page_and_transfer_boundaries", needs: Needs::Data, run: sizes },
    Case { name: "every_four_byte_offset_of_the_data", needs: Needs::Data, run: offsets },
    Case { name: "the_largest_transfer_at_odd_offsets", needs: Needs::Data, run: largest },
    Case { name: "the_first_and_the_last_block", needs: Needs::Data, run: ends },
    Case { name: "flush_and_forced_unit_access", needs: Needs::Data, run: durable },
    Case { name: "write_zeroes_zeroes_exactly_its_blocks", needs: Needs::Data, run: write_zeroes },
    Case { name: "deallocate_touches_exactly_its_blocks", needs: Needs::Data, run: deallocate },
    Case { name: "compare_equal_and_unequal", needs: Needs::Data, run: compare },
    Case { name: "random_commands_at_depth", needs: Needs::Data, run: random },
    Case { name: "two_queues_from_two_threads", needs: Needs::Controller, run: two_queues },
];

const GUARD: usize = 64;

/// Writes noise from memory at `offset`, reads it to another place, and looks at every byte of both and around them.
fn there_and_back(bench: &mut Bench, image: &mut Image, lba: u64, blocks: u32, offset: usize, seed: u64) {
    let geometry = bench.geometry();
    let len = (blocks as usize) << geometry.block_shift;
    let size = offset + len + GUARD;
    let (source, target) = (bench.memory(size), bench.memory(size));
    let content = Dice(seed).bytes(len);
    source.write(offset, &content);
    let write = command(Operation::Write { fua: false }, lba, blocks, source.at(offset));
    assert_eq!(run(bench.queue(), write), DeviceStatus::OK, "{write:?}");
    image.set(lba, &content);
    let read = command(Operation::Read, lba, blocks, target.at(offset));
    assert_eq!(run(bench.queue(), read), DeviceStatus::OK, "{read:?}");
    assert!(target.read(offset, len) == content, "wrong data: {read:?}");
    for memory in [&source, &target] {
        let around =
            [memory.read(0, offset), memory.read(offset + len, memory.len() - offset - len)].concat();
        assert!(around.iter().all(|&byte| byte == FILLER), "bytes around the data changed: {read:?}");
    }
    assert!(source.read(offset, len) == content, "a write changed its source: {write:?}");
}

fn sizes(bench: &mut Bench) {
    let geometry = bench.geometry();
    let (most, page) = (geometry.max_transfer_blocks, 4096 >> geometry.block_shift);
    let mut sizes = vec![1, 2, 3, most / 2, most - 1, most];
    for pages in [1, 2, 3, 4, 16, 32, 64] {
        sizes.extend([pages * page - 1, pages * page, pages * page + 1]);
    }
    sizes.retain(|&blocks| blocks >= 1 && blocks <= most);
    sizes.sort_unstable();
    sizes.dedup();
    let memory = bench.memory(1 << 20);
    let span = u64::from(most) + 16;
    let mut image = Image::new(bench.queue(), &memory, 0, span, 1);
    for (seed, &blocks) in (2..).zip(&sizes) {
        there_and_back(bench, &mut image, seed % 8, blocks, 0, seed);
    }
    image.verify(bench.queue(), &memory);
}

fn offsets(bench: &mut Bench) {
    let geometry = bench.geometry();
    let page = 4096 >> geometry.block_shift;
    let most = geometry.max_transfer_blocks;
    let sizes = [1, page, 2 * page + 1].map(|blocks: u32| blocks.clamp(1, most));
    let len = (sizes[2] as usize) << geometry.block_shift;
    let (source, target) = (bench.memory(2 * 4096 + len), bench.memory(2 * 4096 + len));
    let mut dice = Dice(3);
    for offset in (0..4096).step_by(4) {
        let blocks = sizes[offset / 4 % 3];
        let len = (blocks as usize) << geometry.block_shift;
        let content = dice.bytes(len);
        let lba = dice.below(1024);
        source.write(offset, &content);
        target.fill(FILLER);
        for (operation, memory) in [(Operation::Write { fua: false }, &source), (Operation::Read, &target)] {
            let command = command(operation, lba, blocks, memory.at(offset));
            assert_eq!(run(bench.queue(), command), DeviceStatus::OK, "{command:?}");
        }
        let all = target.read(0, target.len());
        assert!(all[offset..offset + len] == content, "wrong data at offset {offset}");
        assert!(
            all[..offset].iter().chain(&all[offset + len..]).all(|&byte| byte == FILLER),
            "bytes around offset {offset} changed"
        );
    }
}

fn largest(bench: &mut Bench) {
    let geometry = bench.geometry();
    let most = geometry.max_transfer_blocks;
    let memory = bench.memory(1 << 20);
    let mut image = Image::new(bench.queue(), &memory, 0, u64::from(most) + 16, 5);
    for (seed, offset) in (6..).zip([4, 60, 512, 2048, 4092]) {
        there_and_back(bench, &mut image, 3, most, offset, seed);
    }
    image.verify(bench.queue(), &memory);
}

fn ends(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 16);
    for base in [0, geometry.blocks - 8] {
        let mut image = Image::new(bench.queue(), &memory, base, 8, base ^ 7);
        there_and_back(bench, &mut image, base, 1, 0, 8);
        there_and_back(bench, &mut image, base + 7, 1, 0, 9);
        image.verify(bench.queue(), &memory);
    }
}

fn durable(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    let mut image = Image::new(bench.queue(), &memory, 16, 16, 10);
    let flush = command(Operation::Flush, 0, 0, memory.at(0));
    assert_eq!(run(bench.queue(), flush), DeviceStatus::OK);
    let content = Dice(11).bytes(2 << bench.geometry().block_shift);
    memory.write(0, &content);
    let write = command(Operation::Write { fua: true }, 20, 2, memory.at(0));
    assert_eq!(run(bench.queue(), write), DeviceStatus::OK);
    image.set(20, &content);
    assert_eq!(run(bench.queue(), flush), DeviceStatus::OK);
    image.verify(bench.queue(), &memory);
}

/// Ranges to clear: short, page-sized, long, up to the device's limit and to `most`.
fn ranges(geometry: &Geometry, most: u64) -> Vec<(u64, u32)> {
    let limit = u32::try_from(most.min(u64::from(geometry.max_zeroes_blocks))).expect("small");
    [(5, 1), (8, 8), (3, 17), (0, limit), (1, limit.saturating_sub(2).max(1))].to_vec()
}

fn clear(bench: &mut Bench, operation: Operation, zeroes: bool) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 20);
    let blocks = (4u64 << 20 >> geometry.block_shift).min(geometry.blocks / 4);
    for (seed, (offset, count)) in (20..).zip(ranges(&geometry, blocks - 8)) {
        let base = geometry.blocks / 2;
        let mut image = Image::new(bench.queue(), &memory, base, blocks, seed);
        let command_ = command(operation, base + offset, count, memory.at(0));
        assert_eq!(run(bench.queue(), command_), DeviceStatus::OK, "{command_:?}");
        if zeroes {
            image.zero(base + offset, count);
        } else {
            // What they read as is unknown; that they can be written is not.
            let refill = command(Operation::Read, base + offset, 1, memory.at(0));
            assert_eq!(run(bench.queue(), refill), DeviceStatus::OK);
            rewrite(bench, &mut image, base + offset, count);
        }
        image.verify(bench.queue(), &memory);
    }
}

fn rewrite(bench: &mut Bench, image: &mut Image, lba: u64, count: u32) {
    let geometry = bench.geometry();
    let chunk = geometry.max_transfer_blocks.min(256);
    let memory = bench.memory((chunk as usize) << geometry.block_shift);
    let mut done = 0;
    while done < count {
        let blocks = chunk.min(count - done);
        let content = Dice(u64::from(done)).bytes((blocks as usize) << geometry.block_shift);
        memory.write(0, &content);
        let write = command(Operation::Write { fua: false }, lba + u64::from(done), blocks, memory.at(0));
        assert_eq!(run(bench.queue(), write), DeviceStatus::OK);
        image.set(lba + u64::from(done), &content);
        done += blocks;
    }
}

fn write_zeroes(bench: &mut Bench) {
    if bench.geometry().write_zeroes {
        clear(bench, Operation::WriteZeroes { deallocate: false }, true);
        clear(bench, Operation::WriteZeroes { deallocate: true }, true);
    } else {
        refused(bench, Operation::WriteZeroes { deallocate: false });
    }
}

fn deallocate(bench: &mut Bench) {
    let geometry = bench.geometry();
    if geometry.deallocate {
        clear(bench, Operation::Deallocate, geometry.deallocate_zeroes);
    } else {
        refused(bench, Operation::Deallocate);
    }
}

/// What the geometry does not have is refused before it reaches the device.
fn refused(bench: &mut Bench, operation: Operation) {
    let memory = bench.memory(4096);
    let command = command(operation, 0, 1, memory.at(0));
    assert_eq!(bench.queue().submit(&command), Err(driver::block::SubmitError::Invalid));
}

fn compare(bench: &mut Bench) {
    let geometry = bench.geometry();
    if !geometry.compare {
        return refused(bench, Operation::Compare);
    }
    let memory = bench.memory(1 << 20);
    let most = geometry.max_transfer_blocks;
    let image = Image::new(bench.queue(), &memory, 0, u64::from(most) + 8, 30);
    for (lba, blocks) in [(0, 1), (3, 9), (5, most)] {
        let len = (blocks as usize) << geometry.block_shift;
        let data = bench.memory(len + 8);
        for offset in [0, 4] {
            let stored = image.get(lba, blocks).to_vec();
            data.write(offset, &stored);
            let compare = command(Operation::Compare, lba, blocks, data.at(offset));
            assert_eq!(run(bench.queue(), compare), DeviceStatus::OK);
            for at in [0, len / 2, len - 1] {
                let mut other = stored.clone();
                other[at] ^= 1;
                data.write(offset, &other);
                assert_eq!(run(bench.queue(), compare), DeviceStatus::COMPARE_FAILURE, "byte {at} differs");
                assert!(data.read(offset, len) == other, "a compare changed its source");
            }
        }
    }
    image.verify(bench.queue(), &memory);
}

/// Blocks for random commands.
fn arena(geometry: &Geometry) -> u64 {
    (2u64 << 20 >> geometry.block_shift).min(geometry.blocks / 4)
}

fn random(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(32 * Load::place(&geometry));
    let mut load = Load::new(bench.queue(), &memory, 8, arena(&geometry), 40);
    load.until(6_000);
    assert_eq!((load.aborted, load.finish()), (0, 0));
}

fn two_queues(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memories = [0, 1].map(|_| bench.memory(16 * Load::place(&geometry)));
    let (queues, controller) = bench.parts();
    std::thread::scope(|scope| {
        for ((at, queue), memory) in (0u64..).zip(&mut queues[..2]).zip(&memories) {
            scope.spawn(move || {
                let base = geometry.blocks / 2 * at;
                let mut load = Load::new(&mut *queue.queue, memory, base, arena(&geometry), 50 + at);
                load.until(3_000);
                assert_eq!((load.aborted, load.finish()), (0, 0));
            });
        }
    });
    assert_eq!(controller.anomalies(), 0);
}
