//! Cancels and deadlines of requests in every state that they wait in. Those of writes of bytes are with these.

use super::*;

/// Where a request waits.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Waits {
    /// Its entry is being modified.
    Held,
    /// First in line for room in the device queue, and behind another.
    First,
    Behind,
    /// For the flush that the device executes.
    Flush,
    /// The device has all of it, or a part.
    Device,
    InPart,
}

const ALL: [Waits; 6] =
    [Waits::Held, Waits::First, Waits::Behind, Waits::Flush, Waits::Device, Waits::InPart];

/// The request with user data 1 waits; it has a deadline of 50 microseconds.
fn waiting(at: Waits) -> (Rig, App) {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 16, 0, Access::READ_WRITE);
    rig.engine.queue.automatic = false;
    let flush = SubmissionEntry { region: 0, ..app.request(0, opcode::FLUSH, 0, 0) };
    let mut entry = app.request(1, opcode::READ, 0, 512);
    match at {
        Waits::Held => drop(rig.tables.begin(None, app.key, Purpose::Modify).unwrap()),
        Waits::First => rig.engine.queue.room = 0,
        Waits::Behind => {
            rig.engine.queue.room = 0;
            app.read(0);
        }
        Waits::Flush => {
            app.submit(&flush);
            entry = SubmissionEntry { user_data: 1, ..flush };
            rig.turns(1);
        }
        Waits::Device => {}
        Waits::InPart => {
            rig.engine.queue.room = 1;
            entry.length = 16 * 512;
        }
    }
    app.submit(&SubmissionEntry { deadline_us: 50, ..entry });
    rig.turns(2);
    assert_eq!(app.statuses(), [], "{at:?}");
    (rig, app)
}

/// Whether the device has something of it.
fn is_begun(at: Waits) -> bool {
    matches!(at, Waits::Device | Waits::InPart)
}

fn let_go(rig: &mut Rig) {
    (rig.engine.queue.room, rig.engine.queue.automatic) = (64, true);
    rig.turns(5);
}

#[test]
fn a_cancel_ends_what_the_device_does_not_have_and_leaves_the_rest() {
    for at in ALL {
        let (mut rig, mut app) = waiting(at);
        let cancel =
            SubmissionEntry { opcode: opcode::CANCEL, user_data: 9, offset: 1, ..SubmissionEntry::default() };
        app.submit(&cancel);
        rig.turns(1);
        if is_begun(at) {
            assert_eq!(app.statuses(), [(9, Status::OK)], "{at:?}");
            let_go(&mut rig);
            assert_eq!(app.statuses(), [(1, Status::OK)], "{at:?}");
        } else {
            assert_eq!(app.statuses(), [(1, Status::E_CANCELLED), (9, Status::OK)], "{at:?}");
            let begun = rig.engine.queue.seen.len();
            let_go(&mut rig);
            assert_eq!(rig.engine.queue.seen.len(), begun + usize::from(at == Waits::Behind), "{at:?}");
        }
        assert_eq!(rig.engine.in_flight(), 0, "{at:?}");
        assert!(rig.engine.state.directory.entry_is_idle(app.key.index()));
    }
}

#[test]
fn a_deadline_ends_what_the_device_does_not_have_and_leaves_the_rest() {
    for at in ALL {
        let (mut rig, mut app) = waiting(at);
        rig.clock.0.store(5_000_000, Ordering::Relaxed);
        rig.turns(CLOCK_INTERVAL as usize);
        if is_begun(at) {
            assert_eq!(app.statuses(), [], "{at:?}");
            let_go(&mut rig);
            assert_eq!(app.statuses(), [(1, Status::OK)], "{at:?}");
        } else {
            assert_eq!(app.statuses(), [(1, Status::E_DEADLINE)], "{at:?}");
            let begun = rig.engine.queue.seen.len();
            let_go(&mut rig);
            assert_eq!(rig.engine.queue.seen.len(), begun + usize::from(at == Waits::Behind), "{at:?}");
        }
        assert!(rig.engine.state.directory.entry_is_idle(app.key.index()));
    }
}

/// Whoever sets many deadlines, one after the other, has the lists looked through no more often than others.
#[test]
fn s5_r13_many_deadlines_cost_no_more_than_one() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 128, 0, Access::READ);
    let _held = rig.tables.begin(None, app.key, Purpose::Modify).unwrap();
    for user_data in 0..100 {
        let entry = SubmissionEntry {
            deadline_us: 10 * (1 + user_data as u32),
            ..app.request(user_data, opcode::READ, 0, 512)
        };
        app.submit(&entry);
    }
    rig.turns(8);
    let mut sweeps = 0;
    let mut before = rig.engine.state.next_sweep_ns;
    for step in 1..=300 {
        rig.clock.0.store(10_000 * step, Ordering::Relaxed);
        rig.turns(CLOCK_INTERVAL as usize);
        sweeps += usize::from(std::mem::replace(&mut before, rig.engine.state.next_sweep_ns) != before);
    }
    assert_eq!(app.statuses().len(), 100);
    assert!(sweeps <= 4, "{sweeps} in three milliseconds");
}
