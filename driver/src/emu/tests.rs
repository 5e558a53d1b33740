//! The controller from the outside: registers, queues in mapped memory, doorbells. The other half of its proof is the
//! conformance suite, which runs on QEMU's controller too.
#![allow(clippy::cast_possible_truncation)] // patterns and halves

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::*;
use crate::hal::{DmaAccess, Mapping, Registers};
use crate::spec::nvme::{Sqe, Status, admin, nvm, offset};

mod sgl;
mod shadows;

const ENTRIES: u16 = 8;

/// Memory mapped for the device.
struct Area {
    pages: Arc<Pages>,
    mapping: Box<dyn Mapping>,
}

impl Area {
    fn at(&self, offset: u64) -> u64 {
        self.mapping.iova().0 + offset
    }

    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.pages.span().part(offset, N).unwrap().read(&mut bytes);
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.pages.span().part(offset, bytes.len()).unwrap().write(bytes);
    }

    fn fill(&self, byte: u8) {
        self.write(0, &vec![byte; self.pages.span().len()]);
    }
}

/// A queue pair as a host keeps it.
struct Pair {
    id: u16,
    submissions: Area,
    completions: Area,
    tail: u16,
    head: u16,
    phase: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Ended {
    result: u32,
    head: u16,
    queue: u16,
    id: u16,
    status: u16,
}

impl Ended {
    fn is(&self, status: Status) -> bool {
        self.status == status.0 | 1 << 14
    }
}

/// A submission entry being written: the dwords.
#[derive(Clone, Copy)]
struct Entry([u32; 16]);

impl Entry {
    fn new(opcode: u8, namespace: u32) -> Self {
        let mut dwords = [0; 16];
        dwords[0] = u32::from(opcode) | 7 << 16;
        dwords[1] = namespace;
        Self(dwords)
    }

    fn set(mut self, n: usize, value: u32) -> Self {
        self.0[n] = value;
        self
    }

    fn set64(self, n: usize, value: u64) -> Self {
        self.set(n, (value & 0xffff_ffff) as u32).set(n + 1, (value >> 32) as u32)
    }

    fn prp(self, first: u64, second: u64) -> Self {
        self.set64(6, first).set64(8, second)
    }

    fn id(self, id: u16) -> Self {
        let kept = self.0[0] & 0xffff;
        self.set(0, kept | u32::from(id) << 16)
    }
}

fn io(opcode: u8, lba: u64, blocks: u32) -> Entry {
    Entry::new(opcode, 1).set64(10, lba).set(12, blocks - 1)
}

struct Host {
    device: Emulator,
    registers: Arc<Controller>,
    admin: Pair,
}

fn area(device: &Emulator, bytes: usize, access: DmaAccess) -> Area {
    let pages = Pages::populated(bytes).unwrap();
    let mapping = device.mapper().map(pages.clone(), access).unwrap();
    Area { pages, mapping }
}

impl Host {
    fn new(config: EmuConfig) -> Self {
        let device = Emulator::new(config).unwrap();
        let registers = device.registers();
        let mut host = Self { admin: Self::pair(&device, 0), registers, device };
        host.enable();
        host
    }

    fn ram(bytes: u64) -> Self {
        Self::new(EmuConfig { queues: 2, ..EmuConfig::new(Arc::new(RamMedia::new(bytes).unwrap())) })
    }

    fn pair(device: &Emulator, id: u16) -> Pair {
        Pair {
            id,
            submissions: area(device, 4096, DmaAccess::Read),
            completions: area(device, 4096, DmaAccess::Write),
            tail: 0,
            head: 0,
            phase: true,
        }
    }

    fn area(&self, bytes: usize) -> Area {
        area(&self.device, bytes, DmaAccess::ReadWrite)
    }

    fn enable(&mut self) {
        self.device.set_bus_master(true).unwrap();
        self.admin = Self::pair(&self.device, 0);
        let sizes = u32::from(ENTRIES - 1);
        self.registers.write32(offset::AQA, sizes << 16 | sizes);
        self.registers.write64(offset::ASQ, self.admin.submissions.at(0));
        self.registers.write64(offset::ACQ, self.admin.completions.at(0));
        self.registers.write32(offset::CC, 1 | 6 << 16 | 4 << 20);
        self.wait_status(3, 1);
    }

    fn disable(&self) {
        self.registers.write32(offset::CC, 6 << 16 | 4 << 20);
        self.wait_status(1, 0);
    }

    fn wait_status(&self, mask: u32, value: u32) {
        while self.registers.read32(offset::CSTS) & mask != value {
            std::thread::yield_now();
        }
    }

    fn put(pair: &mut Pair, entry: Entry) {
        let bytes: Vec<u8> = entry.0.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        pair.submissions.write(usize::from(pair.tail) * 64, &bytes);
        pair.tail = (pair.tail + 1) % ENTRIES;
    }

