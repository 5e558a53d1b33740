//! A file of FUSE: its server decides when fstat, read or close of it return. The adapter must not wait for it.
#![cfg(not(loom))]
#![allow(unsafe_code)] // mount(2)
#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use wire::discard;
use wire::shm::{AdoptError, SealedMemory};

/// Nothing that is asked here takes long; a test that hangs ends in red.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opcodes of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;

/// struct fuse_attr, 88 bytes: only inode, size, mode and links.
fn attributes(inode: u64) -> Vec<u8> {
    let mode: u32 = if inode == 1 { 0o40755 } else { 0o100_666 };
    let mut bytes = [inode, 4096, 8, 0, 0, 0].map(u64::to_le_bytes).concat();
    bytes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
    bytes
}

/// What the server answers; `None` for nothing at all.
fn answer(opcode: u32, inode: u64) -> Option<Vec<u8>> {
    Some(match opcode {
        INIT => {
            let mut init = [7u32, 31, 0, 0, 0, 4096, 1].map(u32::to_le_bytes).concat();
            init.resize(64, 0);
            init
        }
        LOOKUP => [[2u64, 0, 0, 0, 0].map(u64::to_le_bytes).concat(), attributes(2)].concat(),
        GETATTR => [[0u64, 0].map(u64::to_le_bytes).concat(), attributes(inode)].concat(),
        OPEN => vec![0; 16],
        _ => return None,
    })
}

fn reply(device: &mut File, unique: u64, error: i32, body: &[u8]) {
    let length = u32::try_from(16 + body.len()).unwrap();
    let header = [&length.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
    device.write_all(&[&header, body].concat()).unwrap();
}

/// Serves until the file was opened; from then on answers nothing, but tells what it is asked, until it is let go.
fn serve(mut device: File, asked: &Sender<u32>, release: &Receiver<()>) {
    let mut buffer = vec![0; 1 << 16];
    let (mut opened, mut unanswered) = (false, Vec::new());
    // The read fails when it is unmounted.
    while let Ok(length) = device.read(&mut buffer) {
        let word = |at: usize| u32::from_le_bytes(buffer[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().unwrap());
        assert!(length >= 40);
        let (opcode, unique, inode) = (word(4), long(8), long(16));
        if opcode == FORGET {
            continue;
        }
        if opened {
            unanswered.push(unique);
            asked.send(opcode).unwrap();
            if release.recv().is_ok() {
                unanswered.drain(..).for_each(|unique| reply(&mut device, unique, -libc::ENOSYS, &[]));
            }
            continue;
        }
        match answer(opcode, inode) {
            Some(body) => reply(&mut device, unique, 0, &body),
            None => reply(&mut device, unique, -libc::ENOSYS, &[]),
        }
        opened = opcode == OPEN;
    }
}

/// Mounts a FUSE file system there; `None` where this process may not.
fn mount(at: &Path) -> Option<File> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: /dev/fuse: {error}");
            return None;
        }
    };
    let options =
        CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd())).unwrap();
    let target = CString::new(at.to_str().unwrap()).unwrap();
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all are strings that end in a NUL and live through the call.
    let result = unsafe {
        libc::mount(c"wire-test".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), flags, options.as_ptr().cast())
    };
    if result != 0 {
        println!("skipped: mount of a FUSE file system: {}", std::io::Error::last_os_error());
        return None;
    }
    Some(device)
}

/// Unmounts, whatever hangs in it.
struct Mounted(CString);

impl Drop for Mounted {
    fn drop(&mut self) {
        // SAFETY: the string ends in a NUL and lives through the call.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_FORCE | libc::MNT_DETACH) };
    }
}

#[test]
fn a_fuse_file_is_refused_without_waiting_for_its_server() {
    let at = std::env::temp_dir().join(format!("wire-fuse-{}", std::process::id()));
    std::fs::create_dir(&at).unwrap();
    let Some(device) = mount(&at) else {
        std::fs::remove_dir(&at).unwrap();
        return;
    };
    let mounted = Mounted(CString::new(at.to_str().unwrap()).unwrap());
    let (asked_tx, asked) = channel();
    let (release, release_rx) = channel();
    let server = std::thread::spawn(move || serve(device, &asked_tx, &release_rx));
    let file = OpenOptions::new().read(true).write(true).open(at.join("file")).unwrap();

    let (done_tx, done) = channel();
    std::thread::spawn(move || done_tx.send(SealedMemory::adopt(file.into(), 4096, 1 << 20)));
    let result = done.recv_timeout(PATIENCE).expect("the adapter does not wait for the server");
    assert!(matches!(result, Err(AdoptError::NotMemfd(_))), "{result:?}");

    // All that the server ever hears is the close, which hangs where nobody waits for it.
    assert_eq!(asked.recv_timeout(PATIENCE), Ok(FLUSH));
    assert!(discard::pending() >= 1);
    release.send(()).unwrap();
    drop(release);
    let deadline = Instant::now() + PATIENCE;
    while discard::pending() != 0 {
        assert!(Instant::now() < deadline, "the close ends once the server answers");
        std::thread::yield_now();
    }
    drop(mounted);
    drop(asked);
    let _ = server.join();
    std::fs::remove_dir(&at).unwrap();
}
