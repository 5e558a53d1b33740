use std::sync::Arc;

use super::*;
use crate::layout::{CompletionEntry, Entries, STATE_ERROR, STATE_READY, SubmissionEntry, opcode};
use crate::sync::Ordering;
use crate::view::{LocalQueue, QueueMemory};

/// Both ends of a queue on the heap.
fn pair(entries: u32) -> (ApplicationEnd<Arc<LocalQueue>>, AdapterEnd<Arc<LocalQueue>>) {
    pair_at(entries, 0)
}

/// The same, `laps` pairs of laps later.
fn pair_at(entries: u32, laps: u32) -> (ApplicationEnd<Arc<LocalQueue>>, AdapterEnd<Arc<LocalQueue>>) {
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

/// Takes and completes all there is; gives the user data in order.
fn serve(adapter: &mut AdapterEnd<Arc<LocalQueue>>) -> Vec<u64> {
    let mut served = Vec::new();
    adapter.poll_doorbell().unwrap();
    while let Some(entry) = adapter.take().unwrap() {
        assert_eq!(entry, request(entry.user_data), "the entry is whole");
        adapter.complete(&Completion::ok(entry.user_data, entry.length));
        served.push(entry.user_data);
    }
    served
}

fn pop_all(application: &mut ApplicationEnd<Arc<LocalQueue>>) -> Vec<CompletionEntry> {
    std::iter::from_fn(|| application.pop()).collect()
}

#[test]
fn s5_r1_a_doorbell_of_n_gives_n_requests() {
    for n in 0..=8 {
        let (mut application, mut adapter) = pair(8);
        for i in 0..n {
            application.push(&request(i)).unwrap();
        }
        application.ring();
        assert_eq!(u64::from(adapter.poll_doorbell().unwrap()), n);
        assert_eq!(serve(&mut adapter), (0..n).collect::<Vec<_>>());
        assert_eq!(adapter.take().unwrap(), None);
        assert_eq!(pop_all(&mut application).len() as u64, n);
    }
}

#[test]
fn s5_r2_two_doorbells_add_up_and_come_in_order() {
    let (mut application, mut adapter) = pair(8);
    for i in 0..3 {
        application.push(&request(i)).unwrap();
    }
    application.ring();
    for i in 3..8 {
        application.push(&request(i)).unwrap();
    }
    application.ring();
    assert_eq!(adapter.poll_doorbell(), Ok(8));
    assert_eq!(serve(&mut adapter), (0..8).collect::<Vec<_>>());
    let popped: Vec<_> = pop_all(&mut application).iter().map(|c| c.user_data).collect();
    assert_eq!(popped, (0..8).collect::<Vec<_>>());
}

#[test]
fn s5_r3_what_is_not_rung_is_not_taken() {
    let (mut application, mut adapter) = pair(4);
    application.push(&request(1)).unwrap();
    application.ring();
    application.push(&request(2)).unwrap();
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
        for i in 0..4 {
            application.raw_overwrite(i, &request(90));
        }
        application.raw_tail_store(jump);
        assert_eq!(
            adapter.poll_doorbell(),
            Err(Overrun {
                tail: jump,
                head: 0,
                entries: 4
            })
        );
        assert_eq!(adapter.take(), Ok(None));
        adapter.fail();
        assert_eq!((adapter.take(), adapter.take_flushed()), (Ok(None), None));
        assert_eq!((application.state(), application.pop()), (STATE_ERROR, None));
        assert_eq!(adapter.poll_doorbell(), Ok(0), "in error it is not told again");
        assert!(!adapter.has_rung(), "and keeps nobody awake");
    }
}

#[test]
fn s5_r5_a_doorbell_of_0_changes_nothing() {
    let (mut application, mut adapter) = pair(4);
    assert!(!application.ring());
    application.push(&request(1)).unwrap();
    application.ring();
    assert_eq!(adapter.poll_doorbell(), Ok(1));
    let tail = application.memory().tail().load(Ordering::Relaxed);
    application.raw_tail_store(tail);
    for _ in 0..3 {
        assert!(!application.ring());
        assert_eq!(adapter.poll_doorbell(), Ok(0));
    }
    assert_eq!((adapter.waiting(), application.state()), (1, STATE_READY));
    assert_eq!(serve(&mut adapter), [1]);
}