    fn ring(&self, pair: &Pair) {
        self.registers.write32(offset::DOORBELLS + usize::from(pair.id) * 8, u32::from(pair.tail));
    }

    /// The next completion, if one is there; the doorbell is written.
    fn take(&self, pair: &mut Pair) -> Option<Ended> {
        let bytes: [u8; 16] = pair.completions.read(usize::from(pair.head) * 16);
        let dword = |n: usize| u32::from_le_bytes(bytes[n * 4..n * 4 + 4].try_into().unwrap());
        if (dword(3) >> 16 & 1 == 1) != pair.phase {
            return None;
        }
        pair.head += 1;
        if pair.head == ENTRIES {
            pair.head = 0;
            pair.phase = !pair.phase;
        }
        self.registers.write32(offset::DOORBELLS + usize::from(pair.id) * 8 + 4, u32::from(pair.head));
        let halves = |dword: u32| ((dword & 0xffff) as u16, (dword >> 16) as u16);
        let ((head, queue), id) = (halves(dword(2)), halves(dword(3)).0);
        Some(Ended { result: dword(0), head, queue, id, status: (dword(3) >> 17) as u16 })
    }

    fn run(&self, pair: &mut Pair, entry: Entry) -> Ended {
        Self::put(pair, entry);
        self.ring(pair);
        loop {
            if let Some(ended) = self.take(pair) {
                return ended;
            }
            std::thread::yield_now();
        }
    }

    fn admin(&mut self, entry: Entry) -> Ended {
        let mut pair = std::mem::replace(&mut self.admin, Self::pair(&self.device, 0));
        let ended = self.run(&mut pair, entry);
        self.admin = pair;
        ended
    }

    fn create(&mut self, id: u16) -> Pair {
        let pair = Self::pair(&self.device, id);
        let size = u32::from(ENTRIES - 1) << 16 | u32::from(id);
        let queue = Entry::new(admin::CREATE_IO_CQ, 0).set(10, size).set(11, u32::from(id) << 16 | 3);
        assert_eq!(self.admin(queue.prp(pair.completions.at(0), 0)).status, 0);
        let queue = Entry::new(admin::CREATE_IO_SQ, 0).set(10, size).set(11, u32::from(id) << 16 | 1);
        assert_eq!(self.admin(queue.prp(pair.submissions.at(0), 0)).status, 0);
        pair
    }
}

#[test]
fn registers_say_what_it_is() {
    let host = Host::ram(1 << 20);
    let cap = host.registers.read64(offset::CAP);
    assert_eq!(cap & 0xffff, 1023, "MQES");
    assert_eq!(cap >> 24 & 0xff, 4, "TO");
    assert_eq!(cap >> 32 & 0xf, 0, "DSTRD");
    assert_eq!(cap >> 37 & 1, 1, "CSS");
    assert_eq!(host.registers.read32(offset::VS), 0x0001_0400);
}

#[test]
fn a_block_written_is_read_back_and_nothing_else_changes() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let data = host.area(8192);
    data.fill(0x5a);
    let ended = host.run(&mut pair, io(nvm::WRITE, 3, 2).prp(data.at(512), 0).id(9));
    assert_eq!(ended, Ended { result: 0, head: 1, queue: 1, id: 9, status: 0 });
    data.fill(0);
    assert_eq!(host.run(&mut pair, io(nvm::READ, 2, 4).prp(data.at(0), 0)).status, 0);
    let mut expected = vec![0; 512];
    expected.extend([0x5a; 1024]);
    expected.resize(8192, 0);
    assert_eq!(data.read::<8192>(0).to_vec(), expected);
    assert_eq!((host.device.commands(), host.device.faults()), (2, 0));
}

#[test]
fn prps_are_held_to_the_letter() {
    let mut host = Host::ram(8 << 20);
    let mut pair = host.create(1);
    let data = host.area(2 << 20);
    let page = 4096u64;
    // Offset not a multiple of four; second page not at its start; list not at a multiple of eight; entry not at a
    // page's start.
    let wrong = [
        io(nvm::READ, 0, 8).prp(data.at(2), data.at(page)),
        io(nvm::READ, 0, 16).prp(data.at(0), data.at(page + 4)),
        io(nvm::READ, 0, 24).prp(data.at(0), data.at(4)),
    ];
    for entry in wrong {
        assert!(host.run(&mut pair, entry).is(Status::PRP_OFFSET_INVALID));
    }
    let list = host.area(8192);
    list.write(0, &data.at(page).to_le_bytes());
    list.write(8, &(data.at(2 * page) + 8).to_le_bytes());
    assert!(
        host.run(&mut pair, io(nvm::READ, 0, 24).prp(data.at(0), list.at(0))).is(Status::PRP_OFFSET_INVALID)
    );
    // Memory that is not mapped; a list that is not mapped; too large; a source that is not readable.
    assert!(host.run(&mut pair, io(nvm::READ, 0, 8).prp(page, 0)).is(Status::DATA_TRANSFER_ERROR));
    assert!(host.run(&mut pair, io(nvm::READ, 0, 24).prp(data.at(0), page)).is(Status::DATA_TRANSFER_ERROR));
    assert!(
        host.run(&mut pair, io(nvm::READ, 0, 1025).prp(data.at(0), list.at(0))).is(Status::INVALID_FIELD)
    );
    let source = area(&host.device, 4096, DmaAccess::Read);
    source.fill(7);
    assert!(host.run(&mut pair, io(nvm::READ, 0, 8).prp(source.at(0), 0)).is(Status::DATA_TRANSFER_ERROR));
    assert!(source.read::<4096>(0).iter().all(|&byte| byte == 7));
    assert_eq!(host.device.faults(), 3);
}

