//! Namespaces that shrink, grow, change their format and vanish under the driver, and say so or not.
//!
//! Said or not, a command that does not fit the namespace any more ends with an error of the device. What was said is
//! looked at by [`Controller::watch`], the rest at the next reset: one that has grown is used as before, any other is
//! used no more.

use std::sync::Arc;

use super::rig::{Rigged, RiggedRegisters, command, ended, memory, opened, run};
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState, Segment, SubmitError};
use crate::dma::DmaBuffer;
use crate::nvme::{Controller, Queue, ResetProgress, Watch};
use crate::spec::nvme::Status;

const WRITE: Operation = Operation::Write { fua: false };
/// Blocks of 512 bytes of the device, and half of them.
const ALL: u64 = super::rig::BYTES >> 9;
const HALF: u64 = ALL / 2;
const GONE: DeviceStatus = DeviceStatus(Status::INVALID_NAMESPACE.0);

struct Bench {
    controller: Controller<Rigged>,
    queue: Queue<RiggedRegisters>,
    buffer: DmaBuffer,
}

impl Bench {
    fn new() -> Self {
        let (controller, queue, _) = opened(512);
        let buffer = memory(&controller, 64 << 10);
        Self { controller, queue, buffer }
    }

    fn change(&self, to: Option<(u64, u32)>, announce: bool) {
        self.controller.device().emulator.change_namespace(to, announce).unwrap();
    }

    fn read(&mut self, lba: u64, blocks: u32) -> DeviceStatus {
        let data = self.buffer.iova(0);
        run(&mut self.queue, command(Operation::Read, lba, blocks, data))
    }

    fn reset(&mut self) -> ResetProgress {
        self.controller.begin_reset();
        loop {
            let progress = self.controller.finish_reset();
            if progress != ResetProgress::Pending {
                ended(&mut self.queue);
                return progress;
            }
            ended(&mut self.queue);
        }
    }
}

#[test]
fn what_does_not_fit_any_more_is_refused_by_the_device_and_the_rest_goes_on() {
    let mut bench = Bench::new();
    assert!(bench.read(ALL - 8, 8).is_ok());
    bench.change(Some((HALF, 512)), false);
    assert!(bench.read(HALF - 8, 8).is_ok());
    for (lba, blocks) in [(HALF - 1, 2), (HALF, 1), (ALL - 1, 1)] {
        assert_eq!(bench.read(lba, blocks), DeviceStatus::LBA_OUT_OF_RANGE);
    }
    bench.change(None, false);
    assert_eq!(bench.read(0, 1), GONE);
    assert_eq!(bench.controller.watch(), Watch::Running, "nobody said anything");
    bench.change(Some((ALL, 512)), false);
    assert!(bench.read(ALL - 8, 8).is_ok());
    assert_eq!(bench.reset(), ResetProgress::Done);
}

#[test]
fn what_a_namespace_became_is_noticed_at_the_next_reset() {
    for to in [None, Some((HALF, 512)), Some((ALL - 1, 512)), Some((HALF / 4, 4096)), Some((ALL / 8, 4096))] {
        let mut bench = Bench::new();
        bench.change(to, false);
        assert_eq!(bench.reset(), ResetProgress::Gone, "{to:?}");
        assert_eq!((bench.controller.watch(), bench.queue.state()), (Watch::Gone, QueueState::Gone));
        let read = command(Operation::Read, 0, 1, bench.buffer.iova(0));
        assert_eq!(bench.queue.submit(&read), Err(SubmitError::Down));
    }
}

#[test]
fn what_a_namespace_became_is_noticed_when_the_device_says_so() {
    for to in [None, Some((HALF, 512)), Some((ALL - 1, 512)), Some((HALF / 4, 4096))] {
        let mut bench = Bench::new();
        // One under way meanwhile, one behind it.
        let read = command(Operation::Read, 1, 1, bench.buffer.iova(0));
        bench.queue.submit(&read).unwrap();
        bench.change(to, true);
        assert_eq!(bench.controller.watch(), Watch::Changed, "{to:?}");
        bench.controller.begin_reset();
        let mut all = Vec::new();
        while bench.controller.finish_reset() == ResetProgress::Pending {
            all.extend(ended(&mut bench.queue));
        }
        all.extend(ended(&mut bench.queue));
        assert_eq!(all, [(read.tag, DeviceStatus::ABORTED)]);
        assert_eq!((bench.controller.watch(), bench.queue.state()), (Watch::Gone, QueueState::Gone));
        assert_eq!(bench.controller.anomalies(), 0);
    }
}

