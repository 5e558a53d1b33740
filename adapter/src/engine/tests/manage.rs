//! Management requests: to the control plane and back, and every way in which one ends.

use wire::control::{Reply, Request as Control, SMALL_REPLY};
use wire::frame::{decode_body, encode_body};

use super::*;
use crate::mailbox::{Drained, MANAGED, Managed, Ticket};

const QUERY: Control = Control::QueryFile { key: 5 };

/// An application, and memory for its requests.
struct Managing {
    rig: Rig,
    app: App,
    region: RegionKey,
    memory: Arc<SharedMemory>,
}

impl Rig {
    fn manager(&mut self, domain: u32, requests: u32) -> App {
        let app = self.app(domain, 64, u64::from(domain) * 64, Access::READ_WRITE);
        self.engine.state.ports.iter_mut().flatten().filter(|port| port.id == app.id).for_each(|port| {
            port.may_manage = requests;
        });
        app
    }

    fn control(&self) -> Option<Box<Managed>> {
        self.shared.take_managed()
    }

    /// What comes from the control plane.
    fn answer(&mut self, mut managed: Box<Managed>, reply: &Reply) {
        managed.answer(reply);
        self.give_back(managed);
    }

    fn give_back(&mut self, managed: Box<Managed>) {
        assert!(self.shared.send(Command::Answer(managed)).is_ok());
        self.turns(1);
    }

    fn in_use(&self) -> (usize, usize, usize) {
        let state = &self.engine.state;
        (state.management.in_use(), state.management.waiting(), state.slots.used())
    }
}

impl Managing {
    fn new() -> Self {
        let mut rig = Rig::new();
        let app = rig.manager(1, 64);
        let (region, memory) = rig.region(1, Access::READ_WRITE, 0x4000_0000);
        rig.turns(1);
        Self { rig, app, region, memory }
    }

    /// Puts a request where its entry says.
    fn entry(&self, user_data: u64, request: &Control) -> SubmissionEntry {
        let mut bytes = [0; 1024];
        let length = encode_body(request, &mut bytes).unwrap();
        let at = user_data % 8 * 32768 + 4;
        self.memory.copy_in(at as usize, &bytes[..length]).unwrap();
        SubmissionEntry {
            opcode: opcode::MANAGE,
            user_data,
            length: length as u32,
            offset: SMALL_REPLY as u64,
            region: self.region.0,
            region_offset: at,
            ..SubmissionEntry::default()
        }
    }

    fn submit(&mut self, user_data: u64) {
        let entry = self.entry(user_data, &QUERY);
        self.app.submit(&entry);
        self.rig.turns(1);
    }

    /// What lies where the reply of an entry goes.
    fn reply(&self, entry: &SubmissionEntry, bytes: u32) -> Reply {
        let mut reply = vec![0; bytes as usize];
        self.memory.copy_out(entry.region_offset as usize, &mut reply).unwrap();
        decode_body(&reply).unwrap()
    }
}

#[test]
fn s6_r1_what_manages_reaches_the_control_plane_and_nothing_else_does() {
    let mut m = Managing::new();
    m.app.read(1);
    let unknown = SubmissionEntry { opcode: 77, ..m.entry(2, &QUERY) };
    m.app.submit(&unknown);
    m.rig.turns(1);
    assert!(m.rig.control().is_none(), "a queue operation is no business of the control plane");
    assert_eq!(m.app.statuses(), [(2, Status::E_OPCODE), (1, Status::OK)]);
    assert_eq!(m.rig.in_use(), (0, 0, 0));

    let entry = m.entry(3, &QUERY);
    m.app.submit(&entry);
    m.rig.turns(1);
    assert_eq!(m.rig.engine.queue.seen.len(), 1, "the read alone went to the device");
    // What its owner writes there now changes nothing.
    m.memory.copy_in(entry.region_offset as usize, &[0xff; 64]).unwrap();
    let managed = m.rig.control().expect("it reached the control plane");
    assert_eq!((managed.session, managed.queue, managed.region), (1, m.app.id, m.region));
    assert!(managed.begin());
    assert_eq!(managed.request().unwrap(), QUERY);
    let reply = Reply::Error { status: Status::E_NO_RESOURCE, detail: "no file".into() };
    m.rig.answer(managed, &reply);
    let done = m.app.completions();
    assert_eq!((done[0].user_data, Status(done[0].status)), (3, Status::E_NO_RESOURCE));
    assert_eq!(m.reply(&entry, done[0].bytes), reply);
    assert_eq!(m.rig.in_use(), (0, 0, 0));
}

