//! No system call on the way: application thread and poller thread run under a filter that kills the process at the first
//! one (S5-R12, S6-R16, and S4-R1's second half).
#![allow(unsafe_code)] // prctl has no safe wrapper for a filter

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use adapter::poller::Idle;
use adapter::{Adapter, Options};
use portcullis::raw::RawQueue;
use portcullis::wire::control::{self, MAX_MESSAGE, Reply};
use portcullis::wire::frame::{decode_body, encode_body};
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, Request, Session, Status, Volume};

use super::{Case, PATIENCE, Rig, VOLUME, pattern};
use crate::process;

pub(super) const CASES: &[Case] = &[
    Case { name: "the_filter_kills", run: filter_kills },
    Case { name: "s4_r1_s5_r12_s6_r16_no_system_call_between_ring_and_completion", run: steady_loop },
];

/// Requests on the software device that most tests run on, and on any other.
const REQUESTS: [u64; 2] = [10_000_000, 100_000];
/// So often a question about the volume goes the same way.
const MANAGED: [u64; 2] = [320, 32];
/// At a time.
const DEPTH: usize = 16;
/// Bytes of each.
const BYTES: usize = 512;

/// Kills the whole process at this thread's next system call, whichever it is.
fn forbid_system_calls() {
    let instruction = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_KILL_PROCESS };
    let mut program = [instruction];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program during the call; both arguments outlive it.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) != 0
    };
    assert!(!refused, "seccomp: {}", std::io::Error::last_os_error());
}

fn filter_kills(_: &Rig) {
    let status = process::Role::FilteredCall.spawn("", "").wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSYS), "{status}");
}

/// One system call under the filter, in a process of its own.
pub fn one_call() {
    forbid_system_calls();
    let _ = rustix::process::getppid();
}

fn steady_loop(rig: &Rig) {
    let others = !rig.is_software() || rig.is_virtio();
    let requests = REQUESTS[usize::from(others)];
    let mut child = process::Role::SteadyLoop.spawn(&rig.device.to_string(), &requests.to_string());
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}; SIGSYS is a system call");
}

/// In a process of its own: an adapter with one poller, and an application, each on a thread
/// under the filter.
pub fn steady(device: &str, requests: &str) {
    let requests: u64 = requests.parse().unwrap();
    let rig = Rig::new(device).unwrap();
    let pollers = Arc::new(AtomicU32::new(0));
    let confined = pollers.clone();
    let options = Options {
        idle: Idle::Spin,
        poller_started: Some(Arc::new(move || {
            confined.fetch_add(1, Ordering::Relaxed);
            forbid_system_calls();
        })),
        ..rig.options()
    };
    let adapter = Adapter::start(&options, &rig.socket()).unwrap();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", VOLUME).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let counted = done.clone();
    std::thread::spawn(move || application(&session, requests, &counted));
    let mut before = 0;
    let mut since = std::time::Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = done.load(Ordering::Acquire);
        if now >= requests {
            break;
        }
        if now != before {
            (before, since) = (now, std::time::Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{now} of {requests} requests, and no more");
    }
    assert_eq!(pollers.load(Ordering::Relaxed), 1);
    println!("{requests} requests, management requests among them, no system call");
    // The confined threads cannot even end: the process goes with them.
    std::process::exit(0);
}

/// Writes and reads back, `requests` in all, and verifies every byte; then spins until the process ends.
fn application(session: &Session, requests: u64, done: &AtomicU64) {
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut desk = Desk::new(session, &volume);
    let every = requests / MANAGED[usize::from(requests != REQUESTS[0])];
    let mut next = 0;
    let mut queue = session.queue(DEPTH as u32 * 2).unwrap();
    let mut buffers: Vec<_> = (0..DEPTH).map(|_| Some(session.buffer(BYTES).unwrap())).collect();
    let patterns: Vec<Vec<u8>> = (0..64).map(|seed| pattern(seed, BYTES)).collect();
    let mut tickets: Vec<_> = (0..DEPTH).map(|_| None).collect();
    forbid_system_calls();
    let (mut round, mut count) = (0usize, 0u64);
    while count < requests {
        if count >= next {
            desk.ask();
            next += every;
        }
        for reading in [false, true] {
            for (i, slot) in buffers.iter_mut().enumerate() {
                let mut buffer = slot.take().unwrap();
                let offset = ((round * DEPTH + i) * BYTES) as u64 % VOLUME;
                let request = if reading {
                    buffer.fill(0);
                    Request::read(&volume, offset, buffer)
                } else {
                    buffer.copy_from_slice(&patterns[(round + i) % patterns.len()]);
                    Request::write(&volume, offset, buffer)
                };
                tickets[i] = Some(queue.prepare(request).ok().unwrap());
            }
            queue.ring().unwrap();
            let mut left = DEPTH;
            while left > 0 {
                let Some(completion) = queue.poll().unwrap() else { continue };
                assert!(completion.result.is_ok());
                let i = tickets.iter().position(|t| *t == Some(completion.ticket)).unwrap();
                let buffer = completion.buffer.unwrap();
                assert!(!reading || buffer[..] == patterns[(round + i) % patterns.len()][..]);
                buffers[i] = Some(buffer);
                left -= 1;
            }
            count += DEPTH as u64;
            done.store(count, Ordering::Release);
        }
        round += 1;
    }
    until_the_process_ends();
}

/// Asks about a volume by a queue of its own.
struct Desk {
    raw: RawQueue,
    memory: portcullis::Buffer,
    question: control::Request,
    key: u64,
}

impl Desk {
    fn new(session: &Session, volume: &Volume) -> Self {
        let raw = RawQueue::create(session, 2).unwrap();
        let memory = session.buffer(MAX_MESSAGE).unwrap();
        Self { raw, memory, question: control::Request::Query { key: volume.key() }, key: volume.key() }
    }

    fn ask(&mut self) {
        let length = encode_body(&self.question, &mut self.memory).unwrap();
        let entry = SubmissionEntry {
            opcode: opcode::MANAGE,
            offset: MAX_MESSAGE as u64,
            length: length as u32,
            region: self.memory.region(),
            region_offset: self.memory.region_offset(),
            ..SubmissionEntry::default()
        };
        self.raw.push(&entry).unwrap();
        self.raw.ring().unwrap();
        let done = loop {
            if let Some(done) = self.raw.poll() {
                break done;
            }
            std::hint::spin_loop();
        };
        assert_eq!(Status(done.status), Status::OK);
        let reply = decode_body(&self.memory[..done.bytes as usize]).unwrap();
        assert!(matches!(reply, Reply::Grant(grant) if grant.key == self.key));
    }
}

fn until_the_process_ends() -> ! {
    loop {
        std::hint::spin_loop();
    }
}
