//! A device that behaves.

use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, Segment, SubmitError};
use crate::hal::Iova;
use crate::nvme::{Controller, NvmeError, Options, Watch};
use crate::spec::nvme::{Status, StatusField, cq_head_doorbell, offset, sq_tail_doorbell};

const WRITE: Operation = Operation::Write { fua: false };

#[test]
fn opens_and_says_what_it_is() {
    for block in [512u32, 4096] {
        let (device, rigging) = rigged(block);
        let mut controller = Controller::open_with(device, &options(3)).unwrap();
        let identity = controller.identity();
        assert_eq!((identity.serial.as_str(), identity.namespace), ("EMU0", 1));
        assert!(identity.nqn.starts_with("nqn.") && !identity.model.is_empty());
        assert_eq!(controller.namespaces(), [1]);
        let geometry = *controller.geometry();
        assert_eq!(u64::from(geometry.block_size()) * geometry.blocks, BYTES);
        assert_eq!(u64::from(geometry.max_transfer_blocks) << geometry.block_shift, 512 << 10);
        assert!(
            geometry.write_zeroes && geometry.deallocate && geometry.compare && geometry.deallocate_zeroes
        );
        assert!(rigging.bus_master.load(Ordering::Relaxed));
        assert_eq!(controller.watch(), Watch::Running);
        assert!(controller.health().unwrap().available_spare > 0);
        let queues: Vec<_> = std::iter::from_fn(|| controller.take_queue()).collect();
        assert_eq!(queues.len(), 3);
        assert!(queues.iter().all(|queue| queue.state() == QueueState::Running));
    }
}

#[test]
fn its_health_and_its_latest_errors_are_what_happened() {
    let (mut controller, mut queue, _) = opened(512);
    assert!(controller.error_log().unwrap().is_empty());
    let buffer = memory(&controller, 4096);
    buffer.copy_in(0, &[1; 4096]);
    for _ in 0..2 {
        assert!(!run(&mut queue, command(Operation::Compare, 0, 8, buffer.iova(0))).is_ok());
    }
    assert!(run(&mut queue, command(WRITE, 0, 8, buffer.iova(0))).is_ok());
    let errors = controller.error_log().unwrap();
    assert_eq!(
        errors.iter().map(|error| (error.error_count.get(), error.sqid.get())).collect::<Vec<_>>(),
        [(2, 1), (1, 1)]
    );
    assert!(errors.iter().all(|error| StatusField(error.status.get()).status() == Status::COMPARE_FAILURE));
    let health = controller.health().unwrap();
    assert_eq!((health.composite_temperature.get(), health.available_spare), (300, 100));
    assert_eq!((health.error_log_entries.get(), health.host_write_commands.get()), (2, 1));
    assert_eq!(health.data_units_written.get(), 1);
}

#[test]
fn dropped_it_is_shut_down_and_unmapped() {
    let (device, rigging) = rigged(512);
    let (mapper, registers) = {
        use crate::hal::Device;
        (device.mapper(), device.registers())
    };
    let controller = Controller::open_with(device, &options(2)).unwrap();
    assert!(mapper.mappings() > 0);
    rigging.written(offset::CC);
    drop(controller);
    let written = rigging.written(offset::CC);
    assert_eq!(written.iter().map(|cc| (cc & 1, cc >> 14 & 3)).collect::<Vec<_>>(), [(1, 1), (0, 0)]);
    assert!(!rigging.bus_master.load(Ordering::Relaxed));
    assert_eq!(mapper.mappings(), 0);
    drop(registers);
}

