//! Takes memory from applications and gives it back, on threads that nobody waits for: filling, pinning and unmapping
//! many pages takes long, and sealing waits for what the application does with its memfd.
//!
//! Each user's jobs run one after another on a thread of their own, so that nobody's memory delays anybody else's.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use driver::hal::{DmaAccess, Mapper, Mapping};
use wire::Status;
use wire::shm::{AdoptError, Adoption, Offer, Progress};

use super::{Refusal, SessionId};
use crate::memory::Adopted;
use crate::poller::eventfd;

/// Pages of this many bytes are filled before a look whether they are still wanted; the address space is held no longer.
const SLICE: usize = 1 << 20;
/// Threads at once; users beyond wait for one.
const THREADS: usize = 64;
/// At the end, threads that wait for an application are waited for this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is to be done, and for whom.
pub(super) struct Job {
    pub(super) session: SessionId,
    /// Chosen by the control plane.
    pub(super) id: u64,
    pub(super) uid: u32,
    pub(super) work: Work,
}

/// Whatever keeps memory of an application.
pub(super) type Kept = Box<dyn Any + Send>;

pub(super) enum Work {
    /// Seal, fill and pin, and map for the device if it is to reach it; until cancelled.
    Take { offer: Offer, dma: Option<DmaAccess>, cancelled: Arc<AtomicBool> },
    /// Let go of whatever this keeps alive.
    GiveBack(Kept),
}

/// What came of a job.
pub(super) struct Report {
    pub(super) session: SessionId,
    pub(super) id: u64,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Taken(Taken),
    Refused(Refusal),
    GivenBack,
}

/// Memory of an application. The mapping goes first, then the memory.
pub(super) struct Taken {
    pub(super) mapping: Option<Box<dyn Mapping>>,
    pub(super) memory: Adopted,
}

#[derive(Default)]
struct State {
    /// Of each user: what waits, and whether a thread is at it.
    users: BTreeMap<u32, (VecDeque<Job>, bool)>,
    threads: usize,
    reports: VecDeque<Report>,
}

struct Shared {
    state: Mutex<State>,
    idle: Condvar,
    done: OwnedFd,
    mapper: Arc<dyn Mapper>,
}

/// See the module.
pub(super) struct Registrar {
    shared: Arc<Shared>,
}

impl Registrar {
    /// With no thread yet.
    pub(super) fn new(mapper: Arc<dyn Mapper>) -> std::io::Result<Self> {
        let shared = Shared { state: Mutex::default(), idle: Condvar::new(), done: eventfd()?, mapper };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Becomes readable (edge-triggered) when there is a report.
    pub(super) fn done(&self) -> BorrowedFd<'_> {
        self.shared.done.as_fd()
    }

    /// Hands over a job.
    pub(super) fn submit(&self, job: Job) {
        let uid = job.uid;
        let mut state = self.shared.lock();
        let (waiting, running) = state.users.entry(uid).or_default();
        waiting.push_back(job);
        if *running || state.threads >= THREADS {
            return; // Whoever is at it takes this one too, or whoever is free first.
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("portcullis-memory".into()).stack_size(256 << 10);
        if thread.spawn(move || shared.serve(uid)).is_ok() {
            state.threads += 1;
            state.users.entry(uid).or_default().1 = true;
        } else if state.threads == 0 {
            // No thread can be had: then here, slowly, rather than never.
            state.threads += 1;
            state.users.entry(uid).or_default().1 = true;
            drop(state);
            self.shared.serve(uid);
        }
    }

    /// Whether anything is under way or waits to be taken.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        !state.users.is_empty() || !state.reports.is_empty()
    }

    /// What came of the oldest job that has ended since the last call.
    pub(super) fn take_report(&self) -> Option<Report> {
        self.shared.lock().reports.pop_front()
    }
}

impl Drop for Registrar {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        for (jobs, _) in state.users.values() {
            for job in jobs {
                if let Work::Take { cancelled, .. } = &job.work {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
        }
        while state.threads > 0 {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            (state, _) = self.shared.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the jobs of one user, then of others that wait for a thread, until there are none.
    fn serve(&self, uid: u32) {
        let mut uid = uid;
        while let Some(job) = self.next(&mut uid) {
            let Job { session, id, work, .. } = job;
            let outcome = match work {
                Work::Take { offer, dma, cancelled } => match self.take(offer, dma, &cancelled) {
                    Ok(taken) => Outcome::Taken(taken),
                    Err(refusal) => Outcome::Refused(refusal),
                },
                Work::GiveBack(memory) => {
                    drop(memory);
                    Outcome::GivenBack
                }
            };
            self.lock().reports.push_back(Report { session, id, outcome });
            let _ = rustix::io::write(&self.done, &1u64.to_ne_bytes()); // Never full: never read, one a report.
        }
    }

    fn next(&self, uid: &mut u32) -> Option<Job> {
        let mut state = self.lock();
        if let Some(job) = state.users.get_mut(uid).and_then(|(waiting, _)| waiting.pop_front()) {
            return Some(job);
        }
        state.users.remove(uid);
        let starved = state.users.iter_mut().find(|(_, (waiting, running))| !running && !waiting.is_empty());
        if let Some((&other, (waiting, running))) = starved {
            *running = true;
            *uid = other;
            return waiting.pop_front();
        }
        state.threads -= 1;
        self.idle.notify_all();
        None
    }

    fn take(&self, offer: Offer, dma: Option<DmaAccess>, cancelled: &AtomicBool) -> Result<Taken, Refusal> {
        let refused = |e: AdoptError| Refusal::new(status_of(&e), e.to_string());
        let mut adoption = Adoption::begin(offer).map_err(refused)?;
        let sealed = loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Refusal::new(Status::E_PATH, "the session is gone"));
            }
            match adoption.step(SLICE).map_err(refused)? {
                Progress::More(more) => adoption = more,
                Progress::Done(sealed) => break sealed,
            }
        };
        let memory = Adopted::new(sealed);
        let mapping = match dma {
            Some(dma) => {
                let mapped = self.mapper.map(Arc::new(memory.clone()), dma);
                Some(mapped.map_err(|e| Refusal::new(Status::E_NO_RESOURCES, e.to_string()))?)
            }
            None => None,
        };
        Ok(Taken { mapping, memory })
    }
}

/// A limit of the machine is told from a descriptor that is not what it should be.
fn status_of(error: &AdoptError) -> Status {
    match error {
        AdoptError::Lock { .. } | AdoptError::Populate { .. } | AdoptError::Map { .. } => {
            Status::E_NO_RESOURCES
        }
        _ => Status::E_LOCAL_MEM,
    }
}
