//! Shares and limits as the engine keeps them, over a clock that stands still until told.

use wire::control::Rate;

use super::super::share::Terms;
use super::super::{DEFAULT_WEIGHT, Limiter};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn limiter(requests: Option<u64>, bytes: Option<u64>) -> Arc<Limiter> {
    let rate = |rate: u64| Rate { rate, burst: 0 };
    Limiter::new(requests.map(rate), bytes.map(rate), 1).unwrap()
}

/// The clock's beginning: a second, which the engine has read.
fn begin(rig: &mut Rig) {
    rig.clock.0.store(SECOND, Ordering::Relaxed);
    rig.turns(32);
}

/// Keeps a queue full.
fn fill(app: &mut App, length: u32) {
    while app.end.free() > 0 {
        let entry = app.request(1, opcode::READ, 0, length);
        app.end.push(&entry).unwrap();
    }
    app.end.ring();
}

/// Lets a time pass in small steps, with queues that are always full. Returns how many requests of each ended.
fn run(rig: &mut Rig, apps: &mut [&mut App], ns: u64, length: u32) -> Vec<usize> {
    let end = rig.clock.now_ns() + ns;
    let mut ended = vec![0; apps.len()];
    while rig.clock.now_ns() < end {
        for (app, ended) in apps.iter_mut().zip(&mut ended) {
            fill(app, length);
            *ended += app.completions().len();
        }
        // The clock is read every so many turns.
        rig.turns(32);
        rig.clock.0.fetch_add(100_000, Ordering::Relaxed);
    }
    ended
}

fn terms(rig: &Rig, session: u64, weight: u32, limiters: Vec<Arc<Limiter>>) {
    let terms = Terms { weight, limiters };
    assert!(rig.shared.send(Command::Terms(session, Box::new(terms))).is_ok());
}

#[test]
fn a_session_gets_what_its_limit_says_and_others_all_they_want() {
    let mut rig = Rig::new();
    let mut limited = rig.app(1, 64, 0, Access::READ);
    let mut free = rig.app(2, 8, 64, Access::READ);
    begin(&mut rig);
    terms(&rig, 1, DEFAULT_WEIGHT, vec![limiter(Some(2000), None)]);
    let ended = run(&mut rig, &mut [&mut limited, &mut free], SECOND, 512);
    assert!((1900..=2100).contains(&ended[0]), "{ended:?}");
    assert!(ended[1] > 30_000, "{ended:?}");
    assert_eq!(rig.engine.in_flight(), 0, "what is limited waits in the application's own queue");
    terms(&rig, 1, DEFAULT_WEIGHT, Vec::new());
    assert!(run(&mut rig, &mut [&mut limited], SECOND / 10, 512)[0] > 10_000, "the limit is gone");
}

#[test]
fn a_limit_of_bytes_holds_whatever_the_size() {
    for length in [512, 4096, 64 * 512] {
        let mut rig = Rig::new();
        let mut app = rig.app(1, 64, 0, Access::READ);
        begin(&mut rig);
        terms(&rig, 1, DEFAULT_WEIGHT, vec![limiter(None, Some(1 << 20))]);
        let bytes = run(&mut rig, &mut [&mut app], SECOND, length)[0] * length as usize;
        assert!((996_147..=1_100_000).contains(&bytes), "{bytes} in requests of {length}");
    }
}

#[test]
fn all_who_use_a_volume_have_its_limit_together_and_nobody_else() {
    let mut rig = Rig::new();
    let (mut one, mut two) = (rig.app(1, 64, 0, Access::READ), rig.app(2, 64, 0, Access::READ));
    let mut free = rig.app(3, 8, 64, Access::READ);
    begin(&mut rig);
    let limiter = limiter(Some(2000), None);
    for key in [one.key, two.key] {
        assert!(rig.shared.send(Command::Limit(key.index(), Some(limiter.clone()))).is_ok());
    }
    let ended = run(&mut rig, &mut [&mut one, &mut two, &mut free], SECOND, 512);
    assert!((1900..=2100).contains(&(ended[0] + ended[1])), "{ended:?}");
    assert!(ended[0].abs_diff(ended[1]) < 200 && ended[2] > 30_000, "{ended:?}");
    assert!(rig.engine.in_flight() <= 128, "{} wait", rig.engine.in_flight());
    let tables = &rig.engine.state.directory;
    assert!(tables.entry_is_idle(one.key.index()), "what waits is not active under its grant");
    for key in [one.key, two.key] {
        assert!(rig.shared.send(Command::Limit(key.index(), None)).is_ok());
    }
    let ended = run(&mut rig, &mut [&mut one, &mut two], SECOND / 10, 512);
    assert!(ended[0] > 10_000 && ended[1] > 10_000, "{ended:?}: the limit is gone");
}

