//! `cargo xtask soak`: large counts and many seeds, in parts; it takes up where it stopped.

mod parts;
mod slice;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::{fuzz, process, report, test};
use parts::{Part, Work};
use slice::{Finished, Slice, Trouble};
use state::{Done, State};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these parts; all of them when none is named.
    parts: Vec<String>,
    /// Say what there is, and what it has to reach.
    #[arg(long)]
    list: bool,
    /// Begin nothing further after this many minutes.
    #[arg(long, default_value_t = 80)]
    minutes: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Forget what was done.
    #[arg(long)]
    fresh: bool,
}

/// A line of progress after so long a silence.
const SILENCE: Duration = Duration::from_secs(30);

/// Takes up where the last soak of this tree stopped; whether all parts held and nothing is left.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut parts = parts::all()?;
    for name in &args.parts {
        ensure!(parts.iter().any(|part| part.name == name), "no part is called {name:?}; see --list");
    }
    parts.retain(|part| args.parts.is_empty() || args.parts.iter().any(|name| name == part.name));
    if args.list {
        return list(&parts);
    }
    let start = Instant::now();
    let mut state = State::load(args.fresh)?;
    let mut slices = Vec::new();
    for part in &parts {
        slices.extend(Slice::of(part, args.seed)?);
    }
    let (before, todo): (Vec<_>, Vec<_>) =
        slices.iter().partition(|slice| state.done(&slice.key()).is_some());
    if !before.is_empty() {
        eprintln!("soak: {} of {} slices were done before", before.len(), slices.len());
    }
    build(&todo)?;
    let deadline = start + Duration::from_secs(args.minutes * 60);
    let mut troubles = Vec::new();
    Runner::new(todo).run(deadline, &mut |slice, finished| {
        match finished.trouble {
            Some(trouble) => troubles.push((slice, trouble)),
            None => state.insert(slice.key(), finished.done)?,
        }
        Ok(())
    })?;
    let held = summary(&parts, &slices, &state, &troubles);
    println!("{} in all", report::seconds(start.elapsed()));
    Ok(held)
}