#[test]
fn data_goes_where_it_should_at_any_offset_and_length() {
    for block in [512u32, 4096] {
        let (controller, mut queue, _) = opened(block);
        let most = controller.geometry().max_transfer_blocks;
        let size = (most * block) as usize;
        let (from, to) = (memory(&controller, size), memory(&controller, size));
        let pattern: Vec<u8> = (0..size).map(|i| ((i * 7 + i / 509) % 256).try_into().unwrap()).collect();
        for offset in [0usize, 4, 2048, 4092] {
            for blocks in [1, 2, 3, 7, 8, 9, 16, 17, 24, most - 1, most].into_iter().filter(|&n| n <= most) {
                let bytes = (blocks * block) as usize;
                from.copy_in(offset, &pattern[..bytes]);
                to.zero();
                assert!(run(&mut queue, command(WRITE, 3, blocks, from.iova(offset))).is_ok());
                assert!(run(&mut queue, command(Operation::Read, 3, blocks, to.iova(offset))).is_ok());
                let mut all = vec![0; to.len()];
                to.copy_out(0, &mut all);
                assert!(all[offset..offset + bytes] == pattern[..bytes], "{block} {offset} {blocks}");
                assert!(all[..offset].iter().chain(&all[offset + bytes..]).all(|&b| b == 0));
                let compared = run(&mut queue, command(Operation::Compare, 3, blocks, to.iova(offset)));
                assert!(compared.is_ok());
            }
        }
        assert_eq!(controller.device().emulator.faults(), 0);
        assert_eq!(controller.anomalies(), 0);
    }
}

#[test]
fn operations_without_data() {
    let (controller, mut queue, _) = opened(512);
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
    let compared = run(&mut queue, command(Operation::Compare, 9, 8, buffer.iova(0)));
    assert_eq!(compared, DeviceStatus::COMPARE_FAILURE);
    assert_eq!(controller.device().emulator.faults(), 0);
}

/// A deallocate that the device does not promise to zero goes by Dataset Management, from a list that it only reads.
#[test]
fn deallocates_by_range_list() {
    let (device, rigging) = rigged(512);
    *rigging.lies.data.lock().unwrap() = Some(|command, data| {
        if command.cdw10 & 0xff == 0 && data.len() == 4096 {
            data[33] = 1; // DLFEAT: zeros, but no deallocate bit for Write Zeroes
        }
    });
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    assert!(controller.geometry().deallocate && !controller.geometry().deallocate_zeroes);
    let buffer = memory(&controller, 4096);
    buffer.copy_in(0, &[0xaa; 2048]);
    assert!(run(&mut queue, command(WRITE, 100, 4, buffer.iova(0))).is_ok());
    *rigging.lies.verdict.lock().unwrap() = Some(|_, command| {
        assert_eq!((command.cdw0.opc(), command.cdw10, command.cdw11), (0x09, 0, 4));
        crate::emu::Verdict::Run
    });
    assert!(run(&mut queue, command(Operation::Deallocate, 101, 2, Iova(3))).is_ok());
    *rigging.lies.verdict.lock().unwrap() = None;
    assert!(run(&mut queue, command(Operation::Read, 100, 4, buffer.iova(0))).is_ok());
    let mut bytes = [0; 2048];
    buffer.copy_out(0, &mut bytes);
    assert!(bytes[512..1536].iter().all(|&b| b == 0));
    assert!(bytes[..512].iter().chain(&bytes[1536..]).all(|&b| b == 0xaa));
    assert_eq!(controller.device().emulator.faults(), 0);
}

#[test]
fn what_does_not_fit_never_reaches_the_device() {
    let (controller, mut queue, _) = opened(512);
    let geometry = *controller.geometry();
    let data = memory(&controller, 4096).iova(0);
    let (end, most) = (geometry.blocks, geometry.max_transfer_blocks);
    for (operation, lba, blocks, data) in [
        (Operation::Read, 0, 0, data),
        (Operation::Read, end, 1, data),
        (Operation::Read, end - 1, 2, data),
        (Operation::Read, u64::MAX, 1, data),
        (Operation::Read, 0, most + 1, data),
        (Operation::Read, 0, u32::MAX, data),
        (WRITE, 0, 1, Iova(data.0 + 2)),
        (WRITE, 0, 16, Iova(u64::MAX - 4095)),
        (Operation::Compare, 0, 1, Iova(1)),
        (Operation::Deallocate, 0, geometry.max_zeroes_blocks + 1, data),
        (Operation::WriteZeroes { deallocate: false }, end, 1, data),
    ] {
        assert_eq!(queue.submit(&command(operation, lba, blocks, data)), Err(SubmitError::Invalid));
    }
    queue.commit();
    assert_eq!((queue.outstanding(), controller.device().emulator.commands()), (0, 0));
}

