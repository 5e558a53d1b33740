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
fn targets() -> Result<Vec<String>> {
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
    let canary = one(CANARY, CANARY_SECONDS)?;
    let found_dead = canary.sanitizer && !canary.found.is_empty();
    let mut runs = Vec::new();
    for name in &chosen {
        runs.push(one(name, args.seconds)?);
    }
    print(&canary, found_dead, &runs);
    Ok(found_dead && runs.iter().all(Run::well))
}

fn folder() -> PathBuf {
    tree::target_dir().join("fuzz")
}

fn build() -> Result<()> {
    let compiler = Command::new("c++").arg("--version").output();
    ensure!(compiler.is_ok(), "libFuzzer needs a C++ compiler: apt-get install g++");
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

fn one(name: &str, seconds: u64) -> Result<Run> {
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
    command.args(["-timeout=20", "-rss_limit_mb=3072", "-max_len=4096", "-print_final_stats=1"]).arg(&corpus);
    let seeds = tree::root().join("tests/fuzz/corpus").join(name);
    command.args(Some(seeds).filter(|seeds| seeds.is_dir()));
    eprintln!("\n== {name}, {seconds} s");
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
        if !soon && name != CANARY && !line.starts_with("stat::") && !line.starts_with("INFO:") {
            eprintln!("   {line}");
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
pub(crate) fn smoke(watcher: &mut Watcher, environment: &[(&str, String)]) -> Result<Option<String>> {
    if !process::passes(cargo().args(["build", "--quiet", "--package", "fuzz", "--bins"]))? {
        return Ok(Some("the fuzz targets do not build".to_owned()));
    }
    let binaries = tree::target_dir().join("debug");
    let mut trouble = Vec::new();
    for name in targets()? {
        watcher.tally.enter("fuzz");
        let mut command = Command::new(binaries.join(&name));
        command.current_dir(tree::root()).envs(environment.iter().map(|(name, value)| (name, value)));
        if watcher.run(&mut command)?.is_some() {
            watcher.take(Some(&format!("test {name} ... FAILED")));
            watcher.take(Some("test result: FAILED. 0 passed; 1 failed; 0 ignored"));
        }
    }
    let letters = tree::target_dir().join("xtask/canary");
    fs::write(&letters, "gate and more")?;
    if process::output(Command::new(binaries.join(CANARY)).arg(&letters)).is_ok() {
        trouble.push("the canary survived");
    }
    Ok(Some(trouble.join(", ")).filter(|text| !text.is_empty()))
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
