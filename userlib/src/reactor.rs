//! Requests as futures, without a runtime: any executor of one thread runs them, and somebody in that thread turns the
//! reactor.
//!
//! Why it is turned, and no descriptor tells an executor of completions: they come through shared memory, an adapter in this
//! process makes progress only in the turns that it is given, and a descriptor would cost a system call on both sides where
//! now there is none. An executor of one's own needs [`Reactor::drive`] among its tasks; without one, [`Reactor::block_on`] is all that
//! it takes, and sleeps while there is nothing to do.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use wire::control::{self, Reply};

use crate::error::Error;
use crate::memory::{Buffer, MemoryAccess};
use crate::queue::{BOUNCE_BYTES, Queue};
use crate::request::{Completion, Request, Ticket, encode_managed, reply_in};
use crate::session::Session;
use crate::transport::TransportError;

mod file;
mod submitted;

pub use file::AsyncFile;
pub use submitted::Submitted;

/// Memory for what has none of its own: so many buffers of so many bytes.
const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = BOUNCE_BYTES;
/// With requests in flight, what another thread wakes is seen within this time.
const NAP: Duration = Duration::from_millis(10);
/// A queue in the error state from which nothing came in so many waits gives nothing any more.
const SILENT: u32 = 10;

/// A processing queue whose requests are futures. For one thread; a program with several has one in each. Cheap to clone.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::READ_WRITE)?;
/// use portcullis::{Reactor, Request};
/// let reactor = Reactor::new(&session, 16)?;
/// let (first, second) = (session.buffer(4096)?, session.buffer(4096)?);
/// reactor.block_on(async {
///     // Both are under way before the first is awaited.
///     let first = reactor.submit(Request::write(&volume, 0, first));
///     let second = reactor.submit(Request::write(&volume, 4096, second));
///     first.await?.result?;
///     second.await?.result
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Reactor(Rc<Inner>);

struct Inner {
    queue: RefCell<Queue>,
    session: Session,
    /// What is in flight, and what has ended and was not taken yet.
    waiting: RefCell<HashMap<Ticket, Waiting>>,
    /// Who waits for room in the queue, or for a buffer.
    wanting: RefCell<Vec<Waker>>,
    buffers: RefCell<Vec<Buffer>>,
    /// The region of those buffers.
    region: Cell<u64>,
}

enum Waiting {
    /// For its end, and who is to be woken then.
    For(Option<Waker>),
    Ended(Completion),
    /// The queue failed: whoever asks is told, and what comes after all is nobody's.
    Failed(Failure),
    /// Nobody wants it any more.
    Nobody,
}

/// Why a queue failed, to be told several times.
#[derive(Clone)]
enum Failure {
    Down,
    Gone(String),
    Protocol(String),
}

impl Failure {
    fn of(error: &Error) -> Self {
        match error {
            Error::QueueDown => Self::Down,
            Error::Protocol(text) => Self::Protocol(text.clone()),
            Error::Transport(TransportError::Gone(text)) => Self::Gone(text.clone()),
            other => Self::Gone(other.to_string()),
        }
    }

    fn error(self) -> Error {
        match self {
            Self::Down => Error::QueueDown,
            Self::Gone(text) => TransportError::Gone(text).into(),
            Self::Protocol(text) => Error::Protocol(text),
        }
    }
}

impl Reactor {
    /// With a queue of `entries` requests of its own.
    ///
    /// # Errors
    /// As [`Session::queue`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let reactor = portcullis::Reactor::new(&session, 16)?;
    /// assert_eq!(reactor.in_flight(), 0);
    /// # Ok(()) }
    /// ```
    pub fn new(session: &Session, entries: u32) -> Result<Self, Error> {
        Ok(Self(Rc::new(Inner {
            queue: RefCell::new(session.queue(entries)?),
            session: session.clone(),
            waiting: RefCell::default(),
            wanting: RefCell::default(),
            buffers: RefCell::default(),
            region: Cell::new(0),
        })))
    }

    /// Requests in flight, and those that ended and were not awaited yet.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::WRITE)?;
    /// let reactor = portcullis::Reactor::new(&session, 16)?;
    /// let flush = reactor.submit(portcullis::Request::flush(&volume));
    /// assert_eq!(reactor.in_flight(), 1);
    /// # Ok(()) }
    /// ```
    pub fn in_flight(&self) -> usize {
        self.0.waiting.borrow().len()
    }

