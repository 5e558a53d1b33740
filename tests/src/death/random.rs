//! Many applications that do everything at once, killed at random.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use driver::dice::Dice;
use portcullis::{Access, Error, Memory, MemoryAccess, Queue, Request, Session, Subject, Volume};
use rustix::process::Signal;

use super::{Ground, seed};
use crate::process::{Actor, Role, say};
use crate::scale::{counted, often};
use crate::system::{Case, Rig};

pub(super) const CASES: &[Case] =
    &[Case { name: "s6_r15_applications_killed_at_random_leave_nothing", run: at_random }];

/// Alive at a time.
const ALIVE: usize = 4;

fn at_random(rig: &Rig) {
    let kills = if rig.is_software() { often(60, 1000) } else { often(8, 24) };
    let seed = seed();
    let mut ground = Ground::new(rig);
    let before = ground.count();
    let (left, alive) = (AtomicUsize::new(kills), AtomicUsize::new(ALIVE));
    let socket = ground.adapter.socket();
    let bystander = &mut ground.bystander;
    std::thread::scope(|scope| {
        for slot in 0..ALIVE {
            let (left, alive) = (&left, &alive);
            scope.spawn(move || {
                let mut dice = Dice(seed + slot as u64);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    one(socket, slot, &mut dice);
                }
                alive.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while alive.load(Ordering::Relaxed) > 0 {
            bystander.works();
        }
    });
    before.sessions_come_back(&ground.admin, "all those deaths");
    ground.delete_volumes();
    before.come_back(&ground.admin, "all those deaths");
    ground.bystander.report();
    counted(kills, "kills of an application");
}

fn one(socket: &Path, slot: usize, dice: &mut Dice) {
    let mut actor = Actor::start(Role::Busy, socket, &format!("{slot} {}", dice.number()));
    assert_eq!(actor.line(), "ready");
    // The time is what is random here; nothing waits for it to be enough.
    std::thread::sleep(Duration::from_micros(dice.below(20_000)));
    if dice.below(4) == 0 {
        actor.signal(Signal::STOP);
        std::thread::sleep(Duration::from_micros(dice.below(5_000)));
    }
    assert!(actor.is_alive(), "it was to be killed, and ended by itself");
    actor.kill();
}

/// In a process of its own: does everything until it is killed. `argument`: which of those alive it is, and a seed.
pub(crate) fn play(socket: &Path, argument: &str) {
    let (slot, seed) = argument.split_once(' ').expect("a slot and a seed");
    let mut busy = Busy::new(socket, slot, Dice(seed.parse().unwrap()));
    for round in 0u64.. {
        match busy.act() {
            // Limits, volumes that are there or not: all of it is met.
            Ok(()) | Err(Error::Refused { .. } | Error::Io(_) | Error::QueueFull | Error::QueueDown) => {}
            Err(error) => panic!("{error}"),
        }
        if round == 20 {
            say("ready");
        }
    }
}

struct Busy {
    socket: std::path::PathBuf,
    session: Session,
    slot: String,
    dice: Dice,
    volumes: VecDeque<Volume>,
    memory: VecDeque<Memory>,
    queues: VecDeque<Queue>,
}

impl Busy {
    fn new(socket: &Path, slot: &str, dice: Dice) -> Self {
        let session = Session::connect(socket).unwrap();
        Self {
            socket: socket.to_owned(),
            session,
            slot: slot.to_owned(),
            dice,
            volumes: VecDeque::new(),
            memory: VecDeque::new(),
            queues: VecDeque::new(),
        }
    }

    fn name(&mut self) -> String {
        format!("busy-{}-{}", self.slot, self.dice.below(2))
    }

    fn act(&mut self) -> Result<(), Error> {
        let name = self.name();
        let bytes = (1 + self.dice.below(16)) << 17;
        match self.dice.below(24) {
            0 | 1 => drop(self.session.create_volume(&name, bytes)?),
            2 => drop(self.session.delete_volume(&name)?),
            3 => drop(self.session.resize_volume(&name, bytes)?),
            4 => {
                let access = if self.dice.below(2) == 0 { Access::READ } else { Access::ALL };
                self.session.set_access(&name, Subject::User(4000), access)?;
            }
            5..8 => self.volumes.push_back(self.session.open(&name, Access::ALL)?),
            8 => drop(self.volumes.pop_front()),
            9 | 10 => {
                let memory = self.session.register(bytes as usize, MemoryAccess::Both)?;
                self.memory.push_back(memory);
            }
            11 => drop(self.memory.pop_front()),
            12 | 13 => {
                let entries = 2 << self.dice.below(7);
                self.queues.push_back(self.session.queue(entries)?);
            }
            14 => drop(self.queues.pop_front()),
            15 if self.dice.below(8) == 0 => {
                *self = Self::new(&self.socket, &self.slot, Dice(self.dice.number()));
            }
            _ => self.submit()?,
        }
        self.volumes.truncate(8);
        self.memory.truncate(8);
        self.queues.truncate(4);
        Ok(())
    }

    /// Requests on some queue, and perhaps what comes of them.
    fn submit(&mut self) -> Result<(), Error> {
        let Some(mut queue) = self.queues.pop_front() else { return Ok(()) };
        let done = self.submit_to(&mut queue);
        self.queues.push_back(queue);
        done
    }

    fn submit_to(&mut self, queue: &mut Queue) -> Result<(), Error> {
        let Some(volume) = self.volumes.front() else { return Ok(()) };
        if self.dice.below(4) == 0 {
            let mut data = vec![self.dice.number() as u8; 128 << 10];
            queue.write_at(volume, 0, &data)?;
            return queue.read_at(volume, 0, &mut data);
        }
        let Some(memory) = self.memory.pop_front() else { return Ok(()) };
        let length = 4096 << self.dice.below(5);
        for buffer in memory.buffers(length, 4096)? {
            let offset = self.dice.below(32) << 14;
            let request = match self.dice.below(5) {
                0 | 1 => Request::read(volume, offset, buffer),
                2 | 3 => Request::write(volume, offset, buffer),
                _ => Request::flush(volume),
            };
            if queue.prepare(request).is_err() {
                break;
            }
        }
        queue.ring()?;
        for _ in 0..self.dice.below(8) {
            if queue.wait(Duration::from_millis(1))?.is_none() {
                break;
            }
        }
        self.volumes.rotate_left(1);
        Ok(())
    }
}
