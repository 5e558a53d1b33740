//! A device that lies: an error or a counted anomaly, never a panic, never a command ended that is not over.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, SubmitError};
use crate::emu::{Posting, Verdict};
use crate::hal::{Iova, Registers};
use crate::lifecycle::{Phase, Shared};
use crate::null::NullMapper;
use crate::nvme::doorbell::ShadowDoorbells;
use crate::nvme::identity::Traits;
use crate::nvme::queue::{Queue, QueueMemory, QueueParts};
use crate::nvme::{Controller, NvmeError};
use crate::spec::nvme::{Cap, IdentifyController, IdentifyNamespace, Sqe, Status, offset};

fn opening_with_cap(change: fn(&mut Cap)) -> NvmeError {
    let (device, rigging) = rigged(512);
    let mut cap = Cap(rigging.reads.lock().unwrap()[&offset::CAP]);
    change(&mut cap);
    rigging.read_as(offset::CAP, cap.0);
    refusal(device, &options(2))
}

#[test]
fn absurd_registers() {
    assert!(matches!(opening_with_cap(|cap| cap.0 = u64::MAX), NvmeError::Gone));
    assert!(matches!(opening_with_cap(|cap| cap.0 = 0), NvmeError::Unsupported(_)));
    assert!(matches!(opening_with_cap(|cap| cap.set_mpsmin(15)), NvmeError::Unsupported(_)));
    let error = opening_with_cap(|cap| cap.set_dstrd(15));
    // The admin doorbell alone is far beyond the BAR.
    assert!(matches!(error, NvmeError::Unsupported(_)), "{error}");
    let (device, rigging) = rigged(512);
    rigging.read_as(offset::CSTS, 0x2);
    assert!(matches!(refusal(device, &options(1)), NvmeError::Fatal));
    let (device, rigging) = rigged(512);
    rigging.read_as(offset::CSTS, 0);
    assert!(matches!(refusal(device, &options(1)), NvmeError::Timeout { what: "enabling", .. }));
    let (device, rigging) = rigged(512);
    rigging.read_as(offset::CSTS, 1);
    assert!(matches!(refusal(device, &options(1)), NvmeError::Timeout { what: "disabling", .. }));
    let (device, rigging) = rigged(512);
    rigging.no_reset.store(true, Ordering::Relaxed);
    assert!(matches!(refusal(device, &options(1)), NvmeError::Os { .. }));
}

#[test]
fn absurd_answers_to_admin_commands() {
    let changes: [fn(&Sqe, &mut [u8]); 4] = [
        |_, data| data.fill(0),
        |_, data| data.fill(0xff),
        |_, data| data.fill(0x55),
        |_, data| data.reverse(),
    ];
    for change in changes {
        let (device, rigging) = rigged(512);
        *rigging.lies.data.lock().unwrap() = Some(change);
        let error = refusal(device, &options(1));
        assert!(matches!(error, NvmeError::Unsupported(_) | NvmeError::NoNamespace { .. }), "{error}");
    }
    let (device, rigging) = rigged(512);
    *rigging.lies.verdict.lock().unwrap() = Some(|_, command| match command.cdw0.opc() {
        1 => Verdict::Fail(Status::INVALID_QUEUE_SIZE),
        _ => Verdict::Run,
    });
    let error = refusal(device, &options(1));
    assert_eq!(error.to_string(), "Create I/O Submission Queue failed: sct 1h sc 02h");
    // The number of queues is nonsense in both directions.
    for (result, granted) in [(0u32, Some(1)), (u32::MAX, None)] {
        let (device, rigging) = rigged(512);
        *rigging.lies.posting.lock().unwrap() = Some(match result {
            0 => |posting: &mut Posting| posting.entry.dw0 = 0,
            _ => |posting: &mut Posting| posting.entry.dw0 = u32::MAX,
        });
        match (Controller::open_with(device, &options(2)).map(|_| ()), granted) {
            (Err(NvmeError::Queues { asked: 2, granted: 1 }), Some(1)) | (Ok(()), None) => {}
            (other, _) => panic!("{other:?}"),
        }
    }
}

