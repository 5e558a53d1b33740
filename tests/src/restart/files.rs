//! Files over restarts: changes that are made once, and syncs that do not promise what is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use driver::dice::Dice;
use portcullis::wire::control::{Change, OnceId, Reply, Request};
use portcullis::wire::files::{AttributeChange, Create, FilePath, FileTarget, OpenFile};
use portcullis::{Error, File, Files, OpenOptions, Session, Status};

use super::Adapters;
use crate::death::seed;
use crate::scale::{counted, often};
use crate::system::{Case, Rig, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "a_change_of_files_asked_for_twice_is_made_once_and_answered_alike", run: twice },
    Case { name: "changes_of_files_under_kills_are_made_once", run: under_kills },
    Case { name: "a_length_is_as_durable_as_what_is_known_of_its_wish", run: length_kept },
    Case { name: "a_sync_does_not_promise_what_a_kill_took", run: synced },
];

const VOLUME: &str = "v";

fn formatted(adapters: &Adapters) -> Session {
    let session = adapters.session();
    session.create_volume(VOLUME, 24 << 20).unwrap();
    session.files().unwrap().format(VOLUME, false).unwrap();
    session
}

fn path(path: &str) -> FilePath {
    FilePath::new(path).unwrap()
}

fn at(path: &str) -> String {
    format!("{VOLUME}:{path}")
}

/// As a call of the library, without another attempt.
fn ask(session: &Session, request: &Request) -> Reply {
    session.call(request, &[]).unwrap().0
}

fn opening(file: &str, create: Create, truncate: bool) -> OpenFile {
    OpenFile { access: 3, create, truncate, mode: 0o600, ..OpenFile::reading(VOLUME, path(file)) }
}

/// A key of the session's for a file that is there.
fn key(session: &Session, file: &str) -> u64 {
    match ask(session, &Request::OpenFile(opening(file, Create::Never, false))) {
        Reply::File(info) => info.key,
        other => panic!("{file}: {other:?}"),
    }
}

/// A change; what another does after it, which would be undone or refused if it were made again; and whether that still holds.
struct Wanted {
    change: fn(&Session) -> Change,
    then: fn(&Files),
    holds: fn(&Files) -> bool,
}

fn there(files: &Files, file: &str) -> bool {
    files.metadata(at(file).as_str()).is_ok()
}

fn length(files: &Files, file: &str) -> u64 {
    files.metadata(at(file).as_str()).unwrap().length
}

fn put(files: &Files, file: &str, bytes: &[u8]) {
    files.create(at(file).as_str()).unwrap().write_all_at(bytes, 0).unwrap();
}

fn volume() -> String {
    VOLUME.to_owned()
}

const ALL: [Wanted; 10] = [
    Wanted {
        change: |_| Change::MakeDirectory { volume: volume(), path: path("/d"), mode: 0o755 },
        then: |files| files.rename(at("/d").as_str(), at("/e").as_str()).unwrap(),
        holds: |files| !there(files, "/d") && there(files, "/e"),
    },
    Wanted {
        change: |_| Change::OpenFile(opening("/f", Create::New, false)),
        then: |files| put(files, "/f", b"new"),
        holds: |files| length(files, "/f") == 3,
    },
    Wanted {
        change: |_| Change::OpenFile(opening("/f", Create::IfAbsent, true)),
        then: |files| put(files, "/f", b"anew"),
        holds: |files| length(files, "/f") == 4,
    },
    Wanted {
        change: |session| Change::SetLength { key: key(session, "/f"), bytes: 1 },
        then: |files| put(files, "/f", b"longer"),
        holds: |files| length(files, "/f") == 6,
    },
    Wanted {
        change: |session| Change::SetLength { key: key(session, "/f"), bytes: 100_000 },
        then: |files| put(files, "/f", b"short"),
        holds: |files| length(files, "/f") == 5,
    },
    Wanted {
        change: |_| Change::SetAttributes { of: target("/f"), change: mode(0o640) },
        then: |files| drop(files.set_attributes(at("/f").as_str(), mode(0o604)).unwrap()),
        holds: |files| files.metadata(at("/f").as_str()).unwrap().mode == 0o604,
    },
    Wanted {
        change: |_| Change::RenameFile { volume: volume(), from: path("/f"), to: path("/g"), replace: true },
        then: |files| put(files, "/f", b"another"),
        holds: |files| length(files, "/g") == 5 && length(files, "/f") == 7,
    },
    Wanted {
        change: |_| Change::UnlinkFile { volume: volume(), path: path("/g") },
        then: |files| put(files, "/g", b"again"),
        holds: |files| there(files, "/g"),
    },
    Wanted {
        change: |_| Change::RemoveDirectory { volume: volume(), path: path("/e") },
        then: |files| files.create_dir(at("/e").as_str()).unwrap(),
        holds: |files| there(files, "/e"),
    },
    Wanted {
        change: |_| Change::SetFileQuota {
            volume: volume(),
            user: rustix::process::getuid().as_raw(),
            bytes: Some(8 << 20),
        },
        then: |files| files.set_quota(VOLUME, rustix::process::getuid().as_raw(), None).unwrap(),
        holds: |files| files.space(VOLUME).unwrap().quota.is_none(),
    },
];

