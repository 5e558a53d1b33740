//! An NVMe controller whose registers, function reset, completions and data can be made to lie.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::emu::{self, EmuConfig, Emulator, Interposer, Posting, RamMedia, Verdict};
use crate::hal::{Device, Registers};
use crate::nvme::{Controller, NvmeError, Options, Queue};
use crate::spec::nvme::{Cap, Csts, Sqe, offset};
use crate::tests::rig;
pub(super) use crate::tests::rig::{Kind, command, ended, finish, memory, run};

pub(super) type Judge = fn(u16, &Sqe) -> Verdict;
pub(super) type Forge = fn(&Sqe, &mut [u8]);

/// What an NVMe controller may lie about beside its registers.
#[derive(Default)]
pub(crate) struct Lies {
    pub(super) verdict: Mutex<Option<Judge>>,
    pub(super) posting: Mutex<Option<fn(&mut Posting)>>,
    pub(super) data: Mutex<Option<Forge>>,
}

pub(super) type Rigging = rig::Rigging<Lies>;
pub(super) type Rigged = rig::Rigged<Emulator, Lies>;
pub(super) type RiggedRegisters = rig::RiggedRegisters<emu::Controller, Lies>;

impl Interposer for Rigging {
    fn before(&self, queue: u16, command: &Sqe) -> Verdict {
        self.lies.verdict.lock().unwrap().map_or(Verdict::Run, |verdict| verdict(queue, command))
    }

    fn completion(&self, posting: &mut Posting) {
        if let Some(change) = *self.lies.posting.lock().unwrap() {
            change(posting);
        }
    }

    fn data(&self, command: &Sqe, data: &mut [u8]) {
        if let Some(change) = *self.lies.data.lock().unwrap() {
            change(command, data);
        }
    }
}

/// The NVMe driver.
pub(crate) struct Nvme;

impl Kind for Nvme {
    type Lies = Lies;
    type Emulator = Emulator;
    type Device = Rigged;
    type Controller = Controller<Rigged>;
    type Queue = Queue<RiggedRegisters>;

    const STOP: usize = offset::CC;
    const STATUS: usize = offset::CSTS;

    fn device() -> (Rigged, Arc<Rigging>) {
        rigged(512)
    }

    fn open(device: Rigged, queues: u16) -> Controller<Rigged> {
        Controller::open_with(device, &options(queues)).unwrap()
    }

    fn hold(rigging: &Rigging) {
        *rigging.lies.verdict.lock().unwrap() =
            Some(|queue, _| if queue == 0 { Verdict::Run } else { Verdict::Hold });
    }

    fn behave(rigging: &Rigging) {
        *rigging.lies.verdict.lock().unwrap() = None;
    }

    fn vanish(rigging: &Rigging) {
        for offset in [offset::CAP, offset::VS, offset::CSTS, offset::CC] {
            rigging.read_as(offset, u64::MAX);
        }
    }

    fn emulator(controller: &Controller<Rigged>) -> &Emulator {
        &controller.device().emulator
    }

    fn has_stopped(controller: &Controller<Rigged>) -> bool {
        !status(controller).rdy()
    }
}

pub(super) const BYTES: u64 = 8 << 20;

/// A device of 8 MiB in memory with blocks of `block` bytes, and 4 queues. CAP.TO is its least, 500 ms.
pub(super) fn rigged(block: u32) -> (Rigged, Arc<Rigging>) {
    rigged_with(block, 1024)
}

/// The same, with queues of at most `entries` entries.
pub(super) fn rigged_with(block: u32, entries: u32) -> (Rigged, Arc<Rigging>) {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    rigged_as(EmuConfig { block_size: block, entries, ..EmuConfig::new(media) })
}

/// The same, as `config` says but for what is rigged.
pub(super) fn rigged_as(config: EmuConfig) -> (Rigged, Arc<Rigging>) {
    let rigging = Arc::new(Rigging::default());
    let interposer: Arc<dyn Interposer> = rigging.clone();
    let emulator = Emulator::new(EmuConfig { queues: 4, interposer: Some(interposer), ..config }).unwrap();
    let mut cap = Cap(emulator.registers().read64(offset::CAP));
    cap.set_to(0);
    rigging.read_as(offset::CAP, cap.0);
    (Rigged { emulator, rigging: Arc::clone(&rigging) }, rigging)
}

pub(crate) fn options(queues: u16) -> Options {
    Options { entries: 16, admin_timeout: Duration::from_millis(300), ..Options::new(queues) }
}

/// Opens a rigged device with one queue and takes that.
pub(super) fn opened(block: u32) -> (Controller<Rigged>, Queue<RiggedRegisters>, Arc<Rigging>) {
    let (device, rigging) = rigged(block);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let queue = controller.take_queue().unwrap();
    (controller, queue, rigging)
}

pub(super) fn refusal(device: Rigged, options: &Options) -> NvmeError {
    match Controller::open_with(device, options) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// CSTS, for tests that look under the driver.
pub(super) fn status(controller: &Controller<Rigged>) -> Csts {
    Csts(controller.device().emulator.registers().read32(offset::CSTS))
}
