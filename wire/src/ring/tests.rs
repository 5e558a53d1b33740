#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::Status;
use crate::layout::{CompletionEntry, Entries, STATE_ERROR, STATE_READY, SubmissionEntry, opcode};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::view::{LocalQueue, QueueMemory};

type Application = ApplicationEnd<Arc<LocalQueue>>;
type Adapter = AdapterEnd<Arc<LocalQueue>>;

/// Both ends of a queue on the heap.
fn pair(entries: u32) -> (Application, Adapter) {
    pair_at(entries, 0)
}

/// The same, `laps` pairs of laps later.
fn pair_at(entries: u32, laps: u32) -> (Application, Adapter) {
    let entries = Entries::new(entries).unwrap();
    let memory = Arc::new(LocalQueue::new(entries));
    let application = ApplicationEnd::starting_at(memory.clone(), entries, laps);
    (application, AdapterEnd::starting_at(memory, entries, laps))
}

fn request(user_data: u64) -> SubmissionEntry {
    SubmissionEntry {
        opcode: opcode::READ,
        user_data,
        length: 4096,
        extension: !user_data,
        ..Default::default()
    }
}

fn push(application: &mut Application, user_data: impl IntoIterator<Item = u64>) {
    for user_data in user_data {
        application.push(&request(user_data)).unwrap();
    }
}

/// Takes all there is room for; gives the user data in order.
fn take_all(adapter: &mut Adapter) -> Vec<u64> {
    let taken = std::iter::from_fn(|| adapter.take().unwrap());
    taken
        .inspect(|e| assert_eq!(*e, request(e.user_data), "the entry is whole"))
        .map(|e| e.user_data)
        .collect()
}

/// Takes and completes all there is room for; gives the user data in order.
fn serve(adapter: &mut Adapter) -> Vec<u64> {
    adapter.poll_doorbell().unwrap();
    let taken = take_all(adapter);
    taken.iter().for_each(|&user_data| adapter.complete(&Completion::ok(user_data, 4096)));
    taken
}

/// An application that does not care for room: fills all slots, and announces up to `tail`.
fn announce(application: &mut Application, tail: u32) {
    (0..application.entries().get() as usize).for_each(|slot| application.raw_overwrite(slot, &request(7)));
    application.raw_tail_store(tail);
}

fn flush(adapter: &mut Adapter) -> Vec<u64> {
    let mut flushed = Vec::new();
    while let Some(user_data) = adapter.take_flushed() {
        adapter.complete(&Completion::failed(user_data, Status::E_FLUSHED));
        flushed.push(user_data);
    }
    flushed
}

fn pop_all(application: &mut Application) -> Vec<CompletionEntry> {
    std::iter::from_fn(|| application.pop()).collect()
}

fn pop_data(application: &mut Application) -> Vec<u64> {
    pop_all(application).iter().map(|c| c.user_data).collect()
}

#[test]
fn s5_r1_a_doorbell_of_n_gives_n_requests() {
    for n in 0..=8 {
        let (mut application, mut adapter) = pair(8);
        push(&mut application, 0..n);
        application.ring();
        assert_eq!(u64::from(adapter.poll_doorbell().unwrap()), n);
        assert_eq!(serve(&mut adapter), (0..n).collect::<Vec<_>>());
        assert_eq!(adapter.take(), Ok(None));
        assert_eq!(pop_data(&mut application), (0..n).collect::<Vec<_>>());
    }
}

#[test]
fn s5_r2_two_doorbells_add_up_and_come_in_order() {
    let (mut application, mut adapter) = pair(8);
    push(&mut application, 0..3);
    application.ring();
    push(&mut application, 3..8);
    application.ring();
    assert_eq!(adapter.poll_doorbell(), Ok(8));
    assert_eq!(serve(&mut adapter), (0..8).collect::<Vec<_>>());
    assert_eq!(pop_data(&mut application), (0..8).collect::<Vec<_>>());
}

