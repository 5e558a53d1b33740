//! Two users work through VFIO on one disk, IOMMU on; afterwards the disk is compared from outside, byte by byte.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use qemu::{Artifact, Command, Expect, Guest, Machine, Nvme, Step, User};
use serde_json::Value;

/// Runs the adapter and administers it.
const ADAPTER: User = User { uid: 1000, gid: 1000 };
const ALICE: User = User { uid: 2001, gid: 2001 };
const BOB: User = User { uid: 2002, gid: 2002 };

const DISK: u64 = 64 << 20;
const VOLUME: usize = 4 << 20;
/// What the disk is filled with before it is formatted.
const FILLING: u8 = 0xa5;
const SOCKET: &str = "/tmp/portcullis.sock";
const SIGTERM: i32 = 15;

fn portcullis() -> Command {
    Command::new("portcullis").env("PORTCULLIS_SOCKET", SOCKET).limit_s(120)
}

fn administer(arguments: &str) -> Step {
    Step::run(portcullis().args(arguments.split(' ')).user(ADAPTER))
}

fn refused(arguments: &str, user: User) -> Step {
    Step::Run { command: portcullis().args(arguments.split(' ')).user(user), expect: Expect::Code(1) }
}

fn wait(name: &str) -> Step {
    Step::Wait { name: name.into(), expect: Expect::Success, limit_s: 120 }
}

fn content(seed: u8) -> Vec<u8> {
    (0..VOLUME).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

/// The bytes of `name` on the disk, in the order of the volume, by what the adapter says of it.
fn volume_bytes(disk: &[u8], ranges: &[(usize, usize)]) -> Vec<u8> {
    ranges.iter().flat_map(|&(first, end)| disk[first..end].iter().copied()).collect()
}

/// Byte ranges of a list of extents.
fn byte_ranges(extents: &Value, block: usize) -> Vec<(usize, usize)> {
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let range = |extent: &Value| {
        let first = number(&extent["first_block"]) * block;
        (first, first + number(&extent["blocks"]) * block)
    };
    extents.as_array().unwrap().iter().map(range).collect()
}

/// Makes the image a store, here on the host and through the software device: the format is the same everywhere.
fn format(program: &Path, disk: &Path, socket: &Path) {
    let mut command = std::process::Command::new(program);
    command
        .args(["serve", "--format", "force", "--device", &format!("emu:{}", disk.display()), "--socket"])
        .arg(socket);
    let mut adapter = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(adapter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the adapter says what it drives");
    rustix::process::kill_process(rustix::process::Pid::from_child(&adapter), rustix::process::Signal::TERM)
        .unwrap();
    assert!(adapter.wait().unwrap().success());
}

#[test]
#[ignore = "starts a guest"]
fn two_users_change_their_own_blocks_and_nothing_else() {
    qemu::install().unwrap();
    let program = qemu::build_static("portcullis-cli", Artifact::Bin("portcullis")).unwrap();
    let disk = qemu::scratch_disk("two-users", DISK).unwrap();
    std::fs::write(&disk, vec![FILLING; usize::try_from(DISK).unwrap()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    format(&program, &disk, &dir.path().join("socket"));
    let before = std::fs::read(&disk).unwrap();
    for (name, seed) in [("alice", 0x11), ("bob", 0x77)] {
        std::fs::write(dir.path().join(name), content(seed)).unwrap();
    }

    let device = format!("vfio:{}", qemu::nvme_address(0));
    let serve = portcullis().args(["serve", "--device", &device, "--socket", SOCKET]);
    let machine = Machine::new().iommu(true).nvme(Nvme::new(&disk)).limit(Duration::from_secs(300));
    let mut guest = Guest::new(machine)
        .program(program, "portcullis")
        .file(dir.path().join("alice"), "/data/alice")
        .file(dir.path().join("bob"), "/data/bob")
        .step(Step::bind_vfio(qemu::nvme_address(0), Some(ADAPTER)))
        .step(Step::spawn("serve", serve.user(ADAPTER).memlock(8 << 20)))
        .step(Step::wait_for_path(SOCKET));
    for order in [
        "volume create alice 4M",
        "volume create between 4M",
        "volume create bob 4M",
        "acl grant alice user:2001 rw",
        "acl grant bob user:2002 rw",
    ] {
        guest = guest.step(administer(order));
    }
    let copy = |order: &str, user: User| portcullis().args(order.split(' ')).user(user);
    guest = guest
        .step(Step::spawn("alice", copy("cp /data/alice alice:", ALICE)))
        .step(Step::spawn("bob", copy("cp /data/bob bob:", BOB)))
        .step(wait("alice"))
        .step(wait("bob"))
        .step(refused("cp bob: /tmp/stolen", ALICE))
        .step(refused("cp /data/alice bob:", ALICE))
        .step(refused("volume delete alice", BOB))
        .step(refused("volume create mine 1M", BOB));
    let shown = guest.steps.len();
    let guest = guest.step(administer("device show --json")).step(Step::Kill {
        name: "serve".into(),
        signal: SIGTERM,
        expect: Expect::Success,
        limit_s: 60,
    });
    let outcome = guest.run(&mut qemu::print_event).unwrap();
    outcome.check().unwrap();

    let text: Vec<&str> = outcome.output(shown).collect();
    let device: Value = serde_json::from_str(&text.join("\n")).unwrap();
    let block = usize::try_from(device["block_size"].as_u64().unwrap()).unwrap();
    let after = std::fs::read(&disk).unwrap();
    let extents = |name: &str| {
        let volumes = device["volumes"].as_array().unwrap();
        byte_ranges(&volumes.iter().find(|v| v["name"] == name).unwrap()["extents"], block)
    };
    assert!(volume_bytes(&after, &extents("alice")) == content(0x11), "alice's blocks hold alice's file");
    assert!(volume_bytes(&after, &extents("bob")) == content(0x77), "bob's blocks hold bob's file");
    assert!(volume_bytes(&after, &extents("between")).iter().all(|&b| b == 0), "zeroed, and nothing else");

    let mut allowed = byte_ranges(&device["metadata"], block);
    allowed.extend(["alice", "between", "bob"].into_iter().flat_map(extents));
    allowed.sort_unstable();
    let mut at = 0;
    for (first, end) in allowed.into_iter().chain([(after.len(), after.len())]) {
        assert!(at <= first, "what the adapter says of its extents overlaps at byte {first}");
        let changed = (at..first).find(|&byte| after[byte] != before[byte]);
        assert_eq!(changed, None, "a byte changed that belongs to nobody");
        at = end;
    }
}
