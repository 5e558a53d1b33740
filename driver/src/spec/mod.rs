//! The bytes of the standards, and nothing else: registers, queue entries, data structures.
//!
//! A field is named as its standard names it; one that the standard counts from zero ends in `_z`. Values that a
//! device chooses stay numbers (or newtypes with constants): nothing here trusts them.
#![forbid(unsafe_code)]

pub mod nvme;
pub mod pci;
pub mod virtio;

// Queue entries are read and written as native words; both ends of the bus are little-endian.
#[cfg(target_endian = "big")]
compile_error!("the device side is written for little-endian machines");
