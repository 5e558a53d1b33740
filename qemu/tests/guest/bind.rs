//! `portcullis bind` and `unbind` on the kernel's own drivers, and the health of a disk as the kernel reads it.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::Path;
use std::time::Duration;

use qemu::{Artifact, Command, Expect, Guest, Machine, Nvme, Outcome, Step, User};
use serde_json::Value;

/// Runs the adapter.
const ADAPTER: User = User { uid: 1000, gid: 1000 };
const SOCKET: &str = "/tmp/portcullis.sock";
const SIGTERM: i32 = 15;
/// Two functions of one device: QEMU's have no access control between them, so the kernel puts them into one group.
const FIRST: &str = "0000:00:11.0";
const SECOND: &str = "0000:00:11.1";

/// Of one program, step after step.
struct Script {
    guest: Guest,
    /// What must be among the output of which step.
    wanted: Vec<(usize, String)>,
}

impl Script {
    fn step(mut self, step: Step) -> Self {
        self.guest = self.guest.step(step);
        self
    }

    fn says(mut self, text: &str) -> Self {
        self.wanted.push((self.guest.steps.len() - 1, text.to_owned()));
        self
    }

    fn portcullis(self, arguments: &str) -> Self {
        self.step(Step::run(portcullis(arguments)))
    }

    /// Must be refused, saying all of that.
    fn refused(self, arguments: &str, why: &[&str]) -> Self {
        let script = self.step(Step::Run { command: portcullis(arguments), expect: Expect::Code(1) });
        why.iter().fold(script, |script, why| script.says(why))
    }

    /// A step of `cli/tests/bind.rs`.
    fn does(self, what: &str, address: &str) -> Self {
        self.step(Step::run(does(what, address)))
    }

    fn check(&self, outcome: &Outcome) {
        outcome.check().unwrap();
        for (step, text) in &self.wanted {
            let lines: Vec<&str> = outcome.output(*step).collect();
            assert!(
                lines.iter().any(|line| line.contains(text)),
                "step {step}: {text:?} is not in {lines:#?}"
            );
        }
    }
}

fn portcullis(arguments: &str) -> Command {
    Command::new("portcullis").args(arguments.split(' ')).env("PORTCULLIS_SOCKET", SOCKET).limit_s(120)
}

fn does(what: &str, address: &str) -> Command {
    Command::new("beside")
        .args([what, "--exact", "--ignored", "--nocapture"])
        .env("PORTCULLIS_ADDRESS", address)
        .limit_s(120)
}

/// An ext4 with one file, made on the host.
fn file_system(image: &Path) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("hello"), "still here\n").unwrap();
    let made = std::process::Command::new("/sbin/mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(directory.path())
        .arg(image)
        .status()
        .unwrap();
    assert!(made.success());
}

fn script(machine: Machine) -> Script {
    let program = qemu::build_static("portcullis-cli", Artifact::Bin("portcullis")).unwrap();
    let beside = qemu::build_static("portcullis-cli", Artifact::Test("bind")).unwrap();
    let mut guest = Guest::new(machine.limit(Duration::from_secs(400))).program(program, "portcullis");
    for module in ["crc32c_generic", "ext4", "nvme"] {
        guest = guest.module(module, "");
    }
    Script { guest: guest.program(beside, "beside"), wanted: Vec::new() }
}

#[test]
#[ignore = "starts a guest"]
fn a_disk_in_use_is_refused_by_name_and_a_free_one_is_bound_and_given_back() {
    qemu::install().unwrap();
    let disk = qemu::scratch_disk("bind", 32 << 20).unwrap();
    file_system(&disk);
    let before = std::fs::read(&disk).unwrap();
    let others = [0, 1].map(|number| qemu::scratch_disk(&format!("bind-{number}"), 16 << 20).unwrap());
    let drive = |number: usize| format!("file={},if=none,id=f{number},format=raw", others[number].display());
    let function =
        |number: usize, more: &str| format!("nvme,drive=f{number},serial=f{number},addr=11.{number}{more}");
    let machine = Machine::new().nvme(Nvme::new(&disk)).qemu_options([
        "-drive",
        &drive(0),
        "-device",
        &function(0, ",multifunction=on"),
        "-drive",
        &drive(1),
        "-device",
        &function(1, ""),
    ]);
    let address = qemu::nvme_address(0);
    let (bind, unbind) = (format!("bind {address}"), format!("unbind {address}"));
    let mut script = script(machine)
        .does("mounts_it", &address)
        .refused(&bind, &["is mounted on /tmp/mounted"])
        .refused(&format!("{bind} --force"), &["is mounted on /tmp/mounted"])
        .step(Step::Run { command: portcullis("doctor"), expect: Expect::Code(1) })
        .says("is mounted on /tmp/mounted")
        .does("unmounts_it", &address)
        .refused(&bind, &["holds an ext2, ext3 or ext4 file system", "--force goes over this"])
        .step(Step::spawn("elsewhere", does("mounts_it_elsewhere", &address)))
        .step(Step::wait_for_path("/dev/shm/elsewhere"))
        .refused(
            &format!("{bind} --force"),
            &["is mounted on /tmp/elsewhere in the mount namespace of process"],
        )
        .step(Step::write("/dev/shm/enough", ""))
        .step(Step::Wait { name: "elsewhere".into(), expect: Expect::Success, limit_s: 60 })
        .refused(&format!("bind {FIRST}"), &[SECOND, "(nvme) is in the same IOMMU group"])
        .refused(&format!("bind {SECOND} --force"), &[FIRST, "(nvme) is in the same IOMMU group"])
        .portcullis(&format!("{bind} --force --dry-run"))
        .says("would be given to vfio-pci")
        .portcullis(&format!("{bind} --force --user {}", ADAPTER.uid))
        .says("is bound to vfio-pci");
    // Whoever it was given to may drive it: the adapter looks at what is there, and leaves it alone.
    let serve = portcullis(&format!("serve --device vfio:{address}")).user(ADAPTER).memlock(8 << 20);
    script = script
        .step(Step::Run { command: serve, expect: Expect::Code(1) })
        .says("holds an ext2, ext3 or ext4 file system, not a portcullis store")
        .portcullis(&unbind)
        .says("has nvme, as it was before")
        .does("mounts_it", &address)
        .does("unmounts_it", &address)
        .refused(&unbind, &["is not bound to vfio-pci but to nvme"]);
    let outcome = script.guest.run(&mut qemu::print_event).unwrap();
    script.check(&outcome);
    assert!(std::fs::read(&disk).unwrap() == before, "the disk's content is as before");
}

