//! What the NVMe devices, software and real, have in common.

use std::sync::Arc;

use driver::disk::BlockingQueue;
use driver::dma::Pages;
use driver::hal::Device;
use driver::nvme::{Controller, ErrorEntry, Options, Queue, ResetProgress, Watch};
use wire::control::{ErrorInfo, HealthInfo};

use super::{Health, Identity, OpenError, Opened, Supervisor};
use crate::device::DeviceUri;

/// Bytes of the store's bounce buffer.
const BOUNCE: usize = 256 << 10;

/// Opens a controller with a queue for each poller and one for the store.
pub(crate) fn open<D: Device>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    let failed = |e: &dyn std::fmt::Display| OpenError::new(uri, e);
    // Pollers poll while anything is at the device, so nothing needs an interrupt, and completions cost none.
    let options = Options { interrupts: false, ..Options::new(pollers.saturating_add(1)) };
    let mut controller = Controller::open_with(device, &options).map_err(|e| failed(&e))?;
    let mapper = controller.mapper();
    let mut take = || controller.take_queue().ok_or_else(|| failed(&"the controller has too few queues"));
    let for_store = take()?;
    let queues = (0..pollers).map(|_| Ok((take()?, None))).collect::<Result<Vec<_>, OpenError>>()?;
    let bounce = Pages::new(BOUNCE).map_err(|e| failed(&e))?;
    let disk = BlockingQueue::new(for_store, &*mapper, Arc::new(bounce)).map_err(|e| failed(&e))?;
    let identity = controller.identity();
    Ok(Opened {
        identity: Identity {
            model: identity.model.clone(),
            serial: identity.serial.clone(),
            firmware: identity.firmware.clone(),
        },
        geometry: *controller.geometry(),
        mapper,
        mapper_pins,
        queues,
        disk: Box::new(disk),
        supervisor: Box::new(Nurse { controller, health: Health::Running }),
    })
}

/// Resets the controller when it fails or keeps a command for too long.
struct Nurse<D: Device> {
    controller: Controller<D>,
    health: Health,
}

impl<D: Device> Supervisor for Nurse<D> {
    fn tend(&mut self, stuck: bool) -> Health {
        if self.health == Health::Running {
            match self.controller.watch() {
                Watch::Running if !stuck => return Health::Running,
                Watch::Gone => self.health = Health::Gone,
                why => {
                    tracing::warn!(?why, stuck, "resetting the controller");
                    self.controller.begin_reset();
                    self.health = Health::Resetting;
                }
            }
        }
        if self.health == Health::Resetting {
            match self.controller.finish_reset() {
                ResetProgress::Pending => {}
                ResetProgress::Done => self.health = Health::Running,
                ResetProgress::Gone => self.health = Health::Gone,
                ResetProgress::Stuck => self.controller.begin_reset(),
            }
        }
        self.health
    }

    fn read_health(&mut self) -> Option<Result<HealthInfo, String>> {
        let health = self.controller.health();
        let both = health.and_then(|health| Ok(health_info(&health, &self.controller.error_log()?)));
        Some(both.map_err(|error| error.to_string()))
    }

    fn shut_down(mut self: Box<Self>) {
        if let Err(error) = self.controller.shutdown() {
            tracing::error!(%error, "shutting the controller down");
        }
    }
}

/// As it crosses the control socket.
fn health_info(health: &driver::nvme::Health, errors: &[ErrorEntry]) -> HealthInfo {
    let error = |entry: &ErrorEntry| ErrorInfo {
        count: entry.count,
        queue: entry.queue,
        command: entry.command,
        status: entry.status,
        parameter: entry.parameter,
        lba: entry.lba,
        namespace: entry.namespace,
        vendor_log: entry.vendor_log,
        command_specific: entry.command_specific,
    };
    HealthInfo {
        uri: String::new(),
        critical_warning: health.warnings,
        endurance_group_warning: health.endurance_group_warnings,
        temperature: health.temperature,
        available_spare: health.available_spare,
        spare_threshold: health.spare_threshold,
        percentage_used: health.percentage_used,
        data_units_read: health.data_units_read,
        data_units_written: health.data_units_written,
        host_read_commands: health.read_commands,
        host_write_commands: health.write_commands,
        controller_busy_minutes: health.busy_minutes,
        power_cycles: health.power_cycles,
        power_on_hours: health.power_on_hours,
        unsafe_shutdowns: health.unsafe_shutdowns,
        media_errors: health.media_errors,
        error_log_entries: health.error_log_entries,
        warning_temperature_minutes: health.warning_temperature_minutes,
        critical_temperature_minutes: health.critical_temperature_minutes,
        temperature_sensors: health.temperature_sensors,
        thermal_transitions: health.thermal_transitions,
        thermal_seconds: health.thermal_seconds,
        errors: errors.iter().map(error).collect(),
    }
}
