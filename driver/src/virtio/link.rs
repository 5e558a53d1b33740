//! A device at the level of its registers: its way from reset to running (virtio 1.2, 3.1.1), and proof that it has
//! stopped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dma::keep;
use crate::hal::{Mapper, PciFunction};
use crate::pci::{Config, PciId};
use crate::spec::virtio::{pci, status};

use super::identity::{BlockConfig, negotiate};
use super::inquiry::{self, Inquiry};
use super::ring::QueueMemory;
use super::transport::Transport;
use super::{Options, VirtioError};

/// What became of a reset, so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    Done,
    Pending,
    /// All registers read as all ones.
    Absent,
}

/// The device and its registers. Dropped, it stops the device, or keeps what that may still touch.
pub(super) struct Link<D: PciFunction> {
    device: D,
    pub(super) transport: Transport<D::Registers>,
    pub(super) mapper: Arc<dyn Mapper>,
    pub(super) pci: PciId,
    /// How long the device may take for anything.
    patience: Duration,
    inquiry: Option<Inquiry>,
    /// All queue memory that the device was told of.
    held: Vec<Arc<QueueMemory>>,
    /// It is proven that the device touches nothing.
    stopped: bool,
}

impl<D: PciFunction> Link<D> {
    /// Resets the device and leaves it reset, bus mastering off.
    pub(super) fn open(device: D, options: &Options) -> Result<Self, VirtioError> {
        match device.reset() {
            // It has a reset by its registers in any case.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(source) => return Err(VirtioError::Os { what: "resetting the device", source }),
            Ok(()) => {}
        }
        let config = device
            .config_space()
            .map_err(|source| VirtioError::Os { what: "reading the configuration space", source })?;
        let id = Config(config).id();
        match (id.vendor, id.device) {
            (pci::VENDOR, pci::MODERN_BLOCK) => {}
            (pci::VENDOR, pci::TRANSITIONAL_BLOCK) => return Err(VirtioError::Transitional),
            (u16::MAX, u16::MAX) => return Err(VirtioError::Gone),
            (vendor, device) => return Err(VirtioError::NotBlock { vendor, device }),
        }
        let transport = Transport::find(&config, |index| device.bar(index))?;
        let mapper = device.mapper();
        let inquiry = Some(Inquiry::new(mapper.as_ref())?);
        // Until it is seen reset it may work for whoever had it before; that it reaches nothing is the IOMMU's doing.
        let mut link = Self {
            device,
            transport,
            mapper,
            pci: id,
            patience: options.patience,
            inquiry,
            held: Vec::new(),
            stopped: true,
        };
        link.reset_and_wait()?;
        Ok(link)
    }

    pub(super) fn device(&self) -> &D {
        &self.device
    }

    /// The device is about to be told of this memory.
    pub(super) fn hold(&mut self, memory: Arc<QueueMemory>) {
        self.held.push(memory);
    }

    pub(super) fn held(&self) -> &[Arc<QueueMemory>] {
        &self.held
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Starts a reset. Done when [`Link::is_reset`] says so.
    pub(super) fn start_reset(&self) {
        self.transport.set_status(status::RESET);
    }

    /// Whether the device says that its reset is over (2.4.1): then it touches nothing any more.
    pub(super) fn is_reset(&self) -> Wait {
        match self.transport.status() {
            status::RESET => Wait::Done,
            u8::MAX if self.transport.absent() => Wait::Absent,
            _ => Wait::Pending,
        }
    }

    pub(super) fn reset_and_wait(&mut self) -> Result<(), VirtioError> {
        self.start_reset();
        let since = Instant::now();
        loop {
            // In this order: a last look after the time is up.
            let late = since.elapsed() >= self.patience;
            match self.is_reset() {
                Wait::Done => return Ok(()),
                Wait::Absent => return Err(VirtioError::Gone),
                Wait::Pending if late => {
                    return Err(VirtioError::Timeout { what: "its reset", after: self.patience });
                }
                Wait::Pending => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Agrees with a reset device on features, and reads what it says of itself.
    pub(super) fn negotiate(&mut self) -> Result<(u64, BlockConfig, u8), VirtioError> {
        let bus_master = self.device.set_bus_master(true);
        bus_master.map_err(|source| VirtioError::Os { what: "letting the device access memory", source })?;
        self.stopped = false;
        let mut now = status::ACKNOWLEDGE;
        self.transport.set_status(now);
        now |= status::DRIVER;
        self.transport.set_status(now);
        let offered = self.transport.offered();
        let accepted = negotiate(offered)?;
        self.transport.accept(accepted);
        now |= status::FEATURES_OK;
        self.transport.set_status(now);
        if self.transport.status() & status::FEATURES_OK == 0 {
            return Err(VirtioError::Refused { accepted, offered });
        }
        let (config, generation) = self.transport.configuration(accepted)?;
        Ok((accepted, config, generation))
    }

    /// The queues are set up: the device works from now on.
    pub(super) fn start(&self) -> Result<(), VirtioError> {
        let now = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.transport.set_status(now);
        match self.transport.status() {
            is if is == now => Ok(()),
            u8::MAX if self.transport.absent() => Err(VirtioError::Gone),
            is => Err(VirtioError::NeedsReset { status: is }),
        }
    }

    /// Asks a device that has just negotiated what it calls itself. It is reset afterwards.
    pub(super) fn ask_id(&mut self) -> Result<String, VirtioError> {
        let Some(inquiry) = &self.inquiry else { return Err(VirtioError::Gone) };
        if self.transport.queue_size(0) < inquiry::ENTRIES {
            return Err(VirtioError::Unsupported(format!(
                "its queue 0 has less than {} entries",
                inquiry::ENTRIES
            )));
        }
        inquiry.prepare();
        let notifier = self.transport.notifier(0)?;
        self.transport.enable(0, inquiry::ENTRIES, pci::NO_VECTOR, inquiry.places())?;
        self.start()?;
        let id = inquiry.ask(&notifier, self.patience)?;
        self.reset_and_wait().or_else(|_| self.reset_function())?;
        Ok(id)
    }

    /// Resets the function, which proves that it has stopped; so does its absence. Bus mastering is off afterwards.
    /// Returns the proof, or [`VirtioError::Stuck`].
    pub(super) fn reset_function(&mut self) -> Result<(), VirtioError> {
        let reset = self.device.reset();
        if let Err(error) = self.device.set_bus_master(false) {
            tracing::debug!(%error, "switching bus mastering off");
        }
        match reset {
            Ok(()) => Ok(()),
            Err(_) if self.transport.absent() => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the device does not follow its reset, and its function cannot be reset");
                Err(VirtioError::Stuck)
            }
        }
    }

    /// Resets the device and takes the bus from it; by force if need be.
    pub(super) fn stop(&mut self) -> Result<(), VirtioError> {
        if self.stopped {
            return Ok(());
        }
        if self.reset_and_wait().is_err() {
            self.reset_function()?;
        } else if let Err(error) = self.device.set_bus_master(false) {
            tracing::warn!(%error, "switching bus mastering off");
        }
        self.stopped = true;
        Ok(())
    }
}

impl<D: PciFunction> Drop for Link<D> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // The device may still write: what it knows of is never used again.
            tracing::error!(%error, "keeping the memory of a device that does not stop");
            keep(self.inquiry.take());
            keep(std::mem::take(&mut self.held));
        }
    }
}
