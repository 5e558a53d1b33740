//! Files, against an adapter that keeps them in memory: what they do is what a file of the kernel does, and what a broken
//! adapter answers is an error.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod scripted;

use std::future::Future;
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::Poll;

use portcullis::{AsyncFile, Error, OpenOptions, Reactor, Request, Status};
use scripted::Line;
use wire::control::{Reply, Request as Control};
use wire::files::FileKind;
use wire::layout::opcode;

/// Numbers from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Small ones, ones around blocks and ones around what one request takes.
    fn length(&mut self) -> usize {
        let around = [1, 511, 512, 4096, 65_536, 131_072, 200_000][self.below(7) as usize];
        (around + self.below(5)).saturating_sub(self.below(5)) as usize
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.length();
        let first = self.below(256) as u8;
        (0..length).map(|at| first.wrapping_add((at / 7) as u8)).collect()
    }
}

fn read_write() -> OpenOptions {
    OpenOptions::new().read(true).write(true).create(true)
}

#[test]
fn a_file_does_what_a_file_of_the_kernel_does() {
    for seed in 0..8 {
        let line = Line::new();
        let files = line.files();
        let mut ours = read_write().open(&files, "v:/f").unwrap();
        let mut theirs = tempfile::tempfile().unwrap();
        let mut numbers = Numbers(seed);
        for step in 0..150 {
            let what = numbers.below(8);
            match what {
                0 | 1 => {
                    let (bytes, offset) = (numbers.bytes(), numbers.below(400_000));
                    ours.write_all_at(&bytes, offset).unwrap();
                    theirs.write_all_at(&bytes, offset).unwrap();
                }
                2 | 3 => {
                    let (length, offset) = (numbers.length(), numbers.below(500_000));
                    let (mut a, mut b) = (vec![1; length], vec![1; length]);
                    let read = ours.read_at(&mut a, offset).unwrap();
                    assert_eq!(read, theirs.read_at(&mut b, offset).unwrap(), "step {step} of seed {seed}");
                    assert!(a[..read] == b[..read], "step {step} of seed {seed}");
                }
                4 => {
                    let bytes = numbers.bytes();
                    let (first, second) = bytes.split_at(bytes.len() / 3);
                    let slices = [IoSlice::new(first), IoSlice::new(second)];
                    assert_eq!(ours.write_vectored(&slices).unwrap(), bytes.len());
                    theirs.write_all(&bytes).unwrap();
                }
                5 => {
                    let length = numbers.length();
                    let (mut a, mut b) = (vec![1; length], vec![1; length]);
                    let (first, second) = a.split_at_mut(length / 2);
                    let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
                    let read = ours.read_vectored(&mut slices).unwrap();
                    assert_eq!(read, theirs.read(&mut b).unwrap());
                    assert!(a[..read] == b[..read], "step {step} of seed {seed}");
                }
                6 => {
                    let to =
                        [SeekFrom::Start(numbers.below(300_000)), SeekFrom::End(-5), SeekFrom::Current(-3)];
                    let to = to[numbers.below(3) as usize];
                    assert_eq!(ours.seek(to).ok(), theirs.seek(to).ok(), "{to:?}");
                }
                _ => {
                    let length = numbers.below(400_000);
                    ours.set_len(length).unwrap();
                    theirs.set_len(length).unwrap();
                    assert_eq!(ours.len().unwrap(), length);
                }
            }
        }
        let mut all = Vec::new();
        theirs.rewind().unwrap();
        theirs.read_to_end(&mut all).unwrap();
        assert!(line.content("/f") == all, "seed {seed}");
        ours.rewind().unwrap();
        let mut back = Vec::new();
        ours.read_to_end(&mut back).unwrap();
        assert!(back == all);
        ours.close().unwrap();
    }
}

/// Opened once by its name; nothing after that, and nothing before, goes by the socket but what makes queue and memory.
#[test]
fn s6_r16_all_of_it_goes_by_the_queue() {
    let line = Line::new();
    let files = line.files();
    files.session().create_volume("v", 1 << 20).unwrap();
    files.create_dir_all("v:/a/b/c").unwrap();
    let mut file = files.create("v:/a/b/c/f").unwrap();
    file.write_all(b"hello").unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    file.set_len(3).unwrap();
    assert_eq!(file.extensions().unwrap().len(), 5, "one with the file, and the others by pages");
    assert_eq!(files.metadata("v:/a/b/c/f").unwrap().length, 3);
    files.rename("v:/a/b/c/f", "v:/g").unwrap();
    drop(file);
    files.remove_file("v:/g").unwrap();
    files.remove_dir("v:/a/b/c").unwrap();
    files.sync("v").unwrap();
    drop(files);
    let by_socket = line.with(|disk| disk.by_socket.clone());
    assert_eq!(by_socket, ["Hello", "CreateQueue", "RegisterMemory", "DestroyQueue", "ReleaseMemory"]);
    assert_eq!(line.asked("OpenFile"), 1);
}

