//! A device that behaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, Segment, SubmitError, Watch};
use crate::emu::virtio::VirtioConfig;
use crate::emu::{Cached, FaultyMedia, RamMedia};
use crate::hal::{Device, Iova};
use crate::spec::virtio::block::feature as blk;
use crate::spec::virtio::{block, feature};
use crate::virtio::{Controller, Options, VirtioError};

const WRITE: Operation = Operation::Write { fua: false };

/// Every way in which features may be missing.
fn ways() -> [u64; 6] {
    let both = feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    [
        0,
        feature::RING_EVENT_IDX,
        feature::RING_INDIRECT_DESC,
        both,
        blk::SEG_MAX,
        both | blk::FLUSH | blk::CONFIG_WCE | blk::TOPOLOGY | blk::DISCARD,
    ]
}

#[test]
fn opens_and_says_what_it_is() {
    for block in [512u32, 4096] {
        let (device, rigging) = rigged(block);
        let mut controller = Controller::open_with(device, &options(3)).unwrap();
        let identity = controller.identity();
        assert_eq!((identity.serial.as_str(), identity.pci.device), ("EMU-VIRTIO-0", 0x1042));
        assert_eq!(identity.topology.map(|topology| topology.min_io_blocks), Some(1));
        let wanted = feature::VERSION_1 | feature::ACCESS_PLATFORM | feature::RING_EVENT_IDX;
        assert_eq!(identity.features & wanted, wanted);
        let geometry = *controller.geometry();
        assert_eq!(u64::from(geometry.block_size()) * geometry.blocks, BYTES);
        assert!(geometry.write_zeroes && geometry.deallocate && geometry.deallocate_zeroes);
        assert!(!geometry.compare && !geometry.write_cache);
        assert!(rigging.bus_master.load(Ordering::Relaxed));
        assert_eq!(controller.watch(), Watch::Running);
        let queues: Vec<_> = std::iter::from_fn(|| controller.take_queue()).collect();
        assert_eq!(queues.len(), 3);
        assert!(queues.iter().all(|queue| queue.state() == QueueState::Running));
    }
}

#[test]
fn dropped_it_is_reset_and_unmapped() {
    let (device, rigging) = rigged(512);
    let mapper = device.mapper();
    let controller = Controller::open_with(device, &options(2)).unwrap();
    assert!(mapper.mappings() > 0);
    drop(controller);
    assert!(!rigging.bus_master.load(Ordering::Relaxed));
    assert_eq!(mapper.mappings(), 0);
}

#[test]
fn data_goes_where_it_should_with_and_without_each_feature() {
    for (block, without) in [512u32, 4096].into_iter().flat_map(|block| ways().map(|way| (block, way))) {
        let (controller, mut queue, _) = opened_as(VirtioConfig { without, ..config(block) });
        let most = controller.geometry().max_transfer_blocks.min(64);
        let size = (most * block) as usize;
        let (from, to) = (memory(&controller, size), memory(&controller, size));
        let pattern: Vec<u8> = (0..size).map(|i| ((i * 7 + i / 509) % 256).try_into().unwrap()).collect();
        for offset in [0usize, 4, 4092] {
            for blocks in [1, 2, 7, 8, 9, most].into_iter().filter(|&n| n <= most) {
                let bytes = (blocks * block) as usize;
                from.copy_in(offset, &pattern[..bytes]);
                to.zero();
                assert!(run(&mut queue, command(WRITE, 3, blocks, from.iova(offset))).is_ok());
                assert!(run(&mut queue, command(Operation::Read, 3, blocks, to.iova(offset))).is_ok());
                let mut all = vec![0; to.len()];
                to.copy_out(0, &mut all);
                assert!(all[offset..offset + bytes] == pattern[..bytes], "{block} {offset} {blocks}");
                assert!(all[..offset].iter().chain(&all[offset + bytes..]).all(|&b| b == 0));
            }
        }
        assert_eq!((controller.device().emulator.faults(), controller.anomalies()), (0, 0));
        assert_eq!(controller.watch_again(), Watch::Running, "without {without:#x}");
    }
}

