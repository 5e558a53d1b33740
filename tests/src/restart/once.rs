//! Changes that are made once, whenever the adapter ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use driver::dice::Dice;
use portcullis::wire::control::{Change, OnceId, Reply, Request};
use portcullis::{Error, Session, Status};

use super::Adapters;
use crate::death::seed;
use crate::scale::{counted, often};
use crate::system::{Case, Rig, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "a_change_asked_for_twice_is_made_once_and_answered_alike", run: twice },
    Case { name: "changes_under_kills_are_made_once", run: under_kills },
];

fn ask(session: &Session, id: u8, change: Change) -> Reply {
    let id: OnceId = [id; 16];
    session.call(&Request::Once { id, change }, &[]).unwrap().0
}

/// The adapter ends after the change was made: whoever did not hear the answer asks the next one.
fn twice(rig: &Rig) {
    let mut adapters = Adapters::start(rig);
    let name = |name: &str| name.to_owned();
    let changes = [
        Change::CreateVolume { name: name("a"), bytes: 1 << 20 },
        Change::ResizeVolume { name: name("a"), bytes: 2 << 20 },
        Change::RenameVolume { from: name("a"), to: name("b") },
        Change::DeleteVolume { name: name("b") },
    ];
    for (id, change) in (1..).zip(changes) {
        let session = Session::connect(rig.socket()).unwrap();
        let first = ask(&session, id, change.clone());
        assert!(!matches!(first, Reply::Error { .. }), "{change:?}: {first:?}");
        assert_eq!(ask(&session, id, change.clone()), first, "in the same life");
        adapters.kill();
        adapters.again();
        let session = Session::connect(rig.socket()).unwrap();
        assert_eq!(ask(&session, id, change.clone()), first, "in the next life");
        // By another name it is another wish.
        let again = ask(&session, id + 100, change.clone());
        let refused = matches!(again, Reply::Error { .. });
        assert_eq!(refused, !matches!(change, Change::ResizeVolume { .. }), "{change:?}: {again:?}");
    }
    let session = Session::connect(rig.socket()).unwrap();
    assert_eq!(session.volumes().count(), 0);
    let first = ask(&session, 1, Change::CreateVolume { name: name("a"), bytes: 1 << 20 });
    assert!(
        matches!(first, Reply::Error { status: Status::E_NO_RESOURCE, .. }),
        "it was made, and deleted since: {first:?}"
    );
}

/// Each change is wanted once and expected to be made, with the adapter killed at any time.
fn under_kills(rig: &Rig) {
    let kills = often(5, 50);
    let mut dice = Dice(seed());
    let mut adapters = Adapters::start(rig);
    let session = adapters.session();
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, rounds) = (&over, &rounds);
        let worker = scope.spawn(move || -> Result<(), Error> {
            while !over.load(Ordering::Relaxed) {
                let round = rounds.load(Ordering::Relaxed);
                let managed = if round % 2 == 0 { session.clone() } else { session.managed(4)? };
                let (first, second) = (format!("v{round}"), format!("w{round}"));
                managed.create_volume(&first, 64 << 10)?;
                assert_eq!(managed.resize_volume(&first, 128 << 10)?.bytes, 128 << 10);
                managed.rename_volume(&first, &second)?;
                assert_eq!(managed.volumes().count(), 1);
                managed.delete_volume(&second)?;
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        for _ in 0..kills {
            let before = rounds.load(Ordering::Relaxed);
            until("changes are made", || rounds.load(Ordering::Relaxed) > before || worker.is_finished());
            // The time is what is random here; nothing waits for it to be enough.
            std::thread::sleep(Duration::from_micros(dice.below(40_000)));
            adapters.kill();
            adapters.again();
        }
        over.store(true, Ordering::Relaxed);
        worker.join().unwrap().unwrap();
    });
    counted(kills, "restarts under changes");
}
