//! Puts an adapter together: device, store, tables, engines, control plane.

use std::sync::Arc;
use std::time::Duration;

use driver::block::BlockQueue;
use driver::hal::Mapper;
use store::{FormatOptions, Found, Store, StoreError};
use tpt::{Directory, Tables};

use crate::control::{Control, INSTANCES_STOCK, Parts, Policy};
use crate::device::{self, DeviceUri, Health, OpenError, Opened, Supervisor};
use crate::engine::{Bounce, DEVICE_TIMEOUT, Engine, Gates, Lengths, MonotonicClock, QueueId};
use crate::mailbox::PollerShared;
use crate::poller::{Idle, Poller};
use crate::storage::{Contents, Storage};

/// When the device is given a new, empty store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Never: it must hold a store.
    Never,
    /// If it is blank: nothing is lost.
    Blank,
    /// Always: everything on it is lost.
    Force,
    /// Never: it holds a file system that another program made, which is served as it is.
    AsFound,
}

/// How an adapter is to be.
#[derive(Clone)]
pub struct Options {
    /// Where I/O goes.
    pub device: DeviceUri,
    /// When it is formatted.
    pub format: Format,
    /// Threads that poll; each has a device queue of its own.
    pub pollers: u16,
    /// What they do when idle.
    pub idle: Idle,
    /// Who may do what, and how much.
    pub policy: Policy,
    /// How large the tables are.
    pub tables: tpt::Limits,
    /// Table segments that each poller keeps at hand.
    pub resident_segments: usize,
    /// Files that may be open, however often.
    pub files: u32,
    /// Admitted requests for each poller.
    pub requests: u16,
    /// How long the device may show no progress on a request before its controller is reset.
    pub device_timeout: Duration,
    /// Runs first on each poller's thread, to confine it for example.
    pub poller_started: Option<Arc<dyn Fn() + Send + Sync>>,
    /// Whether [`crate::daemon::serve`] confines its process: see [`crate::confine`].
    pub confined: bool,
}

impl Options {
    /// The defaults for `device`. One that is gone with the process anyway is formatted when blank.
    pub fn new(device: DeviceUri) -> Self {
        Self {
            format: if device.is_transient() { Format::Blank } else { Format::Never },
            device,
            pollers: 1,
            idle: Idle::default(),
            policy: Policy::new(rustix::process::getuid().as_raw()),
            tables: tpt::Limits {
                entries: 1 << 16,
                lba_entries: 1 << 18,
                extensions: 1 << 17,
                regions: 1 << 14,
            },
            resident_segments: 1 << 10,
            files: 1 << 14,
            requests: 8192,
            device_timeout: DEVICE_TIMEOUT,
            poller_started: None,
            confined: true,
        }
    }
}

/// Why an adapter does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// What is on the device.
    #[error("{uri}: {source}")]
    Store {
        /// The device.
        uri: String,
        /// What is wrong with it and what to do.
        source: StoreError,
    },
    /// The kernel refused a thread, a descriptor or the socket.
    #[error("{what}: {source}")]
    Os {
        /// What was refused.
        what: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
}

/// An adapter put together.
pub struct Assembled {
    /// Its control plane.
    pub control: Control,
    /// Who looks after its device.
    pub supervisor: Box<dyn Supervisor>,
    /// Embedded: the engine, to be turned by the caller.
    pub engine: Option<Box<dyn Turn>>,
}

/// An engine of whatever device.
pub trait Turn: Send {
    /// One turn; 0 if there was nothing to do.
    fn turn(&mut self) -> usize;

    /// The next turn looks at this queue, if it is one that turns have ceased to look at.
    fn attend(&mut self, queue: QueueId);
}

impl<Q: BlockQueue> Turn for Engine<Q, MonotonicClock> {
    fn turn(&mut self) -> usize {
        let work = Engine::turn(self);
        self.wake_sleepers();
        work
    }

    #[inline]
    fn attend(&mut self, queue: QueueId) {
        if self.parked() > 0 {
            self.unpark(queue);
        }
    }
}

/// Who turns the engines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turned {
    /// Threads of their own.
    ByPollers,
    /// The caller.
    ByCaller,
}

/// Opens the device and puts an adapter over it.
pub fn assemble(options: &Options, turned: Turned) -> Result<Assembled, StartError> {
    struct Build<'a>(&'a Options, Turned);
    impl device::Use for Build<'_> {
        type Output = Result<Assembled, StartError>;

        fn with<Q: BlockQueue + 'static>(self, opened: Opened<Q>) -> Self::Output {
            build(opened, self.0, self.1)
        }
    }
    device::open(&options.device, options.pollers, Build(options, turned))?
}