#[test]
fn lists_that_do_not_fit_never_reach_the_device() {
    let (controller, mut queue, _) = opened(512);
    let most = controller.geometry().max_segments;
    assert_eq!(most, 32);
    let data = memory(&controller, 4096).iova(0);
    let segment = |bytes| Segment { data, bytes };
    for (blocks, segments) in [
        (most + 1, vec![segment(512); most as usize + 1]),
        (2, vec![segment(512)]),
        (1, vec![segment(512), segment(512)]),
        (1, vec![segment(256), segment(256)]),
        (1, vec![Segment { data: Iova(data.0 + 2), bytes: 512 }]),
        (0, vec![]),
    ] {
        let read = command(Operation::Read, 0, blocks, data);
        assert_eq!(queue.submit_scattered(&read, &segments), Err(SubmitError::Invalid), "{segments:?}");
    }
    queue.commit();
    assert_eq!((queue.outstanding(), controller.device().emulator.commands()), (0, 0));
}

/// All slots are taken by commands with the longest list, before the device reads any.
#[test]
fn each_command_has_its_list_to_itself() {
    let (controller, mut queue, _) = opened(512);
    let buffer = memory(&controller, 15 * 32 * 512);
    for lba in 0..15 * 32u64 {
        buffer.copy_in(0, &[u8::try_from(lba % 251).unwrap(); 512]);
        assert!(run(&mut queue, command(WRITE, lba, 1, buffer.iova(0))).is_ok());
    }
    for slot in 0..15 {
        // The blocks of each command end up in reverse.
        let segments: Vec<Segment> =
            (0..32).map(|n| Segment { data: buffer.iova((slot * 32 + 31 - n) * 512), bytes: 512 }).collect();
        let read = command(Operation::Read, slot as u64 * 32, 32, Iova(1));
        queue.submit_scattered(&read, &segments).unwrap();
    }
    queue.commit();
    let all = ended(&mut queue);
    assert!(all.len() == 15 && all.iter().all(|(_, status)| status.is_ok()));
    for at in 0..15 * 32usize {
        let mut block = [0; 512];
        buffer.copy_out(at * 512, &mut block);
        let lba = at / 32 * 32 + 31 - at % 32;
        assert_eq!(block, [u8::try_from(lba % 251).unwrap(); 512], "block {at}");
    }
    assert_eq!(controller.device().emulator.faults(), 0);
}

#[test]
fn a_device_without_scatter_lists_takes_one_segment() {
    let (device, rigging) = rigged(512);
    *rigging.lies.data.lock().unwrap() = Some(|command, data| {
        if command.cdw10 & 0xff == 1 && data.len() == 4096 {
            data[536] = 0; // SGLS
        }
    });
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 8192);
    buffer.copy_in(0, &[7; 8192]);
    assert_eq!(controller.geometry().max_segments, 1);
    *rigging.lies.verdict.lock().unwrap() = Some(|_, command| {
        assert_eq!(command.cdw0.psdt(), 0, "PRPs");
        crate::emu::Verdict::Run
    });
    let segment = |at, bytes| Segment { data: buffer.iova(at), bytes };
    let read = command(Operation::Read, 0, 4, Iova(1));
    let two = [segment(0, 1024), segment(4096, 1024)];
    assert_eq!(queue.submit_scattered(&read, &two), Err(SubmitError::Invalid));
    queue.submit_scattered(&read, &[segment(3072, 2048)]).unwrap();
    queue.commit();
    assert_eq!(ended(&mut queue), [(read.tag, DeviceStatus::OK)]);
    let mut bytes = [0; 8192];
    buffer.copy_out(0, &mut bytes);
    assert!(bytes[..3072].iter().chain(&bytes[5120..]).all(|&byte| byte == 7));
    assert!(bytes[3072..5120].iter().all(|&byte| byte == 0));
}

