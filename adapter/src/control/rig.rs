//! A control plane with an engine that the test turns: until then nothing is acknowledged, as if I/O went on.

use std::time::Instant;

use wire::control::{Reply, Request};
use wire::socket::Credentials;

use super::{Caller, Control, SessionId};
use crate::assembly::{Assembled, Options, Turn, Turned, assemble};
use crate::device::Supervisor;
use crate::embedded::own_credentials;

pub(super) struct Rig {
    pub(super) control: Control,
    pub(super) engine: Box<dyn Turn>,
    next_id: u32,
    /// Without it the device is gone.
    _supervisor: Box<dyn Supervisor>,
}

impl Rig {
    pub(super) fn with(options: &Options) -> Self {
        let Assembled { control, engine, supervisor } = assemble(options, Turned::ByCaller).unwrap();
        Self { control, engine: engine.unwrap(), next_id: 0, _supervisor: supervisor }
    }

    pub(super) fn session(&mut self) -> SessionId {
        self.session_of(own_credentials())
    }

    pub(super) fn session_of(&mut self, who: Credentials) -> SessionId {
        let session = self.control.connect(who).unwrap();
        let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
        let caller = self.ask(session, hello);
        assert!(matches!(self.answer(caller), Reply::Welcome(_)));
        session
    }

    pub(super) fn ask(&mut self, session: SessionId, request: Request) -> Caller {
        self.next_id += 1;
        let caller = Caller::new(session, self.next_id);
        self.control.request(caller, request, Vec::new());
        caller
    }

    /// Goes on until there is an answer; the engine turns, too.
    pub(super) fn answer(&mut self, to: Caller) -> Reply {
        loop {
            if let Some(out) = self.control.next_reply() {
                assert_eq!(out.caller, to);
                return out.reply;
            }
            self.engine.turn();
            self.control.advance(Instant::now());
            std::thread::yield_now();
        }
    }

    pub(super) fn call(&mut self, session: SessionId, request: Request) -> Reply {
        let caller = self.ask(session, request);
        self.answer(caller)
    }
}
