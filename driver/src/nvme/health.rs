//! What a controller says of its health: its own word, nothing of it checked.

use crate::spec::nvme::{ErrorLogEntry, SmartLog};

/// The health of a device (Base 2.0, 5.16.1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Critical warnings, as bits: see [`crate::spec::nvme::CriticalWarning`].
    pub warnings: u8,
    /// Those of endurance groups.
    pub endurance_group_warnings: u8,
    /// Composite temperature, in kelvins.
    pub temperature: u16,
    /// Spare capacity left, in percent.
    pub available_spare: u8,
    /// Where that becomes a warning, in percent.
    pub spare_threshold: u8,
    /// Life used, in percent; may go beyond 100.
    pub percentage_used: u8,
    /// Read by hosts, in units of 512,000 bytes.
    pub data_units_read: u128,
    /// Written by hosts, in units of 512,000 bytes.
    pub data_units_written: u128,
    /// Read commands.
    pub read_commands: u128,
    /// Write commands.
    pub write_commands: u128,
    /// Minutes busy with I/O.
    pub busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours under power.
    pub power_on_hours: u128,
    /// Power losses without a shutdown before.
    pub unsafe_shutdowns: u128,
    /// Unrecovered data integrity errors.
    pub media_errors: u128,
    /// Entries that the error log ever had.
    pub error_log_entries: u128,
    /// Minutes above the warning temperature.
    pub warning_temperature_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_temperature_minutes: u32,
    /// Temperature sensors 1 to 8, in kelvins; 0: not there.
    pub temperature_sensors: [u16; 8],
    /// How often thermal management temperature 1, and 2, took effect.
    pub thermal_transitions: [u32; 2],
    /// For how many seconds.
    pub thermal_seconds: [u32; 2],
}

impl From<&SmartLog> for Health {
    fn from(log: &SmartLog) -> Self {
        Self {
            warnings: log.critical_warning.0,
            endurance_group_warnings: log.endurance_group_critical_warning,
            temperature: log.composite_temperature.get(),
            available_spare: log.available_spare,
            spare_threshold: log.available_spare_threshold,
            percentage_used: log.percentage_used,
            data_units_read: log.data_units_read.get(),
            data_units_written: log.data_units_written.get(),
            read_commands: log.host_read_commands.get(),
            write_commands: log.host_write_commands.get(),
            busy_minutes: log.controller_busy_time.get(),
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
        }
    }
}

/// An error that a controller remembers (Base 2.0, 5.16.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorEntry {
    /// Counts errors over the controller's life, from 1.
    pub count: u64,
    /// The submission queue of the command.
    pub queue: u16,
    /// The command's id.
    pub command: u16,
    /// Status field of its completion, with the phase in bit 0.
    pub status: u16,
    /// Byte (bits 0 to 7) and bit (8 to 10) of the command that was wrong.
    pub parameter: u16,
    /// First block affected.
    pub lba: u64,
    /// Namespace.
    pub namespace: u32,
    /// Log page with the vendor's own; 0: none.
    pub vendor_log: u8,
    /// As command and status say.
    pub command_specific: u64,
}

impl ErrorEntry {
    /// `None` for an entry that is not used.
    pub(super) fn of(entry: &ErrorLogEntry) -> Option<Self> {
        (entry.error_count.get() != 0).then(|| Self {
            count: entry.error_count.get(),
            queue: entry.sqid.get(),
            command: entry.cid.get(),
            status: entry.status.get(),
            parameter: entry.parameter_location.get(),
            lba: entry.lba.get(),
            namespace: entry.nsid.get(),
            vendor_log: entry.vendor_log,
            command_specific: entry.command_specific.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    /// The bytes of 5.16.1.2, written here by hand.
    #[test]
    fn an_entry_of_the_error_log_in_literal_bytes() {
        let mut bytes = [0u8; 64];
        assert_eq!(ErrorEntry::of(&ErrorLogEntry::read_from_bytes(&bytes).unwrap()), None);
        bytes[..8].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 1]);
        bytes[8..16].copy_from_slice(&[2, 0, 7, 1, 0x05, 0x40, 0x28, 0x03]);
        bytes[16] = 9;
        bytes[24..29].copy_from_slice(&[1, 0, 0, 0, 0xc0]);
        bytes[32] = 0x11;
        let entry = ErrorEntry::of(&ErrorLogEntry::read_from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!((entry.count, entry.queue, entry.command), (0x0100_0000_0000_0005, 2, 0x107));
        assert_eq!((entry.status, entry.parameter, entry.lba), (0x4005, 0x328, 9));
        assert_eq!((entry.namespace, entry.vendor_log, entry.command_specific), (1, 0xc0, 0x11));
    }
}