/// Puts an adapter over a device that is open, whatever `options` say of it. It needs a queue for each poller.
pub fn build<Q: BlockQueue + 'static>(
    opened: Opened<Q>,
    options: &Options,
    turned: Turned,
) -> Result<Assembled, StartError> {
    let uri = options.device.to_string();
    let Opened { identity, geometry, mapper, mapper_pins, queues, disk, mut supervisor, losses } = opened;
    let contents = open_contents(disk, options.format)
        .map_err(|source| StartError::Store { uri: uri.clone(), source })?;
    contents.uuid().into_iter().for_each(|store| supervisor.recognise(store));
    let storage = Storage::start(contents, &uri, INSTANCES_STOCK)?;
    let mut tables = Tables::new(options.tables, Control::first_instance(&storage));
    tables.set_instance_ceiling(storage.instance_ceiling());
    crate::resident::in_large_pages(tables.published().addresses());

    let gates = Gates::new(queues.len());
    let lengths = Arc::new(Lengths::new(options.files));
    let bounces = bounces(&*mapper, queues.len(), geometry.block_shift);
    let supervisor = Box::new(Outlasting { supervisor, _memory: bounces.clone() });
    let mut bounces = bounces.into_iter();
    if let Turned::ByPollers = turned {
        crate::resident::map_code();
    }
    let mut pollers = Vec::new();
    // One for all: limits are of all engines together.
    let clock = MonotonicClock::default();
    let mut engine: Option<Box<dyn Turn>> = None;
    for (number, (queue, interrupt)) in queues.into_iter().enumerate() {
        let shared = Arc::new(PollerShared::default());
        let directory = Directory::new(tables.published(), options.resident_segments);
        crate::resident::in_large_pages(directory.addresses());
        let mut new = Engine::new(queue, clock, directory, shared.clone(), options.requests);
        new.set_device_timeout(options.device_timeout);
        gates.iter().for_each(|gates| new.set_gates(gates.clone()));
        new.set_lengths(lengths.clone());
        bounces.next().into_iter().for_each(|bounce| new.set_bounce(bounce));
        let poller = match turned {
            Turned::ByCaller => {
                engine = Some(Box::new(new));
                Poller::embedded(shared)
            }
            Turned::ByPollers => {
                let started = options.poller_started.clone();
                let started = move || started.iter().for_each(|f| f());
                Poller::spawn(
                    format!("portcullis-poll{number}"),
                    new,
                    shared,
                    options.idle,
                    interrupt,
                    started,
                )
            }
        };
        pollers.push(poller.map_err(|source| StartError::Os { what: "starting a poller", source })?);
    }
    let parts = Parts {
        uri,
        identity,
        geometry,
        mapper,
        mapper_pins,
        pollers,
        tables,
        storage,
        lengths,
        losses,
        policy: options.policy.clone(),
    };
    let control = Control::new(parts).map_err(|source| StartError::Os { what: "an eventfd", source })?;
    Ok(Assembled { control, supervisor, engine })
}

/// Memory in which engines merge what is written in bytes. If there is not enough for all, none has it, and no byte
/// writes are taken: everything else works.
fn bounces(mapper: &dyn Mapper, engines: usize, block_shift: u8) -> Vec<Bounce> {
    let all: Result<Vec<_>, _> = (0..engines).map(|_| Bounce::new(mapper, block_shift)).collect();
    all.unwrap_or_else(|error| {
        tracing::warn!(%error, "no memory for writes of bytes: they will be refused with E_OPCODE");
        Vec::new()
    })
}

/// Keeps memory that the device sees until the device is quiet.
struct Outlasting {
    supervisor: Box<dyn Supervisor>,
    _memory: Vec<Bounce>,
}

impl Supervisor for Outlasting {
    fn tend(&mut self, stuck: bool) -> Health {
        self.supervisor.tend(stuck)
    }

    fn read_health(&mut self) -> Option<Result<wire::control::HealthInfo, String>> {
        self.supervisor.read_health()
    }

    fn shut_down(self: Box<Self>) {
        self.supervisor.shut_down(); // Then the memory goes.
    }
}

fn open_contents(disk: Box<dyn driver::disk::Disk>, format: Format) -> Result<Contents, StoreError> {
    match format {
        Format::Never => Store::open(disk),
        Format::Blank => Store::open_or_format(disk, FormatOptions::default()),
        Format::Force => Store::format(disk, FormatOptions { force: true, ..FormatOptions::default() }),
        Format::AsFound => return Found::open(disk).map(Contents::Found),
    }
    .map(Contents::Store)
}

#[cfg(test)]
mod late;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use driver::block::DeviceStatus;
    use driver::emu::{EmuConfig, Emulator, Faults, RamMedia};
    use portcullis::{Access, Request, Status};

    use super::*;
    use crate::{Embedded, device};

    /// A timeout is no proof: the request ends only when the controller was stopped, and then nothing is written late.
    #[test]
    fn a_command_that_the_device_keeps_ends_by_a_reset_and_not_before() {
        let faults = Faults::new(1);
        let media = Arc::new(RamMedia::new(64 << 20).unwrap());
        let emulator =
            Emulator::new(EmuConfig { interposer: Some(faults.clone()), ..EmuConfig::new(media) }).unwrap();
        let uri = DeviceUri::EmuRam(64 << 20);
        let options = Options { device_timeout: Duration::from_millis(300), ..Options::new(uri.clone()) };
        let opened = device::nvme::open(&uri, emulator, 1, false).unwrap();
        let adapter = Embedded::over(build(opened, &options, Turned::ByCaller).unwrap());
        let session = adapter.session().unwrap();
        session.create_volume("v", 1 << 20).unwrap();
        let volume = session.open("v", Access::READ).unwrap();
        let mut queue = session.queue(8).unwrap();

        let mut buffer = session.buffer(4096).unwrap();
        buffer.fill(0xee);
        faults.hold();
        queue.prepare(Request::read(&volume, 0, buffer)).ok().unwrap();
        queue.ring().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(200) {
            assert!(queue.poll().unwrap().is_none(), "the device still has it");
        }
        faults.stop_holding();
        let ended = queue.wait(Duration::from_secs(60)).unwrap().expect("the reset ends it");
        let error = ended.result.unwrap_err();
        assert_eq!(error.status(), Some(Status::E_DEVICE));
        assert_eq!(error.device_status(), Some(u32::from(DeviceStatus::ABORTED.0)));
        assert!(ended.buffer.unwrap().iter().all(|&byte| byte == 0xee), "nothing came of it");

        let again = Request::read(&volume, 0, session.buffer(4096).unwrap());
        assert!(queue.execute(again).unwrap().result.is_ok(), "the controller runs again");
    }
}
