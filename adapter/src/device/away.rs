//! Who looks after a device that may go away and come back. While it is away requests end with E_PATH, what needs the
//! store waits, and a thread looks twice a second whether it is there again. What comes back must be what it was: kind,
//! serial number, shape, and the store that is on it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use driver::block::{BlockController, Geometry, Model};
use driver::disk::BlockingQueue;
use driver::dma::Pages;
use store::Store;
use wire::control::HealthInfo;

use super::returning::{Away, Returning, Seat};
use super::tended::{BOUNCE, Nurse, ReadHealth};
use super::{DeviceUri, Health, Identity, Losses, OpenError, Opened, Supervisor};

/// Between two looks whether the device is there.
const PACE: Duration = Duration::from_millis(500);
/// How long reading what is on a device that came back may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what a device has may take to end before it is let go: what it keeps longer ends when it stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A controller that was just opened.
pub(super) struct Connected<C> {
    /// It, running.
    controller: C,
    /// Becomes readable when the machine wants the device back, if it says so.
    wanted: Option<OwnedFd>,
}

/// Finds the device, each time anew; with it comes what becomes readable when the machine wants it back. The error says
/// what is in the way, also when it is just not there.
pub type Source<D> = Box<dyn Fn() -> Result<(D, Option<OwnedFd>), OpenError> + Send + Sync>;

/// Opens a controller, each time anew.
pub(super) type Connect<C> = Arc<dyn Fn() -> Result<Connected<C>, OpenError> + Send + Sync>;

/// Opens a controller over what `source` finds.
pub(super) fn connect<D: 'static, C, E: std::fmt::Display>(
    uri: &DeviceUri,
    source: Source<D>,
    open: impl Fn(D) -> Result<C, E> + Send + Sync + 'static,
) -> Connect<C> {
    let uri = uri.clone();
    Arc::new(move || {
        let (device, wanted) = source()?;
        let controller = open(device).map_err(|error| OpenError::new(&uri, &error))?;
        Ok(Connected { controller, wanted })
    })
}

/// What the device was when it was opened first.
#[derive(Clone)]
struct Known {
    model: Model,
    geometry: Geometry,
    store: Option<[u8; 16]>,
}

/// As [`super::tended::open`], of a device that `again` opens, now and when it has come back.
pub(super) fn open<C: BlockController + 'static>(
    uri: &DeviceUri,
    again: Connect<C>,
    (pollers, mapper_pins): (u16, bool),
    read_health: ReadHealth<C>,
) -> Result<Opened<Returning<C::Queue>>, OpenError> {
    let failed = |e: &dyn std::fmt::Display| OpenError::new(uri, e);
    let Connected { mut controller, wanted } = again()?;
    let mapper = controller.mapper();
    let mut seats = Vec::new();
    let mut take = |away| {
        let taken = controller.take_queue();
        let (queue, interrupt) = taken.ok_or_else(|| failed(&"the controller has too few queues"))?;
        let queue = Returning::new(queue, interrupt.as_ref(), away).map_err(|e| failed(&e))?;
        seats.push(queue.seat());
        let bell = queue.seat().bell();
        Ok((queue, bell))
    };
    let (for_store, _) = take(Away::Down)?;
    let queues = (0..pollers).map(|_| take(Away::Gone)).collect::<Result<Vec<_>, OpenError>>()?;
    let bounce = Pages::new(BOUNCE).map_err(|e| failed(&e))?;
    let disk = BlockingQueue::new(for_store, &*mapper, Arc::new(bounce)).map_err(|e| failed(&e))?;
    let known = Known { model: controller.model(), geometry: *controller.geometry(), store: None };
    let Model { model, serial, firmware } = known.model.clone();
    let geometry = known.geometry;
    let place = Place::Here(Here::new(controller, wanted, read_health));
    let losses = Losses::default();
    let keeper = Keeper { uri: uri.clone(), place, seats, again, known, read_health, losses: losses.clone() };
    Ok(Opened {
        identity: Identity { model, serial, firmware },
        geometry,
        mapper,
        mapper_pins,
        queues,
        disk: Box::new(disk),
        supervisor: Box::new(keeper),
        losses,
    })
}

