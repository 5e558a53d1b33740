//! An application that attacks the memory of its own regions and queues while the adapter uses it: whatever it does, the
//! adapter meets no SIGBUS, its pollers no page fault, and everybody else their own data.
#![allow(unsafe_code)] // the attacks are system calls on raw mappings

mod foreign;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use driver::dice::Dice;
use portcullis::raw::RawQueue;
use portcullis::wire::control::{Reply, Request};
use portcullis::wire::doorbell::Bell;
use portcullis::wire::layout::{Entries, ScatterSegment, SubmissionEntry, flag, opcode};
use portcullis::wire::ring::ApplicationEnd;
use portcullis::wire::shm::SharedMemory;
use portcullis::wire::view::QueueView;
use portcullis::{Access, Session, Status};

use super::{Case, Client, Rig, VOLUME, pattern};
use crate::process::{Actor, Role, say, wait_for_go};
use crate::scale::{counted, often, seed};

pub(super) const CASES: &[Case] = &[
    Case { name: "no_attack_on_its_own_memory_reaches_beyond_the_attacker", run: attacked },
    Case { name: "memory_made_huge_costs_a_poller_one_fault_at_most", run: made_huge },
];

/// Rounds before the fault counts have to stand still.
const WARM_UP: u64 = 10;
/// Rounds of one attacker; then it dies in the middle, and another comes.
const LIFE: u64 = 50;

fn attacked(rig: &Rig) {
    let adapter = rig.isolated();
    let mut bystander = Client::create(Session::connect(adapter.socket()).unwrap(), "bystander");
    let mut queue = bystander.session.queue(8).unwrap();
    Session::connect(adapter.socket()).unwrap().create_volume("v", VOLUME).unwrap();
    let seed = seed(1);
    let rounds: u64 = often(40, 1000);
    let mut attacker: Option<Actor> = None;
    let mut faults = Vec::new();
    let mut attacks = 0;
    for round in 0..WARM_UP + rounds {
        if round == WARM_UP {
            faults = poller_faults();
            assert!(!faults.is_empty(), "the pollers are found");
        }
        if round % LIFE == 0 {
            // The last one goes by SIGKILL with whatever it has.
            attacker =
                Some(Actor::start(Role::MemoryAttacker, adapter.socket(), &format!("{}", seed + round)));
            assert_eq!(attacker.as_mut().unwrap().line(), "ready");
        }
        let attacker = attacker.as_mut().unwrap();
        attacker.go();
        let data = pattern(round as u32, 64 << 10);
        let at = (round % 32) * (64 << 10);
        queue.write_at(&bystander.volume, at, &data).unwrap();
        let mut read = vec![0; data.len()];
        queue.read_at(&bystander.volume, at, &mut read).unwrap();
        assert!(read == data, "round {round}: the bystander reads what it did not write");
        let line = attacker.line();
        let done = line.strip_prefix("done ").unwrap_or_else(|| panic!("round {round} ended with {line:?}"));
        attacks += done.parse::<u64>().unwrap();
        assert_eq!(bystander.status(&bystander.request(opcode::READ)), Status::OK);
        if round >= WARM_UP {
            assert_eq!(poller_faults(), faults, "round {round}: a poller met a page fault");
        }
    }
    drop(attacker);
    println!("{attacks} attacks in {} rounds", rounds + WARM_UP);
    counted(rounds, "rounds of memory attacks");
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Pages that become a huge page are other pages, also for the adapter, unless the device keeps them where they are. That
/// costs a poller a minor fault when it next looks there, and no more: a huge page cannot be taken apart again.
fn made_huge(rig: &Rig) {
    let adapter = rig.isolated();
    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let (memory, fd) = SharedMemory::create("huge", HUGE).unwrap();
    let request = Request::RegisterMemory { length: HUGE as u64, access: 3 };
    let (reply, _) = client.session.call(&request, &[fd.as_fd()]).unwrap();
    let Reply::Region { region } = reply else { panic!("{reply:?}") };
    scatter_list(&memory, region);
    let mut entry = client.request(opcode::WRITE);
    (entry.region, entry.flags, entry.scatter_count, entry.length) = (region, flag::SCATTER, 2, 1024);
    let mut look = |times: usize| {
        for _ in 0..times {
            assert_eq!(client.status(&entry), Status::OK);
        }
        poller_faults()
    };
    let faults =
        |counts: &[(String, u64, u64)]| counts.iter().map(|(_, minor, major)| minor + major).sum::<u64>();
    let before = look(100);
    assert_eq!(look(100), before);
    // SAFETY: reserves addresses, and maps the file at a multiple of its size among them; nothing else is there.
    let made = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let room = libc::mmap(std::ptr::null_mut(), 2 * HUGE, libc::PROT_NONE, flags, -1, 0);
        let at = room.map_addr(|at| at.next_multiple_of(HUGE));
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        assert_eq!(libc::mmap(at, HUGE, libc::PROT_READ, flags, fd.as_raw_fd(), 0), at);
        libc::madvise(at, HUGE, libc::MADV_POPULATE_READ);
        let made = libc::madvise(at, HUGE, MADV_COLLAPSE) == 0;
        libc::munmap(room, 2 * HUGE);
        made
    };
    let after = look(100);
    println!("huge: {made}, faults: {} and {}", faults(&before), faults(&after));
    assert!(faults(&after) <= faults(&before) + 1, "{before:?}, then {after:?}");
    assert_eq!(look(100), after);
}

