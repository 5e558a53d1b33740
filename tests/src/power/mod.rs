//! The power goes, the machine dies: what must be left.
//!
//! A [`workload`] of several sessions changes volumes and their content; a [`model`] is told each thing before it is asked
//! for and after it was acknowledged, and knows what may be on the device at any moment. After a cut an adapter is started
//! again, and [`audit`] compares all that it shows with the model. Three things cut:
//!
//! - [`cuts`]: the software device over a [`supply`], media with a volatile cache whose power goes at any operation. Store
//!   and applications share it, so metadata and data are cut together.
//! - [`files`]: files instead of blocks, on media that keep a [`record`] of each write and flush; each state that a cut may
//!   leave is made from it.
//! - [`machine`]: a guest that QEMU is killed under. What QEMU wrote the host's page cache keeps, so nothing that reached
//!   the device is lost there; only what is under way is cut.

pub mod audit;
pub mod cuts;
pub mod files;
pub mod machine;
pub mod model;
pub mod record;
pub mod supply;
pub mod workload;

pub use driver::dice::Dice;

use crate::system;

/// A test of the package's program `power`.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(),
}

/// All tests. They bring software devices of their own.
pub const CASES: &[Case] = &[
    Case { name: "a_power_cut_loses_nothing_that_was_acknowledged_and_flushed", run: cuts::many },
    Case { name: "a_power_cut_anywhere_leaves_files_as_the_contract_says", run: files::many },
    Case { name: "a_panic_of_the_store_costs_its_changes_only", run: cuts::panics },
];

/// How long anything may take.
const PATIENCE: std::time::Duration = system::PATIENCE;
