//! What the grants over a volume do while blocks are taken from it. The engine is turned by the test: until then nothing
//! is acknowledged, as if I/O went on.

use std::time::Instant;

use wire::control::Reply;

use super::*;
use crate::assembly::Options;
use crate::control::rig::Rig;

impl Rig {
    fn new(lba_entries: u32) -> Self {
        let mut options = Options::new("null:64M".parse().unwrap());
        options.tables.lba_entries = lba_entries;
        Self::with(&options)
    }

    fn create(&mut self, session: SessionId) {
        let reply = self.call(session, Request::CreateVolume { name: "v".into(), bytes: 4 << 20 });
        assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    }

    fn open(&mut self, session: SessionId) -> Reply {
        self.call(session, Request::OpenVolume { name: "v".into(), access: 1 })
    }

    fn opened(&mut self, session: SessionId) -> u64 {
        let Reply::Grant(grant) = self.open(session) else { panic!("the volume can be opened") };
        grant.key
    }

    /// Whether the running operation still waits for grants, however often it is looked after.
    fn waits(&mut self) -> bool {
        for _ in 0..3 {
            self.control.advance(Instant::now());
        }
        let operation = self.control.lane.running.as_ref().map(|running| &running.operation);
        matches!(operation, Some(Operation::Shrink { .. } | Operation::Delete { .. }))
    }
}

fn shrink() -> Request {
    Request::ResizeVolume { name: "v".into(), bytes: 1 << 20 }
}

fn delete() -> Request {
    Request::DeleteVolume { name: "v".into() }
}

#[test]
fn no_grant_is_made_over_a_volume_that_blocks_are_taken_from() {
    for request in [shrink(), delete()] {
        let mut rig = Rig::new(64);
        let session = rig.session();
        rig.create(session);
        let taking = rig.ask(session, request);
        let opening = rig.ask(session, Request::OpenVolume { name: "v".into(), access: 1 });
        let Reply::Error { status, .. } = rig.answer(opening) else {
            panic!("opened while blocks are taken")
        };
        assert_eq!(status, Status::E_BUSY_TIMEOUT);
        let reply = rig.answer(taking);
        let deleted = matches!(reply, Reply::Revoked { grants: 0, draining: 0 });
        assert!(deleted || matches!(reply, Reply::Volume(_)), "{reply:?}");
        assert_eq!(matches!(rig.open(session), Reply::Grant(_)), !deleted);
    }
}

#[test]
fn blocks_are_taken_only_when_grants_that_were_closing_are_quiet() {
    for request in [shrink(), delete()] {
        let mut rig = Rig::new(64);
        let session = rig.session();
        rig.create(session);
        let key = rig.opened(session);
        let closing = rig.ask(session, Request::Close { key });
        rig.ask(session, request);
        assert!(rig.waits(), "I/O may still run under the grant that is being closed");
        // The close gives up; it must not open the grant again over blocks that are about to go.
        rig.control.advance(Instant::now() + QUIESCE_TIMEOUT * 2);
        let query = rig.ask(session, Request::Query { key });
        let replies: Vec<_> = std::iter::from_fn(|| rig.control.next_reply()).collect();
        let answer = replies.iter().find(|out| out.caller == query).unwrap();
        assert!(matches!(answer.reply, Reply::Error { .. }), "{answer:?}");
        let answer = replies.iter().find(|out| out.caller == closing).unwrap();
        let Reply::Error { status: Status::E_BUSY_TIMEOUT, detail } = &answer.reply else {
            panic!("{answer:?}")
        };
        assert!(detail.contains("revoked meanwhile") && !detail.contains("stays"), "{detail}");
        for _ in 0..5 {
            rig.engine.turn();
            rig.control.advance(Instant::now());
        }
        assert_eq!(rig.control.tables.usage().entries, 0, "nothing is left of it");
    }
}

#[test]
fn blocks_are_taken_only_when_revoked_grants_are_quiet() {
    for request in [shrink(), delete()] {
        let mut rig = Rig::new(64);
        let (owner, gone) = (rig.session(), rig.session());
        rig.create(owner);
        rig.opened(gone);
        rig.control.disconnect(gone);
        let taking = rig.ask(owner, request);
        assert!(rig.waits(), "I/O may still run under the revoked grant");
        let reply = rig.answer(taking);
        assert!(matches!(reply, Reply::Volume(_) | Reply::Revoked { draining: 0, .. }), "{reply:?}");
        assert_eq!(rig.control.tables.usage().entries, 0);
        assert_eq!(rig.control.sessions(), 1);
    }
}

#[test]
fn a_grant_that_cannot_shrink_ends() {
    let mut rig = Rig::new(1); // The new list of extents would need a second entry before the first is free.
    let session = rig.session();
    rig.create(session);
    let key = rig.opened(session);
    let reply = rig.call(session, shrink());
    assert!(matches!(reply, Reply::Volume(_)), "{reply:?}");
    let reply = rig.call(session, Request::Query { key });
    assert!(matches!(reply, Reply::Error { .. }), "the grant still reaches what the volume lost: {reply:?}");
    assert_eq!(rig.control.tables.usage().entries, 0);
}

#[test]
fn a_user_has_no_more_in_many_sessions_than_a_user_may() {
    let mut options = Options::new("null:64M".parse().unwrap());
    options.policy.grants_per_user = 3;
    let mut rig = Rig::with(&options);
    let sessions = [rig.session(), rig.session()];
    rig.create(sessions[0]);
    for (at, allowed) in [(0, true), (0, true), (1, true), (1, false)] {
        assert_eq!(matches!(rig.open(sessions[at]), Reply::Grant(_)), allowed);
    }
}

#[test]
fn a_list_counts_the_grants_of_each_volume() {
    let mut rig = Rig::new(64);
    let sessions = [rig.session(), rig.session()];
    rig.create(sessions[0]);
    rig.call(sessions[0], Request::CreateVolume { name: "w".into(), bytes: 1 << 20 });
    rig.opened(sessions[0]);
    rig.opened(sessions[1]);
    let Reply::Volumes { volumes, more: false } = rig.call(sessions[0], Request::ListVolumes { after: None })
    else {
        panic!("both fit one page")
    };
    let counts: Vec<_> = volumes.iter().map(|v| (v.name.as_str(), v.grants)).collect();
    assert_eq!(counts, [("v", 2), ("w", 0)]);
}
