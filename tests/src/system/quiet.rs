//! What must wait for the I/O on a file: with none it is done at once, with some when that has ended, and if that outlasts the
//! timer it is refused and nothing has changed.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use adapter::{Adapter, Options};
use portcullis::wire::control::Request;
use portcullis::wire::layout::{SubmissionEntry, opcode};
use portcullis::{Error, File, Files, Memory, MemoryAccess, Session, Status, raw::RawQueue};

use super::files::{content, format};
use super::{Case, PATIENCE, Rig, pattern, until};
use crate::death::seams::Seams;

pub(super) const CASES: &[Case] = &[
    Case { name: "s6_r4_r5_r6_closing_a_file_waits_for_its_io_until_the_timer_ends", run: closing },
    Case { name: "s6_r7_cutting_a_file_waits_for_its_io_until_the_timer_ends", run: cutting },
];

/// Long enough to see that something waits; what should not wait is not held up by it.
const MOMENT: Duration = Duration::from_millis(100);

/// A file, and a read of it that the device does not get before it is told to.
struct Scene {
    seams: Arc<Seams>,
    files: Files,
    raw: RawQueue,
    entry: SubmissionEntry,
    session: Session,
    _memory: Memory,
    _adapter: Adapter,
}

impl Scene {
    fn new(rig: &Rig) -> Self {
        // What is kept from the device on purpose is no reason to reset it.
        let options = Options { device_timeout: Duration::from_secs(600), ..rig.options() };
        let seams = Arc::new(Seams::default());
        let adapter = seams.adapter(&options, &rig.socket());
        let session = Session::connect(adapter.socket()).unwrap();
        let files = format(&session);
        let raw = RawQueue::create(&session, 16).unwrap();
        let memory = session.register(64 << 10, MemoryAccess::Both).unwrap();
        let entry =
            SubmissionEntry { opcode: opcode::READ, region: memory.key(), ..SubmissionEntry::default() };
        Self { seams, files, raw, entry, session, _memory: memory, _adapter: adapter }
    }

    fn file(&mut self) -> File {
        let file = self.files.create("v:/a").unwrap();
        file.write_all_at(&pattern(1, 40_000), 0).unwrap();
        (self.entry.key, self.entry.length) = (file.key(), file.block_size());
        file
    }

    /// Begins a read, and returns when it is where the device would get it.
    fn hold_a_read(&mut self) {
        let device = self.session.device_info().unwrap();
        let (_, extents) = device.volumes.iter().find(|(name, _)| name == "v").expect("it was made");
        let [(first, blocks)] = extents[..] else { panic!("v is in pieces: {extents:?}") };
        self.seams.hold(first, blocks, false);
        self.raw.push(&self.entry).unwrap();
        self.raw.ring().unwrap();
        until("a read is on its way", || self.seams.kept() > 0);
    }

    fn read_ends(&mut self) {
        let done = self.raw.wait(PATIENCE).unwrap().expect("a completion in time");
        assert_eq!((Status(done.status), done.bytes), (Status::OK, self.entry.length));
    }

    fn read(&mut self) -> Status {
        self.raw.push(&self.entry).unwrap();
        self.raw.ring().unwrap();
        Status(self.raw.wait(PATIENCE).unwrap().expect("a completion in time").status)
    }
}

/// `work` waits until `release` was called, and then is done.
fn waits(work: impl FnOnce() -> Result<(), Error> + Send, release: impl FnOnce()) {
    std::thread::scope(|scope| {
        let (tell, done) = channel();
        scope.spawn(move || tell.send(work()).unwrap());
        assert!(
            matches!(done.recv_timeout(MOMENT), Err(RecvTimeoutError::Timeout)),
            "it did not wait for the read"
        );
        release();
        done.recv_timeout(PATIENCE).expect("it is done in time").unwrap();
    });
}

fn refused(work: impl FnOnce() -> Result<(), Error>) {
    let begin = Instant::now();
    assert_eq!(work().unwrap_err().status(), Some(Status::E_BUSY_TIMEOUT));
    assert!(begin.elapsed() < PATIENCE);
}

fn closing(rig: &Rig) {
    let mut scene = Scene::new(rig);
    let file = scene.file();
    assert_eq!(scene.read(), Status::OK);
    file.close().unwrap();
    assert_ne!(scene.read(), Status::OK, "it is closed");

    let file = scene.file();
    scene.hold_a_read();
    let seams = scene.seams.clone();
    waits(|| file.close(), || seams.let_go());
    scene.read_ends();
    assert_ne!(scene.read(), Status::OK, "it is closed");

    let file = scene.file();
    scene.hold_a_read();
    let close = Request::Close { key: file.key() };
    refused(|| scene.files.call(&close).map(drop));
    scene.seams.let_go();
    scene.read_ends();
    assert_eq!(scene.read(), Status::OK, "it is open, as if nobody had asked");
    assert!(content(&file) == pattern(1, 40_000));
    file.close().unwrap();
}

fn cutting(rig: &Rig) {
    let mut scene = Scene::new(rig);
    let file = scene.file();
    file.set_len(30_000).unwrap();
    assert!(content(&file) == pattern(1, 40_000)[..30_000]);

    scene.hold_a_read();
    let seams = scene.seams.clone();
    waits(|| file.set_len(20_000), || seams.let_go());
    scene.read_ends();
    assert!(content(&file) == pattern(1, 40_000)[..20_000]);

    scene.hold_a_read();
    refused(|| file.set_len(10_000));
    scene.seams.let_go();
    scene.read_ends();
    assert_eq!(scene.read(), Status::OK);
    assert!(content(&file) == pattern(1, 40_000)[..20_000], "it is as it was");
    file.set_len(10_000).unwrap();
    assert!(content(&file) == pattern(1, 40_000)[..10_000]);
}
