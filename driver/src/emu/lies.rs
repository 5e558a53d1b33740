//! The driver on devices with faults put on: it keeps its promises, or says that it cannot.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::*;
use crate::block::{BlockQueue, Command, DeviceStatus, Operation, QueueState};
use crate::hal::{DmaAccess, Iova, Mapping, Registers};
use crate::nvme::{Controller as Driver, NvmeError, Options, Queue, ResetProgress, Watch};
use crate::spec::nvme::{Csts, Status, admin, cns};

const BLOCK: usize = 512;

struct Memory {
    mapping: Box<dyn Mapping>,
    pages: Arc<Pages>,
}

impl Memory {
    fn new(mapper: &dyn Mapper) -> Self {
        let pages = Pages::populated(65_536).unwrap();
        pages.span().write(&[0xa5; 65_536]);
        Self { mapping: mapper.map(pages.clone(), DmaAccess::ReadWrite).unwrap(), pages }
    }

    fn at(&self, offset: u64) -> Iova {
        Iova(self.mapping.iova().0 + offset)
    }

    fn byte(&self, offset: usize) -> u8 {
        let mut byte = [0];
        self.pages.span().part(offset, 1).unwrap().read(&mut byte);
        byte[0]
    }
}

fn emulator(faults: &Arc<Faults>) -> Emulator {
    let config = EmuConfig { queues: 2, ..EmuConfig::new(Arc::new(RamMedia::new(1 << 20).unwrap())) };
    Emulator::new(EmuConfig { interposer: Some(faults.clone()), ..config }).unwrap()
}

fn options() -> Options {
    Options { entries: 32, admin_timeout: Duration::from_millis(50), ..Options::new(1) }
}

fn open<D: Device>(device: D) -> (Driver<D>, Queue<D::Registers>) {
    let mut driver = Driver::open_with(device, &options()).unwrap();
    let queue = driver.take_queue().unwrap();
    (driver, queue)
}

fn read(lba: u64, data: Iova, tag: u64) -> Command {
    Command { operation: Operation::Read, lba, blocks: 1, data, tag }
}

fn submit<R: Registers>(queue: &mut Queue<R>, commands: impl IntoIterator<Item = Command>) {
    commands.into_iter().for_each(|command| queue.submit(&command).unwrap());
    queue.commit();
}

fn poll<R: Registers>(queue: &mut Queue<R>) -> Vec<(u64, DeviceStatus)> {
    let mut ended = Vec::new();
    queue.poll(usize::MAX, &mut |completed| {
        ended.push((completed.tag, completed.status));
    });
    ended
}

/// Resets, and returns what ended meanwhile.
fn reset<D: Device>(driver: &mut Driver<D>, queue: &mut Queue<D::Registers>) -> Vec<(u64, DeviceStatus)> {
    driver.begin_reset();
    let mut ended = Vec::new();
    while driver.finish_reset() == ResetProgress::Pending {
        ended.extend(poll(queue));
    }
    ended.extend(poll(queue));
    ended
}

#[test]
fn every_lie_about_a_completion_costs_at_most_its_own_command() {
    for lie in Lie::ALL {
        let faults = Faults::new(7);
        let (mut driver, mut queue) = open(emulator(&faults));
        let memory = Memory::new(&*driver.mapper());
        faults.lie_next(lie);
        submit(&mut queue, (0..8).map(|tag| read(tag, memory.at(tag * 4096), tag)));
        let mut tags = HashSet::new();
        let mut ended = poll(&mut queue);
        for &(tag, status) in &ended {
            assert!(tags.insert(tag), "{lie:?}: {tag} twice");
            assert_eq!(status.is_ok(), lie != Lie::WrongStatus || tag != 0, "{lie:?}");
        }
        match lie {
            // The device posts the rest behind an entry that never becomes valid: nothing is seen.
            Lie::WrongPhase => assert!(ended.is_empty()),
            Lie::Twice | Lie::WrongStatus => assert_eq!(ended.len(), 8, "{lie:?}"),
            Lie::Lost | Lie::WrongCommand | Lie::WrongQueue => assert!(!tags.contains(&0), "{lie:?}"),
        }
        let anomalies = u64::from(matches!(lie, Lie::Twice | Lie::WrongCommand | Lie::WrongQueue));
        assert_eq!(driver.anomalies(), anomalies, "{lie:?}");
        // A reset settles what is left, once, and all is well again.
        let before = ended.len();
        ended.extend(reset(&mut driver, &mut queue));
        assert!(
            ended[before..].iter().all(|&(tag, status)| status == DeviceStatus::ABORTED && tags.insert(tag))
        );
        assert_eq!((ended.len(), queue.state()), (8, QueueState::Running), "{lie:?}");
        submit(&mut queue, [read(0, memory.at(0), 9)]);
        assert_eq!(poll(&mut queue), [(9, DeviceStatus::OK)]);
    }
}

