//! A device that goes and comes back, in order and by surprise.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use driver::emu::virtio::{VirtioConfig, VirtioEmulator};
use driver::emu::{Cached, EmuConfig, Emulator, Faults, Faulty, Media, RamMedia};
use driver::hal::Device;
use portcullis::{Access, Queue, Session, Status, Volume};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::*;
use crate::device::emu;
use crate::{Embedded, Options};

const BYTES: u64 = 64 << 20;
const URI: DeviceUri = DeviceUri::EmuRam(BYTES);
const WITHIN: Duration = Duration::from_secs(30);

type Slot<E> = Faulty<Arc<E>>;

/// What is in the slot, if anything is, and how often somebody looked.
struct Bay<E: Device> {
    device: Mutex<Option<Arc<Slot<E>>>>,
    looks: AtomicUsize,
    /// By which the machine asks for what is in it.
    wanted: OwnedFd,
}

impl<E: Device> Bay<E> {
    fn with(device: &Arc<Slot<E>>) -> Arc<Self> {
        let wanted = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let bay = Self { device: Mutex::new(None), looks: AtomicUsize::new(0), wanted };
        bay.put(device);
        Arc::new(bay)
    }

    fn put(&self, device: &Arc<Slot<E>>) {
        device.bent().behave();
        *self.device.lock().unwrap() = Some(Arc::clone(device));
    }

    /// By surprise.
    fn pull(&self) {
        let device = self.device.lock().unwrap().take().expect("it is there");
        device.bent().set_gone(true);
    }

    /// In order; returns when the request was heard.
    fn ask_back(&self) {
        self.device.lock().unwrap().take().expect("it is there");
        rustix::io::write(&self.wanted, &1u64.to_ne_bytes()).unwrap();
        let unheard = || {
            let mut fds = [PollFd::from_borrowed_fd(self.wanted.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        until(|| !unheard());
    }

    fn source(self: &Arc<Self>) -> Source<Arc<Slot<E>>> {
        let bay = Arc::clone(self);
        Box::new(move || {
            bay.looks.fetch_add(1, Ordering::SeqCst);
            let device = bay.device.lock().unwrap().clone();
            let device = device.ok_or_else(|| OpenError::new(&URI, &"nothing is there"))?;
            Ok((device, Some(bay.wanted.try_clone().unwrap())))
        })
    }
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < end, "not within {WITHIN:?}");
        std::thread::yield_now();
    }
}

fn device(serial: &str) -> Arc<Slot<Emulator>> {
    device_on(serial, Arc::new(RamMedia::new(BYTES).unwrap()))
}

fn device_on(serial: &str, media: Arc<dyn Media>) -> Arc<Slot<Emulator>> {
    let config = EmuConfig::new(media);
    slot(Emulator::new(EmuConfig { serial: serial.to_owned(), ..config }))
}

/// By what it is told to.
fn device_that_can_hold() -> (Arc<Slot<Emulator>>, Arc<Faults>) {
    let (faults, media) = (Faults::new(1), Arc::new(RamMedia::new(BYTES).unwrap()));
    let config = EmuConfig { interposer: Some(faults.clone()), ..EmuConfig::new(media) };
    (slot(Emulator::new(config)), faults)
}

fn slot<E: Device>(emulator: std::io::Result<E>) -> Arc<Slot<E>> {
    Arc::new(Faulty::new(Arc::new(emulator.unwrap())))
}

fn over(bay: &Arc<Bay<Emulator>>) -> Embedded {
    let opened = emu::open_nvme_returning(&URI, bay.source(), 1).unwrap();
    Embedded::start_on(opened, &Options::new(URI)).unwrap()
}

struct Application {
    session: Session,
    volume: Volume,
    queue: Queue,
}

impl Application {
    fn new(adapter: &Embedded) -> Self {
        let session = adapter.session().unwrap();
        session.create_volume("v", 1 << 20).unwrap();
        let volume = session.open("v", Access::READ_WRITE).unwrap();
        let queue = session.queue(8).unwrap();
        Self { session, volume, queue }
    }

