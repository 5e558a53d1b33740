//! Models of the queue under every order of its loads and stores that loom can think of.
//!
//! One pair cannot be seen failing here: `cq_head`'s Release and Acquire keep loads before a store, and in loom no load
//! sees a store that is made later.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p wire --release --test loom`
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

use loom::sync::{Arc, Condvar, Mutex, Notify};
use loom::thread;
use wire::layout::{Entries, SubmissionEntry};
use wire::ring::{AdapterEnd, ApplicationEnd, Completion, fence_posts};
use wire::sync::Ordering;
use wire::view::{LocalQueue, QueueMemory};

type Application = ApplicationEnd<std::sync::Arc<LocalQueue>>;
type Adapter = AdapterEnd<std::sync::Arc<LocalQueue>>;

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn pair() -> (Application, Adapter) {
    let entries = Entries::new(2).unwrap();
    let memory = std::sync::Arc::new(LocalQueue::new(entries));
    (ApplicationEnd::new(memory.clone(), entries), AdapterEnd::new(memory, entries))
}

/// First and last word tell the same, so that a torn copy shows.
fn request(n: u64) -> SubmissionEntry {
    SubmissionEntry { opcode: n as u8, user_data: n, region_offset: n, extension: n, ..Default::default() }
}

fn push(application: &mut Application, n: u64) {
    application.push(&request(n)).unwrap();
}

fn take(adapter: &mut Adapter) -> Option<u64> {
    let entry = adapter.take().unwrap()?;
    assert_eq!(entry, request(entry.user_data), "a request is copied whole");
    Some(entry.user_data)
}

fn pop(application: &mut Application) -> Option<u64> {
    let entry = application.pop()?;
    assert_eq!(
        (u64::from(entry.bytes), entry.value),
        (entry.user_data, entry.user_data),
        "a completion is whole"
    );
    Some(entry.user_data)
}

fn complete(adapter: &mut Adapter, n: u64) {
    let bytes = u32::try_from(n).unwrap();
    adapter.complete(&Completion { value: n, ..Completion::ok(n, bytes) });
}

/// Submissions: what the doorbell announces is taken whole, in order, once (S5-R1, R2, R3).
#[test]
fn submissions() {
    check(3, || {
        let (mut application, mut adapter) = pair();
        let producer = thread::spawn(move || {
            push(&mut application, 1);
            application.ring();
            push(&mut application, 2);
            application.ring();
        });
        let mut taken = 0;
        while taken < 2 {
            if adapter.poll_doorbell().unwrap() == 0 {
                thread::yield_now();
            }
            while let Some(n) = take(&mut adapter) {
                taken += 1;
                assert_eq!(n, taken);
            }
        }
        assert_eq!(adapter.poll_doorbell(), Ok(0));
        producer.join().unwrap();
    });
}

/// A slot is written again only after the adapter has copied it, and a completion only after it was consumed: a queue
/// of 2 goes round more than twice.
#[test]
fn laps() {
    check(2, || {
        let (mut application, mut adapter) = pair();
        push(&mut application, 1);
        push(&mut application, 2);
        application.ring();
        let consumer = thread::spawn(move || {
            let mut popped = 0;
            while popped < 5 {
                match pop(&mut application) {
                    Some(n) => {
                        popped += 1;
                        assert_eq!(n, popped);
                        if n < 4 {
                            push(&mut application, n + 2);
                            application.ring();
                        }
                    }
                    None => thread::yield_now(),
                }
            }
        });
        let mut served = 0;
        while served < 5 {
            adapter.poll_doorbell().unwrap();
            match take(&mut adapter) {
                Some(n) => {
                    served += 1;
                    assert_eq!(n, served);
                    complete(&mut adapter, n);
                }
                None => thread::yield_now(),
            }
        }
        consumer.join().unwrap();
    });
}

/// A slow consumer that announces more than it left room for: nothing unconsumed is overwritten.
#[test]
fn reserved_room() {
    check(3, || {
        let (mut application, mut adapter) = pair();
        push(&mut application, 1);
        push(&mut application, 2);
        application.ring();
        assert_eq!(adapter.poll_doorbell(), Ok(2));
        for n in 1..=2 {
            assert_eq!(take(&mut adapter), Some(n));
            complete(&mut adapter, n);
        }
        application.raw_overwrite(0, &request(3));
        application.raw_overwrite(1, &request(4));
        application.raw_tail_store(4);
        let consumer = thread::spawn(move || {
            let mut popped = 0;
            while popped < 4 {
                match pop(&mut application) {
                    Some(n) => {
                        popped += 1;
                        assert_eq!(n, popped);
                    }
                    None => thread::yield_now(),
                }
            }
        });
        assert_eq!(adapter.poll_doorbell(), Ok(2));
        for n in 3..=4 {
            while take(&mut adapter).is_none() {
                thread::yield_now();
            }
            complete(&mut adapter, n);
        }
        consumer.join().unwrap();
    });
}

