//! `cargo xtask check`: what must hold of every commit, before a single test runs.

mod arrows;
mod readme;
mod rules;
mod source;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::mutants;
use crate::process::{cargo, line, passes};
use crate::report;
use crate::tree::{self, Metadata};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One JSON document on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// Only these (format, clippy, docs, arrows, names, unsafe, words, sizes, mutants, readme).
    only: Vec<String>,
}

/// What a check found. It fails by its errors; notes are for reading.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) errors: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// One line for the table.
    pub(crate) summary: String,
}

impl Findings {
    fn of_command(command: &mut Command) -> Result<Self> {
        let mut findings = Self { summary: line(command), ..Self::default() };
        if !passes(command)? {
            findings.errors.push(format!("`{}` failed, see above", line(command)));
        }
        Ok(findings)
    }
}

/// Every mutant still finds the text that it changes, and the documentation tells of it: who changes the code learns it
/// here.
fn mutants_apply() -> Result<Findings> {
    let (count, errors) = mutants::findings()?;
    Ok(Findings { errors, notes: Vec::new(), summary: format!("{count} mutants") })
}

struct Row {
    name: &'static str,
    time: Duration,
    findings: Findings,
}

type Check = fn(&Metadata) -> Result<Findings>;

/// In the order of the table: the quick ones first.
const CHECKS: [(&str, Check); 10] = [
    ("format", |_| Findings::of_command(cargo().args(["fmt", "--all", "--check"]))),
    ("arrows", |metadata| arrows::check(metadata)),
    ("names", |metadata| rules::names(metadata)),
    ("unsafe", |_| rules::unsafety()),
    ("words", |_| rules::words()),
    ("sizes", |_| rules::sizes()),
    ("mutants", |_| mutants_apply()),
    ("clippy", |_| {
        Findings::of_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("docs", |_| {
        Findings::of_command(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--workspace",
            "--no-deps",
        ]))
    }),
    ("readme", |metadata| readme::check(metadata)),
];

/// Runs the checks; whether all held.
pub(crate) fn run(args: &Args) -> Result<bool> {
    for name in &args.only {
        anyhow::ensure!(
            CHECKS.iter().any(|(known, _)| known == name),
            "no check is called {name:?}; see --help"
        );
    }
    let metadata = tree::metadata()?;
    let mut rows = Vec::new();
    for (name, check) in CHECKS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        eprintln!("check: {name}");
        let start = Instant::now();
        let findings = check(&metadata)?;
        rows.push(Row { name, time: start.elapsed(), findings });
    }
    let passed = rows.iter().all(|row| row.findings.errors.is_empty());
    if args.json {
        println!("{}", as_json(&rows, passed));
    } else {
        print!("{}", as_text(&rows));
        println!("check: {}", if passed { "all held" } else { "FAILED" });
    }
    Ok(passed)
}

fn as_json(rows: &[Row], passed: bool) -> serde_json::Value {
    let checks: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.name,
                "ok": row.findings.errors.is_empty(),
                "seconds": row.time.as_secs_f64(),
                "summary": row.findings.summary,
                "errors": row.findings.errors,
                "notes": row.findings.notes,
            })
        })
        .collect();
    json!({ "ok": passed, "checks": checks })
}

fn as_text(rows: &[Row]) -> String {
    let mut lines = vec![["check", "", "time", ""].map(str::to_owned).to_vec()];
    let mut details = String::new();
    for row in rows {
        let outcome = if row.findings.errors.is_empty() { "ok" } else { "FAIL" };
        lines.push(vec![
            row.name.to_owned(),
            outcome.to_owned(),
            report::seconds(row.time),
            row.findings.summary.clone(),
        ]);
        for note in &row.findings.notes {
            details.push_str(&format!("note: {}: {note}\n", row.name));
        }
        for error in &row.findings.errors {
            details.push_str(&format!("error: {}: {error}\n", row.name));
        }
    }
    format!("{details}\n{}", report::table(&lines))
}
