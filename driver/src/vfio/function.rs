//! A PCI function in sysfs: its driver, its IOMMU group, and who else is in that.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::VfioError;

/// Where a PCI function is: domain, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl std::str::FromStr for PciAddress {
    type Err = VfioError;

    /// Reads `0000:01:00.0`, or `01:00.0` in domain 0.
    fn from_str(text: &str) -> Result<Self, VfioError> {
        Self::parse(text).ok_or_else(|| VfioError::BadAddress(text.to_owned()))
    }
}

impl PciAddress {
    fn parse(text: &str) -> Option<Self> {
        let hex = |text: &str, most: usize| {
            let digits =
                (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if digits { u32::from_str_radix(text, 16).ok() } else { None }
        };
        let (rest, function) = text.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let address = Self {
            domain: hex(domain, 8)?,
            bus: u8::try_from(hex(bus, 2)?).ok()?,
            device: u8::try_from(hex(device, 2)?).ok()?,
            function: u8::try_from(hex(function, 1)?).ok()?,
        };
        (address.device < 32 && address.function < 8).then_some(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

/// The two directories that the kernel speaks through.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    pub(crate) sys: PathBuf,
    pub(crate) dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into() }
    }
}

/// A function that is bound to vfio-pci and in an IOMMU group.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) address: PciAddress,
    pub(crate) sysfs: PathBuf,
    pub(crate) group: u32,
    roots: Roots,
}

impl Function {
    /// Finds out whether VFIO can open the function, and says what is in the way if not.
    pub(crate) fn inspect(address: PciAddress, roots: &Roots) -> Result<Self, VfioError> {
        let sysfs = roots.sys.join("bus/pci/devices").join(address.to_string());
        if !sysfs.exists() {
            return Err(VfioError::NoDevice { address });
        }
        let Some(group) = link_name(&sysfs.join("iommu_group")).and_then(|name| name.parse().ok()) else {
            return Err(VfioError::NoIommu { address });
        };
        let driver = link_name(&sysfs.join("driver"));
        if driver.as_deref() != Some("vfio-pci") {
            return Err(VfioError::NotBound {
                address,
                driver: driver.unwrap_or_else(|| "no driver".to_owned()),
            });
        }
        let function = Self { address, sysfs, group, roots: roots.clone() };
        if !roots.dev.join("vfio/vfio").exists() {
            return Err(VfioError::NoVfio);
        }
        function.open_node(&roots.dev.join("vfio/vfio"))?;
        Ok(function)
    }

    /// The group's device node.
    pub(crate) fn node(&self) -> PathBuf {
        self.roots.dev.join("vfio").join(self.group.to_string())
    }

    /// The error for a group that the kernel will not give out.
    pub(crate) fn not_viable(&self) -> VfioError {
        let list = |(address, driver): (String, String)| format!("{address} ({driver})");
        let others = self.others().into_iter().filter(|(_, driver)| !harmless(driver)).map(list);
        VfioError::GroupNotViable { group: self.group, others: others.collect::<Vec<_>>().join(", ") }
    }

    /// The error for a node of VFIO's that could not be opened.
    pub(crate) fn not_opened(&self, node: &Path, error: std::io::Error) -> VfioError {
        match error.kind() {
            ErrorKind::PermissionDenied => {
                let (uid, gid, mode) = fs::metadata(node)
                    .map(|node| (node.uid(), node.gid(), node.mode() & 0o777))
                    .unwrap_or_default();
                VfioError::Permission { node: node.to_path_buf(), uid, gid, mode }
            }
            ErrorKind::ResourceBusy => VfioError::GroupBusy { address: self.address, group: self.group },
            ErrorKind::NotFound => VfioError::NoVfio,
            _ => VfioError::Os { what: "opening a VFIO device node", source: error },
        }
    }

    fn open_node(&self, node: &Path) -> Result<(), VfioError> {
        let opened = fs::OpenOptions::new().read(true).write(true).open(node);
        opened.map(drop).map_err(|error| self.not_opened(node, error))
    }

    /// The other functions of the group and their drivers.
    fn others(&self) -> Vec<(String, String)> {
        let devices = self.roots.sys.join("kernel/iommu_groups").join(self.group.to_string()).join("devices");
        let Ok(entries) = fs::read_dir(devices) else {
            return vec![];
        };
        let mut others: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| *name != self.address.to_string())
            .map(|name| {
                let driver = link_name(&self.roots.sys.join("bus/pci/devices").join(&name).join("driver"));
                (name, driver.unwrap_or_default())
            })
            .collect();
        others.sort();
        others
    }
}