    fn read(&mut self) -> Result<u8, Status> {
        let mut data = [0; 4096];
        match self.queue.read_at(&self.volume, 0, &mut data) {
            Ok(()) => Ok(data[77]),
            Err(error) => Err(error.status().expect("the adapter is there")),
        }
    }

    /// Reads until that ends like this.
    fn until(&mut self, wanted: Result<u8, Status>) {
        let end = Instant::now() + WITHIN;
        loop {
            let found = self.read();
            if found == wanted {
                return;
            }
            let on_the_way = matches!(found, Ok(_) | Err(Status::E_DEVICE | Status::E_PATH));
            assert!(on_the_way && Instant::now() < end, "{found:?}, and not {wanted:?}");
        }
    }
}

#[test]
fn open_sessions_go_on_when_the_device_is_back() {
    let disk = device("ONE");
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    for round in 1..=3 {
        application.queue.write_at(&application.volume, 0, &[round; 4096]).unwrap();
        bay.pull();
        application.until(Err(Status::E_PATH));
        assert!(application.session.statistics().unwrap().entries > 0, "the adapter answers");
        bay.put(&disk);
        application.until(Ok(round));
        // Also what needs the store, which waited.
        application.session.create_volume(&format!("v{round}"), 1 << 20).unwrap();
    }
}

#[test]
fn what_comes_back_must_be_what_it_was() {
    let media = Arc::new(RamMedia::new(BYTES).unwrap());
    let disk = device_on("ONE", media.clone());
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    application.queue.write_at(&application.volume, 0, &[7; 4096]).unwrap();
    // A copy of all with another serial number; the same one, with nothing on it; and with another store on it.
    let (other, blank, formatted) = (device_on("TWO", media), device("ONE"), device("ONE"));
    Application::new(&over(&Bay::with(&formatted)));
    for wrong in [&other, &blank, &formatted] {
        bay.pull();
        application.until(Err(Status::E_PATH));
        bay.put(wrong);
        let looks = bay.looks.load(Ordering::SeqCst);
        let end = Instant::now() + WITHIN;
        while bay.looks.load(Ordering::SeqCst) < looks + 2 {
            assert_eq!(application.read(), Err(Status::E_PATH));
            assert!(Instant::now() < end, "nobody looks");
        }
        assert_eq!(application.read(), Err(Status::E_PATH));
        bay.pull();
        bay.put(&disk);
        application.until(Ok(7));
    }
}

#[test]
fn an_adapter_whose_device_is_away_ends_at_once() {
    let disk = device("ONE");
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    bay.pull();
    application.until(Err(Status::E_PATH));
    let since = Instant::now();
    drop((application, adapter));
    assert!(since.elapsed() < Duration::from_secs(15), "the store does not wait for the device");
}

#[test]
fn what_a_device_has_ends_before_it_is_let_go() {
    let (disk, faults) = device_that_can_hold();
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    application.queue.write_at(&application.volume, 0, &[5; 4096]).unwrap();
    for _ in 0..3 {
        faults.hold();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                until(|| disk.under().held() == 1);
                bay.ask_back();
                // As long as the command is with it, it is not stopped.
                let end = Instant::now() + Duration::from_millis(100);
                while Instant::now() < end {
                    assert!(disk.under().held() > 0, "stopped in use");
                    std::thread::yield_now();
                }
                assert!(faults.release(disk.under()) > 0);
            });
            assert_eq!(application.read(), Ok(5), "what the device had when it was asked for");
        });
        application.until(Err(Status::E_PATH));
        bay.put(&disk);
        application.until(Ok(5));
        // The store has been at the device again, and has nothing there that would be held.
        application.session.rename_volume("v", "w").unwrap();
        application.session.rename_volume("w", "v").unwrap();
    }
}

