//! `cargo xtask fuzz`: libFuzzer with the address sanitizer on a stable compiler; and the smoke of every target.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, Ended, cargo};
use crate::test::Watcher;
use crate::{report, tree};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target; all of them when none is named.
    target: Option<String>,
    /// How long each is fuzzed.
    #[arg(default_value_t = 60)]
    seconds: u64,
}

/// The target that has to crash, so that the apparatus is itself tested.
const CANARY: &str = "canary";

/// How long the canary may take to be found.
const CANARY_SECONDS: u64 = 60;

/// Coverage for libFuzzer, the address sanitizer, and `cfg(fuzzing)`.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1";

/// `--target`, even though it is the host: build scripts and macros then stay as they are.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The names of all targets but the canary.
pub(crate) fn targets() -> Result<Vec<String>> {
    let metadata = tree::metadata()?;
    let package =
        metadata.packages.iter().find(|package| package.name == "fuzz").context("no package `fuzz`")?;
    let binaries = package.targets.iter().filter(|target| target.kind.iter().any(|kind| kind == "bin"));
    let mut names: Vec<String> =
        binaries.map(|target| target.name.clone()).filter(|name| name != CANARY).collect();
    names.sort();
    Ok(names)
}

/// What fuzzing one target gave.
struct Run {
    name: String,
    time: Duration,
    executions: Option<u64>,
    coverage: Option<u64>,
    ended: Ended,
    /// The address sanitizer spoke.
    sanitizer: bool,
    /// Inputs that were kept because they crashed, hung or ate too much.
    found: Vec<PathBuf>,
}

impl Run {
    fn well(&self) -> bool {
        self.ended == Ended::Well && self.found.is_empty()
    }

    /// Of the canary: that it was found as it should be.
    fn found_dead(&self) -> bool {
        self.sanitizer && !self.found.is_empty()
    }
}

/// Fuzzes one target or all; whether nothing was found, and the canary was.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let known = targets()?;
    let chosen = match &args.target {
        None => known,
        Some(name) if known.contains(name) => vec![name.clone()],
        Some(name) => bail!("no fuzz target is called {name:?}; there are {}", known.join(", ")),
    };
    build()?;
    let canary = one(CANARY, CANARY_SECONDS, 0, &mut |_| ())?;
    let found_dead = canary.found_dead();
    let mut runs = Vec::new();
    for name in &chosen {
        eprintln!("\n== {name}, {} s", args.seconds);
        runs.push(one(name, args.seconds, 0, &mut |line| eprintln!("   {line}"))?);
    }
    print(&canary, found_dead, &runs);
    Ok(found_dead && runs.iter().all(Run::well))
}

fn folder() -> PathBuf {
    tree::target_dir().join("fuzz")
}

fn build() -> Result<()> {
    ensure!(has_compiler(), "libFuzzer needs a C++ compiler: apt-get install g++");
    eprintln!("fuzz: building with coverage and the address sanitizer");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "fuzz", "--bins", "--target", TRIPLE]);
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", folder());
    // Wrapped arithmetic and broken assertions are findings too. Link-time optimisation would only cost time.
    command.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true").env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    ensure!(process::passes(&mut command)?, "the fuzz targets do not build");
    Ok(())
}