    /// Begins a request, if the queue has room, else as soon as it has. The adapter sees it in the next turn. Dropping the future gives up
    /// its completion; the request goes on, and its buffer is freed when it has ended.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # session.create_volume("v", 1 << 20)?;
    /// # let volume = session.open("v", portcullis::Access::READ)?;
    /// # let reactor = portcullis::Reactor::new(&session, 16)?;
    /// let read = portcullis::Request::read(&volume, 0, session.buffer(4096)?);
    /// let done = reactor.block_on(reactor.submit(read))?;
    /// assert_eq!(done.result?, 4096);
    /// # Ok(()) }
    /// ```
    pub fn submit(&self, request: Request) -> Submitted {
        let mut submitted =
            Submitted { reactor: self.clone(), stage: submitted::Stage::Wants(Box::new(request)) };
        submitted.begin();
        submitted
    }

    /// Sends a control request by the queue.
    ///
    /// # Errors
    /// As [`crate::Queue::call`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # let reactor = portcullis::Reactor::new(&session, 16)?;
    /// use portcullis::wire::control::Request;
    /// println!("{:?}", reactor.block_on(reactor.call(&Request::ShowDevice))?);
    /// # Ok(()) }
    /// ```
    pub async fn call(&self, request: &control::Request) -> Result<Reply, Error> {
        let link = self.0.session.link();
        let request = &*link.once(request)?;
        loop {
            let mut reply = self.call_once(&*link.translate(request)?).await;
            if !link.asks_again(request, &mut reply) {
                return reply;
            }
        }
    }

    async fn call_once(&self, request: &control::Request) -> Result<Reply, Error> {
        let mut buffer = self.buffer().await?;
        let manage = match encode_managed(request, &mut buffer) {
            Ok((length, room)) => Request::managed(length, room, buffer),
            Err(error) => {
                self.give(buffer);
                return Err(error);
            }
        };
        let done = self.submit(manage).await?;
        let reply = reply_in(done.result, done.buffer.as_deref());
        done.buffer.into_iter().for_each(|buffer| self.give(buffer));
        reply
    }

    /// Looks at completions, and wakes whoever waits for them; rings for what was begun. Does not wait. Returns how many
    /// requests ended.
    ///
    /// # Errors
    /// As [`Queue::poll`] and [`Queue::ring`]. All that was in flight fails with it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # let reactor = portcullis::Reactor::new(&session, 16)?;
    /// assert_eq!(reactor.turn()?, 0);
    /// # Ok(()) }
    /// ```
    pub fn turn(&self) -> Result<usize, Error> {
        let mut ended = 0;
        let result = self.0.queue.borrow_mut().ring();
        let mut result = result.map(|()| None);
        while result.is_ok() {
            result = self.0.queue.borrow_mut().poll();
            let Ok(Some(completion)) = result else { break };
            self.end(completion);
            ended += 1;
            result = Ok(None);
        }
        self.make_offers();
        self.or_fail(result.map(|_| ended))
    }

    /// The same, but waits for a completion, at most for `timeout`, if something is in flight.
    ///
    /// # Errors
    /// As [`Queue::wait`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// # let reactor = portcullis::Reactor::new(&session, 16)?;
    /// assert_eq!(reactor.wait(std::time::Duration::from_secs(1))?, 0, "nothing is in flight");
    /// # Ok(()) }
    /// ```
    pub fn wait(&self, timeout: Duration) -> Result<usize, Error> {
        let first = self.0.queue.borrow_mut().wait(timeout);
        let Some(completion) = self.or_fail(first)? else { return Ok(0) };
        self.end(completion);
        self.make_offers();
        Ok(1 + self.turn()?)
    }

