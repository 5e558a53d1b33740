//! Identity, interrupts, resets.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use driver::block::{DeviceStatus, Operation, ResetProgress, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::io::{Image, PATIENCE, await_running, command, run};
use super::{Bench, Case, Controller, Load, Needs, TestQueue};

pub(super) const CASES: &[Case] = &[
    Case { name: "identity_and_shape_make_sense", needs: Needs::Controller, run: identity },
    Case { name: "health_makes_sense", needs: Needs::Health, run: health },
    Case { name: "interrupts_arrive", needs: Needs::Controller, run: interrupts },
    Case { name: "an_idle_reset_keeps_what_was_written", needs: Needs::Controller, run: idle_reset },
    Case {
        name: "a_reset_under_load_ends_each_command_once",
        needs: Needs::ResetUnderLoad,
        run: reset_under_load,
    },
    Case { name: "a_shut_down_device_opens_again", needs: Needs::Controller, run: drop_in_peace },
];

fn identity(bench: &mut Bench) {
    let geometry = bench.geometry();
    assert!(matches!(geometry.block_shift, 9 | 12));
    assert!(geometry.blocks >= 1024, "too small for these cases: {} blocks", geometry.blocks);
    assert!(geometry.max_transfer_blocks >= 1 && geometry.max_zeroes_blocks >= 1);
    assert!(geometry.max_transfer_blocks as usize >= 4096 >> geometry.block_shift, "no whole page at once");
    let (queues, controller) = bench.parts();
    assert!(queues.iter().all(|queue| *queue.queue.geometry() == geometry));
    assert_eq!(controller.geometry(), geometry);
    let model = controller.model();
    for text in [&model.model, &model.serial] {
        assert!(!text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text:?}");
    }
    assert_eq!(controller.watch(), Watch::Running);
}

fn health(bench: &mut Bench) {
    let (_, controller) = bench.parts();
    let health = controller.health().expect("a SMART log").expect("that can be read");
    let temperature = health.composite_temperature.get();
    assert!((200..400).contains(&temperature), "{temperature} K");
    assert!(health.available_spare <= 100);
    let again = controller.health().expect("a SMART log").expect("that can be read");
    assert!(again.data_units_read.get() >= health.data_units_read.get());
    assert_eq!(controller.anomalies(), 0);
}

/// Whether `fd` becomes readable within `seconds`.
fn readable(fd: BorrowedFd<'_>, seconds: u64) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: i64::try_from(seconds).expect("small"), tv_nsec: 0 };
    poll(&mut fds, Some(&timeout)).expect("poll") == 1
}

fn clear(fd: BorrowedFd<'_>) {
    let mut count = [0; 8];
    // Empty is what it is to be.
    let _ = rustix::io::read(fd, &mut count);
}

fn interrupts(bench: &mut Bench) {
    let memory = bench.memory(4096);
    let (queues, _) = bench.parts();
    for at in 0..queues.len() {
        let others: Vec<usize> = (0..queues.len()).filter(|&other| other != at).collect();
        for queue in queues.iter_mut() {
            queue.queue.arm_interrupt(true);
            clear(queue.interrupt.as_ref().expect("the device interrupts").as_fd());
        }
        for round in 0..20 {
            let fd = queues[at]
                .interrupt
                .as_ref()
                .expect("the device interrupts")
                .try_clone()
                .expect("a descriptor");
            let queue = &mut *queues[at].queue;
            queue.submit(&command(Operation::Read, 0, 1, memory.at(0))).expect("room");
            queue.commit();
            // Sleeps before it ever polls: only the interrupt can wake it.
            assert!(readable(fd.as_fd(), PATIENCE.as_secs()), "queue {at}, round {round}: no interrupt");
            clear(fd.as_fd());
            let mut ended = 0;
            assert_eq!(queue.poll(usize::MAX, &mut |_| ended += 1), 1, "woken with nothing there");
        }
        for other in others {
            let fd = queues[other].interrupt.as_ref().expect("the device interrupts");
            assert!(!readable(fd.as_fd(), 0), "queue {at} interrupted queue {other}");
        }
        for queue in queues.iter_mut() {
            queue.queue.arm_interrupt(false);
        }
    }
    // Who polls is not interrupted.
    for TestQueue { queue, interrupt } in queues {
        let fd = interrupt.as_ref().expect("the device interrupts").as_fd();
        clear(fd);
        for _ in 0..20 {
            queue.submit(&command(Operation::Read, 0, 1, memory.at(0))).expect("room");
            queue.commit();
            let (start, mut ended) = (Instant::now(), 0);
            while ended == 0 {
                assert!(start.elapsed() < PATIENCE, "a read does not end");
                queue.poll(usize::MAX, &mut |_| ended += 1);
            }
        }
        assert!(!readable(fd, 0), "it was interrupted while it polled");
    }
}