/// Fuzzes one target from a seed (0: a new one each time); `show` gets its lines that are worth it.
fn one(name: &str, seconds: u64, seed: u64, show: &mut dyn FnMut(&str)) -> Result<Run> {
    let artifacts = folder().join("artifacts").join(name);
    let corpus = folder().join("corpus").join(name);
    if name == CANARY {
        // What it learned last time would make it easy.
        remove(&artifacts)?;
        remove(&corpus)?;
    }
    fs::create_dir_all(&artifacts)?;
    fs::create_dir_all(&corpus)?;
    let before = files(&artifacts)?;
    let mut command = Command::new(folder().join(TRIPLE).join("release").join(name));
    command.current_dir(tree::root());
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-timeout=20", "-rss_limit_mb=3072", "-max_len=4096", "-print_final_stats=1"]);
    command.arg(format!("-seed={}", u32::try_from(seed).unwrap_or(u32::MAX))).arg(&corpus);
    let seeds = tree::root().join("tests/fuzz/corpus").join(name);
    command.args(Some(seeds).filter(|seeds| seeds.is_dir()));
    let start = Instant::now();
    let mut run = Run {
        name: name.to_owned(),
        time: Duration::ZERO,
        executions: None,
        coverage: None,
        ended: Ended::Badly,
        sanitizer: false,
        found: Vec::new(),
    };
    let mut shown = Instant::now();
    let limit = Duration::from_secs(seconds + 120);
    run.ended = process::watch(&mut command, limit, &mut |line| {
        let Some(line) = line else { return };
        let progress = run.take(line);
        let soon = progress && shown.elapsed() < Duration::from_secs(10);
        if !soon && !line.starts_with("stat::") && !line.starts_with("INFO:") {
            show(line);
            shown = Instant::now();
        }
    })?;
    run.time = start.elapsed();
    run.found = files(&artifacts)?.into_iter().filter(|file| !before.contains(file)).collect();
    Ok(run)
}

