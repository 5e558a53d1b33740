//! The suites that run on every device.
//!
//! - [`conformance`]: what every block device must do, through the driver.
//! - [`death`]: applications and adapters that die in the middle of anything.
//! - [`faults`]: devices that fail, lie, hang and go, as one table.
//! - [`simulation`]: the engine over a device, applications and a control plane that all come from one seed.
//! - [`power`]: what is left when the power goes.
//! - [`restart`]: applications that go on when the adapter is replaced.
//! - [`system`]: what applications and adapter do together, through the whole path.
#![deny(unsafe_code)]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)] // a case that cannot go on has failed

pub mod conformance;
pub mod death;
pub mod faults;
mod kept;
pub mod power;
pub mod process;
pub mod restart;
pub mod scale;
pub mod simulation;
pub mod suite;
pub mod system;
