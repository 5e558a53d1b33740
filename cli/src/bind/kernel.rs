//! What bind and unbind ask of the kernel: one method for each thing that changes something, so that a test can take the
//! kernel's place and stop in between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Who may open a device node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

impl Owner {
    /// As it is now.
    pub(super) fn of(node: &Path) -> io::Result<Self> {
        let meta = fs::metadata(node)?;
        Ok(Self { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o7777 })
    }
}

/// See the module.
pub(super) trait Kernel {
    /// Writes to a file of sysfs.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Loads a module with what it needs.
    fn load(&self, module: &str) -> io::Result<()>;
    /// Gives a device node to somebody.
    fn give(&self, node: &Path, owner: Owner) -> io::Result<()>;
    /// Opens a block device or a group's node so that nobody else can claim it until it is closed.
    fn claim(&self, node: &Path, what: Claim) -> io::Result<File>;
    /// Makes a file anew and durable.
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Renames a file, durably, over another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, durably.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// What is claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// A block device: refused while a file system, or anything else of the kernel, has it or a part of it, in whatever
    /// namespace.
    Disk,
    /// The node of an IOMMU group, which one process at a time can have open.
    Group,
}

/// The kernel that runs this process.
pub(super) struct Linux;

impl Kernel for Linux {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // One write: sysfs takes each for itself.
        OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn load(&self, module: &str) -> io::Result<()> {
        let output = Command::new("modprobe").arg("--").arg(module).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    fn give(&self, node: &Path, owner: Owner) -> io::Result<()> {
        std::os::unix::fs::chown(node, Some(owner.uid), Some(owner.gid))?;
        fs::set_permissions(node, fs::Permissions::from_mode(owner.mode))
    }

    fn claim(&self, node: &Path, what: Claim) -> io::Result<File> {
        match what {
            Claim::Disk => OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(node),
            Claim::Group => OpenOptions::new().read(true).write(true).open(node),
        }
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        sync_directory_of(to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_directory_of(path),
        }
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
