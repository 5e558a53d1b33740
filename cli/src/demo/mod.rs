//! `portcullis demo`: the whole story in a few seconds, with real processes on a software disk.
//!
//! This process starts an adapter and two applications, tells them what to do and checks what they say. The applications
//! are in [`application`].

mod application;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis::{Session, Statistics, Status};
use serde::{Deserialize, Serialize};

pub(crate) use application::run as run_application;

/// Bytes of each application's volume.
const VOLUME: u64 = 8 << 20;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an application is told to do.
#[derive(Serialize, Deserialize, Debug)]
enum Order {
    /// Write the file into the volume and read it back.
    CopyFile { path: PathBuf },
    /// Read what was written and compare it again.
    VerifyFile,
    /// Read under this key, which is somebody else's.
    UseKey { key: u64 },
    /// Read one block beyond the end.
    ReadBeyond,
    /// Open the volume for reading and write.
    WriteThroughRead,
    /// Open this volume and keep its key.
    Open { volume: String },
    /// Read under the key kept.
    UseKept,
    /// Read into memory that somebody else registered.
    UseRegion { region: u64 },
    /// Rewrite entries while the adapter reads them.
    Race { foreign_key: u64 },
    /// Move the doorbell further than there is room.
    Overrun,
    /// Do I/O without end, until killed.
    Busy,
}

/// What an application says it saw.
#[derive(Serialize, Deserialize, Default, Debug)]
struct Seen {
    /// The completion's status.
    status: u16,
    /// A key or region, where one is asked for.
    #[serde(default)]
    key: u64,
    #[serde(default)]
    region: u64,
    /// In words.
    #[serde(default)]
    detail: String,
    /// Something that must not be.
    #[serde(default)]
    failure: Option<String>,
}

/// One line of the story.
#[derive(Serialize, Debug)]
struct Step {
    name: &'static str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'static str>,
    seen: String,
    milliseconds: u128,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    device: &'static str,
    seconds: f64,
    steps: Vec<Step>,
}

