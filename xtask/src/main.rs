//! `cargo xtask`: one door for people and CI.
//!
//! Each command is a module. [`tree`] knows the repository, [`process`] runs commands in it, [`tally`] counts tests,
//! [`report`] prints tables.

mod bench;
mod check;
mod fuzz;
mod guest;
mod mutants;
mod process;
mod report;
mod requirements;
mod soak;
mod tally;
mod test;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a person or CI asks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "One door for people and CI")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, docs, the arrows between crates and the house rules, all with warnings as errors.
    Check(check::Args),
    /// All tests, on the embedded device and in a QEMU guest; the last line counts them.
    Test(test::Args),
    /// The tests with large counts and many seeds; takes up where it stopped.
    Soak(soak::Args),
    /// Measures what is promised of speed beside what it is compared with, judges it, and writes docs/performance.md.
    Bench(bench::Args),
    /// libFuzzer with the address sanitizer on the fuzz targets; a canary proves that it finds.
    Fuzz(fuzz::Args),
    /// Breaks what protects, one piece at a time, in a copy; the tests have to notice each.
    Mutants(mutants::Args),
    /// The portcullis command in a guest: an adapter on VFIO as one user, the command as another.
    Qemu(guest::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Qemu(args) => guest::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
