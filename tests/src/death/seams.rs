//! Test doubles at the seams between an adapter and its device: they stand before the real ones, say when a call begins and
//! ends, and can keep commands from the device. Product code knows nothing of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use adapter::device::{self, Opened, Use};
use adapter::{Adapter, Options};
use driver::block::{BlockQueue, Command, Completed, Geometry, Operation, QueueState, Segment, SubmitError};
use driver::disk::{Disk, DiskError};
use driver::hal::{DmaAccess, DmaError, Iova, Mapper, Mapping, PinnedMemory};

use crate::kept::{Kept, submit, with_queues};

/// A place that the adapter passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Point {
    /// The application's memory is sealed and filled, and about to be mapped for the device.
    BeforeMap,
    /// It is mapped; no table knows of it.
    AfterMap,
    /// No table knows of a region any more; it is about to be unmapped.
    BeforeUnmap,
    /// It is unmapped.
    AfterUnmap,
    /// The store is about to read, write, zero or flush.
    BeforeStore,
    /// It has.
    AfterStore,
    /// A request was granted; a command of it is about to be given to the device's queue.
    BeforeSubmit,
    /// The queue has it.
    AfterSubmit,
    /// The device is about to be told of what was submitted.
    BeforeCommit,
    /// It has been told.
    AfterCommit,
    /// A command has ended; its request still holds its grant.
    BeforeEnd,
    /// The engine has taken note of it.
    AfterEnd,
}

impl Point {
    pub(crate) const ALL: [Self; 12] = [
        Self::BeforeMap,
        Self::AfterMap,
        Self::BeforeUnmap,
        Self::AfterUnmap,
        Self::BeforeStore,
        Self::AfterStore,
        Self::BeforeSubmit,
        Self::AfterSubmit,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::BeforeEnd,
        Self::AfterEnd,
    ];
}

type Hook = Box<dyn FnOnce() + Send>;

/// What happens at the n-th passage from now of a point.
struct Trap {
    point: Point,
    left: usize,
    hook: Hook,
}

/// Blocks whose commands are kept from the device.
#[derive(Default)]
struct Gate {
    closed: AtomicBool,
    first: AtomicU64,
    end: AtomicU64,
    /// Flushes too, whosever they are.
    flushes: AtomicBool,
    kept: AtomicUsize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Seams {
    trap: Mutex<Option<Trap>>,
    armed: AtomicBool,
    gate: Gate,
}

impl Seams {
    /// Runs `hook` inside of the adapter, on its own thread, when it passes `point` for the `n`-th time from now (from 1).
    pub(crate) fn arm(&self, point: Point, n: usize, hook: impl FnOnce() + Send + 'static) {
        *self.trap() = Some(Trap { point, left: n, hook: Box::new(hook) });
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Whether the hook is still to come; it is not any more.
    pub(crate) fn disarm(&self) -> bool {
        self.armed.store(false, Ordering::SeqCst);
        self.trap().take().is_some()
    }

    fn trap(&self) -> std::sync::MutexGuard<'_, Option<Trap>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self, point: Point) {
        if !self.armed.load(Ordering::Relaxed) {
            return;
        }
        let mut trap = self.trap();
        let here = trap.as_mut().is_some_and(|trap| {
            trap.left -= usize::from(trap.point == point);
            trap.left == 0
        });
        let sprung = if here { trap.take() } else { None };
        drop(trap);
        if let Some(trap) = sprung {
            (trap.hook)();
        }
    }

    /// Keeps commands for these blocks from the device, and flushes too if `flushes`.
    pub(crate) fn hold(&self, first: u64, blocks: u64, flushes: bool) {
        self.gate.first.store(first, Ordering::SeqCst);
        self.gate.end.store(first + blocks, Ordering::SeqCst);
        self.gate.flushes.store(flushes, Ordering::SeqCst);
        self.gate.closed.store(true, Ordering::SeqCst);
    }

    /// Lets the device have them.
    pub(crate) fn let_go(&self) {
        self.gate.closed.store(false, Ordering::SeqCst);
    }

    /// Commands that are kept.
    pub(crate) fn kept(&self) -> usize {
        self.gate.kept.load(Ordering::SeqCst)
    }

    /// An adapter as `options` say, with these seams.
    pub(crate) fn adapter(self: &Arc<Self>, options: &Options, socket: &Path) -> Adapter {
        let uri = &options.device;
        let pollers = options.pollers;
        struct Dressed<'a>(&'a Arc<Seams>, &'a Options, &'a Path);
        impl Use for Dressed<'_> {
            type Output = Adapter;

            fn with<Q: BlockQueue + 'static>(self, opened: Opened<Q>) -> Adapter {
                Adapter::start_on(self.0.dress(opened), self.1, self.2).expect("the adapter starts")
            }
        }
        device::open(uri, pollers, Dressed(self, options, socket)).expect("the device opens")
    }

    fn dress<Q: BlockQueue>(self: &Arc<Self>, opened: Opened<Q>) -> Opened<SeamQueue<Q>> {
        let seams = || self.clone();
        let dressed =
            with_queues(opened, |under| SeamQueue { under, kept: Vec::new(), fresh: false, seams: seams() });
        Opened {
            mapper: Arc::new(SeamMapper { under: dressed.mapper, seams: seams() }),
            disk: Box::new(SeamDisk { under: dressed.disk, seams: seams() }),
            ..dressed
        }
    }
}

