//! `cargo xtask test`: everything that CI runs after `check`, stage by stage, counted at the end.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;

use crate::process::{self, Ended, cargo};
use crate::requirements::Proven;
use crate::tally::{Kind, Tally};
use crate::{fuzz, guest, report, tree};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these stages, in the order given.
    stages: Vec<Stage>,
    /// The device of the suites in the stage `emu`.
    #[arg(long, default_value = "emu:64M")]
    device: String,
    /// Do without the QEMU guest.
    #[arg(long)]
    no_guest: bool,
}

/// A part of the tests that can be run alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Stage {
    /// Unit and property tests of every crate.
    Unit,
    /// The examples in the documentation.
    Doc,
    /// The queue protocols under every interleaving that matters (loom).
    Loom,
    /// A few thousand inputs for the function behind each fuzz target.
    Fuzz,
    /// The suites of the package `tests` on the embedded device.
    Emu,
    /// The same suites on VFIO in a QEMU guest.
    Guest,
}

impl Stage {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What a stage did.
struct Outcome {
    stage: Stage,
    time: Duration,
    tally: Tally,
    /// Why it failed, beyond the tests that failed.
    trouble: Option<String>,
    /// Why it was not run at all.
    skipped: Option<String>,
}

impl Outcome {
    fn passed(&self) -> bool {
        self.trouble.is_none() && self.tally.failed == 0
    }
}

/// A stage may take so long before it is ended.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// Runs the stages and prints the summary; whether all passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let stages = if args.stages.is_empty() { Stage::value_variants() } else { &args.stages };
    let mut outcomes = Vec::new();
    for &stage in stages {
        outcomes.push(run_stage(stage, args)?);
    }
    let trouble = summary(&outcomes)?;
    Ok(trouble == 0)
}

fn run_stage(stage: Stage, args: &Args) -> Result<Outcome> {
    let name = stage.name();
    eprintln!("\n== {name}");
    let start = Instant::now();
    let mut watcher = Watcher::new(&name)?;
    let mut skipped = None;
    let result = match stage {
        Stage::Unit => watcher.run(&mut unit()),
        Stage::Doc => watcher.run(cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"])),
        Stage::Loom => loom(&mut watcher),
        Stage::Fuzz => fuzz::smoke(&mut watcher),
        Stage::Emu => suites_on_emu(&mut watcher, &args.device),
        Stage::Guest if args.no_guest => {
            skipped = Some("--no-guest was given".to_owned());
            Ok(None)
        }
        Stage::Guest => guest::suites(&mut watcher),
    };
    let tally = watcher.tally;
    let mut trouble = result.unwrap_or_else(|error| Some(format!("{error:#}")));
    if trouble.is_none() && skipped.is_none() && tally.passed + tally.failed == 0 {
        trouble = Some("no test ran".to_owned());
    }
    let outcome = Outcome { stage, time: start.elapsed(), tally, trouble, skipped };
    eprintln!("   {}", describe(&outcome));
    Ok(outcome)
}

fn unit() -> Command {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--exclude",
        "tests",
        "--lib",
        "--bins",
        "--tests",
        "--no-fail-fast",
    ]);
    command
}

/// The test programs of the package `tests`.
pub(crate) fn suites() -> Result<Vec<String>> {
    let metadata = tree::metadata()?;
    let package =
        metadata.packages.iter().find(|package| package.name == "tests").context("no package `tests`")?;
    let tests = package.targets.iter().filter(|target| target.kind.iter().any(|kind| kind == "test"));
    Ok(tests.map(|target| target.name.clone()).collect())
}

/// The suites that must hold on each kind of device that there is a driver for; the others show the same on any.
pub(crate) const ON_EACH_DEVICE: [&str; 3] = ["conformance", "system", "faults"];

/// How many suites run beside one another: on two cores one of them often waits.
const BESIDE: usize = 2;

