//! The line to the host.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qemu::{Event, RESULTS_PORT};

/// Sends events, from any thread.
pub(crate) struct Report {
    port: Mutex<File>,
}

impl Report {
    /// Finds the virtio-serial port by its name.
    pub(crate) fn open() -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
                let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
                if name.trim() == RESULTS_PORT {
                    let path = std::path::Path::new("/dev").join(entry.file_name());
                    let port = OpenOptions::new().write(true).open(&path);
                    let port = port.with_context(|| format!("opening {}", path.display()))?;
                    return Ok(Self { port: Mutex::new(port) });
                }
            }
            if Instant::now() >= deadline {
                bail!("there is no virtio-serial port called {RESULTS_PORT}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends one event. What cannot be sent goes to the console; the host then misses the last line.
    pub(crate) fn send(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        let mut port = self.port.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = port.write_all(&line) {
            eprintln!("guest-init: cannot report {event:?}: {error}");
        }
    }
}
