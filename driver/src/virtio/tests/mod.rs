//! The driver on the emulated device: one that behaves, one that lies, one that is late, one that goes.

mod device;
mod hostile;
mod reset;
pub(crate) mod rig;
