//! Resets, failures, disappearances, changes. A request ends only when the device is proven to have stopped.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, ResetProgress, SubmitError, Watch};
use crate::hal::Device;
use crate::spec::virtio::pci::common_cfg;
use crate::virtio::{Controller, VirtioError};

#[test]
fn outstanding_requests_end_once_the_device_was_seen_reset_and_the_queue_runs_again() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    for round in 0..5 {
        assert!(run(&mut queue, read(1)).is_ok());
        // One used and not seen, two held, one not announced.
        queue.submit(&read(2)).unwrap();
        queue.commit();
        rigging.hold();
        queue.submit(&read(3)).unwrap();
        queue.submit(&read(4)).unwrap();
        queue.commit();
        queue.submit(&read(5)).unwrap();
        assert_eq!(controller.device().emulator.held(), 2);
        controller.begin_reset();
        controller.begin_reset();
        assert_eq!(controller.watch(), Watch::Resetting);
        assert_eq!(queue.submit(&read(6)), Err(SubmitError::Down));
        queue.commit();
        assert!(ended(&mut queue).is_empty(), "nothing ends while it may still run");
        assert_eq!((queue.state(), queue.outstanding()), (QueueState::Down, 4));
        assert_eq!(controller.finish_reset(), ResetProgress::Pending, "the queue has not been polled");
        let mut all = Vec::new();
        while queue.outstanding() > 0 {
            assert_eq!(controller.finish_reset(), ResetProgress::Pending);
            assert_eq!(queue.poll(1, &mut |done| all.push((done.tag >> 20, done.status))), 1);
        }
        assert_eq!(all.remove(0), (2, DeviceStatus::OK));
        all.sort_unstable_by_key(|(lba, _)| *lba);
        assert_eq!(all, [3, 4, 5].map(|lba| (lba, DeviceStatus::ABORTED)));
        rigging.behave();
        assert_eq!(controller.device().emulator.release_held(), 0);
        assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
        assert_eq!(queue.submit(&read(7)), Err(SubmitError::Down), "until the next poll");
        assert!(ended(&mut queue).is_empty());
        assert_eq!(queue.state(), QueueState::Running, "round {round}");
        assert_eq!(controller.watch(), Watch::Running);
    }
    assert!(run(&mut queue, read(1)).is_ok());
    assert_eq!((controller.anomalies(), *rigging.resets.lock().unwrap()), (0, 1), "the first of all");
}

/// The write is done and the flush behind it is not: nobody says that it is durable.
#[test]
fn a_forced_unit_access_that_a_reset_cuts_in_two_is_aborted() {
    use crate::emu::virtio::VirtioConfig;
    use crate::emu::{Cached, RamMedia};
    let media = std::sync::Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512));
    let (mut controller, mut queue, _) = opened_as(VirtioConfig { queues: 4, ..VirtioConfig::new(media) });
    let buffer = memory(&controller, 4096);
    queue.submit(&command(Operation::Write { fua: true }, 1, 1, buffer.iova(0))).unwrap();
    queue.commit();
    let all = reset(&mut controller, &mut queue);
    assert_eq!(all, [(1 << 20 | 1, DeviceStatus::ABORTED)]);
}

