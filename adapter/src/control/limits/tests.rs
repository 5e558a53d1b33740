//! Each limit holds, says which it is and how it is raised, and what is given back can be had again.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use wire::control::{Reply, Request};
use wire::layout::Entries;
use wire::shm::SharedMemory;

use super::*;
use crate::assembly::{Assembled, Options, Turn, Turned, assemble};
use crate::control::{Caller, Control, SessionId};

struct Rig {
    control: Control,
    engine: Box<dyn Turn>,
    next_id: u32,
}

fn somebody(uid: u32) -> Credentials {
    Credentials { uid, gid: uid, pid: 1, groups: Vec::new() }
}

impl Rig {
    fn new(change: impl FnOnce(&mut Policy)) -> Self {
        let mut options = Options::new("null:64M".parse().unwrap());
        options.policy.anyone_creates = true;
        change(&mut options.policy);
        let Assembled { control, engine, .. } = assemble(&options, Turned::ByCaller).unwrap();
        Self { control, engine: engine.unwrap(), next_id: 0 }
    }

    fn connect(&mut self, uid: u32) -> Result<SessionId, String> {
        let session = self.control.connect(somebody(uid)).map_err(|refusal| refusal.detail)?;
        let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
        assert!(matches!(self.call(session, hello, None), Reply::Welcome(_)));
        Ok(session)
    }

    fn session(&mut self, uid: u32) -> SessionId {
        self.connect(uid).unwrap()
    }

    fn ask(&mut self, session: SessionId, request: Request, descriptor: Option<OwnedFd>) -> Caller {
        self.next_id += 1;
        let caller = Caller::new(session, self.next_id);
        self.control.request(caller, request, descriptor.into_iter().collect());
        caller
    }

    fn turn(&mut self) {
        self.engine.turn();
        self.control.advance(Instant::now());
        std::thread::yield_now();
    }

    /// The answer; what comes with it is received.
    fn call(&mut self, session: SessionId, request: Request, descriptor: Option<OwnedFd>) -> Reply {
        let reply = self.call_unread(session, request, descriptor);
        self.control.received_all(session);
        reply
    }

    fn call_unread(&mut self, session: SessionId, request: Request, descriptor: Option<OwnedFd>) -> Reply {
        let caller = self.ask(session, request, descriptor);
        loop {
            if let Some(out) = self.control.next_reply() {
                assert_eq!(out.caller, caller);
                return out.reply;
            }
            self.turn();
        }
    }

    fn register(&mut self, session: SessionId, bytes: u64) -> Result<u64, String> {
        let request = Request::RegisterMemory { length: bytes, access: 3 };
        match self.call(session, request, Some(memfd(bytes))) {
            Reply::Region { region } => Ok(region),
            other => Err(refused(other)),
        }
    }

    fn queue(&mut self, session: SessionId) -> Result<u32, String> {
        match self.call(session, Request::CreateQueue { entries: 2 }, Some(queue_memory())) {
            Reply::Queue { queue } => Ok(queue),
            other => Err(refused(other)),
        }
    }

    fn open(&mut self, session: SessionId, name: &str) -> Result<u64, String> {
        match self.call(session, Request::OpenVolume { name: name.into(), access: 1 }, None) {
            Reply::Grant(grant) => Ok(grant.key),
            other => Err(refused(other)),
        }
    }

    fn create(&mut self, session: SessionId, name: &str, bytes: u64) {
        let reply = self.call(session, Request::CreateVolume { name: name.into(), bytes }, None);
        assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    }

