//! `portcullis serve` on real devices, killed under applications that go on with the next one.

use std::time::Duration;

use qemu::{Artifact, Command, Guest, Machine, Nvme, Step, User, Virtio};

const ADAPTER: User = User { uid: 1000, gid: 1000 };
/// Bytes of each device, and of memory that may be locked.
const DISK: u64 = 64 << 20;
const MEMLOCK: u64 = 64 << 20;
const LIFE_S: u64 = 240;
const KILLS: u64 = 5;

/// On each device two sessions share blocks and a third has some for itself, the adapter is killed again and again, and an oracle
/// accepts all that they saw. Each next adapter has the device when nothing is left of the last one, and none beside it.
#[test]
#[ignore = "starts a guest"]
fn applications_go_on_when_portcullis_serve_is_killed_on_real_devices() {
    qemu::install().expect("a QEMU");
    let suite = qemu::build_static("tests", Artifact::Test("restart")).expect("the suite");
    let program = qemu::build_static("portcullis-cli", Artifact::Bin("portcullis")).expect("the program");
    let disk = |name| qemu::scratch_disk(name, DISK).expect("a scratch disk");
    let machine = Machine::new()
        .iommu(true)
        .nvme(Nvme::new(disk("restart-nvme")))
        .virtio(Virtio::new(disk("restart-virtio")))
        .limit(Duration::from_secs(2 * LIFE_S));
    let devices = [qemu::nvme_address(0), qemu::virtio_address(0)];
    let mut guest = Guest::new(machine).program(suite, "restart").program(program, "portcullis");
    for address in &devices {
        let command = Command::new("restart")
            .args(["--test-threads=1", "applications_go_on"])
            .env("PORTCULLIS_DEVICE", format!("vfio:{address}"))
            .env("PORTCULLIS_PROGRAM", "/bin/portcullis")
            .env("PORTCULLIS_KILLS", KILLS.to_string());
        guest = guest
            .step(Step::bind_vfio(address, Some(ADAPTER)))
            .step(Step::run(command.user(ADAPTER).memlock(MEMLOCK).limit_s(LIFE_S)));
    }
    let outcome = guest.run(&mut qemu::print_event).expect("a guest");
    outcome.check().expect("all steps pass");
    for (step, device) in [(1, "NVMe"), (3, "virtio-blk")] {
        let said = |text: &str| outcome.output(step).any(|line| line.contains(text));
        for text in [
            &format!("counted: {KILLS} restarts under load"),
            "is refused",
            &format!("1 tests passed on vfio: {device}"),
        ] {
            assert!(said(text), "{device}, {text}: {:?}", outcome.events);
        }
    }
}
