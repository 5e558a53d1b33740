//! What QEMU can do to a device while an adapter drives it: medium errors, a backend that stops, resets, removal and
//! return. The program in the guest says on its output what is to be done, and it is done by QEMU's monitor.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use qemu::{Artifact, Command, Event, Expect, Guest, Machine, Monitor, Outcome, Step, User};
use serde_json::{Value, json};
use tests::faults::machine::ASK;
use tests::scale::tell;

/// Bytes of the device.
const DISK: u64 = 128 << 20;
/// Behind the only root port.
const ADDRESS: &str = "0000:01:00.0";
/// How long a guest may take.
const LIFE_S: u64 = 400;
/// How long it may take until a device that is removed has made room.
const ROOM: Duration = Duration::from_secs(30);
/// How long after that QEMU may take to forget it. One that its driver left with commands under way QEMU 7.2 never forgets.
const FORGET: Duration = Duration::from_secs(5);
/// Runs the adapter that is a process of its own.
const ADAPTER: User = User { uid: 1000, gid: 1000 };
const SOCKET: &str = "/tmp/portcullis.sock";
const SIGTERM: i32 = 15;

/// A disk behind a root port, whose blocks go by way of a node that can be exchanged.
struct Bay {
    /// What QEMU is told of the device, but for its blocks.
    device: Value,
    /// That of it to which QEMU gives them.
    backed: &'static str,
    image: PathBuf,
    /// How often it was put in. Each time its blocks come by nodes of its own: nobody waits for those of the one before.
    puts: u32,
    socket: PathBuf,
    monitor: Option<Monitor>,
}