/// Where the device is.
enum Place<C: BlockController> {
    /// There, looked after.
    Here(Here<C>),
    /// Gone; threads still have queues of it, each until its next poll.
    Leaving(Vec<bool>),
    /// Gone; somebody waits for it.
    Away(Watcher<C>),
    /// Nobody looks any more.
    Closed,
}

/// A device that is there.
struct Here<C: BlockController> {
    nurse: Nurse<C>,
    /// See [`Connected`].
    wanted: Option<OwnedFd>,
    /// It is to be let go, then at the latest.
    until: Option<Instant>,
}

impl<C: BlockController> Here<C> {
    fn new(controller: C, wanted: Option<OwnedFd>, read_health: ReadHealth<C>) -> Self {
        Self { nurse: Nurse::new(controller, read_health), wanted, until: None }
    }

    /// Whether the machine has asked for the device since the last call.
    fn is_wanted(&self) -> bool {
        let mut count = [0; 8];
        self.wanted.as_ref().is_some_and(|wanted| rustix::io::read(wanted, &mut count) == Ok(count.len()))
    }
}

/// Looks whether the device is there again.
struct Watcher<C: BlockController> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Back<C>>>,
}

/// A device that came back, and its queues with their interrupts.
struct Back<C: BlockController> {
    controller: C,
    wanted: Option<OwnedFd>,
    queues: Vec<(C::Queue, Option<OwnedFd>)>,
}

struct Keeper<C: BlockController> {
    uri: DeviceUri,
    place: Place<C>,
    /// The store's first.
    seats: Vec<Arc<Seat<C::Queue>>>,
    again: Connect<C>,
    known: Known,
    read_health: ReadHealth<C>,
    losses: Losses,
}

impl<C: BlockController + 'static> Keeper<C> {
    fn look_after(&mut self, stuck: bool) -> Health {
        let Place::Here(here) = &mut self.place else { return Health::Gone };
        if here.is_wanted() && here.until.is_none() {
            tracing::warn!(device = %self.uri, "the machine wants the device back: it is let go");
            self.seats.iter().for_each(|seat| seat.set_wanted(true));
            here.until = Some(Instant::now() + DRAIN);
        }
        let late = |until| Instant::now() >= until;
        if here.until.is_some_and(|until| late(until) || self.seats.iter().all(|seat| seat.has_rested())) {
            here.until = None;
            if !here.nurse.let_go() {
                self.seats.iter().for_each(|seat| seat.set_wanted(false));
            }
        }
        let health = match here.nurse.tend(stuck) {
            Health::Gone => {
                tracing::warn!(device = %self.uri, "the device is gone; it is waited for");
                self.place = Place::Leaving(vec![false; self.seats.len()]);
                return Health::Resetting;
            }
            health => health,
        };
        // The threads learn that the device is to be let go, or came back, when they poll.
        let polls = here.until.is_some() || self.seats.iter().any(|seat| seat.is_empty());
        if polls { Health::Resetting } else { health }
    }

    /// Drops what threads have left of the device. When all have, it is looked for.
    fn clear(&mut self) -> Health {
        let Place::Leaving(left) = &mut self.place else { return Health::Gone };
        for (left, seat) in left.iter_mut().zip(&self.seats) {
            *left = *left || seat.take_left().is_some();
        }
        if !left.iter().all(|left| *left) {
            return Health::Resetting;
        }
        match self.watch() {
            Ok(watcher) => self.place = Place::Away(watcher),
            Err(error) => {
                tracing::error!(%error, "nobody can wait for the device: it is gone for good");
                self.close();
            }
        }
        Health::Gone
    }

    fn watch(&self) -> std::io::Result<Watcher<C>> {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, again, known) = (Arc::clone(&stop), Arc::clone(&self.again), self.known.clone());
        let queues = self.seats.len();
        let name = "portcullis-away".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let mut last = String::new();
            while !until.load(Ordering::Acquire) {
                let why = match again().map_err(|e| e.to_string()).and_then(|now| known.again(now, queues)) {
                    Ok(back) => return Some(back),
                    Err(why) => why,
                };
                if why != last {
                    tracing::warn!("{why}; it is looked for again");
                    last = why;
                }
                std::thread::park_timeout(PACE);
            }
            None
        })?;
        Ok(Watcher { stop, thread })
    }

    /// Hands out the queues of a device that came back, if it did.
    fn welcome(&mut self) -> Health {
        match std::mem::replace(&mut self.place, Place::Closed) {
            Place::Away(watcher) if watcher.thread.is_finished() => {
                if let Ok(Some(back)) = watcher.thread.join()
                    && let Some(place) = self.seat(back)
                {
                    tracing::warn!(device = %self.uri, "the device is back");
                    self.place = place;
                    return Health::Resetting;
                }
                tracing::error!(device = %self.uri, "waiting for the device failed: it is gone for good");
                self.close();
            }
            other => self.place = other,
        }
        Health::Gone
    }

    fn seat(&self, back: Back<C>) -> Option<Place<C>> {
        if self.known.geometry.write_cache && !self.seats.iter().all(|seat| seat.was_flushed()) {
            self.losses.note();
        }
        for (seat, (queue, interrupt)) in self.seats.iter().zip(back.queues) {
            if let Err(error) = seat.offer(queue, interrupt.as_ref()) {
                tracing::error!(%error, "waiting for the interrupts of a device that came back");
                return None;
            }
        }
        Some(Place::Here(Here::new(back.controller, back.wanted, self.read_health)))
    }

    /// The device does not come back.
    fn close(&mut self) {
        self.seats.iter().for_each(|seat| seat.close());
        if let Place::Away(watcher) = std::mem::replace(&mut self.place, Place::Closed) {
            watcher.stop.store(true, Ordering::Release);
            watcher.thread.thread().unpark();
            // What it may just have found is shut down where it is dropped.
            drop(watcher.thread.join());
        }
    }
}

