//! When doorbells are rung: registers as seldom as may be, and what the device says of it is not relied on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::hostile::bare_queue_on;
use super::rig::*;
use crate::block::{BlockQueue, DeviceStatus, Operation, QueueState};
use crate::dma::PAGE;
use crate::emu::{EmuConfig, Emulator, FileMedia, RamMedia, Verdict};
use crate::hal::{Device, Iova, Registers};
use crate::null::NullMapper;
use crate::nvme::doorbell::ShadowDoorbells;
use crate::nvme::queue::{Queue, QueueMemory};
use crate::nvme::{Controller, NvmeError, Options, ResetProgress};
use crate::spec::nvme::{Status, admin, sq_tail_doorbell};

const ENTRIES: u16 = 16;
/// Offsets of the first queue's tail and head among the doorbells.
const TAIL: usize = 8;
const HEAD: usize = 12;
/// More polls than the driver waits for a device that says it need not be rung.
const LONG: usize = 3000;

/// Registers that only count, and look whether the shadow says the same.
#[derive(Default)]
struct Counting {
    shadows: Option<Arc<ShadowDoorbells>>,
    tails: AtomicU64,
    heads: AtomicU64,
}

impl Registers for Counting {
    fn len(&self) -> usize {
        0x2000
    }
    fn read32(&self, _: usize) -> u32 {
        unreachable!()
    }
    fn read64(&self, _: usize) -> u64 {
        unreachable!()
    }
    fn write32(&self, offset: usize, value: u32) {
        let count = if offset == sq_tail_doorbell(1, 0) { &self.tails } else { &self.heads };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(shadows) = &self.shadows {
            assert_eq!(shadows.memory().load32(offset - 0x1000, Ordering::Relaxed), value);
        }
    }
    fn write64(&self, _: usize, _: u64) {
        unreachable!()
    }
}

/// The test is the device.
struct Bench {
    queue: Queue<Counting>,
    memory: Arc<QueueMemory>,
    shadows: Arc<ShadowDoorbells>,
    registers: Arc<Counting>,
    posted: u16,
}

impl Bench {
    fn new() -> Self {
        let shadows = Arc::new(ShadowDoorbells::new(&NullMapper::default(), 1, 0).unwrap().unwrap());
        let counting = Counting { shadows: Some(shadows.clone()), ..Counting::default() };
        let (queue, memory, _) = bare_queue_on(counting, ENTRIES, Some(shadows.clone()));
        let registers = queue.registers();
        Self { queue, memory, shadows, registers, posted: 0 }
    }

    fn event(&self, at: usize, event: u16) {
        self.shadows.memory().store32(PAGE + at, event.into());
    }

    fn shadow(&self, at: usize) -> u32 {
        self.shadows.memory().load32(at, Ordering::Relaxed)
    }

    fn submit(&mut self, count: u64) {
        for lba in 0..count {
            self.queue.submit(&command(Operation::Read, lba, 1, Iova(4096))).unwrap();
        }
        self.queue.commit();
    }

    /// Posts the completion of the oldest command.
    fn post(&mut self) {
        let at = usize::from(self.posted % ENTRIES);
        let cid = self.memory.submissions.load64(at * 64, Ordering::Relaxed) >> 16 & 0xffff;
        let phase = u64::from((self.posted / ENTRIES).is_multiple_of(2));
        self.memory.completions.store64(at * 16 + 8, 1 << 16 | cid << 32 | phase << 48);
        self.posted += 1;
    }

    fn rings(&self) -> (u64, u64) {
        let rings =
            (self.registers.tails.load(Ordering::Relaxed), self.registers.heads.load(Ordering::Relaxed));
        assert_eq!(self.queue.doorbells(), rings.0 + rings.1);
        rings
    }
}

#[test]
fn a_device_that_looks_is_not_rung_and_one_that_sleeps_is() {
    let mut bench = Bench::new();
    bench.event(TAIL, ENTRIES - 1);
    bench.submit(2);
    assert_eq!((bench.shadow(TAIL), bench.rings()), (2, (0, 0)), "it looks");
    bench.event(TAIL, 2);
    bench.submit(1);
    assert_eq!((bench.shadow(TAIL), bench.rings()), (3, (1, 0)), "it slept");
    bench.submit(1);
    assert_eq!((bench.shadow(TAIL), bench.rings()), (4, (1, 0)), "it was rung already");
    bench.queue.commit();
    assert_eq!(bench.rings(), (1, 0), "nothing new");
    // All the way round.
    for round in 0..10 * u64::from(ENTRIES) {
        bench.post();
        assert_eq!(ended(&mut bench.queue).len(), 1);
        let tail = bench.shadow(TAIL);
        bench.event(TAIL, u16::try_from(tail).unwrap());
        let rings = bench.rings().0;
        bench.submit(1);
        assert_eq!(bench.rings().0, rings + 1, "round {round}");
        assert_eq!(bench.shadow(TAIL), (tail + 1) % u32::from(ENTRIES));
    }
}

