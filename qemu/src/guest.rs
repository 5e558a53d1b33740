//! A machine, what is in it and what happens in it.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Lock;
use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::machine::{FIRST_NVME, FIRST_VIRTIO, Machine};
use crate::script::{Event, LoadModule, SCRIPT_PATH, Script, Step, Stream};
use crate::static_build::{Artifact, build_static};

/// Init says so through QEMU's debug-exit port: `value << 1 | 1`.
const EXIT_PASSED: i32 = 0x10 << 1 | 1;
const EXIT_FAILED: i32 = 0x11 << 1 | 1;

/// What the way out needs; newer kernels have it built in.
const CONSOLE_MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// What VFIO needs.
const VFIO_MODULES: [&str; 2] = ["vfio-pci", "vfio_iommu_type1"];

/// A kernel that dies before init runs is started again, so often in all: QEMU 7.2 without KVM now and then lets one trap
/// into its own breakpoint while it patches its code at boot (seen as `int3` in `sched_clock_cpu`).
const BOOTS: u32 = 3;

/// The PCI address of a machine's NVMe controller number `index`.
pub fn nvme_address(index: usize) -> String {
    format!("0000:00:{:02x}.0", FIRST_NVME + index)
}

/// The PCI address of a machine's virtio block device number `index`.
pub fn virtio_address(index: usize) -> String {
    format!("0000:00:{:02x}.0", FIRST_VIRTIO + index)
}

/// A sparse image of `bytes` zeros called `name`, below `target/qemu/disks`; a former one of that name is emptied.
pub fn scratch_disk(name: &str, bytes: u64) -> Result<PathBuf> {
    let directory = crate::cache().join("disks");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.img"));
    File::create(&path)?.set_len(bytes).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Prints an event for people to read; for [`Guest::run`].
pub fn print_event(event: &Event) {
    match event {
        Event::Booted { uptime_ms } => println!("guest: up after {uptime_ms} ms"),
        Event::Started { step } => println!("guest: step {step}"),
        Event::Output { step, stream, line } => {
            let mark = match stream {
                Stream::Out => "|",
                Stream::Err => "!",
                Stream::Kernel => "k",
            };
            println!("{step:>5} {mark} {line}");
        }
        Event::Ended { step, end, ms } => println!("guest: step {step}: {end:?} after {ms} ms"),
        Event::Failed { step: Some(step), message } => println!("guest: step {step} failed: {message}"),
        Event::Failed { step: None, message } => println!("guest: failed: {message}"),
        Event::Done { passed } => println!("guest: {}", if *passed { "passed" } else { "failed" }),
    }
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Every step did what was expected, and init said so.
    Passed,
    /// Init said that something failed.
    Failed,
    /// It ended without a verdict: a kernel panic, or QEMU's own end with this code, or minus the
    /// signal that ended it.
    NoVerdict(i32),
    /// It was killed when its time was up.
    TimeLimit,
    /// It was killed because [`Guest::run_until`] was told to.
    Killed,
}

/// What came of a guest.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// What init reported, in order.
    pub events: Vec<Event>,
    /// The serial console.
    pub console: String,
    /// What QEMU itself wrote.
    pub qemu: String,
    /// How long it took, from QEMU's start to its end.
    pub wall: Duration,
}

impl Outcome {
    /// The lines that the programs of step `step` wrote, of both streams.
    pub fn output(&self, step: usize) -> impl Iterator<Item = &str> {
        self.events.iter().filter_map(move |event| match event {
            Event::Output { step: from, line, .. } if *from == step => Some(line.as_str()),
            _ => None,
        })
    }

    /// # Errors
    /// If it did not pass: what is known about why.
    pub fn check(&self) -> Result<()> {
        if self.exit == Exit::Passed {
            return Ok(());
        }
        bail!("{self}")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the guest ended after {:.1} s: {:?}", self.wall.as_secs_f32(), self.exit)?;
        for event in &self.events {
            if let Event::Failed { message, .. } = event {
                writeln!(f, "  {message}")?;
            }
        }
        if self.exit != Exit::Passed {
            for (what, text) in [("console", &self.console), ("QEMU", &self.qemu)] {
                let lines: Vec<&str> = text.lines().collect();
                for line in lines.iter().skip(lines.len().saturating_sub(30)) {
                    writeln!(f, "  {what}: {}", line.trim_end().escape_debug())?;
                }
            }
        }
        Ok(())
    }
}

/// A machine, the programs and files in it, and what it does.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The hardware, and how long it may live.
    pub machine: Machine,
    /// Kernel modules beside those of VFIO, with parameters; what they need is found.
    pub modules: Vec<(String, String)>,
    /// Programs: the host's path, the name in the guest's `/bin`.
    pub programs: Vec<(PathBuf, String)>,
    /// Other files: the host's path, the guest's.
    pub files: Vec<(PathBuf, String)>,
    /// What init does.
    pub steps: Vec<Step>,
}

impl Guest {
    /// A guest that starts and ends.
    pub fn new(machine: Machine) -> Self {
        Self { machine, modules: vec![], programs: vec![], files: vec![], steps: vec![] }
    }

    /// Adds a kernel module, with parameters or `""`. Named before VFIO's own, `vfio_iommu_type1` may be given some.
    #[must_use]
    pub fn module(mut self, name: impl Into<String>, parameters: impl Into<String>) -> Self {
        self.modules.push((name.into(), parameters.into()));
        self
    }

    /// Adds a static program of the host as `/bin/NAME`.
    #[must_use]
    pub fn program(mut self, from: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.programs.push((from.into(), name.into()));
        self
    }

