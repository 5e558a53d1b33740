//! Applications that are killed with files open, among them files without a name, and with reads, writes, appends and management
//! requests under way: after each of them nothing is left, neither with the adapter nor in the file system.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use driver::dice::Dice;
use portcullis::wire::control::Request as Control;
use portcullis::wire::files::{Create, FilePath, OpenFile};
use portcullis::{
    Access, Buffer, Error, File, Files, MemoryAccess, OpenOptions, Queue, Request, Session, Status,
};
use rustix::process::Signal;

use super::{Ground, seed};
use crate::process::{Actor, Role, say};
use crate::scale::{counted, often};
use crate::system::{Case, PATIENCE, Rig};

pub(super) const CASES: &[Case] =
    &[Case { name: "s6_r15_applications_killed_with_files_open_leave_nothing", run: killed }];

/// The volume that has the files, and its bytes.
const VOLUME: &str = "files";
const BYTES: u64 = 20 << 20;
/// What its owner's files may have.
const QUOTA: u64 = 6 << 20;
/// Names that the dead-to-be use.
const NAMES: u64 = 6;
/// Bytes of a buffer: two messages fit.
const BUFFER: usize = 128 << 10;

fn killed(rig: &Rig) {
    let kills = if rig.is_software() { often(200, 1000) } else { often(6, 30) };
    let seed = seed();
    let mut dice = Dice(seed);
    let mut ground = Ground::new(rig);
    ground.admin.create_volume(VOLUME, BYTES).unwrap();
    let files = ground.admin.files().unwrap();
    files.format(VOLUME, false).unwrap();
    let owner = files.metadata(format!("{VOLUME}:/")).unwrap().owner;
    files.set_quota(VOLUME, owner, Some(QUOTA)).unwrap();
    let empty = files.space(VOLUME).unwrap();
    // The file system zeroes free blocks while nobody asks it for anything; of that nothing is counted.
    let before = ground.count();
    for kill in 0..kills {
        one(ground.adapter.socket(), &mut dice);
        ground.bystander.works();
        before.sessions_come_back(&ground.admin, &format!("death {kill}"));
        let named = all_is_accounted_for(&files, &format!("death {kill}"));
        if dice.chance(30) {
            for name in named {
                files.remove_file(format!("{VOLUME}:/{name}")).unwrap();
            }
            let space = files.space(VOLUME).unwrap();
            assert_eq!((space.free, space.files, space.own), (empty.free, empty.files, empty.own));
        }
    }
    ground.bystander.report();
    counted(kills, "kills of an application with files open");
}

/// No file is open any more, the check finds nothing, and what files and users have is the sum of what has a name: waits for that,
/// and gives the names.
fn all_is_accounted_for(files: &Files, after: &str) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    let report = loop {
        match files.check(VOLUME, false) {
            Ok(report) => break report,
            Err(Error::Refused { status: Status::E_BUSY_TIMEOUT, detail }) => {
                assert!(Instant::now() < end, "after {after}: {detail}");
            }
            Err(error) => panic!("after {after}: {error}"),
        }
    };
    assert_eq!((report.found, report.findings), (0, vec![]), "after {after}");
    loop {
        let (mut names, mut allocated) = (Vec::new(), 0);
        for entry in files.read_dir_with_attributes(format!("{VOLUME}:/")).unwrap() {
            let entry = entry.unwrap();
            allocated += entry.attributes.expect("they were asked for").allocated;
            names.push(String::from_utf8(entry.name.as_bytes().to_vec()).unwrap());
        }
        let space = files.space(VOLUME).unwrap();
        let has = (space.bytes - space.free, space.own, space.files);
        if has == (allocated, allocated, names.len() as u64 + 1) {
            return names;
        }
        // The file system hears last that a file is closed, and that one without a name is gone.
        assert!(Instant::now() < end, "after {after}: {space:?}, and {names:?} have {allocated} bytes");
        std::thread::yield_now();
    }
}

fn one(socket: &Path, dice: &mut Dice) {
    let mut actor = Actor::start(Role::BusyWithFiles, socket, &dice.number().to_string());
    assert_eq!(actor.line(), "ready");
    // The time is what is random here; nothing waits for it to be enough.
    std::thread::sleep(Duration::from_micros(dice.below(20_000)));
    if dice.chance(20) {
        actor.signal(Signal::STOP);
    }
    assert!(actor.is_alive(), "it was to be killed, and ended by itself");
    actor.kill();
}

/// In a process of its own: uses files until it is killed.
pub(crate) fn play(socket: &Path, seed: &str) {
    let session = Session::connect(socket).unwrap();
    let memory = session.register(12 * BUFFER, MemoryAccess::Both).unwrap();
    let mut busy = Busy {
        files: session.files().unwrap(),
        queue: session.queue(16).unwrap(),
        buffers: memory.buffers(BUFFER, 4096).unwrap(),
        open: VecDeque::new(),
        dice: Dice(seed.parse().unwrap()),
    };
    for round in 0u64.. {
        match busy.act() {
            // Names that are there or not, quotas, no more room: all of it is met.
            Ok(()) | Err(Error::Refused { .. } | Error::Io(_) | Error::QueueFull) => {}
            Err(error) => panic!("{error}"),
        }
        if round == 30 {
            say("ready");
        }
    }
}