fn list(parts: &[Part]) -> Result<bool> {
    let head = ["part", "slices", "cores", "about", "what", "goals"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    for part in parts {
        let goals: Vec<String> =
            part.goals.iter().map(|(count, what)| format!("{} {what}", grouped(*count))).collect();
        rows.push(vec![
            part.name.to_owned(),
            Slice::of(part, 1)?.len().to_string(),
            part.cores.to_string(),
            format!("{} min", part.minutes),
            part.about.to_owned(),
            goals.join(", "),
        ]);
    }
    print!("{}", report::table(&rows));
    Ok(true)
}

/// Builds whatever the slices need, so that they do not wait for one another's builds.
fn build(slices: &[&Slice<'_>]) -> Result<()> {
    let works: Vec<Work> = slices.iter().map(|slice| slice.part.work).collect();
    let tests: BTreeSet<&str> = works
        .iter()
        .filter_map(|work| if let Work::Test { of, .. } = work { Some(*of) } else { None })
        .collect();
    let mut commands: Vec<_> = tests.into_iter().map(slice::test_command).collect();
    if works.contains(&Work::Loom) {
        commands.extend(test::loom_command()?);
    }
    for mut command in commands {
        command.arg("--no-run");
        eprintln!("soak: {}", process::line(&command));
        ensure!(process::passes(&mut command)?, "`{}` failed", process::line(&command));
    }
    if works.iter().any(|work| matches!(work, Work::Fuzz { .. })) {
        fuzz::prepare()?;
    }
    Ok(())
}

/// Runs slices on the cores there are.
struct Runner<'a> {
    waiting: VecDeque<&'a Slice<'a>>,
    all: usize,
    cores: usize,
}

impl<'a> Runner<'a> {
    fn new(mut slices: Vec<&'a Slice<'a>>) -> Self {
        // Those that take one core find company among themselves.
        slices.sort_by_key(|slice| slice.part.cores);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { all: slices.len(), waiting: slices.into(), cores }
    }

    /// Until all ran, or the deadline passed and those that had begun have ended. `each` gets what ended.
    fn run(
        mut self,
        deadline: Instant,
        each: &mut dyn FnMut(&'a Slice<'a>, Finished) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let (sender, receiver) = mpsc::channel();
        let mut running: Vec<&Slice<'_>> = Vec::new();
        let mut ended = 0;
        thread::scope(|scope| {
            loop {
                while let Some(slice) = self.next(&running, deadline) {
                    eprintln!("soak: {} begins", slice.label);
                    running.push(slice);
                    let sender = sender.clone();
                    scope.spawn(move || {
                        // Nobody listens any more when another slice could not be run at all.
                        let _ = sender.send((slice, slice.run()));
                    });
                }
                if running.is_empty() {
                    return Ok(());
                }
                let (slice, finished) = match receiver.recv_timeout(SILENCE) {
                    Ok(ended) => ended,
                    Err(RecvTimeoutError::Timeout) => {
                        let labels: Vec<&str> = running.iter().map(|slice| slice.label.as_str()).collect();
                        let time = report::seconds(start.elapsed());
                        eprintln!("soak: {time}, {ended} of {} done, now {}", self.all, labels.join(", "));
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("a slice was lost")),
                };
                running.retain(|other| !std::ptr::eq(*other, slice));
                let finished = finished?;
                ended += 1;
                eprintln!("soak: {}: {} ({ended} of {})", slice.label, told(&finished), self.all);
                each(slice, finished)?;
            }
        })
    }

    /// What may begin now.
    fn next(&mut self, running: &[&Slice<'_>], deadline: Instant) -> Option<&'a Slice<'a>> {
        let taken: usize = running.iter().map(|slice| slice.part.cores).sum();
        let wanted = self.waiting.front()?.part.cores;
        let room = running.is_empty() || taken + wanted <= self.cores;
        if room && Instant::now() < deadline { self.waiting.pop_front() } else { None }
    }
}

fn told(finished: &Finished) -> String {
    let time = report::seconds(finished.done.time());
    match &finished.trouble {
        Some(trouble) => format!("FAILED after {time}: {}", trouble.what),
        None => {
            let counts = finished.done.counts.iter();
            let counts: Vec<String> =
                counts.map(|(what, count)| format!("{} {what}", grouped(*count))).collect();
            let passed = format!("{} tests passed", finished.done.passed);
            format!("held, {time}; {}", if counts.is_empty() { passed } else { counts.join(", ") })
        }
    }
}

/// What all slices of a part did together.
struct Sum {
    done: Done,
    left: usize,
    failed: usize,
}

impl Sum {
    fn of(part: &Part, slices: &[Slice<'_>], state: &State, troubles: &[(&Slice<'_>, Trouble)]) -> Self {
        let mut sum = Self { done: Done::default(), left: 0, failed: 0 };
        for slice in slices.iter().filter(|slice| slice.part.name == part.name) {
            if let Some(done) = state.done(&slice.key()) {
                sum.done.seconds += done.seconds;
                sum.done.passed += done.passed;
                for (what, count) in &done.counts {
                    *sum.done.counts.entry(what.clone()).or_default() += count;
                }
            } else if troubles.iter().any(|(other, _)| other.label == slice.label) {
                sum.failed += 1;
            } else {
                sum.left += 1;
            }
        }
        sum
    }

    /// `held`, or why it is not.
    fn verdict(&self, part: &Part) -> String {
        let reached = |what: &str| self.done.counts.get(what).copied().unwrap_or(0);
        if self.failed > 0 {
            return "FAILED".to_owned();
        }
        if self.left > 0 {
            return format!("{} slices left", self.left);
        }
        let short = part.goals.iter().any(|(goal, what)| reached(what) < *goal);
        if short { "FAILED: too few" } else { "held" }.to_owned()
    }

    /// What was counted, the goals first: what, goal, reached.
    fn counted(&self, part: &Part) -> Vec<[String; 3]> {
        let mut rest: BTreeMap<&str, u64> =
            self.done.counts.iter().map(|(what, count)| (what.as_str(), *count)).collect();
        let mut rows = Vec::new();
        for (goal, what) in &part.goals {
            let reached = rest.remove(what).unwrap_or(0);
            rows.push([(*what).to_owned(), grouped(*goal), grouped(reached)]);
        }
        rows.extend(rest.into_iter().map(|(what, count)| [what.to_owned(), String::new(), grouped(count)]));
        if rows.is_empty() {
            rows.push(["tests passed".to_owned(), String::new(), self.done.passed.to_string()]);
        }
        rows
    }
}

/// The table, and how to repeat what failed; whether every part held.
fn summary(parts: &[Part], slices: &[Slice<'_>], state: &State, troubles: &[(&Slice<'_>, Trouble)]) -> bool {
    let head = ["part", "counted", "goal", "reached", "time", ""].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    let mut held = true;
    for part in parts {
        let sum = Sum::of(part, slices, state, troubles);
        let verdict = sum.verdict(part);
        held &= verdict == "held";
        let mut first = Some((part.name.to_owned(), report::seconds(sum.done.time()), verdict));
        for [what, goal, reached] in sum.counted(part) {
            let (name, time, verdict) = first.take().unwrap_or_default();
            rows.push(vec![name, what, goal, reached, time, verdict]);
        }
    }
    println!("\n{}", report::table(&rows));
    for (slice, trouble) in troubles {
        println!("FAILED: {}: {}", slice.label, trouble.what);
        trouble.seeds.iter().for_each(|line| println!("  {line}"));
        println!("  replay: {}\n  log: {}", trouble.replay, trouble.log.display());
    }
    println!("{}", if held { "soak: all held" } else { "soak: NOT all held; run it again to go on" });
    held
}

/// `1000000` as `1,000,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(counts: &[(&str, u64)], left: usize, failed: usize) -> Sum {
        let counts = counts.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect();
        Sum { done: Done { seconds: 1.0, passed: 7, counts }, left, failed }
    }

    fn part(goals: &[(u64, &'static str)]) -> Part {
        let mut part = parts::all().unwrap().swap_remove(0);
        part.goals = goals.to_vec();
        part
    }

    #[test]
    fn a_part_holds_when_nothing_failed_nothing_is_left_and_its_goals_are_reached() {
        let part = part(&[(1000, "kills"), (5, "cuts")]);
        let enough = [("kills", 1000), ("cuts", 6), ("looks", 3)];
        assert_eq!(sum(&enough, 0, 0).verdict(&part), "held");
        assert_eq!(sum(&enough, 2, 0).verdict(&part), "2 slices left");
        assert_eq!(sum(&enough, 2, 1).verdict(&part), "FAILED");
        assert_eq!(sum(&[("kills", 999), ("cuts", 6)], 0, 0).verdict(&part), "FAILED: too few");
        assert_eq!(sum(&[("kills", 1000)], 0, 0).verdict(&part), "FAILED: too few");
        let rows = sum(&enough, 0, 0).counted(&part);
        assert_eq!(rows, [["kills", "1,000", "1,000"], ["cuts", "5", "6"], ["looks", "", "3"]]);
    }

    #[test]
    fn a_part_without_counts_shows_its_tests() {
        assert_eq!(sum(&[], 0, 0).counted(&part(&[])), [["tests passed", "", "7"]]);
    }

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_000_000].map(grouped), ["0", "999", "1,000", "1,000,000"]);
    }
}
