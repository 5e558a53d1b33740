//! Split virtqueues from the device's side (virtio 1.2, section 2.7).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering, fence};

use zerocopy::transmute;

use super::super::iommu::{Direction, Fault, Window};
use super::super::queue::spin;
use super::device::Function;
use super::interpose::{Fate, Using};
use crate::spec::virtio::block::RequestHeader;
use crate::spec::virtio::pci::NO_VECTOR;
use crate::spec::virtio::split::{DESCRIPTOR_LEN, Descriptor, available, descriptor, passes, used};

#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const LEN: u32 = DESCRIPTOR_LEN as u32;

/// Room for a queue.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct QueueSlot {
    /// Its entries: at most, then as the driver wants it.
    pub(super) size: AtomicU16,
    pub(super) vector: AtomicU16,
    /// Where the driver put descriptor table, available ring and used ring.
    pub(super) places: [AtomicU64; 3],
    enabled: AtomicBool,
    /// Requests fetched since the device was made.
    pub(super) requests: AtomicU64,
    pub(super) state: Mutex<Option<Virtqueue>>,
}

/// A buffer: where, how long.
pub(super) type Buffer = (u64, u32);

/// A chain that was fetched.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    head: u16,
    /// What the device reads, and what it writes, in order.
    pub(super) readable: Vec<Buffer>,
    pub(super) writable: Vec<Buffer>,
}

/// A queue that exists.
#[derive(Debug)]
pub(super) struct Virtqueue {
    id: u16,
    size: u16,
    places: [u64; 3],
    event_index: bool,
    /// Taken of the available ring.
    taken: u16,
    /// Written to the used ring, and what of it the host may have been interrupted for.
    used: u16,
    signalled: u16,
    /// The last event written.
    event: Option<u16>,
    /// Kept, so that nothing is allocated for a request.
    chain: Chain,
    /// Requests fetched and kept from running.
    pub(super) held: Vec<Chain>,
}

