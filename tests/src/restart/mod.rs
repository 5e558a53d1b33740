//! The adapter is killed, or stopped, and another one started over the same device, while applications go on.

mod files;
mod history;
mod load;
mod once;
mod rights;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use portcullis::{ConnectOptions, Session};
use rustix::process::Signal;

use crate::process::{Actor, Role};
use crate::system::{Case, PATIENCE, Rig};

/// The cases for any device.
pub const ANY: &[Case] = load::CASES;

/// The cases that bring software devices of their own.
pub fn software() -> Vec<Case> {
    [rights::CASES, once::CASES, files::CASES].concat()
}

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;

/// One adapter after another, each a process of its own over the same device: the rig's, or an image where that is of software.
struct Adapters {
    device: String,
    socket: PathBuf,
    /// `portcullis`, where the environment names it: it waits for the device that the one before still holds.
    program: Option<OsString>,
    running: Option<Actor>,
    /// Killed, and perhaps still on its way out.
    killed: Option<Actor>,
}

impl Adapters {
    fn start(rig: &Rig) -> Self {
        let device = if rig.is_software() {
            let image = rig.socket().with_extension("img");
            std::fs::File::create(&image).unwrap().set_len(IMAGE).unwrap();
            format!("emu:{}", image.display())
        } else {
            rig.isolated().stop().unwrap(); // Formats it.
            rig.options().device.to_string()
        };
        let program = std::env::var_os("PORTCULLIS_PROGRAM");
        let mut adapters = Self { device, socket: rig.socket(), program, running: None, killed: None };
        adapters.again();
        adapters
    }

    fn serve(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command.args(["serve", "--format", "--device", &self.device, "--socket"]).arg(&self.socket);
        command
    }

    /// Starts the next one. It has the device when nothing is left of the last one.
    fn again(&mut self) {
        let mut server = match &self.program {
            Some(program) => Actor::of(self.serve(program)),
            None => Actor::start(Role::Server, Path::new(&self.device), self.socket.to_str().unwrap()),
        };
        assert_ne!(server.line(), "", "it serves");
        if let Some(mut killed) = self.killed.take() {
            assert!(killed.has_let_go(), "two adapters have the device");
            killed.kill();
        }
        self.running = Some(server);
    }

    /// SIGKILL.
    fn kill(&mut self) {
        let mut server = self.running.take().expect("one runs");
        server.signal(Signal::KILL);
        if self.program.is_none() {
            server.kill(); // The next one does not wait for it.
        }
        self.killed = Some(server);
    }

    /// Nobody else gets the device while one serves: what that one says, if there is a program to try it with.
    fn try_another(&self) -> Option<String> {
        let output = self.serve(self.program.as_deref()?).output().unwrap();
        assert!(!output.status.success(), "two adapters have the device");
        Some(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Has it end in order.
    fn stop(&mut self) {
        let mut server = self.running.take().expect("one runs");
        match &self.program {
            Some(_) => server.signal(Signal::TERM),
            None => server.go(),
        }
        assert_eq!(server.line(), "", "it says nothing more and ends");
    }

    /// A session that goes on.
    fn session(&self) -> Session {
        self.patient(PATIENCE)
    }

    fn patient(&self, patience: Duration) -> Session {
        ConnectOptions::new().patience(patience).connect(&self.socket).unwrap()
    }
}
