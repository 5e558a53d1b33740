//! Faults of our own software devices, put on from the outside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use adapter::device::away::Source;
use adapter::device::{DeviceUri, OpenError, emu};
use adapter::{Adapter, Format, Options};
use driver::emu::virtio::{VirtioConfig, VirtioEmulator};
use driver::emu::{Bent, Cached, EmuConfig, Emulator, Faults, Faulty, FaultyMedia, Lie, RamMedia};
use driver::spec::nvme::{Status as NvmeStatus, admin, cns};
use portcullis::Session;

use super::{After, Application, BURST, Bystander, End, Operation, Row, Table, judge, summary};

/// Bytes of the devices.
const DEVICE: u64 = 64 << 20;
const BLOCK: u32 = 512;
/// Unrecovered Read Error, Write Fault, Internal Error; and virtio's IOERR.
const READ_ERROR: u16 = 0x281;
const WRITE_FAULT: u16 = 0x280;
const INTERNAL: u16 = 0x006;
const IOERR: u16 = 0x8001;

/// A kind of device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `emu:`
    Nvme,
    /// `emu-virtio:`
    Virtio,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Nvme => "emu: NVMe",
            Self::Virtio => "emu-virtio: virtio-blk",
        }
    }
}

/// The device as those who spoil it see it.
enum Device {
    Nvme(Arc<Emulator>),
    Virtio(Arc<VirtioEmulator>),
}

/// An adapter over a device that can be spoilt, and an application of it.
struct Stage {
    kind: Kind,
    faults: Arc<Faults>,
    media: Arc<FaultyMedia<Cached<RamMedia>>>,
    bent: Arc<Bent>,
    device: Device,
    application: Application,
    // Last: it waits for its sessions.
    _adapter: Adapter,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn new(kind: Kind, seed: u64, returns: bool) -> anyhow::Result<Self> {
        let faults = Faults::new(seed);
        let media = Arc::new(FaultyMedia::new(Cached::new(RamMedia::new(DEVICE)?, BLOCK as usize)));
        let uri = DeviceUri::EmuRam(DEVICE);
        let timeout = Duration::from_millis(150);
        let options = Options { format: Format::Force, device_timeout: timeout, ..Options::new(uri.clone()) };
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("socket");
        let (device, bent, adapter) = match kind {
            Kind::Nvme => {
                let config = EmuConfig { interposer: Some(faults.clone()), ..EmuConfig::new(media.clone()) };
                let emulator = Arc::new(Emulator::new(config)?);
                let faulty = Faulty::new(emulator.clone());
                let bent = faulty.bent();
                let adapter = if returns {
                    let opened = emu::open_nvme_returning(&uri, found(faulty, &uri), 1)?;
                    Adapter::start_on(opened, &options, &socket)?
                } else {
                    Adapter::start_on(emu::open_nvme_on(&uri, faulty, 1)?, &options, &socket)?
                };
                (Device::Nvme(emulator), bent, adapter)
            }
            Kind::Virtio => {
                let config =
                    VirtioConfig { interposer: Some(faults.clone()), ..VirtioConfig::new(media.clone()) };
                let emulator = Arc::new(VirtioEmulator::new(config)?);
                let faulty = Faulty::new(emulator.clone());
                let bent = faulty.bent();
                let adapter = if returns {
                    let opened = emu::open_virtio_returning(&uri, found(faulty, &uri), 1)?;
                    Adapter::start_on(opened, &options, &socket)?
                } else {
                    Adapter::start_on(emu::open_virtio_on(&uri, faulty, 1)?, &options, &socket)?
                };
                (Device::Virtio(emulator), bent, adapter)
            }
        };
        let application = Application::new(Session::connect(&socket)?)?;
        Ok(Self { kind, faults, media, bent, device, application, _adapter: adapter, _dir: dir })
    }

    /// The device has so many blocks from now on, and says so.
    fn resize(&self, blocks: u64) {
        match &self.device {
            Device::Nvme(emulator) => emulator.change_namespace(Some((blocks, BLOCK)), true),
            Device::Virtio(emulator) => emulator.resize(blocks),
        }
        .expect("it has room");
    }

    /// A command stays, so that the controller is reset, on whose way up what the device says of itself is read.
    fn provoke_reset(&self) {
        self.faults.hold();
    }

    fn heal(&self) {
        self.faults.behave();
        self.faults.stop_holding();
        self.media.heal();
        self.bent.behave();
    }
}

