//! The controller: its registers, and its way from reset to running and back (NVM Express Base 2.0c, sections 3.1
//! and 3.5).

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::Thread;

use super::admin::{Admin, EVENT_BAD_DOORBELL, EVENT_BAD_DOORBELL_VALUE};
use super::doorbell::Shadows;
use super::interpose::Interposer;
use super::iommu::Iommu;
use super::media::Media;
use super::queue::{CompletionSlot, SubmissionSlot, spin};
use crate::hal::Registers;
use crate::spec::nvme::{StatusField, offset};

/// Bytes of BAR 0.
const BAR: usize = 0x4000;
/// CAP.TO, in units of 500 ms.
const TIMEOUT: u64 = 4;
/// 1.4.0
pub(super) const VERSION: u32 = 0x0001_0400;

const CC_ENABLE: u32 = 1;
const CC_SHUTDOWN: u32 = 3 << 14;
const READY: u32 = 1;
const FATAL: u32 = 1 << 1;
const SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// Commands that a queue runs before the device's thread turns to the next one.
const TURN: usize = 32;

/// What does not change while the device exists.
pub(super) struct Shape {
    pub(super) media: Arc<dyn Media>,
    pub(super) interposer: Option<Arc<dyn Interposer>>,
    pub(super) serial: String,
    /// MDTS, and the same in bytes.
    pub(super) transfer_shift: u8,
    pub(super) max_transfer: usize,
    pub(super) shadow_doorbells: bool,
    /// I/O queue pairs.
    pub(super) queues: u16,
    /// Entries of a queue at most.
    pub(super) entries: u32,
}

/// The namespace as it is at the moment. It changes only while no command runs.
pub(super) struct Namespace {
    /// 0 while there is none.
    blocks: AtomicU64,
    block_shift: AtomicU8,
}

impl Namespace {
    pub(super) fn new(blocks: u64, block_shift: u8) -> Self {
        Self { blocks: AtomicU64::new(blocks), block_shift: AtomicU8::new(block_shift) }
    }

    /// Blocks, and the power of two that each has bytes; `None` if it is not there.
    #[inline]
    pub(super) fn get(&self) -> Option<(u64, u8)> {
        let blocks = self.blocks.load(Ordering::Relaxed);
        (blocks > 0).then(|| (blocks, self.block_shift.load(Ordering::Relaxed)))
    }
}

/// The registers of an [`Emulator`](super::Emulator), and the controller behind them.
pub struct Controller {
    pub(super) shape: Shape,
    pub(super) namespace: Namespace,
    pub(super) iommu: Arc<Iommu>,
    pub(super) submissions: Box<[SubmissionSlot]>,
    pub(super) completions: Box<[CompletionSlot]>,
    pub(super) shadows: Shadows,
    pub(super) admin: Mutex<Admin>,
    configuration: AtomicU32,
    status: AtomicU32,
    admin_sizes: AtomicU32,
    admin_submission: AtomicU64,
    admin_completion: AtomicU64,
    masked: AtomicU32,
    /// Vectors of which interrupts are wanted.
    armed: Box<[AtomicBool]>,
    powered: AtomicBool,
    running: AtomicBool,
    cache_on: AtomicBool,
    /// Held while the controller starts or stops.
    lifecycle: Mutex<()>,
    vectors: RwLock<Vec<OwnedFd>>,
    pub(super) worker: Worker,
}

/// How the device's thread, if it has one, hears of work.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) thread: std::sync::OnceLock<Thread>,
    pub(super) asleep: AtomicBool,
    pub(super) stop: AtomicBool,
    /// The configuration changed.
    settle: AtomicBool,
}