fn target(file: &str) -> FileTarget {
    FileTarget::Path { volume: volume(), path: path(file), follow: true }
}

fn mode(mode: u16) -> AttributeChange {
    AttributeChange { mode: Some(mode), ..AttributeChange::default() }
}

/// What an answer says that is the same in every life.
fn gist(reply: &Reply) -> String {
    match reply {
        Reply::File(info) => format!("file {}", info.attributes.number),
        Reply::Attributes(its) => format!("attributes of {}", its.number),
        Reply::Done => "done".to_owned(),
        other => panic!("{other:?}"),
    }
}

/// The adapter ends after the change was made: whoever did not hear the answer asks the next one.
fn twice(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    drop(formatted(&adapters));
    for (id, wanted) in (1..).zip(ALL) {
        let session = Session::connect(rig.socket()).unwrap();
        let files = session.files().unwrap();
        let once = |session: &Session, id: u8| {
            let id: OnceId = [id; 16];
            ask(session, &Request::Once { id, change: (wanted.change)(session) })
        };
        let first = gist(&once(&session, id));
        (wanted.then)(&files);
        assert_eq!(gist(&once(&session, id)), first, "change {id} in the same life");
        assert!((wanted.holds)(&files), "change {id} was made again");
        files.sync(VOLUME).unwrap();
        adapters.kill();
        adapters.again();
        let session = Session::connect(rig.socket()).unwrap();
        assert_eq!(gist(&once(&session, id)), first, "change {id} in the next life");
        let files = session.files().unwrap();
        assert!((wanted.holds)(&files), "change {id} was made again in the next life");
        files.sync(VOLUME).unwrap();
    }
    let session = Session::connect(rig.socket()).unwrap();
    let change = Change::OpenFile(opening("/f", Create::New, false));
    let reply = ask(&session, &Request::Once { id: [2; 16], change });
    let gone = matches!(reply, Reply::Error { status: Status::E_NO_RESOURCE, .. });
    assert!(gone, "another file has the name since: {reply:?}");
}

/// What is known of a wish becomes durable also when nobody asks for it, and nobody has told how long files are: the length goes
/// along.
fn length_kept(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = formatted(&adapters);
    let files = session.files().unwrap();
    put(&files, "/f", b"");
    files.sync(VOLUME).unwrap();
    let longer = |session: &Session| {
        let change = Change::SetLength { key: key(session, "/f"), bytes: 100_000 };
        gist(&ask(session, &Request::Once { id: [1; 16], change }))
    };
    let plain = Session::connect(rig.socket()).unwrap();
    longer(&plain);
    // So many changes that the file system makes them durable by itself; they are nobody's wishes, of which only the last are kept.
    let others = plain.files().unwrap();
    (0..200).for_each(|number| others.create_dir(at(&format!("/d{number}")).as_str()).unwrap());
    adapters.kill();
    adapters.again();
    let plain = Session::connect(rig.socket()).unwrap();
    assert!(there(&files, "/d0"), "it did");
    longer(&plain);
    assert_eq!(length(&files, "/f"), 100_000);
}

/// Has something done that nobody else does, and that must be durable then.
fn make_durably(files: &Files, is_made: impl Fn() -> bool, make: impl Fn() -> Result<(), Error>) {
    loop {
        if !is_made() {
            make().unwrap(); // Made twice, it would be refused.
        }
        match files.sync(VOLUME) {
            Ok(()) => return assert!(is_made(), "it was synced"),
            // What was acknowledged may be gone: it was not synced.
            Err(error) => assert_eq!(error.status(), Some(Status::E_OUTCOME_UNKNOWN), "{error}"),
        }
    }
}

