//! `driver::vfio` against the kernel, the IOMMU and the NVMe controller of a guest.

use std::time::Duration;

use qemu::{Artifact, Command, Expect, Guest, Machine, Nvme, Step, User};

const ADAPTER: User = User { uid: 1000, gid: 1000 };
/// What systems allow by default.
const MEMLOCK: u64 = 8 << 20;

fn guest(name: &str, machine: Machine) -> anyhow::Result<Guest> {
    qemu::install()?;
    let tests = qemu::build_static("driver", Artifact::Test("vfio"))?;
    let disk = qemu::scratch_disk(name, 64 << 20)?;
    let machine = machine.nvme(Nvme::new(disk)).limit(Duration::from_secs(120));
    Ok(Guest::new(machine).program(tests, "vfio-tests"))
}

/// Mappings that the kernel is told to allow.
const ENTRIES: u64 = 16;

/// The driver's tests that need a device, as `args` choose them.
fn tests<const N: usize>(args: [&str; N]) -> Command {
    Command::new("vfio-tests")
        .args(["--ignored", "--test-threads=1"])
        .args(args)
        .env("PORTCULLIS_DEVICE", format!("vfio:{}", qemu::nvme_address(0)))
        .env("PORTCULLIS_MEMLOCK", MEMLOCK.to_string())
        .env("PORTCULLIS_DMA_ENTRIES", ENTRIES.to_string())
}

#[test]
#[ignore = "starts a guest"]
fn the_driver_holds_a_device_as_an_unprivileged_user() {
    let disk = qemu::scratch_disk("vfio-virtio", 16 << 20).unwrap();
    let drive = format!("file={},if=none,id=virtio,format=raw", disk.display());
    let virtio = "virtio-blk-pci,drive=virtio,disable-legacy=on,iommu_platform=on,addr=10.0";
    let machine = Machine::new().qemu_options(["-drive", &drive, "-device", virtio]);
    let guest = guest("vfio", machine)
        .unwrap()
        .module("nvme", "") // so that there is a driver to take it from
        .step(Step::bind_vfio(qemu::nvme_address(0), Some(ADAPTER)))
        .step(Step::run(
            tests(["--skip=as_root", "--skip=limit_of_mappings", "--skip=virtio"])
                .user(ADAPTER)
                .memlock(MEMLOCK),
        ))
        .step(Step::KernelLog)
        .step(Step::run(tests(["as_root"])))
        .step(Step::bind_vfio("0000:00:10.0", Some(ADAPTER)))
        .step(Step::run(tests(["virtio"]).user(ADAPTER).env("PORTCULLIS_DEVICE", "vfio:0000:00:10.0")));
    let outcome = guest.run(&mut qemu::print_event).unwrap();
    println!("{outcome}");
    outcome.check().unwrap();
    // What the tests saw as untouched memory, the IOMMU saw as faults.
    let faults = outcome.output(2).filter(|line| line.contains("PTE Write access is not set")).count();
    assert!(faults > 0, "the IOMMU reported no fault");
}

#[test]
#[ignore = "starts a guest"]
fn what_keeps_a_device_from_being_used_is_named() {
    let failing = || Step::Run { command: tests(["opened_quiet"]).user(ADAPTER), expect: Expect::Code(101) };
    let vfio = "/sys/module/vfio_iommu_type1/parameters";
    let guest = guest("vfio-errors", Machine::new().interrupt_remapping(false))
        .unwrap()
        .step(Step::bind_vfio(qemu::nvme_address(0), None))
        .step(failing())
        .step(Step::bind_vfio(qemu::nvme_address(0), Some(ADAPTER)))
        .step(failing())
        .step(Step::write(format!("{vfio}/allow_unsafe_interrupts"), "Y"))
        .step(Step::write(format!("{vfio}/dma_entry_limit"), ENTRIES.to_string()))
        .step(Step::run(tests(["limit_of_mappings"]).user(ADAPTER)));
    let outcome = guest.run(&mut |_| ()).unwrap();
    outcome.check().unwrap();
    let says = |step, what| outcome.output(step).any(|line| line.contains(what));
    assert!(says(1, "Permission") && says(1, "uid: 0"), "{:?}", outcome.events);
    assert!(says(3, "UnsafeInterrupts"), "{:?}", outcome.events);
}