/// Builds the suites, then runs each as a process of its own, some beside others.
fn suites_on_emu(watcher: &mut Watcher, device: &str) -> Result<Option<String>> {
    let tests = |device: &str| {
        let mut command = cargo();
        command.args(["test", "--package", "tests", "--no-fail-fast"]).env("PORTCULLIS_DEVICE", device);
        command
    };
    if let Some(trouble) = watcher.run(tests(device).args(["--lib", "--bins", "--tests", "--no-run"]))? {
        return Ok(Some(trouble));
    }
    let suites = suites()?;
    // From the end: the last is begun first.
    let on_it = ["lib"].into_iter().chain(suites.iter().map(String::as_str)).map(|suite| (suite, device));
    let virtio = device.strip_prefix("emu:").map(|rest| format!("emu-virtio:{rest}"));
    let on_virtio = virtio.iter().flat_map(|device| ON_EACH_DEVICE.map(|suite| (suite, device.as_str())));
    let waiting: Vec<(&str, &str)> = on_virtio.chain(on_it).collect();
    let waiting = Mutex::new(waiting);
    let run = || -> Result<Vec<(Tally, Option<String>)>> {
        let mut ended = Vec::new();
        loop {
            let next = waiting.lock().map_err(|_| anyhow!("another suite's run panicked"))?.pop();
            let Some((name, device)) = next else { return Ok(ended) };
            let mut command = tests(device);
            match name {
                "lib" => command.arg("--lib"),
                suite => command.args(["--test", suite]),
            };
            let kind = device.split_once(':').map_or(device, |(kind, _)| kind);
            let mut watcher = Watcher::new(&format!("{kind}-{name}"))?;
            let trouble = watcher.run(&mut command)?;
            ended.push((watcher.tally, trouble));
        }
    };
    let ended = thread::scope(|scope| {
        let runs: Vec<_> = (0..BESIDE).map(|_| scope.spawn(run)).collect();
        let join = |run: thread::ScopedJoinHandle<'_, _>| {
            run.join().unwrap_or_else(|_| Err(anyhow!("the run of a suite panicked")))
        };
        runs.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let mut troubles = Vec::new();
    for (tally, trouble) in ended.into_iter().flatten() {
        watcher.tally.add(tally);
        troubles.extend(trouble);
    }
    Ok(Some(troubles.join("; ")).filter(|trouble| !trouble.is_empty()))
}

/// Runs the models of every package that has a test called `loom`; `None` if none has.
pub(crate) fn loom_command() -> Result<Option<Command>> {
    let mut command = cargo();
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", tree::target_dir().join("loom"));
    command.args(["test", "--release", "--test", "loom", "--no-fail-fast"]);
    for package in &tree::metadata()?.packages {
        if package.targets.iter().any(|target| target.name == "loom") {
            command.args(["--package", &package.name]);
        }
    }
    let any = command.get_args().any(|argument| argument == "--package");
    Ok(any.then_some(command))
}

fn loom(watcher: &mut Watcher) -> Result<Option<String>> {
    match loom_command()? {
        Some(mut command) => watcher.run(&mut command),
        None => Ok(Some("no package has a test called `loom`".to_owned())),
    }
}

/// Runs the commands of a stage: counts, keeps a log, shows what matters and that something is going on.
pub(crate) struct Watcher {
    stage: String,
    log: io::BufWriter<fs::File>,
    log_path: String,
    start: Instant,
    shown: Instant,
    doing: String,
    pub(crate) tally: Tally,
}

/// A line of progress after so long a silence.
const SILENCE: Duration = Duration::from_secs(20);

impl Watcher {
    pub(crate) fn new(stage: &str) -> Result<Self> {
        let folder = tree::target_dir().join("xtask");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{stage}.log"));
        let log = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let now = Instant::now();
        Ok(Self {
            stage: stage.to_owned(),
            log: io::BufWriter::new(log),
            log_path: path.display().to_string(),
            start: now,
            shown: now,
            doing: "starting".to_owned(),
            tally: Tally::default(),
        })
    }

    /// Runs a command whose tests are counted; what went wrong beyond failed tests.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<Option<String>> {
        command.env("CARGO_TERM_COLOR", "never");
        let failed_before = self.tally.failed;
        let ended = process::watch(command, LIMIT, &mut |line| self.take(line))?;
        self.log.flush()?;
        Ok(match ended {
            Ended::Well => None,
            Ended::Badly if self.tally.failed > failed_before => None,
            Ended::Badly => {
                Some(format!("`{}` failed; the log is {}", process::line(command), self.log_path))
            }
            Ended::TimedOut => {
                Some(format!("`{}` did not end in {}", process::line(command), report::seconds(LIMIT)))
            }
        })
    }

    /// Takes a line of output, or `None` for a moment without one.
    pub(crate) fn take(&mut self, line: Option<&str>) {
        if let Some(line) = line {
            // A log that cannot be written is no reason to stop testing.
            let _ = writeln!(self.log, "{line}");
            match self.tally.line(line) {
                Kind::Quiet => self.doing = format!("{} tests so far", self.tally.names.len()),
                Kind::Building => self.doing = line.trim().to_lowercase(),
                Kind::Show => {
                    eprintln!("   {}: {line}", self.stage);
                    self.shown = Instant::now();
                }
            }
        }
        if self.shown.elapsed() >= SILENCE {
            self.shown = Instant::now();
            eprintln!("   {}: {}, {}", self.stage, report::seconds(self.start.elapsed()), self.doing);
        }
    }
}