#[test]
fn s6_r9_reads_go_on_while_the_control_plane_thinks() {
    let mut m = Managing::new();
    m.submit(1);
    for user_data in 10..14 {
        m.app.read(user_data);
        m.rig.turns(1);
        assert_eq!(m.app.statuses(), [(user_data, Status::OK)], "in the very turn");
    }
    assert!(m.rig.engine.prepare_sleep(true), "nothing keeps the engine awake");
    m.rig.engine.end_sleep();
    let managed = m.rig.control().unwrap();
    assert!(managed.begin());
    m.rig.answer(managed, &Reply::Done);
    assert_eq!(m.app.statuses(), [(1, Status::OK)]);
}

#[test]
fn the_memory_must_be_the_sessions_own_and_readable_and_writable() {
    let mut m = Managing::new();
    let (readable, _) = m.rig.region(1, Access::READ, 0x5000_0000);
    let (writable, _) = m.rig.region(1, Access::WRITE, 0x6000_0000);
    let (foreign, _) = m.rig.region(2, Access::READ_WRITE, 0x7000_0000);
    m.rig.turns(1);
    let good = m.entry(1, &QUERY);
    let bad = [
        SubmissionEntry { region: readable.0, ..good },
        SubmissionEntry { region: writable.0, ..good },
        SubmissionEntry { region: foreign.0, ..good },
        SubmissionEntry { region: 0, ..good },
        SubmissionEntry { region_offset: 2, ..good },
        SubmissionEntry { region_offset: REGION_BYTES - 2048, ..good },
        SubmissionEntry { region_offset: REGION_BYTES - 4, length: 8, offset: 4, ..good },
        SubmissionEntry { region_offset: u64::MAX - 3, ..good },
    ];
    for entry in bad {
        m.app.submit(&entry);
        m.rig.turns(1);
        assert_eq!(m.app.statuses(), [(1, Status::E_LOCAL_MEM)], "{entry:?}");
    }
    assert!(m.rig.control().is_none());
    assert_eq!(m.rig.in_use(), (0, 0, 0));
}

#[test]
fn a_queue_has_no_more_at_a_time_than_it_may_have() {
    let mut m = Managing::new();
    m.rig.engine.state.ports[0].as_mut().unwrap().may_manage = 2;
    (1..=3).for_each(|user_data| m.submit(user_data));
    assert_eq!(m.app.statuses(), [(3, Status::E_NO_RESOURCES)]);
    let managed = m.rig.control().unwrap();
    assert!(managed.begin());
    m.rig.answer(managed, &Reply::Done);
    m.submit(4);
    assert_eq!(m.app.statuses(), [(1, Status::OK)], "the fourth has its place");
    assert_eq!(m.rig.in_use(), (2, 2, 2));
}

