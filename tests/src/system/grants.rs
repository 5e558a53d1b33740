//! Grants: what is allowed works, everything else is refused with the exact reason.

use std::sync::atomic::{AtomicBool, Ordering};

use portcullis::wire::layout::{flag, opcode};
use portcullis::{Access, Session, Status};

use super::{Case, Client, Rig, VOLUME, pattern};

pub(super) const CASES: &[Case] = &[
    Case { name: "s4_r1_what_was_written_is_read", run: round_trip },
    Case { name: "s4_r5_every_access_value_and_operation", run: access_table },
    Case { name: "s4_r7_bounds_and_alignment", run: bounds },
    Case { name: "s4_r11_s8_r6_a_stale_key_stays_stale", run: stale },
    Case { name: "s4_r13_the_earliest_failing_check_decides", run: earliest },
    Case { name: "s4_r15_two_sessions_never_see_each_others_data", run: two_at_once },
    Case { name: "s8_r13_guessed_keys_resolve_to_nothing", run: guesses },
];

fn round_trip(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    session.create_volume("v", VOLUME).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(32).unwrap();
    let block = volume.block_size() as usize;
    for (seed, (offset, bytes)) in
        [(0, block), (block, 3 * block), (4096 * 3, 64 << 10), (0, 1 << 20), (VOLUME as usize - block, block)]
            .into_iter()
            .enumerate()
    {
        let written = pattern(seed as u32, bytes);
        queue.write_at(&volume, offset as u64, &written).unwrap();
        let mut read = vec![0; bytes];
        queue.read_at(&volume, offset as u64, &mut read).unwrap();
        assert!(read == written, "{bytes} bytes at {offset}");
    }
    queue.flush(&volume).unwrap();
}

fn access_table(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = Client::create(adapter.session().unwrap(), "v");
    let operations = [
        (opcode::READ, 0, Access::READ),
        (opcode::COMPARE, 0, Access::READ),
        (opcode::WRITE, 0, Access::WRITE),
        (opcode::WRITE, flag::FUA, Access::WRITE),
        (opcode::FLUSH, 0, Access::WRITE),
        (opcode::WRITE_ZEROES, 0, Access::WRITE),
        (opcode::WRITE_ZEROES, flag::DEALLOCATE, Access::WRITE | Access::TRIM),
        (opcode::DEALLOCATE, 0, Access::TRIM),
    ];
    for bits in 1..=7 {
        let access = Access::from_bits(bits).unwrap();
        let mut client = Client::open(owner.session.clone(), "v", access);
        for (code, flags, needed) in operations {
            let mut entry = client.request(code);
            entry.flags = flags;
            if code == opcode::FLUSH {
                entry.length = 0;
            }
            let status = client.status(&entry);
            let expected = if !access.allows(needed) {
                [Status::E_ACCESS; 2]
            } else if code == opcode::COMPARE {
                [rig.compared(), Status::E_MISCOMPARE]
            } else {
                [Status::OK; 2]
            };
            assert!(expected.contains(&status), "opcode {code} flags {flags} under {access}: {status}");
        }
    }
}

fn bounds(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let block = u64::from(client.volume.block_size());
    let cases = [
        (VOLUME, block, Status::E_BOUNDS),
        (VOLUME - block, 2 * block, Status::E_BOUNDS),
        (u64::MAX - block + 1, block, Status::E_BOUNDS),
        (u64::MAX - block + 1, 2 * block, Status::E_BOUNDS),
        (0, 0, Status::E_BOUNDS),
        (0, u64::from(u32::MAX), Status::E_BOUNDS),
        (1, block, Status::E_ALIGN),
        (0, block - 1, Status::E_ALIGN),
        (VOLUME - block, block, Status::OK),
    ];
    for (offset, length, expected) in cases {
        for code in [opcode::READ, opcode::WRITE, opcode::COMPARE, opcode::WRITE_ZEROES, opcode::DEALLOCATE] {
            let mut entry = client.request(code);
            (entry.offset, entry.length) = (offset, length as u32);
            let status = client.status(&entry);
            let compare = code == opcode::COMPARE && expected == Status::OK;
            let expected = if compare { rig.compared() } else { expected };
            let miscompare = compare && status == Status::E_MISCOMPARE;
            assert!(status == expected || miscompare, "opcode {code}, {length} bytes at {offset}: {status}");
        }
    }
}

