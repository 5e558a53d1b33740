//! The disks on the PCI bus that an adapter could drive, as sysfs(5) shows them.

use super::Machine;

/// PCI class code of an NVM Express controller (PCI Code and ID Assignment 1.11, 1.2: base class 01h, sub-class 08h).
const CLASS_NVME: &str = "0x0108";
/// PCI vendor of virtio devices (virtio 1.2, 4.1.2), and the class code of their block devices.
const VENDOR_VIRTIO: &str = "0x1af4";
const CLASS_SCSI: &str = "0x0100";

/// An NVMe or virtio-blk disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Disk {
    /// `0000:01:00.0`.
    pub(super) address: String,
    /// NVMe or virtio-blk.
    pub(super) kind: &'static str,
    /// The driver bound to it.
    pub(super) driver: Option<String>,
    /// Its IOMMU group.
    pub(super) group: Option<String>,
    /// Who uses it, if somebody does.
    pub(super) in_use: Option<String>,
    /// Other devices of its group that a driver of the kernel has.
    pub(super) strangers: Vec<String>,
}

impl Disk {
    pub(super) fn check(&self) -> String {
        format!("disk {}", self.address)
    }
}

pub(super) fn disks(machine: &Machine) -> Vec<Disk> {
    let addresses = machine.names("sys/bus/pci/devices");
    addresses.into_iter().filter_map(|address| disk(machine, address)).collect()
}

fn disk(machine: &Machine, address: String) -> Option<Disk> {
    let device = format!("sys/bus/pci/devices/{address}");
    let class = machine.text(format!("{device}/class"));
    let vendor = machine.text(format!("{device}/vendor"));
    let kind = if class.starts_with(CLASS_NVME) {
        "NVMe"
    } else if class.starts_with(CLASS_SCSI) && vendor == VENDOR_VIRTIO {
        "virtio-blk"
    } else {
        return None;
    };
    let group = machine.link(format!("{device}/iommu_group"));
    let strangers = group.as_deref().map_or_else(Vec::new, |group| strangers(machine, group, &address));
    let in_use = block_devices(machine, &device).iter().find_map(|name| user_of(machine, name));
    Some(Disk { kind, driver: machine.link(format!("{device}/driver")), group, in_use, strangers, address })
}

/// Devices of the group that neither vfio-pci nor nobody has. The bridges above a device are fine: VFIO knows them.
fn strangers(machine: &Machine, group: &str, but: &str) -> Vec<String> {
    let fine = |address: &String| {
        let driver = machine.link(format!("sys/bus/pci/devices/{address}/driver"));
        matches!(driver.as_deref(), None | Some("vfio-pci" | "pcieport" | "pci-stub"))
    };
    let others = machine.names(format!("sys/kernel/iommu_groups/{group}/devices"));
    others.into_iter().filter(|address| address != but && !fine(address)).collect()
}

/// The block devices of a disk and their partitions: `nvme0n1`, `nvme0n1p1`, `vda`.
fn block_devices(machine: &Machine, device: &str) -> Vec<String> {
    let mut parents: Vec<String> = Vec::new();
    for controller in machine.names(format!("{device}/nvme")) {
        parents.push(format!("{device}/nvme/{controller}"));
    }
    for virtio in machine.names(device).iter().filter(|name| name.starts_with("virtio")) {
        parents.push(format!("{device}/{virtio}/block"));
    }
    let mut found = Vec::new();
    for parent in parents {
        // With multipath the namespace is called nvme0c0n1 there, and nvme0n1 everywhere else.
        for name in machine.names(&parent).into_iter().filter(|name| is_disk_name(name)) {
            let partitions = machine
                .names(format!("{parent}/{name}"))
                .into_iter()
                .filter(|inner| inner.starts_with(&name));
            found.extend(partitions);
            found.push(without_path(&name));
        }
    }
    found
}

fn is_disk_name(name: &str) -> bool {
    name.starts_with("vd") || name.strip_prefix("nvme").is_some_and(|rest| rest.contains('n'))
}

/// `nvme0n1` from `nvme0c0n1`.
fn without_path(name: &str) -> String {
    match (name.find('c'), name.rfind('n')) {
        (Some(path), Some(namespace)) if path < namespace => {
            format!("{}{}", &name[..path], &name[namespace..])
        }
        _ => name.to_owned(),
    }
}

/// Who uses a block device: a mount, swap, or another block device on top of it.
fn user_of(machine: &Machine, name: &str) -> Option<String> {
    let is_it = |device: &str| {
        let rest = device.strip_prefix("/dev/").and_then(|device| device.strip_prefix(name));
        // The device itself, or a partition of it: vda1, nvme0n1p1; not vdaa.
        rest.is_some_and(|rest| rest.trim_start_matches('p').bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mounts = machine.text("proc/mounts");
    for mount in mounts.lines() {
        let mut words = mount.split(' ');
        if let (Some(device), Some(place)) = (words.next(), words.next())
            && is_it(device)
        {
            return Some(format!("{device} is mounted on {place}"));
        }
    }
    let swaps = machine.text("proc/swaps");
    if let Some(device) =
        swaps.lines().filter_map(|line| line.split_whitespace().next()).find(|device| is_it(device))
    {
        return Some(format!("{device} is swap"));
    }
    let holder = machine.names(format!("sys/class/block/{name}/holders")).into_iter().next()?;
    Some(format!("{holder} lies on {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_namespaces_lose_their_path() {
        assert_eq!(without_path("nvme0n1"), "nvme0n1");
        assert_eq!(without_path("nvme0c1n2"), "nvme0n2");
        assert_eq!(without_path("vda"), "vda");
        assert!(
            is_disk_name("nvme0n1")
                && is_disk_name("vda")
                && !is_disk_name("power")
                && !is_disk_name("nvme0")
        );
    }
}