impl Known {
    /// Whether it is the same device; then its queues.
    fn again<C: BlockController>(&self, now: Connected<C>, queues: usize) -> Result<Back<C>, String> {
        let Connected { mut controller, wanted } = now;
        let (model, geometry) = (controller.model(), *controller.geometry());
        if model != self.model {
            let (new, old) = (model, &self.model);
            return Err(format!(
                "another device came in its place: {:?}, serial number {:?}, and not {:?}, serial number {:?}",
                new.model, new.serial, old.model, old.serial
            ));
        }
        if geometry != self.geometry {
            return Err(format!(
                "the device came back with another shape: {} blocks of {} bytes, which were {} of {}",
                geometry.blocks,
                geometry.block_size(),
                self.geometry.blocks,
                self.geometry.block_size()
            ));
        }
        let mapper = controller.mapper();
        let taken: Option<Vec<_>> = (0..queues).map(|_| controller.take_queue()).collect();
        let mut queues = taken.ok_or("the device came back with fewer queues")?;
        if let (Some(known), Some((queue, _))) = (self.store, queues.first_mut()) {
            let bounce = Pages::new(BOUNCE).map_err(|error| error.to_string())?;
            let disk =
                BlockingQueue::new(queue, &*mapper, Arc::new(bounce)).map_err(|error| error.to_string())?;
            let found = Store::uuid_on(&mut disk.with_patience(PATIENCE));
            let found = found.map_err(|error| format!("the device came back without its store: {error}"))?;
            if found != known {
                return Err("the device came back with another store on it".to_owned());
            }
        }
        Ok(Back { controller, wanted, queues })
    }
}

impl<C: BlockController + 'static> Supervisor for Keeper<C> {
    fn tend(&mut self, stuck: bool) -> Health {
        match &self.place {
            Place::Here(_) => self.look_after(stuck),
            Place::Leaving(_) => self.clear(),
            Place::Away(_) => self.welcome(),
            Place::Closed => Health::Gone,
        }
    }

    fn read_health(&mut self) -> Option<Result<HealthInfo, String>> {
        match &mut self.place {
            Place::Here(here) => here.nurse.read_health(),
            _ => Some(Err("it is away".to_owned())),
        }
    }

    fn recognise(&mut self, store: [u8; 16]) {
        self.known.store = Some(store);
    }

    fn shut_down(mut self: Box<Self>) {
        match std::mem::replace(&mut self.place, Place::Closed) {
            // Threads leave it knowing that nothing comes back.
            Place::Here(here) => {
                self.close();
                Box::new(here.nurse).shut_down();
            }
            other => {
                self.place = other;
                self.close();
            }
        }
    }
}

#[cfg(test)]
mod tests;
