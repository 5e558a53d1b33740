//! The suites that run on every device.
//!
//! - [`conformance`]: what every block device must do, through the driver.
#![deny(unsafe_code)]

pub mod conformance;
