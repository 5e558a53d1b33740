//! The driver against the emulated controller, some of it rigged.

mod changes;
mod device;
mod hostile;
mod late;
mod lies;
mod reset;
mod rig;