#[test]
fn a_file_that_grows_asks_for_room_seldom_and_never_for_more_than_there_is_in_vain() {
    let line = Line::new();
    let files = line.files();
    let log = OpenOptions::new().append(true).create(true).open(&files, "v:/log").unwrap();
    for number in 0..3000u64 {
        assert_eq!(log.append(&[7; 1000]).unwrap(), number * 1000);
    }
    assert_eq!(log.len().unwrap(), 3_000_000);
    assert!(line.asked("GrowFile") <= 10, "{} times", line.asked("GrowFile"));
    // With little room left it gets exactly what it needs, and then no more.
    line.with(|disk| disk.most = 3_100_672);
    let file = files.create("v:/full").unwrap();
    file.write_all_at(&[1; 3_000_000], 0).unwrap();
    file.write_all_at(&[2; 100_000], 3_000_000).unwrap();
    let error = file.write_all_at(&[3; 1000], 3_100_000).unwrap_err();
    assert_eq!(error.status(), Some(Status::E_NO_RESOURCES));
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 3_100_000);
    let mut end = [0; 5];
    assert_eq!(file.read_at(&mut end, 3_099_998).unwrap(), 2, "and what was written stays");
    assert_eq!(end[..2], [2, 2]);
}

#[test]
fn an_append_of_two_openings_of_a_file_takes_room_that_the_other_made() {
    let line = Line::new();
    let files = line.files();
    let open = || OpenOptions::new().append(true).create(true).open(&files, "v:/log").unwrap();
    let (mut one, mut two) = (open(), open());
    for number in 0..400u32 {
        let file = if number % 2 == 0 { &mut one } else { &mut two };
        file.write_all(&[number as u8; 300]).unwrap();
    }
    let all = line.content("/log");
    assert!(all.chunks(300).enumerate().all(|(number, chunk)| chunk == [number as u8; 300]));
    assert_eq!(all.len(), 120_000);
    // More than lands at once lands in pieces.
    let at = one.append(&[9; 200_000]).unwrap();
    assert_eq!((at, one.len().unwrap()), (120_000, 320_000));
}