#[test]
fn lists_chain_from_page_to_page() {
    let mut host = Host::ram(8 << 20);
    let mut pair = host.create(1);
    let data = host.area(130 * 4096);
    for page in 0..130 {
        data.write(page * 4096, &[page as u8; 4096]);
    }
    // 128 pages and 4 bytes into the first: 128 entries, of which the first list page has room for 3, one a link.
    let list = host.area(8192);
    let pages: Vec<u8> = (1..=128).flat_map(|page| data.at(page * 4096).to_le_bytes()).collect();
    let start = 4096 - 3 * 8;
    list.write(start, &pages[..16]);
    list.write(4096 - 8, &list.at(4096).to_le_bytes());
    list.write(4096, &pages[16..]);
    let entry = io(nvm::WRITE, 8, 1024).prp(data.at(4), list.at(start as u64));
    assert_eq!(host.run(&mut pair, entry).status, 0);
    let back = host.area(4096);
    for page in [0u64, 1, 2, 63, 127] {
        assert_eq!(host.run(&mut pair, io(nvm::READ, 8 + page * 8, 8).prp(back.at(0), 0)).status, 0);
        let bytes = back.read::<4096>(0);
        assert!(bytes[..4092].iter().all(|&byte| byte == page as u8) && bytes[4092..] == [page as u8 + 1; 4]);
    }
    // A link that is not a page fails, and nothing is written.
    list.write(4096 - 8, &list.at(4104).to_le_bytes());
    data.fill(0xff);
    assert!(host.run(&mut pair, entry).is(Status::PRP_OFFSET_INVALID));
    assert_eq!(host.run(&mut pair, io(nvm::READ, 8, 8).prp(back.at(0), 0)).status, 0);
    assert_eq!(back.read::<1>(0), [0]);
}

#[test]
fn ranges_do_not_wrap() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let data = host.area(8192);
    data.fill(1);
    let last = (1 << 11) - 1;
    assert_eq!(host.run(&mut pair, io(nvm::WRITE, last, 1).prp(data.at(0), 0)).status, 0);
    for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::WRITE_ZEROES] {
        for (lba, blocks) in
            [(last, 2), (last + 1, 1), (u64::MAX, 1), (u64::MAX, 2), (1 << 55, 1), (1 << 63, 8)]
        {
            let ended = host.run(&mut pair, io(opcode, lba, blocks).prp(data.at(0), 0));
            assert!(ended.is(Status::LBA_OUT_OF_RANGE), "{opcode} {lba} {blocks}: {ended:?}");
        }
    }
    // Dataset management checks all of its ranges before it touches one.
    data.write(0, &[0; 32]);
    data.write(4, &1u32.to_le_bytes());
    data.write(8, &last.to_le_bytes());
    data.write(20, &2u32.to_le_bytes());
    data.write(24, &last.to_le_bytes());
    let entry = Entry::new(nvm::DATASET_MANAGEMENT, 1).set(10, 1).set(11, 4).prp(data.at(0), 0);
    assert!(host.run(&mut pair, entry).is(Status::LBA_OUT_OF_RANGE));
    assert_eq!(host.run(&mut pair, io(nvm::READ, last, 1).prp(data.at(4096), 0)).status, 0);
    assert_eq!(data.read::<512>(4096), [1; 512]);
    assert_eq!(host.run(&mut pair, entry.set(10, 0)).status, 0);
    assert_eq!(host.run(&mut pair, io(nvm::READ, last, 1).prp(data.at(4096), 0)).status, 0);
    assert_eq!(data.read::<512>(4096), [0; 512]);
}

#[test]
fn commands_it_does_not_have_are_refused() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    let data = host.area(4096);
    for opcode in [0x04, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x7f, 0xff] {
        assert!(host.run(&mut pair, io(opcode, 0, 1).prp(data.at(0), 0)).is(Status::INVALID_OPCODE));
    }
    for namespace in [0, 2, u32::MAX] {
        let entry = io(nvm::READ, 0, 1).prp(data.at(0), 0).set(1, namespace);
        assert!(host.run(&mut pair, entry).is(Status::INVALID_NAMESPACE));
    }
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, u32::MAX)).status, 0);
    for format in [1 << 8, 2 << 14, 3 << 14] {
        let entry = io(nvm::READ, 0, 1).prp(data.at(0), 0);
        assert!(host.run(&mut pair, entry.set(0, entry.0[0] | format)).is(Status::INVALID_FIELD));
    }
    assert!(host.admin(Entry::new(0x80, 0)).is(Status::INVALID_OPCODE));
}

