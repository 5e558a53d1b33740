//! The store's thread: the control plane hands it jobs and looks later for what came of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use store::{Store, StoreError, Subject, Volume};
use tpt::{Access, LbaRange};

use crate::assembly::StartError;
use crate::poller::eventfd;

/// What the store is asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// A new volume.
    Create {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
        /// Its owner's uid.
        owner: u32,
    },
    /// More blocks at the end.
    Grow {
        /// Of this volume.
        name: String,
        /// The new size.
        bytes: u64,
    },
    /// Fewer blocks; no grant reaches the others any more.
    Shrink {
        /// Of this volume.
        name: String,
        /// The new size.
        bytes: u64,
    },
    /// Another name.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
    /// No grant reaches the volume any more.
    Delete {
        /// Its name.
        name: String,
    },
    /// An access list entry.
    SetAccess {
        /// Of this volume.
        name: String,
        /// Whose.
        subject: Subject,
        /// NONE removes it.
        access: Access,
    },
}

/// What came of a job: the volume as it is now, `None` after a delete.
pub type Outcome = Result<Option<Volume>, StoreError>;

enum Message {
    Job(Job),
    ReserveInstances(u32),
    Touch,
}

enum Report {
    Job(Outcome, u64),
    Instances(Result<u32, StoreError>),
    Touched,
}

/// A reservation of instances that failed is tried again after this long.
const RESERVE_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Storage {
    jobs: Option<Sender<Message>>,
    reports: Receiver<Report>,
    done: OwnedFd,
    thread: Option<JoinHandle<()>>,
    volumes: Vec<Volume>,
    metadata: Vec<LbaRange>,
    free_blocks: u64,
    first_instance: u32,
    ceiling: u32,
    reserving: bool,
    /// After a failure, not before this.
    reserve_again: Option<Instant>,
    touching: bool,
}

impl Storage {
    /// Reserves `instances` key instances and starts the thread over `store`.
    pub fn start(mut store: Store, uri: &str, instances: u32) -> Result<Self, StartError> {
        let on_store = |source| StartError::Store { uri: uri.to_owned(), source };
        let os = |source| StartError::Os { what: "starting the store's thread", source };
        let volumes = store.volumes().map_err(on_store)?;
        let metadata = store.metadata_extents();
        let reserved = store.reserve_instances(instances).map_err(on_store)?;
        let (jobs, inbox) = channel::<Message>();
        let (outbox, reports) = channel::<Report>();
        let done = eventfd().map_err(os)?;
        let signal = done.try_clone().map_err(os)?;
        let free_blocks = store.free_blocks();
        let thread = std::thread::Builder::new()
            .name("portcullis-store".into())
            .spawn(move || {
                while let Ok(message) = inbox.recv() {
                    let report = match message {
                        Message::Job(job) => {
                            let outcome = store.guarded(|store| execute(store, job));
                            Report::Job(outcome, store.free_blocks())
                        }
                        Message::Touch => {
                            if let Err(error) = store.guarded(Store::touch) {
                                tracing::warn!(%error, "reading during a reset");
                            }
                            Report::Touched
                        }
                        Message::ReserveInstances(count) => {
                            let reserved = store.guarded(|store| store.reserve_instances(count));
                            Report::Instances(reserved.map(|range| range.end))
                        }
                    };
                    if outbox.send(report).is_err() {
                        break;
                    }
                    let _ = rustix::io::write(&signal, &1u64.to_ne_bytes()); // Never full: never read, one a report.
                }
            })
            .map_err(os)?;
        Ok(Self {
            jobs: Some(jobs),
            reports,
            done,
            thread: Some(thread),
            volumes,
            metadata,
            free_blocks,
            first_instance: reserved.start,
            ceiling: reserved.end,
            reserving: false,
            reserve_again: None,
            touching: false,
        })
    }

    /// The volumes at the start. Taken once.
    pub fn initial_volumes(&self) -> Vec<Volume> {
        self.volumes.clone()
    }

    /// Where the store keeps its own metadata: no grant may reach it.
    pub fn metadata(&self) -> &[LbaRange] {
        &self.metadata
    }

    /// Blocks free for volumes.
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// The first instance reserved at the start.
    pub fn first_instance(&self) -> u32 {
        self.first_instance
    }

    /// All instances below this one are reserved.
    pub fn instance_ceiling(&self) -> u32 {
        self.ceiling
    }

    /// Becomes readable (edge-triggered) when a job has ended.
    pub fn done(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Hands over a job.
    pub fn submit(&mut self, job: Job) {
        self.send(Message::Job(job));
    }

    /// Has more instances reserved, unless that is under way.
    pub fn reserve_instances(&mut self, count: u32) {
        if self.reserve_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if !std::mem::replace(&mut self.reserving, true) {
            self.send(Message::ReserveInstances(count));
        }
    }

    /// Has the store use its device queue once, unless that is under way: a controller reset waits for every queue.
    pub fn touch(&mut self) {
        if !std::mem::replace(&mut self.touching, true) {
            self.send(Message::Touch);
        }
    }

    /// What came of the oldest job that has ended since the last call.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        loop {
            match self.reports.try_recv().ok()? {
                Report::Job(outcome, free_blocks) => {
                    self.free_blocks = free_blocks;
                    return Some(outcome);
                }
                Report::Touched => self.touching = false,
                Report::Instances(Ok(ceiling)) => {
                    self.reserving = false;
                    self.ceiling = ceiling;
                }
                Report::Instances(Err(error)) => {
                    self.reserving = false;
                    self.reserve_again = Some(Instant::now() + RESERVE_PAUSE);
                    tracing::error!(%error, "no more key instances could be reserved");
                }
            }
        }
    }

    fn send(&self, message: Message) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(message); // The thread ends only when this sender is dropped.
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn execute(store: &mut Store, job: Job) -> Outcome {
    match job {
        Job::Create { name, bytes, owner } => store.create(&name, bytes, owner).map(Some),
        Job::Grow { name, bytes } => store.grow(&name, bytes).map(Some),
        Job::Shrink { name, bytes } => store.shrink(&name, bytes).map(Some),
        Job::Rename { from, to } => store.rename(&from, &to).map(Some),
        Job::Delete { name } => store.delete(&name).map(|()| None),
        Job::SetAccess { name, subject, access } => store.set_access(&name, subject, access).map(Some),
    }
}
