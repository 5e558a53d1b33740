//! The parts: what each runs, how often, and what has to be reached.

use anyhow::Result;

use crate::fuzz;

/// One kind of stress.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) work: Work,
    /// Beside `PORTCULLIS_SOAK`, `PORTCULLIS_SEED` and, when a slice has several seeds, `PORTCULLIS_SEEDS`.
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// It is done in so many slices, each remembered when it is done.
    pub(super) slices: u64,
    /// Seeds that one slice goes through.
    pub(super) seeds: u64,
    /// What its tests must have counted in all: the words after the number in `counted: N ...`, summed.
    pub(super) goals: Vec<(u64, &'static str)>,
    /// How many cores it keeps busy. What needs one runs beside another of that kind.
    pub(super) cores: usize,
    /// About how long, on two cores, with everything built.
    pub(super) minutes: u64,
}

/// How a slice is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    /// `cargo test --profile soak` with these words before and behind `--`.
    Test { of: &'static str, only: &'static str },
    /// All loom models.
    Loom,
    /// Each fuzz target for so many seconds, as a slice of its own.
    Fuzz { seconds: u64 },
}

impl Part {
    /// With what most parts have: one slice, one seed, both cores.
    fn new(name: &'static str, about: &'static str, work: Work) -> Self {
        Self {
            name,
            about,
            work,
            environment: &[],
            slices: 1,
            seeds: 1,
            goals: Vec::new(),
            cores: 2,
            minutes: 1,
        }
    }

    fn goal(mut self, count: u64, what: &'static str) -> Self {
        self.goals.push((count, what));
        self
    }

    fn slices(mut self, slices: u64, seeds: u64) -> Self {
        (self.slices, self.seeds) = (slices, seeds);
        self
    }

    fn environment(mut self, environment: &'static [(&'static str, &'static str)]) -> Self {
        self.environment = environment;
        self
    }

    fn one_core(mut self) -> Self {
        self.cores = 1;
        self
    }

    fn minutes(mut self, minutes: u64) -> Self {
        self.minutes = minutes;
        self
    }
}

fn test(of: &'static str, only: &'static str) -> Work {
    Work::Test { of, only }
}

/// All parts.
pub(super) fn all() -> Result<Vec<Part>> {
    let targets = fuzz::targets()?.len() as u64;
    let fuzz = Part::new("fuzz", "every fuzz target", Work::Fuzz { seconds: 120 })
        .goal(targets, fuzz::COUNTED)
        .one_core()
        .minutes(targets.div_ceil(2) * 2 + 1);
    Ok(suites().into_iter().chain([fuzz]).chain(crates()).collect())
}

/// On the whole path: suites of the package `tests`, and the guest.
fn suites() -> Vec<Part> {
    vec![
        Part::new(
            "simulation",
            "the engine with device, applications, control plane and faults, from a seed",
            test("--package tests --test simulation", "every_rule_holds"),
        )
        .slices(20, 50_000)
        .goal(1_000_000, "simulation seeds")
        .minutes(5),
        Part::new(
            "death",
            "applications and adapters killed at every step",
            test("--package tests --test death", ""),
        )
        .goal(1000, "kills of an application")
        .goal(100, "kills of the adapter")
        .goal(1000, "kills of an application with files open")
        .minutes(7),
        Part::new(
            "restart",
            "the adapter killed under live sessions, which go on with the next one",
            test("--package tests --test restart", ""),
        )
        .goal(50, "restarts under load")
        .goal(50, "restarts under changes")
        .goal(50, "restarts under changes of files")
        .minutes(2),
        Part::new(
            "power",
            "the power cut under an adapter and its applications",
            test("--package tests --test power", "acknowledged_and_flushed"),
        )
        .goal(200, "power cuts on emu")
        .one_core()
        .minutes(3),
        Part::new(
            "cuts",
            "the power cut before every flush under files of several sessions",
            test("--package tests --test power", "a_power_cut_anywhere"),
        )
        .slices(4, 2)
        .goal(24_000, "operations on files with the power cut under them")
        .goal(40_000, "states of files after a power cut under an adapter")
        .one_core()
        .minutes(8),
        Part::new(
            "appends",
            "appends, reads and cuts of files on a device that ends commands in any order",
            test("--package tests --test simulation", "appends_are_whole"),
        )
        .slices(4, 2_500)
        .goal(10_000, "simulated worlds of files")
        .one_core()
        .minutes(4),
        Part::new(
            "machine",
            "the whole machine killed under an adapter on VFIO",
            test("--package qemu --test guest", "--ignored a_machine_that_is_killed"),
        )
        .goal(20, "kills of the whole machine")
        .minutes(10),
        Part::new(
            "system",
            "the whole path: holes in memory, guessers, silent and stopped applications, files that come and go",
            test("--package tests --test system", ""),
        )
        .goal(1000, "rounds of memory attacks")
        .goal(10_000_000, "guesses")
        .goal(50, "revocations from stopped applications")
        .goal(10_000, "files made and removed under requests")
        .goal(80_000, "lines appended by eight processes")
        .goal(80_000, "records written by eight processes")
        .minutes(9),
    ]
}

/// Of one crate each.
fn crates() -> Vec<Part> {
    let cases: &'static [(&str, &str)] = &[("PROPTEST_CASES", "1024")];
    vec![
        Part::new("loom", "the queue protocols under every interleaving that matters", Work::Loom).one_core(),
        Part::new(
            "tables",
            "tables against their oracle: many operations, many threads",
            test("--package tpt --tests", ""),
        )
        .environment(&[("PROPTEST_CASES", "4096")])
        .goal(20_000_000, "requests over a million entries")
        .goal(100_000, "entries created and deleted under reads")
        .goal(5_000, "lists moved under reads")
        .minutes(4),
        Part::new(
            "images",
            "the store with the power cut at every write, and with damaged images",
            test("--package store --lib --tests", ""),
        )
        .environment(cases)
        .goal(10_000, "damaged store images")
        .goal(20_000, "states of a file system after a power cut")
        .goal(1_000_000, "files in a file system")
        .one_core()
        .minutes(10),
        Part::new(
            "device",
            "the driver against devices that lie, come late or vanish",
            test("--package driver --lib --tests", ""),
        )
        .environment(cases)
        .goal(200, "seeds of late DMA")
        .one_core()
        .minutes(3),
        Part::new("rings", "rings and messages with hostile peers", test("--package wire --lib --tests", ""))
            .environment(cases)
            .minutes(2),
        Part::new("engine", "the engine and the control plane", test("--package adapter --lib --tests", ""))
            .environment(cases)
            .goal(200, "seeds of late DMA through an adapter")
            .goal(1000, "cycles of taking and giving back everything that is limited")
            .minutes(3),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_names_of_their_own_and_end_in_time() {
        let parts = all().unwrap();
        let mut names: Vec<_> = parts.iter().map(|part| part.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), parts.len());
        assert!(parts.iter().all(|part| part.slices > 0 && part.seeds > 0 && part.cores > 0));
        let minutes: u64 = parts.iter().map(|part| part.minutes).sum();
        assert!(minutes <= 80, "{minutes} minutes");
        for part in &parts {
            let mut goals: Vec<_> = part.goals.iter().map(|(_, what)| what).collect();
            goals.sort_unstable();
            goals.dedup();
            assert_eq!(goals.len(), part.goals.len(), "{}", part.name);
        }
    }
}
