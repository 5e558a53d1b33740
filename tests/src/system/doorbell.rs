//! The doorbell: exactly what was rung is processed, and nobody rings for somebody else.
#![allow(unsafe_code)] // one store to where another process has its doorbell, which is meant to fault

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Session, Status, raw::RawQueue};

use super::{Case, Client, PATIENCE, Rig};
use crate::process::Role;

pub(super) const CASES: &[Case] = &[
    Case { name: "s5_r1_s5_r3_exactly_what_was_rung_is_processed", run: rung },
    Case { name: "s5_r2_two_doorbells_add_up_and_each_request_ends_once", run: twice },
    Case { name: "s5_r14_a_doorbell_of_another_process_faults", run: foreign },
];

/// Entries of the queues here.
const ENTRIES: u32 = 16;

/// Writes so many requests, numbered from `first`, and rings for none.
fn write(client: &Client, raw: &mut RawQueue, first: u64, count: u32) {
    for user_data in (first..).take(count as usize) {
        raw.push(&SubmissionEntry { user_data, ..client.request(opcode::READ) }).unwrap();
    }
}

/// Takes so many completions, each of another request, and sees that there is none more.
fn take(client: &mut Client, raw: &mut RawQueue, first: u64, count: u32) {
    let mut ended = BTreeSet::new();
    for _ in 0..count {
        let done = raw.wait(PATIENCE).unwrap().expect("a completion in time");
        assert_eq!(Status(done.status), Status::OK);
        assert!(ended.insert(done.user_data), "request {} ended twice", done.user_data);
    }
    assert!(ended.into_iter().eq((first..).take(count as usize)), "others than those that were rung");
    nothing_more(client, raw);
}

/// What another queue asks for later ends, and nothing of this one.
fn nothing_more(client: &mut Client, raw: &mut RawQueue) {
    for _ in 0..20 {
        assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
        assert!(raw.poll().is_none(), "more was processed than rung");
    }
}

fn rung(rig: &Rig) {
    let adapter = rig.isolated();
    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let mut raw = RawQueue::create(&client.session, ENTRIES).unwrap();
    let mut first = 0;
    for count in (1..=ENTRIES).chain([1, ENTRIES, 7]) {
        write(&client, &mut raw, first, count);
        nothing_more(&mut client, &mut raw);
        raw.ring().unwrap();
        take(&mut client, &mut raw, first, count);
        first += u64::from(count);
    }
}

fn twice(rig: &Rig) {
    // Turned by who waits: so both doorbells come before anything is fetched.
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let mut raw = RawQueue::create(&client.session, ENTRIES).unwrap();
    for round in 0..10 {
        write(&client, &mut raw, round * 8, 3);
        raw.store_tail((round as u32) * 8 + 3).unwrap();
        write(&client, &mut raw, round * 8 + 3, 5);
        raw.store_tail((round as u32) * 8 + 8).unwrap();
        take(&mut client, &mut raw, round * 8, 8);
    }
}

/// Where this process has queues' memory.
fn doorbells() -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let queues = maps.lines().filter(|line| line.contains("/memfd:portcullis-queue"));
    queues.map(|line| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()).collect()
}

/// In a process of its own: stores to an address at which only another process has something.
pub(crate) fn ring_foreign(address: &str) {
    let address: usize = address.parse().unwrap();
    // By chance there may be something else of ours.
    let own = std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| {
        let range = line.split(' ').next().unwrap().split_once('-').unwrap();
        let bounds = [range.0, range.1].map(|end| usize::from_str_radix(end, 16).unwrap());
        (bounds[0]..bounds[1]).contains(&address)
    });
    if own {
        std::process::exit(3);
    }
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    );
    // SAFETY: nothing is mapped there, as was just seen, and this process has one thread: the store faults and ends it.
    unsafe { std::ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(1) };
    std::process::exit(0);
}

fn foreign(rig: &Rig) {
    let adapter = rig.isolated();
    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let mut raw = RawQueue::create(&client.session, ENTRIES).unwrap();
    write(&client, &mut raw, 0, 1);
    let mut faulted = 0;
    for address in doorbells() {
        for _ in 0..4 {
            let status = Role::ForeignDoorbell.spawn(&address.to_string(), "").wait().unwrap();
            if status.code() != Some(3) {
                assert_eq!(status.signal(), Some(libc::SIGSEGV), "it rang: {status}");
                faulted += 1;
                break;
            }
        }
    }
    assert!(faulted > 0, "nobody tried");
    nothing_more(&mut client, &mut raw);
    assert_eq!(client.session.statistics().unwrap().queue_errors, 0);
    raw.ring().unwrap();
    take(&mut client, &mut raw, 0, 1);
}
