//! What a device says of its health, as it crosses the control socket.

use serde::{Deserialize, Serialize};

/// To [`crate::control::Request::ShowHealth`]: what the device's health log holds, value by value as it stands there (NVMe
/// Base Specification 2.0, 5.16.1.3), and its latest errors. Nothing of it was checked: it is the device's own word.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HealthInfo {
    /// The device, as given to the adapter.
    pub uri: String,
    /// Critical warnings: bit 0 spare, 1 temperature, 2 reliability, 3 read-only, 4 backup of volatile memory, 5 persistent
    /// memory region.
    pub critical_warning: u8,
    /// Warnings of endurance groups, the same bits.
    pub endurance_group_warning: u8,
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
    pub host_read_commands: u128,
    /// Write commands.
    pub host_write_commands: u128,
    /// Time busy with I/O, in minutes.
    pub controller_busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours under power.
    pub power_on_hours: u128,
    /// Power losses without a shutdown before.
    pub unsafe_shutdowns: u128,
    /// Unrecovered data integrity errors.
    pub media_errors: u128,
    /// Entries that the error log had over the controller's life.
    pub error_log_entries: u128,
    /// Time above the warning temperature, in minutes.
    pub warning_temperature_minutes: u32,
    /// Time above the critical temperature, in minutes.
    pub critical_temperature_minutes: u32,
    /// Temperature sensors 1 to 8, in kelvins; 0: not there.
    pub temperature_sensors: [u16; 8],
    /// How often thermal management began with temperature 1 and with 2.
    pub thermal_transitions: [u32; 2],
    /// Seconds for which it went on.
    pub thermal_seconds: [u32; 2],
    /// The latest errors, newest first; at most 64.
    pub errors: Vec<ErrorInfo>,
}

/// An entry of the error log (Base 2.0, 5.16.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// Counts errors over the controller's life; never 0.
    pub count: u64,
    /// The submission queue of the command.
    pub queue: u16,
    /// The command's id.
    pub command: u16,
    /// Status field of its completion, with the phase in bit 0.
    pub status: u16,
    /// Byte (bits 0 to 7) and bit (8 to 10) of the command that is wrong; 0xffff: not about one.
    pub parameter: u16,
    /// The first block that was affected.
    pub lba: u64,
    /// The namespace.
    pub namespace: u32,
    /// Log page with more of the vendor's own; 0: none.
    pub vendor_log: u8,
    /// Of the command, what the status says.
    pub command_specific: u64,
}