impl Worker {
    pub(super) fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Controller {
    pub(super) fn new(shape: Shape, namespace: Namespace) -> std::io::Result<Self> {
        let queues = usize::from(shape.queues) + 1;
        Ok(Self {
            // A gate per queue and one for completions that waited.
            iommu: Arc::new(Iommu::new(queues + 1)?),
            submissions: (0..queues).map(|_| SubmissionSlot::default()).collect(),
            completions: (0..queues).map(|_| CompletionSlot::default()).collect(),
            shadows: Shadows::default(),
            admin: Mutex::new(Admin::new(shape.queues)),
            configuration: AtomicU32::new(0),
            status: AtomicU32::new(0),
            admin_sizes: AtomicU32::new(0),
            admin_submission: AtomicU64::new(0),
            admin_completion: AtomicU64::new(0),
            masked: AtomicU32::new(0),
            armed: (0..queues).map(|_| AtomicBool::new(true)).collect(),
            powered: AtomicBool::new(true),
            running: AtomicBool::new(false),
            cache_on: AtomicBool::new(true),
            lifecycle: Mutex::new(()),
            vectors: RwLock::default(),
            worker: Worker::default(),
            namespace,
            shape,
        })
    }

    #[inline]
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn cache_enabled(&self) -> bool {
        self.cache_on.load(Ordering::Relaxed)
    }

    pub(super) fn enable_cache(&self, on: bool) {
        self.cache_on.store(on, Ordering::Relaxed);
    }

    /// The gate of [`Controller::resume`].
    pub(super) fn resume_gate(&self) -> usize {
        self.submissions.len()
    }

    /// CSTS.CFS: nothing works until a reset.
    pub(super) fn fail(&self, why: &str) {
        tracing::warn!(why, "the emulated controller failed");
        self.running.store(false, Ordering::SeqCst);
        self.status.fetch_or(FATAL, Ordering::SeqCst);
    }

    /// A doorbell of submission queue `queue` was rung, or it may go on.
    #[inline]
    pub(super) fn ring(&self, queue: u16) {
        if self.worker.thread.get().is_some() {
            // After the doorbell's sequentially consistent store, so that one of the two sees the other.
            if self.worker.asleep.load(Ordering::SeqCst) {
                self.worker.wake();
            }
        } else {
            self.serve(queue, usize::MAX, false);
        }
    }

    #[inline]
    fn doorbell(&self, at: usize, value: u32) {
        let index = (at - offset::DOORBELLS) / 4;
        let Ok(queue) = u16::try_from(index / 2) else {
            return;
        };
        if !self.is_running() {
            return;
        }
        if index.is_multiple_of(2) {
            match self
                .submissions
                .get(usize::from(queue))
                .map(|slot| (slot, slot.entries.load(Ordering::Acquire)))
            {
                None | Some((_, 0)) => self.raise_event(EVENT_BAD_DOORBELL),
                Some((_, entries)) if value >= entries => self.raise_event(EVENT_BAD_DOORBELL_VALUE),
                Some((slot, _)) => {
                    // Otherwise the shadow is what counts, and nobody but who runs the queue writes down the tail.
                    if self.shadows.tail(queue).is_none() {
                        slot.tail.store(value, Ordering::SeqCst);
                    }
                    self.ring(queue);
                }
            }
        } else {
            match self
                .completions
                .get(usize::from(queue))
                .map(|slot| (slot, slot.entries.load(Ordering::Acquire)))
            {
                None | Some((_, 0)) => self.raise_event(EVENT_BAD_DOORBELL),
                Some((_, entries)) if value >= entries => self.raise_event(EVENT_BAD_DOORBELL_VALUE),
                Some((slot, _)) => {
                    slot.head.store(value, Ordering::SeqCst);
                    if slot.stalled.load(Ordering::SeqCst) {
                        self.resume(queue);
                    }
                }
            }
        }
    }

    /// Raises the interrupt of a completion queue if it has one that is wanted, routed and not masked.
    #[inline]
    pub(super) fn interrupt(&self, completion: u16) {
        let Some(vector) = self.completions[usize::from(completion)].interrupt() else {
            return;
        };
        // Against a host on another thread that arms, looks and sleeps: it sees the completion, or this sees it armed.
        // Commands that run inside its own doorbell write need no fence.
        if self.worker.thread.get().is_some() {
            fence(Ordering::SeqCst);
        }
        self.raise(vector);
    }

    /// The same, from a thread that is not the host's.
    pub(super) fn interrupt_from_afar(&self, completion: u16) {
        fence(Ordering::SeqCst);
        self.interrupt(completion);
    }

    #[inline]
    fn raise(&self, vector: u32) {
        let wanted = self.armed.get(vector as usize).is_some_and(|armed| armed.load(Ordering::SeqCst));
        if wanted && !(vector < 32 && self.masked.load(Ordering::SeqCst) >> vector & 1 == 1) {
            self.signal(vector);
        }
    }

    fn signal(&self, vector: u32) {
        let vectors = self.vectors.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = vectors.get(vector as usize) {
            // It can only fail when the counter is full, and then the reader has enough to see.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// INTMC: what was posted while a vector was masked raises it now.
    fn unmask(&self, bits: u32) {
        self.masked.fetch_and(!bits, Ordering::SeqCst);
        for slot in &self.completions {
            if let Some(vector) = slot.interrupt()
                && vector < 32
                && bits >> vector & 1 == 1
                && slot.waiting()
            {
                self.raise(vector);
            }
        }
    }

    pub(super) fn route(&self, fds: Vec<OwnedFd>) {
        *self.vectors.write().unwrap_or_else(PoisonError::into_inner) = fds;
    }

    fn configure(&self, value: u32) {
        self.configuration.store(value, Ordering::SeqCst);
        if self.worker.thread.get().is_some() {
            self.worker.settle.store(true, Ordering::SeqCst);
            self.worker.wake();
        } else {
            self.settle();
        }
    }

    /// Follows CC: starts, stops or shuts down.
    fn settle(&self) {
        let _turn = spin(&self.lifecycle);
        let configuration = self.configuration.load(Ordering::SeqCst);
        let status = self.status.load(Ordering::SeqCst);
        if configuration & CC_ENABLE == 0 {
            self.stop();
            self.status.store(status & SHUTDOWN_COMPLETE, Ordering::SeqCst);
        } else if status & (READY | FATAL) == 0 {
            self.start(configuration);
        }
        if configuration & CC_SHUTDOWN != 0 && status & SHUTDOWN_COMPLETE == 0 {
            // An error was logged; there is no other way to tell.
            let _ = self.shape.media.flush();
            self.status.fetch_or(SHUTDOWN_COMPLETE, Ordering::SeqCst);
        }
    }

    fn start(&self, configuration: u32) {
        // CSS and MPS and AMS must be 0: only the NVM command set, pages of 4096 bytes and round robin are offered.
        let unsupported =
            configuration >> 4 & 0x7 != 0 || configuration >> 7 & 0xf != 0 || configuration >> 11 & 7 != 0;
        let sizes = self.admin_sizes.load(Ordering::SeqCst);
        let (submission, completion) = ((sizes & 0xfff) + 1, (sizes >> 16 & 0xfff) + 1);
        if unsupported || submission < 2 || completion < 2 {
            return self.fail("it was enabled with what it does not have");
        }
        *spin(&self.admin) = Admin::new(self.shape.queues);
        self.cache_on.store(true, Ordering::Relaxed);
        self.masked.store(0, Ordering::SeqCst);
        // Bits 11:0 of the bases are reserved.
        let base = |register: &AtomicU64| register.load(Ordering::SeqCst) & !0xfff;
        self.completions[0].create(base(&self.admin_completion), completion, Some(0));
        self.submissions[0].create(0, base(&self.admin_submission), submission, 0);
        self.running.store(true, Ordering::SeqCst);
        self.status.store(READY, Ordering::SeqCst);
    }

    /// Ends all queues. When this returns no command runs and none will; held ones are gone.
    fn stop(&self) {
        self.running.store(false, Ordering::SeqCst);
        self.shadows.forget();
        self.submissions.iter().for_each(SubmissionSlot::delete);
        self.completions.iter().for_each(CompletionSlot::delete);
    }

    /// Function level reset: as after power on, bus mastering off.
    pub(super) fn reset(&self) {
        let _turn = spin(&self.lifecycle);
        self.iommu.set_bus_master(false);
        self.stop();
        for register in [&self.configuration, &self.status, &self.admin_sizes, &self.masked] {
            register.store(0, Ordering::SeqCst);
        }
        self.admin_submission.store(0, Ordering::SeqCst);
        self.admin_completion.store(0, Ordering::SeqCst);
    }

    /// Power fails, or returns.
    pub(super) fn power(&self, on: bool) {
        self.powered.store(on, Ordering::SeqCst);
        self.reset();
    }

    /// The life of the device's thread, for media that block.
    pub(super) fn work(&self) {
        const SPINS: u32 = 2_000;
        let mut idle = 0;
        while !self.worker.stop.load(Ordering::SeqCst) {
            if self.turn(true) {
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.worker.asleep.store(true, Ordering::SeqCst);
                // Whoever rang before seeing that is seen now, and others ring from now on.
                if !self.turn(false) && !self.worker.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.worker.asleep.store(false, Ordering::SeqCst);
            }
        }
    }

    /// One round of all there is to do; `awake` if another follows at once. Says whether there was anything.
    fn turn(&self, awake: bool) -> bool {
        let mut busy = self.worker.settle.swap(false, Ordering::SeqCst);
        if busy {
            self.settle();
        }
        for (queue, slot) in (0u16..).zip(&self.submissions) {
            if slot.exists() {
                busy |= self.serve(queue, TURN, awake);
            }
        }
        busy
    }

    /// Whether CC has the entry sizes that there are: 64 and 16 bytes.
    pub(super) fn entry_sizes_fit(&self) -> bool {
        self.configuration.load(Ordering::SeqCst) >> 16 & 0xff == 0x46
    }

    fn capabilities(&self) -> u64 {
        let strides = 0u64; // DSTRD
        let queues_contiguous = 1u64 << 16;
        let nvm_command_set = 1u64 << 37;
        u64::from(self.shape.entries - 1)
            | queues_contiguous
            | TIMEOUT << 24
            | strides << 32
            | nvm_command_set
    }

    /// Invalid doorbells and the like, told to the host by an asynchronous event.
    fn raise_event(&self, event: u32) {
        spin(&self.admin).note_event(event);
        self.ring(0);
    }

    /// The namespace becomes another, or goes (`None`), between commands; with `announce` the host is told.
    pub(super) fn change_namespace(&self, to: Option<(u64, u8)>, announce: bool) {
        let commands: Vec<_> = self.submissions.iter().map(|slot| spin(&slot.state)).collect();
        let (blocks, block_shift) = to.unwrap_or((0, 9));
        self.namespace.block_shift.store(block_shift, Ordering::Relaxed);
        self.namespace.blocks.store(blocks, Ordering::Relaxed);
        drop(commands);
        if announce {
            let wanted = spin(&self.admin).note_changed_namespace();
            if wanted {
                self.ring(0);
            }
        }
    }

    pub(super) fn note_error(&self, queue: u16, command: u16, status: StatusField) {
        spin(&self.admin).note_error(queue, command, status);
    }
}

fn half(word: u64, high: bool) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "half of it is meant")]
    let half = (if high { word >> 32 } else { word }) as u32;
    half
}