impl Bay {
    fn new(name: &str, (device, backed): (Value, &'static str), dir: &tempfile::TempDir) -> Self {
        let image = qemu::scratch_disk(name, DISK).expect("a scratch disk");
        Self { device, backed, image, puts: 0, socket: dir.path().join("qmp"), monitor: None }
    }

    /// The node over which the device is now.
    fn top(&self) -> String {
        format!("top{}", self.puts)
    }

    fn file(&self) -> String {
        format!("image{}", self.puts)
    }

    /// The nodes under the device as it is now, the one that reads and writes the image first.
    fn nodes(&self) -> [Value; 2] {
        [
            json!({
                "driver": "file", "node-name": self.file(), "filename": self.image, "discard": "unmap", "locking": "off"
            }),
            json!({ "driver": "raw", "node-name": self.top(), "file": self.file() }),
        ]
    }

    /// What QEMU is told of the device as it is now.
    fn device(&self) -> Value {
        let mut device = self.device.clone();
        device["drive"] = self.top().into();
        device
    }

    fn machine(&self) -> Machine {
        let node = |node: Value| ["-blockdev".to_owned(), node.to_string()];
        let every = ["read", "write", "write-zeroes", "discard"];
        let errors: Vec<Value> =
            every.iter().map(|kind| json!({ "event": "none", "iotype": kind, "errno": 5 })).collect();
        let mut options: Vec<String> = self.nodes().into_iter().flat_map(node).collect();
        options.extend(node(
            json!({ "driver": "blkdebug", "node-name": "bad", "image": self.file(), "inject-error": errors }),
        ));
        options.extend(["-device".to_owned(), "pcie-root-port,id=bay,chassis=1,slot=1".to_owned()]);
        options.extend(["-device".to_owned(), self.device().to_string()]);
        options.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", self.socket.display())]);
        Machine::new().qemu_options(options).limit(Duration::from_secs(LIFE_S + 60))
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let monitor = match &mut self.monitor {
            Some(monitor) => monitor,
            none => none.insert(Monitor::connect(&self.socket)?),
        };
        monitor.execute(command, arguments)
    }

    /// Does what is asked for.
    fn act(&mut self, what: &str) -> anyhow::Result<()> {
        let over =
            |file: &str| json!({ "options": [{ "driver": "raw", "node-name": self.top(), "file": file }] });
        let rate = |bytes: u64| json!({ "id": self.backed, "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
        let (command, arguments) = match what {
            "medium-bad" => ("blockdev-reopen", over("bad")),
            "medium-good" => ("blockdev-reopen", over(&self.file())),
            // A block takes minutes.
            "hold" => ("block_set_io_throttle", rate(1)),
            "go" => ("block_set_io_throttle", rate(0)),
            "pull" => ("device_del", json!({ "id": "disk" })),
            "put" => return self.put(),
            other => anyhow::bail!("nobody knows how to do {other:?}"),
        };
        self.execute(command, &arguments).map(drop)
    }

    /// Puts the device in again, when the machine has let it go.
    fn put(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + ROOM;
        let there =
            |all: &Value| all.as_array().is_some_and(|all| all.iter().any(|its| its["name"] == "disk"));
        while there(&self.execute("qom-list", &json!({ "path": "/machine/peripheral" }))?) {
            anyhow::ensure!(Instant::now() < end, "the device has not gone within {ROOM:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let gone =
            self.monitor.as_mut().map(|qemu| qemu.wait_for("DEVICE_DELETED", ("device", "disk"), FORGET));
        gone.transpose()?;
        self.execute("blockdev-del", &json!({ "node-name": self.top() }))?;
        // The first one is also under what fails.
        let _ = self.execute("blockdev-del", &json!({ "node-name": self.file() }));
        self.puts += 1;
        for node in self.nodes() {
            self.execute("blockdev-add", &node)?;
        }
        self.execute("device_add", &self.device()).map(drop)
    }

    /// Runs a guest whose step `step` asks for what is to be done.
    fn run(&mut self, guest: &Guest, step: usize) {
        let mut troubles = Vec::new();
        let outcome = guest.run(&mut |event| {
            qemu::print_event(event);
            if let Event::Output { line, .. } = event
                // Behind the name of the test, it may be.
                && let Some((_, what)) = line.split_once(ASK)
                && let Err(trouble) = self.act(what)
            {
                let trouble = format!("{what}: {trouble:#}");
                println!("{trouble}");
                troubles.push(trouble);
            }
        });
        let outcome = outcome.expect("a guest");
        println!("{outcome}");
        told(&outcome, step);
        assert_eq!(troubles, Vec::<String>::new());
        outcome.check().expect("all cells pass");
    }
}

/// Hands on what a step counted.
fn told(outcome: &Outcome, step: usize) {
    let table = |line: &&str| {
        line.contains("fault matrix") || line.starts_with("| ") || line.contains("requests meanwhile")
    };
    outcome.output(step).filter(table).for_each(tell);
    outcome.output(step).filter(|line| line.contains("counted: ")).for_each(tell);
}

/// The program with the faults, which runs those of its tests whose names have `tests` in them.
fn suite(tests: &str) -> Command {
    Command::new("faults")
        .args([tests, "--test-threads=1"])
        .env("PORTCULLIS_DEVICE", format!("vfio:{ADDRESS}"))
        .limit_s(LIFE_S)
}

fn nvme() -> (Value, &'static str) {
    (json!({ "driver": "nvme", "id": "disk", "serial": "returns", "bus": "bay" }), "disk")
}

/// A device with an error goes on, as a disk does, where QEMU would stop the machine.
fn virtio() -> (Value, &'static str) {
    let device = json!({
        "driver": "virtio-blk-pci", "id": "disk", "serial": "returns", "bus": "bay", "num-queues": 8,
        "disable-legacy": "on", "iommu_platform": true, "werror": "report", "rerror": "report"
    });
    (device, "/machine/peripheral/disk/virtio-backend")
}

fn faults() -> PathBuf {
    qemu::install().expect("a QEMU");
    qemu::build_static("tests", Artifact::Test("faults")).expect("the suite")
}

/// Runs some of the faults in a guest of their own: QEMU's throttling and its removal of a device do not go well together.
fn run(device: (Value, &'static str), name: &str, tests: &str) {
    let program = faults();
    let dir = tempfile::tempdir().expect("a directory");
    let mut bay = Bay::new(name, device, &dir);
    let guest = Guest::new(bay.machine())
        .program(program, "faults")
        .step(Step::bind_vfio(ADDRESS, None))
        .step(Step::run(suite(tests)))
        .step(Step::KernelLog);
    bay.run(&guest, 1);
}

const STAYS: &str = "faults_that_stay";
const REMOVED: &str = "a_device_that_is_removed";

#[test]
#[ignore = "starts a guest"]
fn nvme_of_qemu_fails_stops_and_is_reset() {
    run(nvme(), "faults-nvme", STAYS);
}

#[test]
#[ignore = "starts a guest"]
fn nvme_of_qemu_goes_and_returns() {
    run(nvme(), "faults-nvme", REMOVED);
}

#[test]
#[ignore = "starts a guest"]
fn virtio_of_qemu_fails_stops_and_is_reset() {
    run(virtio(), "faults-virtio", STAYS);
}

#[test]
#[ignore = "starts a guest"]
fn virtio_of_qemu_goes_and_returns() {
    run(virtio(), "faults-virtio", REMOVED);
}

/// The kernel's own driver takes what is put in, and an operator gives it to the adapter, who is a confined process of a user
/// without privileges.
#[test]
#[ignore = "starts a guest"]
fn a_confined_adapter_has_its_device_back() {
    let program = faults();
    let portcullis =
        qemu::build_static("portcullis-cli", Artifact::Bin("portcullis")).expect("the program portcullis");
    let dir = tempfile::tempdir().expect("a directory");
    let mut bay = Bay::new("faults-confined", nvme(), &dir);
    let device = format!("vfio:{ADDRESS}");
    let serve = Command::new("portcullis")
        .args(["serve", "--device", &device, "--format", "--socket", SOCKET])
        .user(ADAPTER)
        .memlock(8 << 20);
    let bind = Command::new("portcullis").args(["bind", ADDRESS, "--user", &ADAPTER.uid.to_string()]);
    let guest = Guest::new(bay.machine())
        .module("nvme", "")
        .program(program, "faults")
        .program(portcullis, "portcullis")
        .step(Step::run(bind))
        .step(Step::spawn("serve", serve))
        .step(Step::wait_for_path(SOCKET))
        .step(Step::run(suite("confined").env("PORTCULLIS_SOCKET", SOCKET)))
        .step(Step::Kill { name: "serve".into(), signal: SIGTERM, expect: Expect::Success, limit_s: 60 })
        .step(Step::KernelLog);
    bay.run(&guest, 3);
}