#[test]
fn full_then_empty_many_times_with_one_doorbell_each() {
    let (controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    for round in 0..40u64 {
        rigging.written(0);
        for lba in 0..15 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        assert_eq!(queue.submit(&command(Operation::Read, 0, 1, buffer.iova(0))), Err(SubmitError::Full));
        assert_eq!(queue.outstanding(), 15);
        queue.commit();
        queue.commit();
        assert_eq!(rigging.written(sq_tail_doorbell(1, 0)), [(round + 1) * 15 % 16]);
        let mut seen = Vec::new();
        assert_eq!(queue.poll(0, &mut |_| unreachable!()), 0);
        for _ in 0..4 {
            assert!(queue.poll(4, &mut |done| seen.push(done.tag >> 20)) <= 4);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..15).collect::<Vec<_>>());
        // Every fourth completion: a quarter of the queue at a time.
        let heads = rigging.written(cq_head_doorbell(1, 0));
        assert!((3..=4).contains(&heads.len()), "{heads:?}");
        assert!(ended(&mut queue).is_empty());
        assert!(rigging.writes.lock().unwrap().is_empty(), "no doorbell for nothing");
    }
    assert_eq!(controller.anomalies(), 0);
}

#[test]
fn queues_are_no_longer_than_the_controller_allows() {
    let (device, _) = rigged_with(512, 5);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 4096);
    for _ in 0..9 {
        for lba in 0..4 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        assert_eq!(queue.submit(&command(Operation::Read, 0, 1, buffer.iova(0))), Err(SubmitError::Full));
        queue.commit();
        assert_eq!(ended(&mut queue).len(), 4);
    }
    assert_eq!(controller.anomalies(), 0);
}

#[test]
fn queues_are_apart() {
    let (device, _) = rigged(512);
    let mut controller = Controller::open_with(device, &options(4)).unwrap();
    let buffer = memory(&controller, 4096);
    let mut queues: Vec<_> = std::iter::from_fn(|| controller.take_queue()).collect();
    for (lba, queue) in (10..).zip(&mut queues) {
        queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        queue.commit();
    }
    for (lba, queue) in (10u64..).zip(&mut queues) {
        assert_eq!(ended(queue), [(lba << 20 | 1, DeviceStatus::OK)]);
    }
}

#[test]
fn interrupts_make_the_descriptor_readable() {
    let (device, _) = rigged(512);
    let mut controller = Controller::open_with(device, &options(2)).unwrap();
    let buffer = memory(&controller, 4096);
    let mut first = controller.take_queue().unwrap();
    let second = controller.take_queue().unwrap();
    let readable = |queue: &crate::nvme::Queue<_>| {
        let fd = queue.interrupt_fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
    assert!(!readable(&first));
    first.arm_interrupt(true);
    first.submit(&command(Operation::Read, 0, 1, buffer.iova(0))).unwrap();
    assert!(!readable(&first));
    first.commit();
    assert!(readable(&first) && !readable(&second));
    rustix::io::read(first.interrupt_fd().unwrap(), &mut [0; 8]).unwrap();
    for armed in [false, true] {
        assert_eq!(ended(&mut first).len(), 1);
        first.arm_interrupt(armed);
        first.submit(&command(Operation::Read, 0, 1, buffer.iova(0))).unwrap();
        first.commit();
        assert_eq!(readable(&first), armed);
    }
    let (device, _) = rigged(512);
    let silent = Options { interrupts: false, ..options(1) };
    let mut controller = Controller::open_with(device, &silent).unwrap();
    assert!(controller.take_queue().unwrap().interrupt_fd().is_none());
}

#[test]
fn asks_for_more_than_there_is() {
    let (device, _) = rigged(512);
    let error = refusal(device, &options(5));
    assert!(matches!(error, NvmeError::Queues { asked: 5, granted: 4 }), "{error}");
    let (device, _) = rigged(512);
    let other = Options { namespace: Some(9), ..options(1) };
    let error = refusal(device, &other);
    assert_eq!(error.to_string(), "namespace 9 is not active; active are: [1]");
    for (queues, entries) in [(0, 16), (1, 1), (1, 4097)] {
        let (device, _) = rigged(512);
        let error = refusal(device, &Options { entries, ..options(queues) });
        assert!(matches!(error, NvmeError::Options(_)), "{error}");
    }
}