#[test]
fn a_guessed_key_uses_nothing_of_a_volumes_limit() {
    let mut rig = Rig::new();
    let mut owner = rig.app(1, 8, 0, Access::READ);
    let mut thief = rig.app(2, 8, 64, Access::READ);
    begin(&mut rig);
    let limiter = limiter(Some(1), None);
    assert!(rig.shared.send(Command::Limit(owner.key.index(), Some(limiter))).is_ok());
    for _ in 0..100 {
        let entry = SubmissionEntry { key: owner.key.0, ..thief.request(9, opcode::READ, 0, 512) };
        thief.submit(&entry);
        rig.turns(32);
        assert_eq!(thief.statuses(), [(9, Status::E_PD_MISMATCH)]);
    }
    owner.read(1);
    rig.clock.0.fetch_add(SECOND, Ordering::Relaxed);
    rig.turns(64);
    rig.clock.0.fetch_add(SECOND, Ordering::Relaxed);
    rig.turns(64);
    assert_eq!(owner.statuses(), [(1, Status::OK)]);
}

/// A volume of one request a second, and three that were asked for: one ended, two wait.
fn waiting() -> (Rig, App) {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    begin(&mut rig);
    assert!(rig.shared.send(Command::Limit(app.key.index(), Some(limiter(Some(1), None)))).is_ok());
    rig.turns(32);
    app.read(1);
    rig.turns(32);
    rig.clock.0.fetch_add(SECOND, Ordering::Relaxed);
    rig.turns(64);
    assert_eq!(app.statuses(), [(1, Status::OK)]);
    app.read(2);
    let late = SubmissionEntry { deadline_us: 100_000, ..app.request(3, opcode::READ, 0, 512) };
    app.submit(&late);
    rig.turns(64);
    assert_eq!((rig.engine.in_flight(), app.statuses()), (2, vec![]));
    (rig, app)
}

#[test]
fn what_waits_for_tokens_is_not_looked_at_and_the_engine_sleeps_until_they_come() {
    let (mut rig, mut app) = waiting();
    assert_eq!(rig.engine.turn(), 0);
    assert!(rig.engine.prepare_sleep(true), "there is nothing to do");
    rig.engine.end_sleep();
    let due = rig.engine.next_due().unwrap();
    assert!(due <= Duration::from_secs(1) && due > Duration::from_millis(900), "{due:?}");
    rig.clock.0.fetch_add(due.as_nanos() as u64, Ordering::Relaxed);
    rig.engine.end_sleep();
    rig.turns(2);
    assert_eq!(app.statuses()[0], (2, Status::OK));
}

#[test]
fn cancels_deadlines_and_the_end_of_the_queue_end_what_waits_for_tokens() {
    let (mut rig, mut app) = waiting();
    let cancel =
        SubmissionEntry { opcode: opcode::CANCEL, user_data: 9, offset: 2, ..SubmissionEntry::default() };
    app.submit(&cancel);
    rig.turns(1);
    assert_eq!(app.statuses(), [(2, Status::E_CANCELLED), (9, Status::OK)]);
    rig.clock.0.fetch_add(SECOND / 5, Ordering::Relaxed);
    rig.turns(64);
    assert_eq!(app.statuses(), [(3, Status::E_DEADLINE)]);
    assert_eq!((rig.engine.in_flight(), rig.engine.next_due()), (0, None));

    let (mut rig, app) = waiting();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Detach(app.id, ticket.clone())).is_ok());
    rig.turns(1);
    assert!(ticket.is_done() && rig.engine.in_flight() == 0);
}

