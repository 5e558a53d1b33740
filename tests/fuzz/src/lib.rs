//! What every fuzz target shares.
//!
//! A target is a plain function of bytes that must not panic, hang or touch memory that is not its own. Its binary
//! says so in one line:
//!
//! ```text
//! #![cfg_attr(fuzzing, no_main)]
//! fuzz::target!(wire::fuzz::control);
//! ```
//!
//! Built by `cargo xtask fuzz`, with `--cfg fuzzing`, libFuzzer calls the function. Built in any other way the binary
//! is the *smoke*: it runs the files given as arguments, or, with none, the seeds under `corpus/NAME` and a few
//! thousand inputs made from them and from a random generator, the same ones for the same `PORTCULLIS_SEED`. An input
//! that panics is kept in a file. One that aborts leaves no time for that: with `PORTCULLIS_FUZZ_KEEP=1` every input is
//! written before it is run.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use driver::dice::Dice;

/// A fuzz target, or the smoke of one.
#[macro_export]
macro_rules! target {
    ($function:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $function(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            fuzz::smoke(env!("CARGO_BIN_NAME"), $function)
        }
    };
}

/// Inputs of a smoke, unless `PORTCULLIS_FUZZ_INPUTS` says otherwise.
const INPUTS: u64 = 3000;

/// A smoke begins no new input after this long: one that is slow still ends.
const LIMIT: Duration = Duration::from_secs(90);

/// The longest input that is made up.
const LONGEST: usize = 2048;

/// Runs `function` over files or made-up inputs and prints as a test program does. A panic goes through, and the
/// input that caused it stays in a file whose name was printed.
pub fn smoke(name: &str, function: fn(&[u8])) -> ExitCode {
    let files: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let outcome = if files.is_empty() { made_up(name, function) } else { replay(&files, function) };
    match outcome {
        Ok(inputs) => {
            println!("{inputs} inputs");
            println!("test {name} ... ok");
            println!("test result: ok. 1 passed; 0 failed; 0 ignored");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn replay(files: &[PathBuf], function: fn(&[u8])) -> io::Result<u64> {
    for file in files {
        println!("replaying {}", file.display());
        function(&fs::read(file)?);
    }
    Ok(files.len() as u64)
}

fn made_up(name: &str, function: fn(&[u8])) -> io::Result<u64> {
    let number = |variable: &str| env::var(variable).ok().and_then(|value| value.parse().ok());
    let seed = number("PORTCULLIS_SEED").unwrap_or(1);
    let inputs = number("PORTCULLIS_FUZZ_INPUTS").unwrap_or(INPUTS);
    let corpus = corpus(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name))?;
    let kept = kept(name, seed)?;
    println!("seed {seed}");
    let keep = env::var_os("PORTCULLIS_FUZZ_KEEP").is_some();
    let start = Instant::now();
    let mut dice = Dice(seed);
    let mut done = 0;
    for input in corpus.iter().cloned().chain((0..inputs).map(|_| input(&mut dice, &corpus))) {
        if start.elapsed() > LIMIT {
            println!("stopped after {} s", LIMIT.as_secs());
            break;
        }
        if keep {
            fs::write(&kept, &input)?;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| function(&input))) {
            fs::write(&kept, &input)?;
            eprintln!("input {done} of seed {seed} is kept in {}", kept.display());
            resume_unwind(panic);
        }
        done += 1;
    }
    Ok(done)
}

/// The seeds in the tree, in the order of their names; none is fine.
fn corpus(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort();
    files.into_iter().map(fs::read).collect()
}

/// Where an input that panics is kept.
fn kept(name: &str, seed: u64) -> io::Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let folder = target.join("fuzz").join("artifacts").join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("smoke-{seed}-{}", std::process::id())))
}

/// A seed with a few changes, or bytes of no origin: even ones, small ones, or long runs.
fn input(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    if !corpus.is_empty() && dice.below(2) == 0 {
        let mut input = dice.pick(corpus);
        change(dice, &mut input);
        return input;
    }
    let length = 1 << dice.below(u64::from(LONGEST.ilog2()) + 1);
    let length = dice.index(length) + 1;
    let (kind, same) = (dice.below(3), dice.byte());
    let byte = |dice: &mut Dice| match kind {
        0 => dice.byte(),
        1 => dice.byte() & 7,
        _ => {
            if dice.below(8) == 0 {
                dice.byte()
            } else {
                same
            }
        }
    };
    (0..length).map(|_| byte(dice)).collect()
}

fn change(dice: &mut Dice, input: &mut Vec<u8>) {
    for _ in 0..=dice.below(4) {
        let at = dice.index(input.len() + 1);
        match dice.below(4) {
            0 => input.truncate(at),
            1 => input.insert(at, dice.byte()),
            2 if at < input.len() => input[at] ^= 1 << dice.below(8),
            _ if at < input.len() => input[at] = dice.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs() {
        let corpus = vec![b"seed".to_vec()];
        let inputs = |seed| {
            let mut dice = Dice(seed);
            (0..100).map(|_| input(&mut dice, &corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
        assert!(inputs(7).iter().all(|input| input.len() <= LONGEST + 4));
    }

    #[test]
    fn inputs_come_in_all_sizes() {
        let mut dice = Dice(1);
        let sizes: Vec<_> = (0..1000).map(|_| input(&mut dice, &[]).len()).collect();
        assert!(sizes.iter().any(|&size| size < 4) && sizes.iter().any(|&size| size > LONGEST / 2));
    }
}
