//! NVMe controllers, software and real.

use driver::hal::Device;
use driver::nvme::{Controller, Options, Queue};
use driver::spec::nvme::{ErrorLogEntry, SmartLog};
use wire::control::{ErrorInfo, HealthInfo};

use super::away::{self, Source};
use super::returning::Returning;
use super::{DeviceUri, OpenError, Opened, tended};

/// Opens a controller with a queue for each poller and one for the store.
pub(crate) fn open<D: Device>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    let options = options(&device, pollers);
    let controller = Controller::open_with(device, &options).map_err(|e| OpenError::new(uri, &e))?;
    tended::open(uri, controller, pollers, mapper_pins, read_health)
}

/// The same of one that may go and come back; `source` finds it.
pub(super) fn open_returning<D: Device>(
    uri: &DeviceUri,
    source: Source<D>,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Returning<Queue<D::Registers>>>, OpenError> {
    let connect = away::connect(uri, source, move |device| {
        let options = options(&device, pollers);
        Controller::open_with(device, &options)
    });
    away::open(uri, connect, (pollers, mapper_pins), read_health)
}

fn options<D: Device>(device: &D, pollers: u16) -> Options {
    // Interrupts are raised only for a poller that sleeps. A device that would raise one for each completion has none.
    Options { interrupts: device.masks_vectors(), ..Options::new(pollers.saturating_add(1)) }
}

#[expect(clippy::unnecessary_wraps, reason = "other kinds of device have none")]
fn read_health<D: Device>(controller: &mut Controller<D>) -> Option<Result<HealthInfo, String>> {
    let health = controller.health();
    let both = health.and_then(|health| Ok(health_info(&health, &controller.error_log()?)));
    Some(both.map_err(|error| error.to_string()))
}

/// As it crosses the control socket.
fn health_info(log: &SmartLog, errors: &[ErrorLogEntry]) -> HealthInfo {
    let error = |entry: &ErrorLogEntry| ErrorInfo {
        count: entry.error_count.get(),
        queue: entry.sqid.get(),
        command: entry.cid.get(),
        status: entry.status.get(),
        parameter: entry.parameter_location.get(),
        lba: entry.lba.get(),
        namespace: entry.nsid.get(),
        vendor_log: entry.vendor_log,
        command_specific: entry.command_specific.get(),
    };
    HealthInfo {
        uri: String::new(),
        critical_warning: log.critical_warning.0,
        endurance_group_warning: log.endurance_group_critical_warning,
        temperature: log.composite_temperature.get(),
        available_spare: log.available_spare,
        spare_threshold: log.available_spare_threshold,
        percentage_used: log.percentage_used,
        data_units_read: log.data_units_read.get(),
        data_units_written: log.data_units_written.get(),
        host_read_commands: log.host_read_commands.get(),
        host_write_commands: log.host_write_commands.get(),
        controller_busy_minutes: log.controller_busy_time.get(),
        power_cycles: log.power_cycles.get(),
        power_on_hours: log.power_on_hours.get(),
        unsafe_shutdowns: log.unsafe_shutdowns.get(),
        media_errors: log.media_errors.get(),
        error_log_entries: log.error_log_entries.get(),
        warning_temperature_minutes: log.warning_temperature_time.get(),
        critical_temperature_minutes: log.critical_temperature_time.get(),
        temperature_sensors: log.temperature_sensors.map(|kelvins| kelvins.get()),
        thermal_transitions: log.thermal_transitions.map(|count| count.get()),
        thermal_seconds: log.thermal_seconds.map(|seconds| seconds.get()),
        errors: errors.iter().map(error).collect(),
    }
}