#[test]
fn queues_are_made_and_deleted_by_the_rules() {
    let mut host = Host::ram(1 << 20);
    let memory = host.area(4096);
    let make = |opcode, id: u32, size: u32, flags: u32| {
        Entry::new(opcode, 0).set(10, (size - 1) << 16 | id).set(11, flags).prp(memory.at(0), 0)
    };
    let cases = [
        (make(admin::CREATE_IO_CQ, 0, 8, 1), Status::INVALID_QUEUE_ID),
        (make(admin::CREATE_IO_CQ, 3, 8, 1), Status::INVALID_QUEUE_ID),
        (make(admin::CREATE_IO_CQ, 1, 1, 1), Status::INVALID_QUEUE_SIZE),
        (make(admin::CREATE_IO_CQ, 1, 1025, 1), Status::INVALID_QUEUE_SIZE),
        (make(admin::CREATE_IO_CQ, 1, 8, 0), Status::INVALID_FIELD),
        (make(admin::CREATE_IO_CQ, 1, 8, 3 << 16 | 3), Status::INVALID_INTERRUPT_VECTOR),
        (make(admin::CREATE_IO_CQ, 1, 8, 1).prp(memory.at(8), 0), Status::PRP_OFFSET_INVALID),
        (make(admin::CREATE_IO_SQ, 1, 8, 1 << 16 | 1), Status::COMPLETION_QUEUE_INVALID),
        (make(admin::CREATE_IO_SQ, 1, 8, 1), Status::INVALID_QUEUE_ID),
        (Entry::new(admin::DELETE_IO_SQ, 0).set(10, 1), Status::INVALID_QUEUE_ID),
        (Entry::new(admin::DELETE_IO_CQ, 0).set(10, 0), Status::INVALID_QUEUE_ID),
    ];
    for (at, (entry, status)) in cases.into_iter().enumerate() {
        assert!(host.admin(entry).is(status), "case {at}");
    }
    // Two queues at most are granted; then, with queues there, the number is fixed.
    let number = Entry::new(admin::SET_FEATURES, 0).set(10, 7);
    assert_eq!(host.admin(number.set(11, 9 << 16 | 9)).result, 1 << 16 | 1);
    assert!(host.admin(number.set(11, 0xffff)).is(Status::INVALID_FIELD));
    let mut pair = host.create(1);
    assert!(host.admin(number.set(11, 0)).is(Status::COMMAND_SEQUENCE_ERROR));
    assert!(host.admin(make(admin::CREATE_IO_CQ, 1, 8, 1)).is(Status::INVALID_QUEUE_ID));
    assert!(host.admin(Entry::new(admin::DELETE_IO_CQ, 0).set(10, 1)).is(Status::INVALID_QUEUE_DELETION));
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    assert_eq!(host.admin(Entry::new(admin::DELETE_IO_SQ, 0).set(10, 1)).status, 0);
    assert_eq!(host.admin(Entry::new(admin::DELETE_IO_CQ, 0).set(10, 1)).status, 0);
    let _again = host.create(1);
}

#[test]
fn it_waits_while_the_completion_queue_is_full() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    // Two more commands than completions fit: the submission queue is as long as the completion queue, so it is used
    // twice before anything is taken.
    for round in 0..2 {
        for id in 0..5 {
            Host::put(&mut pair, Entry::new(nvm::FLUSH, 1).id(round * 5 + id));
        }
        host.ring(&pair);
    }
    let ids: Vec<u16> = std::iter::from_fn(|| host.take(&mut pair).map(|ended| ended.id)).collect();
    assert_eq!(ids, (0..10).collect::<Vec<_>>());
}

#[test]
fn bad_doorbells_change_nothing_and_are_reported() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    Host::put(&mut host.admin, Entry::new(admin::ASYNC_EVENT_REQUEST, 0).id(42));
    host.ring(&host.admin);
    host.registers.write32(offset::DOORBELLS + 8, u32::from(ENTRIES));
    let event = host.take_admin().unwrap();
    assert_eq!((event.id, event.status, event.result), (42, 0, 1 << 16 | 1 << 8));
    host.registers.write32(offset::DOORBELLS + 16, 0);
    host.registers.write32(offset::DOORBELLS + 0x800, 3);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    // The next is told only once the log was read.
    Host::put(&mut host.admin, Entry::new(admin::ASYNC_EVENT_REQUEST, 0).id(43));
    host.ring(&host.admin);
    assert_eq!(host.take_admin(), None);
    let log = host.area(4096);
    let read = Entry::new(admin::GET_LOG_PAGE, u32::MAX).set(10, 15 << 16 | 1).prp(log.at(0), 0);
    Host::put(&mut host.admin, read.id(44));
    host.ring(&host.admin);
    assert_eq!(host.take_admin().map(|ended| (ended.id, ended.status)), Some((44, 0)));
    assert_eq!(host.take_admin().map(|ended| (ended.id, ended.result)), Some((43, 1 << 16)));
}

