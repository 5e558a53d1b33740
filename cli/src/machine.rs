//! The machine as sysfs(5), proc(5) and /dev show it, below a root: `/`, or a directory that a test made.

pub(crate) mod block;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod function;
pub(crate) mod users;

use std::fs;
use std::path::{Path, PathBuf};

/// Symbolic links in /dev that are followed, at most.
const LINKS: usize = 16;

/// See the module. Paths are relative to its root, without a slash at their beginning.
pub(crate) struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The machine below `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where something is for system calls.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// A small text file without its line end; empty if it cannot be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> String {
        let bytes = fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// The names in a directory, sorted; none if it cannot be read.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The name that a symbolic link ends with.
    pub(crate) fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Where something in sysfs really is, all links followed. Links in sysfs are relative and do not leave it.
    pub(crate) fn real(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let real = fs::canonicalize(self.path(path)).ok()?;
        Some(real.strip_prefix(fs::canonicalize(&self.root).ok()?).ok()?.to_owned())
    }

    /// The name of the block device that a path in /dev leads to: `nvme0n1p1` from `/dev/disk/by-label/data`.
    pub(crate) fn device_name(&self, path: &str) -> Option<String> {
        let mut path = PathBuf::from(path);
        for _ in 0..LINKS {
            let inside = path.strip_prefix("/").ok()?;
            match fs::read_link(self.path(inside)) {
                Ok(target) if target.is_absolute() => path = target,
                Ok(target) => path = tidy(&path.parent()?.join(target)),
                Err(_) => {
                    let name = path.strip_prefix("/dev").ok()?.to_str()?;
                    // sysfs writes a slash in a name as an exclamation mark: cciss/c0d0.
                    return Some(name.replace('/', "!"));
                }
            }
        }
        None
    }
}

/// Without `..`: there are no links in what is left of it.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut tidied = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(tidied.pop()),
            Component::CurDir => {}
            other => tidied.push(other),
        }
    }
    tidied
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;

    #[test]
    fn names_in_dev_lead_to_block_devices() {
        let fake = Fake::new();
        fake.link("dev/disk/by-label/data", "../../nvme0n1p1")
            .link("dev/mapper/vg-root", "/dev/dm-0")
            .link("dev/a", "b")
            .link("dev/b", "a");
        let machine = fake.machine();
        assert_eq!(machine.device_name("/dev/disk/by-label/data").as_deref(), Some("nvme0n1p1"));
        assert_eq!(machine.device_name("/dev/mapper/vg-root").as_deref(), Some("dm-0"));
        assert_eq!(machine.device_name("/dev/cciss/c0d0").as_deref(), Some("cciss!c0d0"));
        assert_eq!(machine.device_name("/dev/a"), None, "in circles");
        assert_eq!(machine.device_name("tmpfs"), None);
        assert_eq!(machine.device_name("/home/x"), None);
    }
}
