//! Queues that are not in use cost nothing, and none of them is forgotten.

use super::*;

const SHORT: Duration = Duration::from_micros(1);
/// After so many turns the clock was read, and idle queues were parked.
const MANY: usize = 2 * CLOCK_INTERVAL as usize;

impl Rig {
    fn that_hears_bells() -> Self {
        let mut rig = Self::new();
        rig.engine.hear_bells();
        rig.engine.set_park_after(SHORT);
        rig
    }

    /// Time goes by, and turns.
    fn idle(&mut self) {
        self.turns(MANY);
        self.clock.0.fetch_add(1_000_000, Ordering::Relaxed);
        self.turns(MANY);
    }

    fn has_parked(&self, apps: usize) -> bool {
        self.engine.parked() == apps
            && self.engine.state.schedule.active() == self.next_queue as usize - 1 - apps
    }
}

impl App {
    /// Rings for a read. Whether the adapter is to be woken.
    fn ring_for_a_read(&mut self) -> bool {
        let entry = self.request(1, opcode::READ, 0, 512);
        self.end.push(&entry).unwrap();
        self.end.ring()
    }
}

#[test]
fn a_queue_that_is_not_in_use_is_not_looked_at_until_its_eventfd_was_written() {
    let mut rig = Rig::that_hears_bells();
    let (mut app, mut other) = (rig.app(1, 8, 0, Access::READ), rig.app(2, 8, 0, Access::READ));
    rig.idle();
    assert!(rig.has_parked(2));
    assert!(other.ring_for_a_read());
    assert!(rig.engine.unpark(other.id));
    rig.turns(1);
    assert_eq!(other.statuses(), [(1, Status::OK)]);
    assert!(!other.ring_for_a_read(), "it is in use now");

    assert!(app.ring_for_a_read(), "the adapter wants to be woken");
    rig.turns(MANY);
    assert!(app.statuses().is_empty(), "no turn looks at it");
    assert!(rig.engine.unpark(app.id));
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    assert!(rig.has_parked(0));
}

#[test]
fn an_eventfd_that_is_written_for_nothing_wakes_nothing() {
    let mut rig = Rig::that_hears_bells();
    let mut app = rig.app(1, 8, 0, Access::READ);
    assert!(!rig.engine.unpark(app.id), "it is in use");
    rig.idle();
    for queue in [app.id, QueueId(77)] {
        assert!(!rig.engine.unpark(queue));
    }
    assert!(rig.has_parked(1));
    assert!(app.ring_for_a_read(), "the adapter still wants to be woken");
    assert!(rig.engine.unpark(app.id));
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn a_queue_that_rang_just_before_is_not_parked() {
    let mut rig = Rig::that_hears_bells();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.turns(MANY);
    rig.clock.0.fetch_add(1_000_000, Ordering::Relaxed);
    while !rig.engine.state.turns.is_multiple_of(CLOCK_INTERVAL) {
        rig.turns(1);
    }
    assert!(!app.ring_for_a_read());
    rig.turns(1); // It looks at the clock, and finds that the queue gave nothing for long.
    assert!(rig.has_parked(0));
    assert_eq!(app.statuses(), [(1, Status::OK)]);
}

#[test]
fn a_queue_with_a_request_at_the_device_or_a_sleeper_to_wake_is_not_parked() {
    let mut rig = Rig::that_hears_bells();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.idle();
    assert!(rig.has_parked(0));
    assert!(app.end.begin_wait());
    rig.engine.queue.automatic = true;
    rig.idle();
    assert!(rig.has_parked(0), "the call that wakes its application was not made yet");
    rig.engine.wake_sleepers();
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    rig.idle();
    assert!(rig.has_parked(1));
}

#[test]
fn a_failed_queue_is_parked_and_still_flushes_what_is_rung() {
    let mut rig = Rig::that_hears_bells();
    let mut app = rig.app(1, 8, 0, Access::READ);
    app.end.raw_tail_store(100);
    rig.turns(1);
    assert_eq!(app.end.state(), STATE_ERROR);
    app.end.raw_tail_store(0);
    rig.idle();
    assert!(rig.has_parked(1));
    assert!(app.ring_for_a_read());
    assert!(rig.engine.unpark(app.id));
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::E_FLUSHED)]);
}