/// Runs the demonstration; success if everything went as it must.
pub(crate) fn run(json: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let mut story = Story { steps: Vec::new(), json };
    if !json {
        println!("An adapter, two applications that distrust one another, and a software NVMe disk.\n");
    }
    let told = tell(&mut story);
    if let Err(error) = &told {
        story.steps.push(Step {
            name: "the story comes to its end",
            ok: false,
            expected: None,
            seen: format!("{error:#}"),
            milliseconds: 0,
        });
    }
    let ok = told.is_ok() && story.steps.iter().all(|step| step.ok);
    let seconds = start.elapsed().as_secs_f64();
    if json {
        let report = Report { ok, device: DEVICE, seconds, steps: story.steps };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        if let Err(error) = told {
            println!("  FAILED  {error:#}");
        }
        let verdict = if ok { "All of it went as it must" } else { "Something went WRONG" };
        println!("\n{verdict}, in {seconds:.1} s.");
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const DEVICE: &str = "emu:64M";

struct Story {
    steps: Vec<Step>,
    json: bool,
}

impl Story {
    /// Does one thing and notes whether it went as it must.
    fn step(
        &mut self,
        name: &'static str,
        expected: Option<Status>,
        act: impl FnOnce() -> Result<(bool, String)>,
    ) -> Result<()> {
        let start = Instant::now();
        let (ok, seen) = act().with_context(|| name.to_owned())?;
        let step = Step {
            name,
            ok,
            expected: expected.and_then(Status::name),
            seen,
            milliseconds: start.elapsed().as_millis(),
        };
        if !self.json {
            let mark = if ok { "ok" } else { "WRONG" };
            println!("  {mark:>5}  {name:<58} {}  ({} ms)", step.seen, step.milliseconds);
        }
        self.steps.push(step);
        Ok(())
    }

    fn chapter(&self, title: &str) {
        if !self.json {
            println!("\n{title}");
        }
    }

    /// An application tries something and must be refused with exactly this status.
    fn refused(
        &mut self,
        name: &'static str,
        expected: Status,
        app: &mut Application,
        order: &Order,
    ) -> Result<()> {
        self.step(name, Some(expected), || {
            let seen = app.ask(order)?;
            Ok((Status(seen.status) == expected, Status(seen.status).to_string()))
        })
    }
}

fn tell(story: &mut Story) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("portcullis-demo-").tempdir()?;
    let socket = dir.path().join("socket");
    let mut adapter = None;
    story.step("the adapter starts on a software NVMe disk", None, || {
        let child = Process::adapter(&socket)?;
        let seen = format!("{DEVICE}, process {}", child.0.id());
        adapter = Some(child);
        Ok((true, seen))
    })?;
    let mut adapter = adapter.context("the adapter")?;
    let admin = Session::connect(&socket)?;
    for name in ["alice", "bob"] {
        admin.create_volume(name, VOLUME)?;
    }

    let before = admin.statistics()?;
    let mut alice = Application::start(&socket, "alice")?;
    let mut bob = Application::start(&socket, "bob")?;
    work(story, &mut alice, &mut bob)?;
    story.chapter("alice tries what she may not");
    attack(story, &admin, &mut alice, &mut bob)?;
    story.chapter("bob tries what he may not");
    attack(story, &admin, &mut bob, &mut alice)?;
    death(story, &admin, &before, alice, bob)?;
    drop(admin);

    story.chapter("The end");
    story.step("SIGTERM drains the adapter and shuts the disk down", None, || {
        let status = adapter.terminate()?;
        Ok((status.success(), status.to_string()))
    })
}

/// Both do what they may.
fn work(story: &mut Story, alice: &mut Application, bob: &mut Application) -> Result<()> {
    story.chapter("Two applications work, each in its own volume");
    let file = std::env::current_exe()?;
    for (name, app) in
        [("alice copies a file in, and back out identical", &mut *alice), ("bob does the same", &mut *bob)]
    {
        story.step(name, None, || {
            let seen = app.ask(&Order::CopyFile { path: file.clone() })?;
            Ok((seen.status == 0, seen.detail))
        })?;
    }
    Ok(())
}

/// One tries what it may not, and the other must not notice.
fn attack(
    story: &mut Story,
    admin: &Session,
    attacker: &mut Application,
    victim: &mut Application,
) -> Result<()> {
    let theirs = victim.hello();
    let (scratch, other) = (format!("{}-scratch", attacker.name), format!("{}-other", attacker.name));
    admin.create_volume(&scratch, VOLUME)?;
    story.refused("the other's key", Status::E_PD_MISMATCH, attacker, &Order::UseKey { key: theirs.key })?;
    story.refused("one block past the end", Status::E_BOUNDS, attacker, &Order::ReadBeyond)?;
    story.refused("a write through a read grant", Status::E_ACCESS, attacker, &Order::WriteThroughRead)?;
    attacker.ask(&Order::Open { volume: scratch.clone() })?;
    let revoked = admin.delete_volume(&scratch)?;
    ensure!(revoked.grants == 1, "deleting the volume revoked {} grants, not one", revoked.grants);
    story.refused("a key after its revocation", Status::E_ENTRY_INVALID, attacker, &Order::UseKept)?;
    admin.create_volume(&other, VOLUME)?;
    attacker.ask(&Order::Open { volume: other })?;
    story.refused(
        "the same key after its index was re-used",
        Status::E_KEY_INSTANCE,
        attacker,
        &Order::UseKept,
    )?;
    story.refused(
        "memory it does not own",
        Status::E_LOCAL_MEM,
        attacker,
        &Order::UseRegion { region: theirs.region },
    )?;
    story.step("entries rewritten while they are read", None, || {
        let seen = attacker.ask(&Order::Race { foreign_key: theirs.key })?;
        Ok((seen.status == 0, seen.detail))
    })?;
    story.refused("a doorbell overrun", Status::E_DOORBELL_OVERRUN, attacker, &Order::Overrun)?;
    story.step("meanwhile the other's file is as it was", None, || {
        let seen = victim.ask(&Order::VerifyFile)?;
        Ok((seen.status == 0, seen.detail))
    })
}

/// One is killed while it works; everything it held is free again.
fn death(
    story: &mut Story,
    admin: &Session,
    before: &Statistics,
    mut alice: Application,
    mut bob: Application,
) -> Result<()> {
    story.chapter("bob is killed in the middle of his work");
    bob.tell(&Order::Busy)?;
    let completed = || -> Result<u64> { Ok(admin.statistics()?.completed) };
    let at = completed()?;
    let deadline = Instant::now() + PATIENCE;
    while completed()? < at + 1000 {
        ensure!(Instant::now() < deadline, "bob does no work");
    }
    bob.process.0.kill()?;
    let session = alice.session;
    story.step("everything he held is free again", None, || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = admin.statistics()?;
            let left: Vec<_> = now.sessions.iter().filter(|s| s.session != session).collect();
            // What is left is this process's own session, and alice's.
            if left.len() == 1 {
                let mine = now.sessions.iter().find(|s| s.session == session).context("alice's session")?;
                let entries = now.entries - u64::from(mine.grants);
                let regions = now.regions - u64::from(mine.regions);
                let pinned = now.pinned_bytes - mine.pinned_bytes;
                let same = (entries, regions, pinned)
                    == (before.entries, before.regions, before.pinned_bytes)
                    && now.mappings - u64::from(mine.regions) == before.mappings;
                let seen =
                    format!("{entries} grants, {regions} regions, {pinned} bytes pinned beside alice's");
                return Ok((same, seen));
            }
            ensure!(Instant::now() < deadline, "{} sessions are still there", left.len());
            std::thread::yield_now();
        }
    })?;
    story.step("alice's file is as it was", None, || {
        let seen = alice.ask(&Order::VerifyFile)?;
        Ok((seen.status == 0, seen.detail))
    })
}