#[test]
fn untaken_and_dropped_queues_hold_nothing_up() {
    let (device, _) = rigged(512);
    let mut controller = Controller::open_with(device, &options(3)).unwrap();
    let buffer = memory(&controller, 4096);
    let dropped = controller.take_queue().unwrap();
    let mut kept = controller.take_queue().unwrap();
    drop(dropped);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Done), ResetProgress::Pending);
    assert!(ended(&mut kept).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    let mut late = controller.take_queue().unwrap();
    assert!(ended(&mut kept).is_empty());
    for queue in [&mut kept, &mut late] {
        assert!(run(queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
    }
}

/// A poller that works while its device is reset again and again sees every request end exactly once.
#[test]
fn resets_under_a_working_poller() {
    let (device, _) = rigged(512);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let buffer = memory(&controller, 4096);
    let mut queue = controller.take_queue().unwrap();
    let (stop, over) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            let (mut next, mut turn) = (0u64, 0u64);
            let mut open = HashSet::new();
            while !stop.load(Ordering::Relaxed) || !open.is_empty() {
                let mut read = command(Operation::Read, next % 64, 1, buffer.iova(0));
                read.tag = next;
                if !stop.load(Ordering::Relaxed) && queue.submit(&read).is_ok() {
                    assert!(open.insert(next));
                    next += 1;
                }
                turn += 1;
                if turn % 3 > 0 {
                    continue;
                }
                queue.commit();
                queue.poll(8, &mut |done| {
                    assert!(open.remove(&done.tag), "tag {} ended twice", done.tag);
                    assert!([DeviceStatus::OK, DeviceStatus::ABORTED].contains(&done.status));
                    over.fetch_add(1, Ordering::Relaxed);
                });
                if queue.state() != QueueState::Running {
                    std::thread::yield_now();
                }
            }
        });
        let since = Instant::now();
        for _ in 0..30 {
            let before = over.load(Ordering::Relaxed);
            while over.load(Ordering::Relaxed) < before + 10 && !poller.is_finished() {
                assert!(since.elapsed() < Duration::from_secs(60), "the poller does not get on");
                std::thread::yield_now();
            }
            controller.begin_reset();
            assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
        }
        stop.store(true, Ordering::Relaxed);
        poller.join().unwrap();
    });
    assert_eq!((controller.device().emulator.faults(), controller.anomalies()), (0, 0));
}

#[test]
fn a_device_that_does_not_follow_its_reset_is_reset_as_a_function() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    rigging.hold();
    queue.submit(&command(Operation::Read, 0, 1, buffer.iova(0))).unwrap();
    queue.commit();
    rigging.deaf.lock().unwrap().push(common_cfg::DEVICE_STATUS);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    while *rigging.resets.lock().unwrap() < 2 {
        assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    }
    rigging.deaf.lock().unwrap().clear();
    rigging.behave();
    assert_eq!(ended(&mut queue), [(1, DeviceStatus::ABORTED)]);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    assert!(rigging.bus_master.load(Ordering::Relaxed));
    assert!(ended(&mut queue).is_empty());
    assert!(run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
}

#[test]
fn nothing_ends_when_nothing_proves_that_the_device_has_stopped() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    rigging.hold();
    queue.submit(&command(Operation::Read, 0, 1, buffer.iova(0))).unwrap();
    queue.commit();
    rigging.deaf.lock().unwrap().push(common_cfg::DEVICE_STATUS);
    rigging.no_reset.store(true, Ordering::Relaxed);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Stuck);
    assert!(ended(&mut queue).is_empty());
    assert_eq!((queue.outstanding(), queue.state()), (1, QueueState::Down));
    assert!(matches!(controller.shutdown(), Err(VirtioError::Stuck)));
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.outstanding(), 1);
    // Later it comes to its senses.
    rigging.deaf.lock().unwrap().clear();
    rigging.behave();
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert_eq!(ended(&mut queue), [(1, DeviceStatus::ABORTED)]);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
}

#[test]
fn the_memory_of_a_device_that_does_not_stop_stays_mapped() {
    let (device, rigging) = rigged(512);
    let mapper = device.mapper();
    let controller = Controller::open_with(device, &options(1)).unwrap();
    let mapped = mapper.mappings();
    rigging.deaf.lock().unwrap().push(common_cfg::DEVICE_STATUS);
    rigging.no_reset.store(true, Ordering::Relaxed);
    drop(controller);
    assert_eq!(mapper.mappings(), mapped);
}

