//! Faults of a machine under test: QEMU's.
