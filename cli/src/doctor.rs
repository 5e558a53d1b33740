//! `portcullis doctor`: what is missing to drive a real disk, and the command that mends it. Looks, and changes nothing.

mod kernel;

use std::fs;
use std::process::ExitCode;

use anyhow::Result;
use rustix::fs::{Access, access};
use rustix::process::{Resource, getegid, geteuid, getgroups, getrlimit};
use serde_json::json;

use crate::arguments::DoctorOptions;
use crate::bind::refusals;
use crate::machine::Machine;
use crate::machine::function::Function;
use crate::output;
use crate::subject::{group_name, user_name};
use crate::units::show_size;

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

pub(crate) fn run(options: &DoctorOptions, as_json: bool) -> Result<ExitCode> {
    let machine = Machine::new(&options.root);
    let disks = Function::disks(&machine);
    let mut findings = vec![iommu(&machine)];
    findings.extend(interrupt_remapping(&machine));
    findings.extend([modules(&machine), container(&machine), memlock(), huge_pages(&machine)]);
    findings.extend(kernel::findings(&machine));
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
fn is_ready(findings: &[Finding], disks: &[Function]) -> bool {
    let fine = |finding: &Finding| finding.state != State::Missing;
    let (of_disks, of_machine): (Vec<_>, Vec<_>) =
        findings.iter().partition(|finding| disks.iter().any(|disk| name_of(disk) == finding.check));
    of_machine.into_iter().all(fine) && of_disks.into_iter().any(fine)
}

/// What findings about a disk are called.
fn name_of(disk: &Function) -> String {
    format!("disk {}", disk.address)
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
    let groups = machine.names("sys/kernel/iommu_groups");
    let without =
        |group: &&String| machine.text(format!("sys/kernel/iommu_groups/{group}/name")) == "vfio-noiommu";
    let unprotected = groups.iter().filter(without).count();
    if groups.len() > unprotected {
        return Finding::new("iommu", State::Ok, format!("on, {} groups", groups.len() - unprotected));
    }
    if unprotected > 0 {
        let detail = "off, and VFIO without one (vfio-noiommu) is not used: nothing would bound what a disk writes in memory";
        return Finding::new("iommu", State::Missing, detail);
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

/// Without it a device could forge interrupts of others, and VFIO refuses. On other processors the IOMMU or the interrupt
/// controller always does it.
fn interrupt_remapping(machine: &Machine) -> Option<Finding> {
    const CHECK: &str = "interrupt remapping";
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    // The kernel marks the controllers of interrupts that are remapped.
    if machine.text("proc/interrupts").contains("IR-") {
        return Some(Finding::new(CHECK, State::Ok, "on"));
    }
    if machine.text("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts") == "Y" {
        let detail =
            "off, and VFIO was told to do without (allow_unsafe_interrupts): a disk could forge interrupts";
        return Some(Finding::new(CHECK, State::Note, detail));
    }
    let line = machine.text("proc/cmdline");
    let disabling = ["intremap=off", "nointremap", "intremap=nosid", "noapic", "nolapic"];
    let found = line.split_whitespace().find(|word| disabling.contains(word));
    let finding = match found {
        Some(word) => Finding::new(CHECK, State::Missing, format!("off: the kernel was started with {word}"))
            .mend(format!("sudo sed -i 's/ *\\b{word}\\b//' /etc/default/grub && sudo update-grub && sudo reboot")),
        None => Finding::new(CHECK, State::Missing, "off: switch on VT-d or AMD-Vi, and x2APIC, in the firmware setup")
            .mend(
                "echo 'options vfio_iommu_type1 allow_unsafe_interrupts=1' | sudo tee /etc/modprobe.d/vfio.conf    # or accept \
                 that a disk could forge interrupts; then reboot",
            ),
    };
    Some(finding)
}

/// Nothing needs them; the IOMMU's page tables are smaller with them.
fn huge_pages(machine: &Machine) -> Finding {
    const CHECK: &str = "huge pages";
    let text = machine.text("sys/kernel/mm/transparent_hugepage/shmem_enabled");
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some((mode @ ("always" | "advise" | "within_size"), _)) => {
            Finding::new(CHECK, State::Ok, format!("shared memory may have them ({mode}); none are needed"))
        }
        _ => Finding::new(CHECK, State::Ok, "none for shared memory; none are needed"),
    }
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

fn about_disk(machine: &Machine, disk: &Function) -> Finding {
    let kind = disk.kind.unwrap_or("disk");
    let finding = |state, detail: String| Finding::new(name_of(disk), state, format!("{kind}, {detail}"));
    let in_the_way = refusals(machine, disk);
    if in_the_way.iter().any(|refusal| !refusal.forceable) {
        let why: Vec<&str> = in_the_way.iter().map(|refusal| refusal.why.as_str()).collect();
        let mut found = finding(State::Missing, why.join("; "));
        found.mend = in_the_way.iter().flat_map(|refusal| refusal.mend.clone()).collect();
        return found;
    }
    if !disk.is_bound() {
        let driver = disk.driver.as_deref().unwrap_or("no driver");
        let user = user_name(geteuid().as_raw()).unwrap_or_else(|| geteuid().as_raw().to_string());
        return finding(State::Missing, format!("has {driver}, not vfio-pci; nobody is seen to use it"))
            .mend(format!("sudo portcullis bind {} --user {user}", disk.address));
    }
    match &disk.group {
        Some(group) => about_group(machine, disk, group, finding),
        None => finding(State::Missing, "in no IOMMU group: see iommu above".to_owned()),
    }
}

/// Whether this user may open the group's file.
fn about_group(
    machine: &Machine,
    disk: &Function,
    group: &str,
    finding: impl Fn(State, String) -> Finding,
) -> Finding {
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
            .mend(format!("sudo portcullis bind {} --user {user}    # until the next start", disk.address));
    }
    finding(State::Missing, format!("user {user} is not in group {owner}, which may open {shown}"))
        .mend(format!("sudo usermod -aG {owner} {user}    # then log in again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fake::Fake;

    fn only(machine: &Machine) -> Finding {
        let disks = Function::disks(machine);
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
    fn interrupts_that_are_not_remapped_are_told() {
        let fake = Fake::new();
        let found = |fake: &Fake| interrupt_remapping(&fake.machine()).unwrap();
        assert!(
            found(&fake).state == State::Missing
                && found(&fake).mend[0].contains("allow_unsafe_interrupts=1")
        );
        fake.file("proc/cmdline", "quiet intremap=off\n");
        assert!(found(&fake).mend[0].contains("intremap=off"));
        fake.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
        assert_eq!(found(&fake).state, State::Note);
        fake.file("proc/interrupts", " 24: 0 IR-PCI-MSIX-0000:01:00.0 0-edge nvme0q0\n");
        assert_eq!(found(&fake).state, State::Ok);
    }

    #[test]
    fn a_group_without_an_iommu_is_none() {
        let fake = Fake::new();
        fake.file("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
        assert_eq!(iommu(&fake.machine()).state, State::Missing);
        fake.file("sys/kernel/iommu_groups/1/type", "DMA\n");
        assert!(iommu(&fake.machine()).detail.contains("1 groups"));
    }

    #[test]
    fn a_disk_of_the_kernel_is_bound_by_one_command() {
        let found = only(&Fake::with_disk().machine());
        assert_eq!(found.state, State::Missing);
        assert!(found.mend[0].starts_with("sudo portcullis bind 0000:01:00.0 --user "), "{found:?}");
    }

    #[test]
    fn a_mounted_disk_is_left_alone() {
        let fake = Fake::with_disk();
        fake.partition("nvme0n1", "nvme0n1p1");
        fake.mounts("self", &[(&fake.number("nvme0n1p1"), "/", "/dev/nvme0n1p1")]);
        let found = only(&fake.machine());
        assert!(
            found.mend.is_empty()
                && found.detail.contains("nvme0n1p1 is mounted on /: this system runs from it"),
            "{found:?}"
        );
    }

    #[test]
    fn a_disk_bound_to_vfio_is_ready() {
        let fake = Fake::with_function();
        fake.link("sys/devices/pci0000:00/0000:01:00.0/driver", "../../../bus/pci/drivers/vfio-pci");
        assert_eq!(only(&fake.machine()).state, State::Missing, "its group has no file");
        fake.file("dev/vfio/7", "");
        let found = only(&fake.machine());
        assert_eq!(found.state, State::Ok, "{found:?}");
        let disks = Function::disks(&fake.machine());
        let missing = Finding::new("iommu", State::Missing, "");
        assert!(is_ready(std::slice::from_ref(&found), &disks));
        assert!(!is_ready(&[found, missing.clone()], &disks) && !is_ready(&[missing], &disks));
    }

    #[test]
    fn a_group_shared_with_a_driven_device_is_not_ready() {
        let fake = Fake::with_function();
        fake.link("sys/devices/pci0000:00/0000:01:00.0/driver", "../../../bus/pci/drivers/vfio-pci")
            .file("dev/vfio/7", "")
            .member("0000:01:00.1", "0x020000", Some("e1000"));
        let found = only(&fake.machine());
        assert!(found.state == State::Missing && found.detail.contains("0000:01:00.1 (e1000)"), "{found:?}");
        assert!(found.mend[0].contains("0000:01:00.1/driver/unbind"));
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