#[test]
fn s5_r3_what_is_not_rung_is_not_taken() {
    let (mut application, mut adapter) = pair(4);
    push(&mut application, [1]);
    application.ring();
    push(&mut application, [2]);
    assert_eq!(application.unrung(), 1);
    assert!(adapter.has_rung());
    assert_eq!(serve(&mut adapter), [1]);
    assert!(!adapter.has_rung());
    application.ring();
    assert_eq!(serve(&mut adapter), [2]);
}

#[test]
fn s5_r4_an_overrun_executes_nothing() {
    for jump in [5, 6, 4096, u32::MAX / 2, u32::MAX] {
        let (mut application, mut adapter) = pair(4);
        for slot in 0..4 {
            application.raw_overwrite(slot, &request(90));
        }
        application.raw_tail_store(jump);
        assert!(adapter.has_rung());
        assert_eq!(adapter.poll_doorbell(), Err(Overrun { tail: jump, head: 0, entries: 4 }));
        assert_eq!(adapter.take(), Ok(None));
        adapter.fail();
        assert_eq!((adapter.take(), adapter.take_flushed()), (Ok(None), None));
        assert_eq!((application.state(), application.pop()), (STATE_ERROR, None));
        assert_eq!(adapter.poll_doorbell(), Ok(0), "in error it is not told again");
        assert!(!adapter.has_rung(), "and keeps nobody awake");
    }
}

#[test]
fn s5_r4_an_overrun_counts_from_what_was_taken() {
    let (mut application, mut adapter) = pair(4);
    push(&mut application, 0..3);
    application.ring();
    assert_eq!(adapter.poll_doorbell(), Ok(3));
    // 3 wait, so there is room for 1 more; 2 are too many although 2 is less than 4.
    application.raw_tail_store(5);
    assert!(adapter.poll_doorbell().is_err());
    application.raw_tail_store(2);
    assert!(adapter.poll_doorbell().is_err(), "nor may it go back");
    adapter.take().unwrap().unwrap();
    application.raw_tail_store(5);
    assert_eq!(adapter.poll_doorbell(), Ok(2));
}

#[test]
fn s5_r5_a_doorbell_of_0_changes_nothing() {
    let (mut application, mut adapter) = pair(4);
    assert!(!application.ring());
    push(&mut application, [1]);
    application.ring();
    assert_eq!(adapter.poll_doorbell(), Ok(1));
    application.raw_tail_store(1);
    for _ in 0..3 {
        assert!(!application.ring());
        assert_eq!(adapter.poll_doorbell(), Ok(0));
    }
    assert_eq!((adapter.waiting(), application.state()), (1, STATE_READY));
    assert_eq!(serve(&mut adapter), [1]);
}

#[test]
fn s5_r15_after_an_error_each_request_is_flushed_once() {
    let (mut application, mut adapter) = pair(8);
    push(&mut application, 0..6);
    application.ring();
    adapter.poll_doorbell().unwrap();
    let running: Vec<_> = (0..2).map(|_| adapter.take().unwrap().unwrap().user_data).collect();
    assert_eq!(running, [0, 1]);
    push(&mut application, [6]);
    application.ring();
    adapter.fail();
    assert_eq!(adapter.take(), Ok(None), "nothing more is executed");
    assert_eq!(flush(&mut adapter), [2, 3, 4, 5]);
    // What is announced later, within bounds, is flushed as well.
    assert!(adapter.has_rung());
    assert_eq!(adapter.poll_doorbell(), Ok(1));
    assert_eq!(flush(&mut adapter), [6]);
    // What ran ends by itself.
    running.iter().for_each(|&user_data| adapter.complete(&Completion::ok(user_data, 4096)));
    let ended: Vec<_> = pop_all(&mut application).iter().map(|c| (c.user_data, Status(c.status))).collect();
    let flushed = (2..7).map(|user_data| (user_data, Status::E_FLUSHED));
    assert_eq!(ended, flushed.chain([(0, Status::OK), (1, Status::OK)]).collect::<Vec<_>>());
    assert_eq!((application.state(), application.outstanding()), (STATE_ERROR, 0));
    assert!(adapter.end_turn() || !application.begin_wait(), "a sleeper hears of it");
}

