//! A real guest, from start to end. Ignored by default: needs QEMU and a kernel (`qemu::install()` gets both).

mod bind;
mod ext4;
mod faults;
mod files;
mod power;
mod restart;
mod two_users;
mod vfio;

use std::time::Duration;

use qemu::{Artifact, Command, End, Event, Exit, Expect, Guest, Machine, Nvme, Step, User};

const NOBODY: User = User { uid: 1000, gid: 1000 };

fn prepared(name: &str) -> anyhow::Result<Guest> {
    qemu::install()?;
    let disk = qemu::scratch_disk(name, 16 << 20)?;
    let init = qemu::build_static("qemu", Artifact::Bin("guest-init"))?;
    // Any static program serves; this one says something on standard error and ends with 2 when it is not process 1.
    let machine = Machine::new().nvme(Nvme::new(disk)).limit(Duration::from_secs(60));
    Ok(Guest::new(machine).program(init, "fails"))
}

#[test]
#[ignore = "starts a guest"]
fn guest_binds_the_disk_to_vfio_and_reports_all() {
    let guest = prepared("boot")
        .unwrap()
        .step(Step::bind_vfio(qemu::nvme_address(0), Some(NOBODY)))
        .step(Step::wait_for_path("/dev/vfio/vfio"))
        .step(Step::Run { command: Command::new("fails").user(NOBODY), expect: Expect::Code(2) })
        .step(Step::KernelLog);
    let outcome = guest.run(&mut qemu::print_event).unwrap();
    println!("{outcome}");
    outcome.check().unwrap();
    assert!(outcome.output(2).any(|line| line.contains("first process")), "{:?}", outcome.events);
    assert!(outcome.output(3).any(|line| line.contains("Linux version")));
    assert!(outcome.output(3).any(|line| line.contains("DMAR")), "the machine has an IOMMU");
    assert_eq!(outcome.events.last(), Some(&Event::Done { passed: true }));
}

#[test]
#[ignore = "starts a guest"]
fn a_step_that_fails_fails_the_guest() {
    let guest = prepared("fails")
        .unwrap()
        .step(Step::spawn("early", Command::new("fails")))
        .step(Step::Wait { name: "early".into(), expect: Expect::Code(2), limit_s: 5 })
        .step(Step::run(Command::new("fails")))
        .step(Step::write("/tmp/never", "written"));
    let outcome = guest.run(&mut |_| ()).unwrap();
    assert_eq!(outcome.exit, Exit::Failed);
    let ends: Vec<&Event> =
        outcome.events.iter().filter(|event| matches!(event, Event::Ended { .. })).collect();
    assert!(matches!(
        ends[..],
        [Event::Ended { end: End::Code(2), step: 0, .. }, Event::Ended { step: 2, .. }]
    ));
    assert!(!outcome.events.contains(&Event::Started { step: 3 }));
    assert!(outcome.check().unwrap_err().to_string().contains("expected Success"));
}

#[test]
#[ignore = "starts a guest"]
fn a_guest_without_a_last_word_has_failed() {
    let guest = prepared("panics").unwrap().step(Step::write("/proc/sysrq-trigger", "c"));
    let outcome = guest.run(&mut |_| ()).unwrap();
    assert!(matches!(outcome.exit, Exit::NoVerdict(_)), "{outcome}");
    assert!(outcome.console.contains("Kernel panic"), "{outcome}");
}
