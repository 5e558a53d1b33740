//! What everything of a session shares: its connection, and what it takes to go on with the next adapter where one ends.
//!
//! A session that has patience has *lives*: one for each run of the adapter that it was connected to. Handles of volumes and
//! files go by a *name*, the key that they got first; what the name stands for in the present life is looked up here.
//! Whoever finds the adapter gone calls [`Link::resume`]. The first does it for all, the others wait for it.
//!
//! Memory is made anew, by memfds that were not sealed before, and not handed on: an upgrade runs a new program, which cannot
//! inherit mappings; a process that kept them would be one more that every application's memory is mapped into; and
//! what the adapter sealed can never be mapped writable again. [`crate::memory`] has the rest of that.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wire::Status;
use wire::control::{Reply, Request, Welcome};

use crate::error::Error;
use crate::memory::unexpected;
use crate::transport::{EmbeddedAdapter, Transport, TransportError};

mod lives;
mod opened;
mod options;
mod queues;
mod requests;

use lives::{Held, Lives};
pub use options::ConnectOptions;
pub(crate) use queues::Standing;
use requests::is_repeatable;

/// A wait for a completion looks so often whether the adapter lives.
const HEARTBEAT: Duration = Duration::from_millis(500);
const ATTENTIVE: Duration = Duration::from_millis(50);

struct Connection {
    transport: Box<dyn Transport>,
    welcome: Welcome,
    /// The how many-th of the session.
    life: u32,
}

/// What volumes, memory and queues keep of their session.
pub(crate) struct Link {
    connection: Mutex<Connection>,
    embedded: Option<Arc<dyn EmbeddedAdapter>>,
    /// `None`: when the adapter ends, so does the session.
    lives: Option<Lives>,
}

impl Link {
    /// Says hello.
    pub(crate) fn open(transport: Box<dyn Transport>) -> Result<Self, Error> {
        Self::greet(transport, None)
    }

    fn greet(mut transport: Box<dyn Transport>, lives: Option<Lives>) -> Result<Self, Error> {
        let welcome = hello(&mut *transport)?;
        let embedded = transport.embedded();
        let connection = Mutex::new(Connection { transport, welcome, life: 0 });
        Ok(Self { connection, embedded, lives })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in a call leaves the transport to answer for itself; the guard protects nothing else.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter, if it is in this process and needs turns.
    #[inline]
    pub(crate) fn embedded(&self) -> Option<&dyn EmbeddedAdapter> {
        self.embedded.as_deref()
    }

    /// What the present adapter said first.
    pub(crate) fn welcome(&self) -> Welcome {
        self.lock().welcome.clone()
    }

    /// Which life of the session this is; always 0 without patience.
    pub(crate) fn life(&self) -> u32 {
        if self.lives.is_some() { self.lock().life } else { 0 }
    }

    /// Whether it goes on with the next adapter.
    pub(crate) fn resumes(&self) -> bool {
        self.lives.is_some()
    }

    /// How often a sleep is interrupted to see whether the adapter lives.
    pub(crate) fn heartbeat(&self) -> Duration {
        if self.resumes() { ATTENTIVE } else { HEARTBEAT }
    }

    /// Sends a request in `life` and gives the reply, unless that is a refusal. Does not go on with another adapter.
    pub(crate) fn call_in(
        &self,
        life: u32,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let mut connection = self.lock();
        if connection.life != life {
            return Err(succeeded());
        }
        let translated = self.translate(request)?;
        match connection.transport.call(&translated, descriptors)? {
            (Reply::Error { status, detail }, _) => Err(Error::Refused { status, detail }),
            (mut reply, descriptors) => {
                self.learn(request, &mut reply)?; // While the connection is held: nobody resumes between.
                Ok((reply, descriptors))
            }
        }
    }

    /// Sends a request as it is to the present adapter: without other names for keys, without a second attempt.
    pub(crate) fn exchange(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        Ok(self.lock().transport.call(request, descriptors)?)
    }

    /// Sends a request; if the adapter ends meanwhile, to the next one, where that is right.
    pub(crate) fn call(&self, request: &Request) -> Result<Reply, Error> {
        let request = &*self.once(request)?;
        let mut sent = false;
        self.in_some_life(|life| {
            if sent && !is_repeatable(request) {
                return Err(unknown_outcome());
            }
            if self.resumes() {
                self.check_alive(life)?; // Who is gone before was not asked.
            }
            sent = true;
            Ok(self.call_in(life, request, &[])?.0)
        })
    }

    /// Does something in the present life, and again in the next one if that ends meanwhile.
    pub(crate) fn in_some_life<T>(&self, mut work: impl FnMut(u32) -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let life = self.life();
            match work(life) {
                Err(error) if self.resumes() && error.is_gone() => drop(self.resume(life, None)?),
                other => return other,
            }
        }
    }

    /// Fails if the adapter of `life` is known to be gone.
    pub(crate) fn check_alive(&self, life: u32) -> Result<(), Error> {
        let mut connection = self.lock();
        if connection.life != life {
            return Err(succeeded());
        }
        Ok(connection.transport.check_alive()?)
    }

    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        Some(self.lives.as_ref()?.held())
    }
}

/// Says hello, and sees that both sides speak the same version.
fn hello(transport: &mut dyn Transport) -> Result<Welcome, Error> {
    let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
    match transport.call(&hello, &[])?.0 {
        Reply::Welcome(welcome) if welcome.version == wire::VERSION => Ok(welcome),
        Reply::Welcome(welcome) => Err(Error::Protocol(format!(
            "it chose version {}, this library speaks {} only",
            welcome.version,
            wire::VERSION
        ))),
        Reply::Error { status: Status::E_VERSION, detail } => Err(Error::Refused {
            status: Status::E_VERSION,
            detail: format!(
                "{detail} (this library speaks version {}: use the adapter and the library of one release)",
                wire::VERSION
            ),
        }),
        Reply::Error { status, detail } => Err(Error::Refused { status, detail }),
        other => Err(unexpected(&other)),
    }
}

fn succeeded() -> Error {
    TransportError::Gone("another one serves the session since: what was made before is gone".to_owned())
        .into()
}

/// What became of a request that must not be sent again.
fn unknown_outcome() -> Error {
    let detail = "the adapter ended before it answered; whether it was done has to be looked up".to_owned();
    Error::Refused { status: Status::E_OUTCOME_UNKNOWN, detail }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("life", &self.life()).finish_non_exhaustive()
    }
}
