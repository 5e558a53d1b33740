//! docs/performance.md, with its pictures, from what was measured.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use super::figure::{Figure, Side, Spread};
use super::judge::{Bound, Judgement, Verdict};
use super::machine::Machine;
use super::picture::{Line, Picture, Unit};
use super::results::Results;
use super::rows::ROWS;
use super::{cells, summary};
use crate::tree;

/// Relative to `docs`.
const PICTURES: &str = "performance";

/// Writes page and pictures.
pub(crate) fn write(results: &Results, judgements: &[Judgement]) -> Result<()> {
    let machine = Machine::here();
    let docs = tree::root().join("docs");
    let folder = docs.join(PICTURES);
    fs::create_dir_all(&folder)?;
    let mut shown = Vec::new();
    for (file, alt, svg) in pictures(results, judgements, &machine) {
        fs::write(folder.join(file), svg).with_context(|| file.to_owned())?;
        shown.push((file, alt));
    }
    fs::write(docs.join("performance.md"), text(results, judgements, &machine, &shown))?;
    Ok(())
}

/// The page.
fn text(results: &Results, judgements: &[Judgement], machine: &Machine, pictures: &[(&str, &str)]) -> String {
    let mut page = String::from(
        "# Performance\n\nThis page is written by `cargo xtask bench`: what it says was measured by that command, on the \
         machine named below, and is not edited by hand. *Gates* have to hold: the command fails if one does not. *Goals* \
         are what we are after.\n\n",
    );
    let _ = writeln!(page, "    {}\n", summary(judgements));
    for (file, alt) in pictures {
        let _ = writeln!(page, "![{alt}]({PICTURES}/{file})\n");
    }
    table(&mut page, judgements);
    page.push_str(
        "\nOURS and PEER are medians of the rounds, with the least and the greatest in parentheses; in nanoseconds for each \
         request where nothing else is said. VALUE is what the gate is about, taken round by round: OURS / PEER where less is \
         better, PEER / OURS (how many times faster ours is) where more is better. PING is a bare cache line there and back \
         between the two processors before and after each round. A gate holds if the median does.\n\n",
    );
    this_machine(&mut page, results, machine);
    method(&mut page, judgements);
    page.push_str(LIMITS);
    page
}

/// What no figure here shows.
const LIMITS: &str = "\
## What the figures do not show

- **Real hardware.** The NVMe controllers are QEMU's. Without KVM the guest's instructions are translated, which makes the
  kernel's longer path look worse than it is: ratios to the kernel's driver are ratios of that emulator. On a real disk the
  disk takes most of the time, and what is measured here is what is added to it.
- **Polling outside of QEMU.** Without KVM a guest's processor is a thread of QEMU. At each PAUSE instruction it leaves its loop and
  takes a lock that the emulated device needs, too. The kernel has a PAUSE in its loop that polls; ours, which turn an adapter
  or a driver, have none. Put into ours (tried by hand), one request at a time by the driver alone took 60 to 94 µs where it takes 27 to 39 µs,
  which is more than the kernel's 47 to 60 µs. So most of the lead over polled `io_uring` at depth 1 is that instruction; on a
  real processor it takes some ten nanoseconds.
- **Another machine.** Absolute times belong to the machine above. On a virtual one the time between two cores changes several
  times over with where the hypervisor puts them; that is why there is a ping-pong beside each round, and why rounds in
  different states are not compared.
- **Differences below the spread.** The least and the greatest of the rounds stand beside each median. In the guest anything
  below a quarter is no evidence.
- **Cycles and caches of the whole path.** This machine counts no cycles; instructions are callgrind's, which knows neither
  time nor a second core.
- **Tails.** Only row 15 looks at single requests. `portcullis bench` prints percentiles of all of them.
- **Other peers.** SPDK, libvfn and vroom are not part of this command.
";