impl Controller<Rigged> {
    fn watch_again(mut self) -> Watch {
        self.watch()
    }
}

#[test]
fn operations_without_data() {
    for without in ways() {
        let (controller, mut queue, _) = opened_as(VirtioConfig { without, ..config(512) });
        let buffer = memory(&controller, 4096);
        let none = Iova(u64::MAX); // means nothing for these
        for operation in [
            Operation::WriteZeroes { deallocate: false },
            Operation::WriteZeroes { deallocate: true },
            Operation::Deallocate,
        ] {
            buffer.copy_in(0, &[0xaa; 4096]);
            assert!(run(&mut queue, command(Operation::Write { fua: true }, 8, 8, buffer.iova(0))).is_ok());
            assert!(run(&mut queue, command(operation, 9, 6, none)).is_ok());
            assert!(run(&mut queue, command(Operation::Flush, 0, 0, none)).is_ok());
            assert!(run(&mut queue, command(Operation::Read, 8, 8, buffer.iova(0))).is_ok());
            let mut bytes = [0; 4096];
            buffer.copy_out(0, &mut bytes);
            assert!(bytes[..512].iter().chain(&bytes[7 * 512..]).all(|&b| b == 0xaa));
            assert!(bytes[512..7 * 512].iter().all(|&b| b == 0), "{operation:?}");
        }
        assert_eq!(queue.submit(&command(Operation::Compare, 0, 1, none)), Err(SubmitError::Invalid));
    }
}

/// A deallocate that must read as zero is never left to a hint.
#[test]
fn without_write_zeroes_a_deallocate_promises_nothing() {
    let (controller, mut queue, _) = opened_as(VirtioConfig { without: blk::WRITE_ZEROES, ..config(512) });
    let geometry = *controller.geometry();
    assert!(geometry.deallocate && !geometry.deallocate_zeroes && !geometry.write_zeroes);
    assert!(run(&mut queue, command(Operation::Deallocate, 0, 8, Iova(0))).is_ok());
    let zeroes = command(Operation::WriteZeroes { deallocate: true }, 0, 8, Iova(0));
    assert_eq!(queue.submit(&zeroes), Err(SubmitError::Invalid));
    let neither = VirtioConfig { without: blk::WRITE_ZEROES | blk::DISCARD, ..config(512) };
    let (controller, mut queue, _) = opened_as(neither);
    assert!(!controller.geometry().deallocate);
    let deallocate = command(Operation::Deallocate, 0, 8, Iova(0));
    assert_eq!(queue.submit(&deallocate), Err(SubmitError::Invalid));
}

/// Buffers are as long and as many as the device takes: the emulated one refuses others.
#[test]
fn requests_are_cut_to_what_the_device_takes() {
    for (block, size_max, seg_max) in [
        (512, Some(512), 4),
        (512, Some(700), 9),
        (4096, Some(1000), 126),
        (512, Some(65_536), 2),
        (512, None, 1),
        (512, Some(4096), 1),
        (4096, Some(4096), 200),
    ] {
        for without in [0, feature::RING_INDIRECT_DESC] {
            let config = VirtioConfig { size_max, seg_max, without, ..config(block) };
            let (device, _) = rigged_as(config);
            let mut controller =
                Controller::open_with(device, &Options { entries: 256, ..options(1) }).unwrap();
            let mut queue = controller.take_queue().unwrap();
            let geometry = *controller.geometry();
            assert!(geometry.max_transfer_blocks >= 1 && geometry.max_segments >= 1);
            let bytes = (geometry.max_transfer_blocks as usize) << geometry.block_shift;
            let (from, to) = (memory(&controller, bytes), memory(&controller, bytes));
            let pattern: Vec<u8> = (0..bytes).map(|i| (i % 251).try_into().unwrap()).collect();
            from.copy_in(8, &pattern);
            let most = geometry.max_transfer_blocks;
            assert!(run(&mut queue, command(WRITE, 1, most, from.iova(8))).is_ok(), "{size_max:?} {seg_max}");
            // As many segments as there may be, all but the last of one block.
            let count = geometry.max_segments.min(most);
            let mut at = 4;
            let segments: Vec<Segment> = (0..count)
                .map(|index| {
                    let blocks = if index + 1 == count { most - index } else { 1 };
                    let segment = Segment { data: to.iova(at), bytes: blocks << geometry.block_shift };
                    at += segment.bytes as usize;
                    segment
                })
                .collect();
            queue.submit_scattered(&command(Operation::Read, 1, most, Iova(0)), &segments).unwrap();
            queue.commit();
            assert_eq!(ended(&mut queue), [(1 << 20 | u64::from(most), DeviceStatus::OK)]);
            let mut back = vec![0; bytes];
            to.copy_out(4, &mut back);
            assert!(back == pattern, "{size_max:?} {seg_max}");
        }
    }
}

