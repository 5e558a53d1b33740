//! A real NVMe controller behind a real IOMMU, driven by hand: what the kernel and the hardware do with what
//! `driver::vfio` tells them. `PORTCULLIS_DEVICE=vfio:0000:00:03.0` names it; everything on it is lost.
//!
//! Ignored by default: they run in a guest of the `qemu` package, one at a time, for a device is opened once.
#![allow(unsafe_code)] // memory that a device writes
#![allow(clippy::unwrap_used)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::block::{BlockQueue, Command, DeviceStatus, Operation};
use driver::hal::{Device, DmaAccess, DmaError, Iova, Mapping, NarrowRegisters, PinnedMemory, Registers};
use driver::nvme;
use driver::vfio::{DeviceClass, VfioDevice, VfioError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const PAGE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

/// NVMe registers, for the few commands here.
const CAP: usize = 0x00;
const VS: usize = 0x08;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const ADMIN_TAIL: usize = 0x1000;
const ADMIN_HEAD: usize = 0x1004;

const IDENTIFY: u32 = 0x06;

fn address() -> String {
    let uri = std::env::var("PORTCULLIS_DEVICE")
        .expect("PORTCULLIS_DEVICE=vfio:0000:00:03.0 says which device to use");
    uri.strip_prefix("vfio:").expect("PORTCULLIS_DEVICE is no vfio: device").to_owned()
}

/// Memory of this process, populated.
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory, accessed by volatile loads and stores.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}
// SAFETY: mapped and populated until dropped.
unsafe impl PinnedMemory for Memory {
    fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Memory {
    fn new(len: usize) -> Arc<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the kernel likes it.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }.unwrap();
        Arc::new(Self { start: NonNull::new(start.cast()).unwrap(), len })
    }

    fn word(&self, at: usize) -> *mut u32 {
        assert!(at.is_multiple_of(4) && at < self.len);
        // SAFETY: inside.
        unsafe { self.start.as_ptr().add(at) }.cast()
    }

    fn get(&self, at: usize) -> u32 {
        // SAFETY: inside and aligned.
        u32::from_le(unsafe { self.word(at).read_volatile() })
    }

    fn set(&self, at: usize, value: u32) {
        // SAFETY: inside and aligned.
        unsafe { self.word(at).write_volatile(value.to_le()) };
    }

    fn fill(&self, value: u32) {
        (0..self.len).step_by(4).for_each(|at| self.set(at, value));
    }

    fn is_filled_with(&self, value: u32) -> bool {
        (0..self.len).step_by(4).all(|at| self.get(at) == value)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { munmap(self.start.as_ptr().cast(), self.len) }.unwrap();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// The controller with its admin queue, 16 entries.
struct Controller {
    device: VfioDevice,
    submissions: Arc<Memory>,
    completions: Arc<Memory>,
    maps: [Box<dyn Mapping>; 2],
    tail: u32,
    seen: u32,
}

impl Controller {
    fn start() -> Self {
        let device = VfioDevice::open(&address()).unwrap();
        let (submissions, completions) = (Memory::new(PAGE), Memory::new(PAGE));
        let maps = [
            device.mapper().map(submissions.clone(), DmaAccess::Read).unwrap(),
            device.mapper().map(completions.clone(), DmaAccess::Write).unwrap(),
        ];
        let mut controller = Self { device, submissions, completions, maps, tail: 0, seen: 0 };
        controller.enable();
        controller
    }

    fn enable(&mut self) {
        self.completions.fill(0);
        (self.tail, self.seen) = (0, 0);
        self.device.set_bus_master(true).unwrap();
        let registers = self.device.registers();
        registers.write32(AQA, 15 << 16 | 15);
        registers.write64(ASQ, self.maps[0].iova().0);
        registers.write64(ACQ, self.maps[1].iova().0);
        registers.write32(CC, 4 << 20 | 6 << 16 | 1);
        until("the controller's start", || registers.read32(CSTS) & 1 == 1);
    }

    /// Submits Identify Controller with its data to `iova`.
    fn submit_identify(&mut self, iova: u64) {
        let at = (self.tail as usize % 16) * 64;
        let [low, high] = [iova & 0xffff_ffff, iova >> 32].map(|half| u32::try_from(half).unwrap());
        let words = [IDENTIFY | self.tail << 16, 0, 0, 0, 0, 0, low, high, 0, 0, 1];
        for index in 0..16 {
            self.submissions.set(at + index * 4, words.get(index).copied().unwrap_or(0));
        }
        self.tail += 1;
        self.device.registers().write32(ADMIN_TAIL, self.tail % 16);
    }

    /// Whether the next completion has come.
    fn completed(&self) -> bool {
        let at = (self.seen as usize % 16) * 16;
        let phase = 1 - self.seen / 16 % 2;
        self.completions.get(at + 12) >> 16 & 1 == phase
    }

    fn identify(&mut self, iova: u64) {
        self.submit_identify(iova);
        until("the command's completion", || self.completed());
        self.seen += 1;
        self.device.registers().write32(ADMIN_HEAD, self.seen % 16);
    }
}

/// The PCI vendor id, with which the data of Identify Controller begins too.
fn vendor() -> u16 {
    let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{}/vendor", address())).unwrap();
    u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
}

/// The command register: 1 << 1 memory, 1 << 2 bus master, 1 << 10 no INTx.
fn command(device: &VfioDevice) -> u16 {
    let mut bytes = [0; 2];
    device.read_config(4, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn a_device_is_opened_quiet_and_says_what_it_is() {
    let device = VfioDevice::open(&address()).unwrap();
    assert_eq!(device.class(), DeviceClass::Nvme);
    assert_eq!((device.address().to_string(), device.id().vendor), (address(), vendor()));
    assert_eq!(command(&device) & 0x406, 0x402, "memory on, bus master off, INTx off");
    let registers = device.registers();
    assert!(registers.len() >= 0x2000 && device.vectors() > 1);
    assert_ne!(registers.read64(CAP), u64::MAX);
    assert!(registers.read32(VS) >= 0x0001_0000);
    assert_eq!(registers.read32(CC) & 1, 0);
    let msix = 0x11;
    assert!(device.capabilities().unwrap().iter().any(|&(id, _)| id == msix));
    assert!(device.read_config(4095, &mut [0; 2]).is_err());
    assert!(device.bar(6).is_err());
    assert_eq!(device.bar(5).unwrap().len(), 0);
    let removal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    device.route_removal(removal.as_fd()).unwrap();
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn the_device_is_opened_by_one_at_a_time() {
    let device = VfioDevice::open(&address()).unwrap();
    assert!(matches!(VfioDevice::open(&address()), Err(VfioError::GroupBusy { .. })));
    drop(device);
    let device = VfioDevice::open(&address()).unwrap();
    // A mapping may outlive its device. It keeps nothing of it: the address space has ended with the device.
    let mapping = device.mapper().map(Memory::new(PAGE), DmaAccess::ReadWrite).unwrap();
    drop(device);
    drop(VfioDevice::open(&address()).unwrap());
    drop(mapping);
    drop(VfioDevice::open(&address()).unwrap());
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn errors_say_what_is_missing() {
    let serial_port = VfioDevice::open("0000:00:1d.0").map(drop).unwrap_err();
    assert!(matches!(serial_port, VfioError::NotBound { .. }), "{serial_port}");
    assert!(matches!(VfioDevice::open("0000:00:0f.0"), Err(VfioError::NoDevice { .. })));
    assert!(matches!(VfioDevice::open("../../x"), Err(VfioError::BadAddress(_))));
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn mappings_lie_in_the_kernels_ranges_and_are_counted() {
    let device = VfioDevice::open(&address()).unwrap();
    let before = device.dma().info().unwrap();
    println!("{before:x?}");
    assert_ne!(before.page_sizes & 4096, 0);
    assert!(before.ranges.iter().all(|range| range.last < 0xfee0_0000 || range.first > 0xfeef_ffff));
    let mapper = device.mapper();
    let small = mapper.map(Memory::new(PAGE), DmaAccess::ReadWrite).unwrap();
    let large = mapper.map(Memory::new(4 << 20), DmaAccess::Read).unwrap();
    for mapping in [&small, &large] {
        let (first, last) = (mapping.iova().0, mapping.iova().0 + mapping.len() as u64 - 1);
        assert!(before.ranges.iter().any(|range| range.first <= first && last <= range.last));
    }
    assert_eq!(mapper.mappings(), 2);
    let avail = before.dma_avail.expect("the kernel says how many mappings are left");
    assert_eq!(device.dma().info().unwrap().dma_avail, Some(avail - 2));
    let freed = small.iova();
    drop(small);
    drop(large);
    assert_eq!((mapper.mappings(), device.dma().info().unwrap().dma_avail), (0, Some(avail)));
    let next = mapper.map(Memory::new(PAGE), DmaAccess::Write).unwrap();
    assert_ne!(next.iova(), freed, "a freed address is not used again at once");
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn dma_lands_only_where_the_mapping_allows_it() {
    let mut controller = Controller::start();
    let mapper = controller.device.mapper();

    let data = Memory::new(PAGE);
    data.fill(0xdead_beef);
    let mapping = mapper.map(data.clone(), DmaAccess::Write).unwrap();
    controller.identify(mapping.iova().0);
    assert_eq!(data.get(0) & 0xffff, u32::from(vendor()));

    // A source: the device may read it, and a command that wants to write there changes nothing.
    let source = Memory::new(PAGE);
    source.fill(0x0ddb_a115);
    let mapping = mapper.map(source.clone(), DmaAccess::Read).unwrap();
    controller.identify(mapping.iova().0);
    assert!(source.is_filled_with(0x0ddb_a115), "the device wrote to memory that is mapped for reading");

    // Unmapped: the memory is kept here, the address is not.
    let gone = Memory::new(PAGE);
    gone.fill(0x5afe_5afe);
    let mapping = mapper.map(gone.clone(), DmaAccess::ReadWrite).unwrap();
    let iova = mapping.iova().0;
    controller.identify(iova);
    assert!(!gone.is_filled_with(0x5afe_5afe));
    drop(mapping);
    gone.fill(0x5afe_5afe);
    controller.identify(iova);
    assert!(gone.is_filled_with(0x5afe_5afe), "the device wrote to memory that was unmapped");
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn interrupts_arrive_on_their_eventfd() {
    let mut controller = Controller::start();
    let vectors = controller.device.vectors().min(8);
    let new = |_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let fds: Vec<OwnedFd> = (0..vectors).map(new).collect();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let too_many = vec![borrowed[0]; controller.device.vectors() as usize + 1];
    assert_eq!(
        controller.device.route_interrupts(&too_many).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(controller.device.route_interrupts(&[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    controller.device.route_interrupts(&borrowed).unwrap();
    let mapping = controller.device.mapper().map(Memory::new(PAGE), DmaAccess::Write).unwrap();
    let mut interrupts = 0;
    for round in 0..20 {
        if round == 10 {
            // A reset does not undo the routing.
            controller.device.reset().unwrap();
            controller.enable();
        }
        controller.identify(mapping.iova().0);
        // Completions of the admin queue raise vector 0, and no other.
        let mut polls = [PollFd::new(&fds[0], PollFlags::IN)];
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut polls, Some(&patience)).unwrap(), 1, "no interrupt in round {round}");
        let mut count = [0; 8];
        rustix::io::read(&fds[0], &mut count).unwrap();
        interrupts += u64::from_ne_bytes(count);
    }
    assert_eq!(interrupts, 20);
    for fd in &fds[1..] {
        assert_eq!(rustix::io::read(fd, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
    }
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn a_reset_stops_the_controller_and_its_bus_mastering() {
    let mut controller = Controller::start();
    let data = Memory::new(PAGE);
    let mapping = controller.device.mapper().map(data.clone(), DmaAccess::Write).unwrap();
    assert_eq!(command(&controller.device) & 4, 4);
    controller.device.reset().unwrap();
    let registers = controller.device.registers();
    assert_eq!((registers.read32(CC) & 1, registers.read32(CSTS) & 1), (0, 0));
    assert_eq!(command(&controller.device) & 0x406, 0x402);
    controller.submit_identify(mapping.iova().0);
    // A register read is answered after the device has taken the write before it.
    assert_eq!(registers.read32(CSTS) & 1, 0);
    assert!(!controller.completed() && data.is_filled_with(0), "a controller that was reset goes on");
    controller.enable();
    controller.identify(mapping.iova().0);
    assert!(!data.is_filled_with(0), "a controller that was reset does not come back");
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn a_dropped_device_has_been_stopped() {
    let controller = Controller::start();
    let registers = controller.device.registers();
    let config = || std::fs::read(format!("/sys/bus/pci/devices/{}/config", address())).unwrap();
    assert_eq!(config()[4] & 4, 4);
    drop(controller);
    assert_eq!(registers.read32(CC) & 1, 0, "still enabled");
    assert_eq!(config()[4] & 4, 0, "still bus master");
}

/// Runs `operation` on one block, waiting by interrupt, and returns how it ended.
fn run<Q: BlockQueue>(
    queue: &mut Q,
    fd: &OwnedFd,
    operation: Operation,
    lba: u64,
    data: Iova,
) -> DeviceStatus {
    queue.arm_interrupt(true);
    queue.submit(&Command { operation, lba, blocks: 1, data, tag: lba }).unwrap();
    queue.commit();
    let mut ended = None;
    loop {
        queue.poll(1, &mut |completed| ended = Some(completed));
        if let Some(completed) = ended {
            assert_eq!((completed.tag, queue.outstanding()), (lba, 0));
            return completed.status;
        }
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&patience)).unwrap(), 1, "no interrupt");
        rustix::io::read(fd, &mut [0; 8]).unwrap();
    }
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci"]
fn the_nvme_driver_moves_data_by_dma_and_interrupts() {
    let mut controller = nvme::Controller::open(VfioDevice::open(&address()).unwrap(), 2).unwrap();
    let mut queue = controller.take_queue().unwrap();
    let fd = queue.interrupt_fd().unwrap().try_clone_to_owned().unwrap();
    let blocks = queue.geometry().blocks;
    let (source, target) = (Memory::new(PAGE), Memory::new(PAGE));
    let from = controller.mapper().map(source.clone(), DmaAccess::Read).unwrap();
    let to = controller.mapper().map(target.clone(), DmaAccess::Write).unwrap();
    for (value, lba) in [(0x0101_0101, 0), (0x7777_0000, blocks / 2), (0x1234_abcd, blocks - 1)] {
        source.fill(value);
        target.fill(!value);
        assert!(run(&mut queue, &fd, Operation::Write { fua: true }, lba, from.iova()).is_ok());
        assert!(run(&mut queue, &fd, Operation::Read, lba, to.iova()).is_ok());
        let block = queue.geometry().block_size() as usize;
        assert!((0..PAGE).step_by(4).all(|at| target.get(at) == if at < block { value } else { !value }));
    }
    // A read into a source: whatever the status, its memory stays as it was.
    source.fill(0x600d_c0de);
    let _ = run(&mut queue, &fd, Operation::Read, 0, from.iova());
    assert!(source.is_filled_with(0x600d_c0de), "a source was written");
    assert_eq!(controller.anomalies(), 0);
    drop(queue);
    controller.shutdown().unwrap();
}

/// To be run as a user with a limit of locked memory: `PORTCULLIS_MEMLOCK` says how many bytes.
#[test]
#[ignore = "needs an NVMe device bound to vfio-pci, and a limit of locked memory"]
fn the_limit_of_locked_memory_is_named_and_survived() {
    let limit: usize = std::env::var("PORTCULLIS_MEMLOCK").unwrap().parse().unwrap();
    let device = VfioDevice::open(&address()).unwrap();
    let mapper = device.mapper();
    let error = mapper.map(Memory::new(limit + PAGE), DmaAccess::ReadWrite).map(drop).unwrap_err();
    assert!(matches!(&error, DmaError::Os { what, .. } if what.contains("LimitMEMLOCK")), "{error}");
    assert_eq!(mapper.mappings(), 0);
    let within = mapper.map(Memory::new(limit / 2), DmaAccess::ReadWrite).unwrap();
    drop(within);
    mapper.map(Memory::new(limit / 2), DmaAccess::ReadWrite).map(drop).unwrap();
}

/// `PORTCULLIS_DMA_ENTRIES` says how many mappings the kernel allows.
#[test]
#[ignore = "needs an NVMe device bound to vfio-pci, and a limit of mappings"]
fn the_limit_of_mappings_is_named_and_survived() {
    let limit: u32 = std::env::var("PORTCULLIS_DMA_ENTRIES").unwrap().parse().unwrap();
    let device = VfioDevice::open(&address()).unwrap();
    let mapper = device.mapper();
    let one = || mapper.map(Memory::new(PAGE), DmaAccess::ReadWrite);
    let mut mappings: Vec<_> = (0..limit).map(|_| one().unwrap()).collect();
    assert_eq!(device.dma().info().unwrap().dma_avail, Some(0));
    assert!(matches!(one(), Err(DmaError::TooMany { limit: named }) if named == limit));
    mappings.pop();
    mappings.push(one().unwrap());
}

#[test]
#[ignore = "needs an NVMe device bound to vfio-pci, and root"]
fn as_root_a_device_that_the_machine_wants_back_is_given_back() {
    let device = VfioDevice::open(&address()).unwrap();
    let removal = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    device.route_removal(removal.as_fd()).unwrap();
    let mapping = device.mapper().map(Memory::new(PAGE), DmaAccess::ReadWrite).unwrap();
    let driver = "/sys/bus/pci/drivers/vfio-pci";
    // The kernel waits in there until the device is closed.
    let unbind = std::thread::spawn(move || std::fs::write(format!("{driver}/unbind"), address()));
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(
        poll(&mut [PollFd::new(&removal, PollFlags::IN)], Some(&patience)).unwrap(),
        1,
        "nobody asked"
    );
    assert!(!unbind.is_finished());
    assert_ne!(device.registers().read64(CAP), u64::MAX, "it works until it is given back");
    drop(device);
    unbind.join().unwrap().unwrap();
    // Unmapping works without the device, and nothing panics because it is gone.
    drop(mapping);
    assert!(matches!(VfioDevice::open(&address()), Err(VfioError::NotBound { .. })));
    std::fs::write(format!("{driver}/bind"), address()).unwrap();
    drop(VfioDevice::open(&address()).unwrap());
}

/// On a virtio block device, with `PORTCULLIS_DEVICE` naming that.
#[test]
#[ignore = "needs a virtio block device bound to vfio-pci"]
fn virtio_a_block_device_is_reached_through_its_capabilities() {
    let device = VfioDevice::open(&address()).unwrap();
    assert_eq!(device.class(), DeviceClass::VirtioBlock);
    assert_eq!(command(&device) & 0x406, 0x402);
    // Virtio 1.2, 4.1.4: a vendor capability of type 1 says where the common configuration is.
    let common = device.capabilities().unwrap().into_iter().find_map(|(id, at)| {
        let mut bytes = [0; 16];
        device.read_config(u16::from(at), &mut bytes).unwrap();
        (id == 9 && bytes[3] == 1).then_some(bytes)
    });
    let common = common.unwrap();
    let at = u32::from_le_bytes(common[8..12].try_into().unwrap()) as usize;
    let bar = device.bar(common[4].into()).unwrap();
    let (queues, status) = (at + 0x12, at + 0x14);
    assert!(bar.read16(queues) > 0);
    bar.write8(status, 1);
    assert_eq!(bar.read8(status), 1);
    bar.write8(status, 0);
    assert_eq!(bar.read8(status), 0);
    // Its reset is its own, by that register.
    assert_eq!(device.reset().unwrap_err().kind(), io::ErrorKind::Unsupported);
    assert!(device.vectors() > 1);
    let _mapping = device.mapper().map(Memory::new(PAGE), DmaAccess::ReadWrite).unwrap();
    device.set_bus_master(true).unwrap();
    assert_eq!(command(&device) & 4, 4);
}
