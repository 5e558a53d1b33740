//! Management requests by processing queues: the same as on the socket, to their own session only, and with whatever
//! bytes a hostile application puts into them.

use std::collections::BTreeSet;
use std::time::Duration;

use portcullis::wire::control::{MAX_MESSAGE, Reply, Request, Subject};
use portcullis::wire::frame::{decode_body, encode_body};
use portcullis::wire::layout::{CompletionEntry, SubmissionEntry, opcode};
use portcullis::{Access, Buffer, MemoryAccess, Session, Statistics, Status, raw::RawQueue};

use super::{Case, Client, PATIENCE, Rig, VOLUME, somebody, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "s6_r1_two_classes_and_an_unknown_operation_changes_nothing", run: classes },
    Case { name: "s6_r1_a_queue_answers_as_the_socket_does", run: as_by_socket },
    Case { name: "s6_r9_query_while_io_is_active", run: query_during_io },
    Case { name: "s6_r14_other_domains_and_users_get_nothing", run: others },
    Case { name: "s6_r1_hostile_management_requests", run: hostile },
    Case { name: "management_requests_that_could_wait_for_each_other_do_not", run: no_deadlock },
    Case { name: "s5_r13_a_flood_of_management_delays_nobody", run: flood },
    Case { name: "s6_r15_queues_with_management_requests_end_without_a_trace", run: ends },
];

/// Bytes of memory that a request and its reply have.
const ROOM: usize = MAX_MESSAGE;

/// A queue and memory for management requests.
struct Desk {
    raw: RawQueue,
    places: Vec<Buffer>,
}

impl Desk {
    fn new(session: &Session, places: usize) -> Self {
        let memory = session.register(places * ROOM, MemoryAccess::Both).unwrap();
        Self { raw: RawQueue::create(session, 64).unwrap(), places: memory.buffers(ROOM, 4096).unwrap() }
    }

    fn entry(&self, place: usize, length: usize) -> SubmissionEntry {
        let buffer = &self.places[place];
        SubmissionEntry {
            opcode: opcode::MANAGE,
            user_data: place as u64,
            offset: ROOM as u64,
            length: length as u32,
            region: buffer.region(),
            region_offset: buffer.region_offset(),
            ..SubmissionEntry::default()
        }
    }

    fn put(&mut self, place: usize, request: &Request) -> SubmissionEntry {
        let length = encode_body(request, &mut self.places[place]).unwrap();
        self.entry(place, length)
    }

    fn submit(&mut self, entry: &SubmissionEntry) {
        self.raw.push(entry).unwrap();
        self.raw.ring().unwrap();
    }

    fn wait(&mut self) -> CompletionEntry {
        self.raw.wait(PATIENCE).unwrap().expect("an answer in time")
    }

    /// What lies in the memory of a completed request.
    fn reply(&self, done: &CompletionEntry) -> Option<Reply> {
        let bytes = &self.places[done.user_data as usize][..done.bytes as usize];
        (!bytes.is_empty()).then(|| decode_body(bytes).expect("a whole reply"))
    }

    fn call(&mut self, request: &Request) -> Reply {
        let entry = self.put(0, request);
        self.submit(&entry);
        let done = self.wait();
        let reply = self.reply(&done).unwrap_or_else(|| panic!("{request:?}: {}", Status(done.status)));
        let status = if let Reply::Error { status, .. } = &reply { *status } else { Status::OK };
        assert_eq!(Status(done.status), status, "the completion says what the reply does");
        reply
    }

    fn status(&mut self, request: &Request) -> Status {
        match self.call(request) {
            Reply::Error { status, .. } => status,
            _ => Status::OK,
        }
    }
}

/// What must be the same before and after.
fn holds(session: &Session) -> [u64; 4] {
    let Statistics { entries, regions, pinned_bytes, lba_entries, .. } = session.statistics().unwrap();
    [entries, regions, pinned_bytes, lba_entries]
}

fn classes(rig: &Rig) {
    let adapter = rig.isolated();
    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let mut desk = Desk::new(&client.session, 2);
    let before = holds(&client.session);
    let query = Request::Query { key: client.volume.key() };
    let entry = desk.put(0, &query);
    for unknown in (11..=u8::MAX).chain([0]) {
        desk.submit(&SubmissionEntry { opcode: unknown, ..entry });
        let done = desk.wait();
        assert_eq!((Status(done.status), done.bytes), (Status::E_OPCODE, 0), "operation {unknown}");
    }
    assert_eq!(decode_body::<Request>(&desk.places[0][..entry.length as usize]), Ok(query.clone()));
    assert_eq!(holds(&client.session), before);
    assert!(matches!(desk.call(&query), Reply::Grant(grant) if grant.key == client.volume.key()));
    assert_eq!(client.status(&client.request(opcode::READ)), Status::OK);
}