#[test]
fn s5_r15_flushing_waits_for_room_too() {
    let (mut application, mut adapter) = pair(2);
    announce(&mut application, 2);
    assert_eq!(adapter.poll_doorbell(), Ok(2));
    adapter.fail();
    assert_eq!(flush(&mut adapter).len(), 2);
    announce(&mut application, 4);
    assert_eq!(adapter.poll_doorbell(), Ok(2));
    assert_eq!((adapter.take_flushed(), adapter.has_rung()), (None, false));
    application.pop().unwrap();
    assert!(adapter.has_rung());
    assert_eq!(flush(&mut adapter).len(), 1);
}

#[test]
fn full_is_said_and_ends() {
    let (mut application, mut adapter) = pair(2);
    push(&mut application, [1, 2]);
    assert_eq!((application.push(&request(3)), application.free()), (Err(Full), 0));
    application.ring();
    assert_eq!(serve(&mut adapter), [1, 2]);
    assert_eq!(application.push(&request(3)), Err(Full), "the completions are not consumed");
    assert_eq!(application.untaken(), 2);
    application.pop().unwrap();
    assert_eq!((application.untaken(), application.free()), (0, 1));
    push(&mut application, [3]);
}

#[test]
fn no_request_is_taken_without_room_for_its_completion() {
    let (mut application, mut adapter) = pair(4);
    announce(&mut application, 4);
    assert_eq!(serve(&mut adapter).len(), 4);
    // An application that announces on without consuming.
    announce(&mut application, 8);
    assert_eq!(adapter.poll_doorbell(), Ok(4));
    assert_eq!((adapter.take(), adapter.room(), adapter.has_rung()), (Ok(None), 0, false));
    for consumed in 1..=4 {
        application.pop().unwrap();
        assert!(adapter.has_rung());
        assert!(adapter.take().unwrap().is_some());
        assert_eq!((adapter.take(), adapter.in_flight()), (Ok(None), consumed));
    }
}

/// Several at once: in order, each once, no more than there is room for on either side, and none behind the last wanted.
#[test]
fn several_requests_are_taken_at_once() {
    let (mut application, mut adapter) = pair(8);
    let mut into = [SubmissionEntry::default(); 4];
    let taken = |into: &[SubmissionEntry]| into.iter().map(|entry| entry.user_data).collect::<Vec<_>>();
    push(&mut application, 1..=8);
    application.ring();
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(0), "nothing that was not seen to be announced");
    adapter.poll_doorbell().unwrap();
    assert_eq!(adapter.take_into(&mut [], |_| true), Ok(0));
    assert_eq!(adapter.take_into(&mut into, |entry| entry.user_data != 2), Ok(2));
    assert_eq!((taken(&into[..2]), adapter.waiting()), (vec![1, 2], 6));
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(4));
    assert_eq!(taken(&into), [3, 4, 5, 6]);
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(2), "there are no more");
    (1..=8).for_each(|user_data| adapter.complete(&Completion::ok(user_data, 0)));
    announce(&mut application, 16);
    adapter.poll_doorbell().unwrap();
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(0), "no completion was consumed");
    (0..3).for_each(|_| assert!(application.pop().is_some()));
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(3));
    assert_eq!((adapter.waiting(), adapter.room(), adapter.in_flight()), (5, 0, 3));
    (0..2).for_each(|_| assert!(application.pop().is_some()));
    assert_eq!(adapter.take_into(&mut into[..1], |_| true), Ok(1));
    assert_eq!(adapter.room(), 1, "less than is wanted next");
    application.pop().unwrap();
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(2), "and more than was known to be free");
    adapter.fail();
    application.pop().unwrap();
    assert_eq!(adapter.take_into(&mut into, |_| true), Ok(0), "none in the error state");
}

