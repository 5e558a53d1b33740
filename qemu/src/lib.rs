//! The machine under test: a QEMU guest with an NVMe disk behind an IOMMU.
//!
//! A [`Guest`] is a [`Machine`] plus what happens in it: programs of the host, built statically by [`build_static`],
//! and [`Step`]s that the guest's init (`guest-init`, process 1, also ours) takes one after the other. There is no
//! disk image and no distribution inside: an initramfs holds init, a few kernel modules and the programs. What
//! happens comes back as [`Event`]s over a virtio-serial port while the guest runs. A guest that does not say
//! [`Event::Done`] at its end has failed.
//!
//! ```no_run
//! use qemu::{Artifact, Command, Guest, Machine, Nvme, Step};
//!
//! qemu::install()?;
//! let disk = qemu::scratch_disk("probe", 64 << 20)?;
//! let guest = Guest::new(Machine::new().iommu(true).nvme(Nvme::new(disk)))
//!     .program(qemu::build_static("driver", Artifact::UnitTests)?, "tests")
//!     .step(Step::bind_vfio(qemu::nvme_address(0), None))
//!     .step(Step::run(Command::new("tests").arg("--test-threads=1")));
//! guest.run(&mut qemu::print_event)?.check()?;
//! # anyhow::Ok(())
//! ```
#![deny(unsafe_code)]

mod clock;
mod guest;
mod initramfs;
mod install;
mod kernel;
mod machine;
mod module;
mod monitor;
mod script;
mod static_build;

pub use guest::{Exit, Guest, Outcome, nvme_address, print_event, scratch_disk, virtio_address};
pub use initramfs::Initramfs;
pub use install::install;
pub use kernel::Kernel;
pub use machine::{Machine, Nvme, Virtio};
pub use module::Modules;
pub use monitor::Monitor;
pub use script::{
    Command, End, Event, Expect, LoadModule, RESULTS_PORT, SCRIPT_PATH, Script, Step, Stream, User,
};
pub use static_build::{Artifact, StaticBuild, build_static};

use std::fs::File;
use std::path::PathBuf;

/// The root of the workspace this was built from.
fn workspace() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// Where kernels, guests' files and their lock live: `target/qemu`.
fn cache() -> PathBuf {
    workspace().join("target").join("qemu")
}

/// Something that one process of the host does at a time, until dropped.
struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock file `name` in the cache.
    fn take(name: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(cache())?;
        let file = File::create(cache().join(name))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(Self { _file: file })
    }
}
