//! A device that lies: an error, or a queue that stands still until a reset; never a panic, never a request that ends
//! although it is not over.

use std::collections::HashSet;

use proptest::prelude::*;

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, SubmitError, Watch};
use crate::emu::virtio::{Using, VirtioConfig};
use crate::spec::virtio::pci::common_cfg;
use crate::spec::virtio::{block, feature, status};
use crate::virtio::{Controller, VirtioError};

/// Where the emulated device has its capabilities and structures.
const NOTIFY_CAP: usize = 0x50;
const BLOCK: usize = 0x2000;

fn with_config(edit: impl Fn(&mut [u8; 256]) + Send + 'static) -> VirtioError {
    let (device, rigging) = rigged(512);
    *rigging.config.lock().unwrap() = Some(Box::new(edit));
    refusal(device)
}

#[test]
fn devices_of_other_kinds_are_refused_by_name() {
    assert!(matches!(
        with_config(|space| space[2..4].copy_from_slice(&[0x41, 0x10])),
        VirtioError::NotBlock { vendor: 0x1af4, device: 0x1041 }
    ));
    assert!(matches!(with_config(|space| space[0] = 0x86), VirtioError::NotBlock { .. }));
    let error = with_config(|space| space[2..4].copy_from_slice(&[0x01, 0x10]));
    assert!(matches!(error, VirtioError::Transitional));
    assert!(error.to_string().contains("disable-legacy=on"), "{error}");
    assert!(matches!(with_config(|space| space.fill(0xff)), VirtioError::Gone));
}

#[test]
fn capabilities_that_lead_nowhere_are_refused_with_the_reason() {
    let said = |edit: fn(&mut [u8; 256])| match with_config(edit) {
        error @ VirtioError::Capability { .. } => error.to_string(),
        other => panic!("{other}"),
    };
    assert!(said(|space| space[6] = 0).contains("no capability names it"));
    assert!(said(|space| space[0x34] = 0).contains("no capability names it"));
    assert!(said(|space| space[0x40] = 5).contains("common configuration"));
    assert!(said(|space| space[0x42] = 8).contains("has 8 bytes, not 16"));
    assert!(said(|space| space[NOTIFY_CAP + 2] = 16).contains("has 16 bytes, not 20"));
    assert!(said(|space| space[0x44] = 6).contains("BAR 6"));
    assert!(said(|space| space[0x44] = 0xff).contains("BAR 255"));
    assert!(said(|space| space[0x44] = 0).contains("which has 0x0"));
    assert!(said(|space| space[0x20] = 1).contains("none in memory"));
    assert!(said(|space| space[0x48] = 2).contains("0x2"));
    assert!(said(|space| space[0x48..0x4c].fill(0xfc)).contains("0xfcfcfcfc"));
    assert!(said(|space| space[0x4c] = 0x37).contains("0x37 bytes"));
    assert!(said(|space| space[0x4c..0x50].fill(0xff)).contains("0xffffffff"));
    // The notification of a queue outside of its structure, or between two registers.
    assert!(
        said(|space| space[NOTIFY_CAP + 12..NOTIFY_CAP + 16].copy_from_slice(&[1, 0, 0, 0])).contains("0x1")
    );
    // A chain of capabilities that leads back to itself.
    assert!(said(|space| (space[0x40], space[0x41]) = (5, 0x40)).contains("no capability"));
}

#[test]
fn notifications_lie_inside_their_structure() {
    let (device, rigging) = rigged(512);
    rigging.read_as(common_cfg::QUEUE_NOTIFY_OFF, 0x400);
    assert!(matches!(refusal(device), VirtioError::Capability { structure: "notification structure", .. }));
    let (device, rigging) = rigged(512);
    *rigging.config.lock().unwrap() =
        Some(Box::new(|space| space[NOTIFY_CAP + 16..NOTIFY_CAP + 20].fill(0xff)));
    rigging.read_as(common_cfg::QUEUE_NOTIFY_OFF, 0xffff);
    assert!(matches!(refusal(device), VirtioError::Capability { .. }));
    let (device, rigging) = rigged(512);
    *rigging.config.lock().unwrap() = Some(Box::new(|space| space[NOTIFY_CAP + 16] = 3));
    rigging.read_as(common_cfg::QUEUE_NOTIFY_OFF, 1);
    assert!(matches!(refusal(device), VirtioError::Capability { .. }));
}

