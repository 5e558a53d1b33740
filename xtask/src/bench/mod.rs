//! `cargo xtask bench`: measures what is promised of speed, judges it, and writes docs/performance.md.
//!
//! [`rows`] has the promises, `benches` measures most of what they speak of, [`counted`] counts instructions by callgrind,
//! [`in_guest`] measures beside the kernel's own driver, [`mod@judge`] compares, [`page`] tells.

mod counted;
mod criterion;
mod figure;
mod in_guest;
mod judge;
mod machine;
mod page;
mod picture;
mod results;
mod rows;
mod sources;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::json;

use crate::report;
use judge::{Judgement, Verdict, judge};
use results::Results;
use rows::{CRITERIA, ROWS};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Rows to measure, by number; all if none is named. Only a run of all rows writes docs/performance.md.
    rows: Vec<u32>,
    /// Measure only the figures whose names begin so; may be given several times.
    #[arg(long, value_name = "FIGURE")]
    only: Vec<String>,
    /// Three short rounds for each figure: whether everything runs, not how fast. Nothing is kept.
    #[arg(long)]
    quick: bool,
    /// Keep what an earlier run has measured today and measure the rest.
    #[arg(long)]
    resume: bool,
    /// Measure nothing; judge what was measured last, and write docs/performance.md.
    #[arg(long, conflicts_with_all = ["quick", "only", "resume"])]
    page: bool,
    /// Leave out what needs a guest.
    #[arg(long)]
    no_guest: bool,
    /// Beside other work on this machine: the measuring threads get real-time priority (SCHED_FIFO) in their short turns.
    #[arg(long)]
    fifo: bool,
    /// One JSON document on standard output instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Criterion's benchmarks, their medians in a table.
    Criterion(criterion::Args),
}

/// Measures, judges, tells; whether every gate that was measured holds.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(Part::Criterion(args)) = &args.part {
        return criterion::run(args);
    }
    if let Some(row) = args.rows.iter().find(|row| !ROWS.iter().any(|known| known.number == **row)) {
        bail!("there is no row {row}: they are 1 to {}", ROWS.len());
    }
    let mut results = if args.quick { Results::default() } else { Results::read()? };
    let all = args.rows.is_empty() && args.only.is_empty();
    if !args.page {
        measure(args, &mut results)?;
    }
    let judgements = judgements(&results, args);
    if args.json {
        println!("{}", document(&results, &judgements));
    } else {
        println!("\n{}", table(&judgements));
        println!("{}", summary(&judgements));
    }
    if args.page || (all && !args.quick && !args.no_guest) {
        page::write(&results, &judgements)?;
        eprintln!("docs/performance.md is written");
    }
    Ok(!judgements.iter().any(|judgement| judgement.verdict == Verdict::Missed))
}

/// The figures that are asked for, in the order of the rows, each once.
fn wanted(args: &Args) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for criterion in CRITERIA.iter().filter(|criterion| asked(args, criterion)) {
        if !names.contains(&criterion.figure) {
            names.push(criterion.figure);
        }
    }
    names
}

fn asked(args: &Args, criterion: &judge::Criterion) -> bool {
    (args.rows.is_empty() || args.rows.contains(&criterion.row))
        && (args.only.is_empty() || args.only.iter().any(|only| criterion.figure.starts_with(only.as_str())))
}

/// Measures what is asked for and keeps it, figure by figure.
fn measure(args: &Args, results: &mut Results) -> Result<()> {
    let mut names = wanted(args);
    names.retain(|name| !args.no_guest || !sources::in_a_guest(name));
    if args.resume {
        names.retain(|name| !results.is_fresh(name));
    }
    let mut sources = sources::Sources::new(args.quick, args.fifo);
    let total = names.len();
    for (at, name) in names.iter().enumerate() {
        if results.is_new(name) {
            // It came with another one.
            continue;
        }
        eprintln!("[{:>2} of {total}] {name}", at + 1);
        let began = Instant::now();
        match sources.measure(name) {
            Ok(figures) => {
                figures.into_iter().for_each(|figure| results.keep(figure));
                eprintln!("           {}", report::seconds(began.elapsed()));
            }
            Err(error) => {
                eprintln!("           not measured: {error:#}");
                results.fail(name, &format!("{error:#}"));
            }
        }
        if !args.quick {
            results.write()?;
        }
    }
    Ok(())
}

fn judgements(results: &Results, args: &Args) -> Vec<Judgement> {
    let asked = CRITERIA.iter().filter(|criterion| asked(args, criterion));
    asked.map(|criterion| judge(criterion, results.figure(criterion.figure))).collect()
}

/// A verdict in a few words, and why where there is no value.
fn verdict(judgement: &Judgement) -> String {
    let goal = match judgement.goal_reached {
        Some(true) => ", goal reached",
        Some(false) => "",
        None => "",
    };
    match &judgement.verdict {
        Verdict::Held => format!("held{goal}"),
        Verdict::Missed => "MISSED".to_owned(),
        Verdict::Told => format!("no gate{goal}"),
        Verdict::NotCompared(why) => format!("not compared: {why}"),
        Verdict::NotMeasured(why) => format!("not measured: {why}"),
    }
}

