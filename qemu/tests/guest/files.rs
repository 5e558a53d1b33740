//! The commands for files on QEMU's NVMe disk through VFIO: the tests of `cli/tests/files.rs`, with real files of the kernel's
//! package, and the mount by FUSE, which the guest's kernel has built in.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::path::{Path, PathBuf};
use std::time::Duration;

use qemu::{Artifact, Command, Guest, Machine, Nvme, Step};

const DISK: u64 = 256 << 20;
/// How many files are put into the guest; a few more than the test asks for.
const FILES: usize = 2100;
/// Larger ones are left out: all of them lie in the guest's memory, several times.
const LARGEST: u64 = 16 << 10;
const LIFE: Duration = Duration::from_secs(900);

/// Files of the kernel's package: modules, and what belongs to them.
fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (meta, path) = (entry.metadata().unwrap(), entry.path());
        match found.len() {
            FILES => return,
            _ if meta.is_dir() => collect(&path, found),
            _ if meta.is_file() && meta.len() <= LARGEST => found.push(path),
            _ => {}
        }
    }
}

#[test]
#[ignore = "starts a guest"]
fn s6_r3_files_go_in_and_come_out_of_a_real_disk() {
    let kernel = qemu::install().unwrap();
    let program = qemu::build_static("portcullis-cli", Artifact::Bin("portcullis")).unwrap();
    let tests = qemu::build_static("portcullis-cli", Artifact::Test("files")).unwrap();
    let disk = qemu::scratch_disk("files", DISK).unwrap();
    let machine = Machine::new().memory_mb(1024).iommu(true).nvme(Nvme::new(disk)).limit(LIFE);
    let mut guest = Guest::new(machine).program(program, "portcullis").program(tests, "files");

    let vmlinux = kernel.vmlinux();
    let root = vmlinux.parent().unwrap();
    let mut files = Vec::new();
    collect(root, &mut files);
    assert_eq!(files.len(), FILES, "the kernel's package has them");
    for file in files {
        let to = Path::new("/tree").join(file.strip_prefix(root).unwrap());
        guest = guest.file(&file, to.to_str().unwrap());
    }
    let command = Command::new("files")
        // Thousands of files through FUSE take minutes on a machine that is emulated, and show nothing more there.
        .args(["--test-threads=1", "--show-output", "--skip=thousands"])
        .env("PORTCULLIS_PROGRAM", "/bin/portcullis")
        .env("PORTCULLIS_DEVICE", format!("vfio:{}", qemu::nvme_address(0)))
        .env("PORTCULLIS_TREE", "/tree")
        .limit_s(LIFE.as_secs());
    let guest = guest.step(Step::bind_vfio(qemu::nvme_address(0), None)).step(Step::run(command));
    let outcome = guest.run(&mut qemu::print_event).unwrap();
    outcome.check().unwrap();
    let said = |text: &str| outcome.output(1).any(|line| line.contains(text));
    // What the adapters log stands between the words of these lines.
    for text in ["s6_r3_a_tree_of_two_thousand_real_files", " files, ", "test result: ok"] {
        assert!(said(text), "{text}: {:?}", outcome.events);
    }
    for text in ["skipped: /dev/fuse", "skipped: portcullis: cannot mount"] {
        assert!(!said(text), "the guest's kernel has FUSE: {:?}", outcome.events);
    }
}