impl Host {
    fn take_admin(&mut self) -> Option<Ended> {
        let mut pair = std::mem::replace(&mut self.admin, Self::pair(&self.device, 0));
        let ended = self.take(&mut pair);
        self.admin = pair;
        ended
    }
}

#[test]
fn event_requests_have_a_limit_and_can_be_aborted() {
    let mut host = Host::ram(1 << 20);
    for id in 0..4 {
        Host::put(&mut host.admin, Entry::new(admin::ASYNC_EVENT_REQUEST, 0).id(100 + id));
    }
    host.ring(&host.admin);
    assert!(host.admin(Entry::new(admin::ASYNC_EVENT_REQUEST, 0)).is(Status(0x105)));
    Host::put(&mut host.admin, Entry::new(admin::ABORT, 0).set(10, 102 << 16).id(1));
    host.ring(&host.admin);
    let mut ended = [host.take_admin().unwrap(), host.take_admin().unwrap()];
    ended.sort_by_key(|ended| ended.id);
    assert_eq!((ended[0].id, ended[0].result, ended[0].status), (1, 0, 0));
    assert_eq!(ended[1].id, 102);
    assert!(ended[1].is(Status::ABORT_REQUESTED));
    assert_eq!(host.admin(Entry::new(admin::ABORT, 0).set(10, 77 << 16)).result, 1, "not aborted");
}

#[test]
fn identify_and_logs() {
    let mut host = Host::ram(1 << 20);
    let data = host.area(4096);
    let identify =
        |cns: u32, namespace| Entry::new(admin::IDENTIFY, namespace).set(10, cns).prp(data.at(0), 0);
    assert_eq!(host.admin(identify(1, 0)).status, 0);
    assert_eq!((data.read::<4>(4), data.read::<1>(77), data.read::<2>(512)), (*b"EMU0", [7], [0x66, 0x44]));
    assert_eq!(host.admin(identify(0, 1)).status, 0);
    assert_eq!((data.read::<8>(0), data.read::<1>(26)), (2048u64.to_le_bytes(), [0]));
    assert_eq!(host.admin(identify(2, 0)).status, 0);
    assert_eq!(data.read::<8>(0), 1u64.to_le_bytes());
    assert!(host.admin(identify(0, 2)).is(Status::INVALID_NAMESPACE));
    assert!(host.admin(identify(2, u32::MAX)).is(Status::INVALID_NAMESPACE));
    assert!(host.admin(identify(0x55, 0)).is(Status::INVALID_FIELD));
    let log =
        |id: u32, dwords: u32| Entry::new(admin::GET_LOG_PAGE, u32::MAX).set(10, (dwords - 1) << 16 | id);
    let mut pair = host.create(1);
    assert_eq!(host.run(&mut pair, io(nvm::READ, 0, 8).prp(data.at(0), 0)).status, 0);
    assert_eq!(host.admin(log(2, 128).prp(data.at(0), 0)).status, 0);
    assert_eq!((data.read::<1>(3), data.read::<1>(32), data.read::<1>(64)), ([100], [1], [1]));
    assert_eq!(host.admin(log(1, 16).prp(data.at(0), 0)).status, 0);
    let newest = u16::from_le_bytes(data.read(12)) >> 1 & 0x7ff;
    assert_eq!(newest, Status::INVALID_FIELD.0, "the error log has the last failure first");
    assert!(host.admin(log(9, 1).prp(data.at(0), 0)).is(Status::INVALID_LOG_PAGE));
}

#[test]
fn dma_needs_bus_mastering_and_a_fault_on_a_queue_is_fatal() {
    let mut host = Host::ram(1 << 20);
    let mut pair = host.create(1);
    host.device.set_bus_master(false).unwrap();
    Host::put(&mut pair, Entry::new(nvm::FLUSH, 1));
    host.ring(&pair);
    assert_eq!(host.registers.read32(offset::CSTS), 3, "CFS");
    assert_eq!((host.take(&mut pair), host.device.faults()), (None, 1));
    host.disable();
    host.enable();
    let mut pair = host.create(1);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
}

#[test]
fn enabling_needs_what_it_has() {
    let host = Host::ram(1 << 20);
    for (sizes, configuration) in
        [(0x0007_0000, 1), (0x0007_0007, 1 | 1 << 7), (0x0007_0007, 1 | 1 << 4), (7, 1)]
    {
        host.disable();
        host.registers.write32(offset::AQA, sizes);
        host.registers.write32(offset::CC, configuration);
        assert_eq!(host.registers.read32(offset::CSTS), 2);
    }
    host.disable();
    assert_eq!(host.registers.read32(offset::CSTS), 0);
}