/// Of each poller: its thread, and its page faults, minor and major: proc(5), `/proc/pid/stat`.
fn poller_faults() -> Vec<(String, u64, u64)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut faults: Vec<_> = tasks
        .filter(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.starts_with("portcullis-poll")
        })
        .map(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap();
            // The name in brackets may have blanks; after it the state is the third field.
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            let field = |number: usize| fields[number - 3].parse().unwrap();
            (task.file_name().into_string().unwrap(), field(10), field(12))
        })
        .collect();
    faults.sort();
    faults
}

/// The attacker's process: a round at each word.
pub fn play(socket: &Path, seed: &str) {
    let mut dice = Dice(seed.parse().unwrap());
    let session = Session::connect(socket).unwrap();
    let mut client = Client::open(session, "v", Access::READ_WRITE);
    say("ready");
    loop {
        wait_for_go();
        let attacks = round(&mut client, &mut dice);
        say(&format!("done {attacks}"));
    }
}

/// Memory of the attacker's own, with the descriptor, and whether its mapping is what it was.
struct Target {
    start: *mut u8,
    bytes: usize,
    fd: OwnedFd,
    /// Something else may lie there by now.
    moved: bool,
}

impl Target {
    /// Takes the mapping out of the hands of those who would use it or unmap it.
    fn new(memory: &SharedMemory, fd: OwnedFd) -> Self {
        Self { start: memory.start(), bytes: memory.len(), fd, moved: false }
    }
}

fn round(client: &mut Client, dice: &mut Dice) -> u64 {
    let mut attacks = foreign::offer(&client.session, dice);
    // Less than a huge page: what making one costs is looked at by itself.
    let pages = [1, 2, 16, 64, 128, 256][dice.index(6)];
    let (memory, fd) = SharedMemory::create("attacked", pages * 4096).unwrap();
    let memory = std::mem::ManuallyDrop::new(memory);
    let Some(region) = register(&client.session, &memory, &fd, dice) else { return attacks };
    scatter_list(&memory, region);
    let mut target = Target::new(&memory, fd);

    load(&mut client.raw, &client.volume, region, pages as u32, dice);
    for _ in 0..dice.below(12) {
        attack(&mut target, dice);
        attacks += 1;
        load(&mut client.raw, &client.volume, region, pages as u32, dice);
        while client.raw.poll().is_some() {}
    }
    attacks += attack_queue(client, region, dice);
    if dice.chance(70) {
        let _ = client.session.call(&Request::ReleaseMemory { region }, &[]).unwrap();
    }
    if !target.moved {
        // SAFETY: nobody has used the mapping since it became a target, and nothing else was put there.
        unsafe { libc::munmap(target.start.cast(), target.bytes) };
    }
    attacks
}

