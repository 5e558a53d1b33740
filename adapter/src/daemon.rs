//! An adapter with a control socket, in a process of its own or on threads of this one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::block::BlockQueue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::assembly::{Assembled, Options, StartError, Turned, assemble, build};
use crate::confine::{self, Confinement};
use crate::control::Control;
use crate::device::{Health, Opened, Supervisor};
use crate::poller::eventfd;
use crate::server::{Server, is_served};
use crate::signals;

/// After SIGTERM, I/O that runs has this long to end.
const DRAIN: Duration = Duration::from_secs(10);
/// A new adapter waits so long for the device of the one before: that drains, and then shuts the device down.
const DEVICE_WAIT: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// The device is looked after this often; more often while it is not well.
const TEND: Duration = Duration::from_millis(250);
/// Whoever may do what is decided by who connects, not by the socket's mode.
const SOCKET_MODE: u32 = 0o666;

/// An adapter that serves a socket on threads of this process.
pub struct Adapter {
    socket: PathBuf,
    stop: OwnedFd,
    thread: Option<JoinHandle<Result<(), StartError>>>,
}

impl Adapter {
    /// Opens the device and serves `socket`.
    pub fn start(options: &Options, socket: &Path) -> Result<Self, StartError> {
        Self::serve(assemble(options, Turned::ByPollers)?, socket)
    }

    /// The same over a device that is open already, whatever `options` say of it.
    pub fn start_on<Q: BlockQueue + 'static>(
        device: Opened<Q>,
        options: &Options,
        socket: &Path,
    ) -> Result<Self, StartError> {
        Self::serve(build(device, options, Turned::ByPollers)?, socket)
    }

    fn serve(assembled: Assembled, socket: &Path) -> Result<Self, StartError> {
        let stop = eventfd().map_err(os("an eventfd"))?;
        let stopped = stop.try_clone().map_err(os("an eventfd"))?;
        let ready = prepare(assembled, socket)?;
        let thread = std::thread::Builder::new()
            .name("portcullis-control".into())
            .spawn(move || run(ready, stopped.as_fd()))
            .map_err(os("starting the control thread"))?;
        Ok(Self { socket: socket.to_owned(), stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it as SIGTERM would: sessions end, I/O drains, the device is shut down.
    pub fn stop(mut self) -> Result<(), StartError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StartError> {
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            let _ = self.end();
        }
    }
}

/// Serves `socket` until SIGTERM or SIGINT. `ready` is told what is being served, once it is.
pub fn serve(options: &Options, socket: &Path, ready: impl FnOnce(&Serving)) -> Result<(), StartError> {
    let stop = signals::termination().map_err(os("blocking signals"))?;
    raise_descriptor_limit();
    let landlock = if options.confined { confine::limit_files(&options.device, socket) } else { None };
    let prepared = prepare(assemble_when_free(options, socket, stop.as_fd())?, socket)?;
    let confinement = confined(options, landlock);
    ready(&Serving { confinement, ..prepared.0.control().serving() });
    run(prepared, stop.as_fd())
}

/// An adapter that is being replaced holds its device until its I/O has ended: it is waited for, unless it still serves.
fn assemble_when_free(
    options: &Options,
    socket: &Path,
    stop: BorrowedFd<'_>,
) -> Result<Assembled, StartError> {
    let end = Instant::now() + DEVICE_WAIT;
    let mut told = false;
    loop {
        let error = match assemble(options, Turned::ByPollers) {
            Err(StartError::Device(error)) if error.held && Instant::now() < end => error,
            other => return other,
        };
        if is_served(socket).map_err(os("looking whether the socket is in use"))? {
            return Err(error.into());
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%error, "another process holds the device; waiting up to {DEVICE_WAIT:?} for it");
        }
        let mut stopped = [PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        if poll(&mut stopped, Some(&LOOK_AGAIN)).is_ok_and(|ready| ready > 0) {
            return Err(error.into());
        }
    }
}

/// [`serve`] over a device that is open already, whatever `options` say of it. Threads that are there already must have
/// SIGTERM and SIGINT blocked, and so must those of the device; files are not limited.
pub fn serve_on<Q: BlockQueue + 'static>(
    device: Opened<Q>,
    options: &Options,
    socket: &Path,
    ready: impl FnOnce(&Serving),
) -> Result<(), StartError> {
    let stop = signals::termination().map_err(os("blocking signals"))?;
    let prepared = prepare(build(device, options, Turned::ByPollers)?, socket)?;
    let confinement = confined(options, None);
    ready(&Serving { confinement, ..prepared.0.control().serving() });
    run(prepared, stop.as_fd())
}

