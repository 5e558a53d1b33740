//! Faults of a machine under test. The device is QEMU's, and so is what goes wrong with it: whoever started the machine
//! follows this program's output, and does to the device what lines that begin with [`ASK`] say. There is no answer: what
//! was asked for is waited for until it shows.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adapter::device::DeviceUri;
use adapter::{Adapter, Format, Options};
use portcullis::wire::layout::CompletionEntry;
use portcullis::{Session, Status};

use super::{After, Application, BURST, Bystander, End, Operation, Row, Table, judge, summary};
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
    end: fn(&Machine),
    allowed: &'static [End],
    needed: End,
}

/// The machine under test as this program sees it.
struct Machine {
    address: String,
}

impl Machine {
    fn device(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&self.address)
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
        end: |_| ask("medium-good"),
        allowed: &[End::Done, End::SaidAny],
        needed: End::SaidAny,
    },
    Fault {
        name: "backend stops",
        operations: &MOVE,
        begin: |_| ask("hold"),
        end: |_| ask("go"),
        allowed: &[End::Done, End::Aborted],
        needed: End::Aborted,
    },
    Fault {
        name: "function reset",
        operations: &Operation::ALL,
        begin: |machine| {
            // The kernel may be busy with it.
            let _ = std::fs::write(machine.device().join("reset"), "1");
        },
        end: |_| (),
        allowed: &[End::Done, End::Aborted],
        needed: End::Done,
    },
];

/// A device that is removed and put back.
pub const GOES: &[Fault] = &[Fault {
    name: "removed, returns",
    operations: &Operation::ALL,
    begin: |_| ask("pull"),
    end: |_| ask("put"),
    allowed: &[End::Done, End::Aborted, End::Refused],
    needed: End::Refused,
}];

/// An adapter over the machine's device, and an application of it.
struct Stage {
    machine: Machine,
    application: Application,
    adapter: Adapter,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new(uri: &str) -> anyhow::Result<Self> {
        let device: DeviceUri = uri.parse()?;
        let DeviceUri::Vfio(address) = device.clone() else {
            anyhow::bail!("{uri} is no device of a machine")
        };
        let timeout = Duration::from_secs(2);
        let options = Options { format: Format::Force, device_timeout: timeout, ..Options::new(device) };
        let dir = tempfile::tempdir()?;
        let adapter = Adapter::start(&options, &dir.path().join("socket"))?;
        let application = Application::new(Session::connect(adapter.socket())?)?;
        Ok(Self { machine: Machine { address }, application, adapter, _dir: dir })
    }

    /// Bursts until one meets the fault.
    fn meet(&mut self, fault: &Fault, operation: Operation) -> Result<Vec<CompletionEntry>, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let ended = self.application.submit(operation, BURST)?;
            judge(&ended, fault.allowed, None)?;
            if judge(&ended, fault.allowed, Some(fault.needed)).is_ok() {
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
        (fault.end)(&self.machine);
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

/// Removals and returns in one machine.
const REMOVALS: u64 = 20;

/// The device is removed and put back, again and again, while two sessions keep it busy: each request ends once, and the
/// device comes back with what was on it.
///
/// # Errors
/// What did not hold.
pub fn removals(uri: &str) -> Result<(), String> {
    let mut stage = Stage::new(uri).map_err(|error| format!("{error:#}"))?;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = || {
        let session = Session::connect(stage.adapter.socket()).map_err(|error| error.to_string())?;
        let mut application = Application::beside(session).map_err(|error| error.to_string())?;
        let (stop, done) = (stop.clone(), done.clone());
        Ok::<_, String>(std::thread::spawn(move || -> Result<u64, String> {
            let (mut requests, allowed) = (0, [End::Done, End::Aborted, End::Refused]);
            while !stop.load(Ordering::Relaxed) {
                for operation in [Operation::Write, Operation::Read] {
                    let ended = application.submit(operation, 16)?;
                    judge(&ended, &allowed, None)?;
                    requests += ended.len() as u64;
                    let well = ended.iter().filter(|e| Status(e.status) == Status::OK).count();
                    done.fetch_add(well as u64, Ordering::Relaxed);
                }
            }
            Ok(requests)
        }))
    };
    let loads = [load()?, load()?];
    let rounds = || -> Result<(), String> {
        for _ in 0..REMOVALS {
            stage.application.recovers(Operation::Write)?;
            let kept = stage.application.keep()?;
            ask("pull");
            let end = Instant::now() + PATIENCE;
            while stage.application.submit(Operation::Read, 1)?[0].status != Status::E_PATH.0 {
                if Instant::now() > end {
                    return Err("the device is not given up".to_owned());
                }
            }
            ask("put");
            stage.application.recovers(Operation::Read)?;
            stage.application.kept(&kept)?;
            let before = done.load(Ordering::Relaxed);
            super::wait("the others go on", || done.load(Ordering::Relaxed) > before + 64)?;
        }
        Ok(())
    };
    let mut rounds = rounds;
    let outcome = rounds();
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for load in loads {
        requests += load.join().map_err(|_| "a session under load panicked")??;
    }
    outcome?;
    crate::scale::counted(REMOVALS, "removals of a device under load");
    crate::scale::counted(requests, "requests while a device was removed and came back");
    Ok(())
}
