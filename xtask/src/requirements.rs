//! Which numbered requirements were proven: read from the names of tests that passed.
//!
//! A name says what it proves at its start: `s4_r7_bounds_do_not_wrap` proves S4-R7, `s4_r2_r3_s8_r5_...` proves S4-R2,
//! S4-R3 and S8-R5. What comes after the first word of another kind is prose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use crate::tree;

/// The systems whose requirements must all be proven, and how many each has. Of others those are told that appear.
const EXPECTED: [(u32, u32); 4] = [(4, 15), (5, 16), (6, 16), (8, 14)];

/// The systems whose requirements must be proven on the software device, and on a real driver in the guest too.
const ON_EACH_DEVICE: [u32; 2] = [5, 6];

/// `S4-R7`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Requirement {
    system: u32,
    number: u32,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{}-R{}", self.system, self.number)
    }
}

/// What the name of a test, as test programs print it, says that it proves.
fn of_name(name: &str) -> BTreeSet<Requirement> {
    let mut proven = BTreeSet::new();
    // `PROGRAM::[KIND] module::test`
    let test = name.rsplit("::").next().unwrap_or(name);
    let test = test.rsplit_once("] ").map_or(test, |(_, test)| test);
    let mut system = None;
    for word in test.split('_') {
        match (number(word, 's'), number(word, 'r'), system) {
            (Some(new), _, _) => system = Some(new),
            (None, Some(number), Some(system)) => drop(proven.insert(Requirement { system, number })),
            _ => break,
        }
    }
    proven
}

/// The number behind a letter, counted from 1 and written without leading zeros.
fn number(word: &str, letter: char) -> Option<u32> {
    let digits = word.strip_prefix(letter)?;
    let plain = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// Requirements, each with the tests that proved it.
#[derive(Default)]
pub(crate) struct Proven(BTreeMap<Requirement, BTreeSet<String>>);

impl Proven {
    /// By tests with these names, which passed.
    pub(crate) fn by<'a>(names: impl IntoIterator<Item = &'a String>) -> Self {
        let mut proven = Self::default();
        for name in names {
            for requirement in of_name(name) {
                proven.0.entry(requirement).or_default().insert(name.clone());
            }
        }
        proven
    }

    /// Expected, and proven by no test.
    pub(crate) fn missing(&self) -> Vec<Requirement> {
        let all = EXPECTED
            .iter()
            .flat_map(|&(system, count)| (1..=count).map(move |number| Requirement { system, number }));
        all.filter(|requirement| !self.0.contains_key(requirement)).collect()
    }

    /// Those of them that must be proven on each kind of device, if these tests all ran on one.
    pub(crate) fn missing_on_a_device(&self) -> Vec<Requirement> {
        let mut missing = self.missing();
        missing.retain(|requirement| ON_EACH_DEVICE.contains(&requirement.system));
        missing
    }

    /// Claimed by a test, though the system has fewer.
    pub(crate) fn unknown(&self) -> Vec<(Requirement, &str)> {
        let mut unknown = Vec::new();
        for (requirement, tests) in &self.0 {
            if expected(requirement.system).is_some_and(|count| requirement.number > count) {
                unknown.extend(tests.iter().map(|test| (*requirement, test.as_str())));
            }
        }
        unknown
    }

    /// A line for each system: `S4: R1 R2 R5 (3 of 15)`.
    pub(crate) fn lines(&self) -> Vec<String> {
        let systems: BTreeSet<u32> =
            EXPECTED.iter().map(|(system, _)| *system).chain(self.0.keys().map(|r| r.system)).collect();
        systems.into_iter().map(|system| self.line(system)).collect()
    }

    fn line(&self, system: u32) -> String {
        let listed =
            |numbers: Vec<u32>| numbers.into_iter().map(|number| format!(" R{number}")).collect::<String>();
        let here: Vec<u32> = self.0.keys().filter(|r| r.system == system).map(|r| r.number).collect();
        let found = here.len();
        let mut line = format!("S{system}:{}", listed(here));
        match expected(system) {
            Some(count) => line.push_str(&format!(" ({found} of {count})")),
            None => line.push_str(&format!(" ({found})")),
        }
        line
    }

    /// Writes which tests proved what; the file's name.
    pub(crate) fn write(&self, stages: &[String]) -> Result<String> {
        let file = tree::target_dir().join("xtask/requirements.txt");
        fs::write(&file, self.text(stages)).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file.display().to_string())
    }

    fn text(&self, stages: &[String]) -> String {
        let mut text = format!("Tests that passed in the stages {}, by what they prove\n", stages.join(", "));
        for (requirement, tests) in &self.0 {
            text.push_str(&format!("\n{requirement}\n"));
            tests.iter().for_each(|test| text.push_str(&format!("  {test}\n")));
        }
        text
    }
}

