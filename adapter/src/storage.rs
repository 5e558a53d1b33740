//! The store's thread: the control plane hands it jobs and looks later for what came of them.

mod contents;
mod ext4;
pub mod files;
mod once;

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use store::{Ledger, Limits, StoreError, Subject, Volume, VolumeId, Wish};
use tpt::{Access, LbaRange};

use crate::assembly::StartError;
use crate::poller::eventfd;
pub use contents::Contents;
use files::{FileJob, FileOutcome, FileSystems, Who};

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
    /// How much all who use a volume may do.
    SetLimits {
        /// The volume.
        name: String,
        /// The limits.
        limits: Limits,
    },
}

/// What came of a job: the volume as it is now, `None` after a delete.
pub type Outcome = Result<Option<Volume>, StoreError>;

enum Message {
    Job(Job, Option<Wish>),
    Files(VolumeId, Who, FileJob, Option<Wish>),
    ReserveInstances(u32),
    Touch,
    /// True if nothing that was done to files is still to be told.
    CloseFiles(bool),
}

enum Report {
    Job(Outcome, u64),
    /// With the volumes whose files are served.
    Files(VolumeId, FileOutcome, BTreeSet<VolumeId>),
    Instances(Result<u32, StoreError>),
    Touched,
    FilesClosed,
}

/// The next message. While there is none, blocks are zeroed that files may need later, and then nothing is left in the device's
/// cache: a device that goes away and returns has lost nothing of the store's but what was under way.
fn next(inbox: &Receiver<Message>, systems: &mut FileSystems, contents: &mut Contents) -> Option<Message> {
    loop {
        match inbox.try_recv() {
            Ok(message) => return Some(message),
            Err(TryRecvError::Empty) if systems.zero_some() => {}
            Err(_) => break,
        }
    }
    if let Err(error) = contents.flush_changes() {
        // Whoever needs the store next is told.
        tracing::warn!(%error, "flushing what the store has written");
    }
    inbox.recv().ok()
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
    /// Of the store: no other has it.
    uuid: u128,
    ledger: Ledger,
    /// How often an adapter has started over the store.
    life: u64,
    /// The one before ended in order.
    settled: bool,
    /// Of the device.
    blocks: u64,
    free_blocks: u64,
    outcomes: VecDeque<Outcome>,
    file_outcomes: VecDeque<(VolumeId, FileOutcome)>,
    serves: BTreeSet<VolumeId>,
    first_instance: u32,
    ceiling: u32,
    reserving: bool,
    /// After a failure, not before this.
    reserve_again: Option<Instant>,
    touching: bool,
}

impl Storage {
    /// Reserves `instances` key instances and starts the thread over what is on the device.
    pub fn start(mut contents: Contents, uri: &str, instances: u32) -> Result<Self, StartError> {
        let on_store = |source| StartError::Store { uri: uri.to_owned(), source };
        let os = |source| StartError::Os { what: "starting the store's thread", source };
        let volumes = contents.volumes().map_err(on_store)?;
        let (metadata, blocks) = (contents.metadata_extents(), contents.geometry().blocks);
        let ledger = contents.ledger();
        let (uuid, life, settled) = contents.begin_life().map_err(on_store)?;
        let reserved = contents.reserve_instances(instances).map_err(on_store)?;
        let (jobs, inbox) = channel::<Message>();
        let (outbox, reports) = channel::<Report>();
        let done = eventfd().map_err(os)?;
        let signal = done.try_clone().map_err(os)?;
        let free_blocks = contents.free_blocks();
        let thread = std::thread::Builder::new()
            .name("portcullis-store".into())
            .spawn(move || {
                let mut systems = FileSystems::default();
                let mut ended = false;
                while let Some(message) = next(&inbox, &mut systems, &mut contents) {
                    let report = match message {
                        Message::Job(job, wish) => {
                            systems.let_go(&contents, &job);
                            Report::Job(contents.execute(job, wish), contents.free_blocks())
                        }
                        Message::Files(volume, ..) if ended => {
                            Report::Files(volume, Err(files::ended()), systems.volumes())
                        }
                        Message::Files(volume, who, job, wish) => {
                            let outcome = systems.execute(&mut contents, volume, &who, (job, wish));
                            Report::Files(volume, outcome, systems.volumes())
                        }
                        Message::Touch => {
                            if let Err(error) = contents.touch() {
                                tracing::warn!(%error, "reading during a reset");
                            }
                            Report::Touched
                        }
                        Message::CloseFiles(all) => {
                            ended = true;
                            if systems.close()
                                && all
                                && let Err(error) = contents.settle()
                            {
                                tracing::error!(%error, "who comes next will not know that all of it is durable");
                            }
                            Report::FilesClosed
                        }
                        Message::ReserveInstances(count) => {
                            Report::Instances(contents.reserve_instances(count).map(|range| range.end))
                        }
                    };
                    if outbox.send(report).is_err() {
                        break;
                    }
                    let _ = rustix::io::write(&signal, &1u64.to_ne_bytes()); // Never full: never read, one a report.
                }
                let _ = systems.close(); // It says what fails.
            })
            .map_err(os)?;
        let started = Self {
            jobs: Some(jobs),
            reports,
            done,
            thread: Some(thread),
            volumes,
            metadata,
            uuid,
            ledger,
            life,
            settled,
            blocks,
            free_blocks,
            outcomes: VecDeque::new(),
            file_outcomes: VecDeque::new(),
            serves: BTreeSet::new(),
            first_instance: reserved.start,
            ceiling: reserved.end,
            reserving: false,
            reserve_again: None,
            touching: false,
        };
        started.volumes.iter().for_each(|volume| started.assert_outside_metadata(volume));
        Ok(started)
    }

