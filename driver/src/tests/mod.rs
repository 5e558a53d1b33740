//! What must hold of any driver: against its emulated device, some of it rigged, or late.

mod late;
mod reset;
pub(crate) mod rig;
