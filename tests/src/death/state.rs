//! Everything that an application's session can be in the middle of, by name, and how an application gets there.

use std::os::fd::AsFd;
use std::path::Path;

use portcullis::wire::control::Request;
use portcullis::wire::doorbell;
use portcullis::wire::frame::encode;
use portcullis::wire::layout::opcode::{CANCEL, FLUSH, READ, WRITE};
use portcullis::wire::layout::{STATE_READY, SubmissionEntry};
use portcullis::wire::socket::{Blocking, send};
use portcullis::wire::view::QueueMemory;
use portcullis::{Access, Status};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::flood;
use super::fork;
use super::raw::{Application, Memory, Wire, queue_memory};
use crate::process::{say, wait_for_go};
use crate::system::until;

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// See the module.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum State {
            $($(#[doc = $doc])+ $name,)+
        }

        impl State {
            /// Each once.
            pub(super) const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

states! {
    /// Connected; nothing said.
    Connected,
    /// The first half of a packet was sent as a packet.
    HalfPacket,
    /// Hello was said; nobody reads the answer.
    HelloSaid,
    /// Welcomed.
    Welcomed,
    /// A packet came with 253 descriptors, sockets with sockets in flight among them.
    DescriptorsFlooded,
    /// The socket is full of replies that nobody reads, and grants and regions were made whose replies wait.
    RepliesUnread,
    /// Another process inherited the socket and lives on.
    SocketInherited,
    /// O_NONBLOCK of the socket was cleared, and a request is on its way.
    SocketBlocking,
    /// A memfd was sent to be registered; nobody reads the answer.
    MemorySent,
    /// Memory is registered.
    MemoryRegistered,
    /// Another process inherited registered memory, and writes to it all the time.
    MemoryInherited,
    /// A volume is being made; nobody reads the answer.
    VolumeAsked,
    /// A volume was made.
    VolumeMade,
    /// A volume is being opened; nobody reads the answer.
    OpenAsked,
    /// A volume is open.
    VolumeOpen,
    /// A queue is being made; nobody takes its eventfd.
    QueueAsked,
    /// A queue was made.
    QueueMade,
    /// Its doorbell went beyond its end: it is in the error state.
    QueueFailed,
    /// Half of an entry is in its slot.
    EntryHalfWritten,
    /// Entries are written; the doorbell is as it was.
    WrittenNotRung,
    /// The doorbell was rung; the adapter, if it sleeps, was not woken.
    RungNotWoken,
    /// The doorbell was rung for more than there is room for in the completion queue: entries that the adapter cannot take.
    RungNotTaken,
    /// The completion queue is full of what nobody reads.
    CompletedNotRead,
    /// The counter of the eventfd is full.
    BellFull,
    /// The counter of the eventfd is full, and O_NONBLOCK of it was cleared: whoever wrote it would wait for ever.
    BellBlocking,
    /// Requests are at the device.
    InFlight,
    /// Many large requests are at the device, more than it takes at a time.
    ManyInFlight,
    /// A flush is at the device.
    Flushing,
    /// Requests are at the device and their cancellations on their way.
    Cancelling,
    /// Asleep on the futex, with requests at the device.
    AsleepInWait,
    /// Its grant is being changed by an administrator; requests wait for the change.
    HeldByGrow,
    /// The same, and the deadlines of the requests pass.
    HeldPastDeadline,
    /// It closes its grant, with requests at the device.
    Closing,
    /// An administrator took the rights away, with requests at the device.
    Revoked,
    /// An administrator deletes the volume, with requests at the device.
    VolumeDeleted,
    /// It releases memory that the device uses.
    ReleasingMemory,
    /// It destroys a queue with requests at the device.
    DestroyingQueue,
    /// It lets its own volume grow, with requests at the device.
    GrowingOwn,
    /// It makes its own volume smaller, with requests at the device.
    ShrinkingOwn,
    /// It deletes its own volume, with requests at the device.
    DeletingOwn,
    /// It asked for all of this at once and reads no answer.
    EverythingAsked,
}

/// What an administrator does when the application is in the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meanwhile {
    /// Nothing.
    Nothing,
    /// Lets the volume grow; the application goes on when the change has begun.
    Grow,
    /// Takes the right to write.
    Revoke,
    /// Deletes the volume.
    Delete,
}

impl State {
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| format!("{state:?}") == name)
    }

    /// Whether the device must keep requests for it.
    pub(super) fn at_device(self) -> bool {
        self as usize >= Self::InFlight as usize
    }

    pub(super) fn meanwhile(self) -> Meanwhile {
        match self {
            Self::HeldByGrow | Self::HeldPastDeadline => Meanwhile::Grow,
            Self::Revoked => Meanwhile::Revoke,
            Self::VolumeDeleted => Meanwhile::Delete,
            _ => Meanwhile::Nothing,
        }
    }
}