#[test]
fn what_does_not_hold_a_block_is_refused() {
    let (device, _) = rigged_as(VirtioConfig { size_max: Some(100), seg_max: 4, ..config(512) });
    assert!(matches!(refusal(device), VirtioError::Unsupported(_)));
}

#[test]
fn the_device_is_told_once_for_many_and_only_if_it_asks() {
    for without in [0, feature::RING_EVENT_IDX] {
        let (controller, mut queue, rigging) = opened_as(VirtioConfig { without, ..config(512) });
        let buffer = memory(&controller, 4096);
        let before = queue.doorbells();
        for lba in 0..8 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        queue.commit();
        queue.commit();
        assert_eq!((ended(&mut queue).len(), queue.doorbells() - before), (8, 1));
        if without == 0 {
            // It does not want to be told: then it is not, until nothing came of that for long.
            *rigging.lies.event.lock().unwrap() = Some(|event| event.wrapping_sub(9));
            assert!(run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
            let before = queue.doorbells();
            queue.submit(&command(Operation::Read, 1, 1, buffer.iova(0))).unwrap();
            queue.commit();
            assert_eq!(queue.doorbells(), before);
            assert!(ended(&mut queue).is_empty());
            let mut polls = 1;
            while ended(&mut queue).is_empty() {
                polls += 1;
                assert!(polls < 3000, "it is never told");
            }
            assert!(polls > 1000);
        }
    }
}

fn readable(queue: &crate::virtio::Queue<RiggedRegisters>) -> bool {
    let fd = queue.interrupt_fd().unwrap();
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&none)).unwrap() == 1;
    if is {
        rustix::io::read(fd, &mut [0; 8]).unwrap();
    }
    is
}

#[test]
fn an_interrupt_wakes_who_armed_it_and_nobody_else_pays() {
    for without in [0, feature::RING_EVENT_IDX] {
        let (controller, mut queue, rigging) = opened_as(VirtioConfig { without, ..config(512) });
        let buffer = memory(&controller, 4096);
        let read = command(Operation::Read, 0, 1, buffer.iova(0));
        // Far enough that indexes wrap: the event behind must be moved on.
        for _ in 0..70_000 {
            assert!(run(&mut queue, read).is_ok());
        }
        assert!(!readable(&queue), "interrupted while polling, without {without:#x}");
        rigging.lies.hold();
        queue.submit(&read).unwrap();
        queue.commit();
        queue.arm_interrupt(true);
        assert!(ended(&mut queue).is_empty() && !readable(&queue));
        rigging.lies.behave();
        assert_eq!(controller.device().emulator.release_held(), 1);
        assert!(readable(&queue), "asleep");
        assert_eq!(ended(&mut queue).len(), 1);
        // It stays armed for the next.
        queue.submit(&read).unwrap();
        queue.commit();
        assert!(readable(&queue));
        queue.arm_interrupt(false);
        assert_eq!(ended(&mut queue).len(), 1);
        assert!(run(&mut queue, read).is_ok() && !readable(&queue), "awake again");
    }
}

