//! Instructions, counted by callgrind: they do not change with what else the machine does.
//!
//! Callgrind is driven directly. What gungraun would add to it, a runner of exactly its own version, has to be installed
//! beside the workspace's dependencies, and what is wanted of it here is one number: what was collected inside of a function.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::figure::{Figure, Side};
use super::sources::build;
use crate::process;

const DEPTH: u64 = 32;

fn rounds(quick: bool) -> u64 {
    if quick { 20 } else { 1000 }
}

/// Makes sure that valgrind is there; as root on Debian it is installed.
fn install() -> Result<()> {
    let there = || Command::new("valgrind").arg("--version").output().is_ok_and(|out| out.status.success());
    if there() {
        return Ok(());
    }
    let by_hand = "apt-get install --no-install-recommends valgrind libc6-dbg";
    ensure!(rustix::process::geteuid().is_root(), "callgrind is not installed; as root: {by_hand}");
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["-q", "-y", "install", "--no-install-recommends", "valgrind", "libc6-dbg"]);
    if !process::passes(&mut command)? {
        process::passes(Command::new("apt-get").args(["-q", "update"]))?;
        process::passes(&mut command)?;
    }
    ensure!(there(), "callgrind could not be installed; by hand: {by_hand}");
    Ok(())
}

/// Instructions inside of the functions that `inside` names, in a run of `program`.
fn count(program: &Path, arguments: &[String], inside: &str) -> Result<f64> {
    install()?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(format!("--toggle-collect={inside}")).arg(program).args(arguments);
    let output = command.output().with_context(|| format!("cannot run `{}`", process::line(&command)))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed: {told}", process::line(&command));
    let collected =
        collected(&told).with_context(|| format!("callgrind did not say what it collected: {told}"))?;
    if collected == 0 {
        bail!("nothing was collected inside of {inside}: it may be inlined");
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let collected = collected as f64;
    Ok(collected)
}

/// `==123== Collected : 456`
fn collected(told: &str) -> Option<u64> {
    told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

fn figure(name: &str, unit: &str, sides: [(&str, f64); 2]) -> Figure {
    let sides = sides.map(|(name, value)| Side { name: name.to_owned(), rounds: vec![value] });
    Figure { name: name.to_owned(), unit: unit.to_owned(), sides: sides.into(), ..Figure::default() }
}

/// What a turn with 32 requests costs for each of them, and the device queue alone.
pub(crate) fn turn(quick: bool) -> Result<Figure> {
    let program = build("turns")?;
    let each = |inside: &str| in_turns(&program, rounds(quick), &["1"], inside);
    let sides = [("turn", each("turns::turned*")?), ("submit and reap", each("turns::bare*")?)];
    Ok(figure("turn-instructions", "instructions/request", sides))
}

/// The same turn, alone and with a thousand more queues attached.
pub(crate) fn idle_queues(quick: bool) -> Result<Figure> {
    let program = build("turns")?;
    let each = |queues| in_turns(&program, rounds(quick), &[queues], "turns::turned*");
    let sides = [("1,000 idle queues", each("1001")?), ("none", each("1")?)];
    Ok(figure("idle-instructions", "instructions/request", sides))
}

/// The same turn with reads by the key of a file, beside reads of a grant of blocks.
pub(crate) fn file(quick: bool) -> Result<Figure> {
    let program = build("turns")?;
    let each = |at: &str, extensions: &str| {
        in_turns(&program, rounds(quick), &["1", at, extensions], "turns::turned*")
    };
    let sides = [("first extension", each("first", "16")?), ("grant of blocks", each("blocks", "1")?)];
    let mut figure = figure("file-instructions", "instructions/request", sides);
    for (name, at, extensions) in [
        ("later extensions in order, of 16", "later", "16"),
        ("later extensions in order, of 1,000", "later", "1000"),
        ("any extension, of 16", "all", "16"),
        ("any extension, of 1,000", "all", "1000"),
    ] {
        figure.sides.push(Side { name: name.to_owned(), rounds: vec![each(at, extensions)?] });
    }
    Ok(figure)
}

/// Of one request. What is done once, as the program starts, is left out by a run of no rounds.
fn in_turns(program: &Path, rounds: u64, rest: &[&str], inside: &str) -> Result<f64> {
    let run = |rounds: u64| {
        let arguments = [DEPTH.to_string(), rounds.to_string()];
        count(
            program,
            &[&arguments, &rest.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()[..]].concat(),
            inside,
        )
    };
    // One round more than none, as nothing at all is an error.
    let (few, many) = (run(1)?, run(1 + rounds)?);
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let requests = (DEPTH * rounds) as f64;
    Ok((many - few) / requests)
}

/// What the table part of a check takes, and a bare index, without the loop that makes up requests.
pub(crate) fn check(quick: bool) -> Result<Figure> {
    const ENTRIES: u64 = 1000;
    let program = build("check")?;
    let requests = if quick { 1000 } else { 100_000_u32 };
    let each = |subject: &str| -> Result<f64> {
        let arguments = ["--count".to_owned(), subject.to_owned(), ENTRIES.to_string(), requests.to_string()];
        Ok(count(&program, &arguments, "benches::check::counted*")? / f64::from(requests))
    };
    let empty = each("nothing")?;
    let sides = [("table part", each("table")? - empty), ("bare index", each("bare")? - empty)];
    let mut figure = figure("check-instructions", "instructions/request", sides);
    figure.sides.push(Side { name: "whole decision".to_owned(), rounds: vec![each("whole")? - empty] });
    Ok(figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callgrind_says_is_found() {
        let told =
            "==1== Events    : Ir\n==1== Collected : 6448034\n==1== \n==1== I   refs:      6,448,034\n";
        assert_eq!(collected(told), Some(6_448_034));
        assert_eq!(collected("==1== nothing"), None);
    }
}
