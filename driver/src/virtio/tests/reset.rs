//! Failures and changes of a virtio block device. What holds of any controller is in `crate::tests::reset`.

use std::sync::atomic::Ordering;

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, ResetProgress, SubmitError, Watch};
use crate::spec::virtio::pci::common_cfg;
use crate::virtio::Controller;

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
