//! An adapter in a process of its own, and commands against it.
#![allow(dead_code, clippy::unwrap_used)] // not every test program needs all of it; helpers of tests

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

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

pub(crate) fn write(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}
