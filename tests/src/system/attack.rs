//! Applications that break the rules of the queue.

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Status, raw::RawQueue};

use crate::process::Role;

use super::{Case, Client, PATIENCE, Rig, VOLUME, pattern, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "s5_r4_r15_doorbell_overrun", run: overrun },
    Case { name: "s5_r5_a_doorbell_of_nothing", run: nothing },
    Case { name: "s4_r6_keys_and_memory_of_others", run: foreign },
    Case { name: "the_racing_rewriter_reaches_nothing", run: rewriter },
    Case { name: "a_client_that_never_consumes_stops_only_itself", run: never_consumes },
    Case { name: "s6_r15_a_killed_application_leaves_nothing", run: killed },
];

/// Mid-copy changes that the rewriter must have caused.
const TORN_WANTED: u64 = 1000;

fn overrun(rig: &Rig) {
    let adapter = rig.isolated();
    let session = portcullis::Session::connect(adapter.socket()).unwrap();
    let mut client = Client::create(session, "v");
    for far in [17, 1000, u32::MAX / 2, u32::MAX] {
        let mut raw = RawQueue::create(&client.session, 16).unwrap();
        raw.push(&client.request(opcode::READ)).unwrap();
        raw.store_tail(far).unwrap();
        until("the queue goes to the error state", || raw.is_down());
        assert!(raw.poll().is_none(), "no stale slot was executed for a tail of {far}");
    }
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK, "other queues did not notice");
    assert_eq!(client.session.statistics().unwrap().queue_errors, 4);
}

fn nothing(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    for _ in 0..10 {
        client.raw.ring().unwrap();
        assert!(client.raw.poll().is_none());
    }
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
}

fn foreign(rig: &Rig) {
    let adapter = rig.embedded();
    let mut bob = Client::create(adapter.session().unwrap(), "bob");
    let mut alice = Client::create(adapter.session().unwrap(), "alice");
    let mut entry = alice.request(opcode::WRITE);
    entry.key = bob.volume.key();
    assert_eq!(alice.status(&entry), Status::E_PD_MISMATCH);
    let mut entry = alice.request(opcode::READ);
    entry.region = bob.memory.key();
    assert_eq!(alice.status(&entry), Status::E_LOCAL_MEM);
    for (offset, length) in [(256 << 10, 512), (u64::MAX - 511, 512), ((256 << 10) - 512, 1024), (2, 512)] {
        let mut entry = alice.request(opcode::READ);
        (entry.region_offset, entry.length) = (offset, length);
        assert_eq!(alice.status(&entry), Status::E_LOCAL_MEM, "{length} bytes at {offset} of the region");
    }
    assert_eq!(bob.status(&bob.request(opcode::READ)), Status::OK);
}

/// A second thread flips fields of entries while the adapter copies them. Whatever mixture is copied is checked as it was
/// copied: nothing but OK on own blocks or a refusal comes of it, and nobody else's blocks change.
fn rewriter(rig: &Rig) {
    let adapter = rig.embedded();
    let victim = Client::create(adapter.session().unwrap(), "victim");
    let mut queue = victim.session.queue(8).unwrap();
    let treasure = pattern(77, VOLUME as usize);
    queue.write_at(&victim.volume, 0, &treasure).unwrap();

    let client = Client::create(adapter.session().unwrap(), "attacker");
    let own = SubmissionEntry { user_data: 0xaaaa, ..client.request(opcode::WRITE) };
    let foreign = SubmissionEntry { user_data: 0x5555, key: victim.volume.key(), offset: 1 << 40, ..own };
    let mut raw = RawQueue::create(&client.session, 2).unwrap();
    let scribbler = raw.scribbler();
    (0..2).for_each(|slot| scribbler.overwrite(slot, &own));
    let stop = AtomicBool::new(false);
    let (mut torn, mut answered) = (0u64, 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for slot in 0..2 {
                    scribbler.overwrite(slot, &foreign);
                    scribbler.overwrite(slot, &own);
                }
            }
        });
        let end = Instant::now() + PATIENCE;
        let mut tail = 0u32;
        while torn < TORN_WANTED && Instant::now() < end {
            // Announces a slot without writing it: the other thread has it under its pen.
            tail = tail.wrapping_add(1);
            raw.store_tail(tail).unwrap();
            let done = loop {
                if let Some(done) = raw.poll() {
                    break done;
                }
            };
            answered += 1;
            let whole = match Status(done.status) {
                Status::OK => done.user_data == own.user_data,
                Status::E_BOUNDS => false, // the own key with the foreign offset
                Status::E_PD_MISMATCH => done.user_data == foreign.user_data,
                other => panic!("an entry that was rewritten ended with {other}"),
            };
            torn += u64::from(!whole);
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{torn} of {answered} entries were copied half rewritten");
    assert!(torn >= TORN_WANTED, "only {torn} of {answered} entries were caught half rewritten");
    let mut read = vec![0; treasure.len()];
    queue.read_at(&victim.volume, 0, &mut read).unwrap();
    assert!(read == treasure, "the victim's blocks changed");
}

fn never_consumes(rig: &Rig) {
    let adapter = rig.isolated();
    let connect = || portcullis::Session::connect(adapter.socket()).unwrap();
    let silent = Client::create(connect(), "silent");
    let mut other = Client::create(connect(), "other");
    let mut raw = RawQueue::create(&silent.session, 4).unwrap();
    let entry = silent.request(opcode::READ);
    for slot in 0..4 {
        raw.overwrite(slot, &entry);
    }
    raw.store_tail(4).unwrap();
    for _ in 0..100 {
        assert_eq!(other.status(&other.request(opcode::READ)), Status::OK);
    }
    raw.store_tail(8).unwrap();
    for _ in 0..100 {
        assert_eq!(other.status(&other.request(opcode::READ)), Status::OK);
    }
    assert!(!raw.is_down(), "silence is no violation");
    let mut answered = 0;
    while raw.wait(Duration::from_secs(5)).unwrap().is_some() {
        answered += 1;
        if answered == 4 {
            break;
        }
    }
    assert_eq!(answered, 4, "one for each completion slot");
}

fn killed(rig: &Rig) {
    let adapter = rig.isolated();
    let connect = || portcullis::Session::connect(adapter.socket()).unwrap();
    let admin = connect();
    admin.create_volume("v", VOLUME).unwrap();
    let before = admin.statistics().unwrap();
    let rounds = if rig.is_software() { 50 } else { 10 };
    for _ in 0..rounds {
        let mut victim = Role::Victim.spawn(adapter.socket().to_str().unwrap(), "");
        let mut ready = String::new();
        BufReader::new(victim.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        // In the middle of its work, with nothing given back in order.
        let completed = admin.statistics().unwrap().completed;
        until("the victim works", || admin.statistics().unwrap().completed > completed + 100);
        victim.kill().unwrap();
        victim.wait().unwrap();
        until("what the victim held is free", || {
            let now = admin.statistics().unwrap();
            now.sessions.len() == 1
                && (now.entries, now.regions, now.pinned_bytes, now.mappings)
                    == (before.entries, before.regions, before.pinned_bytes, before.mappings)
        });
    }
}
