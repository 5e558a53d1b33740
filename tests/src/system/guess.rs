//! Somebody who guesses keys at full rate: it costs the others nothing, and tells nothing about what they have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adapter::{DeviceUri, Embedded, Options};
use driver::dice::Dice;
use driver::emu::{EmuConfig, Interposer, RamMedia, Verdict};
use driver::spec::nvme::Sqe;
use portcullis::wire::control::{Reply, Request};
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry, opcode};
use portcullis::{Access, Session, Status, raw::RawQueue};

use super::{Case, Client, Rig, VOLUME, pattern, somebody};
use crate::scale::{counted, often};

pub(super) const CASES: &[Case] = &[
    Case { name: "s4_r6_s8_r13_a_guesser_at_full_rate_costs_the_others_nothing", run: full_rate },
    Case { name: "s4_r6_a_guesser_learns_nothing_of_what_others_have", run: learns_nothing },
    Case { name: "s8_r13_of_all_instances_of_an_index_only_the_live_one_succeeds", run: instances },
];

/// Guesses under way at once.
const BATCH: u32 = 1024;

/// What a completion tells.
fn told(done: &CompletionEntry) -> (u16, u32, u32, u64) {
    (done.status, done.bytes, done.device_status, done.value)
}

/// Submits all at once, and gives the completions in the order in which they came.
fn submit_all(raw: &mut RawQueue, entries: &[SubmissionEntry]) -> Vec<CompletionEntry> {
    for entry in entries {
        raw.push(entry).unwrap();
    }
    raw.ring().unwrap();
    let mut done = Vec::with_capacity(entries.len());
    while done.len() < entries.len() {
        done.extend(raw.poll());
    }
    done
}

/// Guesses everything: systematically through the table, at random, near what the victim has, with extension keys, and
/// regions of memory.
fn guess(dice: &mut Dice, count: u64, own: &SubmissionEntry, victim: (u64, u64)) -> SubmissionEntry {
    let (key, region) = victim;
    let codes = [opcode::READ, opcode::WRITE, opcode::FLUSH, opcode::WRITE_ZEROES, opcode::DEALLOCATE, 200];
    let mut entry = SubmissionEntry { opcode: codes[dice.index(codes.len())], user_data: count, ..*own };
    match dice.below(8) {
        0..3 => entry.key = (dice.below(4) << 32) | (count & 0xffff),
        3 => entry.key = key,
        4 => entry.key = key.wrapping_add(dice.below(1 << 10) << 32),
        5 => entry.key = dice.number(),
        6 => (entry.key, entry.extension) = (key, dice.number()),
        _ => {
            (entry.opcode, entry.region) = (opcode::READ, [region, dice.number()][dice.index(2)]);
            entry.region_offset = dice.below(1 << 20);
        }
    }
    entry
}

fn full_rate(rig: &Rig) {
    // Two segments at hand: the victim's and the guesser's own. One more fetched and the victim's may have to go.
    let options = Options { resident_segments: 2, ..rig.options() };
    let adapter = Embedded::start(&options).unwrap();
    let mut victim = Client::create(adapter.session().unwrap(), "victim");
    let guesser = Client::create(adapter.session().unwrap(), "guesser");
    let mut raw = RawQueue::create(&guesser.session, BATCH).unwrap();
    let mut queue = victim.session.queue(8).unwrap();
    let treasure = pattern(3, VOLUME as usize);
    queue.write_at(&victim.volume, 0, &treasure).unwrap();
    let own = SubmissionEntry { user_data: 0, ..guesser.request(opcode::READ) };
    assert_eq!(told(&submit_all(&mut raw, &[own])[0]).0, Status::OK.0);

    let counters = |session: &Session| {
        (0..100).for_each(|_| {
            adapter.turn(); // Until the poller has written its counters down.
        });
        let now = session.statistics().unwrap();
        (now.fetches, now.evictions)
    };
    let before = counters(&victim.session);
    assert!(before.0 >= 2, "both segments were fetched");
    let guesses: u64 = often(100_000, 10_000_000);
    let mut dice = Dice(7);
    let target = (victim.volume.key(), victim.memory.key());
    let allowed = [
        Status::E_PD_MISMATCH,
        Status::E_KEY_RANGE,
        Status::E_OPCODE,
        Status::E_LOCAL_MEM,
        // In its own segment only.
        Status::E_ENTRY_INVALID,
        Status::E_KEY_INSTANCE,
    ];
    let mut count = 0;
    while count < guesses {
        let entries: Vec<_> = (0..u64::from(BATCH))
            .map(|i| guess(&mut dice, count + i, &own, target))
            .filter(|entry| entry.key != own.key || entry.region != own.region)
            .collect();
        count += entries.len() as u64;
        for (done, entry) in submit_all(&mut raw, &entries).iter().zip(&entries) {
            assert!(allowed.contains(&Status(done.status)), "{entry:?} was answered with {done:?}");
            assert_eq!(done.user_data, entry.user_data, "in the order in which they came");
            let others = (entry.key ^ own.key) as u32 / 16 != 0;
            let told_other = [Status::E_ENTRY_INVALID, Status::E_KEY_INSTANCE].contains(&Status(done.status));
            assert!(!(others && told_other), "{entry:?} was answered with {done:?}");
        }
        assert_eq!(victim.status(&victim.request(opcode::READ)), Status::OK);
    }
    assert_eq!(counters(&victim.session), before, "no fetch and no eviction by guesses");
    let mut read = vec![0; treasure.len()];
    queue.read_at(&victim.volume, 0, &mut read).unwrap();
    assert!(read == treasure, "the victim's blocks changed");
    counted(count, "guesses");
}

