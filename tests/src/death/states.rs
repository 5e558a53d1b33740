//! An application dies, or stops, in each of the named states.

use portcullis::wire::control::{Reply, Request, Subject};
use rustix::process::{Pid, Signal, kill_process};

use super::Ground;
use super::state::{Meanwhile, State};
use crate::process::{Actor, Role};
use crate::scale::counted;
use crate::system::{Case, Rig, VOLUME, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "s6_r15_an_application_killed_in_any_state_leaves_nothing", run: killed_in_each },
    Case { name: "s6_r15_an_application_stopped_in_any_state_stops_nobody", run: stopped_in_each },
];

/// How an application ends in a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Killed,
    /// Others work on, an administrator takes everything away from it; then it is killed where it stands.
    StoppedAndKilled,
    /// The same, but it lives on a moment and sees what became of it.
    StoppedAndContinued,
}

fn killed_in_each(rig: &Rig) {
    let mut ground = Ground::new(rig);
    for state in State::ALL {
        one(&mut ground, *state, End::Killed);
    }
    ground.bystander.report();
    counted(State::ALL.len(), "named states");
    counted(State::ALL.len(), "kills of an application");
}

fn stopped_in_each(rig: &Rig) {
    let mut ground = Ground::new(rig);
    for (i, state) in State::ALL.iter().enumerate() {
        let end = if i % 2 == 0 { End::StoppedAndKilled } else { End::StoppedAndContinued };
        one(&mut ground, *state, end);
    }
    ground.bystander.report();
    counted(State::ALL.len(), "kills of an application");
}

/// An application in a state, with what it left behind elsewhere.
struct Dying {
    actor: Actor,
    heir: Option<Pid>,
}

impl Dying {
    fn bring_to(ground: &Ground, state: State) -> Self {
        let mut actor = Actor::start(Role::InState, ground.adapter.socket(), &format!("{state:?}"));
        let mut heir = None;
        loop {
            let line = actor.line();
            if let Some(pid) = line.strip_prefix("heir ") {
                heir = Pid::from_raw(pid.parse().unwrap());
                continue;
            }
            assert_eq!(line, format!("ready {state:?}"), "it does not come to the state");
            return Self { actor, heir };
        }
    }

    fn go_on(&mut self, state: State) {
        self.actor.go();
        assert_eq!(self.actor.line(), format!("gone on {state:?}"));
    }

    /// An heir keeps the session; with it, it ends.
    fn bury(&mut self) {
        if let Some(heir) = self.heir.take() {
            kill_process(heir, Signal::KILL).unwrap();
        }
    }
}

impl Drop for Dying {
    fn drop(&mut self) {
        self.bury();
    }
}

fn one(ground: &mut Ground, state: State, end: End) {
    let what = format!("{end:?} in {state:?}");
    let before = ground.count();
    ground.admin.create_volume("v", VOLUME).unwrap();
    if state.at_device() {
        ground.hold_v(state == State::Flushing);
    }
    let mut dying = Dying::bring_to(ground, state);
    if state.at_device() {
        until("a request is at the device", || ground.seams.kept() > 0);
        if state.meanwhile() == Meanwhile::Nothing {
            dying.go_on(state);
        }
    }
    let pending = meanwhile(ground, state, &mut dying);
    if state != State::Flushing {
        ground.bystander.works();
    }
    match end {
        End::Killed => dying.actor.kill(),
        _ => stop(ground, state, &mut dying, end),
    }
    ground.settle();
    if end == End::Killed {
        still_there(ground, state, &before, &what);
    }
    ground.seams.let_go();
    dying.bury();
    before.sessions_come_back(&ground.admin, &what);
    if let Some(id) = pending {
        let (reply, _) = ground.operator.reply_to(id);
        assert!(is_answer(&reply), "{what}: the administrator is told {reply:?}");
    }
    ground.bystander.works();
    ground.delete_volumes();
    before.come_back(&ground.admin, &what);
}

/// What the device still has, or a living process the socket of, is not given back.
fn still_there(ground: &Ground, state: State, before: &super::counts::Counts, what: &str) {
    let now = ground.count();
    if state.at_device() && state != State::Flushing {
        assert!(ground.seams.kept() > 0, "{what}: the device lost its requests");
        assert!(now.mappings > before.mappings, "{what}: memory is unmapped while the device has it");
        assert!(now.regions > before.regions, "{what}: a region is free while the device has its memory");
        assert!(now.entries > before.entries, "{what}: an entry is free while I/O runs under it");
    }
    if state == State::SocketInherited {
        assert_ne!(&now, before, "{what}: the session is the heir's now");
    }
}

/// What an administrator begins when the application is in its state.
fn meanwhile(ground: &mut Ground, state: State, dying: &mut Dying) -> Option<u32> {
    let name = || "v".to_owned();
    let request = match state.meanwhile() {
        Meanwhile::Nothing => return None,
        Meanwhile::Grow => Request::ResizeVolume { name: name(), bytes: 2 * VOLUME },
        Meanwhile::Delete => Request::DeleteVolume { name: name() },
        Meanwhile::Revoke => {
            let subject = Subject::User(rustix::process::getuid().as_raw());
            Request::SetAccess { name: name(), subject, access: 1 }
        }
    };
    let free = ground.admin.device_info().unwrap().free_blocks;
    let id = ground.begin(&request);
    if state.meanwhile() == Meanwhile::Grow {
        // The store has done its part; in the same breath the grants begin to change.
        until("the volume is larger", || ground.admin.device_info().unwrap().free_blocks < free);
        let kept = ground.seams.kept();
        dying.go_on(state);
        ground.bystander.works();
        assert_eq!(ground.seams.kept(), kept, "what comes while the grant changes waits, not at the device");
    }
    Some(id)
}

/// Stops the application; the others go on, and an administrator takes away what it has. Then it ends.
fn stop(ground: &mut Ground, state: State, dying: &mut Dying, end: End) {
    dying.actor.signal(Signal::STOP);
    ground.settle();
    if state != State::Flushing {
        ground.bystander.works();
    }
    // What runs at the device holds up a deletion; it is reported and the grant is closed all the same.
    let id = ground.begin(&Request::DeleteVolume { name: "v".to_owned() });
    ground.seams.let_go();
    let (reply, _) = ground.operator.reply_to(id);
    assert!(is_answer(&reply), "{reply:?}");
    let left: Vec<_> = ground.admin.volumes().map(|volume| volume.unwrap().name).collect();
    assert!(!left.contains(&"v".to_owned()), "the volume of a stopped application is gone: {reply:?}");
    ground.bystander.works();
    if end == End::StoppedAndContinued {
        dying.actor.signal(Signal::CONT);
        ground.settle();
    }
    dying.actor.kill();
}

fn is_answer(reply: &Reply) -> bool {
    matches!(reply, Reply::Done | Reply::Volume(_) | Reply::Revoked { .. } | Reply::Error { .. })
}
