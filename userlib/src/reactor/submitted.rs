//! One request as a future.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::{Reactor, Waiting};
use crate::error::Error;
use crate::request::{Completion, Request, Ticket};

/// A request that was given to a [`Reactor`]: a future of its completion.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let adapter = adapter::Embedded::open("emu:16M")?;
/// # let session = adapter.session()?;
/// # session.create_volume("v", 1 << 20)?;
/// # let volume = session.open("v", portcullis::Access::WRITE)?;
/// let reactor = portcullis::Reactor::new(&session, 16)?;
/// let flush: portcullis::Submitted = reactor.submit(portcullis::Request::flush(&volume));
/// reactor.block_on(flush)?.result?;
/// # Ok(()) }
/// ```
#[must_use = "a future does nothing unless it is awaited, but for what was begun already"]
pub struct Submitted {
    pub(super) reactor: Reactor,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// There was no room in the queue.
    Wants(Box<Request>),
    Runs(Ticket),
    Failed(Error),
    Over,
}

impl Submitted {
    /// Puts the request into the queue, if that has room.
    pub(super) fn begin(&mut self) {
        let Stage::Wants(request) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        let mut queue = self.reactor.0.queue.borrow_mut();
        let (prepared, down) = (queue.prepare(*request), queue.is_down());
        drop(queue);
        self.stage = match prepared {
            Ok(ticket) => {
                self.reactor.0.waiting.borrow_mut().insert(ticket, Waiting::For(None));
                Stage::Runs(ticket)
            }
            Err(refused) if matches!(refused.error, Error::QueueFull) && !down => {
                Stage::Wants(Box::new(refused.request))
            }
            Err(refused) => {
                refused.request.into_buffer().into_iter().for_each(|buffer| self.reactor.give(buffer));
                // What fills a queue that is down may never end.
                Stage::Failed(if down { Error::QueueDown } else { refused.error })
            }
        };
    }

    pub(super) fn is_begun(&self) -> bool {
        matches!(self.stage, Stage::Runs(_))
    }

    /// What is known of a request that runs. None: it goes on.
    fn ended(&self, ticket: Ticket, waker: &Waker) -> Option<Result<Completion, Error>> {
        let mut all = self.reactor.0.waiting.borrow_mut();
        match all.remove(&ticket)? {
            Waiting::Ended(completion) => Some(Ok(completion)),
            Waiting::Failed(failure) => {
                all.insert(ticket, Waiting::Nobody);
                Some(Err(failure.error()))
            }
            Waiting::For(_) | Waiting::Nobody => {
                all.insert(ticket, Waiting::For(Some(waker.clone())));
                None
            }
        }
    }
}

impl Future for Submitted {
    type Output = Result<Completion, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if matches!(self.stage, Stage::Wants(_)) {
            self.begin();
        }
        match &self.stage {
            Stage::Runs(ticket) => match self.ended(*ticket, context.waker()) {
                Some(result) => {
                    self.stage = Stage::Over;
                    Poll::Ready(result)
                }
                None => Poll::Pending,
            },
            Stage::Wants(_) => {
                self.reactor.0.wanting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
            Stage::Failed(_) | Stage::Over => match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Failed(error) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Err(Error::Argument("a request was awaited twice".to_owned()))),
            },
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Runs(ticket) => {
                let before = self.reactor.0.waiting.borrow_mut().insert(ticket, Waiting::Nobody);
                if let Some(Waiting::Ended(completion)) = before {
                    self.reactor.0.waiting.borrow_mut().remove(&ticket);
                    completion.buffer.into_iter().for_each(|buffer| self.reactor.give(buffer));
                }
            }
            Stage::Wants(request) => {
                request.into_buffer().into_iter().for_each(|buffer| self.reactor.give(buffer));
            }
            Stage::Failed(_) | Stage::Over => {}
        }
    }
}

impl fmt::Debug for Submitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Wants(_) => "waits for room in the queue",
            Stage::Runs(_) => "in flight",
            Stage::Failed(_) | Stage::Over => "over",
        };
        f.debug_struct("Submitted").field("stage", &stage).finish_non_exhaustive()
    }
}