/// Whether the kernel gives a group out with a device of this driver in it.
fn harmless(driver: &str) -> bool {
    matches!(driver, "" | "vfio-pci" | "pcieport" | "pci-stub")
}

/// The last component of where a symbolic link leads.
fn link_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn addresses_are_read_strictly() {
        let parse = |text: &str| text.parse::<PciAddress>().map(|address| address.to_string()).ok();
        assert_eq!(parse("0000:01:00.0").as_deref(), Some("0000:01:00.0"));
        assert_eq!(parse("c1:1f.7").as_deref(), Some("0000:c1:1f.7"));
        assert_eq!(parse("10001:E1:00.0").as_deref(), Some("10001:e1:00.0"));
        for bad in [
            "",
            "01:00",
            "0000:01:20.0",
            "0:1:0.8",
            "0000:+1:00.0",
            "../../0:1:0.0",
            "1:2:3:4.0",
            ":00.0",
            "0:0:.0",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text: String) {
            if let Ok(address) = text.parse::<PciAddress>() {
                prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
            }
        }
    }

    /// A sysfs with one function in group 7.
    fn machine() -> (tempfile::TempDir, Roots, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let roots = Roots { sys: directory.path().join("sys"), dev: directory.path().join("dev") };
        let device = add(&roots, "0000:01:00.0", "vfio-pci");
        fs::create_dir_all(roots.dev.join("vfio")).unwrap();
        fs::write(roots.dev.join("vfio/vfio"), "").unwrap();
        (directory, roots, device)
    }

    fn add(roots: &Roots, address: &str, driver: &str) -> PathBuf {
        let device = roots.sys.join("bus/pci/devices").join(address);
        fs::create_dir_all(&device).unwrap();
        let group = roots.sys.join("kernel/iommu_groups/7/devices");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join(address), "").unwrap();
        symlink("../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
        symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver")).unwrap();
        device
    }

    fn inspect(roots: &Roots) -> Result<Function, VfioError> {
        Function::inspect("01:00.0".parse().unwrap(), roots)
    }

    #[test]
    fn a_bound_function_is_found_in_its_group() {
        let (_directory, roots, _) = machine();
        let function = inspect(&roots).unwrap();
        assert_eq!((function.group, function.node()), (7, roots.dev.join("vfio/7")));
    }

    #[test]
    fn each_obstacle_is_named() {
        let (_directory, roots, device) = machine();
        let absent = Function::inspect("02:00.0".parse().unwrap(), &roots);
        assert!(matches!(absent, Err(VfioError::NoDevice { .. })));

        fs::remove_file(roots.dev.join("vfio/vfio")).unwrap();
        assert!(matches!(inspect(&roots), Err(VfioError::NoVfio)));

        fs::remove_file(device.join("driver")).unwrap();
        symlink("../drivers/nvme", device.join("driver")).unwrap();
        let error = inspect(&roots).unwrap_err().to_string();
        assert!(error.contains("nvme") && error.contains("portcullis bind 0000:01:00.0"), "{error}");

        fs::remove_file(device.join("iommu_group")).unwrap();
        assert!(matches!(inspect(&roots), Err(VfioError::NoIommu { .. })));
    }

    #[test]
    fn the_others_of_a_group_that_is_in_use_are_named() {
        let (_directory, roots, _) = machine();
        add(&roots, "0000:00:1c.0", "pcieport");
        add(&roots, "0000:01:00.1", "e1000e");
        let error = inspect(&roots).unwrap().not_viable().to_string();
        assert!(error.contains("0000:01:00.1 (e1000e)") && !error.contains("pcieport"), "{error}");
    }

    #[test]
    fn a_node_of_somebody_else_says_whose() {
        let (_directory, roots, _) = machine();
        let function = inspect(&roots).unwrap();
        let node = roots.dev.join("vfio/vfio");
        fs::set_permissions(&node, fs::Permissions::from_mode(0o600)).unwrap();
        let error = function.not_opened(&node, ErrorKind::PermissionDenied.into());
        let uid = fs::metadata(&node).unwrap().uid();
        assert!(matches!(error, VfioError::Permission { uid: owner, mode: 0o600, .. } if owner == uid));
        let busy = function.not_opened(&node, ErrorKind::ResourceBusy.into());
        assert!(matches!(busy, VfioError::GroupBusy { group: 7, .. }));
    }
}
