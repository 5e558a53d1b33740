//! A PCI function: what it is, who drives it, who is in its IOMMU group.

use std::path::PathBuf;

use adapter::PciAddress;

use super::Machine;

/// PCI class code of an NVM Express controller (PCI Code and ID Assignment 1.11, 1.2: base class 01h, sub-class 08h).
const CLASS_NVME: &str = "0x0108";
/// PCI vendor of virtio devices (virtio 1.2, 4.1.2), and the class code of their block devices.
const VENDOR_VIRTIO: &str = "0x1af4";
const CLASS_SCSI: &str = "0x0100";
/// Device ids of virtio-blk, transitional and not; that of virtio-scsi, of the same class, is another (virtio 1.2, 4.1.2.1).
const VIRTIO_BLK: [&str; 2] = ["0x1001", "0x1042"];
/// Class code of all bridges.
const CLASS_BRIDGE: &str = "0x06";

/// What the driver that this is all about is called.
pub(crate) const VFIO: &str = "vfio-pci";

/// A function as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Function {
    /// `0000:01:00.0`.
    pub(crate) address: String,
    /// NVMe or virtio-blk; `None` for what an adapter does not drive.
    pub(crate) kind: Option<&'static str>,
    /// The driver bound to it.
    pub(crate) driver: Option<String>,
    /// The driver that alone may be bound to it; empty for any.
    pub(crate) only_driver: String,
    /// Its IOMMU group.
    pub(crate) group: Option<String>,
    /// The group is one without an IOMMU behind it.
    pub(crate) unprotected: bool,
    /// Virtual functions that it has now.
    pub(crate) virtual_functions: u32,
}

/// Another function of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) address: String,
    pub(crate) driver: Option<String>,
}

impl Function {
    /// The function at `address`; `None` if there is none.
    pub(crate) fn at(machine: &Machine, address: PciAddress) -> Option<Self> {
        let address = address.to_string();
        let function = directory(&address);
        if !machine.exists(&function) {
            return None;
        }
        let text = |name: &str| machine.text(format!("{function}/{name}"));
        let (class, vendor) = (text("class"), text("vendor"));
        let kind = if class.starts_with(CLASS_NVME) {
            Some("NVMe")
        } else if class.starts_with(CLASS_SCSI)
            && vendor == VENDOR_VIRTIO
            && VIRTIO_BLK.contains(&text("device").as_str())
        {
            Some("virtio-blk")
        } else {
            None
        };
        let only_driver = text("driver_override");
        Some(Self {
            kind,
            driver: machine.link(format!("{function}/driver")),
            // The kernel's way to write that there is none.
            only_driver: if only_driver == "(null)" { String::new() } else { only_driver },
            group: machine.link(format!("{function}/iommu_group")),
            unprotected: text("iommu_group/name") == "vfio-noiommu",
            virtual_functions: text("sriov_numvfs").parse().unwrap_or(0),
            address,
        })
    }

    /// All functions that an adapter could drive.
    pub(crate) fn disks(machine: &Machine) -> Vec<Self> {
        let addresses = machine.names("sys/bus/pci/devices");
        let functions = addresses.iter().filter_map(|address| Self::at(machine, address.parse().ok()?));
        functions.filter(|function| function.kind.is_some()).collect()
    }

    /// Its directory in sysfs.
    pub(crate) fn directory(&self) -> String {
        directory(&self.address)
    }

    /// Where it really is in the tree of devices.
    pub(crate) fn place(&self, machine: &Machine) -> Option<PathBuf> {
        machine.real(self.directory())
    }

    /// The group's device node, below /.
    pub(crate) fn node(&self) -> Option<String> {
        self.group.as_ref().map(|group| format!("dev/vfio/{group}"))
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.driver.as_deref() == Some(VFIO)
    }

    /// Other functions of its group that a driver of the kernel has, so that VFIO does not give the group out. Bridges
    /// above it are fine: VFIO knows them.
    pub(crate) fn strangers(&self, machine: &Machine) -> Vec<Member> {
        let Some(group) = &self.group else { return Vec::new() };
        let others = machine.names(format!("sys/kernel/iommu_groups/{group}/devices"));
        let others = others.into_iter().filter(|address| *address != self.address);
        let members = others.map(|address| Member {
            driver: machine.link(format!("{}/driver", directory(&address))),
            address,
        });
        members
            .filter(|member| !matches!(member.driver.as_deref(), None | Some(VFIO | "pci-stub")))
            .filter(|member| {
                !machine.text(format!("{}/class", directory(&member.address))).starts_with(CLASS_BRIDGE)
            })
            .collect()
    }
}

fn directory(address: &str) -> String {
    format!("sys/bus/pci/devices/{address}")
}

/// The function that a place in the tree of devices belongs to: the last PCI address in its path.
pub(crate) fn function_of(place: &std::path::Path) -> Option<PciAddress> {
    let parts = place.iter().rev().filter_map(|part| part.to_str());
    parts.filter(|part| part.len() >= 12).find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn a_function_is_as_sysfs_says() {
        let fake = Fake::with_disk();
        let function = fake.function();
        assert_eq!((function.kind, function.driver.as_deref()), (Some("NVMe"), Some("nvme")));
        assert_eq!((function.only_driver.as_str(), function.group.as_deref()), ("", Some("7")));
        assert_eq!(function.node().as_deref(), Some("dev/vfio/7"));
        assert_eq!(function_of(&function.place(&fake.machine()).unwrap()), "0000:01:00.0".parse().ok());
        assert_eq!(Function::at(&fake.machine(), "0000:01:00.1".parse().unwrap()), None);
        assert_eq!(Function::disks(&fake.machine()).len(), 1);
    }

    #[test]
    fn virtio_disks_are_told_from_what_else_is_of_their_class() {
        let fake = Fake::new();
        for (device, kind) in
            [("0x1001", Some("virtio-blk")), ("0x1042", Some("virtio-blk")), ("0x1048", None)]
        {
            fake.member("0000:01:00.0", "0x010000", Some("virtio-pci"));
            let at = "sys/devices/pci0000:00/0000:01:00.0";
            fake.file(&format!("{at}/vendor"), "0x1af4\n")
                .file(&format!("{at}/device"), &format!("{device}\n"));
            assert_eq!(fake.function().kind, kind, "{device}");
        }
    }

    #[test]
    fn bridges_and_what_nobody_drives_may_be_in_a_group() {
        let fake = Fake::with_disk();
        fake.member("0000:00:1c.0", "0x060400", Some("pcieport"))
            .member("0000:01:00.1", "0x040300", None)
            .member("0000:01:00.2", "0x010802", Some("vfio-pci"));
        assert_eq!(fake.function().strangers(&fake.machine()), []);
        fake.member("0000:01:00.3", "0x020000", Some("e1000e"));
        let strangers = fake.function().strangers(&fake.machine());
        assert_eq!(strangers.len(), 1);
        assert_eq!(strangers[0].address, "0000:01:00.3");
    }
}