/// Polls idle queues and the reset until it is over.
fn finish(queues: &mut [TestQueue], controller: &mut dyn Controller) {
    let start = Instant::now();
    loop {
        for queue in queues.iter_mut() {
            queue.queue.poll(usize::MAX, &mut |completed| panic!("{completed:?} of nothing"));
        }
        match controller.finish_reset() {
            ResetProgress::Done => break,
            ResetProgress::Pending => assert!(start.elapsed() < PATIENCE, "the reset does not end"),
            other => panic!("the reset ended {other:?}"),
        }
        std::thread::yield_now();
    }
    for queue in queues {
        await_running(&mut *queue.queue);
    }
}

fn idle_reset(bench: &mut Bench) {
    let memory = bench.memory(1 << 16);
    let image = Image::new(bench.queue(), &memory, 0, 64, 70);
    for _ in 0..3 {
        let before = bench.mapper().mappings();
        let (queues, controller) = bench.parts();
        controller.begin_reset();
        assert_eq!(controller.watch(), Watch::Resetting);
        let read = command(Operation::Read, 0, 1, memory.at(0));
        assert_eq!(queues[0].queue.submit(&read), Err(driver::block::SubmitError::Down));
        finish(queues, controller);
        assert_eq!(controller.watch(), Watch::Running);
        for queue in queues {
            assert_eq!(run(&mut *queue.queue, read), DeviceStatus::OK);
        }
        image.verify(bench.queue(), &memory);
        assert_eq!(bench.mapper().mappings(), before);
    }
}

fn reset_under_load(bench: &mut Bench) {
    const RESETS: u64 = 4;
    let geometry = bench.geometry();
    let memories = [0, 1].map(|_| bench.memory(16 * Load::place(&geometry)));
    let (queues, controller) = bench.parts();
    let (busy, idle) = queues.split_at_mut(2);
    let (stop, ready) = (AtomicBool::new(false), Barrier::new(3));
    std::thread::scope(|scope| {
        let (stop, ready) = (&stop, &ready);
        let loads: Vec<_> = (0u64..)
            .zip(busy)
            .zip(&memories)
            .map(|((at, queue), memory)| {
                scope.spawn(move || {
                    let blocks = (1u64 << 20 >> geometry.block_shift).min(geometry.blocks / 4);
                    let mut load =
                        Load::new(&mut *queue.queue, memory, geometry.blocks / 2 * at, blocks, 80 + at);
                    ready.wait();
                    while !stop.load(Ordering::SeqCst) {
                        if !load.turn() {
                            std::thread::yield_now();
                        }
                    }
                    let (ended, aborted) = (load.ended, load.aborted);
                    load.finish();
                    (ended, aborted)
                })
            })
            .collect();
        let resets = scope.spawn(move || {
            // However it goes, the loads are to end.
            let _stop = StopAtEnd(stop);
            ready.wait();
            for _ in 0..RESETS {
                let start = Instant::now();
                while start.elapsed().as_millis() < 50 {
                    idle[0].queue.poll(usize::MAX, &mut |_| ());
                    std::thread::yield_now();
                }
                controller.begin_reset();
                finish(idle, controller);
            }
        });
        resets.join().expect("the resets");
        let ended: u64 = loads.into_iter().map(|load| load.join().expect("a load").0).sum();
        assert!(ended > 0);
    });
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What the next case, which opens the same device, depends on: nothing is left mapped.
fn drop_in_peace(bench: &mut Bench) {
    let mapper = bench.mapper();
    let mappings = mapper.mappings();
    let memory = bench.memory(4096);
    assert_eq!(run(bench.queue(), command(Operation::Read, 0, 1, memory.at(0))), DeviceStatus::OK);
    drop(memory);
    assert_eq!(mapper.mappings(), mappings);
}