/// Finds the device whenever it is not pulled out.
fn found<D: driver::hal::Device>(device: Faulty<D>, uri: &DeviceUri) -> Source<Arc<Faulty<D>>> {
    let (device, uri) = (Arc::new(device), uri.to_string());
    Box::new(move || {
        if device.bent().is_gone() {
            return Err(OpenError { uri: uri.clone(), reason: "it is not there".to_owned(), held: false });
        }
        Ok((device.clone(), None))
    })
}

/// What goes wrong.
struct Fault {
    name: &'static str,
    /// Which devices can have it.
    on: &'static [Kind],
    arm: fn(&Stage, Operation),
    /// How requests may end, and how one has to.
    allowed: fn(Kind, Operation) -> Vec<End>,
    needed: fn(Kind, Operation) -> Option<End>,
    after: After,
}

const BOTH: &[Kind] = &[Kind::Nvme, Kind::Virtio];

fn medium(kind: Kind, operation: Operation) -> Vec<End> {
    vec![match (kind, operation) {
        (Kind::Virtio, _) => End::Said(IOERR),
        (Kind::Nvme, Operation::Read) => End::Said(READ_ERROR),
        (Kind::Nvme, _) => End::Said(WRITE_FAULT),
    }]
}

/// What a command gets that a device keeps until it is reset. An append waits for its turn, and may come after the reset.
fn aborted(_: Kind, _: Operation) -> Vec<End> {
    vec![End::Aborted, End::Done]
}

fn one_aborted(_: Kind, _: Operation) -> Option<End> {
    Some(End::Aborted)
}

fn lost(_: Kind, _: Operation) -> Vec<End> {
    vec![End::Aborted, End::Refused]
}

/// A device with a completion too many has done what it was asked; virtio's is not believed from then on.
fn doubled(kind: Kind, _: Operation) -> Vec<End> {
    if kind == Kind::Nvme { vec![End::Done] } else { vec![End::Done, End::Aborted] }
}

fn whatever(_: Kind, _: Operation) -> Option<End> {
    None
}

/// All faults.
const FAULTS: &[Fault] = &[
    Fault {
        name: "medium error",
        on: BOTH,
        arm: |stage, operation| {
            for bytes in stage.application.extents().expect("the adapter knows") {
                match operation {
                    Operation::Read => stage.media.fail_reads(bytes),
                    Operation::Flush => stage.media.fail_flushes(),
                    _ => stage.media.fail_writes(bytes),
                }
            }
        },
        allowed: medium,
        needed: |kind, operation| medium(kind, operation).pop(),
        after: After::Works,
    },
    Fault {
        name: "command fails",
        on: BOTH,
        arm: |stage, _| stage.faults.fail_next(NvmeStatus::INTERNAL_ERROR),
        allowed: |_, _| vec![End::Said(INTERNAL), End::Said(IOERR), End::Done],
        needed: |kind, _| Some(End::Said(if kind == Kind::Nvme { INTERNAL } else { IOERR })),
        after: After::Works,
    },
    Fault {
        name: "stuck command",
        on: BOTH,
        arm: |stage, _| stage.faults.hold(),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "lost doorbell",
        on: BOTH,
        arm: |stage, _| stage.bent.lose_doorbells(1),
        allowed: aborted,
        needed: whatever,
        after: After::Works,
    },
    Fault {
        name: "fatal status",
        on: BOTH,
        arm: |stage, _| stage.bent.fail_at_doorbells(1),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "reset storm",
        on: BOTH,
        arm: |stage, _| stage.bent.fail_at_doorbells(6),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "completion lost",
        on: BOTH,
        arm: |stage, _| stage.faults.lie_next(Lie::Lost),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "completion doubled",
        on: BOTH,
        arm: |stage, _| stage.faults.lie_next(Lie::Twice),
        allowed: doubled,
        needed: whatever,
        after: After::Works,
    },
    Fault {
        name: "wrong command id",
        on: BOTH,
        arm: |stage, _| stage.faults.lie_next(Lie::WrongCommand),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "wrong queue id",
        on: BOTH,
        arm: |stage, _| stage.faults.lie_next(Lie::WrongQueue),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "phase or index flips",
        on: BOTH,
        arm: |stage, _| stage.faults.lie_next(Lie::WrongPhase),
        allowed: aborted,
        needed: one_aborted,
        after: After::Works,
    },
    Fault {
        name: "grows",
        on: BOTH,
        arm: |stage, _| {
            stage.resize(DEVICE / u64::from(BLOCK) - 8);
            stage.resize(DEVICE / u64::from(BLOCK));
        },
        allowed: aborted,
        needed: whatever,
        after: After::Works,
    },
    Fault {
        name: "shrinks",
        on: BOTH,
        arm: |stage, _| stage.resize(DEVICE / u64::from(BLOCK) / 2),
        allowed: |_, _| vec![End::Done, End::SaidAny, End::Aborted, End::Refused],
        needed: whatever,
        after: After::Gone,
    },
    Fault {
        name: "namespace vanishes",
        on: &[Kind::Nvme],
        arm: |stage, _| {
            if let Device::Nvme(emulator) = &stage.device {
                emulator.change_namespace(None, true).expect("it goes");
            }
        },
        allowed: |_, operation| {
            let ends = [End::SaidAny, End::Aborted, End::Refused];
            // What it wrote before it can still make durable.
            let flushed = (operation == Operation::Flush).then_some(End::Done);
            ends.into_iter().chain(flushed).collect()
        },
        needed: whatever,
        after: After::Gone,
    },
    Fault {
        name: "absurd identify data",
        on: BOTH,
        arm: |stage, _| {
            stage.faults.edit_data(|command, data| {
                if command.cdw0.opc() == admin::IDENTIFY && command.cdw10 & 0xff == u32::from(cns::NAMESPACE)
                {
                    data.fill(0xff);
                }
            });
            stage.bent.set_absurd(true);
            stage.provoke_reset();
        },
        allowed: lost,
        needed: one_aborted,
        after: After::Gone,
    },
    Fault {
        name: "removed",
        on: BOTH,
        arm: |stage, _| stage.bent.set_gone(true),
        allowed: lost,
        needed: whatever,
        after: After::Gone,
    },
    Fault {
        name: "removed, returns",
        on: BOTH,
        arm: |stage, _| stage.bent.set_gone(true),
        allowed: lost,
        needed: whatever,
        after: After::Returns,
    },
];