#[test]
fn who_floods_leaves_places_for_others_and_waits_for_its_own() {
    let mut m = Managing::new();
    let mut other = m.rig.manager(2, 64);
    let (region, memory) = m.rig.region(2, Access::READ_WRITE, 0x5000_0000);
    m.rig.turns(1);
    for user_data in 0..40 {
        m.submit(user_data);
    }
    let (places, slots, _) = m.rig.in_use();
    assert!(places < MANAGED && slots == 40, "{places} places of {MANAGED} for {slots} requests");
    let entry = SubmissionEntry { region: region.0, ..m.entry(7, &QUERY) };
    memory.copy_in(entry.region_offset as usize, &[0; 64]).unwrap();
    other.submit(&entry);
    m.rig.turns(1);
    assert_eq!(m.rig.in_use().0, places + 1);
    // Each answer lets another one go.
    while let Some(managed) = m.rig.control() {
        assert!(managed.begin());
        m.rig.answer(managed, &Reply::Done);
    }
    let mut ended: Vec<u64> = m.app.statuses().into_iter().map(|(u, s)| (u, assert!(s.is_ok())).0).collect();
    ended.sort_unstable();
    assert_eq!(ended, (0..40).collect::<Vec<_>>());
    assert_eq!(other.statuses(), [(7, Status::OK)]);
    assert_eq!(m.rig.in_use(), (0, 0, 0));
}

#[test]
fn a_cancel_ends_what_was_not_begun_and_leaves_what_was() {
    let mut m = Managing::new();
    (1..=2).for_each(|user_data| m.submit(user_data));
    let (first, second) = (m.rig.control().unwrap(), m.rig.control().unwrap());
    assert!(first.begin());
    for target in 1..=2 {
        let cancel = SubmissionEntry {
            opcode: opcode::CANCEL,
            user_data: 10 + target,
            offset: target,
            ..SubmissionEntry::default()
        };
        m.app.submit(&cancel);
    }
    m.rig.turns(2);
    assert_eq!(m.app.statuses(), [(11, Status::OK), (2, Status::E_CANCELLED), (12, Status::OK)]);
    assert!(!second.begin(), "it is too late to begin");
    m.rig.give_back(second);
    m.rig.answer(first, &Reply::Done);
    assert_eq!(m.app.statuses(), [(1, Status::OK)]);
    assert_eq!(m.rig.in_use(), (0, 0, 0));
}

#[test]
fn a_deadline_ends_what_was_not_begun_and_leaves_what_was() {
    let mut m = Managing::new();
    for user_data in 0..40 {
        let entry = SubmissionEntry { deadline_us: 50, ..m.entry(user_data, &QUERY) };
        m.app.submit(&entry);
    }
    m.rig.turns(40);
    let begun = m.rig.control().unwrap();
    assert!(begun.begin());
    m.rig.clock.0.store(10_000_000, Ordering::Relaxed);
    m.rig.turns(64);
    let ended = m.app.statuses();
    assert_eq!(ended.len(), 39, "those at the control plane and those that had no place");
    assert!(ended.iter().all(|(user_data, status)| *user_data != 0 && *status == Status::E_DEADLINE));
    while let Some(managed) = m.rig.control() {
        assert!(!managed.begin());
        m.rig.give_back(managed);
    }
    m.rig.answer(begun, &Reply::Done);
    assert_eq!(m.app.statuses(), [(0, Status::OK)]);
    assert_eq!(m.rig.in_use(), (0, 0, 0));
}

/// A queue that ends, either way, does not wait for the control plane, and what comes from there later is nobody's.
#[test]
fn a_request_ends_once_with_its_queue_and_a_late_answer_goes_nowhere() {
    for violation in [false, true] {
        let mut m = Managing::new();
        let entry = m.entry(1, &QUERY);
        (1..=2).for_each(|user_data| m.submit(user_data));
        let (first, second) = (m.rig.control().unwrap(), m.rig.control().unwrap());
        assert!(first.begin());
        let ticket = Ticket::new(1);
        if violation {
            m.app.end.raw_tail_store(1000);
        } else {
            assert!(m.rig.shared.send(Command::Detach(m.app.id, ticket.clone())).is_ok());
        }
        m.rig.turns(2);
        assert_eq!(m.app.statuses(), [(1, Status::E_FLUSHED), (2, Status::E_FLUSHED)]);
        assert_eq!(ticket.is_done(), !violation);
        assert_eq!(m.rig.in_use(), (2, 0, 0), "only its memory is still out");
        assert!(!second.begin());
        m.rig.give_back(second);
        m.memory.copy_in(entry.region_offset as usize, &[9; 8]).unwrap();
        m.rig.answer(first, &Reply::Done);
        let mut there = [0; 8];
        m.memory.copy_out(entry.region_offset as usize, &mut there).unwrap();
        assert_eq!(there, [9; 8], "nothing is written into memory that is given back");
        assert_eq!(m.app.statuses(), []);
        assert_eq!(m.rig.in_use(), (0, 0, 0));
    }
}