#[test]
fn a_forced_unit_access_is_durable_and_a_plain_write_is_not() {
    let media = Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512));
    let (controller, mut queue, _) =
        opened_as(VirtioConfig { queues: 4, ..VirtioConfig::new(media.clone()) });
    assert!(controller.geometry().write_cache);
    let buffer = memory(&controller, 4096);
    assert!(run(&mut queue, command(WRITE, 0, 1, buffer.iova(0))).is_ok());
    assert_eq!(media.unflushed(), 1);
    let forced = command(Operation::Write { fua: true }, 1, 1, buffer.iova(0));
    queue.submit(&forced).unwrap();
    queue.commit();
    // What is submitted behind it and not committed does not start with its flush.
    queue.submit(&command(WRITE, 2, 1, buffer.iova(0))).unwrap();
    assert!(ended(&mut queue).is_empty() && media.unflushed() == 2, "written, and not flushed yet");
    queue.commit();
    let mut all = ended(&mut queue);
    all.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(all, [(1 << 20 | 1, DeviceStatus::OK), (2 << 20 | 1, DeviceStatus::OK)]);
    assert!(run(&mut queue, command(Operation::Flush, 0, 0, Iova(0))).is_ok());
    assert_eq!((media.unflushed(), queue.outstanding()), (0, 0));
    // Without a flush the device is to write through (5.2.6.2), and then nothing is left to do.
    let media = Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512));
    let config = VirtioConfig { queues: 4, without: blk::FLUSH, ..VirtioConfig::new(media.clone()) };
    let (controller, mut queue, _) = opened_as(config);
    assert!(!controller.geometry().write_cache);
    let requests = controller.device().emulator.requests();
    assert!(run(&mut queue, command(WRITE, 0, 1, Iova(0))) != DeviceStatus::OK, "no memory there");
    let buffer = memory(&controller, 4096);
    assert!(run(&mut queue, command(WRITE, 0, 1, buffer.iova(0))).is_ok() && media.unflushed() == 0);
    queue.submit(&command(Operation::Flush, 7, 0, Iova(0))).unwrap();
    assert!(ended(&mut queue).is_empty(), "not before it is committed");
    queue.commit();
    assert_eq!(ended(&mut queue), [(7 << 20, DeviceStatus::OK)]);
    assert_eq!(controller.device().emulator.requests() - requests, 2, "the device saw no flush");
}

#[test]
fn errors_of_the_device_come_through_with_its_own_status() {
    let media = Arc::new(FaultyMedia::new(RamMedia::new(BYTES).unwrap()));
    let (controller, mut queue, rigging) =
        opened_as(VirtioConfig { queues: 4, ..VirtioConfig::new(media.clone()) });
    let buffer = memory(&controller, 4096);
    media.fail_reads(5 * 512..6 * 512);
    media.fail_writes(6 * 512..7 * 512);
    let error = DeviceStatus::virtio(block::status::IOERR);
    assert_eq!(run(&mut queue, command(Operation::Read, 5, 1, buffer.iova(0))), error);
    assert_eq!(run(&mut queue, command(Operation::Write { fua: true }, 6, 1, buffer.iova(0))), error);
    assert_eq!(error.to_string(), "virtio-blk status 01h");
    media.heal();
    *rigging.lies.fate.lock().unwrap() = Some(|_, _| crate::emu::virtio::Fate::Fail(0x42));
    let status = run(&mut queue, command(Operation::Read, 5, 1, buffer.iova(0)));
    assert_eq!(status, DeviceStatus::virtio(0x42));
    rigging.lies.behave();
    assert!(run(&mut queue, command(Operation::Read, 5, 1, buffer.iova(0))).is_ok());
    assert_eq!(controller.anomalies(), 0);
}

#[test]
fn more_queues_than_the_device_has_are_refused() {
    let (device, _) = rigged(512);
    match Controller::open_with(device, &options(5)) {
        Err(error @ VirtioError::Queues { asked: 5, granted: 4 }) => {
            assert!(error.to_string().contains("num-queues=5"));
        }
        other => panic!("{:?}", other.map(drop)),
    }
    let (device, _) = rigged_as(VirtioConfig { without: blk::MQ, ..config(512) });
    assert!(matches!(
        Controller::open_with(device, &options(2)),
        Err(VirtioError::Queues { asked: 2, granted: 1 })
    ));
    for options in [Options { queues: 0, ..options(1) }, Options { entries: 3, ..options(1) }] {
        let (device, _) = rigged(512);
        assert!(matches!(Controller::open_with(device, &options), Err(VirtioError::Options(_))));
    }
}
