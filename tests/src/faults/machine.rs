//! Faults of a machine under test. The device is QEMU's, and so is what goes wrong with it: whoever started the machine
//! follows this program's output, and does to the device what lines that begin with [`ASK`] say. There is no answer: what
//! was asked for is waited for until it shows.
//!
//! This program is the machine's operator, too: a device that was put in is bound to vfio-pci again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adapter::device::DeviceUri;
use adapter::{Adapter, Format, Options};
use portcullis::wire::layout::CompletionEntry;
use portcullis::{Session, Status};

use super::{After, Application, BURST, Bystander, End, Operation, Row, Table, judge, summary, wait};
use crate::system::PATIENCE;

/// What requests to whoever started the machine begin with, somewhere in a line.
pub const ASK: &str = "monitor: ";

/// Says what is to be done to the device.
fn ask(what: &str) {
    // Not by `println`: it is read while the test runs.
    writeln!(std::io::stdout().lock(), "{ASK}{what}").expect("somebody listens");
}

/// What goes wrong.
pub struct Fault {
    name: &'static str,
    operations: &'static [Operation],
    /// What makes it, and what ends it.
    begin: fn(&Machine),
    end: fn(&Machine) -> Result<(), String>,
    allowed: &'static [End],
    needed: End,
    /// A request that took as long as the adapter waits for a device met it, too: a virtio device of QEMU ends on its reset, as
    /// done, what it has.
    holds: bool,
}

/// How long the adapter waits for a command.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(2);

/// The machine under test as this program sees it.
struct Machine {
    address: String,
    /// Who drives the device, if not this process.
    owner: Option<u32>,
}

impl Machine {
    fn device(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&self.address)
    }

    /// Has a device that was pulled put back, when its place is free, and binds it.
    fn put(&self) -> Result<(), String> {
        wait("the kernel lets the device go", || !self.device().exists())?;
        ask("put");
        wait("the kernel finds the device", || self.device().join("iommu_group").exists())?;
        match self.owner {
            None => wait("vfio-pci has the device", || self.bind().is_ok_and(|bound| bound)),
            Some(owner) => self.bind_for(owner),
        }
    }

    /// Whether vfio-pci has the device now. As long as the kernel has not finished with a device that is new it can get any
    /// driver, or none.
    fn bind(&self) -> std::io::Result<bool> {
        std::fs::write(self.device().join("driver_override"), "vfio-pci")?;
        match std::fs::read_link(self.device().join("driver")) {
            Ok(driver) if driver.ends_with("vfio-pci") => return Ok(true),
            Ok(_) => std::fs::write(self.device().join("driver/unbind"), &self.address)?,
            Err(_) => {}
        }
        std::fs::write("/sys/bus/pci/drivers_probe", &self.address)?;
        Ok(false)
    }

    /// As an operator does it: again, if the kernel had not finished with the device.
    fn bind_for(&self, owner: u32) -> Result<(), String> {
        let mut last = String::new();
        let bound = wait("portcullis bind", || {
            let mut command = Command::new("/bin/portcullis");
            command.args(["bind", &self.address, "--user", &owner.to_string()]);
            match command.output() {
                Ok(output) if output.status.success() => return true,
                Ok(output) => last = String::from_utf8_lossy(&output.stderr).into_owned(),
                Err(error) => last = error.to_string(),
            }
            false
        });
        bound.map_err(|why| format!("{why}: {last}"))
    }
}

/// What QEMU can fail and hold: its throttling lets flushes through, and it flushes itself where it exchanges a node.
const MOVE: [Operation; 5] =
    [Operation::Read, Operation::Write, Operation::WriteZeroes, Operation::Deallocate, Operation::Append];

/// Faults of a device that stays where it is.
pub const STAYS: &[Fault] = &[
    Fault {
        name: "medium error",
        operations: &MOVE,
        begin: |_| ask("medium-bad"),
        end: |_| {
            ask("medium-good");
            Ok(())
        },
        allowed: &[End::Done, End::SaidAny],
        needed: End::SaidAny,
        holds: false,
    },
    Fault {
        name: "backend stops",
        operations: &MOVE,
        begin: |_| ask("hold"),
        end: |_| {
            ask("go");
            Ok(())
        },
        allowed: &[End::Done, End::Aborted],
        needed: End::Aborted,
        holds: true,
    },
    Fault {
        name: "function reset",
        operations: &Operation::ALL,
        begin: |machine| {
            // The kernel may be busy with it.
            let _ = std::fs::write(machine.device().join("reset"), "1");
        },
        end: |_| Ok(()),
        allowed: &[End::Done, End::Aborted],
        needed: End::Done,
        holds: false,
    },
];

/// A device that is removed and put back.
pub const GOES: &[Fault] = &[Fault {
    name: "removed, returns",
    operations: &Operation::ALL,
    begin: |_| ask("pull"),
    end: Machine::put,
    allowed: &[End::Done, End::Aborted, End::Refused],
    needed: End::Refused,
    holds: false,
}];

/// Who drives the machine's device.
enum Driver {
    Here { adapter: Adapter, _dir: tempfile::TempDir },
    Daemon(Daemon),
}

