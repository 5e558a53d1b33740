//! The driver against the emulated controller, some of it rigged.

mod changes;
mod device;
mod doorbells;
mod hostile;
mod lies;
mod reset;
pub(crate) mod rig;
