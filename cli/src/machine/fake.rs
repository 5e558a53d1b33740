//! A machine made of a few files, for tests.

use std::fs;
use std::os::unix::fs::symlink;

use super::Machine;
use super::function::Function;

/// Where the disk of most tests is.
pub(crate) const ADDRESS: &str = "0000:01:00.0";

/// See the module.
pub(crate) struct Fake(tempfile::TempDir);

impl Fake {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With an NVMe controller without a disk, in IOMMU group 7.
    pub(crate) fn with_function() -> Self {
        let fake = Self::new();
        fake.member(ADDRESS, "0x010802", Some("nvme"));
        fake.file(&format!("sys/bus/pci/devices/{ADDRESS}/driver_override"), "(null)\n")
            .file("proc/self/mountinfo", "")
            .file("sys/module/vfio_iommu_type1/x", "")
            .directory("sys/bus/pci/drivers/vfio-pci")
            .directory("sys/bus/pci/drivers/nvme")
            .directory("dev/vfio");
        fake
    }

    /// With a disk behind it, of a MiB, blank.
    pub(crate) fn with_disk() -> Self {
        let fake = Self::with_function();
        fake.block("pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0n1");
        fs::write(fake.path("dev/nvme0n1"), vec![0; 1 << 20]).unwrap();
        fake
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::new(self.0.path())
    }

    pub(crate) fn function(&self) -> Function {
        Function::at(&self.machine(), ADDRESS.parse().unwrap()).unwrap()
    }

    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn directory(&self, path: &str) -> &Self {
        fs::create_dir_all(self.path(path)).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
        self
    }

    /// A function in group 7.
    pub(crate) fn member(&self, address: &str, class: &str, driver: Option<&str>) -> &Self {
        let device = format!("sys/devices/pci0000:00/{address}");
        self.file(&format!("{device}/class"), &format!("{class}\n"))
            .file(&format!("{device}/vendor"), "0x1b36\n")
            .link(
                &format!("sys/bus/pci/devices/{address}"),
                &format!("../../../devices/pci0000:00/{address}"),
            )
            .link(&format!("{device}/iommu_group"), "../../../kernel/iommu_groups/7")
            .file("sys/kernel/iommu_groups/7/type", "DMA\n")
            .link(
                &format!("sys/kernel/iommu_groups/7/devices/{address}"),
                &format!("../../../../devices/pci0000:00/{address}"),
            );
        if let Some(driver) = driver {
            self.link(&format!("{device}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
        }
        self
    }

    /// A block device below sys/devices/PLACE.
    pub(crate) fn block(&self, place: &str, name: &str) -> &Self {
        let device = format!("sys/devices/{place}/{name}");
        let count = fs::read_dir(self.path("sys/class/block")).map_or(0, Iterator::count);
        self.file(&format!("{device}/dev"), &format!("259:{count}\n"))
            .directory(&format!("{device}/holders"))
            .link(&format!("sys/block/{name}"), &format!("../devices/{place}/{name}"))
            .link(&format!("sys/class/block/{name}"), &format!("../../devices/{place}/{name}"))
    }

    pub(crate) fn partition(&self, disk: &str, name: &str) -> &Self {
        let place = self.machine().real(format!("sys/block/{disk}")).unwrap();
        let place = place.to_str().unwrap();
        let count = fs::read_dir(self.path("sys/class/block")).map_or(0, Iterator::count);
        self.file(&format!("{place}/{name}/dev"), &format!("259:{count}\n"))
            .file(&format!("{place}/{name}/partition"), "1\n")
            .directory(&format!("{place}/{name}/holders"))
            .link(&format!("sys/class/block/{name}"), &format!("../../../{place}/{name}"))
    }

    /// A block device on top of others.
    pub(crate) fn stacked(&self, name: &str, on: &[&str]) -> &Self {
        self.block("virtual/block", name);
        for below in on {
            self.link(&format!("sys/class/block/{below}/holders/{name}"), &format!("../../{name}"));
        }
        self
    }

    pub(crate) fn number(&self, name: &str) -> String {
        self.machine().text(format!("sys/class/block/{name}/dev"))
    }

    /// The mounts of a process: number, place, source.
    pub(crate) fn mounts(&self, process: &str, mounts: &[(&str, &str, &str)]) -> &Self {
        let line = |(number, place, source): &(&str, &str, &str)| {
            format!("22 1 {number} / {place} rw,relatime shared:1 - ext4 {source} rw\n")
        };
        let text: String = mounts.iter().map(line).collect();
        self.file(&format!("proc/{process}/mountinfo"), &text)
    }
}
