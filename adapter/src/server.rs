//! The control socket: connections in, packets to the control plane and back. One thread, never blocked by a client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use wire::Status;
use wire::control::{MAX_MESSAGE, Reply};
use wire::discard::{Owner, discard};
use wire::frame::{FrameError, decode_request, encode};
use wire::socket::{Blocking, ReceiveError, peer_credentials, receive_of, send, unreceived};

use crate::control::{Caller, Control, Refusal, SessionId};

/// Replies that may wait for a client that does not read its socket; with one more its session ends.
const REPLIES_WAITING: usize = 32;
/// Packets taken from one connection before the next one has its turn.
const PACKETS_PER_TURN: usize = 4;
/// Connections taken before those that exist have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// While something is under way the control plane looks at it this often.
const WAITING: Duration = Duration::from_millis(1);
/// And otherwise this often: the device is watched, denials are logged.
const RESTING: Duration = Duration::from_millis(250);
/// Without descriptors for another connection, none is taken for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const STORAGE: u64 = 2;
const MEMORY: u64 = 3;
const MANAGED: u64 = 4;
/// Connections have the tokens from here on.
const FIRST_CONNECTION: u64 = 16;

struct Connection {
    socket: OwnedFd,
    session: SessionId,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    interest: EventFlags,
}

impl Connection {
    fn has_received_all(&self) -> bool {
        self.waiting.is_empty() && unreceived(&self.socket).is_ok_and(|bytes| bytes == 0)
    }
}

/// See the module.
pub struct Server {
    control: Control,
    path: PathBuf,
    listener: OwnedFd,
    epoll: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    tokens: BTreeMap<SessionId, u64>,
    next_token: u64,
    /// Connections that nothing is taken from for now, for reasons that other connections may end.
    paused: BTreeSet<u64>,
    accept_again: Option<Instant>,
}

impl Server {
    /// Listens on `path`, which everybody on the machine may connect to: what they may do is decided by who they are.
    pub fn bind(control: Control, path: &Path, mode: u32) -> io::Result<Self> {
        let listener = listen(path, mode)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        for (done, token) in
            [(control.storage_done(), STORAGE), (control.memory_done(), MEMORY), (control.managed(), MANAGED)]
        {
            epoll::add(&epoll, done, EventData::new_u64(token), EventFlags::IN | EventFlags::ET)?;
        }
        Ok(Self {
            control,
            path: path.to_owned(),
            listener,
            epoll,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_CONNECTION,
            paused: BTreeSet::new(),
            accept_again: None,
        })
    }

    /// The control plane.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Serves until `stop` becomes readable; `tend` runs between rounds. Gives the control plane back, its sessions told
    /// to end, also when it can serve no longer: what it holds has to be taken down in order then, too.
    pub fn run(
        mut self,
        stop: BorrowedFd<'_>,
        tend: &mut dyn FnMut(&mut Control, Instant),
    ) -> (Control, io::Result<()>) {
        let served = self.serve_until(stop, tend);
        let _ = std::fs::remove_file(&self.path);
        for token in self.connections.keys().copied().collect::<Vec<_>>() {
            self.drop_connection(token);
        }
        (self.control, served)
    }

    fn serve_until(
        &mut self,
        stop: BorrowedFd<'_>,
        tend: &mut dyn FnMut(&mut Control, Instant),
    ) -> io::Result<()> {
        epoll::add(&self.epoll, stop, EventData::new_u64(STOP), EventFlags::IN)?;
        let mut events = Vec::with_capacity(256);
        loop {
            let timeout = if !self.control.fall_asleep() {
                Duration::ZERO
            } else if self.control.is_waiting() || self.control.must_look() {
                WAITING
            } else {
                RESTING
            };
            let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.control.wake_up();
            let now = Instant::now();
            let mut stopping = false;
            for event in &events {
                match event.data.u64() {
                    STOP => stopping = true,
                    LISTENER => self.accept(now),
                    STORAGE | MEMORY | MANAGED => {}
                    token => {
                        let over = { event.flags }.intersects(EventFlags::HUP | EventFlags::ERR);
                        self.serve(token, over);
                    }
                }
            }
            self.control.advance(now);
            self.deliver();
            self.resume_connections();
            self.resume_accepting(now);
            tend(&mut self.control, now);
            if stopping {
                return Ok(());
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => self.admit(socket),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken for a moment");
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn resume_accepting(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|at| now >= at)
            && epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), EventFlags::IN).is_ok()
        {
            self.accept_again = None;
        }
    }