/// Registers memory, sometimes while another thread does its best to change it meanwhile.
fn register(session: &Session, memory: &SharedMemory, fd: &OwnedFd, dice: &mut Dice) -> Option<u64> {
    let request = Request::RegisterMemory { length: memory.len() as u64, access: 3 };
    let racing = dice.chance(30);
    let stop = AtomicBool::new(!racing);
    let mut racer = Dice(dice.number());
    let reply = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                attack_file(fd.as_fd(), memory.len(), &mut racer);
            }
        });
        let (reply, _) = session.call(&request, &[fd.as_fd()]).unwrap();
        stop.store(true, Ordering::Relaxed);
        reply
    });
    match reply {
        Reply::Region { region } => Some(region),
        // Sealed too early by its own racer, or of another size: told so.
        Reply::Error { status: Status::E_LOCAL_MEM | Status::E_NO_RESOURCES, .. } => None,
        other => panic!("{other:?}"),
    }
}

/// A list of two pieces at the start of the memory, for requests that the poller itself reads it for.
fn scatter_list(memory: &SharedMemory, region: u64) {
    let piece = |offset| ScatterSegment { region, offset, length: 512, reserved: 0 };
    for (i, piece) in [piece(0), piece(512)].into_iter().enumerate() {
        let words = [piece.region, piece.offset, u64::from(piece.length)];
        for (j, word) in words.into_iter().enumerate() {
            let at = i * size_of::<ScatterSegment>() + j * 8;
            memory.atomic_u64(at).unwrap().store(word, Ordering::Relaxed);
        }
    }
}

/// Has the device and the poller read and write the memory.
fn load(raw: &mut RawQueue, volume: &portcullis::Volume, region: u64, pages: u32, dice: &mut Dice) {
    for _ in 0..8 {
        let mut entry = SubmissionEntry {
            opcode: [opcode::READ, opcode::WRITE, opcode::WRITE_BYTES][dice.index(3)],
            key: volume.key(),
            offset: dice.below(VOLUME / 4096) * 4096,
            length: 4096,
            region,
            region_offset: dice.below(u64::from(pages)) * 4096,
            ..SubmissionEntry::default()
        };
        if dice.chance(30) {
            (entry.opcode, entry.flags, entry.scatter_count) = (opcode::WRITE, flag::SCATTER, 2);
            (entry.region_offset, entry.length) = (0, 1024);
        } else if entry.opcode == opcode::WRITE_BYTES {
            (entry.offset, entry.length) = (entry.offset + 1, 100);
        }
        if raw.push(&entry).is_err() {
            break;
        }
    }
    raw.ring().unwrap();
}

/// A queue of its own, whose memory is attacked while requests are in it.
fn attack_queue(client: &Client, region: u64, dice: &mut Dice) -> u64 {
    let entries = Entries::new([2, 16, 256][dice.index(3)]).unwrap();
    let (memory, fd) = SharedMemory::create("attacked-queue", entries.bytes()).unwrap();
    let view = QueueView::create(Arc::new(memory), entries).unwrap();
    let mut end = ApplicationEnd::new(view, entries);
    let request = Request::CreateQueue { entries: entries.get() };
    let (reply, mut bells) = client.session.call(&request, &[fd.as_fd()]).unwrap();
    let queue = match reply {
        Reply::Queue { queue } => queue,
        // Some of its queues it keeps, and it may have only so many.
        Reply::Error { status: Status::E_NO_RESOURCES, .. } => return 0,
        other => panic!("{other:?}"),
    };
    let bell = Bell::adopt(bells.pop().unwrap()).unwrap();
    let read = SubmissionEntry { region, ..client.request(opcode::READ) };
    while end.push(&read).is_ok() {}
    if end.ring() {
        bell.ring().unwrap();
    }
    let mut target = Target::new(end.memory().memory(), fd);
    let count = dice.below(8);
    (0..count).for_each(|_| attack(&mut target, dice));
    if dice.chance(80) {
        client.session.call(&Request::DestroyQueue { queue }, &[]).unwrap();
    }
    if target.moved {
        std::mem::forget(end); // Something else may lie where it would unmap.
    }
    count
}

