//! The programs of a script: their start, their output, their end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qemu::{Command, End, Event, Expect, Stream};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::report::Report;

/// What an unprivileged program may lock by default on a current system.
const USUAL_MEMLOCK: u64 = 8 << 20;
/// A longer line of output is cut.
const LONGEST_LINE: u64 = 64 << 10;

/// All programs that run.
pub(crate) struct Jobs {
    report: Arc<Report>,
    background: BTreeMap<String, Job>,
}

struct Job {
    step: usize,
    child: Child,
    readers: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Jobs {
    pub(crate) fn new(report: Arc<Report>) -> Self {
        Self { report, background: BTreeMap::new() }
    }

    /// Runs `command` to its end.
    pub(crate) fn run(&mut self, step: usize, command: &Command, expect: Expect) -> Result<()> {
        let job = self.start(step, command)?;
        let end = self.end(job, command.limit_s)?;
        check(&command.program, expect, end)
    }

    /// Starts `command` and lets it run.
    pub(crate) fn spawn(&mut self, step: usize, name: String, command: &Command) -> Result<()> {
        if self.background.contains_key(&name) {
            bail!("a program called {name} runs already");
        }
        let job = self.start(step, command)?;
        self.background.insert(name, job);
        Ok(())
    }

    /// Waits for a background program.
    pub(crate) fn wait(&mut self, name: &str, expect: Expect, limit_s: u64) -> Result<()> {
        let job = self.background.remove(name).with_context(|| format!("no program called {name} runs"))?;
        let end = self.end(job, limit_s)?;
        check(name, expect, end)
    }

    /// Sends a background program a signal and waits for it.
    pub(crate) fn kill(&mut self, name: &str, signal: i32, expect: Expect, limit_s: u64) -> Result<()> {
        let job = self.background.get_mut(name).with_context(|| format!("no program called {name} runs"))?;
        if job.child.try_wait()?.is_none()
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            kill_process(pid(&job.child)?, signal).with_context(|| format!("killing {name}"))?;
        }
        self.wait(name, expect, limit_s)
    }

    /// Fails if a background program has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        let mut ended = None;
        for (name, job) in &mut self.background {
            if job.child.try_wait()?.is_some() {
                ended = Some(name.clone());
            }
        }
        match ended {
            Some(name) => {
                self.wait(&name, Expect::Any, 1)?;
                bail!("{name} ended by itself")
            }
            None => Ok(()),
        }
    }

    /// Kills what still runs. Fails if something in the background ended by itself and nobody waited for it.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.check_alive()?;
        while let Some((_, mut job)) = self.background.pop_first() {
            job.child.kill()?;
            self.end(job, 10)?;
        }
        Ok(())
    }

    fn start(&self, step: usize, command: &Command) -> Result<Job> {
        let program = if command.program.contains('/') {
            command.program.clone()
        } else {
            format!("/bin/{}", command.program)
        };
        let mut process = std::process::Command::new(&program);
        process.args(&command.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process.env_clear().env("PATH", "/bin").env("HOME", "/tmp").env("TMPDIR", "/tmp").current_dir("/tmp");
        process.envs(command.env.iter().map(|(name, value)| (name, value)));
        if let Some(user) = command.user {
            process.uid(user.uid).gid(user.gid); // and no supplementary groups
        }
        let memlock = command.memlock.or(command.user.map(|_| USUAL_MEMLOCK));
        let started = Instant::now();
        let mut child =
            with_memlock(memlock, || process.spawn()).with_context(|| format!("running {program}"))?;
        let readers = [
            child.stdout.take().map(|pipe| self.read(step, Stream::Out, pipe)),
            child.stderr.take().map(|pipe| self.read(step, Stream::Err, pipe)),
        ];
        Ok(Job { step, child, readers: readers.into_iter().flatten().collect(), started })
    }

    /// Reports what comes out of `pipe`, line by line.
    fn read(&self, step: usize, stream: Stream, pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let report = Arc::clone(&self.report);
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line), Ok(length) if length > 0)
            {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                report.send(&Event::Output { step, stream, line: text });
                line.clear();
            }
        })
    }

    /// Waits until `job` ends, kills it after `limit_s`, and reports how it went.
    fn end(&self, mut job: Job, limit_s: u64) -> Result<End> {
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        let mut killed = false;
        let status = loop {
            if let Some(status) = job.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline && !killed {
                job.child.kill()?;
                killed = true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let ms = u64::try_from(job.started.elapsed().as_millis())?;
        // A grandchild may hold the pipes open: what it writes later is still reported, but nobody waits for it.
        let patience = Instant::now() + Duration::from_secs(1);
        while job.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        let end = match (killed, status.code(), status.signal()) {
            (true, ..) => End::TimeLimit,
            (_, Some(code), _) => End::Code(code),
            (_, None, signal) => End::Signal(signal.unwrap_or_default()),
        };
        self.report.send(&Event::Ended { step: job.step, end, ms });
        Ok(end)
    }
}

fn check(name: &str, expect: Expect, end: End) -> Result<()> {
    if !expect.holds(end) {
        bail!("{name} ended with {end:?}, expected {expect:?}");
    }
    Ok(())
}

fn pid(child: &Child) -> Result<Pid> {
    Pid::from_raw(i32::try_from(child.id())?).context("a process without an id")
}

/// Calls `spawn` under a locked-memory limit, which its child inherits. Only init's main thread starts programs.
fn with_memlock<T>(limit: Option<u64>, spawn: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let before = getrlimit(Resource::Memlock);
    let wanted = Rlimit { current: limit, maximum: limit };
    setrlimit(Resource::Memlock, wanted)?;
    let spawned = spawn();
    setrlimit(Resource::Memlock, before)?;
    spawned
}