#[test]
fn a_consumed_count_that_cannot_be_true_is_a_violation() {
    for said in [5, u32::MAX, 1 << 31] {
        let (mut application, mut adapter) = pair(4);
        announce(&mut application, 4);
        serve(&mut adapter);
        announce(&mut application, 8);
        adapter.poll_doorbell().unwrap();
        application.memory().cq_head().store(said, Ordering::Relaxed);
        assert!(adapter.has_rung());
        assert_eq!(adapter.take(), Err(Violation { said, known: 0, posted: 4 }));
        assert_eq!((adapter.waiting(), adapter.in_flight()), (4, 0));
        adapter.fail();
        assert_eq!((adapter.take_flushed(), adapter.has_rung()), (None, false));
        application.memory().cq_head().store(4, Ordering::Relaxed);
        assert_eq!(flush(&mut adapter).len(), 4);
    }
}

#[test]
#[should_panic(expected = "no request was taken")]
fn completing_twice_is_our_own_bug() {
    let (mut application, mut adapter) = pair(2);
    push(&mut application, [1]);
    application.ring();
    serve(&mut adapter);
    adapter.complete(&Completion::ok(1, 0));
}

#[test]
fn the_adapters_own_words_are_never_believed() {
    let (mut application, mut adapter) = pair(2);
    for lap in 0..5 {
        push(&mut application, [lap, lap + 100]);
        application.ring();
        adapter.poll_doorbell().unwrap();
        let taken = take_all(&mut adapter);
        for slot in 0..2 {
            for i in 0..4 {
                adapter.memory().cq_word(slot, i).store(u64::MAX, Ordering::Relaxed);
            }
        }
        adapter.memory().state().store(77, Ordering::Relaxed);
        adapter.memory().need_wake().store(1, Ordering::Relaxed);
        taken.iter().for_each(|&user_data| adapter.complete(&Completion::ok(user_data, 1)));
        assert_eq!(pop_data(&mut application), [lap, lap + 100]);
    }
}

#[test]
fn a_submission_head_that_cannot_be_true_is_ignored() {
    for nonsense in [3, u32::MAX, 1 << 31] {
        let (mut application, mut adapter) = pair(4);
        push(&mut application, [1, 2]);
        application.ring();
        serve(&mut adapter);
        let last = application.memory().cq_word(0, 3);
        last.store(last.load(Ordering::Relaxed) & 0xffff_ffff | u64::from(nonsense) << 32, Ordering::Relaxed);
        assert_eq!(application.pop().map(|c| c.user_data), Some(1));
        assert_eq!((application.untaken(), application.free()), (2, 3));
        assert_eq!(application.pop().map(|c| c.user_data), Some(2));
        assert_eq!((application.untaken(), application.free()), (0, 4));
    }
}

#[test]
fn a_completion_carries_everything() {
    let (mut application, mut adapter) = pair(2);
    push(&mut application, [3]);
    application.ring();
    adapter.poll_doorbell().unwrap();
    adapter.take().unwrap().unwrap();
    let status = Status::E_DEVICE;
    adapter.complete(&Completion {
        user_data: u64::MAX,
        status,
        device_status: 0x281,
        bytes: 512,
        value: 1 << 63,
    });
    let expected = CompletionEntry {
        user_data: u64::MAX,
        bytes: 512,
        device_status: 0x281,
        value: 1 << 63,
        status: status.0,
        phase: 1,
        sq_head: 1,
    };
    assert_eq!(application.pop(), Some(expected));
}

#[test]
fn ring_tells_whether_the_adapter_sleeps() {
    let (mut application, adapter) = pair(4);
    adapter.set_need_wake(true);
    assert!(!application.ring(), "nothing was announced");
    push(&mut application, [1]);
    assert!(application.ring());
    assert!(adapter.has_rung());
    adapter.set_need_wake(false);
    push(&mut application, [2]);
    assert!(!application.ring());
}

#[test]
fn end_turn_tells_whether_the_application_sleeps() {
    let (mut application, mut adapter) = pair(4);
    push(&mut application, [1]);
    application.ring();
    assert!(application.begin_wait());
    assert!(!adapter.end_turn(), "nothing was posted");
    serve(&mut adapter);
    assert!(adapter.end_turn());
    assert_eq!(application.memory().cq_wait().load(Ordering::Relaxed), 0);
    assert!(!adapter.end_turn(), "only once");
    assert!(!application.begin_wait(), "there is a completion");
    assert_eq!(application.memory().cq_wait().load(Ordering::Relaxed), 0);
    application.pop().unwrap();
    assert!(application.begin_wait());
    application.end_wait();
    adapter.fail();
    assert!(!adapter.end_turn());
    assert!(!application.begin_wait(), "nothing will come in the error state");
}