/// Three digits.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn spread(spread: Option<figure::Spread>) -> String {
    match spread {
        None => "-".to_owned(),
        Some(spread) if spread.low.total_cmp(&spread.high).is_eq() => number(spread.median),
        Some(spread) => {
            format!("{} ({}-{})", number(spread.median), number(spread.low), number(spread.high))
        }
    }
}

const HEADS: [&str; 9] = ["ROW", "FIGURE", "OURS", "PEER", "VALUE", "GATE", "GOAL", "PING ns", "JUDGEMENT"];

fn cells(judgement: &Judgement) -> Vec<String> {
    let criterion = &judgement.criterion;
    let goal = match criterion.goal {
        None => "-".to_owned(),
        Some((measure, bound)) if measure == criterion.measure => bound.to_string(),
        Some((_, bound)) => format!("{bound} {}", judgement.unit.split('/').next().unwrap_or("")),
    };
    vec![
        criterion.row.to_string(),
        criterion.what.to_owned(),
        spread(judgement.ours),
        spread(judgement.peer),
        spread(judgement.value),
        criterion.gate.map_or("-".to_owned(), |gate| gate.to_string()),
        goal,
        judgement.ping.map_or("-".to_owned(), |ping| format!("{:.0}-{:.0}", ping.low, ping.high)),
        verdict(judgement),
    ]
}

fn table(judgements: &[Judgement]) -> String {
    let mut rows = vec![HEADS.map(str::to_owned).to_vec()];
    rows.extend(judgements.iter().map(cells));
    report::table(&rows)
}

/// The last line.
fn summary(judgements: &[Judgement]) -> String {
    let count = |holds: fn(&Verdict) -> bool| judgements.iter().filter(|j| holds(&j.verdict)).count();
    let reached = judgements.iter().filter(|judgement| judgement.goal_reached == Some(true)).count();
    let goals = judgements.iter().filter(|judgement| judgement.criterion.goal.is_some()).count();
    format!(
        "bench: {} gates held, {} missed, {} not compared, {} not measured; {reached} of {goals} goals reached",
        count(|verdict| *verdict == Verdict::Held),
        count(|verdict| *verdict == Verdict::Missed),
        count(|verdict| matches!(verdict, Verdict::NotCompared(_))),
        count(|verdict| matches!(verdict, Verdict::NotMeasured(_))),
    )
}

fn document(results: &Results, judgements: &[Judgement]) -> serde_json::Value {
    let one = |judgement: &Judgement| {
        let criterion = &judgement.criterion;
        json!({
            "row": criterion.row,
            "what": criterion.what,
            "figure": criterion.figure,
            "sides": [criterion.ours, criterion.peer],
            "unit": judgement.unit,
            "measure": criterion.measure,
            "ours": judgement.ours,
            "peer": judgement.peer,
            "value": judgement.value,
            "gate": criterion.gate,
            "goal": criterion.goal,
            "rounds": judgement.rounds.0,
            "rounds_measured": judgement.rounds.1,
            "ping_ns": judgement.ping,
            "verdict": judgement.verdict,
            "goal_reached": judgement.goal_reached,
        })
    };
    json!({
        "machine": machine::Machine::here(),
        "judgements": judgements.iter().map(one).collect::<Vec<_>>(),
        "results": results,
    })
}

#[cfg(test)]
mod tests {
    use super::figure::{Figure, Side};
    use super::*;

    fn args(rows: &[u32], only: &[&str]) -> Args {
        Args {
            part: None,
            rows: rows.to_vec(),
            only: only.iter().map(|name| (*name).to_owned()).collect(),
            quick: false,
            resume: false,
            page: false,
            no_guest: false,
            fifo: false,
            json: false,
        }
    }

    #[test]
    fn a_figure_that_several_rows_use_is_measured_once() {
        assert_eq!(wanted(&args(&[1, 2], &[])), ["check-1k", "check-1m", "check-instructions"]);
        assert_eq!(wanted(&args(&[], &["null-1"])), ["null-1", "null-128"]);
        assert!(wanted(&args(&[5], &["guest"])).is_empty());
    }

    #[test]
    fn a_missed_gate_is_seen_in_table_and_summary() {
        let side = |name: &str, value: f64| Side { name: name.to_owned(), rounds: vec![value; 3] };
        let mut results = Results::default();
        results.keep(Figure {
            name: "null-1".into(),
            unit: "ns/request".into(),
            sides: vec![side("embedded", 100.0), side("io_uring nop", 170.0)],
            pings: vec![[95.0, 96.0]; 3],
            notes: vec![],
        });
        results.fail("null-128", "no ring");
        let judgements = judgements(&results, &args(&[5], &[]));
        let text = table(&judgements);
        assert!(text.contains("MISSED") && text.contains("not measured: no ring"), "{text}");
        assert_eq!(
            summary(&judgements),
            "bench: 0 gates held, 1 missed, 0 not compared, 2 not measured; 0 of 2 goals reached"
        );
        let json = document(&results, &judgements);
        assert_eq!(json["judgements"][0]["verdict"], "Missed");
    }
}