    fn admit(&mut self, socket: OwnedFd) {
        let who = peer_credentials(&socket).map_err(|e| Refusal::os("who connects", &e));
        // A connection that is not kept may have packets already, with descriptors whose close takes long.
        let owner = who.as_ref().map_or(Owner::Nobody, |who| Owner::Connections(who.uid));
        let session = match who.and_then(|who| self.control.connect(who)) {
            Ok(session) => session,
            Err(refusal) => {
                if let Ok(packet) = encode(0, &refusal.into_reply()) {
                    let _ = send(&socket, &packet, &[], Blocking::Never);
                }
                return discard(owner, socket);
            }
        };
        let token = self.next_token;
        self.next_token += 1;
        if epoll::add(&self.epoll, &socket, EventData::new_u64(token), EventFlags::IN).is_err() {
            discard(owner, socket);
            return self.control.disconnect(session);
        }
        self.tokens.insert(session, token);
        self.connections.insert(
            token,
            Connection { socket, session, waiting: VecDeque::new(), interest: EventFlags::IN },
        );
    }

    /// Takes a bounded number of packets from a connection. One that is `over` while nothing is taken from it ends at once:
    /// the kernel would report it again and again.
    fn serve(&mut self, token: u64, over: bool) {
        self.flush(token);
        let mut buffer = [0u8; MAX_MESSAGE];
        for _ in 0..PACKETS_PER_TURN {
            let Some(connection) = self.connections.get(&token) else { return };
            let session = connection.session;
            if !self.control.takes_requests(session) {
                if over {
                    return self.drop_connection(token);
                }
                break;
            }
            if self.control.lent(session) > 0 && connection.has_received_all() {
                self.control.received_all(session);
            }
            let owner = self.control.user_of(session).map_or(Owner::Nobody, Owner::User);
            match receive_of(owner, &connection.socket, &mut buffer, Blocking::Never) {
                Ok((length, descriptors)) => match decode_request(&buffer[..length]) {
                    Ok((id, request)) => self.control.request(Caller::new(session, id), request, descriptors),
                    Err(error) => return self.refuse(token, &error),
                },
                Err(ReceiveError::WouldBlock) => break,
                Err(ReceiveError::Closed | ReceiveError::Os(_)) => return self.drop_connection(token),
                Err(error) => {
                    let reply = Refusal::new(Status::E_PARAM, error.to_string()).into_reply();
                    return self.say_last(token, 0, &reply);
                }
            }
        }
        self.set_interest(token);
    }

    /// A packet that is not a request: the client is told, and its session ends.
    fn refuse(&mut self, token: u64, error: &FrameError) {
        let status =
            if matches!(error, FrameError::Version { .. }) { Status::E_VERSION } else { Status::E_PARAM };
        let reply = Refusal::new(status, error.to_string()).into_reply();
        self.say_last(token, error.id().unwrap_or(0), &reply);
    }

    fn say_last(&mut self, token: u64, id: u32, reply: &Reply) {
        if let (Some(connection), Ok(packet)) = (self.connections.get(&token), encode(id, reply)) {
            let _ = send(&connection.socket, &packet, &[], Blocking::Never);
        }
        self.drop_connection(token);
    }

    fn drop_connection(&mut self, token: u64) {
        let Some(Connection { socket, session, .. }) = self.connections.remove(&token) else { return };
        self.tokens.remove(&session);
        self.paused.remove(&token);
        // A wait on the epoll set holds what is in it for a moment, and would be the last to let go of it.
        let _ = epoll::delete(&self.epoll, &socket);
        // Who waits for requests sees the end of the session before any of them fails for it.
        let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        // With the connection go the descriptors in packets that nobody received, and closing those may take long.
        discard(self.control.user_of(session).map_or(Owner::Nobody, Owner::Connections), socket);
        self.control.disconnect(session);
    }

