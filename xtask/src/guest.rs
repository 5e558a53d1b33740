//! What runs in the QEMU guest: the suites on `vfio:`, and the `portcullis` command for a person.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qemu::{Artifact, Command, Event, Exit, Expect, Guest, Machine, Nvme, Step, Stream, User, Virtio};

use crate::process::cargo;
use crate::test::{self, Watcher};

/// Who owns the device in the guest and runs the adapter: no privileges.
const ADAPTER: User = User { uid: 1000, gid: 1000 };

/// Who runs applications.
const APPLICATION: User = User { uid: 1001, gid: 1001 };

/// Where the adapter listens in the guest.
const SOCKET: &str = "/tmp/portcullis.sock";

/// What the adapter may lock in the guest, in bytes: its queues, and what applications register.
const MEMLOCK: u64 = 256 << 20;

/// How long one suite may take in a guest, in seconds; it has no KVM on most machines.
const SUITE_S: u64 = 900;

/// What kind of disk a guest has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Disk {
    Nvme,
    Virtio,
}

impl Disk {
    /// Where it is on the bus.
    fn address(self) -> String {
        match self {
            Self::Nvme => qemu::nvme_address(0),
            Self::Virtio => qemu::virtio_address(0),
        }
    }

    /// The URI of it.
    fn device(self) -> String {
        format!("vfio:{}", self.address())
    }

    /// A machine with such a disk, zeroed, behind an IOMMU, that belongs to the adapter's user.
    fn machine(self, name: &str, bytes: u64, limit: Duration) -> Result<Guest> {
        let image = qemu::scratch_disk(name, bytes)?;
        let machine = Machine::new().iommu(true).limit(limit);
        let machine = match self {
            Self::Nvme => machine.nvme(Nvme::new(image)),
            Self::Virtio => machine.virtio(Virtio::new(image)),
        };
        Ok(Guest::new(machine).step(Step::bind_vfio(self.address(), Some(ADAPTER))))
    }
}

/// Suites that bring software devices of their own: in a guest they would show nothing new. Those of faults and of restarts
/// are among the guest's own tests, as they need somebody outside, or the program that is installed.
const WITHOUT_DEVICE: [&str; 4] = ["faults", "power", "restart", "simulation"];

/// The guest's own tests, then each test program of the package `tests` in a guest of its own.
pub(crate) fn suites(watcher: &mut Watcher) -> Result<Option<String>> {
    qemu::install().context("there is no guest to be had (--no-guest does without)")?;
    let mut command = cargo();
    command.args(["test", "--package", "qemu", "--test", "guest", "--", "--ignored", "--test-threads=1"]);
    let mut trouble: Vec<String> = watcher.run(&mut command)?.into_iter().collect();
    let has_one = |suite: &&str| !WITHOUT_DEVICE.contains(suite);
    for suite in test::suites()?.iter().map(String::as_str).filter(has_one) {
        trouble.extend(run_suite(watcher, suite, Disk::Nvme)?);
    }
    for suite in test::ON_EACH_DEVICE.into_iter().filter(|suite| has_one(suite)) {
        trouble.extend(run_suite(watcher, suite, Disk::Virtio)?);
    }
    Ok(Some(trouble.join("; ")).filter(|trouble| !trouble.is_empty()))
}

/// Runs one test program as the adapter's user; what went wrong beyond failed tests.
fn run_suite(watcher: &mut Watcher, name: &str, disk: Disk) -> Result<Option<String>> {
    eprintln!("   {name} on {} ({disk:?}) in a guest", disk.device());
    let program = qemu::build_static("tests", Artifact::Test(name))?;
    let mut command = Command::new(name).arg("--test-threads=1").env("PORTCULLIS_DEVICE", disk.device());
    command = command.user(ADAPTER).memlock(MEMLOCK).limit_s(SUITE_S);
    let limit = Duration::from_secs(SUITE_S + 60);
    let guest = disk.machine(name, 256 << 20, limit)?.program(program, name).step(Step::run(command));
    let failed_before = watcher.tally.failed;
    watcher.tally.enter(name);
    let outcome = guest.run(&mut |event| {
        if let Event::Output { line, .. } = event {
            watcher.take(Some(line));
        } else {
            watcher.take(None);
        }
    })?;
    let explained = watcher.tally.failed > failed_before;
    Ok((outcome.exit != Exit::Passed && !explained).then(|| format!("{name} on {disk:?}: {outcome}")))
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Show what the adapter and the kernel say, too.
    #[arg(long)]
    verbose: bool,
    /// Run the command as the adapter's own user, who administers it, and not as an application.
    #[arg(long)]
    admin: bool,
    /// Size of the disk, in MiB; it begins zeroed.
    #[arg(long, default_value_t = 256)]
    disk: u64,
    /// What `portcullis` is given.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// `portcullis serve` on the guest's blank disk as one user, then `portcullis ARGS` as another; whether both ended well.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.disk > 0, "a disk has at least 1 MiB");
    qemu::install()?;
    let program = qemu::StaticBuild::new("portcullis-cli", Artifact::Bin("portcullis")).release().build()?;
    let portcullis = || Command::new("portcullis").env("PORTCULLIS_SOCKET", SOCKET);
    let serve = portcullis().args([
        "serve",
        "--device",
        &Disk::Nvme.device(),
        "--socket",
        SOCKET,
        "--format=blank",
        "--anyone-creates",
    ]);
    let ask = portcullis()
        .args(args.arguments.iter().map(String::as_str))
        .user(if args.admin { ADAPTER } else { APPLICATION })
        .limit_s(SUITE_S);
    let guest = Disk::Nvme
        .machine("qemu-command", args.disk << 20, Duration::from_secs(SUITE_S + 60))?
        .program(program, "portcullis")
        .step(Step::spawn("serve", serve.user(ADAPTER).memlock(MEMLOCK)))
        .step(Step::wait_for_path(SOCKET))
        .step(Step::run(ask))
        .step(Step::Kill { name: "serve".into(), signal: SIGTERM, expect: Expect::Success, limit_s: 30 });
    let asked = guest.steps.iter().position(|step| matches!(step, Step::Run { .. })).unwrap_or(0);
    let mut behind = Vec::new();
    let outcome = guest.run(&mut |event| match event {
        Event::Output { step, stream: Stream::Out, line } if *step == asked => println!("{line}"),
        Event::Output { step, line, .. } if *step == asked => eprintln!("{line}"),
        event if args.verbose => eprintln!("{}", told(event)),
        Event::Output { .. } => behind.push(told(event)),
        _ => {}
    })?;
    if outcome.exit != Exit::Passed {
        behind.iter().for_each(|line| eprintln!("{line}"));
        eprintln!("{outcome}");
    }
    Ok(outcome.exit == Exit::Passed)
}

/// signal(7)
const SIGTERM: i32 = 15;

/// An event in a line.
fn told(event: &Event) -> String {
    match event {
        Event::Output { stream: Stream::Kernel, line, .. } => format!("kernel: {line}"),
        Event::Output { line, .. } => format!("serve: {line}"),
        other => format!("guest: {other:?}"),
    }
}
