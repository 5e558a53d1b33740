//! `portcullis doctor`: what is missing to drive a real disk, and the command that mends it. Looks, and changes nothing.

mod disks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use rustix::fs::{Access, access};
use rustix::process::{Resource, getegid, geteuid, getgroups, getrlimit};
use serde_json::json;

use crate::output;
use crate::subject::{group_name, user_name};
use crate::units::show_size;

use disks::{Disk, disks};

/// How one thing stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ok,
    /// It works, and may not be what one wants.
    Note,
    Missing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "missing",
        }
    }
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    check: String,
    state: State,
    /// What was found, with its value.
    detail: String,
    /// Commands that mend it, one a line; empty where there is nothing to do.
    mend: Vec<String>,
}

impl Finding {
    fn new(check: impl Into<String>, state: State, detail: impl Into<String>) -> Self {
        Self { check: check.into(), state, detail: detail.into(), mend: Vec::new() }
    }

    fn mend(mut self, command: impl Into<String>) -> Self {
        self.mend.push(command.into());
        self
    }
}

/// The machine as seen below a directory: `/`, or a test's.
struct Machine {
    root: PathBuf,
}

impl Machine {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A small text file without its line end; empty if it cannot be read.
    fn text(&self, path: impl AsRef<Path>) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default().trim().to_owned()
    }

    /// The names in a directory, sorted; none if it cannot be read.
    fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The name that a symbolic link ends with.
    fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.root.join(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

pub(crate) fn run(as_json: bool) -> Result<ExitCode> {
    let machine = Machine { root: "/".into() };
    let disks = disks(&machine);
    let mut findings = vec![iommu(&machine), modules(&machine), container(&machine), memlock()];
    findings.extend(disks.iter().map(|disk| about_disk(&machine, disk)));
    if disks.is_empty() {
        let detail =
            "no NVMe or virtio-blk disk on the PCI bus; the embedded device needs none: --device emu:256M";
        findings.push(Finding::new("disks", State::Missing, detail));
    }
    let ready = is_ready(&findings, &disks);

    if as_json {
        output::print_json(&json!({
            "ready": ready,
            "findings": findings.iter().map(|finding| json!({
                "check": finding.check,
                "state": finding.state.name(),
                "detail": finding.detail,
                "mend": finding.mend,
            })).collect::<Vec<_>>(),
        }))?;
    } else {
        output::print(&as_text(&findings, ready))?;
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a disk could be driven now: nothing is missing from the machine, and nothing from one disk at least.
fn is_ready(findings: &[Finding], disks: &[Disk]) -> bool {
    let fine = |finding: &Finding| finding.state != State::Missing;
    let (of_disks, of_machine): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| disks.iter().any(|disk| disk.check() == finding.check));
    of_machine.into_iter().all(fine) && of_disks.into_iter().any(fine)
}

fn as_text(findings: &[Finding], ready: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let (check, detail) = (output::name(&finding.check), output::plain(&finding.detail));
        text.push_str(&format!("{:8} {check}: {detail}\n", finding.state.name()));
        for command in &finding.mend {
            text.push_str(&format!("             {}\n", output::plain(command)));
        }
    }
    text.push_str(if ready {
        "\nReady: portcullis serve --device vfio:ADDRESS with a disk above that is ok.\n"
    } else {
        "\nNot ready to drive a real disk. The indented commands mend what is missing. Embedded devices work everywhere:\n\
         portcullis serve --device emu:256M\n"
    });
    text
}

fn iommu(machine: &Machine) -> Finding {
    let groups = machine.names("sys/kernel/iommu_groups").len();
    if groups > 0 {
        return Finding::new("iommu", State::Ok, format!("on, {groups} groups"));
    }
    let line = machine.text("proc/cmdline");
    let parameter =
        if machine.text("proc/cpuinfo").contains("AuthenticAMD") { "amd_iommu=on" } else { "intel_iommu=on" };
    if line.split_whitespace().any(|word| word == parameter) {
        let detail = format!(
            "off, although the kernel was started with {parameter}: switch on VT-d or AMD-Vi (IOMMU) in the firmware setup; \
             a virtual machine needs one that its host gives it"
        );
        return Finding::new("iommu", State::Missing, detail);
    }
    Finding::new(
        "iommu",
        State::Missing,
        "off: nothing would bound what the disk writes in memory",
    )
    .mend(format!(
        "sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{parameter} iommu=pt /' /etc/default/grub && sudo update-grub"
    ))
    .mend("sudo reboot")
}

fn modules(machine: &Machine) -> Finding {
    let missing: Vec<&str> = ["vfio", "vfio_iommu_type1", "vfio_pci"]
        .into_iter()
        .filter(|module| !machine.path("sys/module").join(module).exists())
        // Built in and without parameters, vfio_pci shows up as a driver only.
        .filter(|module| *module != "vfio_pci" || !machine.path("sys/bus/pci/drivers/vfio-pci").exists())
        .collect();
    if missing.is_empty() {
        return Finding::new("vfio modules", State::Ok, "loaded");
    }
    Finding::new("vfio modules", State::Missing, format!("{} not loaded", missing.join(", ")))
        .mend("sudo modprobe -a vfio-pci vfio_iommu_type1")
        .mend("printf 'vfio-pci\\nvfio_iommu_type1\\n' | sudo tee /etc/modules-load.d/vfio.conf    # at every start")
}

fn container(machine: &Machine) -> Finding {
    let path = machine.path("dev/vfio/vfio");
    if !path.exists() {
        return Finding::new("/dev/vfio/vfio", State::Missing, "not there: the vfio module makes it")
            .mend("sudo modprobe vfio");
    }
    match access(&path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Finding::new("/dev/vfio/vfio", State::Ok, "may be opened"),
        Err(error) => Finding::new("/dev/vfio/vfio", State::Missing, format!("may not be opened: {error}"))
            .mend("sudo chmod 0666 /dev/vfio/vfio    # it gives no right to any disk"),
    }
}

/// An adapter works with 8 MiB; less is not enough for its own queues and one session.
const MEMLOCK_LEAST: u64 = 8 << 20;
/// From here on nobody has to think of it.
const MEMLOCK_EASY: u64 = 512 << 20;

fn memlock() -> Finding {
    // Root with CAP_IPC_LOCK is not bound by it.
    if geteuid().is_root() {
        return Finding::new("memlock limit", State::Ok, "root is not bound by it");
    }
    about_memlock(getrlimit(Resource::Memlock).current)
}

fn about_memlock(limit: Option<u64>) -> Finding {
    let check = "memlock limit";
    let (state, detail) = match limit {
        None => return Finding::new(check, State::Ok, "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_EASY => return Finding::new(check, State::Ok, show_size(bytes)),
        Some(bytes) if bytes >= MEMLOCK_LEAST => (
            State::Note,
            format!("{}: enough to begin with; all memory that sessions register counts", show_size(bytes)),
        ),
        Some(bytes) => (
            State::Missing,
            format!("{}: at least {} are needed", show_size(bytes), show_size(MEMLOCK_LEAST)),
        ),
    };
    let user = user_name(geteuid().as_raw()).unwrap_or_else(|| "USER".to_owned());
    Finding::new(check, state, detail)
        .mend(format!("printf '{user} - memlock unlimited\\n' | sudo tee /etc/security/limits.d/portcullis.conf    # then log in again"))
        .mend("LimitMEMLOCK=infinity    # as a line of the [Service] section, under systemd")
}

/// Shell commands that give a disk to vfio-pci until the next start.
fn bind_commands(disk: &Disk) -> Vec<String> {
    let address = &disk.address;
    let mut commands =
        vec![format!("echo vfio-pci | sudo tee /sys/bus/pci/devices/{address}/driver_override")];
    if disk.driver.is_some() {
        commands.push(format!("echo {address} | sudo tee /sys/bus/pci/devices/{address}/driver/unbind"));
    }
    commands.push(format!("echo {address} | sudo tee /sys/bus/pci/drivers_probe"));
    commands
}

fn about_disk(machine: &Machine, disk: &Disk) -> Finding {
    let finding =
        |state, detail: String| Finding::new(disk.check(), state, format!("{}, {detail}", disk.kind));
    if let Some(user) = &disk.in_use {
        return finding(
            State::Missing,
            format!("in use ({user}): leave it alone, or take it out of use first"),
        );
    }
    let Some(group) = &disk.group else {
        return finding(State::Missing, "in no IOMMU group: see iommu above".to_owned());
    };
    if disk.driver.as_deref() != Some("vfio-pci") {
        let driver = disk.driver.as_deref().unwrap_or("no driver");
        let mut found = finding(State::Missing, format!("has {driver}, not vfio-pci"));
        found.mend = bind_commands(disk);
        return found;
    }
    let strangers: Vec<&str> = disk.strangers.iter().map(String::as_str).collect();
    if !strangers.is_empty() {
        let list = strangers.join(", ");
        let mut found = finding(
            State::Missing,
            format!(
                "shares IOMMU group {group} with {list}, which must be given to vfio-pci too or have no driver"
            ),
        );
        found.mend = strangers
            .iter()
            .map(|address| format!("echo {address} | sudo tee /sys/bus/pci/devices/{address}/driver/unbind"))
            .collect();
        return found;
    }
    about_group(machine, group, finding)
}

/// Whether this user may open the group's file.
fn about_group(machine: &Machine, group: &str, finding: impl Fn(State, String) -> Finding) -> Finding {
    use std::os::unix::fs::MetadataExt;

    let shown = format!("/dev/vfio/{group}");
    let path = machine.path("dev/vfio").join(group);
    let Ok(meta) = fs::metadata(&path) else {
        return finding(State::Missing, format!("{shown} is not there")).mend("sudo modprobe vfio-pci");
    };
    if access(&path, Access::READ_OK | Access::WRITE_OK).is_ok() {
        return finding(State::Ok, format!("bound to vfio-pci, and {shown} may be opened"));
    }
    let user = user_name(geteuid().as_raw()).unwrap_or_else(|| geteuid().as_raw().to_string());
    let owner = group_name(meta.gid()).unwrap_or_else(|| meta.gid().to_string());
    let groups = getgroups().unwrap_or_default();
    let member = getegid().as_raw() == meta.gid() || groups.iter().any(|gid| gid.as_raw() == meta.gid());
    // Nobody should be told to join root's group.
    if meta.gid() == 0 || member || meta.mode() & 0o060 != 0o060 {
        return finding(State::Missing, format!("user {user} may not open {shown}"))
            .mend(format!("sudo chown {user} {shown}    # until the next start; a udev rule keeps it"))
            .mend(format!(
                "echo 'SUBSYSTEM==\"vfio\", OWNER=\"{user}\"' | sudo tee /etc/udev/rules.d/60-portcullis.rules    # keeps it"
            ));
    }
    finding(State::Missing, format!("user {user} is not in group {owner}, which may open {shown}"))
        .mend(format!("sudo usermod -aG {owner} {user}    # then log in again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine made of a few files.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn machine(&self) -> Machine {
            Machine { root: self.0.path().to_owned() }
        }

        fn file(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn link(&self, path: &str, target: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
            self
        }

        fn nvme(&self, driver: &str) -> &Self {
            let device = "sys/bus/pci/devices/0000:01:00.0";
            self.file(&format!("{device}/class"), "0x010802\n")
                .file(&format!("{device}/vendor"), "0x1b36\n")
                .file("sys/kernel/iommu_groups/7/type", "DMA\n")
                .link(&format!("{device}/driver"), &format!("../../../bus/pci/drivers/{driver}"))
                .link(&format!("{device}/iommu_group"), "../../../kernel/iommu_groups/7")
                .link("sys/kernel/iommu_groups/7/devices/0000:01:00.0", "x")
        }
    }

    fn only(machine: &Machine) -> Finding {
        let disks = disks(machine);
        assert_eq!(disks.len(), 1, "{disks:?}");
        about_disk(machine, &disks[0])
    }

    #[test]
    fn an_iommu_that_is_off_gets_the_parameter_of_its_maker() {
        let fake = Fake::new();
        fake.file("proc/cpuinfo", "vendor_id : AuthenticAMD\n").file("proc/cmdline", "quiet\n");
        let found = iommu(&fake.machine());
        assert_eq!(found.state, State::Missing);
        assert!(found.mend[0].contains("amd_iommu=on"), "{found:?}");

        fake.file("proc/cmdline", "quiet amd_iommu=on\n");
        let found = iommu(&fake.machine());
        assert!(found.mend.is_empty() && found.detail.contains("firmware"), "{found:?}");

        fake.file("sys/kernel/iommu_groups/0/type", "DMA\n");
        assert_eq!(iommu(&fake.machine()).state, State::Ok);
    }

    #[test]
    fn missing_modules_are_named() {
        let fake = Fake::new();
        fake.file("sys/module/vfio/x", "").file("sys/module/vfio_pci/x", "");
        let found = modules(&fake.machine());
        assert_eq!(found.detail, "vfio_iommu_type1 not loaded");
        fake.file("sys/module/vfio_iommu_type1/x", "");
        assert_eq!(modules(&fake.machine()).state, State::Ok);
        assert_eq!(container(&fake.machine()).state, State::Missing);
        fake.file("dev/vfio/vfio", "");
        assert_eq!(container(&fake.machine()).state, State::Ok);
    }

    #[test]
    fn a_disk_of_the_kernel_is_bound_by_three_commands() {
        let fake = Fake::new();
        let found = only(&fake.nvme("nvme").machine());
        assert_eq!(found.state, State::Missing);
        assert_eq!(found.mend.len(), 3, "{found:?}");
        assert!(found.mend.iter().all(|command| command.contains("0000:01:00.0")));
    }

    #[test]
    fn a_mounted_disk_is_left_alone() {
        let fake = Fake::new();
        fake.nvme("nvme")
            .file("sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1/partition", "1\n")
            .file("proc/mounts", "/dev/nvme0n1p1 / ext4 rw 0 0\n");
        let found = only(&fake.machine());
        assert!(
            found.mend.is_empty() && found.detail.contains("in use (/dev/nvme0n1p1 is mounted on /)"),
            "{found:?}"
        );
    }

    #[test]
    fn a_disk_bound_to_vfio_is_ready() {
        let fake = Fake::new();
        fake.nvme("vfio-pci");
        assert_eq!(only(&fake.machine()).state, State::Missing, "its group has no file");
        fake.file("dev/vfio/7", "");
        let found = only(&fake.machine());
        assert_eq!(found.state, State::Ok, "{found:?}");
        let disks = disks(&fake.machine());
        let missing = Finding::new("iommu", State::Missing, "");
        assert!(is_ready(std::slice::from_ref(&found), &disks));
        assert!(!is_ready(&[found, missing.clone()], &disks) && !is_ready(&[missing], &disks));
    }

    #[test]
    fn a_group_shared_with_a_driven_device_is_not_ready() {
        let fake = Fake::new();
        fake.nvme("vfio-pci")
            .file("dev/vfio/7", "")
            .file("sys/bus/pci/devices/0000:01:00.1/class", "0x020000\n")
            .link("sys/bus/pci/devices/0000:01:00.1/driver", "../../drivers/e1000")
            .link("sys/kernel/iommu_groups/7/devices/0000:01:00.1", "x");
        let found = only(&fake.machine());
        assert!(found.state == State::Missing && found.detail.contains("0000:01:00.1"), "{found:?}");
    }

    #[test]
    fn a_small_memlock_limit_is_told() {
        assert_eq!(about_memlock(None).state, State::Ok);
        assert_eq!(about_memlock(Some(8 << 20)).state, State::Note);
        let found = about_memlock(Some(64 << 10));
        assert!(
            found.state == State::Missing
                && found.detail.contains("64 KiB")
                && found.detail.contains("8 MiB")
        );
    }

    #[test]
    fn every_finding_is_shown_with_its_commands() {
        let found = Finding::new("x", State::Missing, "bad\u{1b}").mend("sudo mend");
        let text = as_text(&[found], false);
        assert!(text.contains("missing  x: bad\\u{1b}\n") && text.contains("  sudo mend\n"), "{text}");
    }
}