/// The number at `at`, of `bytes` bytes, little-endian: what the specification's tables say, read without the driver's types.
fn number(page: &[u8], at: usize, bytes: usize) -> u128 {
    page[at..at + bytes].iter().rev().fold(0, |number, &byte| number << 8 | u128::from(byte))
}

/// The log pages that a step printed: SMART, errors.
fn logs(outcome: &Outcome, step: usize) -> [Vec<u8>; 2] {
    ["smart", "errors"].map(|name| {
        let text = outcome.output(step).find_map(|line| line.split_once(&format!("log {name} "))).unwrap().1;
        let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    })
}

#[test]
#[ignore = "starts a guest"]
fn health_is_as_the_kernels_driver_reads_it() {
    qemu::install().unwrap();
    let disk = qemu::scratch_disk("health", 64 << 20).unwrap();
    let address = qemu::nvme_address(0);
    let serve = portcullis(&format!("serve --device vfio:{address} --format"));
    let as_adapter = |arguments: &str| Step::run(portcullis(arguments).user(ADAPTER));
    let mut script = script(Machine::new().nvme(Nvme::new(disk))).does("reads_its_logs", &address);
    script = script
        .portcullis(&format!("bind {address} --user {}", ADAPTER.uid))
        .step(Step::spawn("serve", serve.user(ADAPTER).memlock(8 << 20)))
        .step(Step::wait_for_path(SOCKET))
        .step(as_adapter("volume create v 4M"))
        .step(as_adapter("bench randwrite --seconds 0.2 --no-kernel --depth 1 --size 4M"))
        .step(as_adapter("device health --json"));
    let told = script.guest.steps.len() - 1;
    let stranger = User { uid: 2001, gid: 2001 };
    script = script
        .step(Step::Run { command: portcullis("device health").user(stranger), expect: Expect::Code(1) })
        .says("E_AUTH")
        .refused(&format!("unbind {address}"), &["is in use by process", "(portcullis)"])
        .step(Step::Kill { name: "serve".into(), signal: SIGTERM, expect: Expect::Success, limit_s: 60 })
        .portcullis(&format!("unbind {address}"))
        .does("reads_its_logs", &address);
    let last = script.guest.steps.len() - 1;
    let outcome = script.guest.run(&mut qemu::print_event).unwrap();
    script.check(&outcome);

    let text: Vec<&str> = outcome.output(told).collect();
    let health: Value = serde_json::from_str(&text.join("\n")).unwrap();
    let told = |name: &str| u128::from(health[name].as_u64().unwrap_or_else(|| panic!("{name} in {health}")));
    let ([first, _], [then, errors]) = (logs(&outcome, 0), logs(&outcome, last));
    // NVM Express Base Specification 2.0, figure "SMART / Health Information Log Page": what does not change, ...
    for (name, at, bytes) in [
        ("critical_warning", 0, 1),
        ("temperature_kelvin", 1, 2),
        ("available_spare_percent", 3, 1),
        ("available_spare_threshold_percent", 4, 1),
        ("percentage_used", 5, 1),
        ("endurance_group_critical_warning", 6, 1),
        ("power_cycles", 112, 16),
        ("unsafe_shutdowns", 144, 16),
        ("media_errors", 160, 16),
        ("warning_temperature_minutes", 192, 4),
        ("critical_temperature_minutes", 196, 4),
    ] {
        assert_eq!(told(name), number(&then, at, bytes), "{name}");
    }
    // ... and what only grows, some of it by what was done in between.
    let mut grew = 0;
    for (name, at) in [
        ("data_units_read", 32),
        ("data_units_written", 48),
        ("host_read_commands", 64),
        ("host_write_commands", 80),
        ("controller_busy_minutes", 96),
        ("power_on_hours", 128),
        ("error_log_entries", 176),
    ] {
        let (least, most) = (number(&first, at, 16), number(&then, at, 16));
        assert!((least..=most).contains(&told(name)), "{name}: {least} <= {} <= {most}", told(name));
        grew += usize::from(told(name) > least);
    }
    assert!(grew >= 2, "data was written in between");
    let used = number(&errors, 0, 8) != 0;
    assert_eq!(health["errors"].as_array().unwrap().is_empty(), !used, "{health}");
}
