//! How many messages the adapter gets for what is done to files, by the socket and by queues.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use adapter::{Embedded, Format, Options};
use portcullis::wire::control::{Reply, Request};
use portcullis::wire::socket::Credentials;
use portcullis::{
    AsyncFile, EmbeddedAdapter, File, Files, OpenOptions, Reactor, Session, Transport, TransportError,
};
use store::ext4::image::Image;

/// A transport that counts what it carries.
struct Counted(Box<dyn Transport>, Arc<AtomicU64>);

impl Transport for Counted {
    fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), TransportError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.call(request, descriptors)
    }

    fn embedded(&self) -> Option<Arc<dyn EmbeddedAdapter>> {
        self.0.embedded()
    }

    fn check_alive(&mut self) -> Result<(), TransportError> {
        self.0.check_alive()
    }
}

/// A session whose messages are counted: those by its transport here, those by its queues by the adapter.
struct Line {
    session: Session,
    admin: Session,
    by_transport: Arc<AtomicU64>,
}

impl Line {
    fn new(adapter: &Embedded) -> Self {
        let root = || Credentials { uid: 0, gid: 0, pid: 1, groups: Vec::new() };
        let by_transport = Arc::new(AtomicU64::new(0));
        let under = Box::new(adapter.transport_as(root()).unwrap());
        let session = Session::with_transport(Box::new(Counted(under, by_transport.clone()))).unwrap();
        Self { session, admin: adapter.session_as(root()).unwrap(), by_transport }
    }

    fn counts(&self) -> (u64, u64) {
        let all = self.admin.statistics().unwrap().sessions;
        let its = all.iter().find(|its| its.session == self.session.number()).unwrap();
        (self.by_transport.load(Ordering::Relaxed), its.completed)
    }

    /// What `work` returns, after this many messages by the transport and so many requests by queues.
    fn sees<T>(&self, (messages, requests): (u64, u64), what: &str, work: impl FnOnce() -> T) -> T {
        let before = self.counts();
        let done = work();
        let after = self.counts();
        assert_eq!((after.0 - before.0, after.1 - before.1), (messages, requests), "{what}");
        done
    }

    /// Opening costs one request by the queue and no message, however it is asked for; so does each read after that. What a way
    /// to files takes memory for, it does once.
    fn opens_with_one(&self, files: &Files, place: &str, content: &[u8]) {
        let reads = |file: &File| {
            let mut found = vec![0; 512];
            let part = &content[..content.len().min(512)];
            let bytes = self.sees((0, 1), "a read by key", || file.read_at(&mut found, 0).unwrap());
            assert_eq!(&found[..bytes], part, "{place}");
        };
        let options = OpenOptions::new().read(true);
        options.open(files, place).unwrap().read_at(&mut [0; 512], 0).unwrap();
        for options in [options, options.write(true)] {
            let file = self.sees((0, 1), place, || options.open(files, place).unwrap());
            reads(&file);
            // Another of what is open is another opening.
            let again = self.sees((0, 1), place, || files.open(place).unwrap());
            reads(&again);
            self.sees((0, 2), "both are closed", || drop((file, again)));
        }
        let reactor = Reactor::new(&self.session, 8).unwrap();
        let opened_and_closed = async { AsyncFile::open(&reactor, &options, place).await?.close().await };
        reactor.block_on(opened_and_closed).unwrap();
        let open = AsyncFile::open(&reactor, &options, place);
        let file = self.sees((0, 1), place, || reactor.block_on(open).unwrap());
        self.sees((0, 1), "it is closed", || reactor.block_on(file.close()).unwrap());
    }
}

#[test]
fn opening_a_file_of_ours_costs_one_management_round_trip() {
    let adapter = Embedded::open("emu:64M").unwrap();
    let line = Line::new(&adapter);
    line.session.create_volume("v", 48 << 20).unwrap();
    let files = line.session.files().unwrap();
    files.format("v", false).unwrap();
    let deep = (0..40).map(|depth| format!("/directory-{depth}")).collect::<String>();
    files.create_dir_all(format!("v:{deep}")).unwrap();
    let places = ["v:/a".to_owned(), format!("v:{deep}/b")];
    let content = [3; 4096];
    files.create("v:/warm").unwrap().write_all_at(&content, 0).unwrap();
    for place in &places {
        let make = OpenOptions::new().read(true).write(true).create_new(true).allocate(1 << 20);
        let file = line.sees((0, 1), "one that is made", || make.open(&files, place).unwrap());
        line.sees((0, 1), "a write by key", || file.write_all_at(&content, 0).unwrap());
        drop(file);
        line.opens_with_one(&files, place, &content);
    }
    // In more pieces than one reply tells of: nobody who reads it needs to know them.
    let [a, b] = ["v:/one", "v:/two"].map(|place| files.create(place).unwrap());
    for blocks in 1..=200 {
        [&a, &b].iter().for_each(|file| file.allocate(blocks * 4096).unwrap());
    }
    a.set_len(200 * 4096).unwrap();
    drop((a, b));
    line.opens_with_one(&files, "v:/one", &[0; 512]);
    let file = files.open("v:/one").unwrap();
    assert!(file.extensions().unwrap().len() > 100);
    let cut = OpenOptions::new().write(true).truncate(true);
    let emptied = line.sees((0, 1), "one that is emptied", || cut.open(&files, "v:/one").unwrap());
    assert_eq!(emptied.len().unwrap(), 0);
    // What cannot be opened costs no more.
    line.sees((0, 1), "there is none", || files.open("v:/none").unwrap_err());
}

#[test]
fn opening_a_file_of_an_ext4_costs_one_management_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    let deep: String = (0..20).map(|depth| format!("/d{depth}")).collect();
    fs::create_dir_all(format!("{}{deep}", folder.path().display())).unwrap();
    let content = [5; 70_000];
    fs::write(folder.path().join("a"), content).unwrap();
    fs::write(format!("{}{deep}/b", folder.path().display()), content).unwrap();
    std::os::unix::fs::symlink(format!("{}/b", &deep[1..]), folder.path().join("link")).unwrap();
    let from = folder.path().display().to_string();
    let image = Image::make(32 << 20, &["-d", &from, "-E", "root_owner=0:0"]).unwrap();
    let uri = format!("emu:{}", image.file().display());
    let options = Options { format: Format::AsFound, ..Options::new(uri.parse().unwrap()) };
    let adapter = Embedded::start(&options).unwrap();
    let line = Line::new(&adapter);
    let files = line.session.files().unwrap();
    for place in ["disk:/a", &format!("disk:{deep}/b"), "disk:/link"] {
        line.opens_with_one(&files, place, &content);
    }
    line.sees((0, 1), "there is none", || files.open("disk:/none").unwrap_err());
}