fn table(page: &mut String, judgements: &[Judgement]) {
    page.push_str("| row | figure | ours | peer | value | gate | goal | ping, ns | judgement |\n|---|---|---|---|---|---|---|---|---|\n");
    for judgement in judgements {
        let cells: Vec<String> = cells(judgement).iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}

fn this_machine(page: &mut String, results: &Results, machine: &Machine) {
    page.push_str("## Machine and versions\n\n| | |\n|---|---|\n");
    let cores = format!("{}, {} GiB of memory", machine.cores, machine.memory_gib);
    let guest = format!("{}, run by {}", machine.guest_kernel, machine.guest_by);
    for (name, value) in [
        ("processor", &machine.processor),
        ("processors", &cores),
        ("frequency governor", &machine.governor),
        ("virtualised", &machine.virtualised),
        ("kernel", &machine.kernel),
        ("rustc", &machine.rustc),
        ("QEMU", &machine.qemu),
        ("guest's kernel", &guest),
        ("valgrind", &machine.valgrind),
    ] {
        let _ = writeln!(page, "| {name} | {value} |");
    }
    let mut commits: Vec<&str> = results.kept().map(|(_, kept)| kept.commit.as_str()).collect();
    commits.sort_unstable();
    commits.dedup();
    let first = results.kept().map(|(_, kept)| kept.at).min().unwrap_or(0);
    let last = results.kept().map(|(_, kept)| kept.at).max().unwrap_or(0);
    let _ = writeln!(page, "| measured | {} to {} (UTC) |", date(first), date(last));
    let loads = Spread::of(results.kept().map(|(_, kept)| kept.load));
    let loads = loads.map_or_else(String::new, |loads| format!("{} to {}", loads.low, loads.high));
    let _ = writeln!(page, "| load average after each figure (what is measured is in it) | {loads} |");
    let _ = writeln!(page, "| commits (`+`: with changes) | {} |\n", commits.join(", "));
}

fn method(page: &mut String, judgements: &[Judgement]) {
    page.push_str(
        "## Method\n\nEach figure is measured in one run: its sides take turns, nine of each, every second round in the \
         opposite order, each thread on a processor of its own. The clock is read once for many requests, on either side. \
         Before and after each round a bare cache line goes to and fro between the two processors: below 250 ns they are \
         *near*, above 350 ns *far*.\n",
    );
    for row in &ROWS {
        let _ = writeln!(page, "\n**{}. {}.** {}", row.number, row.title, row.method);
        let own = judgements.iter().filter(|judgement| judgement.criterion.row == row.number);
        let counted: Vec<String> = own
            .filter(|judgement| judgement.rounds.0 < judgement.rounds.1)
            .map(|judgement| {
                let (counted, all) = judgement.rounds;
                format!("{}: {counted} of {all} rounds count", judgement.criterion.what)
            })
            .collect();
        if !counted.is_empty() {
            let _ = writeln!(page, "({})", counted.join("; "));
        }
    }
    page.push('\n');
}

/// Days and minutes of a time since 1970 (after Howard Hinnant, \"chrono-Compatible Low-Level Date Algorithms\", `civil_from_days`).
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let minutes = seconds / 60 % 1440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", minutes / 60, minutes % 60)
}

/// How far inside its gate each value is: more than 1 holds.
fn margins(judgements: &[Judgement]) -> Vec<Line> {
    let margin = |bound: Bound, value: f64| match bound {
        Bound::AtLeast(limit) => value / limit,
        Bound::AtMost(limit) | Bound::Below(limit) => limit / value,
        Bound::Within(least, most) => (value / least).min(most / value),
    };
    let line = |judgement: &Judgement| {
        let (gate, value) = (judgement.criterion.gate?, judgement.value?);
        let [low, median, high] = [value.low, value.median, value.high].map(|value| margin(gate, value));
        let spread = Spread { low: low.min(high), median, high: low.max(high) };
        let drawn =
            [spread.low, spread.median, spread.high].iter().all(|value| value.is_finite() && *value > 0.0);
        let name = format!("{}: {}", judgement.criterion.row, judgement.criterion.what);
        let holds = if judgement.verdict == Verdict::Missed { "missed" } else { "held" };
        drawn.then(|| Line { name, marks: vec![(holds.to_owned(), spread)] })
    };
    judgements.iter().filter_map(line).collect()
}

/// Ours first, so that they look alike in all pictures.
const SIDES: [&str; 3] = ["embedded", "isolated", "driver"];

/// All sides of the figures whose names begin so, by name and then by how many are in flight.
fn sides(results: &Results, begins: &[&str]) -> Vec<Line> {
    let fits = |figure: &&Figure| begins.iter().any(|begin| figure.name.starts_with(begin));
    let mut figures: Vec<&Figure> =
        results.kept().filter_map(|(_, kept)| kept.figure.as_ref()).filter(fits).collect();
    figures.sort_by_key(|figure| parts(&figure.name));
    let place = |name: &str| SIDES.iter().position(|side| *side == name).unwrap_or(SIDES.len());
    let line = |figure: &Figure| {
        let spread = |side: &Side| Some((side.name.clone(), Spread::of(side.rounds.iter().copied())?));
        let mut marks: Vec<(String, Spread)> = figure.sides.iter().filter_map(spread).collect();
        marks.sort_by_key(|(name, _)| place(name));
        let (name, depth) = parts(&figure.name);
        Line { name: format!("{}, {depth}", name.replace('-', " ")), marks }
    };
    let mut lines: Vec<Line> = figures.into_iter().map(line).collect();
    // Sides get their inks in the order in which they appear: where all of ours are comes first.
    lines.sort_by_key(|line| line.marks.first().map_or(SIDES.len(), |(name, _)| place(name)));
    lines
}

