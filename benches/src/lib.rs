//! What the path costs on this machine: criterion benchmarks, and what they share.
//!
//! `cargo xtask bench` runs all of them and prints one table; `cargo bench -p benches --bench check` runs one.
//!
//! | target   | what is measured                                                   | one iteration is                  |
//! |----------|--------------------------------------------------------------------|-----------------------------------|
//! | `check`  | the decision of the protection tables, beside a bare array         | one request checked and released  |
//! | `ring`   | a processing queue, beside one cache line going to and fro         | one batch there and back          |
//! | `engine` | the whole embedded adapter, over the null and the software device  | one batch submitted and completed |
//! | `nvme`   | the NVMe driver over the software controller, beside a bare copy   | one batch submitted and completed |
//! |          | what names the memory of a command (PRP entries), alone            | 32 commands' entries built        |
//!
//! Every figure is a time for one iteration. Where an iteration is a batch of `n` requests the name says `n`, and the
//! time is that of the whole batch. Each target says at its head what its figures do not show.
//!
//! The gate that no noise moves is a count of instructions: `cargo xtask bench 1 6 12` runs callgrind itself on one function
//! (`xtask/src/bench/counted.rs`), for which neither gungraun nor its runner has to be installed.
//!
//! What none of them shows:
//! - **A disk.** `emu` is a controller in this process and its medium is memory. Time at a real disk is longer, and
//!   these figures are what is added to it.
//! - **A tail.** Criterion reports the median of means of many iterations each; percentiles of single requests are
//!   `portcullis bench`'s matter.
//! - **Another machine, or an idle one.** Times are of the clock on the wall: what else ran is in them, so each target
//!   says the load before and after, and a figure means something only beside its floor of the same run. On a virtual
//!   machine the time between two cores changes several times over with where the hypervisor puts them, so what crosses
//!   cores stands between two runs of a bare probe.
//!
//! `PORTCULLIS_DEVICE` (`cargo xtask bench --device URI`) names one more device for `engine`.

pub mod asleep;
pub mod cached;
pub mod check;
pub mod cpu;
pub mod decision;
pub mod device;
pub mod figure;
pub mod guest;
pub mod memory;
pub mod null;
pub mod path;
pub mod pattern;
pub mod ping;
pub mod process;
pub mod requests;
pub mod ring;
pub mod rounds;
pub mod shares;
pub mod uring;
pub mod wake;