#[test]
fn a_device_that_never_wants_to_be_rung_is_all_the_same_but_not_often() {
    let mut bench = Bench::new();
    for round in 1..=5 {
        let tail = bench.shadow(TAIL);
        bench.event(TAIL, u16::try_from(tail + 8).unwrap() % ENTRIES);
        bench.submit(2);
        assert_eq!(bench.rings().0, round - 1);
        (0..LONG).for_each(|_| assert!(ended(&mut bench.queue).is_empty()));
        assert_eq!(bench.rings().0, round, "once, however long it takes");
        bench.post();
        bench.post();
        assert_eq!(ended(&mut bench.queue).len(), 2);
    }
}

#[test]
fn who_is_about_to_sleep_has_told_everything() {
    let mut bench = Bench::new();
    bench.event(TAIL, 9);
    bench.submit(2);
    bench.post();
    bench.post();
    assert_eq!((ended(&mut bench.queue).len(), bench.rings()), (2, (0, 0)));
    bench.event(HEAD, 9);
    bench.queue.arm_interrupt(true);
    assert_eq!((bench.rings(), bench.shadow(HEAD)), ((1, 1), 2));
    bench.queue.arm_interrupt(false);
    bench.queue.arm_interrupt(true);
    assert_eq!(bench.rings(), (1, 1));
}

#[test]
fn heads_are_told_a_quarter_of_the_queue_at_a_time_or_when_all_is_quiet() {
    let mut bench = Bench::new();
    for count in 1..=40u64 {
        bench.submit(1);
        bench.post();
        assert_eq!(ended(&mut bench.queue).len(), 1);
        assert_eq!(u64::from(bench.shadow(HEAD)), count / 4 * 4 % u64::from(ENTRIES));
    }
    bench.submit(1);
    bench.post();
    (0..LONG).for_each(|_| _ = ended(&mut bench.queue));
    assert_eq!(bench.shadow(HEAD), 41 % u32::from(ENTRIES));
}

/// Doorbells for each request at depth 32, as `cargo xtask bench` has them: without shadows, one for each turn and one
/// for each quarter of the completion queue.
#[test]
fn a_request_costs_less_than_a_tenth_of_a_doorbell_at_depth_32() {
    let (device, _) = rigged(512);
    let mut controller = Controller::open_with(device, &Options::new(1)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 512);
    let before = queue.doorbells();
    for _ in 0..1000 {
        for lba in 0..32 {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        queue.commit();
        assert_eq!(ended(&mut queue).len(), 32);
    }
    assert!(queue.doorbells() - before < 3200, "{} for 32000 requests", queue.doorbells() - before);
}

/// The device says that it sleeps and looks once more; the driver tells and looks whether it sleeps. One of the two must
/// see the other, or the device sleeps for ever.
#[test]
fn no_doorbell_is_missed_by_a_device_that_falls_asleep() {
    const ROUNDS: u32 = 200_000;
    #[derive(Default)]
    struct Rung(AtomicBool);
    impl Registers for Rung {
        fn len(&self) -> usize {
            0x2000
        }
        fn read32(&self, _: usize) -> u32 {
            unreachable!()
        }
        fn read64(&self, _: usize) -> u64 {
            unreachable!()
        }
        fn write32(&self, offset: usize, _: u32) {
            if offset == sq_tail_doorbell(1, 0) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        fn write64(&self, _: usize, _: u64) {
            unreachable!()
        }
    }
    let shadows = Arc::new(ShadowDoorbells::new(&NullMapper::default(), 1, 0).unwrap().unwrap());
    let (mut queue, memory, _) = bare_queue_on(Rung::default(), ENTRIES, Some(shadows.clone()));
    let registers = queue.registers();
    let wait = |what: &dyn Fn() -> bool| {
        let since = std::time::Instant::now();
        let mut spins = 0u32;
        while !what() {
            spins += 1;
            if spins.is_multiple_of(1000) {
                assert!(since.elapsed().as_secs() < 20, "asleep for ever");
                std::thread::yield_now();
            }
        }
    };
    let tail = || shadows.memory().load32(TAIL, Ordering::Acquire);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut seen = 0;
            for round in 0..ROUNDS {
                // Awake until here; what comes before this is seen is only seen by looking once more.
                shadows.memory().store32(PAGE + TAIL, seen);
                fence(Ordering::SeqCst);
                if tail() == seen {
                    wait(&|| registers.0.load(Ordering::SeqCst));
                }
                registers.0.store(false, Ordering::SeqCst);
                wait(&|| tail() != seen);
                seen = tail();
                shadows.memory().store32(PAGE + TAIL, (seen + 8) % u32::from(ENTRIES));
                let at = usize::try_from(round).unwrap() % usize::from(ENTRIES);
                let cid = memory.submissions.load64(at * 64, Ordering::Acquire) >> 16 & 0xffff;
                let phase = u64::from((round / u32::from(ENTRIES)).is_multiple_of(2));
                fence(Ordering::SeqCst);
                memory.completions.store64(at * 16 + 8, 1 << 16 | cid << 32 | phase << 48);
            }
        });
        for round in 0..ROUNDS {
            queue.submit(&command(Operation::Read, 0, 1, Iova(4096))).unwrap();
            queue.commit();
            // Never so long that the driver would ring unasked.
            let at = usize::try_from(round).unwrap() % usize::from(ENTRIES) * 16 + 8;
            let phase = u64::from((round / u32::from(ENTRIES)).is_multiple_of(2));
            wait(&|| memory.completions.load64(at, Ordering::Acquire) >> 48 & 1 == phase);
            assert_eq!(ended(&mut queue).len(), 1);
        }
    });
}