#[test]
fn shutdown_completes() {
    let host = Host::ram(1 << 20);
    host.registers.write32(offset::CC, 1 | 6 << 16 | 4 << 20 | 1 << 14);
    host.wait_status(3 << 2, 2 << 2);
    host.disable();
}

/// Holds every I/O command while on; lies about aborts if told to.
#[derive(Default)]
struct Holder {
    on: AtomicBool,
    lies: AtomicBool,
}

impl Interposer for Holder {
    fn before(&self, queue: u16, _: &Sqe) -> Verdict {
        if queue > 0 && self.on.load(Ordering::Relaxed) { Verdict::Hold } else { Verdict::Run }
    }

    fn abort_lies(&self) -> bool {
        self.lies.load(Ordering::Relaxed)
    }
}

fn holding() -> (Host, Arc<Holder>) {
    let holder = Arc::new(Holder::default());
    let config = EmuConfig { queues: 2, ..EmuConfig::new(Arc::new(RamMedia::new(1 << 20).unwrap())) };
    let host = Host::new(EmuConfig { interposer: Some(holder.clone()), ..config });
    (host, holder)
}

#[test]
fn a_held_command_moves_its_data_when_released() {
    let (mut host, holder) = holding();
    let mut pair = host.create(1);
    let data = host.area(4096);
    data.fill(9);
    holder.on.store(true, Ordering::Relaxed);
    Host::put(&mut pair, io(nvm::READ, 0, 8).prp(data.at(0), 0));
    host.ring(&pair);
    assert_eq!((host.take(&mut pair), host.device.held(), data.read::<1>(0)), (None, 1, [9]));
    holder.on.store(false, Ordering::Relaxed);
    // Its identifier is taken.
    assert!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).is(Status::COMMAND_ID_CONFLICT));
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1).id(8)).status, 0);
    assert_eq!(host.device.release_held(), 1);
    assert_eq!(host.take(&mut pair).map(|ended| (ended.id, ended.status)), Some((7, 0)));
    assert_eq!(data.read::<4096>(0), [0; 4096]);
}

#[test]
fn an_abort_catches_a_held_command_or_only_says_so() {
    for lies in [false, true] {
        let (mut host, holder) = holding();
        holder.lies.store(lies, Ordering::Relaxed);
        let mut pair = host.create(1);
        let data = host.area(4096);
        data.fill(9);
        holder.on.store(true, Ordering::Relaxed);
        Host::put(&mut pair, io(nvm::READ, 0, 8).prp(data.at(0), 0));
        host.ring(&pair);
        assert_eq!(
            host.admin(Entry::new(admin::ABORT, 0).set(10, 7 << 16 | 1)).result,
            0,
            "aborted, it says"
        );
        if lies {
            assert_eq!((host.take(&mut pair), host.device.held()), (None, 1));
            assert_eq!(host.device.release_held(), 1);
            assert_eq!((host.take(&mut pair).unwrap().status, data.read::<1>(0)), (0, [0]));
        } else {
            assert!(host.take(&mut pair).unwrap().is(Status::ABORT_REQUESTED));
            assert_eq!((host.device.release_held(), data.read::<1>(0)), (0, [9]));
        }
    }
}

#[test]
fn nothing_held_survives_a_reset() {
    for how in 0..4 {
        let (mut host, holder) = holding();
        let mut pair = host.create(1);
        let data = host.area(4096);
        data.fill(9);
        holder.on.store(true, Ordering::Relaxed);
        Host::put(&mut pair, io(nvm::READ, 0, 8).prp(data.at(0), 0));
        host.ring(&pair);
        match how {
            0 => host.disable(),
            1 => host.device.reset().unwrap(),
            2 => assert_eq!(host.admin(Entry::new(admin::DELETE_IO_SQ, 0).set(10, 1)).status, 0),
            _ => host.device.power_cut(0),
        }
        assert_eq!((host.device.held(), host.device.release_held()), (0, 0));
        assert_eq!((host.take(&mut pair), data.read::<1>(0)), (None, [9]));
    }
}

/// Changes the first completion of queue 1 as told.
struct Liar(AtomicU8);

impl Interposer for Liar {
    fn completion(&self, posting: &mut Posting) {
        if posting.entry.sqid == 1 {
            match self.0.swap(0, Ordering::Relaxed) {
                1 => posting.copies = 0,
                2 => posting.copies = 2,
                3 => posting.entry.cid ^= 0x8000,
                4 => posting.wrong_phase = true,
                _ => {}
            }
        }
    }
}

