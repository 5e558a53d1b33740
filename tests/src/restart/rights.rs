//! What is asked anew when a session goes on, and what becomes of handles that are refused.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adapter::{Adapter, DeviceUri, Format, Options};
use portcullis::raw::RawQueue;
use portcullis::{Access, ConnectOptions, Error, MemoryAccess, Request, Session, Status, Subject, Volume};

use super::{Adapters, IMAGE};
use crate::system::{Case, PATIENCE, Rig, pattern, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "handles_are_opened_again_by_name_or_refused_from_then_on", run: opened_again },
    Case { name: "a_right_that_was_taken_away_between_is_refused", run: taken_away },
    Case { name: "an_exclusive_volume_is_lost_to_who_came_first", run: overtaken },
    Case { name: "what_the_application_holds_is_moved_or_bounced", run: memory },
    Case { name: "an_adapter_that_never_returns_is_waited_for_no_longer_than_asked", run: patience },
    Case { name: "an_upgrade_fails_nothing_but_shared_writes", run: upgrade },
    Case { name: "raw_queues_end_with_their_adapter", run: raw },
    Case { name: "files_are_opened_again_by_name", run: files },
];

const BLOCK: usize = 512;

fn read(session: &Session, volume: &Volume) -> Result<Vec<u8>, Error> {
    let mut block = vec![0; BLOCK];
    session.queue(2)?.read_at(volume, 0, &mut block)?;
    Ok(block)
}

fn opened_again(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    let names = ["stays", "renamed", "replaced", "deleted"];
    let open: Vec<Volume> = names
        .iter()
        .map(|name| {
            session.create_volume(name, 1 << 20).unwrap();
            session.open(name, Access::READ_WRITE).unwrap()
        })
        .collect();
    let mut queue = session.queue(4).unwrap();
    open.iter().for_each(|volume| queue.write_at(volume, 0, &pattern(7, BLOCK)).unwrap());
    let keys: Vec<u64> = open.iter().map(Volume::key).collect();
    adapters.kill();
    adapters.again();
    // The session does not know it yet: what is done now is done between.
    let between = Session::connect(rig.socket()).unwrap();
    between.rename_volume("renamed", "other").unwrap();
    between.delete_volume("replaced").unwrap();
    between.create_volume("replaced", 1 << 20).unwrap();
    between.delete_volume("deleted").unwrap();
    let mut block = vec![0; BLOCK];
    queue.read_at(&open[0], 0, &mut block).unwrap();
    assert!(block == pattern(7, BLOCK));
    assert_eq!(session.restarts(), 1);
    assert_ne!(open[0].key(), keys[0], "keys of another life");
    for volume in &open[1..] {
        for _ in 0..2 {
            let error = queue.read_at(volume, 0, &mut block).unwrap_err();
            assert_eq!(error.status(), Some(Status::E_NO_RESOURCE), "{error}");
        }
    }
    // What has the name later is not what the handle is of.
    between.create_volume("deleted", 1 << 20).unwrap();
    adapters.kill();
    adapters.again();
    assert!(read(&session, &open[0]).unwrap() == pattern(7, BLOCK));
    assert_eq!(read(&session, &open[3]).unwrap_err().status(), Some(Status::E_NO_RESOURCE));
    assert_eq!(session.restarts(), 2);
}

fn overtaken(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open_exclusive("v", Access::READ_WRITE).unwrap();
    let another = Session::connect(rig.socket()).unwrap();
    for refused in [
        another.open("v", Access::WRITE),
        another.open("v", Access::TRIM),
        another.open_exclusive("v", Access::ALL),
    ] {
        assert_eq!(refused.unwrap_err().status(), Some(Status::E_RESERVATION));
    }
    let _reads = another.open("v", Access::READ).unwrap();
    let wrong = another.open_exclusive("v", Access::READ).unwrap_err();
    assert_eq!(wrong.status(), Some(Status::E_PARAM), "who only reads keeps nobody out");
    let mut queue = session.queue(4).unwrap();
    queue.write_at(&volume, 0, &pattern(1, BLOCK)).unwrap();
    adapters.kill();
    adapters.again();
    let another = Session::connect(rig.socket()).unwrap();
    let writes = another.open("v", Access::WRITE).unwrap();
    // Or it would not be known whether the dead adapter heard of the write.
    session.statistics().unwrap();
    let error = queue.write_at(&volume, 0, &pattern(2, BLOCK)).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_RESERVATION), "{error}");
    drop(writes);
    // A handle that was lost stays lost; another one is had.
    assert!(queue.write_at(&volume, 0, &pattern(2, BLOCK)).is_err());
    let volume = session.open_exclusive("v", Access::READ_WRITE).unwrap();
    queue.write_at(&volume, 0, &pattern(3, BLOCK)).unwrap();
    assert!(read(&session, &volume).unwrap() == pattern(3, BLOCK));
}