/// The adapter sleeps while the application rings: no wake is lost. A lost one is a deadlock, which loom reports.
#[test]
fn adapter_sleep() {
    check(3, || {
        let (mut application, mut adapter) = pair();
        let eventfd = Arc::new(Notify::new());
        let bell = eventfd.clone();
        let producer = thread::spawn(move || {
            for n in 1..=2 {
                push(&mut application, n);
                if application.ring() {
                    bell.notify();
                }
            }
        });
        let mut taken = 0;
        while taken < 2 {
            adapter.poll_doorbell().unwrap();
            while let Some(n) = take(&mut adapter) {
                taken += 1;
                assert_eq!(n, taken);
            }
            if taken < 2 {
                adapter.set_need_wake(true);
                if !adapter.has_rung() {
                    eventfd.wait();
                }
                adapter.set_need_wake(false);
            }
        }
        producer.join().unwrap();
    });
}

/// The adapter leaves a queue alone until its eventfd is written. It says so once, and looks once for each write, also for one
/// that was for nothing: no ring is lost.
#[test]
fn adapter_parks() {
    check(3, || {
        let (mut application, mut adapter) = pair();
        let eventfd = Arc::new(Notify::new());
        let bell = eventfd.clone();
        let producer = thread::spawn(move || {
            bell.notify(); // Anybody may write it at any time.
            push(&mut application, 1);
            if application.ring() {
                bell.notify();
            }
        });
        adapter.set_need_wake(true);
        while !adapter.has_rung() {
            eventfd.wait();
        }
        adapter.set_need_wake(false);
        assert_eq!(adapter.poll_doorbell(), Ok(1));
        assert_eq!(take(&mut adapter), Some(1));
        producer.join().unwrap();
    });
}

/// FUTEX_WAIT and FUTEX_WAKE: the comparison and going to sleep are one step.
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    fn wait(&self, queue: &impl QueueMemory) {
        let guard = self.lock.lock().unwrap();
        if queue.cq_wait().load(Ordering::Relaxed) == 1 {
            drop(self.sleepers.wait(guard).unwrap());
        }
    }

    fn wake(&self) {
        let _guard = self.lock.lock().unwrap();
        self.sleepers.notify_all();
    }
}

/// The application sleeps while the adapter completes: no wake is lost, also between two waits.
#[test]
fn application_sleep() {
    check(3, || {
        let (mut application, mut adapter) = pair();
        push(&mut application, 1);
        push(&mut application, 2);
        application.ring();
        assert_eq!(adapter.poll_doorbell(), Ok(2));
        let futex = Arc::new(Futex::default());
        let waker = futex.clone();
        let poller = thread::spawn(move || {
            while let Some(n) = take(&mut adapter) {
                complete(&mut adapter, n);
                if adapter.end_turn() {
                    waker.wake();
                }
            }
        });
        for n in 1..=2 {
            loop {
                if let Some(popped) = pop(&mut application) {
                    assert_eq!(popped, n);
                    break;
                }
                if application.begin_wait() {
                    futex.wait(application.memory());
                    application.end_wait();
                }
            }
        }
        poller.join().unwrap();
    });
}

/// One fence for what was posted to two queues, whose applications go to sleep: neither wake is lost.
#[test]
fn two_applications_sleep() {
    check(2, || {
        let futexes = [Arc::new(Futex::default()), Arc::new(Futex::default())];
        let wakers = futexes.clone();
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (mut application, mut adapter) = pair();
                push(&mut application, 1);
                application.ring();
                assert_eq!(adapter.poll_doorbell(), Ok(1));
                (adapter, application)
            })
            .unzip();
        let poller = thread::spawn(move || {
            let mut ports = ours;
            for adapter in &mut ports {
                let n = take(adapter).unwrap();
                complete(adapter, n);
            }
            fence_posts();
            for (adapter, waker) in ports.iter_mut().zip(&wakers) {
                if adapter.find_sleeper() {
                    waker.wake();
                }
            }
        });
        let waiters = theirs.into_iter().zip(futexes).map(|(mut application, futex)| {
            thread::spawn(move || {
                while pop(&mut application).is_none() {
                    if application.begin_wait() {
                        futex.wait(application.memory());
                        application.end_wait();
                    }
                }
            })
        });
        for waiter in waiters.collect::<Vec<_>>() {
            waiter.join().unwrap();
        }
        poller.join().unwrap();
    });
}

/// The application sleeps while the adapter moves the queue to the error state: it hears of it.
#[test]
fn application_sleep_and_error() {
    check(3, || {
        let (application, mut adapter) = pair();
        let futex = Arc::new(Futex::default());
        let waker = futex.clone();
        let poller = thread::spawn(move || {
            adapter.fail();
            if adapter.end_turn() {
                waker.wake();
            }
        });
        while application.state() == wire::layout::STATE_READY {
            if application.begin_wait() {
                futex.wait(application.memory());
                application.end_wait();
            }
        }
        poller.join().unwrap();
    });
}