#[test]
fn completions_can_be_made_to_lie() {
    for (lie, expected) in [(1, vec![2]), (2, vec![1, 1, 2]), (3, vec![0x8001, 2]), (4, vec![])] {
        let config = EmuConfig::new(Arc::new(RamMedia::new(1 << 20).unwrap()));
        let mut host =
            Host::new(EmuConfig { interposer: Some(Arc::new(Liar(AtomicU8::new(lie)))), ..config });
        let mut pair = host.create(1);
        Host::put(&mut pair, Entry::new(nvm::FLUSH, 1).id(1));
        Host::put(&mut pair, Entry::new(nvm::FLUSH, 1).id(2));
        host.ring(&pair);
        let ids: Vec<u16> = std::iter::from_fn(|| host.take(&mut pair).map(|ended| ended.id)).collect();
        assert_eq!(ids, expected);
    }
}

#[test]
fn interrupts_follow_ien_routing_and_mask() {
    let mut host = Host::ram(1 << 20);
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    let fds: Vec<OwnedFd> = (0..3).map(|_| rustix::event::eventfd(0, flags).unwrap()).collect();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
    host.device.route_interrupts(&borrowed).unwrap();
    let count = |at: usize| {
        let mut bytes = [0; 8];
        rustix::io::read(&fds[at], &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
    };
    let mut pair = host.create(1);
    assert_eq!((count(0), count(1)), (2, 0));
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    assert_eq!((count(0), count(1), count(2)), (0, 1, 0));
    // Masked, it stays silent, and tells at once when unmasked with something to take.
    host.registers.write32(offset::INTMS, 2);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    host.registers.write32(offset::INTMC, 2);
    assert_eq!(count(1), 0, "nothing waits");
    host.registers.write32(offset::INTMS, 2);
    Host::put(&mut pair, Entry::new(nvm::FLUSH, 1));
    host.ring(&pair);
    assert_eq!(count(1), 0);
    host.registers.write32(offset::INTMC, 2);
    assert_eq!(count(1), 1);
    // Not wanted, it costs no system call.
    host.registers.arm_interrupt(1, false);
    host.take(&mut pair).unwrap();
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    assert_eq!(count(1), 0);
    host.registers.arm_interrupt(1, true);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    assert_eq!(count(1), 1);
}

#[test]
fn features() {
    let mut host = Host::ram(1 << 20);
    let get = |feature: u32| Entry::new(admin::GET_FEATURES, 0).set(10, feature);
    let set = |feature: u32, value| Entry::new(admin::SET_FEATURES, 0).set(10, feature).set(11, value);
    assert_eq!(host.admin(get(7)).result, 1 << 16 | 1);
    assert!(host.admin(get(6)).is(Status::INVALID_FIELD), "memory has no volatile write cache");
    assert!(host.admin(set(6, 0)).is(Status::INVALID_FIELD));
    assert_eq!(host.admin(set(11, 0x1f)).status, 0);
    assert_eq!(host.admin(get(11)).result, 0x1f);
    assert!(host.admin(set(11 | 1 << 31, 1)).is(Status(0x10d)));
    assert!(host.admin(get(0x30)).is(Status::INVALID_FIELD));
    assert!(host.admin(get(7 | 1 << 8)).is(Status::INVALID_FIELD));
}

fn cached(block: usize) -> (Arc<RamMedia>, Arc<Cached<Arc<RamMedia>>>) {
    let ram = Arc::new(RamMedia::new(1 << 20).unwrap());
    let media = Arc::new(Cached::new(Arc::clone(&ram), block));
    (ram, media)
}

#[test]
fn a_power_cut_loses_some_of_what_was_not_flushed() {
    let (mut survived, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..40 {
        let (ram, media) = cached(4096);
        let mut host = Host::new(EmuConfig { block_size: 4096, ..EmuConfig::new(media.clone()) });
        let mut pair = host.create(1);
        let data = host.area(4096);
        data.fill(1);
        for lba in 0..8 {
            assert_eq!(host.run(&mut pair, io(nvm::WRITE, lba, 1).prp(data.at(0), 0)).status, 0);
        }
        assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
        data.fill(2);
        for lba in 4..12 {
            let fua = u32::from(lba == 4) << 30;
            let entry = io(nvm::WRITE, lba, 1).prp(data.at(0), 0);
            assert_eq!(host.run(&mut pair, entry.set(12, fua)).status, 0);
        }
        assert_eq!(media.unflushed(), 7);
        host.device.power_cut(seed);
        assert_eq!(host.registers.read32(offset::CSTS), u32::MAX);
        host.ring(&pair);
        drop(host);
        // The durable image, in a new device.
        let mut host = Host::new(EmuConfig { block_size: 4096, ..EmuConfig::new(ram) });
        let mut pair = host.create(1);
        let data = host.area(4096);
        for lba in 0..12u64 {
            assert_eq!(host.run(&mut pair, io(nvm::READ, lba, 1).prp(data.at(0), 0)).status, 0);
            let bytes = data.read::<4096>(0);
            let before = u8::from(lba < 8);
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            assert!(bytes.chunks(512).all(|sector| sector.iter().all(|&byte| byte == sector[0])));
            let whole = sectors.iter().all(|&byte| byte == sectors[0]);
            match lba {
                0..4 => assert!(whole && sectors[0] == 1),
                4 => assert!(whole && sectors[0] == 2, "FUA is durable"),
                _ => {
                    assert!(sectors.iter().all(|&byte| byte == before || byte == 2));
                    assert!(whole || lba == 11, "only the last may tear");
                    torn += usize::from(!whole);
                    survived += usize::from(whole && sectors[0] == 2);
                    lost += usize::from(whole && sectors[0] == before);
                }
            }
        }
    }
    assert!(survived > 50 && lost > 50 && torn > 5, "{survived} {lost} {torn}");
}

#[test]
fn a_disabled_cache_writes_through() {
    let (_, media) = cached(512);
    let mut host = Host::new(EmuConfig::new(media.clone()));
    let mut pair = host.create(1);
    let data = host.area(4096);
    let write = io(nvm::WRITE, 0, 1).prp(data.at(0), 0);
    assert_eq!(host.run(&mut pair, write).status, 0);
    assert_eq!(media.unflushed(), 1);
    assert_eq!(host.admin(Entry::new(admin::SET_FEATURES, 0).set(10, 6).set(11, 0)).status, 0);
    assert_eq!(media.unflushed(), 0);
    assert_eq!(host.run(&mut pair, write).status, 0);
    assert_eq!(media.unflushed(), 0);
}

#[test]
fn a_file_keeps_what_was_written_and_is_taken_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let media = Arc::new(FileMedia::create(&path, 1 << 20).unwrap());
    let mut host = Host::new(EmuConfig::new(media));
    let mut pair = host.create(1);
    let data = host.area(8192);
    data.fill(0x33);
    assert_eq!(host.run(&mut pair, io(nvm::WRITE, 5, 8).prp(data.at(8), data.at(4096)).id(1)).status, 0);
    assert_eq!(host.run(&mut pair, io(nvm::WRITE_ZEROES, 6, 1)).status, 0);
    assert_eq!(host.run(&mut pair, io(nvm::WRITE_ZEROES, 7, 1).set(12, 1 << 25)).status, 0);
    assert_eq!(host.run(&mut pair, Entry::new(nvm::FLUSH, 1)).status, 0);
    assert!(FileMedia::open(&path).is_err(), "another has it");
    // Asleep, the device's thread still hears a doorbell and a reset.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !host.registers.worker.asleep.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < end, "with nothing to do it goes to sleep");
        std::thread::yield_now();
    }
    assert_eq!(host.run(&mut pair, io(nvm::READ, 5, 3).prp(data.at(0), 0)).status, 0);
    assert_eq!((data.read::<512>(0), data.read::<1024>(512)), ([0x33; 512], [0; 1024]));
    host.disable();
    drop(host);
    let image = std::fs::read(&path).unwrap();
    assert_eq!(image.iter().filter(|&&byte| byte == 0x33).count(), 6 * 512);
    assert!(Emulator::file(&path, 4096).is_ok());
    std::fs::write(&path, [0; 4000]).unwrap();
    assert!(Emulator::file(&path, 512).is_err(), "not whole blocks");
}