/// One attack on memory, through its descriptor or its mapping. Nobody touches the mapping afterwards.
fn attack(target: &mut Target, dice: &mut Dice) {
    if dice.chance(35) {
        return attack_file(target.fd.as_fd(), target.bytes, dice);
    }
    if target.moved {
        return;
    }
    let (start, bytes) = (target.start.cast::<libc::c_void>(), target.bytes);
    let part = (dice.below((bytes / 4096) as u64 + 1) as usize * 4096).max(4096);
    // SAFETY: the mapping is this target's alone; nobody looks at it from here on, and where it is no longer there
    // afterwards, `moved` says so.
    unsafe {
        match dice.below(6) {
            0 => {
                libc::mprotect(start, part, [libc::PROT_NONE, libc::PROT_READ][dice.index(2)]);
            }
            1 => {
                libc::munmap(start, part);
                target.moved = true;
            }
            2 => {
                libc::mremap(start, bytes, bytes * 2, libc::MREMAP_MAYMOVE);
                target.moved = true;
            }
            3 => {
                let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(start, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            }
            4 => fork(),
            _ => {
                let advice = ADVICE[dice.index(ADVICE.len())];
                libc::madvise(start, part, advice);
            }
        }
    }
}

/// MADV_* of linux/mman.h that take pages away, move them, or change what they are.
const ADVICE: [libc::c_int; 13] = [
    libc::MADV_DONTNEED,
    libc::MADV_REMOVE,
    libc::MADV_FREE,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    libc::MADV_MERGEABLE,
    libc::MADV_POPULATE_READ,
    MADV_DONTNEED_LOCKED,
    MADV_COLLAPSE,
];
/// Of linux/mman.h.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;
const MADV_COLLAPSE: libc::c_int = 25;

/// A child with the same memory, which ends at once.
fn fork() {
    // SAFETY: the child does nothing but end.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

/// One attack through the descriptor.
fn attack_file(fd: BorrowedFd<'_>, bytes: usize, dice: &mut Dice) {
    let number = fd.as_raw_fd();
    let length = bytes as libc::off_t;
    // SAFETY: calls on a descriptor; no pointer but to strings and buffers that outlive them.
    unsafe {
        match dice.below(8) {
            0 => drop(libc::fallocate(
                number,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                0,
                length,
            )),
            1 => drop(libc::fallocate(number, libc::FALLOC_FL_ZERO_RANGE, 0, length)),
            2 => drop(libc::fallocate(number, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)),
            3 => drop(libc::ftruncate(number, [0, 4096, length * 2, length - 4096][dice.index(4)])),
            4 => {
                // Those that the adapter sets itself, one by one; all of them would end the round early.
                let seals = [libc::F_SEAL_SHRINK, libc::F_SEAL_GROW, libc::F_SEAL_FUTURE_WRITE];
                libc::fcntl(number, libc::F_ADD_SEALS, seals[dice.index(3)]);
            }
            5 => drop(libc::pwrite(number, [7u8; 64].as_ptr().cast(), 64, 0)),
            6 => {
                // Opened anew, emptied on the way.
                let path = format!("/proc/self/fd/{number}\0");
                let again = libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_TRUNC);
                if again >= 0 {
                    libc::close(again);
                }
            }
            _ => {
                let flags = libc::MAP_SHARED;
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let at = libc::mmap(std::ptr::null_mut(), bytes, access, flags, number, 0);
                if at != libc::MAP_FAILED {
                    libc::madvise(at, bytes, libc::MADV_REMOVE);
                    libc::munmap(at, bytes);
                }
            }
        }
    }
}
