//! The part in the guest of a test that kills the whole machine: see `qemu/tests/guest/power.rs`.

/// Set in the guest: the program works until it is killed.
pub const WORK: &str = "PORTCULLIS_POWER_WORK";