fn as_by_socket(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let mut desk = Desk::new(&session, 1);
    let name = || "v".to_owned();
    let Reply::Volume(made) = desk.call(&Request::CreateVolume { name: name(), bytes: VOLUME }) else {
        panic!("no volume")
    };
    assert_eq!(made, session.volume_info("v").unwrap());
    let open = Request::OpenVolume { name: name(), access: 7 };
    let Reply::Grant(grant) = desk.call(&open) else { panic!("no grant") };
    assert_eq!(desk.call(&Request::Query { key: grant.key }), Reply::Grant(grant));
    let Reply::Volumes { volumes, more: false } = desk.call(&Request::ListVolumes { after: None }) else {
        panic!("no list")
    };
    assert_eq!(volumes.len(), 1);
    assert_eq!(desk.call(&Request::ShowDevice), Reply::Device(session.device_info().unwrap()));
    // What was opened by the queue is a grant as any.
    let mut read = desk.entry(0, 4096);
    (read.opcode, read.key, read.offset) = (opcode::READ, grant.key, 0);
    desk.submit(&read);
    assert_eq!(Status(desk.wait().status), Status::OK);
    assert_eq!(desk.call(&Request::Close { key: grant.key }), Reply::Done);
    desk.submit(&read);
    assert_ne!(Status(desk.wait().status), Status::OK, "the key ended with the grant");
    assert!(matches!(desk.call(&Request::DeleteVolume { name: name() }), Reply::Revoked { .. }));
    assert_eq!(desk.status(&Request::ShowVolume { name: name() }), Status::E_NO_RESOURCE);
    assert_eq!(desk.status(&Request::OpenVolume { name: "a/b".into(), access: 1 }), Status::E_PARAM);
}

fn query_during_io(rig: &Rig) {
    let adapter = rig.isolated();
    let mut client = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let mut desk = Desk::new(&client.session, 1);
    let query = Request::Query { key: client.volume.key() };
    let entry = SubmissionEntry { length: 64 << 10, ..client.request(opcode::READ) };
    let (mut queries, mut reads) = (0, 0u32);
    while queries < 200 {
        // Something is always in flight, also while a query is looked at.
        while client.raw.push(&entry).is_ok() {}
        client.raw.ring().unwrap();
        assert!(matches!(desk.call(&query), Reply::Grant(grant) if grant.key == client.volume.key()));
        queries += 1;
        let mut ended = 0;
        while let Some(done) = client.raw.poll() {
            assert_eq!(Status(done.status), Status::OK);
            ended += 1;
        }
        if ended == 0 {
            assert_eq!(client.raw.wait(PATIENCE).unwrap().map(|done| Status(done.status)), Some(Status::OK));
            ended = 1;
        }
        reads += ended;
    }
    assert!(reads >= queries);
}

fn others(rig: &Rig) {
    let adapter = rig.embedded();
    let mut alice = Client::create(adapter.session().unwrap(), "v");
    let bob = adapter.session_as(somebody(1234)).unwrap();
    let mut desk = Desk::new(&bob, 1);
    let key = alice.volume.key();
    for request in [Request::Query { key }, Request::Close { key }] {
        assert_eq!(desk.status(&request), Status::E_PD_MISMATCH, "{request:?}");
    }
    let name = || "v".to_owned();
    for (request, status) in [
        (Request::OpenVolume { name: name(), access: 1 }, Status::E_NO_RESOURCE),
        (Request::DeleteVolume { name: name() }, Status::E_NO_RESOURCE),
        (Request::ResizeVolume { name: name(), bytes: 4096 }, Status::E_NO_RESOURCE),
        (Request::SetAccess { name: name(), subject: Subject::User(1234), access: 7 }, Status::E_NO_RESOURCE),
        (Request::CreateVolume { name: "w".into(), bytes: 4096 }, Status::E_AUTH),
        (Request::ReleaseMemory { region: alice.memory.key() }, Status::E_LOCAL_MEM),
        (Request::DestroyQueue { queue: alice.raw.number() }, Status::E_NOT_OPEN),
    ] {
        assert_eq!(desk.status(&request), status, "{request:?}");
    }
    // A request in memory of somebody else is not read, and no answer is written there.
    let own = desk.put(0, &Request::ShowDevice);
    desk.submit(&SubmissionEntry { region: alice.memory.key(), ..own });
    let done = desk.wait();
    assert_eq!((Status(done.status), done.bytes), (Status::E_LOCAL_MEM, 0));
    assert_eq!(alice.status(&alice.request(opcode::READ)), Status::OK);
}

