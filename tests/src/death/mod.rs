//! Death at every step: applications that are killed or stopped in whatever they do, and adapters that are killed under them.
//! What the dead held is free again, to the last byte; the others did not notice.

mod counts;
pub(crate) mod files;
mod flood;
mod fork;
pub(crate) mod points;
pub(crate) mod random;
mod raw;
pub(crate) mod restart;
pub(crate) mod seams;
pub(crate) mod state;
mod states;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adapter::{Adapter, Options};
use portcullis::wire::control::Request;
use portcullis::{Access, Error, Queue, Session, Status, Volume};

use crate::scale;
use crate::system::{Case, PATIENCE, Rig, VOLUME, pattern};
use counts::Counts;
use raw::Wire;
use seams::Seams;

/// The cases for software devices only.
pub const SOFTWARE: &[Case] = restart::CASES;

/// The cases for any device.
pub fn all() -> Vec<Case> {
    [states::CASES, points::CASES, random::CASES, files::CASES, flood::CASES].concat()
}

/// Where random numbers begin: anywhere, if nobody says where.
pub(crate) fn seed() -> u64 {
    scale::seed(std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64))
}

/// An adapter, an administrator and somebody who just works.
struct Ground {
    seams: Arc<Seams>,
    admin: Session,
    bystander: Bystander,
    /// An administrator who does not wait for replies.
    operator: Wire,
    /// Sees from inside of the adapter that the control plane goes on.
    herald: Arc<Mutex<Wire>>,
    adapter: Adapter,
}

impl Ground {
    fn new(rig: &Rig) -> Self {
        // What is kept from the device on purpose is no reason to reset it.
        let options = Options { device_timeout: Duration::from_secs(600), ..rig.options() };
        let seams = Arc::new(Seams::default());
        let adapter = seams.adapter(&options, &rig.socket());
        let admin = Session::connect(adapter.socket()).unwrap();
        let bystander = Bystander::new(&adapter);
        let operator = Wire::open(adapter.socket());
        let herald = Arc::new(Mutex::new(Wire::open(adapter.socket())));
        Self { seams, admin, bystander, operator, herald, adapter }
    }

    fn count(&self) -> Counts {
        Counts::at_rest(&self.admin)
    }

    /// Returns when the control plane has done all that it can do now, the news of connections that ended among it.
    fn settle(&mut self) {
        (0..2).for_each(|_| self.operator.fence());
    }

    /// Keeps the requests for volume `v` from the device.
    fn hold_v(&self, flushes: bool) {
        let device = self.admin.device_info().unwrap();
        let (_, extents) = device.volumes.iter().find(|(name, _)| name == "v").expect("it was made");
        let [(first, blocks)] = extents[..] else { panic!("v is in pieces: {extents:?}") };
        self.seams.hold(first, blocks, flushes);
    }

    /// Deletes all volumes but the bystander's.
    fn delete_volumes(&self) {
        // Operations on volumes have their turns: this one comes after what the dead had begun.
        assert!(self.admin.delete_volume("nowhere").is_err());
        let names: Vec<String> = self.admin.volumes().map(|volume| volume.unwrap().name).collect();
        for name in names.iter().filter(|name| *name != Bystander::VOLUME) {
            match self.admin.delete_volume(name) {
                // What the dead asked for may still be done, and done first.
                Ok(_) | Err(Error::Refused { status: Status::E_NO_RESOURCE, .. }) => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }

    /// Asks for `request` and does not wait; gives what finds the reply.
    fn begin(&mut self, request: &Request) -> u32 {
        let id = self.operator.say(request, &[]);
        self.operator.fence();
        id
    }
}

/// Works on its own volume, and sees that it is its own.
struct Bystander {
    /// Always there, but at the end.
    own: Option<(Volume, Queue)>,
    round: u32,
    slowest: Duration,
    requests: u64,
}

impl Bystander {
    const VOLUME: &str = "bystander";
    const BYTES: usize = 16 << 10;

    fn new(adapter: &Adapter) -> Self {
        let session = Session::connect(adapter.socket()).unwrap();
        session.create_volume(Self::VOLUME, VOLUME).unwrap();
        let volume = session.open(Self::VOLUME, Access::READ_WRITE).unwrap();
        let mut queue = session.queue(8).unwrap();
        // Its bounce buffers are counted from the start.
        queue.write_at(&volume, 0, &[0; Self::BYTES]).unwrap();
        Self { own: Some((volume, queue)), round: 0, slowest: Duration::ZERO, requests: 0 }
    }

    /// Writes and reads back a few times.
    fn works(&mut self) {
        let (volume, queue) = self.own.as_mut().expect("it is there until the end");
        for _ in 0..4 {
            self.round += 1;
            let offset = u64::from(self.round) * 7919 % (VOLUME / Self::BYTES as u64) * Self::BYTES as u64;
            let written = pattern(self.round, Self::BYTES);
            let mut read = vec![0; written.len()];
            let begin = Instant::now();
            queue.write_at(volume, offset, &written).unwrap();
            queue.read_at(volume, offset, &mut read).unwrap();
            let time = begin.elapsed();
            assert!(read == written, "somebody else wrote to the bystander's blocks");
            assert!(time < PATIENCE, "the bystander waited for {time:?}");
            self.slowest = self.slowest.max(time);
            self.requests += 2;
        }
    }

    fn report(&self) {
        println!(
            "the bystander made {} requests meanwhile; the slowest two took {:?}",
            self.requests, self.slowest
        );
    }
}

impl Drop for Bystander {
    /// An adapter in which something broke may never answer; the case has failed then, and should say so.
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::mem::forget(self.own.take());
        }
    }
}