/// Events are taken one after the other, and after a reset as before it.
#[test]
fn one_that_grows_is_used_as_before() {
    let (device, rigging) = super::rig::rigged(512);
    device.emulator.change_namespace(Some((HALF, 512)), false).unwrap();
    let mut controller = Controller::open_with(device, &super::rig::options(1)).unwrap();
    let queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 4096);
    drop(Arc::clone(&rigging));
    let mut bench = Bench { controller, queue, buffer };
    for round in 1..6 {
        bench.change(Some((HALF + round, 512)), true);
        assert_eq!(bench.controller.watch(), Watch::Running, "round {round}");
        assert!(bench.read(HALF - 8, 8).is_ok());
        let beyond = command(Operation::Read, HALF, 1, bench.buffer.iova(0));
        assert_eq!(bench.queue.submit(&beyond), Err(SubmitError::Invalid));
        if round % 2 == 0 {
            assert_eq!(bench.reset(), ResetProgress::Done);
        }
    }
    assert_eq!(bench.controller.geometry().blocks, HALF);
    bench.change(Some((HALF - 1, 512)), true);
    assert_eq!(bench.controller.watch(), Watch::Changed);
    assert_eq!((bench.reset(), bench.controller.anomalies()), (ResetProgress::Gone, 0));
}

/// A scatter list says how long the memory is, so that a device whose blocks became larger moves nothing.
#[test]
fn a_list_bounds_what_a_device_with_larger_blocks_moves() {
    let mut bench = Bench::new();
    bench.buffer.copy_in(0, &[0xee; 8192]);
    bench.change(Some((ALL / 8, 4096)), false);
    let data = |at| Segment { data: bench.buffer.iova(at), bytes: 512 };
    for segments in [vec![data(0)], vec![data(0), data(1024)]] {
        let blocks = u32::try_from(segments.len()).unwrap();
        let read = command(Operation::Read, 0, blocks, bench.buffer.iova(0));
        bench.queue.submit_scattered(&read, &segments).unwrap();
        bench.queue.commit();
        let status = DeviceStatus(Status::SGL_LENGTH_INVALID.0);
        assert_eq!(ended(&mut bench.queue), [(read.tag, status)]);
    }
    let mut bytes = [0; 8192];
    bench.buffer.copy_out(0, &mut bytes);
    assert_eq!(bytes, [0xee; 8192]);
}

/// Between and during I/O: a command succeeds exactly if it fits the namespace that there is when it runs.
#[test]
fn success_means_that_the_blocks_were_there() {
    let mut random = 7u64;
    let mut below = |limit: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % limit
    };
    let mut bench = Bench::new();
    let mut blocks = ALL;
    for _ in 0..3_000 {
        if below(4) == 0 {
            blocks = [0, 1, HALF, ALL - 1, ALL, 1 + below(ALL)][usize::try_from(below(6)).unwrap()];
            bench.change((blocks > 0).then_some((blocks, 512)), false);
        }
        let count = 1 + u32::try_from(below(16)).unwrap();
        let lba = below(ALL - u64::from(count));
        let operation = [Operation::Read, WRITE, Operation::WriteZeroes { deallocate: true }];
        let operation = operation[usize::try_from(below(3)).unwrap()];
        let data = bench.buffer.iova(0);
        let status = run(&mut bench.queue, command(operation, lba, count, data));
        let expected = match blocks {
            0 => GONE,
            blocks if lba + u64::from(count) > blocks => DeviceStatus::LBA_OUT_OF_RANGE,
            _ => DeviceStatus::OK,
        };
        assert_eq!(status, expected, "{operation:?} of {count} at {lba} of {blocks}");
    }
    assert_eq!(bench.controller.device().emulator.faults(), 0);
}