fn hostile(rig: &Rig) {
    let adapter = rig.isolated();
    let mut witness = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let session = Session::connect(adapter.socket()).unwrap();
    let mut desk = Desk::new(&session, 2);
    let before = holds(&witness.session);
    // What only the socket takes.
    for request in [
        Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION },
        Request::CreateQueue { entries: 4 },
        Request::RegisterMemory { length: 4096, access: 3 },
    ] {
        assert_eq!(desk.status(&request), Status::E_PARAM, "{request:?}");
    }
    // Bytes that are no request, whole ones with something behind, and cut ones.
    let whole = desk.put(0, &Request::ShowVolume { name: "v".repeat(100) });
    let mut random = 1u32;
    for round in 0..500u32 {
        let mut entry = whole;
        match round % 4 {
            0 => entry.length = round % whole.length + 1,
            1 => entry.length = whole.length + 1 + round,
            _ => {
                for byte in &mut desk.places[0][..whole.length as usize] {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *byte = (random >> 24) as u8;
                }
            }
        }
        desk.submit(&entry);
        let done = desk.wait();
        assert_ne!(Status(done.status), Status::OK, "round {round}");
        assert!(matches!(desk.reply(&done), Some(Reply::Error { .. })), "it is told what is wrong");
        desk.put(0, &Request::ShowVolume { name: "v".repeat(100) });
    }
    // Lengths and rooms that nothing has, and too little room, however little.
    let good = desk.put(0, &Request::ShowDevice);
    for (length, offset) in
        [(0, 1), (1, 0), (ROOM as u32 + 1, 1), (1, ROOM as u64 + 1), (u32::MAX, 1), (1, u64::MAX)]
    {
        desk.submit(&SubmissionEntry { length, offset, ..good });
        assert_eq!(Status(desk.wait().status), Status::E_PARAM, "{length} bytes, room for {offset}");
    }
    for room in [1, 2, 3, 4, 100, 1000, ROOM as u64 - 1] {
        let good = desk.put(0, &Request::ShowDevice);
        desk.places[0][200..].fill(0xab);
        desk.submit(&SubmissionEntry { offset: room, ..good });
        let done = desk.wait();
        assert_eq!(Status(done.status), Status::E_PARAM);
        assert!(u64::from(done.bytes) <= room);
        assert!(desk.places[0][room.max(200) as usize..].iter().all(|byte| *byte == 0xab), "behind its room");
    }
    let good = desk.put(0, &Request::ShowDevice);
    for spoil in [
        |e: &mut SubmissionEntry| e.key = 1,
        |e: &mut SubmissionEntry| e.extension = 1,
        |e: &mut SubmissionEntry| e.flags = 4,
        |e: &mut SubmissionEntry| e.scatter_count = 1,
        |e: &mut SubmissionEntry| e.reserved = 1,
        |e: &mut SubmissionEntry| e.reserved2 = 1,
    ] {
        let mut entry = good;
        spoil(&mut entry);
        desk.submit(&entry);
        assert_eq!(Status(desk.wait().status), Status::E_OPCODE);
    }
    // A path that leads out, one that is no path, and one that drives a terminal.
    for path in ["", "a", "/..", "/a//b", "/a/", "/\0", "/./x"] {
        let path = wire::files::FilePath::new(path).unwrap();
        let request = Request::StatPath { volume: "v".into(), path, follow: true };
        assert_eq!(desk.status(&request), Status::E_PARAM, "{request:?}");
    }
    let path = wire::files::FilePath::new("\u{1b}[2J".repeat(800)).unwrap();
    let Reply::Error { detail, .. } = desk.call(&Request::UnlinkFile { volume: "v".into(), path }) else {
        panic!("it is no path")
    };
    assert!(!detail.chars().any(char::is_control) && detail.len() < 2048, "{detail}");
    assert_eq!(
        desk.call(&Request::ShowDevice),
        Reply::Device(session.device_info().unwrap()),
        "and it goes on"
    );
    assert_eq!(holds(&witness.session), before);
    assert_eq!(witness.status(&witness.request(opcode::READ)), Status::OK);
}