/// Buffers that the application held through two restarts, whole pages and parts of them, each with bytes that were put there
/// before.
fn memory(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(16).unwrap();
    let mut buffers = session.register(4 * 8192, MemoryAccess::Both).unwrap().buffers(8192, 4096).unwrap();
    buffers.extend(session.register(4096, MemoryAccess::Both).unwrap().buffers(1024, 1024).unwrap());
    for life in 0u32..3 {
        let addresses: Vec<*const u8> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        for (number, buffer) in (0u32..).zip(&mut buffers) {
            let bytes = buffer.len();
            buffer.copy_from_slice(&pattern(life * 100 + number, bytes));
        }
        if life > 0 {
            adapters.kill();
            adapters.again();
        }
        // Lists, too: all at once.
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let done = queue.execute(Request::write_vectored(&volume, 0, buffers)).unwrap();
        let outcome = done.result.map(|bytes| bytes as usize);
        buffers = done.buffers;
        if outcome.as_ref().is_err_and(|error| error.status() == Some(Status::E_OUTCOME_UNKNOWN)) {
            let done = queue.execute(Request::write_vectored(&volume, 0, buffers)).unwrap();
            assert_eq!(done.result.unwrap() as usize, total);
            buffers = done.buffers;
        } else {
            assert_eq!(outcome.unwrap(), total);
        }
        for buffer in &mut buffers {
            buffer.fill(0xee);
        }
        let done = queue.execute(Request::read_vectored(&volume, 0, buffers)).unwrap();
        assert_eq!(done.result.unwrap() as usize, total);
        buffers = done.buffers;
        for (number, buffer) in (0u32..).zip(&buffers) {
            assert!(**buffer == pattern(life * 100 + number, buffer.len()), "buffer {number} in life {life}");
        }
        let mut at = 0;
        let mut single = Vec::new();
        for (number, mut buffer) in (0u32..).zip(buffers) {
            let bytes = buffer.len();
            buffer.fill(0xdd);
            let done = queue.execute(Request::read(&volume, at, buffer)).unwrap();
            assert_eq!(done.result.unwrap() as usize, bytes);
            let buffer = done.buffer.unwrap();
            assert!(*buffer == pattern(life * 100 + number, bytes), "buffer {number} alone in life {life}");
            at += bytes as u64;
            single.push(buffer);
        }
        buffers = single;
        let now: Vec<*const u8> = buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        assert_eq!(now, addresses, "nothing has another address");
    }
    assert_eq!(session.restarts(), 2);
}

fn patience(rig: &Rig) {
    const SHORT: Duration = Duration::from_millis(700);
    let mut adapters = Adapters::start(rig);
    let session = adapters.patient(SHORT);
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(4).unwrap();
    let buffer = session.buffer(4096).unwrap();
    adapters.kill();
    queue.prepare(Request::read(&volume, 0, buffer)).unwrap();
    let begin = Instant::now();
    assert!(queue.wait(SHORT / 7).unwrap().is_none(), "a wait ends in its time, whatever it waits for");
    assert!(begin.elapsed() < SHORT);
    let error = queue.wait(PATIENCE).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_PATH), "{error}");
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
    let begin = Instant::now();
    adapters.again();
    let error = session.statistics().unwrap_err();
    assert!(error.status() == Some(Status::E_PATH) && begin.elapsed() < PATIENCE / 2, "it is over: {error}");
    assert_eq!(session.restarts(), 0);
}