#[test]
fn seeded_lies_replay() {
    let run = |seed| {
        let faults = Faults::new(seed);
        let (mut driver, mut queue) = open(emulator(&faults));
        let memory = Memory::new(&*driver.mapper());
        faults.lie_often(Lie::Lost, 200);
        faults.lie_often(Lie::WrongStatus, 200);
        let mut story = Vec::new();
        for round in 0..40 {
            submit(&mut queue, (0..4).map(|tag| read(tag, memory.at(0), round * 4 + tag)));
            story.extend(poll(&mut queue));
            if queue.outstanding() > 16 {
                story.extend(reset(&mut driver, &mut queue));
            }
        }
        story
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn held_commands_end_by_a_reset_and_never_touch_memory_again() {
    let faults = Faults::new(0);
    let device = Faulty::new(emulator(&faults));
    let (mut driver, mut queue) = open(device);
    let memory = Memory::new(&*driver.mapper());
    faults.hold();
    submit(&mut queue, (0..4).map(|tag| read(tag, memory.at(tag * 512), tag)));
    assert_eq!((poll(&mut queue).len(), driver.device().under().held()), (0, 4));
    driver.begin_reset();
    let mut ended = poll(&mut queue);
    assert!(ended.is_empty(), "nothing ends before the controller has stopped");
    while driver.finish_reset() == ResetProgress::Pending {
        ended.extend(poll(&mut queue));
    }
    assert_eq!(ended.len(), 4);
    assert!(ended.iter().all(|&(_, status)| status == DeviceStatus::ABORTED));
    assert_eq!(faults.release(driver.device().under()), 0, "none is left to run");
    assert_eq!(memory.byte(0), 0xa5);
}

#[test]
fn held_commands_run_when_released() {
    let faults = Faults::new(0);
    let device = Faulty::new(emulator(&faults));
    let (driver, mut queue) = open(device);
    let memory = Memory::new(&*driver.mapper());
    faults.hold();
    submit(&mut queue, [read(0, memory.at(0), 1)]);
    assert!(poll(&mut queue).is_empty());
    assert_eq!(faults.release(driver.device().under()), 1);
    assert_eq!((poll(&mut queue), memory.byte(0)), (vec![(1, DeviceStatus::OK)], 0));
}

#[test]
fn an_interrupt_wakes_who_armed_it_and_nobody_else_pays() {
    let faults = Faults::new(0);
    let device = Faulty::new(emulator(&faults));
    let (driver, mut queue) = open(device);
    let memory = Memory::new(&*driver.mapper());
    let fd = queue.interrupt_fd().unwrap().try_clone_to_owned().unwrap();
    let signalled = || rustix::io::read(&fd, &mut [0; 8]).is_ok();
    submit(&mut queue, [read(0, memory.at(0), 1)]);
    assert_eq!((poll(&mut queue).len(), signalled()), (1, false), "polling");
    faults.hold();
    submit(&mut queue, [read(0, memory.at(0), 2)]);
    queue.arm_interrupt(true);
    assert!(poll(&mut queue).is_empty() && !signalled());
    faults.release(driver.device().under());
    assert!(signalled(), "asleep");
    queue.arm_interrupt(false);
    assert_eq!(poll(&mut queue).len(), 1);
}

#[test]
fn media_errors_come_through_and_change_nothing() {
    let media = Arc::new(FaultyMedia::new(RamMedia::new(1 << 20).unwrap()));
    let (driver, mut queue) = open(Emulator::new(EmuConfig::new(media.clone())).unwrap());
    let memory = Memory::new(&*driver.mapper());
    let block = |n: u64| n * BLOCK as u64..(n + 1) * BLOCK as u64;
    media.fail_reads(block(5));
    media.fail_writes(block(6));
    let write =
        |lba, tag| Command { operation: Operation::Write { fua: false }, ..read(lba, memory.at(0), tag) };
    let zeroes =
        Command { operation: Operation::WriteZeroes { deallocate: false }, ..read(6, memory.at(0), 4) };
    let both = Command { blocks: 2, ..read(4, memory.at(4096), 5) };
    submit(
        &mut queue,
        [read(5, memory.at(512), 0), read(4, memory.at(1024), 1), write(5, 2), write(6, 3), zeroes, both],
    );
    let statuses: Vec<DeviceStatus> = poll(&mut queue).into_iter().map(|(_, status)| status).collect();
    let (bad_read, bad_write) = (DeviceStatus::READ_ERROR, DeviceStatus::WRITE_FAULT);
    assert_eq!(statuses, [bad_read, DeviceStatus::OK, DeviceStatus::OK, bad_write, bad_write, bad_read]);
    assert_eq!((memory.byte(512), memory.byte(1024), memory.byte(4096)), (0xa5, 0, 0xa5));
    media.heal();
    submit(&mut queue, [read(5, memory.at(512), 0), read(6, memory.at(1024), 1)]);
    assert!(poll(&mut queue).iter().all(|&(_, status)| status.is_ok()));
    assert_eq!((memory.byte(512), memory.byte(1024)), (0xa5, 0), "written, and not written");
}

#[test]
fn commands_can_be_made_to_fail() {
    let faults = Faults::new(0);
    let (driver, mut queue) = open(emulator(&faults));
    let memory = Memory::new(&*driver.mapper());
    faults.fail_next(Status::INTERNAL_ERROR);
    submit(&mut queue, [read(0, memory.at(0), 0), read(0, memory.at(512), 1)]);
    assert_eq!(poll(&mut queue), [(0, DeviceStatus(Status::INTERNAL_ERROR.0)), (1, DeviceStatus::OK)]);
    assert_eq!((memory.byte(0), memory.byte(512)), (0xa5, 0));
}

#[test]
fn a_device_that_is_pulled_out() {
    let faults = Faults::new(0);
    let (mut driver, mut queue) = open(Faulty::new(emulator(&faults)));
    let memory = Memory::new(&*driver.mapper());
    faults.hold();
    submit(&mut queue, [read(0, memory.at(0), 1)]);
    driver.device().set_gone(true);
    assert_eq!(driver.watch(), Watch::Absent);
    assert_eq!(reset(&mut driver, &mut queue), [(1, DeviceStatus::ABORTED)]);
    assert_eq!((driver.watch(), queue.state()), (Watch::Gone, QueueState::Gone));
}

#[test]
fn a_power_cut_is_a_device_that_is_gone() {
    let (mut driver, mut queue) = open(Emulator::ram(1 << 20, 512).unwrap());
    driver.device().power_cut(0);
    assert_eq!(driver.watch(), Watch::Absent);
    assert!(reset(&mut driver, &mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Gone);
}

#[test]
fn a_fatal_controller_is_reset_and_one_that_stays_so_is_given_up() {
    let faults = Faults::new(0);
    let (mut driver, mut queue) = open(Faulty::new(emulator(&faults)));
    driver.device().bend_status(Csts(2), Csts(0));
    assert_eq!(driver.watch(), Watch::Failed);
    driver.device().bend_status(Csts(0), Csts(0));
    assert!(reset(&mut driver, &mut queue).is_empty());
    assert_eq!((driver.watch(), queue.state()), (Watch::Running, QueueState::Running));
    driver.device().bend_status(Csts(2), Csts(0));
    reset(&mut driver, &mut queue);
    assert_eq!((driver.watch(), queue.state()), (Watch::Gone, QueueState::Gone));
}

#[test]
fn a_controller_that_is_never_ready_is_not_waited_for_for_ever() {
    let device = Faulty::new(Emulator::ram(1 << 20, 512).unwrap());
    device.bend_status(Csts(0), Csts(1));
    let start = Instant::now();
    assert!(matches!(Driver::open_with(device, &options()), Err(NvmeError::Timeout { .. })));
    assert!(start.elapsed() >= Duration::from_secs(2), "CAP.TO is kept");
}

#[test]
fn doorbells_that_are_lost_are_only_lost_time() {
    let faults = Faults::new(0);
    let (mut driver, mut queue) = open(Faulty::new(emulator(&faults)));
    let memory = Memory::new(&*driver.mapper());
    driver.device().set_mute(true);
    submit(&mut queue, [read(0, memory.at(0), 1)]);
    assert!(poll(&mut queue).is_empty());
    driver.device().set_mute(false);
    assert_eq!(reset(&mut driver, &mut queue), [(1, DeviceStatus::ABORTED)]);
    submit(&mut queue, [read(0, memory.at(0), 2)]);
    assert_eq!(poll(&mut queue), [(2, DeviceStatus::OK)]);
}

#[test]
fn lies_about_when_to_ring_cost_the_device_time_and_nobody_else() {
    let lies: [fn(u32) -> u32; 6] = [
        |event| event.wrapping_sub(1) & 31,
        |event| event.wrapping_add(1),
        |_| u32::MAX,
        |_| 0,
        |_| 0x8000,
        |event| event.wrapping_mul(0x9e37_79b9) >> 16,
    ];
    for lie in lies {
        let faults = Faults::new(0);
        faults.lie_about_events(lie);
        let config = EmuConfig {
            shadow_doorbells: true,
            interposer: Some(faults.clone()),
            ..EmuConfig::new(Arc::new(RamMedia::new(1 << 20).unwrap()))
        };
        let (mut driver, mut queue) = open(Emulator::new(config).unwrap());
        let memory = Memory::new(&*driver.mapper());
        for round in 0..100u64 {
            let count = 1 + round % 31;
            let rung = queue.doorbells();
            submit(&mut queue, (0..count).map(|tag| read(tag, memory.at(tag * 512), tag)));
            let mut ended = 0;
            for _ in 0..2000 {
                ended += poll(&mut queue).len();
            }
            assert_eq!(ended as u64, count, "all end within a bounded number of polls");
            assert!(queue.doorbells() - rung <= 4, "no storm of doorbells");
        }
        assert!(reset(&mut driver, &mut queue).is_empty());
        submit(&mut queue, [read(0, memory.at(0), 9)]);
        let ended: Vec<_> = (0..2000).flat_map(|_| poll(&mut queue)).collect();
        assert_eq!(ended, [(9, DeviceStatus::OK)], "after a reset it is as before");
        assert_eq!((driver.anomalies(), driver.device().faults()), (0, 0));
    }
}

#[test]
fn absurd_identify_data_is_refused() {
    // Where, and what: NSZE 0 and 2^64-1, no such format, blocks of 2^255 and 2 bytes, metadata, entry sizes.
    let absurd: [(u8, usize, &[u8]); 8] = [
        (cns::NAMESPACE, 0, &[0; 8]),
        (cns::NAMESPACE, 0, &[0xff; 8]),
        (cns::NAMESPACE, 26, &[15]),
        (cns::NAMESPACE, 130, &[255]),
        (cns::NAMESPACE, 130, &[1]),
        (cns::NAMESPACE, 128, &[8, 0]),
        (cns::CONTROLLER, 512, &[0x77]),
        (cns::ACTIVE_NAMESPACES, 0, &[0; 4]),
    ];
    for (what, at, bytes) in absurd {
        let faults = Faults::new(0);
        faults.edit_data(move |command, data| {
            if command.cdw0.opc() == admin::IDENTIFY && command.cdw10 & 0xff == u32::from(what) {
                data[at..at + bytes.len()].copy_from_slice(bytes);
            }
        });
        let opened = Driver::open_with(emulator(&faults), &options());
        assert!(opened.is_err(), "{what} {at} {bytes:?} was believed");
        faults.behave();
    }
}

#[test]
fn an_admin_command_that_hangs_is_timed_out() {
    let faults = Faults::new(0);
    let (mut driver, mut queue) = open(Faulty::new(emulator(&faults)));
    faults.hold_admin();
    assert!(matches!(driver.health(), Err(NvmeError::Timeout { .. })));
    faults.release(driver.device().under());
    assert!(reset(&mut driver, &mut queue).is_empty());
    assert!(driver.health().is_ok());
}
