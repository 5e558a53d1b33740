//! The adapter as a process of its own, as applications have it.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use adapter::{Adapter, DeviceUri};

use anyhow::{Context, Result, ensure};
use portcullis::Session;

use crate::cpu::Pinned;
use crate::guest;

/// The first argument of a process that is an adapter; see [`serve`].
pub const SERVE: &str = "serve";

/// An adapter in a child process, which ends with this value or with its parent.
pub struct Served {
    child: Child,
    directory: tempfile::TempDir,
}

impl Served {
    /// Starts this program again as the adapter of `device`, all its threads on processor `cpu`.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(device: &str, cpu: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("adapter.sock");
        let mut child = Command::new(env::current_exe()?)
            .arg(SERVE)
            .args([device, &cpu.to_string()])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting an adapter")?;
        let mut ready = String::new();
        let out = child.stdout.take().context("its output was asked for")?;
        BufReader::new(out).read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "the adapter of {device} did not come up: {ready}");
        Ok(Self { child, directory })
    }

    /// A session with it.
    ///
    /// # Errors
    /// The adapter's.
    pub fn session(&self) -> Result<Session> {
        Ok(Session::connect(self.socket())?)
    }

    /// Where it listens.
    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("adapter.sock")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The end of its input ends it; a device that stays needs its orderly end.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What the child does: `serve DEVICE CPU SOCKET`, until its input ends.
///
/// # Errors
/// The adapter's.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [device, cpu, socket] = arguments else {
        anyhow::bail!("{SERVE} DEVICE CPU SOCKET");
    };
    let _pinned = Pinned::to(cpu.parse()?)?;
    let uri: DeviceUri = device.parse()?;
    let (options, socket) = (guest::options(&uri), Path::new(socket));
    let adapter = match uri {
        DeviceUri::Vfio(_) => {
            let device = guest::with_store_in_memory(adapter::device::vfio::open(&uri, 1)?);
            Adapter::start_on(device, &options, socket)?
        }
        _ => Adapter::start(&options, socket)?,
    };
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    adapter.stop()?;
    Ok(())
}