/// Notes every word of the application that is read.
struct Watched<'a> {
    queue: &'a LocalQueue,
    reads: RefCell<Vec<String>>,
}

impl QueueMemory for Watched<'_> {
    fn tail(&self) -> &AtomicU32 {
        self.reads.borrow_mut().push("tail".into());
        self.queue.tail()
    }
    fn cq_head(&self) -> &AtomicU32 {
        self.reads.borrow_mut().push("cq_head".into());
        self.queue.cq_head()
    }
    fn need_wake(&self) -> &AtomicU32 {
        self.queue.need_wake()
    }
    fn state(&self) -> &AtomicU32 {
        self.queue.state()
    }
    fn cq_wait(&self) -> &AtomicU32 {
        self.queue.cq_wait()
    }
    fn sq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        self.reads.borrow_mut().push(format!("sq {} {i}", slot % 2));
        self.queue.sq_word(slot, i)
    }
    fn cq_word(&self, slot: usize, i: usize) -> &AtomicU64 {
        self.queue.cq_word(slot, i)
    }
}

#[test]
fn each_word_of_the_application_is_read_once() {
    let entries = Entries::new(2).unwrap();
    let queue = LocalQueue::new(entries);
    let mut application = ApplicationEnd::new(&queue, entries);
    let watched = Watched { queue: &queue, reads: RefCell::default() };
    let mut adapter = AdapterEnd::new(&watched, entries);
    for user_data in 0..5 {
        application.push(&request(user_data)).unwrap();
        application.ring();
        watched.reads.take();
        assert_eq!(adapter.poll_doorbell(), Ok(1));
        assert_eq!(watched.reads.take(), ["tail"]);
        assert_eq!(adapter.take().unwrap(), Some(request(user_data)));
        let mut reads = watched.reads.take();
        reads.retain(|word| word != "cq_head" || user_data < 2);
        let slot = user_data % 2;
        assert_eq!(reads, (0..8).map(|i| format!("sq {slot} {i}")).collect::<Vec<_>>());
        adapter.complete(&Completion::ok(user_data, 0));
        adapter.end_turn();
        assert_eq!(watched.reads.take(), [""; 0]);
        application.pop().unwrap();
    }
}

/// What happens to a queue, in any order.
#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Ring,
    Poll,
    Take(u8),
    Complete(usize),
    Pop(u8),
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u8..6).prop_map(Step::Push),
        8 => Just(Step::Ring),
        8 => Just(Step::Poll),
        8 => (1u8..6).prop_map(Step::Take),
        16 => any::<usize>().prop_map(Step::Complete),
        8 => (1u8..6).prop_map(Step::Pop),
        1 => Just(Step::Fail),
    ]
}

/// The queue as lists without any arithmetic, beside the real one.
struct Model {
    application: Application,
    adapter: Adapter,
    next: u64,
    pushed: VecDeque<u64>,
    rung: VecDeque<u64>,
    seen: VecDeque<u64>,
    running: Vec<u64>,
    posted: VecDeque<(u64, Status)>,
}

