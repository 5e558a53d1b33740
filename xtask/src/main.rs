//! `cargo xtask`: one door for people and CI.
//!
//! Each command is a module. [`tree`] knows the repository, [`process`] runs commands in it, [`report`] prints tables.

mod check;
mod process;
mod report;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a person or CI asks of this repository.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "One door for people and CI"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, docs, the arrows between crates and the house rules, all with warnings as errors.
    Check(check::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
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