struct SeamMapper {
    under: Arc<dyn Mapper>,
    seams: Arc<Seams>,
}

impl Mapper for SeamMapper {
    fn map(&self, memory: Arc<dyn PinnedMemory>, access: DmaAccess) -> Result<Box<dyn Mapping>, DmaError> {
        self.seams.pass(Point::BeforeMap);
        let under = self.under.map(memory, access)?;
        self.seams.pass(Point::AfterMap);
        Ok(Box::new(SeamMapping { under: Some(under), seams: self.seams.clone() }))
    }

    fn mappings(&self) -> u64 {
        self.under.mappings()
    }

    fn mappings_left(&self) -> Option<u32> {
        self.under.mappings_left()
    }
}

struct SeamMapping {
    under: Option<Box<dyn Mapping>>,
    seams: Arc<Seams>,
}

impl Mapping for SeamMapping {
    fn iova(&self) -> Iova {
        self.under.as_ref().expect("it is there until it is dropped").iova()
    }

    fn len(&self) -> usize {
        self.under.as_ref().map_or(0, |under| under.len())
    }
}

impl Drop for SeamMapping {
    fn drop(&mut self) {
        self.seams.pass(Point::BeforeUnmap);
        drop(self.under.take());
        self.seams.pass(Point::AfterUnmap);
    }
}

struct SeamDisk {
    under: Box<dyn Disk>,
    seams: Arc<Seams>,
}

impl SeamDisk {
    fn around<R>(&mut self, call: impl FnOnce(&mut dyn Disk) -> R) -> R {
        self.seams.pass(Point::BeforeStore);
        let result = call(&mut self.under);
        self.seams.pass(Point::AfterStore);
        result
    }
}

impl Disk for SeamDisk {
    fn geometry(&self) -> &Geometry {
        self.under.geometry()
    }

    fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<(), DiskError> {
        self.around(|disk| disk.read(lba, data))
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), DiskError> {
        self.around(|disk| disk.write(lba, data))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.around(|disk| disk.flush())
    }

    fn write_zeroes(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.around(|disk| disk.write_zeroes(lba, blocks))
    }

    fn deallocate(&mut self, lba: u64, blocks: u64) -> Result<(), DiskError> {
        self.around(|disk| disk.deallocate(lba, blocks))
    }
}

struct SeamQueue<Q> {
    under: Q,
    /// As slow devices take their time.
    kept: Vec<Kept>,
    /// Something was submitted since the last commit.
    fresh: bool,
    seams: Arc<Seams>,
}

impl<Q: BlockQueue> SeamQueue<Q> {
    fn keeps(&self, command: &Command) -> bool {
        let gate = &self.seams.gate;
        if !gate.closed.load(Ordering::SeqCst) {
            return false;
        }
        match command.operation {
            Operation::Flush => gate.flushes.load(Ordering::SeqCst),
            _ => {
                let end = command.lba + u64::from(command.blocks);
                command.lba < gate.end.load(Ordering::SeqCst) && end > gate.first.load(Ordering::SeqCst)
            }
        }
    }

    fn take(&mut self, command: &Command, segments: Option<&[Segment]>) -> Result<(), SubmitError> {
        self.seams.pass(Point::BeforeSubmit);
        self.fresh = true;
        let result = if self.keeps(command) {
            self.kept.push(Kept::new(command, segments));
            self.seams.gate.kept.store(self.kept.len(), Ordering::SeqCst);
            Ok(())
        } else {
            submit(&mut self.under, command, segments)
        };
        self.seams.pass(Point::AfterSubmit);
        result
    }

    /// Gives the device what was kept from it.
    fn catch_up(&mut self) {
        let open = !self.seams.gate.closed.load(Ordering::SeqCst);
        while let Some(kept) = self.kept.last().filter(|_| open) {
            match kept.submit(&mut self.under) {
                Ok(()) => drop(self.kept.pop()),
                Err(SubmitError::Full) => break,
                Err(error) => panic!("a command was taken too late: {error}"),
            }
        }
        self.under.commit();
        self.seams.gate.kept.store(self.kept.len(), Ordering::SeqCst);
    }
}

impl<Q: BlockQueue> BlockQueue for SeamQueue<Q> {
    fn geometry(&self) -> &Geometry {
        self.under.geometry()
    }

    fn submit(&mut self, command: &Command) -> Result<(), SubmitError> {
        self.take(command, None)
    }

    fn submit_scattered(&mut self, command: &Command, segments: &[Segment]) -> Result<(), SubmitError> {
        self.take(command, Some(segments))
    }

    fn commit(&mut self) {
        if !std::mem::take(&mut self.fresh) {
            return self.under.commit();
        }
        self.seams.pass(Point::BeforeCommit);
        self.under.commit();
        self.seams.pass(Point::AfterCommit);
    }

    fn poll(&mut self, budget: usize, ended: &mut dyn FnMut(Completed)) -> usize {
        if !self.kept.is_empty() {
            self.catch_up();
        }
        let seams = &self.seams;
        self.under.poll(budget, &mut |completed| {
            seams.pass(Point::BeforeEnd);
            ended(completed);
            seams.pass(Point::AfterEnd);
        })
    }

    fn outstanding(&self) -> usize {
        self.under.outstanding() + self.kept.len()
    }

    fn state(&self) -> QueueState {
        self.under.state()
    }

    fn arm_interrupt(&mut self, armed: bool) {
        self.under.arm_interrupt(armed);
    }
}
