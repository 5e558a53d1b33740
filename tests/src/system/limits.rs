//! Limits and weights that administrators set: who has them, how long, and what waits for them. Times are the engine's own
//! tests' matter: here a limit is so low that what has used it up has to wait for longer than any case.

use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Access, LimitChange, Limited, Rate, Status, Subject};

use super::{Case, Client, Rig, VOLUME, somebody, until};

pub(super) const CASES: &[Case] = &[
    Case { name: "s5_r13_a_volumes_limit_is_of_all_who_use_it", run: of_a_volume },
    Case { name: "s5_r13_a_users_limit_is_of_all_its_sessions", run: of_a_user },
    Case { name: "s6_r14_limits_are_set_by_administrators", run: who_may },
    Case { name: "limits_of_volumes_are_kept", run: kept },
];

/// A byte in a second, and one at once: after one block nothing passes for an hour.
fn nothing() -> LimitChange {
    LimitChange { bytes: Some(Rate { rate: 1, burst: 1 }), ..LimitChange::default() }
}

fn lifted() -> LimitChange {
    let none = Some(Rate { rate: 0, burst: 0 });
    LimitChange { requests: none, bytes: none, weight: None }
}

/// Rings one read that is not answered, and shows that it waits: others go on.
fn waits(limited: &mut Client, other: &mut Client) {
    limited.raw.push(&limited.request(opcode::READ)).unwrap();
    limited.raw.ring().unwrap();
    for _ in 0..100 {
        let entry = other.request(opcode::READ);
        assert_eq!(other.status(&entry), Status::OK);
        assert!(limited.raw.poll().is_none(), "it waits for its limit");
    }
}

fn of_a_volume(rig: &Rig) {
    for isolated in [false, true] {
        if isolated {
            let adapter = rig.isolated();
            all_who_use_it(|| portcullis::Session::connect(adapter.socket()).unwrap());
        } else {
            let adapter = rig.embedded();
            all_who_use_it(|| adapter.session().unwrap());
        }
    }
}

fn all_who_use_it(session: impl Fn() -> portcullis::Session) {
    let mut one = Client::create(session(), "v");
    let mut two = Client::open(session(), "v", Access::READ);
    let mut free = Client::create(session(), "free");
    let limited = Limited::Volume("v".to_owned());
    let info = free.session.set_limits(limited.clone(), nothing()).unwrap();
    assert_eq!((info.rates.bytes, info.weight), (nothing().bytes, None));
    assert_eq!(free.session.volume_info("v").unwrap().limits, info.rates);

    let read = one.request(opcode::READ);
    assert_eq!(one.status(&read), Status::OK, "there is a token in a second");
    waits(&mut two, &mut free);
    let cancel =
        SubmissionEntry { opcode: opcode::CANCEL, user_data: 2, offset: 1, ..SubmissionEntry::default() };
    two.raw.push(&cancel).unwrap();
    two.raw.ring().unwrap();
    let mut ended = Vec::new();
    until("the cancel and what it cancels", || {
        ended.extend(two.raw.poll().map(|done| (done.user_data, Status(done.status))));
        ended.len() == 2
    });
    assert_eq!(ended, [(1, Status::E_CANCELLED), (2, Status::OK)]);

    // A grant that is opened later has it, too, and after a rename; a flush moves nothing.
    free.session.rename_volume("v", "w").unwrap();
    let mut three = Client::open(session(), "w", Access::READ);
    waits(&mut three, &mut free);
    free.session.set_limits(Limited::Volume("w".to_owned()), lifted()).unwrap();
    let done = three.raw.wait(super::PATIENCE).unwrap().expect("the limit is gone");
    assert_eq!(Status(done.status), Status::OK);
    assert_eq!(two.status(&read_of(&two)), Status::OK);
    assert_eq!(free.session.list_limits().unwrap(), []);

    // What ends with a limit leaves none behind for who has its place in the tables next.
    free.session.set_limits(Limited::Volume("w".to_owned()), nothing()).unwrap();
    let Client { session, volume, memory, raw } = three;
    drop((raw, memory));
    volume.close().unwrap();
    let mut again = Client::open(session, "free", Access::READ);
    for _ in 0..3 {
        assert_eq!(again.status(&read_of(&again)), Status::OK);
    }
}

fn read_of(client: &Client) -> SubmissionEntry {
    client.request(opcode::READ)
}

