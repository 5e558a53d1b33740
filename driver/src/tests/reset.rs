//! Resets, failures and disappearances of any device. A command ends only when the device is proven to have stopped.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::rig::*;
use crate::block::{
    BlockController, BlockQueue, DeviceStatus, Operation, QueueState, ResetProgress, SubmitError, Watch,
};
use crate::hal::Device;

/// Each case on each kind of device.
macro_rules! on_each_kind {
    ($($case:ident)*) => {
        mod nvme {
            $(#[test] fn $case() { super::$case::<crate::nvme::tests::rig::Nvme>(); })*
        }
        mod virtio {
            $(#[test] fn $case() { super::$case::<crate::virtio::tests::rig::VirtioBlk>(); })*
        }
    };
}

on_each_kind! {
    outstanding_commands_end_once_the_controller_has_stopped_and_the_queue_runs_again
    untaken_and_dropped_queues_hold_nothing_up
    resets_under_a_working_poller
    a_device_that_does_not_follow_its_reset_is_reset_as_a_function
    nothing_ends_when_nothing_proves_that_the_device_has_stopped
    the_memory_of_a_device_that_does_not_stop_stays_mapped
    a_device_that_is_gone
    a_device_that_looks_gone_but_is_not
    after_a_shutdown_queues_end_and_are_gone
}

fn outstanding_commands_end_once_the_controller_has_stopped_and_the_queue_runs_again<K: Kind>() {
    let (mut controller, mut queue, rigging) = opened::<K>();
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    for round in 0..5 {
        assert!(run(&mut queue, read(1)).is_ok());
        // One completed and not seen, two held, one not announced.
        queue.submit(&read(2)).unwrap();
        queue.commit();
        K::hold(&rigging);
        queue.submit(&read(3)).unwrap();
        queue.submit(&read(4)).unwrap();
        queue.commit();
        queue.submit(&read(5)).unwrap();
        assert_eq!(K::emulator(&controller).held(), 2);
        controller.begin_reset();
        controller.begin_reset();
        assert_eq!(controller.watch(), Watch::Resetting);
        assert_eq!(queue.submit(&read(6)), Err(SubmitError::Down));
        queue.commit();
        assert!(ended(&mut queue).is_empty(), "nothing ends while it may still run");
        assert_eq!((queue.state(), queue.outstanding()), (QueueState::Down, 4));
        assert_eq!(controller.finish_reset(), ResetProgress::Pending, "the queue has not been polled");
        assert!(K::has_stopped(&controller));
        let mut all = Vec::new();
        while queue.outstanding() > 0 {
            assert_eq!(controller.finish_reset(), ResetProgress::Pending);
            assert_eq!(queue.poll(1, &mut |done| all.push((done.tag >> 20, done.status))), 1);
        }
        assert_eq!(all.remove(0), (2, DeviceStatus::OK));
        all.sort_unstable_by_key(|(lba, _)| *lba);
        assert_eq!(all, [3, 4, 5].map(|lba| (lba, DeviceStatus::ABORTED)));
        K::behave(&rigging);
        assert_eq!(K::emulator(&controller).release_held(), 0);
        assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
        assert_eq!(queue.submit(&read(7)), Err(SubmitError::Down), "until the next poll");
        assert!(ended(&mut queue).is_empty());
        assert_eq!(queue.state(), QueueState::Running, "round {round}");
        assert_eq!(controller.watch(), Watch::Running);
    }
    assert!(run(&mut queue, read(1)).is_ok());
    assert_eq!((controller.anomalies(), *rigging.resets.lock().unwrap()), (0, 1), "the first of all");
}

fn untaken_and_dropped_queues_hold_nothing_up<K: Kind>() {
    let (device, _) = K::device();
    let mut controller = K::open(device, 3);
    let buffer = memory(&controller, 4096);
    let dropped = take_queue(&mut controller);
    let mut kept = take_queue(&mut controller);
    drop(dropped);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Done), ResetProgress::Pending);
    assert!(ended(&mut kept).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    let mut late = take_queue(&mut controller);
    assert!(ended(&mut kept).is_empty());
    for queue in [&mut kept, &mut late] {
        assert!(run(queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
    }
}

/// A poller that works while its controller is reset again and again sees every command end exactly once.
fn resets_under_a_working_poller<K: Kind>() {
    let (mut controller, mut queue, _) = opened::<K>();
    let buffer = memory(&controller, 4096);
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
    assert_eq!((K::emulator(&controller).faults(), controller.anomalies()), (0, 0));
}

/// A controller with a read under way that the device keeps.
fn opened_with_a_read_held<K: Kind>(lba: u64) -> Opened<K> {
    let (controller, mut queue, rigging) = opened::<K>();
    let buffer = memory(&controller, 4096);
    K::hold(&rigging);
    queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
    queue.commit();
    (controller, queue, rigging)
}

fn a_device_that_does_not_follow_its_reset_is_reset_as_a_function<K: Kind>() {
    let (mut controller, mut queue, rigging) = opened_with_a_read_held::<K>(0);
    rigging.deaf.lock().unwrap().push(K::STOP);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    while *rigging.resets.lock().unwrap() < 2 {
        assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    }
    rigging.deaf.lock().unwrap().clear();
    K::behave(&rigging);
    assert_eq!(ended(&mut queue), [(1, DeviceStatus::ABORTED)]);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    assert!(rigging.bus_master.load(Ordering::Relaxed));
    assert!(ended(&mut queue).is_empty());
    let buffer = memory(&controller, 4096);
    assert!(run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
}

fn nothing_ends_when_nothing_proves_that_the_device_has_stopped<K: Kind>() {
    let (mut controller, mut queue, rigging) = opened_with_a_read_held::<K>(0);
    rigging.deaf.lock().unwrap().push(K::STOP);
    rigging.no_reset.store(true, Ordering::Relaxed);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Stuck);
    assert!(ended(&mut queue).is_empty());
    assert_eq!((queue.outstanding(), queue.state()), (1, QueueState::Down));
    let refused = controller.shut_down().unwrap_err().to_string();
    assert!(refused.contains("cannot be stopped"), "{refused}");
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.outstanding(), 1);
    // Later it comes to its senses.
    rigging.deaf.lock().unwrap().clear();
    K::behave(&rigging);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert_eq!(ended(&mut queue), [(1, DeviceStatus::ABORTED)]);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
}

fn the_memory_of_a_device_that_does_not_stop_stays_mapped<K: Kind>() {
    let (device, rigging) = K::device();
    let mapper = device.mapper();
    let controller = K::open(device, 1);
    let mapped = mapper.mappings();
    rigging.deaf.lock().unwrap().push(K::STOP);
    rigging.no_reset.store(true, Ordering::Relaxed);
    drop(controller);
    assert_eq!(mapper.mappings(), mapped);
}

fn a_device_that_is_gone<K: Kind>() {
    for reset_works in [true, false] {
        let (mut controller, mut queue, rigging) = opened_with_a_read_held::<K>(0);
        let buffer = memory(&controller, 4096);
        for lba in 1..3 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        queue.commit();
        K::emulator(&controller).power_cut(1);
        K::vanish(&rigging);
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
        assert!(controller.shut_down().is_ok());
    }
}

/// All ones in the status register alone is no proof of absence.
fn a_device_that_looks_gone_but_is_not<K: Kind>() {
    let (mut controller, mut queue, rigging) = opened_with_a_read_held::<K>(0);
    rigging.read_as(K::STATUS, u64::MAX);
    rigging.no_reset.store(true, Ordering::Relaxed);
    controller.begin_reset();
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Stuck);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.outstanding(), 1);
}

fn after_a_shutdown_queues_end_and_are_gone<K: Kind>() {
    let (mut controller, mut queue, _) = opened_with_a_read_held::<K>(7);
    controller.shut_down().unwrap();
    controller.shut_down().unwrap();
    drop(controller);
    assert_eq!(ended(&mut queue), [(7 << 20 | 1, DeviceStatus::ABORTED)]);
    assert_eq!(queue.state(), QueueState::Gone);
}
