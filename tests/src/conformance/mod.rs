//! What every block device must do, checked through the driver: a library, so that the same cases run on the software
//! device, on QEMU's in a guest, and on a real one.
//!
//! A [`Case`] gets a [`Bench`] of its own: the device freshly opened, with [`QUEUES`] queues.

mod data;
pub mod io;
mod life;
mod limits;
mod load;
mod scatter;
mod target;

use std::sync::Arc;

use anyhow::{Context, Result};
use driver::block::Geometry;
use driver::hal::{DmaAccess, Mapper};

pub use io::{Image, Memory};
pub use load::Load;
pub use target::{Controller, ENTRIES, Kind, QUEUES, Target, TestQueue, open, size};

/// A case. It panics where the device falls short.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What the device must have for it.
    pub needs: Needs,
    /// Runs it.
    pub run: fn(&mut Bench),
}

/// What a case cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Queues: any device.
    Queues,
    /// What was written is read back.
    Data,
    /// A controller.
    Controller,
    /// A controller that has a health log.
    Health,
    /// A controller that stands a reset while it works.
    ResetUnderLoad,
}

/// A device for one case.
pub struct Bench {
    // Queues go before their controller.
    queues: Vec<TestQueue>,
    target: Target,
}

impl Bench {
    /// Opens the device that `uri` names; see [`open`].
    pub fn new(uri: &str) -> Result<Self> {
        let target = open(uri).with_context(|| format!("opening {uri}"))?;
        let mut bench = Self { queues: Vec::new(), target };
        for _ in 0..QUEUES {
            let queue = match &mut bench.target {
                Target::Controller(controller) => controller.take_queue().context("a queue is missing")?,
                Target::Null(blocks, _) => target::null_queue(*blocks),
            };
            bench.queues.push(queue);
        }
        Ok(bench)
    }

    /// Why `case` cannot be run on this device.
    pub fn lacks(&self, case: &Case) -> Option<&'static str> {
        match (case.needs, &self.target) {
            // The emulator then completes a request into a queue that it has freed, and ends by SIGSEGV (seen with 7.2).
            (Needs::ResetUnderLoad, Target::Controller(controller))
                if controller.kind() == Kind::Nvme && controller.model().model.starts_with("QEMU") =>
            {
                Some("QEMU itself crashes when its controller is reset under load")
            }
            (Needs::Health, Target::Controller(controller)) if controller.kind() == Kind::Virtio => {
                Some("virtio block devices have no health log")
            }
            (Needs::Queues, _) | (_, Target::Controller(_)) => None,
            (Needs::Data, Target::Null(..)) => Some("the null device keeps nothing"),
            (Needs::Controller | Needs::Health | Needs::ResetUnderLoad, Target::Null(..)) => {
                Some("the null device has no controller")
            }
        }
    }

    /// The shape of the device.
    pub fn geometry(&self) -> Geometry {
        *self.queues[0].queue.geometry()
    }

    /// Maps memory for the device.
    pub fn mapper(&self) -> Arc<dyn Mapper> {
        match &self.target {
            Target::Controller(controller) => controller.mapper(),
            Target::Null(_, mapper) => Arc::clone(mapper),
        }
    }

    /// `bytes` of memory that the device may read and write.
    pub fn memory(&self, bytes: usize) -> Memory {
        Memory::new(&*self.mapper(), bytes, DmaAccess::ReadWrite)
    }

    /// The first queue.
    pub fn queue(&mut self) -> &mut dyn driver::block::BlockQueue {
        &mut *self.queues[0].queue
    }

    /// All queues, and the controller. Only for [`Needs::Controller`].
    pub fn parts(&mut self) -> (&mut [TestQueue], &mut dyn Controller) {
        match &mut self.target {
            Target::Controller(controller) => (&mut self.queues, &mut **controller),
            Target::Null(..) => panic!("the case needs a controller"),
        }
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    [data::CASES, scatter::CASES, limits::CASES, life::CASES].concat()
}