fn set_half(word: &AtomicU64, high: bool, value: u32) {
    let old = word.load(Ordering::SeqCst);
    let value = u64::from(value);
    let new = if high { old & 0xffff_ffff | value << 32 } else { old & !0xffff_ffff | value };
    word.store(new, Ordering::SeqCst);
}

impl Registers for Controller {
    fn len(&self) -> usize {
        BAR
    }

    fn read32(&self, at: usize) -> u32 {
        assert!(at < BAR && at.is_multiple_of(4), "a register at {at:#x}");
        if !self.powered.load(Ordering::SeqCst) {
            return u32::MAX;
        }
        match at & !4 {
            offset::CAP => return half(self.capabilities(), at & 4 != 0),
            offset::ASQ => return half(self.admin_submission.load(Ordering::SeqCst), at & 4 != 0),
            offset::ACQ => return half(self.admin_completion.load(Ordering::SeqCst), at & 4 != 0),
            _ => {}
        }
        match at {
            offset::VS => VERSION,
            offset::INTMS | offset::INTMC => self.masked.load(Ordering::SeqCst),
            offset::CC => self.configuration.load(Ordering::SeqCst),
            offset::CSTS => self.status.load(Ordering::SeqCst),
            offset::AQA => self.admin_sizes.load(Ordering::SeqCst),
            _ => 0,
        }
    }