impl Model {
    fn outstanding(&self) -> usize {
        self.pushed.len() + self.rung.len() + self.seen.len() + self.running.len() + self.posted.len()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Push(n) => (0..n).for_each(|_| self.push()),
            Step::Ring => {
                self.application.ring();
                self.rung.append(&mut self.pushed);
            }
            Step::Poll => {
                assert_eq!(self.adapter.poll_doorbell().unwrap() as usize, self.rung.len());
                self.seen.append(&mut self.rung);
            }
            Step::Take(n) => (0..n).for_each(|_| self.take()),
            Step::Complete(which) if !self.running.is_empty() => {
                let user_data = self.running.swap_remove(which % self.running.len());
                self.adapter.complete(&Completion::ok(user_data, 4096));
                self.posted.push_back((user_data, Status::OK));
            }
            Step::Complete(_) => {}
            Step::Pop(n) => (0..n).for_each(|_| self.pop()),
            Step::Fail => self.adapter.fail(),
        }
        let entries = self.adapter.entries().get() as usize;
        assert_eq!(self.application.outstanding() as usize, self.outstanding());
        assert_eq!(self.application.free() as usize, entries - self.outstanding());
        assert_eq!(self.application.unrung() as usize, self.pushed.len());
        assert_eq!(self.application.has_completion(), !self.posted.is_empty());
        assert_eq!(self.adapter.waiting() as usize, self.seen.len());
        assert_eq!(self.adapter.in_flight() as usize, self.running.len());
        assert_eq!(self.adapter.has_rung(), !(self.rung.is_empty() && self.seen.is_empty()));
    }

    fn push(&mut self) {
        let full = self.outstanding() == self.adapter.entries().get() as usize;
        assert_eq!(self.application.push(&request(self.next)), if full { Err(Full) } else { Ok(()) });
        if !full {
            self.pushed.push_back(self.next);
            self.next += 1;
        }
    }

    fn take(&mut self) {
        if self.adapter.is_failed() {
            assert_eq!(self.adapter.take(), Ok(None));
            let expected = self.seen.pop_front();
            assert_eq!(self.adapter.take_flushed(), expected);
            if let Some(user_data) = expected {
                self.adapter.complete(&Completion::failed(user_data, Status::E_FLUSHED));
                self.posted.push_back((user_data, Status::E_FLUSHED));
            }
        } else {
            // An application that keeps to its part always left room.
            let expected = self.seen.pop_front();
            assert_eq!(self.adapter.take(), Ok(expected.map(request)));
            self.running.extend(expected);
        }
    }

    fn pop(&mut self) {
        let popped = self.application.pop().map(|c| (c.user_data, Status(c.status)));
        assert_eq!(popped, self.posted.pop_front());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// S5-R1, R2, R3, R15: whatever the order of steps, each request comes out once, as it was pushed, also where the
    /// counts wrap.
    #[test]
    fn a_queue_behaves_like_its_model(
        shift in 1u32..=4,
        laps in 0u32..=3,
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        // The last `laps` pairs of laps before the wrap.
        let laps = (u32::MAX >> (shift + 1)).wrapping_add(1).wrapping_sub(laps);
        let (application, adapter) = pair_at(1 << shift, laps);
        let mut model = Model {
            application,
            adapter,
            next: 0,
            pushed: VecDeque::new(),
            rung: VecDeque::new(),
            seen: VecDeque::new(),
            running: Vec::new(),
            posted: VecDeque::new(),
        };
        steps.iter().for_each(|step| model.apply(step));
    }
}

/// S5-R1, R2 with two threads: a quarter of a million requests through few slots, across the wrap of the counts.
#[test]
fn two_threads_lose_and_double_nothing() {
    const REQUESTS: u64 = 250_000;
    let (mut application, mut adapter) = pair_at(8, (u32::MAX >> 4).wrapping_sub(1000));
    let started = Instant::now();
    // Where a queue hangs, the test ends in red.
    let pause = || {
        assert!(started.elapsed() < Duration::from_secs(60), "the queue hangs");
        std::thread::yield_now();
    };
    std::thread::scope(|s| {
        s.spawn(move || {
            let mut done = 0;
            while done < REQUESTS {
                let served = serve(&mut adapter);
                if served.is_empty() {
                    pause();
                }
                for user_data in served {
                    assert_eq!(user_data, done);
                    done += 1;
                }
            }
        });
        let (mut pushed, mut popped) = (0, 0);
        while popped < REQUESTS {
            while pushed < REQUESTS && application.push(&request(pushed)).is_ok() {
                pushed += 1;
            }
            application.ring();
            while let Some(completion) = application.pop() {
                assert_eq!(completion.user_data, popped);
                popped += 1;
            }
            pause();
        }
    });
}
