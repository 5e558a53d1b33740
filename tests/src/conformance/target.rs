//! The device that a case runs on, by URI.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use driver::block::{BlockController, BlockQueue, Geometry, Model, ResetProgress, Watch};
use driver::emu::Emulator;
use driver::emu::virtio::VirtioEmulator;
use driver::hal::{Device, Mapper, PciFunction};
use driver::null::{NullMapper, NullQueue};
use driver::spec::nvme::SmartLog;
use driver::vfio::{DeviceClass, VfioDevice};
use driver::{nvme, virtio};

/// Queues that a case can take.
pub const QUEUES: u16 = 3;
/// Entries of each: few, so that they fill up.
pub const ENTRIES: u16 = 64;

/// A queue, and what becomes readable when it interrupts.
pub struct TestQueue {
    /// The queue.
    pub queue: Box<dyn BlockQueue>,
    /// Readable with completions, if the device interrupts.
    pub interrupt: Option<OwnedFd>,
}

/// What a controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// NVMe.
    Nvme,
    /// A virtio block device.
    Virtio,
}

/// A controller of any kind, on whatever kind of device.
pub trait Controller: Send {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Starts a reset.
    fn begin_reset(&mut self);
    /// Goes on with it.
    fn finish_reset(&mut self) -> ResetProgress;
    /// How it is.
    fn watch(&mut self) -> Watch;
    /// Which it is.
    fn model(&self) -> Model;
    /// Its SMART log, if it has one.
    fn health(&mut self) -> Option<Result<SmartLog>>;
    /// Completions that answered nothing.
    fn anomalies(&self) -> u64;
    /// The next of its queues.
    fn take_queue(&mut self) -> Option<TestQueue>;
    /// Maps memory for it.
    fn mapper(&self) -> Arc<dyn Mapper>;
    /// Its shape.
    fn geometry(&self) -> Geometry;
}

type ReadHealth<C> = fn(&mut C) -> Result<SmartLog>;

/// One of them, as the driver has it.
struct Driven<C>(C, Kind, Option<ReadHealth<C>>);

impl<C: BlockController> Controller for Driven<C> {
    fn kind(&self) -> Kind {
        self.1
    }

    fn begin_reset(&mut self) {
        self.0.begin_reset();
    }

    fn finish_reset(&mut self) -> ResetProgress {
        self.0.finish_reset()
    }

    fn watch(&mut self) -> Watch {
        self.0.watch()
    }

    fn model(&self) -> Model {
        self.0.model()
    }

    fn health(&mut self) -> Option<Result<SmartLog>> {
        self.2.map(|read| read(&mut self.0))
    }

    fn anomalies(&self) -> u64 {
        self.0.anomalies()
    }

    fn take_queue(&mut self) -> Option<TestQueue> {
        let (queue, interrupt) = self.0.take_queue()?;
        Some(TestQueue { queue: Box::new(queue), interrupt })
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.0.mapper()
    }

    fn geometry(&self) -> Geometry {
        *self.0.geometry()
    }
}

/// What a URI opens.
pub enum Target {
    /// A controller.
    Controller(Box<dyn Controller>),
    /// The null device of so many blocks.
    Null(u64, Arc<dyn Mapper>),
}

/// Bytes of `64M` and the like.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let unit = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

fn open_nvme<D: Device>(device: D) -> Result<Target> {
    let options = nvme::Options { entries: ENTRIES, ..nvme::Options::new(QUEUES) };
    let controller = nvme::Controller::open_with(device, &options)?;
    let health: ReadHealth<_> = |controller: &mut nvme::Controller<D>| Ok(controller.health()?);
    Ok(Target::Controller(Box::new(Driven(controller, Kind::Nvme, Some(health)))))
}

fn open_virtio<D: PciFunction>(device: D) -> Result<Target> {
    let options = virtio::Options { entries: ENTRIES, ..virtio::Options::new(QUEUES) };
    let controller = virtio::Controller::open_with(device, &options)?;
    Ok(Target::Controller(Box::new(Driven(controller, Kind::Virtio, None))))
}

/// Opens `emu:SIZE` (`emu:SIZE,4096` with blocks of 4096 bytes), `emu:FILE`, the same with `emu-virtio:`, `null:SIZE` or
/// `vfio:0000:00:03.0`.
///
/// What is on the device is lost.
pub fn open(uri: &str) -> Result<Target> {
    let Some((kind, rest)) = uri.split_once(':') else { bail!("{uri:?} names no device") };
    let (place, block) = match rest.split_once(',') {
        Some((place, block)) => (place, block.parse().with_context(|| format!("blocks of {block:?} bytes"))?),
        None => (rest, 512),
    };
    match (kind, size(place)) {
        ("emu", Some(bytes)) => open_nvme(Emulator::ram(bytes, block)?),
        ("emu", None) => {
            open_nvme(Emulator::file(Path::new(place), block).with_context(|| place.to_owned())?)
        }
        ("emu-virtio", Some(bytes)) => open_virtio(VirtioEmulator::ram(bytes, block)?),
        ("emu-virtio", None) => {
            open_virtio(VirtioEmulator::file(Path::new(place), block).with_context(|| place.to_owned())?)
        }
        ("null", Some(bytes)) => Ok(Target::Null(bytes >> 9, Arc::new(NullMapper::default()))),
        ("vfio", _) => {
            let device = VfioDevice::open(rest)?;
            match device.class() {
                DeviceClass::VirtioBlock => open_virtio(device),
                _ => open_nvme(device),
            }
        }
        _ => bail!("{uri:?} names no device"),
    }
}

/// A queue of the null device.
pub(super) fn null_queue(blocks: u64) -> TestQueue {
    TestQueue { queue: Box::new(NullQueue::new(blocks)), interrupt: None }
}