/// Runs all cells of one fault on one kind of device.
fn run_fault(fault: &Fault, kind: Kind, bystander: &Bystander, table: &Table) -> Result<(), String> {
    let mut stage: Option<Stage> = None;
    let mut failed = Vec::new();
    for (seed, operation) in (1..).zip(Operation::ALL) {
        let mut here = match stage.take() {
            Some(stage) => stage,
            None => {
                Stage::new(kind, seed, fault.after == After::Returns).map_err(|error| format!("{error:#}"))?
            }
        };
        let since = Instant::now();
        let outcome = cell(fault, &mut here, operation, bystander);
        if fault.after != After::Gone && outcome.is_ok() {
            stage = Some(here);
        }
        let (name, device) = (fault.name.to_owned(), kind.name().to_owned());
        let row = Row { fault: name, device, operation, outcome, time: since.elapsed() };
        failed.extend(table.add(row).err());
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

fn cell(
    fault: &Fault,
    stage: &mut Stage,
    operation: Operation,
    bystander: &Bystander,
) -> Result<String, String> {
    stage.application.recovers(operation)?; // nothing is wrong yet
    let kept = stage.application.keep()?;
    (fault.arm)(stage, operation);
    let ended = stage.application.submit(operation, BURST)?;
    judge(&ended, &(fault.allowed)(stage.kind, operation), (fault.needed)(stage.kind, operation))?;
    match fault.after {
        After::Works => {
            stage.heal();
            stage.application.recovers(operation)?;
        }
        After::Gone => stage.application.refused(operation)?,
        After::Returns => {
            stage.application.refused(operation)?;
            stage.heal();
            stage.application.recovers(operation)?;
            // It was told once, before a flush was done, that what it had not flushed may be lost.
            stage.application.recovers(Operation::Flush)?;
            stage.application.kept(&kept)?;
        }
    }
    stage.application.silent()?;
    bystander.went_on()?;
    Ok(summary(&ended, fault.after))
}

/// All operations under one fault.
pub type Run = Box<dyn FnOnce(&Bystander, &Table) -> Result<(), String> + Send>;

/// A test.
pub struct Case {
    /// Its name.
    pub name: String,
    /// Runs it.
    pub run: Run,
}

/// The tests on one kind of device.
pub fn cases(kind: Kind) -> Vec<Case> {
    let on_it = FAULTS.iter().filter(move |fault| fault.on.contains(&kind));
    let case = |fault: &'static Fault| Case {
        name: format!("{}_ends_each_request_once", fault.name.replace(", ", "_and_").replace(' ', "_")),
        run: Box::new(move |bystander, table| run_fault(fault, kind, bystander, table)),
    };
    on_it.map(case).collect()
}