    /// A request that answers Done.
    fn done(&mut self, session: SessionId, request: Request) {
        let reply = self.call(session, request, None);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    fn leave(&mut self, session: SessionId) {
        self.control.disconnect(session);
        while self.control.sessions.contains_key(&session) {
            self.turn();
        }
    }

    fn held(&self, uid: u32) -> Held {
        self.control.held_by(uid)
    }
}

fn refused(reply: Reply) -> String {
    match reply {
        Reply::Error { status: Status::E_NO_RESOURCES, detail } => detail,
        other => panic!("{other:?} is no limit"),
    }
}

/// The refusal names the holder, the limit and what raises it.
fn says<T: std::fmt::Debug>(result: Result<T, String>, parts: &[&str]) {
    let text = result.unwrap_err();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// What a user sent and was refused is closed.
fn settled(uid: u32) {
    use wire::discard::{Owner, pending_of};
    while pending_of(Owner::User(uid)) + pending_of(Owner::Connections(uid)) > 0 {
        std::thread::yield_now();
    }
}

fn memfd(bytes: u64) -> OwnedFd {
    let fd = memfd_create("limits", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fd
}

fn queue_memory() -> OwnedFd {
    let entries = Entries::new(2).unwrap();
    let (memory, fd) = SharedMemory::create("limits", entries.bytes()).unwrap();
    wire::view::QueueView::create(std::sync::Arc::new(memory), entries).unwrap();
    fd
}

#[test]
fn regions_are_limited_by_session_and_user() {
    let mut rig = Rig::new(|policy| (policy.limits.regions, policy.regions_per_user) = (2, 3));
    let (a, b, other) = (rig.session(1), rig.session(1), rig.session(2));
    let first = rig.register(a, 4096).unwrap();
    rig.register(a, 4096).unwrap();
    says(rig.register(a, 4096), &["the session has 2 memory regions", "limit of 2", "--session-regions"]);
    rig.register(b, 4096).unwrap();
    says(rig.register(b, 4096), &["user 1 has 3 memory regions", "limit of 3", "--user-regions"]);
    rig.register(other, 4096).unwrap();
    rig.done(a, Request::ReleaseMemory { region: first });
    rig.register(b, 4096).unwrap();
}

#[test]
fn pinned_bytes_are_limited_by_session_and_user() {
    let mut rig =
        Rig::new(|policy| (policy.limits.pinned_bytes, policy.pinned_per_user) = (64 << 10, 96 << 10));
    let (a, b, other) = (rig.session(1), rig.session(1), rig.session(2));
    let first = rig.register(a, 64 << 10).unwrap();
    says(rig.register(a, 4096), &["the session has 65536 bytes", "limit of 65536", "--session-memory"]);
    says(rig.queue(a), &["bytes of pinned memory", "--session-memory"]);
    rig.register(b, 32 << 10).unwrap();
    says(rig.register(b, 4096), &["user 1 has 98304 bytes", "limit of 98304", "--user-memory"]);
    rig.register(other, 64 << 10).unwrap();
    rig.done(a, Request::ReleaseMemory { region: first });
    rig.register(b, 4096).unwrap();
}

#[test]
fn queues_are_limited_by_session_and_user() {
    let mut rig = Rig::new(|policy| (policy.limits.queues, policy.queues_per_user) = (2, 3));
    let (a, b, other) = (rig.session(1), rig.session(1), rig.session(2));
    let first = rig.queue(a).unwrap();
    rig.queue(a).unwrap();
    says(rig.queue(a), &["the session has 2 queues", "limit of 2", "--session-queues"]);
    rig.queue(b).unwrap();
    says(rig.queue(b), &["user 1 has 3 queues", "limit of 3", "--user-queues"]);
    rig.queue(other).unwrap();
    rig.done(a, Request::DestroyQueue { queue: first });
    rig.queue(b).unwrap();
}

#[test]
fn grants_are_limited_by_session_and_user() {
    let mut rig = Rig::new(|policy| (policy.limits.grants, policy.grants_per_user) = (2, 3));
    let (a, b) = (rig.session(1), rig.session(1));
    rig.create(a, "v", 1 << 20);
    let first = rig.open(a, "v").unwrap();
    rig.open(a, "v").unwrap();
    says(rig.open(a, "v"), &["the session has 2 grants", "limit of 2", "--session-grants"]);
    rig.open(b, "v").unwrap();
    says(rig.open(b, "v"), &["user 1 has 3 grants", "limit of 3", "--user-grants"]);
    rig.done(a, Request::Close { key: first });
    rig.open(b, "v").unwrap();
}

/// A grant sets a whole segment of the tables aside: many sessions with one grant each cost as much as many grants.
#[test]
fn table_segments_are_limited_by_user() {
    let mut rig = Rig::new(|policy| policy.entries_per_user = 32);
    let sessions = [rig.session(1), rig.session(1), rig.session(1)];
    rig.create(sessions[0], "v", 1 << 20);
    for _ in 0..16 {
        rig.open(sessions[0], "v").unwrap();
    }
    rig.open(sessions[1], "v").unwrap();
    says(rig.open(sessions[2], "v"), &["user 1 has 32 table entries", "limit of 32", "--user-entries"]);
    says(rig.open(sessions[0], "v"), &["--user-entries"]);
    rig.open(sessions[1], "v").unwrap();
    rig.leave(sessions[1]);
    rig.open(sessions[2], "v").unwrap();
}

/// A volume in pieces costs an LBA table entry for each: by opening it and by growing it under open grants.
#[test]
fn entries_of_the_lba_table_are_limited_by_user() {
    let mut rig = Rig::new(|policy| policy.ranges_per_user = 3);
    let session = rig.session(1);
    rig.create(session, "v", 1 << 20);
    rig.create(session, "between", 1 << 20);
    let grow =
        |rig: &mut Rig, bytes| rig.call(session, Request::ResizeVolume { name: "v".into(), bytes }, None);
    assert!(matches!(grow(&mut rig, 2 << 20), Reply::Volume(volume) if volume.extents == 2));
    rig.open(session, "v").unwrap();
    says(rig.open(session, "v"), &["user 1 has 2 LBA table entries", "limit of 3", "--user-ranges"]);
    let small = rig.open(session, "between").unwrap();
    rig.create(session, "more", 1 << 20);
    assert!(matches!(grow(&mut rig, 3 << 20), Reply::Volume(volume) if volume.extents == 3));
    assert_eq!(rig.held(1).of(What::Ranges), 3, "the grant keeps its old size: more is not to be had");
    rig.done(session, Request::Close { key: small });
    assert_eq!(rig.held(1).of(What::Ranges), 2);
}

#[test]
fn connections_are_limited_by_user_and_in_all() {
    let mut rig = Rig::new(|policy| (policy.sessions, policy.sessions_per_user) = (3, 2));
    let first = rig.session(1);
    rig.session(1);
    says(rig.connect(1), &["user 1 has 2 connections", "limit of 2", "--user-sessions"]);
    rig.session(2);
    says(rig.connect(3), &["the adapter has 3 connections", "limit of 3", "--sessions"]);
    rig.leave(first);
    rig.session(1);
}

/// An eventfd that was sent and not received lives on in the socket.
#[test]
fn descriptors_are_limited_by_session_and_user_also_those_that_nobody_receives() {
    let mut rig = Rig::new(|policy| (policy.descriptors, policy.descriptors_per_user) = (8, 12));
    let session = rig.session(71);
    let unread = |rig: &mut Rig, session| {
        let reply = rig.call_unread(session, Request::CreateQueue { entries: 2 }, Some(queue_memory()));
        let Reply::Queue { queue } = reply else { return Err(refused(reply)) };
        let reply = rig.call_unread(session, Request::DestroyQueue { queue }, None);
        assert!(matches!(reply, Reply::Done));
        Ok(())
    };
    (0..5).for_each(|_| unread(&mut rig, session).unwrap());
    says(
        unread(&mut rig, session),
        &["the session has 6 descriptors", "limit of 8", "--session-descriptors"],
    );
    let second = rig.session(71);
    (0..3).for_each(|_| unread(&mut rig, second).unwrap());
    settled(71);
    says(unread(&mut rig, second), &["user 71 has 10 descriptors", "limit of 12", "--user-descriptors"]);
    settled(71);
    rig.session(71);
    rig.session(71);
    says(rig.connect(71), &["user 71 has 12 descriptors", "--user-descriptors"]);
    let other = rig.session(2);
    unread(&mut rig, other).unwrap();
    rig.control.received_all(session);
    unread(&mut rig, second).unwrap();
}

#[test]
fn requests_without_an_answer_are_limited_by_session_and_user() {
    let mut rig = Rig::new(|policy| (policy.limits.outstanding, policy.outstanding_per_user) = (2, 3));
    let (a, b, other) = (rig.session(1), rig.session(1), rig.session(2));
    rig.create(a, "v", 1 << 20);
    let keys = [rig.open(a, "v").unwrap(), rig.open(a, "v").unwrap(), rig.open(b, "v").unwrap()];
    // Each waits for the engine, which does not turn.
    rig.ask(a, Request::Close { key: keys[0] }, None);
    assert!(rig.control.takes_requests(a));
    rig.ask(a, Request::Close { key: keys[1] }, None);
    assert!(!rig.control.takes_requests(a), "two of two");
    assert!(rig.control.takes_requests(b));
    rig.ask(b, Request::Close { key: keys[2] }, None);
    assert!(!rig.control.takes_requests(b), "three of the user's three");
    assert!(rig.control.takes_requests(other));
    while rig.held(1).of(What::Requests) > 0 {
        rig.turn();
    }
    assert!(rig.control.takes_requests(a) && rig.control.takes_requests(b));
    assert_eq!(rig.control.users.get(1).unwrap().outstanding, 0);
}

/// Requests of a session that died without an answer are not counted for its user for ever.
#[test]
fn requests_of_a_dead_session_are_not_counted_any_more() {
    let mut rig = Rig::new(|_| ());
    let (session, dies) = (rig.session(1), rig.session(1));
    rig.create(session, "v", 1 << 20);
    let key = rig.open(dies, "v").unwrap();
    rig.ask(dies, Request::Close { key }, None);
    rig.ask(dies, Request::DeleteVolume { name: "v".into() }, None);
    rig.leave(dies);
    for _ in 0..10 {
        rig.turn();
    }
    assert_eq!(rig.control.users.get(1).unwrap().outstanding, 0);
}

/// A descriptor whose close takes as long as somebody likes: it lingers.
fn hanging() -> (OwnedFd, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::from_secs(60))).unwrap();
    stream.set_nonblocking(true).unwrap();
    while rustix::io::write(&stream, &[0; 1 << 16]).is_ok() {}
    (stream.into(), peer)
}

#[test]
fn who_sends_descriptors_that_cannot_be_closed_is_not_heard_until_they_are() {
    let mut rig = Rig::new(|_| ());
    let (session, other) = (rig.session(73), rig.session(74));
    let mut peers = Vec::new();
    while rig.control.takes_requests(session) {
        assert!(peers.len() < 20, "there is an end");
        let (fd, peer) = hanging();
        peers.push(peer);
        let request = Request::RegisterMemory { length: 4096, access: 3 };
        let reply = rig.call(session, request, Some(fd));
        assert!(matches!(reply, Reply::Error { status: Status::E_LOCAL_MEM, .. }), "{reply:?}");
    }
    assert_eq!(peers.len(), 16);
    assert_eq!(rig.held(73).of(What::Descriptors), 1 + 16, "they are its user's");
    assert!(rig.control.takes_requests(other));
    rig.register(other, 4096).unwrap();
    drop(peers); // Nothing is left to linger for.
    settled(73);
    assert!(rig.control.takes_requests(session));
}

#[test]
fn rights_of_one_group_of_many_are_found_and_those_of_no_group_are_not() {
    let mut rig = Rig::new(|_| ());
    let owner = rig.session(1);
    rig.create(owner, "v", 1 << 20);
    let subject = wire::control::Subject::Group(3);
    let reply = rig.call(owner, Request::SetAccess { name: "v".into(), subject, access: 1 }, None);
    assert!(matches!(reply, Reply::Volume(_) | Reply::Revoked { .. } | Reply::Done), "{reply:?}");
    // In any order, as the kernel may tell them.
    let orders = [
        ((3..99).collect::<Vec<u32>>(), true),
        ((3..99).rev().collect(), true),
        (vec![9, 1, 7, 5], false),
        (Vec::new(), false),
    ];
    for (groups, may) in orders {
        let session = rig.control.connect(Credentials { groups, ..somebody(5) }).unwrap();
        let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
        rig.call(session, hello, None);
        let reply = rig.call(session, Request::OpenVolume { name: "v".into(), access: 1 }, None);
        assert_eq!(matches!(reply, Reply::Grant(_)), may, "{reply:?}");
    }
}

#[test]
fn the_overflow_user_and_endless_groups_are_refused() {
    let mut rig = Rig::new(|_| ());
    says(rig.connect(OVERFLOW_ID), &["--allow-overflow-user"]);
    let groups = (0..=u32::try_from(GROUPS).unwrap()).collect();
    let refusal = rig.control.connect(Credentials { groups, ..somebody(1) }).unwrap_err();
    assert!(refusal.detail.contains("4097 groups"), "{}", refusal.detail);
    Rig::new(|policy| policy.allow_overflow_user = true).session(OVERFLOW_ID);
}

fn process() -> Process {
    Process { descriptors: 1000, memlock: Some(8 << 20), memory: Some(1 << 30), mappings: Some(100) }
}

#[test]
fn a_user_gets_a_share_of_what_the_process_and_the_tables_have() {
    let tables = tpt::Limits { entries: 1 << 10, lba_entries: 1 << 12, extensions: 0, regions: 1 << 14 };
    let ceilings = Ceilings::new(&Policy::new(0), &process(), tables);
    for (what, most, why) in [
        (What::Descriptors, 500, "RLIMIT_NOFILE"),
        (What::Pinned, 4 << 20, "RLIMIT_MEMLOCK"),
        (What::Regions, 50, "dma_entry_limit"),
        (What::Entries, 512, "the protection table"),
        (What::Ranges, 2048, "the LBA table"),
    ] {
        let limit = &ceilings.user[what as usize];
        assert_eq!(limit.most, most, "{what:?}");
        assert!(limit.raise.contains(why) && limit.raise.contains("50 % (--user-share)"), "{}", limit.raise);
    }
    let told = ceilings.told(Policy::new(0).limits);
    assert_eq!((told.pinned_bytes, told.regions), (4 << 20, 50), "a session is told what its user may have");

    let whole = Policy { user_share: 100, ..Policy::new(0) };
    assert_eq!(Ceilings::new(&whole, &process(), tables).of_user(What::Pinned), 8 << 20);
    let unbound = Process { memlock: None, mappings: None, ..process() };
    let ceilings = Ceilings::new(&Policy::new(0), &unbound, tables);
    assert_eq!(ceilings.of_user(What::Pinned), 256 << 20);
    assert_eq!(ceilings.of_user(What::Regions), 4096);
    let small = Process { memory: Some(64 << 20), ..unbound };
    assert_eq!(Ceilings::new(&Policy::new(0), &small, tables).of_user(What::Pinned), 32 << 20);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// In a process of its own, as other tests open and close descriptors, too.
#[test]
fn nothing_drifts_in_a_thousand_cycles() {
    const ALONE: &str = "PORTCULLIS_LIMITS_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "control::limits::tests::nothing_drifts_in_a_thousand_cycles";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let status = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let mut rig = Rig::new(|_| ());
    let owner = rig.session(1);
    rig.create(owner, "v", 1 << 20);
    let cycle = |rig: &mut Rig, orderly: bool| {
        let session = rig.session(1);
        let region = rig.register(session, 8192).unwrap();
        let queue = rig.queue(session).unwrap();
        let key = rig.open(session, "v").unwrap();
        if orderly {
            rig.done(session, Request::Close { key });
            rig.done(session, Request::ReleaseMemory { region });
            rig.done(session, Request::DestroyQueue { queue });
        }
        rig.leave(session);
    };
    cycle(&mut rig, true);
    let before = (rig.held(1), rig.control.tables.usage(), rig.control.mapper.mappings(), open_descriptors());
    for round in 0..1000 {
        cycle(&mut rig, round % 2 == 0);
    }
    let now = (rig.held(1), rig.control.tables.usage(), rig.control.mapper.mappings(), open_descriptors());
    assert_eq!(now, before);
    assert_eq!(rig.control.users.get(1).unwrap().sessions.len(), 1);
    println!("counted: 1000 cycles of taking and giving back everything that is limited");
}

const LARGE: u64 = 64 << 20;

#[test]
fn others_are_answered_while_much_memory_comes_in_and_goes_out() {
    let mut rig = Rig::new(|_| ());
    let (large, small) = (rig.session(1), rig.session(2));
    let request = Request::RegisterMemory { length: LARGE, access: 3 };
    let registering = rig.ask(large, request, Some(memfd(LARGE)));
    assert!(rig.control.next_reply().is_none(), "nothing of it is done on the control thread");
    assert!(matches!(rig.call(small, Request::ShowDevice, None), Reply::Device(_)));
    assert_eq!(rig.held(1).of(What::Pinned), LARGE, "it counts from the request on");
    let region = loop {
        match rig.control.next_reply() {
            Some(out) if out.caller == registering => break out.reply,
            Some(out) => panic!("{out:?}"),
            None => rig.turn(),
        }
    };
    let Reply::Region { region } = region else { panic!("{region:?}") };
    let releasing = rig.ask(large, Request::ReleaseMemory { region }, None);
    assert!(matches!(rig.call(small, Request::ShowDevice, None), Reply::Device(_)));
    assert_eq!(rig.held(1).of(What::Pinned), LARGE, "and until it is given back");
    while rig.control.next_reply().is_none_or(|out| out.caller != releasing) {
        rig.turn();
    }
    assert_eq!(rig.held(1).of(What::Pinned), 0);
}

#[test]
fn a_session_that_dies_while_its_memory_comes_in_leaves_nothing() {
    let mut rig = Rig::new(|policy| policy.pinned_per_user = LARGE);
    let witness = rig.session(72);
    let mapped = rig.control.mapper.mappings();
    // Dies earlier and later on the way.
    for turns in [0, 1, 10, 100, 1000] {
        let session = rig.session(72);
        let request = Request::RegisterMemory { length: LARGE, access: 3 };
        rig.ask(session, request, Some(memfd(LARGE)));
        rig.ask(session, Request::CreateQueue { entries: 2 }, Some(queue_memory()));
        (0..turns).for_each(|_| rig.turn());
        rig.control.disconnect(session);
        while rig.control.sessions.contains_key(&session) {
            assert!(rig.held(72).of(What::Pinned) > 0, "it counts as long as it is there");
            rig.turn();
        }
        settled(72);
        assert_eq!(rig.held(72), {
            let mut one = Held::default();
            one.add(What::Connections, 1);
            one.add(What::Descriptors, 1);
            one
        });
        assert_eq!((rig.control.mapper.mappings(), rig.control.tables.usage().regions), (mapped, 0));
        while rig.control.next_reply().is_some() {}
    }
    rig.register(witness, LARGE).expect("the user may have as much again");
}

/// It has come in, and nobody has looked yet when the session ends.
#[test]
fn memory_that_came_in_for_a_dead_session_goes_out_again() {
    let mut rig = Rig::new(|_| ());
    let session = rig.session(75);
    let before = rig.control.mapper.mappings();
    rig.ask(session, Request::RegisterMemory { length: 4096, access: 3 }, Some(memfd(4096)));
    let done = rig.control.memory_done().try_clone_to_owned().unwrap();
    let mut ready = [rustix::event::PollFd::new(&done, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut ready, None).unwrap(), 1);
    assert_eq!(rig.control.mapper.mappings(), before + 1);
    rig.leave(session);
    assert_eq!(rig.control.mapper.mappings(), before);
}

/// The kernel passes it on whatever is in it.
#[test]
fn memory_that_is_none_is_refused_by_the_thread_that_looks_at_it() {
    let mut rig = Rig::new(|_| ());
    let session = rig.session(1);
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let request = Request::RegisterMemory { length: 4096, access: 3 };
    let reply = rig.call(session, request, Some(pipe.as_fd().try_clone_to_owned().unwrap()));
    assert!(matches!(reply, Reply::Error { status: Status::E_LOCAL_MEM, .. }), "{reply:?}");
    assert_eq!(rig.held(1).of(What::Regions), 0);
}
