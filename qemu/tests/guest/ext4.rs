//! An ext4 that the guest's kernel wrote, served through VFIO as it is found, and given back to the kernel. What happens in the
//! guest is `adapter/tests/kernel.rs`.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu::{Artifact, Command, Guest, Machine, Nvme, Outcome, Step, Virtio};

const MIB: u64 = 1 << 20;
/// Files that are copied.
const FILES: usize = 2000;
/// A larger file of the kernel's package is left out, as the guest is slow.
const LARGEST: u64 = 200 << 10;

/// Runs a tool of e2fsprogs on an image.
fn tool(name: &str, arguments: &[&str], image: &Path) {
    let mut command = std::process::Command::new(format!("/sbin/{name}"));
    let output = command.args(arguments).arg(image).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{name} {arguments:?}: {} {said:?}", output.status);
}

/// A step of `adapter/tests/kernel.rs`.
fn does(what: &str) -> Step {
    Step::run(command(what))
}

fn command(what: &str) -> Command {
    let mut command = Command::new("kernel").args([what, "--exact", "--ignored", "--nocapture"]);
    if let Ok(seed) = std::env::var("PORTCULLIS_SEED") {
        command = command.env("PORTCULLIS_SEED", seed);
    }
    command.env("PORTCULLIS_DEVICE", format!("vfio:{}", qemu::nvme_address(0))).limit_s(500)
}

/// A guest with an NVMe disk that holds an ext4 without files, and that disk's image.
fn guest(name: &str, machine: Machine, bytes: u64) -> (Guest, PathBuf) {
    qemu::install().unwrap();
    let target = qemu::scratch_disk(name, bytes).unwrap();
    tool("mkfs.ext4", &["-q", "-F"], &target);
    let program = qemu::build_static("adapter", Artifact::Test("kernel")).unwrap();
    let machine = machine.nvme(Nvme::new(&target)).limit(Duration::from_secs(600));
    let modules = ["crc32c_generic", "ext4", "nvme", "virtio_blk"];
    let guest = Guest::new(machine).program(program, "kernel");
    (modules.into_iter().fold(guest, |guest, module| guest.module(module, "")), target)
}

/// The disk goes to VFIO.
fn given_away(guest: Guest) -> Guest {
    guest.step(Step::bind_vfio(qemu::nvme_address(0), None))
}

/// And back to the kernel's driver.
fn given_back(guest: Guest) -> Guest {
    let address = qemu::nvme_address(0);
    guest
        .step(Step::write("/sys/bus/pci/drivers/vfio-pci/unbind", &address))
        .step(Step::write(format!("/sys/bus/pci/devices/{address}/driver_override"), "\n"))
        .step(Step::write("/sys/bus/pci/drivers_probe", &address))
        .step(Step::wait_for_path("/dev/nvme0n1"))
}

fn run(guest: &Guest) -> Outcome {
    let outcome = guest.run(&mut qemu::print_event).unwrap();
    outcome.check().unwrap();
    outcome
}

#[test]
#[ignore = "starts a guest"]
fn rights_on_an_ext4_and_on_files_of_ours_are_those_that_the_kernel_gives() {
    // Of another kind, so that there is no doubt which of them is the kernel's /dev/nvme0n1.
    let own = Virtio::new(qemu::scratch_disk("own-rights", 96 * MIB).unwrap());
    let (guest, target) = guest("ext4-rights", Machine::new().virtio(own), 64 * MIB);
    let own = qemu::virtio_address(0);
    let guest = guest.step(Step::wait_for_path("/dev/nvme0n1")).step(does("asks_the_kernel_for_rights"));
    let guest = given_away(guest).step(Step::bind_vfio(&own, None)).step(Step::run(
        command("rights_are_those_of_the_kernel").env("PORTCULLIS_OWN_DEVICE", format!("vfio:{own}")),
    ));
    let last = guest.steps.len() - 1;
    let outcome = run(&guest);
    assert!(outcome.output(last).any(|line| line.starts_with("counted: ")));
    tool("e2fsck", &["-f", "-n"], &target);
}

/// A folder with files of the kernel's package, none of them large, evenly taken from all of them.
fn real_files() -> tempfile::TempDir {
    let root = qemu::install().unwrap().vmlinux().with_file_name("root");
    let mut all = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().len() <= LARGEST {
                all.push(entry.path());
            }
        }
    }
    all.sort();
    assert!(all.len() >= FILES, "the kernel's package has {} such files", all.len());
    let folder = tempfile::tempdir().unwrap();
    for number in 0..FILES {
        let from = &all[number * all.len() / FILES];
        let to = folder.path().join(from.strip_prefix(&root).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
    folder
}

#[test]
#[ignore = "starts a guest"]
fn a_tree_that_the_kernel_wrote_is_read_overwritten_and_given_back() {
    let folder = real_files();
    let source = qemu::scratch_disk("ext4-source", 128 * MIB).unwrap();
    tool("mkfs.ext4", &["-q", "-F", "-d", folder.path().to_str().unwrap()], &source);
    // Large enough for blocks of 4 KiB by default.
    let (guest, target) = guest("ext4-tree", Machine::new().virtio(Virtio::new(&source)), 640 * MIB);
    let guest = guest
        .step(Step::wait_for_path("/dev/nvme0n1"))
        .step(Step::wait_for_path("/dev/vda"))
        .step(does("copies_a_tree"));
    let guest = given_away(guest).step(does("reads_the_tree_and_overwrites_files_in_place"));
    let served = guest.steps.len() - 1;
    let guest = given_back(guest).step(does("finds_by_the_kernel_what_was_written"));
    let outcome = run(&guest);
    assert!(outcome.output(served).any(|line| line.starts_with("counted: ")));
    tool("e2fsck", &["-f", "-n"], &target);
}
