//! A virtio block device whose registers, capabilities, function reset and used entries can be made to lie.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::emu::RamMedia;
use crate::emu::virtio::{Fate, RequestInterposer, Using, VirtioConfig, VirtioEmulator, VirtioRegisters};
use crate::hal::{NarrowRegisters, PciFunction};
use crate::spec::virtio::block::{RequestHeader, request};
use crate::spec::virtio::pci::common_cfg;
use crate::spec::virtio::status;
use crate::tests::rig;
pub(super) use crate::tests::rig::{Kind, command, ended, finish, memory, reset, run};
use crate::virtio::{Controller, Options, Queue, VirtioError};

pub(super) type Judge = fn(u16, &RequestHeader) -> Fate;
/// What becomes of an event index.
pub(super) type Bend = fn(u16) -> u16;
pub(super) type Forge = Box<dyn Fn(&mut Using) + Send>;

/// What a virtio block device may lie about beside its registers.
#[derive(Default)]
pub(crate) struct Lies {
    pub(super) fate: Mutex<Option<Judge>>,
    pub(super) using: Mutex<Option<Forge>>,
    pub(super) event: Mutex<Option<Bend>>,
}

pub(super) type Rigging = rig::Rigging<Lies>;
pub(super) type Rigged = rig::Rigged<VirtioEmulator, Lies>;
pub(super) type RiggedRegisters = rig::RiggedRegisters<VirtioRegisters, Lies>;

impl Lies {
    /// The next used entries of data are as `forge` makes them.
    pub(super) fn forge(&self, forge: impl Fn(&mut Using) + Send + 'static) {
        *self.using.lock().unwrap() = Some(Box::new(forge));
    }

    pub(super) fn behave(&self) {
        *self.using.lock().unwrap() = None;
        *self.fate.lock().unwrap() = None;
        *self.event.lock().unwrap() = None;
    }

    pub(super) fn hold(&self) {
        *self.fate.lock().unwrap() = Some(|_, header| match header.kind {
            request::GET_ID => Fate::Run,
            _ => Fate::Hold,
        });
    }
}

impl RequestInterposer for Rigging {
    fn before(&self, queue: u16, header: &RequestHeader) -> Fate {
        self.lies.fate.lock().unwrap().map_or(Fate::Run, |fate| fate(queue, header))
    }

    fn using(&self, using: &mut Using) {
        if let Some(forge) = &*self.lies.using.lock().unwrap() {
            forge(using);
        }
    }

    fn event(&self, _: u16, event: &mut u16) {
        if let Some(lie) = *self.lies.event.lock().unwrap() {
            *event = lie(*event);
        }
    }
}

/// The virtio-blk driver.
pub(crate) struct VirtioBlk;

impl Kind for VirtioBlk {
    type Lies = Lies;
    type Emulator = VirtioEmulator;
    type Device = Rigged;
    type Controller = Controller<Rigged>;
    type Queue = Queue<RiggedRegisters>;

    const STOP: usize = common_cfg::DEVICE_STATUS;
    const STATUS: usize = common_cfg::DEVICE_STATUS;

    fn device() -> (Rigged, Arc<Rigging>) {
        rigged(512)
    }

    fn open(device: Rigged, queues: u16) -> Controller<Rigged> {
        Controller::open_with(device, &options(queues)).unwrap()
    }

    fn hold(rigging: &Rigging) {
        rigging.lies.hold();
    }

    fn behave(rigging: &Rigging) {
        rigging.lies.behave();
    }

    fn vanish(rigging: &Rigging) {
        for offset in [
            common_cfg::DEVICE_STATUS,
            common_cfg::NUM_QUEUES,
            common_cfg::DEVICE_FEATURE,
            common_cfg::CONFIG_GENERATION,
        ] {
            rigging.read_as(offset, u64::MAX);
        }
    }

    fn emulator(controller: &Controller<Rigged>) -> &VirtioEmulator {
        &controller.device().emulator
    }

    fn has_stopped(controller: &Controller<Rigged>) -> bool {
        let registers = controller.device().emulator.bar(BAR).unwrap();
        registers.read8(common_cfg::DEVICE_STATUS) == status::RESET
    }
}

/// Where the emulated device has its structures.
const BAR: usize = 4;

pub(super) const BYTES: u64 = 8 << 20;

pub(super) fn config(block: u32) -> VirtioConfig {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    VirtioConfig { block_size: block, queues: 4, ..VirtioConfig::new(media) }
}

/// A device of 8 MiB in memory with blocks of `block` bytes, and 4 queues.
pub(super) fn rigged(block: u32) -> (Rigged, Arc<Rigging>) {
    rigged_as(config(block))
}

/// One as `config` says, but for what is rigged.
pub(super) fn rigged_as(config: VirtioConfig) -> (Rigged, Arc<Rigging>) {
    let rigging = Arc::new(Rigging::default());
    let interposer: Arc<dyn RequestInterposer> = rigging.clone();
    let emulator = VirtioEmulator::new(VirtioConfig { interposer: Some(interposer), ..config }).unwrap();
    (Rigged { emulator, rigging: Arc::clone(&rigging) }, rigging)
}

pub(crate) fn options(queues: u16) -> Options {
    Options { entries: 16, patience: Duration::from_millis(300), ..Options::new(queues) }
}

pub(super) type Opened = (Controller<Rigged>, Queue<RiggedRegisters>, Arc<Rigging>);

/// Opens a rigged device with one queue and takes that.
pub(super) fn opened(block: u32) -> Opened {
    opened_as(config(block))
}

pub(super) fn opened_as(config: VirtioConfig) -> Opened {
    let (device, rigging) = rigged_as(config);
    let mut controller = Controller::open_with(device, &options(1)).unwrap();
    let queue = controller.take_queue().unwrap();
    (controller, queue, rigging)
}

pub(super) fn refusal(device: Rigged) -> VirtioError {
    match Controller::open_with(device, &options(1)) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}