#[test]
fn two_queues_from_two_threads() {
    let mut host = Host::ram(1 << 20);
    let pairs = [host.create(1), host.create(2)];
    let host = &host;
    std::thread::scope(|scope| {
        for mut pair in pairs {
            scope.spawn(move || {
                let data = host.area(4096);
                for round in 0..2000u32 {
                    let lba = u64::from(pair.id) * 512 + u64::from(round % 64) * 8;
                    data.fill((round % 251) as u8);
                    assert_eq!(host.run(&mut pair, io(nvm::WRITE, lba, 8).prp(data.at(0), 0)).status, 0);
                    data.fill(0xff);
                    assert_eq!(host.run(&mut pair, io(nvm::READ, lba, 8).prp(data.at(0), 0)).status, 0);
                    assert!(data.read::<4096>(0).iter().all(|&byte| byte == (round % 251) as u8));
                }
            });
        }
    });
    assert_eq!((host.device.commands(), host.device.faults()), (8000, 0));
}

#[test]
fn configurations_out_of_range_are_refused() {
    let media = || Arc::new(RamMedia::new(4096 * 3 + 512).unwrap());
    assert!(Emulator::new(EmuConfig::new(media())).is_ok());
    for config in [
        EmuConfig { block_size: 4096, ..EmuConfig::new(media()) },
        EmuConfig { block_size: 1024, ..EmuConfig::new(media()) },
        EmuConfig { queues: 0, ..EmuConfig::new(media()) },
        EmuConfig { queues: 65, ..EmuConfig::new(media()) },
        EmuConfig { entries: 1, ..EmuConfig::new(media()) },
        EmuConfig { transfer_shift: 0, ..EmuConfig::new(media()) },
    ] {
        assert!(Emulator::new(config).is_err());
    }
    assert!(RamMedia::new(0).is_err());
}
