//! Process 1 of a guest: sets the machine up, takes the script's steps, reports, powers off.
#![deny(unsafe_code)]

mod jobs;
mod report;
mod setup;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use qemu::{Event, SCRIPT_PATH, Script, Step, Stream};

use crate::jobs::Jobs;
use crate::report::Report;

/// QEMU ends with `value << 1 | 1` when this is written to its debug-exit port.
const PASSED: u8 = 0x10;
const FAILED: u8 = 0x11;
const EXIT_PORT: u64 = 0x501;

fn main() {
    if std::process::id() != 1 {
        eprintln!("guest-init is the first process of a test guest; it does nothing elsewhere");
        std::process::exit(2);
    }
    let passed = match prepare() {
        Ok((script, report)) => run(script, &report),
        Err(error) => {
            eprintln!("guest-init: {error:#}");
            false
        }
    };
    power_off(passed);
}

/// All that can only be told on the console if it fails.
fn prepare() -> Result<(Script, Arc<Report>)> {
    setup::mount_all()?;
    let script = fs::read(SCRIPT_PATH).context("reading the script")?;
    let script: Script = serde_json::from_slice(&script)?;
    setup::load_modules(&script.modules)?;
    setup::loopback_up()?;
    Ok((script, Arc::new(Report::open()?)))
}

/// Runs the script and reports the verdict.
fn run(script: Script, report: &Arc<Report>) -> bool {
    let passed = match take_all(script, report) {
        Ok(()) => true,
        Err((step, error)) => {
            let message = format!("{error:#}");
            report.send(&Event::Failed { step, message });
            false
        }
    };
    report.send(&Event::Done { passed });
    passed
}

/// An error and the step that it happened in.
type AtStep = (Option<usize>, anyhow::Error);

fn take_all(script: Script, report: &Arc<Report>) -> Result<(), AtStep> {
    begin(&script, report).map_err(|error| (None, error))?;
    let mut jobs = Jobs::new(Arc::clone(report));
    for (index, step) in script.steps.into_iter().enumerate() {
        report.send(&Event::Started { step: index });
        take(index, step, &mut jobs, report).map_err(|error| (Some(index), error))?;
    }
    jobs.finish().map_err(|error| (None, error))
}

/// Starts the guest's clock and says that it is up.
fn begin(script: &Script, report: &Arc<Report>) -> Result<()> {
    let (watch, limit) = (Arc::clone(report), Duration::from_secs(script.limit_s));
    // In case the host no longer watches the time: it may have been killed.
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let message = format!("the guest's {} s are over", limit.as_secs());
        watch.send(&Event::Failed { step: None, message });
        watch.send(&Event::Done { passed: false });
        power_off(false);
    });
    let uptime = fs::read_to_string("/proc/uptime")?;
    let seconds = uptime.split_whitespace().next().context("/proc/uptime is empty")?;
    let uptime_ms = seconds.replace('.', "").parse::<u64>()? * 10;
    report.send(&Event::Booted { uptime_ms });
    Ok(())
}

fn take(index: usize, step: Step, jobs: &mut Jobs, report: &Report) -> Result<()> {
    match step {
        Step::Run { command, expect } => jobs.run(index, &command, expect),
        Step::Spawn { name, command } => jobs.spawn(index, name, &command),
        Step::Wait { name, expect, limit_s } => jobs.wait(&name, expect, limit_s),
        Step::Kill { name, signal, expect, limit_s } => jobs.kill(&name, signal, expect, limit_s),
        Step::WaitForPath { path, limit_s } => wait_for_path(&path, limit_s, jobs),
        Step::BindVfio { address, owner } => setup::bind_vfio(&address, owner),
        Step::Write { path, text } => fs::write(&path, text).with_context(|| format!("writing {path}")),
        Step::KernelLog => setup::kernel_log(|line| {
            let stream = Stream::Kernel;
            report.send(&Event::Output { step: index, stream, line });
        }),
    }
}

fn wait_for_path(path: &str, limit_s: u64, jobs: &mut Jobs) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(limit_s);
    while !Path::new(path).exists() {
        jobs.check_alive()?;
        if Instant::now() >= deadline {
            bail!("{path} did not appear within {limit_s} s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ends the machine at once, with a verdict that QEMU turns into its exit code.
fn power_off(passed: bool) -> ! {
    rustix::fs::sync();
    if let Ok(port) = OpenOptions::new().write(true).open("/dev/port") {
        let _ = port.write_at(&[if passed { PASSED } else { FAILED }], EXIT_PORT);
    }
    loop {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        std::thread::sleep(Duration::from_secs(1));
    }
}
