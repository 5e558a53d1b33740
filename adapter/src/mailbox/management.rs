//! A management request on its way from the engine that took it from its queue to the control plane, and back with its answer.
//!
//! An engine has a fixed number of them, each with memory of its own that only one side has at a time. What both sides see
//! is the stage, which says, once, whether the request is done or withdrawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tpt::RegionKey;
use wire::Status;
use wire::control::{MAX_MESSAGE, Reply, Request};
use wire::frame::{FrameError, decode_body, encode_body};

use crate::engine::QueueId;

/// Management requests that the control plane has, or is to get, from one engine at the same time.
pub const MANAGED: usize = 32;

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// Whether the control plane begins with a request or the engine withdraws it: whoever is first.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

impl Stage {
    /// A new request waits. Only while the engine alone has it.
    fn renew(&self) {
        self.0.store(WAITING, Ordering::Relaxed);
    }

    fn leave_waiting(&self, to: u8) -> bool {
        // Nothing else is passed on by it: the memory goes with the queue between the two.
        self.0.compare_exchange(WAITING, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// True if nothing of the request was done, and nothing will be.
    pub(crate) fn withdraw(&self) -> bool {
        self.leave_waiting(WITHDRAWN)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Managed {
    /// Where the engine knows of it.
    pub(crate) place: u16,
    stage: Arc<Stage>,
    /// Whose.
    pub session: u64,
    /// By which queue it came.
    pub queue: QueueId,
    /// In which memory it lies.
    pub region: RegionKey,
    /// Bytes that there are for the reply.
    pub room: usize,
    status: Status,
    /// Bytes of the request, and of the reply.
    asked: usize,
    answered: usize,
    /// The request, and then the reply.
    bytes: Box<[u8]>,
}

impl Managed {
    pub(crate) fn new(place: u16) -> Self {
        let mut bytes = crate::engine::touched(MAX_MESSAGE);
        bytes.resize(MAX_MESSAGE, 0);
        Self {
            place,
            stage: Arc::default(),
            session: 0,
            queue: QueueId(0),
            region: RegionKey(0),
            room: 0,
            status: Status::E_PATH,
            asked: 0,
            answered: 0,
            bytes: bytes.into(),
        }
    }

    pub(crate) fn stage(&self) -> Arc<Stage> {
        self.stage.clone()
    }

    /// Memory for a new request of so many bytes, at most [`MAX_MESSAGE`].
    pub(crate) fn renew(&mut self, length: usize) -> &mut [u8] {
        self.stage.renew();
        (self.status, self.asked, self.answered) = (Status::E_PATH, length, 0);
        &mut self.bytes[..length]
    }

    /// Whether it is to be done. If not, it was withdrawn, and goes back without an answer.
    pub fn begin(&self) -> bool {
        self.stage.leave_waiting(BEGUN)
    }

    /// What is asked.
    ///
    /// # Errors
    /// Whatever the application put there instead.
    pub fn request(&self) -> Result<Request, FrameError> {
        decode_body(&self.bytes[..self.asked])
    }

    /// What is answered. An answer that has no room is its status alone; [`Request::reply_room`] sees to it that only errors
    /// can be so.
    pub fn answer(&mut self, reply: &Reply) {
        let room = self.room.min(MAX_MESSAGE);
        self.status = if let Reply::Error { status, .. } = reply { *status } else { Status::OK };
        self.answered = match encode_body(reply, &mut self.bytes[..room]) {
            Ok(bytes) => bytes,
            Err(error) => {
                if self.status == Status::OK {
                    tracing::error!(%error, room, "a reply has no room in memory that was checked for it");
                    self.status = Status::E_NO_RESOURCES;
                }
                0
            }
        };
    }

    /// How it ended, and the bytes for the application.
    pub(crate) fn outcome(&self) -> (Status, &[u8]) {
        (self.status, &self.bytes[..self.answered])
    }
}
