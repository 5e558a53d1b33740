//! What was before: written down, durably, before each step that changes it. Whoever finds a journal can put everything
//! back, whatever became of the process that wrote it.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::kernel::{Kernel, Owner};
use crate::machine::Machine;

const VERSION: u32 = 1;

/// What is known of a function that was, or was to be, given to vfio-pci.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    version: u32,
    /// Which function.
    pub(super) address: String,
    /// The start of the machine that this happened in: at the next one all is as it was.
    boot: String,
    /// Its disks, as they were called.
    pub(super) disks: Vec<String>,
    /// The driver that alone could be bound to it (empty: any), once that was about to be changed.
    pub(super) only_driver: Option<String>,
    /// Its driver, once it was about to lose it.
    pub(super) driver: Option<Former>,
    /// The group's node and who could open it, once that was about to be changed.
    pub(super) node: Option<(String, Owner)>,
}

/// The driver that a function had, if it had one: a type of its own, as JSON does not tell no driver from nothing known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Former {
    pub(super) driver: Option<String>,
}

/// The directory that journals are in, locked unless it is only looked at.
pub(super) struct State {
    directory: PathBuf,
    lock: Option<File>,
}

impl State {
    /// Makes the directory if it is not there, and waits until no other bind or unbind uses it.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let shown = directory.display();
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
            format!("making {shown} (bind and unbind are for root: sudo); --state names another place")
        })?;
        let meta = fs::metadata(directory).with_context(|| shown.to_string())?;
        // Whoever can write there could have the kernel's files written.
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            bail!(
                "{shown} belongs to user {} with mode {:03o}: what is written there must be of this user alone (chown, chmod \
                 700, or --state another place)",
                meta.uid(),
                meta.mode() & 0o777
            );
        }
        let lock = File::create(directory.join("lock")).with_context(|| format!("the lock in {shown}"))?;
        flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("the lock in {shown}"))?;
        Ok(Self { directory: directory.to_owned(), lock: Some(lock) })
    }

    /// The same to look at, also for who may not write there or even read: then nothing is known.
    pub(super) fn look(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), lock: None }
    }

    fn path(&self, address: &str) -> PathBuf {
        self.directory.join(format!("{address}.json"))
    }

    /// The journal of a function; none if it is of another start of the machine.
    pub(super) fn journal(&self, machine: &Machine, address: &str) -> Result<Option<Journal>> {
        let path = self.path(address);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied && self.lock.is_none() => {
                return Ok(None);
            }
            other => other.with_context(|| format!("reading {}", path.display()))?,
        };
        let journal: Journal = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} is no journal of bind: look at /sys/bus/pci/devices/{address} yourself, and remove it",
                path.display()
            )
        })?;
        if journal.version != VERSION || journal.address != address {
            bail!(
                "{} is of version {} and of {:?}; this program writes version {VERSION}",
                path.display(),
                journal.version,
                journal.address
            );
        }
        Ok((journal.boot == boot(machine)).then_some(journal))
    }

    /// The function whose disk was called so before it was bound.
    pub(super) fn function_of(&self, machine: &Machine, disk: &str) -> Result<Option<String>> {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(address) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            if let Some(journal) = self.journal(machine, address)?
                && journal.disks.iter().any(|name| name == disk)
            {
                return Ok(Some(journal.address));
            }
        }
        Ok(None)
    }

    /// Writes a journal so that either the former one or this one is there, whatever happens.
    pub(super) fn save(&self, kernel: &dyn Kernel, journal: &Journal) -> Result<()> {
        let path = self.path(&journal.address);
        let new = path.with_extension("new");
        let bytes = serde_json::to_vec_pretty(journal)?;
        let saved = kernel.create(&new, &bytes).and_then(|()| kernel.rename(&new, &path));
        saved.with_context(|| format!("writing down how to undo it, to {}", path.display()))
    }

    /// All is as it was.
    pub(super) fn forget(&self, kernel: &dyn Kernel, address: &str) -> Result<()> {
        let path = self.path(address);
        kernel.remove(&path).with_context(|| format!("removing {}", path.display()))
    }
}

impl Journal {
    /// Of a function of which nothing was changed yet.
    pub(super) fn new(machine: &Machine, address: &str, disks: Vec<String>) -> Self {
        Self {
            version: VERSION,
            address: address.to_owned(),
            boot: boot(machine),
            disks,
            only_driver: None,
            driver: None,
            node: None,
        }
    }
}

fn boot(machine: &Machine) -> String {
    machine.text("proc/sys/kernel/random/boot_id")
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Linux;
    use super::*;
    use crate::machine::fake::Fake;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_journal_comes_back_and_one_of_another_start_does_not() {
        let fake = Fake::new();
        fake.file("proc/sys/kernel/random/boot_id", "one\n");
        let state = State::open(&fake.path("state")).unwrap();
        let journal = Journal::new(&fake.machine(), "0000:01:00.0", vec!["nvme0n1".into()]);
        state.save(&Linux, &journal).unwrap();
        assert_eq!(state.journal(&fake.machine(), "0000:01:00.0").unwrap(), Some(journal));
        let of = |name: &str| state.function_of(&fake.machine(), name).unwrap();
        assert_eq!((of("nvme0n1").as_deref(), of("nvme1n1")), (Some("0000:01:00.0"), None));
        fake.file("proc/sys/kernel/random/boot_id", "two\n");
        assert_eq!(state.journal(&fake.machine(), "0000:01:00.0").unwrap(), None);
        state.forget(&Linux, "0000:01:00.0").unwrap();
        state.forget(&Linux, "0000:01:00.0").unwrap();
    }

    #[test]
    fn a_journal_that_is_none_is_an_error_that_names_it() {
        let fake = Fake::new();
        let state = State::open(&fake.path("state")).unwrap();
        for text in ["", "{", "{\"version\":1}", "[]"] {
            fake.file("state/0000:01:00.0.json", text);
            let error = state.journal(&fake.machine(), "0000:01:00.0").unwrap_err();
            assert!(format!("{error:#}").contains("0000:01:00.0.json"), "{error:#}");
        }
        let mut other = Journal::new(&fake.machine(), "0000:02:00.0", vec![]);
        other.version = 9;
        fake.file("state/0000:02:00.0.json", &serde_json::to_string(&other).unwrap());
        assert!(
            state.journal(&fake.machine(), "0000:02:00.0").unwrap_err().to_string().contains("version 9")
        );
    }

    #[test]
    fn a_place_that_others_can_write_to_is_refused() {
        let fake = Fake::new();
        fake.directory("state");
        fs::set_permissions(fake.path("state"), fs::Permissions::from_mode(0o777)).unwrap();
        let error = State::open(&fake.path("state")).err().unwrap().to_string();
        assert!(error.contains("mode 777"), "{error}");
    }
}
