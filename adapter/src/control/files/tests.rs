//! What is asked of files, from the first format to the last close, with tables, lengths and file system agreeing.

use std::time::Instant;

use tpt::{Access, Key};
use wire::Status;
use wire::control::{Reply, Request};
use wire::files::{Create, FileInfo, FilePath, FileSystemInfo, OpenFile};
use wire::socket::Credentials;

use crate::assembly::Options;
use crate::control::SessionId;
use crate::control::rig::Rig;

const BLOCK: u64 = 4096;

fn path(of: &str) -> FilePath {
    FilePath::new(of.as_bytes()).unwrap()
}

fn open(of: &str, create: Create) -> OpenFile {
    OpenFile {
        volume: "v".into(),
        path: path(of),
        access: 3,
        create,
        truncate: false,
        follow: true,
        mode: 0o640,
        allocate: 0,
    }
}

fn rig() -> (Rig, SessionId) {
    rig_with(&Options::new("emu:64M".parse().unwrap()))
}

fn rig_with(options: &Options) -> (Rig, SessionId) {
    let mut rig = Rig::with(options);
    let session = rig.session();
    let reply = rig.call(session, Request::CreateVolume { name: "v".into(), bytes: 32 << 20 });
    assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    let reply = rig.call(session, Request::FormatFiles { volume: "v".into(), force: false });
    assert!(matches!(reply, Reply::FileSystem(_)), "{reply:?}");
    (rig, session)
}

impl Rig {
    fn file(&mut self, session: SessionId, request: Request) -> FileInfo {
        match self.call(session, request) {
            Reply::File(info) => info,
            other => panic!("{other:?}"),
        }
    }

    fn open_file(&mut self, session: SessionId, of: &str, create: Create) -> FileInfo {
        self.file(session, Request::OpenFile(open(of, create)))
    }

