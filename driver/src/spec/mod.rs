//! Bytes of the devices' specifications, and nothing else: no behaviour, no memory, no unsafe code.

pub mod nvme;
