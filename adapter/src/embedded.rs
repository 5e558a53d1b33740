//! An adapter in the application's own process: the same tables, the same checks, the same queues, and no hop: the engine
//! is turned by the thread that polls.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use driver::block::BlockQueue;
use portcullis::{EmbeddedAdapter, Session, Transport, TransportError};
use wire::control::{Reply, Request};
use wire::socket::Credentials;

use crate::assembly::{Assembled, Options, StartError, Turn, Turned, assemble, build};
use crate::control::{Caller, Control, SessionId};
use crate::device::{Health, Opened, Supervisor};
use crate::engine::QueueId;

/// The device is looked after this often.
const TEND: Duration = Duration::from_millis(250);
/// And this often during a reset, which everybody waits for.
const TEND_RESET: Duration = Duration::from_millis(1);
/// Of many turns, one looks after what is not a request.
const TURNS: u64 = 16;
/// And of these, one looks after the device although there is work: requests that a device which is gone refuses are
/// work without end.
const BUSY_TURNS: u64 = 1 << 14;

/// An adapter that the calling threads turn.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let adapter = adapter::Embedded::open("emu:64M")?;
/// let session = adapter.session()?;
/// session.create_volume("notes", 1 << 20)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Embedded(Arc<Shared>);

struct Shared(Mutex<Inner>);

struct Inner {
    // Dropped in this order: the engine lets go of its queues, then the control plane of tables and memory.
    engine: Box<dyn Turn>,
    control: Control,
    supervisor: Option<Box<dyn Supervisor>>,
    tended: Instant,
    turns: u64,
    /// A reset goes on.
    resetting: bool,
    /// Replies that were not for the caller that found them.
    replies: Vec<(Caller, Reply, Vec<OwnedFd>)>,
}

impl Embedded {
    /// An adapter over the device that `uri` names, with the default options.
    pub fn open(uri: &str) -> Result<Self, StartError> {
        let device = uri.parse().map_err(|error: crate::device::UriError| crate::device::OpenError {
            uri: uri.to_owned(),
            reason: error.to_string(),
            held: false,
        })?;
        Self::start(&Options { pollers: 1, ..Options::new(device) })
    }

    /// An adapter as `options` say; it has one engine, whatever they say of pollers.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let options = Options { pollers: 1, ..options.clone() };
        Ok(Self::over(assemble(&options, Turned::ByCaller)?))
    }

    /// The same over a device that is open already, with one queue for pollers, whatever `options` say of it.
    pub fn start_on<Q: BlockQueue + 'static>(
        device: Opened<Q>,
        options: &Options,
    ) -> Result<Self, StartError> {
        Ok(Self::over(build(device, options, Turned::ByCaller)?))
    }

    /// Over an assembly that the caller turns.
    pub(crate) fn over(assembled: Assembled) -> Self {
        let Assembled { control, supervisor, engine } = assembled;
        let engine = engine.expect("an assembly turned by the caller has an engine");
        let inner = Inner {
            engine,
            control,
            supervisor: Some(supervisor),
            tended: Instant::now(),
            turns: 0,
            resetting: false,
            replies: Vec::new(),
        };
        Self(Arc::new(Shared(Mutex::new(inner))))
    }

    /// A session of this process's user.
    pub fn session(&self) -> Result<Session, portcullis::Error> {
        self.session_as(own_credentials())
    }

    /// A session of somebody else: whoever embeds an adapter speaks for all its users.
    pub fn session_as(&self, credentials: Credentials) -> Result<Session, portcullis::Error> {
        Session::with_transport(Box::new(self.transport_as(credentials)?))
    }

    /// The transport of a new session, for those who speak the protocol themselves.
    pub fn transport_as(&self, credentials: Credentials) -> Result<impl Transport + use<>, TransportError> {
        let session =
            self.0.lock().control.connect(credentials).map_err(|r| TransportError::Gone(r.into_text()))?;
        Ok(Connection { adapter: self.0.clone(), session, next_id: 1 })
    }

    /// One turn; false if there was nothing to do.
    pub fn turn(&self) -> bool {
        self.0.lock().turn()
    }
}

/// Who this process is.
pub fn own_credentials() -> Credentials {
    let groups = rustix::process::getgroups().unwrap_or_default().into_iter().map(|g| g.as_raw()).collect();
    Credentials {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        groups,
    }
}

