//! The daemon in a process of its own, confined: it can open nothing, start nothing and connect nowhere, on no thread,
//! and serves all the same: sessions, volumes, I/O, a reset of the device, its end.
#![allow(unsafe_code, clippy::unwrap_used)] // memory that could be executed is asked for; helpers of tests

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use adapter::{DeviceUri, Format, Options, daemon, device};
use driver::emu::{EmuConfig, Faults, RamMedia};
use libtest_mimic::{Arguments, Trial};
use portcullis::{Access, Request, Session, Status};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Set for the process that is the daemon: where it listens.
const SOCKET: &str = "PORTCULLIS_CONFINED_SOCKET";
/// How much the daemon tries that it may not.
const TRIED: usize = 11;
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    child: Child,
    orders: ChildStdin,
    lines: Receiver<String>,
}

impl Daemon {
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { orders: child.stdin.take().unwrap(), child, lines }
    }

    /// The next line that begins so, without that.
    fn line(&self, beginning: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap();
            if let Some((_, rest)) = line.split_once(beginning) {
                return rest.to_owned();
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        self.line("done ");
    }

    /// A line of the status of each thread.
    fn of_threads(&self, field: &str) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let of = |status: String| status.lines().find_map(|line| line.strip_prefix(field).map(str::to_owned));
        tasks.filter_map(|task| of(std::fs::read_to_string(task.path().join("status")).ok()?)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All that it may not do, with what came of it.
fn try_everything(directory: &Path) -> [(&'static str, std::io::Result<()>); TRIED] {
    let status = |command: &mut Command| command.status().map(drop);
    [
        ("open a file", File::open("/etc/hostname").map(drop)),
        ("make a file", File::create(directory.join("made")).map(drop)),
        ("look at a directory", std::fs::read_dir("/").map(drop)),
        ("rename a file", std::fs::rename("/tmp/a", "/tmp/b")),
        ("start a program", status(&mut Command::new("/bin/true"))),
        ("become a program", Err(Command::new("/bin/true").exec())),
        ("listen", std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
        ("connect", std::os::unix::net::UnixStream::connect(directory.join("socket")).map(drop)),
        (
            "make a memfd",
            rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).map(drop).map_err(Into::into),
        ),
        (
            "signal",
            rustix::process::kill_current_process_group(rustix::process::Signal::CONT).map_err(Into::into),
        ),
        // SAFETY: new memory, of which nobody knows.
        ("map what can be executed", unsafe {
            mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE)
                .map(drop)
                .map_err(Into::into)
        }),
    ]
}

fn be_the_daemon(socket: &Path) {
    // Of all threads that are to come; `serve_on` waits for the signal otherwise.
    // SAFETY: a set of signals of this function, initialised by the first call.
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
    }
    let faults = Faults::new(1);
    let media = Arc::new(RamMedia::new(64 << 20).unwrap());
    let config = EmuConfig { interposer: Some(faults.clone()), ..EmuConfig::new(media) };
    let uri = DeviceUri::EmuRam(64 << 20);
    let opened = device::emu::open_with(&uri, config, 1).unwrap();
    let options =
        Options { format: Format::Force, device_timeout: Duration::from_millis(300), ..Options::new(uri) };
    let directory = socket.parent().unwrap().to_owned();
    // A thread from before it was confined.
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            match order.as_str() {
                "hold" => faults.hold(),
                "stop" => faults.stop_holding(),
                _ => {
                    for (what, outcome) in try_everything(&directory) {
                        let denied =
                            matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::EPERM));
                        println!(
                            "tried {what}: {}",
                            if denied { "denied".into() } else { format!("{outcome:?}") }
                        );
                    }
                }
            }
            println!("done {order}");
        }
    });
    daemon::serve_on(opened, &options, socket, |serving| println!("ready {}", serving.confinement)).unwrap();
    println!("ended in order");
    std::process::exit(0);
}

/// Without the usual harness, whose threads would take the signal that ends the daemon.
fn main() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        return be_the_daemon(Path::new(&socket));
    }
    let trial = Trial::test("a_confined_daemon_serves_and_can_do_nothing_else", || {
        serves_and_can_do_nothing_else();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn serves_and_can_do_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let mut daemon = Daemon::start(&socket);
    let confinement = daemon.line("ready ");
    assert!(
        confinement.contains("no new privileges") && confinement.contains("system calls"),
        "{confinement}"
    );

    writeln!(daemon.orders, "try").unwrap();
    for _ in 0..TRIED {
        let said = daemon.line("tried ");
        assert!(said.ends_with(": denied"), "{said}");
    }
    daemon.line("done ");
    assert!(!directory.path().join("made").exists());
    for (field, wanted) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
        let threads = daemon.of_threads(field);
        assert!(threads.len() >= 4, "main, poller, store, device, orders: {threads:?}");
        assert!(threads.iter().all(|value| value.trim() == wanted), "{field} {threads:?}");
    }

    let session = Session::connect(&socket).unwrap();
    session.create_volume("v", 4 << 20).unwrap();
    let volume = session.open("v", Access::READ_WRITE).unwrap();
    let mut queue = session.queue(8).unwrap();
    queue.write_at(&volume, 0, &[7; 8192]).unwrap();
    queue.flush(&volume).unwrap();
    assert_eq!(session.device_health().unwrap().critical_warning, 0);
    // A command that the device keeps: the controller is reset, and goes on.
    daemon.order("hold");
    queue.prepare(Request::read(&volume, 0, session.buffer(4096).unwrap())).ok().unwrap();
    queue.ring().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    daemon.order("stop");
    let ended = queue.wait(PATIENCE).unwrap().expect("the reset ends it");
    assert_eq!(ended.result.unwrap_err().status(), Some(Status::E_DEVICE));
    let mut back = [0; 8192];
    queue.read_at(&volume, 0, &mut back).unwrap();
    assert_eq!(back, [7; 8192]);
    drop((queue, volume));
    session.delete_volume("v").unwrap();
    drop(session);
    let again = Session::connect(&socket).unwrap();
    assert_eq!(again.volumes().count(), 0);
    drop(again);

    let pid = rustix::process::Pid::from_child(&daemon.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    daemon.line("ended in order");
    assert!(daemon.child.wait().unwrap().success());
    assert!(!socket.exists(), "the socket's file is gone");
}
