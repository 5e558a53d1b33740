//! A controller at the level of its registers: enabling, disabling, and proof that it has stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dma::keep;
use crate::hal::{Device, Mapper, Registers};
use crate::spec::nvme::{Cap, Cc, Csts, Vs, cq_head_doorbell, offset, shn, shst};

use super::admin::{Admin, command_set};
use super::doorbell::ShadowDoorbells;
use super::identity::check_capabilities;
use super::queue::QueueMemory;
use super::{NvmeError, Options};

/// What became of a wait, so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    Done,
    Pending,
    /// CSTS.CFS.
    Fatal,
    /// All registers read as all ones.
    Absent,
}

/// The device, its registers and its admin queue. Dropped, it stops the device, or keeps what that may still touch.
pub(super) struct Link<D: Device> {
    device: D,
    pub(super) registers: Arc<D::Registers>,
    pub(super) mapper: Arc<dyn Mapper>,
    pub(super) cap: Cap,
    ready_timeout: Duration,
    admin: Option<Admin>,
    /// All queue memory that the device was told of.
    held: Vec<Arc<QueueMemory>>,
    /// Likewise, if it has such.
    shadows: Option<Arc<ShadowDoorbells>>,
    /// It is proven that the device touches nothing.
    stopped: bool,
}

impl<D: Device> Link<D> {
    /// Resets the device and leaves it disabled, able to access memory.
    pub(super) fn open(device: D, options: &Options) -> Result<Self, NvmeError> {
        let registers = device.registers();
        let mapper = device.mapper();
        device.reset().map_err(|source| NvmeError::Os { what: "resetting the device", source })?;
        let mut link = Self {
            device,
            registers,
            mapper,
            cap: Cap(0),
            ready_timeout: options.ready_timeout,
            admin: None,
            held: Vec::new(),
            shadows: None,
            stopped: true,
        };
        if link.registers.len() < offset::DOORBELLS + 8 {
            let what = format!("BAR 0 has {} bytes, which is no NVMe controller", link.registers.len());
            return Err(NvmeError::Unsupported(what));
        }
        link.cap = Cap(link.registers.read64(offset::CAP));
        if link.cap.0 == u64::MAX {
            return Err(NvmeError::Gone);
        }
        check_capabilities(link.cap)?;
        let needed = cq_head_doorbell(options.queues, link.cap.dstrd()) + 4;
        if link.registers.len() < needed {
            let what = format!("BAR 0 has {} bytes, its doorbells need {needed}", link.registers.len());
            return Err(NvmeError::Unsupported(what));
        }
        // Of a device that was not really reset.
        link.disable();
        link.wait_for("disabling", Self::disabled)?;
        link.admin = Some(Admin::new(link.mapper.as_ref(), link.cap.dstrd(), options.admin_timeout)?);
        Ok(link)
    }

    pub(super) fn device(&self) -> &D {
        &self.device
    }

    /// The admin queue and the registers it needs.
    pub(super) fn admin(&mut self) -> Result<(&mut Admin, &D::Registers), NvmeError> {
        match &mut self.admin {
            Some(admin) => Ok((admin, &self.registers)),
            None => Err(NvmeError::NotRunning),
        }
    }

    pub(super) fn anomalies(&self) -> u64 {
        self.admin.as_ref().map_or(0, |admin| admin.anomalies)
    }

    /// The device is about to be told of this memory.
    pub(super) fn hold(&mut self, memory: Arc<QueueMemory>) {
        self.held.push(memory);
    }

    pub(super) fn held(&self) -> &[Arc<QueueMemory>] {
        &self.held
    }

    /// Offers the device shadow doorbells for `queues` I/O queue pairs that are still to be made. One that refuses has
    /// none.
    pub(super) fn offer_shadows(&mut self, queues: u16) -> Result<(), NvmeError> {
        let Some(shadows) = ShadowDoorbells::new(self.mapper.as_ref(), queues, self.cap.dstrd())? else {
            return Ok(());
        };
        self.shadows = Some(Arc::new(shadows));
        match self.renew_shadows() {
            Err(NvmeError::Admin { .. }) => self.shadows = None,
            other => other?,
        }
        Ok(())
    }

    /// Tells the device, which forgot it by a reset, where its shadow doorbells are.
    pub(super) fn renew_shadows(&mut self) -> Result<(), NvmeError> {
        let Some(places) = self.shadows.as_ref().map(|shadows| shadows.places()) else { return Ok(()) };
        let (admin, registers) = self.admin()?;
        admin.shadow_doorbells(registers, places)
    }

    pub(super) fn shadows(&self) -> Option<Arc<ShadowDoorbells>> {
        self.shadows.clone()
    }

    /// The longest that CSTS.RDY may take to follow CC.EN (Base 2.0, 3.1.3.1: TO), as far as anybody waits.
    pub(super) fn patience(&self) -> Duration {
        (Duration::from_millis(500) * u32::from(self.cap.to().max(1))).min(self.ready_timeout)
    }