/// A child process that is killed when it goes out of scope.
struct Process(Child);

impl Process {
    fn adapter(socket: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--device", DEVICE, "--socket"]).arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Self(command.spawn().context("starting the adapter")?);
        // It prints its first line when it listens.
        let mut lines = BufReader::new(child.0.stdout.take().context("its output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the adapter ended with {}", child.0.wait()?);
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(child)
    }

    fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it did not end within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An application process that takes orders on its standard input and answers on its standard output.
struct Application {
    name: &'static str,
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    first: Seen,
    session: u64,
}

impl Application {
    fn start(socket: &Path, volume: &'static str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["demo-application", "--volume", volume, "--socket"]).arg(socket);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting an application")?;
        let mut process = Process(child);
        let orders = process.0.stdin.take().context("its input")?;
        let answers = BufReader::new(process.0.stdout.take().context("its output")?);
        let mut app = Self { name: volume, process, orders, answers, first: Seen::default(), session: 0 };
        app.first = app.answer()?;
        app.session = app.first.detail.parse().context("its session")?;
        Ok(app)
    }

    /// Its keys, as it said at its start.
    fn hello(&self) -> Keys {
        Keys { key: self.first.key, region: self.first.region }
    }

    fn tell(&mut self, order: &Order) -> Result<()> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)?;
        Ok(())
    }

    fn ask(&mut self, order: &Order) -> Result<Seen> {
        self.tell(order)?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Seen> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("an application ended with {}", self.process.0.wait()?);
        }
        let seen: Seen = serde_json::from_str(&line).with_context(|| format!("its answer {line:?}"))?;
        match seen.failure {
            Some(failure) => bail!("an application says: {failure}"),
            None => Ok(seen),
        }
    }
}

struct Keys {
    key: u64,
    region: u64,
}
