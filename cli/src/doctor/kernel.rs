//! What the kernel must be able to do, and what the adapter confines itself with. Tried, not concluded from a version:
//! distributions bring features to older kernels.
#![allow(unsafe_code)] // madvise has no safe form

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use super::{Finding, State};
use crate::machine::Machine;

pub(super) fn findings(machine: &Machine) -> Vec<Finding> {
    let release = machine.text("proc/sys/kernel/osrelease");
    let newer = |check: &str, what: &str, since: &str| {
        Finding::new(check, State::Missing, format!("Linux {release} has no {what}: use {since} or later"))
    };
    let seals = match sealing() {
        Ok(()) => {
            Finding::new("sealed memory", State::Ok, "memfds can be sealed against new writable mappings")
        }
        Err(Errno::INVAL) => newer("sealed memory", "F_SEAL_FUTURE_WRITE", "Linux 5.1"),
        Err(error) => Finding::new(
            "sealed memory",
            State::Missing,
            format!("a memfd cannot be made and sealed: {error}"),
        ),
    };
    // SAFETY: of no bytes at all.
    let populate = match unsafe { madvise(std::ptr::null_mut(), 0, Advice::LinuxPopulateWrite) } {
        Ok(()) => Finding::new("filled memory", State::Ok, "MADV_POPULATE_WRITE"),
        Err(_) => newer("filled memory", "MADV_POPULATE_WRITE", "Linux 5.14"),
    };
    vec![seals, populate, confinement()]
}

fn sealing() -> Result<(), Errno> {
    let memfd = memfd_create("portcullis-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL)
}

/// With less of it the adapter works, and a bug in it reaches further.
fn confinement() -> Finding {
    let has = adapter::confine::available();
    let landlock = match has.landlock {
        Some(version) => format!("Landlock version {version}"),
        None => "no Landlock (boot with lsm=landlock,..., Linux 5.13 or later)".to_owned(),
    };
    let filter =
        if has.seccomp { "system call filters" } else { "no system call filters (CONFIG_SECCOMP_FILTER)" };
    let state = if has.seccomp && has.landlock.is_some() { State::Ok } else { State::Note };
    let finding = Finding::new("confinement", state, format!("{filter}, {landlock}"));
    if has.landlock.is_some() {
        return finding;
    }
    finding.mend(
        "sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&lsm=landlock,lockdown,yama,integrity,apparmor,bpf /' /etc/default/grub && \
         sudo update-grub && sudo reboot",
    )
}
