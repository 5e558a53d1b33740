//! NVM Express: NVM Express Base Specification 2.0 ("Base"), NVM Command Set Specification 1.0 ("NVM"), NVMe over
//! PCIe Transport Specification 1.0 ("PCIe").

mod command;
mod completion;
mod identify;
mod log;
mod registers;
mod sgl;

pub use command::*;
pub use completion::*;
pub use identify::*;
pub use log::*;
pub use registers::*;
pub use sgl::*;

/// The namespace id that means all namespaces (Base, 3.2.1.2).
pub const NSID_ALL: u32 = 0xffff_ffff;
