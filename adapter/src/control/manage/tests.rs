//! The control plane alone, with requests as an engine would hand them over; the engine behind it is not turned.

use std::time::Instant;

use tpt::RegionKey;
use wire::control::SMALL_REPLY;
use wire::frame::{decode_body, encode_body};

use super::*;
use crate::assembly::{Assembled, Options, Turn, Turned, assemble};
use crate::embedded::own_credentials;
use crate::engine::QueueId;

struct Rig {
    control: Control,
    engine: Box<dyn Turn>,
}

impl Rig {
    fn new(outstanding: u32) -> Self {
        let mut options = Options::new("null:64M".parse().unwrap());
        options.policy.limits.outstanding = outstanding;
        let Assembled { control, engine, .. } = assemble(&options, Turned::ByCaller).unwrap();
        Self { control, engine: engine.unwrap() }
    }

    /// A session with a queue, whose number comes with it.
    fn session(&mut self) -> (SessionId, u32) {
        let id = self.control.connect(own_credentials()).unwrap();
        let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
        self.control.request(Caller::new(id, 1), hello, Vec::new());
        assert!(matches!(self.control.next_reply().map(|out| out.reply), Some(Reply::Welcome(_))));
        (id, self.session_queue(id))
    }

    /// One more queue of a session.
    fn session_queue(&mut self, id: SessionId) -> u32 {
        let entries = wire::layout::Entries::new(2).unwrap();
        let (memory, descriptor) = wire::shm::SharedMemory::create("test", entries.bytes()).unwrap();
        let _view = wire::view::QueueView::create(Arc::new(memory), entries).unwrap();
        self.control.request(Caller::new(id, 2), Request::CreateQueue { entries: 2 }, vec![descriptor]);
        loop {
            match self.control.next_reply() {
                Some(out) => match out.reply {
                    Reply::Queue { queue } => return queue,
                    other => panic!("{other:?}"),
                },
                None => {
                    self.control.advance(Instant::now());
                    std::thread::yield_now();
                }
            }
        }
    }

    fn ask(&self, (session, queue): (SessionId, u32), place: u16, request: &Request) {
        let mut managed = Box::new(Managed::new(place));
        let mut bytes = [0; 256];
        let length = encode_body(request, &mut bytes).unwrap();
        managed.renew(length).copy_from_slice(&bytes[..length]);
        (managed.session, managed.queue, managed.region) = (session.0, QueueId(queue), RegionKey(7));
        managed.room = SMALL_REPLY;
        self.control.pollers[0].shared().hand_over(managed);
    }

    /// What went back to the engine by now: places, and how each ended.
    fn answered(&self) -> Vec<(u16, Status)> {
        let commands = std::iter::from_fn(|| self.control.pollers[0].shared().take_command());
        let answers = commands.filter_map(|command| match command {
            Command::Answer(managed) => Some((managed.place, managed.outcome().0)),
            _ => None,
        });
        answers.collect()
    }
}

const QUERY: Request = Request::Query { key: 1 };

#[test]
fn no_more_wait_for_an_answer_than_may_by_socket_and_queue_together() {
    let mut rig = Rig::new(2);
    let (first, second) = (rig.session(), rig.session());
    // The end of a queue is answered when the engine has let go of it, and this one is not turned.
    rig.control.request(Caller::new(first.0, 9), Request::DestroyQueue { queue: first.1 }, Vec::new());
    rig.ask(first, 0, &QUERY);
    rig.control.advance(Instant::now());
    assert_eq!(rig.answered(), [(0, Status::E_FLUSHED)], "nothing more is done by a queue that ends");
    let queue = rig.session_queue(second.0);
    rig.control.request(Caller::new(second.0, 9), Request::DestroyQueue { queue }, Vec::new());
    rig.ask(second, 1, &QUERY);
    rig.control.advance(Instant::now());
    assert!(matches!(rig.answered()[..], [(1, status)] if status != Status::E_NO_RESOURCES));
    let queue = rig.session_queue(second.0);
    rig.control.request(Caller::new(second.0, 10), Request::DestroyQueue { queue }, Vec::new());
    rig.ask(second, 2, &QUERY);
    rig.control.advance(Instant::now());
    assert_eq!(rig.answered(), [(2, Status::E_NO_RESOURCES)]);
}