    pub(super) fn version(&self) -> Vs {
        Vs(self.registers.read32(offset::VS))
    }

    pub(super) fn status(&self) -> Csts {
        Csts(self.registers.read32(offset::CSTS))
    }

    /// Starts to disable. Done when [`Link::disabled`] says so.
    pub(super) fn disable(&self) {
        let mut cc = Cc(self.registers.read32(offset::CC));
        cc.set_en(false);
        cc.set_shn(shn::NONE);
        self.registers.write32(offset::CC, cc.0);
    }

    pub(super) fn disabled(&self) -> Wait {
        match self.status() {
            Csts::ABSENT => Wait::Absent,
            csts if csts.rdy() => Wait::Pending,
            _ => Wait::Done,
        }
    }

    /// Starts to enable a disabled controller, with an admin queue as new.
    pub(super) fn enable(&mut self) -> Result<(), NvmeError> {
        let bus_master = self.device.set_bus_master(true);
        bus_master.map_err(|source| NvmeError::Os { what: "letting the device access memory", source })?;
        self.stopped = false;
        let set = command_set(self.cap.css());
        if let Some(shadows) = &self.shadows {
            shadows.start_over();
        }
        let (admin, registers) = self.admin()?;
        admin.start_over(registers);
        let mut cc = Cc(0);
        cc.set_css(set);
        cc.set_iosqes(6);
        cc.set_iocqes(4);
        cc.set_en(true);
        registers.write32(offset::CC, cc.0);
        Ok(())
    }

    pub(super) fn enabled(&self) -> Wait {
        match self.status() {
            Csts::ABSENT => Wait::Absent,
            csts if csts.cfs() => Wait::Fatal,
            csts if csts.rdy() => Wait::Done,
            _ => Wait::Pending,
        }
    }

    fn shut_down(&self) -> Wait {
        match self.status() {
            Csts::ABSENT => Wait::Absent,
            csts if csts.cfs() => Wait::Fatal,
            csts if csts.shst() == shst::COMPLETE => Wait::Done,
            _ => Wait::Pending,
        }
    }

    /// Waits, at most for CAP.TO.
    pub(super) fn wait_for(
        &self,
        what: &'static str,
        check: impl Fn(&Self) -> Wait,
    ) -> Result<(), NvmeError> {
        let (since, patience) = (Instant::now(), self.patience());
        loop {
            // In this order: a last look after the time is up.
            let late = since.elapsed() >= patience;
            match check(self) {
                Wait::Done => return Ok(()),
                Wait::Fatal => return Err(NvmeError::Fatal),
                Wait::Absent => return Err(NvmeError::Gone),
                Wait::Pending if late => {
                    return Err(NvmeError::Timeout { what, after: patience });
                }
                Wait::Pending => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Resets the function, which proves that it has stopped; so does its absence. Bus mastering is off afterwards.
    /// Returns the proof, or [`NvmeError::Stuck`].
    pub(super) fn reset_function(&mut self) -> Result<(), NvmeError> {
        let reset = self.device.reset();
        if let Err(error) = self.device.set_bus_master(false) {
            tracing::debug!(%error, "switching bus mastering off");
        }
        match reset {
            Ok(()) => Ok(()),
            Err(_) if self.absent() => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the device can neither be disabled nor reset");
                Err(NvmeError::Stuck)
            }
        }
    }

    /// Whether every register reads as all ones: nothing answers on the bus.
    pub(super) fn absent(&self) -> bool {
        self.status() == Csts::ABSENT
            && self.registers.read64(offset::CAP) == u64::MAX
            && self.registers.read32(offset::VS) == u32::MAX
    }

    /// Tells the controller of the shutdown, disables it and takes the bus from it; by force if need be.
    pub(super) fn stop(&mut self) -> Result<(), NvmeError> {
        if self.stopped {
            return Ok(());
        }
        let csts = self.status();
        if csts.rdy() && !csts.cfs() {
            let mut cc = Cc(self.registers.read32(offset::CC));
            cc.set_shn(shn::NORMAL);
            self.registers.write32(offset::CC, cc.0);
            if let Err(error) = self.wait_for("its shutdown", Self::shut_down) {
                tracing::warn!(%error, "shutting down");
            }
        }
        self.disable();
        if self.wait_for("disabling", Self::disabled).is_err() {
            self.reset_function()?;
        } else if let Err(error) = self.device.set_bus_master(false) {
            tracing::warn!(%error, "switching bus mastering off");
        }
        self.stopped = true;
        Ok(())
    }
}

impl<D: Device> Drop for Link<D> {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            // The device may still write: what it knows of is never used again.
            tracing::error!(%error, "keeping the memory of a controller that does not stop");
            keep(self.admin.take());
            keep(std::mem::take(&mut self.held));
            keep(self.shadows.take());
        }
    }
}
