//! NVMe controllers, software and real.

use driver::hal::Device;
use driver::nvme::{Controller, ErrorEntry, Options, Queue};
use wire::control::{ErrorInfo, HealthInfo};

use super::{DeviceUri, OpenError, Opened, tended};

/// Opens a controller with a queue for each poller and one for the store.
pub(crate) fn open<D: Device>(
    uri: &DeviceUri,
    device: D,
    pollers: u16,
    mapper_pins: bool,
) -> Result<Opened<Queue<D::Registers>>, OpenError> {
    // Pollers poll while anything is at the device, so nothing needs an interrupt, and completions cost none.
    let options = Options { interrupts: false, ..Options::new(pollers.saturating_add(1)) };
    let controller = Controller::open_with(device, &options).map_err(|e| OpenError::new(uri, &e))?;
    tended::open(uri, controller, pollers, mapper_pins, |controller| {
        let health = controller.health();
        let both = health.and_then(|health| Ok(health_info(&health, &controller.error_log()?)));
        Some(both.map_err(|error| error.to_string()))
    })
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
