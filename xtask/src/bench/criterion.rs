//! `cargo xtask bench criterion`: the benchmarks of `benches`, one by one, for whoever works on one of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{process, report, tree};

#[derive(clap::Args)]
pub(super) struct Args {
    /// One JSON document on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// The device of the benchmarks that need one.
    #[arg(long)]
    device: Option<String>,
    /// Handed to criterion: a filter, `--warm-up-time 0.3`, ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    criterion: Vec<String>,
}

/// A benchmark's median, with the interval that holds it with 95 % confidence; nanoseconds.
struct Median {
    name: String,
    low: f64,
    median: f64,
    high: f64,
}

/// Runs the benchmarks and prints their medians.
pub(super) fn run(args: &Args) -> Result<bool> {
    let start = SystemTime::now();
    let mut command = process::cargo();
    command.args(["bench", "--package", "benches", "--benches", "--"]).args(&args.criterion);
    command.envs(args.device.iter().map(|device| ("PORTCULLIS_DEVICE", device)));
    ensure!(process::passes(&mut command)?, "`{}` failed", process::line(&command));
    let mut medians = Vec::new();
    collect(&tree::target_dir().join("criterion"), start, &mut medians)?;
    medians.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!medians.is_empty(), "no benchmark ran");
    if args.json {
        let of =
            |m: &Median| json!({ "name": m.name, "median_ns": m.median, "low_ns": m.low, "high_ns": m.high });
        println!("{}", Value::Array(medians.iter().map(of).collect()));
        return Ok(true);
    }
    let mut rows = vec![["benchmark", "median", "95 % of it in"].map(str::to_owned).to_vec()];
    for m in &medians {
        rows.push(vec![m.name.clone(), time(m.median), format!("{} to {}", time(m.low), time(m.high))]);
    }
    println!("\n{}", report::table(&rows));
    Ok(true)
}

/// All of `NAME/new/estimates.json` under `folder` that were written since `start`.
fn collect(folder: &Path, start: SystemTime, medians: &mut Vec<Median>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        let estimates = path.join("estimates.json");
        if path.ends_with("new")
            && fs::metadata(&estimates).and_then(|m| m.modified()).is_ok_and(|at| at >= start)
        {
            medians.extend(read(&path, &estimates)?);
        } else if path.is_dir() {
            collect(&path, start, medians)?;
        }
    }
    Ok(())
}

fn read(folder: &Path, estimates: &PathBuf) -> Result<Option<Median>> {
    let benchmark: Value = serde_json::from_slice(&fs::read(folder.join("benchmark.json"))?)?;
    let estimates: Value = serde_json::from_slice(&fs::read(estimates)?)?;
    let median = &estimates["median"];
    let interval = &median["confidence_interval"];
    let number = |value: &Value| value.as_f64();
    let name = benchmark["full_id"].as_str().map(str::to_owned);
    let numbers = (
        number(&interval["lower_bound"]),
        number(&median["point_estimate"]),
        number(&interval["upper_bound"]),
    );
    let (Some(name), (Some(low), Some(median), Some(high))) = (name, numbers) else {
        return Ok(None);
    };
    Ok(Some(Median { name, low, median, high }))
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.1} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!([time(12.34), time(1500.0), time(2.5e6)], ["12.3 ns", "1.50 us", "2.50 ms"]);
    }
}