#[test]
fn what_waits_for_tokens_is_checked_again_when_they_come() {
    let (mut rig, mut app) = waiting();
    let quiesce = rig.tables.begin(None, app.key, Purpose::Revoke).unwrap();
    let ticket = Ticket::new(1);
    assert!(rig.shared.send(Command::Drain(Drained::Entry(app.key.index()), ticket.clone())).is_ok());
    rig.turns(1);
    assert!(ticket.is_done(), "it has no grant while it waits");
    rig.tables.finish_delete(quiesce);
    rig.clock.0.fetch_add(2 * SECOND, Ordering::Relaxed);
    rig.turns(64);
    assert!(app.statuses().contains(&(2, Status::E_ENTRY_INVALID)));
}

#[test]
fn a_throttled_session_lets_the_engine_sleep_and_does_not_wake_it() {
    let mut rig = Rig::new();
    let mut app = rig.app(1, 8, 0, Access::READ);
    begin(&mut rig);
    terms(&rig, 1, DEFAULT_WEIGHT, vec![limiter(Some(1), None)]);
    app.read(1);
    rig.turns(64);
    assert_eq!(rig.engine.turn(), 0);
    assert!(rig.engine.prepare_sleep(true), "what it rang is not to be taken yet");
    app.read(2);
    assert!(!app.end.ring(), "it is not asked to write its eventfd");
    let due = rig.engine.next_due().unwrap();
    assert!(due <= Duration::from_secs(1), "{due:?}");
    rig.clock.0.fetch_add(due.as_nanos() as u64, Ordering::Relaxed);
    rig.engine.end_sleep();
    assert!(!rig.engine.prepare_sleep(true), "now it is");
    rig.turns(1);
    assert_eq!(app.statuses(), [(1, Status::OK)]);

    // When its tokens are there and nobody asks for them there is nothing to wake for.
    rig.clock.0.fetch_add(SECOND, Ordering::Relaxed);
    rig.turns(33);
    assert_eq!(app.statuses(), [(2, Status::OK)]);
    rig.clock.0.fetch_add(10 * SECOND, Ordering::Relaxed);
    rig.turns(33);
    assert!(rig.engine.prepare_sleep(true));
    assert_eq!(rig.engine.next_due(), None);
}

#[test]
fn a_session_with_many_queues_gets_no_more_of_a_turn() {
    let mut rig = Rig::with_requests(512);
    let mut flood: Vec<App> = (0..8).map(|_| rig.app(1, 64, 0, Access::READ)).collect();
    let mut other = rig.app(2, 64, 64, Access::READ);
    let mut ended = [0; 9];
    for turn in 0..4000 {
        let all = flood.iter_mut().chain([&mut other]);
        for (app, ended) in all.zip(&mut ended) {
            let its = app.completions().len();
            *ended += if turn > 100 { its } else { 0 };
            fill(app, 512);
        }
        rig.turns(1);
    }
    let flooded: usize = ended[..8].iter().sum();
    assert!(flooded.abs_diff(ended[8]) < flooded / 100, "{ended:?}");
    assert!(
        ended[..8].iter().all(|&of_queue| of_queue > flooded / 16),
        "each of its queues has a part: {ended:?}"
    );
}

#[test]
fn shares_hold_where_the_device_is_full() {
    for (weight, ratio) in [(DEFAULT_WEIGHT, 1.0), (300, 3.0)] {
        let mut rig = Rig::with_requests(512);
        rig.engine.queue.room = 8;
        rig.engine.queue.automatic = false;
        let mut flood: Vec<App> = (0..4).map(|_| rig.app(1, 128, 0, Access::READ)).collect();
        let mut other = rig.app(2, 128, 64, Access::READ);
        terms(&rig, 2, weight, Vec::new());
        let mut ended = [0; 2];
        for round in 0..4000 {
            flood.iter_mut().for_each(|app| fill(app, 512));
            fill(&mut other, 512);
            // The device does one command in a turn.
            rig.engine.turn();
            if let Some(command) = rig.engine.queue.running.pop_front() {
                rig.engine.state.ended(Completed { tag: command.tag, status: DeviceStatus::OK });
            }
            let now = [flood.iter_mut().map(|app| app.completions().len()).sum(), other.completions().len()];
            if round >= 1000 {
                ended[0] += now[0];
                ended[1] += now[1];
            }
        }
        let is = f64::from(u32::try_from(ended[1]).unwrap()) / f64::from(u32::try_from(ended[0]).unwrap());
        assert!((is / ratio - 1.0).abs() < 0.1, "{ended:?}, wanted {ratio}");
    }
}