    fn refused(&mut self, session: SessionId, request: Request) -> Status {
        match self.call(session, request) {
            Reply::Error { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    fn done(&mut self, session: SessionId, request: Request) {
        let reply = self.call(session, request);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    /// Until no lane has anything to do.
    fn settle(&mut self) {
        while self.control.file_lanes.is_running() || !self.control.pending.is_empty() {
            self.engine.turn();
            self.control.advance(Instant::now());
            std::thread::yield_now();
        }
    }

    /// As an engine does for a write that ended there.
    fn write_up_to(&mut self, file: &FileInfo, end: u64) {
        let context = self.control.files.of_number(file.attributes.number);
        self.control.lengths.note_write(context);
        self.control.lengths.extend(context, end);
    }

    fn key_reaches(&self, key: u64) -> u64 {
        let session = self.control.sessions.values().find(|s| s.grants.contains_key(&Key(key))).unwrap();
        let found = self.control.tables.query(session.domain, Key(key)).unwrap();
        let extensions = found.file.unwrap().extensions;
        let bytes = extensions.iter().map(|its| its.bytes).sum::<u64>();
        assert_eq!(bytes, found.blocks.0 << self.control.geometry.block_shift);
        bytes
    }
}

#[test]
fn s6_r2_a_file_is_made_grown_queried_and_found_again() {
    let (mut rig, session) = rig();
    let made = rig.open_file(session, "/a", Create::New);
    assert_eq!((made.room, made.attributes.length, made.attributes.mode, made.access), (0, 0, 0o640, 3));
    assert!(made.extensions.is_empty());
    let grown = rig.file(session, Request::GrowFile { key: made.key, bytes: 3 * BLOCK, keep: false });
    assert_eq!((grown.key, grown.room, grown.attributes.length), (made.key, 3 * BLOCK, 0));
    assert_eq!(rig.key_reaches(made.key), 3 * BLOCK);
    rig.write_up_to(&made, 5000);
    let found = rig.file(session, Request::QueryFile { key: made.key });
    assert_eq!((found.attributes.length, found.extensions.len()), (5000, grown.extensions.len()));
    rig.done(session, Request::SyncFile { key: made.key, data_only: false });
    rig.done(session, Request::Close { key: made.key });
    rig.settle();
    assert_eq!(rig.control.tables.usage().extensions, 0);
    assert_eq!(rig.refused(session, Request::QueryFile { key: made.key }), Status::E_ENTRY_INVALID);
    let again = rig.open_file(session, "/a", Create::Never);
    assert_ne!(again.key, made.key, "S6-R11: a key is not used twice");
    assert_eq!((again.attributes.number, again.attributes.length), (made.attributes.number, 5000));
    assert_eq!(again.room, 2 * BLOCK, "it gave back what it did not need");
}

fn space(rig: &mut Rig, session: SessionId) -> FileSystemInfo {
    match rig.call(session, Request::StatVolume { volume: "v".into() }) {
        Reply::FileSystem(info) => info,
        other => panic!("{other:?}"),
    }
}

#[test]
fn room_that_was_asked_for_by_name_is_kept_and_no_other() {
    let (mut rig, session) = rig();
    let other = rig.session();
    let empty = space(&mut rig, session);
    let used = |rig: &mut Rig| {
        let now = space(rig, session);
        assert_eq!(empty.free - now.free, now.own - empty.own, "the user has what is not free");
        empty.free - now.free
    };
    for (keep, kept) in [(false, 2), (true, 8)] {
        let mine = rig.open_file(session, "/a", Create::IfAbsent);
        rig.file(session, Request::GrowFile { key: mine.key, bytes: 8 * BLOCK, keep });
        rig.file(session, Request::GrowFile { key: mine.key, bytes: 20 * BLOCK, keep: false });
        let theirs = rig.open_file(other, "/a", Create::Never);
        rig.write_up_to(&mine, BLOCK + 1);
        rig.done(session, Request::Close { key: mine.key });
        rig.settle();
        assert_eq!(used(&mut rig), 20 * BLOCK, "somebody has it open");
        assert_eq!(rig.key_reaches(theirs.key), 20 * BLOCK);
        rig.done(other, Request::Close { key: theirs.key });
        rig.settle();
        assert_eq!(used(&mut rig), kept * BLOCK);
    }
    // And so it is with what is asked for as it is opened, whether the file has it or not.
    let opened = OpenFile { allocate: 30 * BLOCK, ..open("/b", Create::New) };
    for opened in [opened.clone(), OpenFile { create: Create::Never, allocate: 25 * BLOCK, ..opened }] {
        let file = rig.file(session, Request::OpenFile(opened));
        assert_eq!(file.room, 30 * BLOCK);
        rig.done(session, Request::Close { key: file.key });
        rig.settle();
        assert_eq!(used(&mut rig), 38 * BLOCK);
    }
    // More than there is makes no file.
    let large = OpenFile { allocate: 1 << 40, ..open("/c", Create::IfAbsent) };
    assert_eq!(rig.refused(session, Request::OpenFile(large)), Status::E_NO_RESOURCES);
    assert_eq!(rig.refused(session, Request::OpenFile(open("/c", Create::Never))), Status::E_NO_RESOURCE);
    assert_eq!(used(&mut rig), 38 * BLOCK);
}

#[test]
fn s6_r13_extending_keeps_the_keys_of_all_who_have_it_open() {
    let (mut rig, session) = rig();
    let other = rig.session();
    let mine = rig.open_file(session, "/a", Create::New);
    let mut keys = Vec::new();
    // Another file between, so that each growth is an extension of its own.
    let between = rig.open_file(session, "/b", Create::New);
    let theirs = rig.open_file(other, "/a", Create::Never);
    for round in 1..=20 {
        let grown = rig.file(session, Request::GrowFile { key: mine.key, bytes: round * BLOCK, keep: false });
        rig.file(session, Request::GrowFile { key: between.key, bytes: round * BLOCK, keep: false });
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(grown.extensions[at].key, *key, "the key of extension {at}");
        }
        keys = grown.extensions.iter().map(|its| its.key).collect();
        assert_eq!(rig.key_reaches(mine.key), round * BLOCK);
        assert_eq!(rig.key_reaches(theirs.key), round * BLOCK);
    }
    assert!(keys.len() > 10, "{} extensions", keys.len());
    assert!(!rig.control.sessions[&other].grants[&Key(theirs.key)].quiescing);
}

#[test]
fn a_file_made_shorter_gives_up_its_blocks_for_all_and_only_cut_keys_are_stale() {
    let (mut rig, session) = rig();
    let other = rig.session();
    let mine = rig.open_file(session, "/a", Create::New);
    let theirs = rig.open_file(other, "/a", Create::Never);
    let grown = rig.file(session, Request::SetLength { key: mine.key, bytes: 10 * BLOCK });
    assert_eq!((grown.attributes.length, grown.room), (10 * BLOCK, 10 * BLOCK));
    let cut = rig.file(session, Request::SetLength { key: mine.key, bytes: BLOCK + 1 });
    assert_eq!((cut.attributes.length, cut.room), (BLOCK + 1, 2 * BLOCK));
    assert_eq!(cut.extensions[0].key, grown.extensions[0].key, "what stays keeps its key");
    assert_eq!(rig.key_reaches(theirs.key), 2 * BLOCK);
    let seen = rig.file(other, Request::QueryFile { key: theirs.key });
    assert_eq!(seen.attributes.length, BLOCK + 1);
    // Emptied by being opened.
    let empty = OpenFile { truncate: true, ..open("/a", Create::Never) };
    let emptied = rig.file(other, Request::OpenFile(empty));
    assert_eq!((emptied.attributes.length, emptied.room), (0, 0));
    for key in [mine.key, theirs.key, emptied.key] {
        assert_eq!(rig.key_reaches(key), 0);
    }
}

#[test]
fn s6_r3_r8_what_does_not_fit_changes_nothing() {
    let (mut rig, session) = rig();
    let file = rig.open_file(session, "/a", Create::New);
    rig.file(session, Request::GrowFile { key: file.key, bytes: 4 * BLOCK, keep: false });
    let before = rig.control.tables.usage();
    assert_eq!(
        rig.refused(session, Request::GrowFile { key: file.key, bytes: 1 << 40, keep: false }),
        Status::E_NO_RESOURCES
    );
    assert_eq!(
        rig.refused(session, Request::SetLength { key: file.key, bytes: u64::MAX }),
        Status::E_NO_RESOURCES
    );
    assert_eq!(rig.control.tables.usage(), before);
    assert_eq!(rig.key_reaches(file.key), 4 * BLOCK);
    let found = rig.file(session, Request::QueryFile { key: file.key });
    assert_eq!((found.room, found.attributes.length), (4 * BLOCK, 0));
}

#[test]
fn s6_r14_nobody_does_anything_with_a_key_of_somebody_else() {
    let (mut rig, session) = rig();
    let other = rig.session();
    let file = rig.open_file(session, "/a", Create::New);
    let key = file.key;
    for request in [
        Request::QueryFile { key },
        Request::ListExtensions { key, skip: 0 },
        Request::GrowFile { key, bytes: BLOCK, keep: false },
        Request::SetLength { key, bytes: 0 },
        Request::SyncFile { key, data_only: true },
        Request::Close { key },
    ] {
        assert_eq!(rig.refused(other, request.clone()), Status::E_PD_MISMATCH, "{request:?}");
    }
    rig.file(session, Request::QueryFile { key });
}

#[test]
fn who_opened_to_read_does_not_change_lengths_and_a_grant_of_blocks_is_no_file() {
    let (mut rig, session) = rig();
    rig.open_file(session, "/a", Create::New);
    let read = OpenFile { access: 1, ..open("/a", Create::Never) };
    let file = rig.file(session, Request::OpenFile(read));
    assert_eq!(rig.refused(session, Request::SetLength { key: file.key, bytes: 1 }), Status::E_ACCESS);
    assert_eq!(
        rig.refused(session, Request::GrowFile { key: file.key, bytes: 1, keep: false }),
        Status::E_ACCESS
    );
    let reply = rig.call(session, Request::CreateVolume { name: "blocks".into(), bytes: 1 << 20 });
    assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    let Reply::Grant(grant) = rig.call(session, Request::OpenVolume { name: "blocks".into(), access: 3 })
    else {
        panic!("a volume of blocks opens")
    };
    assert_eq!(
        rig.refused(session, Request::GrowFile { key: grant.key, bytes: 1, keep: false }),
        Status::E_OPCODE
    );
    let no_files = Request::StatPath { volume: "blocks".into(), path: path("/"), follow: true };
    assert_eq!(rig.refused(session, no_files), Status::E_BUSY_TIMEOUT);
    rig.done(session, Request::Close { key: grant.key });
    let no_files = Request::StatPath { volume: "blocks".into(), path: path("/"), follow: true };
    assert_eq!(rig.refused(session, no_files), Status::E_STORE);
    let of_files = Request::OpenVolume { name: "v".into(), access: 1 };
    assert_eq!(rig.refused(session, of_files), Status::E_PARAM);
    let smaller = Request::ResizeVolume { name: "v".into(), bytes: 1 << 20 };
    assert_eq!(rig.refused(session, smaller), Status::E_PARAM);
}

#[test]
fn a_file_without_a_name_lives_until_its_last_key_goes() {
    let (mut rig, session) = rig();
    let free = |rig: &mut Rig| space(rig, session).free;
    let before = free(&mut rig);
    let file = rig.open_file(session, "/a", Create::New);
    rig.file(session, Request::SetLength { key: file.key, bytes: 8 * BLOCK });
    rig.done(session, Request::UnlinkFile { volume: "v".into(), path: path("/a") });
    assert_eq!(free(&mut rig), before - 8 * BLOCK);
    let found = rig.file(session, Request::QueryFile { key: file.key });
    assert_eq!((found.attributes.links, found.attributes.length), (0, 8 * BLOCK));
    assert_eq!(rig.refused(session, Request::OpenFile(open("/a", Create::Never))), Status::E_NO_RESOURCE);
    rig.file(session, Request::GrowFile { key: file.key, bytes: 9 * BLOCK, keep: false });
    rig.done(session, Request::Close { key: file.key });
    rig.settle();
    assert_eq!(free(&mut rig), before);
}

#[test]
fn s6_r15_the_end_of_a_session_closes_its_files() {
    let (mut rig, session) = rig();
    let other = rig.session();
    let file = rig.open_file(session, "/a", Create::New);
    rig.file(session, Request::GrowFile { key: file.key, bytes: 2 * BLOCK, keep: false });
    let theirs = rig.open_file(other, "/a", Create::Never);
    rig.write_up_to(&file, 2 * BLOCK - 7);
    rig.control.disconnect(session);
    rig.settle();
    assert_eq!(rig.control.tables.usage().entries, 1);
    assert_eq!(rig.control.files.len(), 1);
    rig.control.disconnect(other);
    rig.settle();
    assert_eq!(rig.control.tables.usage(), tpt::Usage::default());
    assert_eq!(rig.control.files.len(), 0);
    let session = rig.session();
    let again = rig.open_file(session, "/a", Create::Never);
    assert_eq!((again.attributes.number, again.attributes.length), (theirs.attributes.number, 2 * BLOCK - 7));
}

#[test]
fn too_many_open_files_are_refused_and_leave_nothing() {
    let (mut rig, session) = rig_with(&Options { files: 2, ..Options::new("emu:64M".parse().unwrap()) });
    let first = rig.open_file(session, "/1", Create::New);
    rig.open_file(session, "/2", Create::New);
    assert_eq!(rig.refused(session, Request::OpenFile(open("/3", Create::New))), Status::E_NO_RESOURCES);
    // The file was made; it is only not open.
    rig.settle();
    rig.done(session, Request::Close { key: first.key });
    rig.settle();
    rig.open_file(session, "/3", Create::Never);
}

#[test]
fn a_time_that_was_set_outlives_the_close_of_the_file() {
    use wire::files::{AttributeChange, FileTarget, SetTime, Time};
    let (mut rig, session) = rig();
    let file = rig.open_file(session, "/a", Create::New);
    rig.file(session, Request::GrowFile { key: file.key, bytes: BLOCK, keep: false });
    rig.write_up_to(&file, 100);
    let time = Time { seconds: 1_000_000_000, nanoseconds: 5 };
    let change = AttributeChange { modified: Some(SetTime::At(time)), ..AttributeChange::default() };
    let set = Request::SetAttributes { of: FileTarget::Key(file.key), change };
    assert!(matches!(rig.call(session, set), Reply::Attributes(its) if its.modified == time));
    rig.done(session, Request::Close { key: file.key });
    rig.settle();
    let stat = Request::StatPath { volume: "v".into(), path: path("/a"), follow: true };
    match rig.call(session, stat) {
        Reply::Attributes(its) => assert_eq!((its.modified, its.length), (time, 100)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_volume_that_goes_takes_its_files_along() {
    let (mut rig, session) = rig();
    let file = rig.open_file(session, "/a", Create::New);
    rig.file(session, Request::GrowFile { key: file.key, bytes: BLOCK, keep: false });
    let reply = rig.call(session, Request::DeleteVolume { name: "v".into() });
    assert!(matches!(reply, Reply::Revoked { grants: 1, draining: 0 }), "{reply:?}");
    rig.settle();
    assert_eq!(rig.control.tables.usage(), tpt::Usage::default());
    assert_eq!(rig.control.files.len(), 0);
    assert_eq!(rig.refused(session, Request::QueryFile { key: file.key }), Status::E_ENTRY_INVALID);
    assert_eq!(rig.refused(session, Request::OpenFile(open("/a", Create::New))), Status::E_NO_RESOURCE);
}

#[test]
fn rights_on_the_volume_are_the_most_that_its_files_give() {
    let (mut rig, session) = rig();
    let file = rig.open_file(session, "/a", Create::New);
    rig.done(session, Request::Close { key: file.key });
    let access = Access::READ.bits();
    let subject = wire::control::Subject::Everyone;
    let reply = rig.call(session, Request::SetAccess { name: "v".into(), subject, access });
    assert!(matches!(reply, Reply::Revoked { .. }), "{reply:?}");
    let stranger = rig.session_of(Credentials { uid: 4242, gid: 4242, pid: 1, groups: Vec::new() });
    let write = OpenFile { access: 3, ..open("/a", Create::Never) };
    assert_eq!(rig.refused(stranger, Request::OpenFile(write)), Status::E_AUTH);
    let read = OpenFile { access: 1, ..open("/a", Create::Never) };
    assert_eq!(rig.refused(stranger, Request::OpenFile(read)), Status::E_AUTH, "the mode is 0640");
    let listing = Request::StatPath { volume: "v".into(), path: path("/a"), follow: true };
    assert!(matches!(rig.call(stranger, listing), Reply::Attributes(_)));
}
