//! What the library does when the adapter answers wrong, late or not at all: errors, never a panic, and no memory is used
//! again that may still be written.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::{
    Access, EmbeddedAdapter, Error, Queue, Request, Session, Status, Transport, TransportError, Volume,
};
use wire::control::{self, GrantInfo, Limits, Reply, VolumeInfo, Welcome};
use wire::doorbell::Bell;
use wire::layout::{Entries, SubmissionEntry};
use wire::ring::{AdapterEnd, Completion};
use wire::shm::SharedMemory;
use wire::view::QueueView;

const LONG: Duration = Duration::from_secs(20);

/// Which completions the adapter posts for the requests that it has; taken out of the list are those that it ends.
type Policy = Box<dyn FnMut(&mut VecDeque<SubmissionEntry>) -> Vec<Completion> + Send>;

struct Adapter {
    end: Option<AdapterEnd<QueueView>>,
    pending: VecDeque<SubmissionEntry>,
    policy: Policy,
    grant: GrantInfo,
    answers_destroy: bool,
    /// Control messages, in their order.
    log: Vec<&'static str>,
}

#[derive(Clone)]
struct Line(Arc<Mutex<Adapter>>);

impl Line {
    fn new(policy: impl FnMut(&mut VecDeque<SubmissionEntry>) -> Vec<Completion> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Adapter {
            end: None,
            pending: VecDeque::new(),
            policy: Box::new(policy),
            grant: GrantInfo {
                key: 1,
                access: 7,
                bytes: 1 << 20,
                block_size: 4096,
                volume: 1,
                sole_writer: true,
            },
            answers_destroy: true,
            log: Vec::new(),
        })))
    }

    fn open(&self) -> (Volume, Queue, Session) {
        let session = Session::with_transport(Box::new(self.clone())).unwrap();
        (session.open("v", Access::ALL).unwrap(), session.queue(4).unwrap(), session)
    }

    fn with<T>(&self, with: impl FnOnce(&mut Adapter) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }
}

impl Transport for Line {
    fn call(
        &mut self,
        request: &control::Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        use control::Request as Asked;
        let mut adapter = self.0.lock().unwrap();
        let (name, reply) = match request {
            Asked::Hello { .. } => {
                let limits =
                    Limits { pinned_bytes: 1 << 30, regions: 64, queues: 4, grants: 4, outstanding: 4 };
                (
                    "hello",
                    Reply::Welcome(Welcome {
                        version: wire::VERSION,
                        session: 1,
                        adapter: 1,
                        life: 1,
                        settled: true,
                        limits,
                    }),
                )
            }
            Asked::CreateQueue { entries } => {
                let entries = Entries::new(*entries).unwrap();
                let memory = SharedMemory::map(descriptors[0], entries.bytes()).unwrap();
                let view = QueueView::open(Arc::new(memory), entries).unwrap();
                adapter.end = Some(AdapterEnd::new(view, entries));
                let bell = Bell::new().unwrap().duplicate().unwrap();
                return Ok((Reply::Queue { queue: 1 }, vec![bell]));
            }
            Asked::DestroyQueue { .. } if !adapter.answers_destroy => {
                adapter.log.push("destroy");
                return Err(TransportError::Gone("it does not answer".to_owned()));
            }
            Asked::DestroyQueue { .. } => ("destroy", Reply::Done),
            Asked::RegisterMemory { .. } => ("register", Reply::Region { region: 5 }),
            Asked::ReleaseMemory { .. } => ("release", Reply::Done),
            Asked::OpenVolume { .. } => ("open", Reply::Grant(adapter.grant)),
            Asked::Close { .. } => ("close", Reply::Done),
            Asked::ListVolumes { .. } => {
                let volume = VolumeInfo {
                    name: "again".to_owned(),
                    bytes: 0,
                    owner: 0,
                    access: Vec::new(),
                    extents: 0,
                    grants: 0,
                    limits: control::Rates::default(),
                };
                ("list", Reply::Volumes { volumes: vec![volume], more: true })
            }
            _ => ("other", Reply::Statistics(control::Statistics::default())),
        };
        adapter.log.push(name);
        Ok((reply, Vec::new()))
    }

    fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
        Some(Arc::new(self.clone()))
    }
}

impl EmbeddedAdapter for Line {
    fn turn_for(&self, _queue: u32) -> bool {
        let adapter = &mut *self.0.lock().unwrap();
        let Some(end) = &mut adapter.end else { return false };
        end.poll_doorbell().unwrap();
        while let Some(entry) = end.take().unwrap() {
            adapter.pending.push_back(entry);
        }
        let completions = (adapter.policy)(&mut adapter.pending);
        completions.iter().for_each(|completion| end.complete(completion));
        !completions.is_empty()
    }
}

/// Ends everything honestly.
fn honest(pending: &mut VecDeque<SubmissionEntry>) -> Vec<Completion> {
    pending.drain(..).map(|entry| Completion::ok(entry.user_data, entry.length)).collect()
}

#[test]
fn a_completion_of_nothing_is_an_error_and_the_queue_goes_on() {
    let mut lies = 1;
    let line = Line::new(move |pending| {
        if lies > 0
            && let Some(entry) = pending.pop_front()
        {
            lies -= 1;
            return vec![Completion::ok(entry.user_data ^ 1 << 40, 0)];
        }
        honest(pending)
    });
    let (volume, mut queue, _session) = line.open();
    queue.prepare(Request::flush(&volume)).unwrap();
    queue.ring().unwrap();
    assert!(matches!(queue.poll(), Err(Error::Protocol(_))));
    assert_eq!(queue.in_flight(), 1, "what was lied about is still in flight");
    assert!(queue.execute(Request::flush(&volume)).unwrap().result.is_ok());
}