fn describe(outcome: &Outcome) -> String {
    if let Some(reason) = &outcome.skipped {
        return format!("skipped: {reason}");
    }
    let tally = &outcome.tally;
    let counts = format!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.ignored);
    match &outcome.trouble {
        Some(trouble) => format!("{counts}; FAILED: {trouble}"),
        None => counts,
    }
}

/// The table, what failed, what was skipped and why, what is proven, and the closing line that CI reads; how many
/// failures it counts.
fn summary(outcomes: &[Outcome]) -> Result<u64> {
    let mut rows = vec![["stage", "", "time", ""].map(str::to_owned).to_vec()];
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for outcome in outcomes {
        let verdict = match (&outcome.skipped, outcome.passed()) {
            (Some(_), _) => "skipped",
            (None, true) => "ok",
            (None, false) => "FAIL",
        };
        rows.push(vec![
            outcome.stage.name(),
            verdict.to_owned(),
            report::seconds(outcome.time),
            describe(outcome),
        ]);
        passed += outcome.tally.passed;
        failed += outcome.tally.failed + u64::from(outcome.trouble.is_some());
        skipped += outcome.tally.ignored + u64::from(outcome.skipped.is_some());
    }
    println!("\n{}", report::table(&rows));
    for outcome in outcomes {
        for name in &outcome.tally.failures {
            println!("failed in {}: {name}", outcome.stage.name());
        }
        for skip in &outcome.tally.skips {
            println!("skipped in {}: {}: {}", outcome.stage.name(), skip.name, skip.reason);
        }
    }
    if let Some(line) = devices(outcomes) {
        println!("{line}");
    }
    if let Some(line) = by_device(outcomes) {
        println!("{line}");
    }
    failed += requirements(outcomes)?;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed)
}