    /// If the queue failed, so has all that is in flight.
    fn or_fail<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result {
            let failure = Failure::of(error);
            let mut wakers = Vec::new();
            for waiting in self.0.waiting.borrow_mut().values_mut() {
                if let Waiting::For(waker) = waiting {
                    wakers.extend(waker.take());
                    *waiting = Waiting::Failed(failure.clone());
                }
            }
            wakers.into_iter().for_each(Waker::wake);
        }
        result
    }

    /// A request has ended.
    fn end(&self, completion: Completion) {
        let ticket = completion.ticket;
        let before = self.0.waiting.borrow_mut().remove(&ticket);
        if let Some(Waiting::For(waker)) = before {
            self.0.waiting.borrow_mut().insert(ticket, Waiting::Ended(completion));
            waker.into_iter().for_each(Waker::wake);
        } else {
            completion.buffer.into_iter().for_each(|buffer| self.give(buffer));
        }
    }

    /// Some room has come, or a buffer: who wants one looks again.
    fn make_offers(&self) {
        let wanting = self.0.wanting.take();
        wanting.into_iter().for_each(Waker::wake);
    }

    /// Memory for buffers of the reactor's own.
    fn provide_buffers(&self) -> Result<(), Error> {
        if self.0.region.get() == 0 {
            let memory = self.0.session.register(BUFFERS * BUFFER_BYTES, MemoryAccess::Both)?;
            self.0.region.set(memory.key());
            *self.0.buffers.borrow_mut() = memory.buffers(BUFFER_BYTES, 4096)?;
        }
        Ok(())
    }

    /// A buffer of the reactor's own, when one is free.
    pub(crate) async fn buffer(&self) -> Result<Buffer, Error> {
        self.provide_buffers()?;
        let free = std::future::poll_fn(|context| match self.0.buffers.borrow_mut().pop() {
            Some(buffer) => Poll::Ready(buffer),
            None => {
                self.0.wanting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        });
        Ok(free.await)
    }

    /// The same if `waits`; else one that is free now.
    pub(crate) async fn buffer_if(&self, waits: bool) -> Result<Option<Buffer>, Error> {
        if waits {
            return self.buffer().await.map(Some);
        }
        Ok(self.0.buffers.borrow_mut().pop())
    }

    /// Takes a buffer back, if it is one of its own.
    pub(crate) fn give(&self, buffer: Buffer) {
        if buffer.region() == self.0.region.get() && buffer.len() == BUFFER_BYTES {
            self.0.buffers.borrow_mut().push(buffer);
            self.make_offers();
        }
    }

    /// Asks for the close of a key by the queue if that has room, and waits for nothing; else by the session.
    fn close_later(&self, key: u64) {
        let close = control::Request::Close { key };
        let buffer = self.0.buffers.borrow_mut().pop();
        let link = self.0.session.link();
        let translated = link.translate(&close).ok();
        link.forget(key);
        let Some(close) = translated else { return };
        let managed = buffer.map(|mut buffer| match encode_managed(&close, &mut buffer) {
            Ok((length, room)) => Ok(Request::managed(length, room, buffer)),
            Err(_) => Err(buffer),
        });
        if let Some(Ok(request)) = managed {
            let submitted = self.submit(request);
            if submitted.is_begun() && self.0.queue.borrow_mut().ring().is_ok() {
                return;
            }
        }
        // Best effort: the session's end closes it at the latest.
        let _ = self.0.session.done(&close);
    }

    /// A task for an executor of one's own, beside those that use the reactor: turns it whenever the executor comes round, and
    /// never ends but with an error. The executor does not sleep then.
    ///
    /// # Errors
    /// As [`Reactor::turn`].
    ///
    /// ```no_run
    /// # fn spawn(task: impl std::future::Future + 'static) {}
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let session = portcullis::Session::connect(portcullis::default_socket_path())?;
    /// let reactor = portcullis::Reactor::new(&session, 16)?;
    /// let driver = reactor.clone();
    /// spawn(async move { driver.drive().await }); // by the executor's own function
    /// # Ok(()) }
    /// ```
    pub async fn drive(&self) -> Error {
        std::future::poll_fn(|context| match self.turn() {
            Ok(_) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(error),
        })
        .await
    }

    /// Runs a future to its end, turning the reactor meanwhile, and sleeping while there is nothing to do. What another thread
    /// wakes is seen at once if nothing is in flight, else within 10 milliseconds. If the adapter is gone, the requests that
    /// the future awaits say so.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let adapter = adapter::Embedded::open("emu:16M")?;
    /// # let session = adapter.session()?;
    /// let reactor = portcullis::Reactor::new(&session, 16)?;
    /// assert_eq!(reactor.block_on(async { 42 }), 42);
    /// # Ok(()) }
    /// ```
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), thread: thread::current() });
        let waker = Waker::from(bell.clone());
        let mut context = Context::from_waker(&waker);
        let mut silent = 0;
        loop {
            if bell.rung.swap(false, Ordering::Acquire)
                && let Poll::Ready(output) = future.as_mut().poll(&mut context)
            {
                return output;
            }
            if bell.rung.load(Ordering::Acquire) {
                continue;
            }
            if self.0.queue.borrow().in_flight() == 0 {
                thread::park();
                continue;
            }
            let ended = self.wait(NAP);
            let down = self.0.queue.borrow().is_down();
            silent = if down && matches!(ended, Ok(0)) { silent + 1 } else { 0 };
            // A queue that is down first gives what was flushed.
            let ended = if silent > SILENT { self.or_fail(Err(Error::QueueDown)) } else { ended };
            if ended.is_err() {
                // Whoever waits for a request was told, and who waits for room looks again and is told, too.
                self.make_offers();
            }
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

struct Bell {
    rung: AtomicBool,
    thread: Thread,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.thread.unpark();
    }
}