#[test]
fn shadow_doorbells_are_set_up_again_after_a_reset() {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    let (device, rigging) = rigged_as(EmuConfig { shadow_doorbells: true, ..EmuConfig::new(media) });
    let mut controller = Controller::open_with(device, &options(2)).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 512);
    for round in 0..4 {
        for lba in 0..40 {
            assert!(run(&mut queue, command(Operation::Read, lba, 1, buffer.iova(0))).is_ok());
        }
        let settled = |rigging: &Rigging| rigging.written(sq_tail_doorbell(1, 0)).len();
        assert_eq!(settled(&rigging), 40, "it runs only while it is rung, and says so");
        controller.begin_reset();
        while controller.finish_reset() == ResetProgress::Pending {
            assert!(ended(&mut queue).is_empty());
        }
        assert!(ended(&mut queue).is_empty());
        assert_eq!(queue.state(), QueueState::Running, "round {round}");
    }
    // One that takes them no more is not what the queues know.
    *rigging.lies.verdict.lock().unwrap() = Some(|queue, command| {
        let refuses = queue == 0 && command.cdw0.opc() == admin::DOORBELL_BUFFER_CONFIG;
        if refuses { Verdict::Fail(Status::INVALID_OPCODE) } else { Verdict::Run }
    });
    controller.begin_reset();
    while controller.finish_reset() == ResetProgress::Pending {
        assert!(ended(&mut queue).is_empty());
    }
    assert!(ended(&mut queue).is_empty());
    assert_eq!(queue.state(), QueueState::Gone);
}

#[test]
fn a_device_that_refuses_shadow_doorbells_is_rung_by_registers() {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    let (device, rigging) = rigged_as(EmuConfig { shadow_doorbells: true, ..EmuConfig::new(media) });
    *rigging.lies.verdict.lock().unwrap() = Some(|queue, command| {
        let refuses = queue == 0 && command.cdw0.opc() == admin::DOORBELL_BUFFER_CONFIG;
        if refuses { Verdict::Fail(Status::INVALID_OPCODE) } else { Verdict::Run }
    });
    let mapper = device.mapper();
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let mappings = mapper.mappings();
    let mut queue = controller.take_queue().unwrap();
    let buffer = memory(&controller, 512);
    for lba in 0..40 {
        assert!(run(&mut queue, command(Operation::Read, lba, 1, buffer.iova(0))).is_ok());
    }
    assert_eq!(mapper.mappings(), mappings + 1);
    // One that says nothing is no controller to work with, and keeps nothing.
    drop((queue, controller, buffer));
    assert_eq!(mapper.mappings(), 0);
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    let (device, rigging) = rigged_as(EmuConfig { shadow_doorbells: true, ..EmuConfig::new(media) });
    *rigging.lies.verdict.lock().unwrap() = Some(|queue, command| {
        let hangs = queue == 0 && command.cdw0.opc() == admin::DOORBELL_BUFFER_CONFIG;
        if hangs { Verdict::Hold } else { Verdict::Run }
    });
    assert!(matches!(refusal(device, &options(1)), NvmeError::Timeout { .. }));
}

/// A device with a thread of its own falls asleep and is woken, at any moment.
#[test]
fn a_device_with_a_thread_works_by_shadows_at_any_depth() {
    let directory = tempfile::tempdir().unwrap();
    let media = FileMedia::create(&directory.path().join("disk"), 1 << 20).unwrap();
    let mut controller =
        Controller::open(Emulator::new(EmuConfig::new(Arc::new(media))).unwrap(), 1).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let buffer =
        crate::dma::DmaBuffer::new(&*controller.mapper(), 4096, crate::hal::DmaAccess::ReadWrite).unwrap();
    let mut requests = 0;
    for round in 0..3000u64 {
        let depth = 1 + round % 40;
        for lba in 0..depth {
            queue.submit(&command(Operation::Read, lba, 1, buffer.iova(0))).unwrap();
        }
        queue.commit();
        let mut done = Vec::new();
        let since = std::time::Instant::now();
        while done.len() < usize::try_from(depth).unwrap() {
            done.extend(ended(&mut queue));
            assert!(since.elapsed().as_secs() < 20, "it never ends");
            std::thread::yield_now();
        }
        assert!(done.iter().all(|(_, status)| *status == DeviceStatus::OK));
        requests += depth;
        if round % 500 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2)); // so that it does sleep
        }
    }
    let rings = queue.doorbells();
    println!("{rings} doorbells for {requests} requests");
    assert_eq!((controller.anomalies(), controller.device().faults()), (0, 0));
    assert!(rings < 2 * 3000, "no more than one each way in a turn");
}