fn lying_completion(lie: fn(&mut Posting)) {
    let (controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    let read = |lba| command(Operation::Read, lba, 1, buffer.iova(0));
    *rigging.lies.posting.lock().unwrap() = Some(lie);
    queue.submit(&read(1)).unwrap();
    queue.commit();
    assert!(ended(&mut queue).is_empty());
    assert_eq!((queue.outstanding(), controller.anomalies()), (1, 1));
    *rigging.lies.posting.lock().unwrap() = None;
    assert!(run(&mut queue, read(2)).is_ok(), "the queue goes on");
    assert_eq!(queue.outstanding(), 1, "the first is not over for all that");
}

#[test]
fn forged_completions_are_counted_and_end_nothing() {
    lying_completion(|posting| posting.entry.cid ^= 0x8000);
    lying_completion(|posting| posting.entry.cid = 0xffff);
    lying_completion(|posting| posting.entry.cid ^= 1);
    lying_completion(|posting| posting.entry.sqid = 2);
    lying_completion(|posting| posting.entry.sqid = 0);
    lying_completion(|posting| posting.entry.sqhd = 16);
    lying_completion(|posting| posting.entry.sqhd = 0xffff);
}

#[test]
fn doubled_completions_end_a_command_once() {
    let (controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    *rigging.lies.posting.lock().unwrap() = Some(|posting| posting.copies = 2);
    for lba in 0..20 {
        assert!(run(&mut queue, command(Operation::Read, lba, 1, buffer.iova(0))).is_ok());
    }
    assert_eq!((controller.anomalies(), queue.outstanding()), (20, 0));
}

#[test]
fn status_of_the_device_comes_through() {
    let (controller, mut queue, rigging) = opened(512);
    let buffer = memory(&controller, 4096);
    *rigging.lies.verdict.lock().unwrap() = Some(|_, _| Verdict::Fail(Status::UNRECOVERED_READ_ERROR));
    let status = run(&mut queue, command(Operation::Read, 0, 1, buffer.iova(0)));
    assert_eq!(status, DeviceStatus::READ_ERROR);
}

/// Registers that remember nothing.
struct Mute(AtomicU64);

impl Registers for Mute {
    fn len(&self) -> usize {
        0x2000
    }
    fn read32(&self, _: usize) -> u32 {
        panic!("a register is read on the fast path");
    }
    fn read64(&self, _: usize) -> u64 {
        panic!("a register is read on the fast path");
    }
    fn write32(&self, offset: usize, _: u32) {
        assert!(offset == 0x1008 || offset == 0x100c);
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn write64(&self, _: usize, _: u64) {
        unreachable!();
    }
}

fn bare_queue(entries: u16) -> (Queue<Mute>, Arc<QueueMemory>, Arc<Shared>) {
    bare_queue_on(Mute(AtomicU64::new(0)), entries, None)
}

/// A queue without a controller, of which the test is the device.
pub(super) fn bare_queue_on<R: Registers>(
    registers: R,
    entries: u16,
    shadows: Option<Arc<ShadowDoorbells>>,
) -> (Queue<R>, Arc<QueueMemory>, Arc<Shared>) {
    let mut ns = [0u8; 4096];
    (ns[1], ns[130]) = (4, 9);
    let ns = IdentifyNamespace::read_from_bytes(&ns).unwrap();
    let id = IdentifyController::read_from_bytes(&[0u8; 4096]).unwrap();
    let traits = Traits::new(&id, None, 1, &ns).unwrap();
    let memory = Arc::new(QueueMemory::new(&NullMapper::default(), entries, &traits.geometry).unwrap());
    let shared = Arc::new(Shared::new(1));
    shared.set(Phase::Running, 0);
    let queue = Queue::new(QueueParts {
        registers: Arc::new(registers),
        shared: Arc::clone(&shared),
        memory: Arc::clone(&memory),
        traits,
        nsid: 1,
        qid: 1,
        entries,
        dstrd: 0,
        shadows,
        interrupt: None,
    });
    (queue, memory, shared)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit,
    Commit,
    Poll(usize),
    Junk(u16, u64),
    Answer(u16, bool),
    Stop,
    Resume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Submit),
        1 => Just(Step::Commit),
        3 => (0usize..6).prop_map(Step::Poll),
        2 => (any::<u16>(), any::<u64>()).prop_map(|(at, word)| Step::Junk(at, word)),
        4 => (any::<u16>(), any::<bool>()).prop_map(|(pick, phase)| Step::Answer(pick, phase)),
        1 => Just(Step::Stop),
        1 => Just(Step::Resume),
    ]
}

proptest! {
    /// The device writes what it likes into the completion queue: each command ends at most once, all end at the stop.
    #[test]
    fn any_completion_queue(entries in 2u16..12, steps in proptest::collection::vec(step(), 1..150)) {
        let (mut queue, memory, shared) = bare_queue(entries);
        let (mut open, mut next, mut epoch) = (HashSet::new(), 0u64, 0u64);
        let mut at = 0u16;
        for step in steps {
            match step {
                Step::Submit => {
                    let mut read = command(Operation::Read, 0, 1, Iova(4096));
                    read.tag = next;
                    match queue.submit(&read) {
                        Ok(()) => {
                            prop_assert!(open.insert(next));
                            next += 1;
                        }
                        Err(SubmitError::Full) => prop_assert_eq!(open.len(), usize::from(entries) - 1),
                        Err(error) => prop_assert_eq!(error, SubmitError::Down),
                    }
                }
                Step::Commit => queue.commit(),
                Step::Poll(budget) => {
                    let mut twice = false;
                    let count = queue.poll(budget, &mut |done| twice |= !open.remove(&done.tag));
                    prop_assert!(count <= budget && !twice);
                }
                Step::Junk(place, word) => {
                    memory.completions.store64(usize::from(place % (entries * 2)) * 8, word);
                }
                // As good a guess as a device can make: a command id that is or was in use.
                Step::Answer(pick, phase) => {
                    let sqe = memory.submissions.load64(usize::from(pick % entries) * 64, Ordering::Relaxed);
                    let word = 1 << 16 | (sqe >> 16 & 0xffff) << 32 | u64::from(phase) << 48;
                    memory.completions.store64(usize::from(at % entries) * 16 + 8, word);
                    at += 1;
                }
                Step::Stop => {
                    epoch += 1;
                    shared.set(Phase::Stopped, epoch);
                }
                Step::Resume if shared.all_clean(epoch) => shared.set(Phase::Running, epoch),
                Step::Resume => {}
            }
            prop_assert_eq!(queue.outstanding(), open.len());
        }
        shared.set(Phase::Stopped, epoch + 1);
        let mut twice = false;
        queue.poll(usize::MAX, &mut |done| twice |= !open.remove(&done.tag));
        prop_assert!(!twice && open.is_empty() && shared.all_clean(epoch + 1));
    }
}