/// What a stranger is answered for a set of keys, on the queue and on the socket.
fn answers(raw: &mut RawQueue, session: &Session, own: &SubmissionEntry, keys: &[u64]) -> Vec<String> {
    let entries: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(i, &key)| SubmissionEntry { key, user_data: i as u64, ..*own })
        .collect();
    let done = submit_all(raw, &entries);
    let order: Vec<_> = done.iter().map(|done| done.user_data).collect();
    assert!(order.is_sorted(), "the order tells something: {order:?}");
    let mut answers: Vec<String> = done.iter().map(|done| format!("{:?}", told(done))).collect();
    for &key in keys {
        for request in [Request::Query { key }, Request::Close { key }] {
            let (reply, _) = session.call(&request, &[]).unwrap();
            let Reply::Error { status, detail } = reply else { panic!("{key:#x}: {reply:?}") };
            answers.push(format!("{status} {detail}"));
        }
    }
    answers
}

/// Keeps what pollers submit, while it is shut. The store's queue is the first, and goes on.
#[derive(Default)]
struct Gate(AtomicBool);

impl Interposer for Gate {
    fn before(&self, queue: u16, _: &Sqe) -> Verdict {
        let shut = queue > 1 && self.0.load(Ordering::SeqCst);
        if shut { Verdict::Hold } else { Verdict::Run }
    }
}

/// The device keeps a request for so long: two changes run into their timers meanwhile.
const KEPT: Duration = Duration::from_secs(6);

/// Something that changes what the victim has.
type Change<'a> = dyn Fn(&Session) + Sync + 'a;

/// On a software device that keeps a request, so that the grant over it stays held, and then closed, for long.
fn learns_nothing(_: &Rig) {
    let gate = Arc::new(Gate::default());
    let uri = DeviceUri::EmuRam(64 << 20);
    let media = Arc::new(RamMedia::new(64 << 20).unwrap());
    let config = EmuConfig { interposer: Some(gate.clone()), ..EmuConfig::new(media) };
    let opened = adapter::device::emu::open_with(&uri, config, 1).unwrap();
    let mut options = Options { device_timeout: KEPT, ..Options::new(uri) };
    options.policy.anyone_creates = true;
    let adapter = Embedded::start_on(opened, &options).unwrap();
    let mut victim = Client::create(adapter.session_as(somebody(4000)).unwrap(), "victim");
    let stranger = Client::create(adapter.session_as(somebody(4001)).unwrap(), "stranger");
    let mut raw = RawQueue::create(&stranger.session, 64).unwrap();
    let own = stranger.request(opcode::READ);
    let key = victim.volume.key();
    // The live one, other instances of its index, its neighbours, and an index far from everything.
    let keys = [key, key + (1 << 32), key ^ (1 << 32), key + 1, key + 15, key & 0xffff_ffff, 60_000, key];
    let mut ask = || answers(&mut raw, &stranger.session, &own, &keys);
    let valid = ask();
    assert!(valid[1..keys.len()].iter().all(|answer| *answer == valid[0]), "{valid:?}");

    // I/O runs under the grant from here on, until the device is reset.
    gate.0.store(true, Ordering::SeqCst);
    victim.raw.push(&victim.request(opcode::READ)).unwrap();
    victim.raw.ring().unwrap();
    (0..100).for_each(|_| {
        adapter.turn();
    });
    gate.0.store(false, Ordering::SeqCst);
    // Held: it is to grow. Closed: it is to end. Both give up after a while.
    let grow = |session: &Session| {
        session.resize_volume("victim", 2 * VOLUME).unwrap();
    };
    let close = |session: &Session| {
        let (reply, _) = session.call(&Request::Close { key }, &[]).unwrap();
        assert!(matches!(reply, Reply::Error { status: Status::E_BUSY_TIMEOUT, .. }), "{reply:?}");
    };
    let changes: [(&str, &Change<'_>); 2] = [("held", &grow), ("closed", &close)];
    for (state, change) in changes {
        let (session, ended) = (victim.session.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                change(&session);
                ended.store(true, Ordering::SeqCst);
            });
            let mut asked = 0;
            while !ended.load(Ordering::SeqCst) {
                assert_eq!(ask(), valid, "that it is {state} shows");
                asked += 1;
            }
            assert!(asked > 1, "it was {state} for a while");
        });
    }
    victim.raw.wait(super::PATIENCE).unwrap().expect("the reset ends it");
    drop(victim);
    assert_eq!(ask(), valid, "that nothing is there any more shows");
    // Nor do counters of the adapter tell what others do.
    let now = stranger.session.statistics().unwrap();
    assert_eq!((now.sessions.len(), now.entries, now.fetches, now.turns), (1, 1, 0, 0));
}

fn instances(rig: &Rig) {
    let adapter = rig.embedded();
    let mut client = Client::create(adapter.session().unwrap(), "v");
    for _ in 0..300 {
        let again = client.session.open("v", Access::ALL).unwrap();
        std::mem::replace(&mut client.volume, again).close().unwrap();
    }
    let live = client.volume.key();
    let succeeded: Vec<u64> = (0..(live >> 32) + 512)
        .map(|instance| (live & 0xffff_ffff) | (instance << 32))
        .filter(|&key| {
            let entry = SubmissionEntry { key, ..client.request(opcode::READ) };
            client.status(&entry) == Status::OK
        })
        .collect();
    assert_eq!(succeeded, [live]);
}