/// `null-32`: the name and the number.
fn parts(name: &str) -> (&str, u32) {
    let (name, number) = name.rsplit_once('-').unwrap_or((name, ""));
    (name, number.parse().unwrap_or(0))
}

/// File, description, picture.
fn pictures(
    results: &Results,
    judgements: &[Judgement],
    machine: &Machine,
) -> Vec<(&'static str, &'static str, String)> {
    let foot = format!(
        "{}, {} processors, Linux {}; medians of interleaved rounds, lines from the least to the greatest",
        machine.processor, machine.cores, machine.kernel
    );
    let picture = |title, subtitle, mark, lines, unit| {
        Picture { title, subtitle, foot: &foot, mark, lines, unit }.svg()
    };
    let all = [
        (
            "gates.svg",
            "how far inside its gate each value is",
            "Gates",
            "How many times better than its gate each value is",
            Some((1.0, "gate")),
            margins(judgements),
            Unit::Times,
        ),
        (
            "path.svg",
            "time for a request on this machine, by path and requests in flight",
            "What the path costs",
            "Time for each request over a device that does nothing (null, isolated) or copies 4 KiB (memory); the number is how many \
             are in flight",
            None,
            sides(results, &["null-", "isolated-", "memory-"]),
            Unit::Time,
        ),
        (
            "guest.svg",
            "time for a request over NVMe in a QEMU guest, by path and requests in flight",
            "NVMe in a QEMU guest",
            "Time for each request of 4 KiB at a random place; the number is how many are in flight",
            None,
            sides(results, &["guest-"]),
            Unit::Time,
        ),
    ];
    let drawn = all.into_iter().filter(|(.., lines, _)| lines.iter().any(|line| !line.marks.is_empty()));
    drawn
        .map(|(file, alt, title, subtitle, mark, lines, unit)| {
            (file, alt, picture(title, subtitle, mark, lines, unit))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::judge::judge;
    use super::super::rows::CRITERIA;
    use super::*;

    fn results() -> Results {
        let side = |name: &str, value: f64| Side { name: name.to_owned(), rounds: vec![value, value * 1.1] };
        let mut results = Results::default();
        for (name, ours) in [("null-1", 50.0), ("null-128", 90.0)] {
            results.keep(Figure {
                name: name.into(),
                unit: "ns/request".into(),
                sides: vec![side("embedded", ours), side("io_uring nop", 170.0)],
                pings: vec![[95.0, 600.0]; 2],
                notes: vec![],
            });
        }
        results.fail("isolated-1", "only one | processor");
        results
    }

    #[test]
    fn the_page_tells_every_row_every_judgement_and_why_not() {
        let results = results();
        let judgements: Vec<Judgement> =
            CRITERIA.iter().map(|criterion| judge(criterion, results.figure(criterion.figure))).collect();
        let page = text(&results, &judgements, &Machine::here(), &[("gates.svg", "gates")]);
        for row in &ROWS {
            assert!(page.contains(&format!("**{}. {}.**", row.number, row.title)));
        }
        assert!(page.contains("not measured: only one \\| processor"));
        assert!(page.contains("held, goal reached") && page.contains("![gates](performance/gates.svg)"));
        let lines = page.lines().filter(|line| line.starts_with("| ")).collect::<Vec<_>>();
        assert!(lines.iter().filter(|line| line.contains("not measured")).count() > 10);
        // Every line of the large table has its nine cells.
        let cells = |line: &&&str| line.replace("\\|", "").matches('|').count();
        assert!(
            lines
                .iter()
                .filter(|line| line.contains("held") || line.contains("not measured"))
                .all(|l| cells(&l) == 10)
        );
    }

    #[test]
    fn pictures_show_what_there_is() {
        let results = results();
        let judgements: Vec<Judgement> =
            CRITERIA.iter().map(|criterion| judge(criterion, results.figure(criterion.figure))).collect();
        assert!(judgements.iter().any(|judgement| judgement.verdict == Verdict::Held));
        let pictures = pictures(&results, &judgements, &Machine::here());
        let files: Vec<&str> = pictures.iter().map(|(file, ..)| *file).collect();
        assert_eq!(files, ["gates.svg", "path.svg"]);
        assert!(pictures[0].2.contains("5: embedded, 1, beside io_uring NOP"));
        assert_eq!(margins(&judgements).len(), 2);
        let lines: Vec<String> = sides(&results, &["null-"]).into_iter().map(|line| line.name).collect();
        assert_eq!(lines, ["null, 1", "null, 128"]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_351_499), "2026-11-22 12:44");
    }

    #[test]
    fn a_margin_is_above_one_where_a_gate_holds() {
        let judgements: Vec<Judgement> = {
            let results = results();
            CRITERIA.iter().map(|criterion| judge(criterion, results.figure(criterion.figure))).collect()
        };
        for line in margins(&judgements) {
            assert!(line.marks[0].1.median > 1.0, "{}", line.name);
        }
    }
}