#[test]
fn options_that_do_not_go_together_are_refused_before_anything_is_asked() {
    let line = Line::new();
    let files = line.files();
    let new = OpenOptions::new;
    for options in [
        new(),
        new().create(true),
        new().read(true).create(true),
        new().read(true).truncate(true),
        new().append(true).truncate(true),
        new().read(true).create_new(true),
    ] {
        let error = options.open(&files, "v:/f").unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{options:?}: {error}");
    }
    assert!(matches!(read_write().open(&files, "v:/../f"), Err(Error::Argument(_))));
    assert_eq!(line.asked("OpenFile"), 0);
    read_write().create_new(true).open(&files, "v:/f").unwrap();
    let again = read_write().create_new(true).open(&files, "v:/f").unwrap_err();
    assert_eq!(std::io::Error::from(again).kind(), std::io::ErrorKind::AlreadyExists);
    let missing = files.open("v:/g").unwrap_err();
    assert_eq!(std::io::Error::from(missing).kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn a_directory_is_listed_by_pages() {
    let line = Line::new();
    let files = line.files();
    files.create_dir("v:/d").unwrap();
    for number in 0..20 {
        files.create(("v", format!("/d/{number:02}"))).unwrap();
    }
    files.create_dir("v:/d/inner").unwrap();
    let entries: Vec<_> = files.read_dir("v:/d").unwrap().map(|entry| entry.unwrap()).collect();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names.len(), 21);
    assert!(names.is_sorted() && names[20] == "inner");
    assert_eq!(entries[20].kind, FileKind::Directory);
    assert_eq!(files.read_dir("v:/empty").map(Iterator::count).unwrap_or(9), 0);
    assert_eq!(line.asked("ListDirectory"), 8);
}

#[test]
fn what_a_broken_adapter_answers_is_an_error_and_ends() {
    type Twist = fn(&Control, Reply) -> Reply;
    let spoil: [(&str, Twist); 7] = [
        ("rights that there are not", |_, reply| match reply {
            Reply::File(mut info) => {
                info.access = 0xf0;
                Reply::File(info)
            }
            other => other,
        }),
        ("blocks of no size", |_, reply| match reply {
            Reply::File(mut info) => {
                info.block_size = 0;
                Reply::File(info)
            }
            other => other,
        }),
        ("blocks that nothing can be written to", |_, reply| match reply {
            Reply::File(mut info) => {
                info.block_size = 1 << 20;
                Reply::File(info)
            }
            other => other,
        }),
        ("another answer", |_, _| Reply::Done),
        ("a room that does not grow", |request, reply| match (request, reply) {
            (Control::GrowFile { .. }, Reply::File(mut info)) => {
                info.room = 0;
                Reply::File(info)
            }
            (_, reply) => reply,
        }),
        ("extensions without an end", |request, reply| match request {
            Control::ListExtensions { .. } => Reply::Extensions { extensions: Vec::new(), more: true },
            _ => reply,
        }),
        ("a directory without an end", |request, reply| match (request, reply) {
            (Control::ListDirectory { from, .. }, Reply::Directory { entries, .. }) => {
                Reply::Directory { entries, next: Some(from.clone()) }
            }
            (_, reply) => reply,
        }),
    ];
    for (what, twist) in spoil {
        let line = Line::new();
        let files = line.files();
        line.with(|disk| disk.twist = Some(twist));
        let tried = read_write().open(&files, "v:/f").and_then(|file| {
            file.write_all_at(b"x", 1 << 20)?;
            file.extensions()?;
            files.read_dir("v:/")?.collect::<Result<Vec<_>, _>>()
        });
        assert!(matches!(tried, Err(Error::Protocol(_))), "{what}: {tried:?}");
    }
}

#[test]
fn more_bytes_than_a_request_has_are_not_believed() {
    let line = Line::new();
    let files = line.files();
    let file = files.create("v:/f").unwrap();
    file.write_all_at(&[5; 4096], 0).unwrap();
    file.append(&[5; 100]).unwrap(); // it has room behind its end now
    line.with(|disk| disk.lie = Some(|entry, done| done.bytes = entry.length + 1));
    assert!(matches!(file.read_at(&mut [0; 100], 0), Err(Error::Protocol(_))));
    assert!(matches!(file.write_all_at(&[0; 100], 0), Err(Error::Protocol(_))));
    assert!(matches!(file.append(&[0; 100]), Err(Error::Protocol(_))));
    line.with(|disk| {
        disk.lie = Some(|entry, done| done.bytes = if entry.opcode == opcode::MANAGE { u32::MAX } else { 3 });
    });
    assert!(file.len().is_err());
    assert!(matches!(file.write_all_at(&[0; 100], 0), Err(Error::Protocol(_))), "a write is whole");
    assert!(matches!(file.append(&[0; 100]), Err(Error::Protocol(_))));
    line.with(|disk| disk.lie = None);
    let mut back = [0; 10];
    assert_eq!(file.read_at(&mut back, 4090).unwrap(), 10, "and the queue goes on");
}

/// All of them, each polled when the whole is.
async fn all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Some(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in &mut futures {
            if let Some(it) = future
                && let Poll::Ready(ready) = it.as_mut().poll(context)
            {
                (*future, *output) = (None, Some(ready));
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().map(|(_, output)| output.unwrap()).collect()
}

#[test]
fn futures_do_what_calls_do_with_many_at_once() {
    let line = Line::new();
    let session = line.session();
    let reactor = Reactor::new(&session, 8).unwrap();
    reactor.block_on(async {
        let file = AsyncFile::open(&reactor, &read_write(), "v:/f").await.unwrap();
        // More than the queue has room for, and more than there are buffers.
        let pieces: Vec<Vec<u8>> = (0..40u8).map(|number| vec![number; 30_000]).collect();
        let write = |number: usize| {
            let (file, piece) = (&file, &pieces[number]);
            let boxed: Pin<Box<dyn Future<Output = Result<(), Error>>>> =
                Box::pin(async move { file.write_all_at(piece, number as u64 * 30_000).await });
            boxed
        };
        all((0..40).map(write).collect()).await.into_iter().for_each(|result| result.unwrap());
        assert!(line.content("/f") == pieces.concat());
        let mut back = vec![0; 2_000_000];
        assert_eq!(file.read_at(&mut back, 5).await.unwrap(), 1_199_995);
        assert!(back[..1_199_995] == pieces.concat()[5..]);
        assert_eq!(file.append(b"end").await.unwrap(), 1_200_000);
        assert!(matches!(file.append(&[0; 70_000]).await, Err(Error::Argument(_))));
        file.set_len(100).await.unwrap();
        file.sync_data().await.unwrap();
        assert_eq!(file.metadata().await.unwrap().length, 100);
        file.close().await.unwrap();
    });
    assert_eq!(reactor.in_flight(), 0);
}

#[test]
fn a_future_that_is_dropped_gives_its_buffer_back_when_its_request_has_ended() {
    let line = Line::new();
    let session = line.session();
    let reactor = Reactor::new(&session, 32).unwrap();
    reactor.block_on(async {
        let file = AsyncFile::open(&reactor, &read_write(), "v:/f").await.unwrap();
        file.write_all_at(&[1; 1000], 0).await.unwrap();
        for _ in 0..20 {
            let mut target = [0; 1000];
            let mut read = Box::pin(file.read_at(&mut target, 0));
            // Begun, and given up.
            std::future::poll_fn(|context| {
                assert!(read.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        let mut target = [0; 1000];
        assert_eq!(file.read_at(&mut target, 0).await.unwrap(), 1000);
    });
    while reactor.wait(std::time::Duration::from_secs(20)).unwrap() > 0 {}
    assert_eq!(reactor.in_flight(), 0);
    let registered = line.with(|disk| disk.by_socket.iter().filter(|it| *it == "RegisterMemory").count());
    assert_eq!(registered, 1, "the same memory all the time");
    assert_eq!(line.asked("Close"), 1, "the file was closed by the queue");
}

#[test]
fn futures_end_with_an_error_when_the_adapter_is_gone() {
    let line = Line::new();
    let session = line.session();
    let reactor = Reactor::new(&session, 4).unwrap();
    let file = reactor.block_on(AsyncFile::open(&reactor, &read_write(), "v:/f")).unwrap();
    reactor.block_on(file.write_all_at(&[1; 5000], 0)).unwrap();
    line.with(|disk| disk.dead = true);
    let mut target = vec![0; 1 << 20];
    let error = reactor.block_on(file.read_at(&mut target, 0)).unwrap_err();
    assert!(matches!(error, Error::QueueDown | Error::Transport(_)), "{error}");
    assert!(reactor.block_on(file.sync_all()).is_err());
}

#[test]
fn a_reactor_runs_in_an_executor_of_ones_own() {
    let line = Line::new();
    let session = line.session();
    let reactor = Reactor::new(&session, 4).unwrap();
    let show = Control::ShowVolume { name: "v".into() };
    let call = reactor.call(&show);
    let (mut call, mut drive) = (std::pin::pin!(call), std::pin::pin!(reactor.drive()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let reply = loop {
        if let Poll::Ready(reply) = call.as_mut().poll(&mut context) {
            break reply;
        }
        assert!(drive.as_mut().poll(&mut context).is_pending());
    };
    assert!(matches!(reply, Ok(Reply::Volume(_))));
}

#[test]
fn a_session_by_a_queue_does_the_same_as_by_the_socket() {
    let line = Line::new();
    let session = line.session();
    let managed = session.managed(4).unwrap();
    assert_eq!(managed.volume_info("v").unwrap(), session.volume_info("v").unwrap());
    assert_eq!(line.asked("ShowVolume"), 1);
    // What a queue does not carry is an error before anything is sent; a reply without room likewise.
    let hello = Control::Hello { min_version: 1, max_version: 2 };
    let mut queue = session.queue(4).unwrap();
    assert!(matches!(queue.call(&hello), Err(Error::Argument(_))));
    let small = session.buffer(100).unwrap();
    assert!(matches!(Request::manage(&Control::ShowDevice, small), Err(Error::Argument(_))));
    // As many calls as one likes: buffers of those that failed are not lost.
    for _ in 0..50 {
        assert!(queue.call(&hello).is_err());
        assert_eq!(queue.call(&Control::ShowDevice).unwrap_err().status(), Some(Status::E_OPCODE));
    }
}