/// A right that the owner takes away between two adapters.
fn taken_away(rig: &Rig) {
    const SOMEBODY: u32 = 54321;
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can be somebody else");
    }
    let mut adapters = Adapters::start(rig);
    let directory = rig.socket().parent().unwrap().to_owned();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let owner = Session::connect(rig.socket()).unwrap();
    let everything = Subject::User(SOMEBODY);
    for name in ["lost", "less", "kept"] {
        owner.create_volume(name, 1 << 20).unwrap();
        owner.set_access(name, everything, Access::READ_WRITE).unwrap();
    }
    drop(owner);
    let (ready, go) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        let (adapters, ready, go) = (&mut adapters, &ready, &go);
        let socket = rig.socket();
        scope.spawn(move || {
            // Of this thread alone, and so of all connections that it makes.
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(SOMEBODY)).unwrap();
            let session = ConnectOptions::new().patience(PATIENCE).connect(socket).unwrap();
            let open = ["lost", "less", "kept"].map(|name| session.open(name, Access::READ_WRITE).unwrap());
            let mut queue = session.queue(4).unwrap();
            open.iter().for_each(|volume| queue.write_at(volume, 0, &[1; BLOCK]).unwrap());
            ready.wait();
            go.wait();
            // Or it would not be known whether the dead adapter heard of the first write.
            session.device_info().unwrap();
            let statuses = open.each_ref().map(|volume| {
                let error = queue.write_at(volume, 0, &[2; BLOCK]).err();
                error.and_then(|error| error.status())
            });
            assert_eq!(statuses, [Some(Status::E_NO_RESOURCE), Some(Status::E_AUTH), None]);
            assert!(session.open("less", Access::READ).is_ok(), "what is left can be had");
        });
        ready.wait();
        adapters.kill();
        adapters.again();
        let owner = Session::connect(rig.socket()).unwrap();
        owner.set_access("lost", everything, Access::NONE).unwrap();
        owner.set_access("less", everything, Access::READ).unwrap();
        go.wait();
    });
}

fn upgrade(rig: &Rig) {
    let image = rig.socket().with_extension("img");
    std::fs::File::create(&image).unwrap().set_len(IMAGE).unwrap();
    let options = Options { format: Format::Blank, ..Options::new(DeviceUri::EmuFile(image)) };
    let start = || Some(Adapter::start(&options, &rig.socket()).unwrap());
    let mut adapter = start();
    let session = ConnectOptions::new().patience(PATIENCE).connect(rig.socket()).unwrap();
    for name in ["own", "shared"] {
        session.create_volume(name, 1 << 20).unwrap();
    }
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (session, over, rounds, adapter) = (&session, &over, &rounds, &mut adapter);
        scope.spawn(move || {
            let own = session.open_exclusive("own", Access::READ_WRITE).unwrap();
            let shared = session.open("shared", Access::READ).unwrap();
            let mut queue = session.queue(8).unwrap();
            let mut block = vec![0; 8 * BLOCK];
            while !over.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed) as u32;
                let written = pattern(round, block.len());
                queue.write_at(&own, 0, &written).unwrap();
                queue.flush(&own).unwrap();
                queue.read_at(&own, 0, &mut block).unwrap();
                assert!(block == written);
                queue.read_at(&shared, 0, &mut block).unwrap();
            }
        });
        for _ in 0..4 {
            let before = rounds.load(Ordering::Relaxed);
            until("it goes on", || rounds.load(Ordering::Relaxed) > before + 20);
            adapter.take().into_iter().for_each(|adapter| adapter.stop().unwrap());
            *adapter = start();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(session.statistics().map(|_| session.restarts()).unwrap(), 4);
    drop(session);
    adapter.into_iter().for_each(|adapter| adapter.stop().unwrap());
}

fn raw(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    session.create_volume("v", 1 << 20).unwrap();
    let volume = session.open("v", Access::READ).unwrap();
    let mut raw = RawQueue::create(&session, 4).unwrap();
    adapters.kill();
    adapters.again();
    assert!(session.volume_info("v").is_ok(), "the session goes on");
    let error = raw.wait(PATIENCE).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_PATH), "{error}");
    // Another one, with the key of today and memory of today, does.
    let memory = session.register(4096, MemoryAccess::Both).unwrap();
    let mut raw = RawQueue::create(&session, 4).unwrap();
    let entry = wire::layout::SubmissionEntry {
        opcode: wire::layout::opcode::READ,
        key: volume.key(),
        length: BLOCK as u32,
        region: memory.key(),
        ..Default::default()
    };
    raw.push(&entry).unwrap();
    raw.ring().unwrap();
    assert!(Status(raw.wait(PATIENCE).unwrap().expect("a completion").status).is_ok());
}

fn files(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    session.create_volume("v", 16 << 20).unwrap();
    let files = session.files().unwrap();
    files.format("v", false).unwrap();
    let file = files.create("v:/file").unwrap();
    let gone = files.create("v:/gone").unwrap();
    file.write_all_at(b"before", 0).unwrap();
    file.sync_all().unwrap();
    gone.sync_all().unwrap();
    files.sync("v").unwrap();
    adapters.kill();
    adapters.again();
    let between = Session::connect(rig.socket()).unwrap().files().unwrap();
    between.remove_file("v:/gone").unwrap();
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"before");
    file.write_all_at(b"after!", 0).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"after!");
    assert_eq!(file.len().unwrap(), 6);
    let error = gone.read_at(&mut bytes, 0).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_NO_RESOURCE), "{error}");
    file.close().unwrap();
}
