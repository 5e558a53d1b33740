//! The device that a case runs on, by URI.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use driver::block::{BlockQueue, Geometry};
use driver::emu::Emulator;
use driver::hal::{Device, Mapper};
use driver::null::{NullMapper, NullQueue};
use driver::nvme::{Controller, Health, Identity, Options, ResetProgress, Watch};
use driver::vfio::VfioDevice;

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

/// An NVMe controller, on whatever kind of device.
pub trait Nvme: Send {
    /// Starts a reset.
    fn begin_reset(&mut self);
    /// Goes on with it.
    fn finish_reset(&mut self) -> ResetProgress;
    /// How it is.
    fn watch(&mut self) -> Watch;
    /// Which it is.
    fn identity(&self) -> &Identity;
    /// Its SMART log.
    fn health(&mut self) -> Result<Health>;
    /// Completions that answered nothing.
    fn anomalies(&self) -> u64;
    /// The next of its queues.
    fn take_queue(&mut self) -> Option<TestQueue>;
    /// Maps memory for it.
    fn mapper(&self) -> Arc<dyn Mapper>;
    /// Its shape.
    fn geometry(&self) -> Geometry;
}

impl<D: Device> Nvme for Controller<D> {
    fn begin_reset(&mut self) {
        Self::begin_reset(self);
    }

    fn finish_reset(&mut self) -> ResetProgress {
        Self::finish_reset(self)
    }

    fn watch(&mut self) -> Watch {
        Self::watch(self)
    }

    fn identity(&self) -> &Identity {
        Self::identity(self)
    }

    fn health(&mut self) -> Result<Health> {
        Ok(Self::health(self)?)
    }

    fn anomalies(&self) -> u64 {
        Self::anomalies(self)
    }

    fn take_queue(&mut self) -> Option<TestQueue> {
        let queue = Self::take_queue(self)?;
        let interrupt = queue.interrupt_fd().map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
        Some(TestQueue { queue: Box::new(queue), interrupt })
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Self::mapper(self)
    }

    fn geometry(&self) -> Geometry {
        *Self::geometry(self)
    }
}

/// What a URI opens.
pub enum Target {
    /// An NVMe controller.
    Nvme(Box<dyn Nvme>),
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

fn nvme<D: Device>(device: D) -> Result<Target> {
    let options = Options { entries: ENTRIES, ..Options::new(QUEUES) };
    Ok(Target::Nvme(Box::new(Controller::open_with(device, &options)?)))
}

/// Opens `emu:SIZE` (`emu:SIZE,4096` with blocks of 4096 bytes), `emu:FILE`, `null:SIZE` or `vfio:0000:00:03.0`.
///
/// What is on the device is lost.
pub fn open(uri: &str) -> Result<Target> {
    let Some((kind, rest)) = uri.split_once(':') else { bail!("{uri:?} names no device") };
    let (place, block) = match rest.split_once(',') {
        Some((place, block)) => (place, block.parse().with_context(|| format!("blocks of {block:?} bytes"))?),
        None => (rest, 512),
    };
    match (kind, size(place)) {
        ("emu", Some(bytes)) => nvme(Emulator::ram(bytes, block)?),
        ("emu", None) => nvme(Emulator::file(Path::new(place), block).with_context(|| place.to_owned())?),
        ("null", Some(bytes)) => Ok(Target::Null(bytes >> 9, Arc::new(NullMapper::default()))),
        ("vfio", _) => nvme(VfioDevice::open(rest)?),
        _ => bail!("{uri:?} names no device"),
    }
}

/// A queue of the null device.
pub(super) fn null_queue(blocks: u64) -> TestQueue {
    TestQueue { queue: Box::new(NullQueue::new(blocks)), interrupt: None }
}
