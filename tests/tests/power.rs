//! The power goes, and what must be left. The devices are the tests' own, so that on a device that `PORTCULLIS_DEVICE`
//! names, other than a software one, there is nothing to do.

use libtest_mimic::{Arguments, Completion, Trial};
use tests::power::{CASES, Case};

fn main() -> std::process::ExitCode {
    if tests::power::machine::play() {
        return std::process::ExitCode::SUCCESS;
    }
    let software = std::env::var("PORTCULLIS_DEVICE").map_or(true, |uri| uri.starts_with("emu:"));
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |case: &Case| {
        let run = case.run;
        let test = move || {
            if !software {
                return Ok(Completion::ignored_with("it brings software devices of its own"));
            }
            run();
            Ok(Completion::Completed)
        };
        Trial::ignorable_test(case.name, test).with_kind("power")
    };
    libtest_mimic::run(&arguments, CASES.iter().map(trial).collect()).exit_code()
}