/// Each change is wanted once and expected to be made, with the adapter killed at any time, while another makes all durable all the
/// time: so changes are durable before they are answered, too.
fn under_kills(rig: &Rig) {
    let kills = often(5, 50);
    let mut dice = Dice(seed());
    let mut adapters = Adapters::start(rig);
    let session = formatted(&adapters);
    session.files().unwrap().sync(VOLUME).unwrap();
    let another = adapters.session();
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, rounds) = (&over, &rounds);
        scope.spawn(move || {
            let files = another.files().unwrap();
            while !over.load(Ordering::Relaxed) {
                files.sync(VOLUME).unwrap();
            }
        });
        let worker = scope.spawn(move || {
            let files = session.files().unwrap();
            while !over.load(Ordering::Relaxed) {
                round(&files, rounds.load(Ordering::Relaxed));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..kills {
            let before = rounds.load(Ordering::Relaxed);
            until("changes are made", || rounds.load(Ordering::Relaxed) > before || worker.is_finished());
            // The time is what is random here; nothing waits for it to be enough.
            std::thread::sleep(Duration::from_micros(dice.below(40_000)));
            adapters.kill();
            adapters.again();
        }
        over.store(true, Ordering::Relaxed);
        worker.join().unwrap();
    });
    counted(kills, "restarts under changes of files");
}

/// Makes a directory and a file, changes it in every way, and removes both.
fn round(files: &Files, number: u64) {
    let directory = at(&format!("/d{number}"));
    let (first, second) = (format!("{directory}/f"), format!("{directory}/g"));
    let (directory, first, second) = (directory.as_str(), first.as_str(), second.as_str());
    let is = |place: &str| files.metadata(place).is_ok();
    let open = |place: &str| OpenOptions::new().read(true).write(true).open(files, place);
    let long = |place: &str, bytes: u64| files.metadata(place).is_ok_and(|its| its.length == bytes);
    make_durably(files, || is(directory), || files.create_dir(directory));
    let new = || OpenOptions::new().write(true).create_new(true).open(files, first);
    make_durably(files, || is(first), || new().map(drop));
    make_durably(files, || long(first, 10_000), || open(first)?.set_len(10_000));
    make_durably(files, || is(second), || files.rename_new(first, second));
    make_durably(files, || long(second, 5), || open(second)?.set_len(5));
    let its_mode = || files.metadata(second).is_ok_and(|its| its.mode == 0o604);
    make_durably(files, its_mode, || files.set_attributes(second, mode(0o604)).map(drop));
    make_durably(files, || !is(second), || files.remove_file(second));
    make_durably(files, || !is(directory), || files.remove_dir(directory));
}

fn is_unknown(result: Result<(), Error>) -> bool {
    result.is_err_and(|error| error.status() == Some(Status::E_OUTCOME_UNKNOWN))
}

/// What was acknowledged and not synced goes with an adapter that is killed, and the next sync says so; one that ends in order
/// takes nothing with it.
fn synced(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let session = formatted(&adapters);
    let files = session.files().unwrap();
    let file: File = files.create(at("/f").as_str()).unwrap();
    file.append(b"kept").unwrap();
    file.sync_all().unwrap();
    file.append(b" and lost").unwrap();
    adapters.kill();
    adapters.again();
    assert_eq!(file.len().unwrap(), 4);
    assert!(is_unknown(file.sync_data()), "a part of what was written is gone");
    file.append(b" again").unwrap();
    file.sync_all().unwrap();
    assert!(is_unknown(files.sync(VOLUME)), "files may be gone that have no handle");
    files.sync(VOLUME).unwrap();
    file.append(b", in order").unwrap();
    files.create_dir(at("/d").as_str()).unwrap();
    adapters.stop();
    adapters.again();
    file.sync_all().unwrap();
    files.sync(VOLUME).unwrap();
    assert!(there(&files, "/d"));
    let mut all = [0; 20];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all, *b"kept again, in order");
    // A file that is closed, and a change without one, count too; who only reads has nothing to lose.
    file.close().unwrap();
    let reading = files.open(at("/f").as_str()).unwrap();
    adapters.kill();
    adapters.again();
    reading.sync_all().unwrap();
    assert!(is_unknown(files.sync(VOLUME)));
    files.sync(VOLUME).unwrap();
    assert_eq!(session.restarts(), 3);
}