/// All is open and all threads run: from here on nothing else is needed.
fn confined(options: &Options, landlock: Option<u8>) -> Confinement {
    if !options.confined {
        return Confinement::default();
    }
    let comes_back = confine::comes_back(&options.device);
    if comes_back && landlock.is_none() {
        tracing::info!(
            "without Landlock a device that is removed is gone until the adapter is started again"
        );
    }
    match confine::limit_system_calls(comes_back && landlock.is_some()) {
        Ok(count) => Confinement { no_new_privileges: true, system_calls: Some(count), landlock },
        Err(error) => {
            tracing::warn!(%error, "the adapter's system calls could not be limited");
            Confinement { landlock, no_new_privileges: landlock.is_some(), system_calls: None }
        }
    }
}

/// What an adapter drives, for its first lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Serving {
    /// The device, as it was named.
    pub uri: String,
    /// Model, as the device says.
    pub model: String,
    /// Serial number, as the device says.
    pub serial: String,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Volumes on it.
    pub volumes: usize,
    /// Threads that poll.
    pub pollers: usize,
    /// How its process is confined.
    pub confinement: Confinement,
}

type Prepared = (Server, Box<dyn Supervisor>);

fn prepare(assembled: Assembled, socket: &Path) -> Result<Prepared, StartError> {
    let Assembled { control, supervisor, .. } = assembled;
    match Server::bind(control, socket, SOCKET_MODE) {
        Ok(server) => Ok((server, supervisor)),
        Err(source) => {
            supervisor.shut_down();
            Err(StartError::Os { what: "listening", source })
        }
    }
}

fn run((server, mut supervisor): Prepared, stop: BorrowedFd<'_>) -> Result<(), StartError> {
    let mut tended = Instant::now();
    let mut health = Health::Running;
    let mut tend = |control: &mut Control, now: Instant| {
        if control.wants_health() {
            control.tell_health(supervisor.read_health());
        }
        if health != Health::Resetting && now.saturating_duration_since(tended) < TEND {
            return;
        }
        tended = now;
        let before = std::mem::replace(&mut health, supervisor.tend(control.is_stuck()));
        control.reset_goes_on(health == Health::Resetting);
        if before != health {
            tracing::warn!(?before, ?health, "the device changed its health");
        }
    };
    let (mut control, served) = server.run(stop, &mut tend);
    if let Err(error) = &served {
        tracing::error!(%error, "the control socket cannot be served any longer");
    }

    tracing::info!("draining");
    let end = Instant::now() + DRAIN;
    while !control.is_drained() && Instant::now() < end {
        control.advance(Instant::now());
        tend(&mut control, Instant::now());
        std::thread::sleep(Duration::from_millis(1));
    }
    if !control.is_drained() {
        tracing::warn!(
            sessions = control.sessions(),
            "I/O was still running after {DRAIN:?}; the device reset ends it"
        );
    }
    control.close_files(DRAIN);
    // The device stops before the memory that it might still write goes away.
    let control = control.stop_pollers();
    supervisor.shut_down();
    drop(control);
    served.map_err(os("waiting on the control socket"))
}

/// Thousands of connections need thousands of descriptors: as many as the hard limit allows.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        tracing::warn!(limit = ?limit.current, "the limit of open descriptors could not be raised");
    }
}

fn os(what: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |source| StartError::Os { what, source }
}