/// An adapter over the machine's device, and an application of it.
struct Stage {
    machine: Machine,
    application: Application,
    driver: Driver,
}

impl Stage {
    fn new(uri: &str) -> anyhow::Result<Self> {
        let device: DeviceUri = uri.parse()?;
        let DeviceUri::Vfio(address) = device.clone() else {
            anyhow::bail!("{uri} is no device of a machine")
        };
        let options =
            Options { format: Format::Force, device_timeout: DEVICE_TIMEOUT, ..Options::new(device) };
        let dir = tempfile::tempdir()?;
        let adapter = Adapter::start(&options, &dir.path().join("socket"))?;
        let machine = Machine { address, owner: None };
        Self::with(machine, Driver::Here { adapter, _dir: dir })
    }

    /// With an adapter that listens on `socket`, a process of its own.
    fn beside(uri: &str, socket: &str) -> anyhow::Result<Self> {
        let DeviceUri::Vfio(address) = uri.parse()? else { anyhow::bail!("{uri} is no device of a machine") };
        let daemon = Daemon::find(socket)?;
        let machine = Machine { address, owner: Some(daemon.state()?.user) };
        Self::with(machine, Driver::Daemon(daemon))
    }

    fn with(machine: Machine, driver: Driver) -> anyhow::Result<Self> {
        let session = Session::connect(driver.socket())?;
        Ok(Self { machine, application: Application::new(session)?, driver })
    }

    /// Bursts until one meets the fault.
    fn meet(&mut self, fault: &Fault, operation: Operation) -> Result<Vec<CompletionEntry>, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let since = Instant::now();
            let ended = self.application.submit(operation, BURST)?;
            judge(&ended, fault.allowed, None)?;
            let held = fault.holds && since.elapsed() >= DEVICE_TIMEOUT;
            if held || judge(&ended, fault.allowed, Some(fault.needed)).is_ok() {
                return Ok(ended);
            }
            if Instant::now() > end {
                return Err(format!("no request ended as {:?}", fault.needed));
            }
            std::thread::sleep(Duration::from_millis(2)); // an append would soon find no room
        }
    }

    fn cell(&mut self, fault: &Fault, operation: Operation, other: &Bystander) -> Result<String, String> {
        self.application.recovers(operation)?;
        (fault.begin)(&self.machine);
        let ended = self.meet(fault, operation);
        (fault.end)(&self.machine)?;
        let ended = ended?;
        self.application.recovers(operation)?;
        self.application.silent()?;
        other.went_on()?;
        Ok(summary(&ended, After::Works))
    }
}