/// As most virtio devices are: the reset by their registers is all that they have.
#[test]
fn a_function_without_a_reset_of_its_own_is_opened_and_reset() {
    let (device, rigging) = rigged(512);
    rigging.no_reset.store(true, Ordering::Relaxed);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    assert!(reset(&mut controller, &mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Running);
    controller.shutdown().unwrap();
}

#[test]
fn a_device_that_is_gone() {
    for reset_works in [true, false] {
        let (mut controller, mut queue, rigging) = opened(512);
        let buffer = memory(&controller, 4096);
        rigging.hold();
        for lba in 0..3 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        queue.commit();
        controller.device().emulator.power_cut(1);
        rigging.no_reset.store(!reset_works, Ordering::Relaxed);
        assert_eq!(controller.watch(), Watch::Absent);
        controller.begin_reset();
        assert!(ended(&mut queue).is_empty());
        assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Gone);
        assert_eq!(controller.watch(), Watch::Gone);
        let mut count = 0;
        assert_eq!(queue.poll(1, &mut |done| count += usize::from(done.status == DeviceStatus::ABORTED)), 1);
        assert_eq!(queue.state(), QueueState::Down, "not gone before all has ended");
        queue.poll(9, &mut |done| {
            count += usize::from(done.status == DeviceStatus::ABORTED);
        });
        assert_eq!((count, queue.state()), (3, QueueState::Gone));
        assert_eq!(queue.submit(&command(Operation::Flush, 0, 0, buffer.iova(0))), Err(SubmitError::Down));
        controller.begin_reset();
        assert_eq!(controller.finish_reset(), ResetProgress::Gone);
        assert!(controller.shutdown().is_ok());
    }
}

/// All ones in the status register alone is no proof of absence.
#[test]
fn a_device_that_looks_gone_but_is_not() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    rigging.hold();
    queue.submit(&command(Operation::Read, 0, 1, buffer.iova(0))).unwrap();
    queue.commit();
    rigging.read_as(common_cfg::DEVICE_STATUS, u64::MAX);
    rigging.no_reset.store(true, Ordering::Relaxed);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Stuck);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.outstanding(), 1);
}

#[test]
fn a_device_that_does_not_come_back_is_tried_twice() {
    let (mut controller, mut queue, rigging) = opened(512);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    rigging.read_as(common_cfg::QUEUE_ENABLE, 0);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Gone);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Gone);
    assert!(!rigging.bus_master.load(Ordering::Relaxed));
    // Once is forgiven.
    let (mut controller, mut queue, rigging) = opened(512);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    rigging.read_as(common_cfg::QUEUE_ENABLE, 0);
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    rigging.read_true();
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Running);
}

#[test]
fn a_device_that_has_grown_is_used_as_before_and_any_other_change_ends_it() {
    let (device, _) = rigged(512);
    device.emulator.resize(8192).unwrap();
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 4096);
    assert_eq!(controller.geometry().blocks, 8192);
    controller.device().emulator.resize(10_000).unwrap();
    assert_eq!(controller.watch(), Watch::Running);
    assert_eq!(controller.watch(), Watch::Running);
    assert_eq!(controller.geometry().blocks, 8192);
    let behind = command(Operation::Read, 8192, 1, buffer.iova(0));
    assert_eq!(queue.submit(&behind), Err(SubmitError::Invalid));
    assert!(reset(&mut controller, &mut queue).is_empty());
    assert_eq!((controller.watch(), queue.state()), (Watch::Running, QueueState::Running));
    controller.device().emulator.resize(8191).unwrap();
    assert_eq!(controller.watch(), Watch::Changed);
    // What no longer fits is the device's to refuse.
    let last = run(&mut queue, command(Operation::Read, 8191, 1, buffer.iova(0)));
    assert_eq!(last, DeviceStatus::virtio(1));
    assert!(reset(&mut controller, &mut queue).is_empty());
    assert_eq!((controller.watch(), queue.state()), (Watch::Gone, QueueState::Gone));
}

#[test]
fn another_device_after_a_reset_is_refused() {
    use crate::spec::virtio::block::config;
    for (at, value) in
        [(0x2000 + config::SEG_MAX, 9), (0x2000 + config::BLK_SIZE, 4096), (common_cfg::QUEUE_SIZE, 8)]
    {
        let (mut controller, mut queue, rigging) = opened(512);
        rigging.read_as(at, value);
        assert!(reset(&mut controller, &mut queue).is_empty());
        assert_eq!((controller.watch(), queue.state()), (Watch::Gone, QueueState::Gone), "{at:#x}");
    }
}

#[test]
fn after_a_shutdown_queues_end_and_are_gone() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    rigging.hold();
    queue.submit(&command(Operation::Read, 7, 1, buffer.iova(0))).unwrap();
    queue.commit();
    drop(buffer);
    controller.shutdown().unwrap();
    controller.shutdown().unwrap();
    drop(controller);
    assert_eq!(ended(&mut queue), [(7 << 20 | 1, DeviceStatus::ABORTED)]);
    assert_eq!(queue.state(), QueueState::Gone);
}
