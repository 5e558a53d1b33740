//! Failures and changes of an NVMe controller. What holds of any controller is in `crate::tests::reset`.

use std::sync::atomic::Ordering;

use super::rig::*;
use crate::block::{BlockQueue, Operation, QueueState};
use crate::hal::{Device, Registers};
use crate::nvme::{NvmeError, ResetProgress, Watch};
use crate::spec::nvme::{Csts, offset};

#[test]
fn a_fatal_status_is_seen_and_mended() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let mut csts = Csts(1);
    csts.set_cfs(true);
    rigging.read_as(offset::CSTS, u64::from(csts.0));
    assert_eq!(controller.watch(), Watch::Failed);
    rigging.read_as(offset::CSTS, 0);
    assert_eq!(controller.watch(), Watch::Failed, "it stopped on its own");
    controller.begin_reset();
    rigging.read_true();
    assert!(ended(&mut queue).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Done), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    assert!(ended(&mut queue).is_empty());
    assert!(run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
}

#[test]
fn a_controller_that_does_not_come_back_is_tried_twice() {
    let (mut controller, mut queue, rigging) = opened(512);
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    rigging.deaf.lock().unwrap().push(offset::CC);
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Gone);
    assert_eq!(*rigging.resets.lock().unwrap(), 2);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Gone);
}

#[test]
fn another_device_after_a_reset_is_refused() {
    let (mut controller, mut queue, rigging) = opened(512);
    *rigging.lies.data.lock().unwrap() = Some(|command, data| {
        if command.cdw10 & 0xff == 0 && data.len() == 4096 {
            data[1] -= 1; // NSZE
        }
    });
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Gone);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Gone);
    assert!(!rigging.bus_master.load(Ordering::Relaxed));
}

/// An admin command that was never answered leaves its page to the device until a reset.
#[test]
fn a_lost_admin_completion_needs_a_reset() {
    let (mut controller, mut queue, rigging) = opened(512);
    *rigging.lies.posting.lock().unwrap() = Some(|posting| posting.copies = 0);
    assert!(matches!(controller.health(), Err(NvmeError::Timeout { .. })));
    *rigging.lies.posting.lock().unwrap() = None;
    assert!(matches!(controller.health(), Err(NvmeError::NotRunning)));
    controller.begin_reset();
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    controller.health().unwrap();
    assert_eq!(controller.device().registers().read32(offset::CSTS) & 1, 1);
}

#[test]
fn what_needs_the_admin_queue_is_refused_while_it_does_not_run() {
    let (mut controller, mut queue, _) = opened(512);
    controller.begin_reset();
    assert!(matches!(controller.health(), Err(NvmeError::NotRunning)));
    assert_eq!(controller.finish_reset(), ResetProgress::Pending);
    assert!(ended(&mut queue).is_empty());
    assert_eq!(finish(&mut controller, ResetProgress::Pending), ResetProgress::Done);
    controller.health().unwrap();
    controller.shutdown().unwrap();
    assert!(matches!(controller.health(), Err(NvmeError::NotRunning)));
}