/// What an application in a state keeps; it is called when the application is told to go on.
type Kept = Box<dyn FnMut()>;

fn keep<T: 'static>(what: T) -> Kept {
    Box::new(move || {
        let _kept = &what;
    })
}

/// In a process of its own: brings itself to the state that is named, says so, and stays there.
pub(crate) fn play(socket: &Path, name: &str) {
    let state = State::named(name).expect("a state that exists");
    let mut kept = if (state as usize) < State::QueueMade as usize {
        enter_control(state, socket)
    } else if state.at_device() {
        enter_at_device(state, socket)
    } else {
        enter_queue(state, socket)
    };
    say(&format!("ready {state:?}"));
    loop {
        wait_for_go();
        kept();
        say(&format!("gone on {state:?}"));
    }
}

fn all() -> u8 {
    Access::ALL.bits()
}

fn name() -> String {
    "v".to_owned()
}

/// States of the socket, of memory and of grants.
fn enter_control(state: State, path: &Path) -> Kept {
    let memory = Memory::new(1 << 20);
    match state {
        State::Connected => return keep(Wire::dial(path).unwrap()),
        State::HelloSaid => {
            let mut wire = Wire::dial(path).unwrap();
            wire.say(&Wire::hello(), &[]);
            return keep(wire);
        }
        State::RepliesUnread => return keep(unread_replies(path)),
        _ => {}
    }
    let mut wire = Wire::open(path);
    match state {
        State::HalfPacket => {
            let whole = encode(9, &Request::CreateVolume { name: "x".repeat(40), bytes: 1 }).unwrap();
            send(&wire.socket, &whole[..whole.len() / 2], &[], Blocking::Wait).unwrap();
        }
        State::DescriptorsFlooded => flood::flood(&wire.socket),
        State::SocketInherited => {
            fork::heir(&|| {});
        }
        State::SocketBlocking => {
            let flags = fcntl_getfl(&wire.socket).unwrap();
            fcntl_setfl(&wire.socket, flags.difference(OFlags::NONBLOCK)).unwrap();
            wire.say(&Request::Statistics, &[]);
        }
        State::MemorySent => {
            wire.say(&memory.request(), &[memory.file.as_fd()]);
        }
        State::MemoryRegistered => {
            memory.register(&mut wire);
        }
        State::MemoryInherited => {
            memory.register(&mut wire);
            fork::heir(&|| {
                for word in 0..memory.shared.len() / 8 {
                    let word = memory.shared.atomic_u64(word * 8).unwrap();
                    word.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        State::VolumeAsked => {
            wire.say(&Request::CreateVolume { name: "made".to_owned(), bytes: 4 << 20 }, &[]);
        }
        State::VolumeMade => wire.create_volume("made", 4 << 20),
        State::OpenAsked => {
            wire.say(&Request::OpenVolume { name: name(), access: all() }, &[]);
        }
        State::VolumeOpen => {
            wire.open_volume("v", all());
        }
        State::QueueAsked => {
            let (end, file) = queue_memory(64);
            wire.say(&Request::CreateQueue { entries: 64 }, &[file.as_fd()]);
            return keep((wire, end, file));
        }
        _ => {}
    }
    keep((wire, memory))
}

/// Fills the socket with replies, then asks for more than fits. Another connection tells when the adapter has done all that
/// it does now.
fn unread_replies(path: &Path) -> impl Sized + use<> {
    let (mut deaf, mut other) = (Wire::open(path), Wire::open(path));
    let mut settle = || (0..2).for_each(|_| other.fence());
    until("the socket takes no more replies", || {
        let before = deaf.unread();
        deaf.say(&Request::Statistics, &[]);
        settle();
        deaf.unread() == before
    });
    let memory = Memory::new(1 << 20);
    deaf.say(&Request::OpenVolume { name: name(), access: all() }, &[]);
    deaf.say(&memory.request(), &[memory.file.as_fd()]);
    settle();
    (deaf, memory)
}

/// States of a queue that the device does not matter to.
fn enter_queue(state: State, path: &Path) -> Kept {
    let mut app = Application::new(path, "v", all(), 8);
    let block = app.grant.block_size;
    let read = app.request(READ, block);
    match state {
        State::QueueFailed => {
            app.ring.end.raw_tail_store(1000);
            app.ring.bell.ring().unwrap();
            until("the queue fails", || app.ring.end.state() != STATE_READY);
        }
        State::EntryHalfWritten => {
            let whole = app.request(WRITE, block);
            let words: [u64; 8] = [u64::from(whole.opcode), 1, whole.key, 0, 0, 0, 0, 0];
            for (i, word) in words.into_iter().enumerate().take(4) {
                app.ring.end.memory().sq_word(0, i).store(word, std::sync::atomic::Ordering::Relaxed);
            }
        }
        State::WrittenNotRung => app.ring.push(&read, 8),
        State::RungNotWoken => {
            app.ring.push(&read, 4);
            let _needs_waking = app.ring.end.ring();
        }
        State::RungNotTaken | State::CompletedNotRead => {
            app.ring.push(&read, 8);
            app.ring.ring();
            until("all are completed", || {
                let last = app.ring.end.memory().cq_word(7, 3);
                last.load(std::sync::atomic::Ordering::Acquire) >> 16 & 1 == 1
            });
            if state == State::RungNotTaken {
                (0..8).for_each(|slot| app.ring.end.raw_overwrite(slot, &read));
                app.ring.end.raw_tail_store(16);
                app.ring.bell.ring().unwrap();
            }
        }
        State::BellFull | State::BellBlocking => {
            if state == State::BellBlocking {
                let flags = fcntl_getfl(&app.ring.bell).unwrap();
                fcntl_setfl(&app.ring.bell, flags.difference(OFlags::NONBLOCK)).unwrap();
            }
            // The adapter may have been rung once before: no more than this fits then.
            rustix::io::write(&app.ring.bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            app.ring.push(&read, 4);
            let _needs_waking = app.ring.end.ring();
        }
        _ => {}
    }
    keep(app)
}

/// States with requests at the device, which keeps them.
fn enter_at_device(state: State, path: &Path) -> Kept {
    let entries = if state == State::ManyInFlight { 256 } else { 32 };
    let mut app = Application::new(path, "v", all(), entries);
    let (count, bytes) = if state == State::ManyInFlight { (256, 512 << 10) } else { (8, 64 << 10) };
    let (read, write) = (app.request(READ, bytes), app.request(WRITE, bytes));
    let (key, region, queue) = (app.grant.key, app.region, app.ring.number);
    if state == State::Flushing {
        app.ring.push(&app.request(FLUSH, 0), 1);
    } else {
        app.ring.push(&read, count / 2);
        app.ring.push(&write, count / 2);
    }
    app.ring.ring();
    let deadline_us = if state == State::HeldPastDeadline { 1000 } else { 0 };
    let held = SubmissionEntry { deadline_us, ..read };
    let asked = match state {
        State::Closing => vec![Request::Close { key }],
        State::ReleasingMemory => vec![Request::ReleaseMemory { region }],
        State::DestroyingQueue => vec![Request::DestroyQueue { queue }],
        State::GrowingOwn => vec![Request::ResizeVolume { name: name(), bytes: 6 << 20 }],
        State::ShrinkingOwn => vec![Request::ResizeVolume { name: name(), bytes: 1 << 20 }],
        State::DeletingOwn => vec![Request::DeleteVolume { name: name() }],
        State::EverythingAsked => vec![
            Request::Close { key },
            Request::ReleaseMemory { region },
            Request::DestroyQueue { queue },
            Request::ResizeVolume { name: name(), bytes: 6 << 20 },
            Request::DeleteVolume { name: name() },
        ],
        _ => Vec::new(),
    };
    // The rest comes when the device has the requests.
    let mut app = Some(app);
    Box::new(move || {
        let mut going = app.take().expect("it goes on once");
        for request in &asked {
            going.wire.say(request, &[]);
        }
        going.wire.fence();
        match state {
            State::Cancelling => cancel(&mut going),
            State::AsleepInWait => return fall_asleep(going),
            State::HeldByGrow | State::HeldPastDeadline => {
                going.ring.push(&held, 16);
                going.ring.ring();
                if deadline_us > 0 {
                    assert_eq!(Status(going.ring.wait().status), Status::E_DEADLINE);
                }
            }
            _ => {}
        }
        app = Some(going);
    })
}

fn cancel(app: &mut Application) {
    for target in 0..4 {
        let cancel = SubmissionEntry { opcode: CANCEL, offset: target, ..SubmissionEntry::default() };
        app.ring.push(&cancel, 1);
    }
    app.ring.ring();
}

/// Sleeps on the futex for a completion that does not come.
fn fall_asleep(app: Application) {
    assert!(app.ring.end.begin_wait(), "nothing has come");
    std::thread::spawn(move || {
        let _ = doorbell::wait(app.ring.end.memory().cq_wait(), 1, None);
        let _kept = app;
        loop {
            std::thread::park();
        }
    });
}
