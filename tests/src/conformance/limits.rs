//! What does not fit is refused, and a queue that is full loses nothing.

use std::collections::HashSet;

use driver::block::{Operation, SubmitError};
use driver::dice::Dice;
use driver::hal::{DmaAccess, Iova};

use super::io::{FILLER, Image, await_some, command, fill_queue, run};
use super::target::ENTRIES;
use super::{Bench, Case, Memory, Needs};

pub(super) const CASES: &[Case] = &[
    Case { name: "blocks_out_of_range_are_refused", needs: Needs::Queues, run: range },
    Case { name: "commands_that_do_not_fit_are_refused", needs: Needs::Controller, run: fit },
    Case { name: "a_full_queue_takes_no_more_and_loses_nothing", needs: Needs::Queues, run: full },
    Case { name: "a_budget_is_kept", needs: Needs::Queues, run: budget },
    Case { name: "nothing_starts_before_it_is_committed", needs: Needs::Data, run: uncommitted },
    Case { name: "mappings_are_counted_and_returned", needs: Needs::Data, run: mappings },
    Case { name: "memory_is_reached_only_as_mapped", needs: Needs::Controller, run: rights },
];

fn range(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 16);
    let last = geometry.blocks - 1;
    let wrong = [
        (last, 2),
        (last + 1, 1),
        (geometry.blocks, 8),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 7, 8),
        (1 << 63, 1),
    ];
    let operations = [
        Operation::Read,
        Operation::Write { fua: true },
        Operation::Compare,
        Operation::WriteZeroes { deallocate: false },
    ];
    for (lba, blocks) in wrong {
        for operation in operations {
            let command = command(operation, lba, blocks, memory.at(0));
            assert_eq!(bench.queue().submit(&command), Err(SubmitError::Invalid), "{command:?}");
        }
    }
    assert!(run(bench.queue(), command(Operation::Read, last, 1, memory.at(0))).is_ok());
}

fn fit(bench: &mut Bench) {
    let geometry = bench.geometry();
    let memory = bench.memory(1 << 16);
    let most = geometry.max_transfer_blocks;
    let start = memory.at(0).0;
    let wrong = [
        (0, Iova(start)),
        (most + 1, Iova(start)),
        (1, Iova(start + 1)),
        (1, Iova(start + 2)),
        (2, Iova(u64::MAX - 3)),
    ];
    for (blocks, data) in wrong {
        for operation in [Operation::Read, Operation::Write { fua: false }] {
            let command = command(operation, 0, blocks, data);
            assert_eq!(bench.queue().submit(&command), Err(SubmitError::Invalid), "{command:?}");
        }
    }
    let none = command(Operation::WriteZeroes { deallocate: false }, 0, 0, Iova(0));
    assert_eq!(bench.queue().submit(&none), Err(SubmitError::Invalid));
    assert_eq!(bench.queue().outstanding(), 0);
}

fn full(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    let at = memory.at(0);
    let queue = bench.queue();
    for _ in 0..5 {
        let count = fill_queue(queue, 1 << 16, |_| command(Operation::Read, 0, 1, at));
        assert!((2..1 << 16).contains(&count), "{count} commands fit");
        assert_eq!(queue.outstanding() as u64, count);
        queue.commit();
        let mut seen = HashSet::new();
        while queue.outstanding() > 0 {
            for completed in await_some(queue) {
                assert!(completed.status.is_ok());
                assert!(completed.tag < count && seen.insert(completed.tag), "tag {} again", completed.tag);
            }
        }
        assert_eq!(seen.len() as u64, count);
    }
}

fn budget(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    let at = memory.at(0);
    let queue = bench.queue();
    let count = fill_queue(queue, u64::from(ENTRIES) / 2, |_| command(Operation::Read, 0, 1, at));
    queue.commit();
    assert_eq!(queue.poll(0, &mut |_| panic!("a budget of nothing")), 0);
    let mut ended = 0;
    let start = std::time::Instant::now();
    while ended < count {
        let mut calls = 0;
        let now = queue.poll(3, &mut |_| calls += 1);
        assert!(now <= 3 && now == calls, "{now} of 3, {calls} calls");
        ended += now as u64;
        assert!(start.elapsed() < super::io::PATIENCE);
    }
    assert_eq!((ended, queue.outstanding()), (count, 0));
}

fn uncommitted(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    Image::new(bench.queue(), &memory, 0, 8, 60);
    memory.fill(FILLER);
    let at = memory.at(0);
    let queue = bench.queue();
    queue.submit(&command(Operation::Read, 0, 1, at)).expect("room");
    for _ in 0..1000 {
        assert_eq!(queue.poll(usize::MAX, &mut |_| ()), 0);
    }
    assert!(memory.read(0, 512).iter().all(|&byte| byte == FILLER));
    queue.commit();
    assert_eq!(await_some(queue).len(), 1);
}

fn mappings(bench: &mut Bench) {
    let mapper = bench.mapper();
    let before = mapper.mappings();
    let all: Vec<Memory> = (0..64).map(|_| bench.memory(8192)).collect();
    assert_eq!(mapper.mappings(), before + 64);
    let mut places: Vec<(u64, u64)> = all.iter().map(|memory| (memory.at(0).0, memory.at(8192).0)).collect();
    places.sort_unstable();
    assert!(places.iter().all(|(start, _)| start % 4096 == 0));
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "mappings overlap");
    for memory in &all {
        assert!(run(bench.queue(), command(Operation::Read, 0, 1, memory.at(0))).is_ok());
    }
    drop(all);
    assert_eq!(mapper.mappings(), before);
}

fn rights(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    let mut image = Image::new(bench.queue(), &memory, 0, 8, 61);
    let mapper = bench.mapper();
    // A source is not written. A device need not notice: its writes are posted, and the IOMMU drops them (PCI Express
    // Base, Memory Write Requests).
    let source = Memory::new(&*mapper, 4096, DmaAccess::Read);
    run(bench.queue(), command(Operation::Read, 0, 1, source.at(0)));
    assert!(
        source.read(0, 4096).iter().all(|&byte| byte == FILLER),
        "the device wrote to memory it may only read"
    );
    let write = command(Operation::Write { fua: false }, 4, 1, source.at(0));
    assert!(run(bench.queue(), write).is_ok());
    let block = source.read(0, bench.geometry().block_size() as usize);
    image.set(4, &block);
    // What is no longer mapped is neither read nor written, whatever the device says of it.
    let secret = Dice(62).bytes(4096);
    let gone = Memory::new(&*mapper, 4096, DmaAccess::ReadWrite);
    gone.write(0, &secret);
    let at = gone.at(0);
    let pages = gone.unmap();
    run(bench.queue(), command(Operation::Write { fua: false }, 5, 1, at));
    run(bench.queue(), command(Operation::Read, 0, 1, at));
    let mut after = vec![0; 4096];
    pages.span().read(&mut after);
    assert!(after == secret, "the device wrote to memory that is not mapped");
    assert!(run(bench.queue(), command(Operation::Read, 5, 1, memory.at(0))).is_ok());
    let stored = memory.read(0, block.len());
    assert!(stored != secret[..block.len()], "the device read memory that is not mapped");
    image.set(5, &stored);
    image.verify(bench.queue(), &memory);
}
