//! Counting what test programs print, in the format that libtest and libtest-mimic share.

use std::collections::{BTreeMap, BTreeSet};

/// A test that did not run, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Skip {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// How reasons begin that are given by tests which the stage `guest` runs; elsewhere they do not count as skipped.
const IN_THE_GUEST: [&str; 2] = ["starts a guest", "needs an NVMe device bound to vfio-pci"];

/// What ran. The numbers come from the closing line of each program, the names from the lines before it.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// `PROGRAM::TEST` of every test that passed.
    pub(crate) names: BTreeSet<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) skips: Vec<Skip>,
    /// What tests counted, by what it was.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Of the program whose lines are being read: tests that another stage runs.
    deferred: u64,
    /// The program whose lines are being read.
    program: String,
    /// A test of it whose outcome is still to come.
    open: Option<String>,
}

/// What a line is to a reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Of a test that passed, or of no interest.
    Quiet,
    /// What cargo is building.
    Building,
    /// Worth showing.
    Show,
}

impl Tally {
    /// The lines that follow come from this program.
    pub(crate) fn enter(&mut self, program: &str) {
        self.program = program.to_owned();
    }

    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str) -> Kind {
        let trimmed = line.trim();
        let counted = self.counted(trimmed);
        if let Some(rest) = trimmed.strip_prefix("test result: ") {
            self.count(rest);
            return Kind::Quiet;
        }
        if let Some(kind) = self.test_line(trimmed) {
            return kind;
        }
        if let Some(rest) = trimmed.strip_prefix("Running ").filter(|_| trimmed.ends_with(')')) {
            let path = rest.rsplit_once('(').map_or(rest, |(_, path)| path).trim_end_matches(')');
            let name = path.rsplit('/').next().unwrap_or(path);
            self.enter(name.rsplit_once('-').map_or(name, |(name, _)| name));
            return Kind::Quiet;
        }
        if let Some(rest) = trimmed.strip_prefix("Doc-tests ") {
            self.enter(rest);
            return Kind::Quiet;
        }
        let building = ["Compiling ", "Checking ", "Downloaded ", "Downloading ", "Blocking ", "Building "];
        if building.iter().any(|word| trimmed.starts_with(word)) {
            return Kind::Building;
        }
        let counting = trimmed.starts_with("running ") && trimmed.ends_with(['s', 't']);
        let quiet = trimmed.is_empty()
            || counting
            || counted
            || trimmed.starts_with("Finished ")
            || trimmed.starts_with("Fresh ");
        if quiet || trimmed.starts_with("all doctests ran in ") { Kind::Quiet } else { Kind::Show }
    }

    /// Takes `counted: 1000 kills of an application`, which may stand behind the name of a test.
    fn counted(&mut self, line: &str) -> bool {
        let counted = line.rsplit_once("counted: ").and_then(|(_, rest)| {
            let (number, what) = rest.split_once(' ')?;
            Some((number.replace([',', '_'], "").parse::<u64>().ok()?, what.trim()))
        });
        if let Some((number, what)) = counted {
            *self.counts.entry(what.to_owned()).or_default() += number;
        }
        counted.is_some()
    }

    /// Takes what another has counted, too.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.names.extend(other.names);
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
        for (what, number) in other.counts {
            *self.counts.entry(what).or_default() += number;
        }
    }

    /// A line of a test, if it is one. What a test prints itself may stand between its name and its outcome.
    fn test_line(&mut self, line: &str) -> Option<Kind> {
        let outcome = |text: &str| ["ok", "FAILED"].contains(&text) || text.starts_with("ignored");
        if let Some((name, rest)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ...")) {
            if outcome(rest.trim()) {
                self.open = None;
                return Some(self.test(name.trim(), rest.trim()));
            }
            self.open = Some(name.trim().to_owned());
            return Some(Kind::Quiet);
        }
        if outcome(line) {
            return self.open.take().map(|name| self.test(&name, line));
        }
        None
    }

    fn test(&mut self, name: &str, outcome: &str) -> Kind {
        let full = format!("{}::{name}", self.program);
        if outcome == "ok" {
            self.names.insert(full);
            return Kind::Quiet;
        }
        if let Some(reason) = outcome.strip_prefix("ignored") {
            let reason = reason.trim_matches([' ', ',', '(', ')']);
            if IN_THE_GUEST.iter().any(|known| reason.starts_with(known)) {
                self.deferred += 1;
                return Kind::Quiet;
            }
            let reason = if reason.is_empty() { "no reason given" } else { reason };
            self.skips.push(Skip { name: full, reason: reason.to_owned() });
            return Kind::Quiet;
        }
        if outcome == "FAILED" {
            self.failures.push(full);
        }
        Kind::Show
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn count(&mut self, line: &str) {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => {
                    self.ignored += number.saturating_sub(self.deferred);
                    self.deferred = 0;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "   Compiling tpt v0.1.0
     Running unittests src/lib.rs (target/debug/deps/tpt-0123)

running 7 tests
test a::b ... ok
test c ... FAILED
test d ... ignored, needs a disk
test [conformance] e ... ignored (no vfio)
test f ... ignored, starts a guest
test [system] g  ... thread panicked at there
FAILED
test h ...
some words
ok

test result: FAILED. 2 passed; 2 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.12s

   Doc-tests wire
test wire/src/lib.rs - x (line 3) ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
thread panicked at here";

    #[test]
    fn lines_are_counted_and_named() {
        let mut tally = Tally::default();
        let shown: Vec<_> = OUTPUT.lines().filter(|line| tally.line(line) == Kind::Show).collect();
        assert_eq!(shown, ["test c ... FAILED", "FAILED", "some words", "thread panicked at here"]);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (3, 2, 2));
        assert!(
            tally.names.contains("tpt::a::b") && tally.names.contains("wire::wire/src/lib.rs - x (line 3)")
        );
        assert_eq!(tally.failures, ["tpt::c", "tpt::[system] g"]);
        assert!(tally.names.contains("tpt::h"));
        let reasons: Vec<_> = tally.skips.iter().map(|skip| skip.reason.as_str()).collect();
        assert_eq!(reasons, ["needs a disk", "no vfio"]);
    }

    #[test]
    fn counts_add_up_wherever_they_stand() {
        let mut tally = Tally::default();
        let lines = [
            "counted: 1,000 kills of an application",
            "test power ... counted: 20 power cuts",
            "ok",
            "  counted: 3 power cuts  ",
            "counted: many things",
        ];
        let shown: Vec<_> = lines.iter().filter(|line| tally.line(line) == Kind::Show).collect();
        assert_eq!(shown, [&"counted: many things"]);
        let mut all = Tally::default();
        all.add(tally.clone());
        all.add(tally);
        let counts: Vec<_> = all.counts.iter().map(|(what, count)| (what.as_str(), *count)).collect();
        assert_eq!(counts, [("kills of an application", 2000), ("power cuts", 46)]);
        assert_eq!(all.names.len(), 1);
    }
}