#[test]
fn a_parked_queue_is_let_go_of_and_its_place_is_good_for_another() {
    let mut rig = Rig::that_hears_bells();
    let apps: Vec<_> = (1..=3).map(|domain| rig.app(domain, 8, 0, Access::READ)).collect();
    rig.idle();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Detach(apps[0].id, ticket.clone())).is_ok());
    rig.turns(1);
    assert!(ticket.is_done());
    let mut new = rig.app(4, 8, 0, Access::READ);
    assert_eq!((rig.engine.parked(), rig.engine.state.schedule.active()), (2, 1));
    assert!(!new.ring_for_a_read());
    rig.turns(1);
    assert_eq!(new.statuses(), [(1, Status::OK)]);
    for mut app in apps.into_iter().skip(1) {
        assert!(app.ring_for_a_read());
        assert!(rig.engine.unpark(app.id));
        rig.turns(1);
        assert_eq!(app.statuses(), [(1, Status::OK)]);
    }
}

/// An engine that makes no system call hears of nobody.
#[test]
fn where_nobody_hears_bells_each_turn_looks_at_one_parked_queue() {
    let mut rig = Rig::new();
    rig.engine.set_park_after(SHORT);
    let mut apps: Vec<_> = (1..=10).map(|domain| rig.app(domain, 8, 0, Access::READ)).collect();
    rig.idle();
    assert!(rig.has_parked(10));
    for app in &mut apps {
        assert!(!app.ring_for_a_read(), "nobody would hear it");
    }
    for turn in 1..=10 {
        rig.turns(1);
        assert!(rig.has_parked(10 - turn));
    }
    assert!(apps.iter_mut().all(|app| app.statuses() == [(1, Status::OK)]));
}

#[test]
fn an_engine_sleeps_and_wakes_beside_parked_queues() {
    for hears_bells in [true, false] {
        let mut rig = if hears_bells { Rig::that_hears_bells() } else { Rig::new() };
        rig.engine.set_park_after(SHORT);
        let mut parked = rig.app(1, 8, 0, Access::READ);
        rig.idle();
        let mut active = rig.app(2, 8, 0, Access::READ);
        assert!(rig.has_parked(1));
        assert!(rig.engine.prepare_sleep(false));
        assert!(parked.ring_for_a_read() && active.ring_for_a_read(), "both wake it");
        rig.engine.end_sleep();
        assert!(rig.engine.unpark(parked.id));
        rig.turns(2);
        assert_eq!(parked.statuses(), [(1, Status::OK)]);
        assert_eq!(active.statuses(), [(1, Status::OK)]);
        assert!(!active.ring_for_a_read() && !parked.ring_for_a_read(), "it is awake");
    }
}

fn asked_for(rig: &mut Rig, queue: QueueId) {
    let moving = crate::mailbox::Moving { queue, port: None };
    assert!(rig.shared.send(Command::Give(Box::new(moving))).is_ok());
}

#[test]
fn a_queue_is_handed_over_when_nothing_of_it_runs_and_goes_on_elsewhere() {
    let (mut rig, mut other) = (Rig::new(), Rig::new());
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    asked_for(&mut rig, app.id);
    let refused = app.request(2, opcode::CANCEL, 1, 0);
    app.submit(&refused);
    rig.turns(2 * MANY);
    assert!(rig.shared.take_moved().is_none(), "the device has a request of it");
    rig.engine.queue.automatic = true;
    rig.turns(1);
    let moving = rig.shared.take_moved().expect("nothing of it runs");
    assert_eq!(app.statuses(), [(1, Status::OK)], "what came after is not taken");
    rig.turns(MANY);
    assert!(app.statuses().is_empty());

    let port = moving.port.expect("it had the queue");
    assert!(other.shared.send(Command::Attach(Box::new(port))).is_ok());
    other.turns(1);
    assert_eq!(app.statuses(), [(2, Status::E_NOT_FOUND)]);
    assert_eq!((rig.engine.in_flight(), other.engine.in_flight()), (0, 0));
}

#[test]
fn a_queue_that_cannot_go_soon_stays() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    asked_for(&mut rig, app.id);
    rig.turns(MANY);
    app.read(2);
    rig.clock.0.fetch_add(1_000_000_000, Ordering::Relaxed);
    rig.turns(MANY);
    assert!(rig.shared.take_moved().is_some_and(|moving| moving.port.is_none()));
    assert_eq!(rig.engine.queue.running.len(), 2, "it is served again");
}

#[test]
fn a_queue_that_ends_while_it_is_asked_for_goes_nowhere() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    rig.engine.queue.automatic = false;
    app.read(1);
    rig.turns(1);
    asked_for(&mut rig, app.id);
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Detach(app.id, ticket.clone())).is_ok());
    rig.turns(1);
    assert!(rig.shared.take_moved().is_some_and(|moving| moving.port.is_none()));
    assert!(!ticket.is_done());
    rig.engine.queue.automatic = true;
    rig.turns(1);
    assert!(ticket.is_done());
    for unknown in [app.id, QueueId(99)] {
        asked_for(&mut rig, unknown);
        rig.turns(1);
        assert!(rig.shared.take_moved().is_some_and(|moving| moving.port.is_none()));
    }
}
