//! An adapter in a process of its own, and commands against it.
#![allow(dead_code, clippy::unwrap_used)] // not every test program needs all of it; helpers of tests

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");

/// The command: in a guest it lies elsewhere than where it was built.
fn program() -> String {
    std::env::var("PORTCULLIS_PROGRAM").unwrap_or_else(|_| PORTCULLIS.to_owned())
}

/// An adapter in a process of its own, ended with the test.
pub(crate) struct Adapter {
    pub(crate) child: Child,
    directory: tempfile::TempDir,
    pub(crate) first_lines: Vec<String>,
}

impl Adapter {
    pub(crate) fn start(device: &str) -> Self {
        Self::start_with(device, &[])
    }

    /// On the device that the environment names, else on one in memory. What was on it is lost.
    pub(crate) fn on_any_device(default: &str) -> Self {
        let device = std::env::var("PORTCULLIS_DEVICE").unwrap_or_else(|_| default.to_owned());
        Self::start_with(&device, &["--format", "force"])
    }

    /// Over what is in a file, as it is.
    pub(crate) fn as_found(file: &Path) -> Self {
        Self::start_with(&format!("emu:{}", file.display()), &["--as-found"])
    }

    fn start_with(device: &str, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(program())
            .args(["serve", "--device", device])
            .args(options)
            .arg("--socket")
            .arg(directory.path().join("p.sock"))
            .env("PORTCULLIS_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Two lines, printed once it listens; an end of file if it does not.
        let first_lines: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
        assert_eq!(first_lines.len(), 2, "serve did not start");
        Self { child, directory, first_lines }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("PORTCULLIS_SOCKET", self.path("p.sock"))
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run_with(&self, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        // A command that does not read is not to be waited for.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Runs a command that must succeed; gives its standard output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.run_with(arguments, b"");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that must fail; gives its standard error.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        self.fail_with(1, arguments)
    }

    /// The same, with another exit code.
    pub(crate) fn fail_with(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run_with(arguments, b"");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stdout));
        assert!(output.stdout.is_empty(), "errors go to standard error");
        text(&output.stderr)
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Bytes that differ from place to place.
pub(crate) fn data(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap()).collect()
}

/// A volume mounted with FUSE at `mounted` in the adapter's directory, unmounted with the test.
pub(crate) struct Mounted {
    pub(crate) child: Child,
    pub(crate) root: PathBuf,
}

impl Mounted {
    /// `None` where the machine has no FUSE, which is said.
    pub(crate) fn start(adapter: &Adapter, volume: &str, options: &[&str]) -> Option<Self> {
        if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
            println!("skipped: /dev/fuse cannot be opened: {error}");
            return None;
        }
        let root = adapter.path("mounted");
        fs::create_dir_all(&root).unwrap();
        let mut child = adapter.command(&[&["mount", volume, "mounted"], options].concat()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            child.wait().unwrap();
            // Some sandboxes have the device and do not let anybody mount.
            assert!(error.contains("cannot mount on"), "{error}");
            println!("skipped: {error}");
            return None;
        }
        assert!(line.contains(&format!("{volume} is mounted on mounted")), "{line}");
        Some(Self { child, root })
    }

    pub(crate) fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(fs::read_dir(&self.root).unwrap().next().is_none(), "what was mounted is gone");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Ended well it is reaped already; if a test fails nothing must stay mounted.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}