impl Shared {
    /// A poisoned lock means that a caller's thread panicked in a turn; tables and queues are as that turn left them, each
    /// request whole, since nothing in a turn panics half way but a broken invariant of ours.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect(BROKEN)
    }
}

impl EmbeddedAdapter for Shared {
    fn turn_for(&self, queue: u32) -> bool {
        match self.0.try_lock() {
            Ok(mut inner) => {
                inner.engine.attend(QueueId(queue));
                inner.turn()
            }
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Poisoned(_)) => panic!("{BROKEN}"),
        }
    }
}

const BROKEN: &str = "the embedded adapter broke one of its invariants";

impl Inner {
    fn turn(&mut self) -> bool {
        let work = self.engine.turn() > 0;
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(TURNS) {
            self.look_after(work);
        }
        work
    }

    /// What goes on beside the requests of queues. A call looks after its own.
    #[cold]
    fn look_after(&mut self, busy: bool) {
        if self.control.is_waiting() {
            self.control.advance(Instant::now());
        }
        if !busy || self.turns.is_multiple_of(BUSY_TURNS) {
            self.tend();
        }
    }

    fn tend(&mut self) {
        if self.control.wants_health() {
            self.control.tell_health(self.supervisor.as_mut().and_then(|s| s.read_health()));
        }
        let now = Instant::now();
        let every = if self.resetting { TEND_RESET } else { TEND };
        if now.saturating_duration_since(self.tended) >= every {
            self.tended = now;
            self.control.advance(now);
            let stuck = self.control.is_stuck();
            if let Some(supervisor) = &mut self.supervisor {
                let health = supervisor.tend(stuck);
                self.resetting = health == Health::Resetting;
                self.control.reset_goes_on(self.resetting);
            }
        }
    }

    fn take_reply(&mut self, caller: Caller) -> Option<(Reply, Vec<OwnedFd>)> {
        while let Some(out) = self.control.next_reply() {
            self.replies.push((out.caller, out.reply, out.descriptors));
        }
        let at = self.replies.iter().position(|(to, ..)| *to == caller)?;
        let (_, reply, descriptors) = self.replies.swap_remove(at);
        self.control.received_all(caller.session);
        Some((reply, descriptors))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Every session is gone, as each holds this adapter; what they held drains now.
        let end = Instant::now() + Duration::from_secs(10);
        while !self.control.is_drained() && Instant::now() < end {
            self.engine.turn();
            self.control.advance(Instant::now());
        }
        self.control.close_files(end.saturating_duration_since(Instant::now()));
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.shut_down();
        }
    }
}

struct Connection {
    adapter: Arc<Shared>,
    session: SessionId,
    next_id: u32,
}

impl Transport for Connection {
    fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        let owned = descriptors.iter().map(|fd| fd.try_clone_to_owned()).collect::<Result<Vec<_>, _>>();
        let owned =
            owned.map_err(|source| TransportError::Os { what: "duplicating a descriptor".into(), source })?;
        let caller = Caller::new(self.session, self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.adapter.lock().control.request(caller, request.clone(), owned);
        loop {
            let mut inner = self.adapter.lock();
            if let Some(reply) = inner.take_reply(caller) {
                return Ok(reply);
            }
            inner.turn();
            inner.control.advance(Instant::now());
            inner.tend(); // What the call waits for may be stuck at the device.
            drop(inner);
            std::thread::yield_now();
        }
    }

    fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
        Some(self.adapter.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.adapter.0.lock() {
            inner.control.disconnect(self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counting(Arc<AtomicUsize>);

    impl Supervisor for Counting {
        fn tend(&mut self, _stuck: bool) -> Health {
            self.0.fetch_add(1, Ordering::Relaxed);
            Health::Running
        }

        fn shut_down(self: Box<Self>) {}
    }

    #[test]
    fn the_device_is_looked_after_while_a_call_waits() {
        let tended = Arc::new(AtomicUsize::new(0));
        let adapter = Embedded::open("null:64M").unwrap();
        let session = adapter.session().unwrap();
        session.create_volume("v", 1 << 20).unwrap();
        let volume = session.open("v", portcullis::Access::READ).unwrap();
        {
            let mut inner = adapter.0.lock();
            inner.supervisor = Some(Box::new(Counting(tended.clone())));
            inner.tended = Instant::now().checked_sub(TEND).unwrap();
        }
        volume.close().unwrap(); // Waits for the engine.
        assert_eq!(tended.load(Ordering::Relaxed), 1);
    }
}