fn of_a_user(rig: &Rig) {
    let adapter = rig.embedded();
    let mut owner = Client::create(adapter.session().unwrap(), "v");
    owner.session.set_access("v", Subject::User(2001), Access::READ).unwrap();
    let alice = || Client::open(adapter.session_as(somebody(2001)).unwrap(), "v", Access::READ);
    let mut one = alice();
    let change = LimitChange { weight: Some(50), ..nothing() };
    let info = owner.session.set_limits(Limited::User(2001), change).unwrap();
    assert_eq!(info.weight, Some(50));
    assert_eq!(one.status(&read_of(&one)), Status::OK);
    let mut two = alice();
    waits(&mut two, &mut owner);
    assert_eq!(one.session.list_limits().unwrap(), [info], "it is told of its own");

    // One session may have less than its user, and nobody has it after that session.
    let session = Limited::Session(one.session.number());
    owner.session.set_limits(session.clone(), nothing()).unwrap();
    owner.session.set_limits(Limited::User(2001), lifted()).unwrap();
    let done = two.raw.wait(super::PATIENCE).unwrap().expect("the limit is gone");
    assert_eq!(Status(done.status), Status::OK);
    assert_eq!(one.status(&read_of(&one)), Status::OK);
    waits(&mut one, &mut two);
    drop(one);
    let gone = || owner.session.set_limits(session.clone(), nothing()).err().and_then(|error| error.status());
    until("the session is gone", || gone() == Some(Status::E_NO_RESOURCE));
    let left = owner.session.list_limits().unwrap();
    assert_eq!(
        left.iter().map(|info| (&info.of, info.weight)).collect::<Vec<_>>(),
        [(&Limited::User(2001), Some(50))]
    );
    let clear = LimitChange { weight: Some(0), ..LimitChange::default() };
    owner.session.set_limits(Limited::User(2001), clear).unwrap();
    assert_eq!(owner.session.list_limits().unwrap(), []);
}

fn who_may(rig: &Rig) {
    let adapter = rig.embedded();
    let owner = adapter.session().unwrap();
    owner.create_volume("v", VOLUME).unwrap();
    owner.create_volume("secret", VOLUME).unwrap();
    owner.set_access("v", Subject::User(2001), Access::ALL).unwrap();
    let stranger = adapter.session_as(somebody(2001)).unwrap();
    let of = |name: &str| Limited::Volume(name.to_owned());
    for limited in [of("v"), Limited::User(2001), Limited::Session(stranger.number())] {
        let error = stranger.set_limits(limited, lifted()).unwrap_err();
        assert_eq!(error.status(), Some(Status::E_AUTH));
    }
    let weight = LimitChange { weight: Some(1), ..LimitChange::default() };
    let heavy = LimitChange { weight: Some(1001), ..LimitChange::default() };
    let burst = LimitChange { requests: Some(Rate { rate: 0, burst: 5 }), ..LimitChange::default() };
    for (limited, change, status) in [
        (of("none"), nothing(), Status::E_NO_RESOURCE),
        (of("a/b"), nothing(), Status::E_PARAM),
        (of("v"), weight, Status::E_PARAM),
        (Limited::User(1), heavy, Status::E_PARAM),
        (of("v"), burst, Status::E_PARAM),
        (Limited::Session(1 << 40), nothing(), Status::E_NO_RESOURCE),
    ] {
        let error = owner.set_limits(limited.clone(), change).unwrap_err();
        assert_eq!(error.status(), Some(status), "{limited:?}: {error}");
    }
    for name in ["v", "secret"] {
        owner.set_limits(of(name), nothing()).unwrap();
    }
    owner.set_limits(Limited::User(3000), weight).unwrap();
    let seen = |session: &portcullis::Session| {
        session.list_limits().unwrap().into_iter().map(|info| info.of).collect::<Vec<_>>()
    };
    assert_eq!(seen(&owner), [of("secret"), of("v"), Limited::User(3000)]);
    assert_eq!(seen(&stranger), [of("v")], "what others have is none of its business");
    // More than fit one reply.
    for uid in 0..100 {
        owner.set_limits(Limited::User(uid), weight).unwrap();
    }
    assert_eq!(seen(&owner).len(), 103);
}

fn kept(rig: &Rig) {
    let mut options = rig.options();
    if rig.is_software() {
        let path = rig.socket().with_extension("img");
        std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
        options.device = adapter::DeviceUri::EmuFile(path);
    }
    let first = adapter::Embedded::start(&options).unwrap();
    let session = first.session().unwrap();
    session.create_volume("v", VOLUME).unwrap();
    session.create_volume("free", VOLUME).unwrap();
    let set = session.set_limits(Limited::Volume("v".to_owned()), nothing()).unwrap();
    session.set_limits(Limited::User(5), LimitChange { weight: Some(7), ..LimitChange::default() }).unwrap();
    drop((session, first));
    let options = adapter::Options { format: adapter::Format::Never, ..options };
    let second = adapter::Embedded::start(&options).unwrap();
    let mut limited = Client::open(second.session().unwrap(), "v", Access::READ);
    let mut free = Client::open(second.session().unwrap(), "free", Access::READ);
    assert_eq!(free.session.list_limits().unwrap(), [set], "users' are gone with the adapter that had them");
    assert_eq!(limited.status(&read_of(&limited)), Status::OK);
    waits(&mut limited, &mut free);
}