    /// No volume may ever reach the store's own metadata, or beyond the device: asked of each before there can be a grant
    /// over it.
    pub fn assert_outside_metadata(&self, volume: &Volume) {
        for extent in &volume.extents {
            let inside = self.metadata.iter().any(|own| own.overlaps(*extent));
            assert!(
                !inside && extent.end().0 <= self.blocks,
                "volume {:?} reaches outside the data area",
                volume.name
            );
        }
    }

    /// What tells a volume from all others, also of other stores.
    pub fn identity_of(&self, volume: VolumeId) -> u128 {
        self.uuid ^ u128::from(volume.0)
    }

    /// How often an adapter has started over the store, this time included.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Whether all that was done to files in the life before is there.
    pub fn was_settled(&self) -> bool {
        self.settled
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

    /// Hands over a job, and the wish that it grants if it is to be done once.
    pub fn submit(&mut self, job: Job, wish: Option<Wish>) {
        self.send(Message::Job(job, wish));
    }

    /// What was granted before the start. Taken once.
    pub fn initial_ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    /// Hands over a job for the file system in a volume, and the wish that it grants if it is to be done once.
    pub fn submit_file(&mut self, volume: VolumeId, who: Who, job: FileJob, wish: Option<Wish>) {
        self.send(Message::Files(volume, who, job, wish));
    }

    /// Whether the files in a volume are served: then its blocks are its file system's.
    pub fn serves_files_of(&self, volume: VolumeId) -> bool {
        self.serves.contains(&volume)
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

    /// Syncs and closes all file systems: while the device still runs, as what is not durable then is lost. Waits for that, but
    /// not for ever. `all` says that the file systems have been told all that was done; it is kept that all of it is durable then.
    pub fn close_files(&mut self, patience: Duration, all: bool) {
        self.send(Message::CloseFiles(all));
        let end = Instant::now() + patience;
        // An error says that it took too long, or that the thread has ended.
        while let Ok(report) = self.reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Report::FilesClosed = report {
                return;
            }
            self.take(report);
        }
    }

    /// What came of the oldest job that has ended since the last call.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.receive();
        self.outcomes.pop_front()
    }

    /// The same of jobs for file systems.
    pub fn take_file_outcome(&mut self) -> Option<(VolumeId, FileOutcome)> {
        self.receive();
        self.file_outcomes.pop_front()
    }

    fn receive(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.take(report);
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Job(outcome, free_blocks) => {
                self.free_blocks = free_blocks;
                self.outcomes.push_back(outcome);
            }
            Report::Files(volume, outcome, serves) => {
                self.serves = serves;
                self.file_outcomes.push_back((volume, outcome));
            }
            Report::Touched => self.touching = false,
            // Late: nobody waits any more.
            Report::FilesClosed => {}
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use driver::disk::MemoryDisk;
    use store::{FormatOptions, Store};

    use super::*;

    #[test]
    fn a_volume_that_reaches_metadata_stops_everything() {
        let disk = MemoryDisk::new(12, 4096);
        let mut store = Store::format(Box::new(disk), FormatOptions::default()).unwrap();
        let good = store.create("v", 1 << 20, 0).unwrap();
        let storage = Storage::start(Contents::Store(store), "memory", 16).unwrap();
        storage.assert_outside_metadata(&good);
        let (first, end) = (good.extents[0].first.0, good.extents[0].end().0);
        let mut reaching = vec![(0, 1), (first - 1, 2), (4095, 1), (4095, 2), (end, 4096 - end), (4096, 1)];
        reaching.extend(storage.metadata().iter().map(|own| (own.first.0, own.count.0)));
        for (first, count) in reaching {
            let mut bad = good.clone();
            bad.extents.push(LbaRange::new(first, count).unwrap());
            let stopped = catch_unwind(AssertUnwindSafe(|| storage.assert_outside_metadata(&bad)));
            assert!(stopped.is_err(), "{count} blocks from {first}");
        }
    }
}