/// Prints which requirements the tests that passed prove; how many failures that makes. All must be proven when all
/// stages ran.
fn requirements(outcomes: &[Outcome]) -> Result<u64> {
    let proven = Proven::by(outcomes.iter().flat_map(|outcome| &outcome.tally.names));
    let stages: Vec<String> = outcomes.iter().map(|outcome| outcome.stage.name()).collect();
    let all = Stage::value_variants().iter().all(|stage| stages.contains(&stage.name()));
    let file = proven.write(&stages)?;
    println!("\nrequirements proven by tests that passed in the stages run (by which: {file})");
    for line in proven.lines() {
        println!("{line}");
    }
    let mut failures = 0;
    if all {
        for requirement in proven.missing() {
            failures += 1;
            println!("failed: no test that passed proves {requirement}");
        }
        let on_devices = outcomes.iter().filter(|its| matches!(its.stage, Stage::Emu | Stage::Guest));
        for outcome in on_devices.filter(|outcome| outcome.skipped.is_none()) {
            for requirement in Proven::by(&outcome.tally.names).missing_on_a_device() {
                failures += 1;
                println!("failed: no test that passed in {} proves {requirement}", outcome.stage.name());
            }
        }
    }
    for (requirement, test) in proven.unknown() {
        failures += 1;
        println!("failed: {test} names {requirement}, which there is not");
    }
    println!();
    Ok(failures)
}

/// How many tests ran on `emu:`, and how many of the same on `vfio:`.
fn devices(outcomes: &[Outcome]) -> Option<String> {
    let of = |stage| outcomes.iter().find(|outcome| outcome.stage == stage);
    let emu = of(Stage::Emu)?;
    let guest = of(Stage::Guest)?;
    let both = emu.tally.names.intersection(&guest.tally.names).count();
    let mut line = format!(
        "{} tests passed on emu:, {both} of the same on vfio: in the guest ({} there in all)",
        emu.tally.passed, guest.tally.passed
    );
    if let Some(reason) = guest.skipped.as_ref().or(guest.trouble.as_ref()) {
        line.push_str(&format!("; {reason}"));
    }
    Some(line)
}

/// How many tests of the suites passed on each device, as the suites counted them.
fn by_device(outcomes: &[Outcome]) -> Option<String> {
    let mut devices = BTreeMap::<&str, u64>::new();
    for (what, number) in outcomes.iter().flat_map(|outcome| &outcome.tally.counts) {
        if let Some(device) = what.strip_prefix("tests passed on ") {
            *devices.entry(device).or_default() += number;
        }
    }
    let all: Vec<String> = devices.iter().map(|(device, number)| format!("{number} on {device}")).collect();
    (!all.is_empty()).then(|| format!("tests passed by device: {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_by_device() {
        let mut outcomes = [outcome(Stage::Emu, &["a"]), outcome(Stage::Guest, &["a"])];
        assert_eq!(by_device(&outcomes), None);
        outcomes[0].tally.line("counted: 75 tests passed on emu:");
        outcomes[0].tally.line("counted: 60 tests passed on emu:");
        outcomes[1].tally.line("counted: 24 tests passed on vfio: virtio-blk");
        let line = by_device(&outcomes).unwrap();
        assert_eq!(line, "tests passed by device: 135 on emu:, 24 on vfio: virtio-blk");
    }

    fn outcome(stage: Stage, names: &[&str]) -> Outcome {
        let mut tally = Tally::default();
        tally.names.extend(names.iter().map(|name| (*name).to_owned()));
        tally.passed = tally.names.len() as u64;
        Outcome { stage, time: Duration::ZERO, tally, trouble: None, skipped: None }
    }

    #[test]
    fn the_same_tests_are_counted_on_both_devices() {
        let outcomes = [outcome(Stage::Emu, &["a", "b", "c"]), outcome(Stage::Guest, &["b", "c", "d"])];
        let line = devices(&outcomes).unwrap();
        assert_eq!(line, "3 tests passed on emu:, 2 of the same on vfio: in the guest (3 there in all)");
        assert!(devices(&outcomes[..1]).is_none());
    }

    #[test]
    fn trouble_is_a_failure_without_a_failed_test() {
        let mut broken = outcome(Stage::Unit, &["a"]);
        assert!(broken.passed());
        broken.trouble = Some("did not build".to_owned());
        assert!(!broken.passed());
    }
}
