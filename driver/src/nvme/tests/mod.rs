//! The driver against the emulated controller, some of it rigged.

mod device;
mod hostile;
mod late;
mod reset;
mod rig;
