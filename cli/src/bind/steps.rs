//! The steps: each one writes down what was before it changes it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::journal::{Former, Journal, State};
use super::kernel::{Claim, Kernel, Owner};
use crate::machine::Machine;
use crate::machine::function::{Function, VFIO};

/// The kernel, or udev, makes a device node within that.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel has added a function within that.
const ADDED: Duration = Duration::from_secs(2);
/// And either is looked at this often.
const LOOK: Duration = Duration::from_millis(5);

/// What works on one machine with one kernel.
pub(super) struct Hands<'a> {
    pub(super) machine: &'a Machine,
    pub(super) kernel: &'a dyn Kernel,
    pub(super) state: &'a State,
}

/// Modules that bind needs and that are not there.
pub(super) fn missing_modules(machine: &Machine) -> Vec<&'static str> {
    let there = |module: &str| match module {
        VFIO => machine.exists("sys/bus/pci/drivers/vfio-pci"),
        other => machine.exists(Path::new("sys/module").join(other)),
    };
    [VFIO, "vfio_iommu_type1"].into_iter().filter(|module| !there(module)).collect()
}

impl Hands<'_> {
    fn now(&self, address: &str) -> Result<Function> {
        let function = Function::at(self.machine, address.parse()?);
        function.with_context(|| format!("{address} is gone: was it pulled?"))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let written = self.kernel.write(&self.machine.path(path), text);
        written.with_context(|| format!("writing {text:?} to /{path}"))
    }

    /// Gives the function to vfio-pci.
    pub(super) fn bind(&self, journal: &mut Journal, function: &Function) -> Result<()> {
        let address = &function.address;
        for module in missing_modules(self.machine) {
            let loaded = self.kernel.load(module);
            loaded.with_context(|| format!("loading the kernel module {module}: is it installed?"))?;
        }
        if function.only_driver != VFIO {
            journal.only_driver = Some(function.only_driver.clone());
            self.state.save(self.kernel, journal)?;
            self.write(&format!("{}/driver_override", function.directory()), VFIO)?;
        }
        journal.driver = Some(Former { driver: function.driver.clone() });
        self.state.save(self.kernel, journal)?;
        if function.driver.is_some() {
            self.write(&format!("{}/driver/unbind", function.directory()), address)?;
        }
        let now = self.probe(address)?;
        if !now.is_bound() {
            bail!(
                "{VFIO} did not take {address}, which has {} now: the kernel's log (`sudo dmesg`) says why",
                now.driver.as_deref().unwrap_or("no driver")
            );
        }
        Ok(())
    }

    /// Has the kernel find a driver. As long as it is still adding a function that was put in, it finds none.
    fn probe(&self, address: &str) -> Result<Function> {
        let end = Instant::now() + ADDED;
        loop {
            self.write("sys/bus/pci/drivers_probe", address)?;
            let now = self.now(address)?;
            if now.driver.is_some() || Instant::now() >= end {
                return Ok(now);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the group's node is there, and lets `owner` open it.
    pub(super) fn hand_over(
        &self,
        journal: &mut Journal,
        function: &Function,
        owner: Option<u32>,
    ) -> Result<()> {
        let node = function.node().context("it is in no IOMMU group")?;
        let path = self.machine.path(&node);
        until(|| path.exists()).with_context(|| format!("/{node} did not appear"))?;
        let Some(uid) = owner else { return Ok(()) };
        // udev may still have its own way with the node; this file is there while it has something to do.
        let _ = until(|| !self.machine.exists("run/udev/queue"));
        let before = Owner::of(&path).with_context(|| format!("/{node}"))?;
        let after = Owner { uid, mode: 0o600 | before.mode, ..before };
        if before == after {
            return Ok(());
        }
        // What was before the first of several binds counts.
        if journal.node.is_none() {
            journal.node = Some((node.clone(), before));
            self.state.save(self.kernel, journal)?;
        }
        self.kernel.give(&path, after).with_context(|| format!("giving /{node} to user {uid}"))
    }

    /// Puts everything back as the journal says it was. May be done again after it stopped anywhere.
    pub(super) fn undo(&self, journal: &Journal) -> Result<()> {
        let function = self.now(&journal.address)?;
        self.give_back(journal)?;
        match &journal.driver {
            Some(Former { driver }) => {
                self.restore(&function, journal.only_driver.as_deref(), driver.as_deref())?;
            }
            None => self.restore_override(&function, journal.only_driver.as_deref())?,
        }
        self.state.forget(self.kernel, &journal.address)
    }

    fn give_back(&self, journal: &Journal) -> Result<()> {
        match &journal.node {
            Some((node, before)) if self.machine.exists(node) => {
                let given = self.kernel.give(&self.machine.path(node), *before);
                given.with_context(|| format!("giving /{node} back to user {}", before.uid))
            }
            _ => Ok(()),
        }
    }

    /// Takes a function from vfio-pci of whose former driver nothing is written down: the kernel finds one.
    pub(super) fn release(&self, function: &Function, journal: Option<&Journal>) -> Result<()> {
        self.free(function)?;
        journal.map_or(Ok(()), |journal| self.give_back(journal))?;
        if function.only_driver == VFIO {
            self.restore_override(function, Some(""))?;
        }
        self.write(&format!("{}/driver/unbind", function.directory()), &function.address)?;
        self.write("sys/bus/pci/drivers_probe", &function.address)?;
        self.state.forget(self.kernel, &function.address)
    }

    fn restore_override(&self, function: &Function, before: Option<&str>) -> Result<()> {
        match before {
            Some(before) if before != function.only_driver => {
                // The kernel takes an empty line for none.
                self.write(&format!("{}/driver_override", function.directory()), &format!("{before}\n"))
            }
            _ => Ok(()),
        }
    }

    fn restore(&self, function: &Function, only_driver: Option<&str>, driver: Option<&str>) -> Result<()> {
        let address = &function.address;
        if function.is_bound() && driver != Some(VFIO) {
            self.free(function)?;
        }
        self.restore_override(function, only_driver)?;
        if function.is_bound() && driver != Some(VFIO) {
            self.write(&format!("{}/driver/unbind", function.directory()), address)?;
        }
        let Some(driver) = driver else { return Ok(()) };
        if self.now(address)?.driver.as_deref() == Some(driver) {
            return Ok(());
        }
        let directory = format!("sys/bus/pci/drivers/{driver}");
        if !self.machine.exists(&directory) {
            self.kernel.load(driver).with_context(|| format!("loading the kernel module {driver} again"))?;
        }
        let bound = self.write(&format!("{directory}/bind"), address);
        // The kernel may have been faster, by itself.
        match self.now(address)?.driver {
            Some(now) if now == driver => Ok(()),
            now => bound.and_then(|()| {
                let now = now.unwrap_or_else(|| "no driver".to_owned());
                bail!("{driver} did not take {address} back, which has {now} now: the kernel's log (`sudo dmesg`) says why")
            }),
        }
    }

    /// The kernel would wait for whoever has the function open, for ever.
    fn free(&self, function: &Function) -> Result<()> {
        let Some(node) = function.node().filter(|node| self.machine.exists(node)) else { return Ok(()) };
        match self.kernel.claim(&self.machine.path(&node), Claim::Group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => bail!(
                "{} is in use by {}: end that first",
                function.address,
                self.who_has(&node).unwrap_or_else(|| "a process that is not seen from here".to_owned())
            ),
            Err(error) => Err(error).with_context(|| format!("finding out whether somebody uses /{node}")),
            Ok(_) => Ok(()),
        }
    }

    fn who_has(&self, node: &str) -> Option<String> {
        let path = format!("/{node}");
        let has = |process: &String| {
            self.machine.names(format!("proc/{process}/fd")).iter().any(|number| {
                let file = std::fs::read_link(self.machine.path(format!("proc/{process}/fd/{number}")));
                file.is_ok_and(|file| file == Path::new(&path))
            })
        };
        let process = self.machine.names("proc").into_iter().find(has)?;
        Some(format!("process {process} ({})", self.machine.text(format!("proc/{process}/comm"))))
    }
}

/// Waits for a condition, looking often.
fn until(mut holds: impl FnMut() -> bool) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() >= end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not within {PATIENCE:?}")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