fn expected(system: u32) -> Option<u32> {
    EXPECTED.iter().find(|(known, _)| *known == system).map(|(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proves(name: &str) -> String {
        of_name(name).iter().map(Requirement::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_name_says_what_it_proves() {
        assert_eq!(proves("tpt::directory::tests::s4_r7_bounds_do_not_wrap"), "S4-R7");
        assert_eq!(proves("system::[system] s4_r11_s8_r6_a_stale_key_stays_stale"), "S4-R11 S8-R6");
        assert_eq!(proves("adapter::s4_r2_r3_r6_r7_refusals"), "S4-R2 S4-R3 S4-R6 S4-R7");
        assert_eq!(
            proves("conformance::[conformance, 4096-byte blocks] s6_r8_s6_r13_growing"),
            "S6-R8 S6-R13"
        );
        assert_eq!(proves("s4_r5"), "S4-R5");
        assert_eq!(proves("s4_r2_r2_s4_r2_twice"), "S4-R2");
        assert_eq!(proves("a::s4_r1_panics - should panic"), "S4-R1");
    }

    #[test]
    fn odd_names_prove_nothing_more_than_they_say() {
        for name in [
            "",
            "s4",
            "s4_",
            "s4_all",
            "r4_s4",
            "s4r7_x",
            "s4__r7",
            "S4_R7_x",
            "s_r1",
            "s4_r_x",
            "s4_r07_x",
            "s4_r0_x",
            "s4_r+7_x",
            "s4_r99999999999",
            "sees_r7",
            "the_s4_r7_of_another",
            "s4_r7_module::plain",
            "docs::src/lib.rs - s4_r7 (line 3)",
        ] {
            assert_eq!(proves(name), "", "{name:?}");
        }
        assert_eq!(proves("s4_r1_and_s8_r2_too"), "S4-R1", "prose ends the numbers");
        assert_eq!(proves("s4_s8_r3_x"), "S8-R3");
    }

    #[test]
    fn the_report_counts_and_names_what_is_missing() {
        let mut names: Vec<String> = (1..=15).map(|n| format!("a::s4_r{n}_x")).collect();
        names.extend((1..=14).filter(|n| *n != 3 && *n != 9).map(|n| format!("b::s8_r{n}_x")));
        names.extend((1..=16).map(|n| format!("b::s5_r{n}_x")));
        names.extend(["c::s6_r2_x", "c::s6_r10_y", "c::s6_r10_z", "c::s7_r2_x"].map(str::to_owned));
        let proven = Proven::by(&names);
        assert_eq!(
            proven.lines(),
            [
                "S4: R1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R11 R12 R13 R14 R15 (15 of 15)",
                "S5: R1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R11 R12 R13 R14 R15 R16 (16 of 16)",
                "S6: R2 R10 (2 of 16)",
                "S7: R2 (1)",
                "S8: R1 R2 R4 R5 R6 R7 R8 R10 R11 R12 R13 R14 (12 of 14)",
            ]
        );
        let missing: Vec<String> = proven.missing().iter().map(Requirement::to_string).collect();
        assert_eq!(missing.len(), 14 + 2);
        assert_eq!(missing[..2], ["S6-R1", "S6-R3"]);
        assert_eq!(missing[14..], ["S8-R3", "S8-R9"]);
        assert_eq!(proven.missing_on_a_device().len(), 14, "those of S8 may be proven anywhere");
        assert!(proven.unknown().is_empty());
        assert!(proven.text(&["unit".to_owned()]).contains("\nS6-R10\n  c::s6_r10_y\n  c::s6_r10_z\n"));
    }

    #[test]
    fn nothing_is_missing_twice_and_a_number_too_high_is_told() {
        let names = ["x::s4_r16_y".to_owned()];
        let proven = Proven::by(&names);
        assert_eq!(proven.missing().len(), 15 + 16 + 16 + 14);
        assert_eq!(proven.unknown(), [(Requirement { system: 4, number: 16 }, "x::s4_r16_y")]);
    }
}