#[test]
fn s5_r13_sessions_have_their_turns_one_after_the_other() {
    let mut rig = Rig::new(64);
    let (flooder, calm) = (rig.session(), rig.session());
    (0..20).for_each(|place| rig.ask(flooder, place, &QUERY));
    (20..22).for_each(|place| rig.ask(calm, place, &QUERY));
    rig.control.advance(Instant::now());
    let order: Vec<u16> = rig.answered().into_iter().map(|(place, _)| place).collect();
    assert_eq!(order.len(), 22);
    let last = order.iter().rposition(|place| *place >= 20).unwrap();
    assert!(last < 10, "{order:?}");
}

#[test]
fn what_was_withdrawn_is_not_done_and_goes_back() {
    let mut rig = Rig::new(4);
    let who = rig.session();
    rig.ask(who, 3, &Request::CreateVolume { name: "v".into(), bytes: 4096 });
    let managed = rig.control.pollers[0].shared().take_managed().unwrap();
    assert!(managed.stage().withdraw());
    rig.control.pollers[0].shared().hand_over(managed);
    rig.control.advance(Instant::now());
    let mut commands = std::iter::from_fn(|| rig.control.pollers[0].shared().take_command());
    let back = commands
        .find_map(|command| if let Command::Answer(managed) = command { Some(managed) } else { None });
    let managed = back.expect("it goes back");
    assert_eq!((managed.place, managed.outcome().1.len()), (3, 0));
    assert!(!rig.control.lane.is_running() && rig.control.management.begun.is_empty());
}

#[test]
fn s6_r15_what_a_session_asked_for_goes_back_when_the_session_is_gone() {
    let mut rig = Rig::new(4);
    let who = rig.session();
    // A volume that there is not yet: the store answers later.
    rig.ask(who, 5, &Request::DestroyQueue { queue: who.1 + 100 });
    rig.control.advance(Instant::now());
    assert_eq!(rig.answered(), [(5, Status::E_NOT_OPEN)]);
    let mut create = Box::new(Managed::new(6));
    let mut bytes = [0; 64];
    let request = Request::CreateVolume { name: "v".into(), bytes: 4096 };
    let length = encode_body(&request, &mut bytes).unwrap();
    create.renew(length).copy_from_slice(&bytes[..length]);
    (create.session, create.queue, create.room) = (who.0.0, QueueId(who.1), 16384);
    rig.control.pollers[0].shared().hand_over(create);
    rig.control.advance(Instant::now());
    rig.control.disconnect(who.0);
    while !rig.control.sessions.is_empty() {
        rig.engine.turn();
        rig.control.advance(Instant::now());
        std::thread::yield_now();
    }
    assert!(
        rig.control.management.begun.is_empty(),
        "nobody waits for it, and its memory is the engine's again"
    );
    assert!(!rig.control.has_managed());
}

#[test]
fn a_reply_that_has_no_room_is_its_status() {
    let mut managed = Managed::new(0);
    managed.renew(1);
    managed.room = 3;
    managed.answer(&Reply::Error { status: Status::E_AUTH, detail: "no".repeat(10) });
    assert_eq!(managed.outcome(), (Status::E_AUTH, [].as_slice()));
    managed.answer(&Reply::Done);
    let (status, bytes) = managed.outcome();
    assert_eq!((status, decode_body(bytes)), (Status::OK, Ok(Reply::Done)));
    managed.room = 0;
    managed.answer(&Reply::Done);
    assert_eq!(managed.outcome(), (Status::E_NO_RESOURCES, [].as_slice()));
}
