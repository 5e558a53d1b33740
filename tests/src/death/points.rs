//! An application dies while the adapter, inside of a call below it, is between two steps of what it was asked: after memory
//! was mapped and before a table knows of it, after the store wrote and before it flushed, and so on, at every such call.

use std::path::Path;
use std::time::Instant;

use portcullis::{Access, MemoryAccess, Request, Session, Subject};
use rustix::process::{Pid, Signal, kill_process};

use super::Ground;
use super::seams::Point;
use crate::process::{Actor, Role, say, wait_for_go};
use crate::scale::{counted, often};
use crate::system::{Case, PATIENCE, Rig, VOLUME};

pub(super) const CASES: &[Case] =
    &[Case { name: "s6_r15_an_application_killed_between_any_two_steps_leaves_nothing", run: between_steps }];

/// What an application asks for when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Register,
    Release,
    Leave,
    Create,
    Delete,
    Grow,
    Shrink,
    Rename,
    SetAccess,
    Read,
    Write,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Register,
        Self::Release,
        Self::Leave,
        Self::Create,
        Self::Delete,
        Self::Grow,
        Self::Shrink,
        Self::Rename,
        Self::SetAccess,
        Self::Read,
        Self::Write,
    ];

    /// The points on its way.
    fn passes(self, point: Point) -> bool {
        let points: &[Point] = match self {
            Self::Register => &[Point::BeforeMap, Point::AfterMap],
            Self::Release | Self::Leave => &[Point::BeforeUnmap, Point::AfterUnmap],
            Self::Read | Self::Write => &[
                Point::BeforeSubmit,
                Point::AfterSubmit,
                Point::BeforeCommit,
                Point::AfterCommit,
                Point::BeforeEnd,
                Point::AfterEnd,
            ],
            _ => &[Point::BeforeStore, Point::AfterStore],
        };
        points.contains(&point)
    }
}

/// In a process of its own: does what `name` says when it is told to.
pub(crate) fn play(socket: &Path, name: &str) {
    let step = Step::ALL.into_iter().find(|step| format!("{step:?}") == name).expect("a step that exists");
    let session = Session::connect(socket).unwrap();
    let volume = session.open("v", Access::ALL).unwrap();
    let mut memory = Some(session.register(1 << 20, MemoryAccess::Both).unwrap());
    let mut queue = session.queue(8).unwrap();
    say("ready");
    wait_for_go();
    match step {
        Step::Register => memory = Some(session.register(1 << 20, MemoryAccess::Both).unwrap()),
        Step::Release => memory = None,
        Step::Leave => {
            drop((volume, memory, queue, session));
            // Its connection is closed; what it held is taken back when it is dead.
            say("done");
            return wait_for_go();
        }
        Step::Create => drop(session.create_volume("made", VOLUME).unwrap()),
        Step::Delete => drop(session.delete_volume("v").unwrap()),
        Step::Grow => drop(session.resize_volume("v", 2 * VOLUME).unwrap()),
        Step::Shrink => drop(session.resize_volume("v", VOLUME / 2).unwrap()),
        Step::Rename => session.rename_volume("v", "w").unwrap(),
        Step::SetAccess => drop(session.set_access("v", Subject::User(4000), Access::READ).unwrap()),
        Step::Read | Step::Write => {
            let buffer = memory.take().unwrap().into_buffer();
            let request = if step == Step::Read {
                Request::read(&volume, 0, buffer)
            } else {
                Request::write(&volume, 0, buffer)
            };
            queue.execute(request).unwrap().result.unwrap();
        }
    }
    say("done");
    wait_for_go();
    drop((memory, queue, volume));
}

/// Whether the control plane has heard of the death when the step goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heard {
    NotYet,
    Before,
}

/// What came of one try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tried {
    /// The application died at the point.
    Died,
    /// It does not come to the point so often.
    Done,
}

fn between_steps(rig: &Rig) {
    let mut ground = Ground::new(rig);
    // The calls of the store are many and much alike: few of them where time is short.
    let most = if rig.is_software() { often(12, 1000) } else { often(2, 6) };
    let mut kills = 0;
    for step in Step::ALL {
        for point in Point::ALL.into_iter().filter(|point| step.passes(*point)) {
            for heard in [Heard::NotYet, Heard::Before] {
                let mut times = 0;
                while times < most && one(&mut ground, step, (point, times + 1), heard) == Tried::Died {
                    times += 1;
                }
                assert!(times > 0, "{step:?} never comes to {point:?}");
                kills += times;
            }
        }
    }
    counted(kills, "kills of an application");
}

fn one(ground: &mut Ground, step: Step, (point, n): (Point, usize), heard: Heard) -> Tried {
    let what = format!("death at the {n}-th {point:?} of {step:?}, heard of: {heard:?}");
    let before = ground.count();
    ground.admin.create_volume("v", VOLUME).unwrap();
    let mut actor = Actor::start(Role::Operator, ground.adapter.socket(), &format!("{step:?}"));
    assert_eq!(actor.line(), "ready", "{what}");
    let (pid, herald) = (actor.pid(), ground.herald.clone());
    ground.seams.arm(point, n, move || {
        // A process that has left by itself is no concern of the hook's.
        let _ = kill_process(pid, Signal::KILL);
        wait_for_death(pid);
        // Where the control plane itself stands at the point nobody can tell it.
        if heard == Heard::Before && std::thread::current().name() != Some("portcullis-control") {
            let mut herald = herald.lock().unwrap();
            (0..2).for_each(|_| herald.fence());
        }
    });
    actor.go();
    let line = actor.line();
    let tried = match line.as_str() {
        "" => Tried::Died,
        "done" if step == Step::Leave && n == 1 => {
            actor.kill();
            Tried::Died
        }
        "done" => Tried::Done,
        other => panic!("{what}: it says {other:?}"),
    };
    actor.kill();
    before.sessions_come_back(&ground.admin, &what);
    let armed = ground.seams.disarm();
    assert_eq!(armed, tried == Tried::Done, "{what}: the hook was not run");
    ground.bystander.works();
    see_the_store(ground, step, &what);
    ground.delete_volumes();
    before.come_back(&ground.admin, &what);
    tried
}

/// The operation was done whole or not at all.
fn see_the_store(ground: &Ground, step: Step, what: &str) {
    let volumes: Vec<_> = ground.admin.volumes().map(Result::unwrap).collect();
    let bytes = |name: &str| volumes.iter().find(|volume| volume.name == name).map(|volume| volume.bytes);
    let (v, w, made) = (bytes("v"), bytes("w"), bytes("made"));
    let good = match step {
        Step::Create => v == Some(VOLUME) && [None, Some(VOLUME)].contains(&made),
        Step::Delete => [None, Some(VOLUME)].contains(&v),
        Step::Grow => [Some(VOLUME), Some(2 * VOLUME)].contains(&v),
        Step::Shrink => [Some(VOLUME), Some(VOLUME / 2)].contains(&v),
        Step::Rename => [(Some(VOLUME), None), (None, Some(VOLUME))].contains(&(v, w)),
        _ => v == Some(VOLUME),
    };
    assert!(good, "{what}: v {v:?}, w {w:?}, made {made:?}");
}

/// Until all of the process is gone but its number.
fn wait_for_death(pid: Pid) {
    let end = Instant::now() + PATIENCE;
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let dead = |text: &str| text.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    while std::fs::read_to_string(&stat).is_ok_and(|text| !dead(&text)) {
        assert!(Instant::now() < end, "a process that SIGKILL does not end");
        std::thread::yield_now();
    }
}
