//! Log pages (Base, section 5.16).

use bitfield::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitfield! {
    /// Critical Warning of the SMART log (Base, 5.16.1.3).
    #[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
    #[repr(transparent)]
    pub struct CriticalWarning(pub u8);
    impl Debug;
    /// Spare capacity below its threshold.
    pub spare, set_spare: 0;
    /// Temperature beyond a threshold.
    pub temperature, set_temperature: 1;
    /// Reliability degraded.
    pub degraded, set_degraded: 2;
    /// The media is read-only.
    pub read_only, set_read_only: 3;
    /// The volatile memory backup failed.
    pub backup_failed, set_backup_failed: 4;
}

/// SMART / Health Information, log page 02h (Base, 5.16.1.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warnings.
    pub critical_warning: CriticalWarning,
    /// Composite temperature, in kelvins.
    pub composite_temperature: U16,
    /// Available spare, in percent.
    pub available_spare: u8,
    /// Where `available_spare` becomes a warning, in percent.
    pub available_spare_threshold: u8,
    /// Life used, in percent; may go beyond 100.
    pub percentage_used: u8,
    /// Endurance group critical warnings.
    pub endurance_group_critical_warning: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Read by the host, in units of 1000 × 512 bytes.
    pub data_units_read: U128,
    /// Written by the host, in units of 1000 × 512 bytes.
    pub data_units_written: U128,
    /// Read commands.
    pub host_read_commands: U128,
    /// Write commands.
    pub host_write_commands: U128,
    /// Time busy with I/O, in minutes.
    pub controller_busy_time: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Power-on hours.
    pub power_on_hours: U128,
    /// Power losses without a shutdown notification.
    pub unsafe_shutdowns: U128,
    /// Unrecovered data integrity errors.
    pub media_errors: U128,
    /// Error log entries over the controller's life.
    pub error_log_entries: U128,
    /// Time above the warning temperature, in minutes.
    pub warning_temperature_time: U32,
    /// Time above the critical temperature, in minutes.
    pub critical_temperature_time: U32,
    /// Temperature sensors 1 to 8, in kelvins; 0: not there.
    pub temperature_sensors: [U16; 8],
    /// Transitions to a lower power state that thermal management temperatures 1 and 2 made.
    pub thermal_transitions: [U32; 2],
    /// Seconds spent there.
    pub thermal_seconds: [U32; 2],
    /// Reserved.
    pub rest: [u8; 280],
}

/// An entry of Error Information, log page 01h (Base, 5.16.1.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Counts errors over the controller's life; 0: the entry is not used.
    pub error_count: U64,
    /// The submission queue; ffffh: not of a particular one.
    pub sqid: U16,
    /// The command; ffffh: not of a particular one.
    pub cid: U16,
    /// Status field of the completion, with the phase.
    pub status: U16,
    /// Byte (bits 0 to 7) and bit (8 to 10) of the command that was wrong.
    pub parameter_location: U16,
    /// First block affected.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Log page with the vendor's own; 0: none.
    pub vendor_log: u8,
    /// Transport type.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// As the command and status say.
    pub command_specific: U64,
    /// As the transport says.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

impl ErrorLogEntry {
    /// Whether there was such an error.
    pub fn is_used(&self) -> bool {
        self.error_count.get() != 0
    }
}

const _: () = assert!(size_of::<ErrorLogEntry>() == 64);
const _: () = assert!(std::mem::offset_of!(ErrorLogEntry, lba) == 16);
const _: () = assert!(std::mem::offset_of!(ErrorLogEntry, command_specific) == 32);

const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(std::mem::offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(std::mem::offset_of!(SmartLog, media_errors) == 160);
const _: () = assert!(std::mem::offset_of!(SmartLog, temperature_sensors) == 200);
const _: () = assert!(std::mem::offset_of!(SmartLog, thermal_transitions) == 216);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smart_in_literal_bytes() {
        let mut bytes = [0u8; 512];
        bytes[..6].copy_from_slice(&[0x08, 0x3b, 0x01, 99, 10, 3]);
        bytes[48] = 0x07;
        bytes[161] = 0x01;
        let log = SmartLog::read_from_bytes(&bytes).unwrap();
        assert!(log.critical_warning.read_only());
        assert_eq!((log.composite_temperature.get(), log.available_spare, log.percentage_used), (315, 99, 3));
        assert_eq!((log.data_units_written.get(), log.media_errors.get()), (7, 256));
    }

    /// The bytes of 5.16.1.2, written here by hand.
    #[test]
    fn an_entry_of_the_error_log_in_literal_bytes() {
        let mut bytes = [0u8; 64];
        assert!(!ErrorLogEntry::read_from_bytes(&bytes).unwrap().is_used());
        bytes[..8].copy_from_slice(&[5, 0, 0, 0, 0, 0, 0, 1]);
        bytes[8..16].copy_from_slice(&[2, 0, 7, 1, 0x05, 0x40, 0x28, 0x03]);
        bytes[16] = 9;
        bytes[24..29].copy_from_slice(&[1, 0, 0, 0, 0xc0]);
        bytes[32] = 0x11;
        let entry = ErrorLogEntry::read_from_bytes(&bytes).unwrap();
        assert!(entry.is_used());
        assert_eq!((entry.error_count.get(), entry.sqid.get()), (0x0100_0000_0000_0005, 2));
        assert_eq!((entry.cid.get(), entry.status.get(), entry.lba.get()), (0x107, 0x4005, 9));
        assert_eq!((entry.parameter_location.get(), entry.nsid.get()), (0x328, 1));
        assert_eq!((entry.vendor_log, entry.command_specific.get()), (0xc0, 0x11));
    }
}