fn no_deadlock(rig: &Rig) {
    let adapter = rig.isolated();
    let session = Session::connect(adapter.socket()).unwrap();
    let (mut one, mut two) = (Desk::new(&session, 1), Desk::new(&session, 1));
    let queue = one.raw.number();
    assert_eq!(one.status(&Request::DestroyQueue { queue }), Status::E_PARAM);
    let region = one.places[0].region();
    assert_eq!(one.status(&Request::ReleaseMemory { region }), Status::E_PARAM);
    // Each releases the memory in which the other's request lies: one of them at least must not wait.
    for _ in 0..20 {
        let first = one.put(0, &Request::ReleaseMemory { region: two.places[0].region() });
        let second = two.put(0, &Request::ReleaseMemory { region: one.places[0].region() });
        one.submit(&first);
        two.submit(&second);
        let ended = [Status(one.wait().status), Status(two.wait().status)];
        let allowed = [Status::OK, Status::E_BUSY_TIMEOUT, Status::E_LOCAL_MEM];
        assert!(ended.iter().all(|status| allowed.contains(status)), "{ended:?}");
        assert!(ended.iter().any(|status| *status != Status::OK), "{ended:?}");
        (one, two) = (Desk::new(&session, 1), Desk::new(&session, 1));
    }
    // Each ends the queue by which the other's request came: neither waits.
    let first = one.put(0, &Request::DestroyQueue { queue: two.raw.number() });
    let second = two.put(0, &Request::DestroyQueue { queue: one.raw.number() });
    one.submit(&first);
    two.submit(&second);
    until("one of the two queues has ended", || {
        let (one, two) = (one.raw.poll(), two.raw.poll());
        one.is_some() || two.is_some()
    });
    drop((one, two));
    assert_eq!(session.statistics().unwrap().sessions[0].queues, 0);
}

fn flood(rig: &Rig) {
    let adapter = rig.isolated();
    let mut victim = Client::create(Session::connect(adapter.socket()).unwrap(), "v");
    let most = victim.session.limits().outstanding;
    let mut calm = Desk::new(&victim.session, 1);
    let flooder = Session::connect(adapter.socket()).unwrap();
    let mut desks: Vec<_> = (0..4).map(|_| Desk::new(&flooder, 1)).collect();
    let mut statuses = BTreeSet::new();
    for _ in 0..50 {
        for desk in &mut desks {
            let entry = desk.put(0, &Request::Statistics);
            // All in the same memory: what comes of that is the flooder's own.
            while desk.raw.push(&entry).is_ok() {}
            desk.raw.ring().unwrap();
        }
        assert!(matches!(calm.call(&Request::Query { key: victim.volume.key() }), Reply::Grant(_)));
        assert_eq!(victim.status(&victim.request(opcode::READ)), Status::OK);
        for desk in &mut desks {
            while let Some(done) = desk.raw.poll() {
                statuses.insert(done.status);
            }
        }
    }
    for desk in &mut desks {
        while let Some(done) = desk.raw.wait(Duration::from_millis(500)).unwrap() {
            statuses.insert(done.status);
        }
    }
    assert!(statuses.contains(&Status::E_NO_RESOURCES.0), "no more than {most} at a time: {statuses:?}");
    assert!(matches!(calm.call(&Request::Statistics), Reply::Statistics(_)));
}

fn ends(rig: &Rig) {
    let adapter = rig.isolated();
    let witness = Session::connect(adapter.socket()).unwrap();
    witness.create_volume("v", VOLUME).unwrap();
    witness.set_access("v", Subject::Everyone, Access::ALL).unwrap();
    let before = holds(&witness);
    for round in 0..30 {
        let session = Session::connect(adapter.socket()).unwrap();
        let mut desk = Desk::new(&session, 8);
        for place in 0..8 {
            let request = match place % 3 {
                0 => Request::OpenVolume { name: "v".into(), access: 7 },
                1 => Request::Statistics,
                _ => Request::SetAccess { name: "v".into(), subject: Subject::User(place as u32), access: 1 },
            };
            let entry = desk.put(place, &request);
            desk.raw.push(&entry).unwrap();
        }
        desk.raw.ring().unwrap();
        match round % 3 {
            // The queue goes to the error state, is ended, or the connection ends, with all of it under way.
            0 => {
                desk.raw.store_tail(round + 1000).unwrap();
                until("the queue is down", || desk.raw.is_down());
            }
            1 => drop(desk.raw),
            _ => {
                let done = desk.wait();
                assert_eq!(Status(done.status), Status::OK);
            }
        }
        drop(session);
    }
    until("all that those sessions held is given back", || holds(&witness) == before);
}