#[test]
fn features_that_cannot_be_done_without() {
    for (bit, word) in [(feature::VERSION_1, "legacy"), (feature::ACCESS_PLATFORM, "iommu_platform=on")] {
        let (device, _) = rigged_as(VirtioConfig { without: bit, ..config(512) });
        let error = refusal(device);
        assert!(matches!(error, VirtioError::Feature { bit: missing, .. } if missing == bit));
        assert!(error.to_string().contains(word), "{error}");
    }
    let (device, rigging) = rigged(512);
    rigging.read_as(common_cfg::DEVICE_STATUS, 0);
    assert!(matches!(refusal(device), VirtioError::Refused { .. }));
}

#[test]
fn absurd_registers() {
    let opening = |at: usize, value: u64| {
        let (device, rigging) = rigged(512);
        rigging.read_as(at, value);
        refusal(device)
    };
    assert!(matches!(opening(common_cfg::DEVICE_STATUS, 1), VirtioError::Timeout { what: "its reset", .. }));
    assert!(matches!(opening(common_cfg::DEVICE_STATUS, 0xff), VirtioError::Timeout { .. }));
    assert!(matches!(opening(common_cfg::NUM_QUEUES, 0), VirtioError::Queues { asked: 1, granted: 0 }));
    for size in [0, 1, 3] {
        assert!(matches!(opening(common_cfg::QUEUE_SIZE, size), VirtioError::Unsupported(_)), "{size}");
    }
    assert!(matches!(opening(common_cfg::QUEUE_SIZE, 0xffff), VirtioError::Unsupported(_)));
    assert!(matches!(opening(common_cfg::QUEUE_ENABLE, 0), VirtioError::Unsupported(_)));
    assert!(matches!(opening(common_cfg::QUEUE_MSIX_VECTOR, 7), VirtioError::Unsupported(_)));
    let (device, rigging) = rigged(512);
    VirtioBlk::vanish(&rigging);
    assert!(matches!(refusal(device), VirtioError::Gone));
}

#[test]
fn absurd_configurations() {
    let opening = |at: usize, value: u64| {
        let (device, rigging) = rigged(512);
        rigging.read_as(BLOCK + at, value);
        Controller::open_with(device, &options(1)).map(|controller| *controller.geometry())
    };
    use block::config;
    for capacity in [0, u64::MAX, (i64::MAX as u64 >> 9) + 1] {
        assert!(matches!(opening(config::CAPACITY, capacity), Err(VirtioError::Unsupported(_))));
    }
    for block in [0, 1, 511, 1024, 8192, u64::from(u32::MAX)] {
        assert!(matches!(opening(config::BLK_SIZE, block), Err(VirtioError::Unsupported(_))), "{block}");
    }
    assert!(matches!(opening(config::SEG_MAX, 0), Err(VirtioError::Unsupported(_))));
    assert!(matches!(opening(config::NUM_QUEUES, 0), Err(VirtioError::Queues { .. })));
    let most = opening(config::SEG_MAX, u32::MAX.into()).unwrap();
    assert!(most.max_segments <= 32);
    // Limits of nothing: then the operation is not there.
    let none = opening(config::MAX_WRITE_ZEROES_SECTORS, 0).unwrap();
    assert!(!none.write_zeroes && !none.deallocate_zeroes && none.deallocate && none.max_zeroes_blocks > 0);
    assert!(!opening(config::MAX_WRITE_ZEROES_SEG, 0).unwrap().write_zeroes);
    // A device that does not say exactly that it may unmap does not.
    for unmap in [0, 2, 0xff] {
        let geometry = opening(config::WRITE_ZEROES_MAY_UNMAP, unmap).unwrap();
        assert!(geometry.write_zeroes && !geometry.deallocate_zeroes, "{unmap}");
    }
    let (device, rigging) = rigged_as(VirtioConfig { without: 0, ..config(512) });
    rigging.read_as(common_cfg::CONFIG_GENERATION, 3);
    assert!(Controller::open_with(device, &options(1)).is_ok());
}

#[test]
fn a_read_only_device_is_refused() {
    let (device, rigging) = rigged(512);
    // Whichever half is read: RO among the low bits, VERSION_1 and ACCESS_PLATFORM among the high ones.
    rigging.read_as(common_cfg::DEVICE_FEATURE, block::feature::RO | 3);
    assert!(matches!(refusal(device), VirtioError::Refused { .. } | VirtioError::ReadOnly));
}

