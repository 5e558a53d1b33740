//! Running one slice of a part.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::parts::{Part, Work};
use super::state::Done;
use crate::process::{self, Ended, cargo};
use crate::tally::{Kind, Tally};
use crate::{fuzz, report, test, tree};

/// A slice is ended after so long.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// So many lines of a slice are shown at most; its log has all of them.
const SHOWN: usize = 60;

/// So many lines that tell of a seed are shown again at the end.
const SEEDS_SHOWN: usize = 8;

/// A piece of a part that is run, and remembered, alone.
pub(super) struct Slice<'a> {
    pub(super) part: &'a Part,
    /// `simulation 3 of 20`, `fuzz control`.
    pub(super) label: String,
    first_seed: u64,
    /// Of a part that fuzzes.
    target: Option<String>,
}

/// What became of a slice.
pub(super) struct Finished {
    pub(super) done: Done,
    /// Why it failed.
    pub(super) trouble: Option<Trouble>,
}

/// What a person needs to look into a failure.
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) replay: String,
    pub(super) log: PathBuf,
    /// Lines that tell of a seed.
    pub(super) seeds: Vec<String>,
}

impl<'a> Slice<'a> {
    /// Those of a part, from a first seed on.
    pub(super) fn of(part: &'a Part, seed: u64) -> Result<Vec<Self>> {
        let target = |name: String| Self {
            part,
            label: format!("{} {name}", part.name),
            first_seed: seed,
            target: Some(name),
        };
        if let Work::Fuzz { .. } = part.work {
            return Ok(fuzz::targets()?.into_iter().map(target).collect());
        }
        let slice = |at: u64| Self {
            part,
            label: match part.slices {
                1 => part.name.to_owned(),
                all => format!("{} {} of {all}", part.name, at + 1),
            },
            first_seed: seed + at * part.seeds,
            target: None,
        };
        Ok((0..part.slices).map(slice).collect())
    }

    /// What its outcome is remembered by.
    pub(super) fn key(&self) -> String {
        format!("{}, seed {}", self.label, self.first_seed)
    }

    fn log(&self) -> Result<PathBuf> {
        let folder = tree::target_dir().join("soak/log");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder.join(format!("{}.log", self.label.replace(' ', "-"))))
    }

    /// The command, as it can be given by hand; `None` for one that runs no tests.
    fn command(&self) -> Result<Option<Command>> {
        let mut command = match self.part.work {
            Work::Test { of, .. } => test_command(of),
            Work::Loom => match test::loom_command()? {
                Some(command) => command,
                None => anyhow::bail!("no package has a test called `loom`"),
            },
            Work::Fuzz { .. } => return Ok(None),
        };
        command.env("PORTCULLIS_SOAK", "1").env("PORTCULLIS_SEED", self.first_seed.to_string());
        if self.part.slices > 1 || self.part.seeds > 1 {
            command.env("PORTCULLIS_SEEDS", self.part.seeds.to_string());
        }
        command.envs(self.part.environment.iter().copied());
        // What a test that passes has counted is wanted, too.
        command.args(["--", "--show-output"]);
        if self.part.cores == 1 {
            command.arg("--test-threads=1");
        }
        if let Work::Test { only, .. } = self.part.work {
            command.args(only.split_whitespace());
        }
        Ok(Some(command))
    }

    /// Runs it; lines worth showing go to standard error behind its label.
    pub(super) fn run(&self) -> Result<Finished> {
        match (&self.target, self.command()?) {
            (Some(target), _) => self.fuzz(target),
            (None, Some(command)) => self.test(command),
            (None, None) => anyhow::bail!("{} has nothing to run", self.label),
        }
    }

    fn test(&self, mut command: Command) -> Result<Finished> {
        let replay = process::line(&command);
        command.env("CARGO_TERM_COLOR", "never");
        let mut output = Output::new(self)?;
        let start = Instant::now();
        let ended = process::watch(&mut command, LIMIT, &mut |line| output.take(line))?;
        output.log.flush()?;
        let tally = output.tally;
        let what = match ended {
            Ended::Well if tally.passed == 0 => Some("no test ran".to_owned()),
            Ended::Well => None,
            Ended::TimedOut => Some(format!("it did not end in {}", report::seconds(LIMIT))),
            Ended::Badly if tally.failures.is_empty() => Some("it ended badly".to_owned()),
            Ended::Badly => Some(tally.failures.join(", ")),
        };
        let trouble =
            what.map(|what| Trouble { what, replay, log: output.path.clone(), seeds: output.seeds });
        let seconds = start.elapsed().as_secs_f64();
        Ok(Finished { done: Done { seconds, passed: tally.passed, counts: tally.counts }, trouble })
    }

    fn fuzz(&self, target: &str) -> Result<Finished> {
        let Work::Fuzz { seconds } = self.part.work else { anyhow::bail!("{} fuzzes nothing", self.label) };
        let mut output = Output::new(self)?;
        let fuzzed = fuzz::soak(target, seconds, self.first_seed, &mut |line| output.take(Some(line)))?;
        output.log.flush()?;
        let mut counts = output.tally.counts;
        *counts.entry(fuzz::COUNTED.to_owned()).or_default() += u64::from(fuzzed.trouble.is_none());
        *counts.entry("inputs".to_owned()).or_default() += fuzzed.inputs;
        let trouble = fuzzed.trouble.map(|(what, replay)| Trouble {
            what,
            replay,
            log: output.path.clone(),
            seeds: output.seeds,
        });
        let passed = u64::from(trouble.is_none());
        Ok(Finished { done: Done { seconds: fuzzed.time.as_secs_f64(), passed, counts }, trouble })
    }
}

