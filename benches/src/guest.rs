//! In a guest: an NVMe controller that goes from the kernel's driver to ours and back, so that both are measured on the same
//! device in the same run.
//!
//! What is measured is the way to the device, so the store's metadata is kept in memory: QEMU's `null-co` keeps nothing, and
//! the kernel writes where it likes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use adapter::device::{self, Opened};
use adapter::{DeviceUri, Embedded, Format, Options};
use anyhow::{Context, Result, bail};
use driver::block::BlockQueue;
use driver::disk::MemoryDisk;

use crate::cpu::Pinned;
use crate::device::Driver;
use crate::figure::Figure;
use crate::path::{Client, Idle};
use crate::ping::ping_pong;
use crate::process::Served;
use crate::rounds::{Cores, Plan};
use crate::uring::{Ask, Kind, Uring};

/// What is worked on, on every side.
const BYTES: u64 = 64 << 20;
const PLACES: u32 = 64 << 8;
/// So many requests are in flight.
const DEPTHS: [u32; 2] = [1, 32];
const DEEPEST: u32 = 32;

/// A PCI function that changes its driver.
struct Function<'a>(&'a str);

impl Function<'_> {
    fn folder(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(self.0)
    }

    fn bind(&self, driver: &str) -> Result<()> {
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).with_context(|| format!("writing {text} to {}", path.display()))
        };
        write(self.folder().join("driver_override"), driver)?;
        if self.folder().join("driver").exists() {
            write(self.folder().join("driver/unbind"), self.0)?;
        }
        write("/sys/bus/pci/drivers_probe".into(), self.0)?;
        let bound = fs::read_link(self.folder().join("driver")).context("no driver took the function")?;
        if bound.file_name().is_none_or(|name| name != driver) {
            bail!("{} is bound to {}, not to {driver}", self.0, bound.display());
        }
        Ok(())
    }

    /// The first namespace as the kernel's driver offers it.
    fn block_device(&self) -> Result<File> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            for controller in fs::read_dir(self.folder().join("nvme")).into_iter().flatten().flatten() {
                let name = controller.file_name().to_string_lossy().into_owned();
                if let Some(node) = namespace(&controller.path(), &name) {
                    return OpenOptions::new()
                        .read(true)
                        .write(true)
                        .custom_flags(libc::O_DIRECT)
                        .open(&node)
                        .with_context(|| node.display().to_string());
                }
            }
            if Instant::now() >= until {
                bail!("the kernel's driver offers nothing of {}", self.0);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The block device of a controller, by its folder in sysfs and its name. Its number is another one while somebody still holds
/// that of the time before.
fn namespace(folder: &Path, controller: &str) -> Option<PathBuf> {
    let mut names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    let name = names.find_map(|name| {
        let name = name.into_string().ok()?;
        name.strip_prefix(controller)?.starts_with('n').then_some(name)
    })?;
    let node = Path::new("/dev").join(name);
    node.exists().then_some(node)
}

/// The adapter's options for a device whose store is kept in memory.
pub(crate) fn options(device: &DeviceUri) -> Options {
    Options { format: Format::Blank, ..Options::new(device.clone()) }
}

/// The device, with its store in memory.
pub(crate) fn with_store_in_memory<Q: BlockQueue>(opened: Opened<Q>) -> Opened<Q> {
    let disk = MemoryDisk::new(opened.geometry.block_shift, opened.geometry.blocks);
    Opened { disk: Box::new(disk), ..opened }
}

/// Figures under way: one for reads and one for writes at each depth.
struct Figures {
    all: Vec<Figure>,
    plan: Plan,
}

impl Figures {
    fn of(name: &str, plan: Plan) -> Self {
        let all = [false, true].iter().flat_map(|&writes| {
            DEPTHS.map(|depth| {
                let kind = if writes { "write" } else { "read" };
                Figure::new(&format!("guest-{name}-{kind}-{depth}"), "ns/request")
            })
        });
        Self { all: all.collect(), plan }
    }

    /// One turn of one side in each figure.
    fn turn(&mut self, side: &str, mut run: impl FnMut(bool, u32, Duration) -> Result<f64>) -> Result<()> {
        for (at, figure) in self.all.iter_mut().enumerate() {
            let (writes, depth) = (at >= DEPTHS.len(), DEPTHS[at % DEPTHS.len()]);
            // What was just opened is cold.
            run(writes, depth, self.plan.slice / 8).with_context(|| format!("{side} of {}", figure.name))?;
            let value =
                run(writes, depth, self.plan.slice).with_context(|| format!("{side} of {}", figure.name))?;
            figure.add(side, value);
        }
        Ok(())
    }

    fn note(&mut self, note: &str) {
        for figure in &mut self.all {
            if !figure.notes.iter().any(|known| known == note) {
                figure.note(note);
            }
        }
    }

    /// The kernel's driver: plain, and with everything registered and polled.
    fn kernel(&mut self, function: &Function<'_>) -> Result<()> {
        function.bind("nvme")?;
        let file = function.block_device()?;
        for (side, kind) in [("io_uring", Kind::Plain), ("io_uring polled", Kind::Polled)] {
            let mut ring = Uring::new(Some(&file), kind, DEEPEST, PLACES)?;
            let result = self.turn(side, |writes, depth, time| {
                ring.keep(if writes { Ask::Write } else { Ask::Read }, depth, time)
            });
            match result {
                Err(error) if kind == Kind::Polled => self.note(&format!("{side}: {error:#}")),
                result => result?,
            }
        }
        Ok(())
    }

    /// Our driver alone, the embedded adapter and the isolated one.
    fn ours(&mut self, function: &Function<'_>, cores: Cores) -> Result<()> {
        function.bind("vfio-pci")?;
        let uri: DeviceUri = format!("vfio:{}", function.0).parse()?;
        let mut driver = Driver::new(device::vfio::open(&uri, 1)?, DEEPEST, PLACES)?;
        self.turn("driver", |writes, depth, time| driver.keep(writes, depth, time))?;
        drop(driver);
        let adapter = Embedded::start_on(with_store_in_memory(device::vfio::open(&uri, 1)?), &options(&uri))?;
        self.client("embedded", Client::unwritten(adapter.session()?, BYTES)?.idle(Idle::Turns))?;
        drop(adapter);
        let served = Served::start(&uri.to_string(), cores.other)?;
        // Application, adapter and device have two processors.
        self.client("isolated", Client::unwritten(served.session()?, BYTES)?.idle(Idle::Waits))
    }

    fn client(&mut self, side: &str, mut client: Client) -> Result<()> {
        self.turn(side, |writes, depth, time| {
            client.writes(writes);
            client.keep(depth, time)
        })?;
        client.end()
    }
}

/// Everything of the controller at `address`, which is called `name`: the kernel's driver, ours alone, and the adapter in this
/// process and in another, in turns.
///
/// # Errors
/// The kernel's, the driver's, the adapter's.
pub fn compare(name: &str, address: &str, plan: Plan) -> Result<Vec<Figure>> {
    let cores = Cores::two()?;
    let (here, other) = (cores.other, cores.here);
    let cores = Cores { here, other };
    let _pinned = Pinned::to(cores.here)?;
    let function = Function(address);
    let mut figures = Figures::of(name, plan);
    for round in 0..plan.rounds {
        let before = ping_pong(cores.other)?;
        if round % 2 == 0 {
            figures.kernel(&function)?;
            figures.ours(&function, cores)?;
        } else {
            figures.ours(&function, cores)?;
            figures.kernel(&function)?;
        }
        let after = ping_pong(cores.other)?;
        figures.all.iter_mut().for_each(|figure| figure.pings.push([before, after]));
        eprintln!("{name}: round {} of {}", round + 1, plan.rounds);
    }
    figures.note("the store's metadata is kept in memory");
    Ok(figures.all)
}

/// The embedded adapter at depth 32 over the controller at `address`, for somebody outside who counts its doorbells; how many
/// requests those were.
///
/// # Errors
/// As [`compare`].
pub fn for_doorbells(address: &str, plan: Plan) -> Result<u64> {
    let cores = Cores::two()?;
    let _pinned = Pinned::to(cores.other)?;
    Function(address).bind("vfio-pci")?;
    let uri: DeviceUri = format!("vfio:{address}").parse()?;
    let adapter = Embedded::start_on(with_store_in_memory(device::vfio::open(&uri, 1)?), &options(&uri))?;
    let mut client = Client::unwritten(adapter.session()?, BYTES)?.idle(Idle::Turns);
    client.keep(DEEPEST, plan.slice)?;
    let requests = client.requests();
    client.end()?;
    Ok(requests)
}