/// Unlike an NVMe controller, which flushes when it is told of the shutdown, a virtio device is only reset.
#[test]
fn a_device_that_is_let_go_has_nothing_in_its_cache() {
    let media = Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512));
    let disk = slot(VirtioEmulator::new(VirtioConfig::new(media.clone())));
    let bay = Bay::with(&disk);
    let opened = emu::open_virtio_returning(&URI, bay.source(), 1).unwrap();
    let adapter = Embedded::start_on(opened, &Options::new(URI)).unwrap();
    let mut application = Application::new(&adapter);
    application.queue.write_at(&application.volume, 0, &[6; 4096]).unwrap();
    assert!(media.unflushed() > 0);
    std::thread::scope(|scope| {
        scope.spawn(|| bay.ask_back());
        application.until(Err(Status::E_PATH));
    });
    assert_eq!(media.unflushed(), 0);
    disk.under().power_cut(1);
    disk.under().power_on();
    bay.put(&disk);
    application.until(Ok(6));
    application.queue.flush(&application.volume).unwrap(); // It has nothing to tell.
}

/// What was not flushed may be gone, whoever noticed that the device was.
#[test]
fn who_flushes_after_the_return_is_told_once_that_writes_may_be_lost() {
    let disk = device_on("CACHED", Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512)));
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    let idle = adapter.session().unwrap();
    let volume = idle.open("v", Access::READ_WRITE).unwrap();
    let mut queue = idle.queue(8).unwrap();
    queue.flush(&volume).unwrap();
    queue.write_at(&volume, 4096, &[1; 4096]).unwrap();
    // While it asks for nothing, the device goes and returns.
    bay.pull();
    application.until(Err(Status::E_PATH));
    bay.put(&disk);
    application.until(Ok(0));
    let lost = queue.flush(&volume).unwrap_err();
    assert_eq!(lost.status(), Some(Status::E_DEVICE), "{lost}");
    queue.write_at(&volume, 4096, &[1; 4096]).unwrap();
    queue.flush(&volume).unwrap();
    idle.queue(8).unwrap().flush(&volume).unwrap();
    // Who begins now has nothing to lose.
    let late = adapter.session().unwrap();
    let volume = late.open("v", Access::READ_WRITE).unwrap();
    late.queue(8).unwrap().flush(&volume).unwrap();
}

#[test]
fn who_syncs_a_file_after_the_return_is_told_once_that_writes_may_be_lost() {
    let cache = Arc::new(Cached::new(RamMedia::new(BYTES).unwrap(), 512));
    let disk = device_on("CACHED", cache.clone());
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    application.session.create_volume("files", 16 << 20).unwrap();
    let files = application.session.files().unwrap();
    files.format("files", false).unwrap();
    let file = files.create("files:/a").unwrap();
    file.set_len(4).unwrap();
    file.sync_data().unwrap();
    // Blocks are zeroed in advance and flushed, with all else.
    until(|| cache.unflushed() == 0);
    file.write_all_at(b"line", 0).unwrap();
    bay.pull();
    application.until(Err(Status::E_PATH));
    bay.put(&disk);
    application.until(Ok(0));
    assert_eq!(file.sync_data().unwrap_err().status(), Some(Status::E_DEVICE));
    file.sync_data().unwrap();
}

#[test]
fn a_device_that_keeps_a_command_is_let_go_all_the_same() {
    let (disk, faults) = device_that_can_hold();
    let bay = Bay::with(&disk);
    let adapter = over(&bay);
    let mut application = Application::new(&adapter);
    application.queue.write_at(&application.volume, 0, &[5; 4096]).unwrap();
    faults.hold();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until(|| disk.under().held() == 1);
            bay.ask_back();
        });
        let since = Instant::now();
        assert_eq!(application.read(), Err(Status::E_DEVICE));
        assert!(since.elapsed() < DRAIN * 3, "it waits until the command counts as stuck");
    });
    application.until(Err(Status::E_PATH));
    faults.stop_holding();
    bay.put(&disk);
    application.until(Ok(5));
}
