//! The adapter is killed, or stopped, and another one started over the same device, while applications go on.

mod history;
mod load;
mod once;
mod rights;

use std::path::PathBuf;
use std::time::Duration;

use portcullis::{ConnectOptions, Session};

use crate::process::{Actor, Role};
use crate::system::{Case, PATIENCE, Rig};

/// The cases; they bring devices of their own.
pub fn all() -> Vec<Case> {
    [load::CASES, rights::CASES, once::CASES].concat()
}

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;

/// One adapter after another, each a process of its own over the same image.
struct Adapters {
    image: PathBuf,
    socket: PathBuf,
    running: Option<Actor>,
}

impl Adapters {
    fn start(rig: &Rig) -> Self {
        let image = rig.socket().with_extension("img");
        std::fs::File::create(&image).unwrap().set_len(IMAGE).unwrap();
        let mut adapters = Self { image, socket: rig.socket(), running: None };
        adapters.again();
        adapters
    }

    /// Starts the next one.
    fn again(&mut self) {
        let mut server = Actor::start(Role::Server, &self.image, self.socket.to_str().unwrap());
        assert_eq!(server.line(), "ready");
        self.running = Some(server);
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.running.take().expect("one runs").kill();
    }

    /// A session that goes on.
    fn session(&self) -> Session {
        self.patient(PATIENCE)
    }

    fn patient(&self, patience: Duration) -> Session {
        ConnectOptions::new().patience(patience).connect(&self.socket).unwrap()
    }
}