    /// Hands replies to their connections.
    fn deliver(&mut self) {
        while let Some(outgoing) = self.control.next_reply() {
            let Some(&token) = self.tokens.get(&outgoing.caller.session) else { continue };
            let packet = encode(outgoing.caller.id, &outgoing.reply).or_else(|error| {
                let text = format!("the reply does not fit a message: {error}");
                encode(outgoing.caller.id, &Refusal::new(Status::E_NO_RESOURCES, text).into_reply())
            });
            let Ok(packet) = packet else { continue };
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.waiting.push_back((packet, outgoing.descriptors));
            }
            self.flush(token);
        }
    }

    /// Sends what waits, as far as the socket takes it. A client that does not read costs only itself.
    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        while let Some((packet, descriptors)) = connection.waiting.front() {
            let lent: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match send(&connection.socket, packet, &lent, Blocking::Never) {
                Ok(()) => drop(connection.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.drop_connection(token),
            }
        }
        if connection.waiting.len() > REPLIES_WAITING {
            let session = connection.session;
            if self.control.may_log(session) {
                tracing::info!(session = session.0, "the client does not read its replies; its session ends");
            }
            return self.drop_connection(token);
        }
        self.set_interest(token);
    }

    /// Looks again at connections that nothing was taken from.
    fn resume_connections(&mut self) {
        for token in self.paused.iter().copied().collect::<Vec<_>>() {
            self.set_interest(token);
        }
    }

    /// Waits for what can go on: reading unless the session has too much outstanding, writing if replies wait.
    fn set_interest(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let mut interest = EventFlags::empty();
        let takes = self.control.takes_requests(connection.session);
        interest.set(EventFlags::IN, takes);
        if takes {
            self.paused.remove(&token);
        } else {
            self.paused.insert(token);
        }
        interest.set(EventFlags::OUT, !connection.waiting.is_empty());
        if interest != connection.interest
            && epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(token), interest).is_ok()
        {
            connection.interest = interest;
        }
    }
}

