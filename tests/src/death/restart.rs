//! The adapter itself is killed under its applications, and starts again over the same image.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adapter::{Adapter, DeviceUri, Format, Options};
use driver::dice::Dice;
use portcullis::raw::RawQueue;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, Error, Memory, MemoryAccess, Session, Status, TransportError, Volume};

use super::seed;
use crate::process::{Actor, Role, say, wait_for_go};
use crate::scale::{counted, often};
use crate::system::{Case, PATIENCE, Rig, pattern, until};

pub(super) const CASES: &[Case] =
    &[Case { name: "an_adapter_killed_under_its_applications_keeps_what_it_promised", run: killed }];

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;
/// The volume whose content is followed, and its blocks.
const KEPT: &str = "kept";
const BLOCK: usize = 512;
const BLOCKS: usize = 256;
/// Grants of each session: the same indices in each life of the adapter.
const GRANTS: usize = 8;
/// Keys of former lives that are tried in each.
const KEYS: usize = 512;
/// A poller that hears nothing for so long asks whether anybody is there.
const SILENCE: Duration = Duration::from_millis(100);

/// In a process of its own: an adapter until it is killed.
pub(crate) fn play(device: &str, socket: &Path) {
    let device: DeviceUri = device.parse().unwrap();
    let options = Options { format: Format::Blank, ..Options::new(device) };
    let _adapter = Adapter::start(&options, socket).unwrap();
    say("ready");
    wait_for_go();
}

fn killed(rig: &Rig) {
    let kills = often(5, 100);
    let seed = seed();
    let mut dice = Dice(seed);
    let image = rig.socket().with_extension("img");
    std::fs::File::create(&image).unwrap().set_len(IMAGE).unwrap();
    let start = || {
        let device = format!("emu:{}", image.display());
        let mut server = Actor::start(Role::Server, Path::new(&device), rig.socket().to_str().unwrap());
        assert_eq!(server.line(), "ready");
        server
    };
    let mut server = start();
    Session::connect(rig.socket()).unwrap().create_volume(KEPT, (BLOCKS * BLOCK) as u64).unwrap();
    let mut blocks = Blocks(vec![vec![0]; BLOCKS]);
    let mut names = Names::default();
    let mut keys = Vec::new();
    for _ in 0..kills {
        live(&mut server, &rig.socket(), &mut dice, (&mut blocks, &mut names, &mut keys));
        server = start();
        let session = Session::connect(rig.socket()).unwrap();
        blocks.check(&session);
        names.check(&session);
        try_old_keys(&session, &keys);
    }
    println!("{} keys of former lives resolve to nothing", keys.len());
    counted(kills, "kills of the adapter");
}

/// Everybody works; then the adapter is killed, and everybody is told.
fn live(
    server: &mut Actor,
    socket: &Path,
    dice: &mut Dice,
    (blocks, names, keys): (&mut Blocks, &mut Names, &mut Vec<u64>),
) {
    let sessions: [Session; 6] = std::array::from_fn(|_| Session::connect(socket).unwrap());
    let open: Vec<Volume> = sessions.iter().flat_map(|s| (0..GRANTS).map(|_| grant(s))).collect();
    keys.extend(open.iter().map(Volume::key));
    let [asleep, polling, writing, making, registering, opening] = &sessions;
    let progress: [AtomicU64; 6] = Default::default();
    let [p0, p1, p2, p3, p4, p5] = &progress;
    std::thread::scope(|scope| {
        let workers = [
            ("asleep", scope.spawn(|| sleeps(asleep, p0))),
            ("polling", scope.spawn(|| polls(polling, p1))),
            ("writing", scope.spawn(|| blocks.write(writing, p2))),
            ("making volumes", scope.spawn(|| names.make(making, p3))),
            ("registering", scope.spawn(|| registers(registering, p4))),
            ("opening", scope.spawn(|| opens(opening, p5))),
        ];
        until("everybody works", || progress.iter().all(|p| p.load(Ordering::Relaxed) > 4));
        // The time is what is random here; nothing waits for it to be enough.
        std::thread::sleep(Duration::from_micros(dice.below(30_000)));
        server.kill();
        let begin = Instant::now();
        for (what, worker) in workers {
            let error = worker.join().unwrap();
            let gone = matches!(error, Error::Transport(TransportError::Gone(_)));
            assert!(gone, "who was {what} is told: {error}");
            assert_eq!(error.status(), Some(Status::E_PATH));
            assert!(begin.elapsed() < PATIENCE, "who was {what} waited too long");
        }
    });
}

fn grant(session: &Session) -> Volume {
    session.open(KEPT, Access::READ).unwrap()
}

fn one_block(volume: u64, memory: &Memory) -> SubmissionEntry {
    SubmissionEntry {
        opcode: opcode::READ,
        key: volume,
        length: BLOCK as u32,
        region: memory.key(),
        ..SubmissionEntry::default()
    }
}

/// Reads a little, then sleeps without anything that could wake it.
fn sleeps(session: &Session, progress: &AtomicU64) -> Error {
    let volume = grant(session);
    let memory = session.register(4096, MemoryAccess::Both).unwrap();
    let mut raw = RawQueue::create(session, 4).unwrap();
    for _ in 0..8 {
        raw.push(&one_block(volume.key(), &memory)).unwrap();
        raw.ring().unwrap();
        raw.wait(PATIENCE).unwrap().expect("a completion");
        progress.fetch_add(1, Ordering::Relaxed);
    }
    raw.wait(PATIENCE).map(|done| panic!("it slept through everything: {done:?}")).unwrap_err()
}