/// The host broke the rules, or the IOMMU stopped an access to its rings.
pub(super) struct Broken(pub(super) &'static str);

impl From<Fault> for Broken {
    fn from(_: Fault) -> Self {
        Self("a ring could not be reached")
    }
}

impl QueueSlot {
    pub(super) fn new(entries: u16) -> Self {
        Self {
            size: AtomicU16::new(entries),
            vector: AtomicU16::new(NO_VECTOR),
            places: Default::default(),
            enabled: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            state: Mutex::new(None),
        }
    }

    pub(super) fn exists(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Makes a queue of what was written; `false` if that makes none.
    pub(super) fn create(&self, id: u16, most: u16, event_index: bool) -> bool {
        let size = self.size.load(Ordering::SeqCst);
        let places = [0, 1, 2].map(|place| self.places[place].load(Ordering::SeqCst));
        let aligned = places.iter().zip([16u64, 2, 4]).all(|(place, align)| place % align == 0);
        if !size.is_power_of_two() || size > most || !aligned {
            return false;
        }
        let mut state = spin(&self.state);
        *state = Some(Virtqueue {
            id,
            size,
            places,
            event_index,
            taken: 0,
            used: 0,
            signalled: 0,
            event: None,
            chain: Chain::default(),
            held: Vec::new(),
        });
        self.enabled.store(true, Ordering::Release);
        true
    }

    /// Ends the queue; when this returns none of its requests runs.
    pub(super) fn delete(&self, most: u16) {
        let mut state = spin(&self.state);
        self.enabled.store(false, Ordering::Release);
        *state = None;
        self.size.store(most, Ordering::SeqCst);
        self.vector.store(NO_VECTOR, Ordering::SeqCst);
        self.places.iter().for_each(|place| place.store(0, Ordering::SeqCst));
    }
}

impl Virtqueue {
    /// A word of 16 bits that the driver wrote.
    fn driver_word(&self, window: &Window<'_>, at: usize) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        window.find(self.places[1] + at as u64, 2, Direction::FromHost)?.read(&mut bytes);
        Ok(u16::from_le_bytes(bytes))
    }

    fn write_device(&self, window: &Window<'_>, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        window.find(self.places[2] + at as u64, bytes.len(), Direction::ToHost)?.write(bytes);
        Ok(())
    }

    /// Says whether the host is to notify when it goes on. `awake`: no, the queue is looked at again soon.
    fn ask(&mut self, function: &Function, window: &Window<'_>, awake: bool) -> Result<(), Fault> {
        // The index before the one that was taken is not passed for long.
        let wanted = if awake { self.taken.wrapping_sub(1) } else { self.taken };
        if self.event_index {
            if self.event != Some(wanted) {
                let mut said = wanted;
                if let Some(interposer) = &function.shape.interposer {
                    interposer.event(self.id, &mut said);
                }
                self.write_device(window, used::avail_event(self.size), &said.to_le_bytes())?;
                self.event = Some(wanted);
            }
        } else if self.event != Some(awake.into()) {
            self.write_device(window, 0, &(if awake { used::NO_NOTIFY } else { 0 }).to_le_bytes())?;
            self.event = Some(awake.into());
        }
        // Before the index is looked at once more.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// The next chain that the host made available, taken apart.
    fn fetch(&mut self, window: &Window<'_>) -> Result<Option<Chain>, Broken> {
        let index = self.driver_word(window, 2)?;
        if index == self.taken {
            return Ok(None);
        }
        if index.wrapping_sub(self.taken) > self.size {
            return Err(Broken("the available index went too far"));
        }
        fence(Ordering::Acquire);
        let place = usize::from(self.taken & (self.size - 1)) * available::ENTRY;
        let head = self.driver_word(window, available::HEAD + place)?;
        self.taken = self.taken.wrapping_add(1);
        let mut chain = std::mem::take(&mut self.chain);
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        self.follow(window, head, &mut chain)?;
        Ok(Some(chain))
    }

    /// Follows the descriptors from `head`.
    fn follow(&self, window: &Window<'_>, head: u16, chain: &mut Chain) -> Result<(), Broken> {
        let mut table = (self.places[0], self.size);
        let mut index = head;
        let mut indirect = false;
        for _ in 0..=self.size {
            if index >= table.1 {
                return Err(Broken("a descriptor that does not exist"));
            }
            let at = table.0.checked_add(u64::from(index) * DESCRIPTOR_LEN as u64);
            let mut bytes = [0u8; DESCRIPTOR_LEN];
            let at = at.ok_or(Broken("a table at the end of the world"))?;
            window.find(at, DESCRIPTOR_LEN, Direction::FromHost)?.read(&mut bytes);
            let entry: Descriptor = transmute!(bytes);
            if entry.flags & descriptor::INDIRECT != 0 {
                let count = entry.len / LEN;
                let whole = entry.len.is_multiple_of(LEN) && entry.flags & descriptor::NEXT == 0;
                if indirect || !whole || count == 0 || count > self.size.into() {
                    return Err(Broken("an indirect table that makes none"));
                }
                (table, index, indirect) = ((entry.addr, u16::try_from(count).unwrap_or(0)), 0, true);
                continue;
            }
            if entry.flags & descriptor::WRITE != 0 {
                chain.writable.push((entry.addr, entry.len));
            } else if chain.writable.is_empty() {
                chain.readable.push((entry.addr, entry.len));
            } else {
                return Err(Broken("a buffer to be read behind one to be written"));
            }
            if entry.flags & descriptor::NEXT == 0 {
                return Ok(());
            }
            index = entry.next;
        }
        Err(Broken("a chain without an end"))
    }

    /// Writes a used entry as often as is asked for, and publishes it.
    fn post(&mut self, window: &Window<'_>, using: &Using) -> Result<(), Fault> {
        for _ in 0..using.copies {
            let at = used::HEAD + usize::from(self.used & (self.size - 1)) * used::ENTRY;
            let mut entry = [0; used::ENTRY];
            entry[..4].copy_from_slice(&using.id.to_le_bytes());
            entry[4..].copy_from_slice(&using.len.to_le_bytes());
            self.write_device(window, at, &entry)?;
            self.used = self.used.wrapping_add(1);
        }
        self.used = self.used.wrapping_add(using.jump);
        // The entry and the data are there before the index says so.
        fence(Ordering::Release);
        self.write_device(window, 2, &self.used.to_le_bytes())
    }

    /// Whether the host wants an interrupt for what was used since it was last asked.
    fn interrupts(&mut self, window: &Window<'_>) -> Result<bool, Fault> {
        let old = std::mem::replace(&mut self.signalled, self.used);
        if old == self.used {
            return Ok(false);
        }
        // A host that is about to sleep writes what it wants, and then looks at the index: one of the two sees the other.
        fence(Ordering::SeqCst);
        if self.event_index {
            let event = self.driver_word(window, available::used_event(self.size))?;
            Ok(passes(event, old, self.used))
        } else {
            Ok(self.driver_word(window, 0)? & available::NO_INTERRUPT == 0)
        }
    }
}

impl Function {
    /// Runs at most `budget` requests of a queue, on this thread; `awake` if it is looked at again soon, whether or not it
    /// is notified of. Says whether any ran.
    pub(super) fn serve(&self, queue: u16, budget: usize, awake: bool) -> bool {
        let Some(slot) = self.queues.get(usize::from(queue)) else { return false };
        let mut state = spin(&slot.state);
        let Some(virtqueue) = state.as_mut() else { return false };
        let window = self.iommu.window(queue.into());
        let mut ran = 0;
        let mut outcome = Ok(false);
        if self.is_running() {
            outcome = self.advance(slot, &window, virtqueue, (budget, awake), &mut ran);
        }
        drop(window);
        drop(state);
        self.settle(slot, &outcome);
        ran > 0
    }

    /// Interrupts if that is wanted; fails if something was broken.
    fn settle(&self, slot: &QueueSlot, outcome: &Result<bool, Broken>) {
        match outcome {
            Ok(true) => self.signal(slot),
            Ok(false) => {}
            Err(Broken(why)) => self.fail(why),
        }
    }

    /// Runs what is available. Says whether to interrupt.
    fn advance(
        &self,
        slot: &QueueSlot,
        window: &Window<'_>,
        virtqueue: &mut Virtqueue,
        (budget, awake): (usize, bool),
        ran: &mut usize,
    ) -> Result<bool, Broken> {
        loop {
            let before = *ran;
            virtqueue.ask(self, window, awake)?;
            while *ran < budget && self.is_running() {
                let Some(chain) = virtqueue.fetch(window)? else { break };
                *ran += 1;
                slot.requests.store(slot.requests.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                self.begin(window, virtqueue, chain)?;
            }
            // The host may have gone on before it could see that it is to notify.
            if *ran == before || *ran >= budget || !self.is_running() {
                break;
            }
        }
        Ok(virtqueue.interrupts(window)?)
    }

    /// Runs a request that was just fetched, unless something keeps it from running.
    fn begin(&self, window: &Window<'_>, virtqueue: &mut Virtqueue, chain: Chain) -> Result<(), Broken> {
        let fate = match &self.shape.interposer {
            None => Fate::Run,
            Some(interposer) => {
                let header = self.header(window, &chain).unwrap_or_default();
                interposer.before(virtqueue.id, &header)
            }
        };
        match fate {
            Fate::Run => self.run(window, virtqueue, &chain, None)?,
            Fate::Hold => {
                virtqueue.held.push(chain);
                return Ok(());
            }
            Fate::RunAndHold => {
                self.run(window, virtqueue, &chain, None)?;
                virtqueue.held.push(chain);
                return Ok(());
            }
            Fate::Fail(status) => self.run(window, virtqueue, &chain, Some(status))?,
        }
        virtqueue.chain = chain;
        Ok(())
    }

    fn header(&self, window: &Window<'_>, chain: &Chain) -> Option<RequestHeader> {
        super::request::header(window, chain)
    }

    /// Runs a request, or gives it the status that it is to have, and uses it.
    fn run(
        &self,
        window: &Window<'_>,
        virtqueue: &mut Virtqueue,
        chain: &Chain,
        fails: Option<u8>,
    ) -> Result<(), Broken> {
        let status = match fails {
            Some(status) => status,
            None => self.execute(window, chain)?,
        };
        let writable: u32 = chain.writable.iter().map(|(_, len)| *len).fold(0, u32::saturating_add);
        let mut using = Using {
            queue: virtqueue.id,
            kind: self.header(window, chain).map_or(0, |header| header.kind),
            id: chain.head.into(),
            len: writable,
            status: Some(status),
            copies: 1,
            jump: 0,
        };
        if let Some(interposer) = &self.shape.interposer {
            interposer.using(&mut using);
        }
        if let (Some(status), Some((at, len))) = (using.status, chain.writable.last()) {
            let last = len.checked_sub(1).and_then(|last| at.checked_add(last.into()));
            let last = last.ok_or(Broken("a request without room for its status"))?;
            window.find(last, 1, Direction::ToHost)?.write(&[status]);
        }
        Ok(virtqueue.post(window, &using)?)
    }

    /// Requests that are held.
    pub(super) fn held(&self) -> usize {
        self.queues.iter().map(|slot| spin(&slot.state).as_ref().map_or(0, |queue| queue.held.len())).sum()
    }

    /// Runs all held requests of a queue, on this thread. Returns how many.
    pub(super) fn release(&self, queue: u16) -> usize {
        let mut count = 0;
        while self.release_one(queue, 0) {
            count += 1;
        }
        count
    }

    /// Runs one held request of a queue, chosen by `pick`, on this thread. Says whether there was one.
    pub(super) fn release_one(&self, queue: u16, pick: usize) -> bool {
        let slot = &self.queues[usize::from(queue)];
        let mut state = spin(&slot.state);
        let Some(virtqueue) = state.as_mut().filter(|queue| !queue.held.is_empty()) else { return false };
        let window = self.iommu.window(queue.into());
        let chain = virtqueue.held.remove(pick % virtqueue.held.len());
        let outcome =
            self.run(&window, virtqueue, &chain, None).and_then(|()| Ok(virtqueue.interrupts(&window)?));
        drop(window);
        drop(state);
        self.settle(slot, &outcome);
        true
    }
}