/// `cargo test` with the profile of the soak.
pub(super) fn test_command(of: &str) -> Command {
    let mut command = cargo();
    command.args(["test", "--profile", "soak", "--no-fail-fast"]).args(of.split_whitespace());
    command
}

/// What a slice prints.
struct Output {
    label: String,
    path: PathBuf,
    log: BufWriter<File>,
    shown: usize,
    seeds: Vec<String>,
    tally: Tally,
}

impl Output {
    fn new(slice: &Slice<'_>) -> Result<Self> {
        let path = slice.log()?;
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            label: slice.label.clone(),
            path,
            log: BufWriter::new(log),
            shown: 0,
            seeds: Vec::new(),
            tally: Tally::default(),
        })
    }

    fn take(&mut self, line: Option<&str>) {
        let Some(line) = line else { return };
        // A log that cannot be written is no reason to stop testing.
        let _ = writeln!(self.log, "{line}");
        let kind = self.tally.line(line);
        if tells_of_a_seed(line) && self.seeds.len() < SEEDS_SHOWN {
            self.seeds.push(line.trim().to_owned());
        }
        // With `--show-output` what tests that passed have said comes last, and is for the log.
        if line.trim() == "successes:" {
            self.shown = SHOWN;
        }
        if kind == Kind::Show && self.shown < SHOWN {
            self.shown += 1;
            eprintln!("   {}: {line}", self.label);
        }
    }
}

/// Whether a line helps to repeat what failed.
fn tells_of_a_seed(line: &str) -> bool {
    line.contains("PORTCULLIS_SEED") || line.contains("replay")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::parts;

    #[test]
    fn slices_share_the_seeds_out() {
        for part in parts::all().unwrap() {
            let slices = Slice::of(&part, 1000).unwrap();
            let mut keys: Vec<_> = slices.iter().map(Slice::key).collect();
            keys.dedup();
            assert_eq!(keys.len(), slices.len());
            for (at, slice) in (0..).zip(&slices).filter(|_| !matches!(part.work, Work::Fuzz { .. })) {
                assert_eq!(slice.first_seed, 1000 + at * part.seeds);
                let line = process::line(&slice.command().unwrap().unwrap());
                assert!(line.contains(&format!("PORTCULLIS_SEED={}", slice.first_seed)), "{line}");
            }
        }
    }
}