#[test]
fn more_bytes_than_were_asked_for_are_not_believed() {
    let line = Line::new(|pending| {
        pending.drain(..).map(|entry| Completion::ok(entry.user_data, entry.length + 1)).collect()
    });
    let (volume, mut queue, session) = line.open();
    let done = queue.execute(Request::read(&volume, 0, session.buffer(4096).unwrap())).unwrap();
    assert!(matches!(done.result, Err(Error::Protocol(_))));
    assert_eq!(done.buffer.unwrap().len(), 4096);
    assert!(matches!(queue.read_at(&volume, 0, &mut [0; 4096]), Err(Error::Protocol(_))));
}

#[test]
fn buffers_in_flight_are_freed_after_the_queue_is_destroyed() {
    let line = Line::new(|_| Vec::new());
    let (volume, mut queue, session) = line.open();
    queue.prepare(Request::read(&volume, 0, session.buffer(4096).unwrap())).unwrap();
    queue.ring().unwrap();
    drop(queue);
    assert_eq!(line.with(|adapter| adapter.log.clone()), ["hello", "open", "register", "destroy", "release"]);
}

#[test]
fn buffers_in_flight_are_leaked_if_the_adapter_does_not_answer() {
    let line = Line::new(|_| Vec::new());
    let (volume, mut queue, session) = line.open();
    line.with(|adapter| adapter.answers_destroy = false);
    let memory = session.register(8192, portcullis::MemoryAccess::Both).unwrap();
    let (first, second) = memory.into_buffer().split_at(4096);
    queue.prepare(Request::read(&volume, 0, first)).unwrap();
    queue.ring().unwrap();
    drop(queue);
    drop(second);
    assert_eq!(line.with(|adapter| adapter.log.clone()), ["hello", "open", "register", "destroy"]);
}

#[test]
fn a_blocking_call_keeps_the_completions_of_others() {
    // Ends the last request first.
    let line = Line::new(|pending| match pending.pop_back() {
        Some(entry) => vec![Completion::ok(entry.user_data, entry.length)],
        None => Vec::new(),
    });
    let (volume, mut queue, session) = line.open();
    for tag in 0..4 {
        queue.prepare(Request::read(&volume, 0, session.buffer(4096).unwrap()).tag(tag)).unwrap();
    }
    let refused = queue.prepare(Request::flush(&volume)).unwrap_err();
    assert!(matches!(refused.error, Error::QueueFull));
    // The queue is full: room is made by waiting for one of the others.
    queue.flush(&volume).unwrap();
    queue.write_at(&volume, 0, &[1; 300_000]).unwrap();
    assert_eq!(queue.in_flight(), 4);
    let mut tags = Vec::new();
    while let Some(done) = queue.wait(LONG).unwrap() {
        assert_eq!(done.result.unwrap(), 4096);
        tags.push(done.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3]);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_transfer_that_was_given_up_does_not_touch_the_next_one() {
    let mut taken = 0;
    // The second piece of the first transfer is lied about, the others come only after that.
    let line = Line::new(move |pending| {
        taken += 1;
        match taken {
            1 => Vec::new(),
            2 => vec![Completion::ok(pending.pop_back().map_or(0, |entry| entry.user_data ^ 1 << 40), 0)],
            _ => honest(pending),
        }
    });
    let (volume, mut queue, _session) = line.open();
    assert!(matches!(queue.write_at(&volume, 0, &[9; 300_000]), Err(Error::Protocol(_))));
    let mut back = vec![0; 250_000];
    queue.read_at(&volume, 0, &mut back).unwrap();
    // Nothing is lost but the piece that was lied about.
    assert_eq!(queue.in_flight(), 1);
    queue.read_at(&volume, 0, &mut back).unwrap();
}

#[test]
fn a_queue_in_the_error_state_gives_requests_back() {
    let line = Line::new(|_| Vec::new());
    let (volume, mut queue, session) = line.open();
    line.with(|adapter| adapter.end.as_mut().unwrap().fail());
    assert!(queue.is_down());
    let refused = queue.prepare(Request::read(&volume, 0, session.buffer(4096).unwrap())).unwrap_err();
    assert_eq!(refused.error.status(), Some(Status::E_QUEUE_STATE));
    assert!(refused.request.into_buffer().is_some());
    assert!(matches!(queue.flush(&volume), Err(Error::QueueDown)));
}

#[test]
fn what_control_messages_say_is_looked_at() {
    let line = Line::new(|_| Vec::new());
    let (_volume, _queue, session) = line.open();
    let pages: Vec<_> = session.volumes().take(10).collect();
    assert_eq!(pages.len(), 2, "one volume, then the page that leads nowhere");
    assert!(matches!(pages[1], Err(Error::Protocol(_))));
    assert!(matches!(session.device_info(), Err(Error::Protocol(_))), "statistics came instead");
    line.with(|adapter| adapter.grant.access = 8);
    assert!(matches!(session.open("v", Access::READ), Err(Error::Protocol(_))));
    line.with(|adapter| (adapter.grant.access, adapter.grant.block_size) = (1, 0));
    assert!(matches!(session.open("v", Access::READ), Err(Error::Protocol(_))));
}

#[test]
fn lengths_that_no_request_can_have_never_leave() {
    let line = Line::new(honest);
    let (volume, mut queue, session) = line.open();
    for request in [
        Request::read(&volume, 0, session.buffer(4096).unwrap()).length(4097),
        Request::write_zeroes(&volume, 0, 1 << 32),
    ] {
        let refused = queue.prepare(request).unwrap_err();
        assert_eq!(refused.error.status(), Some(Status::E_PARAM), "{refused}");
    }
    assert_eq!(queue.in_flight(), 0);
}