struct Busy {
    files: Files,
    queue: Queue,
    buffers: Vec<Buffer>,
    open: VecDeque<File>,
    dice: Dice,
}

impl Busy {
    fn name(&mut self) -> String {
        format!("/{}", self.dice.below(NAMES))
    }

    fn place(&mut self) -> String {
        format!("{VOLUME}:{}", self.name())
    }

    fn act(&mut self) -> Result<(), Error> {
        let (place, other) = (self.place(), self.place());
        let bytes = self.dice.below(300_000);
        match self.dice.below(24) {
            0 | 1 => self.open.push_back(self.files.create(place)?),
            2 | 3 => {
                let how = OpenOptions::new().read(true).write(true).create(true);
                self.open.push_back(how.open(&self.files, place)?);
            }
            4 => self.open.push_back(self.files.open(place)?),
            5 => drop(self.open.pop_front()),
            6 | 7 => self.files.remove_file(place)?,
            8 => self.files.rename(place, other)?,
            9 => self.with_a_file(|file| file.set_len(bytes))?,
            10 => self.with_a_file(|file| file.allocate(bytes))?,
            11 => self.with_a_file(File::sync_all)?,
            12 => drop(self.with_a_file(|file| file.append(&vec![7; 5000]))),
            13..17 => self.manage()?,
            _ => self.submit()?,
        }
        self.open.rotate_left(usize::from(!self.open.is_empty()));
        self.open.truncate(10);
        Ok(())
    }

    fn with_a_file<T>(&self, work: impl FnOnce(&File) -> Result<T, Error>) -> Result<(), Error> {
        self.open.front().map_or(Ok(()), |file| work(file).map(drop))
    }

    /// Leaves management requests under way.
    fn manage(&mut self) -> Result<(), Error> {
        self.take_some()?;
        let key = self.open.front().map_or(0, File::key);
        let volume = VOLUME.to_owned();
        let [path, to] =
            [self.name(), self.name()].map(|name| FilePath::new(name.as_bytes()).expect("a path"));
        let bytes = self.dice.below(100_000);
        let request = match self.dice.below(8) {
            0 | 1 => Control::OpenFile(OpenFile {
                access: Access::READ_WRITE.bits(),
                create: Create::IfAbsent,
                truncate: self.dice.chance(30),
                allocate: bytes,
                mode: 0o600,
                ..OpenFile::reading(volume, path)
            }),
            2 => Control::UnlinkFile { volume, path },
            3 => Control::RenameFile { volume, from: path, to, replace: true },
            4 => Control::GrowFile { key, bytes, keep: self.dice.chance(30) },
            5 => Control::SetLength { key, bytes },
            6 => Control::Close { key },
            _ => Control::SyncFiles { volume },
        };
        let Some(buffer) = self.buffers.pop() else { return Ok(()) };
        self.prepare(Request::manage(&request, buffer)?)
    }

    /// Leaves reads, writes and appends under way.
    fn submit(&mut self) -> Result<(), Error> {
        self.take_some()?;
        for _ in 0..self.dice.below(6) {
            let Some(file) = self.open.front() else { return Ok(()) };
            let Some(buffer) = self.buffers.pop() else { return Ok(()) };
            let (blocks, at) = (1 + self.dice.below(8), self.dice.below(32));
            let size = u64::from(file.block_size());
            let request = match self.dice.below(5) {
                0 | 1 => Request::append(file, buffer).length(1 + self.dice.below(9000)),
                2 => Request::write_bytes(file, self.dice.below(60_000), buffer)
                    .length(1 + self.dice.below(9000)),
                3 => Request::write(file, at * size, buffer).length(blocks * size),
                _ => Request::read(file, at * size, buffer).length(blocks * size),
            };
            self.prepare(request)?;
        }
        Ok(())
    }

    fn prepare(&mut self, request: Request) -> Result<(), Error> {
        match self.queue.prepare(request) {
            Ok(_) => self.queue.ring(),
            Err(refused) => {
                self.buffers.extend(refused.request.into_buffer());
                Err(refused.error)
            }
        }
    }

    /// Takes what has ended, and leaves the rest under way.
    fn take_some(&mut self) -> Result<(), Error> {
        while let Some(done) = self.queue.poll()? {
            self.buffers.extend(done.buffer);
        }
        if self.buffers.is_empty()
            && let Some(done) = self.queue.wait(PATIENCE)?
        {
            self.buffers.extend(done.buffer);
        }
        Ok(())
    }
}