    fn read64(&self, at: usize) -> u64 {
        u64::from(self.read32(at)) | u64::from(self.read32(at + 4)) << 32
    }

    #[inline]
    fn write32(&self, at: usize, value: u32) {
        assert!(at < BAR && at.is_multiple_of(4), "a register at {at:#x}");
        if at >= offset::DOORBELLS {
            return self.doorbell(at, value);
        }
        if !self.powered.load(Ordering::SeqCst) {
            return;
        }
        match at {
            offset::INTMS => _ = self.masked.fetch_or(value, Ordering::SeqCst),
            offset::INTMC => self.unmask(value),
            offset::CC => self.configure(value),
            offset::AQA => self.admin_sizes.store(value, Ordering::SeqCst),
            _ => match at & !4 {
                offset::ASQ => set_half(&self.admin_submission, at & 4 != 0, value),
                offset::ACQ => set_half(&self.admin_completion, at & 4 != 0, value),
                _ => {}
            },
        }
    }

    fn arm_interrupt(&self, vector: u32, armed: bool) {
        if let Some(wanted) = self.armed.get(vector as usize) {
            wanted.store(armed, Ordering::SeqCst);
            // Before the host looks for completions once more.
            fence(Ordering::SeqCst);
        }
    }

    fn write64(&self, at: usize, value: u64) {
        self.write32(at, half(value, false));
        self.write32(at + 4, half(value, true));
    }
}
