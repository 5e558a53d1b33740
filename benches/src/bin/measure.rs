//! `measure FIGURE [--quick] [--folder PATH]`: measures one figure and prints it as one line of JSON. `cargo xtask bench` runs
//! it for each figure in turn; `measure list` names them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use benches::figure::Figure;
use benches::rounds::Plan;
use benches::{asleep, cached, decision, guest, null, process, ring, shares};

/// A figure of this program.
type Measure = fn(&str, Plan, &std::path::Path) -> Result<Figure>;

const FIGURES: &[(&str, Measure)] = &[
    ("check-1k", |name, plan, _| decision::decision(name, 1000, plan)),
    ("check-1m", |name, plan, _| decision::decision(name, 1_000_000, plan)),
    ("null-1", |name, plan, _| null::embedded(name, 1, plan)),
    ("null-32", |name, plan, _| null::embedded(name, 32, plan)),
    ("null-128", |name, plan, _| null::embedded(name, 128, plan)),
    ("isolated-1", |name, plan, _| null::isolated(name, 1, plan)),
    ("isolated-32", |name, plan, _| null::isolated(name, 32, plan)),
    ("isolated-128", |name, plan, _| null::isolated(name, 128, plan)),
    ("memory-1", |name, plan, folder| cached::reads(name, 1, plan, folder)),
    ("memory-32", |name, plan, folder| cached::reads(name, 32, plan, folder)),
    ("idle-cores", |name, plan, _| asleep::cores(name, plan)),
    ("wake-both", |name, plan, _| asleep::wake_both(name, plan)),
    ("wake", |name, plan, _| asleep::wake(name, plan)),
    ("flood", |name, plan, _| shares::quiet(name, plan)),
    ("limits", |name, plan, _| shares::limited(name, plan)),
];

fn options(given: &[String]) -> Result<(Plan, PathBuf)> {
    let (mut plan, mut folder) = (Plan::FULL, PathBuf::from("target/xtask/bench"));
    let mut given = given.iter();
    while let Some(option) = given.next() {
        match option.as_str() {
            "--quick" => plan = Plan::QUICK,
            "--folder" => folder = given.next().context("--folder PATH")?.into(),
            other => bail!("{other} is no option"),
        }
    }
    Ok((plan, folder))
}

/// A guest without KVM is slow: turns are longer there.
fn in_guest(plan: Plan) -> Plan {
    Plan { slice: plan.slice * 2, ..plan }
}

fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [first, rest @ ..] if first == process::SERVE => process::serve(rest),
        [only] if only == "list" => {
            FIGURES.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        [first, name, address, options @ ..] if first == "guest" => {
            for figure in guest::compare(name, address, in_guest(self::options(options)?.0))? {
                println!("{}", serde_json::to_string(&figure)?);
            }
            Ok(())
        }
        [first, address, options @ ..] if first == "doorbells" => {
            println!("requests {}", guest::for_doorbells(address, in_guest(self::options(options)?.0))?);
            Ok(())
        }
        [name, options @ ..] => {
            let (plan, folder) = self::options(options)?;
            let (_, measure) = FIGURES
                .iter()
                .find(|(known, _)| known == name)
                .with_context(|| format!("no figure {name}"))?;
            println!("{}", serde_json::to_string(&measure(name, plan, &folder)?)?);
            Ok(())
        }
        [] => bail!("measure FIGURE [--quick] [--folder PATH]; `measure list` names the figures"),
    }
}

fn main() -> ExitCode {
    ring::play_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