    /// Adds a file of the host at the absolute path `to`.
    #[must_use]
    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        self.files.push((from.into(), to.into()));
        self
    }

    /// Adds a step.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Runs it to its end, telling `watch` each event as it comes. One guest runs at a time on a host.
    ///
    /// # Errors
    /// If it could not be started; a guest that fails is an [`Outcome`].
    pub fn run(&self, watch: &mut dyn FnMut(&Event)) -> Result<Outcome> {
        self.run_until(watch, &mut || false)
    }

    /// The same, but QEMU is killed (by SIGKILL) when `stop`, asked every ten milliseconds, says so.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run_until(
        &self,
        watch: &mut dyn FnMut(&Event),
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Outcome> {
        for _ in 1..BOOTS {
            let outcome = self.boot(watch, stop)?;
            let is_up = outcome.events.iter().any(|event| matches!(event, Event::Booted { .. }));
            if is_up || !matches!(outcome.exit, Exit::NoVerdict(_)) {
                return Ok(outcome);
            }
            eprintln!("the guest's kernel did not come up; it is started again");
        }
        self.boot(watch, stop)
    }

    fn boot(&self, watch: &mut dyn FnMut(&Event), stop: &mut dyn FnMut() -> bool) -> Result<Outcome> {
        let kernel = Kernel::cached().context("no kernel for the guest yet; see qemu::install()")?;
        let init = build_static("qemu", Artifact::Bin("guest-init"))?;
        let directory = RunDirectory::new()?;
        fs::write(directory.path.join("initramfs.cpio"), self.initramfs(&kernel, &init)?)?;
        let results = directory.path.join("results.jsonl");
        File::create_new(&results)?;
        let results = File::open(&results)?;
        let messages = File::create_new(directory.path.join("qemu.log"))?;
        let mut command = self.machine.command(&kernel.vmlinux(), &directory.path);
        command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages);

        // Two guests at once on a small host make each other time out.
        let _turn = Lock::take("guest.lock")?;
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("running {command:?}"))?;
        let mut results = Results { file: results, partial: Vec::new(), events: Vec::new() };
        let end = results.follow(&mut child, started + self.machine.limit, watch, stop);
        if end.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let end = end?;
        let wall = started.elapsed();
        let console = directory.text("console.log");
        let done = match results.events.last() {
            Some(Event::Done { passed }) => Some(*passed),
            _ => None,
        };
        let exit = match (end, done) {
            (Err(killed), _) => killed,
            (Ok(EXIT_PASSED), Some(true)) => Exit::Passed,
            (Ok(EXIT_FAILED), Some(false)) => Exit::Failed,
            (Ok(code), _) => Exit::NoVerdict(code),
        };
        Ok(Outcome { exit, events: results.events, console, qemu: directory.text("qemu.log"), wall })
    }

    fn initramfs(&self, kernel: &Kernel, init: &Path) -> Result<Vec<u8>> {
        let mut archive = Initramfs::new()?;
        archive.copy(init, "/init", 0o755)?;
        let available = kernel.modules()?;
        let console = CONSOLE_MODULES.into_iter().filter(|name| available.has(name));
        let mut wanted: Vec<String> = console.map(str::to_owned).collect();
        wanted.extend(self.modules.iter().map(|(name, _)| name.clone()));
        wanted.extend(VFIO_MODULES.map(str::to_owned));
        let mut modules = Vec::new();
        for module in available.resolve(&wanted)? {
            let path = format!("/modules/{}.ko", module.name);
            archive.file(&path, 0o644, &module.object)?;
            let parameters = self.modules.iter().find(|(name, _)| name.replace('-', "_") == module.name);
            modules
                .push(LoadModule { path, parameters: parameters.map(|p| p.1.clone()).unwrap_or_default() });
        }
        for (from, name) in &self.programs {
            archive.copy(from, &format!("/bin/{name}"), 0o755)?;
        }
        for (from, to) in &self.files {
            archive.copy(from, to, 0o644)?;
        }
        let limit_s = self.machine.limit.as_secs().max(1);
        let script = Script { modules, steps: self.steps.clone(), limit_s };
        archive.file(SCRIPT_PATH, 0o644, &serde_json::to_vec(&script)?)?;
        archive.finish()
    }
}

/// The events that a guest writes, read while it runs.
struct Results {
    file: File,
    partial: Vec<u8>,
    events: Vec<Event>,
}

impl Results {
    /// Reads until `child` ends, and returns its exit code, or why it was killed.
    fn follow(
        &mut self,
        child: &mut Child,
        deadline: Instant,
        watch: &mut dyn FnMut(&Event),
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Result<i32, Exit>> {
        loop {
            let ended = child.try_wait()?;
            self.read(watch)?;
            if let Some(status) = ended {
                let signal = || status.signal().map_or(-1, |signal| -signal);
                return Ok(Ok(status.code().unwrap_or_else(signal)));
            }
            let killed = stop().then_some(Exit::Killed);
            if let Some(why) = killed.or_else(|| (Instant::now() >= deadline).then_some(Exit::TimeLimit)) {
                child.kill()?;
                child.wait()?;
                self.read(watch)?;
                return Ok(Err(why));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn read(&mut self, watch: &mut dyn FnMut(&Event)) -> Result<()> {
        self.file.read_to_end(&mut self.partial)?;
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let event: Event = serde_json::from_slice(&line).with_context(|| {
                format!("a line of the guest's: {}", String::from_utf8_lossy(&line).escape_debug())
            })?;
            watch(&event);
            self.events.push(event);
        }
        Ok(())
    }
}

/// A directory for one run's files, gone when dropped.
struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = crate::cache().join("runs").join(format!("{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path); // of an older process with this id
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    fn text(&self, name: &str) -> String {
        fs::read(self.path.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