fn stale(rig: &Rig) {
    let adapter = rig.embedded();
    let session = adapter.session().unwrap();
    let mut client = Client::create(session.clone(), "v");
    let old = client.request(opcode::READ);
    let reopen = |name: &str| session.open(name, Access::READ).unwrap();
    assert_eq!(client.status(&old), Status::OK);
    let replaced = std::mem::replace(&mut client.volume, reopen("v"));
    replaced.close().unwrap();
    assert_eq!(client.status(&old), Status::E_ENTRY_INVALID);
    let again = reopen("v");
    assert_eq!(again.key() as u32, old.key as u32, "the index is used again");
    assert_eq!(client.status(&old), Status::E_KEY_INSTANCE);
    let mut new = old;
    new.key = again.key();
    assert_eq!(client.status(&new), Status::OK);
}

/// A request that fails several checks reports the first of the list.
fn earliest(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    let mut entry = client.request(opcode::READ);
    entry.offset = VOLUME + 1;
    entry.region += 1 << 32;
    assert_eq!(client.status(&entry), Status::E_BOUNDS, "bounds before alignment and memory");
    entry.offset = 1;
    assert_eq!(client.status(&entry), Status::E_ALIGN, "alignment before memory");
    entry.offset = 0;
    assert_eq!(client.status(&entry), Status::E_LOCAL_MEM);
    entry.key += 1 << 32;
    assert_eq!(client.status(&entry), Status::E_KEY_INSTANCE, "the key before all of them");
    entry.opcode = 200;
    assert_eq!(client.status(&entry), Status::E_OPCODE, "the operation before the key");
}

fn two_at_once(rig: &Rig) {
    let adapter = rig.isolated();
    let stop = AtomicBool::new(false);
    let rounds = if rig.is_software() { 400 } else { 40 };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2u32)
            .map(|who| {
                let (stop, socket) = (&stop, adapter.socket());
                scope.spawn(move || {
                    let session = Session::connect(socket).unwrap();
                    let name = format!("volume-{who}");
                    session.create_volume(&name, VOLUME).unwrap();
                    let volume = session.open(&name, Access::READ_WRITE).unwrap();
                    let mut queue = session.queue(16).unwrap();
                    for round in 0..rounds {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let offset = u64::from(round * 7919 % 400) * 4096;
                        let written = pattern(who << 16 | round, 16 << 10);
                        queue.write_at(&volume, offset, &written).unwrap();
                        let mut read = vec![0; written.len()];
                        queue.read_at(&volume, offset, &mut read).unwrap();
                        if read != written {
                            stop.store(true, Ordering::Relaxed);
                            panic!("session {who} reads what it did not write");
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn guesses(rig: &Rig) {
    let adapter = rig.embedded();
    let victim = Client::create(adapter.session().unwrap(), "victim");
    let mut guesser = Client::create(adapter.session().unwrap(), "guesser");
    let own = guesser.volume.key();
    for instance in 0..64u64 {
        for index in 0..64u64 {
            let mut entry = guesser.request(opcode::WRITE);
            entry.key = instance << 32 | index;
            if entry.key == own {
                continue;
            }
            let status = guesser.status(&entry);
            let refusals = [
                Status::E_PD_MISMATCH,
                Status::E_ENTRY_INVALID,
                Status::E_KEY_INSTANCE,
                Status::E_KEY_RANGE,
                Status::E_SEGMENT,
            ];
            assert!(refusals.contains(&status), "key {index}#{instance}: {status}");
        }
    }
    let mut queue = victim.session.queue(4).unwrap();
    let mut read = vec![1; VOLUME as usize];
    queue.read_at(&victim.volume, 0, &mut read).unwrap();
    assert!(read.iter().all(|&b| b == 0), "the victim's blocks are as they were");
}