/// Polls, and asks when nothing comes.
fn polls(session: &Session, progress: &AtomicU64) -> Error {
    let volume = grant(session);
    let memory = session.register(4096, MemoryAccess::Both).unwrap();
    let mut raw = RawQueue::create(session, 4).unwrap();
    let mut heard = Instant::now();
    loop {
        if raw.push(&one_block(volume.key(), &memory)).is_ok() {
            raw.ring().unwrap();
        }
        while raw.poll().is_some() {
            heard = Instant::now();
            progress.fetch_add(1, Ordering::Relaxed);
        }
        if heard.elapsed() > SILENCE {
            match session.statistics() {
                Ok(_) => heard = Instant::now(),
                Err(error) => return error,
            }
        }
    }
}

fn registers(session: &Session, progress: &AtomicU64) -> Error {
    loop {
        match session.register(64 << 10, MemoryAccess::Both) {
            Ok(_) => drop(progress.fetch_add(1, Ordering::Relaxed)),
            Err(error) => return error,
        }
    }
}

fn opens(session: &Session, progress: &AtomicU64) -> Error {
    loop {
        match session.open(KEPT, Access::READ).and_then(Volume::close) {
            Ok(()) => drop(progress.fetch_add(1, Ordering::Relaxed)),
            Err(error) => return error,
        }
    }
}

/// What each block may hold: numbers of writes, the first of them flushed.
struct Blocks(Vec<Vec<u32>>);

impl Blocks {
    fn content(number: u32) -> Vec<u8> {
        if number == 0 { vec![0; BLOCK] } else { pattern(number, BLOCK) }
    }

    /// Writes and flushes until the adapter is gone.
    fn write(&mut self, session: &Session, progress: &AtomicU64) -> Error {
        let volume = session.open(KEPT, Access::READ_WRITE).unwrap();
        let mut queue = session.queue(4).unwrap();
        let mut number = self.0.iter().flatten().max().copied().unwrap_or(0);
        loop {
            for _ in 0..8 {
                number += 1;
                let block = number as usize * 89 % BLOCKS;
                self.0[block].push(number);
                if let Err(error) = queue.write_at(&volume, (block * BLOCK) as u64, &Self::content(number)) {
                    return error;
                }
            }
            if let Err(error) = queue.flush(&volume) {
                return error;
            }
            for block in &mut self.0 {
                block.drain(..block.len() - 1);
            }
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each block holds what was flushed last, or a later write.
    fn check(&mut self, session: &Session) {
        let volume = session.open(KEPT, Access::READ).unwrap();
        let mut data = vec![0; BLOCKS * BLOCK];
        session.queue(8).unwrap().read_at(&volume, 0, &mut data).unwrap();
        for (block, (may_hold, data)) in self.0.iter_mut().zip(data.chunks(BLOCK)).enumerate() {
            let holds = may_hold.iter().copied().find(|number| Self::content(*number) == data);
            assert!(holds.is_some(), "block {block} holds none of the writes {may_hold:?}: one was lost");
            *may_hold = holds.into_iter().collect();
        }
    }
}

/// Which volumes there are for sure.
#[derive(Default)]
struct Names {
    there: BTreeSet<String>,
    gone: BTreeSet<String>,
    count: u32,
}

impl Names {
    /// Makes volumes and deletes them until the adapter is gone.
    fn make(&mut self, session: &Session, progress: &AtomicU64) -> Error {
        loop {
            let name = format!("made-{}", self.count);
            self.count += 1;
            if let Err(error) = session.create_volume(&name, 64 << 10) {
                return error;
            }
            self.there.insert(name);
            progress.fetch_add(1, Ordering::Relaxed);
            if self.there.len() > 4 {
                let name = self.there.pop_first().expect("there are some");
                if let Err(error) = session.delete_volume(&name) {
                    return error;
                }
                self.gone.insert(name);
            }
        }
    }

    /// What was acknowledged holds; then all are deleted.
    fn check(&mut self, session: &Session) {
        let now: BTreeSet<String> = session.volumes().map(|volume| volume.unwrap().name).collect();
        assert!(self.there.is_subset(&now), "volumes that were made are gone: {:?}, {now:?}", self.there);
        let back: Vec<_> = self.gone.intersection(&now).collect();
        assert!(back.is_empty(), "volumes that were deleted are back: {back:?}");
        for name in now.iter().filter(|name| *name != KEPT) {
            session.delete_volume(name).unwrap();
        }
        self.there.clear();
        self.gone.clear();
    }
}

/// No key of a former life resolves, whatever grants have its index now.
fn try_old_keys(session: &Session, keys: &[u64]) {
    let own: Vec<Volume> = (0..24 * GRANTS).map(|_| grant(session)).collect();
    let memory = session.register(4096, MemoryAccess::Both).unwrap();
    let mut raw = RawQueue::create(session, 16).unwrap();
    let mut status = |key: u64| {
        raw.push(&one_block(key, &memory)).unwrap();
        raw.ring().unwrap();
        Status(raw.wait(PATIENCE).unwrap().expect("a completion").status)
    };
    assert!(own.iter().all(|volume| status(volume.key()).is_ok()), "keys of today do");
    let mut seen = BTreeSet::new();
    // In its first life the adapter gave out the indices that it gives out first, as it does here.
    for key in keys.iter().take(6 * GRANTS).chain(keys.iter().rev().take(KEYS)) {
        let status = status(*key);
        assert!(!status.is_ok(), "key {key:#x} of a former life resolves");
        seen.insert(status.to_string());
    }
    let known = seen.contains(&Status::E_KEY_INSTANCE.to_string());
    assert!(known, "no index of a former key is in use again, nothing was tried: {seen:?}");
}