impl Run {
    /// Takes a line of libFuzzer's; whether it is one of its lines of progress.
    fn take(&mut self, line: &str) -> bool {
        let after = |word: &str| line.split_once(word)?.1.split_whitespace().next()?.parse::<u64>().ok();
        if let Some(executions) = after("stat::number_of_executed_units:") {
            self.executions = Some(executions);
        }
        self.sanitizer |= line.contains("ERROR: AddressSanitizer: heap-buffer-overflow");
        if !line.starts_with('#') {
            return false;
        }
        self.coverage = after(" cov: ").or(self.coverage);
        let executions = line[1..].split_whitespace().next().and_then(|number| number.parse().ok());
        self.executions = executions.or(self.executions);
        true
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn print(canary: &Run, found_dead: bool, runs: &[Run]) {
    let mut rows = vec![["target", "", "time", "inputs", "a second", "edges"].map(str::to_owned).to_vec()];
    let verdict = if found_dead { "found dead, as it must" } else { "NOT FOUND: the fuzzer does not work" };
    rows.push(row(canary, verdict));
    for run in runs {
        rows.push(row(run, if run.well() { "nothing found" } else { "FOUND" }));
    }
    println!("\n{}", report::table(&rows));
    for run in runs.iter().filter(|run| !run.well()) {
        if run.found.is_empty() {
            println!("{}: ended {:?} without keeping an input; see its output above", run.name, run.ended);
        }
        for file in &run.found {
            println!("{}: {}", run.name, file.display());
            println!("  replay: cargo run --package fuzz --bin {} -- {}", run.name, file.display());
            let binary = folder().join(TRIPLE).join("release").join(&run.name);
            println!("  with the sanitizer: {} {}", binary.display(), file.display());
        }
    }
}

fn row(run: &Run, verdict: &str) -> Vec<String> {
    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let rate = run.executions.map(|executions| executions / run.time.as_secs().max(1));
    vec![
        run.name.clone(),
        verdict.to_owned(),
        report::seconds(run.time),
        number(run.executions),
        number(rate),
        number(run.coverage),
    ]
}

/// A few thousand inputs for each target, without instrumentation; that the canary fails when it should.
pub(crate) fn smoke(watcher: &mut Watcher) -> Result<Option<String>> {
    if !process::passes(cargo().args(["build", "--quiet", "--package", "fuzz", "--bins"]))? {
        return Ok(Some("the fuzz targets do not build".to_owned()));
    }
    let binaries = tree::target_dir().join("debug");
    for name in targets()? {
        watcher.tally.enter("fuzz");
        let mut command = Command::new(binaries.join(&name));
        command.current_dir(tree::root());
        if watcher.run(&mut command)?.is_some() {
            watcher.take(Some(&format!("test {name} ... FAILED")));
            watcher.take(Some("test result: FAILED. 0 passed; 1 failed; 0 ignored"));
        }
    }
    Ok((!canary_dies(&binaries)?).then(|| "the canary survived".to_owned()))
}

/// Whether the canary among these programs ends badly on what it must end badly on.
fn canary_dies(binaries: &Path) -> Result<bool> {
    let folder = tree::target_dir().join("xtask");
    fs::create_dir_all(&folder)?;
    let letters = folder.join("canary");
    fs::write(&letters, "gate and more")?;
    Ok(process::output(Command::new(binaries.join(CANARY)).arg(&letters)).is_err())
}

/// What a soak counts of this.
pub(crate) const COUNTED: &str = "fuzz targets";

/// What a soak is told of one target.
pub(crate) struct Fuzzed {
    pub(crate) time: Duration,
    pub(crate) inputs: u64,
    /// What went wrong, and the command that repeats it.
    pub(crate) trouble: Option<(String, String)>,
}

fn has_compiler() -> bool {
    Command::new("c++").arg("--version").output().is_ok()
}

/// Before any [`soak`]: builds the targets and sees that the canary is found. Without a C++ compiler there is no
/// libFuzzer, and the targets get made-up inputs in an ordinary process.
pub(crate) fn prepare() -> Result<()> {
    if has_compiler() {
        build()?;
        ensure!(one(CANARY, CANARY_SECONDS, 0, &mut |_| ())?.found_dead(), "the fuzzer missed the canary");
        return Ok(());
    }
    eprintln!("fuzz: without libFuzzer, for want of a C++ compiler (apt-get install g++)");
    let mut command = cargo();
    command.args(["build", "--quiet", "--profile", "soak", "--package", "fuzz", "--bins"]);
    ensure!(process::passes(&mut command)?, "the fuzz targets do not build");
    ensure!(canary_dies(&tree::target_dir().join("soak"))?, "the canary survived");
    Ok(())
}

/// Fuzzes one target for so long, with libFuzzer if it can be had.
pub(crate) fn soak(name: &str, seconds: u64, seed: u64, show: &mut dyn FnMut(&str)) -> Result<Fuzzed> {
    if has_compiler() {
        let run = one(name, seconds, seed, show)?;
        let found: Vec<String> = run.found.iter().map(|file| file.display().to_string()).collect();
        let replay = format!("cargo run --package fuzz --bin {name} -- {}", found.join(" "));
        let what = if found.is_empty() { "it ended badly" } else { "an input was found" };
        let trouble = (!run.well()).then(|| (what.to_owned(), replay));
        return Ok(Fuzzed { time: run.time, inputs: run.executions.unwrap_or(0), trouble });
    }
    let mut command = Command::new(tree::target_dir().join("soak").join(name));
    command.current_dir(tree::root());
    command.env("PORTCULLIS_SEED", seed.to_string()).env("PORTCULLIS_FUZZ_INPUTS", u64::MAX.to_string());
    let (start, mut inputs) = (Instant::now(), 0);
    let ended = process::watch(&mut command, Duration::from_secs(seconds + 120), &mut |line| {
        let Some(line) = line else { return };
        inputs = line.strip_suffix(" inputs").and_then(|number| number.parse().ok()).unwrap_or(inputs);
        show(line);
    })?;
    let trouble = (ended != Ended::Well).then(|| (format!("it ended {ended:?}"), process::line(&command)));
    Ok(Fuzzed { time: start.elapsed(), inputs, trouble })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libfuzzer_are_understood() {
        let mut run = Run {
            name: String::new(),
            time: Duration::ZERO,
            executions: None,
            coverage: None,
            ended: Ended::Well,
            sanitizer: false,
            found: Vec::new(),
        };
        assert!(run.take("#2097152\tpulse  cov: 36 ft: 37 corp: 5/20b lim: 4096 exec/s: 699050 rss: 50Mb"));
        assert_eq!((run.executions, run.coverage), (Some(2_097_152), Some(36)));
        assert!(!run.take("stat::number_of_executed_units: 2500000"));
        assert_eq!(run.executions, Some(2_500_000));
        assert!(!run.take("==1==ERROR: AddressSanitizer: heap-buffer-overflow on"));
        assert!(run.sanitizer);
    }
}