/// A listening socket at `path`. A socket file that nobody listens on any more is replaced.
fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match rustix::net::bind(&socket, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::ADDRINUSE) => {
            if is_served(path)? {
                let text = format!(
                    "{} is in use, by another adapter it seems; choose another --socket",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            std::fs::remove_file(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        Err(error) => {
            let text = format!("binding {}: {error}", path.display());
            return Err(io::Error::new(io::Error::from(error).kind(), text));
        }
    }
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket)
}

/// Whether somebody listens on `path`, or might.
pub(crate) fn is_served(path: &Path) -> io::Result<bool> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
    let probe = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let nobody = [rustix::io::Errno::CONNREFUSED, rustix::io::Errno::NOENT];
    Ok(
        !matches!(rustix::net::connect(&probe, &SocketAddrUnix::new(path)?), Err(error) if nobody.contains(&error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assembly::{Assembled, Options, Turn, Turned, assemble};
    use wire::control::Request;

    /// With an engine that nobody turns, so that what needs it never ends.
    fn server(directory: &Path) -> (Server, Box<dyn Turn>) {
        let options = Options::new("null:64M".parse().unwrap());
        let Assembled { control, engine, .. } = assemble(&options, Turned::ByCaller).unwrap();
        (Server::bind(control, &directory.join("socket"), 0o600).unwrap(), engine.unwrap())
    }

    fn connect(server: &mut Server) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC;
        let client =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&client, &SocketAddrUnix::new(&server.path).unwrap()).unwrap();
        server.accept(Instant::now());
        client
    }

    #[test]
    fn a_connection_that_ends_while_it_is_paused_ends_its_session() {
        let directory = tempfile::tempdir().unwrap();
        let (mut server, _engine) = server(directory.path());
        let client = connect(&mut server);
        let say = |request: &Request| {
            send(&client, &encode(1, request).unwrap(), &[], Blocking::Never).unwrap();
        };
        say(&Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION });
        say(&Request::CreateVolume { name: "v".into(), bytes: 1 << 20 });
        server.serve(FIRST_CONNECTION, false);
        while server.control.is_waiting() {
            server.control.advance(Instant::now());
        }
        say(&Request::OpenVolume { name: "v".into(), access: 1 });
        say(&Request::DeleteVolume { name: "v".into() });
        // The delete waits for the grant, and for the delete those that follow: more than may be outstanding.
        for number in 0..20 {
            say(&Request::CreateVolume { name: format!("v{number}"), bytes: 1 << 20 });
        }
        for _ in 0..20 {
            server.serve(FIRST_CONNECTION, false);
        }
        let session = server.connections[&FIRST_CONNECTION].session;
        assert!(!server.control.takes_requests(session), "it is paused");
        drop(client);
        let mut events = Vec::with_capacity(4);
        epoll::wait(&server.epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        let event = events.iter().find(|event| event.data.u64() == FIRST_CONNECTION).copied();
        let over = event.is_some_and(|event| { event.flags }.contains(EventFlags::HUP));
        assert!(over, "reported although nothing is asked of it");
        server.serve(FIRST_CONNECTION, over);
        assert!(server.connections.is_empty(), "it would be reported for ever");
    }

    /// Whatever the kernel says, sessions end in order and the control plane is there to be taken down.
    #[test]
    fn a_server_that_can_serve_no_longer_gives_the_control_plane_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut server, _engine) = server(directory.path());
        let client = connect(&mut server);
        server.epoll = std::fs::File::open("/dev/null").unwrap().into();
        let (stop, _writer) = rustix::pipe::pipe().unwrap();
        let (mut control, served) = server.run(stop.as_fd(), &mut |_, _| ());
        assert!(served.is_err());
        let end = Instant::now() + Duration::from_secs(10);
        while !control.is_drained() && Instant::now() < end {
            control.advance(Instant::now());
        }
        assert!(control.is_drained(), "the session was told to end");
        drop(client);
    }

    /// A client that has its user's requests used up is heard again when another session of that user has its answers.
    #[test]
    fn a_paused_connection_goes_on_when_another_ends_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options::new("null:64M".parse().unwrap());
        options.policy.outstanding_per_user = 1;
        let Assembled { control, engine, .. } = assemble(&options, Turned::ByCaller).unwrap();
        let mut engine = engine.unwrap();
        let mut server = Server::bind(control, &directory.path().join("socket"), 0o600).unwrap();
        let (first, second) = (connect(&mut server), connect(&mut server));
        let say = |client: &OwnedFd, request: &Request| {
            send(client, &encode(1, request).unwrap(), &[], Blocking::Never).unwrap();
        };
        let hello = Request::Hello { min_version: wire::VERSION, max_version: wire::VERSION };
        say(&first, &hello);
        say(&first, &Request::CreateVolume { name: "v".into(), bytes: 1 << 20 });
        server.serve(FIRST_CONNECTION, false);
        while server.control.is_waiting() {
            server.control.advance(Instant::now());
        }
        server.deliver();
        say(&first, &Request::OpenVolume { name: "v".into(), access: 1 });
        say(&first, &Request::DeleteVolume { name: "v".into() });
        while server.control.takes_requests(server.connections[&FIRST_CONNECTION].session) {
            server.serve(FIRST_CONNECTION, false);
        }
        say(&second, &hello);
        server.serve(FIRST_CONNECTION + 1, false);
        let paused =
            |server: &Server| !server.connections[&(FIRST_CONNECTION + 1)].interest.contains(EventFlags::IN);
        assert!(paused(&server), "the delete waits for the engine, and the user may have no more");
        while server.control.is_waiting() {
            engine.turn();
            server.control.advance(Instant::now());
        }
        server.deliver();
        server.resume_connections();
        assert!(!paused(&server));
    }
}