/// The device lies about what it has used: nothing ends by it, nothing more ends at all, and a reset mends it.
fn lying(lie: fn(&mut Using)) {
    for without in [0, feature::RING_INDIRECT_DESC] {
        let (mut controller, mut queue, rigging) = opened_as(VirtioConfig { without, ..config(512) });
        let buffer = memory(&controller, 4096);
        let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
        assert!(run(&mut queue, read(1)).is_ok());
        rigging.lies.hold();
        queue.submit(&read(2)).unwrap();
        queue.commit();
        rigging.lies.behave();
        rigging.lies.forge(lie);
        queue.submit(&read(3)).unwrap();
        queue.commit();
        assert!(ended(&mut queue).is_empty(), "something ended by a lie");
        rigging.lies.behave();
        assert_eq!((queue.state(), controller.anomalies()), (QueueState::Down, 1));
        assert_eq!(queue.submit(&read(4)), Err(SubmitError::Down));
        assert_eq!(controller.watch(), Watch::Failed);
        // What the device says now is not believed any more.
        controller.device().emulator.release_held();
        assert!(ended(&mut queue).is_empty());
        let outstanding = queue.outstanding();
        assert_eq!(outstanding, 2, "neither of them is over");
        let all = reset(&mut controller, &mut queue);
        assert_eq!(all.len(), outstanding);
        assert!(all.iter().all(|(_, status)| *status == DeviceStatus::ABORTED));
        assert_eq!((queue.state(), controller.watch()), (QueueState::Running, Watch::Running));
        assert!(run(&mut queue, read(5)).is_ok());
        assert_eq!(controller.anomalies(), 1);
    }
}

#[test]
fn used_ids_that_nobody_has() {
    lying(|using| using.id ^= 0x8000);
    lying(|using| using.id ^= 0x1_0000);
    lying(|using| using.id ^= 0xffff_0000);
    lying(|using| using.id ^= 0xff);
    // Of a place that is free.
    lying(|using| using.id ^= 8);
}

#[test]
fn lengths_that_cannot_be() {
    lying(|using| using.len = 0);
    lying(|using| using.len = 512);
    lying(|using| using.len = 514);
    lying(|using| using.len = u32::MAX);
}

#[test]
fn a_status_that_was_not_written() {
    lying(|using| using.status = None);
    lying(|using| using.status = Some(0xff));
}

#[test]
fn an_index_that_jumps() {
    lying(|using| using.jump = 5);
    lying(|using| using.jump = 0x7fff);
    lying(|using| using.jump = 0xfff0);
}

#[test]
fn a_request_that_is_used_twice_ends_once() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    // With nothing else at the device the index goes too far.
    rigging.lies.forge(|using| using.copies = 2);
    queue.submit(&read(1)).unwrap();
    queue.commit();
    assert!(ended(&mut queue).is_empty());
    assert_eq!((queue.state(), controller.anomalies()), (QueueState::Down, 1));
    rigging.lies.behave();
    assert_eq!(reset(&mut controller, &mut queue), [(1 << 20 | 1, DeviceStatus::ABORTED)]);
    // With something else there it is the id that nobody has any more.
    rigging.lies.hold();
    queue.submit(&read(2)).unwrap();
    queue.commit();
    rigging.lies.behave();
    rigging.lies.forge(|using| using.copies = 2);
    queue.submit(&read(3)).unwrap();
    queue.commit();
    assert_eq!(ended(&mut queue), [(3 << 20 | 1, DeviceStatus::OK)]);
    assert_eq!((queue.state(), controller.anomalies()), (QueueState::Down, 2));
    rigging.lies.behave();
    assert_eq!(reset(&mut controller, &mut queue), [(2 << 20 | 1, DeviceStatus::ABORTED)]);
    assert!(run(&mut queue, read(4)).is_ok());
}

/// A request that the device was not told of yet cannot be over: were it believed, its place would be taken again while
/// its chain still stands in the ring.
#[test]
fn what_was_not_announced_cannot_be_over() {
    let (controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    rigging.lies.hold();
    queue.submit(&read(1)).unwrap();
    queue.commit();
    queue.submit(&read(2)).unwrap(); // in place 1
    rigging.lies.behave();
    // All that it writes would do for a request that it was told of.
    queue.memory().parts().1.store8(192 + 1, block::status::OK);
    rigging.lies.forge(|using| using.id = 1);
    controller.device().emulator.release_held();
    assert!(ended(&mut queue).is_empty());
    assert_eq!((queue.state(), queue.outstanding(), controller.anomalies()), (QueueState::Down, 2, 1));
}

#[test]
fn a_request_that_is_lost_costs_itself_and_a_reset() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    rigging.lies.forge(|using| using.copies = 0);
    queue.submit(&read(1)).unwrap();
    queue.commit();
    rigging.lies.behave();
    assert!(ended(&mut queue).is_empty());
    assert!(run(&mut queue, read(2)).is_ok(), "the queue goes on");
    assert_eq!((queue.outstanding(), controller.anomalies()), (1, 0));
    assert_eq!(reset(&mut controller, &mut queue), [(1 << 20 | 1, DeviceStatus::ABORTED)]);
}

