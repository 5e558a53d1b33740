//! Why a function is not given to vfio-pci.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use adapter::Content;

use super::kernel::{Claim, Kernel};
use crate::machine::Machine;
use crate::machine::block::{disks, layers, other_paths};
use crate::machine::function::{Function, VFIO};
use crate::machine::users::users;

/// One reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    /// What is in the way, by name.
    pub(crate) why: String,
    /// Commands that take it away.
    pub(crate) mend: Vec<String>,
    /// `--force` goes over it.
    pub(crate) forceable: bool,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), mend: Vec::new(), forceable: false }
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }

    fn forceable(mut self) -> Self {
        self.forceable = true;
        self
    }
}

/// All that can be seen without touching a disk.
pub(crate) fn refusals(machine: &Machine, function: &Function) -> Vec<Refusal> {
    let mut refusals = of_function(machine, function);
    let disks = disks(machine, function);
    for user in users(machine, &layers(machine, &disks)) {
        let mut refusal = if user.essential {
            Refusal::new(format!("{}: this system runs from it, and it is never taken away", user.what))
        } else {
            Refusal::new(user.what)
        };
        refusal.mend.extend(user.mend);
        refusals.push(refusal);
    }
    for path in other_paths(machine, function, &disks) {
        let why = format!(
            "the kernel reaches the same namespace by {path}, over another controller, and would go on to"
        );
        refusals.push(Refusal::new(why).forceable());
    }
    refusals
}

fn of_function(machine: &Machine, function: &Function) -> Vec<Refusal> {
    let address = &function.address;
    let mut refusals = Vec::new();
    if function.kind.is_none() {
        let why =
            format!("{address} is neither an NVMe nor a virtio-blk disk; `portcullis doctor` lists those");
        refusals.push(Refusal::new(why));
    }
    if function.virtual_functions > 0 {
        let why = format!(
            "{address} has {} virtual functions, which depend on its driver",
            function.virtual_functions
        );
        let command = format!("echo 0 | sudo tee /{}/sriov_numvfs", function.directory());
        refusals.push(Refusal::new(why).mend(command));
    }
    if function.group.is_none() || function.unprotected {
        let why = format!("{address} is behind no IOMMU: nothing would bound what it writes in memory");
        refusals.push(Refusal::new(why).mend("portcullis doctor    # says how it is switched on"));
    }
    let group = function.group.as_deref().unwrap_or_default();
    for member in function.strangers(machine) {
        let driver = member.driver.as_deref().unwrap_or("no driver");
        let why = format!(
            "{} ({driver}) is in the same IOMMU group {group}: the hardware cannot tell their transfers apart, so all of the \
             group go to {VFIO} or none",
            member.address
        );
        let unbind = format!("echo {} | sudo tee /sys/bus/pci/devices/{0}/driver/unbind", member.address);
        refusals.push(Refusal::new(why).mend(unbind));
    }
    refusals
}

/// Claims the function's disks, so that nobody can begin to use them, and looks at what is on them. Disks that are in use
/// in a way that nothing else shows are among the refusals.
pub(super) fn claim(
    machine: &Machine,
    kernel: &dyn Kernel,
    function: &Function,
    refusals: &mut Vec<Refusal>,
) -> Vec<File> {
    let mut claims = Vec::new();
    for disk in disks(machine, function) {
        let node = machine.path("dev").join(disk.replace('!', "/"));
        let claimed = kernel.claim(&node, Claim::Disk).and_then(|file| Ok((content(&file)?, file)));
        match claimed {
            Ok((found, file)) => {
                if let Content::Foreign(what) = found {
                    let why = format!("{disk} holds {what}, which would be out of reach, and in danger");
                    refusals.push(Refusal::new(why).forceable());
                }
                claims.push(file);
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                // What was found already is why.
                if refusals.iter().all(|refusal| refusal.forceable) {
                    let why = format!(
                        "the kernel says that {disk} is in use, by somebody who is not seen from here: a mount in a \
                         namespace of its own, ZFS, a journal of another file system"
                    );
                    refusals.push(Refusal::new(why));
                }
            }
            // A disk without medium, or one whose name is not there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEDIUM | libc::ENXIO)) => {}
            Err(error) => {
                refusals.push(
                    Refusal::new(format!("what is on {disk} cannot be looked at: {error}")).forceable(),
                );
            }
        }
    }
    claims
}

fn content(file: &File) -> io::Result<Content> {
    use std::io::{Seek, SeekFrom};
    let bytes = (&*file).seek(SeekFrom::End(0))?;
    Content::of(bytes, &mut |offset, data| file.read_exact_at(data, offset))
}