#[test]
fn the_memory_is_in_use_until_the_answer_is_written() {
    let mut m = Managing::new();
    m.submit(1);
    let managed = m.rig.control().unwrap();
    assert!(managed.begin());
    let quiesce = m.rig.tables.begin_region_delete(None, m.region).unwrap();
    let ticket = Ticket::new(1);
    let drain = Command::Drain(Drained::Region(m.region.index()), ticket.clone());
    assert!(m.rig.shared.send(drain).is_ok());
    m.rig.turns(3);
    assert!(!ticket.is_done());
    m.submit(2);
    assert_eq!(m.app.statuses(), [(2, Status::E_LOCAL_MEM)], "no other begins there");
    m.rig.answer(managed, &Reply::Done);
    assert_eq!(m.app.statuses(), [(1, Status::OK)]);
    m.rig.turns(1);
    assert!(ticket.is_done());
    m.rig.tables.finish_region_delete(quiesce);
}

#[test]
fn a_region_that_is_still_in_the_mailbox_is_waited_for() {
    let mut m = Managing::new();
    let spec = RegionSpec {
        domain: Domain(1),
        access: Access::READ_WRITE,
        iova: Iova(1 << 40),
        bytes: REGION_BYTES,
    };
    let region = m.rig.tables.create_region(&spec).unwrap();
    let entry = SubmissionEntry { region: region.0, ..m.entry(1, &QUERY) };
    m.app.submit(&entry);
    m.rig.turns(2);
    assert_eq!(m.app.statuses(), []);
    assert_eq!(m.rig.in_use(), (0, 1, 1));
    let known = Command::Region(region.index(), m.memory.clone());
    assert!(m.rig.shared.send(known).is_ok());
    m.rig.turns(1);
    let managed = m.rig.control().expect("now it goes");
    assert!(managed.begin());
    m.rig.answer(managed, &Reply::Done);
    assert_eq!(m.app.statuses(), [(1, Status::OK)]);
}

#[test]
fn an_answer_without_room_is_its_status_and_writes_nothing() {
    let mut m = Managing::new();
    let entry = SubmissionEntry { offset: 4, ..m.entry(1, &QUERY) };
    m.app.submit(&entry);
    m.rig.turns(1);
    let managed = m.rig.control().unwrap();
    assert!(managed.begin());
    let mut before = [0; 64];
    m.memory.copy_out(entry.region_offset as usize, &mut before).unwrap();
    let reply = Reply::Error { status: Status::E_PARAM, detail: "x".repeat(40) };
    m.rig.answer(managed, &reply);
    let done = m.app.completions();
    assert_eq!((Status(done[0].status), done[0].bytes), (Status::E_PARAM, 0));
    let mut after = [0; 64];
    m.memory.copy_out(entry.region_offset as usize, &mut after).unwrap();
    assert_eq!(after, before);
}

/// An engine that ends has its requests with the control plane, and nothing is missed.
#[test]
fn an_engine_ends_while_its_requests_are_out() {
    let mut m = Managing::new();
    m.submit(1);
    let managed = m.rig.control().unwrap();
    assert!(managed.begin());
    drop(m.rig.engine);
    drop(managed);
}