/// Runs some rows of the matrix on the machine's device.
///
/// # Errors
/// The cells that failed.
pub fn matrix(uri: &str, faults: &[Fault], table: &Table) -> Result<(), String> {
    let (mut stage, other) = (Stage::new(uri).map_err(|error| format!("{error:#}"))?, Bystander::start());
    let device = crate::suite::kind_of(uri);
    let mut failed = Vec::new();
    for fault in faults {
        for &operation in fault.operations {
            let since = Instant::now();
            let outcome = stage.cell(fault, operation, &other);
            let (fault, device) = (fault.name.to_owned(), format!("{device} of QEMU"));
            let row = Row { fault, device, operation, outcome, time: since.elapsed() };
            failed.extend(table.add(row).err());
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

impl Driver {
    fn socket(&self) -> &Path {
        match self {
            Self::Here { adapter, .. } => adapter.socket(),
            Self::Daemon(daemon) => &daemon.socket,
        }
    }
}

/// An adapter that is a process of its own.
struct Daemon {
    socket: PathBuf,
    process: PathBuf,
}

/// What the kernel says of a process.
#[derive(PartialEq, Eq, Debug)]
struct Confined {
    user: u32,
    no_new_privileges: bool,
    filtered: bool,
}

impl Daemon {
    /// The process that listens there.
    fn find(socket: &str) -> anyhow::Result<Self> {
        let is_it = |process: &PathBuf| {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            words.any(|word| word == b"serve") && words.any(|word| word == socket.as_bytes())
        };
        let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        let process = processes.into_iter().find(is_it);
        let process = process.ok_or_else(|| anyhow::anyhow!("nobody serves {socket}"))?;
        Ok(Self { socket: socket.into(), process })
    }

    fn state(&self) -> anyhow::Result<Confined> {
        let status = std::fs::read_to_string(self.process.join("status"))?;
        let word = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()).unwrap_or_default()
        };
        Ok(Confined {
            user: word("Uid").parse()?,
            no_new_privileges: word("NoNewPrivs") == "1",
            filtered: word("Seccomp") == "2",
        })
    }
}

/// Removals and returns in one machine, and those under an adapter that is a process of its own.
const REMOVALS: u64 = 20;
const UNDER_A_DAEMON: u64 = 5;
/// Requests that a session under load has with the device together.
const DEPTH: u64 = 32;

/// Requests that ended: once, or it was said which did not.
#[derive(Clone, Copy, Default)]
struct Made {
    done: u64,
    aborted: u64,
    refused: u64,
}

impl Made {
    fn add(mut self, ended: &[CompletionEntry]) -> Result<Self, String> {
        judge(ended, &[End::Done, End::Aborted, End::Refused], None)?;
        for entry in ended {
            *match Status(entry.status) {
                Status::OK => &mut self.done,
                Status::E_PATH => &mut self.refused,
                _ => &mut self.aborted,
            } += 1;
        }
        Ok(self)
    }

    fn tell(self) {
        let Self { done, aborted, refused } = self;
        println!(
            "requests meanwhile: {done} done, {aborted} aborted, {refused} refused as the device was away"
        );
        crate::scale::counted(done + aborted, "requests to a device that was removed and came back");
    }
}

/// Sessions that keep the device busy.
struct Loads {
    stop: Arc<AtomicBool>,
    /// Requests that ended well.
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<Made, String>>>,
}

impl Loads {
    fn start(socket: &Path, sessions: usize) -> Result<Self, String> {
        let (stop, done) = (Arc::default(), Arc::default());
        let mut loads = Self { stop, done, threads: Vec::new() };
        for _ in 0..sessions {
            let session = Session::connect(socket).map_err(|error| error.to_string())?;
            let mut application = Application::beside(session).map_err(|error| error.to_string())?;
            let (stop, done) = (Arc::clone(&loads.stop), Arc::clone(&loads.done));
            loads.threads.push(std::thread::spawn(move || {
                let mut made = Made::default();
                while !stop.load(Ordering::Relaxed) {
                    for operation in [Operation::Write, Operation::Read] {
                        let before = made.done;
                        made = made.add(&application.submit(operation, DEPTH)?)?;
                        done.fetch_add(made.done - before, Ordering::Relaxed);
                    }
                }
                Ok(made)
            }));
        }
        Ok(loads)
    }

    /// Waits until each has gone round, whatever it had begun before.
    fn go_on(&self) -> Result<(), String> {
        let enough = self.done.load(Ordering::Relaxed) + 4 * DEPTH * self.threads.len() as u64;
        let stopped = || self.threads.iter().any(std::thread::JoinHandle::is_finished);
        wait("the others go on", || self.done.load(Ordering::Relaxed) > enough || stopped())
    }

    fn end(self) -> Result<Made, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().try_fold(Made::default(), |all, thread| {
            let made = thread.join().map_err(|_| "a session under load panicked".to_owned())??;
            let Made { done, aborted, refused } = all;
            Ok(Made {
                done: done + made.done,
                aborted: aborted + made.aborted,
                refused: refused + made.refused,
            })
        })
    }
}

impl Stage {
    /// The device is pulled and put back while it is busy, and what was on it is read.
    fn round(&mut self, loads: &Loads) -> Result<(), String> {
        self.application.recovers(Operation::Write)?;
        let kept = self.application.keep()?;
        loads.go_on()?;
        ask("pull");
        self.application.refused(Operation::Read)?;
        self.machine.put()?;
        self.application.recovers(Operation::Read)?;
        self.application.kept(&kept)?;
        loads.go_on()
    }

    /// So often; what the load made meanwhile.
    fn rounds(&mut self, count: u64) -> Result<Made, String> {
        let loads = Loads::start(self.driver.socket(), 2)?;
        let outcome = (0..count).try_for_each(|round| {
            self.round(&loads).map_err(|why| format!("removal {} of {count}: {why}", round + 1))
        });
        let made = loads.end();
        outcome.and(made)
    }
}

/// The device is removed and put back, again and again, while two sessions keep it busy: each request ends once, and the
/// device comes back with what was on it.
///
/// # Errors
/// What did not hold.
pub fn removals(uri: &str) -> Result<(), String> {
    let mut stage = Stage::new(uri).map_err(|error| format!("{error:#}"))?;
    stage.rounds(REMOVALS)?.tell();
    crate::scale::counted(REMOVALS, "removals of a device under load");
    Ok(())
}

/// The same under an adapter that is a process of its own, of a user without privileges, confined: the same process opens the
/// device again.
///
/// # Errors
/// What did not hold.
pub fn removals_under_a_daemon(uri: &str, socket: &str) -> Result<(), String> {
    let mut stage = Stage::beside(uri, socket).map_err(|error| format!("{error:#}"))?;
    let confined = |stage: &Stage| match &stage.driver {
        Driver::Daemon(daemon) => daemon.state().map_err(|error| format!("the adapter has died: {error}")),
        Driver::Here { .. } => Err("it is no process of its own".to_owned()),
    };
    let before = confined(&stage)?;
    if before.user == 0 || !before.no_new_privileges || !before.filtered {
        return Err(format!("the adapter is not confined: {before:?}"));
    }
    let made = stage.rounds(UNDER_A_DAEMON)?;
    let after = confined(&stage)?;
    if after != before {
        return Err(format!("{after:?}, which was {before:?}"));
    }
    made.tell();
    crate::scale::counted(UNDER_A_DAEMON, "removals of a device under a confined adapter");
    Ok(())
}