#[test]
fn lies_about_when_to_notify_cost_the_device_time_and_nobody_else() {
    let lies: [fn(u16) -> u16; 5] = [
        |event| event.wrapping_sub(1),
        |event| event.wrapping_add(1),
        |_| u16::MAX,
        |_| 0x8000,
        |event| event.wrapping_mul(0x9e37),
    ];
    for lie in lies {
        let (mut controller, mut queue, rigging) = opened(512);
        let buffer = memory(&controller, 16 * 512);
        *rigging.lies.event.lock().unwrap() = Some(lie);
        for round in 0..60u64 {
            let count = 1 + round % 15;
            let rung = queue.doorbells();
            for tag in 0..count {
                let at = usize::try_from(tag).unwrap() * 512;
                queue.submit(&command(Operation::Read, tag, 1, buffer.iova(at))).unwrap();
            }
            queue.commit();
            let over: usize = (0..2500).map(|_| ended(&mut queue).len()).sum();
            assert_eq!(over as u64, count, "all end within a bounded number of polls");
            assert!(queue.doorbells() - rung <= 4, "no storm of notifications");
        }
        assert!(reset(&mut controller, &mut queue).is_empty());
        assert_eq!(controller.anomalies(), 0);
    }
}

/// The device has the used ring to itself: whatever it writes there, each request ends at most once, and none that was not
/// submitted.
fn any_used_ring(words: &[(u16, u32, u32, u8)]) {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    rigging.lies.hold();
    let mut open = HashSet::new();
    let memory = queue.memory();
    let mut index = 0u32;
    for (round, (step, id, len, status)) in (1u64..).zip(words) {
        let read = command(Operation::Read, round, 1, buffer.iova(0));
        if queue.submit(&read).is_ok() {
            open.insert(read.tag);
        }
        queue.commit();
        let (ours, theirs) = memory.parts();
        assert!(ours.len() > 0);
        let entry = 4 + (index as usize & 15) * 8;
        theirs.store32(entry, *id);
        theirs.store32(entry + 4, *len);
        for place in 0..16 {
            theirs.store8(192 + place, *status);
        }
        index = index.wrapping_add(u32::from(*step)) & 0xffff;
        theirs.store32(0, index << 16);
        for (tag, _) in ended(&mut queue) {
            assert!(open.remove(&tag), "{tag} ended twice");
        }
        assert_eq!(queue.outstanding(), open.len());
    }
    rigging.lies.behave();
    for (tag, _) in reset(&mut controller, &mut queue) {
        assert!(open.remove(&tag), "{tag} ended twice");
    }
    assert!(open.is_empty() && queue.state() == QueueState::Running);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_in_the_used_ring(
        words in proptest::collection::vec(
            (
                prop_oneof![4 => Just(1u16), 1 => Just(0), 1 => any::<u16>()],
                prop_oneof![4 => 0u32..16, 1 => any::<u32>()],
                prop_oneof![4 => Just(513u32), 1 => any::<u32>()],
                prop_oneof![4 => Just(0u8), 1 => any::<u8>()],
            ),
            1..40,
        ),
    ) {
        any_used_ring(&words);
    }

    /// Nothing that a configuration space says panics.
    #[test]
    fn any_configuration_space(
        edits in proptest::collection::vec((0x34usize..0x90, any::<u8>()), 1..6),
        off in any::<u16>(),
    ) {
        let (device, rigging) = rigged(512);
        *rigging.config.lock().unwrap() =
            Some(Box::new(move |space| edits.iter().for_each(|(at, byte)| space[*at] = *byte)));
        if off % 2 == 1 {
            rigging.read_as(common_cfg::QUEUE_NOTIFY_OFF, off.into());
        }
        _ = Controller::open_with(device, &crate::virtio::Options {
            patience: std::time::Duration::from_millis(5),
            ..options(1)
        });
    }
}

#[test]
fn a_status_that_asks_for_a_reset_is_seen() {
    let (mut controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    controller.device().emulator.break_down();
    assert_eq!(controller.watch(), Watch::Failed);
    assert!(reset(&mut controller, &mut queue).is_empty());
    assert_eq!(controller.watch(), Watch::Running);
    // It stopped on its own.
    rigging.read_as(common_cfg::DEVICE_STATUS, 0);
    assert_eq!(controller.watch(), Watch::Failed);
    rigging.read_as(common_cfg::DEVICE_STATUS, u64::from(status::FAILED | status::DRIVER_OK));
    assert_eq!(controller.watch(), Watch::Failed);
    rigging.read_true();
    assert!(reset(&mut controller, &mut queue).is_empty());
    assert!(run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0))).is_ok());
}
