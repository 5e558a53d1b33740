//! `cargo xtask soak`: the same tests with the large counts and many seeds, resumable.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::test::{self, Stage};
use crate::{process, tree};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Begin no further step after this many minutes.
    #[arg(long, default_value_t = 80)]
    minutes: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 8)]
    rounds: u64,
    /// Forget what was done.
    #[arg(long)]
    fresh: bool,
    /// Do without the QEMU guest.
    #[arg(long)]
    no_guest: bool,
}

/// What was done of which tree.
#[derive(Default, Serialize, Deserialize)]
struct State {
    /// The commit and the changes on top of it.
    tree: String,
    /// By step: how many tests passed in it.
    done: BTreeMap<String, u64>,
}

/// A stage with a seed. Stages that no seed changes run once.
fn steps(rounds: u64, no_guest: bool) -> Vec<(Stage, u64)> {
    let mut steps = vec![(Stage::Loom, 1)];
    for seed in 1..=rounds {
        steps.extend([(Stage::Unit, seed), (Stage::Fuzz, seed), (Stage::Emu, seed)]);
        if !no_guest {
            steps.push((Stage::Guest, seed));
        }
    }
    steps
}

/// Takes up where the last soak of this tree stopped; whether all that ran passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let file = tree::target_dir().join("soak/state.json");
    let mut state = load(&file, args.fresh)?;
    let steps = steps(args.rounds, args.no_guest);
    let deadline = Instant::now() + Duration::from_secs(args.minutes * 60);
    let mut outcomes = Vec::new();
    let mut left = 0;
    for (stage, seed) in steps {
        let key = format!("{} with seed {seed}", stage.name());
        if let Some(passed) = state.done.get(&key) {
            eprintln!("soak: {key} was done before ({passed} passed)");
            continue;
        }
        if Instant::now() >= deadline {
            left += 1;
            continue;
        }
        eprintln!("soak: {key}");
        let outcome = test::run_stage(stage, &test::Args::plain(args.no_guest), &environment(seed))?;
        if outcome.passed() {
            state.done.insert(key, outcome.tally.passed);
            save(&file, &state)?;
        } else {
            eprintln!("soak: failed: {key}");
        }
        outcomes.push(outcome);
    }
    test::summary(&outcomes);
    println!("{} steps done in all, {left} left; run it again to go on", state.done.len());
    Ok(outcomes.iter().all(test::Outcome::passed))
}

fn environment(seed: u64) -> [(&'static str, String); 4] {
    [
        ("PORTCULLIS_SOAK", "1".to_owned()),
        ("PORTCULLIS_SEED", seed.to_string()),
        ("PORTCULLIS_FUZZ_INPUTS", "200000".to_owned()),
        ("PROPTEST_CASES", "4096".to_owned()),
    ]
}

/// The state of this very tree; an empty one for any other.
fn load(file: &PathBuf, fresh: bool) -> Result<State> {
    let now = State { tree: identity()?, done: BTreeMap::new() };
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(now),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let state: State =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    Ok(if fresh || state.tree != now.tree { now } else { state })
}

fn save(file: &PathBuf, state: &State) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_string_pretty(state)?)?;
    fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))
}

fn identity() -> Result<String> {
    let git = |args: &[&str]| process::output(Command::new("git").current_dir(tree::root()).args(args));
    let mut changes = DefaultHasher::new();
    git(&["diff", "HEAD"])?.hash(&mut changes);
    Ok(format!("{} + {:016x}", git(&["rev-parse", "HEAD"])?.trim(), changes.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_own_key() {
        let steps = steps(3, false);
        let mut keys: Vec<_> = steps.iter().map(|(stage, seed)| format!("{stage:?} {seed}")).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 13);
    }
}
